//! The commands on sweep files and their runs, with the worker without tensors: check, why, more seeds, strict code, reproduce.

use fathom::store::{Status, Store};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new(sweep: &str) -> Project {
        let project = Project { dir: tempfile::tempdir().unwrap() };
        std::fs::write(project.path("base.yaml"), super::BASE).unwrap();
        project.sweep(sweep);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sweep(&self, text: &str) {
        std::fs::write(self.path("s.yaml"), format!("base: base.yaml\n{text}")).unwrap();
    }

    fn fathom(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
        command.current_dir(self.dir.path()).env("FATHOM_ENGINE", scripted());
        command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// What it prints, stdout then stderr; it has to exit with `code`.
    #[track_caller]
    fn said(&self, code: i32, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.fathom(arguments, variables);
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    /// Status and seed of each point of the last plan.
    fn points(&self) -> Vec<String> {
        let store = Store::open_read_only(&self.path("results")).unwrap();
        let query = "SELECT label, seed, status FROM v_runs WHERE sweep = 's' ORDER BY position";
        let table = fathom::cli::sql::answer(&store, query).unwrap();
        let text = table.render(fathom::cli::table::Format::Csv);
        text.lines().skip(1).map(str::to_string).collect()
    }

    fn a_run(&self) -> String {
        let store = Store::open_read_only(&self.path("results")).unwrap();
        store.runs().unwrap().remove(0).run_id.0
    }
}

/// `target/…/examples/scripted_worker`.
fn scripted() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = profile.join("examples/scripted_worker");
    assert!(
        path.is_file(),
        "{}: `cargo build --release --workspace --bins --examples` makes it",
        path.display()
    );
    path
}

const RUN: [&str; 4] = ["sweep", "run", "s.yaml", "--no-report"];

#[test]
fn check_says_how_many_points_or_every_mistake() {
    let project = Project::new(
        "axes: { train.learning_rate: [0.1, 0.2] }\nconstraints: train.learning_rate < 0.2\nseeds: 3\n",
    );
    let said = project.said(0, &["sweep", "check", "s.yaml"], &[]);
    assert_eq!(said, "s.yaml: 3 points, 3 left out by the constraints\n");
    std::fs::write(project.path("wrong.yaml"), "axis: 1\n").unwrap();
    std::fs::write(project.path("worse.yaml"), "axes: [\n").unwrap();
    let said = project.said(1, &["sweep", "check", "wrong.yaml", "s.yaml", "worse.yaml"], &[]);
    assert!(said.contains("s.yaml: 3 points"), "{said}");
    assert!(said.contains("error: wrong.yaml:1: the sweep file: expected a known key"), "{said}");
    assert!(said.contains("error: worse.yaml:"), "{said}");
    assert!(!project.path("results").exists(), "a check leaves nothing behind");
}

#[test]
fn the_schema_and_an_import_are_printed() {
    let project = Project::new("");
    let schema: serde_json::Value =
        serde_json::from_str(&project.said(0, &["sweep", "schema"], &[])).unwrap();
    assert_eq!(schema["title"], "A sweep file of fathom");
    std::fs::write(project.path("w.yaml"), "method: grid\nparameters: { lr: { values: [0.1] } }\n")
        .unwrap();
    let said = project.said(0, &["sweep", "import", "w.yaml"], &[]);
    assert!(
        said.contains("train.learning_rate:")
            && said.contains("note: lr is taken for train.learning_rate"),
        "{said}"
    );
}

#[test]
fn why_names_the_keys_that_make_a_point_new() {
    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\n");
    let said = project.said(0, &["sweep", "why", "s.yaml", "0"], &[]);
    assert!(said.contains("nothing in the store is finished"), "{said}");
    project.said(0, &RUN, &[]);
    let said = project.said(0, &["sweep", "why", "s.yaml", "learning_rate=0.1"], &[]);
    assert!(said.ends_with(": done: finished, nothing has to be run\n"), "{said}");
    assert_eq!(project.said(0, &["sweep", "why", "s.yaml"], &[]), "2 points, 2 done\n");

    project.sweep("axes: { train.learning_rate: [0.1, 0.3] }\nset: { train.max_grad_norm: 2 }\n");
    let said = project.said(0, &["sweep", "why", "s.yaml", "learning_rate=0.1"], &[]);
    assert!(said.contains("not in the store; the nearest finished run is"), "{said}");
    assert!(said.contains("(s: learning_rate=0.1, seed 0)"), "{said}");
    let rows: Vec<Vec<&str>> =
        said.lines().skip(2).map(|l| l.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["train.max_grad_norm", "2.0", "1.0"]), "{said}");
    assert!(!said.contains("train.learning_rate"), "{said}");
    let said = project.said(0, &["sweep", "why", "s.yaml"], &[]);
    assert!(said.ends_with("2 points, 0 done\n") && said.contains("train.learning_rate"), "{said}");

    // Another tokenizer is told by its digest.
    project.sweep(
        "axes: { train.learning_rate: [0.1] }\nset: { model.config.num_hidden_layers: 3 }\n",
    );
    let said = project.said(0, &["sweep", "why", "s.yaml"], &[]);
    assert!(said.contains("model.config.num_hidden_layers") && said.contains("model  "), "{said}");
    let said = project.said(1, &["sweep", "why", "s.yaml", "learning_rate=0.15"], &[]);
    assert!(
        said.contains("found `learning_rate=0.15`\n  help: did you mean `learning_rate=0.1`?"),
        "{said}"
    );
}

