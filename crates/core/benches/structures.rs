//! The cost of one operation on each growing structure, at a size and at ten times that size, which reveals costs that
//! grow with the size. All inputs are for one shard, as a worker would pass them, and every entry is stored at once.
//!
//! Instructions, which other load does not change, are counted by callgrind around [`measured`]: see docs/benchmarks.md.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_core::blob::Blob;
use stead_core::calls::{Call, Caller, Identity, Outcome, Request};
use stead_core::capture::View;
use stead_core::channel::Message;
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::entry::{Cause, Entry, Write};
use stead_core::handler::{Handler, Txn};
use stead_core::ids::{
    CallToken, Colour, Epoch, Incarnation, Index, ReplicaId, RequestNumber, Seq, ServiceId, SessionId,
    ShardId, StepNumber, StepRun, TaskId, Time,
};
use stead_core::key::Key;
use stead_core::record::{AttemptRecord, Pending, RecordKey, TaskHead, encode_value};
use stead_core::records::{Piece, Records};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, Effect, Input, Settings, Shard, StepOutcome};
use stead_core::state::State;
use stead_core::topology::Topology;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_secret};

const HOME: ShardId = ShardId(0);
const AWAY: ShardId = ShardId(1);

/// Runs the work that is timed, and that callgrind counts.
#[inline(never)]
#[expect(clippy::disallowed_methods, reason = "it measures the core, which has no clock itself")]
fn measured(work: &mut dyn FnMut()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// A handler that creates as many items of one kind as the request says.
struct Makes;

const TIMERS: u8 = 1;
const CELLS: u8 = 2;
const TASKS: u8 = 3;
const SENDS: u8 = 4;
const PANIC: u8 = 5;

impl Handler for Makes {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        if !matches!(call.caller, Caller::Client { .. }) {
            if call.payload == [PANIC] {
                return Outcome::Panicked("as asked".to_owned());
            }
            txn.put_state(Blob::from(call.payload)).expect("small");
            return Outcome::Replied(Reply::Ok(Blob::empty()));
        }
        let Some((&what, count)) = call.payload.split_first_chunk::<1>().map(|([what], rest)| (what, rest))
        else {
            return Outcome::Replied(Reply::Ok(Blob::empty()));
        };
        let count = u32::from_le_bytes(count.try_into().expect("a number of 4 bytes"));
        let at = call.time.plus_millis(1_000);
        let away = Key::new("away").expect("short");
        for number in 0..count {
            let cell = number.to_be_bytes();
            match what {
                TIMERS => drop(txn.set_timer(at, Blob::empty()).expect("few enough")),
                CELLS => txn.put_cell(&cell, Blob::from(cell.as_slice())).expect("small"),
                TASKS => drop(txn.start_task("bench", Blob::from([7; 64].as_slice())).expect("few enough")),
                SENDS => txn.send_to(ServiceId(1), away.clone(), Blob::empty()).expect("few enough"),
                _ => txn
                    .send_to(ServiceId(0), call.key.clone(), Blob::from([PANIC].as_slice()))
                    .expect("few enough"),
            }
        }
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }

    fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }
}

/// A shard whose log stores everything at once.
struct One {
    shard: Shard,
    now: Time,
    tasks: Vec<(TaskId, StepNumber, StepRun)>,
    out: Vec<Effect>,
}

impl One {
    fn new() -> Self {
        Self::with(State::new(HOME))
    }

    fn with(state: State) -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("home", 1).expect("a valid service");
        topology.ensure("away", 1).expect("a valid service");
        let settings = Settings {
            sessions_max: usize::MAX,
            kept_bytes_max: usize::MAX,
            waiting_bytes_max: usize::MAX,
            dead_letter_bytes_max: usize::MAX,
            attempts_max: 1,
            ..Settings::default()
        };
        let mut shard = Shard::new(state, Arc::new(topology), settings);
        shard.assume_clean();
        let mut one = Self { shard, now: Time(1), tasks: Vec::new(), out: Vec::new() };
        let epoch = one.epoch().next();
        one.give(Input::Start(EpochConfig::single(epoch, ReplicaId(0))));
        one
    }

    fn epoch(&self) -> Epoch {
        self.shard.state().position().epoch
    }

    fn give(&mut self, input: Input) {
        self.shard.handle(Now::at(self.now), input, &mut Makes, &mut self.out);
        for effect in self.out.drain(..) {
            match effect {
                Effect::RunStep { id, run, task, .. } => self.tasks.push((id, task.step, run)),
                other => drop(black_box(other)),
            }
        }
    }

    fn store(&mut self) {
        let upto = self.shard.state().position().index;
        self.give(Input::Stored { member: ReplicaId(0), epoch: self.epoch(), upto });
    }

    /// Continues until there is no more work now.
    fn settle(&mut self) {
        loop {
            self.store();
            if self.shard.deadline().is_none_or(|at| at > self.now) {
                return;
            }
            self.give(Input::Tick);
        }
    }

    fn request(&mut self, payload: &[u8], identity: Identity) {
        self.give(Input::Request(Request {
            token: CallToken(1),
            process: Key::new("bench").expect("short"),
            payload: Blob::from(payload),
            principal: "bench".into(),
            identity,
            colour: Colour(0),
            seen: None,
            is_first: false,
        }));
    }

    /// Sends calls that create `count` items in all, as many in each as one call may.
    fn make(&mut self, what: u8, count: usize) {
        let mut left = count as u32;
        while left > 0 {
            let now = left.min(50_000);
            let mut payload = vec![what];
            payload.extend(now.to_le_bytes());
            self.request(&payload, Identity::None);
            self.settle();
            left -= now;
        }
    }
}

