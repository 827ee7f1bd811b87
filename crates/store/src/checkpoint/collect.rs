//! Deleting what no checkpoint needs any more.
//!
//! What is kept is marked from all manifests together: one that can't be read stops the collection before anything is
//! deleted, for nobody knows what it needs. Tombstones stay. A bundle that is not marked is deleted only once it has
//! been so for the grace period, so that a reader which began with an older manifest can finish.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::checks::{checks_name, collect_checks};
use crate::checkpoint::manifest::{
    Decision, Manifest, decided_numbers, manifest_name, newest, read_decision,
};
use crate::checkpoint::store::BlobStore;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{Colour, Incarnation, Time};
use thiserror::Error;

/// The directory of bundles.
const BUNDLES: &str = "bundles/";

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
}

impl Collector {
    /// A collector that has seen nothing yet: every grace period begins anew.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes checkpoints that are not retained, and bundles that nothing needs.
    ///
    /// `in_use` are bundles that no manifest tells of yet: those of a running checkpoint or merge, and of the lineage that
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
        let complete = read_all(store, incarnation)?;
        let newest = complete.len() - complete.len().min(retention.keep.max(1));
        let (expired, kept): (Vec<_>, Vec<_>) = complete
            .into_iter()
            .enumerate()
            .partition(|(at, manifest)| *at < newest && !retention.pinned.contains(&manifest.number));
        let numbers = kept.iter().map(|(_, manifest)| manifest.number).collect();
        let mut marked = in_use.clone();
        marked.extend(kept.into_iter().flat_map(|(_, manifest)| manifest.bundles).map(|bundle| bundle.name));
        let mut collected = Collected::default();
        // Manifests go before what they refer to: a crash leaves bundles without a manifest, never the reverse.
        for (_, manifest) in expired {
            store.delete(&manifest_name(manifest.number))?;
            collected.checkpoints.push(manifest.number);
        }
        collect_checks(store, &numbers)?;
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
}

/// All manifests, the oldest first.
fn read_all(store: &dyn BlobStore, incarnation: Incarnation) -> Result<Vec<Manifest>, CheckpointError> {
    let mut complete = Vec::new();
    for number in decided_numbers(store)? {
        let decision = read_decision(store, number)?;
        let found = decision.incarnation();
        if found != incarnation {
            let name = manifest_name(number);
            return Err(CheckpointError::Incarnation { name, found, expected: incarnation });
        }
        if let Decision::Complete(manifest) = decision {
            complete.push(*manifest);
        }
    }
    Ok(complete)
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
