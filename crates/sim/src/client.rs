//! Clients: they call, lose answers, retry, repeat answered calls, and compare the answers.

use crate::marks::{Mark, Marks};
use crate::profile::one_in;
use crate::violation::Violation;
use crate::workload::{Answered, Call, CallId, Workload};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Misuse, Query, Read, Refusal, Request};
use stead_core::entry::Cause;
use stead_core::ids::{
    BodyHash, CallToken, Colour, Incarnation, Index, Micros, RequestNumber, Served, SessionId, ShardId,
};
use stead_core::shard::Input;
use stead_core::topology::Topology;
use xxhash_rust::xxh3::xxh3_128;

/// A frame to a shard of the node, if the node lives.
pub(crate) type Frame = (ShardId, Input);

/// All clients of a run.
pub(crate) struct Clients {
    /// Number of calls of a session after which its client confirms replies.
    pub(crate) confirm_every: u64,
    /// One in this many sessions is opened without waiting for the answer; 0 for none.
    pub(crate) unawaited: u32,
    clients: Vec<Client>,
    calls: Vec<Calling>,
    /// Calls that were sent, by the identity of their retries.
    known: BTreeMap<[u8; 16], CallId>,
    sessions: Vec<Session>,
    /// Calls that have been answered.
    pub(crate) answered: u64,
    pub(crate) abandoned: u64,
}

struct Client {
    style: Style,
    principal: Arc<str>,
    colour: Colour,
    /// By shard, the last entry that any answer includes.
    seen: BTreeMap<ShardId, Index>,
    /// By shard, the session in use.
    sessions: BTreeMap<ShardId, usize>,
    pending: BTreeSet<CallId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Session,
    Keyed,
    Anonymous,
}

struct Session {
    client: usize,
    shard: ShardId,
    id: SessionId,
    open: bool,
    /// Whether its requests follow its opening, whose answer is not waited for.
    is_unawaited: bool,
    next: RequestNumber,
    /// The highest number that any request confirmed.
    confirmed: RequestNumber,
    /// Numbers above `prefix` whose call is over.
    over: BTreeSet<RequestNumber>,
    /// All calls up to this number are over.
    prefix: RequestNumber,
    attempts: u8,
}

struct Calling {
    client: usize,
    shard: ShardId,
    call: Call,
    name: Name,
    attempts: u8,
    /// Number of sendings of this call; only the retry planned by the last one counts.
    tries: u32,
    born: u64,
    /// The entries that its client had seen when it was first sent.
    seen: Option<Vec<(ShardId, Index)>>,
    end: Option<Answered>,
}

/// The identity by which the call's retries are recognised.
#[derive(Clone, Copy)]
enum Name {
    Session { session: usize, number: RequestNumber },
    Key,
    None,
}

/// The consequences of an answer.
#[derive(Default)]
pub(crate) struct Reaction {
    /// Calls to send now.
    pub(crate) send: Vec<CallId>,
    /// A call that was answered just now.
    pub(crate) done: Option<CallId>,
}

/// The bit of a token that marks the opening of a session.
const OPENING: u64 = 1 << 63;

/// The token of the opening of a session for whose answer no caller waits.
pub(crate) const UNAWAITED: CallToken = CallToken(u64::MAX);

/// The bit of a token that marks a known idempotency key with another body.
const CONFLICTING: u64 = 1 << 61;

/// Returns the call of a client's token, unless it opens a session or must be refused.
pub(crate) fn call_of(token: CallToken) -> Option<CallId> {
    (token.0 & (OPENING | CONFLICTING) == 0).then_some(token.0 >> 8)
}

impl Clients {
    pub(crate) fn new(rng: &mut Rng, count: usize, incarnation: Incarnation) -> Self {
        let client = |at: usize| Client {
            style: [Style::Session, Style::Session, Style::Keyed, Style::Anonymous][rng.usize(..4)],
            principal: Arc::from(format!("client-{incarnation}-{}", at / 2)),
            colour: Colour(0),
            seen: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pending: BTreeSet::new(),
        };
        Self {
            clients: (0..count).map(client).collect(),
            calls: Vec::new(),
            known: BTreeMap::new(),
            sessions: Vec::new(),
            confirm_every: 1,
            unawaited: 0,
            answered: 0,
            abandoned: 0,
        }
    }

