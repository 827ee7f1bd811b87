//! No input holds a shard's thread for long: the rest of its work waits for a tick.

use crate::world::{SHARDS, Script, World, ok};
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Call, Identity, Outcome, Refusal, Request};
use stead_core::capture::{Capture, View};
use stead_core::channel::Message;
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::entry::Cause;
use stead_core::handler::{Handler, Txn};
use stead_core::ids::{
    CallToken, Epoch, Incarnation, ReplicaId, RequestNumber, ServiceId, SessionId, ShardId, Time,
};
use stead_core::key::Key;
use stead_core::reply::Reply;
use stead_core::shard::{Effect, Input, Settings, Shard};
use stead_core::state::State;
use stead_core::topology::Topology;

/// [`Settings::work_max`] by default.
const WORK_MAX: usize = 2_048;

/// Returns messages of another shard for a process, as one delivery.
fn deliver(world: &World, key: &str, count: u64, payload: &str) -> (ShardId, Input) {
    let to = world.shard_of(key);
    let from = ShardId((to.0 + 1) % SHARDS);
    let message = |seq| Message {
        seq: stead_core::ids::Seq(seq),
        epoch: Epoch(1),
        index: stead_core::ids::Index(1),
        colour: Default::default(),
        sender: Key::new("sender").unwrap(),
        process: Key::new(key).unwrap(),
        payload: Blob::from(payload.as_bytes()),
    };
    (to, Input::Deliver { from, messages: (1..=count).map(message).collect(), again: false })
}

#[test]
fn a_large_delivery_is_handled_in_parts() {
    let mut world = World::new();
    let (to, input) = deliver(&world, "a", 5_000, "caller");
    world.give(to, input);
    let first = world.runs("a");
    assert!((100..=WORK_MAX).contains(&first), "{first} runs for one input");
    assert!(
        world.shard("a").deadline().is_some_and(|at| at <= world.now),
        "the rest asks for a tick at once"
    );
    world.settle();
    assert_eq!(world.runs("a"), 5_000);
    assert_eq!(world.state("a").len(), 5_000 * "sender".len());
}

#[test]
fn a_shell_that_wants_no_more_is_heeded_within_a_delivery() {
    let mut world = World::new();
    let (to, input) = deliver(&world, "a", 100, "add x");
    world.script.runs_max = Some(3);
    world.give(to, input);
    assert_eq!(world.runs("a"), 3);
    world.store(to);
    world.give(to, Input::Tick);
    assert_eq!(world.runs("a"), 3, "nor does anything else run the handler");
    world.script.runs_max = Some(5);
    world.give(to, Input::Tick);
    assert_eq!(world.runs("a"), 5);
    world.script.runs_max = None;
    world.settle();
    assert_eq!(world.state("a"), "x".repeat(100));
}

#[test]
fn a_process_that_messages_itself_stops_when_the_shell_wants_no_more() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    world.request("a", &"send a add x\n".repeat(50), Identity::None);
    world.script.runs_max = Some(world.script.runs.len());
    let before = world.shard("a").state().position().index;
    world.store(shard);
    assert_eq!(world.shard("a").state().position().index, before, "no entry follows");
    assert_eq!(world.shard("a").commit(), before);
}

#[test]
fn a_shard_takes_no_new_work_while_too_many_bytes_wait_for_their_commit_17() {
    let max = 10_000;
    let mut world = World::with(Settings { uncommitted_bytes_max: max, ..Settings::default() });
    let text = format!("add {}", "x".repeat(100));
    let (to, input) = deliver(&world, "a", 200, &text);
    world.give(to, input);
    let handled = world.runs("a");
    let waiting = world.shard("a").uncommitted_bytes();
    // The state grows with each message, and with it the entries: the last one exceeded the limit.
    assert!((5..50).contains(&handled), "{handled}");
    assert!((max..2 * max).contains(&waiting), "{waiting} bytes wait");
    let refused = world.request("a", "caller", Identity::None);
    assert!(matches!(world.answer(refused).unwrap().result, Err(Refusal::Overloaded { .. })));
    world.settle();
    assert_eq!((world.runs("a"), world.shard("a").uncommitted_bytes()), (200, 0));
    let crowded = world.shard_of("a").0 as usize;
    world.shards[crowded].set_crowded(true);
    let refused = world.request("a", "caller", Identity::None);
    assert!(matches!(world.answer(refused).unwrap().result, Err(Refusal::Overloaded { .. })));
    world.shards[crowded].set_crowded(false);
    assert!(world.call("a", "caller").is_ok());
}

