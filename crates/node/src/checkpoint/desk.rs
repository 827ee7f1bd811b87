//! The desk between the checkpoint part and the merge part.

use crate::bell::Bell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_core::checkpointing::lineage::Lineage;
use stead_core::checkpointing::merging::Merge;
use stead_core::ids::CheckpointNumber;

/// A merge to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeJob {
    /// The name of the bundle to write.
    pub output: String,
    /// The checkpoint in the name of its bundle.
    pub number: CheckpointNumber,
    /// The lineage of the bundles.
    pub lineage: Lineage,
    /// The bundles to merge.
    pub merge: Merge,
}

/// The queue of the merge part's job; there is one at a time.
#[derive(Default)]
pub struct MergeDesk {
    held: Mutex<Desk>,
    /// Rung when there is a job.
    pub bell: Bell,
}

#[derive(Default)]
struct Desk {
    job: Option<MergeJob>,
    stopped: bool,
}

impl MergeDesk {
    fn held(&self) -> MutexGuard<'_, Desk> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests a merge.
    pub fn put(&self, job: MergeJob) {
        self.held().job = Some(job);
        self.bell.ring();
    }

    /// Takes the requested merge, if there is one.
    pub(super) fn take(&self) -> Option<MergeJob> {
        self.held().job.take()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.held().stopped
    }

    pub(crate) fn stop(&self) {
        self.held().stopped = true;
        self.bell.ring();
    }
}
