//! Whether the store is whole, and says what the logs say.

use super::rebuild::run_folders;
use super::sweeps::{self, SavedSweep};
use super::{Journal, Store, explain, keep, lines, migrate};
use anyhow::Result;
use fathom_spec::record::{RunId, RunPaths};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fmt;

/// Lines that SQLite's own check gives at most.
const SHOWN: usize = 20;

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, or what is to be known.
    pub what: String,
    /// The way out, where there is one to take.
    pub help: Option<String>,
    /// Whether something is wrong.
    pub problem: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.problem { "problem" } else { "note" };
        write!(f, "{kind}: {}", self.what)?;
        self.help.iter().try_for_each(|help| write!(f, "\n  help: {help}"))
    }
}

/// What [`Store::check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    pub found: Vec<Finding>,
    /// Runs whose rows were held against their logs.
    pub compared: usize,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.found.iter().all(|finding| !finding.problem)
    }

    fn problem(&mut self, what: impl Into<String>, help: &str) {
        self.found.push(Finding { what: what.into(), help: Some(help.into()), problem: true });
    }

    fn note(&mut self, what: impl Into<String>, help: Option<&str>) {
        let help = help.map(String::from);
        self.found.push(Finding { what: what.into(), help, problem: false });
    }
}

const REBUILD: &str = "`fathom db rebuild` makes the rows anew from the folders of runs";

impl Store {
    /// Looks at every page, every reference and every summary, and holds each run's rows against its log. Nothing is changed.
    ///
    /// # Errors
    ///
    /// When the database can't be read at all, or the folders can't be listed.
    pub fn check(&self) -> Result<Findings> {
        let mut findings = Findings::default();
        if let Journal::Rollback(_) = self.journal {
            findings.note(self.journal.to_string(), None);
        }
        let path = Store::path(&self.results);
        self.check_pages(&mut findings).map_err(|error| explain::using(&path, error))?;
        // Rows of a file that is damaged say nothing.
        if findings.is_sound() {
            self.check_schema(&mut findings)?;
        }
        if findings.is_sound() {
            self.check_rows(&mut findings)?;
            self.check_logs(&mut findings)?;
            self.check_sweeps(&mut findings)?;
        }
        Ok(findings)
    }

    fn check_pages(&self, findings: &mut Findings) -> Result<()> {
        let lines: Vec<String> =
            self.rows(&format!("PRAGMA integrity_check({SHOWN})"), [], |row| Ok(row.get(0)?))?;
        let help = "`fathom db rebuild` keeps the damaged file aside and makes the database anew from the folders of runs";
        for line in lines.iter().filter(|line| *line != "ok") {
            findings.problem(format!("integrity: {}", line.trim()), help);
        }
        Ok(())
    }

    fn check_schema(&self, findings: &mut Findings) -> Result<()> {
        for what in migrate::differences(&self.connection)? {
            findings.problem(format!("schema: {what}"), REBUILD);
        }
        Ok(())
    }

    fn check_rows(&self, findings: &mut Findings) -> Result<()> {
        let orphans =
            "SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2";
        for (table, parent, rows) in self.rows(orphans, [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
        })? {
            findings.problem(
                format!("{rows} rows of {table} name a row of {parent} that is not there"),
                REBUILD,
            );
        }
        let summaries = "WITH found AS (SELECT run, key, max(step) AS last_step, min(value) AS min, max(value) AS max,
                                       count(*) AS count, count(*) - count(value) AS nan_count FROM metrics GROUP BY run, key)
             SELECT r.run_id, count(*) FROM (
                 SELECT coalesce(s.run, m.run) AS run FROM metric_summaries s FULL JOIN found m ON m.run = s.run AND m.key = s.key
                 WHERE (s.last_step, s.count, s.nan_count) IS NOT (m.last_step, m.count, m.nan_count)
                    OR s.min IS NOT m.min OR s.max IS NOT m.max) d
             JOIN runs r ON r.id = d.run GROUP BY d.run";
        for (run_id, keys) in
            self.rows(summaries, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?
        {
            findings.problem(
                format!("run {run_id}: {keys} summaries of scalars differ from their rows"),
                REBUILD,
            );
        }
        Ok(())
    }

