//! Tests of a node without threads: the test gives its parts their turns.

#![expect(clippy::disallowed_methods, reason = "a test opens a node as a thread does")]

mod ends;
mod placement;
mod replicas;
mod starts;

use super::plan::{self, Registered};
use super::{CheckpointOptions, Drawn, OpenError, Options, Parts, Recovery, Sockets, assemble, recover};
use crate::checkpoint::{CheckpointFailure, CheckpointReport, Event, News, Pin, SnapshotQueue};
use crate::clock::Clock;
use crate::env::{Env, Program, StepCall, Watch};
use crate::lifecycle::EndOrder;
use crate::memory::MemoryLimits;
use crate::operator::{Deletion, Verification};
use crate::part::{Part, Turned};
use crate::queries::Job;
use crate::ready::NotReady;
use crate::reply;
use crate::reply::{Caller, NoAnswer, ReplyTo};
use crate::roster::PartId;
use crate::sizes::Sizes;
use crate::stepped::{self, Started};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Identity, Outcome, Query, Read, Refusal, Request};
use stead_core::capture::{Capture, Reading, View};
use stead_core::handler::{Handler, Txn};
use stead_core::ids::{CallToken, CheckpointNumber, Colour, Epoch, Index, ServiceId, ShardId, Time};
use stead_core::key::Key;
use stead_core::placement::Place;
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Input, Settings, Shard, StepOutcome};
use stead_core::start::{Code, ServiceLimits};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::checkpoint::begun::begun_names;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::manifest::manifest_name;
use stead_store::checkpoint::store::{BlobReader, BlobStore, BlobWriter, Put, StoreError};
use stead_store::checkpoint::verify::Inconsistency;
use stead_store::data_dir::{DataDir, META_FILE, Meta};
use stead_store::disk::Disk;
use stead_store::recovery::RecoveryError;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalError;

