//! The messages between replicas of a shard, as the sections of a shards frame hold them.
//!
//! A message is its kind (1 byte) and what follows; its epoch is that of the section. Numbers are little-endian.
//!
//! | kind | what follows |
//! | --- | --- |
//! | 1 append | epoch and index of the entry before (8, 8), commit index (8), length of the epoch's record or 0 (4), number of entries (4); the record, in CBOR; each entry: epoch (8), length (4), bytes |
//! | 2 ack | index (8) |
//! | 3 diverged | the table of the sender's log, in CBOR |
//! | 4 refuse | the promised epoch (8) |
//! | 5 ask | round (8), lease (8), 0 or 1 (1); with 1: life (8) and time (8) of the receiver's clock, and index (8), for the age of its state |
//! | 6 confirm | round (8), life (8) and time (8) of the sender's clock, 0 or 1 (1): whether the sender vouches for that life |
//! | 7 chunk | epoch and index of the last entry that a snapshot covers (8, 8), bytes of the whole snapshot (8), position of the chunk (8), its bytes |
//! | 8 received | epoch and index of the same (8, 8), bytes of the snapshot that arrived in order (8) |
//! | 9, 10 | messages between two shards: see [`crate::channel`] |
//! | 11, 12 | forwarded calls: see [`crate::forward`] |
//! | 13 acked | epoch and index of an entry (8, 8) |
//!
//! Entries follow each other, so that their indexes are not sent. No length is believed before the bytes are there: the section has them
//! all, and its frame's checksum was right. What is decoded may still be hostile; the protocol's own checks are those of its receiver.

use crate::channel::{self, Deliver, Taken};
use crate::forward::{self, Answered, Call};
use crate::frame::{u32_at, u64_at};
use crate::payload::PayloadWriter;
use crate::section::{Address, Read, Section, index, write_header};
use bytes::{Buf, Bytes};
use stead_core::blob::Blob;
use stead_core::ids::{Epoch, Life, Micros, ReplicaId, Round, ShardId, Time};
use stead_core::replication::epoch::{Ask, EpochRecord, Fresh, Mark};
use stead_core::replication::replica::AppendHead;
use stead_core::replication::table::{EpochTable, LogPoint};
use stead_core::shard_replica::{Frame, LogEntry};

const APPEND: u8 = 1;
const ACK: u8 = 2;
const DIVERGED: u8 = 3;
const REFUSE: u8 = 4;
const ASK: u8 = 5;
const CONFIRM: u8 = 6;
const CHUNK: u8 = 7;
const RECEIVED: u8 = 8;
const ACKED: u8 = 13;

/// Bytes of an append before its entries.
const APPEND_HEAD: usize = 1 + 3 * 8 + 2 * 4;
/// Bytes of an entry before its own.
const ENTRY_HEAD: usize = 8 + 4;
/// Bytes of a chunk before its own.
const CHUNK_HEAD: usize = 1 + 4 * 8;

/// The replicas between which a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The shard of both.
    pub shard: ShardId,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
}

/// A piece of a snapshot that is on its way to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The epoch that the sender leads.
    pub epoch: Epoch,
    /// The last entry that the snapshot covers.
    pub base: LogPoint,
    /// The bytes of the whole snapshot.
    pub total: u64,
    /// The position of the piece.
    pub offset: u64,
    /// The piece, which lies within the snapshot.
    pub bytes: Bytes,
}

/// The receiver's report on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The epoch that the sender of the snapshot leads.
    pub epoch: Epoch,
    /// The last entry that the snapshot covers.
    pub base: LogPoint,
    /// The bytes that arrived in order: the next chunk begins there.
    pub bytes: u64,
}

/// A message to a replica or a shard.
#[derive(Clone, Debug)]
pub enum Message {
    /// A frame of the other replica, for [`ShardReplica`](stead_core::shard_replica::ShardReplica).
    Frame(Frame),
    /// A piece of a snapshot.
    Chunk(Chunk),
    /// The report on a snapshot.
    Received(Received),
    /// Messages of another shard.
    Deliver(Deliver),
    /// The report of another shard on messages of this one.
    Taken(Taken),
    /// A call that the other node forwards.
    Call(Call),
    /// The end of a call that this node forwarded.
    Answered(Answered),
}