    /// Makes the rows anew in a private database, and compares them.
    fn check_logs(&self, findings: &mut Findings) -> Result<()> {
        let folders = run_folders(&self.results)?;
        let sql = "SELECT run_id, log_offset, last_seq, status = 'planned' FROM runs";
        let known: BTreeMap<String, (u64, i64, bool)> = self
            .rows(sql, [], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?))))?
            .into_iter()
            .collect();
        for name in folders.iter().filter(|name| !known.contains_key(*name)) {
            findings
                .problem(format!("runs/{name}: its folder is there, its rows are not"), REBUILD);
        }
        let (mut gone, mut whole) = (Vec::new(), Vec::new());
        for (run_id, (offset, last_seq, planned)) in &known {
            let paths = RunPaths::in_results(&self.results, &RunId(run_id.clone()));
            if !paths.folder.exists() {
                // A run that has not begun never had one.
                if !planned {
                    gone.push(run_id.as_str());
                }
                continue;
            }
            let length = std::fs::metadata(paths.events()).map_or(0, |file| file.len());
            if length < *offset {
                findings.problem(
                    format!(
                        "run {run_id}: its log has {length} bytes, of which the store has read {offset}: it was cut or made anew"
                    ),
                    REBUILD,
                );
                continue;
            }
            let rest = match lines::read(&paths.events(), *offset) {
                Ok(rest) if rest.follows(*last_seq).is_ok() => rest,
                rest => {
                    // What can't be read at all is named where the rows are made anew.
                    let from_its_beginning = lines::read(&paths.events(), 0);
                    if rest.is_ok() || from_its_beginning.is_ok() {
                        findings.problem(
                            format!("run {run_id}: the store is at byte {offset} and seq {last_seq} of its log, which do not belong together"),
                            REBUILD,
                        );
                    }
                    continue;
                }
            };
            match rest.lines.len() {
                0 => whole.push(run_id.clone()),
                events => findings.note(
                    format!("run {run_id}: {events} events of its log are not in the store yet"),
                    Some("they are read when the run goes on, and by `fathom db rebuild`"),
                ),
            }
            if rest.torn > 0 {
                findings.note(
                    format!("run {run_id}: its log ends within a line, after {} bytes of it", rest.torn),
                    Some("nothing that was acknowledged is missing: a worker that was killed there leaves it, and the next attempt cuts it off"),
                );
            }
        }
        if let [first, ..] = gone[..] {
            findings.note(
                format!("{} runs have no folder any more, {first} first: the store has all that is left of them", gone.len()),
                Some("`fathom db backup FILE` keeps a copy"),
            );
        }
        self.compare(&folders, &whole, findings)
    }

    /// What a sweep is stands in a file too, from which a database that is lost is made anew.
    fn check_sweeps(&self, findings: &mut Findings) -> Result<()> {
        if run_folders(&self.results)?.is_empty() {
            return Ok(());
        }
        let (saved, unread) = sweeps::saved(&self.results);
        for (file, reason) in unread {
            findings.problem(
                format!("{file}: {reason}"),
                "remove it: `fathom db rebuild` writes it again of what the database has",
            );
        }
        for sweep in saved.iter().filter(|saved| !self.has_as_saved(saved)) {
            findings.problem(
                format!(
                    "sweep {}: sweeps/{0}.json makes another one than is there",
                    sweep.sweep.name
                ),
                REBUILD,
            );
        }
        let saved: Vec<&str> = saved.iter().map(|saved| saved.sweep.name.as_str()).collect();
        let mut alone = self.sweeps()?;
        alone.retain(|sweep| !saved.contains(&sweep.name.as_str()));
        if let [first, ..] = &alone[..] {
            findings.note(
                format!(
                    "{} sweeps stand in the database alone, {} first: their files in sweeps/ are not there",
                    alone.len(),
                    first.name
                ),
                Some("`fathom db rebuild` writes them"),
            );
        }
        Ok(())
    }

    fn has_as_saved(&self, saved: &SavedSweep) -> bool {
        let name = &saved.sweep.name;
        self.sweep(name).is_ok_and(|sweep| sweep.as_ref() == Some(&saved.sweep))
            && self.points(name).is_ok_and(|points| points == saved.points)
    }

    fn compare(&self, folders: &[String], whole: &[String], findings: &mut Findings) -> Result<()> {
        if folders.is_empty() {
            return Ok(());
        }
        let private = migrate::carried_forward(&Connection::open("")?)?;
        let results = self.results.clone();
        let journal = self.journal;
        let mut anew = Store { connection: private, results, journal, file: None, private: true };
        let rebuilt = anew.rebuild()?;
        for (name, reason) in rebuilt.problems.iter().chain(&rebuilt.made_of_log) {
            findings.problem(
                format!("runs/{name}: {reason}"),
                "put right what it names, or remove the run's folder to begin it anew",
            );
        }
        let (here, there) = (self.rows_by_run()?, anew.rows_by_run()?);
        for run_id in whole {
            let (Some(made), Some(found)) = (there.get(run_id), here.get(run_id)) else { continue };
            let paths = RunPaths::in_results(&self.results, &RunId(run_id.clone()));
            findings.compared += 1;
            // An earlier version kept verdicts in the database alone, as does who may not write to the folder.
            for what in made.differences(found, paths.verdicts().exists()) {
                findings.problem(format!("run {run_id}: {what}"), REBUILD);
            }
        }
        Ok(())
    }

    /// Bytes of the database with what SQLite keeps beside it.
    pub fn bytes(&self) -> u64 {
        let path = Store::path(&self.results);
        let size = |suffix: &str| {
            std::fs::metadata(keep::beside(&path, suffix)).map_or(0, |file| file.len())
        };
        size("") + size("-wal")
    }
}
