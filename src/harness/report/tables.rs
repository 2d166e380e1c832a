//! Data frames: pivoted into tables, written as CSV and as markdown.

use super::input::Point;
use super::markdown;
use super::summary::Summary;
use anyhow::Result;
use fathom_spec::units::format_number;
use polars::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One row a run, method and context length: label, seed, method, context_length, tokens, windows, nll.
pub fn perplexity(summary: &Summary) -> Result<DataFrame> {
    let mut rows = Vec::new();
    for label in &summary.labels {
        for (seed, run) in label.finished() {
            for row in run.perplexity.iter().filter(|row| row.split == summary.split) {
                rows.push((label.key(), seed, row));
            }
        }
    }
    let column = |name: &str, of: &dyn Fn(&super::input::Perplexity) -> i64| {
        Column::new(name.into(), rows.iter().map(|(_, _, row)| of(row)).collect::<Vec<_>>())
    };
    let number = |name: &str, of: &dyn Fn(&super::input::Perplexity) -> f64| {
        Column::new(name.into(), rows.iter().map(|(_, _, row)| of(row)).collect::<Vec<_>>())
    };
    Ok(DataFrame::new_infer_height(vec![
        strings("label", rows.iter().map(|(label, _, _)| label.to_string())),
        Column::new("seed".into(), rows.iter().map(|(_, seed, _)| *seed).collect::<Vec<_>>()),
        strings("method", rows.iter().map(|(_, _, row)| row.method.clone())),
        column("context_length", &|row| row.context_length),
        column("windows", &|row| row.window_nll.len() as i64),
        column("tokens", &|row| row.tokens),
        number("nll", &|row| row.nll),
        number("nll_low", &|row| row.nll_low),
        number("nll_high", &|row| row.nll_high),
        number("perplexity", &|row| row.nll.exp()),
    ])?)
}

/// One row a point: what became of it.
pub fn runs(summary: &Summary) -> Result<DataFrame> {
    let key = summary.loss_key();
    let points: Vec<(&str, &Point)> = summary
        .labels
        .iter()
        .flat_map(|label| label.points.iter().map(|point| (label.key(), *point)))
        .collect();
    let number = |name: &str, of: &dyn Fn(&super::input::Run) -> Option<f64>| {
        let values: Vec<Option<f64>> =
            points.iter().map(|(_, point)| of(point.run.as_ref()?)).collect();
        Column::new(name.into(), values)
    };
    let whole = |name: &str, of: &dyn Fn(&super::input::Run) -> Option<i64>| {
        let values: Vec<Option<i64>> =
            points.iter().map(|(_, point)| of(point.run.as_ref()?)).collect();
        Column::new(name.into(), values)
    };
    let mut columns = vec![
        strings("label", points.iter().map(|(label, _)| label.to_string())),
        Column::new("seed".into(), points.iter().map(|(_, p)| p.seed).collect::<Vec<_>>()),
        strings("run", points.iter().map(|(_, point)| point.run_id.clone())),
        strings("status", points.iter().map(|(_, point)| point.status().to_string())),
        whole("step", &|run| Some(run.step)),
        whole("tokens", &|run| Some(run.tokens)),
        number("seconds", &|run| Some(run.seconds)),
        number("final_loss", &|run| run.final_loss(&key)),
        number("tokens_per_second", &|run| run.tokens_per_second()),
        whole("peak_allocated_bytes", &|run| run.peak_allocated),
        whole("asked_bytes", &|run| run.asked_bytes),
        whole("free_bytes", &|run| run.free_bytes),
    ];
    if summary.is_of_random_tokens {
        columns.retain(|column| column.name() != "final_loss");
    }
    Ok(DataFrame::new_infer_height(columns)?)
}

/// A column of text.
pub fn strings(name: &str, values: impl Iterator<Item = String>) -> Column {
    Column::new(name.into(), values.collect::<Vec<_>>())
}

