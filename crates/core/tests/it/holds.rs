//! A state with many items of one kind hands over, confirms and begins in parts: no input takes longer because of it.

use crate::numbered;
use crate::world::World;
use std::collections::BTreeMap;
use stead_core::blob::Blob;
use stead_core::calls::Identity;
use stead_core::entry::Cause;
use stead_core::ids::{Colour, RequestNumber, StepNumber, StepRun, TaskId};
use stead_core::key::Key;
use stead_core::record::{RecordKey, TaskHead, TaskRecord, decode_value, encode_value};
use stead_core::records::{Piece, Records, decode_records};
use stead_core::shard::{Input, Settings, StepOutcome};
use stead_core::state::State;

/// [`Settings::work_max`] by default.
const WORK_MAX: usize = 2_048;

fn replies(world: &World, key: &str) -> usize {
    world.shard(key).state().records().iter().filter(|(key, _)| key[0] == 4).count()
}

#[test]
fn a_marker_gives_the_messages_in_the_outboxes_in_slices_9_10() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let (from, others) = (world.shard_of("a"), [world.key_elsewhere("a"), world.key_elsewhere("aa")]);
    for other in &others {
        world.request("a", &format!("send {other} add x\n").repeat(300), Identity::None);
    }
    world.request("a", &"send a add y\n".repeat(300), Identity::None);
    world.give(from, Input::Colour(Colour(1)));
    let shard = from.0 as usize;
    let at_marker = world.shards[shard].state().hash();
    let (mut header, _) = world.marked.pop().unwrap();
    let given: usize = header.outboxes.values().map(|outbox| outbox.messages.len()).sum();
    assert_eq!((header.outboxes.len(), given), (3, 0), "the marker itself copies none of them");
    assert!(world.shards[shard].work() < 10);
    // Messages are received, trimmed and sent while slices are taken.
    let (mut stored, mut slices) = (BTreeMap::new(), 0);
    loop {
        let slice = rng.usize(1..40);
        let mut piece = Piece::default();
        let done = world.shards[shard].drain_snapshot(slice, &mut piece);
        assert!(piece.len() <= slice, "{} of {slice}", piece.len());
        slices += 1;
        header.add(piece.messages());
        for record in decode_records(&piece.to_vec()) {
            let (key, value) = record.unwrap();
            stored.insert(key.to_vec(), value.map(<[u8]>::to_vec));
        }
        if done {
            break;
        }
        match rng.u8(..4) {
            0 => world.store(from),
            1 => drop(world.request("a", &format!("send {} add z", others[0]), Identity::None)),
            2 => world.pass(30),
            _ => {
                while let Some((to, input)) = world.wire.pop_front() {
                    world.give(to, input);
                    world.store(to);
                }
            }
        }
    }
    assert!(slices > 20);
    let mut records = Records::new();
    for (key, value) in &stored {
        records.load(key, value.as_deref().map(Blob::from));
    }
    records.loaded();
    let mut state = State::load(header, records).unwrap();
    assert_eq!(state.hash(), at_marker, "seed {seed}");
    for entry in &world.log[&from] {
        if entry.index > state.position().index {
            state.apply(entry.clone()).unwrap();
        }
    }
    let live = world.shards[shard].state();
    assert_eq!((state.hash(), state.index_difference(live)), (live.hash(), None), "seed {seed}");
}

#[test]
fn a_marker_that_gives_a_snapshot_up_drops_what_that_kept_in_slices() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let from = world.shard_of("a");
    let shard = from.0 as usize;
    world.request("a", &format!("send {other} add x\n").repeat(500), Identity::None);
    world.give(from, Input::Colour(Colour(1)));
    let at_first = world.shards[shard].state().hash();
    world.settle();
    world.request("a", &format!("send {other} add y\n").repeat(100), Identity::None);
    world.give(from, Input::Colour(Colour(2)));
    let at_marker = world.shards[shard].state().hash();
    let (mut header, all) = world.marked.pop().unwrap();
    assert!(all, "the first one was never drained");
    let (mut piece, mut slices) = (Piece::default(), 1);
    while !world.shards[shard].drain_snapshot(50, &mut piece) {
        slices += 1;
    }
    assert!(slices >= 10, "{slices} slices for 500 messages of the one before");
    header.add(piece.messages());
    assert_eq!(header.outboxes[&world.shard_of(&other)].messages.len(), 100);
    assert_eq!(header.hash(), at_marker);
    assert_ne!(at_first, at_marker, "other states have other hashes");
}

