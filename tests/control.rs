//! Runs that are steered from outside, runs whose processes died, and runs whose folder fails under them: what is said is true,
//! and nothing that was logged is lost.

use assert_cmd::cargo::cargo_bin;
use fathom::store::{Status, Store};
use fathom_spec::record::{Event, EventKind, EventLog, Process, RunId, RunPaths, read_events};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BASE: &str = "\
model:
  config: {vocab_size: 260, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 64}
tokenizer: {path: bytes}
data: {corpus: CORPUS, splits: {validation: [held_out.txt]}}
train: {sequence_length: 32, micro_batch_size: 2, total_tokens: TOKENS, learning_rate: 0.01, checkpoint_every_steps: 5}
eval: {context_lengths: [16, 32], last_stride: 8, max_windows: 4, loss_tokens: 64}
run: {device: cpu, threads: 1}
";

/// A folder with a sweep of one run.
struct Project {
    dir: tempfile::TempDir,
    worker: PathBuf,
}

impl Project {
    /// A run of `steps` steps by `worker`.
    fn new(worker: &str, steps: u64) -> Project {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        std::fs::create_dir(&corpus).unwrap();
        for (name, words) in [("a.txt", 160), ("held_out.txt", 80)] {
            let text: String = (0..words)
                .map(|i| ["tide ", "bell ", "salt ", "lamp. "][(i * i + i / 3) % 4])
                .collect();
            std::fs::write(corpus.join(name), text).unwrap();
        }
        let base = BASE.replace("CORPUS", corpus.to_str().unwrap());
        let base = base.replace("TOKENS", &(64 * steps).to_string());
        std::fs::write(dir.path().join("base.yaml"), base).unwrap();
        let sweep = "base: base.yaml\naxes: { train.seed: [1] }\n";
        std::fs::write(dir.path().join("s.yaml"), sweep).unwrap();
        Project { dir, worker: beside_tests(worker) }
    }

    fn results(&self) -> PathBuf {
        self.dir.path().join("results")
    }

    fn fathom(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin!("fathom"));
        command.current_dir(self.dir.path()).env("FATHOM_ENGINE", &self.worker).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The sweep, a step in `step_ms` milliseconds where the worker is the scripted one.
    fn sweep(&self, step_ms: u64) -> Command {
        let mut command = self.fathom(&["sweep", "run", "s.yaml", "--no-report"]);
        command.env("SCRIPT_STEP_MS", step_ms.to_string());
        command
    }

    /// The sweep at work, its run past its second step.
    fn begun(&self, step_ms: u64) -> Child {
        let child = self.sweep(step_ms).spawn().unwrap();
        until("the run has done two steps", || self.steps().last().is_some_and(|(n, _)| *n >= 2));
        child
    }

    /// What `fathom control` prints, and whether it went well.
    fn control(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.fathom(&[&["control"], arguments].concat()).output().unwrap();
        (output.status.success(), said_by(&output))
    }

    /// The one run's folder; one that is not there before it has begun.
    fn paths(&self) -> RunPaths {
        let folders = std::fs::read_dir(self.results().join("runs")).into_iter().flatten();
        let folder = folders.flatten().next().map(|entry| entry.path());
        RunPaths::new(folder.unwrap_or_else(|| self.results().join("runs/none")))
    }

    fn events(&self) -> Vec<Event> {
        read_events(&self.paths().events(), 0).map_or(Vec::new(), |(events, _)| events)
    }

    fn ending(&self) -> Option<EventKind> {
        let last = self.events().pop()?.kind;
        last.ending().is_some().then_some(last)
    }

    /// Step and loss of every step event.
    fn steps(&self) -> Vec<(u64, f64)> {
        let steps = self.events().into_iter().filter_map(|event| match event.kind {
            EventKind::Step { step, loss, .. } => Some((step, loss)),
            _ => None,
        });
        steps.collect()
    }

    fn stored(&self) -> fathom::store::Run {
        Store::open_read_only(&self.results()).unwrap().runs().unwrap().remove(0)
    }
}

fn beside_tests(name: &str) -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = profile.join(name);
    assert!(path.is_file(), "{}: expected a program, found none", path.display());
    path
}

