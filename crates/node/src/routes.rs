//! The routes to the replicas of all shards, as this node knows them: those of the newest directory of the control plane.

use crate::placed::Placed;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use stead_core::control::directory::ShardRoute;
use stead_core::ids::{NodeId, ReplicaId, ShardId};

/// The routes to shards; none on a node that has no others.
pub(crate) type Routes = BTreeMap<ShardId, ShardRoute>;

/// The addresses at which the nodes of the cluster serve clients, of those that do.
pub(crate) type ClientAddresses = BTreeMap<NodeId, SocketAddr>;

/// The routes that the workers of a node share.
#[derive(Debug, Default)]
pub(crate) struct RouteDesk {
    routes: Mutex<Arc<Routes>>,
    version: AtomicU64,
    are_expected: AtomicBool,
    /// The addresses at which the nodes serve clients.
    clients: Mutex<Arc<ClientAddresses>>,
}

/// The consequences of routes that have changed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// The replicas on this node.
    pub(crate) placed: Vec<(ShardId, ReplicaId)>,
    /// The replicas whose node is new, of shards that this node has replicas of.
    pub(crate) connected: Vec<(ShardId, ReplicaId)>,
}

impl RouteDesk {
    /// Returns the routes if they are newer than a version, and sets it to theirs.
    pub(crate) fn newer_than(&self, version: &mut u64) -> Option<Arc<Routes>> {
        if self.version.load(Ordering::Acquire) == *version {
            return None;
        }
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        *version = self.version.load(Ordering::Acquire);
        Some(Arc::clone(&routes))
    }

    /// Returns the routes.
    pub(crate) fn newest(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that there will be routes: the node is part of a cluster.
    pub(crate) fn expect(&self) {
        self.are_expected.store(true, Ordering::Relaxed);
    }

    /// Whether there are routes, or will be: calls for shards that other nodes lead wait for them.
    pub(crate) fn are_expected(&self) -> bool {
        self.are_expected.load(Ordering::Relaxed) || self.version.load(Ordering::Acquire) > 0
    }

    /// Returns the addresses at which the nodes of the cluster serve clients: none on a node without a cluster.
    pub(crate) fn clients(&self) -> Arc<ClientAddresses> {
        Arc::clone(&self.clients.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces these addresses.
    pub(crate) fn set_clients(&self, addresses: ClientAddresses) {
        *self.clients.lock().unwrap_or_else(PoisonError::into_inner) = addresses.into();
    }

    /// Takes routes that are new or have changed.
    pub(crate) fn follow<'a>(
        &self,
        changed: impl IntoIterator<Item = (ShardId, &'a ShardRoute)>,
        replicated: &Placed,
        node: NodeId,
    ) -> Followed {
        let mut followed = Followed::default();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Arc::make_mut(&mut routes);
        for (shard, route) in changed {
            let known = own.insert(shard, route.clone());
            if replicated.has_place(shard) {
                let is_new = |(id, node): &(&ReplicaId, &NodeId)| {
                    known.as_ref().and_then(|known| known.replicas.get(id)) != Some(node)
                };
                followed.connected.extend(route.replicas.iter().filter(is_new).map(|(id, _)| (shard, *id)));
                let here = route.replicas.iter().filter(|(_, at)| **at == node);
                followed.placed.extend(here.map(|(id, _)| (shard, *id)));
            }
        }
        self.version.fetch_add(1, Ordering::Release);
        followed
    }
}
