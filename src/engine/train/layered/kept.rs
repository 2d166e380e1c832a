//! What layers keep of their forward for their backward, their inputs first of all: on the device, or in host memory, copied
//! beside the arithmetic.
//!
//! `T` position, `D` the numbers of one. Host memory is held in tiles of `tile_tokens` positions that are used again and
//! again. LibTorch's allocator of page-locked memory rounds up to a power of two: a tile should be a little less than one.
//!
//! On the device there is one buffer `[T, D]` for what comes back. As soon as the backward of a layer is done with some rows
//! of it, those rows of the next layer's are brought there, so that nothing beyond the buffer is needed for copies to run
//! beside the arithmetic.

use crate::torch::{Event, SideStream, copy, host_empty_like};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Tensor};

/// One tensor of each of some layers: inputs, or heads' outputs, or their queries, keys and values.
pub struct KeptRows {
    device: Device,
    /// `None` keeps them on the device.
    offload: Option<Offload>,
    /// Layer -> its own: tiles in host memory, or one tensor `[T, D]` on the device.
    kept: BTreeMap<usize, Vec<Tensor>>,
    tile_tokens: i64,
}

/// What offloading needs, kept from step to step.
struct Offload {
    /// Shared with all that is kept: copies are made in the order that they are asked for.
    side: Rc<SideStream>,
    /// Tiles that hold nothing now: `[up to tile_tokens, D]` each, in host memory.
    free: Vec<Tensor>,
    /// Where they come back to.
    buffer: Option<Tensor>, // [T, D]
    arriving: Option<Arriving>,
}

/// One on its way back: which tiles of it were asked for, with the event of their arrival.
struct Arriving {
    layer: usize,
    tiles: Vec<Option<Event>>,
}

/// A tensor on the device, perhaps still arriving.
pub struct Arrived {
    x: Tensor,                 // [T, D]
    tiles: Vec<Option<Event>>, // by tile; empty where nothing is waited for
    tile_tokens: i64,
}

impl Arrived {
    /// A tensor that is there already: `[T, D]`.
    pub fn here(x: Tensor) -> Arrived {
        Arrived { x, tiles: Vec::new(), tile_tokens: 1 }
    }

    /// Some rows, when they have arrived: `[count, D]`. What is done with them waits; the host does not.
    pub fn rows(&self, from: i64, count: i64) -> Tensor {
        if !self.tiles.is_empty() {
            let tiles = from / self.tile_tokens..=(from + count - 1) / self.tile_tokens;
            tiles.filter_map(|tile| self.tiles[tile as usize].as_ref()).for_each(Event::wait);
        }
        self.x.narrow(0, from, count)
    }

    /// All rows: `[T, D]`.
    pub fn all(&self) -> Tensor {
        self.tiles.iter().flatten().for_each(Event::wait);
        self.x.shallow_clone()
    }

    pub fn size2(&self) -> (i64, i64) {
        self.x.size2().expect("x is [T, D]")
    }
}

impl KeptRows {
    /// In host memory, copied on the stream that is given; without one on `device`.
    pub fn new(side: Option<Rc<SideStream>>, tile_tokens: i64, device: Device) -> KeptRows {
        let offload =
            side.map(|side| Offload { side, free: Vec::new(), buffer: None, arriving: None });
        KeptRows { device, offload, kept: BTreeMap::new(), tile_tokens }
    }

    /// Whether they are in host memory between forward and backward.
    pub fn offloads(&self) -> bool {
        self.offload.is_some()
    }

    /// Keeps a copy of `x` for `layer`. Wait for the event before writing to `x`.
    ///
    /// # Shapes
    ///
    /// `x`: `[T, D]`, on the device.
    pub fn keep(&mut self, layer: usize, x: &Tensor) -> Event {
        match self.offload {
            Some(_) => self.keep_own(layer, x),
            None => self.keep_own(layer, &x.copy()),
        }
    }

    /// Keeps `x` itself for `layer`, which nobody writes to any more. Wait for the event before letting go of `x`.
    ///
    /// # Shapes
    ///
    /// As [`KeptRows::keep`].
    pub fn keep_own(&mut self, layer: usize, x: &Tensor) -> Event {
        let (tile_tokens, device) = (self.tile_tokens, self.device);
        let Some(offload) = &mut self.offload else {
            self.kept.insert(layer, vec![x.shallow_clone()]);
            return Event::record(device);
        };
        let made = Event::record(device);
        let mut tiles = Vec::new();
        let side = offload.side.clone();
        let copied = side.run(|| {
            made.wait();
            for (from, count) in tiles_of(x, tile_tokens) {
                let tile = offload.tile(&x.narrow(0, from, count), device);
                copy(&tile.narrow(0, 0, count), &x.narrow(0, from, count));
                tiles.push(tile);
            }
            Event::record(device)
        });
        self.kept.insert(layer, tiles);
        copied
    }

