//! Performs the effects of replicas of shards: their records go to the log, their frames to other nodes, and what the control plane has to
//! know to its desk.

use super::{Slot, Worker};
use crate::clock::Clock;
use crate::env::Env;
use crate::events;
use crate::peers::{Borrowed, PeerMessage};
use crate::reply::NoAnswer;
use crate::shared::Shared;
use stead_core::clock::Now;
use stead_core::control::facts::{Fact, ShardReport};
use stead_core::ids::{CallToken, Epoch, NodeId, ReplicaId, ShardId, Time};
use stead_core::placement::Place;
use stead_core::replication::table::LogPoint;
use stead_core::shard;
use stead_core::shard_replica::{Effect, Frame, Record, ShardReplica, Watched};
use stead_core::trials::TrialKind;
use stead_net::replica::Route;
use stead_store::wal::Batch;

/// Bytes of a record that holds no entry, at most.
pub(super) const RECORD_BYTES: usize = 64;

impl<E: Env> Worker<E> {
    /// Adds the records of one input to the batch. They are durable whole or not at all, with the entries that follow them: a batch that has
    /// no room for them is submitted first. Of more than a batch can hold, which another node's larger limits may send, the last entries
    /// come in batches of their own, as if they had come in a later frame.
    pub(super) fn write_records(&mut self, shared: &Shared<E>, now: Time, slot: u32) {
        let mut records = std::mem::take(&mut self.effects.records);
        let appended = self.effects.shard.iter().map(|effect| match effect {
            shard::Effect::Append { bytes, .. } => bytes.len() + Batch::RECORD_OVERHEAD,
            _ => 0,
        });
        let bytes = records.iter().map(record_bytes).sum::<usize>() + appended.sum::<usize>();
        let whole = if bytes <= self.batch_max {
            records.len()
        } else {
            let entry = records.iter().position(|record| matches!(record, Record::Entry(_)));
            entry.map_or(records.len(), |entry| entry + 1)
        };
        let replica = self.shards[slot as usize].replica.replica().id();
        let (first, rest) = records.split_at(whole);
        self.write_whole(shared, now, (slot, replica), first, bytes.min(self.batch_max));
        for record in rest.chunks(1) {
            self.write_whole(shared, now, (slot, replica), record, record_bytes(&record[0]));
        }
        records.clear();
        self.effects.records = records;
    }

    /// Adds records to the batch, or to the next one if it has no room for so many bytes.
    fn write_whole(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        (slot, replica): (u32, ReplicaId),
        records: &[Record],
        bytes: usize,
    ) {
        if self.batch.bytes() + bytes > self.batch_max {
            self.submit(shared, now);
        }
        self.batch.push_replica(self.shards[slot as usize].id, replica, records);
        self.note_appended(slot, records.len());
    }

