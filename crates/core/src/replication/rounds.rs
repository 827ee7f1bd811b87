//! Rounds of confirmations: a primary asks all members whether they still take part in its epoch (rules 21 and 22).
//!
//! One round serves three ends. A linearizable read that came before it began is current once S members have confirmed it.
//! The members that confirm grant a lease, counted from its beginning. And a replica that applied what was answered before it
//! began is at least as fresh as that beginning, which is reported to the replica as a time of the replica's own clock: the
//! newest one that the primary had heard of when the round began. So no two clocks are compared, and a frame that was long on
//! its way makes a replica look older, never fresher.

use super::epoch::{Ask, Fresh, Mark};
use super::lease::held_until;
use crate::commit_tracker::EpochConfig;
use crate::ids::{Index, Micros, ReplicaId, Round, Time};
use std::collections::{BTreeMap, VecDeque};

/// Rounds that may be open at once. More wait until one is confirmed: any later one serves as well.
pub const ROUNDS_MAX: usize = 64;

/// A round that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Begun {
    round: Round,
    at: Time,
    /// The index up to which clients may have been answered when it began.
    answerable: Index,
    /// The newest marks of the replicas that were known when it began.
    marks: BTreeMap<ReplicaId, Mark>,
}

/// The rounds of one epoch, at its primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rounds {
    config: EpochConfig,
    lease: Micros,
    last: Round,
    /// Begun and not confirmed, ascending.
    open: VecDeque<Begun>,
    /// The newest confirmed round.
    confirmed: Option<Begun>,
    /// By member, the newest round that it has confirmed.
    heard: BTreeMap<ReplicaId, Round>,
    /// By replica, the newest mark.
    marks: BTreeMap<ReplicaId, Mark>,
}

