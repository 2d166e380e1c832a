//! Compiles the C++ shim against LibTorch's headers and gives every binary the run path of its libraries.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn main() {
    println!("cargo:rerun-if-changed=torch/shim.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let link = PathBuf::from(env::var("LIBTORCH").unwrap_or_default());
    let include = link.join("include");
    assert!(
        include.join("ATen/ATen.h").is_file(),
        "expected LibTorch's link folder at LIBTORCH={}, found no headers\n  help: run tools/fetch_libtorch.sh (`make` does)",
        link.display()
    );
    compile_shim(&include);
    record_commit();
    // The libraries where they were fetched to. LD_LIBRARY_PATH goes first, so one binary serves other machines too.
    if let Ok(path) = std::fs::read_to_string(link.join("runtime-path")) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.trim());
    }
}

/// Compiles the shim, unless the one that is there was made of what is there: this script also runs when other sources change.
fn compile_shim(include: &Path) {
    let out = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    let archive = out.join("libfathom_shim.a");
    let stamp = out.join("shim-of");
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let made_of = format!(
        "{} {:?} {:?}",
        include.display(),
        modified(Path::new("torch/shim.cpp")),
        modified(Path::new("build.rs"))
    );
    if archive.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|text| text == made_of) {
        println!("cargo:rustc-link-lib=static=fathom_shim");
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=stdc++");
        return;
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // LibTorch's headers are not ours to warn about.
        .warnings(false)
        .flag_if_supported("-w")
        .opt_level(1)
        .include(include)
        .include(include.join("torch/csrc/api/include"))
        .file("torch/shim.cpp")
        .compile("fathom_shim");
    // Without it the shim is compiled again, no worse.
    let _ = std::fs::write(stamp, made_of);
}

/// What the worker is built from, as git names it from here.
const SOURCES: [&str; 5] = [".", "../spec", "../data", "../../Cargo.toml", "../../Cargo.lock"];

/// Gives the program the commit it is built from, and a digest of what was changed since, for the provenance of its runs.
fn record_commit() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_string();
    let Some(commit) = git(&["rev-parse", "HEAD"]).map(text) else { return };
    let diff = git(&[&["diff", "--binary", "HEAD", "--"], &SOURCES[..]].concat());
    let dirty = diff.as_ref().is_none_or(|diff| !diff.is_empty());
    println!("cargo:rustc-env=FATHOM_GIT_COMMIT={commit}");
    println!("cargo:rustc-env=FATHOM_GIT_DIRTY={}", u8::from(dirty));
    let digest = diff.filter(|diff| !diff.is_empty()).and_then(|diff| digest(&diff));
    println!("cargo:rustc-env=FATHOM_GIT_DIFF={}", digest.unwrap_or_default());
    // Built anew when the commit or the sources change.
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(text) {
        println!("cargo:rerun-if-changed={head}");
    }
    SOURCES.iter().for_each(|source| println!("cargo:rerun-if-changed={source}"));
}

/// git's own digest of some bytes.
fn digest(bytes: &[u8]) -> Option<String> {
    let mut command = Command::new("git");
    let command = command.args(["hash-object", "--stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    // Dropped with this statement: git reads to the end.
    child.stdin.take()?.write_all(bytes).ok()?;
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    output.status.success().then_some(text)
}
