//! The attention of a layer, a group of heads at a time: only one group's queries, keys and values exist at once.
//!
//! `T` position, `D` hidden, `N` query heads, `K` key-value heads, `H` head dim; `n` and `k` are a group's share of `N` and `K`.

use super::kept::{Arrived, tiles_of};
use super::kernel::{Kernel, Saved};
use super::norm::add_rms_norm_backward;
use super::outputs::Outputs;
use super::products::{add_matmul, add_product, unset, zeros};
use crate::kernels;
use crate::model::block::{Block, Stream, rms_norm};
use crate::model::rope::rotate;
use crate::torch::same_storage;
use tch::Tensor;

/// What the attention of every layer shares.
pub struct Shared<'a> {
    pub stream: &'a Stream<'a>,
    pub kernel: &'a Kernel,
    pub groups: &'a [HeadGroup],
    /// Positions that are projected at one time.
    pub tile_tokens: i64,
}

/// Some key-value heads with the query heads that read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadGroup {
    pub first_key_value_head: i64,
    pub num_key_value_heads: i64,
    /// Query heads that read one key-value head.
    pub queries_per_key: i64,
}

/// What the backward does not need any more.
#[derive(Debug, Clone, Copy)]
pub enum Done {
    /// Outputs, queries, keys and values of a group.
    Group(usize),
    /// Rows of the layer's input: the first, and how many.
    Rows(i64, i64),
}

/// The gradients of the attention's weights, float32 (float64 for float64).
pub struct AttentionGradients {
    pub input_layernorm: Tensor, // [D]
    pub q_proj: Tensor,          // [N H, D]
    pub k_proj: Tensor,          // [K H, D]
    pub v_proj: Tensor,          // [K H, D]
    pub o_proj: Tensor,          // [D, N H]
}

/// The queries, keys and values of a group, the heads of a position side by side.
pub struct Heads {
    all: Tensor, // [T, n + 2 k, H]
    group: HeadGroup,
}

/// Splits `num_key_value_heads` heads into `groups` groups that differ by one head at most.
///
/// # Panics
///
/// When there are more groups than key-value heads, or none.
pub fn head_groups(
    num_attention_heads: usize,
    num_key_value_heads: usize,
    groups: usize,
) -> Vec<HeadGroup> {
    assert!((1..=num_key_value_heads).contains(&groups), "{groups} groups of heads");
    let begin = |group: usize| (group * num_key_value_heads / groups) as i64;
    let queries_per_key = (num_attention_heads / num_key_value_heads) as i64;
    (0..groups)
        .map(|group| HeadGroup {
            first_key_value_head: begin(group),
            num_key_value_heads: begin(group + 1) - begin(group),
            queries_per_key,
        })
        .collect()
}

impl HeadGroup {
    pub fn num_heads(&self) -> i64 {
        self.num_key_value_heads * self.queries_per_key
    }

    /// Its part of what has a row or column for every number of every query head.
    fn of_queries(&self, x: &Tensor, dim: i64, head_dim: i64) -> Tensor {
        let first = self.first_key_value_head * self.queries_per_key;
        x.narrow(dim, first * head_dim, self.num_heads() * head_dim)
    }

    /// The same for key-value heads.
    fn of_keys(&self, x: &Tensor, dim: i64, head_dim: i64) -> Tensor {
        x.narrow(dim, self.first_key_value_head * head_dim, self.num_key_value_heads * head_dim)
    }

    /// Its rows of the three projections, one below the other: `[(n + 2 k) H, D]`.
    fn qkv_proj(&self, layer: &Block, head_dim: i64) -> Tensor {
        let rows = [
            self.of_queries(&layer.q_proj, 0, head_dim),
            self.of_keys(&layer.k_proj, 0, head_dim),
            self.of_keys(&layer.v_proj, 0, head_dim),
        ];
        as_they_lie(&rows).unwrap_or_else(|| Tensor::cat(&rows, 0))
    }
}

