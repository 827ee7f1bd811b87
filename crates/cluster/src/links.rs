//! The connections between the control parts of nodes, over which each asks the others.
//!
//! They are not those of the shards, so that a long queue there delays no vote. Stepped: [`Links::turn`] never waits. A request
//! that cannot be sent at once, or whose connection ends, has no answer: its sender repeats what matters.

use crate::look::Looks;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use stead_control::Answer;
use stead_core::ids::{Micros, NodeId, Time};
use stead_net::connection::{Event, RequestId, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::handshake::{Local, RefusalKind, Role};
use stead_net::network::{ConnectionId, Network};
use stead_net::payload::Payload;

/// The times of a connection.
pub(crate) const SETTINGS: Settings = Settings {
    send_bytes_max: 64 << 20,
    keep_alive: Micros::from_millis(200),
    silence_max: Micros::from_secs(3),
    handshake_time_max: Micros::from_secs(2),
};

/// Connections of nodes that join, at most.
pub(crate) const BOUNDS: Bounds =
    Bounds { connections_max: 2_304, handshakes_max: 64, clients_max: 64, client_bytes_max: 4 << 20 };

/// Pauses between two attempts to connect to a node: each is twice as long as the one before.
const PAUSE_MIN: Micros = Micros::from_millis(20);
const PAUSE_MAX: Micros = Micros::from_millis(500);
/// Requests that wait for a connection at most; further ones are dropped.
const WAITING_MAX: usize = 64;

/// The purpose of a request, to which its answer goes.
#[derive(Debug)]
pub(crate) enum Purpose {
    Plane(Answer),
    Facts,
    Orders,
    /// A node that knows no leader introduces itself.
    Introduction,
    /// The answer goes to an operator, who waits for those of all nodes.
    Look(Looks),
}

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Node(NodeId),
    /// A node that has no number yet.
    Stranger,
}

/// The place to which the answer to a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Return {
    connection: ConnectionId,
    request: RequestId,
}

/// News of the connections.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// A request of another node.
    Ask(Sender, Return, Bytes),
    /// The answer to a request of this node.
    Answer(NodeId, Purpose, Bytes),
}

/// Another node.
struct Peer {
    address: Option<SocketAddr>,
    open: Option<ConnectionId>,
    dialing: Option<ConnectionId>,
    dial_from: Time,
    pause: Micros,
    waiting: Vec<(Payload, Purpose)>,
    /// The last failure that was reported.
    reported: String,
    /// Whether it refuses this node, as one of which a later life has connected.
    knows_later_life: bool,
}

/// An address at which there may be a node of the cluster: no number is known for it.
struct Seed {
    address: SocketAddr,
    connection: Option<ConnectionId>,
    dial_from: Time,
    pause: Micros,
    /// The last failure.
    reported: String,
}

impl Seed {
    const fn new(address: SocketAddr) -> Self {
        Self { address, connection: None, dial_from: Time(0), pause: PAUSE_MIN, reported: String::new() }
    }

    fn failed(&mut self, now: Time) {
        (self.connection, self.dial_from) = (None, now.plus(self.pause));
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
    }
}

/// The connections of a node's control part.
pub(crate) struct Links<N: Network> {
    endpoint: Endpoint<N>,
    own: NodeId,
    seeds: Vec<Seed>,
    /// Whether to connect to the seeds: the known addresses may all be of the past.
    seeks: bool,
    peers: BTreeMap<NodeId, Peer>,
    asked: BTreeMap<(ConnectionId, RequestId), Purpose>,
    /// The last failure of a connection whose other end is not known.
    reported: String,
}

impl<N: Network> Links<N> {
    /// Returns links without connections. `seeds` are addresses at which there may be nodes.
    pub(crate) fn new(network: N, local: Local, own: NodeId, seeds: &[SocketAddr]) -> Self {
        let endpoint = Endpoint::new(network, local, SETTINGS, BOUNDS);
        let seeds = seeds.iter().copied().map(Seed::new).collect();
        let (peers, asked, reported) = (BTreeMap::new(), BTreeMap::new(), String::new());
        Self { endpoint, own, seeds, seeks: false, peers, asked, reported }
    }

    /// Says whether to connect to the seeds: a node does so as long as it knows no leader.
    pub(crate) const fn seek(&mut self, seeks: bool) {
        self.seeks = seeks;
    }

