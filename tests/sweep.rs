//! Sweeps from file to final table: what a file means, what is wrong with one, and that nothing that happens on the way
//! (kills, stops, a second harness) changes what comes out.

#[path = "support/sweep_project.rs"]
mod sweep_project;

use fathom::store::{Status, Store};
use fathom::sweep::plan::Plan;
use fathom_spec::config::parse_assignment;
use fathom_spec::record::{RunId, RunPaths};
use std::path::{Path, PathBuf};
use sweep_project::{
    Project, engine, exits, scripted, signal, text, through_kills, uninterrupted, until, workers,
};

#[test]
fn axes_multiply_and_seeds_vary_fastest() {
    let project = Project::new();
    let file = "
axes:
  rope:
    plain: {}
    yarn2: { model.rope_parameters: { rope_type: yarn, factor: 2, original_max_position_embeddings: 64 } }
  train.learning_rate: [1e-5, 0.001]
seeds: 2
";
    assert_eq!(
        project.points(file, "train.learning_rate"),
        [
            "rope=plain learning_rate=1e-5, 0: 0.00001",
            "rope=plain learning_rate=1e-5, 1: 0.00001",
            "rope=plain learning_rate=1e-3, 0: 0.001",
            "rope=plain learning_rate=1e-3, 1: 0.001",
            "rope=yarn2 learning_rate=1e-5, 0: 0.00001",
            "rope=yarn2 learning_rate=1e-5, 1: 0.00001",
            "rope=yarn2 learning_rate=1e-3, 0: 0.001",
            "rope=yarn2 learning_rate=1e-3, 1: 0.001",
        ]
    );
    let ropes = project.points(file, "model.rope_parameters.factor");
    assert_eq!(
        (ropes[0].as_str(), ropes[7].as_str()),
        ("rope=plain learning_rate=1e-5, 0: none", "rope=yarn2 learning_rate=1e-3, 1: 2.0")
    );
}

#[test]
fn zip_exclude_and_include_adjust_the_grid() {
    let project = Project::new();
    let file = "
axes:
  train.sequence_length: [16, 32, 64]
  train.micro_batch_size: [4, 2, 1]
  train.learning_rate: [0.01, 0.02]
zip: [train.sequence_length, train.micro_batch_size]
exclude: [{ train.sequence_length: 64, train.learning_rate: 0.02 }]
include: [{ train.sequence_length: 8, train.learning_rate: 0.5 }]
";
    assert_eq!(
        project.points(file, "train.micro_batch_size"),
        [
            "sequence_length=16 micro_batch_size=4 learning_rate=0.01, 0: 4",
            "sequence_length=16 micro_batch_size=4 learning_rate=0.02, 0: 4",
            "sequence_length=32 micro_batch_size=2 learning_rate=0.01, 0: 2",
            "sequence_length=32 micro_batch_size=2 learning_rate=0.02, 0: 2",
            "sequence_length=64 micro_batch_size=1 learning_rate=0.01, 0: 1",
            "sequence_length=8 learning_rate=0.5, 0: 2",
        ]
    );
}

#[test]
fn an_included_point_has_every_seed_unless_it_names_its_own() {
    let project = Project::new();
    let file = "
axes: { train.learning_rate: [0.01] }
seeds: 2
include: [{ train.learning_rate: 0.5 }, { train.learning_rate: 0.7, train.seed: 9 }]
";
    assert_eq!(
        project.points(file, "train.learning_rate"),
        [
            "learning_rate=0.01, 0: 0.01",
            "learning_rate=0.01, 1: 0.01",
            "learning_rate=0.5, 0: 0.5",
            "learning_rate=0.5, 1: 0.5",
            "learning_rate=0.7, 9: 0.7",
        ]
    );
}

/// Settings that only say where a run runs make no other run: three points with one result would be two invented ones.
#[test]
fn points_that_are_one_run_are_refused_before_anything_runs() {
    let project = Project::new();
    project.sweep("axes: { run.threads: [1, 2] }");
    for command in ["plan", "run"] {
        let output = project.fathom(&scripted(), &["sweep", command, "s.yaml"]).output().unwrap();
        exits(&output, 1);
        let said = text(&output.stderr);
        assert!(
            said.contains("found two that are the same run: `threads=1` and `threads=2`"),
            "{said}"
        );
    }
    assert!(!project.results().join("runs").exists());
}

