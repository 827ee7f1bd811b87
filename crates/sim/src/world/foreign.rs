//! Files of the incarnation before a restore, beside those of the new one: a start refuses them.

use super::node::open;
use super::restoring::broken;
use super::{Outcomes, World};
use crate::marks::Mark;
use crate::violation::Violation;
use std::sync::Arc;
use stead_core::topology::Topology;
use stead_node::OpenError;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::manifest::{Manifest, manifest_name};
use stead_store::checkpoint::store::{BlobStore, DiskStore, StoreError};
use stead_store::data_dir::CHECKPOINTS;
use stead_store::recovery::RecoveryError;
use stead_store::sim_disk::SimDisk;

/// Copies an object from one store into another, in the place of one of its name.
fn carry(from: &DiskStore, to: &DiskStore, name: &str) -> Result<(), StoreError> {
    let reader = from.open(name)?;
    let mut bytes = vec![0; reader.size() as usize];
    reader.read_at(&mut bytes, 0)?;
    let _ = to.delete(name);
    to.put_new(name, &bytes).map(drop)
}

impl World {
    /// Invariant 15 for files: on a copy of a restored data directory, a start refuses a checkpoint of the old incarnation in the
    /// place of the restored one.
    pub(super) fn check_foreign(
        &mut self,
        store: &DiskStore,
        old: &Manifest,
        target: &SimDisk,
        topology: &Topology,
    ) -> Outcomes {
        let disk = target.fork(self.odd.u64(..));
        let beside = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
        place(store, old, &beside).map_err(|error| broken(&error))?;
        let opened = open(Arc::new(disk), topology, &self.profile);
        let (number, incarnation) = (old.number, self.topology.incarnation);
        let what = match opened {
            Err(OpenError::Recovery(RecoveryError::Checkpoint(CheckpointError::Incarnation {
                name,
                found,
                expected,
            }))) if (found, expected) == (incarnation, topology.incarnation)
                && name == manifest_name(number) =>
            {
                self.marks.hit(Mark::OldFilesRefused);
                return Ok(());
            }
            Err(error) => format!("does not refuse it as such, but: {error}"),
            Ok(_) => "reads it".to_owned(),
        };
        let new = topology.incarnation;
        let what = format!(
            "checkpoint {number} of incarnation {incarnation} is there, and a start of incarnation {new} {what}"
        );
        Err(Violation::new(15, what).into())
    }
}

/// Puts a checkpoint into another store.
fn place(from: &DiskStore, manifest: &Manifest, to: &DiskStore) -> Result<(), CheckpointError> {
    for bundle in &manifest.bundles {
        carry(from, to, &bundle.name)?;
    }
    Ok(carry(from, to, &manifest_name(manifest.number))?)
}
