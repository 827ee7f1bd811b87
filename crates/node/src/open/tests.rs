//! Tests of a node without threads: the test gives its parts their turns.

#![expect(clippy::disallowed_methods, reason = "a test opens a node as a thread does")]

use super::plan::{self, Registered};
use super::spawn::spawn_all;
use super::{CheckpointOptions, Drawn, OpenError, Options, Parts, Recovery, assemble, recover};
use crate::RecoverOptions;
use crate::clock::Clock;
use crate::env::{Caller, Env, NoAnswer, Program, ReplyTo, StepCall, Watch};
use crate::memory::MemoryLimits;
use crate::part::{Part, Turned};
use crate::queries::Job;
use crate::ready::NotReady;
use crate::stepped;
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use stead_core::blob::Blob;
use stead_core::calls::{Answer, Call, Identity, Outcome, Query, Request};
use stead_core::capture::{Capture, Reading, View};
use stead_core::handler::{Handler, Txn};
use stead_core::ids::{CallToken, Colour, Epoch, Index, ServiceId, ShardId, Time};
use stead_core::key::Key;
use stead_core::placement::Place;
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Input, Settings, Shard, StepOutcome};
use stead_core::start::ServiceLimits;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::data_dir::{DataDir, META_FILE, Meta};
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

/// A service whose processes count their requests and answer with the count; a payload is the key of a process that
/// receives a message.
struct Counters;

impl Handler for Counters {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
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
        Vec::new()
    }

    fn check(&self, _: &str, _: &Topology, _: &[State]) -> Result<(), String> {
        Ok(())
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
    appends: AtomicU64,
    left: Mutex<Vec<(usize, usize, usize)>>,
}

impl Watch for Withholding {
    fn input(&self, _: &Shard, _: &Input) {
        self.inputs.fetch_add(1, Ordering::Relaxed);
    }

    fn effects(&self, _: &Shard, effects: &mut Vec<Effect>) {
        let appends = effects.iter().filter(|effect| matches!(effect, Effect::Append { .. })).count();
        self.appends.fetch_add(appends as u64, Ordering::Relaxed);
    }

