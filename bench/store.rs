//! The store, timed on this machine: `make bench-store`, or `cargo run --release --example bench_store`.
//!
//! Every figure is printed with what it has to reach; `bench/store_mlflow.py` logs the same scalars through MLflow's SQLite
//! store, one after the other with this, and prints the ratio. RESULTS-store.md has what one machine gave.
//!
//!   bench_store [FOLDER]     where the databases go (a temporary folder); its disk is what is measured

use anyhow::{Context, Result};
use fathom::store::{PointRecord, RunRecord, SavedIdentity, Store, SweepRecord};
use fathom_spec::config::written::Written;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{EventKind, EventLog, RunId, RunPaths};
use serde_json::json;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Scalars that a step's event carries.
const OF_A_STEP: u64 = 8;

fn main() -> Result<()> {
    let given = std::env::args().nth(1);
    let temporary = std::env::temp_dir().join(format!("fathom-bench-{}", std::process::id()));
    let folder = given.as_deref().map_or(temporary.as_path(), Path::new);
    logging(&folder.join("logging"))?;
    let wide = folder.join("wide");
    rebuild(&wide, 1000, 125)?;
    ranking(&wide)?;
    report(&wide)?;
    let long = folder.join("long");
    rebuild(&long, 125, 1000)?;
    curve(&long)?;
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}

fn said(what: &str, value: f64, unit: &str, at_least: &str) {
    println!("{what:<58} {value:>12.3} {unit:<10} ({at_least})");
}

fn config(seed: u64) -> Result<RunConfig> {
    let text = format!(
        "model: {{path: models/tiny}}\ndata: {{corpus: texts}}\ntrain: {{sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5, seed: {seed}}}\n"
    );
    RunConfig::from_written(&Written::parse("run.yaml", &text)?)
}

/// Makes the folder of a run, as the harness does.
fn prepare(results: &Path, number: u64) -> Result<(SavedIdentity, RunConfig, RunPaths)> {
    let config = config(number % 10)?;
    let run_hash = format!("{number:012x}{:0<52}", "");
    let paths = RunPaths::in_results(results, &RunId::from_hash(&run_hash));
    fs::create_dir_all(&paths.folder)?;
    fs::write(paths.config(), config.to_yaml())?;
    let identity = SavedIdentity {
        identity: RunIdentity { run_hash, group_hash: format!("{:064x}", number / 10) },
        digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
        model_files: Vec::new(),
        created_at: 1.7e9,
    };
    identity.write(&paths)?;
    Ok((identity, config, paths))
}

/// Numbers as a run has them: none is round.
fn noise(n: u64) -> f64 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64
}

fn step(run: u64, step: u64) -> EventKind {
    EventKind::Step {
        step,
        tokens: step * 4096,
        loss: 2.0 + 3.0 / step as f64 + noise(run << 20 | step) / 10.0,
        learning_rate: 1e-4 * (1.0 - step as f64 / 1e5),
        grad_norm: 1.0 + noise(step),
        step_seconds: 0.1 + noise(step + 7) / 100.0,
        tokens_per_second: 4096.0 / (0.1 + noise(step + 7) / 100.0),
        peak_allocated: (1 << 33) + (step << 12),
        peak_reserved: 1 << 34,
    }
}

