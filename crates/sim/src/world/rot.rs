//! Bits that flip in stored checkpoints while the node runs: what reads them refuses, and nothing that is written from then on holds
//! the damage.

use super::World;
use crate::marks::Mark;
use crate::refusals::COPIES;
use crate::violation::Violation;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use stead_core::ids::{CheckpointNumber, ShardId};
use stead_node::Sizes;
use stead_store::checkpoint::bundle::{Block, Bundle};
use stead_store::checkpoint::manifest::{Manifest, newest};
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::CHECKPOINTS;

/// Bytes of the head of a block, which its content follows.
const BLOCK_HEAD: u64 = 16;
/// Bytes whose bits, flipped together anywhere in a message, leave its CRC-32 as it was: the generator polynomial, its bits in the
/// order in which the message's are.
pub(super) const UNSEEN: [u8; 5] = [0x41, 0x06, 0x71, 0xdb, 0x01];

/// The place of a flipped bit.
pub(crate) struct Flip {
    pub(super) path: String,
    pub(super) offset: u64,
}

impl World {
    /// Flips a bit of a checkpoint while the node runs.
    pub(super) fn flip_checkpoint(&mut self) {
        let is_stored = |path: &String| path.starts_with(CHECKPOINTS) && !path.starts_with(COPIES);
        let mut files = self.disk.files();
        files.retain(|path| is_stored(path) && (path.ends_with(".bundle") || path.contains("/manifests/")));
        let mut rng = std::mem::take(&mut self.odd);
        self.flip_in(files, &mut rng);
        self.odd = rng;
        self.marks.hit(Mark::CheckpointRots);
    }

    /// Whether the flipped bit is in a checkpoint.
    pub(super) fn is_rotten(&self) -> bool {
        let in_checkpoints =
            |flip: &Flip| flip.path.starts_with(CHECKPOINTS) && !flip.path.starts_with(COPIES);
        self.disk.is_flipped() && self.flipped.as_ref().is_some_and(in_checkpoints)
    }

    /// Whether the flipped bit is in what a checkpoint consists of, so that a verification must find it.
    pub(super) fn is_rotten_in(&mut self, manifest: &Manifest) -> bool {
        if !self.is_rotten() {
            return false;
        }
        let Some(Flip { path, offset }) = &self.flipped else { return false };
        let (path, offset) = (path.clone(), *offset);
        self.quietly(|world| world.blocks_of(manifest)).iter().any(|(name, _, block)| {
            let end = block.offset + BLOCK_HEAD + u64::from(block.len);
            path == format!("{CHECKPOINTS}/{name}") && (block.offset + BLOCK_HEAD..end).contains(&offset)
        })
    }

    /// Notes whether a piece was cut into blocks: there are several of a shard, of which each piece has all records.
    pub(super) fn note_blocks(&mut self, manifest: &Manifest) {
        let (sizes, standard) = (self.profile.sizes, Sizes::default());
        let is_cut = sizes.block_bytes < standard.block_bytes && sizes.piece_bytes == standard.piece_bytes;
        if !is_cut || self.disk.is_flipped() {
            return;
        }
        let mut seen = BTreeSet::new();
        let blocks = self.quietly(|world| world.blocks_of(manifest));
        if blocks.into_iter().any(|(name, shard, _)| !seen.insert((name, shard))) {
            self.marks.hit(Mark::SeveralBlocks);
        }
    }

    /// Returns the blocks of records of a checkpoint, each with the name of its bundle.
    fn blocks_of(&self, manifest: &Manifest) -> Vec<(String, ShardId, Block)> {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let mut blocks = Vec::new();
        for (at, wanted) in manifest.bundles.iter().enumerate() {
            let Ok(bundle) = Bundle::open(&store, wanted, manifest.belonging()) else { continue };
            for part in &manifest.parts {
                let is_used = part.sections.iter().any(|section| section.bundle as usize == at);
                let section = bundle.section(part.shard).filter(|_| is_used);
                let records = section.iter().flat_map(|section| &section.blocks);
                blocks.extend(records.map(|block| (wanted.name.clone(), part.shard, *block)));
            }
        }
        blocks
    }

    /// Plants the bug: flips bits of the newest checkpoint that the check of their block does not see.
    pub(super) fn flip_unseen(&mut self) {
        let store = DiskStore::attach(Arc::new(self.disk.clone()), CHECKPOINTS);
        let blocks = self.quietly(|world| {
            let manifest = newest(&store).ok().and_then(|newest| newest.manifest);
            manifest.map(|manifest| world.blocks_of(&manifest)).unwrap_or_default()
        });
        let long: Vec<_> =
            blocks.into_iter().filter(|(.., block)| block.len as usize > UNSEEN.len()).collect();
        let rng: &mut Rng = &mut self.odd;
        if long.is_empty() {
            return;
        }
        let (name, _, block) = &long[rng.usize(..long.len())];
        let path = format!("{CHECKPOINTS}/{name}");
        let offset = block.offset + BLOCK_HEAD + rng.u64(..u64::from(block.len) - UNSEEN.len() as u64);
        for (at, byte) in UNSEEN.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                self.disk.flip_bit(&path, offset + at as u64, bit).expect("the block is there");
            }
        }
        self.flipped = Some(Flip { path, offset });
    }
}

/// The violation of a verification that has read a flipped bit and says nothing.
pub(super) fn unseen_rot(number: CheckpointNumber) -> Violation {
    Violation::new(16, format!("a bit of checkpoint {number} is flipped, and a verification finds nothing"))
}
