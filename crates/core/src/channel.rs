//! The channel between two shards: the messages that its sender keeps until they are acknowledged.

use crate::blob::Blob;
use crate::ids::{Colour, Epoch, Index, Seq};
use crate::key::Key;
use minicbor::{Decode, Encode};
use std::collections::VecDeque;

/// The sending end of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Outbox {
    /// The number of the next message.
    #[n(0)]
    pub next: Seq,
    /// The messages that the receiver has not acknowledged, in order.
    #[n(1)]
    pub messages: VecDeque<Message>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { next: Seq(1), messages: VecDeque::new() }
    }
}

/// A message from one shard to another. A resend changes nothing in it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Message {
    /// Its number in the channel.
    #[n(0)]
    pub seq: Seq,
    /// The epoch of the entry that sent it.
    #[n(1)]
    pub epoch: Epoch,
    /// The index of the entry that sent it.
    #[n(2)]
    pub index: Index,
    /// The sender's colour at that entry.
    #[n(3)]
    pub colour: Colour,
    /// The process that sent it.
    #[n(4)]
    pub sender: Key,
    /// The receiving process.
    #[n(5)]
    pub process: Key,
    /// The payload.
    #[n(6)]
    pub payload: Blob,
}

impl Message {
    /// Returns the bytes for which the message counts in the accounting of memory.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.payload.len() + size_of::<Self>()
    }
}
