//! An operator's decisions on dead letters.

use crate::world::{World, ok};
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Refusal};
use stead_core::entry::Cause;
use stead_core::ids::{Index, RequestNumber, StepNumber, StepRun};
use stead_core::record::{DeadLetter, Kind, Pending, Retry, decode_value, encode_value};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, Input, Settings, StepOutcome};

/// Returns a world whose broken handlers have made a dead letter of `payload`, sent to the process that is returned;
/// then the handlers are corrected.
fn with_dead_message(payload: &str) -> (World, String, Index) {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    world.request("a", &format!("send {other} {payload}"), Identity::None);
    world.store(world.shard_of("a"));
    world.script.broken = true;
    world.settle();
    world.script.broken = false;
    let (index, letter) = world.letters(&other).remove(0);
    assert_eq!(
        (letter.reason.as_str(), &*letter.payload),
        ("the handler panicked: broken", payload.as_bytes())
    );
    (world, other, index)
}

#[test]
fn a_retried_message_is_handled_once_and_by_the_entry_that_removes_the_dead_letter_7() {
    let (mut world, other, index) = with_dead_message("caller");
    let token = world.decide(&other, index, DeadLetterAction::Retry);
    assert_eq!((world.state(&other).as_str(), world.answer(token)), ("a", None), "not committed yet");
    // Lost before it was stored: the retry never happened.
    let shard = world.shard_of(&other);
    world.crash_before(shard, 1);
    world.settle();
    assert_eq!((world.state(&other).as_str(), world.letters(&other).len()), ("", 1));
    assert_eq!(world.decided(&other, index, DeadLetterAction::Retry), Ok(ok("a")));
    let entry = world.log[&shard].last().unwrap();
    assert_eq!((&entry.cause, &entry.reply), (&Cause::Retry { letter: index }, &None));
    for _ in 0..2 {
        assert_eq!(world.decided(&other, index, DeadLetterAction::Retry), Err(Refusal::NoDeadLetter(index)));
        world.restart();
        world.settle();
        assert_eq!((world.state(&other).as_str(), world.letters(&other).len()), ("a", 0));
    }
}

#[test]
fn two_retries_at_once_handle_it_once() {
    let (mut world, other, index) = with_dead_message("add y");
    let tokens = [DeadLetterAction::Retry, DeadLetterAction::Retry, DeadLetterAction::Drop]
        .map(|action| world.decide(&other, index, action));
    world.settle();
    assert_eq!(world.answer(tokens[0]).unwrap().result, Ok(ok("y")));
    for token in &tokens[1..] {
        assert_eq!(world.answer(*token).unwrap().result, Err(Refusal::NoDeadLetter(index)));
    }
    assert_eq!(world.state(&other), "y");
}

#[test]
fn a_retry_that_fails_again_stays_a_dead_letter_with_the_new_reason() {
    let (mut world, other, index) = with_dead_message("panic still");
    let runs = world.runs(&other);
    world.now = world.now.plus_millis(1000);
    let refused = world.decided(&other, index, DeadLetterAction::Retry);
    let reason = "the handler panicked: still".to_owned();
    assert_eq!(refused, Err(Refusal::FailedAgain { letter: index, reason: reason.clone() }));
    assert_eq!(world.runs(&other), runs + world.settings.attempts_max as usize);
    world.restart();
    world.settle();
    let letters = world.letters(&other);
    assert_eq!((letters.len(), letters[0].0, &letters[0].1.reason), (1, index, &reason));
    assert!(matches!(letters[0].1.cause, Pending::Message { .. }), "it is unchanged");
    assert_eq!(world.shard(&other).state().dead_letters(), 1);
}

#[test]
fn an_error_that_a_retried_handler_returns_is_an_answer_and_ends_it() {
    let (mut world, other, index) = with_dead_message("fail no money");
    let error = Reply::Err(Blob::from(b"no money".as_slice()));
    assert_eq!(world.decided(&other, index, DeadLetterAction::Retry), Ok(error));
    assert_eq!((world.state(&other).as_str(), world.letters(&other).len()), ("", 0));
}

#[test]
fn a_dropped_dead_letter_is_gone_for_good() {
    let (mut world, other, index) = with_dead_message("add y");
    assert_eq!(world.decided(&other, index, DeadLetterAction::Drop), Ok(ok("")));
    assert_eq!(world.log[&world.shard_of(&other)].last().unwrap().cause, Cause::Drop { letter: index });
    world.restart();
    world.settle();
    assert_eq!((world.state(&other).as_str(), world.letters(&other).len()), ("", 0));
    assert_eq!(world.decided(&other, index, DeadLetterAction::Drop), Err(Refusal::NoDeadLetter(index)));
}

#[test]
fn a_retried_timer_fires_as_the_timer_that_it_was() {
    let mut world = World::new();
    world.call("a", "timer 500 caller").unwrap();
    world.script.broken = true;
    world.pass(600);
    world.script.broken = false;
    let (index, letter) = world.letters("a").remove(0);
    assert!(matches!(letter.cause, Pending::Timer { .. }));
    assert_eq!(world.decided("a", index, DeadLetterAction::Retry), Ok(ok("timer")));
    world.restart();
    world.pass(10_000);
    assert_eq!(world.state("a"), "timer");
}

