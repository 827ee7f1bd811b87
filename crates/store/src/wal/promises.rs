//! The promises in a log. Each segment begins with all of them, so that trimming loses none.

use std::collections::BTreeMap;
use stead_core::ids::{Epoch, ReplicaId, ShardId};

/// A replica's durable promise to take part in no lower epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The shard.
    pub shard: ShardId,
    /// The replica that promises.
    pub replica: ReplicaId,
    /// The lowest epoch in which it still takes part.
    pub epoch: Epoch,
}

/// By shard and replica, the lowest epoch in which the replica still takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promises(BTreeMap<(ShardId, ReplicaId), Epoch>);

impl Promises {
    /// Maximum number of promises in a log: far more than a node has shards.
    pub(crate) const COUNT_MAX: usize = 1 << 18;

    /// Returns the greatest epoch that a replica of a shard has promised; 0 if it has promised none.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> Epoch {
        let range = (shard, ReplicaId(0))..=(shard, ReplicaId(u64::MAX));
        self.0.range(range).map(|(_, epoch)| *epoch).max().unwrap_or_default()
    }

    /// Returns the greatest epoch that one replica of a shard has promised; 0 if it has promised none.
    #[must_use]
    pub fn of_replica(&self, shard: ShardId, replica: ReplicaId) -> Epoch {
        self.0.get(&(shard, replica)).copied().unwrap_or_default()
    }

    /// Returns the latest replica of a shard that has promised anything.
    #[must_use]
    pub fn newest(&self, shard: ShardId) -> Option<ReplicaId> {
        let range = (shard, ReplicaId(0))..=(shard, ReplicaId(u64::MAX));
        self.0.range(range).next_back().map(|((_, replica), _)| *replica)
    }

    /// Returns all promises, ascending by shard and replica.
    pub fn iter(&self) -> impl Iterator<Item = Promise> + '_ {
        self.0.iter().map(|(&(shard, replica), &epoch)| Promise { shard, replica, epoch })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a promise; returns false if it is below an earlier one of the replica.
    #[must_use]
    pub(crate) fn raise(&mut self, promise: &Promise) -> bool {
        let epoch = self.0.entry((promise.shard, promise.replica)).or_default();
        let is_kept = promise.epoch >= *epoch;
        *epoch = promise.epoch.max(*epoch);
        is_kept
    }
}
