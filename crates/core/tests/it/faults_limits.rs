//! Limits of one call of a handler and of a log entry: sizes over them are refused beforehand.

use crate::world::{World, ok};
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Misuse, Refusal};
use stead_core::entry::{Cause, Entry, Send, Write};
use stead_core::ids::{CallToken, Epoch, Index, RequestNumber, SessionId, ShardId, Time};
use stead_core::key::Key;
use stead_core::record::{DeadLetter, RecordKey};
use stead_core::records::Records;
use stead_core::shard::{DeadLetterAction, Input, Settings, StepOutcome};
use stead_core::state::{Misfit, State};

const ENTRY: usize = 1000;

fn world() -> World {
    World::with(Settings { entry_bytes_max: ENTRY, ..Settings::default() })
}

#[test]
fn a_call_that_is_too_large_for_an_entry_leaves_no_trace() {
    let mut world = world();
    world.call("a", "add x").unwrap();
    let index = world.shard("a").state().position().index;
    let refused = world.call("a", &format!("add {}", "y".repeat(ENTRY - 10)));
    let Err(Refusal::Misuse(Misuse::TooLarge { len, max: ENTRY })) = refused else { panic!("{refused:?}") };
    // The state, and the answer, which contains it too.
    assert!(len > 2 * (ENTRY - 10), "{len}");
    let refused = world.call("a", &format!("add {}", "y".repeat(ENTRY)));
    assert_eq!(refused, Err(Refusal::RequestTooLarge { len: ENTRY + 4, max: ENTRY }));
    let many = "send b add zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\n".repeat(22);
    assert!(matches!(world.call("a", &many), Err(Refusal::Misuse(Misuse::TooLarge { .. }))));
    assert_eq!(world.shard("a").state().position().index, index);
    assert_eq!((world.state("a").as_str(), world.state("b").as_str()), ("x", ""));
    assert_eq!(world.call("a", "add z"), Ok(ok("xz")));
}

#[test]
fn a_message_whose_effects_are_too_large_becomes_a_dead_letter_and_the_rest_goes_on() {
    let mut world = world();
    let other = world.key_elsewhere("a");
    // The state is answered as well, but the reply to a message is not kept: near the limit, then over it.
    let half = format!("add {}", "y".repeat(ENTRY / 2));
    for _ in 0..3 {
        world.call("a", &format!("send {other} {half}")).unwrap();
    }
    world.call("a", &format!("send {other} caller")).unwrap();
    world.settle();
    assert_eq!(world.state(&other), format!("{}a", "y".repeat(ENTRY / 2)));
    let shard = world.shard(&other).state();
    assert_eq!(shard.dead_letters(), 2);
    let (_, letter) = shard.records().iter().find(|(key, _)| key[0] == 8).unwrap();
    let letter: DeadLetter = stead_core::record::decode_value(letter).unwrap();
    assert!(letter.reason.contains("over the limit of 1000 bytes of one log entry"), "{}", letter.reason);
}

#[test]
fn a_long_panic_is_cut_before_it_is_kept() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.call("a", &format!("send {other} panic {}", "ö".repeat(3000))).unwrap();
    world.settle();
    let (_, letter) = world.letters(&other).remove(0);
    assert!((1020..=1024).contains(&letter.reason.len()), "{}", letter.reason.len());
}

#[test]
fn a_task_that_makes_more_than_fits_is_given_up_with_its_last_state() {
    let large = || Blob::from(vec![b'y'; ENTRY + 1]);
    for outcome in [StepOutcome::Done(large()), StepOutcome::Continue { state: large(), progress: 1 }] {
        let mut world = world();
        world.call("a", "task begin").unwrap();
        let (shard, id, task) = world.tasks.pop().unwrap();
        world.end_step(shard, id, task.step, outcome);
        world.settle();
        let (index, letter) = world.letters("a").remove(0);
        assert!(
            letter.reason.contains("the step made 1001 bytes, over the limit of 1000"),
            "{}",
            letter.reason
        );
        assert_eq!(&*letter.payload, b"begin");
        world.decided("a", index, DeadLetterAction::Retry).unwrap();
        assert_eq!(world.tasks.pop().unwrap(), (shard, id, task), "the same step from the same state");
    }
}

