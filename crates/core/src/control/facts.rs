//! The inputs of the controller, and its requests.

use super::command::Command;
use super::node::{DiskState, StartId};
use crate::ids::{Epoch, Life, Micros, NodeId, ReplicaId, ShardId};
use crate::replication::epoch::{EpochRecord, Seal, SealAnswer};
use minicbor::{Decode, Encode};

/// A node's view of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerReport {
    /// The peer.
    #[n(0)]
    pub node: NodeId,
    /// The time since it was heard.
    #[n(1)]
    pub silent: Micros,
    /// Whether there is no connection to it.
    #[n(2)]
    pub is_closed: bool,
}

/// A node's report on one of its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardReport {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The replica.
    #[n(1)]
    pub replica: ReplicaId,
    /// It takes part in no epoch below this one. A seal shows here until a record is seen (rule 8).
    #[n(2)]
    pub promised: Epoch,
    /// The highest epoch that it knows to be active.
    #[n(3)]
    pub active: Epoch,
    /// The epoch that it leads.
    #[n(4)]
    pub leads: Option<Epoch>,
    /// The learners to which it sends its log, while it leads.
    #[n(5)]
    pub learners: Vec<ReplicaId>,
    /// Those of them that hold its log but for what is on its way.
    #[n(6)]
    pub caught_up: Vec<ReplicaId>,
}

/// A node's report. It is sent at an interval, and at once when a connection to a peer closes, an epoch becomes active or a promise
/// is made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeReport {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// The number of its start. A report counts once the start is registered.
    #[n(1)]
    pub start: StartId,
    /// The longest time for which something has waited in the node's write path: a batch that is not synced, or an input that no
    /// worker has taken. Heartbeats do not pass there, so that only this shows a hung disk.
    #[n(2)]
    pub stalled: Micros,
    /// All peers.
    #[n(3)]
    pub peers: Vec<PeerReport>,
    /// The replicas on which there is something new; all of them for a controller that is new, and from time to time.
    #[n(4)]
    pub shards: Vec<ShardReport>,
}

/// A node that has started, as it introduces itself. It repeats that until the state has its start.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The number that its directory has; `None` for one that joins.
    #[n(0)]
    pub node: Option<NodeId>,
    /// The life of its process.
    #[n(1)]
    pub life: Life,
    /// The number of this start.
    #[n(2)]
    pub start: StartId,
    /// The state of its disk.
    #[n(3)]
    pub disk: DiskState,
    /// Its addresses.
    #[n(4)]
    pub addresses: Vec<String>,
}

/// News for the controller. All may come late, twice or never.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A node introduces itself.
    Hello(Hello),
    /// A report.
    Report(NodeReport),
    /// The connection to a node closed.
    Closed(NodeId),
    /// Nothing listens at a node's address: its process has ended. That proves nothing for a lease.
    Refused(NodeId),
    /// A life of a node's process is proven dead: its parent reaped it, or an operator says so.
    Dead(NodeId, Life),
    /// The answer to a seal.
    Sealed(ShardId, SealAnswer),
    /// A replica refused a seal, for it promised a higher epoch.
    Superseded {
        /// The shard.
        shard: ShardId,
        /// Its promise.
        promised: Epoch,
    },
    /// A replica cannot lead an epoch.
    CannotLead {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: Epoch,
    },
    /// The data of a replica are deleted.
    Deleted(ShardId, ReplicaId),
    /// A replica lacks what it acknowledged, holds what was given up, or is damaged.
    Void(ShardId, ReplicaId),
    /// An operator wants another primary for a shard, or a new epoch under the same one.
    Failover {
        /// The shard.
        shard: ShardId,
        /// The node of the new primary; `None` for the best one.
        to: Option<NodeId>,
        /// Whether to go on with too few members, with losses (rule 14).
        is_forced: bool,
    },
}

/// A request to the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Propose a command to the consensus. It may be lost, and is then proposed again.
    Propose(Command),
    /// Connect to a node anew, and ask it for a report at once.
    Ask(NodeId),
    /// Send seals, as one frame: one batch, one sync, one answer (rule 25).
    Seal {
        /// The node.
        node: NodeId,
        /// The seals, each for a replica of a shard.
        seals: Vec<(ShardId, ReplicaId, Seal)>,
    },
    /// Send the record of an epoch to its primary.
    Lead {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
        /// The record.
        record: Box<EpochRecord>,
        /// Replicas that are no members, and get the log to catch up.
        learners: Vec<ReplicaId>,
    },
    /// Order a node to delete the data of a replica, but for the tombstone (rule 5).
    Delete {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
}
