//! Several hosts on one results folder: each has a name, process ids and a boot of its own (`unshare`), and shares only the folder.
//! Where a host can't be made so, these tests say so and pass.

#[path = "support/sweep_project.rs"]
mod sweep_project;

use fathom_spec::record::{Event, EventKind, Process, RunPaths, read_events};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};
use sweep_project::{Project, exits, scripted, text, uninterrupted, until};

/// What a host does before the program itself: it takes a name and a boot id.
const BOOT: &str = r#"
set -e
echo "$1" >/proc/sys/kernel/hostname
mount --bind "$2" /proc/sys/kernel/random/boot_id
shift 2
exec "$@"
"#;

/// Another machine, as far as a program can tell.
struct Host<'p> {
    name: &'static str,
    project: &'p Project,
}

impl<'p> Host<'p> {
    /// `None`, and a word on why, where this machine does not let us.
    fn new(name: &'static str, project: &'p Project) -> Option<Host<'p>> {
        std::fs::write(project.path(name), format!("{name}-0000\n")).unwrap();
        let host = Host { name, project };
        let mut command = Command::new("unshare");
        let tried = host.boot(&mut command).arg("true").output();
        match tried {
            Ok(output) if output.status.success() => Some(host),
            Ok(output) => {
                println!("skipped: no host can be made here: {}", text(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: no host can be made here: unshare: {error}");
                None
            }
        }
    }

    /// The arguments after which a program and its own follow.
    fn boot<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .args(["--user", "--map-root-user", "--uts", "--pid", "--mount", "--fork"])
            .args(["--kill-child", "--mount-proc", "sh", "-c", BOOT, "sh", self.name])
            .arg(self.project.path(self.name))
    }

    /// `fathom` on this host.
    fn fathom(&self, arguments: &[&str]) -> Command {
        let there = self.project.fathom(&scripted(), arguments);
        let mut command = Command::new("unshare");
        self.boot(&mut command).arg(there.get_program()).args(there.get_args());
        command.current_dir(there.get_current_dir().unwrap());
        command.envs(there.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.fathom(arguments).output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    }

    /// The sweep, a step in 20 ms.
    fn sweep(&self) -> Child {
        let mut command = self.fathom(&["sweep", "run", "s.yaml", "--no-report"]);
        command.env("SCRIPT_STEP_MS", "20").spawn().unwrap()
    }
}

/// The events of every run that has begun.
fn logs(project: &Project) -> Vec<(RunPaths, Vec<Event>)> {
    let folders = std::fs::read_dir(project.results().join("runs")).into_iter().flatten();
    let paths = folders.map(|folder| RunPaths::new(folder.unwrap().path()));
    paths
        .filter_map(|paths| {
            let (events, _) = read_events(&paths.events(), 0).ok()?;
            Some((paths, events))
        })
        .collect()
}

fn steps(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event.kind, EventKind::Step { .. })).count()
}

/// The only run, past its second step.
fn begun(project: &Project) -> (RunPaths, String) {
    let is_begun = || logs(project).iter().any(|(_, events)| steps(events) >= 2);
    until("a run has done two steps", is_begun);
    let paths = logs(project).remove(0).0;
    let run = paths.folder.file_name().unwrap().to_str().unwrap().to_string();
    (paths, run)
}

