//! The section `data`: which documents, and how they become blocks.

use super::{nearest, yes};
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The corpus that stands for documents of random tokens.
pub const RANDOM_CORPUS: &str = "random";
/// The split that is trained on: without patterns of its own, every document that no other split has.
pub(super) const TRAIN: &str = "train";
/// What Python's `random` is seeded with by who has no seed in mind.
const DEFAULT_SHUFFLE_SEED: u64 = 42;

/// Documents and how they become blocks.
///
/// In this order: the corpus is divided into `splits`, the files of a split into samples (`sample_by`), of these some are
/// taken (`select`), each is cut (`truncate_at`) and tokenized, begun with BOS and ended with EOS, left out where it is too
/// short or too long, and packed; at last the blocks are shuffled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// A folder, a glob or a `.tgz` of text files; or the word `random`, for documents of random tokens, one a block: memory
    /// and speed do not depend on what the tokens say.
    pub corpus: String,
    /// Name of a split -> patterns of file names. `train`, when not given, is every file in no other split.
    #[serde(default)]
    pub splits: BTreeMap<String, Vec<String>>,
    /// What one document is.
    #[serde(default)]
    pub sample_by: SampleBy,
    /// Name of a split -> which of its documents are used; all of them when not given.
    #[serde(default)]
    pub select: BTreeMap<String, DocumentRange>,
    /// A regular expression; each document ends before its first match.
    #[serde(default)]
    pub truncate_at: Option<String>,
    #[serde(default)]
    pub packing: Packing,
    /// Documents and blocks shorter than this many tokens are dropped, and counted.
    #[serde(default = "default_min_length")]
    pub min_length: usize,
    /// Documents longer than this many tokens, BOS and EOS included, are dropped, and counted.
    #[serde(default)]
    pub max_document_tokens: Option<usize>,
    /// Tokens that a document which goes on in another block repeats there: the overlap.
    #[serde(default)]
    pub stride: usize,
    /// Whether a document goes on in another block; if not, what does not fit is dropped, and counted.
    #[serde(default = "yes")]
    pub overflow: bool,
    #[serde(default)]
    pub continuation: Continuation,
    /// Packing runs over so many documents at a time, and no block holds documents of two such batches; all at once when
    /// not given.
    #[serde(default)]
    pub pack_batch_documents: Option<usize>,
    /// Shuffle the blocks of each batch once, as Python's `random.Random(shuffle_seed).shuffle` does. The order in which a run
    /// draws them is another matter: `train.seed` decides it, anew each epoch.
    #[serde(default)]
    pub shuffle_blocks: bool,
    /// 42 when not given.
    #[serde(default)]
    pub shuffle_seed: Option<u64>,
    /// Begin each document with the tokenizer's BOS, where it has one.
    #[serde(default = "yes")]
    pub add_bos: bool,
    /// End each document with the tokenizer's EOS, where it has one.
    #[serde(default = "yes")]
    pub add_eos: bool,
}

/// What one document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SampleBy {
    /// A file.
    #[default]
    Document,
    /// A line that is not blank.
    Line,
    /// Lines between blank ones.
    Paragraph,
}

/// How documents share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Documents back to back in their order, cut at block ends: every block but the last is full.
    #[default]
    Greedy,
    /// Whole documents, longest first, each into the fullest block that has room. Longer ones are cut into full blocks
    /// and a rest.
    BestFit,
    /// As `BestFit`, each into the first block that has room.
    FirstFit,
    /// No sharing: each document begins a block of its own.
    Unpacked,
}

/// How a document that is cut at a block's end goes on in another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Continuation {
    /// As if there were no cut: blocks are filled to their last token, and the next piece has no BOS.
    #[default]
    Seamless,
    /// Each piece stands for itself, as in the tutorial: it begins with BOS and is never a single token of its document.
    /// Greedy packing begins no document where less than `min_length` is left of a block, and without `overflow` none in a
    /// block that another has begun.
    Restarted,
}

