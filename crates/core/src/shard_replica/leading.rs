//! A replica while it leads an epoch.

use super::io::{Effect, Effects, Frame, LogEntry, ReplicaSettings, Watched};
use super::tail::Tail;
use super::{Role, ShardReplica};
use crate::blob::Blob;
use crate::calls::{Answer, Query, Read, Refusal};
use crate::clock::Now;
use crate::ids::{CallToken, Epoch, Index, Life, Micros, ReplicaId, Time};
use crate::look::Look;
use crate::replication::epoch::EpochRecord;
use crate::replication::freshness::TooStale;
use crate::replication::reads::{ReadKind, Reads};
use crate::replication::replica::{AppendHead, Replica};
use crate::replication::rounds::Rounds;
use crate::replication::stream::{Outgoing, Stream, StreamLimits};
use crate::replication::table::LogPoint;
use crate::shard::{self, Shard};
use std::collections::{BTreeMap, BTreeSet};

/// A call that a primary may not answer while another one may have served.
enum Late {
    /// It has not run: a query, or an operator's look.
    Call(shard::Input),
    /// Its answer is that something is not there, which a successor may have made.
    Refused(Answer),
}

impl Late {
    /// Returns the bytes that it occupies.
    fn bytes(&self) -> usize {
        let held = match self {
            Self::Call(shard::Input::Query(query)) => query.process.len() + query.payload.len(),
            Self::Call(shard::Input::Look { look, .. }) => size_of::<Look>() + look.bytes(),
            Self::Call(_) | Self::Refused(_) => 0,
        };
        size_of::<Self>() + held
    }
}

/// The work of a primary.
pub(super) struct Leading {
    pub(super) shard: Shard,
    epoch: Epoch,
    streams: BTreeMap<ReplicaId, Stream>,
    /// The peers to which the epoch's record was not sent on their connections.
    uninformed: BTreeSet<ReplicaId>,
    rounds: Rounds,
    /// The entry behind which the epoch begins: earlier primaries may have answered clients up to it.
    base: Index,
    /// Calls that wait for a round that shows that no other primary has served since they came (rule 22).
    reads: Reads<Late>,
    /// The bytes of these.
    late_bytes: usize,
    /// The deletions that found nothing and have no answer yet.
    vain: BTreeSet<CallToken>,
    beats_at: Time,
    /// The time at which the entries leave that stay for a while; `None` if there are none.
    sends_at: Option<Time>,
    /// The primaries before it of which it is not known that their processes have outlived all that they handled.
    doubted: BTreeMap<ReplicaId, Life>,
}

impl Leading {
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether there is no other member and no learner: what is durable here is committed, and no other replica can lead unless this
    /// one was sealed.
    pub(super) fn is_alone(&self) -> bool {
        self.streams.is_empty()
    }

