//! The layered engine: forward and backward by hand, one layer at a time, with no autograd graph at all.
//!
//! The forward keeps only the input of every layer (of every `checkpoint_every_layers`th), on the device or in host memory.
//! The loss is tiled over the sequence. Then, from the last layer back: bring its input, recompute, backward, and hand each
//! sublayer's gradients to whoever takes them; a weight can be stepped there and its gradient dropped at once.
//!
//! Device memory, beside the weights, at its highest (the attention backward of one layer): the layer's input, the heads'
//! outputs (if they are not in host memory), the gradient of the layer's output and of its normed input, `4 T D`; and of one
//! group of heads the queries, keys and values, their gradients, and the kernel's own. [`fathom_spec::plan`] has the whole
//! arithmetic.
//!
//! `T` position, `D` hidden, `V` vocabulary, `L` layers.

pub mod activations;
pub mod attention;
pub mod gradients;
pub mod kept;
pub mod kernel;
pub mod loss;
pub mod mlp;
mod norm;
mod outputs;
mod products;
pub mod weights;

use super::step::Stream;
use crate::model::block::{self, Block};
use crate::model::{Model, at_least_float};
use crate::torch::{Event, SideStream};
use activations::{Activations, OfLayer};
use attention::{AttentionGradients, Done, HeadGroup, Shared, head_groups};
use fathom_spec::config::Attention;
use fathom_spec::plan::Settings;
use gradients::{Gradient, Gradients};
use kept::{Arrived, KeptRows, tiles_of};
use kernel::{HeadShape, Kernel};
use loss::{Head, Loss};
use mlp::{MlpGradients, Projections};
use outputs::{HostOutputs, Outputs};
use serde_json::{Value, json};
use std::rc::Rc;
use tch::{Kind, Tensor, no_grad};
use weights::{LayerWeights, Weights};

/// A model with what its steps need, kept from step to step.
pub struct Layered<'a> {
    model: &'a Model,
    settings: Settings,
    /// Work only so many layers, to measure memory and speed.
    probe_layers: Option<usize>,
    /// In a probe, device memory in place of what the layers that are not worked would keep.
    ballast: Option<Tensor>, // [bytes]
    kernel: Kernel,
    groups: Vec<HeadGroup>,
    inputs: KeptRows,
    activations: Activations,
    /// Where the heads' outputs of a layer wait for its backward, if not on the device.
    host_outputs: Option<HostOutputs>,
    weights: Weights<'a>,
}

/// Told when a phase of the step begins: `forward`, `loss`, `recompute`, `mlp_backward`, `attention_backward`, `optimizer`.
pub type Watch<'w> = dyn FnMut(&'static str) + 'w;

/// What one pass of the backward goes by.
struct Pass<'p, 's> {
    stream: &'p Stream,
    shared: &'p block::Stream<'s>,
    scale: f64,
    /// Whether layer inputs are dropped when they have served.
    last: bool,
}

