//! The choice of bundles to merge, so that a part has few sections and few replaced records.
//!
//! Tiered: neighbouring bundles of one level become one of the next, so that each byte is rewritten once per level. Once a
//! shard's newer sections hold as many bytes as its oldest one, its next part should hold all its records, which are in
//! memory: [`renewals`] names a few such shards for each checkpoint, so that no checkpoint writes the whole state. If
//! that is not done, or not enough, everything is merged in the end: a recovery reads at most about three times the state.

use crate::checkpointing::bundle::BundleRef;
use crate::checkpointing::lineage::Lineage;
use crate::ids::ShardId;
use std::ops::Range;

/// Policy of merging bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Number of neighbouring bundles of one level that are merged: 2 to 256. Default 16.
    pub fan_in: usize,
    /// Everything is merged once the newer sections hold this share of the bytes of the oldest ones, in percent: 1 and
    /// more. Default 200.
    pub growth: u64,
    /// A shard is due for renewal once its newer sections hold this share of the bytes of its oldest one, in percent: 1
    /// and more. Default 100.
    pub renewal: u64,
    /// Maximum number of bytes that renewals may add to one checkpoint, as a share of all oldest sections, in percent;
    /// one shard is renewed however large it is. Default 12.
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
    /// Neighbouring bundles in the lineage, the oldest first.
    pub inputs: Vec<BundleRef>,
    /// The level of the output bundle.
    pub level: u32,
    /// Bytes of the input sections.
    pub bytes: u64,
}

/// Returns the next merge, if one is worth its cost. Pure.
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
    let merge = |inputs: Range<usize>| Merge {
        level: bundles[inputs.clone()].iter().map(|bundle| bundle.level).max().unwrap_or(0) + 1,
        bytes: bytes[inputs.clone()].iter().sum(),
        inputs: bundles[inputs].to_vec(),
    };
    if newer >= policy.growth_bytes_min
        && u128::from(newer) * 100 >= u128::from(oldest) * u128::from(policy.growth)
    {
        return Some(merge(0..bundles.len()));
    }
    // The newest groups are the smallest, and their outputs may complete the group before them.
    let mut end = bundles.len();
    while end > 0 {
        let level = bundles[end - 1].level;
        let mut start =
            bundles[..end].iter().rposition(|bundle| bundle.level != level).map_or(0, |at| at + 1);
        let next_end = start;
        // A bundle that outweighs all newer ones of its group would be rewritten for little gain.
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

/// Returns the shards whose next part should hold all their records, to replace their stored sections. Pure.
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
            // Records that change between two checkpoints would be written anyway.
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
