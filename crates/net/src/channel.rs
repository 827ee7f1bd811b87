//! The messages of a channel between two shards, as the sections of a shards frame hold them.
//!
//! The section's shard is the receiving one; its epoch and its replicas are zero, because any primary of the receiving shard takes
//! them. The kinds go on from those of [`crate::replica`]. Numbers are little-endian.
//!
//! | kind | what follows |
//! | --- | --- |
//! | 9 deliver | sending shard (4), 0 or 1 (1), number of messages (4); each message: its number in the channel, epoch and index of its entry, colour (8 each), lengths of both keys (2, 2) and of the payload (4), the sending process's key, the receiving one's, the payload |
//! | 10 taken | sending shard (4), number of the last message (8), colour (8) |

use crate::frame::{u16_at, u32_at, u64_at};
use crate::payload::PayloadWriter;
use crate::section::{Address, Read, Section, index, write_header};
use stead_core::blob::Blob;
use stead_core::channel::Message;
use stead_core::ids::{Colour, Epoch, ReplicaId, Seq, ShardId};
use stead_core::key::Key;
use stead_core::shard::Messages;

pub(crate) const DELIVER: u8 = 9;
pub(crate) const TAKEN: u8 = 10;

/// Bytes of a delivery before its messages.
const DELIVER_HEAD: usize = 1 + 4 + 1 + 4;
/// Bytes of a message before its keys.
const MESSAGE_HEAD: usize = 4 * 8 + 2 * 2 + 4;
/// The greatest number of a message, or colour, that is taken from outside: a channel with a million messages a second reaches it after
/// nine years.
const NUMBER_MAX: u64 = 1 << 48;

const _: () = assert!(Key::LEN_MAX <= u16::MAX as usize);

/// Messages of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// The sending shard.
    pub from: ShardId,
    /// The receiving shard.
    pub to: ShardId,
    /// The messages, in order.
    pub messages: Messages,
    /// The sender has just started: the messages may have been running when a process crashed.
    pub again: bool,
}

/// A receiver has all messages of a channel up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The receiving shard of the channel, which sends this.
    pub from: ShardId,
    /// The sending shard of the channel.
    pub to: ShardId,
    /// The last message that it has.
    pub upto: Seq,
    /// Its colour.
    pub colour: Colour,
}

const fn address(shard: ShardId) -> Address {
    Address { shard, epoch: Epoch(0), from: ReplicaId(0), to: ReplicaId(0) }
}

/// Returns the bytes that a message takes in a delivery: to fill frames up to a limit.
#[must_use]
pub fn message_len(message: &Message) -> usize {
    MESSAGE_HEAD + message.sender.len() + message.process.len() + message.payload.len()
}

/// Appends messages of a channel to a payload, as a section of their own. Long contents are shared, not copied.
///
/// # Panics
/// If they have 4 GiB or more.
pub fn write_deliver(
    payload: &mut PayloadWriter,
    (from, to): (ShardId, ShardId),
    messages: &[Message],
    again: bool,
) {
    let len = DELIVER_HEAD + messages.iter().map(message_len).sum::<usize>();
    write_header(payload, address(to), len);
    let count = u32::try_from(messages.len()).expect("a delivery is below 4 GiB");
    payload.write(&[DELIVER]);
    payload.write(&from.0.to_le_bytes());
    payload.write(&[u8::from(again)]);
    payload.write(&count.to_le_bytes());
    for Message { seq, epoch, index, colour, sender, process, payload: content } in messages {
        for number in [seq.0, epoch.0, index.0, colour.0] {
            payload.write(&number.to_le_bytes());
        }
        for key in [sender, process] {
            let len = u16::try_from(key.len()).expect("the length of a key has a limit");
            payload.write(&len.to_le_bytes());
        }
        let len = u32::try_from(content.len()).expect("a delivery is below 4 GiB");
        payload.write(&len.to_le_bytes());
        payload.write(sender.as_bytes());
        payload.write(process.as_bytes());
        payload.share_blob(content);
    }
}

