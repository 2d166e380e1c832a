//! The boundary between the store and its reports: synthetic sweeps in, pages, plots and tables out.

use fathom::cli::report::{ReportArgs, run};
use fathom::cli::sql::answer;
use fathom::cli::table::Format;
use fathom::report::input::Comparison;
use fathom::report::{Files, render, write_report, write_reports};
use fathom::store::Store as OpenStore;
use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const SCHEMA: &str = include_str!("../src/harness/store/schema.sql");

/// A store in a folder of its own, filled by hand.
struct Store {
    results: tempfile::TempDir,
    db: Connection,
    points: i64,
}

/// What a synthetic run recorded.
struct Made {
    status: &'static str,
    detail: Option<&'static str>,
    params: Value,
    /// Training loss by step, from 1.
    losses: Vec<f64>,
    eval_loss: Option<f64>,
    /// (method, context length, NLL of each window)
    perplexity: Vec<(&'static str, i64, Vec<f64>)>,
    /// (start, end, NLL)
    positions: Vec<(i64, i64, f64)>,
    peak: Option<i64>,
    /// Phase and its peak.
    phases: Vec<(&'static str, i64)>,
    /// Asked, free and all there is, for a run out of memory.
    memory: Option<(i64, i64, i64)>,
    facts: Value,
    warnings: Vec<&'static str>,
}

impl Made {
    fn finished(params: Value) -> Made {
        Made {
            status: "finished",
            detail: None,
            params,
            losses: Vec::new(),
            eval_loss: None,
            perplexity: Vec::new(),
            positions: Vec::new(),
            peak: Some(1_500_000_000),
            phases: Vec::new(),
            memory: None,
            facts: json!({}),
            warnings: Vec::new(),
        }
    }
}

impl Store {
    fn new(name: &str, question: Option<&str>, spec: Value) -> Store {
        let results = tempfile::tempdir().unwrap();
        let db = Connection::open(results.path().join("fathom.db")).unwrap();
        // What is written here need not survive a power cut.
        db.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;").unwrap();
        db.execute_batch(SCHEMA).unwrap();
        db.execute_batch("PRAGMA application_id = 0x66617468; PRAGMA user_version = 1; BEGIN")
            .unwrap();
        db.execute(
            "INSERT INTO sweeps (name, file, question, spec, planned_at) VALUES (?1, ?2, ?3, ?4, 0)",
            params![name, format!("experiments/{name}.yaml"), question, spec.to_string()],
        )
        .unwrap();
        db.execute_batch("COMMIT").unwrap();
        Store { results, db, points: 0 }
    }

    fn path(&self) -> &Path {
        self.results.path()
    }

    /// Adds a point, and its run where there is one.
    fn point(&mut self, label: &str, seed: i64, mut settings: Value, made: Option<Made>) {
        let run_id = format!("{:012x}", 0xa11_ce00 + self.points);
        settings["train.seed"] = seed.into();
        self.db.execute_batch("BEGIN").unwrap();
        self.db
            .execute(
                "INSERT INTO points VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![self.points, label, seed, settings.to_string(), run_id],
            )
            .unwrap();
        self.points += 1;
        if let Some(made) = made {
            self.insert_run(&run_id, seed, &made);
        }
        self.db.execute_batch("COMMIT").unwrap();
    }

    fn insert_run(&self, run_id: &str, seed: i64, made: &Made) {
        let steps = made.losses.len() as i64;
        let digests =
            json!({"model": "7".repeat(64), "tokenizer": "8".repeat(64), "data": "9".repeat(64)});
        let insert = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            self.db.prepare_cached(sql).unwrap().execute(values).unwrap();
        };
        insert(
            "INSERT INTO runs (run_id, run_hash, group_hash, folder, config, digests, seed, created_at, status, \
             status_detail, attempt, seconds, step, tokens, last_loss, peak_allocated, code_version, git_commit, \
             git_dirty, host, device, device_name, driver, libtorch, threads, asked_bytes, free_bytes) \
             VALUES (?1, ?1, 'g', 'runs/' || ?1, '{}', ?2, ?3, 0, ?4, ?5, 1, ?6, ?7, ?8, ?9, ?10, '0.1.0', \
             'c0ffee0', 0, 'secret-host', 'cuda:0', 'Synthetic 80 GB', '570.1', '2.11.0', 4, ?11, ?12)",
            params![
                run_id,
                digests.to_string(),
                seed,
                made.status,
                made.detail,
                61.5 + seed as f64,
                steps,
                steps * 2048,
                made.losses.last(),
                made.peak,
                made.memory.map(|(asked, _, _)| asked),
                made.memory.map(|(_, free, _)| free),
            ],
        );
        let run = self.db.last_insert_rowid();
        for (key, value) in made.params.as_object().unwrap() {
            let row = params![run, key, value.to_string(), value.as_f64()];
            insert("INSERT INTO params VALUES (?1, ?2, ?3, ?4)", row);
        }
        for (name, value) in made.facts.as_object().unwrap() {
            insert("INSERT INTO facts VALUES (?1, ?2, ?3)", params![run, name, value.to_string()]);
        }
        let metric = |key: &str, step: i64, value: f64| {
            insert("INSERT OR IGNORE INTO metric_keys (key) VALUES (?1)", params![key]);
            insert(
                "INSERT INTO metrics VALUES (?1, (SELECT id FROM metric_keys WHERE key = ?2), ?3, ?4)",
                params![run, key, step, value],
            );
        };
        for (step, loss) in (1..).zip(&made.losses) {
            metric("loss", step, *loss);
            metric("tokens_per_second", step, 2000.0 + step as f64);
            // The first step warms up.
            metric("step_seconds", step, if step == 1 { 8.0 } else { 2.0 });
        }
        if let Some(loss) = made.eval_loss {
            metric("eval_loss.validation", steps, loss);
        }
        for (method, context_length, windows) in &made.perplexity {
            let count = windows.len() as i64;
            let nll = windows.iter().sum::<f64>() / count as f64;
            insert(
                "INSERT INTO perplexity VALUES (?1, ?2, 'validation', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    run,
                    steps,
                    method,
                    context_length,
                    count,
                    count * 64,
                    nll,
                    nll.exp(),
                    nll - 0.05,
                    nll + 0.05,
                    json!(windows.iter().map(|&x| as_stored(x)).collect::<Vec<_>>()).to_string()
                ],
            );
        }
        for (phase, peak) in &made.phases {
            insert(
                "INSERT INTO memory VALUES (?1, 1, ?2, 0, 0, ?3, ?3)",
                params![run, phase, peak],
            );
        }
        for (start, end, nll) in &made.positions {
            insert(
                "INSERT INTO position_nll VALUES (?1, ?2, 'validation', ?3, ?4, ?5, ?6)",
                params![run, steps, start, end, (end - start) * 8, nll],
            );
        }
        let warnings = made.warnings.iter().map(|text| ("warning", json!({ "message": text })));
        let ending = made.memory.map(|(_, _, total)| ("out_of_memory", json!({ "total": total })));
        for (seq, (kind, body)) in (0i64..).zip(warnings.chain(ending)) {
            insert(
                "INSERT INTO events_meta VALUES (?1, ?2, 0, ?3, ?4)",
                params![run, seq, kind, body.to_string()],
            );
        }
    }

    fn render(&self) -> Files {
        let name: String =
            self.db.query_row("SELECT name FROM sweeps", [], |row| row.get(0)).unwrap();
        render(&Comparison::read(self.path(), &name).unwrap()).unwrap()
    }

    fn page(&self) -> String {
        self.render().remove("report.md").unwrap()
    }
}

/// A number in a list, as the store writes it.
fn as_stored(x: f64) -> Value {
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        x => x.into(),
    }
}

