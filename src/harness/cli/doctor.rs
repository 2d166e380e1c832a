//! `fathom doctor`: what this machine has, and what is missing.

use super::exit;
use crate::run::find_worker;
use crate::store::{Journal, Store};
use anyhow::Result;
use clap::Args;
use fathom_spec::units::Bytes;
use serde_json::{Value, json};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct DoctorArgs {
    /// The folder of the store and the runs
    #[arg(long, default_value_os_t = crate::cli::context::default_results(), value_name = "DIR")]
    results: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Looks at everything fathom needs and prints it; the exit code says whether something is missing.
///
/// # Errors
///
/// When nothing can be printed.
pub fn run(args: &DoctorArgs) -> Result<u8> {
    let engine = ask_engine();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (total, available) = memory();
    let disk = free_disk(Path::new("."));
    let store = Store::path(&args.results);
    if args.json {
        let engine_json = engine.as_ref().map_or_else(|e| json!({ "missing": e }), Value::clone);
        let json = json!({
            "engine": engine_json, "cores": cores, "memory_total": total, "memory_available": available,
            "disk_free": disk, "store": store.is_file(), "journal": Journal::of(&args.results).to_string(),
        });
        say!("{json}");
        return Ok(if engine.is_ok() { exit::OK } else { exit::MISSING });
    }
    let line = |name: &str, value: String| say!("{name:<12} {value}");
    line("fathom", env!("CARGO_PKG_VERSION").to_string());
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_string();
    match &engine {
        Ok(engine) => {
            line("LibTorch", text(&engine["libtorch"]));
            line("processor", format!("{}, {cores} cores", text(&engine["cpu"])));
        }
        Err(_) => line("processor", format!("{cores} cores")),
    }
    line("memory", format!("{} free of {}", Bytes(available), Bytes(total)));
    line("disk", format!("{} free here", Bytes(disk)));
    if let Ok(engine) = &engine {
        for device in engine["devices"].as_array().into_iter().flatten() {
            let bytes = |key: &str| Bytes(device[key].as_u64().unwrap_or(0));
            let (free, total) = (bytes("free"), bytes("total"));
            line(
                &format!("cuda:{}", device["index"]),
                format!("{}, {free} free of {total}", text(&device["name"])),
            );
        }
        if let Some(driver) = engine["driver"].as_str() {
            line("driver", driver.to_string());
        }
        if let Some(why) = engine["cuda_missing"].as_str() {
            line("CUDA", format!("none: {why}"));
        }
    }
    line(
        "store",
        if store.is_file() {
            store.display().to_string()
        } else {
            format!("none yet in {}", args.results.display())
        },
    );
    line("journal", Journal::of(&args.results).to_string());
    match engine {
        Ok(_) => Ok(exit::OK),
        Err(why) => {
            line("missing", why);
            Ok(exit::MISSING)
        }
    }
}

/// What the engine says of LibTorch and the devices; `Err` says why it can't.
fn ask_engine() -> Result<Value, String> {
    let engine = find_worker().map_err(|e| format!("{e:#}"))?;
    let output = Command::new(&engine).args(["doctor", "--json"]).output();
    let output = output.map_err(|e| format!("{}: can't be started: {e}", engine.display()))?;
    if !output.status.success() {
        // A loader that finds no LibTorch says so here.
        return Err(format!(
            "{}: {}",
            engine.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{}: expected JSON: {e}", engine.display()))
}

/// Total and available memory in bytes.
pub fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    (kib("MemTotal:") * 1024, kib("MemAvailable:") * 1024)
}

fn free_disk(path: &Path) -> u64 {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return 0 };
    // SAFETY: a NUL-terminated path and a struct that the kernel fills in.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        match libc::statvfs(path.as_ptr(), &mut stat) {
            0 => stat.f_bavail * stat.f_frsize,
            _ => 0,
        }
    }
}
