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

mod batch;
mod error;
mod frame;
mod live;
mod promises;
mod record;
mod recovery;
mod segment;
mod spans;
mod window;

pub use batch::Batch;
pub use error::{Damage, WalError};
pub use live::{ShardReader, WalReader};
pub use promises::Promises;
pub use record::{CutRecord, Item, Promise, Record};
pub use segment::SegmentPreparer;

use crate::aligned::Aligned;
use crate::disk::{Disk, Open, parent};
use frame::{BLOCK, FrameHeader, HEADER, span};
use live::{Extent, Published};
use segment::{Pool, SEGMENT_MAX, SEGMENT_MIN, Segment, log_path};
use spans::{SegmentSpans, ShardSpans};
use std::borrow::Borrow;
use std::collections::VecDeque;
use std::error::Error;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use stead_core::ids::{Index, ShardId};

/// The version of the log's format, in every segment's header.
pub const FORMAT: u32 = 2;

/// The last block of a segment is kept for the batch that a trim writes: trimming must work when the disk is full.
const RESERVED: u64 = BLOCK as u64;

/// Bytes that a segment keeps free for the table of promises beside a batch of the limit. With a longer table such a
/// batch needs a longer segment.
const TABLE_ROOM: u64 = 512;

/// The options of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// The log's directory on the disk, whose parent must exist. Default `wal`.
    pub dir: String,
    /// Maximum bytes of a new segment: 16 KiB to 1 GiB, a multiple of 4 KiB. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of the segments of a short log, from 16 KiB, a multiple of 4 KiB; [`Self::segment_bytes`] if that is less.
    /// They double as the log gets longer. Default 1 MiB.
    pub segment_bytes_min: u64,
    /// Maximum bytes of records in one write, and so in one [`Batch`]; less if a segment holds less. Default 16 MiB,
    /// maximum 256 MiB.
    pub batch_bytes_max: usize,
    /// Number of segments kept ready to be written: 1 to 16. Default 1.
    pub spares: usize,
    /// Maximum number of trimmed segments kept for reuse: 1 to 1024. Default 2.
    pub free_max: usize,
    /// The log's identity, drawn at random when it is created: segments of another log are refused. Default 0.
    pub log_id: u64,
    /// Whether an empty log may be created. Only the first start of a node may: later, no log means that it was lost.
    /// Default false.
    pub create: bool,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            dir: "wal".to_owned(),
            segment_bytes: 64 << 20,
            segment_bytes_min: 1 << 20,
            batch_bytes_max: 16 << 20,
            spares: 1,
            free_max: 2,
            log_id: 0,
            create: false,
        }
    }
}

impl WalOptions {
    fn check(&self) -> Result<(), WalError> {
        let refuse =
            |option, value, must: &str| Err(WalError::Options { option, value, must: must.to_owned() });
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(BLOCK as u64)
        {
            return refuse("segment_bytes", self.segment_bytes, "16 KiB to 1 GiB and a multiple of 4 KiB");
        }
        if self.segment_bytes_min < SEGMENT_MIN || !self.segment_bytes_min.is_multiple_of(BLOCK as u64) {
            return refuse(
                "segment_bytes_min",
                self.segment_bytes_min,
                "16 KiB or more and a multiple of 4 KiB",
            );
        }
        if !(1..=256 << 20).contains(&self.batch_bytes_max) {
            return refuse("batch_bytes_max", self.batch_bytes_max as u64, "1 byte to 256 MiB");
        }
        if !(1..=16).contains(&self.spares) {
            return refuse("spares", self.spares as u64, "1 to 16");
        }
        if !(1..=1024).contains(&self.free_max) {
            return refuse("free_max", self.free_max as u64, "1 to 1024");
        }
        Ok(())
    }

    fn first_bytes(&self) -> u64 {
        self.segment_bytes_min.min(self.segment_bytes)
    }

    /// Whether an empty segment of this length may become one of this log's next.
    fn is_reusable(&self, bytes: u64) -> bool {
        (self.first_bytes()..=self.segment_bytes).contains(&bytes) && bytes.is_multiple_of(BLOCK as u64)
    }

    /// Returns the bytes that fit into one write: a segment without its header, its table and its reserved block, or
    /// the set limit.
    fn payload_max(&self) -> usize {
        let room = self.segment_bytes - BLOCK as u64 - RESERVED - HEADER as u64 - TABLE_ROOM;
        usize::try_from(room).map_or(self.batch_bytes_max, |room| room.min(self.batch_bytes_max))
    }
}

