//! Perplexity by context length, two ways that must not be mixed, and NLL by position.
//!
//! *Prefix*: one forward over the first `w` tokens of a document; the mean NLL of its `w - 1` predictions, then the mean
//! over documents, then `exp`. *Last stride*: the same held-out predictions are scored at every context length, each span
//! of `last_stride` of them seen through a window of `w` tokens that ends with the span, so that only the context differs.
//! Attention is causal, so one forward at the longest prefix serves all shorter ones, except where the RoPE's frequencies
//! depend on the length (`dynamic`, `longrope`).

use super::document_nll;
use crate::model::Model;
use anyhow::{Result, bail};
use fathom_spec::record::{EvalMethod, EventKind};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Context lengths in tokens, ascending.
    pub context_lengths: Vec<usize>,
    /// Predictions that count in each window; 0 leaves the measure out.
    pub last_stride: usize,
    /// Windows a context length.
    pub max_windows: usize,
    /// Width of the bins of NLL by position in tokens; bins of half an octave when not given.
    pub bin_tokens: Option<usize>,
    pub tile_tokens: usize,
}

/// Perplexity at one context length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LengthRow {
    pub context_length: usize,
    /// Documents (prefix) or windows (last stride).
    pub windows: usize,
    /// Predictions that count.
    pub tokens: usize,
    /// Mean over the windows of each one's mean, in nats per token.
    pub nll: f64,
    pub perplexity: f64,
    /// 95 % bootstrap interval of `nll` over windows.
    pub nll_low: f64,
    pub nll_high: f64,
    pub window_nll: Vec<f64>,
}

/// Mean NLL of the predictions that see `start..end` tokens, in the prefix forwards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PositionRow {
    pub start: usize,
    pub end: usize,
    pub tokens: usize,
    pub nll: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub prefix: Vec<LengthRow>,
    pub last_stride: Vec<LengthRow>,
    pub by_position: Vec<PositionRow>,
}

/// Windows are laid in one stream up to this many tokens, so that short ones fill the machine.
const STREAM_TOKENS: usize = 8192;

/// Measures `documents` (token ids each). A document shorter than a context length does not count there. `is_cut_short` is asked
/// before each forward; `None` when it was.
///
/// # Errors
///
/// When no document is as long as the shortest context length.
pub fn measure(
    model: &Model,
    documents: &[Vec<u32>],
    options: &Options,
    is_cut_short: &mut dyn FnMut() -> bool,
) -> Result<Option<Report>> {
    let longest = documents.iter().map(Vec::len).max().unwrap_or(0);
    let lengths: Vec<usize> =
        options.context_lengths.iter().copied().filter(|&w| w <= longest).collect();
    if lengths.is_empty() {
        let shortest = options.context_lengths.first().copied().unwrap_or(0);
        bail!(
            "context lengths: expected at most {longest} tokens, which the longest document has, found `{shortest}`\n  \
             help: evaluate shorter lengths, or a longer text"
        );
    }
    let Some((prefix, by_position)) = prefix(model, documents, &lengths, options, is_cut_short)?
    else {
        return Ok(None);
    };
    let last_stride = match options.last_stride {
        0 => Some(Vec::new()),
        _ => last_stride(model, documents, &lengths, options, is_cut_short)?,
    };
    Ok(last_stride.map(|last_stride| Report { prefix, last_stride, by_position }))
}

