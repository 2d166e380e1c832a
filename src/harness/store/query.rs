//! Reading: what reports, the sweep driver and the command line ask, as typed rows.
//!
//! A run that is not in the store has no rows: only [`Store::known_run`] and [`Store::find_run`] make that an error. A
//! number that the run could not compute is NaN here and NULL in the database.

use super::{PointRecord, Run, Status, Store, SweepRecord, explain};
use anyhow::{Context, Result, anyhow, bail};
use fathom_spec::config::nearest;
use fathom_spec::record::{EvalMethod, Event, EventKind, RunId, numbers};
use rusqlite::{Params, Row};
use serde_json::Value;
use std::collections::BTreeMap;
use std::str::FromStr;

/// A sweep in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepSummary {
    pub name: String,
    pub file: String,
    pub question: Option<String>,
    pub points: u64,
    /// Points whose run has finished.
    pub finished: u64,
}

/// Perplexity at one context length; the fields are those of the event.
#[derive(Debug, Clone, PartialEq)]
pub struct PerplexityRow {
    pub step: u64,
    pub split: String,
    pub method: EvalMethod,
    pub context_length: u64,
    /// Documents (prefix) or windows (last stride).
    pub windows: u64,
    /// Predictions that count.
    pub tokens: u64,
    /// Mean over `tokens`, in nats.
    pub nll: f64,
    pub perplexity: f64,
    /// 95 % bootstrap interval of `nll` over `windows`.
    pub nll_low: f64,
    pub nll_high: f64,
    /// Mean of each window, in order.
    pub window_nll: Vec<f64>,
}

/// Text that the model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub step: u64,
    pub prompt: String,
    pub text: String,
}

/// A file or folder that a run wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// `checkpoint`.
    pub kind: String,
    pub step: u64,
    /// Relative to the run's folder.
    pub path: String,
    pub bytes: u64,
}

/// A warning of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// Seconds since 1970-01-01 UTC.
    pub time: f64,
    pub message: String,
}

impl Store {
    /// All sweeps by name.
    ///
    /// # Errors
    ///
    /// This and the methods below fail only when the database can't be read, if nothing else is said.
    pub fn sweeps(&self) -> Result<Vec<SweepSummary>> {
        self.rows(
            "SELECT s.name, s.file, s.question, count(p.position) AS points,
                    count(CASE WHEN r.status = 'finished' THEN 1 END) AS finished
             FROM sweeps s LEFT JOIN points p ON p.sweep_id = s.id LEFT JOIN runs r ON r.run_id = p.run_id
             GROUP BY s.id ORDER BY s.name",
            [],
            |row| {
                Ok(SweepSummary {
                    name: row.get("name")?,
                    file: row.get("file")?,
                    question: row.get("question")?,
                    points: row.get("points")?,
                    finished: row.get("finished")?,
                })
            },
        )
    }

    /// A sweep by name.
    pub fn sweep(&self, name: &str) -> Result<Option<SweepRecord>> {
        let sql = "SELECT name, file, question, spec, planned_at FROM sweeps WHERE name = ?1";
        let mut rows = self.rows(sql, [name], |row| {
            Ok(SweepRecord {
                name: row.get("name")?,
                file: row.get("file")?,
                question: row.get("question")?,
                spec: json(row, "spec")?,
                planned_at: row.get("planned_at")?,
            })
        })?;
        Ok(rows.pop())
    }

    /// The points of a sweep, in their order.
    pub fn points(&self, sweep: &str) -> Result<Vec<PointRecord>> {
        self.rows(
            "SELECT p.position, p.label, p.seed, p.settings, p.run_id
             FROM points p JOIN sweeps s ON s.id = p.sweep_id WHERE s.name = ?1 ORDER BY p.position",
            [sweep],
            |row| {
                Ok(PointRecord {
                    position: row.get("position")?,
                    label: row.get("label")?,
                    seed: row.get("seed")?,
                    settings: json(row, "settings")?,
                    run_id: RunId(row.get("run_id")?),
                })
            },
        )
    }

    /// Every run, in the order in which they were made known.
    pub fn runs(&self) -> Result<Vec<Run>> {
        self.rows("SELECT * FROM runs ORDER BY id", [], Run::from_row)
    }

    /// The runs of a sweep that the store knows, each once, in the order of their first points.
    pub fn runs_of_sweep(&self, sweep: &str) -> Result<Vec<Run>> {
        self.rows(
            "SELECT r.* FROM runs r JOIN points p ON p.run_id = r.run_id JOIN sweeps s ON s.id = p.sweep_id
             WHERE s.name = ?1 GROUP BY r.id ORDER BY min(p.position)",
            [sweep],
            Run::from_row,
        )
    }

