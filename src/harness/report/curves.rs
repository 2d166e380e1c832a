//! The figures of what each run recorded along the way: training losses by step, NLL by position.

use super::figures::{Figure, axis_for, describe, draw, style, training_length};
use super::input::{Point, Run};
use super::plot::axis::{Axis, Scale};
use super::plot::line::{Dot, LineChart, Series};
use super::statistics::mean;
use super::summary::{Summary, TRAINING_LOSS};
use super::{sql, tables};
use anyhow::Result;
use polars::prelude::*;
use std::collections::BTreeMap;

/// Points a curve is drawn with at most; more are averaged in groups.
const CURVE_POINTS: usize = 150;

/// The training losses: their means, with single seeds pale behind.
///
/// # Errors
///
/// When it can't be drawn.
pub fn loss(summary: &Summary) -> Result<Option<Figure>> {
    let mut series = Vec::new();
    // Losses after which an axis for the runs that trained well still makes sense.
    let mut settled: Vec<f64> = Vec::new();
    for (index, label) in summary.labels.iter().enumerate() {
        let mut one = Series::new(&label.name, style(summary, index));
        one.markers = false;
        let curves: Vec<Curve> = label.points.iter().filter_map(|point| curve(point)).collect();
        if curves.is_empty() {
            continue;
        }
        let is_finished = |run: &Run| run.status == "finished";
        let any_finished = curves.iter().any(|(_, run, _)| is_finished(run));
        let mut by_step: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        let mut averaged = 0;
        for (_, run, curve) in &curves {
            if is_finished(run) {
                settled.extend(thin(curve).into_iter().map(|(_, loss)| loss));
            } else if run.status == "diverged" {
                let last = curve.iter().rfind(|(_, loss)| loss.is_finite());
                one.crosses.extend(last.map(|&(step, loss)| (step as f64, Some(loss))));
            }
            if any_finished && !is_finished(run) {
                continue;
            }
            averaged += 1;
            for &(step, loss) in *curve {
                by_step.entry(step).or_default().push(loss);
            }
        }
        // The mean ends where the first seed does: past it, it would jump.
        let means: Vec<(i64, f64)> = by_step
            .into_iter()
            .filter(|(_, losses)| losses.len() == averaged)
            .filter_map(|(step, losses)| Some((step, mean(&losses)?)))
            .collect();
        one.points = thin(&means).into_iter().map(|(x, y)| Dot { x, y, whisker: None }).collect();
        if curves.len() > 1 {
            one.faint = curves.iter().map(|(_, _, curve)| thin(curve)).collect();
        }
        series.push(one);
    }
    if series.is_empty() {
        return Ok(None);
    }
    if settled.is_empty() {
        settled = series.iter().flat_map(|s| &s.points).map(|dot| dot.y).collect();
    }
    // In the order of the plan: label, seed, step, loss.
    let curves = || summary.comparison.points.iter().filter_map(|p| Some((&p.label, curve(p)?)));
    let rows: Vec<(&str, i64, i64, f64)> = curves()
        .flat_map(|(label, (seed, _, curve))| {
            curve.iter().map(move |&(step, loss)| (label.as_str(), seed, step, loss))
        })
        .collect();
    let steps = rows.iter().map(|(_, _, step, _)| *step as f64);
    let pale = series.iter().any(|s| !s.faint.is_empty()).then_some("pale: single seeds");
    let diverged = series.iter().any(|s| !s.crosses.is_empty()).then_some("× diverged");
    let notes: Vec<&str> = pale.into_iter().chain(diverged).collect();
    let title = "Training loss".to_string();
    let chart = LineChart {
        description: describe("step", "Training loss", &series),
        x: Axis::around("optimizer step", Scale::Linear, 0.0, steps),
        y: Axis::around("loss (nats per token)", Scale::Linear, 0.05, settled),
        verticals: Vec::new(),
        horizontals: Vec::new(),
        note: notes.join("; "),
        title: title.clone(),
        series,
    };
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", rows.iter().map(|(label, ..)| label.to_string())),
        Column::new("seed".into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
        Column::new("step".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        Column::new("loss".into(), rows.iter().map(|row| row.3).collect::<Vec<_>>()),
    ])?;
    let [svg, dark_svg] = draw(summary, &chart)?;
    Ok(Some(Figure {
        name: "loss".into(),
        caption: "Means over the seeds that finished; single seeds are pale. The axis is that of the runs that finished: \
                  a loss that leaves all bounds leaves the plot."
            .into(),
        title,
        svg,
        dark_svg,
        frame,
        sql: sql::loss(summary),
    }))
}

