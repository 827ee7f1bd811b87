//! A segment that is read from its start to its end, a piece of it in memory at a time.

use super::FORMAT;
use super::frame::{self, BLOCK};
use crate::disk::{DiskFile, read_exact_at};
use std::io;

/// The piece that is in memory.
#[derive(Default)]
pub(crate) struct Window {
    /// Where it begins in the segment.
    from: usize,
    bytes: Vec<u8>,
}

impl Window {
    /// Bytes that are read at once, unless a batch has more: little enough to stay in the processor's cache.
    const LEN: usize = 1 << 20;

    /// Forgets what it holds: the next bytes are another segment's.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The segment's header, or what there is of it.
    pub(crate) fn header(&mut self, file: &dyn DiskFile, end: usize) -> io::Result<&[u8]> {
        self.bytes(file, 0, BLOCK.min(end), end)
    }

    /// All of the batch that may begin at `offset`, as far as it claims bytes of the segment that ends at `end`; a block,
    /// if none begins there.
    pub(crate) fn batch(
        &mut self,
        file: &dyn DiskFile,
        offset: usize,
        end: usize,
        (segment, version): (u64, u32),
    ) -> io::Result<&[u8]> {
        let rest = end - offset;
        let head = self.bytes(file, offset, BLOCK.min(rest), end)?;
        let claimed = frame::claimed(head, rest, segment, version);
        self.bytes(file, offset, claimed, end)
    }

    /// Whether a whole batch of this segment and log begins at `offset` that is of another version than the segment's header
    /// names. No checksum covers the version there, so then it is damaged.
    pub(crate) fn is_of_other_version(
        &mut self,
        file: &dyn DiskFile,
        offset: usize,
        end: usize,
        (segment, version): (u64, u32),
        log_id: u64,
    ) -> io::Result<bool> {
        for other in (1..=FORMAT).filter(|other| *other != version) {
            let batch = self.batch(file, offset, end, (segment, other))?;
            if frame::parse(batch, end - offset, segment, other, log_id).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn bytes(&mut self, file: &dyn DiskFile, offset: usize, len: usize, end: usize) -> io::Result<&[u8]> {
        let held = self.from..self.from + self.bytes.len();
        if !(held.contains(&offset) && offset + len <= held.end) {
            // A batch claims no more than its segment holds, whose length was checked before.
            self.bytes.resize(len.max(Self::LEN).min(end - offset), 0);
            self.from = offset;
            read_exact_at(file, &mut self.bytes, offset as u64)?;
        }
        Ok(&self.bytes[offset - self.from..][..len])
    }
}
