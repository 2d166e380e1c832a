//! Which code made a run. The code is no part of a run's identity (most changes move no number), so whoever compares runs has to be
//! told where it changed.

use crate::store::{Run, Store};
use anyhow::{Result, bail};
use fathom_spec::record::RunId;
use serde::Deserialize;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The facts under which a worker records the digest of its uncommitted changes, and what it could not record.
pub const DIFF: &str = "provenance.git_diff";
pub const NOT_CAPTURED: &str = "provenance.not_captured";

/// How long a worker may take to say what it was built from.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker was built from. `PROGRAM version` prints it as JSON; a run's events say it of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Code {
    pub code_version: String,
    #[serde(default)]
    pub git_commit: Option<String>,
    #[serde(default)]
    pub git_dirty: Option<bool>,
    /// A digest of the changes that were not committed.
    #[serde(default)]
    pub git_diff: Option<String>,
}

/// A result that other code made than today's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeByOther {
    pub label: String,
    pub seed: u64,
    pub run_id: RunId,
    pub code: Code,
}

impl Code {
    /// What a worker says of itself; nothing when it is a program that does not.
    pub fn of_worker(worker: &Path) -> Option<Code> {
        let mut command = Command::new(worker);
        command.arg("version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let mut stdout = child.stdout.take()?;
        let reader = std::thread::spawn(move || {
            let mut answer = Vec::new();
            stdout.read_to_end(&mut answer).map(|_| answer)
        });
        let begun = Instant::now();
        let exit = loop {
            match child.try_wait().ok()? {
                Some(exit) => break exit,
                None if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                // It took the word for something else.
                None => {
                    child.kill().ok()?;
                    child.wait().ok()?;
                    return None;
                }
            }
        };
        let answer = reader.join().ok()?.ok().filter(|_| exit.success())?;
        serde_json::from_slice(&answer).ok()
    }

    /// What made a run; nothing before its first attempt.
    ///
    /// # Errors
    ///
    /// When the store can't be read.
    pub fn of_run(store: &Store, run: &Run) -> Result<Option<Code>> {
        let Some(code_version) = run.code_version.clone() else { return Ok(None) };
        let diff = store.facts(&run.run_id)?.get(DIFF).and_then(|v| v.as_str().map(str::to_string));
        let (git_commit, git_dirty) = (run.git_commit.clone(), run.git_dirty);
        Ok(Some(Code { code_version, git_commit, git_dirty, git_diff: diff }))
    }

    /// Whether two are known to be the same code. Uncommitted changes are the same only where their digests say so.
    pub fn is(&self, other: &Code) -> bool {
        let dirty = |code: &Code| code.git_dirty == Some(true);
        let same = self.code_version == other.code_version && self.git_commit == other.git_commit;
        let changed = dirty(self) || dirty(other);
        same && (!changed || self.git_diff.is_some() && self.git_diff == other.git_diff)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(12).collect::<String>();
        f.write_str(&self.code_version)?;
        if let Some(commit) = &self.git_commit {
            write!(f, " at {}", short(commit))?;
        }
        match (&self.git_diff, self.git_dirty) {
            (Some(diff), Some(true)) => write!(f, " with uncommitted changes {}", short(diff)),
            (None, Some(true)) => f.write_str(" with uncommitted changes"),
            _ => Ok(()),
        }
    }
}

/// The points (label, seed, run) whose results other code made than `today`'s.
///
/// # Errors
///
/// When the store can't be read.
pub fn made_by_other<'a>(
    store: &Store,
    points: impl Iterator<Item = (&'a str, u64, RunId)>,
    today: &Code,
) -> Result<Vec<MadeByOther>> {
    let mut found = Vec::new();
    for (label, seed, run_id) in points {
        let Some(run) = store.run(&run_id)?.filter(|run| run.status.is_result()) else { continue };
        if let Some(code) = Code::of_run(store, &run)?.filter(|code| !code.is(today)) {
            found.push(MadeByOther { label: label.to_string(), seed, run_id, code });
        }
    }
    Ok(found)
}

/// Refuses results that other code made.
///
/// # Errors
///
/// When there are some: the first few are named, with the way out.
pub fn refuse_other(others: &[MadeByOther], today: &Code) -> Result<()> {
    let Some(first) = others.first() else { return Ok(()) };
    let mut list = String::new();
    for other in others.iter().take(5) {
        list +=
            &format!("\n  {}, seed {} ({}): {}", other.label, other.seed, other.run_id, other.code);
    }
    if others.len() > 5 {
        list += &format!("\n  and {} more", others.len() - 5);
    }
    bail!(
        "--strict-code: expected results of today's code ({today}), found {} that other code made{list}\n  help: leave out \
         --strict-code to take them as they are, remove runs/{} and the like from the results to make them anew, or give another \
         --results DIR",
        others.len(),
        first.run_id
    )
}

/// One line on results that other code made.
pub fn note(others: &[MadeByOther], today: &Code) -> Option<String> {
    let first = others.first()?;
    let mut codes: Vec<String> = others.iter().map(|other| other.code.to_string()).collect();
    codes.sort();
    codes.dedup();
    Some(format!(
        "{} of the results were made by other code ({}) than today's ({today}), {}, seed {} among them; `fathom reproduce {}` \
         says whether the numbers are the same",
        others.len(),
        codes.join("; "),
        first.label,
        first.seed,
        first.run_id
    ))
}