    /// Gives the shard of a primary without peers an input; `out` is empty. Returns its last entry and its commit index.
    #[inline]
    pub(super) fn handle_alone(
        &mut self,
        now: Now,
        input: shard::Input,
        handler: &mut dyn Watched,
        out: &mut Vec<shard::Effect>,
    ) -> (Index, Index) {
        handler.sees_input(&self.shard, &input);
        self.shard.handle(now, input, handler, out);
        handler.sees_effects(&self.shard, out);
        (self.shard.state().position().index, self.shard.commit())
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = (&ReplicaId, &Stream)> {
        self.streams.iter()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let beats_at = (!self.is_alone()).then_some(self.beats_at);
        [self.shard.deadline(), beats_at, self.sends_at].into_iter().flatten().min()
    }

    pub(super) fn snapshot_sent(&self) -> Option<LogPoint> {
        self.streams.values().filter_map(Stream::snapshot).min_by_key(|base| base.index)
    }

    /// Handles that the connection to a peer is new. Returns the index up to which it has to hold the log; 0 if that is unknown.
    pub(super) fn handle_connected(&mut self, peer: ReplicaId) -> Index {
        let Some(stream) = self.streams.get_mut(&peer) else { return Index(0) };
        stream.handle_connected();
        self.uninformed.insert(peer);
        stream.kept()
    }

    pub(super) fn handle_snapshot_sent(&mut self, to: ReplicaId, base: LogPoint) {
        if let Some(stream) = self.streams.get_mut(&to) {
            stream.handle_snapshot(base);
        }
    }

    pub(super) fn handle_snapshot_received(&mut self, to: ReplicaId, base: LogPoint) {
        if let Some(stream) = self.streams.get_mut(&to) {
            stream.handle_snapshot_received(base);
        }
    }

    /// Returns the age of the state, if it is at most `max_lag`: the span since the last confirmed round began. Another primary may have
    /// served since, unless there can be none.
    pub(super) fn staleness(&self, now: Time, max_lag: Micros) -> Result<Micros, TooStale> {
        let staleness =
            if self.is_alone() { Micros(0) } else { self.rounds.staleness(now).ok_or(TooStale::Unknown)? };
        if staleness > max_lag { Err(TooStale::Over { staleness, max_lag }) } else { Ok(staleness) }
    }

    /// Sends the commit index, if nothing else has for a while, and asks again for rounds that may be lost.
    pub(super) fn beat(
        &mut self,
        now: Now,
        replica: &Replica,
        tail: &Tail,
        settings: &ReplicaSettings,
        out: &mut Vec<Effect>,
    ) {
        if now.steady < self.beats_at || self.is_alone() {
            return;
        }
        self.beats_at = now.steady.plus(settings.heartbeat);
        let last = replica.table().last().index;
        for (&to, stream) in &mut self.streams {
            stream.look(now.steady, last, |index| tail.bytes_to(index));
            if let Some(head) = stream.heartbeat(replica.table(), self.shard.commit()) {
                out.push(send_append(to, head, None, Vec::new()));
            }
        }
        // It renews the lease, takes the place of a round that may be lost, and reports to the peers how old their states are.
        self.ask(now, out);
    }

    /// Handles that a life of a replica's process goes on, and that nothing ended it which the replica handled as a primary. Once that is
    /// known of all primaries that may have handled something since the last active epoch, causes of which the log has no attempts are
    /// not suspected any more.
    fn handle_vouched(&mut self, replica: ReplicaId, life: Life) {
        if self.doubted.get(&replica) == Some(&life) {
            self.doubted.remove(&replica);
        }
        if self.doubted.is_empty() {
            self.shard.trust();
        }
    }

    /// Keeps a call until a round shows that no other primary has served since it came.
    fn hold(&mut self, kind: ReadKind, late: Late) {
        self.late_bytes += late.bytes();
        self.reads.push(kind, Index(0), &self.rounds, late);
    }

    /// Begins a round.
    fn ask(&mut self, now: Now, out: &mut Vec<Effect>) {
        let answerable = self.shard.tracker().map_or(Index(0), |tracker| tracker.answerable());
        self.rounds.begin(now.steady, answerable.max(self.base));
        for &to in self.streams.keys() {
            out.extend(self.rounds.ask(to).map(|ask| Effect::Send { to, frame: Frame::Ask(ask) }));
        }
    }
}

impl ShardReplica {
    /// Begins to lead an epoch (rules 10 and 11).
    pub(super) fn lead(
        &mut self,
        now: Now,
        record: Box<EpochRecord>,
        learners: Vec<ReplicaId>,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        let epoch = record.config.epoch();
        if self.replica.leads() == Some(epoch) {
            return self.add_learners(now, &record, &learners);
        }
        let is_ahead = match &self.role {
            Role::Follows(state) => state.position().index > record.base.index,
            Role::Leads(leading) => leading.shard.state().position().index > record.base.index,
            Role::Rebuilds => true,
        };
        if is_ahead && !matches!(self.role, Role::Rebuilds) {
            // Only if it could lead: otherwise nothing changes.
            if let Err(error) = self.replica.clone().lead(&record, &mut Vec::new()) {
                return out.replica.push(Effect::CannotLead(error));
            }
            if let Role::Leads(leading) = &self.role {
                let led = leading.epoch;
                self.step_down(led, &mut out.replica);
            }
            self.rebuild(self.replica.commit(), &mut out.replica);
        } else if self.lacks_entries(record.base.index) {
            if let Err(error) = self.replica.clone().lead(&record, &mut Vec::new()) {
                return out.replica.push(Effect::CannotLead(error));
            }
            self.rebuild(record.base.index, &mut out.replica);
        }
        if is_ahead || matches!(self.role, Role::Rebuilds) {
            // Commands may come in any order.
            if self.waiting.as_ref().is_none_or(|(waiting, _)| waiting.config.epoch() <= epoch) {
                self.waiting = Some((record, learners));
            }
            return;
        }
        let mut actions = Vec::new();
        if let Err(error) = self.replica.lead(&record, &mut actions) {
            return out.replica.push(Effect::CannotLead(error));
        }
        self.perform(now, &mut actions, super::Source::Control, Vec::new(), handler, out);
        self.primary = Some((epoch, self.replica.id()));
        let Role::Follows(mut state) = std::mem::replace(&mut self.role, Role::Rebuilds) else {
            unreachable!("it has a state, and what deposed it left it")
        };
        if std::mem::take(&mut self.takes_snapshot) {
            state.end_snapshot();
        }
        if let Err(misfit) = self.tail.apply_to(&mut state, record.base.index, u64::MAX) {
            return self.give_up(misfit, &mut out.replica);
        }
        let mut shard = Shard::new(state, self.topology.clone(), self.shard_settings.clone());
        shard.set_last_run(self.runs);
        shard.announce(record.losses.clone());
        if std::mem::take(&mut self.is_clean) {
            shard.assume_clean();
        }
        if record.config.is_asynchronous() {
            shard.answer_early(self.settings.max_lag);
        }
        let is_held = std::mem::take(&mut self.is_held) || shard.has_met();
        if is_held {
            shard.hold();
        }
        let others = record.config.members().iter().copied().chain(learners);
        let peers: BTreeSet<ReplicaId> = others.filter(|id| *id != self.replica.id()).collect();
        let stream = |&to| (to, stream_of(&record, self.settings.stream, now.steady));
        let mut leading = Leading {
            shard,
            epoch,
            streams: peers.iter().map(stream).collect(),
            uninformed: peers,
            rounds: Rounds::new(record.config.clone(), record.lease),
            base: record.base.index,
            reads: Reads::default(),
            late_bytes: 0,
            vain: BTreeSet::new(),
            beats_at: now.steady.plus(self.settings.heartbeat),
            sends_at: None,
            doubted: record.earlier.clone(),
        };
        if !self.suspected {
            leading.handle_vouched(self.replica.id(), record.life);
        }
        if leading.is_alone() {
            self.tail = Tail::new(record.base.index);
        }
        self.role = Role::Leads(Box::new(leading));
        out.replica.push(Effect::Leads { epoch, is_held });
        let config = record.config.clone();
        self.record = Some(record);
        self.run_shard(now, shard::Input::Start(config), handler, out);
    }

