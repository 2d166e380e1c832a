//! Who was sent on from which rung: `sweeps/<name>.promotions`, read and written by who holds the sweep's lock.
//!
//! A promotion is written before its run begins. Whatever number of harnesses drive the sweep, and whichever of them dies, what
//! one of them decided the next one finds, also after the machine lost its power.

use crate::run::wait_for_lock;
use anyhow::{Result, anyhow};
use fathom_spec::record::{RunId, SweepPaths, read_json, write_durably};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    pub run_id: RunId,
    /// The rung that it was sent on from, in tokens.
    pub from_tokens: u64,
    /// How many had reached the rung by then.
    pub of: usize,
    /// Which of them it was, the best being 1.
    pub place: usize,
}

/// All decisions of a sweep so far, while nobody else can add to them.
pub(super) struct Promotions {
    paths: SweepPaths,
    made: Vec<Promotion>,
    known: HashSet<(RunId, u64)>,
    /// Gone with the value: the kernel releases it.
    _lock: File,
}

impl Promotions {
    /// Waits until nobody else decides.
    pub fn hold(paths: SweepPaths) -> Result<Promotions> {
        let lock = wait_for_lock(&paths.lock(), "the sweep's lock")?;
        let made = read_json(&paths.promotions(), "the promotions of a sweep as JSON");
        let made: Vec<Promotion> = made.map_err(with_way_out)?.unwrap_or_default();
        let known = made.iter().map(|one| (one.run_id.clone(), one.from_tokens)).collect();
        Ok(Promotions { paths, made, known, _lock: lock })
    }

    /// Whether a run was sent on from a rung.
    pub fn has(&self, run_id: &RunId, from_tokens: u64) -> bool {
        self.known.contains(&(run_id.clone(), from_tokens))
    }

    /// Adds decisions, and keeps them before they are acted on.
    pub fn add(&mut self, promotions: Vec<Promotion>) -> Result<()> {
        if promotions.is_empty() {
            return Ok(());
        }
        let keys = promotions.iter().map(|one| (one.run_id.clone(), one.from_tokens));
        self.known.extend(keys);
        self.made.extend(promotions);
        let text = serde_json::to_string_pretty(&self.made)? + "\n";
        write_durably(&self.paths.promotions(), text.as_bytes())
    }
}

fn with_way_out(error: anyhow::Error) -> anyhow::Error {
    match error.is::<serde_json::Error>() {
        true => {
            anyhow!("{error:#}\n  help: remove it: who has gone past a rung is known all the same")
        }
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_damaged_file_says_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let paths = SweepPaths::in_results(dir.path(), "s");
        std::fs::create_dir_all(SweepPaths::folder(dir.path())).unwrap();
        std::fs::write(paths.promotions(), "[{").unwrap();
        let said = Promotions::hold(paths).map(|_| ()).unwrap_err().to_string();
        assert!(
            said.contains("s.promotions: expected the promotions of a sweep as JSON: "),
            "{said}"
        );
        assert!(said.ends_with("past a rung is known all the same"), "{said}");
    }

    /// Each reads what the one before it wrote, however many wait.
    #[test]
    fn one_decides_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, all) = (AtomicUsize::new(0), 8 * 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let paths = SweepPaths::in_results(dir.path(), "s");
                        let mut held = Promotions::hold(paths).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        let of = held.made.len();
                        let run_id = RunId(of.to_string());
                        held.add(vec![Promotion { run_id, from_tokens: 7, of, place: 1 }]).unwrap();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let held = Promotions::hold(SweepPaths::in_results(dir.path(), "s")).unwrap();
        let counted: Vec<usize> = held.made.iter().map(|one| one.of).collect();
        assert_eq!(counted, (0..all).collect::<Vec<_>>());
        assert!(held.has(&RunId("0".into()), 7) && !held.has(&RunId("0".into()), 8));
    }
}
