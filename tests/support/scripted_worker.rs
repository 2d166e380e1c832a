//! A worker without tensors, for tests of sweeps: it keeps to the protocol of runs (folder, configuration, events, control)
//! and does what its configuration's numbers tell it to. Called as `scripted_worker run FOLDER`.
//!
//! The loss of a step depends on nothing but the configuration and the step, so that any two histories that lead to the same
//! step have to agree. `train.learning_rate` 13 exits without a word, 14 dies of a signal, 15 diverges, 16 writes what is no
//! event; a
//! `train.sequence_length` above `$SCRIPT_EDGE`, for each two layers of the model, runs out of memory; a step takes
//! `$SCRIPT_STEP_MS` milliseconds; `$SCRIPT_SHIFT` is added to every loss, and `$SCRIPT_COMMIT` is the commit that
//! `scripted_worker version` says it was built from.

use fathom_spec::config::RunConfig;
use fathom_spec::record::{EvalMethod, EventKind, EventLog, RunPaths, read_events};
use std::collections::BTreeMap;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let commit = std::env::var("SCRIPT_COMMIT").ok();
    if arguments[1] == "version" {
        let version = serde_json::json!({ "code_version": "script", "git_commit": commit });
        return println!("{version}");
    }
    assert_eq!(arguments[1], "run", "expected `run FOLDER`");
    let paths = RunPaths::new(&arguments[2]);
    let config = RunConfig::read(&paths.config()).unwrap();
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let train = &config.train;
    let resumed_from_step = paths.latest_checkpoint().map_or(0, |(step, _)| step);
    let earlier = read_events(&paths.events(), 0).map_or(Vec::new(), |(events, _)| events);
    let attempts = earlier.iter().filter(|e| matches!(e.kind, EventKind::Started { .. })).count();
    let mut log = EventLog::open(&paths.events()).unwrap();
    let mut write = |kind| drop(log.write(kind).unwrap());
    write(EventKind::Started {
        attempt: attempts as u32 + 1,
        resumed_from_step,
        pid: std::process::id(),
        code_version: "script".into(),
        git_commit: commit,
        git_dirty: None,
        host: "here".into(),
        device: "cpu".into(),
        device_name: "none".into(),
        driver: None,
        libtorch: "none".into(),
        threads: 1,
        seed: train.seed,
        environment: BTreeMap::new(),
    });
    let layers = config.model.config.as_ref().map_or(2, |shape| shape.num_hidden_layers as u64);
    if train.sequence_length as u64
        > number("SCRIPT_EDGE").map_or(u64::MAX, |edge| 2 * edge / layers)
    {
        let (asked, free, total) = (Some(3 << 30), Some(1 << 30), Some(8 << 30));
        let message = "asked for 3 GiB".to_string();
        return write(EventKind::OutOfMemory {
            step: 1,
            phase: "forward".into(),
            asked,
            free,
            total,
            message,
        });
    }
    let shift: f64 = std::env::var("SCRIPT_SHIFT").map_or(0.0, |shift| shift.parse().unwrap());
    let steps = config.planned_steps();
    let tokens = |step: u64| step * config.tokens_per_step();
    for step in resumed_from_step + 1..=steps {
        std::thread::sleep(Duration::from_millis(number("SCRIPT_STEP_MS").unwrap_or(0)));
        let loss = 5.0 / (step as f64 + train.seed as f64) + train.learning_rate + shift;
        write(EventKind::Step {
            step,
            tokens: tokens(step),
            loss,
            learning_rate: train.learning_rate,
            grad_norm: 1.0,
            step_seconds: 0.01,
            tokens_per_second: 1000.0,
            peak_allocated: 1 << 20,
            peak_reserved: 1 << 20,
        });
        match train.learning_rate {
            13.0 => {
                eprintln!("the script says so");
                std::process::exit(3);
            }
            14.0 => std::process::abort(),
            16.0 => {
                let mut file =
                    std::fs::OpenOptions::new().append(true).open(paths.events()).unwrap();
                std::io::Write::write_all(&mut file, b"{\"loss\": NaN}\n").unwrap();
                std::thread::park();
            }
            15.0 => {
                return write(EventKind::Diverged {
                    step,
                    loss,
                    reason: "the script says so".into(),
                });
            }
            _ => {}
        }
        let asked_to_stop =
            std::fs::read_dir(paths.control()).into_iter().flatten().flatten().any(|entry| {
                std::fs::read_to_string(entry.path()).unwrap_or_default().contains("stop")
            });
        if asked_to_stop || step % 5 == 0 {
            let folder = paths.checkpoint(step);
            std::fs::create_dir_all(&folder).unwrap();
            let path = format!("checkpoints/{}", folder.file_name().unwrap().display());
            write(EventKind::Checkpoint { step, path, bytes: 0 });
        }
        if asked_to_stop {
            return write(EventKind::Stopped { step, reason: "asked to".into() });
        }
    }
    let nll = 2.0 + train.learning_rate + train.seed as f64 / 100.0;
    for context_length in &config.eval.context_lengths {
        write(EventKind::Perplexity {
            step: steps,
            split: "validation".into(),
            method: EvalMethod::Prefix,
            context_length: *context_length as u64,
            windows: 1,
            tokens: *context_length as u64 - 1,
            nll,
            perplexity: nll.exp(),
            nll_low: nll - 0.1,
            nll_high: nll + 0.1,
            window_nll: vec![nll],
        });
    }
    write(EventKind::Finished { step: steps, tokens: tokens(steps), seconds: 0.1 });
}
