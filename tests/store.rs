//! The store from outside: what goes in by event logs comes out by query, once, whatever happens on the way.

#[path = "support/events.rs"]
mod events;

use anyhow::Result;
use events::step;
use fathom::cli::table::{Cell, Format};
use fathom::cli::{runs, sql};
use fathom::store::{PointRecord, RunRecord, SavedIdentity, Status, Store, SweepRecord};
use fathom_spec::config::written::Written;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{EvalMethod, Event, EventKind, EventLog, RunId, RunPaths};
use proptest::prelude::*;
use rusqlite::types::Value as SqlValue;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const CREATED_AT: f64 = 1_767_225_600.0; // 2026-01-01

fn config(seed: u64) -> RunConfig {
    let text = format!(
        "model: {{path: models/tiny}}
data: {{corpus: texts, splits: {{validation: ['*7.txt']}}}}
train: {{sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5, seed: {seed}}}
"
    );
    RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap()
}

/// Makes a run known whose id begins with `name`, and its folder with it.
fn plan(store: &mut Store, name: &str, config: &RunConfig) -> (RunId, RunPaths) {
    let run_hash = format!("{name:0<64}");
    let run_id = RunId::from_hash(&run_hash);
    let paths = RunPaths::in_results(store.results(), &run_id);
    std::fs::create_dir_all(&paths.folder).unwrap();
    std::fs::write(paths.config(), config.to_yaml()).unwrap();
    let identity = SavedIdentity {
        identity: RunIdentity { run_hash, group_hash: format!("{:0<64}", "9") },
        digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
        model_files: Vec::new(),
        created_at: CREATED_AT,
    };
    identity.write(&paths).unwrap();
    store.upsert_run(&RunRecord { identity: &identity, config }).unwrap();
    (run_id, paths)
}

/// Whole lines of a log: event n at n seconds, its attempt having begun at 0.
fn lines(kinds: &[EventKind]) -> String {
    let line = |(seq, kind): (usize, &EventKind)| {
        let (time, kind) = (CREATED_AT + seq as f64, kind.clone());
        let event = Event { v: 1, seq: seq as u64, time, elapsed_seconds: seq as f64, kind };
        serde_json::to_string(&event).unwrap() + "\n"
    };
    kinds.iter().enumerate().map(line).collect()
}

fn started(attempt: u32, resumed_from_step: u64) -> EventKind {
    EventKind::Started {
        attempt,
        resumed_from_step,
        pid: 100 + attempt,
        code_version: "0.1.0".into(),
        git_commit: Some("0123456789abcdef".into()),
        git_dirty: Some(attempt == 2),
        host: "here".into(),
        device: "cpu".into(),
        device_name: "a processor".into(),
        driver: None,
        libtorch: "2.11.0".into(),
        threads: 2,
        seed: 0,
        environment: BTreeMap::from([("OMP_NUM_THREADS".into(), "2".into())]),
    }
}

fn perplexity(step: u64, context_length: u64, nll: f64) -> EventKind {
    EventKind::Perplexity {
        step,
        split: "validation".into(),
        method: EvalMethod::Prefix,
        context_length,
        windows: 2,
        tokens: 2 * (context_length - 1),
        nll,
        perplexity: nll.exp(),
        nll_low: nll - 0.25,
        nll_high: nll + 0.25,
        window_nll: vec![nll - 0.5, nll + 0.5],
    }
}

fn fact(name: &str, value: serde_json::Value) -> EventKind {
    EventKind::Fact { name: name.into(), value }
}

fn finished(step: u64) -> EventKind {
    EventKind::Finished { step, tokens: step * 64, seconds: 9.0 }
}

