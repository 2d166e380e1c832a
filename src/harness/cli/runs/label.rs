//! Tags and notes.

use crate::cli::table::{Cell, Format, Table};
use crate::store::{Labels, Store};
use anyhow::{Context, Result, bail, ensure};
use fathom_spec::record::RunPaths;
use std::path::PathBuf;

/// Takes `--results DIR` out of the arguments of `tag`: after a run's id everything that begins with a hyphen reads as a tag.
///
/// # Errors
///
/// When no folder follows.
pub fn without_results(arguments: Vec<String>, default: PathBuf) -> Result<(Vec<String>, PathBuf)> {
    let (mut rest, mut results) = (Vec::new(), default);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if let Some(folder) = argument.strip_prefix("--results=") {
            results = folder.into();
        } else if argument == "--results" {
            let folder = arguments.next().context("--results: expected a folder after it")?;
            results = folder.into();
        } else {
            rest.push(argument);
        }
    }
    Ok((rest, results))
}

/// Gives tags to runs and takes tags from them; says which they have then.
///
/// # Errors
///
/// When no run or no tag is named, a run is not there, or its folder is not.
pub fn tag(store: &mut Store, arguments: &[String]) -> Result<String> {
    let (mut names, mut give, mut take) = (Vec::new(), Vec::new(), Vec::new());
    for argument in arguments {
        match (argument.strip_prefix('+'), argument.strip_prefix('-')) {
            (Some(tag), _) => give.push(checked(tag)?),
            (_, Some(tag)) => take.push(checked(tag)?),
            _ => names.push(argument.clone()),
        }
    }
    ensure!(
        !names.is_empty(),
        "tag: expected how a run's id begins, found only tags\n  help: `fathom runs tag RUN +good -draft`"
    );
    ensure!(
        !give.is_empty() || !take.is_empty(),
        "tag: expected `+TAG` or `-TAG`, found only runs\n  help: `fathom runs tag {} +good`; `fathom runs show` has the tags of a run",
        names.join(" ")
    );
    let mut table = Table::new(&["run", "tags"]);
    for run in super::chosen(store, &names, None)? {
        // The folder's are the truth.
        let mut labels = Labels::read(&RunPaths::in_results(store.results(), &run.run_id))?;
        labels.tags.extend(give.iter().map(ToString::to_string));
        labels.tags.retain(|tag| !take.contains(&tag.as_str()));
        store.set_labels(&run.run_id, &labels).context("tag")?;
        let tags: Vec<String> = labels.tags.into_iter().collect();
        let tags = if tags.is_empty() { Cell::Null } else { tags.join(", ").into() };
        table.rows.push(vec![run.run_id.0.into(), tags]);
    }
    Ok(table.render(Format::Table))
}

/// A tag is one word: it can be given on a command line, and joined by commas.
fn checked(tag: &str) -> Result<&str> {
    let is_word = |c: char| !c.is_whitespace() && !c.is_control() && c != ',';
    if tag.is_empty() || !tag.chars().all(is_word) || tag.starts_with(['+', '-']) {
        bail!("tag: expected one word without commas, found `{tag}`");
    }
    Ok(tag)
}

/// Notes something about a run, in place of what was noted before.
///
/// # Errors
///
/// When the run or its folder is not there.
pub fn note(store: &mut Store, prefix: &str, text: &str) -> Result<String> {
    let run = store.find_run(prefix)?;
    let mut labels = Labels::read(&RunPaths::in_results(store.results(), &run.run_id))?;
    labels.note = (!text.trim().is_empty()).then(|| text.trim().to_string());
    store.set_labels(&run.run_id, &labels).context("note")?;
    let said = if labels.note.is_some() { "noted" } else { "no note" };
    Ok(format!("run {}: {said}\n", run.run_id))
}

/// The note on a run.
///
/// # Errors
///
/// When there is no such run.
pub fn note_of(store: &Store, prefix: &str) -> Result<String> {
    let run = store.find_run(prefix)?;
    let note = store.labels()?.remove(&run.run_id).and_then(|labels| labels.note);
    Ok(note.map_or(format!("run {}: no note\n", run.run_id), |note| note + "\n"))
}
