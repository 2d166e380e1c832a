//! Rows as text: a table for the terminal, CSV, JSON or markdown.
//!
//! The two for people round numbers to seven digits and show what is missing as `-`; CSV and JSON carry every digit.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// As RFC 4180 has it; what is missing is empty, an empty text is `""`.
    Csv,
    /// A list of objects, one a line.
    Json,
    /// A table of GitHub's markdown.
    Markdown,
}

impl Format {
    /// Whether a person reads it: quantities get units then.
    pub fn is_for_people(self) -> bool {
        matches!(self, Format::Table | Format::Markdown)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Not there.
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_string())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::Null, Into::into)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub columns: Vec<String>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(columns: &[&str]) -> Table {
        Table { columns: columns.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// The whole as text that ends with a line break.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.aligned(),
            Format::Csv => self.csv(),
            Format::Json => self.json(),
            Format::Markdown => self.markdown(),
        }
    }

    fn aligned(&self) -> String {
        let escape = |text: String| text.replace('\n', "\\n").replace('\t', "\\t");
        let cells: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|c| escape(for_people(c))).collect())
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let column = cells.iter().map(|row| &row[i]).chain([&self.columns[i]]);
                column.map(|text| text.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let is_number: Vec<bool> = (0..widths.len()).map(|i| self.is_number(i)).collect();
        let mut out = String::new();
        let mut line = |texts: &[String]| {
            let mut written = String::new();
            for (i, text) in texts.iter().enumerate() {
                let width = widths[i];
                let gap = if i == 0 { "" } else { "  " };
                let _ = match is_number[i] {
                    true => write!(written, "{gap}{text:>width$}"),
                    false => write!(written, "{gap}{text:<width$}"),
                };
            }
            out.push_str(written.trim_end());
            out.push('\n');
        };
        line(&self.columns);
        line(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>());
        cells.iter().for_each(|row| line(row));
        out
    }

    fn csv(&self) -> String {
        let quoted = |text: &str| match text.contains([',', '"', '\n', '\r']) || text.is_empty() {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_string(),
        };
        let mut out = self.columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",");
        out.push('\n');
        for row in &self.rows {
            let cells = row.iter().map(|cell| match cell {
                Cell::Null => String::new(),
                Cell::Integer(n) => n.to_string(),
                Cell::Real(x) => x.to_string(),
                Cell::Text(text) => quoted(text),
            });
            out.push_str(&cells.collect::<Vec<_>>().join(","));
            out.push('\n');
        }
        out
    }

    fn json(&self) -> String {
        // Two columns of one name are two keys: `step`, `step:2`.
        let keys = self.columns.iter().enumerate().map(|(i, name)| {
            match self.columns[..i].iter().filter(|earlier| *earlier == name).count() {
                0 => name.clone(),
                earlier => format!("{name}:{}", earlier + 1),
            }
        });
        let keys: Vec<String> = keys.collect();
        let lines = self.rows.iter().map(|row| {
            let object = keys.iter().cloned().zip(row.iter().map(Cell::to_json)).collect();
            Value::Object(object).to_string()
        });
        match self.rows.is_empty() {
            true => "[]\n".into(),
            false => format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n")),
        }
    }

    fn markdown(&self) -> String {
        let escape = |text: &str| {
            let text = text.replace('|', "\\|").replace("\r\n", "<br>");
            text.replace(['\n', '\r'], "<br>")
        };
        let line = |texts: Vec<String>| format!("| {} |\n", texts.join(" | "));
        let mut out = line(self.columns.iter().map(|name| escape(name)).collect());
        let rule = |i| if self.is_number(i) { "---:" } else { "---" };
        out.push_str(&line((0..self.columns.len()).map(|i| rule(i).to_string()).collect()));
        for row in &self.rows {
            out.push_str(&line(row.iter().map(|cell| escape(&for_people(cell))).collect()));
        }
        out
    }

    /// Whether a column has numbers and nothing else: it is aligned to the right then.
    fn is_number(&self, column: usize) -> bool {
        let cells = || self.rows.iter().map(|row| &row[column]);
        cells().any(|cell| *cell != Cell::Null)
            && !cells().any(|cell| matches!(cell, Cell::Text(_)))
    }
}

