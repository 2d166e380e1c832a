//! How near two tensors are.

use tch::{Kind, Tensor};

/// The largest difference, relative to the largest value that is expected.
#[track_caller]
pub fn check_close(what: &str, found: &Tensor, expected: &Tensor, bound: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let off = f64::try_from((&found - &expected).abs().max() / expected.abs().max()).unwrap();
    assert!(off <= bound, "{what}: off by {off:.2e}, allowed {bound:.0e}");
}
