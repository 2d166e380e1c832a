//! `fathom control`: asks running runs for something, by command files in their folders.
//!
//! Nothing but the folder is shared with the run: no port, no process id. So it works from any host that sees the results,
//! and for whatever started the run: a sweep, a cluster's launcher, a person.

use super::table::{self, Cell, Format, Table};
use crate::run::{SILENCE_SECONDS, Standing, State, settle, standing, tidy};
use crate::store::{Status, Store};
use crate::sweep::drive::now;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fathom_spec::config::nearest;
use fathom_spec::record::control::{self, Command};
use fathom_spec::record::{EventKind, RunId, RunPaths, read_events};
use fathom_spec::units::{Tokens, format_seconds};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the log of a run is looked at for its answer.
const POLL: Duration = Duration::from_millis(20);

/// See and steer runs that are at work, on this host or on another that shares their folders.
#[derive(Debug, Args)]
#[command(after_help = "\
A command is a small file in the run's folder. The run acts on it between two steps, before anything
else that is due then, and answers with a `control` event. Ctrl-C and SIGTERM are as `stop`.")]
pub struct ControlArgs {
    #[command(subcommand)]
    command: ControlCommand,
    /// The folder that the runs are in
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    results: PathBuf,
}

#[derive(Debug, Subcommand)]
enum ControlCommand {
    /// List the runs that are at work, and those whose process died without a word
    List {
        /// How to print them
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Say how runs stand: process, progress, last sign of life, commands that wait
    Status(Targets),
    /// Write a checkpoint now and go on
    Save(Request),
    /// End after this step, with a checkpoint where the run writes any: the same sweep goes on from it
    Stop(Request),
    /// Write a checkpoint and end; a run that writes none refuses, and goes on
    SaveStop(Request),
    /// End after this step and write no checkpoint, not even one that is due; earlier ones stay
    Abort(Request),
    /// Begin the decay of a `wsd` schedule now; a run that is resumed keeps to it
    StartAnnealing(Request),
    /// Remove what dead runs left: locks, process files and commands that nobody took; call them lost in the store
    Cleanup,
}

/// Which runs.
#[derive(Debug, Args)]
struct Targets {
    /// A run's id, or how it begins
    #[arg(required_unless_present_any = ["sweep", "all"])]
    run: Vec<String>,
    /// The runs of this sweep that are at work
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    sweep: Option<String>,
    /// Every run that is at work
    #[arg(long, conflicts_with_all = ["run", "sweep"])]
    all: bool,
}

#[derive(Debug, Args)]
struct Request {
    #[command(flatten)]
    targets: Targets,
    /// Wait for the answer, at most so many seconds, and print it
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    wait: Option<f64>,
}

/// Carries out `fathom control`.
///
/// # Errors
///
/// When there is no such run, it is not at work, or it refuses or does not answer what is waited for.
pub fn run(args: ControlArgs) -> Result<()> {
    let results = &args.results;
    match args.command {
        ControlCommand::List { format } => table::print(&list(results)?.render(format)),
        ControlCommand::Status(targets) => {
            let names = Names::of(results);
            let chosen = choose(results, &targets)?;
            let texts: Vec<String> = chosen
                .iter()
                .map(|run_id| status(results, run_id, &names))
                .collect::<Result<_>>()?;
            table::print(&texts.join("\n"))
        }
        ControlCommand::Save(request) => ask(results, &request, Command::Save),
        ControlCommand::Stop(request) => ask(results, &request, Command::Stop),
        ControlCommand::SaveStop(request) => ask(results, &request, Command::SaveStop),
        ControlCommand::Abort(request) => ask(results, &request, Command::Abort),
        ControlCommand::StartAnnealing(request) => ask(results, &request, Command::StartAnnealing),
        ControlCommand::Cleanup => cleanup(results),
    }
}

/// What the store knows of runs that their folders do not say.
#[derive(Default)]
struct Names {
    /// Sweep and label.
    points: BTreeMap<RunId, String>,
    /// What a supervisor found of a run that did not say itself how it ended.
    verdicts: BTreeMap<RunId, String>,
}

impl Names {
    /// Nothing where there is no store: folders of runs can be steered without one.
    fn of(results: &Path) -> Names {
        let Ok(store) = Store::open_read_only(results) else { return Names::default() };
        let mut names = Names::default();
        for sweep in store.sweeps().unwrap_or_default() {
            for point in store.points(&sweep.name).unwrap_or_default() {
                let name = format!("{}: {}, seed {}", sweep.name, point.label, point.seed);
                names.points.insert(point.run_id, name);
            }
        }
        for run in store.runs().unwrap_or_default() {
            if !matches!(run.status, Status::Planned | Status::Running) {
                let detail =
                    run.status_detail.map_or(String::new(), |detail| format!(": {detail}"));
                names.verdicts.insert(run.run_id, format!("{}{detail}", run.status));
            }
        }
        names
    }
}

/// The runs that have a folder, sorted.
fn folders(results: &Path) -> Result<Vec<RunId>> {
    let folder = results.join("runs");
    if !folder.is_dir() {
        bail!(
            "{}: expected a folder of runs, found none\n  help: --results names the folder that fathom.db is in",
            folder.display()
        );
    }
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let is_run = |path: &Path| path.join("config.yaml").exists();
    let mut runs: Vec<RunId> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_run(path))
        .filter_map(|path| Some(RunId(path.file_name()?.to_str()?.to_string())))
        .collect();
    runs.sort();
    Ok(runs)
}

