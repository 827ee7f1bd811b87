//! Marks of checks that have begun: each is durable before a service's check runs, and deleted once the check has
//! ended.
//!
//! A check is the user's code, and may end the process. A mark that is left names that check and its checkpoint.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::checks::{CHECKS, MARKS};
use crate::checkpoint::manifest::{encode, read_object};
use crate::checkpoint::store::{BlobStore, Put, StoreError};
use serde::{Deserialize, Serialize};
use stead_core::ids::{CheckpointNumber, Incarnation};

const KIND_BEGUN: &str = "begun";
/// Maximum number of bytes of a mark.
const BEGUN_MAX: u64 = 4096;

/// The mark of a check that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// The incarnation of the cluster.
    pub incarnation: Incarnation,
    /// The checkpoint.
    pub number: CheckpointNumber,
    /// The service of the check.
    pub service: String,
}

impl Begun {
    /// Returns the name of the mark, which `serial` distinguishes from other marks of the checkpoint.
    #[must_use]
    pub fn name(&self, serial: u64) -> String {
        format!("{MARKS}{:020}-{serial:016x}.json", self.number.0)
    }

    /// Stores the mark under its name, unless there is one of that name.
    ///
    /// # Errors
    /// [`StoreError`]; then the check must not run.
    pub fn store(&self, store: &dyn BlobStore, name: &str) -> Result<Put, StoreError> {
        store.put_new(name, &encode(KIND_BEGUN, 1, self))
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is damaged or cannot be read.
    pub fn read(store: &dyn BlobStore, name: &str) -> Result<Self, CheckpointError> {
        read_object(store, name, BEGUN_MAX, KIND_BEGUN, "the mark of a check")
    }
}

/// Returns the names of all marks, those of older checkpoints first.
///
/// # Errors
/// [`StoreError`].
pub fn begun_names(store: &dyn BlobStore) -> Result<Vec<String>, StoreError> {
    Ok(store.list(CHECKS)?.into_iter().filter(|name| name.starts_with(MARKS)).collect())
}
