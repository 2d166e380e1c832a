//! Training: batches in, steps out. [`train`] is the loop; each noun in it has a file.
//!
//! Everything that happens is told to the [`Sink`]; the loop knows nothing of files but its checkpoints. What it is asked for
//! from outside comes as an [`Order`] between two steps.

pub mod checkpoint;
pub mod execute;
pub mod layered;
pub mod optimizer;
pub mod orders;
pub mod schedule;
pub mod step;

use crate::eval;
use crate::facts::Sink;
use crate::model::Model;
use crate::torch;
use anyhow::Result;
use checkpoint::TrainerState;
use execute::{Engine, Executor, Outcome};
use fathom_data::dataset::{Batch, Batches, Dataset};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::RunConfig;
use fathom_spec::plan::Settings;
use fathom_spec::record::control::Command;
use fathom_spec::record::{ANNEALING, EventKind, RunPaths};
use fathom_spec::units::Tokens;
use layered::Layered;
use optimizer::Optimizer;
use orders::{Order, Orders, refused_save, unsaved};
use schedule::Schedule;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;
use step::{Plan, Stream};
use tch::Tensor;
use torch::Event;

/// Steps that the running average of the loss is over.
const AVERAGE_STEPS: usize = 10;

/// Nats a token that the average has to have risen: near zero (a small corpus by heart) a ratio says nothing.
const LEAST_RISE: f64 = 1.0;

/// What a run trains with. All of it is made by the caller, so that a test can make it too.
pub struct Training<'a> {
    pub config: &'a RunConfig,
    pub paths: &'a RunPaths,
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    pub train: Arc<Dataset>,
    /// Blocks of the evaluated split; none when the split is empty.
    pub held_out: Option<&'a Dataset>,
    /// How the layered engine carries out steps; `None` on the plain one.
    pub settings: Option<Settings>,
    /// Where an earlier attempt was told to begin the decay of the learning rate.
    pub annealing_since: Option<u64>,
    pub progress: &'a Progress,
}

/// Where the run is, for whoever has to say where it ended.
#[derive(Debug, Default)]
pub struct Progress {
    pub step: Cell<u64>,
    pub phase: Cell<&'static str>,
    /// `None` before one is chosen.
    pub device: Cell<Option<tch::Device>>,
    /// Tokens at which the run is to stop with a checkpoint, short of its end; it goes on from there another time.
    pub stop_at_tokens: Cell<Option<u64>>,
}

/// How training ended, when it did not fail.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    Finished { step: u64, tokens: u64 },
    Stopped { step: u64, reason: String },
    Diverged { step: u64, loss: f64, reason: String },
}

