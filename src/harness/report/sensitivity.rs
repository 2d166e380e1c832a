//! Which axis matters: how much of the spread of the outcome each explains by itself, and the mean at each of its values.
//!
//! One-way analysis of variance of each axis alone over the finished runs, the outcome in nats.

use super::answer::{count, list, measure_name};
use super::markdown::{bold, in_code, text};
use super::statistics::mean;
use super::summary::{Measure, SEED, Summary, plain};
use super::tables::rows_to_markdown;
use anyhow::Result;
use fathom_spec::units::format_number;
use std::collections::BTreeSet;

/// The levels of one axis: what each is called, and the outcomes of the runs that have it.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    key: String,
    levels: Vec<(String, Vec<f64>)>,
    /// Whether each level is a quarter of the runs, not one value.
    is_binned: bool,
}

/// Values of a numeric axis above which they are put into four bins of as many runs each.
const VALUES: usize = 8;

/// The section of the page; empty where no axis has two levels or the measure is no loss.
///
/// # Errors
///
/// When a table can't be made.
pub fn section(summary: &Summary) -> Result<String> {
    let axes: Vec<Axis> =
        axes(summary).into_iter().filter(|axis| share(&axis.levels).is_some()).collect();
    if axes.iter().all(|axis| axis.key == SEED) {
        return Ok(String::new());
    }
    let mut rows: Vec<(f64, Vec<String>)> = axes
        .iter()
        .map(|axis| {
            let Share { eta, epsilon } = share(&axis.levels).expect("kept above");
            let runs: usize = axis.levels.iter().map(|(_, outcomes)| outcomes.len()).sum();
            let row = vec![
                in_code(&axis.key),
                axis.levels.len().to_string(),
                runs.to_string(),
                percent(eta),
                percent(epsilon.max(0.0)),
            ];
            (eta, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    let heads = ["parameter", "levels", "runs", "explains", "corrected"];
    let binned = match axes.iter().any(|axis| axis.is_binned) {
        true => format!(
            " An axis of more than {VALUES} numbers is cut into four levels of as many runs each."
        ),
        false => String::new(),
    };
    Ok(format!(
        "## What matters\n\nHow much of the spread of {} over the finished runs each axis explains by itself: the sum of squares between \
         its levels over the whole (η², one-way analysis of variance, in nats), and corrected for what as many levels would explain by \
         chance (ε², Kelley 1935). The shares add up only where every combination was run; what axes do together counts for none.{binned}\n\n{}\n\
         <details><summary>Main effects: the mean at each value</summary>\n\n{}\n</details>\n",
        nats(&summary.measure),
        rows_to_markdown(&heads, &rows)?,
        rows_to_markdown(
            &["parameter", "value", "runs", "mean (nats)", "from the mean of all"],
            &effects(&axes)
        )?
    ))
}

fn nats(measure: &Measure) -> String {
    measure_name(measure).replacen("perplexity", "NLL", 1)
}

fn effects(axes: &[Axis]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for axis in axes.iter().filter(|axis| axis.key != SEED) {
        let all: Vec<f64> = axis.levels.iter().flat_map(|(_, o)| o.iter().copied()).collect();
        let grand = mean(&all).expect("an axis has runs");
        let means: Vec<f64> =
            axis.levels.iter().map(|(_, o)| mean(o).expect("a level has runs")).collect();
        let lowest = means.iter().copied().fold(f64::INFINITY, f64::min);
        for ((name, outcomes), mean) in axis.levels.iter().zip(means) {
            let shown = format!("{mean:.4}");
            rows.push(vec![
                in_code(&axis.key),
                text(name),
                outcomes.len().to_string(),
                if mean == lowest { bold(&shown) } else { shown },
                format!("{:+.4}", mean - grand),
            ]);
        }
    }
    rows
}

fn axes(summary: &Summary) -> Vec<Axis> {
    if !matches!(summary.measure, Measure::Perplexity { .. } | Measure::Loss { .. }) {
        return Vec::new();
    }
    let runs: Vec<_> = summary
        .comparison
        .points
        .iter()
        .filter_map(|point| {
            let outcome = summary.value(point.finished()?, &summary.measure)?;
            outcome.is_finite().then_some((&point.settings, outcome))
        })
        .collect();
    let keys: BTreeSet<&String> = runs.iter().flat_map(|(settings, _)| settings.keys()).collect();
    keys.into_iter()
        .map(|key| {
            let valued = || runs.iter().filter_map(|(s, outcome)| Some((s.get(key)?, *outcome)));
            let names: BTreeSet<String> = valued().map(|(value, _)| plain(value)).collect();
            let numbers: Option<Vec<(f64, f64)>> =
                valued().map(|(value, outcome)| Some((value.as_f64()?, outcome))).collect();
            if let Some(numbers) = numbers.filter(|_| names.len() > VALUES && key != SEED) {
                return Axis { key: key.clone(), levels: quarters(numbers), is_binned: true };
            }
            let mut levels: Vec<(String, Vec<f64>)> = Vec::new();
            for (value, outcome) in valued() {
                let name = plain(value);
                match levels.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, outcomes)) => outcomes.push(outcome),
                    None => levels.push((name, vec![outcome])),
                }
            }
            Axis { key: key.clone(), levels, is_binned: false }
        })
        .collect()
}

