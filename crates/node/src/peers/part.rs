//! The part that has the connections to other nodes: one to each, over which all messages of their shards go.
//!
//! Both nodes of a pair dial, and the handshake decides which connection stays. What cannot be sent is dropped, so that a node that
//! is slow or gone costs bounded memory: senders repeat the messages of channels, and replicas get [`Input::Connected`] once
//! messages flow again.

use super::PeerMessage;
use super::desk::{Orders, Seen};
use super::packing::{Loser, Packed, pack};
use crate::control::ControlNews;
use crate::env::Env;
use crate::events;
use crate::shared::Shared;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::control::facts::Fact;
use stead_core::ids::{Micros, NodeId, ReplicaId, ShardId, Time};
use stead_core::shard_replica::Input;
use stead_net::channel::{Deliver, Taken};
use stead_net::connection::{Event, Failure, SendError, Settings};
use stead_net::endpoint::{Bounds, Ended, Endpoint, Happened};
use stead_net::forward::{Answered, CallId, Outcome};
use stead_net::handshake::{Agreed, HandshakeError, Local, RefusalKind, Role};
use stead_net::network::{ConnectionId, Network, Tcp, Wake};
use stead_net::replica::{Message, Route, read_message};
use stead_net::section::sections;

/// Bytes that wait for a node at most: 32 MiB.
const SEND_BYTES_MAX: usize = 32 << 20;
/// Answers to a node that is slow for which it is remembered that they were dropped: as many as it forwards calls.
const OWED_MAX: usize = 16_384;
/// Pauses between two attempts to connect to a node: each is twice as long as the one before.
const PAUSE_MIN: Micros = Micros::from_millis(20);
const PAUSE_MAX: Micros = Micros::from_secs(1);

/// The times of a connection between nodes. An idle one is heard as often as the control plane expects reports.
const SETTINGS: Settings = Settings {
    send_bytes_max: SEND_BYTES_MAX,
    keep_alive: Micros::from_millis(50),
    silence_max: Micros::from_secs(3),
    handshake_time_max: Micros::from_secs(2),
};

/// The open connection to a node.
#[derive(Clone, Copy)]
struct Open {
    connection: ConnectionId,
    since: Time,
    /// The length of a frame that the other end takes.
    payload_bytes_max: usize,
    /// Whether the other end reads too slowly, so that nothing is sent.
    is_full: bool,
}

/// Another node.
struct Peer {
    address: Option<SocketAddr>,
    open: Option<Open>,
    dialing: Option<ConnectionId>,
    dial_from: Time,
    pause: Micros,
    heard: Time,
    /// The replicas that were sent something over the open connection. One of each shard: an older one on the same node is void.
    sent: BTreeMap<ShardId, ReplicaId>,
    /// The replicas for which something was lost, or may have been.
    lost: BTreeMap<ShardId, ReplicaId>,
    /// Calls that it forwarded, and whose answers were dropped because it reads too slowly.
    owed: Vec<(ShardId, CallId)>,
    /// Whether the control plane learns that the connection closed if the one that is being dialed does not replace it.
    is_closed: bool,
    /// Whether the control plane knows that nothing listens at its address.
    is_refused: bool,
    /// The last failure that was reported.
    reported: String,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            address: None,
            open: None,
            dialing: None,
            dial_from: now,
            pause: PAUSE_MIN,
            heard: now,
            sent: BTreeMap::new(),
            lost: BTreeMap::new(),
            owed: Vec::new(),
            is_closed: false,
            is_refused: false,
            reported: String::new(),
        }
    }

    /// Whether there is nothing to remember of it.
    fn is_unknown(&self) -> bool {
        self.address.is_none() && self.open.is_none() && self.dialing.is_none() && self.lost.is_empty()
    }

    fn note_lost(&mut self, receivers: impl IntoIterator<Item = (ShardId, ReplicaId)>) {
        for (shard, replica) in receivers {
            note(&mut self.lost, shard, replica);
        }
    }

    /// Notes an attempt that has failed, or a connection that has ended.
    fn pause(&mut self, now: Time) {
        self.dial_from = now.plus(self.pause);
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
    }

    /// Warns of a failure, once as long as it stays the same.
    fn warn(&mut self, node: NodeId, failure: &str) {
        if self.reported != failure {
            failure.clone_into(&mut self.reported);
            events::warn(format_args!("there is no connection to node {node}: {failure}"));
        }
    }
}