fn said_by(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// Ends the sweep and its worker at once, as a crash of the machine would, but for what the kernel keeps.
fn crash(project: &Project, mut child: Child) {
    let worker = Process::read(&project.paths()).expect("the supervisor wrote it").pid;
    child.kill().unwrap();
    let _ = kill(Pid::from_raw(worker as i32), Signal::SIGKILL);
    child.wait().unwrap();
    let gone = || {
        !Path::new(&format!("/proc/{worker}")).exists() || !fathom::run::is_held(&project.paths())
    };
    until("the worker is gone", gone);
}

/// Waits until `holds`, at most a minute.
#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_running_run_is_listed_saved_and_stopped_and_goes_on() {
    let project = Project::new("examples/scripted_worker", 400);
    let child = project.begun(10);
    let (_, list) = project.control(&["list", "--format", "csv"]);
    let row = list.lines().nth(1).unwrap_or_default();
    let RunPaths { folder } = project.paths();
    let run = folder.file_name().unwrap().to_str().unwrap();
    assert!(
        row.starts_with(&format!("{run},\"s: train.seed=1, seed 1\",running,"))
            || row.contains(",running,"),
        "{list}"
    );
    let (_, status) = project.control(&["status", &run[..6]]);
    assert!(status.starts_with(&format!("run {run}: running here, process ")), "{status}");
    assert!(status.contains("started by process") && status.contains("last sign"), "{status}");

    let (done, saved) = project.control(&["save", &run[..6], "--wait"]);
    assert!(done && saved == format!("run {run}: the script does save\n"), "{saved}");
    let (done, refused) = project.control(&["start-annealing", "--sweep", "s", "--wait", "30"]);
    assert!(
        !done && refused.contains("start-annealing: refused: the script has no schedule"),
        "{refused}"
    );
    let (done, stopped) = project.control(&["save-stop", "--all", "--wait"]);
    assert!(done, "{stopped}");
    assert!(stopped.contains(": save-stop was asked for; the script does save-stop"), "{stopped}");
    let Some(EventKind::Stopped { step, .. }) = project.ending() else { panic!("{stopped}") };
    assert!(stopped.contains(&format!("stopped after step {step}: ")), "{stopped}");
    assert_eq!(project.paths().latest_checkpoint().unwrap().0, step);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(3));

    // What is not at work can't be asked, and says how it stands.
    let (done, late) = project.control(&["stop", run]);
    assert!(!done && late.contains("expected a run at work to stop, found it stopped"), "{late}");
    assert_eq!(project.control(&["stop", "--all"]), (true, "no run is at work\n".into()));
    assert_eq!(project.sweep(0).output().unwrap().status.code(), Some(0));
    let steps: Vec<u64> = project.steps().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, (1..=400).collect::<Vec<_>>(), "every step once");
}

/// The scripted worker would save at each fifth step; the engine's own abort is tested beside it.
#[test]
fn what_is_sent_without_waiting_is_acted_on_and_garbage_is_answered() {
    let project = Project::new("examples/scripted_worker", 4000);
    let child = project.begun(5);
    let control = project.paths().control();
    std::fs::write(control.join("torn.json"), "{\"command\": \"sa").unwrap();
    let answered = |name: &str| {
        project.events().into_iter().find_map(|event| match event.kind {
            EventKind::Control { outcome, request, .. } if request.as_deref() == Some(name) => {
                Some(outcome)
            }
            _ => None,
        })
    };
    until("the torn file is answered", || answered("torn").is_some());
    assert!(answered("torn").unwrap().starts_with("refused: expected `{\"command\": NAME}`"));
    assert!(!control.join("torn.json").exists());
    let (done, sent) = project.control(&["abort", "--all"]);
    assert!(
        done && sent.contains("asked to abort; it acts on it after the step it is in"),
        "{sent}"
    );
    let output = child.wait_with_output().unwrap();
    assert!(said_by(&output).contains("abort was asked for"), "{}", said_by(&output));
    assert!(matches!(project.ending(), Some(EventKind::Stopped { .. })));
}

