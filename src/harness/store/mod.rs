//! The store: `results/fathom.db`, an index in SQLite of what the runs' event logs say.
//!
//! One process writes, any number read. The logs are the truth: [`Store::ingest_run`] brings in what has been appended to a
//! log since it last looked, and [`Store::rebuild`] reads all of them again. What was read and how far it was read are
//! committed together, so a kill at any moment loses nothing and doubles nothing. The schema (`schema.sql`) is a public
//! interface, and so is what later versions add to it (`labels.sql`); [`Store::connection`] is there for any question that
//! `query` has no method for. What people do to runs by hand is in `curate`.

mod curate;
mod ingest;
mod query;
mod write;

pub use curate::Labels;
pub use ingest::Ingested;
pub use query::{
    Artifact, MemoryRow, PerplexityRow, PositionNllRow, Run, Sample, SweepSummary, Warning,
};
pub use write::{PointRecord, Rebuilt, RunRecord, SavedIdentity, SweepRecord};

use anyhow::{Context, Result, anyhow, bail};
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// `fath` in ASCII, in the header of every database of ours (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x6661_7468;

/// What brings a database from version N (`PRAGMA user_version`) to N + 1. Only ever appended to.
const MIGRATIONS: [&str; 2] = [include_str!("schema.sql"), include_str!("labels.sql")];

/// How long to wait for another process's commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// More than there are statements in this module, so that none is prepared twice.
const CACHED_STATEMENTS: usize = 128;

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Known, not begun.
    Planned,
    Running,
    Finished,
    /// Asked to stop, and did; can be resumed.
    Stopped,
    OutOfMemory,
    Diverged,
    Failed,
    /// Ended by a signal, as its supervisor saw.
    Killed,
    /// No ending and no process.
    Lost,
}

impl Status {
    pub const ALL: [Status; 9] = [
        Status::Planned,
        Status::Running,
        Status::Finished,
        Status::Stopped,
        Status::OutOfMemory,
        Status::Diverged,
        Status::Failed,
        Status::Killed,
        Status::Lost,
    ];

    /// Whether the run is done for good: it has a result, and is not run again.
    pub fn is_result(self) -> bool {
        matches!(self, Status::Finished | Status::OutOfMemory | Status::Diverged)
    }

    /// As the store spells it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Planned => "planned",
            Status::Running => "running",
            Status::Finished => "finished",
            Status::Stopped => "stopped",
            Status::OutOfMemory => "out_of_memory",
            Status::Diverged => "diverged",
            Status::Failed => "failed",
            Status::Killed => "killed",
            Status::Lost => "lost",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Status, String> {
        Status::ALL.into_iter().find(|status| status.name() == text).ok_or_else(|| {
            let names: Vec<_> = Status::ALL.iter().map(|status| status.name()).collect();
            format!("expected one of {}, found `{text}`", names.join(", "))
        })
    }
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    results: PathBuf,
}

impl Store {
    /// The database of a results folder.
    pub fn path(results: &Path) -> PathBuf {
        results.join("fathom.db")
    }

    /// Opens the store of a results folder for writing; makes folder and database where there are none, and brings an older
    /// database up to date.
    ///
    /// # Errors
    ///
    /// When the file can't be opened or made, is not a database of fathom, or was written by a newer fathom.
    pub fn open(results: &Path) -> Result<Store> {
        std::fs::create_dir_all(results).with_context(|| {
            format!("{}: expected a folder for results, and could not make one", results.display())
        })?;
        let path = Store::path(results);
        let opened = Connection::open(&path).map_err(anyhow::Error::from);
        let connection = opened.and_then(|mut connection| {
            prepare(&connection)?;
            check_ours(&connection, &path)?;
            migrate(&mut connection)?;
            // The database keeps this mode: asking is cheaper than setting, and needs no lock.
            let mode: String = connection.pragma_query_value(None, "journal_mode", |r| r.get(0))?;
            if mode != "wal" {
                write_ahead(&connection)?;
            }
            connection.pragma_update(None, "synchronous", "normal")?;
            Ok(connection)
        });
        let connection = connection.map_err(|error| explain(&path, error))?;
        Ok(Store { connection, results: results.to_path_buf() })
    }

    /// Opens the store of a results folder for reading only; nothing that is done with it can change the file.
    ///
    /// # Errors
    ///
    /// When there is no database yet, or it is not one that this version reads.
    pub fn open_read_only(results: &Path) -> Result<Store> {
        let path = Store::path(results);
        if !path.exists() {
            bail!(
                "{}: expected a database of runs, found none\n  help: `fathom sweep run FILE` makes one, `fathom runs rebuild` makes it from the folders of runs; --results names another results folder",
                path.display()
            );
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags).map_err(anyhow::Error::from);
        let connection = opened.and_then(|connection| {
            prepare(&connection)?;
            connection.pragma_update(None, "query_only", true)?;
            let version = check_ours(&connection, &path)?;
            if version < MIGRATIONS.len() {
                bail!(
                    "{}: expected a store of version {}, found version {version}\n  help: `fathom runs rebuild` brings it up to date",
                    path.display(),
                    MIGRATIONS.len()
                );
            }
            Ok(connection)
        });
        let connection = connection.map_err(|error| explain(&path, error))?;
        Ok(Store { connection, results: results.to_path_buf() })
    }

