//! No setting is silently ignored: each key of the configuration is swapped in turn, and the fact that the leaf of the code
//! recorded under it must change.

#[path = "support/worker.rs"]
mod worker;

use fathom_spec::record::EventKind;
use std::collections::BTreeSet;
use worker::{config, run};

/// A key, another value for it, what else has to be set for the key to have a meaning (in both runs), and the fact to watch.
struct Swap {
    key: &'static str,
    value: &'static str,
    with: &'static [(&'static str, &'static str)],
    fact: &'static str,
}

const fn swap(key: &'static str, value: &'static str) -> Swap {
    Swap { key, value, with: &[], fact: key }
}

/// Not facts but effects: what the run itself makes of a setting.
const FIRST_LOSS: &str = "the loss of the first step";
const LOSSES: &str = "the losses of all steps";
const CHECKPOINTS_WRITTEN: &str = "the steps that a checkpoint was written at";
const CHECKPOINTS_KEPT: &str = "the checkpoints that are there at the end";
const ENDING: &str = "how the run ended";

const SHUFFLED: &[(&str, &str)] = &[("data.shuffle_blocks", "true")];
const MISTRAL: &[(&str, &str)] = &[("model.config.model_type", "mistral")];
const WSD: &[(&str, &str)] = &[("train.schedule", "{type: wsd}")];
const WSD_STEPS: &[(&str, &str)] =
    &[("train.schedule", "{type: wsd, decay_steps: 2, decay_start_step: 1}")];
const COSINE: &[(&str, &str)] = &[("train.schedule", "{type: cosine}")];
const ADAFACTOR: &[(&str, &str)] = &[("train.optimizer", "{type: adafactor}")];
const SGD: &[(&str, &str)] = &[("train.optimizer", "{type: sgd}")];
/// Far too high a learning rate, let be.
const EXPLODING: &[(&str, &str)] =
    &[("train.learning_rate", "3"), ("train.total_tokens", "960"), ("train.max_loss_ratio", "1e9")];
const LAYERED: &[(&str, &str)] =
    &[("train.engine", "layered"), ("train.grad_clipping", "per_sublayer")];
const LAYERED_MLP: &[(&str, &str)] = &[
    ("train.engine", "layered"),
    ("train.grad_clipping", "per_sublayer"),
    ("train.recompute", "mlp"),
];
const HALF: &[(&str, &str)] = &[("train.weights_dtype", "bfloat16")];
const CHECKPOINTS: &[(&str, &str)] = &[("train.checkpoint_every_steps", "1")];