impl Cell {
    fn to_json(&self) -> Value {
        match self {
            Cell::Null => Value::Null,
            Cell::Integer(n) => Value::from(*n),
            // As in the event log: JSON has no word for these.
            Cell::Real(x) if x.is_nan() => "NaN".into(),
            Cell::Real(x) if x.is_infinite() && *x > 0.0 => "Infinity".into(),
            Cell::Real(x) if x.is_infinite() => "-Infinity".into(),
            Cell::Real(x) => Value::from(*x),
            Cell::Text(text) => Value::from(text.as_str()),
        }
    }
}

fn for_people(cell: &Cell) -> String {
    match cell {
        Cell::Null => "-".into(),
        Cell::Integer(n) => n.to_string(),
        Cell::Real(x) => rounded(*x),
        Cell::Text(text) => text.clone(),
    }
}

/// Seven significant digits, and all of those before the point: `2.345679`, `1785430000`, `1.5e-6`.
pub fn rounded(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let magnitude = x.abs().log10().floor() as i32;
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    if (-4..15).contains(&magnitude) {
        return trimmed(&format!("{x:.*}", (6 - magnitude).max(0) as usize));
    }
    let text = format!("{x:.6e}");
    let (mantissa, exponent) = text.split_once('e').expect("scientific notation has an e");
    format!("{}e{exponent}", trimmed(mantissa))
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
///
/// When the output can't be written for another reason, such as a full disk.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awkward() -> Table {
        let mut table = Table::new(&["name", "loss", "n"]);
        table.rows = vec![
            vec!["a|b".into(), Cell::Real(2.3456789012), Cell::Integer(1)],
            vec!["say \"x\", y".into(), Cell::Real(f64::INFINITY), Cell::Null],
            vec!["two\nlines".into(), Cell::Null, Cell::Integer(-20)],
            vec!["".into(), Cell::Real(f64::NAN), Cell::Integer(3)],
        ];
        table
    }

    #[test]
    fn a_table_is_aligned() {
        insta::assert_snapshot!(awkward().render(Format::Table), @r#"
        name            loss    n
        ----------  --------  ---
        a|b         2.345679    1
        say "x", y       inf    -
        two\nlines         -  -20
                         NaN    3
        "#);
    }

    #[test]
    fn csv_is_quoted() {
        assert_eq!(
            awkward().render(Format::Csv),
            "name,loss,n\na|b,2.3456789012,1\n\"say \"\"x\"\", y\",inf,\n\"two\nlines\",,-20\n\"\",NaN,3\n"
        );
    }

    #[test]
    fn json_is_one_row_a_line() {
        let text = awkward().render(Format::Json);
        assert_eq!(
            text,
            r#"[
{"name":"a|b","loss":2.3456789012,"n":1},
{"name":"say \"x\", y","loss":"Infinity","n":null},
{"name":"two\nlines","loss":null,"n":-20},
{"name":"","loss":"NaN","n":3}
]
"#
        );
        let mut twins = Table::new(&["a", "a", "a"]);
        assert_eq!(twins.render(Format::Json), "[]\n");
        twins.rows.push((1..4).map(Cell::Integer).collect());
        assert_eq!(twins.render(Format::Json), "[\n{\"a\":1,\"a:2\":2,\"a:3\":3}\n]\n");
    }

    #[test]
    fn markdown_is_escaped() {
        insta::assert_snapshot!(awkward().render(Format::Markdown), @r#"
        | name | loss | n |
        | --- | ---: | ---: |
        | a\|b | 2.345679 | 1 |
        | say "x", y | inf | - |
        | two<br>lines | - | -20 |
        |  | NaN | 3 |
        "#);
    }

    #[test]
    fn numbers_are_rounded_for_people() {
        for (x, text) in [
            (0.0, "0"),
            (2.0, "2"),
            (0.1 + 0.2, "0.3"),
            (1_785_430_000.123, "1785430000"),
            (0.000123456789, "0.0001234568"),
            (1.5e-6, "1.5e-6"),
            (-1e300, "-1e300"),
            (123.456789, "123.4568"),
        ] {
            assert_eq!(rounded(x), text);
        }
    }
}
