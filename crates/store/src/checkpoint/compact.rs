//! Merges bundles, as [`merging`](stead_core::checkpointing::merging) decides.
//!
//! A merge writes a new bundle, which counts once a manifest refers to it; a crash before leaves an object that
//! [`collect`](crate::checkpoint::collect) deletes.

use crate::checkpoint::bundle::{Block, Bundle, BundleWriter, Origin};
use crate::checkpoint::load::visit_blocks;
use crate::checkpoint::store::BlobStore;
use crate::checkpoint::{Belonging, CheckpointError};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use stead_core::checkpointing::lineage::{Lineage, Merged, MergedSection};
use stead_core::checkpointing::merging::Merge;
use stead_core::ids::ShardId;
use stead_core::records::encode_record;

/// A running merge. It keeps the blocks of a step and the keys of one shard's newer sections in memory. It leaves nothing
/// in the store if it is dropped before [`Merger::finish`].
pub struct Merger {
    bundles: Vec<Bundle>,
    inputs: BTreeSet<String>,
    /// The shards that are not merged yet, the next one last.
    shards: Vec<ShardMerge>,
    sections: BTreeMap<ShardId, MergedSection>,
    out: BundleWriter,
    buf: Vec<u8>,
    piece: Vec<u8>,
}

/// The merge of the sections of one shard, which keeps the newest record of each key. A delete is dropped if no older
/// section can have the key.
struct ShardMerge {
    shard: ShardId,
    /// Positions of the bundles that have a section, the oldest first.
    sources: Vec<usize>,
    /// Whether the shard's oldest section is among them.
    oldest: bool,
    /// Number of sections that are not read to their end. The newest is read first.
    unread: usize,
    /// Number of blocks of the current section that have been read.
    blocks_read: usize,
    seen: HashSet<Box<[u8]>>,
    /// Bytes written so far.
    bytes: u64,
}

impl Merger {
    /// Begins a merge that writes the bundle `output`, a new name.
    ///
    /// # Errors
    /// [`CheckpointError`] if a bundle is damaged or the store fails. The lineage is unchanged then.
    pub fn begin(
        store: &dyn BlobStore,
        output: String,
        origin: Origin,
        lineage: &Lineage,
        merge: &Merge,
    ) -> Result<Self, CheckpointError> {
        let cluster = Some(origin.author.cluster);
        let owner = Belonging { cluster, incarnation: origin.incarnation };
        let open = |wanted| Bundle::open(store, wanted, owner);
        let bundles = merge.inputs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let inputs: BTreeSet<String> = merge.inputs.iter().map(|bundle| bundle.name.clone()).collect();
        let all = lineage.bundles();
        let mut shards = Vec::new();
        for (shard, sections) in lineage.shards() {
            let position = |name: &str| bundles.iter().position(|bundle| bundle.name() == name);
            let names = sections.iter().map(|section| all[section.bundle as usize].name.as_str());
            let sources: Vec<usize> = names.filter_map(position).collect();
            if !sources.is_empty() {
                let oldest = inputs.contains(&all[sections[0].bundle as usize].name);
                let unread = sources.len();
                let seen = HashSet::new();
                shards.push(ShardMerge { shard, sources, oldest, unread, blocks_read: 0, seen, bytes: 0 });
            }
        }
        shards.reverse();
        let out = BundleWriter::create(store, output, origin, merge.level)?;
        let (buf, piece) = (Vec::new(), Vec::new());
        Ok(Self { bundles, inputs, shards, sections: BTreeMap::new(), out, buf, piece })
    }

    /// Writes blocks of about this many bytes from now on, as [`BundleWriter::set_block_bytes`]; a step reads as much.
    pub fn set_block_bytes(&mut self, bytes: usize) {
        self.out.set_block_bytes(bytes);
    }

    /// Merges as much as fits into a block more. Returns true once everything is merged.
    ///
    /// # Errors
    /// As [`Merger::begin`].
    pub fn step(&mut self) -> Result<bool, CheckpointError> {
        let Self { bundles, shards, sections, out, buf, piece, .. } = self;
        let Some(merge) = shards.last_mut() else { return Ok(true) };
        let ShardMerge { shard, sources, oldest, unread, blocks_read, seen, bytes } = merge;
        let shard = *shard;
        if *unread == sources.len() && *blocks_read == 0 && *oldest {
            out.base(shard);
        }
        let at = *unread - 1;
        let bundle = &bundles[sources[at]];
        let Some(section) = bundle.section(shard) else {
            let reason = format!("it lacks the section of shard {shard} that the manifest names");
            return Err(CheckpointError::damaged(bundle.name(), reason));
        };
        let left = &section.blocks[*blocks_read..];
        let mut len = 0;
        let fit = left.iter().take_while(|block| {
            len += u64::from(block.len);
            len <= out.block_bytes() as u64
        });
        let count = fit.count().max(1).min(left.len());
        let blocks: Vec<(ShardId, Block)> = left[..count].iter().map(|block| (shard, *block)).collect();
        visit_blocks(bundle, &blocks, buf, &mut |_, key, value| {
            // A section has each key once, so the keys of the section that is read last need not be kept.
            let new = if at == 0 { !seen.contains(key) } else { seen.insert(key.into()) };
            if new && !(*oldest && value.is_none()) {
                encode_record(key, value, piece);
                if piece.len() >= out.block_bytes() {
                    *bytes += piece.len() as u64;
                    out.records(shard, piece)?;
                    piece.clear();
                }
            }
            Ok(())
        })?;
        *blocks_read += count;
        if *blocks_read == section.blocks.len() {
            (*unread, *blocks_read) = (at, 0);
        }
        if *unread == 0 {
            *bytes += piece.len() as u64;
            out.records(shard, piece)?;
            piece.clear();
            let merged = MergedSection { sources: sources.len(), oldest: *oldest, bytes: *bytes };
            sections.insert(shard, merged);
            shards.pop();
        }
        Ok(shards.is_empty())
    }

    /// Returns the number of bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.out.bytes()
    }

    /// Completes the bundle, which is durable when this returns.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    ///
    /// # Panics
    /// If the merge is not complete.
    pub fn finish(self) -> Result<Merged, CheckpointError> {
        assert!(self.shards.is_empty(), "a merge is finished before its end");
        let (bundle, _) = self.out.finish()?;
        Ok(Merged { bundle, inputs: self.inputs, sections: self.sections })
    }
}
