//! The places up to which the log of a node with replicas of several is not needed, by shard: its workers note them, each for its own
//! shards, and the log is trimmed to all of them.

use super::LogDesk;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use stead_core::ids::{Index, ShardId};
use stead_core::placement::Placement;

pub(crate) struct Trimming {
    /// By shard, the index up to which nothing in the log is needed.
    tops: Mutex<Vec<Index>>,
    /// Bytes of the states of all replicas, as their last snapshots have them.
    state_bytes: AtomicI64,
}

impl Trimming {
    /// Needs all that the log has of the shards that are here.
    pub(crate) fn new(placement: &Placement) -> Self {
        Self { tops: Mutex::new(placement.trim_tops(&[])), state_bytes: AtomicI64::new(0) }
    }

    /// Notes the index up to which nothing of a shard is needed, and lets the log be trimmed. An earlier note does not count any more: a
    /// trim is done before anything is appended that was submitted after this returns.
    pub(crate) fn note(&self, log: &LogDesk, shard: ShardId, top: Index) {
        let mut tops = self.tops.lock().unwrap_or_else(PoisonError::into_inner);
        tops[shard.0 as usize] = top;
        // Under the lock: an older list must not take the place of a newer one.
        log.trim(tops.clone());
    }

    /// Notes the change of the bytes of a state.
    pub(crate) fn change_state_bytes(&self, change: i64) {
        self.state_bytes.fetch_add(change, Ordering::Relaxed);
    }

    /// Returns the bytes of the states.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.state_bytes.load(Ordering::Relaxed).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_trimmed_to_the_newest_note_of_each_shard() {
        let mut topology = stead_core::topology::Topology::new(stead_core::ids::Incarnation(1));
        topology.ensure("counter", 3).unwrap();
        let (trimming, log) = (Trimming::new(&Placement::all_here(&topology)), LogDesk::default());
        let taken = || log.take(None).trim.map(|tops| tops.into_iter().map(|top| top.0).collect::<Vec<_>>());
        assert_eq!(taken(), None);
        trimming.note(&log, ShardId(1), Index(7));
        trimming.note(&log, ShardId(2), Index(9));
        trimming.note(&log, ShardId(1), Index(0));
        assert_eq!(taken(), Some(vec![0, 0, 9]), "another replica took the place of that of shard 1");
    }
}
