//! What memory costs in time, where nothing but those two is measured: the peak of each label against the time of its step.

use super::figures::{Figure, describe, draw_whole, style};
use super::memory::Costs;
use super::plot::axis::{Axis, Scale};
use super::plot::line::{Dot, LineChart, Series};
use super::summary::{Measure, Summary};
use super::{sql, tables};
use anyhow::Result;
use polars::prelude::*;

/// One point a label; `None` where a sweep has another measure, fewer than two labels with both numbers, or times that are
/// not comparable.
///
/// # Errors
///
/// When it can't be drawn.
pub fn figure(summary: &Summary) -> Result<Option<Figure>> {
    if summary.measure != Measure::PeakMemory || summary.shared_device {
        return Ok(None);
    }
    // Label, seconds of a step, GiB.
    let all: Vec<(usize, f64, f64)> = (0..summary.labels.len())
        .filter_map(|label| {
            let costs = Costs::of(summary, label);
            Some((label, costs.step?, costs.peak? / 1_073_741_824.0))
        })
        .collect();
    if all.len() < 2 {
        return Ok(None);
    }
    let series: Vec<Series> = all
        .iter()
        .map(|&(label, x, y)| {
            let mut one = Series::new(&summary.labels[label].name, style(summary, label));
            one.points = vec![Dot { x, y, whisker: None }];
            one
        })
        .collect();
    let title = "Peak memory against the time of a step".to_string();
    let (x_title, y_title) = ("time of a step (s)", "peak allocated memory (GiB)");
    let highest = all.iter().map(|one| one.2).fold(0.0, f64::max);
    let chart = LineChart {
        title: title.clone(),
        description: describe(x_title, "Peak memory in GiB", &series),
        x: Axis::around(x_title, Scale::Linear, 0.08, all.iter().map(|one| one.1)),
        y: Axis::around(y_title, Scale::Linear, 0.0, [0.0, highest * 1.08]),
        series,
        verticals: Vec::new(),
        horizontals: Vec::new(),
        note: "low and left is good".into(),
    };
    let seeds = |label: usize| summary.labels[label].finished().count() as i64;
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", all.iter().map(|one| summary.labels[one.0].key().into())),
        Column::new("seeds".into(), all.iter().map(|one| seeds(one.0)).collect::<Vec<_>>()),
        Column::new("step_seconds".into(), all.iter().map(|one| one.1).collect::<Vec<_>>()),
        Column::new("peak_allocated_gib".into(), all.iter().map(|one| one.2).collect::<Vec<_>>()),
    ])?;
    let [svg, dark_svg] = draw_whole(&chart)?;
    Ok(Some(Figure {
        name: "memory_by_time".into(),
        caption: "The highest peak of a label's finished runs; the time is the median over steps, the first left out, as a mean over \
                  seeds. The axis of time does not begin at zero."
            .into(),
        title,
        svg,
        dark_svg,
        frame,
        sql: sql::memory_by_time(summary),
    }))
}
