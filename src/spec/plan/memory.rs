//! Memory by phase of a step, as PyTorch counts it: allocated bytes, without what the allocator keeps in reserve.

use super::{Settings, bytes_of};
use crate::config::{
    Attention, Dtype, GradClipping, ModelConfig, OptimizerType, RunConfig, StateDtype,
};
use crate::units::Bytes;

/// float32, which gradients, angles and log-sum-exps are in.
const FLOAT: u64 = 4;
/// What cuBLAS and the attention kernels keep for themselves.
const WORKSPACES: u64 = 96 << 20;
/// What a process on the CPU has without a model: LibTorch, its threads, the data.
const PROCESS: u64 = 120 << 20;
/// Score matrices in float32 that `attention: eager` holds at once in its forward and in its backward.
const EAGER_SCORES: [u64; 2] = [3, 4];
/// Positions whose norm is taken back at one time: `norm::POSITIONS` of the engine.
const NORM_POSITIONS: u64 = 1024;

/// A part of the step, as the engine reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Forward,
    Loss,
    MlpBackward,
    AttentionBackward,
    Optimizer,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Loss => "loss",
            Phase::MlpBackward => "mlp_backward",
            Phase::AttentionBackward => "attention_backward",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// Predicted memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Weights on the device: all of them, or two layers' worth.
    pub weights: Bytes,
    /// Optimizer state on the device.
    pub optimizer: Bytes,
    /// Everything on the device at the highest point of each phase, weights and state included.
    pub phases: Vec<(Phase, Bytes)>,
    /// Host memory beside that of the process itself: layer inputs, streamed weights and their state, page-locked.
    pub host: Bytes,
}

impl Memory {
    /// The highest point and where it is.
    pub fn device_peak_phase(&self) -> (Phase, Bytes) {
        *self.phases.iter().max_by_key(|(_, bytes)| *bytes).expect("a step has phases")
    }

    pub fn device_peak(&self) -> Bytes {
        self.device_peak_phase().1
    }
}

/// Sizes that the arithmetic is made of, in numbers and bytes.
struct Sizes {
    tokens: u64,
    /// Keys that are scored for one query, where scores are written out.
    keys_of_a_query: u64,
    d: u64,
    /// `N H`.
    queries: u64,
    /// `K H`.
    keys: u64,
    f: u64,
    v: u64,
    layers: u64,
    heads: u64,
    head_dim: u64,
    /// Bytes of a number that is computed with.
    e: u64,
    /// Bytes of a number of a weight.
    w: u64,
    layer_parameters: u64,
    parameters: u64,
    tied: bool,
    /// Whether elementwise passes are fused, and so have no temporaries: bfloat16 on CUDA.
    fused: bool,
}

impl Sizes {
    fn new(config: &RunConfig, model: &ModelConfig, cuda: bool) -> Sizes {
        let size = |n: usize| n as u64;
        let head_dim = size(model.head_dim());
        let (d, f) = (size(model.hidden_size), size(model.intermediate_size));
        let queries = size(model.num_attention_heads) * head_dim;
        let keys = size(model.num_key_value_heads()) * head_dim;
        Sizes {
            tokens: size(config.train.sequence_length * config.train.micro_batch_size),
            keys_of_a_query: size(config.train.sequence_length),
            d,
            queries,
            keys,
            f,
            v: size(model.vocab_size),
            layers: size(model.num_hidden_layers),
            heads: size(model.num_attention_heads),
            head_dim,
            e: bytes_of(config.model.dtype),
            w: bytes_of(config.train.weights_dtype),
            layer_parameters: 2 * d * queries + 2 * d * keys + 3 * d * f + 2 * d,
            parameters: model.num_parameters(),
            tied: model.tie_word_embeddings,
            // What the kernels take; others fall back.
            fused: cuda
                && config.model.dtype == Dtype::Bfloat16
                && [d, f, size(model.vocab_size)].iter().all(|width| width.is_multiple_of(8))
                && d <= 8192
                && head_dim.is_multiple_of(4),
        }
    }

    /// One `[T, D]`.
    fn hidden(&self) -> u64 {
        self.tokens * self.d * self.e
    }
}

