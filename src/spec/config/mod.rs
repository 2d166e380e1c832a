//! `RunConfig`: everything that a run is told, complete and typed.
//!
//! The written form (YAML, nearly all optional) is read by [`written`], made typed by [`RunConfig::from_written`] and saved
//! whole with the run. Every field below is seen by the leaf of the code that uses it, which records a *fact* under the
//! same key path; the test that swaps each key in turn and watches its fact change is `tests/configuration.rs`.

mod data;
mod de;
mod layered;
mod model;
mod rope;
pub mod written;

pub use data::{Bound, Continuation, DataSection, DocumentRange, Packing, RANDOM_CORPUS, SampleBy};
pub use de::{from_written, nearest};
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
    /// What drives the forward and backward; `plain` when not given. The keys from here to `stochastic_rounding` are chosen
    /// for the model and the device when not given, and recorded as facts.
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

/// What a run is, hashed: two runs with the same `run_hash` are the same run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// blake3 of the canonical configuration with the digests; 64 hexadecimal digits.
    pub run_hash: String,
    /// The same without the seed: the seeds of one point share it.
    pub group_hash: String,
}

/// Digests of what the configuration only names. A path is not part of a run's identity; what it holds is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub model: String,
    pub tokenizer: String,
    pub data: String,
}

/// The most tokens of one optimizer step, which are all in memory at once: 8 bytes each.
const MAX_STEP_TOKENS: usize = 1 << 30;

/// The most threads that a run may ask for: no machine has more cores, and each costs memory and a place in the kernel's table.
const MAX_THREADS: usize = 1024;

