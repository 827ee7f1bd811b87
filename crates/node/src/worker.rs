//! A worker thread: it owns shards, gives them their inputs, and performs what they ask for.
//!
//! Decides nothing about the protocol. In each turn it takes all that has come, and then hands on what came of it at
//! once: one submission to the log, one batch of messages to each other worker.

use crate::bell::Bell;
use crate::calls::{Calls, NO_CALL};
use crate::clock::Clock;
use crate::env::{Caller, Env, NoAnswer, Reception, Watch};
use crate::events;
use crate::guarded::Guarded;
use crate::inbox::Command;
use crate::log::Submission;
use crate::part::{Part, Turned};
use crate::queries::Job;
use crate::shared::Shared;
use crate::snapshots::{Event, PIECE_BYTES};
use crate::status::{WorkerStatus, shard_status};
use crate::tasks::Step;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use stead_core::clock::Now;
use stead_core::handler::Handler;
use stead_core::ids::{Colour, Epoch, Index, ShardId, Time};
use stead_core::records::Piece;
use stead_core::replica::EpochConfig;
use stead_core::room;
use stead_core::shard::{Answer, Effect, Input, Refusal, Shard};
use stead_store::wal::Batch;

/// A submission over this many bytes goes to the log before the turn is over, so that the log never waits for work while
/// there is some.
const BATCH_BYTES: usize = 128 << 10;
/// A change of the bytes that wait that is published in the account of the node's memory at once.
const WAITING_BYTES: i64 = 4096;
/// Bytes that the log adds to each entry.
const RECORD_OVERHEAD: usize = 24;
/// How long each part of a turn goes on before the next one comes: what was stored, commands, calls that are tried again,
/// ticks, and what shards sent each other, in microseconds. Only a single call of a handler takes longer.
const SLICE: u64 = 1_000;
/// Inputs whose records are looked at together before they are handled.
const AHEAD: usize = 16;
/// The interval at which a worker looks whether the log has caught up, in milliseconds.
const PRESSED_LOOK_MS: u64 = 2;
/// Shards whose status is taken before the worker looks at the clock.
const STATUS_BATCH: usize = 8;
/// How often overdue calls are looked for, in microseconds.
const SWEEP: u64 = 20_000;
/// How long a worker sleeps at most, so that its shards notice a jump of the wall clock, in microseconds.
const CLOCK_LOOK: u64 = 1_000_000;
/// A change of the wall clock against the steady one, in microseconds, that shards follow: 10 ms.
const CLOCK_CHANGE: u64 = 10_000;
/// A change, in microseconds, that is logged: 10 s.
const CLOCK_JUMP: u64 = 10_000_000;
/// How long a request waits that came before its shard served.
const NOT_READY_RETRY_MS: u64 = 20;
/// How long a snapshot may hold the worker in one turn, in microseconds.
const SNAPSHOT_SLICE: u64 = 300;
/// Records of a snapshot that are taken between two looks at the clock.
const SNAPSHOT_RECORDS: usize = 64;

