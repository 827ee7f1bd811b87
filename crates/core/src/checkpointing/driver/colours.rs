//! The colours on their way to the shards.

use super::progress::Stage;
use super::{Action, Driver, LogSpace};
use crate::checkpointing::merging::renewals;
use crate::ids::{CheckpointNumber, ShardId};
use std::collections::BTreeSet;

/// Maximum number of colours that may be on their way at once: passed to the shards, and not committed by each as a marker. It
/// bounds the markers that wait for a slow log while checkpoints fail one after the other.
pub const COLOURS_MAX: usize = 4;

impl Driver {
    /// Passes the colour of the running checkpoint to the shards, if it waits for that, and not too many are on their way.
    pub(super) fn pass_colour(&mut self) {
        let Some(running) = self.running.as_mut().filter(|running| matches!(running.stage, Stage::Waiting))
        else {
            return;
        };
        let number = running.number;
        let most = match self.log_space {
            LogSpace::Enough => COLOURS_MAX,
            LogSpace::Full => 1,
            LogSpace::Spent => {
                let reason = "the log is full, and has no space left for its markers".to_owned();
                return self.give_up(number, reason);
            }
        };
        if self.colours.len() >= most {
            return;
        }
        running.stage = Stage::Writing;
        let committed = |shard: &ShardId| self.committed.get(shard).is_some_and(|last| *last >= number);
        let left: BTreeSet<ShardId> =
            running.epochs.keys().copied().filter(|shard| !committed(shard)).collect();
        if !left.is_empty() {
            self.colours.insert(number, left);
        }
        let mut full = self.anew.clone();
        full.extend(renewals(&self.lineage, &self.options.policy));
        if !full.is_empty() {
            self.actions.push_back(Action::ForceFull(full.into_iter().collect()));
        }
        self.actions.push_back(Action::Colour(number.colour()));
        // Without shards there is nothing to wait for.
        self.seal_if_whole();
    }

    /// Notes that a shard's marker of a colour is in the log: those of smaller colours come no more.
    pub(super) fn note_committed(&mut self, shard: ShardId, number: CheckpointNumber) {
        if !self.epochs.contains_key(&shard) {
            return;
        }
        let committed = self.committed.entry(shard).or_default();
        *committed = number.max(*committed);
        self.await_no_marker(shard, number);
    }

    /// Waits no longer for a shard's markers of the colours up to this one.
    pub(super) fn await_no_marker(&mut self, shard: ShardId, upto: CheckpointNumber) {
        for (_, left) in self.colours.range_mut(..=upto) {
            left.remove(&shard);
        }
        self.colours.retain(|_, left| !left.is_empty());
    }
}
