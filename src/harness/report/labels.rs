//! The labels of a sweep: its points without their seeds, what each is called, and which have a perplexity at which length.

use super::input::{Point, Run};
use super::summary::{SEED, plain};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All points that differ by their seed alone.
pub struct Label<'a> {
    /// As the report writes it.
    pub name: String,
    pub points: Vec<&'a Point>,
}

impl Label<'_> {
    /// As the store names it.
    pub fn key(&self) -> &str {
        &self.points[0].label
    }

    pub fn finished(&self) -> impl Iterator<Item = (i64, &Run)> {
        self.points.iter().filter_map(|point| Some((point.seed, point.finished()?)))
    }
}

/// The points by label in the order of the plan, and what heads the labels.
///
/// Where all points have the same axes, those head the labels and a label is but their values: `plain, 1e-5`.
pub fn labels(points: &[Point]) -> (String, Vec<Label<'_>>) {
    let mut by_label: Vec<Label> = Vec::new();
    for point in points {
        match by_label.iter_mut().find(|label| label.name == point.label) {
            Some(label) => label.points.push(point),
            None => by_label.push(Label { name: point.label.clone(), points: vec![point] }),
        }
    }
    let joined = |point: &Point, part: &dyn Fn(&String, &Value) -> String| {
        let parts: Vec<String> = point
            .settings
            .iter()
            .filter(|(key, _)| *key != SEED)
            .map(|(key, value)| part(key, value))
            .collect();
        parts.join(", ")
    };
    let axes: BTreeSet<String> = points.iter().map(|p| joined(p, &|key, _| key.clone())).collect();
    let values: Vec<String> =
        by_label.iter().map(|label| joined(label.points[0], &|_, value| plain(value))).collect();
    let distinct: BTreeSet<&String> = values.iter().collect();
    let mut column = "point".to_string();
    if let (1, Some(axes)) = (axes.len(), axes.first().filter(|axes| !axes.is_empty()))
        && distinct.len() == values.len()
    {
        column = axes.clone();
        for (label, value) in by_label.iter_mut().zip(values) {
            label.name = value;
        }
    }
    for label in by_label.iter_mut().filter(|label| label.name.is_empty()) {
        label.name = "(the only one)".to_string();
    }
    (column, by_label)
}

/// The labels that `report.baseline` may mean: by name or by label in the store, else the first that has the value, of each
/// axis that has it.
pub fn find_labels(labels: &[Label<'_>], written: &Value) -> BTreeSet<usize> {
    let name = plain(written);
    let number = written.as_f64().or_else(|| name.parse().ok());
    let means =
        |value: &Value| plain(value) == name || number.is_some() && value.as_f64() == number;
    let called = |label: &Label| label.name == name || label.points[0].label == name;
    if let Some(called) = labels.iter().position(called) {
        return BTreeSet::from([called]);
    }
    let axes: BTreeSet<&String> =
        labels.iter().flat_map(|label| label.points[0].settings.keys()).collect();
    let first = |axis: &&String| {
        let mut values = labels.iter().map(|label| label.points[0].settings.get(*axis));
        values.position(|value| value.is_some_and(means))
    };
    axes.iter().filter(|axis| **axis != SEED).filter_map(first).collect()
}

/// The labels of which a finished run has a perplexity, by its length.
pub fn labels_by_length(
    labels: &[Label<'_>],
    split: &str,
    method: &str,
) -> BTreeMap<i64, BTreeSet<usize>> {
    let mut by_length: BTreeMap<i64, BTreeSet<usize>> = BTreeMap::new();
    for (index, label) in labels.iter().enumerate() {
        let rows = label.finished().flat_map(|(_, run)| &run.perplexity);
        for row in rows.filter(|row| row.split == split && row.method == method) {
            by_length.entry(row.context_length).or_default().insert(index);
        }
    }
    by_length
}

/// The longest length that most labels have, and the baseline too where it has any; without one, the one that the most have.
pub fn common_length(by_length: &BTreeMap<i64, BTreeSet<usize>>, baseline: usize) -> i64 {
    let all: BTreeSet<&usize> = by_length.values().flatten().collect();
    let is_needed = all.contains(&baseline);
    let fits = |labels: &BTreeSet<usize>| !is_needed || labels.contains(&baseline);
    let fitting = || by_length.iter().filter(|(_, labels)| fits(labels));
    let most = fitting().rfind(|(_, labels)| labels.len() * 2 > all.len());
    let most = most.or_else(|| fitting().max_by_key(|(length, labels)| (labels.len(), **length)));
    *most.expect("a method has rows, and the baseline one of them where it has any").0
}
