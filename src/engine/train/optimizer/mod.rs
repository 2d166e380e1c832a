//! Optimizers, a parameter at a time, and the clipping of gradients.
//!
//! A step is [`Optimizer::begin_step`] and then [`Optimizer::step_parameter`] for every parameter, in any order: a weight can
//! be stepped as soon as its gradient is there, in the middle of the backward, and the gradient dropped at once.
//!
//! All arithmetic is in float32, whatever the types of the weight and the gradient. A weight of another type is read as
//! float32, stepped, and rounded to a value it can hold: the nearest, or with [`Optimizer::round_stochastically`] the one
//! above or below at random. In bfloat16, updates below 1/256 of a weight are lost to the nearest, and kept on average at
//! random. While a parameter is stepped there is one float32 temporary of its size (of [`BLOCK_ELEMENTS`] at most; AdamW takes
//! none), and another if the weight is not float32, and one of random bits; AdamW and SGD also take one for a gradient that is
//! not. AdamW with 8-bit state takes two more, its moments in float32: see [`quantized`]. Both Adafactors take none where their
//! CUDA kernels serve.
//!
//! Every rule, whose arithmetic is in `step`, applies the weight decay to every parameter that it steps, norms and embeddings
//! included, as `torch.optim` does.

pub mod quantized;
mod step;

use crate::torch;
use anyhow::{Context, Result, bail, ensure};
use fathom_spec::config::{self, OptimizerType, StateDtype};
use quantized::{Codebooks, LEAST_ELEMENTS};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use step::{Step, mix};
use tch::{Device, Kind, Tensor};

/// Elements of a weight that are stepped at one time, unless [`Optimizer::step_in_blocks`] says otherwise: 256 MiB of float32.
pub const BLOCK_ELEMENTS: i64 = 1 << 26;

/// An optimizer and its state.
pub struct Optimizer {
    rule: Rule,
    weight_decay: f64,
    /// Seeds the rounding of weights that are not float32; `None` rounds to the nearest.
    rounding: Option<u64>,
    block_elements: i64,
    /// Where state is in 8 bits.
    codebooks: Option<Codebooks>,
    parameters: Vec<Parameter>,
}

/// What turns a gradient into a step, with its options.
#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Adamw { betas: [f64; 2], eps: f64, state_dtype: StateDtype },
    Adafactor { eps: f64, relative_step_floor: f64, beta2_decay: f64, clip_threshold: f64 },
    AdafactorSum { eps: f64, beta2_decay: f64, clip_threshold: f64 },
    Sgd { momentum: f64 },
}

/// The state of one parameter.
struct Parameter {
    name: String,
    size: Vec<i64>,
    /// How often this parameter was stepped: an int64 scalar in host memory.
    steps: Tensor,
    /// Whether it was stepped since `begin_step`.
    stepped: bool,
    /// In the order of [`Rule::layout`].
    state: Vec<Tensor>,
}

/// A tensor of a parameter's state.
struct Layout {
    key: &'static str,
    size: Vec<i64>,
    kind: Kind,
    /// Whether it grows with its weight, and is where the weight is.
    with_weight: bool,
}

impl Optimizer {
    /// The optimizer of a completed configuration for `parameters`, with all of its state allocated, on their devices.
    ///
    /// The state of a matrix of `r` rows and `c` columns takes, in float32: AdamW `2rc`, Adafactor (both) `r + c`, SGD with
    /// momentum `rc` and without nothing. With 8-bit state AdamW takes `2rc` bytes and a float32 for 256 of them, where `rc` is
    /// at least [`LEAST_ELEMENTS`].
    pub fn new(config: &config::Optimizer, parameters: &[(String, &Tensor)]) -> Optimizer {
        let device = parameters.first().map_or(Device::Cpu, |(_, weight)| weight.device());
        Optimizer::on_device(config, parameters, device)
    }

