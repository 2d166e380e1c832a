//! A histogram of whole numbers: how many documents or blocks have how many tokens.

use super::axis::{Axis, Scale};
use super::line::{Dot, LineChart, Reference, Series};
use super::{Style, Theme};
use anyhow::Result;

/// Bins at most.
const MAX_BINS: usize = 100;
/// Where the greatest value is so many times the least, equal steps would press most values into the first bins.
const LOG_RANGE: f64 = 50.0;
/// Where the fullest bin holds so many times what a common one does, those would be too low to be seen.
const LOG_COUNTS: f64 = 30.0;
/// Where a logarithmic axis of counts begins: a bin of one is to be seen.
const LOG_FLOOR: f64 = 0.7;

#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    pub title: String,
    /// What is counted: `tokens`.
    pub x_title: String,
    /// What has so many of them: `blocks`.
    pub y_title: String,
    /// Above the plot on the right.
    pub note: String,
    pub values: Vec<usize>,
    /// Values that stand out, named above the plot.
    pub marks: Vec<(f64, String)>,
}

/// Neighbouring bins: bin `i` goes from `edges[i]` to `edges[i + 1]`, without its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Bins {
    pub edges: Vec<f64>,
    pub counts: Vec<usize>,
    pub scale: Scale,
}

impl Histogram {
    /// Draws the histogram on white; axes are logarithmic where only that lets all of it be seen.
    ///
    /// # Errors
    ///
    /// When plotters fails.
    pub fn to_svg(&self) -> Result<String> {
        let bins = Bins::of(&self.values);
        let highest = bins.counts.iter().copied().max().unwrap_or(0) as f64;
        let y = match bins.count_scale() {
            Scale::Linear => axis(&self.y_title, Scale::Linear, 0.0, (highest * 1.08).max(1.0)),
            log => axis(&self.y_title, log, LOG_FLOOR, highest * 1.3),
        };
        let x = Axis::around("", bins.scale, 0.02, bins.edges.iter().copied());
        let mut outline = Series::new(&self.y_title, Style::of(0));
        (outline.markers, outline.filled) = (false, true);
        outline.points = bins.outline(y.low);
        let chart = LineChart {
            title: self.title.clone(),
            description: self.description(),
            x: axis(&self.x_title, bins.scale, x.low, x.high),
            y,
            series: vec![outline],
            verticals: self
                .marks
                .iter()
                .map(|(value, label)| Reference { value: *value, label: label.clone() })
                .collect(),
            horizontals: Vec::new(),
            note: self.note.clone(),
        };
        chart.to_svg(Theme::Light)
    }

    fn description(&self) -> String {
        let (least, greatest) = (self.values.iter().min(), self.values.iter().max());
        format!(
            "Histogram of {} {} of {} to {} {}. {}",
            self.values.len(),
            self.y_title,
            least.unwrap_or(&0),
            greatest.unwrap_or(&0),
            self.x_title,
            self.note
        )
    }
}

impl Bins {
    /// Round bins of one width, or of one ratio where the values lie far apart. Without values there is one empty bin.
    pub fn of(values: &[usize]) -> Bins {
        let least = values.iter().copied().min().unwrap_or(0) as f64;
        let greatest = values.iter().copied().max().unwrap_or(0) as f64;
        let (scale, edges) = match least > 0.0 && greatest / least >= LOG_RANGE {
            true => (Scale::Log2, ratio_edges(least, greatest)),
            false => (Scale::Linear, equal_edges(least, greatest)),
        };
        let mut counts = vec![0; edges.len() - 1];
        for &value in values {
            let after = edges.partition_point(|&edge| edge <= value as f64);
            counts[after - 1] += 1;
        }
        Bins { edges, counts, scale }
    }

    /// Around each run of bins that hold something, from `floor` up and down to it again; a gap between two runs.
    fn outline(&self, floor: f64) -> Vec<Dot> {
        let mut points = Vec::new();
        let mut dot = |x: f64, y: f64| points.push(Dot { x, y, whisker: None });
        let mut before = 0;
        for (edges, &count) in self.edges.windows(2).zip(&self.counts) {
            match (before, count) {
                (0, 0) => {}
                (0, _) => dot(edges[0], floor),
                (_, 0) => {
                    dot(edges[0], floor);
                    dot(f64::NAN, f64::NAN);
                }
                _ => {}
            }
            if count > 0 {
                dot(edges[0], count as f64);
                dot(edges[1], count as f64);
            }
            before = count;
        }
        if before > 0 {
            dot(self.edges[self.edges.len() - 1], floor);
        }
        points
    }

    fn count_scale(&self) -> Scale {
        let mut counts: Vec<usize> = self.counts.iter().copied().filter(|&n| n > 0).collect();
        counts.sort_unstable();
        let common = counts.get(counts.len() / 2).copied().unwrap_or(1) as f64;
        let highest = counts.last().copied().unwrap_or(0) as f64;
        if highest / common >= LOG_COUNTS { Scale::Log } else { Scale::Linear }
    }
}