/// The corpus is read for a run's identity anyway: what no run would find in it is told before one is begun.
#[test]
fn splits_without_documents_are_refused_before_anything_runs() {
    let project = Project::new();
    project.sweep("axes: { data.splits.validation: [[held_out.txt], [held_out.tx]] }");
    for command in ["plan", "run"] {
        let output = project.fathom(&scripted(), &["sweep", command, "s.yaml"]).output().unwrap();
        exits(&output, 1);
        let said = text(&output.stderr);
        assert!(
            said.contains(
                "data.splits.validation[0]: expected a pattern that matches a document, found `held_out.tx`\n  help: the nearest names \
                 are held_out.txt"
            ),
            "{said}"
        );
    }
    project.sweep("set: { data.splits: { validation: ['*'] } }");
    let output = project.fathom(&scripted(), &["sweep", "plan", "s.yaml"]).output().unwrap();
    exits(&output, 1);
    let said = text(&output.stderr);
    assert!(
        said.contains("data.splits.train: expected documents that are in no other split"),
        "{said}"
    );
    assert!(!project.results().join("runs").exists());
}

#[test]
fn ranges_are_what_a_person_would_have_written() {
    let project = Project::new();
    assert_eq!(
        project.points(
            "axes: { train.learning_rate: { log: [1e-5, 1e-3], count: 5, digits: 3 } }",
            "train.learning_rate"
        ),
        [
            "learning_rate=1e-5, 0: 0.00001",
            "learning_rate=3.16e-5, 0: 0.0000316",
            "learning_rate=1e-4, 0: 0.0001",
            "learning_rate=3.16e-4, 0: 0.000316",
            "learning_rate=1e-3, 0: 0.001",
        ]
    );
    assert_eq!(
        project.points(
            "axes: { train.learning_rate: { log: [1e-5, 1e-3], count: 3 } }",
            "train.learning_rate"
        ),
        [
            "learning_rate=1e-5, 0: 0.00001",
            "learning_rate=1e-4, 0: 0.0001",
            "learning_rate=1e-3, 0: 0.001"
        ]
    );
    assert_eq!(
        project.points(
            "axes: { train.sequence_length: { lin: [16, 48], count: 3 } }",
            "train.sequence_length"
        ),
        ["sequence_length=16, 0: 16", "sequence_length=32, 0: 32", "sequence_length=48, 0: 48"]
    );
}

#[test]
fn set_eval_and_the_command_line_reach_every_point() {
    let project = Project::new();
    let file = project.sweep(
        "set: { train.total_tokens: 4K, train: { micro_batch_size: 1 } }\neval: { context_lengths: [8] }\naxes: { train.learning_rate: [0.1, 0.2] }",
    );
    let set = [parse_assignment("train.max_steps=3").unwrap()];
    for point in Plan::read(&file, &[], &set).unwrap().points {
        let config = point.config;
        assert_eq!((config.train.total_tokens.0, config.train.max_steps), (4000, Some(3)));
        assert_eq!((config.train.micro_batch_size, config.train.sequence_length), (1, 32));
        assert_eq!(config.eval.context_lengths, [8]);
    }
}

