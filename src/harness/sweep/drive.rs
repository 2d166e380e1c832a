//! Drives the points of a sweep to their ends: one process a run, several at a time, and only what is missing.

use super::plan::{Bisect, Plan, Point};
use super::search::Search;
use super::{Identities, Identity};
use crate::cli::progress::Progress;
use crate::run::{self, Ending, Running, classify};
use crate::store::{PointRecord, RunRecord, Store, SweepRecord};
use anyhow::{Context, Result, bail};
use fathom_spec::record::{Event, EventKind, RunPaths, read_events};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the logs of running workers are looked at.
const POLL: Duration = Duration::from_millis(50);

/// What a driver works with.
pub struct Driver<'a> {
    pub results: &'a Path,
    pub worker: PathBuf,
    pub jobs: usize,
    pub store: &'a mut Store,
    pub progress: &'a Progress,
    /// Counts Ctrl-C: the first asks the workers to stop, the second ends them.
    pub interrupts: Arc<AtomicUsize>,
}

/// How the points of a sweep ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Runs that were done before.
    pub reused: usize,
    /// `(label, seed, run id, status, detail)` of every run that was started now.
    pub ended: Vec<(String, u64, String, String, Option<String>)>,
    /// Points that another process is running.
    pub elsewhere: usize,
    pub interrupted: bool,
}

impl Summary {
    /// Runs that ended without a result.
    pub fn failures(&self) -> usize {
        self.ended.iter().filter(|(_, _, _, status, _)| !Ending::is_result(status)).count()
    }
}

/// A point with the identity of its run.
#[derive(Debug, Clone)]
pub struct Identified {
    pub point: Point,
    pub identity: Identity,
}

impl Identified {
    pub fn run_id(&self) -> String {
        self.identity.run_id().0
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
                self.record(plan, &points)?;
                self.run_points(points)
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
        self.run_points(vec![point])
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
                position,
                label: point.point.label.clone(),
                seed: point.point.seed,
                settings: Value::Object(point.point.settings.clone()),
                run_id: point.run_id(),
            })
            .collect();
        self.store.upsert_sweep(&sweep, &records)
    }

    fn record_run(&mut self, point: &Identified) -> Result<()> {
        let run_id = point.run_id();
        self.store.upsert_run(&RunRecord {
            run_id: &run_id,
            run_hash: &point.identity.hashes.run_hash,
            group_hash: &point.identity.hashes.group_hash,
            config: &point.point.config,
            digests: &point.identity.digests,
            created_at: point.identity.created_at,
        })
    }

    /// A search: each probe is a run of its own, and a point of the sweep from when it is known.
    fn search(
        &mut self,
        plan: &Plan,
        bisect: &Bisect,
        identities: &mut Identities,
    ) -> Result<Summary> {
        let mut search = Search::new(bisect);
        let mut probes: Vec<Identified> = Vec::new();
        let mut whole = Summary::default();
        while let Some(value) = search.next() {
            let point = plan.probe(bisect, value)?;
            let point = identify(&[point], identities)?.remove(0);
            let run_id = point.run_id();
            probes.push(point.clone());
            probes.sort_by_key(|probe| probe.point.settings[&bisect.parameter].as_u64());
            self.record(plan, &probes)?;
            let summary = self.run_points(vec![point])?;
            whole.reused += summary.reused;
            whole.ended.extend(summary.ended);
            whole.interrupted |= summary.interrupted;
            whole.elsewhere += summary.elsewhere;
            let status =
                self.store.status(&run_id)?.map(|status| status.status).unwrap_or_default();
            match status.as_str() {
                "finished" => search.record(value, true),
                "out_of_memory" => search.record(value, false),
                // A probe without a result says nothing of the edge.
                _ => break,
            }
        }
        Ok(whole)
    }

    fn run_points(&mut self, points: Vec<Identified>) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut waiting = VecDeque::new();
        for point in points {
            if self.is_done(&point)? {
                summary.reused += 1;
            } else {
                waiting.push_back(point);
            }
        }
        self.progress.begin(summary.reused + waiting.len(), summary.reused);
        let mut running: Vec<(Identified, Running, Option<Event>, usize)> = Vec::new();
        let mut told_to_stop = 0;
        loop {
            let interrupts = self.interrupts.load(Ordering::Relaxed);
            while interrupts == 0 && running.len() < self.jobs && !waiting.is_empty() {
                let point = waiting.pop_front().expect("one is waiting");
                match self.start(&point)? {
                    Some(worker) => {
                        let line = self.progress.run(&point);
                        running.push((point, worker, None, line));
                    }
                    None => summary.elsewhere += 1,
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
                self.progress.interrupted(interrupts, running.len());
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
                for event in worker.new_events()? {
                    self.progress.event(*line, point, &event);
                    *last = Some(event);
                }
                let Some(exit) = exit else {
                    index += 1;
                    continue;
                };
                let (point, worker, last, line) = running.remove(index);
                let ending = classify(last.as_ref(), exit, &worker.paths);
                self.conclude(&point, &ending)?;
                self.progress.ended(line, &point, &ending);
                summary.ended.push((
                    point.point.label.clone(),
                    point.point.seed,
                    point.run_id(),
                    ending.status,
                    ending.detail,
                ));
            }
            std::thread::sleep(POLL);
        }
        self.progress.finish();
        Ok(summary)
    }

    /// Whether a run has its result, by the store or by its own log (a store may be younger than the runs).
    fn is_done(&mut self, point: &Identified) -> Result<bool> {
        let run_id = point.run_id();
        if self.store.paths(&run_id).events().exists() {
            self.store.ingest_run(&run_id)?;
        }
        let status = self.store.status(&run_id)?;
        Ok(status.is_some_and(|status| Ending::is_result(&status.status)))
    }

    /// Starts the worker of a point; `None` when another process has the run, or has just brought it to its result.
    fn start(&mut self, point: &Identified) -> Result<Option<Running>> {
        let paths = RunPaths::in_results(self.results, &point.identity.run_id());
        let Some(lock) = run::lock(&paths)? else { return Ok(None) };
        // Between the look at the store and the lock, its last holder may have finished it.
        if self.is_done(point)? {
            return Ok(None);
        }
        run::prepare(&paths, &point.point.config, &point.identity)?;
        Ok(Some(Running::start(&self.worker, paths, lock)?))
    }

    fn conclude(&mut self, point: &Identified, ending: &Ending) -> Result<()> {
        let run_id = point.run_id();
        self.store.ingest_run(&run_id)?;
        if !ending.logged {
            self.store.set_status(&run_id, &ending.status, ending.detail.as_deref(), now())?;
        }
        Ok(())
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

/// Counts steps and attempts of a run from its log: for tests and summaries.
///
/// # Errors
///
/// When the log can't be read.
pub fn attempts(paths: &RunPaths) -> Result<usize> {
    let (events, _) = read_events(&paths.events(), 0)?;
    Ok(events.iter().filter(|event| matches!(event.kind, EventKind::Started { .. })).count())
}