fn look(results: &Path, run_id: &RunId) -> Result<Standing> {
    standing(&RunPaths::in_results(results, run_id), now())
}

/// The runs that are meant.
fn choose(results: &Path, targets: &Targets) -> Result<Vec<RunId>> {
    let there = folders(results)?;
    let is_at_work =
        |run_id: &RunId| look(results, run_id).is_ok_and(|found| found.state.is_at_work());
    if targets.all {
        return Ok(there.into_iter().filter(is_at_work).collect());
    }
    if let Some(name) = &targets.sweep {
        let store = Store::open_read_only(results)?;
        let sweeps = store.sweeps()?;
        if !sweeps.iter().any(|sweep| sweep.name == *name) {
            let near = nearest(name, sweeps.iter().map(|sweep| sweep.name.as_str()));
            let help =
                near.map_or(String::new(), |near| format!("\n  help: did you mean `{near}`?"));
            bail!(
                "--sweep: expected one of the {} sweeps of the store, found `{name}`{help}",
                sweeps.len()
            );
        }
        let points = store.points(name)?;
        let of_sweep = |id: &RunId| points.iter().any(|point| point.run_id == *id);
        return Ok(there.into_iter().filter(of_sweep).filter(is_at_work).collect());
    }
    targets.run.iter().map(|prefix| find(&there, prefix)).collect()
}

fn find(there: &[RunId], prefix: &str) -> Result<RunId> {
    if prefix.is_empty() {
        bail!("RUN: expected the id of a run, or how one begins, found nothing");
    }
    let found: Vec<&RunId> = there.iter().filter(|id| id.0.starts_with(prefix)).collect();
    match found[..] {
        [one] => Ok(one.clone()),
        [] => bail!(
            "run {prefix}: expected one of the {} runs that have a folder, found none that begins so\n  help: `fathom control \
             list` lists what is at work",
            there.len()
        ),
        _ => bail!("run {prefix}: expected one run, found {} that begin so", found.len()),
    }
}

