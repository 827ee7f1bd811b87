//! Deleting what no checkpoint needs any more.
//!
//! Bundles that are kept are marked from all manifests together: one that can't be read stops the collection before
//! anything is deleted, because it is not known which bundles it needs. A bundle that is not marked is deleted only once
//! it has been so for the grace period, so that a reader which began with an older manifest can finish.
//!
//! Only the tombstone of the greatest decided number is needed: it keeps the next number greater, also after a
//! restart. No number below it begins again, and [`Sealed::store`](crate::checkpoint::write::Sealed::store) refuses to
//! complete one.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::checks::{checks_name, collect_checks};
use crate::checkpoint::manifest::{Decision, decided_numbers, manifest_name, newest, read_decision};
use crate::checkpoint::store::BlobStore;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{Colour, Incarnation, Time};
use thiserror::Error;

/// The directory of bundles.
const BUNDLES: &str = "bundles/";
/// Most tombstones that one collection deletes: each costs a sync, and a store may hold thousands of older programs.
const TOMBSTONES_MAX: usize = 64;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many checkpoints; at least 1, whatever is set here. Default 3.
    pub keep: usize,
    /// Checkpoints that somebody reads or wants to keep.
    pub pinned: BTreeSet<Colour>,
    /// How long a bundle that nothing refers to stays, in microseconds. Default 60 s.
    pub grace: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 3, pinned: BTreeSet::new(), grace: 60_000_000 }
    }
}

/// What a collection deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Checkpoints.
    pub checkpoints: Vec<Colour>,
    /// Numbers of given-up checkpoints whose tombstones are not needed any more; at most 64, the oldest first.
    pub tombstones: Vec<Colour>,
    /// Bundles.
    pub bundles: Vec<String>,
    /// Bundles that wait for the end of the grace period.
    pub waiting: usize,
}

/// Collects the garbage of one store. The owner of the store alone may do so: one collector in one process.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    /// When each unmarked bundle was first seen so.
    condemned: BTreeMap<String, Time>,
    /// The decisions that were read. They never change, so that each is read once.
    decided: BTreeMap<Colour, Known>,
}

/// The part of a decision that a collection needs.
#[derive(Clone, Debug)]
struct Known {
    incarnation: Incarnation,
    /// The bundles of a checkpoint; none for a tombstone.
    bundles: Option<Vec<String>>,
}

impl Known {
    fn of(decision: Decision) -> Self {
        let incarnation = decision.incarnation();
        let bundles = match decision {
            Decision::Complete(manifest) => {
                Some(manifest.bundles.into_iter().map(|bundle| bundle.name).collect())
            }
            Decision::GivenUp(_) => None,
        };
        Self { incarnation, bundles }
    }
}