/// A clock that advances by a microsecond with each reading, and by hand.
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn steady(&self) -> Time {
        Time(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn wall(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

thread_local! {
    /// Performed by each handler that runs on this thread.
    static IN_HANDLER: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// A service whose processes count their requests and answer with the count; a payload is the key of a process that
/// receives a message.
struct Counters;

impl Handler for Counters {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        IN_HANDLER.with_borrow_mut(|act| act.iter_mut().for_each(|act| act()));
        let count = txn.state().map_or(0, |state| state[0]) + 1;
        if !call.payload.is_empty() {
            let to = str::from_utf8(call.payload).unwrap();
            txn.send("counter", Key::new(to).unwrap(), Blob::empty()).unwrap();
        }
        txn.put_state(Blob::from(vec![count])).unwrap();
        Outcome::Replied(Reply::Ok(Blob::from(vec![count])))
    }

    fn query(&mut self, _: &Call<'_>, view: View<'_>) -> Outcome {
        read(view)
    }
}

fn read(view: View<'_>) -> Outcome {
    Outcome::Replied(Reply::Ok(view.state().cloned().unwrap_or_else(Blob::empty)))
}

impl Program for Counters {
    type Handler = Self;

    fn handler(&self, _: &Arc<Topology>, _: u64) -> Self {
        Self
    }

    fn query(&self, _: &Call<'_>, view: View<'_>, _: &Topology) -> Outcome {
        read(view)
    }

    fn step(&self, step: &StepCall<'_>) -> StepOutcome {
        StepOutcome::Failed(format!("no code for task {}", step.name))
    }

    fn has_service(&self, name: &str) -> bool {
        name == "counter"
    }

    fn has_task(&self, _: &str) -> bool {
        false
    }

    fn checked_services(&self) -> Vec<String> {
        vec!["counter".to_owned()]
    }

    fn check(&self, _: &str, topology: &Topology, cut: &[State]) -> Result<(), String> {
        if cut.len() == topology.shard_count() as usize { Ok(()) } else { Err("it lacks shards".to_owned()) }
    }
}

/// Where the result of a wanted checkpoint goes.
struct Slot(Arc<Mutex<Option<Result<CheckpointReport, CheckpointFailure>>>>);

impl reply::Reply<Result<CheckpointReport, CheckpointFailure>> for Slot {
    fn send(self: Box<Self>, result: Result<CheckpointReport, CheckpointFailure>) {
        *self.0.lock().unwrap() = Some(result);
    }

    fn is_gone(&self) -> bool {
        false
    }
}

type Answers = Arc<Mutex<Vec<(u32, Result<Answer, NoAnswer>)>>>;

/// Records the answer to the call of this number.
struct Noting(u32, Answers);

impl Caller for Noting {
    fn answer(self, result: Result<Answer, NoAnswer>) {
        self.1.lock().unwrap().push((self.0, result));
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// Withholds tickets, and counts the effects.
#[derive(Default)]
struct Withholding {
    /// No ticket above this one is passed on.
    tickets_max: AtomicU64,
    inputs: AtomicU64,
    turns: AtomicU64,
    /// Whether the next input panics before it is handled.
    panics: AtomicBool,
    appends: AtomicU64,
    left: Mutex<Vec<(usize, usize, usize)>>,
    /// The shards whose snapshots have begun, and those whose snapshots are complete.
    snapshots: Mutex<[Vec<ShardId>; 2]>,
}

impl Watch for Withholding {
    fn input(&self, _: &Shard, input: &Input) {
        assert!(!self.panics.load(Ordering::Relaxed), "it is planted");
        self.inputs.fetch_add(1, Ordering::Relaxed);
        self.turns.fetch_add(u64::from(matches!(input, Input::Turn(_))), Ordering::Relaxed);
    }

    fn effects(&self, _: &Shard, effects: &mut Vec<Effect>) {
        let appends = effects.iter().filter(|effect| matches!(effect, Effect::Append { .. })).count();
        self.appends.fetch_add(appends as u64, Ordering::Relaxed);
    }

    fn leaves(&self, from: usize, to: usize, inputs: &mut Vec<(ShardId, Input)>) {
        self.left.lock().unwrap().push((from, to, inputs.len()));
    }

    fn snapshot(&self, event: Event) -> Option<Event> {
        match &event {
            Event::Begun { shard, .. } => self.snapshots.lock().unwrap()[0].push(*shard),
            Event::Records { shard, done: true, .. } => self.snapshots.lock().unwrap()[1].push(*shard),
            _ => {}
        }
        Some(event)
    }

    fn durable(&self, _: usize, ticket: &mut u64) {
        *ticket = (*ticket).min(self.tickets_max.load(Ordering::Relaxed));
    }
}

struct Stepped;

impl Env for Stepped {
    type Program = Counters;
    type Caller = Noting;
    type Clock = Ticking;
    type Watch = Withholding;
}

/// The parts of a node over a simulated disk, and the answers to its callers.
struct Node {
    parts: Parts<Stepped>,
    answers: Answers,
}

impl Node {
    /// Opens a node with one service of two shards, on a number of workers.
    fn open(disk: &SimDisk, workers: usize) -> Self {
        Self::open_with(disk, workers, &[])
    }

    /// Opens it with some of the shards on another node.
    fn open_with(disk: &SimDisk, workers: usize, elsewhere: &[ShardId]) -> Self {
        let not_here = elsewhere.iter().map(|shard| (*shard, Place::Elsewhere)).collect();
        Self::open_as(disk, Options { not_here, ..Self::options(workers) }).unwrap()
    }

    fn open_as(disk: &SimDisk, options: Options) -> Result<Self, OpenError> {
        Self::open_drawn(disk, options, Drawn::fresh())
    }

    fn open_drawn(disk: &SimDisk, options: Options, drawn: Drawn) -> Result<Self, OpenError> {
        let found = Self::recover(disk, &options)?;
        let watch = Withholding { tickets_max: AtomicU64::new(u64::MAX), ..Withholding::default() };
        let around = (Ticking(AtomicU64::new(1_000_000_000)), watch);
        let parts = assemble(Counters, around, found, (options, Sockets::default()), drawn, Instant::now());
        Ok(Self { parts, answers: Answers::default() })
    }

    fn options(workers: usize) -> Options {
        let settings = Settings::default();
        let service = ServiceLimits { name: "counter".to_owned(), shards: Some(2), when_new: 2, settings };
        Options {
            threads: workers,
            task_threads: 1,
            handler_timeout: Duration::from_secs(10),
            task_step_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::ZERO,
            clock_confirm: Duration::ZERO,
            memory: MemoryLimits::default(),
            segment_bytes: 64 << 10,
            checkpoints: CheckpointOptions { interval: None, ..CheckpointOptions::default() },
            copies: None,
            services: vec![service],
            without_code: BTreeSet::new(),
            native: None,
            listen_peers: None,
            not_here: BTreeMap::new(),
            replicated: BTreeMap::new(),
            in_cluster: false,
        }
    }

    fn recover(disk: &SimDisk, options: &Options) -> Result<Recovery, OpenError> {
        let code = Registered { program: &Counters, without_code: &options.without_code };
        recover(Arc::new(disk.clone()), &code, plan::recover_options(options), plan::fresh_meta)
    }

    /// Whether the next start would take it that the last life ended in order.
    fn ended_in_order(disk: &SimDisk) -> bool {
        Self::recover(disk, &Self::options(1)).unwrap().plan.assume_clean
    }

    /// Gives a worker a turn, as its bell or its clock would.
    fn work(&mut self, worker: usize) -> Turned {
        let shared = &self.parts.life.shared;
        let worker = &mut self.parts.workers[worker];
        worker.bell(shared).take_ring();
        worker.turn(shared, shared.now()).unwrap()
    }

    /// Gives the log a turn: append and sync take a turn each.
    fn log(&mut self) -> Turned {
        let shared = &self.parts.life.shared;
        shared.log.bell.take_ring();
        Part::turn(&mut self.parts.log, &**shared, shared.now()).unwrap()
    }

    /// Takes a checkpoint without checks, and returns its number.
    fn take_checkpoint(&mut self) -> u64 {
        let report = Arc::default();
        self.parts.life.checkpoint(false, Box::new(Slot(Arc::clone(&report))));
        for _ in 0..1000 {
            self.settle();
            let shared = &self.parts.life.shared;
            while self.parts.checkpoints.turn(shared, shared.now()).unwrap() == Turned::Again {}
            if let Some(report) = report.lock().unwrap().take() {
                return report.unwrap().number;
            }
        }
        panic!("the checkpoint never ends");
    }

    /// Takes a checkpoint, with the services' checks: the only one of this life.
    fn checkpoint(&mut self) -> CheckpointReport {
        self.parts.life.shared.checks.part_begins();
        let report = Arc::default();
        self.parts.life.checkpoint(true, Box::new(Slot(Arc::clone(&report))));
        for _ in 0..1000 {
            self.settle();
            let shared = &self.parts.life.shared;
            while self.parts.checkpoints.turn(shared, shared.now()).unwrap() == Turned::Again {}
            let checks = self.parts.checks.as_mut().unwrap();
            while checks.turn(shared, shared.now()).unwrap() == Turned::Again {}
            if let Some(report) = report.lock().unwrap().take() {
                // The end of the node would wait for a part that gets no turns.
                shared.checks.part_ended(false);
                return report.unwrap();
            }
        }
        panic!("the checkpoint never ends");
    }

    /// Begins a checkpoint with its checks, and gives the part of checks its first turns, after which it has read it.
    fn begin_checks(&mut self) -> Slot {
        self.parts.life.shared.checks.part_begins();
        let slot = Arc::default();
        self.parts.life.checkpoint(true, Box::new(Slot(Arc::clone(&slot))));
        while self.parts.life.shared.checks.overdue_at(Duration::ZERO).is_none() {
            self.settle();
            let shared = &self.parts.life.shared;
            while self.parts.checkpoints.turn(shared, shared.now()).unwrap() == Turned::Again {}
            let checks = self.parts.checks.as_mut().unwrap();
            checks.turn(shared, shared.now()).unwrap();
        }
        Slot(slot)
    }

    /// Lets the time limit of checks pass, and the checkpoint part notice it.
    fn checks_are_late(&mut self) {
        let shared = &self.parts.life.shared;
        shared.clock.0.fetch_add(CheckpointOptions::default().timeout.as_micros() as u64, Ordering::Relaxed);
        while self.parts.checkpoints.turn(shared, shared.now()).unwrap() == Turned::Again {}
    }

    /// Gives the part of checks this number of turns.
    fn check(&mut self, turns: usize) {
        for _ in 0..turns {
            let shared = &self.parts.life.shared;
            self.parts.checks.as_mut().unwrap().turn(shared, shared.now()).unwrap();
        }
    }

    /// The marks of checks that began and did not end.
    fn check_marks(&self) -> usize {
        begun_names(&*self.parts.life.data.store).unwrap().len()
    }

    /// Gives all parts turns until none has work left.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut turned: Vec<Turned> =
                (0..self.parts.workers.len()).map(|worker| self.work(worker)).collect();
            turned.push(self.log());
            let rung = self.parts.life.shared.inboxes.iter().any(|inbox| inbox.bell.is_rung());
            if !rung && !turned.contains(&Turned::Again) {
                return;
            }
        }
        panic!("it never settles");
    }

    fn request(&self, number: u32, key: &str, payload: &[u8]) {
        self.try_request(number, key, payload).unwrap();
    }

    fn try_request(&self, number: u32, key: &str, payload: &[u8]) -> Result<(), NoAnswer> {
        let process = Key::new(key).unwrap();
        let shared = &self.parts.life.shared;
        let shard = shared.topology.shard_of(ServiceId(0), &process);
        let request = Request {
            token: CallToken(0),
            process,
            payload: Blob::from(payload),
            principal: "test".into(),
            identity: Identity::None,
            colour: Colour(0),
            seen: None,
            is_first: false,
        };
        shared.request(shard, request, self.reply_to(number))
    }

    fn query(&self, number: u32, key: &str) {
        let process = Key::new(key).unwrap();
        let shared = &self.parts.life.shared;
        let shard = shared.topology.shard_of(ServiceId(0), &process);
        let query = Query {
            token: CallToken(0),
            process,
            payload: Blob::empty(),
            principal: "test".into(),
            read: Read::Service,
            seen: None,
        };
        shared.query(shard, query, self.reply_to(number)).unwrap();
    }

    fn reply_to(&self, number: u32) -> ReplyTo<Noting> {
        let timeout = Duration::from_secs(1);
        let deadline = self.parts.life.shared.now().plus_millis(1000);
        ReplyTo { caller: Noting(number, Arc::clone(&self.answers)), deadline, timeout }
    }

    /// Returns the numbers of the calls that were answered since the last look, in order, with their counts.
    fn answered(&self) -> Vec<(u32, u8)> {
        let count = |result: Result<Answer, NoAnswer>| match result.unwrap().result.unwrap() {
            Reply::Ok(count) => count[0],
            Reply::Err(_) => unreachable!("the handler returns no error"),
        };
        self.answers.lock().unwrap().drain(..).map(|(number, result)| (number, count(result))).collect()
    }

    fn shard_of(&self, key: &str) -> ShardId {
        self.parts.life.shared.topology.shard_of(ServiceId(0), key)
    }

    /// Returns a key of the shard that does not have `a`.
    fn other_key(&self) -> &'static str {
        let mut keys = ["b", "c", "d", "e", "f", "g"].into_iter();
        keys.find(|key| self.shard_of(key) != self.shard_of("a")).unwrap()
    }

    fn watch(&self) -> &Withholding {
        &self.parts.life.shared.watch
    }
}

/// Opens a node whose parts have yet to begin.
fn open_stepped(disk: &SimDisk) -> stepped::Stepped<Stepped> {
    let options = Node::options(1);
    let found = Node::recover(disk, &options).unwrap();
    let watch = Withholding { tickets_max: AtomicU64::new(u64::MAX), ..Withholding::default() };
    let around = (Ticking(AtomicU64::new(1_000_000_000)), watch);
    stepped::Stepped::assemble(Counters, around, found, options, Drawn::fresh())
}

/// Opens a node all parts of which have begun.
fn start_stepped(disk: &SimDisk) -> stepped::Stepped<Stepped> {
    let mut node = open_stepped(disk);
    while node.start(false).unwrap() != Started::All {}
    node
}

/// Returns the names of this process's threads that a node has started.
fn threads_of_nodes() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let ours = ["stead-log", "stead-segments", "stead-worker", "stead-quer", "stead-task", "stead-watchdog"];
    names.filter(|name| ours.iter().any(|own| name.starts_with(own))).collect()
}

#[test]
fn a_node_is_stepped_without_a_thread_and_answers_in_order_once_the_log_is_synced() {
    let disk = SimDisk::new(1);
    let mut node = Node::open(&disk, 1);
    assert_eq!(threads_of_nodes(), Vec::<String>::new());
    node.settle();
    for number in 1..=3 {
        node.request(number, "a", b"");
    }
    assert!(node.parts.life.shared.inboxes[0].bell.is_rung());
    // The worker handles all three and submits them; the log appends them as one batch, and syncs it.
    assert_eq!(node.work(0), Turned::Again);
    assert!(matches!(node.work(0), Turned::Until(Some(_))), "it waits for the log");
    assert_eq!((node.log(), node.answered()), (Turned::Again, vec![]));
    assert!(!node.parts.life.shared.inboxes[0].bell.is_rung(), "appended is not durable");
    assert_eq!((node.log(), node.answered()), (Turned::Again, vec![]));
    assert!(node.parts.life.shared.inboxes[0].bell.is_rung());
    assert_eq!((node.work(0), node.answered()), (Turned::Again, vec![(1, 1), (2, 2), (3, 3)]));
    assert_eq!(threads_of_nodes(), Vec::<String>::new());
    // A thread with such a name would have been found, though perhaps not at once: threads that end meanwhile can hide others in the list.
    let find = || (0..1000).map(|_| threads_of_nodes()).find(|names| !names.is_empty()).unwrap_or_default();
    let worker = thread::Builder::new().name("stead-worker-7".to_owned()).spawn(find);
    assert_eq!(worker.unwrap().join().unwrap(), ["stead-worker-7\n"]);

    // The next life finds the answered requests; entries that were appended but not synced may be lost.
    node.parts.life.kill();
    drop(node);
    disk.crash();
    disk.restart();
    let mut node = Node::open(&disk, 1);
    node.settle();
    node.request(4, "a", b"");
    node.settle();
    assert_eq!(node.answered(), [(4, 4)]);
    node.parts.life.kill();
}

#[test]
fn a_check_that_has_not_begun_when_its_time_is_up_is_not_blamed() {
    let mut node = Node::open(&SimDisk::new(1), 1);
    let slot = node.begin_checks();
    node.check(1);
    assert_eq!(node.check_marks(), 1, "it is about to begin");
    node.checks_are_late();
    let report = slot.0.lock().unwrap().take().unwrap().unwrap();
    assert_eq!((report.check, report.failed_checks.len()), (CheckOutcome::NotChecked, 0));
    node.check(1);
    assert_eq!(node.check_marks(), 0, "it does not begin any more");
    node.parts.life.shared.checks.part_ended(false);
}

#[test]
fn a_check_that_has_not_begun_when_its_part_panics_is_not_blamed() {
    for (turns, marks) in [(1, 0), (2, 1)] {
        let mut node = Node::open(&SimDisk::new(1), 1);
        let slot = node.begin_checks();
        node.check(turns);
        assert_eq!(node.check_marks(), 1);
        node.parts.life.shared.part_panicked(PartId::Checks, "a bug");
        assert_eq!(node.check_marks(), marks, "of {turns} turns the second one begins the check");
        let report = slot.0.lock().unwrap().take().unwrap().unwrap();
        assert_eq!(report.check, CheckOutcome::NotChecked);
    }
}

#[test]
fn a_check_that_has_not_ended_when_its_time_is_up_has_failed_and_is_not_forgiven() {
    let mut node = Node::open(&SimDisk::new(1), 1);
    let slot = node.begin_checks();
    node.check(2);
    node.checks_are_late();
    let report = slot.0.lock().unwrap().take().unwrap().unwrap();
    assert_eq!(report.check, CheckOutcome::Failed);
    let life = &node.parts.life;
    life.shared.checks.marks.forgive();
    assert_eq!(node.check_marks(), 1, "a clean end does not forgive it");
    node.check(1);
    assert_eq!(node.check_marks(), 0, "it has ended after all");
    node.parts.life.shared.checks.part_ended(false);
}

/// A store in which a reader of checkpoint 1 begins as soon as its manifest is read.
struct ReadMeanwhile {
    store: Arc<dyn BlobStore>,
    queue: Arc<SnapshotQueue>,
    pin: Mutex<Option<Pin>>,
}

impl BlobStore for ReadMeanwhile {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.store.put_new(name, bytes)
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.store.create(name)
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        if name == manifest_name(CheckpointNumber(1)) {
            *self.pin.lock().unwrap() = Some(self.queue.pin(CheckpointNumber(1)));
        }
        self.store.open(name)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        self.store.list(dir)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete(name)
    }
}