/// All that the store has of its runs, without the numbers that only join tables.
fn dump(store: &Store) -> Vec<String> {
    let below = [
        "params",
        "attempts",
        "perplexity",
        "position_nll",
        "memory",
        "samples",
        "facts",
        "artifacts",
        "events_meta",
    ];
    let queries = below
        .map(|table| {
            format!("SELECT '{table}', r.run_id, x.* FROM {table} x JOIN runs r ON r.id = x.run")
        })
        .into_iter()
        .chain([
            "SELECT 'runs', * FROM runs".into(),
            "SELECT 'metrics', * FROM v_metrics".into(),
            "SELECT 'metric_summaries', * FROM v_metric_summaries".into(),
        ]);
    let mut all = Vec::new();
    for query in queries {
        let mut statement = store.connection().prepare(&query).unwrap();
        let names: Vec<String> = statement.column_names().map(ToString::to_string).collect();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells =
                names.iter().enumerate().filter(|(_, name)| *name != "id" && *name != "run");
            let cells =
                cells.map(|(i, name)| format!("{name}={:?}", row.get::<_, SqlValue>(i).unwrap()));
            all.push(cells.collect::<Vec<_>>().join(" "));
        }
    }
    all.sort();
    all
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn events_come_out_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(3));
    assert_eq!(store.ingest_run(&id).unwrap().status, Status::Planned);
    let mut log = EventLog::open(&paths.events()).unwrap();
    for kind in [
        started(1, 0),
        fact("data.blocks", json!({"count": 7, "full": 0.5})),
        step(1, 3.5),
        step(2, 3.25),
        EventKind::Eval { step: 2, split: "validation".into(), loss: 3.0, tokens: 99 },
        EventKind::Memory {
            step: 2,
            phase: "backward".into(),
            allocated: 1,
            reserved: 2,
            peak_allocated: 1 << 40,
            peak_reserved: 4,
        },
        perplexity(1, 32, 9.0),
        perplexity(2, 64, 2.0),
        perplexity(2, 32, 2.5),
        EventKind::PositionNll {
            step: 2,
            split: "validation".into(),
            start: 32,
            end: 64,
            tokens: 64,
            nll: 2.0,
        },
        EventKind::Sample { step: 2, prompt: "It".into(), text: " was".into() },
        EventKind::Checkpoint { step: 2, path: "checkpoints/step-00000002".into(), bytes: 77 },
        EventKind::Warning { message: "slow".into() },
        EventKind::Control { command: "save".into(), outcome: "saved".into(), request: None },
        EventKind::Heartbeat { step: 2 },
    ] {
        log.write(kind).unwrap();
    }
    let ingested = store.ingest_run(&id).unwrap();
    assert_eq!((ingested.events, ingested.status), (15, Status::Running));

    let run = store.known_run(&id).unwrap();
    assert_eq!((run.attempt, run.step, run.tokens, run.last_loss), (1, 2, 128, Some(3.25)));
    assert_eq!((run.peak_allocated, run.peak_reserved), (Some(1 << 40), Some(200 << 20)));
    assert_eq!((run.seed, run.threads, run.git_dirty), (3, Some(2), Some(false)));
    assert_eq!(run.environment.unwrap()["OMP_NUM_THREADS"], "2");
    assert_eq!(run.config, config(3).to_json());
    assert_eq!(run.digests.data, "d");

    assert_eq!(store.metric(&id, "loss").unwrap(), [(1, 3.5), (2, 3.25)]);
    assert_eq!(store.metric(&id, "eval_loss.validation").unwrap(), [(2, 3.0)]);
    assert_eq!(store.metric(&id, "no such").unwrap(), []);
    assert_eq!(
        store.metric_keys(&id).unwrap().join(" "),
        "eval_loss.validation grad_norm learning_rate loss peak_allocated peak_reserved step_seconds tokens tokens_per_second"
    );
    assert_eq!(store.last_metrics(&id).unwrap()["tokens"], (2, 128.0));
    assert_eq!(store.params(&id).unwrap()["train.seed"], json!(3));
    assert_eq!(store.params(&id).unwrap()["train.optimizer.type"], json!("adamw"));
    assert_eq!(store.facts(&id).unwrap()["data.blocks"], json!({"count": 7, "full": 0.5}));
    let rows = store.perplexity(&id).unwrap();
    let lengths: Vec<_> = rows.iter().map(|row| (row.context_length, row.nll)).collect();
    assert_eq!(lengths, [(32, 2.5), (64, 2.0)]);
    assert_eq!((rows[0].method, &rows[0].window_nll), (EvalMethod::Prefix, &vec![2.0, 3.0]));
    assert_eq!(store.perplexity_by_step(&id).unwrap().len(), 3);
    let row = |sql: &str| sql::answer(&store, sql).unwrap().rows.remove(0);
    let position = row("SELECT start, \"end\", nll FROM position_nll ORDER BY step DESC, start");
    assert_eq!(position, [Cell::Integer(32), Cell::Integer(64), Cell::Real(2.0)]);
    let memory = row("SELECT phase, peak_allocated FROM memory ORDER BY step, phase");
    assert_eq!(memory, [Cell::Text("backward".into()), Cell::Integer(1 << 40)]);
    assert_eq!(store.samples(&id).unwrap()[0].text, " was");
    let artifact = &store.artifacts(&id).unwrap()[0];
    assert_eq!((artifact.kind.as_str(), artifact.bytes), ("checkpoint", 77));
    assert_eq!(store.warnings(&id).unwrap()[0].message, "slow");
    assert_eq!(store.events(&id, "control").unwrap().len(), 1);

    log.write(finished(2)).unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().status, Status::Finished);
    assert_eq!(store.status(&id).unwrap(), Some(Status::Finished));
    let unknown = RunId("b00000000000".into());
    assert_eq!(store.status(&unknown).unwrap(), None);
    assert_eq!(
        error(store.ingest_run(&unknown)),
        "run b00000000000: expected a run of the store, found none"
    );
}

#[test]
fn endings_are_recorded_with_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let out_of_memory = EventKind::OutOfMemory {
        step: 4,
        phase: "backward".into(),
        asked: Some(3 << 30),
        free: Some(1 << 29),
        total: None,
        message: "CUDA out of memory".into(),
    };
    let diverged = EventKind::Diverged { step: 4, loss: f64::INFINITY, reason: "too high".into() };
    let stopped = EventKind::Stopped { step: 4, reason: "asked".into() };
    let failed = EventKind::Failed { error: "no such file".into() };
    for (name, ending, status, detail) in [
        ("a1", finished(4), Status::Finished, None),
        ("a2", stopped, Status::Stopped, Some("asked")),
        (
            "a3",
            out_of_memory,
            Status::OutOfMemory,
            Some("backward of step 4: asked for 3.0 GiB, free 512.0 MiB"),
        ),
        ("a4", diverged, Status::Diverged, Some("step 4: loss inf: too high")),
        ("a5", failed, Status::Failed, Some("no such file")),
    ] {
        let (id, paths) = plan(&mut store, name, &config(0));
        std::fs::write(paths.events(), lines(&[started(1, 0), ending.clone()])).unwrap();
        store.ingest_run(&id).unwrap();
        let run = store.known_run(&id).unwrap();
        assert_eq!((run.status, run.status_detail.as_deref()), (status, detail));
        assert_eq!((run.ended_at, run.seconds), (Some(CREATED_AT + 1.0), 1.0));
        assert_eq!(store.events(&id, ending.ending().unwrap()).unwrap()[0].kind, ending);
    }
    let run = store.find_run("a3").unwrap();
    assert_eq!((run.asked_bytes, run.free_bytes), (Some(3 << 30), Some(1 << 29)));
}

#[test]
fn a_torn_line_waits_for_its_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let log = lines(&[started(1, 0), step(1, 3.0)]);
    std::fs::write(paths.events(), &log[..log.len() - 9]).unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().events, 1);
    assert_eq!(store.ingest_run(&id).unwrap().events, 0);
    std::fs::write(paths.events(), &log).unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().events, 1);
    assert_eq!(store.metric(&id, "loss").unwrap(), [(1, 3.0)]);
}

#[test]
fn a_line_that_is_no_event_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let good = lines(&[started(1, 0), step(1, 3.0)]);
    std::fs::write(paths.events(), format!("{good}nonsense\n")).unwrap();
    let before = dump(&store);
    let message = error(store.ingest_run(&id));
    let place = format!("byte {}: expected an event, found `nonsense`", good.len());
    assert!(message.contains(&place), "{message}");
    assert_eq!(dump(&store), before);
}

/// What the store could only pass over is refused, a step and every other kind alike.
#[test]
fn an_event_with_a_number_beyond_all_counting_is_not_passed_over() {
    for (name, kind) in [("a1", step(1, 3.0)), ("a2", finished(1))] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let (id, paths) = plan(&mut store, name, &config(0));
        let log = lines(&[started(1, 0), kind]).replace("\"seq\":1", "\"seq\":9223372036854775808");
        std::fs::write(paths.events(), log).unwrap();
        let message = error(store.ingest_run(&id));
        assert!(message.contains("expected a seq of at most 9223372036854775807"), "{message}");
    }
}

