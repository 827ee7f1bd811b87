//! Deletes objects that no checkpoint needs any more, as [`retention`](stead_core::checkpointing::retention) selects.
//!
//! A manifest that cannot be read stops the collection before anything is deleted, because its bundles are unknown.
//! [`Sealed::store`](crate::checkpoint::write::Sealed::store) refuses to complete a number whose tombstone may have
//! been deleted.

use crate::checkpoint::checks::{checks_name, list_checks};
use crate::checkpoint::copy::Owner;
use crate::checkpoint::manifest::{
    Decision, Manifest, decided_numbers, manifest_name, newest, read_decision,
};
use crate::checkpoint::store::{BlobStore, StoreError};
use crate::checkpoint::{Belonging, CheckpointError};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
pub use stead_core::checkpointing::retention::Retention;
use stead_core::checkpointing::retention::{Chooser, Garbage, Inventory, with_newest_parts};
use stead_core::ids::{CheckpointNumber, ShardId, Time};
use thiserror::Error;

/// The directory of bundles.
const BUNDLES: &str = "bundles/";

/// The objects that a collection deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Checkpoints.
    pub checkpoints: Vec<CheckpointNumber>,
    /// Numbers of given-up checkpoints whose tombstones are not needed any more; at most 64, the oldest first.
    pub tombstones: Vec<CheckpointNumber>,
    /// Bundles.
    pub bundles: Vec<String>,
    /// Bundles that wait for the end of the grace period.
    pub waiting: usize,
}

/// Takes the inventories of one store. The owner of the store alone may collect: one collector in one process.
#[derive(Clone, Debug, Default)]
pub struct Stock {
    /// The decisions that were read. They never change, so each is read once.
    decided: BTreeMap<CheckpointNumber, Known>,
}

/// The part of a decision that a collection needs.
#[derive(Clone, Debug)]
struct Known {
    belonging: Belonging,
    /// The bundles of a checkpoint; `None` for a tombstone.
    bundles: Option<Vec<String>>,
    /// The shards of its parts.
    parts: Vec<ShardId>,
}

/// Returns the shards of which a checkpoint has a part.
fn shards_of(manifest: &Manifest) -> Vec<ShardId> {
    manifest.parts.iter().map(|part| part.shard).collect()
}

impl Known {
    fn of(decision: Decision) -> Self {
        let belonging = decision.belonging();
        let (bundles, parts) = match decision {
            Decision::Complete(manifest) => {
                let parts = shards_of(&manifest);
                let bundles = manifest.bundles.into_iter().map(|bundle| bundle.name).collect();
                (Some(bundles), parts)
            }
            Decision::GivenUp(_) => (None, Vec::new()),
        };
        Self { belonging, bundles, parts }
    }
}

impl Stock {
    /// Creates an empty one: the first inventory reads every decision.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists the objects of the store.
    ///
    /// # Errors
    /// [`CheckpointError`] if any manifest cannot be read, or is of another owner.
    pub fn inventory(&mut self, store: &dyn BlobStore, owner: Owner) -> Result<Inventory, CheckpointError> {
        // Listed first: a bundle that is written after the manifests were read is not in this list.
        let bundles = store.list(BUNDLES)?;
        self.read_new(store, owner)?;
        let decided = self.decided.iter().map(|(number, known)| (*number, known.bundles.clone())).collect();
        let parts = self.decided.iter().map(|(number, known)| (*number, known.parts.clone())).collect();
        Ok(Inventory { bundles, decided, parts, results: list_checks(store)? })
    }

    /// Reads new decisions, and removes those whose objects are gone.
    fn read_new(&mut self, store: &dyn BlobStore, owner: Owner) -> Result<(), CheckpointError> {
        let numbers: BTreeSet<CheckpointNumber> = decided_numbers(store)?.into_iter().collect();
        self.decided.retain(|number, _| numbers.contains(number));
        for number in numbers {
            let known = match self.decided.entry(number) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(Known::of(read_decision(store, number)?)),
            };
            known.belonging.check(&manifest_name(number), owner.belonging())?;
        }
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The store's; then the object may or may not exist.
    pub fn delete(&mut self, store: &dyn BlobStore, garbage: &Garbage) -> Result<(), CheckpointError> {
        match garbage {
            Garbage::Checkpoint(number) | Garbage::Tombstone(number) => {
                // Removed first: after an error it is read again if it still exists.
                self.decided.remove(number);
                Ok(store.delete(&manifest_name(*number))?)
            }
            Garbage::Results(name) | Garbage::Bundle(name) => Ok(store.delete(name)?),
        }
    }
}

/// Collects the garbage of one store at once. The owner of the store alone may do so: one collector in one process.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    stock: Stock,
    chooser: Chooser,
}

