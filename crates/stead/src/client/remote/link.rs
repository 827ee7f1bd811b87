//! The calls of a client over its connection, and their repetition over another one: stepped, and without threads.

use super::{Got, Within};
use crate::error::RawError;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::calls::Refusal;
use stead_core::ids::{Incarnation, Life, Micros, Time};
use stead_net::connection::{Event, Failure, RequestId, SendError, Settings};
use stead_net::endpoint::{Bounds, Ended, Endpoint, Happened};
use stead_net::frame::Origin;
use stead_net::handshake::{
    CLOCK_DIFFERENCE_MAX, HandshakeError, Limits, Local, RefusalKind, Role, VERSIONS,
};
use stead_net::native::{Answer, Ask, with_time};
use stead_net::network::{ConnectionId, Network, Tcp, check_loopback};
use stead_node::NoAnswer;
use tokio::sync::oneshot;

/// Pause after the first round of addresses at which no node answered, or after a connection that gave no answer; it
/// doubles with each.
const PAUSE_MIN: Micros = Micros::from_millis(10);
/// Longest pause.
const PAUSE_MAX: Micros = Micros::from_millis(500);
/// Interval at which a node is asked for the addresses of the others.
const LEARN: Micros = Micros::from_secs(10);
/// Interval at which calls are searched for those that are overdue, or whose callers have gone.
const SWEEP: Micros = Micros::from_millis(20);

/// A call of a client.
pub(super) struct Call {
    ask: Bytes,
    /// Whether it may be sent again without having its effect twice.
    repeats: bool,
    /// The number of times that it was sent.
    times: u32,
    /// Whether a primary was deposed that had it: it waits for the next one.
    is_deposed: bool,
    within: Within,
    reply: oneshot::Sender<Result<Got, RawError>>,
}

impl Call {
    pub(super) fn new(
        ask: Bytes,
        repeats: bool,
        within: Within,
        reply: oneshot::Sender<Result<Got, RawError>>,
    ) -> Self {
        Self { ask, repeats, times: 0, is_deposed: false, within, reply }
    }

    fn end(self, result: Result<Got, RawError>) {
        // The future may have been dropped.
        let _ = self.reply.send(result);
    }

    /// Ends it because there is no connection.
    fn fail(self, reason: &str) {
        let sent = self.times > 0;
        self.end(Err(RawError::Network { reason: reason.to_owned(), sent }));
    }

    fn is_over(&self, now: Time) -> bool {
        self.within.deadline <= now || self.reply.is_closed()
    }
}

/// The progress of the connection for the next calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    Dialing(ConnectionId),
    Open(ConnectionId),
}

/// The connections of a client. One takes calls; others, whose nodes shut down, may still bring answers.
pub(super) struct Link<N: Network> {
    endpoint: Endpoint<N>,
    local: Local,
    /// The addresses that were given, then those that nodes named.
    addresses: Vec<SocketAddr>,
    /// The number of those that were given.
    given: usize,
    /// The request for the addresses of the others, while it has no answer.
    learning: Option<(ConnectionId, RequestId)>,
    learn_at: Time,
    /// The position of the next address to dial.
    next: usize,
    /// Addresses that were dialed in vain since the last pause.
    tried: usize,
    /// The last of them that refused this client for good, one after the other.
    refused: usize,
    /// The reason for which there is no connection.
    reason: String,
    stage: Stage,
    /// Whether the connection has brought an answer.
    has_answered: bool,
    dial_from: Time,
    pause: Micros,
    /// Calls that wait to be sent.
    waiting: VecDeque<Call>,
    /// Calls without an answer.
    sent: BTreeMap<(ConnectionId, RequestId), Call>,
    sweep_at: Time,
    /// The error of a wait.
    failed: Option<io::Error>,
}

