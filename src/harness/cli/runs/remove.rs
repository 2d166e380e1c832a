//! Removing: runs by name, and what is kept for nothing.

use crate::cli::table::{Cell, Format, Table};
use crate::run::{is_held, lock};
use crate::store::{Run, Status, Store};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use fathom_spec::record::{RunId, RunPaths};
use fathom_spec::units::Bytes;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A run that is being removed is moved to a folder with this ending first: it is gone at once, or not at all.
const REMOVED: &str = "removed";

/// What `rm` would remove.
///
/// # Errors
///
/// As [`remove`].
pub fn preview(store: &Store, names: &[String], force: bool) -> Result<String> {
    let runs = super::chosen(store, names, None)?;
    let mut total = 0;
    let mut table = Table::new(&["run", "status", "folder", "size"]);
    for run in &runs {
        removable(store, run, force)?;
        let paths = RunPaths::in_results(store.results(), &run.run_id);
        let bytes = size(&paths.folder);
        total += bytes;
        table.rows.push(vec![
            run.run_id.0.as_str().into(),
            run.status.name().into(),
            paths.folder.display().to_string().into(),
            Bytes(bytes).to_string().into(),
        ]);
    }
    let names = names.join(" ");
    Ok(format!(
        "{}\nwould remove {} runs, {}; nothing is removed yet\n  help: `fathom runs rm {names} --yes{}` does it\n",
        table.render(Format::Table),
        runs.len(),
        Bytes(total),
        if force { " --force" } else { "" }
    ))
}

/// Removes runs: folder and rows.
///
/// # Errors
///
/// When one is not there, is running, or is a point of a sweep and `force` is not given (then none is removed); or a folder
/// can't be removed.
pub fn remove(store: &mut Store, names: &[String], force: bool) -> Result<String> {
    let runs = super::chosen(store, names, None)?;
    for run in &runs {
        removable(store, run, force)?;
    }
    let mut said = String::new();
    for run in &runs {
        let paths = RunPaths::in_results(store.results(), &run.run_id);
        let bytes = size(&paths.folder);
        let aside = paths.folder.with_extension(REMOVED);
        if paths.folder.exists() {
            // Held until it is gone: nobody begins it meanwhile.
            let Some(_lock) = lock(&paths)? else { bail!(running(run)) };
            fs::rename(&paths.folder, &aside)
                .with_context(|| format!("{}: can't be removed", paths.folder.display()))?;
        }
        store.remove_run(&run.run_id)?;
        if aside.exists() {
            fs::remove_dir_all(&aside)
                .with_context(|| format!("{}: can't be removed", aside.display()))?;
        }
        said.push_str(&format!("run {}: removed, {}\n", run.run_id, Bytes(bytes)));
    }
    Ok(said)
}

/// Refuses what must not go.
fn removable(store: &Store, run: &Run, force: bool) -> Result<()> {
    if is_held(&RunPaths::in_results(store.results(), &run.run_id)) {
        bail!(running(run));
    }
    let points = store.points_of_run(&run.run_id)?;
    if let (Some((sweep, point)), false) = (points.first(), force) {
        bail!(
            "run {}: expected a run that no sweep names, found point {} of `{sweep}`: {}\n  help: --force removes it all the same; the sweep's next run makes it anew",
            run.run_id,
            point.position,
            point.label
        );
    }
    Ok(())
}

fn running(run: &Run) -> String {
    format!(
        "run {}: expected a run that nobody has, found one at work\n  help: `fathom control abort {}` ends it",
        run.run_id, run.run_id
    )
}

/// What `gc` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Checkpoints of runs that are done, that no run's model.path names; runs with a tag or a note keep theirs
    Checkpoints,
    /// Tokens that were computed once; the next run that needs them computes them again
    Cache,
    /// Folders that hold no run, and what was half written or half removed
    Orphans,
}

/// A file or folder that may go.
struct Garbage {
    kind: Kind,
    path: PathBuf,
    bytes: u64,
}