/// Where, what was expected, what was found, and the way out.
#[test]
fn mistakes_are_named_with_their_place() {
    let project = Project::new();
    let cases = [
        (
            "axis: {}",
            "s.yaml:2: the sweep file: expected a known key, found `axis`\n  help: did you mean `axes`?",
        ),
        (
            "axes:\n  train.learning_rat: [1, 2]",
            "s.yaml:3: train: expected a known key, found `learning_rat`\n  help: did you mean `learning_rate`?",
        ),
        (
            "axes:\n  rope:\n    a: { model.rope_parameters: { rope_type: yarm } }",
            "s.yaml:4: model.rope_parameters.rope_type: ",
        ),
        ("axes:\n  train.learning_rate: [fast]", "s.yaml:3: train.learning_rate: expected "),
        (
            "axes: { train.learning_rate: 3 }",
            "s.yaml:2: axes.train.learning_rate: expected a list of values, a range",
        ),
        (
            "axes: { train.learning_rate: [] }",
            "axes.train.learning_rate: expected at least one value, found none",
        ),
        (
            "axes: { train.learning_rate: [0.1, 1e-1] }",
            "expected values that differ, found `0.1` twice",
        ),
        (
            "set: { train.totaltokens: 4 }",
            "s.yaml:2: train: expected a known key, found `totaltokens`",
        ),
        ("seeds: none", "s.yaml:2: seeds: expected a number of seeds or a list of them, found "),
        (
            "seeds: 2\naxes: { train.seed: [0, 1] }",
            "seeds: expected `seeds` or the axis `train.seed`, found both",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nzip: [train.learning_rate, train.sed]",
            "s.yaml:3: zip: expected the name of an axis, found `train.sed`",
        ),
        (
            "axes: { train.learning_rate: [1, 2], train.seed: [1] }\nzip: [train.learning_rate, train.seed]",
            "expected axes of one length, found 2 values of `train.learning_rate` and 1 of `train.seed`",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nexclude: [{ train.learning_rate: 3 }]",
            "s.yaml:3: exclude: expected a value of the axis `train.learning_rate`, found `3`\n  help: its values: 1, 2",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nexclude: [{ train.learning_rte: 2 }]",
            "exclude: expected a known key, found `train.learning_rte`\n  help: did you mean `train.learning_rate`?",
        ),
        (
            "report: { base_line: a }",
            "s.yaml:2: report: expected a known key, found `base_line`\n  help: did you mean `baseline`?",
        ),
        (
            "axes: { rope: { plain: {}, wide: { train.max_grad_norm: 2 } } }\nreport: { baseline: plan }",
            "s.yaml:3: report.baseline: expected a point's label, found `plan`\n  help: did you mean `plain`?",
        ),
        (
            "axes: { train.learning_rate: [0.2, 0.1], train.max_grad_norm: [0.1, 0.3] }\nreport: { baseline: 0.1 }",
            "s.yaml:3: report.baseline: expected the name of one point, found `0.1`, which is a value of several axes\n  help: name the point itself: `learning_rate=0.1 max_grad_norm=0.1` or `",
        ),
        ("report: { method: best }", "s.yaml:2: report.method: expected `prefix` or `last_stride`"),
        ("search: { grid: {} }", "s.yaml:2: search: expected a known key, found `grid`"),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8 } }",
            "search.bisect: expected the key `high`, found none",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 4 } }",
            "expected low below high, found 8 and 4",
        ),
        (
            "search: { bisect: { parameter: train.sequence_lenght, low: 8, high: 16 } }",
            "train: expected a known key, found `sequence_lenght`",
        ),
        (
            "axes: { train.seed: [1, 2] }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "s.yaml:3: search: expected a sweep without the axis `train.seed`, found one",
        ),
        (
            "axes:\n  size:\n    a: { train.sequence_length: 8 }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "s.yaml:4: axes.size: expected keys that the search does not set itself, found `train.sequence_length`",
        ),
        (
            "search:\n  bisect:\n    { parameter: train.sequence_length, low: 8, high: 16, multiple_of: 4,\n      also: [4, 10] }",
            "s.yaml:5: search.bisect.also: expected multiples of 4, found 10",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, also: [12, 4, 12] } }",
            "s.yaml:2: search.bisect.also: expected each value once, found 12 again",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, also: [4, x] } }",
            "s.yaml:2: search.bisect.also: expected a whole number, 1 or more, found `x`",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, also: 4 } }",
            "s.yaml:2: search.bisect.also: expected a list",
        ),
        (
            "axes: { size: { a: {}, b: { train.micro_batch_size: 0 } } }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "train.micro_batch_size: ",
        ),
        (
            "seeds: [5]\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "search: expected a sweep without `seeds`, found one at line 2",
        ),
        (
            "axes: { rope: { plain: {}, wide: { train.max_grad_norm: 2 } } }\ninclude: [{ rope: plian }]",
            "s.yaml:3: include: expected a label of the axis `rope`, found `plian`\n  help: did you mean `plain`? its labels: plain, wide",
        ),
        ("name: ../x", "name: expected a name that can be a folder's, found `../x`"),
        ("axes: [1, 2", "s.yaml:"),
    ];
    for (file, expected) in cases {
        let error = format!("{:#}", project.plan(file).unwrap_err());
        assert!(error.contains(expected), "{file}\nexpected: {expected}\nfound:    {error}");
    }
    let file = project.sweep("axes: { train.learning_rate: [1, 2] }");
    let set = [parse_assignment("train.learning_rate=3").unwrap()];
    let error = format!("{:#}", Plan::read(&file, &[], &set).unwrap_err());
    assert!(
        error.starts_with("--set train.learning_rate: expected a key that the sweep does not vary"),
        "{error}"
    );
    let missing = format!("{:#}", Plan::read(&project.path("none.yaml"), &[], &[]).unwrap_err());
    assert!(missing.contains("none.yaml: expected a sweep file that can be read"), "{missing}");
}