/// Reasons for which a message cannot be read. Its frame's checksum was right, so its sender wrote it so: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The kind is unknown.
    #[error(
        "a message to shard {shard} is of the unknown kind {kind}; run the same version of Stead at both ends"
    )]
    Kind {
        /// The shard.
        shard: ShardId,
        /// The kind.
        kind: u8,
    },
    /// It does not fill its section, or has a number that no message has.
    #[error(
        "a message of kind {kind} to shard {shard} is invalid: {reason}; report this as a bug of its sender"
    )]
    Invalid {
        /// The shard.
        shard: ShardId,
        /// The kind.
        kind: u8,
        /// The reason.
        reason: String,
    },
}

impl Route {
    const fn at(self, epoch: Epoch) -> Address {
        let Self { shard, from, to } = self;
        Address { shard, epoch, from, to }
    }
}

/// Returns the bytes that [`write_frame`] adds to a payload for these entries, without those of the entries themselves, and without a record:
/// to fill frames up to a limit.
#[must_use]
pub const fn append_overhead(entries: usize) -> usize {
    crate::section::SECTION_HEADER_LEN + APPEND_HEAD + entries * ENTRY_HEAD
}

/// Appends a frame to a payload, as a section of its own. The bytes of long entries are shared, not copied.
///
/// # Panics
/// If the entries of an append do not follow each other, or have 4 GiB or more.
pub fn write_frame(payload: &mut PayloadWriter, route: Route, frame: &Frame) {
    let section = |payload: &mut PayloadWriter, epoch: Epoch, len: usize| {
        write_header(payload, route.at(epoch), len);
    };
    match frame {
        Frame::Append { head, record, entries } => {
            let record = record.as_ref().map(encode).unwrap_or_default();
            let bytes: usize = entries.iter().map(|entry| ENTRY_HEAD + entry.bytes.len()).sum();
            section(payload, head.epoch, APPEND_HEAD + record.len() + bytes);
            write_append(payload, head, &record, entries);
        }
        Frame::Ack { epoch, upto } => write_plain(payload, route.at(*epoch), ACK, &[upto.0]),
        Frame::Diverged { epoch, table } => {
            let table = encode(table);
            section(payload, *epoch, 1 + table.len());
            payload.write(&[DIVERGED]);
            payload.write(&table);
        }
        Frame::Acked { epoch, upto } => {
            write_plain(payload, route.at(*epoch), ACKED, &[upto.epoch.0, upto.index.0]);
        }
        Frame::Refuse { epoch, promised } => write_plain(payload, route.at(*epoch), REFUSE, &[promised.0]),
        Frame::Ask(Ask { epoch, round, lease, fresh }) => {
            section(payload, *epoch, if fresh.is_some() { 42 } else { 18 });
            write_numbers(payload, ASK, &[round.0, lease.0]);
            payload.write(&[u8::from(fresh.is_some())]);
            if let Some(Fresh { as_of, upto }) = fresh {
                [as_of.life.0, as_of.at.0, upto.0]
                    .iter()
                    .for_each(|number| payload.write(&number.to_le_bytes()));
            }
        }
        Frame::Confirm { epoch, round, mark, vouches } => {
            section(payload, *epoch, 26);
            write_numbers(payload, CONFIRM, &[round.0, mark.life.0, mark.at.0]);
            payload.write(&[u8::from(*vouches)]);
        }
    }
}

fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a Vec never fails")
}

fn write_append(payload: &mut PayloadWriter, head: &AppendHead, record: &[u8], entries: &[LogEntry]) {
    let count = u32::try_from(entries.len()).expect("a frame has fewer than 2^32 entries");
    let record_len = u32::try_from(record.len()).expect("a record is far below 4 GiB");
    write_numbers(payload, APPEND, &[head.before.epoch.0, head.before.index.0, head.commit.0]);
    payload.write(&record_len.to_le_bytes());
    payload.write(&count.to_le_bytes());
    payload.write(record);
    let mut before = head.before.index;
    for LogEntry { point, bytes } in entries {
        assert_eq!(point.index, before.next(), "the entries of a frame follow each other");
        before = point.index;
        let len = u32::try_from(bytes.len()).expect("an entry is far below 4 GiB");
        let mut fields = [0; ENTRY_HEAD];
        fields[..8].copy_from_slice(&point.epoch.0.to_le_bytes());
        fields[8..].copy_from_slice(&len.to_le_bytes());
        payload.write(&fields);
        payload.share_blob(bytes);
    }
}