impl Heads {
    /// Those of `group`, as [`Heads::side_by_side`] gave them.
    fn from_rows(rows: &Tensor, group: HeadGroup, head_dim: i64) -> Heads {
        let (t, _) = rows.size2().expect("rows are [T, (n + 2 k) H]");
        Heads { all: rows.view([t, -1, head_dim]), group }
    }

    /// All of them: `[T, (n + 2 k) H]`, the same memory.
    pub fn side_by_side(&self) -> Tensor {
        self.all.flatten(1, 2)
    }

    fn queries(&self) -> Tensor {
        self.all.narrow(1, 0, self.group.num_heads()) // [T, n, H]
    }

    fn keys(&self) -> Tensor {
        self.all.narrow(1, self.group.num_heads(), self.group.num_key_value_heads) // [T, k, H]
    }

    fn values(&self) -> Tensor {
        let k = self.group.num_key_value_heads;
        self.all.narrow(1, self.group.num_heads() + k, k) // [T, k, H]
    }
}

/// The heads' outputs for the layer's input `x`, before the output projection, group by group into `outputs`; returns what the
/// backward needs of each group.
///
/// The forward, and the recompute of the backward: there is no other. `keep` is given each group's queries, keys and values
/// as soon as they are made.
///
/// # Shapes
///
/// - `x`: `[T, D]`, the dtype of the layer's weights
/// - `outputs` takes `[T, n H]` of each group
pub fn forward(
    x: &Arrived,
    layer: &Block,
    shared: &Shared,
    outputs: &mut Outputs,
    mut keep: impl FnMut(usize, &Heads),
) -> Vec<Saved> {
    let (t, _) = x.size2();
    let of_group = |(index, group): (usize, &HeadGroup)| {
        let qkv_proj = group.qkv_proj(layer, shared.stream.head_dim);
        let heads = project(x, layer, &qkv_proj, *group, shared);
        keep(index, &heads);
        let (q, k, v) = (heads.queries(), heads.keys(), heads.values());
        let (o, saved) = shared.kernel.forward(&q, &k, &v, shared.stream.lengths);
        outputs.push(o.reshape([t, -1]));
        saved
    };
    shared.groups.iter().enumerate().map(of_group).collect()
}

/// A group's queries, keys and values: norm, projection and rotation, tile by tile.
fn project(
    x: &Arrived,
    layer: &Block,
    qkv_proj: &Tensor,
    group: HeadGroup,
    shared: &Shared,
) -> Heads {
    let (t, _) = x.size2();
    let (rotated, values) =
        (group.num_heads() + group.num_key_value_heads, group.num_key_value_heads);
    let h = shared.stream.head_dim;
    let all = Tensor::empty([t, rotated + values, h], (qkv_proj.kind(), qkv_proj.device()));
    for (from, count) in tiles_of(&all.select(2, 0), shared.tile_tokens) {
        let normed =
            rms_norm(&x.rows(from, count), &layer.input_layernorm, shared.stream.rms_norm_eps);
        let rows = all.narrow(0, from, count);
        let _ = normed.matmul_out(&rows.view([count, -1]), &qkv_proj.transpose(0, 1));
        let (cos, sin) = angles(shared, from, count);
        if !kernels::of(&rows).is_some_and(|k| k.rotate_(&rows, rotated, &cos, &sin)) {
            let mut unturned = rows.narrow(1, 0, rotated);
            unturned.copy_(&rotate(&unturned, &cos, &sin));
        }
    }
    Heads { all, group }
}

fn angles(shared: &Shared, from: i64, count: i64) -> (Tensor, Tensor) {
    let rows = |table: &Tensor| table.narrow(0, from, count);
    (rows(shared.stream.cos), rows(shared.stream.sin))
}

