//! What a sweep runs, and what follows from how a run ended: each point once, a search's next probe, a ladder's next rung; and
//! the fallback of a point whose run ran out of memory.

use super::conclude::passed;
use super::{Driver, Identified, Job, identify, refuse_same_run};
use crate::store::Status;
use crate::sweep::Identities;
use crate::sweep::halving::{Halving, Ladder};
use crate::sweep::plan::{Bisect, Plan, Point};
use crate::sweep::search::{Probe, Search};
use anyhow::{Result, bail};
use fathom_spec::record::RunId;
use fathom_spec::units::Tokens;
use rusqlite::OptionalExtension;

/// Decides what is run next.
pub(super) trait Strategy {
    /// A job is done, or has ended without a result; answers what follows.
    fn after(&mut self, driver: &mut Driver, job: &Job) -> Result<Vec<Job>>;

    /// Points that are answered by a fallback which has its result.
    fn by_fallback(&self, driver: &Driver) -> Result<usize>;
}

/// The points of a sweep so far, with the identities of what they name.
pub(super) struct Course<'p> {
    plan: &'p Plan,
    identities: Identities,
    /// In the order of the sweep's table.
    jobs: Vec<Job>,
}

impl<'p> Course<'p> {
    pub fn new(plan: &'p Plan) -> Course<'p> {
        Course { plan, identities: Identities::default(), jobs: Vec::new() }
    }

    /// All points of the plan, each to be run to its end; they are recorded as the sweep's.
    pub fn add_points(&mut self, driver: &mut Driver) -> Result<Vec<Job>> {
        let points = identify(&self.plan.points, &mut self.identities)?;
        refuse_same_run(&points)?;
        let job = |(at, point)| self.job(at, point, 0);
        self.jobs = points.into_iter().enumerate().map(job).collect();
        self.record(driver)?;
        Ok(self.jobs.clone())
    }

    fn job(&self, at: usize, point: Identified, fallbacks: usize) -> Job {
        let rank = self.plan.schedule.rank(&self.plan.points[at]);
        Job { point, at, fallbacks, stop_at: None, rank }
    }

    /// Records the sweep as it is known now.
    fn record(&self, driver: &mut Driver) -> Result<()> {
        driver.record(self.plan, self.jobs.iter().map(|job| &job.point))
    }

    /// What stands in for a job whose run ran out of memory, if there is something left. A fallback that is the run of a
    /// point already answers by that one.
    fn fallback(&mut self, driver: &mut Driver, job: &Job) -> Result<Option<Job>> {
        let status = driver.store.status(&job.run_id())?;
        if status != Some(Status::OutOfMemory)
            || job.fallbacks >= self.plan.schedule.fallbacks.len()
        {
            return Ok(None);
        }
        let point = self.plan.fallback(job.at, job.fallbacks)?;
        let point = identify(&[point], &mut self.identities)?.remove(0);
        let next = Job { stop_at: job.stop_at, ..self.job(job.at, point, job.fallbacks + 1) };
        if let Some(known) = self.jobs.iter().find(|other| other.run_id() == next.run_id()) {
            let own = known.at == next.at && known.fallbacks == next.fallbacks;
            return Ok(own.then_some(next));
        }
        let beside = |other: &Job| other.at == job.at && other.fallbacks == job.fallbacks;
        let place = self.jobs.iter().position(beside).map_or(self.jobs.len(), |at| at + 1);
        self.jobs.insert(place, next.clone());
        self.record(driver)?;
        Ok(Some(next))
    }

    fn by_fallback(&self, driver: &Driver) -> Result<usize> {
        let mut count = 0;
        for job in self.jobs.iter().filter(|job| job.fallbacks > 0) {
            count += usize::from(driver.store.status(&job.run_id())? == Some(Status::Finished));
        }
        Ok(count)
    }
}

/// One run outside any sweep.
pub(super) struct One;

impl Strategy for One {
    fn after(&mut self, _: &mut Driver, _: &Job) -> Result<Vec<Job>> {
        Ok(Vec::new())
    }