/// Predicts the memory of a run. Without `settings` that of the plain engine.
pub fn predict(
    config: &RunConfig,
    model: &ModelConfig,
    settings: Option<&Settings>,
    cuda: bool,
) -> Memory {
    let sizes = Sizes::new(config, model, cuda);
    let mut memory = match settings {
        Some(settings) => layered(config, &sizes, settings, cuda),
        None => plain(config, &sizes, cuda),
    };
    if !cuda {
        memory.phases.iter_mut().for_each(|(_, bytes)| bytes.0 += PROCESS);
    }
    memory
}

/// Bytes of a matrix of the scores of so many heads, if they are written out.
fn scores(config: &RunConfig, s: &Sizes, heads: u64) -> u64 {
    match config.model.attention {
        Attention::Eager => heads * s.keys_of_a_query * s.tokens * FLOAT,
        _ => 0,
    }
}

fn layered(config: &RunConfig, s: &Sizes, settings: &Settings, cuda: bool) -> Memory {
    let streamed = settings.weight_streaming;
    let in_two_slots = 2 * s.layer_parameters * s.w;
    let weights = if streamed { in_two_slots } else { s.parameters * s.w };
    let state = state_bytes(config, s);
    let optimizer = if streamed { state.device_if_streamed } else { state.all };

    let cast_layer = if s.w == s.e { 0 } else { s.layer_parameters * s.e };
    let held = if settings.optimizer_in_backward { 0 } else { s.parameters * FLOAT };
    let angles = s.tokens * s.head_dim * FLOAT;
    let ids = s.tokens * 16;
    let kept = kept_inputs(s, settings);
    let on_device = if settings.activation_offloading { 0 } else { kept * s.hidden() };
    let workspaces = if cuda { WORKSPACES } else { 0 };
    let log_sum_exps =
        if settings.recompute.keeps_outputs() { s.layers * log_sum_exp(s) } else { 0 };
    let base = weights
        + optimizer
        + cast_layer
        + angles
        + ids
        + log_sum_exps
        + kept_on_device(s, settings)
        + kept_projections(s, settings, 1)
        + workspaces;
    // Gradients that are held are all there when the first layer's are made; of the inputs one is left then, unless a second
    // micro-batch brings them again. A second pass begins at the last output again.
    let side_by_side = match config.train.gradient_accumulation_steps {
        1 if held > 0 && on_device > 0 => {
            let at_the_first_layer = held + s.hidden();
            let at_the_last = on_device + held.min((s.layer_parameters + s.v * s.d) * FLOAT);
            at_the_first_layer.max(at_the_last)
        }
        _ => held + on_device,
    };
    let twice = config.train.max_grad_norm.is_some()
        && settings.grad_clipping == GradClipping::GlobalTwoPass;
    let base = base + side_by_side + if twice { s.hidden() } else { 0 };

    let eager = scores(config, s, group(s, settings).0 / s.head_dim);
    // The last layer's projections are there until its MLP's backward is done.
    let last = kept_projections(s, settings, 0) - kept_projections(s, settings, 1);
    let phases = [
        (Phase::Forward, last + forward(s, settings) + EAGER_SCORES[0] * eager),
        (Phase::Loss, last + loss(s, settings)),
        (Phase::MlpBackward, last + mlp_backward(s, settings)),
        (Phase::AttentionBackward, attention_backward(s, settings) + EAGER_SCORES[1] * eager),
        (Phase::Optimizer, optimizer_step(config, s, settings)),
    ];
    let inputs = match settings.activation_offloading {
        true => kept * host_tiles(s, settings) + s.layers * kept_on_host(s, settings),
        false => 0,
    };
    let outputs = if settings.attention_offloading { host_outputs(s, settings) } else { 0 };
    let on_host =
        if streamed { pinned_weights(s) + state.all - state.device_if_streamed } else { 0 };
    let host = inputs + outputs + on_host;
    // On the CPU there is one memory.
    let (base, host) = if cuda { (base, host) } else { (base + host, 0) };
    Memory {
        weights: Bytes(weights),
        optimizer: Bytes(optimizer),
        phases: phases.map(|(phase, bytes)| (phase, Bytes(base + bytes))).to_vec(),
        host: Bytes(host),
    }
}

