//! What makes a point new: the keys, and digests of what they name, in which the nearest finished run differs from it.

use super::drive::Identified;
use crate::store::{Run, Status, Store};
use anyhow::Result;
use fathom_spec::config::RunConfig;
use serde_json::Value;
use std::collections::BTreeMap;

/// Why a point has to be run, or has not.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// It has its result.
    Done(Run),
    /// It is known, and has none.
    Begun(Run),
    /// It is not known; the finished run that is most like it, and in what that one differs.
    New(Option<(Run, Vec<Difference>)>),
}

/// A part of a run's identity, as it is at a point and at another run.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// A key path; `model`, `tokenizer` and `data` stand for the digests of what they name.
    pub key: String,
    pub here: Value,
    pub there: Value,
}

/// The finished runs of a store, each by the parts of its identity.
#[derive(Debug, Default)]
pub struct Finished(Vec<(Run, BTreeMap<String, Value>)>);

impl Finished {
    /// # Errors
    ///
    /// When the store can't be read. A run whose configuration this version can't read is passed over.
    pub fn of(store: &Store) -> Result<Finished> {
        let runs = store.runs()?.into_iter().filter(|run| run.status == Status::Finished);
        let with_parts = |run: Run| {
            let config: RunConfig = serde_json::from_value(run.config.clone()).ok()?;
            let parts = config.identity_parts(&run.digests).into_iter().collect();
            Some((run, parts))
        };
        Ok(Finished(runs.filter_map(with_parts).collect()))
    }

    /// Why `point`, which the store knows as `known` if at all, has to be run.
    pub fn why(&self, point: &Identified, known: Option<Run>) -> Why {
        match known {
            Some(run) if run.status.is_result() => return Why::Done(run),
            Some(run) if run.status != Status::Planned => return Why::Begun(run),
            _ => {}
        }
        let parts = point.point.config.identity_parts(&point.identity.digests);
        let here: BTreeMap<String, Value> = parts.into_iter().collect();
        let nearest = self.0.iter().map(|(run, there)| (run, differences(&here, there)));
        let nearest = nearest.min_by_key(|(_, differences)| differences.len());
        Why::New(nearest.map(|(run, differences)| (run.clone(), differences)))
    }
}

fn differences(here: &BTreeMap<String, Value>, there: &BTreeMap<String, Value>) -> Vec<Difference> {
    let keys = here.keys().chain(there.keys().filter(|key| !here.contains_key(*key)));
    let of =
        |parts: &BTreeMap<String, Value>, key: &str| parts.get(key).cloned().unwrap_or(Value::Null);
    keys.filter(|key| of(here, key) != of(there, key))
        .map(|key| Difference { key: key.clone(), here: of(here, key), there: of(there, key) })
        .collect()
}
