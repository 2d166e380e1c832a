//! A project for tests of sweeps: a folder with a configuration and texts, the harness run on it, and what came of it; and
//! what kills it at random moments.

// Each test program uses its part of this.
#![allow(dead_code)]

use fathom::store::{Status, Store};
use fathom::sweep::plan::Plan;
use fathom_spec::record::{EventKind, RunId, RunPaths, read_events};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const BASE: &str = "\
model:
  config: {vocab_size: 260, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 1000000}
tokenizer: {path: bytes}
data: {corpus: CORPUS, splits: {validation: [held_out.txt]}}
train: {sequence_length: 32, micro_batch_size: 2, total_tokens: 1280, learning_rate: 0.01, checkpoint_every_steps: 5}
eval: {context_lengths: [16, 32], last_stride: 8, max_windows: 4, loss_tokens: 64}
run: {device: cpu, threads: 1}
";

/// A folder with a base configuration, three texts, and a place for sweep files and results.
pub struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    pub fn new() -> Project {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        std::fs::create_dir(&corpus).unwrap();
        for (name, words) in [("a.txt", 160), ("b.txt", 90), ("held_out.txt", 80)] {
            let text: String = (0..words)
                .map(|i| ["tide ", "bell ", "salt ", "lamp. "][(i * i + i / 3) % 4])
                .collect();
            std::fs::write(corpus.join(name), text).unwrap();
        }
        let base = BASE.replace("CORPUS", corpus.to_str().unwrap());
        std::fs::write(dir.path().join("base.yaml"), base).unwrap();
        Project { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn results(&self) -> PathBuf {
        self.path("results")
    }

    /// Writes `s.yaml`, on top of the base.
    pub fn sweep(&self, text: &str) -> PathBuf {
        let path = self.path("s.yaml");
        std::fs::write(&path, format!("base: base.yaml\n{text}")).unwrap();
        path
    }

    pub fn plan(&self, text: &str) -> anyhow::Result<Plan> {
        Plan::read(&self.sweep(text), &[], &[])
    }

    /// Label, seed and one key's value of each point.
    #[track_caller]
    pub fn points(&self, text: &str, key: &str) -> Vec<String> {
        let points = self.plan(text).unwrap().points.into_iter();
        let value = |config: fathom_spec::config::RunConfig| {
            config
                .flatten()
                .into_iter()
                .find(|(k, _)| k == key)
                .map_or("none".into(), |(_, v)| v.to_string())
        };
        points.map(|p| format!("{}, {}: {}", p.label, p.seed, value(p.config))).collect()
    }

    pub fn fathom(&self, worker: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
        command.current_dir(self.dir.path()).env("FATHOM_ENGINE", worker).args(arguments);
        // Cards that are made up are this project's alone.
        command.env("FATHOM_DEVICES", self.path("devices"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, worker: &Path) -> Output {
        self.fathom(worker, &["sweep", "run", "s.yaml"]).output().unwrap()
    }

    /// Everything that a report is made of, but times and paths: the final table. Run ids are in it: they come of the
    /// configuration and the data alone.
    pub fn table(&self) -> String {
        let store = Store::open_read_only(&self.results()).unwrap();
        let ask = |query: &str| {
            let table = fathom::cli::sql::answer(&store, query).unwrap();
            table.render(fathom::cli::table::Format::Csv)
        };
        [
            "SELECT position, label, seed, run_id, status, step, tokens, last_loss FROM v_runs ORDER BY position",
            "SELECT run_id, key, step, value FROM v_metrics
             WHERE key IN ('loss', 'learning_rate', 'tokens', 'grad_norm', 'eval_loss.validation') ORDER BY run_id, key, step",
            "SELECT run_id, method, context_length, windows, tokens, nll, nll_low, nll_high FROM v_perplexity
             ORDER BY run_id, method, context_length",
        ]
        .map(ask)
        .concat()
    }

    pub fn status(&self, run: &str) -> Status {
        let store = Store::open_read_only(&self.results()).unwrap();
        store.status(&RunId(run.into())).unwrap().unwrap()
    }

    /// How often the worker of each run began.
    pub fn attempts(&self) -> Vec<usize> {
        let folders = std::fs::read_dir(self.results().join("runs")).unwrap();
        let counts: Vec<usize> = folders
            .map(|folder| {
                let (events, _) =
                    read_events(&RunPaths::new(folder.unwrap().path()).events(), 0).unwrap();
                events.iter().filter(|e| matches!(e.kind, EventKind::Started { .. })).count()
            })
            .collect();
        counts
    }
}

/// `target/…/examples/scripted_worker`.
pub fn scripted() -> PathBuf {
    beside_tests("examples/scripted_worker")
}

pub fn engine() -> PathBuf {
    beside_tests("fathom-engine")
}

pub fn beside_tests(name: &str) -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{}: expected a program, found none
  help: `cargo test --release --workspace` builds it; for one test alone, first `cargo build --release --workspace --bins --examples`",
        path.display()
    );
    path
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub fn exits(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal);
}

/// The processes of workers that are at work on this project.
pub fn workers(project: &Project) -> Vec<i32> {
    let of_project = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = text(&line);
        line.contains("\0run\0")
            && line.contains(project.dir.path().file_name().unwrap().to_str().unwrap())
            || line.contains("\0run\0results/runs/")
                && std::fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| cwd == project.dir.path())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|&pid| of_project(pid))
        .collect()
}

/// Waits until `holds`, at most a minute.
#[track_caller]
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn uninterrupted(worker: &Path, file: &str) -> String {
    let project = Project::new();
    project.sweep(file);
    exits(&project.run(worker), 0);
    project.table()
}

/// Kills the harness, a worker or both at random moments until the sweep is through, and returns how often.
pub fn through_kills(
    project: &Project,
    worker: &Path,
    seed: u64,
    longest: u64,
    step_ms: &str,
) -> usize {
    killed_until_done(project, worker, seed, longest, step_ms, "2")
}

/// As [`through_kills`], with so many runs at a time.
pub fn killed_until_done(
    project: &Project,
    worker: &Path,
    seed: u64,
    longest: u64,
    step_ms: &str,
    jobs: &str,
) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let begun = Instant::now();
    for kills in 0.. {
        assert!(begun.elapsed() < Duration::from_secs(240), "the sweep does not come to its end");
        let mut command =
            project.fathom(worker, &["sweep", "run", "s.yaml", "--jobs", jobs, "--no-report"]);
        let mut child = command
            .env("SCRIPT_STEP_MS", step_ms)
            .env("SCRIPT_EDGE", "20000")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Longer each time, so that it ends.
        let wait = random.random_range(0..longest) + kills * longest / 16;
        let deadline = Instant::now() + Duration::from_millis(wait);
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(status) = child.try_wait().unwrap() {
            if status.code() == Some(0) {
                return kills as usize;
            }
            // A worker was killed in an earlier round: its run has no result yet.
            assert_eq!(status.code(), Some(3));
            continue;
        }
        let what = random.random_range(0..3);
        if what != 1 {
            signal(&child, nix::sys::signal::Signal::SIGKILL);
        }
        if what != 0 {
            for pid in workers(project) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        child.wait().unwrap();
    }
    unreachable!()
}
