//! The part that owns shards: it passes them their inputs and performs their effects. `commands.rs` performs the
//! commands of clients, `effects.rs` the effects of shards; `deadlines.rs` has the times at which shards want a tick;
//! `native.rs` takes calls from the network and answers them; `replicas.rs` performs the effects of replicas of shards,
//! `placing.rs` lets them come and go, and `rebuilding.rs` reads their logs; `snapshots.rs` hands over their snapshots in
//! slices, and `taking.rs` those behind which the log of a node with replicas of several is trimmed.
//!
//! Decides nothing about the protocol. Each turn takes all work that has arrived, and passes on its results at the end:
//! a submission to the log, and a batch of messages to each other worker; much work is passed on earlier.

mod commands;
mod deadlines;
mod effects;
mod forwarding;
mod native;
mod placing;
mod rebuilding;
mod replicas;
mod snapshots;
mod taking;
#[cfg(test)]
mod tests;

use crate::bell::Bell;
use crate::calls::Calls;
use crate::clock::Clock;
use crate::control::ControlNews;
use crate::env::{Env, Watch};
use crate::events;
use crate::forward;
use crate::guarded::Guarded;
use crate::inbox::Command;
use crate::native::{Native, Recipient};
use crate::part::{Part, Turned};
use crate::peers::{Borrowed, PeerMessage};
use crate::queries::Job;
use crate::routes::Routes;
use crate::shared::Shared;
use deadlines::Deadlines;
pub(crate) use rebuilding::Stored;
use rebuilding::{Rebuilding, Unread};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use stead_core::clock::Now;
use stead_core::control::facts::ShardReport;
use stead_core::durability::Durability;
use stead_core::ids::{CallToken, CheckpointNumber, Epoch, Micros, NodeId, ReplicaId, ShardId, Time};
use stead_core::records::Piece;
use stead_core::replication::epoch::EpochRecord;
use stead_core::shard::{Input, Shard};
use stead_core::shard_replica::{self, Effects, ShardReplica, Watched};
use stead_core::shrink;
use stead_store::wal::Batch;
use taking::{Snapshotted, Taking};

/// Change of the waiting bytes that is published in the account of the node's memory at once.
const WAITING_BYTES: i64 = 4096;
/// Maximum time of each part of a turn: stored entries, commands, calls that are retried, ticks, and
/// inputs from other shards. Only a single call of a handler takes longer.
const SLICE: Micros = Micros::from_millis(1);
/// Number of inputs whose records are prefetched together before they are handled.
const AHEAD: usize = 16;
/// The interval at which a worker checks whether the log has caught up.
const PRESSED_LOOK: Micros = Micros::from_millis(2);
/// Longest sleep of a worker, so that its shards notice a jump of the wall clock.
const CLOCK_LOOK: Micros = Micros::from_secs(1);
/// Change of the wall clock against the steady one that shards follow: 10 ms.
const CLOCK_CHANGE: Micros = Micros::from_millis(10);
/// Change of the wall clock that is logged: 10 s.
const CLOCK_JUMP: Micros = Micros::from_secs(10);

/// The receiver of an answer, in this process or over the network.
type Asker<E> = Recipient<<E as Env>::Caller>;