impl Collector {
    /// A collector that has seen nothing yet: it reads every decision once, and every grace period begins.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes checkpoints that are not retained, bundles that nothing needs, and tombstones of numbers below the greatest
    /// decided one.
    ///
    /// `in_use` are bundles that no manifest names yet: those of a running checkpoint or merge, and of the lineage that
    /// the next checkpoint builds upon.
    ///
    /// # Errors
    /// [`CheckpointError`] if any manifest can't be read, or is of another incarnation: then nothing was deleted. After the
    /// store's error some was; the next collection goes on.
    pub fn collect(
        &mut self,
        store: &dyn BlobStore,
        incarnation: Incarnation,
        now: Time,
        retention: &Retention,
        in_use: &BTreeSet<String>,
    ) -> Result<Collected, CheckpointError> {
        // Listed first: a bundle that comes after the marks were taken is not in this list.
        let bundles = store.list(BUNDLES)?;
        self.read_new(store, incarnation)?;
        let newest = self.decided.last_key_value().map(|(number, _)| *number);
        let mut marked = in_use.clone();
        let (mut complete, mut tombstones) = (Vec::new(), Vec::new());
        for (&number, known) in &self.decided {
            match &known.bundles {
                Some(bundles) => complete.push((number, bundles)),
                None if Some(number) != newest => tombstones.push(number),
                None => {}
            }
        }
        tombstones.truncate(TOMBSTONES_MAX);
        let first_kept = complete.len() - complete.len().min(retention.keep.max(1));
        let (mut expired, mut kept) = (Vec::new(), BTreeSet::new());
        for (at, (number, bundles)) in complete.into_iter().enumerate() {
            if at < first_kept && !retention.pinned.contains(&number) {
                expired.push(number);
            } else {
                kept.insert(number);
                marked.extend(bundles.iter().cloned());
            }
        }
        let mut collected = Collected::default();
        // Manifests go before what they refer to: a crash leaves bundles without a manifest, never the reverse.
        for number in expired {
            self.delete(store, number)?;
            collected.checkpoints.push(number);
        }
        for number in tombstones {
            self.delete(store, number)?;
            collected.tombstones.push(number);
        }
        collect_checks(store, &kept)?;
        let mut condemned = BTreeMap::new();
        for bundle in bundles.into_iter().filter(|bundle| !marked.contains(bundle)) {
            let since = self.condemned.get(&bundle).copied().unwrap_or(now);
            if since.plus_micros(retention.grace) <= now {
                store.delete(&bundle)?;
                collected.bundles.push(bundle);
            } else {
                condemned.insert(bundle, since);
            }
        }
        collected.waiting = condemned.len();
        self.condemned = condemned;
        Ok(collected)
    }

    /// Reads the decisions that it does not know yet, and forgets those that are gone.
    fn read_new(&mut self, store: &dyn BlobStore, incarnation: Incarnation) -> Result<(), CheckpointError> {
        let numbers: BTreeSet<Colour> = decided_numbers(store)?.into_iter().collect();
        self.decided.retain(|number, _| numbers.contains(number));
        for number in numbers {
            let known = match self.decided.entry(number) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(Known::of(read_decision(store, number)?)),
            };
            if known.incarnation != incarnation {
                let (name, found) = (manifest_name(number), known.incarnation);
                return Err(CheckpointError::Incarnation { name, found, expected: incarnation });
            }
        }
        Ok(())
    }

    /// Deletes a decision. It is forgotten first: after an error it may or may not be there.
    fn delete(&mut self, store: &dyn BlobStore, number: Colour) -> Result<(), CheckpointError> {
        self.decided.remove(&number);
        Ok(store.delete(&manifest_name(number))?)
    }
}

/// Why a checkpoint was not deleted.
#[derive(Debug, Error)]
pub enum DeleteError {
    /// A restart needs it.
    #[error("checkpoint {0} is the newest: a restart needs it; take another one first")]
    Newest(Colour),
    /// Somebody reads it.
    #[error("checkpoint {0} is in use; try again when it is not")]
    Pinned(Colour),
    /// It does not exist or can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Deletes one checkpoint; its bundles go with the next collection.
///
/// # Errors
/// [`DeleteError`].
pub fn delete_checkpoint(
    store: &dyn BlobStore,
    number: Colour,
    pinned: &BTreeSet<Colour>,
) -> Result<(), DeleteError> {
    let newest = newest(store)?.manifest.map(|manifest| manifest.number);
    if newest == Some(number) {
        return Err(DeleteError::Newest(number));
    }
    if pinned.contains(&number) {
        return Err(DeleteError::Pinned(number));
    }
    match read_decision(store, number)? {
        Decision::Complete(_) => {
            store.delete(&manifest_name(number)).map_err(CheckpointError::from)?;
            Ok(store.delete(&checks_name(number)).map_err(CheckpointError::from)?)
        }
        Decision::GivenUp(tombstone) => {
            Err(CheckpointError::GivenUp { number, reason: tombstone.reason }.into())
        }
    }
}
