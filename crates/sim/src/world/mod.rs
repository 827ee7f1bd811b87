//! The simulated world: virtual time, its events in their order, and the crashes.
//!
//! There is one queue of events and one generator: seed and profile determine all events. What leaves the node is
//! compared with the [`Model`] before it is delivered.

mod admission;
mod bent;
mod checkpoints;
mod checks;
mod commands;
mod copies;
mod crashing;
mod effects;
mod excuses;
mod faults;
mod foreign;
mod inspecting;
mod interval;
mod lacking;
mod node;
mod operator;
mod parts;
mod queries;
mod queues;
mod refusing;
mod rest;
mod restoring;
mod retention;
mod rot;
mod starting;
mod stopping;
mod wire;

use self::checkpoints::Rehearsal;
use self::checks::UnendedChecks;
use self::copies::Copies;
use self::node::Node;
use self::operator::{Decision, Deletion};
use self::retention::Retained;
use self::rot::Flip;
use crate::blame::{Blame, Killer};
use crate::bug::Bug;
use crate::client::{Clients, Frame};
use crate::disk::{LifeDisk, Removals, Syncs};
use crate::disk_log::DiskLog;
use crate::marks::{Mark, Marks};
use crate::model::Model;
use crate::profile::{Overrides, Profile, one_in};
use crate::recent::Recent;
use crate::refusals::{Counter, Refusals};
use crate::stage::{self, Code, Scene};
use crate::violation::Violation;
use crate::workload::CallId;
use fastrand::Rng;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use stead_core::calls::Answer;
use stead_core::ids::{CallToken, CheckpointNumber, Incarnation, Index, ReplicaId, ShardId, Time};
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::shard::{Input, Settings};
use stead_core::shard_replica;
use stead_core::topology::Topology;
use stead_core::trials::TrialKind;
use stead_node::PartId;
use stead_node::checkpoint::News;
use stead_store::disk::Disk;
use stead_store::sim_disk::{Faults, SimDisk};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The wall clock at the beginning of a run.
const WALL: u64 = 1_700_000_000_000_000;

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
    /// The next parts begin.
    Begin,
    /// The owner ends the node.
    Stop,
    /// A checkpoint is requested.
    Want,
    /// News of checkpoints arrives at a worker.
    News(usize, News),
    /// An operator's command goes on.
    Operate,
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
    /// The operations that the disk refused in this life.
    refusals: Counter,
    /// Those refused before the present turn.
    refused_before: Refusals,
    /// The objects of checkpoints in which a bit has flipped in this life.
    rotten: BTreeSet<String>,
    /// The last bit that was flipped.
    pub(crate) flipped: Option<Flip>,
    /// The disk as the present life has it.
    pub(crate) life_disk: Option<Arc<dyn Disk>>,
    /// The number of calls that have arrived at the node.
    pub(crate) arrived: u64,
    pub(crate) copies: Copies,
    retained: Retained,
    /// By service, how often its check has ended the process since it last came to its own end.
    pub(crate) check_deaths: BTreeMap<String, u32>,
    /// The services of whose checks earlier lives have left marks: only these may be skipped.
    pub(crate) marked_services: BTreeSet<String>,
    pub(crate) unended_checks: UnendedChecks,
    /// The service whose check has begun in this life, until its end is recorded.
    open_check: Option<String>,
    /// Ends this life's access to the disk.
    alive: Arc<AtomicBool>,
    /// Whether this life owns its data directory.
    is_locked: Arc<AtomicBool>,
    /// Whether the last life ended with a power cut, so that everything on the disk is durable.
    pub(crate) powered_off: bool,
    /// The disk before the last recovery, if that crashed.
    pub(crate) before_recovery: Option<SimDisk>,
    /// Whether the current or last life may mark its data as cleanly shut down.
    pub(crate) may_be_clean: bool,
    /// Whether the last life has marked its data as those of a life that ended in order: the next start must find that.
    pub(crate) must_be_clean: bool,
    /// Whether the disk refused the log room in the turn in which that of the last clean shutdown ended.
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
    /// The deletions of processes that were requested; a token names one. And, by entry that was appended for one, the number
    /// of its records.
    deletions: Vec<Deletion>,
    deleted: BTreeMap<(ShardId, Index), usize>,
    /// Whether an operator verifies a checkpoint: then the services' checks run, whatever they have done before.
    is_verifying: bool,
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
        (clients.confirm_every, clients.unawaited) = (profile.confirm_every, profile.unawaited);
        let topology = Arc::new(topology);
        let shards = topology.shard_count() as usize;
        let mut world = Self {
            bug,
            marks: Marks::default(),
            model: Model::new(Arc::clone(&topology), |service| profile.settings_of(service)),
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
            refusals: Counter::default(),
            refused_before: Refusals::default(),
            rotten: BTreeSet::new(),
            flipped: None,
            life_disk: None,
            arrived: 0,
            copies: Copies::default(),
            retained: Retained::default(),
            check_deaths: BTreeMap::new(),
            marked_services: BTreeSet::new(),
            unended_checks: UnendedChecks::default(),
            open_check: None,
            alive: Arc::default(),
            is_locked: Arc::default(),
            powered_off: false,
            before_recovery: None,
            may_be_clean: false,
            must_be_clean: false,
            log_ended_short: false,
            recovered_once: false,
            works_since: vec![None; shards],
            stale: BTreeMap::new(),
            queries: BTreeMap::new(),
            operator: Rng::with_seed(seed ^ 0x09e7),
            reads: Rng::with_seed(seed ^ 0x4ead),
            odd: Rng::with_seed(seed ^ 0x0dd),
            decisions: Vec::new(),
            deletions: Vec::new(),
            deleted: BTreeMap::new(),
            is_verifying: false,
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
        let removals = match self.bug {
            Some(Bug::DeleteNeeded) => Removals::WithNeededBundle,
            Some(Bug::KeepCheckMark) => Removals::NotOfCheckMarks,
            _ => Removals::Honest,
        };
        let mut disk = LifeDisk::new(self.disk.clone(), syncs, removals);
        if self.bug == Some(Bug::GarbleCopy) {
            disk.garble_copies();
        }
        (self.refusals, self.refused_before) = (disk.refusals(), Refusals::default());
        self.rotten.clear();
        (self.alive, self.disk_log, self.is_locked) = (disk.alive(), disk.log(), disk.is_locked());
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
            self.check_interval()?;
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
            Event::Arrive((shard, Input::OpenSession { .. }), sent)
                if self.now - sent + self.profile.call_timeout >= self.settings(shard).session_ttl.0 =>
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
        match what {
            Inside::Input(shard, input) => {
                self.push(shard, input);
                Ok(())
            }
            Inside::Begin => self.begin_parts(),
            Inside::Stop => self.stop(),
            Inside::Turn(part) => self.turn_if_due(part),
            Inside::Want => {
                self.want_checkpoint();
                Ok(())
            }
            Inside::Operate => self.command_goes_on(),
            Inside::News(worker, news) => {
                self.news_arrives(worker, news);
                Ok(())
            }
        }
    }

    /// Leaves an input for a shard with its worker.
    pub(crate) fn push(&mut self, shard: ShardId, input: Input) {
        if let Some(node) = &self.node {
            node.parts.shared.push(shard, input);
            self.heed_bells();
        }
    }

    /// Returns the settings of a shard.
    pub(crate) fn settings(&self, shard: ShardId) -> &Settings {
        let service = self.topology.service_of(shard).expect("a shard of the run");
        self.profile.settings_of(usize::from(service.0))
    }

    /// Checks that a shard leaves nothing undone that is due.
    pub(crate) fn check_due(&mut self, shard: ShardId) -> Outcomes {
        let at = shard.0 as usize;
        let Some(node) = &self.node else { return Ok(()) };
        let (Some(it), settings) = (node.shard(shard), self.settings(shard)) else { return Ok(()) };
        let works = it.is_active()
            && !self.is_ending()
            && !node.parts.shared.log().is_full()
            && !node.parts.shared.is_trying()
            && !self.model.state(shard).has_begun()
            && !self.is_pressed()
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
        self.end_check_account();
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
                    Input::Stored {
                        member: ReplicaId::FIRST,
                        epoch: node.epochs[shard.0 as usize],
                        upto: Index(0),
                    },
                ));
            }
        }
        self.power_on();
        // The next power cut may come within the recovery.
        if self.odd.bool() {
            self.disk.set_faults(Faults::default());
        }
        self.limits_outlive();
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
        stage::set_ender(self.node.as_ref().expect("just opened").parts.ender());
        self.open_check = None;
        self.begin_check_account();
        self.begin_interval();
        self.begin_copies()?;
        if self.node.is_none() {
            return Ok(());
        }
        self.inside(0, Inside::Begin);
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
        let Some(it) = node.shard(shard) else { return Ok(()) };
        let last = it.state().position().index;
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
        let frame = shard_replica::Frame::Ack { epoch: *epoch, upto: *upto };
        let from = ReplicaId::FIRST;
        node.parts.shared.push_replica(shard, shard_replica::Input::Frame { from, frame });
        let scene = Scene { old: Some((shard, last)), ..self.scene() };
        self.give_turn_in(worker, scene)
    }
}
