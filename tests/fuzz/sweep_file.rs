//! Any text is a plan or an error that says where it is; the plan of one text is always the same.

#![no_main]

use fathom::sweep::plan::Plan;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Bases are those of the seeds, `base.yaml` beside this file among them.
    let library = [here.join("../../templatelib")];
    let plan = || Plan::parse(&here.join("fuzz.yaml"), text, &library, &[]);
    match plan() {
        Err(error) => {
            let message = format!("{error:#}");
            assert!(message.contains(": expected ") || message.contains(".yaml"), "{message}");
        }
        Ok(found) => {
            let again = plan().expect("it was a plan a moment ago");
            let shown = |plan: &Plan| -> Vec<String> {
                plan.points.iter().map(|point| format!("{} {}", point.label, point.seed)).collect()
            };
            assert_eq!(shown(&found), shown(&again));
        }
    }
});
