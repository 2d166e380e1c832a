//! Model folders at their boundary: what Python wrote is read to the same values, and what is written is read back.

use anyhow::Result;
use fathom_engine::model::weights::{ModelFiles, save_model, tensor_table};
use fathom_spec::config::{ModelConfig, RopeType};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn error<T>(result: Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

/// Equal values, shape and dtype.
fn assert_same(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{name}");
    assert!(found.equal(expected), "{name}: other values");
    assert!(found.is_contiguous(), "{name}: not contiguous");
}

fn all_tensors(files: &ModelFiles) -> Vec<(String, Tensor)> {
    let table = tensor_table(files.config());
    table
        .iter()
        .map(|(name, shape)| (name.clone(), files.checked_tensor(name, shape).unwrap()))
        .collect()
}

/// The values that transformers 5.23, torch 2.11 and the Python package `gguf` 0.19 wrote:
///
/// ```python
/// import json, torch, gguf
/// from safetensors.torch import save_file
/// from transformers import LlamaConfig, LlamaForCausalLM
/// folder = "tests/data/weights_gguf/"
/// c = LlamaConfig(vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
///                 num_key_value_heads=1, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5,
///                 rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
///                                  "original_max_position_embeddings": 16})
/// torch.manual_seed(1)
/// model = LlamaForCausalLM(c)
/// weights = {name: torch.randn_like(x) for name, x in model.state_dict().items()}
/// embed = "model.embed_tokens.weight"
/// weights[embed] = weights[embed].half().float()
/// save_file(weights, folder + "model.safetensors", metadata={"format": "pt"})
/// json.dump(c.to_diff_dict(), open(folder + "config.json", "w"), indent=2)
///
/// w = gguf.GGUFWriter(folder + "model.gguf", "llama")
/// w.add_block_count(2)
/// w.add_context_length(64)
/// w.add_embedding_length(12)
/// w.add_feed_forward_length(20)
/// w.add_head_count(3)
/// w.add_head_count_kv(1)
/// w.add_key_length(8)
/// w.add_value_length(8)
/// w.add_layer_norm_rms_eps(1e-5)
/// w.add_rope_freq_base(5e5)
/// w.add_rope_dimension_count(8)
/// w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
/// w.add_rope_scaling_factor(4.0)
/// w.add_rope_scaling_orig_ctx_len(16)
/// w.add_bos_token_id(1)
/// w.add_eos_token_id(2)
/// def permute(x, heads):  # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
///     return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
/// names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
/// for name, x in weights.items():
///     if "q_proj" in name: x = permute(x, 3)
///     if "k_proj" in name: x = permute(x, 1)
///     if name == embed: x = x.half()
///     w.add_tensor(names.get_name(name, try_suffixes=(".weight",)), x.contiguous().numpy())
/// w.write_header_to_file()
/// w.write_kv_data_to_file()
/// w.write_tensors_to_file()
/// w.close()
/// ```
#[test]
fn gguf_gives_hugging_faces_configuration_names_and_row_order() {
    let expected = ModelFiles::open(&data("weights_gguf")).unwrap();
    let found = ModelFiles::open(&data("weights_gguf/model.gguf")).unwrap();
    assert_eq!(found.config(), expected.config());
    found.check().unwrap();
    expected.check().unwrap();
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for (name, tensor) in all_tensors(&expected) {
        assert_same(&name, &found.tensor(&name).unwrap(), &tensor);
    }
}

/// A state dict with every layout that views have: transposed, offset, strided, expanded, shared.
///
/// ```python
/// import collections, json, os, torch
/// from safetensors.torch import save_file
/// torch.manual_seed(2)
/// d, f, v, h = 8, 12, 7, 4  # 2 query heads, 1 key-value head
/// x = lambda *size: torch.randn(*size).bfloat16()
/// layer, embed, kv = "model.layers.0.", x(v, d), x(3 + 2 * h, d)
/// state = collections.OrderedDict({
///     "model.embed_tokens.weight": embed,
///     layer + "input_layernorm.weight": torch.nn.Parameter(x(d)),
///     layer + "self_attn.q_proj.weight": x(d, 2 * h).t(),           # a transposed view
///     layer + "self_attn.k_proj.weight": kv[3:3 + h],               # two views of one storage, at an offset
///     layer + "self_attn.v_proj.weight": kv[3 + h:],
///     layer + "self_attn.o_proj.weight": x(d, 2, 2 * h)[:, 1],      # every second row
///     layer + "self_attn.rotary_emb.inv_freq": torch.ones(h // 2),  # old checkpoints carry it
///     layer + "post_attention_layernorm.weight": x(1).expand(d),    # stride 0
///     layer + "mlp.gate_proj.weight": x(f, d).half(),
///     layer + "mlp.up_proj.weight": x(f, d).double(),
///     layer + "mlp.down_proj.weight": x(d, f).float(),
///     "model.norm.weight": x(d),
///     "lm_head.weight": embed,                                      # tied: the same storage
/// })
/// state._metadata = collections.OrderedDict({"": {"version": 1}})   # as torch.nn.Module.state_dict() has it
/// folder = "tests/data/weights_torch/"
/// torch.save(state, folder + "pytorch_model.bin")
/// save_file({k: t.detach().clone().contiguous() for k, t in state.items()}, folder + "expected.safetensors")
/// class Evil:
///     def __reduce__(self): return os.system, ("exit 1",)
/// torch.save({"w": Evil()}, "tests/data/weights_malicious.bin")
/// json.dump({"model_type": "llama", "vocab_size": v, "hidden_size": d, "intermediate_size": f, "num_hidden_layers": 1,
///            "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
///           open(folder + "config.json", "w"), indent=2)
/// ```
#[test]
fn torch_archives_are_read_without_their_pickle_being_run() {
    let files = ModelFiles::open(&data("weights_torch")).unwrap();
    files.check().unwrap();
    let expected = Tensor::read_safetensors(data("weights_torch/expected.safetensors")).unwrap();
    assert_eq!(files.names().count(), expected.len());
    for (name, tensor) in expected {
        assert_same(&name, &files.tensor(&name).unwrap(), &tensor);
    }

    // `weights_malicious.bin`, which torch.load would run `exit 1` for.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data("weights_torch/config.json"), folder.path().join("config.json")).unwrap();
    let file = folder.path().join("pytorch_model.bin");
    fs::copy(data("weights_malicious.bin"), &file).unwrap();
    assert_eq!(
        error(ModelFiles::open(folder.path())),
        format!(
            "{}: refused: the pickle asks for `posix.system`; only tensors are read",
            file.display()
        )
    );
}

#[test]
fn a_saved_folder_reads_back_the_same() {
    let source = ModelFiles::open(&data("weights_gguf")).unwrap();
    let parent = tempfile::tempdir().unwrap();
    for (dtype, name) in
        [(Kind::Float, "float32"), (Kind::BFloat16, "bfloat16"), (Kind::Half, "float16")]
    {
        let folder = parent.path().join("new/deep").join(name);
        save_model(&folder, source.config(), all_tensors(&source).into_iter().rev(), dtype)
            .unwrap();
        let saved = ModelFiles::open(&folder).unwrap();
        saved.check().unwrap();
        assert_eq!(saved.config(), source.config());
        for (name, tensor) in all_tensors(&source) {
            assert_same(&name, &saved.tensor(&name).unwrap(), &tensor.to_kind(dtype));
        }
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        assert!(config.contains(&format!("\"dtype\": \"{name}\"")), "{config}");
    }
}

#[test]
fn what_is_saved_is_saved_whole_or_not_at_all() {
    let source = ModelFiles::open(&data("weights_gguf")).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let save = |tensors: Vec<(String, Tensor)>, dtype| {
        error(save_model(&folder, source.config(), tensors, dtype))
    };
    let with = |edit: fn(&mut Vec<(String, Tensor)>)| {
        let mut tensors = all_tensors(&source);
        edit(&mut tensors);
        tensors
    };
    let missing = save(with(|tensors| tensors.truncate(3)), Kind::Float);
    assert!(
        missing.ends_with(
            "model: the model can't be written: lm_head.weight: expected the tensor, found 18 of the model's tensors not given"
        ),
        "{missing}"
    );
    let again =
        save(with(|tensors| tensors[1] = (tensors[0].0.clone(), tensors[0].1.copy())), Kind::Float);
    assert!(
        again.contains("model.embed_tokens.weight: expected each tensor of the model once"),
        "{again}"
    );
    let shape = save(with(|tensors| tensors[2].1 = tensors[2].1.tr()), Kind::Float);
    assert!(
        shape.ends_with("self_attn.q_proj.weight: expected [24, 12], found [12, 24]"),
        "{shape}"
    );
    let large = save(with(|tensors| tensors[2].1 *= 1e6), Kind::Half);
    assert!(large.contains("q_proj.weight: expected values within float16's 65504"), "{large}");
    let integers = save(with(|_| ()), Kind::Int64);
    assert!(integers.contains("expected a float dtype to save in, found Int64"), "{integers}");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "something is left behind");

    // What a killed writer left is replaced; what a finished one wrote is not.
    fs::create_dir_all(parent.path().join("model.part/junk")).unwrap();
    save_model(&folder, source.config(), all_tensors(&source), Kind::Float).unwrap();
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    let existing = save(with(|_| ()), Kind::Float);
    assert!(existing.contains("expected a new folder, found one that holds files"), "{existing}");
}