fn timers(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    one.make(TIMERS, count);
    one.now = one.now.plus_millis(2_000);
    let time = measured(&mut || one.settle());
    assert!(one.shard.state().timers().is_empty());
    time
}

fn cells(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    let mut payload = vec![CELLS];
    payload.extend((count as u32).to_le_bytes());
    let time = measured(&mut || one.request(&payload, Identity::None));
    assert_eq!(one.shard.state().records().len(), count);
    time
}

fn sessions(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    for id in 1..=count as u128 {
        let session = SessionId(id);
        one.give(Input::OpenSession { token: CallToken(1), session, principal: "bench".into() });
        let (number, confirmed) = (RequestNumber(1), RequestNumber(0));
        one.request(&[], Identity::Session { session, number, confirmed });
        one.store();
    }
    one.settle();
    one.now = one.now.plus_millis(2 * 60 * 60 * 1000);
    let time = measured(&mut || one.settle());
    assert_eq!(one.shard.state().sessions(), 0);
    time
}

fn tasks(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    one.make(TASKS, count);
    let tasks = std::mem::take(&mut one.tasks);
    assert_eq!(tasks.len(), count);
    let time = measured(&mut || {
        for &(id, step, run) in &tasks {
            one.give(Input::TaskStep { id, step, run, outcome: StepOutcome::Done(Blob::empty()) });
        }
        one.settle();
    });
    assert!(one.shard.state().tasks().is_empty());
    time
}

fn with_outbox(count: usize) -> One {
    let mut one = One::new();
    one.settle();
    one.make(SENDS, count);
    assert_eq!(one.shard.state().outbox_messages(), count);
    one
}

fn outbox_trim(count: usize) -> Duration {
    let mut one = with_outbox(count);
    let upto = Seq(count as u64);
    let time = measured(&mut || {
        one.give(Input::Ack { from: AWAY, upto, colour: Colour(0) });
        one.now = one.now.plus_millis(100);
        one.settle();
    });
    assert_eq!(one.shard.state().outbox_messages(), 0);
    time
}

fn marker(count: usize) -> Duration {
    let mut one = with_outbox(count);
    measured(&mut || one.give(Input::Colour(Colour(1))))
}

fn marker_drain(count: usize) -> Duration {
    let mut one = with_outbox(count);
    one.give(Input::Colour(Colour(1)));
    let mut given = 0;
    let time = measured(&mut || {
        let mut piece = Piece::default();
        while !one.shard.drain_snapshot(64, &mut piece) {
            given += piece.messages().len();
            piece.clear();
        }
        given += piece.messages().len();
    });
    assert_eq!(given, count);
    time
}

fn start(count: usize) -> Duration {
    let one = with_outbox(count);
    let header = one.shard.state().header();
    let mut records = Records::new();
    for (key, value) in one.shard.state().records().iter() {
        records.load(key, Some(value.clone()));
    }
    records.loaded();
    let mut one = One::with(State::load(header, records).expect("a copy of a state"));
    let time = measured(&mut || one.settle());
    assert!(!one.shard.is_behind());
    time
}

fn dead_letters(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    let mut payload = vec![PANIC];
    payload.extend((count.min(60_000) as u32).to_le_bytes());
    one.request(&payload, Identity::None);
    one.settle();
    while one.shard.state().dead_letters() < count {
        one.request(&payload, Identity::None);
        one.settle();
    }
    let letters: Vec<Index> = one.shard.state().dead_letters_from(Index(0)).take(count).collect();
    let before = one.shard.state().dead_letters();
    let time = measured(&mut || {
        for &letter in &letters {
            one.give(Input::DeadLetter { token: CallToken(1), letter, action: DeadLetterAction::Drop });
            one.store();
        }
    });
    assert_eq!(one.shard.state().dead_letters(), before - count);
    time
}

fn replies(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    let session = SessionId(1);
    one.give(Input::OpenSession { token: CallToken(1), session, principal: "bench".into() });
    let count = count as u64;
    for number in (1..=count).map(RequestNumber) {
        one.request(&[], Identity::Session { session, number, confirmed: RequestNumber(0) });
        one.store();
    }
    let (number, confirmed) = (RequestNumber(count + 1), RequestNumber(count));
    let time = measured(&mut || {
        one.request(&[], Identity::Session { session, number, confirmed });
        one.settle();
    });
    assert!(one.shard.state().records().len() < 20);
    time
}

