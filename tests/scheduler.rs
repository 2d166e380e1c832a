//! The course of a sweep's runs: where they run, which come first, what they may cost, what follows a run that ran out of
//! memory, rungs, pauses, a worker in another language; and that no kill changes what comes out.

#[path = "support/sweep_project.rs"]
mod sweep_project;

use fathom::store::{Status, Store};
use fathom_spec::record::{EventKind, RunPaths, read_events};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use sweep_project::{
    Project, engine, exits, killed_until_done, scripted, text, uninterrupted, until, workers,
};

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/worker.py").canonicalize().unwrap()
}

/// `fathom sweep run s.yaml` with more arguments and an environment; what it printed.
#[track_caller]
fn run(project: &Project, more: &[&str], environment: &[(&str, &str)]) -> String {
    let arguments = [&["sweep", "run", "s.yaml"], more].concat();
    let mut command = project.fathom(&scripted(), &arguments);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    exits(&output, 0);
    text(&output.stdout)
}

/// One column of a query on the project's store.
fn ask(project: &Project, query: &str) -> Vec<String> {
    let store = Store::open_read_only(&project.results()).unwrap();
    let table = fathom::cli::sql::answer(&store, query).unwrap();
    let csv = table.render(fathom::cli::table::Format::Csv);
    csv.lines().skip(1).map(str::to_string).collect()
}

/// Label and status of every point, in the sweep's order.
fn points(project: &Project) -> Vec<String> {
    ask(project, "SELECT label, status FROM v_runs WHERE sweep IS NOT NULL ORDER BY position")
}

/// Every step of every run was made once.
#[track_caller]
fn no_step_was_made_twice(project: &Project) {
    for folder in std::fs::read_dir(project.results().join("runs")).unwrap() {
        let (events, _) = read_events(&RunPaths::new(folder.unwrap().path()).events(), 0).unwrap();
        let steps: Vec<u64> = events
            .iter()
            .filter_map(|event| match event.kind {
                EventKind::Step { step, .. } => Some(step),
                _ => None,
            })
            .collect();
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    }
}

const LADDER: &str = "axes: { train.learning_rate: [0.5, 0.1, 0.4, 0.2, 0.9, 0.8, 0.3, 0.7, 0.6] }
search: { halving: { metric: loss, rungs: [320, 640], keep: 1/3 } }
";

/// Of nine, the best go on, each from where it stood; and it goes on from there however often it is begun again.
#[test]
fn halving_brings_only_the_best_to_their_end() {
    let project = Project::new();
    project.sweep(LADDER);
    let said = run(&project, &[], &[]);
    assert!(said.contains("stopped at their rungs"), "{said}");
    let tokens = ask(&project, "SELECT label, tokens FROM v_runs ORDER BY tokens DESC, label");
    assert_eq!(tokens[0], "learning_rate=0.1,1280", "{tokens:?}");
    assert_eq!(tokens.iter().filter(|row| row.ends_with(",1280")).count(), 1, "{tokens:?}");
    assert!(tokens.iter().filter(|row| row.ends_with(",320")).count() >= 5, "{tokens:?}");
    no_step_was_made_twice(&project);
    // The best of the first three is promoted before the fourth is begun.
    let attempts: usize = project.attempts().iter().sum();
    let said = run(&project, &[], &[]);
    assert!(said.contains("runs: 9 done before\n"), "{said}");
    assert_eq!(project.attempts().iter().sum::<usize>(), attempts, "nothing is begun again");

    // More points join those that there are.
    project.sweep(&LADDER.replace("0.6]", "0.6, 0.05]"));
    run(&project, &[], &[]);
    let tokens = ask(&project, "SELECT label, tokens FROM v_runs ORDER BY last_loss LIMIT 1");
    assert_eq!(tokens, ["learning_rate=0.05,1280"]);
    no_step_was_made_twice(&project);
    let side_by_side = Project::new();
    side_by_side.sweep(LADDER);
    run(&side_by_side, &["--jobs", "3"], &[]);
    let ends = ask(&side_by_side, "SELECT count(*) FROM v_runs WHERE status = 'finished'");
    assert!(ends[0].parse::<usize>().unwrap() >= 1, "{ends:?}");
    no_step_was_made_twice(&side_by_side);
}