/// Layer inputs that are there at once: the checkpoints, and those recomputed between two of them.
fn kept_inputs(s: &Sizes, settings: &Settings) -> u64 {
    let every = settings.checkpoint_every_layers as u64;
    let recomputed = every.min(s.layers).saturating_sub(2);
    // Without offloading the recompute works on a copy of its own.
    let copy = u64::from(every > 1 && !settings.activation_offloading);
    s.layers.div_ceil(every) + recomputed + copy
}

/// Bytes of one layer's input in page-locked tiles, each rounded up to a power of two.
fn host_tiles(s: &Sizes, settings: &Settings) -> u64 {
    let tile = settings.row_tile_tokens as u64;
    s.tokens.div_ceil(tile) * (tile * s.d * s.e).next_power_of_two()
}

/// What a layer keeps of its attention beside its input, in numbers a position: outputs; queries, keys and values.
fn kept_widths(s: &Sizes, settings: &Settings) -> [u64; 2] {
    let of = |kept: bool, width: u64| if kept { width } else { 0 };
    let recompute = settings.recompute;
    [of(recompute.keeps_outputs(), s.queries), of(recompute.keeps_heads(), s.queries + 2 * s.keys)]
}

/// The MLP's projections of all layers that keep them, but for so many of these.
fn kept_projections(s: &Sizes, settings: &Settings, but: u64) -> u64 {
    let layers = settings.layers_that_keep_mlp(s.layers as usize) as u64;
    layers.saturating_sub(but) * s.tokens * 2 * s.f * s.e
}

/// That of all layers, where it stays on the device.
fn kept_on_device(s: &Sizes, settings: &Settings) -> u64 {
    match settings.activation_offloading {
        true => 0,
        false => s.layers * s.tokens * kept_widths(s, settings).iter().sum::<u64>() * s.e,
    }
}

/// That of one layer in page-locked tiles, a kind and a group at a time.
fn kept_on_host(s: &Sizes, settings: &Settings) -> u64 {
    let groups = settings.attention_head_groups as u64;
    let tiles = |width: u64| {
        let row = width / groups * s.e;
        let tile = settings.row_tile_tokens as u64 * s.d * s.e;
        let rows = (tile / row.max(1)).clamp(1, s.tokens);
        groups * s.tokens.div_ceil(rows) * (rows * row).next_power_of_two()
    };
    kept_widths(s, settings).into_iter().filter(|width| *width > 0).map(tiles).sum()
}

/// The buffers that it comes back to.
fn kept_buffers(s: &Sizes, settings: &Settings) -> [u64; 2] {
    match settings.activation_offloading {
        true => kept_widths(s, settings).map(|width| s.tokens * width * s.e),
        false => [0, 0],
    }
}

/// Bytes of one layer's outputs of the heads in page-locked tiles, group by group.
fn host_outputs(s: &Sizes, settings: &Settings) -> u64 {
    let tile = settings.row_tile_tokens as u64 * s.d;
    let (width, _) = group(s, settings);
    let tiles = s.tokens.div_ceil((tile / width).max(1)) * settings.attention_head_groups as u64;
    tiles * (tile * s.e).next_power_of_two()
}

/// All weights in page-locked memory, each rounded up to a power of two.
fn pinned_weights(s: &Sizes) -> u64 {
    let pinned = |elements: u64| (elements * s.w).next_power_of_two();
    let layer = 2 * pinned(s.d * s.queries) + 2 * pinned(s.d * s.keys) + 3 * pinned(s.d * s.f);
    let tables = if s.tied { 1 } else { 2 };
    s.layers * layer + tables * pinned(s.v * s.d)
}

struct State {
    all: u64,
    /// What stays on the device when weights are streamed: rows and columns, and what belongs to no layer.
    device_if_streamed: u64,
}

