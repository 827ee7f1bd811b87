//! Reads at a primary that wait for their answer to be right.
//!
//! A read runs at once, on the state as it is, which may be ahead of the commit index. Its answer waits here.

use super::rounds::Rounds;
use crate::commit_tracker::CommitTracker;
use crate::ids::{Index, Micros, Round, Time};
use std::collections::VecDeque;

/// The promise of a read at a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadKind {
    /// The answer is current: it waits for a round that begins after the read came, and until what it saw is committed
    /// (rule 22).
    Linearizable,
    /// The answer is current as far as the primary's lease shows: it waits until what it saw could be answered itself, and is
    /// released under the lease only (rule 21). Without a lease it is linearizable.
    Primary,
    /// The answer is of committed state: it waits until what it saw is committed. It is as old as [`Rounds::staleness`] said when the
    /// read captured the state: a round that began since shows nothing of that state.
    Stale,
}

/// A read that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting<T> {
    /// The last entry that it saw.
    seen: Index,
    /// The round that it waits for; 0 for none.
    round: Round,
    read: T,
}

/// The reads of one epoch, at its primary. `T` is the read as its caller knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reads<T> {
    /// They wait for the commit index, in the order in which they came: neither what they saw nor their rounds fall.
    linearizable: VecDeque<Waiting<T>>,
    stale: VecDeque<Waiting<T>>,
    /// They wait for a lease.
    leased: VecDeque<Waiting<T>>,
}

impl<T> Default for Reads<T> {
    fn default() -> Self {
        Self { linearizable: VecDeque::new(), stale: VecDeque::new(), leased: VecDeque::new() }
    }
}

impl<T> Reads<T> {
    /// Takes a read that ran on the state after entry `seen`.
    pub fn push(&mut self, kind: ReadKind, seen: Index, rounds: &Rounds, read: T) {
        let (queue, round) = match kind {
            ReadKind::Primary if rounds.lease() > Micros(0) => (&mut self.leased, Round(0)),
            ReadKind::Linearizable | ReadKind::Primary => (&mut self.linearizable, rounds.next()),
            ReadKind::Stale => (&mut self.stale, Round(0)),
        };
        queue.push_back(Waiting { seen, round, read });
    }

    /// Whether a read waits for a round that has not begun, or for a lease that does not hold.
    #[must_use]
    pub fn needs_round(&self, now: Time, rounds: &Rounds) -> bool {
        self.linearizable.back().is_some_and(|last| last.round == rounds.next())
            || !self.leased.is_empty() && !rounds.is_leased(now)
    }

    /// Whether a read waits for a commit.
    #[must_use]
    pub fn waits_for_commit(&self) -> bool {
        !self.linearizable.is_empty() || !self.stale.is_empty()
    }

    /// Takes off the reads that may be answered now.
    pub fn release(&mut self, now: Time, rounds: &Rounds, tracker: &CommitTracker) -> Vec<(ReadKind, T)> {
        let (commit, answerable) = (tracker.commit(), tracker.answerable());
        let (confirmed, is_leased) = (rounds.confirmed(), rounds.is_leased(now));
        let mut released = Vec::new();
        // An epoch that is not active serves nothing: even what was committed before it could be unknown here.
        if !tracker.is_active() {
            return released;
        }
        let mut take = |queue: &mut VecDeque<Waiting<T>>, kind, upto| {
            let may = |read: &mut Waiting<T>| read.seen <= upto && read.round <= confirmed;
            while let Some(waiting) = queue.pop_front_if(may) {
                released.push((kind, waiting.read));
            }
        };
        take(&mut self.linearizable, ReadKind::Linearizable, commit);
        take(&mut self.stale, ReadKind::Stale, commit);
        if is_leased {
            take(&mut self.leased, ReadKind::Primary, answerable);
        }
        released
    }

    /// Takes off all reads: the primary is deposed, so that they have to be asked elsewhere.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        let queues = [&mut self.linearizable, &mut self.stale, &mut self.leased];
        queues.into_iter().flat_map(|queue| queue.drain(..)).map(|waiting| waiting.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit_tracker::EpochConfig;
    use crate::ids::{Epoch, Life, ReplicaId};
    use crate::replication::epoch::Mark;

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);
    const C: ReplicaId = ReplicaId(3);

    /// A primary with its start entry at index 1.
    struct Primary {
        tracker: CommitTracker,
        rounds: Rounds,
        reads: Reads<&'static str>,
    }