/// The training loss of one run.
type Curve<'a> = (i64, &'a Run, &'a [(i64, f64)]);

fn curve(point: &Point) -> Option<Curve<'_>> {
    let run = point.run.as_ref()?;
    let losses = run.metrics.get(TRAINING_LOSS).filter(|losses| !losses.is_empty())?;
    Some((point.seed, run, losses))
}

/// A curve of at most [`CURVE_POINTS`] points: the means of equally many neighbours.
fn thin(curve: &[(i64, f64)]) -> Vec<(f64, f64)> {
    let group = curve.len().div_ceil(CURVE_POINTS).max(1);
    let mean_of = |chunk: &[(i64, f64)], of: &dyn Fn(&(i64, f64)) -> f64| {
        chunk.iter().map(of).sum::<f64>() / chunk.len() as f64
    };
    curve
        .chunks(group)
        .map(|chunk| (mean_of(chunk, &|p| p.0 as f64), mean_of(chunk, &|p| p.1)))
        .collect()
}

/// The quarter of an octave that the [`middle`] of `start..end` lies in; the query of the figure has the same formula.
fn bin(start: i64, end: i64) -> i64 {
    let square = start.max(1) * (end - 1).max(start).max(1);
    // What lies on an edge is not to fall below it by rounding.
    (2.0 * (square as f64).ln() / 2f64.ln() + 1e-9) as i64
}

/// NLL by the number of tokens that a prediction sees.
///
/// # Errors
///
/// When it can't be drawn.
pub fn nll_by_position(summary: &Summary) -> Result<Option<Figure>> {
    let mut series = Vec::new();
    let mut rows: Vec<(String, f64, i64, i64, i64)> = Vec::new();
    for (index, label) in summary.labels.iter().enumerate() {
        // Bin -> (sum of nll, tokens) over all seeds: a token counts the same, whatever its seed.
        let mut bins: BTreeMap<i64, (f64, i64, i64, i64)> = BTreeMap::new();
        for (_, run) in label.finished() {
            for row in run.position_nll.iter().filter(|r| r.split == summary.split && r.tokens > 0)
            {
                let bin =
                    bins.entry(bin(row.start, row.end)).or_insert((0.0, 0, row.start, row.end));
                bin.0 += row.nll * row.tokens as f64;
                bin.1 += row.tokens;
                bin.2 = bin.2.min(row.start);
                bin.3 = bin.3.max(row.end);
            }
        }
        if bins.is_empty() {
            continue;
        }
        let mut one = Series::new(&label.name, style(summary, index));
        one.markers = false;
        for (sum, tokens, start, end) in bins.into_values() {
            let (x, nll) = (middle(start, end), sum / tokens as f64);
            one.points.push(Dot { x, y: nll, whisker: None });
            rows.push((label.key().to_string(), nll, start, end, tokens));
        }
        series.push(one);
    }
    if series.is_empty() {
        return Ok(None);
    }
    let positions = series.iter().flat_map(|s| &s.points).map(|dot| dot.x);
    let x =
        Axis::around("tokens that the prediction sees (log scale)", Scale::Log2, 0.02, positions);
    let title = "NLL by position".to_string();
    let chart = LineChart {
        description: describe("position", "NLL", &series),
        verticals: training_length(summary, &x),
        x,
        y: axis_for("NLL (nats per token)", Scale::Linear, &series),
        horizontals: Vec::new(),
        note: String::new(),
        title: title.clone(),
        series,
    };
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", rows.iter().map(|row| row.0.clone())),
        Column::new("start".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        Column::new("end".into(), rows.iter().map(|row| row.3).collect::<Vec<_>>()),
        Column::new("tokens".into(), rows.iter().map(|row| row.4).collect::<Vec<_>>()),
        Column::new("nll".into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
    ])?;
    let [svg, dark_svg] = draw(summary, &chart)?;
    Ok(Some(Figure {
        name: "nll_by_position".into(),
        caption:
            "Mean NLL of the predictions in each quarter of an octave of positions, over all seeds."
                .into(),
        title,
        svg,
        dark_svg,
        frame,
        sql: sql::position_nll(summary),
    }))
}

/// The middle of `start..end` on a logarithmic axis; positions begin at 1.
fn middle(start: i64, end: i64) -> f64 {
    let (first, last) = (start.max(1) as f64, (end - 1).max(start).max(1) as f64);
    (first * last).sqrt()
}