/// A number in -1..1 that looks random and is the same everywhere.
fn noise(a: i64, b: i64, c: i64) -> f64 {
    let mut x = (a * 73_856_093) ^ (b * 19_349_663) ^ (c * 83_492_791);
    x = (x ^ (x >> 13)).wrapping_mul(1_274_126_177);
    ((x ^ (x >> 16)) & 0xffff) as f64 / 32_768.0 - 1.0
}

/// A training loss that falls from 4.5 to about `to` over 60 steps.
fn falling(to: f64, id: i64) -> Vec<f64> {
    let at = |s: i64| to + (4.5 - to) * (-s as f64 / 12.0).exp() + 0.05 * noise(id, s, 7);
    (1..=60).map(at).collect()
}

/// Name, `rope_type`, and by how much NLL rises with each octave past the training window.
const VARIANTS: [(&str, &str, f64); 7] = [
    ("plain", "default", 0.92),
    ("linear", "linear", 0.35),
    ("dynamic", "dynamic", 0.16),
    ("yarn2", "yarn", 0.045),
    ("yarn4", "yarn", 0.03),
    ("llama3", "llama3", 0.05),
    ("theta", "default", 0.02),
];

/// Seven RoPE variants, trained at 256 tokens, evaluated from 128 to 1024.
fn rope_sweep(seeds: i64) -> Store {
    let axis: Map<String, Value> = VARIANTS
        .iter()
        .map(|(name, kind, _)| {
            (name.to_string(), json!({"model.rope_parameters": {"rope_type": kind}}))
        })
        .collect();
    let spec = json!({
        "name": "rope_variants",
        "axes": {"rope": axis},
        "seeds": seeds,
        "report": {"baseline": "plain", "title": "RoPE variants past the training window"},
    });
    let question = "Which RoPE variant keeps perplexity flat past the training window?\n\
                    fathom sweep run experiments/rope_variants.yaml";
    let mut store = Store::new("rope_variants", Some(question), spec);
    for (index, (name, kind, slope)) in (0..).zip(VARIANTS) {
        for seed in 0..seeds {
            let id = index * 10 + seed;
            let nll_at = |length: f64, window: i64| {
                let octaves = (length / 256.0).log2();
                let base = 2.55 - 0.06 * octaves + if name == "linear" { 0.04 } else { 0.0 };
                let noise = 0.004 * noise(id, 1, 1)
                    + 0.1 * noise(0, window, 2)
                    + 0.004 * noise(id, window, 3);
                base + slope * octaves.max(0.0) + noise
            };
            let mut made = Made::finished(json!({
                "model.rope_parameters.rope_type": kind,
                "model.rope_parameters.rope_theta": if name == "theta" { 500_000.0 } else { 10_000.0 },
                "model.path": format!("/somewhere/private/{kind}"),
                "train.sequence_length": 256,
                "train.seed": seed,
                "eval.split": "validation",
                "eval.last_stride": 64,
            }));
            made.losses = falling(2.5 + slope * 0.05, id);
            made.eval_loss = Some(nll_at(256.0, 0));
            for length in [128, 256, 512, 768, 1024] {
                for (method, offset) in [("last_stride", 0.0), ("prefix", 0.11)] {
                    let windows =
                        (0..12).map(|window| nll_at(length as f64, window) + offset).collect();
                    made.perplexity.push((method, length, windows));
                }
            }
            let edge = |bin: i32| 1024f64.powf(f64::from(bin) / 40.0) as i64;
            made.positions = (0..40)
                .map(|bin| (edge(bin), edge(bin + 1)))
                .filter(|(start, end)| start < end)
                .map(|(start, end)| (start, end, nll_at(start as f64, start) + 2.0 / start as f64))
                .collect();
            store.point(&format!("rope={name}"), seed, json!({ "rope": name }), Some(made));
        }
    }
    store
}

/// Five learning rates, three seeds each; one run of the highest diverged.
fn learning_rate_sweep() -> Store {
    let rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3];
    let spec = json!({
        "name": "learning_rate",
        "axes": {"train.learning_rate": rates},
        "report": {"baseline": "train.learning_rate=0.0001"},
    });
    let mut store = Store::new("learning_rate", Some("Which learning rate?"), spec);
    for (index, rate) in (0..).zip(rates) {
        for seed in 0..3 {
            let id = 100 + index * 10 + seed;
            let best = 2.4 + 0.36 * (rate / 2e-4f64).log10().powi(2) + 0.006 * noise(id, 0, 0);
            let mut made = Made::finished(json!({
                "train.learning_rate": rate,
                "train.sequence_length": 256,
                "train.seed": seed,
                "eval.split": "validation",
            }));
            made.losses = falling(best, id);
            if index == 4 && seed == 1 {
                made.status = "diverged";
                made.detail = Some("the loss rose to 3 times its lowest");
                made.losses.truncate(20);
                made.losses.extend((0..8).map(|s| 3.5 * 1.4f64.powi(s)));
            } else {
                made.eval_loss = Some(best + 0.02);
            }
            let settings = json!({ "train.learning_rate": rate });
            store.point(&format!("train.learning_rate={rate}"), seed, settings, Some(made));
        }
    }
    store
}

/// A search for the longest sequence that trains within 4 GiB.
fn ceiling_sweep() -> Store {
    const GIB: f64 = 1_073_741_824.0;
    let spec = json!({
        "name": "context_ceiling",
        "search": { "bisect": {
            "parameter": "train.sequence_length",
            "low": 1024,
            "high": 65536,
            "resolution": 512
        } },
    });
    let question = Some("What is the longest sequence that trains?");
    let mut store = Store::new("context_ceiling", question, spec);
    for length in [1024, 65_536, 33_280, 17_408, 9_216, 13_312, 11_264, 12_288, 11_776] {
        let needs = (0.6 + length as f64 * 0.000_295) * GIB;
        let mut made = Made::finished(json!({
            "train.sequence_length": length,
            "train.seed": 0,
            "run.memory_cap": 4i64 << 30,
        }));
        made.peak = Some(needs as i64);
        made.losses = falling(3.0, length)[..4].to_vec();
        if needs > 4.0 * GIB {
            made.status = "out_of_memory";
            made.losses.clear();
            made.peak = Some((3.6 * GIB) as i64);
            made.memory = Some(((needs - 3.5 * GIB) as i64, (0.4 * GIB) as i64, 4 << 30));
        }
        let settings = json!({ "train.sequence_length": length });
        store.point(&format!("train.sequence_length={length}"), 0, settings, Some(made));
    }
    store
}

/// A search in two cases by probes: the first has come to its end, the second's last runs were killed.
fn cases_sweep() -> Store {
    let spec = json!({
        "name": "cases",
        "axes": {"shape": {"llama2_7b": {}, "mistral_7b": {}}},
        "search": { "bisect": {
            "parameter": "train.sequence_length",
            "low": 4096, "high": 524288, "resolution": 16384, "multiple_of": 4096, "probe_layers": 2,
            "also": [4096, 16384, 49152, 65536],
        } },
    });
    let mut store = Store::new("cases", Some("How long a sequence trains on a 24 GiB card?"), spec);
    let probes =
        [("llama2_7b", 32, &[4096, 16384, 49152, 65536][..]), ("mistral_7b", 8, &[4096, 16384])];
    for (shape, heads, lengths) in probes {
        let whole = [(if shape == "llama2_7b" { 49152 } else { 4096 }, None)];
        let runs = lengths.iter().map(|&length| (length, Some(2))).chain(whole);
        for (length, layers) in runs {
            let mut settings = json!({"shape": shape, "train.sequence_length": length});
            let mut made = Made::finished(json!({
                "train.sequence_length": length,
                "model.config.num_key_value_heads": heads,
                "data.corpus": "random",
                "run.memory_cap": 24i64 << 30,
            }));
            if let Some(layers) = layers {
                settings["run.probe_layers"] = json!(layers);
                made.params["run.probe_layers"] = json!(layers);
            }
            let predicted = (14i64 << 30) + length * 200_000;
            // The first probe is predicted too low, all others too high.
            let measured = predicted * 100 / if length == 4096 { 98 } else { 104 };
            made.losses = vec![11.0, 10.9, 10.9];
            made.peak = Some(measured);
            made.phases =
                vec![("optimizer", 15 << 30), ("mlp_backward", measured), ("forward", 14 << 30)];
            made.facts = json!({"plan": {
                "settings": {"attention_head_groups": 4, "activation_offloading": true},
                "peak_allocated": predicted,
                "phases": {"forward": 15i64 << 30, "mlp_backward": predicted},
                "host": 0, "hardware_flops": 8.0e14, "model_flops": 6.0e14, "full_square_flops": 9.0e14,
                "seconds_per_step": 1.5,
            }, "phase_seconds": {"forward": 0.4, "mlp_backward": 0.75}});
            match (shape, length) {
                ("llama2_7b", 65536) => {
                    made.status = "out_of_memory";
                    made.detail =
                        Some("plan of step 0: asked for 26.2 GiB, free 24.0 GiB, in all 24.0 GiB");
                    made.losses.clear();
                    made.peak = None;
                    made.memory = Some((predicted, 24 << 30, 24 << 30));
                }
                ("mistral_7b", length) if length == 16384 || layers.is_none() => {
                    (made.status, made.peak) = ("killed", None);
                }
                _ => {}
            }
            store.point(&format!("shape={shape} {length} {layers:?}"), 0, settings, Some(made));
        }
    }
    store
}

