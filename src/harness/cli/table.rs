//! Rows as a table, CSV, JSON or markdown: one renderer for every command that prints some.

use clap::ValueEnum;
use serde_json::{Map, Value};

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Csv,
    Json,
    Markdown,
}

/// Rows of values under named columns. Text, numbers and `null`.
#[derive(Debug, Clone, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl Table {
    pub fn new(columns: &[impl AsRef<str>]) -> Table {
        Table {
            columns: columns.iter().map(|c| c.as_ref().to_string()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of text.
    pub fn row(&mut self, cells: &[&str]) {
        self.values(cells.iter().map(|&cell| cell.into()).collect());
    }

    /// Adds a row of values.
    ///
    /// # Panics
    ///
    /// When there are not as many as columns.
    pub fn values(&mut self, cells: Vec<Value>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The whole as text, with a newline at its end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.aligned(),
            Format::Csv => self.csv(),
            Format::Json => self.json(),
            Format::Markdown => self.markdown(),
        }
    }

    fn aligned(&self) -> String {
        let cells: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(plain).collect()).collect();
        let width = |column: usize| {
            let cells = cells.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        // Numbers stand right.
        let right: Vec<bool> = (0..self.columns.len())
            .map(|column| {
                !self.rows.is_empty()
                    && self.rows.iter().all(|row| row[column].is_number() || row[column].is_null())
            })
            .collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().enumerate().map(|(i, cell)| {
                let space = " ".repeat(widths[i] - cell.chars().count());
                if right[i] { format!("{space}{cell}") } else { format!("{cell}{space}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
        };
        let rule: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
        let rows: String = cells.iter().map(|row| line(row)).collect();
        line(&self.columns) + &line(&rule) + &rows
    }

    fn csv(&self) -> String {
        let quote = |text: &str| match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_string(),
        };
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        let head = line(self.columns.iter().map(|c| quote(c)).collect());
        // An empty field is NULL.
        let rows = self.rows.iter().map(|row| {
            line(
                row.iter()
                    .map(|v| if v.is_null() { String::new() } else { quote(&exact(v)) })
                    .collect(),
            )
        });
        head + &rows.collect::<String>()
    }

    fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            Value::Object(
                self.columns.iter().cloned().zip(row.iter().cloned()).collect::<Map<_, _>>(),
            )
        });
        let rows: Vec<Value> = rows.collect();
        serde_json::to_string_pretty(&rows).expect("rows are plain data") + "\n"
    }

    fn markdown(&self) -> String {
        let cell = |text: String| text.replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let head = line(self.columns.iter().map(|c| cell(c.clone())).collect());
        let rule = line(self.columns.iter().map(|_| "---".to_string()).collect());
        let rows = self.rows.iter().map(|row| line(row.iter().map(|v| cell(plain(v))).collect()));
        head + &rule + &rows.collect::<String>()
    }
}

/// A value for people: numbers short.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => {
            fathom_spec::units::format_number(n.as_f64().unwrap_or(f64::NAN))
        }
        other => other.to_string(),
    }
}

/// A value for machines: every digit.
fn exact(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Table {
        let mut table = Table::new(&["name", "x"]);
        table.values(vec!["a|b".into(), json!(1.23456789)]);
        table.values(vec!["say \"c, d\"".into(), Value::Null]);
        table
    }

    #[test]
    fn every_format_escapes_what_it_must() {
        let table = sample();
        assert_eq!(
            table.render(Format::Table),
            "name            x\n----------  -----\na|b         1.235\nsay \"c, d\"      -\n"
        );
        assert_eq!(table.render(Format::Csv), "name,x\na|b,1.23456789\n\"say \"\"c, d\"\"\",\n");
        assert_eq!(
            table.render(Format::Markdown),
            "| name | x |\n| --- | --- |\n| a\\|b | 1.235 |\n| say \"c, d\" | - |\n"
        );
        let json: Value = serde_json::from_str(&table.render(Format::Json)).unwrap();
        assert_eq!(
            json,
            json!([{"name": "a|b", "x": 1.23456789}, {"name": "say \"c, d\"", "x": null}])
        );
    }
}
