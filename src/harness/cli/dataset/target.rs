//! What `--target` is: documents of a split, or blocks of them, as a project, a configuration file or the name of a corpus says it.

use super::DatasetArgs;
use crate::cli::construct::say;
use crate::cli::context::Context;
use crate::cli::sweep::template_folders;
use anyhow::{Result, bail, ensure};
use fathom_spec::components::dataset::{self as components, Documents, Target};
use fathom_spec::components::values::to_json;
use fathom_spec::config::written::{self, Written};
use fathom_spec::config::{DataSection, RunConfig};
use fathom_spec::template::graph::Located;
use serde_json::{Map, Value as Json, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a target is.
#[derive(Debug, Clone)]
pub struct Description {
    /// As the user calls it: `train_dataset`.
    pub target: String,
    /// The split that it is of.
    pub split: String,
    pub data: DataSection,
    /// The most tokens in a block, for a target that is blocks.
    pub max_length: Option<usize>,
    /// The tokenizer where none is given, if there is one.
    pub tokenizer: Option<String>,
    /// Where the histogram goes: beside the project, with the name of the configuration.
    pub histogram: PathBuf,
}

/// A target of the project's configuration.
pub fn of_project(
    args: &DatasetArgs,
    context: &Context,
    out: &mut dyn Write,
) -> Result<Description> {
    ensure!(
        args.settings.parse()?.is_empty(),
        "--set: expected a corpus or a configuration file, found a project\n  help: the configuration's own options are in \
         `fathom dataset --help`"
    );
    let loaded = context.load()?;
    if args.pp {
        writeln!(out, "Preprocessed configuration:\n{}", loaded.rendered.text)?;
    }
    let options = &args.options;
    let given = options.tokenizer.iter();
    let vars: Map<String, Json> =
        given.map(|path| (components::TOKENIZER.to_string(), path.clone().into())).collect();
    let graph = loaded.rendered.graph()?;
    let (target, notes) = components::resolve(&graph, &options.target, &vars)?;
    say(&notes);
    let name = Path::new(&loaded.config).file_stem().unwrap_or_default();
    let histogram = loaded.project.dir.join(name).with_extension("svg");
    let of_documents = |documents: &Documents, split: String| -> Result<Description> {
        let data = documents.section()?;
        let target = options.target.clone();
        Ok(Description {
            target,
            split,
            data,
            max_length: None,
            tokenizer: None,
            histogram: histogram.clone(),
        })
    };
    match target {
        Target::Split(documents, split) => of_documents(&documents, split),
        Target::Blocks(blocks) => {
            let plain = |value: &Located| to_json(&value.value);
            let max_length = plain(&blocks.max_length).as_u64().map(|length| length as usize);
            let path = blocks.tokenizer.as_ref().map(plain);
            Ok(Description {
                data: blocks.data,
                max_length,
                tokenizer: path.and_then(|path| path.as_str().map(str::to_string)),
                ..of_documents(&blocks.documents, blocks.split)?
            })
        }
        Target::Splits(documents) => bail!(
            "--target: expected one split, found `{}`, which is {}\n  help: name one, for example --target \
             train_dataset_split",
            options.target,
            documents.names().join(", ")
        ),
        Target::Component(_) | Target::Plain(_) => bail!(
            "--target: expected documents or blocks, found `{}`, which is neither\n  help: `fathom construct --target {}` \
             says what it is",
            options.target,
            options.target
        ),
    }
}

/// A split of a corpus, or of the one that a configuration file names.
pub fn of_source(source: &str, args: &DatasetArgs, context: &Context) -> Result<Description> {
    if context.globals.config_template.is_some() || context.globals.project_dir.is_some() {
        bail!(
            "expected a corpus, a configuration file or a project (-t, -p), found both\n  help: leave out `{source}`"
        );
    }
    if let Some((option, _)) = context.given.first() {
        bail!(
            "{option}: expected a configuration of the project, which has this option, found `{source}`\n  help: leave \
             `{source}` out, or set key paths with --set"
        );
    }
    let is_configuration = [".yaml", ".yml"].iter().any(|end| source.ends_with(end));
    let mut written = match is_configuration {
        true => written::load(Path::new(source), &template_folders())?,
        // What a run needs beside its data is never looked at.
        false => {
            let train = json!({ "sequence_length": 4096, "total_tokens": 1, "learning_rate": 0 });
            let model = json!({ "path": "" });
            let run = json!({ "model": model, "data": { "corpus": source }, "train": train });
            Written::from_json(source, &run)
        }
    };
    for (key, value) in args.settings.parse()? {
        written.set(&key, value)?;
    }
    let config = RunConfig::from_written(&written)?;
    let target = args.options.target.clone();
    let (split, is_blocks) = named(&target)?;
    let own = config.tokenizer_path().filter(|_| is_configuration).map(str::to_string);
    let stem = Path::new(source).file_stem().unwrap_or_default();
    Ok(Description {
        target,
        split,
        data: config.data,
        max_length: is_blocks.then_some(config.train.sequence_length),
        tokenizer: own,
        histogram: PathBuf::from(stem).with_extension("svg"),
    })
}

/// The split that a target is named for, and whether it is blocks, as in the tutorial's projects: `train_dataset_split` is
/// documents, `train_dataset` blocks; `eval` stands for `validation`.
fn named(target: &str) -> Result<(String, bool)> {
    let (split, is_blocks) = match target.strip_suffix("_dataset_split") {
        Some(split) => (split, false),
        None => match target.strip_suffix("_dataset") {
            Some(split) => (split, true),
            None => bail!(
                "--target: expected `SPLIT_dataset_split` (documents) or `SPLIT_dataset` (blocks), found `{target}`\n  \
                 help: for example train_dataset"
            ),
        },
    };
    Ok((if split == "eval" { "validation" } else { split }.to_string(), is_blocks))
}
