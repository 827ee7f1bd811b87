use std::time::{Duration, Instant};
use stead_flights::callers::{Known, Reads, Wait, misgiven, worst_wait_ms};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_stale_answer_must_show_all_that_was_answered_before_its_age() {
    let start = Instant::now();
    let (mut known, mut reads) = (Known::default(), Reads::default());
    reads.handle_current(&mut known, start, 10);
    reads.handle_current(&mut known, start + ms(100), 20);
    // Sent 60 ms after 20 was read: 50 ms of age include it, 70 ms need not.
    let sent = start + ms(160);
    reads.handle_stale(&known, sent, 10, Some(ms(70)));
    reads.handle_stale(&known, sent, 20, Some(ms(50)));
    assert!(reads.hold(), "{reads:?}");
    reads.handle_stale(&known, sent, 10, Some(ms(50)));
    assert_eq!((reads.understated, reads.hold()), (1, false));
}

#[test]
fn a_stale_answer_without_its_age_and_a_current_one_that_goes_back_are_found() {
    let start = Instant::now();
    let (mut known, mut reads) = (Known::default(), Reads::default());
    reads.handle_current(&mut known, start, 10);
    assert!(!reads.hold(), "no stale answer was seen");
    reads.handle_stale(&known, start, 10, None);
    assert_eq!((reads.untold, reads.hold()), (1, false));
    reads.handle_current(&mut known, start + ms(1), 9);
    assert_eq!(reads.went_back, 1);
}

#[test]
fn waits_of_a_fault_are_those_that_it_met() {
    let start = Instant::now();
    let wait = |from, until| Wait { from: start + ms(from), until: start + ms(until) };
    let waits = [wait(0, 90), wait(95, 125), wait(110, 130), wait(300, 900)];
    assert_eq!(worst_wait_ms(&waits, start + ms(100), start + ms(200)), 30.0);
}

#[test]
fn boarding_numbers_that_are_given_twice_or_left_out_are_counted() {
    // Passengers 0, 8 and 16 go to the same desk.
    assert_eq!(misgiven(&vec![(0, vec![1]), (8, vec![2]), (1, vec![1])]), 0);
    assert_eq!(misgiven(&vec![(0, vec![1]), (8, vec![1])]), 1);
    assert_eq!(misgiven(&vec![(0, vec![1]), (8, vec![3])]), 1);
}
