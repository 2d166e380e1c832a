//! Lays token documents out in blocks of at most `max_length` tokens, and reports what became of every token.
//!
//! A document is packed as its *marked sequence*: BOS once before its tokens and EOS once after them, where asked for. A
//! block is a row of *segments*, each one piece of one marked sequence; segments of one block do not attend to each other
//! and count positions from 0. A document that is continued in a later block continues there without another BOS.
//!
//! Users of other block packers will miss a few things on purpose: there is no second BOS at the beginning of a block, no
//! block of BOS alone, no block that only repeats tokens of the one before, every segment (also of a continued document)
//! says where it starts, and nothing is dropped without being counted.

use anyhow::{Result, ensure};
use fathom_spec::config::Packing;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A sequence of one token predicts nothing, so it is no block.
const MIN_BLOCK_LENGTH: usize = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackOptions {
    /// The most tokens in a block.
    pub max_length: usize,
    pub strategy: Packing,
    /// Marked sequences and blocks of fewer tokens are dropped. Blocks of one token always are.
    pub min_length: usize,
    /// Tokens that a continued document repeats from its end in the block before: the overlap.
    pub stride: usize,
    /// Whether a document goes on in another block where it does not fit in one; if not, its rest is dropped.
    pub overflow: bool,
    /// Whether BOS begins each document, where the tokenizer has one.
    pub add_bos: bool,
    /// Whether EOS ends each document, where the tokenizer has one.
    pub add_eos: bool,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            max_length: 4096,
            strategy: Packing::Greedy,
            min_length: 1,
            stride: 0,
            overflow: true,
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
    /// In tokens.
    pub length: usize,
    /// Where it begins in the document's marked sequence, in tokens; 0 is its BOS where there is one.
    pub document_offset: usize,
}

/// What packing made of its documents: the realized lengths and every token's fate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PackReport {
    /// Documents given.
    pub documents: usize,
    /// Of these, how many have no token in any block: empty or too short.
    pub documents_dropped: usize,
    /// Tokens of all marked sequences, BOS and EOS included. `tokens_in = tokens_packed + tokens_dropped`.
    pub tokens_in: usize,
    /// Of these, in a block, each counted once.
    pub tokens_packed: usize,
    /// In a sequence or block below `min_length`, or beyond the first block without `overflow`.
    pub tokens_dropped: usize,
    /// Tokens that stand in a second block because of `stride`. Blocks hold `tokens_packed + tokens_repeated` tokens.
    pub tokens_repeated: usize,
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
/// When `max_length` is below 2, when `stride` is not smaller than `max_length`, or when `min_length` is greater than it.
pub fn pack(
    documents: &[Vec<u32>],
    options: &PackOptions,
    markers: Markers,
) -> Result<(Vec<Block>, PackReport)> {
    let PackOptions { max_length, min_length, stride, .. } = *options;
    ensure!(
        max_length >= MIN_BLOCK_LENGTH,
        "max_length: expected at least {MIN_BLOCK_LENGTH}, found {max_length}"
    );
    ensure!(
        stride < max_length,
        "stride: expected less than max_length ({max_length}), found {stride}"
    );
    ensure!(
        min_length <= max_length,
        "min_length: expected at most max_length ({max_length}), found {min_length}"
    );

    let bos = markers.bos_id.filter(|_| options.add_bos);
    let eos = markers.eos_id.filter(|_| options.add_eos);
    let mark = |tokens: &Vec<u32>| -> Vec<u32> {
        bos.into_iter().chain(tokens.iter().copied()).chain(eos).collect()
    };
    let nothing = Vec::new();
    let sequences: Vec<Vec<u32>> =
        documents.iter().map(|d| if d.is_empty() { nothing.clone() } else { mark(d) }).collect();
    // What is too short is dropped here by its absence from `chosen`.
    let chosen: Vec<usize> = (0..sequences.len())
        .filter(|&i| !sequences[i].is_empty() && sequences[i].len() >= min_length)
        .collect();

    let mut layout = match options.strategy {
        Packing::Greedy => greedy(&sequences, &chosen, options),
        Packing::Unpacked => {
            pieces(&sequences, &chosen, options).into_iter().map(|piece| vec![piece]).collect()
        }
        Packing::BestFit => best_fit(sorted(pieces(&sequences, &chosen, options)), max_length),
        Packing::FirstFit => first_fit(sorted(pieces(&sequences, &chosen, options)), max_length),
    };
    layout.retain(|block| length_of(block) >= min_length.max(MIN_BLOCK_LENGTH));

    let blocks: Vec<Block> = layout.iter().map(|pieces| fill(&sequences, pieces)).collect();
    let report = PackReport { bos_id: bos, eos_id: eos, ..count(&sequences, &blocks, options) };
    Ok((blocks, report))
}

