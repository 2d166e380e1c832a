//! The rungs of a sweep by successive halving: what every point had reached where it was stopped, and which went on.

use super::input::Point;
use super::markdown::{in_code, text};
use super::summary::{Measure, Summary};
use super::tables::rows_to_markdown;
use anyhow::Result;
use fathom_spec::units::{Tokens, format_number};
use serde_json::Value;

/// `search.halving` of the sweep file, as far as a report shows it.
struct Rungs {
    metric: String,
    /// Tokens, rising.
    tokens: Vec<u64>,
}

fn rungs(summary: &Summary) -> Option<Rungs> {
    let halving = summary.comparison.spec["search"]["halving"].as_object()?;
    let tokens = |rung: &Value| match rung {
        Value::String(text) => text.parse::<Tokens>().ok().map(|tokens| tokens.0),
        number => number.as_f64().map(|number| number as u64),
    };
    let tokens = halving.get("rungs")?.as_array()?.iter().map(tokens).collect::<Option<_>>()?;
    let metric = halving.get("metric").and_then(Value::as_str).unwrap_or("eval_loss.validation");
    Some(Rungs { metric: metric.to_string(), tokens })
}

/// Whether the point was stopped at a rung, as halving does with what is not among the best.
pub fn is_stopped_at_rung(summary: &Summary, point: &Point) -> bool {
    let Some(Rungs { tokens, .. }) = rungs(summary) else { return false };
    point.run.as_ref().is_some_and(|run| {
        run.status == "stopped" && tokens.iter().any(|&rung| run.tokens as u64 >= rung)
    })
}

/// The section of the page; empty for a sweep that is not halved.
///
/// # Errors
///
/// When the table can't be made.
pub fn section(summary: &Summary) -> Result<String> {
    let Some(Rungs { metric, tokens }) = rungs(summary) else { return Ok(String::new()) };
    if matches!(summary.measure, Measure::Ceiling { .. }) {
        return Ok(String::new());
    }
    let at: Vec<String> = tokens.iter().map(|rung| format!("at {}", Tokens(*rung))).collect();
    let mut heads = vec![summary.column.as_str(), "seed"];
    heads.extend(at.iter().map(String::as_str));
    heads.extend(["last", "tokens", "outcome"]);
    let mut rows = Vec::new();
    for label in &summary.labels {
        for point in &label.points {
            let mut row = vec![text(&label.name), point.seed.to_string()];
            row.extend(tokens.iter().map(|&rung| shown(at_rung(point, &metric, rung))));
            let run = point.run.as_ref();
            row.push(shown(run.and_then(|run| run.last(&metric))));
            row.push(run.map_or("–".into(), |run| Tokens(run.tokens as u64).to_string()));
            row.push(match is_stopped_at_rung(summary, point) {
                true => "stopped at a rung".to_string(),
                false => point.status().replace('_', " "),
            });
            rows.push(row);
        }
    }
    Ok(format!(
        "## Rungs\n\nSuccessive halving: {} of each point where it was stopped to be compared; the best of those that had reached a \
         rung went on from there.\n\n{}",
        in_code(&metric),
        rows_to_markdown(&heads, &rows)?
    ))
}

/// The metric's value at the first step that reached the rung.
fn at_rung(point: &Point, metric: &str, rung: u64) -> Option<f64> {
    let number = |key: &str| point.number(key).filter(|number| *number >= 1.0);
    let per_step = number("train.sequence_length")?
        * number("train.micro_batch_size")?
        * number("train.gradient_accumulation_steps")?;
    let step = (rung as f64 / per_step).ceil() as i64;
    let values = point.run.as_ref()?.metrics.get(metric)?;
    values.iter().find(|(at, _)| *at == step).map(|(_, value)| *value)
}

fn shown(value: Option<f64>) -> String {
    value.map_or("–".into(), format_number)
}