#[test]
fn no_entry_is_larger_than_the_log_takes_even_if_the_limit_was_higher_once() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let shard = world.shard_of("a");
    world.request("a", &format!("send {other} panic {}", "!".repeat(5000)), Identity::None);
    world.store(shard);
    world.settings.entry_bytes_max = ENTRY;
    world.restart();
    world.settle();
    let (index, letter) = world.letters(&other).remove(0);
    assert!(letter.payload.is_empty() && letter.reason.contains("its payload of 5006 bytes is dropped"));
    let refused = world.decided(&other, index, DeadLetterAction::Retry);
    assert!(matches!(refused, Err(Refusal::NoRetry { why: "its payload was too large to be kept", .. })));
    let mut bytes = Vec::new();
    world.log[&world.shard_of(&other)].iter().for_each(|entry| {
        bytes.clear();
        entry.encode_into(&mut bytes);
        assert!(bytes.len() < 4 * ENTRY, "{:?}", entry.cause);
    });
}

#[test]
fn sessions_that_end_with_many_replies_end_over_several_entries() {
    let mut world = world();
    let session = world.open("a", 1);
    for number in 1..=200 {
        let identity =
            Identity::Session { session, number: RequestNumber(number), confirmed: RequestNumber(0) };
        world.request("a", "add x", identity);
        world.settle();
    }
    assert!(world.shard("a").state().session(session).is_some());
    world.pass_span(world.settings.session_ttl.times(2));
    assert!(world.shard("a").state().session(session).is_none());
    let shard = world.shard_of("a");
    let expired = world.log[&shard].iter().filter(|entry| entry.cause == Cause::Expire);
    let lens: Vec<usize> = expired.map(|entry| entry.writes.len()).collect();
    assert!(lens.len() > 3 && lens.iter().sum::<usize>() == 201, "{lens:?}");
}

#[test]
fn a_session_that_is_half_forgotten_applies_nothing_again_7() {
    let mut world = world();
    let session = world.open("a", 1);
    let ask = |world: &mut World, number| {
        let number = RequestNumber(number);
        let token =
            world.request("a", "add x", Identity::Session { session, number, confirmed: RequestNumber(0) });
        world.settle();
        world.answer(token).unwrap().result.clone()
    };
    for number in 1..=200 {
        ask(&mut world, number).unwrap();
    }
    let runs = world.runs("a");
    // Exactly when it expires.
    world.give(world.shard_of("a"), Input::Tick);
    let expires = world.shard("a").state().session(session).unwrap().expires;
    world.now = world.now.plus(expires.since(world.shard("a").clock().served()));
    world.give(world.shard_of("a"), Input::Tick);
    assert_eq!(world.shard("a").clock().served(), expires);
    let state = world.shard("a").state();
    let first = RecordKey::reply(session, RequestNumber(1));
    assert!(state.session(session).is_some() && state.records().get(first.as_bytes()).is_none());
    let (shard, principal) = (world.shard_of("a"), "alice".into());
    world.give(shard, Input::OpenSession { token: CallToken(1_000), session, principal });
    assert_eq!(ask(&mut world, 1), Err(Refusal::UnknownSession(session)));
    assert_eq!(world.answer(CallToken(1_000)).unwrap().result, Err(Refusal::UnknownSession(session)));
    assert_eq!(ask(&mut world, 201), Err(Refusal::UnknownSession(session)));
    assert_eq!(world.runs("a"), runs);
}

