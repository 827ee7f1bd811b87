//! The replicas on a node that are some of several, which come and go while it runs. Each shard that may have one keeps its place with
//! a worker, whether a replica is there or none. All threads read here which one it is, without a lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use stead_core::ids::{Epoch, ReplicaId, ShardId};

/// The replicas on this node that are not the only ones of their shards.
#[derive(Debug, Default)]
pub(crate) struct Placed(BTreeMap<ShardId, Place>);

#[derive(Debug)]
struct Place {
    /// The number of the replica; that of [`ReplicaId::NONE`] without one.
    replica: AtomicU64,
    /// All numbers up to this one had their time here.
    over: AtomicU64,
    /// The epoch in which the shard is served here; 0 if it is not.
    serves: AtomicU64,
}

impl Placed {
    /// Creates the places, each with its replica and the last one that had its time there.
    pub(crate) fn new(places: impl IntoIterator<Item = (ShardId, Option<ReplicaId>, ReplicaId)>) -> Self {
        let place = |(shard, replica, over): (ShardId, Option<ReplicaId>, ReplicaId)| {
            let replica = replica.unwrap_or(ReplicaId::NONE);
            let place = Place { replica: replica.0.into(), over: over.0.into(), serves: 0.into() };
            (shard, place)
        };
        Self(places.into_iter().map(place).collect())
    }

    /// Returns the number of places.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a shard has a place, with a replica or without.
    pub(crate) fn has_place(&self, shard: ShardId) -> bool {
        self.0.contains_key(&shard)
    }

    /// Whether a shard has a place without a replica.
    pub(crate) fn is_free(&self, shard: ShardId) -> bool {
        self.has_place(shard) && self.of(shard).is_none()
    }

    /// Returns the replica of a shard that is here; `None` if there is none, or it is the only one of its shard.
    pub(crate) fn of(&self, shard: ShardId) -> Option<ReplicaId> {
        let replica = ReplicaId(self.0.get(&shard)?.replica.load(Ordering::Acquire));
        Some(replica).filter(|replica| *replica != ReplicaId::NONE)
    }

    /// Returns the epoch in which a shard is served here.
    pub(crate) fn serves(&self, shard: ShardId) -> Option<Epoch> {
        let epoch = Epoch(self.0.get(&shard)?.serves.load(Ordering::Acquire));
        Some(epoch).filter(|epoch| *epoch > Epoch(0))
    }

    /// Notes the epoch in which a shard is served here.
    pub(crate) fn set_serves(&self, shard: ShardId, epoch: Option<Epoch>) {
        if let Some(place) = self.0.get(&shard) {
            place.serves.store(epoch.unwrap_or(Epoch(0)).0, Ordering::Release);
        }
    }

    /// Notes a replica at the place of a shard; false if there is no such place, or the replica is there, or had its time. Numbers of
    /// replicas only grow.
    pub(crate) fn place(&self, shard: ShardId, replica: ReplicaId) -> bool {
        let Some(place) = self.0.get(&shard) else { return false };
        replica.0 > place.over.load(Ordering::Acquire)
            && place.replica.fetch_max(replica.0, Ordering::AcqRel) < replica.0
    }

    /// Notes that the time of a replica is over.
    pub(crate) fn delete(&self, shard: ShardId, replica: ReplicaId) {
        let Some(place) = self.0.get(&shard) else { return };
        place.over.fetch_max(replica.0, Ordering::AcqRel);
        let is_over = |current: u64| (current <= replica.0).then_some(ReplicaId::NONE.0);
        // A newer one stays.
        let _ = place.replica.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_over);
    }
}
