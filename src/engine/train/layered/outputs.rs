//! The heads' outputs of the layer that is worked, between the attention that makes them and the backwards that need them: on
//! the device, or in host memory, a group of heads at a time.
//!
//! `T` position, `N` query heads, `H` head dim, `n` a group's share of `N`. Host memory is held in flat tiles that are used
//! again and again, of as many numbers as a tile of hidden states has.

use super::kept::{Arrived, tiles_of};
use crate::torch::{Event, SideStream, copy, host_empty_like};
use tch::{Device, Tensor};

/// Where outputs are kept in host memory, from layer to layer.
pub struct HostOutputs {
    device: Device,
    side: SideStream,
    /// Numbers in a tile.
    tile_elements: i64,
    /// Tiles that hold nothing now: flat, in host memory.
    free: Vec<Tensor>,
}

/// The outputs of one layer, by group.
pub struct Outputs<'h> {
    /// `None` keeps them on the device.
    host: Option<&'h mut HostOutputs>,
    groups: Vec<Group>,
    /// What was last given away, until its copy is made.
    leaving: Option<(Tensor, Event)>,
    /// Rows that are on their way back, for the tile that will be asked for next.
    next_rows: Option<(i64, Arriving)>,
    /// The group that is on its way back.
    next_group: Option<(usize, Arriving)>,
}

/// One group's output.
struct Group {
    tokens: i64,
    width: i64,
    kept: Kept,
}

enum Kept {
    Device(Tensor), // [T, n H]
    /// On the device, or still on its way there.
    Arriving(Arrived),
    /// Flat tiles, each of `rows` rows but the last.
    Host {
        tiles: Vec<Tensor>,
        rows: i64,
    },
    Taken,
}

/// Tensors on the device that are being filled.
struct Arriving {
    parts: Vec<Tensor>,
    arrived: Event,
}

impl HostOutputs {
    /// For tiles of `tile_elements` numbers.
    pub fn new(tile_elements: i64, device: Device) -> HostOutputs {
        HostOutputs { device, side: SideStream::new(device), tile_elements, free: Vec::new() }
    }

    fn tile(&mut self, like: &Tensor) -> Tensor {
        let flat = || like.flatten(0, -1).narrow(0, 0, 1).expand([self.tile_elements], false);
        self.free.pop().unwrap_or_else(|| host_empty_like(&flat(), self.device))
    }
}

impl<'h> Outputs<'h> {
    /// None yet; in host memory if `host` is given.
    pub fn new(host: Option<&'h mut HostOutputs>) -> Outputs<'h> {
        Outputs { host, groups: Vec::new(), leaving: None, next_rows: None, next_group: None }
    }

    /// Those that the forward kept.
    pub fn kept(groups: Vec<Arrived>) -> Outputs<'h> {
        let of_group = |arrived: Arrived| {
            let (tokens, width) = arrived.size2();
            Group { tokens, width, kept: Kept::Arriving(arrived) }
        };
        let mut outputs = Outputs::new(None);
        outputs.groups = groups.into_iter().map(of_group).collect();
        outputs
    }

    /// A group's output, where it is on the device: `[T, n H]`.
    ///
    /// # Panics
    ///
    /// Where it is not.
    pub fn on_device(&self, index: usize) -> Tensor {
        match &self.groups[index].kept {
            Kept::Device(o) => o.shallow_clone(),
            _ => panic!("group {index}: expected its output on the device"),
        }
    }

    /// Takes the next group's output.
    ///
    /// # Shapes
    ///
    /// `o`: `[T, n H]`, on the device.
    pub fn push(&mut self, o: Tensor) {
        let (tokens, width) = o.size2().expect("o is [T, n H]");
        let kept = match &mut self.host {
            None => Kept::Device(o),
            Some(host) => {
                release(&mut self.leaving);
                let rows = (host.tile_elements / width).max(1);
                let spans: Vec<(i64, i64)> = tiles_of(&o, rows).collect();
                let tiles: Vec<Tensor> = spans.iter().map(|_| host.tile(&o)).collect();
                let made = Event::record(host.device);
                let copied = host.side.run(|| {
                    made.wait();
                    for (tile, (from, count)) in tiles.iter().zip(&spans) {
                        copy(&rows_of(tile, 0, *count, width), &o.narrow(0, *from, *count));
                    }
                    Event::record(host.device)
                });
                self.leaving = Some((o, copied));
                Kept::Host { tiles, rows }
            }
        };
        self.groups.push(Group { tokens, width, kept });
    }

