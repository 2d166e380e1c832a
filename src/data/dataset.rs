//! Packed blocks as training input: tokenized and packed once, then drawn as shuffled micro-batches without end.

use crate::corpus::Document;
use crate::packing::{Block, Markers, PackOptions, PackReport, Segment, pack};
use crate::tokenizer::Tokenizer;
use anyhow::{Result, ensure};
use fathom_spec::config::Packing;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The label of a position that predicts nothing: PyTorch's `ignore_index`.
pub const IGNORE_INDEX: i64 = -100;

/// Blocks of tokens, in host memory: 4 bytes a token.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub blocks: Vec<Block>,
    pub report: PackReport,
    /// By the document index of [`Segment`].
    pub document_names: Vec<String>,
}

/// Some blocks as one stream of tokens, without padding. `T` is the number of tokens of all of them.
///
/// Segments, of one block or of several, do not attend to each other: attention is causal within each of
/// `segment_lengths`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub input_ids: Vec<i64>, // [T]
    /// The next token of the same segment, [`IGNORE_INDEX`] at each segment's last token.
    pub labels: Vec<i64>, // [T]
    /// From 0 in each segment.
    pub positions: Vec<i64>, // [T]
    /// In tokens; the sum is `T`.
    pub segment_lengths: Vec<usize>,
    /// Which blocks of the dataset these are.
    pub block_indices: Vec<usize>,
    /// How many labels are not [`IGNORE_INDEX`].
    pub loss_tokens: usize,
}

/// How far the data has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataPosition {
    /// Full passes over the blocks.
    pub epoch: u64,
    /// Blocks drawn in this pass.
    pub index: usize,
}

impl Dataset {
    /// Packs `documents`, whose tokens are `tokens`.
    ///
    /// Where BOS or EOS is asked for and the tokenizer has none, documents go without it; the report says what was used.
    ///
    /// # Errors
    ///
    /// When the options are impossible ([`pack`]), or no block comes of the documents.
    pub fn build(
        documents: &[Document],
        tokens: &[Vec<u32>],
        tokenizer: &Tokenizer,
        options: &PackOptions,
    ) -> Result<Dataset> {
        let markers = Markers { bos_id: tokenizer.bos_id(), eos_id: tokenizer.eos_id() };
        let (blocks, report) = pack(tokens, options, markers)?;
        ensure!(
            !blocks.is_empty(),
            "dataset: expected at least one block, found none in {} documents of {} tokens\n  help: documents and blocks \
             have at least min_length tokens, which is {}{}",
            report.documents,
            report.tokens_in,
            options.min_length,
            options.max_document_tokens.map_or(String::new(), |most| format!(
                ", and documents at most max_document_tokens, which is {most}"
            ))
        );
        let document_names = documents.iter().map(|d| d.name.clone()).collect();
        Ok(Dataset { blocks, report, document_names })
    }

    /// `num_blocks` documents of `sequence_length` uniformly random ids below `vocab_size`, one a block: what measures
    /// memory and speed, but teaches nothing.
    ///
    /// # Panics
    ///
    /// When `vocab_size` is 0 or `sequence_length` is below 2.
    pub fn random(
        vocab_size: usize,
        sequence_length: usize,
        num_blocks: usize,
        seed: u64,
    ) -> Dataset {
        assert!(vocab_size > 0, "expected a vocabulary, found vocab_size 0");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut document = || -> Vec<u32> {
            (0..sequence_length).map(|_| below(vocab_size as u64, &mut rng) as u32).collect()
        };
        let documents: Vec<_> = (0..num_blocks).map(|_| document()).collect();
        let options = PackOptions {
            max_length: sequence_length,
            strategy: Packing::Unpacked,
            ..PackOptions::default()
        };
        let (blocks, report) = pack(&documents, &options, Markers::default())
            .expect("a sequence length of at least 2 is possible");
        let document_names = (0..num_blocks).map(|i| format!("random {i}")).collect();
        Dataset { blocks, report, document_names }
    }