/// Some of a split's documents, as a Python slice: `10%:80%`, `100:`, `:-5`. Also written `100` (the first hundred), `0.25`
/// (the first quarter) and `[10, 90]`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(try_from = "WrittenRange")]
pub struct DocumentRange {
    /// The first document when not given.
    pub start: Option<Bound>,
    /// The one after the last document when not given.
    pub end: Option<Bound>,
}

/// One end of a [`DocumentRange`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// So many documents from the beginning, or from the end where it is negative.
    Count(i64),
    /// From 0 to 100.
    Percent(f64),
}

fn default_min_length() -> usize {
    2
}

impl DataSection {
    /// The section of a corpus with every key left at its default.
    pub fn new(corpus: &str) -> DataSection {
        DataSection {
            corpus: corpus.to_string(),
            splits: BTreeMap::new(),
            sample_by: SampleBy::default(),
            select: BTreeMap::new(),
            truncate_at: None,
            packing: Packing::default(),
            min_length: default_min_length(),
            max_document_tokens: None,
            stride: 0,
            overflow: true,
            continuation: Continuation::default(),
            pack_batch_documents: None,
            shuffle_blocks: false,
            shuffle_seed: None,
            add_bos: true,
            add_eos: true,
        }
    }

    /// Checks what types can't say, for blocks of `sequence_length` tokens, and fills in what depends on other keys.
    ///
    /// # Errors
    ///
    /// The key path, and what was expected and found.
    pub fn complete(&mut self, sequence_length: usize) -> Result<(), (&'static str, String)> {
        self.check_documents()?;
        self.check_blocks(sequence_length)?;
        if self.shuffle_blocks {
            self.shuffle_seed.get_or_insert(DEFAULT_SHUFFLE_SEED);
        }
        self.select.retain(|_, range| *range != DocumentRange::default());
        self.check_random()
    }

    fn check_documents(&self) -> Result<(), (&'static str, String)> {
        let known = || self.splits.keys().map(String::as_str).chain([TRAIN]);
        if let Some(name) = self.select.keys().find(|name| !known().any(|k| k == *name)) {
            let near = nearest(name, known());
            let help = near.map_or(String::new(), |n| format!("\n  help: did you mean `{n}`?"));
            return Err(("data.select", format!("expected names of splits, found `{name}`{help}")));
        }
        if let Some(pattern) = &self.truncate_at {
            let expected = "expected a regular expression";
            let regex = Regex::new(pattern).map_err(|error| {
                // The last line says what is wrong, those before it draw where.
                let reason = error.to_string().lines().last().unwrap_or_default().to_string();
                ("data.truncate_at", format!("{expected}, found `{pattern}` ({reason})"))
            })?;
            if regex.is_match("") {
                let message =
                    format!("{expected} that an empty text does not match, found `{pattern}`");
                return Err(("data.truncate_at", message));
            }
        }
        Ok(())
    }

    fn check_blocks(&self, sequence_length: usize) -> Result<(), (&'static str, String)> {
        let at_most = |key, most: usize, why: &str, found: usize| match found <= most {
            true => Ok(()),
            false => Err((key, format!("expected at most {most} ({why}), found `{found}`"))),
        };
        if self.min_length == 0 || self.pack_batch_documents == Some(0) {
            let key =
                if self.min_length == 0 { "data.min_length" } else { "data.pack_batch_documents" };
            return Err((key, "expected 1 or more, found `0`".into()));
        }
        at_most("data.min_length", sequence_length, "train.sequence_length", self.min_length)?;
        let least_block = if self.continuation == Continuation::Restarted { 3 } else { 2 };
        if sequence_length < least_block {
            let message = format!(
                "`restarted` needs blocks of {least_block} tokens or more, found `{sequence_length}`"
            );
            return Err(("data.continuation", message));
        }
        let why = "a block has to hold something new";
        at_most("data.stride", sequence_length + 1 - least_block, why, self.stride)?;
        if self.stride > 0 && !self.overflow {
            return Err(("data.stride", "belongs to `overflow: true`".into()));
        }
        if self.shuffle_seed.is_some() && !self.shuffle_blocks {
            return Err(("data.shuffle_seed", "belongs to `shuffle_blocks: true`".into()));
        }
        match self.max_document_tokens {
            Some(most) if most < self.min_length => {
                let least = self.min_length;
                let message =
                    format!("expected at least data.min_length ({least}), found `{most}`");
                Err(("data.max_document_tokens", message))
            }
            _ => Ok(()),
        }
    }

