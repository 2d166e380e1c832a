//! Every file name of a run, in one place.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The name of a run and of its folder: the first 12 hexadecimal digits of the configuration's `run_hash`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub String);

impl RunId {
    /// # Panics
    ///
    /// When `run_hash` is shorter than 12 characters: it is 64 hexadecimal digits.
    pub fn from_hash(run_hash: &str) -> RunId {
        RunId(run_hash[..12].to_string())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files of one run's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    pub folder: PathBuf,
}

impl RunPaths {
    pub fn new(folder: impl Into<PathBuf>) -> RunPaths {
        RunPaths { folder: folder.into() }
    }

    /// The folder of run `id` under `results` (usually `results/`): `results/runs/<id>`.
    pub fn in_results(results: &Path, id: &RunId) -> RunPaths {
        RunPaths::new(results.join("runs").join(&id.0))
    }

    /// Tokens that runs beside this one may have computed already: the folder `cache` in that of the run, or beside `runs`
    /// where that is the run's: `results/cache`.
    pub fn cache(&self) -> PathBuf {
        let parent = self.folder.parent().unwrap_or(Path::new(""));
        let is_runs = parent.file_name().is_some_and(|name| name == "runs");
        let beside = if is_runs { parent.parent().unwrap_or(parent) } else { parent };
        beside.join("cache")
    }

    /// The complete configuration, as it was hashed.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// The hashes and digests that make the run the run it is, as JSON; written once, with the configuration.
    pub fn identity(&self) -> PathBuf {
        self.folder.join("identity.json")
    }

    /// The tags and the note that people gave the run, as JSON; there once they did.
    pub fn labels(&self) -> PathBuf {
        self.folder.join("labels.json")
    }

    /// What a supervisor found of attempts that did not say themselves how they ended, as JSON; there once it did.
    pub fn verdicts(&self) -> PathBuf {
        self.folder.join("verdicts.json")
    }

    /// One event a line; all attempts of the run, in order.
    pub fn events(&self) -> PathBuf {
        self.folder.join("events.jsonl")
    }

    pub fn stdout(&self) -> PathBuf {
        self.folder.join("stdout.log")
    }

    pub fn stderr(&self) -> PathBuf {
        self.folder.join("stderr.log")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The checkpoint written after `step` optimizer steps. Its name sorts by step.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// The complete checkpoint with the most steps, if there is one: `(step, folder)`.
    ///
    /// A checkpoint is written under another name and renamed when it is whole, so every `step-…` folder is complete.
    pub fn latest_checkpoint(&self) -> Option<(u64, PathBuf)> {
        let entries = std::fs::read_dir(self.checkpoints()).ok()?;
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, path))
            })
            .max()
    }

    /// Command files that the run acts on between steps.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// Which process has the run: [`super::Process`].
    pub fn process(&self) -> PathBuf {
        self.folder.join("process.json")
    }

    /// Held by the process that supervises the run, so that two supervisors never run it twice.
    pub fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }
}

/// The files of one sweep beside the folders of runs: `results/sweeps/<name>.json`, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepPaths {
    folder: PathBuf,
    name: String,
}

impl SweepPaths {
    /// Those of the sweep `name` under `results`.
    pub fn in_results(results: &Path, name: &str) -> SweepPaths {
        SweepPaths { folder: SweepPaths::folder(results), name: name.to_string() }
    }

    /// Where all sweeps of a results folder are.
    pub fn folder(results: &Path) -> PathBuf {
        results.join("sweeps")
    }

    /// The sweep as it was last planned, with its points, as JSON.
    pub fn record(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// Who was sent on from which rung, as JSON; only of a sweep that halves.
    pub fn promotions(&self) -> PathBuf {
        self.folder.join(format!("{}.promotions", self.name))
    }

    /// Held by whoever decides who is sent on.
    pub fn lock(&self) -> PathBuf {
        self.folder.join(format!("{}.lock", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_checkpoint_is_the_one_with_the_most_steps() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        assert_eq!(paths.latest_checkpoint(), None);
        for step in [5, 100, 20] {
            std::fs::create_dir_all(paths.checkpoint(step)).unwrap();
        }
        std::fs::create_dir_all(paths.checkpoints().join("step-00000200.part")).unwrap();
        assert_eq!(paths.latest_checkpoint(), Some((100, paths.checkpoint(100))));
    }
    #[test]
    fn runs_of_one_place_share_a_cache() {
        let cache = |folder: &str| RunPaths::new(folder).cache();
        assert_eq!(cache("results/runs/7f3a"), Path::new("results/cache"));
        assert_eq!(cache("runs/7f3a"), Path::new("cache"));
        assert_eq!(cache("/tmp/mine"), Path::new("/tmp/cache"));
    }
}
