//! The clients of a cluster: each has one write at a time, and sends it to one node after another until it is answered. Reads, and
//! writes without an identity, are sent once, and so is what an operator asks for.

use super::env::{PROCESSES, SERVICE, called, number_in};
use super::judge::{Answered, Floor};
use super::marks::{ClusterMark, ClusterMarks};
use super::model::Model;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Query, Read, Refusal, Request};
use stead_core::ids::{BodyHash, CallToken, Colour, Index, Micros, RequestNumber, SessionId, ShardId};
use stead_core::key::Key;
use stead_core::look::{Found, Look};
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::topology::Topology;
use stead_node::NoAnswer;

/// A call as it goes to a node.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Open { shard: ShardId, session: SessionId },
    Request { shard: ShardId, request: Request },
    Query { shard: ShardId, query: Query },
    Look { shard: ShardId, look: Look },
    Delete { shard: ShardId, process: Key },
}

impl Ask {
    pub(super) fn shard(&self) -> ShardId {
        match self {
            Self::Open { shard, .. }
            | Self::Request { shard, .. }
            | Self::Query { shard, .. }
            | Self::Look { shard, .. }
            | Self::Delete { shard, .. } => *shard,
        }
    }

    /// Returns what comes later than the same: a shard may have had it.
    pub(super) fn repeated(&self) -> Self {
        let mut ask = self.clone();
        if let Self::Request { request, .. } = &mut ask {
            request.is_first = false;
        }
        ask
    }
}

/// The session of a client with a shard.
struct Session {
    id: SessionId,
    /// The last entry that the first answer to its opening includes; `None` before that.
    opened: Option<LogPoint>,
    last: RequestNumber,
    /// It has the replies up to this one.
    confirmed: RequestNumber,
}

/// A write of a client that has no answer.
struct Pending {
    number: u32,
    process: Key,
    shard: ShardId,
    identity: Identity,
    /// The answers that were given before it was first sent.
    floor: Floor,
    /// The answer that has come, once the client asks again for it.
    answered: Option<(u32, LogPoint)>,
    /// The number of its last try.
    call: u64,
    /// The entry that this try brought along as seen.
    seen: Option<LogPoint>,
    /// Whether it was sent.
    is_sent: bool,
}

/// A call that is sent once.
struct Once {
    client: usize,
    process: Key,
    shard: ShardId,
    floor: Floor,
    /// The entry that it brought along as seen.
    seen: Option<LogPoint>,
    kind: OnceKind,
}

#[derive(Clone, Copy)]
enum OnceKind {
    /// A write without identity, by its number.
    Write(u32),
    Read,
    /// A stale read, with the time at which it was sent and the age that is allowed.
    Stale(u64, Option<Micros>),
    /// A look at the process's list.
    Look,
    /// A list of the shard's dead letters, and how many one has shown before it was sent.
    Letters(usize),
    Delete,
}

#[derive(Default)]
struct Client {
    pending: Option<Pending>,
    /// By shard.
    sessions: BTreeMap<ShardId, Session>,
    /// By shard, the newest entry that an answer included.
    seen: BTreeMap<ShardId, LogPoint>,
}

impl Client {
    /// Notes what an answer included.
    fn saw(&mut self, shard: ShardId, answer: &Answer) {
        let point = point_of(answer);
        if point.index > Index(0) {
            let newest = self.seen.entry(shard).or_default();
            *newest = point.max(*newest);
        }
    }
}

pub(super) struct Clients {
    all: Vec<Client>,
    /// By the number of a try, its client.
    tries: BTreeMap<u64, usize>,
    once: BTreeMap<u64, Once>,
    last_call: u64,
    last_number: u32,
    last_session: u128,
    /// Whether operators delete processes.
    may_delete: bool,
    pub(super) answered: u64,
    pub(super) asked_again: u64,
}

impl Clients {
    pub(super) fn new(count: usize, may_delete: bool) -> Self {
        Self {
            all: (0..count).map(|_| Client::default()).collect(),
            tries: BTreeMap::new(),
            once: BTreeMap::new(),
            last_call: 0,
            last_number: 0,
            last_session: 0,
            may_delete,
            answered: 0,
            asked_again: 0,
        }
    }