    /// The sweeps that have the run as a point, with that point.
    pub fn points_of_run(&self, run_id: &RunId) -> Result<Vec<(String, PointRecord)>> {
        let sql = "SELECT DISTINCT s.name FROM sweeps s JOIN points p ON p.sweep_id = s.id WHERE p.run_id = ?1 ORDER BY s.name";
        let mut found = Vec::new();
        for sweep in self.rows(sql, [&run_id.0], |row| Ok(row.get::<_, String>(0)?))? {
            let points = self.points(&sweep)?.into_iter().filter(|point| point.run_id == *run_id);
            found.extend(points.map(|point| (sweep.clone(), point)));
        }
        Ok(found)
    }

    /// A run by its whole id.
    pub fn run(&self, run_id: &RunId) -> Result<Option<Run>> {
        Run::load(&self.connection, run_id).map_err(|error| self.explained(error))
    }

    /// A run by its whole id, which must be there.
    ///
    /// # Errors
    ///
    /// When there is no such run.
    pub fn known_run(&self, run_id: &RunId) -> Result<Run> {
        self.run(run_id)?
            .ok_or_else(|| anyhow!("run {run_id}: expected a run of the store, found none"))
    }

    /// The one run whose id begins with `prefix`.
    ///
    /// # Errors
    ///
    /// When no run's id or more than one does: the message names those that are near.
    pub fn find_run(&self, prefix: &str) -> Result<Run> {
        if prefix.is_empty() {
            bail!("expected the id of a run, or how one begins, found nothing");
        }
        let ids = self
            .rows("SELECT run_id FROM runs ORDER BY run_id", [], |r| Ok(r.get::<_, String>(0)?))?;
        let matching: Vec<&str> =
            ids.iter().map(String::as_str).filter(|id| id.starts_with(prefix)).collect();
        match matching[..] {
            [id] => self.known_run(&RunId(id.to_string())),
            [] => {
                let length = prefix.chars().count();
                let starts = ids.iter().map(|id| id.get(..length).unwrap_or(id));
                let help = match nearest(prefix, starts) {
                    Some(start) => {
                        let near: Vec<_> = ids.iter().filter(|id| id.starts_with(start)).collect();
                        format!("did you mean {}?", shown(&near))
                    }
                    None => "`fathom runs ls` lists them".into(),
                };
                bail!(
                    "run `{prefix}`: expected the id of a run, or how one begins, found none of the {} that does\n  help: {help}",
                    ids.len()
                )
            }
            _ if ids.iter().any(|id| id == prefix) => self.known_run(&RunId(prefix.to_string())),
            _ => bail!(
                "run `{prefix}`: expected how one run's id begins, found {}: {}",
                matching.len(),
                shown(&matching)
            ),
        }
    }

    /// How a run stands.
    pub fn status(&self, run_id: &RunId) -> Result<Option<Status>> {
        let sql = "SELECT status FROM runs WHERE run_id = ?1";
        Ok(self.rows(sql, [&run_id.0], |row| parsed(row, "status"))?.pop())
    }

    /// The complete configuration by key path.
    pub fn params(&self, run_id: &RunId) -> Result<BTreeMap<String, Value>> {
        let sql = "SELECT key, value FROM v_params WHERE run_id = ?1";
        Ok(self
            .rows(sql, [&run_id.0], |row| Ok((row.get("key")?, json(row, "value")?)))?
            .into_iter()
            .collect())
    }

    /// The keys of a run's scalars, sorted: `loss`, `eval_loss.validation`.
    pub fn metric_keys(&self, run_id: &RunId) -> Result<Vec<String>> {
        let sql = "SELECT key FROM v_last_metrics WHERE run_id = ?1 ORDER BY key";
        self.rows(sql, [&run_id.0], |row| Ok(row.get(0)?))
    }

    /// A scalar by step: `(step, value)`.
    pub fn metric(&self, run_id: &RunId, key: &str) -> Result<Vec<(u64, f64)>> {
        self.rows(
            "SELECT m.step, m.value FROM metrics m
             WHERE m.run = (SELECT id FROM runs WHERE run_id = ?1) AND m.key = (SELECT id FROM metric_keys WHERE key = ?2)
             ORDER BY m.step",
            [run_id.0.as_str(), key],
            // By position: a curve has many rows, and a name is looked up in each.
            |row| Ok((row.get(0)?, row.get::<_, Option<f64>>(1)?.unwrap_or(f64::NAN))),
        )
    }

    /// The last `(step, value)` of each scalar.
    pub fn last_metrics(&self, run_id: &RunId) -> Result<BTreeMap<String, (u64, f64)>> {
        let sql = "SELECT key, step, value FROM v_last_metrics WHERE run_id = ?1";
        let row = |row: &Row| Ok((row.get("key")?, (row.get("step")?, number(row, "value")?)));
        Ok(self.rows(sql, [&run_id.0], row)?.into_iter().collect())
    }

    /// Perplexity by context length at the last step that has any; by split, method and context length.
    pub fn perplexity(&self, run_id: &RunId) -> Result<Vec<PerplexityRow>> {
        let mut rows = self.perplexity_by_step(run_id)?;
        let last = rows.iter().map(|row| row.step).max();
        rows.retain(|row| Some(row.step) == last);
        Ok(rows)
    }

