//! Every label against the baseline: differences paired by seed and by evaluated window, their tests, and the seeds that are
//! still needed where there are too few.

use super::answer::count;
use super::answer::measure_name;
use super::difference::NEGLIGIBLE;
use super::markdown::{as_sure_as, bold, capital, text};
use super::significance::{
    EXACT_PAIRS, LEVEL, MANY_PAIRS, POWER, RANDOM_FLIPS, SignFlips, fewest_pairs, holm,
    pairs_needed, sign_flips, t_test,
};
use super::statistics::{Interval, bootstrap_interval, mean, t_interval};
use super::summary::{Measure, Summary};
use super::tables::rows_to_markdown;
use anyhow::Result;
use rayon::prelude::*;

/// A label that has a seed in common with the baseline.
struct Against {
    label: usize,
    mean: f64,
    by_seed: Vec<f64>,
    num_windows: usize,
    over_seeds: Option<Interval>,
    over_windows: Option<Interval>,
    t_test: Option<f64>,
    seeds: Option<SignFlips>,
    windows: Option<SignFlips>,
}

/// The tests of a sweep, where its measure is a perplexity or a loss and there is something to hold against the baseline.
pub struct Comparisons {
    all: Vec<Against>,
    /// Corrected, in the order of `all`; `None` where there is no test.
    seeds_holm: Vec<Option<f64>>,
    windows_holm: Vec<Option<f64>>,
}

impl Comparisons {
    pub fn of(summary: &Summary) -> Comparisons {
        let is_tested =
            matches!(summary.measure, Measure::Perplexity { .. } | Measure::Loss { .. });
        let labels = 0..if is_tested { summary.labels.len() } else { 0 };
        let all: Vec<Against> = labels
            .into_par_iter()
            .filter(|&label| label != summary.baseline)
            .filter_map(|label| against(summary, label))
            .collect();
        let correct = |of: &dyn Fn(&Against) -> Option<SignFlips>| {
            let tests: Vec<Option<f64>> =
                all.iter().map(|one| of(one).map(|test| test.p)).collect();
            let mut corrected =
                holm(&tests.iter().copied().flatten().collect::<Vec<_>>()).into_iter();
            tests.iter().map(|p| p.and_then(|_| corrected.next())).collect::<Vec<_>>()
        };
        let (seeds_holm, windows_holm) = (correct(&|one| one.seeds), correct(&|one| one.windows));
        Comparisons { all, seeds_holm, windows_holm }
    }

    /// Whether the table says of any label that its difference is significant, or that it is not.
    fn judges(&self) -> bool {
        self.all.iter().any(|one| one.by_seed.len() >= fewest_pairs(self.all.len()))
    }

    /// The section of the page; empty where nothing is compared.
    ///
    /// # Errors
    ///
    /// When the table can't be made.
    pub fn section(&self, summary: &Summary) -> Result<String> {
        if self.all.is_empty() {
            return Ok(String::new());
        }
        let has_windows = self.all.iter().any(|one| one.num_windows > 0);
        let mut heads = vec![summary.column.as_str(), "difference", "95 % over seeds", "seeds"];
        heads.extend(["t test", "sign flips", "Holm"]);
        if has_windows {
            heads.extend(["95 % over windows", "windows", "sign flips, windows", "Holm, windows"]);
        }
        heads.push("finding");
        let rows: Vec<Vec<String>> =
            (0..self.all.len()).map(|index| self.row(summary, index, has_windows)).collect();
        let mut section = format!(
            "## Against the baseline\n\n{} less that of {}, in nats, paired{}. Below zero is better.\n\n",
            capital(&nats(&summary.measure)),
            bold(&summary.labels[summary.baseline].name),
            if has_windows { " by seed and by evaluated window" } else { " by seed" }
        );
        let table = rows_to_markdown(&heads, &rows)?;
        match rows.len() > UNFOLDED {
            true => section.push_str(&format!(
                "<details><summary>{}</summary>\n\n{table}\n</details>\n",
                capital(&count(rows.len(), "comparison"))
            )),
            false => section.push_str(&table),
        }
        Ok(section)
    }

    fn row(&self, summary: &Summary, index: usize, has_windows: bool) -> Vec<String> {
        let one = &self.all[index];
        let half = one.over_seeds.or(one.over_windows).map_or(0.0, |i| i.half_width());
        let mut row = vec![
            text(&summary.labels[one.label].name),
            signed(one.mean, half),
            ends(one.over_seeds),
            one.by_seed.len().to_string(),
            one.t_test.map_or("–".into(), p),
            one.seeds.map_or("–".into(), flips),
            self.seeds_holm[index].map_or("–".into(), p),
        ];
        if has_windows {
            row.extend([
                ends(one.over_windows),
                one.num_windows.to_string(),
                one.windows.map_or("–".into(), flips),
                self.windows_holm[index].map_or("–".into(), p),
            ]);
        }
        row.push(self.finding(index));
        row
    }

