//! What a sweep may still take, counted over all that it ever had as a point, whenever and by whomever it was made: the runs in
//! the store, and what those at work, here or under another harness, have still to do.
//!
//! Tokens are those that runs are to see, `train.total_tokens`: what the last step of one sees beyond them is not counted. Seconds
//! are predicted, and the prediction is held to what the sweep's runs have really taken.

use super::{Driver, Job};
use crate::run::{self, State, wait_for_lock};
use crate::store::{Run, Status, Store, Taken};
use crate::sweep::plan::Plan;
use crate::sweep::schedule::Budget;
use anyhow::Result;
use fathom_spec::config::RunConfig;
use fathom_spec::record::{RunId, RunPaths};
use fathom_spec::units::{Tokens, format_seconds};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;

/// How many seconds a token of a run takes, where that can be said.
type SecondsOfToken = dyn Fn(&RunConfig) -> Option<f64>;

/// Predicts what runs take, each once.
pub struct Seconds {
    predict: Box<SecondsOfToken>,
    known: RefCell<HashMap<RunId, Option<f64>>>,
}

impl Seconds {
    /// `predict` says how many seconds a token of a run takes, where that can be said.
    pub fn new(predict: Box<SecondsOfToken>) -> Seconds {
        Seconds { predict, known: RefCell::default() }
    }

    fn of_token(&self, run_id: &RunId, config: impl Fn() -> Option<RunConfig>) -> Option<f64> {
        if let Some(known) = self.known.borrow().get(run_id) {
            return *known;
        }
        let seconds = config().and_then(|config| (self.predict)(&config));
        let seconds = seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        self.known.borrow_mut().insert(run_id.clone(), seconds);
        seconds
    }
}

/// What was taken, or is bound to be by what is at work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Spent {
    pub seconds: f64,
    pub tokens: u64,
    pub runs: u64,
}

impl Spent {
    /// What a sweep has taken so far.
    pub fn so_far(store: &Store, sweep: &str) -> Result<Spent> {
        Ok(Spent::of(&store.taken_by_sweep(sweep)?))
    }

    fn of(runs: &[Taken]) -> Spent {
        let mut spent = Spent::default();
        for run in runs.iter().filter(|run| run.attempt > 0) {
            spent.seconds += run.seconds;
            spent.tokens += run.tokens.min(run.total_tokens);
            spent.runs += 1;
        }
        spent
    }

    fn is_within(&self, budget: &Budget) -> bool {
        budget.seconds.is_none_or(|most| self.seconds <= most)
            && budget.tokens.is_none_or(|most| self.tokens <= most)
            && budget.runs.is_none_or(|most| self.runs <= most)
    }
}

/// A budget as it stands between two runs that are begun.
pub(super) struct Account {
    budget: Budget,
    so_far: Spent,
    /// With what is at work brought to its goals.
    bound: Spent,
    /// Something is at work of which nobody knows how long it takes.
    is_unsure: bool,
    /// How many runs are at work.
    at_work: usize,
    /// How many of them under other harnesses.
    pub elsewhere: usize,
    pace: Pace,
    runs: HashMap<RunId, (u64, u32)>,
}

/// How long runs take.
struct Pace {
    /// What the sweep's runs have taken for each second that was predicted; 1 before there are any.
    of_predicted: f64,
    /// What they have taken for a token.
    of_token: Option<f64>,
}

impl Account {
    /// What the sweep has taken and is bound to take, `at_work` here and under other harnesses.
    pub fn of(driver: &mut Driver, plan: &Plan, at_work: &[&Job]) -> Result<Account> {
        let own: HashSet<RunId> = at_work.iter().map(|job| job.run_id()).collect();
        let (runs, elsewhere) = as_they_stand(driver, &plan.name, &own)?;
        let so_far = Spent::of(&runs);
        let mut account = Account {
            budget: plan.schedule.budget,
            so_far,
            bound: so_far,
            is_unsure: false,
            at_work: 0,
            elsewhere: elsewhere.len(),
            pace: Pace::of(&runs, driver),
            runs: runs.iter().map(|run| (run.run_id.clone(), (run.tokens, run.attempt))).collect(),
        };
        for job in at_work {
            let tokens = account.left_of(job);
            let seconds = account.seconds_of(driver, job, tokens);
            account.take(&job.run_id(), tokens, seconds);
        }
        for run in runs.iter().filter(|run| elsewhere.contains(&run.run_id)) {
            let goal = goal(plan, &driver.store.known_run(&run.run_id)?);
            let tokens = goal.saturating_sub(run.tokens);
            let config = || config_of(driver.store, &run.run_id);
            let of_token = driver.seconds.as_ref().and_then(|s| s.of_token(&run.run_id, config));
            let seconds = account.pace.seconds(of_token, tokens);
            account.take(&run.run_id, tokens, seconds);
        }
        Ok(account)
    }

    /// Whether `job` may begin beside those at work without more being taken in the end than the budget allows.
    pub fn allows(&self, driver: &Driver, job: &Job) -> bool {
        if self.budget.seconds.is_some_and(|most| self.so_far.seconds >= most) {
            return false;
        }
        let tokens = self.left_of(job);
        let seconds = self.seconds_of(driver, job, tokens);
        // What can't be foreseen is tried alone: then there is a pace.
        let is_unsure = self.is_unsure || seconds.is_none();
        if self.budget.seconds.is_some() && is_unsure && self.at_work > 0 {
            return false;
        }
        self.bound.with(&self.added(&job.run_id(), tokens, seconds)).is_within(&self.budget)
    }

