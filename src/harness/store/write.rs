//! What the sweep driver writes: sweeps with their points, and runs before they begin.

use super::Store;
use super::sweeps::SavedSweep;
use anyhow::{Context, Result};
use fathom_data::model_files::FileStamp;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{RunId, RunPaths, write_whole};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

/// A sweep, as it was planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepRecord {
    /// Unique in a store.
    pub name: String,
    /// The sweep file, as it was named.
    pub file: String,
    /// The comment that opens the file.
    pub question: Option<String>,
    /// The sweep file as JSON: axes, search, eval, report. Beside them `command_line` has what was laid over it, `further_seeds` the
    /// runs that `--top-up-seeds` brought, and in the store `earlier_runs` the runs of points that the sweep has no more.
    pub spec: Value,
    /// Seconds since 1970-01-01 UTC.
    pub planned_at: f64,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointRecord {
    /// 0, 1, ... in the order of the plan.
    pub position: u64,
    /// What tells the point from the others, seed left out: `rope=yarn2`.
    pub label: String,
    pub seed: u64,
    /// JSON object: axis -> label or value, seed included.
    pub settings: Value,
    /// The run that answers it, which may not exist yet.
    pub run_id: RunId,
}

/// A run before it begins.
#[derive(Debug, Clone)]
pub struct RunRecord<'a> {
    pub identity: &'a SavedIdentity,
    pub config: &'a RunConfig,
}

/// `identity.json` of a run's folder: what its configuration alone does not say, so that the store can be rebuilt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedIdentity {
    /// `run_hash` and `group_hash`.
    #[serde(flatten)]
    pub identity: RunIdentity,
    pub digests: Digests,
    /// The model's files when its digest was made: a run that finds others makes the digest anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_files: Vec<FileStamp>,
    /// Seconds since 1970-01-01 UTC.
    pub created_at: f64,
}

impl SavedIdentity {
    /// The name of the run's folder.
    pub fn run_id(&self) -> RunId {
        RunId::from_hash(&self.identity.run_hash)
    }

    /// Writes it into a run's folder, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn write(&self, paths: &RunPaths) -> Result<()> {
        let path = paths.identity();
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        write_whole(&path, text.as_bytes())
    }

    /// Reads it from a run's folder.
    ///
    /// # Errors
    ///
    /// When it is not there, or is not what [`SavedIdentity::write`] writes.
    pub fn read(paths: &RunPaths) -> Result<SavedIdentity> {
        let path = paths.identity();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: expected the run's identity", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: expected the run's identity", path.display()))
    }
}

impl Store {
    /// Records a sweep as it is planned now: its points replace those it had.
    ///
    /// # Errors
    ///
    /// When two points have one position, or the database can't be written.
    pub fn upsert_sweep(&mut self, sweep: &SweepRecord, points: &[PointRecord]) -> Result<()> {
        self.hold_file()?;
        let results = self.results.clone();
        self.in_transaction(|transaction| {
            replace_sweep(transaction, &results, sweep.clone(), points.to_vec())
        })
    }

    /// As [`Store::upsert_sweep`], by who has recorded it with the runs `before`: whatever else is among its points now, another
    /// has brought to it since. That stays, behind the others, and so does what the other says of the sweep.
    ///
    /// # Errors
    ///
    /// As [`Store::upsert_sweep`].
    pub fn update_sweep(
        &mut self,
        sweep: &SweepRecord,
        points: &[PointRecord],
        before: &HashSet<RunId>,
    ) -> Result<()> {
        self.hold_file()?;
        let results = self.results.clone();
        self.in_transaction(|transaction| {
            let (mut sweep, mut points) = (sweep.clone(), points.to_vec());
            if let Ok(Some(there)) = SavedSweep::of(&results, &sweep.name) {
                let own: HashSet<RunId> =
                    points.iter().map(|point| &point.run_id).chain(before).cloned().collect();
                let mut others = there.points;
                others.retain(|point| !own.contains(&point.run_id));
                if !others.is_empty() {
                    sweep = SweepRecord { planned_at: sweep.planned_at, ..there.sweep };
                }
                let next = points.iter().map(|point| point.position + 1).max().unwrap_or(0);
                let moved = |(position, point)| PointRecord { position, ..point };
                points.extend((next..).zip(others).map(moved));
            }
            replace_sweep(transaction, &results, sweep, points)
        })
    }

    /// Makes a run known. One that the store has keeps its progress; while it has not begun, it takes the configuration
    /// given here (which can differ only in what is no part of the identity: device, threads and paths).
    ///
    /// # Errors
    ///
    /// When the database can't be written.
    pub fn upsert_run(&mut self, run: &RunRecord) -> Result<()> {
        self.hold_file()?;
        self.in_transaction(|transaction| write_run(transaction, run, None).map(|_| ()))
    }
}

