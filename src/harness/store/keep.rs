//! The database as a file: copies of it, its size, and what becomes of it when it is removed while it is in use.

use super::{Journal, Store, explain, migrate};
use anyhow::{Context, Error, Result, bail};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> Option<FileId> {
        let file = std::fs::metadata(path).ok()?;
        Some(FileId { device: file.dev(), inode: file.ino() })
    }
}

/// The name of a file that SQLite keeps beside the database: `-wal`, `-shm`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens a database that nothing may change. In a folder that can't be written, a write-ahead log's shared memory can't be
/// made: where no log is left, the file is all there is and is read as it stands. A commit that a kill cut off half way, by a
/// rollback journal, is undone first.
pub(super) fn open_to_read(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let looked = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    let length = |suffix| std::fs::metadata(beside(path, suffix)).map_or(0, |file| file.len());
    let is_refused = looked.as_ref().is_err_and(|error| {
        matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
    });
    match looked {
        Err(_) if is_refused && length("-journal") > 0 => {
            let writer = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            writer.busy_timeout(super::BUSY_TIMEOUT)?;
            // Whoever may write and reads first undoes it.
            writer.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok(Connection::open_with_flags(path, flags)?)
        }
        Err(_) if is_refused && length("-wal") == 0 => {
            let name: String = path
                .to_string_lossy()
                .chars()
                .map(|c| match c {
                    '%' | '?' | '#' => format!("%{:02x}", c as u32),
                    c => c.to_string(),
                })
                .collect();
            let uri = format!("file:{name}?immutable=1");
            Ok(Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?)
        }
        // What else is wrong is said where it is looked at.
        _ => Ok(connection),
    }
}

impl Store {
    /// Copies the store, as it stands at one moment, into a file of its own, as small as it can be. Runs may go on meanwhile.
    ///
    /// # Errors
    ///
    /// When the file is there already or can't be written.
    pub fn backup(&self, to: &Path) -> Result<()> {
        if to.exists() {
            bail!(
                "{}: expected no file of this name yet, found one\n  help: name another, or remove it",
                to.display()
            );
        }
        // It is another file that is written; SQLite does not tell them apart.
        let guarded: bool =
            self.connection.pragma_query_value(None, "query_only", |row| row.get(0))?;
        self.connection.pragma_update(None, "query_only", false)?;
        let copied = self.connection.execute("VACUUM INTO ?1", [to.to_string_lossy()]);
        self.connection.pragma_update(None, "query_only", guarded)?;
        copied.map(|_| ()).map_err(|error| {
            // What was begun of it is no copy.
            let _ = std::fs::remove_file(to);
            let (path, error) = (Store::path(&self.results), Error::from(error));
            match explain::is_damage(&error) {
                true => explain::using(
                    &path,
                    error.context(format!("{}: can't be copied", path.display())),
                ),
                false => error.context(format!("{}: the copy can't be written", to.display())),
            }
        })
    }

    /// Gives back the space that removed rows left.
    ///
    /// # Errors
    ///
    /// When the database can't be written, or another process holds it.
    pub fn vacuum(&mut self) -> Result<()> {
        let path = Store::path(&self.results);
        self.connection
            .execute_batch("VACUUM")
            .and_then(|()| self.fold_in())
            .map_err(|error| explain::using(&path, error.into()))
    }

    /// Brings the write-ahead log into the database and empties it, as far as readers let it.
    pub(super) fn fold_in(&self) -> rusqlite::Result<()> {
        match self.journal {
            Journal::Rollback(_) => Ok(()),
            Journal::WriteAhead => {
                self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            }
        }
    }

    /// Sees before each write that the file we write to is still the one of its name. One that was removed meanwhile is put
    /// back, with all that it held; one that was replaced is left for the one in its place.
    pub(super) fn hold_file(&mut self) -> Result<()> {
        let path = Store::path(&self.results);
        let there = FileId::of(&path);
        if self.file.is_none() || there == self.file {
            return Ok(());
        }
        if there.is_none() {
            self.put_back(&path).with_context(|| {
                format!(
                    "{}: the database was removed while it was in use, and can't be put back",
                    path.display()
                )
            })?;
        }
        *self = Store::open_with(&self.results, self.journal)?;
        Ok(())
    }

    fn put_back(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(&self.results)?;
        let part = beside(path, &format!(".{}.part", std::process::id()));
        let _ = std::fs::remove_file(&part);
        migrate::copy_all(&self.connection, &mut Connection::open(&part)?)?;
        // They belong to the file that is gone.
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(path, suffix));
            let _ = std::fs::remove_file(beside(&part, suffix));
        }
        std::fs::rename(&part, path)?;
        Ok(())
    }
}

/// Moves a damaged database out of the way, with what belongs to it: `fathom.db.broken`, `fathom.db.broken-2`, ...
pub(super) fn move_aside(path: &Path) -> Result<PathBuf> {
    let names = std::iter::once(".broken".to_string()).chain((2..).map(|n| format!(".broken-{n}")));
    let aside = names
        .map(|suffix| beside(path, &suffix))
        .find(|aside| !aside.exists())
        .expect("numbers do not end");
    for suffix in ["-wal", "-shm", ""] {
        let from = beside(path, suffix);
        if from.exists() {
            std::fs::rename(&from, beside(&aside, suffix))
                .with_context(|| format!("{}: can't be moved aside", from.display()))?;
        }
    }
    Ok(aside)
}
