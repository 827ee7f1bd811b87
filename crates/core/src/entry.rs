//! A shard's log: what each handled cause did, in one atomic entry.

use crate::blob::Blob;
use crate::ids::{
    Colour, Epoch, Index, RequestNumber, Seq, Served, SessionId, ShardId, TaskId, Time, TimerId,
};
use crate::key::Key;
use crate::record::{RecordKey, Waiting, decode_value};
pub use crate::reply::Reply;
use minicbor::{Decode, Encode};
use xxhash_rust::xxh3::xxh3_128;

/// One effect of one cause. Replicas fold entries; none of them runs user code.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Its position in the shard's log.
    #[n(0)]
    pub index: Index,
    /// The epoch whose primary made it.
    #[n(1)]
    pub epoch: Epoch,
    /// The shard's time when it was made: it follows the wall clock, and never falls.
    #[n(2)]
    pub time: Time,
    /// What was handled.
    #[n(3)]
    pub cause: Cause,
    /// The process that handled it; empty when none did.
    #[n(4)]
    pub process: Key,
    /// Records put and deleted.
    #[n(5)]
    pub writes: Vec<Write>,
    /// Messages that leave.
    #[n(6)]
    pub sends: Vec<Send>,
    /// The answer to a client.
    #[n(7)]
    pub reply: Option<Reply>,
    /// Microseconds that the shard has served since the entry before; older versions did not say.
    #[n(8)]
    pub served: Option<u64>,
}

/// What an entry handled.
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
        /// Who opens it.
        #[n(1)]
        principal: String,
        /// How long it lives unused, in microseconds of served time.
        #[n(2)]
        ttl: u64,
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
        /// The client holds the replies up to this number.
        #[n(2)]
        confirmed: RequestNumber,
        /// How long the session goes on after this use, in microseconds of served time.
        #[n(3)]
        ttl: u64,
    },
    /// A request with an idempotency key.
    #[n(3)]
    Idempotent {
        /// Who asks.
        #[n(0)]
        principal: String,
        /// The key that the client chose.
        #[n(1)]
        key: Blob,
        /// Hash of the request.
        #[n(2)]
        #[cbor(with = "minicbor::bytes")]
        body_hash: [u8; 16],
        /// When the key may be used for a new request.
        #[n(3)]
        expires: Served,
    },
    /// A request that named neither a session nor a key: applied at most once.
    #[n(4)]
    Anonymous,
    /// A message of a channel.
    #[n(5)]
    Message {
        /// The sending shard.
        #[n(0)]
        from: ShardId,
        /// Its place in the channel.
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
        step: u64,
    },
    /// The shard takes its part of a checkpoint.
    #[n(8)]
    Marker {
        /// The checkpoint's number.
        #[n(0)]
        colour: Colour,
    },
    /// Receivers acknowledged: outboxes are trimmed.
    #[n(9)]
    Ack {
        /// By receiver, the last sequence number that it holds.
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
        cause: Waiting,
    },
    /// Sessions and idempotency keys that ran out are forgotten; without writes it only notes how long the shard has served.
    #[n(12)]
    Expire,
    /// A dead letter is handled after all, and is none any more.
    #[n(13)]
    Retry {
        /// The number in its record's key.
        #[n(0)]
        letter: Index,
    },
    /// A dead letter is dropped unhandled.
    #[n(14)]
    Drop {
        /// The number in its record's key.
        #[n(0)]
        letter: Index,
    },
    /// An operator deletes a process, or some of what it holds.
    #[n(15)]
    Delete,
    /// As [`Cause::Anonymous`], after an attempt at it was logged.
    #[n(16)]
    Suspected {
        /// Hash of its content: see [`Waiting::Call`].
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        content: [u8; 16],
    },
}

impl Cause {
    /// The waiting cause that this one handles, if it is of that sort.
    #[must_use]
    pub fn waiting(&self) -> Option<Waiting> {
        match *self {
            Self::Message { from, seq } => Some(Waiting::Message { from, seq }),
            Self::Timer { id } => Some(Waiting::Timer { id }),
            Self::Task { id, step } => Some(Waiting::Task { id, step }),
            Self::Retry { letter } => Some(Waiting::DeadLetter { letter }),
            _ => None,
        }
    }

    /// A hash of what makes a retry of a request known: its place in a session, or principal, process and key, each with
    /// its length.
    ///
    /// It names attempts and nothing else: the kept reply is found by the whole key. A client that makes two requests
    /// collide, one of them another client's, and has the first end the process again and again, has the second refused as
    /// given up, which it never was: nothing is applied twice or answered wrongly by it, and such a client can refuse its
    /// service to everybody anyway. The hash is stored, so no secret of a process can be in it.
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

/// The end of a channel that its receiver holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Trim {
    /// The receiver.
    #[n(0)]
    pub to: ShardId,
    /// The last message that it holds.
    #[n(1)]
    pub upto: Seq,
}

/// A record that is put, or deleted when there is no value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Write {
    /// Which record.
    #[n(0)]
    pub key: RecordKey,
    /// Its new value.
    #[n(1)]
    pub value: Option<Blob>,
}

/// A message as its sender's entry holds it; its sequence number follows from the log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Send {
    /// The receiving shard.
    #[n(0)]
    pub to: ShardId,
    /// The receiving process.
    #[n(1)]
    pub process: Key,
    /// What it is told.
    #[n(2)]
    pub payload: Blob,
}

/// Bytes that are no entry.
#[derive(Debug, thiserror::Error)]
#[error("invalid log entry: {0}; the log was written by another version or is damaged")]
pub struct NoEntry(#[from] minicbor::decode::Error);

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        minicbor::encode(self, out).expect("writing to a Vec never fails");
    }

    /// Reads an entry that fills the bytes.
    ///
    /// # Errors
    /// [`NoEntry`] if they hold anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoEntry> {
        Ok(decode_value(bytes)?)
    }
}
