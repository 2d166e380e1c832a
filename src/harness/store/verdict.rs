//! How a run stands by its supervisor's word: that a worker has it, and how an attempt ended that did not say so itself.
//!
//! A verdict is written to `verdicts.json` of the run's folder first, with the last event that was there then, and counts from
//! that moment: whoever takes in the log takes in the verdicts at their places between its events. A harness that is killed
//! between the file and the row loses nothing, and a store that is made anew has the same rows.

use super::ingest::{Writer, apply};
use super::lines::{self, Stretch};
use super::write::write_config;
use super::{Run, RunRecord, Status, Store};
use anyhow::{Context, Result, anyhow};
use fathom_spec::record::{RunId, RunPaths, read_json, write_durably};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// What a supervisor found of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// The last event of the log then; -1 where there was none.
    pub after_seq: i64,
    pub status: Status,
    pub detail: Option<String>,
}

impl Verdict {
    /// Those of a run's folder, first to last: none where there is no such file.
    pub fn read_all(paths: &RunPaths) -> Result<Vec<Verdict>> {
        let there = read_json(&paths.verdicts(), "the verdicts on a run as JSON")?;
        Ok(there.unwrap_or_default())
    }

    /// Puts these in place of those that a run's folder has.
    pub fn write_all(verdicts: &[Verdict], paths: &RunPaths) -> Result<()> {
        let text = serde_json::to_string_pretty(verdicts)? + "\n";
        write_durably(&paths.verdicts(), text.as_bytes())
    }
}

/// Those that the store has of a run.
pub(super) fn known(connection: &Connection, run: i64) -> Result<Vec<Verdict>> {
    let mut statement = connection.prepare_cached(
        "SELECT after_seq, status, status_detail FROM verdicts WHERE run = ?1 ORDER BY number",
    )?;
    let rows = statement.query_and_then([run], |row| {
        let status = super::query::parsed(row, "status")?;
        Ok(Verdict { after_seq: row.get(0)?, status, detail: row.get(2)? })
    })?;
    rows.collect()
}

/// What the log no longer has, no verdict is about: drops those on a log that was removed, before another is begun.
///
/// # Errors
///
/// When the file can't be written.
pub fn forget_verdicts(paths: &RunPaths) -> Result<()> {
    let is_empty = std::fs::metadata(paths.events()).map_or(true, |log| log.len() == 0);
    if !is_empty || !paths.verdicts().exists() {
        return Ok(());
    }
    let all = Verdict::read_all(paths).unwrap_or_default();
    let kept: Vec<Verdict> = all.iter().filter(|verdict| verdict.after_seq < 0).cloned().collect();
    if kept == all { Ok(()) } else { Verdict::write_all(&kept, paths) }
}

impl Store {
    /// Records what the supervisor found of a run that did not end by its own word: in its folder first, then here.
    ///
    /// # Errors
    ///
    /// When the store has no such run, or either place can't be written.
    pub fn set_status(
        &mut self,
        run_id: &RunId,
        status: Status,
        detail: Option<&str>,
    ) -> Result<()> {
        self.hold_file()?;
        let run = self.known_run(run_id)?;
        let detail = detail.map(str::to_string);
        let verdict = Verdict { after_seq: run.last_seq, status, detail };
        let paths = RunPaths::in_results(&self.results, run_id);
        let is_kept = !self.private && paths.folder.is_dir();
        let before = match is_kept {
            true => kept_in(&paths)?,
            false => known(&self.connection, run.id)?,
        };
        let all = [&before[..], &[verdict]].concat();
        let done = self.in_transaction(|transaction| {
            let run = load(transaction, run_id)?;
            // The folder's are the truth: others that are counted here are of a log that is no more.
            transaction.execute(
                "DELETE FROM verdicts WHERE run = ?1 AND number >= ?2",
                params![run.id, before.len()],
            )?;
            let nothing = Stretch { lines: Vec::new(), end: run.log_offset, torn: 0 };
            apply(transaction, run, &nothing, &all, false)?;
            // Before the row counts, and not where the row can't be written.
            if is_kept { Verdict::write_all(&all, &paths) } else { Ok(()) }
        });
        if done.is_err() && is_kept {
            // Who can't write the one may not be able to write the other either; what stays is a verdict all the same.
            let _ = match before.is_empty() {
                true => std::fs::remove_file(paths.verdicts()).map_err(Into::into),
                false => Verdict::write_all(&before, &paths),
            };
        }
        done
    }

