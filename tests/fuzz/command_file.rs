//! Any command file is taken away once, as a command or as what is refused.

#![no_main]

use fathom_spec::record::RunPaths;
use fathom_spec::record::control::Inbox;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(folder.path());
    std::fs::create_dir(paths.control()).unwrap();
    std::fs::write(paths.control().join("1-fuzz.json"), bytes).unwrap();
    let mut inbox = Inbox::new(&paths);
    let request = inbox.take().expect("a file is there");
    if let Err(reason) = request.command {
        assert!(!reason.is_empty());
    }
    assert!(inbox.take().is_none());
    assert!(std::fs::read_dir(paths.control()).unwrap().next().is_none());
});
