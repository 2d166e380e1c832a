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
//! not. AdamW with 8-bit state takes two more, its moments in float32: see [`quantized`].
//!
//! Every rule applies the weight decay to every parameter that it steps, norms and embeddings included, as `torch.optim` does.

use super::quantized::{self, Codebooks, LEAST_ELEMENTS, QUANTIZATION_BLOCK, Quantized};
use crate::kernels;
use crate::kernels::adafactor::{AdafactorRule, AdafactorStep};
use crate::torch;
use anyhow::{Context, Result, bail, ensure};
use fathom_spec::config::{self, OptimizerType, StateDtype};
use serde_json::{Value, json};
use std::collections::BTreeMap;
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

/// [`Rule::AdafactorSum`] remembers at most this share of its second moment from one step to the next, which
/// `beta2_decay: -0.8` reaches at step 5624; the default of the system that it follows.
const ADAFACTOR_SUM_MAX_BETA2: f64 = 0.999;

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

/// One step of one parameter.
#[derive(Clone, Copy)]
struct Step<'a> {
    /// Changed in place.
    weight: &'a Tensor,
    grad: &'a Tensor,
    /// 1 for the parameter's first step.
    count: f64,
    learning_rate: f64,
    weight_decay: f64,
    /// Seeds the rounding; `None` rounds to the nearest.
    rounding: Option<u64>,
    block_elements: i64,
    /// Where state may be in 8 bits.
    codebooks: Option<&'a Codebooks>,
}

/// Some rows of a weight, and of what has its size.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// `None` is the whole.
    rows: Option<(i64, i64)>,
}

impl Block {
    /// The blocks of a weight of this size, of at most so many elements (of one row at least).
    fn all(size: &[i64], elements: i64) -> Vec<Block> {
        let &[rows, ref columns @ ..] = size else { return vec![Block { rows: None }] };
        let at_once = (elements / columns.iter().product::<i64>().max(1)).max(1);
        // The factors of an Adafactor span the last two dimensions.
        if rows <= at_once || columns.len() > 1 {
            return vec![Block { rows: None }];
        }
        let block = |from: i64| Block { rows: Some((from, at_once.min(rows - from))) };
        (0..rows).step_by(at_once as usize).map(block).collect()
    }

    /// Its part of a tensor with a row for every row of the weight, or with one row for all of them.
    fn of(&self, x: &Tensor) -> Tensor {
        match self.rows {
            Some((from, count)) if x.size()[0] > 1 => x.narrow(0, from, count),
            _ => x.shallow_clone(),
        }
    }
}

