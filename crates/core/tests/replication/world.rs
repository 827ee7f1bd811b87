//! A shard on three to five nodes: each has the replica that ships, a disk, and links to the others. The control plane is the one
//! that ships, over a modelled consensus. All is drawn from one seed, and checked after every step against a fold of its own.

mod checks;
mod clients;
mod control;
mod early;
mod links;
mod node;
mod poison;
mod script;
mod service;
mod stale;

pub(crate) use node::take_written;
pub(crate) use service::Lister;

use crate::bugs::Bug;
use clients::Pending;
use control::Plane;
use early::{Early, Floor};
use fastrand::Rng;
use node::{Batch, Given, NONE, Node, installed, start_id, survivors};
use service::list;
use stale::StaleReads;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::Read;
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::facts::Fact;
use stead_core::control::node::DiskState;
use stead_core::entry::Entry;
use stead_core::handler::Handler;
use stead_core::ids::{CallToken, Epoch, Incarnation, Index, Life, Micros, ReplicaId, ShardId, Time};
use stead_core::replication::epoch::{EpochRecord, Seal};
use stead_core::replication::history::History;
use stead_core::replication::lease::Grants;
use stead_core::replication::stream::StreamLimits;
use stead_core::replication::table::LogPoint;
use stead_core::shard::{self, Settings};
use stead_core::shard_replica::{
    Effect, Effects, Frame, Input, LogEntry, Record, Recovery, ReplicaLog, ReplicaName, ReplicaSettings,
    ShardReplica,
};
use stead_core::state::{Position, State};
use stead_core::topology::Topology;
use stead_core::trials::{Grant, Trials};

pub(crate) const SHARD: ShardId = ShardId(0);
const LEASE: Micros = Micros::from_millis(20);
pub(crate) const SETTINGS: ReplicaSettings = ReplicaSettings {
    stream: StreamLimits { window: 2_000, frame: 700, lag_max: 1 << 20, stall_max: Micros(1 << 40) },
    // A few entries: older ones are read from the log.
    tail_bytes: 600,
    apply_bytes: 200,
    heartbeat: Micros::from_millis(10),
    // Scripts let no time pass. In the simulator entries wait for others.
    pace: Micros(0),
    max_lag: Micros::from_millis(200),
};

/// Something on its way.
#[derive(Clone, Debug)]
enum Message {
    Frame(Frame),
    /// A snapshot of committed state.
    Snapshot {
        epoch: Epoch,
        base: LogPoint,
    },
    Seal(Seal),
    Lead {
        record: Box<EpochRecord>,
        learners: Vec<ReplicaId>,
    },
    /// The data of a replica are to be deleted.
    Delete(ReplicaId),
    /// For the control plane.
    Fact(Fact),
}

/// The other end of the control plane's messages.
const CONTROL: ReplicaId = ReplicaId(0);

fn is_traced() -> bool {
    std::env::var_os("STEAD_TRACE").is_some()
}

fn short(text: &str) -> String {
    text.chars().take(400).collect()
}

fn describe(input: &Given) -> String {
    let Given::Replica(input) = input else { return "a call or the like".to_owned() };
    match input {
        Input::Frame { from, frame } => short(&format!("{from}: {frame:?}")),
        Input::Connected(peer) => format!("connected {peer}"),
        Input::Durable(records) => format!("durable {records}"),
        Input::Seal(seal) => format!("{seal:?}"),
        Input::Lead { record, .. } => format!("lead {record:?}"),
        Input::Installed { epoch, base, .. } => format!("installed {epoch} {base:?}"),
        Input::Rebuilt { number, state } => format!("rebuilt {number} {:?}", state.position()),
        _ => "other".to_owned(),
    }
}