    fn primary(acks: usize, lease: Micros) -> Primary {
        let config = EpochConfig::parse(Epoch(2), vec![A, B, C], acks, A).unwrap();
        let tracker = CommitTracker::new(config.clone(), Index(1));
        Primary { tracker, rounds: Rounds::new(config, lease), reads: Reads::default() }
    }

    impl Primary {
        fn stored(&mut self, replica: ReplicaId, upto: u64) {
            self.tracker.handle_stored(replica, Index(upto));
        }

        fn confirmed(&mut self, replica: ReplicaId, round: u64) {
            let mark = Mark { life: Life(1), at: Time(0) };
            self.rounds.handle_confirmed(replica, Round(round), mark);
        }

        fn read(&mut self, kind: ReadKind, seen: u64, name: &'static str) {
            self.reads.push(kind, Index(seen), &self.rounds, name);
        }

        fn released(&mut self, now: u64) -> Vec<&'static str> {
            let released = self.reads.release(Time(now), &self.rounds, &self.tracker);
            released.into_iter().map(|(_, name)| name).collect()
        }
    }

    #[test]
    fn one_round_that_begins_after_them_serves_many_reads() {
        let mut primary = primary(2, Micros(0));
        primary.rounds.begin(Time(0), Index(0));
        primary.stored(A, 1);
        primary.stored(B, 1);
        primary.read(ReadKind::Linearizable, 1, "x");
        primary.read(ReadKind::Linearizable, 1, "y");
        primary.confirmed(B, 1);
        assert_eq!(primary.released(1), [""; 0], "that round began before the reads came");
        assert!(primary.reads.needs_round(Time(1), &primary.rounds));
        primary.rounds.begin(Time(1), Index(1));
        assert!(!primary.reads.needs_round(Time(1), &primary.rounds));
        primary.read(ReadKind::Linearizable, 1, "z");
        primary.confirmed(C, 2);
        assert_eq!(primary.released(2), ["x", "y"]);
    }

    #[test]
    fn a_read_waits_until_what_it_saw_is_committed() {
        let mut primary = primary(2, Micros(0));
        primary.stored(A, 3);
        primary.stored(B, 2);
        primary.read(ReadKind::Linearizable, 3, "linearizable");
        primary.read(ReadKind::Stale, 3, "stale");
        primary.rounds.begin(Time(1), Index(2));
        primary.confirmed(B, 1);
        assert_eq!(primary.released(1), [""; 0]);
        primary.stored(C, 3);
        assert_eq!(primary.released(1), ["linearizable", "stale"]);
    }

    #[test]
    fn a_primary_that_pauses_for_longer_than_its_lease_releases_nothing() {
        let mut primary = primary(1, Micros(1_000));
        primary.stored(A, 2);
        primary.stored(B, 1);
        primary.rounds.begin(Time(0), Index(1));
        primary.confirmed(B, 1);
        primary.read(ReadKind::Primary, 2, "before");
        assert_eq!(
            primary.released(998),
            ["before"],
            "W members have what it saw, though it is not committed"
        );
        primary.read(ReadKind::Primary, 2, "behind");
        assert_eq!(primary.released(999), [""; 0]);
        assert!(primary.reads.needs_round(Time(999), &primary.rounds));
        primary.rounds.begin(Time(1_500), Index(2));
        primary.confirmed(C, 2);
        assert_eq!(primary.released(1_500), ["behind"]);
    }

    #[test]
    fn without_a_lease_a_primary_read_is_linearizable() {
        let mut primary = primary(2, Micros(0));
        primary.stored(A, 1);
        primary.stored(B, 1);
        primary.read(ReadKind::Primary, 1, "x");
        assert_eq!(primary.released(0), [""; 0]);
        primary.rounds.begin(Time(0), Index(1));
        primary.confirmed(B, 1);
        assert_eq!(primary.released(0), ["x"]);
    }

    #[test]
    fn nothing_is_released_before_the_epoch_is_active_and_all_goes_when_it_ends() {
        let mut primary = primary(1, Micros(1_000));
        primary.rounds.begin(Time(0), Index(0));
        primary.confirmed(B, 1);
        primary.read(ReadKind::Primary, 0, "primary");
        primary.read(ReadKind::Stale, 0, "stale");
        assert_eq!(primary.released(1), [""; 0]);
        assert_eq!(primary.reads.drain().collect::<Vec<_>>(), ["stale", "primary"]);
    }
}
