//! `fathom db`: the database of a results folder as a file: whether it is whole, made anew, copied, made small.

use super::exit;
use super::table;
use crate::run::read_store;
use crate::store::Store;
use anyhow::Result;
use clap::{Args, Subcommand};
use fathom_spec::record::{RunId, SweepPaths};
use fathom_spec::units::Bytes;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Look after the store's database. The folders of runs are the truth; the database is an index of them.
#[derive(Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    pub command: DbCommand,
    /// The folder that fathom.db is in
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// See whether the database is whole and says what the runs' logs say; exits with 8 where something is wrong
    Check,
    /// Make the store's runs anew from their folders; a damaged database is kept aside, and what has no folder is taken over
    /// from it; exits with 8 where some of that can't be read
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
        DbCommand::Rebuild => rebuild(results)?,
        DbCommand::Backup { file } => {
            read_store(results)?.backup(&file)?;
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
    let store = read_store(results)?;
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

/// Makes the store anew from the folders of runs, and says what came of it, with the exit code.
///
/// # Errors
///
/// When the database can't be written or the folders can't be listed.
pub fn rebuild(results: &Path) -> Result<(String, u8)> {
    let rebuilt = Store::rebuild_from_folders(results)?;
    let store = read_store(results)?;
    for (folder, reason) in &rebuilt.problems {
        let kept = match store.run(&RunId(folder.clone()))? {
            Some(_) => "the store keeps what it had",
            None => "the store has nothing of it",
        };
        tell!("warning: runs/{folder} is not read as a whole, {kept}: {reason}");
    }
    for (folder, reason) in &rebuilt.made_of_log {
        tell!("warning: runs/{folder} is made without what can't be read of it: {reason}");
    }
    let unread = rebuilt.problems.len() + rebuilt.made_of_log.len() + rebuilt.unread_sweeps.len();
    let mut code = if unread > 0 { exit::PROBLEMS } else { exit::OK };
    let mut whole = true;
    if let Some((aside, lost)) = &rebuilt.aside {
        tell!("warning: the database was damaged and is kept as {}", aside.display());
        for what in lost {
            tell!("warning: {what}");
        }
        if !lost.is_empty() {
            (code, whole) = (exit::PROBLEMS, false);
            tell!(
                "  help: what this names is only in {}: keep it, or put a backup in the place of {}; `fathom sweep run FILE` records a sweep again, and what is finished is not run again",
                aside.display(),
                Store::path(results).display()
            );
        }
    }
    if let [first, ..] = &rebuilt.kept[..] {
        let count = rebuilt.kept.len();
        let kept = match whole {
            true => "the store keeps what it had",
            false => "the store keeps what could be read of them",
        };
        tell!("note: {count} runs have no folder any more, {first} first: {kept}");
    }
    for (file, reason) in &rebuilt.unread_sweeps {
        tell!(
            "warning: {file} is not read, the store has of the sweep what it had before: {reason}"
        );
    }
    let none_saved = rebuilt.sweeps == 0 && rebuilt.unread_sweeps.is_empty();
    if rebuilt.runs > 0 && none_saved && store.sweeps()?.is_empty() {
        let folder = SweepPaths::folder(results);
        tell!(
            "note: {} is not there, and the store has no sweep: an earlier fathom kept sweeps, and its verdicts on runs, in the database alone\n  help: `fathom sweep run FILE` records a sweep again, and what is finished is not run again",
            folder.display()
        );
    }
    let path = Store::path(results);
    Ok((format!("{}: {} runs, {} events\n", path.display(), rebuilt.runs, rebuilt.events), code))
}