#[test]
fn every_experiment_of_the_repository_has_a_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = std::fs::read_dir(root.join("experiments")).unwrap().flatten();
    let mut files: Vec<PathBuf> =
        files.map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    let plans: Vec<String> = files
        .iter()
        .map(|file| {
            let plan = Plan::read(file, &[root.join("templatelib")], &[]).unwrap();
            assert!(
                plan.question.as_deref().is_some_and(|q| q.contains('?')),
                "{}: no question",
                plan.name
            );
            assert_eq!(Some(plan.name.as_str()), file.file_stem().unwrap().to_str());
            format!("{}: {}", plan.name, plan.points.len())
        })
        .collect();
    assert_eq!(
        plans,
        [
            "context_ceiling: 2",
            "engines: 6",
            "engines_bfloat16: 6",
            "learning_rate: 18",
            "memory_ladder: 10",
            "million_tokens: 2",
            "plain_context_ceiling: 1",
            "rope_variants: 15",
            "streamed_context_ceiling: 1",
            "tiny_context_ceiling: 1",
            "tiny_learning_rate: 10",
            "tiny_rope_variants: 14",
            "uncapped_context_ceiling: 2"
        ]
    );
}

const GRID: &str = "axes: { train.learning_rate: [0.1, 0.2, 0.3] }\nseeds: 2\n";

#[test]
fn a_second_run_does_only_what_is_missing() {
    let project = Project::new();
    project.sweep(GRID);
    let output = project.run(&scripted());
    exits(&output, 0);
    assert!(text(&output.stdout).contains("runs: 6 finished\n"), "{}", text(&output.stdout));
    let table = project.table();
    assert_eq!(table.matches(",finished,").count(), 6, "{table}");
    let report = std::fs::read(project.path("reports/s/report.md")).unwrap();

    let output = project.run(&scripted());
    exits(&output, 0);
    assert!(text(&output.stdout).contains("runs: 6 done before\n"), "{}", text(&output.stdout));
    assert_eq!(
        std::fs::read(project.path("reports/s/report.md")).unwrap(),
        report,
        "the same store, the same bytes"
    );

    project.sweep("axes: { train.learning_rate: [0.2, 0.3, 0.4] }\nseeds: 3\n");
    let output = project.run(&scripted());
    exits(&output, 0);
    assert!(
        text(&output.stdout).contains("runs: 5 finished, 4 done before\n"),
        "{}",
        text(&output.stdout)
    );
    assert!(project.attempts().iter().all(|&n| n == 1));
}

#[test]
fn a_run_that_fails_stops_nothing_and_is_tried_again() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [13, 14, 15, 0.1] }");
    let output = project.run(&scripted());
    exits(&output, 3);
    let said = text(&output.stdout);
    assert!(said.contains("runs: 1 diverged, 1 failed, 1 finished, 1 killed\n"), "{said}");
    for reason in [
        "exited with code 3 and wrote no ending: the script says so",
        "killed: SIGABRT",
        "diverged: ",
    ] {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    for status in ["failed", "killed", "diverged"] {
        assert!(page.contains(status), "{status}: {page}");
    }
    // Divergence is a result; the other two are tried again.
    let output = project.run(&scripted());
    exits(&output, 3);
    let said = text(&output.stdout);
    assert!(said.contains("runs: 1 failed, 1 killed, 2 done before\n"), "{said}");
}

#[test]
fn a_search_finds_the_edge_and_remembers_it() {
    let project = Project::new();
    project.sweep("search: { bisect: { parameter: train.sequence_length, low: 1024, high: 65536, resolution: 512, multiple_of: 256 } }");
    let run = |edge: &str| {
        project
            .fathom(&scripted(), &["sweep", "run", "s.yaml"])
            .env("SCRIPT_EDGE", edge)
            .output()
            .unwrap()
    };
    exits(&run("20000"), 0);
    let table = project.table();
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    assert!(
        page.contains(
            "The largest `train.sequence_length` at which the run still finished is **19,"
        ),
        "{page}"
    );
    // The answers are in the store: nothing is asked again, whatever the machine could do now.
    let output = run("1");
    exits(&output, 0);
    assert!(text(&output.stdout).contains(" done before\n"), "{}", text(&output.stdout));
    assert!(!text(&output.stdout).contains("out_of_memory"), "{}", text(&output.stdout));
    assert_eq!(project.table(), table);
}

