//! `RunConfig`: everything that a run is told, complete and typed.
//!
//! The written form (YAML, nearly all optional) is read by [`written`], made typed by [`RunConfig::from_written`], completed and
//! checked (`complete`), and saved whole with the run; `identity` hashes what makes it another run. Every field below is seen by
//! the leaf of the code that uses it, which records a *fact* under the same key path; the test that swaps each key in turn and
//! watches its fact change is `tests/configuration.rs`.

mod complete;
mod data;
mod de;
mod identity;
mod layered;
mod model;
mod rope;
pub mod written;

pub use data::{Bound, Continuation, DataSection, DocumentRange, Packing, RANDOM_CORPUS, SampleBy};
pub use de::{from_written, nearest};
pub use identity::{Digests, RunIdentity};
pub use layered::{Engine, GradClipping, Recompute};
pub use model::ModelConfig;
pub use rope::{RopeParameters, RopeType};

use crate::units::{Bytes, Tokens};
use anyhow::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use written::Written;

/// The complete configuration of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    pub model: ModelSection,
    #[serde(default)]
    pub tokenizer: TokenizerSection,
    pub data: DataSection,
    pub train: TrainSection,
    #[serde(default)]
    pub eval: EvalSection,
    #[serde(default)]
    pub run: RunSection,
}

/// The model: a folder or file of weights, or a shape to initialise at random.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face folder, a checkpoint of fathom, or a `.gguf` file. Relative paths start at the folder fathom is run in.
    #[serde(default)]
    pub path: Option<String>,
    /// The shape of a model to initialise at random, with the field names of Hugging Face's `config.json`.
    #[serde(default)]
    pub config: Option<ModelConfig>,
    /// `pretrained` reads the weights of `path`; `random` takes only its shape.
    #[serde(default)]
    pub weights: Weights,
    /// Replaces the model's own RoPE; what is not given (`rope_theta`) stays the model's.
    #[serde(default)]
    pub rope_parameters: Option<RopeParameters>,
    /// The type that the forward and backward compute in.
    #[serde(default)]
    pub dtype: Dtype,
    #[serde(default)]
    pub attention: Attention,
    /// Lifts the model's limit on the sequence length.
    #[serde(default)]
    pub max_position_embeddings: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    #[default]
    Pretrained,
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    #[default]
    Float32,
    Bfloat16,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// LibTorch's fused scaled-dot-product attention; which kernel it chose is a fact of the run.
    #[default]
    Sdpa,
    /// The scores in full, `[N, T, T]`: for comparison.
    Eager,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSection {
    /// A folder, a `tokenizer.json`, a `.gguf` file, or the word `bytes`; the model's own when not given.
    #[serde(default)]
    pub path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Tokens a block.
    pub sequence_length: usize,
    /// The budget: training ends with the step that reaches it. When not given, that of `max_steps` with full blocks.
    #[serde(default)]
    pub total_tokens: Tokens,
    /// Ends training after this many optimizer steps, if the budget has not before.
    #[serde(default)]
    pub max_steps: Option<u64>,
    /// Blocks in one forward.
    #[serde(default = "one")]
    pub micro_batch_size: usize,
    /// Forwards in one optimizer step.
    #[serde(default = "one")]
    pub gradient_accumulation_steps: usize,
    pub learning_rate: f64,
    #[serde(default)]
    pub schedule: Schedule,
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Clips the global L2 norm of the gradients; `null` leaves them as they are.
    #[serde(default = "default_max_grad_norm")]
    pub max_grad_norm: Option<f64>,
    /// The type that the weights and gradients are kept in. With `dtype: bfloat16`, float32 weights are cast for each use.
    #[serde(default)]
    pub weights_dtype: Dtype,
    /// Positions whose logits exist at one time. (Elsewhere called the chunk size of a chunked cross-entropy.)
    #[serde(default = "default_loss_tile_tokens")]
    pub loss_tile_tokens: usize,
    /// Recompute each layer in the backward instead of keeping its activations.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// What drives the forward and backward; when not given, `layered` on CUDA and where a key of it is, else `plain`. The
    /// keys from here to `stochastic_rounding` are chosen for the model and the device when not given, and recorded as facts.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// `layered`: key-value heads are worked in so many groups, one after another.
    #[serde(default)]
    pub attention_head_groups: Option<usize>,
    /// `layered`: positions whose MLP activations exist at one time.
    #[serde(default)]
    pub mlp_tile_tokens: Option<usize>,
    /// `layered`: keep the layers' inputs in host memory between forward and backward.
    #[serde(default)]
    pub activation_offloading: Option<bool>,
    /// `layered`: keep the heads' outputs of the layer that is worked in host memory too.
    #[serde(default)]
    pub attention_offloading: Option<bool>,
    /// `layered`: keep the input of every so many layers, and recompute those between.
    #[serde(default)]
    pub checkpoint_every_layers: Option<usize>,
    /// `layered`: what of a layer's forward is done again in its backward.
    #[serde(default)]
    pub recompute: Option<Recompute>,
    /// `layered`, `recompute: mlp`: in how many layers, from the first; the others do as with `recompute: norms`.
    #[serde(default)]
    pub recompute_num_layers: Option<usize>,
    /// `layered`: step each weight inside the backward, and drop its gradient at once.
    #[serde(default)]
    pub optimizer_in_backward: Option<bool>,
    /// `layered`: keep the weights in host memory, and on the device those of two layers.
    #[serde(default)]
    pub weight_streaming: Option<bool>,
    /// Round bfloat16 weights up or down at random, so that small steps are kept on average.
    #[serde(default)]
    pub stochastic_rounding: Option<bool>,
    /// Over which gradients `max_grad_norm` is taken; `global` when not given.
    #[serde(default)]
    pub grad_clipping: Option<GradClipping>,
    /// Seeds the order of the data and the random initialisation.
    #[serde(default)]
    pub seed: u64,
    /// Write checkpoints at all. A run without any can be neither resumed nor exported.
    #[serde(default = "yes")]
    pub save_checkpoints: bool,
    /// A checkpoint every so many steps; 0 writes only the last.
    #[serde(default)]
    pub checkpoint_every_steps: u64,
    /// How many checkpoints to keep; the last one always is.
    #[serde(default = "one")]
    pub keep_checkpoints: usize,
    /// Ends the run as diverged when the loss, averaged over 10 steps, is more than this many times its lowest such average
    /// (or the first loss), and more than 1 nat a token above it.
    #[serde(default = "default_max_loss_ratio")]
    pub max_loss_ratio: f64,
}

