//! One optimizer step's forward and backward on the plain path: ordinary autograd, with the loss tiled over the sequence.
//!
//! This path is small on purpose: it is the judge that other paths are compared with.
//!
//! `T` position in the stream, `D` hidden, `V` vocabulary.

use crate::model::Model;
use crate::torch::backward;
use tch::{Kind, Reduction, Tensor, no_grad};

/// A micro-batch on the device: documents back to back, without padding.
pub struct Stream {
    pub input_ids: Tensor, // [T], int64
    /// The next token of the same document; -100 where there is none.
    pub labels: Tensor, // [T], int64
    pub lengths: Vec<usize>,
}

/// How the forward and backward are carried out.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Positions whose logits exist at one time.
    pub loss_tile_tokens: usize,
    /// Keep only each layer's input, and recompute the layer in the backward.
    pub activation_checkpointing: bool,
}

/// Forward and backward of one micro-batch; gradients accumulate in the weights.
///
/// The loss is the sum over the labelled positions times `scale`, so that micro-batches of one step add up to a mean over
/// all its tokens. Returns the unscaled sum of NLL, a float64 scalar still on the device.
///
/// Memory: without checkpointing all activations of all layers; with it `T D` a layer and one layer's activations; logits
/// of one tile in either case.
pub fn forward_backward(model: &Model, stream: &Stream, scale: f64, plan: Plan) -> Tensor {
    if plan.activation_checkpointing {
        return checkpointed(model, stream, scale, plan);
    }
    let hidden = model.hidden(&stream.input_ids, &stream.lengths);
    let (nll, d_hidden) = loss(model, &hidden, &stream.labels, scale, plan.loss_tile_tokens);
    backward(&hidden, &d_hidden);
    nll
}

/// The forward under no_grad with each layer's input kept, then layer by layer from the last: recompute and backward.
fn checkpointed(model: &Model, stream: &Stream, scale: f64, plan: Plan) -> Tensor {
    model.with_stream(&stream.lengths, |shared| {
        let mut inputs = Vec::with_capacity(model.layers.len()); // [T, D] each
        let last = no_grad(|| {
            model.layers.iter().fold(model.embed(&stream.input_ids), |x, layer| {
                let output = layer.forward(&x, shared);
                inputs.push(x);
                output
            })
        });

        let x = leaf(&last);
        let hidden = model.last_norm(&x);
        let (nll, d_hidden) = loss(model, &hidden, &stream.labels, scale, plan.loss_tile_tokens);
        backward(&hidden, &d_hidden);
        let mut dx = x.grad();
        for layer in model.layers.iter().rev() {
            let x = leaf(&inputs.pop().expect("one input a layer"));
            backward(&layer.forward(&x, shared), &dx);
            dx = x.grad();
        }
        backward(&model.embed(&stream.input_ids), &dx);
        nll
    })
}

/// The loss and its gradient by the hidden states, a tile of positions at a time: `[T, V]` logits never exist whole.
///
/// # Shapes
///
/// - `hidden`: `[T, D]`; `labels`: `[T]`, int64
/// - returns: the sum of NLL (float64 scalar) and `d_hidden` `[T, D]`, the gradient of `scale` times the sum
fn loss(
    model: &Model,
    hidden: &Tensor,
    labels: &Tensor,
    scale: f64,
    tile_tokens: usize,
) -> (Tensor, Tensor) {
    let (t, _) = hidden.size2().expect("hidden is [T, D]");
    let mut total = Tensor::zeros([], (Kind::Double, model.device));
    let mut d_tiles = Vec::new();
    for from in (0..t).step_by(tile_tokens) {
        let count = (tile_tokens as i64).min(t - from);
        let tile = leaf(&hidden.narrow(0, from, count));
        let nll = model.logits(&tile).cross_entropy_loss(
            &labels.narrow(0, from, count),
            None::<&Tensor>,
            Reduction::Sum,
            -100,
            0.0,
        );
        (&nll * scale).backward();
        total += nll.detach();
        d_tiles.push(tile.grad());
    }
    (total, Tensor::cat(&d_tiles, 0))
}

fn leaf(x: &Tensor) -> Tensor {
    x.detach().set_requires_grad(true)
}
