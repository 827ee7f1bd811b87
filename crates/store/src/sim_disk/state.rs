//! The state of a simulated disk, and the fate of its unsynced changes in a crash.

use super::inode::{Fate, Inode};
use super::names::{DirChange, Entry, is_within};
use crate::disk::{Open, check_path, parent};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

#[derive(Clone)]
pub(super) struct Inner {
    pub(super) rng: fastrand::Rng,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) inode_next: u64,
    pub(super) names: BTreeMap<String, Entry>,
    pub(super) names_durable: BTreeMap<String, Entry>,
    pub(super) changes: Vec<DirChange>,
    /// Whether a file may have no name: one that was removed, replaced, or lost in a crash.
    pub(super) may_have_unnamed: bool,
    /// Increased when all open files become invalid.
    pub(super) generation: u64,
    pub(super) operations: u64,
    pub(super) crash_at: Option<u64>,
    pub(super) refuse_at: Option<u64>,
    pub(super) crashed: bool,
    /// The number of power cuts.
    pub(super) cuts: u128,
    pub(super) capacity: Option<u64>,
    pub(super) files_max: Option<u32>,
    pub(super) faults: Faults,
    pub(super) failed: u64,
    pub(super) failed_syncs: u64,
    pub(super) costs: DiskCosts,
    pub(super) micros: u64,
}

/// An operation that passed the crash check; [`Inner::end`] crashes the disk if it was the one chosen for it.
#[must_use]
pub(super) struct Begun {
    pub(super) crash: bool,
}

impl Inner {
    pub(super) fn new(seed: u64) -> Self {
        Self {
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
            refuse_at: None,
            crashed: false,
            cuts: 0,
            capacity: None,
            files_max: None,
            faults: Faults::default(),
            failed: 0,
            failed_syncs: 0,
            costs: DiskCosts::default(),
            micros: 0,
        }
    }

    pub(super) fn begin(&mut self, bytes: usize, sync: bool) -> io::Result<Begun> {
        if self.crashed {
            return Err(io::Error::other(Crashed));
        }
        self.operations += 1;
        self.micros += self.costs.operation + self.costs.per_64_kib * (bytes as u64).div_ceil(65536);
        if sync {
            self.micros += self.costs.sync;
        }
        if self.refuse_at.take_if(|at| self.operations >= *at).is_some() {
            self.failed += 1;
            self.failed_syncs += u64::from(sync);
            return Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
        }
        Ok(Begun { crash: self.crash_at.is_some_and(|at| self.operations >= at) })
    }

    pub(super) fn end(&mut self, begun: Begun) -> io::Result<()> {
        if begun.crash {
            self.crash();
            return Err(io::Error::other(Crashed));
        }
        Ok(())
    }

    /// Ends an operation that changes something only if it succeeds.
    pub(super) fn end_with<T>(&mut self, begun: Begun, result: io::Result<T>) -> io::Result<T> {
        self.end(begun)?;
        result
    }

    pub(super) fn crash(&mut self) {
        self.cuts += 1;
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
    pub(super) fn collect(&mut self) {
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
    pub(super) fn fail(&mut self, kind: impl FnOnce(&mut Faults) -> &mut u32) -> io::Result<()> {
        let left = kind(&mut self.faults);
        let Some(fewer) = left.checked_sub(1) else { return Ok(()) };
        *left = fewer;
        self.failed += 1;
        Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()))
    }

    /// Fails a sync that was chosen for it.
    pub(super) fn fail_sync(&mut self) -> io::Result<()> {
        let failed = self.fail(|faults| &mut faults.syncs);
        self.failed_syncs += u64::from(failed.is_err());
        failed
    }

    pub(super) fn check_room(&self, more: usize) -> io::Result<()> {
        let used: u64 = self.inodes.values().map(|inode| inode.data.len() as u64).sum();
        match self.capacity {
            Some(capacity) if used.saturating_add(more as u64) > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_dir(&self, dir: &str) -> io::Result<()> {
        match self.names.get(dir) {
            _ if dir.is_empty() => Ok(()),
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn file_id(&self, path: &str) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(id)) => Ok(*id),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn change(&mut self, change: DirChange) {
        self.may_have_unnamed |= !matches!(change, DirChange::Link { .. });
        change.clone().apply(&mut self.names);
        self.changes.push(change);
    }

    pub(super) fn open(&mut self, path: &str, open: Open) -> io::Result<u64> {
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

    pub(super) fn open_files(&self) -> u32 {
        self.inodes.values().map(|inode| inode.handles).sum()
    }

    pub(super) fn create_dir(&mut self, path: &str) -> io::Result<()> {
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

    pub(super) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
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
        // Its unsynced changes go with the directory.
        self.changes.retain(|change| change.dir() != path);
        self.change(DirChange::Unlink { path: path.to_owned() });
        Ok(())
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
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

/// Locks the state for one operation.
pub(super) fn held(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    // A panic of a test that held the disk must be seen, not a second panic.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}
