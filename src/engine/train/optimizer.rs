//! Optimizers, a parameter at a time, and the clipping of gradients.
//!
//! A step is [`Optimizer::begin_step`] and then [`Optimizer::step_parameter`] for every parameter, in any order: a weight can
//! be stepped as soon as its gradient is there, in the middle of the backward, and the gradient dropped at once.
//!
//! All arithmetic is in float32, whatever the types of the weight and the gradient. A weight of another type is read as
//! float32, stepped, and rounded to the nearest value it can hold: in bfloat16, updates below 1/256 of a weight are lost.
//! (Stochastic rounding would keep them on average; it is left for later.) While a parameter is stepped there is one float32
//! temporary of its size, and another if the weight is not float32; AdamW and SGD also take one for a gradient that is not.
//!
//! Every rule applies the weight decay to every parameter that it steps, norms and embeddings included, as `torch.optim` does.

use anyhow::{Context, Result, bail, ensure};
use fathom_spec::config::{self, OptimizerType};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// An optimizer and its state.
pub struct Optimizer {
    rule: Rule,
    weight_decay: f64,
    parameters: Vec<Parameter>,
}

/// What turns a gradient into a step, with its options.
#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Adamw { betas: [f64; 2], eps: f64 },
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
    /// float32, in the order of [`Rule::layout`].
    state: Vec<Tensor>,
}

/// [`Rule::AdafactorSum`] remembers at most this share of its second moment from one step to the next, which
/// `beta2_decay: -0.8` reaches at step 5624; the default of the system that it follows.
const ADAFACTOR_SUM_MAX_BETA2: f64 = 0.999;

impl Optimizer {
    /// The optimizer of a completed configuration for `parameters`, with all of its state allocated, on their devices.
    ///
    /// The state of a matrix of `r` rows and `c` columns takes, in float32: AdamW `2rc`, Adafactor (both) `r + c`, SGD with
    /// momentum `rc` and without nothing.
    pub fn new(config: &config::Optimizer, parameters: &[(String, &Tensor)]) -> Optimizer {
        let rule = Rule::new(config);
        let parameters = parameters.iter().map(|(name, weight)| {
            let size = weight.size();
            let zeros = |size: Vec<i64>| Tensor::zeros(size, (Kind::Float, weight.device()));
            let state = rule.layout(&size).into_iter().map(|(_, size)| zeros(size)).collect();
            Parameter { name: name.clone(), size, steps: Tensor::from(0i64), stepped: true, state }
        });
        let parameters = parameters.collect();
        Optimizer { rule, weight_decay: config.weight_decay, parameters }
    }

    /// Begins a step, in which each parameter may be stepped once.
    pub fn begin_step(&mut self) {
        for parameter in &mut self.parameters {
            parameter.stepped = false;
        }
    }

