//! Files that nobody sees half of, JSON that may not be there, and the clock that events are stamped by.

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01 UTC.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// Writes a file under another name and renames it, so that nobody sees half of it. A link stays one: what it points to is
/// written. What is there and no regular file (a pipe, a device) is written into.
///
/// # Errors
///
/// When it can't be written.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    write(path, contents, false)
}

/// As [`write_whole`], and on the disk when it is done: a machine that loses its power has the file as it was or as it is.
///
/// # Errors
///
/// When it can't be written.
pub fn write_durably(path: &Path, contents: &[u8]) -> Result<()> {
    write(path, contents, true)
}

/// Reads a file of JSON; `None` where there is none. What it is to hold is `expected`.
///
/// # Errors
///
/// When the file can't be read or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{}: expected {expected}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn write(path: &Path, contents: &[u8], durably: bool) -> Result<()> {
    let fill = |part: &Path| -> std::io::Result<()> {
        let mut file = File::create(part)?;
        file.write_all(contents)?;
        if durably { file.sync_all() } else { Ok(()) }
    };
    let write = || -> std::io::Result<()> {
        let target = match path.symlink_metadata() {
            Ok(about) if about.is_symlink() => fs::canonicalize(path)?,
            _ => path.to_path_buf(),
        };
        if fs::metadata(&target).is_ok_and(|about| !about.is_file() && !about.is_dir()) {
            return fs::write(&target, contents);
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{}.part", std::process::id()));
        let part = target.with_file_name(name);
        let written = fill(&part).and_then(|()| fs::rename(&part, &target));
        if written.is_err() {
            // Nothing half-written is left behind.
            let _ = fs::remove_file(&part);
        }
        written?;
        if let Some(folder) = target.parent().filter(|_| durably) {
            // The new name is the folder's to keep. Some file systems have nothing to sync of a folder, and say so.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    };
    write().map_err(|error| {
        let (place, help) = (path.display(), way_out(&error));
        anyhow!("{place}: the file can't be written: {error}{help}")
    })
}

/// What can be done where a file can't be written for want of room, as a line of help.
pub fn way_out(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "\n  help: make room on its disk, and run the same command again: it goes on from what is there"
        }
        ErrorKind::FileTooLarge => {
            "\n  help: raise the limit on the size of files (`ulimit -f`), and run the same command again"
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            "\n  help: name a folder that can be written to, or have its owner let you write"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_written_where_it_is_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("data.part"), "precious").unwrap();
        fs::write(path("target.csv"), "old").unwrap();
        symlink("target.csv", path("link.csv")).unwrap();
        write_whole(&path("data.csv"), b"new").unwrap();
        write_durably(&path("link.csv"), b"through").unwrap();
        assert_eq!(fs::read_to_string(path("data.part")).unwrap(), "precious");
        assert_eq!(fs::read_to_string(path("data.csv")).unwrap(), "new");
        assert_eq!(fs::read_to_string(path("target.csv")).unwrap(), "through");
        assert!(path("link.csv").symlink_metadata().unwrap().is_symlink());
        write_whole(Path::new("/dev/null"), b"nowhere").unwrap();
        let full = write_whole(Path::new("/dev/full"), b"x").unwrap_err().to_string();
        assert!(
            full.contains("No space left on device (os error 28)\n  help: make room"),
            "{full}"
        );
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let error = write_whole(&path("no/such.csv"), b"x").unwrap_err();
        assert!(format!("{error:#}").contains("no/such.csv: the file can't be written"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }
}
