//! Which piece of which document stands in which block: numbers only, no tokens.

use super::PackOptions;
use fathom_spec::config::{Continuation, Packing};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A segment of one token predicts nothing.
const MIN_PIECE: usize = 2;

/// A piece of a marked sequence.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub document: usize,
    /// In the marked sequence.
    pub offset: usize,
    /// Tokens of the marked sequence.
    pub length: usize,
    /// Whether a BOS that is not of the sequence stands before it.
    pub has_extra_bos: bool,
}

impl Piece {
    /// Tokens that it takes up in a block.
    pub fn block_length(&self) -> usize {
        self.length + usize::from(self.has_extra_bos)
    }
}

/// Tokens in a block of `pieces`.
pub fn length_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(Piece::block_length).sum()
}

/// The blocks of some documents, each `(index, tokens of its marked sequence)`; `has_bos` says whether the sequences begin
/// with one.
pub fn lay_out(
    documents: &[(usize, usize)],
    options: &PackOptions,
    has_bos: bool,
) -> Vec<Vec<Piece>> {
    let cut = Cut { options, has_bos };
    let restarted = options.continuation == Continuation::Restarted;
    let one_a_block = |documents| cut.pieces(documents).into_iter().map(|piece| vec![piece]);
    match options.strategy {
        Packing::Unpacked => one_a_block(documents).collect(),
        // Nothing goes on in another block, so nothing but a rest of room would be shared.
        Packing::Greedy if restarted && !options.overflow => one_a_block(documents).collect(),
        Packing::Greedy if restarted => cut.greedy_restarted(documents),
        Packing::Greedy => greedy(documents, options),
        Packing::BestFit => best_fit(cut.sorted_pieces(documents), options.max_length),
        Packing::FirstFit => first_fit(cut.sorted_pieces(documents), options.max_length),
    }
}

/// How a document is cut into pieces that each begin a block.
struct Cut<'a> {
    options: &'a PackOptions,
    has_bos: bool,
}

impl Cut<'_> {
    /// Every document cut into pieces that fill blocks and overlap by `stride`, the last one shorter.
    fn pieces(&self, documents: &[(usize, usize)]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for &(document, tokens) in documents {
            let mut offset = 0;
            loop {
                let piece = self.piece(document, offset, tokens, self.options.max_length);
                pieces.push(piece);
                let end = offset + piece.length;
                if end == tokens || !self.options.overflow {
                    break;
                }
                offset = end - self.options.stride;
            }
        }
        pieces
    }

    /// The pieces, longest first. Of equal ones those of the longest document come first where documents are restarted, as in
    /// the tutorial, otherwise those of the first.
    fn sorted_pieces(&self, documents: &[(usize, usize)]) -> Vec<Piece> {
        let mut documents = documents.to_vec();
        if self.options.continuation == Continuation::Restarted {
            documents.sort_by_key(|&(_, tokens)| Reverse(tokens));
        }
        let mut pieces = self.pieces(&documents);
        pieces.sort_by_key(|piece| Reverse(piece.block_length()));
        pieces
    }

    /// The piece of a document of `tokens` tokens that begins at `offset`, where there is `room` for it.
    fn piece(&self, document: usize, offset: usize, tokens: usize, room: usize) -> Piece {
        let restarted = self.options.continuation == Continuation::Restarted;
        let has_extra_bos = restarted && self.has_bos && offset > 0;
        let room = room - usize::from(has_extra_bos);
        let left = tokens - offset;
        // An EOS behind a BOS would say that a document of nothing ends: the token before it goes along, unless the block
        // would be too short without it.
        let PackOptions { max_length, min_length, stride, overflow, .. } = *self.options;
        let leaves_one = left == room + 1 && stride == 0 && overflow && min_length < max_length;
        let length = if restarted && leaves_one { room - 1 } else { room.min(left) };
        Piece { document, offset, length, has_extra_bos }
    }

    /// Documents back to back, where each piece stands for itself.
    fn greedy_restarted(&self, documents: &[(usize, usize)]) -> Vec<Vec<Piece>> {
        let max_length = self.options.max_length;
        let (least_block, stride) = (self.options.min_length, self.options.stride);
        let least_room = least_block.max(MIN_PIECE);
        let mut blocks = Vec::new();
        let mut block: Vec<Piece> = Vec::new();
        let mut used = 0;
        let mut close = |block: &mut Vec<Piece>, used: &mut usize| {
            *used = 0;
            if !block.is_empty() {
                blocks.push(std::mem::take(block));
            }
        };
        for &(document, tokens) in documents {
            // A block that would be dropped as too short is not closed for want of room.
            let has_room = max_length - used >= least_room || used < least_block;
            let begins_alone = || {
                let piece = self.piece(document, 0, tokens, max_length - used);
                piece.length < MIN_PIECE.min(tokens)
            };
            if !has_room || begins_alone() {
                close(&mut block, &mut used);
            }
            let mut offset = 0;
            loop {
                let piece = self.piece(document, offset, tokens, max_length - used);
                block.push(piece);
                used += piece.block_length();
                let end = offset + piece.length;
                if end == tokens {
                    break;
                }
                close(&mut block, &mut used);
                offset = end - stride.min(end);
            }
        }
        close(&mut block, &mut used);
        blocks
    }
}

fn greedy(documents: &[(usize, usize)], options: &PackOptions) -> Vec<Vec<Piece>> {
    let mut blocks = Vec::new();
    let mut block = Vec::new();
    let mut space = options.max_length;
    for &(document, length) in documents {
        // Without overflow a single token at a block's end would be all that is left of the document.
        if !options.overflow && space < length.min(MIN_PIECE) {
            blocks.push(std::mem::take(&mut block));
            space = options.max_length;
        }
        let mut offset = 0;
        loop {
            let taken = space.min(length - offset);
            let piece = Piece { document, offset, length: taken, has_extra_bos: false };
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

fn best_fit(pieces: Vec<Piece>, max_length: usize) -> Vec<Vec<Piece>> {
    let mut blocks: Vec<Vec<Piece>> = Vec::new();
    // (space left, index) of every block that is not full: the first at or above a length is the tightest, then the oldest.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for piece in pieces {
        let length = piece.block_length();
        let (space, block) = match open.range((length, 0)..).next().copied() {
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
        if space > length {
            open.insert((space - length, block));
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
        let length = piece.block_length();
        let mut node = 1;
        while node < num_leaves {
            node = if most_space[2 * node] >= length { 2 * node } else { 2 * node + 1 };
        }
        let block = node - num_leaves;
        if block == blocks.len() {
            blocks.push(Vec::new());
        }
        blocks[block].push(piece);
        most_space[node] -= length;
        while node > 1 {
            node /= 2;
            most_space[node] = most_space[2 * node].max(most_space[2 * node + 1]);
        }
    }
    blocks
}
