//! Reads a llama.cpp model: GGUF metadata as a configuration, its tensors by Hugging Face's names, dequantized to float32.
//!
//! Names of keys and tensors from <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. llama.cpp rotates
//! neighbouring elements of a query or key, Hugging Face elements half a head apart: its converter reorders the rows of
//! `q_proj` and `k_proj`, and that is undone here.

use super::WeightFile;
use anyhow::{Context, Result, bail, ensure};
use fathom_data::gguf::{Gguf, TensorInfo, Value, dequantize};
use fathom_spec::config::{ModelConfig, RopeParameters, RopeType};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

pub(super) struct GgufFile {
    pub(super) config: ModelConfig,
    gguf: Gguf,
    /// Indices into the file's tensors, by Hugging Face's name.
    tensors: BTreeMap<String, usize>,
}

/// Factors of the rotary frequencies are part of the configuration here.
const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

impl GgufFile {
    /// # Errors
    ///
    /// When the file is damaged, or is a model of another architecture than Llama's or Mistral's.
    pub(super) fn open(path: &Path) -> Result<GgufFile> {
        let gguf = Gguf::open(path)?;
        let config = read_config(&gguf)?;
        let mut tensors = BTreeMap::new();
        for (index, tensor) in gguf.tensors.iter().enumerate() {
            if !ROPE_FACTORS.contains(&tensor.name.as_str()) {
                let name = hugging_face_name(&tensor.name).unwrap_or_else(|| tensor.name.clone());
                tensors.insert(name, index);
            }
        }
        Ok(GgufFile { config, gguf, tensors })
    }
}

impl WeightFile for GgufFile {
    fn path(&self) -> &Path {
        &self.gguf.path
    }

    fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        let named = self.tensors.iter();
        named.map(|(name, &index)| (name.clone(), shape(&self.gguf.tensors[index]))).collect()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = &self.gguf.tensors[self.tensors[name]];
        let heads = if name.ends_with("self_attn.q_proj.weight") {
            Some(self.config.num_attention_heads)
        } else if name.ends_with("self_attn.k_proj.weight") {
            Some(self.config.num_key_value_heads())
        } else {
            None
        };
        let read = || -> Result<Tensor> {
            let stored = read_tensor(&self.gguf, info)?;
            match heads {
                Some(heads) => rotate_half_rows(&stored, heads as i64),
                None => Ok(stored),
            }
        };
        read().with_context(|| {
            format!("{}: {name} (there `{}`)", self.gguf.path.display(), info.name)
        })
    }
}

fn shape(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&size| size as i64).collect()
}

/// Dequantizes straight into the tensor's own memory: 4 bytes an element and no copy.
fn read_tensor(gguf: &Gguf, info: &TensorInfo) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape(info), (Kind::Float, Device::Cpu))?;
    let n = info.num_elements();
    if n > 0 {
        // SAFETY: a fresh contiguous float32 tensor of `n` elements that nothing else refers to. Its memory is not
        // initialised; any bits are a float, and `dequantize` writes all of them or fails.
        let out = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), n) };
        dequantize(info.dtype, gguf.tensor_bytes(info), n, out)?;
    }
    Ok(tensor)
}

/// From rows in neighbouring pairs to rows half a head apart.
///
/// # Shapes
///
/// - `stored`: `[N * H, D]`, in each head the rows `0, H/2, 1, H/2 + 1, …`
/// - returns: the same shape, in each head the rows `0, 1, 2, …`
fn rotate_half_rows(stored: &Tensor, num_heads: i64) -> Result<Tensor> {
    let (rows, d) = stored.size2()?;
    ensure!(
        rows % (2 * num_heads) == 0,
        "expected whole pairs of rows of {num_heads} heads, found {rows} rows"
    );
    let half = rows / (2 * num_heads);
    Ok(stored.f_view([num_heads, half, 2, d])?.f_transpose(1, 2)?.f_reshape([rows, d])?)
}

