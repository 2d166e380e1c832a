//! Whether a run met what was configured: the facts that its leaves recorded, held against its configuration and its identity.

use anyhow::{Context, Result, bail};
use fathom_data::corpus::TRAIN;
use fathom_data::model_files;
use fathom_spec::config::{Continuation, RANDOM_CORPUS, RunConfig};
use fathom_spec::record::{RunPaths, read_json};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Compares what the run has read with what it is known by: a corpus, a tokenizer or a model that was changed since the run was
/// planned makes another run, and this one is not to have its results.
///
/// A model is read again for that only where its files are not those that were read then, by size, place and times.
///
/// # Errors
///
/// With the key, and both digests.
pub(super) fn as_planned(
    paths: &RunPaths,
    config: &RunConfig,
    facts: &BTreeMap<String, Value>,
) -> Result<()> {
    let identity: Option<Value> = read_json(&paths.identity(), "the run's identity as JSON")?;
    let Some(identity) = identity else { return Ok(()) };
    for (key, digest) in [("data.corpus", "data"), ("tokenizer.path", "tokenizer")] {
        let met = facts.get(key).and_then(|fact| fact["digest"].as_str());
        compare(key, identity["digests"][digest].as_str(), met)?;
    }
    if let (Some(path), Some(planned)) = (&config.model.path, identity.get("model_files")) {
        let path = Path::new(path);
        let found = model_files::stamps(path).context("model.path")?;
        if serde_json::json!(found) != *planned {
            let met = model_files::digest(path).context("model.path")?;
            compare("model.path", identity["digests"]["model"].as_str(), Some(&met))?;
        }
    }
    Ok(())
}

fn compare(key: &str, planned: Option<&str>, met: Option<&str>) -> Result<()> {
    if let (Some(planned), Some(met)) = (planned, met)
        && planned != met
    {
        let [planned, met] = [planned, met].map(|digest| digest.get(..12).unwrap_or(digest));
        bail!(
            "{key}: expected what the run was planned with (blake3 {planned}), found that it was changed since ({met})\n  help: put it \
             back and run the same command again; as it is now, it makes other runs"
        );
    }
    Ok(())
}

/// Compares what the leaves met with what was configured.
///
/// # Errors
///
/// `configuration not honoured`, with the key and both values.
pub(super) fn honoured(config: &RunConfig, facts: &BTreeMap<String, Value>) -> Result<()> {
    let fact = |name: &str| facts.get(name).cloned().unwrap_or(Value::Null);
    let longest = fact("train.sequence_length")["max"].as_u64().unwrap_or(0);
    let length = config.train.sequence_length as u64;
    let rope = config.model.rope_parameters.as_ref().map(|rope| rope.rope_type.name());
    let rope_in_use = fact("model.rope_parameters")["rope_type"].clone();
    let checks = [
        ("train.sequence_length", longest > length, Value::from(length), Value::from(longest)),
        check("model.dtype", config.model.dtype.name().into(), fact("model.dtype")),
        check(
            "train.weights_dtype",
            config.train.weights_dtype.name().into(),
            fact("train.weights_dtype"),
        ),
        check("model.rope_parameters", rope.map_or(rope_in_use.clone(), Value::from), rope_in_use),
        check(
            "train.learning_rate",
            config.train.learning_rate.into(),
            fact("train.learning_rate"),
        ),
        check(
            "train.loss_tile_tokens",
            config.train.loss_tile_tokens.into(),
            fact("train.loss_tile_tokens"),
        ),
        check(
            "train.micro_batch_size",
            config.train.micro_batch_size.into(),
            fact("train.micro_batch_size"),
        ),
    ];
    let of_data = data_checks(config, facts);
    let written = written_settings(config).into_iter().filter(|(_, asked)| !asked.is_null());
    let written = written.map(|(key, asked)| check(key, asked, fact(key)));
    match checks.into_iter().chain(of_data).chain(written).find(|(_, broken, ..)| *broken) {
        Some((key, _, asked, met)) => {
            bail!(
                "configuration not honoured: {key}: configured as `{asked}`, but the run met `{met}`"
            )
        }
        None => Ok(()),
    }
}

