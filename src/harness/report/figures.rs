//! The figures of a report: which ones a sweep calls for, and the numbers that each shows.

use super::input::{Point, Run};
use super::page::{method_name, name_of_loss};
use super::plot::Style;
use super::plot::axis::{Axis, Scale, length_label};
use super::plot::line::{Dot, LineChart, Reference, Series};
use super::statistics::{mean, t_interval};
use super::summary::{Measure, SEED, Summary, TRAINING_LOSS, plain};
use super::tables;
use anyhow::Result;
use fathom_spec::units::Bytes;
use polars::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A plot, the numbers in it, and what to say of it.
pub struct Figure {
    /// Names its files: `<name>.svg` and `<name>.csv`.
    pub name: String,
    pub title: String,
    pub caption: String,
    pub svg: String,
    pub csv: String,
}

/// The figures that the sweep's numbers allow, in the order of the page.
///
/// # Errors
///
/// When one can't be drawn.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    figures.extend(memory_by_value(summary)?);
    for method in &summary.methods {
        figures.extend(perplexity_by_length(summary, method)?);
    }
    figures.extend(by_number(summary)?);
    figures.extend(nll_by_position(summary)?);
    // The probes of a search are too short to have a curve, random tokens have none worth a look.
    if !matches!(summary.measure, Measure::Ceiling { .. } | Measure::PeakMemory) {
        figures.extend(loss_curves(summary)?);
    }
    Ok(figures)
}

fn style(summary: &Summary, label: usize) -> Style {
    match label.cmp(&summary.baseline) {
        std::cmp::Ordering::Less => Style::of(label),
        std::cmp::Ordering::Equal => Style::BASELINE,
        std::cmp::Ordering::Greater => Style::of(label - 1),
    }
}

/// What a plot says without being seen: each series with its first and last value.
fn describe(x: &str, y: &str, series: &[Series]) -> String {
    let ends = series.iter().filter_map(|series| {
        let shown = || series.points.iter().filter(|dot| dot.y.is_finite());
        let (first, last) = (shown().next()?, shown().next_back()?);
        let number = fathom_spec::units::format_number;
        Some(format!(
            "{}: {} at {}, {} at {}",
            series.label,
            number(first.y),
            number(first.x),
            number(last.y),
            number(last.x)
        ))
    });
    format!("{y} against {x}. {}.", ends.collect::<Vec<_>>().join("; "))
}

/// An axis for `centres` that also shows their whiskers, but never gives those more than half of its length.
fn axis_for(title: &str, scale: Scale, series: &[Series]) -> Axis {
    let dots = || series.iter().flat_map(|s| &s.points);
    let centres = dots().map(|dot| dot.y).chain(series.iter().flat_map(|s| &s.dots).map(|d| d.1));
    let core = Axis::around(title, scale, 0.08, centres);
    let whiskers = dots().filter_map(|dot| dot.whisker).flat_map(|(low, high)| [low, high]);
    let mut reached: Vec<f64> =
        whiskers.map(|x| core.position(x)).filter(|p| p.is_finite()).collect();
    reached.extend([0.0, 1.0]);
    let low = reached.iter().copied().fold(0.0, f64::min).max(-0.5) - 0.02;
    let high = reached.iter().copied().fold(1.0, f64::max).min(1.5) + 0.02;
    let at = |position: f64| match scale {
        Scale::Linear => core.low + position * (core.high - core.low),
        _ => core.low * (core.high / core.low).powf(position),
    };
    Axis { low: at(low), high: at(high), ..core }
}

fn training_length(summary: &Summary, x: &Axis) -> Vec<Reference> {
    let length = summary.training_length().filter(|l| (0.0..=1.0).contains(&x.position(*l)));
    let reference =
        |length| Reference { value: length, label: format!("trained at {}", length_label(length)) };
    length.map(reference).into_iter().collect()
}

