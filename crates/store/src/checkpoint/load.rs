//! Reads the parts of a checkpoint back into records, and verifies every checksum.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::bundle::{BLOCK_HEADER_LEN, Block, Bundle, Section};
use crate::checkpoint::manifest::{Manifest, Part, SectionRef, manifest_name};
use crate::checkpoint::store::BlobStore;
use std::collections::BTreeMap;
use stead_core::blob::Blob;
use stead_core::checkpointing::bundle::Hash;
use stead_core::ids::ShardId;
use stead_core::record::RecordKey;
use stead_core::records::{Records, decode_records};
use stead_core::state::{Header, State};

/// Maximum number of bytes read at once, unless one block is larger.
const READ_BYTES: usize = 4 << 20;
/// Maximum number of bytes between two blocks for which one read covers both.
const GAP_BYTES: u64 = 256 << 10;

/// The division of the work of loading a checkpoint: its parts are spread over groups of about the same number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaders {
    /// Up to this many groups at a time, each loaded by a thread of its own. With one group no thread is started.
    Threads(usize),
    /// Up to this many groups, one after the other, so that the order of all I/O is fixed.
    InTurn(usize),
}

impl Loaders {
    fn count(self) -> usize {
        let (Self::Threads(count) | Self::InTurn(count)) = self;
        count
    }
}

impl From<usize> for Loaders {
    /// As many threads.
    fn from(threads: usize) -> Self {
        Self::Threads(threads)
    }
}

/// The state of a part at its marker.
pub struct LoadedPart {
    /// The part's state besides its records.
    pub header: Header,
    /// The records. Those of a checkpoint are marked as held by a snapshot.
    pub records: Records,
}

impl LoadedPart {
    /// Returns the shard's state at its marker.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if a record is not of its kind.
    pub fn into_state(self, manifest: &Manifest) -> Result<State, CheckpointError> {
        State::load(self.header, self.records)
            .map_err(|misfit| CheckpointError::damaged(&manifest_name(manifest.number), misfit.to_string()))
    }
}

/// The bundles of a manifest, opened and verified.
pub struct Bundles<'a> {
    manifest: &'a Manifest,
    bundles: Vec<Bundle>,
}

