//! The commit rule: a shard's configuration of one epoch, and how far its members have stored the log.
//!
//! Knows numbers only, no entries. One node is the case of one member.

use crate::durability::Durability;
use crate::ids::{Epoch, Index, ReplicaId};
use minicbor::Encode;
use std::collections::BTreeMap;
use thiserror::Error;

/// The configuration of a shard, which is fixed within an epoch. It is consistent: [`EpochConfig::parse`] checked it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct EpochConfig {
    #[n(0)]
    epoch: Epoch,
    #[n(1)]
    members: Vec<ReplicaId>,
    #[n(2)]
    acks: usize,
    #[n(3)]
    primary: ReplicaId,
    #[n(4)]
    durability: Durability,
}

/// Reasons for which the configuration of an epoch is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EpochConfigError {
    /// No replica is named.
    #[error("epoch {epoch} has no members; name at least one")]
    NoMembers {
        /// The epoch.
        epoch: Epoch,
    },
    /// A replica is named twice: its one copy of the log would count as two.
    #[error("epoch {epoch} names member {member} twice; name each member once")]
    MemberTwice {
        /// The epoch.
        epoch: Epoch,
        /// The replica.
        member: ReplicaId,
    },
    /// W is 0, or more than there are members.
    #[error("epoch {epoch} asks for {acks} acks of {members} members; ask for 1 to {members}")]
    Acks {
        /// The epoch.
        epoch: Epoch,
        /// The refused W.
        acks: usize,
        /// The number of members.
        members: usize,
    },
    /// The primary is no member.
    #[error("epoch {epoch} has primary {primary}, which is no member; name one of the members")]
    Primary {
        /// The epoch.
        epoch: Epoch,
        /// The refused primary.
        primary: ReplicaId,
    },
}

impl EpochConfig {
    /// Greatest number of members that is taken from outside.
    pub const MEMBERS_MAX: usize = 32;

    /// Checks a configuration. `members` are the replicas that count, without learners; `acks` is W: the
    /// replicas that must store an entry before its client is answered; `primary` is the member that executes.
    ///
    /// # Errors
    /// [`EpochConfigError`] without members, with a member that is named twice, with acks out of 1 to the number of
    /// members, or with a primary that is not a member.
    pub fn parse(
        epoch: Epoch,
        members: Vec<ReplicaId>,
        acks: usize,
        primary: ReplicaId,
    ) -> Result<Self, EpochConfigError> {
        if members.is_empty() {
            return Err(EpochConfigError::NoMembers { epoch });
        }
        let twice = members.iter().enumerate().find(|(at, member)| members[..*at].contains(member));
        if let Some((_, &member)) = twice {
            return Err(EpochConfigError::MemberTwice { epoch, member });
        }
        if acks == 0 || acks > members.len() {
            return Err(EpochConfigError::Acks { epoch, acks, members: members.len() });
        }
        if !members.contains(&primary) {
            return Err(EpochConfigError::Primary { epoch, primary });
        }
        Ok(Self { epoch, members, acks, primary, durability: Durability::Always })
    }

    /// Returns the configuration of a single replica.
    #[must_use]
    pub fn single(epoch: Epoch, replica: ReplicaId) -> Self {
        Self { epoch, members: vec![replica], acks: 1, primary: replica, durability: Durability::Always }
    }

    /// Sets the time at which the members sync what they acknowledge; before that by default.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Returns the time at which the members sync what they acknowledge.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Returns the epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the replicas that count, without learners: at least one, each once.
    #[must_use]
    pub fn members(&self) -> &[ReplicaId] {
        &self.members
    }

    /// Returns W: replicas that must store an entry before its client is answered, from 1 to the number of members.
    #[must_use]
    pub fn acks(&self) -> usize {
        self.acks
    }

    /// Returns the member that executes.
    #[must_use]
    pub fn primary(&self) -> ReplicaId {
        self.primary
    }

    /// Returns S = max(W, majority): members that must store an entry before it is committed, from 1 to the number of
    /// members.
    #[must_use]
    pub fn commit_quorum(&self) -> usize {
        self.acks.max(self.members.len() / 2 + 1)
    }

    /// Whether W is below S: clients may be answered before their entries are committed.
    #[must_use]
    pub fn is_asynchronous(&self) -> bool {
        self.acks < self.commit_quorum()
    }
}

/// The commit rule of one epoch, at its primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommitTracker {
    config: EpochConfig,
    /// The epoch's start entry: nothing is committed before it.
    start: Index,
    stored: BTreeMap<ReplicaId, Index>,
    commit: Index,
}

