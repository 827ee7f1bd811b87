//! Reads one shard's entries while the log's owner writes the log: only those that were durable when the reading began,
//! because later ones may be half written. Segments that are released meanwhile are skipped.

use super::batch::ShardTops;
use super::error::{Damage, WalError};
use super::frame::{self, Frame, Position};
use super::options::SEGMENT_MAX;
use super::record::{Item, Record, Stored, Unreadable, split};
use super::segment::{check_header, log_path};
use super::spans::{self, SegmentSpans, ShardSpans};
use super::window::Window;
use crate::disk::{Disk, Open};
use std::collections::VecDeque;
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stead_core::ids::{Index, ShardId};

/// The range of a log that is whole on disk: from the oldest needed segment to the last durable batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) oldest: u64,
    pub(super) last: Position,
}

/// The owner's report of its log: the extent, always updated before segments are released, and the places of the
/// shards' entries.
#[derive(Debug)]
pub(super) struct Published {
    extent: Mutex<Extent>,
    /// The places in the segments from the oldest to the active one, also of batches that are not durable yet.
    spans: Mutex<VecDeque<SegmentSpans>>,
}

impl Published {
    pub(super) fn new(extent: Extent, spans: VecDeque<SegmentSpans>) -> Self {
        Self { extent: Mutex::new(extent), spans: Mutex::new(spans) }
    }

    pub(super) fn set(&self, extent: Extent) {
        *self.extent.lock().unwrap_or_else(PoisonError::into_inner) = extent;
    }

    fn get(&self) -> Extent {
        *self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spans(&self) -> MutexGuard<'_, VecDeque<SegmentSpans>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that batches with these entries were written together at the end of the active segment.
    pub(super) fn note<'a>(&self, tops: impl Iterator<Item = &'a ShardTops>, at: Position) {
        let mut spans = self.spans();
        let active = spans.back_mut().expect("there is an active segment");
        active.last = at.batch;
        tops.for_each(|tops| active.shards.merge(tops, (at.batch, at.offset)));
    }

    /// Notes that the log continues in another segment.
    pub(super) fn roll(&self, id: u64) {
        self.spans().push_back(SegmentSpans { id, last: 0, shards: ShardSpans::default() });
    }

    /// Returns the number of the first `count` segments that satisfy a condition, up to the first that does not.
    pub(super) fn count_first(&self, count: usize, mut condition: impl FnMut(&ShardSpans) -> bool) -> usize {
        self.spans().iter().take(count).take_while(|spans| condition(&spans.shards)).count()
    }

    /// Notes that the oldest segments are released.
    pub(super) fn drop_first(&self, count: usize) {
        self.spans().drain(..count);
    }
}

/// Reads a log that another thread of this process owns and writes.
#[derive(Clone)]
pub struct WalReader {
    disk: Arc<dyn Disk>,
    dir: String,
    log_id: u64,
    published: Arc<Published>,
}

/// Reads the entries of one shard, in the order in which they were appended, while the log is written: see
/// [`WalReader::entries`].
pub struct ShardReader {
    log: WalReader,
    shard: ShardId,
    from: Index,
    /// The last batch that was read, and how many of the shard's entries in it were passed.
    at: Option<(Position, usize)>,
}

/// The reason for which a reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All that was durable when it began was read.
    Ended,
    /// The visitor wanted no more.
    Stopped,
    /// It read as much as it may at once, and goes on there.
    Paused,
}

impl WalReader {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: String, log_id: u64, published: Arc<Published>) -> Self {
        Self { disk, dir, log_id, published }
    }

    /// Finds a batch from which all entries of the shard at `from` or above can be read, from the places of the
    /// segments, without reading files. The batch may not be durable yet.
    #[must_use]
    pub fn find(&self, shard: ShardId, from: Index) -> Option<Position> {
        spans::find(&self.published.spans(), 0, shard, from)
    }

    /// Returns a reader of one shard's entries from an index on. It reads no segment that holds none of them, and about a
    /// megabyte of a segment before the first of them, however long the log is.
    #[must_use]
    pub fn entries(&self, shard: ShardId, from: Index) -> ShardReader {
        ShardReader { log: self.clone(), shard, from, at: None }
    }
}