/// The part that owns shards: see [`Part`].
pub struct Worker<E: Env> {
    number: usize,
    /// Its connections to clients, if the node listens.
    native: Option<Box<Native>>,
    /// The connections to other nodes, if it gives them their turns.
    borrowed: Option<Borrowed>,
    shards: Vec<Slot>,
    /// As the slots had them at the last [`Worker::renew_deadlines`].
    deadlines: Deadlines,
    /// The slots whose deadline may have changed since then.
    moved: Vec<u32>,
    /// Whether a slot may have to look at the wall clock.
    looks_at_clock: bool,
    code: Guarded<E>,
    /// By shard number, the position in `shards` if the shard is here.
    slots: Vec<Option<u32>>,
    intake: Intake<Asker<E>>,
    /// Commands that were received and not performed yet.
    commands: VecDeque<Command<Asker<E>>>,
    /// Empty between two inputs.
    effects: Effects,
    /// Inputs from other shards for this worker's shards, in the order of their arrival.
    local: VecDeque<(ShardId, Input)>,
    /// By worker, the inputs for its shards.
    outgoing: Vec<Vec<(ShardId, Input)>>,
    /// Queries that their shards have released.
    queries: Vec<Job<Asker<E>>>,
    batch: Batch,
    /// When the records of the batch have to be synced.
    durability: Durability,
    /// The same of those that a replica is adding.
    needed: Durability,
    /// Maximum number of bytes of a batch that the log accepts.
    batch_max: usize,
    /// The number of records in `batch`, by slot; `touched` names the slots.
    appended: Vec<usize>,
    touched: Vec<u32>,
    ticket: u64,
    submitted: VecDeque<(u64, Vec<(u32, usize)>)>,
    /// The slots with durable records that were not reported to the replica yet, or with more to leave.
    stored: VecDeque<u32>,
    /// The slot at which the next search for due ticks begins.
    tick_from: u32,
    calls: Calls<Asker<E>>,
    /// Calls to be retried, with their tokens: by time, then in the order of their refusals.
    retries: BTreeMap<(Time, u64), (CallToken, ShardId, Input)>,
    last_retry: u64,
    /// The time of the last search for overdue calls.
    sweep_at: Time,
    /// Bytes that are not yet published in the account of the node's memory: of entries that wait for the log, of
    /// messages in outboxes, and of calls.
    waiting: [i64; 3],
    /// The longest turn so far.
    longest_hold: Micros,
    draining: VecDeque<Draining>,
    /// Snapshots of the replicas.
    taking: Vec<Taking>,
    /// No replica's turn to take one is due before the log has got so many bytes, unless it is full.
    snapshots_at: u64,
    /// Calls for shards that other nodes lead.
    forwarded: forward::Desk<Asker<E>>,
    routes: Arc<Routes>,
    /// The version of `routes`.
    routed: u64,
    /// By node, the messages for it.
    peers: BTreeMap<NodeId, Vec<PeerMessage>>,
    /// The stored data of the replicas; `None` without any of several.
    stored_data: Option<Arc<Stored>>,
    /// By slot, the states that are folded anew.
    rebuilds: BTreeMap<u32, Rebuilding>,
    /// The slot of the one that had the last turn.
    rebuilt_last: u32,
    /// Reads of entries for peers that wait until the log has written these.
    unread: Vec<Unread>,
    /// News for the control plane.
    news: ControlNews,
    /// The slots whose replicas are some of several and have handled inputs in this turn.
    replicated: Vec<u32>,
    /// The wall clock when the turn began.
    wall: Time,
    /// The lead of the wall clock over the steady one when the shards last looked at it, in microseconds.
    wall_ahead: i64,
    is_started: bool,
    stopping: bool,
    /// By service.
    turn: Vec<Turn>,
}

/// The work that has arrived at a worker since its last turn.
struct Intake<C> {
    /// The last of the worker's submissions that counts as durable, and the last one that is synced.
    durable: u64,
    synced: u64,
    commands: Vec<Command<C>>,
    inputs: Vec<(ShardId, Input)>,
}

struct Slot {
    id: ShardId,
    service: u16,
    replica: ShardReplica,
    /// Whether its shard has other replicas.
    is_replicated: bool,
    /// The epoch that it leads from the first turn on.
    leads: Option<Box<EpochRecord>>,
    /// Whether it is held by itself, until it has had its turn.
    is_trying: bool,
    /// The last report on it to the control plane.
    reported: Option<ShardReport>,
    /// Whether it is in [`Worker::replicated`].
    is_touched: bool,
    /// The number of records from here that the log does not report as durable yet.
    appended: usize,
    /// The number of the first of these that an earlier replica has appended.
    of_others: usize,
    /// A replica whose frames contradict what is committed here, and the epoch that it leads: see [`GivenUp`](shard_replica::Effect::GivenUp).
    given_up: Option<(Epoch, ReplicaId)>,
    /// The replicas whose tombstones are among these.
    deleted: Vec<ReplicaId>,
    snapshotted: Snapshotted,
    /// The number of its durable records that were not reported to it yet.
    durable: usize,
    /// Whether it is in [`Worker::stored`].
    is_stored: bool,
    /// Whether it is in [`Worker::moved`].
    is_moved: bool,
    /// Whether its shard serves: its epoch is active.
    serves: bool,
    /// Whether the wall clock has changed, and with it the due times of the shard's timers.
    looks_at_clock: bool,
    /// Its bytes in the node's account: of entries that wait for the log, of messages in outboxes, and of queries.
    published: (i64, i64, i64),
}