/// Trains until the budget is spent, resuming from the run's last checkpoint where there is one.
///
/// `next_order` is asked between steps: before the first, and after each before anything else that is due then. What ends the
/// run also cuts an evaluation short, which is made up for when the run goes on.
///
/// # Errors
///
/// When the training split is empty, a checkpoint can't be read or written, or `run.start_annealing` asks for what can't be.
pub fn train(
    t: &Training,
    sink: &mut impl Sink,
    next_order: &mut dyn FnMut() -> Option<Order>,
) -> Result<Ending> {
    let config = &t.config.train;
    let mut orders = Orders::new(next_order);
    let mut optimizer = optimizer(t);
    let mut schedule = Schedule::new(
        &config.schedule,
        config.learning_rate,
        config.total_tokens.0,
        t.config.tokens_per_step(),
    );
    let mut batches = Batches::new(t.train.clone(), config.micro_batch_size, config.seed)?;
    let mut state = TrainerState::default();
    if let Some((_, folder)) = t.paths.latest_checkpoint() {
        state = checkpoint::load(&folder, t.model, &mut optimizer)?;
        batches.seek(state.position)?;
    }
    let mut executor = Executor::new(engine(t), t.model, config);
    describe(t, &optimizer, &schedule, &executor, sink);
    let position = schedule.position(state.tokens, state.step);
    let annealing = orders::resume_annealing(t, &mut schedule, position, state.step)?;
    if let Some(fact) = annealing {
        sink.fact(ANNEALING, fact);
    }

    let mut peaks = PhasePeaks::default();
    let mut last_checkpoint = state.step;
    let mut evaluations = 0;
    let mut stepped = false;
    loop {
        let done = spent(&state, t.config);
        if !done && t.progress.stop_at_tokens.get().is_some_and(|rung| state.tokens >= rung) {
            // What the rungs are compared by is not cut short: the run ends here, whoever asks for it.
            split_loss(t, state.step, sink, None)?;
            let saved = save(t, &optimizer, &state, &mut last_checkpoint, sink)?;
            let reason = format!("{} tokens are reached", Tokens(state.tokens));
            orders.answer_late(t, &saved, &reason, sink);
            return Ok(Ending::Stopped { step: state.step, reason });
        }
        let every = t.config.eval.every_steps;
        let is_evaluated = every > 0 && state.step.is_multiple_of(every) && !done;
        state.evaluation_due = is_evaluated && (stepped || state.evaluation_due);
        for order in orders.by_ref() {
            if let Some(refusal) = refused_save(t, order.command) {
                sink.event(order.answer(refusal));
                continue;
            }
            let mut outcome = String::new();
            match order.command {
                Command::Save | Command::SaveStop | Command::Stop => {
                    outcome = save(t, &optimizer, &state, &mut last_checkpoint, sink)?;
                }
                Command::Abort => outcome.push_str("no checkpoint was written"),
                Command::StartAnnealing => {
                    let position = schedule.position(state.tokens, state.step);
                    let (said, fact) = orders::start_annealing(&mut schedule, position, state.step);
                    if let Some(fact) = fact {
                        sink.fact(ANNEALING, fact);
                    }
                    outcome = said;
                }
            }
            if order.request.is_some() {
                sink.event(order.answer(outcome));
            }
            if order.command.ends_the_run() {
                return Ok(order.ending(state.step));
            }
        }
        if state.evaluation_due {
            if !split_loss(t, state.step, sink, Some(&mut orders))? {
                continue;
            }
            evaluations += 1;
            state.evaluation_due = false;
        }
        if stepped {
            let every = config.checkpoint_every_steps;
            if every > 0 && state.step.is_multiple_of(every) {
                save(t, &optimizer, &state, &mut last_checkpoint, sink)?;
            }
        }
        if done {
            // An attempt that had nothing left to train knows nothing of how it was.
            if stepped || evaluations > 0 {
                sink.fact("eval.every_steps", evaluations);
            }
            sink.fact("train.total_tokens", state.tokens);
            sink.fact("train.max_steps", state.step);
            if let Some(kernels) = executor.attention_kernels().filter(|_| stepped) {
                sink.fact("train.attention_kernels", kernels);
            }
            peaks.describe(sink);
            if !split_loss(t, state.step, sink, Some(&mut orders))? {
                continue;
            }
            let saved = save(t, &optimizer, &state, &mut last_checkpoint, sink)?;
            orders.answer_waiting(t, &saved, "training is done", sink);
            return Ok(Ending::Finished { step: state.step, tokens: state.tokens });
        }

        let began = Instant::now();
        t.progress.step.set(state.step + 1);
        let learning_rate = schedule.learning_rate(schedule.position(state.tokens, state.step));
        let micro_batches: Vec<Batch> =
            batches.by_ref().take(config.gradient_accumulation_steps).collect();
        let tokens: usize = micro_batches.iter().map(|batch| batch.input_ids.len()).sum();
        let loss_tokens: usize = micro_batches.iter().map(|batch| batch.loss_tokens).sum();

        if !stepped {
            describe_batches(&micro_batches, sink);
            stepped = true;
        }

        let mut streams = micro_batches.iter().map(|batch| stream(batch, t.model));
        let mut watch = |phase| peaks.enter(t, phase, sink);
        let Outcome { loss, grad_norm } =
            executor.step(&mut streams, loss_tokens, &mut optimizer, learning_rate, &mut watch)?;
        peaks.leave(t, sink);
        let end = Event::record_time(t.model.device);

        state.step += 1;
        state.tokens += tokens as u64;
        state.position = batches.position();
        let step_seconds = began.elapsed().as_secs_f64();
        sink.event(EventKind::Step {
            step: state.step,
            tokens: state.tokens,
            loss,
            learning_rate,
            grad_norm,
            step_seconds,
            tokens_per_second: tokens as f64 / step_seconds,
            peak_allocated: peaks.step.peak_allocated,
            peak_reserved: peaks.step.peak_reserved,
        });
        peaks.finish(&end);
        if let Some(reason) = diverged(&mut state, loss, grad_norm, config.max_loss_ratio) {
            return Ok(Ending::Diverged { step: state.step, loss, reason });
        }
    }
}

