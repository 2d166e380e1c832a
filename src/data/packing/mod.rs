//! Lays token documents out in blocks of at most `max_length` tokens, and reports what became of every token.
//!
//! A document is packed as its *marked sequence*: BOS once before its tokens and EOS once after them, where asked for. A
//! block is a row of *segments*, each one piece of one marked sequence; segments of one block do not attend to each other
//! and count positions from 0. A document that is continued in a later block continues there without another BOS
//! ([`Continuation::Seamless`]) or behind one ([`Continuation::Restarted`], as the tutorial has it).
//!
//! Users of other block packers will miss a few things on purpose: no BOS stands beside another, there is no block of BOS
//! or EOS alone, no block that only repeats tokens of the one before, every segment (also of a continued document) says
//! where it starts, and nothing is dropped without being counted.
//!
//! Which pieces share a block is decided in `layout`; [`mod@shuffle`] is Python's.

mod layout;
pub mod shuffle;

use anyhow::{Result, ensure};
use fathom_spec::config::{Continuation, DataSection, Packing};
use layout::Piece;
use serde::{Deserialize, Serialize};

/// A sequence of one token predicts nothing, so it is no block.
const MIN_BLOCK_LENGTH: usize = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackOptions {
    /// The most tokens in a block.
    pub max_length: usize,
    pub strategy: Packing,
    /// Marked sequences and blocks of fewer tokens are dropped. Blocks of one token always are.
    pub min_length: usize,
    /// Marked sequences of more tokens are dropped.
    pub max_document_tokens: Option<usize>,
    /// Tokens that a continued document repeats from its end in the block before: the overlap.
    pub stride: usize,
    /// Whether a document goes on in another block where it does not fit in one; if not, its rest is dropped.
    pub overflow: bool,
    pub continuation: Continuation,
    /// Blocks are laid out of so many documents at a time; all at once where not given.
    pub batch_documents: Option<usize>,
    /// Shuffles the blocks of each batch as Python's `random.Random(seed).shuffle` does.
    pub shuffle_seed: Option<u64>,
    /// Whether BOS begins each document, where the tokenizer has one.
    pub add_bos: bool,
    /// Whether EOS ends each document, where the tokenizer has one.
    pub add_eos: bool,
}

impl PackOptions {
    /// What a configuration asks for, with blocks of at most `max_length` tokens.
    pub fn of(section: &DataSection, max_length: usize) -> PackOptions {
        PackOptions {
            max_length,
            strategy: section.packing,
            min_length: section.min_length,
            max_document_tokens: section.max_document_tokens,
            stride: section.stride,
            overflow: section.overflow,
            continuation: section.continuation,
            batch_documents: section.pack_batch_documents,
            shuffle_seed: section.shuffle_seed.filter(|_| section.shuffle_blocks),
            add_bos: section.add_bos,
            add_eos: section.add_eos,
        }
    }

    fn check(&self) -> Result<()> {
        let &PackOptions { max_length, min_length, stride, .. } = self;
        ensure!(
            max_length >= MIN_BLOCK_LENGTH,
            "max_length: expected at least {MIN_BLOCK_LENGTH}, found {max_length}"
        );
        ensure!(
            min_length <= max_length,
            "min_length: expected at most max_length ({max_length}), found {min_length}"
        );
        match self.continuation {
            Continuation::Seamless => ensure!(
                stride < max_length,
                "stride: expected less than max_length ({max_length}), found {stride}"
            ),
            // BOS, the overlap, and something new.
            Continuation::Restarted => ensure!(
                max_length >= 3 && stride + 2 <= max_length,
                "stride: expected at most max_length ({max_length}) less 2, and blocks of at least 3 tokens, found {stride}"
            ),
        }
        ensure!(self.batch_documents != Some(0), "batch_documents: expected 1 or more, found 0");
        Ok(())
    }
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            max_length: 4096,
            strategy: Packing::Greedy,
            min_length: 1,
            max_document_tokens: None,
            stride: 0,
            overflow: true,
            continuation: Continuation::Seamless,
            batch_documents: None,
            shuffle_seed: None,
            add_bos: true,
            add_eos: true,
        }
    }
}