/// A piece of a marked sequence, before it has a place.
#[derive(Debug, Clone, Copy)]
struct Piece {
    document: usize,
    offset: usize,
    length: usize,
}

fn length_of(block: &[Piece]) -> usize {
    block.iter().map(|piece| piece.length).sum()
}

fn greedy(sequences: &[Vec<u32>], chosen: &[usize], options: &PackOptions) -> Vec<Vec<Piece>> {
    let mut blocks = Vec::new();
    let mut block = Vec::new();
    let mut space = options.max_length;
    for &document in chosen {
        let length = sequences[document].len();
        // Without overflow a single token at a block's end would be all that is left of the document.
        if !options.overflow && space < length.min(MIN_BLOCK_LENGTH) {
            blocks.push(std::mem::take(&mut block));
            space = options.max_length;
        }
        let mut offset = 0;
        loop {
            let piece = Piece { document, offset, length: space.min(length - offset) };
            block.push(piece);
            space -= piece.length;
            let end = offset + piece.length;
            if space == 0 {
                blocks.push(std::mem::take(&mut block));
                space = options.max_length;
            }
            if end == length || !options.overflow {
                break;
            }
            offset = end - options.stride.min(end);
        }
    }
    if !block.is_empty() {
        blocks.push(block);
    }
    blocks
}

/// Every chosen sequence cut into pieces of `max_length` that overlap by `stride`, the last one shorter.
fn pieces(sequences: &[Vec<u32>], chosen: &[usize], options: &PackOptions) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for &document in chosen {
        let length = sequences[document].len();
        let mut offset = 0;
        loop {
            let piece = Piece { document, offset, length: options.max_length.min(length - offset) };
            pieces.push(piece);
            let end = offset + piece.length;
            if end == length || !options.overflow {
                break;
            }
            offset = end - options.stride;
        }
    }
    pieces
}

/// Longest first, otherwise in order.
fn sorted(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.length));
    pieces
}

fn best_fit(pieces: Vec<Piece>, max_length: usize) -> Vec<Vec<Piece>> {
    let mut blocks: Vec<Vec<Piece>> = Vec::new();
    // (space left, index) of every block that is not full: the first at or above a length is the tightest, then the oldest.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for piece in pieces {
        let (space, block) = match open.range((piece.length, 0)..).next().copied() {
            Some(tightest) => {
                open.remove(&tightest);
                tightest
            }
            None => {
                blocks.push(Vec::new());
                (max_length, blocks.len() - 1)
            }
        };
        blocks[block].push(piece);
        if space > piece.length {
            open.insert((space - piece.length, block));
        }
    }
    blocks
}

fn first_fit(pieces: Vec<Piece>, max_length: usize) -> Vec<Vec<Piece>> {
    let mut blocks: Vec<Vec<Piece>> = Vec::new();
    // A tree over all blocks that may come to be: each node holds the most space left in any block below it. Leaves are
    // the second half, the root is 1. A block that is not begun has all its space, so one always fits.
    let num_leaves = pieces.len().next_power_of_two();
    let mut most_space = vec![max_length; 2 * num_leaves];
    for piece in pieces {
        let mut node = 1;
        while node < num_leaves {
            node = if most_space[2 * node] >= piece.length { 2 * node } else { 2 * node + 1 };
        }
        let block = node - num_leaves;
        if block == blocks.len() {
            blocks.push(Vec::new());
        }
        blocks[block].push(piece);
        most_space[node] -= piece.length;
        while node > 1 {
            node /= 2;
            most_space[node] = most_space[2 * node].max(most_space[2 * node + 1]);
        }
    }
    blocks
}

fn fill(sequences: &[Vec<u32>], pieces: &[Piece]) -> Block {
    let mut block = Block { tokens: Vec::with_capacity(length_of(pieces)), segments: Vec::new() };
    for piece in pieces {
        block.segments.push(Segment {
            document: piece.document as u32,
            start: block.tokens.len(),
            length: piece.length,
            document_offset: piece.offset,
        });
        block.tokens.extend(&sequences[piece.document][piece.offset..piece.offset + piece.length]);
    }
    block
}