    /// Returns the nodes to which there is a connection.
    pub(crate) fn open_nodes(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.open.is_some()).map(|(node, _)| *node).collect()
    }

    /// Returns the refusal by the nodes to which a later life of this one has connected, once these are a majority of the cluster's
    /// nodes, or all others. A single one may know a life that the cluster does not.
    pub(crate) fn superseded(&self) -> Option<&str> {
        let others = || self.peers.iter().filter(|(node, peer)| **node != self.own && peer.address.is_some());
        let refusing = || others().filter(|(_, peer)| peer.open.is_none() && peer.knows_later_life);
        let all = others().count();
        if refusing().count() < all.min(all.div_ceil(2) + 1) {
            return None;
        }
        refusing().next().map(|(_, peer)| peer.reported.as_str())
    }

    /// The seeds to connect to. One whose node is connected by a known address needs no other connection.
    fn wanted_seeds(&mut self) -> impl Iterator<Item = &mut Seed> {
        let (peers, seeks) = (&self.peers, self.seeks);
        let is_open = move |at| peers.values().any(|peer| peer.open.is_some() && peer.address == Some(at));
        let is_wanted = move |seed: &&mut Seed| seeks && seed.connection.is_none() && !is_open(seed.address);
        self.seeds.iter_mut().filter(is_wanted)
    }

    pub(crate) const fn network_mut(&mut self) -> &mut N {
        self.endpoint.network_mut()
    }

    fn peer(&mut self, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer {
            address: None,
            open: None,
            dialing: None,
            dial_from: Time(0),
            pause: PAUSE_MIN,
            waiting: Vec::new(),
            reported: String::new(),
            knows_later_life: false,
        })
    }

    /// Notes the address of a node: this one connects to it.
    pub(crate) fn set_address(&mut self, node: NodeId, address: SocketAddr) {
        if node != self.own {
            let peer = self.peer(node);
            if peer.address != Some(address) {
                (peer.address, peer.dial_from, peer.pause) = (Some(address), Time(0), PAUSE_MIN);
                if let Some(dialing) = peer.dialing.take() {
                    self.endpoint.close(dialing);
                }
            }
        }
    }

    /// Forgets the address of each node that is not among these.
    pub(crate) fn keep_only(&mut self, is_known: impl Fn(NodeId) -> bool) {
        for (node, peer) in &mut self.peers {
            if !is_known(*node) {
                peer.address = None;
                peer.waiting.clear();
            }
        }
    }

    /// Whether there is a connection to a node.
    pub(crate) fn is_open(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.open.is_some())
    }

    /// Sends a request to a node, once it is connected. Without an answer its purpose is dropped.
    pub(crate) fn ask(&mut self, node: NodeId, payload: Vec<u8>, purpose: Purpose, now: Time) {
        let payload = Payload::from(Bytes::from(payload));
        let open = self.peer(node).open;
        match open {
            Some(connection) => self.send(connection, &payload, purpose, now),
            None => {
                let peer = self.peer(node);
                if peer.waiting.len() < WAITING_MAX {
                    peer.waiting.push((payload, purpose));
                }
            }
        }
    }

    fn send(&mut self, connection: ConnectionId, payload: &Payload, purpose: Purpose, now: Time) {
        // Of an other end that reads too slowly nothing is expected: the request is dropped.
        if let Ok(request) = self.endpoint.send_request(connection, payload, now) {
            self.asked.insert((connection, request), purpose);
        }
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, to: Return, answer: Vec<u8>, now: Time) {
        // Over a connection that has ended there is no way back.
        let _ =
            self.endpoint.send_answer(to.connection, to.request, &Payload::from(Bytes::from(answer)), now);
    }

    /// Closes the connection of a request, whose sender does what no node does.
    pub(crate) fn refuse(&mut self, from: Return, reason: &str, now: Time) {
        tracing::warn!("a connection of the control plane is closed: {reason}");
        self.endpoint.close(from.connection);
        self.lost(from.connection, now);
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self, now: Time) {
        self.endpoint.flush(now);
    }

    /// Receives what has arrived, and connects to nodes to which there is no connection. Returns the time of the next turn.
    pub(crate) fn turn(&mut self, now: Time, wall: Time, arrived: &mut Vec<Arrived>) -> io::Result<Time> {
        self.dial(now, wall);
        let due = self.endpoint.turn(now, wall)?;
        while let Some(happened) = self.endpoint.next_happened() {
            self.handle(happened, now, arrived);
        }
        self.drop_given_up();
        let seeds = self.wanted_seeds().map(|seed| seed.dial_from).min();
        let dials = self
            .peers
            .values()
            .filter(|peer| peer.address.is_some() && peer.open.is_none() && peer.dialing.is_none());
        let dials = dials.map(|peer| peer.dial_from).chain(seeds);
        Ok(dials.map(|from| from.max(now)).fold(due, Time::min))
    }

    /// Drops the requests whose sender waits no longer.
    fn drop_given_up(&mut self) {
        let is_over = |purpose: &Purpose| matches!(purpose, Purpose::Plane(answer) if answer.is_given_up());
        for peer in self.peers.values_mut() {
            peer.waiting.retain(|(_, purpose)| !is_over(purpose));
        }
        let over: Vec<_> =
            self.asked.iter().filter(|(_, purpose)| is_over(purpose)).map(|(key, _)| *key).collect();
        for (connection, request) in over {
            self.asked.remove(&(connection, request));
            self.endpoint.forget(connection, request);
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
                Err(error) => peer.failed(*node, &error.to_string(), false, now),
            }
        }
        let due: Vec<_> =
            self.wanted_seeds().filter(|seed| now >= seed.dial_from).map(|seed| seed.address).collect();
        for address in due {
            let dialed = self.endpoint.dial(address, None, now, wall).ok();
            let Some(seed) = self.seeds.iter_mut().find(|seed| seed.address == address) else { continue };
            match dialed {
                Some(connection) => seed.connection = Some(connection),
                None => seed.failed(now),
            }
        }
    }

    fn handle(&mut self, happened: Happened, now: Time, arrived: &mut Vec<Arrived>) {
        match happened {
            Happened::Event(connection, Event::Opened(agreed)) => {
                if let Some(seed) = self.seed_of(connection) {
                    seed.pause = PAUSE_MIN;
                    seed.reported.clear();
                }
                if let Role::Peer { node, .. } = agreed.role {
                    let peer = self.peer(node);
                    peer.dialing = peer.dialing.filter(|dialing| *dialing != connection);
                    (peer.open, peer.pause) = (Some(connection), PAUSE_MIN);
                    peer.reported.clear();
                    peer.knows_later_life = false;
                    for (payload, purpose) in std::mem::take(&mut peer.waiting) {
                        self.send(connection, &payload, purpose, now);
                    }
                }
            }
            Happened::Event(connection, Event::Request(request, bytes)) => {
                let role = self.endpoint.connection(connection).and_then(|open| open.agreed());
                let sender = match role.map(|agreed| agreed.role) {
                    Some(Role::Peer { node, .. }) => Sender::Node(node),
                    Some(Role::Client) => Sender::Stranger,
                    None => return,
                };
                arrived.push(Arrived::Ask(sender, Return { connection, request }, bytes));
            }
            Happened::Event(connection, Event::Answer(request, bytes)) => {
                let purpose = self.asked.remove(&(connection, request));
                if let Some((purpose, node)) = purpose.zip(self.node_of(connection)) {
                    arrived.push(Arrived::Answer(node, purpose, bytes));
                }
            }
            Happened::Event(connection, Event::Shards(_)) => {
                tracing::warn!(
                    "a connection of the control plane is closed: it has messages of shards; give each node the addresses of its own"
                );
                self.endpoint.close(connection);
                self.lost(connection, now);
            }
            Happened::Ended { connection, ended, .. } => {
                if let Some(seed) = self.seed_of(connection) {
                    seed.reported = ended.to_string();
                }
                let dialed = self.peers.iter_mut().find(|(_, peer)| peer.dialing == Some(connection));
                if let Some((node, peer)) = dialed {
                    peer.dialing = None;
                    peer.knows_later_life = ended.refusal() == Some(RefusalKind::OlderLife);
                    if peer.open.is_none() {
                        peer.failed(*node, &ended.to_string(), ended.is_refusal(), now);
                    }
                } else if ended.is_refusal() {
                    self.warn(&ended.to_string());
                }
                self.lost(connection, now);
            }
            Happened::AcceptFailed(error) => tracing::warn!(
                "a connection of the control plane cannot be accepted: {error}; raise the limit of open files"
            ),
        }
    }

    /// Warns of a connection of an end that is not known, once as long as the failure stays the same.
    fn warn(&mut self, failure: &str) {
        if self.reported != failure {
            failure.clone_into(&mut self.reported);
            tracing::warn!("a connection of the control plane ended: {failure}");
        }
    }

    /// Returns the last failures of connections: to nodes to which there is none, and of unknown ends.
    pub(crate) fn failures(&self) -> Vec<String> {
        let is_without = |peer: &Peer| peer.open.is_none() && !peer.reported.is_empty();
        let without = self.peers.iter().filter(|(_, peer)| is_without(peer));
        let failures = without.map(|(node, peer)| format!("node {node}: {}", peer.reported));
        let is_alone = self.open_nodes().is_empty();
        let seeds = self.seeds.iter().filter(|seed| is_alone && !seed.reported.is_empty());
        let seeds = seeds.map(|seed| format!("{}: {}", seed.address, seed.reported));
        failures.chain((!self.reported.is_empty()).then(|| self.reported.clone())).chain(seeds).collect()
    }

    fn seed_of(&mut self, connection: ConnectionId) -> Option<&mut Seed> {
        self.seeds.iter_mut().find(|seed| seed.connection == Some(connection))
    }

    fn node_of(&self, connection: ConnectionId) -> Option<NodeId> {
        self.peers.iter().find(|(_, peer)| peer.open == Some(connection)).map(|(node, _)| *node)
    }

    /// Notes that a connection is not there any more.
    fn lost(&mut self, connection: ConnectionId, now: Time) {
        if let Some(seed) = self.seed_of(connection) {
            seed.failed(now);
        }
        self.asked.retain(|(other, _), _| *other != connection);
        for peer in self.peers.values_mut() {
            if peer.open == Some(connection) {
                (peer.open, peer.dial_from) = (None, now.plus(PAUSE_MIN));
            }
        }
    }
}

impl Peer {
    /// Notes an attempt that has failed.
    fn failed(&mut self, node: NodeId, reason: &str, is_refusal: bool, now: Time) {
        self.waiting.clear();
        self.dial_from = now.plus(self.pause);
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
        if self.reported != reason {
            match is_refusal {
                true => tracing::warn!("the control plane cannot reach node {node}: {reason}"),
                false => tracing::debug!("the control plane cannot reach node {node}: {reason}"),
            }
            self.reported = reason.to_owned();
        }
    }
}
