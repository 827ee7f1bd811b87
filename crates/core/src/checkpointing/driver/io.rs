//! The settings of the driver, its inputs and its actions.

use crate::checkpointing::lineage::{Lineage, Merged};
use crate::checkpointing::merging::{Merge, Policy};
use crate::checkpointing::retention::{Garbage, Inventory};
use crate::ids::{CheckpointNumber, Colour, Epoch, Index, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The settings of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The time between the beginnings of two checkpoints; `None`: only on request.
    pub interval: Option<Duration>,
    /// The time after which a checkpoint is given up.
    pub timeout: Duration,
    /// Number of newest checkpoints to keep; at least 1, whatever is set here.
    pub keep: usize,
    /// The shards on other nodes at the start. The newest part of any other shard is kept, too.
    pub elsewhere: BTreeSet<ShardId>,
    /// The time for which an unreferenced bundle is kept.
    pub grace: Duration,
    /// When bundles are merged.
    pub policy: Policy,
}

/// The checkpoints at the start of a life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The lineage of the newest complete checkpoint.
    pub lineage: Lineage,
    /// The greatest decided number.
    pub decided: CheckpointNumber,
    /// The greatest colour of any shard.
    pub seen: CheckpointNumber,
}

/// An event that the driver reacts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A checkpoint is requested now.
    Wanted,
    /// Begin checkpoints after each such time from now on, or only on request.
    Interval(Option<Duration>),
    /// The space of the log has changed.
    LogSpace(LogSpace),
    /// This node leads a shard from now on: the shard has arrived, or begun another epoch. The shard's next part must hold
    /// all its records. A running checkpoint is given up if the shard's part of an older epoch is not complete; one that
    /// has no part of the shard goes on without.
    Leads {
        /// The shard.
        shard: ShardId,
        /// Its epoch. It never falls.
        epoch: Epoch,
    },
    /// This node leads a shard no more, and another one does. A running checkpoint is given up if the shard's part is not complete; later
    /// checkpoints here have none, and no section of it.
    Left(ShardId),
    /// The bundle of [`Action::Create`] is begun.
    Created(CheckpointNumber),
    /// A shard has appended a marker, and a snapshot has begun: of all its records, or of those that changed since the last
    /// one.
    Marked {
        /// The shard.
        shard: ShardId,
        /// The shard's new colour.
        number: CheckpointNumber,
        /// The epoch of the marker.
        epoch: Epoch,
        /// The index of the marker.
        index: Index,
        /// The snapshot is of all records.
        all: bool,
    },
    /// A shard's whole part is handed to the bundle; it need not be durable.
    PartWritten {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// A shard's marker is committed.
    MarkerCommitted {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// The bundle could not be created, written or sealed, or the checkpoint is not wanted any more.
    Failed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
    },
    /// The bundle is durable.
    Sealed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// [`Driver::lineage`](super::Driver::lineage) with the sections of the bundle.
        lineage: Lineage,
    },
    /// The manifest is durable: the checkpoint exists.
    Stored(CheckpointNumber),
    /// The manifest was not stored.
    StoreFailed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
        /// Whether it may exist nevertheless, or come to exist.
        may_exist: bool,
    },
    /// [`Action::Bury`] was tried.
    Buried {
        /// The number.
        number: CheckpointNumber,
        /// The new value.
        burial: Burial,
    },
    /// The contents of the store, and the checkpoints that are being read.
    Inventory {
        /// The contents of the store.
        inventory: Inventory,
        /// Checkpoints that are being read or must be kept.
        pinned: BTreeSet<CheckpointNumber>,
    },
    /// The objects that [`Action::Delete`] names are deleted.
    Deleted,
    /// [`Action::Look`] or [`Action::Delete`] failed: the next collection tries again.
    CollectFailed,
    /// The merge has ended, with a durable bundle or with a failure.
    Merged(Option<Merged>),
}

/// The space that a log has for the markers of checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogSpace {
    /// It is not full.
    #[default]
    Enough,
    /// It is full. A checkpoint may release old segments, so it may begin, but its colour waits until the markers of earlier
    /// ones are in the log, which then counts them.
    Full,
    /// It is full, and its remaining space is for work that has begun: no checkpoint begins, because it appends a marker to
    /// each shard.
    Spent,
}

/// The result of giving up a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burial {
    /// Its tombstone is durable.
    Tombstone,
    /// It is a checkpoint: its manifest was stored after all.
    Complete,
    /// Unknown. The number is never used again, and no manifest is stored under it.
    Unknown,
}

/// An action for the caller to perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin the bundle of a checkpoint: [`Input::Created`] or [`Input::Failed`].
    Create {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The name of the bundle.
        bundle: String,
        /// The shards that it is of, each with its epoch.
        parts: BTreeMap<ShardId, Epoch>,
    },
    /// The next parts of these shards hold all their records. Comes before the colour.
    ForceFull(Vec<ShardId>),
    /// Pass the colour to all shards.
    Colour(Colour),
    /// Drain and drop a shard's snapshot: no checkpoint takes it.
    Discard {
        /// The shard.
        shard: ShardId,
        /// Its colour.
        number: CheckpointNumber,
    },
    /// Complete the bundle: [`Input::Sealed`] or [`Input::Failed`].
    Seal(CheckpointNumber),
    /// Store the manifest: [`Input::Stored`] or [`Input::StoreFailed`].
    StoreManifest(CheckpointNumber),
    /// Give the number up for ever, by a tombstone: [`Input::Buried`].
    Bury {
        /// The number.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
    },
    /// The checkpoint exists: report it to its shards, before the next colour, and to those who requested it.
    Completed(CheckpointNumber),
    /// The checkpoint will never exist, or must not be relied upon: report it to its shards and to those who requested
    /// it.
    GivenUp {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
    },
    /// No checkpoint begins, because the log is spent: report it to those who requested one.
    Refuse,
    /// The log no longer needs entries up to these indexes.
    Trim(Vec<(ShardId, Index)>),
    /// List the contents of the store: [`Input::Inventory`] or [`Input::CollectFailed`].
    Look,
    /// Delete these in this order: [`Input::Deleted`] or [`Input::CollectFailed`].
    Delete(Vec<Garbage>),
    /// Merge bundles, beside all later actions: [`Input::Merged`].
    Merge {
        /// The name of the bundle to write.
        output: String,
        /// The greatest number that was begun.
        number: CheckpointNumber,
        /// The bundles to merge.
        merge: Merge,
    },
}
