//! The protocol, rule by rule. Numbers in brackets are the design's invariants.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod attempts;
mod checkpointing;
mod clock;
mod dead_letters;
mod deleting;
mod faults_holds;
mod faults_limits;
mod holds;
mod kept;
mod later;
mod log_room;
mod queries;
mod replay;
mod rules;
mod shutdown;
mod transcript;
mod world;

use stead_core::blob::Blob;
use stead_core::calls::{Identity, Refusal};
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{
    BodyHash, CallToken, CheckpointNumber, Colour, Epoch, Index, Micros, ReplicaId, RequestNumber, SessionId,
    StepNumber, StepRun,
};
use stead_core::record::{DeadLetter, RecordKey};
use stead_core::records::{Piece, Records, decode_records};
use stead_core::reply::Reply;
use stead_core::shard::{Input, Settings, StepOutcome};
use stead_core::state::{Misfit, State};
use world::{World, ok};

fn numbered(session: SessionId, number: u64, confirmed: u64) -> Identity {
    Identity::Session { session, number: RequestNumber(number), confirmed: RequestNumber(confirmed) }
}

#[test]
fn an_answer_waits_until_its_entry_is_committed_5() {
    let mut world = World::new();
    let token = world.request("a", "add x", Identity::None);
    assert_eq!(world.state("a"), "x", "the primary executes ahead of the commit index");
    assert_eq!(world.answer(token), None);
    world.store(world.shard_of("a"));
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("x")));
}

#[test]
fn a_query_waits_until_what_it_saw_is_committed_5() {
    let mut world = World::new();
    world.request("a", "add x", Identity::None);
    let token = world.query("a");
    assert_eq!(world.answer(token), None);
    world.store(world.shard_of("a"));
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("x")));
    let at_once = world.query("a");
    assert!(world.answer(at_once).is_some(), "all that it saw is committed");
}

#[test]
fn a_message_leaves_when_its_entry_is_committed_5() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.request("a", &format!("send {other} add y"), Identity::None);
    assert!(world.wire.is_empty());
    let counted = |world: &World| {
        let state = world.shard("a").state();
        (state.outbox_messages(), state.outbox_bytes())
    };
    assert!(matches!(counted(&world), (1, bytes) if bytes > "add y".len()), "{:?}", counted(&world));
    world.store(world.shard_of("a"));
    assert_eq!(world.wire.len(), 1);
    world.settle();
    assert_eq!(world.state(&other), "y");
    let outbox = world.shard("a").state().outboxes().get(world.shard_of(&other)).unwrap();
    assert!(outbox.messages.is_empty(), "the acknowledgement trimmed it");
    assert_eq!(counted(&world), (0, 0));
}

#[test]
fn a_refusal_waits_until_what_it_tells_of_is_committed_5() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    world.is_clean = true;
    world.restart();
    world.settle();
    let session = world.open("a", 9);
    let shard = world.shard_of("a");
    let key =
        |body| Identity::Idempotency { key: Blob::from(b"k".as_slice()), body_hash: BodyHash([body; 16]) };
    world.request("a", "add x", key(1));
    let conflict = world.request("a", "add y", key(2));
    let panic = world.request("a", "panic x is there", Identity::None);
    assert_eq!((world.answer(conflict), world.answer(panic)), (None, None));
    world.store(shard);
    assert_eq!(world.answer(conflict).unwrap().result, Err(Refusal::IdempotencyConflict));
    assert!(matches!(world.answer(panic).unwrap().result, Err(Refusal::Panicked(_))));
    world.is_clean = false;
    let mut given_up = CallToken(0);
    for _ in 0..3 {
        world.restart();
        world.store(shard);
        given_up = world.request("a", "add poison", numbered(session, 1, 0));
    }
    assert!(matches!(world.log[&shard].last().unwrap().cause, Cause::DeadLetter { .. }));
    assert_eq!(world.answer(given_up), None);
    world.store(shard);
    assert_eq!(world.answer(given_up).unwrap().result, Err(Refusal::Poisoned { attempts: 1 }));
}

