//! What a report reads: one sweep of the store, whole, in plain values and in a fixed order.

use super::summary::{EVAL_LOSS, TRAINING_LOSS};
use anyhow::{Context, Result, anyhow, bail};
use rusqlite::{Connection, OpenFlags, Row};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// A sweep with all that its runs recorded. Everything is ordered, so the same store gives the same value.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub sweep: String,
    /// The comment that opens the sweep file.
    pub question: Option<String>,
    /// The sweep file, as it was named.
    pub file: String,
    /// The sweep file as JSON.
    pub spec: Value,
    /// When it was last planned, in seconds since 1970-01-01 UTC.
    pub planned_at: f64,
    /// `user_version` of the store.
    pub store_version: i64,
    /// In the order of the plan.
    pub points: Vec<Point>,
}

/// One point of the sweep; its run may not exist yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub label: String,
    pub seed: i64,
    /// Axis -> label or value, the seed included.
    pub settings: Map<String, Value>,
    pub run_id: String,
    pub run: Option<Run>,
}

/// What the store has of one run. Memory is in bytes, losses are in nats per token.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub status: String,
    pub status_detail: Option<String>,
    pub seconds: f64,
    pub step: i64,
    pub tokens: i64,
    pub peak_allocated: Option<i64>,
    pub code_version: Option<String>,
    pub git_commit: Option<String>,
    pub git_dirty: Option<bool>,
    pub device: Option<String>,
    pub device_name: Option<String>,
    pub driver: Option<String>,
    pub libtorch: Option<String>,
    /// What tells its device from those of other runs, its host with it; not to be shown.
    pub device_identity: Option<String>,
    /// Of the last attempt, in seconds since 1970-01-01 UTC.
    pub started_at: Option<f64>,
    pub ended_at: Option<f64>,
    pub digests: Value,
    pub asked_bytes: Option<i64>,
    pub free_bytes: Option<i64>,
    /// Bytes that there were when memory ran out.
    pub total_bytes: Option<i64>,
    pub params: BTreeMap<String, Value>,
    /// Key -> (step, value), by step: of the scalars that a report shows.
    pub metrics: BTreeMap<String, Vec<(i64, f64)>>,
    /// Of the last step that has any.
    pub perplexity: Vec<Perplexity>,
    /// Of the last step that has any.
    pub position_nll: Vec<PositionNll>,
    /// Phase -> the highest allocation of any step.
    pub memory: BTreeMap<String, i64>,
    pub facts: BTreeMap<String, Value>,
    pub warnings: Vec<String>,
}

/// Perplexity of one run at one context length.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    pub split: String,
    pub method: String,
    pub context_length: i64,
    /// Predictions that count.
    pub tokens: i64,
    pub nll: f64,
    pub nll_low: f64,
    pub nll_high: f64,
    /// The mean of each window, in order.
    pub window_nll: Vec<f64>,
}

/// Mean NLL of the predictions that see `start..end` tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionNll {
    pub split: String,
    pub start: i64,
    pub end: i64,
    pub tokens: i64,
    pub nll: f64,
}

impl Comparison {
    /// Reads the sweep `name` from `fathom.db` in the folder `results`, in one transaction that writes nothing.
    ///
    /// # Errors
    ///
    /// When there is no store, it can't be read, or it has no sweep of that name.
    pub fn read(results: &Path, name: &str) -> Result<Comparison> {
        let mut store = open(results)?;
        let path = results.join(STORE);
        let transaction = in_store(&path, store.transaction().map_err(anyhow::Error::from))?;
        in_store(&path, Comparison::read_from(&transaction, name))
    }

