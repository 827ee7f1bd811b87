//! Copying a checkpoint to another store: the local disk often, object storage less often.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::bundle::{Bundle, BundleRef};
use crate::checkpoint::manifest::{MANIFESTS, Manifest};
use crate::checkpoint::store::{BlobStore, Pace, Put, StoreError};
use stead_core::ids::Incarnation;

/// Bytes that are read and written at once.
const PIECE: u64 = 4 << 20;
/// The object that says whose copies a target holds.
const OWNER: &str = "owner/owner.json";
/// Most bytes of [`OWNER`].
const OWNER_MAX: u64 = 4096;

/// Whose copies a target holds: one life of one cluster. Two of them use the same numbers for different checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster, as in the data directory's facts.
    pub cluster: u128,
    /// Its life.
    pub incarnation: Incarnation,
}

impl Owner {
    fn encode(self) -> Vec<u8> {
        let Self { cluster, incarnation } = self;
        format!(r#"{{"stead":"copies","format":1,"cluster":"{cluster:032x}","incarnation":{incarnation}}}"#)
            .into()
    }

    /// Takes a target for the copies of this cluster and life; again is fine. Before this nothing may be written there
    /// and nothing collected: what is there might be all that another cluster has left.
    ///
    /// # Errors
    /// [`CheckpointError::Target`] if it is another's, or holds checkpoints that are no copies, as a data directory
    /// does; [`CheckpointError::Store`].
    pub fn claim(self, target: &dyn BlobStore) -> Result<(), CheckpointError> {
        let wanted = self.encode();
        let check = |found: Vec<u8>| {
            if found == wanted {
                return Ok(());
            }
            let found = String::from_utf8_lossy(&found);
            Err(CheckpointError::Target {
                reason: format!("it holds those of another cluster or life, {found}"),
            })
        };
        match target.get(OWNER, OWNER_MAX) {
            Err(StoreError::NotFound { .. }) => {}
            found => return check(found?),
        }
        if !target.list(MANIFESTS)?.is_empty() {
            let reason =
                format!("it holds checkpoints already, and no {OWNER} that says whose copies they are");
            return Err(CheckpointError::Target { reason });
        }
        match target.put_new(OWNER, &wanted)? {
            Put::Created => Ok(()),
            Put::Exists => check(target.get(OWNER, OWNER_MAX)?),
        }
    }
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bundles that were written.
    pub bundles: usize,
    /// Bytes that were written.
    pub bytes: u64,
    /// Bundles that were there already.
    pub reused: usize,
}

/// Copies a checkpoint: the bundles that are not there yet, then its manifest. The source must not be collected meanwhile.
///
/// # Errors
/// [`CheckpointError`]: then the checkpoint does not exist at the target, and a repetition goes on where this one ended.
pub fn copy(
    from: &dyn BlobStore,
    to: &dyn BlobStore,
    manifest: &Manifest,
    pace: &Pace,
) -> Result<Copied, CheckpointError> {
    let mut copied = Copied::default();
    for bundle in &manifest.bundles {
        match Bundle::open(to, bundle, manifest.incarnation) {
            Ok(_) => {
                copied.reused += 1;
                continue;
            }
            Err(CheckpointError::Store(error)) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        copy_bundle(from, to, bundle, pace)?;
        // What arrived is checked before a manifest says that it is there.
        Bundle::open(to, bundle, manifest.incarnation)?;
        copied.bundles += 1;
        copied.bytes += bundle.bytes;
    }
    manifest.store(to)?;
    Ok(copied)
}

fn copy_bundle(
    from: &dyn BlobStore,
    to: &dyn BlobStore,
    bundle: &BundleRef,
    pace: &Pace,
) -> Result<(), CheckpointError> {
    let reader = from.open(&bundle.name)?;
    if reader.size() != bundle.bytes {
        let reason = format!("it has {} bytes where the manifest says {}", reader.size(), bundle.bytes);
        return Err(CheckpointError::damaged(&bundle.name, reason));
    }
    let mut writer = to.create(&bundle.name, pace)?;
    let mut buf = vec![0; PIECE.min(bundle.bytes) as usize];
    let mut at = 0;
    while at < bundle.bytes {
        let piece = &mut buf[..PIECE.min(bundle.bytes - at) as usize];
        reader.read_at(piece, at)?;
        writer.write(piece)?;
        at += piece.len() as u64;
    }
    Ok(writer.finish()?)
}
