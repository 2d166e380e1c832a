//! Tests of paired differences: Student's, the sign-flip permutation test, Holm's correction, and the number of pairs that
//! a difference of that size needs.
//!
//! All are two-sided. A list with a NaN or an infinity in it has no test.

use super::statistics::{mean, sample_sd};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The level that a corrected p has to be below.
pub const LEVEL: f64 = 0.05;

/// The fewest pairs at which a sign-flip test can come below [`LEVEL`]: with five, the smallest p is 2 / 2^5 = 0.0625.
pub const FEWEST_PAIRS: usize = 6;

/// The p of Student's paired t test, with n - 1 degrees of freedom.
///
/// `None` of fewer than two differences, and where they are all the same.
pub fn t_test(differences: &[f64]) -> Option<f64> {
    let (mean, sd) = (mean(differences)?, sample_sd(differences)?);
    if sd == 0.0 || !sd.is_finite() {
        return None;
    }
    let n = differences.len() as f64;
    let t = mean / (sd / n.sqrt());
    let distribution = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
    Some(2.0 * distribution.cdf(-t.abs()))
}

/// What a sign-flip test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignFlips {
    pub p: f64,
    /// The ways of giving the differences signs that were looked at.
    pub flips: usize,
    /// Whether these are all that there are.
    pub is_exact: bool,
}

/// Differences up to which every way of giving them signs is looked at: 2^16 ways.
pub const EXACT_PAIRS: usize = 16;

/// Random ways that are looked at where there are too many for all: p then moves by about 0.002 near 0.05.
pub const RANDOM_FLIPS: usize = 10_000;

// The smallest p that random ways can give, 1 in one more than their number, is not below the smallest that there is.
const _: () = assert!(RANDOM_FLIPS < 1 << EXACT_PAIRS);

/// The sign-flip permutation test of the mean: were there no difference, each sign could as well be the other.
///
/// p is the share of the ways to give signs whose mean is at least as far from 0 as the one that was seen; of random ways the
/// one that was seen counts among them (Phipson and Smyth 2010, <https://arxiv.org/abs/1603.05766>). The generator is
/// ChaCha8 from a fixed seed. `None` of fewer than two differences.
pub fn sign_flips(differences: &[f64]) -> Option<SignFlips> {
    let n = differences.len();
    if n < 2 || differences.iter().any(|x| !x.is_finite()) {
        return None;
    }
    // Sums that differ by rounding alone are the same.
    let seen = differences.iter().sum::<f64>().abs();
    let seen = seen - 1e-12 * differences.iter().map(|x| x.abs()).sum::<f64>();
    if n <= EXACT_PAIRS {
        let flips = 1usize << n;
        let sum = |signs: usize| -> f64 {
            let signed = |(at, x): (usize, &f64)| if signs >> at & 1 == 1 { -x } else { *x };
            differences.iter().enumerate().map(signed).sum()
        };
        let as_far = (0..flips).filter(|&signs| sum(signs).abs() >= seen).count();
        return Some(SignFlips { p: as_far as f64 / flips as f64, flips, is_exact: true });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let as_far = (0..RANDOM_FLIPS).filter(|_| random_sum(differences, &mut rng).abs() >= seen);
    let p = (as_far.count() + 1) as f64 / (RANDOM_FLIPS + 1) as f64;
    Some(SignFlips { p, flips: RANDOM_FLIPS, is_exact: false })
}

/// The sum with a random sign before each.
fn random_sum(values: &[f64], rng: &mut ChaCha8Rng) -> f64 {
    const SIGN: u64 = 1 << 63;
    values
        .chunks(64)
        .map(|chunk| {
            let mut signs = rng.next_u64();
            let mut sum = 0.0;
            for x in chunk {
                sum += f64::from_bits(x.to_bits() ^ (signs & SIGN));
                signs <<= 1;
            }
            sum
        })
        .sum()
}

/// Holm's step-down correction of the p of one family: each stays as likely to be below a level by chance as if it were the
/// only one.
///
/// Holm (1979), *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6, 65-70.
pub fn holm(family: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..family.len()).collect();
    order.sort_by(|&a, &b| family[a].total_cmp(&family[b]));
    let mut corrected = vec![0.0; family.len()];
    let mut highest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        highest = highest.max((family[index] * (family.len() - rank) as f64).min(1.0));
        corrected[index] = highest;
    }
    corrected
}

