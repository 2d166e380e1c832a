//! Several harnesses of one user on one machine: what they place on its devices fits together, whoever is killed.
//!
//! The card is made up. A run is predicted to take what a process takes beside its tensors, 0.75 GiB, and little more.

#[path = "support/sweep_project.rs"]
mod sweep_project;

use fathom::sweep::drive::{DEVICES_VARIABLE, MACHINE_VARIABLE};
use fathom_spec::record::{Event, EventKind, RunPaths, read_events};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command};
use sweep_project::{Project, exits, scripted, signal, text, until, workers};

const TWO: &str = "set: { run.device: cuda }\naxes: { train.learning_rate: [0.1, 0.2] }\n";

/// A machine with one card, as every harness on it is told of it, and the folder of its shares.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        Machine { dir: tempfile::tempdir().unwrap() }
    }

    fn shares(&self) -> PathBuf {
        self.dir.path().join("devices")
    }

    /// A harness on a sweep of the project, to which so much of the card is free.
    fn sweep(&self, project: &Project, free: &str) -> Command {
        let description = self.dir.path().join(format!("{free}.json"));
        let card = format!(r#"{{"index": 0, "uuid": "GPU-0", "memory": "{free}"}}"#);
        let machine = format!(r#"{{"cores": 2, "memory": "4GiB", "gpus": [{card}]}}"#);
        std::fs::write(&description, machine).unwrap();
        let arguments = ["sweep", "run", "s.yaml", "--devices", "all", "--no-report"];
        let mut command = project.fathom(&scripted(), &arguments);
        command.env(MACHINE_VARIABLE, description).env(DEVICES_VARIABLE, self.shares());
        command.env("SCRIPT_STEP_MS", "2");
        command
    }

    /// As [`Machine::sweep`], whose runs wait after their first step for the file `gate` of the project.
    fn gated(&self, project: &Project, free: &str) -> Child {
        let mut command = self.sweep(project, free);
        command.env("SCRIPT_GATE", project.path("gate")).spawn().unwrap()
    }

    #[track_caller]
    fn has_no_shares(&self) {
        let entries = std::fs::read_dir(self.shares()).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["lock"]);
    }
}

fn project() -> Project {
    let project = Project::new();
    project.sweep(TWO);
    project
}

fn open(project: &Project) {
    std::fs::write(project.path("gate"), "").unwrap();
}

fn logs(project: &Project) -> Vec<Vec<Event>> {
    let runs = std::fs::read_dir(project.results().join("runs")).into_iter().flatten();
    let events = |run: &Path| read_events(&RunPaths::new(run).events(), 0).map(|read| read.0);
    runs.filter_map(|run| events(&run.unwrap().path()).ok()).collect()
}

/// When each run of the projects was at work, in order.
fn spans(projects: &[&Project]) -> Vec<(f64, f64)> {
    let of = |events: Vec<Event>| Some((events.first()?.time, events.last()?.time));
    let mut spans: Vec<_> =
        projects.iter().flat_map(|project| logs(project)).filter_map(of).collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    spans
}

/// So many runs were at work, each when the one before it had ended.
#[track_caller]
fn were_one_at_a_time(projects: &[&Project], runs: usize) {
    let spans = spans(projects);
    assert_eq!(spans.len(), runs);
    assert!(spans.windows(2).all(|two| two[0].1 <= two[1].0), "{spans:?}");
}

/// So many runs wait at the gate.
fn wait_at_the_gate(project: &Project, runs: usize) {
    let has_stepped = |events: &Vec<Event>| {
        events.iter().any(|event| matches!(event.kind, EventKind::Step { .. }))
    };
    until("runs are at the gate", || {
        logs(project).iter().filter(|log| has_stepped(log)).count() == runs
    });
    assert_eq!(workers(project).len(), runs);
}

/// Reads what a harness says until it says that it waits for another.
#[track_caller]
fn hears_that_it_waits(harness: &mut Child) -> BufReader<ChildStderr> {
    let mut said = BufReader::new(harness.stderr.take().unwrap());
    let mut all = String::new();
    while !all
        .contains("waiting for room on the devices: other harnesses have runs at work there: ")
    {
        assert!(said.read_line(&mut all).unwrap() > 0, "it did not wait: {all}");
    }
    said
}

