//! A shard's log: the effects of each handled cause in one atomic entry.

use crate::blob::Blob;
use crate::ids::{
    BodyHash, Colour, Epoch, Index, Micros, RequestNumber, Seq, Served, SessionId, ShardId, StepNumber,
    TaskId, Time, TimerId,
};
use crate::key::Key;
use crate::record::{Kind, Pending, RecordKey, decode_value};
use crate::reply::Reply;
use minicbor::{Decode, Encode};
use xxhash_rust::xxh3::xxh3_128;

/// All effects of one cause. Replicas fold entries; none of them runs user code.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Its position in the shard's log.
    #[n(0)]
    pub index: Index,
    /// The epoch of the primary that appended it.
    #[n(1)]
    pub epoch: Epoch,
    /// The shard's time when it was appended: it follows the wall clock, and never falls.
    #[n(2)]
    pub time: Time,
    /// The handled cause.
    #[n(3)]
    pub cause: Cause,
    /// The process that handled it; empty if no process did.
    #[n(4)]
    pub process: Key,
    /// Records that are put or deleted.
    #[n(5)]
    pub writes: Vec<Write>,
    /// Messages that are sent.
    #[n(6)]
    pub sends: Vec<Send>,
    /// The answer to a client.
    #[n(7)]
    pub reply: Option<Reply>,
    /// Time that the shard has served since the previous entry; missing in entries of older versions.
    #[n(8)]
    pub served: Option<Micros>,
}

/// The cause of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Cause {
    /// A primary begins its epoch.
    #[n(0)]
    Start,
    /// A client opens a session.
    #[n(1)]
    OpenSession {
        /// Its id.
        #[n(0)]
        session: SessionId,
        /// The principal that opens it.
        #[n(1)]
        principal: String,
        /// Time after which it expires unused, in served time.
        #[n(2)]
        ttl: Micros,
    },
    /// A request in a session.
    #[n(2)]
    Request {
        /// The session.
        #[n(0)]
        session: SessionId,
        /// The request's number in it.
        #[n(1)]
        number: RequestNumber,
        /// The client has the replies up to this number.
        #[n(2)]
        confirmed: RequestNumber,
        /// Time after which the session expires without further use, in served time.
        #[n(3)]
        ttl: Micros,
    },
    /// A request with an idempotency key.
    #[n(3)]
    Idempotent {
        /// The client's principal.
        #[n(0)]
        principal: String,
        /// The key chosen by the client.
        #[n(1)]
        key: Blob,
        /// Hash of the request.
        #[n(2)]
        body_hash: BodyHash,
        /// Time from which on the key may be used for a new request.
        #[n(3)]
        expires: Served,
    },
    /// A request without a session and without a key: applied at most once.
    #[n(4)]
    Anonymous,
    /// A message of a channel.
    #[n(5)]
    Message {
        /// The sending shard.
        #[n(0)]
        from: ShardId,
        /// Its number in the channel.
        #[n(1)]
        seq: Seq,
    },
    /// A timer fired.
    #[n(6)]
    Timer {
        /// The timer.
        #[n(0)]
        id: TimerId,
    },
    /// A step of a task ended.
    #[n(7)]
    Task {
        /// The task.
        #[n(0)]
        id: TaskId,
        /// The step that ended, counted from 0.
        #[n(1)]
        step: StepNumber,
    },
    /// The shard takes its part of a checkpoint.
    #[n(8)]
    Marker {
        /// The checkpoint's number.
        #[n(0)]
        colour: Colour,
    },
    /// Receivers have acknowledged messages: outboxes are trimmed.
    #[n(9)]
    Ack {
        /// The last acknowledged sequence number, by receiver.
        #[n(0)]
        trims: Vec<Trim>,
    },
    /// Waiting causes are about to be tried again.
    #[n(10)]
    Attempt,
    /// A waiting cause is given up and becomes a dead letter.
    #[n(11)]
    DeadLetter {
        /// The cause.
        #[n(0)]
        cause: Pending,
    },
    /// Expired sessions and idempotency keys are deleted; without writes it only records the time that the shard has
    /// served.
    #[n(12)]
    Expire,
    /// A dead letter is retried, and removed.
    #[n(13)]
    Retry {
        /// The number in its record's key.
        #[n(0)]
        letter: Index,
    },
    /// A dead letter is deleted unhandled.
    #[n(14)]
    Drop {
        /// The number in its record's key.
        #[n(0)]
        letter: Index,
    },
    /// An operator deletes a process, or some of its records.
    #[n(15)]
    Delete,
    /// As [`Cause::Anonymous`], after an attempt at it was logged.
    #[n(16)]
    Suspected {
        /// Hash of its content: see [`Pending::Call`].
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        content: [u8; 16],
    },
}

impl Cause {
    /// Returns the waiting cause that this one handles, if it is of that kind.
    #[must_use]
    pub fn pending(&self) -> Option<Pending> {
        match *self {
            Self::Message { from, seq } => Some(Pending::Message { from, seq }),
            Self::Timer { id } => Some(Pending::Timer { id }),
            Self::Task { id, step } => Some(Pending::Task { id, step }),
            Self::Retry { letter } => Some(Pending::DeadLetter { letter }),
            _ => None,
        }
    }

