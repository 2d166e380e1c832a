//! Pause and continue: a file in the results folder, `control/<sweep>.json`, is there while its sweep is to rest.
//!
//! Whoever drives the sweep looks for it between two looks at its workers, on whatever host that is. It starts nothing while the
//! file is there, and asks the runs that are at work to write a checkpoint and stop, unless they may come to their ends.
//! What stopped for a pause waits in the queue and goes on from its checkpoint.

use crate::run::write_whole;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How a sweep rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Runs at work stop.
    Now,
    /// Runs at work come to their ends.
    AfterRuns,
}

fn path(results: &Path, sweep: &str) -> PathBuf {
    results.join("control").join(format!("{sweep}.json"))
}

/// Lets a sweep rest.
///
/// # Errors
///
/// When the file can't be written.
pub fn pause(results: &Path, sweep: &str, how: Pause) -> Result<()> {
    let path = path(results, sweep);
    let folder = path.parent().expect("it was just joined");
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{}: the folder can't be made", folder.display()))?;
    let json = json!({ "command": "pause", "after_runs": how == Pause::AfterRuns });
    write_whole(&path, json.to_string().as_bytes())
}

/// Lets a sweep go on; says whether it was paused.
///
/// # Errors
///
/// When the file can't be removed.
pub fn go_on(results: &Path, sweep: &str) -> Result<bool> {
    let path = path(results, sweep);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{}: can't be removed", path.display())),
    }
}

/// Whether a sweep is to rest. A file that can't be understood is a pause: somebody meant one.
pub fn asked(results: &Path, sweep: &str) -> Option<Pause> {
    let text = std::fs::read(path(results, sweep)).ok()?;
    let json: Value = serde_json::from_slice(&text).unwrap_or_default();
    Some(if json["after_runs"] == true { Pause::AfterRuns } else { Pause::Now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_there_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(asked(dir.path(), "s"), None);
        for how in [Pause::Now, Pause::AfterRuns] {
            pause(dir.path(), "s", how).unwrap();
            assert_eq!(asked(dir.path(), "s"), Some(how));
        }
        assert_eq!(asked(dir.path(), "t"), None, "it is this sweep's alone");
        assert!(go_on(dir.path(), "s").unwrap());
        assert!(!go_on(dir.path(), "s").unwrap());
        assert_eq!(asked(dir.path(), "s"), None);
    }
}