impl Step<'_> {
    /// Changes the weight and its state. Returns the sum of squares of the gradient, if that was made on the way.
    fn apply(&self, rule: &Rule, state: &mut [Tensor]) -> Option<Tensor> {
        match (rule, state) {
            (&Rule::Adamw { betas, eps, .. }, [exp_avg, exp_avg_sq]) => {
                self.adamw(betas, eps, exp_avg, exp_avg_sq);
            }
            (
                &Rule::Adamw { betas, eps, .. },
                [exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax],
            ) => {
                let books = self.codebooks.expect("8-bit state comes with its codebooks");
                let moment = |codebook, codes: &Tensor, absmax: &Tensor| Quantized {
                    codebook,
                    codes: codes.view(-1),
                    absmax: absmax.shallow_clone(),
                };
                let exp_avg = moment(&books.exp_avg, exp_avg, exp_avg_absmax);
                let exp_avg_sq = moment(&books.exp_avg_sq, exp_avg_sq, exp_avg_sq_absmax);
                self.adamw_quantized(betas, eps, &exp_avg, &exp_avg_sq);
            }
            (
                &Rule::Adafactor { eps, relative_step_floor, beta2_decay, clip_threshold },
                variance,
            ) => {
                return self.adafactor(
                    eps,
                    relative_step_floor,
                    beta2_decay,
                    clip_threshold,
                    variance,
                );
            }
            (&Rule::AdafactorSum { eps, beta2_decay, clip_threshold }, variance) => {
                return self.adafactor_sum(eps, beta2_decay, clip_threshold, variance);
            }
            (&Rule::Sgd { momentum }, buffer) => self.sgd(momentum, buffer.first_mut()),
            (rule, state) => unreachable!("{} tensors of state for {rule:?}", state.len()),
        }
        None
    }

    fn blocks(&self) -> Vec<Block> {
        Block::all(&self.weight.size(), self.block_elements)
    }

    /// Does `f` to the float32 weight, block by block, and rounds what is not float32 once.
    fn each_block(&self, mut f: impl FnMut(&mut Tensor, Block)) {
        for (index, block) in self.blocks().into_iter().enumerate() {
            let mut kept = block.of(self.weight);
            let mut exact = kept.to_kind(Kind::Float); // itself, if it is float32
            f(&mut exact, block);
            match self.rounding {
                _ if kept.kind() == Kind::Float => {}
                Some(seed) => round_stochastically(&mut kept, &exact, mix(seed, index as u64)),
                None => kept.copy_(&exact),
            }
        }
    }

    /// AdamW as `torch.optim.AdamW`: Loshchilov and Hutter (2019), <https://arxiv.org/abs/1711.05101>. One pass over a block.
    ///
    /// # Shapes
    ///
    /// - `exp_avg`, `exp_avg_sq`: the size of the weight
    fn adamw(&self, betas: [f64; 2], eps: f64, exp_avg: &Tensor, exp_avg_sq: &Tensor) {
        self.each_block(|weight, block| {
            let (exp_avg, exp_avg_sq) = (block.of(exp_avg), block.of(exp_avg_sq));
            self.adamw_block(betas, eps, weight, block, &exp_avg, &exp_avg_sq);
        });
    }

    /// The same with moments that are kept in 8 bits: read as float32, stepped with, and rounded to codes anew.
    ///
    /// # Shapes
    ///
    /// - `exp_avg`, `exp_avg_sq`: `[E]`, the weight's elements in a row
    fn adamw_quantized(
        &self,
        betas: [f64; 2],
        eps: f64,
        exp_avg: &Quantized,
        exp_avg_sq: &Quantized,
    ) {
        let (weight, grad) = (&self.weight.view(-1), &self.grad.reshape(-1));
        // A scale's numbers are stepped together.
        let block_elements = (self.block_elements / QUANTIZATION_BLOCK).max(1) * QUANTIZATION_BLOCK;
        let flat = Step { weight, grad, block_elements, ..*self };
        flat.each_block(|weight, block| {
            let (from, count) = block.rows.unwrap_or((0, weight.numel() as i64));
            let mut kept = [exp_avg, exp_avg_sq].map(|moment| moment.narrow(from, count));
            let exact = kept.each_ref().map(Quantized::dequantize);
            let [exp_avg, exp_avg_sq] = &exact;
            flat.adamw_block(betas, eps, weight, block, exp_avg, exp_avg_sq);
            for (kept, exact) in kept.iter_mut().zip(exact) {
                kept.quantize(exact);
            }
        });
    }

    /// AdamW of one block.
    ///
    /// # Shapes
    ///
    /// - `weight`, `exp_avg`, `exp_avg_sq`: the block's, float32; changed in place
    fn adamw_block(
        &self,
        betas: [f64; 2],
        eps: f64,
        weight: &Tensor,
        block: Block,
        exp_avg: &Tensor,
        exp_avg_sq: &Tensor,
    ) {
        let adamw = torch::Adamw {
            learning_rate: self.learning_rate,
            betas,
            eps,
            weight_decay: self.weight_decay,
            steps: self.count,
        };
        let gradient = block.of(self.grad).to_kind(Kind::Float).contiguous();
        adamw.step(weight, &gradient, exp_avg, exp_avg_sq);
    }

    /// Adafactor as `torch.optim.Adafactor`: Shazeer and Stern (2018), <https://arxiv.org/abs/1804.04235>, with the means of
    /// rows and columns for their sums, and `eps` as the least root of the second moment.
    ///
    /// A step is relative to the root mean square of the weight, and the learning rate is its upper bound: the step is
    /// `min(learning_rate, 1 / sqrt(count)) * max(relative_step_floor, rms(weight))`.
    ///
    /// # Shapes
    ///
    /// - `state`: `row_var` `[.., R, 1]` and `col_var` `[.., 1, C]` of a weight `[.., R, C]`; of a vector `variance`, its size
    fn adafactor(
        &self,
        eps: f64,
        relative_step_floor: f64,
        beta2_decay: f64,
        clip_threshold: f64,
        state: &mut [Tensor],
    ) -> Option<Tensor> {
        let relative_step = self.learning_rate.min(self.count.powf(-0.5));
        let share = self.count.powf(beta2_decay);
        let rule = AdafactorRule::Means { relative_step, floor: relative_step_floor };
        let fused = self.adafactor_fused(rule, share, eps, clip_threshold, state);
        if fused.is_some() {
            return fused;
        }
        // Of the weight as it is before the decay.
        let step_size = rms(self.weight).clamp_min_(relative_step_floor) * relative_step;
        // The second moment of a block, a tensor of its own; the state moves on here, once.
        let second_moment: Box<dyn Fn(Block) -> Tensor> = match state {
            [row_var, col_var] => {
                let rows = row_var.size()[row_var.dim() - 2];
                let columns = col_var.size()[col_var.dim() - 1];
                let _ = row_var.lerp_(&(sum_of_squares(self.grad, -1, true) / columns), share);
                let _ = col_var.lerp_(&(sum_of_squares(self.grad, -2, true) / rows), share);
                let scale = row_var.mean_dim([-2].as_slice(), true, None).clamp_min_(eps);
                let (row_factor, col_var) = (&*row_var / scale, &*col_var);
                Box::new(move |block| block.of(&row_factor) * col_var)
            }
            [variance] => {
                let _ = variance.lerp_(&self.grad.to_kind(Kind::Float).square(), share);
                let variance = &*variance;
                Box::new(move |block| block.of(variance).copy())
            }
            _ => unreachable!("{} tensors of state", state.len()),
        };
        let update = |block: Block| {
            let mut update = second_moment(block);
            update.clamp_min_(eps * eps).rsqrt_().g_mul_(&block.of(self.grad))
        };
        self.subtract_clipped(update, step_size, clip_threshold);
        None
    }

    /// Adafactor as in the tutorial's system: sums of rows and columns, `eps` added to every squared gradient, and a step of
    /// the learning rate itself.
    ///
    /// # Shapes
    ///
    /// - `state`: `row_sum` `[R]` and `col_sum` `[C]` of a weight `[.., C]` with `R * C` elements; of a vector `variance`, its
    ///   size
    fn adafactor_sum(
        &self,
        eps: f64,
        beta2_decay: f64,
        clip_threshold: f64,
        state: &mut [Tensor],
    ) -> Option<Tensor> {
        let share = self.count.powf(beta2_decay).max(1.0 - ADAFACTOR_SUM_MAX_BETA2);
        let rule = AdafactorRule::Sums { learning_rate: self.learning_rate };
        let fused = self.adafactor_fused(rule, share, eps, clip_threshold, state);
        if fused.is_some() {
            return fused;
        }
        // One over the root of a block's second moment, a tensor of its own; the state moves on here, once.
        let factor: Box<dyn Fn(Block) -> Tensor> = match state {
            [row_sum, col_sum] => {
                let (rows, columns) = (row_sum.numel() as f64, col_sum.numel() as f64);
                let grad = self.grad.reshape([-1, col_sum.numel() as i64]);
                let _ = row_sum.lerp_(&(sum_of_squares(&grad, 1, false) + eps * columns), share);
                let _ = col_sum.lerp_(&(sum_of_squares(&grad, 0, false) + eps * rows), share);
                let row_factor = (&*row_sum / row_sum.sum(None)).rsqrt_();
                let col_factor = col_sum.rsqrt();
                Box::new(move |block| {
                    let size = block.of(self.grad).size();
                    match block.rows {
                        Some(_) => block.of(&row_factor).outer(&col_factor),
                        None => row_factor.outer(&col_factor),
                    }
                    .reshape(size)
                })
            }
            [variance] => {
                let squared = self.grad.to_kind(Kind::Float).square() + eps;
                let _ = variance.lerp_(&squared, share);
                let variance = &*variance;
                Box::new(move |block| block.of(variance).rsqrt())
            }
            _ => unreachable!("{} tensors of state", state.len()),
        };
        let update = |block: Block| factor(block).g_mul_(&block.of(self.grad));
        self.subtract_clipped(update, self.scalar(self.learning_rate), clip_threshold);
        None
    }

    /// Either Adafactor by kernels, with no temporary of the weight's size; returns the sum of squares of the gradient. `None`
    /// where they do not serve: nothing has changed then.
    fn adafactor_fused(
        &self,
        rule: AdafactorRule,
        share: f64,
        eps: f64,
        clip_threshold: f64,
        state: &[Tensor],
    ) -> Option<Tensor> {
        let fused = kernels::of_gradient(self.grad)?;
        let keep = 1.0 - self.learning_rate * self.weight_decay;
        let step = AdafactorStep { rule, share, eps, clip_threshold, keep, seed: self.rounding };
        match state {
            [rows, columns] => fused.adafactor_matrix(self.weight, self.grad, rows, columns, &step),
            [variance] => fused.adafactor_vector(self.weight, self.grad, variance, &step),
            _ => None,
        }
    }

    /// Stochastic gradient descent as `torch.optim.SGD`: the decay is part of the gradient, and there is no dampening.
    fn sgd(&self, momentum: f64, buffer: Option<&mut Tensor>) {
        let step_size = self.scalar(-self.learning_rate);
        self.each_block(|weight, block| {
            let grad = block.of(self.grad).to_kind(Kind::Float);
            let grad = match self.weight_decay {
                0.0 => grad,
                weight_decay => (&*weight * weight_decay).g_add_(&grad),
            };
            let _ = match &buffer {
                Some(buffer) => {
                    let mut buffer = block.of(buffer);
                    buffer *= momentum;
                    buffer += grad;
                    weight.addcmul_(&buffer, &step_size)
                }
                None => weight.addcmul_(&grad, &step_size),
            };
        });
    }

    /// Decoupled weight decay.
    fn decay(&self, weight: &mut Tensor) {
        if self.weight_decay != 0.0 {
            *weight *= 1.0 - self.learning_rate * self.weight_decay;
        }
    }

    /// Decay, then `weight -= step_size * update`, with the update scaled down to the root mean square `clip_threshold`.
    ///
    /// The update of a weight in several blocks is made twice: once for its root mean square.
    fn subtract_clipped(
        &self,
        update: impl Fn(Block) -> Tensor,
        step_size: Tensor,
        clip_threshold: f64,
    ) {
        let blocks = self.blocks();
        let (mut only, root_mean_square) = match blocks[..] {
            [block] => {
                let update = update(block);
                let root_mean_square = rms(&update);
                (Some(update), root_mean_square)
            }
            _ => {
                let norm = |block: &Block| update(*block).norm_scalaropt_dtype(2, Kind::Float);
                let norms: Vec<Tensor> = blocks.iter().map(norm).collect();
                let elements = self.weight.numel() as f64;
                (None, Tensor::stack(&norms, 0).norm() / elements.sqrt())
            }
        };
        let scale = step_size / (root_mean_square / -clip_threshold).clamp_max_(-1.0);
        self.each_block(|weight, block| {
            let update = only.take().unwrap_or_else(|| update(block));
            self.decay(weight);
            let _ = weight.addcmul_(&update, &scale);
        });
    }

    /// A number where the weight is. Filled there, so that nothing waits for a copy.
    fn scalar(&self, value: f64) -> Tensor {
        Tensor::full([0i64; 0], value, (Kind::Float, self.weight.device()))
    }
}