    /// The given blocks as one batch, in the given order.
    ///
    /// # Panics
    ///
    /// When there is no block of such an index.
    pub fn batch(&self, block_indices: &[usize]) -> Batch {
        let num_tokens = block_indices.iter().map(|&i| self.blocks[i].tokens.len()).sum();
        let mut batch = Batch {
            input_ids: Vec::with_capacity(num_tokens),
            labels: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            segment_lengths: Vec::new(),
            block_indices: block_indices.to_vec(),
            loss_tokens: 0,
        };
        for &i in block_indices {
            let block = &self.blocks[i];
            for &Segment { start, length, .. } in &block.segments {
                let tokens = block.tokens[start..start + length].iter().map(|&id| i64::from(id));
                batch.input_ids.extend(tokens.clone());
                batch.labels.extend(tokens.skip(1));
                batch.labels.push(IGNORE_INDEX);
                batch.positions.extend(0..length as i64);
                batch.segment_lengths.push(length);
                batch.loss_tokens += length - 1;
            }
        }
        batch
    }

    /// Tokens of each block, for histograms.
    pub fn block_lengths(&self) -> Vec<usize> {
        self.blocks.iter().map(|block| block.tokens.len()).collect()
    }
}

/// Draws micro-batches for ever: every block once an epoch, in an order that seed and epoch decide.
///
/// An epoch that does not divide into micro-batches lends its last one blocks of the next, so each has as many blocks as
/// any other and none is left out.
pub struct Batches {
    dataset: Arc<Dataset>,
    micro_batch_size: usize,
    seed: u64,
    position: DataPosition,
    /// The blocks of the present epoch in the order in which they are drawn.
    order: Vec<usize>,
}

impl Batches {
    /// From the beginning of the first epoch.
    ///
    /// # Errors
    ///
    /// When the dataset has no blocks or `micro_batch_size` is 0.
    pub fn new(dataset: Arc<Dataset>, micro_batch_size: usize, seed: u64) -> Result<Batches> {
        ensure!(micro_batch_size > 0, "micro_batch_size: expected at least 1, found 0");
        ensure!(!dataset.blocks.is_empty(), "dataset: expected at least one block, found none");
        let order = epoch_order(dataset.blocks.len(), seed, 0);
        let position = DataPosition::default();
        Ok(Batches { dataset, micro_batch_size, seed, position, order })
    }

    /// What the next batch begins with; for a checkpoint.
    pub fn position(&self) -> DataPosition {
        self.position
    }

    /// Goes on from `position`, as if everything before it had been drawn.
    ///
    /// # Errors
    ///
    /// When `position` is not in this dataset: it was taken from another one.
    pub fn seek(&mut self, position: DataPosition) -> Result<()> {
        let num_blocks = self.order.len();
        ensure!(
            position.index <= num_blocks,
            "data position: expected a block index of at most {num_blocks}, found {}\n  help: the data or its packing is \
             not what it was when the position was saved",
            position.index
        );
        self.order = epoch_order(num_blocks, self.seed, position.epoch);
        self.position = position;
        Ok(())
    }

    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    fn next_block(&mut self) -> usize {
        if self.position.index == self.order.len() {
            self.position = DataPosition { epoch: self.position.epoch + 1, index: 0 };
            self.order = epoch_order(self.order.len(), self.seed, self.position.epoch);
        }
        self.position.index += 1;
        self.order[self.position.index - 1]
    }
}

/// Never ends.
impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let blocks: Vec<_> = (0..self.micro_batch_size).map(|_| self.next_block()).collect();
        Some(self.dataset.batch(&blocks))
    }
}

/// Fisher and Yates over one ChaCha8 stream an epoch. Spelled out, so that no library's next version changes an order.
fn epoch_order(num_blocks: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..num_blocks).collect();
    for i in (1..num_blocks).rev() {
        order.swap(i, below(i as u64 + 1, &mut rng) as usize);
    }
    order
}