/// A point that ran out of memory is not done while one of its fallbacks is still to be run.
#[test]
fn why_knows_of_fallbacks() {
    let axes = "axes: { train.sequence_length: [16, 64] }\n";
    let edge = [("SCRIPT_EDGE", "32")];
    let project = Project::new(axes);
    project.said(0, &RUN, &edge);
    assert_eq!(project.said(0, &["sweep", "why", "s.yaml"], &[]), "2 points, 2 done\n");
    project.sweep(&format!(
        "{axes}retry: {{ out_of_memory: {{ set: [{{ train.sequence_length: 48 }}, {{ train.sequence_length: 32 }}] }} }}\n"
    ));
    let fallback = "sequence_length=64 fallback=sequence_length:48, seed 0: run ";
    for arguments in [vec!["sweep", "why", "s.yaml"], vec!["sweep", "why", "s.yaml", "1"]] {
        let said = project.said(0, &arguments, &[]);
        assert!(
            said.contains(fallback) && said.contains(": not in the store; the nearest"),
            "{said}"
        );
    }
    let said = project.said(0, &["sweep", "why", "s.yaml"], &[]);
    assert!(said.ends_with("2 points and a fallback, 2 done\n"), "{said}");
    project.said(0, &RUN, &edge);
    let said = project.said(0, &["sweep", "why", "s.yaml"], &[]);
    assert_eq!(said, "2 points and 2 fallbacks, 4 done\n");
}