/// Techniques at one length on random tokens: `streamed` takes less than the baseline and longer, `untiled` more.
fn ladder_sweep() -> Store {
    let spec = json!({"name": "ladder", "report": {"baseline": "all"}});
    let mut store = Store::new("ladder", Some("What does each technique save?"), spec);
    for (technique, gib, seconds) in [("all", 16, 2.0), ("untiled", 20, 1.9), ("streamed", 8, 3.0)]
    {
        let mut made =
            Made::finished(json!({"train.sequence_length": 32768, "data.corpus": "random"}));
        made.losses = vec![11.0; 3];
        made.peak = Some(gib << 30);
        made.facts = json!({"plan": {
            "settings": {}, "peak_allocated": gib << 30, "seconds_per_step": seconds, "hardware_flops": 4.0e14,
        }});
        let label = format!("technique={technique}");
        store.point(&label, 0, json!({ "technique": technique }), Some(made));
    }
    store
}

/// Writes the report where it can be looked at: set `FATHOM_LOOK` to a folder.
fn show(sweep: &str, files: &Files) {
    if let Some(folder) = std::env::var_os("FATHOM_LOOK") {
        let folder = Path::new(&folder).join(sweep);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }
}

#[test]
fn a_rope_sweep() {
    let files = rope_sweep(2).render();
    show("rope_variants", &files);
    insta::assert_snapshot!("rope_variants.md", files["report.md"]);
    insta::assert_snapshot!("rope_variants_perplexity.svg", files["perplexity_last_stride.svg"]);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "loss.csv",
        "loss.svg",
        "loss_dark.svg",
        "nll_by_position.csv",
        "nll_by_position.svg",
        "nll_by_position_dark.svg",
        "perplexity_by_run.csv",
        "perplexity_last_stride.csv",
        "perplexity_last_stride.svg",
        "perplexity_last_stride_dark.svg",
        "perplexity_prefix.csv",
        "perplexity_prefix.svg",
        "perplexity_prefix_dark.svg",
        "report.md",
        "runs.csv",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_learning_rate_sweep() {
    let files = learning_rate_sweep().render();
    show("learning_rate", &files);
    insta::assert_snapshot!("learning_rate.md", files["report.md"]);
    let csv = &files["by_learning_rate.csv"];
    assert!(csv.contains("train.learning_rate=0.001,0.001,1,diverged,\n"), "{csv}");
}

#[test]
fn a_search_for_the_ceiling() {
    let files = ceiling_sweep().render();
    show("context_ceiling", &files);
    insta::assert_snapshot!("context_ceiling.md", files["report.md"]);
}

#[test]
fn a_search_in_two_cases() {
    let files = cases_sweep().render();
    show("cases", &files);
    insta::assert_snapshot!("cases.md", files["report.md"]);
    let page = &files["report.md"];
    for expected in [
        "**llama2_7b**: the largest `train.sequence_length` at which the run still finished is **49,152**; at 65,536 it did not \
         (out of memory (a probe of 2 layers): predicted before the start, 26.2 GiB needed, 24.0 GiB there).",
        "The ceiling lies in [49,152, 65,536), found with 5 runs. It is confirmed by a whole step; 4 of the runs",
        "**The search of mistral_7b is not finished:**",
        "| `train.sequence_length` | llama2_7b | mistral_7b |",
        // A whole run that came to nothing does not hide its probe.
        "| 4,096 | 15.1 GiB (probe) | **15.1 GiB** (probe) |",
        "| 16,384 | 16.4 GiB (probe) | killed (probe) |",
        "| 65,536 | out of memory (predicted) (probe) | – |",
        // 8e14 in the 2 s of the median step; a probe's time is not the model's.
        "| llama2_7b | 49,152 | 22.3 GiB | 23.2 GiB | +4.0 % | 2.0 s | 1.5 s | -25.0 % | 400.0 |",
        "| mistral_7b | 4,096 (probe) | 15.1 GiB | 14.8 GiB | -2.0 % | – | – | – | – |",
        "off by -2.0 % to +4.0 % of what was measured",
        "| mlp_backward | 22.3 GiB | 23.2 GiB |",
        "| `attention_head_groups` | 4 |",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(
        files["memory.csv"].contains("shape=llama2_7b 49152 None,49152,0,finished,22.2"),
        "{}",
        files["memory.csv"]
    );
    for (name, text) in &files {
        assert!(!text.contains("loss"), "{name} has a loss: {text}");
    }
}

/// Where the tokens are random, what a sweep compares is memory and time.
#[test]
fn a_sweep_of_techniques_on_random_tokens() {
    let files = ladder_sweep().render();
    show("ladder", &files);
    let page = &files["report.md"];
    for expected in [
        "**streamed** has the lowest peak memory: **8.0 GiB**, against 16.0 GiB of the baseline **all**.",
        "Against the baseline's peak: **untiled** +25.0 %, the step +0.0 %; **streamed** -50.0 %, the step +0.0 %.",
        "| all | 16.0 GiB | – | 2.0 s | – | 2002 | 1 |",
        "| streamed | **8.0 GiB** | -50.0 % |",
        "| streamed | 0 | 8.0 GiB | 8.0 GiB | +0.0 % | 2.0 s | 3.0 s | +50.0 % | 200.0 |",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    for file in ["memory_by_time.csv", "memory_by_time.svg", "memory_by_time_dark.svg"] {
        assert!(files.contains_key(file), "{file}");
    }
    let csv = &files["memory_by_time.csv"];
    assert!(csv.contains("technique=streamed,1,2.0,8.0"), "{csv}");
    for (name, text) in &files {
        let lost = ["final loss", "final_loss", "loss.svg", "perplexity"];
        assert!(!lost.iter().any(|word| text.contains(word)), "{name}: {text}");
    }
}

#[test]
fn the_same_store_gives_the_same_bytes() {
    let store = rope_sweep(2);
    assert_eq!(store.render(), store.render());
    assert_eq!(store.render(), rope_sweep(2).render());
}

#[test]
fn a_report_says_nothing_of_the_machine() {
    for (name, text) in rope_sweep(2).render() {
        for private in ["secret-host", "somewhere", "private"] {
            assert!(!text.contains(private), "{name} has {private}");
        }
    }
}

#[test]
fn plots_are_whole_and_nothing_in_them_is_clipped() {
    for store in [rope_sweep(2), learning_rate_sweep(), ceiling_sweep(), cases_sweep()] {
        for (name, svg) in store.render().iter().filter(|(name, _)| name.ends_with(".svg")) {
            assert!(svg.contains(r#"role="img""#), "{name}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}: {svg}");
            for tag in ["svg", "title", "desc", "text"] {
                let opened = svg.matches(&format!("<{tag} ")).count();
                let closed = svg.matches(&format!("</{tag}>")).count();
                assert!(opened == closed && opened > 0, "{name}: {opened} {tag}, {closed} closed");
            }
            let size = |key: &str| -> f64 {
                let (_, rest) = svg.split_once(&format!(" {key}=\"")).unwrap();
                rest.split_once('"').unwrap().0.parse().unwrap()
            };
            let (width, height) = (size("width") * 10.0, size("height") * 10.0);
            for points in svg.split("points=\"").skip(1) {
                for pair in points.split_once('"').unwrap().0.split_whitespace() {
                    let (x, y) = pair.split_once(',').unwrap();
                    let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                    let inside = (0.0..=width).contains(&x) && (0.0..=height).contains(&y);
                    assert!(inside, "{name}: {pair}");
                }
            }
        }
    }
}

/// Where an SVG's texts stand, in pixels: (x, y, text).
fn texts(svg: &str) -> Vec<(f64, f64, String)> {
    let number = |tag: &str, key: &str| -> f64 {
        let (_, rest) = tag.split_once(&format!(" {key}=\"")).unwrap();
        rest.split_once('"').unwrap().0.parse::<f64>().unwrap() / 10.0
    };
    svg.split("<text ")
        .skip(1)
        .map(|rest| {
            let (tag, rest) = rest.split_once('>').unwrap();
            let text = rest.split_once("</text>").unwrap().0.trim().to_string();
            (number(tag, "x"), number(tag, "y"), text)
        })
        .collect()
}

/// Four RoPE variants at three learning rates: too many lines for one plot.
fn many_sweep() -> Store {
    let mut store = Store::new("many", None, json!({"name": "many"}));
    for (index, rope) in (0..).zip(["plain", "linear", "yarn", "theta"]) {
        for rate in [1e-5, 1e-4, 1e-3] {
            for seed in 0..2 {
                let mut made = Made::finished(json!({"train.sequence_length": 4096}));
                let id = index * 100 + seed;
                made.losses = falling(2.2 + index as f64 * 0.01, id);
                // The more memory the better, but for the last variant.
                made.peak = Some((1 + index % 3) << 30);
                made.perplexity = [2048i64, 4096, 8192, 16_384]
                    .map(|length| {
                        let own = 0.02 * noise(id, length, (rate * 1e6) as i64);
                        let nll = 2.2 - 0.1 * (index % 3) as f64 + own;
                        ("last_stride", length, vec![nll, nll + 0.1])
                    })
                    .to_vec();
                let label = format!("model.rope_parameters={rope}, train.learning_rate={rate:e}");
                let settings = json!({"model.rope_parameters": rope, "train.learning_rate": rate});
                store.point(&label, seed, settings, Some(made));
            }
        }
    }
    store
}

#[test]
fn many_lines_become_small_multiples() {
    let files = many_sweep().render();
    show("many", &files);
    for name in ["perplexity_last_stride.svg", "loss.svg", "loss_dark.svg"] {
        let texts = texts(&files[name]);
        let named = |wanted: &str| texts.iter().filter(|(_, _, t)| t.starts_with(wanted)).count();
        // The fewest panels of which none has too many lines: one a learning rate, four lines each.
        assert_eq!(named("learning_rate="), 3, "{name}: {texts:?}");
        assert_eq!(named("rope_parameters="), 4, "{name}: {texts:?}");
    }
}

/// Twelve values of one axis: a panel each, with the baseline's line behind.
#[test]
fn many_values_of_one_axis_have_a_panel_each() {
    let mut store = Store::new("many", None, json!({"name": "many"}));
    for variant in 0..12 {
        let mut made = Made::finished(json!({}));
        made.losses = falling(2.0 + 0.01 * variant as f64, variant);
        let name = format!("v{variant}");
        store.point(&format!("rope={name}"), 0, json!({ "rope": name }), Some(made));
    }
    let texts = texts(&store.render()["loss.svg"]);
    let panels = texts.iter().filter(|(_, _, text)| text.starts_with("rope=")).count();
    let by_name = (0..12).filter(|i| texts.iter().any(|(_, _, text)| *text == format!("v{i}")));
    assert_eq!(panels + by_name.count(), 12, "{texts:?}");
    assert!(texts.iter().any(|(_, _, text)| text == "baseline: v0"), "{texts:?}");
}

#[test]
fn what_costs_and_what_matters_is_said() {
    let page = many_sweep().page();
    // Quality falls with memory: `yarn` is best and dearest, `plain` and `theta` cheapest, `linear` between.
    let (_, figure) = page.split_once("### Perplexity against peak memory").unwrap();
    for expected in
        ["(prefers-color-scheme: dark)\" srcset=\"perplexity_by_memory_dark.svg\"", "on_front"]
    {
        assert!(figure.contains(expected), "{expected}: {figure}");
    }
    let (_, matters) = page.split_once("## What matters").unwrap();
    let first = matters.lines().find(|line| line.starts_with("| `")).unwrap();
    assert!(first.starts_with("| `model.rope_parameters` | 4 | 24 | 9"), "{first}");
    assert!(page.contains("Of the 2 parameters, `model.rope_parameters` matters most"), "{page}");
}

/// Two variants whose NLL differs by 0.02, a little more or less from seed to seed.
fn paired_sweep(seeds: i64) -> Store {
    let mut store = Store::new("paired", None, json!({"name": "paired"}));
    for (index, rope) in (0..).zip(["plain", "yarn"]) {
        for seed in 0..seeds {
            let mut made = Made::finished(json!({"eval.split": "validation"}));
            let nll = |window: i64| {
                let shared = 0.3 * noise(seed, window, 1);
                2.0 - 0.02 * index as f64 + shared + 0.002 * noise(index, seed, window)
            };
            made.perplexity = vec![("prefix", 512, (0..20).map(nll).collect())];
            store.point(&format!("rope={rope}"), seed, json!({ "rope": rope }), Some(made));
        }
    }
    store
}

/// Nothing is called significant, or not, before the sign flips of six pairs can say so.
#[test]
fn few_seeds_are_told_how_many_more_it_takes() {
    for seeds in 1..=5 {
        let page = paired_sweep(seeds).page();
        assert!(!page.to_lowercase().contains("significan"), "{seeds}: {page}");
        let more = 6 - seeds;
        let expected =
            format!("| needs {more} more seed{} (6 in all) |", if more == 1 { "" } else { "s" });
        assert!(page.contains(&expected), "{seeds}: {expected}: {page}");
    }
    let page = paired_sweep(6).page();
    assert!(page.contains("0.031 (64) | 0.031 |"), "{page}");
    assert!(page.contains("| significant: better |"), "{page}");
    // The windows differ far more among themselves than the variants do, yet pair by pair they agree.
    assert!(
        page.contains("| 20 | 0.0001 (10000) |") || page.contains("< 0.0001 (10000)"),
        "{page}"
    );
}

/// A number as both sides of a comparison print it, or the text.
fn same_cell(a: &str, b: &str) -> bool {
    let empty = |cell: &str| cell.is_empty() || cell == "NaN";
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) if x.is_finite() => (x - y).abs() <= 1e-9 * x.abs().max(1e-3),
        _ => a == b || empty(a) && empty(b),
    }
}

/// As [`rope_sweep`] and [`many_sweep`], where some seeds have numbers that are none.
fn sweeps_with_lost_numbers() -> Vec<Store> {
    let ropes = rope_sweep(3);
    let seeds = "FROM points WHERE label = 'rope=linear' AND seed = 1";
    ropes
        .db
        .execute_batch(&format!(
            "UPDATE perplexity SET nll = NULL WHERE context_length > 512 AND run IN (SELECT r.id FROM runs r WHERE run_id IN (SELECT run_id {seeds}));
             UPDATE perplexity SET nll = 9e999 WHERE context_length = 128 AND run IN (SELECT r.id FROM runs r WHERE run_id IN (SELECT run_id {seeds}));
             UPDATE position_nll SET nll = NULL WHERE start > 200 AND run IN (SELECT r.id FROM runs r WHERE run_id IN (SELECT run_id {seeds}));"
        ))
        .unwrap();
    // One seed of one label has no number at the length that decides, and one of another only a loss.
    let many = many_sweep();
    many.db
        .execute_batch(
            "UPDATE perplexity SET nll = NULL WHERE run = 1 AND context_length = 16384;
             DELETE FROM perplexity WHERE run = 4 AND context_length = 16384;",
        )
        .unwrap();
    let losses = many_sweep();
    losses
        .db
        .execute_batch(
            "DELETE FROM perplexity;
             UPDATE metrics SET value = NULL WHERE run = 1 AND step = 55 AND key = (SELECT id FROM metric_keys WHERE key = 'loss');
             DELETE FROM metrics WHERE run = 4;",
        )
        .unwrap();
    vec![ropes, many, losses]
}

/// The query that each figure shows gives the rows of its CSV, in their order.
#[test]
fn the_query_of_every_figure_gives_its_numbers() {
    let mut queries = 0;
    let stores = vec![
        rope_sweep(2),
        rope_sweep(1),
        learning_rate_sweep(),
        ceiling_sweep(),
        cases_sweep(),
        many_sweep(),
        ladder_sweep(),
    ];
    for store in stores.into_iter().chain(sweeps_with_lost_numbers()) {
        let files = store.render();
        let open = OpenStore::open(store.path()).unwrap();
        for fold in files["report.md"]
            .split("\n```sql\n")
            .skip(1)
            .zip(files["report.md"].split("and the query that gives them</summary>").skip(1))
        {
            let (query, head) = fold;
            let query = query.split_once("\n```\n").unwrap().0;
            let name = head.split_once('[').unwrap().1.split_once(']').unwrap().0;
            let found = answer(&open, query).unwrap_or_else(|e| panic!("{name}: {e:#}: {query}"));
            let found = found.render(Format::Csv);
            let lines = |csv: &str| -> Vec<Vec<String>> {
                let fields = |line: &str| {
                    let mut quoted = false;
                    let split = |c: char| {
                        quoted ^= c == '"';
                        c == ',' && !quoted
                    };
                    line.split(split).map(|field| field.trim_matches('"').to_string()).collect()
                };
                csv.lines().map(fields).collect()
            };
            let (found, csv) = (lines(&found), lines(&files[name]));
            assert_eq!(found.len(), csv.len(), "{name}: {query}");
            assert_eq!(found[0], csv[0], "{name}: {query}");
            for (a, b) in found.iter().zip(&csv) {
                let is_same = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_cell(a, b));
                assert!(is_same, "{name}: the query gives {a:?}, the CSV has {b:?}\n{query}");
            }
            queries += 1;
        }
    }
    assert!(queries >= 15, "{queries} queries");
}

/// All files below a folder, by their paths.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => {
                all.extend(tree(&entry.path()).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)))
            }
            false => drop(all.insert(name, std::fs::read(entry.path()).unwrap())),
        }
    }
    all
}

