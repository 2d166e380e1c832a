//! Runs in the formats of other programs: TensorBoard's event files ([`tensorboard`]) and MLflow's file store ([`mlflow`]).
//!
//! [`curves`] reads what there is of a run, from the store or from its log alone; a format says how it is written.

pub mod curves;
pub mod mlflow;
pub mod tensorboard;

use curves::Curves;

/// The name of a run as a folder: `rope=yarn2_seed0_009919`, its whole id where it is no point of a sweep.
pub fn folder_name(curves: &Curves) -> String {
    match &curves.point {
        Some((_, label, seed)) => {
            let id: String = curves.run_id.chars().take(6).collect();
            format!("{}_seed{seed}_{id}", safe(label))
        }
        None => safe(&curves.run_id),
    }
}

/// A name as that of one folder: what is none of letters, digits and a few signs is an underscore, and so is a dot that it
/// begins with.
pub fn safe(name: &str) -> String {
    let kept = |(at, c): (usize, char)| match c {
        '.' if at == 0 => '_',
        c if c.is_alphanumeric() || "=-_.,+".contains(c) => c,
        _ => '_',
    };
    name.chars().enumerate().map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_within_its_folder() {
        assert_eq!(safe("rope=yarn2.5"), "rope=yarn2.5");
        assert_eq!(safe("../../x"), "_._.._x");
        assert_eq!(safe(".."), "_.");
    }
}
