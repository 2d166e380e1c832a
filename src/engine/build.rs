//! Compiles the C++ shim against LibTorch's headers and gives every binary the run path of its libraries.

use std::env;
use std::path::PathBuf;

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
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // LibTorch's headers are not ours to warn about.
        .warnings(false)
        .flag_if_supported("-w")
        .opt_level(1)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("torch/shim.cpp")
        .compile("fathom_shim");
    record_commit();
    // The libraries where they were fetched to. LD_LIBRARY_PATH goes first, so one binary serves other machines too.
    if let Ok(path) = std::fs::read_to_string(link.join("runtime-path")) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", path.trim());
    }
}

/// Gives the program the commit it is built from, for the provenance of its runs.
fn record_commit() {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no", "--", "../.."])
        .is_none_or(|s| !s.is_empty());
    println!("cargo:rustc-env=FATHOM_GIT_COMMIT={commit}");
    println!("cargo:rustc-env=FATHOM_GIT_DIRTY={}", u8::from(dirty));
    // Built anew when the commit changes.
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={head}");
    }
}
