//! The disk of one life of the node.

use crate::disk_log::DiskLog;
use crate::refusals::{COPIES, Counter};
use crate::stage;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use stead_store::checkpoint::manifest::{decided_numbers, manifest_name, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::data_dir::CHECKPOINTS;
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::sim_disk::{SimDisk, is_crash};

/// A planted bug in what the disk deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removals {
    Honest,
    /// With the manifest of a checkpoint goes a bundle that another manifest names.
    WithNeededBundle,
    /// Those of marks of checks are reported as done, but not done.
    NotOfCheckMarks,
}

/// The beginnings of the paths of manifests, and of marks of checks that have begun.
const MANIFEST_PATHS: &str = "checkpoints/manifests/";
pub(crate) const CHECK_MARK_PATHS: &str = "checkpoints/checks/begun-";

/// The treatment of the log's syncs by a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncs {
    Honest,
    /// They are reported as done, but not done.
    Skipped,
    /// Their failures are not reported.
    Trusted,
    /// Those of copied bundles are reported as done, but not done.
    SkippedForCopies,
}

/// A disk that a dead life cannot change any more, whatever its objects do while they are dropped.
pub(crate) struct LifeDisk {
    inner: SimDisk,
    alive: Arc<AtomicBool>,
    syncs: Syncs,
    removals: Removals,
    log: Arc<Mutex<DiskLog>>,
    /// Number of log files that were opened.
    opened: AtomicU64,
    refusals: Counter,
    /// Planted bug: a bit of each copied bundle is flipped.
    garbles_copies: bool,
    /// Whether the life owns its data directory.
    is_locked: Arc<AtomicBool>,
}

/// The lock of a data directory, which notes its release.
struct Lock {
    _inner: Box<dyn DiskLock>,
    is_locked: Arc<AtomicBool>,
}

impl DiskLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        self.is_locked.store(false, Ordering::Relaxed);
    }
}

impl LifeDisk {
    pub(crate) fn new(inner: SimDisk, syncs: Syncs, removals: Removals) -> Self {
        let alive = Arc::new(AtomicBool::new(true));
        let (log, opened, refusals) = (Arc::default(), AtomicU64::new(0), Counter::default());
        let is_locked = Arc::default();
        Self { inner, alive, syncs, removals, log, opened, refusals, garbles_copies: false, is_locked }
    }

    /// Returns whether the life owns its data directory, as it changes.
    pub(crate) fn is_locked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_locked)
    }

    /// Plants the bug: a bit of each copied bundle is flipped.
    pub(crate) fn garble_copies(&mut self) {
        self.garbles_copies = true;
    }

    /// Returns the record of what this life does to the log.
    pub(crate) fn log(&self) -> Arc<Mutex<DiskLog>> {
        Arc::clone(&self.log)
    }

    /// Returns the count of what it refuses.
    pub(crate) fn refusals(&self) -> Counter {
        self.refusals.clone()
    }

    /// Returns the flag that ends the life when it is set to false.
    pub(crate) fn alive(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.alive)
    }

    /// Plants the bug: deletes a bundle that this manifest and another one name.
    fn remove_needed(&self, manifest: &str) {
        let store = DiskStore::attach(Arc::new(self.inner.clone()), CHECKPOINTS);
        let name = manifest.strip_prefix("checkpoints/").unwrap_or(manifest);
        self.inner.aside(|| {
            let (mut gone, mut needed) = (Vec::new(), Vec::new());
            for number in decided_numbers(&store).unwrap_or_default() {
                let Ok(found) = read_manifest(&store, number) else { continue };
                let bundles = if manifest_name(number) == name { &mut gone } else { &mut needed };
                bundles.extend(found.bundles.into_iter().map(|bundle| bundle.name));
            }
            if let Some(shared) = gone.iter().find(|name| needed.contains(name)) {
                // The disk works meanwhile.
                let _ = store.delete(shared);
            }
        });
    }

    fn check(&self) -> io::Result<()> {
        stage::pass();
        if self.alive.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::Error::other("this life of the node is over"))
        }
    }
}

/// A file of the log.
struct LogFile {
    inner: Box<dyn DiskFile>,
    number: u64,
    log: Arc<Mutex<DiskLog>>,
    syncs: Syncs,
}

impl LogFile {
    fn note(&self, note: impl FnOnce(&mut DiskLog)) {
        note(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A bundle of a copy, with planted bugs.
struct CopyFile {
    inner: Box<dyn DiskFile>,
    /// Planted bug: its bytes are never synced.
    is_hasty: bool,
    /// Planted bug: a bit of its first piece is flipped.
    is_garbled: bool,
}

impl DiskFile for CopyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.is_garbled || offset > 0 {
            return self.inner.write_at(bytes, offset);
        }
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        self.inner.write_at(&bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.is_hasty { Ok(()) } else { self.inner.sync_data() }
    }
}

impl Disk for LifeDisk {
    fn boot(&self) -> Option<u128> {
        self.inner.boot()
    }

    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.check()?;
        let opened = self.inner.open(path, open);
        let inner = match open {
            Open::Read | Open::Existing => self.refusals.note_read(path, opened)?,
            Open::New | Open::Replace => self.refusals.note(path, opened)?,
        };
        let inner = self.refusals.watch(path, inner);
        if path.starts_with(COPIES) && path.contains("/bundles/") {
            let (is_hasty, is_garbled) = (self.syncs == Syncs::SkippedForCopies, self.garbles_copies);
            return Ok(Box::new(CopyFile { inner, is_hasty, is_garbled }));
        }
        if !path.starts_with("wal/") {
            return Ok(inner);
        }
        let (number, log) = (self.opened.fetch_add(1, Ordering::Relaxed), self.log());
        let syncs = if path.ends_with(".log") { self.syncs } else { Syncs::Honest };
        Ok(Box::new(LogFile { inner, number, log, syncs }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.check()?;
        self.refusals.note_read(dir, self.inner.list(dir))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.check()?;
        self.refusals.note(path, self.inner.create_dir(path))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?;
        self.refusals.note(to, self.inner.rename_new(from, to))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?;
        self.refusals.note(to, self.inner.rename(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.check()?;
        match self.removals {
            Removals::NotOfCheckMarks if path.starts_with(CHECK_MARK_PATHS) => return Ok(()),
            Removals::WithNeededBundle if path.starts_with(MANIFEST_PATHS) => self.remove_needed(path),
            _ => {}
        }
        self.refusals.note(path, self.inner.remove(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.check()?;
        self.refusals.note(path, self.inner.remove_dir(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.check()?;
        self.refusals.note_sync(dir, self.inner.sync_dir(dir))
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.check()?;
        self.refusals.note_read(path, self.inner.len(path))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        let inner = self.inner.lock(path)?;
        self.is_locked.store(true, Ordering::Relaxed);
        Ok(Box::new(Lock { _inner: inner, is_locked: Arc::clone(&self.is_locked) }))
    }

    fn lock_to_read(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, LockError> {
        self.inner.lock_to_read(path)
    }
}

impl DiskFile for LogFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)?;
        self.note(|log| log.wrote(self.number, bytes));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        stage::pass();
        match self.syncs {
            Syncs::Honest | Syncs::SkippedForCopies => self.inner.sync_data()?,
            Syncs::Skipped => {}
            Syncs::Trusted => {
                self.inner.sync_data().or_else(|e| if is_crash(&e) { Err(e) } else { Ok(()) })?
            }
        }
        self.note(|log| log.synced(self.number));
        Ok(())
    }
}
