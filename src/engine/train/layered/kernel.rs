//! Causal attention within documents, with a backward of its own: which kernel serves, and over which parts of the stream.
//!
//! `T` position in the stream, `N` query heads, `K` key-value heads, `H` head dim; `B` documents of one length, `Q` queries
//! and `S` keys of each that one call works on.

use crate::model::at_least_float;
use crate::model::attention::{Run, runs};
use crate::model::normal;
use crate::torch::attention::{Extent, Fused, Kept};
use anyhow::{Result, ensure};
use fathom_spec::config::Attention;
use std::cell::RefCell;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

/// Fewest queries of a sliding window that one call works on.
const WINDOW_TILE: i64 = 128;
/// Tokens of the documents that kernels are tried on.
const TRIAL_LENGTHS: [usize; 3] = [96, 40, 56];
/// The sliding window that they are tried with.
const TRIAL_WINDOW: i64 = 8;

/// Attention for streams of documents.
pub struct Kernel {
    /// Positions that a query sees, itself included.
    window: Option<i64>,
    /// For streams with a document that is longer than the window.
    windowed: Way,
    /// For others whose documents all have one length.
    alike: Way,
    /// For all others.
    mixed: Way,
    used: RefCell<BTreeSet<&'static str>>,
    passed_over: Vec<String>,
}

/// How one call is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fused(Fused),
    /// The scores in full, `[B, N, Q, S]`: for comparison, and where no kernel serves.
    Eager,
}

/// What the backward of a forward needs, call by call.
pub struct Saved(Vec<SavedCall>);

enum SavedCall {
    Fused(Kept),
    /// The log-sum-exp of the scores: `[B, N, Q]`.
    Eager(Tensor),
}

/// The part of the stream that one call works on: of `run.count` documents the queries `from..to`, with the keys from
/// `first_key` on.
struct Call {
    run: Run,
    from: i64,
    to: i64,
    first_key: i64,
    /// Where documents begin and end, for a kernel that takes them all at once: `[documents + 1]`, int32.
    offsets: Option<Tensor>,
    longest: i64,
    /// Where the window, and not the document alone, decides what is seen.
    windowed: bool,
}

/// The heads that a kernel will work on.
#[derive(Debug, Clone, Copy)]
pub struct HeadShape {
    pub num_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
}

impl Kernel {
    /// The fastest kernel that the device has for such heads. Each is tried on a few tokens against the scores in full: one
    /// that refuses them, or gives something else, is passed over.
    pub fn new(
        attention: Attention,
        sliding_window: Option<usize>,
        heads: HeadShape,
        kind: Kind,
        device: Device,
    ) -> Kernel {
        let mut passed_over = Vec::new();
        let mut choose = |window: Option<i64>, lengths: &[usize]| {
            let ways = candidates(attention, window.is_some(), lengths.len() == 1, kind, device);
            let serves = |way: &Way| match trial(*way, window, lengths, heads, kind, device) {
                Ok(()) => true,
                Err(reason) => {
                    passed_over.push(format!("{}: {reason}", way.name()));
                    false
                }
            };
            ways.into_iter().find(serves).unwrap_or(Way::Eager)
        };
        Kernel {
            window: sliding_window.map(|window| window as i64),
            windowed: choose(Some(TRIAL_WINDOW), &TRIAL_LENGTHS),
            alike: choose(None, &TRIAL_LENGTHS[..1]),
            mixed: choose(None, &TRIAL_LENGTHS),
            used: RefCell::default(),
            passed_over,
        }
    }

