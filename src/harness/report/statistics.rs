//! The statistics of a report: means, t intervals over seeds, paired differences, the bootstrap over windows.
//!
//! All of it works on NLL (or another loss), in which errors are near to symmetrical; an interval of perplexity is the
//! exponential of the interval of NLL. A list with a NaN or an infinity in it has no interval.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A mean and the 95 % interval about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Half the distance from `low` to `high`.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Whether 0 lies inside: a difference with such an interval can't be told from none.
    pub fn includes_zero(&self) -> bool {
        self.low <= 0.0 && self.high >= 0.0
    }

    /// The interval of `exp` of the quantity: perplexity from NLL, a ratio of perplexities from a difference of NLL.
    pub fn exp(&self) -> Interval {
        Interval { mean: self.mean.exp(), low: self.low.exp(), high: self.high.exp() }
    }
}

/// The arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The sample standard deviation, with n - 1; `None` of fewer than two.
pub fn sample_sd(values: &[f64]) -> Option<f64> {
    let centre = mean(values).filter(|_| values.len() >= 2)?;
    let squares: f64 = values.iter().map(|x| (x - centre).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Student's 95 % interval of the mean: `mean ± t(0.975, n - 1) sd / sqrt(n)`.
///
/// `None` of fewer than two values, or when one is not finite.
pub fn t_interval(values: &[f64]) -> Option<Interval> {
    if values.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let (mean, sd) = (mean(values)?, sample_sd(values)?);
    let half = t_quantile(values.len() - 1) * sd / (values.len() as f64).sqrt();
    Some(Interval { mean, low: mean - half, high: mean + half })
}

/// The quantile 0.975 of Student's t distribution with `freedom` degrees of freedom.
///
/// # Panics
///
/// With no degrees of freedom.
pub fn t_quantile(freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64)
        .expect("at least one degree of freedom")
        .inverse_cdf(0.975)
}

/// `a - b`, pair by pair; `None` when the lists are of different lengths.
pub fn paired_differences(a: &[f64], b: &[f64]) -> Option<Vec<f64>> {
    (a.len() == b.len()).then(|| a.iter().zip(b).map(|(a, b)| a - b).collect())
}

/// Resamples of [`bootstrap_interval`]: the ends of the interval then move by about 1 % of its width from one seed to
/// another.
pub const RESAMPLES: usize = 10_000;

/// The percentile bootstrap's 95 % interval of the mean over `values`.
///
/// The generator is ChaCha8 from a fixed seed: the same values give the same interval. `None` of fewer than two values,
/// or when one is not finite.
pub fn bootstrap_interval(values: &[f64]) -> Option<Interval> {
    if values.len() < 2 || values.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let n = values.len();
    let mean_of = |drawn: &[u32]| drawn.iter().map(|&i| values[i as usize]).sum::<f64>() / n as f64;
    let mut means: Vec<f64> = resamples(n).chunks(n).map(mean_of).collect();
    let low = percentile(&mut means, 0.025);
    Some(Interval { mean: mean(values)?, low, high: percentile(&mut means, 0.975) })
}

/// Which of `n` values each resample draws, one after another.
///
/// They depend on `n` alone, and a report asks for the same ones thousands of times: they are drawn once.
fn resamples(n: usize) -> Arc<[u32]> {
    static DRAWN: Mutex<BTreeMap<usize, Arc<[u32]>>> = Mutex::new(BTreeMap::new());
    let draw = || -> Arc<[u32]> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        (0..n * RESAMPLES).map(|_| rng.random_range(0..n) as u32).collect()
    };
    if n > KEPT_WINDOWS {
        return draw();
    }
    let mut drawn = DRAWN.lock().expect("drawing does not panic");
    Arc::clone(drawn.entry(n).or_insert_with(draw))
}

/// Lists of which the draws are kept: 40 kB a window.
const KEPT_WINDOWS: usize = 256;