/// Probes of two layers find the edge, one whole run confirms it, and the report tells them apart.
#[test]
fn a_search_by_probes_ends_with_a_whole_run() {
    let project = Project::new();
    project.sweep(
        "set: { train.engine: layered, train.max_grad_norm: null }\n\
         search: { bisect: { parameter: train.sequence_length, low: 1024, high: 65536, resolution: 512, multiple_of: 256, probe_layers: 2 } }",
    );
    let output = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml"])
        .env("SCRIPT_EDGE", "20000")
        .output()
        .unwrap();
    exits(&output, 0);
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    for expected in [
        "The largest `train.sequence_length` at which the run still finished is **19,",
        "It is confirmed by a whole step; ",
        "of the runs worked only some layers of the model",
        "| finished (a probe of 2 layers) |",
        "| finished |",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
}

/// A search in each of two cases, of which the deeper has half the other's edge.
const SEARCHES: &str = "\
set: { train.engine: layered, train.max_grad_norm: null }
axes: { depth: { two: {}, four: { model.config.num_hidden_layers: 4 } } }
search:
  bisect: { parameter: train.sequence_length, low: 1024, high: 65536, resolution: 512, multiple_of: 256, probe_layers: 2,
            also: [16384, 4096, 8192, 32768, 131072] }
";

/// Each combination of the axes is searched by itself, and has its own column of what was tried first.
#[test]
fn a_search_beside_axes_finds_the_edge_of_every_case() {
    let project = Project::new();
    project.sweep(SEARCHES);
    let run = |more: &[&str]| {
        let arguments = [&["sweep", "run", "s.yaml"], more].concat();
        project.fathom(&scripted(), &arguments).env("SCRIPT_EDGE", "20000").output().unwrap()
    };
    exits(&run(&[]), 0);
    let table = project.table();
    // The order in which a case's runs were started.
    let tried = |depth: &str| -> Vec<(u64, bool)> {
        let store = Store::open_read_only(&project.results()).unwrap();
        let query = format!(
            "SELECT json_extract(p.settings, '$.\"train.sequence_length\"') AS value,
                    json_extract(p.settings, '$.\"run.probe_layers\"') IS NULL AS whole
             FROM points p JOIN runs r USING (run_id)
             WHERE json_extract(p.settings, '$.depth') = '{depth}' ORDER BY r.started_at"
        );
        let rows = fathom::cli::sql::answer(&store, &query).unwrap();
        let csv = rows.render(fathom::cli::table::Format::Csv);
        let row = |line: &str| {
            let (value, whole) = line.split_once(',').unwrap();
            (value.parse().unwrap(), whole == "1")
        };
        csv.lines().skip(1).map(row).collect()
    };
    let (two, four) = (tried("two"), tried("four"));
    let values = |tried: &[(u64, bool)]| tried.iter().map(|(value, _)| *value).collect::<Vec<_>>();
    assert_eq!(values(&two)[..5], [4096, 8192, 16384, 32768, 23040]);
    assert_eq!(values(&four)[..4], [4096, 8192, 16384, 11520]);
    for (tried, edge) in [(&two, 20000), (&four, 10000)] {
        let (value, whole) = *tried.last().unwrap();
        assert!(whole && value <= edge && value + 512 > edge, "{tried:?}");
        assert_eq!(tried.iter().filter(|(_, whole)| *whole).count(), 1, "{tried:?}");
    }
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    for depth in ["two", "four"] {
        assert!(page.contains(depth), "{page}");
    }

    // Two at a time, or stopped and begun again, it comes to the same.
    let output = run(&[]);
    exits(&output, 0);
    let said = format!("runs: {} done before\n", two.len() + four.len());
    assert!(text(&output.stdout).contains(&said), "{}", text(&output.stdout));
    let side_by_side = Project::new();
    side_by_side.sweep(SEARCHES);
    let arguments = ["sweep", "run", "s.yaml", "--jobs", "2"];
    let mut command = side_by_side.fathom(&scripted(), &arguments);
    exits(&command.env("SCRIPT_EDGE", "20000").output().unwrap(), 0);
    assert_eq!(side_by_side.table(), table);
    for seed in 0..3 {
        let killed = Project::new();
        killed.sweep(SEARCHES);
        let kills = through_kills(&killed, &scripted(), seed, 150, "20");
        assert!(kills >= 1, "seed {seed}: not killed once");
        assert_eq!(killed.table(), table, "seed {seed}, {kills} kills");
    }
}

/// A case whose run fails is left where it stands; the others are searched to their ends.
#[test]
fn a_case_that_fails_stops_no_other() {
    let project = Project::new();
    project.sweep(
        "axes: { rate: { broken: { train.learning_rate: 13 }, sound: {} } }\n\
         search: { bisect: { parameter: train.sequence_length, low: 1024, high: 4096, resolution: 512, multiple_of: 256 } }",
    );
    let output = project.run(&scripted());
    exits(&output, 3);
    assert!(
        text(&output.stdout).contains("runs: 1 failed, 2 finished\n"),
        "{}",
        text(&output.stdout)
    );
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    assert!(page.contains("**sound**: the largest"), "{page}");
    assert!(page.contains("**The search of broken is not finished"), "{page}");
}

#[test]
fn ctrl_c_stops_cleanly_and_the_next_run_goes_on() {
    let expected = uninterrupted(&scripted(), GRID);
    let project = Project::new();
    project.sweep(GRID);
    let child = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--jobs", "2"])
        .env("SCRIPT_STEP_MS", "200")
        .spawn()
        .unwrap();
    let at_work = || {
        let folders = std::fs::read_dir(project.results().join("runs")).into_iter().flatten();
        let logs =
            folders.map(|f| std::fs::read_to_string(RunPaths::new(f.unwrap().path()).events()));
        logs.filter(|log| log.as_ref().is_ok_and(|log| log.contains(r#""kind":"step""#))).count()
            == 2
    };
    until("two workers have made a step", at_work);
    signal(&child, nix::sys::signal::Signal::SIGINT);
    // `timeout` signals its child and then the group that it is in: that is once.
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    exits(&output, 130);
    let said = text(&output.stdout);
    assert!(
        said.contains("2 stopped") && said.contains("the same command goes on from here"),
        "{said}"
    );
    assert_eq!(workers(&project), Vec::<i32>::new(), "a worker outlived its harness");
    exits(&project.run(&scripted()), 0);
    assert_eq!(project.table(), expected);
    // Two runs went on where they had stopped, the others ran once.
    let mut attempts = project.attempts();
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 1, 1, 1, 2, 2]);
}

/// A log that is damaged after its run was read costs nothing: the store has the result.
#[test]
fn a_damaged_log_takes_no_result_away() {
    let project = Project::new();
    project.sweep(GRID);
    exits(&project.run(&scripted()), 0);
    let expected = project.table();
    let folders = std::fs::read_dir(project.results().join("runs")).unwrap();
    let victim = folders.map(|entry| entry.unwrap().path()).min().unwrap();
    let log = RunPaths::new(&victim).events();
    let whole = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, format!("{whole}{{\"loss\": NaN}}\n")).unwrap();
    let output = project.run(&scripted());
    exits(&output, 0);
    let said = text(&output.stderr);
    let id = victim.file_name().unwrap().to_str().unwrap();
    assert!(said.contains("its log is damaged, the store has its result and keeps it"), "{said}");
    assert!(said.contains(&format!("from a backup, or remove runs/{id} of the results")), "{said}");
    assert_eq!(project.table(), expected);
}

/// One run's damaged log is that run's trouble: the others go on, now and the next time.
#[test]
fn a_damaged_log_fails_its_run_alone() {
    let longer = "axes: { train.learning_rate: [0.1, 0.2, 0.3, 0.4] }\nseeds: 2\n";
    let expected = uninterrupted(&scripted(), longer);
    let project = Project::new();
    project.sweep(GRID);
    exits(&project.run(&scripted()), 0);
    let folders = std::fs::read_dir(project.results().join("runs")).unwrap();
    let victim = folders.map(|entry| entry.unwrap().path()).min().unwrap();
    let log = RunPaths::new(&victim).events();
    let whole = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, format!("{whole}{{\"loss\": NaN}}\n")).unwrap();
    // The store was lost too: nobody has the result.
    for file in ["fathom.db", "fathom.db-wal", "fathom.db-shm"] {
        let _ = std::fs::remove_file(project.results().join(file));
    }
    project.sweep(longer);
    let output = project.run(&scripted());
    exits(&output, 3);
    let said = text(&output.stdout);
    assert!(said.contains("runs: 1 failed, 2 finished, 5 done before\n"), "{said}");
    let id = victim.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&format!("from a backup, or remove runs/{id} of the results")), "{said}");
    let store = Store::open_read_only(&project.results()).unwrap();
    let detail = store.known_run(&RunId(id.into())).unwrap().status_detail.unwrap();
    assert!(!detail.contains("help:") && !detail.contains('\n'), "{detail}");
    std::fs::remove_dir_all(&victim).unwrap();
    let output = project.run(&scripted());
    exits(&output, 0);
    assert!(text(&output.stdout).contains("1 finished, 7 done before"), "{}", text(&output.stdout));
    assert_eq!(project.table(), expected);
}

