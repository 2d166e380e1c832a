//! What a run is asked for between two steps, and what it does about it.

use super::schedule::Schedule;
use super::{Ending, Training};
use crate::facts::Sink;
use anyhow::{Result, bail};
use fathom_spec::record::EventKind;
use fathom_spec::record::control::Command;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// One thing that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub command: Command,
    /// Who asks, for the ending: `stop was asked for`.
    pub reason: String,
    /// The command file that wants an answer; a signal wants none.
    pub request: Option<String>,
}

impl Order {
    /// The answer to it.
    pub fn answer(&self, outcome: impl Into<String>) -> EventKind {
        EventKind::Control {
            command: self.command.to_string(),
            outcome: outcome.into(),
            request: self.request.clone(),
        }
    }

    /// The ending of a run that was asked to end.
    pub fn ending(&self, step: u64) -> Ending {
        Ending::Stopped { step, reason: self.reason.clone() }
    }
}

/// Orders in the turn they came in, with those that came while something was done that only some of them interrupt.
pub struct Orders<'n> {
    next: &'n mut dyn FnMut() -> Option<Order>,
    waiting: VecDeque<Order>,
}

impl<'n> Orders<'n> {
    pub fn new(next: &'n mut dyn FnMut() -> Option<Order>) -> Orders<'n> {
        Orders { next, waiting: VecDeque::new() }
    }

    /// Answers all that is asked for where the run ends anyway: `saved` says what checkpoint there is, `reason` why it ends.
    pub fn answer_late(&mut self, t: &Training, saved: &str, reason: &str, sink: &mut impl Sink) {
        // A signal is no question, and comes again whenever it is asked for.
        let late: Vec<Order> = self.by_ref().take_while(|order| order.request.is_some()).collect();
        self.waiting.extend(late);
        self.answer_waiting(t, saved, reason, sink);
    }

    /// The same of what came while something was done that only the end interrupts.
    pub fn answer_waiting(
        &mut self,
        t: &Training,
        saved: &str,
        reason: &str,
        sink: &mut impl Sink,
    ) {
        for order in self.waiting.drain(..) {
            let outcome = refused_save(t, order.command).unwrap_or_else(|| match order.command {
                Command::StartAnnealing => format!("refused: {reason}"),
                _ => format!("{reason}; {saved}"),
            });
            sink.event(order.answer(outcome));
        }
    }

    /// Whether the run is asked to end. Nothing is lost by asking: what came is taken later.
    pub fn ask_for_the_end(&mut self) -> bool {
        while !self.waiting.iter().any(|order| order.command.ends_the_run()) {
            let Some(order) = (self.next)() else { return false };
            self.waiting.push_back(order);
        }
        true
    }
}

impl Iterator for Orders<'_> {
    type Item = Order;

    fn next(&mut self) -> Option<Order> {
        self.waiting.pop_front().or_else(|| (self.next)())
    }
}

/// The answer to who asks for a checkpoint of a run that writes none; it goes on as it was.
pub fn refused_save(t: &Training, command: Command) -> Option<String> {
    let reason = unsaved(t).filter(|_| matches!(command, Command::Save | Command::SaveStop))?;
    Some(format!("refused: no checkpoint can be written: {reason}"))
}

/// Why a run writes no checkpoints, if it writes none.
pub fn unsaved(t: &Training) -> Option<&'static str> {
    // A probe trains nothing worth keeping.
    if t.config.run.probe_layers.is_some() {
        return Some("run.probe_layers leaves weights that mean nothing");
    }
    (!t.config.train.save_checkpoints).then_some("train.save_checkpoints is `false`")
}

/// Begins the decay at `position`, and says so in the outcome; the fact is what a resumed run goes on by.
pub fn start_annealing(
    schedule: &mut Schedule,
    position: u64,
    step: u64,
) -> (String, Option<Value>) {
    let before = schedule.decay_start();
    if let Err(error) = schedule.start_decay(position) {
        return (format!("refused: {error}"), None);
    }
    let begins = schedule.decay_start().expect("a schedule that decays");
    if before.is_some_and(|before| before <= position) {
        let outcome =
            format!("refused: the decay has begun already, at {begins} {}", schedule.unit());
        return (outcome, None);
    }
    let outcome = format!("the decay begins at {begins} {}, after step {step}", schedule.unit());
    (outcome, Some(fact(schedule, step)))
}

/// Takes up a decay that an earlier attempt was told to begin, or that this one is told to begin where it goes on.
///
/// # Errors
///
/// When it is to begin and there is nothing to go on from, or the schedule has no decay.
pub fn resume_annealing(
    t: &Training,
    schedule: &mut Schedule,
    position: u64,
    step: u64,
) -> Result<Option<Value>> {
    if let Some(begun) = t.annealing_since {
        schedule.start_decay(begun)?;
        return Ok(None);
    }
    if !t.config.run.start_annealing {
        return Ok(None);
    }
    if step == 0 {
        bail!(
            "run.start_annealing: expected a checkpoint to go on from, found none\n  help: train first, then `fathom control \
             save-stop`; for a run that decays from its start, set train.schedule"
        );
    }
    schedule.start_decay(position)?;
    Ok(Some(fact(schedule, step)))
}

fn fact(schedule: &Schedule, step: u64) -> Value {
    json!({ "decay_start": schedule.decay_start(), "unit": schedule.unit(), "step": step })
}