#[test]
fn a_failure_on_the_way_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let sample = EventKind::Sample { step: 1, prompt: "It".into(), text: " was".into() };
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, 3.0), sample, step(2, 2.0)]))
        .unwrap();
    let before = dump(&store);
    let trigger = "CREATE TEMP TRIGGER full BEFORE INSERT ON samples BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    store.connection().execute_batch(trigger).unwrap();
    let message = error(store.ingest_run(&id));
    let expected = format!("run {id}: event 2 can't be recorded: disk full");
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(dump(&store), before);
    store.connection().execute_batch("DROP TRIGGER full").unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().events, 4);
    assert_eq!(store.metric(&id, "loss").unwrap(), [(1, 3.0), (2, 2.0)]);
}

#[test]
fn a_resumed_attempt_replaces_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let mut log: Vec<EventKind> = vec![started(1, 0), fact("dtype", json!("float32"))];
    log.extend((1..=4).map(|k| step(k, 10.0 - k as f64)));
    log.push(perplexity(4, 64, 2.0));
    log.push(EventKind::Failed { error: "power".into() });
    log.push(started(2, 2));
    std::fs::write(paths.events(), lines(&log)).unwrap();
    store.ingest_run(&id).unwrap();
    let run = store.known_run(&id).unwrap();
    assert_eq!((run.status, run.status_detail, run.ended_at), (Status::Running, None, None));
    assert_eq!((run.attempt, run.step, run.tokens, run.last_loss), (2, 2, 128, Some(8.0)));
    // The first attempt's clock read 7 at its end, the second's 8 at its beginning.
    assert_eq!((run.earlier_seconds, run.seconds), (7.0, 15.0));
    assert_eq!(run.peak_allocated, Some(104 << 20), "the highest of any attempt");
    assert_eq!(store.metric(&id, "loss").unwrap(), [(1, 9.0), (2, 8.0)]);
    assert_eq!(store.perplexity(&id).unwrap(), []);
    assert_eq!(store.facts(&id).unwrap().len(), 1);

    log.extend([step(3, 1.0), finished(3)]);
    std::fs::write(paths.events(), lines(&log)).unwrap();
    store.ingest_run(&id).unwrap();
    assert_eq!(store.metric(&id, "loss").unwrap(), [(1, 9.0), (2, 8.0), (3, 1.0)]);
    assert_eq!(store.events(&id, "started").unwrap().len(), 2);
    assert_eq!(store.events(&id, "failed").unwrap().len(), 1, "what happened stays");

    log.push(started(3, 0));
    std::fs::write(paths.events(), lines(&log)).unwrap();
    store.ingest_run(&id).unwrap();
    assert_eq!(store.metric(&id, "loss").unwrap(), []);
    assert_eq!(store.facts(&id).unwrap().len(), 0);
    assert_eq!(store.known_run(&id).unwrap().last_loss, None);
}

#[test]
fn a_log_made_anew_starts_the_run_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let failed = EventKind::Failed { error: "power".into() };
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, 3.0), failed])).unwrap();
    store.ingest_run(&id).unwrap();
    std::fs::write(paths.events(), lines(&[started(1, 0)])).unwrap();
    let ingested = store.ingest_run(&id).unwrap();
    assert_eq!((ingested.events, ingested.status), (1, Status::Running));
    assert_eq!(store.metric(&id, "loss").unwrap(), []);
    assert_eq!(store.events(&id, "failed").unwrap(), []);
    std::fs::remove_file(paths.events()).unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().status, Status::Planned);
}

#[test]
fn nan_and_infinities_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let mut window = perplexity(2, 64, f64::NAN);
    if let EventKind::Perplexity { perplexity, nll_high, window_nll, .. } = &mut window {
        (*perplexity, *nll_high) = (f64::INFINITY, f64::INFINITY);
        *window_nll = vec![1.0, f64::NAN, f64::NEG_INFINITY];
    }
    let mut fast = step(2, f64::NAN);
    if let EventKind::Step { tokens_per_second, .. } = &mut fast {
        *tokens_per_second = f64::INFINITY;
    }
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, f64::INFINITY), fast, window]))
        .unwrap();
    store.ingest_run(&id).unwrap();
    let loss = store.metric(&id, "loss").unwrap();
    assert_eq!(loss[0], (1, f64::INFINITY));
    assert!(loss[1].1.is_nan());
    assert_eq!(store.metric(&id, "tokens_per_second").unwrap()[1], (2, f64::INFINITY));
    let row = &store.perplexity(&id).unwrap()[0];
    assert!(row.nll.is_nan() && row.nll_low.is_nan() && row.window_nll[1].is_nan());
    assert_eq!((row.perplexity, row.window_nll[2]), (f64::INFINITY, f64::NEG_INFINITY));
    let table = sql::answer(&store, "SELECT value FROM v_metrics WHERE key = 'loss'").unwrap();
    assert_eq!(table.rows, [[Cell::Real(f64::INFINITY)], [Cell::Null]]);
    let infinite = "SELECT exp(value) AS x FROM v_metrics WHERE key = 'loss' AND step = 1";
    assert_eq!(sql::answer(&store, infinite).unwrap().rows, [[Cell::Real(f64::INFINITY)]]);
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -1e3..1e3,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => proptest::num::f64::ANY
    ]
}

