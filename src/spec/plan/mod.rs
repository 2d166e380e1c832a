//! What a run will take before it is started: memory by phase, arithmetic, time; and the settings that are chosen by it.
//!
//! Pure arithmetic over a configuration, a model's shape and a machine: no tensors. The layered engine allocates what
//! [`memory`] counts, in the order that it is counted; `tests/layered.rs` and the reports hold predictions beside what was
//! measured.
//!
//! `T` tokens of a micro-batch, `D` hidden, `N` query heads, `K` key-value heads, `H` head dim, `F` intermediate, `V`
//! vocabulary, `L` layers.

pub mod memory;
pub mod time;
mod wall;

use crate::config::{Dtype, Engine, GradClipping, ModelConfig, Recompute, RunConfig};
use crate::units::Bytes;
pub use memory::{Memory, Phase};
use serde::{Deserialize, Serialize};
pub use time::{Speed, Work};
use wall::filled;
pub use wall::{Place, Wall};

/// Bytes of a tile of hidden states in host memory. LibTorch's allocator of page-locked memory rounds every block up to a
/// power of two, so a tile is one, or a little less.
const ROW_TILE_BYTES: u64 = 64 << 20;
/// The share of what the allocator may hand out that a prediction may fill: what is left is fragments and workspaces that
/// change from version to version.
const USABLE: f64 = 0.97;
/// The same where memory is filled layer by layer only to save some arithmetic.
const USABLE_FOR_SPEED: f64 = 0.94;
/// Elements of a weight that are stepped at one time: 256 MiB of float32, or 16 MiB where weights are streamed because memory
/// is short. The update of a weight in several blocks is made twice.
const STEP_ELEMENTS: [usize; 2] = [1 << 26, 1 << 22];
/// How much slower settings may be and still count as fast as the fastest.
const AS_FAST: f64 = 1.005;
/// Into how many parts layers are divided, of which some recompute the MLP and some do not.
const SHARES: usize = 16;
/// Host memory that is left to the process, the data and the system.
const HOST_RESERVE: u64 = 6 << 30;

/// How the layered engine carries out a step, with nothing left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub attention_head_groups: usize,
    pub mlp_tile_tokens: usize,
    pub loss_tile_tokens: usize,
    /// Positions that are projected and copied at one time.
    pub row_tile_tokens: usize,
    pub activation_offloading: bool,
    /// The heads' outputs of the layer that is worked are in host memory too.
    pub attention_offloading: bool,
    pub checkpoint_every_layers: usize,
    pub recompute: Recompute,
    /// Layers, from the first, that recompute what `recompute` says; `None` is all. The others, whose backward comes first,
    /// recompute as [`Recompute::Norms`].
    #[serde(default)]
    pub recompute_num_layers: Option<usize>,
    pub optimizer_in_backward: bool,
    /// Elements of a weight that are stepped at one time.
    pub step_elements: usize,
    pub weight_streaming: bool,
    pub stochastic_rounding: bool,
    pub grad_clipping: GradClipping,
}

/// What a run has to live in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Whether there is a device with memory of its own.
    pub cuda: bool,
    /// What the device's allocator may hand out; on the CPU what the process may take.
    pub device_memory: Bytes,
    /// What the process may take of the host.
    pub host_memory: Bytes,
    pub speed: Speed,
}

/// A run as predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    pub engine: Engine,
    /// `None` on the plain engine, which has none of them.
    pub settings: Option<Settings>,
    pub memory: Memory,
    pub work: Work,
    pub seconds_per_step: f64,
    /// The tighter of the two, whether or not it is hit.
    pub wall: Wall,
}

impl Settings {
    /// How many of `layers` layers keep the MLP's projections: the last ones.
    pub fn layers_that_keep_mlp(&self, layers: usize) -> usize {
        match self.recompute {
            Recompute::Norms => layers,
            Recompute::Mlp => layers - self.recompute_num_layers.map_or(layers, |n| n.min(layers)),
            Recompute::Layer | Recompute::Projections => 0,
        }
    }
}

impl Prediction {
    /// Whether the run fits, as far as the arithmetic can tell.
    pub fn fits(&self) -> bool {
        self.wall.needed <= self.wall.available
    }
}

