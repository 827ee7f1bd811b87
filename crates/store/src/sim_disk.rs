//! A disk in memory that loses, tears and fails like a real one, determined by a seed.
//!
//! Model: a file's bytes become durable in sectors of 512 bytes, by its sync. Until then a crash keeps, loses or tears
//! each changed sector independently, and keeps the old length, the new one, or something between. Changes of a
//! directory become durable by its sync; a crash keeps a prefix of the others, in order. A file's sync that failed has
//! dropped the changes that it should have written: reads still show them, and no later sync writes them.
//!
//! Other faults are planned from outside: full disks, too many open files, operations that fail ([`Faults`]), flipped
//! bits.
//!
//! Not modelled: names that a failed sync of a directory has dropped (file systems that lose them stop), versions of a
//! sector
//! that were overwritten before a sync, and sectors written to a wrong place.

use crate::disk::{Disk, DiskFile, DiskLock, LockError, Open, check_path, check_rename, parent};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The unit that a crash keeps, loses or tears, in bytes.
pub const SECTOR: usize = 512;

/// A simulated disk; clones share it.
///
/// Single-threaded use is deterministic: the same seed and calls give the same bytes. It has no exclusive lock: a
/// simulated process ends without dropping anything, so [`Disk::lock`] always succeeds.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

/// The error of every operation on a crashed disk, or through a file opened before the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated disk crashed; restart it and open the files again")]
pub struct Crashed;

/// Virtual time that operations take; all zero by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCosts {
    /// Microseconds for each operation.
    pub operation: u64,
    /// Microseconds for each 64 KiB read or written, in addition.
    pub per_64_kib: u64,
    /// Microseconds for each sync of a file or directory, in addition.
    pub sync: u64,
}

/// The number of next operations of each kind that fail, each as on a broken device; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads of files; nothing is read.
    pub reads: u32,
    /// Writes to files, and their allocations; a part of it may be written.
    pub writes: u32,
    /// Changes of directories, files created included; nothing is changed.
    pub changes: u32,
    /// Syncs of files and directories; changes that those of files should have written are dropped.
    pub syncs: u32,
}

/// Whether an error comes from a simulated crash.
#[must_use]
pub fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Crashed>())
}

/// The object of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(u64),
}

#[derive(Clone)]
enum DirChange {
    Link { path: String, entry: Entry },
    Unlink { path: String },
    Rename { from: String, to: String },
}

impl DirChange {
    fn dir(&self) -> &str {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } => parent(path),
            Self::Rename { from, .. } => parent(from),
        }
    }

    fn apply(self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Link { path, entry } => {
                names.insert(path, entry);
            }
            Self::Unlink { path } => {
                if names.remove(&path) == Some(Entry::Dir) {
                    // Another directory of this name begins empty.
                    names.retain(|other, _| !is_within(other, &path));
                }
            }
            Self::Rename { from, to } => {
                if let Some(entry) = names.remove(&from) {
                    names.insert(to, entry);
                }
            }
        }
    }
}

