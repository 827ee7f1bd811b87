//! The base of the next checkpoint: the sections with each shard's records as of its last snapshot.

use crate::checkpointing::bundle::{BundleRef, SectionRef};
use crate::ids::ShardId;
use std::collections::{BTreeMap, BTreeSet};

/// Sections by shard, and their bundles: those of the complete checkpoint that was written or recovered last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The oldest first; each is used by at least one shard.
    bundles: Vec<BundleRef>,
    /// By shard, positions in `bundles` and bytes, ascending.
    sections: BTreeMap<ShardId, Vec<SectionRef>>,
}

impl Lineage {
    /// Creates an empty lineage: the first part of each shard holds all its records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the lineage of a complete checkpoint: its sections by shard, each in one of the bundles.
    #[must_use]
    pub fn of(
        bundles: Vec<BundleRef>,
        sections: impl IntoIterator<Item = (ShardId, Vec<SectionRef>)>,
    ) -> Self {
        let mut lineage = Self { bundles, sections: sections.into_iter().collect() };
        lineage.prune();
        lineage
    }

    /// Returns the bundles, the oldest first.
    #[must_use]
    pub fn bundles(&self) -> &[BundleRef] {
        &self.bundles
    }

    /// Returns the sections of a shard, the oldest first.
    #[must_use]
    pub fn sections(&self, shard: ShardId) -> &[SectionRef] {
        self.sections.get(&shard).map_or(&[], Vec::as_slice)
    }

    /// Returns all shards that have sections.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &[SectionRef])> {
        self.sections.iter().map(|(shard, sections)| (*shard, sections.as_slice()))
    }

    /// Adds the sections of a checkpoint's own bundle, by shard: the bytes of its records, and whether they are all
    /// records of the shard.
    pub fn append(&mut self, bundle: &BundleRef, added: impl IntoIterator<Item = (ShardId, AddedSection)>) {
        let position = self.bundles.len() as u32;
        self.bundles.push(bundle.clone());
        for (shard, AddedSection { base, bytes }) in added {
            let sections = self.sections.entry(shard).or_default();
            if base {
                sections.clear();
            }
            if bytes > 0 {
                sections.push(SectionRef { bundle: position, bytes });
            }
        }
        self.prune();
    }

    /// Replaces the inputs of a merge by its output. Returns false, and changes nothing, if the merged sections have
    /// changed meanwhile.
    pub fn apply(&mut self, merged: &Merged) -> bool {
        let Merged { bundle, inputs, sections: merged } = merged;
        let Some(first) = self.bundles.iter().position(|bundle| inputs.contains(&bundle.name)) else {
            return false;
        };
        let is_input = |position: u32| inputs.contains(&self.bundles[position as usize].name);
        // A base that was added meanwhile may have dropped all sections of a shard: then the merged one is dropped,
        // too.
        let mut sections = self.sections.clone();
        for (shard, sections) in &mut sections {
            let old: Vec<_> = sections.iter().filter(|section| is_input(section.bundle)).collect();
            if old.is_empty() {
                continue;
            }
            let Some(new) = merged.get(shard) else { return false };
            if old.len() != new.sources || old[0].bundle != sections[0].bundle && new.oldest {
                return false;
            }
            let at = sections.iter().position(|section| is_input(section.bundle)).expect("some were merged");
            sections.retain(|section| !is_input(section.bundle));
            if new.bytes > 0 {
                sections.insert(at, SectionRef { bundle: first as u32, bytes: new.bytes });
            }
        }
        self.bundles[first] = bundle.clone();
        self.sections = sections;
        self.prune();
        true
    }

    /// Drops the sections of the shards that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(ShardId) -> bool) {
        self.sections.retain(|shard, _| keep(*shard));
        self.prune();
    }

    /// Drops the bundles without sections, and shards without sections.
    fn prune(&mut self) {
        self.sections.retain(|_, sections| !sections.is_empty());
        let mut used = vec![false; self.bundles.len()];
        for section in self.sections.values().flatten() {
            used[section.bundle as usize] = true;
        }
        let mut position = vec![0; used.len()];
        let mut next = 0;
        for (at, used) in used.iter().enumerate() {
            position[at] = next;
            next += u32::from(*used);
        }
        let mut at = 0;
        self.bundles.retain(|_| {
            at += 1;
            used[at - 1]
        });
        for section in self.sections.values_mut().flatten() {
            section.bundle = position[section.bundle as usize];
        }
    }
}

/// The section of a shard in a checkpoint's own bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedSection {
    /// Whether it holds every record of the shard, so that older sections do not count.
    pub base: bool,
    /// Bytes of its records.
    pub bytes: u64,
}

/// A completed merge; it takes effect once it is applied to a lineage and a manifest is written from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The new bundle.
    pub bundle: BundleRef,
    /// The names of the input bundles.
    pub inputs: BTreeSet<String>,
    /// The merged sections, by shard.
    pub sections: BTreeMap<ShardId, MergedSection>,
}

/// The output of a merge for one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedSection {
    /// Number of input sections.
    pub sources: usize,
    /// Whether the shard's oldest section was among them, so that deletes were dropped.
    pub oldest: bool,
    /// Bytes of the output section.
    pub bytes: u64,
}