#[test]
fn a_retried_request_gets_the_same_answer_and_runs_once_7() {
    let mut world = World::new();
    // Nothing is suspected, so that the retry need not come back later.
    world.is_clean = true;
    world.restart();
    world.settle();
    let session = world.open("a", 9);
    let first = world.request("a", "add x", numbered(session, 1, 0));
    let retry = world.request("a", "add x", numbered(session, 1, 0));
    world.settle();
    assert_eq!(world.answer(first).unwrap().result, Ok(ok("x")));
    assert_eq!(world.answer(retry).unwrap().result, Ok(ok("x")));
    world.restart();
    world.settle();
    let after = world.request("a", "add x", numbered(session, 1, 0));
    assert_eq!(world.answer(after).unwrap().result, Ok(ok("x")));
    assert_eq!(world.runs("a"), 1);
}

#[test]
fn a_session_serves_none_but_its_principal() {
    let mut world = World::new();
    let session = world.open("a", 9);
    let first = world.request("a", "add x", numbered(session, 1, 0));
    world.settle();
    world.principal = "mallory".into();
    let shard = world.shard_of("a");
    let principal = world.principal.clone();
    world.give(shard, Input::OpenSession { token: CallToken(77), session, principal });
    let reply = world.request("a", "add x", numbered(session, 1, 0));
    let new = world.request("a", "add y", numbered(session, 2, 0));
    world.settle();
    for token in [CallToken(77), reply, new] {
        assert_eq!(world.answer(token).unwrap().result, Err(Refusal::UnknownSession(session)));
    }
    assert_eq!((world.answer(first).unwrap().result.clone(), world.runs("a")), (Ok(ok("x")), 1));
}

/// Confirmed replies are forgotten over several entries, and a crash between them makes the window look wider.
#[test]
fn a_crash_between_confirmations_shuts_no_session_out_7() {
    let window = stead_core::shard::Shard::SESSION_WINDOW;
    let mut world = World::new();
    let session = world.open("a", 9);
    world.request("a", "add x", numbered(session, window, window - 1));
    let last = 2 * window - 1;
    let token = world.request("a", "add y", numbered(session, last, window - 1));
    world.store(world.shard_of("a"));
    let first = world.answer(token).unwrap().result.clone();
    assert!(first.is_ok(), "{first:?}");
    world.crash();
    world.settle();
    let again = world.request("a", "add y", numbered(session, last, window - 1));
    world.settle();
    assert_eq!(world.answer(again).unwrap().result, first);
    let mut answers = (0..200).map(|_| {
        let next = world.request("a", "add z", numbered(session, last + 1, last));
        world.pass(100);
        world.answer(next).unwrap().result.clone()
    });
    let answer = answers.find(|answer| !matches!(answer, Err(Refusal::Overloaded { .. })));
    assert_eq!(answer, Some(Ok(ok("xyz"))));
    let keeps = |number| {
        let key = RecordKey::reply(session, RequestNumber(number));
        world.shard("a").state().records().get(key.as_bytes()).is_some()
    };
    assert_eq!([keeps(last), keeps(last + 1)], [false, true]);
}

#[test]
fn a_returned_error_is_an_answer_without_effects_7() {
    let mut world = World::new();
    let session = world.open("a", 9);
    for _ in 0..2 {
        let token = world.request("a", "fail no money", numbered(session, 1, 0));
        world.settle();
        let error = Reply::Err(Blob::from(b"no money".as_slice()));
        assert_eq!(world.answer(token).unwrap().result, Ok(error));
    }
    assert_eq!((world.runs("a"), world.state("a").as_str()), (1, ""));
}

#[test]
fn confirmed_and_unknown_requests_are_never_executed_again_7() {
    let mut world = World::new();
    let session = world.open("a", 9);
    for number in 1..=40 {
        world.request("a", "add x", numbered(session, number, number - 1));
    }
    world.settle();
    let confirmed = world.request("a", "add x", numbered(session, 3, 0));
    assert_eq!(world.answer(confirmed).unwrap().result, Err(Refusal::Confirmed(RequestNumber(3))));
    let unknown = world.request("a", "add x", numbered(SessionId(1), 1, 0));
    assert_eq!(world.answer(unknown).unwrap().result, Err(Refusal::UnknownSession(SessionId(1))));
    let far = world.request("a", "add x", numbered(session, u64::MAX, 0));
    assert!(matches!(world.answer(far).unwrap().result, Err(Refusal::Window { .. })));
    assert_eq!(world.runs("a"), 40);
    world.pass_span(world.settings.session_ttl.plus(Micros::from_millis(1)));
    let expired = world.request("a", "add x", numbered(session, 41, 0));
    assert_eq!(world.answer(expired).unwrap().result, Err(Refusal::UnknownSession(session)));
    let left = world.shard("a").state().records().iter().filter(|(key, _)| matches!(key[0], 3 | 4)).count();
    assert_eq!(left, 0, "an expired session leaves no record");
}

