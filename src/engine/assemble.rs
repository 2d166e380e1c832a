//! From a configuration to live objects: the model, the tokenizer and the data of a run, each recorded as it really is.

use crate::facts::Sink;
use crate::model::weights::ModelFiles;
use crate::model::{Model, Setup};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fathom_data::corpus::Corpus;
use fathom_data::dataset::Dataset;
use fathom_data::packing::PackOptions;
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{ModelConfig, RopeParameters, RopeType, RunConfig, Weights};
use fathom_spec::record::EventKind;
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind};

/// The corpus that stands for documents of random tokens.
pub const RANDOM_CORPUS: &str = "random";

/// A model's shape with the overrides of a run: another RoPE, a longer limit.
///
/// A RoPE that is given no original window gets the model's own, so that lifting the limit does not move it.
pub fn override_rope(
    own: &ModelConfig,
    rope: Option<&RopeParameters>,
    max_position_embeddings: Option<usize>,
) -> ModelConfig {
    let mut config = own.clone();
    if let Some(rope) = rope {
        config.rope_parameters = rope.over(&own.rope_parameters);
    }
    let parameters = &mut config.rope_parameters;
    if matches!(parameters.rope_type, RopeType::Yarn | RopeType::Dynamic) {
        let original = own.rope_parameters.original_max_position_embeddings;
        parameters
            .original_max_position_embeddings
            .get_or_insert(original.unwrap_or(own.max_position_embeddings));
    }
    config.max_position_embeddings = max_position_embeddings.unwrap_or(own.max_position_embeddings);
    config
}

/// The model of a run, on `device`.
///
/// # Errors
///
/// When the weights can't be read, or the sequence is longer than the model allows.
pub fn model(config: &RunConfig, device: Device, sink: &mut impl Sink) -> Result<Model> {
    let section = &config.model;
    let files = section.path.as_ref().map(|path| ModelFiles::open(Path::new(path))).transpose()?;
    let own = match (&files, &section.config) {
        (Some(files), _) => files.config().clone(),
        (None, Some(shape)) => shape.clone(),
        (None, None) => bail!("model: expected `path` or `config`, found neither"),
    };
    let limit = section.max_position_embeddings.unwrap_or(own.max_position_embeddings);
    let length = config.train.sequence_length;
    if length > limit {
        bail!(
            "train.sequence_length: expected at most the model's max_position_embeddings ({limit}), found `{length}`\n  \
             help: set model.max_position_embeddings: {length} to lift the limit"
        );
    }
    let shape =
        override_rope(&own, section.rope_parameters.as_ref(), section.max_position_embeddings);
    shape.check().map_err(|message| anyhow!("model: {message}"))?;
    let setup = Setup {
        device,
        dtype: section.dtype,
        weights_dtype: config.train.weights_dtype,
        attention: section.attention,
    };
    let model = match (&files, section.weights) {
        (Some(files), Weights::Pretrained) => Model::load(files, shape, setup)?,
        _ => Model::random(shape, config.train.seed, setup),
    };
    describe_model(config, &model, sink)?;
    Ok(model)
}

fn describe_model(config: &RunConfig, model: &Model, sink: &mut impl Sink) -> Result<()> {
    // What was loaded, as a number that any other file would change.
    let mut square = 0.0;
    let mut parameters = 0;
    for (_, weight) in model.parameters() {
        square += f64::try_from(weight.to_kind(Kind::Float).square().sum(Kind::Double))?;
        parameters += weight.numel() as u64;
    }
    let source = if model_is_read(config) { "read" } else { "random" };
    let weights = json!({ "source": source, "parameters": parameters, "l2_norm": square.sqrt() });
    sink.fact(if config.model.path.is_some() { "model.path" } else { "model.config" }, weights);
    sink.fact("model.weights", source);
    let length = config.train.sequence_length;
    let frequencies = model.rope.frequencies(length);
    sink.fact(
        "model.rope_parameters",
        json!({
            "rope_type": model.rope.parameters.rope_type,
            "inv_freq_digest": model.rope.digest(length),
            "inv_freq_first": frequencies.inv_freq.first(),
            "inv_freq_last": frequencies.inv_freq.last(),
            "attention_scaling": frequencies.attention_scaling,
        }),
    );
    sink.fact("model.max_position_embeddings", model.config.max_position_embeddings as u64);
    sink.fact("train.weights_dtype", dtype_name(model.embed_tokens.kind()));
    Ok(())
}