fn axis(title: &str, scale: Scale, low: f64, high: f64) -> Axis {
    let kind = if scale == Scale::Linear { "" } else { ", logarithmic" };
    Axis { title: format!("{title}{kind}"), scale, low, high }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn equal_edges(least: f64, greatest: f64) -> Vec<f64> {
    // A whole number fills the step up to the next one.
    let span = greatest + 1.0 - least;
    let widths = (0..).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power)));
    let num_bins = |width: f64| ((greatest / width).floor() - (least / width).floor()) as usize + 1;
    let width = widths.into_iter().find(|&width| num_bins(width) <= MAX_BINS);
    let width = width.unwrap_or(span);
    let first = (least / width).floor();
    (0..=num_bins(width)).map(|i| (first + i as f64) * width).collect()
}

fn ratio_edges(least: f64, greatest: f64) -> Vec<f64> {
    let (low, high) = (least.log2(), (greatest + 1.0).log2());
    let num_bins = MAX_BINS / 2;
    let edge = |i: usize| (low + (high - low) * i as f64 / num_bins as f64).exp2();
    // The outer ones exactly, whatever rounding makes of them.
    (0..=num_bins)
        .map(|i| match i {
            0 => least,
            _ if i == num_bins => greatest + 1.0,
            _ => edge(i),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[usize], scale: Scale, ends: (f64, f64), num_bins: usize) -> Bins {
        let bins = Bins::of(values);
        assert_eq!(bins.scale, scale);
        assert_eq!((bins.edges[0], bins.edges[bins.edges.len() - 1]), ends);
        assert_eq!(bins.counts.len(), num_bins);
        assert_eq!(bins.counts.iter().sum::<usize>(), values.len());
        bins
    }

    #[test]
    fn bins_are_round_and_hold_every_value() {
        let bins = check(&[490, 4096, 4095, 4100], Scale::Linear, (450.0, 4150.0), 74);
        assert_eq!((bins.counts[0], bins.counts[72], bins.counts[73]), (1, 2, 1));
        check(&[7, 9], Scale::Linear, (7.0, 10.0), 3);
        check(&[4096; 5], Scale::Linear, (4096.0, 4097.0), 1);
        check(&[0, 0], Scale::Linear, (0.0, 1.0), 1);
        check(&[], Scale::Linear, (0.0, 1.0), 1);
        let far = check(&[10, 100, 100_000], Scale::Log2, (10.0, 100_001.0), 50);
        assert_eq!((far.counts[0], far.counts[49]), (1, 1));
    }

    #[test]
    fn counts_are_logarithmic_where_one_bin_towers() {
        let scale = |values: &[usize]| Bins::of(values).count_scale();
        assert_eq!(scale(&[1, 2, 3]), Scale::Linear);
        assert_eq!(scale(&[]), Scale::Linear);
        let mut clustered = vec![4096; 200];
        clustered.extend([500, 700, 900, 1100]);
        assert_eq!(scale(&clustered), Scale::Log);
    }

    #[test]
    fn what_holds_nothing_is_not_drawn() {
        let bins = Bins::of(&[1, 1, 4]);
        let points: Vec<_> = bins.outline(0.0).iter().map(|dot| (dot.x, dot.y)).collect();
        assert_eq!(points[..4], [(1.0, 0.0), (1.0, 2.0), (2.0, 2.0), (2.0, 0.0)]);
        assert!(points[4].1.is_nan());
        assert_eq!(points[5..], [(4.0, 0.0), (4.0, 1.0), (5.0, 1.0), (5.0, 0.0)]);
    }

    #[test]
    fn it_is_drawn_whatever_the_values() {
        for values in [vec![], vec![5], vec![1, 1, 2], vec![1, 1_000_000], vec![4096; 300]] {
            let histogram = Histogram {
                title: "a & b".into(),
                x_title: "tokens".into(),
                y_title: "blocks".into(),
                note: String::new(),
                values,
                marks: vec![(4.0, "median 4".into())],
            };
            let svg = histogram.to_svg().unwrap();
            assert!(svg.contains(r#"role="img""#) && svg.contains("viewBox="), "{svg}");
            assert!(svg.contains(r#"<title id="title">a &amp; b</title>"#), "{svg}");
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_value_is_outside(values in proptest::collection::vec(0usize..200_000, 0..50)) {
            let bins = Bins::of(&values);
            proptest::prop_assert_eq!(bins.counts.iter().sum::<usize>(), values.len());
            proptest::prop_assert!(bins.counts.len() <= MAX_BINS);
            proptest::prop_assert!(bins.edges.is_sorted_by(|a, b| a < b));
        }
    }
}