    /// Whether a run's log has, beyond what is read of it, a line that is no event or not the next one.
    ///
    /// # Errors
    ///
    /// When the store has no such run.
    pub fn has_damaged_log(&self, run_id: &RunId) -> Result<bool> {
        let run = self.known_run(run_id)?;
        let log = RunPaths::in_results(&self.results, run_id).events();
        let rest = lines::read(&log, run.log_offset);
        Ok(rest.and_then(|stretch| stretch.follows(run.last_seq)).is_err())
    }

    /// Records that a worker has a run, with the configuration of this attempt, unless the worker has said more since the event
    /// `last_seq`, which was the last before it began.
    ///
    /// # Errors
    ///
    /// When the store has no such run, or can't be written.
    pub fn begin_run(&mut self, run: &RunRecord, last_seq: i64) -> Result<()> {
        self.hold_file()?;
        let run_id = run.identity.run_id();
        self.in_transaction(|transaction| {
            let mut known = load(transaction, &run_id)?;
            let config = run.config.to_json();
            if known.config != config {
                write_config(transaction, known.id, run.config)?;
            }
            // Somebody else may have taken in its log already, to the end.
            if known.last_seq == last_seq {
                known.status = Status::Running;
                known.status_detail = None;
            }
            known.save(transaction)
        })
    }

    /// Gives a run that a worker had, and that ended before it said anything of this attempt, its last attempt's word back.
    ///
    /// # Errors
    ///
    /// When the store has no such run, or can't be written.
    pub fn take_back(&mut self, run_id: &RunId) -> Result<()> {
        self.hold_file()?;
        self.in_transaction(|transaction| {
            let run = load(transaction, run_id)?;
            transaction.execute(
                "UPDATE runs SET (status, status_detail) =
                   (SELECT status, status_detail FROM attempts WHERE run = ?1 ORDER BY seq DESC LIMIT 1)
                 WHERE id = ?1 AND EXISTS (SELECT 1 FROM attempts WHERE run = ?1)",
                [run.id],
            )?;
            Ok(())
        })
    }
}

/// The verdicts of a run's folder. A file that can't be understood is kept under another name, and not written over.
fn kept_in(paths: &RunPaths) -> Result<Vec<Verdict>> {
    Verdict::read_all(paths).or_else(|_| {
        let file = paths.verdicts();
        std::fs::rename(&file, file.with_extension("json.broken"))
            .with_context(|| format!("{}: can't be moved aside", file.display()))?;
        Ok(Vec::new())
    })
}

fn load(connection: &Connection, run_id: &RunId) -> Result<Run> {
    Run::load(connection, run_id)?
        .ok_or_else(|| anyhow!("run {run_id}: expected a run of the store, found none"))
}

impl Writer<'_> {
    /// Takes in the verdict that is `number` of its run's, when all events before it are.
    pub(super) fn judge(&self, number: usize, verdict: &Verdict, run: &mut Run) -> Result<()> {
        let Verdict { after_seq, status, detail } = verdict;
        self.execute(
            "INSERT OR REPLACE INTO verdicts (run, number, after_seq, status, status_detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![run.id, number, after_seq, status.name(), detail],
        )?;
        // It is about a log that is no more.
        if *after_seq > run.last_seq {
            return Ok(());
        }
        let another_began: bool = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM attempts WHERE run = ?1 AND seq > ?2)")?
            .query_row(params![run.id, after_seq], |row| row.get(0))?;
        // An attempt that said how it ended keeps its word. One that the next found without any gets it late.
        self.execute(
            "UPDATE attempts SET status = ?3, status_detail = ?4
             WHERE run = ?1 AND seq = (SELECT max(seq) FROM attempts WHERE run = ?1 AND seq <= ?2) AND ended_at IS NULL
               AND (status = 'running' OR ?5 AND status = 'lost' AND status_detail IS NULL)",
            params![run.id, after_seq, status.name(), detail, another_began],
        )?;
        let nothing_since = *after_seq == run.last_seq || run.status == Status::Running;
        if !another_began && nothing_since {
            run.status = *status;
            run.status_detail = detail.clone();
        }
        Ok(())
    }
}
