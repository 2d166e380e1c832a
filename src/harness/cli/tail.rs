//! `fathom tail`: a run's events as lines, those that come included.

use super::table;
use crate::run::{is_held, read_store};
use crate::store::Status;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use fathom_spec::record::{Event, EventKind, RunId, RunPaths, read_events};
use fathom_spec::units::{Bytes, Tokens, format_number, format_seconds};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Follow a run: its events, one a line, until it ends.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Its id (or how it begins), or its folder
    pub run: String,
    /// How many events to begin with; 0 for none, `all` for all
    #[arg(short = 'n', long, value_name = "N", default_value = "20", value_parser = lines)]
    pub lines: usize,
    /// Print what is there, and end
    #[arg(long)]
    pub no_follow: bool,
    /// The events as they are logged, one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

fn lines(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| format!("expected a number or `all`, found `{text}`")),
    }
}

/// Between two looks at the log.
const LOOK: Duration = Duration::from_millis(200);

/// Carries out `fathom tail`.
///
/// # Errors
///
/// When there is no such run, or its log can't be read.
pub fn run(args: TailArgs) -> Result<()> {
    let paths = paths(&args.run, &args.results)?;
    let log = paths.events();
    let (events, mut offset) = match log.exists() {
        true => read_events(&log, 0)?,
        false if args.no_follow || !is_held(&paths) => {
            return Err(nothing_logged(&paths, &args.results));
        }
        false => (Vec::new(), 0),
    };
    let first = events.len().saturating_sub(args.lines);
    print(&events[first..], args.json)?;
    if args.no_follow {
        return Ok(());
    }
    let mut last = events.last().cloned();
    loop {
        if last.as_ref().is_some_and(|event| event.kind.ending().is_some()) {
            // Another attempt may be about to begin, but this one is over.
            return Ok(());
        }
        // Asked before the log is read: what the run said at its end is not missed.
        let held = is_held(&paths);
        let (events, end) = match log.exists() {
            true => read_events(&log, offset)?,
            false => (Vec::new(), 0),
        };
        offset = end;
        print(&events, args.json)?;
        if events.is_empty() && !held {
            tell!("note: nobody has the run any more, and it logged no ending");
            return Ok(());
        }
        last = events.last().cloned().or(last);
        std::thread::sleep(LOOK);
    }
}

/// Why there is no log, by what the store says of the run.
fn nothing_logged(paths: &RunPaths, results: &Path) -> anyhow::Error {
    let log = paths.events();
    let name = paths.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run = read_store(results).and_then(|store| store.run(&RunId(name.clone())));
    match run {
        Ok(Some(run)) if run.status != Status::Planned => anyhow!(
            "{}: expected events, found no such file: the run is {}, and its log is gone\n  help: `fathom runs show {name}` says what the store has of it",
            log.display(),
            run.status
        ),
        _ => anyhow!("{}: expected events, found none: the run has not begun", log.display()),
    }
}

/// The files of a run by its folder or by how its id begins.
fn paths(name: &str, results: &Path) -> Result<RunPaths> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return Ok(RunPaths::new(folder));
    }
    // A run is in its folder, whether or not there is a store yet.
    let beside = results.join("runs").join(name);
    if beside.is_dir() && !name.is_empty() {
        return Ok(RunPaths::new(beside));
    }
    let store = read_store(results)?;
    let run = store.find_run(name)?;
    Ok(RunPaths::in_results(results, &run.run_id))
}

fn print(events: &[Event], json: bool) -> Result<()> {
    let mut text = String::new();
    for event in events {
        match json {
            true => text.push_str(&serde_json::to_string(event).context("an event as JSON")?),
            false => text.push_str(&line(event)),
        }
        text.push('\n');
    }
    table::print(&text)
}

/// An event as people read it: the time (UTC), its kind, what it says.
pub fn line(event: &Event) -> String {
    let time = chrono::DateTime::from_timestamp_millis((event.time * 1000.0) as i64)
        .map_or(String::new(), |time| time.format("%H:%M:%S").to_string());
    format!("{time}  {}", words(&event.kind))
}

fn words(kind: &EventKind) -> String {
    let number = format_number;
    match kind {
        EventKind::Started { attempt, resumed_from_step, host, device, device_name, .. } => {
            let from = match resumed_from_step {
                0 => String::new(),
                step => format!(", from step {step}"),
            };
            format!("started       attempt {attempt}{from} on {host}, {device} ({device_name})")
        }
        EventKind::Fact { name, value } => format!("fact          {name} = {value}"),
        EventKind::Step {
            step,
            tokens,
            loss,
            learning_rate,
            grad_norm,
            tokens_per_second,
            peak_allocated,
            ..
        } => format!(
            "step {step:<8} loss {:<8} grad norm {:<8} learning rate {:<9} {} tokens, {} a second, peak {}",
            number(*loss),
            number(*grad_norm),
            number(*learning_rate),
            Tokens(*tokens),
            number(*tokens_per_second),
            Bytes(*peak_allocated)
        ),
        EventKind::Eval { step, split, loss, .. } => {
            format!("eval          step {step}: loss {} on {split}", number(*loss))
        }
        EventKind::Perplexity { step, split, method, context_length, perplexity, .. } => format!(
            "perplexity    step {step}: {} at {context_length} tokens ({}, {split})",
            number(*perplexity),
            method.name()
        ),
        EventKind::PositionNll { step, start, end, nll, .. } => {
            format!("position nll  step {step}: {} at {start}..{end}", number(*nll))
        }
        EventKind::Sample { step, prompt, text } => {
            format!("sample        step {step}: {:?}", format!("{prompt}{text}"))
        }
        EventKind::Checkpoint { step, path, bytes } => {
            format!("checkpoint    step {step}: {path}, {}", Bytes(*bytes))
        }
        EventKind::Memory { step, phase, peak_allocated, .. } => {
            format!("memory        step {step}: {phase} peaked at {}", Bytes(*peak_allocated))
        }
        EventKind::Warning { message } => format!("warning       {message}"),
        EventKind::Heartbeat { step } => format!("heartbeat     step {step}"),
        EventKind::Control { command, outcome, .. } => {
            format!("control       {command}: {outcome}")
        }
        EventKind::Finished { step, tokens, seconds } => format!(
            "finished      {step} steps, {} tokens, {}",
            Tokens(*tokens),
            format_seconds(*seconds)
        ),
        EventKind::Stopped { step, reason } => format!("stopped       step {step}: {reason}"),
        EventKind::OutOfMemory { step, phase, message, .. } => {
            format!("out of memory step {step}, {phase}: {message}")
        }
        EventKind::Diverged { step, loss, reason } => {
            format!("diverged      step {step}: loss {}: {reason}", number(*loss))
        }
        EventKind::Failed { error } => format!("failed        {}", error.replace('\n', "\\n")),
    }
}
