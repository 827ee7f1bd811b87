//! What the simulator found in the counting of attempts, in a few lines each.

use crate::world::World;
use stead_core::entry::Cause;
use stead_core::ids::{Colour, TaskId};
use stead_core::shard::{Identity, Input};

#[test]
fn a_message_is_given_up_only_after_the_marker_of_its_colour_9() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let (sender, receiver) = (world.shard_of("a"), world.shard_of(&other));
    world.give(sender, Input::Colour(Colour(1)));
    world.request("a", &format!("send {other} add poison"), Identity::None);
    world.store(sender);
    for _ in 0..=world.settings.attempts_max {
        // The process ends while it handles the message: only the attempt is stored.
        world.restart();
        for shard in world.topology.clone().shards() {
            world.store(shard);
        }
        let (to, input) = world.wire.pop_front().unwrap();
        world.give(to, input);
    }
    let marker = Cause::Marker { colour: Colour(1) };
    let causes: Vec<_> = world.log[&receiver].iter().map(|entry| &entry.cause).collect();
    let [.., before, given_up] = causes[..] else { panic!("{causes:?}") };
    assert!(matches!(given_up, Cause::DeadLetter { .. }) && *before == marker, "{causes:?}");
}

#[test]
fn the_attempts_at_a_task_that_is_cancelled_are_forgotten_17() {
    let mut world = World::new();
    world.call("a", "task 0").unwrap();
    let (_, TaskId(id), _) = world.tasks.pop().unwrap();
    world.restart();
    world.settle();
    assert_eq!(world.shard("a").state().attempts(), 1, "it may be what ended the process");
    world.call("a", &format!("cancel {id}")).unwrap();
    assert_eq!(world.shard("a").state().attempts(), 0);
}

#[test]
fn the_attempts_at_a_timer_that_is_cancelled_are_forgotten_17() {
    let mut world = World::new();
    world.call("a", "timer 500 add t").unwrap();
    let id = world.shard("a").state().timers().first().unwrap().1;
    world.now = world.now.plus_millis(600);
    world.restart();
    let shard = world.shard_of("a");
    // The start is stored, and the attempt is made; while that is not stored the timer does not fire.
    world.store(shard);
    assert_eq!(world.log[&shard].last().unwrap().cause, Cause::Attempt);
    world.request("a", &format!("cancel {}", id.0), Identity::None);
    world.settle();
    assert_eq!((world.state("a").as_str(), world.shard("a").state().attempts()), ("", 0));
}
