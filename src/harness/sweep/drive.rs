//! Drives the points of a sweep to their ends: one process a run, several at a time, and only what is missing.

use super::Identities;
use super::plan::{Bisect, Plan, Point};
use super::search::{Probe, Search};
use crate::run::{self, Running};
use crate::store::{PointRecord, RunRecord, SavedIdentity, Status, Store, SweepRecord};
use anyhow::{Context, Result, bail};
use fathom_spec::record::{Event, RunId, RunPaths};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the logs of running workers are looked at.
const POLL: Duration = Duration::from_millis(50);

/// How often the store takes in what running workers have logged, so that it can be looked at meanwhile.
const INGEST: Duration = Duration::from_secs(1);

/// How often runs that another process holds are tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What a driver works with.
pub struct Driver<'a> {
    pub results: &'a Path,
    pub worker: PathBuf,
    pub jobs: usize,
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
    /// Another process has brought a run to its result.
    fn done_elsewhere(&self);
    /// There is nothing to do but wait for `runs` that another process has.
    fn waiting(&self, runs: usize);
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
}

impl Summary {
    /// Runs that ended without a result.
    pub fn failures(&self) -> usize {
        self.ended.iter().filter(|run| !run.status.is_result()).count()
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

/// What follows a run that has come to its end: the next probe of a search.
type Follow<'f> = &'f mut dyn FnMut(&mut Driver, &RunId) -> Result<Option<Identified>>;

/// The search of one case.
struct Case {
    search: Search,
    /// All so far, by their value.
    probes: Vec<Identified>,
    /// The one whose end decides what comes next.
    at_work: Option<(Probe, RunId)>,
}

/// What came of trying to start a run.
enum Start {
    Started(Running),
    /// It has its result by now.
    Done,
    /// Another supervisor has it, or the worker of one that died is still writing its checkpoint.
    Held,
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

/// Seconds since 1970-01-01 UTC.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
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
    /// Runs what is missing of a sweep.
    ///
    /// # Errors
    ///
    /// When a point can't be identified, or the store or a run's folder can't be written. A run that fails is no error.
    pub fn sweep(&mut self, plan: &Plan) -> Result<Summary> {
        let mut identities = Identities::default();
        match &plan.search {
            None => {
                let points = identify(&plan.points, &mut identities)?;
                refuse_same_run(&points)?;
                self.record(plan, &points)?;
                self.run_points(points, &mut |_, _| Ok(None))
            }
            Some(bisect) => self.search(plan, bisect, &mut identities),
        }
    }

    /// Runs one point outside any sweep.
    ///
    /// # Errors
    ///
    /// As [`Driver::sweep`].
    pub fn single(&mut self, point: Identified) -> Result<Summary> {
        self.record_run(&point)?;
        self.run_points(vec![point], &mut |_, _| Ok(None))
    }

    fn record(&mut self, plan: &Plan, points: &[Identified]) -> Result<()> {
        for point in points {
            self.record_run(point)?;
        }
        let sweep = SweepRecord {
            name: plan.name.clone(),
            file: plan.file.clone(),
            question: plan.question.clone(),
            spec: plan.spec.clone(),
            planned_at: now(),
        };
        let records: Vec<PointRecord> = points
            .iter()
            .enumerate()
            .map(|(position, point)| PointRecord {
                position: position as u64,
                label: point.point.label.clone(),
                seed: point.point.seed,
                settings: Value::Object(point.point.settings.clone()),
                run_id: point.run_id(),
            })
            .collect();
        self.store.upsert_sweep(&sweep, &records)
    }

    fn record_run(&mut self, point: &Identified) -> Result<()> {
        let config = &point.point.config;
        self.store.upsert_run(&RunRecord { identity: &point.identity, config })
    }

    /// A search in each case: its probes follow one another, cases stand side by side as far as there are jobs. Each probe is
    /// a run of its own, and a point of the sweep from when it is known.
    fn search(
        &mut self,
        plan: &Plan,
        bisect: &Bisect,
        identities: &mut Identities,
    ) -> Result<Summary> {
        let case = || Case { search: Search::new(bisect), probes: Vec::new(), at_work: None };
        let mut cases: Vec<Case> = plan.points.iter().map(|_| case()).collect();
        let mut next_probe = |cases: &mut [Case], at: usize| -> Result<Option<Identified>> {
            let case = &mut cases[at];
            let Some(probe) = case.search.next() else { return Ok(None) };
            let point = plan.probe(at, bisect, probe.value, probe.whole)?;
            let point = identify(&[point], identities)?.remove(0);
            case.at_work = Some((probe, point.run_id()));
            case.probes.push(point.clone());
            case.probes.sort_by_key(|probe| probe.point.settings[&bisect.parameter].as_u64());
            Ok(Some(point))
        };
        let all = |cases: &[Case]| -> Vec<Identified> {
            cases.iter().flat_map(|case| case.probes.clone()).collect()
        };
        for at in 0..cases.len() {
            next_probe(&mut cases, at)?;
        }
        let first = all(&cases);
        refuse_same_run(&first)?;
        self.record(plan, &first)?;
        self.run_points(first, &mut |driver, ended| {
            let is_at_work = |case: &Case| case.at_work.as_ref().is_some_and(|(_, id)| id == ended);
            let at = cases.iter().position(is_at_work).expect("a probe is of a case");
            let (probe, _) = cases[at].at_work.take().expect("it was just found");
            let finished = match driver.store.status(ended)? {
                Some(Status::Finished) => true,
                Some(Status::OutOfMemory | Status::Diverged) => false,
                // A probe without a result says nothing of the edge: this case's search ends here.
                _ => return Ok(None),
            };
            cases[at].search.record(probe, finished);
            let next = next_probe(&mut cases, at)?;
            if next.is_some() {
                driver.record(plan, &all(&cases))?;
            }
            Ok(next)
        })
    }

    /// Runs `points` and what follows each of them.
    fn run_points(&mut self, points: Vec<Identified>, follow: Follow) -> Result<Summary> {
        // What an earlier harness left as running, and whose process is gone, is not running while it waits for its turn.
        run::settle(self.store, now())?;
        let mut summary = Summary::default();
        let mut waiting = VecDeque::new();
        for point in points {
            waiting.extend(self.not_done(point, follow, &mut summary)?);
        }
        self.watcher.begin(summary.reused + waiting.len(), summary.reused);
        let mut running: Vec<(Identified, Running, Option<Event>, usize)> = Vec::new();
        let mut ingested = Instant::now();
        let mut told_to_stop = 0;
        let mut retry_at = Instant::now();
        let mut said_that_it_waits = false;
        loop {
            let interrupts = self.interrupts.load(Ordering::Relaxed);
            if interrupts == 0 && Instant::now() >= retry_at {
                let mut held = 0;
                for _ in 0..waiting.len() {
                    if running.len() >= self.jobs {
                        break;
                    }
                    let point = waiting.pop_front().expect("one is waiting");
                    match self.start(&point)? {
                        Start::Started(worker) => {
                            let line = self.watcher.started(&point);
                            running.push((point, worker, None, line));
                        }
                        Start::Done => {
                            summary.elsewhere += 1;
                            self.watcher.done_elsewhere();
                            self.go_on(&point.run_id(), follow, &mut waiting, &mut summary)?;
                        }
                        Start::Held => {
                            held += 1;
                            waiting.push_back(point);
                        }
                    }
                }
                if held > 0 {
                    retry_at = Instant::now() + RETRY;
                    if running.is_empty() && !std::mem::replace(&mut said_that_it_waits, true) {
                        self.watcher.waiting(held);
                    }
                }
            }
            if interrupts > told_to_stop {
                summary.interrupted = true;
                for (_, worker, ..) in &mut running {
                    if interrupts == 1 {
                        worker.ask_to_stop()?;
                    } else {
                        worker.kill();
                    }
                }
                self.watcher.interrupted(interrupts, running.len());
                told_to_stop = interrupts;
            }
            if running.is_empty() && (waiting.is_empty() || interrupts > 0) {
                break;
            }
            let mut index = 0;
            while index < running.len() {
                let (point, worker, last, line) = &mut running[index];
                // The exit is asked for first: what was written before it is then all there.
                let exit = worker.try_wait()?;
                match worker.new_events() {
                    Ok(events) => {
                        for event in events {
                            self.watcher.event(*line, point, &event);
                            *last = Some(event);
                        }
                    }
                    // What can't be read can't be supervised; its exit is waited for below.
                    Err(_) => worker.kill(),
                }
                let Some(exit) = exit else {
                    index += 1;
                    continue;
                };
                let (point, worker, last, line) = running.remove(index);
                let logged = last.is_some_and(|event| event.kind.ending().is_some());
                let verdict =
                    (!logged).then(|| run::verdict(exit, &worker.paths, worker.said_before));
                let ended = self.conclude(&point, verdict)?;
                self.watcher.ended(line, &ended);
                self.go_on(&ended.run_id, follow, &mut waiting, &mut summary)?;
                summary.ended.push(ended);
            }
            if ingested.elapsed() >= INGEST {
                for (point, ..) in &running {
                    // What is damaged is said when the run ends.
                    let _ = self.store.ingest_run(&point.run_id());
                }
                ingested = Instant::now();
            }
            std::thread::sleep(POLL);
        }
        self.watcher.finish();
        Ok(summary)
    }

    /// Lets what follows a run wait for its turn, before all that waits: a search is brought to its end before another begins.
    fn go_on(
        &mut self,
        ended: &RunId,
        follow: Follow,
        waiting: &mut VecDeque<Identified>,
        summary: &mut Summary,
    ) -> Result<()> {
        let Some(point) = follow(self, ended)? else { return Ok(()) };
        let before = summary.reused;
        let next = self.not_done(point, follow, summary)?;
        let done = summary.reused - before;
        self.watcher.more(done + usize::from(next.is_some()), done);
        if let Some(next) = next {
            waiting.push_front(next);
        }
        Ok(())
    }

    /// The point, or the first of those that follow it, which has still to be run.
    fn not_done(
        &mut self,
        mut point: Identified,
        follow: Follow,
        summary: &mut Summary,
    ) -> Result<Option<Identified>> {
        loop {
            match self.is_done(&point) {
                Ok(true) => summary.reused += 1,
                Ok(false) => return Ok(Some(point)),
                // A damaged log is this run's trouble alone.
                Err(error) => {
                    summary.ended.push(self.damaged(&point, &error)?);
                    return Ok(None);
                }
            }
            match follow(self, &point.run_id())? {
                Some(next) => point = next,
                None => return Ok(None),
            }
        }
    }

    /// Whether a run has its result, by the store or by its own log (a store may be younger than the runs).
    fn is_done(&mut self, point: &Identified) -> Result<bool> {
        // A database that was made anew meanwhile knows it no more.
        self.record_run(point)?;
        let status = self.store.ingest_run(&point.run_id())?.status;
        Ok(status.is_result() && !self.again.contains(&status))
    }

    /// The end of a run whose log can't be read: it failed, and says how to begin it anew.
    fn damaged(&mut self, point: &Identified, error: &anyhow::Error) -> Result<Ended> {
        let run_id = point.run_id();
        let detail =
            format!("{error:#}\n  help: remove runs/{run_id} of the results to begin it anew");
        self.store.set_status(&run_id, Status::Failed, Some(&detail))?;
        let (label, seed) = (point.point.label.clone(), point.point.seed);
        Ok(Ended { label, seed, run_id, status: Status::Failed, detail: Some(detail) })
    }

    /// Starts the worker of a point, if nobody else has it.
    fn start(&mut self, point: &Identified) -> Result<Start> {
        let paths = RunPaths::in_results(self.results, &point.run_id());
        let Some(lock) = run::lock(&paths)? else { return Ok(Start::Held) };
        // Between the look at the store and the lock, its last holder may have finished it.
        if self.is_done(point)? {
            return Ok(Start::Done);
        }
        run::prepare(&paths, &point.point.config, &point.identity)?;
        Ok(Start::Started(Running::start(&self.worker, paths, lock)?))
    }

    /// Takes in the rest of a run's log, and `verdict` where the log has no ending of this attempt.
    fn conclude(&mut self, point: &Identified, verdict: Option<(Status, String)>) -> Result<Ended> {
        let run_id = point.run_id();
        if let Err(error) = self.store.ingest_run(&run_id) {
            return self.damaged(point, &error);
        }
        if let Some((status, detail)) = &verdict {
            self.store.set_status(&run_id, *status, Some(detail))?;
        }
        let run = self.store.known_run(&run_id)?;
        let (label, seed) = (point.point.label.clone(), point.point.seed);
        Ok(Ended { label, seed, run_id, status: run.status, detail: run.status_detail })
    }
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