/// The ids that mark documents, where the tokenizer has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Markers {
    pub bos_id: Option<u32>,
    pub eos_id: Option<u32>,
}

/// One training sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub tokens: Vec<u32>,
    /// In the order of `tokens`, which they cover exactly.
    pub segments: Vec<Segment>,
}

/// A piece of one document in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index of the document in what was packed.
    pub document: u32,
    /// Where it begins in its block, in tokens.
    pub start: usize,
    /// In tokens, with the BOS that `has_extra_bos` tells of.
    pub length: usize,
    /// Where it begins in the document's marked sequence, in tokens; 0 is its BOS where there is one.
    pub document_offset: usize,
    /// Whether it begins with a BOS that is not of the marked sequence: a continued document, restarted.
    pub has_extra_bos: bool,
}

impl Segment {
    /// How many tokens it has of the document's marked sequence.
    pub fn document_tokens(&self) -> usize {
        self.length - usize::from(self.has_extra_bos)
    }
}

/// What packing made of its documents, counted from the blocks: the realized lengths and every token's fate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PackReport {
    /// Documents given.
    pub documents: usize,
    /// Of these, how many have no token in any block: empty, too short or too long.
    pub documents_dropped: usize,
    /// Tokens of the longest marked sequence of which anything is in a block.
    pub longest_document: usize,
    /// Tokens of all marked sequences, BOS and EOS included. `tokens_in = tokens_packed + tokens_dropped`.
    pub tokens_in: usize,
    /// Of these, in a block, each counted once.
    pub tokens_packed: usize,
    /// In a sequence or block below `min_length`, in a sequence above `max_document_tokens`, or beyond the first block
    /// without `overflow`.
    pub tokens_dropped: usize,
    /// Tokens that stand in a second block because of `stride`. Blocks hold `tokens_packed + tokens_repeated + extra_bos`.
    pub tokens_repeated: usize,
    /// BOS before pieces that continue a document.
    pub extra_bos: usize,
    /// Pieces that continue a document.
    pub continued: usize,
    /// The fewest and the most tokens that such a piece repeats; 0 where there is none.
    pub overlap_min: usize,
    pub overlap_max: usize,
    /// How many times documents were laid out on their own.
    pub batches: usize,
    pub blocks: usize,
    /// Tokens of the shortest block.
    pub min: usize,
    /// Tokens of the middle block, the lower of the two for an even count.
    pub median: usize,
    /// Tokens of the longest block.
    pub max: usize,
    /// The share of blocks, from 0 to 1, that have exactly `max_length` tokens.
    pub share_full: f64,
    /// What really marks the documents; none where it is not asked for, or the tokenizer has none.
    pub bos_id: Option<u32>,
    pub eos_id: Option<u32>,
}

