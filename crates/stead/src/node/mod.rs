//! A node: the threads that run shards, log, checkpoints and tasks, and the handle to them.

mod builder;
mod calls;
mod checks;
mod dead_letters;
pub(crate) mod inbox;
mod listed;
mod log;
pub(crate) mod memory;
mod open;
mod processes;
pub(crate) mod queries;
mod ready;
mod snapshots;
pub(crate) mod stable;
mod status;
mod tasks;
pub(crate) mod unended;
pub(crate) mod watchdog;
mod worker;

pub use builder::{CheckpointOptions, NodeBuilder, ServiceOptions};
pub use checks::CheckStatus;
pub use dead_letters::{DeadLetterCursor, DeadLetterPage};
pub(crate) use open::CHECKPOINTS;
pub use processes::{NoCursor, ProcessCursor, ProcessDetail, ProcessInfo, ProcessPage, TimerStatus};
pub use queries::StuckQuery;
pub use ready::NotReady;
pub use snapshots::{CheckpointFailure, CheckpointInfo, CheckpointReport, FailedCheck, SkippedCheck};
pub use stable::{CopyReport, CopyStatus};
pub use status::{
    ClockStatus, DeadLetterInfo, LogStatus, Metrics, RecoveryReport, ServiceMetrics, ServiceStatus,
    ShardStatus, Status, TaskStatus,
};

use crate::client::{BlockingClient, Client, block_on};
use crate::cut::Cut;
use crate::error::RawError;
use crate::events::{self, LAST_WORDS};
use crate::offline::Trails;
use crate::panics;
use crate::registry::Registry;
use builder::Wall;
use checks::Checks;
use inbox::{Command, Inbox};
use listed::Listed;
use log::{LogQueue, PreparerSignal};
pub use memory::MemoryStatus;
use memory::{Memory, MemoryLimits};
use open::{Group, Member};
use queries::QueryQueue;
use snapshots::{Event, SnapshotQueue, Wanted};
use stable::{AskedCopy, Copies};
use status::Counters;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::ThreadId;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stead_core::ids::{Colour, Epoch, NodeId, ShardId, Time};
use stead_core::shard::{Input, Refusal, Shard};
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::{Grant, Trials};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::collect::delete_checkpoint;
use stead_store::checkpoint::manifest::{CheckResult, read_manifest};
use stead_store::checkpoint::store::BlobStore;
use stead_store::checkpoint::verify::{Report, ServiceCheck, verify_checkpoint};
use stead_store::data_dir::DataDir;
use stead_store::wal::WalReader;
use tasks::TaskQueue;
use tokio::sync::{oneshot, watch};
use watchdog::Watchdog;

/// How long status and the like wait for a worker that is held by a handler.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// A running node. Clones are handles to the same one; when the last is dropped, the node is shut down.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Member>>,
    own_threads: Mutex<Vec<ThreadId>>,
    /// Held by whoever ends the node: a second one waits for it.
    ending: Mutex<()>,
    /// Owned until the last thread has ended.
    data_dir: Mutex<Option<DataDir>>,
    store: Arc<dyn BlobStore>,
    log: WalReader,
    /// Where readings of the log have ended.
    trails: Trails,
    listed: Mutex<Listed>,
    recovery: RecoveryReport,
    opened: Instant,
    /// How long a shutdown waits for steps of tasks.
    shutdown_timeout: Duration,
}

/// What all threads and clients of a node share.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) registry: Registry,
    pub(crate) topology: Arc<Topology>,
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) clock: Clock,
    pub(crate) log: LogQueue,
    pub(crate) preparer: PreparerSignal,
    pub(crate) tasks: TaskQueue,
    pub(crate) queries: Arc<QueryQueue>,
    /// The turns of shards that try what the last life may have met. Rarely used: its lock is no matter.
    trials: Mutex<Trials>,
    pub(crate) snapshots: SnapshotQueue,
    pub(crate) copies: Copies,
    pub(crate) checks: Checks,
    pub(crate) watchdog: Watchdog,
    pub(crate) counters: Counters,
    pub(crate) memory: Arc<Memory>,
    pub(crate) workers_running: AtomicUsize,
    /// Turns that a thread spins before it sleeps, for waking it takes long.
    pub(crate) spins_idle: u32,
    pub(crate) spins_waiting: u32,
    pub(crate) spins_log: u32,
    life: AtomicU8,
    failure: OnceLock<String>,
    failed: watch::Sender<bool>,
    active: AtomicU32,
    all_active: (Mutex<()>, Condvar),
}