/// A snapshot that is handed to the checkpoint thread in pieces.
struct Draining {
    slot: u32,
    number: CheckpointNumber,
    piece: Piece,
    /// Set if no checkpoint takes it. It is drained anyway: until then the shard keeps a copy of each changed record.
    is_given_up: bool,
}

/// The counts of a turn.
#[derive(Default)]
struct Turn {
    requests: u64,
    queries: u64,
    answers: u64,
    refusals: u64,
    messages: u64,
    entries: u64,
    entry_bytes: u64,
}

impl<E: Env> Worker<E> {
    pub(crate) fn new(
        shared: &Shared<E>,
        number: usize,
        replicas: Vec<(ShardReplica, Option<Box<EpochRecord>>)>,
        code: Guarded<E>,
        batch_max: usize,
    ) -> Self {
        let mut slots = vec![None; shared.topology.shard_count() as usize];
        let shards: Vec<Slot> = (0..)
            .zip(replicas)
            .map(|(at, (replica, leads))| {
                let id = replica.shard_id();
                let service = shared.topology.service_of(id).expect("a replica is made for its topology").0;
                slots[id.0 as usize] = Some(at);
                Slot {
                    id,
                    service,
                    replica,
                    is_replicated: leads.is_none(),
                    leads,
                    is_trying: false,
                    reported: None,
                    is_touched: false,
                    appended: 0,
                    of_others: 0,
                    given_up: None,
                    deleted: Vec::new(),
                    snapshotted: Snapshotted::default(),
                    durable: 0,
                    is_stored: false,
                    is_moved: false,
                    serves: false,
                    looks_at_clock: false,
                    published: (0, 0, 0),
                }
            })
            .collect();
        let turn = shared.topology.services().iter().map(|_| Turn::default()).collect();
        let wall = shared.clock.wall();
        Self {
            native: None,
            borrowed: None,
            wall,
            wall_ahead: ahead(wall, shared.clock.steady()),
            appended: vec![0; shards.len()],
            deadlines: Deadlines::new(shards.len()),
            looks_at_clock: false,
            stored: VecDeque::new(),
            tick_from: 0,
            outgoing: (0..shared.inboxes.len()).map(|_| Vec::new()).collect(),
            number,
            shards,
            code,
            slots,
            moved: Vec::new(),
            queries: Vec::new(),
            intake: Intake { durable: 0, synced: 0, commands: Vec::new(), inputs: Vec::new() },
            commands: VecDeque::new(),
            effects: Effects::default(),
            local: VecDeque::new(),
            batch: Batch::new(),
            durability: Durability::Never,
            needed: Durability::Always,
            batch_max,
            touched: Vec::new(),
            ticket: 0,
            submitted: VecDeque::new(),
            calls: Calls::default(),
            retries: BTreeMap::new(),
            last_retry: 0,
            sweep_at: shared.clock.steady(),
            waiting: [0; 3],
            longest_hold: Micros(0),
            draining: VecDeque::new(),
            taking: Vec::new(),
            snapshots_at: 0,
            forwarded: forward::Desk::new(shared.inboxes.len()),
            routes: Arc::default(),
            routed: 0,
            peers: BTreeMap::new(),
            stored_data: None,
            rebuilds: BTreeMap::new(),
            rebuilt_last: 0,
            unread: Vec::new(),
            news: ControlNews::default(),
            replicated: Vec::new(),
            is_started: false,
            stopping: false,
            turn,
        }
    }