/// A key, whether it was broken, what was configured and what was met.
type Check = (&'static str, bool, Value, Value);

/// What the blocks tell of the settings that made them. Documents of random tokens tell nothing.
fn data_checks(config: &RunConfig, facts: &BTreeMap<String, Value>) -> Vec<Check> {
    let data = &config.data;
    if data.corpus == RANDOM_CORPUS {
        return Vec::new();
    }
    let met = |name: &str, what: &str| facts.get(name).map_or(&Value::Null, |fact| &fact[what]);
    let count = |name: &str, what: &str| met(name, what).as_u64().unwrap_or(0) as usize;
    let found = |key: &'static str, broken: bool, asked: Value| -> Check {
        (key, broken, asked, facts.get(key).cloned().unwrap_or_default())
    };
    let continued = count("data.overflow", "continued");
    let overlap = met("data.stride", "overlap");
    let overlap = overlap["max"].as_u64().unwrap_or(0) as usize;
    // An overlap is shorter only where a document had just begun.
    let strides = overlap > data.stride || (overlap == 0 && data.stride > 0 && continued > 0);
    let extra_bos = count("data.continuation", "extra_bos");
    let restarted = data.continuation == Continuation::Restarted;
    let longest = count("data.max_document_tokens", "longest");
    let documents = facts.get("data.documents").and_then(Value::as_u64).unwrap_or(0) as usize;
    let batches = data.pack_batch_documents.map_or(1, |size| documents.div_ceil(size));
    let of = count("data.select", "of");
    let selected = data.select.get(TRAIN).map_or(of, |range| range.of(of).len());
    vec![
        found(
            "data.min_length",
            count("data.min_length", "shortest_block") < data.min_length,
            data.min_length.into(),
        ),
        found("data.stride", strides, data.stride.into()),
        found("data.overflow", !data.overflow && continued > 0, data.overflow.into()),
        found(
            "data.continuation",
            !restarted && extra_bos > 0,
            if restarted { "restarted".into() } else { "seamless".into() },
        ),
        found(
            "data.max_document_tokens",
            data.max_document_tokens.is_some_and(|most| longest > most),
            data.max_document_tokens.into(),
        ),
        found(
            "data.pack_batch_documents",
            count("data.pack_batch_documents", "batches") != batches,
            data.pack_batch_documents.into(),
        ),
        found("data.select", count("data.select", "documents") != selected, selected.into()),
    ]
}

/// Settings of the engines that a run meets as they are written, where they are.
fn written_settings(config: &RunConfig) -> Vec<(&'static str, Value)> {
    let train = &config.train;
    vec![
        ("train.engine", serde_json::json!(train.engine)),
        ("train.attention_head_groups", train.attention_head_groups.into()),
        ("train.activation_offloading", train.activation_offloading.into()),
        ("train.attention_offloading", train.attention_offloading.into()),
        ("train.checkpoint_every_layers", train.checkpoint_every_layers.into()),
        ("train.recompute", train.recompute.map(|recompute| recompute.name()).into()),
        ("train.recompute_num_layers", train.recompute_num_layers.into()),
        ("train.optimizer_in_backward", train.optimizer_in_backward.into()),
        ("train.weight_streaming", train.weight_streaming.into()),
        ("train.stochastic_rounding", train.stochastic_rounding.into()),
        ("train.grad_clipping", serde_json::json!(train.grad_clipping)),
    ]
}