#[test]
fn an_idempotency_key_stands_for_one_request_until_it_expires() {
    let mut world = World::new();
    let key =
        |hash| Identity::Idempotency { key: Blob::from(b"k".as_slice()), body_hash: BodyHash([hash; 16]) };
    for _ in 0..2 {
        let token = world.request("a", "add x", key(1));
        world.settle();
        assert_eq!(world.answer(token).unwrap().result, Ok(ok("x")));
    }
    let other = world.request("a", "add y", key(2));
    assert_eq!(world.answer(other).unwrap().result, Err(Refusal::IdempotencyConflict));
    world.pass_span(world.settings.idempotency_ttl.plus(Micros::from_millis(1)));
    let token = world.request("a", "add x", key(2));
    world.settle();
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("xx")));
}

#[test]
fn a_panic_leaves_no_trace() {
    let mut world = World::new();
    assert_eq!(world.call("a", "add x\npanic boom"), Err(Refusal::Panicked("boom".into())));
    assert_eq!(world.state("a"), "");
    assert_eq!(world.log[&world.shard_of("a")].len(), 1, "only the start entry");
}

#[test]
fn messages_are_received_once_and_in_order_whatever_the_wire_does_8() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    for letter in ["1", "2", "3"] {
        world.request("a", &format!("send {other} add {letter}"), Identity::None);
        world.store(world.shard_of("a"));
    }
    let wire: Vec<_> = world.wire.drain(..).collect();
    // The second is lost, the third comes early, the first comes twice.
    for at in [2, 0, 0] {
        let (to, input) = wire[at].clone();
        world.give(to, input);
    }
    world.settle();
    assert_eq!(world.state(&other), "1");
    world.pass_span(world.settings.resend_after.plus(Micros::from_millis(1)));
    world.pass_span(world.settings.resend_after.plus(Micros::from_millis(1)));
    assert_eq!(world.state(&other), "123");
}

#[test]
fn a_lost_message_is_sent_again_once_resend_after_has_passed_since_it_was_sent_17() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.call("a", &format!("send {other} add 1")).unwrap();
    world.settle();
    assert_eq!(world.state(&other), "1");
    world.pass_span(world.settings.resend_after.half());
    world.request("a", &format!("send {other} add 2"), Identity::None);
    let sender = world.shard_of("a");
    world.store(sender);
    world.wire.clear();
    let sent = world.now;
    // The first one's time for a repetition comes in between.
    while world.wire.is_empty() {
        let wanted = world.shard("a").deadline().expect("a message is not acknowledged");
        world.now = world.now.max(wanted);
        world.give(sender, Input::Tick);
    }
    assert_eq!(world.now, sent.plus(world.settings.resend_after));
    world.settle();
    assert_eq!(world.state(&other), "12");
}

#[test]
fn a_receiver_that_forgets_what_was_not_stored_gets_it_again_8() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.request("a", &format!("send {other} add y"), Identity::None);
    world.store(world.shard_of("a"));
    let (to, input) = world.wire.pop_front().unwrap();
    world.give(to, input);
    assert_eq!(world.state(&other), "y");
    world.crash_before(to, 1);
    assert_eq!(world.state(&other), "");
    world.settle();
    assert_eq!(world.state(&other), "y");
    assert_eq!(world.runs(&other), 2, "an entry that was never committed may be computed again");
    world.restart();
    world.settle();
    assert_eq!((world.state(&other).as_str(), world.runs(&other)), ("y", 2));
}