impl CommitTracker {
    /// Creates the primary's view when it appends its start entry.
    #[must_use]
    pub fn new(config: EpochConfig, start: Index) -> Self {
        let stored = config.members.iter().map(|&member| (member, Index(0))).collect();
        Self { config, start, stored, commit: Index(0) }
    }

    /// Handles that a member stored its log up to an index; returns true if the commit index grew. Old reports change
    /// nothing.
    pub fn handle_stored(&mut self, member: ReplicaId, upto: Index) -> bool {
        let Some(stored) = self.stored.get_mut(&member) else { return false };
        *stored = upto.max(*stored);
        let quorum = self.stored_by(self.config.commit_quorum());
        // Older entries count as committed once the start entry is: a stored entry of an older epoch alone proves
        // nothing.
        let grows = quorum >= self.start && quorum > self.commit;
        if grows {
            self.commit = quorum;
        }
        grows
    }

    /// Returns the highest index that so many members have stored.
    fn stored_by(&self, members: usize) -> Index {
        let is_enough =
            |upto: &Index| self.stored.values().filter(|stored| *stored >= upto).count() >= members;
        self.stored.values().copied().filter(is_enough).max().expect("EpochConfig::parse checked it")
    }

    /// Returns the index up to which W members have stored the log: clients may be answered up to it, under a lease if it is
    /// above the commit index. 0 until the epoch is active.
    #[must_use]
    pub fn answerable(&self) -> Index {
        if self.is_active() { self.stored_by(self.config.acks) } else { Index(0) }
    }

    /// Returns the epoch's configuration.
    #[must_use]
    pub fn config(&self) -> &EpochConfig {
        &self.config
    }

    /// Whether the start entry is committed: nothing is served before that.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.commit >= self.start
    }

    /// Returns the commit index; 0 until the epoch is active.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(numbers: &[u64]) -> Vec<ReplicaId> {
        numbers.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn a_configuration_that_no_quorum_can_satisfy_is_refused() {
        let parse = |members: &[u64], acks, primary| {
            EpochConfig::parse(Epoch(4), replicas(members), acks, ReplicaId(primary))
        };
        let epoch = Epoch(4);
        assert_eq!(parse(&[], 1, 1), Err(EpochConfigError::NoMembers { epoch }));
        assert_eq!(
            parse(&[1, 2, 1], 2, 1),
            Err(EpochConfigError::MemberTwice { epoch, member: ReplicaId(1) })
        );
        assert_eq!(parse(&[1, 2, 3], 0, 1), Err(EpochConfigError::Acks { epoch, acks: 0, members: 3 }));
        assert_eq!(parse(&[1, 2, 3], 4, 1), Err(EpochConfigError::Acks { epoch, acks: 4, members: 3 }));
        assert_eq!(parse(&[1, 2, 3], 2, 4), Err(EpochConfigError::Primary { epoch, primary: ReplicaId(4) }));
        assert_eq!(parse(&[1], 1, 1), Ok(EpochConfig::single(epoch, ReplicaId(1))));
        assert_eq!(parse(&[1, 2, 3], 2, 2).map(|config| config.primary()), Ok(ReplicaId(2)));
    }

    #[test]
    fn clients_are_answered_by_the_acks_and_never_before_the_epoch_is_active() {
        let config = EpochConfig::parse(Epoch(2), replicas(&[1, 2, 3]), 1, ReplicaId(1)).unwrap();
        let mut tracker = CommitTracker::new(config, Index(5));
        assert!(!tracker.handle_stored(ReplicaId(1), Index(7)));
        assert_eq!((tracker.commit(), tracker.answerable()), (Index(0), Index(0)));
        assert!(tracker.handle_stored(ReplicaId(3), Index(5)));
        assert_eq!((tracker.commit(), tracker.answerable()), (Index(5), Index(7)));
        assert!(!tracker.handle_stored(ReplicaId(9), Index(9)), "a learner");
        assert_eq!((tracker.commit(), tracker.answerable()), (Index(5), Index(7)));
    }

    #[test]
    fn the_commit_quorum_is_the_larger_of_acks_and_majority_and_never_more_than_the_members() {
        for members in 1..=7 {
            for acks in 1..=members {
                let all: Vec<ReplicaId> = (1..=members as u64).map(ReplicaId).collect();
                let config = EpochConfig::parse(Epoch(1), all, acks, ReplicaId(1)).unwrap();
                assert_eq!(config.commit_quorum(), acks.max(members / 2 + 1));
                assert!(config.commit_quorum() <= members);
            }
        }
    }
}
