//! What people do to runs by hand: they label them, and they remove them.
//!
//! Labels live in `labels.json` of the run's folder; the store has them too, and takes them in again when it is rebuilt.

use super::Store;
use anyhow::{Context, Result, ensure};
use fathom_spec::record::{RunId, RunPaths, read_json, write_whole};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The tags and the note of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    #[serde(default)]
    pub tags: BTreeSet<String>,
    #[serde(default)]
    pub note: Option<String>,
}

impl Labels {
    /// Whether nobody has said anything.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.note.is_none()
    }

    /// Reads those of a run's folder: none where there is no such file.
    ///
    /// # Errors
    ///
    /// When the file can't be read or is not what [`Labels::write`] writes.
    pub fn read(paths: &RunPaths) -> Result<Labels> {
        let there = read_json(&paths.labels(), "a run's tags and note as JSON")?;
        Ok(there.unwrap_or_default())
    }

    /// Writes them into a run's folder, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the folder is not there or can't be written to.
    pub fn write(&self, paths: &RunPaths) -> Result<()> {
        ensure!(
            paths.folder.is_dir(),
            "{}: expected the run's folder, which keeps its tags and note, found none",
            paths.folder.display()
        );
        let text = serde_json::to_string_pretty(self)? + "\n";
        write_whole(&paths.labels(), text.as_bytes())
    }

    /// Puts them in place of those that the store has of a run.
    pub(super) fn save(&self, connection: &Connection, run_id: &RunId) -> Result<()> {
        let id: i64 = connection
            .query_row("SELECT id FROM runs WHERE run_id = ?1", [&run_id.0], |row| row.get(0))
            .with_context(|| format!("run {run_id}: expected a run of the store"))?;
        connection.execute("DELETE FROM tags WHERE run = ?1", [id])?;
        connection.execute("DELETE FROM notes WHERE run = ?1", [id])?;
        for tag in &self.tags {
            connection.execute("INSERT INTO tags (run, tag) VALUES (?1, ?2)", params![id, tag])?;
        }
        if let Some(note) = &self.note {
            connection
                .execute("INSERT INTO notes (run, text) VALUES (?1, ?2)", params![id, note])?;
        }
        Ok(())
    }
}

impl Store {
    /// The labels of every run that has any.
    ///
    /// # Errors
    ///
    /// When the database can't be read.
    pub fn labels(&self) -> Result<BTreeMap<RunId, Labels>> {
        let mut labels: BTreeMap<RunId, Labels> = BTreeMap::new();
        let mut tags = self
            .connection
            .prepare_cached("SELECT run_id, tag FROM tags JOIN runs ON runs.id = tags.run")?;
        for row in tags.query_map([], |row| Ok((RunId(row.get(0)?), row.get(1)?)))? {
            let (run_id, tag) = row?;
            labels.entry(run_id).or_default().tags.insert(tag);
        }
        let mut notes = self
            .connection
            .prepare_cached("SELECT run_id, text FROM notes JOIN runs ON runs.id = notes.run")?;
        for row in notes.query_map([], |row| Ok((RunId(row.get(0)?), row.get(1)?)))? {
            let (run_id, note) = row?;
            labels.entry(run_id).or_default().note = Some(note);
        }
        Ok(labels)
    }

    /// Gives a run other labels: in its folder first, then here.
    ///
    /// # Errors
    ///
    /// When the run's folder is not there, or either place can't be written.
    pub fn set_labels(&mut self, run_id: &RunId, labels: &Labels) -> Result<()> {
        labels.write(&RunPaths::in_results(&self.results, run_id))?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        labels.save(&transaction, run_id)?;
        transaction.commit()?;
        Ok(())
    }

    /// Removes a run with all its rows; points of sweeps that name it stay, as points without a run. Says whether it was there.
    ///
    /// # Errors
    ///
    /// When the database can't be written.
    pub fn remove_run(&mut self, run_id: &RunId) -> Result<bool> {
        let sql = "DELETE FROM runs WHERE run_id = ?1 RETURNING id";
        let removed: Option<i64> =
            self.connection.query_row(sql, [&run_id.0], |row| row.get(0)).optional()?;
        Ok(removed.is_some())
    }
}