fn note(replicas: &mut BTreeMap<ShardId, ReplicaId>, shard: ShardId, replica: ReplicaId) {
    let newest = replicas.entry(shard).or_insert(replica);
    *newest = replica.max(*newest);
}

/// News for the parts that forward calls.
enum Change {
    Opened(NodeId),
    Closed(NodeId),
    Unsent(NodeId, ShardId, CallId),
}

/// The connections of a node to the others.
pub struct PeerPart<N: Network = Tcp> {
    /// This node.
    node: NodeId,
    endpoint: Endpoint<N>,
    peers: BTreeMap<NodeId, Peer>,
    /// The error of a wait.
    failed: Option<io::Error>,
    /// The last failure of a connection whose other end is unknown.
    reported: String,
    news: ControlNews,
    /// In their order.
    changes: Vec<Change>,
}

impl PeerPart {
    /// Returns what ends a [`wait`](Self::wait).
    pub(super) fn wake(&self) -> Wake {
        self.endpoint.network().wake()
    }

    /// Waits until something arrives, it is woken, or the time is over.
    pub(super) fn wait(&mut self, time: Option<Duration>) {
        self.failed = self.endpoint.network_mut().wait(time).err();
    }
}

impl<N: Network> PeerPart<N> {
    /// Creates the part of a node, without connections.
    ///
    /// # Panics
    /// If `local` is a client, or its limits contradict each other.
    #[must_use]
    pub fn new(network: N, local: Local) -> Self {
        let Role::Peer { node, .. } = local.role else { panic!("a node has peers") };
        // No clients: one is closed once it said who it is.
        let bounds = Bounds { clients_max: 1, client_bytes_max: 4 << 20, ..Bounds::default() };
        Self {
            node,
            endpoint: Endpoint::new(network, local, SETTINGS, bounds),
            peers: BTreeMap::new(),
            failed: None,
            reported: String::new(),
            news: ControlNews::default(),
            changes: Vec::new(),
        }
    }

    /// Sends the messages that wait. A turn is due after it.
    pub(super) fn send_waiting<E: Env>(&mut self, hub: &Shared<E>, now: Time) {
        for (node, messages) in hub.peers.take() {
            self.send(node, messages, now);
        }
        self.endpoint.flush(now);
    }

    /// Returns the network, to wait at it.
    pub const fn network_mut(&mut self) -> &mut N {
        self.endpoint.network_mut()
    }

    /// Returns the bytes that wait for a node.
    #[cfg(test)]
    pub(super) fn waiting(&self, node: NodeId) -> usize {
        let connection = self.endpoint.peer(node).and_then(|connection| self.endpoint.connection(connection));
        connection.map_or(0, |connection| connection.waiting())
    }

    /// Whether it waits for the other end of a connection that it dialed.
    #[cfg(test)]
    pub(super) fn is_dialing(&self) -> bool {
        self.peers.values().any(|peer| peer.dialing.is_some())
    }

