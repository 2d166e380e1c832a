//! Any bytes are a log that can be read, or an error that names its file; what was read is not read again, and a log that can
//! be read can be written on.

#![no_main]

use fathom_spec::record::{EventKind, EventLog, read_events};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    std::fs::write(&path, bytes).unwrap();
    match read_events(&path, 0) {
        Err(error) => assert!(format!("{error:#}").contains("events.jsonl"), "{error:#}"),
        Ok((events, whole)) => {
            assert!(whole <= bytes.len() as u64);
            assert!(read_events(&path, whole).unwrap().0.is_empty());
            let Ok(mut log) = EventLog::open(&path) else { return };
            log.write(EventKind::Heartbeat { step: 1 }).unwrap();
            assert_eq!(read_events(&path, 0).unwrap().0.len(), events.len() + 1);
        }
    }
});