/// What is at work, and what died and was not tidied up.
fn list(results: &Path) -> Result<Table> {
    let names = Names::of(results);
    let mut table = Table::new(&[
        "run",
        "point",
        "state",
        "host",
        "pid",
        "step",
        "tokens",
        "loss",
        "last sign",
    ]);
    for run_id in folders(results)? {
        let found = match look(results, &run_id) {
            Ok(found) => found,
            Err(error) => {
                tell!("warning: run {run_id}: {error:#}");
                continue;
            }
        };
        let is_left = matches!(found.state, State::Dead(_)) && found.process.is_some();
        if !found.state.is_at_work() && !is_left {
            continue;
        }
        let process = found.process.as_ref();
        let step = found.step;
        table.rows.push(vec![
            run_id.0.as_str().into(),
            names.points.get(&run_id).cloned().into(),
            found.state.name().into(),
            process.map(|process| process.host.clone()).into(),
            process.map_or(Cell::Null, |process| Cell::Integer(process.pid.into())),
            step.map_or(Cell::Null, |(step, ..)| Cell::Integer(step as i64)),
            step.map(|(_, tokens, _)| Tokens(tokens).to_string()).into(),
            step.map_or(Cell::Null, |(.., loss)| Cell::Real(loss)),
            found.silent_seconds.map(ago).into(),
        ]);
    }
    Ok(table)
}

fn ago(seconds: f64) -> String {
    format!("{} ago", format_seconds(seconds.round()))
}

/// How one run stands, as text.
fn status(results: &Path, run_id: &RunId, names: &Names) -> Result<String> {
    let paths = RunPaths::in_results(results, run_id);
    let found = standing(&paths, now())?;
    let mut text = format!("run {run_id}: {}\n", sentence(&found));
    let mut line = |what: &str, value: String| text.push_str(&format!("  {what:<11}{value}\n"));
    if let Some(name) = names.points.get(run_id) {
        line("point", name.clone());
    }
    if let (State::Dead(_), Some(verdict)) = (&found.state, names.verdicts.get(run_id)) {
        line("verdict", verdict.clone());
    }
    if let Some((step, tokens, loss)) = found.step {
        line("step", format!("{step}, {} tokens, loss {loss:.4}", Tokens(tokens)));
    }
    if let Some(seconds) = found.silent_seconds {
        line("last sign", ago(seconds));
    }
    if let Some((_, folder)) = paths.latest_checkpoint() {
        line("checkpoint", folder.display().to_string());
    }
    for file in control::waiting(&paths.control()) {
        let asked = control::read(&file).map_or_else(|reason| reason, |c| c.to_string());
        line("waiting", asked);
    }
    Ok(text)
}

/// The state with what it is known by.
fn sentence(found: &Standing) -> String {
    let process = found.process.as_ref();
    let host = process.map_or("an unknown host", |process| process.host.as_str());
    let pid = process.map_or(String::new(), |process| format!(", process {}", process.pid));
    match &found.state {
        State::Running => match process.and_then(|process| process.supervisor) {
            Some(supervisor) => format!("running here{pid}, started by process {supervisor}"),
            None => format!("running here{pid}"),
        },
        State::Elsewhere => format!("running on host {host}{pid}, by what it writes"),
        State::Silent => format!(
            "no sign for {}, on host {host}{pid}: more than {SILENCE_SECONDS} s, and only that host knows whether it lives",
            format_seconds(found.silent_seconds.unwrap_or(0.0).round())
        ),
        State::Dead(reason) => format!("dead: {reason}"),
        state => state.name().to_string(),
    }
}

/// Puts the command into every chosen run's folder, and waits for the answers if that was asked for.
fn ask(results: &Path, request: &Request, command: Command) -> Result<()> {
    let chosen = choose(results, &request.targets)?;
    if chosen.is_empty() {
        say!("no run is at work");
        return Ok(());
    }
    let mut sent = Vec::new();
    for run_id in chosen {
        let paths = RunPaths::in_results(results, &run_id);
        let found = standing(&paths, now())?;
        if !found.state.is_at_work() {
            bail!(
                "run {run_id}: expected a run at work to {command}, found it {}",
                sentence(&found)
            );
        }
        let log = paths.events();
        let offset = if log.exists() { read_events(&log, 0)?.1 } else { 0 };
        let id = control::send(&paths, command)?;
        sent.push(Sent { run_id, paths, id, command, offset, answer: None });
    }
    let Some(seconds) = request.wait else {
        for Sent { run_id, .. } in &sent {
            say!("run {run_id}: asked to {command}; it acts on it after the step it is in");
        }
        return Ok(());
    };
    let deadline = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9));
    let mut failures = 0;
    for mut sent in sent {
        match sent.wait(deadline) {
            Ok(outcome) => say!("run {}: {outcome}", sent.run_id),
            Err(error) => {
                failures += 1;
                tell!("run {}: {error:#}", sent.run_id);
            }
        }
    }
    match failures {
        0 => Ok(()),
        _ => bail!("{command}: {failures} of the runs did not do it"),
    }
}