#[test]
fn all_reports_have_an_index_and_come_out_the_same_again() {
    let store = rope_sweep(2);
    store
        .db
        .execute_batch(
            "INSERT INTO sweeps (name, file, question, spec, planned_at) \
             VALUES ('empty', 'e.yaml', '# Is it there? No.', '{}', 1790000000)",
        )
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let args = || ReportArgs {
        sweep: None,
        all: true,
        results: store.path().into(),
        out: out.path().into(),
        allow_partial: false,
    };
    run(args()).unwrap();
    let written = tree(out.path());
    let index = String::from_utf8(written["index.md"].clone()).unwrap();
    for expected in [
        "| [empty](empty/report.md) | Is it there? | **There is no answer yet:** no run has finished with a number to compare. | 0 | 2026-09-21 |",
        "| [rope\\_variants](rope_variants/report.md) |",
        "| 14 | 1970-01-01 |",
    ] {
        let expected = expected.replace("\\_", "_");
        assert!(index.contains(&expected), "{expected}: {index}");
    }
    assert!(written.contains_key("rope_variants/report.md"));
    run(args()).unwrap();
    assert_eq!(tree(out.path()), written);
}

#[test]
fn every_figure_is_there_for_a_dark_page() {
    let files = many_sweep().render();
    let light = files.keys().filter(|name| name.ends_with(".svg") && !name.contains("_dark"));
    for name in light {
        let dark = &files[&name.replace(".svg", "_dark.svg")];
        assert!(dark.contains("#0D1117"), "{name}");
        for color in ["#FFFFFF", "#222222", "#5F5F5F", "#E6E6E6"] {
            assert!(!dark.contains(color), "{name} has {color}");
        }
        // The same drawing, in other colours.
        assert_eq!(dark.matches("<polyline").count(), files[name].matches("<polyline").count());
        assert_eq!(texts(dark), texts(&files[name]));
    }
}

