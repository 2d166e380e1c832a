//! Packing against the vectors of the tutorial's system, and what holds of every token of any documents.

use fathom_data::cache::Cache;
use fathom_data::corpus::Document;
use fathom_data::dataset::Dataset;
use fathom_data::packing::{Block, Markers, PackOptions, PackReport, pack, shuffle};
use fathom_data::tokenizer::Tokenizer;
use fathom_spec::config::{Continuation, Packing};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One call of the tutorial's block tokenizer.
#[derive(Debug, Clone, Deserialize)]
struct Case {
    name: String,
    docs: Vec<String>,
    bos: u32,
    eos: u32,
    args: Args,
    out: Output,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Args {
    max_length: usize,
    min_len: Option<usize>,
    max_len: Option<usize>,
    stride: usize,
    overflow: Option<bool>,
    packed: bool,
    packing_strategy: Option<String>,
    shuffle_output: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Output {
    input_ids: Vec<Vec<u32>>,
    document_starts: Vec<Vec<usize>>,
}

/// The tokens of a block, and where documents start in it.
type Row = (Vec<u32>, Vec<usize>);

impl Case {
    fn all() -> Vec<Case> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/data/block_tokenizer_cases.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn documents(&self) -> Vec<Vec<u32>> {
        let tokens = |text: &String| text.split(' ').map(|id| id.parse().unwrap()).collect();
        self.docs.iter().map(tokens).collect()
    }

    fn markers(&self) -> Markers {
        Markers { bos_id: Some(self.bos), eos_id: Some(self.eos) }
    }

    fn rows(&self) -> Vec<Row> {
        let starts = self.out.document_starts.iter().cloned();
        self.out.input_ids.iter().cloned().zip(starts).collect()
    }
}

impl Args {
    fn overflow(&self) -> bool {
        self.overflow.unwrap_or(true)
    }

    fn packing(&self) -> Packing {
        match self.packing_strategy.as_deref() {
            _ if !self.packed => Packing::Unpacked,
            Some("best_fit") => Packing::BestFit,
            Some("first_fit") => Packing::FirstFit,
            _ => Packing::Greedy,
        }
    }

    /// What these arguments mean here.
    fn options(&self) -> PackOptions {
        PackOptions {
            max_length: self.max_length,
            strategy: self.packing(),
            min_length: self.min_len.unwrap_or(1),
            max_document_tokens: self.max_len,
            stride: self.stride,
            overflow: self.overflow(),
            continuation: Continuation::Restarted,
            shuffle_seed: self.shuffle_output.then_some(42),
            ..PackOptions::default()
        }
    }
}

fn rows_of(blocks: &[Block]) -> Vec<Row> {
    let starts = |block: &Block| block.segments.iter().map(|segment| segment.start).collect();
    blocks.iter().map(|block| (block.tokens.clone(), starts(block))).collect()
}

/// The tutorial's block tokenizer as it is, with each of its defects mended where `mended` has the letter:
///
/// - `a` a second BOS before a document that follows a full block
/// - `b` blocks of BOS alone, or of any single token
/// - `c` an overlap where no document goes on: after its end, or as a block of nothing else
/// - `d` no start for the piece that a block continues a document with
/// - `e` blocks that are closed, and lost, below `min_len` because no more than that is free in them
/// - `f` an EOS (any last token) that goes on without its document, a BOS that stands at a block's end without it
///
/// and with what is done otherwise here on purpose:
///
/// - `g` EOS counts for `min_len` and `max_len`, as it does in the blocks
/// - `h` pieces of documents are sorted once more, by their own length: the rest of a long document comes after whole ones
///   that are longer than it, and blocks are fuller
/// - `i` blocks are shuffled whatever packed them
struct Reference<'a> {
    args: &'a Args,
    bos: Option<u32>,
    eos: Option<u32>,
    mended: &'a str,
}

/// The block that greedy packing fills.
#[derive(Default)]
struct Open {
    tokens: Vec<u32>,
    starts: Vec<usize>,
    /// Tokens at its beginning that were carried over from the block before.
    carried: usize,
    /// Whether they are more than a BOS.
    has_overlap: bool,
}

const ALL: &str = "abcdefghi";

impl Reference<'_> {
    fn is_mended(&self, letter: char) -> bool {
        self.mended.contains(letter)
    }

