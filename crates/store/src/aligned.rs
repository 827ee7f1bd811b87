//! Memory that begins at a block boundary, as writes that bypass the system's cache need.

use crate::disk::BLOCK_BYTES;

/// Bytes to write from a block boundary on, aligned in memory as in the file.
///
/// It never moves while it has bytes, so capacity must be reserved before. Bytes that are not aligned are written
/// correctly, but more slowly.
#[derive(Default)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    /// The position in `bytes` at which they begin.
    start: usize,
}

impl Aligned {
    /// Returns an empty buffer with capacity for `len` bytes.
    pub(crate) fn with_room(len: usize) -> Self {
        let mut aligned = Self::default();
        aligned.make_room(len);
        aligned
    }

    /// Removes all bytes, and reserves capacity for `len` bytes.
    pub(crate) fn make_room(&mut self, len: usize) {
        self.bytes.clear();
        self.bytes.reserve(len + BLOCK_BYTES);
        self.start = self.bytes.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        self.bytes.resize(self.start, 0);
    }

    /// Removes all bytes, and keeps the capacity.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.bytes.capacity() - self.bytes.len(), "room was made for all");
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends zeros up to a length of `len` bytes.
    pub(crate) fn pad(&mut self, len: usize) {
        debug_assert!(self.start + len <= self.bytes.capacity(), "room was made for all");
        self.bytes.resize(self.start + len, 0);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_where_a_block_does_whatever_the_room() {
        let mut aligned = Aligned::default();
        for len in [1, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, 100, 1 << 20, BLOCK_BYTES] {
            aligned.make_room(len);
            aligned.extend(&vec![7; len / 2]);
            aligned.pad(len);
            assert!(aligned.bytes().as_ptr().addr().is_multiple_of(BLOCK_BYTES), "{len}");
            assert_eq!(aligned.bytes(), [vec![7; len / 2], vec![0; len - len / 2]].concat());
            aligned.clear();
            assert_eq!(aligned.len(), 0);
        }
    }
}
