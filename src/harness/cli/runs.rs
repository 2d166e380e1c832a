//! `fathom runs`: the runs of a store, one of them in full, two of them side by side.

use super::sql;
use super::table::{self, Cell, Format, Table};
use crate::run::{State, is_held, standing};
use crate::store::{Run, Status, Store};
use crate::sweep::drive::now;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use fathom_spec::config::written::Written;
use fathom_spec::config::{OptimizerType, RunConfig, ScheduleType, nearest};
use fathom_spec::record::{EventKind, RunId, RunPaths};
use fathom_spec::units::{Bytes, Tokens, format_seconds};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// See the runs that the store has.
#[derive(Debug, Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    pub command: RunsCommand,
    /// The folder that fathom.db is in
    #[arg(long, global = true, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// List runs, one a line
    Ls {
        /// Only the points of this sweep
        #[arg(long)]
        sweep: Option<String>,
        /// Only runs that stand so: planned, running, finished, stopped, out_of_memory, diverged, failed, killed, lost
        #[arg(long)]
        status: Option<Status>,
        /// How to print them; csv and json have the columns of v_runs
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show one run: settings, results, facts, warnings, attempts and files
    Show {
        /// Its id, or how it begins
        run: String,
        /// Every setting, not only those that differ from the defaults
        #[arg(long)]
        all: bool,
    },
    /// Show what tells two runs apart, and their results side by side
    Diff {
        /// The id of one run, or how it begins
        a: String,
        /// The id of the other
        b: String,
        /// How to print them
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Make the store's runs anew from their folders, as `fathom db rebuild` does
    Rebuild,
}

/// Carries out `fathom runs`.
///
/// # Errors
///
/// When there is no store, or no such run or sweep in it.
pub fn run(args: RunsArgs) -> Result<()> {
    let open = || Store::open_read_only(&args.results);
    let text = match args.command {
        RunsCommand::Ls { sweep, status, format } => {
            let all = ls(&open()?, sweep.as_deref(), status)?;
            if format.is_for_people() { short(&all) } else { all }.render(format)
        }
        RunsCommand::Show { run, all } => show(&open()?, &run, all)?,
        RunsCommand::Diff { a, b, format } => diff(&open()?, &a, &b)?.render(format),
        RunsCommand::Rebuild => super::db::rebuild(&args.results)?,
    };
    table::print(&text)
}

/// The rows of `v_runs`, by sweep and position.
///
/// # Errors
///
/// When there is no such sweep.
pub fn ls(store: &Store, sweep: Option<&str>, status: Option<Status>) -> Result<Table> {
    if let Some(name) = sweep {
        let sweeps = store.sweeps()?;
        if !sweeps.iter().any(|known| known.name == name) {
            let near = nearest(name, sweeps.iter().map(|known| known.name.as_str()));
            let help =
                near.map_or(String::new(), |near| format!("\n  help: did you mean `{near}`?"));
            bail!(
                "--sweep: expected one of the {} sweeps of the store, found `{name}`{help}",
                sweeps.len()
            );
        }
    }
    let mut statement = store.connection().prepare(
        "SELECT * FROM v_runs WHERE ?1 IS NULL OR sweep = ?1 ORDER BY sweep IS NULL, sweep, position, run_id",
    )?;
    let mut table = sql::collect(&mut statement, (sweep,))?;
    let column = |name| table.columns.iter().position(|c| c == name).expect("a column of v_runs");
    let (id_at, status_at) = (column("run_id"), column("status"));
    let running = Cell::from(Status::Running.name());
    for row in table.rows.iter_mut().filter(|row| row[status_at] == running) {
        let Cell::Text(run_id) = &row[id_at] else { continue };
        let run_id = RunId(run_id.clone());
        let paths = RunPaths::in_results(store.results(), &run_id);
        // Its last word was that it runs. Its process may be gone since, or on another host; its ending may not be taken in.
        match standing(&paths, now()).map(|found| found.state) {
            Ok(State::Dead(_) | State::NotBegun) => row[status_at] = Status::Lost.name().into(),
            Ok(State::Ended(ending)) => row[status_at] = ending.into(),
            Err(_) if !is_held(&paths) => row[status_at] = Status::Lost.name().into(),
            Ok(State::Running | State::Elsewhere | State::Silent) | Err(_) => {}
        }
    }
    if let Some(status) = status {
        table.rows.retain(|row| row[status_at] == Cell::from(status.name()));
    }
    Ok(table)
}

/// The columns of [`ls`] that fit on a screen, with units.
pub fn short(runs: &Table) -> Table {
    type Print = fn(&Cell) -> Cell;
    let shown: [(&str, &str, Print); 11] = [
        ("run_id", "run", Cell::clone),
        ("sweep", "sweep", Cell::clone),
        ("label", "label", Cell::clone),
        ("seed", "seed", Cell::clone),
        ("status", "status", Cell::clone),
        ("step", "step", Cell::clone),
        ("tokens", "tokens", |cell| with_unit(cell, |n| Tokens(n as u64).to_string())),
        ("seconds", "time", |cell| with_unit(cell, format_seconds)),
        ("last_loss", "loss", Cell::clone),
        ("peak_allocated", "peak memory", |cell| with_unit(cell, |n| Bytes(n as u64).to_string())),
        ("device_name", "device", Cell::clone),
    ];
    let mut table = Table::new(&shown.map(|(_, title, _)| title));
    let at = shown.map(|(name, _, _)| {
        runs.columns.iter().position(|c| c == name).expect("v_runs has these columns")
    });
    table.rows = runs
        .rows
        .iter()
        .map(|row| shown.iter().zip(at).map(|((_, _, print), i)| print(&row[i])).collect())
        .collect();
    table
}

fn with_unit(cell: &Cell, print: impl Fn(f64) -> String) -> Cell {
    match cell {
        Cell::Integer(n) => print(*n as f64).into(),
        Cell::Real(x) => print(*x).into(),
        other => other.clone(),
    }
}

/// One run in full, as text.
///
/// # Errors
///
/// When `prefix` is not how exactly one run's id begins.
pub fn show(store: &Store, prefix: &str, all: bool) -> Result<String> {
    let run = store.find_run(prefix)?;
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
    for event in store.events(&run.run_id, "started")? {
        let EventKind::Started {
            attempt,
            resumed_from_step,
            code_version,
            git_commit,
            git_dirty,
            host,
            device,
            device_name,
            ..
        } = event.kind
        else {
            continue;
        };
        let commit: String = git_commit.unwrap_or_default().chars().take(8).collect();
        let dirty = if git_dirty == Some(true) { " (changed)" } else { "" };
        table.rows.push(vec![
            Cell::Integer(attempt.into()),
            utc(store, event.time)?.into(),
            Cell::Integer(resumed_from_step as i64),
            host.into(),
            device.into(),
            device_name.into(),
            format!("{code_version} {commit}{dirty}").trim().into(),
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

/// What tells two runs apart: settings and facts that differ, then all results side by side.
///
/// # Errors
///
/// When `a` or `b` is not how exactly one run's id begins.
pub fn diff(store: &Store, a: &str, b: &str) -> Result<Table> {
    let runs = [store.find_run(a)?, store.find_run(b)?];
    let ids = runs.each_ref().map(|run| &run.run_id);
    let mut table = Table::new(&["what", "key", &ids[0].0, &ids[1].0]);
    let mut differing = |what: &str, [a, b]: [BTreeMap<String, Value>; 2]| {
        for (key, values) in side_by_side(&a, &b) {
            if values[0] != values[1] {
                let [a, b] = values.map(|value| value.map_or(Cell::Null, cell));
                table.rows.push(vec![what.into(), key.into(), a, b]);
            }
        }
    };
    differing("run", runs.each_ref().map(provenance));
    differing("setting", [store.params(ids[0])?, store.params(ids[1])?]);
    differing("fact", [store.facts(ids[0])?, store.facts(ids[1])?]);
    let [a, b] = [results(store, &runs[0])?, results(store, &runs[1])?];
    for (key, values) in side_by_side(&a, &b) {
        let [a, b] = values.map(|value| value.cloned().unwrap_or(Cell::Null));
        table.rows.push(vec!["result".into(), key.into(), a, b]);
    }
    Ok(table)
}

/// Every key of either map, with both values.
fn side_by_side<'a, V>(
    a: &'a BTreeMap<String, V>,
    b: &'a BTreeMap<String, V>,
) -> Vec<(&'a str, [Option<&'a V>; 2])> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().map(|key| (key.as_str(), [a.get(key), b.get(key)])).collect()
}

/// How it stands, and what ran where.
fn provenance(run: &Run) -> BTreeMap<String, Value> {
    let known = json!({
        "status": run.status.name(),
        "status_detail": run.status_detail,
        "code_version": run.code_version,
        "git_commit": run.git_commit,
        "git_dirty": run.git_dirty,
        "host": run.host,
        "device": run.device,
        "device_name": run.device_name,
        "driver": run.driver,
        "libtorch": run.libtorch,
        "threads": run.threads,
    });
    let Value::Object(map) = known else { unreachable!("an object was just written") };
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn results(store: &Store, run: &Run) -> Result<BTreeMap<String, Cell>> {
    let mut results: BTreeMap<String, Cell> = store
        .last_metrics(&run.run_id)?
        .into_iter()
        .map(|(key, (_, value))| (key, Cell::Real(value)))
        .collect();
    for row in store.perplexity(&run.run_id)? {
        // Padded, so that lengths sort as numbers.
        let key =
            format!("perplexity.{}.{} {:>7}", row.split, row.method.name(), row.context_length);
        results.insert(key, Cell::Real(row.perplexity));
    }
    results.insert("steps".into(), Cell::Integer(run.step as i64));
    results.insert("seconds".into(), Cell::Real(run.seconds));
    // The highest of the run, not of its last step.
    for (key, peak) in
        [("peak_allocated", run.peak_allocated), ("peak_reserved", run.peak_reserved)]
    {
        results.insert(key.into(), peak.map_or(Cell::Null, |bytes| Cell::Integer(bytes as i64)));
    }
    Ok(results)
}

/// A value of JSON in a cell; what is not a scalar stays JSON.
fn cell(value: &Value) -> Cell {
    match value {
        Value::Number(n) => match n.as_i64() {
            Some(n) => Cell::Integer(n),
            None => Cell::Real(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

/// Seconds since 1970 as `2026-01-31 08:15:00 UTC`.
fn utc(store: &Store, seconds: f64) -> Result<String> {
    let sql = "SELECT strftime('%Y-%m-%d %H:%M:%S UTC', ?1, 'unixepoch')";
    Ok(store.connection().prepare_cached(sql)?.query_row([seconds], |row| row.get(0))?)
}

/// Each line two blanks further in; ends with a line break.
fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