/// Hugging Face's name of llama.cpp's tensor `name`; none for one that a Llama does not have.
fn hugging_face_name(name: &str) -> Option<String> {
    let name = name.strip_suffix(".weight")?;
    let name = match name {
        "token_embd" => "model.embed_tokens".into(),
        "output_norm" => "model.norm".into(),
        "output" => "lm_head".into(),
        _ => {
            let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
            let name = match name {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("model.layers.{layer}.{name}")
        }
    };
    Some(format!("{name}.weight"))
}

fn read_config(gguf: &Gguf) -> Result<ModelConfig> {
    let place = gguf.path.display().to_string();
    let architecture = gguf.get_str("general.architecture")?;
    ensure!(
        architecture == "llama" || architecture == "mistral",
        "{place}: general.architecture: expected `llama` or `mistral`, found `{architecture}`"
    );
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| gguf.get_u64(&key(name)).map(|n| n as usize);
    let given = |name: &str| gguf.metadata.contains_key(&key(name));
    let optional = |name: &str| given(name).then(|| size(name)).transpose();
    let token = |name: &str| gguf.metadata.get(name).and_then(Value::as_u64).map(|id| id as u32);

    ensure!(
        optional("expert_count")?.unwrap_or(0) == 0,
        "{place}: {}: expected a model without experts",
        key("expert_count")
    );
    let embedding = gguf.tensor("token_embd.weight").map(|tensor| &tensor.shape[..]);
    let Some(&[vocab_size, _]) = embedding else {
        bail!("{place}: expected the matrix `token_embd.weight`, found {embedding:?}");
    };
    // llama.cpp calls Mistral a llama; a window is what tells them apart.
    let sliding_window = optional("attention.sliding_window")?.filter(|&window| window > 0);
    let mistral = architecture == "mistral" || sliding_window.is_some();
    let config = ModelConfig {
        model_type: if mistral { "mistral" } else { "llama" }.into(),
        vocab_size,
        hidden_size: size("embedding_length")?,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: size("attention.head_count")?,
        num_key_value_heads: optional("attention.head_count_kv")?,
        head_dim: optional("attention.key_length")?,
        rms_norm_eps: shortest(gguf.get_f64(&key("attention.layer_norm_rms_epsilon"))?),
        max_position_embeddings: size("context_length")?,
        rope_parameters: read_rope(gguf, architecture).with_context(|| place.clone())?,
        sliding_window,
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        initializer_range: 0.02,
        bos_token_id: token("tokenizer.ggml.bos_token_id"),
        eos_token_id: token("tokenizer.ggml.eos_token_id"),
    };
    config.check().map_err(|message| anyhow::anyhow!("{place}: {message}"))?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = optional(name)? {
            let expected = config.head_dim();
            ensure!(
                found == expected,
                "{place}: {}: expected the head's {expected}, found {found}",
                key(name)
            );
        }
    }
    Ok(config)
}

fn read_rope(gguf: &Gguf, architecture: &str) -> Result<RopeParameters> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let number = |name: &str| -> Result<Option<f64>> {
        let given = gguf.metadata.contains_key(&key(name));
        given.then(|| gguf.get_f64(&key(name)).map(shortest)).transpose()
    };
    let factors = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(tensor) = gguf.tensor(name) else { return Ok(None) };
        Ok(Some(gguf.tensor_f32(tensor)?.into_iter().map(|f| shortest(f.into())).collect()))
    };
    let kind = match gguf.metadata.get(&key("scaling.type")) {
        Some(_) => gguf.get_str(&key("scaling.type"))?,
        None if number("scale_linear")?.is_some_and(|factor| factor != 1.0) => "linear",
        None => "none",
    };
    let plain = RopeParameters {
        rope_theta: Some(number("freq_base")?.unwrap_or(10_000.0)),
        ..RopeParameters::default()
    };
    let factor = match number("scaling.factor")? {
        Some(factor) => Some(factor),
        None => number("scale_linear")?,
    };
    let window = gguf.get_u64(&format!("{architecture}.context_length"))? as usize;
    let original = number("scaling.original_context_length")?.map(|length| length as usize);
    let attention_factor = number("scaling.attn_factor")?;
    let frequencies = factors("rope_freqs.weight")?;
    let of_a_plain_rope = kind == "none" || frequencies.is_none();
    ensure!(
        of_a_plain_rope,
        "{}: expected `none` beside `rope_freqs.weight`, found `{kind}`",
        key("scaling.type")
    );
    let rope = match kind {
        // Llama 3.1's NTK-by-parts arrives as the factors it comes to; one factor a frequency is what `longrope` computes.
        "none" if frequencies.is_some() => RopeParameters {
            rope_type: RopeType::Longrope,
            original_max_position_embeddings: Some(window),
            attention_factor: Some(1.0),
            short_factor: frequencies.clone(),
            long_factor: frequencies,
            ..plain
        },
        "none" => plain,
        "linear" => RopeParameters { rope_type: RopeType::Linear, factor, ..plain },
        "yarn" => RopeParameters {
            rope_type: RopeType::Yarn,
            original_max_position_embeddings: original,
            // llama.cpp multiplies YaRN's own factor, Hugging Face's key replaces it.
            attention_factor: attention_factor
                .filter(|own| *own != 1.0)
                .map(|own| own * (0.1 * factor.unwrap_or(1.0).ln() + 1.0)),
            beta_fast: number("scaling.yarn_beta_fast")?,
            beta_slow: number("scaling.yarn_beta_slow")?,
            factor,
            ..plain
        },
        "longrope" => RopeParameters {
            rope_type: RopeType::Longrope,
            original_max_position_embeddings: original,
            attention_factor: Some(attention_factor.unwrap_or(1.0)),
            short_factor: factors("rope_factors_short.weight")?,
            long_factor: factors("rope_factors_long.weight")?,
            ..plain
        },
        other => bail!(
            "{}: expected `none`, `linear`, `yarn` or `longrope`, found `{other}`",
            key("scaling.type")
        ),
    };
    Ok(rope)
}

