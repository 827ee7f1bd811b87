//! The commit rule: a shard's configuration of one epoch, and how far its members have stored the log.
//!
//! Knows numbers only, no entries. One node is the case of one member.

use crate::ids::{Epoch, Index, NodeId};
use std::collections::BTreeMap;
use thiserror::Error;

/// The configuration of a shard, which is fixed within an epoch. It is consistent: [`EpochConfig::parse`] checked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochConfig {
    epoch: Epoch,
    members: Vec<NodeId>,
    acks: usize,
    primary: NodeId,
}

/// Reasons for which the configuration of an epoch is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EpochConfigError {
    /// No node holds a replica.
    #[error("epoch {epoch} has no members; name at least one")]
    NoMembers {
        /// The epoch.
        epoch: Epoch,
    },
    /// A node is named twice: its one copy of the log would count as two.
    #[error("epoch {epoch} names member {member} twice; name each member once")]
    MemberTwice {
        /// The epoch.
        epoch: Epoch,
        /// The node.
        member: NodeId,
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
    /// The primary holds no replica.
    #[error("epoch {epoch} has primary {primary}, which is no member; name one of the members")]
    Primary {
        /// The epoch.
        epoch: Epoch,
        /// The refused primary.
        primary: NodeId,
    },
}

impl EpochConfig {
    /// Checks a configuration. `members` are the nodes that hold a replica, without learners; `acks` is W: the
    /// replicas that must store an entry before its client is answered; `primary` is the member that executes.
    ///
    /// # Errors
    /// [`EpochConfigError`] without members, with a member that is named twice, with acks out of 1 to the number of
    /// members, or with a primary that is not a member.
    pub fn parse(
        epoch: Epoch,
        members: Vec<NodeId>,
        acks: usize,
        primary: NodeId,
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
        Ok(Self { epoch, members, acks, primary })
    }

    /// Returns the configuration of a single node.
    #[must_use]
    pub fn single(epoch: Epoch, node: NodeId) -> Self {
        Self { epoch, members: vec![node], acks: 1, primary: node }
    }

    /// Returns the epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the nodes that hold a replica, without learners: at least one, each once.
    #[must_use]
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    /// Returns W: replicas that must store an entry before its client is answered, from 1 to the number of members.
    #[must_use]
    pub fn acks(&self) -> usize {
        self.acks
    }

    /// Returns the member that executes.
    #[must_use]
    pub fn primary(&self) -> NodeId {
        self.primary
    }

    /// Returns S = max(W, majority): members that must store an entry before it is committed, from 1 to the number of
    /// members.
    #[must_use]
    pub fn commit_quorum(&self) -> usize {
        self.acks.max(self.members.len() / 2 + 1)
    }
}

/// The commit rule of one epoch, at its primary.
#[derive(Clone, Debug)]
pub struct CommitTracker {
    config: EpochConfig,
    /// The epoch's start entry: nothing is committed before it.
    start: Index,
    stored: BTreeMap<NodeId, Index>,
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
    pub fn handle_stored(&mut self, member: NodeId, upto: Index) -> bool {
        let Some(stored) = self.stored.get_mut(&member) else { return false };
        *stored = upto.max(*stored);
        let mut all: Vec<Index> = self.stored.values().copied().collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = *all.get(self.config.commit_quorum() - 1).expect("EpochConfig::parse checked it");
        // Older entries count as committed once the start entry is: a stored entry of an older epoch alone proves
        // nothing.
        let grows = quorum >= self.start && quorum > self.commit;
        if grows {
            self.commit = quorum;
        }
        grows
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

    fn nodes(numbers: &[u32]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_configuration_that_no_quorum_can_satisfy_is_refused() {
        let parse = |members: &[u32], acks, primary| {
            EpochConfig::parse(Epoch(4), nodes(members), acks, NodeId(primary))
        };
        let epoch = Epoch(4);
        assert_eq!(parse(&[], 1, 1), Err(EpochConfigError::NoMembers { epoch }));
        assert_eq!(parse(&[1, 2, 1], 2, 1), Err(EpochConfigError::MemberTwice { epoch, member: NodeId(1) }));
        assert_eq!(parse(&[1, 2, 3], 0, 1), Err(EpochConfigError::Acks { epoch, acks: 0, members: 3 }));
        assert_eq!(parse(&[1, 2, 3], 4, 1), Err(EpochConfigError::Acks { epoch, acks: 4, members: 3 }));
        assert_eq!(parse(&[1, 2, 3], 2, 4), Err(EpochConfigError::Primary { epoch, primary: NodeId(4) }));
        assert_eq!(parse(&[1], 1, 1), Ok(EpochConfig::single(epoch, NodeId(1))));
        assert_eq!(parse(&[1, 2, 3], 2, 2).map(|config| config.primary()), Ok(NodeId(2)));
    }

    #[test]
    fn the_commit_quorum_is_the_larger_of_acks_and_majority_and_never_more_than_the_members() {
        for members in 1..=7 {
            for acks in 1..=members {
                let all: Vec<NodeId> = (1..=members as u32).map(NodeId).collect();
                let config = EpochConfig::parse(Epoch(1), all, acks, NodeId(1)).unwrap();
                assert_eq!(config.commit_quorum(), acks.max(members / 2 + 1));
                assert!(config.commit_quorum() <= members);
            }
        }
    }
}
