//! The worker as a whole: determinism, exact resume, endings.

#[path = "support/worker.rs"]
mod worker;

use fathom_spec::record::{EventKind, RunPaths};
use worker::{Outcome, config, run, spawn};

fn weights(paths: &RunPaths) -> Vec<u8> {
    let (_, folder) = paths.latest_checkpoint().expect("a finished run has a checkpoint");
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(dir.path(), "first", &config(dir.path(), &[]));
    let second = run(dir.path(), "second", &config(dir.path(), &[]));
    first.assert_finished();
    assert_eq!(first.losses().len(), 5);
    assert_eq!(first.losses(), second.losses());
    assert_eq!(weights(&first.paths), weights(&second.paths));
    let other = run(dir.path(), "other", &config(dir.path(), &[("train.seed", "2")]));
    assert_ne!(first.losses(), other.losses());
}

/// Stopped at some step and started again, a run goes on as if nothing had been: losses and weights, bit for bit.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    for optimizer in [
        "{type: adamw, weight_decay: 0.1}",
        "{type: adamw, state_dtype: int8}",
        "{type: adafactor}",
        "{type: adafactor_sum}",
        "{type: sgd, momentum: 0.9}",
    ] {
        let settings = [
            ("train.optimizer", optimizer),
            ("train.schedule", "{type: wsd, warmup_tokens: 128, decay_tokens: 128}"),
            ("train.total_tokens", "1024"),
            ("train.gradient_accumulation_steps", "2"),
        ];
        let with = |steps: &'static str| {
            let mut settings = settings.to_vec();
            settings.push(("train.max_steps", steps));
            config(dir.path(), &settings)
        };
        let name: String = optimizer.chars().filter(char::is_ascii_alphanumeric).collect();
        let whole = run(dir.path(), &format!("{name}-whole"), &with("7"));
        whole.assert_finished();
        run(dir.path(), &format!("{name}-resumed"), &with("3")).assert_finished();
        let resumed = run(dir.path(), &format!("{name}-resumed"), &with("7"));
        resumed.assert_finished();
        assert_eq!(resumed.losses(), whole.losses(), "{optimizer}");
        assert_eq!(weights(&resumed.paths), weights(&whole.paths), "{optimizer}");
    }
}

/// Two micro-batches accumulated are one of twice the size.
#[test]
fn accumulation_equals_a_larger_batch() {
    let dir = tempfile::tempdir().unwrap();
    let losses = |name: &str, batch: &str, accumulate: &str| {
        let settings =
            [("train.micro_batch_size", batch), ("train.gradient_accumulation_steps", accumulate)];
        run(dir.path(), name, &config(dir.path(), &settings)).losses()
    };
    let (one, two) = (losses("one", "4", "1"), losses("two", "2", "2"));
    assert_eq!(one.len(), two.len());
    for ((_, a), (_, b)) in one.iter().zip(&two) {
        assert!((a / b - 1.0).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn checkpointing_and_bfloat16_learn_as_float32_does() {
    let dir = tempfile::tempdir().unwrap();
    let last = |name: &str, settings: &[(&str, &str)]| {
        let mut all = vec![("train.total_tokens", "6400")];
        all.extend(settings);
        let outcome = run(dir.path(), name, &config(dir.path(), &all));
        outcome.assert_finished();
        outcome.losses().last().unwrap().1
    };
    let plain = last("plain", &[]);
    let checkpointed = last("checkpointed", &[("train.activation_checkpointing", "true")]);
    let half = last("half", &[("model.dtype", "bfloat16")]);
    let start = run(dir.path(), "start", &config(dir.path(), &[])).losses()[0].1;
    assert!(plain < 0.6 * start, "the loss falls: from {start} to {plain}");
    assert!((checkpointed / plain - 1.0).abs() < 1e-3, "{checkpointed} and {plain}");
    // Rounding differs at every step, so the curves part; what was learnt is the same to a few percent of the fall.
    assert!((half - plain).abs() < 0.03 * (start - plain), "{half} and {plain}");
}

#[test]
fn a_loss_that_leaves_all_bounds_ends_the_run_as_diverged() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("train.learning_rate", "1e3"),
        ("train.optimizer", "{type: sgd}"),
        ("train.max_grad_norm", "null"),
        ("train.total_tokens", "64K"),
    ];
    let outcome = run(dir.path(), "wild", &config(dir.path(), &settings));
    let EventKind::Diverged { step, reason, .. } = outcome.ending() else {
        panic!("{:?}", outcome.ending());
    };
    assert!(*step < 1000, "it ends early, at step {step}");
    assert!(reason.contains("loss") || reason.contains("gradient norm"), "{reason}");
}

/// Memory is capped well above the start and far below what the step needs.
#[test]
fn memory_that_runs_out_ends_the_run_as_out_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("model.config.max_position_embeddings", "1M"),
        ("model.config.max_position_embeddings", "1048576"),
        ("model.attention", "eager"),
        ("data.corpus", "random"),
        ("train.sequence_length", "16384"),
        ("train.total_tokens", "64K"),
        ("run.memory_cap", "1GiB"),
        ("eval.context_lengths", "[]"),
    ];
    let outcome = spawn(dir.path(), "large", &config(dir.path(), &settings));
    let EventKind::OutOfMemory { asked, free, phase, .. } = outcome.ending() else {
        panic!("{:?}", outcome.ending());
    };
    assert_eq!(phase, "forward_backward");
    let (asked, free) = (asked.expect("what was asked"), free.expect("what was free"));
    assert!(asked > free, "asked for {asked} with {free} free");
}

