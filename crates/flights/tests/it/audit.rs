use std::collections::HashSet;
use stead_flights::audit::{Again, Audit, Compared, Place};
use stead_flights::runs::{ProcessName, Run, Service};

fn process() -> ProcessName {
    ProcessName::new(Service::Aircraft, "N14228")
}

/// A run that finds `handled` causes in the state and handles `cause`.
fn run(cause: u64, handled: u64, index: u64) -> Run {
    Run { process: process(), cause, handled, place: (1, index), rows: (0, 0) }
}

fn log(indexes: impl IntoIterator<Item = u64>) -> HashSet<Place> {
    indexes.into_iter().map(|index| (process(), (1, index))).collect()
}

#[test]
fn what_was_not_committed_may_run_again() {
    let mut audit = Audit::new();
    audit.end_life(&[run(10, 0, 1), run(11, 1, 2), run(12, 2, 3)], &log([1, 2]));
    // The state holds two: only 12 is repeated.
    audit.end_life(&[run(12, 2, 4), run(13, 3, 5)], &log([1, 2, 4, 5]));
    assert_eq!(audit.again(), Again { runs: 5, recomputed: 0, replayed: 0, unkept: 1 });
}

#[test]
fn a_cause_whose_entry_lay_in_the_log_is_recomputed_even_if_the_state_forgot_it() {
    let mut audit = Audit::new();
    audit.end_life(&[run(10, 0, 1), run(11, 1, 2)], &log([1, 2]));
    // This is the trace of a system that goes back to its last checkpoint and computes everything after it again.
    audit.end_life(&[run(10, 0, 3), run(11, 1, 4)], &log([3, 4]));
    assert_eq!(audit.again(), Again { runs: 4, recomputed: 2, replayed: 0, unkept: 0 });
}

#[test]
fn a_cause_that_the_state_holds_is_recomputed_even_if_the_log_was_trimmed() {
    let mut audit = Audit::new();
    audit.end_life(&[run(10, 0, 1), run(11, 1, 2)], &log([]));
    // The next life finds both in its state, and receives one of them a second time.
    audit.end_life(&[run(11, 2, 3)], &log([3]));
    assert_eq!(audit.again(), Again { runs: 3, recomputed: 1, replayed: 0, unkept: 0 });
}

#[test]
fn another_order_after_a_kill_is_not_taken_for_recomputed_work() {
    let mut audit = Audit::new();
    // 10 was handled, but not committed; the next life handles and commits 11 in its place, and is killed.
    audit.end_life(&[run(10, 0, 1)], &log([]));
    audit.end_life(&[run(11, 0, 2)], &log([2]));
    audit.end_life(&[run(10, 1, 3)], &log([3]));
    assert_eq!(audit.again(), Again { runs: 3, recomputed: 0, replayed: 0, unkept: 1 });
}

#[test]
fn a_cause_that_comes_twice_within_a_life_is_recomputed() {
    let mut audit = Audit::new();
    audit.end_life(&[run(10, 0, 1), run(10, 1, 2)], &log([]));
    assert_eq!(audit.again().recomputed, 1);
}

#[test]
fn after_a_restore_what_came_after_the_checkpoint_is_replayed_and_what_it_held_is_recomputed() {
    let mut audit = Audit::new();
    audit.end_life(&[run(10, 0, 1), run(11, 1, 2), run(12, 2, 3)], &log([1, 2, 3]));
    audit.restore();
    // The checkpoint holds 10; 11 and 12 came after it.
    audit.end_life(&[run(11, 1, 2), run(12, 2, 3)], &log([2]));
    assert_eq!(audit.again(), Again { runs: 5, recomputed: 0, replayed: 2, unkept: 0 });
    // 12 was not committed in the new line; 10 was in the checkpoint, and 11 is committed by now.
    audit.end_life(&[run(12, 2, 4), run(10, 3, 5), run(11, 4, 6)], &log([]));
    assert_eq!(audit.again(), Again { runs: 8, recomputed: 2, replayed: 2, unkept: 1 });
}