    /// Sends the log to learners as well that are new in the epoch that this replica leads. A former one keeps its stream.
    fn add_learners(&mut self, now: Now, record: &EpochRecord, learners: &[ReplicaId]) {
        let Role::Leads(leading) = &mut self.role else { return };
        let is_new = |id: &&ReplicaId| **id != self.replica.id() && !leading.streams.contains_key(id);
        let new: Vec<ReplicaId> = learners.iter().filter(is_new).copied().collect();
        if leading.is_alone() && !new.is_empty() {
            // Entries that come are kept for them.
            self.tail = Tail::new(leading.shard.state().position().index);
        }
        for id in new {
            leading.streams.insert(id, stream_of(record, self.settings.stream, now.steady));
            leading.uninformed.insert(id);
        }
    }

    /// Ends to lead: the calls in flight are dropped, and the state becomes a backup's.
    pub(super) fn step_down(&mut self, epoch: Epoch, out: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.role, Role::Rebuilds) {
            Role::Leads(leading) => {
                out.push(Effect::Deposed(epoch));
                if leading.is_alone() {
                    self.tail = Tail::new(leading.shard.state().position().index);
                }
                self.runs = leading.shard.last_run();
                self.suspected = leading.shard.suspects();
                let mut state = leading.shard.into_state();
                // It would keep what is changed for one that takes nothing any more.
                state.end_snapshot();
                self.takes_snapshot = false;
                self.role = Role::Follows(state);
            }
            other => self.role = other,
        }
    }

    /// Handles an answer of a peer to what this replica sent while it led.
    pub(super) fn handle_answer(
        &mut self,
        now: Now,
        from: ReplicaId,
        frame: Frame,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        let Role::Leads(leading) = &mut self.role else { return };
        match frame {
            Frame::Ack { epoch, upto } if epoch == leading.epoch => {
                // A member cannot have more than was sent.
                let upto = upto.min(self.replica.table().last().index);
                if let Some(stream) = leading.streams.get_mut(&from) {
                    stream.handle_ack(now.steady, epoch, upto);
                }
                let stored = shard::Input::Stored { member: from, epoch, upto };
                self.run_shard(now, stored, handler, out);
            }
            Frame::Diverged { epoch, table } => {
                if let Some(stream) = leading.streams.get_mut(&from) {
                    stream.handle_diverged(epoch, self.replica.table(), &table);
                }
            }
            Frame::Refuse { epoch, promised } if epoch == leading.epoch && promised > epoch => {
                out.replica.push(Effect::Superseded { epoch, promised });
            }
            // Others are sent no round, and what is kept of them would have no bound.
            Frame::Confirm { epoch, round, mark, vouches }
                if epoch == leading.epoch && leading.streams.contains_key(&from) =>
            {
                leading.rounds.handle_confirmed(from, round, mark);
                leading.shard.note_lease(leading.rounds.leased_until());
                if vouches && !leading.doubted.is_empty() {
                    leading.handle_vouched(from, mark.life);
                }
                // Answers may have waited for the lease alone.
                self.release(now, handler, out);
            }
            Frame::Ack { .. } | Frame::Refuse { .. } | Frame::Confirm { .. } => {}
            Frame::Append { .. } | Frame::Ask(_) | Frame::Acked { .. } => {
                unreachable!("these are no answers")
            }
        }
    }

