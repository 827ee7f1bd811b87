//! All connections of a node, over a network: a part that is stepped.
//!
//! [`Endpoint::turn`] reads what has arrived, writes what waits, and never waits itself. All frames that were sent to a
//! connection between two turns leave in one vectored write.

use crate::connection::{Connection, Event, Failure, RequestId, SendError, Settings};
use crate::handshake::{Known, Local, Refusal, RefusalKind, Role, Side};
use crate::network::{AddressError, ConnectionId, Network, Ready, check_loopback};
use crate::payload::Payload;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use stead_core::ids::{Micros, NodeId, Time};

/// The bounds of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of connections, including those whose handshake runs. Further ones wait in the system's queue.
    /// More than the two numbers below together: what is left is for nodes. Default: 1,024.
    pub connections_max: usize,
    /// Maximum number of accepted connections whose handshake runs. Further ones wait in the system's queue. Default:
    /// 128.
    pub handshakes_max: usize,
    /// Maximum number of clients. Further ones are refused. Default: 768.
    pub clients_max: usize,
    /// Maximum number of bytes in memory for all clients together: see [`Connection::held`]. If they hold more, the
    /// connection of the one that holds the most ends. Default: 256 MiB.
    pub client_bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections_max: 1024, handshakes_max: 128, clients_max: 768, client_bytes_max: 256 << 20 }
    }
}

/// Nodes of which an endpoint remembers the latest life, beside those that are connected.
const KNOWN_MAX: usize = 4096;
/// Connections that a turn accepts.
const ACCEPTED_PER_TURN: usize = 16;
/// Bytes that one read takes.
const READ_BYTES: usize = 64 << 10;
/// Reads of one connection in a turn: then it is another one's turn.
const READS_PER_TURN: usize = 4;
/// Bytes that a turn reads, and so those of the events that it leaves, beside the parts of frames that came before.
const TURN_BYTES: usize = 4 << 20;
/// Slices of a vectored write.
const SLICES: usize = 64;
/// Time without accepting after the system refused to, mostly for want of descriptors.
const ACCEPT_PAUSE: Micros = Micros::from_millis(100);

/// Reasons for which a connection is not there any more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The system reported an error.
    #[error("the connection broke: {0}; check that the other end runs, and connect again")]
    System(#[source] io::Error),
    /// A newer connection to the same node replaced it.
    #[error("a newer connection to node {0} replaced this one; use that one")]
    Replaced(NodeId),
}

impl Ended {
    /// Returns the kind of the refusal by which one of the ends ended the connection, if one did.
    #[must_use]
    pub const fn refusal(&self) -> Option<RefusalKind> {
        match self {
            Self::Failed(Failure::Handshake(error)) => Some(error.kind()),
            _ => None,
        }
    }

    /// Whether one of the ends refused the other one, for a reason that time alone does not change: not because there is another
    /// connection between them, or no room.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.refusal().is_some_and(|kind| !matches!(kind, RefusalKind::Connected | RefusalKind::Full))
    }
}

/// An event at an endpoint.
#[derive(Debug)]
pub enum Happened {
    /// Something arrived over a connection.
    Event(ConnectionId, Event),
    /// A connection ended. Its requests have no answer.
    Ended {
        /// The connection.
        connection: ConnectionId,
        /// The other end's address.
        address: SocketAddr,
        /// The other end, if it was known.
        role: Option<Role>,
        /// The reason.
        ended: Ended,
    },
    /// The system refused to accept a connection; it is tried again soon.
    AcceptFailed(io::Error),
}

struct Link<S> {
    connection: Connection,
    socket: S,
    address: SocketAddr,
    /// The other end, once it is known: also after the connection has failed.
    role: Option<Role>,
    /// Whether a write may succeed.
    writable: bool,
    /// Whether it is in the queue of those to read.
    reads: bool,
    /// Whether its reads go on until they find its end, or nothing.
    ends: bool,
    /// The bytes that it counts for in `client_bytes`.
    counted: u64,
    /// The error of a write. The connection ends once what arrived before is read.
    broken: Option<io::Error>,
}

