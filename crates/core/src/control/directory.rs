//! The routes of a node: which replica leads each shard, and on which nodes its replicas are.
//!
//! Made from each new [`ControlState`]. A route may be old: a node that gets a message for a replica or an
//! epoch that it does not have refuses it, and the sender waits for a newer state.

use super::ControlState;
use super::dial::Dial;
use super::node::NodeRecord;
use super::shard::ShardRecord;
use crate::ids::{DiskNumber, Epoch, Life, Micros, NodeId, ReplicaId, ShardId};
use std::collections::BTreeMap;

/// The route to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    /// Its addresses, `HOST:PORT`; the first one is tried first.
    pub addresses: Vec<String>,
    /// The life of its process that was registered last.
    pub life: Life,
    disk: DiskNumber,
}

/// The route to a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRoute {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The replica that leads it, or is about to.
    pub primary: ReplicaId,
    /// The node of each replica, learners included, but for those that are lost or to be deleted.
    pub replicas: BTreeMap<ReplicaId, NodeId>,
    /// The greatest age of an answer that is read at a backup: that of the dial.
    pub max_lag: Micros,
}

impl ShardRoute {
    fn new(state: &ControlState, shard: &ShardRecord, max_lag: Micros) -> Self {
        let config = &shard.history().newest().config;
        let usable = shard.replicas().iter().filter(|(_, placed)| state.is_usable(placed));
        let replicas = usable.map(|(id, placed)| (*id, placed.node));
        Self { epoch: config.epoch(), primary: config.primary(), replicas: replicas.collect(), max_lag }
    }

    /// Returns the node of the primary; `None` if that replica is lost, until a failover is over.
    #[must_use]
    pub fn primary_node(&self) -> Option<NodeId> {
        self.replicas.get(&self.primary).copied()
    }
}

#[derive(Clone, Debug)]
struct Entry {
    route: ShardRoute,
    /// [`ShardRecord::version`] of the record that it was made from.
    record: u64,
    /// The directory's version that changed it last.
    changed: u64,
}

/// The routes by one state, and since when each of them is as it is.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    version: u64,
    nodes: BTreeMap<NodeId, NodeRoute>,
    nodes_changed: u64,
    /// By shard.
    shards: Vec<Entry>,
}

impl Directory {
    /// Follows a state, which is no older than the last one and of the same cluster. Makes only the routes of shards anew that may
    /// have changed. Returns whether any did.
    pub fn follow(&mut self, state: &ControlState) -> bool {
        let next = self.version + 1;
        let is_same = |(id, record): (&NodeId, &NodeRecord)| {
            self.nodes.get(id).is_some_and(|route| {
                route.life == record.life && route.disk == record.disk && route.addresses == record.addresses
            })
        };
        let are_same = state.nodes().len() == self.nodes.len() && state.nodes().iter().all(is_same);
        if !are_same {
            let nodes = state.nodes().iter().map(|(id, record)| {
                let addresses = record.addresses.clone();
                (*id, NodeRoute { addresses, life: record.life, disk: record.disk })
            });
            (self.nodes, self.nodes_changed, self.version) = (nodes.collect(), next, next);
        }
        for (id, shard) in state.shards() {
            let known = self.shards.get_mut(id.0 as usize);
            let max_lag = state.dial_of(id).map_or(Dial::default().max_lag, |dial| dial.max_lag);
            let is_same =
                |entry: &&mut Entry| entry.record == shard.version() && entry.route.max_lag == max_lag;
            if are_same && known.as_ref().is_some_and(is_same) {
                continue;
            }
            let route = ShardRoute::new(state, shard, max_lag);
            match known {
                Some(entry) => {
                    entry.record = shard.version();
                    if entry.route != route {
                        (entry.route, entry.changed, self.version) = (route, next, next);
                    }
                }
                None => {
                    self.shards.push(Entry { route, record: shard.version(), changed: next });
                    self.version = next;
                }
            }
        }
        self.version == next
    }

    /// Returns the number of states so far that changed a route.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the routes to all nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRoute> {
        &self.nodes
    }

    /// Returns the route to a shard; `None` if there is none of this number.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRoute> {
        self.shards.get(shard.0 as usize).map(|entry| &entry.route)
    }

    /// Whether a node joined, left or changed since a version.
    #[must_use]
    pub fn nodes_changed_since(&self, version: u64) -> bool {
        self.nodes_changed > version
    }

    /// Returns the shards whose routes changed since a version; all of them since version 0.
    pub fn shards_changed_since(&self, version: u64) -> impl Iterator<Item = (ShardId, &ShardRoute)> {
        let shards = (0..).map(ShardId).zip(&self.shards);
        shards.filter(move |(_, entry)| entry.changed > version).map(|(id, entry)| (id, &entry.route))
    }
}