/// A worker that writes what is no event is ended, and the sweep goes on.
#[test]
fn a_worker_that_breaks_the_protocol_fails_alone() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [16, 0.1] }");
    let output = project.run(&scripted());
    exits(&output, 3);
    let said = text(&output.stdout);
    assert!(
        said.contains("runs: 1 failed, 1 finished\n") && said.contains("expected an event"),
        "{said}"
    );
}

/// Memory that others held may be free now: `--again` asks for one more try.
#[test]
fn out_of_memory_is_a_result_until_it_is_asked_for_again() {
    let project = Project::new();
    project.sweep("axes: { train.sequence_length: [16, 64] }");
    let run = |edge: &str, more: &[&str]| {
        let arguments = [&["sweep", "run", "s.yaml"], more].concat();
        let output =
            project.fathom(&scripted(), &arguments).env("SCRIPT_EDGE", edge).output().unwrap();
        exits(&output, 0);
        text(&output.stdout)
    };
    let said = run("32", &[]);
    assert!(
        said.contains("1 finished, 1 out_of_memory") && said.contains("--again out_of_memory"),
        "{said}"
    );
    assert!(run("99", &[]).contains("runs: 2 done before\n"));
    let said = run("99", &["--again", "out_of_memory"]);
    assert!(said.contains("runs: 1 finished, 1 done before\n"), "{said}");
    let refused = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml", "--again", "finished"])
        .output()
        .unwrap();
    assert!(
        text(&refused.stderr).contains("expected `out_of_memory` or `diverged`, found `finished`")
    );
}