fn model_is_read(config: &RunConfig) -> bool {
    config.model.path.is_some() && config.model.weights == Weights::Pretrained
}

/// The configuration's name of a dtype.
pub fn dtype_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "float32".into(),
        Kind::BFloat16 => "bfloat16".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The tokenizer of a run: the one that is named, else the model's own.
///
/// # Errors
///
/// When it can't be read, does not fit the model's vocabulary, or allows only shorter sequences.
pub fn tokenizer(
    config: &RunConfig,
    shape: &ModelConfig,
    sink: &mut impl Sink,
) -> Result<Tokenizer> {
    let own = config.model.path.as_deref();
    let spec = config.tokenizer.path.as_deref().or(own);
    let spec = spec.context("tokenizer.path: expected a path or `bytes`, found nothing")?;
    let tokenizer = Tokenizer::from_spec(spec)?;
    fits_vocabulary("tokenizer.path", &tokenizer, spec, shape)?;
    let length = config.train.sequence_length;
    if let Some(limit) = tokenizer.max_length().filter(|&limit| length > limit)
        && config.model.max_position_embeddings.is_none_or(|lifted| length > lifted)
    {
        bail!(
            "train.sequence_length: expected at most the tokenizer's model_max_length ({limit}), found `{length}`\n  \
             help: set model.max_position_embeddings: {length} to lift the limit"
        );
    }
    let ids = tokenizer.vocab_size();
    sink.fact("tokenizer.path", json!({ "vocab_size": ids, "digest": tokenizer.digest()? }));
    Ok(tokenizer)
}

/// # Errors
///
/// When the tokenizer has ids that the model has no embedding for; `place` names what chose it.
pub fn fits_vocabulary(
    place: &str,
    tokenizer: &Tokenizer,
    spec: &str,
    shape: &ModelConfig,
) -> Result<()> {
    let (ids, vocab_size) = (tokenizer.vocab_size(), shape.vocab_size);
    ensure!(
        ids <= vocab_size,
        "{place}: expected at most the model's vocab_size of {vocab_size} ids, found {ids} in `{spec}`"
    );
    Ok(())
}

/// The data of a run.
pub struct Data {
    pub train: Arc<Dataset>,
    /// The evaluated split, packed like the training split; none without such documents.
    pub held_out: Option<Dataset>,
    /// The tokens of each held-out document, as perplexity is taken on them.
    pub held_out_documents: Vec<Vec<u32>>,
}