/// The engine stops at the very rung, evaluates and saves there, and goes on with the losses of a run that never stopped.
#[test]
fn a_run_that_climbs_rungs_has_the_losses_of_one_that_did_not_stop() {
    let axes = "axes: { train.learning_rate: [1e-4, 0.02] }\n";
    let ladder = format!("{axes}search: {{ halving: {{ rungs: [320, 640], keep: 1/2 }} }}\n");
    let losses = |file: &str| {
        let project = Project::new();
        project.sweep(file);
        exits(&project.run(&engine()), 0);
        let rows = "SELECT m.step, m.value FROM v_metrics m JOIN v_runs r USING (run_id)
                    WHERE r.label = 'learning_rate=0.02' AND m.key = 'loss' ORDER BY m.step";
        (
            ask(&project, rows),
            ask(&project, "SELECT label, status, tokens FROM v_runs ORDER BY position"),
        )
    };
    let (climbed, points) = losses(&ladder);
    assert_eq!(points[0], "learning_rate=1e-4,stopped,320");
    assert!(points[1].starts_with("learning_rate=0.02,finished,"), "{points:?}");
    let (straight, _) = losses(axes);
    assert!(climbed.len() >= 20, "{climbed:?}");
    assert_eq!(climbed, straight);
}

/// How many kills a test makes at least: `FATHOM_KILLS` asks for more.
fn kills_to_make(default: usize) -> usize {
    std::env::var("FATHOM_KILLS").map_or(default, |text| text.parse().unwrap())
}

/// SIGKILL to the harness, the workers or both at random moments: no step is lost, and the final table is that of a sweep that
/// was left alone.
#[test]
fn kills_at_any_moment_lose_nothing() {
    let grid = "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\nseeds: 2\n";
    let expected = uninterrupted(&scripted(), grid);
    let (least, mut kills, mut seed) = (kills_to_make(8), 0, 100);
    while kills < least {
        let project = Project::new();
        project.sweep(grid);
        let of_this = killed_until_done(&project, &scripted(), seed, 200, "10", "2");
        assert_eq!(project.table(), expected, "seed {seed}, {of_this} kills");
        kills += of_this;
        seed += 1;
    }
    println!("{kills} kills, no step lost");
}

/// The same on a ladder. Who is promoted depends on who has come by then, and a run that was killed comes later; but the best
/// goes to its end, and no run has a gap.
#[test]
fn kills_at_any_moment_leave_the_ladder_whole() {
    let (least, mut kills, mut seed) = (kills_to_make(8), 0, 100);
    while kills < least {
        let project = Project::new();
        project.sweep(LADDER);
        let of_this = killed_until_done(&project, &scripted(), seed, 200, "10", "1");
        let best =
            ask(&project, "SELECT label FROM v_runs WHERE status = 'finished' ORDER BY last_loss");
        assert_eq!(best[0], "learning_rate=0.1", "seed {seed}, {of_this} kills");
        let gaps = "SELECT run_id FROM runs r WHERE step != (SELECT count(*) FROM v_metrics m WHERE m.run_id = r.run_id AND key = 'loss')";
        assert_eq!(ask(&project, gaps), [""; 0], "seed {seed}, {of_this} kills");
        let between = "SELECT label, tokens FROM v_runs WHERE tokens NOT IN (320, 640, 1280)";
        assert_eq!(ask(&project, between), [""; 0], "seed {seed}, {of_this} kills");
        kills += of_this;
        seed += 1;
    }
    println!("{kills} kills, no step lost");
}

