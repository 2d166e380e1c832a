//! Model folders: a Hugging Face folder or a GGUF file in, a Hugging Face folder out.
//!
//! [`ModelFiles::open`] reads `config.json` and the headers of the weight files; [`ModelFiles::tensor`] copies one tensor
//! out of a memory map, so that a model costs its size once. [`tensor_table`] lists the tensors of a configuration: it is
//! what loading expects, what initialising fills and what [`save::save_model`] writes.
//!
//! Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`) whatever the container: safetensors, the zip
//! archives of `torch.save` (read without executing their pickle) or GGUF (dequantized, llama.cpp's row order undone).

mod gguf;
mod pickle;
mod safetensors;
mod save;
mod torch_file;

pub use save::{save_model, write_model};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fathom_spec::config::{ModelConfig, nearest};
use memmap2::Mmap;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::Tensor;

const CONFIG_FILE: &str = "config.json";
const SAFETENSORS_FILE: &str = "model.safetensors";
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";
const TORCH_FILE: &str = "pytorch_model.bin";
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// A model's configuration and its open weight files.
pub struct ModelFiles {
    path: PathBuf,
    config: ModelConfig,
    files: Vec<Box<dyn WeightFile>>,
    tensors: BTreeMap<String, Entry>,
}

/// One file of weights, in a memory map.
trait WeightFile: Send + Sync {
    fn path(&self) -> &Path;

    /// The name and the shape of every tensor. Where the container's names are not Hugging Face's, those it has none for
    /// keep the container's.
    fn shapes(&self) -> Vec<(String, Vec<i64>)>;

    /// A copy of the tensor `name`, which is one of [`WeightFile::shapes`], on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

/// Where one tensor is, and its shape.
struct Entry {
    file: usize,
    shape: Vec<i64>,
}

/// The name and the shape of every weight of `config`, in the order of the forward. A tied head has none of its own.
pub fn tensor_table(config: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let (v, d, f) = (config.vocab_size, config.hidden_size, config.intermediate_size);
    let h = config.head_dim();
    let (q, kv) = (config.num_attention_heads * h, config.num_key_value_heads() * h);
    let mut table = Vec::with_capacity(9 * config.num_hidden_layers + 3);
    let mut push = |name: String, shape: &[usize]| {
        table.push((format!("{name}.weight"), shape.iter().map(|&n| n as i64).collect()));
    };
    push("model.embed_tokens".into(), &[v, d]);
    for layer in 0..config.num_hidden_layers {
        let mut push = |name: &str, shape: &[usize]| {
            push(format!("model.layers.{layer}.{name}"), shape);
        };
        push("input_layernorm", &[d]);
        push("self_attn.q_proj", &[q, d]);
        push("self_attn.k_proj", &[kv, d]);
        push("self_attn.v_proj", &[kv, d]);
        push("self_attn.o_proj", &[d, q]);
        push("post_attention_layernorm", &[d]);
        push("mlp.gate_proj", &[f, d]);
        push("mlp.up_proj", &[f, d]);
        push("mlp.down_proj", &[d, f]);
    }
    push("model.norm".into(), &[d]);
    if !config.tie_word_embeddings {
        push("lm_head".into(), &[v, d]);
    }
    table
}

impl ModelFiles {
    /// Opens a Hugging Face folder or a `.gguf` file: its configuration and the headers of its weight files.
    ///
    /// A folder's weights are the first of these that it has: `model.safetensors`, `pytorch_model.bin` (each alone or in
    /// the shards that its `.index.json` lists), every other `*.safetensors`. A folder without weights opens too: a model
    /// that is to be initialised at random needs its `config.json` only.
    ///
    /// # Errors
    ///
    /// When `path` is neither, `config.json` is missing or describes another architecture, a weight file is cut short,
    /// followed by something else or not of its format, or two files hold the same tensor.
    pub fn open(path: &Path) -> Result<ModelFiles> {
        let shown = path.display();
        if !path.exists() {
            bail!("{shown}: expected a model folder or a `.gguf` file, found nothing");
        }
        if path.is_dir() {
            return ModelFiles::open_folder(path);
        }
        if path.extension().is_some_and(|e| e == "safetensors" || e == "bin" || e == "json") {
            bail!(
                "{shown}: expected a model folder or a `.gguf` file, found a file of a model\n  help: give the folder that it is in"
            );
        }
        let file = gguf::GgufFile::open(path)?;
        let config = file.config.clone();
        ModelFiles::new(path, config, vec![Box::new(file)])
    }

