//! How commits are kept: a write-ahead log on a disk of this machine, a rollback journal on a network's.
//!
//! A write-ahead log needs memory that all its readers and writers share, which machines on a network do not. There the
//! database has a rollback journal, and every commit is forced to the disk. A journal of our own, kept on a local disk and
//! folded in now and then, would bring nothing: the runs' event logs are that journal already. They are durable before the
//! store hears of them, and are folded in by [`Store::ingest_run`](super::Store::ingest_run), many events a commit.

use super::BUSY_TIMEOUT;
use anyhow::Result;
use rusqlite::{Connection, ErrorCode};
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// How the store keeps its commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Readers and the writer do not wait for each other.
    WriteAhead,
    /// For a file system that machines share, which is named.
    Rollback(&'static str),
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Journal::WriteAhead => f.write_str("write-ahead log"),
            Journal::Rollback(what) => write!(
                f,
                "rollback journal: {what} may be shared between machines, and a write-ahead log needs memory that they share"
            ),
        }
    }
}

/// `f_type` of statfs(2), from Linux' `magic.h` and the file systems' own headers.
const SHARED: [(i64, &str); 18] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x0bd0_0bd0, "Lustre"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0102_1997, "9P"),
    (0x4750_4653, "GPFS"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "OrangeFS"),
    (0xaad7_aaea, "PanFS"),
    (0x786f_4256, "a folder of VirtualBox' host"),
];

impl Journal {
    /// What suits the file system of a folder, or of the nearest above it that is there.
    pub fn of(folder: &Path) -> Journal {
        let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        match nix::sys::statfs::statfs(there) {
            Ok(found) => Journal::of_type(found.filesystem_type().0),
            // What can't be asked is taken for what nearly all are.
            Err(_) => Journal::WriteAhead,
        }
    }

    /// What suits a file system with this `f_type`.
    pub fn of_type(f_type: i64) -> Journal {
        // Some are negative as 32 bits.
        let f_type = f_type & 0xffff_ffff;
        match SHARED.iter().find(|(known, _)| *known == f_type) {
            Some((_, name)) => Journal::Rollback(name),
            None => Journal::WriteAhead,
        }
    }

    /// Before the first look at a database: one that was made with a write-ahead log elsewhere is opened without the memory
    /// that it would share.
    pub(super) fn prepare(self, connection: &Connection, path: &Path) -> Result<()> {
        if let Journal::Rollback(_) = self
            && has_write_ahead_log(path)
        {
            connection.pragma_update(None, "locking_mode", "exclusive")?;
        }
        Ok(())
    }

    /// Has the database kept so. It keeps this mode itself: asking is cheaper than setting, and needs no lock.
    pub(super) fn apply(self, connection: &Connection) -> Result<()> {
        let (mode, synchronous) = match self {
            // A commit may be undone by a power cut, but never torn; the logs have what it said.
            Journal::WriteAhead => ("wal", "normal"),
            Journal::Rollback(_) => ("delete", "full"),
        };
        let found: String = connection.pragma_query_value(None, "journal_mode", |r| r.get(0))?;
        if found != mode {
            switch(connection, mode)?;
        }
        if let Journal::Rollback(_) = self {
            connection.pragma_update(None, "locking_mode", "normal")?;
            // The lock is given back by the next statement that reads.
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        }
        connection.pragma_update(None, "synchronous", synchronous)?;
        Ok(())
    }
}

/// By the file format's write version, byte 18 of the header.
fn has_write_ahead_log(path: &Path) -> bool {
    let mut header = [0; 19];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header[18] == 2
}

/// Switches the journal. SQLite does not wait here for another process that is about to write, so we do.
fn switch(connection: &Connection, mode: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begun.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return Ok(done?),
        }
    }
}
