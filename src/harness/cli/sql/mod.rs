//! `fathom sql`: a question to the store in its own language, or one of the questions that are kept under a name ([`recipes`]).

mod parquet;
pub mod recipes;

use super::table::{self, Cell, Format, Table};
use crate::run::read_store;
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use fathom_spec::config::nearest;
use rusqlite::types::ValueRef;
use rusqlite::{Params, Statement};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Ask the store of results in SQL; it is opened for reading only.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a query, lists the tables and views. The columns of one:
  fathom sql \"SELECT name, type FROM pragma_table_info('v_runs')\"
Beside SQLite's functions there are exp, ln, sqrt and pow.
Questions that are asked often have names:
  fathom sql --recipes
  fathom sql --recipe best_runs --set sweep=rope_variants --set limit=3
  fathom sql --recipe best_runs --print")]
pub struct SqlArgs {
    /// One SELECT; `-` reads it from standard input
    #[arg(conflicts_with_all = ["recipe", "recipes"])]
    pub query: Option<String>,
    /// List the queries that have names, with what can be set in each
    #[arg(long, conflicts_with = "recipe")]
    pub recipes: bool,
    /// Ask a query by its name
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Set a parameter of the recipe
    #[arg(long, value_name = "NAME=VALUE", requires = "recipe")]
    pub set: Vec<String>,
    /// Print the recipe's SQL instead of asking it
    #[arg(long, requires = "recipe")]
    pub print: bool,
    /// How to write the rows
    #[arg(long, value_enum, default_value_t)]
    pub format: SqlFormat,
    /// The file to write the rows to, instead of printing them
    #[arg(long, short, value_name = "FILE", required_if_eq("format", "parquet"))]
    pub output: Option<PathBuf>,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

/// As [`Format`], and Parquet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SqlFormat {
    /// Aligned columns
    #[default]
    Table,
    /// As RFC 4180 has it; what is missing is empty, an empty text is `""`
    Csv,
    /// A list of objects, one a line
    Json,
    /// A table of GitHub's markdown
    Markdown,
    /// A file of columns with types; needs --output
    Parquet,
}

impl SqlFormat {
    /// As text; `None` where it is none.
    fn text(self) -> Option<Format> {
        match self {
            SqlFormat::Table => Some(Format::Table),
            SqlFormat::Csv => Some(Format::Csv),
            SqlFormat::Json => Some(Format::Json),
            SqlFormat::Markdown => Some(Format::Markdown),
            SqlFormat::Parquet => None,
        }
    }
}

/// Carries out `fathom sql`.
///
/// # Errors
///
/// When there is no store, the query is none that SQLite understands, or it would change something.
pub fn run(args: SqlArgs) -> Result<()> {
    if args.recipe.is_none() && !args.set.is_empty() {
        bail!(
            "--set: expected it with --recipe, found it without\n  help: a query of your own has no parameters"
        );
    }
    if args.print {
        let Some(name) = args.recipe.as_deref() else {
            bail!(
                "--print: expected --recipe NAME beside it, found none\n  help: `fathom sql --recipes` lists the names"
            );
        };
        if !args.set.is_empty() {
            bail!(
                "--print: expected it without --set, found both\n  help: it prints the recipe as it is written, parameters in it"
            );
        }
        return table::print(recipes::find(name)?.text);
    }
    if let Some(path) = args.output.as_deref() {
        check_output(path, &args.results)?;
    }
    let table = match (&args.recipe, args.query.as_deref()) {
        _ if args.recipes => recipes::list(),
        (Some(name), _) => {
            let (recipe, store) = (recipes::find(name)?, read_store(&args.results)?);
            recipe.answer(&store, &args.set)?
        }
        (None, None) => {
            // Only a store that is there is worth describing.
            read_store(&args.results)?;
            contents()
        }
        (None, Some("-")) => {
            let mut query = String::new();
            std::io::stdin()
                .read_to_string(&mut query)
                .context("standard input: expected a query in UTF-8")?;
            answer(&read_store(&args.results)?, &query)?
        }
        (None, Some(query)) => answer(&read_store(&args.results)?, query)?,
    };
    write(&table, args.format, args.output.as_deref())
}

/// What is asked for is not written over what was asked.
fn check_output(output: &Path, results: &Path) -> Result<()> {
    // A file that is not there yet lies in a folder that is.
    let real = |path: &Path| {
        let whole = std::fs::canonicalize(path).ok();
        whole.or_else(|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = std::fs::canonicalize(folder.unwrap_or(Path::new("."))).ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    let Some(written) = real(output) else { return Ok(()) };
    let database = Store::path(results);
    for ending in ["", "-wal", "-shm", "-journal"] {
        let mut name = database.clone().into_os_string();
        name.push(ending);
        ensure!(
            real(Path::new(&name)).is_none_or(|own| own != written),
            "--output: expected the name of a file of your own, found {}, which belongs to the store\n  help: name another \
             file",
            output.display()
        );
    }
    Ok(())
}

/// A table as the bytes of a file.
///
/// # Errors
///
/// When polars fails.
pub fn encode(table: &Table, format: SqlFormat) -> Result<Vec<u8>> {
    match format.text() {
        Some(format) => Ok(table.render(format).into_bytes()),
        None => parquet::encode(table),
    }
}

/// Prints a table, or writes it to a file, whole or not at all.
fn write(table: &Table, format: SqlFormat, output: Option<&Path>) -> Result<()> {
    let bytes = encode(table, format)?;
    match output {
        Some(path) => {
            ensure!(
                !path.is_dir(),
                "--output: expected the name of a file, found the folder {}",
                path.display()
            );
            crate::run::write_whole(path, &bytes)
        }
        None => table::print(&String::from_utf8(bytes).expect("text formats are text")),
    }
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
    collect(store, &mut prepare(store, query)?, [])
}

fn prepare<'s>(store: &'s Store, query: &str) -> Result<Statement<'s>> {
    let statement = store.connection().prepare(query).map_err(|error| explain(store, error))?;
    if !statement.readonly() {
        bail!(
            "query: expected one that only reads, found one that writes\n  help: the store is an index of the runs' logs; `fathom runs rebuild` makes it anew from them"
        );
    }
    Ok(statement)
}

/// The rows of a statement.
pub(super) fn collect(
    store: &Store,
    statement: &mut Statement,
    values: impl Params,
) -> Result<Table> {
    let columns: Vec<String> = statement.column_names().map(ToString::to_string).collect();
    let mut rows = statement.query(values).map_err(|error| explain(store, error))?;
    let mut cells = Vec::new();
    while let Some(row) = rows.next().map_err(|error| explain(store, error))? {
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
fn explain(store: &Store, error: rusqlite::Error) -> anyhow::Error {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, SystemIoFailure};
    let code = error.sqlite_error_code();
    if matches!(code, Some(CannotOpen | DatabaseCorrupt | NotADatabase | SystemIoFailure)) {
        // It is not the query that is wrong.
        return store.explained(error);
    }
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