#[test]
fn a_fallback_answers_for_a_point_that_ran_out_of_memory() {
    let project = Project::new();
    let file = "axes: { train.sequence_length: [16, 64] }
retry: { out_of_memory: { set: [{ train.sequence_length: 48 }, { train.sequence_length: 32, train.micro_batch_size: 1 }] } }
";
    project.sweep(file);
    let edge = [("SCRIPT_EDGE", "32")];
    let said = run(&project, &[], &edge);
    assert!(
        said.contains(
            "runs: 2 finished, 2 out_of_memory, 1 of them as a fallback after out_of_memory\n"
        ),
        "{said}"
    );
    let rows = [
        "sequence_length=16,finished",
        "sequence_length=64,out_of_memory",
        "sequence_length=64 fallback=sequence_length:48,out_of_memory",
        "\"sequence_length=64 fallback=sequence_length:32,micro_batch_size:1\",finished",
    ];
    assert_eq!(points(&project), rows);
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    assert!(page.contains("sequence_length:32,micro_batch_size:1"), "{page}");
    let output = project.fathom(&scripted(), &["sweep", "plan", "s.yaml"]).output().unwrap();
    let plan = text(&output.stdout);
    assert!(plan.contains("out_of_memory, its fallback ") && plan.contains(": finished"), "{plan}");

    let said = run(&project, &[], &edge);
    assert!(said.contains("runs: 4 done before"), "{said}");
    assert_eq!(points(&project), rows);
    // A fallback that is the run of a point already: that one answers.
    project.sweep(
        "axes: { train.sequence_length: [16, 64] }\nretry: { out_of_memory: { set: { train.sequence_length: 16 } } }\n",
    );
    let output = project.run(&scripted());
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(
        said.contains("retry.out_of_memory.set: expected settings that change every point"),
        "{said}"
    );
}

/// What failed has to be looked at: nothing is tried in its place.
#[test]
fn there_is_no_fallback_after_a_failure() {
    let project = Project::new();
    project.sweep(
        "axes: { train.learning_rate: [13, 14, 15] }\nretry: { out_of_memory: { set: { train.learning_rate: 0.1 } } }\n",
    );
    let output = project.run(&scripted());
    exits(&output, 3);
    assert_eq!(
        points(&project),
        ["learning_rate=13,failed", "learning_rate=14,killed", "learning_rate=15,diverged"]
    );
}

#[test]
fn a_budget_begins_nothing_that_would_exceed_it() {
    let project = Project::new();
    // A run is 1280 tokens.
    let grid = "axes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4] }\n";
    let with = |budget: &str| {
        project.sweep(&format!("{grid}budget: {budget}\n"));
        run(&project, &["--jobs", "2"], &[])
    };
    let said = with("{ tokens: 3000 }");
    assert!(
        said.contains("runs: 2 finished\n")
            && said.contains("budget: 2560 of 3000 tokens are spent; 2 runs were not begun"),
        "{said}"
    );
    // What was spent before counts.
    let said = with("{ runs: 3, tokens: 1M }");
    assert!(said.contains("runs: 1 finished, 2 done before\n"), "{said}");
    assert!(
        said.contains("3840 of 1M tokens and 3 of 3 runs are spent; a run was not begun"),
        "{said}"
    );
    let said = with("{ hours: 1 }");
    assert!(said.contains("runs: 1 finished, 3 done before\n"), "{said}");
    assert!(
        said.contains(" of 1.0 h of runs are spent\n") || said.contains("of runs are spent\n"),
        "{said}"
    );
    assert_eq!(ask(&project, "SELECT count(*) FROM v_runs WHERE status = 'finished'"), ["4"]);
}

