//! The position of a shard's state, and what a checkpoint's part has besides the records.

use crate::channel::{Message, Outbox};
use crate::ids::{Colour, Epoch, Index, Seq, Served, ShardId, Time};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_128;

/// The position of a shard's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Position {
    /// The last applied entry.
    #[n(0)]
    pub index: Index,
    /// The epoch of that entry.
    #[n(1)]
    pub epoch: Epoch,
    /// The shard's time; it never falls.
    #[n(2)]
    pub time: Time,
    /// The colour of the last marker.
    #[n(3)]
    pub colour: Colour,
    /// The time that the shard has served; see [`Position::served`]. `None` before an entry has it.
    #[n(4)]
    pub served: Option<Served>,
}

impl Position {
    /// Returns the time that the shard has served. It starts from the shard's time at that entry, so that expiry times
    /// of the wall clock, which older versions stored, leave the same remaining time.
    #[must_use]
    pub fn served(&self) -> Served {
        self.served.unwrap_or(Served(self.time.0))
    }
}

/// The content of a checkpoint's part besides the records.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The position of its marker.
    #[n(1)]
    pub position: Position,
    /// The sending ends of its channels.
    #[n(2)]
    pub outboxes: BTreeMap<ShardId, Outbox>,
    /// The receiving ends: the last message received, by sender.
    #[n(3)]
    pub received: BTreeMap<ShardId, Seq>,
    /// The number of records.
    #[n(4)]
    pub records: u64,
    /// The sum of their hashes, big endian.
    #[n(5)]
    #[cbor(with = "minicbor::bytes")]
    pub records_hash: [u8; 16],
}

impl Header {
    /// Adds messages from a slice of the snapshot, in their order.
    pub fn add(&mut self, messages: &[(ShardId, Message)]) {
        for (to, message) in messages {
            self.outboxes.entry(*to).or_default().messages.push_back(message.clone());
        }
    }

    /// Returns the state hash: equal states give equal hashes.
    #[must_use]
    pub fn hash(&self) -> u128 {
        xxh3_128(&minicbor::to_vec(self).expect("writing to a Vec never fails"))
    }
}
