//! The desk of steps, and a part that takes them from it.

use super::queue::{Next, StepDesk};
use super::{Step, StepPart};
use crate::inbox::Command;
use crate::part::{Part, Turned};
use crate::roster::PartId;
use crate::shared::tests::shared_with;
use crate::watchdog::Probe;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::ids::{ShardId, StepNumber, StepRun, TaskId, Time};
use stead_core::key::Key;
use stead_core::record::TaskRecord;
use stead_core::shard::{Input, StepOutcome};

fn step(id: u64, asks: bool, alone: bool) -> Step {
    let task = TaskRecord {
        process: Key::none(),
        name: "task".into(),
        step: StepNumber(0),
        state: Blob::empty(),
        progress: 0,
        retry: None,
    };
    Step { shard: ShardId(0), id: TaskId(id), run: StepRun(1), task, asks, alone }
}

/// The task of the step that a part takes.
fn take(desk: &mut StepDesk, part: usize, is_crowded: bool) -> Option<u64> {
    match desk.next(part, is_crowded) {
        Next::Take(step) => Some(step.id.0),
        _ => None,
    }
}

#[test]
fn without_memory_only_a_step_that_is_tried_alone_begins_however_many_wait() {
    let mut desk = StepDesk::default();
    for (id, alone) in [(1, false), (2, false), (3, true)] {
        desk.push(step(id, true, alone));
    }
    assert_eq!(take(&mut desk, 0, true), Some(3));
    assert!(matches!(desk.next(1, true), Next::Crowded));
    assert_eq!(take(&mut desk, 1, false), Some(1));
    assert_eq!(take(&mut desk, 2, false), Some(2));
    assert!(matches!(desk.next(3, false), Next::Sleep));
}

#[test]
fn a_step_that_comes_wakes_one_part_that_has_none() {
    let mut desk = StepDesk::default();
    assert_eq!(desk.push(step(1, false, false)), None, "no part has looked yet");
    assert_eq!(take(&mut desk, 0, false), Some(1));
    assert!(matches!(desk.next(1, false), Next::Sleep));
    assert!(matches!(desk.next(2, false), Next::Sleep));
    assert_eq!(desk.push(step(2, false, false)), Some(1));
    assert_eq!(desk.push(step(3, false, false)), Some(2));
    assert_eq!(desk.push(step(4, false, false)), None, "all have something to do");
    assert_eq!([1, 2, 0].map(|part| take(&mut desk, part, false)), [Some(2), Some(3), Some(4)]);
}

/// A part that looks for another reason may take the step for which one that sleeps was rung.
#[test]
fn a_part_that_has_taken_a_step_takes_no_ring_from_one_that_sleeps() {
    let mut desk = StepDesk::default();
    for part in [1, 2] {
        assert!(matches!(desk.next(part, false), Next::Sleep));
    }
    assert_eq!(desk.push(step(1, false, false)), Some(1));
    assert_eq!(take(&mut desk, 2, false), Some(1));
    assert!(matches!(desk.next(1, false), Next::Sleep));
    assert_eq!(desk.push(step(2, false, false)), Some(1));
    assert_eq!(take(&mut desk, 1, false), Some(2));
    assert_eq!(desk.push(step(3, false, false)), None, "both are busy");
}

#[test]
fn a_part_that_waits_for_memory_takes_no_ring_from_one_that_sleeps() {
    let mut desk = StepDesk::default();
    assert!(matches!(desk.next(0, false), Next::Sleep));
    assert!(matches!(desk.next(1, false), Next::Sleep));
    assert_eq!(desk.push(step(1, false, false)), Some(0));
    assert!(matches!(desk.next(0, true), Next::Crowded));
    assert_eq!(desk.push(step(2, false, false)), Some(1));
}

#[test]
fn an_answer_goes_to_the_part_that_asked_and_to_no_other_run() {
    let mut desk = StepDesk::default();
    desk.push(step(7, true, false));
    let Next::Take(asked) = desk.next(3, false) else { panic!("a step waits") };
    desk.ask(3, &asked);
    assert_eq!(desk.take_answer(&asked), None);
    assert_eq!(desk.answer((ShardId(0), TaskId(7), StepRun(2)), true), None, "another run");
    assert_eq!(desk.answer(asked.key(), true), Some(3));
    assert_eq!(desk.take_answer(&asked), Some(true));
    assert_eq!(desk.answer(asked.key(), true), None, "it is not waited for any more");
    assert!(desk.asked.is_empty());
}

