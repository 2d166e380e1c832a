//! Where orders come from: signals, and the command files of the run's folder.

use super::Log;
use crate::facts::Sink;
use crate::train::orders::Order;
use fathom_spec::record::control::{Command, Inbox};
use fathom_spec::record::{EventKind, RunPaths};
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that was last heard; 0 for none.
static HEARD: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(signal: libc::c_int) {
    HEARD.store(signal, Ordering::Relaxed);
}

/// The orders of one run.
pub struct Orders {
    inbox: Inbox,
    /// The process that started this one.
    parent: libc::pid_t,
}

impl Orders {
    /// Listens from now on: SIGTERM and SIGINT ask for a checkpoint and the end.
    pub fn listen(paths: &RunPaths) -> Orders {
        // SAFETY: the handler only stores to an atomic; getppid has no way to fail.
        let parent = unsafe {
            let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::signal(libc::SIGTERM, handler);
            libc::signal(libc::SIGINT, handler);
            libc::getppid()
        };
        Orders { inbox: Inbox::new(paths), parent }
    }

    /// The next order. What is no command is answered here, with a warning.
    pub fn next(&mut self, log: &mut Log) -> Option<Order> {
        let signal = HEARD.load(Ordering::Relaxed);
        if signal != 0 {
            return Some(self.of_signal(signal));
        }
        while let Some(request) = self.inbox.take() {
            match request.command {
                Ok(command) => {
                    let reason = format!("{command} was asked for");
                    return Some(Order { command, reason, request: Some(request.id) });
                }
                Err(reason) => {
                    let message = format!("control/{}.json: {reason}", request.id);
                    log.event(EventKind::Warning { message });
                    let outcome = format!("refused: {reason}");
                    let (command, request) = (String::new(), Some(request.id));
                    log.event(EventKind::Control { command, outcome, request });
                }
            }
        }
        None
    }

    fn of_signal(&self, signal: libc::c_int) -> Order {
        let name = if signal == libc::SIGINT { "SIGINT" } else { "SIGTERM" };
        // SAFETY: getppid has no way to fail.
        let orphaned = unsafe { libc::getppid() } != self.parent;
        let reason = match orphaned {
            true => format!("{name}: the process that started the run ({}) is gone", self.parent),
            false => format!("{name} was received"),
        };
        Order { command: Command::Stop, reason, request: None }
    }

    /// Answers what is asked for too late.
    pub fn dismiss(&mut self, log: &mut Log) {
        while let Some(request) = self.inbox.take() {
            let command = request.command.map_or(String::new(), |command| command.to_string());
            let outcome = "refused: the run is at its end".to_string();
            log.event(EventKind::Control { command, outcome, request: Some(request.id) });
        }
    }
}