#[test]
fn requests_that_wait_for_their_attempt_are_bounded_17() {
    let mut world = World::with(Settings { outbox_bytes_max: 100, ..Settings::default() });
    let session = world.open("a", 1);
    let ask = |world: &mut World, number| {
        let number = RequestNumber(number);
        let identity = Identity::Session { session, number, confirmed: RequestNumber(0) };
        world.request("a", &format!("add {}", "x".repeat(46)), identity)
    };
    world.restart();
    let shard = world.shard_of("a");
    world.store(shard);
    let refused =
        |world: &World, token| matches!(world.answer(token).unwrap().result, Err(Refusal::Overloaded { .. }));
    let first = ask(&mut world, 1);
    let again = ask(&mut world, 1);
    assert!(world.answer(first).is_none() && refused(&world, again));
    let more: Vec<CallToken> = (2..100).map(|number| ask(&mut world, number)).collect();
    assert_eq!(world.shard("a").waiting(), 3);
    assert!(more[2..].iter().all(|token| refused(&world, *token)));
    // One of them runs: there is room for one more.
    world.script.runs_max = Some(1);
    world.store(shard);
    assert_eq!((world.shard("a").waiting(), world.runs("a")), (2, 1));
    let (next, last) = (ask(&mut world, 100), ask(&mut world, 101));
    assert!(world.answer(next).is_none() && refused(&world, last));
    world.script.runs_max = None;
    world.settle();
    assert_eq!((world.shard("a").waiting(), world.runs("a")), (0, 4));
    let retry = ask(&mut world, 99);
    world.settle();
    assert!(world.answer(retry).unwrap().result.is_ok());
}

/// The shard checks after every input that its failures are no longer counted.
#[test]
fn a_task_that_is_cancelled_after_a_failed_step_leaves_nothing_17() {
    let mut world = World::new();
    world.call("a", "task 0").unwrap();
    let (shard, id, task) = world.tasks.pop().unwrap();
    world.end_step(shard, id, task.step, StepOutcome::Failed("in vain".into()));
    world.call("a", &format!("cancel {}", id.0)).unwrap();
    assert!(world.shard("a").state().tasks().is_empty());
}

#[test]
fn a_client_whose_session_can_not_be_opened_is_told_why_and_not_to_open_another() {
    let ask = |world: &mut World, session: u128| {
        let number = RequestNumber(1);
        let identity = Identity::Session { session: SessionId(session), number, confirmed: RequestNumber(0) };
        let token = world.request("a", "add x", identity);
        world.settle();
        world.answer(token).unwrap().result.clone()
    };
    let mut world = World::new();
    let known = world.open("a", 1);
    assert_eq!(ask(&mut world, 1), Ok(ok("x")));
    let shard = world.shard_of("a");
    world.give(shard, Input::Full(true));
    assert_eq!(ask(&mut world, 2), Err(Refusal::Full));
    assert_eq!(ask(&mut world, known.0), Ok(ok("x")), "a kept reply is returned");
    world.give(shard, Input::Full(false));
    assert_eq!(ask(&mut world, 2), Err(Refusal::UnknownSession(SessionId(2))));
}

#[test]
fn a_shard_number_from_outside_decides_no_allocation() {
    let mut state = State::new(ShardId(0));
    let far = ShardId(u32::MAX);
    let entry = Entry {
        index: Index(1),
        epoch: Epoch(1),
        time: Time(1),
        cause: Cause::Anonymous,
        process: Key::none(),
        writes: Vec::new(),
        sends: vec![Send { to: far, process: Key::none(), payload: Blob::empty() }],
        reply: None,
        served: None,
    };
    state.apply(entry).unwrap();
    assert_eq!(state.outboxes().get(far).unwrap().messages.len(), 1);
    let loaded = State::load(state.header(), Records::new()).unwrap();
    assert_eq!(loaded.outboxes().iter().map(|(to, _)| to).collect::<Vec<_>>(), [far]);
}

#[test]
fn a_reply_and_a_dead_letter_that_can_not_be_read_are_refused_when_they_are_loaded_or_replayed() {
    for key in [RecordKey::reply(SessionId(1), RequestNumber(1)), RecordKey::dead_letter(Index(1))] {
        let entry = Entry {
            index: Index(1),
            epoch: Epoch(1),
            time: Time(1),
            cause: Cause::Anonymous,
            process: Key::none(),
            writes: vec![Write { key: key.clone(), value: Some(Blob::from(b"\xff".as_slice())) }],
            sends: Vec::new(),
            reply: None,
            served: None,
        };
        let misfit = State::new(ShardId(0)).apply(entry).unwrap_err();
        assert!(matches!(&misfit, Misfit::Record { key: found, .. } if *found == key), "{misfit}");
        let mut records = Records::new();
        records.load(key.as_bytes(), Some(Blob::from(b"\xff".as_slice())));
        records.loaded();
        let misfit = State::load(State::new(ShardId(0)).header(), records).err().unwrap();
        assert!(matches!(&misfit, Misfit::Record { key: found, .. } if *found == key), "{misfit}");
    }
}

