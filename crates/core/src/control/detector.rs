//! The detection of silence: how long a node may be silent, by how regularly it was heard.
//!
//! The phi accrual failure detector (Hayashibara, Défago, Yared and Katayama, 2004): the intervals between two signs of life are
//! taken for normally distributed, and phi is the negative decimal logarithm of the probability that a sign of life comes even
//! later. With a fixed threshold, phi exceeds it when the silence exceeds the mean by a fixed number of standard deviations: so no
//! logarithm is computed, and the same intervals give the same timeout on every machine.

use crate::ids::{Micros, Time};

/// Intervals that are remembered.
const INTERVALS: usize = 64;

/// Standard deviations above the mean, in thousandths, beyond which phi is above 8: one silence of 10^8 that is as long as usual
/// would be taken for a failure.
const DEVIATIONS: u64 = 5_612;

/// The bounds of a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutBounds {
    /// The least timeout, however regularly a node was heard: pauses of a scheduler or a disk are longer than intervals show.
    pub min: Micros,
    /// The greatest timeout, and the one before anything was heard.
    pub max: Micros,
}

/// The intervals at which one node was heard. Takes 300 bytes.
#[derive(Clone, Debug)]
pub struct Detector {
    intervals: [u32; INTERVALS],
    /// The number of intervals that are remembered, and the place of the next one.
    count: usize,
    next: usize,
    heard: Time,
}

impl Detector {
    /// Creates the detector of a node that may be silent from now on for the greatest timeout.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { intervals: [0; INTERVALS], count: 0, next: 0, heard: now }
    }

    /// Handles a sign of life.
    pub fn handle_heard(&mut self, now: Time, bounds: TimeoutBounds) {
        // A failure that is over makes later ones no harder to notice.
        let interval = now.since(self.heard).0.min(bounds.max.0);
        self.heard = self.heard.max(now);
        self.intervals[self.next] = u32::try_from(interval).unwrap_or(u32::MAX);
        self.next = (self.next + 1) % INTERVALS;
        self.count = (self.count + 1).min(INTERVALS);
    }

    /// Handles that the observer itself was paused for a while: the silence does not count.
    pub fn handle_pause(&mut self, pause: Micros) {
        self.heard = self.heard.plus(pause);
    }

    /// Returns the time of the last sign of life.
    #[must_use]
    pub fn heard(&self) -> Time {
        self.heard
    }

    /// Returns the silence from which on the node counts as failed.
    #[must_use]
    pub fn timeout(&self, bounds: TimeoutBounds) -> Micros {
        if self.count < 8 {
            return bounds.max;
        }
        let known = || self.intervals[..self.count].iter().map(|interval| u64::from(*interval));
        let count = self.count as u64;
        let mean = known().sum::<u64>() / count;
        let variance = known().map(|interval| interval.abs_diff(mean).pow(2) / count).sum::<u64>();
        let timeout = mean.saturating_add(variance.isqrt().saturating_mul(DEVIATIONS) / 1_000);
        Micros(timeout.max(bounds.min.0).min(bounds.max.0))
    }

    /// Whether the node has been silent for longer than its timeout.
    #[must_use]
    pub fn is_silent(&self, now: Time, bounds: TimeoutBounds) -> bool {
        now.since(self.heard) > self.timeout(bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: TimeoutBounds =
        TimeoutBounds { min: Micros::from_millis(100), max: Micros::from_millis(800) };

    /// A detector that heard a node at these intervals, in milliseconds.
    fn heard(intervals: impl Iterator<Item = u64>) -> Detector {
        let mut detector = Detector::new(Time(0));
        let mut now = Time(0);
        for interval in intervals {
            now = now.plus_millis(interval);
            detector.handle_heard(now, BOUNDS);
        }
        detector
    }

    #[test]
    fn the_timeout_follows_how_regularly_a_node_is_heard() {
        assert_eq!(Detector::new(Time(0)).timeout(BOUNDS), BOUNDS.max, "nothing is known");
        let regular = heard(std::iter::repeat_n(50, 100));
        assert_eq!(regular.timeout(BOUNDS), BOUNDS.min);
        let steady = heard(std::iter::repeat_n(150, 100));
        assert_eq!(steady.timeout(BOUNDS), Micros::from_millis(150));
        // A mean of 50 ms and a standard deviation of 30 ms.
        let irregular = heard((0..100).map(|at| if at % 2 == 0 { 20 } else { 80 }));
        assert_eq!(irregular.timeout(BOUNDS), Micros(50_000 + 30_000 * 5_612 / 1_000));
        let wild = heard((0..100).map(|at| if at % 2 == 0 { 20 } else { 700 }));
        assert_eq!(wild.timeout(BOUNDS), BOUNDS.max);
    }

    #[test]
    fn silence_is_noticed_once_and_forgotten_when_it_is_over() {
        let mut detector = heard(std::iter::repeat_n(50, 100));
        let last = detector.heard();
        assert!(!detector.is_silent(last.plus_millis(100), BOUNDS));
        assert!(detector.is_silent(last.plus_millis(101), BOUNDS));
        let back = last.plus(Micros::from_secs(3_600));
        detector.handle_heard(back, BOUNDS);
        assert!(!detector.is_silent(back.plus_millis(100), BOUNDS));
        (1..=64).for_each(|at| detector.handle_heard(back.plus_millis(50 * at), BOUNDS));
        assert_eq!(detector.timeout(BOUNDS), BOUNDS.min);
    }

    #[test]
    fn a_pause_of_the_observer_is_no_silence() {
        let mut detector = heard(std::iter::repeat_n(50, 100));
        let later = detector.heard().plus(Micros::from_secs(9));
        detector.handle_pause(Micros::from_secs(9));
        assert!(!detector.is_silent(later, BOUNDS));
    }

    #[test]
    fn the_longest_intervals_do_not_overflow() {
        let bounds = TimeoutBounds { min: Micros(0), max: Micros(u64::MAX) };
        let mut detector = Detector::new(Time(0));
        (1..100).for_each(|at| detector.handle_heard(Time((at * at) << 45), bounds));
        assert!(detector.timeout(bounds) > Micros(0));
    }
}
