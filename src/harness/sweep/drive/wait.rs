//! Waiting for workers: the kernel says at once when one has exited, by a descriptor of its process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A descriptor that becomes readable when the process exits; `None` where the kernel has none (before Linux 5.3): its exit
/// is then noticed when the wait is over.
pub(super) fn exit_of(pid: u32) -> Option<OwnedFd> {
    // SAFETY: the call takes a process id and flags, and returns a descriptor that nobody else owns, or -1.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor as i32))
    }
}

/// Waits until one of `exits` has come, a signal is heard, or `longest` is over.
pub(super) fn for_any<'a>(exits: impl Iterator<Item = &'a OwnedFd>, longest: Duration) {
    let mut polled: Vec<libc::pollfd> = exits
        .map(|exit| libc::pollfd { fd: exit.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the descriptors are open while they are borrowed, and the length is the vector's. An error is an interrupt,
    // which the caller looks for, or means that the wait was short.
    unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, longest.as_millis() as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Instant;

    #[test]
    fn an_exit_ends_the_wait() {
        let mut child = Command::new("true").spawn().unwrap();
        let exit = exit_of(child.id()).expect("a kernel that has descriptors of processes");
        let begun = Instant::now();
        for_any([&exit].into_iter(), Duration::from_secs(30));
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert!(child.try_wait().unwrap().is_some(), "it has exited");
        for_any(std::iter::empty(), Duration::from_millis(1));
    }
}