impl<'a> Layered<'a> {
    /// The engine for `model`. `attention` as the model's own; the kernel is chosen for what the device has.
    ///
    /// # Panics
    ///
    /// When there are more groups of heads than key-value heads.
    pub fn new(model: &'a Model, attention: Attention, settings: Settings) -> Layered<'a> {
        let config = &model.config;
        let groups = head_groups(
            config.num_attention_heads,
            config.num_key_value_heads(),
            settings.attention_head_groups,
        );
        let heads = HeadShape {
            num_heads: groups[0].num_heads(),
            num_key_value_heads: groups[0].num_key_value_heads,
            head_dim: config.head_dim() as i64,
        };
        let kernel = no_grad(|| {
            Kernel::new(attention, config.sliding_window, heads, model.dtype, model.device)
        });
        let tile_tokens = settings.row_tile_tokens as i64;
        let side = settings.activation_offloading.then(|| Rc::new(SideStream::new(model.device)));
        Layered {
            kernel,
            activations: Activations::new(
                settings.recompute,
                &groups,
                heads.head_dim,
                side.as_ref(),
                tile_tokens * config.hidden_size as i64,
                model.device,
            ),
            groups,
            inputs: KeptRows::new(side, tile_tokens, model.device),
            host_outputs: settings.attention_offloading.then(|| {
                let row = config.num_attention_heads * config.head_dim();
                let tile_elements = tile_tokens * config.hidden_size as i64;
                HostOutputs::new(tile_elements.max(row as i64), model.device)
            }),
            weights: Weights::new(model, settings.weight_streaming),
            model,
            settings,
            probe_layers: None,
            ballast: None,
        }
    }

    /// Works only the first `layers` layers from now on: the memory is that of all of them, the loss means nothing.
    pub fn probe(&mut self, layers: usize) {
        self.probe_layers = Some(layers);
    }

    /// What the engine was given, as it uses it, by key path.
    pub fn describe(&self) -> Vec<(&'static str, Value)> {
        let settings = &self.settings;
        vec![
            ("train.attention_head_groups", json!(self.groups.len())),
            ("train.mlp_tile_tokens", json!(settings.mlp_tile_tokens)),
            ("train.loss_tile_tokens", json!(settings.loss_tile_tokens)),
            ("train.row_tile_tokens", json!(settings.row_tile_tokens)),
            ("train.activation_offloading", json!(self.inputs.offloads())),
            ("train.attention_offloading", json!(self.host_outputs.is_some())),
            ("train.checkpoint_every_layers", json!(settings.checkpoint_every_layers)),
            ("train.recompute", json!(settings.recompute)),
            ("train.recompute_num_layers", json!(settings.recompute_num_layers)),
            ("train.weight_streaming", json!(self.weights.streams())),
            ("run.probe_layers", json!(self.probe_layers.map(|_| self.num_layers()))),
        ]
    }

    /// The faster attention kernels that do not serve here, with what was wrong.
    pub fn kernels_passed_over(&self) -> &[String] {
        self.kernel.passed_over()
    }

    /// The attention kernels that served so far.
    pub fn kernels(&self) -> Vec<&'static str> {
        self.kernel.used()
    }

    /// Forward and backward of one micro-batch. `gradients` takes those of `scale` times the sum of NLL over the labelled
    /// positions, each once. Returns the unscaled sum of NLL, a float64 scalar still on the device.
    pub fn forward_backward(
        &mut self,
        stream: &Stream,
        scale: f64,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) -> Tensor {
        self.with_stream(stream, |engine, shared| {
            let x = engine.forward(&stream.input_ids, shared, watch);
            let pass = Pass { stream, shared, scale, last: true };
            engine.backward(x, &pass, gradients, watch)
        })
    }

    /// The same with two backwards after one forward, for what the second has to know of all gradients first.
    ///
    /// `between` makes what takes the gradients of the second from what took those of the first.
    pub fn forward_backward_twice<First: Gradients, Second: Gradients>(
        &mut self,
        stream: &Stream,
        scale: f64,
        mut first: First,
        between: impl FnOnce(First) -> Second,
        watch: &mut Watch,
    ) -> (Tensor, Second) {
        self.with_stream(stream, |engine, shared| {
            let x = engine.forward(&stream.input_ids, shared, watch);
            let last_output = x.copy();
            let pass = Pass { stream, shared, scale, last: false };
            let _ = engine.backward(x, &pass, &mut first, watch);
            let mut second = between(first);
            let pass = Pass { last: true, ..pass };
            let nll = engine.backward(last_output, &pass, &mut second, watch);
            (nll, second)
        })
    }

    fn with_stream<R>(
        &mut self,
        stream: &Stream,
        f: impl FnOnce(&mut Self, &block::Stream) -> R,
    ) -> R {
        let model = self.model;
        no_grad(|| model.with_stream(&stream.lengths, |shared| f(self, shared)))
    }

    /// The output of the last layer: `[T, D]`. What the backward needs is kept in `self.inputs`.
    fn forward(&mut self, input_ids: &Tensor, shared: &block::Stream, watch: &mut Watch) -> Tensor {
        watch("forward");
        let x = Arrived::here(self.model.embed(input_ids));
        let layers = self.num_layers();
        for layer in 0..layers {
            let checkpointed = layer % self.settings.checkpoint_every_layers == 0;
            let kept = checkpointed.then(|| self.inputs.keep(layer, &x.all()));
            self.layer_forward(layer, (layer + 1).min(layers - 1), &x, kept, shared);
        }
        let x = x.all();
        self.ballast = self.not_kept(&x);
        x
    }

