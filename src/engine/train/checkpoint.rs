//! Checkpoints: a Hugging Face folder that transformers loads, and beside the weights what an exact resume needs.
//!
//! | file | holds |
//! |---|---|
//! | `model.safetensors`, `config.json` | the weights in the dtype they are kept in, with the RoPE that was trained |
//! | `tokenizer.json`, `tokenizer_config.json` | the tokenizer |
//! | `optimizer.safetensors` | the optimizer's state by weight, and the CPU generator's state |
//! | `trainer.json` | step, tokens, data position, the loss averages that divergence is judged by |

use super::optimizer::Optimizer;
use crate::model::{Model, weights};
use crate::torch;
use anyhow::{Context, Result};
use fathom_data::dataset::DataPosition;
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::record::RunPaths;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use tch::{Tensor, no_grad};

/// Where training stands between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    pub position: DataPosition,
    /// Losses of the last steps, oldest first, that the running average is over.
    pub recent_losses: Vec<f64>,
    /// The lowest running average so far.
    pub lowest_average: Option<f64>,
    /// Whether the run was asked to end before the evaluation of this step: it is made up for when the run goes on.
    #[serde(default)]
    pub evaluation_due: bool,
}

const GENERATOR: &str = "cpu_generator_state";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const TRAINER_FILE: &str = "trainer.json";

/// Writes the checkpoint of `state.step` whole or not at all, and returns its size in bytes.
///
/// # Errors
///
/// When a file can't be written; what was written of it is removed.
pub fn save(
    paths: &RunPaths,
    model: &Model,
    optimizer: &Optimizer,
    tokenizer: &Tokenizer,
    state: &TrainerState,
) -> Result<u64> {
    let folder = paths.checkpoint(state.step);
    let part = folder.with_extension("part");
    let write = || -> Result<u64> {
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part)?;
        let tensors = model.parameters().into_iter().map(|(name, weight)| (name, weight.detach()));
        weights::write_model(&part, &model.config, tensors, model.embed_tokens.kind())?;
        tokenizer.save(&part)?;
        let mut tensors = optimizer.state();
        tensors.push((GENERATOR.to_string(), torch::generator_state()?));
        Tensor::write_safetensors(&tensors, part.join(OPTIMIZER_FILE))?;
        fs::write(part.join(TRAINER_FILE), serde_json::to_vec_pretty(state)?)?;
        sync_folder(&part)?;
        // A checkpoint of the same step is the same checkpoint: a resumed run did the step again.
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&part, &folder)?;
        // The names are on the disk too, before an event says that the checkpoint is.
        fs::File::open(paths.checkpoints())?.sync_all()?;
        folder_bytes(&folder)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    written.with_context(|| format!("{}: the checkpoint can't be written", folder.display()))
}

/// Reads weights, optimizer, generator and position back from a checkpoint's folder.
///
/// # Errors
///
/// When a file is missing or does not fit the model or the optimizer: nothing is trained on with less than was saved.
pub fn load(folder: &Path, model: &Model, optimizer: &mut Optimizer) -> Result<TrainerState> {
    let mut read = || -> Result<TrainerState> {
        let files = weights::ModelFiles::open(folder)?;
        for (name, weight) in model.parameters() {
            let saved = files.checked_tensor(&name, &weight.size())?;
            let mut weight = weight.detach();
            no_grad(|| weight.copy_(&saved));
        }
        let tensors = Tensor::read_safetensors(folder.join(OPTIMIZER_FILE))?;
        let (generator, state): (Vec<_>, Vec<_>) =
            tensors.into_iter().partition(|(name, _)| name == GENERATOR);
        let [(_, generator)] = &generator[..] else {
            anyhow::bail!("{OPTIMIZER_FILE}: expected the tensor `{GENERATOR}`, found none");
        };
        torch::set_generator_state(generator)?;
        optimizer.load_state(&state)?;
        Ok(serde_json::from_slice(&fs::read(folder.join(TRAINER_FILE))?)?)
    };
    read().with_context(|| format!("{}: the checkpoint can't be resumed from", folder.display()))
}

/// Removes all checkpoints but the last `keep`.
pub fn prune(paths: &RunPaths, keep: usize) {
    let Ok(entries) = fs::read_dir(paths.checkpoints()) else { return };
    let mut steps: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step: u64 = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    steps.sort();
    let remove = steps.len().saturating_sub(keep);
    for (_, path) in &steps[..remove] {
        // A checkpoint that can't be removed costs disk, not correctness.
        let _ = fs::remove_dir_all(path);
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