impl<'a> Bundles<'a> {
    /// Opens all bundles that a manifest refers to.
    ///
    /// # Errors
    /// [`CheckpointError`] if one is missing, damaged or not the one in the manifest.
    pub fn open(store: &dyn BlobStore, manifest: &'a Manifest) -> Result<Self, CheckpointError> {
        let open = |wanted| Bundle::open(store, wanted, manifest.belonging());
        let bundles = manifest.bundles.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { manifest, bundles })
    }

    /// Reads the header of a part and checks it against the manifest.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is damaged or differs.
    pub fn header(&self, part: &Part) -> Result<Header, CheckpointError> {
        let header = self.bundles[part.header as usize].header(part.shard)?;
        let differs = |what, found: String, expected: String| {
            let name = manifest_name(self.manifest.number);
            Err(CheckpointError::Differs { name, shard: part.shard, what, found, expected })
        };
        let position = header.position;
        if header.hash() != part.hash.0 {
            return differs("state hash", Hash(header.hash()).to_string(), part.hash.to_string());
        }
        let recorded = (part.epoch, part.index, part.time, part.colour);
        if (position.epoch, position.index, position.time, position.colour) != recorded {
            return differs("position", format!("{position:?}"), format!("{recorded:?}"));
        }
        if (header.records, header.records_hash) != (part.records, part.records_hash.0.to_be_bytes()) {
            return differs("records in the header", header.records.to_string(), part.records.to_string());
        }
        Ok(header)
    }

    /// Passes every record in the sections of some parts to `visit`, the oldest sections of each shard first. Each
    /// bundle is read once, from its beginning to its end.
    ///
    /// # Errors
    /// [`CheckpointError`] if something is damaged, or the error of `visit`.
    pub fn visit_records(
        &self,
        parts: &[&Part],
        mut visit: impl FnMut(ShardId, &[u8], Option<&[u8]>) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut buf = Vec::new();
        for (position, bundle) in self.bundles.iter().enumerate() {
            let mut blocks: Vec<(ShardId, Block)> = Vec::new();
            for part in parts {
                let Some(section) = part.sections.iter().find(|section| section.bundle as usize == position)
                else {
                    continue;
                };
                let stored = bundle.section(part.shard).filter(|stored| stored.bytes() == section.bytes);
                let Some(stored) = stored else {
                    let reason =
                        format!("it lacks the section of shard {} that the manifest names", part.shard);
                    return Err(CheckpointError::damaged(bundle.name(), reason));
                };
                blocks.extend(stored.blocks.iter().map(|block| (part.shard, *block)));
            }
            if !blocks.is_empty() {
                bundle.read_ahead();
                blocks.sort_unstable_by_key(|(_, block)| block.offset);
                visit_blocks(bundle, &blocks, &mut buf, &mut visit)?;
            }
        }
        Ok(())
    }

    /// Loads some parts.
    pub(crate) fn load(&self, parts: &[&Part]) -> Result<Vec<LoadedPart>, CheckpointError> {
        let mut loaded = BTreeMap::new();
        for part in parts {
            let header = self.header(part)?;
            let mut records = Records::new();
            // The recorded number may be wrong, so the size of the stored sections limits the allocation.
            let stored = |section: &SectionRef| self.bundles[section.bundle as usize].section(part.shard);
            let bytes: u64 = part.sections.iter().filter_map(stored).map(Section::bytes).sum();
            records.reserve(header.records.min(bytes / 7) as usize);
            loaded.insert(part.shard, LoadedPart { header, records });
        }
        self.visit_records(parts, |shard, key, value| {
            let part = loaded.get_mut(&shard).expect("only sections of these parts are read");
            part.records.load(key, value.map(Blob::from));
            Ok(())
        })?;
        for (&shard, part) in &mut loaded {
            part.records.loaded();
            let (found, count) = (part.records.hash(), part.records.len() as u64);
            let expected = u128::from_be_bytes(part.header.records_hash);
            if (found, count) != (expected, part.header.records) {
                return Err(CheckpointError::Differs {
                    name: manifest_name(self.manifest.number),
                    shard,
                    what: "records",
                    found: format!("{count} of hash {}", Hash(found)),
                    expected: format!("{} of hash {}", part.header.records, Hash(expected)),
                });
            }
        }
        Ok(loaded.into_values().collect())
    }
}

/// Loads the whole part of a shard from a bundle that no manifest refers to. No checkpoint has the records, so all of them are part of the
/// next snapshot.
pub(crate) fn load_alone(bundle: &Bundle, shard: ShardId) -> Result<LoadedPart, CheckpointError> {
    let header = bundle.header(shard)?;
    let damaged = |reason: String| CheckpointError::damaged(bundle.name(), reason);
    let section = bundle.section(shard).filter(|section| section.base);
    let section = section.ok_or_else(|| damaged(format!("it has not all records of shard {shard}")))?;
    let mut records = Records::new();
    // The recorded number may be wrong, so the size of the stored section limits the allocation.
    records.reserve(header.records.min(section.bytes() / 7) as usize);
    let blocks: Vec<_> = section.blocks.iter().map(|block| (shard, *block)).collect();
    visit_blocks(bundle, &blocks, &mut Vec::new(), &mut |_, key, value| {
        records.load(key, value.map(Blob::from));
        Ok(())
    })?;
    let (found, count) = (records.hash(), records.len() as u64);
    if (found, count) != (u128::from_be_bytes(header.records_hash), header.records) {
        let reason =
            format!("it has {count} records of hash {}, which are not those of its header", Hash(found));
        return Err(damaged(reason));
    }
    Ok(LoadedPart { header, records })
}

