//! What waits for its turn, in the order of the sweep's priorities.

use super::Identified;
use fathom_spec::record::RunId;
use std::collections::VecDeque;

/// A run that is to be brought somewhere: to its end, or to a rung on the way.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub point: Identified,
    /// The place of the plan's point that this answers.
    pub at: usize,
    /// How many fallbacks the point has had; this is the last of them.
    pub fallbacks: usize,
    /// Tokens at which the run is stopped; `None` is its end.
    pub stop_at: Option<u64>,
    /// Lower comes first.
    pub rank: Vec<f64>,
}

impl Job {
    pub fn run_id(&self) -> RunId {
        self.point.run_id()
    }

    /// Tokens at which the job is done.
    pub fn goal(&self) -> u64 {
        let total = self.point.point.config.train.total_tokens.0;
        self.stop_at.map_or(total, |rung| rung.min(total))
    }
}

/// Jobs by rank, and among equals in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// After all of its rank.
    pub fn push(&mut self, job: Job) {
        let at = self.jobs.iter().position(|other| other.rank > job.rank);
        self.jobs.insert(at.unwrap_or(self.jobs.len()), job);
    }

    /// Before all of its rank: what follows a run comes before another is begun.
    pub fn push_next(&mut self, job: Job) {
        let at = self.jobs.iter().position(|other| other.rank >= job.rank);
        self.jobs.insert(at.unwrap_or(self.jobs.len()), job);
    }

    pub fn get(&self, index: usize) -> Option<&Job> {
        self.jobs.get(index)
    }

    pub fn take(&mut self, index: usize) -> Job {
        self.jobs.remove(index).expect("a job that is there")
    }

    /// To the end of those of its rank: it was tried and could not be had.
    pub fn put_back(&mut self, job: Job) {
        self.push(job);
    }
}