/// The stages of a node's life.
mod life {
    pub(super) const RUNS: u8 = 0;
    /// Takes no more calls, and commits what it has taken.
    pub(super) const STOPS: u8 = 1;
    /// All threads have ended or are about to.
    pub(super) const ENDED: u8 = 2;
    /// Abandoned as by a crash.
    pub(super) const KILLED: u8 = 3;
}

/// The node's two clocks.
pub(crate) struct Clock {
    begun: Time,
    start: Instant,
    wall: Wall,
}

impl Clock {
    pub(crate) fn new(wall: Wall) -> Self {
        Self { begun: wall(), start: Instant::now(), wall }
    }

    /// Steady time: the wall clock at the start, carried on by the monotonic one. It neither jumps nor goes back.
    pub(crate) fn now(&self) -> Time {
        self.begun.plus_micros(self.start.elapsed().as_micros() as u64)
    }

    /// The wall clock, which may jump.
    pub(crate) fn wall(&self) -> Time {
        (self.wall)()
    }
}

pub(crate) fn system_time() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

impl Shared {
    fn new(
        registry: Registry,
        topology: Arc<Topology>,
        workers: usize,
        epoch: Epoch,
        clock: Clock,
        copies: Copies,
        memory: MemoryLimits,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (snapshots, events) = SnapshotQueue::new();
        let services = topology.services().len();
        let shared = Self {
            node: NodeId(1),
            epoch,
            registry,
            topology,
            inboxes: (0..workers).map(|_| Inbox::new()).collect(),
            clock,
            log: LogQueue::new(),
            preparer: PreparerSignal::new(),
            tasks: TaskQueue::default(),
            queries: Arc::new(QueryQueue::new(services)),
            trials: Mutex::default(),
            snapshots,
            copies,
            checks: Checks::default(),
            watchdog: Watchdog::new(),
            counters: Counters::new(services),
            memory: Arc::new(Memory::new(memory)),
            workers_running: AtomicUsize::new(workers),
            spins_idle: 100,
            spins_waiting: 1000,
            spins_log: 20,
            life: AtomicU8::new(life::RUNS),
            failure: OnceLock::new(),
            failed: watch::Sender::new(false),
            active: AtomicU32::new(0),
            all_active: (Mutex::new(()), Condvar::new()),
        };
        (shared, events)
    }

    /// Which worker has a shard.
    pub(crate) fn worker_of(&self, shard: ShardId) -> usize {
        shard.0 as usize % self.inboxes.len()
    }

    /// Whether causes that may have ended the last life are still tried, and all else is held.
    pub(crate) fn is_trying(&self) -> bool {
        self.trials.lock().unwrap_or_else(PoisonError::into_inner).is_held()
    }

    /// Asks for a turn, or ends one, and carries the turn that follows to its shard.
    pub(crate) fn trials(&self, change: impl FnOnce(&mut Trials) -> Option<Grant>) {
        // Until the grant is in its inbox: a yield that overtook its turn would be lost.
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        match change(&mut trials) {
            None => {}
            Some(Grant::Turn(shard, lane)) => {
                self.inboxes[self.worker_of(shard)].push_inputs(&mut vec![(shard, Input::Turn(lane))]);
            }
            Some(Grant::Yield(shard)) => {
                self.inboxes[self.worker_of(shard)].push_inputs(&mut vec![(shard, Input::Yield)]);
            }
            Some(Grant::Open) => {
                for inbox in &self.inboxes {
                    inbox.push(Command::every(Input::Open));
                }
            }
        }
    }

    /// A client's command for a shard.
    pub(crate) fn tell(&self, shard: ShardId, command: Command) -> Result<(), RawError> {
        if self.life.load(Ordering::Relaxed) != life::RUNS || self.failure.get().is_some() {
            return Err(self.end_reason());
        }
        let bytes = command.request_bytes();
        if bytes > 0 {
            if !self.memory.takes(command.only_reads()) {
                let retry_after_ms = Shard::RETRY_AFTER_MS;
                return Err(RawError::Refused(Refusal::Overloaded { retry_after_ms }));
            }
            self.memory.change([0, 0, bytes as i64]);
        }
        self.inboxes[self.worker_of(shard)].push(command);
        Ok(())
    }

    /// Whether threads must end at once, and leave undone what is not done.
    pub(crate) fn is_over(&self) -> bool {
        self.life.load(Ordering::Relaxed) == life::KILLED || self.failure.get().is_some()
    }