    pub(super) fn are_idle(&self) -> bool {
        self.all.iter().all(|client| client.pending.is_none())
    }

    /// Returns the client of a try that still counts.
    pub(super) fn client_of(&self, call: u64) -> Option<usize> {
        self.tries.get(&call).copied()
    }

    /// Begins a new write of a client, unless it has one. Returns whether it had none.
    pub(super) fn begin(&mut self, at: usize, topology: &Topology, model: &Model, rng: &mut Rng) -> bool {
        if self.all[at].pending.is_some() {
            return false;
        }
        self.last_number += 1;
        let number = self.last_number;
        let (process, shard) = any_process(topology, rng);
        let identity = if rng.bool() {
            let key = Blob::from(number.to_be_bytes().as_slice());
            Identity::Idempotency { key, body_hash: BodyHash([0; 16]) }
        } else {
            self.next_in_session(at, shard)
        };
        let floor = model.floor(&process);
        let (answered, call, seen) = (None, 0, None);
        self.all[at].pending =
            Some(Pending { number, process, shard, identity, floor, answered, call, seen, is_sent: false });
        true
    }

    /// Returns the next identity of a client in its session with a shard, which it begins if there is none.
    fn next_in_session(&mut self, at: usize, shard: ShardId) -> Identity {
        let last_session = &mut self.last_session;
        let fresh = || {
            *last_session += 1;
            Session {
                id: SessionId(*last_session),
                opened: None,
                last: RequestNumber(0),
                confirmed: RequestNumber(0),
            }
        };
        let session = self.all[at].sessions.entry(shard).or_insert_with(fresh);
        session.last = RequestNumber(session.last.0 + 1);
        Identity::Session { session: session.id, number: session.last, confirmed: session.confirmed }
    }

    /// Begins a call of a client that is sent once: a read of any kind, a write without identity, or what an operator asks for.
    pub(super) fn begin_once(
        &mut self,
        client: usize,
        now: u64,
        topology: &Topology,
        model: &mut Model,
        rng: &mut Rng,
    ) -> (u64, Ask) {
        self.last_call += 1;
        if rng.u8(..4) == 0 {
            return self.begin_operation(client, topology, model, rng);
        }
        let (process, shard) = any_process(topology, rng);
        let (floor, seen) = (model.floor(&process), self.all[client].seen.get(&shard).copied());
        let read = match rng.u8(..6) {
            0 => None,
            1 => Some(Read::Linearizable),
            2 => Some(Read::Primary),
            3 => Some(Read::Service),
            4 => Some(Read::Stale { max_lag: None }),
            _ => Some(Read::Stale { max_lag: Some(Micros(rng.u64(..300_000))) }),
        };
        let (kind, ask) = match read {
            None => {
                self.last_number += 1;
                let request = request(&process, self.last_number, Identity::None, seen);
                let ask = Ask::Request { shard, request };
                (OnceKind::Write(self.last_number), ask)
            }
            Some(read) => {
                let kind = match read {
                    Read::Stale { max_lag } => OnceKind::Stale(now, max_lag),
                    _ => OnceKind::Read,
                };
                let (token, process, payload) = (CallToken(0), process.clone(), Blob::empty());
                let query = Query { token, process, payload, principal: "alice".into(), read, seen };
                (kind, Ask::Query { shard, query })
            }
        };
        self.once.insert(self.last_call, Once { client, process, shard, floor, seen, kind });
        (self.last_call, ask)
    }

    /// Begins a look, a list of dead letters or a deletion, of an operator, who brings along nothing that was seen.
    fn begin_operation(
        &mut self,
        client: usize,
        topology: &Topology,
        model: &mut Model,
        rng: &mut Rng,
    ) -> (u64, Ask) {
        let (process, shard) = any_process(topology, rng);
        let (kind, ask) = match rng.u8(..3) {
            0 => {
                let look = Look::DeadLetters { from: Index(0), limit: u32::MAX, room: u64::MAX };
                (OnceKind::Letters(model.letters_shown(shard)), Ask::Look { shard, look })
            }
            1 if self.may_delete => {
                model.note_deletion(&process);
                (OnceKind::Delete, Ask::Delete { shard, process: process.clone() })
            }
            _ => (OnceKind::Look, Ask::Look { shard, look: Look::State { process: process.clone() } }),
        };
        let (floor, seen) = (model.floor(&process), None);
        self.once.insert(self.last_call, Once { client, process, shard, floor, seen, kind });
        (self.last_call, ask)
    }

