//! The figures of a report: which ones a sweep calls for, and the numbers that each shows.

use super::answer::count;
use super::input::Point;
use super::markdown::{method_name, name_of_loss};
use super::plot::axis::{Axis, Scale, length_label};
use super::plot::line::{Dot, LineChart, Reference, Series};
use super::plot::{Style, Theme};
use super::statistics::{mean, t_interval};
use super::summary::{Estimate, Measure, SEED, Summary, plain};
use super::{curves, memory_by_time, multiples, pareto, sql, tables};
use anyhow::Result;
use fathom_spec::units::Bytes;
use polars::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A plot, the numbers in it, and what to say of it.
pub struct Figure {
    /// Names its files: `<name>.svg`, `<name>_dark.svg` and `<name>.csv`.
    pub name: String,
    pub title: String,
    pub caption: String,
    /// On white.
    pub svg: String,
    /// On GitHub's dark page.
    pub dark_svg: String,
    /// The numbers in it, one row a point of the plot or a run.
    pub frame: DataFrame,
    /// The query that gives `frame` from the store.
    pub sql: String,
}

/// The figures that the sweep's numbers allow, in the order of the page.
///
/// # Errors
///
/// When one can't be drawn.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    figures.extend(memory_by_value(summary)?);
    figures.extend(memory_by_time::figure(summary)?);
    for method in &summary.methods {
        figures.extend(perplexity_by_length(summary, method)?);
    }
    figures.extend(by_number(summary)?);
    figures.extend(pareto::figures(summary)?);
    figures.extend(curves::nll_by_position(summary)?);
    // The probes of a search are too short to have a curve, random tokens have none worth a look.
    if !matches!(summary.measure, Measure::Ceiling { .. } | Measure::PeakMemory) {
        figures.extend(curves::loss(summary)?);
    }
    Ok(figures)
}

pub(super) fn style(summary: &Summary, label: usize) -> Style {
    match label.cmp(&summary.baseline) {
        std::cmp::Ordering::Less => Style::of(label),
        std::cmp::Ordering::Equal => Style::BASELINE,
        std::cmp::Ordering::Greater => Style::of(label - 1),
    }
}