    /// As [`Comparison::read`], from an open store.
    ///
    /// # Errors
    ///
    /// When the store can't be read or has no sweep of that name.
    pub fn read_from(store: &Connection, name: &str) -> Result<Comparison> {
        let names = names(store)?;
        if !names.iter().any(|n| n == name) {
            let known = match names.as_slice() {
                [] => "none".to_string(),
                _ => names.join(", "),
            };
            bail!(
                "sweep `{name}`: expected a sweep of the store, found no such name\n  help: the store has {known}"
            );
        }
        let (sweep_id, file, question, spec, planned_at): (
            i64,
            String,
            Option<String>,
            String,
            f64,
        ) = store.query_row(
            "SELECT id, file, question, spec, planned_at FROM sweeps WHERE name = ?1",
            [name],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )?;
        let shown = shown_keys(store)?;
        let sql = "SELECT label, seed, settings, run_id FROM points WHERE sweep_id = ?1 ORDER BY position";
        let mut points: Vec<Point> = rows(store, sql, [sweep_id], |row| {
            Ok(Point {
                label: row.get(0)?,
                seed: row.get(1)?,
                settings: json(row, 2)?,
                run_id: row.get(3)?,
                run: None,
            })
        })?;
        for point in &mut points {
            point.run = read_run(store, &point.run_id, &shown)
                .with_context(|| format!("run {}", point.run_id))?;
        }
        Ok(Comparison {
            sweep: name.to_string(),
            question: question.map(|q| q.trim().to_string()).filter(|q| !q.is_empty()),
            file,
            planned_at,
            spec: serde_json::from_str(&spec).context("sweeps.spec is no JSON")?,
            store_version: store.query_row("PRAGMA user_version", [], |row| row.get(0))?,
            points,
        })
    }
}

const STORE: &str = "fathom.db";

/// The names of all sweeps of the store in the folder `results`, sorted.
///
/// # Errors
///
/// When there is no store or it can't be read.
pub fn sweeps(results: &Path) -> Result<Vec<String>> {
    in_store(&results.join(STORE), names(&open(results)?))
}

/// Names the store in an error of reading it, and the way out where there is one.
fn in_store<T>(path: &Path, read: Result<T>) -> Result<T> {
    read.map_err(|error| {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, SystemIoFailure};
        let code = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        let shown = path.display();
        match code {
            Some(DatabaseCorrupt | NotADatabase) => anyhow!(
                "{shown}: {error:#}\n  help: {shown} is damaged: `fathom db rebuild` keeps it aside and makes the database anew from the folders of runs"
            ),
            Some(CannotOpen | SystemIoFailure) => {
                anyhow!("{shown}: {error:#}\n  help: `fathom db check` says what it lacks")
            }
            _ => error.context(shown.to_string()),
        }
    })
}

fn open(results: &Path) -> Result<Connection> {
    let path = results.join(STORE);
    if !path.is_file() {
        bail!(
            "{}: expected a store, found no such file\n  help: run a sweep first, or name its results with --results",
            path.display()
        );
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags);
    in_store(&path, opened.context("the store can't be opened"))
}

/// The names of all sweeps of an open store, sorted.
///
/// # Errors
///
/// When it can't be read.
pub fn names(store: &Connection) -> Result<Vec<String>> {
    rows(store, "SELECT name FROM sweeps ORDER BY name", [], |row| Ok(row.get(0)?))
}

/// The scalars that a report shows; those that begin with [`EVAL_LOSS`] beside them. Others may be many, and are not read.
const SHOWN: [&str; 3] = [TRAINING_LOSS, "tokens_per_second", "step_seconds"];

