//! Stored checkpoints: bundles of sections, manifests, and the code that reads, merges, checks and deletes them.
//!
//! A checkpoint exists once its manifest does. The manifest names for each shard the sections that make up its part,
//! oldest first; sections of all shards of a node are stored together in bundles, one new bundle for each checkpoint.
//! Stored objects are never changed: compaction writes new bundles, and the next manifest refers to them.

pub mod begun;
pub mod bundle;
pub mod cancel;
pub mod checks;
pub mod collect;
pub mod compact;
pub mod copy;
pub mod directory;
pub mod load;
pub mod manifest;
pub mod remote;
pub mod restore;
#[cfg(feature = "s3")]
mod s3;
pub mod store;
pub mod verify;
pub mod write;

use crate::checkpoint::store::StoreError;
use stead_core::ids::{CheckpointNumber, ClusterId, Incarnation, ShardId};
use stead_core::topology::TopologyError;
use thiserror::Error;

/// The cluster and the incarnation that a stored object belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belonging {
    /// The cluster; `None` for an object of version 1, which names none.
    pub cluster: Option<ClusterId>,
    /// The incarnation.
    pub incarnation: Incarnation,
}

impl Belonging {
    /// Checks the belonging of the object `name` against the expected one. An unknown cluster fits any.
    pub(crate) fn check(self, name: &str, expected: Self) -> Result<(), CheckpointError> {
        check_cluster(name, self.cluster, expected.cluster)?;
        let (found, expected) = (self.incarnation, expected.incarnation);
        if found != expected {
            return Err(CheckpointError::Incarnation { name: name.to_owned(), found, expected });
        }
        Ok(())
    }
}

fn check_cluster(
    name: &str,
    found: Option<ClusterId>,
    expected: Option<ClusterId>,
) -> Result<(), CheckpointError> {
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            Err(CheckpointError::Cluster { name: name.to_owned(), found, expected })
        }
        _ => Ok(()),
    }
}

/// Reasons for which a checkpoint cannot be written, read or used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object differs from the one that was written.
    #[error("{name} is damaged: {reason}; use an older checkpoint or a copy of this one")]
    Damaged {
        /// The object.
        name: String,
        /// The failed check.
        reason: String,
    },
    /// An object of a format that this program does not know.
    #[error(
        "{name} has format version {found}, and this program reads versions up to {known}; use a newer program"
    )]
    Version {
        /// The object.
        name: String,
        /// Its version.
        found: u64,
        /// The highest version that this program knows.
        known: u32,
    },
    /// An object would be over the limit of readers. It was not written.
    #[error("{name} would have {len} bytes, over the limit of {max}; use fewer shards, or split the cluster")]
    TooLarge {
        /// The object.
        name: String,
        /// Its bytes.
        len: u64,
        /// The limit of readers.
        max: u64,
    },
    /// An object of another cluster.
    #[error("{name} belongs to cluster {found}, not to {expected}; files of two clusters were mixed")]
    Cluster {
        /// The object.
        name: String,
        /// Its cluster.
        found: ClusterId,
        /// The expected one.
        expected: ClusterId,
    },
    /// An object of another incarnation of the cluster.
    #[error(
        "{name} belongs to incarnation {found}, not to {expected}; files of two clusters or incarnations were mixed"
    )]
    Incarnation {
        /// The object.
        name: String,
        /// Its incarnation.
        found: Incarnation,
        /// The expected one.
        expected: Incarnation,
    },
    /// There is no such checkpoint, or its manifest was deleted.
    #[error("checkpoint {0} does not exist in this store; list its checkpoints to see which do")]
    Unknown(CheckpointNumber),
    /// The checkpoint failed, and its number stays unused.
    #[error("checkpoint {number} was given up: {reason}; use another one")]
    GivenUp {
        /// Its number.
        number: CheckpointNumber,
        /// The reason.
        reason: String,
    },
    /// The number is decided differently, or a greater one is decided.
    #[error(
        "checkpoint {0} is decided already by another manifest or tombstone, or a greater number is; take the next number"
    )]
    Decided(CheckpointNumber),
    /// A loaded part is not the state that was written.
    #[error(
        "shard {shard} of {name} has {what} {found} where {expected} was recorded; use an older checkpoint or a copy of this one"
    )]
    Differs {
        /// The manifest.
        name: String,
        /// The shard.
        shard: ShardId,
        /// The quantity that differs.
        what: &'static str,
        /// The loaded value.
        found: String,
        /// The recorded value.
        expected: String,
    },
    /// The topology in a manifest is invalid.
    #[error("{name} has an invalid topology: {source}")]
    Topology {
        /// The manifest.
        name: String,
        /// The reason.
        source: TopologyError,
    },
    /// The given parts do not make up the checkpoint.
    #[error("cannot complete checkpoint {number}: {reason}")]
    Incomplete {
        /// Its number.
        number: CheckpointNumber,
        /// The missing or surplus part.
        reason: String,
    },
    /// The target of copies belongs to another cluster.
    #[error("cannot copy checkpoints there: {reason}; use another address, or another prefix of this one")]
    Target {
        /// The contents of the target.
        reason: String,
    },
}

impl CheckpointError {
    pub(crate) fn damaged(name: &str, reason: impl Into<String>) -> Self {
        Self::Damaged { name: name.to_owned(), reason: reason.into() }
    }

    /// Checks the length of an object before it is written against the limit of readers.
    pub(crate) fn check_len(name: &str, len: usize, max: u64) -> Result<(), Self> {
        let len = len as u64;
        if len > max { Err(Self::TooLarge { name: name.to_owned(), len, max }) } else { Ok(()) }
    }

    /// Whether the cause is a full store.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_over_the_limit_of_its_readers_is_not_written() {
        assert!(CheckpointError::check_len("it", 10, 10).is_ok());
        for len in [11, 12] {
            let error = CheckpointError::check_len("it", len, 10).expect_err("it is too long");
            assert!(matches!(error, CheckpointError::TooLarge { max: 10, .. }), "{error}");
        }
    }
}
