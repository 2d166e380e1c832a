//! The store as a file that has to last: versions, summaries, attempts, and every way in which a database is damaged, removed,
//! full or out of reach. Each has a message with the way out, and nothing that a log has is lost.

#[path = "support/rights.rs"]
mod rights;

use anyhow::Result;
use fathom::store::{Journal, PointRecord, RunRecord, SavedIdentity, Status, Store, SweepRecord};
use fathom_spec::config::written::Written;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{RunId, RunPaths};
use proptest::prelude::*;
use rights::without_rights;
use rusqlite::Connection;
use rusqlite::types::Value as SqlValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const CREATED_AT: f64 = 1_767_225_600.0; // 2026-01-01

fn config() -> RunConfig {
    let text = "model: {path: models/tiny}
data: {corpus: texts}
train: {sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}
";
    RunConfig::from_written(&Written::parse("run.yaml", text).unwrap()).unwrap()
}

/// Makes a run known whose id begins with `name`, and its folder with `events` as its log.
fn plan(store: &mut Store, name: &str, events: &[Value]) -> (RunId, RunPaths) {
    let run_hash = format!("{name:0<64}");
    let run_id = RunId::from_hash(&run_hash);
    let paths = RunPaths::in_results(store.results(), &run_id);
    fs::create_dir_all(&paths.folder).unwrap();
    fs::write(paths.config(), config().to_yaml()).unwrap();
    let identity = SavedIdentity {
        identity: RunIdentity { run_hash, group_hash: "9".repeat(64) },
        digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
        model_files: Vec::new(),
        created_at: CREATED_AT,
    };
    identity.write(&paths).unwrap();
    fs::write(paths.events(), log(events)).unwrap();
    store.upsert_run(&RunRecord { identity: &identity, config: &config() }).unwrap();
    (run_id, paths)
}

/// As [`plan`], and its log is read.
fn record(store: &mut Store, name: &str, events: &[Value]) -> (RunId, RunPaths) {
    let (run_id, paths) = plan(store, name, events);
    store.ingest_run(&run_id).unwrap();
    (run_id, paths)
}

/// The text of a log, as any program may write it: event n at n seconds.
fn log(events: &[Value]) -> String {
    let line = |(seq, event): (usize, &Value)| {
        let mut line = json!({
            "v": 1, "seq": seq, "time": CREATED_AT + seq as f64, "elapsed_seconds": seq as f64,
        });
        line.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        line.to_string() + "\n"
    };
    events.iter().enumerate().map(line).collect()
}

fn started(attempt: u64, resumed_from_step: u64) -> Value {
    json!({
        "kind": "started", "attempt": attempt, "resumed_from_step": resumed_from_step, "pid": 100 + attempt,
        "code_version": "0.1.0", "git_commit": null, "git_dirty": attempt == 2, "host": "here", "device": "cpu",
        "device_name": "a processor", "driver": null, "libtorch": "2.11.0", "threads": 2, "seed": 0, "environment": {},
    })
}

fn step(step: u64, loss: f64) -> Value {
    let loss = match loss {
        x if x.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        x => json!(x),
    };
    json!({
        "kind": "step", "step": step, "tokens": step * 64, "loss": loss, "learning_rate": 1e-5, "grad_norm": 1.5,
        "step_seconds": 0.5, "tokens_per_second": 128.0, "peak_allocated": step << 20, "peak_reserved": 200 << 20,
    })
}

fn finished(step: u64) -> Value {
    json!({"kind": "finished", "step": step, "tokens": step * 64, "seconds": 9.0})
}

fn failed(error: &str) -> Value {
    json!({"kind": "failed", "error": error})
}

/// Two runs, one of them with two attempts, and a sweep of both.
fn example(results: &Path) -> Store {
    let mut store = Store::open(results).unwrap();
    let steps = |from: u64, to: u64| (from..=to).map(|k| step(k, 10.0 - k as f64));
    let mut events = vec![started(1, 0)];
    events.extend(steps(1, 150));
    events.extend([failed("power"), started(2, 100)]);
    events.extend(steps(101, 200));
    events.push(finished(200));
    let (a, _) = record(&mut store, "a1", &events);
    let mut events = vec![started(1, 0)];
    events.extend(steps(1, 120));
    let (b, _) = record(&mut store, "b1", &events);
    let point = |position: u64, run_id: &RunId| PointRecord {
        position,
        label: format!("p{position}"),
        seed: 0,
        settings: json!({}),
        run_id: run_id.clone(),
    };
    let sweep = SweepRecord {
        name: "pair".into(),
        file: "pair.yaml".into(),
        question: None,
        spec: json!({}),
        planned_at: CREATED_AT,
    };
    store.upsert_sweep(&sweep, &[point(0, &a), point(1, &b)]).unwrap();
    store
}