#[test]
fn many_confirmed_replies_are_forgotten_over_several_entries_7() {
    let mut world = World::new();
    let (session, count) = (world.open("a", 7), 5_000);
    for number in 1..=count {
        world.request("a", "fail x", numbered(session, number, 0));
    }
    world.settle();
    assert_eq!(replies(&world, "a"), count as usize);
    let shard = world.shard_of("a");
    world.request("a", "add x", numbered(session, count + 1, count));
    let left = replies(&world, "a");
    assert!((1..count as usize).contains(&left), "{left} are left after the first entry");
    assert!(world.shard("a").work() <= WORK_MAX, "{}", world.shard("a").work());
    assert!(world.shard("a").deadline().is_some_and(|at| at <= world.now), "the rest asks for a tick");
    // Replies that wait to be deleted are confirmed nevertheless.
    let again = world.request("a", "fail x", numbered(session, count, 0));
    world.store(shard);
    assert!(matches!(
        world.answer(again).unwrap().result,
        Err(stead_core::calls::Refusal::Confirmed(RequestNumber(5_000)))
    ));
    // A crash in between forgets the confirmations that were not logged, and the client confirms again.
    world.give(shard, Input::Tick);
    world.store(shard);
    world.is_clean = true;
    world.crash();
    world.settle();
    let kept = replies(&world, "a");
    assert!((1..left).contains(&kept), "{kept} of {left}");
    world.request("a", "add y", numbered(session, count + 2, count + 1));
    let mut ticks = 0;
    while world.shard("a").deadline().is_some_and(|at| at <= world.now) {
        world.give(shard, Input::Tick);
        assert!(world.shard("a").work() <= 2 * WORK_MAX, "{}", world.shard("a").work());
        ticks += 1;
    }
    assert!((1..=6).contains(&ticks), "{ticks} ticks");
    world.settle();
    // The last one confirmed is within the step of 16 that is left for later.
    assert!(replies(&world, "a") <= 16 + 1, "{} are left", replies(&world, "a"));
    assert_eq!(world.state("a"), "xy");
    let forgetting = |cause: &Cause| matches!(cause, Cause::Expire | Cause::Request { .. });
    let most =
        world.log[&shard].iter().filter(|entry| forgetting(&entry.cause)).map(|entry| entry.writes.len());
    assert!(most.max().unwrap() <= 1_025);
}

#[test]
fn several_entries_delete_all_confirmed_replies_and_no_other_7() {
    let mut world = World::with(Settings { work_max: 64, ..Settings::default() });
    let session = world.open("a", 7);
    for number in 1..=300 {
        world.request("a", "fail x", numbered(session, number, 0));
        world.settle();
    }
    world.request("a", "fail x", numbered(session, 301, 200));
    world.settle();
    assert_eq!(replies(&world, "a"), 101, "from 201 on");
    let again = world.request("a", "fail x", numbered(session, 201, 200));
    world.settle();
    assert!(world.answer(again).unwrap().result.is_ok(), "a reply that is not confirmed is known");
    assert_eq!(world.runs("a"), 301);
}