impl Rounds {
    /// Creates the rounds of an epoch. `lease` is the span for which its primary asks; 0 if it needs none.
    #[must_use]
    pub fn new(config: EpochConfig, lease: Micros) -> Self {
        Self {
            config,
            lease,
            last: Round(0),
            open: VecDeque::new(),
            confirmed: None,
            heard: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }

    /// Begins a round; false if [`ROUNDS_MAX`] are open. `answerable` is the index up to which clients may have been answered.
    /// Then [`Rounds::ask`] has what is to be sent to each replica.
    pub fn begin(&mut self, now: Time, answerable: Index) -> bool {
        if self.open.len() == ROUNDS_MAX {
            return false;
        }
        self.last = self.last.next();
        let marks = self.marks.clone();
        self.open.push_back(Begun { round: self.last, at: now, answerable, marks });
        // The primary itself takes part as long as it is not deposed, and then its rounds are dropped.
        self.heard.insert(self.config.primary(), self.last);
        self.confirm();
        true
    }

    /// Returns the request of the newest round to a replica; `None` before the first round.
    #[must_use]
    pub fn ask(&self, replica: ReplicaId) -> Option<Ask> {
        let fresh = self.confirmed.as_ref().and_then(|confirmed| {
            confirmed.marks.get(&replica).map(|&as_of| Fresh { as_of, upto: confirmed.answerable })
        });
        let (epoch, round, lease) = (self.config.epoch(), self.last, self.lease);
        (round > Round(0)).then_some(Ask { epoch, round, lease, fresh })
    }

    /// Handles that a replica has confirmed a round, and with it all before. A learner's confirmation counts nowhere (rule 2),
    /// only its mark is kept. Returns true if another round is confirmed.
    pub fn handle_confirmed(&mut self, replica: ReplicaId, round: Round, mark: Mark) -> bool {
        if round > self.last {
            return false;
        }
        let newest = self.marks.entry(replica).or_insert(mark);
        *newest = mark.max(*newest);
        if !self.config.members().contains(&replica) {
            return false;
        }
        let heard = self.heard.entry(replica).or_insert(round);
        *heard = round.max(*heard);
        self.confirm()
    }

    /// Takes the rounds that S members have confirmed off the open ones.
    fn confirm(&mut self) -> bool {
        let is_confirmed = |round: Round| {
            self.heard.values().filter(|heard| **heard >= round).count() >= self.config.commit_quorum()
        };
        let count = self.open.iter().take_while(|begun| is_confirmed(begun.round)).count();
        if let Some(newest) = self.open.drain(..count).next_back() {
            self.confirmed = Some(newest);
        }
        count > 0
    }

    /// Returns the round that serves a read that comes now: the next one.
    #[must_use]
    pub fn next(&self) -> Round {
        self.last.next()
    }

    /// Returns the newest confirmed round; 0 before the first one.
    #[must_use]
    pub fn confirmed(&self) -> Round {
        self.confirmed.as_ref().map_or(Round(0), |confirmed| confirmed.round)
    }

    /// Returns the span of the primary's lease; 0 if its epoch has none.
    #[must_use]
    pub fn lease(&self) -> Micros {
        self.lease
    }

    /// Returns the time from which on the primary's lease does not hold any more; `None` if it never held, or the epoch has none.
    #[must_use]
    pub fn leased_until(&self) -> Option<Time> {
        let confirmed = self.confirmed.as_ref().filter(|_| self.lease > Micros(0));
        confirmed.map(|confirmed| held_until(confirmed.at, self.lease))
    }

    /// Whether the primary holds a lease. This is asked when an answer is released, never when its request came (rule 21): a
    /// pause in between may outlast the lease.
    #[must_use]
    pub fn is_leased(&self, now: Time) -> bool {
        self.leased_until().is_some_and(|until| now < until)
    }

    /// Returns the age of what the primary knows: the span since its last confirmed round began; `None` before the first one.
    #[must_use]
    pub fn staleness(&self, now: Time) -> Option<Micros> {
        self.confirmed.as_ref().map(|confirmed| now.since(confirmed.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Life};

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);
    const C: ReplicaId = ReplicaId(3);
    const LEARNER: ReplicaId = ReplicaId(4);

    fn mark(at: u64) -> Mark {
        Mark { life: Life(1), at: Time(at) }
    }

    fn rounds(acks: usize) -> Rounds {
        let config = EpochConfig::parse(Epoch(3), vec![A, B, C], acks, A).unwrap();
        Rounds::new(config, Micros(1_000_000))
    }

    #[test]
    fn a_round_is_confirmed_by_the_commit_quorum_and_confirms_those_before() {
        let mut rounds = rounds(3);
        assert!(rounds.begin(Time(10), Index(1)) && rounds.begin(Time(20), Index(2)));
        assert!(!rounds.handle_confirmed(B, Round(2), mark(0)));
        assert!(!rounds.handle_confirmed(LEARNER, Round(2), mark(0)), "a learner counts nowhere");
        assert!(!rounds.handle_confirmed(B, Round(2), mark(0)), "twice the same member");
        assert!(!rounds.handle_confirmed(C, Round(3), mark(0)), "a round that has not begun");
        assert!(rounds.handle_confirmed(C, Round(1), mark(0)));
        assert_eq!((rounds.confirmed(), rounds.staleness(Time(25))), (Round(1), Some(Micros(15))));
        assert!(rounds.handle_confirmed(C, Round(2), mark(0)));
        assert_eq!((rounds.confirmed(), rounds.staleness(Time(25))), (Round(2), Some(Micros(5))));
    }

    #[test]
    fn a_lease_is_counted_from_the_beginning_of_its_round() {
        let mut rounds = rounds(1);
        assert!(!rounds.is_leased(Time(0)));
        rounds.begin(Time(500), Index(1));
        rounds.handle_confirmed(B, Round(1), mark(0));
        assert_eq!(rounds.leased_until(), Some(Time(999_500)));
        assert!(rounds.is_leased(Time(999_499)) && !rounds.is_leased(Time(999_500)));
    }

    #[test]
    fn a_replica_gets_a_mark_that_is_older_than_the_confirmed_round() {
        let mut rounds = rounds(2);
        rounds.begin(Time(10), Index(4));
        assert_eq!(rounds.ask(B).unwrap().fresh, None);
        rounds.handle_confirmed(B, Round(1), mark(7_001));
        rounds.handle_confirmed(LEARNER, Round(1), mark(50));
        assert_eq!(rounds.ask(B).unwrap().fresh, None, "the round began before the mark came");
        rounds.begin(Time(20), Index(6));
        rounds.handle_confirmed(C, Round(2), mark(3));
        let fresh = Some(Fresh { as_of: mark(7_001), upto: Index(6) });
        assert_eq!((rounds.ask(B).unwrap().fresh, rounds.ask(C).unwrap().fresh), (fresh, None));
        assert_eq!(rounds.ask(LEARNER).unwrap().fresh.unwrap().as_of, mark(50));
    }

    #[test]
    fn rounds_without_a_confirmation_are_bounded() {
        let mut rounds = rounds(2);
        (0..ROUNDS_MAX).for_each(|at| assert!(rounds.begin(Time(at as u64), Index(1))));
        assert!(!rounds.begin(Time(99), Index(1)));
        assert!(rounds.handle_confirmed(C, Round(1), mark(1)));
        assert!(rounds.begin(Time(99), Index(1)));
    }

    #[test]
    fn a_lone_primary_confirms_its_rounds_itself() {
        let mut rounds = Rounds::new(EpochConfig::single(Epoch(1), A), Micros(0));
        assert!(rounds.begin(Time(5), Index(1)));
        assert_eq!((rounds.confirmed(), rounds.leased_until()), (Round(1), None));
    }
}
