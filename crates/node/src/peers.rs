//! Messages to other nodes and from them: `part.rs` has the connections, `packing.rs` puts messages into frames, and `board.rs`
//! has the addresses of the nodes, and what this one knows of them. Workers leave messages on the [`PeerDesk`]; the part that has the connections
//! takes them, and a simulator does in its place. What arrives goes to the workers by [`Shared::from_peer`].

mod board;
mod packing;
mod part;
#[cfg(test)]
mod tests;

pub(crate) use board::PeerBoard;
pub use part::PeerPart;

use crate::bell::Bell;
use crate::env::Env;
use crate::shared::Shared;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::ids::{Colour, NodeId, Seq, ShardId};
use stead_core::shard::{Input, Messages};
use stead_core::shard_replica::{self, Frame};
use stead_net::replica::Route;

/// A message between two nodes. It may be lost, doubled or late.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// A frame between two replicas of a shard.
    Frame(Route, Frame),
    /// Messages of a channel, from one shard to another.
    Deliver {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The messages, in order.
        messages: Messages,
        /// As in [`Input::Deliver`].
        again: bool,
    },
    /// A receiver has all messages of a channel up to one.
    Ack {
        /// The receiving shard of the channel, which sends this.
        from: ShardId,
        /// The sending shard of the channel.
        to: ShardId,
        /// The last message that it has.
        upto: Seq,
        /// The colour of the receiving shard.
        colour: Colour,
    },
}

impl PeerMessage {
    /// Returns the message that passes an input of a channel to a shard; `None` if it is another input.
    pub(crate) fn of_channel(to: ShardId, input: Input) -> Option<Self> {
        match input {
            Input::Deliver { from, messages, again } => Some(Self::Deliver { from, to, messages, again }),
            Input::Ack { from, upto, colour } => Some(Self::Ack { from, to, upto, colour }),
            _ => None,
        }
    }
}

/// The messages that wait to leave for other nodes.
#[derive(Debug, Default)]
pub struct PeerDesk {
    waiting: Mutex<BTreeMap<NodeId, Vec<PeerMessage>>>,
    /// Rung when there are any.
    pub bell: Bell,
}

impl PeerDesk {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<NodeId, Vec<PeerMessage>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves messages for a node, in their order.
    pub fn leave(&self, node: NodeId, messages: &mut Vec<PeerMessage>) {
        if messages.is_empty() {
            return;
        }
        self.waiting().entry(node).or_default().append(messages);
        self.bell.ring();
    }

    /// Takes all messages, by node.
    pub fn take(&self) -> BTreeMap<NodeId, Vec<PeerMessage>> {
        std::mem::take(&mut *self.waiting())
    }
}

impl<E: Env> Shared<E> {
    /// Leaves a message of another node for the worker of its shard. One for a shard or a replica that is not here is dropped: its
    /// sender repeats it, once it knows where that is.
    pub fn from_peer(&self, message: PeerMessage) {
        match message {
            // Rule 1: a frame for an earlier stint of membership must not reach this one.
            PeerMessage::Frame(Route { shard, from, to }, frame)
                if self.replicated.get(&shard) == Some(&to) =>
            {
                self.push_replica(shard, shard_replica::Input::Frame { from, frame });
            }
            PeerMessage::Frame(..) => {}
            PeerMessage::Deliver { from, to, messages, again } => {
                self.push(to, Input::Deliver { from, messages, again });
            }
            PeerMessage::Ack { from, to, upto, colour } => self.push(to, Input::Ack { from, upto, colour }),
        }
    }
}
