//! What a sweep is, beside its runs: `sweeps/<name>.json` holds its row and its points.
//!
//! It is written before the rows are, whole, so that a database that is lost can be made again of folders alone.

use super::verdict::{self, Verdict};
use super::write::{PointRecord, SweepRecord, write_sweep};
use super::{Run, Store};
use anyhow::{Context, Result, ensure};
use fathom_spec::record::{RunPaths, SweepPaths, write_durably};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedSweep {
    #[serde(flatten)]
    pub sweep: SweepRecord,
    pub points: Vec<PointRecord>,
}

impl SavedSweep {
    pub fn write(&self, results: &Path) -> Result<()> {
        let paths = SweepPaths::in_results(results, &self.sweep.name);
        let folder = SweepPaths::folder(results);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("{}: the folder can't be made", folder.display()))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        write_durably(&paths.record(), text.as_bytes())
    }

    /// That of a results folder; none where there is no such file.
    pub fn of(results: &Path, name: &str) -> Result<Option<SavedSweep>> {
        let path = SweepPaths::in_results(results, name).record();
        if path.exists() { SavedSweep::read(&path).map(Some) } else { Ok(None) }
    }

    fn read(path: &Path) -> Result<SavedSweep> {
        let context = || format!("{}: expected a sweep as JSON", path.display());
        let text = std::fs::read(path).with_context(context)?;
        let saved: SavedSweep = serde_json::from_slice(&text).with_context(context)?;
        let named = path.file_stem().unwrap_or_default().to_string_lossy();
        ensure!(
            saved.sweep.name == named,
            "{}: expected the sweep `{named}`, found `{}`",
            path.display(),
            saved.sweep.name
        );
        Ok(saved)
    }
}

/// The sweeps that a results folder keeps, those planned first before others; and what can't be read, by file.
pub(super) fn saved(results: &Path) -> (Vec<SavedSweep>, Vec<(String, String)>) {
    let entries = std::fs::read_dir(SweepPaths::folder(results)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    files.sort();
    let (mut sweeps, mut problems) = (Vec::new(), Vec::new());
    for path in files {
        match SavedSweep::read(&path) {
            Ok(saved) => sweeps.push(saved),
            Err(error) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                problems.push((format!("sweeps/{name}"), format!("{error:#}")));
            }
        }
    }
    sweeps.sort_by(|a, b| a.sweep.planned_at.total_cmp(&b.sweep.planned_at));
    (sweeps, problems)
}

/// Puts the sweeps that the folder keeps in place of those of their names.
pub(super) fn restore(connection: &Connection, sweeps: &[SavedSweep]) -> Result<()> {
    sweeps.iter().try_for_each(|saved| write_sweep(connection, &saved.sweep, &saved.points))
}

impl Store {
    /// Writes beside the runs what earlier versions kept in the database alone: sweeps, and verdicts on runs. What is there
    /// already stays.
    ///
    /// # Errors
    ///
    /// When the database can't be read or a file can't be written.
    pub(super) fn write_out(&self) -> Result<()> {
        for summary in self.sweeps()? {
            let paths = SweepPaths::in_results(&self.results, &summary.name);
            if paths.record().exists() {
                continue;
            }
            let Some(sweep) = self.sweep(&summary.name)? else { continue };
            SavedSweep { points: self.points(&summary.name)?, sweep }.write(&self.results)?;
        }
        let judged = "SELECT * FROM runs WHERE id IN (SELECT run FROM verdicts)";
        for run in self.rows(judged, [], Run::from_row)? {
            let paths = RunPaths::in_results(&self.results, &run.run_id);
            if paths.folder.is_dir() && !paths.verdicts().exists() {
                Verdict::write_all(&verdict::known(&self.connection, run.id)?, &paths)?;
            }
        }
        Ok(())
    }
}