/// The part that owns shards: see [`Part`].
pub struct Worker<E: Env> {
    number: usize,
    shards: Vec<Slot>,
    /// The slots whose deadline may have changed.
    moved: Vec<u32>,
    code: Guarded<E>,
    /// By shard number: where it is in `shards`, if it is here.
    slots: Vec<Option<u32>>,
    intake: Intake<E::Caller>,
    /// What was taken in and not obeyed yet.
    commands: VecDeque<Command<E::Caller>>,
    effects: Vec<Effect>,
    /// What other shards have for those of this worker, in the order in which it came.
    local: VecDeque<(ShardId, Input)>,
    /// By worker, inputs for its shards.
    outgoing: Vec<Vec<(ShardId, Input)>>,
    /// Queries that their shards have let go.
    queries: Vec<Job<E::Caller>>,
    batch: Batch,
    /// Most bytes of a batch that the log takes.
    batch_max: usize,
    /// What `batch` reaches to, by slot; `touched` names the slots.
    appended: Vec<(Epoch, Index)>,
    touched: Vec<u32>,
    ticket: u64,
    submitted: VecDeque<(u64, Vec<(u32, Epoch, Index)>)>,
    /// By slot, up to where the log holds what its shard has not been given yet; `stored` names the slots.
    stored_upto: Vec<(Epoch, Index)>,
    stored: VecDeque<u32>,
    /// The slot that is asked first whether a tick is due.
    tick_from: u32,
    calls: Calls<E::Caller>,
    /// Calls to be tried again, with their tokens: by time, and then in the order in which they were refused.
    retries: BTreeMap<(Time, u64), (u64, ShardId, Input)>,
    last_retry: u64,
    /// When overdue calls were last looked for.
    sweep_at: Time,
    /// Bytes that are not yet published in the account of the node's memory: those that wait for the log, in outboxes, and of
    /// calls.
    waiting: [i64; 3],
    /// The longest turn so far, in microseconds.
    longest_hold: u64,
    draining: VecDeque<Draining>,
    /// The wall clock when the turn began.
    wall: Time,
    /// By how much the wall clock was ahead of the steady one when the shards last looked at it.
    wall_ahead: i64,
    is_started: bool,
    stopping: bool,
    /// By service.
    turn: Vec<Turn>,
}

/// What has come to a worker since its last turn.
struct Intake<C> {
    /// The last of the worker's submissions that the log holds durably.
    durable: u64,
    commands: Vec<Command<C>>,
    inputs: Vec<(ShardId, Input)>,
}

struct Slot {
    id: ShardId,
    service: u16,
    shard: Shard,
    /// As it was when [`Worker::renew_deadlines`] looked.
    deadline: Option<Time>,
    /// The shard was given an input since.
    is_moved: bool,
    /// The wall clock has changed, and the shard's timers with it.
    looks_at_clock: bool,
    /// Its bytes that wait for the log, in outboxes, and of queries, as the node's account has them.
    published: (i64, i64, i64),
}

/// A snapshot that is handed to the checkpoint thread in pieces.
struct Draining {
    slot: u32,
    number: Colour,
    piece: Piece,
    /// No checkpoint takes it. It is drained all the same: until then the shard keeps a copy of each record that changes.
    is_given_up: bool,
}