/// Predicts a run of `config` with a model of shape `model` on `machine`. An engine that is not written is the layered one on
/// CUDA, but the plain one where only that fits, or where each layer is to be recomputed by autograd; and the plain one on the
/// CPU.
pub fn predict(config: &RunConfig, model: &ModelConfig, machine: &Machine) -> Prediction {
    let on = |engine: Engine| predict_on(&config.on_engine(engine), model, machine);
    let asked_for = config.train.engine.is_some() || config.train.engine() == Engine::Layered;
    if asked_for || !machine.cuda || config.train.activation_checkpointing {
        return on(config.train.engine());
    }
    let layered = on(Engine::Layered);
    if layered.fits() {
        return layered;
    }
    let plain = on(Engine::Plain);
    if plain.fits() { plain } else { layered }
}

/// The same with the engine written.
fn predict_on(config: &RunConfig, model: &ModelConfig, machine: &Machine) -> Prediction {
    let engine = config.train.engine();
    let settings = (engine == Engine::Layered).then(|| settings(config, model, machine));
    let memory = memory::predict(config, model, settings.as_ref(), machine.cuda);
    let work = time::work(config, model, settings.as_ref(), machine.cuda);
    let speed = machine.speed.in_dtype(config.model.dtype, machine.cuda);
    let beside = settings.as_ref().map_or(0.0, |settings| overhead(settings, &work, &speed));
    let seconds_per_step = speed.seconds(&work) + beside;
    let wall = wall::wall(config, model, settings.as_ref(), &memory, machine);
    Prediction { engine, settings, memory, work, seconds_per_step, wall }
}

/// The settings of the layered engine: what is written, and for the rest the fastest that fits; of those that are within half a
/// percent of it, what takes least of the device. Where nothing fits with room to spare, what comes nearest to it is chosen, and
/// [`Prediction::fits`] says whether it does.
pub fn settings(config: &RunConfig, model: &ModelConfig, machine: &Machine) -> Settings {
    let memory = |settings: &Settings| memory::predict(config, model, Some(settings), machine.cuda);
    let speed = machine.speed.in_dtype(config.model.dtype, machine.cuda);
    let seconds = |settings: &Settings| {
        let work = time::work(config, model, Some(settings), machine.cuda);
        speed.seconds(&work) + overhead(settings, &work, &speed)
    };
    let mut candidates: Vec<(f64, Settings)> = candidates(config, model, machine)
        .into_iter()
        .map(|settings| (seconds(&settings), settings))
        .collect();
    candidates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let written = config.train.recompute_num_layers.is_some();
    let fits = |(_, settings): &&(f64, Settings)| {
        let memory = memory(settings);
        let device = memory.device_peak().0 as f64;
        let usable = match settings.recompute_num_layers {
            Some(_) if !written => USABLE_FOR_SPEED,
            _ => USABLE,
        };
        device <= usable * machine.device_memory.0 as f64 && memory.host <= available_host(machine)
    };
    let peak = |(_, settings): &&(f64, Settings)| memory(settings).device_peak();
    let chosen = match candidates.iter().find(fits) {
        Some((fastest, _)) => {
            let as_fast = |(seconds, _): &&(f64, Settings)| *seconds <= AS_FAST * fastest;
            candidates.iter().filter(as_fast).filter(fits).min_by_key(peak)
        }
        None => {
            let fullest = |(_, settings): &(f64, Settings)| {
                let memory = memory(settings);
                let places = [Place::Device, Place::Host];
                places.map(|place| filled(place, &memory, machine)).into_iter().fold(0.0, f64::max)
            };
            candidates.iter().min_by(|a, b| fullest(a).total_cmp(&fullest(b)))
        }
    };
    let (_, settings) = chosen.expect("there is always a candidate");
    *settings
}

/// Seconds that settings cost beside what [`Speed::seconds`] counts: narrower products, sums that are read and written more
/// often, copies that are not quite hidden. Measured with Llama-2-7B on an H100: four groups and tiles of 2,048
/// together cost a tenth of the dense products at 4,096 tokens; streamed weights 0.12 s a step at 32,768; tiles of 4,096 for
/// 8,192 0.11 s at 53,248, for 16,384 no more; inputs in host memory nothing.
fn overhead(settings: &Settings, work: &Work, speed: &Speed) -> f64 {
    let share = |on: bool, share: f64| if on { share } else { 0.0 };
    let groups = (settings.attention_head_groups as f64).log2();
    let narrow = 0.035 * groups
        + share(settings.mlp_tile_tokens < 8192, 0.025)
        + share(settings.mlp_tile_tokens < 4096, 0.015)
        + share(settings.mlp_tile_tokens < 2048, 0.035);
    let crossing = 0.15 * work.streamed_bytes / speed.link;
    let copies = share(settings.activation_offloading, 0.001)
        + share(settings.attention_offloading, 0.02)
        + share(settings.weight_streaming, 0.01);
    narrow * work.dense_flops / speed.dense + crossing + copies * speed.seconds(work)
}

