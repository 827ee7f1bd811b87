//! Tests of the part that copies checkpoints, over stores that cannot be opened. The simulator runs it over a disk.

use super::*;
use crate::checkpoint::CheckpointFailure;
use crate::copies::desk::ASKED_MAX;
use crate::part::{Part, Turned};
use crate::reply::Reply;
use crate::shared::Shared;
use crate::shared::tests::{Nothing, shared};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use stead_core::ids::Time;
use stead_store::checkpoint::store::{DiskStore, StoreError};
use stead_store::sim_disk::SimDisk;

type Results = Arc<Mutex<Vec<(u64, Result<CopyReport, CheckpointFailure>)>>>;

struct Noting(u64, Results);

impl Reply<Result<CopyReport, CheckpointFailure>> for Noting {
    fn send(self: Box<Self>, result: Result<CopyReport, CheckpointFailure>) {
        self.1.lock().unwrap().push((self.0, result));
    }

    fn is_gone(&self) -> bool {
        false
    }
}

fn ask(hub: &Shared<Nothing>, number: u64, results: &Results) -> Result<(), CheckpointFailure> {
    hub.copy_checkpoint(number, "by hand", Box::new(Noting(number, Arc::clone(results))))
}

/// A part, and the addresses that it opened in vain. With an interval it copies to "nowhere" by itself.
fn part(interval: Option<Duration>) -> (CopyPart, Arc<Mutex<Vec<String>>>) {
    let store = DiskStore::open(Arc::new(SimDisk::new(1)), "checkpoints").unwrap();
    let to = interval.map(|interval| CopyTarget { address: "nowhere".to_owned(), interval, keep: 1 });
    let mut part = CopyPart::new(Arc::new(store), to);
    let opened: Arc<Mutex<Vec<String>>> = Arc::default();
    part.set_opener(Box::new({
        let opened = Arc::clone(&opened);
        move |address, _| {
            opened.lock().unwrap().push(address.to_owned());
            Err(StoreError::Address { name: address.to_owned(), reason: "it is a test".to_owned() })
        }
    }));
    (part, opened)
}

/// Gives turns until the part sleeps; returns until when.
fn run(part: &mut CopyPart, hub: &Shared<Nothing>, now: Time) -> Option<Time> {
    loop {
        match part.turn(hub, now).unwrap() {
            Turned::Again => {}
            Turned::Until(until) => return until,
            Turned::Ended => panic!("it was not stopped"),
        }
    }
}

#[test]
fn a_copy_over_the_limit_is_refused_until_another_has_ended() {
    let (hub, results) = (shared(), Results::default());
    let (mut part, _) = part(None);
    for number in 0..ASKED_MAX as u64 {
        ask(&hub, number, &results).unwrap();
    }
    assert_eq!(ask(&hub, 99, &results), Err(CheckpointFailure::Busy(ASKED_MAX)));
    assert_eq!(part.turn(&hub, hub.now()), Ok(Turned::Again), "the first one begins");
    assert_eq!(part.reads(), Some(CheckpointNumber(0)));
    assert!(hub.snapshots.pinned().contains(&CheckpointNumber(0)));
    assert_eq!(ask(&hub, 99, &results), Err(CheckpointFailure::Busy(ASKED_MAX)), "it counts while it runs");
    assert_eq!(part.turn(&hub, hub.now()), Ok(Turned::Again), "and fails");
    assert!(hub.snapshots.pinned().is_empty());
    assert!(matches!(part.take_failure(), Some(CopyFailure::Open(_))) && part.take_failure().is_none());
    ask(&hub, 99, &results).unwrap();
    run(&mut part, &hub, hub.now());
    let results = results.lock().unwrap();
    assert_eq!(results.len(), ASKED_MAX + 1);
    assert!(results.iter().all(|(_, result)| matches!(result, Err(CheckpointFailure::Address(_)))));
    assert_eq!(hub.counters.checkpoint_copies_failed.get(), 0, "the addresses of callers are wrong");
}

#[test]
fn an_automatic_copy_that_failed_is_repeated_later() {
    let hub = shared();
    let (mut part, _) = part(Some(Duration::from_secs(3_600)));
    assert_eq!(part.turn(&hub, hub.now()), Ok(Turned::Until(None)), "there is no checkpoint");
    hub.snapshots.newest.store(1, Ordering::Relaxed);
    for seconds in [1, 2, 4] {
        let before = hub.now();
        for what in ["it begins", "it fails"] {
            assert_eq!(part.turn(&hub, Time(u64::MAX)), Ok(Turned::Again), "{what}");
        }
        let due = run(&mut part, &hub, hub.now()).expect("it is tried again");
        assert!(
            due >= before.plus_millis(seconds * 1_000) && due <= hub.now().plus_millis(seconds * 1_000),
            "{due:?} for {seconds} s after {before:?}"
        );
        assert!(hub.copies.status().is_none(), "the options of this node name no target");
    }
    assert_eq!(hub.counters.checkpoint_copies_failed.get(), 3);
}

#[test]
fn requested_copies_and_automatic_ones_take_turns() {
    let (hub, results) = (shared(), Results::default());
    // Each is due again at once.
    let (mut part, opened) = part(Some(Duration::ZERO));
    hub.snapshots.newest.store(1, Ordering::Relaxed);
    for number in 0..3 {
        ask(&hub, number, &results).unwrap();
    }
    for _ in 0..14 {
        assert_eq!(part.turn(&hub, Time(u64::MAX)), Ok(Turned::Again));
    }
    let wanted = ["nowhere", "by hand", "nowhere", "by hand", "nowhere", "by hand", "nowhere"];
    assert_eq!(*opened.lock().unwrap(), wanted);
}

#[test]
fn the_end_of_the_node_answers_copies_that_run_or_wait() {
    let (hub, results) = (shared(), Results::default());
    let (mut part, opened) = part(None);
    for number in 0..2 {
        ask(&hub, number, &results).unwrap();
    }
    assert_eq!(part.turn(&hub, hub.now()), Ok(Turned::Again));
    hub.copies.stop();
    assert_eq!(part.turn(&hub, hub.now()), Ok(Turned::Ended));
    let stopped = |result: &Result<_, _>| matches!(result, Err(CheckpointFailure::Stopped(_)));
    assert!(stopped(&ask(&hub, 9, &results).map(|()| unreachable!())));
    let mut results = std::mem::take(&mut *results.lock().unwrap());
    results.sort_by_key(|(number, _)| *number);
    assert_eq!(results.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
    assert!(results.iter().all(|(_, result)| stopped(result)), "{results:?}");
    assert!(opened.lock().unwrap().is_empty() && hub.snapshots.pinned().is_empty());
}

#[test]
fn a_panic_fails_its_copy_and_the_part_goes_on() {
    let (hub, results) = (shared(), Results::default());
    let (mut part, _) = part(None);
    part.set_opener(Box::new(|_, _| panic!("it is a test")));
    for number in 0..2 {
        ask(&hub, number, &results).unwrap();
    }
    run(&mut part, &hub, hub.now());
    assert!(matches!(part.take_failure(), Some(CopyFailure::Panic(_))));
    assert_eq!(results.lock().unwrap().len(), 2);
}