/// The counts of what a run met.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) epochs: u64,
    pub(crate) inactive: u64,
    pub(crate) answers: u64,
    pub(crate) reads: u64,
    pub(crate) moved: u64,
    pub(crate) rebuilds: u64,
    pub(crate) cuts: u64,
    pub(crate) installs: u64,
    pub(crate) log_reads: u64,
    pub(crate) wipes: u64,
    pub(crate) crashes: u64,
    pub(crate) held: u64,
    /// Leaders of the control plane, members that were not one of the epoch before, and replicas that were deleted.
    pub(crate) leaders: u64,
    pub(crate) joined: u64,
    pub(crate) deleted: u64,
    /// Answers that left before their entries were committed, and those of them that were lost.
    pub(crate) early: u64,
    pub(crate) lost: u64,
    /// Stale reads: those that backups answered, those that primaries did, and those that were refused.
    pub(crate) stale: [u64; 3],
}

impl Marks {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { epochs, inactive, answers, reads, moved, rebuilds, cuts, installs, log_reads, .. } = other;
        self.epochs += epochs;
        self.inactive += inactive;
        self.answers += answers;
        self.reads += reads;
        self.moved += moved;
        self.rebuilds += rebuilds;
        self.cuts += cuts;
        self.installs += installs;
        self.log_reads += log_reads;
        self.wipes += other.wipes;
        self.crashes += other.crashes;
        self.held += other.held;
        self.leaders += other.leaders;
        self.joined += other.joined;
        self.deleted += other.deleted;
        self.early += other.early;
        self.lost += other.lost;
        self.stale.iter_mut().zip(other.stale).for_each(|(stale, other)| *stale += other);
    }
}

pub(crate) struct World {
    rng: Rng,
    bug: Option<Bug>,
    topology: Arc<Topology>,
    now: Time,
    nodes: Vec<Node>,
    /// The number of starts of nodes.
    starts: u64,
    wire: Vec<(ReplicaId, ReplicaId, Message)>,
    /// Links between nodes that lost something, so that they are connected anew; and those that are cut.
    broken: BTreeSet<(usize, usize)>,
    cut: BTreeSet<(usize, usize)>,
    /// A node that does not hear the control plane.
    deaf: Option<usize>,
    /// A node that crashes with the next step.
    doomed: Option<usize>,
    is_calm: bool,
    /// A script decides on takeovers.
    is_scripted: bool,
    plane: Plane,
    /// Its record of the shard.
    history: History,
    // The clients.
    next_number: u32,
    next_token: CallToken,
    pending: Vec<Pending>,
    queries: BTreeMap<CallToken, Floor>,
    stale: StaleReads,
    /// The nodes that have them.
    calls: BTreeMap<CallToken, usize>,
    /// The greatest position that was answered and is committed; and the answers that left before that.
    answered: u32,
    early: Vec<Early>,
    /// The requests whose answers were lost.
    lost: BTreeSet<u32>,
    /// The requests that were refused because attempts at them ended nodes.
    given_up: BTreeSet<u32>,
    // The judgement: what is committed, folded, with the hash after each entry.
    committed: Vec<Blob>,
    model: State,
    hashes: Vec<u128>,
    primaries: BTreeMap<Epoch, (ReplicaId, Life)>,
    /// The records as their primaries got them.
    records: BTreeMap<Epoch, EpochRecord>,
    pub(crate) marks: Marks,
}

