//! What a run's configuration names, by content: digests of model, tokenizer and data, and the hashes made of them.

use super::Fits;
use crate::store::SavedIdentity;
use anyhow::{Context, Result, anyhow};
use fathom_data::corpus::{Corpus, TRAIN};
use fathom_data::model_files::{self, FileStamp};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{Digests, RANDOM_CORPUS, RunConfig};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Computes identities, and reads each file once however many points name it.
#[derive(Default)]
pub struct Identities {
    models: HashMap<String, (String, Vec<FileStamp>)>,
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
        let (model, model_files) = match (&config.model.path, &config.model.config) {
            (Some(path), _) => {
                // Stamped before they are read: what changes meanwhile is noticed.
                let read = |path: &str| {
                    let path = Path::new(path);
                    let stamps = model_files::stamps(path)?;
                    Ok((model_files::digest(path)?, stamps))
                };
                cached(&mut self.models, path, read).context("model.path")?
            }
            (None, Some(shape)) => {
                let json = serde_json::to_vec(shape).expect("a shape is plain data");
                (blake3::hash(&json).to_hex().to_string(), Vec::new())
            }
            (None, None) => (String::new(), Vec::new()),
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
        let identity = config.identity(&digests);
        Ok(SavedIdentity { identity, digests, model_files, created_at })
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

fn cached<T: Clone>(
    cache: &mut HashMap<String, T>,
    key: &str,
    compute: impl FnOnce(&str) -> Result<T>,
) -> Result<T> {
    if let Some(known) = cache.get(key) {
        return Ok(known.clone());
    }
    let computed = compute(key)?;
    cache.insert(key.to_string(), computed.clone());
    Ok(computed)
}