/// A random number below `n`; even to within `n / 2^64`.
fn below(n: u64, rng: &mut ChaCha8Rng) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(documents: &[Document], options: &PackOptions) -> Result<Dataset> {
        let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
        let tokenizer = Tokenizer::bytes();
        Dataset::build(documents, &tokenizer.encode_batch(&texts)?, &tokenizer, options)
    }

    fn small() -> Dataset {
        let documents = [Document::new("a.txt", "abcdefgh"), Document::new("b.txt", "xy")];
        build(&documents, &PackOptions { max_length: 6, ..PackOptions::default() }).unwrap()
    }

    #[test]
    fn a_batch_is_one_stream_whose_segments_restart_positions_and_predict_only_themselves() {
        let dataset = small();
        assert_eq!(dataset.document_names, ["a.txt", "b.txt"]);
        assert_eq!(dataset.block_lengths(), [6, 6, 2]);
        let (bos, eos, no) = (256, 257, IGNORE_INDEX);
        let (x, y, f, g, h) = (120, 121, 102, 103, 104);
        let expected = Batch {
            input_ids: vec![y, eos, f, g, h, eos, bos, x],
            labels: vec![eos, no, g, h, eos, no, x, no],
            positions: vec![0, 1, 0, 1, 2, 3, 0, 1],
            segment_lengths: vec![2, 4, 2],
            block_indices: vec![2, 1],
            loss_tokens: 5,
        };
        assert_eq!(dataset.batch(&[2, 1]), expected);
    }

    #[test]
    fn resumed_is_uninterrupted() {
        let dataset = Arc::new(Dataset::random(50, 4, 7, 1));
        let batches = || Batches::new(dataset.clone(), 3, 9).unwrap();
        let whole: Vec<Batch> = batches().take(12).collect();
        for stop in 0..12 {
            let mut first = batches();
            first.by_ref().take(stop).for_each(drop);
            let saved = serde_json::to_string(&first.position()).unwrap();
            let mut second = batches();
            second.seek(serde_json::from_str(&saved).unwrap()).unwrap();
            assert_eq!(second.take(12 - stop).collect::<Vec<_>>(), whole[stop..]);
        }
        let error = batches().seek(DataPosition { epoch: 0, index: 8 }).unwrap_err().to_string();
        assert!(error.starts_with("data position: expected a block index of at most 7, found 8"));
    }

    #[test]
    fn every_epoch_has_every_block_once_in_another_order() {
        let dataset = Arc::new(Dataset::random(50, 4, 7, 1));
        let drawn: Vec<usize> =
            Batches::new(dataset, 3, 9).unwrap().take(7).flat_map(|b| b.block_indices).collect();
        let epochs: Vec<_> = drawn.chunks(7).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_ne!(epochs[0], epochs[1]);
        // A promise to checkpoints of earlier versions.
        assert_eq!(epoch_order(8, 42, 0), [4, 7, 0, 1, 3, 2, 6, 5]);
        assert_eq!(epoch_order(8, 42, 1), [6, 3, 7, 0, 4, 2, 1, 5]);
    }

    #[test]
    fn random_data_is_full_blocks_of_known_ids() {
        let dataset = Dataset::random(50, 128, 3, 1);
        assert_eq!((dataset.report.blocks, dataset.report.share_full), (3, 1.0));
        assert!(dataset.blocks.iter().flat_map(|b| &b.tokens).all(|&id| id < 50));
        assert_eq!(dataset.batch(&[1]).segment_lengths, [128]);
        assert_eq!(dataset.blocks, Dataset::random(50, 128, 3, 1).blocks);
        assert_ne!(dataset.blocks, Dataset::random(50, 128, 3, 2).blocks);
    }

    #[test]
    fn nothing_to_train_on_is_an_error() {
        let documents = [Document::new("a.txt", "abc")];
        let options =
            PackOptions { min_length: 10, strategy: Packing::Unpacked, ..PackOptions::default() };
        let error = build(&documents, &options).unwrap_err().to_string();
        let expected =
            "dataset: expected at least one block, found none in 1 documents of 5 tokens";
        assert!(error.starts_with(expected), "{error}");
    }
}
