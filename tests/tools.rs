//! What people do with runs that were made: label them, remove them, ask, follow, export. Folders of runs in, text and files out.

#[path = "support/events.rs"]
mod events;

use events::step;
use fathom::run::lock;
use fathom::store::{PointRecord, RunRecord, SavedIdentity, Status, Store, SweepRecord};
use fathom_spec::config::written::Written;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{Event, EventKind, RunId, RunPaths};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A results folder with runs in it.
struct Results {
    dir: TempDir,
}

const BEGAN: f64 = 1_767_225_600.0; // 2026-01-01

impl Results {
    fn new() -> Results {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap();
        Results { dir }
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path()).unwrap()
    }

    fn paths(&self, run: &str) -> RunPaths {
        RunPaths::in_results(self.dir.path(), &RunId(format!("{run:0<12}")))
    }

    /// Makes a run whose id is `name` and zeros, on a model, with a log: event n at n seconds.
    fn run(&self, name: &str, model: &str, events: &[EventKind]) {
        let text = format!(
            "model: {{path: '{model}'}}\ndata: {{corpus: texts}}\ntrain: {{sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}}\n"
        );
        let config = RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap();
        let paths = self.paths(name);
        std::fs::create_dir_all(&paths.folder).unwrap();
        std::fs::write(paths.config(), config.to_yaml()).unwrap();
        let identity = SavedIdentity {
            identity: RunIdentity { run_hash: format!("{name:0<64}"), group_hash: "9".repeat(64) },
            digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
            model_files: Vec::new(),
            created_at: BEGAN,
        };
        identity.write(&paths).unwrap();
        let line = |(seq, kind): (usize, &EventKind)| {
            let (time, kind) = (BEGAN + seq as f64, kind.clone());
            let event = Event { v: 1, seq: seq as u64, time, elapsed_seconds: seq as f64, kind };
            serde_json::to_string(&event).unwrap() + "\n"
        };
        let log: String = events.iter().enumerate().map(line).collect();
        std::fs::write(paths.events(), log).unwrap();
        let mut store = self.store();
        store.upsert_run(&RunRecord { identity: &identity, config: &config }).unwrap();
        store.ingest_run(&identity.run_id()).unwrap();
    }

    /// Makes runs the points of a sweep.
    fn sweep(&self, name: &str, runs: &[&str]) {
        let sweep = SweepRecord {
            name: name.into(),
            file: format!("{name}.yaml"),
            question: None,
            spec: json!({}),
            planned_at: BEGAN,
        };
        let points: Vec<PointRecord> = runs
            .iter()
            .enumerate()
            .map(|(position, run)| PointRecord {
                position: position as u64,
                label: format!("rope={run}"),
                seed: 0,
                settings: json!({}),
                run_id: RunId(format!("{run:0<12}")),
            })
            .collect();
        self.store().upsert_sweep(&sweep, &points).unwrap();
    }

    fn fathom(&self, arguments: &[&str]) -> Output {
        Command::new(assert_cmd::cargo::cargo_bin!("fathom"))
            .current_dir(self.dir.path())
            .args(arguments)
            .args(["--results", "."])
            .output()
            .unwrap()
    }

    #[track_caller]
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.fathom(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.fathom(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

fn started() -> EventKind {
    EventKind::Started {
        attempt: 1,
        resumed_from_step: 0,
        pid: 100,
        code_version: "0.1.0".into(),
        git_commit: None,
        git_dirty: None,
        host: "here".into(),
        device: "cpu".into(),
        device_name: "a processor".into(),
        driver: None,
        libtorch: "2.11.0".into(),
        threads: 2,
        seed: 0,
        environment: BTreeMap::new(),
    }
}

fn eval(step: u64, loss: f64) -> EventKind {
    EventKind::Eval { step, split: "validation".into(), loss, tokens: 9 }
}

fn checkpoint(step: u64) -> EventKind {
    EventKind::Checkpoint { step, path: format!("checkpoints/step-{step:08}"), bytes: 2048 }
}

fn finished() -> Vec<EventKind> {
    let end = EventKind::Finished { step: 2, tokens: 128, seconds: 4.0 };
    vec![started(), step(1, 3.0), step(2, 2.5), eval(2, 2.75), checkpoint(2), end]
}

/// The checkpoint that [`finished`] speaks of.
fn write_checkpoint(paths: &RunPaths) {
    std::fs::create_dir_all(paths.checkpoint(2)).unwrap();
    std::fs::write(paths.checkpoint(2).join("model.safetensors"), [0; 2048]).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn labels_live_in_the_runs_folder_and_outlive_the_database() {
    let results = Results::new();
    results.run("a1", "models/tiny", &finished());
    results.run("b2", "models/tiny", &finished());
    let said = results.said(&["runs", "tag", "a1", "b2", "+good", "+draft"]);
    assert!(said.contains("a10000000000  draft, good"), "{said}");
    results.said(&["runs", "tag", "b2", "-draft"]);
    results.said(&["runs", "note", "a1", "the one of the talk\nsecond line"]);
    let check = || {
        let tagged = |tag: &str| {
            let list = ["runs", "ls", "--tag", "good", "--tag", tag, "--format", "json"];
            results.said(&list).lines().filter(|line| line.starts_with('{')).count()
        };
        assert_eq!((tagged("good"), tagged("draft"), tagged("none")), (2, 1, 0));
        assert_eq!(results.said(&["runs", "note", "a1"]), "the one of the talk\nsecond line\n");
        let show = results.said(&["runs", "show", "a1"]);
        assert!(show.contains("tags         draft, good\n"), "{show}");
        let recipe =
            results.said(&["sql", "--recipe", "labelled", "--set", "tag=draft", "--format", "csv"]);
        assert!(recipe.starts_with("run_id,") && recipe.contains("\"draft,good\""), "{recipe}");
    };
    check();
    std::fs::remove_file(results.file("fathom.db")).unwrap();
    results.said(&["runs", "rebuild"]);
    check();
    results.said(&["runs", "note", "a1", ""]);
    assert_eq!(results.said(&["runs", "note", "a1"]), "run a10000000000: no note\n");

    let message = results.refused(&["runs", "tag", "a1", "+two words"]);
    assert!(
        message.contains("tag: expected one word without commas, found `two words`"),
        "{message}"
    );
    let message = results.refused(&["runs", "tag", "a1"]);
    assert!(message.contains("expected `+TAG` or `-TAG`, found only runs"), "{message}");
    std::fs::remove_dir_all(results.paths("b2").folder).unwrap();
    let message = results.refused(&["runs", "tag", "b2", "+x"]);
    assert!(message.contains("expected the run's folder, which keeps its tags"), "{message}");
}

#[test]
fn a_run_is_removed_when_it_may_be() {
    let results = Results::new();
    for name in ["a1", "b2", "c3"] {
        results.run(name, "models/tiny", &finished());
    }
    results.sweep("rope", &["b2"]);
    // Asked first, nothing goes.
    let said = results.said(&["runs", "rm", "a1", "c3"]);
    assert!(said.contains("would remove 2 runs") && said.contains("runs rm a1 c3 --yes"), "{said}");
    assert!(results.paths("a1").folder.exists());
    // One that must not go keeps all of them.
    let message = results.refused(&["runs", "rm", "a1", "b2", "--yes"]);
    assert!(message.contains("found point 0 of `rope`: rope=b2\n  help: --force"), "{message}");
    assert!(results.paths("a1").folder.exists());
    let held = lock(&results.paths("c3")).unwrap().unwrap();
    let message = results.refused(&["runs", "rm", "c3", "--yes", "--force"]);
    assert!(message.contains("run c30000000000: expected a run that nobody has"), "{message}");
    drop(held);
    results.said(&["runs", "rm", "a1", "c3", "--yes"]);
    results.said(&["runs", "rm", "b2", "--yes", "--force"]);
    assert_eq!(names(&results.file("runs")), Vec::<String>::new());
    assert_eq!(results.store().runs().unwrap(), []);
    assert_eq!(results.store().points("rope").unwrap().len(), 1, "the point stays");
    assert_eq!(
        results.said(&["sql", "SELECT count(*) AS n FROM metrics", "--format", "csv"]),
        "n\n0\n"
    );
}

#[test]
fn garbage_is_what_nothing_refers_to() {
    let results = Results::new();
    results.run("a1", "models/tiny", &finished());
    // Trained on from a1's checkpoint, and b2's is tagged.
    let named = "runs/a10000000000/checkpoints/step-00000002";
    results.run("b2", named, &finished());
    results.run("c3", "models/tiny", &finished());
    results.run("d4", "models/tiny", &[started(), step(1, 3.0), checkpoint(2)]);
    for name in ["a1", "b2", "c3", "d4"] {
        write_checkpoint(&results.paths(name));
    }
    results.said(&["runs", "tag", "b2", "+keep"]);
    std::fs::create_dir_all(results.paths("c3").checkpoints().join("step-00000003.part")).unwrap();
    std::fs::create_dir_all(results.file("runs/nothing/checkpoints")).unwrap();
    std::fs::create_dir_all(results.file("cache")).unwrap();
    std::fs::write(results.file("cache/tokens"), [0; 100]).unwrap();

    let listed = results.said(&["runs", "gc"]);
    let kinds: Vec<Vec<&str>> = listed
        .lines()
        .skip(2)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    assert_eq!(
        kinds,
        [
            ["checkpoints", "./runs/c30000000000/checkpoints/step-00000002"],
            ["orphans", "./runs/c30000000000/checkpoints/step-00000003.part"],
            ["cache", "./cache"],
            ["orphans", "./runs/nothing"],
        ],
        "{listed}"
    );
    assert!(listed.contains("2.1 KiB may go; nothing is removed yet"), "{listed}");
    assert!(results.paths("c3").checkpoint(2).exists());
    results.said(&["runs", "gc", "--only", "cache", "--yes"]);
    assert!(!results.file("cache").exists() && results.paths("c3").checkpoint(2).exists());
    results.said(&["runs", "gc", "--yes"]);
    assert_eq!(names(&results.paths("c3").checkpoints()), Vec::<String>::new());
    assert!(!results.file("runs/nothing").exists());
    for name in ["a1", "b2", "d4"] {
        assert!(results.paths(name).checkpoint(2).exists(), "{name}");
    }
    assert_eq!(results.said(&["runs", "gc"]), "nothing may go\n");
}

/// What the published runs don't have: failures, warnings, samples, points without a run.
#[test]
fn recipes_answer_about_what_went_wrong() {
    let results = Results::new();
    let sample = EventKind::Sample { step: 1, prompt: "Once".into(), text: " upon".into() };
    let warning = EventKind::Warning { message: "the card is slow".into() };
    let failed = EventKind::Failed { error: "no such file".into() };
    results.run("a1", "models/tiny", &[started(), step(1, 3.0), sample, warning, failed]);
    results.sweep("rope", &["a1", "b2"]);
    let ask = |name: &str| results.said(&["sql", "--recipe", name, "--format", "csv"]);
    assert_eq!(
        ask("failures"),
        format!(
            "run_id,sweep,label,seed,status,step,status_detail,ended_at\n\
             a10000000000,rope,rope=a1,0,failed,1,no such file,{}\n",
            BEGAN + 4.0
        )
    );
    assert_eq!(
        ask("missing_points"),
        "sweep,position,label,seed,run_id,status,status_detail\n\
         rope,0,rope=a1,0,a10000000000,failed,no such file\n\
         rope,1,rope=b2,0,b20000000000,never begun,\n"
    );
    assert_eq!(ask("samples"), "run_id,step,prompt,text\na10000000000,1,Once, upon\n");
    assert_eq!(ask("warnings"), "message,runs,one_of_them\nthe card is slow,1,a10000000000\n");
    assert_eq!(
        ask("sweep_status"),
        "sweep,points,finished,other_results,without_result,running,to_do\nrope,2,0,0,1,0,1\n"
    );
    let printed = results.said(&["sql", "--recipe", "failures", "--print"]);
    assert!(printed.starts_with("-- The runs that ended without a result"), "{printed}");
    assert!(results.said(&["sql", "--recipes"]).contains("best_runs"));
    results.said(&["sql", "--recipe", "failures", "--format", "parquet", "--output", "f.parquet"]);
    assert!(std::fs::read(results.file("f.parquet")).unwrap().starts_with(b"PAR1"));
    // What is written over the store itself is lost.
    let before = std::fs::read(results.file("fathom.db")).unwrap();
    for own in ["fathom.db", "./runs/../fathom.db", "fathom.db-wal"] {
        let message = results.refused(&["sql", "SELECT 1", "-o", own]);
        let expected = format!("--output: expected the name of a file of your own, found {own}");
        assert!(message.contains(&expected), "{message}");
    }
    assert!(std::fs::read(results.file("fathom.db")).unwrap() == before);
    let message = results.refused(&["sql", "SELECT 1", "--format", "parquet"]);
    assert!(message.contains("--output <FILE>"), "{message}");
}

#[test]
fn runs_are_compared_side_by_side() {
    let results = Results::new();
    for (name, model) in [("a1", "models/tiny"), ("b2", "models/small"), ("c3", "models/tiny")] {
        results.run(name, model, &finished());
    }
    let table = results.said(&["runs", "compare", "a1", "b2", "c3", "--format", "csv"]);
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("what,key,a10000000000,b20000000000,c30000000000"));
    assert_eq!(lines.next(), Some("setting,model.path,models/tiny,models/small,models/tiny"));
    assert!(table.contains("\nresult,loss,2.5,2.5,2.5\n"), "{table}");
    results.sweep("rope", &["a1", "c3"]);
    let table = results.said(&["runs", "compare", "--sweep", "rope", "--format", "csv"]);
    assert!(table.starts_with("what,key,a10000000000,c30000000000\nresult,"), "{table}");
    let message = results.refused(&["runs", "compare", "a1"]);
    assert!(message.contains("expected two runs or more to compare, found 1"), "{message}");
}

#[test]
fn a_run_is_followed_until_it_ends() {
    let results = Results::new();
    results.run("a1", "models/tiny", &finished());
    let all = results.said(&["tail", "a1"]);
    assert_eq!(
        all,
        "00:00:00  started       attempt 1 on here, cpu (a processor)\n\
         00:00:01  step 1        loss 3        grad norm 1.5      learning rate 1e-5      64 tokens, 128 a second, peak 101.0 MiB\n\
         00:00:02  step 2        loss 2.5      grad norm 1.5      learning rate 1e-5      128 tokens, 128 a second, peak 102.0 MiB\n\
         00:00:03  eval          step 2: loss 2.75 on validation\n\
         00:00:04  checkpoint    step 2: checkpoints/step-00000002, 2.0 KiB\n\
         00:00:05  finished      2 steps, 128 tokens, 4.0 s\n"
    );
    let last = results.said(&["tail", "a1", "-n", "1", "--no-follow", "--json"]);
    assert!(last.starts_with("{\"v\":1,\"seq\":5,") && last.lines().count() == 1, "{last}");
    // Nobody has it, and it said no ending: there is nothing to wait for.
    results.run("b2", "models/tiny", &[started(), step(1, 3.0)]);
    let output = results.fathom(&["tail", "b2", "-n", "all"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody has the run any more"));
    std::fs::remove_dir_all(results.paths("a1").folder).unwrap();
    let message = results.refused(&["tail", "a1", "--no-follow"]);
    assert!(message.contains("the run is finished, and its log is gone\n  help: "), "{message}");
    let message = results.refused(&["top", "--sweep", "nope"]);
    assert!(message.contains("--sweep: expected one of the 0 sweeps of the store"), "{message}");
    let message = results.refused(&["tail", "zz"]);
    assert!(message.contains("expected the id of a run"), "{message}");
}

#[test]
fn logs_are_told_in_numbers() {
    let results = Results::new();
    results.run("a1", "models/tiny", &finished());
    results.run("b2", "models/tiny", &[started(), step(1, 3.0)]);
    // Killed: its last line is half written, and nobody has it. No store is asked.
    let live = results.paths("b2").events();
    let torn = std::fs::read_to_string(&live).unwrap() + "{\"v\":1,\"se";
    std::fs::write(&live, torn).unwrap();
    let lines = results.said(&[
        "logs",
        "summary",
        "runs/a10000000000/events.jsonl",
        "runs/b20000000000",
        "--format",
        "one-line",
    ]);
    assert_eq!(
        lines,
        "a10000000000 | finished | steps=2 | time=5.0 s | loss=2.5 | best=2.5 | eval=2.75 | tok/s=128.0 | peak=102.0 MiB\n\
         b20000000000 | dead | steps=1 | time=1.0 s | loss=3 | best=3 | eval=- | tok/s=128.0 | peak=101.0 MiB\n"
    );
    // The same from the store as from the log.
    let summary = |name: &str| {
        let text = results.said(&["logs", "summary", name, "--format", "json"]);
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[0]["log_path"] = "".into();
        value
    };
    assert_eq!(summary("a1"), summary("runs/a10000000000"));
    let row = &summary("a1")[0];
    assert_eq!((&row["best_loss_step"], &row["avg_loss"]), (&2.into(), &2.75.into()));
    let page = results.said(&["logs", "summary", "a1"]);
    assert!(
        page.starts_with("a10000000000\n============\nrun  ")
            && page.contains("best held-out loss  2.75 at step 2\n"),
        "{page}"
    );
    let message = results.refused(&["logs", "summary", "runs/none"]);
    assert!(message.contains("runs/none: expected a run's folder or a file in it"), "{message}");
    assert!(results.said(&["logs", "list"]).contains("runs/a10000000000/events.jsonl"));
}

#[test]
fn logs_are_drawn() {
    let results = Results::new();
    let steps = (1..=40).map(|n| step(n, 2.0 + 1.0 / n as f64));
    let events: Vec<EventKind> =
        [started()].into_iter().chain(steps).chain([eval(40, 2.4)]).collect();
    results.run("a1", "models/tiny", &events);
    results.run("b2", "models/tiny", &finished());
    let read = |name: &str| std::fs::read_to_string(results.file(name)).unwrap();
    results.said(&[
        "logs", "plot", "a1", "b2", "--smooth", "5", "--x-axis", "tokens", "-o", "two.svg",
    ]);
    let two = read("two.svg");
    for text in [
        "a10000000000",
        "b20000000000",
        "tokens seen",
        "mean of 5 steps",
        "training loss (nats per token)",
    ] {
        assert!(two.contains(text), "{text}");
    }
    results.said(&["logs", "plot", "a1", "--loss-curves", "-o", "curves.svg"]);
    let curves = read("curves.svg");
    for text in ["held out", "learning rate", "id=\"title0\"", "id=\"title1\""] {
        assert!(curves.contains(text), "{text}");
    }
    // Without a run named: the one that began last. The default file is plot.svg.
    assert_eq!(results.said(&["logs", "plot", "--metrics", "grad_norm"]), "plot.svg\n");
    let message = results.refused(&["logs", "plot", "a1", "--metrics", "grad_nrm"]);
    assert!(message.contains("found `grad_nrm`\n  help: did you mean `grad_norm`?"), "{message}");
    let message = results.refused(&["logs", "plot", "a1", "-o", "x.pdf"]);
    assert!(message.contains("expected a file that ends with .svg or .png"), "{message}");
}

#[test]
fn runs_are_exported() {
    let results = Results::new();
    results.run("a1", "models/tiny", &finished());
    results.run("b2", "models/tiny", &finished());
    results.sweep("rope", &["a1"]);
    assert_eq!(results.said(&["export", "csv", "--all", "-o", "csv"]), "csv: 2 runs\n");
    let read = |name: &str| std::fs::read_to_string(results.file(name)).unwrap();
    assert_eq!(
        names(&results.file("csv")),
        ["metrics.csv", "params.csv", "perplexity.csv", "position_nll.csv", "runs.csv"]
    );
    assert!(read("csv/metrics.csv").contains("a10000000000,loss,2,2.5\n"));
    assert_eq!(read("csv/runs.csv").lines().count(), 3);
    results.said(&["export", "parquet", "b2", "-o", "parquet"]);
    assert!(std::fs::read(results.file("parquet/metrics.parquet")).unwrap().starts_with(b"PAR1"));

    results.said(&["export", "tensorboard", "a1", "b2", "-o", "tb"]);
    let of_point = results.file("tb/rope/rope=a1_seed0_a10000");
    assert_eq!(names(&of_point), ["events.out.tfevents.1767225600.fathom.0000"]);
    assert!(results.file("tb/b20000000000/events.out.tfevents.1767225600.fathom.0000").is_file());
    results.said(&["export", "mlflow", "--sweep", "rope", "-o", "mlruns"]);
    let experiment = results.file("mlruns").join(&names(&results.file("mlruns"))[0]);
    let loss = experiment.join(format!("{:0<32}", "a1")).join("metrics/loss");
    // The times are those of the log.
    assert_eq!(std::fs::read_to_string(loss).unwrap(), "1767225601000 3 1\n1767225602000 2.5 2\n");

    let said = results.said(&["tb", "--sweep", "rope", "--no-start"]);
    assert_eq!(said, "./cache/tensorboard: 1 run\n");
    assert_eq!(names(&results.file("cache/tensorboard/rope")), ["rope=a1_seed0_a10000"]);
    // The model that a run wrote knows its run.
    std::fs::create_dir(results.file("model")).unwrap();
    std::fs::write(results.file("model/fathom-run.json"), "{\"run\": \"b20000000000\"}").unwrap();
    results.said(&["tb", "--output-dir", "model", "--no-start"]);
    assert_eq!(names(&results.file("cache/tensorboard")), ["b20000000000"]);
    let message = results.refused(&["export", "csv", "-o", "x"]);
    assert!(message.contains("<RUNS>"), "{message}");
    assert_eq!(
        results.store().run(&RunId("a10000000000".into())).unwrap().unwrap().status,
        Status::Finished
    );
}
