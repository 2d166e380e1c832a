//! The course of a sweep's runs on the command line: where they run, pause and continue, and what the plan says of fallbacks.

use super::exit;
use super::plan::{MachineArgs, Planner};
use super::sweep::Places;
use crate::run::read_store;
use crate::run::slurm::Slurm;
use crate::store::{Status, Store};
use crate::sweep::Identities;
use crate::sweep::drive::{self, Identified, Machine, Pause, Seconds, Shares, Slots, identify};
use crate::sweep::plan::Plan;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fathom_spec::config::{RunConfig, nearest};
use fathom_spec::units::{Bytes, Tokens};
use std::cell::RefCell;
use std::path::Path;

/// Where runs run, and how many at a time.
#[derive(Args)]
pub struct CourseArgs {
    /// Runs at a time, at most [default: 1; with --devices as many as fit, with Slurm all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    jobs: Option<usize>,
    /// Place runs on these: all, cpu, a GPU's number or UUID; several on one where the predicted memory fits, beside what your
    /// other harnesses with --devices have placed there
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    devices: Vec<String>,
    /// Who starts the runs
    #[arg(long, value_enum, default_value_t = Launcher::Local)]
    launcher: Launcher,
    /// With --launcher slurm: an argument for `sbatch`, such as --sbatch=--partition=gpu; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    sbatch: Vec<String>,
}

/// Who starts the runs of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Launcher {
    /// This process, on this machine
    Local,
    /// Slurm: runs are tasks of job arrays, on a file system that the nodes share
    Slurm,
}

#[derive(Args)]
pub struct PauseArgs {
    /// The sweep's name
    name: String,
    #[command(flatten)]
    places: Places,
    /// Let the runs that are at work come to their ends
    #[arg(long)]
    after_runs: bool,
}

#[derive(Args)]
pub struct ContinueArgs {
    /// The sweep's name
    name: String,
    #[command(flatten)]
    places: Places,
}

impl CourseArgs {
    pub fn jobs(&self) -> usize {
        // A cluster has a queue of its own.
        let alone = self.devices.is_empty() && self.launcher == Launcher::Local;
        let default = if alone { 1 } else { usize::MAX };
        self.jobs.unwrap_or(default)
    }

    /// The queue that runs are submitted to, if that is how they are launched.
    ///
    /// # Errors
    ///
    /// When Slurm is not here, or options don't go together.
    pub fn slurm(&self, results: &Path) -> Result<Option<Slurm>> {
        match self.launcher {
            Launcher::Local if self.sbatch.is_empty() => Ok(None),
            Launcher::Local => {
                bail!("--sbatch: expected it with --launcher slurm, found it without")
            }
            Launcher::Slurm if self.devices.is_empty() => {
                Slurm::new(results, self.sbatch.clone()).map(Some)
            }
            Launcher::Slurm => bail!(
                "--devices: expected it without --launcher slurm, found both\n  help: --sbatch=--gpus=1 has Slurm place each run"
            ),
        }
    }

    /// The devices that runs of the store in `results` are placed on, if any were named.
    ///
    /// # Errors
    ///
    /// When one is not there, or the folder of shares belongs to somebody else.
    pub fn shares(&self, results: &Path) -> Result<Option<Shares>> {
        if self.devices.is_empty() {
            return Ok(None);
        }
        let measure = || Machine::here(Bytes(super::doctor::memory().1));
        let machine = measure()?;
        let planner = RefCell::new(Planner::default());
        let predict = move |config: &RunConfig, device: Option<Bytes>| {
            let mut planner = planner.borrow_mut();
            planner.plan_for(MachineArgs::with_device(device));
            planner.predict(config).ok().map(|prediction| prediction.memory.device_peak())
        };
        let slots = Slots::new(machine.choose(&self.devices)?, Box::new(predict));
        Shares::new(slots, Box::new(measure), results).map(Some)
    }
}

/// A number of things of which there has to be one.
///
/// # Errors
///
/// When it is none, or no number.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("expected a whole number, 1 or more, found `{text}`"))
}

