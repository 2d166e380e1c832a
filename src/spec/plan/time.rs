//! Arithmetic and time of a step.
//!
//! FLOPs of one 7B step differ by up to 2.6 between conventions, so each has a name here. A product of `[T, A]` and `[A, B]`
//! is `2 T A B`. `P_d` are the dense weights: those that every position is multiplied with, the embedding is not one.

use super::Settings;
use crate::config::{Dtype, GradClipping, ModelConfig, OptimizerType, RunConfig, StateDtype};

/// What a step computes and moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    pub tokens: u64,
    /// `8 P_d T` with one recompute: 2 forward, 2 recomputed, 4 backward; more with thinned checkpoints or a second pass.
    pub dense_flops: f64,
    /// `9 L (N H) T^2` for one causal document: 2 forward, 2 recomputed, 5 backward; less for windows and packed documents.
    pub attention_flops: f64,
    /// `6 P_d T + 6 L (N H) T^2`: what the model needs, whoever computes it and however often.
    pub model_flops: f64,
    /// `6 P T + 12 L (N H) T^2`: the convention that counts the embedding, and the hidden half of the scores.
    pub full_square_flops: f64,
    /// What is read and written to step the weights.
    pub optimizer_bytes: f64,
    /// Weights that cross the link to the host and back.
    pub streamed_bytes: f64,
    /// Layer inputs, and what else is kept, that goes to the host, once.
    pub offloaded_bytes: f64,
    /// Kernels that the host launches one after the other, which is all that a small model's step takes.
    pub launches: f64,
}

impl Work {
    /// `dense_flops + attention_flops`: what the hardware computes.
    pub fn hardware_flops(&self) -> f64 {
        self.dense_flops + self.attention_flops
    }
}

/// How fast a machine is, as measured on steps of this engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Sustained in large products, FLOP/s.
    pub dense: f64,
    /// Sustained in fused attention, FLOP/s.
    pub attention: f64,
    /// Of the device's memory, bytes/s.
    pub memory: f64,
    /// Between host and device, bytes/s, in one direction.
    pub link: f64,
    /// To launch a kernel, seconds.
    pub launch: f64,
}

/// One H100 with cuDNN attention in bfloat16, fitted to this engine's steps of Llama-2-7B: 0.376 s at 4,096 tokens, 5.60 s at
/// 32,768, 11.3 s at 53,248. Launches are of a step that takes 0.032 s at 512 tokens as at 4,096: SmolLM2-135M's shape.
pub const H100: Speed =
    Speed { dense: 590e12, attention: 510e12, memory: 3.0e12, link: 50e9, launch: 7e-6 };
/// Two cores of an x86-64 server in float32, measured on a product of 1,024 square. Nothing is launched there.
pub const TWO_CORES: Speed =
    Speed { dense: 1.2e11, attention: 4e10, memory: 2e10, link: 2e10, launch: 0.0 };

/// Bytes read and written to step one weight, with float32 temporaries of its update.
const STEP_BYTES: f64 = 120.0;
/// The same by AdamW's one pass: gradient, weight and two moments read, the last three written; and with a float32 copy of a
/// half weight and the random bits that round it.
const ADAMW_STEP_BYTES: [f64; 2] = [28.0, 60.0];
/// The same by Adafactor's kernels, fitted to 0.051 s for 6.7 billion weights: gradients are read three times.
const FUSED_STEP_BYTES: f64 = 22.0;

/// Kernels of a layer's forward and backward by the layered engine, of what it recomputes where it keeps nothing, and of both by
/// autograd, from the seconds that phases of SmolLM2-135M's shape took at 512 and 4,096 tokens: 0.022, 0.004 and 0.052.
const LAYERED_LAUNCHES: f64 = 105.0;
const RECOMPUTE_LAUNCHES: f64 = 20.0;
const PLAIN_LAUNCHES: f64 = 250.0;
/// Of the step of one weight by Adafactor's kernels and without them, and by AdamW of a float32 and a half one: 0.010, 0.050,
/// 0.015 and 0.027 for 272 weights.
const FUSED_STEP_LAUNCHES: f64 = 6.0;
const STEP_LAUNCHES: f64 = 26.0;
const ADAMW_LAUNCHES: [f64; 2] = [8.0, 14.0];
const WEIGHTS_OF_A_LAYER: f64 = 9.0;

/// An H100's data sheet: 67 TFLOP/s in float32, which no tensor core computes, and 989 in bfloat16. Not measured here.
const FLOAT32_SHARE: f64 = 67.0 / 989.0;

impl Speed {
    /// The speed of a device in a dtype. A processor's is that in float32.
    pub fn in_dtype(self, dtype: Dtype, cuda: bool) -> Speed {
        match dtype {
            Dtype::Float32 if cuda => Speed {
                dense: self.dense * FLOAT32_SHARE,
                attention: self.attention * FLOAT32_SHARE,
                ..self
            },
            _ => self,
        }
    }

    /// What is known of a device by its name; an unknown one counts as an H100, an unknown processor as two cores.
    pub fn of_device(name: &str, cuda: bool) -> Speed {
        match (cuda, name) {
            (false, _) => TWO_CORES,
            // The same chip with faster memory.
            (true, name) if name.contains("H200") => Speed { memory: 4.3e12, ..H100 },
            _ => H100,
        }
    }

