//! `fathom construct`: what a target of a configuration is made into.

use super::context::Context;
use super::exit;
use super::table::print;
use anyhow::Result;
use clap::Args;
use fathom_data::corpus::Corpus;
use fathom_data::samples::Samples;
use fathom_spec::components::dataset::{self, Blocks, Documents, Target};
use fathom_spec::components::values::to_json;
use fathom_spec::components::{self, Note, run as training};
use fathom_spec::config::{RunConfig, SampleBy};
use fathom_spec::template::graph::{Graph, Kind, Node, Value};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write as _;

#[derive(Args)]
pub struct ConstructArgs {
    /// The target
    #[arg(long, default_value = "main", value_name = "NAME")]
    target: String,
    /// Call the target, if it is a `!partial`
    #[arg(long)]
    call: bool,
}

/// Prints what the target is: documents with their counts, blocks with their settings, a run's whole configuration, a value.
///
/// # Errors
///
/// As [`Context::load`], and when the target is not one, or what it is made of can't be read.
pub fn run(args: &ConstructArgs, context: &Context) -> Result<u8> {
    let loaded = context.load()?;
    let graph = loaded.rendered.graph()?;
    if is_run(&graph, &args.target)? {
        let resolved = training::resolve(&graph, &Map::new())?;
        say(&resolved.notes);
        print(&RunConfig::from_written(&resolved.written)?.to_yaml())?;
        return Ok(exit::OK);
    }
    let (target, notes) = dataset::resolve(&graph, &args.target, &Map::new())?;
    say(&notes);
    print(&match &target {
        Target::Splits(documents) => splits(&args.target, documents)?,
        Target::Split(documents, split) => one_split(&args.target, documents, split)?,
        Target::Blocks(blocks) => of_blocks(&args.target, blocks)?,
        Target::Component(node) => of_component(node, args.call),
        Target::Plain(value) => yaml(value),
    })?;
    Ok(exit::OK)
}

fn is_run(graph: &Graph, target: &str) -> Result<bool> {
    Ok(match &dataset::entry(graph, target)?.value {
        Value::Node(node) => components::of(node)?.name == "TrainingScript",
        _ => false,
    })
}

/// Every split with its rows.
fn splits(target: &str, documents: &Documents) -> Result<String> {
    let section = documents.section()?;
    let corpus = Corpus::open(&section.corpus)?;
    let mut text = format!("{target}: {} of {}\n", rows(section.sample_by), section.corpus);
    let names = documents.names();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for name in names {
        let count = Samples::of(&corpus, &section, name)?.documents.len();
        let _ = writeln!(text, "    {name:<width$}  {count:>6} {}", rows_word(count));
    }
    Ok(text)
}

fn one_split(target: &str, documents: &Documents, split: &str) -> Result<String> {
    let section = documents.section()?;
    let samples = Samples::of(&Corpus::open(&section.corpus)?, &section, split)?.documents;
    let (count, bytes) = (samples.len(), samples.iter().map(|d| d.text.len()).sum::<usize>());
    let mut text = format!(
        "{target}: the split `{split}`, {count} {}, {bytes} bytes; {} of {}\n",
        rows_word(count),
        rows(section.sample_by),
        section.corpus
    );
    for document in &samples {
        let _ = writeln!(text, "    {:>9} bytes  {}", document.text.len(), document.name);
    }
    Ok(text)
}

/// The settings of blocks. How many there are depends on the tokenizer: `fathom dataset` counts them.
fn of_blocks(target: &str, blocks: &Blocks) -> Result<String> {
    let documents = one_split(target, &blocks.documents, &blocks.split)?;
    let first = documents.lines().next().unwrap_or_default();
    let settings = json!({
        "tokenizer": blocks.tokenizer.as_ref().map(|path| to_json(&path.value)),
        "max_length": to_json(&blocks.max_length.value),
        "data": blocks.data,
    });
    Ok(format!("{first}, in blocks\n{}", yaml(&settings)))
}

fn rows(sample_by: SampleBy) -> &'static str {
    match sample_by {
        SampleBy::Document => "files",
        SampleBy::Paragraph => "paragraphs",
        SampleBy::Line => "lines",
    }
}

fn rows_word(count: usize) -> &'static str {
    if count == 1 { "row" } else { "rows" }
}

/// A component with what it is given. A `!partial` is made into something that waits for a call.
fn of_component(node: &Node, call: bool) -> String {
    let waits = node.kind == Kind::Partial && !call;
    let args = node.args.iter().map(|value| to_json(&value.value).to_string());
    let kwargs = node.kwargs.iter().map(|(name, v)| format!("{name}={}", to_json(&v.value)));
    let arguments: Vec<String> = args.chain(kwargs).collect();
    let name = components::of(node).map_or(node.target.as_str(), |component| component.name);
    let kind = if waits { "partial " } else { "" };
    format!("{kind}{name}({})\n", arguments.join(", "))
}

fn yaml(value: &Json) -> String {
    serde_yaml::to_string(value).unwrap_or_else(|_| format!("{value}\n"))
}

/// Prints what is not done as it was written.
pub fn say(notes: &[Note]) {
    for note in notes {
        tell!("note: {note}");
    }
}