    /// What the layers that a probe leaves out would keep on the device.
    fn not_kept(&self, x: &Tensor) -> Option<Tensor> {
        let every = self.settings.checkpoint_every_layers;
        let (all, worked) = (self.model.layers.len(), self.num_layers());
        let inputs = all.div_ceil(every) - worked.div_ceil(every);
        let layers = (all - worked) as i64;
        let (t, d) = x.size2().expect("x is [T, D]");
        let config = &self.model.config;
        let keep_mlp = self.settings.layers_that_keep_mlp(all).saturating_sub(worked) as i64;
        let projections = keep_mlp * 2 * config.intermediate_size as i64;
        let on_device = projections
            + match self.inputs.offloads() {
                true => 0,
                false => inputs as i64 * d + layers * self.activations.attention_width(config),
            };
        let bytes = t
            * (on_device * x.kind().elt_size_in_bytes() as i64
                + layers * self.activations.log_sum_exp_bytes(config));
        (bytes > 0).then(|| Tensor::empty([bytes], (Kind::Uint8, x.device())))
    }

    /// The layers that are worked.
    fn num_layers(&self) -> usize {
        let all = self.model.layers.len();
        self.probe_layers.map_or(all, |probe| probe.min(all))
    }

    /// Whether a layer's backward finds the MLP's projections. The last layers do, so those that a probe works stand for these.
    fn keeps_mlp(&self, layer: usize) -> bool {
        let all = self.model.layers.len();
        layer + self.settings.layers_that_keep_mlp(all) >= self.num_layers()
    }

    /// One layer in place: `x`, its input, becomes its output, once `kept` has happened. What is not to be recomputed is
    /// kept.
    fn layer_forward(
        &mut self,
        layer: usize,
        next: usize,
        x: &Arrived,
        kept: Option<Event>,
        shared: &block::Stream,
    ) {
        let keeps_mlp = self.keeps_mlp(layer);
        let weights = self.weights.take(layer);
        self.weights.prefetch(next);
        let Layered { kernel, groups, settings, activations, .. } = self;
        let of_layers = of_layers(shared, kernel, groups, settings);
        // The forward has memory to spare.
        let mut outputs = Outputs::new(None);
        let saved =
            attention::forward(x, &weights.used, &of_layers, &mut outputs, |index, heads| {
                activations.keep_heads(layer, index, heads);
            });
        activations.keep_outputs(layer, &outputs, saved);
        if let Some(kept) = kept {
            kept.wait();
        }
        let x = x.all();
        let tile = settings.mlp_tile_tokens as i64;
        let projections = keeps_mlp.then(|| Projections::empty(&x, &weights.used));
        let eps = shared.rms_norm_eps;
        mlp::forward(&x, &mut outputs, &weights.used, eps, tile, projections.as_ref());
        if let Some(projections) = projections {
            activations.keep_projections(layer, projections);
        }
        activations.settle();
    }

    /// The backward of the whole model from the last layer's output `x`; returns the sum of NLL.
    fn backward(
        &mut self,
        x: Tensor,
        pass: &Pass,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) -> Tensor {
        let every = self.settings.checkpoint_every_layers;
        let (tokens, _) = x.size2().expect("x is [T, D]");
        self.inputs.begin_backward(tokens);
        self.activations.begin_backward(tokens);
        watch("loss");
        let g = x;
        let (nll, d_tied) = self.loss_backward(&g, pass, gradients, watch);
        for first in (0..self.num_layers()).step_by(every).rev() {
            self.backward_from_checkpoint(first, &g, pass, gradients, watch);
        }
        self.inputs.end_backward();
        self.activations.end_backward();
        if pass.last {
            self.ballast = None;
        }
        self.embedding_backward(&g, d_tied, pass, gradients, watch);
        self.weights.finish();
        nll
    }

