//! The documents of one split as they are tokenized: files, lines or paragraphs, those that are selected, cut where asked.

use crate::corpus::{Corpus, Document, TRAIN};
use anyhow::{Context, Result, ensure};
use fathom_spec::config::{DataSection, SampleBy};
use regex::Regex;
use std::collections::BTreeSet;

/// What `sample_by`, `select` and `truncate_at` make of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Those that are selected, in the order of the corpus.
    pub documents: Vec<Document>,
    /// How many the split has.
    pub of: usize,
    /// Documents that `truncate_at` cut short.
    pub documents_cut: usize,
    /// Bytes that these lost.
    pub bytes_cut: usize,
}

impl Samples {
    /// The samples of split `name` of `corpus`.
    ///
    /// A line is called `file:3`, a paragraph `file#3`, both counted from 1 within their file.
    ///
    /// # Errors
    ///
    /// As [`Corpus::split`]; and when nothing is selected, or `truncate_at` is not a regular expression.
    pub fn of(corpus: &Corpus, section: &DataSection, name: &str) -> Result<Samples> {
        let files = corpus.split(&section.splits, name)?;
        let mut documents: Vec<Document> = match section.sample_by {
            SampleBy::Document => files.into_iter().cloned().collect(),
            SampleBy::Line => files.into_iter().flat_map(lines).collect(),
            SampleBy::Paragraph => files.into_iter().flat_map(paragraphs).collect(),
        };
        let of = documents.len();
        if let Some(range) = section.select.get(name) {
            let chosen = range.of(of);
            ensure!(
                !chosen.is_empty(),
                "data.select.{name}: expected a range with documents in it, found `{range}` of {of}"
            );
            documents.truncate(chosen.end);
            documents.drain(..chosen.start);
        }
        let mut samples = Samples { documents, of, documents_cut: 0, bytes_cut: 0 };
        if let Some(pattern) = &section.truncate_at {
            samples.truncate_at(pattern)?;
        }
        Ok(samples)
    }

    fn truncate_at(&mut self, pattern: &str) -> Result<()> {
        let regex = Regex::new(pattern).with_context(|| {
            format!("data.truncate_at: expected a regular expression, found `{pattern}`")
        })?;
        for document in &mut self.documents {
            let Some(found) = regex.find(&document.text) else { continue };
            self.documents_cut += 1;
            self.bytes_cut += document.text.len() - found.start();
            *document = Document::new(&document.name, &document.text[..found.start()]);
        }
        Ok(())
    }
}

/// Names of the held-out documents (of any split but `train`) that are in `train` as well, `select` considered: what is
/// measured on them is recall of the training text, which a report must say.
///
/// # Errors
///
/// As [`Samples::of`].
pub fn overlap(corpus: &Corpus, section: &DataSection) -> Result<Vec<String>> {
    if !section.splits.contains_key(TRAIN) {
        return Ok(Vec::new());
    }
    // Where a document was cut does not matter to who it is.
    let section = DataSection { truncate_at: None, ..section.clone() };
    let names = |split: &str| -> Result<BTreeSet<String>> {
        Ok(Samples::of(corpus, &section, split)?.documents.into_iter().map(|d| d.name).collect())
    };
    let train = names(TRAIN)?;
    let mut both = BTreeSet::new();
    for split in section.splits.keys().filter(|split| *split != TRAIN) {
        both.extend(names(split)?.into_iter().filter(|name| train.contains(name)));
    }
    Ok(both.into_iter().collect())
}

/// The lines of a file without their ends; blank ones are none.
fn lines(file: &Document) -> Vec<Document> {
    let lines = file.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| Document::new(&format!("{}:{}", file.name, i + 1), line)).collect()
}