fn any_event() -> impl Strategy<Value = EventKind> {
    let split = || prop_oneof![Just("validation".to_string()), Just("other".to_string())];
    prop_oneof![
        2 => (1u32..5, 0u64..6).prop_map(|(attempt, from)| started(attempt, from)),
        6 => (1u64..8, any_number()).prop_map(|(k, loss)| step(k, loss)),
        1 => (0u64..8, split(), any_number())
            .prop_map(|(step, split, loss)| EventKind::Eval { step, split, loss, tokens: 9 }),
        2 => (0u64..8, 2u64..5, any_number()).prop_map(|(k, length, nll)| perplexity(k, length, nll)),
        1 => (0u64..8, split(), 0u64..3, any_number()).prop_map(|(step, split, start, nll)| {
            EventKind::PositionNll { step, split, start, end: start + 1, tokens: 3, nll }
        }),
        1 => (0u64..8, 0u64..1 << 40).prop_map(|(step, peak_allocated)| EventKind::Memory {
            step, phase: "eval".into(), allocated: 1, reserved: 2, peak_allocated, peak_reserved: 3,
        }),
        1 => (0u64..8, ".*").prop_map(|(step, text)| EventKind::Sample { step, prompt: "é\n".into(), text }),
        1 => ("[a-c]", any::<i64>()).prop_map(|(name, n)| fact(&name, json!([n, null]))),
        1 => (0u64..8).prop_map(|step| EventKind::Checkpoint { step, path: format!("c{step}"), bytes: 5 }),
        1 => ".*".prop_map(|message| EventKind::Warning { message }),
        1 => (0u64..8).prop_map(|step| EventKind::Heartbeat { step }),
        1 => (0u64..8).prop_map(finished),
        1 => (0u64..8, any::<Option<u32>>()).prop_map(|(step, asked)| EventKind::OutOfMemory {
            step, phase: "forward".into(), asked: asked.map(u64::from), free: None, total: None, message: "no".into(),
        }),
        1 => ".*".prop_map(|error| EventKind::Failed { error }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_log_read_in_pieces_is_the_log_read_at_once(
        kinds in proptest::collection::vec(any_event(), 0..40),
        cuts in proptest::collection::vec(0.0..1.0, 0..6),
    ) {
        let log = lines(&kinds);
        let dir = tempfile::tempdir().unwrap();
        let mut live = Store::open(&dir.path().join("live")).unwrap();
        let (id, paths) = plan(&mut live, "a1", &config(0));
        let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * log.len() as f64) as usize).collect();
        ends.sort_unstable();
        ends.push(log.len());
        let mut events = 0;
        for (i, &end) in ends.iter().enumerate() {
            std::fs::write(paths.events(), &log.as_bytes()[..end]).unwrap();
            events += live.ingest_run(&id).unwrap().events;
            let once = dump(&live);
            prop_assert_eq!(live.ingest_run(&id).unwrap().events, 0);
            prop_assert_eq!(&dump(&live), &once, "ingesting twice changed something");
            if i % 2 == 1 {
                drop(live);
                live = Store::open(&dir.path().join("live")).unwrap();
            }
        }
        prop_assert_eq!(events, kinds.len() as u64);

        let mut whole = Store::open(&dir.path().join("whole")).unwrap();
        let (id, paths) = plan(&mut whole, "a1", &config(0));
        std::fs::write(paths.events(), &log).unwrap();
        whole.ingest_run(&id).unwrap();
        let expected = dump(&whole);
        prop_assert_eq!(&dump(&live), &expected);

        let rebuilt = live.rebuild().unwrap();
        prop_assert_eq!((rebuilt.runs, rebuilt.events), (1, kinds.len() as u64));
        prop_assert_eq!(&dump(&live), &expected, "rebuilding changed something");
    }
}

#[test]
fn a_store_is_rebuilt_from_folders_alone() {
    let dir = tempfile::tempdir().unwrap();
    let live = example(dir.path());
    let expected = dump(&live);
    drop(live);
    for file in ["fathom.db", "fathom.db-wal", "fathom.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(file));
    }
    let mut store = Store::open(dir.path()).unwrap();
    let rebuilt = store.rebuild().unwrap();
    assert_eq!((rebuilt.runs, rebuilt.problems.len()), (5, 0));
    assert_eq!(dump(&store), expected);
}

#[test]
fn rebuilding_names_what_it_could_not_read_and_keeps_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (killed, paths) = plan(&mut store, "a1", &config(0));
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, 3.0)])).unwrap();
    store.ingest_run(&killed).unwrap();
    store.set_status(&killed, Status::Killed, Some("signal 9")).unwrap();
    let (lost, paths) = plan(&mut store, "a2", &config(0));
    std::fs::write(paths.events(), lines(&[started(1, 0)])).unwrap();
    store.ingest_run(&lost).unwrap();
    store.set_status(&lost, Status::Lost, None).unwrap();
    std::fs::write(paths.events(), lines(&[started(1, 0), finished(1)])).unwrap();
    let (_, paths) = plan(&mut store, "a3", &config(0));
    std::fs::write(paths.config(), "model: 7\n").unwrap();
    let (moved, paths) = plan(&mut store, "a4", &config(0));
    std::fs::write(paths.events(), lines(&[started(1, 0)])).unwrap();
    store.ingest_run(&moved).unwrap();
    std::fs::rename(&paths.folder, paths.folder.with_file_name("copy")).unwrap();
    std::fs::create_dir_all(dir.path().join("runs/notes")).unwrap();

    let rebuilt = store.rebuild().unwrap();
    assert_eq!(rebuilt.runs, 2);
    let problems: Vec<_> = rebuilt.problems.iter().map(|(folder, _)| folder.as_str()).collect();
    assert_eq!(problems, ["a30000000000", "copy"]);
    assert!(rebuilt.problems[0].1.contains("config.yaml:1: model: "), "{rebuilt:?}");
    assert!(rebuilt.problems[1].1.contains("begins with the folder's name"), "{rebuilt:?}");
    let run = store.known_run(&killed).unwrap();
    assert_eq!((run.status, run.status_detail.as_deref()), (Status::Killed, Some("signal 9")));
    assert_eq!(store.status(&lost).unwrap(), Some(Status::Finished), "the log has newer word");
    // What is left of them is not thrown away.
    assert_eq!(store.status(&moved).unwrap(), Some(Status::Running));
    assert_eq!(rebuilt.kept, [moved]);
}

/// A store that says something else than the folders is found, and mended.
#[test]
fn rows_that_were_tampered_with_are_found_and_made_anew() {
    let changes = [
        ("UPDATE perplexity SET nll = 1 WHERE run = 1", "other rows of perplexity"),
        ("UPDATE runs SET last_loss = 0.1 WHERE id = 2", "makes another last_loss"),
        ("UPDATE runs SET step = 1, tokens = 1 WHERE id = 1", "makes another step, tokens"),
        ("UPDATE runs SET status = 'failed' WHERE id = 1", "makes another status"),
        ("UPDATE runs SET status = 'finished' WHERE id = 5", "makes another status"),
        ("UPDATE attempts SET status = 'failed' WHERE run = 1", "other rows of attempts"),
        (
            "UPDATE params SET value = '9' WHERE key = 'train.seed' AND run = 1",
            "values of 1 parameters",
        ),
        (
            "UPDATE runs SET config = replace(config, '\"seed\":0', '\"seed\":5') WHERE id = 1",
            "makes another config",
        ),
        ("UPDATE runs SET log_offset = 5 WHERE id = 1", "do not belong together"),
        (
            "UPDATE points SET label = 'other' WHERE position = 0",
            "sweeps/rope_variants.json makes another one",
        ),
        ("UPDATE sweeps SET spec = '{'", "sweeps/rope_variants.json makes another one"),
        ("DROP VIEW v_runs", "schema: expected the view v_runs, found none"),
        ("DROP INDEX runs_by_group", "schema: expected the index runs_by_group, found none"),
        ("DROP TABLE tags", "schema: expected the table tags, found none"),
        (
            "ALTER TABLE notes ADD COLUMN more TEXT",
            "schema: expected the table notes as this version makes it",
        ),
    ];
    for (change, expected) in changes {
        let dir = tempfile::tempdir().unwrap();
        let store = example(dir.path());
        assert!(store.check().unwrap().is_sound());
        let before = dump(&store);
        store.connection().execute_batch(change).unwrap();
        let said: Vec<String> =
            store.check().unwrap().found.iter().map(|f| f.to_string()).collect();
        assert!(
            said.iter().any(|f| f.starts_with("problem: ") && f.contains(expected)),
            "{change}: {said:?}"
        );
        drop(store);
        Store::rebuild_from_folders(dir.path()).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(dump(&store), before, "{change}");
        let said = store.check().unwrap();
        assert!(said.is_sound(), "{change}: {said:?}");
    }
}