/// What a plot says without being seen: each series with its first and last value.
pub(super) fn describe(x: &str, y: &str, series: &[Series]) -> String {
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
pub(super) fn axis_for(title: &str, scale: Scale, series: &[Series]) -> Axis {
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

pub(super) fn training_length(summary: &Summary, x: &Axis) -> Vec<Reference> {
    let length = summary.training_length().filter(|l| (0.0..=1.0).contains(&x.position(*l)));
    let reference =
        |length| Reference { value: length, label: format!("trained at {}", length_label(length)) };
    length.map(reference).into_iter().collect()
}

/// A plot for each page: `[light, dark]`. Where it would have more lines than can be told apart, small multiples.
///
/// # Errors
///
/// When plotters fails.
pub(super) fn draw(summary: &Summary, chart: &LineChart) -> Result<[String; 2]> {
    match multiples::panels(summary, chart) {
        Some(panels) => Ok([panels.to_svg(Theme::Light)?, panels.to_svg(Theme::Dark)?]),
        None => draw_whole(chart),
    }
}

/// As [`draw`], in one plot however many its lines are.
///
/// # Errors
///
/// When plotters fails.
pub(super) fn draw_whole(chart: &LineChart) -> Result<[String; 2]> {
    Ok([chart.to_svg(Theme::Light)?, chart.to_svg(Theme::Dark)?])
}

fn perplexity_by_length(summary: &Summary, method: &str) -> Result<Option<Figure>> {
    let lengths = summary.context_lengths(method);
    if lengths.is_empty() {
        return Ok(None);
    }
    let mut series = Vec::new();
    let mut rows: Vec<(&str, i64, Estimate)> = Vec::new();
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
            rows.push((label.key(), context_length, estimate));
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
    let number = |name: &str, of: &dyn Fn(&Estimate) -> Option<f64>| {
        let values: Vec<Option<f64>> = rows.iter().map(|(_, _, estimate)| of(estimate)).collect();
        Column::new(name.into(), values)
    };
    let low = |estimate: &Estimate| estimate.interval.map(|i| i.low);
    let high = |estimate: &Estimate| estimate.interval.map(|i| i.high);
    let seeds_of = |row: &(&str, i64, Estimate)| row.2.by_seed.len() as i64;
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", rows.iter().map(|row| row.0.to_string())),
        Column::new("context_length".into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
        Column::new("seeds".into(), rows.iter().map(seeds_of).collect::<Vec<_>>()),
        number("nll", &|estimate| Some(estimate.mean)),
        number("nll_low", &low),
        number("nll_high", &high),
        number("perplexity", &|estimate| Some(estimate.mean.exp())),
        number("perplexity_low", &|estimate| Some(low(estimate)?.exp())),
        number("perplexity_high", &|estimate| Some(high(estimate)?.exp())),
    ])?;
    let [svg, dark_svg] = draw(summary, &chart)?;
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
        svg,
        dark_svg,
        frame,
        sql: sql::perplexity(summary, method),
    }))
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
    let mut named: Vec<(String, f64)> = Vec::new();
    for point in points {
        if let Some(name) = point.settings[axis.as_str()].as_str()
            && !named.iter().any(|(known, _)| known == name)
        {
            let x = swept_number(summary, axis, &point.settings[axis.as_str()]);
            named.push((name.to_string(), x.expect("every point has it")));
        }
    }

    let is_perplexity = matches!(measure, Measure::Perplexity { .. });
    let shown = |loss: f64| if is_perplexity { loss.exp() } else { loss };
    // A line for each combination of the other settings.
    let mut series: Vec<Series> = Vec::new();
    // By the place in the plan: label, x, seed, status, value.
    let mut rows: BTreeMap<usize, (&str, f64, i64, &str, Option<f64>)> = BTreeMap::new();
    let place = |point: &Point| points.iter().position(|other| std::ptr::eq(other, point));
    // Runs that finished without the number that is drawn.
    let mut without = 0;
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
        for &point in &label.points {
            let value =
                estimate.as_ref().and_then(|e| e.by_seed.get(&point.seed)).map(|loss| shown(*loss));
            let row = (label.key(), x, point.seed, point.status(), value);
            rows.insert(place(point).expect("a point of the sweep"), row);
            match value {
                Some(value) => series[at].dots.push((x, value)),
                None if point.finished().is_some() => without += 1,
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
    let rows: Vec<_> = rows.into_values().collect();
    let frame = DataFrame::new_infer_height(vec![
        tables::strings("label", rows.iter().map(|row| row.0.to_string())),
        Column::new(short.into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
        Column::new("seed".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        tables::strings("status", rows.iter().map(|row| row.3.to_string())),
        Column::new("value".into(), rows.iter().map(|row| row.4).collect::<Vec<_>>()),
    ])?;
    let [svg, dark_svg] = draw(summary, &chart)?;
    Ok(Some(Figure {
        name: format!("by_{}", file_word(short)),
        caption: format!(
            "Means over seeds with 95 % intervals; pale dots are single seeds. \
             An × at the top marks a run that did not finish.{}",
            match without {
                0 => String::new(),
                n => format!(" Not drawn: {}, without a {what}.", count(n, "finished run")),
            }
        ),
        title,
        svg,
        dark_svg,
        frame,
        sql: sql::by_number(summary, measure, axis, short, &named),
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
            // One that was refused before it started held nothing, and has no peak.
            let asked = run.and_then(|run| run.asked_bytes).map(gib);
            rows.push((*value, *point, peak.filter(|&peak| peak > 0.0), asked));
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
    // In the order of the plan.
    let place = |point: &Point| {
        summary.comparison.points.iter().position(|other| std::ptr::eq(other, point))
    };
    rows.sort_by_cached_key(|(_, point, ..)| place(point));
    let mut columns = vec![
        tables::strings("label", rows.iter().map(|row| row.1.label.clone())),
        Column::new(short.into(), rows.iter().map(|r| r.0 as i64).collect::<Vec<_>>()),
        Column::new("seed".into(), rows.iter().map(|row| row.1.seed).collect::<Vec<_>>()),
        tables::strings("status", rows.iter().map(|row| row.1.status().to_string())),
        Column::new("peak_allocated_gib".into(), rows.iter().map(|row| row.2).collect::<Vec<_>>()),
        Column::new("asked_gib".into(), rows.iter().map(|row| row.3).collect::<Vec<_>>()),
    ];
    let mut caption = "Peak allocation of the runs that finished. An × is a run that did not: where memory ran out it stands \
                       at what was held (`peak_allocated_gib`) plus what was asked for (`asked_gib`), at the top where that is off the plot or not known."
        .to_string();
    if probes {
        let layers: Vec<Option<i64>> =
            rows.iter().map(|row| row.1.probe_layers().map(|layers| layers as i64)).collect();
        columns.push(Column::new("probe_layers".into(), layers));
        caption
            .push_str(" Where no run of all layers has a result, a probe of some of them stands.");
    }
    // By rising value, so that a peak below the one before it asks for a reason.
    let falls = ceilings.iter().any(|ceiling| {
        let runs = ceiling.points.iter().filter_map(|(_, point)| point.finished());
        let peaks: Vec<i64> =
            runs.filter(|run| run.plan().is_some()).filter_map(|run| run.peak_allocated).collect();
        peaks.windows(2).any(|pair| pair[1] < pair[0])
    });
    if falls {
        caption.push_str(
            " What is not written of the layered engine's settings is chosen for each run, the fastest that fits: a longer one may \
             take less.",
        );
    }
    let [svg, dark_svg] = draw(summary, &chart)?;
    Ok(Some(Figure {
        name: "memory".into(),
        caption,
        title,
        svg,
        dark_svg,
        frame: DataFrame::new_infer_height(columns)?,
        sql: sql::memory(summary, parameter, short, probes),
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
pub(super) fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A key as part of a file's name.
fn file_word(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
