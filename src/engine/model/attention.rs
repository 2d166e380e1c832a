//! Causal attention within each document of a stream of packed ones, with an optional sliding window.
//!
//! `T` position in the stream, `N` query heads, `K` key-value heads, `H` head dim, `B` documents of one length.

use fathom_spec::config::Attention;
use std::cell::RefCell;
use std::collections::BTreeSet;
use tch::{Kind, Tensor};

/// Consecutive documents of one length: `count` of them from `start` on, `length` tokens each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub start: i64,
    pub count: i64,
    pub length: i64,
}

/// How attention is computed, and which kernels really did it.
#[derive(Debug)]
pub struct AttentionKernel {
    pub attention: Attention,
    /// Positions that a query sees, itself included.
    pub sliding_window: Option<usize>,
    chosen: RefCell<BTreeSet<&'static str>>,
}

impl AttentionKernel {
    pub fn new(attention: Attention, sliding_window: Option<usize>) -> AttentionKernel {
        AttentionKernel { attention, sliding_window, chosen: RefCell::default() }
    }

    /// The kernels that served so far: `flash`, `efficient`, `cudnn`, `math`, `eager`.
    pub fn chosen(&self) -> Vec<&'static str> {
        self.chosen.borrow().iter().copied().collect()
    }

    /// Attention of every position to its own document up to itself.
    ///
    /// Vaswani et al. (2017): softmax(q k^T / sqrt(H)) v. Documents do not see one another; no `[T, T]` mask exists. A
    /// sliding window is worked in tiles of queries, so its memory grows with the window and not with the document.
    ///
    /// # Shapes
    ///
    /// - `q`: `[T, N, H]`; `k`, `v`: `[T, K, H]`; one dtype
    /// - `lengths`: of the documents, summing to `T`
    /// - returns: `[T, N, H]`
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[usize]) -> Tensor {
        let (_, n, h) = q.size3().expect("q is [T, N, H]");
        let (_, kv, _) = k.size3().expect("k is [T, K, H]");
        let outputs: Vec<Tensor> = runs(lengths)
            .into_iter()
            .map(|run| {
                let Run { start, count, length } = run;
                // [B, heads, length, H]
                let split = |x: &Tensor, heads: i64| {
                    x.narrow(0, start, count * length)
                        .view([count, length, heads, h])
                        .transpose(1, 2)
                };
                let (q, k, v) = (split(q, n), split(k, kv), split(v, kv));
                let (k, v) = (repeat_heads(&k, n / kv), repeat_heads(&v, n / kv));
                let o = self.attend(&q, &k, &v); // [B, N, length, H]
                o.transpose(1, 2).reshape([count * length, n, h])
            })
            .collect();
        match <[Tensor; 1]>::try_from(outputs) {
            Ok([output]) => output,
            Err(outputs) => Tensor::cat(&outputs, 0),
        }
    }

    /// Causal attention over whole documents, `[B, N, T, H]` each.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let length = q.size4().expect("q is [B, N, T, H]").2;
        let window = match self.sliding_window {
            Some(window) if (window as i64) < length => window as i64,
            _ => return self.kernel(q, k, v, None, true),
        };
        // Tiles of queries with just the keys that they see.
        let tile = window.max(128);
        let tiles: Vec<Tensor> = (0..length)
            .step_by(tile as usize)
            .map(|from| {
                let to = (from + tile).min(length);
                let first_key = (from - window + 1).max(0);
                let queries =
                    Tensor::arange_start(from, to, (Kind::Int64, q.device())).unsqueeze(1);
                let keys =
                    Tensor::arange_start(first_key, to, (Kind::Int64, q.device())).unsqueeze(0);
                let distance = queries - keys; // [queries, keys]
                let seen = distance.ge(0).logical_and(&distance.lt(window));
                let part = |x: &Tensor, from: i64| x.narrow(2, from, to - from);
                self.kernel(
                    &part(q, from),
                    &part(k, first_key),
                    &part(v, first_key),
                    Some(&seen),
                    false,
                )
            })
            .collect();
        Tensor::cat(&tiles, 2)
    }

    /// One call of the kernel. `seen` `[queries, keys]` is true where a query sees a key.
    fn kernel(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        seen: Option<&Tensor>,
        causal: bool,
    ) -> Tensor {
        match self.attention {
            Attention::Sdpa => {
                let choice =
                    Tensor::internal_fused_sdp_choice(q, k, v, seen, 0.0, causal, None, false);
                // at::SDPBackend
                let name = match choice {
                    1 => "flash",
                    2 => "efficient",
                    3 => "cudnn",
                    _ => "math",
                };
                self.chosen.borrow_mut().insert(name);
                Tensor::scaled_dot_product_attention(q, k, v, seen, 0.0, causal, None, false)
            }
            Attention::Eager => {
                self.chosen.borrow_mut().insert("eager");
                let (_, _, length, h) = q.size4().expect("q is [B, N, T, H]");
                let scores = q.matmul(&k.transpose(2, 3)) * (h as f64).powf(-0.5); // [B, N, T, T]
                let lower = || Tensor::ones([length, length], (Kind::Bool, q.device())).tril(0);
                let hidden = seen.map_or_else(lower, Tensor::shallow_clone).logical_not();
                // Half precision is too coarse for the sum over thousands of keys.
                let kind = if q.kind() == Kind::Double { Kind::Double } else { Kind::Float };
                let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, kind);
                weights.to_kind(v.kind()).matmul(v)
            }
        }
    }
}