fn state_bytes(config: &RunConfig, s: &Sizes) -> State {
    let optimizer = &config.train.optimizer;
    let full = |times: u64| State { all: times * s.parameters * FLOAT, device_if_streamed: 0 };
    match optimizer.kind {
        OptimizerType::Adamw if optimizer.state_dtype() == StateDtype::Int8 => {
            let matrix = |rows: u64| int8_moments(rows * s.d);
            let layer =
                2 * matrix(s.queries) + 2 * matrix(s.keys) + 3 * matrix(s.f) + 2 * matrix(1);
            let tables = if s.tied { 1 } else { 2 };
            let all = s.layers * layer + tables * matrix(s.v) + matrix(1);
            State { all, device_if_streamed: 0 }
        }
        OptimizerType::Adamw => full(2),
        OptimizerType::Sgd if optimizer.momentum.unwrap_or(0.0) == 0.0 => full(0),
        OptimizerType::Sgd => full(1),
        OptimizerType::Adafactor | OptimizerType::AdafactorSum => {
            let matrix = |rows: u64, columns: u64| rows + columns;
            let layer = 2 * matrix(s.queries, s.d) + 2 * matrix(s.keys, s.d) + 3 * matrix(s.f, s.d);
            let tables = if s.tied { 1 } else { 2 };
            let all = s.layers * (layer + 2 * s.d) + tables * matrix(s.v, s.d) + s.d;
            State { all: all * FLOAT, device_if_streamed: all * FLOAT }
        }
    }
}

/// AdamW's two moments of one weight in 8 bits: a byte a number and a float32 for 256 of them, or float32 where they are few
/// (`quantized::LEAST_ELEMENTS` of the engine).
fn int8_moments(elements: u64) -> u64 {
    2 * if elements < 4096 { elements * FLOAT } else { elements + elements.div_ceil(256) * FLOAT }
}

/// The largest group's share of query and key-value numbers of a position.
fn group(s: &Sizes, settings: &Settings) -> (u64, u64) {
    let key_value_heads = s.keys / s.head_dim;
    let heads = key_value_heads.div_ceil(settings.attention_head_groups as u64);
    (heads * s.queries / key_value_heads, heads * s.head_dim)
}

/// A group's projection, tile by tile: normed input, projection, and the rotation's float32 copies if it makes any.
fn projection(s: &Sizes, settings: &Settings) -> u64 {
    let (queries, keys) = group(s, settings);
    let tile = (settings.row_tile_tokens as u64).min(s.tokens);
    let rotation = if s.fused { 0 } else { 3 * (queries + keys) * FLOAT };
    tile * (s.d * s.e + (queries + 2 * keys) * s.e + rotation)
}

/// A group's rows of the three projections, one below the other. Those of all heads lie so.
fn projection_weights(s: &Sizes, settings: &Settings) -> u64 {
    let (queries, keys) = group(s, settings);
    if settings.attention_head_groups == 1 && !settings.weight_streaming && s.w == s.e {
        return 0;
    }
    s.d * (queries + 2 * keys) * s.e
}

/// `x` and the heads' outputs, with a group's queries, keys and values; or a tile of the MLP.
fn forward(s: &Sizes, settings: &Settings) -> u64 {
    let (queries, keys) = group(s, settings);
    let attention = projection_weights(s, settings)
        + s.tokens * (queries + 2 * keys) * s.e
        + projection(s, settings);
    let tile = (settings.mlp_tile_tokens as u64).min(s.tokens);
    let mlp =
        tile * (s.d + 2 * s.f + side_by_side(s, settings)) * s.e + kept_buffers(s, settings)[1];
    s.hidden() + s.tokens * s.queries * s.e + attention.max(mlp)
}

/// Numbers of a position that the groups' outputs take to be side by side.
fn side_by_side(s: &Sizes, settings: &Settings) -> u64 {
    if settings.attention_head_groups > 1 { s.queries } else { 0 }
}

/// The heads' outputs beside the MLP's backward: all of them, or two tiles that come from host memory.
fn outputs_of_tiles(s: &Sizes, settings: &Settings) -> u64 {
    let tile = (settings.mlp_tile_tokens as u64).min(s.tokens);
    match settings.attention_offloading {
        true => 3 * tile * s.queries * s.e,
        false => s.tokens * s.queries * s.e + tile * side_by_side(s, settings) * s.e,
    }
}

/// The last output, the buffer for inputs, the head's gradient, and a tile of logits: in their dtype, and in float32 unless
/// their gradient is made in their place.
fn loss(s: &Sizes, settings: &Settings) -> u64 {
    let tile = (settings.loss_tile_tokens as u64).min(s.tokens);
    let exact = if s.fused { 0 } else { FLOAT };
    head_on_device(s, settings)
        + (1 + u64::from(settings.activation_offloading)) * s.hidden()
        + kept_buffers(s, settings).iter().sum::<u64>()
        + s.v * s.d * FLOAT
        + tile * (s.v * (s.e + exact) + 3 * s.d * s.e)
}

