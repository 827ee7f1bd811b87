//! Messages with a delay, and steps that are tried again later.

use crate::world::{World, ok};
use stead_core::entry::Cause;
use stead_core::ids::{Micros, StepNumber};
use stead_core::record::{Pending, RecordKey, TaskRecord};
use stead_core::shard::{DeadLetterAction, Settings, StepOutcome};

fn retry(after: Micros) -> StepOutcome {
    StepOutcome::Retry { after, reason: "no route".to_owned() }
}

#[test]
fn a_message_with_a_delay_leaves_once_over_restarts_and_can_be_cancelled() {
    let mut world = World::new();
    let (near, far) = ("a".to_owned(), world.key_elsewhere("a"));
    for to in [&near, &far] {
        world.call("a", &format!("later 500 {to} caller\nlater 900 {to} add !")).unwrap();
    }
    world.restart();
    world.settle();
    assert_eq!((world.state(&near), world.state(&far)), (String::new(), String::new()));
    world.pass(600);
    assert_eq!(
        (world.state(&near), world.state(&far)),
        ("a".to_owned(), "a".to_owned()),
        "it names its sender"
    );
    let waits: Vec<_> = world.shard("a").state().timers().iter().map(|(_, id)| id.0).collect();
    assert_eq!(waits.len(), 2);
    world.call("a", &format!("cancel {}", waits[0])).unwrap();
    world.pass(600);
    world.restart();
    world.pass(600);
    let mut ends = [world.state(&near), world.state(&far)];
    ends.sort();
    assert_eq!(ends, ["a", "a!"]);
    assert!(world.shard("a").state().timers().is_empty());
}

#[test]
fn the_sender_of_a_message_with_a_delay_is_never_suspected() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let far = world.key_elsewhere("a");
    let shard = world.shard_of("a");
    world.call("a", &format!("later 5 {far} add x")).unwrap();
    for _ in 0..3 {
        world.now = world.now.plus_millis(10);
        world.restart();
        world.store(shard);
        let attempts = |entry: &&stead_core::entry::Entry| matches!(entry.cause, Cause::Attempt);
        assert_eq!(world.log[&shard].iter().filter(attempts).count(), 0);
    }
    world.settle();
    assert_eq!(world.state(&far), "x");
    assert!(world.letters("a").is_empty());
}

#[test]
fn a_step_that_asks_for_it_is_tried_again_later_and_counted_over_restarts() {
    let mut world = World::new();
    world.call("a", "task 7").unwrap();
    let (shard, id, task) = world.tasks.pop().unwrap();
    assert_eq!(task.retry, None);
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(1)));
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(1)));
    world.settle();
    world.pass(500);
    assert!(world.tasks.is_empty(), "it waits");
    world.restart();
    world.settle();
    assert!(world.tasks.is_empty(), "it goes on waiting");
    world.pass(600);
    let (_, _, task) = world.tasks.pop().unwrap();
    let waited = task.retry.clone().unwrap();
    assert_eq!((task.step.0, waited.count, waited.reason.as_str()), (0, 1, "no route"));
    assert_eq!(&*task.state, b"7");
    // Its time has passed when the process starts again: it runs at once.
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(1)));
    world.settle();
    world.now = world.now.plus_millis(5_000);
    world.restart();
    world.settle();
    let (_, _, task) = world.tasks.pop().unwrap();
    assert_eq!(task.retry.as_ref().map(|retry| retry.count), Some(2));
    let outcome = StepOutcome::Continue { state: task.state, progress: 1 };
    world.end_step(shard, id, StepNumber(0), outcome);
    world.settle();
    let (_, _, task) = world.tasks.pop().unwrap();
    assert_eq!((task.step.0, task.retry), (1, None), "the next step begins without failures");
}

#[test]
fn a_step_that_is_given_up_can_be_retried_and_one_that_waits_can_be_cancelled() {
    let mut world = World::new();
    world.call("a", "task 7").unwrap();
    let (shard, id, _) = world.tasks.pop().unwrap();
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(1)));
    world.settle();
    world.pass(2_000);
    world.end_step(shard, id, StepNumber(0), StepOutcome::GivenUp("no route after 2 tries".to_owned()));
    world.settle();
    let (index, letter) = world.letters("a").pop().unwrap();
    assert_eq!(
        (letter.cause, letter.reason.as_str()),
        (Pending::Task { id, step: StepNumber(0) }, "no route after 2 tries")
    );
    world.tasks.clear();
    world.decided("a", index, DeadLetterAction::Retry).unwrap();
    let (_, _, task) = world.tasks.pop().unwrap();
    assert_eq!(task.retry, None, "it is counted from the beginning");
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(1)));
    world.settle();
    assert_eq!(world.call("a", &format!("cancel {}\nadd c", id.0)), Ok(ok("c")));
    assert_eq!(world.shard("a").state().record::<TaskRecord>(&RecordKey::task(id)), None);
    world.pass(10_000);
    assert!(world.tasks.is_empty());
}

#[test]
fn a_step_that_waits_to_be_tried_again_is_forgotten_with_its_task() {
    let mut world = World::new();
    world.call("a", "task 7").unwrap();
    let (shard, id, _) = world.tasks.pop().unwrap();
    world.end_step(shard, id, StepNumber(0), retry(Micros::from_secs(60)));
    world.settle();
    let wakes =
        |world: &World| world.shard("a").deadline().unwrap().since(world.now) <= Micros::from_secs(60);
    assert!(wakes(&world));
    world.call("a", &format!("cancel {}", id.0)).unwrap();
    world.settle();
    assert!(!wakes(&world), "nothing is left that waits");
}
