//! A node's knowledge of its cluster besides the state that all agree on: the figures of the shards that it leads and, while it leads
//! the control plane, its judgement. Nodes ask each other for it when an operator asks one of them.

use minicbor::{Decode, Encode};
use stead_control::Driver;
use stead_core::clock::Now;
use stead_core::control::failover::Cause;
use stead_core::ids::{Epoch, Index, NodeId, ReplicaId, ShardId, Time};
use stead_node::ShardStatus;

/// The way to one who waits for what nodes know. It is over once all have answered, or cannot any more.
pub(crate) type Looks = std::sync::mpsc::Sender<Look>;

/// The knowledge of a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Look {
    #[n(0)]
    pub(crate) node: NodeId,
    /// The time at which it began, by its wall clock.
    #[n(1)]
    pub(crate) begun: Time,
    /// Its judgement, if it leads the control plane.
    #[n(2)]
    pub(crate) judgement: Option<Judgement>,
    /// The shards that it leads.
    #[n(3)]
    pub(crate) led: Vec<Led>,
    /// The number of the first shards that it knows, once it runs: those of services that were added after its start are not among them.
    #[n(4)]
    pub(crate) shards: Option<u32>,
}

/// The judgement of the control plane's leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Judgement {
    /// The nodes that have failed, by what, and since when by the leader's wall clock.
    #[n(0)]
    pub(crate) failed: Vec<(NodeId, Cause, Time)>,
    /// The shards whose failover waits, and the reason.
    #[n(1)]
    pub(crate) stuck: Vec<(ShardId, String)>,
}

/// A shard, as the node that leads it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Led {
    #[n(0)]
    pub(crate) shard: ShardId,
    #[n(1)]
    pub(crate) epoch: Epoch,
    /// Its last entry.
    #[n(2)]
    pub(crate) last: Index,
    /// The other replicas, and the last entry that each has stored.
    #[n(3)]
    pub(crate) backups: Vec<(ReplicaId, Index)>,
}

impl Judgement {
    /// Returns the judgement of the controller, if it runs here.
    pub(crate) fn of(driver: &Driver, now: Now, nodes: impl Iterator<Item = NodeId>) -> Option<Self> {
        let controller = driver.controller()?;
        let failed = nodes.filter_map(|node| {
            let (cause, since) = controller.health().failed(node)?;
            Some((node, cause, Time(now.wall.0.saturating_sub(now.steady.since(since).0))))
        });
        let stuck = controller.problems().map(|(shard, problem)| (shard, problem.to_string()));
        Some(Self { failed: failed.collect(), stuck: stuck.collect() })
    }
}

impl Led {
    /// Returns the shard of a status, if the node leads it.
    pub(crate) fn of(status: &ShardStatus) -> Option<Self> {
        let backups = status.backups.iter();
        status.active.then(|| Self {
            shard: ShardId(status.shard),
            epoch: Epoch(status.epoch),
            last: Index(status.index),
            backups: backups.map(|backup| (ReplicaId(backup.replica), Index(backup.stored))).collect(),
        })
    }
}
