//! Writes a Hugging Face folder that transformers loads as it is: safetensors and `config.json`.

use super::{CONFIG_FILE, SAFETENSORS_FILE, SAFETENSORS_INDEX, tensor_table};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fathom_spec::config::{ModelConfig, RopeType};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Above this a model is written in shards. The size that transformers wrote for years.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes a model to the new folder `folder`, whole or not at all: into `<folder>.part` beside it, forced to the disk, then
/// renamed.
///
/// `tensors` are those of [`tensor_table`], in any order, from any device; each is converted to `dtype` and written before
/// the next one is asked for. The same weights give the same bytes.
///
/// # Errors
///
/// When `folder` exists and is not empty, a tensor is missing, unknown, given twice, of another shape than `config` says or
/// too large for `dtype`, or the disk is full. Nothing is left behind then.
pub fn save_model(
    folder: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    dtype: Kind,
) -> Result<()> {
    let shown = folder.display();
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{shown}: expected a new folder, found one that holds files\n  help: remove it or name another"
        );
    }
    let name = folder.file_name().with_context(|| format!("{shown}: expected a folder's name"))?;
    let mut part_name = name.to_os_string();
    part_name.push(".part");
    let part = folder.with_file_name(part_name);
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));

    let write = || -> Result<()> {
        // Left by a writer that was killed.
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        write_model(&part, config, tensors, dtype)?;
        fs::rename(&part, folder)?;
        File::open(parent)?.sync_all()?;
        Ok(())
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    written.with_context(|| format!("{shown}: the model can't be written"))
}

/// [`save_model`] into a folder that exists and that the caller renames when it is whole. Files and folder are forced to
/// the disk.
pub fn write_model(
    folder: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    dtype: Kind,
) -> Result<()> {
    write_weights(folder, config, tensors, dtype, MAX_SHARD_BYTES)?;
    write_file(folder, CONFIG_FILE, &config_json(config, names(dtype)?.1))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The dtype's names in safetensors and in `config.json`.
fn names(dtype: Kind) -> Result<(&'static str, &'static str)> {
    Ok(match dtype {
        Kind::Float => ("F32", "float32"),
        Kind::Half => ("F16", "float16"),
        Kind::BFloat16 => ("BF16", "bfloat16"),
        Kind::Double => ("F64", "float64"),
        other => bail!("expected a float dtype to save in, found {other:?}"),
    })
}

/// The `config.json` that makes transformers compute what this implementation does.
fn config_json(config: &ModelConfig, dtype: &str) -> Value {
    let mut config = config.clone();
    let rope = &mut config.rope_parameters;
    // transformers takes this type's original window from the model's `max_position_embeddings` alone.
    if rope.rope_type == RopeType::Dynamic
        && let Some(original) = rope.original_max_position_embeddings.take()
    {
        config.max_position_embeddings = original;
    }
    let mut json = config.to_hf_json();
    // The key's name since transformers 4.56, and before.
    json["dtype"] = dtype.into();
    json["torch_dtype"] = dtype.into();
    json
}

fn write_file(folder: &Path, name: &str, json: &Value) -> Result<()> {
    let path = folder.join(name);
    let write = || -> Result<()> {
        fs::write(&path, format!("{json:#}\n"))?;
        Ok(File::open(&path)?.sync_all()?)
    };
    write().with_context(|| format!("{}: can't be written", path.display()))
}

/// One file of weights while it is planned.
#[derive(Default)]
struct Shard {
    header: Map<String, Value>,
    bytes: u64,
}

/// Where one tensor is to be written.
struct Place {
    shard: usize,
    /// Byte within the shard's data.
    begin: u64,
    shape: Vec<i64>,
}

fn write_weights(
    folder: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    dtype: Kind,
    max_shard_bytes: u64,
) -> Result<()> {
    let (shards, mut places) = plan(config, dtype, max_shard_bytes)?;
    let num_shards = shards.len();
    let file_name = |index: usize| match num_shards {
        1 => SAFETENSORS_FILE.to_string(),
        n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
    };

    if num_shards > 1 {
        let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
        let mut weight_map = Map::new();
        for (index, shard) in shards.iter().enumerate() {
            weight_map
                .extend(shard.header.keys().map(|name| (name.clone(), file_name(index).into())));
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_file(folder, SAFETENSORS_INDEX, &index)?;
    }

    // The header is known before the first tensor is: each tensor goes straight to its place.
    let mut files = Vec::with_capacity(num_shards);
    for (index, shard) in shards.into_iter().enumerate() {
        let path = folder.join(file_name(index));
        let header = header_bytes(shard.header);
        let write = || -> Result<File> {
            let file = File::create_new(&path)?;
            file.set_len(header.len() as u64 + shard.bytes)?;
            file.write_all_at(&header, 0)?;
            Ok(file)
        };
        let file = write().with_context(|| format!("{}: can't be written", path.display()))?;
        files.push((path, file, header.len() as u64));
    }
    for (name, tensor) in tensors {
        let place = places.remove(&name).ok_or_else(|| {
            anyhow!("{name}: expected each tensor of the model once, found it unknown or again")
        })?;
        let found = tensor.size();
        ensure!(found == place.shape, "{name}: expected {:?}, found {found:?}", place.shape);
        let tensor = converted(&tensor, dtype).with_context(|| name.clone())?;
        let (path, file, data_start) = &files[place.shard];
        file.write_all_at(bytes_of(&tensor), data_start + place.begin)
            .with_context(|| format!("{}: {name} can't be written", path.display()))?;
    }
    if let Some(name) = places.keys().min() {
        bail!(
            "{name}: expected the tensor, found {} of the model's tensors not given",
            places.len()
        );
    }
    for (path, file, _) in files {
        file.sync_all()
            .with_context(|| format!("{}: can't be forced to the disk", path.display()))?;
    }
    Ok(())
}

/// Lays the tensors out in the order of the table, in shards of at most `max_shard_bytes` or of one tensor.
fn plan(
    config: &ModelConfig,
    dtype: Kind,
    max_shard_bytes: u64,
) -> Result<(Vec<Shard>, HashMap<String, Place>)> {
    let (dtype_name, _) = names(dtype)?;
    let mut shards = vec![Shard::default()];
    let mut places = HashMap::new();
    for (name, shape) in tensor_table(config) {
        let bytes = shape.iter().product::<i64>() as u64 * dtype.elt_size_in_bytes() as u64;
        let last = shards.last().expect("there is always one");
        if last.bytes > 0 && last.bytes + bytes > max_shard_bytes {
            shards.push(Shard::default());
        }
        let index = shards.len() - 1;
        let shard = &mut shards[index];
        let (begin, end) = (shard.bytes, shard.bytes + bytes);
        let entry = json!({"dtype": dtype_name, "shape": shape, "data_offsets": [begin, end]});
        shard.header.insert(name.clone(), entry);
        shard.bytes = end;
        places.insert(name, Place { shard: index, begin, shape });
    }
    Ok((shards, places))
}

/// The header as it is in the file: its length, the JSON, and spaces so that the data begins at a multiple of 8.
fn header_bytes(tensors: Map<String, Value>) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))]);
    header.extend(tensors);
    let mut json = Value::from(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes
}

