//! The command line: it parses, hands on, and prints.

/// Prints a line. A reader that has gone, or a full disk behind it, is no reason to stop what is at work.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

/// As `say!`, on standard error.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod components;
mod construct;
mod context;
mod control;
mod course;
pub mod dataset;
pub mod db;
mod doctor;
mod dynamic;
mod edit;
mod engine;
pub mod exit;
mod export;
mod folder;
mod graph;
pub mod logs;
mod ls;
mod plan;
mod pp;
pub mod progress;
mod references;
pub mod report;
mod reproduce;
pub mod runs;
mod shell;
pub mod sql;
mod sweep;
pub mod table;
mod tail;
mod tb;
mod template;
mod top;
mod train;
mod workspace;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use context::{Context, Globals};
use std::ffi::OsString;
use std::process::ExitCode;

/// An experiment-tracking research harness for long-context fine-tuning.
///
/// Write a sweep file; fathom launches the fine-tunes, one process a run, records every metric, peak memory and perplexity by
/// context length in SQLite, and renders reports.
#[derive(Parser)]
#[command(name = "fathom", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Plan and run sweeps
    #[command(subcommand)]
    Sweep(sweep::SweepCommand),
    /// Train one configuration of the project, or one file
    Train(train::TrainArgs),
    /// Say what a run will take before it is started: memory by phase, arithmetic, time, and which wall is first
    Plan(plan::PlanArgs),
    /// Run a run's configuration again, and say how far the numbers are apart
    Reproduce(reproduce::ReproduceArgs),
    /// Write the report of a sweep
    Report(report::ReportArgs),
    /// List, show and compare runs
    Runs(runs::RunsArgs),
    /// See and steer runs that are at work: list, status, save, stop, save-stop, abort, start-annealing, cleanup
    Control(control::ControlArgs),
    /// Look after the database: check, rebuild, back up, make small
    Db(db::DbArgs),
    /// Query the store, read-only
    Sql(sql::SqlArgs),
    /// Say in numbers or curves what runs logged
    Logs(logs::LogsArgs),
    /// Follow a run's events
    Tail(tail::TailArgs),
    /// Watch the runs at work, live
    Top(top::TopArgs),
    /// Open runs in TensorBoard
    Tb(tb::TbArgs),
    /// Write runs for TensorBoard, MLflow, or as CSV or Parquet
    Export(export::ExportArgs),
    /// Measure a model or checkpoint (tokens, perplexity); `fathom eval help` lists the options
    #[command(disable_help_flag = true)]
    Eval(engine::EngineArgs),
    /// Say what this machine has, and what is missing
    Doctor(doctor::DoctorArgs),
    /// Print the workspace's folder, or make a workspace
    Ws(workspace::WsArgs),
    /// Print the project's folder, or make a project or a template of it
    Project(workspace::ProjectArgs),
    /// List projects and their configurations
    Ls(ls::LsArgs),
    /// Print a configuration with all its templates put together
    Pp(pp::PpArgs),
    /// List what a configuration can build
    Targets,
    /// Show the templates that a configuration is made of
    Trefs(references::TrefsArgs),
    /// Show the graph that a configuration builds
    Graph(graph::GraphArgs),
    /// Make a target of a configuration, and say what it is
    Construct(construct::ConstructArgs),
    /// Print examples of a split, as text or as blocks of tokens, and a histogram of their lengths
    Dataset(dataset::DatasetArgs),
    /// List what templates may name, or document one
    Components(components::ComponentsArgs),
    /// Open a template in an editor
    Edit(edit::EditArgs),
    /// Work with templates on their own
    #[command(subcommand)]
    Template(template::TemplateCommand),
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    let arguments = std::env::args_os().collect();
    let result = parse(arguments).and_then(|(command, context)| match command {
        Some(command) => run(command, &context),
        None => shell::run(&context),
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The reader of our output has gone (`fathom sql … | head`): nothing is wrong.
            let pipe = error.downcast_ref::<std::io::Error>();
            if pipe.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            tell!("error: {error:#}");
            ExitCode::from(exit::ERROR)
        }
    }
}