#[test]
fn a_dead_run_is_known_at_once_tidied_up_and_taken_up_again() {
    let project = Project::new("examples/scripted_worker", 60);
    let child = project.begun(20);
    crash(&project, child);
    let paths = project.paths();
    let (_, list) = project.control(&["list", "--format", "csv"]);
    assert!(list.contains(",dead,"), "{list}");
    let run = paths.folder.file_name().unwrap().to_str().unwrap().to_string();
    let (done, dead) = project.control(&["save", &run]);
    assert!(!done && dead.contains("dead: no ending was logged, and process"), "{dead}");
    // The id of a process is used again: by this test's own.
    let dead_process = Process::read(&paths).unwrap();
    Process { pid: std::process::id(), ..dead_process }.write(&paths).unwrap();
    assert!(project.control(&["list", "--format", "csv"]).1.contains(",dead,"));

    std::fs::write(paths.control().join("1.json"), "{\"command\": \"abort\"}").unwrap();
    let (_, status) = project.control(&["status", &run]);
    assert!(status.contains("waiting    abort"), "{status}");
    let (done, tidied) = project.control(&["cleanup"]);
    assert!(
        done && tidied.contains("tidied up (dead)")
            && tidied.contains("lost: no ending was logged"),
        "{tidied}"
    );
    assert!(tidied.ends_with("1 runs were tidied up\n"), "{tidied}");
    assert!(
        !paths.lock().exists()
            && !paths.process().exists()
            && !paths.control().join("1.json").exists()
    );
    assert_eq!(project.stored().status, Status::Lost);
    assert!(
        project.control(&["cleanup"]).1.starts_with("0 runs"),
        "a second time there is nothing"
    );
    assert_eq!(project.sweep(0).output().unwrap().status.code(), Some(0));
    assert_eq!(project.stored().status, Status::Finished);
}

/// A run that waits for its turn is not called running because a harness died that had it.
#[test]
fn a_harness_that_starts_says_what_became_of_the_runs_it_finds() {
    let project = Project::new("examples/scripted_worker", 60);
    let child = project.begun(20);
    until("the store has it as running", || {
        Store::open_read_only(&project.results()).is_ok_and(|store| {
            store.runs().unwrap().iter().any(|run| run.status == Status::Running)
        })
    });
    crash(&project, child);
    let mut store = Store::open(&project.results()).unwrap();
    let lost = fathom::run::settle(&mut store, fathom::sweep::drive::now()).unwrap();
    assert_eq!(lost.len(), 1);
    let run = project.stored();
    assert_eq!(
        (run.status, run.status_detail.as_deref()),
        (Status::Lost, Some(lost[0].1.as_str()))
    );
    assert!(lost[0].1.starts_with("no ending was logged, and process"), "{}", lost[0].1);
}

/// On another host there is no process to ask for: what the run writes has to do, and is said to.
#[test]
fn a_run_of_another_host_is_what_is_heard_of_it() {
    let project = Project::new("examples/scripted_worker", 60);
    let child = project.begun(20);
    until("the store has it as running", || {
        Store::open_read_only(&project.results()).is_ok_and(|store| {
            store.runs().unwrap().iter().any(|run| run.status == Status::Running)
        })
    });
    crash(&project, child);
    let paths = project.paths();
    let process = Process::read(&paths).unwrap();
    let boot_id = "another".to_string();
    Process { boot_id, host: "node7".into(), ..process }.write(&paths).unwrap();
    let run = paths.folder.file_name().unwrap().to_str().unwrap().to_string();
    let ls = || said_by(&project.fathom(&["runs", "ls", "--format", "csv"]).output().unwrap());
    let (_, status) = project.control(&["status", &run]);
    assert!(
        status.contains("running on host node7, process") && status.contains("by what it writes"),
        "{status}"
    );
    assert!(ls().contains(",running,"), "{}", ls());
    // Nobody answers for it: the waiting ends, and the command stays for it.
    let (done, late) = project.control(&["save", &run, "--wait", "0"]);
    assert!(
        !done && late.contains("save: no answer yet; the run is running on host node7"),
        "{late}"
    );
    assert_eq!(fathom_spec::record::control::waiting(&paths.control()).len(), 1);

    // All of its log was written a minute ago, by both clocks.
    let text = std::fs::read_to_string(paths.events()).unwrap();
    let earlier: String = text
        .lines()
        .map(|line| {
            let mut event: Event = serde_json::from_str(line).unwrap();
            event.time -= 60.0;
            serde_json::to_string(&event).unwrap() + "\n"
        })
        .collect();
    std::fs::write(paths.events(), earlier).unwrap();
    for (file, seconds) in [(paths.events(), 60), (paths.process(), 65)] {
        let file = std::fs::File::options().append(true).open(file).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }
    let (_, status) = project.control(&["status", &run]);
    assert!(status.contains("no sign for 1 min 0") && status.contains("on host node7"), "{status}");
    assert!(ls().contains(",lost,"), "{}", ls());
    let status = || {
        said_by(
            &project
                .fathom(&["sql", "--format", "csv", "SELECT status FROM v_runs"])
                .output()
                .unwrap(),
        )
    };
    assert_eq!(status(), "status\nlost\n");
    let (_, tidied) = project.control(&["cleanup"]);
    assert!(tidied.contains("is left as it is: it is of another host, and silent"), "{tidied}");
    assert!(paths.process().exists());

    // It was but slow: what it logs counts.
    EventLog::open(&paths.events()).unwrap().write(EventKind::Heartbeat { step: 9 }).unwrap();
    assert_eq!(status(), "status\nrunning\n");
    assert!(ls().contains(",running,"), "{}", ls());
}

