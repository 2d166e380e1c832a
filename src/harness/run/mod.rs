//! Supervision of one worker process: its folder, its lock, its progress, and how it ended.
//!
//! A worker is any program that, called as `PROGRAM run FOLDER`, reads `config.yaml` and appends events to `events.jsonl`.
//!
//! [`standing()`] says of any run whether it lives; `verdict` how a worker ended that did not say so itself; [`read_store`] opens
//! the store for who wants to know how all runs stand; [`see_locks`] says whether locks keep the harnesses of several hosts apart.

mod ending;
mod hosts;
mod oom;
mod settle;
pub mod slurm;
mod standing;

pub use ending::verdict;
pub use hosts::see_locks;
pub use settle::{fail_as_damaged, read_apart, read_store, settle};
pub use standing::{SILENCE_SECONDS, Standing, State, standing, status_now};

use crate::store::{SavedIdentity, Status, forget_verdicts};
use anyhow::{Context, Result, anyhow, bail};
use fathom_spec::config::RunConfig;
use fathom_spec::record::control::{self, Command as Order};
pub use fathom_spec::record::write_whole;
use fathom_spec::record::{Event, Process, RunPaths, read_events, way_out};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Names another worker than the engine beside this program.
pub const WORKER_VARIABLE: &str = "FATHOM_ENGINE";

/// Finds the worker: `$FATHOM_ENGINE`, or `fathom-engine` beside this program.
///
/// # Errors
///
/// When there is none; the message says how to make one.
pub fn find_worker() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(WORKER_VARIABLE).map(PathBuf::from) {
        if path.is_file() {
            // A bare name would be looked for on the PATH when it is started.
            return Ok(std::path::absolute(path)?);
        }
        bail!("{WORKER_VARIABLE}: expected a program, found none at {}", path.display());
    }
    let own = std::env::current_exe().context("this program's own path")?;
    let beside = own.with_file_name("fathom-engine");
    if beside.is_file() {
        return Ok(beside);
    }
    bail!(
        "expected the worker `fathom-engine` beside `fathom`, found none at {}\n  help: `make build` makes both, or set {WORKER_VARIABLE}",
        beside.display()
    )
}

/// Writes a run's folder: its identity and its complete configuration.
///
/// # Errors
///
/// When a file can't be written.
pub fn prepare(paths: &RunPaths, config: &RunConfig, identity: &SavedIdentity) -> Result<()> {
    make(&paths.control(), paths)?;
    // When the run was first planned stays what it was; the model's files are those of which the digest was just made.
    match SavedIdentity::read(paths) {
        Ok(saved)
            if saved.identity == identity.identity && saved.model_files != identity.model_files =>
        {
            SavedIdentity { created_at: saved.created_at, ..identity.clone() }.write(paths)?;
        }
        Err(_) if !paths.identity().exists() => identity.write(paths)?,
        _ => {}
    }
    forget_verdicts(paths)?;
    // Paths may have moved since the run was planned; what they hold has not, or the folder would have another name.
    let text = config.to_yaml();
    match fs::read(paths.config()) {
        Ok(there) if there == text.as_bytes() => Ok(()),
        _ => write_whole(&paths.config(), text.as_bytes()),
    }
}

fn make(folder: &Path, paths: &RunPaths) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| {
        let (place, help) = (paths.folder.display(), way_out(&error));
        anyhow!("{place}: the run's folder can't be made: {error}{help}")
    })
}

/// A run's lock. Its worker inherits it, and the kernel releases it when the supervisor and the worker are both gone: a worker
/// that outlives a killed supervisor for a moment, to write its checkpoint, is never joined by a second one.
pub struct Lock(File);

/// Takes the lock of a run; `None` when another process holds it, or the run is at work on another host.
///
/// # Errors
///
/// When the lock's file can't be opened.
pub fn lock(paths: &RunPaths) -> Result<Option<Lock>> {
    make(&paths.folder, paths)?;
    // Of a task Slurm itself can be asked.
    if slurm::array_of(paths).is_none() && standing::is_elsewhere(paths) {
        return Ok(None);
    }
    try_lock(paths)
}

/// As [`lock`], of a folder that is there, wherever its run is at work.
fn try_lock(paths: &RunPaths) -> Result<Option<Lock>> {
    loop {
        let context = || format!("{}: the run's lock can't be taken", paths.lock().display());
        let file = File::create(paths.lock()).with_context(context)?;
        match try_flock(&file, libc::LOCK_EX) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => bail!(
                "{}: expected a file system that locks files, found one that does not: {error}\n  help: mount it with locks \
                 (Lustre: `-o flock`), or take another folder by --results",
                paths.lock().display()
            ),
        }
        // Between the two, `fathom control cleanup` may have removed the file: a lock without a name keeps nobody out.
        let held = file.metadata().with_context(context)?;
        let named = fs::metadata(paths.lock());
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return Ok(Some(Lock(file)));
        }
    }
}