    /// Handles an input for the shard.
    pub(super) fn handle_shard_input(
        &mut self,
        now: Now,
        input: shard::Input,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        let input = match input {
            shard::Input::Query(query) if let Read::Stale { max_lag } = query.read => {
                return self.read_stale(now, query, max_lag, handler, out);
            }
            input => input,
        };
        let Role::Leads(leading) = &mut self.role else {
            if let Some(token) = input.token() {
                let primary = self.primary.map(|(_, primary)| primary).filter(|id| *id != self.replica.id());
                out.replica.push(Effect::NotPrimary { token, primary });
            }
            return;
        };
        let (kind, token) = match &input {
            shard::Input::Query(query) if query.read == Read::Linearizable => {
                (ReadKind::Linearizable, query.token)
            }
            // Under a lease, if the epoch has one.
            shard::Input::Query(Query { token, .. }) | shard::Input::Look { token, .. } => {
                (ReadKind::Primary, *token)
            }
            _ => return self.run_shard(now, input, handler, out),
        };
        if leading.late_bytes >= self.shard_settings.uncommitted_bytes_max {
            let refusal = Refusal::Overloaded { retry_after: Shard::RETRY_AFTER };
            let answer = leading.shard.refuse(token, refusal);
            return out.shard.push(shard::Effect::Answer(answer));
        }
        leading.hold(kind, Late::Call(input));
    }

    /// Gives the shard an input, and performs what it requests.
    pub(super) fn run_shard(
        &mut self,
        now: Now,
        input: shard::Input,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        let Role::Leads(leading) = &mut self.role else { return };
        let shard = &mut leading.shard;
        shard.note_lease(leading.rounds.leased_until());
        handler.sees_input(shard, &input);
        let deletion = match &input {
            shard::Input::Delete { token, .. } => Some(*token),
            _ => None,
        };
        // The observer sees the effects of each input alone.
        let mut earlier = if out.shard.is_empty() { Vec::new() } else { std::mem::take(&mut out.shard) };
        shard.handle(now, input, handler, &mut out.shard);
        handler.sees_effects(shard, &mut out.shard);
        let (last, commit) = (shard.state().position().index, shard.commit());
        if !leading.is_alone() {
            for effect in &out.shard {
                if let shard::Effect::Append { epoch, index, bytes } = effect {
                    let (epoch, index, bytes) = (*epoch, *index, Blob::from(&**bytes));
                    self.tail.push(LogEntry { point: LogPoint { epoch, index }, bytes }, None);
                }
            }
            let is_entry = |effect: &shard::Effect| matches!(effect, shard::Effect::Append { .. });
            leading.vain.extend(deletion.filter(|_| !out.shard.iter().any(is_entry)));
            let vain = &mut leading.vain;
            let is_late = |effect: &mut shard::Effect| match effect {
                shard::Effect::Answer(answer) => {
                    let is_vain = vain.remove(&answer.token);
                    answer.result.as_ref().map_or_else(Refusal::may_be_outdated, |_| is_vain)
                }
                _ => false,
            };
            let late: Vec<shard::Effect> = out.shard.extract_if(.., is_late).collect();
            for effect in late {
                if let shard::Effect::Answer(answer) = effect {
                    // It leaves only once what it saw is committed.
                    leading.hold(ReadKind::Primary, Late::Refused(answer));
                }
            }
        }
        if !earlier.is_empty() {
            earlier.append(&mut out.shard);
            out.shard = earlier;
        }
        self.note_own(last, commit);
    }

