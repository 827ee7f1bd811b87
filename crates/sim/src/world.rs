//! The simulated world: virtual time, its events in their order, and the crashes.
//!
//! There is one queue of events and one generator: seed and profile determine all events. What leaves the node is
//! compared with the [`Model`] before it is delivered.

use crate::blame::{Blame, Killer};
use crate::bug::Bug;
use crate::checkpoints::Rehearsal;
use crate::client::{Clients, Frame};
use crate::disk::{LifeDisk, Syncs};
use crate::disk_log::DiskLog;
use crate::marks::{Mark, Marks};
use crate::model::{Model, check_channels, copy};
use crate::node::{NODE, Node, PartId};
use crate::operator::Decision;
use crate::profile::{Overrides, Profile, one_in, spread};
use crate::recent::Recent;
use crate::stage::{self, Code, Scene};
use crate::starting::Flip;
use crate::violation::Violation;
use crate::workload::CallId;
use fastrand::Rng;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use stead_core::calls::Answer;
use stead_core::ids::{CallToken, CheckpointNumber, Incarnation, Index, Micros, ShardId, Time};
use stead_core::record::{Kind, RecordKey, TaskRecord};
use stead_core::shard::Input;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::TrialKind;
use stead_node::checkpoint::News;
use stead_store::disk::Disk;
use stead_store::sim_disk::{Faults, SimDisk};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The wall clock at the beginning of a run.
const WALL: u64 = 1_700_000_000_000_000;
/// Number of events within which a world without faults must come to rest, if its time is over too; and after which its
/// time is over in any case.
const CALM_EVENTS: u64 = 200_000;
const CALM_EVENTS_MAX: u64 = 10 * CALM_EVENTS;
/// The time in which a world without faults must come to rest, as numbers of resends of lost messages and of deadlines
/// of checkpoints.
const CALM_RESENDS: u64 = 10;
const CALM_CHECKPOINTS: u64 = 4;
/// The byte in the key of an attempt's record that marks a client's request.
const REQUEST_TAG: u8 = 3;

/// An event at some time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client may make a call.
    Client(usize),
    /// A call is retried unless it is answered.
    Retry(CallId, u32),
    /// An answered call is repeated.
    AskAgain(CallId),
    /// A client's frame, with the time at which it was sent, arrives at the node, if it lives.
    Arrive(Frame, u64),
    /// An answer arrives at its client.
    Answer(Answer),
    /// An event within one life of the node.
    Inside { life: u64, what: Inside },
    /// The node starts.
    Start,
}

#[derive(Debug)]
pub(crate) enum Inside {
    Input(ShardId, Input),
    /// A part may be due.
    Turn(PartId),
    /// The shutdown has a turn.
    End,
    /// A checkpoint is requested.
    Want,
    /// News of checkpoints arrives at a worker.
    News(usize, News),
}

struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The way in which the node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The machine loses its power.
    Power,
    /// The process ends, and the machine continues.
    Process,
}

