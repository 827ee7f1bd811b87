//! The control plane: what a cluster agrees on, and what it decides.
//!
//! - [`ControlState`] is the replicated state machine: nodes, services with their dials, each shard's epochs and replicas, and the
//!   last failovers. A consensus applies the same [`Command`]s in the same order on each of its voters. Each command is
//!   conditional, and its conditions are checked where it is applied: a command that comes late, twice, or from a leader that was
//!   deposed changes nothing that its sender did not see (rule 9).
//! - [`controller::Controller`] decides, on the consensus's leader: from [`facts`] and the time it makes commands and requests to
//!   nodes. All that it knows besides the state can be lost: another leader begins anew.
//! - [`directory::Directory`] says where messages for a shard go.
//! - [`health::Health`] says which nodes have failed, with a [`detector::Detector`] for the silence of each.
//!
//! Knows no consensus, no connection and no clock: times in commands are those of their sender.

mod apply;
mod attempt;
pub mod command;
pub mod controller;
#[cfg(test)]
mod controller_tests;
pub mod detector;
pub mod dial;
pub mod directory;
pub mod facts;
pub mod failover;
#[cfg(test)]
mod fake;
pub mod health;
pub mod node;
pub mod placement;
pub mod settings;
pub mod shard;
mod stored;
#[cfg(test)]
mod tests;

use crate::ids::{ClusterId, Epoch, Incarnation, Life, NodeId, ReplicaId, ShardId};
use crate::topology::Topology;
pub use command::{Command, Outcome, Refusal, ShardChange, ShardCommand};
use dial::Dial;
use failover::Failover;
use node::NodeRecord;
use shard::{ReplicaRecord, ShardRecord, Stage};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use thiserror::Error;

/// The cluster that a state belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its life since the last restore.
    pub incarnation: Incarnation,
}

/// A secret that the nodes of a cluster share: what one hands out to a client, and is authenticated by it, all others believe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The state on which a cluster agrees. The default is the state before the first command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    cluster: Option<Cluster>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    next_node: NodeId,
    topology: Topology,
    /// By service.
    dials: Vec<Dial>,
    /// By shard.
    shards: Vec<ShardRecord>,
    failovers: VecDeque<Failover>,
    is_balancing: bool,
    secret: Option<Secret>,
}

impl Default for ControlState {
    fn default() -> Self {
        Self {
            cluster: None,
            nodes: BTreeMap::new(),
            next_node: NodeId::FIRST,
            topology: Topology::new(Incarnation(0)),
            dials: Vec::new(),
            shards: Vec::new(),
            failovers: VecDeque::new(),
            is_balancing: false,
            secret: None,
        }
    }
}

/// A contradiction within a state. It was changed outside of [`ControlState::apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what}; the state of the control plane is damaged")]
pub struct Violation {
    what: &'static str,
}

impl ControlState {
    /// Greatest number of nodes.
    pub const NODES_MAX: usize = 1_024;
    /// The number of failovers that are kept: the oldest ones are dropped.
    pub const FAILOVERS_MAX: usize = 1_024;

    /// Returns the cluster; `None` before it was founded.
    #[must_use]
    pub fn cluster(&self) -> Option<Cluster> {
        self.cluster
    }