/// The learning rate over the run, as a multiple of `train.learning_rate`. Lengths are in tokens or in optimizer steps,
/// never in both.
///
/// In tokens, a decay ends with the budget. In steps, the curve goes by the number of steps done, and the end of the run may
/// cut a decay off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(default, rename = "type")]
    pub kind: ScheduleType,
    /// Linear rise from 0.
    #[serde(default)]
    pub warmup_tokens: Tokens,
    /// `wsd` only: the length of the decay at the end; a tenth of the budget when not given.
    #[serde(default)]
    pub decay_tokens: Option<Tokens>,
    /// As `warmup_tokens`, in steps.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// `wsd`: the length of the decay, a tenth of the planned steps when lengths are in steps and this is not given.
    /// `cosine`: the length of the way down, to the last planned step when not given.
    #[serde(default)]
    pub decay_steps: Option<u64>,
    /// `wsd` only: how many steps are done when the decay begins; when not given, as many as let it end with the run.
    #[serde(default)]
    pub decay_start_step: Option<u64>,
    /// `cosine` and `wsd`: the last learning rate as a fraction of the first; 0.1 when not given.
    #[serde(default)]
    pub min_learning_rate_ratio: Option<f64>,
}

impl Schedule {
    /// Whether lengths are in steps.
    pub fn in_steps(&self) -> bool {
        self.warmup_steps.is_some() || self.decay_steps.is_some() || self.decay_start_step.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleType {
    #[default]
    Constant,
    Cosine,
    /// Warm-up, stable, decay (harmonic).
    Wsd,
}

/// The optimizer and its options. An option of another optimizer is an error.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    #[serde(default, rename = "type")]
    pub kind: OptimizerType,
    #[serde(default)]
    pub weight_decay: f64,
    /// `adamw`: 0.9 and 0.999 when not given.
    #[serde(default)]
    pub betas: Option<[f64; 2]>,
    /// `adamw`: added to the root of the second moment, 1e-8 when not given. `adafactor`: the least second moment, the
    /// machine epsilon of float32; `adafactor_sum`: added to squared gradients, 1e-30.
    #[serde(default)]
    pub eps: Option<f64>,
    /// `adafactor`: the least root mean square of the weights that a step is relative to; 1e-3.
    #[serde(default)]
    pub relative_step_floor: Option<f64>,
    /// `adafactor`, `adafactor_sum`: the exponent of the second moment's decay; -0.8.
    #[serde(default)]
    pub beta2_decay: Option<f64>,
    /// `adafactor`, `adafactor_sum`: updates are scaled down to this root mean square; 1.
    #[serde(default)]
    pub clip_threshold: Option<f64>,
    /// `sgd`: 0 when not given.
    #[serde(default)]
    pub momentum: Option<f64>,
    /// `adamw`: what the moments are kept in, `float32` when not given.
    #[serde(default)]
    pub state_dtype: Option<StateDtype>,
}

impl Optimizer {
    /// What the moments of `adamw` are kept in.
    pub fn state_dtype(&self) -> StateDtype {
        self.state_dtype.unwrap_or_default()
    }
}

/// What an optimizer's state is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateDtype {
    #[default]
    Float32,
    /// One byte a number with a float32 scale for every 256, by block-wise dynamic quantization (Dettmers et al. 2022,
    /// <https://arxiv.org/abs/2110.02861>). The state of parameters with fewer than 4096 elements stays in float32.
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerType {
    #[default]
    Adamw,
    /// As `torch.optim.Adafactor`: row and column means, step size relative to the weights' own scale.
    Adafactor,
    /// As in the tutorial's system: row and column sums, an absolute step size.
    AdafactorSum,
    Sgd,
}

impl OptimizerType {
    /// Whether its second moments are factored into rows and columns.
    pub fn is_adafactor(self) -> bool {
        matches!(self, OptimizerType::Adafactor | OptimizerType::AdafactorSum)
    }
}

/// What is measured on held-out documents when training ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalSection {
    #[serde(default = "default_split")]
    pub split: String,
    /// Perplexity is taken at each; documents that are shorter do not count there.
    #[serde(default)]
    pub context_lengths: Vec<usize>,
    /// Predictions that count in each last-stride window; 0 leaves that measure out.
    #[serde(default = "default_last_stride")]
    pub last_stride: usize,
    /// Last-stride windows a context length, spread evenly over the documents.
    #[serde(default = "default_max_windows")]
    pub max_windows: usize,
    /// Mean loss on the split every so many steps, as well as at the end; 0 only at the end.
    #[serde(default)]
    pub every_steps: u64,
    /// Predictions, spread over the split, that the mean loss during training is taken over.
    #[serde(default = "default_loss_tokens")]
    pub loss_tokens: Tokens,
}