    /// As [`Store::perplexity`], of every step.
    pub fn perplexity_by_step(&self, run_id: &RunId) -> Result<Vec<PerplexityRow>> {
        self.rows(
            "SELECT x.* FROM perplexity x JOIN runs r ON r.id = x.run WHERE r.run_id = ?1
             ORDER BY x.step, x.split, x.method, x.context_length",
            [&run_id.0],
            |row| {
                let windows: Vec<Value> = serde_json::from_value(json(row, "window_nll")?)?;
                Ok(PerplexityRow {
                    step: row.get("step")?,
                    split: row.get("split")?,
                    method: serde_json::from_value(row.get::<_, String>("method")?.into())?,
                    context_length: row.get("context_length")?,
                    windows: row.get("windows")?,
                    tokens: row.get("tokens")?,
                    nll: number(row, "nll")?,
                    perplexity: number(row, "perplexity")?,
                    nll_low: number(row, "nll_low")?,
                    nll_high: number(row, "nll_high")?,
                    window_nll: numbers::deserialize(Value::Array(windows))?,
                })
            },
        )
    }

    /// Samples, in the order in which they were written.
    pub fn samples(&self, run_id: &RunId) -> Result<Vec<Sample>> {
        self.rows(
            "SELECT x.* FROM samples x JOIN runs r ON r.id = x.run WHERE r.run_id = ?1 ORDER BY x.seq",
            [&run_id.0],
            |row| {
                let (step, prompt, text) = (row.get("step")?, row.get("prompt")?, row.get("text")?);
                Ok(Sample { step, prompt, text })
            },
        )
    }

    /// What the leaves of the code met, by name.
    pub fn facts(&self, run_id: &RunId) -> Result<BTreeMap<String, Value>> {
        let sql =
            "SELECT x.name, x.value FROM facts x JOIN runs r ON r.id = x.run WHERE r.run_id = ?1";
        Ok(self
            .rows(sql, [&run_id.0], |row| Ok((row.get("name")?, json(row, "value")?)))?
            .into_iter()
            .collect())
    }

    /// Files that the run wrote, in their order; a checkpoint may have been replaced by a later one since.
    pub fn artifacts(&self, run_id: &RunId) -> Result<Vec<Artifact>> {
        self.rows(
            "SELECT x.* FROM artifacts x JOIN runs r ON r.id = x.run WHERE r.run_id = ?1 ORDER BY x.seq",
            [&run_id.0],
            |row| {
                Ok(Artifact {
                    kind: row.get("kind")?,
                    step: row.get("step")?,
                    path: row.get("path")?,
                    bytes: row.get("bytes")?,
                })
            },
        )
    }

    /// The events of one kind (`started`, `warning`, `control` or an ending), of all attempts in order.
    pub fn events(&self, run_id: &RunId, kind: &str) -> Result<Vec<Event>> {
        self.rows(
            "SELECT x.body FROM events_meta x JOIN runs r ON r.id = x.run
             WHERE r.run_id = ?1 AND x.kind = ?2 ORDER BY x.seq",
            [run_id.0.as_str(), kind],
            |row| Ok(serde_json::from_str(&row.get::<_, String>("body")?)?),
        )
    }

    /// The run's warnings, of all attempts in order.
    pub fn warnings(&self, run_id: &RunId) -> Result<Vec<Warning>> {
        let events = self.events(run_id, "warning")?.into_iter();
        Ok(events
            .filter_map(|event| match event.kind {
                EventKind::Warning { message } => Some(Warning { time: event.time, message }),
                _ => None,
            })
            .collect())
    }

    /// Adds the way out to an error of the database.
    pub(crate) fn explained(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        explain::using(&Store::path(self.results()), error.into())
    }

    pub(super) fn rows<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|e| self.explained(e))?;
        let rows = statement.query_and_then(values, read).map_err(|e| self.explained(e))?;
        rows.map(|row| row.map_err(|e| self.explained(e))).collect()
    }
}

/// JSON text of numbers that may be NaN or infinite.
pub(super) fn numbers_to_json(values: &[f64]) -> String {
    let value = numbers::serialize(values, serde_json::value::Serializer);
    value.expect("a list of numbers is plain data").to_string()
}

pub(super) fn json(row: &Row, column: &str) -> Result<Value> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).with_context(|| format!("{column}: expected JSON, found `{text}`"))
}

pub(super) fn parsed<T: FromStr<Err = String>>(row: &Row, column: &str) -> Result<T> {
    row.get::<_, String>(column)?.parse().map_err(|message| anyhow!("{column}: {message}"))
}

/// NULL is NaN.
pub(super) fn number(row: &Row, column: &str) -> Result<f64> {
    Ok(row.get::<_, Option<f64>>(column)?.unwrap_or(f64::NAN))
}

/// The first few of a list of ids, in backticks.
fn shown(ids: &[impl std::fmt::Display]) -> String {
    let few: Vec<_> = ids.iter().take(5).map(|id| format!("`{id}`")).collect();
    let more = if ids.len() > few.len() { ", ..." } else { "" };
    format!("{}{more}", few.join(", "))
}