/// Keys (as JSON pointers) that came after runs had been hashed, each with the value (as JSON) that stands for what runs did
/// before. Left at it, a key is no part of the hash, so that no finished run is done again. Those that stand at `null` need no
/// line here.
const CAME_LATER: [(&str, &str); 8] = [
    ("/train/save_checkpoints", "true"),
    ("/train/optimizer/state_dtype", r#""float32""#),
    ("/data/sample_by", r#""document""#),
    ("/data/stride", "0"),
    ("/data/overflow", "true"),
    ("/data/continuation", r#""seamless""#),
    ("/data/shuffle_blocks", "false"),
    ("/data/select", "{}"),
];

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

    /// The hashes of this configuration with `digests` in place of the paths.
    ///
    /// Left out: `run.device`, `run.threads` (where it ran) and the paths themselves.
    pub fn identity(&self, digests: &Digests) -> RunIdentity {
        let mut json = self.canonical(digests);
        let run_hash = hash_canonical(&json);
        json["train"]["seed"] = serde_json::Value::Null;
        RunIdentity { run_hash, group_hash: hash_canonical(&json) }
    }

    /// What the identity is made of, flattened: every key path that is a part of it with its value, and under `model`,
    /// `tokenizer` and `data` the digests of what they name. Two runs are one exactly when these are the same.
    pub fn identity_parts(&self, digests: &Digests) -> Vec<(String, serde_json::Value)> {
        let mut parts = Vec::new();
        flatten_into(String::new(), &self.canonical(digests), &mut parts);
        for (key, _) in &mut parts {
            match key.as_str() {
                "model.path" => *key = "model".into(),
                "tokenizer.path" => *key = "tokenizer".into(),
                "data.corpus" => *key = "data".into(),
                _ => {}
            }
        }
        parts
    }

    fn canonical(&self, digests: &Digests) -> serde_json::Value {
        let mut json = self.to_json();
        for (key, before) in CAME_LATER {
            let before: serde_json::Value = serde_json::from_str(before).expect("a line of JSON");
            let value = json.pointer_mut(key).expect("the complete form has every key");
            if *value == before {
                *value = serde_json::Value::Null;
            }
        }
        json["run"] = serde_json::json!({ "memory_cap": self.run.memory_cap, "probe_layers": self.run.probe_layers });
        json["model"]["path"] = digests.model.clone().into();
        json["tokenizer"]["path"] = digests.tokenizer.clone().into();
        json["data"]["corpus"] = digests.data.clone().into();
        json
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

    /// Checks what types can't say, and fills in what depends on other keys. An error names its key.
    fn complete(&mut self) -> Result<(), (&'static str, String)> {
        let at_least_one = [
            ("train.sequence_length", self.train.sequence_length),
            ("train.micro_batch_size", self.train.micro_batch_size),
            ("train.gradient_accumulation_steps", self.train.gradient_accumulation_steps),
            ("train.loss_tile_tokens", self.train.loss_tile_tokens),
            ("train.keep_checkpoints", self.train.keep_checkpoints),
            ("eval.max_windows", self.eval.max_windows),
            ("train.max_steps", self.train.max_steps.map_or(1, |steps| steps as usize)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err((key, "expected 1 or more, found `0`".into()));
        }
        let step = [
            self.train.sequence_length,
            self.train.micro_batch_size,
            self.train.gradient_accumulation_steps,
        ];
        if step
            .iter()
            .try_fold(1, |tokens: usize, n| tokens.checked_mul(*n))
            .is_none_or(|n| n > MAX_STEP_TOKENS)
        {
            let [length, batch, accumulated] = step;
            return Err((
                "train",
                format!(
                    "expected at most {MAX_STEP_TOKENS} tokens in a step, found sequence_length {length} times micro_batch_size {batch} \
                 times gradient_accumulation_steps {accumulated}"
                ),
            ));
        }
        if self.train.sequence_length < 2 {
            let message = "expected 2 or more (a prediction needs a token to see), found `1`";
            return Err(("train.sequence_length", message.into()));
        }
        if !(self.train.learning_rate.is_finite() && self.train.learning_rate >= 0.0) {
            let found = self.train.learning_rate;
            return Err(("train.learning_rate", format!("expected 0 or more, found `{found}`")));
        }
        self.data.complete(self.train.sequence_length)?;
        if self.train.max_grad_norm.is_some_and(|norm| !(norm > 0.0 && norm.is_finite())) {
            return Err(("train.max_grad_norm", "expected more than 0, or `null`".into()));
        }
        let ratio = self.train.max_loss_ratio;
        if !(ratio > 1.0 && ratio.is_finite()) {
            let message = format!("expected a number, more than 1, found `{ratio}`");
            return Err(("train.max_loss_ratio", message));
        }
        if let Some(found) = self.run.threads.filter(|count| !(1..=MAX_THREADS).contains(count)) {
            return Err(("run.threads", format!("expected 1 to {MAX_THREADS}, found `{found}`")));
        }
        match (&self.model.path, &self.model.config) {
            (None, None) => {
                let message = "expected `path` (a folder or a .gguf file) or `config` (a shape), found neither";
                return Err(("model", message.into()));
            }
            (Some(_), Some(_)) => {
                return Err(("model", "expected `path` or `config`, found both".into()));
            }
            (None, Some(config)) => {
                config.check().map_err(|message| ("model.config", message))?;
                // Without a file of weights there is only one way to have some.
                self.model.weights = Weights::Random;
                if self.tokenizer.path.is_none() {
                    let message =
                        "expected a tokenizer (a path, or `bytes`) for a model without a folder";
                    return Err(("tokenizer", message.into()));
                }
            }
            (Some(_), None) => {}
        }
        if let Some(rope) = &self.model.rope_parameters {
            rope.check().map_err(|message| ("model.rope_parameters", message))?;
        }
        if self.train.total_tokens.0 == 0 {
            let Some(steps) = self.train.max_steps else {
                let message = "expected the key `total_tokens` or `max_steps`, found neither";
                return Err(("train", message.into()));
            };
            self.train.total_tokens = Tokens(steps.saturating_mul(self.tokens_per_step()));
        }
        let planned = self.planned_steps();
        self.train
            .schedule
            .complete(self.train.total_tokens, planned)
            .map_err(|m| ("train.schedule", m))?;
        self.train.optimizer.complete().map_err(|m| ("train.optimizer", m))?;
        self.check_engine()?;
        self.eval.context_lengths.sort_unstable();
        self.eval.context_lengths.dedup();
        if self.eval.context_lengths.first().is_some_and(|&length| length < 2) {
            return Err(("eval.context_lengths", "expected lengths of 2 or more".into()));
        }
        self.check_split()
    }

    /// Whether a run of it evaluates: on random documents, or without documents held out, there is nothing to know.
    pub fn evaluates(&self) -> bool {
        let asked = !self.eval.context_lengths.is_empty() || self.eval.every_steps > 0;
        self.data.corpus != RANDOM_CORPUS
            && (asked || self.data.splits.contains_key(&self.eval.split))
    }

    /// Refuses a split that is evaluated, or was named, and is not there. The default may be without documents.
    fn check_split(&self) -> Result<(), (&'static str, String)> {
        let split = &self.eval.split;
        let known = || self.data.splits.keys().map(String::as_str).chain([data::TRAIN]);
        let is_named = *split != default_split();
        if known().any(|name| name == split) || !(is_named || self.evaluates()) {
            return Ok(());
        }
        let near = nearest(split, known()).map(|near| format!("did you mean `{near}`? "));
        let mut names: Vec<&str> = known().collect();
        names.sort_unstable();
        names.dedup();
        let message = format!(
            "expected a split of data.splits, found `{split}`\n  help: {}known here: {}",
            near.unwrap_or_default(),
            names.join(", ")
        );
        Err(("eval.split", message))
    }
}

impl Schedule {
    /// Whether lengths are in steps.
    pub fn in_steps(&self) -> bool {
        self.warmup_steps.is_some() || self.decay_steps.is_some() || self.decay_start_step.is_some()
    }

    fn complete(&mut self, total: Tokens, planned_steps: u64) -> Result<(), String> {
        use ScheduleType::{Constant, Cosine, Wsd};
        let foreign = [
            ("min_learning_rate_ratio", self.min_learning_rate_ratio.is_some(), &[Cosine, Wsd][..]),
            ("decay_tokens", self.decay_tokens.is_some(), &[Wsd][..]),
            ("decay_steps", self.decay_steps.is_some(), &[Cosine, Wsd][..]),
            ("decay_start_step", self.decay_start_step.is_some(), &[Wsd][..]),
        ];
        for (option, given, kinds) in foreign {
            if given && !kinds.contains(&self.kind) {
                let kinds = if kinds.len() == 1 { "`wsd`" } else { "`cosine` and `wsd`" };
                return Err(format!("`{option}` belongs to {kinds}"));
            }
        }
        if self.kind != Constant {
            let ratio = *self.min_learning_rate_ratio.get_or_insert(0.1);
            let least = if self.kind == Wsd { f64::MIN_POSITIVE } else { 0.0 };
            if !(least..=1.0).contains(&ratio) {
                return Err(format!(
                    "min_learning_rate_ratio: expected more than 0, at most 1, found `{ratio}`"
                ));
            }
        }
        match self.in_steps() {
            true => self.complete_in_steps(planned_steps),
            false => self.complete_in_tokens(total),
        }
    }

    fn complete_in_tokens(&mut self, total: Tokens) -> Result<(), String> {
        if self.warmup_tokens.0 > total.0 {
            return Err(format!(
                "expected warmup_tokens ({}) to fit into total_tokens ({total})",
                self.warmup_tokens
            ));
        }
        if self.kind == ScheduleType::Wsd {
            let decay = self.decay_tokens.get_or_insert(Tokens(total.0 / 10)).0;
            if self.warmup_tokens.0.saturating_add(decay) > total.0 {
                return Err(format!(
                    "expected warmup_tokens ({}) and decay_tokens ({}) to fit into total_tokens ({total})",
                    self.warmup_tokens,
                    Tokens(decay)
                ));
            }
        }
        Ok(())
    }

    fn complete_in_steps(&mut self, planned_steps: u64) -> Result<(), String> {
        let tokens = [
            ("warmup_tokens", self.warmup_tokens.0 > 0),
            ("decay_tokens", self.decay_tokens.is_some()),
        ];
        if let Some((option, _)) = tokens.iter().find(|(_, given)| *given) {
            return Err(format!(
                "expected lengths in tokens or in steps, found both (`{option}` is in tokens)"
            ));
        }
        let warmup = *self.warmup_steps.get_or_insert(0);
        match self.kind {
            ScheduleType::Constant => return Ok(()),
            ScheduleType::Cosine => {
                self.decay_steps.get_or_insert(planned_steps.saturating_sub(warmup).max(1));
            }
            ScheduleType::Wsd => {
                let decay = *self.decay_steps.get_or_insert((planned_steps / 10).max(1));
                let ends_with_run = planned_steps.saturating_sub(decay).max(warmup);
                let start = *self.decay_start_step.get_or_insert(ends_with_run);
                if start < warmup {
                    return Err(format!(
                        "expected decay_start_step of at least warmup_steps ({warmup}), found `{start}`"
                    ));
                }
            }
        }
        match self.decay_steps {
            Some(0) => Err("decay_steps: expected 1 or more, found `0`".into()),
            _ => Ok(()),
        }
    }
}

impl Optimizer {
    /// What the moments of `adamw` are kept in.
    pub fn state_dtype(&self) -> StateDtype {
        self.state_dtype.unwrap_or_default()
    }

    fn complete(&mut self) -> Result<(), String> {
        use OptimizerType::{Adafactor, AdafactorSum, Adamw, Sgd};
        let kind = self.kind;
        let factored = matches!(kind, Adafactor | AdafactorSum);
        let foreign = [
            ("betas", self.betas.is_some() && kind != Adamw),
            ("eps", self.eps.is_some() && kind == Sgd),
            ("beta2_decay", self.beta2_decay.is_some() && !factored),
            ("clip_threshold", self.clip_threshold.is_some() && !factored),
            ("relative_step_floor", self.relative_step_floor.is_some() && kind != Adafactor),
            ("momentum", self.momentum.is_some() && kind != Sgd),
            ("state_dtype", self.state_dtype.is_some() && kind != Adamw),
        ];
        if let Some((option, _)) = foreign.iter().find(|(_, given)| *given) {
            let name = serde_json::to_value(kind).map_or(String::new(), |v| v.to_string());
            return Err(format!("`{option}` is not an option of {}", name.replace('"', "`")));
        }
        match kind {
            Adamw => {
                self.betas.get_or_insert([0.9, 0.999]);
                self.eps.get_or_insert(1e-8);
            }
            Adafactor | AdafactorSum => {
                if kind == Adafactor {
                    self.eps.get_or_insert(f64::from(f32::EPSILON));
                    self.relative_step_floor.get_or_insert(1e-3);
                }
                self.eps.get_or_insert(1e-30);
                self.beta2_decay.get_or_insert(-0.8);
                self.clip_threshold.get_or_insert(1.0);
            }
            Sgd => {
                self.momentum.get_or_insert(0.0);
            }
        }
        let betas = self.betas.unwrap_or_default();
        if betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(format!("betas: expected numbers from 0 to below 1, found {betas:?}"));
        }
        // Written so that NaN is none of them.
        let decay = self.beta2_decay.unwrap_or(-1.0);
        let clip = self.clip_threshold.unwrap_or(1.0);
        let momentum = self.momentum.unwrap_or(0.0);
        let eps = self.eps.unwrap_or(0.0);
        let floor = self.relative_step_floor.unwrap_or(0.0);
        for (name, value, holds, expected) in [
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more"),
            ("eps", eps, eps >= 0.0, "0 or more"),
            ("relative_step_floor", floor, floor >= 0.0, "0 or more"),
            ("beta2_decay", decay, decay < 0.0, "a number below 0"),
            ("clip_threshold", clip, clip > 0.0, "a number above 0"),
            ("momentum", momentum, (0.0..1.0).contains(&momentum), "a number from 0 to below 1"),
        ] {
            if !holds || value.is_infinite() {
                return Err(format!("{name}: expected {expected}, found `{value}`"));
            }
        }
        Ok(())
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

/// blake3 of the JSON text with sorted keys. Absent and `null` options are the same thing.
fn hash_canonical(value: &serde_json::Value) -> String {
    fn write(value: &serde_json::Value, out: &mut String) {
        match value {
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
                entries.sort_by_key(|(key, _)| *key);
                out.push('{');
                for (key, value) in entries {
                    out.push_str(&format!("{key:?}:"));
                    write(value, out);
                    out.push(',');
                }
                out.push('}');
            }
            serde_json::Value::Array(items) => {
                out.push('[');
                for item in items {
                    write(item, out);
                    out.push(',');
                }
                out.push(']');
            }
            // 1 and 1.0 are the same number.
            serde_json::Value::Number(n) => match n.as_f64() {
                Some(x) if x.fract() == 0.0 && x.abs() < 2f64.powi(53) => {
                    out.push_str(&format!("{}", x as i64))
                }
                _ => out.push_str(&n.to_string()),
            },
            other => out.push_str(&other.to_string()),
        }
    }
    let mut text = String::new();
    write(value, &mut text);
    blake3::hash(text.as_bytes()).to_hex().to_string()
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
