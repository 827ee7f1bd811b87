//! The clients of a cluster: each has one call at a time, and sends it to one node after another until it is answered.

use super::env::{PROCESSES, SERVICE, called};
use super::model::Model;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Refusal, Request};
use stead_core::ids::{BodyHash, CallToken, Colour, RequestNumber, SessionId, ShardId};
use stead_core::key::Key;
use stead_core::reply::Reply;
use stead_core::topology::Topology;
use stead_node::NoAnswer;

/// A call as it goes to a node.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Open { shard: ShardId, session: SessionId },
    Request { shard: ShardId, request: Request },
}

impl Ask {
    pub(super) fn shard(&self) -> ShardId {
        let (Self::Open { shard, .. } | Self::Request { shard, .. }) = self;
        *shard
    }
}

/// The session of a client with a shard.
struct Session {
    id: SessionId,
    is_open: bool,
    last: RequestNumber,
    /// It has the replies up to this one.
    confirmed: RequestNumber,
}

/// A call of a client that has no answer.
struct Pending {
    number: u32,
    process: Key,
    shard: ShardId,
    identity: Identity,
    /// The greatest length of the list that was answered before it was first sent.
    floor: u32,
    /// The answer that has come, once the client asks again for it.
    answered: Option<u32>,
    /// The number of its last try.
    call: u64,
}

#[derive(Default)]
struct Client {
    pending: Option<Pending>,
    /// By shard.
    sessions: BTreeMap<ShardId, Session>,
}

pub(super) struct Clients {
    all: Vec<Client>,
    /// By the number of a try, its client.
    tries: BTreeMap<u64, usize>,
    last_call: u64,
    last_number: u32,
    /// By process, the greatest length that was answered.
    lengths: BTreeMap<String, u32>,
    pub(super) answered: u64,
    pub(super) asked_again: u64,
}

impl Clients {
    pub(super) fn new(count: usize) -> Self {
        Self {
            all: (0..count).map(|_| Client::default()).collect(),
            tries: BTreeMap::new(),
            last_call: 0,
            last_number: 0,
            lengths: BTreeMap::new(),
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

    /// Begins a new call of a client, unless it has one. Returns whether it had none.
    pub(super) fn begin(&mut self, at: usize, topology: &Topology, rng: &mut Rng) -> bool {
        let client = &mut self.all[at];
        if client.pending.is_some() {
            return false;
        }
        self.last_number += 1;
        let number = self.last_number;
        let process = called(rng.u32(..PROCESSES));
        let service = topology.service_id(SERVICE).expect("the only service");
        let shard = topology.shard_of(service, &process);
        let identity = if rng.bool() {
            let key = Blob::from(number.to_be_bytes().as_slice());
            Identity::Idempotency { key, body_hash: BodyHash([0; 16]) }
        } else {
            let fresh = || Session {
                id: SessionId((u128::from(shard.0) << 32) | (at as u128 + 1)),
                is_open: false,
                last: RequestNumber(0),
                confirmed: RequestNumber(0),
            };
            let session = client.sessions.entry(shard).or_insert_with(fresh);
            session.last = RequestNumber(session.last.0 + 1);
            Identity::Session { session: session.id, number: session.last, confirmed: session.confirmed }
        };
        let floor = self.lengths.get(&*process).copied().unwrap_or_default();
        client.pending = Some(Pending { number, process, shard, identity, floor, answered: None, call: 0 });
        true
    }

    /// Returns the next try of a client's call, with its number and shard.
    pub(super) fn next_try(&mut self, at: usize) -> Option<(u64, Ask)> {
        let client = &mut self.all[at];
        let pending = client.pending.as_mut()?;
        self.last_call += 1;
        let (call, shard) = (self.last_call, pending.shard);
        self.tries.remove(&pending.call);
        self.tries.insert(call, at);
        pending.call = call;
        if let Identity::Session { session, .. } = pending.identity
            && client.sessions.get(&shard).is_some_and(|session| !session.is_open)
        {
            return Some((call, Ask::Open { shard, session }));
        }
        let request = Request {
            token: CallToken(0),
            process: pending.process.clone(),
            payload: Blob::from(pending.number.to_be_bytes().as_slice()),
            principal: Arc::from("alice"),
            identity: pending.identity.clone(),
            colour: Colour(0),
        };
        Some((call, Ask::Request { shard, request }))
    }

    /// Handles the result of a try. Returns whether the call is over.
    pub(super) fn hear(
        &mut self,
        call: u64,
        result: Result<Answer, NoAnswer>,
        model: &Model,
        asks_again: bool,
    ) -> Result<bool, Violation> {
        let Some(at) = self.tries.get(&call).copied() else { return Ok(false) };
        let client = &mut self.all[at];
        let Some(pending) = client.pending.as_mut().filter(|pending| pending.call == call) else {
            return Ok(false);
        };
        let session = client.sessions.get_mut(&pending.shard);
        let reply = match result.map(|answer| answer.result) {
            Ok(Ok(Reply::Ok(reply))) => reply,
            Ok(Err(
                refusal @ (Refusal::UnknownSession(_) | Refusal::Confirmed(_) | Refusal::Poisoned { .. }),
            )) => {
                return Err(Violation::new(7, format!("request {}: {refusal}", pending.number)));
            }
            Ok(Ok(Reply::Err(_)) | Err(_)) | Err(_) => return Ok(false),
        };
        if let (Identity::Session { .. }, Some(session)) = (&pending.identity, session) {
            if !session.is_open {
                session.is_open = true;
                return Ok(false);
            }
            session.confirmed = session.last;
        }
        let Some(len) = super::env::number_in(&reply) else {
            return Err(Violation::new(7, format!("request {} was answered {reply:?}", pending.number)));
        };
        let (number, process) = (pending.number, pending.process.to_string());
        if let Some(before) = pending.answered.replace(len) {
            self.asked_again += 1;
            if before != len {
                let what = format!("request {number} was answered {before}, and {len} to a retry");
                return Err(Violation::new(7, what));
            }
        } else {
            self.answered += 1;
            if model.number_at(&process, len) != Some(number) {
                let what = format!(
                    "request {number} was answered before entry {len} of {process} was committed as it"
                );
                return Err(Violation::new(5, what));
            }
            if len <= pending.floor {
                let what = format!(
                    "request {number} became {len} of {process} after {} was answered",
                    pending.floor
                );
                return Err(Violation::new(6, what));
            }
            let longest = self.lengths.entry(process).or_default();
            *longest = len.max(*longest);
            if asks_again {
                return Ok(false);
            }
        }
        self.tries.remove(&call);
        client.pending = None;
        Ok(true)
    }
}