#[test]
fn a_commit_of_many_entries_lets_them_go_in_parts() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let (from, to) = (world.shard_of("a"), world.shard_of(&other));
    let count = 3 * WORK_MAX;
    world.request("a", &format!("send {other} add x\n").repeat(count), Identity::None);
    let delivered = |world: &World| -> usize {
        let lens = world.wire.iter().map(|(shard, input)| match input {
            Input::Deliver { messages, .. } if *shard == to => messages.len(),
            _ => 0,
        });
        lens.sum()
    };
    world.store(from);
    assert!((1..=WORK_MAX).contains(&delivered(&world)), "{}", delivered(&world));
    for _ in 0..4 {
        assert!(world.shard("a").work() <= 2 * WORK_MAX);
        world.give(from, Input::Tick);
    }
    assert_eq!(delivered(&world), count);
    world.settle();
    assert_eq!(world.state(&other).len(), count);
    let outbox = world.shard("a").state().outboxes().get(to).unwrap();
    assert!(outbox.messages.is_empty(), "trimmed in parts too");
}

#[test]
fn timers_that_are_due_fire_once_each_and_late_ones_in_between() {
    let mut world = World::new();
    let count = 3 * WORK_MAX;
    for _ in 0..3 {
        world.request("a", &"timer 1000 add x\n".repeat(count / 3), Identity::None);
        world.settle();
    }
    world.now = world.now.plus_millis(1_000);
    let shard = world.shard_of("a");
    world.give(shard, Input::Tick);
    assert!((1..count).contains(&world.state("a").len()));
    let waiting = world.shard("a").waiting();
    assert!(waiting <= WORK_MAX, "{waiting} wait in the queue");
    // For a time that has passed, before all others; one is set and cancelled again.
    world.request("a", "timer-at 5 add y", Identity::None);
    let place = world.shard("a").state().position().index.0;
    world.request("a", "timer-at 6 add z", Identity::None);
    world.request("a", &format!("cancel {}", (place + 1) << 16), Identity::None);
    world.settle();
    let state = world.state("a");
    assert_eq!(state.len(), count + 1);
    assert!(state.contains('y') && !state.contains('z') && !state.ends_with('y'), "the late one is the next");
    assert!(world.shard("a").state().timers().is_empty());
    assert_eq!(world.shard("a").waiting(), 0);
}

#[test]
fn many_sessions_end_over_several_ticks_and_look_at_no_reply_twice() {
    let mut world = World::new();
    let replies = 500;
    for id in 1..=20 {
        let session = world.open("a", id);
        for number in (1..=replies).map(RequestNumber) {
            world.request("a", "fail x", Identity::Session { session, number, confirmed: RequestNumber(0) });
        }
    }
    world.settle();
    world.now = world.now.plus(world.settings.session_ttl.times(2));
    let shard = world.shard_of("a");
    let mut ticks = 0;
    while world.shard("a").state().session(SessionId(20)).is_some() {
        world.give(shard, Input::Tick);
        assert!(world.shard("a").work() <= 2 * WORK_MAX, "{}", world.shard("a").work());
        ticks += 1;
    }
    assert!((5..=12).contains(&ticks), "{ticks} ticks for {} records", 20 * (replies + 1));
    world.settle();
    let forgotten = world.log[&shard].iter().filter(|entry| entry.cause == Cause::Expire);
    assert_eq!(forgotten.map(|entry| entry.writes.len() as u64).sum::<u64>(), 20 * (replies + 1));
}

/// A handler that calls a function with the transaction.
struct Does<F>(F);

impl<F: FnMut(&mut Txn<'_>) -> Blob> Handler for Does<F> {
    fn handle(&mut self, _: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok((self.0)(txn)))
    }

    fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }
}

/// A shard that commits at once, and calls of the process `p`.
struct One(Shard);

impl One {
    fn new() -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("one", 1).unwrap();
        let mut shard = Shard::new(State::new(ShardId(0)), Arc::new(topology), Settings::default());
        shard.assume_clean();
        let mut out = Vec::new();
        let start = Input::Start(EpochConfig::single(Epoch(1), ReplicaId(0)));
        shard.handle(Now::at(Time(1)), start, &mut Script::default(), &mut out);
        let mut one = Self(shard);
        one.store();
        one
    }

    fn store(&mut self) -> Vec<Effect> {
        let mut out = Vec::new();
        let upto = self.0.state().position().index;
        let stored = Input::Stored { member: ReplicaId(0), epoch: Epoch(1), upto };
        self.0.handle(Now::at(Time(2)), stored, &mut Script::default(), &mut out);
        out
    }

    fn call(&mut self, does: impl FnMut(&mut Txn<'_>) -> Blob) -> Reply {
        let request = Request {
            token: CallToken(1),
            process: Key::new("p").unwrap(),
            payload: Blob::empty(),
            principal: "alice".into(),
            identity: Identity::None,
            colour: Default::default(),
            seen: None,
            is_first: false,
        };
        let mut out = Vec::new();
        self.0.handle(Now::at(Time(2)), Input::Request(request), &mut Does(does), &mut out);
        out.extend(self.store());
        let answer = out.into_iter().find_map(|effect| match effect {
            Effect::Answer(answer) => Some(answer.result.unwrap()),
            _ => None,
        });
        answer.unwrap()
    }
}

