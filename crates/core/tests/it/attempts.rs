//! Faults in the counting of attempts that the simulator found, in a few lines each.

use crate::numbered;
use crate::world::World;
use stead_core::calls::{Identity, Refusal};
use stead_core::entry::Cause;
use stead_core::ids::{CallToken, Colour, Micros, RequestNumber, TaskId};
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, Input, Settings, StepOutcome};

#[test]
fn a_message_is_given_up_only_after_the_marker_of_its_colour_9() {
    let mut world = World::new();
    let other = world.key_elsewhere("a");
    let (sender, receiver) = (world.shard_of("a"), world.shard_of(&other));
    world.give(sender, Input::Colour(Colour(1)));
    world.request("a", &format!("send {other} add poison"), Identity::None);
    world.store(sender);
    for _ in 0..world.settings.attempts_max + 2 {
        // The process ends while it handles the message: only the attempt is stored.
        world.restart_to_first_message();
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
    // The request that cancels it must not wait behind it.
    let mut world = World::with(Settings { suspect_for: Micros(0), ..Settings::default() });
    world.call("a", "timer 500 add t").unwrap();
    let id = world.shard("a").state().timers().first().unwrap().1;
    world.now = world.now.plus_millis(600);
    world.restart();
    let shard = world.shard_of("a");
    // The start is stored, and the attempt is appended; until it is stored the timer does not fire.
    world.store(shard);
    assert_eq!(world.log[&shard].last().unwrap().cause, Cause::Attempt);
    world.request("a", &format!("cancel {}", id.0), Identity::None);
    world.settle();
    assert_eq!((world.state("a").as_str(), world.shard("a").state().attempts()), ("", 0));
}

/// Returns a key on each shard, the given one first.
fn keys(world: &World, first: &str) -> Vec<String> {
    let mut keys = vec![first.to_owned()];
    let mut names = (0..).map(|i| format!("k{i}"));
    while keys.len() < crate::world::SHARDS as usize {
        let name = names.next().unwrap();
        if keys.iter().all(|key| world.shard_of(key) != world.shard_of(&name)) {
            keys.push(name);
        }
    }
    keys
}

#[test]
fn nothing_but_what_ends_the_process_is_given_up_beside_messages_on_all_shards() {
    for attempts_max in 1..4 {
        let mut world = World::with(Settings { attempts_max, ..Settings::default() });
        let keys = keys(&world, "a");
        let mut sends: Vec<String> =
            keys.iter().flat_map(|key| vec![format!("send {key} add x"); 3]).collect();
        sends.insert(4, format!("send {} die", keys[1]));
        world.request("a", &sends.join("\n"), Identity::None);
        world.settle();
        assert_eq!(world.deaths, attempts_max + 2, "once unsuspected, once in a group, and then alone");
        for key in &keys {
            assert_eq!(world.state(key), "xxx", "{key}");
        }
        let letters: Vec<_> = keys.iter().flat_map(|key| world.letters(key)).collect();
        let [(_, letter)] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((&*letter.payload, &*letter.process), (b"die".as_slice(), &*keys[1]));
        assert!(keys.iter().all(|key| world.shard(key).state().attempts() == 0));
    }
}

#[test]
fn deaths_from_outside_give_up_no_message() {
    let mut world = World::with(Settings { attempts_max: 2, ..Settings::default() });
    let keys = keys(&world, "a");
    let sends: Vec<String> = keys.iter().flat_map(|key| vec![format!("send {key} add x"); 50]).collect();
    world.request("a", &sends.join("\n"), Identity::None);
    world.store(world.shard_of("a"));
    // Each life ends a little later than the previous one, whatever it is doing then.
    for steps in 0..60 {
        world.crash();
        for _ in 0..steps {
            world.store_all();
            if let Some((to, input)) = world.wire.pop_front() {
                world.give(to, input);
            }
        }
    }
    world.settle();
    for key in &keys {
        assert_eq!((world.state(key).len(), world.letters(key).len()), (50, 0), "{key}");
    }
}

#[test]
fn a_task_is_charged_when_its_step_begins_and_nothing_else_does() {
    const TASKS: usize = 20;
    let settings = Settings { attempts_max: 2, ..Settings::default() };
    let mut world = World::with(settings.clone());
    world.call("a", &["task 0"; TASKS].join("\n")).unwrap();
    world.settle();
    // All of them run when the process ends, twice: then they are tried one after the other.
    world.crash();
    world.settle();
    assert_eq!(
        world.tasks.len(),
        TASKS,
        "they continue at once, because none was running when the process ended"
    );
    assert_eq!(world.alone, 0);
    let until = world.now.plus(settings.suspect_for);
    world.crash();
    world.settle();
    assert_eq!(world.tasks.len(), 0, "suspected requests come first");
    assert_eq!(world.shard("a").deadline(), Some(until), "the shard wants a tick for them");
    world.give(world.shard_of("a"), Input::Full(true));
    assert!(world.shard("a").deadline().is_none_or(|at| at > until), "but not while it cannot log one");
    world.give(world.shard_of("a"), Input::Full(false));
    world.pass_span(settings.suspect_for);
    for _ in 0..TASKS {
        // An end from outside: each step is met once, alone.
        assert_eq!(world.tasks.len(), 1);
        world.crash();
        world.settle();
        world.pass_span(settings.suspect_for);
        let (shard, id, task) = world.tasks.remove(0);
        world.end_step(shard, id, task.step, StepOutcome::Done(b"add x".as_slice().into()));
        world.settle();
    }
    assert_eq!((world.state("a").len(), world.letters("a").len()), (TASKS, 0));
    assert_eq!(world.shard("a").state().attempts(), 0);
    assert_eq!(world.alone, 2 * TASKS);
}

#[test]
fn a_step_that_ends_the_process_is_given_up_and_no_other() {
    let settings = Settings { attempts_max: 2, ..Settings::default() };
    let mut world = World::with(settings.clone());
    world.call("a", "task 0\ntask 0\ntask 0").unwrap();
    world.settle();
    let poison = world.tasks[1].1;
    let mut deaths = 0;
    while !world.shard("a").state().tasks().is_empty() {
        world.settle();
        if let Some(at) = world.tasks.iter().position(|(_, id, _)| *id == poison) {
            world.tasks.remove(at);
            deaths += 1;
            world.crash();
        } else if let Some((shard, id, task)) = world.tasks.pop() {
            world.end_step(shard, id, task.step, StepOutcome::Done(b"add x".as_slice().into()));
        } else {
            world.pass_span(settings.suspect_for);
        }
        assert!(deaths < 10);
    }
    assert_eq!((deaths, world.state("a").as_str(), world.letters("a").len()), (4, "xx", 1));
}

#[test]
fn a_call_without_identity_that_ends_the_process_is_given_up_until_its_dead_letter_is_dropped() {
    let mut world = World::with(Settings { attempts_max: 2, ..Settings::default() });
    let call = |world: &mut World| {
        let token = world.request("a", "die", Identity::None);
        world.settle();
        world.answer(token).map(|answer| answer.result.clone())
    };
    for _ in 0..4 {
        assert_eq!(call(&mut world), None, "the process ended");
    }
    assert_eq!(call(&mut world), Some(Err(Refusal::Poisoned { attempts: 2 })));
    assert_eq!((world.deaths, world.letters("a").len()), (4, 1));
    assert_eq!(world.call("a", "add x"), Ok(Reply::Ok(b"x".as_slice().into())));
    let (index, _) = world.letters("a").remove(0);
    assert!(matches!(world.decided("a", index, DeadLetterAction::Retry), Err(Refusal::NoRetry { .. })));
    assert!(world.decided("a", index, DeadLetterAction::Drop).is_ok());
    assert_eq!(call(&mut world), None, "a client may send it again once the handler is corrected");
    assert_eq!(world.deaths, 5);
}

#[test]
fn a_request_that_is_sent_for_the_first_time_is_suspected_only_once_it_has_begun() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let session = world.open("a", 9);
    let at = |number| numbered(session, number, 0);
    world.crash();
    world.store_all();
    let attempts =
        |world: &World| world.log.values().flatten().filter(|entry| entry.cause == Cause::Attempt).count();
    world.request_first("a", "add x", at(1));
    assert_eq!((world.state("a").as_str(), attempts(&world)), ("x", 0), "it waits for nothing");
    world.request("a", "add y", at(2));
    world.settle();
    assert_eq!((world.state("a").as_str(), attempts(&world)), ("xy", 1));

    // Unsuspected, in a group, and then alone, whatever it says.
    for (deaths, is_first) in [(1, true), (2, false), (3, true)] {
        if is_first {
            world.request_first("a", "die", at(3));
        } else {
            world.request("a", "die", at(3));
        }
        world.settle();
        assert_eq!(world.deaths, deaths);
    }
    let token = world.request_first("a", "die", at(3));
    world.settle();
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { attempts: 1 }));
}