/// The value at `fraction` of the list once sorted, between neighbours by linear interpolation (numpy's default); changes its
/// order.
fn percentile(values: &mut [f64], fraction: f64) -> f64 {
    let at = fraction * (values.len() - 1) as f64;
    let (_, &mut below, higher) =
        values.select_nth_unstable_by(at.floor() as usize, f64::total_cmp);
    let above = higher.iter().copied().min_by(f64::total_cmp).unwrap_or(below);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn quantiles_agree_with_scipy() {
        // scipy.stats.t.ppf(0.975, [1, 2, 3, 4, 9, 30])
        let expected = [
            (1, 12.706204736174694),
            (2, 4.302652729749462),
            (3, 3.1824463052837078),
            (4, 2.7764451051977934),
            (9, 2.262157162798205),
            (30, 2.0422724563012378),
        ];
        for (freedom, t) in expected {
            close(t_quantile(freedom), t, 1e-7);
        }
    }

    #[test]
    fn closed_forms() {
        assert_eq!(mean(&[1.0, 2.0, 3.0, 6.0]), Some(3.0));
        assert_eq!(mean(&[]), None);
        // Two values a distance of 2 apart: sd is the root of 2.
        close(sample_sd(&[4.0, 6.0]).unwrap(), 2f64.sqrt(), 1e-15);
        assert_eq!(sample_sd(&[4.0]), None);
        assert_eq!(paired_differences(&[3.0, 5.0], &[1.0, 1.0]), Some(vec![2.0, 4.0]));
        assert_eq!(paired_differences(&[3.0], &[1.0, 1.0]), None);
    }

    #[test]
    fn t_intervals_agree_with_scipy() {
        // x = [2.61, 2.58, 2.66]; scipy.stats.t.interval(0.95, 2, numpy.mean(x), scipy.stats.sem(x))
        let interval = t_interval(&[2.61, 2.58, 2.66]).unwrap();
        close(interval.mean, 2.6166666666666667, 1e-12);
        close(interval.low, 2.516271436305846, 1e-7);
        close(interval.high, 2.7170618970274876, 1e-7);
        close(interval.half_width(), 0.1003952303608208, 1e-7);
        assert_eq!(t_interval(&[2.61]), None);
        assert_eq!(t_interval(&[2.61, f64::NAN]), None);
        assert_eq!(t_interval(&[2.61, f64::INFINITY]), None);
    }

    #[test]
    fn intervals_know_zero_and_exponentiate() {
        let about = |low, high| Interval { mean: (low + high) / 2.0, low, high };
        assert!(about(-0.1, 0.3).includes_zero());
        assert!(about(0.0, 0.3).includes_zero());
        assert!(!about(0.1, 0.3).includes_zero());
        assert!(!about(-0.3, -0.1).includes_zero());
        let perplexity = about(2.0, 3.0).exp();
        close(perplexity.low, 7.38905609893065, 1e-12);
        close(perplexity.mean, 12.182493960703473, 1e-12);
        close(perplexity.high, 20.085536923187668, 1e-12);
    }

    #[test]
    fn percentiles_interpolate() {
        // numpy.percentile([1, 2, 4, 8], [2.5, 50, 97.5])
        let mut values = [8.0, 2.0, 1.0, 4.0];
        close(percentile(&mut values, 0.025), 1.075, 1e-12);
        close(percentile(&mut values, 0.5), 3.0, 1e-12);
        close(percentile(&mut values, 0.975), 7.7, 1e-12);
        close(percentile(&mut values, 1.0), 8.0, 1e-12);
    }

    #[test]
    fn the_bootstrap_is_the_same_every_time_and_near_the_normal_one() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i) / 100.0).collect();
        let interval = bootstrap_interval(&values).unwrap();
        assert_eq!(bootstrap_interval(&values), Some(interval));
        close(interval.mean, 0.495, 1e-12);
        // The bootstrap's deviation of the mean is the root of (n - 1) / n times sd / sqrt(n).
        let deviation = sample_sd(&values).unwrap() * 0.99f64.sqrt() / 10.0;
        close(interval.low, 0.495 - 1.96 * deviation, 0.1 * deviation);
        close(interval.high, 0.495 + 1.96 * deviation, 0.1 * deviation);
        assert_eq!(bootstrap_interval(&[1.0]), None);
        assert_eq!(bootstrap_interval(&[1.0, f64::NAN]), None);
    }
}
