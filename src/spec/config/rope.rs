//! `RopeParameters`: which rotary position embedding, with Hugging Face's names. The formulas are in the engine's `model::rope`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of a rotary position embedding. Which of them a type reads is in [`RopeParameters::check`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeParameters {
    #[serde(default)]
    pub rope_type: RopeType,
    /// The base of the frequencies. In an override, the model's own when not given; in a model, 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// How many times longer the window is to become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// The window before scaling; the model's `max_position_embeddings` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// Multiplies cos and sin (attention logits by its square).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// Whether YaRN's ramp begins and ends at whole dimensions; true when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    /// One factor for each frequency, `head_dim / 2` in all, up to the original window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_factor: Option<Vec<f64>>,
    /// The same past the original window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_factor: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// Su et al. (2021).
    #[default]
    Default,
    /// Position interpolation, Chen et al. (2023).
    Linear,
    /// NTK-aware scaling that follows the sequence's length.
    Dynamic,
    /// NTK-by-parts with an attention factor, Peng et al. (2023).
    Yarn,
    /// One factor a frequency, Ding et al. (2024).
    Longrope,
    /// NTK-by-parts by wavelength, as in Llama 3.1.
    Llama3,
}

impl RopeType {
    pub fn name(self) -> &'static str {
        match self {
            RopeType::Default => "default",
            RopeType::Linear => "linear",
            RopeType::Dynamic => "dynamic",
            RopeType::Yarn => "yarn",
            RopeType::Longrope => "longrope",
            RopeType::Llama3 => "llama3",
        }
    }

    /// Whether the frequencies depend on the length of the sequence, so that a longer forward does not serve a shorter one.
    pub fn depends_on_length(self) -> bool {
        matches!(self, RopeType::Dynamic | RopeType::Longrope)
    }
}

impl RopeParameters {
    /// Reads either spelling from a whole `config.json`.
    pub(super) fn from_hf_json(json: &serde_json::Value) -> Result<RopeParameters, String> {
        let scaling = ["rope_parameters", "rope_scaling"]
            .iter()
            .map(|key| &json[key])
            .find(|value| value.is_object())
            .cloned()
            .unwrap_or_else(|| serde_json::json!({}));
        let mut scaling = scaling.as_object().cloned().unwrap_or_default();
        // The old spelling says `type`, and some files say both.
        if let Some(old) = scaling.remove("type") {
            scaling.entry("rope_type").or_insert(old);
        }
        if !scaling.contains_key("rope_theta") && json["rope_theta"].is_number() {
            scaling.insert("rope_theta".into(), json["rope_theta"].clone());
        }
        // A top-level original window is the older spelling of the one inside (Phi, early YaRN models).
        if !scaling.contains_key("original_max_position_embeddings")
            && json["original_max_position_embeddings"].is_number()
        {
            let value = json["original_max_position_embeddings"].clone();
            scaling.insert("original_max_position_embeddings".into(), value);
        }
        let known = [
            "rope_type",
            "rope_theta",
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "low_freq_factor",
            "high_freq_factor",
            "short_factor",
            "long_factor",
        ];
        if let Some(share) = scaling.get("partial_rotary_factor").and_then(|v| v.as_f64())
            && share != 1.0
        {
            return Err(format!("partial_rotary_factor: expected `1`, found `{share}`"));
        }
        scaling.retain(|key, value| known.contains(&key.as_str()) && !value.is_null());
        let mut rope: RopeParameters =
            serde_json::from_value(scaling.into()).map_err(|e| format!("rope_parameters: {e}"))?;
        rope.rope_theta.get_or_insert(10_000.0);
        rope.drop_unread();
        if rope.rope_type == RopeType::Dynamic {
            // transformers takes this type's window from the model's `max_position_embeddings` alone.
            rope.original_max_position_embeddings = None;
        }
        rope.check()?;
        Ok(rope)
    }

