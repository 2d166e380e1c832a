//! The command line as its users meet it: what the README lists is there, it starts at once, and it prints what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn program() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("fathom").to_path_buf()
}

fn fathom(arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(root()).args(arguments).output().unwrap()
}

#[track_caller]
fn said(arguments: &[&str]) -> String {
    let output = fathom(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = fathom(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The store that the published reports came from.
const PUBLISHED: [&str; 2] = ["--results", "results/published"];

#[test]
fn every_command_of_the_readme_has_help() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let commands: Vec<Vec<&str>> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `fathom "))
        .map(|line| {
            let words = line.split('`').next().unwrap().split_whitespace();
            words.take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect()
        })
        .collect();
    assert!(commands.len() >= 9, "{commands:?}");
    for mut command in commands {
        let words = command.join(" ");
        command.push("--help");
        let help = said(&command);
        assert!(help.contains("Usage:") && help.contains(&words), "{words}: {help}");
    }
}

#[test]
fn it_starts_in_milliseconds_and_without_libtorch() {
    let time = |_| {
        let begun = Instant::now();
        said(&["--help"]);
        begun.elapsed()
    };
    // The least of many: what other programs do meanwhile is not its fault.
    let least = (0..40).map(time).min().unwrap();
    assert!(least < Duration::from_millis(20), "fathom --help takes {least:?}");
    // The loader lists what it would load, and runs nothing.
    let output = Command::new(program()).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    let libraries = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(libraries.contains("libc.so"), "{libraries}");
    // By whole names: an address may have `c10` in it.
    assert!(!libraries.contains("libtorch") && !libraries.contains("libc10"), "{libraries}");
}

#[test]
fn both_programs_are_small() {
    let folder = program().parent().unwrap().to_path_buf();
    let sizes =
        ["fathom", "fathom-engine"].map(|name| std::fs::metadata(folder.join(name)).unwrap().len());
    assert!(sizes.iter().sum::<u64>() < 60 << 20, "{sizes:?}");
}

#[test]
fn sql_prints_in_every_format() {
    let ask = |format: &str| {
        let query = "SELECT label, context_length, round(perplexity, 2) AS perplexity FROM v_comparison
                     WHERE sweep = 'rope_variants' AND method = 'last_stride' AND context_length = 32768 AND label LIKE '%yarn%'";
        said(&["sql", PUBLISHED[0], PUBLISHED[1], "--format", format, query])
    };
    assert_eq!(
        ask("csv"),
        "label,context_length,perplexity\nrope=yarn2,32768,2382.31\nrope=yarn4,32768,50.57\n"
    );
    assert!(
        ask("markdown").starts_with("| label | context_length | perplexity |\n"),
        "{}",
        ask("markdown")
    );
    assert!(
        ask("table").starts_with("label       context_length  perplexity\n"),
        "{}",
        ask("table")
    );
    let json: serde_json::Value = serde_json::from_str(&ask("json")).unwrap();
    assert_eq!(json[1]["label"], "rope=yarn4");
    let views = said(&["sql", PUBLISHED[0], PUBLISHED[1]]);
    assert!(views.contains("v_comparison") && views.contains("v_runs"), "{views}");
}

#[test]
fn runs_are_listed_shown_and_compared() {
    let list = said(&[
        "runs",
        "ls",
        "--sweep",
        "learning_rate",
        "--status",
        "finished",
        PUBLISHED[0],
        PUBLISHED[1],
    ]);
    assert_eq!(list.lines().count(), 20, "{list}");
    let ids: Vec<&str> =
        list.lines().skip(2).map(|line| line.split_whitespace().next().unwrap()).collect();
    let show = said(&["runs", "show", &ids[0][..6], PUBLISHED[0], PUBLISHED[1]]);
    assert!(
        show.starts_with(&format!("run {}: finished\n", ids[0]))
            && show.contains("train.learning_rate"),
        "{show}"
    );
    let diff = said(&["runs", "diff", ids[0], ids[17], PUBLISHED[0], PUBLISHED[1]]);
    assert!(
        diff.contains("train.learning_rate") && !diff.contains("train.sequence_length"),
        "{diff}"
    );
}

