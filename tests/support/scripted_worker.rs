//! A worker without tensors, for tests of sweeps: it keeps to the protocol of runs (folder, configuration, events, control)
//! and does what its configuration's numbers tell it to. Called as `scripted_worker run FOLDER`.
//!
//! The loss of a step depends on nothing but the configuration and the step, so that any two histories that lead to the same
//! step have to agree. `train.learning_rate` 13 exits without a word, 14 dies of a signal, 15 diverges, 16 writes what is no
//! event; a
//! `train.sequence_length` above `$SCRIPT_EDGE`, for each two layers of the model, runs out of memory; a step takes
//! `$SCRIPT_STEP_MS` milliseconds. After the first it waits for the file `$SCRIPT_GATE`, where that is set, and no SIGTERM ends it.
//! It stops with a checkpoint at `$FATHOM_STOP_AT_TOKENS`. `$SCRIPT_SHIFT` is added to every
//! loss, and `$SCRIPT_COMMIT` is the commit that `scripted_worker version` says it was built from.

use fathom_spec::config::RunConfig;
use fathom_spec::record::control::{Command, Inbox};
use fathom_spec::record::{EvalMethod, EventKind, EventLog, RunPaths, read_events};
use std::collections::BTreeMap;
use std::path::PathBuf;
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
    let gate = std::env::var_os("SCRIPT_GATE").map(PathBuf::from);
    if gate.is_some() {
        // SAFETY: a signal is ignored, and no handler is called.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    }
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
        environment: std::env::var("CUDA_VISIBLE_DEVICES")
            .map(|device| BTreeMap::from([("CUDA_VISIBLE_DEVICES".to_string(), device)]))
            .unwrap_or_default(),
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
    let mut inbox = Inbox::new(&paths);
    let shift: f64 = std::env::var("SCRIPT_SHIFT").map_or(0.0, |shift| shift.parse().unwrap());
    let steps = config.planned_steps();
    let tokens = |step: u64| step * config.tokens_per_step();
    let rung = number("FATHOM_STOP_AT_TOKENS");
    if resumed_from_step < steps && rung.is_some_and(|rung| tokens(resumed_from_step) >= rung) {
        let reason = "at its rung".into();
        return write(EventKind::Stopped { step: resumed_from_step, reason });
    }
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
        // A test that failed leaves no folder.
        let is_shut = |gate: &PathBuf| !gate.exists() && gate.parent().unwrap().exists();
        while step == 1 && gate.as_ref().is_some_and(is_shut) {
            std::thread::sleep(Duration::from_millis(5));
        }
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
        let (mut saves, mut stopped_by) = (step % 5 == 0, None);
        while let Some(request) = inbox.take() {
            let outcome = match &request.command {
                Ok(Command::StartAnnealing) => "refused: the script has no schedule".to_string(),
                Ok(command) => {
                    saves = *command != Command::Abort;
                    stopped_by = command.ends_the_run().then_some(*command).or(stopped_by);
                    format!("the script does {command}")
                }
                Err(reason) => format!("refused: {reason}"),
            };
            let command = request.command.map_or(String::new(), |command| command.to_string());
            write(EventKind::Control { command, outcome, request: Some(request.id) });
        }
        let at_rung = step < steps && rung.is_some_and(|rung| tokens(step) >= rung);
        if saves || at_rung {
            let folder = paths.checkpoint(step);
            std::fs::create_dir_all(&folder).unwrap();
            let path = format!("checkpoints/{}", folder.file_name().unwrap().display());
            write(EventKind::Checkpoint { step, path, bytes: 0 });
        }
        if let Some(command) = stopped_by {
            return write(EventKind::Stopped { step, reason: format!("{command} was asked for") });
        }
        if at_rung {
            return write(EventKind::Stopped { step, reason: "at its rung".into() });
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
