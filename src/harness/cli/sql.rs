//! `fathom sql`: the store by query, read-only.

use super::sweep::Places;
use super::table::{Format, Table};
use crate::store::Store;
use anyhow::{Context, Result, bail};
use clap::Args;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::Value;
use std::io::{Read, Write};

#[derive(Args)]
pub struct SqlArgs {
    /// The query; `-` reads it from stdin. Without one, the tables and views are listed
    query: Option<String>,
    #[arg(long, default_value = "table")]
    format: Format,
    #[command(flatten)]
    places: Places,
}

/// Carries out `fathom sql`.
///
/// # Errors
///
/// When there is no store, or SQLite refuses the query: with its own words.
pub fn run(args: SqlArgs) -> Result<()> {
    let store = Store::open_read_only(&args.places.results)?;
    let table = match args.query.as_deref() {
        None => list(store.connection())?,
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("stdin")?;
            query(store.connection(), &text)?
        }
        Some(text) => query(store.connection(), text)?,
    };
    std::io::stdout().write_all(table.render(args.format).as_bytes())?;
    Ok(())
}

/// The rows of a query.
///
/// # Errors
///
/// When SQLite refuses it: a mistake in it, or an attempt to write.
pub fn query(connection: &Connection, text: &str) -> Result<Table> {
    let mut statement = connection.prepare(text).map_err(refused)?;
    if !statement.readonly() {
        bail!("sql: expected a query that only reads, found one that writes");
    }
    let columns: Vec<String> = statement.column_names().map(str::to_string).collect();
    let mut table = Table::new(&columns);
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next().map_err(refused)? {
        let cells =
            (0..columns.len()).map(|i| row.get_ref(i).map(value)).collect::<Result<_, _>>()?;
        table.values(cells);
    }
    Ok(table)
}

fn refused(error: rusqlite::Error) -> anyhow::Error {
    anyhow::anyhow!("sql: {error}\n  help: `fathom sql` without a query lists the tables and views")
}

fn value(cell: ValueRef<'_>) -> Value {
    match cell {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => n.into(),
        ValueRef::Real(x) => {
            serde_json::Number::from_f64(x).map_or_else(|| x.to_string().into(), Value::Number)
        }
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()).into(),
    }
}

/// Tables and views with their columns.
fn list(connection: &Connection) -> Result<Table> {
    let mut table = Table::new(&["name", "kind", "columns"]);
    let mut statement = connection.prepare(
        "SELECT m.name, m.type, (SELECT group_concat(name, ' ') FROM pragma_table_info(m.name))
         FROM sqlite_master m WHERE m.type IN ('table', 'view') AND m.name NOT LIKE 'sqlite_%' ORDER BY m.type DESC, m.name",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        table.values((0..3).map(|i| row.get_ref(i).map(value)).collect::<Result<_, _>>()?);
    }
    Ok(table)
}
