//! The write-ahead log: one per node, shared by its shards.
//!
//! One owner appends [`Batch`]es that worker threads filled, as one checksummed write, and then syncs once for all of
//! them. Segments of a fixed length are filled with zeros beforehand and reused when trimmed, so that a sync writes data and
//! nothing else.
//!
//! Each batch records the last batch that was durable when it was written: the *sync mark*. By it a recovery
//! distinguishes an unsynced tail, which is cut, from corruption, which is refused: see [`Wal::open`]. The layout on
//! disk is described in `frame.rs`, `record.rs` and `segment.rs`.
//!
//! Each segment begins with a table of all promises, so that trimming loses none. Knows nothing else of what records mean,
//! and never reads a clock.
//!
//! A log that version 1 wrote goes on in version 2: the segments that it has stay as they are, and leave by trimming. The
//! last of them still takes marks, and the first records that are appended begin a new segment.

mod append;
mod batch;
mod error;
mod frame;
mod live;
mod log_reader;
mod numbers;
mod open;
mod options;
mod promises;
mod record;
mod recovery;
mod segment;
mod spans;
mod window;

pub use batch::Batch;
pub use error::{Damage, WalError};
pub use frame::{FORMAT, Position};
pub use live::{Reading, ShardReader, WalReader};
pub use log_reader::{LogReader, Progress};
pub use options::WalOptions;
pub use promises::{Promise, Promises};
pub use record::{CutRecord, InstallRecord, Item, Record};
pub use recovery::{Cut, Opened};
pub use segment::SegmentPreparer;

use crate::aligned::Aligned;
use frame::BLOCK;
use live::{Extent, Published};
use options::RESERVED;
use segment::{Pool, Segment, log_path};
use spans::ShardSpans;
use std::collections::VecDeque;
use std::sync::Arc;
use stead_core::ids::{Index, ShardId};

/// The state of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Number of segments with needed batches, the active one included.
    pub segments: usize,
    /// Number of segments ready to be written.
    pub ready: usize,
    /// Number of trimmed segments kept for reuse.
    pub free: usize,
    /// Bytes of all those files together.
    pub bytes: u64,
    /// Bytes of the segments with needed batches.
    pub bytes_needed: u64,
    /// The last batch appended.
    pub batch: u64,
    /// The last batch known to be durable.
    pub synced: u64,
}

/// A segment that is full.
struct Sealed {
    id: u64,
    bytes: u64,
}

/// An open log; its owner is the only one to write it.
pub struct Wal {
    pool: Arc<Pool>,
    options: WalOptions,
    sealed: VecDeque<Sealed>,
    active: Segment,
    /// The position of the next batch in the active segment.
    at: u64,
    last: Position,
    last_checksum: u32,
    synced: u64,
    /// The sync mark in the last batch.
    marked: u64,
    /// The last batch that has records.
    last_records: u64,
    oldest: u64,
    promises: Promises,
    /// The table of the promises, as at the beginning of a segment.
    table: Vec<u8>,
    /// The facts for readers on other threads.
    published: Arc<Published>,
    fatal: Option<String>,
    /// The batch being written; kept for its memory.
    buf: Aligned,
}