impl<N: Network> Link<N> {
    pub(super) fn new(network: N, addresses: Vec<SocketAddr>, now: Time) -> Self {
        let local = Local {
            versions: VERSIONS,
            cluster: None,
            role: Role::Client,
            origin: Origin { incarnation: Incarnation(0), life: Life(0) },
            limits: Limits::default(),
            client_limits: Limits::of_clients(),
            clock_difference_max: CLOCK_DIFFERENCE_MAX,
        };
        Self {
            endpoint: Endpoint::new(network, local.clone(), Settings::default(), Bounds::default()),
            local,
            given: addresses.len(),
            addresses,
            learning: None,
            learn_at: now,
            next: 0,
            tried: 0,
            refused: 0,
            reason: String::new(),
            stage: Stage::Closed,
            has_answered: false,
            dial_from: now,
            pause: PAUSE_MIN,
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            sweep_at: now,
            failed: None,
        }
    }

    /// Whether calls are under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.sent.is_empty()
    }

    /// Takes new calls, sends what can be sent, and ends the calls that have answers or are overdue. Returns the time of the
    /// next turn, unless something arrives before.
    ///
    /// # Errors
    /// Those of the system, after which it cannot go on.
    pub(super) fn turn(&mut self, now: Time, wall: Time, calls: &mut VecDeque<Call>) -> io::Result<Time> {
        self.failed.take().map_or(Ok(()), Err)?;
        self.waiting.append(calls);
        let mut until = self.endpoint.turn(now, wall)?;
        while let Some(happened) = self.endpoint.next_happened() {
            match happened {
                Happened::Event(connection, event) => self.handle(connection, event, now),
                Happened::Ended { connection, address, ended, .. } => {
                    self.handle_end(connection, address, &ended, now);
                }
                Happened::AcceptFailed(_) => {}
            }
        }
        self.sweep(now);
        if self.stage == Stage::Closed && !self.waiting.is_empty() {
            if now >= self.dial_from {
                self.dial(now, wall);
            }
            until = until.min(self.dial_from);
        }
        self.send(now);
        until = until.min(self.learn(now));
        self.endpoint.flush(now);
        if !self.waiting.is_empty() || !self.sent.is_empty() {
            until = until.min(self.sweep_at.plus(SWEEP));
        }
        Ok(until)
    }

    /// Asks the node for the addresses of the others if it is time; returns the time of the next request.
    fn learn(&mut self, now: Time) -> Time {
        let Stage::Open(connection) = self.stage else { return Time(u64::MAX) };
        if now >= self.learn_at {
            self.learn_at = now.plus(LEARN);
            let payload = with_time(Duration::from(LEARN), &Ask::Topology.encode());
            if let Ok(request) = self.endpoint.send_request(connection, &payload, now) {
                self.learning = Some((connection, request));
            }
        }
        self.learn_at
    }

    /// Replaces the addresses that nodes have named; those that were given stay first.
    fn take_addresses(&mut self, nodes: Vec<SocketAddr>) {
        let current = self.addresses[self.next];
        self.addresses.truncate(self.given);
        for node in nodes {
            if check_loopback(node).is_ok() && !self.addresses.contains(&node) {
                self.addresses.push(node);
            }
        }
        let at = self.addresses.iter().position(|address| *address == current);
        self.next = at.unwrap_or(0);
        (self.tried, self.refused) = (0, 0);
    }

    fn dial(&mut self, now: Time, wall: Time) {
        let address = self.addresses[self.next];
        match self.endpoint.dial(address, None, now, wall) {
            Ok(connection) => {
                self.stage = Stage::Dialing(connection);
                // Its hello leaves at once.
                self.dial_from = now;
            }
            Err(error) => self.not_connected(error.to_string(), false, now),
        }
    }

    /// Notes that no node answers at the address that was dialed, or that the one there refuses this client for good.
    fn not_connected(&mut self, reason: String, is_final: bool, now: Time) {
        self.stage = Stage::Closed;
        self.reason = reason;
        self.next = (self.next + 1) % self.addresses.len();
        self.tried += 1;
        self.refused = if is_final { self.refused + 1 } else { 0 };
        if self.tried >= self.addresses.len() {
            self.tried = 0;
            self.pause(now);
        }
        if self.refused >= self.addresses.len() {
            // Time changes nothing about it.
            self.refused = 0;
            for call in std::mem::take(&mut self.waiting) {
                call.fail(&self.reason);
            }
        }
    }

    fn pause(&mut self, now: Time) {
        self.dial_from = now.plus(self.pause);
        self.pause = Micros(self.pause.0 * 2).min(PAUSE_MAX);
    }

    fn handle(&mut self, connection: ConnectionId, event: Event, now: Time) {
        match event {
            Event::Opened(agreed) => {
                self.stage = Stage::Open(connection);
                self.has_answered = false;
                self.learn_at = now;
                (self.tried, self.refused) = (0, 0);
                // From now on it calls no other cluster, and no other incarnation of it.
                let incarnation = agreed.origin.incarnation;
                self.local.cluster = agreed.cluster;
                self.local.origin = Origin { incarnation, life: Life(0) };
                self.endpoint.set_local(self.local.clone());
            }
            Event::Answer(request, bytes) if self.learning == Some((connection, request)) => {
                self.learning = None;
                if let Ok(Answer::Topology { nodes, .. }) = Answer::decode(&bytes) {
                    self.take_addresses(nodes);
                }
            }
            Event::Answer(request, bytes) => {
                if let Some(call) = self.sent.remove(&(connection, request)) {
                    self.handle_answer(connection, call, &bytes, now);
                }
            }
            // A node sends none to a client.
            Event::Shards(_) | Event::Request(..) => {}
        }
    }

    fn handle_answer(&mut self, connection: ConnectionId, mut call: Call, bytes: &[u8], now: Time) {
        let answer = match Answer::decode(bytes) {
            Ok(answer) => answer,
            Err(error) => return call.fail(&error.to_string()),
        };
        let error = match answer {
            Answer::Stopped => RawError::Stopped,
            Answer::Failed(reason) => RawError::NodeFailed(reason),
            Answer::NoRoom => {
                let reason = "answers were read too slowly, and there was no room for this one".to_owned();
                RawError::Network { reason, sent: true }
            }
            Answer::Deposed { shard } => {
                call.is_deposed = true;
                RawError::from(NoAnswer::Deposed { shard })
            }
            // The next primary is on another node, or there is none yet.
            Answer::NotHere { shard, .. } | Answer::NoPrimary { shard }
                if call.is_deposed && call.repeats =>
            {
                RawError::from(NoAnswer::Deposed { shard })
            }
            answer => {
                self.has_answered = true;
                self.pause = PAUSE_MIN;
                let is_repeated = call.times > 1;
                return call.end(Ok(Got { answer, is_repeated }));
            }
        };
        let is_elsewhere = call.is_deposed || !matches!(error, RawError::Network { .. });
        if is_elsewhere && self.stage == Stage::Open(connection) {
            // Answers that are under way still arrive.
            self.stage = Stage::Closed;
            self.reason = error.to_string();
            self.next = (self.next + 1) % self.addresses.len();
            self.pause(now);
        }
        if call.repeats {
            self.waiting.push_back(call);
        } else {
            call.end(Err(error));
        }
    }

    fn handle_end(&mut self, connection: ConnectionId, address: SocketAddr, ended: &Ended, now: Time) {
        let reason = format!("no connection to the node at {address}: {ended}");
        if self.stage == Stage::Dialing(connection) {
            self.not_connected(reason.clone(), is_final(ended), now);
        } else if self.stage == Stage::Open(connection) {
            self.stage = Stage::Closed;
            self.reason.clone_from(&reason);
            self.next = (self.next + 1) % self.addresses.len();
            self.dial_from = now;
            // A node that has no room for this client has none at once either.
            let is_full = refusal(ended) == Some(RefusalKind::Full);
            if !self.has_answered || is_full {
                self.pause(now);
            }
        }
        let first = (connection, RequestId(0));
        let after = (ConnectionId(connection.0 + 1), RequestId(0));
        let mut later = self.sent.split_off(&first);
        self.sent.append(&mut later.split_off(&after));
        // They come before those that were never sent, in their order.
        for (_, call) in later.into_iter().rev() {
            if call.repeats {
                self.waiting.push_front(call);
            } else {
                call.fail(&reason);
            }
        }
    }

    fn send(&mut self, now: Time) {
        let Stage::Open(connection) = self.stage else { return };
        while let Some(mut call) = self.waiting.pop_front() {
            if call.is_over(now) {
                self.end_overdue(call);
                continue;
            }
            let payload = with_time(call.within.deadline.since(now).into(), &call.ask);
            match self.endpoint.send_request(connection, &payload, now) {
                Ok(request) => {
                    call.times += 1;
                    self.sent.insert((connection, request), call);
                }
                Err(SendError::TooLong { bytes, max }) => {
                    let what = "a request over the network";
                    let refusal = Refusal::TooLong { what, len: bytes, max: max as usize };
                    call.end(Err(RawError::Refused(refusal)));
                }
                // After an answer, after bytes were read, or over the next connection.
                Err(
                    SendError::TooManyRequests { .. }
                    | SendError::WouldBlock { .. }
                    | SendError::NotOpen
                    | SendError::NoRequest(_),
                ) => return self.waiting.push_front(call),
            }
        }
    }

    /// Ends calls that are overdue, and forgets those whose callers have gone.
    fn sweep(&mut self, now: Time) {
        if now < self.sweep_at.plus(SWEEP) {
            return;
        }
        self.sweep_at = now;
        let over: Vec<_> =
            self.sent.iter().filter(|(_, call)| call.is_over(now)).map(|(at, _)| *at).collect();
        for at in over {
            self.endpoint.forget(at.0, at.1);
            if let Some(call) = self.sent.remove(&at) {
                let after = call.within.timeout;
                call.end(Err(RawError::TimedOut { after }));
            }
        }
        if self.waiting.iter().any(|call| call.is_over(now)) {
            for call in std::mem::take(&mut self.waiting) {
                if call.is_over(now) {
                    self.end_overdue(call);
                } else {
                    self.waiting.push_back(call);
                }
            }
        }
    }

    /// Ends a call that waited to be sent.
    fn end_overdue(&self, call: Call) {
        match self.stage {
            Stage::Open(_) => {
                let after = call.within.timeout;
                call.end(Err(RawError::TimedOut { after }));
            }
            Stage::Closed | Stage::Dialing(_) => {
                let (tried, time) = (self.addresses.len(), call.within.timeout.as_millis());
                let reason = if self.reason.is_empty() { "no node has answered yet" } else { &self.reason };
                call.fail(&format!("none of {tried} addresses served within {time} ms: {reason}"));
            }
        }
    }

    /// Ends all calls, and these.
    pub(super) fn fail_all(&mut self, others: VecDeque<Call>, reason: &str) {
        let sent = std::mem::take(&mut self.sent).into_values();
        for call in sent.chain(self.waiting.drain(..)).chain(others) {
            call.fail(reason);
        }
    }
}

impl Link<Tcp> {
    /// Waits until something arrives, it is woken, or the time is over.
    pub(super) fn wait(&mut self, time: Option<Duration>) {
        self.failed = self.endpoint.network_mut().wait(time).err();
    }
}

/// Whether a node refused this client for a reason that time does not change.
fn is_final(ended: &Ended) -> bool {
    if let Ended::Failed(Failure::Frame(_)) = ended {
        return true;
    }
    refusal(ended).is_some_and(|kind| match kind {
        RefusalKind::Malformed | RefusalKind::Version | RefusalKind::Cluster | RefusalKind::Identity => true,
        RefusalKind::Connected | RefusalKind::Clock | RefusalKind::Full => false,
    })
}

/// Returns the kind of the refusal by which a connection ended, if it did.
fn refusal(ended: &Ended) -> Option<RefusalKind> {
    match ended {
        Ended::Failed(Failure::Handshake(HandshakeError::Refused(refusal))) => Some(refusal.kind()),
        Ended::Failed(Failure::Handshake(HandshakeError::RefusedByOther { kind, .. })) => Some(*kind),
        _ => None,
    }
}
