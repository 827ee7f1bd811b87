//! A replica's log as its records are read at a start (rule 18).

use super::io::{LogEntry, Record};
use super::tail::{Tail, WEIGHT};
use crate::entry::Entry;
use crate::ids::{Epoch, Index};
use crate::replication::table::{EpochTable, LogPoint};
use crate::state::State;
use std::collections::VecDeque;

/// The log of one replica behind its snapshot, read record by record. Nothing is folded: no entry over the snapshot is known to be
/// committed until a primary says so (rule 16). The last entries are kept in memory, up to a bound; the others stay in the log, and
/// the replica requests that they be folded from there once they are committed.
#[derive(Clone, Debug)]
pub struct ReplicaLog {
    promised: Epoch,
    /// The entries that survive.
    table: EpochTable,
    /// The epoch of the log's own entry at the snapshot, if it has one.
    found: Option<Epoch>,
    /// The index before the first entry in memory.
    before: Index,
    entries: VecDeque<LogEntry>,
    bytes: u64,
    bytes_max: u64,
}

impl ReplicaLog {
    /// Begins to read behind a snapshot. Of the entries the last ones are kept, of up to `bytes_max` bytes together.
    #[must_use]
    pub fn new(snapshot: LogPoint, bytes_max: u64) -> Self {
        Self {
            promised: snapshot.epoch,
            table: EpochTable::new(snapshot),
            found: None,
            before: snapshot.index,
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Returns the last entry that the snapshot covers behind which the log is read: that of the last install, or the first one.
    #[must_use]
    pub fn snapshot(&self) -> LogPoint {
        self.table.base()
    }

    /// Returns the surviving entries.
    #[must_use]
    pub fn table(&self) -> &EpochTable {
        &self.table
    }

    /// Returns the bytes of the entries in memory, and what they cost besides.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next durable record.
    ///
    /// # Panics
    /// If an entry leaves a gap.
    pub fn handle_record(&mut self, record: Record) {
        let base = self.table.base();
        match record {
            Record::Promise(epoch) => self.promised = self.promised.max(epoch),
            Record::Cut { epoch, keep } => {
                self.promised = self.promised.max(epoch);
                self.keep(keep);
            }
            Record::Entry(entry) => {
                self.promised = self.promised.max(entry.point.epoch);
                let index = entry.point.index;
                if index <= base.index {
                    self.keep(index);
                    self.found = (index == base.index).then_some(entry.point.epoch);
                } else {
                    self.keep(Index(index.0 - 1));
                    // Epochs do not fall within a log, so an entry of a lower one than the snapshot's is of another history,
                    // which later records have replaced.
                    if entry.point.epoch >= base.epoch {
                        self.push(entry);
                    }
                }
            }
            Record::Install { epoch, base: installed } => {
                self.promised = self.promised.max(epoch);
                self.keep(base.index);
                self.found = None;
                if installed.index > base.index {
                    (self.table, self.before) = (EpochTable::new(installed), installed.index);
                }
            }
        }
    }

    fn push(&mut self, entry: LogEntry) {
        self.table.push(entry.point);
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= weight(&entry);
            self.before = entry.point.index;
        }
    }

    /// Drops the entries behind an index.
    fn keep(&mut self, keep: Index) {
        let keep = keep.max(self.table.base().index);
        self.table.truncate(keep);
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.point.index > keep) {
            self.bytes -= weight(&entry);
        }
        self.before = self.before.min(keep);
    }

    /// Drops the entries behind the snapshot if the log's entry at it is another one: they are of another history (rule 4).
    fn drop_others(&mut self) {
        let base = self.table.base();
        if self.found.is_some_and(|epoch| epoch != base.epoch) {
            self.keep(base.index);
        }
    }
}

fn weight(entry: &LogEntry) -> u64 {
    entry.bytes.len() as u64 + WEIGHT
}

/// A replica's snapshot, with its log behind that.
pub struct Recovery {
    state: State,
    log: ReplicaLog,
}

/// The result.
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) promised: Epoch,
    pub(super) table: EpochTable,
    pub(super) tail: Tail,
}

impl Recovery {
    /// Begins to read behind a snapshot, or behind the state of a new shard. All entries are kept.
    #[must_use]
    pub fn new(state: State) -> Self {
        let log = ReplicaLog::new(snapshot(&state), u64::MAX);
        Self { state, log }
    }

    /// Joins a log that was read to the snapshot behind which it was read.
    ///
    /// # Panics
    /// If the snapshot is another one.
    #[must_use]
    pub fn with_log(state: State, log: ReplicaLog) -> Self {
        assert_eq!(snapshot(&state), log.snapshot(), "a log is read behind its own snapshot");
        Self { state, log }
    }

    /// Takes the next durable record.
    ///
    /// # Panics
    /// If an entry leaves a gap, or the log begins anew behind another snapshot.
    pub fn handle_record(&mut self, record: Record) {
        self.log.handle_record(record);
        assert_eq!(
            snapshot(&self.state),
            self.log.snapshot(),
            "a snapshot is durable before the log begins behind it"
        );
    }

    /// Folds the surviving entries up to an index, and returns the state: what [`super::Effect::Rebuild`] asks for.
    ///
    /// # Panics
    /// If an entry does not follow from the one before it, or is not in memory.
    #[must_use]
    pub fn fold(mut self, upto: Index) -> State {
        self.log.drop_others();
        assert_eq!(self.log.before, self.log.snapshot().index, "all entries are in memory");
        for entry in self.log.entries.iter().take_while(|entry| entry.point.index <= upto) {
            let entry = Entry::decode(&entry.bytes).expect("the log holds entries");
            self.state.apply(entry).expect("an entry follows from the ones before it");
        }
        self.state
    }

    pub(super) fn finish(self) -> Recovered {
        let Self { state, mut log } = self;
        log.drop_others();
        let mut tail = Tail::new(log.before);
        log.entries.into_iter().for_each(|entry| tail.push(entry, None));
        Recovered { state, promised: log.promised, table: log.table, tail }
    }
}

/// Returns the last entry that a state covers.
fn snapshot(state: &State) -> LogPoint {
    let position = state.position();
    LogPoint { epoch: position.epoch, index: position.index }
}