/// The kernel tells the worker that its supervisor died; it writes a checkpoint and says why it ended.
#[test]
fn a_worker_whose_harness_is_killed_saves_and_says_why_it_stopped() {
    let project = Project::new("fathom-engine", 100_000);
    let mut child = project.begun(0);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the worker has ended", || project.ending().is_some());
    let Some(EventKind::Stopped { step, reason }) = project.ending() else {
        panic!("{:?}", project.ending())
    };
    let expected = format!("SIGTERM: the process that started the run ({}) is gone", child.id());
    assert_eq!(reason, expected);
    assert_eq!(project.paths().latest_checkpoint().unwrap().0, step);
}

/// Neither `abort` nor a due checkpoint leaves one behind; what was saved before stays, and the answer comes within a step.
#[test]
fn the_engine_saves_anneals_and_aborts_between_two_steps() {
    let project = Project::new("fathom-engine", 100_000);
    let base = std::fs::read_to_string(project.dir.path().join("base.yaml")).unwrap();
    let every_step = base.replace(
        "checkpoint_every_steps: 5",
        "checkpoint_every_steps: 1, keep_checkpoints: 100000",
    );
    std::fs::write(project.dir.path().join("base.yaml"), every_step).unwrap();
    let child = project.begun(0);
    let (done, refused) = project.control(&["start-annealing", "--all", "--wait"]);
    assert!(
        !done && refused.contains("expected `wsd` to start its decay, found `constant`"),
        "{refused}"
    );
    let (done, saved) = project.control(&["save", "--all", "--wait"]);
    assert!(
        done && saved.contains("checkpoints/step-") && saved.contains(" is written"),
        "{saved}"
    );
    let (done, aborted) = project.control(&["abort", "--all", "--wait"]);
    assert!(
        done && aborted.contains("abort was asked for; no checkpoint was written"),
        "{aborted}"
    );
    let Some(EventKind::Stopped { step, .. }) = project.ending() else { panic!("{aborted}") };
    // One was due at this very step.
    assert_eq!(project.paths().latest_checkpoint().unwrap().0, step - 1);
    child.wait_with_output().unwrap();
}

/// Evaluates after every step, and at the end by context length: seconds each. `train` are further settings.
fn evaluate_slowly(project: &Project, train: &str) {
    let words: String = (0..16_000).map(|i| ["tide ", "bell ", "salt ", "lamp. "][i % 4]).collect();
    std::fs::write(project.dir.path().join("corpus/held_out.txt"), words).unwrap();
    let base = std::fs::read_to_string(project.dir.path().join("base.yaml")).unwrap();
    let slow = base.replace(
        "max_windows: 4, loss_tokens: 64",
        "max_windows: 9000, loss_tokens: 40k, every_steps: 1",
    );
    let slow =
        slow.replace("checkpoint_every_steps: 5", &format!("checkpoint_every_steps: 5{train}"));
    std::fs::write(project.dir.path().join("base.yaml"), slow).unwrap();
}

/// The steps after which the loss on the held-out text is known.
fn evaluated(project: &Project) -> Vec<u64> {
    let steps = project.events().into_iter().filter_map(|event| match event.kind {
        EventKind::Eval { step, .. } => Some(step),
        _ => None,
    });
    steps.collect()
}

