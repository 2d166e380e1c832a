//! Reading: a run's attempts.

use super::query::parsed;
use super::{Status, Store};
use anyhow::Result;
use fathom_spec::record::RunId;

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

impl Store {
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