/// `tensor` in `dtype`, contiguous, on the CPU.
fn converted(tensor: &Tensor, dtype: Kind) -> Result<Tensor> {
    let converted = tensor.detach().f_to_kind(dtype)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    // Float16 ends at 65,504: an infinity that the source does not have is not saved.
    if dtype == Kind::Half && tensor.kind() != Kind::Half {
        let infinite = |t: &Tensor| i64::try_from(t.f_isinf()?.f_sum(Kind::Int64)?);
        let (found, own) = (infinite(&converted)?, infinite(tensor)?);
        ensure!(
            found == own,
            "expected values within float16's 65504, found {} beyond\n  help: save in bfloat16 or float32",
            found - own
        );
    }
    Ok(converted)
}

fn bytes_of(tensor: &Tensor) -> &[u8] {
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return &[];
    }
    // SAFETY: the tensor is contiguous and on the CPU, and lives as long as the slice.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) }
}

#[cfg(test)]
mod tests {
    use super::super::ModelFiles;
    use super::*;

    fn config() -> ModelConfig {
        let text = r#"{"vocab_size": 5, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
            "num_attention_heads": 1, "tie_word_embeddings": true}"#;
        ModelConfig::from_hf_json("config.json", text).unwrap()
    }

    fn tensors(config: &ModelConfig) -> Vec<(String, Tensor)> {
        let options = (Kind::Float, Device::Cpu);
        let random = |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, options));
        tensor_table(config).into_iter().map(random).collect()
    }

    #[test]
    fn shards_hold_every_tensor_once_whatever_their_size() {
        let config = config();
        let tensors = tensors(&config);
        let given = || tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        let mut counts = Vec::new();
        for limit in [1, 200, 1000, u64::MAX] {
            let folder = tempfile::tempdir().unwrap();
            write_weights(folder.path(), &config, given().rev(), Kind::Double, limit).unwrap();
            write_file(folder.path(), CONFIG_FILE, &config_json(&config, "float64")).unwrap();
            let files = ModelFiles::open(folder.path()).unwrap();
            files.check().unwrap();
            for (name, tensor) in given() {
                assert!(
                    files.tensor(&name).unwrap().equal(&tensor.to_kind(Kind::Double)),
                    "{name}"
                );
            }
            counts.push(fs::read_dir(folder.path()).unwrap().count());
        }
        // A file for each of the 20 tensors, index and configuration; at last one file and the configuration.
        assert_eq!((counts[0], counts[3]), (22, 2));
        assert!(
            counts[0] > counts[1] && counts[1] > counts[2] && counts[2] > counts[3],
            "{counts:?}"
        );
    }

    #[test]
    fn the_same_weights_give_the_same_bytes() {
        let config = config();
        let tensors = tensors(&config);
        let write = |reversed: bool| {
            let folder = tempfile::tempdir().unwrap();
            let mut given: Vec<_> =
                tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
            if reversed {
                given.reverse();
            }
            write_model(folder.path(), &config, given, Kind::BFloat16).unwrap();
            fs::read(folder.path().join(SAFETENSORS_FILE)).unwrap()
        };
        let bytes = write(false);
        assert_eq!(bytes, write(true));
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(header % 8, 0);
        assert_eq!(bytes.len() as u64, 8 + header + 2 * config.num_parameters());
    }
}