impl<S> Link<S> {
    const fn new(connection: Connection, socket: S, address: SocketAddr) -> Self {
        Self {
            connection,
            socket,
            address,
            role: None,
            writable: false,
            reads: false,
            ends: false,
            counted: 0,
            broken: None,
        }
    }
}

/// All connections of a node or a client.
pub struct Endpoint<N: Network> {
    network: N,
    local: Local,
    settings: Settings,
    bounds: Bounds,
    /// The accepted connections whose handshake runs.
    handshakes: usize,
    /// The open connections to clients.
    clients: BTreeSet<ConnectionId>,
    /// The bytes that these hold, and the accepted ones whose handshake runs.
    client_bytes: u64,
    links: BTreeMap<ConnectionId, Link<N::Socket>>,
    last: u64,
    /// The open connection to each node.
    peers: BTreeMap<NodeId, ConnectionId>,
    /// The nodes that are or were connected.
    known: BTreeMap<NodeId, Known>,
    /// Those with something to read, the next one first.
    readable: VecDeque<ConnectionId>,
    /// Those with something to write.
    dirty: BTreeSet<ConnectionId>,
    happened: VecDeque<Happened>,
    /// Whether connections may wait to be accepted.
    acceptable: bool,
    accept_from: Time,
    /// No connection has anything due before this.
    due: Time,
    ready: Vec<Ready>,
    buffer: Box<[u8]>,
}

impl<N: Network> Endpoint<N> {
    /// Returns an endpoint without connections.
    ///
    /// # Panics
    /// If the limits in `local` contradict each other: see [`Connection::accept`]; or if `bounds` leaves no connection
    /// for nodes.
    #[must_use]
    pub fn new(network: N, local: Local, settings: Settings, bounds: Bounds) -> Self {
        assert!(bounds.connections_max > bounds.handshakes_max + bounds.clients_max, "nodes can connect");
        assert!(bounds.handshakes_max > 0, "connections can be accepted");
        drop(Connection::accept(local.clone(), 0, settings, Time(0)));
        Self {
            network,
            local,
            settings,
            bounds,
            handshakes: 0,
            clients: BTreeSet::new(),
            client_bytes: 0,
            links: BTreeMap::new(),
            last: 0,
            peers: BTreeMap::new(),
            known: BTreeMap::new(),
            readable: VecDeque::new(),
            dirty: BTreeSet::new(),
            happened: VecDeque::new(),
            acceptable: true,
            accept_from: Time(0),
            due: Time(u64::MAX),
            ready: Vec::new(),
            buffer: vec![0; READ_BYTES].into(),
        }
    }

    /// Returns the network.
    pub const fn network(&self) -> &N {
        &self.network
    }

    /// Returns the network, to wait at it.
    pub const fn network_mut(&mut self) -> &mut N {
        &mut self.network
    }

    /// Returns a connection.
    #[must_use]
    pub fn connection(&self, connection: ConnectionId) -> Option<&Connection> {
        self.links.get(&connection).map(|link| &link.connection)
    }

    /// Returns the open connection to a node.
    #[must_use]
    pub fn peer(&self, node: NodeId) -> Option<ConnectionId> {
        self.peers.get(&node).copied()
    }

    /// Returns the number of connections, including those whose handshake runs.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// Begins a connection, to a certain node if one is given. Its outcome is [`Event::Opened`] or [`Happened::Ended`].
    ///
    /// # Errors
    /// If the address is not a loopback address, or the system refuses it.
    pub fn dial(
        &mut self,
        address: SocketAddr,
        expected: Option<NodeId>,
        now: Time,
        wall: Time,
    ) -> Result<ConnectionId, AddressError> {
        check_loopback(address)?;
        let id = self.next_id();
        let socket =
            self.network.dial(address, id).map_err(|source| AddressError::System { address, source })?;
        let connection = Connection::dial(self.local.clone(), id.0, expected, self.settings, now, wall);
        self.insert(id, Link::new(connection, socket, address), now);
        Ok(id)
    }

