//! The deletion of what no checkpoint needs.

use super::{Action, Driver};
use crate::checkpointing::retention::{Garbage, Inventory, Retention};
use crate::ids::{CheckpointNumber, Time};
use std::collections::{BTreeSet, VecDeque};

/// Maximum number of objects that one action deletes: each costs a sync.
const DELETE_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Collection {
    pub(super) stage: Collecting,
    /// Whether something became unnecessary meanwhile.
    pub(super) again: bool,
}

#[derive(Debug, Default)]
pub(super) enum Collecting {
    #[default]
    No,
    Looking,
    Deleting(VecDeque<Garbage>),
}

impl Driver {
    /// Begins a collection of what is not needed any more, now or once the running one has ended.
    pub(super) fn collect(&mut self) {
        if let Collecting::No = self.collection.stage {
            self.collection.stage = Collecting::Looking;
            self.actions.push_back(Action::Look);
        } else {
            self.collection.again = true;
        }
    }

    pub(super) fn handle_inventory(
        &mut self,
        now: Time,
        inventory: Inventory,
        pinned: BTreeSet<CheckpointNumber>,
    ) {
        if !matches!(self.collection.stage, Collecting::Looking) {
            return;
        }
        let grace = self.options.grace.into();
        let elsewhere = self.options.elsewhere.clone();
        let retention = Retention { keep: self.options.keep, pinned, elsewhere, grace };
        let in_use = self.in_use();
        let garbage = self.chooser.choose(inventory, now, &retention, &in_use).garbage;
        for garbage in &garbage {
            let is_used = matches!(garbage, Garbage::Bundle(name) if in_use.contains(name));
            assert!(!is_used, "{garbage:?} is in use and was chosen to be deleted");
        }
        self.collection.stage = Collecting::Deleting(garbage.into());
        self.delete_more();
    }

    pub(super) fn delete_more(&mut self) {
        let Collecting::Deleting(garbage) = &mut self.collection.stage else { return };
        let next: Vec<Garbage> = garbage.drain(..garbage.len().min(DELETE_MAX)).collect();
        if !next.is_empty() {
            self.actions.push_back(Action::Delete(next));
            return;
        }
        self.end_collection();
    }

    /// Ends the collection, also one that has failed. What became unnecessary meanwhile is collected by the next one.
    pub(super) fn end_collection(&mut self) {
        let Collection { again, .. } = std::mem::take(&mut self.collection);
        if again {
            self.collect();
        }
    }
}
