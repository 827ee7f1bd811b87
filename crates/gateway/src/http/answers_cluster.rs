//! The cluster for the OpenAPI document, as [`super::answers`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The condition of a cluster, as one of its nodes sees it.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ClusterStatus {
    /// The cluster's id, in hexadecimal.
    cluster: String,
    /// The node that reports.
    node: u32,
    /// The leader of the control plane, if that node knows one.
    leader: Option<u32>,
    /// The problems, and the next step for each. Empty if all is well.
    problems: Vec<ClusterProblem>,
    /// Whether replicas are being moved so that all nodes have their share.
    is_balancing: bool,
    /// The nodes.
    nodes: Vec<NodeStatus>,
    /// The services.
    services: Vec<ServiceDial>,
    /// The shards.
    shards: Vec<ShardPlaces>,
    /// The last failovers and other changes of a primary, the oldest one first: up to 1,024.
    failovers: Vec<FailoverReport>,
}

/// Something that is wrong, or that leaves no room for a failure.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ClusterProblem {
    /// The problem, with the nodes and shards that it concerns.
    what: String,
    /// The next step: a command, or what to wait for.
    next: String,
}

/// A node of a cluster.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct NodeStatus {
    /// Its number.
    node: u32,
    /// Its state.
    state: NodeState,
    /// The reason for which it counts as failed.
    cause: Option<String>,
    /// The time since which it has failed, or otherwise that of its last start, in milliseconds since 1970.
    since_ms: Option<u64>,
    /// The number of its starts.
    lives: u64,
    /// The address for other nodes' control plane.
    cluster: Option<String>,
    /// The address for clients by the native protocol, if it serves any.
    clients: Option<String>,
    /// The address for clients over HTTP, if it serves any.
    http: Option<String>,
    /// Whether it votes in the control plane.
    votes: bool,
    /// Whether the node that reports has a connection to it. True for that node itself.
    is_connected: bool,
    /// Whether it is to be removed.
    is_leaving: bool,
    /// The shards that it leads.
    primaries: u32,
    /// The shards of which it has a replica, those that it leads included.
    replicas: u32,
    /// The services that were added after its start, by a newer program.
    unknown_services: Vec<String>,
}

/// The state of a node.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum NodeState {
    /// It works, as far as the control plane's leader knows.
    Up,
    /// The control plane's leader counts it as failed.
    Failed,
    /// It works, and is to be removed.
    Leaving,
    /// The control plane's leader does not answer, and the node that reports has no connection to it.
    Unknown,
}

/// A service with its dial.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ServiceDial {
    /// Its name.
    service: String,
    /// The number of its first shard.
    first_shard: u32,
    /// The number of its shards.
    shards: u32,
    /// The replicas of each shard, if there are as many nodes.
    replicas: u8,
    /// The replicas that store an entry before its client is answered; null for more than half of them.
    acks: Option<u8>,
    /// The time at which a node syncs its log: `always`, `interval` or `never`.
    durability: String,
    /// The greatest age of a stale answer, and the greatest lag of an asynchronous service's backups, in milliseconds.
    max_lag_ms: u64,
    /// The span of the leases of an asynchronous service's primaries, in milliseconds.
    lease_ms: u64,
}

/// A shard with its replicas.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ShardPlaces {
    /// Its number.
    shard: u32,
    /// Its service.
    service: String,
    /// Its newest epoch.
    epoch: u64,
    /// Whether that is known to be active; otherwise a failover is under way.
    is_active: bool,
    /// The node that leads it, or is about to; null if that is lost.
    primary: Option<u32>,
    /// The nodes whose replicas count, the primary's included.
    members: Vec<u32>,
    /// The nodes whose replicas catch up.
    learners: Vec<u32>,
    /// The members that store an entry before its client is answered.
    acks: usize,
    /// The last entry of the primary, if its node answers.
    last: Option<u64>,
    /// The other replicas and how far they are behind, if the primary's node answers.
    lags: Vec<ReplicaLag>,
    /// The reason for which its failover waits.
    stuck: Option<String>,
}

/// A replica that stores what its primary sends.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct ReplicaLag {
    /// Its node.
    node: u32,
    /// The entries of the primary that it is not known to have stored.
    entries: u64,
}

/// A change of a shard's primary, or a failover after which the same node leads again.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct FailoverReport {
    /// The shard.
    shard: u32,
    /// The epoch that began.
    epoch: u64,
    /// The reason.
    cause: String,
    /// A short name of the reason, for programs.
    cause_name: String,
    /// Whether something had failed; otherwise the change was planned.
    is_failure: bool,
    /// The node that led before, if it is known.
    from: Option<u32>,
    /// The node that leads since.
    to: u32,
    /// The time at which the reason was noticed, in milliseconds since 1970.
    noticed_ms: u64,
    /// The time from then until the epoch was known to be active, in microseconds; null if it is not yet.
    duration_us: Option<u64>,
    /// Whether entries that only the old primary had may be lost.
    may_have_lost: bool,
    /// By epoch, the last entry that survived, where later ones may be lost.
    losses: Vec<Loss>,
    /// Whether an operator went on without members that were missing.
    is_forced: bool,
}

/// The end of an epoch behind which answered entries may be lost.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct Loss {
    /// The epoch.
    epoch: u64,
    /// Its last entry that survived.
    survived: u64,
}

#[cfg(test)]
mod tests {
    use super::super::answers::assert_described;
    use super::*;

    #[test]
    fn the_cluster_is_described_as_it_is_served() {
        let service = "bank".to_owned();
        let nodes = stead::NodeState::ALL.map(|state| stead::NodeStatus {
            node: 1,
            state,
            cause: Some("closed"),
            since_ms: Some(7),
            lives: 2,
            cluster: Some(([127, 0, 0, 1], 1).into()),
            clients: None,
            http: None,
            votes: true,
            is_connected: false,
            is_leaving: false,
            primaries: 3,
            replicas: 4,
            unknown_services: vec!["new".to_owned()],
        });
        let dial = stead::ServiceDial {
            service: service.clone(),
            first_shard: 0,
            shards: 1,
            replicas: 3,
            acks: Some(2),
            durability: "always",
            max_lag_ms: 5,
            lease_ms: 6,
        };
        let shard = stead::ShardPlaces {
            shard: 0,
            service,
            epoch: 4,
            is_active: true,
            primary: Some(1),
            members: vec![1, 2],
            learners: vec![3],
            acks: 2,
            last: Some(9),
            lags: vec![stead::ReplicaLag { node: 2, entries: 1 }],
            stuck: Some("too few seals".to_owned()),
        };
        let failover = stead::FailoverReport {
            shard: 0,
            epoch: 4,
            cause: "the node was silent".to_owned(),
            cause_name: "silent",
            is_failure: true,
            from: None,
            to: 1,
            noticed_ms: 8,
            duration_us: Some(9),
            may_have_lost: true,
            losses: vec![stead::Loss { epoch: 3, survived: 7 }],
            is_forced: false,
        };
        let problem = stead::Problem { what: "it is down".to_owned(), next: "start it".to_owned() };
        assert_described::<ClusterStatus>(&stead::ClusterStatus {
            cluster: "ab".to_owned(),
            node: 1,
            leader: None,
            problems: vec![problem],
            is_balancing: false,
            nodes: nodes.to_vec(),
            services: vec![dial],
            shards: vec![shard],
            failovers: vec![failover],
        });
    }
}
