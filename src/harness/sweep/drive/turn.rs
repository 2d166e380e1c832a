//! The turn: jobs off the queue into workers, workers to their ends, until nothing is left.

use super::budget::{self, Account, Turnstile};
use super::conclude::Start;
use super::course::Strategy;
use super::pause::Pause;
use super::queue::Queue;
use super::shares::Placed;
use super::{Driver, Ended, Job, Summary, pause, wait};
use crate::run::{self, Running};
use crate::store::Status;
use crate::sweep::plan::Plan;
use crate::sweep::schedule::Budget;
use anyhow::Result;
use fathom_spec::record::{Event, RunId};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the logs of running workers are looked at. An exit is seen at once.
const POLL: Duration = Duration::from_millis(50);

/// How often the store takes in what running workers have logged, so that it can be looked at meanwhile.
const INGEST: Duration = Duration::from_secs(1);

/// How often runs that another process holds, or whose room one has, are tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How many times as long as a look for room has taken it is before the next.
const REST: u32 = 10;

/// How long another harness may look for room before people are told.
const LONG_LOOK: Duration = Duration::from_secs(2);

/// A worker with what it works on.
struct AtWork {
    job: Job,
    worker: Running,
    exit: Option<OwnedFd>,
    last: Option<Event>,
    /// Its line of the watcher.
    line: usize,
    /// It was asked to stop for a pause, and goes on afterwards.
    paused: bool,
}

/// The state of a sweep that is driven.
pub(super) struct Turn<'t, 'a> {
    driver: &'t mut Driver<'a>,
    plan: Option<&'t Plan>,
    strategy: &'t mut dyn Strategy,
    queue: Queue,
    running: Vec<AtWork>,
    summary: Summary,
    reused: HashSet<RunId>,
    told_to_stop: usize,
    pause: Option<Pause>,
    retry_at: Instant,
    said_that_it_waits: bool,
    said_that_it_is_crowded: bool,
    /// Since when another harness has been looking for room at every try.
    shut_out: Option<Instant>,
    said_that_it_is_shut_out: bool,
    ingested: Instant,
    /// Whether the watcher knows of the sweep.
    begun: bool,
}

impl<'t, 'a> Turn<'t, 'a> {
    pub fn new(
        driver: &'t mut Driver<'a>,
        plan: Option<&'t Plan>,
        strategy: &'t mut dyn Strategy,
    ) -> Turn<'t, 'a> {
        Turn {
            driver,
            plan,
            strategy,
            queue: Queue::default(),
            running: Vec::new(),
            summary: Summary::default(),
            reused: HashSet::new(),
            told_to_stop: 0,
            pause: None,
            retry_at: Instant::now(),
            said_that_it_waits: false,
            said_that_it_is_crowded: false,
            shut_out: None,
            said_that_it_is_shut_out: false,
            ingested: Instant::now(),
            begun: false,
        }
    }

    /// With runs that are known to be done.
    pub fn after(mut self, done: Vec<RunId>) -> Turn<'t, 'a> {
        self.reused.extend(done);
        self
    }

    /// Runs `jobs` and what follows each of them.
    pub fn run(mut self, jobs: Vec<Job>) -> Result<Summary> {
        // What an earlier harness left as running, and whose process is gone, is not running while it waits for its turn.
        run::settle(self.driver.store, super::now())?;
        for job in jobs {
            self.admit(job, false)?;
        }
        let reused = self.reused.len();
        self.driver.watcher.begin(reused + self.queue.len(), reused);
        self.begun = true;
        loop {
            let interrupts = self.driver.interrupts.load(Ordering::Relaxed);
            self.obey_pause()?;
            if interrupts == 0 && self.pause.is_none() && Instant::now() >= self.retry_at {
                self.start_what_can()?;
            }
            self.obey_interrupts(interrupts)?;
            let over = self.queue.is_empty() || interrupts > 0 || self.summary.left > 0;
            if self.running.is_empty() && over {
                break;
            }
            wait::for_any(self.running.iter().filter_map(|at| at.exit.as_ref()), self.patience());
            self.look_at_workers()?;
            self.ingest();
        }
        self.driver.watcher.finish();
        self.sum_up()
    }

    /// How long to wait for an exit at most. Where the kernel has no descriptor for one, it is asked for more often.
    fn patience(&self) -> Duration {
        match self.running.iter().all(|at| at.exit.is_some() || at.worker.id().is_none()) {
            true => POLL,
            false => POLL / 10,
        }
    }

