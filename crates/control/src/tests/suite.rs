//! openraft's suite for storages, over this crate's files.

use super::ledger::Ledger;
use super::{DIR, open_log};
use crate::store::{Ending, LogStore, StateStore};
use crate::types::{Entry, LogId, StorageError, Types, Vote};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;
use stead_store::sim_disk::SimDisk;

/// A log that may begin anywhere: the suite appends to the middle of nothing and below what was purged, which the log
/// itself refuses.
struct AnyBeginning(LogStore);

impl RaftLogReader<Types> for AnyBeginning {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<Types> for AnyBeginning {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.0.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.0.save_vote(vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0.read_vote().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.0.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.0.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        if let Some(first) = entries.first() {
            self.0.log().begin_at(first.log_id.index);
        }
        self.0.append(entries, callback).await
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.0.truncate(since).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.0.purge(upto).await
    }
}

struct Builder;

impl StoreBuilder<Types, AnyBeginning, StateStore<Ledger>> for Builder {
    async fn build(&self) -> Result<((), AnyBeginning, StateStore<Ledger>), StorageError> {
        let disk = Arc::new(SimDisk::new(1));
        let log = open_log(disk.clone(), true).unwrap();
        let state =
            StateStore::open(disk, DIR, &log, Ledger::default(), Arc::new(drop), Ending::default()).unwrap();
        Ok(((), AnyBeginning(LogStore::new(log, Ending::default())), state))
    }
}

// It takes seconds: some of its cases sleep for one.
#[test]
fn openrafts_own_suite_holds() {
    Suite::test_all(Builder).unwrap();
}