#[test]
fn a_checkpoint_of_which_a_reader_begins_within_its_deletion_is_not_deleted() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk, 1);
    assert_eq!((node.take_checkpoint(), node.take_checkpoint()), (1, 2));
    let life = &mut node.parts.life;
    let (store, queue) = (Arc::clone(&life.store), Arc::clone(&life.shared.snapshots));
    let reading = Arc::new(ReadMeanwhile { store: Arc::clone(&store), queue, pin: Mutex::default() });
    life.store = Arc::clone(&reading) as Arc<dyn BlobStore>;
    assert_eq!(life.delete_checkpoint(1), Err(CheckpointFailure::InUse(1)));
    assert!(life.verify(1).unwrap().holds(), "it is there for its reader");
    drop(reading.pin.lock().unwrap().take());
    life.store = store;
    life.delete_checkpoint(1).unwrap();
    let gone = life.verify(1).unwrap_err();
    assert!(matches!(gone, CheckpointFailure::Store(_)) && life.delete_checkpoint(1).is_err(), "{gone}");
}

#[test]
fn a_checkpoint_that_is_verified_is_not_deleted_between_two_steps() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk, 1);
    assert_eq!((node.take_checkpoint(), node.take_checkpoint()), (1, 2));
    let life = &node.parts.life;
    let (mut deletion, mut late) = (Deletion::begin(1), Deletion::begin(1));
    assert!(!deletion.step(life).unwrap());
    let mut verification = Verification::begin(life, 1);
    deletion.step(life).unwrap_err();
    assert!(verification.step(life).unwrap().is_none());
    assert!(!late.step(life).unwrap());
    assert!(verification.step(life).unwrap().unwrap().holds());
    drop(verification);
    assert!(late.step(life).unwrap());
}