    /// Returns the secret of the cluster; `None` of one that an older version founded.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        self.secret
    }

    /// Returns the nodes that have joined and were not removed.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    /// Returns the number of the next node that joins.
    #[must_use]
    pub fn next_node(&self) -> NodeId {
        self.next_node
    }

    /// Returns the services with their shards.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Returns the dials of the services, in the order of their ids.
    #[must_use]
    pub fn dials(&self) -> &[Dial] {
        &self.dials
    }

    /// Returns the dial of a shard's service; `None` if there is no such shard.
    #[must_use]
    pub fn dial_of(&self, shard: ShardId) -> Option<&Dial> {
        self.topology.service_of(shard).map(|service| &self.dials[usize::from(service.0)])
    }

    /// Returns a shard; `None` if there is none of this number.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRecord> {
        self.shards.get(shard.0 as usize)
    }

    /// Returns the member of a shard's newest epoch that is on a node: an operator may let it lead.
    ///
    /// # Errors
    /// [`Refusal::NoShard`], or [`Refusal::NotMember`] if there is none, or its disk is gone.
    pub fn member_on(&self, shard: ShardId, node: NodeId) -> Result<ReplicaId, Refusal> {
        let record = self.shard(shard).ok_or(Refusal::NoShard { shard })?;
        let is_there = |member: &&ReplicaId| {
            let placed = record.replicas().get(member);
            placed.is_some_and(|placed| placed.node == node && !self.is_lost(placed))
        };
        let member = record.history().newest().config.members().iter().find(is_there);
        member.copied().ok_or(Refusal::NotMember { shard, node })
    }

    /// Returns all shards, in the order of their numbers.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &ShardRecord)> {
        (0..).map(ShardId).zip(&self.shards)
    }

    /// Returns the last failovers and other changes of a primary, the oldest one first.
    #[must_use]
    pub fn failovers(&self) -> &VecDeque<Failover> {
        &self.failovers
    }

    /// Whether shards are being moved until each node has its share: since a node joined, or an operator asked for it.
    #[must_use]
    pub fn is_balancing(&self) -> bool {
        self.is_balancing
    }

    /// Whether a replica's number is void for ever: its disk is gone, or does not hold what it acknowledged (rule 3).
    #[must_use]
    pub fn is_lost(&self, replica: &ReplicaRecord) -> bool {
        replica.is_void || self.is_gone(replica)
    }

    /// Whether a replica's disk is gone, and its data with it.
    #[must_use]
    pub fn is_gone(&self, replica: &ReplicaRecord) -> bool {
        self.nodes.get(&replica.node).is_none_or(|node| node.disk != replica.disk)
    }

    /// Whether a replica may take part: it is neither lost nor to be deleted.
    fn is_usable(&self, replica: &ReplicaRecord) -> bool {
        replica.stage != Stage::Released && !self.is_lost(replica)
    }

    /// Returns the replicas on a node that may take part, by shard: none of an earlier disk (rule 3).
    #[must_use]
    pub fn replicas_on(&self, node: NodeId) -> BTreeMap<ShardId, ReplicaId> {
        let is_there = |placed: &ReplicaRecord| placed.node == node && self.is_usable(placed);
        let on_it = self.shards().filter_map(|(shard, record)| {
            let mut here = record.replicas().iter().filter(|(_, placed)| is_there(placed));
            here.next().map(|(replica, _)| (shard, *replica))
        });
        on_it.collect()
    }

    /// Whether a life of a replica's process is proven dead.
    #[must_use]
    pub fn is_dead(&self, shard: &ShardRecord, replica: ReplicaId, life: Life) -> bool {
        let placed = shard.replicas().get(&replica).filter(|placed| !self.is_lost(placed));
        placed.and_then(|placed| self.nodes.get(&placed.node)).is_some_and(|node| node.dead >= life)
    }

    /// Checks that the parts of the state fit each other.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check(&self) -> Result<(), Violation> {
        let fail = |what| Err(Violation { what });
        if self.nodes.keys().next_back().is_some_and(|last| *last >= self.next_node) {
            return fail("a node has a number that was not given yet");
        }
        if self.nodes.len() > Self::NODES_MAX || self.failovers.len() > Self::FAILOVERS_MAX {
            return fail("there are more nodes or failovers than the limit");
        }
        if self.shards.len() != self.topology.shard_count() as usize
            || self.dials.len() != self.topology.services().len()
        {
            return fail("the shards are not those of the services");
        }
        for shard in &self.shards {
            if shard.replicas().keys().next_back().is_some_and(|last| *last >= shard.next_replica()) {
                return fail("a replica has a number that was not given yet");
            }
            if shard.history().newest().config.epoch() > Epoch::MAX {
                return fail("an epoch is above the limit");
            }
            let members = shard.history().records().iter().flat_map(|record| record.config.members());
            for member in members {
                match shard.replicas().get(member) {
                    Some(placed) if placed.stage == Stage::Member => {}
                    _ => return fail("a member of an epoch is not placed as one"),
                }
            }
            let newest = shard.history().newest().config.members();
            let nodes = newest.iter().map(|member| shard.replicas()[member].node);
            if nodes.collect::<std::collections::BTreeSet<_>>().len() < newest.len() {
                return fail("two members of an epoch are on one node");
            }
        }
        Ok(())
    }
}
