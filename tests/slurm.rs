//! Sweeps whose runs are tasks of Slurm: by stand-ins for its programs (support/slurm.sh), and with `FATHOM_SLURM=real` by the
//! Slurm that is here (`make test-slurm`).

#[path = "support/sweep_project.rs"]
mod sweep_project;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use sweep_project::{Project, exits, scripted, text};

const GRID: &str = "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\n";

fn is_real() -> bool {
    std::env::var("FATHOM_SLURM").is_ok_and(|which| which == "real")
}

/// What tools/slurm_loopback.sh says of the Slurm that it started.
fn the_real_one_has(what: &str) -> bool {
    std::env::var(what).is_ok_and(|answer| answer == "yes")
}

/// A project beside a queue.
struct Cluster {
    project: Project,
    programs: PathBuf,
    queue: PathBuf,
}

impl Cluster {
    fn new() -> Cluster {
        let project = Project::new();
        let (programs, queue) = (project.path("programs"), project.path("queue"));
        std::fs::create_dir(&queue).unwrap();
        std::fs::create_dir(&programs).unwrap();
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/support/slurm.sh");
        for name in ["sbatch", "squeue", "scontrol", "sacct", "scancel"] {
            let program = programs.join(name);
            std::fs::copy(&stand_in, &program).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Cluster { project, programs, queue }
    }

    fn command(&self, worker: &Path, arguments: &[&str]) -> Command {
        let mut command = self.project.fathom(worker, &["sweep", "run", "s.yaml"]);
        command.args(["--launcher", "slurm"]).args(arguments);
        if !is_real() {
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .env("PATH", format!("{}:{path}", self.programs.display()))
                .env("FAKE_SLURM", &self.queue);
        }
        command
    }

    /// The arguments of every `sbatch`, a line each.
    fn submitted(&self) -> Vec<String> {
        let said = std::fs::read_to_string(self.queue.join("submitted")).unwrap_or_default();
        said.lines().map(str::to_string).collect()
    }
}

/// Waits for what another process does.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_array_of_runs_gives_what_runs_on_this_machine_give() {
    let here = Project::new();
    here.sweep(GRID);
    exits(&here.run(&scripted()), 0);

    let cluster = Cluster::new();
    cluster.project.sweep(GRID);
    let output = cluster.command(&scripted(), &["--sbatch=--comment=sounding"]).output().unwrap();
    exits(&output, 0);
    assert!(text(&output.stdout).contains("runs: 3 finished\n"), "{}", text(&output.stdout));
    assert_eq!(cluster.project.table(), here.table());
    if !is_real() {
        let submitted = cluster.submitted();
        assert_eq!(submitted.len(), 1, "one array: {submitted:?}");
        assert!(submitted[0].contains("--array=0-2 "), "{submitted:?}");
        assert!(submitted[0].contains(" --comment=sounding "), "{submitted:?}");
    }
    // What has ended names no task any more, and is not submitted again.
    let runs = std::fs::read_dir(cluster.project.results().join("runs")).unwrap();
    for run in runs {
        assert!(!run.unwrap().path().join("slurm.json").exists());
    }
    let output = cluster.command(&scripted(), &[]).output().unwrap();
    exits(&output, 0);
    assert!(text(&output.stdout).contains("runs: 3 done before\n"), "{}", text(&output.stdout));
    assert_eq!(cluster.project.attempts(), [1, 1, 1]);
}

#[test]
fn a_harness_finds_the_tasks_of_one_that_was_killed() {
    let cluster = Cluster::new();
    cluster.project.sweep("axes: { train.learning_rate: [0.1, 0.2] }\n");
    let mut first = cluster
        .command(&scripted(), &[])
        .env("SCRIPT_STEP_MS", "100")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = |count: usize| {
        let logs = std::fs::read_dir(cluster.project.results().join("runs")).into_iter().flatten();
        let is_begun = |log: PathBuf| std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
        logs.filter(|run| is_begun(run.as_ref().unwrap().path().join("events.jsonl"))).count()
            == count
    };
    until("two tasks begin", || begun(2));
    first.kill().unwrap();
    first.wait().unwrap();

    let output = cluster.command(&scripted(), &[]).output().unwrap();
    exits(&output, 0);
    assert!(text(&output.stdout).contains("runs: 2 finished\n"), "{}", text(&output.stdout));
    assert_eq!(cluster.project.attempts(), [1, 1], "no task was started twice");
}