    /// Whether the node is being shut down.
    pub(crate) fn is_stopping(&self) -> bool {
        self.life.load(Ordering::Relaxed) == life::STOPS
    }

    /// Whether the node has ended in any way.
    pub(crate) fn is_ended(&self) -> bool {
        self.life.load(Ordering::Relaxed) >= life::ENDED || self.failure.get().is_some()
    }

    pub(crate) fn end_reason(&self) -> RawError {
        match self.failure.get() {
            Some(reason) => RawError::NodeFailed(reason.clone()),
            None => RawError::Stopped,
        }
    }

    /// A fatal error: the node takes and answers nothing any more.
    pub(crate) fn fail(&self, reason: String) {
        let text = format!("the node failed: {reason}");
        let _ = self.failure.set(reason);
        self.failed.send_replace(true);
        self.wake_all();
        events::error(text);
    }

    fn wake_all(&self) {
        for inbox in &self.inboxes {
            // A worker that panicked does not do so, and what waits in its inbox has callers.
            inbox.close();
            inbox.wake();
        }
        self.log.stop();
        self.preparer.wake();
        self.tasks.stop();
        self.queries.stop();
        self.snapshots.stop();
        self.copies.stop();
        self.checks.stop();
        let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.all_active.1.notify_all();
    }

    pub(crate) fn shard_is_active(&self) {
        if self.active.fetch_add(1, Ordering::SeqCst) + 1 == self.topology.shard_count() {
            let _held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.all_active.1.notify_all();
        }
    }

    fn await_active(&self) -> Result<(), String> {
        let mut held = self.all_active.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reason) = self.failure.get() {
                return Err(reason.clone());
            }
            if self.active.load(Ordering::SeqCst) >= self.topology.shard_count() {
                return Ok(());
            }
            held = self.all_active.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Node {
    /// Begins to make up a node with its data in a directory, which is created if it does not exist.
    pub fn builder(data_dir: impl Into<PathBuf>) -> NodeBuilder {
        NodeBuilder::new(data_dir.into())
    }

    /// A client for async code.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(Arc::clone(&self.0.shared))
    }

    /// A client for code that may block.
    #[must_use]
    pub fn blocking_client(&self) -> BlockingClient {
        BlockingClient::new(self.client())
    }

