//! A small world around the replicas that ship: a log on a disk, a network that loses, repeats and reorders everything, a
//! control plane, crashes, and a clock. The model checker takes every path through it.

use std::collections::{BTreeMap, BTreeSet};
use stead_core::commit_tracker::{CommitTracker, EpochConfig};
use stead_core::durability::Durability;
use stead_core::ids::{Epoch, Index, Life, Micros, ReplicaId, Round, Time};
use stead_core::replication::epoch::{Ask, EpochRecord, Mark, Seal, SealAnswer};
use stead_core::replication::history::{History, Takeover, TakeoverError};
use stead_core::replication::lease::Grants;
use stead_core::replication::reads::{ReadKind, Reads};
use stead_core::replication::replica::{Action, AppendHead, Replica};
use stead_core::replication::rounds::Rounds;
use stead_core::replication::stream::{Outgoing, Stream, StreamLimits};
use stead_core::replication::table::{EpochTable, LogPoint, Losses};

/// An entry with a value of its own, so that two entries of one place would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) at: LogPoint,
    pub(crate) value: u8,
}

/// A rule that the model breaks on purpose: the checks must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mistake {
    /// Rule 7: the answer to a seal leaves before the promise is durable.
    SealNotDurable,
    /// Rule 7: an append of an older epoch is stored and acknowledged after a seal.
    TakesAfterSeal,
    /// Rule 9: only the newest epoch's members have to be sealed.
    NewestEpochOnly,
    /// Rule 3: a replica that lost its disk keeps its number.
    WipedVoter,
    /// Rule 11: a primary that restarted goes on in its epoch.
    LeadsAgain,
    /// Rule 2: a learner's acknowledgement counts.
    LearnerCounts,
    /// Rule 19: a loss is not recorded.
    LossNotRecorded,
    /// Rule 10: the longest log wins.
    LongestWins,
    /// Rule 11: entries of older epochs count as committed before the start entry is.
    OldTailCounts,
    /// Rule 15: a replica acknowledges its last entry, verified or not.
    AcksLast,
    /// Section 1 of the design: the primary's W changes within its epoch.
    AcksChange,
    /// Rule 21: a primary answers without its lease.
    LeaseIgnored,
    /// Rule 21: a member that restarted answers a seal at once.
    ForgetsGrants,
    /// Rule 22: a round that began before a read came serves it.
    OldRound,
    /// Section 3 of the design: a linearizable read does not wait for what it saw.
    SpeculativeRead,
    /// Section 3 of the design: a primary counts its age from the last round that it began.
    PausedClaimsFresh,
    /// A replica counts its age from when a report came.
    ReportClaimsFresh,
    /// Section 6 of the design: a snapshot of entries that are not committed is installed.
    SnapshotAhead,
    /// Rule 3: a replica that may have lost what it acknowledged seals like any other.
    DoubtForgotten,
    /// Rule 4: an install keeps the tail of a log that is another one at the snapshot's entry.
    KeepsTail,
}

/// A frame. None is ever taken out of the network: each may come again at any time, or never.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Frame {
    Append { to: ReplicaId, head: AppendHead, entries: Vec<Entry> },
    Snapshot { to: ReplicaId, epoch: Epoch, state: Vec<Entry> },
    Ask { to: ReplicaId, ask: Ask },
    Ack { from: ReplicaId, epoch: Epoch, upto: Index },
    Diverged { from: ReplicaId, epoch: Epoch, base: LogPoint, log: Vec<LogPoint> },
    Confirm { from: ReplicaId, epoch: Epoch, round: Round, mark: Mark },
}

/// A tick of the clock, and the lease of every epoch: so a lease holds until the next tick, and a grant is over with the one
/// after that.
const TICK: Micros = Micros(1_000);
const LEASE: Micros = TICK;

/// Each entry goes in a frame of its own: they come one by one, in any order, or in part.
const LIMITS: StreamLimits =
    StreamLimits { window: u64::MAX, frame: 1, lag_max: u64::MAX, stall_max: Micros(u64::MAX) };

/// A record on its way to the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Record {
    Entry(Entry),
    Cut(Index),
    Promise(Epoch),
    /// The entries that a snapshot is the fold of.
    Install(Vec<Entry>),
}

/// The contents of a log, with those of the snapshot that it begins behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    promised: Epoch,
    /// The number of entries that only the snapshot has.
    trimmed: usize,
    pub(crate) entries: Vec<Entry>,
}

impl Log {
    fn write(&mut self, record: &Record) {
        match record {
            Record::Entry(entry) => self.entries.push(*entry),
            Record::Cut(keep) => self.entries.truncate(keep.0 as usize),
            Record::Promise(epoch) => self.promised = *epoch,
            Record::Install(state) => {
                self.trimmed = state.len();
                self.entries.clone_from(state);
            }
        }
    }