/// Appends the report on a channel to a payload, as a section of its own.
pub fn write_taken(payload: &mut PayloadWriter, taken: &Taken) {
    let Taken { from, to, upto, colour } = *taken;
    write_header(payload, address(to), 1 + 4 + 2 * 8);
    payload.write(&[TAKEN]);
    payload.write(&from.0.to_le_bytes());
    payload.write(&upto.0.to_le_bytes());
    payload.write(&colour.0.to_le_bytes());
}

/// Checks that a section has the address of a message between shards.
fn check_address(section: &Section) -> Read<ShardId> {
    let shard = section.address.shard;
    if section.address != address(shard) {
        return Err("it names an epoch or replicas");
    }
    Ok(shard)
}

fn number(number: u64) -> Read<u64> {
    Some(number).filter(|number| *number <= NUMBER_MAX).ok_or("it has a number that no channel reaches")
}

pub(crate) fn read_deliver(section: &Section, body: &[u8]) -> Read<Deliver> {
    let to = check_address(section)?;
    let (head, mut rest) = body.split_at_checked(DELIVER_HEAD - 1).ok_or("it ends within its head")?;
    let again = match head[4] {
        0 => false,
        1 => true,
        _ => return Err("it has a field that this version does not know"),
    };
    let count = usize::try_from(u32_at(head, 5)).map_err(|_| "it has too many messages")?;
    // Each takes some bytes, so that the frame's length bounds what is allocated.
    if count > rest.len() / MESSAGE_HEAD {
        return Err("it has fewer messages than it claims");
    }
    let mut messages = Messages::with_capacity(count);
    for _ in 0..count {
        let (message, after) = read_channel_message(rest)?;
        messages.push(message);
        rest = after;
    }
    if !rest.is_empty() {
        return Err("it has more than its messages");
    }
    Ok(Deliver { from: ShardId(u32_at(head, 0)), to, messages, again })
}

/// Reads a message, and returns the bytes behind it.
fn read_channel_message(bytes: &[u8]) -> Read<(Message, &[u8])> {
    let (head, rest) = bytes.split_at_checked(MESSAGE_HEAD).ok_or("it ends within a message")?;
    let epoch = Some(Epoch(u64_at(head, 8))).filter(|epoch| *epoch <= Epoch::MAX);
    let (sender, rest) = read_key(usize::from(u16_at(head, 32)), rest)?;
    let (process, rest) = read_key(usize::from(u16_at(head, 34)), rest)?;
    let len = usize::try_from(u32_at(head, 36)).map_err(|_| "it has a payload that is too long")?;
    let (payload, rest) = rest.split_at_checked(len).ok_or("it ends within a payload")?;
    let message = Message {
        seq: Seq(number(u64_at(head, 0))?),
        epoch: epoch.ok_or("it names an epoch that there is not")?,
        index: index(u64_at(head, 16))?,
        colour: Colour(number(u64_at(head, 24))?),
        sender,
        process,
        payload: Blob::from(payload),
    };
    Ok((message, rest))
}

fn read_key(len: usize, bytes: &[u8]) -> Read<(Key, &[u8])> {
    let (key, rest) = bytes.split_at_checked(len).ok_or("it ends within a key")?;
    let key = std::str::from_utf8(key).map_err(|_| "it has a key that is no UTF-8")?;
    Ok((Key::new(key).map_err(|_| "it has a key that is too long")?, rest))
}

pub(crate) fn read_taken(section: &Section, body: &[u8]) -> Read<Taken> {
    let to = check_address(section)?;
    if body.len() != 4 + 2 * 8 {
        return Err("it has another length");
    }
    let (upto, colour) = (number(u64_at(body, 4))?, number(u64_at(body, 12))?);
    Ok(Taken { from: ShardId(u32_at(body, 0)), to, upto: Seq(upto), colour: Colour(colour) })
}