#[test]
fn a_shard_messages_itself_without_waiting() {
    let mut world = World::new();
    world.request("a", "send a add 1\nsend a caller\nadd 0", Identity::None);
    assert_eq!(world.state("a"), "01a", "before anything is stored");
    world.settle();
    world.restart();
    world.settle();
    assert_eq!(world.state("a"), "01a");
}

#[test]
fn a_marker_comes_before_what_a_later_colour_brings_9() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let sender = world.shard_of("a");
    let receiver = world.shard_of(&other);
    world.give(sender, Input::Colour(Colour(1)));
    world.request("a", &format!("send {other} add y"), Identity::None);
    world.store(sender);
    let (to, input) = world.wire.pop_front().unwrap();
    world.give(to, input);
    let causes: Vec<_> = world.log[&receiver].iter().map(|entry| entry.cause.clone()).collect();
    let marker = causes.iter().position(|c| *c == Cause::Marker { colour: Colour(1) }).unwrap();
    let receive = causes.iter().position(|c| matches!(c, Cause::Message { .. })).unwrap();
    assert!(marker < receive);
    // The sender's part does not hold the message as sent, nor the receiver's as received.
    assert!(world.marked.iter().all(|(header, _)| header.outboxes.is_empty() && header.received.is_empty()));
}

#[test]
fn an_acknowledgement_of_a_later_colour_marks_before_it_trims_9() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let (sender, receiver) = (world.shard_of("a"), world.shard_of(&other));
    world.request("a", &format!("send {other} add y"), Identity::None);
    world.store(sender);
    world.give(receiver, Input::Colour(Colour(1)));
    world.settle();
    let part =
        |shard| world.marked.iter().find(|(header, _)| header.shard == shard).map(|(header, _)| header);
    let (mut sent, mut piece) = (part(sender).unwrap().clone(), Piece::default());
    assert!(part(receiver).unwrap().received.is_empty());
    while !world.shards[sender.0 as usize].drain_snapshot(1, &mut piece) {}
    sent.add(piece.messages());
    let outbox = &sent.outboxes[&receiver];
    assert_eq!(outbox.messages.len(), 1, "in flight: sent before the cut, received after it");
}

/// The marker may be lost, and its number taken again.
#[test]
fn a_refusal_does_not_name_a_marker_that_is_not_committed_5() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    world.give(shard, Input::Colour(Colour(1)));
    let too_large = "x".repeat(64 << 20);
    let refused = |world: &mut World| {
        let token = world.request_at("a", &too_large, Identity::None, Colour(0));
        let answer = &world.answers[&token];
        assert!(matches!(answer.result, Err(Refusal::RequestTooLarge { .. })), "{answer:?}");
        answer.colour
    };
    assert_eq!(refused(&mut world), Colour(0));
    world.settle();
    assert_eq!(refused(&mut world), Colour(1));
}

/// Likewise for what was received before it.
#[test]
fn an_acknowledgement_does_not_name_a_marker_that_is_not_committed_5() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let (sender, receiver) = (world.shard_of("a"), world.shard_of(&other));
    world.request("a", &format!("send {other} add y"), Identity::None);
    world.store(sender);
    let (to, delivery) = world.wire.pop_front().unwrap();
    world.give(to, delivery);
    world.store(receiver);
    world.give(receiver, Input::Colour(Colour(1)));
    world.now = world.now.plus(world.settings.ack_delay);
    world.give(receiver, Input::Tick);
    let ack = world.wire.pop_front();
    assert!(matches!(ack, Some((_, Input::Ack { colour: Colour(0), .. }))), "{ack:?}");
}

#[test]
fn a_checkpoint_that_begins_before_a_shard_serves_is_not_missed() {
    let mut world = World::new();
    world.restart();
    let shard = world.shard_of("a");
    world.give(shard, Input::Colour(Colour(1)));
    assert!(world.marked.is_empty());
    world.settle();
    assert_eq!(world.marked[0].0.position.colour, Colour(1));
    assert_eq!(world.committed_markers, [(shard, Colour(1))]);
}

#[test]
fn a_client_carries_colours_and_a_query_never_marks() {
    let mut world = World::new();
    world.query("a");
    assert!(world.marked.is_empty());
    world.request_at("a", "add x", Identity::None, Colour(3));
    assert_eq!(world.marked[0].0.position.colour, Colour(3));
    assert_eq!(world.state("a"), "x");
}

