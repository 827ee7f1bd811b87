//! The choice of what is deleted: what no checkpoint needs any more.
//!
//! Bundles that are kept are marked from all manifests together. A bundle that is not marked is deleted only once it has
//! been so for the grace period, so that a reader which began with an older manifest can finish.
//!
//! Only the tombstone of the greatest decided number is needed: it keeps the next number greater, also after a restart.
//! No number below it begins again.

use crate::ids::{Colour, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Most tombstones that one collection deletes: each costs a sync, and a store may hold thousands of older programs.
const TOMBSTONES_MAX: usize = 64;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many checkpoints; at least 1, whatever is set here. Default 3.
    pub keep: usize,
    /// Checkpoints that are being read or have to be kept.
    pub pinned: BTreeSet<Colour>,
    /// How long a bundle that nothing refers to stays, in microseconds. Default 60 s.
    pub grace: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 3, pinned: BTreeSet::new(), grace: 60_000_000 }
    }
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All bundles, listed before `decided` was read: one that came since is not among them.
    pub bundles: Vec<String>,
    /// The numbers that are decided: the bundles of a checkpoint, `None` for a tombstone.
    pub decided: BTreeMap<Colour, Option<Vec<String>>>,
    /// The results of checks, with the checkpoint that they are about, if their names say so.
    pub results: Vec<(String, Option<Colour>)>,
}

/// An object that is deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    /// The manifest of a checkpoint that is not kept.
    Checkpoint(Colour),
    /// The tombstone of a number that is not the greatest.
    Tombstone(Colour),
    /// The results of the checks of a checkpoint that is not kept.
    Results(String),
    /// A bundle that nothing needs.
    Bundle(String),
}

/// Chooses what is deleted. It remembers since when each bundle has been without use.
#[derive(Clone, Debug, Default)]
pub struct Chooser {
    unmarked: BTreeMap<String, Time>,
}

/// What a collection deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// In the order in which it is deleted: manifests go before what they refer to, so that a crash leaves bundles without
    /// a manifest, never the reverse.
    pub garbage: Vec<Garbage>,
    /// Bundles that wait for the end of the grace period.
    pub waiting: usize,
}

impl Chooser {
    /// Nothing was seen yet: every grace period begins.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses what of an inventory is deleted. `now` is steady; `in_use` are the bundles that no manifest names yet:
    /// those of a running checkpoint or merge, and of the lineage that the next checkpoint builds upon.
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
        let needless = |number: Option<Colour>| number.is_none_or(|number| !kept.contains(&number));
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
