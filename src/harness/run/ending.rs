//! How a run ended: by its own last event, or else by what the kernel says of the process.

use fathom_spec::record::{Event, EventKind, RunPaths};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// An ending, with the words of the store's `status` and `status_detail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub status: String,
    pub detail: Option<String>,
    /// Whether the event log has it; else the supervisor has to record it.
    pub logged: bool,
}

impl Ending {
    /// Whether the run is done for good: such runs are not run again.
    pub fn is_result(status: &str) -> bool {
        matches!(status, "finished" | "out_of_memory" | "diverged")
    }
}

/// The ending of a worker that exited with `exit` after logging `last` last.
pub fn classify(last: Option<&Event>, exit: ExitStatus, paths: &RunPaths) -> Ending {
    if let Some(ending) = last.and_then(|event| of_event(&event.kind)) {
        return ending;
    }
    let stderr = std::fs::read(paths.stderr()).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&stderr);
    let by_supervisor = |status: &str, detail: String| Ending {
        status: status.to_string(),
        detail: Some(detail),
        logged: false,
    };
    if let Some(signal) = exit.signal() {
        // Rust and C++ abort when a small allocation of their own fails.
        if signal == libc::SIGABRT
            && (stderr.contains("memory allocation of") || stderr.contains("bad_alloc"))
        {
            return by_supervisor("out_of_memory", last_lines(&stderr, 1));
        }
        let name = nix::sys::signal::Signal::try_from(signal).map_or("signal", |s| s.as_str());
        let hint = if signal == libc::SIGKILL {
            " (the kernel's out-of-memory killer does this too)"
        } else {
            ""
        };
        return by_supervisor("killed", format!("{name}{hint}"));
    }
    let code = exit.code().unwrap_or(-1);
    let said = last_lines(&stderr, 5);
    let said = if said.is_empty() { "nothing on stderr".to_string() } else { said };
    by_supervisor(
        "failed",
        format!("the worker exited with code {code} and wrote no ending: {said}"),
    )
}

/// The ending that an event is.
pub fn of_event(kind: &EventKind) -> Option<Ending> {
    let detail = match kind {
        EventKind::Finished { .. } => None,
        EventKind::Stopped { reason, .. } => Some(reason.clone()),
        EventKind::OutOfMemory { message, phase, .. } => Some(format!("in {phase}: {message}")),
        EventKind::Diverged { step, reason, .. } => Some(format!("at step {step}: {reason}")),
        EventKind::Failed { error } => Some(error.clone()),
        _ => return None,
    };
    Some(Ending { status: kind.ending()?.to_string(), detail, logged: true })
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}