    /// Steps `weight`, the parameter that was number `index` for [`Optimizer::new`], in place.
    ///
    /// Nothing waits for the device.
    ///
    /// # Shapes
    ///
    /// - `weight`, `grad`: the size that the parameter had for [`Optimizer::new`], any float dtype
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
    ) {
        let parameter = &mut self.parameters[index];
        let name = &parameter.name;
        assert!(!parameter.stepped, "{name}: expected one step after `begin_step`, found a second");
        assert_eq!(weight.size(), parameter.size, "{name}: size of the weight");
        assert_eq!(grad.size(), parameter.size, "{name}: size of the gradient");
        parameter.stepped = true;
        parameter.steps += 1;
        tch::no_grad(|| {
            let mut weight = weight.shallow_clone();
            let mut step = Step {
                weight: weight.to_kind(Kind::Float), // itself, if it is float32
                grad,
                count: parameter.steps.int64_value(&[]) as f64,
                learning_rate,
                weight_decay: self.weight_decay,
            };
            step.apply(&self.rule, &mut parameter.state);
            if weight.kind() != Kind::Float {
                weight.copy_(&step.weight);
            }
        });
    }

    /// The state, under names such as `exp_avg.model.norm.weight`; the count of each parameter's steps is `step.<name>`.
    ///
    /// The tensors are the live ones, not copies: write them out before the next step.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for parameter in &self.parameters {
            let layout = self.rule.layout(&parameter.size);
            let state =
                layout.iter().zip(&parameter.state).map(|((key, _), tensor)| (*key, tensor));
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
            Rule::Adamw { betas, eps } => {
                options.extend([("betas", json!(betas)), ("eps", json!(eps))]);
            }
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

    fn help(&self) -> String {
        format!("help: the state must be of `{}` and the same model", self.rule.name())
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
                Rule::Adamw { betas, eps: eps() }
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

    /// The state that a parameter of this size needs: names and sizes. The names are those of `torch.optim`, where it has one.
    fn layout(&self, size: &[i64]) -> Vec<(&'static str, Vec<i64>)> {
        let full = || size.to_vec();
        match (self, size) {
            (Rule::Adamw { .. }, _) => vec![("exp_avg", full()), ("exp_avg_sq", full())],
            (Rule::Adafactor { .. }, [outer @ .., rows, columns]) => vec![
                ("row_var", [outer, &[*rows, 1]].concat()),
                ("col_var", [outer, &[1, *columns]].concat()),
            ],
            (Rule::AdafactorSum { .. }, [outer @ .., columns]) if !outer.is_empty() => {
                vec![("row_sum", vec![outer.iter().product()]), ("col_sum", vec![*columns])]
            }
            (Rule::Adafactor { .. } | Rule::AdafactorSum { .. }, _) => vec![("variance", full())],
            (Rule::Sgd { momentum: 0.0 }, _) => vec![],
            (Rule::Sgd { .. }, _) => vec![("momentum_buffer", full())],
        }
    }
}

/// One step of one parameter.
struct Step<'a> {
    /// float32, changed in place.
    weight: Tensor,
    grad: &'a Tensor,
    /// 1 for the parameter's first step.
    count: f64,
    learning_rate: f64,
    weight_decay: f64,
}

