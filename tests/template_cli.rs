//! `fathom template render`: every case of the reference, through the command line.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/template_cases");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn render(case: &Path, more: &[&str]) -> Output {
    let context = std::fs::read_to_string(case.join("context.json")).unwrap();
    let context: Value = serde_json::from_str(&context).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
    command.current_dir(case).env("HOME", "/home/user");
    command.args(["template", "render", context["main"].as_str().unwrap()]);
    for folder in context["searchpath"].as_array().unwrap() {
        command.args(["--search", folder.as_str().unwrap()]);
    }
    command.args(["--vars", &context["vars"].to_string()]);
    command.args(["--globals", &context["globals"].to_string()]);
    if context["preserve_line_numbers"] == true {
        command.arg("--keep-comments");
    }
    command.args(more).output().unwrap()
}

#[test]
fn row_11_template_cases_match_on_the_command_line() {
    for case in cases() {
        let expected = std::fs::read_to_string(case.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let text = render(&case, &[]);
        let graph = render(&case, &["--graph"]);
        let printed: Value = serde_json::from_slice(&graph.stdout).unwrap();
        if let Some(config) = expected.get("config") {
            assert!(graph.status.success(), "{}", case.display());
            assert_eq!(&printed["config"], config, "{}", case.display());
        } else {
            assert_eq!(graph.status.code(), Some(1), "{}", case.display());
            assert_eq!(printed["error"]["stage"], expected["error"]["stage"], "{}", case.display());
            assert!(graph.stderr.starts_with(b"error: "), "{}", case.display());
        }
        let rendered = expected["error"]["stage"] != "preprocess";
        assert_eq!(text.status.success(), rendered, "{}", case.display());
        let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap();
        assert_eq!(String::from_utf8(text.stdout).unwrap(), expected, "{}", case.display());
    }
}

#[test]
fn a_template_is_also_found_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("base.yaml"), "[a]\na: {{ x }}\n").unwrap();
    let child = folder.path().join("child.yaml");
    std::fs::write(&child, "-- extends 'base.yaml'\n[b]\nb: 1\n").unwrap();
    let run = |vars: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
        command.args(["template", "render"]).arg(&child).args(["--vars", vars, "--graph"]);
        command.output().unwrap()
    };
    let output = run("{\"x\": 1, \"y\": 2}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, json!({ "config": { "a": 1 } }));
    let said = String::from_utf8(output.stderr).unwrap();
    let lint = "child.yaml:2: expected a block that an ancestor has, found `[b]`, which is dropped";
    assert!(said.contains(lint), "{said}");
    assert!(
        said.contains("warning: --vars: y: expected a variable that a template reads"),
        "{said}"
    );

    let output = run("{}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["error"]["stage"], "preprocess");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("base.yaml:2: expected a defined value: `x` is undefined"), "{said}");

    let output = run("[1]");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "error: --vars: expected a JSON object, found `[1]`\n");
    assert!(output.stdout.is_empty());
}