fn available_host(machine: &Machine) -> Bytes {
    match machine.cuda {
        true => Bytes(machine.host_memory.0.saturating_sub(HOST_RESERVE)),
        // Host and device are the same memory, which the device's count bounds.
        false => Bytes(u64::MAX),
    }
}

/// Settings to try; what is written is the same in all of them.
fn candidates(config: &RunConfig, model: &ModelConfig, machine: &Machine) -> Vec<Settings> {
    let train = &config.train;
    let tokens = train.sequence_length * train.micro_batch_size;
    let key_value_heads = model.num_key_value_heads();
    let in_backward = train.optimizer_in_backward();
    let row_bytes = model.hidden_size * bytes_of(config.model.dtype) as usize;
    let row_tile_tokens = (ROW_TILE_BYTES as usize / row_bytes).clamp(1, tokens.max(1));
    let choices = |written: Option<bool>, open: &[bool]| match written {
        Some(written) => vec![written],
        None => open.to_vec(),
    };
    // Only a device has another memory to move things to.
    let (offload, stream): (&[bool], &[bool]) = match (machine.cuda, in_backward) {
        (false, _) => (&[false], &[false]),
        (true, false) => (&[false, true], &[false]),
        (true, true) => (&[false, true], &[false, true]),
    };
    let groups = match train.attention_head_groups {
        Some(groups) => vec![groups],
        // As many heads in each.
        None => {
            (1..=key_value_heads).filter(|groups| key_value_heads.is_multiple_of(*groups)).collect()
        }
    };
    let tiles = match train.mlp_tile_tokens {
        Some(tile) => vec![tile],
        None => vec![8192, 4096, 2048, 1024],
    };
    let every = match train.checkpoint_every_layers {
        Some(every) => vec![every],
        None => vec![1, 2, 4],
    };
    let twice =
        train.max_grad_norm.is_some() && train.grad_clipping() == GradClipping::GlobalTwoPass;
    let recomputes = |every: usize| match train.recompute {
        // Refused beside these where they are written.
        Some(recompute) if recompute.keeps_outputs() && every > 1 => vec![],
        Some(recompute) => vec![(recompute, train.recompute_num_layers)],
        None if every > 1 || twice => vec![(Recompute::Layer, None)],
        None => {
            let in_all = Recompute::ALL.map(|recompute| (recompute, None));
            let in_some = (1..SHARES)
                .map(|share| model.num_hidden_layers * share / SHARES)
                .filter(|layers| *layers > 0)
                .map(|layers| (Recompute::Mlp, Some(layers)));
            in_all.into_iter().chain(in_some).collect()
        }
    };
    let mut all = Vec::new();
    for weight_streaming in choices(train.weight_streaming, stream) {
        for &checkpoint_every_layers in &every {
            for activation_offloading in choices(train.activation_offloading, offload) {
                for attention_offloading in choices(train.attention_offloading, offload) {
                    for (recompute, recompute_num_layers) in recomputes(checkpoint_every_layers) {
                        // Outputs that are kept are where inputs are.
                        if recompute.keeps_outputs() && attention_offloading {
                            continue;
                        }
                        for (&mlp_tile_tokens, &attention_head_groups) in
                            tiles.iter().flat_map(|tile| groups.iter().map(move |g| (tile, g)))
                        {
                            all.push(Settings {
                                attention_head_groups,
                                mlp_tile_tokens: mlp_tile_tokens.min(tokens),
                                loss_tile_tokens: train.loss_tile_tokens,
                                row_tile_tokens,
                                activation_offloading,
                                attention_offloading,
                                checkpoint_every_layers,
                                recompute,
                                recompute_num_layers,
                                optimizer_in_backward: in_backward,
                                step_elements: STEP_ELEMENTS[usize::from(weight_streaming)],
                                weight_streaming,
                                stochastic_rounding: train.stochastic_rounding(),
                                grad_clipping: train.grad_clipping(),
                            });
                        }
                    }
                }
            }
        }
    }
    all
}

/// Bytes of one number.
pub fn bytes_of(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Float32 => 4,
        Dtype::Bfloat16 => 2,
    }
}

#[cfg(test)]
mod tests;