    /// Returns the shards that it leads: none before its first turn.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter_map(|slot| slot.replica.shard())
    }

    /// Returns the replicas of shards that it owns.
    pub fn replicas(&self) -> impl Iterator<Item = &ShardReplica> {
        self.shards.iter().map(|slot| &slot.replica)
    }

    /// Returns the number of its submissions to the log so far.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.ticket
    }

    /// Makes the replicas lead that are the only ones of their shards.
    fn start(&mut self, shared: &Shared<E>, now: Time) {
        self.wall = shared.clock.wall();
        self.wall_ahead = ahead(self.wall, now);
        for slot in 0..self.shards.len() as u32 {
            if let Some(record) = self.shards[slot as usize].leads.take() {
                let max_lag = self.shards[slot as usize].replica.max_lag();
                let lead = shard_replica::Input::Lead { record, learners: Vec::new(), max_lag };
                self.give_replica(shared, now, slot, lead);
            }
        }
        self.hand_on(shared, now);
    }

    /// Receives the work that has arrived. This is the only place where input comes in.
    fn receive(&mut self, shared: &Shared<E>, now: Time) {
        let Self { intake, .. } = self;
        let inbox = &shared.inboxes[self.number];
        inbox.take(&mut intake.commands, &mut intake.inputs);
        // In this order: what is synced is durable.
        intake.synced = inbox.synced();
        intake.durable = inbox.durable();
        shared.watch.durable(self.number, &mut intake.durable);
        take_over(&mut self.commands, &mut intake.commands);
        take_over(&mut self.local, &mut intake.inputs);
        if let Some(routes) = shared.routes.newer_than(&mut self.routed) {
            self.follow_routes(now, routes);
            self.confirm_given_up();
        }
    }

    /// Does the work that has arrived, and passes on its results; returns whether there was any, and the time until the
    /// next search for overdue calls.
    fn work(&mut self, shared: &Shared<E>, now: Time) -> (bool, Micros) {
        self.receive(shared, now);
        self.wall = shared.clock.wall();
        self.look_at_clock(now);
        // Each of these ends with its slice: the rest waits for the next turn, so that none delays the others.
        let mut busy = self.take_calls(shared, now);
        busy |= self.take_stored(shared, now);
        busy |= self.perform_commands(shared, now);
        busy |= self.retry(shared, now);
        busy |= self.look_at_forwarded(shared, now);
        // While the log is far behind no handler may begin, and only stored entries matter.
        let is_pressed = shared.memory.is_pressed();
        if is_pressed {
            self.touch_due(now);
        } else if !self.stopping {
            busy |= self.tick(shared, now);
        }
        if self.stopping || !is_pressed {
            busy |= self.run_local(shared, now);
        }
        busy |= self.rebuild(shared, now);
        busy |= self.drain_snapshots(shared);
        busy |= self.take_slice(shared, now);
        let sweep_in = self.sweep(shared, now);
        self.hand_on(shared, now);
        self.send_answers(now);
        (busy, sweep_in)
    }

    /// Returns the time until which nothing is left to do, as far as is known.
    fn idle_until(&mut self, shared: &Shared<E>, now: Time, sweep_in: Micros) -> Option<Time> {
        self.shrink();
        self.renew_deadlines();
        let is_pressed = shared.memory.is_pressed();
        let deadline = self.deadlines.first().filter(|_| !self.stopping && !is_pressed);
        let retry = self.retries.first_key_value().map(|((at, _), _)| *at);
        let sweep = (!self.calls.is_empty()).then(|| now.plus(sweep_in));
        let look = Some(now.plus(CLOCK_LOOK));
        // The log may be behind because of another worker's entries. Inputs that were left because of that wait here,
        // even if the log has caught up since.
        let pressed = (is_pressed || !self.local.is_empty()).then(|| now.plus(PRESSED_LOOK));
        let network = self.native.as_ref().map(|native| native.due());
        let forwarded = self.forwarded.due();
        [deadline, retry, sweep, look, pressed, network, forwarded].into_iter().flatten().min()
    }

    /// Lets the shards look at the wall clock if it has jumped or drifted since they last did, because their timers are
    /// then due at other times.
    fn look_at_clock(&mut self, now: Time) {
        let wall_ahead = ahead(self.wall, now);
        let change = Micros(wall_ahead.abs_diff(self.wall_ahead));
        if change < CLOCK_CHANGE {
            return;
        }
        // One worker reports it for all.
        if change >= CLOCK_JUMP && self.number == 0 {
            let seconds = (i128::from(wall_ahead) - i128::from(self.wall_ahead)) as f64 / 1e6;
            events::warn(format_args!(
                "the wall clock jumped by {seconds:+.1} s; the time of timers follows it"
            ));
        }
        self.wall_ahead = wall_ahead;
        self.looks_at_clock = true;
        for slot in &mut self.shards {
            slot.looks_at_clock = true;
        }
    }

    fn begin_slice(&mut self, shared: &Shared<E>) -> Time {
        let now = shared.clock.steady();
        let until = now.plus(SLICE);
        self.code.begin_slice(now, until);
        until
    }

    /// Whether a slice that lasts until a time is over: also if the node has ended within it.
    fn is_slice_over(shared: &Shared<E>, until: Time) -> bool {
        shared.is_ended() || shared.clock.steady() >= until
    }

    /// Releases the memory of a burst once it is over.
    fn shrink(&mut self) {
        const KEPT: usize = 4096;
        self.calls.shrink();
        if self.commands.capacity() > KEPT {
            self.commands.shrink_to(KEPT);
        }
        if self.intake.commands.capacity() > KEPT {
            self.intake.commands.shrink_to(KEPT);
        }
        if self.intake.inputs.capacity() > KEPT {
            self.intake.inputs.shrink_to(KEPT);
        }
        if self.effects.shard.capacity() > KEPT {
            self.effects.shard.shrink_to(KEPT);
        }
        for inputs in &mut self.outgoing {
            if inputs.capacity() > KEPT {
                inputs.shrink_to(KEPT);
            }
        }
    }

    fn slot(&self, shard: ShardId) -> Option<u32> {
        self.slots.get(shard.0 as usize).copied().flatten()
    }

    fn give_to(&mut self, shared: &Shared<E>, now: Time, shard: ShardId, input: Input) {
        // Input that arrives between the stop and the end could be handled only in part.
        if let (Some(slot), false) = (self.slot(shard), self.stopping) {
            self.give(shared, now, slot, input);
        }
    }

    fn give(&mut self, shared: &Shared<E>, now: Time, slot: u32, input: Input) {
        // A handler of this turn may have ended the node, whose data may already have another owner.
        if shared.is_ended() {
            return;
        }
        let Self { shards, code, effects, wall, .. } = self;
        let replica = &mut shards[slot as usize].replica;
        if input.is_admitted()
            && let Some(shard) = replica.shard_mut()
        {
            shard.set_crowded(shared.memory.is_over());
        }
        // The inbox has counted its bytes; from now on its shard counts them.
        let left_inbox = match &input {
            Input::TaskStep { outcome, .. } => outcome.bytes() as i64,
            _ => 0,
        };
        let code: &mut dyn Watched = code;
        replica.handle_shard(Now { steady: now, wall: *wall }, input, code, effects);
        self.handled(shared, now, slot, left_inbox);
    }

    fn give_replica(&mut self, shared: &Shared<E>, now: Time, slot: u32, input: shard_replica::Input) {
        // As in `give`.
        if shared.is_ended() {
            return;
        }
        let Self { shards, code, effects, wall, .. } = self;
        let code: &mut dyn Watched = code;
        shards[slot as usize].replica.handle(Now { steady: now, wall: *wall }, input, code, effects);
        self.handled(shared, now, slot, 0);
    }

    /// Performs the effects of an input that a replica has handled, which has taken so many bytes from the inbox.
    fn handled(&mut self, shared: &Shared<E>, now: Time, slot: u32, left_inbox: i64) {
        let Slot { id, replica, is_moved, serves, published, .. } = &mut self.shards[slot as usize];
        let is_active = replica.shard().is_some_and(Shard::is_active);
        let begins = !std::mem::replace(serves, is_active) && is_active;
        let id = *id;
        let bytes = replica.shard().map_or((0, 0, 0), |shard| {
            let uncommitted = shard.uncommitted_bytes() + shard.answer_bytes();
            let outboxes = shard.state().outbox_bytes() + shard.outcome_bytes();
            (uncommitted as i64, outboxes as i64, shard.query_bytes() as i64)
        });
        let before = std::mem::replace(published, bytes);
        shared.memory.change_queries(bytes.2 - before.2);
        if !std::mem::replace(is_moved, true) {
            self.moved.push(slot);
        }
        self.touch(slot);
        // Before the effects are performed: a client that gets its answer must find the space that its call has
        // released.
        self.note_waiting(shared, [bytes.0 - before.0, bytes.1 - before.1 - left_inbox, 0]);
        self.perform(shared, now, slot);
        if begins {
            self.retry_now(now, id);
        }
    }

    /// Lets a replica that has peers send what they lack at the end of the turn.
    fn touch(&mut self, slot: u32) {
        let Slot { is_replicated, is_touched, .. } = &mut self.shards[slot as usize];
        if *is_replicated && !std::mem::replace(is_touched, true) {
            self.replicated.push(slot);
        }
    }

    /// Notes waiting bytes, and publishes them in the node's account if they are many.
    fn note_waiting(&mut self, shared: &Shared<E>, more: [i64; 3]) {
        for (waiting, more) in self.waiting.iter_mut().zip(more) {
            *waiting += more;
        }
        if self.waiting.iter().any(|bytes| bytes.abs() >= WAITING_BYTES) {
            self.publish_waiting(shared);
        }
    }

    /// Publishes the noted bytes in the node's account.
    fn publish_waiting(&mut self, shared: &Shared<E>) {
        let mut bytes = std::mem::take(&mut self.waiting);
        shared.watch.account(&mut bytes);
        shared.memory.change(bytes);
    }

    /// Handles inputs from other shards, for a while; returns whether there were any.
    fn run_local(&mut self, shared: &Shared<E>, now: Time) -> bool {
        if self.local.is_empty() {
            return false;
        }
        let until = self.begin_slice(shared);
        while !self.local.is_empty() {
            // The records that they need are in no cache: prefetched together, they are fetched in parallel.
            for (shard, input) in self.local.iter().take(AHEAD) {
                if let Some(slot) = self.slot(*shard)
                    && let Some(shard) = self.shards[slot as usize].replica.shard()
                {
                    shard.look_ahead(input);
                }
            }
            for _ in 0..AHEAD {
                let Some((shard, input)) = self.local.pop_front() else { break };
                self.give_to(shared, now, shard, input);
                if self.code.is_over() {
                    break;
                }
            }
            shrink::release_spare(&mut self.local);
            // A worker that stops drops the remaining inputs.
            if !self.stopping && (self.code.is_over() || Self::is_slice_over(shared, until)) {
                break;
            }
        }
        true
    }

    /// Reports to the replicas how many of their records are durable, for a while; returns whether there were any.
    fn take_stored(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let durable = self.intake.durable;
        while let Some((_, reached)) = self.submitted.pop_front_if(|(ticket, _)| *ticket <= durable) {
            for (slot, records) in reached {
                let records = self.take_durable(shared, slot, records);
                let Slot { durable, is_stored, .. } = &mut self.shards[slot as usize];
                *durable += records;
                if !std::mem::replace(is_stored, true) {
                    self.stored.push_back(slot);
                }
            }
        }
        if self.stored.is_empty() {
            return false;
        }
        let until = self.begin_slice(shared);
        while let Some(slot) = self.stored.pop_front() {
            let Slot { durable, is_stored, .. } = &mut self.shards[slot as usize];
            let records = std::mem::take(durable);
            *is_stored = false;
            self.give_replica(shared, now, slot, shard_replica::Input::Durable(records));
            let Slot { replica, is_stored, .. } = &mut self.shards[slot as usize];
            if replica.shard().is_some_and(Shard::is_behind) {
                *is_stored = true;
                self.stored.push_back(slot);
            }
            if Self::is_slice_over(shared, until) {
                break;
            }
        }
        true
    }

    /// Reads the deadlines of the shards that have handled inputs: once for all their inputs.
    fn renew_deadlines(&mut self) {
        for slot in self.moved.drain(..) {
            let Slot { replica, is_moved, .. } = &mut self.shards[slot as usize];
            self.deadlines.set(slot, replica.deadline());
            *is_moved = false;
        }
    }

    /// Lets the replicas that are due send what their peers lack, though no handler may begin: what is not sent is not committed, and
    /// may be what the memory is short of.
    fn touch_due(&mut self, now: Time) {
        self.renew_deadlines();
        for slot in 0..self.shards.len() as u32 {
            if self.deadlines.is_due(slot, now) {
                self.touch(slot);
            }
        }
    }

    /// Ticks the shards that are due, for a while; returns whether there were any.
    fn tick(&mut self, shared: &Shared<E>, now: Time) -> bool {
        self.renew_deadlines();
        if !self.looks_at_clock && self.deadlines.first().is_none_or(|at| at > now) {
            return false;
        }
        let mut until = None;
        let slots = self.shards.len() as u32;
        for slot in (self.tick_from..slots).chain(0..self.tick_from) {
            let looks_at_clock = std::mem::take(&mut self.shards[slot as usize].looks_at_clock);
            if !looks_at_clock && !self.deadlines.is_due(slot, now) {
                continue;
            }
            let until = *until.get_or_insert_with(|| self.begin_slice(shared));
            self.give_replica(shared, now, slot, shard_replica::Input::Tick);
            if Self::is_slice_over(shared, until) {
                self.tick_from = (slot + 1) % slots;
                return true;
            }
        }
        self.looks_at_clock = false;
        until.is_some()
    }

    /// Answers the calls that still wait with the reason for the node's end.
    fn end(&mut self, shared: &Shared<E>) {
        let reason = shared.end_reason();
        let waiting = self.calls.drain().map(|call| call.reply_to);
        let waiting: Vec<_> = waiting.chain(self.forwarded.drain().map(|call| call.reply_to)).collect();
        let now = shared.now();
        for reply_to in waiting {
            match reply_to.caller {
                Recipient::Node(node) => node.leave(Err(reason.clone())),
                caller => self.give_answer(now, caller, Err(reason.clone())),
            }
        }
        self.send_answers(now);
        // Closed at once after a failure or a kill.
        if let (Some(native), false) = (self.native.take(), shared.is_ended()) {
            shared.keep_connections(*native);
        }
        shared.inboxes[self.number].close();
    }
}

