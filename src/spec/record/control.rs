//! Command files: what a run is asked for from outside, on this host or on another that shares its folder.
//!
//! A request is a file `control/NAME.json` that holds `{"command": "save"}`. It is written under another name and renamed, so
//! that nobody reads half of one. The run looks between two steps, takes the first by name away, acts on it, and answers
//! with a `control` event that has the file's name. What is no command is taken away and answered too: a slip of somebody's
//! shell neither ends a run nor stays to be read for ever.

use super::RunPaths;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The most bytes a command file may have; ours have about thirty.
const LONGEST: u64 = 4096;

/// What a run can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Write a checkpoint and go on.
    Save,
    /// End after this step, with a checkpoint where the run writes any.
    Stop,
    /// Write a checkpoint and end; a run that can't write one goes on.
    SaveStop,
    /// End after this step and write no checkpoint, not even one that is due; earlier ones stay.
    Abort,
    /// Begin the decay of a `wsd` schedule now.
    StartAnnealing,
}

impl Command {
    pub const ALL: [Command; 5] =
        [Command::Save, Command::Stop, Command::SaveStop, Command::Abort, Command::StartAnnealing];

    /// As a command file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Command::Save => "save",
            Command::Stop => "stop",
            Command::SaveStop => "save-stop",
            Command::Abort => "abort",
            Command::StartAnnealing => "start-annealing",
        }
    }

    /// Whether the run ends by it.
    pub fn ends_the_run(self) -> bool {
        matches!(self, Command::Stop | Command::SaveStop | Command::Abort)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Command {
    type Err = String;
    fn from_str(text: &str) -> Result<Command, String> {
        Command::ALL.into_iter().find(|command| command.name() == text).ok_or_else(|| {
            let names = Command::ALL.map(Command::name).join(", ");
            format!("expected one of {names}, found `{text}`")
        })
    }
}

/// A command file that was taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The file's name without `.json`: what the answer refers to.
    pub id: String,
    /// What is asked for, or why the file asks for nothing.
    pub command: Result<Command, String>,
}

/// Puts a request into a run's folder and returns its id. Requests are answered in the order they were made in.
///
/// # Errors
///
/// When there is no such folder, or the file can't be written.
pub fn send(paths: &RunPaths, command: Command) -> Result<String> {
    static SENT: AtomicU64 = AtomicU64::new(0);
    if !paths.folder.is_dir() {
        bail!("{}: expected a run's folder, found none", paths.folder.display());
    }
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    let count = SENT.fetch_add(1, Ordering::Relaxed);
    let id = format!("{nanos:020}-{}-{count}", std::process::id());
    let folder = paths.control();
    let part = folder.join(format!("{id}.part"));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&folder)?;
        fs::write(&part, format!("{{\"command\": \"{command}\"}}\n"))?;
        fs::rename(&part, folder.join(format!("{id}.json")))
    };
    write().with_context(|| format!("{}: the command can't be written", folder.display()))?;
    Ok(id)
}

/// The run's end of the folder.
#[derive(Debug)]
pub struct Inbox {
    folder: PathBuf,
    /// What could not be taken away: said once, and passed over from then on.
    stuck: BTreeSet<PathBuf>,
}

impl Inbox {
    pub fn new(paths: &RunPaths) -> Inbox {
        Inbox { folder: paths.control(), stuck: BTreeSet::new() }
    }

    /// Takes the first request away, by name; `None` when there is none, or no folder.
    pub fn take(&mut self) -> Option<Request> {
        let path = waiting(&self.folder).into_iter().find(|path| !self.stuck.contains(path))?;
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let command = read(&path);
        // A command that stays would be acted on for ever.
        let command = match fs::remove_file(&path) {
            Ok(()) => command,
            Err(error) => {
                self.stuck.insert(path);
                Err(format!("expected a file that can be removed, found one that can't: {error}"))
            }
        };
        Some(Request { id, command })
    }
}

/// The command files of a `control` folder that nobody has taken yet, in their order.
pub fn waiting(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    files
}