impl Wal {
    /// Makes all appended records durable.
    ///
    /// # Errors
    /// [`WalError::Io`], then [`WalError::Fatal`] for ever: after a failed sync the contents of the disk are unknown,
    /// so end the process.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check()?;
        if self.synced == self.last.batch {
            return Ok(());
        }
        match self.active.file.sync_data() {
            Ok(()) => {
                self.synced = self.last.batch;
                self.publish();
                Ok(())
            }
            Err(source) => {
                let path = log_path(&self.options.dir, self.active.id);
                Err(self.fail(WalError::Io { action: "sync", path, source }))
            }
        }
    }

    /// Lets readers see what was appended and is not synced yet: a power cut may still take it.
    pub fn publish(&self) {
        self.published.set(Extent { oldest: self.oldest, last: self.last });
    }

    /// Syncs, and records that in the log with a small batch, unless the log records it already. Until the next batch
    /// is written, only this mark distinguishes damage to the last batch from a tail that was never synced. For an idle
    /// log, and before a log is closed. Returns whether the mark is in the log: on a full disk there may be no space
    /// for it.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn mark(&mut self) -> Result<bool, WalError> {
        self.sync()?;
        if self.is_marked() {
            return Ok(true);
        }
        if self.missing(&[0], self.table.len(), &self.pool.ready()).is_some() {
            return Ok(false);
        }
        self.write::<Batch>(&[])?;
        self.sync()?;
        Ok(true)
    }

    /// Releases the oldest segments in which each record's index is at most `top` of its shard, and returns their
    /// number. The active segment stays, and all segments stay while the disk is too full to record the release. Syncs
    /// if there is something to release.
    ///
    /// For a shard whose records are not needed any more, let `top` be `Index(u64::MAX)`.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn trim(&mut self, top: impl Fn(ShardId) -> Index) -> Result<usize, WalError> {
        self.trim_pinned(top, |_| Index(u64::MAX), 0)
    }

    /// Trims as [`Wal::trim`] does, but keeps the entries of a shard behind `pin`, which other nodes still read, as long as the needed
    /// segments together have at most `bytes_max` bytes. Beyond that the oldest ones are released as well, and these nodes need a snapshot.
    ///
    /// # Errors
    /// As [`Wal::trim`].
    pub fn trim_pinned(
        &mut self,
        top: impl Fn(ShardId) -> Index,
        pin: impl Fn(ShardId) -> Index,
        bytes_max: u64,
    ) -> Result<usize, WalError> {
        self.check()?;
        let unneeded = |top: &dyn Fn(ShardId) -> Index| {
            let is_unneeded = |shards: &ShardSpans| shards.tops().all(|(shard, index)| index <= top(shard));
            self.published.count_first(self.sealed.len(), is_unneeded)
        };
        let count_max = unneeded(&top);
        let mut count = unneeded(&|shard| top(shard).min(pin(shard)));
        let mut left = self.bytes() - self.sealed.iter().take(count).map(|sealed| sealed.bytes).sum::<u64>();
        while count < count_max && left > bytes_max {
            left -= self.sealed[count].bytes;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // Without space to record it nothing can be released: an earlier trim has used the reserved block, and the disk
        // is full.
        if self.at + self.span(self.at, 0) > self.active.bytes {
            match self.pool.ensure(|ready| ready.is_empty().then_some(0)) {
                Err(WalError::NoSpace { .. }) => return Ok(0),
                ready => ready?,
            }
        }
        // The log records what it no longer needs before it is deleted, so that any other missing file is a loss.
        self.oldest = self.sealed.get(count).map_or(self.active.id, |next| next.id);
        self.write_within::<Batch>(&[], RESERVED)?;
        self.sync()?;
        let ids: Vec<u64> = self.sealed.drain(..count).map(|sealed| sealed.id).collect();
        self.published.drop_first(count);
        self.pool.log_has(self.bytes());
        if let Err(error) = self.pool.release(&ids) {
            return Err(self.fail(error));
        }
        Ok(count)
    }

    /// Returns the bytes that can be appended before the log needs another segment of the disk. When this gets low and
    /// preparing fails with [`WalError::NoSpace`], accept no more work that must be logged.
    #[must_use]
    pub fn reserve_left(&self) -> u64 {
        let active =
            if self.must_roll(true) { 0 } else { (self.active.bytes - RESERVED).saturating_sub(self.at) };
        let overhead = BLOCK as u64 + RESERVED + self.table.len() as u64;
        active + self.pool.ready().iter().map(|bytes| bytes.saturating_sub(overhead)).sum::<u64>()
    }

    /// Returns the bytes of the next segment, unless a batch needs more.
    #[must_use]
    pub fn segment_bytes_next(&self) -> u64 {
        self.pool.wanted_bytes()
    }

    /// Whether [`SegmentPreparer::prepare_next`] should run.
    #[must_use]
    pub fn wants_segment(&self) -> bool {
        self.pool.wants()
    }

    /// Prepares a segment if none is ready, or waits for another thread that does so.
    ///
    /// # Errors
    /// As [`SegmentPreparer::prepare_next`].
    pub fn prepare_now(&self) -> Result<(), WalError> {
        self.pool.ensure(|ready| ready.is_empty().then_some(0))
    }

    /// Returns a handle that prepares segments on another thread. From now on the log prepares by itself only if it
    /// would stop otherwise.
    #[must_use]
    pub fn preparer(&self) -> SegmentPreparer {
        self.pool.delegate();
        SegmentPreparer { pool: Arc::clone(&self.pool) }
    }

    /// Returns a handle that reads this log from another thread.
    #[must_use]
    pub fn reader(&self) -> WalReader {
        let (dir, log_id) = (self.options.dir.clone(), self.options.log_id);
        WalReader::new(Arc::clone(self.pool.disk()), dir, log_id, Arc::clone(&self.published))
    }

    /// Whether the log itself records that everything appended was synced, as after [`Wal::mark`].
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.marked >= self.last_records
    }

    /// Returns the promises in the log.
    #[must_use]
    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// Returns the maximum number of bytes of one [`Batch`].
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        self.options.payload_max()
    }

    /// Returns the place of the last batch.
    #[must_use]
    pub fn position(&self) -> Position {
        self.last
    }

    /// Returns the state of the log.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        let ready = self.pool.ready();
        let (free, free_bytes) = self.pool.free();
        WalStats {
            segments: self.sealed.len() + 1,
            ready: ready.len(),
            free,
            bytes_needed: self.bytes(),
            bytes: self.bytes() + ready.iter().sum::<u64>() + free_bytes,
            batch: self.last.batch,
            synced: self.synced,
        }
    }

    fn check(&mut self) -> Result<(), WalError> {
        if self.fatal.is_none() {
            self.fatal = self.pool.fatal();
        }
        match &self.fatal {
            Some(reason) => Err(WalError::Fatal { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: WalError) -> WalError {
        self.fatal = Some(error.to_string());
        error
    }

    /// Returns the bytes of the needed segments.
    fn bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>() + self.active.bytes
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("last", &self.last).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