/// Runs of lines that are not blank, each from its first character to the end of its last line.
fn paragraphs(file: &Document) -> Vec<Document> {
    let mut texts: Vec<&str> = Vec::new();
    let mut begun: Option<usize> = None;
    let mut at = 0;
    for line in file.text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        match begun {
            Some(start) if is_blank => {
                texts.push(&file.text[start..at]);
                begun = None;
            }
            None if !is_blank => begun = Some(at),
            _ => {}
        }
        at += line.len();
    }
    texts.extend(begun.map(|start| &file.text[start..]));
    let named = texts.into_iter().enumerate();
    named
        .map(|(i, text)| Document::new(&format!("{}#{}", file.name, i + 1), text.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(files: &[(&str, &str)]) -> Corpus {
        let documents = files.iter().map(|(name, text)| Document::new(name, text)).collect();
        Corpus { documents, notes: Vec::new() }
    }

    /// The section `data`, as it is written.
    fn section(keys: serde_json::Value) -> DataSection {
        let mut json = keys;
        json["corpus"] = "c".into();
        serde_json::from_value(json).unwrap()
    }

    #[track_caller]
    fn check(corpus: &Corpus, keys: serde_json::Value, expected: &[(&str, &str)]) -> Samples {
        let samples = Samples::of(corpus, &section(keys), "train").unwrap();
        let found: Vec<(&str, &str)> =
            samples.documents.iter().map(|d| (d.name.as_str(), d.text.as_str())).collect();
        assert_eq!(found, expected);
        samples
    }

    #[test]
    fn a_document_is_a_file_a_line_or_a_paragraph() {
        let text = "one\ntwo\n\n \nthree  \r\n\r\nfour\n";
        let corpus = corpus(&[("a.txt", text), ("b.txt", "\nfive")]);
        check(&corpus, serde_json::json!({}), &[("a.txt", text), ("b.txt", "\nfive")]);
        let lines = [
            ("a.txt:1", "one"),
            ("a.txt:2", "two"),
            ("a.txt:5", "three  "),
            ("a.txt:7", "four"),
            ("b.txt:2", "five"),
        ];
        check(&corpus, serde_json::json!({"sample_by": "line"}), &lines);
        let paragraphs = [
            ("a.txt#1", "one\ntwo"),
            ("a.txt#2", "three"),
            ("a.txt#3", "four"),
            ("b.txt#1", "five"),
        ];
        check(&corpus, serde_json::json!({"sample_by": "paragraph"}), &paragraphs);
    }

    #[test]
    fn some_are_selected() {
        let files = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];
        let corpus = corpus(&files);
        let select = |range: &str| serde_json::json!({"select": {"train": range}});
        let samples = check(&corpus, select("25%:75%"), &files[1..3]);
        assert_eq!(samples.of, 4);
        check(&corpus, select("-1:"), &files[3..]);
        check(&corpus, select("2:100"), &files[2..]);
        let nothing = Samples::of(&corpus, &section(select("9:")), "train").unwrap_err();
        assert_eq!(
            nothing.to_string(),
            "data.select.train: expected a range with documents in it, found `9:` of 4"
        );
    }

    #[test]
    fn texts_end_before_the_first_match() {
        let corpus = corpus(&[("a", "tale\nTHE END\nnotes"), ("b", "no end")]);
        let keys = serde_json::json!({"truncate_at": r"\n(?i)the end"});
        let samples = check(&corpus, keys, &[("a", "tale"), ("b", "no end")]);
        assert_eq!((samples.documents_cut, samples.bytes_cut), (1, 14));
        assert_eq!(samples.documents[0].digest, Document::new("", "tale").digest);
    }

    #[test]
    fn held_out_documents_in_train_are_named() {
        let corpus = corpus(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
        let of = |splits: serde_json::Value| {
            overlap(&corpus, &section(serde_json::json!({"splits": splits}))).unwrap()
        };
        assert!(of(serde_json::json!({"test": ["a"]})).is_empty());
        assert!(of(serde_json::json!({"test": ["a"], "train": ["b", "c"]})).is_empty());
        let both = serde_json::json!({"test": ["a"], "validation": ["c", "a"], "train": ["*"]});
        assert_eq!(of(both), ["a", "c"]);

        let splits = serde_json::json!({"train": ["*"], "validation": ["*"]});
        let found = |select: serde_json::Value| {
            overlap(&corpus, &section(serde_json::json!({"splits": splits, "select": select})))
        };
        assert_eq!(found(serde_json::json!({})).unwrap(), ["a", "b", "c", "d"]);
        let apart = serde_json::json!({"train": ":75%", "validation": "75%:"});
        assert!(found(apart).unwrap().is_empty());
        let one = serde_json::json!({"train": ":3", "validation": "2:"});
        assert_eq!(found(one).unwrap(), ["c"]);
    }
}
