//! All runs and sweeps again, from their folders.
//!
//! It is one transaction on the database that is there, so that readers see the old rows until they see the new, and a kill
//! on the way changes nothing. Logs are read on all cores while their rows are written, table by table in the order that the
//! tables have. What is in no folder (sweeps and verdicts of a store that an earlier version wrote, and whatever a later one adds)
//! is not touched, and runs keep their numbers, by which other tables know them. A damaged database is moved aside first, and
//! what can still be read of it is taken over (`salvage`).

use super::curate::Labels;
use super::ingest::apply;
use super::lines::{self, Stretch};
use super::verdict::Verdict;
use super::write::write_run;
use super::{Run, RunRecord, SavedIdentity, Store, explain, keep, migrate, salvage, sweeps};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fathom_spec::config::RunConfig;
use fathom_spec::record::{RunId, RunPaths};
use rayon::prelude::*;
use rusqlite::{Connection, OpenFlags, params};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The tables that are made from the folders, parents last.
pub(super) const FROM_FOLDERS: [&str; 15] = [
    "tags",
    "notes",
    "verdicts",
    "params",
    "metrics",
    "metric_summaries",
    "attempts",
    "perplexity",
    "position_nll",
    "memory",
    "samples",
    "facts",
    "artifacts",
    "events_meta",
    "runs",
];

/// Folders that are read at once, on all cores; so many more wait for the writer.
const BATCH: usize = 16;

/// Memory for pages while everything is written anew, in KiB: each is written once.
const CACHE_KIB: i64 = 256 << 10;

/// What [`Store::rebuild`] did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rebuilt {
    /// Runs that were made anew.
    pub runs: usize,
    /// Events read from their logs.
    pub events: u64,
    /// Folders that could not be read whole: name and reason. The store keeps what it had of them.
    pub problems: Vec<(String, String)>,
    /// Folders whose verdicts or labels could not be read: name and reason. The runs are made of the rest, their logs above all.
    pub made_of_log: Vec<(String, String)>,
    /// Sweeps that were made anew of what is kept beside the runs.
    pub sweeps: usize,
    /// Files of sweeps that could not be read, and why. The store keeps what it had of them.
    pub unread_sweeps: Vec<(String, String)>,
    /// Runs that have no folder any more. The store keeps what it had of them.
    pub kept: Vec<RunId>,
    /// Where the damaged database is now, and what could not be read of it: that is nowhere else.
    pub aside: Option<(PathBuf, Vec<String>)>,
}

/// What only the database knows of its runs.
#[derive(Debug, Default)]
struct Remembered {
    /// The numbers of runs.
    ids: BTreeMap<String, i64>,
    /// Those that have not begun: it is no wonder that they have no folder.
    planned: BTreeSet<String>,
    /// Those that a worker has: id, last event when it was given them. It may have logged nothing of this attempt yet.
    begun: Vec<(String, i64)>,
    /// A supervisor's verdicts on runs: id, last event then, status, detail.
    runs: Vec<(String, i64, String, Option<String>)>,
    /// And on attempts that logged no ending: id, the event that began them, status, detail.
    attempts: Vec<(String, i64, String, Option<String>)>,
}

/// One run's folder, read.
struct Folder {
    identity: SavedIdentity,
    config: RunConfig,
    labels: Result<Labels>,
    verdicts: Result<Vec<Verdict>>,
    stretch: Stretch,
}

