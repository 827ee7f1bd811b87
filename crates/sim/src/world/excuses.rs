//! Excuses for a failure: an operation that the disk refused in the same turn, on files of the part that fails, or a flipped bit in
//! the object that the error names.

use super::{Outcomes, World};
use crate::refusals::{Area, Refusals};
use crate::violation::Violation;
use stead_node::{CheckpointFailure, CopyFailure, PartId};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::CHECKPOINTS;

impl World {
    /// A turn of a part begins, or an operator's command.
    pub(super) fn turn_begins(&mut self) {
        self.refused_before = self.refusals();
    }

    /// Returns what the disk has refused in this turn.
    pub(super) fn refused_in_turn(&self) -> Refusals {
        self.refusals().since(&self.refused_before)
    }

    /// Notes that a bit of a file flips: what is read of it in this life is refused, also when it is healed by then.
    pub(super) fn note_rot(&mut self) {
        let flip = self.flipped.as_ref().filter(|_| self.is_rotten());
        let name = flip.and_then(|flip| flip.path.strip_prefix(CHECKPOINTS)?.strip_prefix('/'));
        let name = name.map(str::to_owned);
        self.rotten.extend(name);
    }

    /// Whether a failed use of a store in this turn has a cause.
    pub(super) fn has_cause(&self, area: Area, error: &CheckpointError) -> bool {
        match error {
            // The version is read before the checksum, which may be another one in a later version.
            CheckpointError::Damaged { name, .. } | CheckpointError::Version { name, .. } => {
                area == Area::Checkpoints && self.rotten.contains(name)
            }
            // No fault removes an object.
            CheckpointError::Store(StoreError::NotFound { .. }) => false,
            CheckpointError::Store(StoreError::Failed { .. }) => self.refusals().may_latch(area),
            CheckpointError::Store(error) if error.is_full() => self.refused_in_turn().is_short(area),
            CheckpointError::Store(_) => self.refused_in_turn().has_failed(area),
            _ => false,
        }
    }

    /// Whether a failed command of an operator on checkpoints has a cause.
    pub(super) fn excuses_command(&self, failure: &CheckpointFailure) -> bool {
        let CheckpointFailure::Store(text) = failure else { return false };
        self.refused_in_turn().any_of(Area::Checkpoints)
            || self
                .rotten
                .iter()
                .filter_map(|name| text.strip_prefix(name.as_str()))
                .any(|text| text.starts_with(" is damaged: ") || text.starts_with(" has format version "))
    }

    /// Whether a failed copy has a cause.
    pub(super) fn excuses_copy(&self, failure: &CopyFailure) -> bool {
        match failure {
            CopyFailure::Open(_) => self.has_no_way_to_copies(),
            CopyFailure::Copy(error) | CopyFailure::Collect(error) => {
                self.has_cause(Area::Checkpoints, error) || self.has_cause(Area::Copies, error)
            }
            CopyFailure::Panic(_) => false,
        }
    }

    /// Whether the directory of copies could not be opened in this turn: it is made in that of the data.
    pub(super) fn has_no_way_to_copies(&self) -> bool {
        let refused = self.refused_in_turn();
        refused.any_of(Area::Copies) || refused.any_of(Area::Data)
    }

    /// Checks that a part which fails has a cause. `was_over` if the node had failed or was abandoned before.
    pub(super) fn check_failure(&self, part: PartId, error: &str, was_over: bool) -> Outcomes {
        let (refused, ever) = (self.refused_in_turn(), self.refusals());
        let is_full = self.node.as_ref().is_some_and(|node| node.parts.shared.log().is_full());
        let has_cause = match part {
            PartId::Log | PartId::Preparer => {
                refused.any_of(Area::Log)
                    // It gives up what found no room in an earlier turn.
                    || (is_full && ever.is_short(Area::Log))
                    // One part has failed, and so have the segments that it shares with the other.
                    || (was_over && ever.may_latch(Area::Log))
            }
            // They end when they find that the store has failed, under whichever part.
            PartId::Checkpoints | PartId::Merges | PartId::Checks => ever.may_latch(Area::Checkpoints),
            _ => false,
        };
        if has_cause {
            return Ok(());
        }
        Err(Violation::new(0, format!("{part:?} fails, and the disk did not: {error}")).into())
    }
}
