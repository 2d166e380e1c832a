//! AdamW's step of one tensor, in one pass over it.

use super::{fathom_adamw_step, must};
use tch::{Kind, Tensor};

/// What a step of AdamW goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adamw {
    pub learning_rate: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    /// Decoupled: the weight shrinks by `learning_rate * weight_decay` of itself.
    pub weight_decay: f64,
    /// Of this tensor, this one included: what its moments' bias is corrected by.
    pub steps: f64,
}

impl Adamw {
    /// Steps `weight` and its moments in place: `torch.optim.AdamW` with `fused=True`.
    ///
    /// # Shapes
    ///
    /// All of one size, float32, contiguous, on one device.
    ///
    /// # Panics
    ///
    /// With LibTorch's message where they are not.
    pub fn step(&self, weight: &Tensor, gradient: &Tensor, exp_avg: &Tensor, exp_avg_sq: &Tensor) {
        // Filled there, so that nothing waits for a copy.
        let steps = Tensor::full([0i64; 0], self.steps, (Kind::Float, weight.device()));
        let options =
            [self.learning_rate, self.betas[0], self.betas[1], self.weight_decay, self.eps];
        // SAFETY: the pointers are to live tensors and to five numbers.
        must(unsafe {
            fathom_adamw_step(
                weight.as_ptr(),
                gradient.as_ptr(),
                exp_avg.as_ptr(),
                exp_avg_sq.as_ptr(),
                steps.as_ptr(),
                options.as_ptr(),
            )
        });
    }
}