    /// Returns the number of calls that wait for their answers.
    pub(crate) fn pending(&self) -> usize {
        self.clients.iter().map(|c| c.pending.len()).sum()
    }

    /// Returns all calls that wait.
    pub(crate) fn pending_calls(&self) -> Vec<CallId> {
        self.clients.iter().flat_map(|c| c.pending.iter().copied()).collect()
    }

    /// Returns the number of times that a call was sent.
    pub(crate) fn tries(&self, id: CallId) -> u32 {
        self.calls[id as usize].tries
    }

    /// Whether a call still waits since its sending of this number.
    pub(crate) fn waits_since(&self, id: CallId, tries: u32) -> bool {
        self.tries(id) == tries && self.clients[self.calls[id as usize].client].pending.contains(&id)
    }

    /// Makes a client's next call, if it may have another one open.
    pub(crate) fn call(
        &mut self,
        client: usize,
        window: usize,
        now: u64,
        rng: &mut Rng,
        topology: &Topology,
        workload: &mut dyn Workload,
    ) -> Option<CallId> {
        if self.clients[client].pending.len() >= window {
            return None;
        }
        let id = self.calls.len() as CallId;
        let call = workload.next(rng, topology, client, id)?;
        let shard = topology.shard_of(call.service, &call.key);
        let name = match self.clients[client].style {
            _ if call.query => Name::None,
            Style::Session => {
                let session = self.session(client, shard, rng);
                let number = self.sessions[session].next;
                self.sessions[session].next = number.next();
                Name::Session { session, number }
            }
            Style::Keyed => Name::Key,
            Style::Anonymous => Name::None,
        };
        workload.invoked(id, &call);
        self.calls.push(Calling {
            client,
            shard,
            call,
            name,
            attempts: 0,
            tries: 0,
            born: now,
            seen: None,
            end: None,
        });
        self.clients[client].pending.insert(id);
        Some(id)
    }

    fn session(&mut self, client: usize, shard: ShardId, rng: &mut Rng) -> usize {
        if let Some(&session) = self.clients[client].sessions.get(&shard) {
            return session;
        }
        let is_unawaited = one_in(rng, self.unawaited);
        self.sessions.push(Session {
            client,
            shard,
            id: SessionId(rng.u128(..)),
            open: false,
            is_unawaited,
            next: RequestNumber(1),
            confirmed: RequestNumber(0),
            over: BTreeSet::new(),
            prefix: RequestNumber(0),
            attempts: 0,
        });
        let session = self.sessions.len() - 1;
        self.clients[client].sessions.insert(shard, session);
        session
    }

    /// Returns the opening of a call's session, if it is not open and the call does not wait for that; it counts as open then.
    pub(crate) fn open_unawaited(&mut self, id: CallId) -> Option<Frame> {
        let Name::Session { session, .. } = self.calls[id as usize].name else { return None };
        let session = &mut self.sessions[session];
        if !session.is_unawaited || session.open {
            return None;
        }
        session.open = true;
        let principal = Arc::clone(&self.clients[session.client].principal);
        Some((session.shard, Input::OpenSession { token: UNAWAITED, session: session.id, principal }))
    }

