//! A service's dial: the positions between fast and safe.

use crate::commit_tracker::EpochConfig;
pub use crate::durability::Durability;
use crate::ids::Micros;
use minicbor::{Decode, Encode};
use thiserror::Error;

/// The number of replicas that store an entry before its client is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Acks {
    /// More than half of them: the default.
    #[default]
    #[n(0)]
    Majority,
    /// So many; 1 to the number of replicas.
    #[n(1)]
    Count(#[n(0)] u8),
}

impl Acks {
    /// Returns W for a number of members, which is at least 1: never more than there are.
    #[must_use]
    pub fn of(self, members: usize) -> usize {
        match self {
            Self::Majority => members / 2 + 1,
            Self::Count(count) => usize::from(count).clamp(1, members.max(1)),
        }
    }
}

/// The dial of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Dial {
    /// Replicas of each shard; 1 to [`EpochConfig::MEMBERS_MAX`], 1 by default. As long as there are fewer nodes, there are fewer
    /// replicas.
    #[n(0)]
    pub replicas: u8,
    /// Replicas that store an entry before its client is answered.
    #[n(1)]
    pub acks: Acks,
    /// The time at which a log is synced.
    #[n(2)]
    pub durability: Durability,
    /// The greatest age of an answer that is read at a backup, and the greatest lag of the backups of an asynchronous service; 1
    /// millisecond to 24 hours, 10 seconds by default.
    #[n(3)]
    pub max_lag: Micros,
    /// The span of the leases of an asynchronous service's primary; 500 milliseconds by default, more than 0. A failover takes so
    /// much longer, unless the old primary is proven dead.
    #[n(4)]
    pub lease: Micros,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            replicas: 1,
            acks: Acks::default(),
            durability: Durability::default(),
            max_lag: Micros::from_secs(10),
            lease: Micros::from_millis(500),
        }
    }
}

/// Reasons for which a dial is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Encode, Decode)]
pub enum DialError {
    /// A number of replicas is out of range.
    #[error("{replicas} replicas are out of range; ask for 1 to {max}", max = EpochConfig::MEMBERS_MAX)]
    #[n(0)]
    Replicas {
        /// The refused number.
        #[n(0)]
        replicas: u8,
    },
    /// No entry would ever be acknowledged by so many.
    #[error("{acks} acks of {replicas} replicas are out of range; ask for 1 to {replicas}")]
    #[n(1)]
    Acks {
        /// The refused number.
        #[n(0)]
        acks: u8,
        /// The number of replicas.
        #[n(1)]
        replicas: u8,
    },
    /// A lease is 0 or longer than an hour.
    #[error("a lease of {lease} is out of range; ask for more than 0, and at most an hour")]
    #[n(2)]
    Lease {
        /// The refused span.
        #[n(0)]
        lease: Micros,
    },
    /// A greatest age is shorter than a millisecond or longer than a day.
    #[error("a greatest age of {max_lag} is out of range; ask for 1 ms to 24 h")]
    #[n(3)]
    MaxLag {
        /// The refused age.
        #[n(0)]
        max_lag: Micros,
    },
}

impl Dial {
    /// The longest lease: an hour.
    pub const LEASE_MAX: Micros = Micros::from_secs(3_600);
    /// The least [`Self::max_lag`]: a millisecond. No backup would answer with less.
    pub const MAX_LAG_MIN: Micros = Micros::from_millis(1);
    /// The greatest [`Self::max_lag`]: a day.
    pub const MAX_LAG_MAX: Micros = Micros::from_secs(24 * 3_600);

    /// Checks a dial.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn check(&self) -> Result<(), DialError> {
        let replicas = self.replicas;
        if replicas == 0 || usize::from(replicas) > EpochConfig::MEMBERS_MAX {
            return Err(DialError::Replicas { replicas });
        }
        match self.acks {
            Acks::Count(acks) if acks == 0 || acks > replicas => {
                return Err(DialError::Acks { acks, replicas });
            }
            Acks::Majority | Acks::Count(_) => {}
        }
        if self.lease == Micros(0) || self.lease > Self::LEASE_MAX {
            return Err(DialError::Lease { lease: self.lease });
        }
        let max_lag = self.max_lag;
        if !(Self::MAX_LAG_MIN..=Self::MAX_LAG_MAX).contains(&max_lag) {
            return Err(DialError::MaxLag { max_lag });
        }
        Ok(())
    }

    /// Returns W and the span of the leases of an epoch with so many members: 0 for none, if clients are answered only when their
    /// entries are committed.
    #[must_use]
    pub fn acks_and_lease(&self, members: usize) -> (usize, Micros) {
        let (majority, replicas) = (members / 2 + 1, usize::from(self.replicas));
        let mut acks = self.acks.of(members);
        // While there are more members than replicas are asked for, as when one replaces another, no promise is weaker.
        if members > replicas && self.acks.of(replicas) > replicas / 2 {
            acks = acks.max(majority);
        }
        let is_early = acks < majority;
        (acks, if is_early { self.lease } else { Micros(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_positions_are_refused() {
        let dial = Dial { replicas: 3, ..Dial::default() };
        assert_eq!(dial.check(), Ok(()));
        assert_eq!(Dial { replicas: 0, ..dial }.check(), Err(DialError::Replicas { replicas: 0 }));
        assert_eq!(Dial { replicas: 33, ..dial }.check(), Err(DialError::Replicas { replicas: 33 }));
        let acks = |acks| Dial { acks: Acks::Count(acks), ..dial }.check();
        assert_eq!((acks(1), acks(3)), (Ok(()), Ok(())));
        assert_eq!(acks(4), Err(DialError::Acks { acks: 4, replicas: 3 }));
        assert_eq!(acks(0), Err(DialError::Acks { acks: 0, replicas: 3 }));
        let lease = Micros(0);
        assert_eq!(Dial { lease, ..dial }.check(), Err(DialError::Lease { lease }));
        let lag = |max_lag| Dial { max_lag, ..dial }.check();
        assert_eq!((lag(Dial::MAX_LAG_MIN), lag(Dial::MAX_LAG_MAX)), (Ok(()), Ok(())));
        for max_lag in [Micros(0), Micros(999), Micros(Dial::MAX_LAG_MAX.0 + 1)] {
            assert_eq!(lag(max_lag), Err(DialError::MaxLag { max_lag }));
        }
    }

    #[test]
    fn only_what_answers_before_the_commit_has_a_lease() {
        let dial = Dial { replicas: 5, acks: Acks::Count(2), ..Dial::default() };
        let lease = dial.lease;
        assert_eq!(
            [1, 2, 3, 5].map(|n| dial.acks_and_lease(n)),
            [(1, Micros(0)), (2, Micros(0)), (2, Micros(0)), (2, lease)]
        );
        let lone = Dial { replicas: 1, acks: Acks::Count(1), ..dial };
        assert_eq!(lone.acks_and_lease(2), (2, Micros(0)), "one replaces the other");
        let early = Dial { replicas: 3, acks: Acks::Count(1), ..dial };
        assert_eq!(early.acks_and_lease(4), (1, lease));
        let majority = Dial { acks: Acks::Majority, ..dial };
        assert_eq!([1, 2, 3, 4].map(|n| majority.acks_and_lease(n).0), [1, 2, 2, 3]);
    }
}
