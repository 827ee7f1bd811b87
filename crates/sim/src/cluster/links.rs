//! The connections between nodes: messages that are lost break one, both ends hear of it at their own times, and messages flow again
//! once it is whole.

use super::node::node_id;
use super::{Cluster, ClusterBug, ClusterMark, Event, Outcome};
use crate::profile::one_in;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::control::facts::Fact;
use stead_core::ids::{Epoch, ReplicaId, ShardId, Time};
use stead_core::shard_replica::Input;
use stead_net::forward::Call;
use stead_net::native::{Ask, Identified, repeated};
use stead_node::PeerMessage;

/// The greatest time until an end of a connection hears that it is broken, in microseconds.
const NOTICE: u64 = 20_000;

/// The connections of all nodes.
#[derive(Default)]
pub(super) struct Links {
    /// Those that are broken, by their ends, the smaller one first; and whether each end knows it.
    broken: BTreeMap<(usize, usize), [bool; 2]>,
    /// By sender and receiver, the replicas that were sent something since the last connection.
    sent: BTreeMap<(usize, usize), BTreeMap<ShardId, ReplicaId>>,
    /// By the forwarding node, the request and its deadline: the epochs in which it was forwarded.
    forwarded: BTreeMap<(usize, Vec<u8>, Time), BTreeSet<Epoch>>,
}

/// Returns a link, and which of its ends the first node is.
fn link(at: usize, peer: usize) -> ((usize, usize), usize) {
    ((at.min(peer), at.max(peer)), usize::from(at > peer))
}

impl Links {
    /// Whether one end knows that there is no connection.
    fn is_closed(&self, at: usize, peer: usize) -> bool {
        let (link, end) = link(at, peer);
        self.broken.get(&link).is_some_and(|known| known[end])
    }

    pub(super) fn is_broken(&self, at: usize, peer: usize) -> bool {
        self.broken.contains_key(&link(at, peer).0)
    }

    /// Notes that a node begins a life: it has no connection, and knows that.
    pub(super) fn begin(&mut self, at: usize, size: usize) {
        for peer in (0..size).filter(|peer| *peer != at) {
            let (link, end) = link(at, peer);
            self.broken.entry(link).or_default()[end] = true;
            self.sent.remove(&(at, peer));
        }
        self.forwarded.retain(|(from, ..), _| *from != at);
    }
}

impl Cluster {
    /// A connection has lost something.
    pub(super) fn break_link(&mut self, at: usize, peer: usize) {
        let (link, _) = link(at, peer);
        if at != peer && !self.links.broken.contains_key(&link) {
            self.links.broken.insert(link, [false; 2]);
            for (at, peer) in [(at, peer), (peer, at)] {
                let delay = self.random(NOTICE);
                self.at(delay, Event::Closed(at, peer));
            }
        }
    }

    /// All connections of a node end.
    pub(super) fn break_links(&mut self, at: usize) {
        (0..self.machines.len()).for_each(|peer| self.break_link(at, peer));
    }

    /// An end of a broken connection hears of it, unless it has.
    pub(super) fn closed(&mut self, at: usize, peer: usize) {
        let (link, end) = link(at, peer);
        let Some(known) = self.links.broken.get_mut(&link).filter(|known| !known[end]) else { return };
        known[end] = true;
        if let Some(running) = &self.machines[at].life {
            running.parts.shared.peer_closed(node_id(peer));
            self.heed(at);
            if !self.is_deaf(at) {
                self.send_fact(Fact::Closed(node_id(peer)));
            }
        }
    }

