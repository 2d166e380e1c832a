//! `fathom runs`: the runs of a store in a list, one in full (`show`), several side by side (`compare`), with what people
//! say of them (`label`); and what may go (`remove`).

mod compare;
mod label;
mod remove;
mod show;

pub use compare::diff;
pub use show::show;

use super::exit;
use super::sql;
use super::table::{self, Cell, Format, Table};
use crate::run::{read_store, status_now};
use crate::store::{Labels, Run, Status, Store};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use fathom_spec::config::nearest;
use fathom_spec::record::RunId;
use fathom_spec::units::{Bytes, Tokens, format_seconds};
use serde_json::Value;
use std::path::PathBuf;

/// See the runs that the store has, label them and tidy up.
#[derive(Debug, Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    pub command: RunsCommand,
    /// The folder that fathom.db is in
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
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
        /// Only runs with this tag; given twice, with both
        #[arg(long)]
        tag: Vec<String>,
        /// How to print them; csv and json have the columns of v_runs and those of v_labels
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
    /// Show several runs side by side: settings that differ, and results
    Compare {
        /// Their ids, or how they begin
        #[arg(required_unless_present = "sweep")]
        runs: Vec<String>,
        /// The runs of this sweep
        #[arg(long)]
        sweep: Option<String>,
        /// Facts that differ as well
        #[arg(long)]
        facts: bool,
        /// How to print them
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Give runs tags and take them away: `fathom runs tag RUN +good -draft`
    Tag {
        /// How the runs' ids begin, then `+TAG` to give a tag and `-TAG` to take it away
        #[arg(required = true, allow_hyphen_values = true, value_name = "RUN|+TAG|-TAG")]
        arguments: Vec<String>,
    },
    /// Note something about a run; an empty text removes the note
    Note {
        /// Its id, or how it begins
        run: String,
        /// The note; without it, the one that it has is printed
        text: Option<String>,
    },
    /// Remove runs: their folders and their rows
    Rm {
        /// Their ids, or how they begin
        #[arg(required = true)]
        runs: Vec<String>,
        /// Do it; without this it is only said what would be removed
        #[arg(long)]
        yes: bool,
        /// Also runs that are points of a sweep: its next `fathom sweep run` makes them anew
        #[arg(long)]
        force: bool,
    },
    /// Show what can be made anew or is referred to by nothing, and how many bytes it takes
    Gc {
        /// Remove it
        #[arg(long)]
        yes: bool,
        /// Only this kind
        #[arg(long, value_enum)]
        only: Option<remove::Kind>,
    },
    /// Make the store's runs anew from their folders, as `fathom db rebuild` does
    Rebuild,
}

/// Carries out `fathom runs`.
///
/// # Errors
///
/// When there is no store, no such run or sweep in it, or something that is to change can't be changed.
pub fn run(args: RunsArgs) -> Result<u8> {
    let (command, results) = match args.command {
        RunsCommand::Tag { arguments } => {
            let (arguments, results) = label::without_results(arguments, args.results)?;
            (RunsCommand::Tag { arguments }, results)
        }
        command => (command, args.results),
    };
    let open = || read_store(&results);
    // A store is only made where something makes runs.
    let open_to_write = || open().and_then(|_| Store::open(&results));
    let text = match command {
        RunsCommand::Ls { sweep, status, tag, format } => {
            let store = open()?;
            let all = with_labels(&store, ls(&store, sweep.as_deref(), status)?, &tag)?;
            if format.is_for_people() { short(&all) } else { all }.render(format)
        }
        RunsCommand::Show { run, all } => show(&open()?, &run, all)?,
        RunsCommand::Diff { a, b, format } => diff(&open()?, &a, &b)?.render(format),
        RunsCommand::Compare { runs, sweep, facts, format } => {
            let store = open()?;
            let runs = chosen(&store, &runs, sweep.as_deref())?;
            compare::compare(&store, &runs, facts)?.render(format)
        }
        RunsCommand::Tag { arguments } => label::tag(&mut open_to_write()?, &arguments)?,
        RunsCommand::Note { run, text: None } => label::note_of(&open()?, &run)?,
        RunsCommand::Note { run, text: Some(text) } => {
            label::note(&mut open_to_write()?, &run, &text)?
        }
        RunsCommand::Rm { runs, yes: false, force } => remove::preview(&open()?, &runs, force)?,
        RunsCommand::Rm { runs, yes: true, force } => {
            remove::remove(&mut open_to_write()?, &runs, force)?
        }
        RunsCommand::Gc { yes, only } => remove::collect_garbage(&open()?, yes, only)?,
        RunsCommand::Rebuild => {
            let (text, code) = super::db::rebuild(&results)?;
            table::print(&text)?;
            return Ok(code);
        }
    };
    table::print(&text)?;
    Ok(exit::OK)
}