#[test]
fn rows_after_the_restored_checkpoint_are_counted() {
    let feeder = |tick: u64, index: u64, rows: (u64, u64)| Run {
        process: ProcessName::new(Service::Feeder, "feeder"),
        cause: tick,
        handled: tick,
        place: (1, index),
        rows,
    };
    let log = |indexes: &[u64]| -> HashSet<Place> {
        indexes.iter().map(|index| (ProcessName::new(Service::Feeder, "feeder"), (1, *index))).collect()
    };
    let mut audit = Audit::new();
    // The last run was not committed: its rows were not fed.
    audit.end_life(&[feeder(0, 1, (0, 10)), feeder(1, 2, (10, 25)), feeder(2, 3, (25, 40))], &log(&[1, 2]));
    audit.restore();
    audit.end_life(&[feeder(1, 2, (10, 20))], &log(&[2]));
    assert_eq!(audit.rows_replayed(), 15);
}

/// A run of a cause in an epoch.
fn run_in(epoch: u64, index: u64, cause: u64) -> Run {
    Run { place: (epoch, index), ..run(cause, 0, index) }
}

fn kept(places: &[(u64, u64)]) -> HashSet<Place> {
    places.iter().map(|place| (process(), *place)).collect()
}

#[test]
fn a_run_that_another_node_replaced_is_not_recomputed_work() {
    // The node of epoch 1 lost its place before 11 was stored; paused, it runs on for a while in the epoch that is over.
    let runs = [run_in(1, 1, 10), run_in(1, 2, 11), run_in(2, 3, 11), run_in(2, 4, 12), run_in(1, 3, 12)];
    let compared = Compared::of(&runs, &kept(&[(1, 1), (2, 3), (2, 4)]));
    assert_eq!(compared, Compared { runs: 5, unkept: 2, ..Compared::default() });
    assert!(compared.holds());
}

#[test]
fn a_run_on_top_of_its_entry_is_recomputed_work_whether_it_is_kept_or_not() {
    let runs = [run_in(1, 1, 10), run_in(2, 3, 10)];
    let vain = Compared::of(&runs, &kept(&[(1, 1)]));
    assert_eq!(vain, Compared { runs: 2, recomputed: 1, ..Compared::default() });
    let twice = Compared::of(&runs, &kept(&[(1, 1), (2, 3)]));
    assert_eq!(twice, Compared { runs: 2, recomputed: 1, doubled: 1, ..Compared::default() });
    assert!(!vain.holds() && !twice.holds());
}

#[test]
fn a_cause_that_went_with_the_epoch_that_gave_it_is_not_unproved() {
    // Cut off, the node of epoch 1 runs its own timers 12 and 13; the next one ends the work with 11.
    let runs = [run_in(1, 1, 10), run_in(1, 2, 11), run_in(1, 3, 12), run_in(1, 4, 13), run_in(2, 3, 11)];
    let compared = Compared::of(&runs, &kept(&[(1, 1), (2, 3)]));
    assert_eq!(compared, Compared { runs: 5, unkept: 3, ..Compared::default() });
    assert!(compared.holds());
    // Before the place at which the later epoch began, an entry must be there.
    let lost =
        Compared::of(&[run_in(1, 1, 10), run_in(1, 2, 11), run_in(2, 3, 12)], &kept(&[(1, 1), (2, 3)]));
    assert_eq!(lost, Compared { runs: 3, unproved: 1, ..Compared::default() });
}

#[test]
fn a_run_without_an_entry_proves_nothing() {
    let compared = Compared::of(&[run_in(1, 1, 10)], &kept(&[]));
    assert_eq!(compared, Compared { runs: 1, unproved: 1, ..Compared::default() });
    assert!(!compared.holds() && !Compared::of(&[], &kept(&[])).holds());
}