fn prefix(
    model: &Model,
    documents: &[Vec<u32>],
    lengths: &[usize],
    options: &Options,
    is_cut_short: &mut dyn FnMut() -> bool,
) -> Result<Option<(Vec<LengthRow>, Vec<PositionRow>)>> {
    let per_length = model.rope.parameters.rope_type.depends_on_length();
    let mut means: Vec<Vec<f64>> = vec![Vec::new(); lengths.len()];
    let mut bins = Bins::new(options.bin_tokens);
    for document in documents {
        let fitting: Vec<usize> =
            lengths.iter().copied().filter(|&w| w <= document.len()).collect();
        let Some(&longest) = fitting.last() else { continue };
        let mut forward = |w: usize| -> Result<Option<Vec<f64>>> {
            if is_cut_short() {
                return Ok(None);
            }
            let ids: Vec<i64> = document[..w].iter().map(|&id| i64::from(id)).collect();
            Ok(Some(document_nll(model, &ids, &[w], options.tile_tokens)?.remove(0)))
        };
        let Some(whole) = forward(longest)? else { return Ok(None) };
        bins.add(&whole);
        for (at, &w) in fitting.iter().enumerate() {
            let nll = match per_length && w < longest {
                true => forward(w)?,
                false => Some(whole[..w - 1].to_vec()),
            };
            let Some(nll) = nll else { return Ok(None) };
            means[at].push(mean(&nll[..w - 1]));
        }
    }
    let rows =
        lengths.iter().zip(means).map(|(&w, means)| row(w, (w - 1) * means.len(), means)).collect();
    Ok(Some((rows, bins.rows())))
}

/// The ends of the scored spans: the same for every context length, spread evenly over the documents that hold the longest.
fn span_ends(documents: &[Vec<u32>], longest: usize, options: &Options) -> Vec<(usize, usize)> {
    let eligible: Vec<usize> =
        (0..documents.len()).filter(|&d| documents[d].len() >= longest).collect();
    let room: usize =
        eligible.iter().map(|&d| (documents[d].len() - longest) / options.last_stride + 1).sum();
    let count = options.max_windows.min(room);
    // The k-th of `room` places, counted through the documents one after another.
    let places = (0..count).map(|i| if count == 1 { 0 } else { i * (room - 1) / (count - 1) });
    places
        .map(|mut place| {
            for &d in &eligible {
                let here = (documents[d].len() - longest) / options.last_stride + 1;
                if place < here {
                    return (d, longest + place * options.last_stride);
                }
                place -= here;
            }
            unreachable!("a place is below the sum of all rooms")
        })
        .collect()
}

