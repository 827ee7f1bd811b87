//! Reading a log while its owner writes it: only what was durable when the reading began, for what stands after that may
//! be half written. Segments that are given up meanwhile are passed over.

use super::batch::{Record, split_record};
use super::error::{Damage, WalError};
use super::frame::{self, BLOCK, Frame};
use super::segment::{SEGMENT_MAX, check_header, log_path};
use super::window::Window;
use super::{Position, Wal};
use crate::disk::{Disk, Open};
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// What of a log is whole on disk: from the oldest segment that it needs to its last durable batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) oldest: u64,
    pub(super) last: Position,
}

/// The extent as the owner tells it, always before it gives segments up.
#[derive(Debug)]
pub(super) struct Published(Mutex<Extent>);

impl Published {
    pub(super) fn new(extent: Extent) -> Self {
        Self(Mutex::new(extent))
    }

    pub(super) fn set(&self, extent: Extent) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = extent;
    }

    fn get(&self) -> Extent {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a log that another thread of this process owns and writes.
pub struct WalReader {
    disk: Arc<dyn Disk>,
    dir: String,
    log_id: u64,
    published: Arc<Published>,
}

impl Wal {
    /// Gives a handle that reads this log from another thread.
    #[must_use]
    pub fn reader(&self) -> WalReader {
        WalReader {
            disk: Arc::clone(self.pool.disk()),
            dir: self.options.dir.clone(),
            log_id: self.options.log_id,
            published: Arc::clone(&self.published),
        }
    }
}

impl WalReader {
    /// Shows the records that are durable now, in the order in which they were appended, until `visit` breaks. Those of
    /// segments that the owner gives up meanwhile may be left out.
    ///
    /// # Errors
    /// [`WalError::Corrupt`] and the like if what is durable is damaged. [`WalError::Visit`] carries `visit`'s error.
    pub fn read<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        mut visit: impl FnMut(Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), WalError> {
        self.read_from(None, |_, record| visit(record))
    }

    /// As [`WalReader::read`], beginning with a batch that such a reading has shown: `visit` is also given the batch that
    /// holds the record. Without one, or if its segment is given up, with the oldest that there is.
    ///
    /// # Errors
    /// As [`WalReader::read`].
    pub fn read_from<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        from: Option<Position>,
        mut visit: impl FnMut(Position, Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), WalError> {
        let Extent { oldest, last } = self.published.get();
        let from = from.filter(|from| from.segment >= oldest && from.batch <= last.batch);
        let before = from.map(|from| from.batch - 1);
        let mut reading = Reading { last, from, before, window: Window::default() };
        let mut id = from.map_or(oldest, |from| from.segment);
        while id <= last.segment {
            match reading.segment(self, id, &mut |at, record| visit(at, record).map_err(Into::into)) {
                Ok(ControlFlow::Continue(())) => id += 1,
                Ok(ControlFlow::Break(())) => break,
                Err(error @ WalError::Visit(_)) => return Err(error),
                Err(error) => {
                    // Given up meanwhile, its file is gone or used again: no damage.
                    let oldest = self.published.get().oldest;
                    if oldest <= id {
                        return Err(error);
                    }
                    id = oldest;
                    (reading.before, reading.from) = (None, None);
                }
            }
        }
        Ok(())
    }
}

type Visitor<'a> =
    dyn FnMut(Position, Record<'_>) -> Result<ControlFlow<()>, Box<dyn Error + Send + Sync>> + 'a;

struct Reading {
    /// The last batch that is shown.
    last: Position,
    /// The batch that the reading begins with, in its segment.
    from: Option<Position>,
    /// The batch before the next one, unless segments were passed over.
    before: Option<u64>,
    window: Window,
}

impl Reading {
    fn segment(
        &mut self,
        log: &WalReader,
        id: u64,
        visit: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, WalError> {
        let path = log_path(&log.dir, id);
        let corrupt =
            |offset: usize, damage| WalError::Corrupt { path: path.clone(), offset: offset as u64, damage };
        let file = log.disk.open(&path, Open::Read).map_err(WalError::io("open", &path))?;
        let bytes = file.len().map_err(WalError::io("look at", &path))?;
        // The limit stands before the allocation: the length is the file system's word.
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= SEGMENT_MAX);
        let end = len.ok_or_else(|| corrupt(0, Damage::Range))?;
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        let head = window.batch(&*file, 0, end, id).map_err(WalError::io("read", &path))?;
        check_header(head, &path, id, log.log_id, bytes)?;

        let begin = self.from.take().filter(|from| from.segment == id);
        let begin = begin.map(|from| usize::try_from(from.offset).ok().filter(|offset| *offset < end));
        let mut offset = begin.map_or(Some(BLOCK), |begin| begin).ok_or_else(|| corrupt(0, Damage::Range))?;
        let is_last = id == self.last.segment;
        while offset < end {
            let head = window.batch(&*file, offset, end, id).map_err(WalError::io("read", &path))?;
            let found = match frame::parse(head, end - offset, id, log.log_id) {
                Ok(found) => found,
                // The end of a segment that is full.
                Err(Damage::NoBatch | Damage::Stale { .. }) if !is_last => break,
                Err(damage) => return Err(corrupt(offset, damage)),
            };
            let number = found.header.number;
            let wanted = self.before.map(|before| before + 1);
            if wanted.is_some_and(|wanted| wanted != number) || number > self.last.batch {
                return Err(corrupt(offset, Damage::Order { found: number, wanted }));
            }
            self.before = Some(number);
            let at = Position { batch: number, segment: id, offset: offset as u64 };
            if self.show(&found, at, visit, |damage| corrupt(offset, damage))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if number == self.last.batch {
                break;
            }
            offset += found.span;
        }
        self.window = window;
        Ok(ControlFlow::Continue(()))
    }

    fn show(
        &self,
        found: &Frame<'_>,
        at: Position,
        visit: &mut Visitor<'_>,
        corrupt: impl Fn(Damage) -> WalError,
    ) -> Result<ControlFlow<()>, WalError> {
        let mut rest = found.payload;
        while !rest.is_empty() {
            let (record, after) = split_record(rest).ok_or_else(|| corrupt(Damage::Records))?;
            if visit(at, record).map_err(WalError::Visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            rest = after;
        }
        Ok(ControlFlow::Continue(()))
    }
}