    /// Returns the next try of a client's write, with its number.
    pub(super) fn next_try(&mut self, at: usize) -> Option<(u64, Ask)> {
        let client = &mut self.all[at];
        let pending = client.pending.as_mut()?;
        self.last_call += 1;
        let (call, shard) = (self.last_call, pending.shard);
        self.tries.remove(&pending.call);
        self.tries.insert(call, at);
        (pending.call, pending.seen) = (call, None);
        if let Identity::Session { session, .. } = pending.identity
            && client.sessions.get(&shard).is_some_and(|session| session.opened.is_none())
        {
            return Some((call, Ask::Open { shard, session }));
        }
        pending.seen = client.seen.get(&shard).copied();
        let mut request = request(&pending.process, pending.number, pending.identity.clone(), pending.seen);
        request.is_first = !std::mem::replace(&mut pending.is_sent, true);
        Some((call, Ask::Request { shard, request }))
    }

    /// Handles the result of a client's try that still counts. Returns whether the write is over.
    pub(super) fn hear(
        &mut self,
        (at, call): (usize, u64),
        result: Result<Answer, NoAnswer>,
        model: &mut Model,
        now: u64,
        asks_again: bool,
        marks: &mut ClusterMarks,
    ) -> Result<bool, Violation> {
        let client = &mut self.all[at];
        let pending = client.pending.as_ref().expect("only tries of a write without an answer count");
        if let Ok(answer) = &result {
            let (shard, seen) = (pending.shard, pending.seen);
            let is_report = model.judge_report(shard, seen, answer)?;
            client.saw(shard, answer);
            if is_report {
                marks.hit(ClusterMark::LossReported);
                return Ok(false);
            }
        }
        let pending = client.pending.as_mut().expect("it was found above");
        let session = client.sessions.get_mut(&pending.shard);
        let (reply, point) = match result.map(|answer| (point_of(&answer), answer.result)) {
            Ok((point, Ok(Reply::Ok(reply)))) => (reply, point),
            Ok((_, Err(Refusal::UnknownSession(id))))
                if session.as_ref().is_some_and(|session| {
                    let is_lost = session.opened.is_some_and(|opened| model.has_lost(pending.shard, opened));
                    session.id == id && is_lost
                }) =>
            {
                // Its opening was answered before it was committed, and is lost with all that came after.
                let (shard, number) = (pending.shard, pending.number);
                client.sessions.remove(&shard);
                let identity = self.next_in_session(at, shard);
                let pending = self.all[at].pending.as_mut().filter(|pending| pending.number == number);
                let pending = pending.expect("it was found above");
                (pending.identity, pending.is_sent) = (identity, false);
                return Ok(false);
            }
            // Its call came twice, and the client has a new session since.
            Ok((_, Err(Refusal::UnknownSession(id))))
                if session.as_ref().is_none_or(|session| session.id != id) =>
            {
                return Ok(false);
            }
            Ok((
                _,
                Err(
                    refusal @ (Refusal::UnknownSession(_)
                    | Refusal::Confirmed(_)
                    | Refusal::Poisoned { .. }
                    | Refusal::IdempotencyConflict),
                ),
            )) => {
                return Err(Violation::new(7, format!("request {}: {refusal}", pending.number)));
            }
            Ok((_, Ok(Reply::Err(_)) | Err(_))) | Err(_) => return Ok(false),
        };
        if let (Identity::Session { .. }, Some(session)) = (&pending.identity, session) {
            if session.opened.is_none() {
                session.opened = Some(point);
                return Ok(false);
            }
            session.confirmed = session.last;
        }
        let Some(len) = number_in(&reply) else {
            return Err(Violation::new(7, format!("request {} was answered {reply:?}", pending.number)));
        };
        let (number, shard, process) = (pending.number, pending.shard, pending.process.to_string());
        if let Some((before, at)) = pending.answered.replace((len, point)) {
            self.asked_again += 1;
            if before != len && !model.has_lost(shard, at) {
                let what = format!("request {number} was answered {before}, and {len} to a retry");
                return Err(Violation::new(7, what));
            }
        } else {
            self.answered += 1;
        }
        let answered = Answered { shard, process, point, number: Some(number), count: len };
        model.judge(now, answered, &pending.floor)?;
        if asks_again {
            return Ok(false);
        }
        self.tries.remove(&call);
        client.pending = None;
        Ok(true)
    }

