//! Copies a checkpoint to another store: to a local disk often, to object storage less often.

use crate::checkpoint::bundle::Bundle;
use crate::checkpoint::checks::copy_checks;
use crate::checkpoint::manifest::{MANIFESTS, Manifest};
use crate::checkpoint::store::{BlobStore, Put, StoreError};
use crate::checkpoint::{Belonging, CheckpointError};
use serde::Deserialize;
use stead_core::ids::{ClusterId, Incarnation};

/// Bytes that are read and written at once.
const PIECE: u64 = 4 << 20;
/// The object that names the owner of a target's copies.
const OWNER: &str = "owner/owner.json";
/// Maximum number of bytes of [`OWNER`].
const OWNER_MAX: u64 = 4096;
/// The version of its format.
const OWNER_VERSION: u32 = 1;

/// The fields that every version of [`OWNER`] has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

/// The fields of [`OWNER`] that tell whose it is.
#[derive(Deserialize)]
struct OwnerFile {
    cluster: ClusterId,
}

/// The owner of a target's copies: one incarnation of one cluster. Two of them use the same numbers for different
/// checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster, as in the data directory's metadata.
    pub cluster: ClusterId,
    /// Its incarnation.
    pub incarnation: Incarnation,
}

impl Owner {
    /// What an object of this owner belongs to.
    #[must_use]
    pub fn belonging(self) -> Belonging {
        Belonging { cluster: Some(self.cluster), incarnation: self.incarnation }
    }

    fn encode(self) -> Vec<u8> {
        let Self { cluster, incarnation } = self;
        format!(
            r#"{{"stead":"copies","format":{OWNER_VERSION},"cluster":"{cluster}","incarnation":{incarnation}}}"#
        )
        .into()
    }

    /// Claims a target for the copies of this cluster and incarnation; repeated claims succeed. Before this nothing may
    /// be written or collected there: the objects might be the last copies of another cluster.
    ///
    /// # Errors
    /// [`CheckpointError::Target`] if it belongs to another, or has checkpoints that are not copies, like a data
    /// directory; [`CheckpointError::Version`]; [`CheckpointError::Store`].
    pub fn claim(self, target: &dyn BlobStore) -> Result<(), CheckpointError> {
        let wanted = self.encode();
        let check = |found: Vec<u8>| {
            if found == wanted {
                return Ok(());
            }
            check_version(&found)?;
            let found = String::from_utf8_lossy(&found);
            Err(CheckpointError::Target {
                reason: format!("it has the copies of another cluster or incarnation, {found}"),
            })
        };
        match target.get(OWNER, OWNER_MAX) {
            Err(StoreError::NotFound { .. }) => {}
            found => return check(found?),
        }
        if !target.list(MANIFESTS)?.is_empty() {
            let reason = format!("it already has checkpoints, but no {OWNER} that names their owner");
            return Err(CheckpointError::Target { reason });
        }
        match target.put_new(OWNER, &wanted)? {
            Put::Created => Ok(()),
            Put::Exists => check(target.get(OWNER, OWNER_MAX)?),
        }
    }
}

/// Checks the version of [`OWNER`], if its bytes name one.
fn check_version(bytes: &[u8]) -> Result<(), CheckpointError> {
    match serde_json::from_slice(bytes) {
        Ok(AnyFormat { format }) if format != u64::from(OWNER_VERSION) => {
            Err(CheckpointError::Version { name: OWNER.to_owned(), found: format, known: OWNER_VERSION })
        }
        _ => Ok(()),
    }
}

/// Returns the cluster whose copies a store has; `None` if it names none. The copies are sound whether or not this
/// fails.
///
/// # Errors
/// [`CheckpointError::Version`]; [`CheckpointError::Damaged`]; [`CheckpointError::Store`].
pub fn cluster_of_copies(store: &dyn BlobStore) -> Result<Option<ClusterId>, CheckpointError> {
    let bytes = match store.get(OWNER, OWNER_MAX) {
        Err(error) if error.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    check_version(&bytes)?;
    match serde_json::from_slice(&bytes) {
        Ok(OwnerFile { cluster }) => Ok(Some(cluster)),
        Err(error) => Err(CheckpointError::damaged(OWNER, error.to_string())),
    }
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bundles that were written.
    pub bundles: usize,
    /// Bytes that were written.
    pub bytes: u64,
    /// Bundles that existed already.
    pub reused: usize,
}

/// Copies a checkpoint: the missing bundles, the results of its checks, then its manifest. The source must not be
/// collected meanwhile. `paced` is called with the bytes of each piece before it is sent, and may wait.
///
/// Every block that is sent is checked on the way, so damage is never copied. Of an existing bundle only the header and
/// the index are checked, not the blocks: these were checked when it was sent. One whose index is damaged is sent
/// again.
///
/// # Errors
/// [`CheckpointError`]: then the checkpoint does not exist at the target, and a repetition continues where this one
/// ended.
pub fn copy(
    from: &dyn BlobStore,
    to: &dyn BlobStore,
    manifest: &Manifest,
    paced: &mut dyn FnMut(u64),
) -> Result<Copied, CheckpointError> {
    let mut copied = Copied::default();
    for wanted in &manifest.bundles {
        let damaged = match Bundle::open(to, wanted, manifest.belonging()) {
            Ok(_) => {
                copied.reused += 1;
                continue;
            }
            Err(CheckpointError::Store(error)) if error.is_not_found() => false,
            Err(CheckpointError::Damaged { .. }) => true,
            Err(error) => return Err(error),
        };
        let source = Bundle::open(from, wanted, manifest.belonging())?;
        if damaged {
            // It is unreadable in this state, and its name has no other use.
            to.delete(&wanted.name)?;
        }
        copy_bundle(&source, wanted.bytes, to, paced)?;
        // The copy is checked before a manifest refers to it.
        Bundle::open(to, wanted, manifest.belonging())?;
        copied.bundles += 1;
        copied.bytes += wanted.bytes;
    }
    copy_checks(from, to, manifest.number)?;
    manifest.store(to)?;
    Ok(copied)
}

/// Sends a bundle in pieces that end with a block; the check of the index covers the bytes after the last block.
fn copy_bundle(
    source: &Bundle,
    bytes: u64,
    to: &dyn BlobStore,
    paced: &mut dyn FnMut(u64),
) -> Result<(), CheckpointError> {
    let blocks = source.blocks();
    let mut blocks = blocks.iter().peekable();
    let mut writer = to.create_sized(source.name(), bytes)?;
    let mut buf = Vec::new();
    let mut at = 0;
    while at < bytes {
        let mut whole = Vec::new();
        let mut end = (at + PIECE).min(bytes);
        if let Some(first) = blocks.peek() {
            end = first.end();
            while let Some(block) = blocks.next_if(|block| block.end() <= end.max(at + PIECE)) {
                end = block.end();
                whole.push(block);
            }
        }
        buf.resize((end - at) as usize, 0);
        source.read(&mut buf, at)?;
        for block in whole {
            source.check(block, &buf[(block.start() - at) as usize..(block.end() - at) as usize])?;
        }
        paced(buf.len() as u64);
        writer.write(&buf)?;
        at = end;
    }
    Ok(writer.finish()?)
}
