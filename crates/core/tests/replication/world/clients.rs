//! The clients: writes that are repeated until they are answered, and reads.

use super::World;
use super::early::Floor;
use super::node::Node;
use super::service::list;
use crate::bugs::Bug;
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Identity, Query, Read, Refusal, Request};
use stead_core::ids::{BodyHash, CallToken, Colour, Micros, Time};
use stead_core::key::Key;
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::shard;

pub(super) struct Pending {
    pub(super) number: u32,
    /// The answers before it was first sent.
    pub(super) floor: Floor,
    pub(super) token: Option<CallToken>,
    pub(super) sent_at: Time,
    /// Whether it was sent.
    pub(super) is_sent: bool,
}

fn query(token: CallToken, read: Read) -> Query {
    let process = Key::new("a").unwrap();
    Query { token, process, payload: Blob::empty(), principal: "alice".into(), read, seen: None }
}

impl World {
    pub(super) fn request(&mut self) {
        if self.pending.len() < 4 && !self.is_calm {
            self.write_anew();
        }
        let now = self.now;
        let late = |pending: &Pending| {
            pending.token.is_none() || now.since(pending.sent_at) > Micros::from_millis(100)
        };
        let Some(which) = self.pending.iter().position(late) else {
            match self.rng.u32(0..100) {
                0..20 => self.query(),
                20..60 => self.query_stale(),
                _ => {}
            }
            return;
        };
        let request = self.next_request(which);
        self.call(request);
    }

    /// A client has something new to write.
    pub(super) fn write_anew(&mut self) {
        self.next_number += 1;
        let (number, floor) = (self.next_number, self.floor());
        self.pending.push(Pending { number, floor, token: None, sent_at: Time(0), is_sent: false });
    }

    /// Sends a pending request once more.
    pub(super) fn next_request(&mut self, which: usize) -> shard::Input {
        self.next_token = self.next_token.next();
        let token = self.next_token;
        let pending = &mut self.pending[which];
        (pending.token, pending.sent_at) = (Some(token), self.now);
        let number = pending.number.to_be_bytes();
        let was_sent = std::mem::replace(&mut pending.is_sent, true);
        let request = Request {
            token,
            process: Key::new("a").unwrap(),
            payload: Blob::from(number.as_slice()),
            principal: "alice".into(),
            identity: Identity::Idempotency {
                key: Blob::from(number.as_slice()),
                body_hash: BodyHash([0; 16]),
            },
            colour: Colour(0),
            seen: None,
            is_first: !was_sent || self.bug == Some(Bug::AlwaysFirst),
        };
        shard::Input::Request(request)
    }

    pub(super) fn query(&mut self) {
        self.next_token = self.next_token.next();
        let token = self.next_token;
        self.queries.insert(token, self.floor());
        let read = if self.chance(50) { Read::Service } else { Read::Linearizable };
        self.call(shard::Input::Query(query(token, read)));
    }

    /// A client reads at any node.
    pub(super) fn query_stale(&mut self) {
        self.next_token = self.next_token.next();
        let max_lag = self.rng.bool().then(|| Micros(self.rng.u64(0..200_000)));
        let mut at = self.rng.usize(0..self.nodes.len());
        // Mostly one that is cut off, if there is one.
        let newest = self.history.newest().config.primary();
        let leads = |node: &Node| node.replica.as_ref().is_some_and(|replica| replica.shard().is_some());
        let is_old = |node: &Node| node.id != newest && leads(node);
        if self.rng.bool() {
            at = self.nodes.iter().position(is_old).unwrap_or(at);
        }
        if self.nodes[at].replica.is_some() {
            let query = query(self.next_token, Read::Stale { max_lag });
            self.nodes[at].todo.push_back(shard::Input::Query(query).into());
        }
    }

    /// Gives a call to the node that leads as far as the client knows, or to any.
    pub(super) fn call(&mut self, input: shard::Input) {
        let leads = |node: &Node| node.replica.as_ref().is_some_and(|replica| replica.shard().is_some());
        let leading: Vec<usize> = (0..self.nodes.len()).filter(|at| leads(&self.nodes[*at])).collect();
        let at = match self.rng.choice(&leading) {
            Some(at) if !self.chance(10) || self.is_calm => *at,
            _ => self.rng.usize(0..self.nodes.len()),
        };
        if self.nodes[at].replica.is_some() {
            self.calls.extend(input.token().map(|token| (token, at)));
            self.nodes[at].todo.push_back(input.into());
        }
    }

    /// A call gets no answer from the node that has it: its client repeats a write.
    pub(super) fn end_call(&mut self, token: CallToken) {
        self.marks.moved += u64::from(self.calls.remove(&token).is_some());
        if let Some(pending) = self.pending.iter_mut().find(|p| p.token == Some(token)) {
            pending.token = None;
        }
        self.queries.remove(&token);
    }

    pub(super) fn handle_answer(&mut self, at: usize, answer: &Answer) -> Result<(), String> {
        if self.stale.is_asked(answer.token) {
            return self.check_stale(at, answer);
        }
        self.calls.remove(&answer.token);
        let count = match &answer.result {
            Ok(Reply::Ok(reply)) => u32::from_be_bytes(reply[..].try_into().unwrap()),
            Ok(Reply::Err(_)) => return Err("the handler failed".to_owned()),
            Err(Refusal::Poisoned { .. }) => {
                // Its node crashed again and again while it ran.
                let given_up = self.pending.extract_if(.., |p| p.token == Some(answer.token));
                self.given_up.extend(given_up.map(|pending| pending.number));
                return Ok(());
            }
            Err(_) => {
                if let Some(pending) = self.pending.iter_mut().find(|p| p.token == Some(answer.token)) {
                    pending.token = None;
                }
                self.queries.remove(&answer.token);
                return Ok(());
            }
        };
        let point = LogPoint { epoch: answer.epoch, index: answer.index };
        if let Some(floor) = self.queries.remove(&answer.token) {
            self.marks.reads += 1;
            let (least, committed) = (self.least(&floor), list(&self.model, "a").len() as u32);
            let is_committed = self.check_answered(point)?;
            if count < least || is_committed && count > committed {
                return Err(format!("[6] a read saw {count} of {least} answered, {committed} committed"));
            }
            if !is_committed {
                self.note_early(point, None, count);
            }
            return Ok(());
        }
        let Some(which) = self.pending.iter().position(|p| p.token == Some(answer.token)) else {
            return Ok(());
        };
        let pending = self.pending.swap_remove(which);
        self.marks.answers += 1;
        let (number, least) = (pending.number, self.least(&pending.floor));
        if count <= least {
            return Err(format!("[6] request {number} became {count} after {least} was answered"));
        }
        if !self.check_answered(point)? {
            self.note_early(point, Some(number), count);
            return Ok(());
        }
        let committed = list(&self.model, "a");
        if committed.get(count as usize - 1) != Some(&number) {
            return Err(format!("[5] request {number} was answered as {count} of {committed:?}"));
        }
        self.answered = self.answered.max(count);
        self.note_floor();
        Ok(())
    }
}