    /// The loss: `g`, the last layer's output, becomes its gradient. A tied head's gradient is not all of its weight's: it is
    /// returned.
    fn loss_backward(
        &mut self,
        g: &Tensor,
        pass: &Pass,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) -> (Tensor, Option<Tensor>) {
        let model = self.model;
        let (norm, lm_head) = (self.weights.bring(&model.norm), self.weights.bring(model.head()));
        let head = Head {
            norm: block::cast(&norm, g),
            lm_head: block::cast(&lm_head, g),
            rms_norm_eps: model.config.rms_norm_eps,
        };
        let tile = self.settings.loss_tile_tokens as i64;
        let Loss { nll, d_norm, d_lm_head } =
            loss::loss(&head, g, &pass.stream.labels, pass.scale, tile);
        drop(head);
        watch("optimizer");
        let index = norm_index(model);
        let norm_gradient = Gradient { index, weight: norm.shallow_clone(), gradient: d_norm };
        let mut sublayer = vec![norm_gradient];
        let mut d_tied = None;
        match &model.lm_head {
            Some(_) => sublayer.push(Gradient {
                index: index + 1,
                weight: lm_head.shallow_clone(),
                gradient: d_lm_head,
            }),
            None => d_tied = Some(d_lm_head),
        }
        gradients.take(sublayer);
        if pass.last {
            self.weights.bring_back(&model.norm, &norm);
            if let Some(kept) = &model.lm_head {
                self.weights.bring_back(kept, &lm_head);
            }
        }
        (nll, d_tied)
    }

    /// The backward of the layers from the checkpoint at `first` up to the next one, from the last of them back.
    fn backward_from_checkpoint(
        &mut self,
        first: usize,
        g: &Tensor,
        pass: &Pass,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) {
        let end = (first + self.settings.checkpoint_every_layers).min(self.num_layers());
        let mut x = if end - first > 1 {
            watch("recompute");
            Some(self.recompute_inputs(first, end, pass.shared))
        } else {
            None
        };
        for layer in (first..end).rev() {
            let x = x.take().unwrap_or_else(|| self.inputs.fetch(layer));
            let next_input = match layer.checked_sub(1) {
                Some(below) if below >= first => Some(below),
                Some(_) => Some(first - self.settings.checkpoint_every_layers),
                None => None,
            };
            self.layer_backward(layer, next_input, &x, g, pass, gradients, watch);
            if pass.last || layer != first {
                self.inputs.forget(layer);
            }
        }
    }

    /// Runs forward again from the checkpoint at `first` and keeps the inputs of the layers before the last: returns that of
    /// the last, `end - 1`.
    fn recompute_inputs(&mut self, first: usize, end: usize, shared: &block::Stream) -> Arrived {
        let x = self.inputs.fetch_to_write(first);
        for layer in first..end - 1 {
            let kept = (layer > first).then(|| self.inputs.keep(layer, &x.all()));
            self.layer_forward(layer, layer + 1, &x, kept, shared);
        }
        Arrived::here(x.all())
    }

    /// One layer back: `g`, the gradient of its output, becomes that of its input. `next_input` is needed after it.
    #[expect(clippy::too_many_arguments, reason = "a layer, its place, and the pass that works it")]
    fn layer_backward(
        &mut self,
        layer: usize,
        next_input: Option<usize>,
        x: &Arrived,
        g: &Tensor,
        pass: &Pass,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) {
        let LayerWeights { kept, used } = self.weights.take(layer);
        self.weights.prefetch(layer.saturating_sub(1));
        let Layered { inputs, activations, host_outputs, kernel, groups, settings, .. } = self;
        let shared = of_layers(pass.shared, kernel, groups, settings);

        let (mut outputs, saved, heads, projections) = match activations.fetch(layer) {
            Some(OfLayer { outputs, saved, heads, projections }) => {
                (Outputs::kept(outputs), saved, heads, projections)
            }
            None => {
                watch("recompute");
                let mut outputs = Outputs::new(host_outputs.as_mut());
                let saved = attention::forward(x, &used, &shared, &mut outputs, |_, _| {});
                (outputs, saved, Vec::new(), None)
            }
        };

        watch("mlp_backward");
        let (eps, tile) = (pass.shared.rms_norm_eps, settings.mlp_tile_tokens as i64);
        let d_mlp = mlp::backward(&x.all(), &mut outputs, g, &used, eps, tile, projections);
        watch("optimizer");
        gradients.take(of_mlp(d_mlp, layer, &kept));

        watch("attention_backward");
        let done = |done: Done| match (done, next_input) {
            (Done::Group(index), _) => {
                activations.done_with_group(layer, index, layer.checked_sub(1));
            }
            (Done::Rows(from, count), Some(next)) => inputs.refill(next, from, count),
            (Done::Rows(..), None) => {}
        };
        let d_attention =
            attention::backward(x, &mut outputs, saved, &heads, g, &used, &shared, done);
        activations.done_with_layer(layer.checked_sub(1));
        drop(outputs);
        watch("optimizer");
        gradients.take(of_attention(d_attention, layer, &kept));
        if pass.last {
            self.weights.write_back(layer);
        }
    }

