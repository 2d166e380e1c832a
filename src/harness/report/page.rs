//! The page: a report in markdown that can be read on its own.
//!
//! [`page`] is the table of contents; each section is a function below it.

use super::against::Comparisons;
use super::answer::{answer, count, measure_name, reason, whole};
use super::figures::Figure;
use super::how_to_read::how_to_read;
use super::input::Run;
use super::pareto::{Cost, traded};
use super::plot::axis::length_label;
use super::plot::canvas::escape;
use super::statistics::Interval;
use super::summary::{Measure, Summary, plain};
use super::tables::{numbers_to_markdown, pivot, rows_to_markdown, to_markdown};
use super::{latex, memory, rungs, sensitivity};
use anyhow::Result;
use fathom_spec::record::ANNEALING;
use fathom_spec::units::{Bytes, Tokens, format_number, format_seconds};
use polars::prelude::DataFrame;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Renders the page.
///
/// # Errors
///
/// When a table can't be made.
pub fn page(summary: &Summary, figures: &[Figure]) -> Result<String> {
    let comparisons = Comparisons::of(summary);
    let sections = [
        title(summary),
        warnings(summary),
        format!("## Answer\n\n{}\n", answer(summary).join("\n\n")),
        results(summary)?,
        rungs::section(summary)?,
        comparisons.section(summary)?,
        sensitivity::section(summary)?,
        show_figures(figures)?,
        points(summary)?,
        parameters(summary)?,
        cost(summary)?,
        how_to_read(summary, &comparisons, !figures.is_empty()),
        provenance(summary)?,
    ];
    let sections: Vec<&str> =
        sections.iter().map(|s| s.trim_end()).filter(|s| !s.is_empty()).collect();
    Ok(sections.join("\n\n") + "\n")
}

fn title(summary: &Summary) -> String {
    let comparison = summary.comparison;
    let title = comparison.spec["report"]["title"].as_str().unwrap_or(&comparison.sweep);
    let question = comparison.question.iter().flat_map(|question| question.lines()).map(|line| {
        let line = line.trim_start().trim_start_matches('#').trim();
        format!("> {}", text(&without_paths(line))).trim_end().to_string()
    });
    format!("# {}\n\n{}\n", text(title), question.collect::<Vec<_>>().join("  \n"))
}

/// What a reader must know before any number.
fn warnings(summary: &Summary) -> String {
    let points = &summary.comparison.points;
    let mut lines = Vec::new();
    let leaked: BTreeSet<String> = points
        .iter()
        .filter_map(|p| p.run.as_ref()?.facts.get("data.held_out_also_trained_on")?.as_array())
        .flatten()
        .map(|file| in_code(&without_paths(&plain(file))))
        .collect();
    if !leaked.is_empty() {
        let files: Vec<String> = leaked.into_iter().collect();
        lines.push(format!(
            "**Held-out files were also trained on: {}. Perplexity on them is not that of unseen text.**",
            files.join(", ")
        ));
    }
    let open = points.iter().filter(|point| point.is_open()).count();
    if open > 0 {
        lines.push(format!(
            "**This report is partial: {open} of {} have not run to an end yet.**",
            count(points.len(), "point")
        ));
    }
    let steered: Vec<String> = points
        .iter()
        .filter(|point| {
            let facts = point.run.as_ref().map(|run| &run.facts);
            facts.is_some_and(|facts| facts.contains_key(ANNEALING))
        })
        .map(|point| format!("{} seed {}", text(&point.label), point.seed))
        .collect();
    if !steered.is_empty() {
        lines.push(format!(
            "**Told while it ran to begin its decay, which its settings do not say: {}.**",
            steered.join("; ")
        ));
    }
    lines.extend(summary.notes.iter().cloned());
    let mut warned: BTreeMap<String, usize> = BTreeMap::new();
    for run in points.iter().filter_map(|point| point.run.as_ref()) {
        let once: BTreeSet<String> = run.warnings.iter().map(|w| text(&without_paths(w))).collect();
        for warning in once {
            *warned.entry(warning).or_default() += 1;
        }
    }
    let warned = warned.into_iter();
    lines.extend(warned.map(|(message, runs)| format!("{message} *({})*", count(runs, "run"))));
    if lines.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = lines.into_iter().map(|line| format!("> - {line}")).collect();
    format!("> [!WARNING]\n{}\n", lines.join("\n"))
}

