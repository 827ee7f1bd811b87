//! Routes for operators of a cluster, at any of its nodes.

use super::Gateway;
use super::answers_cluster as answers;
use super::parts::{NoParameters, OfNode, OfService, OfShard, Segments, unreadable};
use super::problem::{Kind, Problem};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use stead::{DialChange, Durability, Membership, Node, OperateError};
use utoipa::{IntoParams, ToSchema};

/// The time for which a request to the control plane waits.
const WAIT: Duration = Duration::from_secs(10);

fn cluster_of(node: &Node) -> Result<&Membership, Problem> {
    let alone = || Problem::new(Kind::NotInCluster, "this node is alone".to_owned());
    node.cluster().ok_or_else(alone)
}

fn problem(error: OperateError) -> Problem {
    let kind = match error {
        OperateError::NoService(_) => Kind::UnknownService,
        OperateError::NoShard(_) => Kind::UnknownShard,
        _ => Kind::ClusterRefused,
    };
    Problem::new(kind, error.to_string())
}

/// The nodes, services, shards and failovers of the cluster, and what is wrong with it, as this node sees them.
#[utoipa::path(
    get,
    path = "/v1/cluster",
    tag = "cluster",
    responses(
        (status = 200, description = "The cluster", body = answers::ClusterStatus),
        (status = 409, description = "The node is alone", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cluster(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
) -> Result<Response, Problem> {
    gateway.in_background(|node| Ok(cluster_of(node)?.status())).await
}

/// The time at which a replica syncs an entry.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Synced {
    /// Before it is acknowledged.
    Always,
    /// Within 100 ms: a power cut may lose what was answered meanwhile, and that is announced.
    Interval,
    /// When the log is idle, or the operating system does it: a power cut may lose what was answered, and that is announced.
    Never,
}

impl From<Synced> for Durability {
    fn from(synced: Synced) -> Self {
        match synced {
            Synced::Always => Self::Always,
            Synced::Interval => Self::Interval,
            Synced::Never => Self::Never,
        }
    }
}

/// A change of a service's dial.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Dial {
    /// Replicas of each shard.
    #[param(minimum = 1, maximum = 32)]
    replicas: Option<u8>,
    /// Replicas that store an entry before its client is answered; 0 for more than half of them.
    #[param(minimum = 0, maximum = 32)]
    acks: Option<u8>,
    /// The time at which an entry is synced to the disk.
    #[param(inline)]
    durability: Option<Synced>,
    /// The greatest age of a stale answer, and the greatest lag of an asynchronous service's backups, in milliseconds.
    max_lag_ms: Option<u32>,
    /// The span of the leases of an asynchronous service's primaries, in milliseconds.
    #[param(minimum = 1, maximum = 3_600_000)]
    lease_ms: Option<u32>,
}

/// Changes the dial of a service. What is omitted stays. Its shards follow while they serve.
#[utoipa::path(
    post,
    path = "/v1/cluster/services/{service}/dial",
    tag = "cluster",
    params(OfService, Dial),
    responses(
        (status = 200, description = "The new dial", body = answers::ServiceDial),
        (status = 409, description = "The node is alone, or the control plane refuses the dial", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn set_dial(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfService { service }): Segments<OfService>,
    dial: Result<Query<Dial>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Dial { replicas, acks, durability, max_lag_ms, lease_ms }) = dial.map_err(unreadable)?;
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let change = DialChange {
        replicas,
        acks: acks.map(|acks| Some(acks).filter(|acks| *acks > 0)),
        durability: durability.map(Into::into),
        max_lag: max_lag_ms.map(millis),
        lease: lease_ms.map(millis),
    };
    let work = move |node: &Node| cluster_of(node)?.set_dial(&service, change, WAIT).map_err(problem);
    gateway.in_background(work).await
}

/// The way to a shard's next epoch.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    /// The node that is to lead; omit it for the best one.
    to: Option<u32>,
    /// Whether to go on if too few members are left: what these do not have is lost. Default: false.
    #[serde(default)]
    force: bool,
}

/// The outcome of a failover.
#[derive(Serialize, ToSchema)]
pub(super) struct FailedOver {
    /// The shard.
    shard: u32,
    /// The node that leads it now.
    node: u32,
}

/// Moves the primary of a shard to another node, and answers once that leads.
#[utoipa::path(
    post,
    path = "/v1/cluster/shards/{shard}/failover",
    tag = "cluster",
    params(OfShard, Target),
    responses(
        (status = 200, description = "Another epoch is active", body = FailedOver),
        (status = 404, description = "No such shard", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The node is alone, or no epoch began in time", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn failover(
    State(gateway): State<Arc<Gateway>>,
    Segments(OfShard { shard }): Segments<OfShard>,
    target: Result<Query<Target>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Target { to, force }) = target.map_err(unreadable)?;
    let work = move |node: &Node| {
        let node = cluster_of(node)?.failover(shard, to, force, WAIT).map_err(problem)?;
        Ok(FailedOver { shard, node })
    };
    gateway.in_background(work).await
}

/// A node that is to leave.
#[derive(Serialize, ToSchema)]
pub(super) struct Leaving {
    /// The node.
    node: u32,
}

/// Removes a node from the cluster, once its replicas have moved to others.
#[utoipa::path(
    delete,
    path = "/v1/cluster/nodes/{node}",
    tag = "cluster",
    params(OfNode),
    responses(
        (status = 200, description = "It leaves", body = Leaving),
        (status = 409, description = "The node that was asked is alone, or the control plane refuses it", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn remove_node(
    State(gateway): State<Arc<Gateway>>,
    NoParameters: NoParameters,
    Segments(OfNode { node: leaving }): Segments<OfNode>,
) -> Result<Response, Problem> {
    let work = move |node: &Node| {
        cluster_of(node)?.remove_node(leaving, WAIT).map_err(problem)?;
        Ok(Leaving { node: leaving })
    };
    gateway.in_background(work).await
}