    /// The same for weights that are brought to `device` to be stepped. What grows with its weight stays where the weight is,
    /// and is brought with it; rows and columns are on `device`.
    pub fn on_device(
        config: &config::Optimizer,
        parameters: &[(String, &Tensor)],
        device: Device,
    ) -> Optimizer {
        let rule = Rule::new(config);
        let parameters = parameters.iter().map(|(name, weight)| {
            let size = weight.size();
            let zeros = |Layout { size, kind, with_weight, .. }: Layout| match with_weight {
                true if weight.device() != device => {
                    let like = Tensor::zeros([1], (kind, Device::Cpu)).expand(size, false);
                    torch::host_empty_like(&like, device).zero_()
                }
                _ => Tensor::zeros(size, (kind, device)),
            };
            let state = rule.layout(&size).into_iter().map(zeros).collect();
            Parameter { name: name.clone(), size, steps: Tensor::from(0i64), stepped: true, state }
        });
        let parameters = parameters.collect();
        let int8 = matches!(rule, Rule::Adamw { state_dtype: StateDtype::Int8, .. });
        Optimizer {
            weight_decay: config.weight_decay,
            rounding: None,
            block_elements: BLOCK_ELEMENTS,
            codebooks: int8.then(|| Codebooks::new(device)),
            rule,
            parameters,
        }
    }

    /// Steps at most so many elements of a matrix at one time: temporaries are of this size. Adafactor makes the update of
    /// a matrix in several blocks twice.
    pub fn step_in_blocks(&mut self, elements: i64) {
        self.block_elements = elements;
    }

    /// Rounds weights that are bfloat16 up or down at random from now on, with the probabilities that make the mean exact.
    ///
    /// The random numbers depend on `seed`, the parameter and how often it was stepped: a resumed run draws the same.
    pub fn round_stochastically(&mut self, seed: u64) {
        self.rounding = Some(seed);
    }

    /// Begins a step, in which each parameter may be stepped once.
    pub fn begin_step(&mut self) {
        for parameter in &mut self.parameters {
            parameter.stepped = false;
        }
    }

    /// Steps `weight`, the parameter that was number `index` for [`Optimizer::new`], in place. Returns the sum of squares of
    /// the gradient, where the step came upon it.
    ///
    /// Nothing waits for the device.
    ///
    /// # Shapes
    ///
    /// - `weight`, `grad`: the size that the parameter had for [`Optimizer::new`], any float dtype
    /// - returns: a float32 scalar on the device
    ///
    /// # Panics
    ///
    /// When the parameter was already stepped since [`Optimizer::begin_step`], or has another size.
    pub fn step_parameter(
        &mut self,
        index: usize,
        weight: &Tensor,
        grad: &Tensor,
        learning_rate: f64,
    ) -> Option<Tensor> {
        let parameter = &mut self.parameters[index];
        let name = &parameter.name;
        assert!(!parameter.stepped, "{name}: expected one step after `begin_step`, found a second");
        assert_eq!(weight.size(), parameter.size, "{name}: size of the weight");
        assert_eq!(grad.size(), parameter.size, "{name}: size of the gradient");
        parameter.stepped = true;
        parameter.steps += 1;
        tch::no_grad(|| {
            let here = |state: &Tensor| state.to_device(weight.device());
            let mut state: Vec<Tensor> = parameter.state.iter().map(here).collect();
            let count = parameter.steps.int64_value(&[]);
            let step = Step {
                weight,
                grad,
                count: count as f64,
                learning_rate,
                weight_decay: self.weight_decay,
                rounding: self.rounding.map(|seed| mix(mix(seed, index as u64), count as u64)),
                block_elements: self.block_elements,
                codebooks: self.codebooks.as_ref(),
            };
            let squares = step.apply(&self.rule, &mut state);
            for (kept, state) in parameter.state.iter().zip(&state) {
                if kept.device() != state.device() {
                    torch::copy(kept, state);
                }
            }
            squares
        })
    }