/// Packs `documents`, the tokens of each without BOS and EOS.
///
/// Costs one copy of the tokens, and `O(n log n)` of `n` documents for the strategies that sort.
///
/// # Errors
///
/// When a length is impossible: `max_length` below 2 (3 where documents are restarted), a `stride` that leaves a block no
/// room for anything new, a `min_length` above `max_length`, or batches of no documents.
pub fn pack(
    documents: &[Vec<u32>],
    options: &PackOptions,
    markers: Markers,
) -> Result<(Vec<Block>, PackReport)> {
    options.check()?;
    let bos = markers.bos_id.filter(|_| options.add_bos);
    let eos = markers.eos_id.filter(|_| options.add_eos);
    let mark = |tokens: &Vec<u32>| -> Vec<u32> {
        bos.into_iter().chain(tokens.iter().copied()).chain(eos).collect()
    };
    let nothing = Vec::new();
    let sequences: Vec<Vec<u32>> =
        documents.iter().map(|d| if d.is_empty() { nothing.clone() } else { mark(d) }).collect();
    let least = options.min_length.max(1);
    let most = options.max_document_tokens.unwrap_or(usize::MAX);

    let mut blocks: Vec<Vec<Piece>> = Vec::new();
    let all = sequences.len().max(1);
    let batch_documents = options.batch_documents.unwrap_or(all).min(all);
    let batches = sequences.chunks(batch_documents);
    let num_batches = batches.len();
    for (batch, sequences) in batches.enumerate() {
        // What is too short or too long is dropped here by its absence.
        let lengths: Vec<(usize, usize)> = sequences
            .iter()
            .enumerate()
            .map(|(i, sequence)| (batch * batch_documents + i, sequence.len()))
            .filter(|(_, length)| (least..=most).contains(length))
            .collect();
        let mut of_batch = layout::lay_out(&lengths, options, bos.is_some());
        of_batch
            .retain(|block| layout::length_of(block) >= options.min_length.max(MIN_BLOCK_LENGTH));
        if let Some(seed) = options.shuffle_seed {
            shuffle::shuffle(&mut of_batch, seed);
        }
        blocks.extend(of_batch);
    }

    let blocks: Vec<Block> = blocks.iter().map(|pieces| fill(&sequences, pieces, bos)).collect();
    let report = PackReport {
        batches: num_batches,
        bos_id: bos,
        eos_id: eos,
        ..count(&sequences, &blocks, options.max_length)
    };
    Ok((blocks, report))
}

fn fill(sequences: &[Vec<u32>], pieces: &[Piece], bos: Option<u32>) -> Block {
    let length = layout::length_of(pieces);
    let mut block = Block { tokens: Vec::with_capacity(length), segments: Vec::new() };
    for piece in pieces {
        block.segments.push(Segment {
            document: piece.document as u32,
            start: block.tokens.len(),
            length: piece.block_length(),
            document_offset: piece.offset,
            has_extra_bos: piece.has_extra_bos,
        });
        block.tokens.extend(bos.filter(|_| piece.has_extra_bos));
        block.tokens.extend(&sequences[piece.document][piece.offset..piece.offset + piece.length]);
    }
    block
}

