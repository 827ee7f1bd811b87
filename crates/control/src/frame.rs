//! The format of a frame in the log: header, records, zeros to the next block.
//!
//! Little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic and version: `SCF1` with records, `SCM1` for a mark |
//! | 4..8 | CRC-32 of all that follows, with the zeros to the next block |
//! | 8..12 | length of the records in bytes |
//! | 12..16 | CRC-32 of the frame before, 0 for the first |
//! | 16..24 | the frame's number in the file, from 0; of a mark, that of the frame before it |
//! | 24..32 | the file's generation, which grows with each rewrite |
//! | 32.. | records, in CBOR: see `log.rs` |
//!
//! A frame is synced before the next one is written. So a damaged frame with anything valid after it is damage, and one
//! with nothing after it was never synced. A mark says of the last frame that it was synced; it is not synced itself, and
//! the next frame overwrites it.

use crate::encoding::decode_all;
use minicbor::Decode;

/// Frames start at multiples of this, so that a torn write cannot touch the previous frame.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const HEADER: usize = 32;
/// Maximum number of bytes of the records of a frame.
pub(crate) const PAYLOAD_MAX: usize = 256 << 20;
pub(crate) const VERSION: char = '1';

const FRAME: &[u8; 4] = b"SCF1";
const MARK: &[u8; 4] = b"SCM1";
const CHECKED: usize = 8;

/// A place in the chain of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The number of the next frame.
    pub(crate) number: u64,
    /// The checksum of the frame before it.
    pub(crate) previous: u32,
    pub(crate) generation: u64,
}

/// Returns the bytes of a frame with a payload of `len` bytes.
pub(crate) const fn span(len: usize) -> usize {
    (HEADER + len).next_multiple_of(BLOCK)
}

fn seal(magic: [u8; 4], payload: &[u8], link: Link) -> (Vec<u8>, u32) {
    let mut bytes = vec![0; span(payload.len())];
    let len = u32::try_from(payload.len()).expect("checked against PAYLOAD_MAX");
    bytes[0..4].copy_from_slice(&magic);
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..16].copy_from_slice(&link.previous.to_le_bytes());
    bytes[16..24].copy_from_slice(&link.number.to_le_bytes());
    bytes[24..32].copy_from_slice(&link.generation.to_le_bytes());
    bytes[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let checksum = crc32fast::hash(&bytes[CHECKED..]);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    (bytes, checksum)
}

/// Returns a frame, and its checksum.
pub(crate) fn frame(payload: &[u8], link: Link) -> (Vec<u8>, u32) {
    seal(*FRAME, payload, link)
}

/// Returns the mark of the frame before `link`.
pub(crate) fn mark(link: Link) -> Vec<u8> {
    seal(*MARK, &[], Link { number: link.number.saturating_sub(1), ..link }).0
}

/// A frame or a mark with a correct checksum.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) is_mark: bool,
    pub(crate) link: Link,
    pub(crate) checksum: u32,
    payload: &'a [u8],
    pub(crate) span: usize,
}

impl<'a> Found<'a> {
    pub(crate) fn records<T: Decode<'a, ()>>(&self) -> Result<T, minicbor::decode::Error> {
        decode_all(self.payload)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads the frame or mark at the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Found<'_>, &'static str> {
    let Some(head) = bytes.get(..HEADER) else { return Err("the file ends within a frame") };
    let is_mark = head[..4] == *MARK;
    if !is_mark && head[..4] != *FRAME {
        return Err("there is no frame");
    }
    let len = u32_at(head, 8) as usize;
    if len > PAYLOAD_MAX {
        return Err("the length of a frame is over the limit");
    }
    let span = span(len);
    let Some(whole) = bytes.get(..span) else { return Err("the file ends within a frame") };
    let checksum = crc32fast::hash(&whole[CHECKED..]);
    if checksum != u32_at(head, 4) {
        return Err("the checksum of a frame is wrong");
    }
    let link = Link { previous: u32_at(head, 12), number: u64_at(head, 16), generation: u64_at(head, 24) };
    Ok(Found { is_mark, link, checksum, payload: &whole[HEADER..HEADER + len], span })
}

/// Returns the version of a file that another version of Stead wrote.
pub(crate) fn foreign_version(bytes: &[u8], prefix: &[u8; 3]) -> Option<char> {
    let version = char::from(*bytes.get(3)?);
    (bytes[..3] == *prefix && version != VERSION && version.is_ascii_graphic()).then_some(version)
}