/// Appends a piece of a snapshot to a payload, as a section of its own. Its bytes are shared.
pub fn write_chunk(payload: &mut PayloadWriter, route: Route, chunk: &Chunk) {
    let Chunk { epoch, base, total, offset, bytes } = chunk;
    write_header(payload, route.at(*epoch), CHUNK_HEAD + bytes.len());
    write_numbers(payload, CHUNK, &[base.epoch.0, base.index.0, *total, *offset]);
    payload.share(bytes);
}

/// Appends the report on a snapshot to a payload, as a section of its own.
pub fn write_received(payload: &mut PayloadWriter, route: Route, received: &Received) {
    let Received { epoch, base, bytes } = *received;
    write_plain(payload, route.at(epoch), RECEIVED, &[base.epoch.0, base.index.0, bytes]);
}

/// Appends a message that is nothing but numbers.
fn write_plain(payload: &mut PayloadWriter, address: Address, kind: u8, numbers: &[u64]) {
    write_header(payload, address, 1 + 8 * numbers.len());
    write_numbers(payload, kind, numbers);
}

fn write_numbers(payload: &mut PayloadWriter, kind: u8, numbers: &[u64]) {
    payload.write(&[kind]);
    numbers.iter().for_each(|number| payload.write(&number.to_le_bytes()));
}

/// Reads the message of a section. The bytes of entries, and of messages between shards, are copied out of the frame, once, into what log,
/// state and other replicas share: a part of it would keep the whole frame in memory.
///
/// # Errors
/// [`MessageError`].
pub fn read_message(section: &Section) -> Result<Message, MessageError> {
    let shard = section.address.shard;
    let Some((&kind, body)) = section.message.split_first() else {
        return Err(MessageError::Invalid { shard, kind: 0, reason: "it is empty".to_owned() });
    };
    let epoch = section.address.epoch;
    let read = match kind {
        _ if epoch > Epoch::MAX => Err("it is of an epoch that there is not"),
        APPEND => read_append(epoch, body).map(Message::Frame),
        ACK => numbers(body).and_then(|[upto]| Ok(Message::Frame(Frame::Ack { epoch, upto: index(upto)? }))),
        DIVERGED => {
            let table: Result<EpochTable, _> = stead_core::record::decode_value(body);
            table
                .map(|table| Message::Frame(Frame::Diverged { epoch, table }))
                .map_err(|_| "it has no table of a log")
        }
        REFUSE => numbers(body).and_then(|[promised]| {
            let promised = Some(Epoch(promised)).filter(|promised| *promised <= Epoch::MAX);
            let promised = promised.ok_or("it promises an epoch that there is not")?;
            Ok(Message::Frame(Frame::Refuse { epoch, promised }))
        }),
        ASK => read_ask(epoch, body).map(|ask| Message::Frame(Frame::Ask(ask))),
        CONFIRM => read_confirm(epoch, body).map(Message::Frame),
        CHUNK => read_chunk(epoch, &section.message).map(Message::Chunk),
        RECEIVED => numbers(body).and_then(|[of, at, bytes]| {
            Ok(Message::Received(Received { epoch, base: point(of, at)?, bytes }))
        }),
        ACKED => numbers(body)
            .and_then(|[of, at]| Ok(Message::Frame(Frame::Acked { epoch, upto: point(of, at)? }))),
        channel::DELIVER => channel::read_deliver(section, body).map(Message::Deliver),
        channel::TAKEN => channel::read_taken(section, body).map(Message::Taken),
        forward::CALL => forward::read_call(section).map(Message::Call),
        forward::ANSWERED => forward::read_answered(section).map(Message::Answered),
        kind => return Err(MessageError::Kind { shard, kind }),
    };
    read.map_err(|reason| MessageError::Invalid { shard, kind, reason: reason.to_owned() })
}

/// Reads numbers that fill all of the bytes.
fn numbers<const N: usize>(body: &[u8]) -> Read<[u64; N]> {
    if body.len() != 8 * N {
        return Err("it has another length");
    }
    Ok(std::array::from_fn(|at| u64_at(body, 8 * at)))
}

