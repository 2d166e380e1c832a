//! `ModelConfig`: the shape of a Llama or Mistral model, with the field names of Hugging Face's `config.json`.

use super::rope::RopeParameters;
use anyhow::{Context, Result, anyhow, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The widest matrix side that a model may have (as a vocabulary, a layer's width or all heads beside one another), and the most
/// layers: far beyond any model, and so that the arithmetic of memory and work stays within 64 bits.
const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;

/// The longest window of positions.
const MAX_POSITIONS: usize = 1 << 40;

/// The shape of a decoder of the Llama or Mistral family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `llama` or `mistral`.
    #[serde(default = "default_model_type")]
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// As many as query heads when not given.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` when not given.
    #[serde(default)]
    pub head_dim: Option<usize>,
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    #[serde(default = "default_max_position_embeddings")]
    pub max_position_embeddings: usize,
    #[serde(default)]
    pub rope_parameters: RopeParameters,
    /// Positions that a query sees, itself included; all of them when not given.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// The head is the embedding's matrix.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of the random initialisation.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    #[serde(default)]
    pub eos_token_id: Option<u32>,
}

fn default_model_type() -> String {
    "llama".into()
}
fn default_rms_norm_eps() -> f64 {
    1e-5
}
fn default_max_position_embeddings() -> usize {
    2048
}
fn default_initializer_range() -> f64 {
    0.02
}

impl ModelConfig {
    pub fn num_key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Number of weights; a tied head counts once.
    pub fn num_parameters(&self) -> u64 {
        let (d, f, h) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let attention = d * h * (2 * self.num_attention_heads + 2 * self.num_key_value_heads());
        let layer = attention + 3 * d * f + 2 * d;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        (self.num_hidden_layers * layer + heads * self.vocab_size * d + d) as u64
    }

    /// The shape that a model's folder says in its `config.json`; `None` where there is no such file.
    ///
    /// # Errors
    ///
    /// When the file can't be read. As [`ModelConfig::from_hf_json`].
    pub fn of_folder(folder: &Path) -> Result<Option<ModelConfig>> {
        let file = folder.join("config.json");
        if !file.is_file() {
            return Ok(None);
        }
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(&file).with_context(|| shown.clone())?;
        ModelConfig::from_hf_json(&shown, &text).map(Some)
    }

    /// Reads a Hugging Face `config.json`, in its old spelling (`rope_theta`, `rope_scaling` with `type`) and its new one
    /// (`rope_parameters` with `rope_type`). Keys that do not change the computation are passed over.
    ///
    /// # Errors
    ///
    /// For another architecture, an option that this implementation does not compute (biases, another activation), or
    /// sizes that do not fit together; `file` names the file in the message.
    pub fn from_hf_json(file: &str, text: &str) -> Result<ModelConfig> {
        let json: serde_json::Value =
            serde_json::from_str(text).with_context(|| format!("{file}: expected JSON"))?;
        let model_type = json["model_type"].as_str().unwrap_or("llama").to_string();
        if model_type != "llama" && model_type != "mistral" {
            bail!("{file}: model_type: expected `llama` or `mistral`, found `{model_type}`");
        }
        for bias in ["attention_bias", "mlp_bias"] {
            if json[bias].as_bool() == Some(true) {
                bail!("{file}: {bias}: expected `false`, found `true`");
            }
        }
        if let Some(activation) = json["hidden_act"].as_str().filter(|a| *a != "silu") {
            bail!("{file}: hidden_act: expected `silu`, found `{activation}`");
        }
        let size = |key: &str| -> Result<usize> {
            optional_size(&json, key)
                .map_err(|e| anyhow!("{file}: {e}"))?
                .ok_or_else(|| anyhow!("{file}: expected the key `{key}`, found none"))
        };
        let optional = |key: &str| optional_size(&json, key).map_err(|e| anyhow!("{file}: {e}"));
        // A list of ids (several ends of text) gives its first.
        let token = |key: &str| {
            let value = &json[key];
            value.as_u64().or_else(|| value.get(0)?.as_u64()).map(|id| id as u32)
        };
        let rope_parameters =
            RopeParameters::from_hf_json(&json).map_err(|message| anyhow!("{file}: {message}"))?;
        let config = ModelConfig {
            // Absent in Mistral's config.json means 4,096; `null` means none.
            sliding_window: match json.get("sliding_window") {
                None if model_type == "mistral" => Some(4096),
                _ if model_type == "llama" => None,
                _ => optional("sliding_window")?,
            },
            model_type,
            vocab_size: size("vocab_size")?,
            hidden_size: size("hidden_size")?,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            num_attention_heads: size("num_attention_heads")?,
            num_key_value_heads: optional("num_key_value_heads")?,
            head_dim: optional("head_dim")?,
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            max_position_embeddings: optional("max_position_embeddings")?.unwrap_or(2048),
            rope_parameters,
            tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
            initializer_range: json["initializer_range"].as_f64().unwrap_or(0.02),
            bos_token_id: token("bos_token_id"),
            eos_token_id: token("eos_token_id"),
        };
        config.check().map_err(|message| anyhow!("{file}: {message}"))?;
        Ok(config)
    }

    /// The `config.json` that transformers loads, in the new spelling.
    pub fn to_hf_json(&self) -> serde_json::Value {
        let architecture =
            if self.model_type == "mistral" { "MistralForCausalLM" } else { "LlamaForCausalLM" };
        let mut json = serde_json::to_value(self).expect("a configuration is plain data");
        let object = json.as_object_mut().expect("a struct is an object");
        object.insert("architectures".into(), serde_json::json!([architecture]));
        object.insert("hidden_act".into(), "silu".into());
        object.insert("attention_bias".into(), false.into());
        object.insert("mlp_bias".into(), false.into());
        object.insert("head_dim".into(), self.head_dim().into());
        object.insert("num_key_value_heads".into(), self.num_key_value_heads().into());
        object.insert("rope_parameters".into(), self.rope_parameters.to_hf_json());
        if self.model_type == "llama" {
            object.shift_remove("sliding_window");
        }
        json
    }

    /// # Errors
    ///
    /// When sizes do not fit together.
    pub fn check(&self) -> Result<(), String> {
        let (n, k) = (self.num_attention_heads, self.num_key_value_heads());
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", n),
            ("num_key_value_heads", k),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 {
                return Err(format!("{name}: expected 1 or more, found `0`"));
            }
        }
        for (name, size, most) in [
            ("vocab_size", self.vocab_size, MAX_WIDTH),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", n, MAX_WIDTH),
            ("head_dim", self.head_dim.unwrap_or(1), MAX_WIDTH),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
        ] {
            if size > most {
                return Err(format!("{name}: expected at most {most}, found `{size}`"));
            }
        }
        if n.saturating_mul(self.head_dim()) > MAX_WIDTH {
            return Err(format!(
                "expected num_attention_heads ({n}) times head_dim ({}) of at most {MAX_WIDTH}",
                self.head_dim()
            ));
        }
        for (name, value, is_right) in [
            ("rms_norm_eps", self.rms_norm_eps, self.rms_norm_eps > 0.0),
            ("initializer_range", self.initializer_range, self.initializer_range >= 0.0),
        ] {
            if !is_right || !value.is_finite() {
                let least = if name == "rms_norm_eps" { "more than 0" } else { "0 or more" };
                return Err(format!("{name}: expected {least}, found `{value}`"));
            }
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(n) {
            let d = self.hidden_size;
            return Err(format!(
                "hidden_size ({d}) must be divisible by num_attention_heads ({n})"
            ));
        }
        if !n.is_multiple_of(k) {
            return Err(format!(
                "num_attention_heads ({n}) must be divisible by num_key_value_heads ({k})"
            ));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Err(format!("head_dim ({}) must be even for RoPE", self.head_dim()));
        }
        if self.model_type != "llama" && self.model_type != "mistral" {
            return Err(format!(
                "model_type: expected `llama` or `mistral`, found `{}`",
                self.model_type
            ));
        }
        match self.sliding_window {
            Some(0) => return Err("sliding_window: expected 1 or more, found `0`".into()),
            // transformers computes a window for Mistral only: a checkpoint would lose it.
            Some(window) if self.model_type == "llama" => {
                return Err(format!(
                    "sliding_window: expected none with model_type `llama`, found `{window}`\n  help: set model_type: mistral"
                ));
            }
            _ => {}
        }
        self.rope_parameters.check()?;
        let (half, rope) = (self.head_dim() / 2, &self.rope_parameters);
        for (name, factors) in
            [("short_factor", &rope.short_factor), ("long_factor", &rope.long_factor)]
        {
            if let Some(factors) = factors.as_ref().filter(|factors| factors.len() != half) {
                return Err(format!(
                    "rope_parameters.{name}: expected {half} numbers (head_dim / 2), found {}",
                    factors.len()
                ));
            }
        }
        Ok(())
    }
}

fn optional_size(json: &serde_json::Value, key: &str) -> Result<Option<usize>, String> {
    match &json[key] {
        serde_json::Value::Null => Ok(None),
        value => match value.as_u64() {
            Some(n) => Ok(Some(n as usize)),
            None => Err(format!("{key}: expected a whole number, found `{value}`")),
        },
    }
}