    /// The kernels that served so far.
    pub fn used(&self) -> Vec<&'static str> {
        self.used.borrow().iter().copied().collect()
    }

    /// The faster kernels that were tried and did not serve, each with what was wrong.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Attention of every position to its own document up to itself: softmax(q k^T / sqrt(H)) v.
    ///
    /// # Shapes
    ///
    /// - `q`: `[T, N, H]`; `k`, `v`: `[T, K, H]`; one dtype, only `H` has to be contiguous
    /// - `lengths`: of the documents, summing to `T`
    /// - returns: `[T, N, H]`
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        lengths: &[usize],
    ) -> (Tensor, Saved) {
        let way = self.way(lengths);
        self.used.borrow_mut().insert(way.name());
        forward(way, self.window, q, k, v, lengths).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The backward of [`Kernel::forward`].
    ///
    /// # Shapes
    ///
    /// - `d_o`, `o`: `[T, N, H]`; `q`, `k`, `v` as in the forward
    /// - returns: `dq` `[T, N, H]`, `dk` and `dv` `[T, K, H]`
    #[expect(clippy::too_many_arguments, reason = "the tensors of one formula")]
    pub fn backward(
        &self,
        d_o: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        saved: &Saved,
        lengths: &[usize],
    ) -> [Tensor; 3] {
        backward(self.way(lengths), self.window, d_o, [q, k, v], o, saved, lengths)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn way(&self, lengths: &[usize]) -> Way {
        let longest = lengths.iter().copied().max().unwrap_or(0) as i64;
        match self.window {
            Some(window) if window < longest => self.windowed,
            _ if lengths.windows(2).all(|pair| pair[0] == pair[1]) => self.alike,
            _ => self.mixed,
        }
    }
}

/// The kernels to try, the fastest first. `one_length`: every stream is of documents of one length.
fn candidates(
    attention: Attention,
    windowed: bool,
    one_length: bool,
    kind: Kind,
    device: Device,
) -> Vec<Way> {
    let half = matches!(kind, Kind::BFloat16 | Kind::Half);
    let fused: &[Fused] = match (attention, device.is_cuda()) {
        (Attention::Eager, _) => &[],
        (_, false) => &[Fused::FlashCpu],
        (_, true) if half && windowed => &[Fused::Flash],
        // cuDNN prepares anew for every length that it meets, which costs more than it saves where lengths change.
        (_, true) if half && !one_length => &[Fused::Flash, Fused::Efficient],
        (_, true) if half => &[Fused::Cudnn, Fused::Flash, Fused::Efficient],
        (_, true) if windowed => &[],
        (_, true) => &[Fused::Efficient],
    };
    fused.iter().map(|fused| Way::Fused(*fused)).chain([Way::Eager]).collect()
}

/// Tries whether `way` gives what the scores in full give, forward and backward, for a few made-up tokens; the error is what
/// was wrong with it.
fn trial(
    way: Way,
    window: Option<i64>,
    lengths: &[usize],
    heads: HeadShape,
    kind: Kind,
    device: Device,
) -> Result<()> {
    let HeadShape { num_heads: n, num_key_value_heads: k, head_dim: h } = heads;
    let t = lengths.iter().sum::<usize>() as i64;
    // Laid out as the engine lays them out: the heads of a position side by side.
    let made_up =
        |heads: i64, seed: u64| normal(&[t, heads, h], 1.0, seed, 0, kind).to_device(device);
    let packed = made_up(n + 2 * k, 1);
    let parts = [(0, n), (n, k), (n + k, k)].map(|(from, count)| packed.narrow(1, from, count));
    let d_o = made_up(n, 2);
    let run = |way: Way, [q, k, v]: [&Tensor; 3], d_o: &Tensor| -> Result<[Tensor; 4]> {
        let (o, saved) = forward(way, window, q, k, v, lengths)?;
        let [dq, dk, dv] = backward(way, window, d_o, [q, k, v], &o, &saved, lengths)?;
        Ok([o, dq, dk, dv])
    };
    let exact = |x: &Tensor| x.to_kind(at_least_float(kind));
    let [q, k, v] = &parts;
    let found = run(way, [q, k, v], &d_o)?;
    let expected = run(Way::Eager, [&exact(q), &exact(k), &exact(v)], &exact(&d_o))?;
    let bound = match kind {
        Kind::Double => 1e-9,
        Kind::Float => 1e-3,
        _ => 3e-2,
    };
    for (name, (found, expected)) in ["o", "dq", "dk", "dv"].iter().zip(found.iter().zip(&expected))
    {
        let off = (exact(found) - expected).norm() / expected.norm();
        let off = f64::try_from(off)?;
        ensure!(off < bound, "its {name} is off by {off:.1e} of its norm");
    }
    Ok(())
}

fn forward(
    way: Way,
    window: Option<i64>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &[usize],
) -> Result<(Tensor, Saved)> {
    let calls = calls(way, window, lengths, q.device());
    let mut saved = Vec::with_capacity(calls.len());
    let mut outputs = Rows::new(q, calls.len() == 1);
    for call in &calls {
        let (q, k, v) = (call.queries(q), call.keys(k), call.keys(v));
        let (o, kept) = call.forward(way, window, &q, &k, &v)?;
        outputs.set(call, o);
        saved.push(kept);
    }
    Ok((outputs.take(), Saved(saved)))
}

fn backward(
    way: Way,
    window: Option<i64>,
    d_o: &Tensor,
    [q, k, v]: [&Tensor; 3],
    o: &Tensor,
    saved: &Saved,
    lengths: &[usize],
) -> Result<[Tensor; 3]> {
    let calls = calls(way, window, lengths, q.device());
    let one = calls.len() == 1;
    let mut gradients = [q, k, v].map(|x| Rows::new(x, one));
    for (call, kept) in calls.iter().zip(&saved.0) {
        let (call_q, call_k, call_v) = (call.queries(q), call.keys(k), call.keys(v));
        let (d_o, o) = (call.queries(d_o), call.queries(o));
        let [dq, dk, dv] =
            call.backward(way, window, &d_o, [&call_q, &call_k, &call_v], &o, kept)?;
        let [to_q, to_k, to_v] = &mut gradients;
        to_q.set(call, dq);
        // The keys of neighbouring windows overlap.
        to_k.add(call, dk);
        to_v.add(call, dv);
    }
    Ok(gradients.map(Rows::take))
}

/// The calls that cover a stream.
fn calls(way: Way, window: Option<i64>, lengths: &[usize], device: Device) -> Vec<Call> {
    let runs = runs(lengths);
    let longest = lengths.iter().copied().max().unwrap_or(0) as i64;
    if let Way::Fused(fused) = way
        && fused.takes_documents()
    {
        let t = lengths.iter().sum::<usize>() as i64;
        let windowed = window.is_some_and(|window| window < longest);
        let (run, offsets) = match runs[..] {
            [run] => (run, None),
            _ => (Run { start: 0, count: 1, length: t }, Some(offsets(lengths, device))),
        };
        let to = run.length;
        return vec![Call { run, from: 0, to, first_key: 0, offsets, longest, windowed }];
    }
    runs.into_iter().flat_map(|run| calls_of_run(run, window)).collect()
}

/// Whole documents, or tiles of queries with just the keys that they see: the memory of a window grows with the window.
fn calls_of_run(run: Run, window: Option<i64>) -> Vec<Call> {
    let length = run.length;
    let call = |from: i64, to: i64, first_key: i64, windowed: bool| Call {
        run,
        from,
        to,
        first_key,
        offsets: None,
        longest: length,
        windowed,
    };
    match window {
        Some(window) if window < length => {
            let tile = window.max(WINDOW_TILE);
            let starts = (0..length).step_by(tile as usize);
            let tile =
                |from: i64| call(from, (from + tile).min(length), (from - window + 1).max(0), true);
            starts.map(tile).collect()
        }
        _ => vec![call(0, length, 0, false)],
    }
}

fn offsets(lengths: &[usize], device: Device) -> Tensor {
    let ends = lengths.iter().scan(0i32, |end, length| {
        *end += *length as i32;
        Some(*end)
    });
    let offsets: Vec<i32> = std::iter::once(0).chain(ends).collect();
    Tensor::from_slice(&offsets).to_device(device)
}

impl Call {
    /// The rows of this call's queries: `[T, heads, H]` to `[B, Q, heads, H]`.
    fn queries(&self, x: &Tensor) -> Tensor {
        self.documents(x).narrow(1, self.from, self.to - self.from)
    }

    /// The rows of this call's keys: `[T, heads, H]` to `[B, S, heads, H]`.
    fn keys(&self, x: &Tensor) -> Tensor {
        self.documents(x).narrow(1, self.first_key, self.to - self.first_key)
    }

    fn documents(&self, x: &Tensor) -> Tensor {
        let (_, heads, h) = x.size3().expect("x is [T, heads, H]");
        let Run { start, count, length } = self.run;
        x.narrow(0, start, count * length).view([count, length, heads, h])
    }

    /// # Shapes
    ///
    /// - `q`: `[B, Q, N, H]`; `k`, `v`: `[B, S, K, H]`
    /// - returns: `[B, Q, N, H]`
    fn forward(
        &self,
        way: Way,
        window: Option<i64>,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, SavedCall)> {
        let times = q.size()[2] / k.size()[2];
        match way {
            Way::Fused(fused) => {
                let scores = self.scores(way, window, q.kind(), q.device());
                let extent = self.extent(window, scores.as_ref());
                let (k, v) = if fused.groups_heads() {
                    (k.shallow_clone(), v.shallow_clone())
                } else {
                    (repeat_heads(k, times), repeat_heads(v, times))
                };
                let (o, kept) = fused.forward(q, &k, &v, &extent)?;
                Ok((o, SavedCall::Fused(kept)))
            }
            Way::Eager => {
                let (k, v) = (repeat_heads(k, times), repeat_heads(v, times));
                let scores = self.eager_scores(window, q, &k);
                let lse = scores.logsumexp([-1i64].as_slice(), false); // [B, N, Q]
                let weights = (scores - lse.unsqueeze(-1)).exp().to_kind(v.kind());
                let o = weights.matmul(&v.transpose(1, 2)).transpose(1, 2);
                Ok((o, SavedCall::Eager(lse)))
            }
        }
    }

    /// # Shapes
    ///
    /// - `d_o`, `o`: `[B, Q, N, H]`; `q`, `k`, `v` as in the forward
    /// - returns: `dq` `[B, Q, N, H]`, `dk` and `dv` `[B, S, K, H]`
    fn backward(
        &self,
        way: Way,
        window: Option<i64>,
        d_o: &Tensor,
        [q, k, v]: [&Tensor; 3],
        o: &Tensor,
        kept: &SavedCall,
    ) -> Result<[Tensor; 3]> {
        let times = q.size()[2] / k.size()[2];
        match (way, kept) {
            (Way::Fused(fused), SavedCall::Fused(kept)) => {
                let scores = self.scores(way, window, q.kind(), q.device());
                let extent = self.extent(window, scores.as_ref());
                if fused.groups_heads() {
                    return fused.backward(d_o, q, k, v, o, kept, &extent);
                }
                let (k, v) = (repeat_heads(k, times), repeat_heads(v, times));
                let [dq, dk, dv] = fused.backward(d_o, q, &k, &v, o, kept, &extent)?;
                Ok([dq, sum_heads(&dk, times), sum_heads(&dv, times)])
            }
            (Way::Eager, SavedCall::Eager(lse)) => {
                let (k, v) = (repeat_heads(k, times), repeat_heads(v, times));
                let [dq, dk, dv] = self.eager_backward(window, d_o, [q, &k, &v], o, lse);
                Ok([dq, sum_heads(&dk, times), sum_heads(&dv, times)])
            }
            _ => unreachable!("a forward and its backward go the same way"),
        }
    }

    /// The backward of the scores in full. With `P` the weights and `*` by elements:
    /// `dV = P^T dO`, `dS = P * (dO V^T - rows(dO * O))`, `dQ = dS K / sqrt(H)`, `dK = dS^T Q / sqrt(H)`.
    fn eager_backward(
        &self,
        window: Option<i64>,
        d_o: &Tensor,
        [q, k, v]: [&Tensor; 3],
        o: &Tensor,
        lse: &Tensor,
    ) -> [Tensor; 3] {
        let kind = q.kind();
        let exact = lse.kind();
        let scale = (q.size()[3] as f64).powf(-0.5);
        let weights = (self.eager_scores(window, q, k) - lse.unsqueeze(-1)).exp(); // [B, N, Q, S]
        let [d_o, q, k, v, o] = [d_o, q, k, v, o].map(|x| x.transpose(1, 2)); // [B, N, .., H]
        let dv = weights.to_kind(kind).transpose(2, 3).matmul(&d_o);
        let d_weights = d_o.matmul(&v.transpose(2, 3)).to_kind(exact);
        let of_output = (d_o.to_kind(exact) * o.to_kind(exact)).sum_dim_intlist(
            [-1i64].as_slice(),
            true,
            exact,
        ); // [B, N, Q, 1]
        let d_scores = ((weights * (d_weights - of_output)) * scale).to_kind(kind);
        let dq = d_scores.matmul(&k);
        let dk = d_scores.transpose(2, 3).matmul(&q);
        [dq, dk, dv].map(|x| x.transpose(1, 2))
    }

    /// The scores, `-inf` where a query does not see a key: `[B, N, Q, S]`, float32 or better.
    fn eager_scores(&self, window: Option<i64>, q: &Tensor, k: &Tensor) -> Tensor {
        let scale = (q.size()[3] as f64).powf(-0.5);
        let scores = q.transpose(1, 2).matmul(&k.permute([0, 2, 3, 1]));
        let scores = scores.to_kind(at_least_float(q.kind())) * scale;
        scores.masked_fill(&self.seen(window, q.device()).logical_not(), f64::NEG_INFINITY)
    }

    /// What the CPU's kernel adds to the scores of a window.
    fn scores(&self, way: Way, window: Option<i64>, kind: Kind, device: Device) -> Option<Tensor> {
        if !self.windowed || way != Way::Fused(Fused::FlashCpu) {
            return None;
        }
        let hidden = self.seen(window, device).logical_not();
        let zeros = hidden.zeros_like().to_kind(kind);
        Some(zeros.masked_fill(&hidden, f64::NEG_INFINITY))
    }

    /// Which query sees which key: `[Q, S]`, bool.
    fn seen(&self, window: Option<i64>, device: Device) -> Tensor {
        let positions = |from: i64| Tensor::arange_start(from, self.to, (Kind::Int64, device));
        let distance = positions(self.from).unsqueeze(1) - positions(self.first_key).unsqueeze(0);
        let before = distance.ge(0);
        match window {
            Some(window) => before.logical_and(&distance.lt(window)),
            None => before,
        }
    }

    fn extent<'a>(&'a self, window: Option<i64>, scores: Option<&'a Tensor>) -> Extent<'a> {
        Extent {
            offsets: self.offsets.as_ref(),
            longest: self.longest,
            window: window.filter(|_| self.windowed),
            scores,
        }
    }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Fused(fused) => fused.name(),
            Way::Eager => "eager",
        }
    }
}