#[test]
fn a_request_that_was_only_near_is_never_refused_for_it() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let session = world.open("a", 9);
    let near = Identity::Session { session, number: RequestNumber(1), confirmed: RequestNumber(0) };
    for _ in 0..3 {
        world.crash();
        world.store_all();
        // Both wait for their attempts; then the process ends of the second.
        world.request("a", "add x", near.clone());
        world.request("a", "die", Identity::None);
        world.settle();
    }
    let token = world.request("a", "add x", near);
    world.settle();
    assert!(world.answer(token).unwrap().result.is_ok());
    assert_eq!(world.state("a"), "x");
}

#[test]
fn a_turn_that_comes_too_late_is_given_back() {
    let mut world = World::with(Settings { suspect_for: Micros::from_secs(1), ..Settings::default() });
    let keys = keys(&world, "a");
    // Both requests run when the process ends.
    for _ in 0..2 {
        world.crash();
        world.store_all();
        for key in &keys[..2] {
            world.request(key, "die", Identity::None);
        }
        world.settle();
    }
    world.store_all();
    // The first has the turn; the second waits for it, and then an equal dead letter is handled another way.
    world.script.mended = true;
    let tokens: Vec<CallToken> =
        keys[..2].iter().map(|key| world.request(key, "die", Identity::None)).collect();
    world.now = world.now.plus_millis(2000);
    world.settle();
    assert!(tokens.iter().all(|token| world.answer(*token).is_some()));
    // A third shard still gets its turn.
    let last = world.request(&keys[2], "add x", Identity::None);
    world.settle();
    assert!(world.answer(last).is_some());
}