#[test]
fn a_part_gives_the_state_at_its_marker_bit_for_bit_10() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    world.call("a", "add x\ntimer 500 add t\ntask 1").unwrap();
    world.give(shard, Input::Colour(Colour(1)));
    let at_marker = world.shards[shard.0 as usize].state().hash();
    world.request("a", "add later", Identity::None);
    let mut piece = Piece::default();
    while !world.shards[shard.0 as usize].drain_snapshot(1, &mut piece) {}
    let (header, all) = world.marked.pop().unwrap();
    assert!(!all);
    let mut records = Records::new();
    for record in decode_records(&piece.to_vec()) {
        let (key, value) = record.unwrap();
        records.load(key, value.map(Blob::from));
    }
    records.loaded();
    let mut state = State::load(header, records).unwrap();
    assert_eq!(state.hash(), at_marker);
    // The log goes on from there to the same state as the shard's.
    for entry in &world.log[&shard] {
        if entry.index > state.position().index {
            state.apply(entry.clone()).unwrap();
        }
    }
    assert_eq!(state.hash(), world.shards[shard.0 as usize].state().hash());
}

#[test]
fn a_timer_fires_once_and_time_never_falls() {
    let mut world = World::new();
    world.call("a", "timer 500 add t\ntimer 900 caller").unwrap();
    world.pass(600);
    assert_eq!(world.state("a"), "t");
    let before = world.shard("a").state().position().time;
    // The machine's clock jumps back over a restart.
    world.now = stead_core::ids::Time(5);
    world.restart();
    world.settle();
    assert!(world.shard("a").state().position().time >= before);
    // Until the clock has caught up, the shard's time goes at half the speed.
    world.pass(800);
    assert_eq!(world.state("a"), "ttimer");
    world.restart();
    world.pass(10_000);
    assert_eq!(world.state("a"), "ttimer");
}

#[test]
fn what_calls_can_not_be_cancelled_any_more() {
    let mut world = World::new();
    world.call("a", "timer 5 cancel-caller\ntask 0").unwrap();
    world.pass(10);
    assert_eq!(world.state("a"), "over");
    let (shard, id, task) = world.tasks.pop().unwrap();
    let outcome = StepOutcome::Done(Blob::from(b"cancel-caller".as_slice()));
    world.end_step(shard, id, task.step, outcome);
    world.settle();
    assert_eq!(world.state("a"), "overover");
}

#[test]
fn a_task_repeats_one_step_at_most() {
    let mut world = World::new();
    world.call("a", "task 0").unwrap();
    for number in 0..3 {
        let step = StepNumber(number);
        let (shard, id, task) = world.tasks.pop().unwrap();
        assert_eq!((task.step, world.tasks.len()), (step, 0));
        let outcome = StepOutcome::Continue { state: Blob::from(vec![number as u8]), progress: 1 };
        world.end_step(shard, id, step, outcome.clone());
        assert!(world.tasks.is_empty(), "the next step waits until this one's result is stored");
        world.settle();
        if number == 1 {
            world.restart();
            world.settle();
            world.end_step(shard, id, step, outcome);
        }
    }
    let (shard, id, task) = world.tasks.pop().unwrap();
    let outcome = StepOutcome::Done(Blob::from(b"caller\nadd !".as_slice()));
    world.end_step(shard, id, task.step, outcome);
    world.settle();
    assert_eq!(world.state("a"), "task!");
    assert!(world.shard("a").state().tasks().is_empty());
}

#[test]
fn a_failed_step_counts_once_however_often_it_is_reported() {
    let mut world = World::with(Settings { attempts_max: 3, ..Settings::default() });
    world.call("a", "task 0").unwrap();
    let (shard, id, task) = world.tasks.pop().unwrap();
    let step = task.step;
    let failed = |run| Input::TaskStep { id, step, run, outcome: StepOutcome::Failed("in vain".into()) };
    for run in [1, 1, 2, 1, 2].map(StepRun) {
        world.give(shard, failed(run));
    }
    assert_eq!((world.tasks.len(), world.shard("a").state().dead_letters()), (2, 0));
    world.give(shard, failed(StepRun(3)));
    assert_eq!((world.tasks.len(), world.shard("a").state().dead_letters()), (2, 1));
}