    /// Sends what waits, and takes what has arrived. Returns the time of the next turn, unless something happens before.
    ///
    /// # Errors
    /// Those of the system that concern no connection: there are no connections any more.
    pub fn step<E: Env>(&mut self, hub: &Shared<E>, now: Time, wall: Time) -> io::Result<Time> {
        self.failed.take().map_or(Ok(()), Err)?;
        self.take_orders(hub.peers.take_orders(), now);
        self.dial(now, wall);
        for (node, messages) in hub.peers.take() {
            self.send(node, messages, now);
        }
        let mut due = self.endpoint.turn(now, wall)?;
        while let Some(happened) = self.endpoint.next_happened() {
            self.handle(hub, happened, now);
        }
        let mut owed = Vec::new();
        for (node, peer) in &mut self.peers {
            let Some(open) = &mut peer.open else {
                if peer.address.is_some() && peer.dialing.is_none() {
                    due = due.min(peer.dial_from);
                }
                continue;
            };
            let Some(connection) = self.endpoint.connection(open.connection) else { continue };
            peer.heard = connection.heard();
            if open.is_full && connection.waiting() <= SEND_BYTES_MAX / 2 {
                open.is_full = false;
                give_connected(hub, &mut peer.lost);
                self.changes.push(Change::Opened(*node));
                owed.push((*node, std::mem::take(&mut peer.owed)));
            }
        }
        for (node, owed) in owed.into_iter().filter(|(_, owed)| !owed.is_empty()) {
            let answered =
                |(shard, id)| PeerMessage::Answered(Answered { shard, id, outcome: Outcome::InDoubt });
            self.send(node, owed.into_iter().map(answered).collect(), now);
            due = now;
        }
        self.peers.retain(|_, peer| !peer.is_unknown());
        let seen = |peer: &Peer| Seen { heard: peer.heard, is_closed: peer.open.is_none() };
        hub.peers.note(self.peers.iter().map(|(node, peer)| (*node, seen(peer))));
        hub.control.leave(&mut self.news);
        for change in self.changes.drain(..) {
            match change {
                Change::Opened(node) => hub.peer_opened(node),
                Change::Closed(node) => hub.peer_closed(node),
                Change::Unsent(node, shard, id) => hub.not_sent(node, shard, id),
            }
        }
        Ok(due)
    }

    fn take_orders(&mut self, Orders { addresses, asks }: Orders, now: Time) {
        if let Some(addresses) = addresses {
            for (node, peer) in &mut self.peers {
                peer.address = addresses.get(node).copied().filter(|_| *node != self.node);
            }
            for (node, address) in addresses.into_iter().filter(|(node, _)| *node != self.node) {
                let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
                peer.address = Some(address);
            }
        }
        for node in asks {
            if let Some(peer) = self.peers.get_mut(&node) {
                (peer.dial_from, peer.pause) = (now, PAUSE_MIN);
            }
        }
    }

    fn dial(&mut self, now: Time, wall: Time) {
        for (node, peer) in &mut self.peers {
            if peer.open.is_some() || peer.dialing.is_some() || now < peer.dial_from {
                continue;
            }
            let Some(address) = peer.address else { continue };
            match self.endpoint.dial(address, Some(*node), now, wall) {
                Ok(connection) => peer.dialing = Some(connection),
                Err(error) => {
                    peer.warn(*node, &error.to_string());
                    peer.pause(now);
                }
            }
        }
    }

    fn send(&mut self, node: NodeId, messages: Vec<PeerMessage>, now: Time) {
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        let Some(open) = peer.open.as_mut().filter(|open| !open.is_full) else {
            let losers = messages.iter().filter_map(Loser::of);
            return note_unsent(node, peer, &mut self.changes, losers);
        };
        let mut unsent = Vec::new();
        for Packed { payload, losers } in pack(messages, open.payload_bytes_max) {
            let sent = if open.is_full {
                Err(None)
            } else {
                self.endpoint.send_shards(open.connection, &payload, now).map_err(Some)
            };
            match sent {
                Ok(()) => {
                    for loser in losers {
                        if let Loser::Replica(shard, replica) = loser {
                            note(&mut peer.sent, shard, replica);
                        }
                    }
                    continue;
                }
                Err(None | Some(SendError::NotOpen)) => {}
                Err(Some(SendError::TooLong { .. })) => {
                    // It would be too long again, so that nothing is gained by repeating it over this connection.
                    open.is_full = true;
                    peer.reported.clear();
                    events::warn(format_args!(
                        "node {node} takes no message of {} bytes; run the same version of Stead on all nodes",
                        payload.len()
                    ));
                    self.endpoint.close(open.connection);
                }
                Err(Some(_)) => open.is_full = true,
            }
            unsent.extend(losers);
        }
        note_unsent(node, peer, &mut self.changes, unsent);
        if peer.open.is_some_and(|open| self.endpoint.connection(open.connection).is_none()) {
            self.closed(node, now);
        }
    }

