//! The calls of a client over its connections, and their repetition over others: stepped, and without threads.
//!
//! One connection takes all calls that have no other way. Once a node has named the primaries, calls for the shards of another node go
//! to that one directly, over a connection of their own. If that is not there, or no longer the right one, a node forwards them.

use super::call::{Call, Got};
use super::routes::Routes;
use crate::error::RawError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::calls::Refusal;
use stead_core::ids::{Life, Micros, ShardId, Time};
use stead_net::connection::{Connection, Event, Failure, RequestId, SendError, Settings};
use stead_net::endpoint::{Ended, Endpoint};
use stead_net::frame::Origin;
use stead_net::handshake::{Local, RefusalKind};
use stead_net::native::{Answer, Ask, Primary, repeated, with_time};
use stead_net::network::{AddressError, ConnectionId, Network, check_loopback};
use stead_node::NoAnswer;

/// Pause after the first round of addresses at which no node answered, or after a connection that gave no answer; it
/// doubles with each.
const PAUSE_MIN: Micros = Micros::from_millis(10);
/// Longest pause.
const PAUSE_MAX: Micros = Micros::from_millis(500);
/// Time for which a node may be silent if the client knows other ones.
const SILENCE_MAX: Micros = Micros::from_secs(2);
/// Time for the hello of a node in the first round of addresses, if the client knows others: the socket of a node that starts takes
/// connections long before the node says hello.
const HELLO_FIRST: Micros = Micros::from_millis(200);
/// The same in later rounds: all nodes may be slow.
const HELLO_MAX: Micros = Micros::from_secs(1);
/// Time without an answer after which a client asks whether another node leads the shard of a call.
const STUCK: Micros = Micros::from_millis(200);
/// Maximum number of times that [`STUCK`] doubles for a call: once with each node from which the call was taken back, because nodes that
/// are only slow would get it again and again.
const STUCK_DOUBLINGS_MAX: u32 = 5;
/// Time for which calls do not go to a node directly after its connection has ended.
const AVOID: Micros = Micros::from_secs(1);
/// Interval at which calls are searched for those that are overdue, or whose callers have gone.
const SWEEP: Micros = Micros::from_millis(20);

/// The client whose connections these are, among those of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkId(pub(super) u64);

/// The connections of all clients of a process, and the time, as a client uses them.
pub(super) struct Net<'a, N: Network> {
    pub(super) endpoint: &'a mut Endpoint<N>,
    /// The client of each connection.
    pub(super) owners: &'a mut BTreeMap<ConnectionId, LinkId>,
    pub(super) link: LinkId,
    pub(super) now: Time,
    pub(super) wall: Time,
}

impl<N: Network> Net<'_, N> {
    fn dial(
        &mut self,
        local: &Local,
        address: SocketAddr,
        settings: Settings,
    ) -> Result<ConnectionId, AddressError> {
        self.endpoint.set_local(local.clone());
        let connection = self.endpoint.dial(address, None, self.now, self.wall)?;
        self.endpoint.set_settings(connection, settings);
        self.owners.insert(connection, self.link);
        Ok(connection)
    }
}

/// The progress of the connection for the next calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    Dialing(ConnectionId),
    Open(ConnectionId),
}

/// A connection to a node that leads shards.
struct Direct {
    connection: ConnectionId,
    is_open: bool,
}

/// The connections of a client. One takes all calls, others those for shards of their nodes; some, whose nodes shut down, may still bring
/// answers.
pub(super) struct Link {
    local: Local,
    /// The addresses that were given, then those that nodes named.
    addresses: Vec<SocketAddr>,
    /// The number of those that were given.
    given: usize,
    /// The position of the address of the connection, or of the next one to dial.
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
    routes: Routes,
    /// The connections to other nodes.
    direct: BTreeMap<SocketAddr, Direct>,
    /// The nodes to which calls do not go directly until a time.
    avoided: BTreeMap<SocketAddr, Time>,
    /// The nodes that have calls without an answer for long: each may be cut off from the others, and not know it.
    stuck: BTreeSet<SocketAddr>,
    /// Calls that wait to be sent.
    waiting: VecDeque<Call>,
    /// Calls without an answer.
    sent: BTreeMap<(ConnectionId, RequestId), Call>,
    sweep_at: Time,
}

