//! Records within a batch.
//!
//! In version 2 a record is: kind (1 byte), length of what follows (4, little-endian), and what follows. Numbers there are
//! varints: 7 bits a byte, the lowest first, the highest bit set in all but the last.
//!
//! | kind | what follows |
//! | --- | --- |
//! | 1 entry | shard, epoch, index, then the entry |
//! | 2 promise | shard, replica, epoch: the replica takes part in no lower epoch |
//! | 3 cut | shard, epoch, index: of the shard's entries before this record none above the index counts |
//! | 4 table | all promises: runs of shards of the same replica number and epoch, as first shard, count, replica, epoch |
//!
//! The highest bit of the kind is set if a reader that does not know the kind must refuse the log, as in all kinds
//! above; a kind without it may be skipped.
//!
//! In version 1 all records are entries: length (4), shard (4), epoch (8), index (8), and the entry.

use super::batch::{u32_at, u64_at};
use super::promises::Promises;
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};

/// The bit of kinds that must be known.
const REQUIRED: u8 = 0x80;
pub(crate) const ENTRY: u8 = REQUIRED | 1;
pub(crate) const PROMISE: u8 = REQUIRED | 2;
pub(crate) const CUT: u8 = REQUIRED | 3;
pub(crate) const TABLE: u8 = REQUIRED | 4;

/// Bytes of a record's kind and length.
pub(crate) const HEAD: usize = 5;
/// Maximum number of bytes of a varint of 32 bits, and of 64.
const VARINT32_MAX: usize = 5;
const VARINT64_MAX: usize = 10;
/// Maximum number of bytes of an entry's record before the entry.
pub(crate) const ENTRY_HEAD_MAX: usize = HEAD + VARINT32_MAX + 2 * VARINT64_MAX;
/// Bytes before an entry in version 1: length, shard, epoch, index.
const ENTRY_HEAD_V1: usize = 24;

/// An entry's record, as read from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The shard whose log it belongs to.
    pub shard: ShardId,
    /// The epoch it was made in.
    pub epoch: Epoch,
    /// Its position in its shard's log.
    pub index: Index,
    /// The bytes that were appended.
    pub bytes: &'a [u8],
}

/// A replica's durable promise to take part in no lower epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The shard.
    pub shard: ShardId,
    /// The replica that promises.
    pub replica: ReplicaId,
    /// The lowest epoch in which it still takes part.
    pub epoch: Epoch,
}

/// A cut of the end of a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRecord {
    /// The shard.
    pub shard: ShardId,
    /// The epoch of the cut, above those of all entries that it voids.
    pub epoch: Epoch,
    /// The shard's entries before the cut and above this index are void.
    pub index: Index,
}

/// A record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// An entry.
    Entry(Record<'a>),
    /// A promise.
    Promise(Promise),
    /// A cut.
    Cut(CutRecord),
}

/// A record in a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    Item(Item<'a>),
    Table(Promises),
    /// A record of an unknown kind that may be skipped.
    Unknown,
}

/// Reasons for which a record cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It does not fill its place.
    Malformed,
    /// It is of an unknown kind that must be known.
    Kind(u8),
}

/// Writes a varint at `at`, where there must be space, and returns its end.
#[inline]
pub(crate) fn put_varint(out: &mut [u8], mut at: usize, mut value: u64) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

/// Takes a varint of at most 64 bits off `bytes`; `None` if there is none.
#[inline]
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(VARINT64_MAX) {
        let bits = u64::from(byte & 0x7f);
        if at == VARINT64_MAX - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

fn take_shard(bytes: &mut &[u8]) -> Option<ShardId> {
    u32::try_from(take_varint(bytes)?).ok().map(ShardId)
}

/// A record of numbers only.
pub(crate) fn encode_numbers(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0, 0]);
    for &number in numbers {
        let mut varint = [0; VARINT64_MAX];
        let len = put_varint(&mut varint, 0, number);
        out.extend_from_slice(&varint[..len]);
    }
    let len = u32::try_from(out.len() - start - HEAD).expect("a log's promises are far below 4 GiB");
    out[start + 1..start + HEAD].copy_from_slice(&len.to_le_bytes());
}

/// Takes the first record off `payload`, which is of a segment of this version.
pub(crate) fn split(version: u32, payload: &[u8]) -> Result<(Stored<'_>, &[u8]), Unreadable> {
    if version == 1 {
        return split_v1(payload).ok_or(Unreadable::Malformed);
    }
    let (head, rest) = payload.split_first_chunk::<HEAD>().ok_or(Unreadable::Malformed)?;
    let len = usize::try_from(u32_at(head, 1)).unwrap_or(usize::MAX);
    let (body, rest) = rest.split_at_checked(len).ok_or(Unreadable::Malformed)?;
    let stored = match head[0] {
        ENTRY => entry(body).map(|record| Stored::Item(Item::Entry(record))),
        PROMISE => promise(body).map(|promise| Stored::Item(Item::Promise(promise))),
        CUT => cut(body).map(|cut| Stored::Item(Item::Cut(cut))),
        TABLE => table(body).map(Stored::Table),
        kind if kind & REQUIRED == 0 => Some(Stored::Unknown),
        kind => return Err(Unreadable::Kind(kind & !REQUIRED)),
    };
    Ok((stored.ok_or(Unreadable::Malformed)?, rest))
}

fn split_v1(payload: &[u8]) -> Option<(Stored<'_>, &[u8])> {
    let (header, rest) = payload.split_first_chunk::<ENTRY_HEAD_V1>()?;
    let len = usize::try_from(u32_at(header, 0)).ok()?;
    let (bytes, rest) = rest.split_at_checked(len)?;
    let record = Record {
        shard: ShardId(u32_at(header, 4)),
        epoch: Epoch(u64_at(header, 8)),
        index: Index(u64_at(header, 16)),
        bytes,
    };
    Some((Stored::Item(Item::Entry(record)), rest))
}

#[inline]
fn entry(mut body: &[u8]) -> Option<Record<'_>> {
    let (shard, epoch) = (take_shard(&mut body)?, Epoch(take_varint(&mut body)?));
    Some(Record { shard, epoch, index: Index(take_varint(&mut body)?), bytes: body })
}

fn promise(mut body: &[u8]) -> Option<Promise> {
    let (shard, replica) = (take_shard(&mut body)?, ReplicaId(take_varint(&mut body)?));
    let epoch = Epoch(take_varint(&mut body)?);
    body.is_empty().then_some(Promise { shard, replica, epoch })
}

fn cut(mut body: &[u8]) -> Option<CutRecord> {
    let (shard, epoch) = (take_shard(&mut body)?, Epoch(take_varint(&mut body)?));
    let index = Index(take_varint(&mut body)?);
    body.is_empty().then_some(CutRecord { shard, epoch, index })
}

fn table(mut body: &[u8]) -> Option<Promises> {
    let mut promises = Promises::default();
    // A run may stand for more shards than fit into memory.
    let mut shards_left = Promises::COUNT_MAX as u64;
    while !body.is_empty() {
        let (first, count) = (take_shard(&mut body)?, take_varint(&mut body)?);
        let (replica, epoch) = (ReplicaId(take_varint(&mut body)?), Epoch(take_varint(&mut body)?));
        shards_left = shards_left.checked_sub(count)?;
        for shard in 0..count {
            let shard = ShardId(u32::try_from(u64::from(first.0) + shard).ok()?);
            if !promises.raise(&Promise { shard, replica, epoch }) {
                return None;
            }
        }
    }
    Some(promises)
}
