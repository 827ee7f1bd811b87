//! What is committed: a shard's configuration of one epoch, and how far its members have stored the log.
//!
//! Knows numbers only, no entries. One node is the case of one member.

use crate::ids::{Epoch, Index, NodeId};
use std::collections::BTreeMap;

/// What is fixed within an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochConfig {
    /// The epoch.
    pub epoch: Epoch,
    /// The nodes that hold a replica, without learners.
    pub members: Vec<NodeId>,
    /// W: replicas that must store an entry before its client is answered.
    pub acks: usize,
    /// The member that executes.
    pub primary: NodeId,
}

impl EpochConfig {
    /// The configuration of a single node.
    #[must_use]
    pub fn single(epoch: Epoch, node: NodeId) -> Self {
        Self { epoch, members: vec![node], acks: 1, primary: node }
    }

    /// S = max(W, majority): members that must store an entry before it is committed.
    #[must_use]
    pub fn commit_quorum(&self) -> usize {
        self.acks.max(self.members.len() / 2 + 1)
    }
}

/// The commit rule of one epoch, at its primary.
#[derive(Clone, Debug)]
pub struct Replica {
    config: EpochConfig,
    /// The epoch's start entry: nothing is committed before it is.
    start: Index,
    stored: BTreeMap<NodeId, Index>,
    commit: Index,
}

impl Replica {
    /// The primary's view at the moment when it appends its start entry.
    #[must_use]
    pub fn new(config: EpochConfig, start: Index) -> Self {
        let stored = config.members.iter().map(|&member| (member, Index(0))).collect();
        Self { config, start, stored, commit: Index(0) }
    }

    /// A member stored its log up to an index; true if the commit index grew. Old news changes nothing.
    pub fn handle_stored(&mut self, member: NodeId, upto: Index) -> bool {
        let Some(stored) = self.stored.get_mut(&member) else { return false };
        *stored = upto.max(*stored);
        let mut all: Vec<Index> = self.stored.values().copied().collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = all[self.config.commit_quorum() - 1];
        // Older entries count as committed once the start entry is: an entry of an older epoch alone proves nothing.
        let grows = quorum >= self.start && quorum > self.commit;
        if grows {
            self.commit = quorum;
        }
        grows
    }

    /// The epoch's configuration.
    #[must_use]
    pub fn config(&self) -> &EpochConfig {
        &self.config
    }

    /// Whether the start entry is committed: only then is anything served.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.commit >= self.start
    }

    /// The commit index; 0 until the epoch is active.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_committed_before_the_start_entry() {
        let mut replica = Replica::new(EpochConfig::single(Epoch(2), NodeId(1)), Index(10));
        assert!(!replica.handle_stored(NodeId(1), Index(9)));
        assert!(!replica.is_active());
        assert!(replica.handle_stored(NodeId(1), Index(10)));
        assert!(replica.is_active());
        assert!(!replica.handle_stored(NodeId(1), Index(4)));
        assert_eq!(replica.commit(), Index(10));
    }

    #[test]
    fn the_commit_quorum_is_the_larger_of_acks_and_majority() {
        let members = vec![NodeId(1), NodeId(2), NodeId(3)];
        for (acks, quorum) in [(1, 2), (2, 2), (3, 3)] {
            let config = EpochConfig { epoch: Epoch(1), members: members.clone(), acks, primary: NodeId(1) };
            assert_eq!(config.commit_quorum(), quorum);
            let mut replica = Replica::new(config, Index(1));
            replica.handle_stored(NodeId(1), Index(5));
            assert_eq!(replica.commit(), Index(0));
            replica.handle_stored(NodeId(2), Index(3));
            assert_eq!(replica.commit(), if quorum == 2 { Index(3) } else { Index(0) });
            replica.handle_stored(NodeId(9), Index(5));
            replica.handle_stored(NodeId(3), Index(4));
            assert_eq!(replica.commit(), if quorum == 2 { Index(4) } else { Index(3) });
        }
    }
}