impl Default for EvalSection {
    fn default() -> EvalSection {
        EvalSection {
            split: default_split(),
            context_lengths: Vec::new(),
            last_stride: default_last_stride(),
            max_windows: default_max_windows(),
            every_steps: 0,
            loss_tokens: default_loss_tokens(),
        }
    }
}

/// Where and how to run. Only `memory_cap` and `probe_layers` are part of the run's identity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: Device,
    /// Threads for LibTorch on the CPU, 1024 at most; every core when not given.
    #[serde(default)]
    pub threads: Option<usize>,
    /// The memory that the run may take: of the device's allocator, or resident on the CPU.
    #[serde(default)]
    pub memory_cap: Option<Bytes>,
    /// `train.engine: layered`: work only so many layers of the model. Its memory is that of all of them, its loss means nothing.
    #[serde(default)]
    pub probe_layers: Option<usize>,
    /// Begin the decay of a `wsd` schedule where the run goes on from its last checkpoint, as `fathom control
    /// start-annealing` does; a run that has none is refused. The complete form has it only where it is asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_annealing: bool,
}

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    /// The first CUDA device, or the CPU where there is none.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        match device {
            Device::Auto => "auto".into(),
            Device::Cpu => "cpu".into(),
            Device::Cuda(index) => format!("cuda:{index}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(text: String) -> Result<Device, String> {
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Device::Cuda)
                .ok_or(format!("expected `auto`, `cpu`, `cuda` or `cuda:N`, found `{text}`")),
        }
    }
}

fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn default_max_grad_norm() -> Option<f64> {
    Some(1.0)
}
fn default_loss_tile_tokens() -> usize {
    2048
}
fn default_max_loss_ratio() -> f64 {
    3.0
}
fn default_split() -> String {
    "validation".into()
}
fn default_last_stride() -> usize {
    256
}
fn default_max_windows() -> usize {
    16
}
fn default_loss_tokens() -> Tokens {
    Tokens(16_384)
}

