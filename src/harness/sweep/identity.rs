//! What a run's configuration names, by content: digests of model, tokenizer and data, and the hashes made of them.

use super::Fits;
use crate::store::SavedIdentity;
use anyhow::{Context, Result, anyhow};
use fathom_data::corpus::{Corpus, TRAIN};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{Digests, RANDOM_CORPUS, RunConfig};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Computes identities, and reads each file once however many points name it.
#[derive(Default)]
pub struct Identities {
    models: HashMap<String, String>,
    tokenizers: HashMap<String, String>,
    /// Tokenizers that were read before, each until its digest is known.
    read: HashMap<String, Tokenizer>,
    /// Their documents without the texts.
    corpora: HashMap<String, Corpus>,
    /// Corpora and splits (as JSON) that were seen to go together.
    splits: HashSet<(String, String)>,
}

impl Identities {
    /// Of configurations that were held against what they name: their tokenizers are not read again.
    pub fn after(fits: Fits) -> Identities {
        let tokenizers = fits.tokenizers.into_iter();
        let read = tokenizers.filter_map(|(spec, tokenizer)| Some((spec, tokenizer?))).collect();
        Identities { read, ..Identities::default() }
    }

    /// # Errors
    ///
    /// When a file that the configuration names can't be read: with the key that names it. As [`Identities::check_splits`].
    pub fn of(&mut self, config: &RunConfig, created_at: f64) -> Result<SavedIdentity> {
        let model = match (&config.model.path, &config.model.config) {
            (Some(path), _) => {
                cached(&mut self.models, path, model_digest).context("model.path")?
            }
            (None, Some(shape)) => {
                let json = serde_json::to_vec(shape).expect("a shape is plain data");
                blake3::hash(&json).to_hex().to_string()
            }
            (None, None) => String::new(),
        };
        let tokenizer = match config.tokenizer_path() {
            Some(spec) => {
                let digest = |spec: &str| match self.read.remove(spec) {
                    Some(tokenizer) => tokenizer.digest(),
                    None => Tokenizer::from_spec(spec)?.digest(),
                };
                cached(&mut self.tokenizers, spec, digest).context("tokenizer.path")?
            }
            None => String::new(),
        };
        let data = match config.data.corpus.as_str() {
            RANDOM_CORPUS => RANDOM_CORPUS.to_string(),
            corpus => self.corpus_digest(corpus).context("data.corpus")?,
        };
        self.check_splits(config)?;
        let digests = Digests { model, tokenizer, data };
        Ok(SavedIdentity { identity: config.identity(&digests), digests, created_at })
    }

    fn corpus_digest(&mut self, spec: &str) -> Result<String> {
        if let Some(known) = self.corpora.get(spec) {
            return Ok(known.digest());
        }
        let mut corpus = Corpus::open(spec)?;
        corpus.documents.iter_mut().for_each(|document| document.text = String::new());
        let digest = corpus.digest();
        self.corpora.insert(spec.to_string(), corpus);
        Ok(digest)
    }

    /// Looks for the documents of every split, in a corpus that was read for an identity.
    ///
    /// # Errors
    ///
    /// When a pattern matches no document, or none is left to train on: every run would fail of it.
    pub fn check_splits(&mut self, config: &RunConfig) -> Result<()> {
        let data = &config.data;
        let Some(corpus) = self.corpora.get(&data.corpus) else { return Ok(()) };
        let splits = serde_json::to_string(&data.splits).expect("names are plain data");
        let pair = (data.corpus.clone(), splits);
        if self.splits.contains(&pair) {
            return Ok(());
        }
        for split in data.splits.keys().map(String::as_str).chain([TRAIN]) {
            corpus.split(&data.splits, split).map_err(|error| anyhow!("data.{error:#}"))?;
        }
        self.splits.insert(pair);
        Ok(())
    }
}

fn cached(
    cache: &mut HashMap<String, String>,
    key: &str,
    compute: impl FnOnce(&str) -> Result<String>,
) -> Result<String> {
    if let Some(digest) = cache.get(key) {
        return Ok(digest.clone());
    }
    let digest = compute(key)?;
    cache.insert(key.to_string(), digest.clone());
    Ok(digest)
}

/// blake3 over the names and contents of a model's weights and configuration, or of its one file.
fn model_digest(path: &str) -> Result<String> {
    let path = Path::new(path);
    anyhow::ensure!(
        path.exists(),
        "{}: expected a model folder or a .gguf file, found nothing there\n  help: relative paths start at {}; `make demo` \
         and `make smollm2` make the models that the repository's own files name",
        path.display(),
        std::env::current_dir().unwrap_or_default().display()
    );
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?
    } else {
        vec![path.to_path_buf()]
    };
    // What a checkpoint holds beside the model (optimizer, trainer) is not the model.
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = ["safetensors", "bin", "gguf"].iter().any(|e| name.ends_with(e));
        (weights && name != "optimizer.safetensors")
            || name == "config.json"
            || name.ends_with(".index.json")
    });
    files.sort();
    anyhow::ensure!(
        !files.is_empty(),
        "{}: expected a model folder or a .gguf file, found no weights",
        path.display()
    );
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A single file is known by its content alone.
        if path.is_dir() {
            hasher.update(name.as_bytes());
        }
        let contents = std::fs::File::open(file)
            .with_context(|| format!("{}: expected a model that can be read", file.display()))?;
        let mut of_file = blake3::Hasher::new();
        of_file.update_reader(contents).with_context(|| file.display().to_string())?;
        hasher.update(of_file.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}
