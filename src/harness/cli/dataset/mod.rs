//! `fathom dataset`: examples of a split as text or as blocks of tokens, and a histogram of their lengths.

mod target;

use super::context::Context;
use super::sweep::Settings;
use super::{edit, exit};
use crate::report::plot::histogram::Histogram;
use crate::run::write_whole;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use fathom_data::cache::Cache;
use fathom_data::corpus::{Corpus, Document};
use fathom_data::dataset::Dataset;
use fathom_data::packing::{Block, PackOptions, shuffle::shuffle};
use fathom_data::samples::Samples;
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{DataSection, DocumentRange};
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use target::{Description, of_project, of_source};

/// Which samples a histogram takes where no seed is given.
const DEFAULT_SEED: u64 = 42;
/// What documents are made of, and blocks.
const TEXT: &str = "text";
const INPUT_IDS: &str = "input_ids";
const DOCUMENT_STARTS: &str = "document_starts";

#[derive(Args)]
pub struct DatasetArgs {
    /// A corpus (a folder, a glob, an archive or a file of text) or a configuration file, in place of a configuration of
    /// the project
    source: Option<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    pub options: DatasetOptions,
    /// Print the configuration first, with all its templates put together
    #[arg(long, conflicts_with = "source")]
    pp: bool,
    /// Write to a file instead
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Open the text in an editor
    #[arg(short = 'e', long)]
    edit: bool,
}

/// What to do with a target.
#[derive(Args, Debug, Clone)]
pub struct DatasetOptions {
    /// The tokenizer: a folder, a tokenizer.json, a .gguf file, or `bytes`
    #[arg(short = 'T', long, visible_alias = "tokenizer-path", value_name = "PATH")]
    pub tokenizer: Option<String>,
    /// Which split, as documents or as blocks
    #[arg(long, default_value = "train_dataset_split", value_name = "NAME")]
    pub target: String,
    /// Print so many examples
    #[arg(short = 'n', long, value_name = "N")]
    pub examples: Option<usize>,
    /// The target is blocks of tokens
    #[arg(short = 's', long)]
    pub tokenized: bool,
    /// Draw the lengths in tokens as an SVG beside the project, and print their statistics
    #[arg(short = 'H', long)]
    pub histogram: bool,
    /// Take so many examples for it, chosen at random
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub histogram_samples: usize,
    /// Print these features of each example: `text`; `input_ids`, `document_starts`
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub features: Vec<String>,
    /// Divide the documents into so many parts, and take one
    #[arg(long, value_name = "N", requires = "shard_index")]
    pub num_shards: Option<usize>,
    /// Which part, counted from 0
    #[arg(long, value_name = "I", requires = "num_shards")]
    pub shard_index: Option<usize>,
    /// Take these documents: `10%:80%`, `100`, `0.25`, `100:`
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub select_range: Option<DocumentRange>,
    /// Shuffle the documents first; also chooses the examples of the histogram, with 42 if not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Of the examples, print every so many
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub example_stride: usize,
    /// Cut each printed feature after so many characters
    #[arg(long, value_name = "N")]
    pub truncate: Option<usize>,
}

/// The examples of a target.
enum Examples {
    Documents(Vec<Document>),
    Blocks(Dataset),
}

/// Carries out `fathom dataset`.
///
/// # Errors
///
/// As [`dataset`]; and for mistakes in the configuration, or a target that is no documents and no blocks.
pub fn run(args: &DatasetArgs, context: &Context) -> Result<u8> {
    let mut collected = Vec::new();
    let is_collected = args.output.is_some() || args.edit;
    let mut terminal = io::stdout().lock();
    let out: &mut dyn Write = if is_collected { &mut collected } else { &mut terminal };
    let description = match &args.source {
        Some(source) => of_source(source, args, context)?,
        None => of_project(args, context, out)?,
    };
    let cache = Cache::of_user(|name| std::env::var_os(name));
    dataset(&description, &args.options, &cache, out)?;
    let stem = description.histogram.file_stem().unwrap_or_default().to_string_lossy();
    match &args.output {
        Some(path) => write_whole(path, &collected)?,
        None if args.edit => {
            edit::open_text(&format!("{stem}.txt"), &String::from_utf8_lossy(&collected))?;
        }
        None => {}
    }
    Ok(exit::OK)
}