#[test]
fn one_seed_has_no_interval_and_says_so() {
    let page = rope_sweep(1).page();
    assert!(page.contains("one seed, so there is no interval over seeds"), "{page}");
    assert!(page.contains("over the windows of one seed, by bootstrap"), "{page}");
    let table = page.split("## Figures").next().unwrap();
    assert!(!table.contains('±'), "{table}");
}

/// Without a second seed or window a difference of any size is as sure as another: not at all.
#[test]
fn one_seed_and_one_window_say_nothing_of_how_sure_a_difference_is() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for (name, loss) in [("a", 2.0), ("b", 2.5), ("c", 5.0)] {
        let mut made = Made::finished(json!({}));
        made.losses = vec![loss; 3];
        store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
    }
    let page = store.page();
    let nothing = "One seed and one window: nothing can be said of how sure the differences are.";
    assert!(page.contains(nothing), "{page}");
    for wrong in ["None can be told", "can't be told from the", "Not distinguishable from it"] {
        assert!(!page.contains(wrong), "{wrong}: {page}");
    }
    let table = page.split("## Results").nth(1).unwrap().split("<details>").next().unwrap();
    assert!(table.contains("| a | **2** |"), "{table}");
    assert!(table.contains("| b | 2.5 |") && table.contains("| c | 5 |"), "{table}");
}

/// Where runs were under way together on one device, a time says how they got in each other's way.
#[test]
fn times_of_runs_that_shared_a_device_are_not_compared() {
    let said = "Runs shared their device at the same time: times and tokens/s are not comparable.";
    for (second, environment, is_shared) in [
        (50.0, "{}", true),
        (100.0, "{}", false),
        (50.0, r#"{"CUDA_VISIBLE_DEVICES": "1"}"#, false),
    ] {
        let mut store = Store::new("s", None, json!({"name": "s"}));
        for (seed, name) in (0..).zip(["a", "b"]) {
            let mut made = Made::finished(json!({}));
            made.losses = falling(2.0 + seed as f64, 1);
            store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
        }
        let set = "UPDATE runs SET started_at = ?1, ended_at = ?1 + 100, seconds = ?2, environment = ?3 WHERE id = ?4";
        store.db.execute(set, params![0.0, 100.0, "{}", 1]).unwrap();
        store.db.execute(set, params![second, 50.0, environment, 2]).unwrap();
        let files = store.render();
        let page = &files["report.md"];
        assert_eq!(page.contains(said), is_shared, "{second} {environment}: {page}");
        assert_eq!(files.contains_key("loss_by_time.svg"), !is_shared, "{second} {environment}");
        assert_eq!(page.contains("| front |"), !is_shared, "{page}");
    }
}

/// What a run without memory stands at in the plot is in its table; what was refused at once held nothing.
#[test]
fn a_memory_figure_has_the_numbers_that_are_drawn() {
    let csv = cases_sweep().render().remove("memory.csv").unwrap();
    let head = "label,sequence_length,seed,status,peak_allocated_gib,asked_gib,probe_layers";
    assert_eq!(csv.lines().next().unwrap(), head);
    let lost = csv.lines().filter(|line| line.contains("out_of_memory"));
    let cells = lost.map(|line| line.split(',').map(str::to_string).collect::<Vec<_>>());
    let cells: Vec<Vec<String>> = cells.collect();
    assert!(!cells.is_empty());
    assert!(cells.iter().all(|row| row[5].parse::<f64>().unwrap() > 0.0), "{csv}");
    assert!(cells.iter().all(|row| row[4] != "0.0"), "{csv}");
    assert!(
        !csv.lines().any(|line| line.contains(",finished,") && line.split(',').nth(5) != Some(""))
    );
}

/// The step of a divergence stands in its detail too, and is said once.
#[test]
fn a_divergence_names_its_step_once() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    let mut made = Made::finished(json!({}));
    made.status = "diverged";
    made.detail = Some("step 3: loss 20: above 3 times the lowest");
    made.losses = vec![2.0, 2.0, 20.0];
    store.point("x=a", 0, json!({ "x": "a" }), Some(made));
    let page = store.page();
    assert!(page.contains("| diverged at step 3: loss 20: above 3 times the lowest |"), "{page}");
}

