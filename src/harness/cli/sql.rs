//! `fathom sql`: a question to the store in its own language.

use super::table::{self, Cell, Format, Table};
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use fathom_spec::config::nearest;
use rusqlite::types::ValueRef;
use rusqlite::{Params, Statement};
use std::io::Read;
use std::path::PathBuf;

/// Ask the store of results in SQL; it is opened for reading only.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a query, lists the tables and views. The columns of one:
  fathom sql \"SELECT name, type FROM pragma_table_info('v_runs')\"
Beside SQLite's functions there are exp, ln, sqrt and pow.")]
pub struct SqlArgs {
    /// One SELECT; `-` reads it from standard input
    pub query: Option<String>,
    /// How to print the rows
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
}

/// Carries out `fathom sql`.
///
/// # Errors
///
/// When there is no store, the query is none that SQLite understands, or it would change something.
pub fn run(args: SqlArgs) -> Result<()> {
    let table = match args.query.as_deref() {
        None => {
            // Only a store that is there is worth describing.
            Store::open_read_only(&args.results)?;
            contents()
        }
        Some("-") => {
            let mut query = String::new();
            std::io::stdin()
                .read_to_string(&mut query)
                .context("standard input: expected a query in UTF-8")?;
            answer(&Store::open_read_only(&args.results)?, &query)?
        }
        Some(query) => answer(&Store::open_read_only(&args.results)?, query)?,
    };
    table::print(&table.render(args.format))
}

/// The tables and views with what they hold.
fn contents() -> Table {
    let mut table = Table::new(&["name", "kind", "holds"]);
    let mut entries = Store::schema();
    // Views are for people: they come first.
    entries.sort_by_key(|(_, kind, _)| *kind != "view");
    table.rows = entries
        .into_iter()
        .map(|(name, kind, comment)| vec![name.into(), kind.into(), comment.into()])
        .collect();
    table
}

/// Asks one query and collects its rows.
///
/// # Errors
///
/// When it is not one query, not understood, or not only reading.
pub fn answer(store: &Store, query: &str) -> Result<Table> {
    let mut statement = store.connection().prepare(query).map_err(explain)?;
    if !statement.readonly() {
        bail!(
            "query: expected one that only reads, found one that writes\n  help: the store is an index of the runs' logs; `fathom runs rebuild` makes it anew from them"
        );
    }
    collect(&mut statement, [])
}

/// The rows of a statement.
pub(super) fn collect(statement: &mut Statement, values: impl Params) -> Result<Table> {
    let columns: Vec<String> = statement.column_names().map(ToString::to_string).collect();
    let mut rows = statement.query(values).map_err(explain)?;
    let mut cells = Vec::new();
    while let Some(row) = rows.next().map_err(explain)? {
        let values = (0..columns.len()).map(|i| Ok(cell(row.get_ref(i)?)));
        cells.push(values.collect::<Result<Vec<_>>>()?);
    }
    Ok(Table { columns, rows: cells })
}

fn cell(value: ValueRef) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(n) => Cell::Integer(n),
        ValueRef::Real(x) => Cell::Real(x),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        // As SQLite writes them.
        ValueRef::Blob(bytes) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Cell::Text(format!("x'{digits}'"))
        }
    }
}

/// SQLite's message, with the place in the query where it knows one, and the nearest name for a table that is not there.
fn explain(error: rusqlite::Error) -> anyhow::Error {
    let (message, place) = match error {
        rusqlite::Error::SqlInputError { msg, sql, offset, .. } => {
            let before = usize::try_from(offset).ok().and_then(|offset| sql.get(..offset));
            (msg, before.map(|text| format!(", character {}", text.chars().count() + 1)))
        }
        rusqlite::Error::SqliteFailure(_, Some(message)) => (message, None),
        rusqlite::Error::MultipleStatement => ("expected one, found several".into(), None),
        rusqlite::Error::Empty => ("expected SQL, found nothing".into(), None),
        other => (other.to_string(), None),
    };
    let help = message.strip_prefix("no such table: ").map(|name| {
        let names = Store::schema().into_iter().map(|(known, _, _)| known);
        match nearest(name, names) {
            Some(near) => format!("\n  help: did you mean `{near}`?"),
            None => "\n  help: `fathom sql` lists the tables and views".into(),
        }
    });
    anyhow!("query{}: {message}{}", place.unwrap_or_default(), help.unwrap_or_default())
}
