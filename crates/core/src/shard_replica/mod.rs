//! A replica of one shard on one node: its log, its state, and, while it leads, the shard that ships.
//!
//! [`Replica`] decides what is promised, verified and acknowledged, [`Shard`] runs the handlers and decides what is committed and
//! may leave. This joins them:
//! - A *backup* or learner takes a primary's entries, acknowledges what is durable and verified in the primary's epoch, and
//!   applies what is committed as well (rule 16). So its state never rolls back.
//! - A *takeover* begins at exactly the base of the epoch's record: promise, cut and start entry are one batch, and the shard is
//!   made of the state and the rest of the log up to the base (rule 10). It counts the others' acknowledgements and those of its
//!   own disk alike (rule 17), and serves once its start entry is committed (rule 11).
//! - A *deposed* primary answers no call that is in flight: the shell, which knows them, does. Its state, which is ahead of the commit
//!   index, becomes a backup's as it is, as long as the log holds what it executed: entries of equal places are equal. Nothing is applied
//!   or read meanwhile, until the commit index has come so far. If the log is cut below it, the state is dropped and folded anew from the
//!   log.
//!
//! The node's log keeps everything; in memory are the entries that may have to be applied or cut, and the last committed ones for
//! peers. A primary without peers keeps none, and its shard handles each input as if there were no replica around it.
//!
//! Many inputs of a turn need one frame to each peer, and one round of confirmations: [`ShardReplica::flush`] ends the turn.
//!
//! Never reads a clock, a log or a network: all comes in by [`ShardReplica::handle`] and
//! [`ShardReplica::handle_shard`], and goes out in [`Effects`].

mod io;
mod leading;
mod recovery;
mod stale;
mod tail;

pub use io::{Effect, Effects, Frame, Input, LogEntry, Record, ReplicaName, ReplicaSettings, Watched};
pub use recovery::{Recovery, ReplicaLog};

use crate::clock::Now;
use crate::durability::Durability;
use crate::entry::Entry;
use crate::ids::{Epoch, Index, Micros, ReplicaId, ShardId, StepRun, Time};
use crate::records::Piece;
use crate::replication::epoch::{EpochRecord, SealAnswer};
use crate::replication::lease::Grants;
use crate::replication::replica::{Action, AppendHead, InvalidAppend, Replica};
use crate::replication::stream::Stream;
use crate::replication::table::LogPoint;
use crate::shard::{self, Settings, Shard};
use crate::state::{Header, Misfit, State};
use crate::topology::Topology;
use leading::Leading;
use std::sync::Arc;
use tail::Tail;

/// A replica of a shard, in one life of its process.
pub struct ShardReplica {
    id: ShardId,
    topology: Arc<Topology>,
    shard_settings: Settings,
    settings: ReplicaSettings,
    replica: Replica,
    tail: Tail,
    role: Role,
    /// The highest epoch to lead once the state is folded anew.
    waiting: Option<(Box<EpochRecord>, Vec<ReplicaId>)>,
    /// The number of times that a state was asked to be folded anew.
    rebuilds: u64,
    /// The last entry that the newest of them may hold.
    rebuilds_upto: Index,
    /// The newest epoch of which this replica has heard the primary, and that one.
    primary: Option<(Epoch, ReplicaId)>,
    /// The record of the newest epoch in which it has taken part in this life, as far as it has seen it.
    record: Option<Box<EpochRecord>>,
    /// The last run of a step of the epochs that it has led in this life.
    runs: StepRun,
    /// The last end of this node's process is known to have met no cause.
    is_clean: bool,
    /// The shard is held when it begins, whatever it has met itself.
    is_held: bool,
    /// The last epoch that it led in this life ended while its shard still suspected causes of which the log has no attempts.
    suspected: bool,
    /// An entry did not follow from the state, or one is missing that was acknowledged.
    is_unusable: bool,
    /// The last entry that the state held when its age was last reported.
    applied: Index,
    /// Whether a snapshot of the state waits to be drained.
    takes_snapshot: bool,
    /// Empty, with capacity.
    actions: Vec<Action>,
}

#[expect(clippy::large_enum_variant, reason = "there is one in a replica, and most hold a state")]
enum Role {
    /// The state may be ahead of the commit index, if it was a primary's; then nothing is applied.
    Follows(State),
    Leads(Box<Leading>),
    /// The state is being folded anew.
    Rebuilds,
}