fn results(summary: &Summary) -> Result<String> {
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
            let rate = super::statistics::mean(&rates).map_or("–".into(), |r| format!("{r:.0}"));
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

/// Rows of a figure's numbers that its fold shows.
const FEW_ROWS: usize = 24;

fn show_figures(figures: &[Figure]) -> Result<String> {
    if figures.is_empty() {
        return Ok(String::new());
    }
    let mut section = String::from("## Figures\n");
    for Figure { name, title, caption, frame, sql, .. } in figures {
        let rows = match frame.height() {
            0..=FEW_ROWS => format!("\n{}", numbers_to_markdown(frame)?),
            _ => String::new(),
        };
        section.push_str(&format!(
            "\n### {}\n\n{}\n\n{caption}\n\n\
             <details><summary>The numbers in this figure, and the query that gives them</summary>\n\n\
             [{name}.csv]({name}.csv), {}\n{rows}\n```sql\n{sql}\n```\n\n</details>\n",
            text(title),
            picture(name, title),
            count(frame.height(), "row"),
        ));
    }
    Ok(section)
}

/// The plot on a page of either colour.
fn picture(name: &str, title: &str) -> String {
    let alternative = escape(title).replace('"', "&quot;");
    format!(
        "<picture>\n  <source media=\"(prefers-color-scheme: dark)\" srcset=\"{name}_dark.svg\">\n  \
         <img alt=\"{alternative}\" src=\"{name}.svg\">\n</picture>"
    )
}

/// Points that a table shows unfolded.
const UNFOLDED: usize = 16;

fn points(summary: &Summary) -> Result<String> {
    if let Measure::Ceiling { parameter } = &summary.measure {
        // The table of the search has them all.
        let searched: usize = summary.ceilings(parameter).1.iter().map(|c| c.points.len()).sum();
        if searched == summary.comparison.points.len() {
            return Ok(String::new());
        }
    }
    let mut by_status: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for label in &summary.labels {
        for point in &label.points {
            *by_status.entry(point.status()).or_default() += 1;
            let step = point.run.as_ref().map_or("–".into(), |run| run.step.to_string());
            let row = vec![
                text(&label.name),
                point.seed.to_string(),
                reason(point),
                step,
                in_code(&point.run_id),
            ];
            if point.finished().is_none() {
                failures.push(row.clone());
            }
            rows.push(row);
        }
    }
    let counts: Vec<String> = by_status
        .into_iter()
        .map(|(status, n)| format!("{n} {}", status.replace('_', " ")))
        .collect();
    let counts = if counts.is_empty() { "none".into() } else { counts.join(", ") };
    let heads = [summary.column.as_str(), "seed", "status", "steps", "run"];
    let mut section = format!(
        "## Points\n\n{}: {counts}. [runs.csv](runs.csv) has them with their numbers.\n\n",
        capital(&count(rows.len(), "point"))
    );
    if rows.len() <= UNFOLDED {
        section.push_str(&rows_to_markdown(&heads, &rows)?);
        return Ok(section);
    }
    if !failures.is_empty() {
        section.push_str(&rows_to_markdown(&heads, &failures)?);
        section.push('\n');
    }
    section.push_str("<details><summary>Every point</summary>\n\n");
    section.push_str(&rows_to_markdown(&heads, &rows)?);
    section.push_str("\n</details>\n");
    Ok(section)
}

fn parameters(summary: &Summary) -> Result<String> {
    let (column, rows) = summary.rows();
    let mut differing = summary.differing_params();
    if differing.is_empty() {
        return Ok(String::new());
    }
    const HEAD: &str = "## Parameters that differ\n\nSeeds aside; all others are the same";
    differing.retain(|(key, _)| *key != column);
    if differing.is_empty() {
        return Ok(format!("{HEAD}: only {}, which names the rows.\n", in_code(&column)));
    }
    let mut heads = vec![column.as_str()];
    heads.extend(differing.iter().map(|(key, _)| key.as_str()));
    let rows: Vec<Vec<String>> = rows
        .iter()
        .enumerate()
        .map(|(index, (name, _))| {
            let values = differing.iter().map(|(_, by_row)| text(&without_paths(&by_row[index])));
            std::iter::once(text(name)).chain(values).collect()
        })
        .collect();
    Ok(format!("{HEAD}.\n\n{}", rows_to_markdown(&heads, &rows)?))
}

fn cost(summary: &Summary) -> Result<String> {
    let mut rows = Vec::new();
    let (mut gpu_seconds, mut cpu_seconds) = (0.0, 0.0);
    let (column, by_row) = summary.rows();
    for (name, points) in &by_row {
        let runs: Vec<&Run> = points.iter().filter_map(|p| p.run.as_ref()).collect();
        let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
        let tokens: i64 = runs.iter().map(|run| run.tokens).sum();
        let devices: BTreeSet<&str> =
            runs.iter().filter_map(|r| r.device_name.as_deref()).collect();
        for run in &runs {
            let on_gpu = run.device.as_deref().is_some_and(|device| device.starts_with("cuda"));
            *(if on_gpu { &mut gpu_seconds } else { &mut cpu_seconds }) += run.seconds;
        }
        let peak = runs.iter().filter_map(|run| run.peak_allocated).max();
        rows.push(vec![
            text(name),
            runs.len().to_string(),
            format_seconds(seconds),
            Tokens(tokens.max(0) as u64).to_string(),
            text(&devices.into_iter().collect::<Vec<_>>().join(", ")),
            peak.map_or("–".into(), bytes),
        ]);
    }
    let spent: Vec<String> = [("GPU", gpu_seconds), ("CPU", cpu_seconds)]
        .into_iter()
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(device, seconds)| format!("{:.2} {device} hours", seconds / 3600.0))
        .collect();
    let heads = [column.as_str(), "runs", "time", "tokens", "device", "peak memory"];
    let table = rows_to_markdown(&heads, &rows)?;
    Ok(format!(
        "## Cost\n\nIn all {}, failed runs and all attempts included. Time is that of the whole run, loading and \
         evaluation too.\n\n{table}",
        if spent.is_empty() { "nothing".to_string() } else { spent.join(" and ") }
    ))
}