/// Writes a sweep's file and rows in place of those that are there.
fn replace_sweep(
    connection: &Connection,
    results: &Path,
    mut sweep: SweepRecord,
    points: Vec<PointRecord>,
) -> Result<()> {
    sweep.spec = with_earlier_runs(connection, &sweep, &points)?;
    write_sweep(connection, &sweep, &points)?;
    // Before the rows count; and what they refuse is not written.
    SavedSweep { sweep, points }.write(results)
}

/// Where a stored sweep names the runs of points that it has no more: what they took counts in its budget.
const EARLIER_RUNS: &str = "earlier_runs";

/// The ids of all runs that the sweep `?1` has or had as points.
pub(super) const RUNS_EVER: &str =
    "SELECT p.run_id FROM points p JOIN sweeps s ON s.id = p.sweep_id WHERE s.name = ?1
     UNION SELECT e.value FROM sweeps s, json_each(s.spec, '$.earlier_runs') e WHERE s.name = ?1";

/// What a sweep's row is to say, with the runs of those points that it had and that are not among the new ones.
fn with_earlier_runs(
    connection: &Connection,
    sweep: &SweepRecord,
    points: &[PointRecord],
) -> Result<Value> {
    let mut known = connection.prepare_cached(&format!(
        "SELECT run_id FROM runs WHERE run_id IN ({RUNS_EVER}) ORDER BY id"
    ))?;
    let now: HashSet<&str> = points.iter().map(|point| point.run_id.0.as_str()).collect();
    let mut earlier: Vec<String> = known
        .query_map([&sweep.name], |row| row.get::<_, String>(0))?
        .collect::<rusqlite::Result<_>>()?;
    earlier.retain(|run| !now.contains(run.as_str()));
    let mut spec = sweep.spec.clone();
    if let Value::Object(spec) = &mut spec {
        spec.remove(EARLIER_RUNS);
        if !earlier.is_empty() {
            spec.insert(EARLIER_RUNS.to_string(), earlier.into());
        }
    }
    Ok(spec)
}

/// Makes a run known, with the number `id` where one is given, and says its number where it was written.
pub(super) fn write_run(
    connection: &Connection,
    run: &RunRecord,
    id: Option<i64>,
) -> Result<Option<i64>> {
    let config = run.config.to_json();
    let SavedIdentity { identity, digests, created_at, .. } = run.identity;
    let run_id = run.identity.run_id();
    let id: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO runs (run_id, run_hash, group_hash, folder, config, digests, seed, created_at, status, id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'planned', ?9)
             ON CONFLICT (run_id) DO UPDATE SET folder = excluded.folder, config = excluded.config
             WHERE runs.status = 'planned'
             RETURNING id",
        )?
        .query_row(
            params![
                run_id.0,
                identity.run_hash,
                identity.group_hash,
                format!("runs/{run_id}"),
                config.to_string(),
                serde_json::to_string(digests)?,
                run.config.train.seed,
                created_at,
                id
            ],
            |row| row.get(0),
        )
        .optional()
        .with_context(|| format!("run {run_id}: can't be recorded"))?;
    let Some(id) = id else { return Ok(None) };
    write_params(connection, id, run.config)?;
    Ok(Some(id))
}

/// Gives the run of number `id` the configuration of its latest attempt.
pub(super) fn write_config(connection: &Connection, id: i64, config: &RunConfig) -> Result<()> {
    let sql = "UPDATE runs SET config = ?2 WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![id, config.to_json().to_string()])?;
    write_params(connection, id, config)
}

fn write_params(connection: &Connection, id: i64, config: &RunConfig) -> Result<()> {
    connection.prepare_cached("DELETE FROM params WHERE run = ?1")?.execute([id])?;
    let mut insert = connection
        .prepare_cached("INSERT INTO params (run, key, value, number) VALUES (?1, ?2, ?3, ?4)")?;
    for (key, value) in config.flatten() {
        insert.execute(params![id, key, value.to_string(), value.as_f64()])?;
    }
    Ok(())
}

/// Puts a sweep and its points in place of what there is of its name.
pub(super) fn write_sweep(
    connection: &Connection,
    sweep: &SweepRecord,
    points: &[PointRecord],
) -> Result<()> {
    let context = || format!("sweep {}: can't be recorded", sweep.name);
    let id: i64 = connection
        .query_row(
            "INSERT INTO sweeps (name, file, question, spec, planned_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET file = excluded.file, question = excluded.question,
               spec = excluded.spec, planned_at = excluded.planned_at
             RETURNING id",
            params![sweep.name, sweep.file, sweep.question, sweep.spec.to_string(), sweep.planned_at],
            |row| row.get(0),
        )
        .with_context(context)?;
    connection.execute("DELETE FROM points WHERE sweep_id = ?1", [id])?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO points (sweep_id, position, label, seed, settings, run_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for point in points {
        let PointRecord { position, label, seed, settings, run_id } = point;
        insert
            .execute(params![id, position, label, seed, settings.to_string(), run_id.0])
            .with_context(context)?;
    }
    Ok(())
}
