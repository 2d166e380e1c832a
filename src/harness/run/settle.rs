//! The store brought up to what the runs' folders and the kernel say: whoever reads it reads how things stand now.
//!
//! A run that the store calls unfinished is looked at: what its folder has more than the store is taken in, and one whose process
//! is gone without an ending gets the verdict that the scheduler gives it, by this same code, when it takes up its sweep again.
//! A run that another process holds is left to it: a harness keeps the lock of a run until it has written how the run ended.

use super::standing::{State, standing_where};
use super::{is_held, try_lock};
use crate::store::{Status, Store, Unfinished};
use anyhow::Result;
use fathom_spec::record::{RunId, RunPaths, now};
use std::path::Path;
use std::time::Duration;

/// How long a reader waits for another process's commit before it sets things right for itself alone.
const PATIENCE: Duration = Duration::from_millis(500);

/// Opens the store of a results folder for reading, with every run as it stands now. Where nothing may be written, or another
/// process is writing for long, the runs are set right in a copy that this reader alone sees.
///
/// # Errors
///
/// As [`Store::open_read_only`].
pub fn read_store(results: &Path) -> Result<Store> {
    let store = Store::open_read_only(results)?;
    match settle_to_read(&store) {
        Ok(true) => Ok(store),
        Ok(false) => store.apart(|copy| settle(copy, now())),
        // What is damaged is said by whoever meets it.
        Err(_) => Ok(store),
    }
}

/// As [`read_store`], where the database as it is would not do; `None` where whoever opens it finds how all runs stand now.
///
/// # Errors
///
/// As [`read_store`].
pub fn read_apart(results: &Path) -> Result<Option<Store>> {
    let store = Store::open_read_only(results)?;
    match settle_to_read(&store) {
        Ok(true) | Err(_) => Ok(None),
        Ok(false) => store.apart(|copy| settle(copy, now())).map(Some),
    }
}

/// Sets right what a reader would find wrong; says whether nothing is wrong any more.
fn settle_to_read(reader: &Store) -> Result<bool> {
    if is_settled(reader)? {
        return Ok(true);
    }
    // A reader carries no store of an earlier version forward; it has a copy.
    if reader.is_private() {
        return Ok(false);
    }
    let settled = Store::open(reader.results()).and_then(|mut writer| {
        writer.wait_at_most(PATIENCE)?;
        settle_all(&mut writer, now())
    });
    Ok(settled.is_ok_and(|settled| settled.refused == 0))
}