/// The end of a run that cannot continue, without a violation.
pub(crate) enum Stop {
    Violation(Violation),
    /// The damage cannot be detected.
    Over,
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

pub(crate) type Outcomes = Result<(), Stop>;

/// The state of a run.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) bug: Option<Bug>,
    pub(crate) profile: Profile,
    /// The caller's overrides of the profile, which also hold for a restored cluster.
    pub(crate) overrides: Overrides,
    /// The last events of this world, and of the one that it was restored from.
    pub(crate) recent: Rc<RefCell<Recent>>,
    pub(crate) marks: Marks,
    pub(crate) model: Model,
    pub(crate) disk: SimDisk,
    pub(crate) topology: Arc<Topology>,
    pub(crate) node: Option<Node>,
    pub(crate) workload: Code,
    pub(crate) clients: Clients,
    pub(crate) life: u64,
    pub(crate) calm: bool,
    pub(crate) tracing: bool,
    nested: bool,
    /// The final hash of the restored cluster.
    pub(crate) restored_hash: u128,
    /// By shard, the last entry that the log records as synced: only damage above it may go unnoticed.
    pub(crate) covered: Vec<Index>,
    /// By shard, the last entry at the start of this life.
    pub(crate) recovered: Vec<Index>,
    /// The log on the disk, as this life changes it.
    pub(crate) disk_log: Arc<Mutex<DiskLog>>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub(crate) now: u64,
    /// The wall clock's lead over virtual time.
    offset: i64,
    jumped: bool,
    /// The clock's faults have their own generator: they change nothing in a run without them.
    clock: Rng,
    pub(crate) events: u64,
    trace: u64,
    /// Frames of earlier lives.
    old: Vec<Frame>,
    /// The times at which the disk has space again, and at which files can be opened again; 0 if that is so now.
    room_at: u64,
    files_at: u64,
    /// Number of operations that the disk had failed at the beginning of this life, and that of syncs among them.
    failed: u64,
    pub(crate) failed_syncs: u64,
    /// Whether the disk had a limit of bytes or of open files at any time within this life.
    was_short: bool,
    /// Those of copies of checkpoints since then.
    pub(crate) failed_copies: Arc<AtomicU64>,
    /// The last bit that was flipped.
    pub(crate) flipped: Option<Flip>,
    /// The disk as the present life has it.
    pub(crate) life_disk: Option<Arc<dyn Disk>>,
    /// The number of calls that have arrived at the node.
    pub(crate) arrived: u64,
    /// The newest checkpoint that the node has reported as copied; 0 for none.
    pub(crate) copied: u64,
    /// By service, how often its check has ended the process since it last came to its own end.
    pub(crate) check_deaths: BTreeMap<String, u32>,
    /// Ends this life's access to the disk.
    alive: Arc<AtomicBool>,
    /// Whether the last life ended with a power cut, so that everything on the disk is durable.
    pub(crate) powered_off: bool,
    /// The disk before the last recovery, if that crashed.
    pub(crate) before_recovery: Option<SimDisk>,
    /// Whether the current or last life may mark its data as cleanly shut down.
    pub(crate) may_be_clean: bool,
    /// Whether the disk accepted no more bytes or files when the log of the last clean shutdown ended.
    pub(crate) log_ended_short: bool,
    pub(crate) recovered_once: bool,
    /// By shard, the virtual time since which it may work without interruption.
    works_since: Vec<Option<u64>>,
    /// For the planted bug `stale-query`: by process, the last answer to a query.
    pub(crate) stale: BTreeMap<String, Answer>,
    pub(crate) queries: BTreeMap<CallToken, String>,
    /// The operator has its own generator: it changes nothing in a run without dead letters.
    pub(crate) operator: Rng,
    /// The times at which queries run have their own generator as well.
    pub(crate) reads: Rng,
    /// The faults of clients, and of the disk within a life, have their own generators as well.
    pub(crate) odd: Rng,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) blame: Blame,
    /// The greatest number of a completed or given-up checkpoint.
    pub(crate) decided: CheckpointNumber,
    /// The rehearsals of checkpoints at the end of a run.
    pub(crate) rehearsal: Rehearsal,
}

impl World {
    /// Creates a world with an empty disk.
    pub(crate) fn new(seed: u64, bug: Option<Bug>, workload: Code, profile: Profile) -> Self {
        let mut topology = Topology::new(Incarnation(1));
        for (name, shards) in workload.borrow().services() {
            topology.ensure(&name, shards).expect("a workload's services can be");
        }
        let disk = SimDisk::new(seed ^ 0xd15c);
        Self::with(seed, bug, workload, profile, topology, disk)
    }