#[test]
fn queries_for_which_there_is_no_room_are_refused_also_if_they_were_admitted_together() {
    let disk = SimDisk::new(5);
    let sizes = Sizes { queries_max: 2, service_queries_max: 2, ..Sizes::default() };
    let drawn = Drawn { sizes, ..Drawn::fresh() };
    let mut node = Node::open_drawn(&disk, Node::options(1), drawn).unwrap();
    node.settle();
    let shared = Arc::clone(&node.parts.life.shared);
    for number in 1..=3 {
        let process = Key::new("a").unwrap();
        let principal = Arc::from("me");
        let (token, payload, read) = (CallToken(0), Blob::empty(), Read::Service);
        let query = Query { token, process, payload, principal, read, seen: None };
        let caller = Noting(number, Arc::clone(&node.answers));
        let timeout = Duration::from_millis(40);
        let reply_to = ReplyTo { caller, deadline: shared.now().plus(timeout.into()), timeout };
        shared.query(ShardId(0), query, reply_to).unwrap();
    }
    node.settle();
    assert_eq!(shared.queries.counts().0, 2, "no part takes them");
    let answers = std::mem::take(&mut *node.answers.lock().unwrap());
    let refused = matches!(&answers[..], [(3, Err(NoAnswer::Refused(Refusal::Overloaded { .. })))]);
    assert!(refused, "{answers:?}");
    node.parts.life.kill();
}