    /// Connects nodes anew whose connections are broken.
    pub(super) fn connect(&mut self) {
        let is_whole = |(a, b): &&(usize, usize)| {
            let flows = !self.network.is_cut(*a, *b) && !self.network.is_cut(*b, *a);
            let is_up =
                |at: &usize| self.machines[*at].life.is_some() && self.now >= self.machines[*at].paused_until;
            flows && is_up(a) && is_up(b)
        };
        let whole: Vec<(usize, usize)> = self.links.broken.keys().filter(is_whole).copied().collect();
        for (a, b) in whole {
            self.closed(a, b);
            self.closed(b, a);
            self.links.broken.remove(&(a, b));
            for (at, peer) in [(a, b), (b, a)] {
                let Some(running) = &self.machines[at].life else { continue };
                for (shard, replica) in self.links.sent.remove(&(at, peer)).unwrap_or_default() {
                    running.parts.shared.push_replica(shard, Input::Connected(replica));
                }
                running.parts.shared.peer_opened(node_id(peer));
                self.heed(at);
            }
        }
    }

    /// A message of another node arrives.
    pub(super) fn arrive(&mut self, from: usize, to: usize, mut message: PeerMessage) -> Outcome {
        let Some(running) = &self.machines[to].life else {
            if is_awaited(&message) {
                self.break_link(from, to);
            }
            return Ok(());
        };
        if let (Some(ClusterBug::ShiftedSequence), PeerMessage::Deliver { messages, .. }) =
            (self.bug, &mut message)
            && one_in(&mut self.rng, 4)
        {
            messages.iter_mut().for_each(|message| message.seq = message.seq.next());
        }
        running.parts.shared.from_peer(message);
        self.heed(to);
        Ok(())
    }

    /// Sends what a node left for another one.
    pub(super) fn send(&mut self, from: usize, to: usize, mut message: PeerMessage) {
        match &mut message {
            PeerMessage::Frame(route, _) | PeerMessage::Chunk(route, _) => {
                self.links.sent.entry((from, to)).or_default().insert(route.shard, route.to);
            }
            PeerMessage::Call { call, .. } => {
                if self.links.is_closed(from, to) {
                    if let Some(running) = &self.machines[from].life {
                        running.parts.shared.not_sent(node_id(to), call.shard, call.id);
                    }
                    return self.heed(from);
                }
                self.note_forwarded(from, call);
            }
            _ => {}
        }
        // One connection neither doubles nor reorders. Replicas and channels bear that all the same; a call without identity does not.
        let is_call = matches!(message, PeerMessage::Call { .. });
        let mut delays = self.network.send(from, to, &mut self.rng);
        delays.truncate(if is_call { 1 } else { 2 });
        if delays.is_empty() && is_awaited(&message) {
            self.break_link(from, to);
        }
        for delay in delays {
            self.at(delay, Event::Message(from, to, message.clone()));
        }
    }

    /// Notes a call that leaves for another node, under a number of its own each time.
    fn note_forwarded(&mut self, from: usize, call: &mut Call) {
        self.marks.hit(ClusterMark::Forwarded);
        let epoch = self.plane.directory.shard(call.shard).map(|route| route.epoch).unwrap_or_default();
        let now = self.machines[from].life.as_ref().map(|running| running.parts.shared.now());
        let deadline = now.unwrap_or_default().plus(call.within.into());
        let ask = repeated(&call.ask).to_vec();
        let epochs = self.links.forwarded.entry((from, ask, deadline)).or_default();
        let is_again = !epochs.is_empty();
        if epochs.insert(epoch) && epochs.len() == 3 {
            self.marks.hit(ClusterMark::ForwardedOverTwo);
        }
        if is_again && self.bug == Some(ClusterBug::ForwardedWithoutIdentity) {
            let stripped = match Ask::decode_untimed(&call.ask) {
                Ok(Ask::Request { shard, process, payload, principal, colour, seen, is_first, .. }) => {
                    let identity = Identified::None;
                    Ask::Request { shard, process, payload, principal, identity, colour, seen, is_first }
                        .encode()
                }
                _ => return,
            };
            call.ask = stripped;
        }
    }
}

/// Whether the loss of a message is the end of its connection; others are repeated by themselves.
fn is_awaited(message: &PeerMessage) -> bool {
    !matches!(message, PeerMessage::Deliver { .. } | PeerMessage::Ack { .. } | PeerMessage::Received(..))
}
