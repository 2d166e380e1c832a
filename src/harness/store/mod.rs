//! The store: `results/fathom.db`, an index in SQLite of the runs' event logs.
//!
//! One process writes, any number read. `schema.sql` is the public description of every table and view. Events are taken in
//! with the position that they were read up to in one transaction, so that taking them in twice, or being killed half-way,
//! changes nothing.

mod ingest;

use anyhow::{Context, Result, bail, ensure};
use fathom_spec::config::{Digests, RunConfig};
use fathom_spec::record::RunPaths;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version of the schema that this program writes; counted in SQLite's `user_version`.
pub const SCHEMA_VERSION: i64 = 1;

/// Marks a database as one of fathom: "fthm" in ASCII, in SQLite's `application_id`.
const APPLICATION_ID: i64 = 0x6674_686d;

const SCHEMA: &str = include_str!("schema.sql");

/// A sweep, as it was last planned.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepRecord {
    pub name: String,
    pub file: String,
    pub question: Option<String>,
    pub spec: Value,
    pub planned_at: f64,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct PointRecord {
    pub position: usize,
    pub label: String,
    pub seed: u64,
    pub settings: Value,
    pub run_id: String,
}

/// A run before anything has happened to it.
#[derive(Debug, Clone)]
pub struct RunRecord<'a> {
    pub run_id: &'a str,
    pub run_hash: &'a str,
    pub group_hash: &'a str,
    pub config: &'a RunConfig,
    pub digests: &'a Digests,
    pub created_at: f64,
}

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStatus {
    pub status: String,
    pub detail: Option<String>,
    pub step: u64,
}

/// The database, open.
pub struct Store {
    results: PathBuf,
    connection: Connection,
}

impl Store {
    /// The database of a results folder.
    pub fn path(results: &Path) -> PathBuf {
        results.join("fathom.db")
    }

    /// Opens the store for writing; makes it, and the folder, where there is none.
    ///
    /// # Errors
    ///
    /// When the file is not a store of fathom, was made by a newer version, or can't be written.
    pub fn open(results: &Path) -> Result<Store> {
        std::fs::create_dir_all(results)
            .with_context(|| format!("{}: the results folder can't be made", results.display()))?;
        let path = Store::path(results);
        let connection = Connection::open(&path)
            .with_context(|| format!("{}: the store can't be opened", path.display()))?;
        let mut store = Store { results: results.to_path_buf(), connection };
        store
            .prepare(&path)
            .with_context(|| format!("{}: the store can't be used", path.display()))?;
        Ok(store)
    }

    fn prepare(&mut self, path: &Path) -> Result<()> {
        let c = &mut self.connection;
        c.busy_timeout(Duration::from_secs(30))?;
        add_functions(c)?;
        check_is_ours(c, path)?;
        c.pragma_update(None, "journal_mode", "wal")?;
        c.pragma_update(None, "synchronous", "normal")?;
        c.pragma_update(None, "foreign_keys", true)?;
        let version: i64 = c.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            let transaction = c.transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(())
    }