#[test]
fn a_node_without_memory_for_calls_takes_none() {
    let disk = SimDisk::new(5);
    let mut node = Node::open(&disk, 1);
    node.settle();
    node.parts.life.shared.memory.change([0, 0, 1 << 30]);
    let refused = node.try_request(1, "a", b"").unwrap_err();
    assert!(matches!(refused, NoAnswer::Refused(Refusal::Overloaded { .. })), "{refused}");
    node.parts.life.shared.memory.change([0, 0, -(1 << 30)]);
    node.request(2, "a", b"");
    node.settle();
    assert_eq!(node.answered(), [(2, 1)]);
    node.parts.life.kill();
}

#[test]
fn a_watch_sees_what_passes_and_holds_tickets_back() {
    let disk = SimDisk::new(2);
    let mut node = Node::open(&disk, 2);
    node.settle();
    let before = (node.watch().inputs.load(Ordering::Relaxed), node.watch().appends.load(Ordering::Relaxed));
    node.watch().left.lock().unwrap().clear();
    node.watch().tickets_max.store(0, Ordering::Relaxed);
    let other = node.other_key();
    node.request(1, "a", other.as_bytes());
    node.settle();
    // Nothing leaves a shard before its entry is committed: neither the answer nor the message.
    assert_eq!(node.answered(), []);
    assert!(node.watch().left.lock().unwrap().is_empty());
    node.watch().tickets_max.store(u64::MAX, Ordering::Relaxed);
    node.settle();
    assert_eq!(node.answered(), [(1, 1)]);
    let left = node.watch().left.lock().unwrap().clone();
    assert!(
        left.len() == 1 && left[0].0 != left[0].1 && left[0].2 == 1,
        "one message left a worker: {left:?}"
    );
    let after = (node.watch().inputs.load(Ordering::Relaxed), node.watch().appends.load(Ordering::Relaxed));
    assert_eq!(after.1 - before.1, 2, "an entry for the request and one for the message");
    assert!(after.0 - before.0 >= 4, "a request, a message and two entries that were stored");
    node.parts.life.kill();
}

