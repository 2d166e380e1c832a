//! How a run stands right now, by its folder alone: what its log last said, and what is known of its process.
//!
//! On this host the kernel is asked, and the answer is right at once. Of another host only what the run writes is known: a
//! worker writes a heartbeat every few seconds, and for how long nothing has come is said as it is.

use super::{is_held, slurm};
use crate::store::Status;
use anyhow::Result;
use fathom_spec::record::{
    EventKind, Presence, Process, RunId, RunPaths, last_events, now, read_events,
};
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Without a sign for so many seconds, a run on another host is called silent: six heartbeats of the engine's.
pub const SILENCE_SECONDS: f64 = 30.0;

/// The end of a log that is read to say how its run stands.
const TAIL: u64 = 64 << 10;

/// Whether a run is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing was ever logged, and nobody has it.
    NotBegun,
    /// Its process, or its supervisor, is on this host and alive.
    Running,
    /// On another host, and heard of lately.
    Elsewhere,
    /// On another host, and not heard of for [`SILENCE_SECONDS`]. It may be dead, cut off, or in a long step.
    Silent,
    /// There is no ending and its process is gone; what is known of that.
    Dead(String),
    /// It logged this ending.
    Ended(&'static str),
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::NotBegun => "planned",
            State::Running => "running",
            State::Elsewhere => "running elsewhere",
            State::Silent => "silent",
            State::Dead(_) => "dead",
            State::Ended(ending) => ending,
        }
    }

    /// Why a run that stands so, and that the store calls `said`, is lost; `None` where it is not. Should a silent one be heard of
    /// again, it is running again.
    pub(super) fn loss(&self, said: Status) -> Option<&str> {
        match (self, said) {
            (State::Dead(reason), Status::Planned | Status::Running) => Some(reason),
            (State::Silent, Status::Planned | Status::Running) => {
                Some("its host gives no sign any more")
            }
            (State::NotBegun, Status::Running) => {
                Some("nothing was logged, and no process has the run")
            }
            _ => None,
        }
    }

    /// Whether a command may reach it.
    pub fn is_at_work(&self) -> bool {
        matches!(self, State::Running | State::Elsewhere | State::Silent)
    }
}

/// How a run stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub state: State,
    pub process: Option<Process>,
    /// The last that was logged: step, tokens, loss.
    pub step: Option<(u64, u64, f64)>,
    /// Seconds since the log was last written; none where there is no log.
    pub silent_seconds: Option<f64>,
}

/// How the run in `paths` stands at `now`, in seconds since 1970-01-01 UTC.
///
/// # Errors
///
/// When its log is damaged.
pub fn standing(paths: &RunPaths, now: f64) -> Result<Standing> {
    standing_where(paths, now, || is_held(paths))
}

/// As [`standing()`], for who knows by itself whether another has the run's lock.
pub(super) fn standing_where(
    paths: &RunPaths,
    now: f64,
    is_held: impl Fn() -> bool,
) -> Result<Standing> {
    let log = paths.events();
    let process = Process::read(paths);
    let presence = process.as_ref().map(Process::presence);
    let mut events = match log.exists() {
        true => last_events(&log, TAIL)?,
        false => Vec::new(),
    };
    let is_step = |kind: &EventKind| matches!(kind, EventKind::Step { .. });
    let ending = events.last().and_then(|event| event.kind.ending());
    if ending.is_none() && !events.is_empty() && !events.iter().any(|event| is_step(&event.kind)) {
        // What came after the last step is longer than the tail.
        events = read_events(&log, 0)?.0;
    }
    let step = events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Step { step, tokens, loss, .. } => Some((*step, *tokens, *loss)),
        _ => None,
    });
    // By the file system's clock or by the writer's, whichever is later: neither has to be right.
    let written = modified(&log);
    let last = events.last().map(|event| event.time.max(written.unwrap_or(event.time)));
    // A process that has signed in and not yet logged anything.
    let signed_in = modified(&paths.process()).filter(|signed_in| Some(*signed_in) > written);
    let last = signed_in.into_iter().chain(last).reduce(f64::max);
    let silent_seconds = last.map(|last| (now - last).max(0.0));
    // Of a host that is gone a file server may keep the lock for as long as it likes.
    let is_of_another_kernel = process.as_ref().is_some_and(|process| !process.is_of_this_kernel());
    let state = match (presence, ending) {
        (Some(Presence::Alive), _) => State::Running,
        (_, ending) if is_of_another_kernel && ending.is_none() && is_held() => {
            heard_of(silent_seconds)
        }
        // Who has the run is about to begin its worker, or has not looked at how the worker ended.
        _ if is_held() && !(presence == Some(Presence::Gone) && has_signed_in(paths)) => {
            State::Running
        }
        (Some(Presence::Elsewhere), ending) if ending.is_none() || signed_in.is_some() => {
            heard_of(silent_seconds)
        }
        (_, Some(ending)) => State::Ended(ending),
        (None, None) if events.is_empty() => State::NotBegun,
        // On some node, by a worker that does not sign in.
        (None, None) if slurm::array_of(paths).is_some() => heard_of(silent_seconds),
        (_, None) => State::Dead(epitaph(process.as_ref())),
    };
    Ok(Standing { state, process, step, silent_seconds })
}

