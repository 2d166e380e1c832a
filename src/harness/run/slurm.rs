//! Runs under Slurm: what is started together is one job array, each run a task of it.
//!
//! The protocol is that of a run on this machine: a folder on a file system that the nodes share, a configuration, an event log.
//! Nothing listens on a port; `sbatch` submits, `squeue` is asked how the tasks stand, `sacct` (or `scontrol`, where Slurm keeps
//! no accounts) how they ended. The run's folder keeps the name of its task (`slurm.json`) from before it is submitted, so that a
//! harness that was killed at any moment, or another one, finds it again and watches on: Slurm's jobs outlive the harness, and
//! are ended by `scancel` alone.

use crate::store::Status;
use anyhow::{Context, Result, bail};
use fathom_spec::record::RunPaths;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often `squeue` is asked; more often is a burden on the cluster's controller.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the accounts are waited for, which come to know a little later than the queue who cancelled a task.
const PATIENCE: Duration = Duration::from_secs(5);

/// States of a task that has not come to its end (`man squeue`, "JOB STATE CODES").
const ALIVE: [&str; 14] = [
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
];

/// A cluster's queue, as one harness uses it.
#[derive(Clone)]
pub struct Slurm(Rc<RefCell<Queue>>);

struct Queue {
    /// Arguments for `sbatch`: partition, time, memory, cards.
    arguments: Vec<String>,
    /// Where job scripts and what Slurm itself has to say of a task are kept.
    scripts: PathBuf,
    waiting: Vec<Waiting>,
    /// Of each run's folder that was submitted.
    tasks: HashMap<PathBuf, Name>,
    /// The job (`1234_5`) that a task is, once that is known.
    jobs: HashMap<Name, String>,
    /// What `squeue` said last.
    states: HashMap<Name, String>,
    asked: Option<Instant>,
    /// Since when the queue has called a task cancelled of which the accounts do not yet.
    cancelled: HashMap<Name, Instant>,
}

/// A task's name, which is ours and known before Slurm gives it a number; what a run's folder keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Name {
    /// The array's job name.
    array: String,
    task: usize,
}

/// A run that goes with the next array.
struct Waiting {
    folder: PathBuf,
    worker: PathBuf,
    environment: Vec<(String, String)>,
}

/// A run's task.
pub struct Task {
    slurm: Slurm,
    folder: PathBuf,
}

/// How a task ended.
pub struct Ended {
    /// As the worker left, where Slurm knows.
    pub exit: ExitStatus,
    /// What Slurm did to it, where it did not end by itself.
    pub verdict: Option<(Status, String)>,
}

impl Slurm {
    /// # Errors
    ///
    /// When Slurm's programs are not here.
    pub fn new(results: &Path, arguments: Vec<String>) -> Result<Slurm> {
        if let Err(error) = output(Command::new("sbatch").arg("--version")) {
            bail!(
                "--launcher slurm: expected Slurm's `sbatch` to answer here, found: {error:#}\n  help: run it on a login node of the \
                 cluster, or leave the launcher out"
            );
        }
        let scripts = std::path::absolute(results.join("slurm"))?;
        Ok(Slurm(Rc::new(RefCell::new(Queue {
            arguments,
            scripts,
            waiting: Vec::new(),
            tasks: HashMap::new(),
            jobs: HashMap::new(),
            states: HashMap::new(),
            asked: None,
            cancelled: HashMap::new(),
        }))))
    }

    /// Puts a prepared run into the array that [`Slurm::submit`] submits next.
    ///
    /// # Errors
    ///
    /// When there is no current folder that a relative path could start at.
    pub fn queue(
        &self,
        worker: &Path,
        paths: &RunPaths,
        environment: &[(&str, String)],
    ) -> Result<Task> {
        let folder = std::path::absolute(&paths.folder)?;
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        let worker = std::path::absolute(worker)?;
        self.0.borrow_mut().waiting.push(Waiting { folder: folder.clone(), worker, environment });
        Ok(Task { slurm: self.clone(), folder })
    }