/// Removes what a run that nobody has any more left: its lock and process files, and what was asked of it and never taken.
/// Says whether there was anything.
///
/// # Errors
///
/// When a file can't be removed.
pub fn tidy(paths: &RunPaths) -> Result<bool> {
    let left = [paths.lock(), paths.process()].iter().any(|file| file.exists());
    if !left && control_files(paths).is_empty() {
        return Ok(false);
    }
    // Held while it is removed, so that nobody who has the run loses it.
    let Some(_lock) = lock(paths)? else { return Ok(false) };
    for file in control_files(paths).into_iter().chain([paths.process(), paths.lock()]) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => {
                result.with_context(|| format!("{}: the file can't be removed", file.display()))?
            }
        }
    }
    Ok(true)
}

/// Commands that wait for a run, and those whose writer was killed half way.
fn control_files(paths: &RunPaths) -> Vec<PathBuf> {
    let entries = fs::read_dir(paths.control()).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| {
        let extension = path.extension().unwrap_or_default();
        (extension == "json" || extension == "part") && path.is_file()
    });
    files.collect()
}

/// Whether a process, supervisor or worker, has the run.
pub fn is_held(paths: &RunPaths) -> bool {
    let Ok(file) = File::open(paths.lock()) else { return false };
    // A lock that is got goes with the file. Where there are none, nobody holds one.
    matches!(try_flock(&file, libc::LOCK_SH), Ok(false))
}

