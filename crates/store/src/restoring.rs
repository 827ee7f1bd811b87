//! Restores a checkpoint into a data directory, as the beginning of a new incarnation: as a whole or not at all.
//!
//! The facts of the directory come first, marked as [`Meta::restoring`], and the mark goes last. So an interrupted restore leaves a
//! directory that every start refuses and a later restore accepts.

use crate::checkpoint::bundle::{Author, BundleNames};
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::restore::{Progress, Restore, RestoreError, Restored, restore};
use crate::checkpoint::store::{BlobStore, DiskStore, StoreError};
use crate::data_dir::{CHECKPOINTS, DataDir, DataDirError, LOCK_FILE, META_FILE, Meta, ServiceMeta};
use crate::disk::{Disk, remove_tree};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use stead_core::ids::{Epoch, Incarnation, Time};
use thiserror::Error;

/// The settings of a restore into a data directory.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// New numbers of shards by service. Services that are not named keep theirs.
    pub shards: BTreeMap<String, u32>,
    /// The current time.
    pub created: Time,
    /// The life of the process in the bundle's name, drawn at random.
    pub writer: u64,
}

/// Reasons for which no checkpoint was restored into a data directory.
#[derive(Debug, Error)]
pub enum RestoreIntoError {
    /// The directory holds data.
    #[error("the directory already holds data of Stead; restore into an empty directory")]
    NotEmpty,
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The remains of an earlier restore cannot be removed.
    #[error("cannot remove what an earlier restore left in the directory: {0}")]
    Remove(#[source] io::Error),
    /// The store in the directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoint cannot be used, or cannot be written.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Restores a checkpoint of `source` into the data directory at the root of `disk`, which must be empty or hold an unfinished
/// restore. `fresh` has the identities of the new cluster; its incarnation and epochs follow those of the checkpoint.
///
/// # Errors
/// [`RestoreIntoError`]. Then the directory is as it was before, or, if that fails too, marked as an unfinished restore. An error
/// of the very last step, the removal of this mark, may also leave a complete restore.
pub fn restore_into(
    disk: Arc<dyn Disk>,
    source: &dyn BlobStore,
    manifest: &Manifest,
    fresh: Meta,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, RestoreIntoError> {
    let epoch_floor = manifest.parts.iter().map(|part| part.epoch).max().unwrap_or(Epoch(0));
    let incarnation = Incarnation(manifest.incarnation.0 + 1);
    let unfinished = Meta { incarnation, epoch_floor, log_created: false, services: Vec::new(), ..fresh };
    let data_dir = DataDir::open_for_restore(Arc::clone(&disk), unfinished)?;
    let mut data_dir = data_dir.ok_or(RestoreIntoError::NotEmpty)?;
    let filled = fill(&data_dir, source, manifest, options, progress);
    let restored = filled.inspect_err(|_| undo(&*disk))?;
    let finished = data_dir.update(|meta| {
        meta.restoring = false;
        meta.services = ServiceMeta::all_of(&restored.topology);
    });
    match finished {
        Ok(()) => Ok(restored),
        Err(error) => {
            // If it is unknown whether the mark is gone, what was restored has to stay.
            if !data_dir.is_fatal() {
                undo(&*disk);
            }
            Err(error.into())
        }
    }
}

/// Restores into the store of a directory that is marked as unfinished.
fn fill(
    data_dir: &DataDir,
    source: &dyn BlobStore,
    manifest: &Manifest,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, RestoreIntoError> {
    let RestoreOptions { shards, created, writer } = options.clone();
    remove_tree(&**data_dir.disk(), CHECKPOINTS).map_err(RestoreIntoError::Remove)?;
    let target = DiskStore::open(Arc::clone(data_dir.disk()), CHECKPOINTS)?;
    let wanted = Restore { incarnation: data_dir.meta().incarnation, shards, created };
    let Meta { cluster, node, .. } = *data_dir.meta();
    let names = BundleNames::new(Author { cluster, node, writer });
    Ok(restore(source, manifest, &target, &names, &wanted, progress)?)
}

/// Removes what a failed restore wrote. What cannot be removed stays marked as unfinished: a later restore takes it.
fn undo(disk: &dyn Disk) {
    let remove = |path: String| match disk.remove(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // The mark goes once all else is durably gone. The lock goes last, while it is held: another process may own the
    // directory from then on.
    let _ = remove_tree(disk, CHECKPOINTS)
        .and_then(|()| remove(format!("{META_FILE}.tmp")))
        .and_then(|()| remove(META_FILE.to_owned()))
        .and_then(|()| remove(LOCK_FILE.to_owned()))
        .and_then(|()| disk.sync_dir(""));
}
