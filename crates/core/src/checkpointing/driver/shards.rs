//! The shards that a node leads, and the consequences of a change for its checkpoints.

use super::Driver;
use crate::ids::{Epoch, ShardId};

impl Driver {
    pub(super) fn handle_leads(&mut self, shard: ShardId, epoch: Epoch) {
        if let Some(before) = self.epochs.insert(shard, epoch) {
            assert!(before <= epoch, "shard {shard} falls from epoch {before} to {epoch}");
            if before == epoch {
                return;
            }
        }
        self.options.elsewhere.remove(&shard);
        self.anew.insert(shard);
        // Markers of an older epoch may be lost with it.
        self.await_no_marker(shard, self.last);
        self.give_up_without(shard, |shard| format!("shard {shard} has begun epoch {epoch} meanwhile"));
    }

    pub(super) fn handle_left(&mut self, shard: ShardId) {
        if self.epochs.remove(&shard).is_none() {
            return;
        }
        self.options.elsewhere.insert(shard);
        self.unconfirmed.remove(&shard);
        self.committed.remove(&shard);
        self.anew.remove(&shard);
        self.await_no_marker(shard, self.last);
        self.give_up_without(shard, |shard| format!("shard {shard} has left this node meanwhile"));
        self.drop_sections();
    }

    /// Gives the running checkpoint up if it needs more of a shard than it has. A part that is written, with a marker that
    /// is committed, is of a state that no later epoch changes.
    fn give_up_without(&mut self, shard: ShardId, reason: impl FnOnce(ShardId) -> String) {
        let Some(running) = &self.running else { return };
        let is_complete = running.written.contains(&shard) && running.committed.contains(&shard);
        if running.epochs.contains_key(&shard) && !is_complete {
            self.give_up(running.number, reason(shard));
        }
    }

    /// Drops the sections of the shards that have left, once no running checkpoint builds upon them.
    pub(super) fn drop_sections(&mut self) {
        if self.running.is_none() {
            self.lineage.retain(|shard| self.epochs.contains_key(&shard));
        }
    }
}