#[test]
fn a_call_over_its_time_is_answered_by_a_turn_on_the_clock_that_the_node_was_given() {
    let disk = SimDisk::new(3);
    let mut node = Node::open(&disk, 1);
    node.settle();
    node.watch().tickets_max.store(0, Ordering::Relaxed);
    node.request(1, "a", b"");
    node.query(2, "a");
    node.settle();
    let Turned::Until(Some(until)) = node.work(0) else { panic!("it waits for the log or a deadline") };
    assert!(until.0 <= node.parts.life.shared.now().0 + 20_000, "it looks for overdue calls in time");
    node.parts.life.shared.clock.0.fetch_add(1_100_000, Ordering::Relaxed);
    node.work(0);
    let after = Duration::from_secs(1);
    let answers: Vec<_> =
        node.answers.lock().unwrap().drain(..).map(|(n, result)| (n, result.err())).collect();
    let timed_out = Some(NoAnswer::TimedOut { after });
    assert_eq!(answers, [(1, timed_out.clone()), (2, timed_out)]);
    node.parts.life.kill();
}

/// The thread that steps the parts is a simulator's, or that of a program's tests.
#[cfg(target_os = "linux")]
#[test]
fn a_stepped_query_that_is_given_up_leaves_the_priority_of_the_thread() {
    let disk = SimDisk::new(8);
    let mut node = start_stepped(&disk);
    let (hub, answers) = (Arc::clone(&node.shared), Answers::default());
    let shared = &*hub;
    let process = Key::new("a").unwrap();
    let shard = shared.topology.shard_of(ServiceId(0), &process);
    let reading = Reading {
        capture: Capture::new(&State::new(shard), &process),
        query: Query {
            token: CallToken(0),
            process,
            payload: Blob::empty(),
            principal: "test".into(),
            read: Read::Service,
            seen: None,
        },
        service: ServiceId(0),
        time: shared.now(),
        epoch: Epoch(1),
        index: Index(0),
        colour: Colour(0),
        staleness: None,
    };
    let after = Duration::from_secs(1);
    let deadline = shared.now().plus_millis(1000);
    let reply_to = ReplyTo { caller: Noting(1, Arc::clone(&answers)), deadline, timeout: after };
    let mut jobs = vec![Job::new(Box::new(reading), reply_to.here(), &shared.memory)];
    shared.queries.push(&shared.counters, &shared.watch, &mut jobs);
    let priority = || rustix::process::getpriority_process(None).unwrap();
    let before = priority();
    let part = PartId::Query(0);
    assert_eq!(node.turn(part, shared.now()).unwrap(), Turned::Again);
    assert!(node.has_begun(part));
    shared.clock.0.fetch_add(2_000_000, Ordering::Relaxed);
    node.turn(PartId::QueryWatch, shared.now()).unwrap();
    let replaced = (shared.queries.counts(), node.take_queries().len());
    assert_eq!(replaced, ((0, 1), 1), "it is stuck, and replaced");
    assert_eq!(priority(), before);
    let given_up = answers.lock().unwrap().drain(..).next().unwrap().1;
    assert_eq!(given_up.err(), Some(NoAnswer::TimedOut { after }));
    assert_eq!(node.turn(part, shared.now()).unwrap(), Turned::Ended);
    assert_eq!(shared.queries.counts(), (0, 0));
}
