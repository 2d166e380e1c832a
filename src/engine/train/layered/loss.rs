//! The loss with its gradient, a tile of positions at a time: the `[T, V]` logits never exist whole.
//!
//! `T` position, `D` hidden, `V` vocabulary.

use super::kept::tiles_of;
use super::norm::add_rms_norm_backward;
use super::products::{add_product, unset, zeros};
use crate::kernels;
use crate::model::at_least_float;
use crate::model::block::{linear, rms_norm};
use tch::{Kind, Tensor};

/// The label of a position that predicts nothing.
const IGNORE_INDEX: i64 = -100;

/// The weights between the last layer and the loss, in the dtype that is computed in.
pub struct Head {
    pub norm: Tensor,    // [D]
    pub lm_head: Tensor, // [V, D]
    pub rms_norm_eps: f64,
}

/// What came of the loss, beside the gradient of its input.
pub struct Loss {
    /// The sum of NLL over the labelled positions: a float64 scalar.
    pub nll: Tensor,
    pub d_norm: Tensor,    // [D], float32 (float64 for float64)
    pub d_lm_head: Tensor, // [V, D], the same
}

/// Norm, head and cross-entropy, forward and backward: `x` becomes the gradient of `scale` times the sum of NLL.
///
/// Forward: `n = norm(x)`; `z = n W`; `nll = log(sum(exp(z))) - z[label]`. Backward, in reverse: `dz = scale (softmax(z) -
/// onehot(label))`, 0 where there is no label; `dW`, `dn = dz W`; `dx = norm'(dn)`.
///
/// # Shapes
///
/// - `x`: `[T, D]`, the last layer's output; it becomes its gradient
/// - `labels`: `[T]`, int64
pub fn loss(head: &Head, x: &Tensor, labels: &Tensor, scale: f64, tile_tokens: i64) -> Loss {
    let loss = Loss {
        nll: Tensor::zeros([], (Kind::Double, x.device())),
        d_norm: zeros(&head.norm.size(), x),
        d_lm_head: unset(&head.lm_head.size(), x),
    };
    for (from, count) in tiles_of(x, tile_tokens) {
        let (x, labels) = (x.narrow(0, from, count), labels.narrow(0, from, count));
        let n = rms_norm(&x, &head.norm, head.rms_norm_eps);
        let logits = linear(&n, &head.lm_head);
        let (nll, d_logits) = cross_entropy(logits, &labels, scale);
        let _ = loss.nll.shallow_clone().g_add_(&nll);
        add_product(&loss.d_lm_head, &d_logits, &n, from == 0);
        let dn = d_logits.matmul(&head.lm_head);
        let dx = x.zeros_like();
        add_rms_norm_backward(&dx, &loss.d_norm, &dn, &x, &head.norm, head.rms_norm_eps);
        x.shallow_clone().copy_(&dx);
    }
    loss
}

/// # Shapes
///
/// - `logits`: `[t, V]`; `labels`: `[t]`, int64
/// - returns: the sum of NLL (float64 scalar) and the gradient of `scale` times it `[t, V]`, the dtype of `logits`
fn cross_entropy(logits: Tensor, labels: &Tensor, scale: f64) -> (Tensor, Tensor) {
    if let Some(nll) = kernels::of(&logits).and_then(|k| k.cross_entropy_(&logits, labels, scale)) {
        return (nll.sum(Kind::Double), logits);
    }
    let kind = logits.kind();
    let exact = at_least_float(kind);
    let mut scores = logits.to_kind(exact);
    drop(logits);
    let counts = labels.not_equal(IGNORE_INDEX).unsqueeze(1).to_kind(exact); // [t, 1]
    let label = labels.clamp_min(0).unsqueeze(1); // [t, 1]
    // In place from here on: one `[t, V]` in float32, not several.
    scores -= scores.amax([1i64].as_slice(), true);
    let picked = scores.gather(1, &label, false);
    let mut exponentials = scores.exp_();
    let sum = exponentials.sum_dim_intlist([1i64].as_slice(), true, exact); // [t, 1]
    let nll = ((sum.log() - picked) * &counts).sum(Kind::Double);
    let weight = counts * scale;
    exponentials *= &weight / sum;
    let d_logits = exponentials.scatter_add_(1, &label, &weight.neg());
    (nll, d_logits.to_kind(kind))
}