fn perplexity_by_length(summary: &Summary, method: &str) -> Result<Option<Figure>> {
    let lengths = summary.context_lengths(method);
    if lengths.is_empty() {
        return Ok(None);
    }
    let mut series = Vec::new();
    for (index, label) in summary.labels.iter().enumerate() {
        let mut one = Series::new(&label.name, style(summary, index));
        for &context_length in &lengths {
            let measure = Measure::Perplexity { method: method.to_string(), context_length };
            let Some(estimate) = summary.estimate(index, &measure) else { continue };
            one.points.push(Dot {
                x: context_length as f64,
                y: estimate.mean.exp(),
                whisker: estimate.interval.map(|i| (i.low.exp(), i.high.exp())),
            });
        }
        series.extend((!one.points.is_empty()).then_some(one));
    }
    let seeds = series.iter().any(|s| s.points.iter().any(|dot| dot.whisker.is_some()));
    let x = Axis::around(
        "context length (tokens, log scale)",
        Scale::Log2,
        0.05,
        lengths.iter().map(|&length| length as f64),
    );
    let title = format!("Perplexity by context length ({})", method_name(method));
    let chart = LineChart {
        description: describe("context length", "Perplexity", &series),
        verticals: training_length(summary, &x),
        x,
        y: axis_for("perplexity (log scale)", Scale::Log, &series),
        horizontals: Vec::new(),
        note: if seeds { "bars: 95 % interval over seeds".into() } else { String::new() },
        title: title.clone(),
        series,
    };
    let means = tables::over_seeds(&tables::perplexity(summary)?)?;
    let of_method = means.column("method")?.str()?.equal(method);
    let bars = match seeds {
        true => {
            " Bars are 95 % intervals over seeds; a bar that would flatten the plot is cut off at its edge."
        }
        false => " One seed a point: no intervals.",
    };
    Ok(Some(Figure {
        name: format!("perplexity_{method}"),
        caption: format!("Mean over seeds; both axes are logarithmic.{bars}"),
        title,
        svg: chart.to_svg()?,
        csv: tables::to_csv(&means.filter(&of_method)?)?,
    }))
}

/// Points a curve is drawn with at most; more are averaged in groups.
const CURVE_POINTS: usize = 150;