/// A run sees whole steps: what its last one sees beyond its tokens is not held against it.
#[test]
fn two_runs_of_half_a_budget_are_the_budget() {
    let project = Project::new();
    project.sweep(
        "set: { train.total_tokens: 1000 }\naxes: { train.learning_rate: [0.1, 0.2] }\nbudget: { tokens: 2000 }\n",
    );
    let said = run(&project, &["--jobs", "1"], &[]);
    assert!(said.contains("runs: 2 finished\n"), "{said}");
    assert!(said.contains("budget: 2000 of 2000 tokens are spent\n"), "{said}");
    assert_eq!(ask(&project, "SELECT count(*) FROM v_runs WHERE tokens > 1000"), ["2"]);
}

/// A budget is the sweep's, by its name: what it took for points that it has no more counts.
#[test]
fn a_budget_counts_what_an_edited_sweep_took_before() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 0.2] }\n");
    run(&project, &[], &[]);
    let edited = "axes: { train.learning_rate: [0.3, 0.4] }\nbudget: { tokens: 4000, runs: 9 }\n";
    project.sweep(edited);
    let said = run(&project, &[], &[]);
    assert!(
        said.contains("runs: 1 finished\n")
            && said.contains(
                "budget: 3840 of 4000 tokens and 3 of 9 runs are spent; a run was not begun"
            ),
        "{said}"
    );
    let output = project.fathom(&scripted(), &["sweep", "plan", "s.yaml"]).output().unwrap();
    let plan = text(&output.stdout);
    assert!(
        plan.contains(
            "budget: 4000 tokens, 9 runs; 3840 of 4000 tokens and 3 of 9 runs are spent\n"
        ),
        "{plan}"
    );
    // Also by way of a third plan, and of a database that was made anew.
    project.sweep(&edited.replace("[0.3, 0.4]", "[0.5]"));
    let output = project.fathom(&scripted(), &["db", "rebuild"]).output().unwrap();
    exits(&output, 0);
    let said = run(&project, &[], &[]);
    assert!(said.contains("runs: none\n") && said.contains("3840 of 4000 tokens"), "{said}");
    project.sweep(&edited.replace("4000", "6K"));
    let said = run(&project, &[], &[]);
    assert!(said.contains("runs: 1 finished, 1 done before\n"), "{said}");
    assert!(said.contains("5120 of 6000 tokens and 4 of 9 runs are spent\n"), "{said}");
    // Another name is another sweep, and what it has done before is what its points have.
    project.sweep(&format!("name: t\n{edited}"));
    let said = run(&project, &[], &[]);
    assert!(said.contains("budget: 2560 of 4000 tokens and 2 of 9 runs are spent\n"), "{said}");
}

/// Two harnesses look at one account, and neither begins what the other has begun the last of.
#[test]
fn harnesses_share_a_budget() {
    let grid = "axes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8] }\n";
    for (budget, spent) in [
        ("{ tokens: 4000 }", "3840 of 4000 tokens are spent; "),
        ("{ runs: 3 }", "3 of 3 runs are spent; "),
    ] {
        let project = Project::new();
        project.sweep(&format!("{grid}budget: {budget}\n"));
        let begin = || {
            let arguments = ["sweep", "run", "s.yaml", "--jobs", "2", "--no-report"];
            project.fathom(&scripted(), &arguments).env("SCRIPT_STEP_MS", "10").spawn().unwrap()
        };
        let harnesses = [begin(), begin()];
        let said = harnesses.map(|harness| {
            let output = harness.wait_with_output().unwrap();
            exits(&output, 0);
            text(&output.stdout)
        });
        assert!(said.iter().any(|said| said.contains(spent)), "{said:?}");
        assert_eq!(
            ask(&project, "SELECT count(*) FROM runs WHERE attempt > 0 AND status = 'finished'"),
            ["3"],
            "{said:?}"
        );
    }
}