/// Counts from the blocks alone, so that what is reported is what there is.
fn count(sequences: &[Vec<u32>], blocks: &[Block], max_length: usize) -> PackReport {
    let mut segments: Vec<&Segment> = blocks.iter().flat_map(|block| &block.segments).collect();
    segments.sort_unstable_by_key(|s| (s.document, s.document_offset, s.length));
    let mut report = PackReport {
        documents: sequences.len(),
        documents_dropped: sequences.len(),
        tokens_in: sequences.iter().map(Vec::len).sum(),
        overlap_min: usize::MAX,
        ..PackReport::default()
    };
    // The document that the last segment was of, and how far of it is in a block.
    let mut covered: Option<(u32, usize)> = None;
    for segment in segments {
        let (offset, tokens) = (segment.document_offset, segment.document_tokens());
        let before = covered.filter(|(document, _)| *document == segment.document);
        if before.is_none() {
            report.documents_dropped -= 1;
            let length = sequences[segment.document as usize].len();
            report.longest_document = report.longest_document.max(length);
        }
        let covered_to = before.map_or(0, |(_, end)| end);
        let repeated = covered_to.saturating_sub(offset).min(tokens);
        if before.is_some() {
            report.continued += 1;
            report.overlap_min = report.overlap_min.min(repeated);
            report.overlap_max = report.overlap_max.max(repeated);
        }
        report.tokens_repeated += repeated;
        report.tokens_packed += tokens - repeated;
        report.extra_bos += usize::from(segment.has_extra_bos);
        covered = Some((segment.document, covered_to.max(offset + tokens)));
    }
    report.tokens_dropped = report.tokens_in - report.tokens_packed;
    report.overlap_min = report.overlap_min.min(report.overlap_max);

    let mut lengths: Vec<usize> = blocks.iter().map(|block| block.tokens.len()).collect();
    lengths.sort_unstable();
    let num_full = lengths.iter().filter(|&&length| length == max_length).count();
    report.blocks = lengths.len();
    report.min = lengths.first().copied().unwrap_or(0);
    report.median = lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    report.max = lengths.last().copied().unwrap_or(0);
    report.share_full = num_full as f64 / lengths.len().max(1) as f64;
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKERS: Markers = Markers { bos_id: Some(1), eos_id: Some(2) };

    /// Document `d` is the tokens `100 d, 100 d + 1, ...`.
    fn documents(lengths: &[usize]) -> Vec<Vec<u32>> {
        let document =
            |(d, &n): (usize, &usize)| (0..n as u32).map(|i| 100 * (d as u32 + 1) + i).collect();
        lengths.iter().enumerate().map(document).collect()
    }

    fn packed(lengths: &[usize], options: PackOptions) -> (Vec<Vec<u32>>, PackReport) {
        let (blocks, report) = pack(&documents(lengths), &options, MARKERS).unwrap();
        (blocks.into_iter().map(|b| b.tokens).collect(), report)
    }

    fn options(max_length: usize, strategy: Packing) -> PackOptions {
        PackOptions { max_length, strategy, ..PackOptions::default() }
    }

    #[test]
    fn greedy_fills_every_block_and_marks_each_document_once() {
        let (blocks, report) = packed(&[10, 3, 1], options(8, Packing::Greedy));
        assert_eq!(
            blocks,
            [
                vec![1, 100, 101, 102, 103, 104, 105, 106],
                vec![107, 108, 109, 2, 1, 200, 201, 202],
                vec![2, 1, 300, 2],
            ]
        );
        let expected = PackReport {
            documents: 3,
            tokens_in: 20,
            tokens_packed: 20,
            longest_document: 12,
            continued: 2,
            batches: 1,
            blocks: 3,
            min: 4,
            median: 8,
            max: 8,
            share_full: 2.0 / 3.0,
            bos_id: Some(1),
            eos_id: Some(2),
            ..PackReport::default()
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn segments_say_which_part_of_which_document_they_are() {
        let (blocks, _) =
            pack(&documents(&[10, 3]), &options(8, Packing::Greedy), MARKERS).unwrap();
        let segment = |document, start, length, document_offset| Segment {
            document,
            start,
            length,
            document_offset,
            has_extra_bos: false,
        };
        assert_eq!(blocks[0].segments, [segment(0, 0, 8, 0)]);
        assert_eq!(blocks[1].segments, [segment(0, 0, 4, 8), segment(1, 4, 4, 0)]);
    }

    #[test]
    fn a_continued_document_repeats_stride_tokens() {
        let with_stride = |strategy| PackOptions { stride: 2, ..options(8, strategy) };
        let (blocks, report) = packed(&[10, 3], with_stride(Packing::Unpacked));
        assert_eq!(
            blocks,
            [
                vec![1, 100, 101, 102, 103, 104, 105, 106],
                vec![105, 106, 107, 108, 109, 2],
                vec![1, 200, 201, 202, 2],
            ]
        );
        assert_eq!((report.tokens_packed, report.tokens_repeated), (17, 2));
        // The document ends with the block: no further block of repeated tokens alone.
        let (blocks, _) = packed(&[6], with_stride(Packing::Unpacked));
        assert_eq!(blocks.len(), 1);
        // Three tokens of the second document fit in the second block; the third repeats two of them.
        let (blocks, _) = packed(&[9, 5], with_stride(Packing::Greedy));
        assert_eq!(blocks[1], [105, 106, 107, 108, 2, 1, 200, 201]);
        assert_eq!(blocks[2], [200, 201, 202, 203, 204, 2]);
    }

    #[test]
    fn what_is_too_short_or_too_long_is_dropped_and_counted() {
        // EOS alone is no block.
        let (blocks, report) = packed(&[7], options(8, Packing::Unpacked));
        assert_eq!(blocks, [[1, 100, 101, 102, 103, 104, 105, 106]]);
        assert_eq!((report.tokens_in, report.tokens_dropped), (9, 1));
        // Nothing of an empty document; a short document goes, and a short last block.
        let min = PackOptions { min_length: 5, ..options(8, Packing::Greedy) };
        let (blocks, report) = packed(&[10, 0, 2], min);
        assert_eq!(blocks.len(), 1);
        assert_eq!((report.documents, report.documents_dropped), (3, 2));
        assert_eq!((report.tokens_in, report.tokens_packed, report.tokens_dropped), (16, 8, 8));
        for strategy in [Packing::Greedy, Packing::Unpacked, Packing::BestFit] {
            let cut = PackOptions { overflow: false, ..options(8, strategy) };
            let (blocks, report) = packed(&[25], cut);
            assert_eq!(blocks, [[1, 100, 101, 102, 103, 104, 105, 106]]);
            assert_eq!(report.tokens_dropped, 19);
        }
        let (blocks, report) = packed(&[], options(8, Packing::BestFit));
        assert!(blocks.is_empty());
        assert_eq!(report.share_full, 0.0);
    }

    #[test]
    fn best_fit_takes_the_tightest_block_and_first_fit_the_first() {
        let check = |lengths: &[usize], strategy, expected: &[&[usize]]| {
            let options = PackOptions { add_bos: false, add_eos: false, ..options(20, strategy) };
            let (blocks, _) = pack(&documents(lengths), &options, MARKERS).unwrap();
            let found: Vec<Vec<usize>> =
                blocks.iter().map(|b| b.segments.iter().map(|s| s.length).collect()).collect();
            assert_eq!(found, expected);
        };
        // 14, 12 and 7 leave 6 and 1: the last 1 fits both.
        check(&[1, 12, 7, 14], Packing::BestFit, &[&[14], &[12, 7, 1]]);
        check(&[1, 12, 7, 14], Packing::FirstFit, &[&[14, 1], &[12, 7]]);
        // Equal space: the older block. Long documents are full blocks and a rest.
        check(&[12, 12, 5], Packing::BestFit, &[&[12, 5], &[12]]);
        check(&[45, 15], Packing::BestFit, &[&[20], &[20], &[15, 5]]);
    }

    #[test]
    fn a_hundred_thousand_documents_pack_at_once() {
        let documents: Vec<_> = (0..100_000).map(|i| vec![7; 1 + i * 7919 % 30]).collect();
        for strategy in [Packing::BestFit, Packing::FirstFit] {
            let (_, report) = pack(&documents, &options(41, strategy), MARKERS).unwrap();
            assert_eq!(report.tokens_dropped, 0);
            assert!(report.share_full > 0.9, "{}", report.share_full);
        }
    }

    #[test]
    fn impossible_options_are_errors() {
        let check = |options: PackOptions, expected: &str| {
            let error = pack(&[], &options, MARKERS).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        let good = options(8, Packing::Greedy);
        check(
            PackOptions { max_length: 1, ..good.clone() },
            "max_length: expected at least 2, found 1",
        );
        check(
            PackOptions { stride: 8, ..good.clone() },
            "stride: expected less than max_length (8), found 8",
        );
        check(
            PackOptions { min_length: 9, ..good.clone() },
            "min_length: expected at most max_length (8), found 9",
        );
        check(
            PackOptions { batch_documents: Some(0), ..good },
            "batch_documents: expected 1 or more, found 0",
        );
        check(
            PackOptions { stride: 7, ..restarted(8, Packing::Greedy) },
            "stride: expected at most max_length (8) less 2, and blocks of at least 3 tokens, found 7",
        );
    }

    fn restarted(max_length: usize, strategy: Packing) -> PackOptions {
        PackOptions { continuation: Continuation::Restarted, ..options(max_length, strategy) }
    }

    #[test]
    fn a_restarted_document_goes_on_behind_another_bos() {
        let (blocks, report) = packed(&[10, 3], restarted(8, Packing::Unpacked));
        assert_eq!(
            blocks,
            [
                vec![1, 100, 101, 102, 103, 104, 105, 106],
                vec![1, 107, 108, 109, 2],
                vec![1, 200, 201, 202, 2],
            ]
        );
        assert_eq!((report.tokens_in, report.tokens_packed, report.extra_bos), (17, 17, 1));
        assert_eq!((report.continued, report.overlap_max), (1, 0));
        let stride = PackOptions { stride: 2, ..restarted(8, Packing::Unpacked) };
        let (blocks, report) = packed(&[10], stride);
        assert_eq!(blocks[1], [1, 105, 106, 107, 108, 109, 2]);
        assert_eq!((report.overlap_min, report.overlap_max, report.tokens_repeated), (2, 2, 2));
        // Without a BOS there is none to repeat.
        let without = PackOptions { add_bos: false, ..restarted(8, Packing::Unpacked) };
        let (blocks, report) = packed(&[10], without);
        assert_eq!(blocks, [vec![100, 101, 102, 103, 104, 105, 106, 107], vec![108, 109, 2]]);
        assert_eq!(report.extra_bos, 0);
    }

    #[test]
    fn a_restarted_document_never_goes_on_with_a_single_token() {
        // Nine tokens: EOS takes the last one along.
        for strategy in [Packing::Unpacked, Packing::BestFit, Packing::FirstFit, Packing::Greedy] {
            let (blocks, report) = packed(&[7], restarted(8, strategy));
            assert_eq!(blocks, [vec![1, 100, 101, 102, 103, 104, 105], vec![1, 106, 2]]);
            assert_eq!(report.tokens_dropped, 0);
        }
        // Nor does one begin with its BOS alone: in the first block one token stays free.
        let (blocks, _) = packed(&[5, 4], restarted(8, Packing::Greedy));
        assert_eq!(blocks, [vec![1, 100, 101, 102, 103, 104, 2], vec![1, 200, 201, 202, 203, 2]]);
        // Two are free, but of three tokens one would go on alone.
        let (blocks, _) = packed(&[4, 1], restarted(8, Packing::Greedy));
        assert_eq!(blocks, [vec![1, 100, 101, 102, 103, 2], vec![1, 200, 2]]);
        // And where less than min_length is free, none begins.
        let min = PackOptions { min_length: 4, ..restarted(10, Packing::Greedy) };
        assert_eq!(packed(&[5, 4], min.clone()).0.len(), 2);
        assert_eq!(packed(&[4, 4], min).0[0], [1, 100, 101, 102, 103, 2, 1, 200, 201, 202]);
    }

    #[test]
    fn batches_are_packed_and_shuffled_on_their_own() {
        let batched = PackOptions { batch_documents: Some(2), ..options(100, Packing::Greedy) };
        let (blocks, report) = pack(&documents(&[3, 4, 5, 6, 7]), &batched, MARKERS).unwrap();
        let held: Vec<Vec<u32>> =
            blocks.iter().map(|b| b.segments.iter().map(|s| s.document).collect()).collect();
        assert_eq!(held, [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!((report.batches, report.blocks), (3, 3));

        let order = |options: PackOptions| -> Vec<u32> {
            let (blocks, _) = pack(&documents(&[3; 8]), &options, MARKERS).unwrap();
            blocks.iter().map(|block| block.segments[0].document).collect()
        };
        let shuffled = PackOptions { shuffle_seed: Some(42), ..options(8, Packing::Unpacked) };
        assert_eq!(order(shuffled.clone()), [3, 4, 6, 7, 2, 5, 0, 1]);
        let in_batches = PackOptions { batch_documents: Some(4), ..shuffled };
        assert_eq!(order(in_batches), [2, 1, 3, 0, 6, 5, 7, 4]);
    }

    #[test]
    fn documents_that_are_too_long_are_dropped() {
        let most = PackOptions { max_document_tokens: Some(5), ..options(8, Packing::Unpacked) };
        let (blocks, report) = packed(&[3, 4], most);
        assert_eq!(blocks, [[1, 100, 101, 102, 2]]);
        assert_eq!((report.documents_dropped, report.tokens_dropped), (1, 6));
        assert_eq!(report.longest_document, 5);
    }
}
