//! The MLP of a layer with the output projection before it, a tile of positions at a time.
//!
//! `T` position, `D` hidden, `N` query heads, `H` head dim, `F` intermediate.

use super::kept::tiles_of;
use super::norm::add_rms_norm_backward;
use super::outputs::Outputs;
use super::products::{add_matmul, add_product, unset, zeros};
use crate::kernels;
use crate::model::block::{Block, linear, rms_norm};
use tch::Tensor;

/// The gradients of the MLP's weights, float32 (float64 for float64).
pub struct MlpGradients {
    pub post_attention_layernorm: Tensor, // [D]
    pub gate_proj: Tensor,                // [F, D]
    pub up_proj: Tensor,                  // [F, D]
    pub down_proj: Tensor,                // [D, F]
}

/// What the MLP multiplies, before the activation.
pub struct Projections {
    pub gate: Tensor, // [T, F]
    pub up: Tensor,   // [T, F]
}

impl Projections {
    /// Room for those of the positions of `x`, `[T, D]`.
    pub fn empty(x: &Tensor, layer: &Block) -> Projections {
        let (t, _) = x.size2().expect("x is [T, D]");
        let room = |weight: &Tensor| Tensor::empty([t, weight.size()[0]], (x.kind(), x.device()));
        Projections { gate: room(&layer.gate_proj), up: room(&layer.up_proj) }
    }

    /// Those of some positions, the same memory.
    fn rows(&self, from: i64, count: i64) -> Projections {
        let rows = |x: &Tensor| x.narrow(0, from, count);
        Projections { gate: rows(&self.gate), up: rows(&self.up) }
    }
}

/// The layer's output in place of its input: `h = x + o W_o`, `x = h + mlp(norm(h))`.
///
/// # Shapes
///
/// - `x`: `[T, D]`; it becomes the layer's output
/// - `outputs`: the heads', `[T, N H]` in all
/// - `keep`: takes the two projections, if they are to be kept
pub fn forward(
    x: &Tensor,
    outputs: &mut Outputs,
    layer: &Block,
    eps: f64,
    tile_tokens: i64,
    keep: Option<&Projections>,
) {
    for (from, count) in tiles_of(x, tile_tokens) {
        let (x, o) = (x.narrow(0, from, count), outputs.rows(from, count));
        add_matmul(&x, &o, &layer.o_proj.transpose(0, 1)); // x is h now
        let n = rms_norm(&x, &layer.post_attention_layernorm, eps);
        let gated = match keep {
            Some(kept) => {
                let Projections { gate, up } = kept.rows(from, count);
                let _ = n.matmul_out(&gate, &layer.gate_proj.transpose(0, 1));
                let _ = n.matmul_out(&up, &layer.up_proj.transpose(0, 1));
                swiglu(gate.copy(), &up)
            }
            None => swiglu(linear(&n, &layer.gate_proj), &linear(&n, &layer.up_proj)),
        };
        add_matmul(&x, &gated, &layer.down_proj.transpose(0, 1));
    }
}

/// The backward of [`forward`] down to `h`.
///
/// Forward: `h = x + o W_o`; `n = norm(h)`; `a = silu(n W_gate)`, `b = n W_up`; `y = h + (a b) W_down`.
/// Backward, in reverse: `dW_down`, `d(ab) = dy W_down`; `db = a d(ab)`, `da = b d(ab)`; `dW_up`, `dW_gate`;
/// `dn = .. W_up + .. W_gate`; `dh = dy + norm'(dn)`.
///
/// # Shapes
///
/// - `x`: `[T, D]`, the layer's input; `outputs`: the heads', `[T, N H]` in all
/// - `g`: `[T, D]`, the gradient of the layer's output; it becomes that of `h`
/// - `kept`: the projections, if the forward kept them; what they hold afterwards means nothing
pub fn backward(
    x: &Tensor,
    outputs: &mut Outputs,
    g: &Tensor,
    layer: &Block,
    eps: f64,
    tile_tokens: i64,
    kept: Option<Projections>,
) -> MlpGradients {
    let gradients = MlpGradients {
        post_attention_layernorm: zeros(&layer.post_attention_layernorm.size(), g),
        gate_proj: unset(&layer.gate_proj.size(), g),
        up_proj: unset(&layer.up_proj.size(), g),
        down_proj: unset(&layer.down_proj.size(), g),
    };
    for (from, count) in tiles_of(x, tile_tokens) {
        let first = from == 0;
        let (h, g) = (x.narrow(0, from, count).copy(), g.narrow(0, from, count));
        add_matmul(&h, &outputs.rows(from, count), &layer.o_proj.transpose(0, 1));
        let n = rms_norm(&h, &layer.post_attention_layernorm, eps);
        let Projections { gate, up } = match &kept {
            Some(kept) => kept.rows(from, count),
            None => {
                Projections { gate: linear(&n, &layer.gate_proj), up: linear(&n, &layer.up_proj) }
            }
        };

        // y = h + (a b) W_down, with a = silu(n W_gate), b = n W_up
        let d_gated = g.matmul(&layer.down_proj); // [t, F]
        let SwigluBackward { gated, d_gate, d_up } = swiglu_backward(gate, up, d_gated);
        add_product(&gradients.down_proj, &g, &gated, first);
        drop(gated);
        add_product(&gradients.up_proj, &d_up, &n, first);
        add_product(&gradients.gate_proj, &d_gate, &n, first);
        let dn = d_up.matmul(&layer.up_proj); // [t, D]
        add_matmul(&dn, &d_gate, &layer.gate_proj);

        // n = norm(h), and the residual stream: g already holds dy
        add_rms_norm_backward(
            &g,
            &gradients.post_attention_layernorm,
            &dn,
            &h,
            &layer.post_attention_layernorm,
            eps,
        );
    }
    gradients
}

/// `silu(gate) * up`, where `gate` is.
fn swiglu(mut gate: Tensor, up: &Tensor) -> Tensor {
    match kernels::of(&gate).is_some_and(|k| k.swiglu_(&gate, up)) {
        true => gate,
        false => gate.silu_().g_mul_(up),
    }
}

/// What comes of the product `a b` and its gradient.
struct SwigluBackward {
    gated: Tensor,  // [t, F], the product
    d_gate: Tensor, // [t, F]
    d_up: Tensor,   // [t, F]
}

/// The backward of [`swiglu`] for the gradient `d` of the product.
fn swiglu_backward(gate: Tensor, mut up: Tensor, d: Tensor) -> SwigluBackward {
    if kernels::of(&gate).is_some_and(|k| k.swiglu_backward_(&gate, &up, &d)) {
        return SwigluBackward { gated: d, d_gate: gate, d_up: up };
    }
    let mut activated = gate.silu();
    let gated = &activated * &up;
    let d_up = activated.g_mul_(&d);
    let d_gate = gate.silu_backward(&up.g_mul_(&d));
    SwigluBackward { gated, d_gate, d_up }
}