    fn handle<E: Env>(&mut self, hub: &Shared<E>, happened: Happened, now: Time) {
        match happened {
            Happened::Event(connection, Event::Opened(agreed)) => match agreed.role {
                Role::Peer { node, .. } => self.opened(hub, node, connection, &agreed, now),
                Role::Client => self.endpoint.close(connection),
            },
            Happened::Event(connection, Event::Shards(bytes)) => {
                if let Err(reason) = self.receive(hub, connection, bytes) {
                    self.refuse(connection, &reason, now);
                }
            }
            Happened::Event(connection, Event::Request(..) | Event::Answer(..)) => {
                self.refuse(connection, "it sent a request, and nodes have none", now);
            }
            Happened::Ended { connection, role, ended, .. } => self.ended(connection, role, &ended, now),
            Happened::AcceptFailed(error) => {
                let failure = format!(
                    "a connection of a node cannot be accepted: {error}; raise the limit of open files"
                );
                self.warn(failure);
            }
        }
    }

    /// Warns of something that concerns no known node, once as long as it stays the same.
    fn warn(&mut self, failure: String) {
        if self.reported != failure {
            events::warn(&failure);
            self.reported = failure;
        }
    }

    fn opened<E: Env>(
        &mut self,
        hub: &Shared<E>,
        node: NodeId,
        connection: ConnectionId,
        agreed: &Agreed,
        now: Time,
    ) {
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.dialing = peer.dialing.filter(|dialing| *dialing != connection);
        let payload_bytes_max = usize::try_from(agreed.limits.payload_bytes_max).unwrap_or(usize::MAX);
        peer.open = Some(Open { connection, since: now, payload_bytes_max, is_full: false });
        (peer.is_closed, peer.is_refused) = (false, false);
        peer.reported.clear();
        give_connected(hub, &mut peer.lost);
        self.changes.push(Change::Opened(node));
    }

    /// Takes the messages of a frame. Those before one that is invalid are taken.
    fn receive<E: Env>(&self, hub: &Shared<E>, connection: ConnectionId, bytes: Bytes) -> Result<(), String> {
        for section in sections(bytes) {
            let section = section.map_err(|error| error.to_string())?;
            let address = section.address;
            let route = Route { shard: address.shard, from: address.from, to: address.to };
            match read_message(&section).map_err(|error| error.to_string())? {
                Message::Frame(frame) => hub.from_peer(PeerMessage::Frame(route, frame)),
                Message::Deliver(Deliver { from, to, messages, again }) => {
                    hub.from_peer(PeerMessage::Deliver { from, to, messages, again });
                }
                Message::Taken(Taken { from, to, upto, colour }) => {
                    hub.from_peer(PeerMessage::Ack { from, to, upto, colour });
                }
                Message::Chunk(chunk) => hub.from_peer(PeerMessage::Chunk(route, chunk)),
                Message::Received(received) => hub.from_peer(PeerMessage::Received(route, received)),
                Message::Call(call) => {
                    // Its answer goes over the connection that the node has then.
                    if let Some(from) = self.node_of(connection) {
                        hub.from_peer(PeerMessage::Call { from, call });
                    }
                }
                Message::Answered(answered) => hub.from_peer(PeerMessage::Answered(answered)),
            }
        }
        Ok(())
    }

    /// Closes a connection whose other end does what no node does.
    fn refuse(&mut self, connection: ConnectionId, reason: &str, now: Time) {
        self.endpoint.close(connection);
        if let Some(node) = self.node_of(connection) {
            events::warn(format_args!("the connection to node {node} is closed: {reason}"));
            self.closed(node, now);
        }
    }

