//! Any event log is taken into the store or refused with a reason: in pieces as at once, a second time without change, and the
//! store that is rebuilt from the folder is the one that was live.

#![no_main]

use fathom::store::{RunRecord, SavedIdentity, Store};
use fathom_spec::config::written::Written;
use fathom_spec::config::{Digests, RunConfig, RunIdentity};
use fathom_spec::record::{RunId, RunPaths};
use libfuzzer_sys::fuzz_target;
use rusqlite::types::Value;

const CONFIG: &str = "\
model: {path: models/tiny}
data: {corpus: texts, splits: {validation: ['*7.txt']}}
train: {sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}
";

// The first byte says where the log is cut for the first look at it.
fuzz_target!(|input: (u8, &[u8])| {
    let (cut, log) = input;
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let (run, paths) = plan(&mut store);
    std::fs::write(paths.events(), &log[..log.len() * cut as usize / 256]).unwrap();
    let mut events = match store.ingest_run(&run) {
        Ok(found) => found.events,
        Err(error) => return is_a_reason(&error),
    };
    std::fs::write(paths.events(), log).unwrap();
    let before = dump(&store);
    match store.ingest_run(&run) {
        Ok(found) => events += found.events,
        Err(error) => {
            assert_eq!(dump(&store), before, "what is refused leaves a trace");
            return is_a_reason(&error);
        }
    }
    let live = dump(&store);
    assert_eq!(store.ingest_run(&run).unwrap().events, 0);
    assert_eq!(dump(&store), live, "a second look changes something");
    let rebuilt = store.rebuild().unwrap();
    assert!(rebuilt.problems.is_empty(), "{:?}", rebuilt.problems);
    assert_eq!((rebuilt.runs, rebuilt.events), (1, events));
    assert_eq!(dump(&store), live, "a rebuild changes something");
});

fn is_a_reason(error: &anyhow::Error) {
    let message = format!("{error:#}");
    assert!(
        message.contains("events.jsonl: byte ") || message.contains("can't be recorded"),
        "{message}"
    );
}

/// A run that is known, with its folder and no log.
fn plan(store: &mut Store) -> (RunId, RunPaths) {
    let config = RunConfig::from_written(&Written::parse("run.yaml", CONFIG).unwrap()).unwrap();
    let run_hash = "a".repeat(64);
    let run = RunId::from_hash(&run_hash);
    let paths = RunPaths::in_results(store.results(), &run);
    std::fs::create_dir_all(&paths.folder).unwrap();
    std::fs::write(paths.config(), config.to_yaml()).unwrap();
    let digests = Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() };
    let identity = RunIdentity { run_hash, group_hash: "9".repeat(64) };
    let identity = SavedIdentity { identity, digests, model_files: Vec::new(), created_at: 1.0 };
    identity.write(&paths).unwrap();
    store.upsert_run(&RunRecord { identity: &identity, config: &config }).unwrap();
    (run, paths)
}

/// All that the store has of its run, without the numbers that only join tables.
fn dump(store: &Store) -> Vec<String> {
    let below =
        "params attempts perplexity position_nll memory samples facts artifacts events_meta";
    let below = below.split(' ').map(|table| format!("SELECT '{table}', * FROM {table}"));
    let views = ["runs", "v_metrics", "v_metric_summaries"].map(|of| format!("SELECT * FROM {of}"));
    let mut all = Vec::new();
    for query in below.chain(views) {
        let mut statement = store.connection().prepare(&query).unwrap();
        let names: Vec<String> = statement.column_names().map(ToString::to_string).collect();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let shown =
                names.iter().enumerate().filter(|(_, name)| *name != "id" && *name != "run");
            let cell = |(i, name)| format!("{name}={:?}", row.get::<_, Value>(i).unwrap());
            all.push(shown.map(cell).collect::<Vec<_>>().join(" "));
        }
    }
    all.sort();
    all
}