/// Prints what `args` ask for of the target that is described.
///
/// # Errors
///
/// When the target is not what `args` take it for, a tokenizer is wanted and none given, the texts can't be read or packed,
/// or something can't be written.
pub fn dataset(
    description: &Description,
    args: &DatasetOptions,
    cache: &Cache,
    out: &mut dyn Write,
) -> Result<()> {
    check(description, args)?;
    let path = args.tokenizer.as_ref().or(description.tokenizer.as_ref());
    let tokenizer = path.map(|path| Tokenizer::from_spec(path)).transpose()?;
    if let (Some(tokenizer), Some(path)) = (&tokenizer, path) {
        writeln!(out, "Tokenizer:\n{}", describe_tokenizer(tokenizer, path)?)?;
    }
    let documents = documents(description, args)?;
    let (examples, report) = match (description.max_length, &tokenizer) {
        (None, _) => (Examples::Documents(documents), None),
        (Some(max_length), tokenizer) => {
            let tokenizer = tokenizer.as_ref().with_context(|| wants_tokenizer(description))?;
            let tokenized = cache.tokenize(&documents, tokenizer)?;
            note(&tokenized.note);
            let options = PackOptions::of(&description.data, max_length);
            let blocks = Dataset::build(&documents, &tokenized.tokens, tokenizer, &options)?;
            let report = describe_packing(&blocks, tokenized.was_cached);
            (Examples::Blocks(blocks), Some(report))
        }
    };
    if args.histogram {
        let tokenizer = tokenizer.as_ref().with_context(|| wants_tokenizer(description))?;
        let lengths = examples.lengths(&description.data, tokenizer, cache)?;
        histogram(description, args, lengths, &examples, out)?;
    }
    writeln!(out, "split={}", examples.describe())?;
    if let Some(report) = report {
        writeln!(out, "{report}")?;
    }
    if let Some(wanted) = args.examples.filter(|&n| n > 0) {
        let stride = args.example_stride;
        writeln!(out, "Printing {wanted} examples from the dataset (stride={stride}):")?;
        for index in (0..examples.len()).step_by(stride).take(wanted) {
            match &examples {
                Examples::Documents(documents) => {
                    print_document(index, &documents[index], args, out)?;
                }
                Examples::Blocks(dataset) => {
                    let tokenizer = tokenizer.as_ref().expect("blocks were made with one");
                    print_block(index, &dataset.blocks[index], tokenizer, args, out)?;
                }
            }
        }
    }
    Ok(())
}

fn check(description: &Description, args: &DatasetOptions) -> Result<()> {
    let target = &description.target;
    if args.tokenized && description.max_length.is_none() {
        bail!(
            "--tokenized: expected a target of blocks, found `{target}`, which is documents\n  help: leave it out, or name \
             the blocks, for example with --target train_dataset"
        );
    }
    ensure!(args.example_stride > 0, "--example-stride: expected 1 or more, found 0");
    let known: &[&str] = match description.max_length {
        Some(_) => &[INPUT_IDS, DOCUMENT_STARTS],
        None => &[TEXT],
    };
    if let Some(unknown) = args.features.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "--features: expected features of `{target}` ({}), found `{unknown}`",
            known.join(", ")
        );
    }
    Ok(())
}

fn wants_tokenizer(description: &Description) -> String {
    format!(
        "-T: expected a tokenizer for the tokens of `{}`, found none\n  help: name a model's folder, a tokenizer.json, a \
         .gguf file, or `bytes`",
        description.target
    )
}

fn note(message: &Option<String>) {
    if let Some(message) = message {
        tell!("note: {message}");
    }
}

fn describe_tokenizer(tokenizer: &Tokenizer, path: &str) -> Result<String> {
    let special = |name: &str, id: Option<u32>| -> Result<String> {
        Ok(match id {
            Some(id) => format!("{name} {id} `{}`", tokenizer.decode(&[id])?),
            None => format!("no {name}"),
        })
    };
    let limit = tokenizer.max_length().map(|limit| format!(", at most {limit} tokens a sequence"));
    Ok(format!(
        "{path}: {} ids, {}, {}{}",
        tokenizer.vocab_size(),
        special("BOS", tokenizer.bos_id())?,
        special("EOS", tokenizer.eos_id())?,
        limit.unwrap_or_default()
    ))
}