    /// The results folder that this is the store of.
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// The connection itself, with `exp`, `ln`, `sqrt` and `pow`, which the views and reports use and SQLite may lack.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Every table and view of the schema with its kind (`table` or `view`) and the comment that stands above it.
    pub fn schema() -> Vec<(&'static str, &'static str, String)> {
        MIGRATIONS.into_iter().flat_map(described).collect()
    }
}

/// Switches the journal to WAL. SQLite does not wait here for another process that is about to write, so we do.
fn write_ahead(connection: &Connection) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())) {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && begun.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            done => return Ok(done?),
        }
    }
}

fn prepare(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    connection.pragma_update(None, "foreign_keys", true)?;
    let pure = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    // NULL in gives NULL out, and so does NaN: SQLite has none.
    let of_one = |name: &str, function: fn(f64) -> f64| {
        connection.create_scalar_function(name, 1, pure, move |call| {
            Ok(call.get::<Option<f64>>(0)?.map(function))
        })
    };
    of_one("exp", f64::exp)?;
    of_one("ln", f64::ln)?;
    of_one("sqrt", f64::sqrt)?;
    connection.create_scalar_function("pow", 2, pure, |call| {
        let (x, y) = (call.get::<Option<f64>>(0)?, call.get::<Option<f64>>(1)?);
        Ok(x.zip(y).map(|(x, y)| x.powf(y)))
    })?;
    Ok(())
}

/// The version of a database that is ours, or 0 of one that is empty.
fn check_ours(connection: &Connection, path: &Path) -> Result<usize> {
    let path = path.display();
    // One statement, so that all three are of one moment.
    let (application, version, tables): (i32, i64, i64) = connection.query_row(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if application != APPLICATION_ID && (application, version, tables) != (0, 0, 0) {
        bail!(
            "{path}: expected a database of fathom, found another program's\n  help: --results names another results folder"
        );
    }
    let known = MIGRATIONS.len();
    match usize::try_from(version) {
        Ok(version) if version <= known => Ok(version),
        _ => bail!(
            "{path}: expected a store of version {known} or less, found version {version}\n  help: a newer fathom wrote it; use that one, or name another folder with --results"
        ),
    }
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let version = |connection: &Connection| -> rusqlite::Result<usize> {
        connection.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    if version(connection)? == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Again, now that nobody else writes: another process may just have done it.
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version(&transaction)?) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number as i64 + 1)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    Ok(())
}

/// Names the file in an error of SQLite's; our own name it already.
fn explain(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let path = path.display();
    match error.downcast_ref::<rusqlite::Error>().map(|e| (e.sqlite_error_code(), e)) {
        Some((Some(ErrorCode::NotADatabase), _)) => {
            anyhow!("{path}: expected a database of fathom, found a file that is no database")
        }
        Some((Some(ErrorCode::DatabaseBusy), _)) => anyhow!(
            "{path}: another process held the database for {} s\n  help: try again when it is done",
            BUSY_TIMEOUT.as_secs()
        ),
        Some((_, e)) => anyhow!("{path}: the database can't be opened: {e}"),
        None => error,
    }
}

/// The `CREATE TABLE` and `CREATE VIEW` statements of a script: name, kind, and the comment lines just above as one text.
fn described(script: &'static str) -> Vec<(&'static str, &'static str, String)> {
    let mut found = Vec::new();
    let mut comment = Vec::new();
    for line in script.lines() {
        if let Some(text) = line.strip_prefix("-- ") {
            comment.push(text);
            continue;
        }
        let mut words = line.split_whitespace();
        if words.next() == Some("CREATE") {
            let (kind, name) = (words.next(), words.next());
            let kind = [("TABLE", "table"), ("VIEW", "view")]
                .into_iter()
                .find_map(|(word, shown)| (kind == Some(word)).then_some(shown));
            if let (Some(kind), Some(name)) = (kind, name) {
                found.push((name, kind, comment.join(" ")));
            }
        }
        comment.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_and_view_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut statement = store
            .connection
            .prepare("SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let there: Vec<(String, String)> = rows.map(Result::unwrap).collect();
        let mut described: Vec<_> = Store::schema()
            .into_iter()
            .map(|(name, kind, comment)| {
                assert!(comment.ends_with('.'), "{name}: {comment}");
                (name.to_string(), kind.to_string())
            })
            .collect();
        described.sort();
        assert_eq!(described, there);
    }

    #[test]
    fn functions_of_the_views_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let row: (f64, f64, f64, f64, Option<f64>, Option<f64>, f64) = store
            .connection
            .query_row(
                "SELECT exp(1), ln(exp(2)), sqrt(9), pow(2, 10), exp(NULL), ln(-1), exp(1000)",
                [],
                |r| {
                    Ok((
                        r.get(0)?,
                        r.get(1)?,
                        r.get(2)?,
                        r.get(3)?,
                        r.get(4)?,
                        r.get(5)?,
                        r.get(6)?,
                    ))
                },
            )
            .unwrap();
        assert_eq!(row, (1f64.exp(), 2.0, 3.0, 1024.0, None, None, f64::INFINITY));
    }

    #[test]
    fn statuses_are_read_as_they_are_written() {
        for status in Status::ALL {
            assert_eq!(status.name().parse(), Ok(status));
        }
        let error = "done".parse::<Status>().unwrap_err();
        assert!(error.starts_with("expected one of planned, running,"), "{error}");
    }
}