/// Four levels of as many runs each, by the rank of their number; runs of one number stay together.
fn quarters(mut runs: Vec<(f64, f64)>) -> Vec<(String, Vec<f64>)> {
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = runs.len();
    let mut levels: Vec<(f64, f64, Vec<f64>)> = Vec::new();
    for (rank, (x, outcome)) in runs.into_iter().enumerate() {
        let begun = levels.len();
        let is_same = levels.last().is_some_and(|(_, last, _)| *last == x);
        if !is_same && rank * 4 / n >= begun {
            levels.push((x, x, Vec::new()));
        }
        let level = levels.last_mut().expect("the first rank begins one");
        level.1 = x;
        level.2.push(outcome);
    }
    let name = |low: f64, high: f64| format!("{} to {}", format_number(low), format_number(high));
    levels.into_iter().map(|(low, high, outcomes)| (name(low, high), outcomes)).collect()
}

/// The share of the sum of squares that lies between levels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    eta: f64,
    /// Less what levels that mean nothing are expected to have.
    epsilon: f64,
}

/// `None` with fewer than two levels, where no level has two runs, or where nothing varies.
fn share(levels: &[(String, Vec<f64>)]) -> Option<Share> {
    let all: Vec<f64> = levels.iter().flat_map(|(_, outcomes)| outcomes.iter().copied()).collect();
    let (runs, k) = (all.len(), levels.len());
    if k < 2 || runs <= k {
        return None;
    }
    let grand = mean(&all)?;
    let total: f64 = all.iter().map(|x| (x - grand).powi(2)).sum();
    let between: f64 = levels
        .iter()
        .filter_map(|(_, outcomes)| Some(outcomes.len() as f64 * (mean(outcomes)? - grand).powi(2)))
        .sum();
    let within = (total - between) / (runs - k) as f64;
    let epsilon = (between - (k - 1) as f64 * within) / total;
    (total > 0.0).then_some(Share { eta: between / total, epsilon })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What a page says of it, in a few words: the axis that explains most, where one does.
pub fn headline(summary: &Summary) -> Option<String> {
    let (seed, mut shares): (Vec<_>, Vec<_>) = axes(summary)
        .into_iter()
        .filter_map(|axis| Some((share(&axis.levels)?, axis.key)))
        .partition(|(_, key)| key == SEED);
    shares.sort_by(|a, b| b.0.eta.total_cmp(&a.0.eta));
    let seed = seed.first().map(|(share, _)| share.epsilon);
    Some(what_matters(&shares, seed)?.replace("{}", &nats(&summary.measure)))
}

/// Of the shares of the parameters, the largest first, beside the corrected one of the seed; `{}` stands for the measure.
fn what_matters(shares: &[(Share, String)], seed: Option<f64>) -> Option<String> {
    let (Share { eta, epsilon }, key) = shares.first().filter(|_| shares.len() > 1)?;
    let of = format!("Of the {}", count(shares.len(), "parameter"));
    if *epsilon <= 1e-9 {
        return Some(format!(
            "{of}, none explains more of the spread of {{}} than as many levels would by chance."
        ));
    }
    if let Some(seed) = seed.filter(|seed| seed >= epsilon) {
        return Some(format!(
            "{of}, none explains more of the spread of {{}} than the seed does: {} {}, the seed {}, both corrected for chance.",
            in_code(key),
            percent(*epsilon),
            percent(seed)
        ));
    }
    let tied = shares.iter().filter(|(other, _)| (other.eta - eta).abs() < 1e-9);
    let tied: Vec<String> = tied.map(|(_, key)| in_code(key)).collect();
    Some(match tied.len() {
        1 => format!(
            "{of}, {} matters most: it explains {} of the spread of {{}}.",
            in_code(key),
            percent(*eta)
        ),
        _ => format!(
            "{of}, {} explain the most of the spread of {{}}, each the same {}: which of them matters can't be told.",
            list(&tied),
            percent(*eta)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_an_analysis_of_variance() {
        // x = [[2.6, 2.62, 2.58], [2.7, 2.73], [2.5, 2.49, 2.53, 2.5]]; scipy.stats.f_oneway(*x).statistic is
        // 83.79069767441952 with 2 and 6 degrees of freedom; eta squared is 2 F / (2 F + 6), epsilon squared (2 F - 2) / (2 F + 6).
        let level = |outcomes: &[f64]| (String::new(), outcomes.to_vec());
        let levels =
            [level(&[2.6, 2.62, 2.58]), level(&[2.7, 2.73]), level(&[2.5, 2.49, 2.53, 2.5])];
        let found = share(&levels).unwrap();
        assert!((found.eta - 0.9654340836012858).abs() < 1e-9, "{found:?}");
        assert!((found.epsilon - 0.953912111468381).abs() < 1e-9, "{found:?}");
        assert_eq!(share(&levels[..1]), None);
        assert_eq!(share(&[level(&[1.0]), level(&[2.0])]), None);
        assert_eq!(share(&[level(&[1.0, 1.0]), level(&[1.0])]), None);
    }

    #[test]
    fn many_numbers_are_cut_into_quarters() {
        let runs = (0..10).map(|i| (f64::from(i), f64::from(i) * 0.1)).collect();
        let names: Vec<(String, usize)> =
            quarters(runs).into_iter().map(|(name, runs)| (name, runs.len())).collect();
        let expected = [("0 to 2", 3), ("3 to 4", 2), ("5 to 7", 3), ("8 to 9", 2)];
        assert_eq!(names, expected.map(|(name, n)| (name.to_string(), n)));
        // What is the same stays together.
        let runs = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0].map(|x| (x, x)).to_vec();
        let sizes: Vec<usize> = quarters(runs).iter().map(|(_, runs)| runs.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 6);
        assert_eq!(sizes[0], 4);
    }

    /// What changes together explains the same, and what explains no more than chance or the seed does matters not.
    #[test]
    fn an_axis_matters_most_only_where_it_can_be_told() {
        let of = |shares: &[(&str, f64, f64)], seed: Option<f64>| {
            let one =
                |&(key, eta, epsilon): &(&str, f64, f64)| (Share { eta, epsilon }, key.to_string());
            what_matters(&shares.iter().map(one).collect::<Vec<_>>(), seed).unwrap()
        };
        let (a, b) = (("a", 0.8, 0.7), ("b", 0.1, -0.1));
        assert_eq!(
            of(&[a, b], Some(0.01)),
            "Of the 2 parameters, `a` matters most: it explains 80.0 % of the spread of {}."
        );
        assert!(of(&[a, ("b", 0.8, 0.7)], None).contains("`a` and `b` explain the most"));
        assert!(of(&[("a", 0.2, -0.02), b], None).contains("than as many levels would by chance"));
        assert!(of(&[a, b], Some(0.75)).contains("`a` 70.0 %, the seed 75.0 %"));
        assert_eq!(what_matters(&[(Share { eta: 0.8, epsilon: 0.7 }, "a".into())], None), None);
    }
}
