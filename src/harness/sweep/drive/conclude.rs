//! How a job stands: whether it is done before it is begun, whether it can be begun, and what became of it.

use super::{Driver, Ended, Identified, Job};
use crate::run::{self, Running, slurm};
use crate::store::{RunRecord, Status};
use anyhow::{Result, bail};
use fathom_spec::record::{RunPaths, STOP_AT_TOKENS};

/// What came of trying to start a run.
pub(super) enum Start {
    Started(Running),
    /// It has its result by now.
    Done,
    /// Another supervisor has it, or the worker of one that died is still writing its checkpoint.
    Held,
}

impl Driver<'_> {
    /// Whether a job is done, by the store or by its run's own log (a store may be younger than the runs).
    pub(super) fn is_done(&mut self, job: &Job) -> Result<bool> {
        // A database that was made anew meanwhile knows it no more.
        self.record_run(&job.point)?;
        let run_id = job.run_id();
        let status = match self.store.ingest_run(&run_id) {
            Ok(ingested) => ingested.status,
            // Its result was read before the log was damaged, and is whole.
            Err(error) => match self.store.status(&run_id)? {
                Some(status) if status.is_result() && !self.again.contains(&status) => {
                    self.watcher.damaged(&job.point, &error);
                    status
                }
                _ => return Err(error),
            },
        };
        if status.is_result() {
            return Ok(!self.again.contains(&status));
        }
        let Some(rung) = job.stop_at else { return Ok(false) };
        let tokens = self.store.known_run(&job.run_id())?.tokens;
        // At the rung itself the log has to say that there is a checkpoint to go on from; past it there was one.
        Ok(tokens > 0 && (tokens >= rung && status == Status::Stopped || passed(job, tokens)))
    }

    /// Starts the worker of a job, if nobody else has its run.
    pub(super) fn start(&mut self, job: &Job) -> Result<Start> {
        let point = &job.point;
        let paths = RunPaths::in_results(self.results, &point.run_id());
        let Some(lock) = run::lock(&paths)? else { return Ok(Start::Held) };
        // Between the look at the store and the lock, its last holder may have finished it.
        if self.is_done(job)? {
            return Ok(Start::Done);
        }
        if let Some(slurm) = &self.slurm
            && let Some(task) = slurm.attach(&paths)?
        {
            return Ok(Start::Started(Running::of_task(paths, lock, task)));
        }
        if let (None, Some(array)) = (&self.slurm, slurm::array_of(&paths)) {
            bail!(
                "{}: expected a run that nobody has, found Slurm's job {array} at it\n  help: --launcher slurm goes on with it, or \
                 begins it anew where the job has ended",
                paths.folder.display()
            );
        }
        run::prepare(&paths, &point.point.config, &point.identity)?;
        let run_id = point.run_id();
        let shares = self.shares.as_ref();
        let mut environment = shares.map_or(Vec::new(), |shares| shares.environment(&run_id));
        environment.extend(job.stop_at.map(|rung| (STOP_AT_TOKENS, rung.to_string())));
        if let Some(slurm) = &self.slurm {
            let queued = Running::queued(&self.worker, paths, lock, &environment, slurm)?;
            return Ok(Start::Started(queued));
        }
        let last_seq = self.store.known_run(&run_id)?.last_seq;
        let share = shares.and_then(|shares| shares.lock_of(&run_id));
        let running = Running::start(&self.worker, paths, lock, share, &environment)?;
        let config = &point.point.config;
        self.store.begin_run(&RunRecord { identity: &point.identity, config }, last_seq)?;
        Ok(Start::Started(running))
    }

    /// Takes in the rest of a run's log, and `verdict` where the log has no ending of this attempt.
    pub(super) fn conclude(
        &mut self,
        job: &Job,
        verdict: Option<(Status, String)>,
    ) -> Result<Ended> {
        let run_id = job.run_id();
        if let Err(error) = self.store.ingest_run(&run_id) {
            return self.damaged(&job.point, &error);
        }
        if let Some((status, detail)) = &verdict {
            self.store.set_status(&run_id, *status, Some(detail))?;
        }
        let run = self.store.known_run(&run_id)?;
        let (label, seed) = (job.point.point.label.clone(), job.point.point.seed);
        let at_rung = job.stop_at.filter(|at| run.status == Status::Stopped && run.tokens >= *at);
        Ok(Ended { label, seed, run_id, status: run.status, detail: run.status_detail, at_rung })
    }

    /// The end of a run whose log can't be read: it failed, and says how to begin it anew.
    pub(super) fn damaged(&mut self, point: &Identified, error: &anyhow::Error) -> Result<Ended> {
        let run_id = point.run_id();
        let what = run::fail_as_damaged(self.store, &run_id, error)?;
        let detail = format!(
            "{what}\n  help: put back its log from a backup, or remove runs/{run_id} of the results to begin it anew"
        );
        let (label, seed) = (point.point.label.clone(), point.point.seed);
        let (status, detail) = (Status::Failed, Some(detail));
        Ok(Ended { label, seed, run_id, status, detail, at_rung: None })
    }
}

/// Whether a run that has seen `tokens` has gone on from the rung that a job is to reach: a step past the one that reached it.
pub(super) fn passed(job: &Job, tokens: u64) -> bool {
    let step = job.point.point.config.tokens_per_step();
    job.stop_at.is_some_and(|rung| tokens >= rung + step)
}