/// What a log has lost, or counts twice, is no log that numbers are taken from.
#[test]
fn a_log_counts_on_from_one_event_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &config(0));
    let log = lines(&[started(1, 0), step(1, 3.0), step(2, 2.0), finished(2)]);
    let all: Vec<&str> = log.split_inclusive('\n').collect();
    let said = "expected the event with seq ";
    for (order, expected) in [
        (vec![0, 2, 3], "1, found seq 2"),
        (vec![0, 1, 1], "2, found seq 1"),
        (vec![0, 2, 1, 3], "1, found seq 2"),
        (vec![1, 2, 3], "0, found seq 1"),
    ] {
        let text: String = order.iter().map(|at| all[*at]).collect();
        std::fs::write(paths.events(), text).unwrap();
        let message = error(store.ingest_run(&id));
        assert!(message.contains(said) && message.contains(expected), "{order:?}: {message}");
        assert!(store.has_damaged_log(&id).unwrap(), "{order:?}");
        assert_eq!(store.known_run(&id).unwrap().last_seq, -1);
    }
    std::fs::write(paths.events(), all[0]).unwrap();
    store.ingest_run(&id).unwrap();
    std::fs::write(paths.events(), [all[0], all[2]].concat()).unwrap();
    let message = error(store.ingest_run(&id));
    assert!(message.contains(said) && message.contains("1, found seq 2"), "{message}");
    assert!(store.has_damaged_log(&id).unwrap());
    std::fs::write(paths.events(), log.replace("\"v\":1", "\"v\":2")).unwrap();
    let message = error(store.ingest_run(&id));
    assert!(message.contains("expected an event of version 1, found 2"), "{message}");
}

/// Between a worker's start and its first event only the database knows of it.
#[test]
fn rebuilding_leaves_a_run_to_the_worker_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let begin = |store: &mut Store, paths: &RunPaths, last_seq| {
        let identity = SavedIdentity::read(paths).unwrap();
        let config = config(0);
        store.begin_run(&RunRecord { identity: &identity, config: &config }, last_seq).unwrap();
    };
    let (new, paths) = plan(&mut store, "a1", &config(0));
    begin(&mut store, &paths, -1);
    let (again, paths) = plan(&mut store, "a2", &config(0));
    std::fs::write(paths.events(), lines(&[started(1, 0)])).unwrap();
    store.ingest_run(&again).unwrap();
    store.set_status(&again, Status::Lost, Some("its process is gone")).unwrap();
    begin(&mut store, &paths, 0);
    let (over, paths) = plan(&mut store, "a3", &config(0));
    begin(&mut store, &paths, -1);
    std::fs::write(paths.events(), lines(&[started(1, 0), finished(1)])).unwrap();

    store.rebuild().unwrap();
    let rebuilt = dump(&store);
    assert_eq!(store.status(&new).unwrap(), Some(Status::Running));
    assert_eq!(store.status(&again).unwrap(), Some(Status::Running));
    assert_eq!(store.status(&over).unwrap(), Some(Status::Finished), "the log has newer word");
    store.rebuild().unwrap();
    assert_eq!(dump(&store), rebuilt);
}

#[test]
fn planning_again_keeps_progress() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let mut changed = config(0);
    changed.run.threads = Some(3);
    plan(&mut store, "a1", &config(0));
    let (id, paths) = plan(&mut store, "a1", &changed);
    assert_eq!(store.params(&id).unwrap()["run.threads"], json!(3));
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, 3.0), finished(1)])).unwrap();
    store.ingest_run(&id).unwrap();
    let before = dump(&store);
    plan(&mut store, "a1", &config(0));
    assert_eq!(dump(&store), before);
}

/// A sweep of two labels with two seeds each, and one run that belongs to no sweep.
fn example(results: &Path) -> Store {
    let mut store = Store::open(results).unwrap();
    let mut points = Vec::new();
    for (position, (label, seed, nll)) in [
        ("rope=plain", 0, 2.0),
        ("rope=plain", 1, 3.0),
        ("rope=yarn", 0, 1.0),
        ("rope=yarn", 1, 1.5),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = config(seed);
        if label == "rope=yarn" {
            config.model.rope_parameters =
                serde_json::from_value(json!({"rope_type": "yarn", "factor": 2.0})).unwrap();
        }
        let name = format!("a{position}");
        let (run_id, paths) = plan(&mut store, &name, &config);
        let mut log = vec![
            started(1, 0),
            fact("model.rope_parameters", json!(label)),
            fact("data.documents", json!(12)),
            step(1, nll + 1.0),
            EventKind::Warning { message: "the last block is short".into() },
            EventKind::Checkpoint {
                step: 2,
                path: "checkpoints/step-00000002".into(),
                bytes: 2048,
            },
            step(2, nll + 0.5),
            perplexity(2, 64, nll),
            perplexity(2, 128, nll + 0.5),
        ];
        // The last point is still under way.
        if position < 3 {
            log.push(finished(2));
        }
        std::fs::write(paths.events(), lines(&log)).unwrap();
        store.ingest_run(&run_id).unwrap();
        let settings = json!({"rope": label, "train.seed": seed});
        points.push(PointRecord {
            position: position as u64,
            label: label.into(),
            seed,
            settings,
            run_id,
        });
    }
    let sweep = SweepRecord {
        name: "rope_variants".into(),
        file: "experiments/rope_variants.yaml".into(),
        question: Some("Which variant?".into()),
        spec: json!({"axes": {"rope": ["plain", "yarn"]}}),
        planned_at: CREATED_AT,
    };
    store.upsert_sweep(&sweep, &points).unwrap();
    let (alone, paths) = plan(&mut store, "b0", &config(7));
    let failed = EventKind::Failed { error: "texts: no such folder".into() };
    std::fs::write(paths.events(), lines(&[started(1, 0), failed])).unwrap();
    store.ingest_run(&alone).unwrap();
    store
}