/// What a turn counts.
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
        shards: Vec<Shard>,
        code: Guarded<E>,
        batch_max: usize,
    ) -> Self {
        let mut slots = vec![None; shared.topology.shard_count() as usize];
        for (at, shard) in shards.iter().enumerate() {
            slots[shard.state().shard().0 as usize] = Some(at as u32);
        }
        let shards: Vec<Slot> = shards
            .into_iter()
            .map(|shard| {
                let id = shard.state().shard();
                let service = shared.topology.service_of(id).expect("a shard is made for its topology").0;
                Slot {
                    id,
                    service,
                    shard,
                    deadline: None,
                    is_moved: false,
                    looks_at_clock: false,
                    published: (0, 0, 0),
                }
            })
            .collect();
        let turn = shared.topology.services().iter().map(|_| Turn::default()).collect();
        let wall = shared.clock.wall();
        Self {
            wall,
            wall_ahead: ahead(wall, shared.clock.steady()),
            appended: vec![(Epoch(0), Index(0)); shards.len()],
            stored_upto: vec![(Epoch(0), Index(0)); shards.len()],
            stored: VecDeque::new(),
            tick_from: 0,
            outgoing: (0..shared.inboxes.len()).map(|_| Vec::new()).collect(),
            number,
            shards,
            code,
            slots,
            moved: Vec::new(),
            queries: Vec::new(),
            intake: Intake { durable: 0, commands: Vec::new(), inputs: Vec::new() },
            commands: VecDeque::new(),
            effects: Vec::new(),
            local: VecDeque::new(),
            batch: Batch::new(),
            batch_max,
            touched: Vec::new(),
            ticket: 0,
            submitted: VecDeque::new(),
            calls: Calls::default(),
            retries: BTreeMap::new(),
            last_retry: 0,
            sweep_at: shared.clock.steady(),
            waiting: [0; 3],
            longest_hold: 0,
            draining: VecDeque::new(),
            is_started: false,
            stopping: false,
            turn,
        }
    }

    /// Starts the shards.
    fn start(&mut self, shared: &Shared<E>, now: Time) {
        for slot in 0..self.shards.len() as u32 {
            let config = EpochConfig::single(shared.epoch, shared.node);
            self.give(shared, now, slot, Input::Start(config));
        }
        self.hand_on(shared, now);
    }

    /// Takes in what has come. Input comes in here alone.
    fn receive(&mut self, shared: &Shared<E>) {
        let Self { intake, .. } = self;
        let inbox = &shared.inboxes[self.number];
        inbox.take(&mut intake.commands, &mut intake.inputs);
        intake.durable = inbox.durable();
        shared.watch.durable(self.number, &mut intake.durable);
        self.commands.extend(intake.commands.drain(..));
        self.local.extend(intake.inputs.drain(..));
    }

    /// Takes what has come, gives the shards their inputs, and hands on what came of it; true if there was anything.
    fn work(&mut self, shared: &Shared<E>, now: Time) -> (bool, u64) {
        self.receive(shared);
        self.wall = shared.clock.wall();
        self.look_at_clock(now);
        // Each of these ends with its slice: what is left waits for the next turn, so that none holds up the others.
        let mut busy = self.take_stored(shared, now);
        busy |= self.obey_commands(shared, now);
        busy |= self.retry(shared, now);
        // While the log is far behind no handler may begin: what has been stored is all that matters.
        let is_pressed = shared.memory.is_pressed();
        if !self.stopping && !is_pressed {
            busy |= self.tick(shared, now);
        }
        if self.stopping || !is_pressed {
            busy |= self.run_local(shared, now);
        }
        busy |= self.drain_snapshots(shared);
        let sweep_in = self.sweep(shared, now);
        self.hand_on(shared, now);
        (busy, sweep_in)
    }

    /// Until when nothing is left to do, as far as is known.
    fn idle_until(&mut self, shared: &Shared<E>, now: Time, sweep_in: u64) -> Option<Time> {
        self.give_back();
        self.renew_deadlines();
        let is_pressed = shared.memory.is_pressed();
        let deadline = self.shards.iter().filter_map(|slot| slot.deadline).min();
        let deadline = deadline.filter(|_| !self.stopping && !is_pressed);
        let retry = self.retries.first_key_value().map(|((at, _), _)| *at);
        let sweep = (!self.calls.is_empty()).then(|| now.plus_micros(sweep_in));
        let look = Some(now.plus_micros(CLOCK_LOOK));
        // Another worker's entries may be those that the log is behind with.
        let pressed = is_pressed.then(|| now.plus_millis(PRESSED_LOOK_MS));
        [deadline, retry, sweep, look, pressed].into_iter().flatten().min()
    }

    /// Lets the shards look again if the wall clock jumped, or drifted, since they last did: their timers are due at other
    /// times then.
    fn look_at_clock(&mut self, now: Time) {
        let wall_ahead = ahead(self.wall, now);
        let change = wall_ahead.abs_diff(self.wall_ahead);
        if change < CLOCK_CHANGE {
            return;
        }
        // One worker speaks for all.
        if change >= CLOCK_JUMP && self.number == 0 {
            let seconds = (i128::from(wall_ahead) - i128::from(self.wall_ahead)) as f64 / 1e6;
            events::warn(format_args!(
                "the wall clock jumped by {seconds:+.1} s; the time of timers follows it"
            ));
        }
        self.wall_ahead = wall_ahead;
        for slot in &mut self.shards {
            slot.looks_at_clock = true;
        }
    }

    fn begin_slice(&mut self, shared: &Shared<E>) -> Time {
        let now = shared.clock.steady();
        let until = now.plus_micros(SLICE);
        self.code.begin_slice(now, until);
        until
    }

    /// Obeys for a while; true if there was anything.
    fn obey_commands(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let any = !self.commands.is_empty();
        let until = self.begin_slice(shared);
        while let Some(command) = self.commands.pop_front() {
            self.calls.obeyed_bytes = command.request_bytes();
            self.obey(shared, now, command);
            // It waits no more, unless a call has taken these over.
            let bytes = std::mem::take(&mut self.calls.obeyed_bytes);
            self.note_waiting(shared, [0, 0, -(bytes as i64)]);
            if shared.clock.steady() >= until {
                break;
            }
        }
        room::give_back(&mut self.commands);
        any
    }

    /// A rush is over: what it needed is given back.
    fn give_back(&mut self) {
        const KEPT: usize = 4096;
        self.calls.give_back();
        if self.intake.commands.capacity() > KEPT {
            self.intake.commands.shrink_to(KEPT);
        }
        if self.intake.inputs.capacity() > KEPT {
            self.intake.inputs.shrink_to(KEPT);
        }
        if self.effects.capacity() > KEPT {
            self.effects.shrink_to(KEPT);
        }
        for inputs in &mut self.outgoing {
            if inputs.capacity() > KEPT {
                inputs.shrink_to(KEPT);
            }
        }
    }

    fn obey(&mut self, shared: &Shared<E>, now: Time, command: Command<E::Caller>) {
        match command {
            Command::Request { shard, mut request, reception } => {
                self.count(shared, shard).requests += 1;
                let Some((slot, reception)) = self.admit(now, shard, reception) else { return };
                request.token = self.calls.next_token();
                let input = Input::Request(request);
                self.calls.open(reception, Some((shard, input.clone())));
                self.give(shared, now, slot, input);
            }
            Command::DeadLetter { shard, letter, order, reception } => {
                let Some((slot, reception)) = self.admit(now, shard, reception) else { return };
                let input = Input::DeadLetter { token: self.calls.next_token(), letter, order };
                self.calls.open(reception, Some((shard, input.clone())));
                self.give(shared, now, slot, input);
            }
            Command::Delete { shard, process, records, reception } => {
                let Some((slot, reception)) = self.admit(now, shard, reception) else { return };
                let input = Input::Delete { token: self.calls.next_token(), process, records };
                self.calls.open(reception, Some((shard, input.clone())));
                self.give(shared, now, slot, input);
            }
            Command::Query { shard, mut query, reception } => {
                self.count(shared, shard).queries += 1;
                let Some((slot, reception)) = self.admit(now, shard, reception) else { return };
                query.token = self.calls.next_token();
                let input = Input::Query(query);
                self.calls.open(reception, Some((shard, input.clone())));
                self.give(shared, now, slot, input);
            }
            Command::OpenSession { shard, session, principal, reception } => {
                let (Some(slot), false) = (self.slot(shard), self.stopping) else { return };
                let token = if reception.is_some() { self.calls.next_token() } else { NO_CALL };
                let input = Input::OpenSession { token, session, principal };
                if let Some(reception) = reception {
                    self.calls.open(reception, Some((shard, input.clone())));
                }
                self.give(shared, now, slot, input);
            }
            Command::Every { input, from } => {
                let Some(slot) = self.shards.get(from).map(|_| from as u32) else { return };
                // The others go on before anything that came later.
                self.commands.push_front(Command::Every { input: input.clone(), from: from + 1 });
                self.give(shared, now, slot, input);
            }
            Command::ForceFull(shard) => {
                if let Some(slot) = self.slot(shard) {
                    self.shards[slot as usize].shard.force_full_snapshot();
                }
            }
            Command::GivenUp(number) => {
                // Only those: the next checkpoint may have begun here already.
                for draining in self.draining.iter_mut().filter(|draining| draining.number <= number) {
                    draining.is_given_up = true;
                }
            }
            Command::Status { to, mut taken } => {
                let topology = &shared.topology;
                let shards = self.shards.iter().skip(taken.len()).take(STATUS_BATCH).map(|slot| {
                    let service = topology.service_of(slot.id).map_or("", |id| &topology.service(id).name);
                    shard_status(&slot.shard, slot.id, service)
                });
                taken.extend(shards);
                if taken.len() < self.shards.len() {
                    self.commands.push_front(Command::Status { to, taken });
                } else {
                    // The caller may have given up.
                    let _ = to.send(WorkerStatus { shards: taken });
                }
            }
            Command::Look { shard, look } => {
                if let Some(slot) = self.slot(shard) {
                    look(self.shards[slot as usize].shard.state());
                }
            }
            Command::Stop => {
                self.stopping = true;
                self.code.stop();
            }
        }
    }

    /// The shard's slot; a worker that is about to end takes no more calls, and drops their receptions.
    fn admit(
        &self,
        now: Time,
        shard: ShardId,
        reception: Reception<E::Caller>,
    ) -> Option<(u32, Reception<E::Caller>)> {
        if self.stopping || reception.caller.is_gone() {
            return None;
        }
        if reception.deadline <= now {
            // It waited for another's handler for too long: a call whose time is over is not begun.
            reception.caller.answer(Err(NoAnswer::TimedOut { after: reception.timeout }));
            return None;
        }
        Some((self.slot(shard)?, reception))
    }

    fn slot(&self, shard: ShardId) -> Option<u32> {
        self.slots.get(shard.0 as usize).copied().flatten()
    }

    fn give_to(&mut self, shared: &Shared<E>, now: Time, shard: ShardId, input: Input) {
        // What comes between the stop and the end would only be handled half.
        if let (Some(slot), false) = (self.slot(shard), self.stopping) {
            self.give(shared, now, slot, input);
        }
    }

    fn give(&mut self, shared: &Shared<E>, now: Time, slot: u32, input: Input) {
        let Self { shards, code, effects, moved, wall, .. } = self;
        let Slot { shard, is_moved, published, .. } = &mut shards[slot as usize];
        if input.is_admitted() {
            shard.set_crowded(shared.memory.is_over());
        }
        // It was counted when it was put into the inbox, and is by its shard from now on.
        let left_inbox = match &input {
            Input::TaskStep { outcome, .. } => outcome.bytes() as i64,
            _ => 0,
        };
        shared.watch.input(shard, &input);
        shard.handle(Now { steady: now, wall: *wall }, input, code as &mut dyn Handler, effects);
        shared.watch.effects(shard, effects);
        let uncommitted = shard.uncommitted_bytes() + shard.answer_bytes();
        let outboxes = shard.state().outbox_bytes() + shard.outcome_bytes();
        let bytes = (uncommitted as i64, outboxes as i64, shard.query_bytes() as i64);
        let before = std::mem::replace(published, bytes);
        shared.memory.change_queries(bytes.2 - before.2);
        if !std::mem::replace(is_moved, true) {
            moved.push(slot);
        }
        // Before it is performed: a client that gets its answer finds the room that it gave back.
        self.note_waiting(shared, [bytes.0 - before.0, bytes.1 - before.1 - left_inbox, 0]);
        self.perform(shared, now, slot);
    }

    /// Notes bytes that wait, and publishes them in the node's account if they are many.
    fn note_waiting(&mut self, shared: &Shared<E>, more: [i64; 3]) {
        for (waiting, more) in self.waiting.iter_mut().zip(more) {
            *waiting += more;
        }
        if self.waiting.iter().any(|bytes| bytes.abs() >= WAITING_BYTES) {
            shared.memory.change(std::mem::take(&mut self.waiting));
        }
    }

    fn perform(&mut self, shared: &Shared<E>, now: Time, slot: u32) {
        let mut effects = std::mem::take(&mut self.effects);
        let Slot { id: from, service, .. } = self.shards[slot as usize];
        let service = usize::from(service);
        for effect in effects.drain(..) {
            match effect {
                Effect::Append { epoch, index, bytes } => {
                    self.turn[service].entries += 1;
                    self.turn[service].entry_bytes += bytes.len() as u64;
                    if self.batch.bytes() + bytes.len() + RECORD_OVERHEAD > self.batch_max {
                        self.submit(shared, now);
                    }
                    self.batch.push(from, epoch, index, &bytes);
                    let appended = &mut self.appended[slot as usize];
                    if appended.1 == Index(0) {
                        self.touched.push(slot);
                    }
                    *appended = (epoch, index);
                }
                Effect::Deliver { to, messages, again } => {
                    self.turn[service].messages += messages.len() as u64;
                    self.route(shared, to, Input::Deliver { from, messages, again });
                }
                Effect::Ack { to, upto, colour } => self.route(shared, to, Input::Ack { from, upto, colour }),
                Effect::Answer(answer) => self.answer(shared, now, service, answer),
                Effect::Query(reading) => {
                    // Its caller may have given up.
                    if let Some(call) = self.calls.close(reading.query.token) {
                        self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
                        self.queries.push(Job::new(reading, call.reception, &shared.memory));
                    }
                }
                Effect::RunTask { id, run, task, asks, alone } => {
                    shared.tasks.push(Step { shard: from, id, run, task, asks, alone });
                }
                Effect::StepAllowed { id, run, allowed } => shared.tasks.answer(from, id, run, allowed),
                Effect::WantsTurn(lane) => shared.trials(|trials| trials.wants(from, lane)),
                Effect::EndsTurn(lane) => shared.trials(|trials| trials.ends(from, lane)),
                Effect::Marked { header, all } => {
                    let number = header.position.colour;
                    // What was left of an older snapshot belongs to a checkpoint that was given up, and this one replaces it.
                    self.draining.retain(|draining| draining.slot != slot);
                    let piece = Piece::default();
                    self.draining.push_back(Draining { slot, number, piece, is_given_up: false });
                    shared.snapshots.send(Event::Begun { shard: from, number, header, all });
                }
                Effect::MarkerCommitted(number) => {
                    shared.snapshots.send(Event::MarkerCommitted { shard: from, number });
                }
                Effect::Active(_) => shared.shard_is_active(),
            }
        }
        self.effects = effects;
        if self.batch.bytes() >= BATCH_BYTES {
            self.hand_on(shared, now);
        }
    }

    fn route(&mut self, shared: &Shared<E>, to: ShardId, input: Input) {
        if self.slot(to).is_some() {
            self.local.push_back((to, input));
        } else if (to.0 as usize) < self.slots.len() {
            self.outgoing[shared.worker_of(to)].push((to, input));
        }
    }

    /// Handles what other shards have sent, for a while; true if there was anything.
    fn run_local(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let any = !self.local.is_empty();
        let until = self.begin_slice(shared);
        while !self.local.is_empty() {
            // No cache holds the records that they meet: looked at together, these are fetched side by side.
            for (shard, input) in self.local.iter().take(AHEAD) {
                if let Some(slot) = self.slot(*shard) {
                    self.shards[slot as usize].shard.look_ahead(input);
                }
            }
            for _ in 0..AHEAD {
                let Some((shard, input)) = self.local.pop_front() else { break };
                self.give_to(shared, now, shard, input);
                if self.code.is_over() {
                    break;
                }
            }
            room::give_back(&mut self.local);
            // A worker that stops drops what is left.
            if !self.stopping && (self.code.is_over() || shared.clock.steady() >= until) {
                break;
            }
        }
        any
    }

    /// Gives the shards what the log holds of theirs, for a while; true if there was anything.
    fn take_stored(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let durable = self.intake.durable;
        while let Some((_, reached)) = self.submitted.pop_front_if(|(ticket, _)| *ticket <= durable) {
            for (slot, epoch, index) in reached {
                let upto = std::mem::replace(&mut self.stored_upto[slot as usize], (epoch, index));
                if upto.1 == Index(0) {
                    self.stored.push_back(slot);
                }
            }
        }
        let any = !self.stored.is_empty();
        let until = self.begin_slice(shared);
        while let Some(slot) = self.stored.pop_front() {
            let (epoch, upto) = std::mem::take(&mut self.stored_upto[slot as usize]);
            self.give(shared, now, slot, Input::Stored { member: shared.node, epoch, upto });
            if self.shards[slot as usize].shard.is_behind() {
                self.stored_upto[slot as usize] = (epoch, upto);
                self.stored.push_back(slot);
            }
            if shared.clock.steady() >= until {
                break;
            }
        }
        any
    }

    /// Asks the shards that were given something for their deadlines: once for all that they were given.
    fn renew_deadlines(&mut self) {
        for slot in self.moved.drain(..) {
            let Slot { shard, deadline, is_moved, .. } = &mut self.shards[slot as usize];
            *deadline = shard.deadline();
            *is_moved = false;
        }
    }

    /// Ticks the shards whose time has come, for a while; true if there was any.
    fn tick(&mut self, shared: &Shared<E>, now: Time) -> bool {
        self.renew_deadlines();
        let mut until = None;
        let slots = self.shards.len() as u32;
        for slot in (self.tick_from..slots).chain(0..self.tick_from) {
            let Slot { deadline, looks_at_clock, .. } = &mut self.shards[slot as usize];
            if !std::mem::take(looks_at_clock) && deadline.is_none_or(|at| at > now) {
                continue;
            }
            let until = *until.get_or_insert_with(|| self.begin_slice(shared));
            self.give(shared, now, slot, Input::Tick);
            if shared.clock.steady() >= until {
                self.tick_from = (slot + 1) % slots;
                break;
            }
        }
        until.is_some()
    }

    fn submit(&mut self, shared: &Shared<E>, now: Time) {
        if self.batch.is_empty() {
            return;
        }
        self.ticket += 1;
        let mut reached = Vec::with_capacity(self.touched.len());
        for slot in self.touched.drain(..) {
            let (epoch, index) = std::mem::take(&mut self.appended[slot as usize]);
            reached.push((slot, epoch, index));
        }
        self.submitted.push_back((self.ticket, reached));
        let batch = std::mem::replace(&mut self.batch, shared.log.spare());
        shared.log.submit(now, Submission { worker: self.number, ticket: self.ticket, batch });
    }

    fn hand_on(&mut self, shared: &Shared<E>, now: Time) {
        self.submit(shared, now);
        shared.memory.change(std::mem::take(&mut self.waiting));
        if !self.queries.is_empty() {
            shared.queries.push(&mut self.queries);
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

    /// What this turn counts for the service of a shard.
    fn count(&mut self, shared: &Shared<E>, shard: ShardId) -> &mut Turn {
        let service = shared.topology.service_of(shard).expect("clients ask shards that there are");
        &mut self.turn[usize::from(service.0)]
    }

    fn answer(&mut self, shared: &Shared<E>, now: Time, service: usize, answer: Answer) {
        if answer.token == NO_CALL {
            return;
        }
        let wait = match &answer.result {
            Err(Refusal::NotReady) => Some(NOT_READY_RETRY_MS),
            Err(Refusal::Overloaded { retry_after_ms }) => Some(*retry_after_ms),
            _ => None,
        };
        if let Some(wait) = wait
            && let Some(call) = self.calls.find(answer.token).and_then(Option::as_mut)
            && let Some((shard, input)) = call.again.clone()
        {
            let at = now.plus_millis(wait);
            if at < call.reception.deadline {
                self.last_retry += 1;
                self.retries.insert((at, self.last_retry), (answer.token, shard, input));
                call.refused = Some(answer);
                return;
            }
        }
        self.turn[service].answers += 1;
        self.turn[service].refusals += u64::from(answer.result.is_err());
        if let Some(call) = self.calls.close(answer.token) {
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            call.reception.caller.answer(Ok(answer));
        }
    }

    /// Asks again for calls whose shard could not take them, for a while; true if there was any.
    fn retry(&mut self, shared: &Shared<E>, now: Time) -> bool {
        let is_due = |retries: &BTreeMap<(Time, u64), _>| {
            retries.first_key_value().is_some_and(|((at, _), _)| *at <= now)
        };
        if !is_due(&self.retries) {
            return false;
        }
        let until = self.begin_slice(shared);
        while is_due(&self.retries)
            && let Some((_, (token, shard, input))) = self.retries.pop_first()
        {
            // The call may have run out of time since.
            if let Some(call) = self.calls.find(token).and_then(Option::as_mut) {
                call.refused = None;
                self.give_to(shared, now, shard, input);
            }
            if shared.clock.steady() >= until {
                break;
            }
        }
        true
    }

    /// Ends overdue calls from time to time; gives after how many microseconds to look again.
    fn sweep(&mut self, shared: &Shared<E>, now: Time) -> u64 {
        let since = now.0.saturating_sub(self.sweep_at.0);
        if since < SWEEP {
            return SWEEP - since;
        }
        let (overdue, is_through) = self.calls.close_overdue(now);
        for call in overdue {
            // What waits to be asked again was not applied.
            self.note_waiting(shared, [0, 0, -(call.bytes as i64)]);
            let timed_out = NoAnswer::TimedOut { after: call.reception.timeout };
            call.reception.caller.answer(call.refused.ok_or(timed_out));
        }
        if !is_through {
            return 0;
        }
        self.sweep_at = now;
        SWEEP
    }

    /// Hands a slice of the running snapshots to the checkpoint thread, unless that is behind.
    fn drain_snapshots(&mut self, shared: &Shared<E>) -> bool {
        if self.draining.is_empty() || shared.snapshots.is_behind() {
            return false;
        }
        let begun = shared.clock.steady();
        while let Some(draining) = self.draining.front_mut() {
            if draining.piece.is_empty() {
                draining.piece = shared.snapshots.spare();
            }
            let shard = &mut self.shards[draining.slot as usize];
            let done = shard.shard.drain_snapshot(SNAPSHOT_RECORDS, &mut draining.piece);
            if done || draining.piece.bytes() >= PIECE_BYTES {
                if draining.is_given_up {
                    draining.piece.clear();
                } else {
                    let (shard, number) = (shard.id, draining.number);
                    let piece = std::mem::take(&mut draining.piece);
                    shared.snapshots.send(Event::Records { shard, number, piece, done });
                }
            }
            if done {
                self.draining.pop_front();
            }
            if shared.clock.steady() >= begun.plus_micros(SNAPSHOT_SLICE) {
                break;
            }
        }
        let took = shared.clock.steady().0.saturating_sub(begun.0);
        shared.counters.checkpoint_stall_micros.raise(took);
        true
    }

    /// Answers the calls that still wait with the reason why the node has ended.
    fn end(&mut self, shared: &Shared<E>) {
        let reason = shared.end_reason();
        for call in self.calls.drain() {
            call.reception.caller.answer(Err(reason.clone()));
        }
        shared.workers_running.fetch_sub(1, Ordering::SeqCst);
        shared.inboxes[self.number].close();
    }
}

impl<E: Env> Part<Shared<E>> for Worker<E> {
    type Error = Infallible;

    fn bell<'h>(&self, shared: &'h Shared<E>) -> &'h Bell {
        &shared.inboxes[self.number].bell
    }

    fn spins(&self, shared: &Shared<E>) -> u32 {
        // While the log works on a submission its news is near.
        if self.submitted.is_empty() { shared.spins_idle } else { shared.spins_waiting }
    }

    fn turn(&mut self, shared: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if !std::mem::replace(&mut self.is_started, true) {
            self.start(shared, now);
            return Ok(Turned::Again);
        }
        let is_done = self.submitted.is_empty() && self.stored.is_empty() && self.batch.is_empty();
        // A stop that did not wait for this thread, for it came from a handler here, has ended without it.
        if shared.is_ended() || (self.stopping && is_done) {
            self.end(shared);
            return Ok(Turned::Ended);
        }
        self.code.probe().step_turn();
        let (busy, sweep_in) = self.work(shared, now);
        let hold = shared.clock.steady().0.saturating_sub(now.0);
        if hold > self.longest_hold {
            self.longest_hold = hold;
            shared.counters.worker_hold_micros.raise(hold);
        }
        self.code.probe().step_turn();
        Ok(if busy { Turned::Again } else { Turned::Until(self.idle_until(shared, now, sweep_in)) })
    }
}

/// By how many microseconds the wall clock is ahead of the steady one.
fn ahead(wall: Time, steady: Time) -> i64 {
    (i128::from(wall.0) - i128::from(steady.0)).clamp(i64::MIN.into(), i64::MAX.into()) as i64
}
