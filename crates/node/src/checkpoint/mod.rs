//! Checkpoints: the part that performs what [`Driver`](stead_core::checkpointing::driver::Driver) decides, and the one that
//! merges bundles beside it.
//!
//! Both are stepped: a turn performs one action of bounded size and never waits. In production a thread loops over each, in
//! the simulator a test does. Requests to the rest of the node leave them as a [`CheckpointCommand`].

mod desk;
mod hub;
mod merge;
mod part;
mod queue;
mod report;
#[cfg(test)]
mod tests;

pub use desk::MergeJob;
pub use hub::{Checkpoints, Merges};
pub use merge::MergePart;
pub use part::{CheckpointPart, CheckpointSetup};
pub(crate) use queue::Pin;
pub use queue::{CheckpointReply, Event, SnapshotQueue, Wanted};
pub use report::{CheckpointFailure, CheckpointInfo, CheckpointReport, FailedCheck, SkippedCheck};
pub(crate) use report::{failed, skipped};

use std::fmt;
use std::time::Duration;
use stead_core::checkpointing::driver::{Action, LogSpace};
use stead_core::ids::{CheckpointNumber, Colour, Index, ShardId, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::manifest::Manifest;

/// The interface of checkpoint parts to their node, which is [`Shared`](crate::Shared).
pub trait CheckpointHub {
    /// Returns the queue of their work.
    fn queue(&self) -> &SnapshotQueue;

    /// Reads the wall clock.
    fn wall(&self) -> Time;

    /// Whether the node is abandoned or has failed: its parts end at once, and leave their work undone.
    fn is_over(&self) -> bool;

    /// Returns the space that the log has for markers.
    fn log_space(&self) -> LogSpace;

    /// Sees the driver's action before it is performed, and may change it.
    fn watch(&self, action: &mut Action) {
        let _ = action;
    }

    /// Performs a command.
    fn perform(&self, command: CheckpointCommand);
}

/// A request of checkpoint parts to the rest of the node.
pub enum CheckpointCommand {
    /// The next parts of these shards must have all their records.
    ForceFull(Vec<ShardId>),
    /// All shards get this colour.
    Colour(Colour),
    /// A shard's snapshot for a number is drained and dropped.
    Discard {
        /// The shard.
        shard: ShardId,
        /// The number.
        number: CheckpointNumber,
    },
    /// Workers that held back may hand over pieces again.
    CaughtUp,
    /// A checkpoint is complete; its shards must get this before the next colour.
    Completed {
        /// Its manifest.
        manifest: Box<Manifest>,
        /// The time that it took.
        duration: Duration,
        /// The requests that wait for it.
        wanted: Vec<Wanted>,
    },
    /// A checkpoint is given up: snapshots for it, and for those before it, are drained and dropped.
    GivenUp {
        /// Its number.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
        /// The requests that wait for it.
        wanted: Vec<Wanted>,
    },
    /// No checkpoint begins, because the log is spent.
    Refused(Vec<Wanted>),
    /// The log no longer needs entries up to these indexes.
    Trim(Vec<(ShardId, Index)>),
    /// Bundles must be merged.
    Merge(MergeJob),
    /// A merge has written this many bytes.
    Merged(u64),
    /// An operation failed; the node continues.
    Trouble(Trouble),
}

/// News of checkpoints for the shards of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// They get this colour.
    Colour(Colour),
    /// This checkpoint is complete.
    Completed(CheckpointNumber),
    /// The checkpoints up to this one are given up: their snapshots are drained and dropped.
    GivenUp(CheckpointNumber),
    /// The checkpoints up to this one take no part of this shard: its snapshots are drained and dropped.
    Discarded(ShardId, CheckpointNumber),
}

/// A failed operation.
#[derive(Debug)]
pub enum Trouble {
    /// A checkpoint could not be written: it is given up.
    Checkpoint(CheckpointNumber, CheckpointError),
    /// The tombstone of a number could not be written: the number stays undecided, and is never used again.
    Tombstone(CheckpointNumber, CheckpointError),
    /// Old checkpoints could not be deleted: this is tried again after the next checkpoint.
    Collection(CheckpointError),
    /// Bundles could not be merged.
    Merge(CheckpointError),
}

impl Trouble {
    /// Returns the underlying error.
    #[must_use]
    pub fn error(&self) -> &CheckpointError {
        match self {
            Self::Checkpoint(_, error)
            | Self::Tombstone(_, error)
            | Self::Collection(error)
            | Self::Merge(error) => error,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint(number, error) => write!(f, "cannot write checkpoint {number}: {error}"),
            Self::Tombstone(number, error) => {
                write!(f, "cannot write the tombstone of checkpoint {number}: {error}")
            }
            Self::Collection(error) => write!(f, "cannot collect old checkpoints: {error}"),
            Self::Merge(error) => write!(f, "cannot merge bundles: {error}; they stay unchanged"),
        }
    }
}
