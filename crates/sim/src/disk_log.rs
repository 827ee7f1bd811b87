//! The log on the disk, decoded from the writes that reach the disk. Independent of the node and of the storage code,
//! whose reports about the log are compared with it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use stead_core::ids::{Index, ShardId};

/// The identity of the node's log.
pub(crate) const LOG_ID: u64 = 0x1d;
/// The magic of a batch, and the bytes of its header.
const MAGIC: &[u8] = b"SWB2";
const HEADER: usize = 64;
/// A block: each batch begins with one.
pub(crate) const BLOCK: usize = 4096;
/// The bytes of a record's kind and length.
const RECORD_HEADER: usize = 5;
/// The kind of an entry.
const ENTRY: u8 = 0x81;

/// A batch of the log.
#[derive(Debug)]
struct Written {
    number: u64,
    /// The last batch that was durable when this one was written.
    mark: u64,
    /// The oldest segment that the log needed then.
    oldest: u64,
    /// The highest index of each shard in it.
    tops: BTreeMap<ShardId, Index>,
}

/// The state of the last trim that the node wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trim {
    #[default]
    None,
    Wanted,
    /// Entries were written since then.
    Overtaken,
}

/// The batches that one life of the node wrote.
#[derive(Debug, Default)]
pub(crate) struct DiskLog {
    /// By file, the batches written since its last sync.
    unsynced: BTreeMap<u64, Vec<Written>>,
    durable: BTreeMap<ShardId, Index>,
    /// Durable batches that no later durable batch records as synced.
    uncovered: VecDeque<Written>,
    covered: BTreeMap<ShardId, Index>,
    /// The last batch that a durable batch records as synced, if any.
    mark: Option<u64>,
    /// The last durable batch with entries.
    last_entries: u64,
    /// The oldest needed segment, once a batch has recorded one.
    oldest: Option<u64>,
    trim: Trim,
    is_trimmed: bool,
    /// Whether the node has failed or was abandoned.
    is_over: bool,
    /// A violation by the log, with the number of its invariant.
    wrong: Option<(u8, &'static str)>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Returns the varint at `at`, and its end.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let len = 1 + bytes.get(at..)?.iter().position(|byte| *byte < 0x80)?;
    let digits = bytes[at..at + len].iter().rev();
    Some((digits.fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)), at + len))
}

impl Written {
    /// Returns the batch that these bytes write; `None` if they write none.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return None;
        }
        let len = u32_at(bytes, 8) as usize;
        let (number, mark, oldest) = (u64_at(bytes, 24), u64_at(bytes, 32), u64_at(bytes, 40));
        let mut tops = BTreeMap::new();
        let mut records = bytes.get(HEADER..HEADER + len)?;
        while !records.is_empty() {
            if records[0] == ENTRY {
                // The epoch follows the shard.
                let (shard, at) = varint(records, RECORD_HEADER)?;
                let (_, at) = varint(records, at)?;
                let (index, _) = varint(records, at)?;
                let shard = ShardId(u32::try_from(shard).ok()?);
                let top = tops.entry(shard).or_default();
                *top = Index(index).max(*top);
            }
            let len = records.get(..RECORD_HEADER).map(|header| u32_at(header, 1) as usize)?;
            records = records.get(RECORD_HEADER + len..)?;
        }
        Some(Self { number, mark, oldest, tops })
    }
}

/// Returns the number of the batch at the start of these bytes, if there is one and it has entries.
pub(crate) fn number_of_entries(bytes: &[u8]) -> Option<u64> {
    Written::parse(bytes).filter(|batch| !batch.tops.is_empty()).map(|batch| batch.number)
}

