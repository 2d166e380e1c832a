//! How long a report takes over 1,000 runs and a million scalars: `cargo run --release --example bench_report`.
//!
//! The store is made first, in a folder of its own, and is not part of the time: 200 points of two axes with five seeds each,
//! ten scalars of 100 steps a run, perplexity at five context lengths by two methods, NLL at 40 positions, 60 parameters.
//! With the argument `one-seed` the points are 1,000 with one seed each: then every interval is a bootstrap over windows.

use anyhow::Result;
use fathom::report::write_report;
use fathom::store::Store;
use rusqlite::{Connection, params};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const RUNS: i64 = 1000;
const STEPS: i64 = 100;
const KEYS: [&str; 10] = [
    "eval_loss.validation",
    "grad_norm",
    "learning_rate",
    "loss",
    "peak_allocated",
    "peak_reserved",
    "step_seconds",
    "tokens",
    "tokens_per_second",
    "update_norm",
];
const ROPES: i64 = 10;

fn main() -> Result<()> {
    let seeds = if std::env::args().any(|arg| arg == "one-seed") { 1 } else { 5 };
    let folder = tempfile::tempdir()?;
    let results = folder.path().join("results");
    let store = Store::open(&results)?;
    fill(store.connection(), seeds)?;
    drop(store);
    println!("{RUNS} runs, {} scalars, {seeds} seeds a point", RUNS * STEPS * KEYS.len() as i64);
    for _ in 0..3 {
        let begun = Instant::now();
        write_report(&results, "many", &folder.path().join("reports"))?;
        println!(
            "{:.2} s, {}",
            begun.elapsed().as_secs_f64(),
            size(&folder.path().join("reports"))
        );
    }
    Ok(())
}

/// The bytes that the report's files take.
fn size(reports: &Path) -> String {
    let files = std::fs::read_dir(reports.join("many")).into_iter().flatten().flatten();
    let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// A number in 0..1 that looks random and is the same everywhere.
fn noise(seed: i64) -> f64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 11) as f64 / (1u64 << 53) as f64
}

fn fill(db: &Connection, seeds: i64) -> Result<()> {
    db.execute_batch("BEGIN")?;
    db.execute(
        "INSERT INTO sweeps (id, name, file, question, spec, planned_at) VALUES (1, 'many', 'many.yaml', 'Which?', '{}', 0)",
        [],
    )?;
    for (id, key) in (1..).zip(KEYS) {
        db.execute("INSERT INTO metric_keys (id, key) VALUES (?1, ?2)", params![id, key])?;
    }
    for run in 0..RUNS {
        fill_run(db, run, seeds)?;
    }
    db.execute_batch("COMMIT")?;
    Ok(())
}

fn fill_run(db: &Connection, run: i64, seeds: i64) -> Result<()> {
    let (point, seed) = (run / seeds, run % seeds);
    let (rope, rate) = (format!("v{}", point % ROPES), (1 + point / ROPES) as f64 * 1e-5);
    let (label, run_id) =
        (format!("rope={rope}, train.learning_rate={rate:e}"), format!("{run:012x}"));
    let settings = json!({"rope": rope, "train.learning_rate": rate, "train.seed": seed});
    let insert = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> Result<()> {
        db.prepare_cached(sql)?.execute(values)?;
        Ok(())
    };
    insert(
        "INSERT INTO points VALUES (1, ?1, ?2, ?3, ?4, ?5)",
        params![run, label, seed, settings.to_string(), run_id],
    )?;
    insert(
        "INSERT INTO runs (id, run_id, run_hash, group_hash, folder, config, digests, seed, created_at, status, seconds, step, \
         tokens, peak_allocated, device, device_name) VALUES (?1, ?2, ?2, ?3, 'runs/' || ?2, '{}', '{}', ?4, 0, 'finished', ?5, \
         100, 204800, ?6, 'cuda:0', 'One GPU')",
        params![
            run + 1,
            run_id,
            point.to_string(),
            seed,
            60.0 + point as f64,
            (2 + point % 7) << 30
        ],
    )?;
    for param in 0..58 {
        let key = format!("model.config.some_parameter_{param}");
        insert("INSERT INTO params VALUES (?1, ?2, ?3, ?3)", params![run + 1, key, param])?;
    }
    let number = |key: &str, x: f64| {
        insert(
            "INSERT INTO params VALUES (?1, ?2, ?3, ?4)",
            params![run + 1, key, x.to_string(), x],
        )
    };
    number("train.learning_rate", rate)?;
    number("train.sequence_length", 2048.0)?;
    let level = 2.4 + 0.01 * (point % ROPES) as f64 + 0.003 * (point / ROPES) as f64;
    for key in 0..KEYS.len() as i64 {
        for step in 1..=STEPS {
            let value = level + 2.0 / step as f64 + 0.02 * noise(run * 7919 + key * 131 + step);
            insert(
                "INSERT INTO metrics VALUES (?1, ?2, ?3, ?4)",
                params![run + 1, key + 1, step, value],
            )?;
        }
    }
    for (method, offset) in [("last_stride", 0.0), ("prefix", 0.1)] {
        for length in [1024, 2048, 4096, 8192, 16384] {
            let window =
                |w: i64| level + offset + 0.3 * noise(w) + 0.02 * noise(run * 31 + w + length);
            let windows: Vec<f64> = (0..32).map(window).collect();
            let nll = windows.iter().sum::<f64>() / windows.len() as f64;
            insert(
                "INSERT INTO perplexity VALUES (?1, 100, 'validation', ?2, ?3, 32, 2048, ?4, ?5, ?4, ?4, ?6)",
                params![run + 1, method, length, nll, nll.exp(), json!(windows).to_string()],
            )?;
        }
    }
    for bin in 0..40 {
        let (start, end) = (1 + bin * 50, 1 + (bin + 1) * 50);
        insert(
            "INSERT INTO position_nll VALUES (?1, 100, 'validation', ?2, ?3, 400, ?4)",
            params![run + 1, start, end, level + 1.0 / start as f64],
        )?;
    }
    Ok(())
}
