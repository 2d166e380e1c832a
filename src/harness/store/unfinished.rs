//! Reading: the runs of which the store may not have heard the last, and how far those of a sweep are.

use super::write::RUNS_EVER;
use super::{Status, Store, verdict};
use anyhow::Result;
use fathom_spec::record::{RunId, RunPaths};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// A run that is not finished, and what the store has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub run_id: RunId,
    pub status: Status,
    /// Bytes of its log that are in the store.
    pub log_offset: u64,
}

/// What a run has taken, and what the store has of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    pub run_id: RunId,
    pub status: Status,
    /// 0 for a run that has not begun.
    pub attempt: u32,
    pub seconds: f64,
    pub tokens: u64,
    /// `train.total_tokens`, which the last step may go beyond.
    pub total_tokens: u64,
    /// Bytes of its log that are in the store.
    pub log_offset: u64,
}

impl Store {
    /// The runs that the store does not call finished; by an index, however many there are that are.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let sql = "SELECT run_id, status, log_offset FROM runs WHERE status != 'finished'";
        self.rows(sql, [], |row| {
            Ok(Unfinished {
                run_id: RunId(row.get(0)?),
                status: super::query::parsed(row, "status")?,
                log_offset: row.get(2)?,
            })
        })
    }

    /// How the runs of a sweep's points stand, and how many tokens each has seen.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn progress_of_sweep(&self, sweep: &str) -> Result<HashMap<RunId, (Status, u64)>> {
        let sql =
            "SELECT r.run_id, r.status, r.tokens FROM points p JOIN sweeps s ON s.id = p.sweep_id
                   JOIN runs r ON r.run_id = p.run_id WHERE s.name = ?1";
        let rows = self.rows(sql, [sweep], |row| {
            let status = super::query::parsed(row, "status")?;
            Ok((RunId(row.get("run_id")?), (status, row.get("tokens")?)))
        })?;
        Ok(rows.into_iter().collect())
    }

    /// What the runs that a sweep has or had as points took, as far as they are in the store.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn taken_by_sweep(&self, sweep: &str) -> Result<Vec<Taken>> {
        let sql = format!(
            "SELECT run_id, status, attempt, seconds, tokens, CAST(coalesce(p.number, tokens) AS INTEGER), log_offset
             FROM runs LEFT JOIN params p ON p.run = runs.id AND p.key = 'train.total_tokens'
             WHERE run_id IN ({RUNS_EVER}) ORDER BY id"
        );
        self.rows(&sql, [sweep], |row| {
            Ok(Taken {
                run_id: RunId(row.get(0)?),
                status: super::query::parsed(row, "status")?,
                attempt: row.get(2)?,
                seconds: row.get(3)?,
                tokens: row.get(4)?,
                total_tokens: row.get(5)?,
                log_offset: row.get(6)?,
            })
        })
    }

    /// Whether a run's folder has events or verdicts that the store has not.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn lags(&self, run: &Unfinished) -> Result<bool> {
        let paths = RunPaths::in_results(&self.results, &run.run_id);
        let log = length(&paths);
        if log > run.log_offset && has_a_whole_line(&paths, run.log_offset) {
            return Ok(true);
        }
        if log < run.log_offset || !paths.verdicts().exists() {
            return Ok(false);
        }
        let there = verdict::Verdict::read_all(&paths).unwrap_or_default().len();
        let known =
            "SELECT count(*) FROM verdicts v JOIN runs r ON r.id = v.run WHERE r.run_id = ?1";
        let known: usize = self.connection.query_row(known, [&run.run_id.0], |row| row.get(0))?;
        Ok(there > known)
    }
}

impl Unfinished {
    /// Whether the log is not the one that was read, or has been cut: then the store has what no folder has.
    pub fn is_cut(&self, paths: &RunPaths) -> bool {
        length(paths) < self.log_offset
    }
}

fn length(paths: &RunPaths) -> u64 {
    std::fs::metadata(paths.events()).map_or(0, |file| file.len())
}

/// A line that a killed worker left half written is nothing to take in.
fn has_a_whole_line(paths: &RunPaths, offset: u64) -> bool {
    let mut rest = Vec::new();
    let read = File::open(paths.events()).and_then(|mut log| {
        log.seek(SeekFrom::Start(offset))?;
        log.read_to_end(&mut rest)
    });
    read.is_ok() && rest.contains(&b'\n')
}