    /// Seconds of a step: arithmetic, then the weights' steps; what crosses the link goes beside the arithmetic, which it may
    /// outlast, as may the launches. Layer inputs leave during the forward, a quarter of it.
    pub fn seconds(&self, work: &Work) -> f64 {
        let arithmetic = work.dense_flops / self.dense + work.attention_flops / self.attention;
        let stepping = work.optimizer_bytes / self.memory;
        let leaving = (work.offloaded_bytes / self.link - arithmetic / 4.0).max(0.0);
        (arithmetic + stepping + leaving)
            .max(work.streamed_bytes / self.link)
            .max(work.launches * self.launch)
    }
}

/// The work of one micro-batch of full blocks, one document a block, and of stepping the weights after it.
pub fn work(
    config: &RunConfig,
    model: &ModelConfig,
    settings: Option<&Settings>,
    cuda: bool,
) -> Work {
    let train = &config.train;
    let micro_batches = train.gradient_accumulation_steps as f64;
    let documents = train.micro_batch_size as f64 * micro_batches;
    let length = train.sequence_length as f64;
    let tokens = documents * length;
    let (d, v) = (model.hidden_size as f64, model.vocab_size as f64);
    let parameters = model.num_parameters() as f64;
    let embedding = if model.tie_word_embeddings { 0.0 } else { v * d };
    let dense = parameters - embedding;
    let layers_dense = dense - v * d;
    let layers = model.num_hidden_layers as f64;
    let key_value_width = (model.num_key_value_heads() * model.head_dim()) as f64;
    let width = (model.num_attention_heads * model.head_dim()) as f64;

    // Pairs of a query and a key it sees, over those of the full square.
    let window = model.sliding_window.map_or(length, |window| (window as f64).min(length));
    let seen = (window * length - window * window / 2.0) / (length * length);
    let square = documents * layers * width * length * length;

    let (recomputes, passes) = match settings {
        Some(settings) => {
            let every = settings.checkpoint_every_layers as f64;
            let twice = config.train.max_grad_norm.is_some()
                && settings.grad_clipping == GradClipping::GlobalTwoPass;
            (1.0 + (every - 1.0) / every, if twice { 2.0 } else { 1.0 })
        }
        None => (f64::from(u8::from(train.activation_checkpointing)), 1.0),
    };
    // Each pass recomputes and goes back; the forward is one. The head is not recomputed, but computed in each pass.
    let times = 2.0 + passes * (2.0 * recomputes + 4.0);
    let head = (2.0 + 4.0) * passes;
    let dense_flops = tokens * (times * layers_dense + head * v * d);
    // Of the full square: 4 forward, 10 backward.
    let attention_flops = square * seen * (4.0 + passes * (4.0 * recomputes + 10.0));
    // What was kept is not done again. Queries, keys and values are made once more for their own backward.
    let keeps = settings.map(|settings| settings.recompute).unwrap_or_default();
    let of = |kept: bool, flops: f64| if kept { flops } else { 0.0 };
    let heads = 2.0 * layers * d * (width + 2.0 * key_value_width);
    let keep_mlp = settings.map_or(0, |s| s.layers_that_keep_mlp(model.num_hidden_layers));
    let kept_mlp = 2.0 * keep_mlp as f64 * 2.0 * d * model.intermediate_size as f64;
    let dense_flops = dense_flops
        - tokens * (of(keeps.keeps_outputs(), heads) + of(keeps.keeps_heads(), heads) + kept_mlp);
    let attention_flops = attention_flops - of(keeps.keeps_outputs(), 4.0 * square * seen);
    let adafactor = train.optimizer.kind.is_adafactor();
    // The layered engine's gradients are float32, which the kernels take; autograd's are what their weights are.
    let exact = settings.is_some() || train.weights_dtype == Dtype::Float32;
    let fused = cuda && adafactor && exact;
    let offloaded = settings.filter(|settings| settings.activation_offloading).map_or(0.0, |s| {
        let inputs = (layers / s.checkpoint_every_layers as f64).ceil() * d;
        let outputs = of(s.recompute.keeps_outputs(), layers * width);
        let heads = of(s.recompute.keeps_heads(), layers * (width + 2.0 * key_value_width));
        let bytes = super::bytes_of(config.model.dtype) as f64;
        (inputs + outputs + heads) * tokens * bytes
    });
    let streamed = settings.is_some_and(|settings| settings.weight_streaming);
    let optimizer = &train.optimizer;
    let half = usize::from(train.weights_dtype != Dtype::Float32);
    let (step_bytes, step_launches) = match optimizer.kind {
        OptimizerType::Adamw if optimizer.state_dtype() == StateDtype::Float32 => {
            (ADAMW_STEP_BYTES[half], ADAMW_LAUNCHES[half])
        }
        _ if fused => (FUSED_STEP_BYTES, FUSED_STEP_LAUNCHES),
        _ => (STEP_BYTES, STEP_LAUNCHES),
    };
    let of_a_layer = match settings {
        Some(_) if keeps.keeps_outputs() => LAYERED_LAUNCHES,
        Some(_) => LAYERED_LAUNCHES + RECOMPUTE_LAUNCHES,
        None => PLAIN_LAUNCHES,
    };
    let weight_bytes = parameters * super::bytes_of(train.weights_dtype) as f64;
    Work {
        tokens: tokens as u64,
        dense_flops,
        attention_flops,
        model_flops: 6.0 * dense * tokens + 12.0 * seen * square,
        full_square_flops: 6.0 * parameters * tokens + 12.0 * square,
        optimizer_bytes: parameters * step_bytes,
        // To the device in the forward, and there and back in each backward.
        streamed_bytes: if streamed { weight_bytes * (1.0 + 2.0 * passes) } else { 0.0 },
        offloaded_bytes: offloaded,
        launches: layers
            * (micro_batches * passes * of_a_layer + WEIGHTS_OF_A_LAYER * step_launches),
    }
}