#[test]
fn sweeps_are_replaced_and_cascade() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let points = store.points("rope_variants").unwrap();
    assert_eq!(points.len(), 4);
    assert_eq!(points[1].settings, json!({"rope": "rope=plain", "train.seed": 1}));
    let mut sweep = store.sweep("rope_variants").unwrap().unwrap();
    assert_eq!(sweep.question.as_deref(), Some("Which variant?"));
    assert_eq!(store.sweep("other").unwrap(), None);
    let summary = &store.sweeps().unwrap()[0];
    assert_eq!((summary.points, summary.finished), (4, 3));
    let runs = store.runs_of_sweep("rope_variants").unwrap();
    assert_eq!(
        runs.iter().map(|run| &run.run_id).collect::<Vec<_>>(),
        points.iter().map(|p| &p.run_id).collect::<Vec<_>>()
    );
    assert_eq!(store.runs().unwrap().len(), 5);
    assert_eq!(store.points_of_run(&points[2].run_id).unwrap()[0].1, points[2]);

    sweep.planned_at += 1.0;
    let one_twice = [points[0].clone(), points[0].clone()];
    let message = error(store.upsert_sweep(&sweep, &one_twice));
    assert!(message.starts_with("sweep rope_variants: can't be recorded: UNIQUE"), "{message}");
    assert_eq!(store.points("rope_variants").unwrap(), points, "nothing of it is recorded");
    store.upsert_sweep(&sweep, &points[2..]).unwrap();
    assert_eq!(store.points("rope_variants").unwrap(), points[2..]);
    // What it had before is kept in mind: a budget counts it.
    sweep.spec["earlier_runs"] = json!([points[0].run_id.0, points[1].run_id.0]);
    assert_eq!(store.sweep("rope_variants").unwrap(), Some(sweep.clone()));
    assert_eq!(store.runs_of_sweep("rope_variants").unwrap().len(), 2);
    assert_eq!(store.taken_by_sweep("rope_variants").unwrap().len(), 4);
    store.upsert_sweep(&sweep, &points).unwrap();
    sweep.spec.as_object_mut().unwrap().remove("earlier_runs");
    assert_eq!(store.sweep("rope_variants").unwrap(), Some(sweep));

    store.connection().execute("DELETE FROM sweeps", []).unwrap();
    assert_eq!(store.points("rope_variants").unwrap(), []);
    assert_eq!(store.runs().unwrap().len(), 5, "runs outlive their sweeps");
    store.connection().execute("DELETE FROM runs", []).unwrap();
    assert_eq!(dump(&store), Vec::<String>::new());
}

/// One drives the sweep as it was, another as it is now; a point more of the first takes nothing from the second.
#[test]
fn what_another_has_brought_to_a_sweep_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let all = store.points("rope_variants").unwrap();
    let first = store.sweep("rope_variants").unwrap().unwrap();
    let second = SweepRecord { spec: json!({ "seeds": 2 }), ..first.clone() };
    let ids = |points: &[PointRecord]| points.iter().map(|p| p.run_id.clone()).collect::<Vec<_>>();
    let before = ids(&all[..2]).into_iter().collect();
    store.upsert_sweep(&first, &all[..2]).unwrap();
    // What it had, and has no more, does not come back.
    store.update_sweep(&first, &all[1..2], &before).unwrap();
    assert_eq!(ids(&store.points("rope_variants").unwrap()), ids(&all[1..2]));

    store.upsert_sweep(&second, &all[..3]).unwrap();
    let at = |position, point: &PointRecord| PointRecord { position, ..point.clone() };
    let own = [at(0, &all[0]), at(1, &all[3]), at(2, &all[1])];
    store.update_sweep(&first, &own, &before).unwrap();
    let expected = [&own[..], &[at(3, &all[2])]].concat();
    assert_eq!(store.points("rope_variants").unwrap(), expected);
    assert_eq!(store.sweep("rope_variants").unwrap().unwrap().spec, second.spec);
    let rows = dump(&store);
    store.rebuild().unwrap();
    assert_eq!(dump(&store), rows);
}

#[test]
fn every_view_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    store.set_status(&RunId("b00000000000".into()), Status::Failed, Some("exit code 1")).unwrap();
    for (name, kind, _) in Store::schema().into_iter().filter(|(_, kind, _)| *kind == "view") {
        let table = sql::answer(&store, &format!("SELECT * FROM {name}")).unwrap();
        assert!(!table.rows.is_empty(), "{kind} {name} is empty");
    }
    let ask = |query: &str| sql::answer(&store, query).unwrap().render(Format::Csv);
    assert_eq!(
        ask("SELECT sweep, label, run_id, status, last_loss FROM v_runs ORDER BY run_id"),
        "sweep,label,run_id,status,last_loss
rope_variants,rope=plain,a00000000000,finished,2.5
rope_variants,rope=plain,a10000000000,finished,3.5
rope_variants,rope=yarn,a20000000000,finished,1.5
rope_variants,rope=yarn,a30000000000,running,2
,,b00000000000,failed,
"
    );
    assert_eq!(
        ask("SELECT label, context_length, seeds, mean_nll, round(perplexity, 3) AS perplexity,
                    round(worst_perplexity, 3) AS worst FROM v_comparison"),
        "label,context_length,seeds,mean_nll,perplexity,worst
rope=plain,64,2,2.5,12.182,20.086
rope=plain,128,2,3,20.086,33.115
rope=yarn,64,1,1,2.718,2.718
rope=yarn,128,1,1.5,4.482,4.482
"
    );
    // A seed that came to no number leaves no mean of the numbers that others came to.
    let raw = rusqlite::Connection::open(Store::path(dir.path())).unwrap();
    let changed = raw.execute(
        "UPDATE perplexity SET nll = NULL, perplexity = NULL
         WHERE context_length = 64 AND run = (SELECT id FROM runs WHERE run_id = 'a10000000000')",
        [],
    );
    assert_eq!(changed.unwrap(), 1);
    assert_eq!(
        ask(
            "SELECT context_length AS n, seeds, mean_nll, perplexity, round(best_perplexity, 3) AS best, worst_perplexity AS worst
             FROM v_comparison WHERE label = 'rope=plain' AND context_length = 64"
        ),
        "n,seeds,mean_nll,perplexity,best,worst\n64,2,,,7.389,\n"
    );
    assert_eq!(
        ask(
            "SELECT run_id, step, value FROM v_last_metrics WHERE key = 'loss' ORDER BY run_id LIMIT 2"
        ),
        "run_id,step,value\na00000000000,2,2.5\na10000000000,2,3.5\n"
    );
    assert_eq!(ask("SELECT count(*) AS n FROM v_metrics WHERE key = 'loss'"), "n\n8\n");
    assert_eq!(ask("SELECT count(*) AS n FROM v_perplexity"), "n\n8\n");
    assert_eq!(
        ask("SELECT run_id, value, number FROM v_params WHERE key = 'train.seed' AND number > 1"),
        "run_id,value,number\nb00000000000,7,7\n"
    );
}

