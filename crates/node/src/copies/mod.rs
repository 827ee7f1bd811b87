//! Copies of checkpoints to storage apart from the node's own disk: of the newest checkpoint by itself, and of others on
//! request.
//!
//! One part makes them, one copy at a time: a collection at a target must not see bundles whose manifest is not written
//! yet. It is stepped: a turn opens a target, copies a piece, or deletes some old objects, and never waits for the pace.

mod desk;
mod part;
#[cfg(test)]
mod tests;

pub(crate) use desk::CopyDesk;
pub use desk::CopyReply;
pub use part::{CopyFailure, CopyPart, Opener};

use serde::{Deserialize, Serialize};
use std::time::Duration;
use stead_core::ids::CheckpointNumber;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::copy::{Copied, CopyRun, Owner};
use stead_store::checkpoint::manifest::read_manifest;
use stead_store::checkpoint::store::BlobStore;

/// Address, interval and retention of copies of checkpoints.
#[derive(Clone, Debug)]
pub struct CopyTarget {
    /// The address: `file:///directory` or `s3://bucket/prefix`.
    pub address: String,
    /// Time from one copy's beginning to the next.
    pub interval: Duration,
    /// Number of checkpoints to keep there.
    pub keep: usize,
}

/// A copied checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Its number.
    pub number: u64,
    /// The address of the copy.
    pub to: String,
    /// The time that it took.
    pub duration: Duration,
    /// Bundles that were written.
    pub bundles_written: u64,
    /// Bundles that existed already.
    pub bundles_reused: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

impl CopyReport {
    /// The report of a copy to this address that took so long.
    #[must_use]
    pub fn new(number: CheckpointNumber, to: String, duration: Duration, copied: Copied) -> Self {
        Self {
            number: number.0,
            to,
            duration,
            bundles_written: copied.bundles as u64,
            bundles_reused: copied.reused as u64,
            bytes_written: copied.bytes,
        }
    }
}

/// Begins to copy a stored checkpoint, which must not be collected meanwhile, to a target that is claimed for its owner.
///
/// # Errors
/// [`CheckpointError`]: then nothing was copied.
pub fn begin_copy(
    local: &dyn BlobStore,
    target: &dyn BlobStore,
    owner: Owner,
    number: CheckpointNumber,
) -> Result<CopyRun, CheckpointError> {
    let manifest = read_manifest(local, number)?;
    manifest.check_cluster(owner.cluster)?;
    owner.claim(target)?;
    Ok(CopyRun::new(manifest))
}
