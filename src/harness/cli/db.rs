//! `fathom db`: the database of a results folder as a file: whether it is whole, made anew, copied, made small.

use super::exit;
use super::table;
use crate::store::Store;
use anyhow::Result;
use clap::{Args, Subcommand};
use fathom_spec::units::Bytes;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Look after the store's database. The folders of runs are the truth; the database is an index of them.
#[derive(Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    pub command: DbCommand,
    /// The folder that fathom.db is in
    #[arg(long, global = true, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// See whether the database is whole and says what the runs' logs say; exits with 8 where something is wrong
    Check,
    /// Make the store's runs anew from their folders; a damaged database is kept aside
    Rebuild,
    /// Copy the store into one file of its own, while runs may go on
    Backup {
        /// The copy, which must not be there yet
        file: PathBuf,
    },
    /// Give back the space that removed rows left
    Vacuum,
}

/// Carries out `fathom db`.
///
/// # Errors
///
/// When there is no store, it can't be opened, or it or the copy can't be written.
pub fn run(args: DbArgs) -> Result<u8> {
    let results = &args.results;
    let (text, code) = match args.command {
        DbCommand::Check => check(results)?,
        DbCommand::Rebuild => (rebuild(results)?, exit::OK),
        DbCommand::Backup { file } => {
            Store::open_read_only(results)?.backup(&file)?;
            let size = std::fs::metadata(&file).map_or(0, |file| file.len());
            (format!("{}: {}\n", file.display(), Bytes(size)), exit::OK)
        }
        DbCommand::Vacuum => {
            // Opening for writing would make a store where there is none.
            Store::open_read_only(results)?;
            let mut store = Store::open(results)?;
            let before = Bytes(store.bytes());
            store.vacuum()?;
            let path = Store::path(results);
            (
                format!("{}: {before} before, {} now\n", path.display(), Bytes(store.bytes())),
                exit::OK,
            )
        }
    };
    table::print(&text)?;
    Ok(code)
}

fn check(results: &Path) -> Result<(String, u8)> {
    let store = Store::open_read_only(results)?;
    let findings = store.check()?;
    let mut text = String::new();
    for finding in &findings.found {
        writeln!(text, "{finding}")?;
    }
    let runs = store.runs()?.len();
    let (verdict, code) = match findings.is_sound() {
        true => ("nothing is wrong", exit::OK),
        false => ("something is wrong", exit::PROBLEMS),
    };
    writeln!(
        text,
        "{}: {}, {runs} runs, {} held against their logs: {verdict}",
        Store::path(results).display(),
        Bytes(store.bytes()),
        findings.compared
    )?;
    Ok((text, code))
}

/// Makes the store anew from the folders of runs, and says what came of it.
///
/// # Errors
///
/// When the database can't be written or the folders can't be listed.
pub fn rebuild(results: &Path) -> Result<String> {
    let rebuilt = Store::rebuild_from_folders(results)?;
    for (folder, reason) in &rebuilt.problems {
        tell!(
            "warning: runs/{folder} is not read as a whole, the store keeps what it had: {reason}"
        );
    }
    if let [first, ..] = &rebuilt.kept[..] {
        let count = rebuilt.kept.len();
        tell!(
            "note: {count} runs have no folder any more, {first} first: the store keeps what it had"
        );
    }
    if let Some((aside, lost)) = &rebuilt.aside {
        tell!("warning: the database was damaged and is kept as {}", aside.display());
        for what in lost {
            tell!("warning: {what}");
        }
        if !lost.is_empty() {
            tell!(
                "  help: `fathom sweep run FILE` records a sweep again; what is finished is not run again"
            );
        }
    }
    let path = Store::path(results);
    Ok(format!("{}: {} runs, {} events\n", path.display(), rebuilt.runs, rebuilt.events))
}