#[test]
fn a_sweep_without_a_finished_run_is_a_page_all_the_same() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    let mut failed = Made::finished(json!({}));
    failed.status = "failed";
    failed.detail = Some("configuration not honoured: train.sequence_length is 512, found 4096");
    store.point("rope=a", 0, json!({"rope": "a"}), Some(failed));
    store.point("rope=b", 0, json!({"rope": "b"}), None);
    let page = store.page();
    assert!(page.contains("**There is no answer yet:**"), "{page}");
    assert!(page.contains("found 4096"), "{page}");
    assert!(page.contains("**This report is partial: 1 of 2 points"), "{page}");
    assert!(page.contains("| b | 0 | not run yet | – |"), "{page}");
}

#[test]
fn a_sweep_without_points_is_a_page_all_the_same() {
    let page = Store::new("s", None, json!({"name": "s"})).page();
    assert!(page.contains("**There is no answer yet:**"), "{page}");
    let search = json!({"name": "s", "search": {"bisect": {"parameter": "p"}}});
    let page = Store::new("s", None, search).page();
    assert!(page.contains("the search has made no run"), "{page}");
}

#[test]
fn a_single_point() {
    let mut store = Store::new("s", Some("Does it train?"), json!({"name": "s"}));
    let mut made = Made::finished(json!({"train.sequence_length": 256}));
    made.losses = falling(2.0, 3);
    store.point("", 0, json!({}), Some(made));
    let files = store.render();
    let page = &files["report.md"];
    assert!(page.contains("**(the only one)** has the lowest final training loss"), "{page}");
    assert!(page.contains("nothing else can be compared"), "{page}");
    assert!(files.contains_key("loss.svg"));
}

#[test]
fn numbers_that_are_none_never_win() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for (name, nll) in [("lost", f64::NAN), ("good", 2.0)] {
        for seed in 0..2 {
            let mut made = Made::finished(json!({"eval.split": "validation"}));
            made.losses = vec![3.0, nll];
            made.perplexity = vec![("prefix", 512, vec![nll; 3]), ("prefix", 1024, vec![nll; 3])];
            made.positions = vec![(1, 2, nll), (2, 4, nll)];
            store.point(&format!("rope={name}"), seed, json!({ "rope": name }), Some(made));
        }
    }
    let page = store.page();
    assert!(page.contains("**good** has the lowest perplexity at 1K tokens (prefix)"), "{page}");
    assert!(page.contains("Not a number, and left out: **lost**."), "{page}");
    assert!(page.contains("| lost | NaN | NaN |"), "{page}");
}

#[test]
fn labels_may_hold_what_markdown_and_svg_reserve() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for name in ["a|b", "<c> & *d*"] {
        let mut made = Made::finished(json!({}));
        made.losses = falling(2.0, 3);
        store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
    }
    let files = store.render();
    let page = &files["report.md"];
    assert!(page.contains("| a\\|b |"), "{page}");
    assert!(page.contains("| &lt;c&gt; & \\*d\\* |"), "{page}");
    assert!(files["loss.svg"].contains("&lt;c&gt; &amp; *d*"), "{}", files["loss.svg"]);
}

#[test]
fn leaked_files_and_warnings_stand_at_the_top() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for seed in 0..2 {
        let mut made = Made::finished(json!({}));
        made.losses = falling(2.0, seed);
        made.facts = json!({"data.held_out_also_trained_on": ["/corpus/dagon.txt"]});
        made.warnings = vec!["the last block is short", "the last block is short"];
        store.point("", seed, json!({}), Some(made));
    }
    let page = store.page();
    let (top, _) = page.split_once("## Answer").unwrap();
    assert!(top.contains("**Held-out files were also trained on: `dagon.txt`."), "{top}");
    assert!(top.contains("the last block is short *(2 runs)*"), "{top}");
}

#[test]
fn settings_that_can_t_be_followed_are_reported() {
    let report = json!({"baseline": "nobody", "method": "last_stride", "context_length": 99});
    let mut store = Store::new("s", None, json!({"name": "s", "report": report}));
    for name in ["a", "b"] {
        let mut made = Made::finished(json!({}));
        made.perplexity = vec![("prefix", 512, vec![2.0, 2.1])];
        store.point(&format!("rope={name}"), 0, json!({ "rope": name }), Some(made));
    }
    let page = store.page();
    assert!(page.contains("names `nobody`, which no point is called"), "{page}");
    assert!(page.contains("asks for `last_stride`, which no finished run has"), "{page}");
    assert!(page.contains("asks for 99, which no finished run has; 512 stands in"), "{page}");
}

#[test]
fn a_new_report_removes_what_the_old_one_wrote_and_nothing_else() {
    let store = rope_sweep(1);
    let out = tempfile::tempdir().unwrap();
    let page = write_report(store.path(), "rope_variants", out.path()).unwrap();
    let folder = page.parent().unwrap();
    assert_eq!(page, out.path().join("rope_variants/report.md"));
    assert!(folder.join("nll_by_position.svg").exists());
    std::fs::write(folder.join("notes.csv"), "mine").unwrap();

    store.db.execute_batch("DELETE FROM position_nll").unwrap();
    write_report(store.path(), "rope_variants", out.path()).unwrap();
    assert!(!folder.join("nll_by_position.svg").exists());
    assert!(!folder.join("nll_by_position.csv").exists());
    assert!(folder.join("perplexity_prefix.svg").exists());
    assert_eq!(std::fs::read_to_string(folder.join("notes.csv")).unwrap(), "mine");
    let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_report_that_fails_leaves_the_folder_as_it_was() {
    let store = rope_sweep(1);
    let out = tempfile::tempdir().unwrap();
    let page = write_report(store.path(), "rope_variants", out.path()).unwrap();
    let before = std::fs::read_to_string(&page).unwrap();
    store.db.execute_batch("UPDATE perplexity SET window_nll = 'no list'").unwrap();
    let error = write_report(store.path(), "rope_variants", out.path()).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("window_nll: expected JSON, found `no list`"), "{error}");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), before);
}

