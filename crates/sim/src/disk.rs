//! The disk of one life of the node.

use crate::disk_log::DiskLog;
use crate::node::COPIES;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use stead_store::disk::{Disk, DiskFile, DiskLock, LockError, Open};
use stead_store::sim_disk::{SimDisk, is_crash};

/// The treatment of the log's syncs by a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncs {
    Honest,
    /// They are reported as done, but not done.
    Skipped,
    /// Their failures are not reported.
    Trusted,
    /// Those of copies of checkpoints are reported as done, but not done.
    SkippedForCopies,
}

/// A disk that a dead life cannot change any more, whatever its objects do while they are dropped.
pub(crate) struct LifeDisk {
    inner: SimDisk,
    alive: Arc<AtomicBool>,
    syncs: Syncs,
    log: Arc<Mutex<DiskLog>>,
    /// Number of log files that were opened.
    opened: AtomicU64,
    /// Number of failed syncs of copies of checkpoints.
    failed_copies: Arc<AtomicU64>,
}

impl LifeDisk {
    pub(crate) fn new(inner: SimDisk, syncs: Syncs) -> Self {
        let alive = Arc::new(AtomicBool::new(true));
        let (log, opened, failed_copies) = (Arc::default(), AtomicU64::new(0), Arc::default());
        Self { inner, alive, syncs, log, opened, failed_copies }
    }

    /// Returns the record of what this life does to the log.
    pub(crate) fn log(&self) -> Arc<Mutex<DiskLog>> {
        Arc::clone(&self.log)
    }

    /// Returns the number of failed syncs of copies, which the node survives.
    pub(crate) fn failed_copies(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.failed_copies)
    }

    /// Returns the flag that ends the life when it is set to false.
    pub(crate) fn alive(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.alive)
    }

    fn check(&self) -> io::Result<()> {
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

/// A file of copies of checkpoints: its failed syncs are not those of the node's data.
struct CopyFile {
    inner: Box<dyn DiskFile>,
    /// Planted bug: it is never synced.
    is_hasty: bool,
    disk: SimDisk,
    failed: Arc<AtomicU64>,
}

impl DiskFile for CopyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)
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
        if self.is_hasty {
            return Ok(());
        }
        let before = self.disk.failed_syncs();
        let synced = self.inner.sync_data();
        self.failed.fetch_add(self.disk.failed_syncs() - before, Ordering::Relaxed);
        synced
    }
}

impl Disk for LifeDisk {
    fn open(&self, path: &str, open: Open) -> io::Result<Box<dyn DiskFile>> {
        self.check()?;
        let inner = self.inner.open(path, open)?;
        if path.starts_with(COPIES) {
            let (disk, failed) = (self.inner.clone(), Arc::clone(&self.failed_copies));
            let is_hasty = self.syncs == Syncs::SkippedForCopies;
            return Ok(Box::new(CopyFile { inner, is_hasty, disk, failed }));
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
        self.inner.list(dir)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.check()?;
        self.inner.create_dir(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.check()?;
        self.inner.remove(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.check()?;
        self.inner.remove_dir(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.check()?;
        let before = self.inner.failed_syncs();
        let synced = self.inner.sync_dir(dir);
        if dir.starts_with(COPIES) {
            self.failed_copies.fetch_add(self.inner.failed_syncs() - before, Ordering::Relaxed);
        }
        synced
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.check()?;
        self.inner.len(path)
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, LockError> {
        self.inner.lock(path)
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
