//! Whether locks reach the other hosts that are at work on a results folder.
//!
//! NFS, Lustre, Ceph and GlusterFS carry a lock from host to host; sshfs, and others as they are often mounted, keep it to the one
//! that took it. There two harnesses would write one database at once, and damage it. A run of another host that lives while
//! its lock is free here is the proof.

use super::{State, is_held, slurm, standing};
use crate::store::Journal;
use anyhow::{Result, bail};
use fathom_spec::record::{RunId, RunPaths, now};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How often the logs of other hosts are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Sees to it, before a harness writes, that no harness of another host is at work on `results` without its locks being seen here.
/// At most it takes until the runs of a host that has just died are silent; `wait` is told of one.
///
/// # Errors
///
/// When there is one.
pub fn see_locks(results: &Path, wait: impl FnMut(&str)) -> Result<()> {
    match Journal::of(results) {
        Journal::WriteAhead => Ok(()),
        Journal::Rollback(_) => watch(results, wait),
    }
}

fn watch(results: &Path, mut wait: impl FnMut(&str)) -> Result<()> {
    let first = alive_without_lock(results);
    let mut now = first.clone();
    let mut is_told = false;
    while !now.is_empty() {
        for (run, (host, length)) in &now {
            if first.get(run).is_some_and(|(_, before)| before != length) {
                bail!(
                    "{}: expected a file system whose locks reach from host to host, found run {run} at work on host {host} and \
                     its lock free here\n  help: have one host at a time work on this folder, or mount it with locks",
                    results.display()
                );
            }
        }
        if let (false, Some((run, (host, _)))) = (is_told, now.first_key_value()) {
            wait(&format!(
                "run {run} was at work on host {host} a moment ago: seeing whether it is"
            ));
            is_told = true;
        }
        std::thread::sleep(POLL);
        now = alive_without_lock(results);
    }
    Ok(())
}

/// Runs of other hosts that were heard of lately and whose lock nobody has, as seen from here: host, and length of the log.
fn alive_without_lock(results: &Path) -> BTreeMap<RunId, (String, u64)> {
    let entries = std::fs::read_dir(results.join("runs")).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let paths = RunPaths::new(entry.path());
        let found = standing(&paths, now()).ok()?;
        // Only a supervisor's worker has a lock; Slurm's tasks have theirs on the harness's host.
        let process = found.process.filter(|process| process.supervisor.is_some())?;
        let is_unseen = found.state == State::Elsewhere
            && !process.is_of_this_kernel()
            && slurm::array_of(&paths).is_none()
            && !is_held(&paths);
        let length = std::fs::metadata(paths.events()).map_or(0, |log| log.len());
        let run = RunId(entry.file_name().to_string_lossy().into_owned());
        is_unseen.then_some((run, (process.host, length)))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{SILENCE_SECONDS, lock};
    use fathom_spec::record::{Event, EventKind, EventLog, Process};
    use std::fs::{self, File};
    use std::time::SystemTime;

    /// A run that another host began, heard of just now.
    fn of_another_host() -> (tempfile::TempDir, RunPaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::in_results(dir.path(), &RunId("7f3a".into()));
        fs::create_dir_all(paths.control()).unwrap();
        EventLog::open(&paths.events()).unwrap().write(EventKind::Heartbeat { step: 1 }).unwrap();
        let process = Process {
            boot_id: "another".into(),
            host: "red".into(),
            supervisor: Some(7),
            ..Process::of(std::process::id()).unwrap()
        };
        process.write(&paths).unwrap();
        (dir, paths)
    }

    #[test]
    fn who_lives_without_a_lock_is_named() {
        let (dir, paths) = of_another_host();
        let mut log = EventLog::open(&paths.events()).unwrap();
        let error = watch(dir.path(), |said| {
            assert!(said.starts_with("run 7f3a was at work on host red"), "{said}");
            log.write(EventKind::Heartbeat { step: 2 }).unwrap();
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("found run 7f3a at work on host red and its lock free here"),
            "{error}"
        );
    }

    #[test]
    fn a_lock_that_is_seen_and_a_task_of_slurms_are_no_proof() {
        let (dir, paths) = of_another_host();
        fs::create_dir_all(&paths.folder).unwrap();
        let held = File::create(paths.lock()).unwrap();
        held.lock().unwrap();
        watch(dir.path(), |said| panic!("{said}")).unwrap();
        drop(held);
        fs::write(paths.folder.join("slurm.json"), r#"{"array": "a", "task": 0}"#).unwrap();
        watch(dir.path(), |said| panic!("{said}")).unwrap();
    }

    #[test]
    fn a_host_that_died_is_waited_for_until_it_is_silent() {
        let (dir, paths) = of_another_host();
        let age = SILENCE_SECONDS - 3.0;
        let heartbeat = EventKind::Heartbeat { step: 1 };
        let event =
            Event { v: 1, seq: 0, time: now() - age, elapsed_seconds: 0.0, kind: heartbeat };
        fs::write(paths.events(), serde_json::to_string(&event).unwrap() + "\n").unwrap();
        for file in [paths.process(), paths.events()] {
            let file = File::options().append(true).open(file).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs_f64(age)).unwrap();
        }
        let mut told = 0;
        watch(dir.path(), |_| told += 1).unwrap();
        assert_eq!(told, 1);
        assert!(lock(&paths).unwrap().is_some());
    }
}
