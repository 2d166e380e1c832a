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

#[test]
fn a_task_that_slurm_ends_is_no_failure_of_the_run() {
    if is_real() {
        return;
    }
    let cluster = Cluster::new();
    cluster.project.sweep("axes: { train.learning_rate: [14.0] }\n");
    std::fs::write(cluster.queue.join("1_0.oom"), "").unwrap();
    let output = cluster.command(&scripted(), &[]).output().unwrap();
    exits(&output, 3);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(
        said.contains(
            "killed: Slurm ended job 1_0: OUT_OF_MEMORY: the host's memory, not the card's"
        ),
        "{said}"
    );
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
