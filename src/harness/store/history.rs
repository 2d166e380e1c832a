//! Reading: a run's attempts, and its scalars in short.

use super::query::{number, parsed};
use super::{Status, Store};
use anyhow::Result;
use fathom_spec::record::RunId;
use rusqlite::Row;
use std::collections::BTreeMap;

/// One attempt at a run. A later one never overwrites it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// 1 for the first, as the worker counts.
    pub attempt: u32,
    pub resumed_from_step: u64,
    pub started_at: f64,
    /// `None` while it runs, and where no ending was logged.
    pub ended_at: Option<f64>,
    pub status: Status,
    pub status_detail: Option<String>,
    /// From its beginning to its last event.
    pub seconds: f64,
    /// How far it got, where that is known.
    pub step: Option<u64>,
    pub host: Option<String>,
    pub pid: Option<u32>,
    pub code_version: Option<String>,
    pub git_commit: Option<String>,
    pub git_dirty: Option<bool>,
    pub device: Option<String>,
    pub device_name: Option<String>,
}

/// A scalar in short. Infinities are numbers here; NaN is only counted.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricSummary {
    pub last: f64,
    pub last_step: u64,
    /// The smallest value with the first step that has it; `None` where every value is NaN.
    pub min: Option<(f64, u64)>,
    pub max: Option<(f64, u64)>,
    /// Steps that have a value, NaN included.
    pub count: u64,
    pub nan_count: u64,
}

impl Store {
    /// Every scalar in short, by key.
    pub fn metric_summaries(&self, run_id: &RunId) -> Result<BTreeMap<String, MetricSummary>> {
        let sql = "SELECT * FROM v_metric_summaries WHERE run_id = ?1";
        let row = |row: &Row| {
            let extreme = |value: &str, step: &str| -> Result<Option<(f64, u64)>> {
                Ok(row.get::<_, Option<f64>>(value)?.zip(row.get::<_, Option<u64>>(step)?))
            };
            let summary = MetricSummary {
                last: number(row, "last")?,
                last_step: row.get("last_step")?,
                min: extreme("min", "min_step")?,
                max: extreme("max", "max_step")?,
                count: row.get("count")?,
                nan_count: row.get("nan_count")?,
            };
            Ok((row.get("key")?, summary))
        };
        Ok(self.rows(sql, [&run_id.0], row)?.into_iter().collect())
    }

    /// Every attempt at a run, first to last.
    pub fn attempts(&self, run_id: &RunId) -> Result<Vec<Attempt>> {
        self.rows(
            "SELECT a.* FROM attempts a JOIN runs r ON r.id = a.run WHERE r.run_id = ?1 ORDER BY a.seq",
            [&run_id.0],
            |row| {
                Ok(Attempt {
                    attempt: row.get("attempt")?,
                    resumed_from_step: row.get("resumed_from_step")?,
                    started_at: row.get("started_at")?,
                    ended_at: row.get("ended_at")?,
                    status: parsed(row, "status")?,
                    status_detail: row.get("status_detail")?,
                    seconds: row.get("seconds")?,
                    step: row.get("step")?,
                    host: row.get("host")?,
                    pid: row.get("pid")?,
                    code_version: row.get("code_version")?,
                    git_commit: row.get("git_commit")?,
                    git_dirty: row.get("git_dirty")?,
                    device: row.get("device")?,
                    device_name: row.get("device_name")?,
                })
            },
        )
    }
}