#[test]
fn only_a_store_of_this_version_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = Store::path(dir.path());
    let shown = path.display();
    let missing = error(Store::open_read_only(dir.path()));
    assert!(
        missing.starts_with(&format!("{shown}: expected a database of runs, found none\n  help: `fathom sweep run FILE` makes one")),
        "{missing}"
    );
    assert!(!path.exists());

    drop(Store::open(dir.path()).unwrap());
    let set = |pragma: &str, value: i64| {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.pragma_update(None, pragma, value).unwrap();
    };
    set("user_version", 99);
    for opened in [Store::open(dir.path()), Store::open_read_only(dir.path())] {
        let message = error(opened);
        assert!(
            message.starts_with(&format!(
                "{shown}: expected a store of version 5 or less, found version 99\n  help: "
            )),
            "{message}"
        );
    }
    set("user_version", 3);
    set("application_id", 5);
    for opened in [Store::open(dir.path()), Store::open_read_only(dir.path())] {
        let message = error(opened);
        assert!(
            message.starts_with(&format!(
                "{shown}: expected a database of fathom, found another program's"
            )),
            "{message}"
        );
    }
    std::fs::write(
        &path,
        "not a database, but long enough to be looked at as if it were one".repeat(20),
    )
    .unwrap();
    for opened in [Store::open(dir.path()), Store::open_read_only(dir.path())] {
        assert_eq!(
            error(opened),
            format!(
                "{shown}: expected a database of fathom, found a file that is no database\n  help: `fathom db rebuild` keeps it aside and makes the database anew from the folders of runs"
            )
        );
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let message = error(Store::open(&file));
    assert!(message.contains("expected a folder for results"), "{message}");
    // What was never finished: an empty file, as a kill before the first commit leaves it.
    std::fs::write(&path, "").unwrap();
    let message = error(Store::open_read_only(dir.path()));
    assert!(
        message.contains("expected a store of version 5, found version 0, which is empty"),
        "{message}"
    );
    Store::open(dir.path()).unwrap();
}

#[test]
fn processes_that_open_at_once_agree() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let open = || {
            let mut store = Store::open(dir.path()).unwrap();
            let name = format!("{:?}", std::thread::current().id())
                .replace(|c: char| !c.is_ascii_digit(), "");
            plan(&mut store, &format!("a{name}b"), &config(0));
        };
        for _ in 0..6 {
            scope.spawn(open);
        }
    });
    assert_eq!(Store::open_read_only(dir.path()).unwrap().runs().unwrap().len(), 6);
}

#[test]
fn a_reader_sees_what_is_committed_while_another_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Store::open(dir.path()).unwrap();
    let reader = Store::open_read_only(dir.path()).unwrap();
    let (id, paths) = plan(&mut writer, "a1", &config(0));
    std::fs::write(paths.events(), lines(&[started(1, 0), step(1, 3.0)])).unwrap();
    assert_eq!(reader.status(&id).unwrap(), Some(Status::Planned));
    writer.ingest_run(&id).unwrap();
    assert_eq!(reader.status(&id).unwrap(), Some(Status::Running));
}

#[test]
fn sql_only_reads() {
    let dir = tempfile::tempdir().unwrap();
    drop(example(dir.path()));
    let store = Store::open_read_only(dir.path()).unwrap();
    let refused = |query: &str| error(sql::answer(&store, query));
    for query in
        ["DELETE FROM runs", "DROP VIEW v_runs", "CREATE TABLE t (x)", "UPDATE runs SET step = 0"]
    {
        assert!(
            refused(query).starts_with(
                "query: expected one that only reads, found one that writes\n  help: "
            )
        );
    }
    // Even behind the guard the file is out of reach.
    sql::answer(&store, "PRAGMA query_only = false").unwrap();
    let message = store.connection().execute("DELETE FROM runs", []).unwrap_err().to_string();
    assert_eq!(message, "attempt to write a readonly database");
    assert_eq!(
        refused("SELECT run_id FORM runs"),
        "query, character 20: near \"runs\": syntax error"
    );
    assert_eq!(
        refused("SELECT * FROM v_run"),
        "query: no such table: v_run\n  help: did you mean `v_runs`?"
    );
    assert_eq!(refused("SELECT 1; SELECT 2"), "query: expected one, found several");
    assert_eq!(refused(" -- nothing"), "query: expected SQL, found nothing");
    let kinds = "SELECT 1 AS n, 1.5 AS x, NULL AS missing, 'a,b' AS text, x'0aff' AS bytes";
    assert_eq!(
        sql::answer(&store, kinds).unwrap().render(Format::Csv),
        "n,x,missing,text,bytes\n1,1.5,,\"a,b\",x'0aff'\n"
    );
}

#[test]
fn runs_are_found_by_how_their_ids_begin() {
    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    assert_eq!(store.find_run("a2").unwrap().run_id.0, "a20000000000");
    assert_eq!(
        error(store.find_run("a")),
        "run `a`: expected how one run's id begins, found 4: `a00000000000`, `a10000000000`, `a20000000000`, `a30000000000`"
    );
    assert_eq!(
        error(store.find_run("a22")),
        "run `a22`: expected the id of a run, or how one begins, found none of the 5 that does\n  help: did you mean `a20000000000`?"
    );
    let far = error(store.find_run("zzzzzzzz"));
    assert!(far.ends_with("help: `fathom runs ls` lists them"), "{far}");
    let message = error(runs::ls(&store, Some("rope_variant"), None));
    assert!(
        message.ends_with("found `rope_variant`\n  help: did you mean `rope_variants`?"),
        "{message}"
    );
}

