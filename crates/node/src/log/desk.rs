//! The desk between the log's parts and the rest of the node.

use crate::bell::Bell;
use crate::status::LogStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::checkpointing::driver::LogSpace;
use stead_core::durability::Durability;
use stead_core::ids::{Index, Time};
use stead_store::wal::Batch;

/// Number of batches kept for their capacity.
const SPARES: usize = 16;
/// A batch that has grown above this size is not kept.
const SPARE_BYTES: usize = 8 << 20;

/// A worker's entries for the log.
#[derive(Debug)]
pub struct Submission {
    /// The worker's number.
    pub worker: usize,
    /// Counts the worker's submissions, from 1.
    pub ticket: u64,
    /// The entries, as they are stored. A replica elsewhere can be sent the same bytes without a copy.
    pub batch: Arc<Batch>,
    /// When they have to be synced.
    pub durability: Durability,
}

/// The desk on which workers, checkpoints and the shutdown leave work for the log, and where they read its state.
#[derive(Debug, Default)]
pub struct LogDesk {
    queue: Mutex<Queue>,
    /// Rung when there is something on the desk.
    pub bell: Bell,
    /// Rung when a segment should be prepared.
    pub preparer_bell: Bell,
    spares: Mutex<Vec<Arc<Batch>>>,
    /// Whether the log's owner assumes that there is no space for another segment.
    short: AtomicBool,
    /// Whether the part that prepares segments found no space when it last looked, and whether that is new.
    found_short: AtomicBool,
    prepared: AtomicBool,
    /// The reason for which there was no space.
    shortage: Mutex<String>,
    full: AtomicBool,
    spent: AtomicBool,
    bytes: AtomicU64,
    segments: AtomicU64,
    reserve: AtomicU64,
    appended: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    submissions: Vec<Submission>,
    /// Arrival of the oldest of `submissions`, and of the oldest that is being written.
    since: Option<Time>,
    writing_since: Option<Time>,
    /// By shard, the index up to which a checkpoint replaces the log.
    trim: Option<Vec<Index>>,
    wants_sync: bool,
    closed: bool,
}

/// The work that the log's owner takes from the desk, besides submissions.
pub(super) struct Taken {
    /// By shard, the index up to which a checkpoint replaces the log.
    pub(super) trim: Option<Vec<Index>>,
    /// Whether what counts as durable is to be synced.
    pub(super) wants_sync: bool,
    /// Whether nothing more is submitted, and nothing is left on the desk.
    pub(super) is_closed: bool,
}

impl LogDesk {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker's entries.
    pub fn submit(&self, now: Time, submission: Submission) {
        let mut queue = self.queue();
        queue.since.get_or_insert(now);
        queue.submissions.push(submission);
        drop(queue);
        self.bell.ring();
    }

    /// Notes that entries up to these indexes, by shard, are in a checkpoint: the log no longer needs them.
    pub fn trim(&self, tops: Vec<Index>) {
        self.queue().trim = Some(tops);
        self.bell.ring();
    }

    /// Asks for a sync of all that counts as durable: something that is to survive the log depends on it.
    pub(crate) fn want_sync(&self) {
        self.queue().wants_sync = true;
        self.bell.ring();
    }

    /// Notes that nothing more is submitted: the log ends once all submissions are durable.
    pub fn close(&self) {
        self.queue().closed = true;
        self.bell.ring();
    }

    /// Takes the entries out of a batch to share them, and leaves it empty: with the capacity of a spare one, if one is
    /// left.
    pub(crate) fn share(&self, batch: &mut Batch) -> Arc<Batch> {
        let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut shared = spare.unwrap_or_default();
        std::mem::swap(Arc::get_mut(&mut shared).expect("a spare batch has no other holder"), batch);
        shared
    }

    /// Keeps the capacity of some durable batches. One that is held elsewhere is left to its last holder.
    pub(super) fn keep_spares(&self, batches: impl Iterator<Item = Arc<Batch>>) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        for mut batch in batches {
            let own = Arc::get_mut(&mut batch).filter(|batch| batch.bytes() <= SPARE_BYTES);
            if let Some(own) = own.filter(|_| spares.len() < SPARES) {
                own.clear();
                spares.push(batch);
            }
        }
    }

    /// Takes the work on the desk: the submissions only if there is room for them, an empty list.
    pub(super) fn take(&self, submissions: Option<&mut Vec<Submission>>) -> Taken {
        let mut queue = self.queue();
        if let Some(submissions) = submissions {
            std::mem::swap(&mut queue.submissions, submissions);
            queue.writing_since = queue.since.take();
        }
        let (wants_sync, is_closed) =
            (std::mem::take(&mut queue.wants_sync), queue.closed && queue.submissions.is_empty());
        Taken { trim: queue.trim.take(), wants_sync, is_closed }
    }

    /// Returns the time that the oldest submission that is not durable has waited.
    pub(crate) fn lag(&self, now: Time) -> Option<Duration> {
        let queue = self.queue();
        let oldest = queue.writing_since.or(queue.since)?;
        Some(now.since(oldest).into())
    }

    /// Whether new work is refused for lack of space.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Returns the space for the markers of checkpoints. It is spent as
    /// [`LogRoom::is_spent`](stead_core::log_room::LogRoom::is_spent) says.
    pub fn space(&self) -> LogSpace {
        match (self.spent.load(Ordering::Relaxed), self.is_full()) {
            (true, _) => LogSpace::Spent,
            (false, true) => LogSpace::Full,
            (false, false) => LogSpace::Enough,
        }
    }

    /// Returns the number of segments with needed batches, as its owner last noted it.
    pub fn segments(&self) -> u64 {
        self.segments.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the log has got: those that it needed when it was opened, and what was appended since.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// Notes bytes that the log has got.
    pub(crate) fn note_appended(&self, bytes: u64) {
        self.appended.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn status(&self) -> LogStatus {
        LogStatus {
            bytes: self.bytes.load(Ordering::Relaxed),
            segments: self.segments(),
            reserve: self.reserve.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn shortage(&self) -> MutexGuard<'_, String> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the log's bytes and segments, and the bytes that can be appended before another segment is needed.
    pub(super) fn note_size(&self, bytes: u64, segments: u64, reserve: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.segments.store(segments, Ordering::Relaxed);
        self.reserve.store(reserve, Ordering::Relaxed);
    }

    /// Notes whether there is no space for another segment, and whether no checkpoint may begin.
    pub(super) fn note_room(&self, is_short: bool, is_spent: bool) {
        self.short.store(is_short, Ordering::SeqCst);
        self.spent.store(is_spent, Ordering::Relaxed);
    }

    /// Notes whether new work is refused.
    pub(super) fn note_full(&self, is_full: bool) {
        self.full.store(is_full, Ordering::Relaxed);
    }

    /// Returns whether the last preparation of a segment found no space; `None` if that is not new.
    pub(super) fn take_prepared(&self) -> Option<bool> {
        self.prepared.swap(false, Ordering::SeqCst).then(|| self.found_short.load(Ordering::SeqCst))
    }

    /// Notes whether the part that prepares segments has found space.
    pub(crate) fn note_prepared(&self, is_short: bool, is_made: bool) {
        self.found_short.store(is_short, Ordering::SeqCst);
        if is_made || self.short.load(Ordering::SeqCst) != is_short {
            self.prepared.store(true, Ordering::SeqCst);
            self.bell.ring();
        }
    }
}
