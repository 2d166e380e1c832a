//! A tiny run for tests of the worker: a folder with texts, a configuration, and what came of it.

// Each test program uses its part of this.
#![allow(dead_code)]

use fathom_engine::child;
use fathom_spec::config::RunConfig;
use fathom_spec::config::written::Written;
use fathom_spec::record::{Event, EventKind, RunPaths, read_events};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A two-layer byte-level model on a few made-up texts; a step takes a few milliseconds.
pub const TINY: &str = "\
model:
  config: {vocab_size: 260, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 64, initializer_range: 0.08}
tokenizer: {path: bytes}
data:
  corpus: CORPUS
  splits: {validation: [held_out.txt]}
train:
  sequence_length: 32
  micro_batch_size: 2
  total_tokens: 320
  learning_rate: 0.01
  seed: 1
eval: {context_lengths: [16, 32], last_stride: 8, max_windows: 4, loss_tokens: 64}
run: {device: cpu, threads: 1}
";

/// A folder of three short texts, one of them `held_out.txt`.
pub fn corpus(dir: &Path) -> PathBuf {
    let folder = dir.join("corpus");
    std::fs::create_dir_all(&folder).unwrap();
    let text = |n: usize, salt: usize| -> String {
        (0..n)
            .map(|i| ["tide ", "bell ", "salt ", "lamp ", "deep. "][(i * i + salt * i + i / 3) % 5])
            .collect()
    };
    for (name, n, salt) in [("a.txt", 60, 1), ("b.txt", 45, 2), ("held_out.txt", 40, 3)] {
        std::fs::write(folder.join(name), text(n, salt)).unwrap();
    }
    folder
}

/// [`TINY`] with key paths set, complete.
pub fn config(dir: &Path, settings: &[(&str, &str)]) -> RunConfig {
    let corpus = corpus(dir);
    let text = TINY.replace("CORPUS", &corpus.display().to_string());
    let mut written = Written::parse("tiny.yaml", &text).unwrap();
    for (key, value) in settings {
        let (key, value) =
            fathom_spec::config::parse_assignment(&format!("{key}={value}")).unwrap();
        written.set(&key, value).unwrap();
    }
    RunConfig::from_written(&written).unwrap()
}

/// The events of a run, and what tests ask of them.
pub struct Outcome {
    pub events: Vec<Event>,
    pub paths: RunPaths,
}

/// Executes a configuration in this process, in the run folder `dir/name`; a folder with checkpoints is resumed.
pub fn run(dir: &Path, name: &str, config: &RunConfig) -> Outcome {
    let paths = prepare(dir, name, config);
    child::run(&paths.folder);
    Outcome::read(paths)
}

/// The same in a process of its own, as the harness does it.
pub fn spawn(dir: &Path, name: &str, config: &RunConfig) -> Outcome {
    let paths = prepare(dir, name, config);
    let engine = env!("CARGO_BIN_EXE_fathom-engine");
    Command::new(engine).arg("run").arg(&paths.folder).output().unwrap();
    Outcome::read(paths)
}

fn prepare(dir: &Path, name: &str, config: &RunConfig) -> RunPaths {
    let paths = RunPaths::new(dir.join(name));
    std::fs::create_dir_all(paths.control()).unwrap();
    std::fs::write(paths.config(), config.to_yaml()).unwrap();
    paths
}

impl Outcome {
    /// What a run in `dir/name` has logged so far.
    pub fn read_back(dir: &Path, name: &str) -> Outcome {
        Outcome::read(RunPaths::new(dir.join(name)))
    }

    /// `(method, context length, nll)` of every perplexity event.
    pub fn perplexities(&self) -> Vec<(String, u64, f64)> {
        let rows = self.events.iter().filter_map(|event| match &event.kind {
            EventKind::Perplexity { method, context_length, nll, .. } => {
                Some((format!("{method:?}"), *context_length, *nll))
            }
            _ => None,
        });
        rows.collect()
    }

    fn read(paths: RunPaths) -> Outcome {
        let (events, _) = read_events(&paths.events(), 0).unwrap();
        Outcome { events, paths }
    }

    pub fn ending(&self) -> &EventKind {
        let last = &self.events.last().expect("a run writes events").kind;
        assert!(last.ending().is_some(), "the last event is an ending, found {last:?}");
        last
    }

    /// The ending of a run that was to finish.
    #[track_caller]
    pub fn assert_finished(&self) {
        let ending = self.ending();
        assert!(matches!(ending, EventKind::Finished { .. }), "{ending:?}");
    }

    /// `(step, loss)` of every step event, in the order of the log.
    pub fn losses(&self) -> Vec<(u64, f64)> {
        let steps = self.events.iter().filter_map(|event| match &event.kind {
            EventKind::Step { step, loss, .. } => Some((*step, *loss)),
            _ => None,
        });
        steps.collect()
    }

    /// The last value of every fact.
    pub fn facts(&self) -> BTreeMap<String, Value> {
        let facts = self.events.iter().filter_map(|event| match &event.kind {
            EventKind::Fact { name, value } => Some((name.clone(), value.clone())),
            _ => None,
        });
        facts.collect()
    }
}
