//! `fathom reproduce`: a run's configuration run again beside it, and the difference in numbers.

use super::exit;
use super::folder::check_folder;
use super::progress::Progress;
use super::sweep::{Places, exit_code, print_summary, watch_interrupts};
use super::table::{Cell, Format, Table, print};
use crate::run::{find_worker, read_store};
use crate::store::{Run, Store};
use crate::sweep::Identities;
use crate::sweep::code::{Code, NOT_CAPTURED};
use crate::sweep::drive::{Driver, Identified, identify};
use crate::sweep::plan::Point;
use crate::sweep::reproduce::{Nearness, compare, nearness, verdict};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use fathom_spec::config::RunConfig;
use fathom_spec::record::ANNEALING;
use serde_json::Map;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ReproduceArgs {
    /// The run: its id or the beginning of it
    run: String,
    #[command(flatten)]
    places: Places,
    /// The results folder of the new run [default: a new one under reproduced/ of the results]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// How far numbers may be apart, in nats a token (and in norms of gradients)
    #[arg(long, default_value_t = 1e-3, value_name = "NATS")]
    tolerance: f64,
}

/// Carries out `fathom reproduce`. The exit code says how near the numbers are.
///
/// # Errors
///
/// When the run is not there or has no result, what its configuration names has changed, or a file can't be written.
pub fn run(args: &ReproduceArgs) -> Result<u8> {
    let results = &args.places.results;
    let store = read_store(results)?;
    let before = store.find_run(&args.run)?;
    if !before.status.is_result() {
        bail!(
            "run {}: expected a run with a result, found one that is {}\n  help: the sweep that it belongs to goes on with it",
            before.run_id,
            before.status
        );
    }
    let point = same_point(&before)?;
    let into = args.into.clone().unwrap_or_else(|| free_folder(results, &before));
    check_folder("--into", &into)?;
    if std::path::absolute(&into)? == std::path::absolute(results)? {
        bail!("--into {}: expected another folder than the run's own results", into.display());
    }
    if let Some(fact) = store.facts(&before.run_id)?.get(ANNEALING) {
        tell!(
            "note: run {} was told to begin its decay while it ran ({fact}), which its configuration does not say: its numbers will \
             differ from there on",
            before.run_id
        );
    }
    let worker = find_worker()?;
    let today = Code::of_worker(&worker);
    let mut new_store = Store::open(&into)?;
    let progress = Progress::new(point.point.label.len());
    let mut driver = Driver {
        results: &into,
        worker,
        jobs: 1,
        shares: None,
        seconds: None,
        slurm: None,
        again: Vec::new(),
        store: &mut new_store,
        watcher: &progress,
        interrupts: watch_interrupts()?,
    };
    let summary = driver.single(point.clone())?;
    let after = new_store.known_run(&point.run_id())?;
    if !after.status.is_result() {
        print_summary(&summary);
        return Ok(exit_code(&summary));
    }
    let compared = compare((&store, &before), (&new_store, &after))?;
    let mut text = format!("run {} again, in {}\n", before.run_id, into.display());
    text += &made_by(&store, &before, today.as_ref())?;
    text += &format!("ended: {}, then {}\n", before.status, after.status);
    let mut table =
        Table::new(&["number", "compared", "equal bits", "largest difference", "at step"]);
    for line in &compared {
        let at = line.at.map_or(Cell::Null, |at| Cell::Integer(at as i64));
        let count = |n: usize| Cell::Integer(n as i64);
        let (numbers, equal) = (count(line.numbers), count(line.equal));
        let what = match line.alone {
            0 => line.what.clone(),
            n => format!("{} ({n} of one run alone)", line.what),
        };
        let largest = if line.numbers > 0 { Cell::Real(line.largest) } else { Cell::Null };
        table.rows.push(vec![what.into(), numbers, equal, largest, at]);
    }
    text += &table.render(Format::Table);
    let code = match nearness(&before, &after, &compared, args.tolerance) {
        Nearness::EqualBits => exit::OK,
        Nearness::WithinTolerance => exit::WITHIN_TOLERANCE,
        Nearness::Different => exit::DIFFERENT,
    };
    text += &format!("{}\n", verdict(before.status, after.status, &compared, args.tolerance));
    text += &not_captured(&store, &before)?;
    print(&text)?;
    Ok(code)
}

/// The run's configuration as a point, if what it names still is what it was.
fn same_point(run: &Run) -> Result<Identified> {
    let config: RunConfig = serde_json::from_value(run.config.clone())
        .with_context(|| format!("run {}: expected a configuration of this version", run.run_id))?;
    let label = format!("run {}", run.run_id);
    let point = Point { label, seed: run.seed, settings: Map::new(), config };
    let point = identify(&[point], &mut Identities::default())?.remove(0);
    if point.identity.identity.run_hash == run.run_hash {
        return Ok(point);
    }
    let (is, was) = (&point.identity.digests, &run.digests);
    let parts = [
        ("model.path", &is.model, &was.model),
        ("tokenizer.path", &is.tokenizer, &was.tokenizer),
        ("data.corpus", &is.data, &was.data),
    ];
    let changed: Vec<&str> =
        parts.iter().filter(|(_, is, was)| is != was).map(|(key, ..)| *key).collect();
    let changed = if changed.is_empty() { "the configuration".into() } else { changed.join(", ") };
    bail!(
        "run {}: expected what it was made from, found other contents of {changed}\n  help: bring the files back as they were; what \
         is there now is another run",
        run.run_id
    )
}

/// `reproduced/<run>` of the results, with a number where it is taken.
fn free_folder(results: &Path, run: &Run) -> PathBuf {
    let folder = |n: u32| results.join("reproduced").join(format!("{}-{n}", run.run_id));
    (1..).map(folder).find(|folder| !folder.exists()).expect("numbers do not end")
}

fn made_by(store: &Store, run: &Run, today: Option<&Code>) -> Result<String> {
    let then = Code::of_run(store, run)?;
    Ok(match (then, today) {
        (Some(then), Some(today)) if then.is(today) => format!("code: {today}, both times\n"),
        (Some(then), Some(today)) => format!("code: {then}, then {today}\n"),
        (Some(then), None) => format!("code: {then}, then unknown (the worker does not say)\n"),
        (None, _) => String::new(),
    })
}

/// What the first run did not record, and may be the reason of a difference.
fn not_captured(store: &Store, run: &Run) -> Result<String> {
    let facts = store.facts(&run.run_id)?;
    let list = facts.get(NOT_CAPTURED).and_then(|value| value.as_array()).cloned();
    let list: Vec<String> = list
        .unwrap_or_default()
        .iter()
        .filter_map(|item| item.as_str().map(str::to_string))
        .collect();
    Ok(if list.is_empty() { String::new() } else { format!("not captured: {}\n", list.join("; ")) })
}
