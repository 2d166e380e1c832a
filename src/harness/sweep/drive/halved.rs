//! A ladder: points are stopped at rungs, and the best go on. Any number of harnesses decide as one would.
//!
//! Whoever has brought a run to a rung holds the sweep's lock, reads how far every point has come (from the store, where each
//! harness puts what it brings before it decides) and who was sent on before, and decides with all of that. What was decided is
//! anybody's to run: the lock of the run says who does.

use super::conclude::passed;
use super::course::{Course, Strategy};
use super::promotions::{Promotion, Promotions};
use super::{Driver, Job};
use crate::store::Status;
use crate::sweep::halving::{Halving, Ladder};
use anyhow::{Result, bail};
use fathom_spec::record::{RunId, SweepPaths};
use fathom_spec::units::Tokens;
use rusqlite::OptionalExtension;
use std::collections::{BTreeSet, HashMap, HashSet};

pub(super) struct Halved<'p> {
    course: Course<'p>,
    halving: &'p Halving,
    /// The job of each point as it was last, or the fallback that stands in for it.
    now: Vec<Job>,
    /// What was asked to be run, each to a rung: nothing is asked twice.
    asked: HashSet<(RunId, Option<u64>)>,
    /// Points whose runs failed here; they come to their rung another time.
    failed: BTreeSet<usize>,
    /// Runs that have come to an end here.
    ended: HashSet<RunId>,
    /// The metric of a run at a rung, which does not change any more.
    values: HashMap<(RunId, u64), f64>,
    /// How the runs stand, and the tokens they have seen, at one decision.
    progress: HashMap<RunId, (Status, u64)>,
}

impl<'p> Halved<'p> {
    /// Finds out how far every point is, and what is to be run. The third of the answer is the runs that need nothing now.
    pub fn begin(
        driver: &mut Driver,
        course: Course<'p>,
        halving: &'p Halving,
    ) -> Result<(Halved<'p>, Vec<Job>, Vec<RunId>)> {
        let now = course.jobs().to_vec();
        let mut this = Halved {
            course,
            halving,
            now,
            asked: HashSet::new(),
            failed: BTreeSet::new(),
            ended: HashSet::new(),
            values: HashMap::new(),
            progress: HashMap::new(),
        };
        for at in 0..this.now.len() {
            // Its log is taken in. One that can't be read is the trouble of its run, when its turn comes.
            let _ = driver.is_done(&this.to_rung(&this.now[at], 0));
        }
        let jobs = this.decide(driver)?;
        let at_work: HashSet<RunId> = jobs.iter().map(Job::run_id).collect();
        let done = this.now.iter().map(Job::run_id).filter(|run| !at_work.contains(run)).collect();
        Ok((this, jobs, done))
    }

    /// Decides who may go on, with all that has come by now; what is to be run that was not asked for yet.
    fn decide(&mut self, driver: &mut Driver) -> Result<Vec<Job>> {
        let sweep = &self.course.plan().name;
        self.look(driver)?;
        for at in 0..self.now.len() {
            self.follow_fallback(driver, at)?;
        }
        let mut sent = Promotions::hold(SweepPaths::in_results(driver.results, sweep))?;
        self.look(driver)?;
        let mut ladder = self.ladder(driver, &sent)?;
        let mut decided = Vec::new();
        while let Some((at, to)) = ladder.promote() {
            let (of, place) = ladder.standing(at, to - 1);
            let from = self.to_rung(&self.now[at], to - 1);
            let (run_id, from_tokens) = (from.run_id(), from.goal());
            decided.push(Promotion { run_id, from_tokens, of, place });
        }
        sent.add(decided)?;
        drop(sent);
        let mut jobs = Vec::new();
        for at in 0..self.now.len() {
            let Some(rung) = ladder.heading(at) else { continue };
            let job = self.to_rung(&self.now[at], rung);
            if self.asked.insert((job.run_id(), job.stop_at)) {
                self.now[at] = job.clone();
                jobs.push(job);
            }
        }
        Ok(jobs)
    }

    /// Reads how the runs stand. Those of points that somebody planned away since are read one by one.
    fn look(&mut self, driver: &Driver) -> Result<()> {
        self.progress = driver.store.progress_of_sweep(&self.course.plan().name)?;
        for run_id in self.now.iter().map(Job::run_id) {
            if !self.progress.contains_key(&run_id)
                && let Some(run) = driver.store.run(&run_id)?
            {
                self.progress.insert(run_id, (run.status, run.tokens));
            }
        }
        Ok(())
    }