/// The runs that a command names, then those of the sweep that it names; each once.
///
/// # Errors
///
/// When a name is not how exactly one run's id begins, or there is no such sweep.
pub fn chosen(store: &Store, names: &[String], sweep: Option<&str>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for name in names {
        runs.push(store.find_run(name)?);
    }
    if let Some(sweep) = sweep {
        known_sweep(store, sweep)?;
        runs.extend(store.runs_of_sweep(sweep)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    runs.retain(|run| seen.insert(run.run_id.clone()));
    Ok(runs)
}

/// Refuses a sweep that the store does not have.
pub(super) fn known_sweep(store: &Store, name: &str) -> Result<()> {
    let sweeps = store.sweeps()?;
    if sweeps.iter().any(|known| known.name == name) {
        return Ok(());
    }
    let near = nearest(name, sweeps.iter().map(|known| known.name.as_str()));
    let help = near.map_or(String::new(), |near| format!("\n  help: did you mean `{near}`?"));
    bail!("--sweep: expected one of the {} sweeps of the store, found `{name}`{help}", sweeps.len())
}

/// The rows of [`ls`] with two columns more, `tags` and `note`; only those that have all of `wanted`.
fn with_labels(store: &Store, mut table: Table, wanted: &[String]) -> Result<Table> {
    let labels = store.labels()?;
    let none = Labels::default();
    let id_at = table.columns.iter().position(|c| c == "run_id").expect("a column of v_runs");
    let of = |row: &Vec<Cell>| match &row[id_at] {
        Cell::Text(run_id) => labels.get(&RunId(run_id.clone())).unwrap_or(&none),
        _ => &none,
    };
    table.rows.retain(|row| wanted.iter().all(|tag| of(row).tags.contains(tag)));
    table.columns.extend(["tags", "note"].map(String::from));
    for row in &mut table.rows {
        let labels = of(row);
        let tags: Vec<&str> = labels.tags.iter().map(String::as_str).collect();
        let tags = if tags.is_empty() { Cell::Null } else { tags.join(",").into() };
        let note = labels.note.clone().into();
        row.extend([tags, note]);
    }
    Ok(table)
}

/// The rows of `v_runs`, by sweep and position.
///
/// # Errors
///
/// When there is no such sweep.
pub fn ls(store: &Store, sweep: Option<&str>, status: Option<Status>) -> Result<Table> {
    if let Some(name) = sweep {
        known_sweep(store, name)?;
    }
    let mut statement = store.connection().prepare(
        "SELECT * FROM v_runs WHERE ?1 IS NULL OR sweep = ?1 ORDER BY sweep IS NULL, sweep, position, run_id",
    )?;
    let mut table = sql::collect(store, &mut statement, (sweep,))?;
    let column = |name| table.columns.iter().position(|c| c == name).expect("a column of v_runs");
    let (id_at, status_at) = (column("run_id"), column("status"));
    for row in &mut table.rows {
        let (Cell::Text(run_id), Cell::Text(said)) = (&row[id_at], &row[status_at]) else {
            continue;
        };
        let Ok(said) = said.parse() else { continue };
        row[status_at] = status_now(store.results(), &RunId(run_id.clone()), said).name().into();
    }
    if let Some(status) = status {
        table.rows.retain(|row| row[status_at] == Cell::from(status.name()));
    }
    Ok(table)
}

/// The columns of [`ls`] that fit on a screen, with units; tags where any run has some.
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
    let tags_at = runs.columns.iter().position(|c| c == "tags");
    if let Some(at) = tags_at.filter(|&at| runs.rows.iter().any(|row| row[at] != Cell::Null)) {
        table.columns.push("tags".into());
        for (shown, row) in table.rows.iter_mut().zip(&runs.rows) {
            shown.push(row[at].clone());
        }
    }
    table
}

fn with_unit(cell: &Cell, print: impl Fn(f64) -> String) -> Cell {
    match cell {
        Cell::Integer(n) => print(*n as f64).into(),
        Cell::Real(x) => print(*x).into(),
        other => other.clone(),
    }
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
