//! `process.json`: which process has a run, so that a live one is told from a dead one and from one on another host.
//!
//! A process id alone names nothing: ids are used again, other hosts and other containers have the same. With the moment the
//! process began, the boot and the namespace of ids it names one process for ever.

use super::{RunPaths, write_whole};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fs;

/// A worker's process, as it was when it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// When it began, in clock ticks after the boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`: another one after every boot.
    pub boot_id: String,
    /// What `/proc/self/ns/pid` points at: containers of one machine have process ids of their own.
    pub pid_namespace: String,
    /// For people; it decides nothing.
    pub host: String,
    /// The process that started it and waits for its end, on the same host.
    #[serde(default)]
    pub supervisor: Option<u32>,
    /// How many processes the kernel's out-of-memory killer had ended when it began, by where the number is read.
    #[serde(default)]
    pub oom_kills: Option<OomKills>,
    /// Whether the supervisor itself ended it at once.
    #[serde(default)]
    pub ended_by_supervisor: bool,
}

/// A count of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomKills {
    /// The file that it is read from.
    pub file: String,
    pub count: u64,
}

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Alive,
    /// It was of this host, and is no more.
    Gone,
    /// It is of another host, another container, or of this host before its last boot: only what it writes tells.
    Elsewhere,
}

impl Process {
    /// The process `pid` of this host; `None` when there is none, or `/proc` does not say.
    pub fn of(pid: u32) -> Option<Process> {
        let (start_time, _) = stat(pid)?;
        Some(Process {
            pid,
            start_time,
            boot_id: boot_id(),
            pid_namespace: pid_namespace(),
            host: host(),
            supervisor: None,
            oom_kills: None,
            ended_by_supervisor: false,
        })
    }

    /// Whether it is there, by what this host's kernel says.
    pub fn presence(&self) -> Presence {
        if !self.is_of_this_kernel() || self.pid_namespace != pid_namespace() {
            return Presence::Elsewhere;
        }
        match stat(self.pid) {
            // Ended, and not yet waited for by whoever started it.
            Some((_, 'Z' | 'X')) | None => Presence::Gone,
            // The id is another process's by now.
            Some((start_time, _)) if start_time != self.start_time => Presence::Gone,
            Some(_) => Presence::Alive,
        }
    }

    /// Whether it began on this machine since its last boot, be it in another container.
    pub fn is_of_this_kernel(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Writes it into a run's folder, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    pub fn write(&self, paths: &RunPaths) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        write_whole(&paths.process(), text.as_bytes())
    }

    /// What a run's folder says; `None` where it says nothing that can be read.
    pub fn read(paths: &RunPaths) -> Option<Process> {
        serde_json::from_slice(&fs::read(paths.process()).ok()?).ok()
    }
}

/// The name of this host.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_string()
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_string()
}

fn pid_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.display().to_string()
}

/// When a process began, in ticks after the boot, and its state.
fn stat(pid: u32) -> Option<(u64, char)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name of the program, in brackets, may hold anything, brackets and blanks included.
fn parse_stat(text: &str) -> Option<(u64, char)> {
    let (_, after) = text.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 was the state; the start time is field 22.
    Some((fields.nth(18)?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_its_id_alone_is_not_enough() {
        let own = Process::of(std::process::id()).unwrap();
        assert_eq!(own.presence(), Presence::Alive);
        let reused = Process { start_time: own.start_time - 1, ..own.clone() };
        assert_eq!(reused.presence(), Presence::Gone, "the id is another process's");
        let rebooted = Process { boot_id: "another".into(), ..own.clone() };
        assert_eq!(rebooted.presence(), Presence::Elsewhere);
        let contained = Process { pid_namespace: "pid:[1]".into(), ..own };
        assert_eq!(contained.presence(), Presence::Elsewhere);
    }

    #[test]
    fn a_process_that_ended_is_gone_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert_eq!(process.presence(), Presence::Alive);
        child.kill().unwrap();
        while process.presence() == Presence::Alive {
            std::thread::yield_now();
        }
        assert_eq!(process.presence(), Presence::Gone);
        child.wait().unwrap();
        assert_eq!(process.presence(), Presence::Gone);
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        assert_eq!(Process::read(&paths), None);
        let own = Process {
            supervisor: Some(7),
            oom_kills: Some(OomKills { file: "/x".into(), count: 3 }),
            ..Process::of(std::process::id()).unwrap()
        };
        own.write(&paths).unwrap();
        assert_eq!(Process::read(&paths), Some(own));
        fs::write(paths.process(), "{\"pid\": 1").unwrap();
        assert_eq!(Process::read(&paths), None);
    }

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "30356 (c) R (t) S 30352 30352 26614 0 -1 4194304 101 0 0 0 0 0 0 0 20 0 1 0 2454970 3133440 388";
        assert_eq!(parse_stat(stat), Some((2_454_970, 'S')));
        assert_eq!(parse_stat("30356"), None);
    }
}
