//! The deadlines of a worker's shards, apart from these: a turn in which none is due looks at no shard.

use stead_core::ids::Time;

/// Later than any time of a clock.
const NEVER: Time = Time(u64::MAX);

/// By slot, the time at which its shard wants a tick.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// [`NEVER`] without one.
    at: Vec<Time>,
    /// The first of them, or earlier if it `may_be_later`.
    first: Time,
    may_be_later: bool,
}

impl Deadlines {
    /// No slot has a deadline.
    pub(super) fn new(slots: usize) -> Self {
        Self { at: vec![NEVER; slots], first: NEVER, may_be_later: false }
    }

    pub(super) fn set(&mut self, slot: u32, deadline: Option<Time>) {
        let deadline = deadline.unwrap_or(NEVER);
        let before = std::mem::replace(&mut self.at[slot as usize], deadline);
        if deadline <= self.first {
            self.first = deadline;
        } else if before == self.first {
            self.may_be_later = true;
        }
    }

    /// Returns the first deadline.
    pub(super) fn first(&mut self) -> Option<Time> {
        if std::mem::take(&mut self.may_be_later) {
            self.first = self.at.iter().copied().min().unwrap_or(NEVER);
        }
        (self.first != NEVER).then_some(self.first)
    }

    /// Whether the deadline of a slot has come.
    pub(super) fn is_due(&self, slot: u32, now: Time) -> bool {
        self.at[slot as usize] <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_deadline_is_that_of_all_slots_after_any_changes() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut deadlines, mut model) = (Deadlines::new(5), [None; 5]);
        for _ in 0..2000 {
            let (slot, at) = (random.usize(..5), random.bool().then(|| Time(random.u64(..8))));
            model[slot] = at;
            deadlines.set(slot as u32, at);
            if random.bool() {
                assert_eq!(deadlines.first(), model.iter().flatten().min().copied(), "{model:?}");
            }
            let now = Time(random.u64(..8));
            for (slot, at) in (0..).zip(model) {
                assert_eq!(deadlines.is_due(slot, now), at.is_some_and(|at| at <= now));
            }
        }
    }
}