/// Before any run has shown how long it takes, the prediction stands for it; then what they take really.
#[test]
fn a_budget_of_time_holds_back_the_first_runs_too() {
    let project = Project::new();
    let base = std::fs::read_to_string(project.path("base.yaml")).unwrap();
    let large = base
        .replace("hidden_size: 32", "hidden_size: 4096")
        .replace("num_hidden_layers: 2", "num_hidden_layers: 8");
    assert_ne!(large, base);
    std::fs::write(project.path("base.yaml"), large).unwrap();
    let output = project.fathom(&engine(), &["plan", "base.yaml", "--json"]).output().unwrap();
    exits(&output, 0);
    let predicted: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_run = 20.0 * predicted["seconds_per_step"].as_f64().unwrap();
    assert!(of_run > 2.0, "{of_run} s are too near to what the script takes");
    let budget = 1.5 * of_run;
    project.sweep(&format!(
        "axes: {{ train.learning_rate: [0.1, 0.2, 0.3, 0.4] }}\nbudget: {{ seconds: {budget} }}\n"
    ));
    let said = run(&project, &["--jobs", "4"], &[("SCRIPT_STEP_MS", "20")]);
    assert!(said.contains("runs: 4 finished\n"), "{said}");
    let times = ask(&project, "SELECT started_at, ended_at FROM runs ORDER BY started_at");
    let times: Vec<Vec<f64>> =
        times.iter().map(|row| row.split(',').map(|x| x.parse().unwrap()).collect()).collect();
    assert!(times[0][1] <= times[1][0], "the first run is alone: {times:?}");
    assert!(times[2][0] < times[1][1], "the others go side by side: {times:?}");
}

#[test]
fn priorities_order_the_queue() {
    let project = Project::new();
    project.sweep(
        "axes: { size: { a: {}, b: { train.micro_batch_size: 1 }, c: { train.micro_batch_size: 4 } } }\nseeds: 2\n\
         priority: [-train.seed, { size: [c, a] }]\n",
    );
    run(&project, &[], &[]);
    assert_eq!(
        ask(&project, "SELECT label, seed FROM v_runs ORDER BY started_at"),
        ["size=c,0", "size=a,0", "size=b,0", "size=c,1", "size=a,1", "size=b,1"]
    );
}