/// In debug mode, with a scan of all writes for each of them, this took minutes.
#[test]
fn a_call_may_write_read_and_delete_many_cells() {
    let mut one = One::new();
    let count: u32 = 20_000;
    let cell = |at: u32| at.to_be_bytes();
    one.call(|txn| {
        for at in 0..count {
            txn.put_cell(&cell(at), Blob::from(cell(at).as_slice())).unwrap();
            assert!(txn.cell(&cell(at / 2)).is_some());
        }
        Blob::empty()
    });
    // A queue that is emptied at its front while its end grows.
    let left = one.call(|txn| {
        let mut taken = 0;
        for at in 0..count - 10 {
            let front = txn.scan_cells(b"", b"", 1);
            assert_eq!(front[0].0, cell(at), "{at}");
            txn.delete_cell(&front[0].0);
            txn.put_cell(&cell(count + at), Blob::empty()).unwrap();
            taken += front.len() as u32;
        }
        txn.put_cell(&cell(3), Blob::empty()).unwrap();
        assert_eq!(txn.scan_cells(b"", b"", 2)[0].0, cell(3), "cells put where others were deleted");
        Blob::from(taken.to_string().as_bytes())
    });
    assert_eq!(left, ok(&(count - 10).to_string()));
    let state = one.0.state();
    let cells = state.records().iter().filter(|(key, _)| key[0] == 2).count();
    assert_eq!(cells as u32, count + 1);
}

#[test]
fn scans_see_what_the_call_wrote_and_what_was_there_in_order() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut one = One::new();
    let mut model = std::collections::BTreeMap::<Vec<u8>, Blob>::new();
    for _ in 0..30 {
        let steps = rng.usize(..60);
        one.call(|txn| {
            for _ in 0..steps {
                let cell: Vec<u8> = (0..rng.usize(..3)).map(|_| rng.u8(..4)).collect();
                match rng.u8(..4) {
                    0 => {
                        let value = Blob::from([rng.u8(..)].as_slice());
                        txn.put_cell(&cell, value.clone()).unwrap();
                        model.insert(cell, value);
                    }
                    1 => {
                        txn.delete_cell(&cell);
                        model.remove(&cell);
                    }
                    _ => {
                        let from: Vec<u8> = (0..rng.usize(..3)).map(|_| rng.u8(..4)).collect();
                        let limit = rng.usize(..4);
                        let expected = model.range(from.clone()..).filter(|(key, _)| key.starts_with(&cell));
                        let expected: Vec<_> =
                            expected.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect();
                        assert_eq!(txn.scan_cells(&cell, &from, limit), expected, "seed {seed}");
                        assert_eq!(txn.cell(&from), model.get(&from).map(|value| &**value), "seed {seed}");
                    }
                }
            }
            Blob::empty()
        });
    }
}

#[test]
fn the_tasks_of_a_process_are_found_without_those_of_others() {
    let mut world = World::new();
    let others: Vec<String> = (0..200).map(|i| format!("o{i}")).collect();
    for other in &others {
        world.call(other, "task 0\ntask 1").unwrap();
    }
    world.call("a", "task 0\ntask 1\ntask 2").unwrap();
    let key = Key::new("a").unwrap();
    let state = world.shard("a").state();
    let of = |state: &State, key: &Key| state.tasks_of(key).collect::<Vec<_>>();
    let found = of(state, &key);
    assert_eq!(found.len(), 3);
    assert!(state.tasks().len() > 3, "there are others on this shard");
    let id = found[1];
    world.call("a", &format!("cancel {}", id.0)).unwrap();
    assert_eq!(of(world.shard("a").state(), &key), [found[0], found[2]]);
    let capture = Capture::new(world.shard("a").state(), &key);
    assert_eq!(capture.view().tasks().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [found[0], found[2]]);
    assert_eq!(world.topology.service_id("script"), Some(ServiceId(0)));
}
