//! What quality costs: which labels no other one beats in both, against peak memory and against time.
//!
//! Quality is the sweep's measure, where that is a perplexity or a loss. The front begins with the best; then comes, time
//! and again, the best of those than which the last one costs more by [`WORTH`]. So each is better than all that cost as
//! little (Pareto), and none is there for a cost that is as good as the same; by the means alone, without regard to their
//! intervals.

use super::answer::measure_name;
use super::difference::NEGLIGIBLE;
use super::figures::{Figure, describe, draw_whole, style};
use super::markdown::capital;
use super::plot::Style;
use super::plot::axis::{Axis, Scale};
use super::plot::line::{Dot, LineChart, Series};
use super::statistics::mean;
use super::summary::{Measure, Summary};
use super::{sql, tables};
use anyhow::Result;
use polars::prelude::*;

/// What is paid for quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    Memory,
    Time,
}

/// Costs of which the larger is not more than this many times the smaller are taken for the same.
pub const WORTH: f64 = 1.1;

impl Cost {
    pub const ALL: [Cost; 2] = [Cost::Memory, Cost::Time];

    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            Cost::Memory => "memory",
            Cost::Time => "time",
        }
    }

    fn column(self) -> &'static str {
        match self {
            Cost::Memory => "peak_allocated_gib",
            Cost::Time => "minutes",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Cost::Memory => "peak allocated memory (GiB)",
            Cost::Time => "time of a run (minutes)",
        }
    }

    /// Over the finished runs `r`.
    fn sql(self) -> &'static str {
        match self {
            Cost::Memory => "max(r.peak_allocated) / 1073741824.0",
            Cost::Time => "avg(r.seconds) / 60",
        }
    }

    fn of(self, summary: &Summary, label: usize) -> Option<f64> {
        let runs = || summary.labels[label].finished().map(|(_, run)| run);
        match self {
            Cost::Memory => runs()
                .filter_map(|run| run.peak_allocated)
                .max()
                .map(|b| b as f64 / 1_073_741_824.0),
            Cost::Time => Some(mean(&runs().map(|run| run.seconds).collect::<Vec<_>>())? / 60.0),
        }
    }
}

/// One label: its mean loss, what it costs, and whether it is on the front.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traded {
    pub label: usize,
    pub loss: f64,
    pub cost: f64,
    pub seeds: usize,
    pub on_front: bool,
}

/// The labels with what they cost, in the order of the plan; empty where quality has no measure, it or the costs are as
/// good as the same, or times measure how runs got in each other's way.
pub fn traded(summary: &Summary, cost: Cost) -> Vec<Traded> {
    if !matches!(summary.measure, Measure::Perplexity { .. } | Measure::Loss { .. })
        || cost == Cost::Time && summary.shared_device
    {
        return Vec::new();
    }
    let all = (0..summary.labels.len()).filter_map(|label| {
        let estimate = summary.estimate(label, &summary.measure)?;
        let cost = cost.of(summary, label)?;
        let seeds = estimate.by_seed.len();
        let is_number = estimate.mean.is_finite() && cost > 0.0;
        is_number.then_some(Traded { label, loss: estimate.mean, cost, seeds, on_front: false })
    });
    let mut all: Vec<Traded> = all.collect();
    let costs = || all.iter().map(|one| one.cost);
    let (least, most) = (costs().fold(f64::INFINITY, f64::min), costs().fold(0.0, f64::max));
    let losses = || all.iter().map(|one| one.loss);
    let (best, worst) =
        (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    if all.len() < 2 || most < WORTH * least || worst - best < NEGLIGIBLE {
        return Vec::new();
    }
    mark_front(&mut all);
    all
}

fn mark_front(all: &mut [Traded]) {
    let mut by_loss = all.to_vec();
    by_loss.sort_by(|a, b| a.loss.total_cmp(&b.loss).then(a.cost.total_cmp(&b.cost)));
    let mut front: Vec<Traded> = Vec::new();
    for one in by_loss {
        // Better ones come first, and the last of the front is its cheapest.
        if front.last().is_none_or(|last| one.cost * WORTH < last.cost) {
            front.push(one);
        }
    }
    for one in all {
        one.on_front = front.iter().any(|of| of.loss == one.loss && of.cost == one.cost);
    }
}

/// Quality against each cost that differs.
///
/// # Errors
///
/// When one can't be drawn.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    Cost::ALL.into_iter().filter_map(|cost| figure(summary, cost).transpose()).collect()
}