#[test]
fn a_stop_command_ends_with_a_checkpoint_that_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(
        dir.path(),
        &[("train.checkpoint_every_steps", "2"), ("train.keep_checkpoints", "9")],
    );
    let whole = run(dir.path(), "whole", &config);
    // A command that waits when the run begins is acted on before its first step.
    let folder = dir.path().join("stopped");
    std::fs::create_dir_all(folder.join("control")).unwrap();
    std::fs::write(folder.join("control/1.json"), r#"{"command": "stop"}"#).unwrap();
    let stopped = run(dir.path(), "stopped", &config);
    assert!(
        matches!(stopped.ending(), EventKind::Stopped { step: 0, .. }),
        "{:?}",
        stopped.ending()
    );
    assert!(!folder.join("control/1.json").exists(), "the command is taken away");
    let resumed = run(dir.path(), "stopped", &config);
    resumed.assert_finished();
    assert_eq!(resumed.losses(), whole.losses());
    let attempts: Vec<u32> = resumed
        .events
        .iter()
        .filter_map(|e| match e.kind {
            EventKind::Started { attempt, .. } => Some(attempt),
            _ => None,
        })
        .collect();
    assert_eq!(attempts, [1, 2]);
}

/// The answers to command files, by their names.
fn answers(outcome: &Outcome) -> Vec<(String, String)> {
    let answers = outcome.events.iter().filter_map(|event| match &event.kind {
        EventKind::Control { outcome, request, .. } => Some((request.clone()?, outcome.clone())),
        _ => None,
    });
    answers.collect()
}

fn ask(dir: &std::path::Path, name: &str, file: &str, command: &str) {
    let control = dir.join(name).join("control");
    std::fs::create_dir_all(&control).unwrap();
    std::fs::write(control.join(file), format!("{{\"command\": \"{command}\"}}")).unwrap();
}