/// Whether a lock was got; it is let go with the file.
///
/// # Errors
///
/// When the file system has no locks.
fn try_flock(file: &File, kind: libc::c_int) -> std::io::Result<bool> {
    loop {
        // SAFETY: flock on a descriptor that `file` owns.
        if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        match error.kind() {
            std::io::ErrorKind::WouldBlock => return Ok(false),
            std::io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// Waits until nobody else has a lock that is held for moments, and takes it: it is gone with the file. `what` names it where it
/// can't be taken.
///
/// # Errors
///
/// When its file can't be made, or the file system has no locks.
pub fn wait_for_lock(path: &Path, what: &str) -> Result<File> {
    let context = || format!("{}: {what} can't be taken", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    let file = File::create(path).with_context(context)?;
    loop {
        match file.lock() {
            Ok(()) => return Ok(file),
            // A signal that is heard meanwhile is no reason to give up.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
}

/// Takes a lock that any number may have at once, for as long as they like: it is gone with the file, and [`is_shared`] tells.
///
/// # Errors
///
/// When its file is not there and can't be made, or the file system has no locks.
pub fn share_lock(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Another user's file is enough.
    let file = File::open(path).or_else(|_| File::create(path))?;
    file.lock_shared()?;
    Ok(file)
}

/// Whether anybody has the lock of [`share_lock`].
pub fn is_shared(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(try_flock(&file, libc::LOCK_EX), Ok(false))
}

/// What the worker is, to this process.
enum Worker {
    Child(Child),
    Task(slurm::Task),
}

/// A worker at work.
pub struct Running {
    pub paths: RunPaths,
    /// The length of `stderr.log` when this attempt began.
    pub said_before: u64,
    worker: Worker,
    offset: u64,
    /// What Slurm did to it, once it has ended.
    verdict: Option<(Status, String)>,
    _lock: Lock,
}

impl Running {
    /// Starts a worker on a prepared folder.
    ///
    /// `environment` is laid over this process's own. It gets a process group of its own, so that the terminal's Ctrl-C reaches only the supervisor, and the kernel sends it
    /// SIGTERM when the supervisor dies: it then writes a checkpoint and stops. Beside the run's lock it inherits that of its
    /// `share` of a device.
    ///
    /// # Errors
    ///
    /// When the process can't be started.
    pub fn start(
        worker: &Path,
        paths: RunPaths,
        lock: Lock,
        share: Option<BorrowedFd>,
        environment: &[(&str, String)],
    ) -> Result<Running> {
        forget_commands(&paths);
        let (said_before, offset) = lengths(&paths);
        let append = |path: PathBuf| {
            let file = File::options().create(true).append(true).open(&path);
            file.with_context(|| format!("{}: the file can't be opened", path.display()))
        };
        let mut command = Command::new(worker);
        command
            .arg("run")
            .arg(&paths.folder)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(append(paths.stdout())?)
            .stderr(append(paths.stderr())?)
            .process_group(0);
        let parent = std::process::id();
        let locks = [Some(lock.0.as_raw_fd()), share.map(|share| share.as_raw_fd())];
        // SAFETY: fcntl, prctl, getppid and _exit are async-signal-safe; nothing is allocated between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // Not closed on exec any more.
                for lock in locks.into_iter().flatten() {
                    libc::fcntl(lock, libc::F_SETFD, 0);
                }
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                // The supervisor may have died before the line above.
                if libc::getppid() as u32 != parent {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        let oom_kills = oom::count();
        let mut child = command
            .spawn()
            .with_context(|| format!("{}: the worker can't be started", worker.display()))?;
        // None where it has ended already: its exit says how.
        if let Some(process) = Process::of(child.id()) {
            let process = Process { supervisor: Some(parent), oom_kills, ..process };
            if let Err(error) = process.write(&paths) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        }
        let worker = Worker::Child(child);
        Ok(Running { paths, said_before, worker, offset, verdict: None, _lock: lock })
    }

    /// Queues a worker on a prepared folder with the next array of Slurm's jobs.
    ///
    /// # Errors
    ///
    /// As [`slurm::Slurm::queue`].
    pub fn queued(
        worker: &Path,
        paths: RunPaths,
        lock: Lock,
        environment: &[(&str, String)],
        slurm: &slurm::Slurm,
    ) -> Result<Running> {
        forget_commands(&paths);
        let task = slurm.queue(worker, &paths, environment)?;
        Ok(Running::of_task(paths, lock, task))
    }

    /// A worker that Slurm has had at work since before this process began, or is to have.
    pub fn of_task(paths: RunPaths, lock: Lock, task: slurm::Task) -> Running {
        let (said_before, offset) = lengths(&paths);
        let worker = Worker::Task(task);
        Running { paths, said_before, worker, offset, verdict: None, _lock: lock }
    }

    /// The worker's process id, where it is a process of this machine.
    pub fn id(&self) -> Option<u32> {
        match &self.worker {
            Worker::Child(child) => Some(child.id()),
            Worker::Task(_) => None,
        }
    }

    /// Events that have come since the last call.
    ///
    /// # Errors
    ///
    /// When the log is damaged.
    pub fn new_events(&mut self) -> Result<Vec<Event>> {
        if !self.paths.events().exists() {
            return Ok(Vec::new());
        }
        let (events, offset) = read_events(&self.paths.events(), self.offset)?;
        self.offset = offset;
        Ok(events)
    }

    /// How the process exited, if it has.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.worker {
            Worker::Child(child) => child.try_wait().context("waiting for the worker"),
            Worker::Task(task) => {
                let Some(ended) = task.try_wait()? else { return Ok(None) };
                slurm::forget(&self.paths);
                self.verdict = ended.verdict;
                Ok(Some(ended.exit))
            }
        }
    }

    /// How a worker stands that exited with `exit` and logged no ending, and why.
    pub fn verdict(&self, exit: ExitStatus) -> (Status, String) {
        let by_slurm = self.verdict.clone();
        by_slurm.unwrap_or_else(|| verdict(exit, &self.paths, self.said_before))
    }

    /// Asks the worker to write a checkpoint and stop. A task that has not begun is taken back.
    ///
    /// # Errors
    ///
    /// When the command file can't be written.
    pub fn ask_to_stop(&self) -> Result<()> {
        match &self.worker {
            Worker::Task(task) if task.is_pending() => {
                task.cancel();
                Ok(())
            }
            _ => control::send(&self.paths, Order::Stop).map(drop),
        }
    }

    /// Ends the worker at once.
    pub fn kill(&mut self) {
        if let Some(process) = Process::read(&self.paths) {
            // Only a line of the verdict depends on it.
            let _ = Process { ended_by_supervisor: true, ..process }.write(&self.paths);
        }
        match &mut self.worker {
            // It may have ended by itself.
            Worker::Child(child) => drop(child.kill()),
            Worker::Task(task) => task.cancel(),
        }
    }
}

/// Commands that were meant for an earlier attempt are not for the next one.
fn forget_commands(paths: &RunPaths) {
    for entry in fs::read_dir(paths.control()).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
}

/// Of what the standard error and the log of earlier attempts have.
fn lengths(paths: &RunPaths) -> (u64, u64) {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
    let whole = read_events(&paths.events(), 0).map(|(_, whole)| whole);
    (length(paths.stderr()), whole.unwrap_or_else(|_| length(paths.events())))
}