/// The chance at which a difference that is there is to be found, in [`pairs_needed`].
pub const POWER: f64 = 0.8;

/// Pairs beyond which a count says no more than that there are many.
pub const MANY_PAIRS: usize = 1000;

/// The fewest pairs at which a sign-flip test among `comparisons` can come below [`LEVEL`] after [`holm`]; the smallest p of n
/// pairs is 2 / 2^n.
pub fn fewest_pairs(comparisons: usize) -> usize {
    let smallest = |n: usize| comparisons.max(1) as f64 * 2.0 / 2f64.powi(n as i32);
    (FEWEST_PAIRS..).find(|&n| smallest(n) < LEVEL).expect("p falls with the number of pairs")
}

/// The pairs after which a paired t test would find, with a chance of [`POWER`], a difference as large and as scattered as
/// the one that was seen, at [`LEVEL`] over the number of `comparisons`; at least [`fewest_pairs`], `None` above [`MANY_PAIRS`].
///
/// The smallest n with `n >= ((t(1 - level / 2, n - 1) + t(0.8, n - 1)) sd / |mean|)^2` (Zar, *Biostatistical Analysis*, the
/// sample size of a t test). With fewer than two differences the spread is not known, and the fewest stand.
pub fn pairs_needed(differences: &[f64], comparisons: usize) -> Option<usize> {
    let fewest = fewest_pairs(comparisons);
    let Some(sd) = sample_sd(differences) else { return Some(fewest) };
    let effect = mean(differences)?.abs() / sd;
    if sd == 0.0 {
        return Some(fewest);
    }
    let level = LEVEL / comparisons.max(1) as f64;
    let is_enough = |n: usize| {
        let t = StudentsT::new(0.0, 1.0, (n - 1) as f64).expect("two pairs or more");
        let reach = t.inverse_cdf(1.0 - level / 2.0) + t.inverse_cdf(POWER);
        n as f64 >= (reach / effect).powi(2)
    };
    if !effect.is_finite() || !is_enough(MANY_PAIRS) {
        return None;
    }
    // What is enough stays enough: the bound falls as n rises.
    let (mut low, mut high) = (fewest - 1, MANY_PAIRS);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if is_enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    // All goldens here come from scipy 1.17 and statsmodels 0.15, on
    // a = [2.61, 2.58, 2.66, 2.63, 2.60, 2.65, 2.62]; b = [2.64, 2.60, 2.65, 2.69, 2.63, 2.66, 2.70]
    const A: [f64; 7] = [2.61, 2.58, 2.66, 2.63, 2.60, 2.65, 2.62];
    const B: [f64; 7] = [2.64, 2.60, 2.65, 2.69, 2.63, 2.66, 2.70];

    fn differences(n: usize) -> Vec<f64> {
        A.iter().zip(B).take(n).map(|(a, b)| a - b).collect()
    }

    #[track_caller]
    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn student_agrees_with_scipy() {
        // scipy.stats.ttest_rel(a[:n], b[:n]).pvalue
        for (n, p) in [(3, 0.38278660015163635), (6, 0.058329302806262945), (7, 0.0332917318914332)]
        {
            close(t_test(&differences(n)).unwrap(), p, 1e-9);
        }
        assert_eq!(t_test(&[0.1]), None);
        assert_eq!(t_test(&[0.5, 0.5]), None);
        assert_eq!(t_test(&[0.1, f64::NAN]), None);
    }

    #[test]
    fn few_sign_flips_agree_with_scipy() {
        // scipy.stats.permutation_test((a[:n], b[:n]), lambda x, y, axis: (x - y).mean(axis=axis),
        //     permutation_type="samples", n_resamples=numpy.inf, vectorized=True).pvalue
        for (n, p) in [(3, 0.5), (6, 0.09375), (7, 0.046875)] {
            let expected = SignFlips { p, flips: 1 << n, is_exact: true };
            assert_eq!(sign_flips(&differences(n)), Some(expected));
        }
        assert_eq!(sign_flips(&[0.1]), None);
        assert_eq!(sign_flips(&[0.1, f64::INFINITY]), None);
    }

    #[test]
    fn many_sign_flips_are_near_scipy_and_always_the_same() {
        let differences: Vec<f64> = (0..40).map(|i| f64::from(i).sin() + 0.35).collect();
        let found = sign_flips(&differences).unwrap();
        assert_eq!((found.flips, found.is_exact), (RANDOM_FLIPS, false));
        // The same call with 999,999 resamples: 0.001996. Of 10,000 its deviation is 0.00045.
        close(found.p, 0.001996, 0.00135);
        assert_eq!(sign_flips(&differences), Some(found));
    }

    /// Below six pairs no test of signs can come below the level, whatever the numbers.
    #[test]
    fn five_pairs_are_too_few() {
        let all_alike = |n: usize| sign_flips(&vec![1.0; n]).unwrap().p;
        assert_eq!(all_alike(FEWEST_PAIRS - 1), 0.0625);
        assert_eq!(all_alike(FEWEST_PAIRS), 0.03125);
        for n in 12..=16 {
            assert_eq!(all_alike(n), 2.0 / f64::from(1 << n), "{n} pairs");
        }
        assert!(all_alike(17) >= 2.0 / f64::from(1 << 17));
        assert_eq!([1, 2, 5, 100].map(fewest_pairs), [6, 7, 8, 12]);
    }

    #[test]
    fn holm_agrees_with_statsmodels() {
        // statsmodels.stats.multitest.multipletests(p, method="holm")[1]
        let check = |p: &[f64], expected: &[f64]| {
            for (found, expected) in holm(p).iter().zip(expected) {
                close(*found, *expected, 1e-15);
            }
        };
        check(&[0.01, 0.04, 0.03, 0.005, 0.5], &[0.04, 0.09, 0.09, 0.025, 0.5]);
        check(&[0.02, 0.02, 0.9], &[0.06, 0.06, 0.9]);
        assert!(holm(&[]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn holm_only_raises_and_keeps_the_order(p in proptest::collection::vec(0.0f64..1.0, 1..30)) {
            let corrected = holm(&p);
            for (i, &before) in p.iter().enumerate() {
                proptest::prop_assert!(corrected[i] >= before && corrected[i] <= 1.0);
                for (j, &other) in p.iter().enumerate() {
                    proptest::prop_assert!(before > other || corrected[i] <= corrected[j]);
                }
            }
        }
    }

    #[test]
    fn pairs_needed_are_those_of_the_exact_power() {
        // statsmodels.stats.power.TTestPower().solve_power(effect_size=e, alpha=0.05, power=0.8): 9.94, 18.03, 33.37, 89.15
        // and 786.8; the formula is of the same size, at most one pair more.
        for (effect, exact) in [(1.0, 9.94), (0.7, 18.03), (0.5, 33.37), (0.3, 89.15), (0.1, 786.8)]
        {
            // Differences with that mean and a deviation of 1.
            let half = 0.5f64.sqrt();
            let pairs = pairs_needed(&[effect - half, effect + half], 1).unwrap() as f64;
            assert!(pairs >= exact - 0.5 && pairs <= exact + 2.0, "{effect}: {pairs}, {exact}");
        }
        assert_eq!(pairs_needed(&[5.0, 5.1, 5.2], 1), Some(FEWEST_PAIRS));
        assert_eq!(pairs_needed(&[0.3], 1), Some(FEWEST_PAIRS));
        assert_eq!(pairs_needed(&[0.3, 0.3], 5), Some(8));
        assert_eq!(pairs_needed(&[1.0, -1.0], 1), None);
        assert_eq!(pairs_needed(&[1.0, f64::NAN], 1), None);
    }
}
