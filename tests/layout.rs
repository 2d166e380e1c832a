//! The shape of the program, held to: which module may use which, and what stays out of where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A crate, a module of it, and the modules of the same crate that it may use. What is not listed uses none.
const MAY_USE: &[(&str, &str, &[&str])] = &[
    ("spec", "config", &["units"]),
    ("spec", "components", &["config", "project", "template", "units"]),
    ("spec", "plan", &["config", "units"]),
    ("spec", "project", &["config", "template"]),
    ("spec", "template", &["config"]),
    ("data", "cache", &["corpus", "tokenizer"]),
    ("data", "dataset", &["corpus", "packing", "tokenizer"]),
    ("data", "samples", &["corpus"]),
    ("data", "tokenizer", &["gguf"]),
    ("engine", "assemble", &["facts", "model", "torch"]),
    (
        "engine",
        "child",
        &["assemble", "build_info", "eval", "facts", "provenance", "torch", "train"],
    ),
    ("engine", "eval", &["model"]),
    ("engine", "kernels", &["torch"]),
    ("engine", "model", &["torch"]),
    ("engine", "provenance", &["build_info", "facts"]),
    ("engine", "train", &["eval", "facts", "kernels", "model", "torch"]),
    ("harness", "cli", &["export", "report", "run", "store", "sweep"]),
    ("harness", "export", &["store"]),
    ("harness", "run", &["store"]),
    ("harness", "sweep", &["run", "store"]),
];

/// What must not be named below a path of `src/`.
const ABSENT: &[(&str, &[&str])] = &[
    ("spec", &["tch::", "rusqlite", "fathom_data", "fathom_engine"]),
    ("data", &["tch::", "rusqlite", "fathom_engine"]),
    ("engine", &["rusqlite"]),
    ("engine/model", &["println!", "RunConfig", "std::process"]),
    ("engine/train", &["println!", "rusqlite"]),
    ("harness", &["tch::", "fathom_engine::"]),
    ("harness/sweep/plan", &["rusqlite", "crate::store"]),
    ("harness/sweep/search.rs", &["rusqlite", "crate::store", "std::process"]),
    (
        "harness/report",
        &["crate::run", "crate::sweep", "process::Command", "SystemTime", "std::env"],
    ),
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src")
}

/// The Rust files below `path`, with their text.
fn sources(path: &Path) -> Vec<(PathBuf, String)> {
    if path.is_file() {
        return vec![(path.to_path_buf(), std::fs::read_to_string(path).unwrap())];
    }
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            match path.is_dir() || path.extension().is_some_and(|e| e == "rs") {
                true => sources(&path),
                false => Vec::new(),
            }
        })
        .collect()
}

/// The modules that `crate::NAME` and `crate::{NAME, …}` name.
fn used(text: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    text.split("crate::")
        .skip(1)
        .flat_map(|after| match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or("").split(',').map(word).collect(),
            None => vec![word(after)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_only_what_they_may() {
    for krate in ["spec", "data", "engine", "harness"] {
        let root = src().join(krate);
        for (path, text) in sources(&root) {
            let relative = path.strip_prefix(&root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = first.trim_end_matches(".rs");
            if ["lib", "main", "build"].contains(&module) {
                continue;
            }
            let entry = MAY_USE.iter().find(|(of, name, _)| *of == krate && *name == module);
            let allowed = entry.map_or(&[][..], |(_, _, uses)| uses);
            for name in used(&text) {
                assert!(
                    name == module || allowed.contains(&name.as_str()),
                    "src/{krate}/{}: `{module}` may use {allowed:?}, found `crate::{name}`",
                    relative.display()
                );
            }
        }
    }
}

#[test]
fn what_is_to_be_absent_is_absent() {
    for (place, words) in ABSENT {
        for (path, text) in sources(&src().join(place)) {
            // Tests at a file's end may do as they like.
            let code = text.split("#[cfg(test)]").next().unwrap_or("");
            for word in *words {
                assert!(
                    !code.contains(word),
                    "{}: `{word}` has no place under src/{place}",
                    path.display()
                );
            }
        }
    }
}