/// Rounds `exact` into `kept`, to the bfloat16 above or below with the probabilities that make the mean exact.
///
/// A bfloat16 is the upper half of a float32: with a random lower half added, what carries into the upper half is right on
/// average, and the rest is cut off.
///
/// # Shapes
///
/// - `kept`: bfloat16; `exact`: float32, the same size
fn round_stochastically(kept: &mut Tensor, exact: &Tensor, seed: u64) {
    const LOWER: i64 = 1 << 16;
    let mut bits = Tensor::empty(exact.size(), (Kind::Int, exact.device()));
    torch::fill_random(&bits, LOWER, seed);
    bits += exact.view_dtype(Kind::Int);
    let _ = bits.bitwise_and_(-LOWER);
    kept.copy_(&bits.view_dtype(Kind::Float));
}

/// A seed from two numbers, as good as random: the finalizer of SplitMix64 (Steele et al. 2014).
fn mix(seed: u64, stream: u64) -> u64 {
    let mut z = seed.wrapping_add(stream.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Root mean square over all elements, a float32 scalar.
fn rms(x: &Tensor) -> Tensor {
    x.norm_scalaropt_dtype(2, Kind::Float) / (x.numel() as f64).sqrt()
}

/// Over one dimension, in float32, without a temporary of the size of `x`.
fn sum_of_squares(x: &Tensor, dim: i64, keepdim: bool) -> Tensor {
    x.norm_scalaropt_dim_dtype(2, [dim], keepdim, Kind::Float).square_()
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
