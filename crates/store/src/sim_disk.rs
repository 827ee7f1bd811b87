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
//! Not modelled: names that a failed sync of a directory has dropped (file systems that lose them stop), versions of
//! a sector that were overwritten before a sync, and sectors written to a wrong place.

mod file;
mod inode;
mod names;
mod state;

pub use inode::SECTOR;
pub use state::{Crashed, DiskCosts, Faults, is_crash};

use crate::disk::{Disk, DiskFile, DiskLock, LockError, Open, check_path, check_rename};
use file::SimFile;
use inode::Inode;
use names::{DirChange, Entry};
use state::{Inner, held};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// A simulated disk; clones share it.
///
/// Single-threaded use is deterministic: the same seed and calls give the same bytes. It has no exclusive lock: a
/// simulated process ends without dropping anything, so [`Disk::lock`] always succeeds.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

impl SimDisk {
    /// Creates an empty disk whose crashes are determined by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner::new(seed))) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        held(&self.inner)
    }

    /// Returns an independent copy, its crashes determined by `seed`, without the planned faults. Files must be opened
    /// again.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let mut inner = self.inner().clone();
        inner.rng = fastrand::Rng::with_seed(seed);
        (inner.faults, inner.refuse_at) = (Faults::default(), None);
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

    /// Restarts a crashed disk, and cancels what [`SimDisk::crash_after`] and [`SimDisk::refuse_after`] planned.
    pub fn restart(&self) {
        let mut inner = self.inner();
        inner.crashed = false;
        (inner.crash_at, inner.refuse_at) = (None, None);
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

    /// Fails the `operations`-th operation from now (1 is the next), whatever it is, as on a broken device: it changes nothing.
    pub fn refuse_after(&self, operations: u64) {
        let mut inner = self.inner();
        inner.refuse_at = Some(inner.operations + operations.max(1));
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
        let planned = (inner.crash_at.take(), std::mem::replace(&mut inner.faults, none));
        let limits = (inner.refuse_at.take(), inner.files_max.take());
        let counted = (inner.operations, inner.micros);
        inner.inodes.values_mut().for_each(Inode::toggle_flips);
        drop(inner);
        let done = run();
        let mut inner = self.inner();
        (inner.crash_at, inner.faults) = planned;
        (inner.refuse_at, inner.files_max) = limits;
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
    fn boot(&self) -> Option<u128> {
        Some(self.inner().cuts + 1)
    }

    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let id = inner.open(path, open);
        let id = inner.end_with(begun, id)?;
        let (generation, is_read) = (inner.generation, open == Open::Read);
        Ok(Box::new(SimFile { inner: Arc::clone(&self.inner), id, generation, is_read }))
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

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        let begun = inner.begin(0, false)?;
        let found = check_rename(from, to).and_then(|()| inner.file_id(from));
        let found = found.and_then(|_| match inner.names.contains_key(to) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => inner.fail(|faults| &mut faults.changes),
        });
        if found.is_ok() {
            inner.change(DirChange::Rename { from: from.to_owned(), to: to.to_owned() });
        }
        inner.end_with(begun, found)
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