    /// Returns a hash of the identity of a request: its place in a session, or principal, process and key, each with
    /// its length.
    ///
    /// It only names attempts: the kept reply is found by the whole key. A client could make two requests collide, one
    /// of them another client's, and let the first end the process repeatedly; then the second is refused as given up,
    /// which it never was. Nothing is applied twice or answered wrongly by that, and such a client can deny service to
    /// all anyway. The hash is stored, so it cannot depend on a secret of a process.
    #[must_use]
    pub fn identity(&self, process: &str) -> Option<[u8; 16]> {
        let key = match self {
            Self::Request { session, number, .. } => RecordKey::reply(*session, *number),
            Self::Idempotent { principal, key, .. } => RecordKey::idempotency(process, principal, key),
            _ => return None,
        };
        Some(xxh3_128(key.as_bytes()).to_be_bytes())
    }
}

/// The receiving end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Trim {
    /// The receiver.
    #[n(0)]
    pub to: ShardId,
    /// The last received message.
    #[n(1)]
    pub upto: Seq,
}

/// A record that is put, or deleted if it has no value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Write {
    /// The record's key.
    #[n(0)]
    pub key: RecordKey,
    /// Its new value.
    #[n(1)]
    pub value: Option<Blob>,
}

/// A message in its sender's entry; its sequence number follows from the log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Send {
    /// The receiving shard.
    #[n(0)]
    pub to: ShardId,
    /// The receiving process.
    #[n(1)]
    pub process: Key,
    /// The payload.
    #[n(2)]
    pub payload: Blob,
}

/// Bytes that are not a valid entry.
#[derive(Debug, thiserror::Error)]
#[error("invalid log entry: {0}; the log was written by another version or is damaged")]
pub struct NoEntry(#[from] minicbor::decode::Error);

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        minicbor::encode(self, out).expect("writing to a Vec never fails");
    }

    /// Whether another shard may come to depend on an entry of a shard, or a checkpoint does, or what is outside: it begins an epoch, sends
    /// a message, is how far a channel has come, marks a part, or changes a task, whose number other systems may know. Such an entry is
    /// synced before it is acknowledged, whatever the [`Durability`](crate::durability::Durability) is. Nothing else keeps channels and the
    /// numbers of tasks right where a power cut takes what was committed. Bytes that are no entry count as one.
    #[must_use]
    pub fn is_shared(shard: ShardId, bytes: &[u8]) -> bool {
        let mut d = minicbor::Decoder::new(bytes);
        let mut read = || -> Result<bool, minicbor::decode::Error> {
            d.array()?;
            // Index, epoch and time.
            (0..3).try_for_each(|_| d.skip())?;
            let is_shared = match d.decode::<Cause>()? {
                Cause::Message { from, .. } => from != shard,
                Cause::Start | Cause::Marker { .. } | Cause::DeadLetter { .. } => true,
                Cause::OpenSession { .. }
                | Cause::Request { .. }
                | Cause::Idempotent { .. }
                | Cause::Anonymous
                | Cause::Timer { .. }
                | Cause::Task { .. }
                | Cause::Ack { .. }
                | Cause::Attempt
                | Cause::Expire
                | Cause::Retry { .. }
                | Cause::Drop { .. }
                | Cause::Delete
                | Cause::Suspected { .. } => false,
            };
            // The process.
            d.skip()?;
            // All writes are read: the next field begins behind the last one.
            let mut has_task = false;
            for write in d.array_iter::<Write>()? {
                has_task |= write?.key.kind() == Kind::Task;
            }
            let mut sends = d.array_iter::<Send>()?;
            Ok(is_shared || has_task || sends.any(|send| send.map_or(true, |send| send.to != shard)))
        };
        read().unwrap_or(true)
    }

    /// Decodes an entry that fills the bytes.
    ///
    /// # Errors
    /// [`NoEntry`] if the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoEntry> {
        Ok(decode_value(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_shards_may_depend_on_is_shared_and_all_else_is_not() {
        let (here, there) = (ShardId(3), ShardId(4));
        let is_shared_with = |cause: Cause, to: Option<ShardId>, key: RecordKey| {
            let send =
                |to| Send { to, process: Key::new("a").unwrap(), payload: Blob::from(b"hello".as_slice()) };
            let write = Write { key, value: Some(Blob::from([7; 300].as_slice())) };
            let entry = Entry {
                index: Index(70_000),
                epoch: Epoch(2),
                time: Time(1 << 50),
                cause,
                process: Key::new("process").unwrap(),
                writes: vec![write.clone(), write],
                sends: to.into_iter().map(send).collect(),
                reply: None,
                served: Some(Micros(5)),
            };
            let mut bytes = Vec::new();
            entry.encode_into(&mut bytes);
            assert!(Entry::is_shared(here, &bytes[..bytes.len() / 2]), "no entry");
            Entry::is_shared(here, &bytes)
        };
        let process = || RecordKey::process("process");
        let is_shared = |cause, to| is_shared_with(cause, to, process());
        assert!(
            is_shared_with(Cause::Anonymous, None, RecordKey::task(TaskId(1))),
            "others may know its number"
        );
        let message = |from| Cause::Message { from, seq: Seq(9) };
        for (cause, to, shared) in [
            (Cause::Anonymous, None, false),
            (Cause::Anonymous, Some(here), false),
            (Cause::Anonymous, Some(there), true),
            (Cause::Timer { id: TimerId(1) }, None, false),
            (message(here), None, false),
            (message(there), None, true),
            (Cause::Start, None, true),
            (Cause::Marker { colour: Colour::default() }, None, true),
            (Cause::DeadLetter { cause: Pending::Message { from: there, seq: Seq(9) } }, None, true),
        ] {
            assert_eq!(is_shared(cause.clone(), to), shared, "{cause:?} {to:?}");
        }
    }
}