    /// Returns the frame of a call's next attempt; `None` if it may not be tried again. `keyed_age` is the maximum age
    /// of a call with an idempotency key, because after the key's life a retry would be a new request.
    pub(crate) fn send(&mut self, id: CallId, now: u64, keyed_age: u64, rng: &mut Rng) -> Option<Frame> {
        let calling = &mut self.calls[id as usize];
        calling.tries += 1;
        let client = &self.clients[calling.client];
        let identity = match calling.name {
            Name::Session { session: at, number } => {
                let session = &mut self.sessions[at];
                if !session.open {
                    session.attempts = session.attempts.wrapping_add(1);
                    let token = CallToken(OPENING | (at as u64) << 8 | u64::from(session.attempts));
                    let principal = Arc::clone(&client.principal);
                    return Some((
                        session.shard,
                        Input::OpenSession { token, session: session.id, principal },
                    ));
                }
                // Some replies are left unconfirmed, so that there are calls to repeat.
                let limit = session.prefix.0.min(number.0 - 1);
                let confirms = number.0.is_multiple_of(self.confirm_every);
                let limit = if confirms { limit } else { limit.min(session.confirmed.0) };
                let confirmed = RequestNumber(if limit > session.confirmed.0 {
                    rng.u64(session.confirmed.0..=limit)
                } else {
                    limit
                });
                if calling.end.is_none() {
                    session.confirmed = session.confirmed.max(confirmed);
                }
                Identity::Session { session: session.id, number, confirmed }
            }
            Name::Key => {
                if now.saturating_sub(calling.born) > keyed_age {
                    self.abandon(id);
                    return None;
                }
                let key = Blob::from(&id.to_be_bytes()[..]);
                Identity::Idempotency {
                    key,
                    body_hash: BodyHash(xxh3_128(&calling.call.payload).to_be_bytes()),
                }
            }
            Name::None if calling.attempts > 0 && !calling.call.query => {
                // Whether it was applied stays unknown.
                self.abandon(id);
                return None;
            }
            Name::None => Identity::None,
        };
        // The caller of a call with a key may have made it before.
        let is_first = calling.attempts == 0 && matches!(calling.name, Name::Session { .. });
        calling.attempts = calling.attempts.wrapping_add(1).max(1);
        if calling.seen.is_none() && !calling.call.query {
            calling.seen = Some(client.seen.iter().map(|(shard, index)| (*shard, *index)).collect());
        }
        let token = CallToken(id << 8 | u64::from(calling.attempts));
        let (process, payload) = (calling.call.key.clone(), calling.call.payload.clone());
        let principal = Arc::clone(&client.principal);
        let input = if calling.call.query {
            Input::Query(Query { token, process, payload, principal, read: Read::Service, seen: None })
        } else {
            Input::Request(Request {
                token,
                process,
                payload,
                principal,
                identity,
                colour: client.colour,
                seen: None,
                is_first,
            })
        };
        let shard = calling.shard;
        if let Some(identity) = self.identity(id) {
            self.known.insert(identity, id);
        }
        Some((shard, input))
    }

    /// Returns a request under the key of an answered call, with the body of another call; `None` if the call has no
    /// key, or no other call was made to its service. It must be refused.
    pub(crate) fn conflict(&self, id: CallId, now: u64, keyed_age: u64, rng: &mut Rng) -> Option<Frame> {
        let calling = &self.calls[id as usize];
        let keyed = matches!(calling.name, Name::Key) && now.saturating_sub(calling.born) <= keyed_age;
        let others = |call: &&Calling| {
            !call.call.query
                && call.call.service == calling.call.service
                && call.call.payload != calling.call.payload
        };
        let others: Vec<&Calling> = self.calls.iter().rev().take(16).filter(others).collect();
        if !keyed || others.is_empty() {
            return None;
        }
        let payload = others[rng.usize(..others.len())].call.payload.clone();
        let client = &self.clients[calling.client];
        let identity = Identity::Idempotency {
            key: Blob::from(&id.to_be_bytes()[..]),
            body_hash: BodyHash(xxh3_128(&payload).to_be_bytes()),
        };
        let input = Input::Request(Request {
            token: CallToken(CONFLICTING | id << 8),
            process: calling.call.key.clone(),
            payload,
            principal: Arc::clone(&client.principal),
            identity,
            colour: client.colour,
            seen: None,
            is_first: false,
        });
        Some((calling.shard, input))
    }

    /// Returns the hash of a call's own body, for a planted bug.
    pub(crate) fn body_hash(&self, token: CallToken) -> Option<BodyHash> {
        let id = (token.0 & CONFLICTING != 0).then_some((token.0 & !CONFLICTING) >> 8)?;
        Some(BodyHash(xxh3_128(&self.calls[id as usize].call.payload).to_be_bytes()))
    }

