//! The checkpoints that are kept: as many as are to be, no more at rest, and none pinned by a reader that has gone.

use super::{Outcomes, World};
use crate::violation::Violation;
use std::collections::BTreeSet;
use stead_core::checkpointing::retention::Garbage;
use stead_core::ids::CheckpointNumber;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::data_dir::CHECKPOINTS;

/// The known facts about what is kept.
#[derive(Default)]
pub(crate) struct Retained {
    /// The checkpoints that operators have deleted, or tried to.
    by_hand: BTreeSet<CheckpointNumber>,
    /// The checkpoints that were pinned when the store was last searched.
    pinned: BTreeSet<CheckpointNumber>,
}

impl World {
    /// An operator is about to take a step of the deletion of a checkpoint.
    pub(super) fn note_deletion(&mut self, number: CheckpointNumber) {
        self.retained.by_hand.insert(number);
    }

    /// An operator's deletion of a checkpoint was refused.
    pub(super) fn note_kept(&mut self, number: CheckpointNumber) {
        self.retained.by_hand.remove(&number);
    }

    /// The store was searched for objects that are not needed.
    pub(super) fn note_search(&mut self) {
        if let Some(node) = &self.node {
            self.retained.pinned = node.parts.pinned();
        }
    }

    /// Returns the checkpoints that a part or an operator reads.
    pub(super) fn readers(&self) -> BTreeSet<CheckpointNumber> {
        let Some(node) = &self.node else { return BTreeSet::new() };
        let mut reads = node.parts.reads();
        reads.extend(node.commands.iter().filter_map(|command| command.reads()));
        reads
    }

    /// Invariant 17 for pins: none outlives its reader.
    pub(super) fn check_pins(&self) -> Outcomes {
        let Some(node) = &self.node else { return Ok(()) };
        let (pinned, readers) = (node.parts.pinned(), self.readers());
        if pinned.is_subset(&readers) {
            return Ok(());
        }
        let what = format!("the checkpoints {pinned:?} are pinned, and {readers:?} are being read");
        Err(Violation::new(17, what).into())
    }

    /// Invariant 13 for retention: a collection deletes no checkpoint that is one of the newest ones to be kept.
    pub(super) fn check_retained(&mut self, garbage: &[Garbage]) -> Outcomes {
        let gone = garbage.iter().filter_map(|garbage| match garbage {
            Garbage::Checkpoint(number) => Some(*number),
            _ => None,
        });
        let Some(newest) = gone.max() else { return Ok(()) };
        let mut newer: BTreeSet<_> =
            self.stored_checkpoints()?.into_iter().map(|manifest| manifest.number).collect();
        newer.extend(&self.retained.by_hand);
        newer.retain(|number| *number > newest);
        if newer.len() >= self.profile.keep {
            return Ok(());
        }
        let keep = self.profile.keep;
        let what =
            format!("checkpoint {newest} is collected, of which {keep} are kept, and {newer:?} are newer");
        Err(Violation::new(13, what).into())
    }

    /// Invariant 17 for retention, when all rests: no more is stored than is kept.
    pub(super) fn check_kept(&mut self, stored: &[Manifest]) -> Outcomes {
        let (keep, pinned) = (self.profile.keep, self.retained.pinned.len());
        if stored.len() > keep + pinned {
            let numbers: Vec<_> = stored.iter().map(|manifest| manifest.number).collect();
            let what = format!("at rest {numbers:?} are stored, {keep} are kept, and {pinned} were pinned");
            return Err(Violation::new(17, what).into());
        }
        // Others wait for the end of their grace period, and for the collection after that.
        if self.profile.grace > 0 || pinned > 0 {
            return Ok(());
        }
        let node = self.node.as_ref().expect("a node at rest lives");
        let part = &node.parts.checkpoints().expect("a node at rest has all its parts").part;
        let lineage = part.driver().lineage().bundles();
        let mut needed: BTreeSet<&str> = lineage.iter().map(|bundle| bundle.name.as_str()).collect();
        let bundles = stored.iter().flat_map(|manifest| &manifest.bundles);
        needed.extend(bundles.map(|bundle| bundle.name.as_str()));
        let in_store = |path: String| path.strip_prefix(CHECKPOINTS)?.strip_prefix('/').map(str::to_owned);
        let mut bundles = self.disk.files().into_iter().filter_map(in_store);
        match bundles.find(|name| name.ends_with(".bundle") && !needed.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => {
                Err(Violation::new(17, format!("at rest nothing needs {name}, and it is there")).into())
            }
        }
    }
}
