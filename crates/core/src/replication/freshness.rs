//! The age of a backup's or a learner's state, for stale reads, and the reason for which one is refused.
//!
//! A primary names times of the replica's own clock with the index up to which clients may have been answered by then. Once
//! the replica has applied that, its state is at least as fresh.

use super::epoch::{Fresh, Mark};
use crate::ids::{Index, Life, Micros, Time};
use std::collections::VecDeque;
use thiserror::Error;

/// Marks that a replica keeps while it applies what they need. Further ones are dropped until then.
pub const MARKS_MAX: usize = 16;

/// A replica's state is too old for a read, or its age is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TooStale {
    /// It is older than the read allows.
    #[error("the state here is {staleness} old, and {max_lag} is allowed; ask the primary, or allow more")]
    Over {
        /// The age.
        staleness: Micros,
        /// The greatest age that the read allows.
        max_lag: Micros,
    },
    /// No primary has reported how old it is, in this life of the process.
    #[error("the age of the state here is unknown; ask the primary, or try again")]
    Unknown,
}

/// The age of a replica's state, in one life of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Freshness {
    /// All that was answered before is applied.
    as_of: Option<Time>,
    /// Ascending in time and index.
    waiting: VecDeque<(Time, Index)>,
}

impl Freshness {
    /// Handles a primary's report. One that names a time of another life is passed over: that was another clock.
    pub fn handle_fresh(&mut self, life: Life, fresh: Fresh) {
        let Fresh { as_of: Mark { life: named, at }, upto } = fresh;
        let newest = self.waiting.back().map(|(at, _)| *at).or(self.as_of);
        if named == life && newest.is_none_or(|newest| newest < at) && self.waiting.len() < MARKS_MAX {
            self.waiting.push_back((at, upto));
        }
    }

    /// Handles that the state holds all entries up to an index.
    pub fn handle_applied(&mut self, applied: Index) {
        while let Some((at, _)) = self.waiting.pop_front_if(|(_, upto)| *upto <= applied) {
            self.as_of = Some(at);
        }
    }

    /// Drops the reports that wait: their epoch is over, and its last entries may be lost.
    pub fn handle_new_epoch(&mut self) {
        self.waiting.clear();
    }

    /// Returns the age of the state, if it is at most `max_lag`.
    ///
    /// # Errors
    /// [`TooStale`].
    pub fn staleness(&self, now: Time, max_lag: Micros) -> Result<Micros, TooStale> {
        let staleness = now.since(self.as_of.ok_or(TooStale::Unknown)?);
        if staleness > max_lag { Err(TooStale::Over { staleness, max_lag }) } else { Ok(staleness) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_BOUND: Micros = Micros(u64::MAX);

    fn fresh(life: u64, at: u64, upto: u64) -> Fresh {
        Fresh { as_of: Mark { life: Life(life), at: Time(at) }, upto: Index(upto) }
    }

    #[test]
    fn a_state_is_as_fresh_as_the_newest_mark_whose_entries_it_has() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.staleness(Time(5), NO_BOUND), Err(TooStale::Unknown));
        freshness.handle_fresh(Life(2), fresh(2, 10, 3));
        freshness.handle_fresh(Life(2), fresh(2, 20, 5));
        freshness.handle_applied(Index(2));
        assert_eq!(freshness.staleness(Time(30), NO_BOUND), Err(TooStale::Unknown));
        freshness.handle_applied(Index(4));
        assert_eq!(freshness.staleness(Time(30), Micros(20)), Ok(Micros(20)));
        let over = TooStale::Over { staleness: Micros(20), max_lag: Micros(19) };
        assert_eq!(freshness.staleness(Time(30), Micros(19)), Err(over));
        freshness.handle_applied(Index(9));
        assert_eq!(freshness.staleness(Time(30), NO_BOUND), Ok(Micros(10)));
    }

    #[test]
    fn a_late_report_or_one_of_another_life_makes_nothing_fresher() {
        let mut freshness = Freshness::default();
        freshness.handle_fresh(Life(2), fresh(2, 20, 1));
        freshness.handle_fresh(Life(2), fresh(2, 10, 1));
        freshness.handle_fresh(Life(2), fresh(1, 90, 1));
        freshness.handle_applied(Index(1));
        assert_eq!(freshness.staleness(Time(100), NO_BOUND), Ok(Micros(80)));
    }

    #[test]
    fn a_report_of_an_epoch_that_is_over_is_dropped() {
        let mut freshness = Freshness::default();
        freshness.handle_fresh(Life(1), fresh(1, 10, 7));
        freshness.handle_new_epoch();
        freshness.handle_applied(Index(7));
        assert_eq!(freshness.staleness(Time(11), NO_BOUND), Err(TooStale::Unknown));
    }

    #[test]
    fn reports_that_wait_are_bounded() {
        let mut freshness = Freshness::default();
        (1..100).for_each(|at| freshness.handle_fresh(Life(1), fresh(1, at, at)));
        assert_eq!(freshness.waiting.len(), MARKS_MAX);
    }
}
