//! The node as the control part sees it: what its replicas report, and what they are ordered to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use stead_core::control::directory::ShardRoute;
use stead_core::control::facts::PeerReport;
use stead_core::ids::{Micros, NodeId, ReplicaId, ShardId};
use stead_core::replication::epoch::{EpochRecord, Seal};
use stead_core::shard_replica::Input;
use stead_node::{AskedStatus, Bell, ControlNews, Env, Shared};

/// A node that serves.
pub(crate) trait Host: Send + Sync {
    /// Returns the bell that is rung when there are news.
    fn bell(&self) -> &Bell;

    /// Takes the news of its replicas.
    fn take_news(&self) -> ControlNews;

    /// Returns the longest time for which something has waited in its write path.
    fn stalled(&self) -> Micros;

    /// Returns its view of the other nodes.
    fn peers(&self) -> Vec<PeerReport>;

    /// Returns the number of the shards that it knows: the first ones of the cluster.
    fn shards(&self) -> u32;

    /// Asks its workers for the status of its shards.
    fn ask_status(&self) -> AskedStatus;

    /// Asks a replica for a seal.
    fn seal(&self, shard: ShardId, replica: ReplicaId, seal: Seal);

    /// Gives a primary the record of its epoch.
    fn lead(&self, shard: ShardId, record: Box<EpochRecord>, learners: Vec<ReplicaId>, max_lag: Micros);

    /// Drops a replica for ever.
    fn delete(&self, shard: ShardId, replica: ReplicaId);

    /// Follows routes that are new or have changed.
    fn follow(&self, routes: &mut dyn Iterator<Item = (ShardId, &ShardRoute)>);

    /// Replaces the addresses of the other nodes.
    fn set_peers(&self, addresses: BTreeMap<NodeId, SocketAddr>);

    /// Replaces the addresses at which the nodes serve clients.
    fn set_clients(&self, addresses: BTreeMap<NodeId, SocketAddr>);

    /// Connects to a node at once.
    fn ask_peer(&self, node: NodeId);

    /// Ends the node, for a reason that is fatal.
    fn fail(&self, reason: String);
}

impl<E: Env> Host for Shared<E> {
    fn bell(&self) -> &Bell {
        &self.control.bell
    }

    fn take_news(&self) -> ControlNews {
        self.control.take()
    }

    fn stalled(&self) -> Micros {
        Self::stalled(self)
    }

    fn peers(&self) -> Vec<PeerReport> {
        self.peers.reports(self.now())
    }

    fn shards(&self) -> u32 {
        self.topology().shard_count()
    }

    fn ask_status(&self) -> AskedStatus {
        Self::ask_status(self)
    }

    fn seal(&self, shard: ShardId, replica: ReplicaId, seal: Seal) {
        self.push_replica_of(shard, replica, Input::Seal(seal));
    }

    fn lead(&self, shard: ShardId, record: Box<EpochRecord>, learners: Vec<ReplicaId>, max_lag: Micros) {
        self.push_replica_of(shard, record.config.primary(), Input::Lead { record, learners, max_lag });
    }

    fn delete(&self, shard: ShardId, replica: ReplicaId) {
        self.delete_replica(shard, replica);
    }

    fn follow(&self, routes: &mut dyn Iterator<Item = (ShardId, &ShardRoute)>) {
        self.follow_routes(routes);
    }

    fn set_peers(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.peers.set_addresses(addresses);
    }

    fn set_clients(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.set_client_addresses(addresses);
    }

    fn ask_peer(&self, node: NodeId) {
        self.peers.ask(node);
    }

    fn fail(&self, reason: String) {
        Self::fail(self, reason);
    }
}
