//! Runs in the formats of other programs: TensorBoard's event files ([`tensorboard`]) and MLflow's file store ([`mlflow`]).
//!
//! [`curves`] reads what there is of a run, from the store or from its log alone; a format says how it is written.

pub mod curves;
pub mod mlflow;
pub mod tensorboard;

use curves::Curves;

/// The name of a run as a folder: `rope=yarn2_seed0_009919`, its whole id where it is no point of a sweep.
pub fn folder_name(curves: &Curves) -> String {
    let safe = |text: &str| -> String {
        let kept = |c: char| c.is_alphanumeric() || "=-_.,+".contains(c);
        text.chars().map(|c| if kept(c) { c } else { '_' }).collect()
    };
    match &curves.point {
        Some((_, label, seed)) => {
            let id: String = curves.run_id.chars().take(6).collect();
            format!("{}_seed{seed}_{id}", safe(label))
        }
        None => safe(&curves.run_id),
    }
}
