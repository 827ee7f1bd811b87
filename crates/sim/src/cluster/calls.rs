//! The calls of clients on their way to the nodes and back.

use super::clients::Ask;
use super::env::{self, Line};
use super::network::DELAY;
use super::node::at_of;
use super::{Cluster, ClusterBug, Event, Outcome};
use crate::profile::one_in;
use std::time::Duration;
use stead_core::calls::{Answer, Identity};
use stead_core::ids::ShardId;
use stead_core::record::RecordKey;
use stead_node::{NoAnswer, ReplyTo};

/// The times after which a client gives up a try, in microseconds: an impatient one's, and that of one that waits out failovers.
const SHORT: u64 = 60_000;
const LONG: u64 = 2_000_000;

impl Cluster {
    /// A client begins a call, unless it has one.
    pub(super) fn client_acts(&mut self, client: usize) {
        let think = self.random(self.think);
        self.at(think, Event::Client(client));
        if self.is_calm {
            return;
        }
        let now = self.now;
        if one_in(&mut self.rng, 3) {
            let (topology, model) = (&self.topology, &mut self.model);
            let (call, ask) = self.clients.begin_once(client, now, topology, model, &mut self.rng);
            self.send_try(call, ask, false);
        } else if self.clients.begin(client, &self.topology, &self.model, &mut self.rng) {
            self.send_call(client, false);
        }
    }

    /// Sends a client's call, or sends it again.
    pub(super) fn send_call(&mut self, client: usize, is_retry: bool) {
        let Some((call, mut ask)) = self.clients.next_try(client) else { return };
        if let (Some(ClusterBug::RetryWithoutIdentity), true, Ask::Request { request, .. }) =
            (self.bug, is_retry, &mut ask)
        {
            request.identity = Identity::None;
        }
        let patience = self.send_try(call, ask, true);
        self.at(patience, Event::Retry(client, call));
    }

    /// Sends a call to any node. Returns the time for which its client waits.
    fn send_try(&mut self, call: u64, ask: Ask, repeats: bool) -> u64 {
        let patience = if one_in(&mut self.rng, 3) { SHORT + self.random(SHORT) } else { self.random(LONG) };
        let to = self.any_node(ask.shard());
        if self.is_calm || !one_in(&mut self.rng, 40) {
            let delay = self.random(DELAY);
            if repeats && !self.is_calm && one_in(&mut self.rng, 20) {
                let later = self.random(DELAY * 100);
                self.at(later, Event::Call(to, call, ask.repeated(), patience));
            }
            self.at(delay, Event::Call(to, call, ask, patience));
        }
        patience
    }

    /// Returns the node that a client calls: the one that leads, as far as the control plane knows, or any.
    fn any_node(&mut self, shard: ShardId) -> usize {
        let primary = self.plane.directory.shard(shard).and_then(|route| route.primary_node());
        match primary {
            Some(node) if self.rng.bool() => at_of(node),
            _ => self.rng.usize(..self.machines.len()),
        }
    }

    pub(super) fn call(&mut self, to: usize, call: u64, mut ask: Ask, patience: u64) -> Outcome {
        if self.bug == Some(ClusterBug::LossUnreported) {
            match &mut ask {
                Ask::Request { request, .. } => request.seen = None,
                Ask::Query { query, .. } => query.seen = None,
                Ask::Open { .. } | Ask::Look { .. } | Ask::Delete { .. } => {}
            }
        }
        let machine = &self.machines[to];
        let Some(running) = &machine.life else {
            // Nothing listens there.
            self.at(DELAY, Event::Heard(call, Err(NoAnswer::Stopped)));
            return Ok(());
        };
        let (steady, wall) = machine.skew.at(self.now);
        let timeout = Duration::from_micros(patience);
        let reply_to = ReplyTo {
            caller: Line { call, is_answered: false },
            deadline: steady.plus(timeout.into()),
            timeout,
        };
        let shared = &running.parts.shared;
        let (taken, seen) = env::play((steady, wall), self.bug, || match ask {
            Ask::Open { shard, session } => {
                shared.open_session(shard, session, "alice".into(), Some(reply_to))
            }
            Ask::Request { shard, request } => shared.request(shard, request, reply_to),
            Ask::Query { shard, query } => shared.query(shard, query, reply_to),
            Ask::Look { shard, look } => shared.show(shard, look, reply_to),
            Ask::Delete { shard, process } => {
                let records = vec![RecordKey::process(&process)];
                shared.delete(shard, process, records, reply_to)
            }
        });
        drop(seen);
        if let Err(error) = taken {
            self.at(DELAY, Event::Heard(call, Err(error)));
        }
        self.heed(to);
        Ok(())
    }

    pub(super) fn hear(&mut self, call: u64, result: Result<Answer, NoAnswer>) -> Outcome {
        self.note(|| format!("call {call} hears {result:?}"));
        let Some(client) = self.clients.client_of(call) else {
            return self.clients.hear_once(call, result, &mut self.model, self.now, &mut self.marks);
        };
        let is_lost = result.is_err();
        let is_answer = result.as_ref().is_ok_and(|answer| answer.result.is_ok());
        let asks_again = !self.is_calm && one_in(&mut self.rng, 6);
        let (heard, model, marks) = ((client, call), &mut self.model, &mut self.marks);
        let is_over = self.clients.hear(heard, result, model, self.now, asks_again, marks)?;
        if !is_over && (is_answer || is_lost && self.rng.bool()) {
            // A session is open now, the client asks once more, or it turns to another node.
            self.send_call(client, true);
        }
        Ok(())
    }
}