/// What comes while an evaluation is made is answered, and who can't be saved is not stopped by what was to save it.
#[test]
fn what_is_asked_for_in_an_evaluation_is_answered() {
    let project = Project::new("fathom-engine", 2);
    evaluate_slowly(&project, ", save_checkpoints: false");
    let child = project.sweep(0).spawn().unwrap();
    until("the last step is done", || project.steps().len() == 3 && evaluated(&project) == [1, 2]);
    let unsaved = "refused: no checkpoint can be written: train.save_checkpoints is `false`";
    for command in ["save", "save-stop"] {
        let (done, said) = project.control(&[command, "--all", "--wait"]);
        assert!(!done && said.contains(unsaved), "{command}: {said}");
    }
    until("the losses are known", || evaluated(&project) == [1, 2, 3]);
    let (done, said) = project.control(&["save-stop", "--all", "--wait"]);
    assert!(!done && said.contains(unsaved), "{said}");
    let (done, said) = project.control(&["start-annealing", "--all", "--wait"]);
    assert!(!done && said.contains("refused: training is done"), "{said}");
    let output = child.wait_with_output().unwrap();
    assert!(matches!(project.ending(), Some(EventKind::Finished { .. })), "{}", said_by(&output));
}

/// What a ladder decides by is there whenever a run stands at a rung.
#[test]
fn a_stop_at_a_rung_leaves_what_it_is_compared_by() {
    let project = Project::new("fathom-engine", 2);
    evaluate_slowly(&project, "");
    let sweep = "base: base.yaml\naxes: { train.learning_rate: [0.01, 0.02] }\nset: { eval.loss_tokens: 20k }\n\
                 search: { halving: { metric: eval_loss.validation, rungs: [60], keep: 1/2 } }\n";
    std::fs::write(project.dir.path().join("s.yaml"), sweep).unwrap();
    let child = project.sweep(0).spawn().unwrap();
    let stepped = || {
        let runs =
            std::fs::read_dir(project.results().join("runs")).into_iter().flatten().flatten();
        let logs = runs.map(|run| std::fs::read_to_string(RunPaths::new(run.path()).events()));
        logs.flatten().any(|log| log.contains(r#""kind":"step""#))
    };
    until("a run has done its first step", stepped);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        said_by(&output).contains("the same command goes on from here"),
        "{}",
        said_by(&output)
    );
    let output = project.sweep(0).output().unwrap();
    assert!(said_by(&output).contains("runs: 1 finished, 1 stopped"), "{}", said_by(&output));
}

/// An evaluation takes minutes on a long context. Who asks for the end does not wait for it, and it is made up for later.
#[test]
fn the_end_is_not_kept_waiting_by_an_evaluation() {
    let project = Project::new("fathom-engine", 2);
    evaluate_slowly(&project, "");
    let evaluated = || evaluated(&project);
    let stopped_in = |what: &str, is_in: &dyn Fn() -> bool| {
        let child = project.sweep(0).spawn().unwrap();
        until(what, is_in);
        let (done, said) = project.control(&["stop", "--all", "--wait"]);
        assert!(done, "{said}");
        child.wait_with_output().unwrap();
        let Some(EventKind::Stopped { step, .. }) = project.ending() else { panic!("{said}") };
        (step, said)
    };

    // In the evaluation after the first of three steps.
    let (step, said) = stopped_in("the first step is done", &|| project.steps().len() == 1);
    assert_eq!((step, evaluated()), (1, vec![]), "{said}");
    assert!(said.contains("checkpoints/step-") && said.contains(" is written"), "{said}");

    // In the last one, by context length: the losses of all steps are known then.
    let has_perplexity =
        || project.events().iter().any(|event| matches!(event.kind, EventKind::Perplexity { .. }));
    let (step, said) = stopped_in("training is done", &|| evaluated() == [1, 2, 3]);
    assert_eq!((step, evaluated(), has_perplexity()), (3, vec![1, 2, 3], false), "{said}");
    assert!(said.contains("its evaluation is left to another time"), "{said}");

    let output = project.sweep(0).output().unwrap();
    assert!(
        matches!(project.ending(), Some(EventKind::Finished { step: 3, .. })),
        "{}",
        said_by(&output)
    );
    assert!(has_perplexity());
}

/// A full disk, played by a limit on the size of files: the run ends with the reason, its log is whole, and with room again
/// it comes to the same losses as one that had room all along.
#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    let whole = Project::new("fathom-engine", 40);
    assert_eq!(whole.sweep(0).output().unwrap().status.code(), Some(0));
    let project = Project::new("fathom-engine", 40);
    // The folder as the harness makes it, then the worker alone under the limit.
    let child = project.begun(0);
    crash(&project, child);
    let paths = project.paths();
    let before = project.events();
    let room = std::fs::metadata(paths.events()).unwrap().len() + 700;
    let mut worker = Command::new(&project.worker);
    worker.arg("run").arg(&paths.folder).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: setrlimit and signal are async-signal-safe, and nothing is allocated.
    unsafe {
        worker.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: room, rlim_max: room };
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        });
    }
    let output = worker.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = said_by(&output);
    assert!(stderr.contains("events.jsonl: an event can't be written: File too large"), "{stderr}");
    let text = std::fs::read_to_string(paths.events()).unwrap();
    assert!(text.ends_with('\n'), "no half line is left");
    let after = project.events();
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(project.sweep(0).output().unwrap().status.code(), Some(0));
    let last_of = |project: &Project| {
        project.steps().into_iter().collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(last_of(&project), last_of(&whole));
    let seqs: Vec<u64> = project.events().iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>());
}

