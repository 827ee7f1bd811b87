//! The operations that the disk refused in a life of the node, by the files concerned: a failure needs such a cause.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use stead_store::checkpoint::checks::CHECKS;
use stead_store::data_dir::CHECKPOINTS;
use stead_store::disk::{DiskFile, is_full};
use stead_store::sim_disk::is_crash;

/// The directory to which the node copies its checkpoints.
pub(crate) const COPIES: &str = "copies";
/// The directory to which it copies those that an operator requests.
pub(crate) const BY_HAND: &str = "copies-by-hand";

/// The files that a part of the node uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    Log,
    Checkpoints,
    Copies,
    /// The metadata, and whatever else is in the data directory.
    Data,
}

impl Area {
    const COUNT: usize = 4;

    fn of(path: &str) -> Self {
        let is_in =
            |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match path {
            _ if path.starts_with(COPIES) => Self::Copies,
            _ if is_in("wal") => Self::Log,
            _ if is_in(CHECKPOINTS) => Self::Checkpoints,
            _ => Self::Data,
        }
    }
}

/// Whether a path is the directory with the marks of checks.
fn is_of_marks(path: &str) -> bool {
    path.strip_prefix(CHECKPOINTS).is_some_and(|rest| rest.trim_matches('/') == CHECKS.trim_matches('/'))
}

/// The number of operations that the disk refused, by area: for want of space or of descriptors, as failed syncs, as failed reads,
/// and as other faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    short: [u64; Area::COUNT],
    syncs: [u64; Area::COUNT],
    reads: [u64; Area::COUNT],
    faults: [u64; Area::COUNT],
    /// Those of the failed syncs that were of the directory with the marks of checks.
    marks: u64,
}

impl Refusals {
    /// Returns those since an earlier count.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let less = |now: [u64; Area::COUNT], before: [u64; Area::COUNT]| {
            std::array::from_fn(|at| now[at] - before[at])
        };
        Self {
            short: less(self.short, before.short),
            syncs: less(self.syncs, before.syncs),
            reads: less(self.reads, before.reads),
            faults: less(self.faults, before.faults),
            marks: self.marks - before.marks,
        }
    }

    /// Whether an operation on these files was refused for want of space or of descriptors.
    pub(crate) fn is_short(&self, area: Area) -> bool {
        self.short[area as usize] > 0
    }

    /// Whether an operation on these files failed otherwise, as on a broken device.
    pub(crate) fn has_failed(&self, area: Area) -> bool {
        self.may_latch(area) || self.reads[area as usize] > 0
    }

    /// Whether a change of these files or a sync of them failed: their contents may be unknown since, so that their owner takes nothing
    /// more.
    pub(crate) fn may_latch(&self, area: Area) -> bool {
        self.syncs[area as usize] + self.faults[area as usize] > 0
    }

    /// Whether any operation on these files was refused.
    pub(crate) fn any_of(&self, area: Area) -> bool {
        self.is_short(area) || self.has_failed(area)
    }

    /// Whether any operation was refused.
    pub(crate) fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether all that was refused was so for want of space or of descriptors.
    pub(crate) fn all_short(&self) -> bool {
        self.syncs.iter().chain(&self.reads).chain(&self.faults).all(|count| *count == 0)
    }

    /// Returns the number of failed syncs of the node's own data that it does not survive. It does those of copies, and one after
    /// the removal of a check's mark: the store syncs its directories again before it writes, and the mark is removed again.
    pub(crate) fn failed_syncs(&self) -> u64 {
        self.syncs.iter().sum::<u64>() - self.syncs[Area::Copies as usize] - self.marks
    }
}

/// The kinds of operations.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Change,
    Sync,
    /// A sync of the directory with the marks of checks.
    SyncOfMarks,
}

/// The refusals of a life, which its disk counts.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<Mutex<Refusals>>);

impl Counter {
    /// Returns the refusals up to now.
    pub(crate) fn get(&self) -> Refusals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the result of a change of a path.
    pub(crate) fn note<T>(&self, path: &str, result: io::Result<T>) -> io::Result<T> {
        self.count(Area::of(path), Kind::Change, result)
    }

    /// Notes the result of a look at a path.
    pub(crate) fn note_read<T>(&self, path: &str, result: io::Result<T>) -> io::Result<T> {
        self.count(Area::of(path), Kind::Read, result)
    }

    /// Notes the result of a sync of a path.
    pub(crate) fn note_sync<T>(&self, path: &str, result: io::Result<T>) -> io::Result<T> {
        let kind = if is_of_marks(path) { Kind::SyncOfMarks } else { Kind::Sync };
        self.count(Area::of(path), kind, result)
    }

    fn count<T>(&self, area: Area, kind: Kind, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Refusals { short, syncs, reads, faults, marks } = &mut *refusals;
            match error {
                error if is_crash(error) => {}
                error if is_full(error) => short[area as usize] += 1,
                // A planned fault is the system's error; what else is refused is the caller's mistake, or an answer.
                error if error.raw_os_error().is_none() => {}
                _ => {
                    let failed = match kind {
                        Kind::Read => reads,
                        Kind::Change => faults,
                        Kind::Sync => syncs,
                        Kind::SyncOfMarks => {
                            *marks += 1;
                            syncs
                        }
                    };
                    failed[area as usize] += 1;
                }
            }
        }
        result
    }

    /// Returns a file whose operations are counted as well.
    pub(crate) fn watch(&self, path: &str, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(CountedFile { inner, area: Area::of(path), counter: self.clone() })
    }
}

/// A file whose refused operations are counted.
struct CountedFile {
    inner: Box<dyn DiskFile>,
    area: Area,
    counter: Counter,
}

impl CountedFile {
    fn read<T>(&self, result: io::Result<T>) -> io::Result<T> {
        self.counter.count(self.area, Kind::Read, result)
    }

    fn change<T>(&self, result: io::Result<T>) -> io::Result<T> {
        self.counter.count(self.area, Kind::Change, result)
    }
}

impl DiskFile for CountedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(self.inner.read_at(buf, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(self.inner.write_at(bytes, offset))
    }

    fn len(&self) -> io::Result<u64> {
        self.read(self.inner.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(self.inner.allocate(len))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(self.inner.truncate(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counter.count(self.area, Kind::Sync, self.inner.sync_data())
    }
}