#[test]
fn a_dynamic_window_is_saved_where_transformers_looks_for_it() {
    let mut config = ModelFiles::open(&data("weights_gguf")).unwrap().config().clone();
    config.rope_parameters.rope_type = RopeType::Dynamic;
    assert_eq!(config.rope_parameters.original_max_position_embeddings, Some(16));
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let zeros = tensor_table(&config)
        .into_iter()
        .map(|(name, shape)| (name, Tensor::zeros(&shape[..], (Kind::Float, tch::Device::Cpu))));
    save_model(&folder, &config, zeros, Kind::Float).unwrap();
    let json = fs::read_to_string(folder.join("config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["max_position_embeddings"], 16);
    assert_eq!(
        json["rope_parameters"],
        serde_json::json!({"rope_type": "dynamic", "rope_theta": 500000.0, "factor": 4.0})
    );
}

/// A copy of the golden folder with one text replaced in its configuration.
fn with_config(from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(data("weights_gguf/config.json")).unwrap();
    assert!(text.contains(from));
    fs::write(folder.path().join("config.json"), text.replace(from, to)).unwrap();
    fs::copy(data("weights_gguf/model.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    folder
}

#[test]
fn weights_that_do_not_fit_their_configuration_are_named() {
    let check = |from: &str, to: &str, expected: &str| {
        let folder = with_config(from, to);
        let found = error(ModelFiles::open(folder.path()).unwrap().check());
        let file = folder.path().join("model.safetensors");
        assert_eq!(found, format!("{}: {expected}", file.display()));
    };
    check(
        "\"intermediate_size\": 20",
        "\"intermediate_size\": 24",
        "model.layers.0.mlp.gate_proj.weight: expected [24, 12], found [20, 12]",
    );
    check(
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 3",
        "expected the tensor `model.layers.2.input_layernorm.weight`, found none\n  help: the nearest of its 21 tensors is `model.layers.0.input_layernorm.weight`",
    );
    check(
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 1",
        "expected only the 12 tensors that the configuration describes, found `model.layers.1.input_layernorm.weight` and 8 more",
    );
    check(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
        "lm_head.weight: expected the matrix of `model.embed_tokens.weight`, to which the configuration ties it, found another\n  help: set `tie_word_embeddings` to false in config.json",
    );
}

#[test]
fn paths_that_are_no_model_say_what_to_give() {
    let check = |path: &Path, expected: &str| {
        let found = error(ModelFiles::open(path));
        assert!(found.contains(expected), "{found}");
    };
    check(&data("weights_nowhere"), "expected a model folder or a `.gguf` file, found nothing");
    check(&data("weights_gguf/model.safetensors"), "help: give the folder that it is in");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data("weights_gguf/model.gguf"), folder.path().join("m.gguf")).unwrap();
    check(folder.path(), "m.gguf");

    // A model to be initialised at random has a configuration only.
    fs::copy(data("weights_gguf/config.json"), folder.path().join("config.json")).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(files.config().num_hidden_layers, 2);
    let found = error(files.check());
    assert!(found.contains("expected weights (`model.safetensors`, "), "{found}");
}

#[test]
fn a_shard_that_is_missing_or_incomplete_is_named() {
    let folder = with_config("llama", "llama");
    let path = folder.path();
    fs::rename(path.join("model.safetensors"), path.join("a.safetensors")).unwrap();
    let index = |text: &str| fs::write(path.join("model.safetensors.index.json"), text).unwrap();
    let check = |expected: &str| {
        let found = error(ModelFiles::open(path));
        assert!(
            found.contains("model.safetensors.index.json: ") && found.contains(expected),
            "{found}"
        );
    };
    index(r#"{"weight_map": {"model.norm.weight": "a.safetensors"}}"#);
    ModelFiles::open(path).unwrap().check().unwrap();
    index(r#"{"weight_map": {"model.norm.weight": "b.safetensors"}}"#);
    check("expected the shard `b.safetensors` beside it, found none");
    index(r#"{"weight_map": {"model.nrom.weight": "a.safetensors"}}"#);
    check("expected the tensor `model.nrom.weight` in `a.safetensors`, found none");
    index(r#"{"weight_map": {"model.norm.weight": "../a.safetensors"}}"#);
    check("expected names of files beside it, found `../a.safetensors`");
    index("{}");
    check("expected JSON with a `weight_map`");

    // Without an index every file counts, and each tensor may be in one only.
    fs::remove_file(path.join("model.safetensors.index.json")).unwrap();
    ModelFiles::open(path).unwrap().check().unwrap();
    fs::copy(path.join("a.safetensors"), path.join("b.safetensors")).unwrap();
    let found = error(ModelFiles::open(path));
    assert!(found.contains("expected each tensor in one file, found it in "), "{found}");
}

#[test]
fn the_table_counts_as_many_weights_as_the_configuration() {
    for tied in [false, true] {
        let mut config = ModelFiles::open(&data("weights_gguf")).unwrap().config().clone();
        config.tie_word_embeddings = tied;
        let count = |config: &ModelConfig| -> i64 {
            tensor_table(config).iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
        };
        assert_eq!(count(&config) as u64, config.num_parameters());
    }
}
