//! The choice of objects that no checkpoint needs any more, to be deleted.
//!
//! A checkpoint has parts of the shards that its node led. The newest part of a shard that is on no known node may be all
//! there is of it, so the checkpoint with that part is kept, whatever its age.
//!
//! The bundles to keep are marked from all manifests together. An unmarked bundle is deleted only once it has been
//! unmarked for the grace period, so that a reader that began with an older manifest can finish.
//!
//! Only the tombstone of the greatest decided number is needed: it ensures that the next number is greater, also after
//! a restart. No number below it begins again.

use crate::ids::{CheckpointNumber, Micros, ShardId, Time};
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
    /// Shards on other nodes. Of each other shard the checkpoint with the newest part of it is kept. Default none.
    pub elsewhere: BTreeSet<ShardId>,
    /// Time that an unreferenced bundle is kept. Default 60 s.
    pub grace: Micros,
}

impl Default for Retention {
    fn default() -> Self {
        let (pinned, elsewhere) = (BTreeSet::new(), BTreeSet::new());
        Self { keep: 3, pinned, elsewhere, grace: Micros::from_secs(60) }
    }
}

/// The objects of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All bundles, listed before `decided` was read: bundles written since then are missing.
    pub bundles: Vec<String>,
    /// The decided numbers, with the bundles of a checkpoint, or `None` for a tombstone.
    pub decided: BTreeMap<CheckpointNumber, Option<Vec<String>>>,
    /// The shards of which each checkpoint has a part.
    pub parts: BTreeMap<CheckpointNumber, Vec<ShardId>>,
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
        let with_newest = with_newest_parts(&inventory.parts, &retention.elsewhere);
        let (mut garbage, mut kept, mut marked) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for (at, (number, bundles)) in complete.into_iter().enumerate() {
            if at < first_kept && !retention.pinned.contains(&number) && !with_newest.contains(&number) {
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
            if since.plus(retention.grace) <= now {
                garbage.push(Garbage::Bundle(bundle.clone()));
            } else {
                waiting += 1;
            }
        }
        self.unmarked = unmarked;
        Choice { garbage, waiting }
    }
}

/// Returns the checkpoints with the newest part of any shard, except of the shards elsewhere.
#[must_use]
pub fn with_newest_parts(
    parts: &BTreeMap<CheckpointNumber, Vec<ShardId>>,
    elsewhere: &BTreeSet<ShardId>,
) -> BTreeSet<CheckpointNumber> {
    let parts = parts.iter().flat_map(|(number, shards)| shards.iter().map(|shard| (*shard, *number)));
    // In the order of the numbers: the newest one of a shard remains.
    let newest: BTreeMap<ShardId, CheckpointNumber> =
        parts.filter(|(shard, _)| !elsewhere.contains(shard)).collect();
    newest.into_values().collect()
}
