//! The routes to the replicas of all shards, as this node knows them: those of the newest directory of the control plane.

use crate::env::Env;
use crate::shared::Shared;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use stead_core::control::directory::ShardRoute;
use stead_core::ids::{NodeId, ReplicaId, ShardId};
use stead_core::shard_replica;

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
}

impl<E: Env> Shared<E> {
    /// Follows routes that are new or have changed, as
    /// [`Directory::shards_changed_since`](stead_core::control::directory::Directory::shards_changed_since) returns them. The replicas of
    /// this node send again what may be lost on its way to a replica whose node is new.
    pub fn follow_routes<'a>(&self, changed: impl IntoIterator<Item = (ShardId, &'a ShardRoute)>) {
        let mut connected: Vec<(ShardId, ReplicaId)> = Vec::new();
        let mut routes = self.routes.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Arc::make_mut(&mut routes);
        for (shard, route) in changed {
            let known = own.insert(shard, route.clone());
            if self.replicated.contains_key(&shard) {
                let is_new = |(id, node): &(&ReplicaId, &NodeId)| {
                    known.as_ref().and_then(|known| known.replicas.get(id)) != Some(node)
                };
                connected.extend(route.replicas.iter().filter(is_new).map(|(id, _)| (shard, *id)));
            }
        }
        self.routes.version.fetch_add(1, Ordering::Release);
        drop(routes);
        for (shard, replica) in connected {
            self.push_replica(shard, shard_replica::Input::Connected(replica));
        }
    }
}
