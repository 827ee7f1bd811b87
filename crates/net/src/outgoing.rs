//! Encoded frames that wait to be written.

use crate::frame::{Head, Header};
use crate::payload::{COPIED_MAX, Payload};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of encoded frames. The headers and short payloads of a turn share one buffer; longer payloads are shared with
/// all other queues that they are in. One vectored write takes what many frames have.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Frames that come before `open`.
    closed: VecDeque<Bytes>,
    open: BytesMut,
    len: usize,
}

impl Outgoing {
    /// Returns the number of bytes that wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no bytes wait.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a frame. The caller has checked its length against the receiver's limit.
    ///
    /// # Panics
    /// If the payload has 4 GiB or more, or if a request or an answer has no number, or another frame has one.
    pub fn push(&mut self, head: Head, payload: &Payload) {
        let len = u32::try_from(payload.len()).expect("below 4 GiB: the caller checked the limit");
        self.copy(&Header { head, len, checksum: payload.checksum() }.encode());
        for piece in payload.pieces() {
            if piece.len() <= COPIED_MAX {
                self.copy(piece);
                continue;
            }
            if !self.open.is_empty() {
                self.closed.push_back(self.open.split().freeze());
            }
            self.len += piece.len();
            self.closed.push_back(piece.clone());
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.open.extend_from_slice(bytes);
    }

    /// Fills `slices` from the front of the queue, and returns how many of them it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let open = (!self.open.is_empty()).then_some(&self.open[..]);
        let waiting = self.closed.iter().map(|bytes| &bytes[..]).chain(open);
        slices.iter_mut().zip(waiting).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count()
    }

    /// Removes bytes from the front, because they were written.
    ///
    /// # Panics
    /// If fewer bytes wait.
    pub fn advance(&mut self, mut bytes: usize) {
        self.len = self.len.checked_sub(bytes).expect("no more bytes are written than wait");
        while let Some(first) = self.closed.front_mut() {
            if bytes < first.len() {
                return first.advance(bytes);
            }
            bytes -= first.len();
            self.closed.pop_front();
        }
        self.open.advance(bytes);
    }
}
