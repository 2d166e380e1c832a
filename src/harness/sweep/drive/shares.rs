//! Shares of devices that all harnesses of one user on one machine see, so that what they place together fits.
//!
//! A share is a small file in a folder of the machine, written before its run's worker begins, and locked; the worker inherits the
//! lock, which the kernel lets go of when the harness and the worker are both gone. A share whose lock is free is stale, whatever
//! was killed, and whoever looks removes it. From the look at what is taken until the next share is written, a harness has the
//! folder's own lock.
//!
//! What is free of a device is read while nobody has a share of it: later the workers' own memory would be missing from it, and
//! counted twice with their shares. Each share keeps what was read, for those that come beside it.

use super::Watcher;
use super::slots::{Machine, Share, Slots};
use anyhow::{Context, Result, bail};
use fathom_spec::config::RunConfig;
use fathom_spec::record::RunId;
use fathom_spec::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names another folder for the shares than `/tmp/fathom-devices-UID`, which does not depend on how a user came to the machine.
pub const DEVICES_VARIABLE: &str = "FATHOM_DEVICES";

/// How long what was read of a device that nobody has is good for: `nvidia-smi` takes a moment to answer.
const FRESH: Duration = Duration::from_secs(1);

/// Reads what is there to run on, and what of it is free.
pub type Measure = dyn Fn() -> Result<Machine>;

/// Devices, what this harness's runs have of them, and what those of others have.
pub struct Shares {
    slots: Slots,
    measure: Box<Measure>,
    folder: PathBuf,
    /// The results folder, for people who look into a share.
    store: PathBuf,
    held: Vec<Held>,
    /// What others have, as people are told of it.
    others: Vec<String>,
    /// When devices that nobody has were read last.
    read_at: HashMap<usize, Instant>,
    said_that_it_is_alone: bool,
}

/// A share as its file has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    /// A GPU's UUID, or `cpu`.
    device: String,
    run_id: RunId,
    memory: Bytes,
    /// Of the device, before anything was placed there.
    free: Bytes,
    threads: usize,
    /// Nothing may be beside it.
    alone: bool,
    /// The harness's; it decides nothing.
    pid: u32,
    store: PathBuf,
}

/// A share of this harness's.
struct Held {
    record: Record,
    /// None where it could not be written.
    file: Option<(PathBuf, File)>,
}

/// What was seen of the shares stays so while this is there; without a lock nothing was seen but one's own.
pub(super) struct Look {
    lock: Option<File>,
}

/// What came of looking for room.
#[derive(Debug, PartialEq)]
pub(super) enum Placed {
    Taken,
    NoRoom,
    /// Another harness looks for room at this moment.
    NotNow,
}

impl Shares {
    /// Of runs whose store is in `results`. `measure` reads the machine anew.
    ///
    /// # Errors
    ///
    /// When the folder of shares belongs to somebody else. One that can't be used is told of when it is to be.
    pub fn new(slots: Slots, measure: Box<Measure>, results: &Path) -> Result<Shares> {
        let folder = folder(std::env::var_os(DEVICES_VARIABLE));
        refuse_another_users(&folder, user())?;
        let store = std::path::absolute(results)?;
        Ok(Shares::within(folder, slots, measure, store))
    }

    fn within(folder: PathBuf, slots: Slots, measure: Box<Measure>, store: PathBuf) -> Shares {
        Shares {
            slots,
            measure,
            folder,
            store,
            held: Vec::new(),
            others: Vec::new(),
            read_at: HashMap::new(),
            said_that_it_is_alone: false,
        }
    }

    /// # Errors
    ///
    /// As [`Slots::check`].
    pub fn check(&self, config: &RunConfig) -> Result<()> {
        self.slots.check(config)
    }

    pub(super) fn has_others(&self) -> bool {
        self.slots.has_others()
    }

    /// What others have at work on these devices.
    pub(super) fn others(&self) -> String {
        self.others.join(", ")
    }