    /// Documents of random tokens are made one a block: nothing is read, taken or packed.
    fn check_random(&self) -> Result<(), (&'static str, String)> {
        let plain = DataSection::new(RANDOM_CORPUS);
        let given = [
            ("data.sample_by", self.sample_by != plain.sample_by),
            ("data.select", self.select != plain.select),
            ("data.truncate_at", self.truncate_at.is_some()),
            ("data.max_document_tokens", self.max_document_tokens.is_some()),
            ("data.stride", self.stride != plain.stride),
            ("data.overflow", self.overflow != plain.overflow),
            ("data.continuation", self.continuation != plain.continuation),
            ("data.pack_batch_documents", self.pack_batch_documents.is_some()),
            ("data.shuffle_blocks", self.shuffle_blocks),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((key, _)) if self.corpus == RANDOM_CORPUS => {
                Err((key, format!("has no meaning for the corpus `{RANDOM_CORPUS}`")))
            }
            _ => Ok(()),
        }
    }
}

impl DocumentRange {
    /// Which of `documents` documents these are. As in Python, what is beyond the end is left out.
    pub fn of(&self, documents: usize) -> Range<usize> {
        let at = |bound: Option<Bound>, open: usize| match bound {
            None => open,
            Some(Bound::Count(n @ ..0)) => documents.saturating_sub(n.unsigned_abs() as usize),
            Some(Bound::Count(n)) => (n as usize).min(documents),
            // A share that was written as a decimal may fall short of the whole number it means.
            Some(Bound::Percent(p)) => (p / 100.0 * documents as f64 + 1e-9) as usize,
        };
        let start = at(self.start, 0);
        start..at(self.end, documents).max(start)
    }

    fn first(end: Bound) -> DocumentRange {
        DocumentRange { start: None, end: Some(end) }
    }

    /// The range itself, unless it is empty whatever it is taken of.
    fn check(self) -> Result<DocumentRange, String> {
        let in_order = match (self.start.unwrap_or(Bound::Count(0)), self.end) {
            (Bound::Count(a), Some(Bound::Count(b))) if (a < 0) == (b < 0) => a < b,
            (Bound::Percent(a), Some(Bound::Percent(b))) => a < b,
            (Bound::Percent(a), None) => a < 100.0,
            (_, Some(Bound::Percent(b))) => b > 0.0,
            _ => true,
        };
        match in_order {
            true => Ok(self),
            false => Err(format!("expected a range with documents in it, found `{self}`")),
        }
    }
}

impl Bound {
    /// A share from 0 to 1.
    fn share(share: f64) -> Result<Bound, String> {
        // 0.29 times 100 is 28.999999999999996.
        Bound::percent((share * 1e12).round() / 1e10)
    }

    fn percent(percent: f64) -> Result<Bound, String> {
        match (0.0..=100.0).contains(&percent) {
            true => Ok(Bound::Percent(percent)),
            false => Err(format!("expected a share from 0 to 1 (100%), found `{percent}%`")),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Count(n) => write!(f, "{n}"),
            Bound::Percent(p) => write!(f, "{p}%"),
        }
    }
}

/// `100`, `-5`, `10%` or `0.25`.
impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        let expected =
            || format!("expected a number of documents or a share (`10%`), found `{text}`");
        match text.strip_suffix('%') {
            Some(percent) => Bound::percent(percent.trim_end().parse().map_err(|_| expected())?),
            None => match text.parse() {
                Ok(count) => Ok(Bound::Count(count)),
                Err(_) => Bound::share(text.parse().map_err(|_| expected())?),
            },
        }
    }
}

impl fmt::Display for DocumentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = |f: &mut fmt::Formatter<'_>, bound: Option<Bound>| match bound {
            Some(bound) => write!(f, "{bound}"),
            None => Ok(()),
        };
        write(f, self.start)?;
        f.write_str(":")?;
        write(f, self.end)
    }
}