    /// The `rope_parameters` that transformers reads.
    pub fn to_hf_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("parameters are plain data")
    }

    /// This override over a model's own parameters: only the base of the frequencies is inherited.
    pub fn over(&self, own: &RopeParameters) -> RopeParameters {
        RopeParameters { rope_theta: self.rope_theta.or(own.rope_theta), ..self.clone() }
    }

    /// The options that this type reads, besides `rope_theta`.
    fn reads(&self) -> &'static [&'static str] {
        match self.rope_type {
            RopeType::Default => &[],
            RopeType::Linear => &["factor"],
            RopeType::Dynamic => &["factor", "original_max_position_embeddings"],
            RopeType::Yarn => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
            RopeType::Longrope => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "short_factor",
                "long_factor",
            ],
            RopeType::Llama3 => &[
                "factor",
                "original_max_position_embeddings",
                "low_freq_factor",
                "high_freq_factor",
            ],
        }
    }

    /// # Errors
    ///
    /// When an option is missing that the type needs, or is given that the type does not read: it would be ignored.
    pub fn check(&self) -> Result<(), String> {
        let given = |name: &str| match name {
            "factor" => self.factor.is_some(),
            "original_max_position_embeddings" => self.original_max_position_embeddings.is_some(),
            "attention_factor" => self.attention_factor.is_some(),
            "beta_fast" => self.beta_fast.is_some(),
            "beta_slow" => self.beta_slow.is_some(),
            "mscale" => self.mscale.is_some(),
            "mscale_all_dim" => self.mscale_all_dim.is_some(),
            "truncate" => self.truncate.is_some(),
            "low_freq_factor" => self.low_freq_factor.is_some(),
            "high_freq_factor" => self.high_freq_factor.is_some(),
            "short_factor" => self.short_factor.is_some(),
            _ => self.long_factor.is_some(),
        };
        let all = [
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "low_freq_factor",
            "high_freq_factor",
            "short_factor",
            "long_factor",
        ];
        let name = self.rope_type.name();
        if let Some(unread) = all.iter().find(|o| given(o) && !self.reads().contains(o)) {
            let reads = self.reads().iter().map(|o| format!("`{o}`")).collect::<Vec<_>>();
            let reads =
                if reads.is_empty() { "only `rope_theta`".into() } else { reads.join(", ") };
            return Err(format!(
                "`{unread}` is not read by rope_type `{name}`\n  help: it reads {reads}"
            ));
        }
        let needs: &[&str] = match self.rope_type {
            RopeType::Default => &[],
            RopeType::Linear | RopeType::Dynamic | RopeType::Yarn => &["factor"],
            RopeType::Longrope => {
                &["short_factor", "long_factor", "original_max_position_embeddings"]
            }
            RopeType::Llama3 => &[
                "factor",
                "original_max_position_embeddings",
                "low_freq_factor",
                "high_freq_factor",
            ],
        };
        if let Some(missing) = needs.iter().find(|o| !given(o)) {
            return Err(format!("rope_type `{name}` needs `{missing}`, found none"));
        }
        if let Some(factor) = self.factor.filter(|f| !f.is_finite() || *f < 1.0) {
            return Err(format!("factor: expected 1 or more, found `{factor}`"));
        }
        if let Some(theta) = self.rope_theta.filter(|t| !t.is_finite() || *t <= 1.0) {
            return Err(format!("rope_theta: expected more than 1, found `{theta}`"));
        }
        if self.original_max_position_embeddings == Some(0) {
            return Err("original_max_position_embeddings: expected 1 or more, found `0`".into());
        }
        for (name, value) in [
            ("attention_factor", self.attention_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("low_freq_factor", self.low_freq_factor),
            ("high_freq_factor", self.high_freq_factor),
        ] {
            if let Some(found) = value.filter(|value| !value.is_finite() || *value <= 0.0) {
                return Err(format!("{name}: expected more than 0, found `{found}`"));
            }
        }
        let (fast, slow) = (self.beta_fast.unwrap_or(32.0), self.beta_slow.unwrap_or(1.0));
        if self.rope_type == RopeType::Yarn && fast <= slow {
            return Err(format!(
                "expected beta_fast (32 if not given) above beta_slow (1 if not given), found `{fast}` and `{slow}`"
            ));
        }
        if self.low_freq_factor.zip(self.high_freq_factor).is_some_and(|(low, high)| low >= high) {
            return Err("expected low_freq_factor below high_freq_factor".into());
        }
        Ok(())
    }

    /// Model folders carry options that their type does not read; they change nothing.
    fn drop_unread(&mut self) {
        let reads = self.reads();
        let keep = |name: &str| reads.contains(&name);
        macro_rules! drop_unless_read {
            ($($field:ident),*) => { $( if !keep(stringify!($field)) { self.$field = None; } )* };
        }
        drop_unless_read!(
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
            low_freq_factor,
            high_freq_factor,
            short_factor,
            long_factor
        );
    }
}
