//! Appending: room is found for all writes before the first one.

use super::batch::Batch;
use super::frame::{self, BLOCK, FORMAT, FrameHeader, HEADER, Position, span};
use super::options::RESERVED;
use super::promises::Promises;
use super::record::encode_table;
use super::segment::log_path;
use super::{Sealed, Wal, WalError};
use std::borrow::Borrow;
use std::ops::Range;

impl Wal {
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
            encode_table(&mut table, &promises);
            longest = longest.max(table.len());
        }
        let (count, max) = (promises.len(), Promises::COUNT_MAX);
        if count > max { Err(WalError::TooManyPromises { count, max }) } else { Ok(longest) }
    }

    /// Returns the bytes on disk of a batch with a payload of `len` bytes at `at`: the first one of a segment begins
    /// with the table.
    pub(super) fn span(&self, at: u64, len: usize) -> u64 {
        let table = if at == BLOCK as u64 && self.active.version == FORMAT { self.table.len() } else { 0 };
        span(table + len) as u64
    }

    /// Whether the active segment takes no records any more, however much space it has.
    pub(super) fn must_roll(&self, has_records: bool) -> bool {
        has_records && self.active.version < FORMAT
    }

    /// Returns the bytes that one more segment must have so that writes of these payloads find their places, if the
    /// ready ones are not enough. A ready segment that is too short for a write is passed over.
    pub(super) fn missing(&self, payloads: &[usize], table: usize, ready: &[u64]) -> Option<u64> {
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

    pub(super) fn write<B: Borrow<Batch>>(&mut self, batches: &[B]) -> Result<(), WalError> {
        self.write_within(batches, 0)
    }

    /// Writes one batch, into the last `reserve` bytes of the segment too.
    pub(super) fn write_within<B: Borrow<Batch>>(
        &mut self,
        batches: &[B],
        reserve: u64,
    ) -> Result<(), WalError> {
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
            encode_table(&mut self.table, &self.promises);
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

/// Returns the minimum bytes of a segment that begins with a table of this length: at least half of it is for records.
pub(super) fn least_bytes(table: usize) -> u64 {
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
