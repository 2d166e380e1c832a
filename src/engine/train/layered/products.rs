//! Sums of products over positions: how the gradient of a weight comes about, tile by tile, in float32.
//!
//! `T` positions of a tile, `A` and `B` features.

use crate::model::at_least_float;
use tch::{Kind, Tensor};

/// Positions whose values are float32 copies at one time, where there is no product of bfloat16 into float32.
const UPCAST_POSITIONS: i64 = 2048;

/// Zeros to sum the gradient of a weight of this size in: float32, or float64 where `like` is.
///
/// # Shapes
///
/// Returns `size`, on the device of `like`.
pub fn zeros(size: &[i64], like: &Tensor) -> Tensor {
    Tensor::zeros(size, (at_least_float(like.kind()), like.device()))
}

/// Room for a sum whose `first` product is yet to come.
///
/// # Shapes
///
/// As [`zeros`].
pub fn unset(size: &[i64], like: &Tensor) -> Tensor {
    Tensor::empty(size, (at_least_float(like.kind()), like.device()))
}

/// `sum += a^T b`, in the dtype of `sum`, with nothing rounded on the way; `sum = a^T b` if it is the `first` product.
///
/// # Shapes
///
/// - `sum`: `[A, B]`, float32 (float64 for float64 factors)
/// - `a`: `[T, A]`; `b`: `[T, B]`; any one float dtype
pub fn add_product(sum: &Tensor, a: &Tensor, b: &Tensor, first: bool) {
    if first && sum.device().is_cuda() && a.kind() != sum.kind() {
        let _ = a.transpose(0, 1).mm_dtype_out(sum, b, Kind::Float);
        return;
    }
    if first {
        let _ = sum.shallow_clone().zero_();
    }
    if a.kind() == sum.kind() {
        let _ = sum.shallow_clone().addmm_(&a.transpose(0, 1), b);
    } else if sum.device().is_cuda() {
        // The output is the summand: cuBLAS adds in place.
        let _ = sum.addmm_dtype_out(sum, &a.transpose(0, 1), b, Kind::Float);
    } else {
        let (t, _) = a.size2().expect("a is [T, A]");
        for from in (0..t).step_by(UPCAST_POSITIONS as usize) {
            let rows =
                |x: &Tensor| x.narrow(0, from, UPCAST_POSITIONS.min(t - from)).to_kind(sum.kind());
            let _ = sum.shallow_clone().addmm_(&rows(a).transpose(0, 1), &rows(b));
        }
    }
}

/// `x += a b`, rounded once to the dtype of `x`.
///
/// # Shapes
///
/// `x`: `[T, B]`; `a`: `[T, A]`; `b`: `[A, B]`; one dtype.
pub fn add_matmul(x: &Tensor, a: &Tensor, b: &Tensor) {
    let _ = x.shallow_clone().addmm_(a, b);
}
