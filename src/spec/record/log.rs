//! The append-only event log: written a line at a time, read by anyone, tolerant of a torn last line.

use super::{Event, EventKind};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The writing end. Every event reaches the kernel before [`EventLog::write`] returns, so a killed process loses none;
/// endings and checkpoints are forced to the disk as well.
pub struct EventLog {
    path: PathBuf,
    file: File,
    next_seq: u64,
    began: Instant,
}

impl EventLog {
    /// Opens the log for appending and creates it where there is none. A torn last line, left by a killed writer, is cut off.
    ///
    /// # Errors
    ///
    /// When the file can't be opened, read or shortened.
    pub fn open(path: &Path) -> Result<EventLog> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("{}: the event log can't be opened", path.display()))?;
        let (events, whole) = read_events(path, 0)?;
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        let next_seq = events.last().map_or(0, |event| event.seq + 1);
        Ok(EventLog { path: path.to_path_buf(), file, next_seq, began: Instant::now() })
    }

    /// Time since the log was opened: the attempt's own clock.
    pub fn elapsed(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// Appends one event with the next sequence number and the clock's time.
    ///
    /// # Errors
    ///
    /// When the line can't be written whole, a full disk for instance.
    pub fn write(&mut self, kind: EventKind) -> Result<Event> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let durable = kind.ending().is_some() || matches!(kind, EventKind::Checkpoint { .. });
        let event = Event {
            v: 1,
            seq: self.next_seq,
            time,
            elapsed_seconds: self.began.elapsed().as_secs_f64(),
            kind,
        };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        let context = || format!("{}: an event can't be written", self.path.display());
        self.file.write_all(&line).with_context(context)?;
        if durable {
            self.file.sync_data().with_context(context)?;
        }
        self.next_seq += 1;
        Ok(event)
    }
}

/// Reads the events from byte `offset` on, and says up to which byte it read: call again with that to read what has come since.
///
/// An unfinished last line is left for the next call.
///
/// # Errors
///
/// When the file can't be read, or a finished line is no event: the message names the file and the byte it begins at.
pub fn read_events(path: &Path, offset: u64) -> Result<(Vec<Event>, u64)> {
    let mut file = File::open(path)
        .with_context(|| format!("{}: the event log can't be opened", path.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut reader = BufReader::new(file);
    let (mut events, mut at, mut line) = (Vec::new(), offset, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok((events, at));
        }
        let event = serde_json::from_slice(&line).with_context(|| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).trim().to_string();
            format!("{}: byte {at}: expected an event, found `{shown}`", path.display())
        })?;
        events.push(event);
        at += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(step: u64) -> EventKind {
        EventKind::Heartbeat { step }
    }

    #[test]
    fn a_torn_line_is_cut_and_counting_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        log.write(heartbeat(1)).unwrap();
        log.write(heartbeat(2)).unwrap();
        drop(log);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"v":1,"seq":2,"ti"#).unwrap();

        let (events, whole) = read_events(&path, 0).unwrap();
        assert_eq!(events.len(), 2);
        let mut log = EventLog::open(&path).unwrap();
        assert_eq!(log.write(heartbeat(3)).unwrap().seq, 2);
        let (more, _) = read_events(&path, whole).unwrap();
        assert_eq!(more.len(), 1);
        assert_eq!(more[0].kind, heartbeat(3));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"v\":1}\n").unwrap();
        let error = format!("{:#}", read_events(&path, 0).unwrap_err());
        assert!(error.contains("byte 0: expected an event, found `{\"v\":1}`"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn events_survive_write_and_read(losses in proptest::collection::vec(proptest::num::f64::ANY, 0..20)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            let mut log = EventLog::open(&path).unwrap();
            let written: Vec<Event> = losses
                .iter()
                .map(|&loss| EventKind::Eval { step: 1, split: "s".into(), loss, tokens: 2 })
                .map(|kind| log.write(kind).unwrap())
                .collect();
            let (read, _) = read_events(&path, 0).unwrap();
            // NaN is not equal to itself: compare what is printed.
            proptest::prop_assert_eq!(format!("{written:?}"), format!("{read:?}"));
        }
    }
}