#[test]
fn a_paused_sweep_rests_and_goes_on_where_it_was() {
    let grid = "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\n";
    let expected = uninterrupted(&scripted(), grid);
    let project = Project::new();
    project.sweep(grid);
    let child = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--jobs", "2"])
        .env("SCRIPT_STEP_MS", "50")
        .spawn()
        .unwrap();
    let command = |arguments: &[&str]| {
        let output = project.fathom(&scripted(), arguments).output().unwrap();
        exits(&output, 0);
        text(&output.stdout)
    };
    until("two workers are at work", || workers(&project).len() == 2);
    let said = command(&["sweep", "pause", "s"]);
    assert!(said.contains("s: paused"), "{said}");
    until("they have stopped", || workers(&project).is_empty());
    let stopped = |project: &Project| {
        ask(project, "SELECT count(*) FROM v_runs WHERE status = 'stopped'") == ["2"]
    };
    until("the store knows", || stopped(&project));
    let said = command(&["sweep", "continue", "s"]);
    assert!(said.contains("s: goes on"), "{said}");
    let output = child.wait_with_output().unwrap();
    exits(&output, 0);
    let said = text(&output.stdout);
    assert!(said.contains("runs: 3 finished\n"), "{said}");
    assert!(
        text(&output.stderr)
            .contains("paused; 2 runs are at work still; `fathom sweep continue s` lets it go on"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(project.table(), expected);
    assert!(command(&["sweep", "continue", "s"]).contains("was not paused"));
    let output = project.fathom(&scripted(), &["sweep", "pause", "t"]).output().unwrap();
    exits(&output, 1);
    assert!(text(&output.stderr).contains("found none called `t`"), "{}", text(&output.stderr));

    // Paused before it is begun, and with runs that may come to their ends.
    command(&["sweep", "pause", "s", "--after-runs"]);
    project.sweep("axes: { train.learning_rate: [0.1, 0.7] }\n");
    let child = project.fathom(&scripted(), &["sweep", "run", "s.yaml"]).spawn().unwrap();
    until("the new point is planned", || {
        points(&project) == ["learning_rate=0.1,finished", "learning_rate=0.7,planned"]
    });
    command(&["sweep", "continue", "s"]);
    exits(&child.wait_with_output().unwrap(), 0);
    assert_eq!(
        project.status(
            &ask(&project, "SELECT run_id FROM v_runs WHERE position = 1 AND sweep IS NOT NULL")[0]
        ),
        Status::Finished
    );
}

/// Every run has a card of its own or a place beside others, and is told which by the environment.
#[test]
fn runs_are_placed_on_the_cards_that_there_are() {
    let project = Project::new();
    project
        .sweep("set: { run.device: cuda }\naxes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4] }\n");
    let machine = project.path("machine.json");
    let describe = |memory: &str| {
        let gpu = |index: usize| {
            format!(r#"{{"index": {index}, "uuid": "GPU-{index}{index}", "memory": "{memory}"}}"#)
        };
        let gpus = [gpu(0), gpu(1)].join(", ");
        std::fs::write(&machine, format!(r#"{{"cores": 2, "memory": "4GiB", "gpus": [{gpus}]}}"#))
            .unwrap();
    };
    let cards = || -> BTreeSet<String> {
        ask(&project, "SELECT json_extract(environment, '$.CUDA_VISIBLE_DEVICES') FROM runs")
            .into_iter()
            .collect()
    };
    let of = machine.to_str().unwrap();
    describe("1GiB");
    run(&project, &["--devices", "all"], &[("FATHOM_MACHINE", of), ("SCRIPT_STEP_MS", "5")]);
    assert_eq!(cards(), ["GPU-00", "GPU-11"].map(String::from).into());
    let arguments = ["sweep", "run", "s.yaml", "--devices", "3"];
    let output =
        project.fathom(&scripted(), &arguments).env("FATHOM_MACHINE", of).output().unwrap();
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(said.contains("found `3`\n  help: here: 0 (GPU-00), 1 (GPU-11)"), "{said}");
    let arguments = ["sweep", "run", "s.yaml", "--devices", "cpu"];
    let output =
        project.fathom(&scripted(), &arguments).env("FATHOM_MACHINE", of).output().unwrap();
    exits(&output, 1);
    assert!(text(&output.stderr).contains("run.device: expected a device that is among --devices"));

    // One card with room for all: four at a time, and each is at work while the others are.
    let project = Project::new();
    project
        .sweep("set: { run.device: cuda }\naxes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4] }\n");
    describe("8GiB");
    let child = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--devices", "GPU-1"])
        .env("FATHOM_MACHINE", of)
        .env("SCRIPT_STEP_MS", "50")
        .spawn()
        .unwrap();
    until("four share a card", || workers(&project).len() == 4);
    exits(&child.wait_with_output().unwrap(), 0);
}

/// A worker is any program that keeps to the protocol: this one is 60 lines of another language.
#[test]
fn a_worker_in_python_drives_a_sweep() {
    let lines = std::fs::read_to_string(python()).unwrap().lines().count();
    assert!(lines <= 60, "{lines} lines");
    let file = "axes: { train.learning_rate: [0.01, 0.1, 0.3] }\nseeds: 2\nsearch: { halving: { metric: loss, rungs: [320] } }\n";
    let expected = uninterrupted(&python(), file);
    // The best of the first three, and the best two of all.
    assert_eq!(expected.matches(",finished,").count(), 3, "{expected}");
    assert_eq!(expected.matches(",stopped,5,320,").count(), 3, "{expected}");
    let grid = "axes: { train.learning_rate: [0.01, 0.1, 0.3] }\n";
    let expected = uninterrupted(&python(), grid);
    let project = Project::new();
    project.sweep(grid);
    let kills = killed_until_done(&project, &python(), 3, 200, "0", "1");
    assert_eq!(project.table(), expected, "{kills} kills");
}

/// It takes every command away, in their order, and answers each; what it can't do is refused.
#[test]
fn a_worker_in_python_obeys_commands() {
    // What it answered, with the checkpoints it wrote, and how it ended.
    let told = |saves: bool, commands: &[&str]| -> Vec<String> {
        let project = Project::new();
        // So many steps that it only ends when it is told to.
        project.sweep(&format!(
            "set: {{ train.total_tokens: 1B, train.learning_rate: 1e-9, train.save_checkpoints: {saves} }}\n"
        ));
        let child = project.fathom(&python(), &["sweep", "run", "s.yaml"]).spawn().unwrap();
        let runs = || std::fs::read_dir(project.results().join("runs")).into_iter().flatten();
        let log = |folder: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(RunPaths::new(folder.unwrap().path()).events())
                .unwrap_or_default()
        };
        until("it is at work", || runs().map(log).any(|log| log.contains(r#""kind": "step""#)));
        let paths = RunPaths::new(runs().next().unwrap().unwrap().path());
        for (at, command) in commands.iter().enumerate() {
            let part = paths.control().join(format!("{at}.part"));
            std::fs::write(&part, command).unwrap();
            std::fs::rename(&part, paths.control().join(format!("{at}.json"))).unwrap();
        }
        let events = || read_events(&paths.events(), 0).unwrap().0;
        until("it has ended", || {
            matches!(events().last().unwrap().kind, EventKind::Stopped { .. })
        });
        let output = child.wait_with_output().unwrap();
        assert!(text(&output.stdout).contains("1 stopped"), "{}", text(&output.stdout));
        assert_eq!(std::fs::read_dir(paths.control()).unwrap().count(), 0, "all are taken away");
        let said = events().into_iter().filter_map(|event| match event.kind {
            EventKind::Control { command, outcome, request } => {
                Some(format!("{}: {command}: {outcome}", request.unwrap()))
            }
            EventKind::Warning { message } => Some(message),
            EventKind::Checkpoint { .. } => Some("checkpoint".into()),
            EventKind::Stopped { reason, .. } => Some(reason),
            _ => None,
        });
        said.collect()
    };
    let command = |name: &str| format!(r#"{{"command": "{name}"}}"#);
    let [save, stop, save_stop, abort, anneal] =
        ["save", "stop", "save-stop", "abort", "start-annealing"].map(command);
    assert_eq!(
        told(true, &["torn", &abort]),
        [
            "control/0.json: expected a command, found none",
            "0: : refused: this run can't",
            "1: abort: did abort",
            "abort was asked for",
        ]
    );
    assert_eq!(
        told(true, &[&anneal, &save_stop]),
        [
            "0: start-annealing: refused: this run can't",
            "checkpoint",
            "1: save-stop: did save-stop",
            "save-stop was asked for"
        ]
    );
    assert_eq!(
        told(false, &[&save, &save_stop, &stop]),
        [
            "0: save: refused: this run can't",
            "1: save-stop: refused: this run can't",
            "2: stop: did stop",
            "stop was asked for"
        ]
    );
}

/// What a run costs beside its worker's own time.
#[test]
fn the_harness_takes_little_time_for_a_run() {
    let project = Project::new();
    project.sweep("set: { train.total_tokens: 320 }\nseeds: 100\n");
    let begun = std::time::Instant::now();
    let output = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--no-report"])
        .env("SCRIPT_STEP_MS", "1")
        .output()
        .unwrap();
    let all = begun.elapsed().as_secs_f64();
    exits(&output, 0);
    let workers = ask(&project, "SELECT sum(seconds) FROM runs")[0].parse::<f64>().unwrap();
    let each = (all - workers) / 100.0;
    println!("{:.1} ms for a run, beside {:.1} of its worker", 1e3 * each, 1e3 * workers / 100.0);
    assert!(each < 0.05, "{each} s for a run");
}

/// Where, what was expected, what was found.
#[test]
fn mistakes_in_the_course_are_named_with_their_place() {
    let project = Project::new();
    let cases = [
        (
            "budget: { token: 4 }",
            "s.yaml:2: budget: expected a known key, found `token`\n  help: did you mean `tokens`?",
        ),
        (
            "budget: { runs: none }",
            "s.yaml:2: budget.runs: expected a number above 0, found `none`",
        ),
        ("budget: { hours: 1, seconds: 9 }", "budget: expected `seconds` or `hours`, found both"),
        ("retry: { failed: {} }", "s.yaml:2: retry: expected a known key, found `failed`"),
        ("retry: { out_of_memory: {} }", "retry.out_of_memory: expected the key `set`, found none"),
        (
            "retry: { out_of_memory: { set: { train.micro_batch_size: 1 }, times: 2 } }",
            "s.yaml:2: retry.out_of_memory.times: expected 1 to 1, the number of fallbacks, found `2`",
        ),
        (
            "retry: { out_of_memory: { set: { train.micro_batch_sze: 1 } } }",
            "train: expected a known key, found `micro_batch_sze`",
        ),
        (
            "retry: { out_of_memory: { set: { train.micro_batch_size: 1 } } }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "s.yaml:2: retry: expected a sweep without `search.bisect`, found one",
        ),
        (
            "priority: -train.sed",
            "priority: expected an axis or a key of the configuration that has a value, found `train.sed`",
        ),
        ("priority: 3", "s.yaml:2: priority: expected a key"),
        (
            "search: { halving: { rung: [1] } }",
            "search.halving: expected a known key, found `rung`",
        ),
        (
            "search: { halving: { keep: 1/3 } }",
            "search.halving: expected the key `rungs`, found none",
        ),
        (
            "search: { halving: { rungs: [400, 100] } }",
            "search.halving.rungs: expected numbers of tokens that rise",
        ),
        (
            "search: { halving: { rungs: [100], keep: 3 } }",
            "search.halving.keep: expected a share between 0 and 1 (`1/3`), found `3`",
        ),
        (
            "search: { halving: { rungs: [4K] } }",
            "expected a rung before the end of every point, found 4000 and `base`",
        ),
        (
            "set: { train.save_checkpoints: false }\nsearch: { halving: { rungs: [100] } }",
            "search.halving: expected points that write checkpoints, found `base`",
        ),
        (
            "search: { halving: { rungs: [100] }, bisect: {} }",
            "s.yaml:2: search: expected `bisect` or `halving`, found both",
        ),
    ];
    for (file, expected) in cases {
        let error = format!("{:#}", project.plan(file).unwrap_err());
        assert!(error.contains(expected), "{file}\nexpected: {expected}\nfound:    {error}");
    }
    project.sweep("search: { halving: { metric: los, rungs: [320] } }");
    let output = project.run(&scripted());
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(
        said.contains("search.halving.metric: expected a scalar that every run logs"),
        "{said}"
    );
    // This worker evaluates nothing, whatever it is told.
    project.sweep("search: { halving: { rungs: [320] } }");
    let output = project.run(&scripted());
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(
        said.contains("before its first rung, found no `eval_loss.validation` of run"),
        "{said}"
    );
}

/// A pager that was closed, or a full disk behind a log of the terminal, is no reason to stop.
#[test]
fn a_reader_that_went_away_stops_nothing() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 0.2] }\n");
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = project.fathom(&scripted(), &["sweep", "run", "s.yaml"]);
    let status = command.stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(project.table().matches(",finished,").count(), 2);
    assert!(project.path("reports/s/report.md").exists());
}