fn run(command: Command, context: &Context) -> Result<u8> {
    match command {
        Command::Sweep(command) => sweep::run(command),
        Command::Train(args) => train::run(&args, context),
        Command::Plan(args) => plan::run(&args),
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Report(args) => report::run(args).map(|()| exit::OK),
        Command::Runs(args) => runs::run(args),
        Command::Control(args) => control::run(args).map(|()| exit::OK),
        Command::Db(args) => db::run(args),
        Command::Sql(args) => sql::run(args).map(|()| exit::OK),
        Command::Logs(args) => logs::run(args).map(|()| exit::OK),
        Command::Tail(args) => tail::run(args).map(|()| exit::OK),
        Command::Top(args) => top::run(args).map(|()| exit::OK),
        Command::Tb(args) => tb::run(args),
        Command::Export(args) => export::run(args).map(|()| exit::OK),
        Command::Eval(args) => engine::run("eval", &args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Ws(args) => workspace::run_ws(args, context),
        Command::Project(args) => workspace::run_project(args, context),
        Command::Ls(args) => ls::run(&args, context),
        Command::Pp(args) => pp::run(&args, context),
        Command::Targets => graph::targets(context),
        Command::Trefs(args) => references::run(&args, context),
        Command::Graph(args) => graph::run(&args, context),
        Command::Construct(args) => construct::run(&args, context),
        Command::Dataset(args) => dataset::run(&args, context),
        Command::Components(args) => components::run(&args),
        Command::Edit(args) => edit::run(&args, context),
        Command::Template(command) => template::run(command),
    }
}

/// All commands, without the options that a configuration adds to some.
fn command() -> clap::Command {
    Cli::command()
}

/// Reads a command line. A command that renders a configuration takes the options that the configuration declares; to know
/// them it is rendered once without any. A mistake of the command line ends the process here.
///
/// # Errors
///
/// When what the configuration declares can't be an option; or an option is not known and the configuration, which might have
/// declared it, can't be rendered. A configuration that can't be rendered is else left to the command.
fn parse(arguments: Vec<OsString>) -> Result<(Option<Command>, Context)> {
    let (globals, name) = context::before(&arguments);
    let name = name.filter(|name| dynamic::RENDERING.contains(&name.as_str()));
    let mut command = command();
    let mut declared = None;
    if let Some(name) = &name {
        let options = match dynamic::render(&globals) {
            Ok(rendering) => Ok(dynamic::declared(&rendering)?),
            Err(reason) => Err(reason),
        };
        if let Ok(options) = &options {
            command = dynamic::extend(command, name, options)?;
        }
        declared = Some(options);
    }
    let mut matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => match (error.kind(), declared) {
            // Outside a project no configuration could have declared it.
            (ErrorKind::UnknownArgument, Some(Err(reason))) if !globals.is_in_project() => {
                let _ = error.print();
                tell!(
                    "\nnote: options of a configuration's own are known in its project: {reason:#}"
                );
                std::process::exit(error.exit_code());
            }
            (ErrorKind::UnknownArgument, Some(Err(reason))) => return Err(reason),
            (ErrorKind::DisplayHelp, Some(Err(reason))) => {
                let _ = error.print();
                tell!("note: the configuration's own options are not known: {reason:#}");
                std::process::exit(i32::from(exit::OK));
            }
            _ => misplaced(error).exit(),
        },
    };
    let below = matches.subcommand().map(|(_, below)| below);
    let (vars, given) = match (below, &declared) {
        (Some(below), Some(Ok(declared))) => dynamic::values(below, declared),
        _ => Default::default(),
    };
    let cli = Cli::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit());
    let how = match (&cli.command, cli.globals.interactive) {
        (Some(_), true) => "`-i` opens a shell: expected no command after it",
        (None, false) => "expected a command; `fathom --help` lists them",
        _ => return Ok((cli.command, Context { globals: cli.globals, vars, given })),
    };
    Cli::command().error(ErrorKind::ArgumentConflict, how).exit()
}

/// Says where an option belongs that stands after the command and not before it.
fn misplaced(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(found)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let own = ["-p", "--project-dir", "-t", "--config-template", "-i", "--interactive"];
    if error.kind() == ErrorKind::UnknownArgument && own.contains(&found.as_str()) {
        let tip = format!("`{found}` stands before the command: fathom {found} … COMMAND").into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}