    /// The services and their shards.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.0.shared.topology
    }

    #[cfg(feature = "http")]
    pub(crate) fn registry(&self) -> &Registry {
        &self.0.shared.registry
    }

    pub(crate) fn log(&self) -> &WalReader {
        &self.0.log
    }

    pub(crate) fn trails(&self) -> &Trails {
        &self.0.trails
    }

    /// How the last start went.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.0.recovery
    }

    /// How the node stands. Waits up to half a second for workers that are held by a handler.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.0.shared;
        let (to, from) = mpsc::channel();
        for inbox in &shared.inboxes {
            inbox.push(Command::Status { to: to.clone(), taken: Vec::new() });
        }
        drop(to);
        let until = Instant::now() + LOOK_TIMEOUT;
        let mut shards: Vec<ShardStatus> = Vec::new();
        while let Ok(worker) = from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            shards.extend(worker.shards);
        }
        shards.sort_by_key(|shard| shard.shard);
        let services = shared.topology.services().iter().map(|service| ServiceStatus {
            name: service.name.clone(),
            first_shard: service.first.0,
            shards: service.shards,
            registered: shared.registry.has_service(&service.name),
        });
        let some = |number: u64| (number > 0).then_some(number);
        Status {
            epoch: shared.epoch.0,
            incarnation: shared.topology.incarnation.0,
            uptime: self.0.opened.elapsed(),
            full: shared.log.is_full(),
            failure: shared.failure.get().cloned(),
            services: services.collect(),
            clock: ClockStatus::of(&shards),
            shards,
            log: shared.log.status(),
            memory: shared.memory.status(),
            checkpoint: some(shared.snapshots.newest.load(Ordering::Relaxed)),
            checkpoint_running: some(shared.snapshots.running.load(Ordering::Relaxed)),
            checkpoint_check: shared.checks.last(),
            checkpoint_copies: shared.copies.status(),
            stuck_queries: shared.queries.stuck(&shared.topology),
        }
    }

    /// The last checkpoint that was checked, if a service's check failed there; also checks that are not run any more, for they
    /// did not end [`ServiceOptions::attempts_max`] times in a row.
    #[must_use]
    pub fn failed_check(&self) -> Option<CheckStatus> {
        self.0.shared.checks.last().filter(|last| last.check == CheckOutcome::Failed)
    }

    /// What the node has counted since it was opened.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let shared = &self.0.shared;
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

    /// What the node has counted for each service since it was opened.
    #[must_use]
    pub fn service_metrics(&self) -> Vec<ServiceMetrics> {
        let shared = &self.0.shared;
        let services = shared.topology.services().iter().zip(&shared.counters.services);
        services.map(|(service, counters)| counters.snapshot(&service.name)).collect()
    }

    /// Resolves with the reason when the node has a fatal error: the process should end then, and be started again.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.shared.failed.subscribe();
        // The sender lives as long as the node.
        let _ = failed.wait_for(|failed| *failed).await;
        self.0.shared.failure.get().cloned().unwrap_or_default()
    }

    /// Takes a checkpoint now, runs the services' checks over it and returns what they found:
    /// [`CheckpointReport::check`]. A check that fails does not undo the checkpoint.
    ///
    /// # Errors
    /// [`CheckpointFailure`]; the work goes on.
    pub async fn checkpoint(&self) -> Result<CheckpointReport, CheckpointFailure> {
        self.take_checkpoint(true).await
    }

    /// Takes a checkpoint now without the services' checks, which read all of it.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub async fn checkpoint_unchecked(&self) -> Result<CheckpointReport, CheckpointFailure> {
        self.take_checkpoint(false).await
    }

    async fn take_checkpoint(&self, checked: bool) -> Result<CheckpointReport, CheckpointFailure> {
        let (reply, from) = oneshot::channel();
        self.0.shared.snapshots.send(Event::Wanted(Wanted { reply, checked }));
        let stopped = |_| Err(CheckpointFailure::Stopped(self.0.shared.end_reason().to_string()));
        from.await.unwrap_or_else(stopped)
    }

    /// As [`Self::checkpoint`], for code that may block.
    ///
    /// # Errors
    /// As there.
    pub fn checkpoint_blocking(&self) -> Result<CheckpointReport, CheckpointFailure> {
        block_on(self.checkpoint())
    }

    /// Changes the time between the beginnings of two checkpoints, for the rest of this node's life; `None`: only
    /// when asked for.
    pub fn set_checkpoint_interval(&self, interval: Option<Duration>) {
        self.0.shared.snapshots.send(Event::Interval(interval));
    }

    /// The checkpoints that are stored, the oldest first. Lists files, and reads each manifest once in the node's life.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`].
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, CheckpointFailure> {
        let mut found = self.listed().all(&*self.0.store)?;
        self.0.shared.checks.unended.note(&mut found);
        Ok(found)
    }

    /// A checkpoint, if it is complete. Lists files.
    #[cfg(feature = "http")]
    pub(crate) fn checkpoint_info(&self, number: u64) -> Result<Option<CheckpointInfo>, CheckpointFailure> {
        let mut found: Vec<_> = self.listed().one(&*self.0.store, Colour(number))?.into_iter().collect();
        self.0.shared.checks.unended.note(&mut found);
        Ok(found.pop())
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.0.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Recomputes a checkpoint from what is stored, and runs the services' checks. Reads all of it. It also runs checks that
    /// were given up because they did not end; one that ends is trusted again.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if it is damaged. What is whole but inconsistent is in the report.
    pub fn verify(&self, number: u64) -> Result<Report, CheckpointFailure> {
        let shared = &self.0.shared;
        let _pin = shared.snapshots.pin(Colour(number));
        let (store, unended) = (&*self.0.store, &shared.checks.unended);
        let mut check = |service: &str, cut: &Cut<'_>| {
            // On a full disk it runs without a mark: a person waits for it.
            let mark = unended.begin(shared, store, Colour(number), service);
            let found = shared.registry.check_service(service, cut);
            if let Ok(mark) = mark {
                unended.end(shared, store, mark, service);
            }
            found
        };
        let report = verify_stored(store, number, &shared.registry, &mut check)?;
        // A checkpoint that was passed over is checked now.
        if report.check != CheckOutcome::NotChecked && !shared.is_ended() {
            let result = |check: &ServiceCheck| CheckResult {
                service: check.service.clone(),
                failure: check.failure.clone(),
                skipped: (check.outcome == CheckOutcome::NotChecked)
                    .then(|| "the service's code was not there".to_owned()),
            };
            let results = report.checks.iter().map(result).collect();
            let (incarnation, checked) = (shared.topology.incarnation, shared.clock.now());
            Checked { incarnation, number: Colour(number), checked, results }.store(store)?;
        }
        Ok(report)
    }

    /// Deletes a checkpoint, unless it is the newest one, which a restart needs.
    ///
    /// # Errors
    /// [`CheckpointFailure`].
    pub fn delete_checkpoint(&self, number: u64) -> Result<(), CheckpointFailure> {
        Ok(delete_checkpoint(&*self.0.store, Colour(number), &self.0.shared.snapshots.pinned())?)
    }

    /// Copies a checkpoint to `file:///directory` or `s3://bucket/prefix`; what is there already is not sent again. S3 takes
    /// its region, endpoint and credentials from the usual variables `AWS_…`. The target is this cluster's alone, and
    /// copies to the address of [`CheckpointOptions::copy_to`] fall under its retention. It
    /// goes on if this future is dropped. One copy runs at a time, and up to 16 run or wait.
    ///
    /// # Errors
    /// [`CheckpointFailure`], which is [`CheckpointFailure::Busy`] for one more; the checkpoint does not exist at the target
    /// then, and a repetition goes on from there.
    pub async fn copy_checkpoint(&self, number: u64, to: &str) -> Result<CopyReport, CheckpointFailure> {
        let asked = AskedCopy::admit(&self.0.shared)?;
        let (store, to) = (Arc::clone(&self.0.store), to.to_owned());
        let (reply, from) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("stead-copy".to_owned()).spawn(move || {
            let copied = panics::catch_own(|| asked.run(&*store, number, &to));
            drop(asked);
            // The caller may have given up.
            let _ = reply.send(copied.unwrap_or_else(|panic| {
                let text = format!("the copy panicked; this is a bug in Stead: {panic}");
                Err(CheckpointFailure::Store(text))
            }));
        });
        spawned.map_err(|error| {
            CheckpointFailure::Store(format!("cannot start a thread to copy checkpoint {number}: {error}"))
        })?;
        from.await.unwrap_or_else(|_| Err(CheckpointFailure::Stopped(self.0.shared.end_reason().to_string())))
    }

    /// As [`Self::copy_checkpoint`], for code that may block.
    ///
    /// # Errors
    /// As there.
    pub fn copy_checkpoint_blocking(&self, number: u64, to: &str) -> Result<CopyReport, CheckpointFailure> {
        block_on(self.copy_checkpoint(number, to))
    }

    /// Shuts the node down: takes no more calls, waits for running steps of tasks, commits and answers what was taken,
    /// and ends all threads. What else is under way waits in the log for the next start. A query that was given up is not
    /// waited for, nor any that still runs after [`NodeBuilder::shutdown_timeout`]: it ends with the program.
    ///
    /// A step that still runs after [`NodeBuilder::shutdown_timeout`] is left: its outcome is dropped, and the step is
    /// repeated after the next start. Its thread ends with the step, or with the program.
    pub fn shutdown(&self) {
        self.shutdown_within(self.0.shutdown_timeout);
    }

    /// The time that [`Self::shutdown`] gives steps that run.
    #[cfg(feature = "http")]
    pub(crate) fn shutdown_timeout(&self) -> Duration {
        self.0.shutdown_timeout
    }

    /// As [`Self::shutdown`], with another time limit for steps that run.
    pub fn shutdown_within(&self, limit: Duration) {
        self.0.shutdown(limit);
    }

    /// Ends the node as a crash would: nothing is waited for, nothing more is written. For tests.
    pub fn kill(&self) {
        self.0.kill();
    }
}

