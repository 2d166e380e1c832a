//! Whether what a point asks for fits the model and the tokenizer that it names: what every run of it would end with is said
//! before the first begins.

use super::plan::Plan;
use anyhow::{Context, Result, anyhow, ensure};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{ModelConfig, RunConfig};
use std::collections::HashMap;
use std::path::Path;

/// Holds configurations against what they name, each of which is read once. What is not there, or can't be read, is said where
/// it is used; the shape in a `.gguf` file is the engine's to read.
#[derive(Default)]
pub struct Fits {
    shapes: HashMap<String, Option<ModelConfig>>,
    tokenizers: HashMap<String, Option<Tokenizer>>,
}

impl Fits {
    /// Every point that is known before anything runs.
    ///
    /// # Errors
    ///
    /// As [`Fits::check`], with the point.
    pub fn check_plan(plan: &Plan) -> Result<()> {
        let mut fits = Fits::default();
        plan.foreseen()?.iter().try_for_each(|point| {
            fits.check(&point.config).with_context(|| format!("point `{}`", point.label))
        })
    }

    /// # Errors
    ///
    /// With the key that asks for more than the model or the tokenizer has.
    pub fn check(&mut self, config: &RunConfig) -> Result<()> {
        let path = config.model.path.as_deref();
        let shape = match (&config.model.config, path) {
            (Some(shape), _) => Some(shape),
            (None, Some(path)) => {
                self.shapes.entry(path.to_string()).or_insert_with(|| of_folder(path)).as_ref()
            }
            (None, None) => None,
        };
        if let Some(shape) = shape {
            config.check_shape(shape).map_err(|(key, message)| anyhow!("{key}: {message}"))?;
        }
        let Some(spec) = config.tokenizer.path.as_deref().or(path) else { return Ok(()) };
        let tokenizer = self
            .tokenizers
            .entry(spec.to_string())
            .or_insert_with(|| Tokenizer::from_spec(spec).ok());
        let Some(tokenizer) = tokenizer else { return Ok(()) };
        if let Some(shape) = shape {
            let (ids, most) = (tokenizer.vocab_size(), shape.vocab_size);
            ensure!(
                ids <= most,
                "tokenizer.path: expected at most the model's vocab_size of {most} ids, found {ids} in `{spec}`"
            );
        }
        tokenizer.check_length(config.train.sequence_length, config.model.max_position_embeddings)
    }
}

fn of_folder(path: &str) -> Option<ModelConfig> {
    let file = Path::new(path).join("config.json");
    let text = std::fs::read_to_string(&file).ok()?;
    ModelConfig::from_hf_json(&file.display().to_string(), &text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_spec::config::written::Written;

    fn check(vocab_size: usize, sequence_length: usize, more: &str) -> Result<(), String> {
        let text = format!(
            "model: {{config: {{vocab_size: {vocab_size}, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, \
             num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}}}}\ntokenizer: {{path: bytes}}\n\
             data: {{corpus: c}}\ntrain: {{sequence_length: {sequence_length}, total_tokens: 4K, learning_rate: 1e-5{more}}}\n"
        );
        let config = RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap();
        Fits::default().check(&config).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_a_model_does_not_have_is_refused() {
        let groups = |n: usize| format!(", engine: layered, attention_head_groups: {n}");
        assert_eq!(check(260, 128, &groups(2)), Ok(()));
        let refused = |checked: Result<(), String>, expected: &str| {
            let error = checked.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        };
        refused(
            check(260, 256, ""),
            "train.sequence_length: expected at most the model's max_position_embeddings (128), found `256`",
        );
        refused(
            check(260, 64, &groups(3)),
            "train.attention_head_groups: expected at most the model's key-value heads (2), found `3`",
        );
        refused(
            check(100, 64, ""),
            "tokenizer.path: expected at most the model's vocab_size of 100 ids, found 258 in `bytes`",
        );
    }
}