impl Link {
    pub(super) fn new(addresses: Vec<SocketAddr>, now: Time) -> Self {
        Self {
            local: Local::stranger(),
            given: addresses.len(),
            addresses,
            next: 0,
            tried: 0,
            refused: 0,
            reason: String::new(),
            stage: Stage::Closed,
            has_answered: false,
            dial_from: now,
            pause: PAUSE_MIN,
            routes: Routes::new(now),
            direct: BTreeMap::new(),
            avoided: BTreeMap::new(),
            stuck: BTreeSet::new(),
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            sweep_at: now,
        }
    }

    /// Whether calls are under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.sent.is_empty()
    }

    /// Takes a new call.
    pub(super) fn push(&mut self, call: Call) {
        self.waiting.push_back(call);
    }

    /// Sends what can be sent, and ends the calls that are overdue. Returns the time of the next step, unless something happens before.
    pub(super) fn step<N: Network>(&mut self, net: &mut Net<'_, N>) -> Time {
        let mut until = Time(u64::MAX);
        self.sweep(net);
        if self.stage == Stage::Closed && !self.waiting.is_empty() {
            if net.now >= self.dial_from {
                self.connect(net);
            }
            if self.stage == Stage::Closed {
                until = until.min(self.dial_from);
            }
        }
        self.send(net);
        until = until.min(self.learn(net));
        if self.is_busy() {
            until = until.min(self.sweep_at.plus(SWEEP));
        }
        until
    }

    /// Returns the settings of its connections: it gives up a silent node soon if there are others.
    fn settings(&self) -> Settings {
        let all = Settings::default();
        if self.addresses.len() > 1 {
            let handshake_time_max = if self.pause == PAUSE_MIN { HELLO_FIRST } else { HELLO_MAX };
            Settings { silence_max: SILENCE_MAX, handshake_time_max, ..all }
        } else {
            all
        }
    }

    /// Asks a node for the others and what they lead if it is time; returns the time of the next request.
    fn learn<N: Network>(&mut self, net: &mut Net<'_, N>) -> Time {
        let home = self.home().map(|(connection, _)| connection);
        let mut open: Vec<(ConnectionId, SocketAddr)> = self.home().into_iter().collect();
        let direct = self.direct.iter().filter(|(_, direct)| direct.is_open);
        open.extend(direct.map(|(address, direct)| (direct.connection, *address)));
        if open.is_empty() {
            return Time(u64::MAX);
        }
        if net.now < self.routes.due() {
            return self.routes.due();
        }
        if open.iter().all(|(_, address)| self.stuck.contains(address)) {
            self.dial_another(net);
        }
        let mut unanswered = None;
        if let Some((connection, request)) = self.routes.asked() {
            if home == Some(connection) {
                self.doubt_home(net);
            }
            if open.iter().all(|(other, _)| *other == connection) {
                // The next one is on its way, if there is any.
                self.routes.ask_at(net.now.plus(STUCK));
                return self.routes.due();
            }
            net.endpoint.forget(connection, request);
            unanswered = Some(connection);
        }
        // The one that is most likely to answer.
        let heard = |(connection, address): &(ConnectionId, SocketAddr)| {
            let heard = net.endpoint.connection(*connection).map_or(Time(0), Connection::heard);
            (Some(*connection) != unanswered, !self.stuck.contains(address), heard)
        };
        let (connection, _) = open.into_iter().max_by_key(heard).expect("one is open");
        let ask = Ask::Topology { without_services: Some(true) };
        let payload = with_time(Duration::from(SILENCE_MAX), &ask.encode());
        match net.endpoint.send_request(connection, &payload, net.now) {
            Ok(request) => self.routes.note_asked(connection, request, net.now),
            Err(_) => self.routes.ask_at(net.now.plus(SWEEP)),
        }
        self.routes.due()
    }

    /// Prefers another node, because the one for all calls has not answered, and may stand still; begins a connection to one if there is
    /// none.
    fn doubt_home<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let Some((connection, address)) = self.home() else { return };
        self.next = (self.next + 1) % self.addresses.len();
        if self.promote() {
            self.direct.insert(address, Direct { connection, is_open: true });
            return;
        }
        let at = self.addresses.iter().position(|other| *other == address);
        self.next = at.expect("it is one of the addresses");
        self.dial_another(net);
    }

    /// Begins a connection to a node to which there is none, if there is one, beside that for all calls.
    fn dial_another<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let Some((_, home)) = self.home() else { return };
        let (before, after) = self.addresses.split_at(self.next);
        let others = || after.iter().chain(before).filter(|other| **other != home);
        let is_dialing = others().any(|other| self.direct.get(other).is_some_and(|direct| !direct.is_open));
        let is_new = |other: &&SocketAddr| {
            let is_avoided = self.avoided.get(other).is_some_and(|until| *until > net.now);
            !self.direct.contains_key(other) && !is_avoided
        };
        if let Some(other) = others().find(is_new).copied().filter(|_| !is_dialing) {
            self.dial_direct(net, other);
        }
    }

    /// Takes what a node knows of the others. The addresses that were given stay first.
    fn take_nodes<N: Network>(
        &mut self,
        net: &mut Net<'_, N>,
        nodes: Vec<SocketAddr>,
        primaries: Vec<Option<Primary>>,
    ) {
        let current = self.addresses[self.next];
        self.addresses.truncate(self.given);
        for node in &nodes {
            if check_loopback(*node).is_ok() && !self.addresses.contains(node) {
                self.addresses.push(*node);
            }
        }
        if self.stage != Stage::Closed && !self.addresses.contains(&current) {
            self.addresses.push(current);
        }
        let at = self.addresses.iter().position(|address| *address == current);
        self.next = at.unwrap_or(0);
        (self.tried, self.refused) = (0, 0);
        if let Stage::Open(connection) = self.stage {
            net.endpoint.set_settings(connection, self.settings());
        }
        let moved = self.routes.take(nodes, primaries);
        // The nodes that have them no longer lead their shards, and may stand still.
        let is_moved = |call: &Call| {
            let from = call.shard.and_then(|shard| moved.get(&shard));
            call.repeats && from.is_some() && from.copied() == call.sent.map(|(_, to)| to)
        };
        let calls = self.sent.iter().filter(|(_, call)| is_moved(call)).map(|(at, _)| *at).collect();
        self.take_back(net, calls);
    }

    /// Takes calls back from their nodes, to send them again before all others, in their order.
    fn take_back<N: Network>(&mut self, net: &mut Net<'_, N>, calls: Vec<(ConnectionId, RequestId)>) {
        for at in calls.into_iter().rev() {
            net.endpoint.forget(at.0, at.1);
            if let Some(mut call) = self.sent.remove(&at) {
                call.taken_back += 1;
                self.waiting.push_front(call);
            }
        }
    }

    /// Begins the connection for all calls, to the next address: it may be there already.
    fn connect<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let address = self.addresses[self.next];
        if let Some(Direct { connection, is_open }) = self.direct.remove(&address) {
            self.stage = if is_open { Stage::Open(connection) } else { Stage::Dialing(connection) };
            return;
        }
        match net.dial(&self.local, address, self.settings()) {
            Ok(connection) => {
                self.stage = Stage::Dialing(connection);
                // Its hello leaves at once.
                self.dial_from = net.now;
            }
            Err(error) => self.not_connected(error.to_string(), false, net.now),
        }
    }

    /// Makes an open connection to another node the one for all calls, if there is one; best to a node that is not stuck.
    fn promote(&mut self) -> bool {
        let count = self.addresses.len();
        let open = (0..count)
            .map(|step| (self.next + step) % count)
            .filter(|at| self.direct.get(&self.addresses[*at]).is_some_and(|direct| direct.is_open));
        let Some(at) = open.min_by_key(|at| self.stuck.contains(&self.addresses[*at])) else { return false };
        let direct = self.direct.remove(&self.addresses[at]).expect("it is there");
        self.stage = Stage::Open(direct.connection);
        (self.next, self.has_answered) = (at, true);
        (self.tried, self.refused) = (0, 0);
        true
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

    pub(super) fn handle<N: Network>(
        &mut self,
        net: &mut Net<'_, N>,
        connection: ConnectionId,
        event: Event,
    ) {
        match event {
            Event::Opened(agreed) => {
                if let Some(direct) = self.direct.values_mut().find(|direct| direct.connection == connection)
                {
                    direct.is_open = true;
                    if self.routes.is_unanswered(STUCK, net.now) || !self.stuck.is_empty() {
                        self.routes.ask_at(net.now);
                    }
                } else if self.stage == Stage::Dialing(connection) {
                    self.stage = Stage::Open(connection);
                    self.has_answered = false;
                    (self.tried, self.refused) = (0, 0);
                    if !self.waiting.iter().any(|call| call.learns) {
                        self.routes.ask_at(net.now);
                    }
                }
                // From now on it calls no other cluster, and no other incarnation of it.
                let incarnation = agreed.origin.incarnation;
                self.local.cluster = agreed.cluster;
                self.local.origin = Origin { incarnation, life: Life(0) };
            }
            Event::Answer(request, bytes) if self.routes.asked() == Some((connection, request)) => {
                self.routes.forget_asked();
                if let Ok(Answer::Topology { nodes, primaries, .. }) = Answer::decode(&bytes) {
                    self.take_nodes(net, nodes, primaries);
                }
            }
            Event::Answer(request, bytes) => {
                if let Some(call) = self.sent.remove(&(connection, request)) {
                    self.handle_answer(net, connection, call, &bytes);
                }
            }
            // A node sends none to a client.
            Event::Shards(_) | Event::Request(..) => {}
        }
    }

    fn handle_answer<N: Network>(
        &mut self,
        net: &mut Net<'_, N>,
        connection: ConnectionId,
        mut call: Call,
        bytes: &[u8],
    ) {
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
                if self.stage == Stage::Open(connection) {
                    self.has_answered = true;
                    self.pause = PAUSE_MIN;
                }
                match &answer {
                    Answer::Of(answer) => {
                        if let Some(shard) = call.shard {
                            self.routes.saw(shard, answer.epoch, net.now);
                        }
                    }
                    Answer::Topology { nodes, primaries, .. } => {
                        self.routes.note_learned(net.now);
                        self.take_nodes(net, nodes.clone(), primaries.clone());
                    }
                    _ => {}
                }
                let is_repeated = call.times > 1;
                return call.end(Ok(Got { answer, is_repeated }));
            }
        };
        let is_network = matches!(error, RawError::Network { .. });
        if call.is_deposed || !is_network {
            self.leave(net, connection, &call, &error);
        }
        if call.repeats {
            self.waiting.push_back(call);
        } else {
            call.end(Err(error));
        }
    }

    /// Sends no more calls over a connection whose node stops or has failed, or no more calls of a shard that it no longer leads. Answers
    /// that are under way still arrive.
    fn leave<N: Network>(
        &mut self,
        net: &Net<'_, N>,
        connection: ConnectionId,
        call: &Call,
        error: &RawError,
    ) {
        if let Some(shard) = call.shard.filter(|_| call.is_deposed) {
            self.routes.forget(shard, net.now);
        }
        if self.stage == Stage::Open(connection) {
            let address = self.addresses[self.next];
            self.stage = Stage::Closed;
            self.reason = error.to_string();
            self.next = (self.next + 1) % self.addresses.len();
            if call.is_deposed {
                // Its node serves other shards; the next primary of this one may not lead yet.
                self.direct.insert(address, Direct { connection, is_open: true });
                self.pause(net.now);
            } else {
                self.avoided.insert(address, net.now.plus(AVOID));
                if !self.promote() {
                    self.pause(net.now);
                }
            }
        } else if !call.is_deposed {
            self.drop_direct(connection, net.now);
        }
    }

    /// Makes no direct calls over a connection, nor to its node for a while.
    fn drop_direct(&mut self, connection: ConnectionId, now: Time) {
        let avoided = &mut self.avoided;
        self.direct.retain(|address, direct| {
            let stays = direct.connection != connection;
            if !stays {
                avoided.insert(*address, now.plus(AVOID));
            }
            stays
        });
    }

    pub(super) fn handle_end<N: Network>(
        &mut self,
        net: &Net<'_, N>,
        connection: ConnectionId,
        address: SocketAddr,
        ended: &Ended,
    ) {
        let reason = format!("no connection to the node at {address}: {ended}");
        if self.stage == Stage::Dialing(connection) {
            self.not_connected(reason.clone(), is_final(ended), net.now);
        } else if self.stage == Stage::Open(connection) {
            self.stage = Stage::Closed;
            self.reason.clone_from(&reason);
            self.next = (self.next + 1) % self.addresses.len();
            self.dial_from = net.now;
            // A node that has no room for this client has none at once either.
            let is_full = ended.refusal() == Some(RefusalKind::Full);
            if !self.promote() && (!self.has_answered || is_full) {
                self.pause(net.now);
            }
            self.avoided.insert(address, net.now.plus(AVOID));
        } else {
            self.drop_direct(connection, net.now);
        }
        if self.routes.asked().is_some_and(|(asked, _)| asked == connection) {
            self.routes.forget_asked();
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

    fn send<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let mut kept = VecDeque::new();
        while let Some(mut call) = self.waiting.pop_front() {
            if call.is_over(net.now) {
                self.end_overdue(call);
                continue;
            }
            let home = self.home();
            let direct = call.shard.and_then(|shard| self.direct_to(net, shard));
            let within = call.within.deadline.since(net.now).into();
            let payload = if call.times == 0 {
                with_time(within, &call.ask)
            } else {
                with_time(within, &repeated(&call.ask))
            };
            let mut outcome = None;
            // Over the second one if the first one takes no more.
            for (connection, address) in direct.into_iter().chain(home) {
                let sent = net.endpoint.send_request(connection, &payload, net.now);
                let is_sent = sent.is_ok() || matches!(sent, Err(SendError::TooLong { .. }));
                outcome = Some((connection, address, sent));
                if is_sent {
                    break;
                }
            }
            match outcome {
                Some((connection, address, Ok(request))) => {
                    call.times += 1;
                    call.sent = Some((net.now, address));
                    self.sent.insert((connection, request), call);
                }
                Some((.., Err(SendError::TooLong { bytes, max }))) => {
                    let what = "a request over the network";
                    let refusal = Refusal::TooLong { what, len: bytes, max: max as usize };
                    call.end(Err(RawError::Refused(refusal)));
                }
                // After an answer, after bytes were read, or over the next connection.
                Some((.., Err(_))) => {
                    self.waiting.push_front(call);
                    break;
                }
                None => {
                    kept.push_back(call);
                    if self.direct.is_empty() {
                        break;
                    }
                }
            }
        }
        kept.append(&mut self.waiting);
        self.waiting = kept;
    }

    /// Returns the connection for all calls, with its node.
    fn home(&self) -> Option<(ConnectionId, SocketAddr)> {
        match self.stage {
            Stage::Open(connection) => Some((connection, self.addresses[self.next])),
            Stage::Closed | Stage::Dialing(_) => None,
        }
    }

    /// Returns the connection to the primary of a shard if that is another one, and dials it if it is not there.
    fn direct_to<N: Network>(
        &mut self,
        net: &mut Net<'_, N>,
        shard: ShardId,
    ) -> Option<(ConnectionId, SocketAddr)> {
        let address = self.routes.primary_of(shard)?;
        if self.home().is_some_and(|(_, home)| home == address) {
            return None;
        }
        if let Some(direct) = self.direct.get(&address) {
            return direct.is_open.then_some((direct.connection, address));
        }
        // While there is no connection for all calls, that comes first.
        if self.home().is_none() || self.avoided.get(&address).is_some_and(|until| *until > net.now) {
            return None;
        }
        self.dial_direct(net, address);
        None
    }

    /// Begins a connection to a node for the calls of its shards.
    fn dial_direct<N: Network>(&mut self, net: &mut Net<'_, N>, address: SocketAddr) {
        self.avoided.remove(&address);
        match net.dial(&self.local, address, self.settings()) {
            Ok(connection) => {
                self.direct.insert(address, Direct { connection, is_open: false });
            }
            Err(_) => {
                self.avoided.insert(address, net.now.plus(AVOID));
            }
        }
    }

    /// Ends calls that are overdue, and forgets those whose callers have gone.
    fn sweep<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let now = net.now;
        if now < self.sweep_at.plus(SWEEP) {
            return;
        }
        self.sweep_at = now;
        let over: Vec<_> =
            self.sent.iter().filter(|(_, call)| call.is_over(now)).map(|(at, _)| *at).collect();
        for at in over {
            net.endpoint.forget(at.0, at.1);
            if let Some(call) = self.sent.remove(&at) {
                call.time_out();
            }
        }
        self.unstick(net);
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

    /// Looks for calls that have had no answer for a while. Another node may know of a new primary, and those that another one can take go
    /// there: the node that has them may be cut off from the others, and not know it.
    fn unstick<N: Network>(&mut self, net: &mut Net<'_, N>) {
        let now = net.now;
        let is_stuck = |call: &&Call| {
            (call.shard.is_some() || call.learns) && call.sent.is_some_and(|(at, _)| at.plus(STUCK) <= now)
        };
        let stuck = || self.sent.values().filter(is_stuck);
        self.stuck = stuck().filter_map(|call| Some(call.sent?.1)).collect();
        if self.stuck.is_empty() {
            return;
        }
        let has_no_primary = stuck().any(|call| self.primary_of(call).is_none());
        self.routes.hurry(now);
        if has_no_primary && self.home().is_some_and(|(_, home)| self.stuck.contains(&home)) {
            let mut open = self.direct.iter().filter(|(_, direct)| direct.is_open);
            if open.any(|(address, _)| !self.stuck.contains(address)) {
                self.doubt_home(net);
            } else {
                // One that is stuck, too, is no better, and the two would take turns.
                self.dial_another(net);
            }
        }
        let can_move = |call: &Call| {
            let Some((at, from)) = call.sent else { return false };
            let pause = Micros(STUCK.0 << call.taken_back.min(STUCK_DOUBLINGS_MAX));
            let to = self.primary_of(call).or_else(|| self.home().map(|(_, home)| home));
            call.repeats && at.plus(pause) <= now && to.is_some_and(|to| to != from && self.is_open(to))
        };
        let moves = self.sent.iter().filter(|(_, call)| is_stuck(call) && can_move(call));
        let calls = moves.map(|(at, _)| *at).collect();
        self.take_back(net, calls);
    }

    /// Whether there is an open connection to a node.
    fn is_open(&self, address: SocketAddr) -> bool {
        let is_home = self.home().is_some_and(|(_, home)| home == address);
        is_home || self.direct.get(&address).is_some_and(|direct| direct.is_open)
    }

    /// Returns the node that leads the shard of a call, if it has one and that is known.
    fn primary_of(&self, call: &Call) -> Option<SocketAddr> {
        self.routes.primary_of(call.shard?)
    }

    /// Ends a call that waited to be sent.
    fn end_overdue(&self, call: Call) {
        match self.stage {
            Stage::Open(_) => call.time_out(),
            Stage::Closed | Stage::Dialing(_) => {
                let (tried, time) = (self.addresses.len(), call.within.timeout.as_millis());
                let reason = if self.reason.is_empty() { "no node has answered yet" } else { &self.reason };
                call.fail(&format!("none of {tried} addresses served within {time} ms: {reason}"));
            }
        }
    }

    /// Ends all calls.
    pub(super) fn fail_all(&mut self, reason: &str) {
        let sent = std::mem::take(&mut self.sent).into_values();
        for call in sent.chain(self.waiting.drain(..)) {
            call.fail(reason);
        }
    }
}

/// Whether a node refused this client for a reason that time does not change.
fn is_final(ended: &Ended) -> bool {
    if let Ended::Failed(Failure::Frame(_)) = ended {
        return true;
    }
    ended.refusal().is_some_and(|kind| match kind {
        RefusalKind::Malformed
        | RefusalKind::Version
        | RefusalKind::Cluster
        | RefusalKind::Identity
        | RefusalKind::OlderLife => true,
        RefusalKind::Connected | RefusalKind::Clock | RefusalKind::Full => false,
    })
}
