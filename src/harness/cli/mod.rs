//! The command line: it parses, hands on, and prints.

mod doctor;
mod engine;
pub mod exit;
pub mod progress;
pub mod report;
pub mod runs;
pub mod sql;
mod sweep;
pub mod table;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// An experiment-tracking research harness for long-context fine-tuning.
///
/// Write a sweep file; fathom launches the fine-tunes, one process a run, records every metric, peak memory and perplexity by
/// context length in SQLite, and renders reports.
#[derive(Parser)]
#[command(name = "fathom", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plan and run sweeps
    #[command(subcommand)]
    Sweep(sweep::SweepCommand),
    /// Run one base configuration
    Train(train::TrainArgs),
    /// Write the report of a sweep
    Report(report::ReportArgs),
    /// List, show and compare runs
    Runs(runs::RunsArgs),
    /// Query the store, read-only
    Sql(sql::SqlArgs),
    /// Measure a model or checkpoint (tokens, perplexity); `fathom eval help` lists the options
    #[command(disable_help_flag = true)]
    Eval(engine::EngineArgs),
    /// Say what this machine has, and what is missing
    Doctor(doctor::DoctorArgs),
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Sweep(command) => sweep::run(command),
        Command::Train(args) => train::run(args),
        Command::Report(args) => report::run(args).map(|()| exit::OK),
        Command::Runs(args) => runs::run(args).map(|()| exit::OK),
        Command::Sql(args) => sql::run(args).map(|()| exit::OK),
        Command::Eval(args) => engine::run("eval", &args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The reader of our output has gone (`fathom sql … | head`): nothing is wrong.
            let pipe = error.downcast_ref::<std::io::Error>();
            if pipe.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {error:#}");
            ExitCode::from(exit::ERROR)
        }
    }
}