impl RunConfig {
    /// The configuration with its engine written, if it was not.
    pub fn on_engine(&self, engine: Engine) -> RunConfig {
        let mut config = self.clone();
        config.train.engine.get_or_insert(engine);
        config
    }

    /// Reads the complete configuration from its written form.
    ///
    /// # Errors
    ///
    /// For an unknown key, a wrong type, a missing key, or values that contradict one another: with file, line, key path,
    /// what was expected and what was found.
    pub fn from_written(written: &Written) -> Result<RunConfig> {
        let mut config: RunConfig = from_written(written, "")?;
        config.complete().map_err(|(key, message)| {
            let origin = written.get(key).map_or(&written.origin, |value| &value.origin);
            anyhow::anyhow!("{origin}: {key}: {message}")
        })?;
        Ok(config)
    }

    /// Reads a saved `config.yaml`.
    ///
    /// # Errors
    ///
    /// As [`RunConfig::from_written`].
    pub fn read(path: &std::path::Path) -> Result<RunConfig> {
        RunConfig::from_written(&Written::read(path)?)
    }

    /// The complete form as YAML, as it is saved with the run.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&self.to_json()).expect("a configuration is plain data")
    }

    /// The complete form as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a configuration is plain data")
    }

    /// Every key path with its value, flattened: `train.optimizer.type` -> `adamw`. Lists are one value.
    pub fn flatten(&self) -> Vec<(String, serde_json::Value)> {
        let mut flat = Vec::new();
        flatten_into(String::new(), &self.to_json(), &mut flat);
        flat
    }

    /// The tokenizer: the one that is named, else the model's own.
    pub fn tokenizer_path(&self) -> Option<&str> {
        self.tokenizer.path.as_deref().or(self.model.path.as_deref())
    }

    /// What the configuration asks of its model, held against the shape that the model's own files say.
    ///
    /// # Errors
    ///
    /// With the key that asks for more than there is.
    pub fn check_shape(&self, own: &ModelConfig) -> Result<(), (&'static str, String)> {
        let limit = self.model.max_position_embeddings.unwrap_or(own.max_position_embeddings);
        let length = self.train.sequence_length;
        if length > limit {
            let message = format!(
                "expected at most the model's max_position_embeddings ({limit}), found `{length}`\n  help: set \
                 model.max_position_embeddings: {length} to lift the limit"
            );
            return Err(("train.sequence_length", message));
        }
        let heads = own.num_key_value_heads();
        if let Some(groups) = self.train.attention_head_groups.filter(|groups| *groups > heads) {
            let message =
                format!("expected at most the model's key-value heads ({heads}), found `{groups}`");
            return Err(("train.attention_head_groups", message));
        }
        Ok(())
    }

    /// Tokens in one optimizer step, when every block is full.
    pub fn tokens_per_step(&self) -> u64 {
        let train = &self.train;
        (train.sequence_length * train.micro_batch_size * train.gradient_accumulation_steps) as u64
    }

    /// Optimizer steps that the budget allows when every block is full.
    pub fn planned_steps(&self) -> u64 {
        let by_tokens = self.train.total_tokens.0.div_ceil(self.tokens_per_step());
        by_tokens.min(self.train.max_steps.unwrap_or(u64::MAX))
    }

    /// Whether a run of it evaluates: on random documents, or without documents held out, there is nothing to know.
    pub fn evaluates(&self) -> bool {
        let asked = !self.eval.context_lengths.is_empty() || self.eval.every_steps > 0;
        self.data.corpus != RANDOM_CORPUS
            && (asked || self.data.splits.contains_key(&self.eval.split))
    }
}

fn flatten_into(
    path: String,
    value: &serde_json::Value,
    flat: &mut Vec<(String, serde_json::Value)>,
) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten_into(path, value, flat);
            }
        }
        _ => flat.push((path, value.clone())),
    }
}

/// Parses `key=value` of the command line's `--set`; the value is YAML.
///
/// # Errors
///
/// When there is no `=`, or the value is not YAML.
pub fn parse_assignment(text: &str) -> Result<(String, Written)> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set: expected `key.path=value`, found `{text}`");
    };
    ensure!(!key.trim().is_empty(), "--set: expected a key before `=`, found `{text}`");
    let tree = Written::parse("--set", &format!("value: {value}"))?;
    let value = tree.get("value").expect("the key was just written").clone();
    Ok((key.trim().to_string(), value))
}

#[cfg(test)]
mod tests;
