//! One optimizer step on either engine: forward, backward, clipping, and the weights stepped.

use super::layered::Layered;
use super::layered::gradients::{Clip, Held, Measured, Square, Stepped, clip_sublayer};
use super::optimizer::{Optimizer, clip_grad_norm};
use super::step::{Plan, Stream, forward_backward};
use crate::kernels;
use crate::model::Model;
use anyhow::Result;
use fathom_spec::config::{GradClipping, TrainSection};
use serde_json::{Value, json};
use tch::{Tensor, no_grad};

/// What carries out steps.
pub struct Executor<'a> {
    engine: Engine<'a>,
    model: &'a Model,
    max_grad_norm: Option<f64>,
    grad_clipping: GradClipping,
    optimizer_in_backward: bool,
}

/// The engine, with what it needs from step to step.
pub enum Engine<'a> {
    Plain(Plan),
    Layered(Box<Layered<'a>>),
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The mean over the tokens that carry loss.
    pub loss: f64,
    /// The L2 norm of all gradients, before they were clipped.
    pub grad_norm: f64,
}

impl<'a> Executor<'a> {
    /// Steps of `model` by `engine`, clipped and applied as `config` says.
    pub fn new(engine: Engine<'a>, model: &'a Model, config: &TrainSection) -> Executor<'a> {
        model.set_requires_grad(matches!(engine, Engine::Plain(_)));
        Executor {
            engine,
            model,
            max_grad_norm: config.max_grad_norm,
            grad_clipping: config.grad_clipping(),
            optimizer_in_backward: config.optimizer_in_backward(),
        }
    }

    /// One step over the micro-batches of `streams`, in which `loss_tokens` tokens carry loss. `watch` is told the phases.
    ///
    /// A step whose loss or gradients are not finite leaves the weights alone, unless they are stepped inside the backward.
    ///
    /// # Errors
    ///
    /// When a number can't be read back from the device.
    pub fn step(
        &mut self,
        streams: &mut dyn Iterator<Item = Stream>,
        loss_tokens: usize,
        optimizer: &mut Optimizer,
        learning_rate: f64,
        watch: &mut dyn FnMut(&'static str),
    ) -> Result<Outcome> {
        let scale = 1.0 / loss_tokens as f64;
        optimizer.begin_step();
        let (nll, grad_norm) = match &mut self.engine {
            Engine::Plain(plan) => {
                let plan = *plan;
                self.plain(plan, streams, scale, optimizer, learning_rate, watch)?
            }
            Engine::Layered(_) if self.optimizer_in_backward => {
                let stream = streams.next().expect("a step has a micro-batch");
                self.in_backward(&stream, scale, optimizer, learning_rate, watch)?
            }
            Engine::Layered(_) => self.after(streams, scale, optimizer, learning_rate, watch)?,
        };
        Ok(Outcome { loss: nll * scale, grad_norm })
    }

    fn plain(
        &self,
        plan: Plan,
        streams: &mut dyn Iterator<Item = Stream>,
        scale: f64,
        optimizer: &mut Optimizer,
        learning_rate: f64,
        watch: &mut dyn FnMut(&'static str),
    ) -> Result<(f64, f64)> {
        watch("forward_backward");
        let mut nll = 0.0;
        for stream in streams {
            nll += f64::try_from(&forward_backward(self.model, &stream, scale, plan))?;
        }
        watch("optimizer");
        let parameters = self.model.parameters();
        let gradients: Vec<Tensor> = parameters.iter().map(|(_, weight)| weight.grad()).collect();
        let grad_norm = clip_grad_norm(&gradients, self.max_grad_norm);
        if nll.is_finite() && grad_norm.is_finite() {
            for (index, ((_, weight), gradient)) in parameters.iter().zip(&gradients).enumerate() {
                optimizer.step_parameter(index, weight, gradient, learning_rate);
            }
        }
        no_grad(|| gradients.into_iter().for_each(|mut gradient| drop(gradient.zero_())));
        Ok((nll, grad_norm))
    }

    /// On the layered engine: all gradients, then all weights.
    fn after(
        &mut self,
        streams: &mut dyn Iterator<Item = Stream>,
        scale: f64,
        optimizer: &mut Optimizer,
        learning_rate: f64,
        watch: &mut dyn FnMut(&'static str),
    ) -> Result<(f64, f64)> {
        let mut held = Held::default();
        let mut nll = 0.0;
        for stream in streams {
            let sum = self.layered().forward_backward(&stream, scale, &mut held, watch);
            nll += f64::try_from(&sum)?;
        }
        watch("optimizer");
        let grad_norm = no_grad(|| self.clip_held(&mut held));
        if nll.is_finite() && grad_norm.is_finite() {
            for taken in held.iter() {
                optimizer.step_parameter(
                    taken.index,
                    &taken.weight,
                    &taken.gradient,
                    learning_rate,
                );
            }
        }
        Ok((nll, grad_norm))
    }

    /// Clips gradients that are all there; returns the norm of all of them before.
    fn clip_held(&self, held: &mut Held) -> f64 {
        match (self.grad_clipping, self.max_grad_norm) {
            (GradClipping::PerSublayer, Some(max_norm)) => {
                let mut all = Square::new();
                for sublayer in &mut held.sublayers {
                    let square = all.add(sublayer);
                    clip_sublayer(sublayer, &square, max_norm);
                }
                all.root()
            }
            (_, max_norm) => {
                let gradients: Vec<Tensor> =
                    held.iter().map(|taken| taken.gradient.shallow_clone()).collect();
                clip_grad_norm(&gradients, max_norm)
            }
        }
    }

    /// On the layered engine: each weight as its gradient comes.
    fn in_backward(
        &mut self,
        stream: &Stream,
        scale: f64,
        optimizer: &mut Optimizer,
        learning_rate: f64,
        watch: &mut dyn FnMut(&'static str),
    ) -> Result<(f64, f64)> {
        let (clipping, max_grad_norm) = (self.grad_clipping, self.max_grad_norm);
        let layered = self.layered();
        let (nll, grad_norm) = match (clipping, max_grad_norm) {
            (GradClipping::GlobalTwoPass, Some(max_norm)) => {
                let mut grad_norm = 0.0;
                let (nll, _) = layered.forward_backward_twice(
                    stream,
                    scale,
                    Measured::default(),
                    |measured| {
                        grad_norm = measured.square.root();
                        let clip = Clip::Factor(max_norm / (grad_norm + 1e-6));
                        Stepped { optimizer, learning_rate, clip, square: Square::new() }
                    },
                    watch,
                );
                (nll, grad_norm)
            }
            (clipping, max_norm) => {
                let clip = match (clipping, max_norm) {
                    (GradClipping::PerSublayer, Some(max_norm)) => Clip::PerSublayer(max_norm),
                    _ => Clip::None,
                };
                let square = Square::new();
                let mut gradients = Stepped { optimizer, learning_rate, clip, square };
                let nll = layered.forward_backward(stream, scale, &mut gradients, watch);
                (nll, gradients.square.root())
            }
        };
        Ok((f64::try_from(&nll)?, grad_norm))
    }

    fn layered(&mut self) -> &mut Layered<'a> {
        match &mut self.engine {
            Engine::Layered(layered) => layered,
            Engine::Plain(_) => unreachable!("the plain engine has no layers to drive"),
        }
    }

    /// Every option in use, by key path.
    pub fn describe(&self) -> Vec<(&'static str, Value)> {
        let mut facts = vec![
            ("train.max_grad_norm", json!(self.max_grad_norm)),
            ("train.grad_clipping", json!(self.grad_clipping)),
            ("train.optimizer_in_backward", json!(self.optimizer_in_backward)),
        ];
        match &self.engine {
            Engine::Plain(plan) => facts.extend([
                ("train.engine", json!("plain")),
                ("train.loss_tile_tokens", json!(plan.loss_tile_tokens)),
                ("train.activation_checkpointing", json!(plan.activation_checkpointing)),
            ]),
            Engine::Layered(layered) => {
                facts.push(("train.engine", json!("layered")));
                facts.push(("train.kernels", json!(kernels::state(self.model.device))));
                if !layered.kernels_passed_over().is_empty() {
                    let passed_over = json!(layered.kernels_passed_over());
                    facts.push(("train.attention_kernels_passed_over", passed_over));
                }
                facts.extend(layered.describe());
            }
        }
        facts
    }

    /// The kernels that the layered engine's attention was computed by so far.
    pub fn attention_kernels(&self) -> Option<Vec<&'static str>> {
        match &self.engine {
            Engine::Plain(_) => None,
            Engine::Layered(layered) => Some(layered.kernels()),
        }
    }
}
