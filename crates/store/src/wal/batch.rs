//! Records for the log, which each worker thread gathers on its own.

use super::numbers::put_varint;
use super::promises::Promise;
use super::record::{
    CUT, CutRecord, ENTRY, ENTRY_HEAD_MAX, HEAD, INSTALL, InstallRecord, PROMISE, encode_numbers,
};
use std::collections::BTreeMap;
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_core::shard_replica;

/// Encoded records, ready to be appended with those of other threads in one write.
///
/// Clear and reuse it: its memory is kept.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: u32,
    tops: ShardTops,
    promises: Vec<Promise>,
}

impl Batch {
    /// Maximum number of bytes of an entry's record besides the entry.
    pub const RECORD_OVERHEAD: usize = ENTRY_HEAD_MAX;

    /// Creates a batch without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry after the other records.
    pub fn push(&mut self, shard: ShardId, epoch: Epoch, index: Index, bytes: &[u8]) {
        self.push_with(shard, epoch, index, |out| out.extend_from_slice(bytes));
    }

    /// Adds an entry whose bytes `encode` appends to the buffer it is given; it must not touch what is in there.
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
        let mut head = [0; ENTRY_HEAD_MAX];
        head[0] = ENTRY;
        let at = put_varint(&mut head, HEAD, u64::from(shard.0));
        let at = put_varint(&mut head, at, epoch.0);
        let end = put_varint(&mut head, at, index.0);
        self.bytes.extend_from_slice(&head[..end]);
        encode(&mut self.bytes);
        assert!(self.bytes.len() >= start + end, "encode only appends");
        // A length that does not fit is never written: a batch of that size is over the log's limit.
        let len = u32::try_from(self.bytes.len() - start - HEAD).unwrap_or(u32::MAX);
        self.bytes[start + 1..start + HEAD].copy_from_slice(&len.to_le_bytes());
        self.records += 1;
        self.tops.raise(shard, index);
    }

    /// Adds a promise. It must not fall below one that the log holds of the same replica.
    pub fn push_promise(&mut self, promise: Promise) {
        let Promise { shard, replica, epoch } = promise;
        encode_numbers(&mut self.bytes, PROMISE, &[u64::from(shard.0), replica.0, epoch.0]);
        self.records += 1;
        self.promises.push(promise);
    }

    /// Adds a cut.
    pub fn push_cut(&mut self, cut: CutRecord) {
        let CutRecord { shard, epoch, index } = cut;
        encode_numbers(&mut self.bytes, CUT, &[u64::from(shard.0), epoch.0, index.0]);
        self.records += 1;
    }

    /// Adds an install. The snapshot must be durable already.
    pub fn push_install(&mut self, install: InstallRecord) {
        let InstallRecord { shard, replica, epoch, base } = install;
        let numbers = [u64::from(shard.0), replica.0, epoch.0, base.epoch.0, base.index.0];
        encode_numbers(&mut self.bytes, INSTALL, &numbers);
        self.records += 1;
        self.tops.raise(shard, install.top());
    }

    /// Adds what a replica of a shard writes at once. A batch is durable whole or not at all, so all of it must be in this one.
    pub fn push_replica(&mut self, shard: ShardId, replica: ReplicaId, records: &[shard_replica::Record]) {
        for record in records {
            match *record {
                shard_replica::Record::Promise(epoch) => {
                    self.push_promise(Promise { shard, replica, epoch });
                }
                shard_replica::Record::Cut { epoch, keep } => {
                    self.push_cut(CutRecord { shard, epoch, index: keep });
                }
                shard_replica::Record::Entry(ref entry) => {
                    self.push(shard, entry.point.epoch, entry.point.index, &entry.bytes);
                }
                shard_replica::Record::Install { epoch, base } => {
                    self.push_install(InstallRecord { shard, replica, epoch, base });
                }
            }
        }
    }

    /// Returns the number of records.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Returns the encoded size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is a promise among the records: the log's mark has to follow at once.
    #[must_use]
    pub fn has_promise(&self) -> bool {
        !self.promises.is_empty()
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
        self.promises.clear();
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn tops(&self) -> &ShardTops {
        &self.tops
    }

    pub(crate) fn promises(&self) -> &[Promise] {
        &self.promises
    }
}

/// Shards below this number are kept by position, because this is used for every record.
pub(crate) const DENSE: u32 = 4096;

/// The highest index of each shard in a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardTops {
    /// By shard, the index plus 1, or 0 for none.
    dense: Vec<u64>,
    sparse: BTreeMap<ShardId, Index>,
}

impl ShardTops {
    #[inline]
    fn raise(&mut self, shard: ShardId, index: Index) {
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