/// What a command file asks for.
///
/// # Errors
///
/// When it is anything but a small file with a known command.
pub fn read(path: &Path) -> Result<Command, String> {
    let about = fs::symlink_metadata(path).map_err(|e| format!("expected a file, found {e}"))?;
    // Opening a pipe would wait for whoever writes into it.
    if !about.is_file() {
        return Err("expected a file, found something else by that name".into());
    }
    if about.len() > LONGEST {
        return Err(format!("expected at most {LONGEST} bytes, found {}", about.len()));
    }
    let bytes = fs::read(path).map_err(|e| format!("expected a file that can be read: {e}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let json: Result<serde_json::Value, _> = serde_json::from_str(&text);
    match json.ok().as_ref().and_then(|json| json["command"].as_str()) {
        Some(name) => name.parse(),
        None => {
            let shown: String = text.trim().chars().take(60).collect();
            Err(format!("expected `{{\"command\": NAME}}`, found `{shown}`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn folder() -> (tempfile::TempDir, RunPaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path().join("run"));
        fs::create_dir_all(paths.control()).unwrap();
        (dir, paths)
    }

    #[test]
    fn requests_are_taken_in_the_order_they_were_made_in() {
        let (_dir, paths) = folder();
        let ids: Vec<String> =
            Command::ALL.iter().map(|command| send(&paths, *command).unwrap()).collect();
        fs::write(paths.control().join("0.part"), "half a").unwrap();
        let mut inbox = Inbox::new(&paths);
        for (id, command) in ids.into_iter().zip(Command::ALL) {
            assert_eq!(inbox.take(), Some(Request { id, command: Ok(command) }));
        }
        assert_eq!(inbox.take(), None);
        assert!(
            paths.control().join("0.part").exists(),
            "what is still being written is left alone"
        );
    }

    #[test]
    fn what_is_no_command_is_taken_away_and_said() {
        let (_dir, paths) = folder();
        let mut inbox = Inbox::new(&paths);
        for (contents, said) in [
            (
                "{\"command\": \"sve\"}",
                "expected one of save, stop, save-stop, abort, start-annealing, found `sve`",
            ),
            ("{\"command\": ", "expected `{\"command\": NAME}`, found `{\"command\":`"),
            ("{\"command\": 3}", "expected `{\"command\": NAME}`, found `{\"command\": 3}`"),
            ("", "expected `{\"command\": NAME}`, found ``"),
            (&"x".repeat(5000), "expected at most 4096 bytes, found 5000"),
        ] {
            fs::write(paths.control().join("1.json"), contents).unwrap();
            let request = inbox.take().unwrap();
            assert_eq!((request.id.as_str(), request.command), ("1", Err(said.to_string())));
            assert_eq!(inbox.take(), None);
        }
        // Nothing of a folder by that name is removed, and it hides no request behind it.
        fs::create_dir(paths.control().join("0.json")).unwrap();
        let id = send(&paths, Command::Save).unwrap();
        let first = inbox.take().unwrap();
        assert!(first.command.unwrap_err().contains("found one that can't"));
        assert_eq!(inbox.take(), Some(Request { id, command: Ok(Command::Save) }));
        assert_eq!(inbox.take(), None);
        let nowhere = RunPaths::new(paths.folder.join("gone"));
        assert_eq!(Inbox::new(&nowhere).take(), None);
        let error = send(&nowhere, Command::Save).unwrap_err().to_string();
        assert!(error.ends_with("gone: expected a run's folder, found none"), "{error}");
        assert!(!nowhere.folder.exists());
    }

    proptest! {
        /// Whatever bytes are put there, and however the file of a command was cut off, the run takes it away and goes on.
        #[test]
        fn no_file_stops_the_inbox(
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            command in prop::sample::select(Command::ALL.to_vec()),
            cut in 0usize..40,
        ) {
            let (_dir, paths) = folder();
            let whole = format!("{{\"command\": \"{command}\"}}");
            fs::write(paths.control().join("1.json"), &garbage).unwrap();
            fs::write(paths.control().join("2.json"), &whole[..cut.min(whole.len())]).unwrap();
            fs::write(paths.control().join("3.json"), &whole).unwrap();
            let mut inbox = Inbox::new(&paths);
            let taken: Vec<Request> = std::iter::from_fn(|| inbox.take()).collect();
            let ids: Vec<&str> = taken.iter().map(|request| request.id.as_str()).collect();
            prop_assert_eq!(ids, ["1", "2", "3"]);
            prop_assert!(taken[0].command.is_err());
            prop_assert_eq!(taken[1].command.is_ok(), cut >= whole.len());
            prop_assert_eq!(&taken[2].command, &Ok(command));
            prop_assert!(waiting(&paths.control()).is_empty());
        }
    }
}