    fn table(&self) -> EpochTable {
        let base = self.trimmed.checked_sub(1).map_or(LogPoint::default(), |last| self.entries[last].at);
        let points = self.entries[self.trimmed..].iter().map(|entry| entry.at);
        table(base, points)
    }
}

fn stream(config: &EpochConfig, base: LogPoint, now: Time) -> Stream {
    Stream::new(config.epoch(), base, LIMITS, now).that_may_lose(config.durability().is_relaxed())
}

fn table(base: LogPoint, points: impl Iterator<Item = LogPoint>) -> EpochTable {
    let mut table = EpochTable::new(base);
    points.for_each(|point| table.push(point));
    table
}

/// A read that waits at a primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Read {
    /// The entries that it saw.
    seen: Vec<Entry>,
    /// The entries that it has to show: their clients were answered before it came.
    wanted: Vec<Entry>,
}

/// The primary's part of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leading {
    tracker: CommitTracker,
    streams: BTreeMap<ReplicaId, Stream>,
    rounds: Rounds,
    reads: Reads<Read>,
    /// The index up to which clients were answered.
    answered: Index,
    /// The time at which the last round began.
    asked: Time,
}

/// A node with its one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) life: Life,
    pub(crate) disk: Log,
    /// What is acknowledged, and would survive the process, but not a power cut.
    cached: Vec<Record>,
    written: Vec<Record>,
    pub(crate) leading: Option<Leading>,
}

impl Node {
    fn new(id: ReplicaId, life: Life, disk: Log, grants: Grants) -> Self {
        let replica = Replica::new(id, life, disk.promised, disk.table(), grants);
        Self { replica, life, disk, cached: Vec::new(), written: Vec::new(), leading: None }
    }

    /// All entries, with those on their way to the disk.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.log().entries
    }

    fn log(&self) -> Log {
        let mut log = self.disk.clone();
        self.cached.iter().chain(&self.written).for_each(|record| log.write(record));
        log
    }

    /// Whether it may acknowledge what it has written before that is synced: these are entries alone.
    pub(crate) fn can_cache(&self) -> bool {
        !self.written.is_empty() && self.written.iter().all(|record| matches!(record, Record::Entry(_)))
    }

    pub(crate) fn serves(&self) -> bool {
        self.leading.as_ref().is_some_and(|leading| leading.tracker.is_active())
    }

    pub(crate) fn written(&self) -> usize {
        self.written.len()
    }

    /// Returns the number of its records that a power cut may take.
    pub(crate) fn unsynced(&self) -> usize {
        self.cached.len() + self.written.len()
    }

    /// Whether it has committed entries that are durable and not trimmed.
    pub(crate) fn can_trim(&self) -> bool {
        self.unsynced() == 0 && self.replica.commit() > self.replica.table().base().index
    }
}

/// The world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) frames: BTreeSet<Frame>,
    pub(crate) history: History,
    /// All records, for those who lead by them.
    pub(crate) records: Vec<EpochRecord>,
    /// The answers to seals, by node: of the newest seal.
    pub(crate) answers: BTreeMap<ReplicaId, SealAnswer>,
    pub(crate) sealing: Option<Epoch>,
    next_id: u64,
    pub(crate) now: Time,
    /// Whether the clock runs. Otherwise no lease ends, and each that is needed holds.
    has_clock: bool,
    /// Whether a primary asks by an empty frame first where the logs part, as the protocol allows.
    pub(crate) asks_first: bool,
    /// Whether members acknowledge before they sync.
    durability: Durability,
    /// The number of values that were ever written: each is another one.
    values: u8,
    pub(crate) writes: usize,
    pub(crate) crashes: usize,
    pub(crate) cuts: usize,
    pub(crate) wipes: usize,
    pub(crate) rounds: usize,
    pub(crate) reads: usize,
    pub(crate) reads_answered: usize,
    pub(crate) trims: usize,
    /// All that was ever committed.
    committed: Vec<Entry>,
    /// All that clients were answered, with the time.
    pub(crate) answered: BTreeMap<Entry, Time>,
    mistake: Option<Mistake>,
    pub(crate) wrong: Option<&'static str>,
}