fn swaps() -> Vec<Swap> {
    let shape = |key: &'static str, value| Swap { fact: "model.config", ..swap(key, value) };
    vec![
        shape("model.config.vocab_size", "300"),
        shape("model.config.hidden_size", "40"),
        shape("model.config.intermediate_size", "64"),
        shape("model.config.num_hidden_layers", "3"),
        shape("model.config.num_attention_heads", "2"),
        shape("model.config.num_key_value_heads", "4"),
        shape("model.config.head_dim", "16"),
        shape("model.config.tie_word_embeddings", "true"),
        shape("model.config.initializer_range", "0.04"),
        Swap {
            fact: "model.max_position_embeddings",
            ..swap("model.config.max_position_embeddings", "128")
        },
        Swap {
            fact: "model.rope_parameters",
            ..swap("model.config.rope_parameters.rope_type", "linear")
        },
        Swap { fact: FIRST_LOSS, ..swap("model.config.rms_norm_eps", "0.1") },
        Swap { fact: FIRST_LOSS, with: MISTRAL, ..swap("model.config.sliding_window", "4") },
        swap("model.rope_parameters", "{rope_type: default, rope_theta: 500}"),
        swap("model.dtype", "bfloat16"),
        swap("model.attention", "eager"),
        swap("model.max_position_embeddings", "128"),
        swap("data.packing", "unpacked"),
        swap("data.min_length", "12"),
        swap("data.splits", "{validation: [b.txt]}"),
        swap("data.sample_by", "line"),
        swap("data.select", "{train: 1}"),
        swap("data.truncate_at", "lamp (tide ){2}"),
        swap("data.max_document_tokens", "250"),
        swap("data.stride", "4"),
        swap("data.overflow", "false"),
        swap("data.continuation", "restarted"),
        swap("data.pack_batch_documents", "1"),
        swap("data.shuffle_blocks", "true"),
        Swap { with: SHUFFLED, ..swap("data.shuffle_seed", "7") },
        swap("train.sequence_length", "48"),
        swap("train.total_tokens", "640"),
        swap("train.max_steps", "2"),
        swap("train.micro_batch_size", "1"),
        swap("train.gradient_accumulation_steps", "2"),
        swap("train.learning_rate", "0.02"),
        swap("train.schedule.type", "cosine"),
        swap("train.schedule.warmup_tokens", "128"),
        Swap { with: WSD, ..swap("train.schedule.decay_tokens", "64") },
        swap("train.schedule.warmup_steps", "2"),
        Swap { with: WSD_STEPS, ..swap("train.schedule.decay_steps", "4") },
        Swap { with: WSD_STEPS, ..swap("train.schedule.decay_start_step", "3") },
        Swap { with: COSINE, ..swap("train.schedule.min_learning_rate_ratio", "0.5") },
        swap("train.optimizer.type", "sgd"),
        swap("train.optimizer.weight_decay", "0.1"),
        swap("train.optimizer.betas", "[0.8, 0.95]"),
        swap("train.optimizer.eps", "1e-6"),
        swap("train.optimizer.state_dtype", "int8"),
        Swap { with: ADAFACTOR, ..swap("train.optimizer.beta2_decay", "-0.5") },
        Swap { with: ADAFACTOR, ..swap("train.optimizer.clip_threshold", "2") },
        Swap { with: ADAFACTOR, ..swap("train.optimizer.relative_step_floor", "0.01") },
        Swap { with: SGD, ..swap("train.optimizer.momentum", "0.9") },
        Swap { fact: LOSSES, with: SGD, ..swap("train.max_grad_norm", "0.1") },
        swap("train.weights_dtype", "bfloat16"),
        swap("train.loss_tile_tokens", "16"),
        swap("train.activation_checkpointing", "true"),
        swap("train.engine", "layered"),
        Swap { with: LAYERED, ..swap("train.attention_head_groups", "2") },
        Swap { with: LAYERED, ..swap("train.mlp_tile_tokens", "7") },
        Swap { with: LAYERED, ..swap("train.activation_offloading", "true") },
        Swap { with: LAYERED, ..swap("train.attention_offloading", "true") },
        Swap { with: LAYERED, ..swap("train.checkpoint_every_layers", "2") },
        Swap { with: LAYERED, ..swap("train.recompute", "mlp") },
        Swap { with: LAYERED_MLP, ..swap("train.recompute_num_layers", "1") },
        Swap { with: LAYERED, ..swap("train.optimizer_in_backward", "false") },
        Swap { with: LAYERED, ..swap("train.weight_streaming", "true") },
        Swap { with: HALF, ..swap("train.stochastic_rounding", "true") },
        Swap { with: LAYERED, ..swap("train.grad_clipping", "global_two_pass") },
        swap("train.seed", "2"),
        swap("train.save_checkpoints", "false"),
        Swap { fact: CHECKPOINTS_WRITTEN, ..swap("train.checkpoint_every_steps", "2") },
        Swap { fact: CHECKPOINTS_KEPT, with: CHECKPOINTS, ..swap("train.keep_checkpoints", "3") },
        Swap { fact: ENDING, with: EXPLODING, ..swap("train.max_loss_ratio", "1.5") },
        swap("eval.context_lengths", "[16, 24]"),
        swap("eval.last_stride", "4"),
        swap("eval.max_windows", "2"),
        swap("eval.every_steps", "2"),
        swap("eval.loss_tokens", "1"),
        Swap { with: LAYERED, ..swap("run.probe_layers", "1") },
        swap("run.threads", "2"),
        swap("run.memory_cap", "8GiB"),
    ]
}

/// Keys that say who a model is and not how it computes; they are written into the checkpoint's `config.json`.
const LABELS: [&str; 3] =
    ["model.config.model_type", "model.config.bos_token_id", "model.config.eos_token_id"];
/// Keys that name files: `keys_that_name_files_reach_their_leaf` swaps them.
const FILES: [&str; 7] = [
    "model.path",
    "model.weights",
    "tokenizer.path",
    "data.corpus",
    "data.add_bos",
    "data.add_eos",
    "eval.split",
];

/// What a run made of its settings: the fact, or the effect.
fn observed(outcome: &worker::Outcome, fact: &str) -> serde_json::Value {
    match fact {
        FIRST_LOSS => outcome.losses()[0].1.into(),
        LOSSES => serde_json::json!(outcome.losses()),
        ENDING => format!("{:?}", std::mem::discriminant(outcome.ending())).into(),
        CHECKPOINTS_WRITTEN => {
            let written = outcome.events.iter().filter_map(|event| match event.kind {
                EventKind::Checkpoint { step, .. } => Some(step),
                _ => None,
            });
            written.collect()
        }
        CHECKPOINTS_KEPT => {
            let folder = std::fs::read_dir(outcome.paths.checkpoints()).unwrap();
            let mut kept: Vec<String> =
                folder.map(|entry| entry.unwrap().file_name().display().to_string()).collect();
            kept.sort();
            kept.into()
        }
        fact => outcome.facts().get(fact).cloned().unwrap_or_default(),
    }
}

