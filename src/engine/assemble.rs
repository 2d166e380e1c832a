//! From a configuration to live objects: the model, the tokenizer and the data of a run, each recorded as it really is.

use crate::facts::Sink;
use crate::model::weights::ModelFiles;
use crate::model::{Model, Setup, at_least_float};
use crate::torch;
use anyhow::{Context, Result, anyhow, bail, ensure};
use fathom_data::cache::Cache;
use fathom_data::corpus::{Corpus, TRAIN};
use fathom_data::dataset::Dataset;
use fathom_data::packing::{PackOptions, Segment};
use fathom_data::samples::{self, Samples};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{
    ModelConfig, RANDOM_CORPUS, RopeParameters, RopeType, RunConfig, Weights,
};
use fathom_spec::plan::{self, Prediction, Settings};
use fathom_spec::record::EventKind;
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind};

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

/// What a run will take on `device`: memory, arithmetic, and how the layered engine will carry it out.
///
/// # Errors
///
/// When the model's shape can't be read, or the sequence is longer than the model allows.
pub fn predict(config: &RunConfig, device: Device) -> Result<Prediction> {
    let (_, shape) = shape(config)?;
    let machine = torch::machine(device, config.run.memory_cap);
    Ok(plan::predict(config, &shape, &machine))
}

/// The model of a run, on `device`; its weights in host memory where `settings` streams them.
///
/// # Errors
///
/// When the weights can't be read, or the sequence is longer than the model allows.
pub fn model(
    config: &RunConfig,
    settings: Option<&Settings>,
    device: Device,
    sink: &mut impl Sink,
) -> Result<Model> {
    let section = &config.model;
    let (files, shape) = shape(config)?;
    let streams = settings.is_some_and(|settings| settings.weight_streaming);
    let setup = Setup {
        device: if streams { Device::Cpu } else { device },
        dtype: section.dtype,
        weights_dtype: config.train.weights_dtype,
        attention: section.attention,
    };
    let mut model = match (&files, section.weights) {
        (Some(files), Weights::Pretrained) => Model::load(files, shape, setup)?,
        _ => Model::random(shape, config.train.seed, setup, config.run.probe_layers),
    };
    describe_model(config, &model, sink)?;
    if streams {
        model.stream_to(device);
    }
    Ok(model)
}

/// The files of the run's model, where it has some, and its shape as the run wants it.
fn shape(config: &RunConfig) -> Result<(Option<ModelFiles>, ModelConfig)> {
    let section = &config.model;
    let files = section.path.as_ref().map(|path| ModelFiles::open(Path::new(path))).transpose()?;
    let own = match (&files, &section.config) {
        (Some(files), _) => files.config().clone(),
        (None, Some(shape)) => shape.clone(),
        (None, None) => bail!("model: expected `path` or `config`, found neither"),
    };
    config.check_shape(&own).map_err(|(key, message)| anyhow!("{key}: {message}"))?;
    let shape =
        override_rope(&own, section.rope_parameters.as_ref(), section.max_position_embeddings);
    shape.check().map_err(|message| anyhow!("model: {message}"))?;
    Ok((files, shape))
}