impl Store {
    /// Makes the store of a results folder anew from the folders under `runs/`. A database that is damaged, by what it says or
    /// by what it turns out to be on the way, is moved aside.
    ///
    /// # Errors
    ///
    /// When there is no results folder, the database can't be written, is another program's or a newer fathom's, or the folders
    /// can't be listed.
    pub fn rebuild_from_folders(results: &Path) -> Result<Rebuilt> {
        let path = Store::path(results);
        if !path.exists() && !results.join("runs").is_dir() {
            bail!(
                "{}: expected a results folder, found neither runs nor fathom.db in it\n  help: --results names another results folder",
                results.display()
            );
        }
        if !is_damaged(&path) {
            return Store::open(results)?.rebuild();
        }
        let aside = keep::move_aside(&path)?;
        let mut lost = Vec::new();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let old = Connection::open_with_flags(&aside, flags).ok();
        if let Some(old) = &old {
            // Else SQLite reads nothing of a file that is shorter than it says. Where this fails, so does what follows.
            let _ = old.pragma_update(None, "writable_schema", true);
        }
        let mut remembered = Remembered::default();
        let mut store = Store::open(results)?;
        let mut unread = BTreeMap::new();
        if let Some(old) = &old {
            remembered = remember(old, &mut lost);
            unread = salvage::runs(old, &mut store, &remembered.ids)?;
        }
        let mut rebuilt = store.rebuild_as(&remembered)?;
        // What is read of a folder is the truth, whatever the old database says of it.
        let mut stay = remembered.ids.clone();
        for name in run_folders(results)? {
            if rebuilt.problems.iter().all(|(problem, _)| *problem != name) {
                stay.remove(&name);
            }
        }
        unread.retain(|name, _| stay.remove(name).is_some());
        rebuilt.kept.retain(|run_id| !unread.contains_key(&run_id.0));
        if let Some((first, reason)) = unread.first_key_value() {
            lost.push(format!(
                "{} can't be read, and no folder has all of them: {reason}",
                salvage::counted(unread.len(), first)
            ));
        }
        match &old {
            Some(old) => {
                let stay: Vec<_> = stay.iter().map(|(name, id)| (name.as_str(), *id)).collect();
                salvage::rows_of_runs(old, &mut store, &stay, &mut lost)?;
                let (kept, _) = sweeps::saved(results);
                salvage::others(old, &mut store, !kept.is_empty(), &mut lost)?;
                // Newer than what the old database says of them, or the same.
                store.in_transaction(|new| sweeps::restore(new, &kept))?;
                store.write_out()?;
                store.fold_in()?;
            }
            None => lost.push("nothing of it can be read".into()),
        }
        rebuilt.aside = Some((aside, lost));
        Ok(rebuilt)
    }

    /// Makes all runs anew from the folders under `runs/` and all sweeps from `sweeps/`, in one transaction; a sweep that has
    /// no file there stays.
    ///
    /// A folder that can't be read is named among the problems and stops nothing. A supervisor's verdict (`killed`, `lost`,
    /// and what a worker's exit said where it logged no ending) is in the run's folder; one that an earlier version wrote to
    /// the database alone is kept where the log says nothing newer.
    ///
    /// # Errors
    ///
    /// When the database can't be written or the folders can't be listed.
    pub fn rebuild(&mut self) -> Result<Rebuilt> {
        self.hold_file()?;
        let mut unread = Vec::new();
        let remembered = remember(&self.connection, &mut unread);
        if let Some(what) = unread.first() {
            let path = Store::path(&self.results);
            return Err(anyhow!("{}: {what}", path.display()));
        }
        if !self.private {
            // What an earlier version kept here alone, and could not be written when it was carried forward.
            self.write_out()?;
        }
        self.rebuild_as(&remembered)
    }

    fn rebuild_as(&mut self, remembered: &Remembered) -> Result<Rebuilt> {
        // Rows are replaced under the tables that name them, which must not fall with them; and all of it comes from
        // `write_run` and `apply`, which name no row that is not there.
        self.connection.pragma_update(None, "foreign_keys", false)?;
        self.connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let done = self.rebuild_around(remembered);
        self.connection.pragma_update(None, "cache_size", -2000)?;
        self.connection.pragma_update(None, "foreign_keys", true)?;
        let rebuilt = done?;
        self.fold_in()?;
        Ok(rebuilt)
    }

    /// Tries until every folder that has to be kept as it was is known.
    fn rebuild_around(&mut self, remembered: &Remembered) -> Result<Rebuilt> {
        let results = self.results.clone();
        let names = run_folders(&results)?;
        let mut problems = BTreeMap::new();
        loop {
            let known = problems.len();
            let begun = self.in_transaction(|transaction| {
                let done = write_all(transaction, &results, &names, remembered, &mut problems)?;
                ensure!(problems.len() == known, "another folder is to be kept");
                Ok(done)
            });
            match begun {
                Err(_) if problems.len() > known => {}
                done => {
                    let problems = problems.into_iter().collect();
                    return Ok(Rebuilt { problems, ..done? });
                }
            }
        }
    }
}

/// Whether the file is there and is damaged; all of it is looked at.
fn is_damaged(path: &Path) -> bool {
    if !path.exists() {
        return false;
    }
    let look = || -> Result<bool> {
        let connection = keep::open_to_read(path)?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Ok(true);
        }
        // Of an earlier version it is carried forward first.
        let is_todays = migrate::check_ours(&connection, path).is_ok_and(|v| v == migrate::VERSION);
        Ok(is_todays && !migrate::differences(&connection)?.is_empty())
    };
    look().unwrap_or_else(|error| explain::is_damage(&error))
}

