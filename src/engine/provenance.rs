//! What a run says of its origin beside the event `started`: which uncommitted changes it was built from, and what was not captured.

use crate::build_info;
use crate::facts::Sink;
use serde_json::{Value, json};

/// What this program was built from: the answer to `fathom-engine version`.
pub fn version() -> Value {
    let build = build_info();
    json!({
        "code_version": env!("CARGO_PKG_VERSION"),
        "git_commit": build.commit,
        "git_dirty": build.dirty,
        "git_diff": build.diff,
    })
}

/// Records the digest of the uncommitted changes (`null` without any), and the list of what is not captured.
pub fn record(log: &mut impl Sink, on_cuda: bool) {
    log.fact("provenance.git_diff", build_info().diff);
    log.fact("provenance.not_captured", not_captured(on_cuda));
}

/// What may change a number, or a speed, and stands in no event of the run.
fn not_captured(on_cuda: bool) -> Vec<&'static str> {
    let build = build_info();
    let mut list = Vec::new();
    match build.commit {
        None => list.push("the commit: this program was not built in a git checkout"),
        Some(_) => list.push("source files that git does not track"),
    }
    if build.diff.is_some() {
        list.push("the text of the uncommitted changes (their digest is)");
    }
    list.push("environment variables other than those of `started`");
    list.push("the versions of the kernel and of the C library");
    list.push("what else the machine was doing");
    if on_cuda {
        list.push("clocks, power limit and temperature of the GPU");
        list.push("the order of sums in kernels that are not deterministic");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_spec::record::EventKind;

    #[test]
    fn a_run_says_what_it_did_not_capture() {
        let lists = [false, true].map(|on_cuda| {
            let mut events: Vec<EventKind> = Vec::new();
            record(&mut events, on_cuda);
            let Some(EventKind::Fact { name, value }) = events.pop() else { panic!("no fact") };
            assert_eq!(name, "provenance.not_captured");
            value.as_array().unwrap().len()
        });
        assert_eq!(lists[1], lists[0] + 2);
    }

    /// A program with changes has their digest, and one without has none.
    #[test]
    fn the_version_has_a_digest_exactly_with_changes() {
        let version = version();
        assert_eq!(
            version["git_diff"].is_string(),
            version["git_dirty"] == json!(true),
            "{version}"
        );
    }
}
