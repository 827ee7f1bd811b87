//! One life of a node: from its opening to its end.

#![expect(clippy::disallowed_methods, reason = "a shutdown waits for threads")]

use crate::checkpoint::{CheckpointFailure, CheckpointInfo, CheckpointReport, Event};
use crate::copies::CopyReply;
use crate::data::Data;
use crate::drive::drive;
use crate::env::{Env, Program};
use crate::events::{self, LAST_WORDS};
use crate::inbox::Command;
use crate::lifecycle::{EndOrder, Lifecycle};
use crate::listed::Listed;
use crate::metrics::{Metrics, ServiceMetrics};
use crate::ready::NotReady;
use crate::reply::Reply;
use crate::roster::PartId;
use crate::shared::{LOOK_TIMEOUT, Shared, stage};
use crate::shutdown::EndPart;
use crate::status::{
    CheckStatus, ClockStatus, RecoveryReport, ServiceStatus, ShardStatus, Status, WorkerStatus,
};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use stead_core::ids::{CheckpointNumber, Time};
use stead_store::checkpoint::load::Loaders;
use stead_store::checkpoint::store::BlobStore;
use stead_store::wal::WalReader;

/// One life of a node. When it is dropped the node is shut down.
pub struct Life<E: Env> {
    pub(crate) shared: Arc<Shared<E>>,
    /// The threads of its parts.
    pub(crate) threads: Mutex<Vec<(PartId, JoinHandle<()>)>>,
    /// Decides who ends the node.
    pub(crate) lifecycle: Mutex<Lifecycle>,
    /// Notified when an end is over.
    pub(crate) end_is_over: Condvar,
    pub(crate) data: Arc<Data>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) log: WalReader,
    pub(crate) listed: Mutex<Listed>,
    pub(crate) recovery: RecoveryReport,
    pub(crate) opened: Instant,
    /// The time for which a shutdown waits for steps of tasks.
    pub(crate) shutdown_timeout: Duration,
    /// The loaders of a checkpoint that is verified.
    pub(crate) readers: Loaders,
    /// The address at which it serves clients.
    pub(crate) native: Option<SocketAddr>,
}

/// The status of the shards, which their workers answer one by one.
pub struct AskedStatus {
    from: mpsc::Receiver<WorkerStatus>,
    shards: Vec<ShardStatus>,
}

impl AskedStatus {
    /// Waits for the workers, for a limited time. Returns the shards of those that have answered.
    fn wait(mut self, limit: Duration) -> Vec<ShardStatus> {
        let until = Instant::now() + limit;
        while let Ok(worker) = self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.shards.extend(worker.shards);
        }
        self.shards
    }

    /// Takes the answers that have come. Returns the shards once all workers have answered or ended.
    pub fn take(&mut self) -> Option<Vec<ShardStatus>> {
        loop {
            match self.from.try_recv() {
                Ok(worker) => self.shards.extend(worker.shards),
                Err(mpsc::TryRecvError::Empty) => return None,
                Err(mpsc::TryRecvError::Disconnected) => return Some(std::mem::take(&mut self.shards)),
            }
        }
    }
}

impl<E: Env> Shared<E> {
    /// Asks the workers for the status of their shards.
    #[must_use]
    pub fn ask_status(&self) -> AskedStatus {
        let (to, from) = mpsc::channel();
        for inbox in &self.inboxes {
            inbox.push(Command::Status { to: to.clone(), taken: Vec::new() });
        }
        AskedStatus { from, shards: Vec::new() }
    }
}

