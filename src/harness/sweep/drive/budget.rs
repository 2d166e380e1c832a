//! What a sweep may still take, counted over all runs of its points, whenever and by whomever they were made.

use super::Job;
use crate::store::Store;
use crate::sweep::schedule::Budget;
use anyhow::Result;
use fathom_spec::units::{Tokens, format_seconds};

/// What was taken, or is bound to be by what is at work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Spent {
    pub seconds: f64,
    pub tokens: u64,
    pub runs: u64,
}

impl Spent {
    /// What the points of a sweep have taken so far.
    pub fn so_far(store: &Store, sweep: &str) -> Result<Spent> {
        let (seconds, tokens, runs) = store.taken_by_sweep(sweep)?;
        Ok(Spent { seconds, tokens, runs })
    }

    /// Adds what a job has still to do. Its seconds are those of its tokens, at the pace of what was done before.
    fn and(self, store: &Store, job: &Job, pace: f64) -> Result<Spent> {
        let run = store.known_run(&job.run_id())?;
        let tokens = job.goal().saturating_sub(run.tokens);
        Ok(Spent {
            seconds: self.seconds + pace * tokens as f64,
            tokens: self.tokens + tokens,
            runs: self.runs + u64::from(run.attempt == 0),
        })
    }

    fn is_within(&self, budget: &Budget) -> bool {
        budget.seconds.is_none_or(|most| self.seconds <= most)
            && budget.tokens.is_none_or(|most| self.tokens <= most)
            && budget.runs.is_none_or(|most| self.runs <= most)
    }
}

/// Whether `job` may begin beside those at work without more being taken in the end than the budget allows.
pub(super) fn allows<'j>(
    budget: &Budget,
    store: &Store,
    sweep: &str,
    at_work: impl Iterator<Item = &'j Job>,
    job: &'j Job,
) -> Result<bool> {
    if *budget == Budget::default() {
        return Ok(true);
    }
    let so_far = Spent::so_far(store, sweep)?;
    if budget.seconds.is_some_and(|most| so_far.seconds >= most) {
        return Ok(false);
    }
    let pace = if so_far.tokens > 0 { so_far.seconds / so_far.tokens as f64 } else { 0.0 };
    let mut spent = so_far;
    for job in at_work.chain([job]) {
        spent = spent.and(store, job, pace)?;
    }
    Ok(spent.is_within(budget))
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
