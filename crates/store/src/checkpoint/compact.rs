//! Merging bundles, so that a part has few sections and little that was replaced.
//!
//! Tiered: a run of bundles of one level becomes one of the next, so that each byte is rewritten once per level. Once
//! a shard's newer sections hold as many bytes as its oldest one, its next part is to hold all its records, which are at
//! hand in memory: [`renewals`] names a few such shards for each checkpoint, so that no checkpoint writes all of the
//! state. Where that is not done, or not enough, everything is merged at last: what is read at a recovery stays about
//! three times the state at most. A merge writes a new bundle, which counts once a manifest refers to it; a crash before
//! leaves an object that [`collect`](crate::checkpoint::collect) deletes.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::bundle::{BLOCK_BYTES, Block, Bundle, BundleNames, BundleRef, BundleWriter};
use crate::checkpoint::lineage::{Lineage, MergedSection};
use crate::checkpoint::load::visit_blocks;
use crate::checkpoint::store::{BlobStore, Pace};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use stead_core::ids::{Colour, Incarnation, ShardId};
use stead_core::records::encode_record;

/// When bundles are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// As many neighbouring bundles of one level are merged: 2 to 256. Default 16.
    pub fan_in: usize,
    /// Everything is merged once the newer sections hold this share of the bytes of the oldest ones, in percent: 1 and
    /// more. Default 200.
    pub growth: u64,
    /// A shard is due for renewal once its newer sections hold this share of the bytes of its oldest one, in percent: 1
    /// and more. Default 100.
    pub renewal: u64,
    /// Most bytes that renewals may add to one checkpoint, as a share of all oldest sections, in percent; one shard is
    /// renewed however large it is. Default 12.
    pub renewal_budget: u64,
    /// Newer sections of fewer bytes than this are not worth a merge of everything. Default 4 MiB.
    pub growth_bytes_min: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { fan_in: 16, growth: 200, renewal: 100, renewal_budget: 12, growth_bytes_min: 4 << 20 }
    }
}

/// A merge that is worth its cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Neighbours in the lineage, the oldest first.
    pub run: Vec<BundleRef>,
    /// The level of the bundle that comes out.
    pub level: u32,
    /// Bytes of the sections that go in.
    pub bytes: u64,
}

/// Decides what to merge next, if anything. Pure.
#[must_use]
pub fn plan(lineage: &Lineage, policy: &Policy) -> Option<Merge> {
    let bundles = lineage.bundles();
    let mut bytes = vec![0; bundles.len()];
    let (mut oldest, mut newer) = (0, 0);
    for (_, sections) in lineage.shards() {
        for (at, section) in sections.iter().enumerate() {
            bytes[section.bundle as usize] += section.bytes;
            *(if at == 0 { &mut oldest } else { &mut newer }) += section.bytes;
        }
    }
    let merge = |run: Range<usize>| Merge {
        level: bundles[run.clone()].iter().map(|bundle| bundle.level).max().unwrap_or(0) + 1,
        bytes: bytes[run.clone()].iter().sum(),
        run: bundles[run].to_vec(),
    };
    if newer >= policy.growth_bytes_min
        && u128::from(newer) * 100 >= u128::from(oldest) * u128::from(policy.growth)
    {
        return Some(merge(0..bundles.len()));
    }
    // The newest runs are the smallest, and what they become may complete the run before them.
    let mut end = bundles.len();
    while end > 0 {
        let level = bundles[end - 1].level;
        let mut start =
            bundles[..end].iter().rposition(|bundle| bundle.level != level).map_or(0, |at| at + 1);
        let next_end = start;
        // A bundle that outweighs all newer ones of its run would be rewritten for little.
        while end - start >= policy.fan_in && bytes[start] > bytes[start + 1..end].iter().sum::<u64>() {
            start += 1;
        }
        if end - start >= policy.fan_in.max(2) {
            return Some(merge(start..end));
        }
        end = next_end;
    }
    None
}