    /// Submits what was queued as one array.
    ///
    /// # Errors
    ///
    /// When the script can't be written or Slurm refuses the job: with its own words.
    pub fn submit(&self) -> Result<()> {
        let mut queue = self.0.borrow_mut();
        let waiting = std::mem::take(&mut queue.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let scripts = queue.scripts.clone();
        std::fs::create_dir_all(&scripts).with_context(|| scripts.display().to_string())?;
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let array = format!("fathom-{}-{}", moment.as_millis(), std::process::id());
        let file = scripts.join(format!("{array}.sh"));
        super::write_whole(&file, script(&waiting).as_bytes())?;
        for (task, run) in waiting.iter().enumerate() {
            let name = Name { array: array.clone(), task };
            super::write_whole(&kept_in(&run.folder), &serde_json::to_vec(&name)?)?;
        }
        let mut command = Command::new("sbatch");
        command
            .arg("--parsable")
            .arg(format!("--array=0-{}", waiting.len() - 1))
            .arg(format!("--job-name={array}"))
            .arg(format!("--output={}/{array}-%a.out", scripts.display()))
            .args(&queue.arguments)
            .arg(&file);
        let said = output(&mut command).context("Slurm does not take the runs")?;
        // `1234` or `1234;cluster`.
        let job = said.trim().split(';').next().unwrap_or_default().to_string();
        if job.is_empty() || !job.bytes().all(|b| b.is_ascii_digit()) {
            bail!("sbatch: expected the number of a job, found `{}`", said.trim());
        }
        for (task, run) in waiting.into_iter().enumerate() {
            let name = Name { array: array.clone(), task };
            queue.jobs.insert(name.clone(), format!("{job}_{task}"));
            queue.states.insert(name.clone(), "PENDING".into());
            queue.tasks.insert(run.folder, name);
        }
        queue.asked = Some(Instant::now());
        Ok(())
    }

    /// The task that has a run since before this harness began, if it has not ended.
    ///
    /// # Errors
    ///
    /// When the controller does not answer: the run may be at work then.
    pub fn attach(&self, paths: &RunPaths) -> Result<Option<Task>> {
        let Some(name) = name_of(paths) else { return Ok(None) };
        let folder = std::path::absolute(&paths.folder)?;
        let mut queue = self.0.borrow_mut();
        queue.ask().with_context(|| {
            format!("whether task {} of Slurm's job {} has the run", name.task, name.array)
        })?;
        if !queue.states.get(&name).is_some_and(|state| is_alive(state)) {
            return Ok(None);
        }
        queue.tasks.insert(folder.clone(), name);
        drop(queue);
        Ok(Some(Task { slurm: self.clone(), folder }))
    }
}

impl Queue {
    /// Asks `squeue` what each of this user's tasks is at.
    fn ask(&mut self) -> Result<()> {
        self.asked = Some(Instant::now());
        let mut command = Command::new("squeue");
        command.args(["--me", "--noheader", "--array", "--states=all", "--format=%j|%F|%K|%T"]);
        let said = output(&mut command)?;
        self.states.clear();
        for line in said.lines() {
            let words: Vec<&str> = line.trim().split('|').collect();
            let [array, job, task, state] = words[..] else { continue };
            let Ok(task) = task.parse() else { continue };
            let name = Name { array: array.to_string(), task };
            self.jobs.insert(name.clone(), format!("{job}_{task}"));
            self.states.insert(name, state.to_string());
        }
        Ok(())
    }
}

/// What the run's folder calls the task that has the run, or had it.
fn name_of(paths: &RunPaths) -> Option<Name> {
    serde_json::from_slice(&std::fs::read(kept_in(&paths.folder)).ok()?).ok()
}

/// The job array whose task has a run, or had it, as its folder says.
pub fn array_of(paths: &RunPaths) -> Option<String> {
    name_of(paths).map(|name| name.array)
}

/// Forgets the task of a run that has ended.
pub fn forget(paths: &RunPaths) {
    // It may never have been there.
    let _ = std::fs::remove_file(kept_in(&paths.folder));
}

fn kept_in(folder: &Path) -> PathBuf {
    folder.join("slurm.json")
}

impl Task {
    /// How the task ended, if it has.
    ///
    /// # Errors
    ///
    /// Never for a controller that does not answer: the task then stands as it stood.
    pub fn try_wait(&self) -> Result<Option<Ended>> {
        let mut queue = self.slurm.0.borrow_mut();
        let Some(name) = queue.tasks.get(&self.folder).cloned() else { return Ok(None) };
        let asks = queue.asked.is_none_or(|asked| asked.elapsed() >= INTERVAL);
        if asks && queue.ask().is_err() || !asks && queue.cancelled.contains_key(&name) {
            return Ok(None);
        }
        match queue.states.get(&name) {
            Some(state) if is_alive(state) => Ok(None),
            state => {
                let state = state.cloned();
                let job = queue.jobs.get(&name).map_or("unknown", String::as_str).to_string();
                let accounts = accounts(&job);
                if state.as_deref() == Some("CANCELLED") && matches!(accounts, Ok(None)) {
                    let since = queue.cancelled.entry(name).or_insert_with(Instant::now);
                    if since.elapsed() < PATIENCE {
                        return Ok(None);
                    }
                }
                Ok(Some(how_it_ended(&job, state, accounts.unwrap_or_default())))
            }
        }
    }

