//! Frames from bytes as they arrive.

use crate::frame::{Frame, FrameError, HEADER_LEN, Header};
use bytes::BytesMut;

/// Reads frames from bytes that arrive in pieces of any length.
///
/// Memory grows with the bytes that arrived, never with a length that a header claims: at most one frame that is not
/// whole, and what the caller gave since it last took all frames.
#[derive(Debug)]
pub struct Decoder {
    received: BytesMut,
    /// The header of the first frame, once it has arrived.
    header: Option<Header>,
    payload_bytes_max: u32,
    failed: Option<FrameError>,
}

impl Decoder {
    /// Returns a decoder of frames with payloads of at most this many bytes.
    #[must_use]
    pub fn new(payload_bytes_max: u32) -> Self {
        Self { received: BytesMut::new(), header: None, payload_bytes_max, failed: None }
    }

    /// Sets the maximum length of the payloads of frames whose header is not read yet.
    pub fn set_payload_bytes_max(&mut self, bytes: u32) {
        self.payload_bytes_max = bytes;
    }

    /// Takes bytes that have arrived.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.received.extend_from_slice(bytes);
        }
    }

    /// Returns the next frame, or `None` if more bytes are needed. Its payload shares the memory of the received bytes.
    ///
    /// # Errors
    /// If the bytes are no frame; then each later call returns the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.decode().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.received = BytesMut::new();
        })
    }

    fn decode(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.header.is_none() {
            self.header = Header::decode(&self.received, self.payload_bytes_max)?;
        }
        let Some(header) = self.header else { return Ok(None) };
        let len = usize::try_from(header.len).expect("a length of 32 bits fits");
        let Some(payload) = self.received.get(HEADER_LEN..HEADER_LEN + len) else { return Ok(None) };
        if crc32fast::hash(payload) != header.checksum {
            return Err(FrameError::Payload { kind: header.head.kind, len: header.len });
        }
        self.header = None;
        let mut frame = self.received.split_to(HEADER_LEN + len);
        let payload = frame.split_off(HEADER_LEN).freeze();
        Ok(Some(Frame { head: header.head, payload }))
    }

    /// Returns the number of received bytes of frames that were not taken.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.received.len()
    }
}
