//! What a run is, in values alone: units, configuration, run folders and events. No tensors, no database.
//!
//! Two types join the halves of fathom: a [`config::RunConfig`] goes down to the worker, an [`record::Event`] comes up.
//! A written file becomes a run like this:
//!
//! 1. [`config::written`] reads YAML into a tree that remembers file and line, and follows `extends`.
//! 2. [`config::RunConfig::from_written`] makes it complete and typed; unknown keys are errors with the nearest known one.
//! 3. [`config::RunConfig::identity`] hashes the complete form, so that the same run is never done twice.
//! 4. [`plan::predict`] says what it will take: memory, arithmetic, time.
//! 5. [`record::RunPaths`] names every file of the run's folder, and [`record::EventLog`] appends what happened to it.

pub mod components;
pub mod config;
pub mod plan;
pub mod project;
pub mod record;
pub mod template;
pub mod units;