#[test]
fn commands_are_answered_in_order_and_what_is_none_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[("train.save_checkpoints", "false")]);
    for (file, command) in [("1.json", "dance"), ("2.json", "save"), ("3.json", "save-stop")] {
        ask(dir.path(), "asked", file, command);
    }
    let outcome = run(dir.path(), "asked", &config);
    // A run that can't save is not ended by what was to save it.
    outcome.assert_finished();
    let unsaved = "refused: no checkpoint can be written: train.save_checkpoints is `false`";
    let dance = "expected one of save, stop, save-stop, abort, start-annealing, found `dance`";
    let expected =
        [("1", format!("refused: {dance}")), ("2", unsaved.into()), ("3", unsaved.into())];
    let expected: Vec<(String, String)> =
        expected.into_iter().map(|(name, said)| (name.to_string(), said)).collect();
    assert_eq!(answers(&outcome), expected);
    let warned = outcome.events.iter().any(
        |event| matches!(&event.kind, EventKind::Warning { message } if *message == format!("control/1.json: {dance}")),
    );
    assert!(warned, "a warning names the file");
    ask(dir.path(), "stopped", "1.json", "stop");
    let outcome = run(dir.path(), "stopped", &config);
    let said = "no checkpoint was written: train.save_checkpoints is `false`";
    assert_eq!(answers(&outcome), [("1".to_string(), said.to_string())]);
    assert!(matches!(outcome.ending(), EventKind::Stopped { step: 0, .. }));
}

fn learning_rates(outcome: &Outcome) -> Vec<f64> {
    let rates = outcome.events.iter().filter_map(|event| match &event.kind {
        EventKind::Step { learning_rate, .. } => Some(*learning_rate),
        _ => None,
    });
    rates.collect()
}

/// Five steps of 64 tokens, of which the last two decay unless the decay is begun before.
const WSD: [(&str, &str); 2] = [
    ("train.schedule", "{type: wsd, decay_tokens: 128, min_learning_rate_ratio: 0.1}"),
    ("train.total_tokens", "320"),
];

#[test]
fn annealing_is_begun_by_command_and_a_resumed_run_keeps_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = |steps: &'static str| {
        let mut settings = WSD.to_vec();
        settings.push(("train.max_steps", steps));
        config(dir.path(), &settings)
    };
    let plain = run(dir.path(), "plain", &first("5"));
    let flat = learning_rates(&plain);
    assert_eq!(flat[..4], [0.01; 4], "the decay begins with the last two steps");
    ask(dir.path(), "annealed", "1.json", "start-annealing");
    ask(dir.path(), "annealed", "2.json", "start-annealing");
    run(dir.path(), "annealed", &first("2")).assert_finished();
    let whole = run(dir.path(), "annealed", &first("5"));
    whole.assert_finished();
    let said = answers(&whole);
    assert_eq!(said[0].1, "the decay begins at 0 tokens, after step 0");
    assert_eq!(said[1].1, "refused: the decay has begun already, at 0 tokens");
    let rates = learning_rates(&whole);
    assert_eq!(rates.len(), 5);
    assert!(rates[1] < rates[0] && rates[1] > 0.001, "{rates:?}");
    assert_eq!(rates[2..], [0.001; 3], "after 128 tokens it is down, in the second attempt too");
    let fact = serde_json::json!({"decay_start": 0, "unit": "tokens", "step": 0});
    assert_eq!(whole.facts()["train.schedule.start_annealing"], fact);
}

