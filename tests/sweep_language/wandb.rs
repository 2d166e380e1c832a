//! Sweep files of Weights & Biases: what is carried over reads as a sweep of fathom, what is not is named.

use fathom::sweep::plan::{Plan, wandb};

const RANDOM: &str = "
program: train.py
name: my first/sweep
description: Which of these learns fastest?
method: random
run_cap: 7
metric: { name: val_loss, goal: minimize }
early_terminate: { type: hyperband, min_iter: 3 }
parameters:
  lr: { distribution: log_uniform_values, min: 1e-5, max: 1e-3 }
  batch_size: { values: [1, 2, 4] }
  weight_decay: { min: 0.0, max: 0.3 }
  gradient_accumulation_steps: { min: 1, max: 4 }
  seq_len: { distribution: q_log_uniform_values, q: 16, min: 16, max: 256 }
  schedule: { parameters: { min_learning_rate_ratio: { distribution: q_uniform, q: 0.1, min: 0, max: 1 }, type: { value: cosine } } }
  max_grad_norm: { distribution: log_uniform, min: -1, max: 1 }
  dropout: { value: 0.1 }
  noise: { distribution: normal, mu: 0, sigma: 1 }
";

fn read(text: &str) -> anyhow::Result<Plan> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.yaml"), super::BASE).unwrap();
    Plan::parse(&dir.path().join("s.yaml"), text, &[], &[])
}

#[test]
fn an_imported_sweep_is_a_sweep_but_for_what_it_names() {
    let imported = wandb::import("w.yaml", RANDOM).unwrap();
    let notes = imported.notes.join("\n");
    for expected in [
        "program is not carried over",
        "metric: `val_loss` is not carried over",
        "early_terminate is not carried over",
        "lr is taken for train.learning_rate",
        "batch_size is taken for train.micro_batch_size",
        "seq_len is taken for train.sequence_length",
        "schedule.type is taken for train.schedule.type",
        "dropout is no key of fathom",
        "noise: `normal` is not carried over",
    ] {
        assert!(notes.contains(expected), "{expected}\n{notes}");
    }
    let error = format!("{:#}", read(&imported.text).unwrap_err());
    assert!(error.contains("expected a known key, found `dropout`"), "{error}\n{}", imported.text);
    let without = imported.text.replace("  dropout: 0.1\n", "");
    let plan = read(&without).unwrap_or_else(|error| panic!("{error:#}\n{without}"));
    assert_eq!(plan.name, "my_first_sweep");
    assert_eq!(plan.question.as_deref(), Some("Which of these learns fastest?"));
    assert_eq!(plan.points.len(), 7);
    for point in &plan.points {
        let train = &point.config.train;
        assert!((1e-5..=1e-3).contains(&train.learning_rate) && train.sequence_length % 16 == 0);
        assert!((0.0..=0.3).contains(&train.optimizer.weight_decay));
        assert!((0.367..=2.719).contains(&train.max_grad_norm.unwrap()));
        assert!((1..=4).contains(&train.gradient_accumulation_steps));
    }
}

#[test]
fn a_grid_is_a_grid() {
    let file = "method: grid\nparameters:\n  learning_rate: { values: [0.1, 0.2] }\n  seed: { values: [0, 1, 2] }\n";
    let imported = wandb::import("w.yaml", file).unwrap();
    assert_eq!(read(&imported.text).unwrap().points.len(), 6, "{}", imported.text);
}

/// Their draws are runs; here each draw is made with every listed seed.
#[test]
fn a_cap_of_runs_holds_with_seeds_too() {
    let import = |method: &str, seed: &str| {
        let file = format!(
            "method: {method}\nrun_cap: 10\nparameters:\n  learning_rate: {{ values: [0.1, 0.2, 0.3, 0.4, 0.5] }}\n  seed: {seed}\n"
        );
        let imported = wandb::import("w.yaml", &file).unwrap();
        let points =
            read(&imported.text).unwrap_or_else(|e| panic!("{e:#}\n{}", imported.text)).points;
        (points, imported.notes.join("\n"))
    };
    let (points, notes) = import("random", "{ values: [1, 2, 3] }");
    assert_eq!(points.len(), 9);
    let expected =
        "run_cap: 10 is random.count: 3, as each draw is made with all 3 values of train.seed";
    assert!(notes.contains(expected), "{notes}");
    let (points, notes) = import("random", "{ min: 0, max: 1000 }");
    assert_eq!(points.len(), 10);
    assert!(points.iter().any(|point| point.seed > 0) && !notes.contains("run_cap"), "{notes}");
    let (points, notes) = import("grid", "{ values: [1, 2, 3] }");
    assert_eq!(points.len(), 15);
    assert!(
        notes.contains("run_cap is not carried over: a grid is made whole; `budget: { runs: 10 }`"),
        "{notes}"
    );
}

/// What is varied stays, whichever stands first.
#[test]
fn two_parameters_of_one_key_are_told() {
    for (one, other) in [("lr", "learning_rate"), ("learning_rate", "lr")] {
        let [fixed, varied] = [
            format!("  {one}: {{ value: 0.001 }}\n"),
            format!("  {other}: {{ values: [0.1, 0.2] }}\n"),
        ];
        for parameters in [format!("{fixed}{varied}"), format!("{varied}{fixed}")] {
            let file = format!("method: grid\nparameters:\n{parameters}");
            let imported = wandb::import("w.yaml", &file).unwrap();
            assert_eq!(read(&imported.text).unwrap().points.len(), 2, "{}", imported.text);
            let expected =
                format!("{one} is not carried over: {other} sets train.learning_rate too");
            assert!(imported.notes.contains(&expected), "{:?}", imported.notes);
        }
    }
}

#[test]
fn what_is_no_sweep_file_of_theirs_is_said_so() {
    let cases = [
        (
            "axes: {}",
            "w.yaml: expected a sweep file of Weights & Biases, found no key `parameters`\n  help:",
        ),
        ("parameters: {}", "w.yaml: expected the key `method`, found none"),
        (
            "method: guess\nparameters: {}",
            "w.yaml:1: method: expected `grid`, `random` or `bayes`, found `guess`",
        ),
        (
            "method: grid\nparameters: { lr: 3 }",
            "w.yaml:2: parameters.lr: expected a mapping, found `3`",
        ),
        (
            "method: random\nparameters: { lr: { min: a, max: 2 } }",
            "parameters.lr: expected numbers as `min` and `max`, found `a` and `2`",
        ),
    ];
    for (text, expected) in cases {
        let error = format!("{:#}", wandb::import("w.yaml", text).unwrap_err());
        assert!(error.contains(expected), "{text}\nexpected: {expected}\nfound:    {error}");
    }
    let bayes =
        wandb::import("w.yaml", "method: bayes\nparameters: { lr: { min: 0.1, max: 0.2 } }")
            .unwrap();
    assert!(bayes.notes[0].starts_with("method: bayes is not carried over"), "{:?}", bayes.notes);
    assert!(bayes.text.contains("random:\n  count: 20\n"), "{}", bayes.text);
}