/// What `--set` did to a sweep is written on its report.
#[test]
fn a_report_says_what_the_command_line_set() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 0.2] }");
    let set = ["sweep", "run", "s.yaml", "--set", "train.total_tokens=640"];
    exits(&project.fathom(&scripted(), &set).output().unwrap(), 0);
    let page = std::fs::read_to_string(project.path("reports/s/report.md")).unwrap();
    assert!(page.contains("| set on the command line | `train.total_tokens=640` |"), "{page}");
    // Another file of the same name takes its place, and says so.
    std::fs::write(
        project.path("t.yaml"),
        "name: s\nbase: base.yaml\naxes: { train.learning_rate: [0.1, 0.3] }",
    )
    .unwrap();
    let output = project.fathom(&scripted(), &["sweep", "run", "t.yaml"]).output().unwrap();
    exits(&output, 0);
    assert!(
        text(&output.stderr).contains("the sweep `s` of this store came from s.yaml"),
        "{}",
        text(&output.stderr)
    );
}

/// While a run is at work the store follows it, and when its harness and worker are killed it is called lost.
#[test]
fn a_running_sweep_can_be_looked_at_and_a_dead_one_is_lost() {
    let project = Project::new();
    project.sweep("set: { train.learning_rate: 0.1 }");
    let mut child = project
        .fathom(&scripted(), &["sweep", "run", "s.yaml"])
        .env("SCRIPT_STEP_MS", "300")
        .spawn()
        .unwrap();
    let ls = |status: &str| {
        let output = project
            .fathom(&scripted(), &["runs", "ls", "--status", status, "--format", "csv"])
            .output()
            .unwrap();
        text(&output.stdout).lines().count() == 2
    };
    // A run that its harness has not given to a worker yet is at work too, and what is killed then never began.
    let log = || {
        let mut runs = std::fs::read_dir(project.results().join("runs")).into_iter().flatten();
        runs.next().map(|run| run.unwrap().path().join("events.jsonl"))
    };
    let has_begun =
        || log().is_some_and(|log| std::fs::metadata(log).is_ok_and(|log| log.len() > 0));
    until("the store knows the run as running", || has_begun() && ls("running"));
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    for pid in workers(&project) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    until("the run is called lost", || ls("lost"));
    exits(&project.run(&scripted()), 0);
    assert!(ls("finished"));
}

