//! The connections of a worker to clients, which speak the native protocol, and the receivers of answers.
//!
//! A worker has its own connections, takes calls from them in its turns, and sleeps in the wait for its network. So a call
//! for one of its shards passes through no other thread. Answers of other threads, or of other workers' shards, come over
//! a [`Desk`]; all answers of a turn leave with one write for each connection.

use crate::bell::Bell;
use crate::events;
use crate::forward::Forwarder;
use crate::reply::{Caller, NoAnswer, ReplyTo, answer_of};
use crate::routes::{ClientAddresses, Routes};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stead_core::calls::Answer;
use stead_core::ids::{ShardId, Time};
use stead_core::topology::Topology;
use stead_net::connection::{Event, RequestId, SendError, Settings};
use stead_net::endpoint::{Bounds, Endpoint, Happened};
use stead_net::handshake::{Local, Role, VERSIONS};
use stead_net::native::{self, Primary};
use stead_net::network::{ConnectionId, Tcp, Wake};
use stead_net::payload::Payload;

/// Bytes of answers that wait for their client to read them, above which others get [`native::Answer::NoRoom`]: 16 MiB.
const WAITING_MAX: usize = 16 << 20;
/// Bytes that wait for a client at most: the rest is room for short answers.
const SEND_BYTES_MAX: usize = 2 * WAITING_MAX;
/// Bytes for the clients of all workers, if that is not less than the minimum of each: 256 MiB.
const CLIENT_BYTES: u64 = 256 << 20;
/// Minimum of the bytes for the clients of a worker: 64 MiB.
const CLIENT_BYTES_MIN: u64 = 64 << 20;

/// The receiver of the answer to a call.
pub(crate) enum Recipient<C> {
    /// A caller in this process.
    Here(C),
    /// A client, over the network.
    Away(Away),
    /// Another node, which forwarded the call.
    Node(Forwarder),
}

impl<C: Caller> Caller for Recipient<C> {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        match self {
            Self::Here(caller) => caller.answer(result),
            Self::Away(away) => {
                let Away { line, request } = away;
                line.desk.leave(line.connection, request, result);
            }
            Self::Node(node) => node.leave(result),
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Here(caller) => caller.is_gone(),
            Self::Away(away) => away.line.is_closed.load(Ordering::Relaxed),
            Self::Node(_) => false,
        }
    }

    fn drop_unanswered(self) {
        match self {
            Self::Here(caller) => caller.drop_unanswered(),
            // Its connection may outlive the worker that has the call.
            Self::Away(_) => self.answer(Err(NoAnswer::Stopped)),
            // The connection of the nodes ends with this one.
            Self::Node(_) => {}
        }
    }
}

impl<C> ReplyTo<C> {
    /// Returns it as that of a caller in this process.
    pub(crate) fn here(self) -> ReplyTo<Recipient<C>> {
        let Self { caller, deadline, timeout } = self;
        ReplyTo { caller: Recipient::Here(caller), deadline, timeout }
    }
}

/// A client that waits for the answer to a request of its connection.
#[derive(Clone)]
pub(crate) struct Away {
    line: Arc<Line>,
    request: RequestId,
}

/// A connection to a client.
struct Line {
    connection: ConnectionId,
    is_closed: AtomicBool,
    desk: Arc<Desk>,
}

/// Where other threads leave answers for the connections of a worker. It holds at most one for each request that these
/// have without an answer, whose number is bounded.
struct Desk {
    answers: Mutex<Vec<(ConnectionId, RequestId, Result<Answer, NoAnswer>)>>,
    /// The worker's.
    bell: Arc<Bell>,
}

impl Desk {
    fn leave(&self, connection: ConnectionId, request: RequestId, result: Result<Answer, NoAnswer>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push((connection, request, result));
        self.bell.ring();
    }

    fn take(&self) -> Vec<(ConnectionId, RequestId, Result<Answer, NoAnswer>)> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The connections of a worker to clients.
pub(crate) struct Native {
    endpoint: Endpoint<Tcp>,
    wake: Wake,
    desk: Arc<Desk>,
    clients: BTreeMap<ConnectionId, Client>,
    /// The time of its next turn, unless something arrives before.
    due: Time,
    /// The error of a wait.
    failed: Option<io::Error>,
    /// Whether the last connection could not be accepted, which was reported.
    refuses: bool,
    /// The answers of [`answer_topology`](Self::answer_topology), without and with the services, once a client has asked for them.
    topologies: [Option<(Known, Payload)>; 2],
}

/// The nodes that a client learns of.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) clients: Arc<ClientAddresses>,
    pub(crate) routes: Arc<Routes>,
}

