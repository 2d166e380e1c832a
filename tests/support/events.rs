//! Events as a run logs them.

use fathom_spec::record::EventKind;

/// A step of 64 tokens.
pub fn step(step: u64, loss: f64) -> EventKind {
    EventKind::Step {
        step,
        tokens: step * 64,
        loss,
        learning_rate: 1e-5,
        grad_norm: 1.5,
        step_seconds: 0.5,
        tokens_per_second: 128.0,
        peak_allocated: (100 + step) << 20,
        peak_reserved: 200 << 20,
    }
}