fn fold(committed: &[Blob], upto: Index) -> State {
    let mut state = State::new(SHARD);
    for bytes in &committed[..upto.0 as usize] {
        state.apply(Entry::decode(bytes).unwrap()).unwrap();
    }
    state
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let size = rng.usize(3..=5);
        let members = rng.usize(1..=size);
        let acks = rng.usize(1..=members);
        Self::with(rng, bug, size, members, acks)
    }

    /// Creates a shard on `size` nodes. The first `members` are those of its first epoch, which the first one is to lead.
    fn with(rng: Rng, bug: Option<Bug>, size: usize, members: usize, acks: usize) -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("list", 1).unwrap();
        let now = Time(1_000_000);
        let plane = Plane::new(now, size, members, acks);
        let model = State::new(SHARD);
        let hashes = vec![model.hash()];
        let mut world = Self {
            rng,
            bug,
            topology: Arc::new(topology),
            now,
            nodes: Vec::new(),
            starts: 0,
            wire: Vec::new(),
            broken: BTreeSet::new(),
            cut: BTreeSet::new(),
            deaf: None,
            doomed: None,
            is_calm: false,
            is_scripted: false,
            history: plane.shard().history().clone(),
            plane,
            next_number: 0,
            next_token: CallToken(0),
            pending: Vec::new(),
            queries: BTreeMap::new(),
            stale: StaleReads::default(),
            calls: BTreeMap::new(),
            answered: 0,
            early: Vec::new(),
            lost: BTreeSet::new(),
            given_up: BTreeSet::new(),
            committed: Vec::new(),
            model,
            hashes,
            primaries: BTreeMap::new(),
            records: BTreeMap::new(),
            marks: Marks::default(),
        };
        for at in 0..size {
            world.nodes.push(Node {
                id: if at < members { ReplicaId(at as u64 + 1) } else { NONE },
                is_up: false,
                start: start_id(0),
                disk: DiskState::Whole,
                life: Life(0),
                durable: Vec::new(),
                written: VecDeque::new(),
                snapshot: Index(0),
                replica: None,
                todo: VecDeque::new(),
                rebuild: None,
                trials: Trials::default(),
                checked: Index(0),
                seen: Index(0),
            });
        }
        (0..world.nodes.len()).for_each(|at| world.start(at));
        world.order_lead();
        world
    }

    fn at(&self, id: ReplicaId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    /// Starts a node.
    fn start(&mut self, at: usize) {
        self.starts += 1;
        let node = &mut self.nodes[at];
        node.life = node.life.next();
        node.is_up = true;
        // The control plane does not notice.
        if self.bug != Some(Bug::RestartedPrimary) || node.life == Life(1) {
            node.start = start_id(self.starts);
        }
        if node.id != NONE {
            self.recover(at);
        }
    }

    /// Starts the replica on a node from what is durable.
    fn recover(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.snapshot = node.snapshot.max(installed(node.durable.iter()));
        let state = fold(&self.committed, node.snapshot);
        // Some entries, or all, stay in the log.
        let bytes_max = if self.rng.bool() { u64::MAX } else { self.rng.u64(0..1_000) };
        let Position { epoch, index, .. } = state.position();
        let mut log = ReplicaLog::new(LogPoint { epoch, index }, bytes_max);
        node.durable.iter().for_each(|record| log.handle_record(record.clone()));
        let recovery = Recovery::with_log(state, log);
        if is_traced() {
            println!("start {} life {} snapshot {}", node.id, node.life, node.snapshot);
        }
        let grants = if node.life == Life(1) { Grants::new() } else { Grants::after_restart(now) };
        let name = ReplicaName { id: node.id, life: node.life };
        let replica =
            ShardReplica::new(name, recovery, grants, self.topology.clone(), Settings::default(), SETTINGS);
        (node.checked, node.seen) = (node.snapshot, node.snapshot);
        node.replica = Some(replica);
    }

    /// Ends a node: of what was not synced, a part may be durable.
    fn crash(&mut self, at: usize) {
        let kept = self.rng.usize(0..=self.nodes[at].written.len());
        self.end(at, kept);
        let node = &mut self.nodes[at];
        // A checkpoint that was taken before: it covers committed entries of this log.
        let (before, entries) = survivors(node.durable.iter());
        let last = entries.last().map_or(before, |last| last.point.index);
        if self.rng.bool() {
            let upto = Index(self.rng.u64(0..=node.checked.min(last).0));
            // Its marker is in the log.
            let is_marked = |entry: &LogEntry| {
                entry.point.index == upto && *entry.bytes == *self.committed[upto.0 as usize - 1]
            };
            if entries.iter().any(is_marked) {
                node.snapshot = node.snapshot.max(upto);
            }
        }
    }

    /// Ends a node, of whose batches that were not synced so many are durable.
    fn end(&mut self, at: usize, kept: usize) {
        self.marks.crashes += 1;
        let node = &mut self.nodes[at];
        for batch in node.written.drain(..).take(kept) {
            node.durable.extend(batch.records);
        }
        (node.is_up, node.replica) = (false, None);
        node.todo.clear();
        node.rebuild = None;
        let (id, life) = (control::node_id(at), node.life);
        if self.rng.bool() {
            self.send(NONE, CONTROL, Message::Fact(Fact::Closed(id)));
        }
        if self.rng.u8(..4) == 0 {
            self.send(NONE, CONTROL, Message::Fact(Fact::Dead(id, life)));
        }
        let size = self.nodes.len();
        self.broken.extend((0..size).filter(|peer| *peer != at).map(|peer| (at.min(peer), at.max(peer))));
    }

    /// Whether the shard could go on without this node's disk.
    fn is_spare(&self, at: usize) -> bool {
        let id = self.nodes[at].id;
        self.history.records().iter().all(|record| self.can_end(&record.config, id))
    }

    /// Whether enough members of an epoch could still be sealed without this one.
    fn can_end(&self, config: &EpochConfig, without: ReplicaId) -> bool {
        let is_there = |member: &&ReplicaId| **member != without && self.at(**member).is_some();
        let left = config.members().iter().filter(is_there);
        left.count() > config.members().len() - config.commit_quorum()
    }

    /// The disk of a node that is down is replaced.
    fn wipe(&mut self, at: usize) {
        self.marks.wipes += 1;
        let node = &mut self.nodes[at];
        (node.durable, node.snapshot) = (Vec::new(), Index(0));
        if self.bug != Some(Bug::WipedVoter) {
            (node.id, node.disk) = (NONE, DiskState::Lost);
            // A disk that is new, or an older copy.
            if self.rng.bool() {
                node.life = Life(0);
            }
        }
    }

    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: Message) {
        self.wire.push((from, to, message));
    }

    // The nodes.

    fn give(&mut self, at: usize, input: impl Into<Given>) -> Result<(), String> {
        let input = input.into();
        if let Given::Shard(shard::Input::Query(query)) = &input
            && let Read::Stale { .. } = query.read
            && self.begin_stale(at, query)?
        {
            return Ok(());
        }
        let wall = self.now;
        let node = &mut self.nodes[at];
        let Some(replica) = &mut node.replica else { return Ok(()) };
        let is_slow = self.bug == Some(Bug::SlowClock) && at == 0;
        let steady = if is_slow { Time(wall.0 / 4) } else { wall };
        let (mut out, now) = (Effects::default(), Now { steady, wall });
        if is_traced() {
            println!("{} {}", node.id, describe(&input));
        }
        match input {
            Given::Replica(input) => replica.handle(now, input, &mut Lister, &mut out),
            Given::Shard(input) => replica.handle_shard(now, input, &mut Lister, &mut out),
        }
        replica.flush(now, &mut Lister, &mut out);
        if is_traced() {
            println!("    {}", short(&format!("{:?}", out.records)));
            out.replica.iter().for_each(|effect| println!("    {}", short(&format!("{effect:?}"))));
            out.shard.iter().for_each(|effect| println!("    {}", short(&format!("{effect:?}"))));
        }
        let records = take_written(&mut out);
        if !records.is_empty() {
            self.write(at, records);
        }
        // Effects are judged by the entries that are committed when they leave.
        self.check(at)?;
        for effect in out.replica {
            self.perform(at, effect)?;
        }
        for effect in out.shard {
            self.perform_shard(at, effect)?;
        }
        Ok(())
    }

    /// Writes records to the log of a node.
    fn write(&mut self, at: usize, records: Vec<Record>) {
        let node = &mut self.nodes[at];
        self.marks.cuts += records.iter().filter(|r| matches!(r, Record::Cut { .. })).count() as u64;
        let is_early = match self.bug {
            Some(Bug::SealNotDurable) => records.iter().any(|r| matches!(r, Record::Promise(_))),
            Some(Bug::OwnDiskImplicit) => {
                node.replica.as_ref().is_some_and(|replica| replica.shard().is_some())
            }
            _ => false,
        };
        node.written.push_back(Batch { records, is_reported: false });
        if is_early {
            let mut count = 0;
            for batch in node.written.iter_mut().filter(|batch| !batch.is_reported) {
                count += batch.records.len();
                batch.is_reported = true;
            }
            node.todo.push_front(Input::Durable(count).into());
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) -> Result<(), String> {
        let node = &mut self.nodes[at];
        let id = node.id;
        match effect {
            Effect::Send { to, mut frame } => {
                if let (Some(Bug::OldTailCommitted), Frame::Append { head, .. }) = (self.bug, &mut frame)
                    && head.commit == Index(0)
                {
                    head.commit = self.history.newest().base.index;
                }
                self.send(id, to, Message::Frame(frame));
            }
            Effect::Sealed(answer) => {
                self.send(id, CONTROL, Message::Fact(Fact::Sealed(SHARD, answer)));
                let percent = if self.bug == Some(Bug::SealNotDurable) { 60 } else { 5 };
                if !self.is_calm && self.chance(percent) {
                    self.doomed = Some(at);
                }
            }
            Effect::Superseded { promised, .. } => {
                self.send(id, CONTROL, Message::Fact(Fact::Superseded { shard: SHARD, promised }));
            }
            Effect::Leads { is_held, .. } => {
                self.marks.held += u64::from(is_held);
                node.trials = Trials::new(is_held.then_some(SHARD));
                let first = node.trials.begin();
                self.grant(at, first);
                // Before its first batch is durable.
                if !self.is_calm && self.chance(10) {
                    self.doomed = Some(at);
                }
            }
            Effect::CannotLead(error) => {
                let epoch = error.epoch();
                self.send(id, CONTROL, Message::Fact(Fact::CannotLead { shard: SHARD, epoch }));
            }
            Effect::Deposed(_) => {
                // A turn of the old epoch must not reach the shard of a later one.
                node.trials = Trials::default();
                node.todo.retain(|input| !matches!(input, Given::Shard(_)));
                // Its clients hear that their calls may have been handled.
                let over: Vec<CallToken> =
                    self.calls.iter().filter(|(_, given)| **given == at).map(|(token, _)| *token).collect();
                over.into_iter().for_each(|token| self.end_call(token));
            }
            Effect::NotPrimary { token, .. } => self.end_call(token),
            Effect::Rebuild { number, from, upto } => {
                self.marks.rebuilds += 1;
                node.rebuild = Some((number, from, upto));
            }
            Effect::ReadLog { to, head, last } => {
                self.marks.log_reads += 1;
                let (_, entries) = survivors(node.records());
                let wanted = head.before.index.next()..=last;
                let entries =
                    entries.into_iter().filter(|entry| wanted.contains(&entry.point.index)).collect();
                node.todo.push_back(Input::LogRead { to, head, entries }.into());
            }
            Effect::SendSnapshot { to } => {
                let replica = node.replica.as_ref().unwrap();
                let (base, epoch) = (replica.replica().table().base(), replica.replica().promised());
                self.give(at, Input::SnapshotSent { to, base })?;
                self.send(id, to, Message::Snapshot { epoch, base });
            }
            Effect::Unusable(misfit) => return Err(format!("[14] {misfit}")),
            Effect::Void { .. } if !self.is_scripted && !self.plane.void.contains(&id) => {
                return Err(format!("[2] {id} lacks what it acknowledged"));
            }
            Effect::Void { .. } => self.send(id, CONTROL, Message::Fact(Fact::Void(SHARD, id))),
            Effect::GivenUp { epoch, .. } => {
                return Err(format!("[2] {id} is to be given up, and no operator went on in epoch {epoch}"));
            }
            Effect::Invalid { reason, .. } => return Err(format!("[15] an invalid frame: {reason}")),
        }
        Ok(())
    }

    fn perform_shard(&mut self, at: usize, effect: shard::Effect) -> Result<(), String> {
        match effect {
            shard::Effect::Answer(answer) => self.handle_answer(at, &answer)?,
            shard::Effect::Query(reading) => {
                let answer = reading.answer(|call, view| Lister.query(call, view));
                self.handle_answer(at, &answer)?;
            }
            shard::Effect::WantsTurn(kind) => {
                let grant = self.nodes[at].trials.wants(SHARD, kind);
                self.grant(at, grant);
            }
            shard::Effect::EndsTurn(kind) => {
                let grant = self.nodes[at].trials.ends(SHARD, kind);
                self.grant(at, grant);
            }
            shard::Effect::Active(_) => self.report(at),
            other => return Err(format!("an effect that this service has not: {other:?}")),
        }
        Ok(())
    }

    fn grant(&mut self, at: usize, grant: Option<Grant>) {
        let input = match grant {
            Some(Grant::Turn(_, kind)) => shard::Input::Turn(kind),
            Some(Grant::Yield(_)) => shard::Input::Yield,
            Some(Grant::Open) => shard::Input::Open,
            None => return,
        };
        self.nodes[at].todo.push_back(input.into());
    }

    fn rebuild(&mut self, at: usize) -> Result<(), String> {
        let node = &mut self.nodes[at];
        let Some((number, from, upto)) = node.rebuild.take() else { return Ok(()) };
        let snapshot = node.snapshot.max(installed(node.records()));
        let mut recovery = Recovery::new(fold(&self.committed, snapshot));
        let kept = self.bug == Some(Bug::SpeculationKept);
        let records: Vec<Record> = node.records().cloned().collect();
        let cut = records.iter().rposition(|record| matches!(record, Record::Cut { .. }));
        let end = cut.filter(|_| kept).unwrap_or(records.len());
        records[..end].iter().for_each(|record| recovery.handle_record(record.clone()));
        let to = if kept { Index(u64::MAX) } else { Index(self.rng.u64(from.0.max(snapshot.0)..=upto.0)) };
        // Nothing is read of it before it has come so far again.
        let (node, state) = (&mut self.nodes[at], Box::new(recovery.fold(to)));
        node.seen = node.seen.min(state.position().index);
        self.give(at, Input::Rebuilt { number, state })
    }

    fn sync(&mut self, at: usize) -> Result<(), String> {
        let count = self.rng.usize(0..=self.nodes[at].written.len());
        self.sync_batches(at, count)
    }

    fn sync_batches(&mut self, at: usize, count: usize) -> Result<(), String> {
        let node = &mut self.nodes[at];
        let mut records = 0;
        for batch in node.written.drain(..count) {
            records += if batch.is_reported { 0 } else { batch.records.len() };
            node.durable.extend(batch.records);
        }
        if records > 0 { self.give(at, Input::Durable(records)) } else { Ok(()) }
    }

    /// One step.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.now = self.now.plus(Micros(self.rng.u64(0..1_000)));
        if let Some(at) = self.doomed.take_if(|_| self.rng.bool())
            && self.nodes[at].replica.is_some()
        {
            self.crash(at);
        }
        let at = self.rng.usize(0..self.nodes.len());
        let busy = |is_busy: fn(&Node) -> bool, world: &mut Self| {
            let found: Vec<usize> = (0..world.nodes.len()).filter(|at| is_busy(&world.nodes[*at])).collect();
            world.rng.choice(&found).copied()
        };
        match self.rng.u32(0..1_000) {
            0..480 if !self.wire.is_empty() => {
                // Mostly in order.
                let far = self.wire.len().min(if self.rng.bool() { 3 } else { 40 });
                let which = self.rng.usize(0..far);
                self.deliver(which)
            }
            0..620 => match busy(|node| !node.written.is_empty() && node.replica.is_some(), self) {
                Some(at) => self.sync(at),
                None => Ok(()),
            },
            620..740 => match busy(|node| !node.todo.is_empty() || node.rebuild.is_some(), self) {
                Some(at) => match self.nodes[at].todo.pop_front() {
                    Some(input) => self.give(at, input),
                    None => self.rebuild(at),
                },
                None => Ok(()),
            },
            740..810 => {
                let due = self.nodes[at].replica.as_ref().and_then(ShardReplica::deadline);
                if due.is_some_and(|due| due <= self.now) { self.give(at, Input::Tick) } else { Ok(()) }
            }
            810..870 => {
                self.request();
                Ok(())
            }
            870..910 => self.control(),
            910..970 => self.connect(),
            970..982 => {
                if !self.nodes[at].is_up {
                    self.start(at);
                }
                Ok(())
            }
            982..986 if !self.is_calm => {
                if self.nodes[at].replica.is_some() {
                    self.crash(at);
                }
                Ok(())
            }
            986..988 if !self.is_calm => {
                let node = &self.nodes[at];
                if !node.is_up && node.id != NONE && self.is_spare(at) {
                    self.wipe(at);
                }
                Ok(())
            }
            988..994 if !self.is_calm => {
                let other = self.rng.usize(0..self.nodes.len());
                if other == at {
                    self.deaf = Some(at);
                } else {
                    self.cut.insert((at.min(other), at.max(other)));
                }
                Ok(())
            }
            _ => {
                if self.chance(40) {
                    self.deaf = None;
                }
                self.cut.pop_first();
                Ok(())
            }
        }
    }

    /// Heals everything, and demands that all requests are answered, and that all replicas come to the same state.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.is_calm = true;
        self.cut.clear();
        (self.deaf, self.doomed) = (None, None);
        let size = self.nodes.len();
        self.broken.extend((0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b))));
        for at in 0..self.nodes.len() {
            if !self.nodes[at].is_up {
                self.start(at);
            }
        }
        self.plane.heal();
        // Each node is to have a replica.
        self.set_dial(size, size / 2 + 1);
        self.fail_over(None);
        for _ in 0..40_000 {
            self.step()?;
            let last = self.committed.len() as u64;
            let newest = self.history.newest();
            let is_even = |node: &Node| {
                let record = node.replica.as_ref().and_then(ShardReplica::record);
                if record.map(|record| record.config.epoch()) != Some(newest.config.epoch()) {
                    return false;
                }
                let state = node.replica.as_ref().and_then(ShardReplica::committed_state);
                state.is_some_and(|state| state.position().index.0 == last)
            };
            let is_whole = newest.config.members().len() == size && self.plane.shard().is_settled();
            if self.pending.is_empty() && is_whole && self.nodes.iter().all(is_even) {
                if !self.early.is_empty() {
                    return Err(format!(
                        "[4] {:?} were answered, and are neither committed nor lost",
                        self.early
                    ));
                }
                let numbers = list(&self.model, "a");
                let is_over = |number: &u32| self.lost.contains(number) || self.given_up.contains(number);
                let is_kept = |number: &u32| numbers.contains(number) || is_over(number);
                let missing = (1..=self.next_number).find(|number| !is_kept(number));
                return missing.map_or(Ok(()), |number| Err(format!("[3] request {number} is lost")));
            }
        }
        let at: Vec<_> = self.nodes.iter().map(|node| (node.id, node.checked, node.seen)).collect();
        let queues: Vec<_> =
            self.nodes.iter().map(|node| (node.todo.len(), node.written.len(), node.rebuild)).collect();
        let (waiting, newest, wire) = (self.pending.len(), self.history.newest(), self.wire.len());
        let of = self.committed.len();
        if is_traced() {
            println!("{}", self.plane.describe());
        }
        Err(format!("[17] no rest: {waiting} requests wait, {at:?} of {of}, {wire} {queues:?}, {newest:?}"))
    }
}