/// A streamed head is on the device for the loss alone.
fn head_on_device(s: &Sizes, settings: &Settings) -> u64 {
    let cast = if s.w == s.e { 0 } else { s.v * s.d * s.e };
    cast + if settings.weight_streaming { s.v * s.d * s.w } else { 0 }
}

/// A tied head's gradient waits for the embedding's.
fn tied(s: &Sizes) -> u64 {
    if s.tied { s.v * s.d * FLOAT } else { 0 }
}

fn log_sum_exp(s: &Sizes) -> u64 {
    s.tokens * s.heads * FLOAT
}

/// The input where it was brought to, not where it is kept.
fn brought(s: &Sizes, settings: &Settings) -> u64 {
    if settings.activation_offloading { s.hidden() } else { 0 }
}

/// `x`, `g`, the heads' outputs; the three gradients; and of a tile five `[t, F]` (three where the backward of SwiGLU is in
/// place) and three `[t, D]`.
fn mlp_backward(s: &Sizes, settings: &Settings) -> u64 {
    let tile = (settings.mlp_tile_tokens as u64).min(s.tokens);
    let norm = if s.fused { 0 } else { NORM_POSITIONS.min(tile) * s.d * 5 * FLOAT };
    let wide = if s.fused { 3 } else { 5 };
    let [_, heads] = kept_buffers(s, settings);
    tied(s)
        + brought(s, settings)
        + s.hidden()
        + heads
        + outputs_of_tiles(s, settings)
        + log_sum_exp(s)
        + 3 * s.d * s.f * FLOAT
        + tile * (wide * s.f + 3 * s.d) * s.e
        + norm
}

/// `x`, `g`, the gradient of the normed input, the heads' outputs (or a group's and the next one's); the four gradients; and of
/// a group the gradient of its output, queries, keys, values and theirs, and what the kernel sums in: queries in float32, and
/// keys and values once for every query head where heads are shared.
fn attention_backward(s: &Sizes, settings: &Settings) -> u64 {
    let (queries, keys) = group(s, settings);
    let outputs = match settings.attention_offloading && settings.attention_head_groups > 1 {
        true => 2 * queries,
        false => s.queries,
    };
    let expanded = if queries > keys { 2 * queries } else { 0 };
    let kernel = queries * FLOAT + expanded * s.e;
    let at_the_kernel = s.tokens * ((queries + 2 * (queries + 2 * keys)) * s.e + kernel);
    let [_, heads] = kept_buffers(s, settings);
    // Those of the other groups, which wait.
    let waiting = heads.saturating_sub(s.tokens * (queries + 2 * keys) * s.e);
    let of_a_group = s.d * (queries + 2 * keys) * FLOAT;
    let at_the_projection = s.tokens * (queries + 2 * keys) * s.e
        + heads.min(s.tokens * (queries + 2 * keys) * s.e)
        + of_a_group
        + projection(s, settings);
    // Groups have room for their sums from the beginning; what the only one sums is all.
    let sums = match settings.attention_head_groups {
        1 => s.queries * s.d * FLOAT,
        _ => (2 * s.queries + 2 * s.keys) * s.d * FLOAT,
    };
    tied(s)
        + brought(s, settings)
        + 2 * s.hidden()
        + s.tokens * outputs * s.e
        + projection_weights(s, settings)
        + waiting
        + at_the_kernel.max(at_the_projection)
        + log_sum_exp(s)
        + sums
}