    /// Puts a job in the queue; one that is done is passed over, and what follows from it looked at in its place.
    fn admit(&mut self, job: Job, next: bool) -> Result<()> {
        let mut open = vec![job];
        while let Some(job) = open.pop() {
            match self.driver.is_done(&job) {
                Ok(false) => {
                    if self.begun {
                        self.driver.watcher.more(1, 0);
                    }
                    if next {
                        self.queue.push_next(job)
                    } else {
                        self.queue.push(job)
                    }
                    continue;
                }
                Ok(true) => {
                    self.reused.insert(job.run_id());
                    if self.begun {
                        self.driver.watcher.more(1, 1);
                    }
                }
                // A damaged log is this run's trouble alone.
                Err(error) => {
                    let ended = self.driver.damaged(&job.point, &error)?;
                    self.note(ended);
                    continue;
                }
            }
            open.extend(self.strategy.after(self.driver, &job)?);
        }
        Ok(())
    }

    /// Takes up what follows a job that has come to its end, before all that waits: a search is brought to its end before
    /// another begins.
    fn go_on(&mut self, job: &Job) -> Result<()> {
        for job in self.strategy.after(self.driver, job)?.into_iter().rev() {
            self.admit(job, true)?;
        }
        Ok(())
    }

    /// A run's last ending is the one that counts.
    fn note(&mut self, ended: Ended) {
        self.summary.ended.retain(|other| other.run_id != ended.run_id);
        self.summary.ended.push(ended);
    }

    /// Starts jobs in the queue's order as far as there is room. One that finds no room now, or that the budget does not
    /// allow, lets those behind it pass.
    fn start_what_can(&mut self) -> Result<()> {
        let (mut held, mut index, tries) = (0, 0, self.queue.len());
        self.summary.left = 0;
        // What the budget allows is looked up once for each run that is begun; nobody else begins one in between.
        let turnstile = self.turnstile(tries)?;
        let mut account: Option<Account> = None;
        let (mut look, mut is_crowded) = (None, false);
        let begun = Instant::now();
        for _ in 0..tries {
            if self.running.len() >= self.driver.jobs {
                break;
            }
            if turnstile.is_some() && account.is_none() {
                account = self.account()?;
            }
            let Some(job) = self.queue.get(index) else { break };
            if account.as_ref().is_some_and(|account| !account.allows(self.driver, job)) {
                self.summary.left += 1;
                self.summary.beside = account.as_ref().map_or(0, |account| account.elsewhere);
                index += 1;
                continue;
            }
            if let Some(shares) = &mut self.driver.shares {
                let config = &job.point.point.config;
                let placed = shares.place(&mut look, &job.run_id(), config, self.driver.watcher);
                if placed != Placed::NotNow {
                    self.shut_out = None;
                }
                match placed {
                    Placed::Taken => {}
                    Placed::NoRoom => {
                        is_crowded |= shares.has_others();
                        if !self.said_that_it_is_crowded && shares.is_kept_out(config) {
                            self.said_that_it_is_crowded = true;
                            self.driver.watcher.crowded(&shares.others());
                        }
                        index += 1;
                        continue;
                    }
                    Placed::NotNow => {
                        is_crowded = true;
                        let since = *self.shut_out.get_or_insert_with(Instant::now);
                        if since.elapsed() > LONG_LOOK
                            && !std::mem::replace(&mut self.said_that_it_is_shut_out, true)
                        {
                            self.driver.watcher.warning(&format!(
                                "another harness is looking for room on the devices and does not come to an end\n  help: \
                                 `fuser {}` says which process it is",
                                shares.lock_path().display()
                            ));
                        }
                        break;
                    }
                }
            }
            let job = self.queue.take(index);
            account = None;
            let start = self.driver.start(&job);
            if let Some(shares) = &mut self.driver.shares
                && !matches!(start, Ok(Start::Started(_)))
            {
                shares.release(&job.run_id());
            }
            match start? {
                Start::Started(worker) => {
                    let line = self.driver.watcher.started(&job.point);
                    let exit = worker.id().and_then(wait::exit_of);
                    self.running.push(AtWork {
                        job,
                        worker,
                        exit,
                        last: None,
                        line,
                        paused: false,
                    });
                }
                Start::Done => {
                    self.summary.elsewhere += 1;
                    self.driver.watcher.done_elsewhere();
                    self.go_on(&job)?;
                }
                Start::Held => {
                    held += 1;
                    self.queue.put_back(job);
                }
            }
        }
        if let Some(slurm) = &self.driver.slurm {
            slurm.submit()?;
        }
        // Only where nothing is at work that could make room is a job left for good.
        if !self.running.is_empty() || self.summary.left < self.queue.len() {
            self.summary.left = 0;
        }
        if held > 0 || is_crowded {
            self.retry_at = Instant::now() + RETRY.max(begun.elapsed() * REST);
        }
        if held > 0
            && self.running.is_empty()
            && !std::mem::replace(&mut self.said_that_it_waits, true)
        {
            self.driver.watcher.waiting(held);
        }
        Ok(())
    }