fn count(sequences: &[Vec<u32>], blocks: &[Block], options: &PackOptions) -> PackReport {
    // Of each document the pieces come in order and without gaps, so what is covered is the furthest end. Only a dropped
    // block can leave a gap, and it holds the last piece or the only one.
    let mut covered = vec![0; sequences.len()];
    for segment in blocks.iter().flat_map(|block| &block.segments) {
        let end = segment.document_offset + segment.length;
        let covered = &mut covered[segment.document as usize];
        *covered = end.max(*covered);
    }
    let mut lengths: Vec<usize> = blocks.iter().map(|block| block.tokens.len()).collect();
    lengths.sort_unstable();
    let tokens_in = sequences.iter().map(Vec::len).sum();
    let tokens_packed = covered.iter().sum();
    let num_full = lengths.iter().filter(|&&length| length == options.max_length).count();
    PackReport {
        documents: sequences.len(),
        documents_dropped: covered.iter().filter(|&&covered| covered == 0).count(),
        tokens_in,
        tokens_packed,
        tokens_dropped: tokens_in - tokens_packed,
        tokens_repeated: lengths.iter().sum::<usize>() - tokens_packed,
        blocks: lengths.len(),
        min: lengths.first().copied().unwrap_or(0),
        median: lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or(0),
        max: lengths.last().copied().unwrap_or(0),
        share_full: num_full as f64 / lengths.len().max(1) as f64,
        bos_id: None,
        eos_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            PackOptions { min_length: 9, ..good },
            "min_length: expected at most max_length (8), found 9",
        );
    }

    fn any_options() -> impl Strategy<Value = PackOptions> {
        let strategy = prop_oneof![
            Just(Packing::Greedy),
            Just(Packing::BestFit),
            Just(Packing::FirstFit),
            Just(Packing::Unpacked)
        ];
        (2usize..20, strategy, 0usize..20, 0usize..20, any::<[bool; 3]>()).prop_map(
            |(max_length, strategy, min_length, stride, [overflow, add_bos, add_eos])| {
                PackOptions {
                    max_length,
                    strategy,
                    min_length: min_length.min(max_length),
                    stride: stride.min(max_length - 1),
                    overflow,
                    add_bos,
                    add_eos,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn every_token_is_packed_once_or_counted_as_dropped(
            lengths in prop::collection::vec(0usize..60, 0..12),
            options in any_options(),
        ) {
            let documents = documents(&lengths);
            let (blocks, report) = pack(&documents, &options, MARKERS).unwrap();
            let mut ends = vec![0usize; documents.len()];
            let mut repeated = 0;
            // Pieces of one document are looked at in their order in the document.
            let mut pieces = Vec::new();
            for block in &blocks {
                prop_assert!(block.tokens.len() <= options.max_length);
                prop_assert!(block.tokens.len() >= options.min_length.max(2));
                let mut start = 0;
                for segment in &block.segments {
                    prop_assert_eq!(segment.start, start);
                    prop_assert!(segment.length > 0);
                    start += segment.length;
                    let tokens = &block.tokens[segment.start..start];
                    pieces.push((segment.document as usize, segment.document_offset, tokens));
                }
                prop_assert_eq!(start, block.tokens.len());
            }
            pieces.sort();
            for (document, offset, tokens) in pieces {
                let mut marked = documents[document].clone();
                if options.add_bos { marked.insert(0, 1) }
                if options.add_eos { marked.push(2) }
                prop_assert_eq!(&marked[offset..offset + tokens.len()], tokens);
                let end = &mut ends[document];
                let overlap = if *end == 0 { 0 } else { options.stride.min(*end) };
                prop_assert_eq!(offset, *end - overlap);
                prop_assert!(tokens.len() > overlap, "a piece brings something new");
                repeated += overlap;
                *end = offset + tokens.len();
            }
            let marks = usize::from(options.add_bos) + usize::from(options.add_eos);
            let tokens_in: usize = lengths.iter().filter(|&&n| n > 0).map(|n| n + marks).sum();
            prop_assert_eq!(report.tokens_in, tokens_in);
            prop_assert_eq!(report.tokens_packed, ends.iter().sum::<usize>());
            prop_assert_eq!(report.tokens_dropped, tokens_in - report.tokens_packed);
            prop_assert_eq!(report.tokens_repeated, repeated);
            if options.overflow && options.strategy == Packing::Greedy {
                for block in blocks.iter().rev().skip(1) {
                    prop_assert_eq!(block.tokens.len(), options.max_length);
                }
            }
        }
    }
}