    /// Notes the last entry of the shard, which goes to the log, and its commit index.
    #[inline]
    pub(super) fn note_own(&mut self, last: Index, commit: Index) {
        if last > self.replica.table().last().index {
            self.replica.handle_own(last);
        }
        // An epoch is active once its start entry is committed, and its commit index is 0 before.
        if commit > Index(0) {
            self.replica.handle_commit(commit);
        }
    }

    /// Lets the shard run the calls that may be answered, and asks for confirmations for the others.
    pub(super) fn run_reads(&mut self, now: Now, handler: &mut dyn Watched, out: &mut Effects) {
        let Role::Leads(leading) = &mut self.role else { return };
        // One round at a time serves all reads that came before it.
        let is_open = leading.rounds.confirmed().next() != leading.rounds.next();
        let needs_round =
            leading.reads.needs_round(now.steady, &leading.rounds) || leading.shard.waits_for_lease();
        if !is_open && needs_round {
            leading.ask(now, &mut out.replica);
        }
        let Some(tracker) = leading.shard.tracker() else { return };
        let released = leading.reads.release(now.steady, &leading.rounds, tracker);
        leading.late_bytes -= released.iter().map(|(_, late)| late.bytes()).sum::<usize>();
        for (kind, late) in released {
            let call = match late {
                Late::Call(call) => call,
                Late::Refused(answer) => {
                    out.shard.push(shard::Effect::Answer(answer));
                    continue;
                }
            };
            if let Role::Leads(leading) = &mut self.role {
                leading.shard.note_read(kind == ReadKind::Primary);
            }
            self.run_shard(now, call, handler, out);
        }
    }

    /// Sends the peers what they lack, as far as their streams allow it.
    pub(super) fn send(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Role::Leads(leading) = &mut self.role else { return };
        let (table, commit) = (self.replica.table(), leading.shard.commit());
        // Entries for which nothing waits stay for a while: a backup has as much work with a frame of one entry as with one of many.
        let is_urgent = leading.shard.waits_for_backups() || leading.reads.waits_for_commit();
        let is_due = leading.sends_at.is_some_and(|at| at <= now.steady) || self.settings.pace == Micros(0);
        let waits = !is_urgent && !is_due;
        let sends_at = leading.sends_at.take();
        for (&to, stream) in &mut leading.streams {
            if waits
                && let Some(unsent) = stream.unsent(table.last().index, |index| self.tail.bytes_to(index))
                && unsent < self.settings.stream.frame
            {
                leading.sends_at = sends_at.or_else(|| Some(self.settings.next_departure(now.steady)));
                continue;
            }
            while let Some(outgoing) = stream.poll(table, commit, u64::MAX, |index| self.tail.bytes_to(index))
            {
                out.push(match outgoing {
                    Outgoing::Append { head, last } => match self.tail.entries(head.before.index, last) {
                        Some(entries) => {
                            let is_first = leading.uninformed.remove(&to);
                            let record = self.record.as_ref().filter(|_| is_first).cloned();
                            send_append(to, head, record, entries)
                        }
                        None => Effect::ReadLog { to, head, last },
                    },
                    Outgoing::Snapshot => Effect::SendSnapshot { to },
                });
            }
        }
    }

    /// Sends entries that were read from the log, if they are still in it. Otherwise the peer gets a snapshot.
    pub(super) fn handle_log_read(
        &mut self,
        to: ReplicaId,
        head: AppendHead,
        entries: Vec<LogEntry>,
        out: &mut Vec<Effect>,
    ) {
        let Role::Leads(leading) = &mut self.role else { return };
        if head.epoch != leading.epoch {
            return;
        }
        let table = self.replica.table();
        if !entries.is_empty() && entries.iter().all(|entry| table.has(entry.point)) {
            let is_first = leading.uninformed.remove(&to);
            let record = self.record.as_ref().filter(|_| is_first).cloned();
            out.push(send_append(to, head, record, entries));
        } else if let Some(stream) = leading.streams.get_mut(&to) {
            stream.handle_unread();
        }
    }
}

/// Returns the stream of an epoch to a peer.
fn stream_of(record: &EpochRecord, limits: StreamLimits, now: Time) -> Stream {
    let stream = Stream::new(record.config.epoch(), record.base, limits, now);
    stream.that_may_lose(record.config.durability().is_relaxed())
}

fn send_append(
    to: ReplicaId,
    head: AppendHead,
    record: Option<Box<EpochRecord>>,
    entries: Vec<LogEntry>,
) -> Effect {
    Effect::Send { to, frame: Frame::Append { head, record, entries } }
}

#[cfg(test)]
mod tests;
