//! Drives the points of a sweep to their ends: one process a run, several at a time, and only what is missing.
//!
//! [`Driver::sweep`] is the way in. What a sweep runs next is decided by its course (`course`): each point once, the probes of a
//! search one after another, or a ladder of rungs (`halved`, which keeps its `promotions`). Each run on its way somewhere is a
//! job (`queue`); the turn (`turn`) takes jobs off the queue while there are [`Slots`] for them, beside what other harnesses have
//! at work (`shares`), and the budget (`budget`) allows it, looks after the workers, obeys Ctrl-C and a [`Pause`], finds out how
//! what has come to its end stands (`conclude`), and hands it back to the course.
//!
//! All that is decided is in the store and the runs' logs: a driver that is killed and started again goes on from there.

mod budget;
mod conclude;
mod course;
mod driven;
mod halved;
mod pause;
mod promotions;
mod queue;
mod shares;
mod slots;
mod turn;
mod wait;

use super::Identities;
use super::plan::{Plan, Point};
use crate::run::slurm::Slurm;
use crate::run::{is_held, prepare};
use crate::store::{PointRecord, RunRecord, SavedIdentity, Status, Store, SweepRecord};
use anyhow::{Context, Result, bail};
pub use budget::Seconds;
use course::{Bisection, Course, Every};
pub use driven::is_driven;
use fathom_spec::config::RunConfig;
pub use fathom_spec::record::now;
use fathom_spec::record::{Event, RunId, RunPaths};
use halved::Halved;
pub use pause::{Pause, asked, go_on, pause};
pub use promotions::Promotion;
use queue::Job;
use serde_json::Value;
pub use shares::{DEVICES_VARIABLE, Measure, Shares};
pub use slots::{Device, Gpu, MACHINE_VARIABLE, Machine, Predict, Slots};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use turn::Turn;

/// What a driver works with.
pub struct Driver<'a> {
    pub results: &'a Path,
    pub worker: PathBuf,
    /// Runs at a time, at most.
    pub jobs: usize,
    /// What runs are placed on; without it every run finds its device by itself.
    pub shares: Option<Shares>,
    /// How long runs will take, for a budget of time; without it they are taken to be as quick as those before.
    pub seconds: Option<Seconds>,
    /// The cluster's queue that runs are submitted to; without it they are processes of this machine.
    pub slurm: Option<Slurm>,
    /// Results that are not to be kept but made again: a run that ran out of memory beside others may fit alone.
    pub again: Vec<Status>,
    pub store: &'a mut Store,
    pub watcher: &'a dyn Watcher,
    /// Counts Ctrl-C: the first asks the workers to stop, the second ends them.
    pub interrupts: Arc<AtomicUsize>,
}

/// Who is told of a sweep's progress as it happens.
pub trait Watcher {
    /// `runs` in all, `done` of them before.
    fn begin(&self, runs: usize, done: usize);
    /// `runs` more have become known, `done` of them before.
    fn more(&self, runs: usize, done: usize);
    /// A run begins; the answer names its line in the calls below.
    fn started(&self, point: &Identified) -> usize;
    /// A run has logged an event.
    fn event(&self, line: usize, point: &Identified, event: &Event);
    fn ended(&self, line: usize, ended: &Ended);
    /// A run has its result in the store, and its log can't be read any more.
    fn damaged(&self, point: &Identified, error: &anyhow::Error);
    /// Another process has brought a run to its result.
    fn done_elsewhere(&self);
    /// There is nothing to do but wait for `runs` that another process has.
    fn waiting(&self, runs: usize);
    /// A run waits for room on the devices, which `others` of other harnesses take.
    fn crowded(&self, others: &str);
    /// Something is not as it should be, and the sweep goes on.
    fn warning(&self, what: &str);
    /// The sweep rests; so many runs are at work still.
    fn paused(&self, sweep: &str, running: usize);
    /// It goes on.
    fn continued(&self);
    /// The `times`-th interrupt was heard while so many were `running`.
    fn interrupted(&self, times: usize, running: usize);
    fn finish(&self);
}

/// How the points of a sweep ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Runs that were done before.
    pub reused: usize,
    /// Runs that were started now.
    pub ended: Vec<Ended>,
    /// Runs that another process brought to their results meanwhile.
    pub elsewhere: usize,
    pub interrupted: bool,
    /// Runs that were not begun: the budget does not allow them.
    pub left: usize,
    /// Runs that other harnesses had at work then: what they are bound to take is part of the budget.
    pub beside: usize,
    /// What of the budget is spent, where there is one.
    pub budget: Option<String>,
    /// Points that ran out of memory and are answered by their fallback, which has its result.
    pub by_fallback: usize,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub label: String,
    pub seed: u64,
    pub run_id: RunId,
    pub status: Status,
    /// The error, the signal, what was asked of memory and what was free.
    pub detail: Option<String>,
    /// The tokens of the rung that it was to reach, and did: it may go on from there another time.
    pub at_rung: Option<u64>,
}

impl Ended {
    fn is_as_asked(&self) -> bool {
        self.status.is_result() || self.at_rung.is_some()
    }
}

impl Summary {
    /// Runs that ended without a result.
    pub fn failures(&self) -> usize {
        self.ended.iter().filter(|run| !run.is_as_asked()).count()
    }
}

