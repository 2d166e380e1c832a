//! The append-only event log: written a line at a time, read by anyone, tolerant of a torn last line.

use super::{Event, EventKind, FORMAT, MAX_SEQ, now};
use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, StatxFlags, statx};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The writing end. Every event reaches the kernel before [`EventLog::write`] returns, so a killed process loses none;
/// endings and checkpoints are forced to the disk as well. Its order is that of `seq`: a clock that is set back changes the
/// times and nothing else.
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// The bytes of whole lines.
    length: u64,
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
        let context = || format!("{}: the event log can't be opened", path.display());
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .with_context(context)?;
        let (events, whole) = read_events(path, 0)?;
        if true_length(&file).with_context(context)? > whole {
            file.set_len(whole).with_context(context)?;
        }
        let next_seq = events.last().map_or(0, |event| event.seq + 1);
        Ok(EventLog {
            path: path.to_path_buf(),
            file,
            length: whole,
            next_seq,
            began: Instant::now(),
        })
    }

    /// Time since the log was opened: the attempt's own clock.
    pub fn elapsed(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    /// Appends one event with the next sequence number and the clock's time.
    ///
    /// # Errors
    ///
    /// When the line can't be written whole, a full disk for instance: what was written of it is taken back, so that the next
    /// line is not glued to it. Or when the log was removed meanwhile: nobody would ever read what is written.
    pub fn write(&mut self, kind: EventKind) -> Result<Event> {
        if self.next_seq > MAX_SEQ {
            bail!(
                "{}: expected events numbered below {MAX_SEQ}, found one that has it: none can follow",
                self.path.display()
            );
        }
        let time = now();
        let durable = kind.ending().is_some() || matches!(kind, EventKind::Checkpoint { .. });
        let event = Event {
            v: FORMAT,
            seq: self.next_seq,
            time,
            elapsed_seconds: self.began.elapsed().as_secs_f64(),
            kind,
        };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        let context = || format!("{}: an event can't be written", self.path.display());
        if let Err(error) = self.file.write_all(&line) {
            // Shortening a file needs no room.
            self.file.set_len(self.length).with_context(context)?;
            return Err(error).with_context(context);
        }
        self.length += line.len() as u64;
        self.next_seq += 1;
        if durable {
            self.file.sync_data().with_context(context)?;
        }
        if self.file.metadata().with_context(context)?.nlink() == 0 {
            bail!(
                "{}: expected the event log, found it removed while the run was at work",
                self.path.display()
            );
        }
        Ok(event)
    }
}

/// Opens a log for reading, by the length that it has now.
///
/// A mount of a network file system may go by a length that it was told a while ago, and give of the log only what was written
/// until then: the next attempt would take a line that is whole for a torn one.
///
/// # Errors
///
/// When the file can't be opened.
pub fn open_log(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    true_length(&file)?;
    Ok(file)
}

/// The file's length in bytes as its file system has it, whatever this machine remembers of it (`man 2 statx`).
fn true_length(file: &File) -> io::Result<u64> {
    let anew = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    Ok(statx(file, "", anew, StatxFlags::SIZE)?.stx_size)
}

/// Reads the events from byte `offset` on, and says up to which byte it read: call again with that to read what has come since.
///
/// An unfinished last line is left for the next call.
///
/// # Errors
///
/// When the file can't be read, or a finished line is no event: the message names the file and the byte it begins at.
pub fn read_events(path: &Path, offset: u64) -> Result<(Vec<Event>, u64)> {
    let mut file = open_log(path)
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

/// The last whole events of a log, from its last `bytes` bytes: enough to say how a run stands without reading all of it.
///
/// # Errors
///
/// As [`read_events`].
pub fn last_events(path: &Path, bytes: u64) -> Result<Vec<Event>> {
    let mut file = open_log(path)
        .with_context(|| format!("{}: the event log can't be opened", path.display()))?;
    let start = file.metadata()?.len().saturating_sub(bytes);
    if start == 0 {
        return Ok(read_events(path, 0)?.0);
    }
    // From the byte before, so that a line which begins right here is not passed over.
    file.seek(SeekFrom::Start(start - 1))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    match tail.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok(read_events(path, start + end as u64)?.0),
        // One line is longer than that.
        None => Ok(read_events(path, 0)?.0),
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
    fn the_last_events_are_whole_wherever_the_tail_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        let all: Vec<Event> = (0..20).map(|step| log.write(heartbeat(step)).unwrap()).collect();
        let length = std::fs::metadata(&path).unwrap().len();
        for bytes in 0..length + 10 {
            let last = last_events(&path, bytes).unwrap();
            assert_eq!(last, all[all.len() - last.len()..], "{bytes}");
            let of_them: u64 =
                last.iter().map(|e| serde_json::to_vec(e).unwrap().len() as u64 + 1).sum();
            assert!(of_them <= bytes.max(length), "{bytes}");
        }
        assert_eq!(last_events(&path, length).unwrap().len(), 20);
        assert_eq!(last_events(&path, length - 1).unwrap().len(), 19);
    }

    /// What is written into a file that has no name any more is read by nobody.
    #[test]
    fn a_log_that_was_removed_is_not_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::open(&path).unwrap();
        log.write(heartbeat(1)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = log.write(heartbeat(2)).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "events.jsonl: expected the event log, found it removed while the run was at work"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_number_beyond_what_stores_count_is_no_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let numbered = |seq: u64| {
            let line = format!(
                r#"{{"v":1,"seq":{seq},"time":1.5,"elapsed_seconds":0.5,"kind":"heartbeat","step":1}}"#
            );
            std::fs::write(&path, line + "\n").unwrap();
        };
        for seq in [MAX_SEQ + 1, u64::MAX] {
            numbered(seq);
            let error = format!("{:#}", read_events(&path, 0).unwrap_err());
            assert!(error.contains("byte 0: expected an event"), "{error}");
            let said = format!("expected a seq of at most 9223372036854775807, found {seq}");
            assert!(error.contains(&said), "{error}");
        }
        numbered(MAX_SEQ);
        let mut log = EventLog::open(&path).unwrap();
        let error = log.write(heartbeat(2)).unwrap_err().to_string();
        assert!(error.ends_with("none can follow"), "{error}");
        assert_eq!(read_events(&path, 0).unwrap().0.len(), 1);
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
        /// Wherever a writer was killed, and whatever half line it left, what was whole before stays and counting goes on.
        #[test]
        fn a_log_cut_anywhere_keeps_what_was_whole(
            count in 0u64..8,
            cut in 0u64..2000,
            left in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            let mut log = EventLog::open(&path).unwrap();
            let all: Vec<Event> =
                (0..count).map(|step| log.write(heartbeat(step)).unwrap()).collect();
            drop(log);
            let mut file = OpenOptions::new().write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len().min(cut);
            file.set_len(length).unwrap();
            let whole = std::fs::read(&path).unwrap().iter().filter(|byte| **byte == b'\n').count();
            file.seek(SeekFrom::End(0)).unwrap();
            let left: Vec<u8> = left.into_iter().filter(|byte| *byte != b'\n').collect();
            file.write_all(&left).unwrap();
            let next = EventLog::open(&path).unwrap().write(heartbeat(99)).unwrap();
            proptest::prop_assert_eq!(next.seq, whole as u64);
            let (events, end) = read_events(&path, 0).unwrap();
            proptest::prop_assert_eq!(end, std::fs::metadata(&path).unwrap().len());
            proptest::prop_assert_eq!(&events[..whole], &all[..whole]);
            proptest::prop_assert_eq!(&events[whole..], &[next]);
        }

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