    /// Returns the entries that the client of a request had seen when it first sent it, by the identity of the request.
    pub(crate) fn seen_before(&self, identity: &[u8; 16]) -> Option<&[(ShardId, Index)]> {
        self.calls[*self.known.get(identity)? as usize].seen.as_deref()
    }

    /// Returns the session that a token opens.
    pub(crate) fn opened_by(&self, token: CallToken) -> Option<SessionId> {
        let session = (token.0 & OPENING != 0).then_some((token.0 & !OPENING) >> 8)?;
        self.sessions.get(session as usize).map(|session| session.id)
    }

    /// Returns the identity by which a shard recognises the retries of a call.
    pub(crate) fn identity(&self, id: CallId) -> Option<[u8; 16]> {
        let calling = self.calls.get(id as usize)?;
        let cause = match calling.name {
            Name::Session { session, number } => Cause::Request {
                session: self.sessions[session].id,
                number,
                confirmed: RequestNumber(0),
                ttl: Micros(0),
            },
            Name::Key => Cause::Idempotent {
                principal: self.clients[calling.client].principal.to_string(),
                key: Blob::from(&id.to_be_bytes()[..]),
                body_hash: BodyHash([0; 16]),
                expires: Served(0),
            },
            Name::None => return None,
        };
        cause.identity(&calling.call.key)
    }

    /// Gives a call up: its outcome stays unknown.
    pub(crate) fn abandon(&mut self, id: CallId) {
        let calling = &self.calls[id as usize];
        if self.clients[calling.client].pending.remove(&id) {
            self.abandoned += 1;
            self.close(id);
        }
    }

    /// Ends a call, so that its number can be confirmed later.
    fn close(&mut self, id: CallId) {
        if let Name::Session { session, number } = self.calls[id as usize].name {
            let session = &mut self.sessions[session];
            session.over.insert(number);
            while session.over.remove(&session.prefix.next()) {
                session.prefix = session.prefix.next();
            }
        }
    }

    /// Whether an answered call may be repeated: its reply is kept for its client.
    pub(crate) fn may_ask_again(&self, id: CallId) -> bool {
        let calling = &self.calls[id as usize];
        matches!(calling.end, Some(Ok(_))) && !matches!(calling.name, Name::None)
    }