/// # Errors
///
/// When two points are one run: its settings then reach nothing that is part of a result.
pub fn refuse_same_run(points: &[Identified]) -> Result<()> {
    for (index, point) in points.iter().enumerate() {
        if let Some(twin) = points[..index].iter().find(|other| other.run_id() == point.run_id()) {
            bail!(
                "expected points that differ, found two that are the same run: `{}` and `{}`, seed {}\n  help: run.device, \
                 run.threads and paths to the same content do not make another run",
                twin.point.label,
                point.point.label,
                point.point.seed
            );
        }
    }
    Ok(())
}

/// A point with the identity of its run.
#[derive(Debug, Clone)]
pub struct Identified {
    pub point: Point,
    pub identity: SavedIdentity,
}

impl Identified {
    pub fn run_id(&self) -> RunId {
        self.identity.run_id()
    }
}

/// Identifies every point.
///
/// # Errors
///
/// When a file that a point names can't be read: before anything runs.
pub fn identify(points: &[Point], identities: &mut Identities) -> Result<Vec<Identified>> {
    let at = now();
    points
        .iter()
        .map(|point| {
            let identity = identities
                .of(&point.config, at)
                .with_context(|| format!("point `{}`", point.label))?;
            Ok(Identified { point: point.clone(), identity })
        })
        .collect()
}

impl Driver<'_> {
    /// Runs what is missing of a sweep. `identities` knows what was already read of the files that its points name.
    ///
    /// # Errors
    ///
    /// When a point can't be identified or placed, or the store or a run's folder can't be written. A run that fails is no error.
    pub fn sweep(&mut self, plan: &Plan, identities: Identities) -> Result<Summary> {
        let _driven = driven::drive(self.results, &plan.name);
        if let Some(shares) = &self.shares {
            let fallbacks = (0..plan.points.len())
                .flat_map(|at| (0..plan.schedule.fallbacks.len()).map(move |step| (at, step)))
                .map(|(at, step)| plan.fallback(at, step));
            for point in plan.foreseen()?.into_iter().map(Ok).chain(fallbacks) {
                let point = point?;
                shares.check(&point.config).with_context(|| format!("point `{}`", point.label))?;
            }
        }
        let mut course = Course::new(plan, identities);
        match (&plan.search, &plan.halving) {
            (Some(bisect), _) => {
                let (mut bisection, jobs) = Bisection::begin(self, course, bisect)?;
                Turn::new(self, Some(plan), &mut bisection).run(jobs)
            }
            (None, Some(halving)) => {
                course.add_points(self)?;
                let (mut halved, jobs, done) = Halved::begin(self, course, halving)?;
                Turn::new(self, Some(plan), &mut halved).after(done).run(jobs)
            }
            (None, None) => {
                let jobs = course.add_points(self)?;
                Turn::new(self, Some(plan), &mut Every { course }).run(jobs)
            }
        }
    }

    /// Runs one point outside any sweep.
    ///
    /// # Errors
    ///
    /// As [`Driver::sweep`].
    pub fn single(&mut self, point: Identified) -> Result<Summary> {
        self.record_run(&point)?;
        let job = Job { point, at: 0, fallbacks: 0, stop_at: None, rank: Vec::new() };
        Turn::new(self, None, &mut course::One).run(vec![job])
    }

    /// Records a sweep with its points, of which the driver recorded those in `before` the last time.
    fn record<'p>(
        &mut self,
        plan: &Plan,
        points: impl Iterator<Item = &'p Identified>,
        before: Option<&HashSet<RunId>>,
    ) -> Result<()> {
        let sweep = SweepRecord {
            name: plan.name.clone(),
            file: plan.file.clone(),
            question: plan.question.clone(),
            spec: plan.spec.clone(),
            planned_at: now(),
        };
        let mut records = Vec::new();
        for (position, point) in points.enumerate() {
            self.record_run(point)?;
            records.push(PointRecord {
                position: position as u64,
                label: point.point.label.clone(),
                seed: point.point.seed,
                settings: Value::Object(point.point.settings.clone()),
                run_id: point.run_id(),
            });
        }
        match before {
            None => self.store.upsert_sweep(&sweep, &records),
            Some(before) => self.store.update_sweep(&sweep, &records, before),
        }
    }

    /// Makes a run known: its folder first, which keeps what it is though it may never begin.
    fn record_run(&mut self, point: &Identified) -> Result<()> {
        let config = &point.point.config;
        let status = self.store.status(&point.run_id())?;
        if !matches!(status, None | Some(Status::Planned)) {
            return Ok(());
        }
        let paths = RunPaths::in_results(self.results, &point.run_id());
        let has_begun = paths.events().exists();
        if !has_begun && !is_held(&paths) {
            prepare(&paths, config, &point.identity)?;
        }
        // What a folder says that is older than this store is what the store is to have.
        let identity = SavedIdentity::read(&paths).unwrap_or_else(|_| point.identity.clone());
        let begun_with = RunConfig::read(&paths.config()).ok().filter(|_| has_begun);
        let config = begun_with.as_ref().unwrap_or(config);
        self.store.upsert_run(&RunRecord { identity: &identity, config })
    }
}

/// What a sweep has taken of its budget so far, in words.
///
/// # Errors
///
/// When the store can't be read.
pub fn spent(plan: &Plan, store: &Store) -> Result<String> {
    let spent = budget::Spent::so_far(store, &plan.name)?;
    Ok(budget::words(&plan.schedule.budget, &spent))
}

/// The last checkpoint of a finished run.
///
/// # Errors
///
/// When there is none.
pub fn last_checkpoint(paths: &RunPaths) -> Result<PathBuf> {
    match paths.latest_checkpoint() {
        Some((_, folder)) => Ok(folder),
        None => bail!("{}: expected a checkpoint, found none", paths.checkpoints().display()),
    }
}
