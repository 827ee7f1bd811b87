//! Messages of many shards in one payload.
//!
//! A payload of the kind [`Shards`](crate::frame::Kind::Shards) is a list of sections. Little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | shard |
//! | 4..8 | length of the message in bytes |
//! | 8..16 | epoch |
//! | 16..24 | id of the sending replica |
//! | 24..32 | id of the receiving replica |
//! | 32.. | the message |
//!
//! Together with the frame's [`Origin`](crate::frame::Origin) this is the identity that a message carries: a receiver
//! drops what is of an older epoch, of another incarnation or life, or for a replica that it no longer has.

use crate::frame::{u32_at, u64_at};
use crate::payload::PayloadWriter;
use bytes::{Buf, Bytes};
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};

/// Length of a section without its message, in bytes.
pub const SECTION_HEADER_LEN: usize = 32;

/// The sender and the receiver of a message between replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The shard of both.
    pub shard: ShardId,
    /// The epoch in which it was sent.
    pub epoch: Epoch,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
}

/// A message between two replicas of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its sender and its receiver.
    pub address: Address,
    /// The message: a part of the frame's bytes.
    pub message: Bytes,
}

/// Appends a section to a payload. A long message shares its memory.
///
/// # Panics
/// If the message has 4 GiB or more.
pub fn write_section(payload: &mut PayloadWriter, address: Address, message: &Bytes) {
    write_header(payload, address, message.len());
    payload.share(message);
}

/// Appends the header of a section whose message of `len` bytes the caller writes after it.
pub(crate) fn write_header(payload: &mut PayloadWriter, address: Address, len: usize) {
    let len = u32::try_from(len).expect("below 4 GiB: the largest entry has a limit");
    let mut header = [0; SECTION_HEADER_LEN];
    header[0..4].copy_from_slice(&address.shard.0.to_le_bytes());
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&address.epoch.0.to_le_bytes());
    header[16..24].copy_from_slice(&address.from.0.to_le_bytes());
    header[24..32].copy_from_slice(&address.to.0.to_le_bytes());
    payload.write(&header);
}

/// Returns the sections of a payload, in order. Their messages share its memory.
#[must_use]
pub fn sections(payload: Bytes) -> Sections {
    Sections { len: payload.len(), rest: payload }
}

/// The sections of a payload. After an error there are no more.
#[derive(Clone, Debug)]
pub struct Sections {
    rest: Bytes,
    len: usize,
}

impl Iterator for Sections {
    type Item = Result<Section, SectionError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.len - self.rest.len();
        let header = self.rest.first_chunk::<SECTION_HEADER_LEN>();
        let needed = header.map_or(SECTION_HEADER_LEN, |header| {
            let len = usize::try_from(u32_at(header, 4)).expect("a length of 32 bits fits");
            SECTION_HEADER_LEN.saturating_add(len)
        });
        let (Some(header), true) = (header, needed <= self.rest.len()) else {
            let left = std::mem::take(&mut self.rest).len();
            return Some(Err(SectionError { at, needed, left }));
        };
        let address = Address {
            shard: ShardId(u32_at(header, 0)),
            epoch: Epoch(u64_at(header, 8)),
            from: ReplicaId(u64_at(header, 16)),
            to: ReplicaId(u64_at(header, 24)),
        };
        let mut message = self.rest.split_to(needed);
        message.advance(SECTION_HEADER_LEN);
        Some(Ok(Section { address, message }))
    }
}

/// The content of a message, or the reason for which it is invalid.
pub(crate) type Read<T> = Result<T, &'static str>;

/// Reads an index of a log.
pub(crate) fn index(index: u64) -> Read<Index> {
    Some(Index(index)).filter(|index| *index <= Index::MAX).ok_or("it names an index that no log reaches")
}

/// A payload ends within a section. The frame's checksum was right, so its sender wrote it so: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a shards frame ends within a section: the one at byte {at} needs {needed} bytes, and {left} are left; report this \
     as a bug of its sender"
)]
pub struct SectionError {
    /// Where the section begins, in bytes of the payload.
    pub at: usize,
    /// The bytes that it needs.
    pub needed: usize,
    /// The bytes that are left.
    pub left: usize,
}
