//! The write-ahead log: one per node, shared by its shards.
//!
//! One owner appends [`Batch`]es that worker threads filled, as one checksummed write, and then syncs once for all of
//! them. Segments of a fixed length are filled with zeros beforehand and reused when trimmed, so that a sync writes data and
//! nothing else.
//!
//! Each batch tells which batch was the last durable one when it was written: the *sync mark*. It lets recovery tell an
//! unsynced tail, which is cut, from corruption, which is refused: see [`Wal::open`]. The layout on disk is described in
//! `frame.rs` and `segment.rs`.
//!
//! Knows nothing of what records mean, and never reads a clock.

mod batch;
mod error;
mod frame;
mod live;
mod recovery;
mod segment;
mod window;

pub use batch::{Batch, Record};
pub use error::{Damage, WalError};
pub use live::WalReader;
pub use segment::SegmentPreparer;

use crate::aligned::Aligned;
use crate::disk::{Disk, Open, parent};
use batch::ShardTops;
use frame::{BLOCK, FrameHeader, HEADER, span};
use live::{Extent, Published};
use segment::{Pool, SEGMENT_MAX, SEGMENT_MIN, Segment, log_path};
use std::collections::VecDeque;
use std::error::Error;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use stead_core::ids::{Index, ShardId};

/// The version of the log's format, in every segment's header.
pub const FORMAT: u32 = 1;

/// The last block of a segment is kept for the batch that a trim writes: trimming must work when the disk is full.
const RESERVED: u64 = BLOCK as u64;

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// Its directory on the disk, of which the parent exists. Default `wal`.
    pub dir: String,
    /// Most bytes of a new segment: 16 KiB to 1 GiB, a multiple of 4 KiB. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of the segments of a short log, from 16 KiB, a multiple of 4 KiB; [`Self::segment_bytes`] if that is less.
    /// They double as the log gets longer. Default 1 MiB.
    pub segment_bytes_min: u64,
    /// Most bytes of records in one write, and so in one [`Batch`]; less if a segment holds less. Default 16 MiB, most 256 MiB.
    pub batch_bytes_max: usize,
    /// Segments kept ready to be written: 1 to 16. Default 1.
    pub spares: usize,
    /// Trimmed segments kept for reuse: 1 to 1024; more are removed. Default 2.
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

    /// Whether an empty segment of this length may be one of this log's next.
    fn is_reusable(&self, bytes: u64) -> bool {
        (self.first_bytes()..=self.segment_bytes).contains(&bytes) && bytes.is_multiple_of(BLOCK as u64)
    }

    /// What fits into one write: a segment less its header and its reserved block, or the set limit.
    fn payload_max(&self) -> usize {
        let room = self.segment_bytes - BLOCK as u64 - RESERVED - HEADER as u64;
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
    /// Where in the segment it begins, in bytes.
    pub offset: u64,
}

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Segments, with the prepared ones.
    pub segments: u64,
    /// Batches, with those that hold only a sync mark.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// Bytes of the batches on disk.
    pub bytes: u64,
    /// Whole batches at the end that no sync mark covered. They are kept: nobody can tell whether they had been synced.
    pub unsynced: u64,
    /// The unsynced remains of a crash that were wiped.
    pub cut: Option<Cut>,
}

/// Where the unsynced tail of a log was cut, and what stood there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment's file.
    pub path: String,
    /// The first byte that was cut.
    pub offset: u64,
    /// What was wrong there.
    pub damage: Damage,
}

/// How a log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Segments that hold batches still needed, with the active one.
    pub segments: usize,
    /// Segments ready to be written.
    pub ready: usize,
    /// Trimmed segments kept for reuse.
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
    tops: ShardTops,
}

