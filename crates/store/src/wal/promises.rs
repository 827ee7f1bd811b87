//! The promises in a log. Each segment begins with all of them, so that trimming loses none.

use super::record::{Promise, TABLE, encode_numbers};
use std::collections::BTreeMap;
use stead_core::ids::{Epoch, ReplicaId, ShardId};

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

    /// Appends the table's record.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut runs: Vec<[u64; 4]> = Vec::new();
        for Promise { shard, replica, epoch } in self.iter() {
            let shard = u64::from(shard.0);
            match runs.last_mut() {
                Some([first, count, of, in_epoch])
                    if *first + *count == shard && (*of, *in_epoch) == (replica.0, epoch.0) =>
                {
                    *count += 1;
                }
                _ => runs.push([shard, 1, replica.0, epoch.0]),
            }
        }
        encode_numbers(out, TABLE, runs.as_flattened());
    }
}
