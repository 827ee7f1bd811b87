//! The condition of a cluster, for operators.

use serde::Serialize;
use std::net::SocketAddr;
use stead_core::control::dial::{Acks, Dial};

/// The condition of a cluster, as one of its nodes sees it: it may be a little old while that node is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The cluster's id, in hexadecimal.
    pub cluster: String,
    /// The node that reports.
    pub node: u32,
    /// The leader of the control plane, if that node knows one.
    pub leader: Option<u32>,
    /// The problems, and the next step for each. Empty if all is well.
    pub problems: Vec<Problem>,
    /// Whether replicas are being moved so that all nodes have their share.
    pub is_balancing: bool,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The services.
    pub services: Vec<ServiceDial>,
    /// The shards.
    pub shards: Vec<ShardPlaces>,
    /// The last failovers and other changes of a primary, the oldest one first: up to 1,024.
    pub failovers: Vec<FailoverReport>,
}

/// Something that is wrong, or that leaves no room for a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The problem, with the nodes and shards that it concerns.
    pub what: String,
    /// The next step: a command, or what to wait for.
    pub next: String,
}

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub node: u32,
    /// The address for other nodes' control plane.
    pub cluster: Option<SocketAddr>,
    /// The address for clients by the native protocol, if it serves any.
    pub clients: Option<SocketAddr>,
    /// The address for clients over HTTP, if it serves any.
    pub http: Option<SocketAddr>,
    /// Its state.
    pub state: NodeState,
    /// The reason for which it counts as failed.
    pub cause: Option<&'static str>,
    /// The time since which it has failed, by the clock of the control plane's leader, or otherwise that of its last start, by its
    /// own, in milliseconds since 1970. `None` if it is not known.
    pub since_ms: Option<u64>,
    /// The number of its starts.
    pub lives: u64,
    /// Its part in the control plane.
    pub votes: bool,
    /// Whether the node that reports has a connection to it. True for that node itself.
    pub is_connected: bool,
    /// Whether it is to be removed.
    pub is_leaving: bool,
    /// The shards that it leads.
    pub primaries: u32,
    /// The shards of which it has a replica, those that it leads included.
    pub replicas: u32,
    /// The services that were added after its start, by a newer program: it gets no replica of them until it is started again with
    /// such a program.
    pub unknown_services: Vec<String>,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It works, as far as the control plane's leader knows.
    Up,
    /// The control plane's leader counts it as failed.
    Failed,
    /// It works, and is to be removed.
    Leaving,
    /// The control plane's leader does not answer, and the node that reports has no connection to it.
    Unknown,
}

impl NodeState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Up, Self::Failed, Self::Leaving, Self::Unknown];

    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Failed => "failed",
            Self::Leaving => "leaving",
            Self::Unknown => "unknown",
        }
    }
}

/// A service with its dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceDial {
    /// Its name.
    pub service: String,
    /// The number of its first shard.
    pub first_shard: u32,
    /// The number of its shards.
    pub shards: u32,
    /// The replicas of each shard, if there are as many nodes.
    pub replicas: u8,
    /// The replicas that store an entry before its client is answered; `None` for more than half of them.
    pub acks: Option<u8>,
    /// The time at which a node syncs its log: `always`, `interval` or `never`.
    pub durability: &'static str,
    /// The greatest age of an answer that is read at a backup, and the greatest lag of an asynchronous service's backups, in
    /// milliseconds.
    pub max_lag_ms: u64,
    /// The span of the leases of an asynchronous service's primaries, in milliseconds.
    pub lease_ms: u64,
}

impl ServiceDial {
    pub(crate) fn new(service: String, (first_shard, shards): (u32, u32), dial: &Dial) -> Self {
        let durability = dial.durability.name();
        let acks = match dial.acks {
            Acks::Majority => None,
            Acks::Count(count) => Some(count),
        };
        let (max_lag_ms, lease_ms) = (dial.max_lag.0 / 1_000, dial.lease.0 / 1_000);
        Self { service, first_shard, shards, replicas: dial.replicas, acks, durability, max_lag_ms, lease_ms }
    }
}

/// A shard with its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardPlaces {
    /// Its number.
    pub shard: u32,
    /// Its service.
    pub service: String,
    /// Its newest epoch.
    pub epoch: u64,
    /// Whether that is known to be active; otherwise a failover is under way.
    pub is_active: bool,
    /// The node that leads it, or is about to; `None` if that is lost.
    pub primary: Option<u32>,
    /// The nodes whose replicas count, the primary's included.
    pub members: Vec<u32>,
    /// The nodes whose replicas catch up.
    pub learners: Vec<u32>,
    /// The members that store an entry before its client is answered.
    pub acks: usize,
    /// The last entry of the primary, if its node answers.
    pub last: Option<u64>,
    /// The other replicas and how far they are behind, if the primary's node answers.
    pub lags: Vec<ReplicaLag>,
    /// The reason for which its failover waits.
    pub stuck: Option<String>,
}

impl ShardPlaces {
    /// Whether a primary leads it, in an epoch that is known to be active.
    #[must_use]
    pub const fn is_led(&self) -> bool {
        self.is_active && self.primary.is_some()
    }
}

/// A replica that stores what its primary sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaLag {
    /// Its node.
    pub node: u32,
    /// The entries of the primary that it is not known to have stored.
    pub entries: u64,
}

/// A change of a shard's primary, or a failover after which the same node leads again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailoverReport {
    /// The shard.
    pub shard: u32,
    /// The epoch that began.
    pub epoch: u64,
    /// The reason.
    pub cause: String,
    /// A short name of the reason, for programs.
    pub cause_name: &'static str,
    /// Whether something had failed; otherwise the change was planned.
    pub is_failure: bool,
    /// The node that led before, if it is known.
    pub from: Option<u32>,
    /// The node that leads since.
    pub to: u32,
    /// The time at which the reason was noticed, in milliseconds since 1970.
    pub noticed_ms: u64,
    /// The time from then until the epoch was known to be active, in microseconds; `None` if it is not yet.
    pub duration_us: Option<u64>,
    /// Whether entries that only the old primary had may be lost.
    pub may_have_lost: bool,
    /// By epoch, the last entry that survived, where later ones may be lost.
    pub losses: Vec<Loss>,
    /// Whether an operator went on without members that were missing.
    pub is_forced: bool,
}

/// The end of an epoch behind which answered entries may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The epoch.
    pub epoch: u64,
    /// Its last entry that survived.
    pub survived: u64,
}