#[test]
fn what_ends_the_process_again_and_again_becomes_a_dead_letter() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let receiver = world.shard_of(&other);
    world.request("a", &format!("send {other} add poison\nsend {other} add good"), Identity::None);
    world.store(world.shard_of("a"));
    // The first attempt, which is made beside others, counts for none of them.
    for _ in 0..=world.settings.attempts_max {
        // The process ends while it handles the first message: nothing of that is stored, but the attempt is.
        world.restart_to_first_message();
        assert!(matches!(world.log[&receiver].last().unwrap().cause, Cause::Attempt));
    }
    world.restart();
    world.settle();
    assert_eq!(world.state(&other), "good");
    let letter = world.shard(&other).state().records().iter().find(|(key, _)| key[0] == 8).unwrap().1.clone();
    let letter: DeadLetter = stead_core::record::decode_value(&letter).unwrap();
    assert_eq!((&*letter.payload, &*letter.sender), (b"add poison".as_slice(), "a"));
    assert_eq!(world.shard(&other).state().attempts(), 0);
}

#[test]
fn a_single_attempt_gives_up_nothing_but_what_ended_the_process() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let other = world.key_elsewhere("a");
    let receiver = world.shard_of(&other);
    world.request("a", &format!("send {other} add poison\nsend {other} add good"), Identity::None);
    world.store(world.shard_of("a"));
    // The process ends twice while it handles the first message, after the attempt at it is stored.
    for _ in 0..2 {
        world.restart_to_first_message();
        assert_eq!(world.log[&receiver].last().unwrap().cause, Cause::Attempt);
    }
    world.restart();
    world.settle();
    assert_eq!((world.state(&other).as_str(), world.shard(&other).state().dead_letters()), ("good", 1));
}

#[test]
fn a_request_that_ends_the_process_again_and_again_is_given_up() {
    let mut world = World::new();
    let session = world.open("a", 9);
    let shard = world.shard_of("a");
    for _ in 0..=world.settings.attempts_max {
        // The process ends while it handles the request: nothing of that is stored, but the attempt is.
        world.restart();
        world.store_all();
        let token = world.request("a", "add poison", numbered(session, 1, 0));
        assert!(matches!(world.log[&shard].last().unwrap().cause, Cause::Attempt));
        assert_eq!(world.answer(token), None);
    }
    for _ in 0..2 {
        world.restart();
        world.settle();
        let token = world.request("a", "add poison", numbered(session, 1, 0));
        world.settle();
        assert!(matches!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { .. })));
    }
    assert_eq!((world.runs("a"), world.shard("a").state().dead_letters()), (0, 1));
    assert_eq!(world.call("a", "add good"), Ok(ok("good")));
    world.pass_span(world.settings.idempotency_ttl.plus(Micros::from_millis(1)));
    assert_eq!(world.shard("a").state().attempts(), 0);
}

#[test]
fn a_request_that_is_refused_again_and_again_has_ended_nothing() {
    let mut world = World::with(Settings { attempts_max: 2, ..Settings::default() });
    let session = world.open("a", 9);
    world.restart();
    world.settle();
    for _ in 0..5 {
        let token = world.request("a", "panic boom", numbered(session, 1, 0));
        world.settle();
        assert_eq!(world.answer(token).unwrap().result, Err(Refusal::Panicked("boom".into())));
    }
    let attempts = world.log[&world.shard_of("a")].iter().filter(|entry| entry.cause == Cause::Attempt);
    assert_eq!((attempts.count(), world.shard("a").state().dead_letters()), (2, 0), "made and taken back");
    assert_eq!(world.shard("a").state().attempts(), 0);
}

#[test]
fn after_a_life_that_ended_in_order_nothing_is_suspected() {
    let mut world = World::new();
    let session = world.open("a", 9);
    let other = world.key_elsewhere("a");
    world.request("a", &format!("send {other} add y"), Identity::None);
    world.store(world.shard_of("a"));
    world.is_clean = true;
    world.restart();
    world.settle();
    world.request("a", "add x", numbered(session, 1, 0));
    assert_eq!((world.state("a").as_str(), world.state(&other).as_str()), ("x", "y"));
    assert!(world.log.values().flatten().all(|entry| entry.cause != Cause::Attempt));
}