/// Whether the store has the last of every run, as far as that can be known.
fn is_settled(store: &Store) -> Result<bool> {
    let at = now();
    for run in store.unfinished()? {
        let paths = RunPaths::in_results(store.results(), &run.run_id);
        if is_of_interest(store, &run, &paths)? && would_change(store, &run, &paths, at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sets right what the store says of runs that are not finished: takes in what their folders have more, and gives those that
/// ended without a word, and whose processes are gone, the verdict `lost`; so too one of another host that was not heard of for
/// [`super::SILENCE_SECONDS`], which is running again as soon as it logs more. What is alive, on this host or on another, is left.
/// Returns the runs that are lost, with the reasons.
///
/// # Errors
///
/// When the store can't be read or written.
pub fn settle(store: &mut Store, now: f64) -> Result<Vec<(RunId, String)>> {
    Ok(settle_all(store, now)?.lost)
}

/// What came of settling.
#[derive(Default)]
struct Settled {
    lost: Vec<(RunId, String)>,
    /// Runs of which something could not be written.
    refused: usize,
}

fn settle_all(store: &mut Store, now: f64) -> Result<Settled> {
    let mut settled = Settled::default();
    for run in store.unfinished()? {
        let paths = RunPaths::in_results(store.results(), &run.run_id);
        if !is_of_interest(store, &run, &paths)? {
            continue;
        }
        // Held while it is settled, so that nobody begins it meanwhile; a copy is nobody else's. Who has it says how it ended.
        let lock = match store.is_private() || !paths.folder.is_dir() {
            true => Ok(None),
            false => match try_lock(&paths) {
                Ok(None) => {
                    if has_ended(&paths, now) && store.ingest_run(&run.run_id).is_err() {
                        settled.refused += 1;
                    }
                    continue;
                }
                lock => lock,
            },
        };
        let reason = lock.and_then(|lock| settle_one(store, &run, &paths, now, lock.is_some()));
        match reason {
            Ok(reason) => settled.lost.extend(reason.map(|reason| (run.run_id, reason))),
            // One run's folder keeps nothing from the others.
            Err(_) => settled.refused += 1,
        }
    }
    Ok(settled)
}

/// The store may not have heard that an open run began or ended; of another, that it was begun again.
fn is_of_interest(store: &Store, run: &Unfinished, paths: &RunPaths) -> Result<bool> {
    match run.status {
        Status::Running => Ok(true),
        Status::Planned if !paths.process().exists() && !paths.events().exists() => Ok(false),
        Status::Planned => Ok(true),
        _ => store.lags(run),
    }
}

/// Whether [`settle`] would find something to write.
fn would_change(store: &Store, run: &Unfinished, paths: &RunPaths, now: f64) -> Result<bool> {
    if is_held(paths) {
        return Ok(has_ended(paths, now) && store.lags(run)?);
    }
    let found = standing_where(paths, now, || false);
    let is_heard_of =
        found.is_ok_and(|found| matches!(found.state, State::Running | State::Elsewhere));
    Ok(!is_heard_of || store.lags(run)?)
}

/// Whether the log of a run that somebody has says how it ended: its harness may be stopped, and what is logged counts all the same.
fn has_ended(paths: &RunPaths, now: f64) -> bool {
    let found = standing_where(paths, now, || true);
    found.is_ok_and(|found| matches!(found.state, State::Ended(_)))
}

/// Settles one run that nobody else has; says why where it is lost.
fn settle_one(
    store: &mut Store,
    run: &Unfinished,
    paths: &RunPaths,
    now: f64,
    is_ours: bool,
) -> Result<Option<String>> {
    let run_id = &run.run_id;
    // What a lock says that we hold ourselves is no news.
    let found = standing_where(paths, now, || !is_ours && is_held(paths));
    // Its last words first. What can't be read of them is the run's trouble alone; and who only reads throws away nothing that a
    // log does not have any more.
    let status = match run.is_cut(paths) {
        true => Ok(run.status),
        false => store.ingest_run(run_id).map(|ingested| ingested.status),
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let open = matches!(store.status(run_id)?, Some(Status::Planned | Status::Running));
            let at_work = found.is_ok_and(|found| found.state.is_at_work());
            // What the database would not take is no fault of the run's.
            if !store.has_damaged_log(run_id)? {
                return Err(error);
            }
            if open && !at_work {
                fail_as_damaged(store, run_id, &error)?;
            }
            return Ok(None);
        }
    };
    let Ok(found) = found else { return Ok(None) };
    // It was begun another time and said nothing of that.
    if matches!(found.state, State::Ended(_)) && status == Status::Running {
        store.take_back(run_id)?;
    }
    let Some(reason) = found.state.loss(status) else { return Ok(None) };
    store.set_status(run_id, Status::Lost, Some(reason))?;
    Ok(Some(reason.to_string()))
}

/// A run whose log can't be read failed, with what was wrong; returns that, without the way out, which is for who looks on.
///
/// # Errors
///
/// When the store can't be written.
pub fn fail_as_damaged(store: &mut Store, run_id: &RunId, error: &anyhow::Error) -> Result<String> {
    let error = format!("{error:#}");
    let what = error.split("\n  help: ").next().unwrap_or(&error).to_string();
    store.set_status(run_id, Status::Failed, Some(&what))?;
    Ok(what)
}
