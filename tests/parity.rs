//! The model against transformers: logits, NLL, inverse frequencies and every gradient of tiny random models.
//!
//! `tests/data/hf_parity/<case>/` is a Hugging Face folder and `reference.safetensors`, computed with transformers 5.23 and
//! torch 2.11 (eager attention, CPU, float32). Query and key weights are large, so that a wrong RoPE changes the logits by
//! more than 100 %.

#[path = "support/close.rs"]
mod close;

use close::check_close;
use fathom_engine::eval::document_nll;
use fathom_engine::model::weights::ModelFiles;
use fathom_engine::model::{Model, Setup};
use fathom_engine::train::step::{Plan, Stream, forward_backward};
use fathom_spec::config::{Attention, Dtype};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, no_grad};

const CASES: [&str; 11] = [
    "llama_default",
    "llama_dynamic",
    "llama_linear",
    "llama_llama3",
    "llama_mha_tied",
    "llama_theta",
    "llama_yarn",
    "llama_yarn_attention_factor",
    "mistral_full",
    "mistral_sliding",
    "mistral_yarn_sliding",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/hf_parity").join(case)
}

fn load(case: &str, attention: Attention) -> Model {
    let files = ModelFiles::open(&folder(case)).unwrap();
    let setup = Setup {
        device: Device::Cpu,
        dtype: Dtype::Float32,
        weights_dtype: Dtype::Float32,
        attention,
    };
    Model::load(&files, files.config().clone(), setup).unwrap()
}

fn reference(case: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(folder(case).join("reference.safetensors"))
        .unwrap()
        .into_iter()
        .collect()
}

fn check_case(case: &str, attention: Attention, plan: Plan) {
    let model = load(case, attention);
    let reference = reference(case);
    let input_ids = reference["input_ids"].squeeze_dim(0);
    let length = input_ids.size1().unwrap();

    let frequencies = model.rope.frequencies(length as usize);
    let inv_freq = Tensor::from_slice(&frequencies.inv_freq);
    check_close(&format!("{case}: inv_freq"), &inv_freq, &reference["inv_freq"], 1e-6);
    let scaling = Tensor::from_slice(&[frequencies.attention_scaling]);
    check_close(
        &format!("{case}: attention_scaling"),
        &scaling,
        &reference["attention_scaling"],
        1e-6,
    );

    let logits = no_grad(|| model.logits(&model.hidden(&input_ids, &[length as usize])));
    check_close(&format!("{case}: logits"), &logits, &reference["logits"], 1e-4);

    let ids = Vec::<i64>::try_from(&input_ids).unwrap();
    let nll = document_nll(&model, &ids, &[ids.len()], plan.loss_tile_tokens).unwrap().remove(0);
    check_close(&format!("{case}: nll"), &Tensor::from_slice(&nll), &reference["nll"], 1e-4);

    model.set_requires_grad(true);
    let labels: Vec<i64> = ids[1..].iter().copied().chain([-100]).collect();
    let stream =
        Stream { input_ids, labels: Tensor::from_slice(&labels), lengths: vec![length as usize] };
    let scale = 1.0 / (length - 1) as f64;
    let sum = forward_backward(&model, &stream, scale, plan);
    let loss = Tensor::from_slice(&[f64::try_from(sum).unwrap() * scale]);
    check_close(&format!("{case}: loss"), &loss, &reference["loss"], 1e-4);
    let mut compared = 0;
    for (name, weight) in model.parameters() {
        let expected = &reference[&format!("grad.{name}")];
        check_close(&format!("{case}: gradient of {name}"), &weight.grad(), expected, 1e-4);
        compared += 1;
    }
    let gradients = reference.keys().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(compared, gradients, "{case}: every gradient of the reference is compared");
}

#[test]
fn every_case_matches_transformers() {
    for case in CASES {
        check_case(
            case,
            Attention::Sdpa,
            Plan { loss_tile_tokens: 2048, activation_checkpointing: false },
        );
    }
}

#[test]
fn uneven_loss_tiles_checkpointing_and_eager_attention_match_as_well() {
    for case in CASES {
        check_case(
            case,
            Attention::Eager,
            Plan { loss_tile_tokens: 7, activation_checkpointing: true },
        );
    }
}

/// Documents in one stream give what each gives alone, forward and backward.
#[test]
fn packed_documents_are_as_if_alone() {
    for case in ["llama_default", "llama_dynamic", "mistral_sliding"] {
        let model = load(case, Attention::Sdpa);
        model.set_requires_grad(true);
        let ids: Vec<i64> = (0..190).map(|i| (i * 31 + 7) % 97).collect();
        let lengths = [60, 60, 1, 69];
        let packed = document_nll(&model, &ids, &lengths, 64).unwrap();
        let mut start = 0;
        for (document, &length) in lengths.iter().enumerate() {
            let alone =
                document_nll(&model, &ids[start..start + length], &[length], 64).unwrap().remove(0);
            assert_eq!(packed[document].len(), length - 1);
            for (a, b) in packed[document].iter().zip(&alone) {
                assert!(
                    (a - b).abs() < 1e-4 * b.abs().max(1.0),
                    "{case}: document {document}: {a} and {b}"
                );
            }
            start += length;
        }
    }
}

/// A model written as a folder and read back is the same model.
#[test]
fn a_saved_folder_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["llama_yarn", "llama_dynamic", "llama_mha_tied", "mistral_sliding"] {
        let model = load(case, Attention::Sdpa);
        let saved = dir.path().join(case);
        let tensors = model.parameters().into_iter().map(|(name, weight)| (name, weight.detach()));
        fathom_engine::model::weights::save_model(&saved, &model.config, tensors, Kind::Float)
            .unwrap();
        let files = ModelFiles::open(&saved).unwrap();
        assert_eq!(files.config().rope_parameters, model.config.rope_parameters, "{case}");
        for (name, weight) in model.parameters() {
            assert_eq!(files.tensor(&name).unwrap(), *weight, "{case}: {name}");
        }
    }
}