impl Step<'_> {
    /// Changes the weight and its state.
    fn apply(&mut self, rule: &Rule, state: &mut [Tensor]) {
        match (rule, state) {
            (&Rule::Adamw { betas, eps }, [exp_avg, exp_avg_sq]) => {
                self.adamw(betas, eps, exp_avg, exp_avg_sq);
            }
            (
                &Rule::Adafactor { eps, relative_step_floor, beta2_decay, clip_threshold },
                variance,
            ) => self.adafactor(eps, relative_step_floor, beta2_decay, clip_threshold, variance),
            (&Rule::AdafactorSum { eps, beta2_decay, clip_threshold }, variance) => {
                self.adafactor_sum(eps, beta2_decay, clip_threshold, variance);
            }
            (&Rule::Sgd { momentum }, buffer) => self.sgd(momentum, buffer.first_mut()),
            (rule, state) => unreachable!("{} tensors of state for {rule:?}", state.len()),
        }
    }

    /// AdamW as `torch.optim.AdamW`: Loshchilov and Hutter (2019), <https://arxiv.org/abs/1711.05101>.
    ///
    /// # Shapes
    ///
    /// - `exp_avg`, `exp_avg_sq`: the size of the weight
    fn adamw(
        &mut self,
        [beta1, beta2]: [f64; 2],
        eps: f64,
        exp_avg: &mut Tensor,
        exp_avg_sq: &mut Tensor,
    ) {
        let grad = self.grad.to_kind(Kind::Float);
        self.decay();
        let bias_correction = |beta: f64| 1.0 - beta.powf(self.count);
        let step_size = self.scalar(-self.learning_rate / bias_correction(beta1));
        let scratch = grad.square();
        let _ = exp_avg.lerp_(&grad, 1.0 - beta1);
        let _ = exp_avg_sq.lerp_(&scratch, 1.0 - beta2);
        let mut root = exp_avg_sq.sqrt_out(&scratch);
        root /= bias_correction(beta2).sqrt();
        root += eps;
        let update = exp_avg.div_out(&scratch, &root);
        let _ = self.weight.addcmul_(&update, &step_size);
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
        &mut self,
        eps: f64,
        relative_step_floor: f64,
        beta2_decay: f64,
        clip_threshold: f64,
        state: &mut [Tensor],
    ) {
        let relative_step = self.learning_rate.min(self.count.powf(-0.5));
        // Of the weight as it is before the decay.
        let step_size = rms(&self.weight).clamp_min_(relative_step_floor) * relative_step;
        self.decay();
        let share = self.count.powf(beta2_decay);
        let mut update = match state {
            [row_var, col_var] => {
                let rows = row_var.size()[row_var.dim() - 2];
                let columns = col_var.size()[col_var.dim() - 1];
                let _ = row_var.lerp_(&(sum_of_squares(self.grad, -1, true) / columns), share);
                let _ = col_var.lerp_(&(sum_of_squares(self.grad, -2, true) / rows), share);
                let scale = row_var.mean_dim([-2].as_slice(), true, None).clamp_min_(eps);
                (&*row_var / scale) * &*col_var
            }
            [variance] => {
                let _ = variance.lerp_(&self.grad.to_kind(Kind::Float).square(), share);
                variance.copy()
            }
            _ => unreachable!("{} tensors of state", state.len()),
        };
        let _ = update.clamp_min_(eps * eps).rsqrt_().g_mul_(self.grad);
        self.subtract_clipped(&update, step_size, clip_threshold);
    }

    /// Adafactor as in the tutorial's system: sums of rows and columns, `eps` added to every squared gradient, and a step of
    /// the learning rate itself.
    ///
    /// # Shapes
    ///
    /// - `state`: `row_sum` `[R]` and `col_sum` `[C]` of a weight `[.., C]` with `R * C` elements; of a vector `variance`, its
    ///   size
    fn adafactor_sum(
        &mut self,
        eps: f64,
        beta2_decay: f64,
        clip_threshold: f64,
        state: &mut [Tensor],
    ) {
        self.decay();
        let share = self.count.powf(beta2_decay).max(1.0 - ADAFACTOR_SUM_MAX_BETA2);
        let mut update = match state {
            [row_sum, col_sum] => {
                let (rows, columns) = (row_sum.numel() as f64, col_sum.numel() as f64);
                let grad = self.grad.reshape([-1, col_sum.numel() as i64]);
                let _ = row_sum.lerp_(&(sum_of_squares(&grad, 1, false) + eps * columns), share);
                let _ = col_sum.lerp_(&(sum_of_squares(&grad, 0, false) + eps * rows), share);
                let row_factor = (&*row_sum / row_sum.sum(None)).rsqrt_();
                row_factor.outer(&col_sum.rsqrt()).reshape(self.weight.size())
            }
            [variance] => {
                let squared = self.grad.to_kind(Kind::Float).square() + eps;
                let _ = variance.lerp_(&squared, share);
                variance.rsqrt()
            }
            _ => unreachable!("{} tensors of state", state.len()),
        };
        update *= self.grad;
        let step_size = self.scalar(self.learning_rate);
        self.subtract_clipped(&update, step_size, clip_threshold);
    }

    /// Stochastic gradient descent as `torch.optim.SGD`: the decay is part of the gradient, and there is no dampening.
    fn sgd(&mut self, momentum: f64, buffer: Option<&mut Tensor>) {
        let grad = self.grad.to_kind(Kind::Float);
        let grad = match self.weight_decay {
            0.0 => grad,
            weight_decay => (&self.weight * weight_decay).g_add_(&grad),
        };
        let step_size = self.scalar(-self.learning_rate);
        let _ = match buffer {
            Some(buffer) => {
                *buffer *= momentum;
                *buffer += grad;
                self.weight.addcmul_(buffer, &step_size)
            }
            None => self.weight.addcmul_(&grad, &step_size),
        };
    }

    /// Decoupled weight decay.
    fn decay(&mut self) {
        if self.weight_decay != 0.0 {
            self.weight *= 1.0 - self.learning_rate * self.weight_decay;
        }
    }

    /// `weight -= step_size * update`, with the update scaled down to the root mean square `clip_threshold`.
    fn subtract_clipped(&mut self, update: &Tensor, step_size: Tensor, clip_threshold: f64) {
        let scale = step_size / (rms(update) / -clip_threshold).clamp_max_(-1.0);
        let _ = self.weight.addcmul_(update, &scale);
    }

    /// A number where the weight is. Filled there, so that nothing waits for a copy.
    fn scalar(&self, value: f64) -> Tensor {
        Tensor::full([0i64; 0], value, (Kind::Float, self.weight.device()))
    }
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
