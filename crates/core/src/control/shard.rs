//! The record of a shard.

use crate::commit_tracker::EpochConfig;
use crate::ids::{DiskNumber, Epoch, NodeId, ReplicaId};
use crate::replication::history::History;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// The stage of a replica in its stint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Stage {
    /// It catches up, and counts nowhere (rule 2).
    #[n(0)]
    Learner,
    /// An epoch named it, maybe one that is over.
    #[n(1)]
    Member,
    /// Its data are to be deleted: no epoch that matters names it, and none ever will (rule 5).
    #[n(2)]
    Released,
}

/// A replica on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReplicaRecord {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// The node's disk when it was placed there.
    #[n(1)]
    pub disk: DiskNumber,
    /// The stage.
    #[n(2)]
    pub stage: Stage,
    /// It may have lost what it acknowledged, or holds what was given up: it counts nowhere any more (rule 3).
    #[n(3)]
    pub is_void: bool,
}

/// A shard: its epochs, and its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardRecord {
    #[n(0)]
    pub(super) history: History,
    #[n(1)]
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaRecord>,
    #[n(2)]
    pub(super) next_replica: ReplicaId,
    /// The highest epoch that is recorded as active; 0 if none is.
    #[n(3)]
    pub(super) active: Epoch,
    /// The number of changes so far.
    #[n(4)]
    pub(super) version: u64,
}

impl ShardRecord {
    /// Maximum number of its replicas, released ones included whose data may still be there: 64.
    pub const REPLICAS_MAX: usize = 2 * EpochConfig::MEMBERS_MAX;

    /// Returns its epochs.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Returns its replicas whose data may still be on their nodes.
    #[must_use]
    pub fn replicas(&self) -> &BTreeMap<ReplicaId, ReplicaRecord> {
        &self.replicas
    }

    /// Returns the number of the next replica: none is used twice (rule 1).
    #[must_use]
    pub fn next_replica(&self) -> ReplicaId {
        self.next_replica
    }

    /// Returns the number of changes so far: as long as it stays, the record is the same.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the newest epoch is recorded as active.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.active == self.history.newest().config.epoch()
    }

    /// Returns the highest epoch that is recorded as active; 0 if none is. May be late, never early (rule 13).
    #[must_use]
    pub fn active(&self) -> Epoch {
        self.active
    }

    /// Whether an epoch that still matters names a replica.
    #[must_use]
    pub fn is_named(&self, replica: ReplicaId) -> bool {
        self.history.records().iter().any(|record| record.config.members().contains(&replica))
    }

    /// Returns the node of the newest epoch's primary.
    #[must_use]
    pub fn primary_node(&self) -> Option<NodeId> {
        let primary = self.history.newest().config.primary();
        self.replicas.get(&primary).map(|placed| placed.node)
    }

    /// Returns the replicas that catch up.
    pub fn learners(&self) -> impl Iterator<Item = ReplicaId> {
        let learners = self.replicas.iter().filter(|(_, placed)| placed.stage == Stage::Learner);
        learners.map(|(id, _)| *id)
    }
}