fn output(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// Six points, and each is run by one of them.
#[test]
fn two_hosts_share_a_sweep_and_run_no_point_twice() {
    let file = "axes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] }\n";
    let project = Project::new();
    project.sweep(file);
    let Some(red) = Host::new("red", &project) else { return };
    let blue = Host::new("blue", &project).unwrap();
    let sweeps = [red.sweep(), blue.sweep()];
    until("two runs are at work", || logs(&project).len() >= 2);
    for output in sweeps.map(output) {
        exits(&output, 0);
    }
    assert_eq!(project.attempts(), [1; 6]);
    assert_eq!(project.table(), uninterrupted(&scripted(), file));
}

#[test]
fn a_run_is_seen_and_steered_from_another_host() {
    let project = Project::new();
    project.sweep("set: { train.total_tokens: 1M }\naxes: { train.seed: [1] }\n");
    let Some(red) = Host::new("red", &project) else { return };
    let blue = Host::new("blue", &project).unwrap();
    for (order, leaves) in [("save-stop", true), ("stop", true), ("abort", false)] {
        let sweep = red.sweep();
        let before = logs(&project).first().map_or(0, |(_, events)| steps(events));
        until("it has gone on", || {
            logs(&project).first().is_some_and(|(_, events)| steps(events) > before + 2)
        });
        let (paths, run) = begun(&project);
        let status = blue.says(&["control", "status", &run]);
        assert!(status.contains("running on host red, process"), "{status}");
        until("the list says so", || {
            blue.says(&["runs", "ls", "--format", "csv"]).contains(",running,")
        });

        let checkpoint = paths.latest_checkpoint();
        let said = blue.says(&["control", "save", &run, "--wait", "60"]);
        assert!(said.contains("the script does save"), "{said}");
        let saved = paths.latest_checkpoint();
        assert!(saved > checkpoint, "{saved:?}");
        let said = blue.says(&["control", order, &run, "--wait", "60"]);
        assert!(said.contains(&format!("the script does {order}")), "{said}");
        let output = output(sweep);
        exits(&output, 3);
        assert!(text(&output.stdout).contains(&format!("stopped: {order} was asked for")));
        let last = logs(&project).remove(0).1.iter().rev().find_map(|event| match event.kind {
            EventKind::Step { step, .. } => Some(step),
            _ => None,
        });
        let left = paths.latest_checkpoint().map(|(step, _)| step);
        assert_eq!(left == last, leaves, "{order}: {left:?} of {last:?}");
    }
}

#[test]
fn a_host_that_vanishes_is_lost_when_its_heartbeat_is_old_and_another_goes_on() {
    let file = "axes: { train.learning_rate: [0.1] }\n";
    let project = Project::new();
    project.sweep(file);
    let Some(red) = Host::new("red", &project) else { return };
    let blue = Host::new("blue", &project).unwrap();
    let mut sweep = red.sweep();
    let (paths, run) = begun(&project);
    // All of its processes are gone at once.
    sweep.kill().unwrap();
    sweep.wait().unwrap();
    until("its worker is gone", || !fathom::run::is_held(&paths));

    let status = blue.says(&["control", "status", &run]);
    assert!(status.contains("running on host red"), "it was heard of a moment ago: {status}");
    a_minute_passes(&paths);
    let status = blue.says(&["control", "status", &run]);
    assert!(status.contains("no sign for 1 min") && status.contains("on host red"), "{status}");
    let ls = blue.says(&["runs", "ls", "--format", "csv"]);
    assert!(ls.contains(",lost,"), "{ls}");

    let goes_on = output(blue.sweep());
    exits(&goes_on, 0);
    assert!(text(&goes_on.stdout).contains("runs: 1 finished"), "{}", text(&goes_on.stdout));
    assert_eq!(project.attempts(), [2]);
    assert_eq!(project.table(), uninterrupted(&scripted(), file));
}

/// For who looks at a run's folder: all of it was written a minute earlier, by both clocks.
fn a_minute_passes(paths: &RunPaths) {
    let (events, _) = read_events(&paths.events(), 0).unwrap();
    let earlier = events.into_iter().map(|event| Event { time: event.time - 60.0, ..event });
    let lines: Vec<String> = earlier.map(|e| serde_json::to_string(&e).unwrap() + "\n").collect();
    std::fs::write(paths.events(), lines.concat()).unwrap();
    assert!(Process::read(paths).is_some_and(|process| process.host == "red"));
    let age = |file: &Path, seconds| {
        let file = std::fs::File::options().append(true).open(file).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    age(&paths.events(), 60);
    age(&paths.process(), 65);
}