    /// The file that is locked while somebody looks for room.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.folder.join("lock")
    }

    pub(super) fn is_kept_out(&self, config: &RunConfig) -> bool {
        self.slots.is_kept_out(config)
    }

    /// Gives a run its share of a device, if there is room. `look` is what was seen for the runs before this one that found none.
    pub(super) fn place(
        &mut self,
        look: &mut Option<Look>,
        run: &RunId,
        config: &RunConfig,
        watcher: &dyn Watcher,
    ) -> Placed {
        let Some(seen) = look.take().or_else(|| self.look(watcher)) else { return Placed::NotNow };
        if seen.lock.is_some() {
            self.read_empty(config);
        }
        let Some(share) = self.slots.place(config) else {
            *look = Some(seen);
            return Placed::NoRoom;
        };
        let device = self.slots.device(share.device);
        let record = Record {
            device: device.name().to_string(),
            run_id: run.clone(),
            memory: Bytes(share.memory),
            free: device.memory(),
            threads: share.threads,
            alone: share.alone,
            pid: std::process::id(),
            store: self.store.clone(),
        };
        self.slots.take(run.clone(), share);
        let file = seen.lock.is_some().then(|| record.publish(&self.folder)).transpose();
        let file = file.unwrap_or_else(|error| {
            self.warn(&error, watcher);
            None
        });
        self.held.push(Held { record, file });
        Placed::Taken
    }

    /// A run that has ended, or did not begin, leaves its place.
    pub(super) fn release(&mut self, run: &RunId) {
        self.slots.release(run);
        if let Some(at) = self.held.iter().position(|held| held.record.run_id == *run)
            && let Some((path, _file)) = self.held.remove(at).file
        {
            // Without its lock it is as good as gone.
            let _ = fs::remove_file(path);
        }
    }

    pub(super) fn environment(&self, run: &RunId) -> Vec<(&'static str, String)> {
        self.slots.environment(run)
    }

    /// The lock of a run's share, for its worker.
    pub(super) fn lock_of(&self, run: &RunId) -> Option<BorrowedFd<'_>> {
        let held = self.held.iter().find(|held| held.record.run_id == *run)?;
        held.file.as_ref().map(|(_, file)| file.as_fd())
    }

    /// Looks at what others have; `None` while one of them looks.
    fn look(&mut self, watcher: &dyn Watcher) -> Option<Look> {
        let seen = self.see();
        let lock = match seen {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return None,
            Err(error) => {
                self.slots.see(Vec::new());
                self.warn(&error, watcher);
                None
            }
        };
        Some(Look { lock })
    }

    fn see(&mut self) -> Result<Option<File>> {
        make_private(&self.folder)?;
        let path = self.lock_path();
        let context = || format!("{}: the lock of the devices can't be taken", path.display());
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(context)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        // The folder may have been cleared, and what is at work stays. Who can't write can read all the same.
        for held in &mut self.held {
            if held.file.as_ref().is_none_or(|(path, _)| !path.exists())
                && let Ok(file) = held.record.publish(&self.folder)
            {
                held.file = Some(file);
            }
        }
        let own: Vec<&Path> =
            self.held.iter().flat_map(|held| &held.file).map(|(path, _)| path.as_path()).collect();
        let mut others = scan(&self.folder, &own)?;
        others.retain(|record| self.slots.position(&record.device).is_some());
        self.others = others.iter().map(Record::describe).collect();
        let on_ours = others.into_iter().filter_map(|record| {
            let device = self.slots.position(&record.device)?;
            let Record { memory, free, threads, alone, .. } = record;
            Some((Share { device, memory: memory.0, threads, alone }, free))
        });
        let on_ours = on_ours.collect();
        self.slots.see(on_ours);
        self.read_at.retain(|at, _| self.slots.is_empty(*at));
        Ok(Some(lock))
    }

    /// Reads what is free of the devices that a run can have and nobody has, if it was not read just now.
    fn read_empty(&mut self, config: &RunConfig) {
        let empty = self.slots.empty_for(config);
        let is_fresh = |at| self.read_at.get(at).is_some_and(|read| read.elapsed() < FRESH);
        if empty.iter().all(is_fresh) {
            return;
        }
        // What does not answer any more is taken to be as it was.
        if let Ok(machine) = (self.measure)() {
            self.slots.measure(&machine);
        }
        self.read_at.extend(empty.into_iter().map(|at| (at, Instant::now())));
    }

    fn warn(&mut self, error: &anyhow::Error, watcher: &dyn Watcher) {
        if !std::mem::replace(&mut self.said_that_it_is_alone, true) {
            watcher.warning(&format!(
                "{error:#}: what other harnesses have of the devices is not seen\n  help: {DEVICES_VARIABLE} names another folder for it"
            ));
        }
    }
}