#[test]
fn every_key_reaches_the_leaf_that_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut plain: Vec<(&[(&str, &str)], worker::Outcome)> = Vec::new();
    for (index, Swap { key, value, with, fact }) in swaps().into_iter().enumerate() {
        if !plain.iter().any(|(settings, _)| *settings == with) {
            let outcome = run(dir.path(), &format!("plain-{index}"), &config(dir.path(), with));
            outcome.assert_finished();
            plain.push((with, outcome));
        }
        let before = &plain.iter().find(|(settings, _)| *settings == with).unwrap().1;
        let mut settings = with.to_vec();
        settings.push((key, value));
        // The rope_type that is swapped in needs its factor.
        if key.ends_with("rope_parameters.rope_type") {
            settings.push(("model.config.rope_parameters.factor", "2"));
        }
        let after = run(dir.path(), &format!("swapped-{index}"), &config(dir.path(), &settings));
        if fact != ENDING {
            after.assert_finished();
        }
        let (before, after) = (observed(before, fact), observed(&after, fact));
        assert!(
            !before.is_null() || !after.is_null(),
            "{key}: no fact named `{fact}` was recorded"
        );
        assert_ne!(
            before, after,
            "{key}: swapped for {value}, and the fact `{fact}` did not change"
        );
    }
}

/// The table above has every key there is.
#[test]
fn no_key_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let swapped: BTreeSet<String> = swaps().iter().map(|swap| swap.key.to_string()).collect();
    let known = config(dir.path(), &[]).flatten();
    let left_out: Vec<&str> = known
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| !key.starts_with("data.splits."))
        .filter(|key| !swapped.contains(*key) && !LABELS.contains(key) && !FILES.contains(key))
        .filter(|key| *key != "run.device")
        .collect();
    assert!(left_out.is_empty(), "keys that no test swaps: {left_out:?}");
}

#[test]
fn keys_that_name_files_reach_their_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let base = run(dir.path(), "base", &config(dir.path(), &[]));
    base.assert_finished();
    let (_, checkpoint) = base.paths.latest_checkpoint().unwrap();
    let checkpoint = checkpoint.display().to_string();
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("c.txt"), "the bell under the tide. ".repeat(40)).unwrap();
    std::fs::write(elsewhere.join("held_out.txt"), "the lamp on the water. ".repeat(40)).unwrap();

    let mut outcomes = 1;
    let mut check = |key: &str, value: &str, with: &[(&str, &str)]| {
        let before = run(dir.path(), &format!("{key}-before"), &config(dir.path(), with));
        let mut settings = with.to_vec();
        settings.push((key, value));
        let after = run(dir.path(), &format!("{key}-after"), &config(dir.path(), &settings));
        after.assert_finished();
        let (before, after) = (observed(&before, key), observed(&after, key));
        assert_ne!(before, after, "{key}: swapped for {value}, and its fact did not change");
        outcomes += 1;
    };
    let from_folder = [("model.config", "null"), ("model.path", checkpoint.as_str())];
    // A folder in place of a shape: the fact goes from absent to what was read.
    let read = run(dir.path(), "read", &config(dir.path(), &from_folder));
    read.assert_finished();
    assert_eq!(observed(&read, "model.path")["source"], "read");
    assert!(observed(&base, "model.path").is_null());
    check("model.weights", "random", &from_folder);
    check("tokenizer.path", &with_another_token(&checkpoint, &elsewhere), &from_folder);
    check("data.corpus", &elsewhere.display().to_string(), &[]);
    check("data.add_bos", "false", &[]);
    check("data.add_eos", "false", &[]);
    check("eval.split", "train", &[]);
    assert_eq!(outcomes, FILES.len());
}

/// A copy of a folder's tokenizer with one token more; its path.
fn with_another_token(folder: &str, target: &std::path::Path) -> String {
    let text = std::fs::read_to_string(format!("{folder}/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
        "id": 258, "content": "<tide>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    }));
    let path = target.join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    path.display().to_string()
}

/// Where there is no such device the run says so, and does not fall back to another.
#[test]
fn a_device_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(dir.path(), "device", &config(dir.path(), &[("run.device", "cuda:77")]));
    let ending = format!("{:?}", outcome.ending());
    assert!(ending.contains("run.device"), "{ending}");
}