/// All that the store has, without the numbers that only join tables.
fn dump(store: &Store) -> Vec<String> {
    let mut all = Vec::new();
    for query in [
        "SELECT 'runs', * FROM runs",
        "SELECT 'metrics', * FROM v_metrics",
        "SELECT 'summaries', * FROM v_metric_summaries",
        "SELECT 'attempts', * FROM v_attempts",
        "SELECT 'params', * FROM v_params",
        "SELECT 'events', r.run_id, e.* FROM events_meta e JOIN runs r ON r.id = e.run",
        "SELECT 'verdicts', * FROM v_verdicts",
        "SELECT 'sweeps', * FROM sweeps",
        "SELECT 'points', s.name, p.* FROM points p JOIN sweeps s ON s.id = p.sweep_id",
    ] {
        let mut statement = store.connection().prepare(query).unwrap();
        let names: Vec<String> = statement.column_names().map(ToString::to_string).collect();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells = names
                .iter()
                .enumerate()
                .filter(|(_, name)| !["id", "run", "sweep_id"].contains(&name.as_str()))
                .map(|(i, name)| format!("{name}={:?}", row.get::<_, SqlValue>(i).unwrap()));
            all.push(cells.collect::<Vec<_>>().join(" "));
        }
    }
    all.sort();
    all
}

/// What one has and the other has not is said, and not all the rest.
#[track_caller]
fn assert_same(found: &[String], expected: &[String], what: &str) {
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|row| !those.contains(row)).cloned().collect()
    };
    let (more, less) = (without(found, expected), without(expected, found));
    assert!(found == expected, "{what}\n  more: {more:#?}\n  less: {less:#?}");
}

/// Says of all runs at work that they were killed, so that they are not found dead later.
fn kill_all(store: &mut Store) {
    for run in store.runs().unwrap() {
        if run.status == Status::Running {
            store.set_status(&run.run_id, Status::Killed, Some("signal 9")).unwrap();
        }
    }
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// Puts what a writer left in its log into the database file itself, as a clean end does.
fn close(store: Store) {
    store.connection().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

fn fathom(results: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("fathom"))
        .arg("db")
        .args(arguments)
        .arg("--results")
        .arg(results)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes).replace(&results.display().to_string(), "results")
    };
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A schema of version 1 with the rows of a store of today, as an earlier fathom wrote them.
fn as_version_1(store: Store, results: &Path) {
    close(store);
    let path = Store::path(results);
    let old = results.join("old.db");
    let connection = Connection::open(&old).unwrap();
    connection.execute_batch(include_str!("../src/harness/store/schema.sql")).unwrap();
    connection.execute("ATTACH ?1 AS today", [path.to_str().unwrap()]).unwrap();
    for table in ["sweeps", "points", "runs", "params", "metric_keys", "metrics", "events_meta"] {
        connection
            .execute(&format!("INSERT INTO main.{table} SELECT * FROM today.{table}"), [])
            .unwrap();
    }
    connection
        .execute_batch("DETACH today; PRAGMA user_version = 1; PRAGMA application_id = 0x66617468;")
        .unwrap();
    drop(connection);
    for beside in ["fathom.db-wal", "fathom.db-shm"] {
        let _ = fs::remove_file(results.join(beside));
    }
    fs::rename(old, path).unwrap();
}

#[test]
fn an_older_store_is_read_as_it_is_and_carried_forward_with_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    let expected = dump(&store);
    as_version_1(store, dir.path());
    let bytes = fs::read(Store::path(dir.path())).unwrap();

    // How far an attempt got that only said that it failed, an earlier fathom did not keep.
    let carried: Vec<String> = expected
        .iter()
        .map(|row| match row.contains("status=Text(\"failed\")") {
            true => row.replace("step=Integer(150)", "step=Null"),
            false => row.clone(),
        })
        .collect();
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_same(&dump(&reader), &carried, "a reader of an older store has all of today's tables");
    assert!(fs::read(Store::path(dir.path())).unwrap() == bytes, "and does not change it");
    drop(reader);
    let backup = dir.path().join("fathom.db.v1.backup");
    assert!(!backup.exists());

    let mut store = Store::open(dir.path()).unwrap();
    assert_same(&dump(&store), &carried, "carried forward");
    store.rebuild().unwrap();
    assert_same(&dump(&store), &expected, "made anew");
    let version = |path: &Path| -> i64 {
        let connection = Connection::open(path).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    assert_eq!((version(&backup), version(&Store::path(dir.path()))), (1, 5));
    let kept = Connection::open(&backup).unwrap();
    let rows: i64 = kept.query_row("SELECT count(*) FROM metrics", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 8 * (200 + 120));
    assert_eq!(
        fs::read_dir(dir.path())
            .unwrap()
            .filter(|f| { f.as_ref().unwrap().file_name().to_string_lossy().contains("part") })
            .count(),
        0
    );
}