    fn min_len(&self) -> usize {
        self.args.min_len.unwrap_or(1)
    }

    fn is_long_enough(&self, block: &[u32]) -> bool {
        block.len() >= self.min_len() && !(self.is_mended('b') && block.len() < 2)
    }

    fn rows(&self, documents: &[Vec<u32>]) -> Vec<Row> {
        let mut marked = Vec::new();
        for document in documents {
            let mut tokens: Vec<u32> = self.bos.into_iter().chain(document.clone()).collect();
            let length = tokens.len() + usize::from(self.is_mended('g') && self.eos.is_some());
            tokens.extend(self.eos);
            let wanted = self.min_len()..=self.args.max_len.unwrap_or(usize::MAX);
            marked.push(wanted.contains(&length).then_some(tokens));
        }
        let packing = self.args.packing();
        let is_greedy = matches!(packing, Packing::Greedy | Packing::Unpacked);
        let mut rows = match is_greedy {
            true => self.greedy(&marked, packing == Packing::Unpacked),
            false => self.bins(&marked.into_iter().flatten().collect::<Vec<_>>(), packing),
        };
        if self.args.shuffle_output && (!is_greedy || self.is_mended('i')) {
            shuffle::shuffle(&mut rows, 42);
        }
        rows
    }

    fn greedy(&self, documents: &[Option<Vec<u32>>], is_unpacked: bool) -> Vec<Row> {
        let Args { max_length, stride, .. } = *self.args;
        let mut rows = Vec::new();
        let mut open = Open::default();
        for document in documents {
            if is_unpacked {
                self.flush(&mut open, &mut rows, None, 0);
            }
            let Some(document) = document else { continue };
            if self.is_mended('f') && self.begins_alone(&open, document) {
                self.flush(&mut open, &mut rows, None, 0);
            }
            let mut offset = 0;
            // How many of the document's tokens are in the open block.
            let mut here = 0;
            while offset < document.len() {
                if offset == 0 {
                    if self.is_mended('a') && open.tokens.len() == open.carried && !open.has_overlap
                    {
                        open = Open::default();
                    }
                    open.starts.push(open.tokens.len());
                }
                let left = document.len() - offset;
                let room = max_length - open.tokens.len();
                let take = room.min(left) - usize::from(self.leaves_one(room, left));
                open.tokens.extend(&document[offset..offset + take]);
                offset += take;
                here += take;
                let goes_on = offset < document.len();
                let room = max_length - open.tokens.len();
                let is_open = self.is_mended('e') && open.tokens.len() < self.min_len();
                let least_room =
                    if self.is_mended('f') { self.min_len().max(2) } else { self.min_len() };
                if !self.args.overflow() {
                    self.flush(&mut open, &mut rows, None, 0);
                    break;
                } else if (room < least_room && !is_open) || (goes_on && self.is_mended('f')) {
                    let of_document = goes_on.then_some((here, offset));
                    here = self.flush(&mut open, &mut rows, of_document, stride);
                }
            }
        }
        self.flush(&mut open, &mut rows, None, 0);
        rows
    }

    /// Whether the rest would be a single token if `room` were filled.
    fn leaves_one(&self, room: usize, left: usize) -> bool {
        let Args { stride, max_length, .. } = *self.args;
        let can = self.args.overflow() && stride == 0 && self.min_len() < max_length;
        self.is_mended('f') && can && left == room + 1
    }

