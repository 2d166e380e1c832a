//! Which small multiples a plot of many lines becomes: a panel a value of one axis, in it a line for each of the others' values.

use super::figures::last_part;
use super::plot::Style;
use super::plot::line::{LineChart, Series};
use super::plot::panels::Panels;
use super::summary::{SEED, Summary, plain};
use std::collections::BTreeSet;

/// Lines that one plot can have and each still be followed.
pub const LINES: usize = 7;

/// Panels at most: those of the best are drawn where there are more.
pub const PANELS: usize = 24;

/// The panels of `chart`, whose series are called as the labels are; `None` where one plot shows them all.
pub fn panels(summary: &Summary, chart: &LineChart) -> Option<Panels> {
    if chart.series.len() <= LINES {
        return None;
    }
    let lines: Vec<(usize, &Series)> = chart
        .series
        .iter()
        .filter_map(|series| {
            Some((summary.labels.iter().position(|label| label.name == series.label)?, series))
        })
        .collect();
    if lines.is_empty() {
        return Some(one_each(chart));
    }
    let chosen = axis(summary, &lines.iter().map(|(label, _)| *label).collect::<Vec<_>>());
    let place = |label: usize| match &chosen {
        Some(axis) => (setting(summary, label, axis), others(summary, label, axis)),
        None => (summary.labels[label].name.clone(), String::new()),
    };
    let mut names: Vec<String> = Vec::new();
    for (label, _) in &lines {
        let (_, line) = place(*label);
        if !line.is_empty() && !names.contains(&line) {
            names.push(line);
        }
    }
    let mut panels: Vec<(String, Vec<Series>, f64)> = Vec::new();
    let baseline = lines.iter().find(|(label, _)| *label == summary.baseline);
    for (label, series) in &lines {
        let (panel, line) = place(*label);
        let mut series = (*series).clone();
        series.style = match names.iter().position(|name| *name == line) {
            Some(index) => Style::of(index),
            None if *label == summary.baseline => Style::BASELINE,
            None => Style::of(0),
        };
        let mean = summary.estimate(*label, &summary.measure).map_or(f64::INFINITY, |e| e.mean);
        match panels.iter_mut().find(|(name, _, _)| *name == panel) {
            Some((_, lines, best)) => {
                lines.push(series);
                *best = best.min(mean);
            }
            None => panels.push((panel, vec![series], mean)),
        }
    }
    let mut legend: Vec<(String, Style)> =
        names.into_iter().enumerate().map(|(index, name)| (name, Style::of(index))).collect();
    // Panels of one line have the baseline's behind it to be held against.
    if let (true, Some((label, series))) = (legend.is_empty(), baseline) {
        let mut behind = (*series).clone();
        behind.style = Style::BASELINE;
        behind.faint.clear();
        for (name, lines, _) in &mut panels {
            if *name != summary.labels[*label].name {
                lines.insert(0, behind.clone());
            }
        }
        legend.push((format!("baseline: {}", series.label), Style::BASELINE));
    }
    let mut chart = chart.clone();
    let mut notes: Vec<String> = Vec::new();
    if panels.len() > PANELS {
        let all = panels.len();
        let mut means: Vec<f64> = panels.iter().map(|(_, _, best)| *best).collect();
        means.sort_by(f64::total_cmp);
        let bound = means[PANELS - 1];
        panels.retain(|(_, _, best)| *best <= bound);
        panels.truncate(PANELS);
        notes.push(format!("the best {} of {all}", panels.len()));
    }
    notes.extend(chart.verticals.first().map(|line| format!("dashed: {}", line.label)));
    notes.extend((!chart.note.is_empty()).then(|| chart.note.clone()));
    chart.note = notes.join("; ");
    chart.series.clear();
    let panels = panels.into_iter().map(|(name, lines, _)| (name, lines)).collect();
    Some(Panels { chart, panels, legend })
}

/// A panel for each series, where these are not the labels.
fn one_each(chart: &LineChart) -> Panels {
    let mut chart = chart.clone();
    let mut series = std::mem::take(&mut chart.series);
    if series.len() > PANELS {
        let first = format!("the first {PANELS} of {}", series.len());
        let notes = [first, chart.note.clone()];
        chart.note =
            notes.into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join("; ");
        series.truncate(PANELS);
    }
    let panels = series.into_iter().map(|one| {
        let style = Style::of(0);
        (one.label.clone(), vec![Series { style, ..one }])
    });
    Panels { chart, panels: panels.collect(), legend: Vec::new() }
}

/// The axis that gives the fewest panels of which none has more than [`LINES`] lines, if there are at least two axes.
fn axis(summary: &Summary, labels: &[usize]) -> Option<String> {
    let keys: Vec<&String> = summary.labels[*labels.first()?].points[0]
        .settings
        .keys()
        .filter(|key| *key != SEED)
        .collect();
    if keys.len() < 2 {
        return None;
    }
    let fits = |axis: &str| {
        let values: BTreeSet<String> =
            labels.iter().map(|&label| setting(summary, label, axis)).collect();
        let lines: BTreeSet<String> =
            labels.iter().map(|&label| others(summary, label, axis)).collect();
        (lines.len() <= LINES).then_some(values.len())
    };
    let fitting = keys.into_iter().filter_map(|key| Some((fits(key)?, key)));
    fitting.min_by_key(|(panels, _)| *panels).map(|(_, key)| key.clone())
}

fn setting(summary: &Summary, label: usize, axis: &str) -> String {
    let value = summary.labels[label].points[0].settings.get(axis);
    format!("{}={}", last_part(axis), value.map_or("–".into(), plain))
}

/// The settings beside `axis` and the seed.
fn others(summary: &Summary, label: usize, axis: &str) -> String {
    let settings = &summary.labels[label].points[0].settings;
    let others = settings.iter().filter(|(key, _)| *key != axis && *key != SEED);
    let parts: Vec<String> =
        others.map(|(key, value)| format!("{}={}", last_part(key), plain(value))).collect();
    parts.join(", ")
}
