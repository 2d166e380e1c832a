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
mod whole;

pub use event::{EvalMethod, Event, EventKind, FORMAT, MAX_SEQ, number, numbers};
pub use log::{EventLog, last_events, open_log, read_events};
pub use paths::{RunId, RunPaths, SweepPaths};
pub use process::{OomKills, Presence, Process, host};
pub use whole::{now, read_json, way_out, write_durably, write_whole};

/// The environment variable that tells a worker to stop, with a checkpoint, after the first step that reaches so many tokens.
pub const STOP_AT_TOKENS: &str = "FATHOM_STOP_AT_TOKENS";

/// The fact that says where the decay of the learning rate was begun by `start-annealing`.
pub const ANNEALING: &str = "train.schedule.start_annealing";
