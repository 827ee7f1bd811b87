//! Copies a checkpoint to another store: to a local disk often, to object storage less often.

use crate::checkpoint::bundle::{Bundle, StoredBlock};
use crate::checkpoint::checks::copy_checks;
use crate::checkpoint::manifest::{MANIFESTS, Manifest};
use crate::checkpoint::store::{BlobStore, BlobWriter, Put, StoreError};
use crate::checkpoint::{Belonging, CheckpointError};
use serde::Deserialize;
use std::iter::Peekable;
use std::vec::IntoIter;
use stead_core::ids::{ClusterId, Incarnation};

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

/// The fields of [`OWNER`] that identify the owner's cluster.
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
    /// Returns the cluster and incarnation that an object of this owner must have.
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

/// A checkpoint that is being copied: the missing bundles, the results of its checks, then its manifest. The source must
/// not be collected meanwhile. If it is dropped before its end, the checkpoint does not exist at the target, and another
/// run continues from there.
///
/// Every block that is sent is checked on the way, so damage is never copied. Of an existing bundle only the header and
/// the index are checked, not the blocks: these were checked when it was sent. One whose index is damaged is sent
/// again.
pub struct CopyRun {
    manifest: Manifest,
    /// Number of the manifest's bundles that are at the target.
    ready: usize,
    sending: Option<Sending>,
    has_checks: bool,
    copied: Copied,
}

/// A bundle that is being sent.
struct Sending {
    source: Bundle,
    /// The blocks that were not sent.
    blocks: Peekable<IntoIter<StoredBlock>>,
    writer: Box<dyn BlobWriter>,
    /// Bytes sent.
    at: u64,
}

impl CopyRun {
    /// Bytes of a bundle that a step sends, unless one block is longer: 4 MiB.
    pub const PIECE_BYTES: u64 = 4 << 20;

    /// Begins to copy the checkpoint of a manifest.
    #[must_use]
    pub fn new(manifest: Manifest) -> Self {
        Self { manifest, ready: 0, sending: None, has_checks: false, copied: Copied::default() }
    }

    /// Opens the next bundle, sends about `piece_bytes` of it, completes it, or stores the checks' results or the manifest.
    /// Returns true once the checkpoint exists at the target: then no step follows.
    ///
    /// # Errors
    /// [`CheckpointError`]: no step may follow.
    pub fn step(
        &mut self,
        from: &dyn BlobStore,
        to: &dyn BlobStore,
        piece_bytes: u64,
    ) -> Result<bool, CheckpointError> {
        let owner = self.manifest.belonging();
        let Some(wanted) = self.manifest.bundles.get(self.ready) else {
            if self.has_checks {
                self.manifest.store(to)?;
                return Ok(true);
            }
            copy_checks(from, to, self.manifest.number)?;
            self.has_checks = true;
            return Ok(false);
        };
        match self.sending.take() {
            Some(mut sending) if sending.at < wanted.bytes => {
                self.copied.bytes += sending.piece(wanted.bytes, piece_bytes)?;
                self.sending = Some(sending);
            }
            Some(sending) => {
                sending.writer.finish()?;
                // The copy is checked before a manifest refers to it.
                Bundle::open(to, wanted, owner)?;
                self.copied.bundles += 1;
                self.ready += 1;
            }
            None => {
                let damaged = match Bundle::open(to, wanted, owner) {
                    Ok(_) => {
                        self.copied.reused += 1;
                        self.ready += 1;
                        return Ok(false);
                    }
                    Err(CheckpointError::Store(error)) if error.is_not_found() => false,
                    Err(CheckpointError::Damaged { .. }) => true,
                    Err(error) => return Err(error),
                };
                let source = Bundle::open(from, wanted, owner)?;
                if damaged {
                    // It is unreadable in this state, and its name has no other use.
                    to.delete(&wanted.name)?;
                }
                let writer = to.create_sized(source.name(), wanted.bytes)?;
                let blocks = source.blocks().into_iter().peekable();
                self.sending = Some(Sending { source, blocks, writer, at: 0 });
            }
        }
        Ok(false)
    }

    /// The result so far.
    #[must_use]
    pub fn copied(&self) -> Copied {
        self.copied
    }
}

impl Sending {
    /// Sends a piece of a bundle of this length. It ends with a block; the check of the index covers the bytes after the last
    /// block. Returns the bytes of the piece.
    fn piece(&mut self, bytes: u64, piece_bytes: u64) -> Result<u64, CheckpointError> {
        let (at, blocks) = (self.at, &mut self.blocks);
        let mut whole = Vec::new();
        let mut end = at.saturating_add(piece_bytes.max(1)).min(bytes);
        if let Some(first) = blocks.peek() {
            end = first.end();
            while let Some(block) =
                blocks.next_if(|block| block.end() <= end.max(at.saturating_add(piece_bytes)))
            {
                end = block.end();
                whole.push(block);
            }
        }
        let mut buf = vec![0; (end - at) as usize];
        self.source.read(&mut buf, at)?;
        for block in &whole {
            self.source.check(block, &buf[(block.start() - at) as usize..(block.end() - at) as usize])?;
        }
        self.writer.write(&buf)?;
        self.at = end;
        Ok(end - at)
    }
}

/// Copies a checkpoint at once, as [`CopyRun`] does step by step.
///
/// # Errors
/// [`CheckpointError`]: then the checkpoint does not exist at the target, and a repetition continues where this one
/// ended.
pub fn copy(
    from: &dyn BlobStore,
    to: &dyn BlobStore,
    manifest: &Manifest,
) -> Result<Copied, CheckpointError> {
    let mut run = CopyRun::new(manifest.clone());
    while !run.step(from, to, CopyRun::PIECE_BYTES)? {}
    Ok(run.copied())
}