    /// The embedding's gradient: the rows of `g`, `[T, D]`, summed by token, onto that of a tied head.
    fn embedding_backward(
        &mut self,
        g: &Tensor,
        d_tied: Option<Tensor>,
        pass: &Pass,
        gradients: &mut dyn Gradients,
        watch: &mut Watch,
    ) {
        watch("embedding_backward");
        let table = self.weights.bring(&self.model.embed_tokens);
        let mut d_table = d_tied.unwrap_or_else(|| products::zeros(&table.size(), g));
        for (from, count) in tiles_of(g, self.settings.row_tile_tokens as i64) {
            let rows = g.narrow(0, from, count).to_kind(at_least_float(g.kind()));
            // In a fixed order on every device, which `index_add_` is not.
            let ids = pass.stream.input_ids.narrow(0, from, count);
            let _ = d_table.index_put_(&[Some(ids)], &rows, true);
        }
        watch("optimizer");
        gradients.take(vec![Gradient {
            index: 0,
            weight: table.shallow_clone(),
            gradient: d_table,
        }]);
        if pass.last {
            self.weights.bring_back(&self.model.embed_tokens, &table);
        }
    }
}

/// What the attention of every layer shares.
fn of_layers<'s>(
    stream: &'s block::Stream<'s>,
    kernel: &'s Kernel,
    groups: &'s [HeadGroup],
    settings: &Settings,
) -> Shared<'s> {
    Shared { stream, kernel, groups, tile_tokens: settings.row_tile_tokens as i64 }
}

/// The place of the last norm in [`Model::parameters`]; the head's, if there is one, is the next.
fn norm_index(model: &Model) -> usize {
    1 + model.layers.len() * WEIGHTS_OF_A_LAYER
}

/// Weights of a layer, in the order of [`Block::parameters`].
const WEIGHTS_OF_A_LAYER: usize = 9;

fn of_attention(gradients: AttentionGradients, layer: usize, kept: &Block) -> Vec<Gradient> {
    let first = 1 + layer * WEIGHTS_OF_A_LAYER;
    let AttentionGradients { input_layernorm, q_proj, k_proj, v_proj, o_proj } = gradients;
    let parts = [
        (0, &kept.input_layernorm, input_layernorm),
        (1, &kept.q_proj, q_proj),
        (2, &kept.k_proj, k_proj),
        (3, &kept.v_proj, v_proj),
        (4, &kept.o_proj, o_proj),
    ];
    parts.into_iter().map(|part| gradient(first, part)).collect()
}

fn of_mlp(gradients: MlpGradients, layer: usize, kept: &Block) -> Vec<Gradient> {
    let first = 1 + layer * WEIGHTS_OF_A_LAYER;
    let MlpGradients { post_attention_layernorm, gate_proj, up_proj, down_proj } = gradients;
    let parts = [
        (5, &kept.post_attention_layernorm, post_attention_layernorm),
        (6, &kept.gate_proj, gate_proj),
        (7, &kept.up_proj, up_proj),
        (8, &kept.down_proj, down_proj),
    ];
    parts.into_iter().map(|part| gradient(first, part)).collect()
}

fn gradient(first: usize, (place, weight, gradient): (usize, &Tensor, Tensor)) -> Gradient {
    Gradient { index: first + place, weight: weight.shallow_clone(), gradient }
}