/// Reads, tokenizes and packs the corpus.
///
/// # Errors
///
/// When the corpus or a split can't be read, or has nothing in it.
pub fn data(
    config: &RunConfig,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    sink: &mut impl Sink,
) -> Result<Data> {
    let options = pack_options(config);
    if config.data.corpus == RANDOM_CORPUS {
        let train = &config.train;
        let blocks = train.total_tokens.0.div_ceil(train.sequence_length as u64) as usize;
        let train =
            Dataset::random(vocab_size, train.sequence_length, blocks.clamp(1, 64), train.seed);
        ensure!(
            config.eval.context_lengths.is_empty() && config.eval.every_steps == 0,
            "eval: expected no context_lengths and no every_steps with data.corpus: random, found some\n  \
             help: random tokens have no perplexity worth knowing: set eval.context_lengths: []"
        );
        sink.fact("data.corpus", RANDOM_CORPUS);
        describe_packing(config, &train, sink);
        return Ok(Data { train: Arc::new(train), held_out: None, held_out_documents: Vec::new() });
    }
    let tokenizer =
        tokenizer.context("tokenizer.path: expected a tokenizer for a corpus of text")?;
    let corpus = Corpus::open(&config.data.corpus)?;
    for note in &corpus.notes {
        sink.event(EventKind::Warning { message: note.clone() });
    }
    let splits = &config.data.splits;
    let documents = corpus.split(splits, "train")?;
    let train = Dataset::build(&documents, tokenizer, &options)?;
    fills_its_blocks(config, &train, sink)?;
    let trained: HashSet<String> = documents.iter().map(|d| d.digest.clone()).collect();
    sink.fact(
        "data.corpus",
        json!({ "digest": corpus.digest(), "documents": corpus.documents.len() }),
    );
    let names: Vec<_> = documents.iter().map(|d| d.name.clone()).collect();
    sink.fact("data.splits", json!({ "train": names }));
    let mut also_trained: BTreeSet<String> = corpus.overlap(splits)?.into_iter().collect();
    describe_packing(config, &train, sink);

    let split = &config.eval.split;
    let evaluates = !config.eval.context_lengths.is_empty() || config.eval.every_steps > 0;
    if !evaluates && !config.data.splits.contains_key(split) {
        sink.fact("data.held_out_also_trained_on", json!(also_trained));
        return Ok(Data { train: Arc::new(train), held_out: None, held_out_documents: Vec::new() });
    }
    let documents = corpus.split(splits, split)?;
    let names: Vec<_> = documents.iter().map(|d| d.name.clone()).collect();
    sink.fact("eval.split", json!({ "name": split, "documents": names }));
    // By content: a copy under another name was trained on too.
    let copies = documents.iter().filter(|d| trained.contains(&d.digest));
    also_trained.extend(copies.map(|d| d.name.clone()));
    sink.fact("data.held_out_also_trained_on", json!(also_trained));
    let held_out = Dataset::build(&documents, tokenizer, &options)?;
    let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
    let bos = tokenizer.bos_id().filter(|_| config.data.add_bos);
    let held_out_documents: Vec<Vec<u32>> = tokenizer
        .encode_batch(&texts)?
        .into_iter()
        .map(|ids| bos.into_iter().chain(ids).collect())
        .collect();
    let longest = held_out_documents.iter().map(Vec::len).max().unwrap_or(0);
    if let Some(&shortest) = config.eval.context_lengths.first().filter(|&&w| w > longest) {
        bail!(
            "eval.context_lengths[0]: expected at most {longest} tokens, which the longest document of `{split}` has, found \
             `{shortest}`\n  help: evaluate shorter lengths, or hold out a longer document"
        );
    }
    Ok(Data { train: Arc::new(train), held_out: Some(held_out), held_out_documents })
}

/// A sequence length that no block has would only be a number in a report.
fn fills_its_blocks(config: &RunConfig, train: &Dataset, sink: &mut impl Sink) -> Result<()> {
    let (length, report) = (config.train.sequence_length, &train.report);
    ensure!(
        report.tokens_packed + report.tokens_repeated >= length,
        "train.sequence_length: expected at most {} tokens, which is all of the training split, found `{length}`\n  \
         help: lower it, or train on more text",
        report.tokens_packed
    );
    if report.max < length * 9 / 10 {
        let message = format!(
            "train.sequence_length: configured as {length}, but the longest block has {} tokens: data.packing lays no more \
             documents together",
            report.max
        );
        sink.event(EventKind::Warning { message });
    }
    Ok(())
}

fn pack_options(config: &RunConfig) -> PackOptions {
    PackOptions {
        max_length: config.train.sequence_length,
        strategy: config.data.packing,
        min_length: config.data.min_length,
        stride: 0,
        overflow: true,
        add_bos: config.data.add_bos,
        add_eos: config.data.add_eos,
    }
}

/// The blocks as they came out: what `train.sequence_length` became.
fn describe_packing(config: &RunConfig, train: &Dataset, sink: &mut impl Sink) {
    let report = &train.report;
    sink.fact(
        "train.sequence_length",
        json!({
            "blocks": report.blocks, "min": report.min, "median": report.median, "max": report.max,
            "share_full": report.share_full,
        }),
    );
    let shape = json!({ "blocks": report.blocks, "segments": train.blocks.iter().map(|b| b.segments.len()).sum::<usize>() });
    sink.fact("data.packing", json!({ "strategy": config.data.packing, "result": shape }));
    sink.fact("data.min_length", json!({ "dropped_tokens": report.tokens_dropped, "shortest_block": report.min, "asked": config.data.min_length }));
    // The tokens tell whether documents really begin and end with the special ones.
    let first = train.blocks.first().and_then(|block| block.tokens.first());
    sink.fact("data.add_bos", json!({ "first_token": first, "tokens": report.tokens_packed }));
    sink.fact("data.add_eos", json!({ "tokens": report.tokens_packed }));
    sink.fact("data.documents", report.documents);
}
