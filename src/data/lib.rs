//! Documents -> tokens -> packed blocks -> batches, in host memory. No tensors, no network.
//!
//! A corpus becomes training input like this:
//!
//! 1. [`corpus::Corpus::open`] reads a folder, a glob or an archive into files; [`corpus::Corpus::split`] picks those
//!    of one split.
//! 2. [`samples::Samples::of`] makes documents of them: whole files, lines or paragraphs, those that are selected, cut where
//!    the configuration says. [`samples::overlap`] names the held-out ones that are trained on all the same.
//! 3. [`tokenizer::Tokenizer::from_spec`] loads a tokenizer: a `tokenizer.json`, the one inside a GGUF file, or plain bytes;
//!    [`cache::Cache::tokenize`] runs it on all cores, or finds what it gave the last time.
//! 4. [`dataset::Dataset::build`] lays the tokens out in blocks ([`packing::pack`]), with a [`packing::PackReport`] of what
//!    was really made: block lengths, and every token that was dropped.
//! 5. [`dataset::Batches`] yields shuffled micro-batches without end, and can be stopped and resumed at any block.
//!
//! [`model_files`] knows the files that a model is read from, and whether they were touched; nothing of what they hold.
//! [`gguf`] reads the container that quantized checkpoints come in: for its tokenizer here, for its weights in the engine.
//!
//! What is promised of the tokens: text is encoded whole (or cut only where that provably changes nothing), every token
//! is in exactly one block or counted as dropped, and a block knows which part of which document it holds.

pub mod cache;
pub mod corpus;
pub mod dataset;
pub mod gguf;
pub mod model_files;
pub mod packing;
pub mod samples;
pub mod tokenizer;