/// As the accounts tell it, and as the controller does where Slurm keeps none.
#[test]
fn how_a_task_ended_is_how_its_run_stands() {
    for accounts in [true, false] {
        let cluster = Cluster::new();
        if accounts {
            std::fs::write(cluster.queue.join("accounts"), "").unwrap();
        }
        cluster.project.sweep("axes: { train.learning_rate: [0.1, 13.0, 14.0] }\n");
        let output = cluster.command(&scripted(), &[]).output().unwrap();
        exits(&output, 3);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("runs: 1 failed, 1 finished, 1 killed\n"), "{said}");
        let exited = "the worker exited with code 3 and wrote no ending: the script says so";
        assert!(said.contains(exited), "{said}");
        assert!(said.contains("killed: SIGABRT"), "{said}");
    }
}

/// A worker that does what `script` says, in the run's folder.
fn worker(cluster: &Cluster, script: &str) -> PathBuf {
    let path = cluster.project.path("worker.sh");
    std::fs::write(&path, format!("#!/bin/sh\n[ \"$1\" = run ] || exit 1\ncd \"$2\"\n{script}\n"))
        .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What the only run's sweep says that Slurm ended, with Slurm's number of the job left out.
#[track_caller]
fn ended_by_slurm(cluster: &Cluster, worker: &Path, arguments: &[&str]) -> String {
    let output = cluster.command(worker, arguments).output().unwrap();
    exits(&output, 3);
    let said = text(&output.stdout) + &text(&output.stderr);
    let (_, told) = said.split_once("killed: Slurm ended job ").unwrap_or_else(|| panic!("{said}"));
    let (job, how) = told.lines().next().unwrap().split_once(": ").unwrap();
    assert!(job.ends_with("_0"), "{job}");
    how.to_string()
}

#[test]
fn a_task_beyond_its_memory_is_told_as_such() {
    if is_real() && !the_real_one_has("FATHOM_SLURM_MEMORY") {
        return println!("skipped: this Slurm holds no job to its memory");
    }
    let cluster = Cluster::new();
    cluster.project.sweep("axes: { train.learning_rate: [0.1] }\n");
    std::fs::write(cluster.queue.join("1_0.told"), "OUT_OF_MEMORY 0:125").unwrap();
    let eats = if is_real() { "head -c 400M /dev/zero | tail" } else { "kill -9 $$" };
    let how = ended_by_slurm(&cluster, &worker(&cluster, eats), &["--sbatch=--mem=64M"]);
    assert_eq!(
        how,
        "OUT_OF_MEMORY: the host's memory, not the card's; --sbatch=--mem=… asks for more"
    );
}

/// Slurm's least time is a minute.
#[test]
fn a_task_beyond_its_time_is_told_as_such() {
    let cluster = Cluster::new();
    cluster.project.sweep("axes: { train.learning_rate: [0.1] }\n");
    std::fs::write(cluster.queue.join("1_0.told"), "TIMEOUT 0:15").unwrap();
    let lasts = if is_real() { "exec sleep 1000" } else { "kill $$" };
    let how = ended_by_slurm(&cluster, &worker(&cluster, lasts), &["--sbatch=--time=1"]);
    assert_eq!(how, "TIMEOUT: --sbatch=--time=… asks for more");
}

#[test]
fn a_task_that_somebody_cancels_is_killed_and_by_whom_is_said() {
    let cluster = Cluster::new();
    std::fs::write(cluster.queue.join("accounts"), "").unwrap();
    cluster.project.sweep("axes: { train.learning_rate: [0.1] }\n");
    let cancels =
        "job=${SLURM_ARRAY_JOB_ID:-1}_$SLURM_ARRAY_TASK_ID\nscancel $job\nexec sleep 1000";
    let how = ended_by_slurm(&cluster, &worker(&cluster, cancels), &[]);
    let has_accounts = !is_real() || the_real_one_has("FATHOM_SLURM_ACCOUNTS");
    let expected = if has_accounts { "CANCELLED by 0" } else { "CANCELLED" };
    assert_eq!(how, expected);
}

#[test]
fn what_slurm_refuses_is_said_in_its_words() {
    if is_real() {
        return;
    }
    let cluster = Cluster::new();
    cluster.project.sweep(GRID);
    std::fs::write(cluster.queue.join("closed"), "").unwrap();
    let output = cluster.command(&scripted(), &["--sbatch=--partition=nowhere"]).output().unwrap();
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(
        said.contains("Slurm does not take the runs") && said.contains("Invalid partition name"),
        "{said}"
    );

    let output = cluster
        .project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--launcher", "slurm"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(said.contains("--launcher slurm: expected Slurm's `sbatch` to answer here"), "{said}");
}