/// The optimizer of the run, its state as at the start.
fn optimizer(t: &Training) -> Optimizer {
    let config = &t.config.train;
    let parameters = t.model.parameters();
    let mut optimizer = Optimizer::on_device(&config.optimizer, &parameters, t.model.device);
    if config.stochastic_rounding() {
        optimizer.round_stochastically(config.seed);
    }
    if let Some(settings) = t.settings {
        optimizer.step_in_blocks(settings.step_elements as i64);
    }
    optimizer
}

/// The engine of the run.
fn engine<'a>(t: &Training<'a>) -> Engine<'a> {
    let config = &t.config.train;
    let Some(settings) = t.settings else {
        return Engine::Plain(Plan {
            loss_tile_tokens: config.loss_tile_tokens,
            activation_checkpointing: config.activation_checkpointing,
        });
    };
    let mut layered = Layered::new(t.model, t.config.model.attention, settings);
    if let Some(layers) = t.config.run.probe_layers {
        layered.probe(layers);
    }
    Engine::Layered(Box::new(layered))
}

fn spent(state: &TrainerState, config: &RunConfig) -> bool {
    let steps = config.train.max_steps.is_some_and(|most| state.step >= most);
    steps || state.tokens >= config.train.total_tokens.0
}

/// Records what the leaves were given, once they exist.
fn describe(
    t: &Training,
    optimizer: &Optimizer,
    schedule: &Schedule,
    executor: &Executor,
    sink: &mut impl Sink,
) {
    for (name, value) in optimizer.describe().into_iter().chain(schedule.describe()) {
        sink.fact(&name, value);
    }
    for (name, value) in executor.describe() {
        sink.fact(name, value);
    }
    sink.fact("train.stochastic_rounding", optimizer.rounds_stochastically());
    let config = &t.config.train;
    sink.fact("train.max_loss_ratio", config.max_loss_ratio);
    sink.fact("train.save_checkpoints", config.save_checkpoints);
    sink.fact("train.checkpoint_every_steps", config.checkpoint_every_steps);
    sink.fact("train.keep_checkpoints", config.keep_checkpoints as u64);
}

/// Records the first step's batches as they were drawn.
fn describe_batches(micro_batches: &[Batch], sink: &mut impl Sink) {
    let blocks: Vec<_> = micro_batches.iter().map(|batch| batch.block_indices.clone()).collect();
    sink.fact("train.micro_batch_size", blocks[0].len() as u64);
    sink.fact("train.gradient_accumulation_steps", blocks.len() as u64);
    sink.fact("train.seed", serde_json::json!({ "first_blocks": blocks }));
}

/// A batch on the model's device.
pub fn stream(batch: &Batch, model: &Model) -> Stream {
    let to_device = |ids: &[i64]| Tensor::from_slice(ids).to_device(model.device);
    Stream {
        input_ids: to_device(&batch.input_ids),
        labels: to_device(&batch.labels),
        lengths: batch.segment_lengths.clone(),
    }
}

/// Judges the loss after a step; the reason when it left all bounds.
fn diverged(state: &mut TrainerState, loss: f64, grad_norm: f64, max_ratio: f64) -> Option<String> {
    if !loss.is_finite() {
        return Some(format!("the loss is {loss}"));
    }
    if !grad_norm.is_finite() {
        return Some(format!("the gradient norm is {grad_norm}"));
    }
    // What the model began with: an explosion in the first steps has no average below it.
    state.lowest_average.get_or_insert(loss);
    state.recent_losses.push(loss);
    if state.recent_losses.len() > AVERAGE_STEPS {
        state.recent_losses.remove(0);
    }
    if state.recent_losses.len() < AVERAGE_STEPS {
        return None;
    }
    let average = state.recent_losses.iter().sum::<f64>() / AVERAGE_STEPS as f64;
    let lowest = state.lowest_average.map_or(average, |lowest| lowest.min(average));
    state.lowest_average = Some(lowest);
    (average > max_ratio * lowest && average - lowest > LEAST_RISE).then(|| {
        format!(
            "the loss averaged over {AVERAGE_STEPS} steps is {average:.4}, more than train.max_loss_ratio ({max_ratio}) times its lowest ({lowest:.4})"
        )
    })
}