/// Of two that are begun at once, and of one that is begun while the other is at work.
#[test]
fn runs_of_two_harnesses_that_do_not_fit_together_are_never_side_by_side() {
    let machine = Machine::new();
    let (a, b) = (project(), project());
    let first = machine.gated(&a, "1GiB");
    wait_at_the_gate(&a, 1);
    let mut second = machine.sweep(&b, "1GiB").spawn().unwrap();
    let mut said = hears_that_it_waits(&mut second);
    assert!(logs(&b).is_empty());
    open(&a);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("waiting"), "it is said once: {rest}");
    exits(&second.wait_with_output().unwrap(), 0);
    exits(&first.wait_with_output().unwrap(), 0);
    were_one_at_a_time(&[&a, &b], 4);
    machine.has_no_shares();

    let (c, d) = (project(), project());
    let both = [&c, &d].map(|project| machine.sweep(project, "1GiB").spawn().unwrap());
    for harness in both {
        exits(&harness.wait_with_output().unwrap(), 0);
    }
    were_one_at_a_time(&[&c, &d], 4);
    machine.has_no_shares();
}

/// Also where what the workers of the one take is missing from what the other reads as free.
#[test]
fn runs_of_two_harnesses_that_fit_are_side_by_side() {
    let machine = Machine::new();
    let (a, b) = (project(), project());
    let first = machine.gated(&a, "8GiB");
    wait_at_the_gate(&a, 2);
    let second = machine.gated(&b, "1GiB");
    wait_at_the_gate(&b, 2);
    assert_eq!(workers(&a).len(), 2, "of the other harness are at work still");
    open(&a);
    open(&b);
    exits(&second.wait_with_output().unwrap(), 0);
    exits(&first.wait_with_output().unwrap(), 0);
    machine.has_no_shares();

    // Nobody has anything of the card: what is free is as it is read.
    let c = project();
    exits(&machine.sweep(&c, "1GiB").output().unwrap(), 0);
    were_one_at_a_time(&[&c], 2);
}

#[test]
fn a_worker_keeps_the_share_of_a_harness_that_was_killed() {
    let machine = Machine::new();
    let (a, b) = (project(), project());
    let mut first = machine.gated(&a, "1GiB");
    wait_at_the_gate(&a, 1);
    signal(&first, Signal::SIGKILL);
    first.wait().unwrap();
    let mut second = machine.sweep(&b, "1GiB").spawn().unwrap();
    let said = hears_that_it_waits(&mut second);
    assert_eq!(workers(&a).len(), 1, "it has no harness any more, and goes on");
    open(&a);
    drop(said);
    exits(&second.wait_with_output().unwrap(), 0);
    were_one_at_a_time(&[&a, &b], 3);
    machine.has_no_shares();
}

#[test]
fn what_was_killed_with_its_workers_is_in_nobodys_way() {
    let machine = Machine::new();
    let (a, b) = (project(), project());
    let mut first = machine.gated(&a, "1GiB");
    wait_at_the_gate(&a, 1);
    let worker = workers(&a)[0];
    signal(&first, Signal::SIGKILL);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    first.wait().unwrap();
    until("the worker is gone", || workers(&a).is_empty());
    assert!(std::fs::read_dir(machine.shares()).unwrap().count() > 1, "its share lies there");
    let output = machine.sweep(&b, "1GiB").output().unwrap();
    exits(&output, 0);
    assert!(!text(&output.stderr).contains("waiting"), "{}", text(&output.stderr));
    machine.has_no_shares();
}

#[test]
fn without_a_folder_for_shares_runs_are_placed_all_the_same() {
    let machine = Machine::new();
    let project = project();
    std::fs::write(machine.shares(), "a file").unwrap();
    let output = machine.sweep(&project, "1GiB").output().unwrap();
    exits(&output, 0);
    let said = text(&output.stderr);
    assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    assert!(
        said.contains("what other harnesses have of the devices is not seen\n  help: "),
        "{said}"
    );
    were_one_at_a_time(&[&project], 2);
}
