//! Records on their way into the log, gathered by each worker thread on its own.

use std::collections::BTreeMap;
use stead_core::ids::{Epoch, Index, ShardId};

/// Bytes before each record's own: length, shard, epoch, index.
pub(crate) const RECORD_HEADER: usize = 24;

/// One record as the log gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The shard whose log it belongs to.
    pub shard: ShardId,
    /// The epoch it was appended in.
    pub epoch: Epoch,
    /// Its position in its shard's log.
    pub index: Index,
    /// What was appended.
    pub bytes: &'a [u8],
}

/// Encoded records, ready to be appended with those of other threads in one write.
///
/// Clear and reuse it: its memory is kept.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: u32,
    tops: ShardTops,
}

impl Batch {
    /// A batch without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record after the others.
    pub fn push(&mut self, shard: ShardId, epoch: Epoch, index: Index, bytes: &[u8]) {
        self.push_with(shard, epoch, index, |out| out.extend_from_slice(bytes));
    }

    /// Adds a record whose bytes `encode` appends to the buffer it is given; it must not touch what is in there.
    ///
    /// # Panics
    /// If `encode` shortened the buffer.
    pub fn push_with(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        index: Index,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        let mut header = [0; RECORD_HEADER];
        header[4..8].copy_from_slice(&shard.0.to_le_bytes());
        header[8..16].copy_from_slice(&epoch.0.to_le_bytes());
        header[16..24].copy_from_slice(&index.0.to_le_bytes());
        self.bytes.extend_from_slice(&header);
        encode(&mut self.bytes);
        let len = self.bytes.len().checked_sub(start + RECORD_HEADER).expect("encode only appends");
        // A length that doesn't fit is never written: a batch of that size is over the log's limit.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.records += 1;
        self.tops.raise(shard, index);
    }

    /// Number of records.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Encoded size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Removes all records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
        self.tops.clear();
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn tops(&self) -> &ShardTops {
        &self.tops
    }
}

/// Takes the first record off `payload`; `None` if its length doesn't fit.
pub(crate) fn split_record(payload: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (header, rest) = payload.split_first_chunk::<RECORD_HEADER>()?;
    let len = usize::try_from(u32_at(header, 0)).ok()?;
    let (bytes, rest) = rest.split_at_checked(len)?;
    let record = Record {
        shard: ShardId(u32_at(header, 4)),
        epoch: Epoch(u64_at(header, 8)),
        index: Index(u64_at(header, 16)),
        bytes,
    };
    Some((record, rest))
}

/// Reads 4 bytes, little-endian. The caller knows that they are there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Reads 8 bytes, little-endian. The caller knows that they are there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Shards below this number are kept by position, for this is touched for every record.
const DENSE: u32 = 4096;

/// The highest index of each shard in some stretch of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardTops {
    /// Index + 1 by shard, 0 for none.
    dense: Vec<u64>,
    sparse: BTreeMap<ShardId, Index>,
}

impl ShardTops {
    pub(crate) fn raise(&mut self, shard: ShardId, index: Index) {
        if shard.0 < DENSE {
            let at = shard.0 as usize;
            if at >= self.dense.len() {
                self.dense.resize(at + 1, 0);
            }
            self.dense[at] = self.dense[at].max(index.0.saturating_add(1));
        } else {
            let top = self.sparse.entry(shard).or_insert(index);
            *top = (*top).max(index);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if self.dense.len() < other.dense.len() {
            self.dense.resize(other.dense.len(), 0);
        }
        for (mine, other) in self.dense.iter_mut().zip(&other.dense) {
            *mine = (*mine).max(*other);
        }
        for (shard, index) in &other.sparse {
            self.raise(*shard, *index);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ShardId, Index)> + '_ {
        let dense = self.dense.iter().zip(0..).filter(|(top, _)| **top > 0);
        let dense = dense.map(|(top, shard)| (ShardId(shard), Index(top - 1)));
        dense.chain(self.sparse.iter().map(|(shard, index)| (*shard, *index)))
    }

    fn clear(&mut self) {
        self.dense.fill(0);
        self.sparse.clear();
    }
}