#[test]
fn a_met_timer_is_tried_though_many_that_were_not_are_due_before_it() {
    let settings = Settings { work_max: 4, ..Settings::default() };
    let mut world = World::with(settings);
    world.call("a", "timer 500 add last").unwrap();
    world.pass(600);
    world.settle();
    assert_eq!(world.state("a"), "last");
    world.call("a", "timer 500 die").unwrap();
    world.call("a", &["timer 400 add x"; 9].join("\n")).unwrap();
    world.now = world.now.plus_millis(600);
    for _ in 0..8 {
        world.crash();
        world.settle();
    }
    world.script.mended = true;
    world.crash();
    world.settle();
    assert_eq!(world.state("a").matches('x').count(), 9);
    assert_eq!(world.shard("a").state().attempts(), 0);
}

#[test]
fn a_query_waits_while_something_is_tried() {
    let mut world = World::new();
    let keys = keys(&world, "a");
    world.request("a", &format!("send {} die", keys[1]), Identity::None);
    world.store(world.shard_of("a"));
    for _ in 0..2 {
        world.restart_to_first_message();
    }
    let token = world.query(&keys[2]);
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::NotReady));
    world.script.mended = true;
    world.settle();
    let token = world.query(&keys[2]);
    world.settle();
    assert!(world.answer(token).unwrap().result.is_ok());
}

#[test]
fn a_request_that_was_met_is_tried_alone_however_late_it_comes_again() {
    let settings = Settings { attempts_max: 2, suspect_for: Micros::from_secs(1), ..Settings::default() };
    let mut world = World::with(settings);
    world.crash();
    world.settle();
    for _ in 0..5 {
        world.request("a", "die", Identity::None);
        world.settle();
        world.pass(5000);
    }
    let token = world.request("a", "die", Identity::None);
    world.settle();
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { attempts: 2 }));
}

#[test]
fn a_step_that_fails_before_it_ends_the_process_is_given_up() {
    let settings = Settings { attempts_max: 2, ..Settings::default() };
    let mut world = World::with(settings.clone());
    world.call("a", "task 0").unwrap();
    world.settle();
    let mut deaths = 0;
    while !world.shard("a").state().tasks().is_empty() {
        world.settle();
        world.pass_span(settings.suspect_for);
        let Some((shard, id, task)) = world.tasks.pop() else { continue };
        world.end_step(shard, id, task.step, StepOutcome::Failed("once".into()));
        world.settle();
        deaths += 1;
        assert!(deaths < 10);
        world.crash();
    }
    assert_eq!((deaths, world.letters("a").len()), (4, 1));
    assert_eq!(world.alone, 4, "in two lives it was tried, and again in the same turn");
}

#[test]
fn a_life_that_ends_in_order_forgives() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let keys = keys(&world, "a");
    world.request("a", &format!("send {} die", keys[1]), Identity::None);
    // Without a request the process ends only because of the message: unsuspected, then in a group.
    world.store(world.shard_of("a"));
    for _ in 0..2 {
        world.restart_to_first_message();
    }
    assert_eq!(world.shard(&keys[1]).state().attempts(), 1);
    world.is_clean = true;
    world.script.mended = true;
    world.restart();
    world.settle();
    assert_eq!(world.shard(&keys[1]).state().attempts(), 0);
    assert_eq!(world.letters(&keys[1]).len(), 0);
}