impl Known {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.clients, &other.clients) && Arc::ptr_eq(&self.routes, &other.routes)
    }

    /// Returns the addresses of the nodes, and the primary of each shard.
    fn nodes_and_primaries(&self) -> (Vec<SocketAddr>, Vec<Option<Primary>>) {
        let nodes = || self.clients.iter().take(native::NODES_MAX);
        let primary = |shard| {
            let route = self.routes.get(&shard)?;
            let node = route.primary_node()?;
            let node = u32::try_from(nodes().position(|(other, _)| *other == node)?).ok()?;
            Some(Primary { node, epoch: route.epoch })
        };
        let shards = self.routes.last_key_value().map_or(0, |(last, _)| last.0.saturating_add(1));
        let primaries = (0..shards).take(native::PRIMARIES_MAX).map(|shard| primary(ShardId(shard)));
        (nodes().map(|(_, address)| *address).collect(), primaries.collect())
    }
}

struct Client {
    line: Arc<Line>,
    /// The version of the protocol that it speaks.
    version: u16,
    /// The principal of its last call, which most others share.
    principal: Arc<str>,
}

impl Native {
    /// Creates the connections of one of so many workers, whose bell this is. All workers together have at most
    /// `connections_max`, and three each.
    pub(crate) fn new(
        tcp: Tcp,
        local: Local,
        bell: Arc<Bell>,
        workers: usize,
        connections_max: usize,
    ) -> Self {
        let share = CLIENT_BYTES / workers.max(1) as u64;
        let connections_max = (connections_max / workers.max(1)).max(3);
        let handshakes_max = (connections_max / 8).max(1);
        let bounds = Bounds {
            connections_max,
            handshakes_max,
            // One is left, as an endpoint has it for nodes.
            clients_max: connections_max - handshakes_max - 1,
            client_bytes_max: share.max(CLIENT_BYTES_MIN),
        };
        let settings = Settings { send_bytes_max: SEND_BYTES_MAX, ..Settings::default() };
        Self {
            wake: tcp.wake(),
            endpoint: Endpoint::new(tcp, local, settings, bounds),
            desk: Arc::new(Desk { answers: Mutex::default(), bell }),
            clients: BTreeMap::new(),
            due: Time(0),
            failed: None,
            refuses: false,
            topologies: [None, None],
        }
    }

    /// Returns what ends a [`wait`](Self::wait).
    pub(crate) fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Returns the time of the next turn, unless something arrives before.
    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// Waits until something arrives, the worker is woken, or the time is over.
    pub(crate) fn wait(&mut self, time: Option<Duration>) {
        self.failed = self.endpoint.network_mut().wait(time).err();
    }