fn loss_curves(summary: &Summary) -> Result<Option<Figure>> {
    let mut series = Vec::new();
    let mut rows: Vec<(String, i64, i64, f64)> = Vec::new();
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
        for (seed, run, curve) in &curves {
            rows.extend(curve.iter().map(|&(step, loss)| (label.name.clone(), *seed, step, loss)));
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
        tables::strings("label", rows.iter().map(|(label, ..)| label.clone())),
        Column::new("seed".into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
        Column::new("step".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        Column::new("loss".into(), rows.iter().map(|row| row.3).collect::<Vec<_>>()),
    ])?;
    Ok(Some(Figure {
        name: "loss".into(),
        caption: "Means over the seeds that finished; single seeds are pale. The axis is that of the runs that finished: \
                  a loss that leaves all bounds leaves the plot."
            .into(),
        title,
        svg: chart.to_svg()?,
        csv: tables::to_csv(&frame)?,
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

/// Bins of an octave.
const BINS: f64 = 4.0;

fn nll_by_position(summary: &Summary) -> Result<Option<Figure>> {
    let mut series = Vec::new();
    let mut rows: Vec<(String, f64, i64, i64, f64)> = Vec::new();
    for (index, label) in summary.labels.iter().enumerate() {
        // Bin -> (sum of nll, tokens) over all seeds: a token counts the same, whatever its seed.
        let mut bins: BTreeMap<i64, (f64, i64, i64, i64)> = BTreeMap::new();
        for (_, run) in label.finished() {
            for row in run.position_nll.iter().filter(|r| r.split == summary.split && r.tokens > 0)
            {
                let centre = middle(row.start, row.end);
                let bin = bins
                    .entry((centre.log2() * BINS).floor() as i64)
                    .or_insert((0.0, 0, row.start, row.end));
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
            rows.push((label.name.clone(), nll, start, end, tokens as f64));
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
    Ok(Some(Figure {
        name: "nll_by_position".into(),
        caption:
            "Mean NLL of the predictions in each quarter of an octave of positions, over all seeds."
                .into(),
        title,
        svg: chart.to_svg()?,
        csv: tables::to_csv(&frame)?,
    }))
}

/// The middle of `start..end` on a logarithmic axis; positions begin at 1.
fn middle(start: i64, end: i64) -> f64 {
    let (first, last) = (start.max(1) as f64, (end - 1).max(start).max(1) as f64);
    (first * last).sqrt()
}

/// One number of each point: a key of its settings, or the only number that its axis' value sets.
fn swept_number(summary: &Summary, axis: &str, value: &Value) -> Option<f64> {
    if let Some(number) = value.as_f64() {
        return Some(number);
    }
    let sets = summary.comparison.spec["axes"][axis][value.as_str()?].as_object()?;
    let mut values = sets.values();
    values.next()?.as_f64().filter(|_| values.next().is_none())
}

/// The main measure against a parameter that takes three values or more.
fn by_number(summary: &Summary) -> Result<Option<Figure>> {
    let measure = match &summary.measure {
        Measure::Ceiling { .. } | Measure::PeakMemory => return Ok(None),
        measure => measure,
    };
    let points = &summary.comparison.points;
    let axes: BTreeSet<&String> = points.iter().flat_map(|p| p.settings.keys()).collect();
    let swept = axes.into_iter().filter(|axis| *axis != SEED).find_map(|axis| {
        let number = |settings: &serde_json::Map<String, Value>| {
            swept_number(summary, axis, settings.get(axis)?)
        };
        let values: Option<Vec<f64>> = points.iter().map(|point| number(&point.settings)).collect();
        let mut values = values?;
        values.sort_by(f64::total_cmp);
        values.dedup();
        (values.len() >= 3).then_some((axis, values))
    });
    let Some((axis, values)) = swept else { return Ok(None) };

    let is_perplexity = matches!(measure, Measure::Perplexity { .. });
    let shown = |loss: f64| if is_perplexity { loss.exp() } else { loss };
    // A line for each combination of the other settings.
    let mut series: Vec<Series> = Vec::new();
    let mut rows: Vec<(String, f64, i64, String, Option<f64>)> = Vec::new();
    for (index, label) in summary.labels.iter().enumerate() {
        let settings = &label.points[0].settings;
        let x = swept_number(summary, axis, &settings[axis.as_str()]).expect("every point has it");
        let others: Vec<String> = settings
            .iter()
            .filter(|(key, _)| *key != axis && *key != SEED)
            .map(|(key, value)| format!("{}={}", last_part(key), plain(value)))
            .collect();
        let name = if others.is_empty() { "mean".to_string() } else { others.join(", ") };
        let at = series.iter().position(|s| s.label == name).unwrap_or_else(|| {
            series.push(Series::new(&name, Style::of(series.len())));
            series.len() - 1
        });
        let estimate = summary.estimate(index, measure);
        for point in &label.points {
            let value =
                estimate.as_ref().and_then(|e| e.by_seed.get(&point.seed)).map(|loss| shown(*loss));
            rows.push((name.clone(), x, point.seed, point.status().to_string(), value));
            match value {
                Some(value) => series[at].dots.push((x, value)),
                None if !point.is_open() => series[at].crosses.push((x, None)),
                None => {}
            }
        }
        if let Some(estimate) = estimate {
            let whisker = estimate.interval.map(|i| (shown(i.low), shown(i.high)));
            series[at].points.push(Dot { x, y: shown(estimate.mean), whisker });
        }
    }
    for one in &mut series {
        one.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        if one.dots.len() == one.points.len() {
            one.dots.clear();
        }
    }
    let short = last_part(axis);
    let what = match measure {
        Measure::Perplexity { context_length, .. } => {
            format!("perplexity at {} tokens", length_label(*context_length as f64))
        }
        Measure::Loss { key } => name_of_loss(key),
        Measure::Ceiling { .. } | Measure::PeakMemory => unreachable!("returned above"),
    };
    let spread = values[values.len() - 1] / values[0];
    let scale = if values[0] > 0.0 && spread >= 4.0 { Scale::Log } else { Scale::Linear };
    let y_scale = if is_perplexity { Scale::Log } else { Scale::Linear };
    let unit = if is_perplexity { "log scale" } else { "nats per token" };
    let y_title = format!("{what} ({unit})");
    let log = if scale == Scale::Log { " (log scale)" } else { "" };
    let failed = series.iter().any(|s| !s.crosses.is_empty());
    let title = format!("{}{} by {short}", what[..1].to_uppercase(), &what[1..]);
    let chart = LineChart {
        description: describe(short, &what, &series),
        x: Axis::around(&format!("{axis}{log}"), scale, 0.06, values),
        y: axis_for(&y_title, y_scale, &series),
        verticals: Vec::new(),
        horizontals: Vec::new(),
        note: if failed { "× did not finish".into() } else { String::new() },
        title: title.clone(),
        series,
    };
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("series", rows.iter().map(|row| row.0.clone())),
        Column::new(short.into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
        Column::new("seed".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        tables::strings("status", rows.iter().map(|row| row.3.clone())),
        Column::new("value".into(), rows.iter().map(|row| row.4).collect::<Vec<_>>()),
    ])?;
    Ok(Some(Figure {
        name: format!("by_{}", file_word(short)),
        caption: "Means over seeds with 95 % intervals; pale dots are single seeds. \
                  An × at the top marks a run that did not finish."
            .into(),
        title,
        svg: chart.to_svg()?,
        csv: tables::to_csv(&frame)?,
    }))
}

/// Peak memory against the value that is searched, else against the training length; with the cap.
fn memory_by_value(summary: &Summary) -> Result<Option<Figure>> {
    const LENGTH: &str = "train.sequence_length";
    let parameter = match &summary.measure {
        Measure::Ceiling { parameter } => parameter.as_str(),
        _ => LENGTH,
    };
    let (_, ceilings) = summary.ceilings(parameter);
    let values: BTreeSet<i64> =
        ceilings.iter().flat_map(|c| &c.points).map(|(value, _)| *value as i64).collect();
    if values.len() < 2 {
        return Ok(None);
    }
    let probes = ceilings.iter().any(|ceiling| ceiling.probes > 0);
    let gib = |bytes: i64| Bytes(bytes.max(0) as u64).as_gib();
    let caps: BTreeSet<(i64, &str)> = summary.comparison.points.iter().filter_map(cap).collect();
    let mut rows = Vec::new();
    let mut series: Vec<Series> = Vec::new();
    for (index, ceiling) in ceilings.iter().enumerate() {
        let name = ceiling.name_or("peak memory");
        let mut one = Series::new(name, Style::of(index));
        // What all layers have shown counts before a probe.
        let is_shown_whole = |value: f64| {
            let mut points = ceiling.points.iter().filter(|(v, _)| *v == value);
            points.any(|(_, point)| point.has_result() && point.probe_layers().is_none())
        };
        let mut peaks: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        for (value, point) in &ceiling.points {
            let is_shown = point.probe_layers().is_none() || !is_shown_whole(*value);
            let run = point.run.as_ref();
            let peak = run.and_then(|run| run.peak_allocated).map(gib);
            match (point.status(), peak) {
                ("finished", Some(peak)) if is_shown => {
                    peaks.entry(*value as i64).or_default().push(peak);
                }
                ("out_of_memory", peak) => {
                    // What it would have taken: at least what was held and what was asked for.
                    let asked = run.and_then(|run| run.asked_bytes).map_or(0.0, gib);
                    one.crosses.push((*value, peak.map(|peak| peak + asked)));
                }
                ("killed" | "failed" | "diverged", _) => one.crosses.push((*value, None)),
                _ => {}
            }
            rows.push((name.to_string(), *value, *point, peak));
        }
        for (value, peaks) in peaks {
            one.points.push(Dot {
                x: value as f64,
                y: mean(&peaks).expect("a value has a peak"),
                whisker: t_interval(&peaks).map(|i| (i.low, i.high)),
            });
        }
        series.push(one);
    }
    let real = series.iter().flat_map(|s| &s.points).map(|dot| dot.y);
    let real = real.chain(caps.iter().map(|&(bytes, _)| gib(bytes))).fold(0.0, f64::max);
    let wished = series.iter().flat_map(|s| &s.crosses).filter_map(|cross| cross.1);
    // What could never be had is not to flatten what was.
    let highest = wished.fold(real, f64::max).min(1.6 * real).max(1e-3);
    let horizontals = caps.iter().map(|&(bytes, name)| Reference {
        value: gib(bytes),
        label: format!("{name}: {}", Bytes(bytes as u64)),
    });
    let short = last_part(parameter);
    let words = short.replace('_', " ");
    let title = format!("Peak memory by {words}");
    let unit = if parameter == LENGTH { "tokens, log scale" } else { "log scale" };
    let chart = LineChart {
        description: describe(&words, "Peak memory in GiB", &series),
        x: Axis::around(
            &format!("{parameter} ({unit})"),
            Scale::Log2,
            0.06,
            values.iter().map(|&value| value as f64),
        ),
        y: Axis::around("peak allocated memory (GiB)", Scale::Linear, 0.0, [0.0, highest * 1.08]),
        verticals: Vec::new(),
        horizontals: horizontals.collect(),
        note: match series.iter().any(|s| !s.crosses.is_empty()) {
            true => "× out of memory: held and asked for".into(),
            false => String::new(),
        },
        title: title.clone(),
        series,
    };
    let mut columns = vec![
        tables::strings("series", rows.iter().map(|row| row.0.clone())),
        Column::new(short.into(), rows.iter().map(|r| r.1 as i64).collect::<Vec<_>>()),
        Column::new("seed".into(), rows.iter().map(|row| row.2.seed).collect::<Vec<_>>()),
        tables::strings("status", rows.iter().map(|row| row.2.status().to_string())),
        Column::new("peak_allocated_gib".into(), rows.iter().map(|row| row.3).collect::<Vec<_>>()),
    ];
    let mut caption = "Peak allocation of the runs that finished. An × is a run that did not: where memory ran out it stands \
                       at what was held plus what was asked for, at the top where that is off the plot or not known."
        .to_string();
    if probes {
        let layers: Vec<Option<i64>> =
            rows.iter().map(|row| row.2.probe_layers().map(|layers| layers as i64)).collect();
        columns.push(Column::new("probe_layers".into(), layers));
        caption
            .push_str(" Where no run of all layers has a result, a probe of some of them stands.");
    }
    Ok(Some(Figure {
        name: "memory".into(),
        caption,
        title,
        svg: chart.to_svg()?,
        csv: tables::to_csv(&DataFrame::new_infer_height(columns)?)?,
    }))
}

/// The memory that a run could take, and what it is called: its cap, or what there was when it ran out.
fn cap(point: &Point) -> Option<(i64, &'static str)> {
    let run = point.run.as_ref()?;
    let cap = run.params.get("run.memory_cap").and_then(Value::as_i64);
    let total = run.total_bytes.map(|bytes| (bytes, "device memory"));
    cap.map(|bytes| (bytes, "memory cap")).or(total)
}

/// `learning_rate` of `train.learning_rate`.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A key as part of a file's name.
fn file_word(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