fn figure(summary: &Summary, cost: Cost) -> Result<Option<Figure>> {
    let traded = traded(summary, cost);
    if traded.is_empty() {
        return Ok(None);
    }
    let is_perplexity = matches!(summary.measure, Measure::Perplexity { .. });
    let shown = |loss: f64| if is_perplexity { loss.exp() } else { loss };
    let (scale, unit) =
        if is_perplexity { (Scale::Log, "log scale") } else { (Scale::Linear, "nats per token") };
    // All of the front are named; of a long plan the others are grey dots.
    let is_named = |one: &Traded| one.on_front || traded.len() <= NAMED;
    let mut series: Vec<Series> = Vec::new();
    let mut front = Series::new("the front", Style { dash: &[4.0, 4.0], ..Style::BASELINE });
    front.markers = false;
    let mut on_front: Vec<&Traded> = traded.iter().filter(|one| one.on_front).collect();
    on_front.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    front.points =
        on_front.iter().map(|one| Dot { x: one.cost, y: shown(one.loss), whisker: None }).collect();
    let mut rest = Series::new("not on the front", Style::of(0));
    rest.dots =
        traded.iter().filter(|one| !is_named(one)).map(|one| (one.cost, shown(one.loss))).collect();
    for one in traded.iter().filter(|one| is_named(one)) {
        let mut dot = Series::new(&summary.labels[one.label].name, style(summary, one.label));
        dot.points = vec![Dot { x: one.cost, y: shown(one.loss), whisker: None }];
        series.push(dot);
    }
    let description = describe(cost.title(), &measure_name(&summary.measure), &series);
    series.extend((front.points.len() > 1).then_some(front));
    series.extend((!rest.dots.is_empty()).then_some(rest));
    let what = measure_name(&summary.measure);
    let y_title = match what.strip_suffix(')') {
        Some(head) => format!("{head}, {unit})"),
        None => format!("{what} ({unit})"),
    };
    let quality = if is_perplexity { "perplexity" } else { "loss" };
    let title = format!(
        "{} against {}",
        capital(quality),
        match cost {
            Cost::Memory => "peak memory",
            Cost::Time => "time",
        }
    );
    let all_y = || traded.iter().map(|one| shown(one.loss));
    let chart = LineChart {
        title: title.clone(),
        description,
        x: Axis::around(cost.title(), Scale::Linear, 0.08, traded.iter().map(|one| one.cost)),
        y: Axis::around(&y_title, scale, 0.1, all_y()),
        series,
        verticals: Vec::new(),
        horizontals: Vec::new(),
        note: "dashed: the front; low and left is good".into(),
    };
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", traded.iter().map(|one| summary.labels[one.label].key().into())),
        Column::new("seeds".into(), traded.iter().map(|one| one.seeds as i64).collect::<Vec<_>>()),
        Column::new(quality.into(), traded.iter().map(|one| shown(one.loss)).collect::<Vec<_>>()),
        Column::new(cost.column().into(), traded.iter().map(|one| one.cost).collect::<Vec<_>>()),
        Column::new(
            "on_front".into(),
            traded.iter().map(|o| i64::from(o.on_front)).collect::<Vec<_>>(),
        ),
    ])?;
    let [svg, dark_svg] = draw_whole(&chart)?;
    let paid = match cost {
        Cost::Memory => "the highest peak of a label's finished runs",
        Cost::Time => "the mean over a label's finished runs, loading and evaluation included",
    };
    Ok(Some(Figure {
        name: format!("{quality}_by_{}", cost.name()),
        caption: format!(
            "Means over seeds; {} is {paid}. The front: the best, then in turn the best of those that the last one costs over 10 % more than; by the means alone.",
            match cost {
                Cost::Memory => "memory",
                Cost::Time => "time",
            }
        ),
        title,
        svg,
        dark_svg,
        frame,
        sql: sql::pareto(summary, &summary.measure, cost.sql(), (quality, cost.column())),
    }))
}

/// Labels that all have their names in the plot.
const NAMED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_none_beats_in_both() {
        let one = |label, loss, cost| Traded { label, loss, cost, seeds: 1, on_front: false };
        // The third is beaten by the second; the fourth is as good as the second, and both stay.
        let mut all = [
            one(0, 3.0, 1.0),
            one(1, 2.0, 2.0),
            one(2, 2.5, 2.0),
            one(3, 2.0, 2.0),
            one(4, 1.0, 9.0),
        ];
        mark_front(&mut all);
        assert_eq!(all.map(|one| one.on_front), [true, true, false, true, true]);
    }

    #[test]
    fn a_cost_within_a_tenth_earns_no_place_on_the_front() {
        let front = |costs: &[f64]| {
            let one = |(label, &cost): (usize, &f64)| Traded {
                label,
                loss: label as f64,
                cost,
                seeds: 1,
                on_front: false,
            };
            let mut all: Vec<Traded> = costs.iter().enumerate().map(one).collect();
            mark_front(&mut all);
            all.iter().map(|one| one.on_front).collect::<Vec<_>>()
        };
        assert_eq!(front(&[0.90, 0.88, 0.73]), [true, false, true]);
        // Many small steps are a large one in the end.
        assert_eq!(front(&[1.0, 0.94, 0.88, 0.82, 0.76]), [true, false, true, false, true]);
    }
}