/// The backward of the attention and of the residual stream around it.
///
/// Forward: `n = norm(x)`; `q, k, v = n W_qkv`, `q, k` rotated; `o = attention(q, k, v)`; `h = x + o W_o`.
/// Backward, in reverse, group by group: `do = dh W_o`, `dW_o`; attention; the rotation the other way; `dn += .. W_qkv`,
/// `dW_qkv`; and when all groups are in: `dx = dh + norm'(dn)`.
///
/// `kept_heads` are those of the groups, if the forward kept them. `done` is told what is not needed any more.
///
/// # Shapes
///
/// - `x`: `[T, D]`, the layer's input; `outputs` and `saved`: of [`forward`]
/// - `g`: `[T, D]`, the gradient of `h`; it becomes that of `x`
#[expect(clippy::too_many_arguments, reason = "the tensors of one formula")]
pub fn backward(
    x: &Arrived,
    outputs: &mut Outputs,
    saved: Vec<Saved>,
    kept_heads: &[Arrived],
    g: &Tensor,
    layer: &Block,
    shared: &Shared,
    mut done: impl FnMut(Done),
) -> AttentionGradients {
    let (t, _) = x.size2();
    let head_dim = shared.stream.head_dim;
    let mut gradients = AttentionGradients::for_groups(shared.groups, layer, g);
    let dn = g.zeros_like();
    for (index, (group, saved)) in shared.groups.iter().zip(saved).enumerate() {
        let qkv_proj = group.qkv_proj(layer, head_dim); // [(n + 2 k) H, D]
        let o_proj = group.of_queries(&layer.o_proj, 1, head_dim); // [D, n H]

        // h = x + o W_o
        let o = outputs.take(index); // [T, n H]
        let d_o = g.matmul(&o_proj); // [T, n H]
        {
            let d_o_proj = unset(&o_proj.size(), g);
            add_product(&d_o_proj, g, &o, true);
            gradients.set_o(group, d_o_proj, head_dim);
        }

        // o = attention(q, k, v)
        let heads = match kept_heads.get(index) {
            Some(kept) => Heads::from_rows(&kept.all(), *group, head_dim),
            None => project(x, layer, &qkv_proj, *group, shared),
        };
        let by_head = |x: &Tensor| x.view([t, group.num_heads(), head_dim]);
        let d_heads = shared.kernel.backward(
            &by_head(&d_o),
            &heads.queries(),
            &heads.keys(),
            &heads.values(),
            &by_head(&o),
            &saved,
            shared.stream.lengths,
        );
        drop((o, d_o, heads, saved));
        done(Done::Group(index));

        // q, k, v = n W_qkv, with q and k rotated
        let d_qkv_proj = unset(&qkv_proj.size(), g);
        for (from, count) in tiles_of(g, shared.tile_tokens) {
            let d_qkv = unrotate(&d_heads, from, count, shared); // [count, (n + 2 k) H]
            let normed =
                rms_norm(&x.rows(from, count), &layer.input_layernorm, shared.stream.rms_norm_eps);
            add_product(&d_qkv_proj, &d_qkv, &normed, from == 0);
            add_matmul(&dn.narrow(0, from, count), &d_qkv, &qkv_proj);
        }
        gradients.set_qkv(group, d_qkv_proj, head_dim);
    }

    // n = norm(x)
    for (from, count) in tiles_of(g, shared.tile_tokens) {
        add_rms_norm_backward(
            &g.narrow(0, from, count),
            &gradients.input_layernorm,
            &dn.narrow(0, from, count),
            &x.rows(from, count),
            &layer.input_layernorm,
            shared.stream.rms_norm_eps,
        );
        done(Done::Rows(from, count));
    }
    gradients
}

/// Some rows of the gradients of queries, keys and values as the projection made them: turned back, side by side.
///
/// The rotation is orthogonal but for its scale, which stays: turning the other way is its transpose.
///
/// # Shapes
///
/// - `dq`: `[T, n, H]`; `dk`, `dv`: `[T, k, H]`
/// - returns: `[count, (n + 2 k) H]`
fn unrotate([dq, dk, dv]: &[Tensor; 3], from: i64, count: i64, shared: &Shared) -> Tensor {
    let rows = |x: &Tensor| x.narrow(0, from, count);
    let (cos, sin) = angles(shared, from, count);
    let fused =
        kernels::of(dq).and_then(|k| k.unrotate([&rows(dq), &rows(dk), &rows(dv)], &cos, &sin));
    if let Some(side_by_side) = fused {
        return side_by_side;
    }
    let turned = rotate(&Tensor::cat(&[rows(dq), rows(dk)], 1), &cos, &sin.neg());
    Tensor::cat(&[turned, rows(dv)], 1).view([count, -1])
}

