//! Calls that a node forwards to the one that leads their shard, and their answers, as the sections of a shards frame hold them.
//!
//! The section's shard is that of the call; its epoch and its replicas are zero. The kinds go on from those of [`crate::channel`].
//! Numbers are little-endian.
//!
//! | kind | what follows |
//! | --- | --- |
//! | 11 call | process of the sending node and number of the call (8, 8); the request, as [`crate::native`] has it: its time in milliseconds (4), and an [`Ask`](crate::native::Ask) in CBOR |
//! | 12 answered | process and number of the call (8, 8), what came of it (1): 0 with an [`Answer`](crate::native::Answer) in CBOR, 1 not led, 2 in doubt |
//!
//! A call leaves under a new number each time, so that an answer is of one that is still awaited, or is dropped.

use crate::frame::{u32_at, u64_at};
use crate::payload::PayloadWriter;
use crate::section::{Address, Section, write_header};
use bytes::{Buf, Bytes};
use std::time::Duration;
use stead_core::ids::{Epoch, ReplicaId, ShardId};

pub(crate) const CALL: u8 = 11;
pub(crate) const ANSWERED: u8 = 12;

/// Bytes of a call before its request.
const CALL_HEAD: usize = 1 + 2 * 8 + 4;
/// Bytes of an answer before its own.
const ANSWERED_HEAD: usize = 1 + 2 * 8 + 1;

/// The identity of a forwarded call, which no other call of its node ever has: an answer may come after that node began anew, also with
/// another disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The process that forwards it: the one of its [`Role::Peer`](crate::handshake::Role::Peer).
    pub process: u64,
    /// The number among those of the shard's worker in that process.
    pub number: u64,
}

/// A forwarded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The shard.
    pub shard: ShardId,
    /// Its number.
    pub id: CallId,
    /// The time for which its client still waits.
    pub within: Duration,
    /// The encoded [`Ask`](crate::native::Ask).
    pub ask: Bytes,
}

/// The outcome of a forwarded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has an answer, an encoded [`Answer`](crate::native::Answer).
    Answer(Bytes),
    /// Its shard is not led at that node. Nothing was changed.
    NotLed,
    /// It may have been applied, or may still be: the replica was deposed meanwhile, or the node ends.
    InDoubt,
}

/// The end of a forwarded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The shard.
    pub shard: ShardId,
    /// The number of the call.
    pub id: CallId,
    /// Its outcome.
    pub outcome: Outcome,
}

const fn address(shard: ShardId) -> Address {
    Address { shard, epoch: Epoch(0), from: ReplicaId(0), to: ReplicaId(0) }
}

fn write_head(payload: &mut PayloadWriter, (shard, id): (ShardId, CallId), kind: u8, len: usize) {
    write_header(payload, address(shard), len);
    payload.write(&[kind]);
    payload.write(&id.process.to_le_bytes());
    payload.write(&id.number.to_le_bytes());
}

/// Appends a call to a payload, as a section of its own. A long request is shared, not copied.
///
/// # Panics
/// If it has 4 GiB or more.
pub fn write_call(payload: &mut PayloadWriter, call: &Call) {
    write_head(payload, (call.shard, call.id), CALL, CALL_HEAD + call.ask.len());
    let millis = u32::try_from(call.within.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    payload.write(&millis.to_le_bytes());
    payload.share(&call.ask);
}

/// Appends the end of a call to a payload, as a section of its own. A long answer is shared, not copied.
///
/// # Panics
/// If it has 4 GiB or more.
pub fn write_answered(payload: &mut PayloadWriter, Answered { shard, id, outcome }: &Answered) {
    let (code, answer) = match outcome {
        Outcome::Answer(answer) => (0, Some(answer)),
        Outcome::NotLed => (1, None),
        Outcome::InDoubt => (2, None),
    };
    write_head(payload, (*shard, *id), ANSWERED, ANSWERED_HEAD + answer.map_or(0, Bytes::len));
    payload.write(&[code]);
    if let Some(answer) = answer {
        payload.share(answer);
    }
}

fn read_head(section: &Section, len: usize) -> Result<(ShardId, CallId), &'static str> {
    let shard = section.address.shard;
    if section.address != address(shard) {
        return Err("it names an epoch or replicas");
    }
    let head = section.message.get(..len).ok_or("it ends within its head")?;
    Ok((shard, CallId { process: u64_at(head, 1), number: u64_at(head, 9) }))
}

/// Reads a message of kind [`CALL`].
pub(crate) fn read_call(section: &Section) -> Result<Call, &'static str> {
    let (shard, id) = read_head(section, CALL_HEAD)?;
    let within = Duration::from_millis(u32_at(&section.message, CALL_HEAD - 4).into());
    let mut ask = section.message.clone();
    ask.advance(CALL_HEAD);
    Ok(Call { shard, id, within, ask })
}

/// Reads a message of kind [`ANSWERED`].
pub(crate) fn read_answered(section: &Section) -> Result<Answered, &'static str> {
    let (shard, id) = read_head(section, ANSWERED_HEAD)?;
    let mut answer = section.message.clone();
    let code = answer[ANSWERED_HEAD - 1];
    answer.advance(ANSWERED_HEAD);
    let outcome = match code {
        0 => Outcome::Answer(answer),
        1 if answer.is_empty() => Outcome::NotLed,
        2 if answer.is_empty() => Outcome::InDoubt,
        _ => return Err("it has no known outcome"),
    };
    Ok(Answered { shard, id, outcome })
}