/// Returns the places of the entries in a segment of the log.
pub(crate) fn entries_of(segment: &[u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    for start in (0..segment.len()).step_by(BLOCK) {
        let batch = &segment[start..];
        if Written::parse(batch).is_none() {
            continue;
        }
        let end = HEADER + u32_at(batch, 8) as usize;
        let mut at = HEADER;
        while at < end {
            let next = at + RECORD_HEADER + u32_at(batch, at + 1) as usize;
            // Shard, epoch and index come first.
            let mut from = Some(at + RECORD_HEADER);
            for _ in 0..3 {
                from = from.and_then(|from| Some(varint(batch, from)?.1));
            }
            if let Some(from) = from.filter(|_| batch[at] == ENTRY) {
                places.push(start + from..start + next);
            }
            at = next;
        }
    }
    places
}

fn raise(tops: &mut BTreeMap<ShardId, Index>, more: &BTreeMap<ShardId, Index>) {
    for (shard, index) in more {
        let top = tops.entry(*shard).or_default();
        *top = (*top).max(*index);
    }
}

impl DiskLog {
    /// Notes that bytes were written to a file.
    pub(crate) fn wrote(&mut self, file: u64, bytes: &[u8]) {
        let Some(batch) = Written::parse(bytes) else { return };
        if self.is_over {
            self.wrong = Some((5, "the log was written after the node had failed or was abandoned"));
        }
        if !batch.tops.is_empty() && self.trim == Trim::Wanted {
            self.trim = Trim::Overtaken;
        }
        if self.oldest.replace(batch.oldest).is_some_and(|oldest| oldest < batch.oldest) {
            self.is_trimmed = true;
            if self.trim == Trim::Overtaken {
                self.wrong = Some((
                    17,
                    "entries were written before a trim that was wanted before, whose room they may need",
                ));
            }
            self.trim = Trim::None;
        }
        self.unsynced.entry(file).or_default().push(batch);
    }

    /// Notes that the node has failed or was abandoned: nothing is written any more.
    pub(crate) fn is_over(&mut self) {
        self.is_over = true;
    }

    /// Notes that the node wants the log to be trimmed.
    pub(crate) fn wants_trim(&mut self) {
        self.trim = Trim::Wanted;
    }

    /// Whether entries were written since the node wanted a trim that has not released anything yet.
    pub(crate) fn has_overtaken_trim(&self) -> bool {
        self.trim == Trim::Overtaken
    }

    /// Whether segments were released since the last call.
    pub(crate) fn take_trimmed(&mut self) -> bool {
        std::mem::take(&mut self.is_trimmed)
    }

    /// Returns a violation by the log, if there was one, with the number of its invariant.
    pub(crate) fn wrong(&self) -> Option<(u8, &'static str)> {
        self.wrong
    }

    /// Notes that a file was synced.
    pub(crate) fn synced(&mut self, file: u64) {
        for batch in self.unsynced.remove(&file).unwrap_or_default() {
            raise(&mut self.durable, &batch.tops);
            self.mark = self.mark.max(Some(batch.mark));
            if !batch.tops.is_empty() {
                self.last_entries = batch.number;
            }
            self.uncovered.push_back(batch);
        }
        while let Some(batch) = self.uncovered.pop_front_if(|batch| Some(batch.number) <= self.mark) {
            raise(&mut self.covered, &batch.tops);
        }
    }

    /// Returns the last entry of a shard that this life made durable.
    pub(crate) fn durable(&self, shard: ShardId) -> Index {
        self.durable.get(&shard).copied().unwrap_or_default()
    }

    /// Returns the last entry of a shard that this life wrote and that the log records as synced.
    pub(crate) fn covered(&self, shard: ShardId) -> Index {
        self.covered.get(&shard).copied().unwrap_or_default()
    }

    /// Whether the log records all entries of this life as synced.
    pub(crate) fn is_marked(&self) -> bool {
        self.unsynced.values().flatten().all(|batch| batch.tops.is_empty())
            && self.mark.unwrap_or(0) >= self.last_entries
    }

    /// Whether the log records the entries that this life found as synced.
    pub(crate) fn covers_the_past(&self) -> bool {
        self.mark.is_some()
    }
}