#[test]
fn the_command_names_what_is_missing() {
    let mut store = rope_sweep(1);
    store.point("rope=late", 0, json!({"rope": "late"}), None);
    let out = tempfile::tempdir().unwrap();
    let args = |sweep: &str, results: &Path, allow_partial: bool| ReportArgs {
        sweep: Some(sweep.into()),
        all: false,
        results: results.into(),
        out: out.path().into(),
        allow_partial,
    };
    let error = |args: ReportArgs| format!("{:#}", run(args).unwrap_err());
    let message = error(args("rope_variants", store.path(), false));
    assert!(message.contains("found 1 of 8 that have not"), "{message}");
    assert!(message.contains("help: finish the sweep, or give --allow-partial"), "{message}");
    run(args("rope_variants", store.path(), true)).unwrap();
    assert!(out.path().join("rope_variants/report.md").exists());

    let message = error(args("rope_variant", store.path(), false));
    assert!(message.contains("help: the store has rope_variants"), "{message}");
    let empty = tempfile::tempdir().unwrap();
    let message = error(args("rope_variants", empty.path(), false));
    assert!(message.contains("fathom.db: expected a store, found no such file"), "{message}");
}

/// A point that halving stopped is no failure, and its rungs are in a table.
#[test]
fn a_sweep_by_halving_shows_its_rungs() {
    let spec =
        json!({"search": {"halving": {"metric": "loss", "rungs": ["4096", 8192], "keep": 0.5}}});
    let mut store = Store::new("halved", Some("# Which rate?"), spec);
    let params = json!({
        "train.sequence_length": 2048, "train.micro_batch_size": 1, "train.gradient_accumulation_steps": 1,
    });
    let made = |losses: &[f64], status| Made {
        losses: losses.to_vec(),
        status,
        ..Made::finished(params.clone())
    };
    let axis = |rate: f64| json!({"train.learning_rate": rate});
    store.point("a", 0, axis(1e-3), Some(made(&[3.0, 2.5, 2.4, 2.25, 2.0, 1.75], "finished")));
    store.point("b", 0, axis(1e-4), Some(made(&[3.5, 3.25], "stopped")));
    let out = tempfile::tempdir().unwrap();
    fathom::report::write_report(store.path(), "halved", out.path()).unwrap();
    let page = std::fs::read_to_string(out.path().join("halved/report.md")).unwrap();
    assert!(page.contains("Of 2 runs, 1 was stopped at a rung (see *Rungs*)."), "{page}");
    let section = page.split("## Rungs").nth(1).unwrap().split("\n## ").next().unwrap();
    assert!(section.contains("| 2.5 | 2.25 | 1.75 |"), "{section}");
    assert!(section.contains("| 3.25 | – | 3.25 |"), "{section}");
    assert!(section.contains("stopped at a rung"), "{section}");
}

/// The reports in the repository are what the store in the repository gives, byte for byte:
/// `fathom report --all --results results/published`.
#[test]
fn the_published_reports_come_from_the_published_store() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = tempfile::tempdir().unwrap();
    write_reports(&root.join("results/published"), out.path()).unwrap();
    let (written, kept) = (tree(out.path()), tree(&root.join("reports")));
    // Beside them may be reports of sweeps that were run here.
    let of_store = |name: &String| {
        let top = name.split('/').next().unwrap_or_default();
        written.keys().any(|other| other.split('/').next() == Some(top))
    };
    let kept: BTreeMap<_, _> = kept.into_iter().filter(|(name, _)| of_store(name)).collect();
    assert_eq!(written.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    for (name, bytes) in &written {
        assert!(kept[name] == *bytes, "reports/{name} is not what the store gives");
    }
}

/// A sweep `s` over `x`: a label and its losses by seed; a seed without one has failed.
fn losses_sweep(labels: &[(&str, &[Option<f64>])]) -> Store {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for (name, losses) in labels {
        for (seed, loss) in (0..).zip(*losses) {
            let mut made = Made::finished(json!({}));
            match loss {
                Some(loss) => made.losses = vec![*loss; 3],
                None => made.status = "failed",
            }
            store.point(&format!("x={name}"), seed, json!({ "x": name }), Some(made));
        }
    }
    store
}

/// The lowest mean may be of other seeds than the baseline's, on whose own it is higher.
#[test]
fn a_paired_difference_that_points_the_other_way_is_said() {
    let answer = |labels: &[(&str, &[Option<f64>])]| {
        let page = losses_sweep(labels).page();
        let answer = page.split_once("## Answer\n\n").unwrap().1;
        answer.split_once("\n\n").unwrap().0.to_string()
    };
    let (all, one) = ([Some(4.0), Some(1.0)], [Some(3.0), None]);
    let found = answer(&[("a", &one), ("b", &all)]);
    let expected = ", but where both have a number it is 1 higher (one seed: no interval) than the baseline **a**; the means are not over \
                    the same seeds.";
    assert!(found.starts_with("**b** has the lowest") && found.contains(expected), "{found}");
    // The same where the best is the baseline, or another one is lower.
    let found = answer(&[("b", &all), ("a", &one)]);
    assert!(
        found.contains("the baseline itself, but where both have a number it is 1 higher"),
        "{found}"
    );
    let far = [Some(9.0), Some(9.5)];
    let found = answer(&[("far", &far), ("b", &all), ("a", &one)]);
    assert!(found.contains("Lower than it where both have a number: **a**."), "{found}");
}

#[test]
fn the_same_numbers_are_no_difference() {
    let two = [Some(2.0), Some(2.5)];
    let page = losses_sweep(&[("a", &two), ("b", &two)]).page();
    let expected =
        "**a** and **b** have the same numbers, and the lowest final training loss: **2.2";
    assert!(page.contains(expected), "{page}");
    assert!(page.contains(", the baseline itself, neither lower nor higher than **b**."), "{page}");
}

#[test]
fn why_a_baseline_is_not_compared_is_said() {
    let nan = Some(f64::NAN);
    for (baseline, expected) in [
        (
            [nan, Some(1.0)],
            "; the baseline **a** is not a number there, and can't be compared with it.",
        ),
        ([None, None], "; the baseline **a** has no finished run to compare it with."),
        (
            [None, Some(1.0)],
            "; the baseline **a** has finished with no seed that it has too, so the two can't be compared.",
        ),
    ] {
        let other = [Some(0.5), None];
        let page = losses_sweep(&[("a", &baseline), ("b", &other)]).page();
        assert!(page.contains(expected), "{expected}: {page}");
    }
}

/// What is no number past the window does not hold there.
#[test]
fn a_baseline_that_is_lost_past_its_window_breaks() {
    let store = rope_sweep(2);
    let plain = "run IN (SELECT id FROM runs WHERE run_id IN (SELECT run_id FROM points WHERE label = 'rope=plain'))";
    let lose = |from: i64| {
        let sql =
            format!("UPDATE perplexity SET nll = NULL WHERE context_length > {from} AND {plain}");
        store.db.execute_batch(&sql).unwrap();
        store.page()
    };
    store
        .db
        .execute_batch(&format!("DELETE FROM perplexity WHERE context_length = 1024 AND {plain}"))
        .unwrap();
    let page = store.page();
    assert!(page.contains(" (from 256 tokens, the training length, to 768)."), "{page}");
    let page = lose(256);
    assert!(page.contains("Past its window the baseline **plain** breaks: 1"), "{page}");
    assert!(page.contains(" → NaN (from 256 tokens, the training length, to 768)."), "{page}");
    let page = lose(0);
    assert!(page.contains("**plain** is not a number within its window already"), "{page}");
}

/// The store writes a window without a number as a word; an older one wrote null.
#[test]
fn a_window_that_is_no_number_is_read() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for (name, window) in [("a", 2.0), ("b", f64::NAN), ("c", f64::INFINITY)] {
        let mut made = Made::finished(json!({}));
        made.perplexity = vec![("prefix", 512, vec![2.5, window])];
        store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
    }
    let page = store.page();
    assert!(page.contains("**a** has the lowest perplexity at 512 tokens (prefix)"), "{page}");
    assert!(page.contains("| b | NaN |") && page.contains("left out: **b** and **c**."), "{page}");
    store
        .db
        .execute_batch("UPDATE perplexity SET window_nll = '[2.5,null]' WHERE run = 2")
        .unwrap();
    assert_eq!(store.page(), page);
}