/// The long table `(row, column, cell)` made wide: a row for each `row`, a column for each `column`, both in the order in
/// which they first come. `head` names the column of rows; a cell that is missing is a dash, and of two that have the same
/// place the first stands.
pub fn pivot(head: &str, cells: &[(String, String, String)]) -> Result<DataFrame> {
    let mut by_place: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let (mut rows, mut heads): (Vec<&str>, Vec<&str>) = Default::default();
    let (mut known_rows, mut known_heads): (BTreeSet<&str>, BTreeSet<&str>) = Default::default();
    for (row, column, cell) in cells {
        rows.extend(known_rows.insert(row).then_some(row.as_str()));
        heads.extend(known_heads.insert(column).then_some(column.as_str()));
        by_place.entry((row, column)).or_insert(cell);
    }
    let column = |name: &str| {
        let cell = |row: &&str| by_place.get(&(*row, name)).map_or("–", |cell| *cell).to_string();
        strings(name, rows.iter().map(cell))
    };
    let first = strings(head, rows.iter().map(ToString::to_string));
    let columns = std::iter::once(first).chain(heads.iter().map(|name| column(name)));
    Ok(DataFrame::new_infer_height(columns.collect())?)
}

/// The frame as CSV, with a head.
pub fn to_csv(frame: &DataFrame) -> Result<String> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).include_header(true).finish(&mut frame.clone())?;
    Ok(String::from_utf8(bytes)?)
}

/// A frame of text as a markdown table; columns of numbers stand to the right.
pub fn to_markdown(frame: &DataFrame) -> Result<String> {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads: Vec<String> =
        frame.get_column_names().iter().map(|name| escape_cell(name.as_str())).collect();
    let mut text = line(&heads);
    let columns: Vec<&StringChunked> =
        frame.columns().iter().map(|column| column.str()).collect::<PolarsResult<_>>()?;
    let is_number = |cell: &str| {
        let bare = cell.trim_start_matches('*');
        bare.starts_with(|c: char| c.is_ascii_digit() || "+-–<".contains(c)) || bare == "NaN"
    };
    let rule: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| at > 0 && column.iter().flatten().all(is_number))
        .map(|numbers| if numbers { "---:" } else { "---" }.to_string())
        .collect();
    text.push_str(&line(&rule));
    for row in 0..frame.height() {
        let cells: Vec<String> =
            columns.iter().map(|column| escape_cell(column.get(row).unwrap_or("–"))).collect();
        text.push_str(&line(&cells));
    }
    Ok(text)
}

/// A frame of numbers as a markdown table.
pub fn numbers_to_markdown(frame: &DataFrame) -> Result<String> {
    let columns = frame.columns().iter().map(|column| {
        let cells: Vec<String> = (0..column.len())
            .map(|row| {
                Ok(match column.get(row)? {
                    AnyValue::Null => "–".to_string(),
                    AnyValue::Float64(x) => format_number(x),
                    AnyValue::String(text) => markdown::text(text),
                    other => other.to_string(),
                })
            })
            .collect::<PolarsResult<_>>()?;
        Ok(strings(column.name().as_str(), cells.into_iter()))
    });
    to_markdown(&DataFrame::new(frame.height(), columns.collect::<PolarsResult<_>>()?)?)
}

/// Rows of text under `heads`, as [`to_markdown`] writes them.
pub fn rows_to_markdown(heads: &[&str], rows: &[Vec<String>]) -> Result<String> {
    let columns = heads
        .iter()
        .enumerate()
        .map(|(at, head)| strings(head, rows.iter().map(|row| row[at].clone())))
        .collect();
    to_markdown(&DataFrame::new(rows.len(), columns)?)
}

/// A pipe would end the cell, a line break the table.
fn escape_cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(row: &str, column: &str, cell: &str) -> (String, String, String) {
        (row.into(), column.into(), cell.into())
    }

    #[test]
    fn two_cells_of_one_place_are_one_row() {
        let cells = [cell("a", "1", "x"), cell("a", "1", "y"), cell("b", "1", "z")];
        let table = to_markdown(&pivot("rope", &cells).unwrap()).unwrap();
        assert_eq!(table, "| rope | 1 |\n| --- | --- |\n| a | x |\n| b | z |\n");
    }

    #[test]
    fn a_pivot_keeps_the_order_and_marks_gaps() {
        let cells = [
            cell("b", "512", "1"),
            cell("b", "1K", "2"),
            cell("a|c", "512", "3"),
            cell("a|c", "row", "4"),
        ];
        let table = to_markdown(&pivot("rope", &cells).unwrap()).unwrap();
        let expected = "| rope | 512 | 1K | row |\n\
                        | --- | ---: | ---: | ---: |\n\
                        | b | 1 | 2 | – |\n\
                        | a\\|c | 3 | – | 4 |\n";
        assert_eq!(table, expected);
    }
}
