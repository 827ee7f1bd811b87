//! Wrong clocks: sessions and keys expire by served time, and timers follow the wall clock, which may be doubted.

use crate::numbered;
use crate::world::{World, ok};
use stead_core::blob::Blob;
use stead_core::calls::Identity;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{BodyHash, Epoch, Index, Micros, Served, Time};
use stead_core::key::Key;
use stead_core::record::{IdempotencyRecord, RecordKey, decode_value};
use stead_core::shard::Input;
use stead_core::state::State;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn keyed() -> Identity {
    Identity::Idempotency { key: Blob::from(b"k".as_slice()), body_hash: BodyHash([1; 16]) }
}

/// Ends the node, and starts it again with its wall clock this many milliseconds ahead of the steady one.
fn restart(world: &mut World, wall_ahead: i64) {
    world.wall_ahead = wall_ahead;
    world.restart();
    world.settle();
}

#[test]
fn a_start_two_days_ahead_applies_no_retry_again_and_fires_no_timer_7() {
    let mut world = World::new();
    let session = world.open("a", 9);
    world.request("a", "add x", keyed());
    world.request("a", "add y", numbered(session, 1, 0));
    world.call("b", &format!("timer {DAY} add late")).unwrap();
    restart(&mut world, 2 * DAY as i64);
    assert!(world.shard("b").clock().is_doubted());
    for _ in 0..5 {
        world.pass(60_000);
    }
    let retries =
        [world.request("a", "add x", keyed()), world.request("a", "add y", numbered(session, 1, 0))];
    world.settle();
    assert_eq!(retries.map(|token| world.answer(token).unwrap().result.clone()), [Ok(ok("x")), Ok(ok("xy"))]);
    assert_eq!((world.runs("a"), world.state("b").as_str()), (2, ""));
    // The clock is set right, and the shard is where it was, except for the minutes that it ran faster.
    world.wall_ahead = 0;
    world.pass(1);
    assert!(!world.shard("b").clock().is_doubted());
    assert!(world.shard("b").clock().wall_ahead() >= -5 * 60_000_000);
    world.pass(DAY - 6 * 60_000);
    assert_eq!(world.state("b"), "");
    world.pass(6 * 60_000);
    assert_eq!(world.state("b"), "late");
}

#[test]
fn a_shard_that_believed_a_clock_two_days_ahead_still_knows_its_keys_and_gets_back() {
    let mut world = World::new();
    world.request("a", "add x", keyed());
    restart(&mut world, 2 * DAY as i64);
    world.pass_span(world.settings.clock_confirm);
    assert_eq!(world.shard("a").clock().wall_ahead(), 0);
    restart(&mut world, 0);
    assert_eq!(world.shard("a").clock().wall_ahead(), -(2 * DAY as i64) * 1000);
    let retry = world.request("a", "add x", keyed());
    world.settle();
    assert_eq!((world.answer(retry).unwrap().result.clone(), world.runs("a")), (Ok(ok("x")), 1));
    for _ in 0..4 {
        world.pass(DAY);
    }
    assert_eq!(world.shard("a").clock().wall_ahead(), 0, "half the speed for twice the lead");
}

#[test]
fn a_start_three_days_behind_that_is_corrected_fires_a_timer_on_the_day() {
    let mut world = World::new();
    // Three days have passed, which the clock does not show.
    restart(&mut world, 0);
    world.call("a", &format!("timer {} add in three days", 3 * DAY + HOUR)).unwrap();
    world.wall_ahead = 3 * DAY as i64;
    // The shell makes its shards look at the clock again.
    world.pass(1);
    assert!(world.shard("a").clock().is_doubted());
    world.pass_span(world.settings.clock_confirm);
    assert_eq!(world.shard("a").clock().wall_ahead(), 0);
    world.pass(2 * HOUR);
    assert_eq!(world.state("a"), "in three days");
}

#[test]
fn a_downtime_of_three_days_fires_what_came_due_and_expires_nothing() {
    let mut world = World::new();
    world.request("a", "add x", keyed());
    world.call("b", &format!("timer {DAY} add due")).unwrap();
    world.now = world.now.plus_millis(3 * DAY);
    restart(&mut world, 0);
    assert_eq!(world.state("b"), "", "a clock that far ahead may be wrong");
    world.pass_span(world.settings.clock_confirm);
    assert_eq!(world.state("b"), "due");
    let retry = world.request("a", "add x", keyed());
    world.settle();
    assert_eq!((world.answer(retry).unwrap().result.clone(), world.runs("a")), (Ok(ok("x")), 1));
}

#[test]
fn a_key_lives_through_many_lives_for_as_long_as_it_was_served() {
    let mut world = World::new();
    let ttl = world.settings.idempotency_ttl;
    world.request("a", "add x", keyed());
    world.settle();
    for _ in 0..4 {
        world.pass_span(Micros(ttl.0 / 5));
        world.now = world.now.plus_millis(10 * DAY);
        restart(&mut world, 0);
    }
    world.request("a", "add x", keyed());
    world.settle();
    assert_eq!(world.runs("a"), 1);
    world.pass_span(Micros(ttl.0 / 4));
    world.request("a", "add x", keyed());
    world.settle();
    assert_eq!(world.runs("a"), 2, "an idle life counts, too: the shard logs its clocks");
}

#[test]
fn an_idle_shard_logs_its_clocks_now_and_then() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    let before = world.log[&shard].len();
    let deadline = world.shard("a").deadline().unwrap();
    assert!(deadline.since(world.now) <= Micros::from_secs(600));
    world.now = deadline;
    world.give(shard, Input::Tick);
    let noted = world.log[&shard].last().unwrap().clone();
    assert_eq!((world.log[&shard].len(), noted.cause, noted.writes.len()), (before + 1, Cause::Expire, 0));
    assert_eq!(noted.served, Some(Micros::from_secs(600)));
}

/// Entries of a version without served time: keys expired at a time of the wall clock.
#[test]
fn what_an_older_version_noted_to_expire_has_the_same_time_left() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    let old = |index, cause, process| Entry {
        index: Index(index),
        epoch: Epoch(1),
        time: Time(world.now.0 - 50_000_000 + index),
        cause,
        process: Key::new(process).unwrap(),
        writes: Vec::new(),
        sends: Vec::new(),
        reply: None,
        served: None,
    };
    let expires = Served(world.now.0 + 100_000_000);
    let (principal, key) = ("alice".to_owned(), Blob::from(b"k".as_slice()));
    let keyed = Cause::Idempotent { principal, key, body_hash: BodyHash([1; 16]), expires };
    let log = vec![old(1, Cause::Start, ""), old(2, keyed, "a")];
    let mut bytes = Vec::new();
    log[1].encode_into(&mut bytes);
    assert_eq!(bytes[0], 0x87, "no field more than before: index to sends");
    let mut state = State::new(shard);
    log.iter().for_each(|entry| state.apply(entry.clone()).unwrap());
    assert_eq!(
        minicbor::to_vec(state.position()).unwrap()[0],
        0x84,
        "the hash of an older part is unchanged"
    );
    let record = RecordKey::idempotency("a", "alice", b"k");
    let known: IdempotencyRecord = decode_value(state.records().get(record.as_bytes()).unwrap()).unwrap();
    assert_eq!(known.expires, expires);
    world.log.insert(shard, log);
    restart(&mut world, 0);
    let there = |world: &World| world.shard("a").state().records().get(record.as_bytes()).is_some();
    world.pass(149_000);
    assert!(there(&world), "its time counts from the last entry of the older version");
    world.pass(2_000);
    assert!(!there(&world));
}
