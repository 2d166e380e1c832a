//! The backward of the root mean square norm.
//!
//! `T` position, `D` hidden.

use crate::kernels;
use crate::model::block::cast;
use tch::Tensor;

/// Positions that are worked at one time: the float32 temporaries are of this many.
const POSITIONS: i64 = 1024;

/// The backward of [`crate::model::block::rms_norm`]: adds the gradient of `x` to `dx` and that of the weight to `d_weight`.
///
/// With `r = 1 / sqrt(mean(x^2) + eps)`, `n = r x` and `dn = w dy`: `dx = r (dn - n mean(dn n))` and `dw = sum(dy n)`.
///
/// # Shapes
///
/// - `dy`, `x`, `dx`: `[T, D]`, any one float dtype; the arithmetic is in float32 (float64 for float64)
/// - `weight`: `[D]`; `d_weight`: `[D]`, float32 (float64 for float64)
pub fn add_rms_norm_backward(
    dx: &Tensor,
    d_weight: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) {
    if kernels::of(x).is_some_and(|k| k.rms_norm_backward(dx, d_weight, dy, x, weight, eps)) {
        return;
    }
    let (t, _) = x.size2().expect("x is [T, D]");
    let weight = cast(weight, d_weight);
    for from in (0..t).step_by(POSITIONS as usize) {
        let count = POSITIONS.min(t - from);
        let exact = |x: &Tensor| x.narrow(0, from, count).to_kind(d_weight.kind());
        let (dy, x) = (exact(dy), exact(x));
        let r = (mean(&x.square()) + eps).rsqrt_(); // [T, 1]
        let n = x * &r;
        let _ = d_weight.shallow_clone().g_add_(&(&dy * &n).sum_dim_intlist(
            [0i64].as_slice(),
            false,
            d_weight.kind(),
        ));
        let dn = dy * &weight;
        let along = mean(&(&dn * &n));
        let _ = dx.narrow(0, from, count).g_add_(&((dn - n * along) * r));
    }
}

/// The mean over the features: `[T, D]` -> `[T, 1]`.
fn mean(x: &Tensor) -> Tensor {
    x.mean_dim([-1i64].as_slice(), true, x.kind())
}
