//! The bound on what an asynchronous service may lose: writes are refused while entries wait for their commit too long
//! (design, section 3).
//!
//! Never reads a clock: time arrives with each call.

use crate::ids::{Index, Micros, Time};
use std::collections::VecDeque;
use thiserror::Error;

/// The greatest number of groups of entries, by age. The age of an entry is exact to a 16th of the bound.
const GROUPS_MAX: usize = 32;

/// The backups lag by more than the service allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the backups lag by {lag}, and {max_lag} is allowed; retry later, or allow more")]
pub struct Lagging {
    /// The age of the oldest entry that is not committed.
    pub lag: Micros,
    /// The greatest age that is allowed.
    pub max_lag: Micros,
}

/// Entries that are close to each other in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Group {
    first: Time,
    last: Index,
}

/// The entries of an epoch that are not committed, at its primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backlog {
    max_lag: Micros,
    groups: VecDeque<Group>,
}

impl Backlog {
    /// Creates the backlog of an epoch. `max_lag` is the age of an entry that is not committed from which on writes are refused.
    #[must_use]
    pub fn new(max_lag: Micros) -> Self {
        Self { max_lag, groups: VecDeque::new() }
    }

    /// Sets the age from which on writes are refused.
    pub fn set_max_lag(&mut self, max_lag: Micros) {
        self.max_lag = max_lag;
    }

    /// Handles that an entry was appended. Entries are appended in their order.
    pub fn handle_appended(&mut self, now: Time, index: Index) {
        let is_full = self.groups.len() == GROUPS_MAX;
        match self.groups.back_mut() {
            Some(group) if is_full || now.since(group.first) < Micros(self.max_lag.0 / 16) => {
                group.last = index
            }
            _ => self.groups.push_back(Group { first: now, last: index }),
        }
    }

    /// Handles that the commit index grew.
    pub fn handle_commit(&mut self, commit: Index) {
        while self.groups.pop_front_if(|group| group.last <= commit).is_some() {}
    }

    /// Returns the age of the oldest entry that is not committed, or up to a 16th of the bound more; 0 if all are.
    #[must_use]
    pub fn lag(&self, now: Time) -> Micros {
        self.groups.front().map_or(Micros(0), |group| now.since(group.first))
    }

    /// Checks that the backups do not lag by more than is allowed: a write may be taken.
    ///
    /// # Errors
    /// [`Lagging`].
    pub fn check(&self, now: Time) -> Result<(), Lagging> {
        let (lag, max_lag) = (self.lag(now), self.max_lag);
        if lag > max_lag { Err(Lagging { lag, max_lag }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Micros = Micros(1_600);

    #[test]
    fn writes_are_refused_while_the_oldest_entry_waits_too_long() {
        let mut backlog = Backlog::new(MAX);
        backlog.handle_appended(Time(0), Index(1));
        backlog.handle_appended(Time(1_000), Index(2));
        assert_eq!(backlog.check(Time(1_600)), Ok(()));
        assert_eq!(backlog.check(Time(1_601)), Err(Lagging { lag: Micros(1_601), max_lag: MAX }));
        backlog.handle_commit(Index(1));
        assert_eq!((backlog.lag(Time(1_601)), backlog.check(Time(2_600))), (Micros(601), Ok(())));
        backlog.handle_commit(Index(2));
        assert_eq!(backlog.lag(Time(9_999)), Micros(0));
    }

    #[test]
    fn an_age_is_never_too_low_and_at_most_a_16th_of_the_bound_too_high() {
        let mut backlog = Backlog::new(MAX);
        (0..160).for_each(|at| backlog.handle_appended(Time(at * 10), Index(at + 1)));
        for commit in 0..160 {
            backlog.handle_commit(Index(commit));
            let exact = 2_000 - commit * 10;
            let lag = backlog.lag(Time(2_000)).0;
            assert!((exact..exact + 100).contains(&lag), "{lag} for {exact}");
        }
    }

    #[test]
    fn the_backlog_of_a_primary_that_is_cut_off_is_bounded() {
        let mut backlog = Backlog::new(MAX);
        (0..1_000).for_each(|at| backlog.handle_appended(Time(at * 1_000), Index(at + 1)));
        assert_eq!(backlog.groups.len(), GROUPS_MAX);
        backlog.handle_commit(Index(999));
        assert!(backlog.check(Time(1_000_000)).is_err(), "the last entry is not committed");
        backlog.handle_commit(Index(1_000));
        assert_eq!(backlog.check(Time(1_000_000)), Ok(()));
    }
}
