//! The options of a log, and the lengths that follow from them.

use super::error::WalError;
use super::frame::{BLOCK, HEADER};

/// Maximum number of bytes of a segment.
pub(crate) const SEGMENT_MAX: u64 = 1 << 30;
/// Minimum number of bytes of a segment.
pub(crate) const SEGMENT_MIN: u64 = 4 * BLOCK as u64;

/// The last block of a segment is kept for the batch that a trim writes: trimming must work when the disk is full.
pub(super) const RESERVED: u64 = BLOCK as u64;

/// Bytes that a segment keeps free for the table of promises beside a batch of the limit. With a longer table such a
/// batch needs a longer segment.
const TABLE_ROOM: u64 = 512;

/// The options of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// The log's directory on the disk, whose parent must exist. Default `wal`.
    pub dir: String,
    /// Maximum bytes of a new segment: 16 KiB to 1 GiB, a multiple of 4 KiB. Default 64 MiB.
    pub segment_bytes: u64,
    /// Bytes of the segments of a short log, from 16 KiB, a multiple of 4 KiB; [`Self::segment_bytes`] if that is less.
    /// They double as the log gets longer. Default 1 MiB.
    pub segment_bytes_min: u64,
    /// Maximum bytes of records in one write, and so in one [`Batch`](super::Batch); less if a segment holds less. Default 16 MiB,
    /// maximum 256 MiB.
    pub batch_bytes_max: usize,
    /// Number of segments kept ready to be written: 1 to 16. Default 1.
    pub spares: usize,
    /// Maximum number of trimmed segments kept for reuse: 1 to 1024. Default 2.
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
    pub(super) fn check(&self) -> Result<(), WalError> {
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

    pub(super) fn first_bytes(&self) -> u64 {
        self.segment_bytes_min.min(self.segment_bytes)
    }

    /// Whether an empty segment of this length may become one of this log's next.
    pub(super) fn is_reusable(&self, bytes: u64) -> bool {
        (self.first_bytes()..=self.segment_bytes).contains(&bytes) && bytes.is_multiple_of(BLOCK as u64)
    }

    /// Returns the bytes that fit into one write: a segment without its header, its table and its reserved block, or
    /// the set limit.
    pub(super) fn payload_max(&self) -> usize {
        let room = self.segment_bytes - BLOCK as u64 - RESERVED - HEADER as u64 - TABLE_ROOM;
        usize::try_from(room).map_or(self.batch_bytes_max, |room| room.min(self.batch_bytes_max))
    }
}