fn provenance(summary: &Summary) -> Result<String> {
    let comparison = summary.comparison;
    let runs: Vec<&Run> = comparison.points.iter().filter_map(|p| p.run.as_ref()).collect();
    let distinct = |of: &dyn Fn(&Run) -> Option<String>| {
        let values: BTreeSet<String> = runs.iter().filter_map(|run| of(run)).collect();
        values.into_iter().collect::<Vec<_>>().join(", ")
    };
    let commit = |run: &Run| {
        let dirty = if run.git_dirty == Some(true) { " with uncommitted changes" } else { "" };
        run.git_commit.as_ref().map(|commit| format!("{}{dirty}", in_code(commit)))
    };
    // The first digits tell digests apart; the store has them whole.
    let digest = |what: &str| {
        distinct(&|run| {
            let digest = run.digests[what].as_str().filter(|digest| !digest.is_empty())?;
            Some(in_code(&digest.chars().take(16).collect::<String>()))
        })
    };
    let plain_text = |of: &dyn Fn(&Run) -> Option<&String>| distinct(&|run| Some(text(of(run)?)));
    let facts = [
        ("this page", in_code(&format!("fathom report {}", comparison.sweep))),
        ("sweep file", in_code(&without_paths(&comparison.file))),
        ("set on the command line", command_line(&comparison.spec)),
        ("runs", runs.len().to_string()),
        ("code version", plain_text(&|run| run.code_version.as_ref())),
        ("git commit", distinct(&commit)),
        ("LibTorch", plain_text(&|run| run.libtorch.as_ref())),
        ("device", plain_text(&|run| run.device_name.as_ref())),
        ("driver", plain_text(&|run| run.driver.as_ref())),
        ("data (blake3)", digest("data")),
        ("model (blake3)", digest("model")),
        ("tokenizer (blake3)", digest("tokenizer")),
        ("store schema", format!("version {}", comparison.store_version)),
    ];
    let rows: Vec<Vec<String>> = facts
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![name.to_string(), value])
        .collect();
    Ok(format!("## Provenance\n\n{}", rows_to_markdown(&["what", "value"], &rows)?))
}

/// What `--set` laid over the sweep file, as it was typed.
fn command_line(spec: &serde_json::Value) -> String {
    let settings = spec["command_line"].as_object().into_iter().flatten();
    let settings: Vec<String> =
        settings.map(|(key, value)| in_code(&format!("{key}={}", plain(value)))).collect();
    settings.join(", ")
}

/// `last stride`, `prefix`.
pub fn method_name(method: &str) -> &str {
    match method {
        "last_stride" => "last stride",
        other => other,
    }
}

/// What a table calls the loss of a metric.
pub fn name_of_loss(key: &str) -> String {
    match key.strip_prefix("eval_loss.") {
        Some(split) => format!("final loss on {split}"),
        None => "final training loss".to_string(),
    }
}