impl Collector {
    /// Creates a collector that has read nothing: it reads every decision once, and starts every grace period.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes checkpoints that are not retained, bundles that nothing needs, and tombstones of numbers below the greatest
    /// decided one. `in_use` is as for [`Chooser::choose`].
    ///
    /// # Errors
    /// [`CheckpointError`] if any manifest cannot be read, or is of another owner: then nothing was deleted.
    /// After an error of the store some objects may have been deleted; the next collection continues.
    pub fn collect(
        &mut self,
        store: &dyn BlobStore,
        owner: Owner,
        now: Time,
        retention: &Retention,
        in_use: &BTreeSet<String>,
    ) -> Result<Collected, CheckpointError> {
        let inventory = self.stock.inventory(store, owner)?;
        let choice = self.chooser.choose(inventory, now, retention, in_use);
        let mut collected = Collected { waiting: choice.waiting, ..Collected::default() };
        for garbage in choice.garbage {
            self.stock.delete(store, &garbage)?;
            match garbage {
                Garbage::Checkpoint(number) => collected.checkpoints.push(number),
                Garbage::Tombstone(number) => collected.tombstones.push(number),
                Garbage::Bundle(name) => collected.bundles.push(name),
                Garbage::Results(_) => {}
            }
        }
        Ok(collected)
    }
}

/// Reasons for which a checkpoint was not deleted.
#[derive(Debug, Error)]
pub enum DeleteError {
    /// A restart needs it.
    #[error("checkpoint {0} is the newest: a restart needs it; take another one first")]
    Newest(CheckpointNumber),
    /// No newer one has a part of one of its shards, and that shard is on no known node.
    #[error(
        "checkpoint {0} has the newest part of a shard that no node is known to have: it may be all there is of it; place the shard, and take another checkpoint first"
    )]
    NewestPart(CheckpointNumber),
    /// It is being read.
    #[error("checkpoint {0} is in use; try again when it is not")]
    Pinned(CheckpointNumber),
    /// It does not exist or cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A checkpoint that may be deleted: it is complete, not the newest, and not the one with the newest part of a shard that is on no
/// known node, and stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletable(CheckpointNumber);

impl Deletable {
    /// Looks whether a checkpoint may be deleted. `elsewhere` are the shards on other nodes, as in [`Retention`].
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn find(
        store: &dyn BlobStore,
        number: CheckpointNumber,
        elsewhere: &BTreeSet<ShardId>,
    ) -> Result<Self, DeleteError> {
        let newest = newest(store)?.manifest.map(|manifest| manifest.number);
        if newest == Some(number) {
            return Err(DeleteError::Newest(number));
        }
        match read_decision(store, number)? {
            Decision::Complete(manifest) => {
                let parts = BTreeMap::from([(number, shards_of(&manifest))]);
                Self::unless_newest_part(store, number, parts, elsewhere)
            }
            Decision::GivenUp(tombstone) => {
                Err(CheckpointError::GivenUp { number, reason: tombstone.reason }.into())
            }
        }
    }

    /// Reads newer checkpoints, the newest first, until they have all parts of this one.
    fn unless_newest_part(
        store: &dyn BlobStore,
        number: CheckpointNumber,
        mut parts: BTreeMap<CheckpointNumber, Vec<ShardId>>,
        elsewhere: &BTreeSet<ShardId>,
    ) -> Result<Self, DeleteError> {
        let newer = decided_numbers(store)?.into_iter().rev().take_while(|newer| *newer > number);
        for newer in newer {
            match read_decision(store, newer) {
                Ok(Decision::Complete(manifest)) => {
                    parts.insert(newer, shards_of(&manifest));
                }
                // An unknown one was deleted since it was listed.
                Ok(Decision::GivenUp(_)) | Err(CheckpointError::Unknown(_)) => continue,
                Err(error) => return Err(error.into()),
            }
            if !with_newest_parts(&parts, elsewhere).contains(&number) {
                return Ok(Self(number));
            }
        }
        Err(DeleteError::NewestPart(number))
    }

    /// Deletes the checkpoint; the next collection deletes its bundles. `unless_pinned` MUST call its argument while no reader
    /// can begin, or return `None` if there is a reader.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub fn delete(
        self,
        store: &dyn BlobStore,
        unless_pinned: impl FnOnce(&dyn Fn() -> Result<(), StoreError>) -> Option<Result<(), StoreError>>,
    ) -> Result<(), DeleteError> {
        let Self(number) = self;
        let deleted = unless_pinned(&|| store.delete(&manifest_name(number)));
        deleted.ok_or(DeleteError::Pinned(number))?.map_err(CheckpointError::from)?;
        Ok(store.delete(&checks_name(number)).map_err(CheckpointError::from)?)
    }
}