    fn node_of(&self, connection: ConnectionId) -> Option<NodeId> {
        let is_of = |peer: &Peer| peer.open.is_some_and(|open| open.connection == connection);
        self.peers.iter().find(|(_, peer)| is_of(peer)).map(|(node, _)| *node)
    }

    /// Notes that the connection to a node is not there any more, and informs the control plane.
    fn closed(&mut self, node: NodeId, now: Time) {
        self.cut(node, now);
        self.news.facts.push(Fact::Closed(node));
    }

    /// Notes that what is on its way to a node may be lost.
    fn cut(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(open) = peer.open.take() else { return };
        let sent = std::mem::take(&mut peer.sent);
        peer.note_lost(sent);
        // The other end takes back the calls that have no answer.
        peer.owed.clear();
        self.changes.push(Change::Closed(node));
        // One that ends at once would be dialed without a pause otherwise.
        if now.since(open.since) >= PAUSE_MAX {
            peer.pause = PAUSE_MIN;
        }
        peer.pause(now);
    }

    fn ended(&mut self, connection: ConnectionId, role: Option<Role>, ended: &Ended, now: Time) {
        if let Some(node) = self.node_of(connection) {
            if let Ended::Replaced(_) = ended {
                return self.cut(node, now);
            }
            if let Some(peer) = self.peers.get_mut(&node) {
                if peer.dialing.is_some() {
                    // Both dialed, and the other end kept the other connection.
                    peer.is_closed = true;
                    return self.cut(node, now);
                }
                peer.warn(node, &ended.to_string());
            }
            return self.closed(node, now);
        }
        let dialed = self.peers.iter_mut().find(|(_, peer)| peer.dialing == Some(connection));
        let Some((node, peer)) = dialed else {
            if role.is_none() && is_refusal(ended) {
                self.warn(ended.to_string());
            }
            return;
        };
        peer.dialing = None;
        peer.pause(now);
        if peer.open.is_some() {
            return;
        }
        if std::mem::take(&mut peer.is_closed) {
            self.news.facts.push(Fact::Closed(*node));
        }
        if is_double(ended) {
            return;
        }
        peer.warn(*node, &ended.to_string());
        let is_refused =
            matches!(ended, Ended::System(error) if error.kind() == io::ErrorKind::ConnectionRefused);
        if is_refused && !std::mem::replace(&mut peer.is_refused, true) {
            self.news.facts.push(Fact::Refused(*node));
        }
    }
}

/// Notes that messages to a node are dropped.
fn note_unsent(
    node: NodeId,
    peer: &mut Peer,
    changes: &mut Vec<Change>,
    losers: impl IntoIterator<Item = Loser>,
) {
    for loser in losers {
        match loser {
            Loser::Replica(shard, replica) => note(&mut peer.lost, shard, replica),
            Loser::Call(shard, id) => changes.push(Change::Unsent(node, shard, id)),
            Loser::Answer(shard, id) if peer.open.is_some() && peer.owed.len() < OWED_MAX => {
                peer.owed.push((shard, id));
            }
            Loser::Answer(..) => {}
        }
    }
}

/// Informs the replicas of this node that what was on its way to these may be lost, and that messages flow from now on.
fn give_connected<E: Env>(hub: &Shared<E>, lost: &mut BTreeMap<ShardId, ReplicaId>) {
    for (shard, replica) in std::mem::take(lost) {
        hub.push_replica(shard, Input::Connected(replica));
    }
}

/// Whether this end refused the other one.
fn is_refusal(ended: &Ended) -> bool {
    matches!(ended, Ended::Failed(Failure::Handshake(HandshakeError::Refused(_))))
}

/// Whether a connection ended because there is another one between the same nodes.
const fn is_double(ended: &Ended) -> bool {
    matches!(ended, Ended::Replaced(_)) || matches!(ended.refusal(), Some(RefusalKind::Connected))
}