    /// Creates a world whose disk holds data.
    pub(crate) fn with(
        seed: u64,
        bug: Option<Bug>,
        workload: Code,
        profile: Profile,
        topology: Topology,
        disk: SimDisk,
    ) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut clients = Clients::new(&mut rng, profile.clients, topology.incarnation);
        clients.confirm_every = profile.confirm_every;
        let topology = Arc::new(topology);
        let shards = topology.shard_count() as usize;
        let mut world = Self {
            bug,
            marks: Marks::default(),
            model: Model::new(Arc::clone(&topology), &profile.settings),
            disk,
            topology,
            node: None,
            workload,
            clients,
            life: 0,
            calm: false,
            tracing: false,
            nested: false,
            restored_hash: 0,
            covered: vec![Index(0); shards],
            recovered: vec![Index(0); shards],
            disk_log: Arc::default(),
            queue: BinaryHeap::new(),
            order: 0,
            now: 0,
            offset: 0,
            jumped: false,
            clock: Rng::with_seed(seed ^ 0xc10c),
            events: 0,
            trace: seed,
            old: Vec::new(),
            room_at: 0,
            files_at: 0,
            failed: 0,
            failed_syncs: 0,
            was_short: false,
            failed_copies: Arc::default(),
            flipped: None,
            life_disk: None,
            arrived: 0,
            copied: 0,
            check_deaths: BTreeMap::new(),
            alive: Arc::default(),
            powered_off: false,
            before_recovery: None,
            may_be_clean: false,
            log_ended_short: false,
            recovered_once: false,
            works_since: vec![None; shards],
            stale: BTreeMap::new(),
            queries: BTreeMap::new(),
            operator: Rng::with_seed(seed ^ 0x09e7),
            reads: Rng::with_seed(seed ^ 0x4ead),
            odd: Rng::with_seed(seed ^ 0x0dd),
            decisions: Vec::new(),
            blame: Blame::default(),
            decided: CheckpointNumber(0),
            rehearsal: Rehearsal::None,
            rng,
            profile,
            overrides: Overrides::default(),
            recent: Rc::default(),
        };
        world.at(0, Event::Start);
        for client in 0..world.profile.clients {
            let delay = world.rng.u64(0..=world.profile.think);
            world.at(delay, Event::Client(client));
        }
        if world.profile.disk_cost > 0 {
            let cost = world.profile.disk_cost;
            let costs =
                stead_store::sim_disk::DiskCosts { operation: cost / 10, per_64_kib: cost, sync: cost };
            world.disk.set_costs(costs);
            world.marks.hit(Mark::SlowDisk);
        }
        world
    }

    /// Returns the disk for the node.
    pub(crate) fn node_disk(&mut self) -> Arc<dyn Disk> {
        let syncs = match self.bug {
            Some(Bug::SkipSync) => Syncs::Skipped,
            Some(Bug::AnswerAfterFailedSync) => Syncs::Trusted,
            Some(Bug::HastyCopy) => Syncs::SkippedForCopies,
            _ => Syncs::Honest,
        };
        let disk = LifeDisk::new(self.disk.clone(), syncs);
        (self.failed, self.was_short) = (self.disk.failed(), self.may_be_short());
        (self.failed_syncs, self.failed_copies) = (self.disk.failed_syncs(), disk.failed_copies());
        (self.alive, self.disk_log) = (disk.alive(), disk.log());
        let disk: Arc<dyn Disk> = Arc::new(disk);
        self.life_disk = Some(Arc::clone(&disk));
        disk
    }

    pub(crate) fn at(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + delay, order: self.order, event }));
    }

    pub(crate) fn inside(&mut self, delay: u64, what: Inside) {
        let life = self.life;
        self.at(delay, Event::Inside { life, what });
    }

    pub(crate) fn random(&mut self, max: u64) -> u64 {
        self.rng.u64(0..=max)
    }

    fn wall(&self) -> u64 {
        (WALL + self.now).saturating_add_signed(self.offset)
    }

    /// Returns the lead of the steady clock over virtual time, which only a bug makes.
    pub(crate) fn steady_lead(&self) -> u64 {
        if self.bug == Some(Bug::WallAsSteady) { self.offset.max(0).unsigned_abs() } else { 0 }
    }

    pub(crate) fn time(&self) -> Time {
        Time(self.wall())
    }

    /// Returns a hash over all events.
    pub(crate) fn hash(&self) -> u128 {
        u128::from(self.trace) << 64
            ^ self.model.hash()
            ^ self.restored_hash.rotate_left(13)
            ^ u128::from(self.clients.answered)
    }

    pub(crate) fn note(&mut self, what: u64, more: &[u8]) {
        self.trace = xxh3_64_with_seed(more, self.trace ^ what.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    /// Runs `events` events, then comes to rest and checks the final state.
    pub(crate) fn run(&mut self, events: u64) -> Outcomes {
        while self.events < events {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.happen(next)?;
            self.trouble()?;
        }
        self.settle()
    }

    /// Runs like [`World::run`], without a restore at the end.
    pub(crate) fn run_restored(&mut self, events: u64) -> Outcomes {
        self.nested = true;
        self.run(events)
    }

    fn happen(&mut self, next: Scheduled) -> Outcomes {
        self.events += 1;
        self.now = next.at;
        self.note(next.order ^ self.now.rotate_left(32), &[]);
        if self.tracing {
            eprintln!("{:>7} {:>12} life {} {:?}", self.events, self.now, self.life, next.event);
        }
        match next.event {
            Event::Client(client) => self.client_acts(client),
            Event::Retry(id, tries) => {
                if self.clients.waits_since(id, tries) {
                    self.send_call(id);
                }
                Ok(())
            }
            Event::AskAgain(id) => {
                let keyed_age = self.keyed_age();
                let conflict = match self.odd.u8(..3) {
                    0 => self.clients.conflict(id, self.now, keyed_age, &mut self.odd),
                    _ => None,
                };
                let frame = match conflict {
                    None => self.clients.send(id, self.now, keyed_age, &mut self.rng),
                    conflict => conflict,
                };
                if let Some(frame) = frame {
                    self.transmit(frame);
                }
                Ok(())
            }
            // A request that outlives its idempotency key would be a new one, as documented, so none does.
            Event::Arrive(_, sent) if self.now - sent + self.profile.call_timeout > self.keyed_age() => {
                Ok(())
            }
            // Neither may an opening outlive its session: see `Input::OpenSession`.
            Event::Arrive((_, Input::OpenSession { .. }), sent)
                if self.now - sent + self.profile.call_timeout
                    >= Micros::from_millis(self.profile.settings.session_ttl).0 =>
            {
                Ok(())
            }
            Event::Arrive((shard, input), _) => self.arrive(shard, input),
            Event::Answer(answer) => self.client_hears(answer),
            Event::Start => self.start(),
            Event::Inside { life, what } if life == self.life && self.node.is_some() => {
                self.happen_inside(what)
            }
            Event::Inside { what: Inside::Input(shard, input), .. } => {
                let frame = matches!(input, Input::Stored { .. } | Input::Deliver { .. } | Input::Ack { .. });
                if frame && self.old.len() < 64 {
                    self.old.push((shard, input));
                }
                Ok(())
            }
            Event::Inside { .. } => Ok(()),
        }
    }

    fn happen_inside(&mut self, what: Inside) -> Outcomes {
        if self.is_too_late(&what) {
            return Ok(());
        }
        match what {
            Inside::Input(shard, input) => {
                self.push(shard, input);
                Ok(())
            }
            Inside::End => self.end_turn(),
            Inside::Turn(part) => self.turn_if_due(part),
            Inside::Want => {
                self.want_checkpoint();
                Ok(())
            }
            Inside::News(worker, news) => {
                self.news_arrives(worker, news);
                Ok(())
            }
        }
    }

    /// Applies the profile's faults between two events.
    fn trouble(&mut self) -> Outcomes {
        if self.node.is_none() {
            return Ok(());
        }
        if one_in(&mut self.rng, self.profile.crash_every) {
            return match self.rng.u8(..3) {
                // The power ends within the next I/O operations.
                0 => {
                    self.plan_crash(12);
                    Ok(())
                }
                _ => {
                    let end =
                        if self.rng.u8(..4) < self.profile.kill_share { End::Process } else { End::Power };
                    // An operator may shut it down instead.
                    if end == End::Process && self.operator.bool() { self.stop() } else { self.end(end) }
                }
            };
        }
        if one_in(&mut self.rng, self.profile.fail_sync_every) {
            self.disk.fail_syncs(1);
            self.marks.hit(Mark::SyncFailed);
        }
        if one_in(&mut self.rng, self.profile.full_every) && self.room_at == 0 {
            // Space for nothing, or for a checkpoint that gives the log space.
            let most = spread(&mut self.rng, &[4 << 10, 64 << 10]);
            let room = self.rng.u64(..most);
            self.disk.set_capacity(Some(self.disk.used() + room));
            self.room_at = self.now + self.rng.u64(..2_000_000);
            self.was_short = true;
        }
        if self.room_at != 0 && self.room_at <= self.now {
            self.make_room();
        }
        if one_in(&mut self.odd, self.profile.files_every) && self.files_at == 0 {
            self.disk.set_open_files(Some(self.disk.open_files() + self.odd.u32(..3)));
            self.files_at = self.now + self.odd.u64(..2_000_000);
            self.was_short = true;
            self.marks.hit(Mark::FilesShort);
        }
        if self.files_at != 0 && self.files_at <= self.now {
            self.allow_files();
        }
        if one_in(&mut self.odd, self.profile.fault_every) {
            let mut faults = Faults::default();
            match self.odd.u8(..3) {
                0 => faults.reads = 1,
                1 => faults.writes = 1,
                _ => faults.changes = 1,
            }
            self.disk.set_faults(faults);
        }
        if one_in(&mut self.odd, self.profile.flip_inside) && !self.disk.is_flipped() {
            self.flip_inside();
        }
        if !self.old.is_empty() && one_in(&mut self.rng, 20) {
            self.old_frame()?;
        }
        if one_in(&mut self.rng, self.profile.checkpoint_every) {
            self.inside(0, Inside::Want);
        }
        self.operator_acts();
        if one_in(&mut self.clock, self.profile.jump_inside) {
            self.jump_inside();
        }
        if one_in(&mut self.rng, 64) {
            self.compare()?;
        }
        Ok(())
    }

    /// Sets the wall clock wrong while the node runs, or sets it right.
    fn jump_inside(&mut self) {
        let jump = self.clock.u64(..self.profile.jump_max) as i64;
        self.jumped = true;
        match self.clock.u8(..3) {
            0 => self.offset = 0,
            1 => self.offset += jump,
            _ => self.offset -= jump,
        }
        self.marks.hit(Mark::ClockInside);
    }

    /// Whether the clocks were always right in this run, so that the shards' time must be the wall clock's.
    pub(crate) fn clock_is_right(&self) -> bool {
        !self.nested && !self.jumped
    }

    /// Cuts the power within this number of I/O operations.
    pub(crate) fn plan_crash(&mut self, operations: u64) {
        let operations = self.rng.u64(1..=operations);
        self.disk.crash_after(operations);
    }

    pub(crate) fn power_on(&mut self) {
        self.disk.restart();
    }

    /// Runs a function on the disk without its faults.
    pub(crate) fn quietly<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        assert!(!self.disk.is_crashed(), "a power cut that the node has not noticed must not be undone");
        let disk = self.disk.clone();
        disk.aside(|| look(self))
    }

    /// Whether the space of the disk is limited now.
    pub(crate) fn disk_is_limited(&self) -> bool {
        self.room_at != 0
    }

    /// Whether the disk has a limit of bytes or of open files now: then there may be no space for another segment.
    pub(crate) fn may_be_short(&self) -> bool {
        self.disk_is_limited() || self.files_at != 0
    }

    /// Whether the disk has failed an operation of this life, or holds a flipped bit.
    pub(crate) fn has_fault(&self) -> bool {
        self.disk.failed() > self.failed || self.disk.is_flipped()
    }

    /// Whether a fault of the disk may have ended this life. What found no space may report that once there is some.
    pub(crate) fn had_trouble(&self) -> bool {
        self.has_fault() || self.was_short
    }

    pub(crate) fn make_room(&mut self) {
        self.room_at = 0;
        self.disk.set_capacity(None);
    }

    fn allow_files(&mut self) {
        self.files_at = 0;
        self.disk.set_open_files(None);
    }

    /// Leaves an input for a shard with its worker.
    pub(crate) fn push(&mut self, shard: ShardId, input: Input) {
        if let Some(node) = &self.node {
            node.parts.shared.push(shard, input);
            self.heed_bells();
        }
    }

    /// Checks that a shard leaves nothing undone that is due.
    pub(crate) fn check_due(&mut self, shard: ShardId) -> Outcomes {
        let at = shard.0 as usize;
        let Some(node) = &self.node else { return Ok(()) };
        let (it, settings) = (node.shard(shard), &self.profile.settings);
        let works = it.is_active()
            && !node.parts.shared.log().is_full()
            && !node.parts.shared.is_trying()
            && !self.model.state(shard).has_begun()
            && it.uncommitted_bytes() < settings.uncommitted_bytes_max
            && it.state().position().index.0 - it.commit().0 < settings.uncommitted_max;
        self.works_since[at] = works.then(|| self.works_since[at].unwrap_or(self.now));
        let Some(since) = self.works_since[at] else { return Ok(()) };
        let right = self.clock_is_right().then(|| self.time());
        Ok(self.model.check_due(shard, (self.now, right), since)?)
    }

    /// Ends the node; it will start again.
    pub(crate) fn end(&mut self, end: End) -> Outcomes {
        self.end_by(end, None)
    }

    /// Ends the node, by a handler or step, or from outside.
    pub(crate) fn end_by(&mut self, end: End, killer: Option<Killer>) -> Outcomes {
        self.learn_durable()?;
        let model = &self.model;
        self.blame.life_ends(
            killer,
            |shard, key| model.state(shard).has(key),
            |shard, id, step| {
                let task: Option<TaskRecord> = model.state(shard).record(&RecordKey::task(id));
                task.is_some_and(|task| task.step == step)
            },
        );
        if self.tracing {
            eprintln!("                             the node ends: {end:?}");
        }
        self.recent.borrow_mut().note(match end {
            End::Power => format!("the power is cut, life {} of the node ends", self.life),
            End::Process => format!("life {} of the node ends, the machine goes on", self.life),
        });
        // Before the node is dropped, because a dead process closes and cleans up nothing.
        self.powered_off = end == End::Power;
        match end {
            _ if self.disk.is_crashed() => self.powered_off = true,
            End::Power => self.disk.crash(),
            End::Process => self.disk.kill_process(),
        }
        self.alive.store(false, Ordering::Relaxed);
        self.works_since.fill(None);
        self.marks.hit(match end {
            End::Power => Mark::PowerCut,
            End::Process => Mark::ProcessKilled,
        });
        if let Some(node) = self.node.take() {
            if node.running_checkpoint().is_some() {
                self.marks.hit(Mark::CheckpointLost);
            }
            if self.old.len() < 64 {
                let shard = ShardId(self.odd.u32(..self.topology.shard_count()));
                self.old.push((
                    shard,
                    Input::Stored { member: NODE, epoch: node.epochs[shard.0 as usize], upto: Index(0) },
                ));
            }
        }
        self.power_on();
        // The next power cut may come within the recovery.
        if self.odd.bool() {
            self.disk.set_faults(Faults::default());
        }
        self.make_room();
        self.allow_files();
        if one_in(&mut self.rng, self.profile.jump) {
            let jump = self.rng.u64(..self.profile.jump_max);
            self.jumped = true;
            if self.rng.bool() {
                self.offset += jump as i64;
                self.marks.hit(Mark::ClockForth);
            } else {
                self.offset -= jump as i64;
                self.marks.hit(Mark::ClockBack);
            }
        }
        let pause = self.rng.u64(100..500_000);
        self.at(pause, Event::Start);
        Ok(())
    }

    /// Makes the node lead all shards in new epochs: the first turns of the workers start them.
    pub(crate) fn lead(&mut self) -> Outcomes {
        let epochs = self.node.as_ref().expect("just opened").epochs.clone();
        for (shard, epoch) in self.topology.shards().zip(&epochs) {
            self.model.led(shard, *epoch, self.life)?;
        }
        stage::set_alive(Arc::clone(&self.alive));
        self.begin_copies()?;
        if self.node.is_none() {
            return Ok(());
        }
        // Each part begins with a turn, as on a thread.
        let parts: Vec<PartId> = self
            .node
            .iter()
            .flat_map(|node| node.bells().map(|(part, _)| part).collect::<Vec<_>>())
            .collect();
        for part in parts {
            let delay = self.random(self.profile.wake_delay);
            self.turn_in(part, delay);
        }
        if self.bug == Some(Bug::CrowdTrials) {
            // All at once.
            for shard in self.topology.shards() {
                self.inside(50, Inside::Input(shard, Input::Turn(TrialKind::Handlers)));
                self.inside(51, Inside::Input(shard, Input::Open));
            }
        }
        self.heed_bells();
        Ok(())
    }

    /// Delivers a frame of an earlier life. It must change nothing that it would not have changed then.
    fn old_frame(&mut self) -> Outcomes {
        let (shard, mut input) = self.old.swap_remove(self.rng.usize(..self.old.len()));
        let Some(node) = &self.node else { return Ok(()) };
        let Input::Stored { epoch, upto, .. } = &mut input else {
            self.push(shard, input);
            return Ok(());
        };
        // Limited to the end of the log: an earlier life may have stored entries that this one does not have.
        let last = node.shard(shard).state().position().index;
        let leads = node.epochs[shard.0 as usize];
        if *epoch >= leads || last <= self.model.durable(shard) {
            return Ok(());
        }
        self.marks.hit(Mark::OldFrame);
        *upto = last;
        if self.bug == Some(Bug::AcceptOldEpoch) {
            *epoch = leads;
        }
        let worker = PartId::Worker(node.parts.worker_of(shard));
        node.parts.shared.push(shard, input);
        let scene = Scene { old: Some((shard, last)), ..self.scene() };
        self.give_turn_in(worker, scene).map(|_| ())
    }

    /// Compares the shards without entries on their way to the log with the model.
    fn compare(&mut self) -> Outcomes {
        let Some(node) = &self.node else { return Ok(()) };
        // Only one of them record by record, because this is slow.
        let thorough = self.events % u64::from(self.topology.shard_count());
        for shard in node.shards() {
            let state = shard.state();
            if state.position().index == self.model.durable(state.shard()) {
                self.model.same(state)?;
                if u64::from(state.shard().0) == thorough {
                    self.model.same_records(state)?;
                }
            }
        }
        self.topology.shards().try_for_each(|shard| self.check_due(shard))
    }

    /// Whether all work has ended and new work is accepted: a log that was full has found that the disk has space
    /// again, for which it looks from time to time.
    fn rests(&self) -> bool {
        let Some(node) = &self.node else { return false };
        self.checkpoints_rest()
            && node.stopping.is_none()
            && !node.parts.shared.log().is_full()
            && self.clients.pending() == 0
            && node.shards().all(|shard| {
                let state = shard.state();
                shard.is_active()
                    && shard.waiting() == 0
                    && state.timers().is_empty()
                    && state.tasks().is_empty()
                    && state.outboxes().iter().all(|(_, outbox)| outbox.messages.is_empty())
                    && shard.commit() == state.position().index
            })
    }

    /// Ends all faults; then all running work must come to its end.
    fn settle(&mut self) -> Outcomes {
        self.calm = true;
        self.profile.calm();
        self.make_room();
        self.allow_files();
        self.disk.set_faults(Faults::default());
        // A planned power cut still comes.
        let (until, most) = (self.events + CALM_EVENTS, self.events + CALM_EVENTS_MAX);
        // While it waits for the resend of a lost message, the node may retry many calls many times.
        let until_time = self.now
            + CALM_RESENDS * Micros::from_millis(self.profile.settings.resend_after).0
            + CALM_CHECKPOINTS * self.profile.checkpoint_deadline;
        loop {
            if self.rests() && self.rehearse()? {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                return Err(Violation::new(17, format!("nothing happens any more: {}", self.unrest())).into());
            };
            if self.events >= most || (self.events >= until && self.now >= until_time) {
                return Err(Violation::new(17, format!("no rest without faults: {}", self.unrest())).into());
            }
            self.happen(next)?;
        }
        // A planned power cut that has not come by now does not come any more.
        self.power_on();
        self.compare()?;
        let node = self.node.as_ref().expect("a node at rest lives");
        let mut cut: Vec<State> = node.shards().map(|shard| copy(shard.state())).collect();
        cut.sort_by_key(State::shard);
        check_channels(&cut)?;
        self.workload.borrow_mut().check_cut(&self.topology, &cut).map_err(|s| Violation::parse(&s))?;
        for state in &cut {
            // The attempts at requests are kept as long as their clients may retry.
            let left = state
                .records()
                .iter()
                .filter(|(key, _)| key[0] == Kind::Attempt as u8 && key[1] < REQUEST_TAG);
            if let Some((key, _)) = left.into_iter().next() {
                let what = format!(
                    "shard {}: {:?} is kept, whose cause is gone",
                    state.shard(),
                    RecordKey::from_bytes(key)
                );
                return Err(Violation::new(17, what).into());
            }
        }
        self.check_all_checkpoints()?;
        if self.nested { Ok(()) } else { self.restore() }
    }

    fn unrest(&self) -> String {
        let Some(node) = &self.node else { return "the node is down".to_owned() };
        let full = if node.parts.shared.log().is_full() { "the log is full; " } else { "" };
        let running = node.running_checkpoint();
        let rests = self.checkpoints_rest();
        let mut text = format!(
            "{full}checkpoint {running:?}, at rest {rests}; calls {:?} wait;",
            self.clients.pending_calls()
        );
        for shard in node.shards() {
            let state = shard.state();
            let kept: usize = state.outboxes().iter().map(|(_, o)| o.messages.len()).sum();
            text += &format!(
                " shard {}: active {}, {} jobs, {} timers, {} tasks, {kept} messages, commit {} of {};",
                state.shard(),
                shard.is_active(),
                shard.waiting(),
                state.timers().len(),
                state.tasks().len(),
                shard.commit(),
                state.position().index,
            );
        }
        text
    }
}
