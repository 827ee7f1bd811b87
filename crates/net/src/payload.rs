//! The content of frames, which several connections share.

use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use stead_core::blob::Blob;

/// Bytes of at most this length are copied into the buffer of their turn. Longer ones are shared: an element of a
/// vectored write costs about as much as copying a kilobyte.
pub(crate) const COPIED_MAX: usize = 1024;

/// The content of a frame, with its checksum. A clone shares the bytes, so that the same content goes to several nodes
/// without being copied or checked again.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pieces: Arc<[Bytes]>,
    len: usize,
    checksum: u32,
}

impl Payload {
    /// Returns the length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the CRC-32 of all bytes.
    pub(crate) const fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Returns the bytes, piece by piece.
    pub(crate) fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }
}

impl From<Bytes> for Payload {
    /// Shares the bytes.
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), checksum: crc32fast::hash(&bytes), pieces: Arc::new([bytes]) }
    }
}

impl From<&[u8]> for Payload {
    /// Copies the bytes.
    fn from(bytes: &[u8]) -> Self {
        Self::from(Bytes::copy_from_slice(bytes))
    }
}

/// A blob as the owner of bytes.
struct Shared(Blob);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Writes a payload from many parts.
#[derive(Debug, Default)]
pub struct PayloadWriter {
    pieces: Vec<Bytes>,
    /// Bytes copied since the last piece.
    open: BytesMut,
    len: usize,
    checksum: crc32fast::Hasher,
}

impl PayloadWriter {
    /// Returns a writer that has written nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of bytes so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to the end.
    pub fn write(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.len += bytes.len();
        self.open.extend_from_slice(bytes);
    }

    /// Adds bytes to the end: short ones are copied, of longer ones the memory is shared.
    pub fn share(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPIED_MAX {
            return self.write(bytes);
        }
        self.checksum.update(bytes);
        self.len += bytes.len();
        self.close();
        self.pieces.push(bytes.clone());
    }

    /// As [`Self::share`], of what log and state share.
    pub fn share_blob(&mut self, blob: &Blob) {
        if blob.len() <= COPIED_MAX {
            return self.write(blob);
        }
        self.share(&Bytes::from_owner(Shared(blob.clone())));
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.pieces.push(self.open.split().freeze());
        }
    }

    /// Returns all that was written.
    #[must_use]
    pub fn finish(mut self) -> Payload {
        self.close();
        Payload { pieces: self.pieces.into(), len: self.len, checksum: self.checksum.finalize() }
    }
}