/// Each key-value head once for each of its query heads: `[B, K, T, H]` -> `[B, K * times, T, H]`.
fn repeat_heads(x: &Tensor, times: i64) -> Tensor {
    if times == 1 {
        return x.shallow_clone();
    }
    let (b, k, t, h) = x.size4().expect("x is [B, K, T, H]");
    x.unsqueeze(2).expand([b, k, times, t, h], false).reshape([b, k * times, t, h])
}

/// The documents of a stream, those of one length together where they follow each other.
pub fn runs(lengths: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    for &length in lengths {
        let length = length as i64;
        match runs.last_mut() {
            Some(run) if run.length == length => run.count += 1,
            _ => runs.push(Run { start, count: 1, length }),
        }
        start += length;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(t: i64, heads: i64) -> Tensor {
        Tensor::randn([t, heads, 6], (Kind::Double, Device::Cpu))
    }

    /// Scores in full, one document and head at a time, from the definition.
    fn by_definition(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        lengths: &[usize],
        window: usize,
    ) -> Tensor {
        let (t, n, h) = q.size3().unwrap();
        let group = n / k.size3().unwrap().1;
        let document: Vec<usize> =
            lengths.iter().enumerate().flat_map(|(d, &length)| vec![d; length]).collect();
        let output = Tensor::zeros([t, n, h], (Kind::Double, Device::Cpu));
        for head in 0..n {
            for i in 0..t {
                let sees = |j: &i64| {
                    document[*j as usize] == document[i as usize] && i - j < window as i64
                };
                let keys: Vec<i64> = (0..=i).filter(sees).collect();
                let pick = |x: &Tensor| {
                    x.select(1, head / group).index_select(0, &Tensor::from_slice(&keys))
                };
                let scores = pick(k).mv(&q.get(i).get(head)) / (h as f64).sqrt();
                let o = scores.softmax(0, Kind::Double).unsqueeze(0).mm(&pick(v)).squeeze();
                output.get(i).get(head).copy_(&o);
            }
        }
        output
    }

    fn check(attention: Attention, window: Option<usize>, lengths: &[usize]) {
        let t = lengths.iter().sum::<usize>() as i64;
        let (q, k, v) = (random(t, 4), random(t, 2), random(t, 2));
        let kernel = AttentionKernel::new(attention, window);
        let found = kernel.forward(&q, &k, &v, lengths);
        let expected = by_definition(&q, &k, &v, lengths, window.unwrap_or(usize::MAX >> 1));
        let off = f64::try_from((found - expected).abs().max()).unwrap();
        assert!(off < 1e-12, "{attention:?} {window:?} {lengths:?}: off by {off}");
    }

    #[test]
    fn documents_see_themselves_and_nothing_else() {
        for attention in [Attention::Sdpa, Attention::Eager] {
            check(attention, None, &[7]);
            check(attention, None, &[3, 3, 1, 5, 5, 2]);
            check(attention, Some(3), &[7, 2, 4]);
            check(attention, Some(5), &[300]);
        }
    }
}