/// A place in the log. Later places are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The batch's number over the whole log, from 1.
    pub batch: u64,
    /// Its segment's number, from 1.
    pub segment: u64,
    /// Its position in the segment, in bytes.
    pub offset: u64,
}

/// The report of opening a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Number of segments, prepared ones included.
    pub segments: u64,
    /// Number of batches, those that hold only a sync mark included.
    pub batches: u64,
    /// Number of records.
    pub records: u64,
    /// Bytes of the batches on disk.
    pub bytes: u64,
    /// Number of whole batches at the end that no sync mark covered. They are kept, because they may have been synced.
    pub unsynced: u64,
    /// The unsynced tail of a crash that was wiped.
    pub cut: Option<Cut>,
}

/// The place at which the unsynced tail of a log was cut, and the damage there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment's file.
    pub path: String,
    /// The first byte that was cut.
    pub offset: u64,
    /// The damage.
    pub damage: Damage,
}

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
    /// Their table, as at the beginning of a segment.
    table: Vec<u8>,
    /// For readers on other threads.
    published: Arc<Published>,
    fatal: Option<String>,
    /// The batch being written; kept for its memory.
    buf: Aligned,
}

impl Wal {
    /// Opens a log, shows all its records to `visit` in the order in which they were appended, and makes them durable.
    ///
    /// Damage at or below the highest sync mark found in any whole batch is corruption, and is refused. Above it, the log
    /// ends where the damage begins: the rest had not been synced, and is wiped before this returns. Whole batches
    /// above the mark are kept. When this returns, all that `visit` saw is durable, and a new sync mark says so, unless the disk is
    /// too full for one (see [`Wal::mark`]).
    ///
    /// # Errors
    /// [`WalError::Corrupt`], [`WalError::MissingSegment`], [`WalError::Missing`], [`WalError::Version`] and
    /// [`WalError::WrongLog`] leave the disk as it was. [`WalError::Visit`] carries `visit`'s error.
    /// [`WalError::NoSpace`] if a new log doesn't fit.
    pub fn open<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        let visit = |item: Item<'_>| match item {
            Item::Entry(record) => visit(record),
            Item::Promise(_) | Item::Cut(_) => Ok(()),
        };
        Self::open_checked(disk, options, visit, || Ok(()))
    }

    /// Opens a log as [`Wal::open`] does and shows all its records, but asks `accept` once all records were shown and nothing is changed yet: what
    /// looks like an unsynced tail may be known to have been synced.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Visit`] also carries `accept`'s error, and the disk is as it was.
    pub fn open_checked<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        mut visit: impl FnMut(Item<'_>) -> Result<(), E>,
        accept: impl FnOnce() -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        options.check()?;
        let mut scan = recovery::scan(&*disk, &options, &mut |item| {
            visit(item).map(ControlFlow::Continue).map_err(Into::into)
        })?;
        if scan.segments.is_empty() && !options.create {
            return Err(WalError::Missing { dir: options.dir });
        }
        accept().map_err(|error| WalError::Visit(error.into()))?;
        if scan.segments.is_empty() {
            disk.create_dir(&options.dir).map_err(WalError::io("create", &options.dir))?;
            let above = parent(&options.dir);
            disk.sync_dir(above).map_err(WalError::io("sync", above))?;
        }
        scan.repair(&*disk, &options)?;

        let new = scan.number == 0;
        let id_next = scan.segments.last().map_or(1, |last| last.id + 1);
        let (mut sealed, mut spans) = (VecDeque::new(), VecDeque::new());
        let mut outdated = std::mem::take(&mut scan.outdated);
        let mut active = None;
        let mut ready = VecDeque::new();
        let open = |id: u64, bytes: u64, version: u32| {
            let path = log_path(&options.dir, id);
            let file = disk.open_direct(&path, Open::Existing).map_err(WalError::io("open", &path))?;
            Ok::<_, WalError>(Segment { id, file, bytes, version })
        };
        for (at, found) in scan.segments.into_iter().enumerate() {
            let recovery::Found { id, bytes, version, last, spans: shards } = found;
            match at.cmp(&scan.tail) {
                std::cmp::Ordering::Less if id < scan.oldest => outdated.push(id),
                std::cmp::Ordering::Less => {
                    sealed.push_back(Sealed { id, bytes });
                    spans.push_back(SegmentSpans { id, last, shards });
                }
                std::cmp::Ordering::Equal => {
                    active = Some(open(id, bytes, version)?);
                    spans.push_back(SegmentSpans { id, last, shards });
                }
                std::cmp::Ordering::Greater => ready.push_back(open(id, bytes, version)?),
            }
        }
        let pool = Arc::new(Pool::new(Arc::clone(&disk), &options, ready, scan.reusable, id_next));
        let has = |active: u64| active + sealed.iter().map(|sealed: &Sealed| sealed.bytes).sum::<u64>();
        pool.log_has(has(active.as_ref().map_or(0, |active| active.bytes)));
        if !outdated.is_empty() {
            pool.release(&outdated)?;
        }
        let active = match active {
            Some(active) => active,
            None => {
                let active = pool.take(0)?;
                spans.push_back(SegmentSpans { id: active.id, last: 0, shards: ShardSpans::default() });
                active
            }
        };
        let at = if new { BLOCK as u64 } else { scan.at };
        let last = Position { batch: scan.number, segment: active.id, offset: scan.last_at };
        let oldest = if new { active.id } else { scan.oldest };
        let mut wal = Self {
            last,
            published: Arc::new(Published::new(Extent { oldest, last }, spans)),
            last_checksum: scan.checksum,
            synced: scan.number,
            marked: 0,
            last_records: scan.number,
            oldest,
            pool,
            options,
            sealed,
            active,
            at,
            table: Vec::new(),
            promises: scan.promises,
            fatal: None,
            buf: Aligned::default(),
        };
        wal.promises.encode(&mut wal.table);
        wal.pool.need(least_bytes(wal.table.len()))?;
        if new {
            // Every log has a first batch, so that a segment without batches is never taken for an empty log.
            wal.write::<Batch>(&[])?;
            wal.sync()?;
        } else {
            wal.mark()?;
        }
        // The first segment of another version is created by the first append: only then the owner has agreed to it.
        if wal.active.version == FORMAT {
            wal.pool.prepare_unless_delegated()?;
        }
        Ok((wal, scan.opened))
    }

    /// Reads the entries of a log without changing anything, as [`Wal::open`] would: for inspection without an owner.
    /// When `visit` breaks, the rest is not read.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Missing`] also if [`WalOptions::create`] is set.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: &dyn Disk,
        options: &WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Opened, WalError> {
        options.check()?;
        let scan = recovery::scan(disk, options, &mut |item| match item {
            Item::Entry(record) => visit(record).map_err(Into::into),
            Item::Promise(_) | Item::Cut(_) => Ok(ControlFlow::Continue(())),
        })?;
        if scan.number == 0 {
            return Err(WalError::Missing { dir: options.dir.clone() });
        }
        Ok(scan.opened)
    }

    /// Appends the records of all batches, in order, with as few writes as the limit allows, usually one. They are durable
    /// only after [`Wal::sync`]. Returns the place of the last write.
    ///
    /// # Errors
    /// [`WalError::TooLarge`], [`WalError::TooManyPromises`] and [`WalError::NoSpace`]: nothing was appended, and the log
    /// stays usable. [`WalError::Io`] or [`WalError::Fatal`]: the log refuses everything from now on.
    ///
    /// # Panics
    /// If a replica promises a lower epoch than before: nothing was appended.
    pub fn append<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<Position, WalError> {
        for write in self.find_room(batches, false)? {
            self.write(&batches[write])?;
        }
        Ok(self.last)
    }

    /// Appends as [`Wal::append`] does, and records in the log that all of it is synced: the records are durable, and
    /// marked so, when this returns.
    ///
    /// # Errors
    /// As [`Wal::append`]. After [`WalError::NoSpace`] nothing was appended: there is room for the records and the mark,
    /// or neither is written.
    ///
    /// # Panics
    /// As [`Wal::append`].
    pub fn append_marked<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<(), WalError> {
        for write in self.find_room(batches, true)? {
            self.write(&batches[write])?;
        }
        let is_marked = self.mark()?;
        assert!(is_marked, "there was room for the mark");
        Ok(())
    }

    /// Prepares the segments without which [`Wal::append_marked`] of these batches would find no room. Writes no record.
    ///
    /// # Errors
    /// As [`Wal::append`].
    ///
    /// # Panics
    /// As [`Wal::append`].
    pub fn make_room<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<(), WalError> {
        self.find_room(batches, true).map(drop)
    }

    /// Returns the runs of batches that go into one write each, once there is room for all of them, and for a mark after
    /// them if one follows: a full disk leaves nothing half done.
    fn find_room<B: Borrow<Batch>>(
        &mut self,
        batches: &[B],
        is_marked: bool,
    ) -> Result<Vec<Range<usize>>, WalError> {
        self.check()?;
        let max = self.options.payload_max();
        let over = batches.iter().map(|batch| batch.borrow().bytes()).find(|bytes| *bytes > max);
        if let Some(bytes) = over {
            return Err(WalError::TooLarge { bytes, max });
        }
        let writes = split(batches, max);
        let table = self.longest_table(batches, &writes)?;
        self.pool.need(least_bytes(table))?;
        let mut payloads: Vec<usize> = writes.iter().map(|write| bytes(&batches[write.clone()])).collect();
        payloads.extend(is_marked.then_some(0));
        let needed: u64 = payloads.iter().map(|payload| self.span(BLOCK as u64, *payload)).sum();
        if self.must_roll(!writes.is_empty()) || self.at + needed + RESERVED > self.active.bytes {
            let found = self.pool.ensure(|ready| self.missing(&payloads, table, ready));
            if let Err(error @ WalError::NoSpace { .. }) = found {
                // The log continues unchanged, in segments of the previous length.
                self.pool.need(least_bytes(self.table.len()))?;
                self.pool.prepare_unless_delegated()?;
                return Err(error);
            }
            found?;
        }
        Ok(writes)
    }

    /// Returns the bytes of the longest table with which a segment may begin during or after these writes.
    fn longest_table<B: Borrow<Batch>>(
        &self,
        batches: &[B],
        writes: &[Range<usize>],
    ) -> Result<usize, WalError> {
        let mut longest = self.table.len();
        if batches.iter().all(|batch| batch.borrow().promises().is_empty()) {
            return Ok(longest);
        }
        let (mut promises, mut table) = (self.promises.clone(), Vec::new());
        for write in writes {
            for promise in batches[write.clone()].iter().flat_map(|batch| batch.borrow().promises()) {
                // Must come before any write: a log with a promise that falls cannot be opened.
                assert!(promises.raise(promise), "a promise never falls: {promise:?}");
            }
            table.clear();
            promises.encode(&mut table);
            longest = longest.max(table.len());
        }
        let (count, max) = (promises.len(), Promises::COUNT_MAX);
        if count > max { Err(WalError::TooManyPromises { count, max }) } else { Ok(longest) }
    }

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
                self.published.set(Extent { oldest: self.oldest, last: self.last });
                Ok(())
            }
            Err(source) => {
                let path = log_path(&self.options.dir, self.active.id);
                Err(self.fail(WalError::Io { action: "sync", path, source }))
            }
        }
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
        self.check()?;
        let is_unneeded = |shards: &ShardSpans| shards.tops().all(|(shard, index)| index <= top(shard));
        let count = self.published.count_first(self.sealed.len(), is_unneeded);
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

    /// Returns the bytes on disk of a batch with a payload of `len` bytes at `at`: the first one of a segment begins
    /// with the table.
    fn span(&self, at: u64, len: usize) -> u64 {
        let table = if at == BLOCK as u64 && self.active.version == FORMAT { self.table.len() } else { 0 };
        span(table + len) as u64
    }

    /// Whether the active segment takes no records any more, however much space it has.
    fn must_roll(&self, has_records: bool) -> bool {
        has_records && self.active.version < FORMAT
    }

    /// Returns the bytes that one more segment must have so that writes of these payloads find their places, if the
    /// ready ones are not enough. A ready segment that is too short for a write is passed over.
    fn missing(&self, payloads: &[usize], table: usize, ready: &[u64]) -> Option<u64> {
        let mut ready = ready.iter();
        let (mut at, mut end) = (self.at, self.active.bytes);
        let has_records = payloads.iter().any(|payload| *payload > 0);
        if self.must_roll(has_records) {
            end = 0;
        }
        for payload in payloads {
            let first = span(table + payload) as u64;
            let mut span = if at == BLOCK as u64 { first } else { span(*payload) as u64 };
            while at + span + RESERVED > end {
                match ready.next() {
                    Some(next) => (at, end, span) = (BLOCK as u64, *next, first),
                    None => return Some(BLOCK as u64 + first + RESERVED),
                }
            }
            at += span;
        }
        None
    }

    fn write<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<(), WalError> {
        self.write_within(batches, 0)
    }

    /// Writes one batch, into the last `reserve` bytes of the segment too.
    fn write_within<B: Borrow<Batch>>(&mut self, batches: &[B], reserve: u64) -> Result<(), WalError> {
        let payload = bytes(batches);
        // The batch names its segment, so that is chosen before the buffer is sealed.
        while self.must_roll(payload > 0)
            || self.at + self.span(self.at, payload) + RESERVED > self.active.bytes + reserve
        {
            self.roll(BLOCK as u64 + span(self.table.len() + payload) as u64 + RESERVED)?;
            if self.at + self.span(self.at, payload) + RESERVED > self.active.bytes {
                // The segment is passed over, but must not be empty.
                assert!(payload > 0, "a segment of {} bytes is too short for the table", self.active.bytes);
                self.write::<Batch>(&[])?;
            }
        }
        let has_table = self.at == BLOCK as u64 && self.active.version == FORMAT;
        self.buf.make_room(self.span(self.at, payload) as usize);
        self.buf.pad(HEADER);
        if has_table {
            self.buf.extend(&self.table);
        }
        let mut records = 0;
        for batch in batches {
            self.buf.extend(batch.borrow().encoded());
            records += batch.borrow().records();
        }
        let header = FrameHeader {
            records: records + u32::from(has_table),
            segment: self.active.id,
            number: self.last.batch + 1,
            synced: self.synced,
            oldest: self.oldest,
            previous: self.last_checksum,
        };
        let checksum = frame::seal(&mut self.buf, &header, self.active.version, self.options.log_id);
        if let Err(source) = self.active.file.write_at(self.buf.bytes(), self.at) {
            // Also a full disk, which fails here only on a file system that copies on write; part may have been
            // written.
            let path = log_path(&self.options.dir, self.active.id);
            return Err(self.fail(WalError::Io { action: "write", path, source }));
        }
        self.last = Position { batch: header.number, segment: header.segment, offset: self.at };
        self.published.note(batches.iter().map(|batch| batch.borrow().tops()), self.last);
        let promises = batches.iter().flat_map(|batch| batch.borrow().promises());
        let mut is_changed = false;
        for promise in promises {
            assert!(self.promises.raise(promise), "checked before it was written: {promise:?}");
            is_changed = true;
        }
        if is_changed {
            self.table.clear();
            self.promises.encode(&mut self.table);
        }
        self.last_checksum = checksum;
        self.marked = header.synced;
        if records > 0 {
            self.last_records = header.number;
        }
        self.at += self.buf.len() as u64;
        Ok(())
    }

    /// Continues in the next segment. This one is made durable first: then a tail that must be cut never spans two
    /// segments, and one sync is enough for everything unsynced.
    fn roll(&mut self, bytes: u64) -> Result<(), WalError> {
        self.sync()?;
        let next = self.pool.take(bytes)?;
        let full = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed { id: full.id, bytes: full.bytes });
        self.published.roll(self.active.id);
        self.at = BLOCK as u64;
        self.pool.log_has(self.bytes());
        self.pool.prepare_unless_delegated()
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("last", &self.last).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Returns the minimum bytes of a segment that begins with a table of this length: at least half of it is for records.
fn least_bytes(table: usize) -> u64 {
    BLOCK as u64 + span(2 * table) as u64 + RESERVED
}

fn bytes<B: Borrow<Batch>>(batches: &[B]) -> usize {
    batches.iter().map(|batch| batch.borrow().bytes()).sum()
}

/// Returns the runs of batches that go into one write each. Batches without records are left out at the ends.
fn split<B: Borrow<Batch>>(batches: &[B], max: usize) -> Vec<Range<usize>> {
    let mut writes: Vec<Range<usize>> = Vec::new();
    let mut room = 0;
    for (at, batch) in batches.iter().map(Borrow::borrow).enumerate().filter(|(_, batch)| !batch.is_empty()) {
        match writes.last_mut() {
            Some(write) if batch.bytes() <= room => {
                write.end = at + 1;
                room -= batch.bytes();
            }
            _ => {
                writes.push(at..at + 1);
                room = max - batch.bytes();
            }
        }
    }
    writes
}