/// Whether a path is below a directory.
fn is_within(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// The durable bytes of a sector that was changed since.
#[derive(Clone)]
struct Undo {
    bytes: Box<[u8; SECTOR]>,
    /// Bits of `bytes` that were flipped, by their place in the file.
    flips: BTreeMap<usize, u8>,
    /// A sync failed to write the change: no later one does, unless the sector is written again.
    forgotten: bool,
}

/// A file. A sector without an [`Undo`] is durable as in `data`, with zeros beyond its end.
#[derive(Clone, Default)]
struct Inode {
    data: Vec<u8>,
    durable_len: usize,
    undo: BTreeMap<usize, Undo>,
    /// Bits of `data` that were flipped and not written since, by the position of their byte.
    flips: BTreeMap<usize, u8>,
    handles: u32,
}

impl Inode {
    fn remember(&mut self, bytes: Range<usize>) {
        if bytes.is_empty() {
            return;
        }
        for sector in bytes.start / SECTOR..=(bytes.end - 1) / SECTOR {
            let (data, flips) = (&self.data, &self.flips);
            let undo = self.undo.entry(sector).or_insert_with(|| {
                let mut old = Box::new([0; SECTOR]);
                let start = sector * SECTOR;
                let flips = flips.range(start..start + SECTOR).map(|(at, bits)| (*at, *bits)).collect();
                if start < data.len() {
                    let end = data.len().min(start + SECTOR);
                    old[..end - start].copy_from_slice(&data[start..end]);
                }
                Undo { bytes: old, flips, forgotten: false }
            });
            undo.forgotten = false;
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        self.remember(offset..end);
        if end > self.data.len() {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
        self.flips.retain(|at, _| !(offset..end).contains(at));
    }

    fn resize(&mut self, len: usize) {
        // Only cutting changes sectors: an extension consists of zeros, as beyond the end.
        if len < self.data.len() {
            self.remember(len..self.data.len());
            self.flips.retain(|at, _| *at < len);
        }
        self.data.resize(len, 0);
    }

    fn sync(&mut self) {
        self.undo.retain(|_, undo| undo.forgotten);
        self.durable_len = self.data.len();
    }

    fn crash(&mut self, rng: &mut fastrand::Rng, fate: Fate) {
        let len = match (fate, rng.u8(..3)) {
            (Fate::KeepAll, _) | (Fate::Each, 0) => self.data.len(),
            (Fate::LoseAll, _) | (Fate::Each, 1) => self.durable_len,
            (Fate::Each, _) => {
                let (low, high) =
                    (self.durable_len.min(self.data.len()), self.durable_len.max(self.data.len()));
                rng.usize(low..=high)
            }
        };
        self.data.resize(self.data.len().max(self.durable_len).max(len), 0);
        for (sector, undo) in std::mem::take(&mut self.undo) {
            let lost = match fate {
                Fate::KeepAll => 0..0,
                Fate::LoseAll => 0..SECTOR,
                Fate::Each => match rng.u8(..20) {
                    0..9 => 0..0,
                    9..18 => 0..SECTOR,
                    18 => 0..rng.usize(..SECTOR),
                    _ => rng.usize(..SECTOR)..SECTOR,
                },
            };
            let start = sector * SECTOR;
            for at in lost {
                if let Some(byte) = self.data.get_mut(start + at) {
                    *byte = undo.bytes[at];
                    self.flips.remove(&(start + at));
                    self.flips.extend(undo.flips.get_key_value(&(start + at)));
                }
            }
        }
        self.data.truncate(len);
        self.flips.retain(|at, _| *at < len);
        self.durable_len = len;
    }

    /// Flips bits of a byte, in all versions of it.
    fn flip(&mut self, at: usize, bits: u8) {
        fn toggle(flips: &mut BTreeMap<usize, u8>, at: usize, bits: u8) {
            let flipped = flips.entry(at).or_default();
            *flipped ^= bits;
            if *flipped == 0 {
                flips.remove(&at);
            }
        }
        self.data[at] ^= bits;
        toggle(&mut self.flips, at, bits);
        if let Some(undo) = self.undo.get_mut(&(at / SECTOR)) {
            undo.bytes[at % SECTOR] ^= bits;
            toggle(&mut undo.flips, at, bits);
        }
    }

    /// Flips all flipped bits once more, and keeps the record of them.
    fn toggle_flips(&mut self) {
        for (at, bits) in &self.flips {
            self.data[*at] ^= bits;
        }
        for undo in self.undo.values_mut() {
            for (at, bits) in &undo.flips {
                undo.bytes[at % SECTOR] ^= bits;
            }
        }
    }

    fn forget_flips(&mut self) {
        self.flips.clear();
        self.undo.values_mut().for_each(|undo| undo.flips.clear());
    }

    fn is_flipped(&self) -> bool {
        !self.flips.is_empty() || self.undo.values().any(|undo| !undo.flips.is_empty())
    }
}

/// The kind of a crash: real ones are often all or nothing, and tests need those cases often, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    KeepAll,
    LoseAll,
    Each,
}

#[derive(Clone)]
struct Inner {
    rng: fastrand::Rng,
    inodes: BTreeMap<u64, Inode>,
    inode_next: u64,
    names: BTreeMap<String, Entry>,
    names_durable: BTreeMap<String, Entry>,
    changes: Vec<DirChange>,
    /// Whether a file may have no name: one that was removed, replaced, or lost in a crash.
    may_have_unnamed: bool,
    /// Increased when all open files become invalid.
    generation: u64,
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    capacity: Option<u64>,
    files_max: Option<u32>,
    faults: Faults,
    failed: u64,
    failed_syncs: u64,
    costs: DiskCosts,
    micros: u64,
}

/// An operation that passed the crash check; [`Inner::end`] crashes the disk if it was the one chosen for it.
#[must_use]
struct Begun {
    crash: bool,
}

impl Inner {
    fn begin(&mut self, bytes: usize, sync: bool) -> io::Result<Begun> {
        if self.crashed {
            return Err(io::Error::other(Crashed));
        }
        self.operations += 1;
        self.micros += self.costs.operation + self.costs.per_64_kib * (bytes as u64).div_ceil(65536);
        if sync {
            self.micros += self.costs.sync;
        }
        Ok(Begun { crash: self.crash_at.is_some_and(|at| self.operations >= at) })
    }

    fn end(&mut self, begun: Begun) -> io::Result<()> {
        if begun.crash {
            self.crash();
            return Err(io::Error::other(Crashed));
        }
        Ok(())
    }

    /// Ends an operation that changes something only if it succeeds.
    fn end_with<T>(&mut self, begun: Begun, result: io::Result<T>) -> io::Result<T> {
        self.end(begun)?;
        result
    }

    fn crash(&mut self) {
        let fate = match self.rng.u8(..5) {
            0 => Fate::KeepAll,
            1 => Fate::LoseAll,
            _ => Fate::Each,
        };
        let changes = std::mem::take(&mut self.changes);
        let mut dirs: BTreeMap<String, Vec<DirChange>> = BTreeMap::new();
        for change in changes {
            dirs.entry(change.dir().to_owned()).or_default().push(change);
        }
        for changes in dirs.into_values() {
            let kept = match fate {
                Fate::KeepAll => changes.len(),
                Fate::LoseAll => 0,
                Fate::Each => self.rng.usize(..=changes.len()),
            };
            for change in changes.into_iter().take(kept) {
                change.apply(&mut self.names_durable);
            }
        }
        // Parents sort before their entries, so one pass drops whole trees without a durable parent.
        let mut names = BTreeMap::new();
        for (path, entry) in &self.names_durable {
            let dir = parent(path);
            if dir.is_empty() || names.get(dir) == Some(&Entry::Dir) {
                names.insert(path.clone(), *entry);
            }
        }
        self.names_durable.clone_from(&names);
        self.names = names;
        self.may_have_unnamed = true;
        self.generation += 1;
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
            inode.crash(&mut self.rng, fate);
        }
        self.collect();
        self.crashed = true;
        self.crash_at = None;
    }

    /// Drops the files that neither a name, a durable name nor an open handle can reach.
    fn collect(&mut self) {
        if !self.may_have_unnamed {
            return;
        }
        let mut reachable: Vec<u64> = Vec::new();
        let linked = self.changes.iter().filter_map(|change| match change {
            DirChange::Link { entry, .. } => Some(entry),
            _ => None,
        });
        for entry in self.names.values().chain(self.names_durable.values()).chain(linked) {
            if let Entry::File(id) = entry {
                reachable.push(*id);
            }
        }
        reachable.sort_unstable();
        self.inodes.retain(|id, inode| inode.handles > 0 || reachable.binary_search(id).is_ok());
        let named = self.names.values().filter(|entry| **entry != Entry::Dir).count();
        self.may_have_unnamed = self.inodes.len() > named;
    }

    /// Fails an operation, if one of its kind was chosen for it.
    fn fail(&mut self, kind: impl FnOnce(&mut Faults) -> &mut u32) -> io::Result<()> {
        let left = kind(&mut self.faults);
        let Some(fewer) = left.checked_sub(1) else { return Ok(()) };
        *left = fewer;
        self.failed += 1;
        Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()))
    }

    /// Fails a sync that was chosen for it.
    fn fail_sync(&mut self) -> io::Result<()> {
        let failed = self.fail(|faults| &mut faults.syncs);
        self.failed_syncs += u64::from(failed.is_err());
        failed
    }

    fn check_room(&self, more: usize) -> io::Result<()> {
        let used: u64 = self.inodes.values().map(|inode| inode.data.len() as u64).sum();
        match self.capacity {
            Some(capacity) if used.saturating_add(more as u64) > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn check_dir(&self, dir: &str) -> io::Result<()> {
        match self.names.get(dir) {
            _ if dir.is_empty() => Ok(()),
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file_id(&self, path: &str) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(id)) => Ok(*id),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn change(&mut self, change: DirChange) {
        self.may_have_unnamed |= !matches!(change, DirChange::Link { .. });
        change.clone().apply(&mut self.names);
        self.changes.push(change);
    }

    fn open(&mut self, path: &str, open: Open) -> io::Result<u64> {
        check_path(path)?;
        self.check_dir(parent(path))?;
        if self.files_max.is_some_and(|max| self.open_files() >= max) {
            return Err(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()));
        }
        if matches!(open, Open::New | Open::Replace) {
            self.fail(|faults| &mut faults.changes)?;
        }
        let id = match (self.file_id(path), open) {
            (Ok(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(id), Open::Read | Open::Existing) => id,
            (Ok(id), Open::Replace) => {
                if let Some(inode) = self.inodes.get_mut(&id) {
                    inode.resize(0);
                }
                id
            }
            (Err(error), Open::New | Open::Replace) if error.kind() == io::ErrorKind::NotFound => {
                let id = self.inode_next;
                self.inode_next += 1;
                self.inodes.insert(id, Inode::default());
                self.change(DirChange::Link { path: path.to_owned(), entry: Entry::File(id) });
                id
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.handles += 1;
        }
        Ok(id)
    }

    fn open_files(&self) -> u32 {
        self.inodes.values().map(|inode| inode.handles).sum()
    }

    fn create_dir(&mut self, path: &str) -> io::Result<()> {
        check_path(path)?;
        self.check_dir(parent(path))?;
        match self.names.get(path) {
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                self.change(DirChange::Link { path: path.to_owned(), entry: Entry::Dir });
                Ok(())
            }
        }
    }

    fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        check_path(path)?;
        match self.names.get(path) {
            Some(Entry::Dir) => {}
            Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        if self.names.keys().any(|other| is_within(other, path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.fail(|faults| &mut faults.changes)?;
        // What was not synced in it is not synced any more.
        self.changes.retain(|change| change.dir() != path);
        self.change(DirChange::Unlink { path: path.to_owned() });
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        check_path(dir)?;
        self.check_dir(dir)?;
        let in_dir = |path: &&String| parent(path) == dir;
        Ok(self
            .names
            .keys()
            .filter(in_dir)
            .map(|path| path[path.rfind('/').map_or(0, |at| at + 1)..].to_owned())
            .collect())
    }
}

impl SimDisk {
    /// Creates an empty disk whose crashes are determined by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(seed),
            inodes: BTreeMap::new(),
            inode_next: 1,
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            changes: Vec::new(),
            may_have_unnamed: false,
            generation: 0,
            operations: 0,
            crash_at: None,
            crashed: false,
            capacity: None,
            files_max: None,
            faults: Faults::default(),
            failed: 0,
            failed_syncs: 0,
            costs: DiskCosts::default(),
            micros: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic of a test that held the disk must be seen, not a second panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an independent copy, its crashes determined by `seed`, without the planned faults. Files must be opened
    /// again.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let mut inner = self.inner().clone();
        inner.rng = fastrand::Rng::with_seed(seed);
        inner.faults = Faults::default();
        let fork = Self { inner: Arc::new(Mutex::new(inner)) };
        fork.kill_process();
        fork
    }

    /// Cuts the power: decides which unsynced changes survive, and fails every operation with [`Crashed`] until
    /// [`SimDisk::restart`].
    pub fn crash(&self) {
        self.inner().crash();
    }

    /// Cuts the power at the `operations`-th operation from now (1 is the next): that one takes effect wholly, partly or
    /// not at all, and fails.
    pub fn crash_after(&self, operations: u64) {
        let mut inner = self.inner();
        inner.crash_at = Some(inner.operations + operations.max(1));
    }

    /// Restarts a crashed disk, and cancels a crash that [`SimDisk::crash_after`] planned.
    pub fn restart(&self) {
        let mut inner = self.inner();
        inner.crashed = false;
        inner.crash_at = None;
    }

    /// Ends the process but not the machine: open files become invalid, and nothing is lost.
    pub fn kill_process(&self) {
        let mut inner = self.inner();
        inner.generation += 1;
        for inode in inner.inodes.values_mut() {
            inode.handles = 0;
        }
        inner.collect();
    }

    /// Whether the disk crashed and was not restarted.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.inner().crashed
    }

    /// Returns the number of operations so far: every call of [`Disk`] and [`DiskFile`], except locks and hints.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// Limits the bytes of all files together; `None` means no limit. Existing bytes stay.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.inner().capacity = bytes;
    }

    /// Limits the number of open files, like a limit on a process's descriptors; `None` means no limit.
    pub fn set_open_files(&self, files: Option<u32>) {
        self.inner().files_max = files;
    }

    /// Returns the number of open files.
    #[must_use]
    pub fn open_files(&self) -> u32 {
        self.inner().open_files()
    }

    /// Returns the bytes of all files together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.inner().inodes.values().map(|inode| inode.data.len() as u64).sum()
    }

    /// Fails the next `count` syncs of files and directories; changes that those of files should have written are
    /// dropped.
    pub fn fail_syncs(&self, count: u32) {
        self.inner().faults.syncs = count;
    }

    /// Plans which of the next operations fail, instead of the earlier plan.
    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Returns the number of operations that failed as planned, including syncs.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.inner().failed
    }

    /// Returns the number of syncs that failed as planned.
    #[must_use]
    pub fn failed_syncs(&self) -> u64 {
        self.inner().failed_syncs
    }

    /// Runs a function as if neither a crash, faults nor a limit of open files were planned, and no bit had flipped.
    /// Its operations are not counted, and take no time.
    pub fn aside<T>(&self, run: impl FnOnce() -> T) -> T {
        let (mut inner, none) = (self.inner(), Faults::default());
        let planned =
            (inner.crash_at.take(), std::mem::replace(&mut inner.faults, none), inner.files_max.take());
        let counted = (inner.operations, inner.micros);
        inner.inodes.values_mut().for_each(Inode::toggle_flips);
        drop(inner);
        let done = run();
        let mut inner = self.inner();
        (inner.crash_at, inner.faults, inner.files_max) = planned;
        (inner.operations, inner.micros) = counted;
        inner.inodes.values_mut().for_each(Inode::toggle_flips);
        done
    }

    /// Sets how much virtual time operations take from now on.
    pub fn set_costs(&self, costs: DiskCosts) {
        self.inner().costs = costs;
    }

    /// Returns the virtual microseconds that all operations have taken.
    #[must_use]
    pub fn micros(&self) -> u64 {
        self.inner().micros
    }

    /// Flips one bit (0 to 7) of a stored byte, as a failing disk would.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] without such a file or byte.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) -> io::Result<()> {
        let mut inner = self.inner();
        let id = inner.file_id(path)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let inode = inner.inodes.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        if at >= inode.data.len() {
            return Err(io::ErrorKind::NotFound.into());
        }
        inode.flip(at, 1 << (bit & 7));
        Ok(())
    }

    /// Whether a flipped bit was neither written since nor flipped back.
    #[must_use]
    pub fn is_flipped(&self) -> bool {
        self.inner().inodes.values().any(Inode::is_flipped)
    }

    /// Treats all flipped bits as written.
    pub fn keep_flips(&self) {
        self.inner().inodes.values_mut().for_each(Inode::forget_flips);
    }

    /// Flips all flipped bits back, except those that were written since.
    pub fn unflip(&self) {
        for inode in self.inner().inodes.values_mut() {
            inode.toggle_flips();
            inode.forget_flips();
        }
    }

    /// Returns the bytes of a file as the next reader would see them; no operation is counted.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let inner = self.inner();
        let id = inner.file_id(path).ok()?;
        inner.inodes.get(&id).map(|inode| inode.data.clone())
    }

    /// Puts a durable file in place, with its directories, or replaces one; no operation is counted.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut inner = self.inner();
        for (at, _) in path.match_indices('/') {
            inner.names.insert(path[..at].to_owned(), Entry::Dir);
            inner.names_durable.insert(path[..at].to_owned(), Entry::Dir);
        }
        let id = inner.inode_next;
        inner.inode_next += 1;
        let inode = Inode { data: bytes.to_vec(), durable_len: bytes.len(), ..Inode::default() };
        inner.inodes.insert(id, inode);
        inner.names.insert(path.to_owned(), Entry::File(id));
        inner.names_durable.insert(path.to_owned(), Entry::File(id));
        inner.may_have_unnamed = true;
        inner.collect();
    }

    /// Returns the paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let inner = self.inner();
        inner.names.iter().filter(|(_, entry)| **entry != Entry::Dir).map(|(path, _)| path.clone()).collect()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("SimDisk")
            .field("files", &inner.inodes.len())
            .field("operations", &inner.operations)
            .field("crashed", &inner.crashed)
            .finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let id = inner.open(path, open);
        let id = inner.end_with(begun, id)?;
        let (generation, is_read) = (inner.generation, open == Open::Read);
        Ok(Box::new(SimFile { disk: self.clone(), id, generation, is_read }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let names = inner.list(dir);
        inner.end_with(begun, names)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let created = inner.fail(|faults| &mut faults.changes).and_then(|()| inner.create_dir(path));
        inner.end_with(begun, created)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let allowed =
            check_rename(from, to).and_then(|()| inner.file_id(from)).and_then(|_| match inner.file_id(to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => inner.fail(|faults| &mut faults.changes),
            });
        if allowed.is_ok() {
            inner.change(DirChange::Rename { from: from.to_owned(), to: to.to_owned() });
        }
        inner.end_with(begun, allowed)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let found = check_path(path).and_then(|()| inner.file_id(path));
        let found = found.and_then(|id| inner.fail(|faults| &mut faults.changes).map(|()| id));
        if found.is_ok() {
            inner.change(DirChange::Unlink { path: path.to_owned() });
        }
        inner.end_with(begun, found).map(|_| ())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let removed = inner.remove_dir(path);
        inner.end_with(begun, removed)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, true)?;
        let found = check_path(dir).and_then(|()| inner.check_dir(dir)).and_then(|()| inner.fail_sync());
        // A crash during the sync finds it done or not.
        if found.is_ok() && !(begun.crash && inner.rng.bool()) {
            for change in std::mem::take(&mut inner.changes) {
                if change.dir() == dir {
                    change.apply(&mut inner.names_durable);
                } else {
                    inner.changes.push(change);
                }
            }
            inner.collect();
        }
        inner.end_with(begun, found)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let len = check_path(path).map(|()| {
            let id = inner.file_id(path).ok()?;
            inner.inodes.get(&id).map(|inode| inode.data.len() as u64)
        });
        inner.end_with(begun, len)
    }

    fn lock(&self, _path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        Ok(Box::new(SimLock))
    }

    fn lock_to_read(&self, _path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError> {
        Ok(Some(Box::new(SimLock)))
    }
}

