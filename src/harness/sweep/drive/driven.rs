//! That somebody drives a sweep: every harness at work on it shares `control/<sweep>.driven`, a lock that the kernel lets go of
//! when the last of them is gone. Between two of its runs nothing else tells.

use crate::run::{is_shared, share_lock};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Held for as long as this process drives the sweep. Where it can't be had (another user's folder) nothing is the worse for it but
/// that others do not know.
pub(super) struct Driven {
    _file: Option<File>,
}

fn path(results: &Path, sweep: &str) -> PathBuf {
    results.join("control").join(format!("{sweep}.driven"))
}

/// Says of a sweep that it is driven.
pub(super) fn drive(results: &Path, sweep: &str) -> Driven {
    Driven { _file: share_lock(&path(results, sweep)).ok() }
}

/// Whether a harness, on any host that locks reach, drives a sweep.
pub fn is_driven(results: &Path, sweep: &str) -> bool {
    is_shared(&path(results, sweep))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_driven_until_the_last_one_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_driven(dir.path(), "s"));
        let first = drive(dir.path(), "s");
        let second = drive(dir.path(), "s");
        drop(first);
        assert!(is_driven(dir.path(), "s"));
        assert!(!is_driven(dir.path(), "t"), "it is this sweep's alone");
        drop(second);
        assert!(!is_driven(dir.path(), "s"));
    }
}
