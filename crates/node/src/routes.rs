//! The routes to the replicas of all shards, as this node knows them: those of the newest directory of the control plane.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use stead_core::control::directory::ShardRoute;
use stead_core::ids::{NodeId, ReplicaId, ShardId};

/// The routes to shards; none on a node that has no others.
pub(crate) type Routes = BTreeMap<ShardId, ShardRoute>;

/// The routes that the workers of a node share.
#[derive(Debug, Default)]
pub(crate) struct RouteDesk {
    routes: Mutex<Arc<Routes>>,
    version: AtomicU64,
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
    /// Takes routes that are new or have changed. Returns the replicas whose node is new, each with its shard, as far as this node has
    /// replicas of that.
    pub(crate) fn follow<'a>(
        &self,
        changed: impl IntoIterator<Item = (ShardId, &'a ShardRoute)>,
        replicated: &BTreeMap<ShardId, ReplicaId>,
    ) -> Vec<(ShardId, ReplicaId)> {
        let mut connected: Vec<(ShardId, ReplicaId)> = Vec::new();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Arc::make_mut(&mut routes);
        for (shard, route) in changed {
            let known = own.insert(shard, route.clone());
            if replicated.contains_key(&shard) {
                let is_new = |(id, node): &(&ReplicaId, &NodeId)| {
                    known.as_ref().and_then(|known| known.replicas.get(id)) != Some(node)
                };
                connected.extend(route.replicas.iter().filter(is_new).map(|(id, _)| (shard, *id)));
            }
        }
        self.version.fetch_add(1, Ordering::Release);
        connected
    }
}
