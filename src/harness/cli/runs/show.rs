//! One run in full.

use super::{cell, indented, utc};
use crate::cli::table::{self, Cell, Format, Table};
use crate::run::status_now;
use crate::store::{Run, Store};
use anyhow::Result;
use fathom_spec::config::written::Written;
use fathom_spec::config::{OptimizerType, RunConfig, ScheduleType};
use fathom_spec::record::RunPaths;
use fathom_spec::units::{Bytes, Tokens, format_seconds};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One run in full, as text.
///
/// # Errors
///
/// When `prefix` is not how exactly one run's id begins.
pub fn show(store: &Store, prefix: &str, all: bool) -> Result<String> {
    let mut run = store.find_run(prefix)?;
    run.status = status_now(store.results(), &run.run_id, run.status);
    let mut out = format!("run {}: {}\n", run.run_id, run.status);
    if let Some(detail) = &run.status_detail {
        out.push_str(&indented(detail));
    }
    out.push_str(&indented(&summary(store, &run)?));
    for (title, table) in [
        settings(store, &run, all)?,
        ("last metrics", last_metrics(store, &run)?),
        ("perplexity", perplexity(store, &run)?),
        ("facts", facts(store, &run)?),
        ("warnings", warnings(store, &run)?),
        ("attempts", attempts(store, &run)?),
        ("files", files(store, &run)?),
    ] {
        if !table.rows.is_empty() {
            out.push_str(&format!("\n{title}\n{}", indented(&table.render(Format::Table))));
        }
    }
    Ok(out)
}

fn summary(store: &Store, run: &Run) -> Result<String> {
    let mut text = String::new();
    let mut line = |what: &str, value: String| text.push_str(&format!("{what:<13}{value}\n"));
    for (sweep, point) in store.points_of_run(&run.run_id)? {
        let (position, label, seed) = (point.position, point.label, point.seed);
        line("sweep", format!("{sweep}, point {position}: {label}, seed {seed}"));
    }
    let labels = store.labels()?.remove(&run.run_id).unwrap_or_default();
    if !labels.tags.is_empty() {
        line("tags", labels.tags.into_iter().collect::<Vec<_>>().join(", "));
    }
    if let Some(note) = labels.note {
        // Its further lines stand below its first.
        line("note", note.replace('\n', &format!("\n{:13}", "")));
    }
    line("created", utc(store, run.created_at)?);
    if run.attempt > 0 {
        let (tokens, time) = (Tokens(run.tokens), format_seconds(run.seconds));
        line("done", format!("{} steps, {tokens} tokens, {time}", run.step));
    }
    if let Some(loss) = run.last_loss {
        let (loss, perplexity) = (table::rounded(loss), table::rounded(loss.exp()));
        line("last loss", format!("{loss} (perplexity {perplexity})"));
    }
    if let (Some(allocated), Some(reserved)) = (run.peak_allocated, run.peak_reserved) {
        let (allocated, reserved) = (Bytes(allocated), Bytes(reserved));
        line("peak memory", format!("{allocated} allocated, {reserved} reserved"));
    }
    Ok(text)
}

/// The settings that a person would have to write to get this run, or all of them.
fn settings(store: &Store, run: &Run, all: bool) -> Result<(&'static str, Table)> {
    // A configuration of another version may have keys that this one can't complete: then nothing is left out.
    let defaults = if all { None } else { defaults(&run.config).ok() };
    let title = match defaults {
        Some(_) => "settings that are not defaults (--all shows the others)",
        None => "settings",
    };
    let mut table = Table::new(&["key", "value"]);
    for (key, value) in store.params(&run.run_id)? {
        let default = defaults.as_ref().and_then(|defaults| defaults.get(&key));
        let needed = NEEDED.iter().any(|needed| key.starts_with(needed)) && !value.is_null();
        if needed || default != Some(&value) {
            table.rows.push(vec![key.into(), cell(&value)]);
        }
    }
    Ok((title, table))
}

/// Settings that have no default.
const NEEDED: [&str; 6] = [
    "model.path",
    "model.config",
    "data.corpus",
    "train.sequence_length",
    "train.total_tokens",
    "train.learning_rate",
];