#[test]
fn a_migration_without_room_for_its_backup_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    as_version_1(example(dir.path()), dir.path());
    let bytes = fs::read(Store::path(dir.path())).unwrap();
    // Something is in the way of the copy.
    fs::create_dir_all(dir.path().join("fathom.db.v1.backup/in/the/way")).unwrap();
    let message = error(Store::open(dir.path()));
    assert!(
        message.contains("fathom.db.v1.backup: expected to keep a copy of the store before it is brought from version 1 to 5"),
        "{message}"
    );
    assert!(fs::read(Store::path(dir.path())).unwrap() == bytes);
}

#[test]
fn attempts_are_rows_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let mut events = vec![started(1, 0), step(1, 3.0), step(2, 2.0)];
    let (id, paths) = record(&mut store, "a1", &events);
    store.set_status(&id, Status::Killed, Some("signal 9")).unwrap();
    for next in [started(2, 2), step(3, 1.5), started(3, 2), step(3, 1.0), finished(3)] {
        events.push(next);
        fs::write(paths.events(), log(&events)).unwrap();
        store.ingest_run(&id).unwrap();
    }
    let told = |store: &Store| -> Vec<_> {
        let attempts = store.attempts(&id).unwrap().into_iter();
        attempts
            .map(|a| {
                (a.attempt, a.resumed_from_step, a.status, a.status_detail, a.ended_at, a.step)
            })
            .collect()
    };
    let expected = [
        (1, 0, Status::Killed, Some("signal 9".to_string()), None, Some(2)),
        (2, 2, Status::Lost, None, None, Some(3)),
        (3, 2, Status::Finished, None, Some(CREATED_AT + 7.0), Some(3)),
    ];
    assert_eq!(told(&store), expected);
    let second = &store.attempts(&id).unwrap()[1];
    assert_eq!((second.pid, second.git_dirty), (Some(102), Some(true)));
    assert_eq!(second.started_at, CREATED_AT + 3.0);
    // The verdict is in no log, and outlives a rebuild all the same.
    store.rebuild().unwrap();
    assert_eq!(told(&store), expected);
    // A verdict on what ended by its own word changes the run alone.
    store.set_status(&id, Status::Failed, Some("the log is damaged")).unwrap();
    assert_eq!(told(&store), expected);
}

#[test]
fn a_clock_that_goes_back_changes_no_duration() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let (id, paths) = plan(&mut store, "a1", &[]);
    let text = log(&[started(1, 0), step(1, 3.0), finished(1)]);
    // An hour back, in the middle of the run.
    let back =
        text.replace(&format!("{:?}", CREATED_AT + 2.0), &format!("{:?}", CREATED_AT - 3600.0));
    assert_ne!(back, text);
    fs::write(paths.events(), back).unwrap();
    store.ingest_run(&id).unwrap();
    let run = store.known_run(&id).unwrap();
    assert_eq!((run.status, run.seconds), (Status::Finished, 2.0));
    let attempt = &store.attempts(&id).unwrap()[0];
    assert_eq!((attempt.seconds, attempt.ended_at), (2.0, Some(CREATED_AT - 3600.0)));
}

fn any_loss() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -1e3..1e3,
        2 => Just(0.5),
        2 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => Just(f64::NEG_INFINITY),
    ]
}

fn any_event() -> impl Strategy<Value = Value> {
    prop_oneof![
        12 => (1u64..200, any_loss()).prop_map(|(k, loss)| step(k, loss)),
        2 => (1u64..5, 0u64..60).prop_map(|(attempt, from)| started(attempt, from)),
        1 => (1u64..9).prop_map(|k| json!({"kind": "eval", "step": k, "split": "held_out", "loss": 0.25, "tokens": 9})),
        1 => Just(failed("power")),
        1 => (1u64..9).prop_map(finished),
    ]
}

fn any_verdict() -> impl Strategy<Value = (Status, Option<&'static str>)> {
    prop_oneof![
        Just((Status::Killed, Some("signal 9"))),
        Just((Status::Lost, None)),
        Just((Status::Failed, Some("the log is damaged"))),
    ]
}

/// A scalar in short, as the store has it.
struct MetricSummary {
    last: f64,
    last_step: u64,
    /// With the first step that has it.
    min: Option<(f64, u64)>,
    max: Option<(f64, u64)>,
    count: u64,
    nan_count: u64,
}

