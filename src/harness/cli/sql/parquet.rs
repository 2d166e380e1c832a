//! A table as a Parquet file.

use crate::cli::table::{Cell, Table};
use anyhow::Result;
use polars::prelude::*;

/// The bytes of the file. A column is of integers, of numbers or of texts: of texts as soon as it has one.
///
/// # Errors
///
/// When polars fails.
pub fn encode(table: &Table) -> Result<Vec<u8>> {
    let mut columns = Vec::new();
    for (index, name) in table.columns.iter().enumerate() {
        // Two columns of one name are `step`, `step:2`, as in JSON.
        let earlier = table.columns[..index].iter().filter(|other| *other == name).count();
        let name = if earlier == 0 { name.clone() } else { format!("{name}:{}", earlier + 1) };
        columns.push(column(&name, &table.rows.iter().map(|row| &row[index]).collect::<Vec<_>>()));
    }
    let mut frame = DataFrame::new(table.rows.len(), columns)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame)?;
    Ok(bytes)
}

fn column(name: &str, cells: &[&Cell]) -> Column {
    let any = |is: fn(&Cell) -> bool| cells.iter().any(|cell| is(cell));
    let all_null = cells.iter().all(|cell| **cell == Cell::Null);
    if all_null || any(|cell| matches!(cell, Cell::Text(_))) {
        let texts = cells.iter().map(|cell| match cell {
            Cell::Null => None,
            Cell::Integer(n) => Some(n.to_string()),
            Cell::Real(x) => Some(x.to_string()),
            Cell::Text(text) => Some(text.clone()),
        });
        return Column::new(name.into(), texts.collect::<Vec<_>>());
    }
    if any(|cell| matches!(cell, Cell::Real(_))) {
        let numbers = cells.iter().map(|cell| match cell {
            Cell::Integer(n) => Some(*n as f64),
            Cell::Real(x) => Some(*x),
            _ => None,
        });
        return Column::new(name.into(), numbers.collect::<Vec<_>>());
    }
    let integers = cells.iter().map(|cell| match cell {
        Cell::Integer(n) => Some(*n),
        _ => None,
    });
    Column::new(name.into(), integers.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_types_and_what_is_missing() {
        let mut table = Table::new(&["n", "x", "text", "nothing", "n"]);
        table.rows = vec![
            vec![Cell::Integer(1), Cell::Real(0.5), "a".into(), Cell::Null, Cell::Integer(7)],
            vec![Cell::Null, Cell::Integer(2), Cell::Integer(3), Cell::Null, Cell::Null],
        ];
        let bytes = encode(&table).unwrap();
        let frame = ParquetReader::new(std::io::Cursor::new(bytes)).finish().unwrap();
        let types: Vec<String> = frame.dtypes().iter().map(ToString::to_string).collect();
        assert_eq!(types, ["i64", "f64", "str", "str", "i64"]);
        assert_eq!(frame.get_column_names()[4].as_str(), "n:2");
        assert_eq!(frame.column("x").unwrap().f64().unwrap().to_vec(), [Some(0.5), Some(2.0)]);
        assert_eq!(frame.column("n").unwrap().i64().unwrap().to_vec(), [Some(1), None]);
        let texts: Vec<_> = frame.column("text").unwrap().str().unwrap().iter().collect();
        assert_eq!(texts, [Some("a"), Some("3")]);
        // Without rows there are still columns.
        let empty = encode(&Table::new(&["a"])).unwrap();
        let frame = ParquetReader::new(std::io::Cursor::new(empty)).finish().unwrap();
        assert_eq!(frame.shape(), (0, 1));
    }
}