/// The configuration that has only what must be given from `config`, and the same optimizer and schedule, whose other
/// defaults depend on them; by key path.
fn defaults(config: &Value) -> Result<BTreeMap<String, Value>> {
    let (model, train) = (&config["model"], &config["train"]);
    let least = json!({
        "model": { "path": model["path"], "config": model["config"] },
        "tokenizer": config["tokenizer"],
        "data": { "corpus": config["data"]["corpus"] },
        "train": {
            "sequence_length": train["sequence_length"],
            "total_tokens": train["total_tokens"],
            "learning_rate": train["learning_rate"],
            "optimizer": { "type": train["optimizer"]["type"] },
            "schedule": { "type": train["schedule"]["type"] },
        },
    });
    let complete = RunConfig::from_written(&Written::from_json("defaults", &least))?;
    let mut flat: BTreeMap<_, _> = complete.flatten().into_iter().collect();
    // These were put in to get the others.
    for (key, default) in [
        ("tokenizer.path", Value::Null),
        ("train.optimizer.type", serde_json::to_value(OptimizerType::default())?),
        ("train.schedule.type", serde_json::to_value(ScheduleType::default())?),
    ] {
        flat.insert(key.into(), default);
    }
    if model["config"].is_null() {
        flat.insert("model.config".into(), Value::Null);
    }
    Ok(flat)
}

fn last_metrics(store: &Store, run: &Run) -> Result<Table> {
    let mut table = Table::new(&["key", "step", "value"]);
    for (key, (step, value)) in store.last_metrics(&run.run_id)? {
        table.rows.push(vec![key.into(), Cell::Integer(step as i64), Cell::Real(value)]);
    }
    Ok(table)
}

fn perplexity(store: &Store, run: &Run) -> Result<Table> {
    let mut table = Table::new(&[
        "split",
        "method",
        "context",
        "windows",
        "tokens",
        "nll",
        "low",
        "high",
        "perplexity",
    ]);
    for row in store.perplexity(&run.run_id)? {
        table.rows.push(vec![
            row.split.into(),
            row.method.name().into(),
            Cell::Integer(row.context_length as i64),
            Cell::Integer(row.windows as i64),
            Cell::Integer(row.tokens as i64),
            Cell::Real(row.nll),
            Cell::Real(row.nll_low),
            Cell::Real(row.nll_high),
            Cell::Real(row.perplexity),
        ]);
    }
    Ok(table)
}

fn facts(store: &Store, run: &Run) -> Result<Table> {
    let mut table = Table::new(&["name", "value"]);
    for (name, value) in store.facts(&run.run_id)? {
        table.rows.push(vec![name.into(), cell(&value)]);
    }
    Ok(table)
}

fn warnings(store: &Store, run: &Run) -> Result<Table> {
    let mut table = Table::new(&["time", "message"]);
    for warning in store.warnings(&run.run_id)? {
        table.rows.push(vec![utc(store, warning.time)?.into(), warning.message.into()]);
    }
    Ok(table)
}

fn attempts(store: &Store, run: &Run) -> Result<Table> {
    let mut table =
        Table::new(&["attempt", "started", "from step", "host", "device", "name", "code"]);
    for found in store.attempts(&run.run_id)? {
        let commit: String = found.git_commit.unwrap_or_default().chars().take(8).collect();
        let dirty = if found.git_dirty == Some(true) { " (changed)" } else { "" };
        let code = format!("{} {commit}{dirty}", found.code_version.unwrap_or_default());
        table.rows.push(vec![
            Cell::Integer(found.attempt.into()),
            utc(store, found.started_at)?.into(),
            Cell::Integer(found.resumed_from_step as i64),
            found.host.unwrap_or_default().into(),
            found.device.unwrap_or_default().into(),
            found.device_name.unwrap_or_default().into(),
            code.trim().into(),
        ]);
    }
    Ok(table)
}

/// The files of the run's folder that are there, and what the run says it wrote.
fn files(store: &Store, run: &Run) -> Result<Table> {
    let paths = RunPaths::new(store.results().join(&run.folder));
    let mut table = Table::new(&["path", "step", "size"]);
    let fixed = [paths.config(), paths.identity(), paths.events(), paths.stdout(), paths.stderr()];
    for path in fixed {
        if let Ok(file) = std::fs::metadata(&path) {
            let size = Bytes(file.len()).to_string();
            table.rows.push(vec![path.display().to_string().into(), Cell::Null, size.into()]);
        }
    }
    for artifact in store.artifacts(&run.run_id)? {
        let path = paths.folder.join(&artifact.path);
        let size = match path.exists() {
            true => Bytes(artifact.bytes).to_string(),
            false => format!("{}, removed since", Bytes(artifact.bytes)),
        };
        let step = Cell::Integer(artifact.step as i64);
        table.rows.push(vec![path.display().to_string().into(), step, size.into()]);
    }
    Ok(table)
}
