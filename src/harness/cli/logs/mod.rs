//! `fathom logs`: what runs logged, in numbers (`summary`) and as curves (`plot`).
//!
//! A run is named by its id, or by its folder, which is read as it stands: no store is needed then, and a run at work is up
//! to date.

mod plot;
mod summary;

use super::runs::chosen;
use super::table::{self, Cell, Table};
use super::train::ORIGIN_FILE;
use crate::export::curves::Curves;
use crate::run::{read_store, write_whole};
use crate::store::{Run, Store};
use crate::sweep::drive::now;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use fathom_spec::record::RunPaths;
use std::path::{Path, PathBuf};

/// Look at what runs logged.
#[derive(Debug, Args)]
#[command(after_help = "\
  fathom logs summary                                      the run that began last
  fathom logs summary results/runs/*/events.jsonl --format one-line
  fathom logs plot --loss-curves 3f2a                      loss, loss on held-out text, learning rate
  fathom logs plot rope_variants --metrics loss,grad_norm --x-axis tokens --smooth 20 -o curves.png")]
pub struct LogsArgs {
    #[command(subcommand)]
    pub command: LogsCommand,
    /// The folder that fathom.db is in
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum LogsCommand {
    /// List the runs that have a log, newest first
    List,
    /// Say in numbers how runs went: losses, speed, gradients, learning rate, memory
    Summary {
        #[command(flatten)]
        which: Which,
        /// How to write it
        #[arg(long, value_enum, default_value_t)]
        format: summary::SummaryFormat,
        /// The file to write to, instead of printing
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Draw curves of runs, several runs in one plot
    Plot(plot::PlotArgs),
}

/// Which runs.
#[derive(Debug, Args)]
pub struct Which {
    /// Ids (or how they begin), sweeps (by name or file), run folders or files in them; without any, the run that began last
    #[arg(value_name = "RUN|SWEEP|PATH")]
    pub runs: Vec<String>,
    /// Every run of the store
    #[arg(long, conflicts_with = "runs")]
    pub all: bool,
}

/// Carries out `fathom logs`.
///
/// # Errors
///
/// When a run is not there, or what it logged can't be read.
pub fn run(args: LogsArgs) -> Result<()> {
    match args.command {
        LogsCommand::List => table::print(&list(&args.results)?),
        LogsCommand::Summary { which, format, output } => {
            let text = summary::render(&logs(&which, &args.results)?, format);
            match output {
                Some(path) => write_whole(&path, text.as_bytes()),
                None => table::print(&text),
            }
        }
        LogsCommand::Plot(plot) => {
            let path = plot::draw(&plot, &logs(&plot.which, &args.results)?)?;
            say!("{}", path.display());
            Ok(())
        }
    }
}

/// A run's curves with the folder they came from.
pub struct Log {
    pub folder: PathBuf,
    pub curves: Curves,
}

fn list(results: &Path) -> Result<String> {
    let store = read_store(results)?;
    let mut runs: Vec<Run> =
        store.runs()?.into_iter().filter(|run| run.started_at.is_some()).collect();
    runs.sort_by(newest_first);
    let mut table = Table::new(&["run", "status", "step", "log"]);
    for run in runs {
        let log = RunPaths::in_results(results, &run.run_id).events();
        let log = log.exists().then(|| log.display().to_string());
        let step = Cell::Integer(run.step as i64);
        table.rows.push(vec![run.run_id.0.into(), run.status.name().into(), step, log.into()]);
    }
    Ok(table.render(table::Format::Table))
}

fn newest_first(a: &Run, b: &Run) -> std::cmp::Ordering {
    let began = |run: &Run| run.started_at.unwrap_or(run.created_at);
    began(b).total_cmp(&began(a)).then_with(|| a.run_id.cmp(&b.run_id))
}

/// The runs that a command names.
///
/// # Errors
///
/// When one is not there or logged nothing.
fn logs(which: &Which, results: &Path) -> Result<Vec<Log>> {
    let mut logs = Vec::new();
    let of_store = |logs: &mut Vec<Log>, store: &Store, runs: Vec<Run>| -> Result<()> {
        for run in runs {
            let folder = store.results().join(&run.folder);
            logs.push(Log { folder, curves: Curves::of_run(store, &run)? });
        }
        Ok(())
    };
    if which.runs.is_empty() {
        let store = read_store(results)?;
        let mut runs = store.runs()?;
        runs.retain(|run| run.started_at.is_some());
        runs.sort_by(newest_first);
        ensure!(
            !runs.is_empty(),
            "{}: expected a run that has begun, found none",
            results.display()
        );
        if !which.all {
            runs.truncate(1);
        }
        of_store(&mut logs, &store, runs)?;
    }
    for name in &which.runs {
        match run_folders(Path::new(name))? {
            Some(folders) => {
                for folder in folders {
                    let mut curves = Curves::of_folder(&folder)?;
                    if curves.status == "running" {
                        // There is no ending: is anybody at it?
                        let found = crate::run::standing(&RunPaths::new(&folder), now())?;
                        curves.status = found.state.name().into();
                    }
                    logs.push(Log { folder, curves });
                }
            }
            None => {
                let store = read_store(results)?;
                let runs = named(&store, name)?;
                of_store(&mut logs, &store, runs)?;
            }
        }
    }
    if let Some(log) = logs.iter().find(|log| log.curves.scalars.is_empty()) {
        let help = match logs.len() {
            1 => "",
            _ => "\n  help: name the others without it",
        };
        // One among many that was stopped before its first step is no reason to show nothing.
        if logs.iter().all(|log| log.curves.scalars.is_empty()) {
            bail!("run {}: expected steps, found none yet{help}", log.curves.run_id);
        }
        for log in logs.iter().filter(|log| log.curves.scalars.is_empty()) {
            tell!(
                "note: run {} ({}) has no steps and is left out",
                log.curves.run_id,
                log.curves.status
            );
        }
        logs.retain(|log| !log.curves.scalars.is_empty());
    }
    Ok(logs)
}

/// The run folders that a path means: it is one, is in one, or holds some. `None` where the path means no folder of a run.
fn run_folders(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let is_run = |folder: &Path| RunPaths::new(folder).events().exists();
    if path.is_file() && path.parent().is_some_and(is_run) {
        return Ok(path.parent().map(|folder| vec![folder.to_path_buf()]));
    }
    if !path.is_dir() || path.join(ORIGIN_FILE).exists() {
        return Ok(None);
    }
    if is_run(path) {
        return Ok(Some(vec![path.to_path_buf()]));
    }
    let inner = if path.join("runs").is_dir() { path.join("runs") } else { path.to_path_buf() };
    let entries = std::fs::read_dir(&inner).with_context(|| inner.display().to_string())?;
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_run(path)).collect();
    folders.sort();
    ensure!(
        !folders.is_empty(),
        "{}: expected a run's folder, or one that holds some, found no events.jsonl",
        path.display()
    );
    Ok(Some(folders))
}

/// The runs of the store that a name means: a sweep, a sweep's file, an exported model's folder, or how a run's id begins.
fn named(store: &Store, name: &str) -> Result<Vec<Run>> {
    let path = Path::new(name);
    if path.join(ORIGIN_FILE).exists() {
        return chosen(store, &[super::tb::origin(path)?], None);
    }
    if let Some(sweep) = store.sweeps()?.into_iter().find(|s| s.name == name || s.file == name) {
        return store.runs_of_sweep(&sweep.name);
    }
    if path.is_file() {
        let file = std::fs::read_to_string(path).with_context(|| name.to_string())?;
        let value: serde_yaml::Value = serde_yaml::from_str(&file).unwrap_or_default();
        let Some(sweep) = value.get("name").and_then(|name| name.as_str()) else {
            bail!("{name}: expected a run's log or a sweep file, found neither");
        };
        return chosen(store, &[], Some(sweep));
    }
    if name.contains('/') {
        bail!("{name}: expected a run's folder or a file in it, found no such path");
    }
    chosen(store, &[name.to_string()], None)
}
