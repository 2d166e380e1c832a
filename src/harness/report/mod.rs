//! Reports: a sweep of the store as a page of markdown with its tables, figures and numbers.
//!
//! A report reads the store and nothing else, and can't start a run: the same store gives the same bytes. The way of a
//! report: [`input`] reads the sweep, [`summary`] judges it with [`statistics`], [`against`] tests every label against the
//! baseline, [`sensitivity`] asks which axis matters, [`tables`] and [`figures`] put it into frames and plots with the query
//! ([`sql`]) of each, [`page`] writes it down with the [`answer`] first, and [`write_report`] puts the files in place.
//! [`write_reports`] does so for every sweep, with an [`index`](mod@index).

pub mod against;
pub mod answer;
pub mod curves;
pub mod difference;
pub mod figures;
pub mod how_to_read;
pub mod index;
pub mod input;
pub mod labels;
pub mod latex;
pub mod markdown;
pub mod memory;
pub mod memory_by_time;
pub mod multiples;
pub mod page;
pub mod pareto;
pub mod plot;
pub mod results;
pub mod rungs;
pub mod searched;
pub mod sensitivity;
pub mod significance;
pub mod sql;
pub mod statistics;
pub mod summary;
pub mod tables;

use anyhow::{Context, Result, ensure};
use index::Entry;
use input::Comparison;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use summary::Summary;

/// The files of a report by name, `report.md` among them.
pub type Files = BTreeMap<String, String>;

/// The page's own file.
const PAGE: &str = "report.md";
/// The page that lists all reports.
const INDEX: &str = "index.md";

/// Writes the report of `sweep` from the store in `results` to the folder `out/<sweep>/` and returns the page's path.
///
/// Files that an earlier report wrote there and this one does not are removed. A report that fails leaves the folder as
/// it was.
///
/// # Errors
///
/// When the store can't be read or has no such sweep, or a file can't be written.
pub fn write_report(results: &Path, sweep: &str, out: &Path) -> Result<PathBuf> {
    write(&Comparison::read(results, sweep)?, out)
}

/// As [`write_report`], of a sweep that was read already.
///
/// # Errors
///
/// When a file can't be written.
pub fn write(comparison: &Comparison, out: &Path) -> Result<PathBuf> {
    put_in_place(&render(comparison)?, &comparison.sweep, out)
}

/// Writes the report of every sweep of the store in `results`, and `out/index.md` that lists them; returns its path.
///
/// # Errors
///
/// As [`write_report`]; those that were written before stay.
pub fn write_reports(results: &Path, out: &Path) -> Result<PathBuf> {
    write_all_of(input::sweeps(results)?, |sweep| Comparison::read(results, sweep), out)
}

/// As [`write_reports`], of the sweeps that `read` reads by their names.
///
/// # Errors
///
/// As [`write_reports`].
pub fn write_all_of(
    sweeps: Vec<String>,
    read: impl Fn(&str) -> Result<Comparison>,
    out: &Path,
) -> Result<PathBuf> {
    let mut entries = Vec::new();
    for sweep in sweeps {
        let comparison = read(&sweep)?;
        write(&comparison, out)?;
        entries.push(Entry::of(&Summary::new(&comparison)));
    }
    fs::create_dir_all(out).with_context(|| format!("{}: can't be made", out.display()))?;
    let (index, part) =
        (out.join(INDEX), out.join(format!(".{INDEX}.part-{}", std::process::id())));
    fs::write(&part, index::page(&entries)?)
        .and_then(|()| fs::rename(&part, &index))
        .with_context(|| format!("{}: can't be written", index.display()))?;
    Ok(index)
}

/// Renders every file of the report.
///
/// # Errors
///
/// When a table or a figure can't be made.
pub fn render(comparison: &Comparison) -> Result<Files> {
    let summary = Summary::new(comparison);
    let figures = figures::figures(&summary)?;
    let mut page = page::page(&summary, &figures)?;
    let mut files = Files::new();
    files.insert("runs.csv".into(), tables::to_csv(&tables::runs(&summary)?)?);
    if !summary.methods.is_empty() {
        let by_run = tables::perplexity(&summary)?;
        files.insert("perplexity_by_run.csv".into(), tables::to_csv(&by_run)?);
    }
    for figure in figures {
        files.insert(format!("{}.csv", figure.name), tables::to_csv(&figure.frame)?);
        files.insert(format!("{}.svg", figure.name), figure.svg);
        files.insert(format!("{}_dark.svg", figure.name), figure.dark_svg);
    }
    // The next report must know which files are this one's, to remove those it does not write again.
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    page.push_str(&format!("\n{MANIFEST}{} -->\n", names.join(" ")));
    files.insert(PAGE.into(), page);
    Ok(files)
}

/// Begins the last line of a page, which lists the files that were written with it.
const MANIFEST: &str = "<!-- written with this page: ";

/// The files that the page in `folder` lists, where there is one: plain names of plots and tables only.
fn written_before(folder: &Path) -> Vec<String> {
    let page = fs::read_to_string(folder.join(PAGE)).unwrap_or_default();
    let listed = page.lines().next_back().and_then(|line| line.strip_prefix(MANIFEST));
    let names = listed.and_then(|line| line.strip_suffix(" -->")).unwrap_or_default();
    let is_ours = |name: &&str| {
        (name.ends_with(".svg") || name.ends_with(".csv")) && !name.contains(['/', '\\'])
    };
    names.split(' ').filter(is_ours).map(str::to_string).collect()
}

/// Writes all files beside their place first, then moves them there, the page last.
fn put_in_place(files: &Files, sweep: &str, out: &Path) -> Result<PathBuf> {
    let is_plain = !sweep.is_empty() && !sweep.starts_with('.') && !sweep.contains(['/', '\\']);
    ensure!(
        is_plain,
        "sweep `{sweep}`: expected a name that can be a folder's, found one with a path in it"
    );
    let folder = out.join(sweep);
    let part = out.join(format!(".{sweep}.part-{}", std::process::id()));
    let moved = write_all(files, &part).and_then(|()| move_all(files, &part, &folder));
    let cleaned = fs::remove_dir_all(&part);
    moved?;
    cleaned.with_context(|| part.display().to_string())?;
    Ok(folder.join(PAGE))
}

fn write_all(files: &Files, part: &Path) -> Result<()> {
    fs::create_dir_all(part).with_context(|| format!("{}: can't be made", part.display()))?;
    for (name, text) in files {
        let path = part.join(name);
        fs::write(&path, text).with_context(|| format!("{}: can't be written", path.display()))?;
    }
    Ok(())
}

fn move_all(files: &Files, part: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: can't be made", folder.display()))?;
    let stale: Vec<String> =
        written_before(folder).into_iter().filter(|name| !files.contains_key(name)).collect();
    let page_last = files.keys().filter(|name| *name != PAGE).map(String::as_str).chain([PAGE]);
    for name in page_last {
        let place = folder.join(name);
        fs::rename(part.join(name), &place)
            .with_context(|| format!("{}: can't be replaced", place.display()))?;
    }
    for name in stale {
        // Someone may have removed it already.
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(())
}
