//! The page: a report in markdown that can be read on its own.
//!
//! [`page`] is the table of contents; each section is a function below it, or has a file.

use super::against::Comparisons;
use super::answer::{answer, count, reason};
use super::figures::Figure;
use super::how_to_read::how_to_read;
use super::input::Run;
use super::markdown::{bytes, capital, in_code, text, without_paths};
use super::plot::canvas::escape;
use super::summary::{Measure, Summary, plain};
use super::tables::{numbers_to_markdown, rows_to_markdown};
use super::{results, rungs, sensitivity};
use anyhow::Result;
use fathom_spec::record::ANNEALING;
use fathom_spec::units::{Tokens, format_seconds};
use std::collections::{BTreeMap, BTreeSet};

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
        results::section(summary)?,
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