    /// Whether the task still waits for a node.
    pub fn is_pending(&self) -> bool {
        let queue = self.slurm.0.borrow();
        let state = queue.tasks.get(&self.folder).and_then(|name| queue.states.get(name));
        state.is_none_or(|state| state == "PENDING")
    }

    /// Has Slurm end the task: SIGTERM, and SIGKILL a while later.
    pub fn cancel(&self) {
        let mut queue = self.slurm.0.borrow_mut();
        queue.waiting.retain(|waiting| waiting.folder != self.folder);
        if let Some(job) = queue.tasks.get(&self.folder).and_then(|name| queue.jobs.get(name)) {
            // It may have ended by itself.
            let _ = output(Command::new("scancel").arg(job));
        }
    }
}

/// What the accounts say of a task that has ended, its state and exit code; `None` where they have not heard of its end.
///
/// # Errors
///
/// When Slurm keeps no accounts, or they do not answer.
fn accounts(job: &str) -> Result<Option<(String, String)>> {
    let mut command = Command::new("sacct");
    command.args(["--noheader", "--parsable2", "--allocations", "--format=State,ExitCode"]);
    let said = output(command.arg(format!("--jobs={job}")))?;
    let known = said.lines().next().and_then(|line| line.split_once('|'));
    let ended = known.filter(|(state, _)| !is_alive(state));
    Ok(ended.map(|(state, code)| (state.to_string(), code.to_string())))
}

/// By the accounts, or by what the controller still remembers.
fn how_it_ended(job: &str, state: Option<String>, accounts: Option<(String, String)>) -> Ended {
    let by_scontrol = || {
        let said =
            output(Command::new("scontrol").args(["--oneliner", "show", "job", job])).ok()?;
        let value = |key: &str| {
            said.split_whitespace().find_map(|word| Some(word.strip_prefix(key)?.to_string()))
        };
        Some((value("JobState=")?, value("ExitCode=")?))
    };
    let (state, code) = match (accounts.or_else(by_scontrol), state) {
        (Some((state, code)), _) => (state, code),
        (None, Some(state)) => (state, "0:0".to_string()),
        (None, None) => {
            let detail = format!("Slurm knows job {job} no more, and the log has no ending");
            return Ended { exit: ExitStatus::from_raw(0), verdict: Some((Status::Lost, detail)) };
        }
    };
    Ended { exit: exit_status(&code), verdict: verdict(job, &state) }
}

fn is_alive(state: &str) -> bool {
    state.split_whitespace().next().is_some_and(|word| ALIVE.contains(&word))
}

/// `code:signal`, as Slurm writes it.
fn exit_status(code: &str) -> ExitStatus {
    let (code, signal) = code.split_once(':').unwrap_or((code, "0"));
    let number = |text: &str| text.parse::<i32>().unwrap_or(0);
    ExitStatus::from_raw((number(code) & 0xff) << 8 | (number(signal) & 0x7f))
}

/// What Slurm did to a task; `None` where the worker ended by itself.
fn verdict(job: &str, state: &str) -> Option<(Status, String)> {
    // `CANCELLED by 1000`.
    let (status, help) = match state.split_whitespace().next().unwrap_or_default() {
        "COMPLETED" | "FAILED" => return None,
        "OUT_OF_MEMORY" => {
            (Status::Killed, ": the host's memory, not the card's; --sbatch=--mem=… asks for more")
        }
        "TIMEOUT" | "DEADLINE" => (Status::Killed, ": --sbatch=--time=… asks for more"),
        "NODE_FAIL" | "BOOT_FAIL" => (Status::Lost, ""),
        _ => (Status::Killed, ""),
    };
    Some((status, format!("Slurm ended job {job}: {state}{help}")))
}

/// Every task becomes the worker of its folder.
fn script(waiting: &[Waiting]) -> String {
    let quote = |path: &Path| shell_words::quote(&path.to_string_lossy()).into_owned();
    let mut text = String::from("#!/bin/sh\ncase $SLURM_ARRAY_TASK_ID in\n");
    for (index, run) in waiting.iter().enumerate() {
        text += &format!("{index})\n");
        for (name, value) in &run.environment {
            text += &format!("  export {name}={}\n", shell_words::quote(value));
        }
        text += &format!("  worker={}\n  folder={} ;;\n", quote(&run.worker), quote(&run.folder));
    }
    text += "esac\nexec \"$worker\" run \"$folder\" </dev/null >>\"$folder/stdout.log\" 2>>\"$folder/stderr.log\"\n";
    text
}

/// What a program prints.
///
/// # Errors
///
/// When it can't be started or fails: with what it says.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program}: can't be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", said.trim().lines().next().unwrap_or("failed and said nothing"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_becomes_the_worker_of_its_folder() {
        let run = |folder: &str, environment: &[(&str, &str)]| Waiting {
            folder: folder.into(),
            worker: "/opt/fathom engine".into(),
            environment: environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let text = script(&[run("/r/a", &[]), run("/r/it's", &[("STOP", "1 2")])]);
        let expected = r#"#!/bin/sh
case $SLURM_ARRAY_TASK_ID in
0)
  worker='/opt/fathom engine'
  folder=/r/a ;;
1)
  export STOP='1 2'
  worker='/opt/fathom engine'
  folder='/r/it'\''s' ;;
esac
exec "$worker" run "$folder" </dev/null >>"$folder/stdout.log" 2>>"$folder/stderr.log"
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn slurms_words_become_an_ending() {
        assert_eq!(exit_status("3:0").code(), Some(3));
        assert_eq!(exit_status("0:9").signal(), Some(9));
        assert!(verdict("7_1", "COMPLETED").is_none() && verdict("7_1", "FAILED").is_none());
        let (status, detail) = verdict("7_1", "OUT_OF_MEMORY").unwrap();
        assert_eq!(status, Status::Killed);
        assert!(detail.starts_with("Slurm ended job 7_1: OUT_OF_MEMORY: the host's memory"));
        let (status, detail) = verdict("7_1", "CANCELLED by 1000").unwrap();
        assert_eq!(
            (status, detail.as_str()),
            (Status::Killed, "Slurm ended job 7_1: CANCELLED by 1000")
        );
        assert_eq!(verdict("7_1", "NODE_FAIL").unwrap().0, Status::Lost);
    }
}