fn attempts(count: usize) -> Duration {
    let mut state = State::new(HOME);
    let value = encode_value(&AttemptRecord { count: 0, expires: None, alone: Some(0) });
    for index in 1..=count as u64 {
        let pending = Pending::Message { from: AWAY, seq: Seq(index) };
        let writes = vec![Write { key: RecordKey::attempt(&pending), value: Some(value.clone()) }];
        let (index, epoch, time) = (Index(index), Epoch(1), Time(1));
        let (process, sends) = (Key::none(), Vec::new());
        let entry = Entry {
            index,
            epoch,
            time,
            cause: Cause::Attempt,
            process,
            writes,
            sends,
            reply: None,
            served: None,
        };
        state.apply(entry).expect("it follows");
    }
    let mut one = One::with(state);
    let time = measured(&mut || one.settle());
    assert_eq!(one.shard.state().attempts(), 0);
    time
}

fn delivery(count: usize) -> Duration {
    let mut one = One::new();
    one.settle();
    let message = |seq: u64| Message {
        seq: Seq(seq),
        epoch: Epoch(1),
        index: Index(1),
        colour: Colour(0),
        sender: Key::new("away").expect("short"),
        process: Key::new("bench").expect("short"),
        payload: Blob::empty(),
    };
    let input =
        Input::Deliver { from: AWAY, messages: (1..=count as u64).map(message).collect(), again: false };
    let mut input = Some(input);
    let time = measured(&mut || {
        one.give(input.take().expect("given once"));
        one.settle();
    });
    assert_eq!(one.shard.state().received().get(AWAY), Some(&Seq(count as u64)));
    time
}

fn keys(count: usize) -> Vec<RecordKey> {
    (0..count).map(|number| RecordKey::process(&format!("process-{number}"))).collect()
}

fn records_put(count: usize) -> Duration {
    let (mut records, keys) = (Records::new(), keys(count));
    let value = Blob::from([7; 100].as_slice());
    measured(&mut || {
        for key in &keys {
            records.put(key.as_bytes(), value.clone());
        }
    })
}

fn records_get(count: usize) -> Duration {
    let (mut records, keys) = (Records::new(), keys(count));
    for key in &keys {
        records.put(key.as_bytes(), Blob::empty());
    }
    measured(&mut || {
        for key in &keys {
            black_box(records.get(key.as_bytes()));
        }
    })
}

fn status(count: usize) -> Duration {
    let mut one = with_outbox(count);
    one.make(TASKS, count);
    let state = one.shard.state();
    measured(&mut || {
        black_box((state.outbox_messages(), state.kept(), state.sessions(), state.dead_letters()));
        black_box((state.timers().len(), state.tasks().len(), state.records().len()));
        for &task in state.tasks().iter().take(100) {
            black_box(state.record::<TaskHead>(&RecordKey::task(task)));
        }
    })
}

/// A structure, its size, and whether the operation covers all of it or has a constant size.
type Case = (&'static str, fn(usize) -> Duration, usize, bool);

const CASES: [Case; 16] = [
    ("timers that fire", timers, 6_000, true),
    ("cells put by one call", cells, 10_000, true),
    ("sessions that end", sessions, 5_000, true),
    ("tasks that end", tasks, 6_000, true),
    ("outbox trimmed", outbox_trim, 20_000, true),
    ("outbox: a marker", marker, 20_000, false),
    ("outbox: its messages for a checkpoint", marker_drain, 20_000, true),
    ("outbox: sent again at a start", start, 20_000, true),
    ("dead letters dropped", dead_letters, 5_000, true),
    ("kept replies confirmed at once", replies, 6_000, true),
    ("attempts forgiven", attempts, 6_000, true),
    ("messages of one delivery", delivery, 10_000, true),
    ("records put", records_put, 50_000, true),
    ("records found", records_get, 50_000, true),
    ("status", status, 10_000, false),
    ("records put, larger", records_put, 500_000, true),
];

fn structures(c: &mut Criterion) {
    for (name, run, size, goes_over_all) in CASES {
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        let sizes = if size >= 500_000 { vec![size] } else { vec![size, 10 * size] };
        for size in sizes {
            group.throughput(Throughput::Elements(if goes_over_all { size as u64 } else { 1 }));
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter_custom(|times| (0..times).map(|_| run(size)).sum());
            });
        }
        group.finish();
    }
}

/// The cost of the secret of the index's hash: see `records/`.
fn hashes(c: &mut Criterion) {
    const COUNT: usize = 1_000;
    let secret: Vec<u8> = (0..192u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut group = c.benchmark_group("hash of a key");
    group.throughput(Throughput::Elements(COUNT as u64));
    for len in [9usize, 25, 60, 299] {
        let key: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let run = |hash: &dyn Fn(&[u8]) -> u64| {
            measured(&mut || {
                for _ in 0..COUNT {
                    black_box(hash(black_box(&key)));
                }
            })
        };
        group.bench_function(BenchmarkId::new("without a secret", len), |b| {
            b.iter_custom(|times| (0..times).map(|_| run(&xxh3_64)).sum());
        });
        group.bench_function(BenchmarkId::new("with a secret", len), |b| {
            b.iter_custom(|times| (0..times).map(|_| run(&|key| xxh3_64_with_secret(key, &secret))).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, structures, hashes);
criterion_main!(benches);