    /// Whether no more than the first token of a longer document would stand in this block.
    fn begins_alone(&self, open: &Open, document: &[u32]) -> bool {
        let room = self.args.max_length - open.tokens.len();
        let left = document.len();
        let first = room.min(left) - usize::from(self.leaves_one(room, left));
        open.tokens.len() > open.carried && first < left.min(2)
    }

    /// Writes the open block and carries over what the next begins with: BOS and `stride` tokens. `of_document` is how many
    /// tokens of a document that goes on are in the block, and how many have been taken of it. Returns how many of them are
    /// carried over.
    fn flush(
        &self,
        open: &mut Open,
        rows: &mut Vec<Row>,
        of_document: Option<(usize, usize)>,
        stride: usize,
    ) -> usize {
        if open.tokens.is_empty() {
            return 0;
        }
        let Open { tokens, starts, carried, has_overlap } = std::mem::take(open);
        if !self.is_long_enough(&tokens) && tokens.len() < self.min_len() {
            return 0;
        }
        let overlap = match (self.is_mended('c'), of_document) {
            (true, Some((here, _))) => stride.min(here),
            (true, None) => 0,
            (false, _) => stride.min(tokens.len()),
        };
        // The overlap begins with the document's own BOS.
        let begins_document = self.is_mended('a') && of_document == Some((overlap, overlap));
        let bos = self.bos.filter(|_| !begins_document);
        open.tokens =
            bos.into_iter().chain(tokens[tokens.len() - overlap..].iter().copied()).collect();
        open.carried = open.tokens.len();
        open.has_overlap = overlap > 0;
        if self.is_mended('d') && of_document.is_some() {
            open.starts.push(0);
        }
        let is_new = tokens.len() > carried;
        let is_wanted = is_new || !self.is_mended(if has_overlap { 'c' } else { 'b' });
        if is_wanted && self.is_long_enough(&tokens) {
            rows.push((tokens, starts));
        }
        overlap
    }

    fn bins(&self, documents: &[Vec<u32>], packing: Packing) -> Vec<Row> {
        let mut documents: Vec<&Vec<u32>> = documents.iter().collect();
        documents.sort_by_key(|document| std::cmp::Reverse(document.len()));
        let mut chunks: Vec<Vec<u32>> =
            documents.into_iter().flat_map(|d| self.chunks(d)).collect();
        if self.is_mended('h') {
            chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.len()));
        }
        let mut bins: Vec<Row> = Vec::new();
        for chunk in chunks {
            let room = |bin: &Row| self.args.max_length - bin.0.len();
            let mut fitting = bins.iter_mut().filter(|bin| room(bin) >= chunk.len());
            let bin = match packing {
                Packing::BestFit => fitting.min_by_key(|bin| room(bin)),
                _ => fitting.next(),
            };
            let bin = match bin {
                Some(bin) => bin,
                None => {
                    bins.push(Row::default());
                    bins.last_mut().unwrap()
                }
            };
            bin.1.push(bin.0.len());
            bin.0.extend(chunk);
        }
        bins.retain(|(tokens, _)| self.is_long_enough(tokens));
        bins
    }

    fn chunks(&self, document: &[u32]) -> Vec<Vec<u32>> {
        let Args { max_length, stride, .. } = *self.args;
        let mut chunks = Vec::new();
        let mut offset = 0;
        while offset < document.len() {
            let bos = self.bos.filter(|_| offset > 0);
            let room = max_length - usize::from(bos.is_some());
            let left = document.len() - offset;
            let room = room - usize::from(self.leaves_one(room, left));
            let end = document.len().min(offset + room);
            chunks.push(bos.into_iter().chain(document[offset..end].iter().copied()).collect());
            if !self.args.overflow() || (self.is_mended('c') && end == document.len()) {
                break;
            }
            offset += room - stride;
        }
        chunks
    }
}

