//! `fathom sweep check|schema|import`: sweep files as files, without a store or a device.

use super::{Settings, template_folders};
use crate::cli::exit;
use crate::cli::table::print;
use crate::sweep::Fits;
use crate::sweep::plan::{Plan, schema, wandb};
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct CheckArgs {
    /// The sweep files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
pub struct ImportArgs {
    /// A sweep file of Weights & Biases
    file: PathBuf,
}

/// Carries out `fathom sweep check`: every mistake that is in the files, and how many points those have that are right.
///
/// # Errors
///
/// When an assignment of the command line is none. A mistake in a file is printed, and is the exit code.
pub fn check(args: &CheckArgs) -> Result<u8> {
    let overrides = args.settings.parse()?;
    let (mut code, mut fits) = (exit::OK, Fits::default());
    for file in &args.files {
        let checked = Plan::read(file, &template_folders(), &overrides).and_then(|plan| {
            let points = plan.foreseen()?;
            fits.check_points(&points)?;
            Ok((plan, points.len()))
        });
        match checked {
            Ok((plan, points)) => {
                let left_out = match plan.left_out {
                    0 => String::new(),
                    n => format!(", {n} left out by the constraints"),
                };
                let searched = if plan.search.is_some() { " known before the search" } else { "" };
                say!("{}: {points} points{searched}{left_out}", file.display());
                plan.notes.iter().for_each(|note| tell!("note: {note}"));
            }
            Err(error) => {
                tell!("error: {error:#}");
                code = exit::ERROR;
            }
        }
    }
    Ok(code)
}

/// Carries out `fathom sweep schema`.
///
/// # Errors
///
/// When it can't be printed.
pub fn print_schema() -> Result<u8> {
    print(&schema::text()?)?;
    Ok(exit::OK)
}

/// Carries out `fathom sweep import`: the sweep file on stdout, the notes on stderr too.
///
/// # Errors
///
/// When the file can't be read, or is no sweep file of Weights & Biases.
pub fn import(args: &ImportArgs) -> Result<u8> {
    let file = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("{file}: expected a sweep file that can be read"))?;
    let imported = wandb::import(&file, &text)?;
    imported.notes.iter().for_each(|note| tell!("note: {note}"));
    print(&imported.text)?;
    Ok(exit::OK)
}