/// The source of what is handled, to which refusals go.
#[derive(Clone, Copy)]
enum Source {
    Control,
    Peer(ReplicaId),
}

impl ShardReplica {
    /// Creates a replica from its snapshot and log. `grants` are as for [`Replica::new`].
    ///
    /// # Panics
    /// If the topology has no such shard.
    #[must_use]
    pub fn new(
        name: ReplicaName,
        recovery: Recovery,
        grants: Grants,
        topology: Arc<Topology>,
        shard_settings: Settings,
        settings: ReplicaSettings,
    ) -> Self {
        let recovery::Recovered { state, promised, table, tail } = recovery.finish();
        assert!(topology.service_of(state.shard()).is_some(), "a replica is made for its topology");
        let replica = Replica::new(name.id, name.life, promised, table, grants);
        Self {
            id: state.shard(),
            topology,
            shard_settings,
            settings,
            replica,
            tail,
            role: Role::Follows(state),
            waiting: None,
            rebuilds: 0,
            rebuilds_upto: Index(0),
            primary: None,
            record: None,
            runs: StepRun::default(),
            is_clean: false,
            is_held: false,
            suspected: false,
            is_unusable: false,
            applied: Index(0),
            takes_snapshot: false,
            actions: Vec::new(),
        }
    }

    /// Notes that no cause that waits in the state can have ended a process, so that no attempts are logged in the first epoch that
    /// this replica leads. Must be called only if that is certain: the last life of this node ended in order, or there was none,
    /// and no other replica leads in between.
    pub fn assume_clean(&mut self) {
        self.is_clean = true;
    }

    /// Whether the last life ended while a message or timer had begun: see [`Shard::has_met`].
    #[must_use]
    pub fn has_met(&self) -> bool {
        !self.is_clean && self.state().is_some_and(State::has_begun_handlers)
    }

    /// Makes the first epoch that this replica leads begin with a shard that is held, because shards of the same node try what
    /// their last life has met.
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// Lets entries leave at once from now on, because the process ends.
    pub fn hurry(&mut self) {
        self.settings.pace = Micros(0);
    }

    /// Returns [`ReplicaSettings::max_lag`].
    #[must_use]
    pub fn max_lag(&self) -> Micros {
        self.settings.max_lag
    }

    /// Sets [`ReplicaSettings::max_lag`] by a newer dial. A primary's comes with its record ([`Input::Lead`]), and stays.
    pub fn follow_dial(&mut self, max_lag: Micros) {
        if self.replica.leads().is_none() {
            self.set_max_lag(max_lag);
        }
    }

    fn set_max_lag(&mut self, max_lag: Micros) {
        self.settings.max_lag = max_lag;
        if let Role::Leads(leading) = &mut self.role {
            leading.shard.set_max_lag(max_lag);
        }
    }

    /// Returns the number of its shard.
    #[must_use]
    pub fn shard_id(&self) -> ShardId {
        self.id
    }

    /// Returns what it promises and acknowledges.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Returns the record of the newest epoch in which this replica has taken part: its members, W and lease. `None` if it has seen
    /// none in this life. If it is of an older epoch than the replica has promised, it has not seen the record of that one.
    #[must_use]
    pub fn record(&self) -> Option<&EpochRecord> {
        self.record.as_deref()
    }

    /// Returns the shard, while this replica leads.
    #[must_use]
    pub fn shard(&self) -> Option<&Shard> {
        match &self.role {
            Role::Leads(leading) => Some(&leading.shard),
            Role::Follows(_) | Role::Rebuilds => None,
        }
    }

    /// Returns the shard to set its limits and to drain the snapshots of checkpoints, while this replica leads.
    pub fn shard_mut(&mut self) -> Option<&mut Shard> {
        match &mut self.role {
            Role::Leads(leading) => Some(&mut leading.shard),
            Role::Follows(_) | Role::Rebuilds => None,
        }
    }

