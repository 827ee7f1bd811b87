//! The cost of the core alone: messages between the processes of 64 shards, without codec, log or threads.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Identity, Outcome, Request};
use stead_core::capture::View;
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::handler::{Handler, Txn};
use stead_core::ids::{CallToken, Epoch, Incarnation, ReplicaId, ServiceId, ShardId, Time};
use stead_core::key::Key;
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Input, Settings, Shard};
use stead_core::state::State;
use stead_core::topology::Topology;

const SHARDS: u32 = 64;
const PROCESSES: u32 = 100_000;

/// A process of 100 bytes that sends a message for each message it handles.
struct Forward {
    rng: fastrand::Rng,
    keys: Vec<Key>,
}

impl Handler for Forward {
    fn handle(&mut self, call: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        let mut state = txn.state().map_or_else(|| vec![0; 100], <[u8]>::to_vec);
        state[0] = state[0].wrapping_add(1);
        txn.put_state(Blob::from(state)).expect("100 bytes are within every limit");
        let to = self.keys[self.rng.usize(..self.keys.len())].clone();
        txn.send_to(ServiceId(0), to, Blob::from(call.payload))
            .expect("a small message is within every limit");
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }

    fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }
}

struct World {
    shards: Vec<Shard>,
    handler: Forward,
    now: Time,
    inbox: Vec<(ShardId, Input)>,
    out: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("forward", SHARDS).expect("a valid service");
        let topology = Arc::new(topology);
        let shards = topology
            .shards()
            .map(|id| Shard::new(State::new(id), topology.clone(), Settings::default()))
            .collect();
        let keys: Vec<Key> = (0..PROCESSES).map(|i| Key::new(&format!("p{i}")).expect("short")).collect();
        let handler = Forward { rng: fastrand::Rng::with_seed(1), keys };
        let mut world = Self { shards, handler, now: Time(1), inbox: Vec::new(), out: Vec::new() };
        for shard in topology.shards() {
            world.give(shard, Input::Start(EpochConfig::single(Epoch(1), ReplicaId(0))));
        }
        world.round();
        for (token, key) in world.handler.keys.clone().into_iter().take(20_000).enumerate() {
            let shard = topology.shard_of(ServiceId(0), &key);
            let request = Request {
                token: CallToken(token as u64),
                process: key,
                payload: Blob::from([7u8; 16].as_slice()),
                principal: "bench".into(),
                identity: Identity::None,
                colour: Default::default(),
                seen: None,
                is_first: false,
            };
            world.give(shard, Input::Request(request));
        }
        world
    }

    fn give(&mut self, to: ShardId, input: Input) {
        self.shards[to.0 as usize].handle(Now::at(self.now), input, &mut self.handler, &mut self.out);
        let from = to;
        for effect in self.out.drain(..) {
            match effect {
                Effect::Append { bytes, .. } => drop(black_box(bytes)),
                Effect::Deliver { to, messages, again } => {
                    self.inbox.push((to, Input::Deliver { from, messages, again }));
                }
                Effect::Ack { to, upto, colour } => self.inbox.push((to, Input::Ack { from, upto, colour })),
                other => drop(black_box(other)),
            }
        }
    }

    /// One group commit: stores everything that was handled, and handles what this releases.
    fn round(&mut self) -> usize {
        // A million messages a second, so that outboxes have their size at that rate.
        self.now = self.now.plus_millis(20);
        for shard in 0..self.shards.len() {
            let position = self.shards[shard].state().position();
            let stored = Input::Stored { member: ReplicaId(0), epoch: Epoch(1), upto: position.index };
            self.give(ShardId(shard as u32), stored);
            if self.shards[shard].deadline().is_some_and(|at| at <= self.now) {
                self.give(ShardId(shard as u32), Input::Tick);
            }
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.sort_by_key(|(to, _)| *to);
        let mut messages = 0;
        for (to, input) in inbox {
            if let Input::Deliver { messages: delivered, .. } = &input {
                messages += delivered.len();
            }
            self.give(to, input);
        }
        messages
    }
}

fn messages(c: &mut Criterion) {
    let mut world = World::new();
    for _ in 0..20 {
        world.round();
    }
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(20_000)).sample_size(20);
    group.bench_function("20000 messages, 64 shards, 100000 processes", |b| {
        b.iter(|| assert_eq!(black_box(world.round()), 20_000));
    });
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