/// A 7B on a 24 GiB card that is not here: what it takes, and by what it would fit.
#[test]
fn a_run_is_predicted_before_it_starts() {
    let plan = |settings: &[&str]| {
        let mut arguments = vec!["plan", "templatelib/long_context/llama2_7b.yaml"];
        arguments.extend(["--device-memory", "80GiB", "--host-memory", "128GiB"]);
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        arguments.push("--json");
        serde_json::from_str::<serde_json::Value>(&said(&arguments)).unwrap()
    };
    let fits = plan(&["run.memory_cap=24GiB", "train.recompute=layer"]);
    assert_eq!((&fits["fits"], &fits["engine"]), (&true.into(), &"layered".into()), "{fits}");
    assert!(fits["peak_allocated"].as_u64().unwrap() < 24 << 30, "{fits}");
    assert!((6.1e15..6.3e15).contains(&fits["hardware_flops"].as_f64().unwrap()), "{fits}");
    // Left open, less is computed twice.
    let chosen = plan(&["run.memory_cap=24GiB"]);
    assert_eq!(chosen["settings"]["recompute"], "mlp", "{chosen}");
    assert!(chosen["hardware_flops"].as_f64() < fits["hardware_flops"].as_f64(), "{chosen}");
    let plain = plan(&["run.memory_cap=24GiB", "train.engine=plain"]);
    assert_eq!(plain["fits"], false, "{plain}");
    assert_eq!(plain["wall"]["moved_by"], "train.engine: layered", "{plain}");
    let page = said(&[
        "plan",
        "templatelib/tiny_llama/pretrain.yaml",
        "--set",
        "run.device=cpu",
        "--host-memory",
        "8GiB",
    ]);
    for expected in ["engine                 plain", "first wall", "verdict                fits"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
}

#[test]
fn mistakes_say_the_way_out() {
    for (arguments, expected) in [
        (&["sweep", "run", "none.yaml"][..], "none.yaml: expected a sweep file that can be read"),
        (
            &["runs", "ls", "--results", "nowhere"],
            "nowhere/fathom.db: expected a database of runs, found none\n  help: ",
        ),
        (
            &["sql", "--results", "results/published", "SELECT * FROM v_run"],
            "did you mean `v_runs`?",
        ),
        (
            &["sql", "--results", "results/published", "DELETE FROM runs"],
            "expected one that only reads",
        ),
        (
            &["sql", "--results", "results/published", "--print", "SELECT 1"],
            "--print: expected --recipe NAME beside it, found none",
        ),
        (
            &["sql", "--results", "results/published", "--set", "limit=3", "SELECT 1"],
            "--set: expected it with --recipe, found it without",
        ),
        (
            &["report", "rope_variant", "--results", "results/published"],
            "the store has context_ceiling, engines, engines_bfloat16, learning_rate, memory_ladder, million_tokens, plain_context_ceiling, rope_variants",
        ),
        (
            &["sweep", "plan", "experiments/rope_variants.yaml", "--set", "x"],
            "--set: expected `key.path=value`, found `x`",
        ),
        (&["runs", "show", "zz", "--results", "results/published"], "expected the id of a run"),
        (&["runs", "show", "", "--results", "results/published"], "found nothing"),
        (&["sweeep"], "sweep"),
    ] {
        let message = refused(arguments);
        assert!(
            message.starts_with("error: ") && message.contains(expected),
            "{arguments:?}: {message}"
        );
        assert!(!message.contains("panicked"), "{message}");
    }
    assert!(!root().join("nowhere").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let query = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000) SELECT x FROM n";
    let mut child = Command::new(program())
        .current_dir(root())
        .args(["sql", PUBLISHED[0], PUBLISHED[1], query])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
