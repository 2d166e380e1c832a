//! `report`: what the report is told has to be of this sweep.

use super::{Point, SEED, known, plain};
use anyhow::{Result, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Node, Written};
use serde_json::Value;
use std::collections::BTreeSet;

/// What the report is told has to be of this sweep.
pub(super) fn check_report(report: &Written, points: &[Point]) -> Result<()> {
    for entry in report.entries("report")? {
        known(entry, &["title", "baseline", "method", "context_length"], "report")?;
    }
    if let Some(title) = report.get("title") {
        title.text("report.title")?;
    }
    if let Some(length) = report.get("context_length")
        && !matches!(length.node, Node::Int(n) if n > 0)
    {
        bail!(
            "{}: report.context_length: expected a whole number, 1 or more, found {}",
            length.origin,
            length.describe()
        );
    }
    if let Some(length) = report.get("context_length")
        && let Some(asked) = length.to_json().as_u64()
    {
        let lengths: BTreeSet<usize> =
            points.iter().flat_map(|point| point.config.eval.context_lengths.clone()).collect();
        if !lengths.iter().any(|length| *length as u64 == asked) {
            let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
            bail!(
                "{}: report.context_length: expected a length that is evaluated, found `{asked}`\n  help: eval.context_lengths \
                 has {}",
                length.origin,
                if lengths.is_empty() { "none".to_string() } else { lengths.join(", ") }
            );
        }
    }
    if let Some(method) = report.get("method")
        && !["prefix", "last_stride"].contains(&method.text("report.method")?)
    {
        bail!(
            "{}: report.method: expected `prefix` or `last_stride`, found {}",
            method.origin,
            method.describe()
        );
    }
    let Some(baseline) = report.get("baseline") else { return Ok(()) };
    let (json, name) = (baseline.to_json(), plain(&baseline.to_json()));
    let same =
        |value: &Value| plain(value) == name || json.is_number() && value.as_f64() == json.as_f64();
    if points.iter().any(|point| point.label == name || joined(point) == name) {
        return Ok(());
    }
    // A value of an axis names the first point that has it; of several axes, these are several.
    let axes: BTreeSet<&String> = points.iter().flat_map(|point| point.settings.keys()).collect();
    let first =
        |axis: &String| points.iter().find(|point| point.settings.get(axis).is_some_and(&same));
    let named: BTreeSet<&str> = axes
        .into_iter()
        .filter(|axis| *axis != SEED)
        .filter_map(|axis| Some(first(axis)?.label.as_str()))
        .collect();
    if named.len() > 1 {
        let named: Vec<String> = named.into_iter().map(|label| format!("`{label}`")).collect();
        bail!(
            "{}: report.baseline: expected the name of one point, found `{name}`, which is a value of several axes\n  help: name the \
             point itself: {}",
            baseline.origin,
            named.join(" or ")
        );
    }
    if !named.is_empty() {
        return Ok(());
    }
    let of = |point: &Point| -> Vec<String> {
        point
            .settings
            .iter()
            .filter(|(key, _)| *key != SEED)
            .map(|(_, value)| plain(value))
            .collect()
    };
    let names: BTreeSet<String> = points.iter().flat_map(of).collect();
    let near = nearest(&name, names.iter().map(String::as_str));
    let help = near.map(|near| format!("\n  help: did you mean `{near}`?")).unwrap_or_default();
    bail!("{}: report.baseline: expected a point's label, found `{name}`{help}", baseline.origin)
}

/// The values of a point's axes as a report's tables name it: `plain, 1e-5`.
fn joined(point: &Point) -> String {
    let values = point.settings.iter().filter(|(key, _)| *key != SEED);
    values.map(|(_, value)| plain(value)).collect::<Vec<_>>().join(", ")
}
