//! A node: its disk, and the replica on it.

use std::collections::VecDeque;
use stead_core::blob::Blob;
use stead_core::control::node::{DiskState, StartId};
use stead_core::ids::{Index, Life, ReplicaId};
use stead_core::replication::table::LogPoint;
use stead_core::shard;
use stead_core::shard_replica::{Effects, Input, LogEntry, Record, ShardReplica};
use stead_core::trials::Trials;

/// The number of no replica.
pub(super) const NONE: ReplicaId = ReplicaId(u64::MAX);

/// Returns the number of a start.
pub(super) fn start_id(start: u64) -> StartId {
    StartId(u128::from(start))
}

/// An input for a replica, or for the shard that it leads.
pub(super) enum Given {
    Replica(Input),
    Shard(shard::Input),
}

impl From<Input> for Given {
    fn from(input: Input) -> Self {
        Self::Replica(input)
    }
}

impl From<shard::Input> for Given {
    fn from(input: shard::Input) -> Self {
        Self::Shard(input)
    }
}

/// Takes the records that the effects of an input write, in their order.
pub(crate) fn take_written(effects: &mut Effects) -> Vec<Record> {
    let mut records = std::mem::take(&mut effects.records);
    effects.shard.retain(|effect| match effect {
        shard::Effect::Append { epoch, index, bytes } => {
            let point = LogPoint { epoch: *epoch, index: *index };
            records.push(Record::Entry(LogEntry { point, bytes: Blob::from(&**bytes) }));
            false
        }
        _ => true,
    });
    records
}

pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    /// A planted bug has reported it before it was durable.
    pub(super) is_reported: bool,
}

pub(super) struct Node {
    /// The replica on it, or [`NONE`].
    pub(super) id: ReplicaId,
    pub(super) is_up: bool,
    pub(super) life: Life,
    pub(super) start: StartId,
    /// The state of its disk, as long as the control plane does not know it.
    pub(super) disk: DiskState,
    pub(super) durable: Vec<Record>,
    pub(super) written: VecDeque<Batch>,
    /// The index of its newest snapshot.
    pub(super) snapshot: Index,
    /// `None` while it is down, or has none.
    pub(super) replica: Option<ShardReplica>,
    pub(super) todo: VecDeque<Given>,
    /// The number and bounds of the state that is to be folded anew.
    pub(super) rebuild: Option<(u64, Index, Index)>,
    pub(super) trials: Trials,
    /// The index up to which its commits were compared, and that of the last state that was.
    pub(super) checked: Index,
    pub(super) seen: Index,
}

impl Node {
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.durable.iter().chain(self.written.iter().flat_map(|batch| &batch.records))
    }
}

/// Returns the entries that survive, and the index before the first one. Not [`Recovery`]: that is checked by this.
pub(super) fn survivors<'a>(records: impl Iterator<Item = &'a Record>) -> (Index, Vec<LogEntry>) {
    let (mut before, mut entries) = (Index(0), Vec::<LogEntry>::new());
    for record in records {
        match record {
            Record::Promise(_) => {}
            Record::Cut { keep, .. } => entries.retain(|entry| entry.point.index <= *keep),
            Record::Entry(entry) => {
                entries.retain(|older| older.point.index < entry.point.index);
                entries.push(entry.clone());
            }
            Record::Install { base, .. } => {
                before = base.index;
                entries.clear();
            }
        }
    }
    (before, entries)
}

/// Returns the index of the newest snapshot that was installed.
pub(super) fn installed<'a>(records: impl Iterator<Item = &'a Record>) -> Index {
    let bases = records.filter_map(|record| match record {
        Record::Install { base, .. } => Some(base.index),
        _ => None,
    });
    bases.max().unwrap_or_default()
}