    /// The state, under names such as `exp_avg.model.norm.weight`; the count of each parameter's steps is `step.<name>`.
    ///
    /// The tensors are the live ones, not copies: write them out before the next step.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for parameter in &self.parameters {
            let layout = self.rule.layout(&parameter.size);
            let state =
                layout.iter().zip(&parameter.state).map(|(layout, tensor)| (layout.key, tensor));
            for (key, tensor) in std::iter::once(("step", &parameter.steps)).chain(state) {
                all.push((format!("{key}.{}", parameter.name), tensor.shallow_clone()));
            }
        }
        all
    }

    /// Takes over what [`Optimizer::state`] gave, from any device. Training goes on as if it had never stopped.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, is not of this optimizer and these parameters, or has another size or type: it is named,
    /// and nothing has changed.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        let mut given: BTreeMap<&str, &Tensor> =
            state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut loaded = Vec::new();
        for (name, mine) in self.state() {
            let theirs = given.remove(name.as_str()).with_context(|| {
                format!("optimizer state: expected `{name}`, found none\n  {}", self.help())
            })?;
            let of = |tensor: &Tensor| format!("{:?} {:?}", tensor.kind(), tensor.size());
            ensure!(
                of(theirs) == of(&mine),
                "optimizer state: {name}: expected {}, found {}",
                of(&mine),
                of(theirs)
            );
            loaded.push((mine, theirs));
        }
        if let Some(name) = given.keys().next() {
            bail!("optimizer state: expected no `{name}`, found it\n  {}", self.help());
        }
        for (mine, theirs) in &mut loaded {
            mine.copy_(theirs);
        }
        Ok(())
    }

    /// The memory that the state takes on the device.
    pub fn state_bytes(&self) -> u64 {
        let tensors = self.parameters.iter().flat_map(|parameter| &parameter.state);
        tensors.map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64).sum()
    }

    /// Every option in use, by its key path.
    pub fn describe(&self) -> Vec<(String, Value)> {
        let mut options =
            vec![("type", json!(self.rule.name())), ("weight_decay", json!(self.weight_decay))];
        match self.rule {
            Rule::Adamw { betas, eps, state_dtype } => options.extend([
                ("betas", json!(betas)),
                ("eps", json!(eps)),
                ("state_dtype", json!(state_dtype)),
            ]),
            Rule::Adafactor { eps, relative_step_floor, beta2_decay, clip_threshold } => options
                .extend([
                    ("eps", json!(eps)),
                    ("relative_step_floor", json!(relative_step_floor)),
                    ("beta2_decay", json!(beta2_decay)),
                    ("clip_threshold", json!(clip_threshold)),
                ]),
            Rule::AdafactorSum { eps, beta2_decay, clip_threshold } => options.extend([
                ("eps", json!(eps)),
                ("beta2_decay", json!(beta2_decay)),
                ("clip_threshold", json!(clip_threshold)),
            ]),
            Rule::Sgd { momentum } => options.push(("momentum", json!(momentum))),
        }
        options.into_iter().map(|(key, value)| (format!("train.optimizer.{key}"), value)).collect()
    }

    /// Whether weights that are bfloat16 are rounded at random.
    pub fn rounds_stochastically(&self) -> bool {
        self.rounding.is_some()
    }

    fn help(&self) -> String {
        let in_8_bits = if self.codebooks.is_some() { " with `state_dtype: int8`" } else { "" };
        format!("help: the state must be of `{}`{in_8_bits} and the same model", self.rule.name())
    }
}