/// A command on its way.
struct Sent {
    run_id: RunId,
    paths: RunPaths,
    id: String,
    command: Command,
    /// How far the log has been read.
    offset: u64,
    answer: Option<String>,
}

impl Sent {
    /// What came of it: the run's answer, and its ending where the command ends it.
    fn wait(&mut self, deadline: Instant) -> Result<String> {
        loop {
            // The state is asked for first: what was written before a death is then all there.
            let found = standing(&self.paths, now())?;
            let events = match self.paths.events().exists() {
                true => read_events(&self.paths.events(), self.offset)?,
                false => (Vec::new(), 0),
            };
            self.offset = events.1;
            for event in events.0 {
                match event.kind {
                    EventKind::Control { command, outcome, request }
                        if self.is_ours(&command, request.as_deref()) =>
                    {
                        if outcome.starts_with("refused: ") {
                            bail!("{}: {outcome}", self.command);
                        }
                        if !self.command.ends_the_run() {
                            return Ok(outcome);
                        }
                        self.answer = Some(outcome);
                    }
                    kind => {
                        if let Some(outcome) = self.ended(&kind)? {
                            return Ok(outcome);
                        }
                    }
                }
            }
            match &found.state {
                State::Dead(reason) => bail!("{}: {reason}", self.command),
                // All that it had to say was read above.
                State::Ended(ending) => {
                    bail!("{}: the run ended as {ending} before it acted on it", self.command)
                }
                _ => {}
            }
            if Instant::now() >= deadline {
                bail!(
                    "{}: no answer yet; the run is {}\n  help: it acts between two steps, and a step may take longer than was \
                     waited: the command stays until then",
                    self.command,
                    sentence(&found)
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// A worker that does not name the file it answers is taken at its command's word.
    fn is_ours(&self, command: &str, request: Option<&str>) -> bool {
        request.map_or(command == self.command.name(), |request| request == self.id)
    }

    /// What an ending says of the command; nothing where the event is none.
    fn ended(&self, kind: &EventKind) -> Result<Option<String>> {
        let Some(ending) = kind.ending() else { return Ok(None) };
        let (step, reason) = match kind {
            EventKind::Stopped { step, reason } => (format!(" after step {step}"), reason.clone()),
            EventKind::Failed { error } => (String::new(), error.clone()),
            _ => (String::new(), String::new()),
        };
        let ended = if reason.is_empty() {
            ending.to_string()
        } else {
            format!("{ending}{step}: {reason}")
        };
        match (&self.answer, ending) {
            (Some(answer), "stopped") => Ok(Some(format!("{ended}; {answer}"))),
            (None, "stopped") if self.command.ends_the_run() => Ok(Some(ended)),
            _ => bail!("{}: the run ended before it acted on it: {ended}", self.command),
        }
    }
}

/// Tidies up after dead runs.
fn cleanup(results: &Path) -> Result<()> {
    if Store::path(results).exists() {
        for (run_id, reason) in settle(&mut Store::open(results)?, now())? {
            say!("run {run_id}: lost: {reason}");
        }
    }
    let mut tidied = 0;
    for run_id in folders(results)? {
        let paths = RunPaths::in_results(results, &run_id);
        let state = match standing(&paths, now()) {
            Ok(found) => found.state,
            Err(error) => {
                tell!("warning: run {run_id}: {error:#}");
                continue;
            }
        };
        match &state {
            State::Silent => {
                tell!("note: run {run_id} is left as it is: it is of another host, and silent");
            }
            state if state.is_at_work() => {}
            _ => {
                if tidy(&paths)? {
                    tidied += 1;
                    say!("run {run_id}: tidied up ({})", state.name());
                }
            }
        }
    }
    say!("{tidied} runs were tidied up");
    Ok(())
}
