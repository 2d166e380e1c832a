//! The run's event log as a sink, and its heartbeat.

use crate::facts::Sink;
use anyhow::Result;
use fathom_spec::record::{EventKind, EventLog, RunPaths, read_events};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

/// Seconds between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The log of a run as a sink, with the facts kept for the check at the end.
#[derive(Clone)]
pub(super) struct Log {
    log: Arc<Mutex<EventLog>>,
    facts: Arc<Mutex<BTreeMap<String, Value>>>,
    /// The last step that was logged.
    step: Arc<AtomicU64>,
}

impl Log {
    pub fn new(log: EventLog) -> Log {
        Log { log: Arc::new(Mutex::new(log)), facts: Arc::default(), step: Arc::default() }
    }

    /// Takes over the facts of earlier attempts: a run that is resumed after its last step meets no batch any more, and what
    /// it met before still counts.
    pub fn remember(&mut self, paths: &RunPaths) -> Result<()> {
        let (events, _) = read_events(&paths.events(), 0)?;
        let mut facts = self.facts();
        for event in events {
            if let EventKind::Fact { name, value } = event.kind {
                facts.insert(name, value);
            }
        }
        Ok(())
    }

    /// What a fact of the run says, of this attempt or an earlier one.
    pub fn fact_of(&self, name: &str) -> Option<Value> {
        self.facts().get(name).cloned()
    }

    /// All that the run's facts say.
    pub fn facts(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.facts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Seconds since the attempt began.
    pub fn elapsed_seconds(&self) -> f64 {
        self.events().elapsed().as_secs_f64()
    }

    /// Appends an event.
    ///
    /// # Errors
    ///
    /// As [`EventLog::write`].
    pub fn write(&self, kind: EventKind) -> Result<()> {
        self.events().write(kind).map(|_| ())
    }

    fn events(&self) -> MutexGuard<'_, EventLog> {
        self.log.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Sink for Log {
    /// # Panics
    ///
    /// When the event can't be written: a run that can't be recorded does not go on.
    fn event(&mut self, kind: EventKind) {
        if let EventKind::Fact { name, value } = &kind {
            self.facts().insert(name.clone(), value.clone());
        }
        if let EventKind::Step { step, .. } = &kind {
            self.step.store(*step, Ordering::Relaxed);
        }
        if let Err(error) = self.write(kind) {
            panic!("{error:#}");
        }
    }
}

/// Writes a heartbeat now and then until it is dropped, so that a silent run can be told from a dead one.
pub(super) struct Heart {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Heart {
    pub fn begin(mut log: Log) -> Heart {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let step = log.step.load(Ordering::Relaxed);
                log.event(EventKind::Heartbeat { step });
            }
        });
        Heart { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