    /// Some rows of all groups side by side; those of the next tile of `count` rows are brought meanwhile.
    ///
    /// # Shapes
    ///
    /// Returns `[count, N H]`.
    pub fn rows(&mut self, from: i64, count: i64) -> Tensor {
        let Some(host) = &self.host else {
            let rows = |group: &Group| match &group.kept {
                Kept::Device(o) => o.narrow(0, from, count),
                Kept::Arriving(o) => o.rows(from, count),
                _ => unreachable!("outputs on the device are there until they are taken"),
            };
            return side_by_side(self.groups.iter().map(rows).collect());
        };
        release(&mut self.leaving);
        let next = self.next_rows.take().filter(|(of, _)| *of == from).map(|(_, rows)| rows);
        let rows = next.unwrap_or_else(|| self.bring_rows(host, from, count));
        let (t, after) = (self.groups[0].tokens, from + count);
        if after < t {
            let ahead = self.bring_rows(host, after, count.min(t - after));
            self.next_rows = Some((after, ahead));
        }
        rows.arrived.wait();
        side_by_side(rows.parts)
    }

    /// The whole output of a group, the last time that it is asked for; that of the next group is brought meanwhile.
    ///
    /// # Shapes
    ///
    /// Returns `[T, n H]`.
    pub fn take(&mut self, index: usize) -> Tensor {
        if self.host.is_none() {
            match std::mem::replace(&mut self.groups[index].kept, Kept::Taken) {
                Kept::Device(o) => return o,
                Kept::Arriving(o) => return o.all(),
                _ => unreachable!("each output is taken once"),
            }
        }
        let next = self.next_group.take().filter(|(of, _)| *of == index).map(|(_, group)| group);
        let mut group = next.unwrap_or_else(|| self.bring_group(index));
        if index + 1 < self.groups.len() {
            self.next_group = Some((index + 1, self.bring_group(index + 1)));
        }
        group.arrived.wait();
        self.forget(index);
        group.parts.remove(0)
    }

    fn bring_rows(&self, host: &HostOutputs, from: i64, count: i64) -> Arriving {
        bring(host, self.groups.iter().map(|group| (group, from, count)).collect())
    }

    fn bring_group(&self, index: usize) -> Arriving {
        let host = self.host.as_ref().expect("outputs are in host memory");
        let group = &self.groups[index];
        bring(host, vec![(group, 0, group.tokens)])
    }

    /// Gives a group's tiles back. What reads them is on the stream that the next write to them waits on.
    fn forget(&mut self, index: usize) {
        let kept = std::mem::replace(&mut self.groups[index].kept, Kept::Taken);
        if let (Kept::Host { tiles, .. }, Some(host)) = (kept, &mut self.host) {
            host.free.extend(tiles);
        }
    }
}

impl Drop for Outputs<'_> {
    fn drop(&mut self) {
        release(&mut self.leaving);
        (0..self.groups.len()).for_each(|index| self.forget(index));
    }
}

/// Frees the device's memory of an output when its copy is made: what uses the memory next waits for that.
fn release(leaving: &mut Option<(Tensor, Event)>) {
    if let Some((_, copied)) = leaving.take() {
        copied.wait();
    }
}

/// Begins to bring some rows of some groups, each into a tensor of its own.
fn bring(host: &HostOutputs, wanted: Vec<(&Group, i64, i64)>) -> Arriving {
    let parts: Vec<Tensor> = wanted
        .iter()
        .map(|(group, _, count)| {
            let Kept::Host { tiles, .. } = &group.kept else {
                unreachable!("each output is taken once")
            };
            Tensor::empty([*count, group.width], (tiles[0].kind(), host.device))
        })
        .collect();
    // What used the memory of the parts before comes before.
    let free = Event::record(host.device);
    let arrived = host.side.run(|| {
        free.wait();
        for (part, (group, from, count)) in parts.iter().zip(&wanted) {
            group.copy_rows(part, *from, *count);
        }
        Event::record(host.device)
    });
    Arriving { parts, arrived }
}

impl Group {
    /// Copies rows out of the host's tiles: `to` is `[count, n H]`.
    fn copy_rows(&self, to: &Tensor, from: i64, count: i64) {
        let Kept::Host { tiles, rows } = &self.kept else {
            unreachable!("each output is taken once")
        };
        let mut done = 0;
        while done < count {
            let at = from + done;
            let (tile, within) = (at / rows, at % rows);
            let some = (rows - within).min(count - done);
            let part = rows_of(&tiles[tile as usize], within, some, self.width);
            copy(&to.narrow(0, done, some), &part);
            done += some;
        }
    }
}

/// Rows of a flat tile: `[count, width]`.
fn rows_of(tile: &Tensor, from: i64, count: i64, width: i64) -> Tensor {
    tile.narrow(0, from * width, count * width).view([count, width])
}

fn side_by_side(parts: Vec<Tensor>) -> Tensor {
    match <[Tensor; 1]>::try_from(parts) {
        Ok([only]) => only,
        Err(parts) => Tensor::cat(&parts, 1),
    }
}
