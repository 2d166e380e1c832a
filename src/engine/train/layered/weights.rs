//! The weights of layers where the arithmetic is: resident, or streamed from host memory through two buffers.
//!
//! A layer is brought beside the arithmetic of the one before it, and written back beside the arithmetic of the one after.

use crate::model::Model;
use crate::model::block::{Block, cast};
use crate::torch::{Event, SideStream, copy};
use tch::Tensor;

/// The weights of a model, layer by layer.
pub struct Weights<'a> {
    model: &'a Model,
    /// `None` where the weights are on the device.
    stream: Option<Stream>,
}

/// Two layers' worth of device memory, and the copies into and out of it.
struct Stream {
    side: SideStream,
    slots: [Slot; 2],
    /// The slot that was last handed out.
    current: usize,
    /// When the last layer was written back.
    written: Option<Event>,
}

struct Slot {
    layer: Option<usize>,
    weights: Block,
    ready: Event,
}

/// A layer's weights on the device.
pub struct LayerWeights {
    /// In the dtype they are kept in: what a step changes.
    pub kept: Block,
    /// In the dtype that is computed in.
    pub used: Block,
}

impl<'a> Weights<'a> {
    /// The weights of `model`: where they are, or if `streamed` in host memory.
    pub fn new(model: &'a Model, streamed: bool) -> Weights<'a> {
        let device = model.device;
        let stream = streamed.then(|| {
            let slot = || Slot {
                layer: None,
                weights: model.layers[0]
                    .map(|weight| Tensor::empty(weight.size(), (weight.kind(), device))),
                ready: Event::record(device),
            };
            let slots = [slot(), slot()];
            Stream { side: SideStream::new(device), slots, current: 0, written: None }
        });
        Weights { model, stream }
    }

    /// Whether the device holds two layers at a time.
    pub fn streams(&self) -> bool {
        self.stream.is_some()
    }

    /// Begins to bring `layer`, if it is not on the device. The layer that was last taken stays.
    pub fn prefetch(&mut self, layer: usize) {
        let model = self.model;
        let Some(stream) = &mut self.stream else { return };
        if stream.slots.iter().any(|slot| slot.layer == Some(layer)) {
            return;
        }
        let slot = &mut stream.slots[1 - stream.current];
        // All that read the slot's weights so far comes before.
        let free = Event::record(model.device);
        slot.layer = Some(layer);
        slot.ready = stream.side.run(|| {
            free.wait();
            copy_layer(&slot.weights, &model.layers[layer]);
            Event::record(model.device)
        });
    }

    /// The weights of `layer`, on the device until another layer but the next one is taken.
    pub fn take(&mut self, layer: usize) -> LayerWeights {
        self.prefetch(layer);
        let kept = match &mut self.stream {
            Some(stream) => {
                let index = stream.slots.iter().position(|slot| slot.layer == Some(layer));
                stream.current = index.expect("the layer was just prefetched");
                let slot = &stream.slots[stream.current];
                slot.ready.wait();
                slot.weights.map(Tensor::shallow_clone)
            }
            None => self.model.layers[layer].map(Tensor::shallow_clone),
        };
        let computed = Tensor::empty([0], (self.model.dtype, self.model.device));
        let used = kept.map(|weight| cast(weight, &computed));
        LayerWeights { kept, used }
    }

    /// Writes a layer that was taken and changed back to where it is kept.
    pub fn write_back(&mut self, layer: usize) {
        let model = self.model;
        let Some(stream) = &mut self.stream else { return };
        let slot = stream.slots.iter().find(|slot| slot.layer == Some(layer));
        let slot = slot.expect("a layer that was taken is in its slot");
        let changed = Event::record(model.device);
        stream.written = Some(stream.side.run(|| {
            changed.wait();
            copy_layer(&model.layers[layer], &slot.weights);
            Event::record(model.device)
        }));
    }

    /// A weight outside the layers, on the device: itself, where it is there.
    pub fn bring(&self, weight: &Tensor) -> Tensor {
        weight.to_device(self.model.device)
    }

    /// Writes what [`Weights::bring`] gave back to where it is kept.
    pub fn bring_back(&self, weight: &Tensor, brought: &Tensor) {
        if self.stream.is_some() {
            copy(weight, brought);
        }
    }

    /// The current stream waits until all that was written is back.
    pub fn finish(&mut self) {
        if let Some(written) = self.stream.as_mut().and_then(|stream| stream.written.take()) {
            written.wait();
        }
    }
}

fn copy_layer(to: &Block, from: &Block) {
    for ((_, to), (_, from)) in to.parameters(0).iter().zip(from.parameters(0)) {
        copy(to, from);
    }
}