/// Those of a store's only run, by key.
fn metric_summaries(store: &Store) -> BTreeMap<String, MetricSummary> {
    let sql = "SELECT * FROM v_metric_summaries";
    let mut statement = store.connection().prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let extreme = |value: &str, step: &str| -> rusqlite::Result<Option<(f64, u64)>> {
            Ok(row.get::<_, Option<f64>>(value)?.zip(row.get(step)?))
        };
        let summary = MetricSummary {
            last: row.get::<_, Option<f64>>("last")?.unwrap_or(f64::NAN),
            last_step: row.get("last_step")?,
            min: extreme("min", "min_step")?,
            max: extreme("max", "max_step")?,
            count: row.get("count")?,
            nan_count: row.get("nan_count")?,
        };
        Ok((row.get("key")?, summary))
    });
    rows.unwrap().map(|row| row.unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever was written, overwritten and cut off: a summary is what the rows say, read in pieces or at once.
    #[test]
    fn a_summary_is_what_the_rows_say(
        rising in 0u64..150,
        events in proptest::collection::vec(any_event(), 1..60),
        cut in 0.0..1.0,
        verdicts in proptest::collection::vec(any_verdict(), 0..3),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        // A stretch of steps as a run has them, longer than one statement writes, then anything.
        let all: Vec<Value> = (1..=rising).map(|k| step(k, 1.0 / k as f64)).chain(events).collect();
        let (id, paths) = plan(&mut store, "a1", &[]);
        let text = log(&all);
        for end in [(cut * text.len() as f64) as usize, text.len()] {
            fs::write(paths.events(), &text.as_bytes()[..end]).unwrap();
            store.ingest_run(&id).unwrap();
            for (status, detail) in &verdicts {
                store.set_status(&id, *status, *detail).unwrap();
            }
            let summaries = metric_summaries(&store);
            let keys: Vec<String> = summaries.keys().cloned().collect();
            let mut known = store.connection().prepare("SELECT DISTINCT key FROM v_metrics ORDER BY key").unwrap();
            let known: Vec<String> = known.query_map([], |row| row.get(0)).unwrap().map(|k| k.unwrap()).collect();
            prop_assert_eq!(keys, known);
            for (key, summary) in summaries {
                let rows = store.metric(&id, &key).unwrap();
                let numbers = || rows.iter().filter(|(_, value)| !value.is_nan());
                let first = |better: fn(f64, f64) -> bool| {
                    numbers().fold(None, |best: Option<(f64, u64)>, &(step, value)| match best {
                        Some((least, _)) if !better(value, least) => best,
                        _ => Some((value, step)),
                    })
                };
                let (last_step, last) = *rows.last().unwrap();
                prop_assert_eq!((summary.last_step, summary.last.to_bits()), (last_step, last.to_bits()), "{}", &key);
                prop_assert_eq!(summary.min, first(|a, b| a < b), "{}", &key);
                prop_assert_eq!(summary.max, first(|a, b| a > b), "{}", &key);
                prop_assert_eq!(summary.count as usize, rows.len());
                prop_assert_eq!(summary.nan_count as usize, rows.len() - numbers().count());
            }
        }
        let live = dump(&store);
        let rebuilt = store.rebuild().unwrap();
        prop_assert_eq!(rebuilt.events as usize, all.len());
        assert_same(&dump(&store), &live, "rebuilding changed something");
        prop_assert_eq!(store.ingest_run(&id).unwrap().events, 0);
        let findings = store.check().unwrap();
        prop_assert!(findings.is_sound(), "{:?}", findings);
        drop(store);
        fs::remove_file(Store::path(dir.path())).unwrap();
        prop_assert_eq!(Store::rebuild_from_folders(dir.path()).unwrap().problems, []);
        let anew = Store::open(dir.path()).unwrap();
        assert_same(&dump(&anew), &live, "the folder does not have all of it");
    }
}

#[test]
fn on_a_shared_file_system_there_is_no_write_ahead_log() {
    for (f_type, name) in
        [(0x6969, "NFS"), (0xff53_4d42, "SMB"), (-11_317_950, "SMB"), (0x0bd0_0bd0, "Lustre")]
    {
        assert_eq!(Journal::of_type(f_type), Journal::Rollback(name));
    }
    for local in [0xef53, 0x5846_5342, 0x0102_1994, 0x794c_7630, 0x9123_683e] {
        assert_eq!(Journal::of_type(local), Journal::WriteAhead);
    }
    assert_eq!(
        Journal::Rollback("NFS").to_string(),
        "rollback journal: NFS may be shared between machines, and a write-ahead log needs memory that they share"
    );

    let dir = tempfile::tempdir().unwrap();
    let store = example(dir.path());
    let expected = dump(&store);
    drop(store);
    let mode = |store: &Store| -> String {
        store.connection().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap()
    };
    // One that was made on a disk and moved to a share.
    let mut writer = Store::open_with(dir.path(), Journal::Rollback("NFS")).unwrap();
    assert_eq!(mode(&writer), "delete");
    assert!(!dir.path().join("fathom.db-wal").exists());
    let mut other = Store::open_with(dir.path(), Journal::Rollback("NFS")).unwrap();
    assert_same(&dump(&other), &expected, "");
    record(&mut writer, "c1", &[started(1, 0), step(1, 3.0)]);
    record(&mut other, "d1", &[started(1, 0), step(1, 3.0)]);
    assert_eq!(Store::open_read_only(dir.path()).unwrap().runs().unwrap().len(), 4);
    assert!(!dir.path().join("fathom.db-wal").exists());
    drop((writer, other));
    assert_eq!(mode(&Store::open(dir.path()).unwrap()), "wal", "and back");
}