/// The members of an epoch, as numbers of nodes, and its W.
pub(crate) type Shape = (&'static [usize], usize);

impl World {
    /// Creates a shard with replicas on some of the nodes; the first member leads, and all is at rest.
    pub(crate) fn new(
        nodes: usize,
        (members, acks): Shape,
        has_clock: bool,
        durability: Durability,
        mistake: Option<Mistake>,
    ) -> Self {
        let id = |node: usize| ReplicaId(node as u64 + 1);
        let config =
            EpochConfig::parse(Epoch(1), members.iter().map(|n| id(*n)).collect(), acks, id(members[0]));
        let config = config.expect("the model's shapes are valid").with_durability(durability);
        let history = History::new(config, Life(1), LEASE);
        let node = |node| Node::new(id(node), Life(1), Log::default(), Grants::new());
        let mut world = Self {
            nodes: (0..nodes).map(node).collect(),
            frames: BTreeSet::new(),
            records: vec![history.newest().clone()],
            history,
            answers: BTreeMap::new(),
            sealing: None,
            next_id: nodes as u64 + 1,
            now: Time(0),
            has_clock,
            asks_first: false,
            durability,
            values: 0,
            writes: 0,
            crashes: 0,
            cuts: 0,
            wipes: 0,
            rounds: 0,
            reads: 0,
            reads_answered: 0,
            trims: 0,
            committed: Vec::new(),
            answered: BTreeMap::new(),
            mistake,
            wrong: None,
        };
        world.lead(members[0], Epoch(1));
        world.settle();
        world
    }

    /// Everything arrives and is synced, until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..8 {
            (0..self.nodes.len()).for_each(|node| self.sync(node));
            for frame in std::mem::take(&mut self.frames) {
                self.deliver(&frame);
            }
        }
        self.frames.clear();
    }

    pub(crate) fn node_of(&self, id: ReplicaId) -> Option<usize> {
        self.nodes.iter().position(|node| node.replica.id() == id)
    }

    pub(crate) fn leader_of(&self, epoch: Epoch) -> Option<usize> {
        self.nodes.iter().position(|node| node.replica.leads() == Some(epoch))
    }

    /// Returns the node that a frame is for.
    pub(crate) fn receiver(&self, frame: &Frame) -> Option<usize> {
        match frame {
            Frame::Append { to, .. } | Frame::Snapshot { to, .. } | Frame::Ask { to, .. } => {
                self.node_of(*to)
            }
            Frame::Ack { epoch, .. } | Frame::Diverged { epoch, .. } | Frame::Confirm { epoch, .. } => {
                self.leader_of(*epoch)
            }
        }
    }

    /// The connections of a primary break, and it sends again what was not acknowledged.
    pub(crate) fn reconnect(&mut self, node: usize) {
        let Some(leading) = &mut self.nodes[node].leading else { return };
        leading.streams.values_mut().for_each(Stream::handle_connected);
        self.send(node);
    }

    /// Performs what a replica asks for. `entries` are those of the frame that it handled.
    fn perform(&mut self, node: usize, actions: Vec<Action>, entries: &[Entry]) {
        let id = self.nodes[node].replica.id();
        for action in actions {
            let Node { replica, written, .. } = &mut self.nodes[node];
            match action {
                Action::WritePromise(epoch) => written.push(Record::Promise(epoch)),
                Action::WriteCut { keep, .. } => written.push(Record::Cut(keep)),
                Action::WriteEntries { from } => {
                    written.extend(entries[from..].iter().map(|entry| Record::Entry(*entry)));
                }
                Action::WriteInstall { .. } => self.install(node, entries),
                Action::Ack { epoch, upto } if replica.leads() == Some(epoch) => self.stored(id, epoch, upto),
                Action::Ack { epoch, upto } => {
                    let is_wrong = self.mistake == Some(Mistake::AcksLast);
                    let upto = if is_wrong { replica.table().last().index } else { upto };
                    self.frames.insert(Frame::Ack { from: id, epoch, upto });
                }
                Action::Diverged { epoch, table } => {
                    let base = table.base();
                    let entries = self.nodes[node].entries();
                    let log = entries[base.index.0 as usize..].iter().map(|entry| entry.at).collect();
                    self.frames.insert(Frame::Diverged { from: id, epoch, base, log });
                }
                Action::Confirm { epoch, round, mark } => {
                    self.frames.insert(Frame::Confirm { from: id, epoch, round, mark });
                }
                Action::Sealed(answer) => {
                    if self.sealing == Some(answer.epoch) {
                        self.answers.insert(answer.replica, answer);
                    }
                }
                Action::Deposed(_) => self.nodes[node].leading = None,
                Action::Refuse { .. } => {}
            }
        }
    }

    fn install(&mut self, node: usize, state: &[Entry]) {
        let old = self.nodes[node].entries();
        let Node { replica, life, written, disk, .. } = &mut self.nodes[node];
        written.push(Record::Install(state.to_vec()));
        if self.mistake == Some(Mistake::KeepsTail) {
            let tail = old.get(state.len()..).unwrap_or_default();
            written.extend(tail.iter().map(|entry| Record::Entry(*entry)));
            written.drain(..).for_each(|record| disk.write(&record));
            *replica = Replica::new(replica.id(), *life, replica.promised(), disk.table(), Grants::new());
        }
    }

    /// A node leads an epoch that names it.
    pub(crate) fn lead(&mut self, node: usize, epoch: Epoch) {
        let Some(record) = self.records.iter().find(|record| record.config.epoch() == epoch).cloned() else {
            return;
        };
        let mut out = Vec::new();
        let replica = &mut self.nodes[node].replica;
        if replica.leads() == Some(epoch) || replica.lead(&record, &mut out).is_err() {
            return;
        }
        self.perform(node, out, &[]);
        self.nodes[node].leading = Some(self.leading(&record));
        if self.asks_first {
            let head = AppendHead { epoch, before: record.base, commit: Index(0) };
            let peers = record.config.members().iter().filter(|id| **id != record.config.primary());
            self.frames.extend(peers.map(|to| Frame::Append { to: *to, head, entries: Vec::new() }));
        }
        self.append(node, 0);
    }

    fn leading(&self, record: &EpochRecord) -> Leading {
        let EpochRecord { config, base, lease, .. } = record;
        let counted = match self.mistake {
            Some(Mistake::LearnerCounts) => self.with_learner(config),
            Some(Mistake::AcksChange) => {
                let majority = config.members().len() / 2 + 1;
                EpochConfig::parse(config.epoch(), config.members().to_vec(), majority, config.primary())
                    .expect("a majority of the members")
            }
            _ => config.clone(),
        };
        let start = if self.mistake == Some(Mistake::OldTailCounts) { Index(1) } else { base.index.next() };
        let peers = counted.members().iter().copied().filter(|id| *id != config.primary());
        Leading {
            streams: peers.map(|id| (id, stream(config, *base, self.now))).collect(),
            rounds: Rounds::new(counted.clone(), *lease),
            tracker: CommitTracker::new(counted, start),
            reads: Reads::default(),
            answered: Index(0),
            asked: Time(0),
        }
    }

    /// Mistake: a learner counts in the place of a member.
    fn with_learner(&self, config: &EpochConfig) -> EpochConfig {
        let mut ids = config.members().to_vec();
        let learner = self.nodes.iter().map(|node| node.replica.id()).find(|id| !ids.contains(id));
        let other = ids.iter_mut().find(|id| **id != config.primary());
        if let (Some(learner), Some(other)) = (learner, other) {
            *other = learner;
        }
        EpochConfig::parse(config.epoch(), ids, config.acks(), config.primary()).expect("as many members")
    }

    /// The primary appends an entry and sends it.
    fn append(&mut self, node: usize, value: u8) {
        let Some(epoch) = self.nodes[node].replica.leads() else { return };
        let index = self.nodes[node].replica.table().last().index.next();
        self.nodes[node].written.push(Record::Entry(Entry { at: LogPoint { epoch, index }, value }));
        self.nodes[node].replica.handle_own(index);
        self.perform(node, Vec::new(), &[]);
        self.send(node);
    }

    /// A client writes at a primary.
    pub(crate) fn write(&mut self, node: usize) {
        self.writes += 1;
        self.values += 1;
        self.append(node, self.values);
    }

    /// The primary sends to each peer what it has not sent yet.
    fn send(&mut self, node: usize) {
        let all = self.nodes[node].entries();
        let Node { replica, leading, .. } = &mut self.nodes[node];
        let (Some(epoch), Some(leading)) = (replica.leads(), leading) else { return };
        let (table, commit) = (replica.table(), leading.tracker.commit());
        for (&to, stream) in &mut leading.streams {
            while let Some(outgoing) = stream.poll(table, commit, u64::MAX, |index| index.0) {
                let frame = match outgoing {
                    Outgoing::Append { head, last } => {
                        let entries = all[head.before.index.0 as usize..last.0 as usize].to_vec();
                        Frame::Append { to, head, entries }
                    }
                    Outgoing::Snapshot => {
                        let is_ahead = self.mistake == Some(Mistake::SnapshotAhead);
                        let base = if is_ahead { table.last() } else { table.base() };
                        stream.handle_snapshot(base);
                        Frame::Snapshot { to, epoch, state: all[..base.index.0 as usize].to_vec() }
                    }
                };
                self.frames.insert(frame);
            }
        }
    }

    /// The written data reach the disk.
    pub(crate) fn sync(&mut self, node: usize) {
        let now = self.now;
        let Node { disk, cached, written, replica, .. } = &mut self.nodes[node];
        let records = written.len();
        cached.drain(..).chain(written.drain(..)).for_each(|record| disk.write(&record));
        let mut out = Vec::new();
        replica.handle_durable(now, records, &mut out);
        self.perform(node, out, &[]);
    }

    /// The written data are acknowledged before they reach the disk.
    pub(crate) fn cache(&mut self, node: usize) {
        let now = self.now;
        let Node { cached, written, replica, .. } = &mut self.nodes[node];
        let records = written.len();
        cached.append(written);
        let mut out = Vec::new();
        replica.handle_durable(now, records, &mut out);
        self.perform(node, out, &[]);
    }

    /// The written data reach the disk, and the replica hears nothing of it.
    fn sync_quietly(&mut self, node: usize) {
        let Node { disk, cached, written, .. } = &mut self.nodes[node];
        cached.drain(..).chain(written.drain(..)).for_each(|record| disk.write(&record));
    }

    /// A replica trims its log up to what it has committed, by a snapshot of its own.
    pub(crate) fn trim(&mut self, node: usize) {
        self.trims += 1;
        let Node { replica, disk, .. } = &mut self.nodes[node];
        disk.trimmed = replica.commit().0 as usize;
        replica.handle_trimmed(disk.entries[disk.trimmed - 1].at);
    }

    /// The process dies with a part of what was written on the disk, and starts again.
    pub(crate) fn crash(&mut self, node: usize, kept: usize) {
        self.crashes += 1;
        let Node { replica, life, mut disk, cached, mut written, .. } = self.nodes[node].clone();
        cached.iter().for_each(|record| disk.write(record));
        written.drain(..kept).for_each(|record| disk.write(&record));
        let led = replica.leads();
        let forgets = self.mistake == Some(Mistake::ForgetsGrants);
        let grants = if forgets { Grants::new() } else { Grants::after_restart(self.now) };
        self.nodes[node] = Node::new(replica.id(), life.next(), disk, grants);
        if self.mistake == Some(Mistake::LeadsAgain)
            && let Some(epoch) = led
        {
            self.lead_again(node, epoch);
        }
    }

    /// The power of a node is cut, with a part of what was not synced on the disk. The control plane hears of it before the node takes
    /// part in anything again.
    pub(crate) fn cut_power(&mut self, node: usize, kept: usize) {
        self.cuts += 1;
        let Node { replica, life, mut disk, cached, written, .. } = self.nodes[node].clone();
        cached.iter().chain(&written).take(kept).for_each(|record| disk.write(record));
        let life = life.next();
        self.nodes[node] = Node::new(replica.id(), life, disk, Grants::after_restart(self.now));
        if self.mistake != Some(Mistake::DoubtForgotten) {
            self.history.handle_doubt(replica.id(), life);
        }
    }

    /// The power of all nodes is cut at once, and takes all that was not synced.
    pub(crate) fn cut_all(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.cut_power(node, 0));
    }

    /// Mistake: a primary goes on in its epoch after a restart, with what its disk holds.
    fn lead_again(&mut self, node: usize, epoch: Epoch) {
        let Node { replica, life, .. } = &self.nodes[node];
        let (id, life, log) = (replica.id(), *life, self.nodes[node].entries());
        let Some(record) = self.records.iter().find(|record| record.config.epoch() == epoch) else { return };
        let first = record.base.index.0 as usize;
        if log.len() <= first {
            return;
        }
        let before = table(LogPoint::default(), log[..first].iter().map(|entry| entry.at));
        let mut replica = Replica::new(id, life, Epoch(0), before, Grants::new());
        let (record, mut out) = (EpochRecord { life, ..record.clone() }, Vec::new());
        replica.lead(&record, &mut out).expect("it led this epoch before");
        log[first..].iter().for_each(|entry| replica.handle_own(entry.at.index));
        out.clear();
        replica.handle_durable(self.now, 1 + log.len() - first, &mut out);
        self.nodes[node].replica = replica;
        self.nodes[node].leading = Some(self.leading(&record));
        self.perform(node, out, &[]);
    }

    /// The disk is exchanged for an empty one.
    pub(crate) fn wipe(&mut self, node: usize) {
        self.wipes += 1;
        let Node { replica, life, .. } = &self.nodes[node];
        let is_kept = self.mistake == Some(Mistake::WipedVoter);
        let id = if is_kept { replica.id() } else { ReplicaId(self.next_id) };
        self.nodes[node] = Node::new(id, life.next(), Log::default(), Grants::new());
        self.next_id += 1;
    }

    /// Time passes: seals that waited for a lease may be answered.
    pub(crate) fn tick(&mut self) {
        self.now = self.now.plus(TICK);
        for node in 0..self.nodes.len() {
            let mut out = Vec::new();
            self.nodes[node].replica.handle_tick(self.now, &mut out);
            self.perform(node, out, &[]);
        }
    }

    /// A primary begins a round.
    pub(crate) fn begin_round(&mut self, node: usize) {
        self.rounds += 1;
        let now = self.now;
        let Some(leading) = &mut self.nodes[node].leading else { return };
        let Leading { tracker, streams, rounds, asked, .. } = leading;
        *asked = now;
        rounds.begin(now, tracker.answerable());
        let asks = streams.keys().filter_map(|&to| rounds.ask(to).map(|ask| Frame::Ask { to, ask }));
        self.frames.extend(asks);
        self.release(node);
    }

    /// A client reads at a primary.
    pub(crate) fn read(&mut self, node: usize, kind: ReadKind) {
        self.reads += 1;
        let seen = self.nodes[node].entries();
        let wanted = self.answered.keys().copied().collect();
        let index = Index(seen.len() as u64);
        let Some(leading) = &mut self.nodes[node].leading else { return };
        let Leading { tracker, rounds, reads, .. } = leading;
        let read = Read { seen, wanted };
        match self.mistake {
            Some(Mistake::LeaseIgnored) => reads.push(ReadKind::Stale, Index(0), rounds, read),
            Some(Mistake::SpeculativeRead) => reads.push(kind, Index(0), rounds, read),
            Some(Mistake::OldRound) => {
                let none = Rounds::new(tracker.config().clone(), rounds.lease());
                reads.push(kind, index, &none, read);
            }
            _ => reads.push(kind, index, rounds, read),
        }
        self.release(node);
    }

    /// The control plane wants an epoch.
    pub(crate) fn begin_sealing(&mut self, epoch: Epoch) {
        self.sealing = Some(epoch);
        self.answers.clear();
    }

    /// The control plane's seal arrives at a replica.
    pub(crate) fn seal(&mut self, node: usize, epoch: Epoch) {
        // A restart of the primary proves its former life dead.
        let newest = self.history.newest();
        let primary = self.node_of(newest.config.primary()).map(|node| self.nodes[node].life);
        let lease = if self.has_clock && primary == Some(newest.life) { newest.lease } else { Micros(0) };
        let mut out = Vec::new();
        let replica = &mut self.nodes[node].replica;
        replica.handle_seal(self.now, Seal { epoch, lease }, &mut out);
        if self.mistake == Some(Mistake::SealNotDurable) {
            let mut hasty = replica.clone();
            let is_new = out.iter().any(|action| matches!(action, Action::WritePromise(_)));
            let written = self.nodes[node].written.len() + usize::from(is_new);
            let mut early = Vec::new();
            hasty.handle_durable(self.now, written, &mut early);
            early.retain(|action| matches!(action, Action::Sealed(_)));
            out.extend(early);
        }
        self.perform(node, out, &[]);
    }

    /// The control plane begins the epoch that it has sealed for, if it may, with one of the replicas that have the best log
    /// as its primary. True if the operator's word stands for absent members.
    pub(crate) fn take_over(
        &mut self,
        (members, acks): Shape,
        primary: usize,
        is_forced: bool,
    ) -> Result<(), TakeoverError> {
        let Some(epoch) = self.sealing else { return Ok(()) };
        let seals: Vec<SealAnswer> = self.answers.values().cloned().collect();
        let mut history = self.history.clone();
        if self.mistake == Some(Mistake::NewestEpochOnly) {
            history.handle_active(self.history.newest().config.epoch());
        }
        let judged = match history.judge(epoch, &seals) {
            Err(_) if is_forced => history.judge_forced(epoch, &seals),
            Err(TakeoverError::TooFewSeals { .. }) => history.judge_doubted(epoch, &seals),
            judged => judged,
        };
        let mut base = judged?.base;
        if self.mistake == Some(Mistake::LongestWins) {
            let logs = seals.iter().map(|seal| seal.table.surviving(history.losses()));
            base = logs.max_by_key(|last| last.index).unwrap_or(base);
        }
        let primary = self.nodes[primary].replica.id();
        let ids: Vec<ReplicaId> = members.iter().map(|node| self.nodes[*node].replica.id()).collect();
        let named = seals.iter().find(|seal| seal.replica == primary && ids.contains(&primary));
        let Some(named) = named.filter(|seal| seal.table.surviving(history.losses()) == base) else {
            return Ok(());
        };
        let config = EpochConfig::parse(epoch, ids, acks, primary).expect("the model's shapes are valid");
        let config = config.with_durability(self.durability);
        let expected = self.history.newest().config.epoch();
        let takeover = Takeover { expected, config, life: named.life, lease: LEASE, seals: seals.clone() };
        let begun = if is_forced { history.force(&takeover) } else { history.begin(&takeover) };
        let mut record = EpochRecord { base, ..begun?.clone() };
        if self.mistake == Some(Mistake::LossNotRecorded) {
            record.losses = Losses::default();
        }
        if history.forced() == epoch {
            // Such a takeover announces all that it loses, committed or not.
            self.committed.retain(|entry| !record.losses.has(entry.at));
        }
        self.check_base(primary, record.base);
        self.history = history;
        self.records.push(record);
        self.sealing = None;
        self.answers.clear();
        Ok(())
    }

    /// The epochs that a node is named to lead and has not begun.
    pub(crate) fn to_lead(&self, node: usize) -> impl Iterator<Item = Epoch> + '_ {
        let Node { replica, life, .. } = &self.nodes[node];
        let named = |record: &&EpochRecord| record.config.primary() == replica.id() && record.life == *life;
        let epochs = self.records.iter().filter(named).map(|record| record.config.epoch());
        epochs.filter(|epoch| *epoch >= replica.promised() && replica.table().last().epoch < *epoch)
    }

    /// The control plane records that an epoch is active, which a replica attests.
    pub(crate) fn record_active(&mut self, epoch: Epoch) {
        self.history.handle_active(epoch);
    }

    /// A frame arrives.
    pub(crate) fn deliver(&mut self, frame: &Frame) {
        let now = self.now;
        match frame {
            Frame::Append { to, head, entries } => {
                if let Some(node) = self.node_of(*to) {
                    self.deliver_append(node, *head, entries);
                }
            }
            Frame::Snapshot { to, epoch, state } => {
                let Some(node) = self.node_of(*to) else { return };
                let mut out = Vec::new();
                let base = state.last().map_or(LogPoint::default(), |entry| entry.at);
                let taken = self.nodes[node].replica.handle_snapshot(*epoch, base, &mut out);
                taken.expect("the model's snapshots are valid");
                self.perform(node, out, state);
            }
            Frame::Ask { to, ask } => {
                let Some(node) = self.node_of(*to) else { return };
                let (mut out, mut ask) = (Vec::new(), *ask);
                if self.mistake == Some(Mistake::ReportClaimsFresh)
                    && let Some(fresh) = &mut ask.fresh
                {
                    fresh.as_of.at = now;
                }
                self.nodes[node].replica.handle_ask(now, ask, &mut out);
                self.perform(node, out, &[]);
            }
            Frame::Ack { from, epoch, upto } => self.stored(*from, *epoch, *upto),
            Frame::Diverged { from, epoch, base, log } => {
                let Some(node) = self.leader_of(*epoch) else { return };
                let Node { replica, leading, .. } = &mut self.nodes[node];
                if let Some(stream) = leading.as_mut().and_then(|leading| leading.streams.get_mut(from)) {
                    let peer = table(*base, log.iter().copied());
                    stream.handle_diverged(*epoch, replica.table(), &peer);
                }
                self.send(node);
            }
            Frame::Confirm { from, epoch, round, mark } => {
                let Some(node) = self.leader_of(*epoch) else { return };
                let Some(leading) = &mut self.nodes[node].leading else { return };
                leading.rounds.handle_confirmed(*from, *round, *mark);
                self.release(node);
            }
        }
        for Node { replica, .. } in &mut self.nodes {
            replica.handle_applied(replica.commit());
        }
    }

    fn deliver_append(&mut self, node: usize, head: AppendHead, entries: &[Entry]) {
        let mut out = Vec::new();
        let points: Vec<LogPoint> = entries.iter().map(|entry| entry.at).collect();
        let Node { replica, life, .. } = &mut self.nodes[node];
        let (id, life, promised) = (replica.id(), *life, replica.promised());
        let takes = self.mistake == Some(Mistake::TakesAfterSeal) && head.epoch < promised;
        if takes {
            *replica = Replica::new(id, life, head.epoch, replica.table().clone(), Grants::new());
        }
        replica.handle_append(head, &points, &mut out).expect("the model's frames are valid");
        if takes {
            let new = out.iter().map(|action| match action {
                Action::WriteEntries { from } => entries.len() - from,
                Action::WriteCut { .. } | Action::WritePromise(_) => 1,
                _ => 0,
            });
            let records = new.sum();
            replica.handle_durable(self.now, records, &mut out);
        }
        self.perform(node, out, entries);
        if takes {
            self.sync_quietly(node);
            let table = self.nodes[node].disk.table();
            self.nodes[node].replica = Replica::new(id, life, promised, table, Grants::new());
        }
    }

    /// A primary hears what a replica has stored.
    fn stored(&mut self, from: ReplicaId, epoch: Epoch, upto: Index) {
        let Some(node) = self.leader_of(epoch) else { return };
        let Some(leading) = &mut self.nodes[node].leading else { return };
        if let Some(stream) = leading.streams.get_mut(&from) {
            stream.handle_ack(self.now, epoch, upto);
        }
        let grows = leading.tracker.handle_stored(from, upto);
        let commit = leading.tracker.commit();
        let entries = self.nodes[node].entries();
        // Only an acknowledgement in the epoch that it leads counts, so it has the entry.
        if upto.0 as usize > entries.len() {
            self.wrong = Some("a primary lacks what was acknowledged to it [2]");
            return;
        }
        if grows {
            self.nodes[node].replica.handle_commit(commit);
            self.check_committed(&entries[..commit.0 as usize], epoch);
        }
        self.release(node);
        self.send(node);
    }

    /// A primary answers what it may: writes that W members have, and reads.
    fn release(&mut self, node: usize) {
        let now = self.now;
        let entries = self.nodes[node].entries();
        let Node { replica, leading, .. } = &mut self.nodes[node];
        let (Some(epoch), Some(leading)) = (replica.leads(), leading) else { return };
        let Leading { tracker, rounds, reads, answered, .. } = leading;
        let is_leased =
            !self.has_clock || rounds.is_leased(now) || self.mistake == Some(Mistake::LeaseIgnored);
        let commit = tracker.commit();
        let upto = if is_leased { commit.max(tracker.answerable()) } else { commit };
        let from = std::mem::replace(answered, upto.max(*answered));
        let new = &entries[from.0 as usize..answered.0 as usize];
        let is_early = new.iter().any(|entry| entry.at.index > commit);
        let released = reads.release(now, rounds, tracker);
        self.answered.extend(new.iter().map(|entry| (*entry, now)));
        if is_early {
            self.check_alone(epoch);
        }
        for (kind, read) in released {
            self.reads_answered += 1;
            self.check_read(epoch, kind, &read);
        }
    }

    /// Checks that an epoch begins with all that is committed.
    fn check_base(&mut self, primary: ReplicaId, base: LogPoint) {
        let Some(node) = self.node_of(primary) else { return };
        let entries = self.nodes[node].entries();
        let kept = &entries[..entries.len().min(base.index.0 as usize)];
        if !kept.starts_with(&self.committed) {
            self.wrong = Some("an epoch begins without a committed entry [2]");
        }
    }

    /// Checks the entries that a primary holds for committed.
    fn check_committed(&mut self, entries: &[Entry], epoch: Epoch) {
        let known = self.committed.len().min(entries.len());
        if self.committed[..known] != entries[..known] {
            self.wrong = Some("two entries are committed at one index [2]");
        }
        if entries.len() > known {
            self.committed = entries.to_vec();
        }
        let Some(record) = self.records.iter().find(|record| record.config.epoch() == epoch) else { return };
        for entry in self.answered.keys() {
            let is_kept = entries.get(entry.at.index.0 as usize - 1) == Some(entry);
            if entry.at.epoch < epoch && !is_kept && !record.losses.has(entry.at) {
                self.wrong = Some("an answered entry is lost, and not announced [3, 4]");
            }
        }
        if entries.iter().any(|entry| record.losses.has(entry.at)) {
            self.wrong = Some("an entry that was announced as lost is committed [4]");
        }
    }

    /// Checks that no other epoch has begun, when a primary answers by its lease alone.
    fn check_alone(&mut self, epoch: Epoch) {
        if self.has_clock && self.history.newest().config.epoch() > epoch {
            self.wrong = Some("a primary answers by its lease, and another epoch has begun [1, 6]");
        }
    }

    /// Checks the answer of a read at a primary.
    fn check_read(&mut self, epoch: Epoch, kind: ReadKind, read: &Read) {
        let is_lost = |entry: &Entry| self.history.losses().has(entry.at);
        let lacks = read.wanted.iter().any(|entry| !read.seen.contains(entry) && !is_lost(entry));
        match kind {
            ReadKind::Linearizable if !self.committed.starts_with(&read.seen) => {
                self.wrong = Some("a read shows what is not committed [5, 6]");
            }
            ReadKind::Linearizable | ReadKind::Primary if lacks => {
                self.wrong = Some("a read lacks what was answered before it came [6]");
            }
            ReadKind::Linearizable => {}
            // With the mistake, a read that waits for nothing stands for one that waits for no lease.
            ReadKind::Primary | ReadKind::Stale => self.check_alone(epoch),
        }
    }

    /// Checks that all which a replica may fold into its state is committed.
    pub(crate) fn check_states(&mut self) {
        let void = self.history.void();
        for node in self.nodes.iter().filter(|node| !void.contains(&node.replica.id())) {
            let mut state = node.entries();
            state.truncate(node.replica.commit().0 as usize);
            if !self.committed.starts_with(&state) {
                self.wrong = Some("a state holds what is not committed [14]");
            }
        }
    }

    /// Checks that each replica's state is as fresh as it claims to be.
    pub(crate) fn check_ages(&mut self) {
        if !self.has_clock {
            return;
        }
        for node in &self.nodes {
            let (replica, mut seen) = (&node.replica, node.entries());
            let age = match &node.leading {
                Some(_) if !node.serves() => None,
                Some(leading) if self.mistake == Some(Mistake::PausedClaimsFresh) => {
                    Some(self.now.since(leading.asked))
                }
                Some(leading) => leading.rounds.staleness(self.now),
                None => {
                    seen.truncate(replica.commit().0 as usize);
                    replica.staleness(self.now, Micros(u64::MAX)).ok()
                }
            };
            let Some(age) = age else { continue };
            let is_lost = |entry: &Entry| self.history.losses().has(entry.at);
            let older = self.answered.iter().filter(|(_, at)| at.plus(age) < self.now);
            if older.into_iter().any(|(entry, _)| !seen.contains(entry) && !is_lost(entry)) {
                self.wrong = Some("a state is older than it claims to be [6]");
            }
        }
    }
}