/// The documents of the split: those that are selected, shuffled, and of them the shard.
fn documents(description: &Description, args: &DatasetOptions) -> Result<Vec<Document>> {
    let mut section = description.data.clone();
    if let Some(range) = args.select_range {
        section.select.insert(description.split.clone(), range);
    }
    let corpus = Corpus::open(&section.corpus)?;
    for message in &corpus.notes {
        tell!("note: {message}");
    }
    let mut documents = Samples::of(&corpus, &section, &description.split)?.documents;
    if let Some(seed) = args.seed {
        shuffle(&mut documents, seed);
    }
    if let (Some(num_shards), Some(index)) = (args.num_shards, args.shard_index) {
        ensure!(
            index < num_shards,
            "--shard-index: expected less than --num-shards ({num_shards}), found {index}"
        );
        let part = shard(documents.len(), num_shards, index);
        documents.truncate(part.end);
        documents.drain(..part.start);
        ensure!(
            !documents.is_empty(),
            "--num-shards: shard {index} of {num_shards} has no document"
        );
    }
    Ok(documents)
}

/// One of `num_shards` neighbouring parts; the first ones have one more where they can't be equal.
fn shard(documents: usize, num_shards: usize, index: usize) -> Range<usize> {
    let (size, more) = (documents / num_shards, documents % num_shards);
    let start = size * index + more.min(index);
    start..start + size + usize::from(index < more)
}

/// What became of every token.
fn describe_packing(dataset: &Dataset, was_cached: bool) -> String {
    let report = &dataset.report;
    let mut text = format!(
        "Packed {} documents into {} blocks of {} to {} tokens (median {}; {:.1}% of them full): {} of {} tokens",
        report.documents - report.documents_dropped,
        report.blocks,
        report.min,
        report.max,
        report.median,
        100.0 * report.share_full,
        report.tokens_packed,
        report.tokens_in
    );
    for (count, what) in [
        (report.tokens_dropped, "dropped"),
        (report.documents_dropped, "documents without a block"),
        (report.tokens_repeated, "repeated by stride"),
        (report.extra_bos, "BOS before continued documents"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text + if was_cached { "; tokens from the cache" } else { "" }
}

impl Examples {
    fn len(&self) -> usize {
        match self {
            Examples::Documents(documents) => documents.len(),
            Examples::Blocks(dataset) => dataset.blocks.len(),
        }
    }

    fn features(&self) -> &'static [&'static str] {
        match self {
            Examples::Documents(_) => &[TEXT],
            Examples::Blocks(_) => &[INPUT_IDS, DOCUMENT_STARTS],
        }
    }

    /// As the `datasets` library shows a split.
    fn describe(&self) -> String {
        let (features, rows) = (quoted(self.features()), self.len());
        format!("Dataset({{\n    features: {features},\n    num_rows: {rows}\n}})")
    }

    /// Of every example, in tokens; of a document with the BOS and EOS that packing gives it.
    fn lengths(
        &self,
        data: &DataSection,
        tokenizer: &Tokenizer,
        cache: &Cache,
    ) -> Result<Vec<usize>> {
        match self {
            Examples::Blocks(dataset) => Ok(dataset.block_lengths()),
            Examples::Documents(documents) => {
                let bos = tokenizer.bos_id().filter(|_| data.add_bos);
                let eos = tokenizer.eos_id().filter(|_| data.add_eos);
                let marks = bos.iter().chain(&eos).count();
                let tokenized = cache.tokenize(documents, tokenizer)?;
                note(&tokenized.note);
                Ok(tokenized.tokens.iter().map(|tokens| tokens.len() + marks).collect())
            }
        }
    }
}

/// `['a', 'b']`
fn quoted(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", names.join(", "))
}

/// The numbers that a histogram is summed up by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    pub sample_size: usize,
    pub min: usize,
    pub max: usize,
    pub mean: f64,
    /// The lower of the two in the middle of an even number.
    pub median: usize,
    /// Of a sample: over one less than `sample_size`. NaN of a single one.
    pub std: f64,
}

impl Statistics {
    /// Of nothing there are none.
    pub fn of(values: &[usize]) -> Option<Statistics> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let n = sorted.len() as f64;
        let mean = sorted.iter().map(|&x| x as f64).sum::<f64>() / n;
        let squares = sorted.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>();
        Some(Statistics {
            sample_size: sorted.len(),
            min: *sorted.first()?,
            max: *sorted.last()?,
            mean,
            median: sorted[(sorted.len() - 1) / 2],
            std: (squares / (n - 1.0)).sqrt(),
        })
    }
}