/// A label that finished and lacks the longest length did finish, and does not decide by what length the others are judged.
#[test]
fn a_length_that_few_have_does_not_decide() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    let rates = [1e-5, 1e-4, 1e-3];
    for (rate, lengths) in rates.iter().zip([&[512, 1024, 2048][..], &[512, 1024], &[512]]) {
        let mut made = Made::finished(json!({"train.learning_rate": rate}));
        made.perplexity = lengths.iter().map(|&l| ("prefix", l, vec![2.0, 2.1])).collect();
        let settings = json!({ "train.learning_rate": rate });
        store.point(&format!("train.learning_rate={rate:e}"), 0, settings, Some(made));
    }
    let files = store.render();
    let page = &files["report.md"];
    assert!(page.contains("lowest perplexity at 1K tokens"), "{page}");
    assert!(
        page.contains(
            "2048, was evaluated for 1 of the 3 labels with a perplexity: labels are judged by 1024"
        ),
        "{page}"
    );
    assert!(!files["by_learning_rate.svg"].contains("did not finish"), "{page}");
    assert!(
        page.contains(" Not drawn: 1 finished run, without a perplexity at 1K tokens."),
        "{page}"
    );
}

/// Two labels that are called by one value are told apart by the writer, not by their place.
#[test]
fn a_baseline_that_may_be_several_is_not_guessed() {
    let spec = json!({"name": "s", "report": {"baseline": 0.1}});
    let mut store = Store::new("s", None, spec);
    for (a, b) in [(0.2, 0.1), (0.1, 0.3)] {
        let mut made = Made::finished(json!({}));
        made.losses = falling(2.0, 1);
        store.point(&format!("a={a} b={b}"), 0, json!({"a": a, "b": b}), Some(made));
    }
    let page = store.page();
    let expected = "`report.baseline` names `0.1`, which may be `a=0.2 b=0.1` or `a=0.1 b=0.3`; the first point stands in.";
    assert!(page.contains(expected), "{page}");
}

/// Where no larger value failed there is no bracket: the ceiling is at least what was found.
#[test]
fn a_search_that_nothing_stopped_says_where_it_ended() {
    let store = ceiling_sweep();
    store.db.execute_batch("UPDATE runs SET status = 'finished', asked_bytes = NULL").unwrap();
    let page = store.page();
    let expected = "**65,536**; no larger value failed. The ceiling is at least 65,536, the search's own upper end.";
    assert!(page.contains(expected), "{page}");
    assert!(!page.contains("bracket"), "{page}");
}

/// The index gives the whole first sentence, and its links survive any name.
#[test]
fn an_index_of_names_with_stops_and_signs() {
    let mut store = Store::new("50% #1", None, json!({"name": "50% #1"}));
    for (name, loss) in [("v1. big", 2.0), ("small", 2.5)] {
        let mut made = Made::finished(json!({}));
        made.losses = vec![loss; 3];
        store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
    }
    let out = tempfile::tempdir().unwrap();
    let index = std::fs::read_to_string(write_reports(store.path(), out.path()).unwrap()).unwrap();
    assert!(index.contains("[50% #1](50%25%20%231/report.md)"), "{index}");
    assert!(index.contains("| **v1. big** has the lowest final training loss: **2** (one seed, so there is no interval over seeds), the baseline itself, 0.5 lower"), "{index}");
}

/// Lengths that four digits can't tell apart have columns of their own.
#[test]
fn long_lengths_have_heads_of_their_own() {
    let mut store = Store::new("s", None, json!({"name": "s"}));
    for name in ["a", "b"] {
        let mut made = Made::finished(json!({}));
        made.perplexity = [12_350_001, 12_350_003].map(|l| ("prefix", l, vec![2.0])).to_vec();
        store.point(&format!("x={name}"), 0, json!({ "x": name }), Some(made));
    }
    let page = store.page();
    assert!(page.contains("| x | 12350001 | 12350003 |"), "{page}");
    let results = page.split("## Results").nth(1).unwrap().split("<details>").next().unwrap();
    assert_eq!(results.matches("\n| a |").count(), 1, "{results}");
}

/// What a recipe of a synthetic store answers.
fn recipe(store: &OpenStore, name: &str, set: &[&str]) -> fathom::cli::table::Table {
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    fathom::cli::sql::recipes::find(name).unwrap().answer(store, &set).unwrap()
}

/// A run that two sweeps have is one run where no sweep is named.
#[test]
fn recipes_count_a_run_of_two_sweeps_once() {
    let store = rope_sweep(2);
    store
        .db
        .execute_batch(
            "INSERT INTO sweeps (name, file, spec, planned_at) VALUES ('again', 'a.yaml', '{}', 0);
             INSERT INTO points SELECT 2, position, 'of again ' || label, seed, settings, run_id FROM points;
             UPDATE runs SET started_at = 1.0;
             INSERT INTO metric_keys (key) VALUES ('tokens');
             INSERT INTO metrics SELECT run, (SELECT id FROM metric_keys WHERE key = 'tokens'), step, step * 2048 FROM metrics
             WHERE key = (SELECT id FROM metric_keys WHERE key = 'loss');",
        )
        .unwrap();
    let open = OpenStore::open(store.path()).unwrap();
    let key = "key=train.sequence_length";
    for (name, set, rows) in [
        ("best_runs", &["limit=99"][..], 14),
        ("leaderboard", &["limit=99"], 14),
        ("slowest_runs", &["limit=99"], 14),
        ("recent_runs", &["limit=99"], 14),
        ("tokens_to_loss", &["loss=4.0"], 14),
        ("eval_curve", &[], 14),
        ("generalization_gap", &[], 14),
        ("runs_with_setting", &[key], 14),
        ("effect_of_setting", &[key], 1),
        // In one of them it has that one's label.
        ("best_runs", &["limit=99", "sweep=rope_variants"], 14),
    ] {
        let table = recipe(&open, name, set);
        assert_eq!(table.rows.len(), rows, "{name} {set:?}");
        let csv = table.render(Format::Csv);
        let is_one = set.contains(&"sweep=rope_variants");
        assert!(!csv.contains("of again") || !is_one, "{csv}");
        if name == "effect_of_setting" {
            assert!(csv.contains("\n256,14,"), "{csv}");
        }
    }
}

/// A mean has the numbers of all seeds that it counts, and only of runs that finished.
#[test]
fn recipes_take_means_of_what_they_count() {
    let store = rope_sweep(3);
    let of = |label: &str, seed: i64| {
        format!("(SELECT run_id FROM points WHERE label = 'rope={label}' AND seed = {seed})")
    };
    store
        .db
        .execute_batch(&format!(
            "UPDATE perplexity SET nll = NULL, perplexity = NULL WHERE run = (SELECT id FROM runs WHERE run_id = {});
             UPDATE runs SET last_loss = NULL WHERE run_id = {};
             UPDATE runs SET status = 'failed' WHERE run_id = {};",
            of("linear", 1),
            of("linear", 1),
            of("yarn2", 0)
        ))
        .unwrap();
    let open = OpenStore::open(store.path()).unwrap();
    let csv = |name: &str| recipe(&open, name, &[]).render(Format::Csv);
    let line = |csv: &str, start: &str| {
        csv.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{csv}"))
            .to_string()
    };
    let comparison = csv("comparison");
    assert!(
        line(&comparison, "rope=linear,512").starts_with("rope=linear,512,3,,,"),
        "{comparison}"
    );
    assert!(!line(&comparison, "rope=plain,512").contains(",,"), "{comparison}");
    let against = csv("perplexity_against_baseline");
    assert_eq!(line(&against, "rope=linear,512"), "rope=linear,512,3,,");
    assert!(line(&against, "rope=yarn2,512").starts_with("rope=yarn2,512,2,"), "{against}");
    let spread = csv("seed_spread");
    assert!(
        line(&spread, "rope_variants,rope=linear").starts_with("rope_variants,rope=linear,3,,,"),
        "{spread}"
    );
}