/// The complete checkpoints of a store, the oldest first.
pub(crate) fn list_checkpoints(store: &dyn BlobStore) -> Result<Vec<CheckpointInfo>, CheckpointError> {
    Listed::default().all(store)
}

/// Verifies a stored checkpoint with the checks of the services in `registry`, which `check` runs.
pub(crate) fn verify_stored(
    store: &dyn BlobStore,
    number: u64,
    registry: &Registry,
    check: &mut dyn FnMut(&str, &Cut<'_>) -> Result<(), String>,
) -> Result<Report, CheckpointError> {
    let manifest = read_manifest(store, Colour(number))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut check =
        |topology: &Topology, states: &[State]| snapshots::check_states(topology, states, registry, check);
    verify_checkpoint(store, &manifest, threads, &mut check)
}

impl Inner {
    fn with_recovery(mut self, recovery: RecoveryReport) -> Self {
        self.recovery = recovery;
        self
    }

    fn shutdown(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Some(_ending) = self.begin_end() else { return };
        let shared = &self.shared;
        let begun = shared.life.compare_exchange(life::RUNS, life::STOPS, Ordering::SeqCst, Ordering::SeqCst);
        if begun.is_ok() {
            shared.tasks.stop();
            self.join_tasks(self.deadline_of_steps(deadline));
            shared.snapshots.stop();
            shared.copies.stop();
            shared.checks.stop();
            self.join(Group::Checkpoints);
            for inbox in &shared.inboxes {
                inbox.push(Command::Stop);
            }
            self.join(Group::Workers);
            // Queries that the workers let go last are answered too.
            shared.queries.close(deadline.max(Instant::now() + queries::LAST_ANSWERS));
            shared.log.stop();
            // A kill that came meanwhile stays one.
            let _ =
                shared.life.compare_exchange(life::STOPS, life::ENDED, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.end(self.deadline_of_steps(deadline));
    }

    /// No outcome of a step counts after a fatal error.
    fn deadline_of_steps(&self, deadline: Instant) -> Instant {
        if self.shared.failure.get().is_some() { Instant::now() } else { deadline }
    }

    fn kill(&self) {
        self.shared.life.store(life::KILLED, Ordering::SeqCst);
        // Also for a shutdown that waits.
        self.shared.wake_all();
        if let Some(_ending) = self.begin_end() {
            self.end(Instant::now() + self.shutdown_timeout);
        }
    }

    /// Waits for another that ends the node. `None` on a thread of the node itself, if there is one: that one waits for it.
    fn begin_end(&self) -> Option<MutexGuard<'_, ()>> {
        let here = std::thread::current().id();
        let is_own = self.own_threads.lock().unwrap_or_else(PoisonError::into_inner).contains(&here);
        if is_own || self.shared.queries.is_own_thread(here) {
            return self.ending.try_lock().ok();
        }
        Some(self.ending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends what is left and gives the data directory up.
    fn end(&self, deadline: Instant) {
        self.shared.wake_all();
        self.join_tasks(deadline);
        self.shared.queries.await_end();
        for group in [Group::Queries, Group::Checkpoints, Group::Workers, Group::Log] {
            self.join(group);
        }
        // Only now: a handler that runs for ever would be waited for as long.
        self.shared.watchdog.stop();
        self.join(Group::Watchdog);
        self.shared.copies.await_end();
        self.shared.checks.await_end();
        let data_dir = self.data_dir.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut data_dir) = data_dir
            && self.shared.life.load(Ordering::SeqCst) == life::ENDED
            && self.shared.failure.get().is_none()
        {
            self.shared.checks.unended.forgive(&*self.store);
            if let Err(error) = data_dir.update(|meta| meta.clean = true) {
                // The next start then suspects what waits, which costs a little time and nothing else.
                events::warn(format_args!("cannot record the clean shutdown: {error}"));
            }
        }
        events::flush(LAST_WORDS);
    }

    /// Waits for the steps of tasks until the deadline. Threads whose step has not ended by then are left to
    /// themselves: nothing that they bring is taken any more.
    fn join_tasks(&self, deadline: Instant) {
        let left = self.shared.tasks.await_end(deadline);
        if left.is_empty() {
            return self.join(Group::Tasks);
        }
        for step in &left {
            events::warn(format_args!(
                "{step} is still running and is abandoned; it is repeated after the next start"
            ));
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(group, _)| *group != Group::Tasks);
    }

    fn join(&self, group: Group) {
        loop {
            let thread = {
                let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(at) = threads.iter().position(|(other, _)| *other == group) else { return };
                threads.swap_remove(at).1
            };
            // A handler may hold the last handle; its own thread can't be waited for.
            if thread.thread().id() != std::thread::current().id() {
                // A panic was caught in the thread and told.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown(self.shutdown_timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::ids::Incarnation;
    use stead_store::checkpoint::copy::Owner;

    /// The state that the threads of a node without services share, for tests of one of them.
    pub(super) fn shared() -> Arc<Shared> {
        let owner = Owner { cluster: 1, incarnation: Incarnation(1) };
        let clock = Clock::new(Box::new(system_time));
        let topology = Arc::new(Topology::new(Incarnation(1)));
        let (copies, limits) = (Copies::new(owner, 0, None), MemoryLimits::default());
        Arc::new(Shared::new(Registry::default(), topology, 1, Epoch(1), clock, copies, limits).0)
    }
}
