//! The row of a run: what it is, how it stands, and how both are read and written back.

use super::Status;
use super::query::{json, parsed};
use anyhow::Result;
use fathom_spec::config::Digests;
use fathom_spec::record::RunId;
use rusqlite::{Connection, Row, params};
use serde_json::Value;
use std::collections::BTreeMap;

/// The row of a run: its identity, and how it stands. Fields from `attempt` on are of the last attempt, if not said otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub(super) id: i64,
    pub run_id: RunId,
    pub run_hash: String,
    /// The same for all seeds of a point.
    pub group_hash: String,
    /// Relative to the results folder.
    pub folder: String,
    /// The complete configuration.
    pub config: Value,
    pub digests: Digests,
    pub seed: u64,
    /// Seconds since 1970-01-01 UTC, as all times here.
    pub created_at: f64,
    pub status: Status,
    /// The error, the signal, what was asked of memory and what was free.
    pub status_detail: Option<String>,
    /// 0 before the first.
    pub attempt: u32,
    pub started_at: Option<f64>,
    pub ended_at: Option<f64>,
    /// Over all attempts.
    pub seconds: f64,
    /// Of `seconds`, those before the last attempt.
    pub earlier_seconds: f64,
    pub step: u64,
    pub tokens: u64,
    /// `None` before the first step, and when it is NaN.
    pub last_loss: Option<f64>,
    /// The highest of any step or phase of any attempt, in bytes.
    pub peak_allocated: Option<u64>,
    pub peak_reserved: Option<u64>,
    pub code_version: Option<String>,
    pub git_commit: Option<String>,
    pub git_dirty: Option<bool>,
    pub host: Option<String>,
    /// `cpu` or `cuda:0`.
    pub device: Option<String>,
    pub device_name: Option<String>,
    pub driver: Option<String>,
    pub libtorch: Option<String>,
    pub threads: Option<u64>,
    pub environment: Option<BTreeMap<String, String>>,
    /// Out of memory: bytes asked for.
    pub asked_bytes: Option<u64>,
    /// Out of memory: bytes that were free.
    pub free_bytes: Option<u64>,
    /// Bytes of the event log that the store has.
    pub log_offset: u64,
    /// The last event that the store has; -1 when it has none.
    pub last_seq: i64,
}

impl Run {
    pub(super) fn load(connection: &Connection, run_id: &RunId) -> Result<Option<Run>> {
        let mut statement = connection.prepare_cached("SELECT * FROM runs WHERE run_id = ?1")?;
        let mut rows = statement.query([&run_id.0])?;
        rows.next()?.map(Run::from_row).transpose()
    }

    pub(super) fn from_row(row: &Row) -> Result<Run> {
        let environment: Option<String> = row.get("environment")?;
        Ok(Run {
            id: row.get("id")?,
            run_id: RunId(row.get("run_id")?),
            run_hash: row.get("run_hash")?,
            group_hash: row.get("group_hash")?,
            folder: row.get("folder")?,
            config: json(row, "config")?,
            digests: serde_json::from_value(json(row, "digests")?)?,
            seed: row.get("seed")?,
            created_at: row.get("created_at")?,
            status: parsed(row, "status")?,
            status_detail: row.get("status_detail")?,
            attempt: row.get("attempt")?,
            started_at: row.get("started_at")?,
            ended_at: row.get("ended_at")?,
            seconds: row.get("seconds")?,
            earlier_seconds: row.get("earlier_seconds")?,
            step: row.get("step")?,
            tokens: row.get("tokens")?,
            last_loss: row.get("last_loss")?,
            peak_allocated: row.get("peak_allocated")?,
            peak_reserved: row.get("peak_reserved")?,
            code_version: row.get("code_version")?,
            git_commit: row.get("git_commit")?,
            git_dirty: row.get("git_dirty")?,
            host: row.get("host")?,
            device: row.get("device")?,
            device_name: row.get("device_name")?,
            driver: row.get("driver")?,
            libtorch: row.get("libtorch")?,
            threads: row.get("threads")?,
            environment: environment.map(|text| serde_json::from_str(&text)).transpose()?,
            asked_bytes: row.get("asked_bytes")?,
            free_bytes: row.get("free_bytes")?,
            log_offset: row.get("log_offset")?,
            last_seq: row.get("last_seq")?,
        })
    }

    /// The run as it was before its first event.
    pub(super) fn planned(self) -> Run {
        Run {
            status: Status::Planned,
            status_detail: None,
            attempt: 0,
            started_at: None,
            ended_at: None,
            seconds: 0.0,
            earlier_seconds: 0.0,
            step: 0,
            tokens: 0,
            last_loss: None,
            peak_allocated: None,
            peak_reserved: None,
            code_version: None,
            git_commit: None,
            git_dirty: None,
            host: None,
            device: None,
            device_name: None,
            driver: None,
            libtorch: None,
            threads: None,
            environment: None,
            asked_bytes: None,
            free_bytes: None,
            log_offset: 0,
            last_seq: -1,
            ..self
        }
    }

    pub(super) fn raise_peaks(&mut self, allocated: u64, reserved: u64) {
        self.peak_allocated = self.peak_allocated.max(Some(allocated));
        self.peak_reserved = self.peak_reserved.max(Some(reserved));
    }

    /// Writes back how the run stands; its identity never changes.
    pub(super) fn save(&self, connection: &Connection) -> Result<()> {
        let environment = self.environment.as_ref().map(serde_json::to_string).transpose()?;
        connection
            .prepare_cached(
                "UPDATE runs SET status = ?2, status_detail = ?3, attempt = ?4, started_at = ?5, ended_at = ?6,
                   seconds = ?7, earlier_seconds = ?8, step = ?9, tokens = ?10, last_loss = ?11, peak_allocated = ?12,
                   peak_reserved = ?13, code_version = ?14, git_commit = ?15, git_dirty = ?16, host = ?17, device = ?18,
                   device_name = ?19, driver = ?20, libtorch = ?21, threads = ?22, environment = ?23, asked_bytes = ?24,
                   free_bytes = ?25, log_offset = ?26, last_seq = ?27
                 WHERE id = ?1",
            )?
            .execute(params![
                self.id,
                self.status.name(),
                self.status_detail,
                self.attempt,
                self.started_at,
                self.ended_at,
                self.seconds,
                self.earlier_seconds,
                self.step,
                self.tokens,
                self.last_loss,
                self.peak_allocated,
                self.peak_reserved,
                self.code_version,
                self.git_commit,
                self.git_dirty,
                self.host,
                self.device,
                self.device_name,
                self.driver,
                self.libtorch,
                self.threads,
                environment,
                self.asked_bytes,
                self.free_bytes,
                self.log_offset,
                self.last_seq,
            ])?;
        Ok(())
    }
}