#[test]
fn row_57_annealing_begins_where_a_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let part = |steps: &'static str, annealing: &'static str| {
        let mut settings = WSD.to_vec();
        settings.extend([("train.max_steps", steps), ("run.start_annealing", annealing)]);
        config(dir.path(), &settings)
    };
    run(dir.path(), "run", &part("2", "false")).assert_finished();
    run(dir.path(), "run", &part("3", "true")).assert_finished();
    // The third attempt is not told, and knows.
    let whole = run(dir.path(), "run", &part("5", "false"));
    whole.assert_finished();
    let rates = learning_rates(&whole);
    assert_eq!(rates[..3], [0.01; 3], "the step that it goes on with begins the decay");
    assert!(rates[3] < 0.01 && rates[3] > 0.001, "{rates:?}");
    assert_eq!(rates[4], 0.001);
    let fresh = run(dir.path(), "fresh", &part("2", "true"));
    let EventKind::Failed { error } = fresh.ending() else { panic!("{:?}", fresh.ending()) };
    assert!(
        error.starts_with("run.start_annealing: expected a checkpoint to go on from"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_run_fails_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let error = |settings: &[(&str, &str)]| -> String {
        let outcome: Outcome = run(dir.path(), "refused", &config(dir.path(), settings));
        let EventKind::Failed { error } = outcome.ending() else {
            panic!("{:?}", outcome.ending())
        };
        error.clone()
    };
    let long = error(&[("train.sequence_length", "65")]);
    assert!(long.contains("max_position_embeddings (64), found `65`"), "{long}");
    assert!(long.contains("help: set model.max_position_embeddings: 65"), "{long}");
    let lost = error(&[("data.corpus", "nowhere")]);
    assert!(lost.contains("nowhere"), "{lost}");
    let split = error(&[("data.splits", "{validation: [helt_out.txt]}")]);
    assert!(split.contains("helt_out.txt") && split.contains("held_out.txt"), "{split}");
    // Found before the first step, not after the last.
    let far = error(&[("eval.context_lengths", "[100000]")]);
    assert!(far.contains("eval.context_lengths[0]: expected at most"), "{far}");
    let mut unknown = config(dir.path(), &[("eval.every_steps", "1")]);
    unknown.eval.split = "test".into();
    let unknown = run(dir.path(), "refused", &unknown);
    let EventKind::Failed { error: unknown } = unknown.ending() else {
        panic!("{:?}", unknown.ending())
    };
    assert!(
        unknown.contains("eval.split: expected a split of data.splits, found `test`"),
        "{unknown}"
    );
    assert!(unknown.contains("known here: train, validation"), "{unknown}");
    let random = error(&[("data.corpus", "random")]);
    assert!(random.contains("set eval.context_lengths: []"), "{random}");
    let short =
        error(&[("model.max_position_embeddings", "100000"), ("train.sequence_length", "65536")]);
    assert!(short.contains("which is all of the training split, found `65536`"), "{short}");
    let events = Outcome::read_back(dir.path(), "refused").events;
    assert!(!events.iter().any(|e| matches!(e.kind, EventKind::Step { .. })));
}

/// The last evaluation takes minutes on a long context. A run that dies in it has nothing left to train, and finishes.
#[test]
fn a_run_killed_in_its_last_evaluation_finishes_with_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let whole = run(dir.path(), "killed", &config);
    whole.assert_finished();
    let log = std::fs::read_to_string(whole.paths.events()).unwrap();
    let saved = log.lines().position(|line| line.contains(r#""kind":"checkpoint""#)).unwrap();
    let until: Vec<&str> = log.lines().take(saved + 1).collect();
    std::fs::write(whole.paths.events(), until.join("\n") + "\n").unwrap();
    let resumed = run(dir.path(), "killed", &config);
    resumed.assert_finished();
    assert_eq!(resumed.losses(), whole.losses());
    assert_eq!(resumed.perplexities(), whole.perplexities());
}

/// What was trained on is said to be, whatever the file is called.
#[test]
fn a_held_out_text_that_is_trained_on_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let also_trained = |name: &str, config: &fathom_spec::config::RunConfig| {
        let outcome = run(dir.path(), name, config);
        outcome.assert_finished();
        outcome.facts()["data.held_out_also_trained_on"].clone()
    };
    let base = config(dir.path(), &[]);
    assert_eq!(also_trained("apart", &base), serde_json::json!([]));
    let train = config(dir.path(), &[("eval.split", "train")]);
    assert_eq!(also_trained("train", &train), serde_json::json!(["a.txt", "b.txt"]));
    std::fs::copy(dir.path().join("corpus/held_out.txt"), dir.path().join("corpus/copy.txt"))
        .unwrap();
    assert_eq!(also_trained("copy", &base), serde_json::json!(["held_out.txt"]));
}
