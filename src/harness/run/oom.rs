//! What the kernel says of its out-of-memory killer: how many processes it has ended, and whether one of them was ours.
//!
//! Its SIGKILL looks like anybody's. The control group's own count is the best witness: it rises before the process ends, and
//! only for processes of the group. Where there is none, the kernel's log may name the process, and the machine's count may at
//! least say that nothing of the kind happened.

use fathom_spec::record::{OomKills, Process};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

/// Counts how often the whole machine's killer struck, readable by everyone.
const MACHINE: &str = "/proc/vmstat";

/// The kernel's log, one record a read; readable by who may.
const KERNEL_LOG: &str = "/dev/kmsg";

/// What the kernel says of one SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// The killer ended it; how that is known.
    Killed(String),
    /// It did not.
    Spared,
    /// It struck somewhere on this machine meanwhile.
    Perhaps,
    /// The kernel does not say here.
    Unknown,
}

/// The count that a process beginning now is measured against.
pub fn count() -> Option<OomKills> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = group_files(&groups).into_iter().chain([MACHINE.to_string()]);
    files.into_iter().find_map(|file| Some(OomKills { count: read(&file)?, file }))
}

/// Whether the kernel's killer ended `process`, which a SIGKILL ended.
pub fn witness(process: &Process) -> Witness {
    let Some(before) = &process.oom_kills else { return Witness::Unknown };
    let now = read(&before.file);
    let log = || kernel_log().is_some_and(|log| names(&log, process.pid));
    judge(before, now, &mut TOLD.lock().unwrap_or_else(|e| e.into_inner()), log)
}

/// Kills that were told of a run already: of two runs beside one another, one rise of the count explains one end.
static TOLD: Mutex<BTreeSet<(String, u64)>> = Mutex::new(BTreeSet::new());

fn judge(
    before: &OomKills,
    now: Option<u64>,
    told: &mut BTreeSet<(String, u64)>,
    is_in_log: impl Fn() -> bool,
) -> Witness {
    let Some(now) = now else { return Witness::Unknown };
    if is_in_log() {
        return Witness::Killed("the kernel's log names the process".into());
    }
    let fresh = (before.count + 1..=now).find(|n| !told.contains(&(before.file.clone(), *n)));
    match fresh {
        None => Witness::Spared,
        Some(_) if before.file == MACHINE => Witness::Perhaps,
        Some(n) => {
            told.insert((before.file.clone(), n));
            Witness::Killed(format!(
                "oom_kill of {} rose from {} to {now} while it ran",
                before.file, before.count
            ))
        }
    }
}

/// The files that count the kills of a process's control group, by its `/proc/self/cgroup`: version 2, then version 1.
fn group_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_end_matches('/');
        // In a container the group's path is the host's, and what is mounted is the group itself.
        if controllers.is_empty() {
            files.push(format!("/sys/fs/cgroup{path}/memory.events"));
            files.push("/sys/fs/cgroup/memory.events".into());
        } else if controllers.split(',').any(|name| name == "memory") {
            files.push(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
            files.push("/sys/fs/cgroup/memory/memory.oom_control".into());
        }
    }
    files
}

fn read(file: &str) -> Option<u64> {
    parse(&fs::read_to_string(file).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// What is left of the kernel's log; `None` without permission.
fn kernel_log() -> Option<String> {
    let mut file =
        fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(KERNEL_LOG).ok()?;
    let (mut log, mut record) = (String::new(), [0u8; 8192]);
    // A record that was overwritten meanwhile is an error of its own, and the next read goes on.
    for _ in 0..100_000 {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(read) => log.push_str(&String::from_utf8_lossy(&record[..read])),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    Some(log)
}

/// Whether the log tells of `pid` among the killer's victims.
fn names(log: &str, pid: u32) -> bool {
    let words = [format!("Killed process {pid} ("), format!(",pid={pid},uid=")];
    let is_of_killer = |line: &str| line.contains("Killed process") || line.contains("oom-kill:");
    log.lines().any(|line| is_of_killer(line) && words.iter().any(|word| line.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(file: &str) -> OomKills {
        OomKills { file: file.into(), count: 3 }
    }

    #[test]
    fn one_rise_explains_one_end() {
        let mut told = BTreeSet::new();
        let group = before("/sys/fs/cgroup/memory.events");
        let quiet = || false;
        assert_eq!(judge(&group, Some(3), &mut told, quiet), Witness::Spared);
        let killed = judge(&group, Some(4), &mut told, quiet);
        let how = "oom_kill of /sys/fs/cgroup/memory.events rose from 3 to 4 while it ran";
        assert_eq!(killed, Witness::Killed(how.into()));
        assert_eq!(judge(&group, Some(4), &mut told, quiet), Witness::Spared, "it was another's");
        assert!(matches!(judge(&group, Some(5), &mut told, quiet), Witness::Killed(_)));
        assert_eq!(judge(&group, None, &mut told, quiet), Witness::Unknown);
    }

    #[test]
    fn the_machines_count_proves_nothing_but_the_log_does() {
        let mut told = BTreeSet::new();
        let machine = before(MACHINE);
        assert_eq!(judge(&machine, Some(3), &mut told, || false), Witness::Spared);
        assert_eq!(judge(&machine, Some(4), &mut told, || false), Witness::Perhaps);
        assert!(matches!(judge(&machine, Some(4), &mut told, || true), Witness::Killed(_)));
        let log = "6,1,2,-;python invoked oom-killer: order=0\n\
                   6,2,3,-;oom-kill:constraint=CONSTRAINT_NONE,task=fathom-engine,pid=41,uid=0\n\
                   3,3,4,-;Out of memory: Killed process 41 (fathom-engine) total-vm:1kB\n\
                   6,4,5,-;a driver says pid=7,uid=0\n";
        assert!(names(log, 41));
        assert!(!names(log, 4) && !names(log, 7));
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        assert_eq!(
            group_files("0::/user.slice\n"),
            ["/sys/fs/cgroup/user.slice/memory.events", "/sys/fs/cgroup/memory.events"]
        );
        assert_eq!(
            group_files("9:name=systemd:/\n4:cpu,memory:/a:b\n")[0],
            "/sys/fs/cgroup/memory/a:b/memory.oom_control"
        );
        assert_eq!(parse("low 0\noom 2\noom_kill 7\noom_group_kill 1\n"), Some(7));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(parse("low 0\n"), None);
    }
}