impl AttentionGradients {
    /// Room for what several groups give. What the only one gives is all.
    fn for_groups(groups: &[HeadGroup], layer: &Block, g: &Tensor) -> AttentionGradients {
        let room = |weight: &Tensor| match groups {
            [_] => unset(&[0], g),
            _ => unset(&weight.size(), g),
        };
        AttentionGradients {
            input_layernorm: zeros(&layer.input_layernorm.size(), g),
            q_proj: room(&layer.q_proj),
            k_proj: room(&layer.k_proj),
            v_proj: room(&layer.v_proj),
            o_proj: room(&layer.o_proj),
        }
    }

    /// Takes a group's `[D, n H]`.
    fn set_o(&mut self, group: &HeadGroup, d_o_proj: Tensor, head_dim: i64) {
        let mine = |whole: &mut Tensor| group.of_queries(whole, 1, head_dim);
        put(&mut self.o_proj, d_o_proj, mine);
    }

    /// Takes a group's `[(n + 2 k) H, D]`.
    fn set_qkv(&mut self, group: &HeadGroup, d_qkv_proj: Tensor, head_dim: i64) {
        let (n, k) = (group.num_heads() * head_dim, group.num_key_value_heads * head_dim);
        let rows = |from: i64, count: i64| d_qkv_proj.narrow(0, from, count);
        put(&mut self.q_proj, rows(0, n), |whole| group.of_queries(whole, 0, head_dim));
        put(&mut self.k_proj, rows(n, k), |whole| group.of_keys(whole, 0, head_dim));
        put(&mut self.v_proj, rows(n + k, k), |whole| group.of_keys(whole, 0, head_dim));
    }
}

/// Puts a group's part of a gradient where its heads are, or in the place of a whole that has no room for parts.
fn put(whole: &mut Tensor, part: Tensor, place: impl FnOnce(&mut Tensor) -> Tensor) {
    match whole.numel() {
        0 => *whole = part,
        _ => place(whole).copy_(&part),
    }
}

/// Matrices that lie one below the other in memory as one, the same memory.
fn as_they_lie(parts: &[Tensor]) -> Option<Tensor> {
    let end =
        |x: &Tensor| (x.data_ptr() as usize).wrapping_add(x.numel() * x.kind().elt_size_in_bytes());
    // Chance, too, may put one behind the other: then they are no part of one allocation.
    let follows = |pair: &[Tensor]| {
        end(&pair[0]) == pair[1].data_ptr() as usize && same_storage(&pair[0], &pair[1])
    };
    let lie_so = parts.iter().all(Tensor::is_contiguous) && parts.windows(2).all(follows);
    let rows = parts.iter().map(|part| part.size()[0]).sum::<i64>();
    let columns = parts[0].size()[1];
    lie_so.then(|| parts[0].as_strided([rows, columns], [columns, 1], None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn matrices_are_one_where_they_lie_so() {
        let whole = Tensor::rand([7, 3], (Kind::Float, Device::Cpu));
        let parts = [whole.narrow(0, 1, 2), whole.narrow(0, 3, 1), whole.narrow(0, 4, 2)];
        let one = as_they_lie(&parts).unwrap();
        assert!(one.equal(&Tensor::cat(&parts, 0)));
        assert_eq!(one.data_ptr(), parts[0].data_ptr());
        let apart = [whole.narrow(0, 0, 2), whole.narrow(0, 3, 1)];
        assert!(as_they_lie(&apart).is_none());
        let columns = [whole.narrow(1, 0, 2), whole.narrow(1, 2, 1)];
        assert!(as_they_lie(&columns).is_none());
    }
}