#[test]
fn a_step_lets_a_handler_be_tried_and_is_not_charged_for_it() {
    let settings = Settings { attempts_max: 1, suspect_for: Micros::from_secs(1), ..Settings::default() };
    let mut world = World::with(settings.clone());
    let keys = keys(&world, "a");
    world.call("a", "task 0").unwrap();
    world.settle();
    for _ in 0..2 {
        world.crash();
        world.settle();
        // The request ends the process once unsuspected, and once in a group.
        world.request(&keys[1], "die", Identity::None);
        world.settle();
    }
    world.pass_span(settings.suspect_for);
    assert_eq!(world.tasks.len(), 1, "the step is tried alone");
    // It comes again while the step runs, and is tried alone.
    world.request(&keys[1], "die", Identity::None);
    world.settle();
    let token = world.request(&keys[1], "die", Identity::None);
    world.settle();
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { attempts: 1 }));
    world.pass_span(settings.suspect_for);
    assert_eq!((world.letters("a").len(), world.tasks.len()), (0, 1), "the step only ran beside it");
}

#[test]
fn deaths_from_outside_that_meet_the_first_step_of_each_life_give_up_none() {
    let settings = Settings { attempts_max: 3, ..Settings::default() };
    let mut world = World::with(settings.clone());
    world.call("a", "task 0\ntask 0\ntask 0\ntask 0").unwrap();
    world.settle();
    for _ in 0..2 {
        world.crash();
        world.settle();
    }
    for _ in 0..8 {
        world.pass_span(settings.suspect_for);
        assert_eq!((world.tasks.len(), world.letters("a").len()), (1, 0));
        world.crash();
        world.settle();
    }
}

#[test]
fn a_request_that_was_given_up_stays_so_whatever_the_limit_is_later() {
    let mut world = World::with(Settings { attempts_max: 1, ..Settings::default() });
    let session = world.open("a", 9);
    let ask = |world: &mut World| {
        let token = world.request("a", "die", numbered(session, 1, 0));
        world.settle();
        world.answer(token).map(|answer| answer.result.clone())
    };
    while ask(&mut world) != Some(Err(Refusal::Poisoned { attempts: 1 })) {}
    assert_eq!(world.letters("a").len(), 1);
    world.settings.attempts_max = 9;
    world.script.mended = true;
    for is_clean in [false, true] {
        world.is_clean = is_clean;
        world.restart();
        world.settle();
        assert_eq!(ask(&mut world), Some(Err(Refusal::Poisoned { attempts: 9 })));
    }
    assert_eq!(world.state("a"), "");
}

#[test]
fn a_request_that_was_not_given_up_is_not_refused_for_a_lower_limit() {
    let mut world = World::with(Settings { attempts_max: 4, ..Settings::default() });
    let session = world.open("a", 9);
    for _ in 0..5 {
        world.request("a", "die", numbered(session, 1, 0));
        world.settle();
    }
    assert_eq!(world.letters("a").len(), 0);
    world.settings.attempts_max = 2;
    world.restart();
    world.settle();
    let token = world.request("a", "die", numbered(session, 1, 0));
    world.settle();
    assert_eq!(world.answer(token).unwrap().result, Err(Refusal::Poisoned { attempts: 2 }));
    assert_eq!(world.letters("a").len(), 1, "giving it up refuses it");
}

#[test]
fn a_timer_that_ends_the_process_before_the_clock_is_believed_is_given_up() {
    const HOUR: u64 = 3_600_000;
    for (down, wall_ahead) in [(3 * HOUR, 0), (0, -(3 * HOUR as i64))] {
        let mut world = World::with(Settings { attempts_max: 2, ..Settings::default() });
        world.call("a", "timer 300000 die\ntimer 300001 add x").unwrap();
        // After a long downtime, or with a clock that was set back, no life begins after the time of the timer.
        world.now = world.now.plus_millis(down);
        world.wall_ahead = wall_ahead;
        world.restart();
        world.settle();
        for _ in 0..200 {
            world.pass(10_000);
        }
        assert_eq!((world.deaths, world.letters("a").len(), world.state("a").as_str()), (3, 1, "x"));
    }
}

#[test]
fn a_life_that_ends_in_order_forgives_what_began_before_it() {
    let mut world = World::new();
    world.restart();
    world.store(world.shard_of("a"));
    // The process ends when the request has begun, and its client never repeats it.
    world.request("a", "add x", Identity::None);
    world.is_clean = true;
    world.restart();
    assert_eq!(world.shard("a").state().attempts(), 1);
    world.settle();
    assert_eq!(world.shard("a").state().attempts(), 0);
}

#[test]
fn the_entry_of_a_suspected_request_removes_its_attempt() {
    let mut world = World::new();
    let session = world.open("a", 1);
    world.restart();
    world.settle();
    world.request("a", "add x", numbered(session, 1, 0));
    world.settle();
    let causes = world.log[&world.shard_of("a")].iter().rev().map(|entry| &entry.cause).take(2);
    assert!(matches!(*causes.collect::<Vec<_>>(), [Cause::Request { .. }, Cause::Attempt]));
    assert_eq!(world.shard("a").state().attempts(), 0);
}
