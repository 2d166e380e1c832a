//! The record of a run: where its files are, what happened, and the log that it was written to.
//!
//! A run is a folder. `fathom-engine run FOLDER` executes it, and so may any other program that reads `config.yaml`,
//! appends [`Event`]s to `events.jsonl` and answers the command files of `control/`. The database is an index of these
//! logs and can be rebuilt from them. `PROTOCOL.md` beside this file says all of it, for whoever writes a worker.

pub mod control;
mod event;
mod log;
mod paths;
mod process;

pub use event::{EvalMethod, Event, EventKind, number, numbers};
pub use log::{EventLog, last_events, read_events};
pub use paths::{RunId, RunPaths};
pub use process::{OomKills, Presence, Process, host};