fn describe_model(config: &RunConfig, model: &Model, sink: &mut impl Sink) -> Result<()> {
    // What was loaded, as a number that any other file would change.
    let mut square = 0.0;
    let mut parameters = 0;
    for (_, weight) in model.parameters() {
        // Without a float32 copy, which would be the most memory that a short run ever takes.
        let exact = at_least_float(weight.kind());
        square += f64::try_from(weight.norm_scalaropt_dtype(2, exact))?.powi(2);
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
    let spec = config.tokenizer_path();
    let spec = spec.context("tokenizer.path: expected a path or `bytes`, found nothing")?;
    let tokenizer = Tokenizer::from_spec(spec)?;
    tokenizer
        .check_vocabulary(spec, shape.vocab_size)
        .map_err(|message| anyhow!("tokenizer.path: {message}"))?;
    tokenizer
        .check_length(config.train.sequence_length, config.model.max_position_embeddings)
        .map_err(|message| anyhow!("train.sequence_length: {message}"))?;
    let ids = tokenizer.vocab_size();
    sink.fact("tokenizer.path", json!({ "vocab_size": ids, "digest": tokenizer.digest()? }));
    Ok(tokenizer)
}

/// The data of a run.
pub struct Data {
    pub train: Arc<Dataset>,
    /// The evaluated split, packed like the training split; none without such documents.
    pub held_out: Option<Dataset>,
    /// The tokens of each held-out document, as perplexity is taken on them.
    pub held_out_documents: Vec<Vec<u32>>,
}

/// Reads, tokenizes and packs the corpus. Tokens that `cache` has are not computed again.
///
/// # Errors
///
/// When the corpus or a split can't be read, or has nothing in it.
pub fn data(
    config: &RunConfig,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    cache: &Cache,
    sink: &mut impl Sink,
) -> Result<Data> {
    let section = &config.data;
    if section.corpus == RANDOM_CORPUS {
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
    let corpus = Corpus::open(&section.corpus)?;
    for note in &corpus.notes {
        sink.event(EventKind::Warning { message: note.clone() });
    }
    sink.fact(
        "data.corpus",
        json!({ "digest": corpus.digest(), "documents": corpus.documents.len() }),
    );
    let options = PackOptions::of(section, config.train.sequence_length);
    let mut cached = serde_json::Map::new();
    let mut tokens_of = |split: &str, samples: &Samples, sink: &mut _| -> Result<Vec<Vec<u32>>> {
        let tokenized = cache.tokenize(&samples.documents, tokenizer)?;
        if let Some(message) = tokenized.note {
            Sink::event(sink, EventKind::Warning { message });
        }
        let found = if tokenized.was_cached { "hit" } else { "miss" };
        cached.insert(split.to_string(), found.into());
        Ok(tokenized.tokens)
    };

    let samples = Samples::of(&corpus, section, TRAIN)?;
    let tokens = tokens_of(TRAIN, &samples, sink)?;
    let train = Dataset::build(&samples.documents, &tokens, tokenizer, &options)?;
    fills_its_blocks(config, &train, sink)?;
    let trained: HashSet<String> = samples.documents.iter().map(|d| d.digest.clone()).collect();
    describe_samples(&samples, sink);
    let mut also_trained: BTreeSet<String> =
        samples::overlap(&corpus, section)?.into_iter().collect();
    describe_packing(config, &train, sink);

    let split = &config.eval.split;
    let (held_out, held_out_documents) = match config.evaluates() {
        false => (None, Vec::new()),
        true => {
            let samples = Samples::of(&corpus, section, split)?;
            sink.fact("eval.split", json!({ "name": split, "documents": names(&samples) }));
            // By content: a copy under another name was trained on too.
            let copies = samples.documents.iter().filter(|d| trained.contains(&d.digest));
            also_trained.extend(copies.map(|d| d.name.clone()));
            let mut tokens = tokens_of(split, &samples, sink)?;
            let held_out = Dataset::build(&samples.documents, &tokens, tokenizer, &options)?;
            if let Some(bos) = tokenizer.bos_id().filter(|_| section.add_bos) {
                tokens.iter_mut().for_each(|document| document.insert(0, bos));
            }
            check_context_lengths(config, &tokens)?;
            (Some(held_out), tokens)
        }
    };
    sink.fact("data.held_out_also_trained_on", json!(also_trained));
    sink.fact("data.cache", cached);
    Ok(Data { train: Arc::new(train), held_out, held_out_documents })
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

/// # Errors
///
/// When no held-out document reaches the shortest context length: after training would be late to say so.
fn check_context_lengths(config: &RunConfig, held_out: &[Vec<u32>]) -> Result<()> {
    let (longest, split) = (held_out.iter().map(Vec::len).max().unwrap_or(0), &config.eval.split);
    if let Some(&shortest) = config.eval.context_lengths.first().filter(|&&w| w > longest) {
        bail!(
            "eval.context_lengths[0]: expected at most {longest} tokens, which the longest document of `{split}` has, found \
             `{shortest}`\n  help: evaluate shorter lengths, or hold out a longer document"
        );
    }
    Ok(())
}

fn names(samples: &Samples) -> Vec<&str> {
    samples.documents.iter().map(|document| document.name.as_str()).collect()
}

/// Which documents are trained on, and what was cut off them.
fn describe_samples(samples: &Samples, sink: &mut impl Sink) {
    sink.fact("data.splits", json!({ TRAIN: names(samples) }));
    let first = names(samples).first().copied();
    sink.fact("data.sample_by", json!({ "documents": samples.of, "first": first }));
    sink.fact(
        "data.select",
        json!({ "documents": samples.documents.len(), "of": samples.of, "first": first }),
    );
    sink.fact(
        "data.truncate_at",
        json!({ "documents": samples.documents_cut, "bytes": samples.bytes_cut }),
    );
}

/// The blocks as they came out: what `train.sequence_length` and the rest of `data` became.
fn describe_packing(config: &RunConfig, train: &Dataset, sink: &mut impl Sink) {
    let report = &train.report;
    let section = &config.data;
    sink.fact(
        "train.sequence_length",
        json!({
            "blocks": report.blocks, "min": report.min, "median": report.median, "max": report.max,
            "share_full": report.share_full,
        }),
    );
    let shape = json!({ "blocks": report.blocks, "segments": train.blocks.iter().map(|b| b.segments.len()).sum::<usize>() });
    sink.fact("data.packing", json!({ "strategy": section.packing, "result": shape }));
    sink.fact("data.min_length", json!({ "dropped_tokens": report.tokens_dropped, "shortest_block": report.min, "asked": section.min_length }));
    sink.fact(
        "data.max_document_tokens",
        json!({ "longest": report.longest_document, "dropped_documents": report.documents_dropped }),
    );
    let overlap = json!({ "min": report.overlap_min, "max": report.overlap_max });
    sink.fact(
        "data.stride",
        json!({ "repeated_tokens": report.tokens_repeated, "overlap": overlap }),
    );
    sink.fact(
        "data.overflow",
        json!({ "continued": report.continued, "dropped_tokens": report.tokens_dropped }),
    );
    sink.fact(
        "data.continuation",
        json!({ "extra_bos": report.extra_bos, "continued": report.continued }),
    );
    sink.fact(
        "data.pack_batch_documents",
        json!({ "batches": report.batches, "blocks": report.blocks }),
    );
    // In which order the blocks are, whatever order a run then draws them in.
    let order = order_digest(train);
    sink.fact("data.shuffle_blocks", order.as_str());
    sink.fact("data.shuffle_seed", order);
    // The tokens tell whether documents really begin and end with the special ones.
    let first = train.blocks.first().and_then(|block| block.tokens.first());
    sink.fact("data.add_bos", json!({ "first_token": first, "tokens": report.tokens_packed }));
    sink.fact("data.add_eos", json!({ "tokens": report.tokens_packed }));
    sink.fact("data.documents", report.documents);
}

/// A hash of what each block begins with: 16 hexadecimal digits.
fn order_digest(dataset: &Dataset) -> String {
    let mut hasher = blake3::Hasher::new();
    for block in &dataset.blocks {
        let Segment { document, document_offset, .. } = block.segments[0];
        hasher.update(&document.to_le_bytes());
        hasher.update(&(document_offset as u64).to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_string()
}