    fn leaves(&self, from: usize, to: usize, inputs: &mut Vec<(ShardId, Input)>) {
        self.left.lock().unwrap().push((from, to, inputs.len()));
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
        let options = Self::options(workers);
        let found = Self::recover_with(disk, &options, elsewhere).unwrap();
        let watch = Withholding { tickets_max: AtomicU64::new(u64::MAX), ..Withholding::default() };
        let around = (Ticking(AtomicU64::new(1_000_000_000)), watch);
        let parts = assemble(Counters, around, found, options, Drawn::fresh(), Instant::now()).unwrap();
        Self { parts, answers: Answers::default() }
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
        }
    }

    fn recover(disk: &SimDisk, options: &Options) -> Result<Recovery, OpenError> {
        Self::recover_with(disk, options, &[])
    }

    fn recover_with(disk: &SimDisk, options: &Options, elsewhere: &[ShardId]) -> Result<Recovery, OpenError> {
        let code = Registered { program: &Counters, without_code: &options.without_code };
        let elsewhere = elsewhere.iter().copied().collect();
        let wanted = RecoverOptions { elsewhere, ..plan::recover_options(options) };
        recover(Arc::new(disk.clone()), &code, wanted, plan::fresh_meta)
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
        };
        shared.request(shard, request, self.reply_to(number))
    }

    fn query(&self, number: u32, key: &str) {
        let process = Key::new(key).unwrap();
        let shared = &self.parts.life.shared;
        let shard = shared.topology.shard_of(ServiceId(0), &process);
        let query = Query { token: CallToken(0), process, payload: Blob::empty(), principal: "test".into() };
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
    // A thread with such a name would have been found.
    let worker = thread::Builder::new().name("stead-worker-7".to_owned()).spawn(threads_of_nodes);
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
fn a_life_whose_threads_cannot_all_start_has_not_ended_in_order() {
    let disk = SimDisk::new(5);
    let node = Node::open(&disk, 1);
    node.parts.life.kill();
    drop(node);
    assert!(!Node::ended_in_order(&disk), "it was killed");
    let node = Node::open(&disk, 1);
    let failed = spawn_all(&node.parts.life, |_| Err(OpenError::Failed("no thread".to_owned())));
    assert!(matches!(failed, Err(OpenError::Failed(_))));
    drop(node);
    assert!(!Node::ended_in_order(&disk));
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
    let options = Node::options(1);
    let found = Node::recover(&disk, &options).unwrap();
    let around = (Ticking(AtomicU64::new(1_000_000_000)), Withholding::default());
    let node = stepped::Stepped::<Stepped>::assemble(Counters, around, found, options, Drawn::fresh());
    let mut node = node.unwrap();
    let (hub, answers) = (Arc::clone(&node.shared), Answers::default());
    let shared = &*hub;
    let process = Key::new("a").unwrap();
    let shard = shared.topology.shard_of(ServiceId(0), &process);
    let reading = Reading {
        capture: Capture::new(&State::new(shard), &process),
        query: Query { token: CallToken(0), process, payload: Blob::empty(), principal: "test".into() },
        service: ServiceId(0),
        time: shared.now(),
        epoch: Epoch(1),
        index: Index(0),
        colour: Colour(0),
    };
    let after = Duration::from_secs(1);
    let deadline = shared.now().plus_millis(1000);
    let reply_to = ReplyTo { caller: Noting(1, Arc::clone(&answers)), deadline, timeout: after };
    shared.queries.push(&mut vec![Job::new(Box::new(reading), reply_to, &shared.memory)]);
    let priority = || rustix::process::getpriority_process(None).unwrap();
    let before = priority();
    assert_eq!(node.queries[0].turn(shared, shared.now()).unwrap(), Turned::Again);
    assert!(node.queries[0].has_begun());
    shared.clock.0.fetch_add(2_000_000, Ordering::Relaxed);
    node.query_watch.turn(shared, shared.now()).unwrap();
    assert_eq!((shared.queries.counts(), node.start_queries()), ((0, 1), 1), "it is stuck, and replaced");
    assert_eq!(priority(), before);
    let given_up = answers.lock().unwrap().drain(..).next().unwrap().1;
    assert_eq!(given_up.err(), Some(NoAnswer::TimedOut { after }));
    assert_eq!(node.queries[0].turn(shared, shared.now()).unwrap(), Turned::Ended);
    assert_eq!(shared.queries.counts(), (0, 0));
}

#[test]
fn a_node_serves_the_shards_that_it_has_and_refuses_the_others() {
    let disk = SimDisk::new(4);
    let mut node = Node::open(&disk, 1);
    let other = node.other_key();
    let elsewhere = node.shard_of(other);
    node.settle();
    node.parts.life.kill();
    drop(node);

    let mut node = Node::open_with(&disk, 1, &[elsewhere]);
    assert!(matches!(node.parts.life.readiness(), Err(NotReady::Shards { active: 0, shards: 1 })));
    node.settle();
    assert_eq!(node.parts.life.readiness(), Ok(()));
    let refused = NoAnswer::NotHere { shard: elsewhere, place: Place::Elsewhere };
    assert_eq!(node.try_request(1, other, b""), Err(refused.clone()));
    assert_eq!(
        node.parts.life.shared.look(ShardId(9), |_| ()).map_err(|error| error.to_string()),
        Err("shard 9 is not on this node".to_owned())
    );
    // A message to it stays in the outbox.
    node.request(2, "a", other.as_bytes());
    node.settle();
    assert_eq!(node.answered(), [(2, 1)]);
    let outbox = |node: &Node| {
        node.parts.workers[0].shards().map(|shard| shard.state().outbox_messages()).sum::<usize>()
    };
    assert_eq!((outbox(&node), node.parts.workers[0].shards().count()), (1, 1));
    node.parts.life.kill();
    drop(node);

    // Once the shard is placed here as well, the message arrives.
    let mut node = Node::open(&disk, 1);
    node.settle();
    node.request(3, other, b"");
    node.settle();
    assert_eq!(node.answered(), [(3, 2)]);
    node.parts.life.kill();
}

#[test]
fn a_node_whose_parts_never_ran_leaves_its_data_as_after_a_crash() {
    let disk = SimDisk::new(5);
    let begun = Instant::now();
    let node = Node::open(&disk, 1);
    node.parts.life.shutdown(Duration::from_secs(3_600));
    drop(node);
    let node = Node::open(&disk, 1);
    drop(node);
    assert!(begun.elapsed() < Duration::from_secs(60), "it waited for parts that do not run");
    let (data_dir, _) = DataDir::open(Arc::new(disk), || unreachable!("it exists")).unwrap();
    assert!(!data_dir.meta().clean, "its log has no last mark");
}

/// The facts of a clean directory as version 1 stored them.
const META_V1: &str = r#"{"format":1,"checksum":"47cb0980","meta":{"cluster":"00000000000000000000000000000001","incarnation":1,"epoch":1000,"log_id":"0000000000000007","log_created":true,"clean":true,"services":[{"name":"counter","first_shard":0,"shards":2}]}}"#;

/// A start that finds no room for its promises leaves the facts as they were: their version, so that an older program can
/// still open them, and the mark of a clean end, because no handler has run.
#[test]
fn a_start_without_room_for_its_promises_changes_no_fact() {
    let disk = SimDisk::new(6);
    let options = Node::options(1);
    let code = Registered { program: &Counters, without_code: &options.without_code };
    let fresh = || Meta { log_id: 7, ..plan::fresh_meta() };
    let start = || recover(Arc::new(disk.clone()), &code, plan::recover_options(&options), fresh);
    let end_in_order = || {
        let (mut data_dir, _) = DataDir::open(Arc::new(disk.clone()), fresh).unwrap();
        data_dir.update(|meta| meta.clean = true).unwrap();
        disk.bytes(META_FILE).unwrap()
    };
    drop(start().unwrap());
    // There is room for the facts, but not for another segment of the log.
    disk.set_capacity(Some(disk.used() + 4096));
    let mut lives = 1;
    let before = loop {
        let before = end_in_order();
        match start() {
            Ok(found) => assert!(!found.data_dir.meta().clean && found.data_dir.meta().lives == lives + 1),
            Err(OpenError::Recovery(RecoveryError::Log(WalError::NoSpace { .. }))) => break before,
            Err(error) => panic!("{error}"),
        }
        lives += 1;
        assert!(lives < 100, "the log is never full");
    };
    assert!(disk.bytes(META_FILE).unwrap() == before, "after {lives} lives");
    disk.put(META_FILE, META_V1.as_bytes());
    assert!(matches!(start(), Err(OpenError::Recovery(RecoveryError::Log(WalError::NoSpace { .. })))));
    assert_eq!(disk.bytes(META_FILE).unwrap(), META_V1.as_bytes());

    disk.set_capacity(None);
    let found = start().unwrap();
    assert!(found.plan.assume_clean, "the life before ended in order");
    assert_eq!((found.data_dir.meta().lives, found.data_dir.meta().clean), (1001, false));
    assert!(found.recovered.wal.is_marked());
}