impl<E: Env> Life<E> {
    /// Returns the state that the threads and the clients share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared<E>> {
        &self.shared
    }

    /// Returns the log, for readers.
    #[must_use]
    pub fn log(&self) -> &WalReader {
        &self.log
    }

    /// Returns the address at which it serves clients by the native protocol, if it does.
    #[must_use]
    pub fn native_address(&self) -> Option<SocketAddr> {
        self.native
    }

    /// Returns the report of the start.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Returns the time that a shutdown gives to running steps, from [`Options`](crate::Options).
    #[must_use]
    pub fn shutdown_timeout(&self) -> Duration {
        self.shutdown_timeout
    }

    /// Whether the node serves.
    ///
    /// # Errors
    /// [`NotReady`]: the reason for which it does not.
    pub fn readiness(&self) -> Result<(), NotReady> {
        self.shared.readiness(self.shared.now())
    }

    /// Returns the state of the node. Waits up to [`LOOK_TIMEOUT`] for workers that are held by a handler.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status_of(self.ask_status().wait(LOOK_TIMEOUT))
    }

    /// Asks the workers for the status of their shards.
    #[must_use]
    pub fn ask_status(&self) -> AskedStatus {
        self.shared.ask_status()
    }

    /// The state of the node, with that of the shards that have answered.
    #[must_use]
    pub fn status_of(&self, mut shards: Vec<ShardStatus>) -> Status {
        let shared = &self.shared;
        shards.sort_by_key(|shard| shard.shard);
        let services = shared.topology.services().iter().map(|service| ServiceStatus {
            name: service.name.clone(),
            first_shard: service.first.0,
            shards: service.shards,
            registered: shared.program.has_service(&service.name),
        });
        let some = |number: u64| (number > 0).then_some(number);
        Status {
            lives: shared.lives,
            incarnation: shared.topology.incarnation.0,
            uptime: self.opened.elapsed(),
            full: shared.log.is_full(),
            failure: shared.failure.get().cloned(),
            services: services.collect(),
            clock: ClockStatus::of(&shards),
            shards,
            shards_not_here: shared.not_here().collect(),
            log: shared.log.status(),
            memory: shared.memory.status(),
            checkpoint: some(shared.snapshots.newest.load(Ordering::Relaxed)),
            checkpoint_running: some(shared.snapshots.running.load(Ordering::Relaxed)),
            checkpoint_check: shared.checks.last(),
            checkpoint_copies: shared.copies.status(),
            stuck_queries: shared.queries.stuck(&shared.topology, shared.now()),
        }
    }

    /// Returns the last checkpoint with a failed or given-up check or, if there is none, the last one whose checks ended.
    #[must_use]
    pub fn last_check(&self) -> Option<CheckStatus> {
        self.shared.checks.last()
    }

    /// Returns the node's metrics, counted since it was opened.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let shared = &self.shared;
        let [uncommitted_bytes, outbox_bytes, request_bytes] = shared.memory.waiting();
        let query_bytes = shared.memory.queries();
        let (queries_waiting, queries_stuck) = shared.queries.counts();
        Metrics {
            uncommitted_bytes,
            outbox_bytes,
            request_bytes,
            query_bytes,
            stuck_query_bytes: shared.memory.stuck_queries(),
            queries_waiting,
            queries_stuck,
            ..shared.counters.snapshot()
        }
    }

    /// Counts for each service since the node was opened.
    #[must_use]
    pub fn service_metrics(&self) -> Vec<ServiceMetrics> {
        let shared = &self.shared;
        let services = shared.topology.services().iter().zip(&shared.counters.services);
        services.map(|(service, counters)| counters.snapshot(&service.name)).collect()
    }

    /// Takes a checkpoint now, with the services' checks or without. The reply is dropped if the node has ended.
    pub fn checkpoint(
        &self,
        checked: bool,
        reply: Box<dyn Reply<Result<CheckpointReport, CheckpointFailure>>>,
    ) {
        self.shared.checkpoint(checked, reply);
    }

    /// Sets the time between the beginnings of two checkpoints; `None`: only when asked for.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if this node takes no checkpoints, because shards of it have replicas on other nodes.
    pub fn set_checkpoint_interval(&self, interval: Option<Duration>) -> Result<(), CheckpointFailure> {
        if interval.is_some() {
            self.shared.check_takes_checkpoints()?;
        }
        self.shared.snapshots.send(Event::Interval(interval));
        Ok(())
    }

    /// Returns the stored checkpoints, the oldest first. Lists files, and reads each manifest once in the node's life.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`].
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, CheckpointFailure> {
        let mut found = self.listed().all(&*self.store)?;
        self.shared.checks.marks.note(&mut found);
        Ok(found)
    }

    /// Returns a checkpoint; `None` if it is not complete. Lists files.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`].
    pub fn checkpoint_info(&self, number: u64) -> Result<Option<CheckpointInfo>, CheckpointFailure> {
        let mut found: Vec<_> =
            self.listed().one(&*self.store, CheckpointNumber(number))?.into_iter().collect();
        self.shared.checks.marks.note(&mut found);
        Ok(found.pop())
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests a copy of a checkpoint, as [`Shared::copy_checkpoint`].
    ///
    /// # Errors
    /// As [`Shared::copy_checkpoint`].
    pub fn copy_checkpoint(&self, number: u64, to: &str, reply: CopyReply) -> Result<(), CheckpointFailure> {
        self.shared.copy_checkpoint(number, to, reply)
    }

    /// Shuts the node down: takes no more calls, waits up to `limit` for running steps of tasks, commits and answers what
    /// was taken, ends all threads, and releases the data directory. Waits for another caller that ends the node. Called by one of
    /// the node's own threads, it waits neither for that thread nor for another caller, and the data are not marked as those of a
    /// life that ended in order: the code that calls it goes on.
    pub fn shutdown(&self, limit: Duration) {
        self.end_here(Ending::InOrder, limit);
    }

    /// Ends the node as a crash would: no work is finished, and nothing more is written. Users' code that runs is waited for, up
    /// to [`Self::shutdown_timeout`], also if a shutdown with more time has begun. For tests.
    pub fn kill(&self) {
        self.end_here(Ending::Kill, self.shutdown_timeout);
    }

    /// Ends the node on this thread, or waits for the one that does so.
    fn end_here(&self, ending: Ending, limit: Duration) {
        let by = self.shared.roster.part_on(thread::current().id());
        let until = self.shared.now().plus(limit.into());
        loop {
            match self.ask_end(ending, until, by) {
                (EndOrder::Begin, Some(part)) => return self.drive_end(part),
                (EndOrder::Wait, _) => self.await_end(),
                _ => return,
            }
        }
    }

    fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a part, whose turns begin with `run`. From the first one on the life has an end.
    ///
    /// # Errors
    /// That of `run`: the system has refused a thread. The part has then not begun.
    pub(crate) fn begin_part<T>(&self, id: PartId, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.lifecycle().begin();
        self.shared.begin_part(id, run)
    }

    /// Asks for the end of the node, which waits for users' code until a time. `by` is the part that asks, `None` for a caller from
    /// outside. Returns the caller's order, and for [`EndOrder::Begin`] the part that needs its turns.
    pub(crate) fn ask_end(
        &self,
        ending: Ending,
        until: Time,
        by: Option<PartId>,
    ) -> (EndOrder, Option<EndPart>) {
        if ending == Ending::Kill {
            // Also for an end that has begun.
            self.shared.kill(until);
        }
        let order = self.lifecycle().end(by);
        let part = match order {
            EndOrder::Begin => {
                self.shared.begin_end();
                Some(EndPart::new(&self.shared, Arc::clone(&self.data), until, by))
            }
            EndOrder::Abandon => {
                self.abandon();
                None
            }
            EndOrder::Wait | EndOrder::Nothing => None,
        };
        (order, part)
    }

    /// Waits until no other thread ends the node.
    fn await_end(&self) {
        let mut lifecycle = self.lifecycle();
        while lifecycle.is_ending() {
            lifecycle = self.end_is_over.wait(lifecycle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the end its turns on this thread, and waits for the threads of the other parts.
    fn drive_end(&self, mut part: EndPart) {
        let _over = EndOver(self);
        drive(&self.shared, &mut part).expect("the end of a node has no error");
        self.join();
        events::flush(LAST_WORDS);
        self.note_ended();
    }

    /// Notes that the node has ended: callers that wait for that go on.
    pub(crate) fn note_ended(&self) {
        self.lifecycle().note_ended();
        self.end_is_over.notify_all();
    }

    /// Abandons the life as a crash does: its data stay as they are.
    pub(crate) fn abandon(&self) {
        self.shared.stage.store(stage::KILLED, Ordering::SeqCst);
        self.data.release();
        self.note_ended();
    }

    /// Waits for the threads of the parts that have ended.
    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for (part, thread) in threads {
            // A handler may hold the last handle of the node; its own thread cannot be waited for.
            if !self.shared.roster.is_left(part) && thread.thread().id() != thread::current().id() {
                // A panic was caught in the thread and reported.
                let _ = thread.join();
            }
        }
    }
}

/// The two ways to end a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its work is finished, and its data are marked as those of a life that ended in order.
    InOrder,
    /// Its work is left undone, as by a crash.
    Kill,
}

/// Lets another caller end the node if this one panics before the end.
struct EndOver<'a, E: Env>(&'a Life<E>);

impl<E: Env> Drop for EndOver<'_, E> {
    fn drop(&mut self) {
        self.0.lifecycle().note_broken_off();
        self.0.end_is_over.notify_all();
    }
}

impl<E: Env> Drop for Life<E> {
    fn drop(&mut self) {
        if !self.lifecycle().has_ended() {
            self.shutdown(self.shutdown_timeout);
        }
    }
}