    fn by_fallback(&self, _: &Driver) -> Result<usize> {
        Ok(0)
    }
}

/// Each point once.
pub(super) struct Every<'p> {
    pub course: Course<'p>,
}

impl Strategy for Every<'_> {
    fn after(&mut self, driver: &mut Driver, job: &Job) -> Result<Vec<Job>> {
        Ok(self.course.fallback(driver, job)?.into_iter().collect())
    }

    fn by_fallback(&self, driver: &Driver) -> Result<usize> {
        self.course.by_fallback(driver)
    }
}

/// A search in each case: its probes follow one another, cases stand side by side as far as there is room. Each probe is a run
/// of its own, and a point of the sweep from when it is known.
pub(super) struct Bisection<'p> {
    course: Course<'p>,
    bisect: &'p Bisect,
    cases: Vec<Case>,
}

/// The search of one case.
struct Case {
    search: Search,
    /// The one whose end decides what comes next.
    at_work: Option<Probe>,
}

impl<'p> Bisection<'p> {
    pub fn begin(
        driver: &mut Driver,
        course: Course<'p>,
        bisect: &'p Bisect,
    ) -> Result<(Bisection<'p>, Vec<Job>)> {
        let cases = course.plan.points.iter();
        let cases = cases.map(|_| Case { search: Search::new(bisect), at_work: None }).collect();
        let mut this = Bisection { course, bisect, cases };
        let mut first = Vec::new();
        for at in 0..this.cases.len() {
            first.extend(this.next_probe(at)?);
        }
        let points: Vec<Identified> = first.iter().map(|job| job.point.clone()).collect();
        refuse_same_run(&points)?;
        this.course.record(driver)?;
        Ok((this, first))
    }

    fn next_probe(&mut self, at: usize) -> Result<Option<Job>> {
        let Some(probe) = self.cases[at].search.next() else { return Ok(None) };
        let course = &mut self.course;
        let point: Point = course.plan.probe(at, self.bisect, probe.value, probe.whole)?;
        let point = identify(&[point], &mut course.identities)?.remove(0);
        self.cases[at].at_work = Some(probe);
        let job = course.job(at, point, 0);
        course.jobs.push(job.clone());
        let value = |job: &Job| job.point.point.settings[&self.bisect.parameter].as_u64();
        course.jobs.sort_by_key(|job| (job.at, value(job)));
        Ok(Some(job))
    }
}

impl Strategy for Bisection<'_> {
    fn after(&mut self, driver: &mut Driver, job: &Job) -> Result<Vec<Job>> {
        let case = &mut self.cases[job.at];
        let probe = case.at_work.take().expect("a case has one probe at a time");
        let finished = match driver.store.status(&job.run_id())? {
            Some(Status::Finished) => true,
            Some(Status::OutOfMemory | Status::Diverged) => false,
            // A probe without a result says nothing of the edge: this case's search ends here.
            _ => return Ok(Vec::new()),
        };
        case.search.record(probe, finished);
        let next = self.next_probe(job.at)?;
        if next.is_some() {
            self.course.record(driver)?;
        }
        Ok(next.into_iter().collect())
    }

    fn by_fallback(&self, _: &Driver) -> Result<usize> {
        Ok(0)
    }
}

/// A ladder: points are stopped at rungs, and the best go on.
pub(super) struct Halved<'p> {
    course: Course<'p>,
    halving: &'p Halving,
    ladder: Ladder,
    /// The job of each point as it was last, or the fallback that stands in for it.
    now: Vec<Job>,
}