fn check(key: &'static str, asked: Value, met: Value) -> Check {
    let same = match (asked.as_f64(), met.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => asked == met,
    };
    (key, !same, asked, met)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_with_what_it_was_planned_with() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        let model = dir.path().join("model.safetensors");
        std::fs::write(&model, "weights").unwrap();
        let text = format!(
            "model: {{path: '{}'}}\ndata: {{corpus: c}}\ntrain: {{sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}}\n",
            model.display()
        );
        let written = fathom_spec::config::written::Written::parse("run.yaml", &text).unwrap();
        let config = RunConfig::from_written(&written).unwrap();
        let met = |data: Value| {
            let facts = [
                ("data.corpus", data),
                ("tokenizer.path", serde_json::json!({"digest": "t", "vocab_size": 9})),
            ];
            facts.map(|(name, value)| (name.to_string(), value)).into()
        };
        let same = met(serde_json::json!({"digest": "d", "documents": 3}));
        as_planned(&paths, &config, &same).unwrap();
        let write =
            |identity: Value| std::fs::write(paths.identity(), identity.to_string()).unwrap();
        let digests = serde_json::json!({"model": "m", "tokenizer": "t", "data": "d"});
        write(serde_json::json!({"digests": digests}));
        as_planned(&paths, &config, &same).unwrap();
        as_planned(&paths, &config, &met("random".into())).unwrap();
        let other = met(serde_json::json!({"digest": "e", "documents": 3}));
        let error = as_planned(&paths, &config, &other).unwrap_err().to_string();
        let said = "data.corpus: expected what the run was planned with (blake3 d), found that it was changed since (e)";
        assert!(error.starts_with(said), "{error}");

        // A model whose files are those that its digest was made of is not read again.
        let stamps = model_files::stamps(&model).unwrap();
        write(serde_json::json!({"digests": digests, "model_files": stamps}));
        as_planned(&paths, &config, &same).unwrap();
        std::fs::write(&model, "other weights").unwrap();
        let error = as_planned(&paths, &config, &same).unwrap_err().to_string();
        let said = "model.path: expected what the run was planned with (blake3 m), found that it was changed since (";
        assert!(error.starts_with(said), "{error}");
        // Written anew with the same contents it is the same model.
        let digest = model_files::digest(&model).unwrap();
        let digests = serde_json::json!({"model": digest, "tokenizer": "t", "data": "d"});
        write(serde_json::json!({"digests": digests, "model_files": stamps}));
        as_planned(&paths, &config, &same).unwrap();
    }

    #[test]
    fn a_fact_that_contradicts_the_configuration_ends_the_run() {
        let text = "model: {path: m}\ndata: {corpus: c, select: {train: 50%}, stride: 8, pack_batch_documents: 10}\ntrain: {sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}\n";
        let written = fathom_spec::config::written::Written::parse("run.yaml", text).unwrap();
        let config = RunConfig::from_written(&written).unwrap();
        let honest: BTreeMap<String, Value> = [
            ("train.sequence_length", serde_json::json!({"max": 64})),
            ("model.dtype", "float32".into()),
            ("train.weights_dtype", "float32".into()),
            ("model.rope_parameters", serde_json::json!({"rope_type": "default"})),
            ("train.learning_rate", 1e-5.into()),
            ("train.loss_tile_tokens", 2048.into()),
            ("train.micro_batch_size", 1.into()),
            ("data.min_length", serde_json::json!({"shortest_block": 5})),
            ("data.stride", serde_json::json!({"overlap": {"min": 3, "max": 8}})),
            ("data.overflow", serde_json::json!({"continued": 9})),
            ("data.continuation", serde_json::json!({"extra_bos": 0})),
            ("data.max_document_tokens", serde_json::json!({"longest": 1000})),
            ("data.documents", 21.into()),
            ("data.pack_batch_documents", serde_json::json!({"batches": 3})),
            ("data.select", serde_json::json!({"documents": 21, "of": 42})),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        honoured(&config, &honest).unwrap();
        for (name, value) in [
            ("train.sequence_length", serde_json::json!({"max": 128})),
            ("model.dtype", "bfloat16".into()),
            ("data.min_length", serde_json::json!({"shortest_block": 1})),
            ("data.stride", serde_json::json!({"overlap": {"min": 0, "max": 0}})),
            ("data.stride", serde_json::json!({"overlap": {"min": 9, "max": 9}})),
            ("data.continuation", serde_json::json!({"extra_bos": 9})),
            ("data.pack_batch_documents", serde_json::json!({"batches": 1})),
            ("data.select", serde_json::json!({"documents": 42, "of": 42})),
        ] {
            let mut facts = honest.clone();
            facts.insert(name.to_string(), value);
            let error = honoured(&config, &facts).unwrap_err().to_string();
            assert!(error.starts_with(&format!("configuration not honoured: {name}:")), "{error}");
        }
        let mut strict = config.clone();
        (strict.data.overflow, strict.data.max_document_tokens) = (false, Some(999));
        let error = honoured(&strict, &honest).unwrap_err().to_string();
        assert!(error.starts_with("configuration not honoured: data.overflow:"), "{error}");
        strict.data.overflow = true;
        let error = honoured(&strict, &honest).unwrap_err().to_string();
        assert!(error.starts_with("configuration not honoured: data.max_document"), "{error}");
    }
}