impl ShardReader {
    /// Passes the durable entries that it has not passed before to `visit`, until that breaks; the entry at which it
    /// breaks counts as passed. An entry of a higher epoch at an index that was passed voids that one and those after
    /// it. A gap in the indexes means that the missing entries were trimmed.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] and the like if what is durable is damaged. [`WalError::Visit`] carries `visit`'s error; the
    /// entry at which it failed counts as shown.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), WalError> {
        self.read_within(u64::MAX, visit).map(drop)
    }

    /// Reads as [`Self::read`] does, but no more than about so many bytes of the log, of all its shards; at least one batch. The next call goes
    /// on there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_within<E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        bytes: u64,
        mut visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Reading, WalError> {
        let Self { log, shard, from, at: reached } = self;
        // Batches up to this one were counted before.
        let begun = reached.map_or(0, |(at, _)| at.batch);
        let (mut left, mut is_paused) = (bytes, false);
        let Extent { oldest, last } = log.published.get();
        let mut window = Window::default();
        let mut next = match *reached {
            Some((at, _)) if at.segment >= oldest => Some(at),
            _ => spans::find(&log.published.spans(), 0, *shard, *from),
        };
        // A batch that is not durable yet is read later.
        while let Some(begin) = next.filter(|begin| begin.batch <= last.batch) {
            let (mut batch, mut passed) = (0, 0);
            let read = log.read_segment(begin, last.batch, &mut window, &mut |at, seen| {
                if batch != at.batch {
                    (batch, passed) = (at.batch, 0);
                }
                let record = match seen {
                    Seen::Entry(record) if record.shard == *shard => record,
                    Seen::Entry(_) => return Ok(ControlFlow::Continue(())),
                    Seen::End { span } => {
                        if reached.is_none_or(|(shown, _)| shown.batch < at.batch) {
                            *reached = Some((at, passed));
                        }
                        left = left.saturating_sub(if at.batch > begun { span } else { 0 });
                        is_paused = left == 0;
                        return Ok(if is_paused {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        });
                    }
                };
                passed += 1;
                // A batch may have been shown in part.
                let is_shown = reached.is_some_and(|(shown, count)| {
                    at.batch < shown.batch || at.batch == shown.batch && passed <= count
                });
                if is_shown {
                    return Ok(ControlFlow::Continue(()));
                }
                *reached = Some((at, passed));
                if record.index < *from {
                    Ok(ControlFlow::Continue(()))
                } else {
                    visit(record).map_err(Into::into)
                }
            });
            match read {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) if is_paused => return Ok(Reading::Paused),
                Ok(ControlFlow::Break(())) => return Ok(Reading::Stopped),
                Err(error @ WalError::Visit(_)) => return Err(error),
                Err(error) if log.published.get().oldest <= begin.segment => return Err(error),
                // The log has released the segment, and its file is deleted or reused: no damage.
                Err(_) => {}
            }
            next = spans::find(&log.published.spans(), begin.segment + 1, *shard, *from);
        }
        Ok(Reading::Ended)
    }
}

/// An item that a reading comes past.
enum Seen<'a> {
    Entry(Record<'a>),
    /// The end of a batch with so many bytes.
    End {
        span: u64,
    },
}

type Visitor<'a> =
    dyn FnMut(Position, Seen<'_>) -> Result<ControlFlow<()>, Box<dyn Error + Send + Sync>> + 'a;

impl WalReader {
    /// Passes the entries of a segment from a batch on, up to its last batch or to batch `last`, whichever comes first.
    fn read_segment(
        &self,
        begin: Position,
        last: u64,
        window: &mut Window,
        visit: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, WalError> {
        let id = begin.segment;
        // Otherwise the log has released it.
        let Some(last) = spans::last_batch(&self.published.spans(), id).map(|of| of.min(last)) else {
            return Ok(ControlFlow::Continue(()));
        };
        let path = log_path(&self.dir, id);
        let corrupt =
            |offset: usize, damage| WalError::Corrupt { path: path.clone(), offset: offset as u64, damage };
        let file = self.disk.open(&path, Open::Read).map_err(WalError::io("open", &path))?;
        let bytes = file.len().map_err(WalError::io("look at", &path))?;
        // The limit comes before the allocation, because the length is only what the file system reports.
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_MAX);
        let end = len.ok_or_else(|| corrupt(0, Damage::Range))?;
        window.clear();
        let head = window.header(&*file, end).map_err(WalError::io("read", &path))?;
        let version = check_header(head, &path, id, self.log_id, bytes)?;
        let offset = usize::try_from(begin.offset).ok().filter(|offset| *offset < end);
        let mut offset = offset.ok_or_else(|| corrupt(0, Damage::Range))?;
        for number in begin.batch..=last {
            if offset == end {
                return Err(corrupt(offset, Damage::NoBatch));
            }
            let head = window.batch(&*file, offset, end, (id, version));
            let head = head.map_err(WalError::io("read", &path))?;
            let found = match frame::parse(head, end - offset, id, version, self.log_id) {
                Ok(found) => found,
                Err(damage) => {
                    let is_other = damage == Damage::NoBatch
                        && window
                            .is_of_other_version(&*file, offset, end, (id, version), self.log_id)
                            .map_err(WalError::io("read", &path))?;
                    return Err(if is_other {
                        corrupt(0, Damage::SegmentHeader)
                    } else {
                        corrupt(offset, damage)
                    });
                }
            };
            if found.header.number != number {
                let damage = Damage::Order { found: found.header.number, wanted: Some(number) };
                return Err(corrupt(offset, damage));
            }
            let at = Position { batch: number, segment: id, offset: offset as u64 };
            let unreadable = |unreadable| match unreadable {
                Unreadable::Malformed => corrupt(offset, Damage::Records),
                Unreadable::Kind(kind) => WalError::Kind { path: path.clone(), offset: offset as u64, kind },
            };
            if show(&found, at, version, visit, unreadable)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            offset += found.span;
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn show(
    found: &Frame<'_>,
    at: Position,
    version: u32,
    visit: &mut Visitor<'_>,
    unreadable: impl Fn(Unreadable) -> WalError,
) -> Result<ControlFlow<()>, WalError> {
    let mut rest = found.payload;
    while !rest.is_empty() {
        let (stored, after) = split(version, rest).map_err(&unreadable)?;
        if let Stored::Item(Item::Entry(record)) = stored
            && visit(at, Seen::Entry(record)).map_err(WalError::Visit)?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        rest = after;
    }
    visit(at, Seen::End { span: found.span as u64 }).map_err(WalError::Visit)
}