    /// Handles an answer that arrives at its client.
    pub(crate) fn answer(
        &mut self,
        answer: Answer,
        workload: &mut dyn Workload,
        marks: &mut Marks,
    ) -> Result<Reaction, Violation> {
        if answer.token.0 & OPENING != 0 {
            return Ok(self.opened(((answer.token.0 & !OPENING) >> 8) as usize, &answer));
        }
        let mut reaction = Reaction::default();
        if answer.token.0 & CONFLICTING != 0 {
            let id = (answer.token.0 & !CONFLICTING) >> 8;
            return match answer.result {
                Err(Refusal::IdempotencyConflict) => {
                    marks.hit(Mark::Conflict);
                    Ok(reaction)
                }
                // Refused without looking at it.
                Err(refusal) if !refusal.saw_state() => Ok(reaction),
                result => {
                    let what = format!("call {id}: its key with another body is answered {result:?}");
                    Err(Violation::new(7, what))
                }
            };
        }
        let id = answer.token.0 >> 8;
        let calling = &mut self.calls[id as usize];
        let client = &mut self.clients[calling.client];
        client.colour = client.colour.max(answer.colour);
        let seen = client.seen.entry(calling.shard).or_default();
        *seen = answer.index.max(*seen);
        let style = if calling.call.query { "query" } else { "request" };
        let surprise = |what: String| Err(Violation::new(0, format!("{style} {id}: {what}")));
        if !client.pending.contains(&id) {
            let Some(Ok(known)) = &calling.end else { return Ok(reaction) };
            match &answer.result {
                Ok(reply) if calling.call.query || reply == known => marks.hit(Mark::Reasked),
                Ok(reply) => {
                    let what = format!("call {id} was answered {known:?}, and is now answered {reply:?}");
                    return Err(Violation::new(7, what));
                }
                Err(Refusal::Confirmed(number)) => {
                    let Name::Session { session, .. } = calling.name else {
                        return surprise("refused as confirmed without a session".to_owned());
                    };
                    if *number > self.sessions[session].confirmed {
                        return Err(Violation::new(7, format!("call {id}: {number} was never confirmed")));
                    }
                    marks.hit(Mark::Confirmed);
                }
                Err(_) => {}
            }
            return Ok(reaction);
        }
        let finishes = match &answer.result {
            Ok(_) => true,
            Err(Refusal::NotReady | Refusal::QueryGivenUp { .. } | Refusal::QueriesStuck { .. }) => false,
            Err(Refusal::Overloaded { .. }) => {
                marks.hit(Mark::Overloaded);
                false
            }
            Err(Refusal::LimitReached { .. }) => {
                marks.hit(Mark::LimitReached);
                self.abandon(id);
                return Ok(reaction);
            }
            Err(Refusal::Full) => {
                marks.hit(Mark::RefusedFull);
                false
            }
            Err(Refusal::Panicked(_)) => {
                marks.hit(Mark::Panicked);
                true
            }
            Err(Refusal::Poisoned { .. }) => {
                marks.hit(Mark::RequestGivenUp);
                true
            }
            Err(Refusal::Misuse(misuse)) => {
                if matches!(misuse, Misuse::TooLarge { .. }) {
                    marks.hit(Mark::TooLarge);
                }
                true
            }
            Err(Refusal::RequestTooLarge { len, max }) => {
                if *len != calling.call.payload.len() || len <= max {
                    return surprise(format!("{len} bytes are refused as over {max}"));
                }
                marks.hit(Mark::TooLarge);
                true
            }
            Err(Refusal::UnknownSession(_)) => {
                marks.hit(Mark::SessionEnded);
                self.end_session(id);
                return Ok(reaction);
            }
            Err(Refusal::Confirmed(number)) => {
                return Err(Violation::new(
                    7,
                    format!("call {id} of number {number} is refused as confirmed, and was never answered"),
                ));
            }
            Err(refusal) => return surprise(refusal.to_string()),
        };
        // The refusal of one attempt says nothing about the others: a call without an identity is over.
        if !finishes {
            // The others try again after the retry time.
            let known = !matches!(calling.name, Name::None) || calling.call.query;
            if !known {
                self.abandon(id);
            }
            return Ok(reaction);
        }
        if let (Name::Session { session, .. }, Ok(_)) = (&calling.name, &answer.result)
            && self.sessions[*session].is_unawaited
        {
            marks.hit(Mark::SessionUnawaited);
        }
        if matches!(answer.result, Ok(stead_core::reply::Reply::Err(_))) {
            marks.hit(Mark::AnsweredError);
        }
        workload.answered(id, &calling.call, &answer.result).map_err(|s| Violation::parse(&s))?;
        calling.end = Some(answer.result);
        client.pending.remove(&id);
        self.answered += 1;
        self.close(id);
        reaction.done = Some(id);
        Ok(reaction)
    }

    fn opened(&mut self, at: usize, answer: &Answer) -> Reaction {
        let session = &mut self.sessions[at];
        let client = &self.clients[session.client];
        if session.open || answer.result.is_err() {
            return Reaction::default();
        }
        session.open = true;
        let mine = |id: &&CallId| matches!(self.calls[**id as usize].name, Name::Session { session, .. } if session == at);
        Reaction { send: client.pending.iter().filter(mine).copied().collect(), ..Reaction::default() }
    }

    /// Ends the session of a call: its open calls stay unknown, and the next call opens another session.
    fn end_session(&mut self, id: CallId) {
        let Name::Session { session, .. } = self.calls[id as usize].name else { return };
        let client = self.sessions[session].client;
        let shard = self.sessions[session].shard;
        if self.clients[client].sessions.get(&shard) == Some(&session) {
            self.clients[client].sessions.remove(&shard);
        }
        for id in self.clients[client].pending.clone() {
            if matches!(self.calls[id as usize].name, Name::Session { session: of, .. } if of == session) {
                self.abandon(id);
            }
        }
    }
}