    /// Returns the state, which may be ahead of the commit index; `None` while it is folded anew.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        match &self.role {
            Role::Follows(state) => Some(state),
            Role::Leads(leading) => Some(leading.shard.state()),
            Role::Rebuilds => None,
        }
    }

    /// Whether it is to lead as soon as its state has been folded.
    #[must_use]
    pub fn waits_to_lead(&self) -> bool {
        self.waiting.is_some()
    }

    /// Returns the state if all of it is committed: it may be read as a stale one.
    #[must_use]
    pub fn committed_state(&self) -> Option<&State> {
        self.state().filter(|state| state.position().index <= self.replica.commit())
    }

    /// Returns when the effects of an input have to be synced, before the shell performs them. As long as the record of the epoch is not
    /// known, that is before they count as durable.
    #[must_use]
    pub fn durability(&self, effects: &Effects) -> Durability {
        let record = self.record.as_ref().filter(|record| record.config.epoch() == self.replica.promised());
        let epoch = record.map_or(Durability::Always, |record| record.config.durability());
        effects.durability(self.id, epoch)
    }

    /// Begins a snapshot of the state, in the place of one that runs: drain it with [`Self::drain_snapshot`]. Returns its header without
    /// the messages in outboxes, which come with the records. That of a primary counts only once its position is committed in the epoch
    /// that it leads. `None` if the state cannot be taken now: it is ahead of the commit index and not a primary's, or is folded anew.
    pub fn begin_snapshot(&mut self) -> Option<Box<Header>> {
        let commit = self.replica.commit();
        let header = match &mut self.role {
            Role::Leads(leading) => leading.shard.begin_snapshot(),
            Role::Follows(state) if state.position().index <= commit => Box::new(state.begin_snapshot(true)),
            Role::Follows(_) | Role::Rebuilds => return None,
        };
        self.takes_snapshot = true;
        Some(header)
    }

    /// Appends up to `records` more records and messages of the running snapshot to `out`; returns true once it is complete, and `None`
    /// if it is over, because another state took the place of that one, or the replica leads now or does no more.
    pub fn drain_snapshot(&mut self, records: usize, out: &mut Piece) -> Option<bool> {
        if !self.takes_snapshot {
            return None;
        }
        let is_drained = match &mut self.role {
            Role::Leads(leading) => leading.shard.drain_snapshot(records, out),
            Role::Follows(state) => state.drain_snapshot(records, out),
            Role::Rebuilds => unreachable!("what drops the state ends its snapshot"),
        };
        self.takes_snapshot = !is_drained;
        Some(is_drained)
    }

    /// Returns the entries in memory behind an index, up to another one; `None` if some are no longer in memory.
    #[must_use]
    pub fn entries(&self, before: Index, last: Index) -> Option<Vec<LogEntry>> {
        self.tail.entries(before, last)
    }

    /// Returns the learners to which this replica sends its log, while it leads, and whether each holds the log but for what may be on
    /// its way.
    pub fn learners(&self) -> impl Iterator<Item = (ReplicaId, bool)> {
        let leading = if let Role::Leads(leading) = &self.role { Some(leading) } else { None };
        let members = self.record.as_ref().map_or(&[][..], |record| record.config.members());
        let streams = leading.into_iter().flat_map(|leading| leading.streams());
        let last = self.replica.table().last().index;
        let close = move |stream: &Stream| stream.is_close(last, |index| self.tail.bytes_to(index));
        streams.filter(|(id, _)| !members.contains(id)).map(move |(id, stream)| (*id, close(stream)))
    }

    /// Returns the other replicas to which it sends its log while it leads, the last entry that each is known to have stored, and whether it
    /// was slow at the last heartbeat ([`Stream::is_slow`]).
    pub fn backups(&self) -> impl Iterator<Item = (ReplicaId, Index, bool)> {
        let leading = if let Role::Leads(leading) = &self.role { Some(leading) } else { None };
        let streams = leading.into_iter().flat_map(|leading| leading.streams());
        streams.map(|(id, stream)| (*id, stream.acked(), stream.is_slow()))
    }

    /// Returns the oldest snapshot that is on its way to a peer: the log must not be trimmed behind it. `None` if none is.
    #[must_use]
    pub fn snapshot_sent(&self) -> Option<LogPoint> {
        match &self.role {
            Role::Leads(leading) => leading.snapshot_sent(),
            Role::Follows(_) | Role::Rebuilds => None,
        }
    }

    /// Returns the time at which [`Input::Tick`] is due; a past time means at once.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let leading = match &self.role {
            Role::Leads(leading) => leading.deadline(),
            Role::Follows(state) => {
                // More is committed than one input applies.
                let is_behind = state.position().index < self.replica.commit();
                (is_behind && !self.lacks_entries(Index(u64::MAX))).then_some(Time(0))
            }
            Role::Rebuilds => None,
        };
        self.replica.wakes_at().into_iter().chain(leading).min()
    }

    /// Handles one input. `now.steady` is a clock that counts the time in which the machine was suspended. `out` is empty, and gets
    /// the effects.
    ///
    /// # Panics
    /// If a rule was broken whose violation a crash would turn into a lost or contradicted promise, or `out` was not empty.
    pub fn handle(&mut self, now: Now, input: Input, handler: &mut dyn Watched, out: &mut Effects) {
        assert!(out.is_empty(), "the effects of an input are performed before the next one");
        if self.is_unusable {
            // The report may have been lost.
            if matches!(input, Input::Seal(_) | Input::Connected(_)) {
                out.replica.push(Effect::Void { lacks: None });
            }
            return;
        }
        // In most turns of a node without peers: nothing but its shard has something to do.
        if let Input::Durable(records) = input
            && let Role::Leads(leading) = &mut self.role
            && leading.is_alone()
            && let Some(upto) = self.replica.take_own_durable(records)
        {
            let stored = shard::Input::Stored { member: self.replica.id(), epoch: leading.epoch(), upto };
            let (last, commit) = leading.handle_alone(now, stored, handler, &mut out.shard);
            return self.note_own(last, commit);
        }
        self.handle_input(now, input, handler, out);
        self.apply_committed(&mut out.replica);
    }

    /// Handles an input for the shard, for which this replica must lead: calls, messages of channels and the like. Otherwise as
    /// [`Self::handle`].
    ///
    /// # Panics
    /// As [`Self::handle`]; for `Start`, `Stored` and `Tick`, which come from [`Self::handle`] alone.
    #[inline]
    pub fn handle_shard(
        &mut self,
        now: Now,
        input: shard::Input,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        assert!(out.is_empty(), "the effects of an input are performed before the next one");
        assert!(
            !matches!(input, shard::Input::Start(_) | shard::Input::Stored { .. } | shard::Input::Tick),
            "epochs, acknowledgements and ticks come from the replica itself"
        );
        // Without a move of the input or a further call: a node without peers gives all its inputs here.
        if let Role::Leads(leading) = &mut self.role
            && leading.is_alone()
        {
            let (last, commit) = leading.handle_alone(now, input, handler, &mut out.shard);
            return self.note_own(last, commit);
        }
        if self.is_unusable {
            return;
        }
        self.handle_shard_input(now, input, handler, out);
        self.apply_committed(&mut out.replica);
    }

    /// Does once for all inputs of a turn what follows from them: sends the peers what they lack, and runs the queries that may be
    /// answered. Must be called after them, or their entries do not leave. `out` may have effects that were not performed yet.
    pub fn flush(&mut self, now: Now, handler: &mut dyn Watched, out: &mut Effects) {
        if let Role::Leads(leading) = &self.role
            && !leading.is_alone()
        {
            self.run_reads(now, handler, out);
            self.send(now, &mut out.replica);
        }
    }

    fn handle_input(&mut self, now: Now, input: Input, handler: &mut dyn Watched, out: &mut Effects) {
        if let Input::Durable(0) = input {
            return self.release(now, handler, out);
        }
        let mut actions = std::mem::take(&mut self.actions);
        let mut source = Source::Control;
        match input {
            Input::Frame { from, frame: Frame::Append { head, record, entries } } => {
                if let Some(record) = &record
                    && (record.config.epoch(), record.config.primary()) != (head.epoch, from)
                {
                    let (epoch, primary) = (record.config.epoch(), record.config.primary());
                    let sent = head.epoch;
                    let reason =
                        format!("a frame of epoch {sent} has the record of epoch {epoch}, led by {primary}");
                    return out.replica.push(Effect::Invalid { from, reason });
                }
                if self.handle_append(now, from, head, entries, handler, out) {
                    self.note_record(record);
                }
                return;
            }
            Input::Frame { from, frame: Frame::Ask(ask) } => {
                source = Source::Peer(from);
                self.note_primary(ask.epoch, from);
                self.replica.handle_ask(now.steady, ask, &mut actions);
            }
            Input::Frame { frame: Frame::Acked { epoch, upto }, .. } => {
                if self.replica.lacks(epoch, upto) {
                    self.is_unusable = true;
                    out.replica.push(Effect::Void { lacks: Some(upto) });
                }
                return;
            }
            Input::Frame { from, frame } => return self.handle_answer(now, from, frame, handler, out),
            Input::Connected(peer) => {
                if let Role::Leads(leading) = &mut self.role {
                    let kept = leading.handle_connected(peer);
                    let epoch = leading.epoch();
                    if let Some(of) = self.replica.table().epoch_at(kept).filter(|_| kept > Index(0)) {
                        let upto = LogPoint { epoch: of, index: kept };
                        out.replica.push(Effect::Send { to: peer, frame: Frame::Acked { epoch, upto } });
                    }
                } else if let Some((epoch, _)) = self.primary.filter(|(_, primary)| *primary == peer) {
                    // The answers to its frames, for which it waits, may be lost: this one makes it send again.
                    let table = self.replica.table().clone();
                    out.replica.push(Effect::Send { to: peer, frame: Frame::Diverged { epoch, table } });
                }
            }
            Input::Follow { epoch, primary } => {
                let is_heard = self.primary.is_some() || primary == self.replica.id();
                self.note_primary(epoch, primary);
                if !is_heard {
                    let table = self.replica.table().clone();
                    self.send_primary(epoch, Frame::Diverged { epoch, table }, &mut out.replica);
                }
            }
            Input::Durable(records) => self.replica.handle_durable(now.steady, records, &mut actions),
            Input::Seal(seal) => self.replica.handle_seal(now.steady, seal, &mut actions),
            Input::Lead { record, learners, max_lag } => {
                // One that comes late is of an older dial.
                if self.replica.leads().is_none_or(|led| led <= record.config.epoch()) {
                    self.set_max_lag(max_lag);
                }
                return self.lead(now, record, learners, handler, out);
            }
            // An older one may lack what was installed or applied since.
            Input::Rebuilt { number, state } if number == self.rebuilds => {
                self.handle_rebuilt(now, *state, handler, out);
            }
            Input::Rebuilt { .. } => {}
            Input::LogRead { to, head, entries } => self.handle_log_read(to, head, entries, &mut out.replica),
            Input::SnapshotSent { to, base } => {
                if let Role::Leads(leading) = &mut self.role {
                    leading.handle_snapshot_sent(to, base);
                }
            }
            Input::SnapshotReceived { to, base } => {
                if let Role::Leads(leading) = &mut self.role {
                    leading.handle_snapshot_received(to, base);
                }
            }
            Input::Installed { from, epoch, base, state } => {
                assert_eq!(
                    state.position().index,
                    base.index,
                    "a snapshot covers the entries up to its base"
                );
                source = Source::Peer(from);
                if let Err(error) = self.replica.handle_snapshot(epoch, base, &mut actions) {
                    return refuse_invalid(from, error, &mut out.replica);
                }
                self.note_primary(epoch, from);
                let installs = actions.iter().any(|action| matches!(action, Action::WriteInstall { .. }));
                self.perform(now, &mut actions, source, Vec::new(), handler, out);
                if installs {
                    (self.role, self.tail) = (Role::Follows(*state), Tail::new(base.index));
                    self.takes_snapshot = false;
                    self.lead_waiting(now, handler, out);
                }
                return;
            }
            Input::Trimmed(base) => self.replica.handle_trimmed(base),
            Input::Tick => {
                self.replica.handle_tick(now.steady, &mut actions);
                if let Role::Leads(leading) = &mut self.role {
                    leading.beat(now, &self.replica, &self.tail, &self.settings, &mut out.replica);
                    self.run_shard(now, shard::Input::Tick, handler, out);
                }
            }
        }
        self.perform(now, &mut actions, source, Vec::new(), handler, out);
        self.actions = actions;
    }

    /// Lets more leave of what is committed.
    fn release(&mut self, now: Now, handler: &mut dyn Watched, out: &mut Effects) {
        if let Role::Leads(leading) = &self.role
            && leading.shard.is_behind()
        {
            let (member, epoch, upto) = (self.replica.id(), leading.epoch(), leading.shard.commit());
            self.run_shard(now, shard::Input::Stored { member, epoch, upto }, handler, out);
        }
    }

    /// Takes a primary's entries; returns false if they are invalid.
    fn handle_append(
        &mut self,
        now: Now,
        from: ReplicaId,
        head: AppendHead,
        entries: Vec<LogEntry>,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) -> bool {
        let points: Vec<LogPoint> = entries.iter().map(|entry| entry.point).collect();
        let mut decoded = Vec::with_capacity(entries.len());
        for entry in entries {
            // Entries that are here already are not looked at.
            let contents = if self.replica.table().has(entry.point) {
                None
            } else {
                match Entry::decode(&entry.bytes) {
                    Ok(contents)
                        if (contents.epoch, contents.index) == (entry.point.epoch, entry.point.index) =>
                    {
                        Some(Box::new(contents))
                    }
                    Ok(contents) => {
                        let (index, found) = (entry.point.index, contents.index);
                        let reason = format!("the frame's entry {index} says that it is entry {found}");
                        out.replica.push(Effect::Invalid { from, reason });
                        return false;
                    }
                    Err(error) => {
                        out.replica.push(Effect::Invalid { from, reason: error.to_string() });
                        return false;
                    }
                }
            };
            decoded.push((entry, contents));
        }
        let mut actions = Vec::new();
        if let Err(error) = self.replica.handle_append(head, &points, &mut actions) {
            refuse_invalid(from, error, &mut out.replica);
            return false;
        }
        self.note_primary(head.epoch, from);
        self.perform(now, &mut actions, Source::Peer(from), decoded, handler, out);
        true
    }

    /// Notes the record of an epoch that is not over here.
    fn note_record(&mut self, record: Option<Box<EpochRecord>>) {
        let epoch = self.record.as_ref().map(|known| known.config.epoch());
        let is_newer = |new: Epoch| new >= self.replica.promised() && epoch.is_none_or(|epoch| epoch < new);
        if let Some(record) = record
            && is_newer(record.config.epoch())
        {
            self.record = Some(record);
        }
    }

    /// Notes the primary of an epoch, to which acknowledgements of that epoch go.
    fn note_primary(&mut self, epoch: Epoch, from: ReplicaId) {
        if epoch >= self.replica.promised() && self.primary.is_none_or(|(known, _)| known <= epoch) {
            self.primary = Some((epoch, from));
        }
    }

    /// Performs what the replica decided, and empties it. `frame` has the entries of the handled frame.
    fn perform(
        &mut self,
        now: Now,
        actions: &mut Vec<Action>,
        source: Source,
        mut frame: Vec<(LogEntry, Option<Box<Entry>>)>,
        handler: &mut dyn Watched,
        out: &mut Effects,
    ) {
        for action in actions.drain(..) {
            match action {
                Action::WritePromise(epoch) => out.records.push(Record::Promise(epoch)),
                Action::WriteCut { epoch, keep } => {
                    self.tail.truncate(keep);
                    out.records.push(Record::Cut { epoch, keep });
                    let is_ahead = match &self.role {
                        Role::Follows(state) => state.position().index > keep,
                        Role::Rebuilds => self.rebuilds_upto > keep,
                        Role::Leads(_) => false,
                    };
                    if is_ahead {
                        self.rebuild(self.replica.commit(), &mut out.replica);
                    }
                }
                Action::WriteEntries { from } => {
                    for (entry, contents) in frame.drain(from..) {
                        out.records.push(Record::Entry(entry.clone()));
                        self.tail.push(entry, contents);
                    }
                }
                Action::WriteInstall { epoch, base } => out.records.push(Record::Install { epoch, base }),
                Action::Ack { epoch, upto } if self.replica.leads() == Some(epoch) => {
                    let member = self.replica.id();
                    self.run_shard(now, shard::Input::Stored { member, epoch, upto }, handler, out);
                }
                Action::Ack { epoch, upto } => {
                    self.send_primary(epoch, Frame::Ack { epoch, upto }, &mut out.replica);
                }
                Action::Diverged { epoch, table } => {
                    self.send_primary(epoch, Frame::Diverged { epoch, table }, &mut out.replica);
                }
                Action::Confirm { epoch, round, mark } => {
                    let vouches = self.replica.leads().is_none() && !self.suspected;
                    let frame = Frame::Confirm { epoch, round, mark, vouches };
                    self.send_primary(epoch, frame, &mut out.replica);
                }
                Action::Refuse { epoch, promised } => out.replica.push(match source {
                    Source::Peer(to) => Effect::Send { to, frame: Frame::Refuse { epoch, promised } },
                    Source::Control => Effect::Superseded { epoch, promised },
                }),
                Action::Sealed(answer) => {
                    let is_folding =
                        matches!(self.role, Role::Rebuilds) || self.lacks_entries(Index(u64::MAX));
                    out.replica.push(Effect::Sealed(SealAnswer { is_folding, ..answer }));
                }
                Action::Deposed(epoch) => self.step_down(epoch, &mut out.replica),
            }
        }
    }

    fn send_primary(&self, epoch: Epoch, frame: Frame, out: &mut Vec<Effect>) {
        if let Some((_, to)) = self.primary.filter(|(known, _)| *known == epoch) {
            out.push(Effect::Send { to, frame });
        }
    }

    /// Drops the state: it holds what is not in the log any more, or lacks what is not in memory. That of a primary-to-be may hold
    /// more than what is known to be committed.
    fn rebuild(&mut self, upto: Index, out: &mut Vec<Effect>) {
        (self.role, self.takes_snapshot) = (Role::Rebuilds, false);
        self.rebuilds += 1;
        self.rebuilds_upto = upto;
        out.push(Effect::Rebuild { number: self.rebuilds, from: self.tail.before().min(upto), upto });
    }

    /// Whether entries up to an index that the state lacks were left in the log at the start.
    fn lacks_entries(&self, upto: Index) -> bool {
        let end = self.tail.before().min(upto);
        matches!(&self.role, Role::Follows(state) if state.position().index < end)
    }

    fn handle_rebuilt(&mut self, now: Now, state: State, handler: &mut dyn Watched, out: &mut Effects) {
        if !matches!(self.role, Role::Rebuilds) {
            return;
        }
        let index = state.position().index;
        assert!(
            index >= self.tail.before().min(self.rebuilds_upto),
            "entry {index} is followed by the entries in memory [2]"
        );
        assert!(
            index <= self.rebuilds_upto.max(self.replica.commit()),
            "entry {index} of a state that is folded anew is committed [2]"
        );
        self.role = Role::Follows(state);
        self.lead_waiting(now, handler, out);
    }

    /// Leads the epoch that waited for a state.
    fn lead_waiting(&mut self, now: Now, handler: &mut dyn Watched, out: &mut Effects) {
        if let Some((record, learners)) = self.waiting.take() {
            self.lead(now, record, learners, handler, out);
        }
    }

    /// Handles nothing any more: the state is of no use.
    fn give_up(&mut self, misfit: Misfit, out: &mut Vec<Effect>) {
        self.is_unusable = true;
        (self.role, self.takes_snapshot) = (Role::Rebuilds, false);
        out.push(Effect::Unusable(misfit));
    }

    /// Applies what is committed and matched in the primary's epoch (rule 16).
    fn apply_committed(&mut self, out: &mut Vec<Effect>) {
        if let Role::Leads(leading) = &self.role
            && leading.is_alone()
        {
            return;
        }
        let commit = self.replica.commit();
        if self.lacks_entries(Index(u64::MAX)) {
            if commit >= self.tail.before() {
                self.rebuild(commit, out);
            }
            return;
        }
        let applied = match &mut self.role {
            Role::Follows(state) => {
                if let Err(misfit) = self.tail.apply_to(state, commit, self.settings.apply_bytes) {
                    return self.give_up(misfit, out);
                }
                if state.position().index == commit {
                    self.applied = commit;
                    self.replica.handle_applied(commit);
                }
                commit.min(state.position().index)
            }
            Role::Leads(_) => commit,
            Role::Rebuilds => return,
        };
        self.tail.trim(applied, self.settings.tail_bytes);
    }
}

/// Reports an invalid frame.
fn refuse_invalid(from: ReplicaId, error: InvalidAppend, out: &mut Vec<Effect>) {
    if let InvalidAppend::GivenUp { frame: epoch, .. } = error {
        out.push(Effect::GivenUp { from, epoch });
    }
    out.push(Effect::Invalid { from, reason: error.to_string() });
}