    /// Where there is a budget, and something waits for it.
    fn turnstile(&self, waiting: usize) -> Result<Option<Turnstile>> {
        let has_room = waiting > 0 && self.running.len() < self.driver.jobs;
        match self.plan.filter(|plan| plan.schedule.budget != Budget::default() && has_room) {
            Some(plan) => budget::turnstile(self.driver.results, &plan.name).map(Some),
            None => Ok(None),
        }
    }

    fn account(&mut self) -> Result<Option<Account>> {
        let at_work: Vec<&Job> = self.running.iter().map(|at| &at.job).collect();
        self.plan.map(|plan| Account::of(self.driver, plan, &at_work)).transpose()
    }

    fn obey_interrupts(&mut self, interrupts: usize) -> Result<()> {
        if interrupts <= self.told_to_stop {
            return Ok(());
        }
        self.summary.interrupted = true;
        for at in &mut self.running {
            // It does not go on by itself any more.
            at.paused = false;
            if interrupts == 1 { at.worker.ask_to_stop()? } else { at.worker.kill() }
        }
        self.driver.watcher.interrupted(interrupts, self.running.len());
        self.told_to_stop = interrupts;
        Ok(())
    }

    fn obey_pause(&mut self) -> Result<()> {
        let Some(plan) = self.plan else { return Ok(()) };
        let asked = pause::asked(self.driver.results, &plan.name);
        if asked == self.pause {
            return Ok(());
        }
        match asked {
            None => self.driver.watcher.continued(),
            Some(_) => self.driver.watcher.paused(&plan.name, self.running.len()),
        }
        self.pause = asked;
        if asked == Some(Pause::Now) && self.told_to_stop == 0 {
            for at in &mut self.running {
                at.worker.ask_to_stop()?;
                at.paused = true;
            }
        }
        Ok(())
    }

    /// Reads what workers have logged, and brings those that have exited to their ends.
    fn look_at_workers(&mut self) -> Result<()> {
        let mut index = 0;
        while index < self.running.len() {
            let AtWork { job, worker, last, line, .. } = &mut self.running[index];
            // The exit is asked for first: what was written before it is then all there.
            let exit = worker.try_wait()?;
            match worker.new_events() {
                Ok(events) => {
                    for event in events {
                        self.driver.watcher.event(*line, &job.point, &event);
                        *last = Some(event);
                    }
                }
                // What can't be read can't be supervised; its exit is waited for below.
                Err(_) => worker.kill(),
            }
            match exit {
                Some(exit) => {
                    let at = self.running.remove(index);
                    self.end(at, exit)?;
                }
                None => index += 1,
            }
        }
        Ok(())
    }

    fn end(&mut self, at: AtWork, exit: ExitStatus) -> Result<()> {
        let AtWork { job, worker, last, line, paused, .. } = at;
        if let Some(shares) = &mut self.driver.shares {
            shares.release(&job.run_id());
        }
        // There is room now.
        self.retry_at = Instant::now();
        let logged = last.is_some_and(|event| event.kind.ending().is_some());
        let verdict = (!logged).then(|| worker.verdict(exit));
        let ended = self.driver.conclude(&job, verdict)?;
        // Only now is its lock free: who finds it free finds how the run ended.
        drop(worker);
        self.driver.watcher.ended(line, &ended);
        if paused && ended.status == Status::Stopped && ended.at_rung.is_none() {
            self.driver.watcher.more(1, 0);
            self.queue.push_next(job);
            return Ok(());
        }
        self.note(ended);
        self.go_on(&job)
    }

    fn ingest(&mut self) {
        if self.ingested.elapsed() < INGEST {
            return;
        }
        for at in &self.running {
            // What is damaged is said when the run ends.
            let _ = self.driver.store.ingest_run(&at.job.run_id());
        }
        self.ingested = Instant::now();
    }

    fn sum_up(mut self) -> Result<Summary> {
        let now: HashSet<&RunId> = self.summary.ended.iter().map(|ended| &ended.run_id).collect();
        self.summary.reused = self.reused.iter().filter(|run| !now.contains(run)).count();
        self.summary.by_fallback = self.strategy.by_fallback(self.driver)?;
        let Some(plan) = self.plan else { return Ok(self.summary) };
        if plan.schedule.budget != Budget::default() {
            self.summary.budget = Some(super::spent(plan, self.driver.store)?);
        }
        Ok(self.summary)
    }
}