    /// Handles the result of a call that was sent once.
    pub(super) fn hear_once(
        &mut self,
        call: u64,
        result: Result<Answer, NoAnswer>,
        model: &mut Model,
        now: u64,
        marks: &mut ClusterMarks,
    ) -> Result<(), Violation> {
        let Some(Once { client, process, shard, floor, seen, kind }) = self.once.remove(&call) else {
            return Ok(());
        };
        if let Ok(answer) = &result {
            // A stale read promises no more than its age.
            let seen = seen.filter(|_| !matches!(kind, OnceKind::Stale(..)));
            let is_report = model.judge_report(shard, seen, answer)?;
            self.all[client].saw(shard, answer);
            if is_report {
                marks.hit(ClusterMark::LossReported);
                return Ok(());
            }
        }
        let Ok(Answer { result: Ok(Reply::Ok(ref reply)), staleness, .. }) = result else { return Ok(()) };
        let point = point_of(result.as_ref().expect("it is an answer"));
        let process = process.to_string();
        let bad = || Violation::new(7, format!("a call of {process} was answered {reply:?}"));
        let count = match kind {
            OnceKind::Look | OnceKind::Letters(_) => {
                let found = Found::decode(reply).map_err(|_| bad())?;
                return match (kind, found) {
                    (OnceKind::Look, Found::State(list)) => {
                        marks.hit(ClusterMark::Looked);
                        let list = list.unwrap_or_else(Blob::empty);
                        model.judge_look(now, (shard, process, point), &list, &floor)
                    }
                    (OnceKind::Letters(least), Found::DeadLetters { found, next: None }) => {
                        if !found.is_empty() {
                            marks.hit(ClusterMark::LettersListed);
                        }
                        model.judge_letters(shard, point, &found, least)
                    }
                    _ => Err(bad()),
                };
            }
            OnceKind::Delete => {
                let count = (**reply).try_into().map(u64::from_be_bytes).map_err(|_| bad())?;
                if count > 0 {
                    marks.hit(ClusterMark::Deleted);
                }
                return model.judge_deletion(now, (shard, process, point), count, &floor);
            }
            _ => number_in(reply).ok_or_else(bad)?,
        };
        let number = match kind {
            OnceKind::Stale(sent, asked) => {
                marks.hit(ClusterMark::StaleRead);
                return model.judge_stale((shard, &process, point, count), sent, staleness, asked);
            }
            OnceKind::Write(number) => Some(number),
            _ => None,
        };
        marks.hit(if number.is_some() { ClusterMark::Anonymous } else { ClusterMark::Read });
        model.judge(now, Answered { shard, process, point, number, count }, &floor)
    }
}

fn any_process(topology: &Topology, rng: &mut Rng) -> (Key, ShardId) {
    let process = called(rng.u32(..PROCESSES));
    let service = topology.service_id(SERVICE).expect("the only service");
    let shard = topology.shard_of(service, &process);
    (process, shard)
}

fn request(process: &Key, number: u32, identity: Identity, seen: Option<LogPoint>) -> Request {
    Request {
        token: CallToken(0),
        process: process.clone(),
        payload: Blob::from(number.to_be_bytes().as_slice()),
        principal: Arc::from("alice"),
        identity,
        colour: Colour(0),
        seen,
        is_first: false,
    }
}

fn point_of(answer: &Answer) -> LogPoint {
    LogPoint { epoch: answer.epoch, index: answer.index }
}
