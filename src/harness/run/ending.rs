//! The supervisor's verdict on a worker that did not log an ending of its own: by what the kernel says of the process.

use crate::store::Status;
use fathom_spec::record::RunPaths;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a run stands whose worker exited with `exit` and logged no ending, and why. What earlier attempts said, up to byte
/// `said_before` of stderr, is not this one's reason.
pub fn verdict(exit: ExitStatus, paths: &RunPaths, said_before: u64) -> (Status, String) {
    let stderr = std::fs::read(paths.stderr()).unwrap_or_default();
    let stderr = String::from_utf8_lossy(stderr.get(said_before as usize..).unwrap_or_default());
    if let Some(signal) = exit.signal() {
        // Rust and C++ abort when a small allocation of their own fails.
        if signal == libc::SIGABRT
            && (stderr.contains("memory allocation of") || stderr.contains("bad_alloc"))
        {
            return (Status::OutOfMemory, last_lines(&stderr, 1));
        }
        let name = nix::sys::signal::Signal::try_from(signal).map_or("signal", |s| s.as_str());
        let hint = match signal {
            libc::SIGKILL => " (the kernel's out-of-memory killer does this too)",
            _ => "",
        };
        return (Status::Killed, format!("{name}{hint}"));
    }
    let code = exit.code().unwrap_or(-1);
    let said = match last_lines(&stderr, 5) {
        said if said.is_empty() => "nothing on stderr".to_string(),
        said => said,
    };
    (Status::Failed, format!("the worker exited with code {code} and wrote no ending: {said}"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}