impl Record {
    /// Writes the share whole and locked, for others to see.
    fn publish(&self, folder: &Path) -> Result<(PathBuf, File)> {
        // Two stores may have the same run.
        let mut names = (0..).map(|n: u32| folder.join(format!("{}.{n}.share", self.run_id)));
        let path = names.find(|path| !path.exists()).expect("one of all numbers");
        let part = path.with_extension("part");
        let context = || format!("{}: the share can't be written", path.display());
        let written = self.write(&part).and_then(|file| {
            fs::rename(&part, &path)?;
            Ok(file)
        });
        let file = written.inspect_err(|_| drop(fs::remove_file(&part))).with_context(context)?;
        Ok((path, file))
    }

    fn write(&self, part: &Path) -> Result<File> {
        let file = File::create(part)?;
        file.try_lock()?;
        serde_json::to_writer(&file, self)?;
        Ok(file)
    }

    fn describe(&self) -> String {
        format!("{} of {} (process {})", self.run_id, self.store.display(), self.pid)
    }
}

/// The shares that somebody has, but for one's `own`; what nobody has any more is removed.
fn scan(folder: &Path, own: &[&Path]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let context = || format!("{}: the shares of devices can't be read", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|kind| kind == "share" || kind == "part")
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_ours || own.contains(&path.as_path()) {
            continue;
        }
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // Its harness has just let go of it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(context),
        };
        match file.try_lock() {
            Ok(()) => match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(context);
                }
                _ => {}
            },
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text).with_context(context)?;
                // What says nothing that can be understood is no share.
                records.extend(serde_json::from_str::<Record>(&text));
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
    }
    Ok(records)
}

/// Where shares are: `named`, or one place for all that a user starts, from whatever session.
fn folder(named: Option<OsString>) -> PathBuf {
    match named.filter(|named| !named.is_empty()) {
        Some(named) => named.into(),
        None => Path::new("/tmp").join(format!("fathom-devices-{}", user())),
    }
}

fn make_private(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("{}: the folder can't be made", folder.display()))?;
    refuse_another_users(folder, user())
}

/// Among the temporary files anybody may have been there first. A link counts as who made it.
fn refuse_another_users(folder: &Path, user: u32) -> Result<()> {
    for about in [fs::symlink_metadata(folder), fs::metadata(folder)].into_iter().flatten() {
        if about.uid() != user {
            bail!(
                "{}: expected a folder of one's own (user {user}), found one of user {}\n  help: have it removed, or have \
                 {DEVICES_VARIABLE} name another folder",
                folder.display(),
                about.uid()
            );
        }
    }
    Ok(())
}

