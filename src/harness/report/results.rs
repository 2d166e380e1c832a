//! The page's section of results: a row a label with what was measured, or the values that a search tried.

use super::answer::{measure_name, reason, whole};
use super::input::Run;
use super::markdown::{bold, bytes, capital, in_code, method_name, name_of_loss, plus_minus, text};
use super::pareto::{Cost, traded};
use super::plot::axis::length_label;
use super::statistics;
use super::summary::{Measure, Summary};
use super::tables::{pivot, rows_to_markdown, to_markdown};
use super::{latex, memory};
use anyhow::Result;
use polars::prelude::DataFrame;
use std::collections::BTreeSet;

/// The best of every column, and what a search found in tables.
pub fn section(summary: &Summary) -> Result<String> {
    let mut section = String::from("## Results\n\n");
    match &summary.measure {
        Measure::Ceiling { parameter } => section.push_str(&search(summary, parameter)?),
        Measure::PeakMemory => section.push_str(&memory::by_label(summary)?),
        measure => {
            let table = results_table(summary, summary.methods.first(), true)?;
            section.push_str(&caption(summary, measure, summary.methods.first()));
            section.push_str(&to_markdown(&table)?);
            section.push_str(&format!(
                "\n<details><summary>This table as LaTeX</summary>\n\n```latex\n{}```\n\n</details>\n",
                latex::table(&table, &latex::caption(summary), &summary.comparison.sweep)?
            ));
        }
    }
    if summary.shared_device {
        section.push_str(
            "\nRuns shared their device at the same time: times and tokens/s are not comparable.\n",
        );
    }
    let predicted = match summary.measure {
        Measure::Ceiling { .. } => String::new(),
        _ => memory::predicted(summary)?,
    };
    if !predicted.is_empty() {
        section.push_str(&format!("\n{predicted}"));
    }
    for method in summary.methods.iter().skip(1) {
        section.push_str(&format!("\nBy the other method, {}:\n\n", method_name(method)));
        section.push_str(&to_markdown(&results_table(summary, Some(method), false)?)?);
    }
    if !summary.methods.is_empty() {
        section.push_str(
            "\nPerplexity of every run: [perplexity_by_run.csv](perplexity_by_run.csv).\n",
        );
    }
    Ok(section)
}

fn caption(summary: &Summary, measure: &Measure, method: Option<&String>) -> String {
    let sure = match summary.has_intervals(measure) {
        true => "mean over seeds ± half of its 95 % interval",
        false => "one seed, so no intervals over seeds",
    };
    let what = match method {
        Some(method) => format!("Perplexity by context length ({})", method_name(method)),
        None => capital(&measure_name(measure)),
    };
    format!(
        "{what}; {sure}. Bold: the best of a column and all that can't be told from it{}. \
         Ordered as planned; baseline: {}.\n\n",
        match summary.best(measure).map(|best| summary.without_interval(best, measure)) {
            Some(unsure) if !unsure.is_empty() => {
                "; one without an interval of its difference is never bold"
            }
            _ => "",
        },
        bold(summary.labels.get(summary.baseline).map_or("none", |label| &label.name))
    )
}

