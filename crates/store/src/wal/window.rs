//! Reads a segment from its start to its end, with one piece of it in memory at a time.

use super::frame::{self, BLOCK, FORMAT};
use crate::disk::{DiskFile, read_exact_at};
use std::io;

/// The piece that is in memory.
#[derive(Default)]
pub(crate) struct Window {
    /// Its position in the segment.
    from: usize,
    bytes: Vec<u8>,
}

impl Window {
    /// Number of bytes that are read at once, unless a batch has more: few enough to stay in the processor's cache.
    const LEN: usize = 1 << 20;

    /// Drops the piece: the next bytes are another segment's.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Returns the segment's header, or the existing part of it.
    pub(crate) fn header(&mut self, file: &dyn DiskFile, end: usize) -> io::Result<&[u8]> {
        // Not a whole piece: what is read next may be far behind it.
        self.bytes.resize(BLOCK.min(end), 0);
        self.from = 0;
        read_exact_at(file, &mut self.bytes, 0)?;
        Ok(&self.bytes)
    }

    /// Returns all bytes of the possible batch at `offset`, as far as it claims bytes of the segment that ends at
    /// `end`; a block, if none begins there.
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

    /// Whether a whole batch of this segment and log begins at `offset`, but of another version than the segment's
    /// header names. No checksum covers the version in the header, so then the header is damaged.
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
