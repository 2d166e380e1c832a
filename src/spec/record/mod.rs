//! The record of a run: where its files are, what happened, and the log that it was written to.
//!
//! A run is a folder. `fathom-engine run FOLDER` executes it, and so may any other program that reads `config.yaml`,
//! appends [`Event`]s to `events.jsonl` and answers the command files of `control/`. The database is an index of these
//! logs and can be rebuilt from them.

mod event;
mod log;
mod paths;

pub use event::{EvalMethod, Event, EventKind, number, numbers};
pub use log::{EventLog, read_events};
pub use paths::{RunId, RunPaths};