impl FromStr for DocumentRange {
    type Err = String;

    fn from_str(text: &str) -> Result<DocumentRange, String> {
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            text => text.parse().map(Some),
        };
        match text.split_once(':') {
            Some((start, end)) => DocumentRange { start: bound(start)?, end: bound(end)? },
            None => DocumentRange::first(text.trim().parse()?),
        }
        .check()
    }
}

/// As a slice, whichever way it was written.
impl Serialize for DocumentRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for DocumentRange {
    fn schema_name() -> Cow<'static, str> {
        "DocumentRange".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        WrittenRange::json_schema(generator)
    }
}

/// The ways a range may be written.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a range of documents: `10%:80%`, a number, a share, or [first, end]"
)]
enum WrittenRange {
    All,
    End(WrittenBound),
    Both([WrittenBound; 2]),
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenBound {
    Count(i64),
    Share(f64),
    Text(String),
}

impl TryFrom<WrittenRange> for DocumentRange {
    type Error = String;

    fn try_from(written: WrittenRange) -> Result<DocumentRange, String> {
        match written {
            WrittenRange::All => Ok(DocumentRange::default()),
            WrittenRange::End(WrittenBound::Text(text)) => text.parse(),
            WrittenRange::End(end) => {
                DocumentRange { start: None, end: Some(end.try_into()?) }.check()
            }
            WrittenRange::Both([start, end]) => {
                let (start, end) = (Some(start.try_into()?), Some(end.try_into()?));
                DocumentRange { start, end }.check()
            }
        }
    }
}

impl TryFrom<WrittenBound> for Bound {
    type Error = String;

    fn try_from(written: WrittenBound) -> Result<Bound, String> {
        match written {
            WrittenBound::Count(count) => Ok(Bound::Count(count)),
            WrittenBound::Share(share) => Bound::share(share),
            WrittenBound::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_are_read_from_every_way_of_writing_them() {
        let check = |written: serde_json::Value, slice: &str, expected: Range<usize>| {
            let range: DocumentRange = serde_json::from_value(written).unwrap();
            assert_eq!((range.to_string().as_str(), range.of(1000)), (slice, expected));
            assert_eq!(serde_json::from_value::<DocumentRange>(json!(slice)).unwrap(), range);
        };
        check(json!(null), ":", 0..1000);
        check(json!(0.25), ":25%", 0..250);
        check(json!(0.29), ":29%", 0..290);
        check(json!(500), ":500", 0..500);
        check(json!(-5), ":-5", 0..995);
        check(json!([100, 900]), "100:900", 100..900);
        check(json!([100, 0.9]), "100:90%", 100..900);
        check(json!("100"), ":100", 0..100);
        check(json!("0.1"), ":10%", 0..100);
        check(json!("100:"), "100:", 100..1000);
        check(json!(":500"), ":500", 0..500);
        check(json!(" 10% : 80% "), "10%:80%", 100..800);
        check(json!("33.3%:"), "33.3%:", 333..1000);
        check(json!("-10:"), "-10:", 990..1000);
        // As in a slice, what is beyond the end is not there.
        check(json!("990:5000"), "990:5000", 990..1000);
        check(json!("5000:6000"), "5000:6000", 1000..1000);
    }

    #[test]
    fn ranges_without_documents_and_other_things_are_errors() {
        let check = |written: serde_json::Value, expected: &str| {
            let error = serde_json::from_value::<DocumentRange>(written).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        check(json!("80%:10%"), "expected a range with documents in it, found `80%:10%`");
        check(json!([5, 5]), "expected a range with documents in it, found `5:5`");
        check(json!(0), "expected a range with documents in it, found `:0`");
        check(json!("120%"), "expected a share from 0 to 1 (100%), found `120%`");
        check(json!(1.5), "expected a share from 0 to 1 (100%), found `150%`");
        check(json!("a:b"), "expected a number of documents or a share (`10%`), found `a`");
        let expected =
            "expected a range of documents: `10%:80%`, a number, a share, or [first, end]";
        check(json!([1, 2, 3]), expected);
        check(json!({"a": 1}), expected);
    }
}