impl Rule {
    fn new(config: &config::Optimizer) -> Rule {
        let given = |option: Option<f64>, name: &str| {
            option.unwrap_or_else(|| panic!("train.optimizer.{name}: expected to be completed"))
        };
        let eps = || given(config.eps, "eps");
        let beta2_decay = || given(config.beta2_decay, "beta2_decay");
        let clip_threshold = || given(config.clip_threshold, "clip_threshold");
        match config.kind {
            OptimizerType::Adamw => {
                let betas = config.betas.expect("train.optimizer.betas: expected to be completed");
                Rule::Adamw { betas, eps: eps(), state_dtype: config.state_dtype() }
            }
            OptimizerType::Adafactor => Rule::Adafactor {
                eps: eps(),
                relative_step_floor: given(config.relative_step_floor, "relative_step_floor"),
                beta2_decay: beta2_decay(),
                clip_threshold: clip_threshold(),
            },
            OptimizerType::AdafactorSum => Rule::AdafactorSum {
                eps: eps(),
                beta2_decay: beta2_decay(),
                clip_threshold: clip_threshold(),
            },
            OptimizerType::Sgd => Rule::Sgd { momentum: given(config.momentum, "momentum") },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Rule::Adamw { .. } => "adamw",
            Rule::Adafactor { .. } => "adafactor",
            Rule::AdafactorSum { .. } => "adafactor_sum",
            Rule::Sgd { .. } => "sgd",
        }
    }

    /// The state that a parameter of this size needs. The names are those of `torch.optim`, where it has one.
    fn layout(&self, size: &[i64]) -> Vec<Layout> {
        let of = |key, size: Vec<i64>, kind, with_weight| Layout { key, size, kind, with_weight };
        let full = |key| of(key, size.to_vec(), Kind::Float, true);
        let factor = |key, size| of(key, size, Kind::Float, false);
        let elements: i64 = size.iter().product();
        let codes = |key| of(key, size.to_vec(), Kind::Uint8, true);
        let absmax = |key| {
            let blocks = quantized::blocks(elements);
            of(key, vec![blocks], Kind::Float, true)
        };
        match (self, size) {
            (Rule::Adamw { state_dtype: StateDtype::Int8, .. }, _)
                if elements >= LEAST_ELEMENTS =>
            {
                vec![
                    codes("exp_avg"),
                    absmax("exp_avg_absmax"),
                    codes("exp_avg_sq"),
                    absmax("exp_avg_sq_absmax"),
                ]
            }
            (Rule::Adamw { .. }, _) => vec![full("exp_avg"), full("exp_avg_sq")],
            (Rule::Adafactor { .. }, [outer @ .., rows, columns]) => vec![
                factor("row_var", [outer, &[*rows, 1]].concat()),
                factor("col_var", [outer, &[1, *columns]].concat()),
            ],
            (Rule::AdafactorSum { .. }, [outer @ .., columns]) if !outer.is_empty() => vec![
                factor("row_sum", vec![outer.iter().product()]),
                factor("col_sum", vec![*columns]),
            ],
            (Rule::Adafactor { .. } | Rule::AdafactorSum { .. }, _) => vec![full("variance")],
            (Rule::Sgd { momentum: 0.0 }, _) => vec![],
            (Rule::Sgd { .. }, _) => vec![full("momentum_buffer")],
        }
    }
}

/// Scales `grads` in place so that their global L2 norm is at most `max_norm`, and returns the norm that it was.
///
/// As `torch.nn.utils.clip_grad_norm_`: the factor is `max_norm / (norm + 1e-6)` where that is below 1. The norm is taken in
/// float32 and waited for once. A norm that is not a number makes the gradients so too.
pub fn clip_grad_norm(grads: &[Tensor], max_norm: Option<f64>) -> f64 {
    if grads.is_empty() {
        return 0.0;
    }
    tch::no_grad(|| {
        let norms: Vec<_> =
            grads.iter().map(|grad| grad.norm_scalaropt_dtype(2, Kind::Float)).collect();
        let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
        let factor = max_norm.map_or(1.0, |max_norm| max_norm / (norm + 1e-6));
        let within = factor >= 1.0;
        if !within {
            for grad in grads {
                let _ = grad.shallow_clone().g_mul_scalar_(factor);
            }
        }
        norm
    })
}