/// A row a label; `whole` adds what does not depend on the evaluation's method.
fn results_table(summary: &Summary, method: Option<&String>, whole: bool) -> Result<DataFrame> {
    let key = summary.loss_key();
    let mut cells: Vec<(String, String, String)> = Vec::new();
    let mut columns: Vec<(String, Measure)> = Vec::new();
    if let Some(method) = method {
        columns.extend(summary.context_lengths(method).into_iter().map(|context_length| {
            let measure = Measure::Perplexity { method: method.clone(), context_length };
            (length_label(context_length as f64), measure)
        }));
    }
    if whole {
        columns.push((name_of_loss(&key), Measure::Loss { key: key.clone() }));
    }
    let bolds: Vec<BTreeSet<usize>> = columns
        .iter()
        .map(|(_, measure)| match summary.best(measure) {
            Some(best) if summary.labels.len() > 1 => {
                summary.alike(best, measure).into_iter().chain([best]).collect()
            }
            _ => BTreeSet::new(),
        })
        .collect();
    let fronts: Vec<(Cost, BTreeSet<usize>)> = Cost::ALL
        .into_iter()
        .map(|cost| {
            let on = traded(summary, cost).into_iter().filter(|one| one.on_front);
            (cost, on.map(|one| one.label).collect())
        })
        .collect();
    for (index, label) in summary.labels.iter().enumerate() {
        let row = text(&label.name);
        let runs: Vec<&Run> = label.finished().map(|(_, run)| run).collect();
        cells.push((row.clone(), "seeds".into(), runs.len().to_string()));
        for ((head, measure), bolds) in columns.iter().zip(&bolds) {
            let estimate = summary.estimate(index, measure);
            let shown = estimate.map_or("–".to_string(), |estimate| {
                let (value, interval) = match measure {
                    Measure::Perplexity { .. } => {
                        (estimate.mean.exp(), estimate.interval.map(|i| i.exp()))
                    }
                    _ => (estimate.mean, estimate.interval),
                };
                plus_minus(value, interval)
            });
            let shown = if bolds.contains(&index) { format!("**{shown}**") } else { shown };
            cells.push((row.clone(), head.clone(), shown));
        }
        if whole {
            let peak = runs.iter().filter_map(|run| run.peak_allocated).max();
            cells.push((row.clone(), "peak memory".into(), peak.map_or("–".into(), bytes)));
            let rates: Vec<f64> = runs.iter().filter_map(|run| run.tokens_per_second()).collect();
            let rate = statistics::mean(&rates).map_or("–".into(), |r| format!("{r:.0}"));
            cells.push((row.clone(), "tokens/s".into(), rate));
            if fronts.iter().any(|(_, labels)| !labels.is_empty()) {
                let on = fronts.iter().filter(|(_, labels)| labels.contains(&index));
                let on: Vec<&str> = on.map(|(cost, _)| cost.name()).collect();
                let on = if on.is_empty() { "–".into() } else { on.join(", ") };
                cells.push((row, "front".into(), on));
            }
        }
    }
    // The number of seeds heads the table's right half: first come the numbers that are compared.
    cells.sort_by_key(|(_, column, _)| match column.as_str() {
        "seeds" => 1,
        "peak memory" => 2,
        "tokens/s" => 3,
        "front" => 4,
        _ => 0,
    });
    pivot(&text(&summary.column), &cells)
}

/// What a search found in tables: memory by value and case, predictions, phases, then every run.
fn search(summary: &Summary, parameter: &str) -> Result<String> {
    let (_, ceilings) = summary.ceilings(parameter);
    let has_table = summary.comparison.spec["search"]["bisect"]["also"].is_array();
    let mut parts = Vec::new();
    if ceilings.len() > 1 || has_table {
        parts.push(memory::by_value(&ceilings, parameter)?);
    }
    parts.push(memory::predicted(summary)?);
    parts.push(memory::by_phase(&ceilings)?);
    parts.retain(|part| !part.is_empty());
    let every_run = search_table(summary, parameter)?;
    if parts.is_empty() {
        return Ok(every_run);
    }
    parts.push(format!("### Every run\n\n{every_run}"));
    Ok(parts.join("\n"))
}

fn search_table(summary: &Summary, parameter: &str) -> Result<String> {
    let (column, ceilings) = summary.ceilings(parameter);
    let grouped = ceilings.len() > 1;
    let mut rows = Vec::new();
    for ceiling in &ceilings {
        for (value, point) in &ceiling.points {
            // What was refused before the start has nothing to measure.
            let peak = point.run.as_ref().filter(|_| !point.is_refused_by_prediction());
            let peak = peak.and_then(|run| run.peak_allocated);
            let rate = point.run.as_ref().and_then(|run| run.tokens_per_second());
            let is_largest = ceiling.largest == Some(*value) && point.finished().is_some();
            let value = whole(*value);
            let mut row = if grouped { vec![text(&ceiling.name)] } else { Vec::new() };
            row.extend([
                if is_largest { bold(&value) } else { value },
                point.seed.to_string(),
                reason(point),
                peak.map_or("–".into(), bytes),
                rate.map_or("–".into(), |rate| format!("{rate:.0}")),
                in_code(&point.run_id),
            ]);
            rows.push(row);
        }
    }
    let key = in_code(parameter);
    let mut heads = if grouped { vec![column.as_str()] } else { Vec::new() };
    heads.extend([key.as_str(), "seed", "outcome", "peak memory", "tokens/s", "run"]);
    let head = "Every value that was tried, in rising order. Bold: the largest that finished. \
                [runs.csv](runs.csv) has the same runs with their numbers.\n\n";
    Ok(head.to_string() + &rows_to_markdown(&heads, &rows)?)
}