impl<E: Env> Part<Shared<E>> for Worker<E> {
    type Error = Infallible;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.inboxes[self.number].bell
    }

    fn spins(&self, shared: &Shared<E>) -> u32 {
        // It may wait for other nodes, which may need this processor.
        if !shared.replicated.is_empty() {
            return 0;
        }
        // While the log works on a submission, its report comes soon.
        if self.submitted.is_empty() { shared.spins_idle } else { shared.spins_waiting }
    }

    fn attach(&self, shared: &Shared<E>) {
        match (&self.borrowed, &self.native) {
            (Some(borrowed), _) => borrowed.attach(shared, self.bell(shared)),
            (None, Some(native)) => self.bell(shared).attach_to(native.wake()),
            (None, None) => self.bell(shared).attach(),
        }
    }

    fn sleep(&mut self, shared: &Shared<E>, now: Time, until: Option<Time>) {
        let spins = self.spins(shared);
        let bell = &shared.inboxes[self.number].bell;
        match (&self.borrowed, &mut self.native) {
            (Some(borrowed), _) => bell.sleep(now, until, spins, |_| borrowed.wait(shared, bell, now, until)),
            (None, Some(native)) => bell.sleep(now, until, spins, |time| native.wait(time)),
            (None, None) => bell.park(now, until, spins),
        }
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if !self.is_started && !shared.is_ended() {
            self.is_started = true;
            self.start(shared, now);
            return Ok(Turned::Again);
        }
        // Each turn has submitted its batch.
        let is_done = self.submitted.is_empty() && self.stored.is_empty();
        // If a handler on this thread stopped the node, the stop has ended without waiting for this thread.
        if shared.is_ended() || (self.stopping && is_done) {
            self.end(shared);
            return Ok(Turned::Ended);
        }
        self.code.probe().step_turn();
        let peers_due = self.take_frames(shared, now);
        let (mut busy, sweep_in) = self.work(shared, now);
        busy |= self.send_frames(shared, now);
        let hold = shared.clock.steady().since(now);
        if hold > self.longest_hold {
            self.longest_hold = hold;
            shared.counters.worker_hold_micros.raise(hold.0);
        }
        self.code.probe().step_turn();
        if busy || peers_due.is_some_and(|due| due <= now) {
            return Ok(Turned::Again);
        }
        let until = self.idle_until(shared, now, sweep_in);
        Ok(Turned::Until(until.into_iter().chain(peers_due).min()))
    }
}

/// Takes what has arrived behind what is left of a queue. If nothing is left, nothing is copied: the queue gives its capacity in exchange.
fn take_over<T>(queue: &mut VecDeque<T>, arrived: &mut Vec<T>) {
    if arrived.is_empty() {
        return;
    }
    if queue.is_empty() {
        let spare = Vec::from(std::mem::take(queue));
        *queue = VecDeque::from(std::mem::replace(arrived, spare));
    } else {
        queue.extend(arrived.drain(..));
    }
}

/// Returns the lead of the wall clock over the steady one in microseconds.
fn ahead(wall: Time, steady: Time) -> i64 {
    (i128::from(wall.0) - i128::from(steady.0)).clamp(i64::MIN.into(), i64::MAX.into()) as i64
}