/// How long runs will take on this machine, for budgets of time.
pub fn seconds() -> Seconds {
    let planner = RefCell::new(Planner::default());
    Seconds::new(Box::new(move |config: &RunConfig| {
        let prediction = planner.borrow_mut().predict(config).ok()?;
        Some(prediction.seconds_per_step / config.tokens_per_step() as f64)
    }))
}

/// `fathom sweep pause`.
///
/// # Errors
///
/// When there is no such sweep, or the command can't be written.
pub fn pause(args: &PauseArgs) -> Result<u8> {
    check_known(&args.places, &args.name)?;
    let how = if args.after_runs { Pause::AfterRuns } else { Pause::Now };
    drive::pause(&args.places.results, &args.name, how)?;
    say!("{}: paused; `fathom sweep continue {}` lets it go on", args.name, args.name);
    Ok(exit::OK)
}

/// `fathom sweep continue`.
///
/// # Errors
///
/// When there is no such sweep, or the command can't be taken back.
pub fn go_on(args: &ContinueArgs) -> Result<u8> {
    check_known(&args.places, &args.name)?;
    match drive::go_on(&args.places.results, &args.name)? {
        true => {
            say!("{}: goes on where it is driven; otherwise `fathom sweep run` does", args.name)
        }
        false => say!("{}: was not paused", args.name),
    }
    Ok(exit::OK)
}

fn check_known(places: &Places, name: &str) -> Result<()> {
    let sweeps = read_store(&places.results)?.sweeps()?;
    if sweeps.iter().any(|sweep| sweep.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = sweeps.iter().map(|sweep| sweep.name.as_str()).collect();
    let near = nearest(name, names.iter().copied());
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    bail!(
        "expected a sweep of {}, found none called `{name}`\n  help: {near}sweeps here: {}",
        places.results.display(),
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    )
}

/// The fallbacks of a point (by its place among the points), as far as they are needed: each with what the store knows of it, and
/// only the last may be without a result.
///
/// # Errors
///
/// When a fallback can't be resolved, or the store can't be read.
pub fn fallbacks(
    plan: &Plan,
    at: usize,
    store: Option<&Store>,
    identities: &mut Identities,
) -> Result<Vec<(Identified, Option<Status>)>> {
    let mut needed = Vec::new();
    let Some(store) = store.filter(|_| plan.search.is_none()) else { return Ok(needed) };
    let own = identify(&plan.points[at..=at], identities)?.remove(0);
    let mut status = store.status(&own.run_id())?;
    for step in 0..plan.schedule.fallbacks.len() {
        if status != Some(Status::OutOfMemory) {
            break;
        }
        let point = identify(&[plan.fallback(at, step)?], identities)?.remove(0);
        status = store.status(&point.run_id())?;
        needed.push((point, status));
    }
    Ok(needed)
}

/// What the plan says of halving, fallbacks and the budget, with what of it the sweep has taken by now.
///
/// # Errors
///
/// When the store can't be read.
pub fn print(plan: &Plan, store: Option<&Store>) -> Result<()> {
    if let Some(halving) = &plan.halving {
        let rungs: Vec<String> = halving.rungs.iter().map(|r| Tokens(*r).to_string()).collect();
        say!(
            "halving: stopped at {} tokens; the best {:.0} % by {} go on",
            rungs.join(", "),
            100.0 * halving.keep,
            halving.metric
        );
    }
    for fallback in &plan.schedule.fallbacks {
        say!("after out_of_memory: {}", fallback.shown());
    }
    let budget = &plan.schedule.budget;
    let parts = [
        budget.seconds.map(|s| format!("{} of runs", fathom_spec::units::format_seconds(s))),
        budget.tokens.map(|tokens| format!("{} tokens", Tokens(tokens))),
        budget.runs.map(|runs| format!("{runs} runs")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        let spent = store.map(|store| drive::spent(plan, store)).transpose()?;
        let spent = spent.map(|spent| format!("; {spent}")).unwrap_or_default();
        say!("budget: {}{spent}", parts.join(", "));
    }
    Ok(())
}