    fn next_id(&mut self) -> ConnectionId {
        self.last += 1;
        ConnectionId(self.last)
    }

    fn insert(&mut self, id: ConnectionId, link: Link<N::Socket>, now: Time) {
        self.due = self.due.min(now);
        self.dirty.insert(id);
        self.links.insert(id, link);
    }

    /// Changes the identity that this end has in connections that begin from now on: a client learns its cluster.
    pub fn set_local(&mut self, local: Local) {
        self.local = local;
    }

    /// Changes the settings of a connection, if it is there.
    pub fn set_settings(&mut self, connection: ConnectionId, settings: Settings) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.connection.set_settings(settings);
            // Something may be due earlier: the next turn finds out.
            self.due = Time(0);
        }
    }

    /// Writes what waits, as far as it can be written at once, before the next turn does.
    pub fn flush(&mut self, now: Time) {
        self.write_all(now);
    }

    /// Closes a connection. Nothing is reported; what waits to be written may be lost.
    pub fn close(&mut self, connection: ConnectionId) {
        self.remove(connection);
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Link<N::Socket>> {
        let link = self.links.remove(&id)?;
        self.dirty.remove(&id);
        self.clients.remove(&id);
        self.client_bytes -= link.counted;
        if link.role.is_none() && link.connection.side() == Side::Accepted {
            self.handshakes -= 1;
        }
        if link.reads {
            self.readable.retain(|other| *other != id);
        }
        if let Some(Role::Peer { node, .. }) = link.role
            && self.peers.get(&node) == Some(&id)
        {
            self.peers.remove(&node);
            self.known.entry(node).and_modify(|known| known.connected = None);
        }
        Some(link)
    }

    /// Sends messages of shards: see [`Connection::send_shards`]. They leave with the next turn.
    ///
    /// # Errors
    /// If they cannot be sent now.
    pub fn send_shards(
        &mut self,
        connection: ConnectionId,
        payload: &Payload,
        now: Time,
    ) -> Result<(), SendError> {
        self.with(connection, |connection| connection.send_shards(payload, now))
    }

    /// Sends a request: see [`Connection::send_request`]. It leaves with the next turn.
    ///
    /// # Errors
    /// If it cannot be sent now.
    pub fn send_request(
        &mut self,
        connection: ConnectionId,
        payload: &Payload,
        now: Time,
    ) -> Result<RequestId, SendError> {
        self.with(connection, |connection| connection.send_request(payload, now))
    }

    /// Answers a request: see [`Connection::send_answer`]. The answer leaves with the next turn.
    ///
    /// # Errors
    /// If it cannot be sent now.
    pub fn send_answer(
        &mut self,
        connection: ConnectionId,
        request: RequestId,
        payload: &Payload,
        now: Time,
    ) -> Result<(), SendError> {
        self.with(connection, |connection| connection.send_answer(request, payload, now))
    }

    /// Drops the answer to a request when it arrives: see [`Connection::forget`].
    pub fn forget(&mut self, connection: ConnectionId, request: RequestId) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.connection.forget(request);
        }
    }

    fn with<T>(
        &mut self,
        id: ConnectionId,
        send: impl FnOnce(&mut Connection) -> Result<T, SendError>,
    ) -> Result<T, SendError> {
        let link = self.links.get_mut(&id).ok_or(SendError::NotOpen)?;
        let sent = send(&mut link.connection)?;
        self.dirty.insert(id);
        self.count(id);
        Ok(sent)
    }

    /// Returns what happened next. Take all of it after each turn: a turn reads nothing while something is left.
    pub fn next_happened(&mut self) -> Option<Happened> {
        self.happened.pop_front()
    }

    /// Writes what waits, accepts connections, reads what has arrived, and does what is due. Returns the time of the
    /// next turn, unless something can be done before: `now` if there is more to do at once.
    ///
    /// `now` is on a steady clock, `wall` is the wall clock.
    ///
    /// # Errors
    /// Those of the system that concern no connection: the endpoint cannot go on.
    pub fn turn(&mut self, now: Time, wall: Time) -> io::Result<Time> {
        self.gather()?;
        self.write_all(now);
        self.accept(now);
        if self.happened.is_empty() {
            self.read(now, wall);
        }
        // After reading: what arrived while this end stood still was no silence. What a busy turn left unread is none
        // either.
        self.tick(now);
        self.write_all(now);
        self.free_memory();
        if !self.readable.is_empty() || !self.happened.is_empty() {
            return Ok(now);
        }
        let accepts = self.acceptable && self.has_room();
        Ok(if accepts { self.due.min(self.accept_from.max(now)) } else { self.due })
    }

    fn gather(&mut self) -> io::Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        self.network.ready(&mut ready)?;
        for Ready { connection, readable, writable, ends } in ready.drain(..) {
            let Some(id) = connection else {
                self.acceptable = true;
                continue;
            };
            let Some(link) = self.links.get_mut(&id) else { continue };
            if readable && !link.reads {
                link.reads = true;
                self.readable.push_back(id);
            }
            link.writable |= writable;
            link.ends |= ends;
            if writable && link.connection.waiting() > 0 {
                self.dirty.insert(id);
            }
        }
        self.ready = ready;
        Ok(())
    }

    /// Returns whether a connection can be accepted.
    fn has_room(&self) -> bool {
        self.links.len() < self.bounds.connections_max && self.handshakes < self.bounds.handshakes_max
    }

    /// Counts the bytes that a connection holds, unless it is one to a node.
    fn count(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let is_counted = match link.role {
            Some(role) => role == Role::Client,
            None => link.connection.side() == Side::Accepted,
        };
        let held = if is_counted { link.connection.held() } else { 0 };
        self.client_bytes = self.client_bytes - link.counted + held;
        link.counted = held;
    }

    /// Ends the clients' connections that hold the most until the others are within their bound.
    fn free_memory(&mut self) {
        let max = self.bounds.client_bytes_max;
        while self.client_bytes > max {
            let most = self.links.iter().max_by_key(|(_, link)| link.counted);
            let id = *most.expect("some are counted").0;
            let failure = Failure::Memory { bytes: self.client_bytes, max };
            if let Some(link) = self.links.get_mut(&id) {
                link.connection.fail(failure.clone());
            }
            self.end(id, failure.into());
        }
    }

    fn accept(&mut self, now: Time) {
        for _ in 0..ACCEPTED_PER_TURN {
            if !self.acceptable || now < self.accept_from || !self.has_room() {
                return;
            }
            let id = self.next_id();
            match self.network.accept(id) {
                Ok((socket, address)) => {
                    let connection = Connection::accept(self.local.clone(), id.0, self.settings, now);
                    let link = Link { writable: true, reads: true, ..Link::new(connection, socket, address) };
                    self.insert(id, link, now);
                    self.handshakes += 1;
                    self.readable.push_back(id);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.acceptable = false,
                // The other end gave up before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.accept_from = now.plus(ACCEPT_PAUSE);
                    self.happened.push_back(Happened::AcceptFailed(error));
                }
            }
        }
    }

    fn read(&mut self, now: Time, wall: Time) {
        let mut taken = 0;
        for _ in 0..self.readable.len() {
            if taken >= TURN_BYTES {
                return;
            }
            let Some(id) = self.readable.pop_front() else { return };
            taken += self.read_from(id, now, wall);
            self.count(id);
        }
    }

    /// Reads from a connection, and returns the number of bytes.
    fn read_from(&mut self, id: ConnectionId, now: Time, wall: Time) -> usize {
        let mut taken = 0;
        for _ in 0..READS_PER_TURN {
            let Some(link) = self.links.get_mut(&id) else { return taken };
            let (mut is_last, ends) = (false, link.ends || link.broken.is_some());
            let outcome = match link.socket.read(&mut self.buffer) {
                Ok(0) => {
                    Err(link.broken.take().map_or_else(|| link.connection.handle_end().into(), Ended::System))
                }
                Ok(bytes) => {
                    taken += bytes;
                    // Later bytes are reported anew: another read would only find that there is nothing.
                    is_last = bytes < self.buffer.len() && !ends;
                    link.connection.receive(&self.buffer[..bytes], now);
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match link.broken.take() {
                    Some(error) => Err(Ended::System(error)),
                    None => {
                        link.reads = false;
                        return taken;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(Ended::System(link.broken.take().unwrap_or(error))),
            };
            if let Err(ended) = outcome.and_then(|()| self.take_events(id, now, wall)) {
                self.end(id, ended);
                return taken;
            }
            if is_last {
                if let Some(link) = self.links.get_mut(&id) {
                    link.reads = false;
                }
                return taken;
            }
        }
        self.readable.push_back(id);
        taken
    }

    fn take_events(&mut self, id: ConnectionId, now: Time, wall: Time) -> Result<(), Ended> {
        loop {
            let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
            let known = |node| self.known.get(&node).copied();
            let Some(event) = link.connection.next_event(now, wall, known)? else { return Ok(()) };
            if let Event::Opened(agreed) = &event {
                // The hello of the end that accepted.
                self.dirty.insert(id);
                // Keep-alives are due before the handshake's end was.
                self.due = self.due.min(now);
                link.role = Some(agreed.role);
                if link.connection.side() == Side::Accepted {
                    self.handshakes -= 1;
                }
                if agreed.role == Role::Client {
                    let clients = self.clients.len();
                    if clients >= self.bounds.clients_max {
                        return Err(link.connection.refuse(Refusal::Full { clients }, now).into());
                    }
                    self.clients.insert(id);
                }
                // Two nodes have one connection. The clients of a process share an endpoint, and each has its own.
                if let (Role::Peer { .. }, Role::Peer { node, directory, process }) =
                    (self.local.role, agreed.role)
                {
                    let (life, connected) = (agreed.origin.life, Some(agreed.order));
                    if let Some(older) = self.peers.insert(node, id) {
                        self.end(older, Ended::Replaced(node));
                    }
                    self.note(node, Known { directory, process, life, connected });
                }
            }
            self.happened.push_back(Happened::Event(id, event));
        }
    }

    /// Notes what is known of a node. Makes room by forgetting nodes that are not connected.
    fn note(&mut self, node: NodeId, known: Known) {
        self.known.insert(node, known);
        if self.known.len() > KNOWN_MAX {
            self.known.retain(|_, known| known.connected.is_some());
        }
    }

    /// Removes a connection and reports it.
    fn end(&mut self, id: ConnectionId, ended: Ended) {
        let Some(mut link) = self.remove(id) else { return };
        let role = link.role;
        if link.writable && link.connection.failure().is_some() {
            // A refusal, as far as it can be written at once: the connection ends in any case.
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = link.connection.slices(&mut slices);
            drop(link.socket.write_vectored(&slices[..filled]));
        }
        self.happened.push_back(Happened::Ended { connection: id, address: link.address, role, ended });
    }

    fn write_all(&mut self, now: Time) {
        while let Some(id) = self.dirty.pop_first() {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if let Err(error) = Self::write(link, now) {
                // A refusal or answers may have arrived: they are read first.
                link.broken = Some(error);
                if !link.reads {
                    link.reads = true;
                    self.readable.push_back(id);
                }
            }
            self.count(id);
        }
    }

    fn write(link: &mut Link<N::Socket>, now: Time) -> io::Result<()> {
        while link.writable && link.broken.is_none() && link.connection.waiting() > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = link.connection.slices(&mut slices);
            match link.socket.write_vectored(&slices[..filled]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => link.connection.advance(bytes, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => link.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn tick(&mut self, now: Time) {
        if now < self.due {
            return;
        }
        self.due = Time(u64::MAX);
        let mut failed = Vec::new();
        for (id, link) in &mut self.links {
            match link.connection.tick(now, link.reads) {
                Ok(until) => self.due = self.due.min(until),
                Err(failure) => failed.push((*id, failure)),
            }
            if link.connection.waiting() > 0 {
                self.dirty.insert(*id);
            }
        }
        for (id, failure) in failed {
            self.end(id, failure.into());
        }
    }
}
