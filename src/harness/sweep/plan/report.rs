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
    let is = |point: &Point| {
        point.label == name || point.settings.iter().any(|(key, value)| key != SEED && same(value))
    };
    if points.iter().any(is) {
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
