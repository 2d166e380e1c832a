//! Random numbers that depend on a seed alone: no generator is shared, so the order in which they are drawn does not matter.

use super::{fathom_random, must};
use tch::Tensor;

/// Fills `x` with whole numbers from 0 to below `to`, uniformly.
///
/// The numbers depend on `seed`, the size of `x` and the kind of device. LibTorch's own generators are not touched.
///
/// # Shapes
///
/// `x`: any, of an integer dtype that holds `to - 1`.
pub fn fill_random(x: &Tensor, to: i64, seed: u64) {
    // SAFETY: the pointer is to a live tensor.
    must(unsafe { fathom_random(x.as_ptr(), to, seed) });
}