#[test]
fn answers_that_wait_for_the_log_have_a_bound_in_bytes_and_leave_with_it() {
    let settings = Settings { uncommitted_bytes_max: 3000, ..Settings::default() };
    let mut world = World::with(settings);
    let shard = world.shard_of("a");
    let session = world.open("a", 1);
    let identity = Identity::Session { session, number: RequestNumber(1), confirmed: RequestNumber(0) };
    let first = world.request("a", &format!("add {}", "x".repeat(1000)), identity.clone());
    assert!(world.answer(first).is_none());
    // Queries and retries append no entry: only their answers wait.
    let mut waiting = Vec::new();
    let refused = loop {
        let token =
            if waiting.len() % 2 == 0 { world.query("a") } else { world.request("a", "", identity.clone()) };
        if let Some(answer) = world.answer(token) {
            break answer.result.clone();
        }
        waiting.push(token);
        assert!(waiting.len() < 10, "{} bytes of answers", world.shard("a").answer_bytes());
    };
    assert!(matches!(refused, Err(Refusal::Overloaded { .. })), "{refused:?}");
    assert_eq!(waiting.len(), 2);
    let bytes = world.shard("a").answer_bytes() + world.shard("a").query_bytes();
    assert!((3000..4500).contains(&bytes), "{bytes}");
    world.store(shard);
    for token in waiting {
        assert_eq!(world.answer(token).unwrap().result, Ok(ok(&"x".repeat(1000))));
    }
    assert_eq!(world.shard("a").answer_bytes() + world.shard("a").query_bytes(), 0);
    let token = world.query("a");
    assert!(world.answer(token).unwrap().result.is_ok());
}

#[test]
fn a_crowded_shell_refuses_orders_about_dead_letters_and_deletions_as_well_as_requests() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.call("a", &format!("send {other} panic always")).unwrap();
    world.settle();
    let (index, _) = world.letters(&other).remove(0);
    let shard = world.shard_of(&other).0 as usize;
    let overloaded = |result| assert!(matches!(result, Err(Refusal::Overloaded { .. })), "{result:?}");
    world.shards[shard].set_crowded(true);
    for action in [DeadLetterAction::Retry, DeadLetterAction::Drop] {
        overloaded(world.decided(&other, index, action));
    }
    let (process, records) = (Key::new(&other).unwrap(), vec![RecordKey::process(&other)]);
    world.give(ShardId(shard as u32), Input::Delete { token: CallToken(4000), process, records });
    overloaded(world.answer(CallToken(4000)).unwrap().result.clone());
    world.shards[shard].set_crowded(false);
    world.decided(&other, index, DeadLetterAction::Drop).unwrap();
}

#[test]
fn outcomes_of_steps_that_wait_to_be_handled_are_counted() {
    let mut world = World::with(Settings { uncommitted_max: 1, ..Settings::default() });
    world.call("a", "task begin").unwrap();
    let (shard, id, task) = world.tasks.pop().unwrap();
    world.request("a", "add x", Identity::None);
    world.end_step(shard, id, task.step, StepOutcome::Done(Blob::from(b"add done".as_slice())));
    let outcome = StepOutcome::Done(Blob::from(b"add done".as_slice())).bytes();
    assert_eq!(world.shard("a").outcome_bytes(), outcome);
    world.settle();
    assert_eq!((world.shard("a").outcome_bytes(), world.state("a").as_str()), (0, "xdone"));
}

#[test]
fn a_suspected_request_that_is_refused_as_overload_leaves_no_attempt() {
    let mut world = World::new();
    world.restart();
    let shard = world.shard_of("a");
    world.store(shard);
    let token = world.request("a", "add x", Identity::None);
    assert_eq!(world.shard("a").state().attempts(), 1);
    world.shards[shard.0 as usize].set_crowded(true);
    world.settle();
    assert!(matches!(world.answer(token).unwrap().result, Err(Refusal::Overloaded { .. })));
    assert_eq!((world.shard("a").state().attempts(), world.runs("a")), (0, 0));
    world.shards[shard.0 as usize].set_crowded(false);
    assert_eq!(world.call("a", "add x"), Ok(ok("x")));
}