/// Each case: the letters of the defects that show in its vector, and the blocks without them, as runs of tokens.
const MENDED: [(&str, &str, &str); 15] = [
    (
        "unpacked",
        "abd",
        "1 100..106 | 1 107..109 2 | 1 200..202 2 | 1 300..306 | 1 307..313 | 1 314..320 | 1 321..324 2 | 1 400..405 2 | 1 500 2",
    ),
    (
        "unpacked_stride2",
        "abcd",
        "1 100..106 | 1 105..109 2 | 1 200..202 2 | 1 300..306 | 1 305..311 | 1 310..316 | 1 315..321 | 1 320..324 2 | \
         1 400..405 2 | 1 500 2",
    ),
    (
        "unpacked_minlen4",
        "d",
        "1 100..106 | 1 107..109 2 | 1 200..202 2 | 1 300..306 | 1 307..313 | 1 314..320 | 1 321..324 2 | 1 400..405 2",
    ),
    (
        "unpacked_no_overflow",
        "ab",
        "1 100..106 | 1 200..202 2 | 1 300..306 | 1 400..405 2 | 1 500 2",
    ),
    (
        "packed_greedy",
        "adf",
        "1 100..109 2 1 200..201 | 1 202 2 1 300..311 | 1 312..324 2 | 1 400..405 2 1 500 2",
    ),
    (
        "packed_greedy_minlen4",
        "adf",
        "1 100..109 2 1 200..201 | 1 202 2 1 300..311 | 1 312..324 2 | 1 400..405 2",
    ),
    (
        "packed_greedy_stride3",
        "acd",
        "1 100..109 2 1 200..202 | 1 200..202 2 1 300..309 | 1 307..321 | 1 319..324 2 1 400..405 2 | 1 500 2",
    ),
    (
        "packed_best_fit",
        "",
        "1 300..314 | 1 315..324 2 | 1 100..109 2 | 1 400..405 2 1 200..202 2 1 500 2",
    ),
    (
        "packed_best_fit_minlen4",
        "",
        "1 300..314 | 1 315..324 2 | 1 100..109 2 | 1 400..405 2 1 200..202 2",
    ),
    (
        "packed_best_fit_stride3",
        "c",
        "1 300..314 | 1 312..324 2 | 1 100..109 2 | 1 400..405 2 1 200..202 2 1 500 2",
    ),
    (
        "packed_first_fit",
        "",
        "1 300..314 | 1 315..324 2 1 500 2 | 1 100..109 2 | 1 400..405 2 1 200..202 2",
    ),
    (
        "packed_best_fit_no_overflow",
        "",
        "1 300..314 | 1 100..109 2 | 1 400..405 2 1 200..202 2 1 500 2",
    ),
    (
        "packed_best_fit_shuffle",
        "",
        "1 100..109 2 | 1 315..324 2 | 1 400..405 2 1 200..202 2 1 500 2 | 1 300..314",
    ),
    (
        "packed_greedy_no_overflow",
        "ab",
        "1 100..109 2 | 1 200..202 2 | 1 300..314 | 1 400..405 2 | 1 500 2",
    ),
    ("max_len", "ab", "1 200..202 2 | 1 400..405 2 | 1 500 2"),
];

/// `1 100..102 | 7` -> `[[1, 100, 101, 102], [7]]`
fn blocks(text: &str) -> Vec<Vec<u32>> {
    let run = |word: &str| -> Vec<u32> {
        let (first, last) = word.split_once("..").unwrap_or((word, word));
        (first.parse().unwrap()..=last.parse().unwrap()).collect()
    };
    text.split('|').map(|block| block.split_whitespace().flat_map(run).collect()).collect()
}