/// A tensor `[T, heads, H]` that calls fill; one call's own, where there is one call.
struct Rows {
    rows: Option<Tensor>,
    size: Vec<i64>,
    one_call: bool,
}

impl Rows {
    fn new(like: &Tensor, one_call: bool) -> Rows {
        let rows = (!one_call).then(|| Tensor::zeros(like.size(), (like.kind(), like.device())));
        Rows { rows, size: like.size(), one_call }
    }

    /// `[B, Q, heads, H]` for the call's queries.
    fn set(&mut self, call: &Call, x: Tensor) {
        match &self.rows {
            Some(rows) => call.queries(rows).copy_(&x),
            None => self.rows = Some(x.reshape(&self.size)),
        }
    }

    /// `[B, S, heads, H]` onto the call's keys.
    fn add(&mut self, call: &Call, x: Tensor) {
        match &self.rows {
            Some(rows) => drop(call.keys(rows).g_add_(&x)),
            None => self.rows = Some(x.reshape(&self.size)),
        }
    }

    fn take(self) -> Tensor {
        debug_assert!(self.rows.is_some() || !self.one_call);
        self.rows.unwrap_or_else(|| unreachable!("a stream has a document"))
    }
}

/// Each key-value head once for each of its query heads: `[B, S, K, H]` -> `[B, S, K * times, H]`.
fn repeat_heads(x: &Tensor, times: i64) -> Tensor {
    if times == 1 {
        return x.shallow_clone();
    }
    let (b, s, k, h) = x.size4().expect("x is [B, S, K, H]");
    x.unsqueeze(3).expand([b, s, k, times, h], false).reshape([b, s, k * times, h])
}

/// The backward of [`repeat_heads`]: `[B, S, K * times, H]` -> `[B, S, K, H]`.
fn sum_heads(dx: &Tensor, times: i64) -> Tensor {
    if times == 1 {
        return dx.shallow_clone();
    }
    let (b, s, n, h) = dx.size4().expect("dx is [B, S, N, H]");
    let sum = at_least_float(dx.kind());
    dx.reshape([b, s, n / times, times, h])
        .sum_dim_intlist([3i64].as_slice(), false, sum)
        .to_kind(dx.kind())
}