    fn open_folder(folder: &Path) -> Result<ModelFiles> {
        let config_path = folder.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&config_path).map_err(|error| {
            let help = match files_with_extension(folder, "gguf").unwrap_or_default().first() {
                Some(gguf) => format!("\n  help: give the file itself: {}", gguf.display()),
                None => String::new(),
            };
            anyhow!(
                "{}: expected a model's configuration, found: {error}{help}",
                config_path.display()
            )
        })?;
        let config = ModelConfig::from_hf_json(&config_path.display().to_string(), &text)?;

        for (file, index) in [(SAFETENSORS_FILE, SAFETENSORS_INDEX), (TORCH_FILE, TORCH_INDEX)] {
            if folder.join(file).is_file() {
                let file = open_weight_file(&folder.join(file))?;
                return ModelFiles::new(folder, config, vec![file]);
            }
            if folder.join(index).is_file() {
                return ModelFiles::open_shards(folder, config, &folder.join(index));
            }
        }
        let files = files_with_extension(folder, "safetensors")?;
        let files = files.iter().map(|path| open_weight_file(path)).collect::<Result<_>>()?;
        ModelFiles::new(folder, config, files)
    }

    fn open_shards(folder: &Path, config: ModelConfig, index: &Path) -> Result<ModelFiles> {
        let shown = index.display();
        let weight_map = read_index(index)?;
        let mut files = Vec::new();
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            let path = folder.join(shard);
            ensure!(path.is_file(), "{shown}: expected the shard `{shard}` beside it, found none");
            files.push(open_weight_file(&path)?);
        }
        let model = ModelFiles::new(folder, config, files)?;
        for (name, shard) in &weight_map {
            let entry = model.tensors.get(name);
            ensure!(
                entry.is_some_and(|entry| model.files[entry.file].path().ends_with(shard)),
                "{shown}: expected the tensor `{name}` in `{shard}`, found none"
            );
        }
        Ok(model)
    }

    fn new(
        path: &Path,
        config: ModelConfig,
        files: Vec<Box<dyn WeightFile>>,
    ) -> Result<ModelFiles> {
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for (file, weights) in files.iter().enumerate() {
            for (name, shape) in weights.shapes() {
                if let Some(first) = tensors.get(&name) {
                    bail!(
                        "{}: {name}: expected each tensor in one file, found it in {} too",
                        weights.path().display(),
                        files[first.file].path().display()
                    );
                }
                tensors.insert(name, Entry { file, shape });
            }
        }
        Ok(ModelFiles { path: path.to_path_buf(), config, files, tensors })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The names of all tensors in the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Compares the files with [`tensor_table`] without reading a weight: cheap, and before anything is loaded.
    ///
    /// `rotary_emb.inv_freq`, a buffer that old checkpoints carry, is passed over. So is an `lm_head.weight` beside a tied
    /// head, when it is the same matrix; only then are weights read, those two.
    ///
    /// # Errors
    ///
    /// For the first tensor that is missing, has another shape, or has no place in the configuration.
    pub fn check(&self) -> Result<()> {
        let table = tensor_table(&self.config);
        for (name, shape) in &table {
            self.checked_entry(name, shape)?;
        }
        let known: HashSet<&str> = table.iter().map(|(name, _)| name.as_str()).collect();
        let tied_head = |name: &str| self.config.tie_word_embeddings && name == "lm_head.weight";
        let mut unexpected = self.tensors.iter().filter(|(name, _)| {
            !known.contains(name.as_str())
                && !name.ends_with("rotary_emb.inv_freq")
                && !tied_head(name)
        });
        if let Some((name, entry)) = unexpected.next() {
            let more = match unexpected.count() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            bail!(
                "{}: expected only the {} tensors that the configuration describes, found `{name}`{more}",
                self.files[entry.file].path().display(),
                table.len()
            );
        }
        if let Some((name, entry)) = self.tensors.iter().find(|(name, _)| tied_head(name)) {
            let embedding = "model.embed_tokens.weight";
            let same = entry.shape == self.entry(embedding)?.shape
                && self.tensor(name)?.equal(&self.tensor(embedding)?);
            ensure!(
                same,
                "{}: {name}: expected the matrix of `{embedding}`, to which the configuration ties it, found another\n  help: set `tie_word_embeddings` to false in {CONFIG_FILE}",
                self.files[entry.file].path().display()
            );
        }
        Ok(())
    }

    /// Copies a tensor out of its file: on the CPU, in the file's dtype (float32 from GGUF).
    ///
    /// # Errors
    ///
    /// When no file holds `name` (with the nearest name that one does), or its dtype is no float.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        self.files[entry.file].tensor(name)
    }

    /// [`ModelFiles::tensor`], when its shape is `shape`: nothing is read of a tensor of another shape.
    pub fn checked_tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let entry = self.checked_entry(name, shape)?;
        self.files[entry.file].tensor(name)
    }

    fn checked_entry(&self, name: &str, shape: &[i64]) -> Result<&Entry> {
        let entry = self.entry(name)?;
        ensure!(
            entry.shape == shape,
            "{}: {name}: expected {shape:?}, found {:?}",
            self.files[entry.file].path().display(),
            entry.shape
        );
        Ok(entry)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| match &self.files[..] {
            [] => anyhow!(
                "{}: expected weights (`{SAFETENSORS_FILE}`, `{TORCH_FILE}` or their shards), found none",
                self.path.display()
            ),
            files => {
                let place = if let [file] = files { file.path() } else { &self.path };
                let help = match nearest(name, self.names()) {
                    Some(near) => format!("the nearest of its {} tensors is `{near}`", self.tensors.len()),
                    None => {
                        let some: Vec<_> = self.names().take(3).map(|n| format!("`{n}`")).collect();
                        format!("it holds {} tensors: {} …", self.tensors.len(), some.join(", "))
                    }
                };
                anyhow!("{}: expected the tensor `{name}`, found none\n  help: {help}", place.display())
            }
        })
    }
}

