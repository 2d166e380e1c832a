//! The supervisor's verdict on a worker that did not log an ending of its own: by what the kernel says of the process.

use super::oom::{self, Witness};
use crate::store::Status;
use fathom_spec::record::{Process, RunPaths};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a run stands whose worker exited with `exit` and logged no ending, and why. What earlier attempts said, up to byte
/// `said_before` of stderr, is not this one's reason.
pub fn verdict(exit: ExitStatus, paths: &RunPaths, said_before: u64) -> (Status, String) {
    // A worker may have made the folder again, for a checkpoint.
    if !paths.config().exists() {
        let folder = paths.folder.display();
        return (
            Status::Failed,
            format!(
                "{folder}: expected the run's folder, found it removed while the run was at work"
            ),
        );
    }
    let stderr = std::fs::read(paths.stderr()).unwrap_or_default();
    let stderr = String::from_utf8_lossy(stderr.get(said_before as usize..).unwrap_or_default());
    if let Some(signal) = exit.signal() {
        // Rust and C++ abort when a small allocation of their own fails.
        if signal == libc::SIGABRT
            && (stderr.contains("memory allocation of") || stderr.contains("bad_alloc"))
        {
            return (Status::OutOfMemory, last_lines(&stderr, 1));
        }
        if signal == libc::SIGKILL {
            let process = Process::read(paths);
            return of_sigkill(process.as_ref(), oom::witness);
        }
        let name = nix::sys::signal::Signal::try_from(signal).map_or("signal", |s| s.as_str());
        return (Status::Killed, name.to_string());
    }
    let code = exit.code().unwrap_or(-1);
    let said = match last_lines(&stderr, 5) {
        said if said.is_empty() => "nothing on stderr".to_string(),
        said => said,
    };
    (Status::Failed, format!("the worker exited with code {code} and wrote no ending: {said}"))
}

/// Whose SIGKILL it was: ours, the kernel's for want of memory, or somebody's.
fn of_sigkill(
    process: Option<&Process>,
    witness: impl Fn(&Process) -> Witness,
) -> (Status, String) {
    if process.is_some_and(|process| process.ended_by_supervisor) {
        return (Status::Killed, "SIGKILL, from fathom itself".into());
    }
    match process.map_or(Witness::Unknown, witness) {
        Witness::Killed(how) => (
            Status::OutOfMemory,
            format!(
                "host memory ran out: the kernel's out-of-memory killer ended the worker ({how})"
            ),
        ),
        Witness::Spared => {
            (Status::Killed, "SIGKILL, and not from the kernel's out-of-memory killer".into())
        }
        Witness::Perhaps => (
            Status::Killed,
            "SIGKILL; the kernel's out-of-memory killer ended a process of this machine meanwhile"
                .into(),
        ),
        Witness::Unknown => (
            Status::Killed,
            "SIGKILL; whether from the kernel's out-of-memory killer, it does not say here".into(),
        ),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_of_the_kernel_is_told_from_anybody_elses() {
        let process = Process::of(std::process::id()).unwrap();
        let says = |witness: Witness| of_sigkill(Some(&process), |_| witness.clone());
        let (status, detail) = says(Witness::Killed("so it is".into()));
        assert_eq!(status, Status::OutOfMemory);
        assert!(detail.ends_with("killer ended the worker (so it is)"), "{detail}");
        for witness in [Witness::Spared, Witness::Perhaps, Witness::Unknown] {
            let (status, detail) = says(witness);
            assert_eq!(status, Status::Killed);
            assert!(detail.starts_with("SIGKILL"), "{detail}");
        }
        let ours = Process { ended_by_supervisor: true, ..process.clone() };
        let (status, detail) = of_sigkill(Some(&ours), |_| Witness::Killed("another".into()));
        assert_eq!((status, detail.as_str()), (Status::Killed, "SIGKILL, from fathom itself"));
    }
}