fn point(epoch: u64, at: u64) -> Read<LogPoint> {
    let epoch = Some(Epoch(epoch)).filter(|epoch| *epoch <= Epoch::MAX);
    Ok(LogPoint { epoch: epoch.ok_or("it names an epoch that there is not")?, index: index(at)? })
}

fn read_append(epoch: Epoch, body: &[u8]) -> Read<Frame> {
    let (head, mut rest) = body.split_at_checked(APPEND_HEAD - 1).ok_or("it ends within its head")?;
    let before = point(u64_at(head, 0), u64_at(head, 8))?;
    let commit = index(u64_at(head, 16))?;
    let record_len = usize::try_from(u32_at(head, 24)).map_err(|_| "it has a record that is too long")?;
    let record;
    (record, rest) = rest.split_at_checked(record_len).ok_or("it ends within its record")?;
    let record = Some(record).filter(|record| !record.is_empty()).map(read_record).transpose()?;
    if record.as_ref().is_some_and(|record| record.config.epoch() != epoch) {
        return Err("it has the record of another epoch");
    }
    let count = usize::try_from(u32_at(head, 28)).map_err(|_| "it has too many entries")?;
    // Each takes some bytes, so that the frame's length bounds what is allocated.
    if count > rest.len() / ENTRY_HEAD {
        return Err("it has fewer entries than it claims");
    }
    let mut entries = Vec::with_capacity(count);
    let mut last = before.index;
    for _ in 0..count {
        let (fields, after) = rest.split_at_checked(ENTRY_HEAD).ok_or("it ends within an entry")?;
        let len = usize::try_from(u32_at(fields, 8)).map_err(|_| "it has an entry that is too long")?;
        let (bytes, after) = after.split_at_checked(len).ok_or("it ends within an entry")?;
        let entry = point(u64_at(fields, 0), last.0 + 1)?;
        entries.push(LogEntry { point: entry, bytes: Blob::from(bytes) });
        (last, rest) = (entry.index, after);
    }
    if !rest.is_empty() {
        return Err("it has more than its entries");
    }
    Ok(Frame::Append { head: AppendHead { epoch, before, commit }, record, entries })
}

fn read_record(bytes: &[u8]) -> Read<Box<EpochRecord>> {
    stead_core::record::decode_value(bytes).map(Box::new).map_err(|_| "it has no record of an epoch")
}

fn read_ask(epoch: Epoch, body: &[u8]) -> Read<Ask> {
    let (head, rest) = body.split_at_checked(17).ok_or("it ends within its head")?;
    let fresh = match head[16] {
        0 if rest.is_empty() => None,
        1 => {
            let [life, at, upto] = numbers(rest)?;
            Some(Fresh { as_of: Mark { life: Life(life), at: Time(at) }, upto: index(upto)? })
        }
        _ => return Err("it is followed by something else"),
    };
    Ok(Ask { epoch, round: Round(u64_at(head, 0)), lease: Micros(u64_at(head, 8)), fresh })
}

fn read_confirm(epoch: Epoch, body: &[u8]) -> Read<Frame> {
    let (vouches, rest) = match body.split_last() {
        Some((&last @ (0 | 1), rest)) => (last == 1, rest),
        Some(_) => return Err("it neither vouches for its sender nor does not"),
        None => return Err("it has another length"),
    };
    let [round, life, at] = numbers(rest)?;
    let mark = Mark { life: Life(life), at: Time(at) };
    Ok(Frame::Confirm { epoch, round: Round(round), mark, vouches })
}

fn read_chunk(epoch: Epoch, message: &Bytes) -> Read<Chunk> {
    let head = message.get(1..CHUNK_HEAD).ok_or("it ends within its head")?;
    let base = point(u64_at(head, 0), u64_at(head, 8))?;
    let (total, offset) = (u64_at(head, 16), u64_at(head, 24));
    let mut bytes = message.clone();
    bytes.advance(CHUNK_HEAD);
    let end = offset.checked_add(bytes.len() as u64);
    if end.is_none_or(|end| end > total) {
        return Err("it goes beyond the end of its snapshot");
    }
    Ok(Chunk { epoch, base, total, offset, bytes })
}