/// The store's ids of these scalars, with their names.
fn shown_keys(store: &Connection) -> Result<Vec<(i64, String)>> {
    let sql = "SELECT id, key FROM metric_keys ORDER BY key";
    let mut keys: Vec<(i64, String)> = rows(store, sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    keys.retain(|(_, key)| SHOWN.contains(&key.as_str()) || key.starts_with(EVAL_LOSS));
    Ok(keys)
}

fn read_run(store: &Connection, run_id: &str, shown: &[(i64, String)]) -> Result<Option<Run>> {
    let sql = "SELECT id, status, status_detail, seconds, step, tokens, peak_allocated, code_version, git_commit, \
               git_dirty, device, device_name, driver, libtorch, digests, asked_bytes, free_bytes, \
               host || ' ' || device || ' ' || coalesce(json_extract(environment, '$.CUDA_VISIBLE_DEVICES'), ''), \
               started_at, ended_at \
               FROM runs WHERE run_id = ?1";
    let found = rows(store, sql, [run_id], |row| {
        let run = Run {
            status: row.get(1)?,
            status_detail: row.get(2)?,
            seconds: row.get(3)?,
            step: row.get(4)?,
            tokens: row.get(5)?,
            peak_allocated: row.get(6)?,
            code_version: row.get(7)?,
            git_commit: row.get(8)?,
            git_dirty: row.get(9)?,
            device: row.get(10)?,
            device_name: row.get(11)?,
            driver: row.get(12)?,
            libtorch: row.get(13)?,
            digests: json(row, 14)?,
            asked_bytes: row.get(15)?,
            free_bytes: row.get(16)?,
            device_identity: row.get(17)?,
            started_at: row.get(18)?,
            ended_at: row.get(19)?,
            total_bytes: None,
            params: BTreeMap::new(),
            metrics: BTreeMap::new(),
            perplexity: Vec::new(),
            position_nll: Vec::new(),
            memory: BTreeMap::new(),
            facts: BTreeMap::new(),
            warnings: Vec::new(),
        };
        Ok((row.get::<_, i64>(0)?, run))
    })?;
    let Some((id, mut run)) = found.into_iter().next() else { return Ok(None) };

    let pair = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, json::<Value>(row, 1)?));
    run.params = rows(store, "SELECT key, value FROM params WHERE run = ?1", [id], pair)?
        .into_iter()
        .collect();
    run.facts = rows(store, "SELECT name, value FROM facts WHERE run = ?1", [id], pair)?
        .into_iter()
        .collect();

    let sql = "SELECT step, value FROM metrics WHERE run = ?1 AND key = ?2 ORDER BY step";
    for (key, name) in shown {
        let values = rows(store, sql, [id, *key], |row| Ok((row.get(0)?, number(row, 1)?)))?;
        if !values.is_empty() {
            run.metrics.insert(name.clone(), values);
        }
    }

    let sql = "SELECT split, method, context_length, tokens, nll, nll_low, nll_high, window_nll FROM perplexity \
               WHERE run = ?1 AND step = (SELECT max(step) FROM perplexity WHERE run = ?1) \
               ORDER BY split, method, context_length";
    run.perplexity = rows(store, sql, [id], |row| {
        let windows: Vec<Option<Window>> = json(row, 7)?;
        Ok(Perplexity {
            split: row.get(0)?,
            method: row.get(1)?,
            context_length: row.get(2)?,
            tokens: row.get(3)?,
            nll: number(row, 4)?,
            nll_low: number(row, 5)?,
            nll_high: number(row, 6)?,
            window_nll: windows
                .into_iter()
                .map(|mean| mean.map_or(f64::NAN, |mean| mean.0))
                .collect(),
        })
    })?;

    let sql = "SELECT split, start, \"end\", tokens, nll FROM position_nll \
               WHERE run = ?1 AND step = (SELECT max(step) FROM position_nll WHERE run = ?1) ORDER BY split, start";
    run.position_nll = rows(store, sql, [id], |row| {
        Ok(PositionNll {
            split: row.get(0)?,
            start: row.get(1)?,
            end: row.get(2)?,
            tokens: row.get(3)?,
            nll: number(row, 4)?,
        })
    })?;

    let sql = "SELECT phase, max(peak_allocated) FROM memory WHERE run = ?1 GROUP BY phase";
    run.memory =
        rows(store, sql, [id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?
            .into_iter()
            .collect();

    let sql = "SELECT kind, body FROM events_meta WHERE run = ?1 ORDER BY seq";
    for (kind, body) in
        rows(store, sql, [id], |row| Ok((row.get::<_, String>(0)?, json::<Value>(row, 1)?)))?
    {
        match kind.as_str() {
            "warning" => run.warnings.extend(body["message"].as_str().map(str::to_string)),
            "out_of_memory" => {
                run.total_bytes = body["total"].as_i64();
                // What was held when more was refused: the last step's own peak was never logged.
                let held = run.total_bytes.zip(run.free_bytes).map(|(total, free)| total - free);
                run.peak_allocated = run.peak_allocated.max(held);
            }
            _ => {}
        }
    }
    Ok(Some(run))
}

/// The mean of a window: a number, or the word for one that JSON has none for; null is NaN too.
#[derive(Deserialize)]
struct Window(#[serde(with = "fathom_spec::record::number")] f64);

/// All rows of a query, each read by `read`.
fn rows<T>(
    store: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = store.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}

/// A number of the store: NULL is NaN.
fn number(row: &Row<'_>, column: usize) -> Result<f64> {
    Ok(row.get::<_, Option<f64>>(column)?.unwrap_or(f64::NAN))
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).with_context(|| {
        let name = row.as_ref().column_name(column).unwrap_or("a column");
        format!("{name}: expected JSON, found `{}`", text.chars().take(80).collect::<String>())
    })
}
