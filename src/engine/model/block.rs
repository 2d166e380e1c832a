//! One decoder layer: its weights and its forward.
//!
//! `T` position, `D` hidden, `N` query heads, `K` key-value heads, `H` head dim, `F` intermediate.

use super::attention::AttentionKernel;
use super::rope::rotate;
use tch::Tensor;

/// The weights of one layer, each under its name in the checkpoint.
#[derive(Debug)]
pub struct Block {
    pub input_layernorm: Tensor,          // [D]
    pub q_proj: Tensor,                   // [N H, D]
    pub k_proj: Tensor,                   // [K H, D]
    pub v_proj: Tensor,                   // [K H, D]
    pub o_proj: Tensor,                   // [D, N H]
    pub post_attention_layernorm: Tensor, // [D]
    pub gate_proj: Tensor,                // [F, D]
    pub up_proj: Tensor,                  // [F, D]
    pub down_proj: Tensor,                // [D, F]
}

/// What all layers of one forward share.
pub struct Stream<'a> {
    /// Lengths of the packed documents, summing to `T`.
    pub lengths: &'a [usize],
    pub cos: &'a Tensor, // [T, H/2], float32
    pub sin: &'a Tensor, // [T, H/2], float32
    pub kernel: &'a AttentionKernel,
    pub head_dim: i64,
    pub rms_norm_eps: f64,
}

impl Block {
    /// The layer's output for the hidden states `x`: attention and MLP, each after a norm and onto the residual stream.
    ///
    /// Touvron et al. (2023), <https://arxiv.org/abs/2302.13971>: pre-norm, SwiGLU, RoPE.
    ///
    /// # Shapes
    ///
    /// - `x`: `[T, D]`, the dtype that is computed in; weights of another dtype are cast for their use
    /// - returns: `[T, D]`, the dtype of `x`
    pub fn forward(&self, x: &Tensor, stream: &Stream) -> Tensor {
        let x = x + self.attention(x, stream);
        &x + self.mlp(&x, stream.rms_norm_eps)
    }

    /// [`Block::forward`] where no gradient is asked for: `x` becomes the output, and the MLP's activations are those of
    /// `tile_tokens` positions at a time. Weights that are elsewhere are brought once.
    ///
    /// # Shapes
    ///
    /// As [`Block::forward`].
    pub fn forward_in_place(&self, x: &Tensor, stream: &Stream, tile_tokens: i64) {
        let here = self.map(|weight| cast(weight, x));
        let _ = x.shallow_clone().g_add_(&here.attention(x, stream));
        let (t, _) = x.size2().expect("x is [T, D]");
        for from in (0..t).step_by(tile_tokens as usize) {
            let mut rows = x.narrow(0, from, tile_tokens.min(t - from));
            rows += here.mlp(&rows, stream.rms_norm_eps);
        }
    }

    fn attention(&self, x: &Tensor, stream: &Stream) -> Tensor {
        let normed = rms_norm(x, &self.input_layernorm, stream.rms_norm_eps);
        let (t, _) = x.size2().expect("x is [T, D]");
        let heads = |weight: &Tensor| linear(&normed, weight).view([t, -1, stream.head_dim]);
        let q = rotate(&heads(&self.q_proj), stream.cos, stream.sin); // [T, N, H]
        let k = rotate(&heads(&self.k_proj), stream.cos, stream.sin); // [T, K, H]
        let o = stream.kernel.forward(&q, &k, &heads(&self.v_proj), stream.lengths);
        linear(&o.reshape([t, -1]), &self.o_proj)
    }

    fn mlp(&self, x: &Tensor, rms_norm_eps: f64) -> Tensor {
        let normed = rms_norm(x, &self.post_attention_layernorm, rms_norm_eps);
        let gated = linear(&normed, &self.gate_proj).silu() * linear(&normed, &self.up_proj);
        linear(&gated, &self.down_proj)
    }

    /// The same layer with `f` of every weight.
    pub fn map(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> Block {
        Block {
            input_layernorm: f(&self.input_layernorm),
            q_proj: f(&self.q_proj),
            k_proj: f(&self.k_proj),
            v_proj: f(&self.v_proj),
            o_proj: f(&self.o_proj),
            post_attention_layernorm: f(&self.post_attention_layernorm),
            gate_proj: f(&self.gate_proj),
            up_proj: f(&self.up_proj),
            down_proj: f(&self.down_proj),
        }
    }

    /// The weights with their names in the checkpoint, for layer `index`.
    pub fn parameters(&self, index: usize) -> [(String, &Tensor); 9] {
        let name = |rest: &str| format!("model.layers.{index}.{rest}.weight");
        [
            (name("input_layernorm"), &self.input_layernorm),
            (name("self_attn.q_proj"), &self.q_proj),
            (name("self_attn.k_proj"), &self.k_proj),
            (name("self_attn.v_proj"), &self.v_proj),
            (name("self_attn.o_proj"), &self.o_proj),
            (name("post_attention_layernorm"), &self.post_attention_layernorm),
            (name("mlp.gate_proj"), &self.gate_proj),
            (name("mlp.up_proj"), &self.up_proj),
            (name("mlp.down_proj"), &self.down_proj),
        ]
    }
}

/// Scales every position of `x` to unit root mean square, then by `weight`.
///
/// Zhang and Sennrich (2019), <https://arxiv.org/abs/1910.07467>.
///
/// # Shapes
///
/// - `x`: `[T, D]`, any float dtype; the mean square is taken in float32
/// - `weight`: `[D]`
/// - returns: `[T, D]`, the dtype of `x`
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let (_, d) = x.size2().expect("x is [T, D]");
    x.rms_norm([d], Some(cast(weight, x)), eps)
}

/// `x W^T`, in the dtype of `x` and where `x` is.
///
/// # Shapes
///
/// - `x`: `[T, in]`; `weight`: `[out, in]`
/// - returns: `[T, out]`
pub fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear(&cast(weight, x), None::<&Tensor>)
}

/// `weight` with the dtype and device of `like`: itself, where it has them.
pub fn cast(weight: &Tensor, like: &Tensor) -> Tensor {
    let here = weight.to_device(like.device());
    if here.kind() == like.kind() { here } else { here.to_kind(like.kind()) }
}
