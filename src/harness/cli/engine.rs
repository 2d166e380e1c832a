//! Commands that need tensors are carried out by the engine, with the same arguments.

use crate::run::find_worker;
use anyhow::{Context, Result};
use clap::Args;
use std::process::Command;

#[derive(Args)]
pub struct EngineArgs {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    arguments: Vec<String>,
}

/// Calls the engine's `command` and passes its exit code on.
///
/// # Errors
///
/// When the engine is not there or can't be started.
pub fn run(command: &str, args: &EngineArgs) -> Result<u8> {
    let engine = find_worker()?;
    let status = Command::new(&engine)
        .arg(command)
        .args(&args.arguments)
        .status()
        .with_context(|| format!("{}: the engine can't be started", engine.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(super::exit::ERROR))
}