#[test]
fn runs_ls_prints_a_line_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    let running = RunPaths::in_results(dir.path(), &RunId("a30000000000".into()));
    let held = fathom::run::lock(&running).unwrap().expect("nobody else has it");
    let all = runs::ls(&store, None, None).unwrap();
    insta::assert_snapshot!(runs::short(&all).render(Format::Table), @r#"
    run           sweep          label       seed  status    step  tokens  time   loss  peak memory  device
    ------------  -------------  ----------  ----  --------  ----  ------  -----  ----  -----------  -----------
    a00000000000  rope_variants  rope=plain     0  finished     2  128     9.0 s   2.5  102.0 MiB    a processor
    a10000000000  rope_variants  rope=plain     1  finished     2  128     9.0 s   3.5  102.0 MiB    a processor
    a20000000000  rope_variants  rope=yarn      0  finished     2  128     9.0 s   1.5  102.0 MiB    a processor
    a30000000000  rope_variants  rope=yarn      1  running      2  128     8.0 s     2  102.0 MiB    a processor
    b00000000000  -              -              7  failed       0  0       1.0 s     -  -            a processor
    "#);
    let of = |status| {
        let rows = runs::ls(&store, Some("rope_variants"), Some(status)).unwrap().rows;
        rows.into_iter().map(|row| row[3].clone()).collect::<Vec<_>>()
    };
    let a3 = Cell::from("a30000000000");
    assert_eq!((of(Status::Running), of(Status::Lost)), (vec![a3.clone()], vec![]));
    // Its log says that it runs, and nobody has it any more.
    drop(held);
    assert_eq!((of(Status::Running), of(Status::Lost)), (vec![], vec![a3]));
}

#[test]
fn runs_show_tells_all_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    let text = runs::show(&store, "a2", false).unwrap();
    let text = text.replace(&dir.path().display().to_string(), "results");
    // The sizes of files that this test does not fix.
    let (text, files) = text.split_once("\nfiles\n").unwrap();
    insta::assert_snapshot!(text, @r#"
    run a20000000000: finished
      sweep        rope_variants, point 2: rope=yarn, seed 0
      created      2026-01-01 00:00:00 UTC
      done         2 steps, 128 tokens, 9.0 s
      last loss    1.5 (perplexity 4.481689)
      peak memory  102.0 MiB allocated, 200.0 MiB reserved

    settings that are not defaults (--all shows the others)
      key                              value
      -------------------------------  -----------
      data.corpus                      texts
      data.splits.validation           ["*7.txt"]
      model.path                       models/tiny
      model.rope_parameters.factor     2
      model.rope_parameters.rope_type  yarn
      train.learning_rate              1e-5
      train.sequence_length            64
      train.total_tokens               4000

    last metrics
      key                step      value
      -----------------  ----  ---------
      grad_norm             2        1.5
      learning_rate         2       1e-5
      loss                  2        1.5
      peak_allocated        2  106954752
      peak_reserved         2  209715200
      step_seconds          2        0.5
      tokens                2        128
      tokens_per_second     2        128

    perplexity
      split       method  context  windows  tokens  nll   low  high  perplexity
      ----------  ------  -------  -------  ------  ---  ----  ----  ----------
      validation  prefix       64        2     126    1  0.75  1.25    2.718282
      validation  prefix      128        2     254  1.5  1.25  1.75    4.481689

    facts
      name                   value
      ---------------------  ---------
      data.documents         12
      model.rope_parameters  rope=yarn

    warnings
      time                     message
      -----------------------  -----------------------
      2026-01-01 00:00:04 UTC  the last block is short

    attempts
      attempt  started                  from step  host  device  name         code
      -------  -----------------------  ---------  ----  ------  -----------  --------------
            1  2026-01-01 00:00:00 UTC          0  here  cpu     a processor  0.1.0 01234567
    "#);
    for line in
        ["results/runs/a20000000000/events.jsonl", "step-00000002     2  2.0 KiB, removed since"]
    {
        assert!(files.contains(line), "{files}");
    }
    let all = runs::show(&store, "a2", true).unwrap();
    assert!(all.contains("  train.max_grad_norm "), "{all}");
}

#[test]
fn runs_diff_shows_only_what_differs_but_every_result() {
    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    insta::assert_snapshot!(runs::diff(&store, "a0", "a3").unwrap().render(Format::Table), @r#"
    what     key                                   a00000000000  a30000000000
    -------  ------------------------------------  ------------  ------------
    run      status                                finished      running
    setting  model.rope_parameters                 null          -
    setting  model.rope_parameters.factor          -             2
    setting  model.rope_parameters.rope_type       -             yarn
    setting  train.seed                            0             1
    fact     model.rope_parameters                 rope=plain    rope=yarn
    result   grad_norm                             1.5           1.5
    result   learning_rate                         1e-5          1e-5
    result   loss                                  2.5           2
    result   peak_allocated                        106954752     106954752
    result   peak_reserved                         209715200     209715200
    result   perplexity.validation.prefix      64  7.389056      4.481689
    result   perplexity.validation.prefix     128  12.18249      7.389056
    result   seconds                               9             8
    result   step_seconds                          0.5           0.5
    result   steps                                 2             2
    result   tokens                                128           128
    result   tokens_per_second                     128           128
    "#);
}

/// Configurations have gained keys since; what was measured is still what they mean.
#[test]
fn published_runs_keep_their_hashes() -> Result<()> {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results/published/fathom.db");
    // Not to leave anything beside it.
    let copy = tempfile::NamedTempFile::new()?;
    std::fs::copy(published, copy.path())?;
    let store = rusqlite::Connection::open(copy.path())?;
    let mut rows = store.prepare("SELECT config, digests, run_hash, group_hash FROM runs")?;
    let mut rows = rows.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let config: serde_json::Value = serde_json::from_str(&row.get::<_, String>(0)?)?;
        let config = RunConfig::from_written(&Written::from_json("published", &config))?;
        let digests: Digests = serde_json::from_str(&row.get::<_, String>(1)?)?;
        let expected = RunIdentity { run_hash: row.get(2)?, group_hash: row.get(3)? };
        assert_eq!(config.identity(&digests), expected);
        count += 1;
    }
    assert!(count > 0);
    Ok(())
}