/// Reads neighbouring blocks with one read, verifies each, and passes its records to `visit`.
pub(crate) fn visit_blocks(
    bundle: &Bundle,
    mut blocks: &[(ShardId, Block)],
    buf: &mut Vec<u8>,
    visit: &mut impl FnMut(ShardId, &[u8], Option<&[u8]>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let end = |block: &Block| block.offset + BLOCK_HEADER_LEN as u64 + u64::from(block.len);
    while let Some((_, first)) = blocks.first() {
        let start = first.offset;
        let mut stop = end(first);
        let mut count = 1;
        for (_, block) in &blocks[1..] {
            if block.offset - stop > GAP_BYTES || end(block) - start > READ_BYTES as u64 {
                break;
            }
            stop = end(block);
            count += 1;
        }
        let len = (stop - start) as usize;
        if buf.len() < len {
            buf.resize(len, 0);
        }
        bundle.read(&mut buf[..len], start)?;
        for (shard, block) in &blocks[..count] {
            let bytes = &buf[(block.offset - start) as usize..(end(block) - start) as usize];
            let content = bundle.check_records(*shard, block, bytes)?;
            for record in decode_records(content) {
                let record = record.map_err(|error| error.to_string()).and_then(|(key, value)| {
                    match RecordKey::from_bytes(key) {
                        Some(_) => Ok((key, value)),
                        None => Err("it has a record with an invalid key".to_owned()),
                    }
                });
                let (key, value) =
                    record.map_err(|reason| CheckpointError::damaged(bundle.name(), reason))?;
                visit(*shard, key, value)?;
            }
        }
        blocks = &blocks[count..];
    }
    Ok(())
}

/// Loads one part of a checkpoint.
///
/// # Errors
/// [`CheckpointError`] if something is missing, damaged, or not the state that was written.
pub fn load_part(
    store: &dyn BlobStore,
    manifest: &Manifest,
    shard: ShardId,
) -> Result<LoadedPart, CheckpointError> {
    let Some(part) = manifest.part(shard) else {
        let reason = format!("it has no shard {shard}");
        return Err(CheckpointError::Incomplete { number: manifest.number, reason });
    };
    let mut loaded = Bundles::open(store, manifest)?.load(&[part])?;
    Ok(loaded.pop().expect("one part was asked for"))
}

/// Loads all parts of a checkpoint and returns them in the order of their shards.
///
/// # Errors
/// [`CheckpointError`] if something is missing, damaged, or not the state that was written.
pub fn load_parts(
    store: &dyn BlobStore,
    manifest: &Manifest,
    loaders: impl Into<Loaders>,
) -> Result<Vec<LoadedPart>, CheckpointError> {
    load_parts_of(store, manifest, loaders, |_| true)
}

/// Loads the parts of some shards, as [`load_parts`] does.
///
/// # Errors
/// As [`load_parts`].
pub fn load_parts_of(
    store: &dyn BlobStore,
    manifest: &Manifest,
    loaders: impl Into<Loaders>,
    is_wanted: impl Fn(ShardId) -> bool,
) -> Result<Vec<LoadedPart>, CheckpointError> {
    let bundles = Bundles::open(store, manifest)?;
    let parts: Vec<&Part> = manifest.parts.iter().filter(|part| is_wanted(part.shard)).collect();
    let loaders = loaders.into();
    let groups = groups(&parts, loaders.count());
    let load = |group: &Vec<&Part>| bundles.load(group);
    let results: Vec<_> = match loaders {
        Loaders::Threads(_) if groups.len() > 1 => std::thread::scope(|scope| {
            let running: Vec<_> = groups.iter().map(|group| scope.spawn(move || load(group))).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        }),
        _ => groups.iter().map(|group| Ok(load(group))).collect(),
    };
    let mut loaded = Vec::new();
    for result in results {
        loaded.append(&mut result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    loaded.sort_by_key(|part| part.header.shard);
    Ok(loaded)
}

/// Spreads parts over up to `count` groups of about the same number of bytes. Returns at least one group.
fn groups<'p>(parts: &[&'p Part], count: usize) -> Vec<Vec<&'p Part>> {
    let mut groups: Vec<(u64, Vec<&Part>)> = vec![(0, Vec::new()); count.clamp(1, parts.len().max(1))];
    for &part in parts {
        // The manifest's numbers have not been compared with the sections yet, so their sum may overflow.
        let bytes = part
            .sections
            .iter()
            .fold(1, |sum: u64, section| sum.saturating_add(section.bytes).saturating_add(1));
        let least = groups.iter_mut().min_by_key(|(bytes, _)| *bytes).expect("there is a group");
        least.0 = least.0.saturating_add(bytes);
        least.1.push(part);
    }
    groups.into_iter().map(|(_, parts)| parts).collect()
}
