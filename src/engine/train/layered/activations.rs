//! What the forward of a layer keeps for its backward beside the input, so that it need not be done again.
//!
//! Log-sum-exps and the MLP's projections stay on the device. The rest is where inputs are: heads' outputs and queries, keys
//! and values, group by group.
//!
//! `T` position, `n` and `k` a group's query and key-value heads, `H` head dim, `F` intermediate.

use super::attention::{HeadGroup, Heads};
use super::kept::{Arrived, KeptRows};
use super::kernel::Saved;
use super::mlp::Projections;
use super::outputs::Outputs;
use crate::torch::{Event, SideStream};
use fathom_spec::config::{ModelConfig, Recompute};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Tensor};

/// What is kept of all layers.
pub struct Activations {
    recompute: Recompute,
    /// By group: `[T, n H]`.
    outputs: Vec<KeptRows>,
    /// By group: `[T, (n + 2 k) H]`.
    heads: Vec<KeptRows>,
    saved: BTreeMap<usize, Vec<Saved>>,
    projections: BTreeMap<usize, Projections>,
    /// Tensors of the layer that is worked whose copies may not be made yet.
    leaving: Vec<(Tensor, Event)>,
}

/// What is kept of one layer, on the device or on its way there.
pub struct OfLayer {
    pub outputs: Vec<Arrived>,
    pub saved: Vec<Saved>,
    /// Empty where they are made again.
    pub heads: Vec<Arrived>,
    pub projections: Option<Projections>,
}

impl Activations {
    /// For layers whose heads are in `groups`; in host memory if there is a stream to copy on. A tile there is of
    /// `tile_elements` numbers at most.
    pub fn new(
        recompute: Recompute,
        groups: &[HeadGroup],
        head_dim: i64,
        side: Option<&Rc<SideStream>>,
        tile_elements: i64,
        device: Device,
    ) -> Activations {
        let rows = |heads: i64| {
            let tile_tokens = (tile_elements / (heads * head_dim)).max(1);
            KeptRows::new(side.cloned(), tile_tokens, device)
        };
        let of = |kept: bool, heads: fn(&HeadGroup) -> i64| match kept {
            true => groups.iter().map(|group| rows(heads(group))).collect(),
            false => Vec::new(),
        };
        Activations {
            recompute,
            outputs: of(recompute.keeps_outputs(), HeadGroup::num_heads),
            heads: of(recompute.keeps_heads(), |g| g.num_heads() + 2 * g.num_key_value_heads),
            saved: BTreeMap::new(),
            projections: BTreeMap::new(),
            leaving: Vec::new(),
        }
    }

    /// Numbers of a position that a layer keeps of its attention beside its input and log-sum-exp.
    pub fn attention_width(&self, config: &ModelConfig) -> i64 {
        let head_dim = config.head_dim() as i64;
        let (n, k) = (config.num_attention_heads as i64, config.num_key_value_heads() as i64);
        let of = |kept: bool, width: i64| if kept { width } else { 0 };
        of(self.recompute.keeps_outputs(), n * head_dim)
            + of(self.recompute.keeps_heads(), (n + 2 * k) * head_dim)
    }

    /// Bytes of a position's log-sum-exps, if they are kept.
    pub fn log_sum_exp_bytes(&self, config: &ModelConfig) -> i64 {
        let float = size_of::<f32>();
        if self.recompute.keeps_outputs() { (config.num_attention_heads * float) as i64 } else { 0 }
    }

    /// Keeps a group's queries, keys and values, if they are to be kept.
    pub fn keep_heads(&mut self, layer: usize, index: usize, heads: &Heads) {
        if let Some(rows) = self.heads.get_mut(index) {
            let flat = heads.side_by_side();
            let copied = rows.keep_own(layer, &flat);
            self.leaving.push((flat, copied));
        }
    }

    /// Keeps the heads' outputs with what their backward needs, if they are to be kept.
    pub fn keep_outputs(&mut self, layer: usize, outputs: &Outputs, saved: Vec<Saved>) {
        for (index, rows) in self.outputs.iter_mut().enumerate() {
            let output = outputs.on_device(index);
            let copied = rows.keep_own(layer, &output);
            self.leaving.push((output, copied));
        }
        if self.recompute.keeps_outputs() {
            self.saved.insert(layer, saved);
        }
    }

    /// Keeps the MLP's projections.
    pub fn keep_projections(&mut self, layer: usize, projections: Projections) {
        self.projections.insert(layer, projections);
    }

    /// What is done from here on comes after the copies of what was kept.
    pub fn settle(&mut self) {
        for (_, copied) in self.leaving.drain(..) {
            copied.wait();
        }
    }

    /// Takes the buffers that what is kept comes back to.
    pub fn begin_backward(&mut self, tokens: i64) {
        self.all_rows().for_each(|rows| rows.begin_backward(tokens));
    }

    /// Gives them back.
    pub fn end_backward(&mut self) {
        self.all_rows().for_each(KeptRows::end_backward);
    }

    /// What is kept of `layer`; `None` where all is made again.
    pub fn fetch(&mut self, layer: usize) -> Option<OfLayer> {
        let saved = self.saved.remove(&layer)?;
        Some(OfLayer {
            outputs: self.outputs.iter_mut().map(|rows| rows.fetch(layer)).collect(),
            saved,
            heads: self.heads.iter_mut().map(|rows| rows.fetch(layer)).collect(),
            projections: self.projections.remove(&layer),
        })
    }

    /// A group of `layer` is done with: its outputs of the next layer, which that needs first, may come.
    pub fn done_with_group(&mut self, layer: usize, index: usize, next: Option<usize>) {
        if let Some(rows) = self.heads.get_mut(index) {
            rows.forget(layer);
        }
        if let Some(rows) = self.outputs.get_mut(index) {
            rows.forget(layer);
            if let Some(next) = next {
                rows.refill_all(next);
            }
        }
    }

    /// All of a layer is done with: the next one's queries, keys and values may come.
    pub fn done_with_layer(&mut self, next: Option<usize>) {
        if let Some(next) = next {
            self.heads.iter_mut().for_each(|rows| rows.refill_all(next));
        }
    }

    fn all_rows(&mut self) -> impl Iterator<Item = &mut KeptRows> {
        self.outputs.iter_mut().chain(&mut self.heads)
    }
}