/// The names of the folders under `runs/` that hold a run, sorted; none where there is no such folder yet.
pub(super) fn run_folders(results: &Path) -> Result<Vec<String>> {
    let folder = results.join("runs");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder)
        .with_context(|| format!("{}: the folder can't be listed", folder.display()))?
    {
        let paths = RunPaths::new(entry?.path());
        if paths.config().exists() || paths.identity().exists() {
            let name = paths.folder.file_name().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Writes all runs but those that are `problems` already, and adds those that turn out to be.
fn write_all(
    connection: &Connection,
    results: &Path,
    names: &[String],
    remembered: &Remembered,
    problems: &mut BTreeMap<String, String>,
) -> Result<Rebuilt> {
    let readable: BTreeSet<&str> =
        names.iter().map(String::as_str).filter(|name| !problems.contains_key(*name)).collect();
    let stay: Vec<(&str, i64)> = remembered
        .ids
        .iter()
        .map(|(name, id)| (name.as_str(), *id))
        .filter(|(name, _)| !readable.contains(name))
        .collect();
    clear(connection, &stay)?;
    // In the order of their numbers, so that every table grows at its end.
    let mut order: Vec<&str> = readable.into_iter().collect();
    order.sort_by_key(|name| (remembered.ids.get(*name).map_or(i64::MAX, |id| *id), *name));

    let mut rebuilt = Rebuilt::default();
    let (send, receive) = mpsc::sync_channel(BATCH);
    std::thread::scope(|scope| -> Result<()> {
        let order = &order;
        scope.spawn(move || {
            for batch in order.chunks(BATCH) {
                let read: Vec<_> =
                    batch.par_iter().map(|name| read_folder(results, name)).collect();
                for folder in batch.iter().zip(read) {
                    // Whoever writes has given up: there is nobody to read for.
                    if send.send(folder).is_err() {
                        return;
                    }
                }
            }
        });
        for (name, folder) in receive {
            match folder {
                Ok(folder) => {
                    let id = remembered.ids.get(*name).copied();
                    let unread = [folder.verdicts.as_ref().err(), folder.labels.as_ref().err()];
                    let unread: Vec<_> =
                        unread.into_iter().flatten().map(|e| format!("{e:#}")).collect();
                    if !unread.is_empty() {
                        // What the database has of the run tells more than its log alone.
                        if id.is_some() {
                            problems.insert(name.to_string(), unread.join("; "));
                            continue;
                        }
                        rebuilt.made_of_log.push((name.to_string(), unread.join("; ")));
                    }
                    rebuilt.events += write_folder(connection, &folder, id)?;
                    rebuilt.runs += 1;
                }
                Err(error) => {
                    problems.insert(name.to_string(), format!("{error:#}"));
                }
            }
        }
        Ok(())
    })?;
    connection.execute(
        "DELETE FROM metric_keys WHERE id NOT IN (SELECT key FROM metric_summaries)",
        [],
    )?;
    restore_verdicts(connection, remembered)?;
    restore_begun(connection, remembered)?;
    let (kept, unread) = sweeps::saved(results);
    sweeps::restore(connection, &kept)?;
    (rebuilt.sweeps, rebuilt.unread_sweeps) = (kept.len(), unread);
    let gone = stay
        .iter()
        .filter(|(name, _)| !problems.contains_key(*name) && !remembered.planned.contains(*name));
    rebuilt.kept = gone.map(|(name, _)| RunId(name.to_string())).collect();
    Ok(rebuilt)
}

/// Empties the tables, but for the runs that stay as they are.
fn clear(connection: &Connection, stay: &[(&str, i64)]) -> Result<()> {
    for table in FROM_FOLDERS {
        let column = if table == "runs" { "id" } else { "run" };
        match stay {
            // Without a condition SQLite drops whole pages.
            [] => connection.execute(&format!("DELETE FROM {table}"), [])?,
            stay => {
                let ids: Vec<_> = stay.iter().map(|(_, id)| id.to_string()).collect();
                let ids = ids.join(", ");
                let sql = format!("DELETE FROM {table} WHERE {column} NOT IN ({ids})");
                connection.execute(&sql, [])?
            }
        };
    }
    Ok(())
}

fn read_folder(results: &Path, name: &str) -> Result<Folder> {
    let paths = RunPaths::in_results(results, &RunId(name.to_string()));
    let config = RunConfig::read(&paths.config())?;
    let identity = SavedIdentity::read(&paths)?;
    ensure!(
        identity.run_id().0 == name,
        "{}: expected a run_hash that begins with the folder's name, found `{}`",
        paths.identity().display(),
        identity.identity.run_hash
    );
    let labels = Labels::read(&paths);
    let verdicts = Verdict::read_all(&paths);
    Ok(Folder { identity, config, labels, verdicts, stretch: lines::read(&paths.events(), 0)? })
}

/// Writes one run, and says how many events it had.
fn write_folder(connection: &Connection, folder: &Folder, id: Option<i64>) -> Result<u64> {
    let Folder { identity, config, labels, verdicts, stretch } = folder;
    write_run(connection, &RunRecord { identity, config }, id)?;
    let run_id = identity.run_id();
    let run = Run::load(connection, &run_id)?
        .ok_or_else(|| anyhow!("run {run_id}: expected the row that was just written"))?;
    if let Ok(labels) = labels {
        labels.save(connection, &run_id)?;
    }
    let verdicts = verdicts.as_deref().unwrap_or_default();
    Ok(apply(connection, run, stretch, verdicts, false)?.events)
}

/// What only the database knows. Rows after one that can't be read are left out, and `unread` says so.
fn remember(connection: &Connection, unread: &mut Vec<String>) -> Remembered {
    let mut remembered = Remembered::default();
    // By the index of names, which may be whole where a row is not.
    let mut ids = Vec::new();
    each(connection, "runs", "SELECT run_id, id FROM runs", &mut Vec::new(), |row| {
        ids.push((row.get(0)?, row.get(1)?));
        Ok(())
    });
    remembered.ids.extend(ids);
    let of_run = "SELECT run_id, last_seq, status, status_detail, id FROM runs";
    each(connection, "runs", of_run, unread, |row| {
        let (run_id, status): (String, String) = (row.get(0)?, row.get(2)?);
        remembered.ids.insert(run_id.clone(), row.get(4)?);
        if status == "planned" {
            remembered.planned.insert(run_id);
        } else if status == "running" {
            remembered.begun.push((run_id, row.get(1)?));
        } else {
            remembered.runs.push((run_id, row.get(1)?, status, row.get(3)?));
        }
        Ok(())
    });
    let of_attempt = "SELECT r.run_id, a.seq, a.status, a.status_detail FROM attempts a JOIN runs r ON r.id = a.run
                      WHERE a.ended_at IS NULL AND a.status != 'running'";
    each(connection, "attempts", of_attempt, unread, |row| {
        remembered.attempts.push((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        Ok(())
    });
    remembered
}

/// Reads rows one by one; `unread` says where that ended early.
pub(super) fn each(
    connection: &Connection,
    what: &str,
    sql: &str,
    unread: &mut Vec<String>,
    mut read: impl FnMut(&rusqlite::Row) -> rusqlite::Result<()>,
) {
    let mut all = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            read(row)?;
        }
        Ok(())
    };
    if let Err(error) = all() {
        unread.push(format!("{what} can't be read whole: {error}"));
    }
}

/// Of runs whose folder has no verdict: an earlier version kept them in the database alone.
fn restore_verdicts(connection: &Connection, remembered: &Remembered) -> Result<()> {
    for (run_id, last_seq, status, detail) in &remembered.runs {
        connection
            .prepare_cached(
                "UPDATE runs SET status = ?3, status_detail = ?4
                 WHERE run_id = ?1 AND last_seq <= ?2 AND id NOT IN (SELECT run FROM verdicts)
                   AND status IN ('planned', 'running', 'lost')",
            )?
            .execute(params![run_id, last_seq, status, detail])?;
    }
    for (run_id, seq, status, detail) in &remembered.attempts {
        connection
            .prepare_cached(
                "UPDATE attempts SET status = ?3, status_detail = ?4
                 WHERE run = (SELECT id FROM runs WHERE run_id = ?1) AND seq = ?2 AND ended_at IS NULL
                   AND run NOT IN (SELECT run FROM verdicts)",
            )?
            .execute(params![run_id, seq, status, detail])?;
    }
    Ok(())
}

/// Of runs whose worker has said nothing since it was given them.
fn restore_begun(connection: &Connection, remembered: &Remembered) -> Result<()> {
    for (run_id, last_seq) in &remembered.begun {
        connection
            .prepare_cached(
                "UPDATE runs SET status = 'running', status_detail = NULL WHERE run_id = ?1 AND last_seq = ?2",
            )?
            .execute(params![run_id, last_seq])?;
    }
    Ok(())
}