    /// Performs the effects of a replica besides those of its shard.
    pub(super) fn perform_replica(&mut self, shared: &Shared<E>, now: Time, slot: u32) {
        let mut effects = std::mem::take(&mut self.effects.replica);
        let Slot { id: shard, ref replica, is_replicated, .. } = self.shards[slot as usize];
        let own = replica.replica().id();
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, frame } => self.send(shard, (own, to), frame),
                Effect::Sealed(answer) => self.news.facts.push(Fact::Sealed(shard, answer)),
                Effect::Superseded { promised, .. } => {
                    self.news.facts.push(Fact::Superseded { shard, promised });
                }
                Effect::CannotLead(reason) => {
                    events::warn(format_args!("shard {shard}: this node cannot lead it: {reason}"));
                    self.news.facts.push(Fact::CannotLead { shard, epoch: reason.epoch() });
                }
                Effect::Leads { is_held, .. } => {
                    self.call_forwarded_back(now, shard);
                    // The turns of those that lead from the start are known to the trials.
                    if is_held && is_replicated {
                        self.shards[slot as usize].is_trying = true;
                        shared.trials(|trials| trials.wants(shard, TrialKind::Handlers));
                    }
                }
                Effect::Deposed(epoch) => self.depose(shared, now, slot, epoch),
                Effect::NotPrimary { token, .. } => self.turn_away(shared, now, shard, token),
                Effect::Unusable(misfit) => {
                    events::error(format_args!(
                        "shard {shard}: replica {own} is damaged and handles nothing any more: {misfit}"
                    ));
                    self.news.facts.push(Fact::Void(shard, own));
                }
                Effect::Void { lacks } => {
                    if let Some(LogPoint { epoch, index }) = lacks {
                        events::error(format_args!(
                            "shard {shard}: replica {own} lacks entry {index} of epoch {epoch}, which it acknowledged, and handles \
                             nothing any more: the data directory is an older copy; restore no single node's directory from a backup"
                        ));
                    }
                    self.news.facts.push(Fact::Void(shard, own));
                }
                Effect::GivenUp { from, epoch } => {
                    let given_up = &mut self.shards[slot as usize].given_up;
                    *given_up = (*given_up).max(Some((epoch, from)));
                    self.confirm_given_up();
                }
                Effect::Invalid { from, reason } => {
                    events::warn(format_args!(
                        "shard {shard}: a frame of replica {from} is invalid: {reason}"
                    ));
                }
                Effect::Rebuild { number, upto, .. } => self.request_rebuild(slot, number, upto),
                Effect::ReadLog { to, head, last } => self.read_log(shared, slot, to, head, last),
                Effect::SendSnapshot { to } => self.want_snapshot(shared, slot, to),
            }
        }
        self.effects.replica = effects;
    }

    /// Gives up the replicas that hold what the primary of a later epoch contradicts, once the control plane's directory has that epoch:
    /// then an operator gave up what they hold. A primary that the directory does not name may be one of the past, or wrong.
    pub(super) fn confirm_given_up(&mut self) {
        for slot in &mut self.shards {
            let Some((epoch, from)) = slot.given_up else { continue };
            let route = self.routes.get(&slot.id).filter(|route| route.epoch >= epoch);
            let Some(route) = route else { continue };
            slot.given_up = None;
            if (route.epoch, route.primary) == (epoch, from) {
                let (shard, own) = (slot.id, slot.replica.replica().id());
                events::error(format_args!(
                    "shard {shard}: replica {from}, which leads epoch {epoch}, gave up what replica {own} holds"
                ));
                self.news.facts.push(Fact::Void(shard, own));
            }
        }
    }

    /// Drops what a shard has begun as the primary that it is no more, and ends its calls in flight.
    pub(super) fn depose(&mut self, shared: &Shared<E>, now: Time, slot: u32, epoch: Epoch) {
        let shard = self.shards[slot as usize].id;
        self.shards[slot as usize].is_trying = false;
        shared.trials(|trials| trials.drop_shard(shard));
        // A turn that it was given before is of the epoch that is over: in the next one it has no turn.
        let is_turn = |(of, input): &(ShardId, shard::Input)| {
            *of == shard && matches!(input, shard::Input::Turn(_) | shard::Input::Yield)
        };
        self.local.retain(|input| !is_turn(input));
        shared.inboxes[self.number].drop_inputs(is_turn);
        shared.steps.drop_shard(shard);
        self.draining.retain(|draining| draining.slot != slot);
        self.end_transfers(shared, slot, epoch);
        for call in self.calls.close_of(shard) {
            let Some(call) = self.forward_again(shared, now, call, true) else { continue };
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            self.give_answer(now, call.reply_to.caller, Err(NoAnswer::Deposed { shard }));
        }
    }

    /// Notes that a shard has ended its turn. One that was held by itself goes on.
    pub(super) fn end_trial(&mut self, shared: &Shared<E>, slot: u32, kind: TrialKind) {
        let shard = self.shards[slot as usize].id;
        shared.trials(|trials| trials.ends(shard, kind));
        let is_trying = &mut self.shards[slot as usize].is_trying;
        // Otherwise it goes on with all others of the node.
        if kind == TrialKind::Handlers && std::mem::take(is_trying) && !shared.is_trying() {
            self.local.push_back((shard, shard::Input::Open));
        }
    }

    /// Gives the connections to other nodes their turns from now on.
    pub(crate) fn borrow_peers(&mut self, borrowed: Borrowed) {
        self.borrowed = Some(borrowed);
    }

    /// Takes what has arrived from other nodes, if it has the connections to them. Returns the time of their next turn.
    pub(super) fn take_frames(&self, shared: &Shared<E>, now: Time) -> Option<Time> {
        let due = self.borrowed.as_ref()?.turn(shared, now, shared.clock.wall());
        match due {
            Ok(due) => Some(due),
            Err(error) => {
                shared.fail(format!("the connections to other nodes cannot be served: {error}"));
                None
            }
        }
    }

    /// Sends what this turn has left for other nodes, before it sleeps. Returns whether another turn is due.
    pub(super) fn send_frames(&self, shared: &Shared<E>, now: Time) -> bool {
        self.borrowed.as_ref().is_some_and(|borrowed| borrowed.send(shared, now))
    }

    /// Leaves a frame for another replica. It is lost if the node of that is not known. Once it is, the replica is
    /// [connected](stead_core::shard_replica::Input::Connected): a primary sends it again, and a backup asks its primary for that.
    fn send(&mut self, shard: ShardId, (from, to): (ReplicaId, ReplicaId), frame: Frame) {
        let node = self.routes.get(&shard).and_then(|route| route.replicas.get(&to));
        if let Some(&node) = node {
            self.leave_for(node, PeerMessage::Frame(Route { shard, from, to }, frame));
        }
    }

    /// Leaves a message for another node, to the end of the turn.
    pub(super) fn leave_for(&mut self, node: NodeId, message: PeerMessage) {
        self.peers.entry(node).or_default().push(message);
    }

    /// Answers a call that came to a replica that does not lead.
    fn turn_away(&mut self, shared: &Shared<E>, now: Time, shard: ShardId, token: CallToken) {
        if let Some(call) = self.calls.close(token)
            && let Some(call) = self.forward_again(shared, now, call, false)
        {
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            let not_here = NoAnswer::NotHere { shard, place: Place::Elsewhere };
            self.give_answer(now, call.reply_to.caller, Err(not_here));
        }
    }

    /// Lets the replicas that have handled inputs in this turn send what their peers lack, and run queries: once for all inputs.
    pub(super) fn flush_replicas(&mut self, shared: &Shared<E>, now: Time) {
        for at in 0..self.replicated.len() {
            // As in `give`.
            if shared.is_ended() {
                return;
            }
            let slot = self.replicated[at];
            let Self { shards, code, effects, wall, .. } = self;
            let code: &mut dyn Watched = code;
            shards[slot as usize].replica.flush(Now { steady: now, wall: *wall }, code, effects);
            self.handled(shared, now, slot, 0);
        }
    }

    /// Leaves this turn's messages for other nodes, and its news for the control plane.
    pub(super) fn hand_on_news(&mut self, shared: &Shared<E>) {
        for (node, messages) in &mut self.peers {
            shared.peers.leave(*node, messages);
        }
        for slot in self.replicated.drain(..) {
            let Slot { replica, reported, is_touched, .. } = &mut self.shards[slot as usize];
            *is_touched = false;
            if replica.replica().id() == ReplicaId::NONE {
                *reported = None;
                shared.replicated.set_serves(replica.shard_id(), None);
                continue;
            }
            let report = report(replica);
            if reported.as_ref() != Some(&report) {
                let serves = report.leads.filter(|epoch| *epoch <= report.active);
                shared.replicated.set_serves(report.shard, serves);
                *reported = Some(report.clone());
                self.news.reports.push(report);
            }
        }
        shared.control.leave(&mut self.news);
    }
}

fn record_bytes(record: &Record) -> usize {
    match record {
        Record::Entry(entry) => entry.bytes.len() + Batch::RECORD_OVERHEAD,
        Record::Promise(_) | Record::Cut { .. } | Record::Install { .. } => RECORD_BYTES,
    }
}

fn report(replica: &ShardReplica) -> ShardReport {
    let own = replica.replica();
    let learners: Vec<(ReplicaId, bool)> = replica.learners().collect();
    ShardReport {
        shard: replica.shard_id(),
        replica: own.id(),
        promised: own.promised(),
        active: own.active(),
        leads: own.leads(),
        caught_up: learners.iter().filter(|(_, is_close)| *is_close).map(|(id, _)| *id).collect(),
        learners: learners.into_iter().map(|(id, _)| id).collect(),
        max_lag: own.leads().map(|_| replica.max_lag()),
    }
}