    /// How far every point has come.
    fn ladder(&mut self, driver: &Driver, sent: &Promotions) -> Result<Ladder> {
        let points = self.course.plan().points.iter();
        let rungs_of = |total: u64| self.halving.rungs_of(total).len();
        let rungs = points.map(|p| rungs_of(p.config.train.total_tokens.0)).max().unwrap_or(1);
        let mut ladder = Ladder::new(self.now.len(), rungs, self.halving.keep);
        for at in 0..self.now.len() {
            while let Some(rung) = ladder.heading(at) {
                let job = self.to_rung(&self.now[at], rung);
                let was_sent = sent.has(&job.run_id(), job.goal());
                let Some(value) = self.at_rung(driver, &job, was_sent)? else {
                    if self.failed.contains(&at) {
                        ladder.gone(at);
                    }
                    break;
                };
                ladder.reached(at, value);
                let tokens = self.progress.get(&job.run_id()).map_or(0, |(_, tokens)| *tokens);
                if job.stop_at.is_none() || !was_sent && !passed(&job, tokens) {
                    break;
                }
                ladder.went_on(at, rung);
            }
        }
        Ok(ladder)
    }

    /// The job of a point to a rung.
    fn to_rung(&self, job: &Job, rung: usize) -> Job {
        let total = job.point.point.config.train.total_tokens.0;
        let rungs = self.halving.rungs_of(total);
        let stop_at = rungs.get(rung).copied().filter(|rung| *rung < total);
        // Who is further up is begun first.
        let plan = self.course.plan();
        let mut rank = plan.schedule.rank(&plan.points[job.at]);
        rank.push(-(rung as f64));
        Job { stop_at, rank, ..job.clone() }
    }

    /// What a run is worth at the rung of a job; `None` while it has not come there.
    fn at_rung(&mut self, driver: &Driver, job: &Job, was_sent: bool) -> Result<Option<f64>> {
        let Some(&(status, tokens)) = self.progress.get(&job.run_id()) else { return Ok(None) };
        let has_tokens = job.stop_at.is_some_and(|rung| tokens >= rung);
        match status {
            Status::Finished => self.value(driver, job).map(Some),
            // Whatever became of it later.
            _ if passed(job, tokens) => self.value(driver, job).map(Some),
            Status::Stopped if has_tokens => self.value(driver, job).map(Some),
            // It stands there, and was begun from there.
            _ if has_tokens && was_sent => self.value(driver, job).map(Some),
            Status::OutOfMemory | Status::Diverged if self.counts(driver, job, status) => {
                Ok(Some(f64::INFINITY))
            }
            // It was ended from outside and comes another time: until then no rung below its own is known to be complete.
            _ => Ok(None),
        }
    }

    /// Whether a result is one, or is to be made again first.
    fn counts(&self, driver: &Driver, job: &Job, status: Status) -> bool {
        !driver.again.contains(&status) || self.ended.contains(&job.run_id())
    }

    /// Puts the fallback of a point in its place where its run ran out of memory.
    fn follow_fallback(&mut self, driver: &mut Driver, at: usize) -> Result<()> {
        loop {
            let job = self.now[at].clone();
            let known = self.progress.get(&job.run_id()).map(|(status, _)| *status);
            // Of a fallback that is new here nothing is known yet.
            if !matches!(known, None | Some(Status::OutOfMemory))
                || !self.counts(driver, &job, Status::OutOfMemory)
            {
                break;
            }
            let Some(fallback) = self.course.fallback(driver, &job)? else { break };
            // What an earlier harness made of it is taken in.
            let _ = driver.is_done(&fallback);
            self.now[at] = fallback;
        }
        Ok(())
    }

    /// The metric's last value at the rung.
    fn value(&mut self, driver: &Driver, job: &Job) -> Result<f64> {
        let key = (job.run_id(), job.goal());
        if let Some(value) = self.values.get(&key) {
            return Ok(*value);
        }
        let (metric, run) = (&self.halving.metric, job.run_id());
        let value: Option<Option<f64>> = driver
            .store
            .connection()
            .query_row(
                "SELECT value FROM v_metrics WHERE run_id = ?1 AND key = ?2 AND step <=
                   (SELECT min(step) FROM v_metrics WHERE run_id = ?1 AND key = 'tokens' AND value >= ?3)
                 ORDER BY step DESC LIMIT 1",
                rusqlite::params![run.0, metric, job.goal() as f64],
                |row| row.get(0),
            )
            .optional()?;
        let Some(value) = value else {
            bail!(
                "search.halving.metric: expected a scalar that every run logs before its first rung, found no `{metric}` of run \
                 {run} by {} tokens\n  help: `loss` is logged at every step, `eval_loss.SPLIT` where the evaluated split has \
                 text (eval.split)",
                Tokens(job.goal())
            );
        };
        let value = value.unwrap_or(f64::NAN);
        self.values.insert(key, value);
        Ok(value)
    }
}

impl Strategy for Halved<'_> {
    fn after(&mut self, driver: &mut Driver, job: &Job) -> Result<Vec<Job>> {
        self.ended.insert(job.run_id());
        if driver.store.status(&job.run_id())? == Some(Status::Failed) {
            self.failed.insert(job.at);
        }
        self.decide(driver)
    }

    fn by_fallback(&self, driver: &Driver) -> Result<usize> {
        self.course.by_fallback(driver)
    }
}