/// What the store's word of an open run comes to now: its process may have begun or gone since, its ending may not be taken in.
/// The word of every other run stands.
pub fn status_now(results: &Path, run_id: &RunId, said: Status) -> Status {
    if !matches!(said, Status::Planned | Status::Running) {
        return said;
    }
    let paths = RunPaths::in_results(results, run_id);
    match standing(&paths, now()).map(|found| found.state) {
        Ok(State::Running | State::Elsewhere) => Status::Running,
        Ok(State::Ended(ending)) => ending.parse().unwrap_or(said),
        Ok(state) if state.loss(said).is_some() => Status::Lost,
        Err(_) if said == Status::Running && !is_held(&paths) => Status::Failed,
        Ok(_) | Err(_) => said,
    }
}

/// Whether the run is of another host that was heard of lately. Not every shared file system carries locks from host to host.
pub fn is_elsewhere(paths: &RunPaths) -> bool {
    standing(paths, now()).is_ok_and(|found| found.state == State::Elsewhere)
}

/// Whether the process that the folder names is the worker of whoever took the run's lock last.
fn has_signed_in(paths: &RunPaths) -> bool {
    modified(&paths.process()) >= modified(&paths.lock())
}

/// When a file was last written, in seconds since 1970-01-01 UTC.
fn modified(path: &Path) -> Option<f64> {
    let time = fs::metadata(path).and_then(|about| about.modified()).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|t| t.as_secs_f64())
}

fn epitaph(process: Option<&Process>) -> String {
    match process {
        Some(process) => format!("no ending was logged, and process {} is gone", process.pid),
        None => "no ending was logged, and no process has the run".into(),
    }
}

