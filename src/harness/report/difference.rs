//! How far two labels are apart, paired by seed and by evaluated window, and whether that is to be told from nothing.

use super::statistics::{Interval, bootstrap_interval, mean, t_interval};

/// How far one label is from another, paired.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub mean: f64,
    /// `None` where there is but one seed and no windows to resample.
    pub interval: Option<Interval>,
    pub seeds: usize,
    /// Whether the interval is over the windows of the only common seed.
    pub over_windows: bool,
}

/// The differences of two labels, one a pair.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pairs {
    pub by_seed: Vec<f64>,
    /// Of each evaluated window, the mean over the seeds; empty where the measure has none or they don't match.
    pub by_window: Vec<f64>,
}

impl Pairs {
    /// See [`Summary::difference`](super::summary::Summary::difference).
    pub fn difference(&self) -> Option<Difference> {
        let Pairs { by_seed, by_window } = self;
        let mean = mean(by_seed).filter(|mean| mean.is_finite())?;
        let over_windows = by_seed.len() == 1;
        let interval = match over_windows {
            true => bootstrap_interval(by_window),
            false => t_interval(by_seed),
        };
        Some(Difference { mean, interval, seeds: by_seed.len(), over_windows })
    }

    /// Whether there is one seed and its windows all lie on one side of zero, further off than [`NEGLIGIBLE`]: then so does
    /// every mean of a resample, and the bootstrap need not be asked.
    pub fn all_agree(&self) -> bool {
        let windows = &self.by_window;
        let is_one = self.by_seed.len() == 1 && windows.len() > 1;
        is_one
            && (windows.iter().all(|&x| x > NEGLIGIBLE && x.is_finite())
                || windows.iter().all(|&x| x < -NEGLIGIBLE && x.is_finite()))
    }
}

/// Nats that nobody would choose by, however sure the sign is: 0.05 % of a perplexity.
pub const NEGLIGIBLE: f64 = 5e-4;

impl Difference {
    /// Whether the interval leaves out zero, and reaches further than [`NEGLIGIBLE`].
    pub fn is_distinguishable(&self) -> bool {
        self.interval.is_some_and(|interval| {
            !interval.includes_zero() && interval.low.abs().max(interval.high.abs()) >= NEGLIGIBLE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sure difference of next to nothing is none.
    #[test]
    fn a_difference_has_to_matter_to_be_told() {
        let told = |low: f64, high: f64| {
            let interval = Some(Interval { mean: (low + high) / 2.0, low, high });
            let (mean, seeds, over_windows) = ((low + high) / 2.0, 3, false);
            Difference { mean, interval, seeds, over_windows }.is_distinguishable()
        };
        assert!(told(0.01, 0.02) && told(-0.02, -0.01) && told(1e-6, 0.01));
        assert!(!told(-0.01, 0.02), "zero is inside");
        assert!(!told(1e-6, 1e-4) && !told(-1e-4, -1e-6), "next to nothing");
    }
}
