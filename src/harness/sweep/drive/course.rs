//! What a sweep runs, and what follows from how a run ended: each point once, or a search's next probe (a ladder's next rung:
//! `halved`); and the fallback of a point whose run ran out of memory.

use super::{Driver, Identified, Job, identify, refuse_same_run};
use crate::store::Status;
use crate::sweep::Identities;
use crate::sweep::plan::{Bisect, Plan, Point};
use crate::sweep::search::{Probe, Search};
use anyhow::Result;
use fathom_spec::record::RunId;
use std::collections::HashSet;

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
    /// The runs that the sweep was recorded with the last time.
    recorded: Option<HashSet<RunId>>,
}

impl<'p> Course<'p> {
    pub fn new(plan: &'p Plan, identities: Identities) -> Course<'p> {
        Course { plan, identities, jobs: Vec::new(), recorded: None }
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

    pub fn plan(&self) -> &'p Plan {
        self.plan
    }

    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    fn job(&self, at: usize, point: Identified, fallbacks: usize) -> Job {
        let rank = self.plan.schedule.rank(&self.plan.points[at]);
        Job { point, at, fallbacks, stop_at: None, rank }
    }

    /// Records the sweep as it is known now.
    fn record(&mut self, driver: &mut Driver) -> Result<()> {
        let points = self.jobs.iter().map(|job| &job.point);
        driver.record(self.plan, points, self.recorded.as_ref())?;
        self.recorded = Some(self.jobs.iter().map(Job::run_id).collect());
        Ok(())
    }

    /// What stands in for a job whose run ran out of memory, if there is something left. A fallback that is the run of a
    /// point already answers by that one.
    pub fn fallback(&mut self, driver: &mut Driver, job: &Job) -> Result<Option<Job>> {
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

    pub fn by_fallback(&self, driver: &Driver) -> Result<usize> {
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
