//! Runs side by side: what tells them apart, and their results.

use super::cell;
use crate::cli::table::{Cell, Table};
use crate::store::{Run, Store};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What tells two runs apart: settings and facts that differ, then all results side by side.
///
/// # Errors
///
/// When `a` or `b` is not how exactly one run's id begins.
pub fn diff(store: &Store, a: &str, b: &str) -> Result<Table> {
    compare(store, &[store.find_run(a)?, store.find_run(b)?], true)
}

/// A column for each run: how it stands, settings (and facts) that are not the same in all of them, and all results.
///
/// # Errors
///
/// When there are fewer than two runs, or the store can't be read.
pub fn compare(store: &Store, runs: &[Run], with_facts: bool) -> Result<Table> {
    ensure!(runs.len() > 1, "expected two runs or more to compare, found {}", runs.len());
    let ids: Vec<&str> = runs.iter().map(|run| run.run_id.0.as_str()).collect();
    let mut table = Table::new(&[&["what", "key"], &ids[..]].concat());
    let mut differing = |what: &str, of_runs: Vec<BTreeMap<String, Value>>| {
        for (key, values) in side_by_side(&of_runs) {
            if values.iter().any(|value| *value != values[0]) {
                let cells = values.into_iter().map(|value| value.map_or(Cell::Null, cell));
                table.rows.push([what, key].map(Cell::from).into_iter().chain(cells).collect());
            }
        }
    };
    let of_each = |read: &dyn Fn(&Run) -> Result<BTreeMap<String, Value>>| {
        runs.iter().map(read).collect::<Result<Vec<_>>>()
    };
    differing("run", runs.iter().map(provenance).collect());
    differing("setting", of_each(&|run| store.params(&run.run_id))?);
    if with_facts {
        differing("fact", of_each(&|run| store.facts(&run.run_id))?);
    }
    let results = runs.iter().map(|run| results(store, run)).collect::<Result<Vec<_>>>()?;
    for (key, values) in side_by_side(&results) {
        let cells = values.into_iter().map(|value| value.cloned().unwrap_or(Cell::Null));
        table.rows.push(["result", key].map(Cell::from).into_iter().chain(cells).collect());
    }
    Ok(table)
}

/// Every key of any of the maps, with the value of each.
fn side_by_side<V>(maps: &[BTreeMap<String, V>]) -> Vec<(&str, Vec<Option<&V>>)> {
    let keys: BTreeSet<&String> = maps.iter().flat_map(BTreeMap::keys).collect();
    keys.into_iter()
        .map(|key| (key.as_str(), maps.iter().map(|map| map.get(key)).collect()))
        .collect()
}

/// How it stands, and what ran where.
fn provenance(run: &Run) -> BTreeMap<String, Value> {
    let known = json!({
        "status": run.status.name(),
        "status_detail": run.status_detail,
        "code_version": run.code_version,
        "git_commit": run.git_commit,
        "git_dirty": run.git_dirty,
        "host": run.host,
        "device": run.device,
        "device_name": run.device_name,
        "driver": run.driver,
        "libtorch": run.libtorch,
        "threads": run.threads,
    });
    let Value::Object(map) = known else { unreachable!("an object was just written") };
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn results(store: &Store, run: &Run) -> Result<BTreeMap<String, Cell>> {
    let mut results: BTreeMap<String, Cell> = store
        .last_metrics(&run.run_id)?
        .into_iter()
        .map(|(key, (_, value))| (key, Cell::Real(value)))
        .collect();
    for row in store.perplexity(&run.run_id)? {
        // Padded, so that lengths sort as numbers.
        let key =
            format!("perplexity.{}.{} {:>7}", row.split, row.method.name(), row.context_length);
        results.insert(key, Cell::Real(row.perplexity));
    }
    results.insert("steps".into(), Cell::Integer(run.step as i64));
    results.insert("seconds".into(), Cell::Real(run.seconds));
    // The highest of the run, not of its last step.
    for (key, peak) in
        [("peak_allocated", run.peak_allocated), ("peak_reserved", run.peak_reserved)]
    {
        results.insert(key.into(), peak.map_or(Cell::Null, |bytes| Cell::Integer(bytes as i64)));
    }
    Ok(results)
}