/// `13.42 ± 0.11`; both ends where the interval is far from symmetrical; the number alone without one.
pub fn plus_minus(value: f64, interval: Option<Interval>) -> String {
    let Some(interval) = interval.filter(|_| value.is_finite()) else {
        return format_number(value);
    };
    let half = interval.half_width();
    let skew = (interval.high - value) - (value - interval.low);
    if half == 0.0 {
        return format!("{} ± 0", format_number(value));
    }
    if skew.abs() > 0.2 * half {
        let short = |x: f64| format_short(x);
        return format!(
            "{} ({} to {})",
            format_number(value),
            short(interval.low),
            short(interval.high)
        );
    }
    format!("{} ± {}", as_sure_as(value, half), as_sure_as(half, half))
}

/// Three significant digits.
fn format_short(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format_number(x);
    }
    let unit = 10f64.powi(x.abs().log10().floor() as i32 - 2);
    format_number((x / unit).round() * unit)
}

/// A number with as many decimals as its uncertainty gives meaning to: two significant digits of `half_width`.
pub fn as_sure_as(x: f64, half_width: f64) -> String {
    if half_width == 0.0 || !half_width.is_finite() || !x.is_finite() {
        return format_number(x);
    }
    let decimals = (1 - half_width.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.decimals$}")
}

/// Text of the store as markdown shows it literally.
pub fn text(raw: &str) -> String {
    let mut escaped = String::with_capacity(raw.len());
    let mut before = None;
    let mut chars = raw.chars().peekable();
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    while let Some(c) = chars.next() {
        let after = chars.peek().copied();
        match c {
            // Within a word it is no emphasis.
            '_' if !in_word(before) || !in_word(after) => escaped.push_str("\\_"),
            // Begins an entity.
            '&' if after == Some('#') || in_word(after) => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '*' | '`' | '[' | ']' | '\\' | '~' | '$' => escaped.extend(['\\', c]),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
        before = Some(c);
    }
    escaped
}

/// A code span; a backtick in it would end it.
pub fn in_code(raw: &str) -> String {
    format!("`{}`", raw.replace('`', "'").replace(['\n', '\r'], " "))
}

pub fn bold(raw: &str) -> String {
    format!("**{}**", text(raw))
}

/// Replaces absolute paths by their last part: where a file lies is no business of a report.
pub fn without_paths(raw: &str) -> String {
    let ends = |c: char| c.is_whitespace() || "\"'`,;:()[]{}".contains(c);
    raw.split_inclusive(ends)
        .map(|word| {
            let bare = word.trim_end_matches(ends);
            let name = Path::new(bare).file_name().and_then(|name| name.to_str());
            match name {
                Some(name) if bare.starts_with('/') => format!("{name}{}", &word[bare.len()..]),
                _ => word.to_string(),
            }
        })
        .collect()
}

pub fn bytes(n: i64) -> String {
    Bytes(n.max(0) as u64).to_string()
}

pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_the_digits_that_mean_something() {
        let about = |mean: f64, half: f64| Interval { mean, low: mean - half, high: mean + half };
        assert_eq!(plus_minus(13.4217, Some(about(13.4217, 0.1123))), "13.42 ± 0.11");
        assert_eq!(plus_minus(2.61234, Some(about(2.61234, 0.000_412))), "2.61234 ± 0.00041");
        assert_eq!(plus_minus(1234.5, Some(about(1234.5, 120.0))), "1234 ± 120");
        assert_eq!(plus_minus(13.4217, None), "13.42");
        assert_eq!(plus_minus(f64::NAN, None), "NaN");
        let skewed = Interval { mean: 10.0, low: 2.512, high: 39.81 };
        assert_eq!(plus_minus(10.0, Some(skewed)), "10 (2.51 to 39.8)");
    }

    #[test]
    fn paths_lose_their_folders() {
        assert_eq!(
            without_paths("can't read `/home/someone/data/a.txt`: no such file (/tmp/x, b/c.txt)"),
            "can't read `a.txt`: no such file (x, b/c.txt)"
        );
        assert_eq!(without_paths("1e-5 / 3"), "1e-5 / 3");
        assert_eq!(without_paths("/data/books"), "books");
    }

    #[test]
    fn markdown_shows_text_literally() {
        assert_eq!(text("a*b <c> [d]"), "a\\*b &lt;c&gt; \\[d\\]");
        assert_eq!(text("_a_b_ ~~c~~ $d$"), "\\_a_b\\_ \\~\\~c\\~\\~ \\$d\\$");
        assert_eq!(text("&lt; & &#38; e&"), "&amp;lt; & &amp;#38; e&");
        assert_eq!(in_code("a`b"), "`a'b`");
        assert_eq!(capital("perplexity"), "Perplexity");
    }
}