/// Records the mean loss on the evaluated split; `false` where the run is to end before it is known, by one of `orders`.
fn split_loss(
    t: &Training,
    step: u64,
    sink: &mut impl Sink,
    mut orders: Option<&mut Orders>,
) -> Result<bool> {
    let Some(held_out) = t.held_out else { return Ok(true) };
    t.progress.phase.set("eval");
    let eval = &t.config.eval;
    let tile = t.config.train.loss_tile_tokens;
    let loss = eval::split_loss(t.model, held_out, eval.loss_tokens.0, tile, &mut || {
        orders.as_mut().is_some_and(|orders| orders.ask_for_the_end())
    })?;
    let Some((loss, tokens)) = loss else { return Ok(false) };
    sink.event(EventKind::Eval { step, split: eval.split.clone(), loss, tokens });
    sink.fact("eval.loss_tokens", tokens);
    Ok(true)
}

/// Writes a checkpoint where there is something new to write, and says what there is then.
fn save(
    t: &Training,
    optimizer: &Optimizer,
    state: &TrainerState,
    last: &mut u64,
    sink: &mut impl Sink,
) -> Result<String> {
    if let Some(reason) = unsaved(t) {
        return Ok(format!("no checkpoint was written: {reason}"));
    }
    // Nothing has changed since; step 0 of a fresh run is the base model itself.
    if *last == state.step {
        return Ok(match state.step {
            0 => "no step has been done yet: there is nothing to write".into(),
            step => format!("the checkpoint of step {step} was written before"),
        });
    }
    t.progress.phase.set("checkpoint");
    let bytes = checkpoint::save(t.paths, t.model, optimizer, t.tokenizer, state)?;
    *last = state.step;
    checkpoint::prune(t.paths, t.config.train.keep_checkpoints);
    let folder = t.paths.checkpoint(state.step);
    let path = folder.strip_prefix(&t.paths.folder).unwrap_or(&folder).display().to_string();
    let outcome = format!("{path} is written");
    sink.event(EventKind::Checkpoint { step: state.step, path, bytes });
    Ok(outcome)
}

/// Peak memory by phase; an event whenever a phase reaches further than it did before.
#[derive(Default)]
struct PhasePeaks {
    phase: Option<&'static str>,
    /// The peak of the step so far.
    step: torch::Memory,
    highest: HashMap<&'static str, u64>,
    /// On CUDA, the phases of the step so far, each with the moment on the device when it began.
    began: Vec<(&'static str, Event)>,
    /// Seconds of each phase, in the last step that was whole.
    seconds: BTreeMap<&'static str, f64>,
}

impl PhasePeaks {
    /// Ends the phase that is, if one is, and begins another.
    fn enter(&mut self, t: &Training, phase: &'static str, sink: &mut impl Sink) {
        self.leave(t, sink);
        t.progress.phase.set(phase);
        self.phase = Some(phase);
        // Resident memory has one high-water mark for the process; resetting it every step costs more than it tells.
        if t.model.device.is_cuda() {
            torch::reset_peak(t.model.device);
            self.began.push((phase, Event::record_time(t.model.device)));
        }
    }

    /// Ends the step, which ended at `end` on the device.
    fn finish(&mut self, end: &Event) {
        self.step = torch::Memory::default();
        let ends = self.began.iter().skip(1).map(|(_, event)| event).chain([end]);
        self.seconds.clear();
        for ((phase, began), end) in self.began.iter().zip(ends) {
            *self.seconds.entry(phase).or_default() += began.seconds_until(end).unwrap_or(0.0);
        }
        self.began.clear();
    }

    /// Records how long the phases of the last step took on the device.
    fn describe(&self, sink: &mut impl Sink) {
        if !self.seconds.is_empty() {
            sink.fact("phase_seconds", serde_json::json!(self.seconds));
        }
    }

    fn leave(&mut self, t: &Training, sink: &mut impl Sink) {
        let Some(phase) = self.phase.take() else { return };
        let now = torch::memory(t.model.device);
        self.step.peak_allocated = self.step.peak_allocated.max(now.peak_allocated);
        self.step.peak_reserved = self.step.peak_reserved.max(now.peak_reserved);
        let highest = self.highest.entry(phase).or_default();
        // A percent of growth is news; a few bytes are not.
        if now.peak_allocated as f64 > *highest as f64 * 1.01 {
            *highest = now.peak_allocated;
            sink.event(EventKind::Memory {
                step: t.progress.step.get(),
                phase: phase.to_string(),
                allocated: now.allocated,
                reserved: now.reserved,
                peak_allocated: now.peak_allocated,
                peak_reserved: now.peak_reserved,
            });
        }
    }
}