/// As a kill in the midst of a commit leaves it: some pages are written, and the journal knows what they were.
#[test]
fn a_commit_that_was_cut_off_is_undone_before_anybody_reads() {
    let (dir, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = Store::open_with(dir.path(), Journal::Rollback("NFS")).unwrap();
    let events: Vec<Value> = (1..400).map(|n| step(n, 3.0)).collect();
    record(&mut store, "a1", &[&[started(1, 0)], &events[..]].concat());
    let expected = dump(&store);
    let connection = store.connection();
    connection.pragma_update(None, "cache_size", 1).unwrap();
    connection
        .execute_batch("BEGIN IMMEDIATE; UPDATE metrics SET value = 7.0; DELETE FROM params")
        .unwrap();
    for file in ["fathom.db", "fathom.db-journal"] {
        std::fs::copy(dir.path().join(file), cut.path().join(file)).unwrap();
    }
    assert_ne!(
        std::fs::read(cut.path().join("fathom.db")).unwrap(),
        {
            connection.execute_batch("ROLLBACK").unwrap();
            std::fs::read(dir.path().join("fathom.db")).unwrap()
        },
        "some of the commit was written"
    );
    let reader = Store::open_read_only(cut.path()).unwrap();
    assert_same(&dump(&reader), &expected, "half of a commit is read");
    assert!(!cut.path().join("fathom.db-journal").exists());
}

#[test]
fn a_check_tells_what_is_missing_torn_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let (code, out, _) = fathom(dir.path(), &["check"]);
    assert!(out.ends_with("2 runs, 2 held against their logs: nothing is wrong\n"), "{out}");
    assert_eq!(code, Some(0));

    // What is no damage: a torn last line, events that are still to be read, a folder that is gone.
    let (torn, paths) = record(&mut store, "c1", &[started(1, 0), step(1, 3.0)]);
    let whole = fs::read_to_string(paths.events()).unwrap();
    fs::write(paths.events(), whole + "{\"v\":1,\"seq\":2,\"ti").unwrap();
    let (_, held) = plan(&mut store, "c2", &[started(1, 0)]);
    // Who has it takes them in.
    let _held = fathom::run::lock(&held).unwrap().unwrap();
    let (_, gone) = record(&mut store, "c3", &[started(1, 0)]);
    fs::remove_dir_all(gone.folder).unwrap();
    // A run that has not begun never had a folder.
    let (_, planned) = plan(&mut store, "c4", &[]);
    fs::remove_dir_all(planned.folder).unwrap();
    let (code, out, _) = fathom(dir.path(), &["check"]);
    for note in [
        "note: run c10000000000: its log ends within a line, after 18 bytes of it\n  help: nothing that was acknowledged is missing",
        "note: run c20000000000: 1 events of its log are not in the store yet\n  help: they are read when the run goes on",
        "note: 1 runs have no folder any more, c30000000000 first: the store has all that is left of them",
    ] {
        assert!(out.contains(note), "{note}\n{out}");
    }
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(store.metric(&torn, "loss").unwrap(), [(1, 3.0)]);

    // What is: rows that are not there, a summary that lies, a folder that is not known, a log that was cut, a bad line.
    let connection = Connection::open(Store::path(dir.path())).unwrap();
    connection
        .execute_batch(
            "DELETE FROM metrics WHERE run = (SELECT id FROM runs WHERE run_id LIKE 'a1%') AND step = 7;
             UPDATE metric_summaries SET max = 99 WHERE run = (SELECT id FROM runs WHERE run_id LIKE 'c1%');",
        )
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, foreign) = plan(&mut Store::open(elsewhere.path()).unwrap(), "d1", &[started(1, 0)]);
    fs::rename(&foreign.folder, dir.path().join("runs/d10000000000")).unwrap();
    let (_, cut) = record(&mut store, "e1", &[started(1, 0), step(1, 3.0)]);
    fs::write(cut.events(), log(&[started(1, 0)])).unwrap();
    let (_, bad) = record(&mut store, "f1", &[started(1, 0)]);
    fs::write(bad.events(), log(&[started(1, 0)]) + "nonsense\n").unwrap();
    let (code, out, _) = fathom(dir.path(), &["check"]);
    for problem in [
        "problem: run a10000000000: its log makes 1600 rows of metrics, found 1592\n  help: `fathom db rebuild` makes the rows anew",
        "problem: run c10000000000: 8 summaries of scalars differ from their rows",
        "problem: runs/d10000000000: its folder is there, its rows are not\n  help: `fathom db rebuild`",
        "problem: run e10000000000: its log has ",
        "expected an event, found `nonsense`",
        "\n  help: put right what it names, or remove the run's folder to begin it anew",
    ] {
        assert!(out.contains(problem), "{problem}\n{out}");
    }
    assert!(out.ends_with(": something is wrong\n"), "{out}");
    assert_eq!(code, Some(8));

    fs::write(bad.events(), log(&[started(1, 0)])).unwrap();
    let (code, out, err) = fathom(dir.path(), &["rebuild"]);
    assert!(out.starts_with("results/fathom.db: 7 runs, "), "{out}{err}");
    assert!(err.contains("note: 1 runs have no folder any more, c30000000000 first"), "{err}");
    assert_eq!(code, Some(0));
    assert_eq!(fathom(dir.path(), &["check"]).0, Some(0));
}