    /// Opens the store for reading only.
    ///
    /// # Errors
    ///
    /// When there is none yet, or as [`Store::open`].
    pub fn open_read_only(results: &Path) -> Result<Store> {
        let path = Store::path(results);
        ensure!(
            path.is_file(),
            "{}: expected a store, found none\n  help: `fathom sweep run` and `fathom train` make one; --results names another folder",
            path.display()
        );
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)
            .with_context(|| format!("{}: the store can't be opened", path.display()))?;
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "query_only", true)?;
        add_functions(&connection)?;
        check_is_ours(&connection, &path)?;
        Ok(Store { results: results.to_path_buf(), connection })
    }

    /// The connection, for queries.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The files of a run under this store's results folder.
    pub fn paths(&self, run_id: &str) -> RunPaths {
        RunPaths::new(self.results.join("runs").join(run_id))
    }

    /// Records a sweep with its points; what was planned under this name before is replaced.
    ///
    /// # Errors
    ///
    /// When the database refuses.
    pub fn upsert_sweep(&mut self, sweep: &SweepRecord, points: &[PointRecord]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "INSERT INTO sweeps (name, file, question, spec, planned_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET file = ?2, question = ?3, spec = ?4, planned_at = ?5",
            params![sweep.name, sweep.file, sweep.question, sweep.spec.to_string(), sweep.planned_at],
        )?;
        let id: i64 = transaction.query_row(
            "SELECT id FROM sweeps WHERE name = ?1",
            [&sweep.name],
            |row| row.get(0),
        )?;
        transaction.execute("DELETE FROM points WHERE sweep_id = ?1", [id])?;
        for point in points {
            transaction.execute(
                "INSERT INTO points (sweep_id, position, label, seed, settings, run_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    id, point.position as i64, point.label, point.seed as i64, point.settings.to_string(), point.run_id
                ],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Records a run as planned; one that is known keeps its progress.
    ///
    /// # Errors
    ///
    /// When the database refuses.
    pub fn upsert_run(&mut self, run: &RunRecord) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let added = transaction.execute(
            "INSERT INTO runs (run_id, run_hash, group_hash, folder, config, digests, seed, created_at, status)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'planned') ON CONFLICT (run_id) DO NOTHING",
            params![
                run.run_id,
                run.run_hash,
                run.group_hash,
                format!("runs/{}", run.run_id),
                run.config.to_json().to_string(),
                serde_json::to_string(run.digests)?,
                run.config.train.seed as i64,
                run.created_at,
            ],
        )?;
        if added == 1 {
            let id = transaction.last_insert_rowid();
            for (key, value) in run.config.flatten() {
                transaction.execute(
                    "INSERT INTO params (run, key, value, number) VALUES (?1, ?2, ?3, ?4)",
                    params![id, key, value.to_string(), value.as_f64()],
                )?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// How a run stands; `None` when the store does not know it.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn status(&self, run_id: &str) -> Result<Option<RunStatus>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT status, status_detail, step FROM runs WHERE run_id = ?1")?;
        let row = statement.query_row([run_id], |row| {
            let step: i64 = row.get(2)?;
            Ok(RunStatus { status: row.get(0)?, detail: row.get(1)?, step: step as u64 })
        });
        Ok(row.optional()?)
    }

    /// Records an ending that the run could not log itself: `killed`, `lost`, `failed`.
    ///
    /// # Errors
    ///
    /// When the database refuses.
    pub fn set_status(
        &mut self,
        run_id: &str,
        status: &str,
        detail: Option<&str>,
        at: f64,
    ) -> Result<()> {
        self.connection.execute(
            "UPDATE runs SET status = ?2, status_detail = ?3, ended_at = ?4 WHERE run_id = ?1",
            params![run_id, status, detail, at],
        )?;
        Ok(())
    }
}

/// `exp`, `ln` and `sqrt` for queries, whatever SQLite was compiled with.
fn add_functions(connection: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    for (name, f) in [("exp", f64::exp as fn(f64) -> f64), ("ln", f64::ln), ("sqrt", f64::sqrt)] {
        connection.create_scalar_function(name, 1, flags, move |context| {
            Ok(context.get::<Option<f64>>(0)?.map(f))
        })?;
    }
    Ok(())
}

fn check_is_ours(connection: &Connection, path: &Path) -> Result<()> {
    let shown = path.display();
    let pragma = |name: &str| -> Result<i64> {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .with_context(|| format!("{shown}: expected a store of fathom"))
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
    if tables > 0 && application != APPLICATION_ID {
        bail!("{shown}: expected a store of fathom, found another program's database");
    }
    if version > SCHEMA_VERSION {
        bail!(
            "{shown}: expected a store of version {SCHEMA_VERSION} or older, found version {version}\n  \
             help: it was written by a newer fathom; use that one, or another folder with --results"
        );
    }
    Ok(())
}