#[test]
fn jobs_that_do_nothing_count_as_work_too() {
    let mut world = World::with(Settings { work_max: 8, ..Settings::default() });
    let shard = world.shard_of("a");
    world.give(shard, Input::Full(true));
    for step in (0..100).map(StepNumber) {
        let outcome = StepOutcome::Done(Blob::empty());
        // Of no task.
        world.give(shard, Input::TaskStep { id: TaskId(9), step, run: StepRun(1), outcome });
    }
    assert_eq!(world.shard("a").waiting(), 100);
    world.give(shard, Input::Full(false));
    assert!((92..100).contains(&world.shard("a").waiting()), "{}", world.shard("a").waiting());
    world.settle();
    assert_eq!(world.shard("a").waiting(), 0);
}

#[test]
fn an_epoch_begins_with_much_in_parts() {
    let work_max = 256;
    let count = 3 * work_max;
    let mut world = World::with(Settings { work_max, ..Settings::default() });
    let other = world.key_elsewhere("a");
    let (from, to) = (world.shard_of("a"), world.shard_of(&other));
    // All in one entry, which is stored before any of its effects happen.
    let each = [format!("send {other} add x\n"), "send a add y\n".to_owned(), "task 1\n".to_owned()];
    world.request("a", &each.iter().map(|line| line.repeat(count)).collect::<String>(), Identity::None);
    for is_clean in [true, false] {
        world.is_clean = is_clean;
        world.restart();
        let mut inputs = 0;
        let delivered = |world: &World| -> usize {
            let lens = world.wire.iter().map(|(shard, input)| match input {
                Input::Deliver { messages, .. } if *shard == to => messages.len(),
                _ => 0,
            });
            lens.sum()
        };
        world.store(from);
        while delivered(&world) < count || world.tasks.len() + world.shard("a").waiting() < 2 * count {
            let work = world.shard("a").work();
            assert!(work <= 3 * work_max, "{work} work for one input");
            assert!(
                world.shard("a").deadline().is_some_and(|at| at <= world.now),
                "the rest asks for a tick"
            );
            world.give(from, Input::Tick);
            inputs += 1;
        }
        assert!((3..40).contains(&inputs), "{inputs} inputs");
    }
    world.settle();
    assert_eq!(world.state(&other).len(), count);
    assert_eq!(world.state("a").len(), count);
    assert_eq!(world.tasks.len(), count, "each task runs once");
    assert_eq!(world.shard("a").waiting(), 0);
}

#[test]
fn what_is_sent_while_an_epoch_begins_stays_in_order_8() {
    let mut world = World::with(Settings { work_max: 8, ..Settings::default() });
    let other = world.key_elsewhere("a");
    let from = world.shard_of("a");
    let letters = |from: u8, count: usize| (0..count).map(move |at| (from + (at % 26) as u8) as char);
    let lines: String =
        letters(b'a', 60).map(|c| format!("send {other} add {c}\nsend a add {c}\n")).collect();
    world.request("a", &lines, Identity::None);
    world.restart();
    // It begins, and sends more before it has reached the end of the work that it began with.
    let upto = world.shard("a").state().position().index;
    let epoch = world.epoch;
    world.give(from, Input::Stored { member: stead_core::ids::ReplicaId(0), epoch, upto });
    let lines: String =
        letters(b'A', 20).map(|c| format!("send {other} add {c}\nsend a add {c}\n")).collect();
    world.request("a", &lines, Identity::None);
    world.settle();
    let all: String = letters(b'a', 60).chain(letters(b'A', 20)).collect();
    assert_eq!(world.state(&other), all);
    assert_eq!(world.state("a"), all);
    assert!(world.wire.is_empty());
}

#[test]
fn a_task_is_looked_at_without_its_state() {
    let task = TaskRecord {
        process: Key::new("p").unwrap(),
        name: "count".to_owned(),
        step: StepNumber(3),
        state: Blob::from(vec![7; 100_000]),
        progress: 5,
        retry: None,
    };
    let head: TaskHead = decode_value(&encode_value(&task)).unwrap();
    assert_eq!(
        (head.process, head.name, head.step, head.progress),
        (task.process, task.name, StepNumber(3), 5)
    );
    assert_eq!(RecordKey::task(TaskId(1)).request_number(), None);
}