    /// Reads what has arrived. All calls must be taken before the next turn.
    ///
    /// # Errors
    /// Those of the system, after which it cannot go on.
    pub(crate) fn turn(&mut self, now: Time, wall: Time) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)?;
        self.due = self.endpoint.turn(now, wall)?;
        Ok(())
    }

    /// Returns the next call that has arrived, and the client that waits for its answer.
    pub(crate) fn next_call(&mut self) -> Option<(Away, Bytes)> {
        loop {
            match self.endpoint.next_happened()? {
                Happened::Event(connection, Event::Request(request, bytes)) => {
                    if let Some(client) = self.clients.get(&connection) {
                        return Some((Away { line: Arc::clone(&client.line), request }, bytes));
                    }
                }
                Happened::Event(connection, Event::Opened(agreed)) if agreed.role == Role::Client => {
                    self.refuses = false;
                    let desk = Arc::clone(&self.desk);
                    let line = Arc::new(Line { connection, is_closed: AtomicBool::new(false), desk });
                    self.clients
                        .insert(connection, Client { line, version: agreed.version, principal: "".into() });
                }
                // Nodes do not speak to each other yet.
                Happened::Event(connection, Event::Opened(_) | Event::Shards(_) | Event::Answer(..)) => {
                    self.endpoint.close(connection);
                    self.forget(connection);
                }
                Happened::Ended { connection, .. } => self.forget(connection),
                Happened::AcceptFailed(error) => {
                    if !std::mem::replace(&mut self.refuses, true) {
                        events::warn(format_args!(
                            "a connection of a client cannot be accepted: {error}; raise the limit of open files, or \
                             use fewer connections"
                        ));
                    }
                }
            }
        }
    }

    fn forget(&mut self, connection: ConnectionId) {
        if let Some(client) = self.clients.remove(&connection) {
            client.line.is_closed.store(true, Ordering::Relaxed);
        }
    }

    /// Returns a client's principal, which it shares with the last call over its connection if it is the same.
    pub(crate) fn principal(&mut self, away: &Away, principal: &str) -> Arc<str> {
        let Some(client) = self.clients.get_mut(&away.line.connection) else { return principal.into() };
        if *client.principal != *principal {
            client.principal = principal.into();
        }
        Arc::clone(&client.principal)
    }

    /// Answers with the nodes of the cluster and what they lead, and with the services if a client asks for them; encoded once for each
    /// change of these.
    pub(crate) fn answer_topology(
        &mut self,
        now: Time,
        away: &Away,
        topology: &Topology,
        has_services: bool,
        known: Known,
    ) {
        let kept = &mut self.topologies[usize::from(has_services)];
        let payload = match kept {
            Some((of, payload)) if of.is_same(&known) => payload.clone(),
            _ => {
                let topology =
                    if has_services { topology.clone() } else { Topology::new(topology.incarnation) };
                let (nodes, primaries) = known.nodes_and_primaries();
                let answer = native::Answer::Topology { topology, nodes, primaries };
                let payload = Payload::from(answer.encode());
                *kept = Some((known, payload.clone()));
                payload
            }
        };
        self.send_payload(now, away.line.connection, away.request, payload);
    }

    /// Gives a turn after the end of the worker: refuses calls, and writes answers that other threads have left. Returns whether nothing
    /// was left to read or to write.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub(crate) fn drain(&mut self, now: Time, wall: Time) -> io::Result<bool> {
        self.turn(now, wall)?;
        // A turn reads nothing as long as events of an earlier one are left, and no more than a slice.
        let is_read = self.due > now;
        while let Some((away, _)) = self.next_call() {
            self.answer(now, &away, native::Answer::Stopped);
        }
        self.flush(now);
        let waits = |connection| self.endpoint.connection(connection).is_some_and(|open| open.waiting() > 0);
        Ok(is_read && !self.clients.keys().any(|connection| waits(*connection)))
    }

    /// Whether the client is connected to this worker.
    pub(crate) fn has(&self, away: &Away) -> bool {
        Arc::ptr_eq(&away.line.desk, &self.desk)
    }

    /// Answers a client that is connected to this worker; the answer leaves with [`flush`](Self::flush).
    pub(crate) fn answer(&mut self, now: Time, away: &Away, answer: native::Answer) {
        self.send(now, away.line.connection, away.request, answer);
    }

    fn send(&mut self, now: Time, connection: ConnectionId, request: RequestId, answer: native::Answer) {
        let version = self.clients.get(&connection).map_or(VERSIONS.min, |client| client.version);
        let answer = answer.in_version(version);
        self.send_payload(now, connection, request, Payload::from(answer.encode()));
    }

    fn send_payload(
        &mut self,
        now: Time,
        connection: ConnectionId,
        request: RequestId,
        mut payload: Payload,
    ) {
        let Some(open) = self.endpoint.connection(connection) else { return };
        if open.waiting() > 0 && open.waiting() + payload.len() > WAITING_MAX {
            payload = Payload::from(native::Answer::NoRoom.encode());
        }
        match self.endpoint.send_answer(connection, request, &payload, now) {
            Ok(()) | Err(SendError::NotOpen | SendError::NoRequest(_)) => {}
            // It takes less than this answer has: then it could get none of its answers.
            Err(
                SendError::WouldBlock { .. } | SendError::TooManyRequests { .. } | SendError::TooLong { .. },
            ) => {
                self.endpoint.close(connection);
                self.forget(connection);
            }
        }
    }

    /// Writes all answers, also those that other threads have left.
    pub(crate) fn flush(&mut self, now: Time) {
        for (connection, request, result) in self.desk.take() {
            self.send(now, connection, request, answer_of(result));
        }
        self.endpoint.flush(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::{Command, Inbox};
    use stead_core::ids::SessionId;

    #[test]
    fn a_client_is_answered_if_its_call_comes_to_a_worker_that_has_ended() {
        let desk = Arc::new(Desk { answers: Mutex::default(), bell: Arc::default() });
        let connection = ConnectionId(1);
        let line = Arc::new(Line { connection, is_closed: AtomicBool::new(false), desk: Arc::clone(&desk) });
        let inbox: Inbox<Recipient<()>> = Inbox::new();
        let call = |request| {
            let caller = Recipient::Away(Away { line: Arc::clone(&line), request });
            let reply_to = Some(ReplyTo { caller, deadline: Time(9), timeout: Duration::ZERO });
            let (shard, session) = (ShardId(0), SessionId(1));
            inbox.push(Command::OpenSession { shard, session, principal: "".into(), reply_to });
        };
        call(RequestId(1));
        assert!(desk.take().is_empty());
        // One waits in the inbox, and the next one comes too late: another worker has accepted it before.
        inbox.close();
        call(RequestId(2));
        let answered: Vec<_> =
            desk.take().into_iter().map(|(_, request, result)| (request, result)).collect();
        let stopped = |request| (RequestId(request), Err(NoAnswer::Stopped));
        assert_eq!(answered, [1, 2].map(stopped));
    }
}