/// Ten scalars a step, each event handed to the kernel before the next (no kill loses one), and read into the store every
/// 100 steps; then the same with every step forced to the disk (no power cut loses one).
fn logging(results: &Path) -> Result<()> {
    for (what, forced, steps, at_least) in [
        ("durable logging, 10 scalars a step", false, 20_000, "at least 100000"),
        ("the same, every step forced to the disk", true, 2_000, "the disk's own"),
    ] {
        let mut store = Store::open(results)?;
        let (identity, config, paths) = prepare(results, steps)?;
        store.upsert_run(&RunRecord { identity: &identity, config: &config })?;
        let mut log = EventLog::open(&paths.events())?;
        let file = fs::File::open(paths.events())?;
        let begun = Instant::now();
        for k in 1..=steps {
            log.write(step(steps, k))?;
            for split in ["validation", "test"] {
                let (split, loss) = (split.to_string(), noise(k));
                log.write(EventKind::Eval { step: k, split, loss, tokens: 4096 })?;
            }
            if forced {
                file.sync_data()?;
            }
            if k % 100 == 0 {
                store.ingest_run(&identity.run_id())?;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(store.metric(&identity.run_id(), "eval_loss.test")?.len() as u64, steps);
        said(what, (10 * steps) as f64 / seconds, "scalars/s", at_least);
    }
    Ok(())
}

/// The logs of a sweep, a million scalars in all, and the store from them: first where there is none, then over what there is.
fn rebuild(results: &Path, runs: u64, steps: u64) -> Result<()> {
    let mut points = Vec::new();
    for number in 0..runs {
        let (identity, _, paths) = prepare(results, number)?;
        let mut text = String::new();
        let mut add = |seq: u64, kind: serde_json::Value| {
            let mut event = json!({"v": 1, "seq": seq, "time": 1.7e9 + seq as f64, "elapsed_seconds": seq as f64 / 10.0});
            event
                .as_object_mut()
                .expect("an object")
                .extend(kind.as_object().expect("one").clone());
            writeln!(text, "{event}").expect("a string takes it");
        };
        add(0, started(number % 10));
        for k in 1..=steps {
            add(k, serde_json::to_value(step(number, k))?);
        }
        let finished = EventKind::Finished { step: steps, tokens: steps * 4096, seconds: 1.0 };
        add(steps + 1, serde_json::to_value(finished)?);
        fs::write(paths.events(), text)?;
        points.push(PointRecord {
            position: number,
            label: format!("variant={}", number / 10),
            seed: number % 10,
            settings: json!({"variant": number / 10, "train.seed": number % 10}),
            run_id: identity.run_id(),
        });
    }
    let sweep = SweepRecord {
        name: "bench".into(),
        file: "bench.yaml".into(),
        question: None,
        spec: json!({"axes": {"variant": (0..runs / 10).collect::<Vec<_>>()}}),
        planned_at: 1.7e9,
    };
    Store::open(results)?.upsert_sweep(&sweep, &points)?;
    let scalars = (runs * steps * OF_A_STEP) as f64;
    for how in ["into an empty store", "over what is there"] {
        let begun = Instant::now();
        let rebuilt = Store::rebuild_from_folders(results)?;
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!((rebuilt.runs as u64, rebuilt.problems.len()), (runs, 0));
        let store = Store::open_read_only(results)?;
        let count = |table: &str| -> Result<f64> {
            let sql = format!("SELECT count(*) FROM {table}");
            Ok(store.connection().query_row(&sql, [], |row| row.get(0))?)
        };
        let rows = ["metrics", "params", "metric_summaries", "events_meta", "attempts", "runs"]
            .into_iter()
            .map(count)
            .sum::<Result<f64>>()?;
        let what = format!("rebuild of {runs} runs of {steps} steps, {how}");
        said(&what, rows / seconds, "rows/s", "at least 900000");
    }
    let bytes = Store::open_read_only(results)?.bytes() as f64;
    said(
        &format!("bytes a scalar, {runs} runs, the whole file"),
        bytes / scalars,
        "bytes",
        "at most 32",
    );
    Ok(())
}

fn started(seed: u64) -> serde_json::Value {
    json!({
        "kind": "started", "attempt": 1, "resumed_from_step": 0, "pid": 7, "code_version": "0.1.0", "git_commit": null,
        "git_dirty": null, "host": "here", "device": "cpu", "device_name": "a processor", "driver": null,
        "libtorch": "2.11.0", "threads": 2, "seed": seed, "environment": {},
    })
}

/// The median of many times, in milliseconds.
fn median(times: usize, mut act: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut all = Vec::new();
    for n in 0..times {
        let begun = Instant::now();
        act(n)?;
        all.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[times / 2])
}

fn curve(results: &Path) -> Result<()> {
    let store = Store::open_read_only(results)?;
    let runs: Vec<RunId> = store.runs()?.into_iter().map(|run| run.run_id).collect();
    let took = median(500, |n| {
        let points = store.metric(&runs[n * 7 % runs.len()], "loss")?;
        assert_eq!(points.len(), 1000);
        Ok(())
    })?;
    said("one curve of 1,000 points out of 1M rows", took, "ms", "at most 0.1");
    Ok(())
}

fn ranking(results: &Path) -> Result<()> {
    let store = Store::open_read_only(results)?;
    for (column, what) in [("last", "last loss"), ("min", "least loss")] {
        let sql = format!(
            "SELECT run_id, {column} FROM v_metric_summaries WHERE key = 'loss' AND {column} IS NOT NULL ORDER BY {column} LIMIT 10"
        );
        let took = median(500, |_| {
            let mut statement = store.connection().prepare(&sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            assert_eq!(rows.collect::<Result<Vec<_>, _>>()?.len(), 10);
            Ok(())
        })?;
        said(&format!("top 10 of 1,000 runs by {what}, asked anew"), took, "ms", "at most 2");
    }
    Ok(())
}

fn report(results: &Path) -> Result<()> {
    let out = results.join("reports");
    let begun = Instant::now();
    fathom::report::write_report(results, "bench", &out)?;
    let seconds = begun.elapsed().as_secs_f64();
    said("report over 1,000 runs and 1M rows", seconds, "s", "at most 2");
    Ok(())
}