    fn left_of(&self, job: &Job) -> u64 {
        let (done, _) = self.runs.get(&job.run_id()).copied().unwrap_or_default();
        job.goal().saturating_sub(done)
    }

    fn seconds_of(&self, driver: &Driver, job: &Job, tokens: u64) -> Option<f64> {
        let config = || Some(job.point.point.config.clone());
        let of_token = driver.seconds.as_ref().and_then(|s| s.of_token(&job.run_id(), config));
        self.pace.seconds(of_token, tokens)
    }

    fn added(&self, run_id: &RunId, tokens: u64, seconds: Option<f64>) -> Spent {
        let (_, attempt) = self.runs.get(run_id).copied().unwrap_or_default();
        Spent { seconds: seconds.unwrap_or(0.0), tokens, runs: u64::from(attempt == 0) }
    }

    fn take(&mut self, run_id: &RunId, tokens: u64, seconds: Option<f64>) {
        self.bound = self.bound.with(&self.added(run_id, tokens, seconds));
        self.is_unsure |= seconds.is_none();
        self.at_work += 1;
    }
}

impl Spent {
    fn with(&self, more: &Spent) -> Spent {
        Spent {
            seconds: self.seconds + more.seconds,
            tokens: self.tokens + more.tokens,
            runs: self.runs + more.runs,
        }
    }
}

impl Pace {
    fn of(runs: &[Taken], driver: &Driver) -> Pace {
        let seconds = driver.seconds.as_ref();
        let (mut predicted, mut taken) = (0.0, 0.0);
        let done = || runs.iter().filter(|run| run.tokens > 0);
        for run in done() {
            let config = || config_of(driver.store, &run.run_id);
            if let Some(of_token) = seconds.and_then(|s| s.of_token(&run.run_id, config)) {
                predicted += of_token * run.tokens as f64;
                taken += run.seconds;
            }
        }
        let (all, tokens) = done().fold((0.0, 0), |(s, t), run| (s + run.seconds, t + run.tokens));
        Pace {
            of_predicted: if predicted > 0.0 { taken / predicted } else { 1.0 },
            of_token: (tokens > 0).then(|| all / tokens as f64),
        }
    }

    fn seconds(&self, of_token: Option<f64>, tokens: u64) -> Option<f64> {
        let of_token = of_token.map(|predicted| predicted * self.of_predicted).or(self.of_token);
        of_token.map(|of_token| of_token * tokens as f64)
    }
}

fn config_of(store: &Store, run_id: &RunId) -> Option<RunConfig> {
    serde_json::from_value(store.run(run_id).ok()??.config).ok()
}

/// The runs of a sweep, and which of them others have at work. What has ended meanwhile, and nobody has taken in, is taken in.
fn as_they_stand(
    driver: &mut Driver,
    sweep: &str,
    own: &HashSet<RunId>,
) -> Result<(Vec<Taken>, HashSet<RunId>)> {
    let mut elsewhere = HashSet::new();
    let mut is_behind = false;
    let runs = driver.store.taken_by_sweep(sweep)?;
    for run in runs.iter().filter(|run| !run.status.is_result() && !own.contains(&run.run_id)) {
        let paths = RunPaths::in_results(driver.results, &run.run_id);
        // Most are only planned: nobody has signed in.
        if run.status == Status::Planned && !paths.process().exists() && !paths.events().exists() {
            continue;
        }
        match run::standing(&paths, super::now()).map(|standing| standing.state) {
            Ok(State::Running | State::Elsewhere) => {
                elsewhere.insert(run.run_id.clone());
            }
            Ok(State::NotBegun) => {}
            // A log that is damaged is told of when its run's turn comes.
            _ if fs::metadata(paths.events()).is_ok_and(|log| log.len() > run.log_offset) => {
                is_behind |= driver.store.ingest_run(&run.run_id).is_ok();
            }
            _ => {}
        }
    }
    let runs = if is_behind { driver.store.taken_by_sweep(sweep)? } else { runs };
    Ok((runs, elsewhere))
}

/// The tokens to which another harness brings a run: its next rung, or its end.
fn goal(plan: &Plan, run: &Run) -> u64 {
    let total = run.config["train"]["total_tokens"].as_u64().unwrap_or(run.tokens);
    let rungs = plan.halving.as_ref().map(|halving| halving.rungs_of(total));
    rungs.and_then(|rungs| rungs.into_iter().find(|rung| *rung > run.tokens)).unwrap_or(total)
}

/// Held from the look at what a sweep has taken until its next run is begun, so that two harnesses do not both take what is left.
pub(super) struct Turnstile {
    _file: File,
}

/// Waits for the sweep's turnstile; nobody has it for longer than it takes to begin a run.
pub(super) fn turnstile(results: &Path, sweep: &str) -> Result<Turnstile> {
    let path = results.join("control").join(format!("{sweep}.budget"));
    Ok(Turnstile { _file: wait_for_lock(&path, "the budget's lock")? })
}

/// What is left, in words: `1280 of 2K tokens and 3 of 4 runs are spent`.
pub(super) fn words(budget: &Budget, spent: &Spent) -> String {
    let seconds = budget.seconds.map(|most| {
        format!("{} of {} of runs", format_seconds(spent.seconds), format_seconds(most))
    });
    let tokens =
        budget.tokens.map(|most| format!("{} of {} tokens", Tokens(spent.tokens), Tokens(most)));
    let runs = budget.runs.map(|most| format!("{} of {most} runs", spent.runs));
    let parts: Vec<String> = [seconds, tokens, runs].into_iter().flatten().collect();
    format!("{} are spent", parts.join(" and "))
}