/// The largest step: the MLP's inside the backward, or a table's at one of its ends.
fn optimizer_step(config: &RunConfig, s: &Sizes, settings: &Settings) -> u64 {
    let adafactor = config.train.optimizer.kind.is_adafactor();
    let temporaries = |elements: u64| {
        if s.fused && adafactor {
            return 0;
        }
        let elements = elements.min(settings.step_elements as u64);
        // The update, which AdamW has none of; for half weights a float32 copy, and the random bits that round it.
        let update = u64::from(config.train.optimizer.kind != OptimizerType::Adamw);
        let half = u64::from(s.w < FLOAT) + u64::from(settings.stochastic_rounding);
        elements * FLOAT * (update + half + int8_temporaries(config))
    };
    if !settings.optimizer_in_backward {
        return temporaries(s.v * s.d);
    }
    let streamed_state = |elements: u64| match settings.weight_streaming {
        true => full_states(config, elements),
        false => 0,
    };
    let outputs = match settings.attention_offloading {
        true => 0,
        false => s.tokens * s.queries * s.e,
    };
    let mlp = tied(s)
        + brought(s, settings)
        + s.hidden()
        + kept_buffers(s, settings)[1]
        + outputs
        + log_sum_exp(s)
        + 3 * s.d * s.f * FLOAT
        + temporaries(s.d * s.f)
        + streamed_state(s.d * s.f);
    let table = head_on_device(s, settings)
        + (1 + u64::from(settings.activation_offloading)) * s.hidden()
        + kept_buffers(s, settings).iter().sum::<u64>()
        + s.v * s.d * FLOAT
        + temporaries(s.v * s.d)
        + streamed_state(s.v * s.d);
    mlp.max(table)
}

/// Bytes of the state that grows with a weight of so many elements.
fn full_states(config: &RunConfig, elements: u64) -> u64 {
    let optimizer = &config.train.optimizer;
    match optimizer.kind {
        OptimizerType::Adamw if optimizer.state_dtype() == StateDtype::Int8 => {
            int8_moments(elements)
        }
        OptimizerType::Adamw => 2 * elements * FLOAT,
        OptimizerType::Sgd if optimizer.momentum.unwrap_or(0.0) > 0.0 => elements * FLOAT,
        OptimizerType::Sgd | OptimizerType::Adafactor | OptimizerType::AdafactorSum => 0,
    }
}

/// Moments in 8 bits are float32 while a weight is stepped.
fn int8_temporaries(config: &RunConfig) -> u64 {
    if config.train.optimizer.state_dtype() == StateDtype::Int8 { 2 } else { 0 }
}

/// Ordinary autograd: all activations, or with checkpointing one layer's and every layer's input. Coarser than the above:
/// what autograd keeps is its own affair.
fn plain(config: &RunConfig, s: &Sizes, cuda: bool) -> Memory {
    let weights = s.parameters * s.w;
    let state = state_bytes(config, s).all;
    let gradients = s.parameters * s.w;
    // Of a position in one layer: input, two normed, queries, keys, values and output of the heads, the residual, and gate,
    // up, activated and their product; the norms' float32 statistics are small beside them.
    let layer = s.tokens * s.e * (4 * s.d + 2 * (2 * s.queries + 2 * s.keys) + 4 * s.f)
        + log_sum_exp(s)
        + EAGER_SCORES[0] * scores(config, s, s.heads);
    let casts = if s.w == s.e { 0 } else { s.layer_parameters * s.e };
    let (activations, casts) = match config.train.activation_checkpointing {
        true => (s.layers * s.hidden() + layer, casts),
        false => (s.layers * layer, s.layers * casts),
    };
    let workspaces = if cuda { WORKSPACES } else { 0 };
    let base = weights + state + gradients + s.tokens * (s.head_dim * FLOAT + 16) + workspaces;
    let tile = (config.train.loss_tile_tokens as u64).min(s.tokens);
    let logits = tile * s.v * (2 * s.e + 2 * FLOAT);
    // The update, or for AdamW a float32 copy of a half gradient; a float32 copy of half weights.
    let half = u64::from(s.w < FLOAT);
    let update = match config.train.optimizer.kind {
        OptimizerType::Adamw => half,
        _ => 1,
    };
    let temporaries = update + half + int8_temporaries(config);
    let phases = vec![
        (Phase::Forward, Bytes(base + activations + casts)),
        (Phase::Loss, Bytes(base + activations + casts + 2 * s.hidden() + logits)),
        (Phase::Optimizer, Bytes(base + (s.v * s.d).max(s.d * s.f) * FLOAT * temporaries)),
    ];
    Memory { weights: Bytes(weights), optimizer: Bytes(state), phases, host: Bytes(0) }
}
