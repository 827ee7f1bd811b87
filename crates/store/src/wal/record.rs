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
//! | 4 table | all promises: ranges of shards of the same replica number and epoch, as first shard, count, replica, epoch |
//! | 5 install | shard, replica, epoch, then epoch and index of the last entry that a snapshot covers: of the shard's entries before this record none counts |
//!
//! The highest bit of the kind is set if a reader that does not know the kind must refuse the log, as in all kinds
//! above; a kind without it may be skipped.
//!
//! In version 1 all records are entries: length (4), shard (4), epoch (8), index (8), and the entry.

use super::numbers::{VARINT32_MAX, VARINT64_MAX, put_varint, take_varint, u32_at, u64_at};
use super::promises::{Promise, Promises};
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_core::replication::table::LogPoint;

/// The bit of kinds that must be known.
const REQUIRED: u8 = 0x80;
pub(crate) const ENTRY: u8 = REQUIRED | 1;
pub(crate) const PROMISE: u8 = REQUIRED | 2;
pub(crate) const CUT: u8 = REQUIRED | 3;
pub(crate) const TABLE: u8 = REQUIRED | 4;
pub(crate) const INSTALL: u8 = REQUIRED | 5;

/// Bytes of a record's kind and length.
pub(crate) const HEAD: usize = 5;
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

/// A new beginning of a shard's log, behind a snapshot that was durable before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallRecord {
    /// The shard.
    pub shard: ShardId,
    /// The replica whose log begins here.
    pub replica: ReplicaId,
    /// The epoch of the primary that sent the snapshot.
    pub epoch: Epoch,
    /// The last entry that the snapshot covers. The shard's entries before the record are void, whatever their index.
    pub base: LogPoint,
}

impl InstallRecord {
    /// Returns the index up to which a later snapshot has to replace the log before this record may leave it: as long as the log
    /// begins behind the installed snapshot, only this record names that.
    pub(crate) fn top(&self) -> Index {
        Index(self.base.index.0.saturating_add(1))
    }
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
    /// A new beginning behind a snapshot.
    Install(InstallRecord),
}

/// A record in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    Item(Item<'a>),
    /// The table of all promises, for [`decode_table`].
    Table(&'a [u8]),
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

#[inline]
fn take_shard(bytes: &mut &[u8]) -> Option<ShardId> {
    u32::try_from(take_varint(bytes)?).ok().map(ShardId)
}

/// Appends a record that consists of numbers.
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

/// Appends the table of all promises.
pub(crate) fn encode_table(out: &mut Vec<u8>, promises: &Promises) {
    let mut ranges: Vec<[u64; 4]> = Vec::new();
    for Promise { shard, replica, epoch } in promises.iter() {
        let shard = u64::from(shard.0);
        match ranges.last_mut() {
            Some([first, count, of, in_epoch])
                if *first + *count == shard && (*of, *in_epoch) == (replica.0, epoch.0) =>
            {
                *count += 1;
            }
            _ => ranges.push([shard, 1, replica.0, epoch.0]),
        }
    }
    encode_numbers(out, TABLE, ranges.as_flattened());
}

/// Takes the first record off `payload`, which is of a segment of this version. Recovery does so for each entry: inlined, the
/// record stays in registers.
#[inline(always)]
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
        INSTALL => install(body).map(|install| Stored::Item(Item::Install(install))),
        TABLE => Some(Stored::Table(body)),
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
    // Most shards and epochs have numbers of one byte.
    if let [shard @ ..0x80, epoch @ ..0x80, rest @ ..] = body {
        let (shard, epoch) = (ShardId((*shard).into()), Epoch((*epoch).into()));
        body = rest;
        return Some(Record { shard, epoch, index: Index(take_varint(&mut body)?), bytes: body });
    }
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

fn install(mut body: &[u8]) -> Option<InstallRecord> {
    let (shard, replica) = (take_shard(&mut body)?, ReplicaId(take_varint(&mut body)?));
    let (epoch, of) = (Epoch(take_varint(&mut body)?), Epoch(take_varint(&mut body)?));
    let base = LogPoint { epoch: of, index: Index(take_varint(&mut body)?) };
    body.is_empty().then_some(InstallRecord { shard, replica, epoch, base })
}

/// Decodes a table of promises; `None` if it is malformed.
pub(crate) fn decode_table(mut body: &[u8]) -> Option<Promises> {
    let mut promises = Promises::default();
    // A range may stand for more shards than fit into memory.
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