    /// Takes the device's buffer for what is kept of `tokens` positions to come back to.
    pub fn begin_backward(&mut self, tokens: i64) {
        let Some(tile) = self.kept.values().next().map(|tiles| &tiles[0]) else { return };
        let (_, width) = tile.size2().expect("a tile is [tile_tokens, D]");
        let like = (tile.kind(), self.device);
        if let Some(offload) = &mut self.offload {
            offload.buffer = Some(Tensor::empty([tokens, width], like));
        }
    }

    /// Gives it back.
    pub fn end_backward(&mut self) {
        if let Some(offload) = &mut self.offload {
            offload.buffer = None;
            offload.arriving = None;
        }
    }

    /// That of `layer`, to read.
    pub fn fetch(&mut self, layer: usize) -> Arrived {
        let (tile_tokens, device) = (self.tile_tokens, self.device);
        let kept =
            self.kept.get(&layer).unwrap_or_else(|| panic!("layer {layer}: expected to be kept"));
        let Some(offload) = &mut self.offload else {
            return Arrived::here(kept[0].shallow_clone());
        };
        let buffer = offload.buffer.as_ref().expect("the backward has begun").shallow_clone();
        let mut arriving = offload
            .arriving
            .take()
            .filter(|arriving| arriving.layer == layer)
            .unwrap_or_else(|| Arriving { layer, tiles: kept.iter().map(|_| None).collect() });
        let read = Event::record(device);
        for (tile, (from, count)) in tiles_of(&buffer, tile_tokens).enumerate() {
            arriving.tiles[tile].get_or_insert_with(|| {
                bring(&offload.side, &read, &buffer, from, count, &kept[tile], device)
            });
        }
        Arrived { x: buffer, tiles: arriving.tiles, tile_tokens }
    }

    /// That of `layer`, to write to: what is kept stays as it is.
    pub fn fetch_to_write(&mut self, layer: usize) -> Arrived {
        let arrived = self.fetch(layer);
        if self.offload.is_some() { arrived } else { Arrived::here(arrived.x.copy()) }
    }

    /// Brings all rows of the one of `next` into the buffer, which is not needed any more.
    pub fn refill_all(&mut self, next: usize) {
        let Some(buffer) = self.offload.as_ref().and_then(|offload| offload.buffer.as_ref()) else {
            return;
        };
        for (from, count) in tiles_of(buffer, self.tile_tokens) {
            self.refill(next, from, count);
        }
    }

    /// Brings some rows of the one of `next` into the buffer, whose rows there are not needed any more.
    ///
    /// Rows that do not fill a tile wait for [`KeptRows::fetch`].
    pub fn refill(&mut self, next: usize, from: i64, count: i64) {
        let (tile_tokens, device) = (self.tile_tokens, self.device);
        let (Some(offload), Some(kept)) = (&mut self.offload, self.kept.get(&next)) else { return };
        let buffer = offload.buffer.as_ref().expect("the backward has begun");
        let (t, _) = buffer.size2().expect("the buffer is [T, D]");
        let whole = from % tile_tokens == 0 && (count == tile_tokens || from + count == t);
        if !whole {
            return;
        }
        let arriving = match &mut offload.arriving {
            Some(arriving) if arriving.layer == next => arriving,
            other => {
                other.insert(Arriving { layer: next, tiles: kept.iter().map(|_| None).collect() })
            }
        };
        let tile = (from / tile_tokens) as usize;
        let read = Event::record(device);
        arriving.tiles[tile] =
            Some(bring(&offload.side, &read, buffer, from, count, &kept[tile], device));
    }

    /// Drops that of `layer`.
    pub fn forget(&mut self, layer: usize) {
        let Some(tiles) = self.kept.remove(&layer) else { return };
        if let Some(offload) = &mut self.offload {
            offload.free.extend(tiles);
        }
    }
}

impl Offload {
    /// A tile with room for `rows`, `[count, D]`: one that holds nothing now, or a new one. One that is too small for that makes
    /// way, so that there are never more than are needed at once.
    fn tile(&mut self, rows: &Tensor, device: Device) -> Tensor {
        let fits = |tile: &Tensor| tile.size()[0] >= rows.size()[0];
        match self.free.iter().position(fits) {
            Some(index) => self.free.swap_remove(index),
            None => {
                self.free.pop();
                host_empty_like(rows, device)
            }
        }
    }
}

/// Copies a host tile to its rows of the buffer beside the arithmetic, after `read`.
fn bring(
    side: &SideStream,
    read: &Event,
    buffer: &Tensor,
    from: i64,
    count: i64,
    tile: &Tensor,
    device: Device,
) -> Event {
    side.run(|| {
        read.wait();
        copy(&buffer.narrow(0, from, count), &tile.narrow(0, 0, count));
        Event::record(device)
    })
}

/// `(from, count)` of every tile of the rows of `x`.
pub fn tiles_of(x: &Tensor, tile_tokens: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
    let (t, _) = x.size2().expect("x is [T, D]");
    (0..t).step_by(tile_tokens as usize).map(move |from| (from, tile_tokens.min(t - from)))
}