struct SimLock;

impl DiskLock for SimLock {}

struct SimFile {
    disk: SimDisk,
    id: u64,
    generation: u64,
    is_read: bool,
}

impl SimFile {
    fn check_write(&self) -> io::Result<()> {
        if self.is_read { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    /// Runs one operation on the file, which must still be open.
    fn with<T>(
        &self,
        bytes: usize,
        sync: bool,
        operation: impl FnOnce(&mut Inner, u64, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.disk.inner();
        let begun = inner.begin(bytes, sync)?;
        if inner.generation != self.generation {
            return Err(io::Error::other(Crashed));
        }
        let result = operation(&mut inner, self.id, begun.crash);
        inner.end_with(begun, result)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut inner = self.disk.inner();
        if inner.generation != self.generation {
            return;
        }
        let id = self.id;
        if let Some(inode) = inner.inodes.get_mut(&id) {
            inode.handles -= 1;
            if inode.handles == 0 {
                inner.collect();
            }
        }
    }
}

fn inode(inner: &mut Inner, id: u64) -> io::Result<&mut Inode> {
    inner.inodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(buf.len(), false, |inner, id, _| {
            inner.fail(|faults| &mut faults.reads)?;
            let data = &inode(inner, id)?.data;
            let start = usize::try_from(offset).map_err(io::Error::other)?.min(data.len());
            let read = buf.len().min(data.len() - start);
            buf[..read].copy_from_slice(&data[start..start + read]);
            Ok(read)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(bytes.len(), false, |inner, id, _| {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let end = offset.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
            let more = end.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
            }
            if let Err(error) = inner.fail(|faults| &mut faults.writes) {
                let written = inner.rng.usize(..=bytes.len());
                inode(inner, id)?.write(&bytes[..written], offset);
                return Err(error);
            }
            inode(inner, id)?.write(bytes, offset);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(0, false, |inner, id, _| Ok(inode(inner, id)?.data.len() as u64))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(usize::try_from(len).map_err(io::Error::other)?, false, |inner, id, _| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let more = len.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
                inner.fail(|faults| &mut faults.writes)?;
                inode(inner, id)?.resize(len);
            }
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(0, false, |inner, id, _| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let more = len.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
            }
            inode(inner, id)?.resize(len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(0, true, |inner, id, crash| {
            if let Err(error) = inner.fail_sync() {
                for undo in inode(inner, id)?.undo.values_mut() {
                    undo.forgotten = true;
                }
                return Err(error);
            }
            // A crash during the sync finds it done or not.
            if !(crash && inner.rng.bool()) {
                inode(inner, id)?.sync();
            }
            Ok(())
        })
    }
}