/// Hundredths are enough of a token.
fn rounded(x: f64) -> String {
    format!("{}", (x * 100.0).round() / 100.0)
}

fn histogram(
    description: &Description,
    args: &DatasetOptions,
    mut lengths: Vec<usize>,
    examples: &Examples,
    out: &mut dyn Write,
) -> Result<()> {
    shuffle(&mut lengths, args.seed.unwrap_or(DEFAULT_SEED));
    lengths.truncate(args.histogram_samples);
    let Some(statistics) = Statistics::of(&lengths) else {
        bail!("--histogram-samples: expected 1 or more, found 0");
    };
    let path = &description.histogram;
    writeln!(out, "Generating token-length histogram: {}", path.display())?;
    let Statistics { sample_size, min, max, mean, median, std } = statistics;
    writeln!(out, "sample size: {sample_size}\nmin: {min}\nmax: {max}")?;
    writeln!(out, "mean: {}\nmedian: {median}\nstd: {}", rounded(mean), rounded(std))?;
    let (rows, each) = match examples {
        Examples::Documents(_) => ("documents", "document"),
        Examples::Blocks(_) => ("blocks", "block"),
    };
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let svg = Histogram {
        title: format!("{stem}: tokens in a {each} of {}", description.target),
        x_title: "tokens".into(),
        y_title: rows.into(),
        note: format!("{sample_size} {rows}, {min} to {max}, std {}", rounded(std)),
        values: lengths,
        marks: vec![(mean, format!("mean {}", rounded(mean)))],
    }
    .to_svg()?;
    write_whole(path, svg.as_bytes())
}

fn print_document(
    index: usize,
    document: &Document,
    args: &DatasetOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let header = format!(" {index} Features: {} ", quoted(&[TEXT]));
    writeln!(out, "{header:-^80}")?;
    writeln!(out, "{TEXT:*^16}\n\n{}\n", truncated(&document.text, args.truncate))?;
    Ok(())
}

fn print_block(
    index: usize,
    block: &Block,
    tokenizer: &Tokenizer,
    args: &DatasetOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let starts: Vec<usize> = block.segments.iter().map(|segment| segment.start).collect();
    writeln!(out, "Document Starts: {starts:?}")?;
    let header = format!(
        " {index} Tokens: {}, Documents: {}, Features: {} ",
        block.tokens.len(),
        starts.len(),
        quoted(&[INPUT_IDS, DOCUMENT_STARTS])
    );
    writeln!(out, "{header:-^80}")?;
    if args.features.is_empty() {
        let text = tokenizer.decode(&block.tokens)?;
        writeln!(out, "{}\n", truncated(&text, args.truncate))?;
    }
    for name in &args.features {
        let numbers = match name.as_str() {
            INPUT_IDS => format!("{:?}", block.tokens),
            _ => format!("{starts:?}"),
        };
        writeln!(out, "{name:*^16}\n\n{}\n", truncated(&numbers, args.truncate))?;
    }
    Ok(())
}

/// The first `most` characters, and what says that there were more.
fn truncated(text: &str, most: Option<usize>) -> String {
    match most.and_then(|most| text.char_indices().nth(most)) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_a_sample() {
        let found = Statistics::of(&[3, 1, 2, 10]).unwrap();
        assert_eq!((found.sample_size, found.min, found.max, found.median), (4, 1, 10, 2));
        assert_eq!(found.mean, 4.0);
        assert!((found.std - (50.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Statistics::of(&[]), None);
        assert!(Statistics::of(&[5]).unwrap().std.is_nan());
        assert_eq!((rounded(3491.6049), rounded(4096.0)), ("3491.6".into(), "4096".into()));
    }

    #[test]
    fn shards_are_neighbours_and_hold_every_document() {
        let parts: Vec<_> = (0..3).map(|index| shard(8, 3, index)).collect();
        assert_eq!(parts, [0..3, 3..6, 6..8]);
        assert_eq!(shard(1, 2, 1), 1..1);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(truncated("fäthom", Some(2)), "fä...");
        assert_eq!(truncated("fä", Some(2)), "fä");
        assert_eq!(truncated("fä", None), "fä");
    }
}