#[test]
fn row_17_packing_equals_the_vectors_wherever_they_are_right() {
    let cases = Case::all();
    assert_eq!(
        cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(),
        MENDED.map(|m| m.0)
    );
    for (case, (name, defects, expected)) in cases.iter().zip(MENDED) {
        let documents = case.documents();
        let reference = |mended: &str| {
            let (bos, eos) = (Some(case.bos), Some(case.eos));
            Reference { args: &case.args, bos, eos, mended }.rows(&documents)
        };
        // The model of the reference is the reference.
        assert_eq!(reference(""), case.rows(), "{name}: the model of the reference");
        // What is mended is mended by the letters named, and none of them is named for nothing.
        let mended = reference(ALL);
        assert_eq!(reference(defects), mended, "{name}: mended by `{defects}`");
        for letter in defects.chars() {
            let others = defects.replace(letter, "");
            assert_ne!(reference(&others), mended, "{name}: `{letter}` is not needed");
        }
        let (found, _) = pack(&documents, &case.args.options(), case.markers()).unwrap();
        let tokens: Vec<_> = found.iter().map(|block| block.tokens.clone()).collect();
        assert_eq!(tokens, blocks(expected), "{name}");
        assert_eq!(rows_of(&found), mended, "{name}");
    }
}

#[test]
fn row_18_blocks_are_shuffled_as_python_does() {
    let documents = |n: u32| -> Vec<Vec<u32>> { (0..n).map(|i| vec![i; 3]).collect() };
    let order = |n: u32, shuffle_seed: Option<u64>| -> Vec<u32> {
        let options = PackOptions {
            max_length: 4,
            strategy: Packing::BestFit,
            shuffle_seed,
            ..PackOptions::default()
        };
        let (blocks, _) = pack(&documents(n), &options, Markers::default()).unwrap();
        blocks.iter().map(|block| block.tokens[0]).collect()
    };
    // `random.Random(42).shuffle(range(n))`
    assert_eq!(order(4, Some(42)), [2, 1, 3, 0]);
    assert_eq!(order(5, Some(42)), [3, 1, 2, 4, 0]);
    assert_eq!(order(8, Some(42)), [3, 4, 6, 7, 2, 5, 0, 1]);
    assert_eq!(order(10, Some(42)), [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
    assert_eq!(order(8, None), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_ne!(order(8, Some(43)), order(8, Some(42)));
}

/// Blocks of two texts, as the tutorial looks at them: 64 tokens, 8 of them repeated.
#[test]
fn row_15_dataset_blocks_overlap_by_stride() {
    let text = |n: usize| (0..n).map(|i| format!("{i} fathoms. ")).collect::<String>();
    let documents = [Document::new("a.txt", &text(40)), Document::new("b.txt", &text(25))];
    let tokenizer = Tokenizer::bytes();
    let tokens = Cache::none().tokenize(&documents, &tokenizer).unwrap().tokens;
    let options = PackOptions {
        max_length: 64,
        stride: 8,
        strategy: Packing::Unpacked,
        continuation: Continuation::Restarted,
        ..PackOptions::default()
    };
    let dataset = Dataset::build(&documents, &tokens, &tokenizer, &options).unwrap();
    let bos = tokenizer.bos_id().unwrap();
    assert!(dataset.blocks.len() > 10);
    let mut continued = 0;
    for pair in dataset.blocks.windows(2) {
        let (before, block) = (&pair[0].tokens, &pair[1].tokens);
        if pair[0].segments[0].document == pair[1].segments[0].document {
            assert_eq!(before[before.len() - 8..], block[1..9]);
            continued += 1;
        }
    }
    assert_eq!(continued, dataset.blocks.len() - 2);
    for block in &dataset.blocks {
        assert!(block.tokens.len() <= 64);
        assert_eq!(block.tokens.iter().filter(|&&id| id == bos).count(), 1);
        assert_eq!((block.tokens[0], block.segments.len()), (bos, 1));
    }
    let PackReport { overlap_min, overlap_max, tokens_repeated, .. } = dataset.report;
    assert_eq!((overlap_min, overlap_max, tokens_repeated), (8, 8, 8 * continued));
}

const MARKERS: Markers = Markers { bos_id: Some(1), eos_id: Some(2) };

/// Document `d` is the tokens `100 d, 100 d + 1, ...`.
fn numbered(lengths: &[usize]) -> Vec<Vec<u32>> {
    let document = |(d, &length): (usize, &usize)| {
        let first = 100 * (d as u32 + 1);
        (first..first + length as u32).collect()
    };
    lengths.iter().enumerate().map(document).collect()
}

fn any_options() -> impl Strategy<Value = PackOptions> {
    let strategy = prop_oneof![
        Just(Packing::Greedy),
        Just(Packing::BestFit),
        Just(Packing::FirstFit),
        Just(Packing::Unpacked)
    ];
    let continuation = prop_oneof![Just(Continuation::Seamless), Just(Continuation::Restarted)];
    let lengths = (3usize..20, 0usize..20, 0usize..20, prop::option::of(1usize..60));
    let order = (prop::option::of(1usize..6), prop::option::of(any::<u64>()));
    (lengths, strategy, continuation, order, any::<[bool; 3]>()).prop_map(
        |(
            (max_length, min_length, stride, max_document_tokens),
            strategy,
            continuation,
            order,
            flags,
        )| {
            let least_new = if continuation == Continuation::Restarted { 2 } else { 1 };
            PackOptions {
                max_length,
                strategy,
                min_length: min_length.min(max_length),
                max_document_tokens,
                stride: stride.min(max_length - least_new),
                continuation,
                batch_documents: order.0,
                shuffle_seed: order.1,
                overflow: flags[0],
                add_bos: flags[1],
                add_eos: flags[2],
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_token_is_packed_once_or_counted_as_dropped(
        lengths in prop::collection::vec(0usize..60, 0..12),
        options in any_options(),
    ) {
        let documents = numbered(&lengths);
        let (blocks, report) = pack(&documents, &options, MARKERS).unwrap();
        let restarted = options.continuation == Continuation::Restarted;
        let mut pieces = Vec::new();
        for block in &blocks {
            prop_assert!(block.tokens.len() <= options.max_length);
            prop_assert!(block.tokens.len() >= options.min_length.max(2));
            let mut start = 0;
            for segment in &block.segments {
                prop_assert_eq!(segment.start, start);
                prop_assert!(segment.document_tokens() > 0);
                start += segment.length;
                let mut tokens = &block.tokens[segment.start..start];
                if segment.has_extra_bos {
                    prop_assert!(restarted && options.add_bos && segment.document_offset > 0);
                    prop_assert_eq!(tokens[0], 1);
                    tokens = &tokens[1..];
                } else {
                    prop_assert!(!(restarted && options.add_bos && segment.document_offset > 0));
                }
                pieces.push((segment.document as usize, segment.document_offset, tokens));
            }
            prop_assert_eq!(start, block.tokens.len());
            // No BOS stands beside another, so none stands for nothing.
            prop_assert!(!block.tokens.windows(2).any(|pair| pair == [1, 1]));
            // No block has documents of two batches.
            let batch = |document: u32| document as usize / options.batch_documents.unwrap_or(usize::MAX);
            let first = batch(block.segments[0].document);
            prop_assert!(block.segments.iter().all(|segment| batch(segment.document) == first));
        }
        // Pieces of one document are looked at in their order in the document.
        pieces.sort();
        let mut ends = vec![0usize; documents.len()];
        let (mut repeated, mut continued) = (0, 0);
        for (document, offset, tokens) in pieces {
            let mut marked = documents[document].clone();
            if options.add_bos { marked.insert(0, 1) }
            if options.add_eos { marked.push(2) }
            prop_assert_eq!(&marked[offset..offset + tokens.len()], tokens);
            // With room for two tokens behind a BOS, a document of an odd rest has to end in one.
            let room = options.max_length - usize::from(options.add_bos);
            if restarted && options.min_length < options.max_length && room > 2 {
                prop_assert!(tokens.len() >= marked.len().min(2), "a piece is never a single token");
            }
            let end = &mut ends[document];
            let overlap = if *end == 0 { 0 } else { options.stride.min(*end) };
            prop_assert_eq!(offset, *end - overlap, "an overlap is the stride");
            prop_assert!(tokens.len() > overlap, "a piece brings something new");
            repeated += overlap;
            continued += usize::from(*end > 0);
            prop_assert!(options.overflow || *end == 0);
            *end = offset + tokens.len();
        }
        let marks = usize::from(options.add_bos) + usize::from(options.add_eos);
        let marked: Vec<usize> = lengths.iter().map(|&n| if n > 0 { n + marks } else { 0 }).collect();
        prop_assert_eq!(report.tokens_in, marked.iter().sum::<usize>());
        prop_assert_eq!(report.tokens_packed, ends.iter().sum::<usize>());
        prop_assert_eq!(report.tokens_dropped, report.tokens_in - report.tokens_packed);
        prop_assert_eq!(report.tokens_repeated, repeated);
        prop_assert_eq!(report.continued, continued);
        let in_blocks: usize = blocks.iter().map(|block| block.tokens.len()).sum();
        prop_assert_eq!(in_blocks, report.tokens_packed + report.tokens_repeated + report.extra_bos);
        prop_assert_eq!(report.documents_dropped, ends.iter().filter(|&&end| end == 0).count());
        // What may be dropped: documents that are too short or long, what does not overflow, and blocks that are too short.
        for (&marked, &end) in marked.iter().zip(&ends) {
            let wanted = options.min_length.max(1)..=options.max_document_tokens.unwrap_or(usize::MAX);
            if !wanted.contains(&marked) {
                prop_assert_eq!(end, 0);
            } else if options.overflow && options.min_length <= 1 && marked > 1 {
                prop_assert!(end + 1 >= marked, "no more than a last token alone is lost: {} of {}", end, marked);
            }
        }
        let seamless = options.continuation == Continuation::Seamless;
        if seamless && options.overflow && options.strategy == Packing::Greedy && options.batch_documents.is_none()
            && options.shuffle_seed.is_none()
        {
            for block in blocks.iter().rev().skip(1) {
                prop_assert_eq!(block.tokens.len(), options.max_length);
            }
        }
    }

    #[test]
    fn a_shuffle_changes_nothing_but_the_order(
        lengths in prop::collection::vec(0usize..60, 0..12),
        options in any_options(),
    ) {
        let packed = |shuffle_seed: Option<u64>| {
            let options = PackOptions { shuffle_seed, ..options.clone() };
            let (blocks, report) = pack(&numbered(&lengths), &options, MARKERS).unwrap();
            let mut counted: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
            for block in blocks {
                *counted.entry(block.tokens).or_default() += 1;
            }
            (counted, report)
        };
        prop_assert_eq!(packed(None), packed(Some(7)));
    }

    /// Not for the fifteen vectors alone.
    #[test]
    fn restarted_packing_is_the_mended_reference(
        lengths in prop::collection::vec(1usize..60, 0..12),
        options in any_options(),
    ) {
        let args = Args {
            max_length: options.max_length,
            min_len: Some(options.min_length.max(1)),
            max_len: options.max_document_tokens,
            stride: options.stride.min(options.max_length - 2),
            overflow: Some(options.overflow),
            packed: options.strategy != Packing::Unpacked,
            packing_strategy: match options.strategy {
                Packing::BestFit => Some("best_fit".into()),
                Packing::FirstFit => Some("first_fit".into()),
                _ => None,
            },
            shuffle_output: options.shuffle_seed.is_some(),
        };
        let documents = numbered(&lengths);
        let (bos, eos) = (options.add_bos.then_some(1), options.add_eos.then_some(2));
        let reference = Reference { args: &args, bos, eos, mended: ALL };
        let (blocks, _) = pack(&documents, &args.options(), Markers { bos_id: bos, eos_id: eos }).unwrap();
        prop_assert_eq!(rows_of(&blocks), reference.rows(&documents));
    }
}