fn last_stride(
    model: &Model,
    documents: &[Vec<u32>],
    lengths: &[usize],
    options: &Options,
    is_cut_short: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<LengthRow>>> {
    let longest = *lengths.last().expect("there is a length");
    let ends = span_ends(documents, longest, options);
    let mut rows = Vec::new();
    for &w in lengths {
        // A window of w tokens makes w - 1 predictions.
        let scored = options.last_stride.min(w - 1);
        let mut means = Vec::with_capacity(ends.len());
        for group in ends.chunks((STREAM_TOKENS / w).max(1)) {
            if is_cut_short() {
                return Ok(None);
            }
            let windows = group.iter().map(|&(d, end)| &documents[d][end - w..end]);
            let ids: Vec<i64> = windows.flatten().map(|&id| i64::from(id)).collect();
            let nll = document_nll(model, &ids, &vec![w; group.len()], options.tile_tokens)?;
            means.extend(nll.iter().map(|window| mean(&window[window.len() - scored..])));
        }
        rows.push(row(w, scored * means.len(), means));
    }
    Ok(Some(rows))
}

fn row(context_length: usize, tokens: usize, window_nll: Vec<f64>) -> LengthRow {
    let nll = mean(&window_nll);
    let (nll_low, nll_high) = bootstrap(&window_nll);
    let windows = window_nll.len();
    LengthRow {
        context_length,
        windows,
        tokens,
        nll,
        perplexity: nll.exp(),
        nll_low,
        nll_high,
        window_nll,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The 95 % percentile bootstrap interval of the mean, from 2,000 resamples with a fixed seed.
///
/// Efron and Tibshirani (1993), chapter 13. One value has no spread: the interval is the value.
pub fn bootstrap(values: &[f64]) -> (f64, f64) {
    if values.len() < 2 {
        return (mean(values), mean(values));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..2000)
        .map(|_| {
            let sum: f64 =
                (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum();
            sum / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[49], means[1949])
}

/// Sums of NLL by position. The position of a prediction is the number of tokens it sees, 1 or more.
struct Bins {
    width: Option<usize>,
    sums: Vec<(f64, usize)>,
}

impl Bins {
    fn new(width: Option<usize>) -> Bins {
        Bins { width, sums: Vec::new() }
    }

    /// The first position of bin `k`, counted from 0 tokens before it. Without a width: 0, 16, then half octaves.
    fn edge(&self, k: usize) -> usize {
        match self.width {
            Some(width) => k * width,
            None if k == 0 => 0,
            None => (16.0 * 2f64.powf((k - 1) as f64 / 2.0)).round() as usize,
        }
    }

    fn add(&mut self, nll: &[f64]) {
        let mut bin = 0;
        for (index, value) in nll.iter().enumerate() {
            while index >= self.edge(bin + 1) {
                bin += 1;
            }
            if self.sums.len() <= bin {
                self.sums.resize(bin + 1, (0.0, 0));
            }
            self.sums[bin].0 += value;
            self.sums[bin].1 += 1;
        }
    }

    fn rows(&self) -> Vec<PositionRow> {
        let rows = self.sums.iter().enumerate().filter(|(_, (_, count))| *count > 0);
        rows.map(|(bin, &(sum, tokens))| PositionRow {
            // Prediction `index` sees `index + 1` tokens.
            start: self.edge(bin) + 1,
            end: self.edge(bin + 1) + 1,
            tokens,
            nll: sum / tokens as f64,
        })
        .collect()
    }
}

impl Report {
    /// The report as events of a run.
    pub fn events(&self, step: u64, split: &str) -> Vec<EventKind> {
        let lengths = |method: EvalMethod, rows: &[LengthRow]| -> Vec<EventKind> {
            rows.iter()
                .map(|row| EventKind::Perplexity {
                    step,
                    split: split.to_string(),
                    method,
                    context_length: row.context_length as u64,
                    windows: row.windows as u64,
                    tokens: row.tokens as u64,
                    nll: row.nll,
                    perplexity: row.perplexity,
                    nll_low: row.nll_low,
                    nll_high: row.nll_high,
                    window_nll: row.window_nll.clone(),
                })
                .collect()
        };
        let positions = self.by_position.iter().map(|row| EventKind::PositionNll {
            step,
            split: split.to_string(),
            start: row.start as u64,
            end: row.end as u64,
            tokens: row.tokens as u64,
            nll: row.nll,
        });
        let mut events = lengths(EvalMethod::Prefix, &self.prefix);
        events.extend(lengths(EvalMethod::LastStride, &self.last_stride));
        events.extend(positions);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(last_stride: usize, max_windows: usize) -> Options {
        Options {
            context_lengths: vec![],
            last_stride,
            max_windows,
            bin_tokens: None,
            tile_tokens: 64,
        }
    }

    #[test]
    fn spans_are_spread_over_the_documents_that_hold_the_longest_window() {
        let documents = vec![vec![0; 30], vec![0; 100], vec![0; 60]];
        assert_eq!(span_ends(&documents, 50, &options(10, 3)), [(1, 50), (1, 80), (2, 60)]);
        assert_eq!(span_ends(&documents, 50, &options(10, 99)).len(), 6 + 2);
        assert_eq!(span_ends(&documents, 100, &options(10, 5)), [(1, 100)]);
    }

    #[test]
    fn bins_hold_every_prediction_once() {
        for width in [None, Some(7)] {
            let mut bins = Bins::new(width);
            bins.add(&vec![2.0; 99]);
            bins.add(&[4.0; 20]);
            let rows = bins.rows();
            assert_eq!(rows.iter().map(|row| row.tokens).sum::<usize>(), 119);
            assert_eq!((rows[0].start, rows[0].nll), (1, 3.0));
            assert!(rows.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(rows.last().unwrap().nll, 2.0);
        }
    }

    #[test]
    fn the_bootstrap_holds_the_mean_and_narrows_with_more_values() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 7)).collect();
        let (low, high) = bootstrap(&values);
        let (few_low, few_high) = bootstrap(&values[..20]);
        assert!(low < mean(&values) && mean(&values) < high);
        assert!(high - low < few_high - few_low);
        assert_eq!(bootstrap(&[3.0]), (3.0, 3.0));
    }
}