fn open_weight_file(path: &Path) -> Result<Box<dyn WeightFile>> {
    Ok(match path.extension() {
        Some(extension) if extension == "safetensors" => {
            Box::new(safetensors::SafetensorsFile::open(path)?)
        }
        _ => Box::new(torch_file::TorchFile::open(path)?),
    })
}

fn files_with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("{}: expected a readable folder", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Which shard holds which tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{shown}: expected a readable index"))?;
    let index: Index = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: expected JSON with a `weight_map`"))?;
    for shard in index.weight_map.values() {
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        ensure!(plain, "{shown}: expected names of files beside it, found `{shard}`");
    }
    Ok(index.weight_map)
}

/// Maps a weight file into memory.
fn map_file(path: &Path) -> Result<Mmap> {
    let shown = path.display();
    let file =
        File::open(path).with_context(|| format!("{shown}: expected a readable weight file"))?;
    // SAFETY: the map is read only; a file that another process shortens while we read it is outside our promises.
    let map = unsafe { Mmap::map(&file) }
        .with_context(|| format!("{shown}: can't be mapped into memory"))?;
    if map.starts_with(b"version https://git-lfs") {
        bail!(
            "{shown}: expected weights, found a Git LFS pointer to them\n  help: fetch them with `git lfs pull`"
        );
    }
    Ok(map)
}