/// An open log; its owner is the only one to write it.
pub struct Wal {
    pool: Arc<Pool>,
    options: WalOptions,
    sealed: VecDeque<Sealed>,
    active: Segment,
    active_tops: ShardTops,
    /// Where the next batch goes in the active segment.
    at: u64,
    last: Position,
    last_checksum: u32,
    synced: u64,
    /// The sync mark in the last batch.
    marked: u64,
    /// The last batch that has records.
    last_records: u64,
    oldest: u64,
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
        visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        Self::open_checked(disk, options, visit, || Ok(()))
    }

    /// Opens a log as [`Wal::open`] does, but asks `accept` once all records were shown and nothing is changed yet: what
    /// looks like an unsynced tail may be known to have been synced.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Visit`] also carries `accept`'s error, and the disk is as it was.
    pub fn open_checked<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
        accept: impl FnOnce() -> Result<(), E>,
    ) -> Result<(Self, Opened), WalError> {
        options.check()?;
        let mut scan = recovery::scan(&*disk, &options, &mut |record| {
            visit(record).map(ControlFlow::Continue).map_err(Into::into)
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
        let mut sealed = VecDeque::new();
        let mut outdated = std::mem::take(&mut scan.outdated);
        let mut active = None;
        let mut ready = VecDeque::new();
        let open = |id: u64, bytes: u64| {
            let path = log_path(&options.dir, id);
            let file = disk.open_direct(&path, Open::Existing).map_err(WalError::io("open", &path))?;
            Ok::<_, WalError>(Segment { id, file, bytes })
        };
        for (at, found) in scan.segments.into_iter().enumerate() {
            match at.cmp(&scan.tail) {
                std::cmp::Ordering::Less if found.id < scan.oldest => outdated.push(found.id),
                std::cmp::Ordering::Less => {
                    sealed.push_back(Sealed { id: found.id, bytes: found.bytes, tops: found.tops })
                }
                std::cmp::Ordering::Equal => active = Some((open(found.id, found.bytes)?, found.tops)),
                std::cmp::Ordering::Greater => ready.push_back(open(found.id, found.bytes)?),
            }
        }
        let pool = Arc::new(Pool::new(Arc::clone(&disk), &options, ready, scan.reusable, id_next));
        let has = |active: u64| active + sealed.iter().map(|sealed: &Sealed| sealed.bytes).sum::<u64>();
        pool.log_has(has(active.as_ref().map_or(0, |(active, _)| active.bytes)));
        if !outdated.is_empty() {
            pool.release(&outdated)?;
        }
        let (active, active_tops) = match active {
            Some(active) => active,
            None => (pool.take(0)?, ShardTops::default()),
        };
        let at = if new { BLOCK as u64 } else { scan.at };
        let last = Position { batch: scan.number, segment: active.id, offset: scan.last_at };
        let oldest = if new { active.id } else { scan.oldest };
        let mut wal = Self {
            last,
            published: Arc::new(Published::new(Extent { oldest, last })),
            last_checksum: scan.checksum,
            synced: scan.number,
            marked: 0,
            last_records: scan.number,
            oldest,
            pool,
            options,
            sealed,
            active,
            active_tops,
            at,
            fatal: None,
            buf: Aligned::default(),
        };
        if new {
            // Every log has a first batch, so that a segment without any is never taken for an empty log.
            wal.write(&[])?;
            wal.sync()?;
        } else {
            wal.mark()?;
        }
        wal.pool.prepare_unless_delegated()?;
        Ok((wal, scan.opened))
    }

    /// Reads a log without changing anything, as [`Wal::open`] would: for inspection while no one owns it. When `visit`
    /// breaks, what stands after that is not looked at.
    ///
    /// # Errors
    /// As [`Wal::open`]; [`WalError::Missing`] also if [`WalOptions::create`] is set.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        disk: &dyn Disk,
        options: &WalOptions,
        mut visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Opened, WalError> {
        options.check()?;
        let scan = recovery::scan(disk, options, &mut |record| visit(record).map_err(Into::into))?;
        if scan.number == 0 {
            return Err(WalError::Missing { dir: options.dir.clone() });
        }
        Ok(scan.opened)
    }

    /// Appends the records of all batches, in order, with as few writes as the limit allows, usually one. They are durable
    /// only after [`Wal::sync`]. Returns the place of the last write.
    ///
    /// # Errors
    /// [`WalError::TooLarge`] and [`WalError::NoSpace`]: nothing was appended, and the log stays usable.
    /// [`WalError::Io`] or [`WalError::Fatal`]: the log refuses everything from now on.
    pub fn append(&mut self, batches: &[Batch]) -> Result<Position, WalError> {
        self.check()?;
        let max = self.options.payload_max();
        if let Some(batch) = batches.iter().find(|batch| batch.bytes() > max) {
            return Err(WalError::TooLarge { bytes: batch.bytes(), max });
        }
        let writes = split(batches, max);
        // All room is found before anything is written, so that a full disk leaves nothing half done.
        let spans: Vec<u64> =
            writes.iter().map(|write| span(bytes(&batches[write.clone()])) as u64).collect();
        if self.at + spans.iter().sum::<u64>() + RESERVED > self.active.bytes {
            self.pool.ensure(|ready| self.missing(&spans, ready))?;
        }
        for write in writes {
            self.write(&batches[write])?;
        }
        Ok(self.last)
    }

    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// [`WalError::Io`], then [`WalError::Fatal`] for ever: what a failed sync left on disk is unknown, so end the process.
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

    /// Syncs, and records that in the log with a small batch, unless it says so already: until the next batch is
    /// written, nothing else tells damage to the last one from a tail that never was synced. For when the log goes idle
    /// and before it is closed. Returns whether the mark stands there: on a full disk there may be no room for it.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn mark(&mut self) -> Result<bool, WalError> {
        self.sync()?;
        if self.is_marked() {
            return Ok(true);
        }
        if self.missing(&[span(0) as u64], &self.pool.ready()).is_some() {
            return Ok(false);
        }
        self.write(&[])?;
        self.sync()?;
        Ok(true)
    }

    /// Gives up the oldest segments of which each record's index is at most `top` of its shard, and returns how many.
    /// The active segment stays, and all do while the disk is too full to note it. Syncs if there is something to give up.
    ///
    /// For a shard whose records nobody needs, let `top` be `Index(u64::MAX)`.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn trim(&mut self, top: impl Fn(ShardId) -> Index) -> Result<usize, WalError> {
        self.check()?;
        let unneeded = |sealed: &&Sealed| sealed.tops.iter().all(|(shard, index)| index <= top(shard));
        let count = self.sealed.iter().take_while(unneeded).count();
        if count == 0 {
            return Ok(0);
        }
        // Without room to say so nothing can go: the reserved block was used by an earlier trim, and the disk is full.
        if self.at + span(0) as u64 > self.active.bytes {
            match self.pool.ensure(|ready| ready.is_empty().then_some(0)) {
                Err(WalError::NoSpace { .. }) => return Ok(0),
                ready => ready?,
            }
        }
        // The log says what it no longer needs before that goes: whatever else is missing later is a loss.
        self.oldest = self.sealed.get(count).map_or(self.active.id, |next| next.id);
        self.write_within(&[], RESERVED)?;
        self.sync()?;
        let ids: Vec<u64> = self.sealed.drain(..count).map(|sealed| sealed.id).collect();
        self.pool.log_has(self.bytes());
        if let Err(error) = self.pool.release(&ids) {
            return Err(self.fail(error));
        }
        Ok(count)
    }

    /// Bytes that can be appended before the log needs another segment of the disk. When this gets low and preparing fails
    /// with [`WalError::NoSpace`], stop accepting what must be logged.
    #[must_use]
    pub fn reserve_left(&self) -> u64 {
        let active = (self.active.bytes - RESERVED).saturating_sub(self.at);
        let ready = self.pool.ready();
        active + ready.iter().map(|bytes| bytes - BLOCK as u64 - RESERVED).sum::<u64>()
    }

    /// Bytes that the next segment will have, unless a batch needs more.
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

    /// Gives a handle that prepares segments on another thread. From now on the log prepares by itself only if it would
    /// stop otherwise.
    #[must_use]
    pub fn preparer(&self) -> SegmentPreparer {
        self.pool.delegate();
        SegmentPreparer { pool: Arc::clone(&self.pool) }
    }

    /// Whether the log itself says of all that was appended that it was synced, as after [`Wal::mark`].
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.marked >= self.last_records
    }

    /// Most bytes that one [`Batch`] may have.
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        self.options.payload_max()
    }

    /// The place of the last batch.
    #[must_use]
    pub fn position(&self) -> Position {
        self.last
    }

    /// How the log stands.
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

    /// Bytes of the segments that are needed.
    fn bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>() + self.active.bytes
    }

    /// The bytes that one more segment must have so that writes of these spans find their places, if the ready ones are
    /// not enough. A ready segment that is too short for a write is passed over.
    fn missing(&self, spans: &[u64], ready: &[u64]) -> Option<u64> {
        let mut ready = ready.iter();
        let (mut at, mut end) = (self.at, self.active.bytes);
        for span in spans {
            while at + span + RESERVED > end {
                match ready.next() {
                    Some(next) => (at, end) = (BLOCK as u64, *next),
                    None => return Some(BLOCK as u64 + span + RESERVED),
                }
            }
            at += span;
        }
        None
    }

    fn write(&mut self, batches: &[Batch]) -> Result<(), WalError> {
        self.write_within(batches, 0)
    }

    /// Writes one batch, into the last `reserve` bytes of the segment too.
    fn write_within(&mut self, batches: &[Batch], reserve: u64) -> Result<(), WalError> {
        let payload = bytes(batches);
        // What stands in the log must be told before the buffer is sealed, so the segment comes first.
        let span = span(payload) as u64;
        while self.at + span + RESERVED > self.active.bytes + reserve {
            self.roll(BLOCK as u64 + span + RESERVED)?;
            if self.at + span + RESERVED > self.active.bytes {
                // Passed over, but not empty: no segment is.
                self.write(&[])?;
            }
        }
        self.buf.make_room(span as usize);
        self.buf.pad(HEADER);
        let mut records = 0;
        for batch in batches {
            self.buf.extend(batch.encoded());
            records += batch.records();
        }
        let header = FrameHeader {
            records,
            segment: self.active.id,
            number: self.last.batch + 1,
            synced: self.synced,
            oldest: self.oldest,
            previous: self.last_checksum,
        };
        let checksum = frame::seal(&mut self.buf, &header, self.options.log_id);
        if let Err(source) = self.active.file.write_at(self.buf.bytes(), self.at) {
            // A full disk as well: it gets here only on a file system that copies on write, and part may have been written.
            let path = log_path(&self.options.dir, self.active.id);
            return Err(self.fail(WalError::Io { action: "write", path, source }));
        }
        for batch in batches {
            self.active_tops.merge(batch.tops());
        }
        self.last = Position { batch: header.number, segment: header.segment, offset: self.at };
        self.last_checksum = checksum;
        self.marked = header.synced;
        if records > 0 {
            self.last_records = header.number;
        }
        self.at += self.buf.len() as u64;
        Ok(())
    }

    /// Goes on in the next segment. What stands in this one is durable before: then a tail that must be cut never reaches
    /// over two segments, and one sync is enough for all that is unsynced.
    fn roll(&mut self, bytes: u64) -> Result<(), WalError> {
        self.sync()?;
        let next = self.pool.take(bytes)?;
        let full = std::mem::replace(&mut self.active, next);
        let tops = std::mem::take(&mut self.active_tops);
        self.sealed.push_back(Sealed { id: full.id, bytes: full.bytes, tops });
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

fn bytes(batches: &[Batch]) -> usize {
    batches.iter().map(Batch::bytes).sum()
}

/// The runs of batches that go into one write each. Batches without records are left out at the ends.
fn split(batches: &[Batch], max: usize) -> Vec<Range<usize>> {
    let mut writes: Vec<Range<usize>> = Vec::new();
    let mut room = 0;
    for (at, batch) in batches.iter().enumerate().filter(|(_, batch)| !batch.is_empty()) {
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
