//! Performs the effects of shards, and passes on the results at the end of a turn.

use super::{Draining, Slot, Worker};
use crate::checkpoint::Event;
use crate::env::{Env, Watch};
use crate::log::Submission;
use crate::peers::PeerMessage;
use crate::queries::Job;
use crate::shared::Shared;
use crate::steps::Step;
use stead_core::control::directory::ShardRoute;
use stead_core::durability::Durability;
use stead_core::ids::{ShardId, Time};
use stead_core::placement::Place;
use stead_core::records::Piece;
use stead_core::shard::{Effect, Input};
use stead_store::wal::Batch;

impl<E: Env> Worker<E> {
    pub(super) fn perform(&mut self, shared: &Shared<E>, now: Time, slot: u32) {
        self.needed = self.shards[slot as usize].replica.durability(&self.effects);
        if !self.effects.records.is_empty() {
            self.write_records(shared, now, slot);
        }
        if !self.effects.replica.is_empty() {
            self.perform_replica(shared, now, slot);
        }
        let mut effects = std::mem::take(&mut self.effects.shard);
        let Slot { id: from, service, .. } = self.shards[slot as usize];
        let service = usize::from(service);
        for effect in effects.drain(..) {
            match effect {
                Effect::Append { epoch, index, bytes } => {
                    self.turn[service].entries += 1;
                    self.turn[service].entry_bytes += bytes.len() as u64;
                    if self.batch.bytes() + bytes.len() + Batch::RECORD_OVERHEAD > self.batch_max {
                        self.submit(shared, now);
                    }
                    self.batch.push(from, epoch, index, &bytes);
                    self.note_appended(slot, 1);
                }
                Effect::Deliver { to, messages, again } => {
                    self.turn[service].messages += messages.len() as u64;
                    self.route(shared, to, Input::Deliver { from, messages, again });
                }
                Effect::Ack { to, upto, colour } => self.route(shared, to, Input::Ack { from, upto, colour }),
                Effect::Answer(answer) => self.answer(shared, now, service, answer),
                Effect::Query(reading) => {
                    // The caller may have given up.
                    if let Some(call) = self.calls.close(reading.query.token) {
                        self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
                        self.queries.push(Job::new(reading, call.reply_to, &shared.memory));
                    }
                }
                Effect::RunStep { id, run, task, asks, alone } => {
                    shared.steps.push(Step { shard: from, id, run, task, asks, alone });
                }
                Effect::StepAllowed { id, run, allowed } => shared.steps.answer(from, id, run, allowed),
                Effect::WantsTurn(kind) => shared.trials(|trials| trials.wants(from, kind)),
                Effect::EndsTurn(kind) => self.end_trial(shared, slot, kind),
                Effect::Marked { header, all } => {
                    let number = header.position.colour.number();
                    // The rest of an older snapshot belongs to a checkpoint that was given up, and this one replaces it.
                    self.draining.retain(|draining| draining.slot != slot);
                    self.drop_taking(shared, slot);
                    let piece = Piece::default();
                    self.draining.push_back(Draining { slot, number, piece, is_given_up: false });
                    shared.leave_snapshot(Event::Begun { shard: from, number, header, all });
                }
                Effect::MarkerCommitted(colour) => {
                    let number = colour.number();
                    shared.leave_snapshot(Event::MarkerCommitted { shard: from, number });
                }
                Effect::Active(_) if self.shards[slot as usize].is_replicated => {}
                Effect::Active(_) => shared.shard_is_active(),
            }
        }
        self.effects.shard = effects;
        self.needed = Durability::Always;
        if self.batch.bytes() >= shared.sizes.batch_bytes {
            self.hand_on(shared, now);
        }
    }

    /// Notes records of a replica in the batch.
    pub(super) fn note_appended(&mut self, slot: u32, records: usize) {
        let appended = &mut self.appended[slot as usize];
        if *appended == 0 {
            self.touched.push(slot);
        }
        *appended += records;
        self.durability = self.durability.min(self.needed);
        self.shards[slot as usize].appended += records;
    }

    pub(super) fn route(&mut self, shared: &Shared<E>, to: ShardId, input: Input) {
        if !self.routes.is_empty()
            && let Some(node) = self.routes.get(&to).map(ShardRoute::primary_node)
            && node != Some(shared.node)
        {
            // Without a primary it is treated as lost: the messages stay in the outbox, and are sent again.
            if let (Some(node), Some(message)) = (node, PeerMessage::of_channel(to, input)) {
                self.leave_for(node, message);
            }
            return;
        }
        if self.slot(to).is_some() {
            self.local.push_back((to, input));
            return;
        }
        match shared.placement.of(to) {
            Place::Here => self.outgoing[shared.worker_of(to)].push((to, input)),
            // Treated as lost: the messages stay in the outbox, and are sent again.
            Place::Elsewhere | Place::Unplaced => {}
        }
    }

    pub(super) fn submit(&mut self, shared: &Shared<E>, now: Time) {
        if self.batch.is_empty() {
            return;
        }
        self.ticket += 1;
        let mut reached = Vec::with_capacity(self.touched.len());
        for slot in self.touched.drain(..) {
            reached.push((slot, std::mem::take(&mut self.appended[slot as usize])));
        }
        self.submitted.push_back((self.ticket, reached));
        let batch = shared.log.share(&mut self.batch);
        let durability = std::mem::replace(&mut self.durability, Durability::Never);
        shared.log.submit(now, Submission { worker: self.number, ticket: self.ticket, batch, durability });
    }

    pub(super) fn hand_on(&mut self, shared: &Shared<E>, now: Time) {
        self.submit(shared, now);
        // After the entries are on their way to the own log: a peer syncs its copy of them meanwhile.
        self.flush_replicas(shared, now);
        self.hand_on_news(shared);
        self.publish_waiting(shared);
        if !self.queries.is_empty() {
            shared.queries.push(&shared.counters, &shared.watch, &mut self.queries);
        }
        for (worker, inputs) in self.outgoing.iter_mut().enumerate() {
            if !inputs.is_empty() {
                shared.watch.leaves(self.number, worker, inputs);
                shared.inboxes[worker].push_inputs(inputs);
            }
        }
        for (turn, counters) in self.turn.iter_mut().zip(&shared.counters.services) {
            let turn = std::mem::take(turn);
            if turn.entries > 0 {
                counters.entries.add(turn.entries);
                counters.entry_bytes.add(turn.entry_bytes);
            }
            if turn.messages > 0 {
                counters.messages.add(turn.messages);
            }
            if turn.requests + turn.queries + turn.answers > 0 {
                counters.requests.add(turn.requests);
                counters.queries.add(turn.queries);
                counters.answers.add(turn.answers);
                counters.refusals.add(turn.refusals);
            }
        }
    }
}
