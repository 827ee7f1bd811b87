//! Checkpoints: the part that performs what [`Driver`](stead_core::checkpointing::driver::Driver) decides, and the one that
//! merges bundles beside it.
//!
//! Both are stepped: a turn performs one action of bounded size and never waits. In production a thread loops over each, in
//! the simulator a test does. What concerns the rest of the node leaves them as an [`Order`].

mod merge;
mod part;
mod queue;
mod real;
mod report;

pub use merge::{MergeOrder, MergePart};
pub use part::{CheckpointPart, CheckpointSetup};
pub use queue::{CheckpointReply, Event, SnapshotQueue, Wanted};
pub(crate) use queue::{PIECE_BYTES, Pin};
pub(crate) use real::{Checkpoints, Merges};
pub use report::{CheckpointFailure, CheckpointInfo, CheckpointReport, FailedCheck, SkippedCheck};
pub(crate) use report::{failed, skipped};

use std::fmt;
use std::time::Duration;
use stead_core::checkpointing::driver::Action;
use stead_core::ids::{Colour, Index, ShardId, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::manifest::Manifest;

/// What the parts of checkpoints need of their node: production and the simulator implement it.
pub trait CheckpointHub {
    /// Where their work is left.
    fn queue(&self) -> &SnapshotQueue;

    /// The wall clock.
    fn wall(&self) -> Time;

    /// Whether the node is abandoned or has failed: its parts end at once, and leave undone what is not done.
    fn is_over(&self) -> bool;

    /// Whether the log is full, and what is left of it is for the work that has begun.
    fn is_log_spent(&self) -> bool;

    /// Sees what the driver wants before it is performed. The simulator's planted bugs bend it.
    fn watch(&self, action: &mut Action) {
        let _ = action;
    }

    /// Performs an order.
    fn perform(&self, order: Order);
}

/// What the parts of checkpoints want from the rest of the node.
pub enum Order {
    /// The next parts of these shards hold all their records.
    ForceFull(Vec<ShardId>),
    /// All shards get this colour.
    Colour(Colour),
    /// A shard's snapshot for a number is drained to nowhere.
    Discard {
        /// The shard.
        shard: ShardId,
        /// The number.
        number: Colour,
    },
    /// Workers that held back may hand on pieces again.
    CaughtUp,
    /// A checkpoint is complete; its shards learn of it before the next colour.
    Completed {
        /// Its manifest.
        manifest: Box<Manifest>,
        /// How long it took.
        duration: Duration,
        /// Those who want to know.
        wanted: Vec<Wanted>,
    },
    /// A checkpoint is given up: snapshots for it, and for those before it, are drained to nowhere.
    GivenUp {
        /// Its number.
        number: Colour,
        /// For people.
        reason: String,
        /// Those who want to know.
        wanted: Vec<Wanted>,
    },
    /// No checkpoint begins, for the log is spent.
    Refused(Vec<Wanted>),
    /// The log needs no entry up to these indexes any more.
    Trim(Vec<(ShardId, Index)>),
    /// Bundles are to be merged.
    Merge(MergeOrder),
    /// So many bytes were written by a merge.
    Merged(u64),
    /// Something failed; the work goes on.
    Trouble(Trouble),
}

/// What failed.
#[derive(Debug)]
pub enum Trouble {
    /// A checkpoint could not be written: it is given up.
    Checkpoint(Colour, CheckpointError),
    /// The tombstone of a number could not be written: the number stays undecided, and is never used again.
    Tombstone(Colour, CheckpointError),
    /// Old checkpoints could not be deleted: that is tried again after the next checkpoint.
    Collection(CheckpointError),
    /// Bundles could not be merged.
    Merge(CheckpointError),
}

impl Trouble {
    /// The error behind it.
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
            Self::Merge(error) => write!(f, "cannot merge bundles: {error}; they stay as they are"),
        }
    }
}