/// The shortest decimal that is the same float32: GGUF keeps `1e-5` as 9.999999747378752e-06.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().expect("a float prints as a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[(&str, &[f32])] = &[];

    /// A GGUF file of a model with heads of 8 whose only tensors are a float32 embedding `[3, 16]` and `factors`.
    fn open(metadata: &[(&str, Value)], factors: &[(&str, &[f32])]) -> Result<GgufFile> {
        let sizes = [
            ("llama.block_count", 2),
            ("llama.context_length", 64),
            ("llama.embedding_length", 16),
            ("llama.feed_forward_length", 24),
            ("llama.attention.head_count", 2),
        ];
        let mut values = BTreeMap::from([
            ("general.architecture", Value::String("llama".into())),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ]);
        values.extend(sizes.map(|(key, size)| (key, Value::U32(size))));
        values.extend(metadata.iter().cloned());
        let mut tensors: Vec<(&str, Vec<u64>, Vec<f32>)> =
            vec![("token_embd.weight", vec![16, 3], vec![0.0; 48])];
        for (name, factors) in factors {
            tensors.push((name, vec![factors.len() as u64], factors.to_vec()));
        }

        let mut file = b"GGUF".to_vec();
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        file.extend(3u32.to_le_bytes());
        file.extend((tensors.len() as u64).to_le_bytes());
        file.extend((values.len() as u64).to_le_bytes());
        for (key, value) in values {
            text(&mut file, key);
            match value {
                Value::U32(n) => file.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
                Value::F32(x) => file.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
                Value::String(s) => {
                    file.extend(8u32.to_le_bytes());
                    text(&mut file, &s);
                }
                other => panic!("not needed here: {other:?}"),
            }
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, sizes, elements) in tensors {
            text(&mut file, name);
            file.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(0u32.to_le_bytes()); // F32
            file.extend((data.len() as u64).to_le_bytes());
            elements.iter().for_each(|x| data.extend(x.to_le_bytes()));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, file).unwrap();
        GgufFile::open(&path)
    }

    fn rope(metadata: &[(&str, Value)], factors: &[(&str, &[f32])]) -> RopeParameters {
        open(metadata, factors).unwrap().config.rope_parameters
    }

    fn scaling(kind: &str) -> (&'static str, Value) {
        ("llama.rope.scaling.type", Value::String(kind.into()))
    }

    #[test]
    fn every_rope_of_llama_cpp_has_its_hugging_face_form() {
        let plain = RopeParameters { rope_theta: Some(10_000.0), ..RopeParameters::default() };
        let theta = ("llama.rope.freq_base", Value::F32(500_000.0));
        let factor = ("llama.rope.scaling.factor", Value::F32(4.0));
        let original = ("llama.rope.scaling.original_context_length", Value::U32(16));
        let own = ("llama.rope.scaling.attn_factor", Value::F32(0.5));

        assert_eq!(rope(&[], NONE), plain);
        assert_eq!(rope(&[theta], NONE).rope_theta, Some(500_000.0));
        assert_eq!(rope(&[scaling("none")], NONE), plain);
        let linear =
            RopeParameters { rope_type: RopeType::Linear, factor: Some(4.0), ..plain.clone() };
        assert_eq!(rope(&[scaling("linear"), factor.clone()], NONE), linear);
        assert_eq!(rope(&[("llama.rope.scale_linear", Value::F32(4.0))], NONE), linear);
        let yarn = RopeParameters {
            rope_type: RopeType::Yarn,
            factor: Some(4.0),
            original_max_position_embeddings: Some(16),
            ..plain.clone()
        };
        let written = [scaling("yarn"), factor, original.clone()];
        assert_eq!(rope(&written, NONE), yarn);
        let written = [&written[..], std::slice::from_ref(&own)].concat();
        let scaled = rope(&written, NONE).attention_factor.unwrap();
        assert!((scaled - 0.5 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12, "{scaled}");

        let llama3 = rope(&[], &[("rope_freqs.weight", &[1.0, 1.1, 4.0, 8.0])]);
        let longrope = RopeParameters {
            rope_type: RopeType::Longrope,
            original_max_position_embeddings: Some(64),
            attention_factor: Some(1.0),
            short_factor: Some(vec![1.0, 1.1, 4.0, 8.0]),
            long_factor: Some(vec![1.0, 1.1, 4.0, 8.0]),
            ..plain
        };
        assert_eq!(llama3, longrope);
        let found = rope(
            &[scaling("longrope"), original, own],
            &[
                ("rope_factors_short.weight", &[1.0, 1.0, 1.0, 2.0]),
                ("rope_factors_long.weight", &[1.0, 2.0, 3.0, 4.0]),
            ],
        );
        let expected = RopeParameters {
            original_max_position_embeddings: Some(16),
            attention_factor: Some(0.5),
            short_factor: Some(vec![1.0, 1.0, 1.0, 2.0]),
            long_factor: Some(vec![1.0, 2.0, 3.0, 4.0]),
            ..longrope
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_window_makes_a_mistral() {
        let config =
            open(&[("llama.attention.sliding_window", Value::U32(32))], NONE).unwrap().config;
        assert_eq!((config.model_type.as_str(), config.sliding_window), ("mistral", Some(32)));
        let config =
            open(&[("llama.attention.sliding_window", Value::U32(0))], NONE).unwrap().config;
        assert_eq!((config.model_type.as_str(), config.sliding_window), ("llama", None));
    }

    #[test]
    fn what_is_not_computed_here_is_refused() {
        let check = |key, value, expected: &str| {
            let error = format!("{:#}", open(&[(key, value)], NONE).err().expect("an error"));
            assert!(error.contains("m.gguf: ") && error.contains(expected), "{error}");
        };
        let text = |text: &str| Value::String(text.into());
        check(
            "general.architecture",
            text("qwen2"),
            "general.architecture: expected `llama` or `mistral`, found `qwen2`",
        );
        check(
            "llama.expert_count",
            Value::U32(8),
            "llama.expert_count: expected a model without experts",
        );
        check(
            "llama.rope.dimension_count",
            Value::U32(4),
            "llama.rope.dimension_count: expected the head's 8, found 4",
        );
        check(
            "llama.rope.scaling.type",
            text("ntk"),
            "scaling.type: expected `none`, `linear`, `yarn` or `longrope`, found `ntk`",
        );
        check("llama.rope.scaling.type", text("yarn"), "rope_type `yarn` needs `factor`");
        check(
            "llama.block_count",
            text("two"),
            "llama.block_count: expected a non-negative integer",
        );
        let beside = open(&[scaling("linear")], &[("rope_freqs.weight", &[1.0; 4])]);
        let error = format!("{:#}", beside.err().expect("an error"));
        assert!(
            error.contains("expected `none` beside `rope_freqs.weight`, found `linear`"),
            "{error}"
        );
    }

    #[test]
    fn names_without_a_place_in_a_llama_are_kept() {
        assert_eq!(
            hugging_face_name("blk.7.ffn_up.weight").unwrap(),
            "model.layers.7.mlp.up_proj.weight"
        );
        assert_eq!(hugging_face_name("blk.7.attn_q.bias"), None);
        assert_eq!(hugging_face_name("blk.7.ffn_gate_exps.weight"), None);
        let file = open(&[], &[("blk.0.attn_q.bias", &[0.0; 8])]).unwrap();
        let names: Vec<_> = file.shapes().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["blk.0.attn_q.bias", "model.embed_tokens.weight"]);
    }
}