#[test]
fn a_sweep_killed_at_any_moment_comes_to_the_same_table() {
    let expected = uninterrupted(&scripted(), GRID);
    for seed in 0..4 {
        let project = Project::new();
        project.sweep(GRID);
        let kills = through_kills(&project, &scripted(), seed, 200, "20");
        assert!(kills >= 2, "seed {seed}: only {kills} kills");
        assert_eq!(project.table(), expected, "seed {seed}, {kills} kills");
        // The log says the same as the store that was written while all this happened.
        let mut store = Store::open(&project.results()).unwrap();
        assert_eq!(store.rebuild().unwrap().problems, []);
        drop(store);
        assert_eq!(project.table(), expected, "seed {seed}, rebuilt");
    }
}

/// As above with the real engine: weights, optimizer, schedule and data position come back too.
#[test]
fn a_killed_fine_tune_comes_to_the_same_losses() {
    let file = "set: { train.total_tokens: 6400, train.schedule: { type: wsd, warmup_tokens: 640, decay_tokens: 1600 } }\nseeds: 2\n";
    let expected = uninterrupted(&engine(), file);
    let project = Project::new();
    project.sweep(file);
    let kills = through_kills(&project, &engine(), 5, 1200, "0");
    assert!(kills >= 2, "only {kills} kills");
    assert_eq!(project.table(), expected, "{kills} kills");
}

#[test]
fn two_harnesses_never_run_a_point_twice() {
    let project = Project::new();
    project.sweep(GRID);
    let start = || {
        project
            .fathom(&scripted(), &["sweep", "run", "s.yaml", "--jobs", "2"])
            .env("SCRIPT_STEP_MS", "10")
            .spawn()
            .unwrap()
    };
    let children = [start(), start(), start()];
    for child in children {
        exits(&child.wait_with_output().unwrap(), 0);
    }
    assert_eq!(project.attempts(), [1; 6]);
    assert_eq!(project.table(), uninterrupted(&scripted(), GRID));
}

#[test]
fn sweep_plan_says_what_is_done() {
    let project = Project::new();
    project.sweep("axes: { train.learning_rate: [0.1, 13] }");
    let plan = || {
        let output = project.fathom(&scripted(), &["sweep", "plan", "s.yaml"]).output().unwrap();
        exits(&output, 0);
        text(&output.stdout)
    };
    let before = plan();
    assert_eq!(before.matches("missing").count(), 2, "{before}");
    for column in ["memory", "host memory", "FLOP a step", "seconds a step", "first wall"] {
        assert!(before.lines().next().unwrap().contains(column), "{column}: {before}");
    }
    assert!(before.contains("MiB"), "{before}");
    assert!(!project.results().exists(), "planning writes nothing");
    exits(&project.run(&scripted()), 3);
    let after = plan();
    assert!(
        after.contains("finished")
            && after.contains("failed")
            && after.contains("2 points, 2560 tokens in all"),
        "{after}"
    );
    let run = after.lines().nth(2).unwrap().split_whitespace().nth(4).unwrap().to_string();
    assert_eq!(project.status(&run), Status::Finished, "{after}");
}

/// Of a search the plan shows what can be named beforehand, and where each case will end if the prediction is right.
#[test]
fn sweep_plan_shows_what_each_case_will_search() {
    let project = Project::new();
    project.sweep(SEARCHES);
    let arguments = ["sweep", "plan", "s.yaml", "--host-memory", "184MiB"];
    let output = project.fathom(&scripted(), &arguments).output().unwrap();
    exits(&output, 0);
    let said = text(&output.stdout);
    // Two cases, each with five values and both ends.
    assert_eq!(said.matches("missing").count(), 14, "{said}");
    for expected in [
        "depth=two sequence_length=1024 probe_layers=2",
        "depth=four sequence_length=131072 probe_layers=2",
        "search: the largest train.sequence_length from 1024 to 65536 that finishes, to within 512, by probes of 2 layers and a \
         whole run\n",
        "  first 4096, 8192, 16384, 32768, 131072, up to one that does not finish\n",
        "  depth=two: ",
        "  depth=four: ",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let predicted = |case: &str| -> u64 {
        let (_, line) = said.split_once(&format!("  {case}: ")).unwrap();
        line.split_once(" by prediction, after ").unwrap().0.parse().unwrap()
    };
    assert!(predicted("depth=two") > predicted("depth=four"), "{said}");
    assert!(!project.results().exists(), "planning writes nothing");
}