#[test]
fn a_retried_task_goes_on_with_the_step_that_failed_and_its_result_with_the_handler() {
    let mut world = World::new();
    world.call("a", "task 7").unwrap();
    let (shard, id, _) = world.tasks.pop().unwrap();
    let outcome = StepOutcome::Continue { state: Blob::from(b"8".as_slice()), progress: 5 };
    world.end_step(shard, id, StepNumber(0), outcome);
    world.settle();
    for _ in 0..world.settings.attempts_max {
        let (_, _, task) = world.tasks.pop().unwrap();
        assert_eq!((task.step.0, &*task.state, task.progress), (1, b"8".as_slice(), 5));
        let outcome = StepOutcome::Failed("no".to_owned());
        world.end_step(shard, id, StepNumber(1), outcome);
        world.settle();
    }
    let (index, _) = world.letters("a").remove(0);
    assert!(world.tasks.is_empty() && world.shard("a").state().tasks().is_empty());
    assert_eq!(world.decided("a", index, DeadLetterAction::Retry), Ok(ok("")));
    let (_, again, task) = world.tasks.pop().unwrap();
    assert_eq!((again, task.step.0, &*task.state, task.name.as_str()), (id, 1, b"8".as_slice(), "count"));

    world.script.broken = true;
    let outcome = StepOutcome::Done(Blob::from(b"caller\nadd !".as_slice()));
    world.end_step(shard, id, StepNumber(1), outcome);
    world.settle();
    world.script.broken = false;
    let (index, letter) = world.letters("a").remove(0);
    assert_eq!(letter.retry, Some(Retry::Result));
    assert_eq!(world.decided("a", index, DeadLetterAction::Retry), Ok(ok("task!")));
    world.restart();
    world.settle();
    assert!(world.tasks.is_empty() && world.letters("a").is_empty());
}

#[test]
fn a_request_that_was_given_up_can_only_be_dropped_and_its_client_is_still_refused_7() {
    let mut world = World::new();
    let session = world.open("a", 9);
    let identity = || Identity::Session { session, number: RequestNumber(1), confirmed: RequestNumber(0) };
    for _ in 0..world.settings.attempts_max + 2 {
        world.restart();
        world.store_all();
        world.request("a", "add poison", identity());
    }
    world.settle();
    let (index, _) = world.letters("a").remove(0);
    assert!(matches!(world.decided("a", index, DeadLetterAction::Retry), Err(Refusal::NoRetry { .. })));
    assert_eq!(world.decided("a", index, DeadLetterAction::Drop), Ok(ok("")));
    let token = world.request("a", "add poison", identity());
    world.settle();
    assert!(matches!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { .. })));
    assert_eq!((world.runs("a"), world.letters("a").len()), (0, 0));
}

#[test]
fn a_shard_that_does_not_serve_or_has_no_room_takes_no_orders() {
    let (mut world, other, index) = with_dead_message("add y");
    let shard = world.shard_of(&other);
    world.give(shard, Input::Full(true));
    for action in [DeadLetterAction::Retry, DeadLetterAction::Drop] {
        assert_eq!(world.decided(&other, index, action), Err(Refusal::Full));
    }
    world.restart();
    let token = world.decide(&other, index, DeadLetterAction::Drop);
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::NotReady));
    world.settle();
    assert_eq!(world.letters(&other).len(), 1);
}

/// Older versions kept less: a message and a timer can be retried, a task cannot.
#[test]
fn dead_letters_of_an_older_version_are_read_and_retried_as_far_as_they_go() {
    let (mut world, other, index) = with_dead_message("caller");
    for write in world.log.values_mut().flatten().flat_map(|entry| &mut entry.writes) {
        if write.key.kind() == Kind::DeadLetter {
            let letter: DeadLetter = decode_value(write.value.as_ref().unwrap()).unwrap();
            let older = encode_value(&DeadLetter { retry: None, ..letter });
            assert_eq!(older[0], 0x86, "an array of six, as it was before there was a seventh");
            write.value = Some(older);
        }
    }
    world.restart();
    world.settle();
    assert_eq!(world.letters(&other)[0].1.retry, None);
    assert_eq!(world.decided(&other, index, DeadLetterAction::Retry), Ok(ok("a")));
}

/// An outcome from before its step was given up must neither count as a failure of the retried step nor run it before
/// its entry is committed: the simulator's seed 15510926725957.
#[test]
fn an_outcome_from_before_the_burial_does_nothing_to_the_retried_step_5() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    world.call("a", "task 0").unwrap();
    let (shard, id, task) = world.tasks.pop().unwrap();
    let late = || Input::TaskStep {
        id,
        step: task.step,
        run: StepRun(1),
        outcome: StepOutcome::Failed("in vain".into()),
    };
    world.give(shard, late());
    world.settle();
    let index = world.letters("a")[0].0;
    world.decide("a", index, DeadLetterAction::Retry);
    world.give(shard, late());
    assert!(world.tasks.is_empty(), "the retry is not committed yet");
    world.settle();
    world.give(shard, late());
    assert_eq!((world.tasks.len(), world.letters("a").len()), (1, 0));
}
