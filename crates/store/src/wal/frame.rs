//! The format of a batch on disk: header, records, zeros to the next block.
//!
//! Little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic and version, `SWB2`; `SWB1` in segments of version 1 |
//! | 4..8 | CRC-32 of the log's identity and of all that follows, with the zeros to the next block |
//! | 8..12 | length of the records in bytes |
//! | 12..16 | number of records |
//! | 16..24 | segment that it was written to, so that what a recycled segment held before never counts |
//! | 24..32 | batch number, counted from 1 over the whole log |
//! | 32..40 | sync mark: the last batch that was durable when this one was written |
//! | 40..48 | the oldest segment that the log needed when this one was written |
//! | 48..52 | checksum of the batch before it, so that batches of a tail that was cut never follow |
//! | 52..64 | zeros |
//! | 64.. | records: see `record.rs` |

use super::error::Damage;
use super::numbers::{u32_at, u64_at};
use crate::aligned::Aligned;

/// The version of the log's format, in every segment's header.
pub const FORMAT: u32 = 2;

/// Batches start at multiples of this, so that a torn write cannot touch the previous batch.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const HEADER: usize = 64;
const MAGIC_LEN: usize = 4;
const CHECKED: usize = 8;

const _: () = assert!(HEADER <= BLOCK);

/// Returns the first bytes of a batch in a segment of this version.
fn magic(version: u32) -> &'static [u8; MAGIC_LEN] {
    if version == 1 { b"SWB1" } else { b"SWB2" }
}

/// Makes a batch, whole or torn, permanently invalid. Nothing else of its block may change: zeros over the old contents
/// of a recycled segment could complete a torn batch if the power fails while they are written.
pub(crate) fn unmark(block: &mut [u8; BLOCK]) {
    block[..MAGIC_LEN].fill(0);
}

/// A place in the log. Later places are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The batch's number over the whole log, from 1.
    pub batch: u64,
    /// Its segment's number, from 1.
    pub segment: u64,
    /// Its position in the segment, in bytes.
    pub offset: u64,
}

/// The facts in a batch besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) records: u32,
    pub(crate) segment: u64,
    pub(crate) number: u64,
    pub(crate) synced: u64,
    pub(crate) oldest: u64,
    pub(crate) previous: u32,
}

/// A batch with a correct checksum.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) header: FrameHeader,
    pub(crate) checksum: u32,
    pub(crate) payload: &'a [u8],
    /// Bytes on disk, a multiple of [`BLOCK`].
    pub(crate) span: usize,
}

/// Returns the bytes on disk of a batch with a payload of `len` bytes.
pub(crate) const fn span(len: usize) -> usize {
    (HEADER + len).next_multiple_of(BLOCK)
}

/// Completes a batch whose payload follows [`HEADER`] unused bytes in `buf`, and returns its checksum.
///
/// # Panics
/// If the payload is 4 GiB or longer: the log checked its limit before.
pub(crate) fn seal(buf: &mut Aligned, header: &FrameHeader, version: u32, log_id: u64) -> u32 {
    let len = buf.len() - HEADER;
    buf.pad(span(len));
    let buf = buf.bytes_mut();
    let len = u32::try_from(len).expect("the log's limit is below 4 GiB");
    buf[..HEADER].fill(0);
    buf[0..4].copy_from_slice(magic(version));
    buf[8..12].copy_from_slice(&len.to_le_bytes());
    buf[12..16].copy_from_slice(&header.records.to_le_bytes());
    buf[16..24].copy_from_slice(&header.segment.to_le_bytes());
    buf[24..32].copy_from_slice(&header.number.to_le_bytes());
    buf[32..40].copy_from_slice(&header.synced.to_le_bytes());
    buf[40..48].copy_from_slice(&header.oldest.to_le_bytes());
    buf[48..52].copy_from_slice(&header.previous.to_le_bytes());
    let checksum = checksum(&buf[CHECKED..], log_id);
    buf[4..8].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Returns the number of bytes, of the `rest` of a segment, that the batch at the start of `bytes` claims; a block if
/// there is no batch. `bytes` has at least a block of them.
pub(crate) fn claimed(bytes: &[u8], rest: usize, segment: u64, version: u32) -> usize {
    let Some(head) = bytes.get(..HEADER) else { return BLOCK.min(rest) };
    if head[..4] != *magic(version) || u64_at(head, 16) != segment {
        return BLOCK.min(rest);
    }
    let payload = usize::try_from(u32_at(head, 8)).unwrap_or(usize::MAX);
    if payload > rest.saturating_sub(HEADER) { BLOCK.min(rest) } else { span(payload).min(rest) }
}

/// Reads the batch at the start of `bytes`, which have all that it claims of the `rest` bytes of segment `segment`.
pub(crate) fn parse(
    bytes: &[u8],
    rest: usize,
    segment: u64,
    version: u32,
    log_id: u64,
) -> Result<Frame<'_>, Damage> {
    let Some(head) = bytes.get(..HEADER) else { return Err(Damage::NoBatch) };
    if head[..4] != *magic(version) {
        return Err(Damage::NoBatch);
    }
    let found = u64_at(head, 16);
    if found != segment {
        return Err(Damage::Stale { found });
    }
    let len = u32_at(head, 8);
    let payload = usize::try_from(len).ok().filter(|len| *len <= rest.saturating_sub(HEADER));
    let Some(payload) = payload else { return Err(Damage::Length { len, max: rest - HEADER }) };
    let span = span(payload);
    let Some(whole) = bytes.get(..span) else {
        return Err(Damage::Length { len, max: rest - HEADER });
    };
    let checksum = checksum(&whole[CHECKED..], log_id);
    if checksum != u32_at(head, 4) {
        return Err(Damage::Checksum);
    }
    let header = FrameHeader {
        records: u32_at(head, 12),
        segment: found,
        number: u64_at(head, 24),
        synced: u64_at(head, 32),
        oldest: u64_at(head, 40),
        previous: u32_at(head, 48),
    };
    Ok(Frame { header, checksum, payload: &whole[HEADER..HEADER + payload], span })
}

fn checksum(bytes: &[u8], log_id: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&log_id.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