#[test]
fn a_message_whose_handler_panics_becomes_a_dead_letter_and_the_rest_goes_on() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.call("a", &format!("send {other} panic boom\nsend {other} add good")).unwrap();
    world.settle();
    assert_eq!(world.state(&other), "good");
    assert_eq!(world.runs(&other), world.settings.attempts_max as usize + 1);
    assert_eq!(world.shard(&other).state().dead_letters(), 1);
}

#[test]
fn a_full_log_refuses_writes_and_answers_reads() {
    let mut world = World::new();
    world.call("a", "add x").unwrap();
    let shard = world.shard_of("a");
    world.give(shard, Input::Full(true));
    assert_eq!(world.call("a", "add y"), Err(Refusal::Full));
    let token = world.query("a");
    assert_eq!(world.answer(token).unwrap().result, Ok(ok("x")));
    world.give(shard, Input::Full(false));
    assert_eq!(world.call("a", "add y"), Ok(ok("xy")));
}

#[test]
fn an_overloaded_shard_says_when_to_come_back() {
    let mut world = World::with(Settings { uncommitted_max: 4, ..Settings::default() });
    let tokens: Vec<CallToken> = (0..6).map(|_| world.request("a", "add x", Identity::None)).collect();
    assert!(matches!(world.answer(tokens[5]).unwrap().result, Err(Refusal::Overloaded { .. })));
    world.settle();
    assert_eq!(world.state("a"), "xxxx");
}

#[test]
fn frames_of_an_older_epoch_change_nothing_15() {
    let mut world = World::new();
    world.restart();
    world.settle();
    let token = world.request("a", "add x", Identity::None);
    let shard = world.shard_of("a");
    let old = Input::Stored { member: ReplicaId(0), epoch: Epoch(1), upto: Index(u64::MAX) };
    world.give(shard, old);
    world.give(shard, Input::Stored { member: ReplicaId(7), epoch: world.epoch, upto: Index(u64::MAX) });
    assert_eq!(world.answer(token), None);
    let entries = world.log[&shard].len();
    world.give(shard, Input::Start(stead_core::commit_tracker::EpochConfig::single(Epoch(1), ReplicaId(0))));
    assert_eq!(world.log[&shard].len(), entries);
}

#[test]
fn an_entry_that_does_not_follow_is_refused_2() {
    let mut world = World::new();
    world.call("a", "add x").unwrap();
    let log = world.log[&world.shard_of("a")].clone();
    let mut state = State::new(world.shard_of("a"));
    assert!(matches!(state.apply(log[1].clone()), Err(Misfit::Index { .. })));
    let mut state = State::new(world.shard_of("a"));
    state.apply(log[0].clone()).unwrap();
    let older = Entry { epoch: Epoch(0), ..log[1].clone() };
    assert!(matches!(state.apply(older), Err(Misfit::Epoch { .. })));
}

#[test]
fn records_of_a_failed_checkpoint_are_in_the_next_one() {
    let mut world = World::new();
    let shard = world.shard_of("a");
    world.call("a", "add x").unwrap();
    world.give(shard, Input::Colour(Colour(1)));
    // The first checkpoint is given up before its snapshot is drained.
    world.give(shard, Input::Colour(Colour(2)));
    assert!(world.marked[1].1, "the next part stands alone");
    let mut piece = Piece::default();
    while !world.shards[shard.0 as usize].drain_snapshot(10, &mut piece) {}
    let keys: Vec<_> = decode_records(&piece.to_vec()).map(|record| record.unwrap().0.to_vec()).collect();
    assert!(keys.contains(&RecordKey::process("a").as_bytes().to_vec()));
    // Neither did the second one come to its end.
    world.give(shard, Input::Completed(CheckpointNumber(1)));
    world.give(shard, Input::Colour(Colour(3)));
    assert!(world.marked[2].1);
    while !world.shards[shard.0 as usize].drain_snapshot(10, &mut piece) {}
    world.give(shard, Input::Completed(CheckpointNumber(3)));
    world.give(shard, Input::Colour(Colour(4)));
    assert!(!world.marked[3].1);
}