/// What the store took in before the folder went stays there.
#[test]
fn a_folder_that_is_removed_under_a_run_ends_it_and_its_rows_stay() {
    let project = Project::new("examples/scripted_worker", 4000);
    let child = project.begun(20);
    until("the store has its steps", || {
        Store::open_read_only(&project.results())
            .is_ok_and(|store| store.runs().unwrap().iter().any(|run| run.step > 0))
    });
    let run = project.stored();
    std::fs::remove_dir_all(&project.paths().folder).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = said_by(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("expected the run's folder, found it removed while the run was at work"),
        "{said}"
    );
    let after = project.stored();
    assert_eq!(after.status, Status::Failed);
    assert!(after.step >= run.step && after.step > 0, "{} steps, then {}", run.step, after.step);
}

/// Root writes wherever it likes; so as root the command runs as nobody.
#[test]
fn a_folder_that_can_not_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let project = Project::new("examples/scripted_worker", 5);
    assert_eq!(project.sweep(0).output().unwrap().status.code(), Some(0));
    let paths = project.paths();
    let before = project.events();
    for folder in [paths.folder.as_path(), &project.results().join("runs")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o555)).unwrap();
    }
    for folder in [project.dir.path(), &project.results()] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let files = std::fs::read_dir(project.results()).unwrap().flatten().map(|entry| entry.path());
    for file in files.chain([paths.events()]).filter(|path| path.is_file()) {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let base = std::fs::read_to_string(project.dir.path().join("base.yaml")).unwrap();
    std::fs::write(project.dir.path().join("base.yaml"), base.replace("0.01", "0.02")).unwrap();
    let mut sweep = project.sweep(0);
    // SAFETY: geteuid has no way to fail.
    if unsafe { libc::geteuid() } == 0 {
        sweep.uid(65534).gid(65534);
    }
    let output = sweep.output().unwrap();
    for folder in [paths.folder.as_path(), &project.results().join("runs")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = said_by(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(": the run's folder can't be made: Permission denied"), "{said}");
    assert_eq!(project.events(), before);
}

/// Order is that of the log, whatever the clock did meanwhile.
#[test]
fn a_clock_that_was_set_back_changes_no_result() {
    let project = Project::new("examples/scripted_worker", 12);
    let child = project.begun(20);
    crash(&project, child);
    assert_eq!(project.sweep(0).output().unwrap().status.code(), Some(0));
    let table = || {
        let query = "SELECT run_id, status, step, tokens, last_loss FROM v_runs UNION ALL \
                     SELECT run_id, key, step, value, 0 FROM v_metrics WHERE key = 'loss' ORDER BY 1, 2, 3";
        said_by(&project.fathom(&["sql", query, "--format", "csv"]).output().unwrap())
    };
    let before = table();
    let paths = project.paths();
    let events: Vec<Event> = project.events();
    let backwards: String = events
        .iter()
        .map(|event| Event { time: event.time - 1000.0 * event.seq as f64, ..event.clone() })
        .map(|event| serde_json::to_string(&event).unwrap() + "\n")
        .collect();
    std::fs::write(paths.events(), backwards).unwrap();
    let rebuilt = project.fathom(&["runs", "rebuild"]).output().unwrap();
    assert!(rebuilt.status.success(), "{}", said_by(&rebuilt));
    assert_eq!(table(), before);
    assert!(before.contains(",finished,12,"), "{before}");
    // And the writer goes on counting where the log ends.
    let mut log = EventLog::open(&paths.events()).unwrap();
    let next = log.write(EventKind::Heartbeat { step: 12 }).unwrap();
    assert_eq!(next.seq, events.len() as u64);
    let run_id = RunId(paths.folder.file_name().unwrap().to_str().unwrap().into());
    assert_eq!(project.stored().run_id, run_id);
}