#[test]
fn a_damaged_database_is_kept_aside_and_made_anew() {
    type Damage = fn(&Path);
    let garbage: Damage = |path| {
        let mut bytes = fs::read(path).unwrap();
        let (from, to) = (bytes.len() / 4, bytes.len() / 2);
        bytes[from..to].fill(0xa5);
        fs::write(path, bytes).unwrap();
    };
    let truncated: Damage = |path| {
        let length = fs::metadata(path).unwrap().len();
        fs::File::options().write(true).open(path).unwrap().set_len(length / 2 + 100).unwrap();
    };
    let no_database: Damage = |path| fs::write(path, "lost\n".repeat(1000)).unwrap();
    for (name, damage, salvaged) in [
        ("garbage", garbage, true),
        ("truncated", truncated, true),
        ("no database", no_database, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = example(dir.path());
        // So many rows that most of the file is theirs.
        let steps = (1..=3000).map(|k| step(k, 1.0));
        record(&mut store, "c1", &std::iter::once(started(1, 0)).chain(steps).collect::<Vec<_>>());
        kill_all(&mut store);
        let expected = dump(&store);
        close(store);
        let path = Store::path(dir.path());
        damage(&path);
        let broken = fs::read(&path).unwrap();

        let (code, out, err) = fathom(dir.path(), &["check"]);
        assert_ne!(code, Some(0), "{name}: {out}{err}");
        let told = out + &err;
        assert!(told.contains("`fathom db rebuild` keeps"), "{name}: {told}");
        assert!(
            told.contains("aside and makes the database anew from the folders of runs"),
            "{name}: {told}"
        );

        let (code, out, err) = fathom(dir.path(), &["rebuild"]);
        // With 8 where something is nowhere else.
        let lost = err.contains("is only in results/fathom.db.broken");
        assert!(lost || salvaged, "{name}: {err}");
        assert_eq!(code, Some(if lost { 8 } else { 0 }), "{name}: {err}");
        assert!(out.starts_with("results/fathom.db: 3 runs, 3376 events"), "{name}: {out}");
        assert!(
            err.contains("the database was damaged and is kept as results/fathom.db.broken"),
            "{name}: {err}"
        );
        assert!(fs::read(dir.path().join("fathom.db.broken")).unwrap() == broken, "{name}");
        let store = Store::open_read_only(dir.path()).unwrap();
        // Sweeps are kept beside the runs.
        assert_same(&dump(&store), &expected, name);
        if !salvaged {
            assert!(err.contains("`fathom sweep run FILE` records a sweep again"), "{name}: {err}");
        }
        assert!(store.check().unwrap().is_sound());
    }
}

/// Overwrites the first page of a table.
fn damage_table(results: &Path, table: &str) {
    let path = Store::path(results);
    let (page, size): (i64, i64) = Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?1",
            [table],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[((page - 1) * size) as usize..(page * size) as usize].fill(0xff);
    fs::write(&path, bytes).unwrap();
}

/// Where no folder has the runs any more, a damaged page costs what was on it and nothing else.
#[test]
fn what_has_no_folder_is_taken_over_from_a_damaged_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let perplexity = json!({
        "kind": "perplexity", "step": 1, "split": "validation", "method": "prefix", "context_length": 64, "windows": 2,
        "tokens": 126, "nll": 1.5, "perplexity": 4.5, "nll_low": 1.25, "nll_high": 1.75, "window_nll": [1.0, 2.0],
    });
    let fact = json!({"kind": "fact", "name": "rope", "value": "yarn"});
    let (c, log_of_c) = record(&mut store, "c1", &[started(1, 0), step(1, 3.0), fact, perplexity]);
    kill_all(&mut store);
    let expected = dump(&store);
    let ids = |store: &Store| -> Vec<(String, i64)> {
        let mut statement = store.connection().prepare("SELECT run_id, id FROM runs").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let numbers = ids(&store);
    let measured = store.perplexity_by_step(&c).unwrap();
    assert_eq!(measured.len(), 1);
    close(store);
    for run in ["a10000000000", "b10000000000"] {
        fs::remove_dir_all(dir.path().join("runs").join(run)).unwrap();
    }
    // And of this one the log can't be read.
    fs::write(log_of_c.events(), "nonsense\n").unwrap();
    damage_table(dir.path(), "facts");

    let (code, out, err) = fathom(dir.path(), &["rebuild"]);
    for part in [
        "warning: facts of 3 runs, a10000000000 first, can't be read whole, and no folder has them: ",
        "what this names is only in results/fathom.db.broken",
        "runs/c10000000000 is not read as a whole, the store keeps what it had: ",
        "note: 2 runs have no folder any more, a10000000000 first: the store keeps what could be read of them",
    ] {
        assert!(err.contains(part), "{part}\n{out}{err}");
    }
    assert_eq!(code, Some(8), "{err}");
    let store = Store::open_read_only(dir.path()).unwrap();
    assert_same(&dump(&store), &expected, "");
    assert_eq!(ids(&store), numbers);
    assert_eq!(store.perplexity_by_step(&c).unwrap(), measured);
    fs::remove_dir_all(log_of_c.folder).unwrap();
    assert!(store.check().unwrap().is_sound());
}

#[test]
fn a_folder_of_nothing_is_not_made_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = fathom(&dir.path().join("nowhere"), &["rebuild"]);
    assert!(code == Some(1) && err.contains("found neither runs nor fathom.db in it"), "{err}");
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn every_reader_of_a_damaged_database_names_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    close(example(dir.path()));
    damage_table(dir.path(), "points");
    damage_table(dir.path(), "metrics");
    let way_out = "fathom.db is damaged: `fathom db rebuild` keeps it aside";
    let report = fathom::report::write_report(dir.path(), "pair", &dir.path().join("out"));
    let store = Store::open_read_only(dir.path()).unwrap();
    let copy = dir.path().join("copy.db");
    let queried = fathom::cli::sql::answer(&store, "SELECT * FROM metrics");
    for (name, message) in [
        ("report", error(report)),
        ("sql", error(queried.map(|table| table.rows.len()))),
        ("backup", error(store.backup(&copy))),
    ] {
        assert!(message.contains(way_out), "{name}: {message}");
    }
    assert!(!copy.exists());
}