/// The shards whose next part should hold all their records, so that what they have stored is replaced. Pure.
#[must_use]
pub fn renewals(lineage: &Lineage, policy: &Policy) -> Vec<ShardId> {
    let bytes_min = policy.growth_bytes_min / lineage.shards().count().max(1) as u64;
    let mut all = 0;
    let mut due = Vec::new();
    for (shard, sections) in lineage.shards() {
        let oldest = sections[0].bytes;
        let newer: u64 = sections[1..].iter().map(|section| section.bytes).sum();
        all += oldest;
        if newer >= bytes_min.max(1)
            && u128::from(newer) * 100 >= u128::from(oldest) * u128::from(policy.renewal)
        {
            // What changes between two checkpoints would be written anyway.
            let last = sections[sections.len() - 1].bytes;
            due.push((
                u128::from(newer) * 1000 / u128::from(oldest.max(1)),
                shard,
                oldest.saturating_sub(last),
            ));
        }
    }
    due.sort_unstable_by(|a, b| b.cmp(a));
    let budget = u128::from(all) * u128::from(policy.renewal_budget) / 100;
    let mut added = 0;
    let within = due.into_iter().take_while(|(.., extra)| {
        let first = added == 0;
        added += u128::from(*extra);
        first || added <= budget
    });
    within.map(|(_, shard, _)| shard).collect()
}

/// A merge that was carried out; it counts once it is applied to a lineage and a manifest is written from that.
#[derive(Clone, Debug)]
pub struct Merged {
    bundle: BundleRef,
    run: BTreeSet<String>,
    sections: BTreeMap<ShardId, MergedSection>,
}

impl Merged {
    /// The new bundle.
    #[must_use]
    pub fn bundle(&self) -> &BundleRef {
        &self.bundle
    }
}

impl Lineage {
    /// Puts a merged bundle in the place of those that it was merged from. False, and nothing happens, if the lineage
    /// is of another history.
    pub fn apply(&mut self, merged: &Merged) -> bool {
        self.replace(&merged.sections, &merged.run, &merged.bundle)
    }
}

/// Carries out a merge; `None` if `stop` was set meanwhile. Memory: one block, and the keys of one shard's newer sections.
///
/// # Errors
/// [`CheckpointError`] if a bundle is damaged or the store fails: the lineage goes on as it is.
pub fn run(
    store: &dyn BlobStore,
    names: &BundleNames,
    (incarnation, number): (Incarnation, Colour),
    lineage: &Lineage,
    merge: &Merge,
    pace: &Pace,
    stop: &AtomicBool,
) -> Result<Option<Merged>, CheckpointError> {
    let open = |wanted| Bundle::open(store, wanted, incarnation);
    let bundles = merge.run.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let run: BTreeSet<String> = merge.run.iter().map(|bundle| bundle.name.clone()).collect();
    let name = names.draw(number);
    let mut out =
        BundleWriter::create(store, name, (incarnation, number, names.writer()), merge.level, pace)?;
    let mut merged = BTreeMap::new();
    for (shard, sections) in lineage.shards() {
        let all = lineage.bundles();
        let sources: Vec<&Bundle> = sections
            .iter()
            .filter_map(|section| {
                bundles.iter().find(|bundle| bundle.name() == all[section.bundle as usize].name)
            })
            .collect();
        if sources.is_empty() {
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let oldest = run.contains(&all[sections[0].bundle as usize].name);
        let bytes = merge_shard(shard, &sources, oldest, &mut out)?;
        merged.insert(shard, MergedSection { sources: sources.len(), oldest, bytes });
    }
    let (bundle, _) = out.finish()?;
    Ok(Some(Merged { bundle, run, sections: merged }))
}

/// Writes the newest record of each key. A delete is dropped when nothing older can be under it.
fn merge_shard(
    shard: ShardId,
    sources: &[&Bundle],
    oldest: bool,
    out: &mut BundleWriter,
) -> Result<u64, CheckpointError> {
    if oldest {
        out.base(shard);
    }
    let mut seen: HashSet<Box<[u8]>> = HashSet::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    let mut buf = Vec::new();
    for (at, bundle) in sources.iter().enumerate().rev() {
        let blocks: Vec<(ShardId, Block)> = match bundle.section(shard) {
            Some(section) => section.blocks.iter().map(|block| (shard, *block)).collect(),
            None => {
                let reason = format!("it lacks the section of shard {shard} that the manifest names");
                return Err(CheckpointError::damaged(bundle.name(), reason));
            }
        };
        visit_blocks(bundle, &blocks, &mut buf, &mut |_, key, value| {
            // A section has each key once, so that the last one needs not be remembered.
            let new = if at == 0 { !seen.contains(key) } else { seen.insert(key.into()) };
            if new && !(oldest && value.is_none()) {
                encode_record(key, value, &mut piece);
                if piece.len() >= BLOCK_BYTES {
                    bytes += piece.len() as u64;
                    out.records(shard, &piece)?;
                    piece.clear();
                }
            }
            Ok(())
        })?;
    }
    bytes += piece.len() as u64;
    out.records(shard, &piece)?;
    Ok(bytes)
}