#[test]
fn a_program_reads_the_plan_with_every_digit() {
    let project = Project::new("axes: { train.total_tokens: [65536, 65540] }\n");
    let said = project.said(0, &["sweep", "plan", "s.yaml", "--format", "json"], &[]);
    assert!(said.contains(r#""tokens":65536,"#) && said.contains(r#""tokens":65540,"#), "{said}");
    let said = project.said(0, &["sweep", "plan", "s.yaml", "--format", "csv"], &[]);
    assert!(said.contains(",65536,") && said.contains(",65540,"), "{said}");
    let said = project.said(0, &["sweep", "plan", "s.yaml"], &[]);
    assert_eq!(said.matches("65.54K").count(), 2, "{said}");
}

#[test]
fn none_of_what_has_to_be_there_is_refused() {
    let project = Project::new("seeds: 1\n");
    for option in ["--jobs", "--top-up-seeds"] {
        let said = project.said(2, &["sweep", "run", "s.yaml", option, "0"], &[]);
        let expected = format!(
            "invalid value '0' for '{option} <N>': expected a whole number, 1 or more, found `0`"
        );
        assert!(said.contains(&expected), "{said}");
    }
}

/// A bare name is a file of the current folder, as the check that it is there has it.
#[test]
fn the_worker_may_be_named_without_its_folder() {
    let project = Project::new("seeds: 1\n");
    std::os::unix::fs::symlink(scripted(), project.path("worker")).unwrap();
    let said = project.said(0, &RUN, &[("FATHOM_ENGINE", "worker")]);
    assert!(said.contains("runs: 1 finished\n"), "{said}");
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark() {
    let project = Project::new("");
    let base = format!("\u{feff}{}", super::BASE);
    std::fs::write(project.path("base.yaml"), base).unwrap();
    std::fs::write(project.path("s.yaml"), "\u{feff}# Which?\nbase: base.yaml\nseeds: 2\n")
        .unwrap();
    assert_eq!(project.said(0, &["sweep", "check", "s.yaml"], &[]), "s.yaml: 2 points\n");
    let plan = fathom::sweep::plan::Plan::read(&project.path("s.yaml"), &[], &[]).unwrap();
    assert_eq!(plan.question.as_deref(), Some("Which?"));
}

#[test]
fn every_point_is_brought_to_so_many_seeds() {
    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\nseeds: [0, 5]\n");
    project.said(0, &RUN, &[]);
    // A seed that was made for another sweep is used before one that is new.
    std::fs::write(
        project.path("t.yaml"),
        "base: base.yaml\nset: { train.learning_rate: 0.1, train.seed: 7 }\n",
    )
    .unwrap();
    project.said(0, &["sweep", "run", "t.yaml", "--no-report"], &[]);
    let said =
        project.said(0, &["sweep", "run", "s.yaml", "--no-report", "--top-up-seeds", "3"], &[]);
    assert!(said.contains("runs: 1 finished, 5 done before\n"), "{said}");
    assert_eq!(
        project.points(),
        [
            "learning_rate=0.1,0,finished",
            "learning_rate=0.1,5,finished",
            "learning_rate=0.1,7,finished",
            "learning_rate=0.2,0,finished",
            "learning_rate=0.2,5,finished",
            "learning_rate=0.2,1,finished",
        ]
    );
    let said = project.said(
        0,
        &["sweep", "plan", "s.yaml", "--top-up-seeds", "4", "--format", "csv"],
        &[],
    );
    assert_eq!(said.matches(",finished,").count(), 6, "{said}");
    assert_eq!(said.matches(",missing,").count(), 2, "{said}");
    // A point that has more keeps them.
    let said =
        project.said(0, &["sweep", "run", "s.yaml", "--no-report", "--top-up-seeds", "1"], &[]);
    assert!(said.contains("runs: 4 done before\n"), "{said}");
    project.sweep("search: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }\n");
    let said = project.said(1, &["sweep", "run", "s.yaml", "--top-up-seeds", "3"], &[]);
    assert!(said.contains("--top-up-seeds: expected a sweep without a search"), "{said}");
}

/// What was paid for stays in the sweep and its report, until it is left out by asking for that.
#[test]
fn further_seeds_stay_in_the_sweep() {
    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\nseeds: 2\n");
    let run = |more: &[&str]| project.said(0, &[&RUN[..], more].concat(), &[]);
    run(&["--top-up-seeds", "4"]);
    let points = project.points();
    assert_eq!(points.len(), 8);
    let kept = "note: 4 points with further seeds, of an earlier --top-up-seeds 4, are kept\n  help: `seeds: 4` in s.yaml makes them \
                its own, --top-up-seeds 4 brings new points to as many, --top-up-seeds 1 leaves them out\n";
    for _ in 0..2 {
        let said = run(&[]);
        assert!(said.contains("runs: 8 done before\n") && said.contains(kept), "{said}");
        assert_eq!(project.points(), points);
    }
    let said = project.said(0, &["sweep", "plan", "s.yaml", "--format", "csv"], &[]);
    assert!(said.matches(",finished,").count() == 8 && said.contains(kept), "{said}");
    let said = project.said(0, &["sweep", "why", "s.yaml"], &[]);
    assert!(said.starts_with("8 points, 8 done\n"), "{said}");

    // A new point has the file's seeds, and as many as the others where they are asked for.
    let more = "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\n";
    project.sweep(&format!("{more}seeds: 2\n"));
    let said = run(&[]);
    assert!(said.contains("runs: 2 finished, 8 done before\n") && said.contains(kept), "{said}");
    project.sweep(&format!("{more}seeds: 4\n"));
    let said = run(&[]);
    assert!(said.contains("runs: 2 finished, 10 done before\n"), "{said}");
    assert!(!said.contains("note:"), "{said}");

    project.sweep(&format!("{more}seeds: 2\n"));
    run(&["--top-up-seeds", "3"]);
    assert_eq!(project.points().len(), 9);
    run(&["--top-up-seeds", "1"]);
    assert_eq!(project.points().len(), 6);
    let said = run(&[]);
    assert!(said.contains("runs: 6 done before\n") && !said.contains("note:"), "{said}");

    // What has no result is begun only where it is asked for.
    let project = Project::new("axes: { train.learning_rate: [0.1, 13] }\n");
    project.said(3, &[&RUN[..], &["--top-up-seeds", "2"]].concat(), &[]);
    let said = project.said(3, &RUN, &[]);
    assert!(said.contains("note: 1 points with further seeds"), "{said}");
    assert!(
        said.contains(
            "note: 1 points with further seeds, of an earlier --top-up-seeds 2, have no result and are left out\n  help: \
             --top-up-seeds 2 goes on with them"
        ),
        "{said}"
    );
    assert_eq!(project.points().len(), 3);
}

/// An edit that is taken back, or `--set`, makes other points for a while; what was brought to the first ones is theirs.
#[test]
fn further_seeds_are_there_again_with_their_points() {
    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\n");
    let run = |more: &[&str]| project.said(0, &[&RUN[..], more].concat(), &[]);
    run(&["--top-up-seeds", "2"]);
    let points = project.points();
    let said = run(&["--set", "train.total_tokens=640"]);
    assert!(said.contains("runs: 2 finished\n") && !said.contains("note:"), "{said}");
    assert_eq!(project.points().len(), 2);
    let kept = "note: 2 points with further seeds, of an earlier --top-up-seeds 2, are kept";
    let said = run(&[]);
    assert!(said.contains("runs: 4 done before\n") && said.contains(kept), "{said}");
    assert_eq!(project.points(), points);
    // Other points have further seeds of their own.
    run(&["--set", "train.total_tokens=640", "--top-up-seeds", "3"]);
    assert_eq!(project.points().len(), 6);
    run(&[]);
    assert_eq!(project.points(), points);
    project.sweep("axes: { train.learning_rate: [0.2] }\n");
    run(&["--top-up-seeds", "1"]);
    project.sweep("axes: { train.learning_rate: [0.1, 0.2] }\n");
    run(&[]);
    assert_eq!(project.points(), [0, 1, 2].map(|at| points[at].clone()));
}

/// Whoever runs the sweep beside a top-up does what that one does; what nobody is at is begun where it is asked for.
#[test]
fn a_top_up_at_work_keeps_its_seeds() {
    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\nseeds: 1\n");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
    command.current_dir(project.dir.path()).env("FATHOM_ENGINE", scripted());
    command.args(RUN).args(["--top-up-seeds", "4", "--jobs", "1"]).env("SCRIPT_STEP_MS", "20");
    let mut top_up = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_running = || {
        let store = Store::open_read_only(&project.path("results"));
        let runs = store.and_then(|store| store.runs()).unwrap_or_default();
        runs.iter().any(|run| run.status == Status::Running)
    };
    let begun = Instant::now();
    while !is_running() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing begins");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = project.said(0, &RUN, &[]);
    assert!(said.contains("note: 6 points with further seeds"), "{said}");
    assert!(!said.contains("left out"), "{said}");
    assert!(top_up.wait().unwrap().success());
    let points = project.points();
    let finished = points.iter().filter(|point| point.ends_with(",finished"));
    assert_eq!((points.len(), finished.count()), (8, 8), "{points:?}");

    let project = Project::new("axes: { train.learning_rate: [0.1, 0.2] }\nbudget: { runs: 3 }\n");
    project.said(0, &[&RUN[..], &["--top-up-seeds", "2"]].concat(), &[]);
    assert_eq!(project.points()[3], "learning_rate=0.2,1,planned");
    // As between two runs of a harness that is at it.
    let driven = File::create(project.path("results/control/s.driven")).unwrap();
    driven.lock_shared().unwrap();
    let said = project.said(0, &RUN, &[]);
    assert!(said.contains("note: 2 points with further seeds"), "{said}");
    assert_eq!(project.points()[3], "learning_rate=0.2,1,planned");
    drop(driven);
    let said = project.said(0, &RUN, &[]);
    assert!(
        said.contains(
            "note: 1 points with further seeds, of an earlier --top-up-seeds 2, are kept"
        ),
        "{said}"
    );
    assert!(said.contains("have no result and are left out"), "{said}");
    assert_eq!(project.points().len(), 3);
}

/// Of a ladder a run that was stopped at its rung has come to its end, whether it is one of the best or not.
#[test]
fn further_seeds_stay_at_their_rungs() {
    let project = Project::new(
        "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\nsearch: { halving: { metric: loss, rungs: [640], keep: 1/3 } }\n",
    );
    project.said(0, &RUN, &[]);
    project.said(0, &[&RUN[..], &["--top-up-seeds", "2"]].concat(), &[]);
    let points = project.points();
    let stopped = points.iter().filter(|point| point.ends_with(",stopped")).count();
    assert_eq!((points.len(), stopped), (6, 4), "{points:?}");
    for _ in 0..2 {
        let said = project.said(0, &RUN, &[]);
        assert!(said.contains("note: 3 points with further seeds"), "{said}");
        assert!(!said.contains("left out"), "{said}");
        assert_eq!(project.points(), points);
    }
}

/// Before any work, and with nothing left behind.
#[test]
fn a_file_where_a_folder_is_expected_is_told_at_once() {
    let project = Project::new("axes: { train.learning_rate: [0.1] }\n");
    std::fs::write(project.path("page.md"), "precious").unwrap();
    let found = "page.md: expected a folder, found a file\n  help: name another folder";
    let said = project.said(1, &["sweep", "run", "s.yaml", "--out", "page.md"], &[]);
    assert!(said.contains(&format!("error: --out {found}")), "{said}");
    assert!(!project.path("results").exists(), "nothing was begun");
    project.said(0, &["sweep", "run", "s.yaml", "--out", "page.md", "--no-report"], &[]);
    let run = project.a_run();
    for command in [
        vec!["report", "s", "--out", "page.md"],
        vec!["report", "--all", "--out", "page.md"],
        vec!["export", "csv", "--all", "--output", "page.md"],
        vec!["reproduce", &run, "--into", "page.md"],
    ] {
        let said = project.said(1, &command, &[]);
        assert!(said.contains(found), "{command:?}: {said}");
    }
    let said = project.said(1, &["report", "s", "--out", "page.md/reports"], &[]);
    assert!(said.contains("page.md/reports: expected a folder, found a file at "), "{said}");
    let train = ["train", "base.yaml", "--export", "page.md", "--results", "fresh"];
    let said = project.said(1, &train, &[]);
    assert!(said.contains(found) && !project.path("fresh").exists(), "{said}");
    assert_eq!(std::fs::read_to_string(project.path("page.md")).unwrap(), "precious");
}

#[test]
fn results_of_other_code_are_reported_and_refused_if_asked() {
    let project = Project::new("axes: { train.learning_rate: [0.1] }\nseeds: 2\n");
    let old = [("SCRIPT_COMMIT", "0123456789abcdef")];
    let new = [("SCRIPT_COMMIT", "fedcba9876543210")];
    let said = project.said(0, &[&RUN[..], &["--strict-code"]].concat(), &old);
    assert!(said.contains("runs: 2 finished") && !said.contains("other code"), "{said}");
    let said = project.said(0, &[&RUN[..], &["--strict-code"]].concat(), &old);
    assert!(said.contains("runs: 2 done before") && !said.contains("other code"), "{said}");

    project.sweep("axes: { train.learning_rate: [0.1] }\nseeds: 3\n");
    let said = project.said(1, &[&RUN[..], &["--strict-code"]].concat(), &new);
    assert!(
        said.contains("--strict-code: expected results of today's code (script at fedcba987654), found 2 that other code made"),
        "{said}"
    );
    assert!(
        said.contains("learning_rate=0.1, seed 0 (") && said.contains("script at 0123456789ab"),
        "{said}"
    );
    assert_eq!(project.points().len(), 2, "nothing was run");
    let said = project.said(0, &RUN, &new);
    assert!(said.contains("runs: 1 finished, 2 done before"), "{said}");
    assert!(
        said.contains("note: 2 of the results were made by other code (script at 0123456789ab)"),
        "{said}"
    );
    let said = project.said(0, &["sweep", "plan", "s.yaml"], &new);
    assert!(said.contains("note: 2 of the results were made by other code"), "{said}");
}

#[test]
fn a_reproduction_is_equal_near_or_different() {
    let project = Project::new("set: { train.learning_rate: 0.25, eval.context_lengths: [8] }\n");
    project.said(0, &RUN, &[]);
    let run = project.a_run();
    let again = |variables: &[(&str, &str)], code: i32| {
        project.said(code, &["reproduce", &run[..6]], variables)
    };
    let said = again(&[], 0);
    assert!(said.contains("every number has the same bits"), "{said}");
    assert!(said.contains("loss by step") && said.contains("nll (prefix, 8 tokens)"), "{said}");
    assert!(said.contains("ended: finished, then finished"), "{said}");
    assert!(project.path(&format!("results/reproduced/{run}-1/fathom.db")).is_file());

    let said = again(&[("SCRIPT_SHIFT", "0.0009765625")], 10);
    assert!(said.contains("the same within 0.001 nats a token"), "{said}");
    let said = again(&[("SCRIPT_SHIFT", "0.5"), ("SCRIPT_COMMIT", "0123456789abcdef")], 11);
    assert!(
        said.contains("different by more than 0.001")
            && said.contains("code: script, then script at 0123456789ab"),
        "{said}"
    );
    // Out of memory where it finished before is a difference, whatever the numbers.
    again(&[("SCRIPT_EDGE", "8")], 11);
    assert_eq!(project.points().len(), 1, "the run and its store are as they were");

    let said = project.said(0, &["reproduce", &run, "--into", "elsewhere"], &[]);
    assert!(said.contains(&format!("run {run} again, in elsewhere")), "{said}");
    let said = project.said(1, &["reproduce", &run, "--into", "results"], &[]);
    assert!(said.contains("expected another folder than the run's own results"), "{said}");
    project.said(1, &["reproduce", "ffff"], &[]);
}

#[test]
fn what_can_not_be_reproduced_is_said() {
    let corpus = |project: &Project, text: &str| {
        std::fs::create_dir_all(project.path("corpus")).unwrap();
        std::fs::write(project.path("corpus/a.txt"), text).unwrap();
    };
    let project = Project::new("set: { data.corpus: corpus, train.learning_rate: 0.25 }\n");
    corpus(&project, "one story and a second");
    project.said(0, &RUN, &[]);
    let run = project.a_run();
    corpus(&project, "another story");
    let said = project.said(1, &["reproduce", &run], &[]);
    assert!(
        said.contains(
            "expected what it was made from, found other contents of data.corpus\n  help:"
        ),
        "{said}"
    );
    project.sweep("set: { data.corpus: corpus, train.learning_rate: 13 }\n");
    project.said(3, &RUN, &[]);
    let store = Store::open_read_only(Path::new(&project.path("results"))).unwrap();
    let failed = store.runs().unwrap().into_iter().find(|r| r.run_id.0 != run).unwrap().run_id;
    let said = project.said(1, &["reproduce", &failed.0], &[]);
    assert!(said.contains("expected a run with a result, found one that is failed"), "{said}");
}
