//! The condition of a cluster, as one of its nodes sees it.

use crate::address::Addresses;
use crate::enter::Membership;
use serde::Serialize;
use std::net::SocketAddr;
use stead_control::Role;
use stead_core::control::ControlState;
use stead_core::control::dial::{Acks, Dial, Durability};
use stead_core::control::shard::{ShardRecord, Stage};
use stead_core::ids::ShardId;

/// The condition of a cluster, as one of its nodes sees it: it may be a little old while that node is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The cluster's id, in hexadecimal.
    pub cluster: String,
    /// The node that reports.
    pub node: u32,
    /// The leader of the control plane, if that node knows one.
    pub leader: Option<u32>,
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
        let durability = match dial.durability {
            Durability::Always => "always",
            Durability::Interval => "interval",
            Durability::Never => "never",
        };
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
    /// Whether an operator went on without members that were missing.
    pub is_forced: bool,
}

impl Membership {
    /// Returns the condition of the cluster, as this node sees it.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let newest = self.plane().newest();
        let state = &*newest.state;
        let status = self.plane().status();
        let leader = if status.role == Role::Leader { Some(self.node()) } else { status.leader };
        let closed: Vec<_> = self.peers().into_iter().filter(|peer| peer.is_closed).collect();
        let nodes = state.nodes().iter().map(|(&node, record)| {
            let addresses = Addresses::of_texts(&record.addresses);
            let has = |(_, shard): &(ShardId, &ShardRecord)| {
                shard.replicas().values().any(|placed| placed.node == node && placed.stage != Stage::Released)
            };
            let leads = |(_, shard): &(ShardId, &ShardRecord)| shard.primary_node() == Some(node);
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            NodeStatus {
                node: node.0,
                cluster: addresses.map(|addresses| addresses.cluster),
                clients: addresses.and_then(|addresses| addresses.clients),
                http: addresses.and_then(|addresses| addresses.http),
                lives: record.life.0,
                votes: status.voters.contains(&node),
                is_connected: closed.iter().all(|peer| peer.node != node),
                is_leaving: record.is_leaving,
                primaries: count(state.shards().filter(leads).count()),
                replicas: count(state.shards().filter(has).count()),
            }
        });
        ClusterStatus {
            cluster: state.cluster().map(|cluster| format!("{:032x}", cluster.id.0)).unwrap_or_default(),
            node: self.node().0,
            leader: leader.map(|leader| leader.0),
            is_balancing: state.is_balancing(),
            nodes: nodes.collect(),
            services: services(state),
            shards: state.shards().map(|(id, shard)| places(state, id, shard)).collect(),
            failovers: state.failovers().iter().map(report).collect(),
        }
    }
}

fn services(state: &ControlState) -> Vec<ServiceDial> {
    let services = state.topology().services().iter().zip(state.dials());
    let services = services.map(|(service, dial)| {
        ServiceDial::new(service.name.clone(), (service.first.0, service.shards), dial)
    });
    services.collect()
}

fn places(state: &ControlState, id: ShardId, shard: &ShardRecord) -> ShardPlaces {
    let config = &shard.history().newest().config;
    let service = state.topology().service_of(id).map(|service| state.topology().service(service));
    let node_of = |replica| shard.replicas().get(&replica).map(|placed| placed.node.0);
    ShardPlaces {
        shard: id.0,
        service: service.map(|service| service.name.clone()).unwrap_or_default(),
        epoch: config.epoch().0,
        is_active: shard.is_settled(),
        primary: shard.primary_node().map(|node| node.0),
        members: config.members().iter().filter_map(|member| node_of(*member)).collect(),
        learners: shard.learners().filter_map(node_of).collect(),
        acks: config.acks(),
    }
}

fn report(failover: &stead_core::control::failover::Failover) -> FailoverReport {
    FailoverReport {
        shard: failover.shard.0,
        epoch: failover.epoch.0,
        cause: failover.cause.to_string(),
        is_failure: failover.cause.is_failure(),
        from: failover.from.map(|node| node.0),
        to: failover.to.0,
        noticed_ms: failover.noticed.0 / 1_000,
        duration_us: failover.duration.map(|duration| duration.0),
        may_have_lost: !failover.losses.is_empty(),
        is_forced: failover.is_forced,
    }
}