impl<'p> Halved<'p> {
    /// Finds out how far every point is, and what is to be run. What earlier drivers decided shows in how far runs have come, so
    /// that all of it counts before anything is decided anew. The third of the answer is the runs that need nothing now.
    pub fn begin(
        driver: &mut Driver,
        course: Course<'p>,
        halving: &'p Halving,
    ) -> Result<(Halved<'p>, Vec<Job>, Vec<RunId>)> {
        let plan = course.plan;
        let most =
            plan.points.iter().map(|p| halving.rungs_of(p.config.train.total_tokens.0).len());
        let rungs = most.max().unwrap_or(1);
        let ladder = Ladder::new(plan.points.len(), rungs, halving.keep);
        let now = course.jobs.clone();
        let mut this = Halved { course, halving, ladder, now };
        for at in 0..this.now.len() {
            this.now[at] = this.heading(this.now[at].clone());
            while driver.is_done(&this.now[at]).unwrap_or(false) {
                let job = this.now[at].clone();
                if let Some(fallback) = this.course.fallback(driver, &job)? {
                    this.now[at] = fallback;
                    continue;
                }
                let rung = this.ladder.heading(at).expect("a point that is done was on its way");
                this.arrived(driver, &job)?;
                let run = driver.store.known_run(&job.run_id())?;
                if !passed(&job, run.tokens) || job.stop_at.is_none() {
                    break;
                }
                this.ladder.went_on(at, rung);
                this.now[at] = this.heading(job);
            }
        }
        this.promote();
        let (jobs, done): (Vec<Job>, Vec<Job>) =
            this.now.iter().cloned().partition(|job| this.ladder.heading(job.at).is_some());
        let done = done.iter().map(Job::run_id).collect();
        Ok((this, jobs, done))
    }

    /// The job of a point to the rung that it is on its way to.
    fn heading(&self, job: Job) -> Job {
        let total = job.point.point.config.train.total_tokens.0;
        let rungs = self.halving.rungs_of(total);
        let at = self.ladder.heading(job.at).unwrap_or(0);
        let rung = rungs.get(at).copied().filter(|rung| *rung < total);
        // Who is further up is begun first.
        let mut rank = self.course.plan.schedule.rank(&self.course.plan.points[job.at]);
        rank.push(-(at as f64));
        Job { stop_at: rung, rank, ..job }
    }

    /// Tells the ladder how a point stands whose job has ended.
    fn arrived(&mut self, driver: &Driver, job: &Job) -> Result<()> {
        let run = driver.store.known_run(&job.run_id())?;
        let at_rung = job.stop_at.is_some_and(|rung| run.tokens >= rung);
        match run.status {
            Status::Finished => self.ladder.reached(job.at, self.value(driver, job)?),
            // Whatever became of it later.
            _ if passed(job, run.tokens) => self.ladder.reached(job.at, self.value(driver, job)?),
            Status::Stopped if at_rung => self.ladder.reached(job.at, self.value(driver, job)?),
            Status::OutOfMemory | Status::Diverged => self.ladder.reached(job.at, f64::INFINITY),
            Status::Failed => self.ladder.gone(job.at),
            // It was ended from outside and comes another time: until then no rung below its own is known to be complete.
            _ => {}
        }
        Ok(())
    }

    /// The metric's last value at the rung.
    fn value(&self, driver: &Driver, job: &Job) -> Result<f64> {
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
        Ok(value.unwrap_or(f64::NAN))
    }

    /// Sends on whoever may go on; their jobs.
    fn promote(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        while let Some((at, _)) = self.ladder.promote() {
            self.now[at] = self.heading(self.now[at].clone());
            jobs.push(self.now[at].clone());
        }
        jobs
    }
}

impl Strategy for Halved<'_> {
    fn after(&mut self, driver: &mut Driver, job: &Job) -> Result<Vec<Job>> {
        if let Some(fallback) = self.course.fallback(driver, job)? {
            self.now[job.at] = self.heading(fallback);
            return Ok(vec![self.now[job.at].clone()]);
        }
        self.now[job.at] = job.clone();
        self.arrived(driver, job)?;
        Ok(self.promote())
    }

    fn by_fallback(&self, driver: &Driver) -> Result<usize> {
        self.course.by_fallback(driver)
    }
}
