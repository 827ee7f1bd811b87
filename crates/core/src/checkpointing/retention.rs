//! The choice of objects that no checkpoint needs any more, to be deleted.
//!
//! The bundles to keep are marked from all manifests together. An unmarked bundle is deleted only once it has been
//! unmarked for the grace period, so that a reader that began with an older manifest can finish.
//!
//! Only the tombstone of the greatest decided number is needed: it ensures that the next number is greater, also after
//! a restart. No number below it begins again.

use crate::ids::{CheckpointNumber, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of tombstones that one collection deletes: each costs a sync, and older programs may have left
/// thousands.
const TOMBSTONES_MAX: usize = 64;

/// Policy of retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The number of newest checkpoints to keep; at least 1, whatever is set here. Default 3.
    pub keep: usize,
    /// Checkpoints that are being read, or must be kept for another reason.
    pub pinned: BTreeSet<CheckpointNumber>,
    /// Time that an unreferenced bundle is kept, in microseconds. Default 60 s.
    pub grace: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 3, pinned: BTreeSet::new(), grace: 60_000_000 }
    }
}

/// The objects of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All bundles, listed before `decided` was read: bundles written since then are missing.
    pub bundles: Vec<String>,
    /// The decided numbers, with the bundles of a checkpoint, or `None` for a tombstone.
    pub decided: BTreeMap<CheckpointNumber, Option<Vec<String>>>,
    /// The results of checks, with the checkpoint in their names, if any.
    pub results: Vec<(String, Option<CheckpointNumber>)>,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    /// The manifest of a checkpoint that is not kept.
    Checkpoint(CheckpointNumber),
    /// The tombstone of a number that is not the greatest.
    Tombstone(CheckpointNumber),
    /// The results of the checks of a checkpoint that is not kept.
    Results(String),
    /// A bundle that is not needed.
    Bundle(String),
}

/// Chooses the objects to delete. It remembers since when each bundle has been unreferenced.
#[derive(Clone, Debug, Default)]
pub struct Chooser {
    unmarked: BTreeMap<String, Time>,
}

/// The objects that a collection deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// In the order of deletion: manifests go before the objects that they refer to, so that a crash leaves bundles
    /// without a manifest, never the reverse.
    pub garbage: Vec<Garbage>,
    /// Bundles that wait for the end of the grace period.
    pub waiting: usize,
}

impl Chooser {
    /// Creates a chooser that has seen nothing: every grace period starts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses the objects of an inventory to delete. `now` is steady; `in_use` are the bundles that no manifest names
    /// yet: those of a running checkpoint or merge, and of the lineage that the next checkpoint builds upon.
    pub fn choose(
        &mut self,
        inventory: Inventory,
        now: Time,
        retention: &Retention,
        in_use: &BTreeSet<String>,
    ) -> Choice {
        let greatest = inventory.decided.last_key_value().map(|(number, _)| *number);
        let (mut complete, mut tombstones) = (Vec::new(), Vec::new());
        for (&number, bundles) in &inventory.decided {
            match bundles {
                Some(bundles) => complete.push((number, bundles)),
                None if Some(number) != greatest => tombstones.push(Garbage::Tombstone(number)),
                None => {}
            }
        }
        tombstones.truncate(TOMBSTONES_MAX);
        let first_kept = complete.len() - complete.len().min(retention.keep.max(1));
        let (mut garbage, mut kept, mut marked) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for (at, (number, bundles)) in complete.into_iter().enumerate() {
            if at < first_kept && !retention.pinned.contains(&number) {
                garbage.push(Garbage::Checkpoint(number));
            } else {
                kept.insert(number);
                marked.extend(bundles.iter());
            }
        }
        garbage.extend(tombstones);
        let needless = |number: Option<CheckpointNumber>| number.is_none_or(|number| !kept.contains(&number));
        let results = inventory.results.into_iter().filter(|(_, number)| needless(*number));
        garbage.extend(results.map(|(name, _)| Garbage::Results(name)));
        let mut unmarked = BTreeMap::new();
        let mut waiting = 0;
        let is_marked = |bundle: &String| marked.contains(bundle) || in_use.contains(bundle);
        for bundle in inventory.bundles.iter().filter(|bundle| !is_marked(bundle)) {
            let since = self.unmarked.get(bundle).copied().unwrap_or(now);
            unmarked.insert(bundle.clone(), since);
            if since.plus_micros(retention.grace) <= now {
                garbage.push(Garbage::Bundle(bundle.clone()));
            } else {
                waiting += 1;
            }
        }
        self.unmarked = unmarked;
        Choice { garbage, waiting }
    }
}