    fn finding(&self, index: usize) -> String {
        let (one, comparisons) = (&self.all[index], self.all.len());
        let seeds = one.by_seed.len();
        let needed = pairs_needed(&one.by_seed, comparisons);
        let more = match needed {
            _ if one.mean.abs() < NEGLIGIBLE => "next to nothing".to_string(),
            Some(needed) if needed > seeds => {
                format!("needs {} ({needed} in all)", count(needed - seeds, "more seed"))
            }
            Some(_) => String::new(),
            None => format!("needs more than {MANY_PAIRS} seeds"),
        };
        if seeds < fewest_pairs(comparisons) {
            return more;
        }
        let side = if one.mean < 0.0 { "better" } else { "worse" };
        match self.seeds_holm[index] {
            Some(p) if p < LEVEL => format!("significant: {side}"),
            _ if more.is_empty() => "not significant".to_string(),
            _ => format!("not significant: {more}"),
        }
    }

    /// What a reader has to know of the table; empty where there is none.
    pub fn how_to_read(&self, summary: &Summary) -> Vec<String> {
        if self.all.is_empty() {
            return Vec::new();
        }
        let comparisons = self.all.len();
        let fewest = fewest_pairs(comparisons);
        let exact = self.all.iter().any(|one| one.seeds.is_some_and(|test| test.is_exact));
        let mut lines = vec![format!(
            "**Against the baseline**: the interval over seeds says what other seeds would give on these texts, the one over \
             windows (a percentile bootstrap of the mean over seeds of each window) what other passages of {} would give with these seeds; windows that lie side by side in a document \
             are not independent, so it is narrower than it should be. \
             The **t test** is paired, n - 1 degrees of freedom. **Sign flips** is the permutation test that gives each difference \
             either sign: {}{RANDOM_FLIPS} random ways from a fixed seed where there are more than {EXACT_PAIRS} differences. **Holm** corrects it for the {} \
             of the table, seeds and windows each as a family of their own.",
            match documents(summary) {
                Some(1) => "this one document".to_string(),
                Some(all) => format!("these {all} documents"),
                None => "these texts".to_string(),
            },
            if exact { "all 2^n ways, " } else { "" },
            count(comparisons, "comparison"),
        )];
        lines.push(format!(
            "**Seeds needed**: n differences can't bring the sign-flip test of {} below {LEVEL} before n = {fewest} (its smallest p is \
             2 / 2^n), so nothing is judged before. The number is the smallest n with `n >= ((t(1 - a/2, n - 1) + t({POWER}, n - 1)) sd / |mean|)^2`, \
             `a` = {LEVEL} over the number of comparisons, from the mean and the spread that these seeds show: the sample size of a t test with a \
             chance of {POWER} to find such a difference (Zar, *Biostatistical Analysis*).{}",
            count(comparisons, "comparison"),
            if self.judges() {
                format!(" **Significant**: the corrected p of the sign flips over seeds is below {LEVEL}.")
            } else {
                String::new()
            }
        ));
        lines
    }
}

/// How many documents the runs were evaluated on, where they say so and agree.
fn documents(summary: &Summary) -> Option<usize> {
    let runs = summary.comparison.points.iter().filter_map(|point| point.finished());
    let mut counts =
        runs.map(|run| Some(run.facts.get("eval.split")?["documents"].as_array()?.len()));
    let first = counts.next()??;
    counts.all(|count| count == Some(first)).then_some(first)
}

/// Rows that the table shows unfolded.
const UNFOLDED: usize = 24;

fn against(summary: &Summary, label: usize) -> Option<Against> {
    let pairs = summary.pairs(label, summary.baseline, &summary.measure);
    Some(Against {
        label,
        mean: mean(&pairs.by_seed).filter(|mean| mean.is_finite())?,
        num_windows: pairs.by_window.len(),
        over_seeds: t_interval(&pairs.by_seed),
        over_windows: bootstrap_interval(&pairs.by_window),
        t_test: t_test(&pairs.by_seed),
        seeds: sign_flips(&pairs.by_seed),
        windows: sign_flips(&pairs.by_window),
        by_seed: pairs.by_seed,
    })
}

/// The measure in nats: a perplexity's is its NLL.
fn nats(measure: &Measure) -> String {
    measure_name(measure).replacen("perplexity", "NLL", 1)
}

fn signed(x: f64, half: f64) -> String {
    let sign = if x > 0.0 { "+" } else { "" };
    format!("{sign}{}", as_sure_as(x, half))
}

fn ends(interval: Option<Interval>) -> String {
    interval.map_or("–".into(), |i| {
        let half = i.half_width();
        format!("{} to {}", signed(i.low, half), signed(i.high, half))
    })
}

/// Two significant digits.
fn p(p: f64) -> String {
    match p {
        p if p < 0.0001 => "< 0.0001".to_string(),
        p if p < 0.1 => {
            let decimals = (1 - p.log10().floor() as i32) as usize;
            format!("{p:.decimals$}")
        }
        p => format!("{p:.2}"),
    }
}

/// p, and of how many ways.
fn flips(test: SignFlips) -> String {
    format!("{} ({})", p(test.p), test.flips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_have_two_digits() {
        let shown = [0.5, 0.046875, 0.00123, 0.00001, 1.0].map(p);
        assert_eq!(shown, ["0.50", "0.047", "0.0012", "< 0.0001", "1.00"]);
        assert_eq!(signed(0.01234, 0.001), "+0.0123");
        assert_eq!(signed(-0.01234, 0.0), "-0.01234");
    }
}
