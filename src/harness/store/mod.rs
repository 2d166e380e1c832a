//! The store: `results/fathom.db`, an index in SQLite of what the runs' event logs say.
//!
//! One process writes, any number read. The logs are the truth: [`Store::ingest_run`] brings in what has been appended to a
//! log since it last looked, and [`Store::rebuild`] reads all of them again. What was read and how far it was read are
//! committed together, so a kill at any moment loses nothing and doubles nothing. The schema (`schema.sql`, then
//! `migrations/`) is a public interface; [`Store::connection`] is there for any question that `query` has no method for.
//!
//! Where to look: `migrate` (versions), `journal` (file systems), `ingest` (events to rows) with `lines` (the log's text) and
//! `metrics` (scalars and their summaries), `rebuild` (all of it again) with `salvage` (what a damaged database still has), `check` and `keep` (what `fathom db` does),
//! `query`, `history` and `unfinished` (what is asked), `verdict` (what a supervisor says of runs), `sweeps` (what is kept of a
//! sweep beside its runs), `curate` (what people do to runs by hand).

mod check;
mod compare;
mod curate;
mod explain;
mod history;
mod ingest;
mod journal;
mod keep;
mod lines;
mod metrics;
mod migrate;
mod query;
mod rebuild;
mod run;
mod salvage;
mod sweeps;
mod unfinished;
mod verdict;
mod write;

pub use check::{Finding, Findings};
pub use curate::Labels;
pub use history::Attempt;
pub use ingest::Ingested;
pub use journal::Journal;
pub use lines::{STEP_SCALARS, Step};
pub use query::{Artifact, PerplexityRow, Sample, SweepSummary, Warning};
pub use rebuild::Rebuilt;
pub use run::Run;
pub use unfinished::{Taken, Unfinished};
pub use verdict::forget_verdicts;
pub use write::{PointRecord, RunRecord, SavedIdentity, SweepRecord};

use anyhow::{Context, Result, bail};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long to wait for another process's commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// More than there are statements in this module, so that none is prepared twice.
const CACHED_STATEMENTS: usize = 128;

/// From this version on, all that the store has is in folders too.
const FOLDERS_HAVE_ALL: usize = 4;

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    journal: Journal,
    /// The file behind the connection, as long as it has a name: see `keep`.
    file: Option<keep::FileId>,
    /// Whether it is a copy that nobody else sees. What is written to it is written nowhere else.
    private: bool,
}

impl Store {
    /// The database of a results folder.
    pub fn path(results: &Path) -> PathBuf {
        results.join("fathom.db")
    }

    /// Opens the store of a results folder for writing; makes folder and database where there are none, and brings an older
    /// database up to date, with a copy of it kept beside.
    ///
    /// # Errors
    ///
    /// When the file can't be opened or made, is not a database of fathom, or was written by a newer fathom.
    pub fn open(results: &Path) -> Result<Store> {
        std::fs::create_dir_all(results).with_context(|| {
            format!("{}: expected a folder for results, and could not make one", results.display())
        })?;
        Store::open_with(results, Journal::of(results))
    }

    /// As [`Store::open`], with the journal that the caller chooses.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open_with(results: &Path, journal: Journal) -> Result<Store> {
        let path = Store::path(results);
        let open = || -> Result<(Connection, usize)> {
            let mut connection = Connection::open(&path)?;
            journal.prepare(&connection, &path)?;
            prepare(&connection)?;
            migrate::check_ours(&connection, &path)?;
            let found = migrate::migrate(&mut connection, &path)?;
            journal.apply(&connection)?;
            Ok((connection, found))
        };
        let (connection, found) = open().map_err(|error| explain::opening(&path, error))?;
        let file = keep::FileId::of(&path);
        let results = results.to_path_buf();
        let store = Store { connection, results, journal, file, private: false };
        if (1..FOLDERS_HAVE_ALL).contains(&found) {
            // The database has it still where this fails; `fathom db rebuild` tries again.
            let _ = store.write_out();
        }
        Ok(store)
    }

    /// Opens the store of a results folder for reading only; nothing that is done with it can change the file. A database of
    /// an earlier version is read as if it were of this one.
    ///
    /// # Errors
    ///
    /// When there is no database yet, or it is not one that this version reads.
    pub fn open_read_only(results: &Path) -> Result<Store> {
        let path = Store::path(results);
        if !path.exists() {
            bail!(
                "{}: expected a database of runs, found none\n  help: `fathom sweep run FILE` makes one, `fathom db rebuild` makes it from the folders of runs; --results names another results folder",
                path.display()
            );
        }
        let open = || -> Result<(Connection, bool)> {
            let connection = keep::open_to_read(&path)?;
            prepare(&connection)?;
            let version = migrate::check_ours(&connection, &path)?;
            if version == 0 {
                bail!(
                    "{}: expected a store of version {}, found version 0, which is empty\n  help: `fathom db rebuild` makes it from the folders of runs",
                    path.display(),
                    migrate::VERSION
                );
            }
            if version == migrate::VERSION {
                connection.pragma_update(None, "query_only", true)?;
                return Ok((connection, false));
            }
            let copy = migrate::carried_forward(&connection)?;
            prepare(&copy)?;
            copy.pragma_update(None, "query_only", true)?;
            Ok((copy, true))
        };
        let (connection, private) = open().map_err(|error| explain::opening(&path, error))?;
        let journal = Journal::of(results);
        Ok(Store { connection, results: results.to_path_buf(), journal, file: None, private })
    }

    /// Has `change` set right what this reader sees, in a copy that nobody else sees; the file stays as it is.
    ///
    /// # Errors
    ///
    /// When the copy can't be made, and those of `change`.
    pub fn apart<T>(self, change: impl FnOnce(&mut Store) -> Result<T>) -> Result<Store> {
        let connection = match self.private {
            true => self.connection,
            false => migrate::carried_forward(&self.connection)?,
        };
        prepare(&connection)?;
        let mut store = Store { connection, file: None, private: true, ..self };
        store.connection.pragma_update(None, "query_only", false)?;
        change(&mut store)?;
        store.connection.pragma_update(None, "query_only", true)?;
        Ok(store)
    }

    /// Whether this is a copy that nobody else sees.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Waits for another process's commit no longer than `longest`.
    ///
    /// # Errors
    ///
    /// When the connection is of no use any more.
    pub fn wait_at_most(&self, longest: Duration) -> Result<()> {
        Ok(self.connection.busy_timeout(longest)?)
    }

    /// The results folder that this is the store of.
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// The connection itself, with `exp`, `ln`, `sqrt` and `pow`, which the views and reports use and SQLite may lack.
    pub fn connection(&self) -> &Connection {
        &self.connection
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
