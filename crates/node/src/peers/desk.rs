//! The desk between the part that has the connections to other nodes, the workers, and the followers of the control plane.

use crate::bell::Bell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::control::facts::PeerReport;
use stead_core::ids::{Colour, NodeId, Seq, ShardId, Time};
use stead_core::shard::{Input, Messages};
use stead_core::shard_replica::Frame;
use stead_net::forward::{Answered, Call};
use stead_net::replica::{Chunk, Received, Route};

/// A message between two nodes. It may be lost, doubled or late.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// A frame between two replicas of a shard.
    Frame(Route, Frame),
    /// A piece of a snapshot for a replica.
    Chunk(Route, Chunk),
    /// The report of the receiver of a snapshot.
    Received(Route, Received),
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
    /// A call of a client, for a shard that the receiving node leads.
    Call {
        /// The node that forwards it.
        from: NodeId,
        /// The call.
        call: Call,
    },
    /// The outcome of a call that the receiving node forwarded.
    Answered(Answered),
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

/// The exchange between the part that has the connections and the other parts.
#[derive(Debug, Default)]
pub struct PeerDesk {
    held: Mutex<Held>,
    /// Rung when there is work for the part.
    pub bell: Bell,
    /// The bell of the thread that gives the part its turns while no worker does.
    pub(crate) relief: Bell,
}

#[derive(Debug, Default)]
struct Held {
    /// The messages that wait to leave.
    waiting: BTreeMap<NodeId, Vec<PeerMessage>>,
    orders: Orders,
    seen: BTreeMap<NodeId, Seen>,
}

/// The requests to the part.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// The addresses of the other nodes, if they have changed.
    pub(super) addresses: Option<BTreeMap<NodeId, SocketAddr>>,
    /// The nodes to which it has to connect at once.
    pub(super) asks: BTreeSet<NodeId>,
}

/// A peer as the part has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// When it was heard last, or learnt of.
    pub(super) heard: Time,
    /// Whether there is no connection to it.
    pub(super) is_closed: bool,
}

impl PeerDesk {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves messages for a node, in their order.
    pub fn leave(&self, node: NodeId, messages: &mut Vec<PeerMessage>) {
        if messages.is_empty() {
            return;
        }
        self.held().waiting.entry(node).or_default().append(messages);
        self.bell.ring();
    }

    /// Takes all messages, by node.
    pub fn take(&self) -> BTreeMap<NodeId, Vec<PeerMessage>> {
        std::mem::take(&mut self.held().waiting)
    }

    /// Replaces the addresses of the other nodes: this node connects to each. Connections to nodes that have none stay while their
    /// other end keeps them.
    pub fn set_addresses(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.held().orders.addresses = Some(addresses);
        self.bell.ring();
    }

    /// Connects to a node at once, if there is no connection to it, instead of after the pause that follows a failed attempt.
    pub fn ask(&self, node: NodeId) {
        self.held().orders.asks.insert(node);
        self.bell.ring();
    }

    /// Returns this node's view of the others.
    pub fn reports(&self, now: Time) -> Vec<PeerReport> {
        let held = self.held();
        let reports = held.seen.iter().map(|(node, seen)| PeerReport {
            node: *node,
            silent: now.since(seen.heard),
            is_closed: seen.is_closed,
        });
        reports.collect()
    }

    pub(super) fn take_orders(&self) -> Orders {
        std::mem::take(&mut self.held().orders)
    }

    pub(super) fn note(&self, seen: impl Iterator<Item = (NodeId, Seen)>) {
        let mut held = self.held();
        held.seen.clear();
        held.seen.extend(seen);
    }
}
