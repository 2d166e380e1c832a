//! Whether what a point asks for fits the model and the tokenizer that it names: what every run of it would end with is said
//! before the first begins.

use super::plan::Point;
use anyhow::{Context, Result, anyhow};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{ModelConfig, RunConfig};
use std::collections::HashMap;
use std::path::Path;

/// Holds configurations against what they name, each of which is read once. What is not there, or can't be read, is said where
/// it is used; the shape in a `.gguf` file is the engine's to read.
#[derive(Default)]
pub struct Fits {
    shapes: HashMap<String, Option<ModelConfig>>,
    pub(super) tokenizers: HashMap<String, Option<Tokenizer>>,
}

impl Fits {
    /// Every point that is known before anything runs.
    ///
    /// # Errors
    ///
    /// As [`Fits::check`], with the point.
    pub fn check_points(&mut self, points: &[Point]) -> Result<()> {
        points.iter().try_for_each(|point| {
            self.check(&point.config)
                .map_err(|(key, message)| anyhow!("{key}: {message}"))
                .with_context(|| format!("point `{}`", point.label))
        })
    }

    /// # Errors
    ///
    /// With the key that asks for more than the model or the tokenizer has.
    pub fn check(&mut self, config: &RunConfig) -> Result<(), (&'static str, String)> {
        let shape = match (&config.model.config, &config.model.path) {
            (Some(shape), _) => Some(shape),
            (None, Some(path)) => {
                let read = || ModelConfig::of_folder(Path::new(path)).ok().flatten();
                self.shapes.entry(path.clone()).or_insert_with(read).as_ref()
            }
            (None, None) => None,
        };
        let tokenizer = config.tokenizer_path().and_then(|spec| {
            let read = || Tokenizer::from_spec(spec).ok();
            let tokenizer = self.tokenizers.entry(spec.to_string()).or_insert_with(read);
            Some((spec, tokenizer.as_ref()?))
        });
        if let Some((_, tokenizer)) = tokenizer {
            let lifted = config.model.max_position_embeddings;
            tokenizer
                .check_length(config.train.sequence_length, lifted)
                .map_err(|message| ("train.sequence_length", message))?;
        }
        if let Some(shape) = shape {
            config.check_shape(shape)?;
        }
        if let (Some((spec, tokenizer)), Some(shape)) = (tokenizer, shape) {
            tokenizer
                .check_vocabulary(spec, shape.vocab_size)
                .map_err(|message| ("tokenizer.path", message))?;
        }
        Ok(())
    }
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
        let checked = Fits::default().check(&config);
        checked.map_err(|(key, message)| format!("{key}: {message}"))
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
