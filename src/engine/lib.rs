//! Everything that touches LibTorch: the model, training, evaluation, and the worker process of a run.
//!
//! `fathom-engine run FOLDER` is [`child::run`]: it reads the folder's `config.yaml`, trains with [`train`], measures with
//! [`eval`], and appends what happens to `events.jsonl`. It knows nothing of the database or of who started it.

pub mod assemble;
pub mod child;
pub mod eval;
pub mod facts;
pub mod kernels;
pub mod model;
pub mod provenance;
pub mod torch;
pub mod train;

/// The commit that this program was built from.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo {
    pub commit: Option<&'static str>,
    /// Whether sources of this program that git tracks were changed.
    pub dirty: Option<bool>,
    /// git's digest of these changes.
    pub diff: Option<&'static str>,
}

/// What git said when this program was built; nothing outside a git checkout.
pub fn build_info() -> BuildInfo {
    let commit = option_env!("FATHOM_GIT_COMMIT").filter(|commit| !commit.is_empty());
    let dirty = option_env!("FATHOM_GIT_DIRTY").map(|dirty| dirty == "1");
    let diff = option_env!("FATHOM_GIT_DIFF").filter(|diff| !diff.is_empty());
    BuildInfo { commit, dirty, diff }
}