#[test]
fn once_it_stops_nothing_begins() {
    let mut desk = StepDesk::default();
    desk.push(step(1, true, false));
    desk.push(step(2, false, false));
    let Next::Take(asked) = desk.next(0, false) else { panic!("a step waits") };
    desk.ask(0, &asked);
    desk.stop();
    assert_eq!(desk.take_answer(&asked), Some(false));
    assert!(matches!(desk.next(1, false), Next::Ended));
    assert_eq!(desk.push(step(3, false, true)), None);
    assert!(matches!(desk.next(1, false), Next::Ended));
}

#[test]
fn each_turn_of_a_part_does_one_thing() {
    let hub = shared_with(&[("service", 1)]);
    let probe = Arc::new(Probe::default());
    let mut part = StepPart::new(0, Arc::clone(&probe));
    let mut turn = || part.turn(&*hub, Time(1_000)).unwrap();
    assert_eq!(turn(), Turned::Until(None));
    hub.steps.push(step(1, true, false));
    assert!(hub.steps.bell(0).take_ring());
    assert_eq!(turn(), Turned::Until(None), "it asks");
    assert_eq!(turn(), Turned::Until(None), "no answer has come");
    hub.steps.answer(ShardId(0), TaskId(1), StepRun(1), true);
    assert!(hub.steps.bell(0).take_ring());
    assert_eq!(turn(), Turned::Again, "it may begin");
    let running = hub.steps.running(None);
    assert!(running.len() == 1 && running[0].0 == 0 && running[0].1.contains("step"), "{running:?}");
    assert_eq!(hub.steps.running(Some(PartId::Step(0))), [], "the end does not wait for itself");
    assert_eq!(hub.steps.running(Some(PartId::Worker(0))).len(), 1);
    assert_eq!(probe.calls(), 0);
    assert_eq!(turn(), Turned::Again, "it runs");
    assert_eq!(probe.calls(), 2, "the watchdog saw its begin and its end");
    assert!(hub.memory.waiting()[1] > 0, "the outcome waits in the inbox of its shard");
    assert!(hub.steps.desk().running.is_empty());
    let (mut commands, mut inputs): (Vec<Command<_>>, _) = (Vec::new(), Vec::new());
    hub.inboxes[0].take(&mut commands, &mut inputs);
    let inputs: Vec<Input> = inputs.into_iter().map(|(_, input)| input).collect();
    assert!(matches!(
        inputs.as_slice(),
        [Input::StepBegins { .. }, Input::TaskStep { outcome: StepOutcome::Failed(_), .. }]
    ));
    // Its shard does not let another one run.
    hub.steps.push(step(2, true, false));
    assert_eq!(turn(), Turned::Until(None), "it asks");
    hub.steps.answer(ShardId(0), TaskId(2), StepRun(1), false);
    assert_eq!(turn(), Turned::Again);
    assert!(hub.steps.desk().running.is_empty());
    let mut inputs = Vec::new();
    hub.inboxes[0].take(&mut commands, &mut inputs);
    assert!(matches!(inputs.as_slice(), [(_, Input::StepBegins { .. })]));
    // A third one has begun when the node stops: it does not run.
    hub.steps.push(step(3, false, false));
    assert_eq!(turn(), Turned::Again, "it is taken");
    hub.steps.bell(0).take_ring();
    hub.steps.stop();
    assert!(hub.steps.bell(0).take_ring());
    assert_eq!((turn(), turn()), (Turned::Again, Turned::Ended));
    let mut inputs = Vec::new();
    hub.inboxes[0].take(&mut commands, &mut inputs);
    assert!(inputs.is_empty() && probe.calls() == 2);
    assert_eq!(hub.steps.running(None), []);
}

#[test]
fn a_crowded_part_looks_again_soon() {
    let hub = shared_with(&[("service", 1)]);
    let mut part = StepPart::new(0, Arc::default());
    hub.memory.change([0, i64::MAX, 0]);
    hub.steps.push(step(1, false, false));
    assert_eq!(part.turn(&*hub, Time(1_000)), Ok(Turned::Until(Some(Time(6_000)))));
    hub.memory.change([0, -i64::MAX, 0]);
    assert_eq!(part.turn(&*hub, Time(6_000)), Ok(Turned::Again));
}