#[test]
fn a_run_that_cannot_be_recorded_names_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let pages: i64 =
        store.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    store.connection().pragma_update(None, "max_page_count", pages).unwrap();
    let refused = (0..1000).find_map(|n| {
        let run_hash = format!("{n:0>12}{}", "0".repeat(52));
        let identity = SavedIdentity {
            identity: RunIdentity { run_hash, group_hash: "9".repeat(64) },
            digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
            model_files: Vec::new(),
            created_at: CREATED_AT,
        };
        store.upsert_run(&RunRecord { identity: &identity, config: &config() }).err()
    });
    let message = format!("{:#}", refused.expect("no more room"));
    assert!(
        message.contains("\n  help: nothing is lost, the runs' logs have it: make room"),
        "{message}"
    );
}

#[test]
fn damage_that_a_query_meets_names_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    close(example(dir.path()));
    let path = Store::path(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    // All but the first page, which has the schema's beginning and says how long the file is.
    bytes[4096..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let message = match Store::open(dir.path()) {
        Ok(store) => error(store.runs()),
        Err(error) => format!("{error:#}"),
    };
    assert!(message.contains("malformed"), "{message}");
    assert!(
        message.ends_with("fathom.db is damaged: `fathom db rebuild` keeps it aside and makes the database anew from the folders of runs"),
        "{message}"
    );
}

#[test]
fn a_database_that_is_removed_in_use_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let (id, paths) = record(&mut store, "c1", &[started(1, 0), step(1, 3.0)]);
    for file in ["fathom.db", "fathom.db-wal", "fathom.db-shm"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    fs::write(paths.events(), log(&[started(1, 0), step(1, 3.0), step(2, 2.0)])).unwrap();
    assert_eq!(store.ingest_run(&id).unwrap().events, 1);
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_same(&dump(&reader), &dump(&store), "");
    assert_eq!(reader.metric(&id, "loss").unwrap(), [(1, 3.0), (2, 2.0)]);
    assert_eq!(reader.points("pair").unwrap().len(), 2, "what is in no log is there too");
    assert!(reader.check().unwrap().is_sound());

    // Only the file itself; what SQLite kept beside it stays and must not be taken for the new one's.
    fs::remove_file(dir.path().join("fathom.db")).unwrap();
    store.set_status(&id, Status::Killed, Some("signal 9")).unwrap();
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(reader.status(&id).unwrap(), Some(Status::Killed));
    assert!(reader.check().unwrap().is_sound());

    // Replaced by another: that one is gone on with.
    let other = tempfile::tempdir().unwrap();
    close(example(other.path()));
    drop(reader);
    for file in ["fathom.db-wal", "fathom.db-shm"] {
        let _ = fs::remove_file(dir.path().join(file));
    }
    fs::rename(other.path().join("fathom.db"), dir.path().join("fathom.db")).unwrap();
    assert_eq!(
        error(store.ingest_run(&id)),
        "run c10000000000: expected a run of the store, found none"
    );
    assert_eq!(store.runs().unwrap().len(), 2);
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let before = dump(&store);
    let pages: i64 =
        store.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let mut events = vec![started(1, 0)];
    events.extend((1..=2000).map(|k| step(k, 1.0)));
    let (id, paths) = plan(&mut store, "c1", &[]);
    fs::write(paths.events(), log(&events)).unwrap();
    let planned = dump(&store);
    assert_ne!(planned, before);
    let set = |store: &Store, most: i64| {
        store
            .connection()
            .query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(()))
            .unwrap();
    };
    set(&store, pages + 2);
    let message = error(store.ingest_run(&id));
    assert!(
        message.starts_with("run c10000000000: ") && message.contains("database or disk is full"),
        "{message}"
    );
    assert!(
        message.contains("\n  help: nothing is lost, the runs' logs have it: make room where "),
        "{message}"
    );
    assert_same(&dump(&store), &planned, "half of it would be worse than nothing");
    set(&store, 1 << 30);
    assert_eq!(store.ingest_run(&id).unwrap().events, 2001);
    assert!(store.check().unwrap().is_sound());

    // A rebuild that finds no room leaves what was there.
    let expected = dump(&store);
    let pages: i64 =
        store.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let events: Vec<Value> =
        std::iter::once(started(1, 0)).chain((1..=9000).map(|k| step(k, 1.0))).collect();
    fs::write(paths.events(), log(&events)).unwrap();
    set(&store, pages);
    let message = error(store.rebuild());
    assert!(message.contains("database or disk is full\n  help: nothing is lost"), "{message}");
    assert_same(&dump(&store), &expected, "");
}

