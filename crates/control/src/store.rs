//! openraft's log storage and state machine over this crate's files.
//!
//! All of it runs on the plane's own thread, and writes there: a plane whose disk hangs answers nothing, so that the other
//! voters elect another leader. What finds no room waits for it.

use crate::fault::StorageFault;
use crate::log::Log;
use crate::machine::{Applied, Committed, Machine};
use crate::proposal::Reply;
use crate::snapshot;
use crate::types::{Entry, LogId, SnapshotData, SnapshotMeta, StorageError, StoredMembership, Types, Vote};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageIOError,
};
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_store::disk::Disk;

/// Time between two attempts to write for which there was no room.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of bytes of the entries of one request to another node, except for the first entry.
const REQUEST_BYTES_MAX: usize = 1 << 20;

pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, fault: &StorageFault) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::error(fault)).into()
}

/// Whether the plane ends, so that nothing waits for room any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending(Arc<AtomicBool>);

impl Ending {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits a moment after a fault, if it is for want of room.
    async fn wait_for_room(&self, fault: StorageFault) -> Result<(), StorageFault> {
        if !fault.is_full() || self.0.load(Ordering::Relaxed) {
            return Err(fault);
        }
        tokio::time::sleep(ROOM_PAUSE).await;
        Ok(())
    }
}

/// The log, as openraft uses it.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Arc<Mutex<Log>>,
    ending: Ending,
}

impl LogStore {
    pub(crate) fn new(log: Log, ending: Ending) -> Self {
        Self { log: Arc::new(Mutex::new(log)), ending }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        held(&self.log)
    }

    /// Runs a write until there is room for it.
    async fn write(&self, write: impl Fn(&mut Log) -> Result<(), StorageFault>) -> Result<(), StorageFault> {
        loop {
            let written = write(&mut self.log());
            match written {
                Ok(()) => return Ok(()),
                Err(fault) => self.ending.wait_for_room(fault).await?,
            }
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.log().entries(from, end, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        Ok(self.log().entries(start, end, REQUEST_BYTES_MAX))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let log = self.log();
        Ok(LogState { last_purged_log_id: log.purged(), last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.write(|log| log.save_vote(*vote)).await;
        written.map_err(|fault| failed(ErrorSubject::Vote, ErrorVerb::Write, &fault))
    }

    /// Returns the vote, but not that a majority granted it to this node: openraft would let it lead again without an
    /// election, and a read would miss what its former life had committed.
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let log = self.log();
        let is_own = |vote: &Vote| vote.leader_id.node_id == u64::from(log.node().0);
        Ok(log.vote().map(|vote| Vote { committed: vote.committed && !is_own(&vote), ..vote }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        if let Some(committed) = committed {
            self.log().note_committed(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let written = self.write(|log| log.append(&entries)).await;
        written.map_err(|fault| failed(ErrorSubject::Logs, ErrorVerb::Write, &fault))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.log().truncate(since.index);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let purged = self.log().purge(upto);
        purged.map_err(|fault| failed(ErrorSubject::Logs, ErrorVerb::Delete, &fault))
    }
}

struct Kept<M> {
    applied: Applied<M>,
    /// The durable snapshot.
    snapshot: Option<(SnapshotMeta, SnapshotData)>,
}

/// The state machine and its snapshot, as openraft uses them.
pub(crate) struct StateStore<M> {
    disk: Arc<dyn Disk>,
    dir: Arc<str>,
    kept: Arc<Mutex<Kept<M>>>,
    /// Receives each state that is committed.
    publish: Arc<dyn Fn(Committed<M>) + Send + Sync>,
    ending: Ending,
}

impl<M> Clone for StateStore<M> {
    fn clone(&self) -> Self {
        Self {
            disk: Arc::clone(&self.disk),
            dir: Arc::clone(&self.dir),
            kept: Arc::clone(&self.kept),
            publish: Arc::clone(&self.publish),
            ending: self.ending.clone(),
        }
    }
}

impl<M: Machine> StateStore<M> {
    /// Reads the snapshot in `dir`, or begins with `initial`. Checks that the log begins no later than the snapshot ends.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        log: &Log,
        initial: M,
        publish: Arc<dyn Fn(Committed<M>) + Send + Sync>,
        ending: Ending,
    ) -> Result<Self, StorageFault> {
        let path = snapshot::path(dir);
        let found = snapshot::read(&*disk, dir)?;
        let last = found.as_ref().and_then(|(meta, _)| meta.last_log_id);
        if log.purged() > last {
            let reason = format!("it ends before {} begins", log.path());
            return Err(match found {
                Some(_) => StorageFault::Damaged { path, offset: 0, reason },
                None => StorageFault::Lost { path },
            });
        }
        let kept = match found {
            None => Kept { applied: Applied::new(initial), snapshot: None },
            Some((meta, state)) => {
                let damaged = |reason| StorageFault::Damaged { path, offset: 0, reason };
                let applied = Applied::restore(&meta, &state).map_err(damaged)?;
                Kept { applied, snapshot: Some((meta, SnapshotData(Arc::new(state)))) }
            }
        };
        publish(kept.applied.committed());
        Ok(Self { disk, dir: dir.into(), kept: Arc::new(Mutex::new(kept)), publish, ending })
    }

    /// Stores a snapshot once there is room for it.
    async fn keep(&self, meta: &SnapshotMeta, state: &SnapshotData) -> Result<(), StorageError> {
        loop {
            let Err(fault) = snapshot::write(&*self.disk, &self.dir, meta, &state.0) else { return Ok(()) };
            let waited = self.ending.wait_for_room(fault).await;
            waited.map_err(|fault| failed(ErrorSubject::Snapshot(None), ErrorVerb::Write, &fault))?;
        }
    }

    fn current(kept: &Kept<M>) -> Option<Snapshot<Types>> {
        let (meta, state) = kept.snapshot.clone()?;
        Some(Snapshot { meta, snapshot: Box::new(state) })
    }
}

impl<M: Machine> RaftSnapshotBuilder<Types> for StateStore<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (meta, state) = held(&self.kept).applied.snapshot();
        let state = SnapshotData(Arc::new(state));
        self.keep(&meta, &state).await?;
        let mut kept = held(&self.kept);
        // One of a later state may have been installed while this one waited for room.
        if kept.snapshot.as_ref().is_none_or(|(other, _)| other.last_log_id <= meta.last_log_id) {
            kept.snapshot = Some((meta.clone(), state.clone()));
        }
        Ok(Snapshot { meta, snapshot: Box::new(state) })
    }
}

impl<M: Machine> RaftStateMachine<Types> for StateStore<M> {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let kept = held(&self.kept);
        Ok((kept.applied.last, kept.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut kept = held(&self.kept);
        let mut replies = Vec::new();
        for entry in entries {
            let id = entry.log_id;
            let applied = kept.applied.apply(entry);
            replies.push(applied.map_err(|reason| StorageIOError::apply(id, AnyError::error(reason)))?);
        }
        (self.publish)(kept.applied.committed());
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let invalid = |reason| StorageIOError::read_snapshot(None, AnyError::error(reason));
        let applied = Applied::restore(meta, &snapshot.0).map_err(invalid)?;
        self.keep(meta, &snapshot).await?;
        let mut kept = held(&self.kept);
        *kept = Kept { applied, snapshot: Some((meta.clone(), *snapshot)) };
        (self.publish)(kept.applied.committed());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        Ok(Self::current(&held(&self.kept)))
    }
}