/// Lists what may go, and removes it where `act` says so.
///
/// # Errors
///
/// When the store can't be read or something can't be removed.
pub fn collect_garbage(store: &Store, act: bool, only: Option<Kind>) -> Result<String> {
    let mut found = checkpoints(store)?;
    found.extend(cache(store)?);
    found.extend(orphans(store)?);
    found.retain(|garbage| only.is_none_or(|kind| kind == garbage.kind));
    if found.is_empty() {
        return Ok("nothing may go\n".into());
    }
    let mut table = Table::new(&["kind", "path", "size"]);
    for garbage in &found {
        let kind = garbage.kind.to_possible_value().expect("no kind is hidden");
        let size = Bytes(garbage.bytes).to_string();
        let path: Cell = garbage.path.display().to_string().into();
        table.rows.push(vec![kind.get_name().into(), path, size.into()]);
    }
    let total = Bytes(found.iter().map(|garbage| garbage.bytes).sum());
    let mut text = table.render(Format::Table);
    if !act {
        text.push_str(&format!(
            "\n{total} may go; nothing is removed yet\n  help: --yes removes it, --only KIND a part; a tag keeps a run's checkpoints (`fathom runs tag RUN +keep`)\n"
        ));
        return Ok(text);
    }
    for garbage in &found {
        let path = &garbage.path;
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.with_context(|| format!("{}: can't be removed", path.display()))?;
    }
    text.push_str(&format!("\n{total} removed\n"));
    Ok(text)
}

/// Checkpoints of runs with a result, and halves of checkpoints of any run that is not at work.
fn checkpoints(store: &Store) -> Result<Vec<Garbage>> {
    let labels = store.labels()?;
    let runs = store.runs()?;
    // As written, and as a whole path: a configuration may name a model from anywhere.
    let named: BTreeSet<PathBuf> = runs
        .iter()
        .filter_map(|run| run.config["model"]["path"].as_str())
        .flat_map(|path| [Some(PathBuf::from(path)), fs::canonicalize(path).ok()])
        .flatten()
        .collect();
    let is_named = |checkpoint: &Path, run: &Run| {
        let whole = fs::canonicalize(checkpoint).unwrap_or_else(|_| checkpoint.to_path_buf());
        let name = checkpoint.file_name().unwrap_or_default();
        let ending = Path::new(&run.run_id.0).join("checkpoints").join(name);
        named.iter().any(|path| path.starts_with(&whole) || path.ends_with(&ending))
    };
    let mut found = Vec::new();
    for run in &runs {
        let paths = RunPaths::in_results(store.results(), &run.run_id);
        if is_held(&paths) {
            continue;
        }
        let labelled = labels.get(&run.run_id).is_some_and(|labels| !labels.is_empty());
        for path in entries(&paths.checkpoints()) {
            let half = path.extension().is_some_and(|ending| ending == "part");
            let done = run.status.is_result() && !labelled && !is_named(&path, run);
            if half || done {
                let kind = if half { Kind::Orphans } else { Kind::Checkpoints };
                found.push(Garbage { kind, bytes: size(&path), path });
            }
        }
    }
    Ok(found)
}

/// The cache as a whole, while no run is at work that may be reading it.
fn cache(store: &Store) -> Result<Vec<Garbage>> {
    let mut held = false;
    for run in store.runs()?.iter().filter(|run| run.status == Status::Running) {
        held |= is_held(&RunPaths::in_results(store.results(), &run.run_id));
    }
    let path = RunPaths::in_results(store.results(), &RunId("any".into())).cache();
    if held || !path.exists() {
        return Ok(Vec::new());
    }
    Ok(vec![Garbage { kind: Kind::Cache, bytes: size(&path), path }])
}

/// Folders under `runs/` that hold neither a configuration nor an identity and that the store does not have.
fn orphans(store: &Store) -> Result<Vec<Garbage>> {
    let known: BTreeSet<RunId> = store.runs()?.into_iter().map(|run| run.run_id).collect();
    let mut found = Vec::new();
    for path in entries(&store.results().join("runs")) {
        let paths = RunPaths::new(&path);
        let name = RunId(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let half_removed = path.extension().is_some_and(|ending| ending == REMOVED);
        let holds_a_run = paths.config().exists() || paths.identity().exists();
        if path.is_dir()
            && !known.contains(&name)
            && (half_removed || !holds_a_run)
            && !is_held(&paths)
        {
            found.push(Garbage { kind: Kind::Orphans, bytes: size(&path), path });
        }
    }
    Ok(found)
}

/// What a folder holds, sorted; nothing where there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The bytes of a file, or of all files under a folder; links are not followed.
fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(entry) if entry.is_dir() => entries(path).iter().map(|inner| size(inner)).sum(),
        Ok(entry) => entry.len(),
        Err(_) => 0,
    }
}