#[test]
fn a_folder_that_can_only_be_read_is_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("res ults#1");
    let store = example(&results);
    let expected = dump(&store);
    close(store);
    let allow = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(dir.path(), 0o755);
    allow(&results, 0o555);
    allow(&Store::path(&results), 0o444);
    let (read, refused) = without_rights(|| {
        let reader = Store::open_read_only(&results).unwrap();
        (dump(&reader), error(Store::open(&results)))
    });
    allow(&results, 0o755);
    assert_same(&read, &expected, "");
    let shown = Store::path(&results);
    assert!(
        refused.starts_with(&format!(
            "{}: expected a folder and a file that can be written, found that they can't be: ",
            shown.display()
        )),
        "{refused}"
    );
    assert!(refused.ends_with("\n  help: --results names another results folder"), "{refused}");
}

#[test]
fn a_run_whose_folder_is_gone_keeps_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let expected = dump(&store);
    fs::remove_dir_all(dir.path().join("runs/a10000000000")).unwrap();
    let rebuilt = store.rebuild().unwrap();
    assert_eq!((rebuilt.runs, rebuilt.kept), (1, vec![RunId("a10000000000".into())]));
    assert_same(&dump(&store), &expected, "");
    fs::remove_dir_all(dir.path().join("runs")).unwrap();
    assert_eq!(store.rebuild().unwrap().kept.len(), 2);
    assert_same(&dump(&store), &expected, "");
}

#[test]
fn copies_are_whole_and_small() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = example(dir.path());
    let copy = dir.path().join("copies");
    fs::create_dir(&copy).unwrap();
    let to = copy.join("fathom.db");
    let (code, out, err) = fathom(dir.path(), &["backup", to.to_str().unwrap()]);
    assert!(code == Some(0) && out.starts_with("results/copies/fathom.db: "), "{out}{err}");
    assert_eq!(dump(&Store::open_read_only(&copy).unwrap()), dump(&store));
    let (code, _, err) = fathom(dir.path(), &["backup", to.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert_eq!(
        err,
        "error: results/copies/fathom.db: expected no file of this name yet, found one\n  help: name another, or remove it\n"
    );

    let many: Vec<Value> =
        std::iter::once(started(1, 0)).chain((1..=2000).map(|k| step(k, 1.0))).collect();
    record(&mut store, "c1", &many);
    store.connection().execute("DELETE FROM runs WHERE run_id LIKE 'c1%'", []).unwrap();
    let before = store.bytes();
    let (code, out, err) = fathom(dir.path(), &["vacuum"]);
    assert!(code == Some(0) && out.contains(" before, "), "{out}{err}");
    assert!(store.bytes() < before / 2, "{} of {before}", store.bytes());
    let empty = tempfile::tempdir().unwrap();
    let (code, _, err) = fathom(empty.path(), &["vacuum"]);
    assert!(code == Some(1) && err.contains("expected a database of runs, found none"), "{err}");
}