/// Of another host only its signs are known.
fn heard_of(silent_seconds: Option<f64>) -> State {
    match silent_seconds {
        Some(seconds) if seconds > SILENCE_SECONDS => State::Silent,
        _ => State::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::lock;
    use fathom_spec::record::EventLog;

    /// A run's folder with a log of one heartbeat.
    fn begun() -> (tempfile::TempDir, RunPaths, EventLog) {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path().join("7f3a"));
        fs::create_dir_all(paths.control()).unwrap();
        let mut log = EventLog::open(&paths.events()).unwrap();
        log.write(EventKind::Heartbeat { step: 3 }).unwrap();
        (dir, paths, log)
    }

    fn now() -> f64 {
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
    }

    /// A harness that is stopped (Ctrl-Z) keeps the locks of its runs, and looks after none.
    #[test]
    fn a_worker_that_is_gone_is_gone_whoever_has_the_lock() {
        let (_dir, paths, mut log) = begun();
        let mut worker = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(worker.id()).unwrap();
        let held = lock(&paths).unwrap().unwrap();
        process.write(&paths).unwrap();
        let state = || standing(&paths, now()).unwrap().state;
        assert_eq!(state(), State::Running);
        worker.kill().unwrap();
        worker.wait().unwrap();
        assert!(matches!(state(), State::Dead(_)), "{:?}", state());
        log.write(EventKind::Stopped { step: 3, reason: "asked to".into() }).unwrap();
        assert_eq!(state(), State::Ended("stopped"));
        // Another attempt is about to begin.
        drop(held);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let held = lock(&paths).unwrap().unwrap();
        assert_eq!(state(), State::Running);
        drop(held);
        assert_eq!(state(), State::Ended("stopped"));
    }

    #[test]
    fn the_stores_word_is_held_against_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let id = RunId("7f3a".into());
        let paths = RunPaths::in_results(dir.path(), &id);
        let now = |said| status_now(dir.path(), &id, said);
        assert_eq!(now(Status::Planned), Status::Planned);
        assert_eq!(now(Status::Running), Status::Lost);
        let held = lock(&paths).unwrap().unwrap();
        assert_eq!(
            (now(Status::Planned), now(Status::Running)),
            (Status::Running, Status::Running)
        );
        let mut log = EventLog::open(&paths.events()).unwrap();
        log.write(EventKind::Heartbeat { step: 3 }).unwrap();
        drop(held);
        assert_eq!((now(Status::Planned), now(Status::Running)), (Status::Lost, Status::Lost));
        log.write(EventKind::Failed { error: "no".into() }).unwrap();
        assert_eq!(now(Status::Running), Status::Failed);
        assert_eq!(now(Status::Killed), Status::Killed);
    }

    #[track_caller]
    fn check(paths: &RunPaths, seconds_later: f64, expected: &State) {
        assert_eq!(&standing(paths, now() + seconds_later).unwrap().state, expected);
    }

    #[test]
    fn the_living_the_dead_and_the_remote_are_told_apart() {
        let (_dir, paths, mut log) = begun();
        let no_process = "no ending was logged, and no process has the run";
        check(&paths, 0.0, &State::Dead(no_process.into()));
        let own = Process::of(std::process::id()).unwrap();
        own.write(&paths).unwrap();
        check(&paths, 1e6, &State::Running);
        let reused = Process { start_time: own.start_time - 1, ..own.clone() };
        reused.write(&paths).unwrap();
        let gone = format!("no ending was logged, and process {} is gone", own.pid);
        check(&paths, 0.0, &State::Dead(gone));
        let lock = lock(&paths).unwrap().unwrap();
        check(&paths, 0.0, &State::Running);
        drop(lock);
        let remote = Process { boot_id: "another".into(), ..own };
        remote.write(&paths).unwrap();
        check(&paths, 0.0, &State::Elsewhere);
        check(&paths, SILENCE_SECONDS + 12.0, &State::Silent);
        log.write(EventKind::Stopped { step: 3, reason: "asked".into() }).unwrap();
        // The file system's clock may not have moved between the two.
        let age = |file: &Path, seconds: f64| {
            let file = fs::File::options().write(true).open(file).unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs_f64(seconds);
            file.set_modified(time).unwrap();
        };
        age(&paths.process(), 5.0);
        check(&paths, 1e6, &State::Ended("stopped"));
        // Another attempt has signed in and not yet logged.
        age(&paths.events(), 10.0);
        check(&paths, 0.0, &State::Elsewhere);
        check(&paths, SILENCE_SECONDS + 12.0, &State::Silent);
    }

    /// Even where the file system keeps a lock to one host.
    #[test]
    fn a_run_of_another_host_can_not_be_locked_while_it_is_heard_of() {
        let (_dir, paths, mut log) = begun();
        let own = Process::of(std::process::id()).unwrap();
        Process { boot_id: "another".into(), ..own }.write(&paths).unwrap();
        assert!(lock(&paths).unwrap().is_none());
        log.write(EventKind::Stopped { step: 3, reason: "asked".into() }).unwrap();
        fs::remove_file(paths.process()).unwrap();
        assert!(lock(&paths).unwrap().is_some());
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_run_silent() {
        let (_dir, paths, _log) = begun();
        let remote =
            Process { boot_id: "another".into(), ..Process::of(std::process::id()).unwrap() };
        remote.write(&paths).unwrap();
        let found = standing(&paths, now() - 86_400.0).unwrap();
        assert_eq!((found.state, found.silent_seconds), (State::Elsewhere, Some(0.0)));
    }

    #[test]
    fn a_folder_without_a_log_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let found = standing(&RunPaths::new(dir.path()), now()).unwrap();
        assert_eq!((found.state, found.silent_seconds), (State::NotBegun, None));
    }
}
