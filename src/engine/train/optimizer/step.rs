//! The arithmetic of one step of one parameter by each rule, block by block.

use super::Rule;
use super::quantized::{Codebooks, QUANTIZATION_BLOCK, Quantized};
use crate::kernels;
use crate::kernels::adafactor::{AdafactorRule, AdafactorStep};
use crate::torch;
use tch::{Kind, Tensor};

/// [`Rule::AdafactorSum`] remembers at most this share of its second moment from one step to the next, which
/// `beta2_decay: -0.8` reaches at step 5624; the default of the system that it follows.
const ADAFACTOR_SUM_MAX_BETA2: f64 = 0.999;

/// One step of one parameter.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    /// Changed in place.
    pub weight: &'a Tensor,
    pub grad: &'a Tensor,
    /// 1 for the parameter's first step.
    pub count: f64,
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// Seeds the rounding; `None` rounds to the nearest.
    pub rounding: Option<u64>,
    pub block_elements: i64,
    /// Where state may be in 8 bits.
    pub codebooks: Option<&'a Codebooks>,
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
    pub fn apply(&self, rule: &Rule, state: &mut [Tensor]) -> Option<Tensor> {
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
pub(super) fn mix(seed: u64, stream: u64) -> u64 {
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