/// The id of the user that this process is.
fn user() -> u32 {
    // SAFETY: the call takes nothing and can't fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::super::{Device, Ended, Gpu, Identified};
    use super::*;
    use fathom_spec::config::written::Written;
    use fathom_spec::record::Event;
    use std::cell::{Cell, RefCell};
    use std::os::unix::fs::PermissionsExt;
    use std::rc::Rc;

    /// Hears warnings alone.
    #[derive(Default)]
    struct Warned(RefCell<Vec<String>>);

    impl Watcher for Warned {
        fn begin(&self, _: usize, _: usize) {}
        fn more(&self, _: usize, _: usize) {}
        fn started(&self, _: &Identified) -> usize {
            0
        }
        fn event(&self, _: usize, _: &Identified, _: &Event) {}
        fn ended(&self, _: usize, _: &Ended) {}
        fn damaged(&self, _: &Identified, _: &anyhow::Error) {}
        fn done_elsewhere(&self) {}
        fn waiting(&self, _: usize) {}
        fn crowded(&self, _: &str) {}
        fn warning(&self, what: &str) {
            self.0.borrow_mut().push(what.to_string());
        }
        fn paused(&self, _: &str, _: usize) {}
        fn continued(&self) {}
        fn interrupted(&self, _: usize, _: usize) {}
        fn finish(&self) {}
    }

    /// A harness on a card and four cores. A run takes a GiB for each thousand tokens of its sequence; of 99,000 nothing can be said.
    struct Harness {
        shares: Shares,
        warned: Warned,
        free: Rc<Cell<u64>>,
    }

    impl Harness {
        /// `free` GiB of the card, as this harness reads it.
        fn new(folder: &Path, free: u64) -> Harness {
            let free = Rc::new(Cell::new(free));
            let now = free.clone();
            let measure = move || {
                let memory = Bytes::gib(now.get());
                let gpus = vec![Gpu { index: 0, uuid: "GPU-a".into(), memory }];
                Ok(Machine { cores: 4, memory: Bytes::gib(8), gpus })
            };
            let predict = |config: &RunConfig, _: Option<Bytes>| {
                let length = config.train.sequence_length as u64;
                (length != 99_000).then(|| Bytes::gib(length / 1000))
            };
            let devices: Vec<Device> =
                measure().unwrap().choose(&["0".into(), "cpu".into()]).unwrap();
            let slots = Slots::new(devices, Box::new(predict));
            let shares = Shares::within(folder.into(), slots, Box::new(measure), "/results".into());
            Harness { shares, warned: Warned::default(), free }
        }

        fn place(&mut self, run: &str, device: &str, length: u64) -> Placed {
            let text = format!(
                "model: {{path: m}}\ndata: {{corpus: c}}\ntrain: {{sequence_length: {length}, total_tokens: 4K, learning_rate: 1e-5}}\n\
                 run: {{device: {device}, threads: 3}}\n"
            );
            let config = RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap());
            self.shares.place(&mut None, &RunId(run.into()), &config.unwrap(), &self.warned)
        }

        fn release(&mut self, run: &str) {
            self.shares.release(&RunId(run.into()));
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
        names.sort();
        names
    }

    #[test]
    fn two_harnesses_have_one_card_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Harness::new(dir.path(), 24), Harness::new(dir.path(), 24));
        assert_eq!(a.place("a1", "cuda", 10_000), Placed::Taken);
        assert_eq!(b.place("b1", "cuda", 14_000), Placed::NoRoom);
        assert!(b.shares.has_others());
        assert_eq!(b.place("b2", "cuda", 10_000), Placed::Taken);
        assert_eq!(a.place("a2", "cuda", 2000), Placed::NoRoom, "21.5 GiB and 2.75 of 24");
        // The CPU is another device, and is taken by the thread.
        assert_eq!(a.place("a3", "cpu", 1000), Placed::Taken);
        assert_eq!(b.place("b3", "cpu", 1000), Placed::NoRoom, "six of four threads");
        a.release("a3");
        assert_eq!(b.place("b3", "cpu", 1000), Placed::Taken);
        a.release("a1");
        assert_eq!(b.place("b1", "cuda", 10_000), Placed::Taken);
        for run in ["b1", "b2", "b3"] {
            b.release(run);
        }
        assert!(files(dir.path()).is_empty());
        assert!(a.warned.0.borrow().is_empty() && b.warned.0.borrow().is_empty());
    }

    #[test]
    fn of_what_nothing_can_be_said_has_its_device_alone_across_harnesses() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Harness::new(dir.path(), 24), Harness::new(dir.path(), 24));
        assert_eq!(a.place("a1", "cuda", 1000), Placed::Taken);
        assert_eq!(b.place("b1", "cuda", 99_000), Placed::NoRoom);
        a.release("a1");
        assert_eq!(b.place("b1", "cuda", 99_000), Placed::Taken);
        assert_eq!(a.place("a2", "cuda", 1000), Placed::NoRoom);
        assert_eq!(a.place("a3", "cpu", 1000), Placed::Taken, "that is another device");
        b.release("b1");
        assert_eq!(a.place("a2", "cuda", 1000), Placed::Taken);
    }

    /// What `nvidia-smi` calls free is without the memory of the workers that are there.
    #[test]
    fn what_is_free_is_what_was_before_the_first_share() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Harness::new(dir.path(), 24);
        assert_eq!(a.place("a1", "cuda", 10_000), Placed::Taken);
        let mut b = Harness::new(dir.path(), 13);
        assert_eq!(b.place("b1", "cuda", 9000), Placed::Taken, "of 24 GiB, 10.75 are taken");
        a.release("a1");
        // B's share keeps it though A's is gone.
        let mut c = Harness::new(dir.path(), 14);
        assert_eq!(c.place("c1", "cuda", 12_000), Placed::Taken);
        b.release("b1");
        c.release("c1");
        // Nobody has anything: it is read, by one that began with another number.
        c.free.set(6);
        assert_eq!(c.place("c2", "cuda", 3000), Placed::Taken);
        assert_eq!(a.place("a2", "cuda", 3000), Placed::NoRoom, "7.5 of 6 GiB");
    }

    #[test]
    fn a_share_that_nobody_holds_is_removed_and_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Harness::new(dir.path(), 24);
        assert_eq!(a.place("7f3a", "cuda", 20_000), Placed::Taken);
        let text = fs::read(dir.path().join("7f3a.0.share")).unwrap();
        // A harness that is killed lets go of the lock alone; another was killed as it wrote.
        drop(a);
        fs::write(dir.path().join("7f3b.0.part"), &text[..20]).unwrap();
        fs::write(dir.path().join("somebody's"), "").unwrap();
        assert_eq!(files(dir.path()).len(), 3);
        let mut b = Harness::new(dir.path(), 24);
        assert_eq!(b.place("7f3c", "cuda", 20_000), Placed::Taken);
        assert_eq!(files(dir.path()), ["7f3c.0.share", "somebody's"]);
        // Held, but not to be understood.
        let odd = File::create(dir.path().join("odd.0.share")).unwrap();
        odd.lock().unwrap();
        assert_eq!(b.place("7f3d", "cuda", 2000), Placed::Taken);
        assert_eq!(files(dir.path()).len(), 4);
    }

    #[test]
    fn a_share_is_one_object_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Harness::new(dir.path(), 24);
        assert_eq!(a.place("7f3a", "cpu", 2000), Placed::Taken);
        let text = fs::read_to_string(dir.path().join("7f3a.0.share")).unwrap();
        let expected = format!(
            r#"{{"device":"cpu","run_id":"7f3a","memory":2147483648,"free":8589934592,"threads":3,"alone":false,"pid":{},"store":"/results"}}"#,
            std::process::id()
        );
        assert_eq!(text, expected);
        // The same run of another store, and what a later version adds.
        let mut b = Harness::new(dir.path(), 24);
        assert_eq!(b.place("7f3a", "cuda", 2000), Placed::Taken);
        assert_eq!(files(dir.path()), ["7f3a.0.share", "7f3a.1.share"]);
        let more = text.replace("{\"device\"", "{\"more\":1,\"device\"");
        let record: Record = serde_json::from_str(&more).unwrap();
        assert_eq!((record.memory, record.threads), (Bytes::gib(2), 3));
    }

    #[test]
    fn who_looks_is_waited_for_by_coming_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Harness::new(dir.path(), 24), Harness::new(dir.path(), 24));
        let looks = a.shares.look(&a.warned).unwrap();
        assert_eq!(b.place("b1", "cuda", 1000), Placed::NotNow);
        drop(looks);
        assert_eq!(b.place("b1", "cuda", 1000), Placed::Taken);
    }

    #[test]
    fn a_folder_that_goes_is_made_again_with_what_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("fathom/devices");
        let mut a = Harness::new(&folder, 24);
        assert_eq!(a.place("a1", "cuda", 10_000), Placed::Taken);
        for folder in [folder.as_path(), folder.parent().unwrap()] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(a.place("a2", "cuda", 20_000), Placed::NoRoom, "it knows its own");
        let mut b = Harness::new(&folder, 24);
        assert_eq!(b.place("b1", "cuda", 20_000), Placed::NoRoom);
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_told_of_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let mut a = Harness::new(&dir.path().join("file/devices"), 24);
        assert_eq!(a.place("a1", "cuda", 10_000), Placed::Taken);
        assert_eq!(a.place("a2", "cuda", 10_000), Placed::Taken);
        assert_eq!(a.place("a3", "cuda", 10_000), Placed::NoRoom, "its own are counted");
        let warned = a.warned.0.borrow();
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].contains("file/devices: the folder can't be made"), "{warned:?}");
        assert!(warned[0].ends_with("\n  help: FATHOM_DEVICES names another folder for it"));
    }

    #[test]
    fn the_folder_is_of_the_machine_and_the_user() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(folder(Some("/x".into())), Path::new("/x"));
        let temporary = Path::new("/tmp").join(format!("fathom-devices-{}", user()));
        assert_eq!([folder(None), folder(Some("".into()))], [temporary.clone(), temporary]);
        refuse_another_users(&dir.path().join("gone"), user()).unwrap();
        refuse_another_users(dir.path(), user()).unwrap();
        let error = refuse_another_users(dir.path(), user() + 1).unwrap_err().to_string();
        let expected = format!(
            "{}: expected a folder of one's own (user {}), found one of user {}\n  help: have it removed, or have \
             FATHOM_DEVICES name another folder",
            dir.path().display(),
            user() + 1,
            user()
        );
        assert_eq!(error, expected);
    }
}
