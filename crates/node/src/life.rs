//! One life of a node: from its opening to its end.

#![expect(clippy::disallowed_methods, reason = "a shutdown waits for threads")]

use crate::checkpoint::{CheckpointFailure, CheckpointInfo, CheckpointReport, Event};
use crate::copies::{AskedCopy, CopyReport};
use crate::env::{Env, Program, Reply};
use crate::events::{self, LAST_WORDS};
use crate::inbox::Command;
use crate::listed::{Listed, verify_stored};
use crate::metrics::{Metrics, ServiceMetrics};
use crate::panics;
use crate::part::Turned;
use crate::ready::NotReady;
use crate::shared::{LOOK_TIMEOUT, Shared, stage};
use crate::shutdown::{EndHub, ShutdownPart};
use crate::status::{CheckStatus, ClockStatus, RecoveryReport, ServiceStatus, ShardStatus, Status};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};
use stead_core::ids::{CheckpointNumber, Time};
use stead_core::shutdown::Group;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_store::checkpoint::checks::{CheckOutcome, Checked};
use stead_store::checkpoint::collect::delete_checkpoint;
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::store::BlobStore;
use stead_store::checkpoint::verify::{Report, ServiceCheck};
use stead_store::data_dir::DataDir;
use stead_store::wal::WalReader;

/// One life of a node. When it is dropped the node is shut down.
pub struct Life<E: Env> {
    pub(crate) shared: Arc<Shared<E>>,
    /// The threads, each with its group.
    pub(crate) threads: Mutex<Vec<(Group, JoinHandle<()>)>>,
    pub(crate) own_threads: Mutex<Vec<ThreadId>>,
    /// Whether its parts were put on threads.
    pub(crate) is_spawned: AtomicBool,
    /// Held by the thread that ends the node: a second one waits for it.
    pub(crate) ending: Mutex<()>,
    /// Owned until the last thread has ended.
    pub(crate) data_dir: Mutex<Option<DataDir>>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) log: WalReader,
    pub(crate) listed: Mutex<Listed>,
    pub(crate) recovery: RecoveryReport,
    pub(crate) opened: Instant,
    /// The time for which a shutdown waits for steps of tasks.
    pub(crate) shutdown_timeout: Duration,
}

impl<E: Env> Life<E> {
    /// The state that the threads share, for clients.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared<E>> {
        &self.shared
    }

    /// The log, for readers.
    #[must_use]
    pub fn log(&self) -> &WalReader {
        &self.log
    }

    /// The report of the start.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// The time that a shutdown gives to running steps, from [`Options`](crate::Options).
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

    /// The state of the node. Waits up to [`LOOK_TIMEOUT`] for workers that are held by a handler.
    #[must_use]
    pub fn status(&self) -> Status {
        let shared = &self.shared;
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
            log: shared.log.status(),
            memory: shared.memory.status(),
            checkpoint: some(shared.snapshots.newest.load(Ordering::Relaxed)),
            checkpoint_running: some(shared.snapshots.running.load(Ordering::Relaxed)),
            checkpoint_check: shared.checks.last(),
            checkpoint_copies: shared.copies.status(),
            stuck_queries: shared.queries.stuck(&shared.topology, shared.now()),
        }
    }

    /// The last checkpoint whose checks ended, if one of them failed, or a check was given up; else the last one.
    #[must_use]
    pub fn last_check(&self) -> Option<CheckStatus> {
        self.shared.checks.last()
    }

    /// Counts since the node was opened.
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
    pub fn set_checkpoint_interval(&self, interval: Option<Duration>) {
        self.shared.snapshots.send(Event::Interval(interval));
    }

    /// The checkpoints that are stored, the oldest first. Lists files, and reads each manifest once in the node's life.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`].
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, CheckpointFailure> {
        let mut found = self.listed().all(&*self.store)?;
        self.shared.checks.marks.note(&mut found);
        Ok(found)
    }

    /// A checkpoint, if it is complete. Lists files.
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

    /// Recomputes a checkpoint from what is stored, and runs the services' checks. Reads all of it. It also runs checks that
    /// were given up because they did not end; one that ends counts as sound again.
    ///
    /// # Errors
    /// [`CheckpointFailure::Store`] if it is damaged. What is whole but inconsistent is in the report.
    pub fn verify(&self, number: u64) -> Result<Report, CheckpointFailure> {
        let shared = &self.shared;
        let _pin = shared.snapshots.pin(CheckpointNumber(number));
        let (store, marks) = (&*self.store, &shared.checks.marks);
        let mut check = |service: &str, topology: &Topology, cut: &[State]| {
            // On a full disk it runs without a mark: a person waits for it.
            let mark = marks.begin(shared, store, CheckpointNumber(number), service);
            let found = shared.program.check(service, topology, cut);
            if let Ok(mark) = mark {
                marks.end(shared, store, mark, service);
            }
            found
        };
        let report =
            verify_stored(store, number, Some(shared.copies.owner.cluster), &shared.program, &mut check)?;
        // A checkpoint that was passed over is checked now.
        if report.check != CheckOutcome::NotChecked && !shared.is_ended() {
            let result = |check: &ServiceCheck| CheckResult {
                service: check.service.clone(),
                failure: check.failure.clone(),
                skipped: (check.outcome == CheckOutcome::NotChecked)
                    .then(|| "the service's code was not there".to_owned()),
            };
            let results = report.checks.iter().map(result).collect();
            let (incarnation, checked) = (shared.topology.incarnation, shared.now());
            Checked { incarnation, number: CheckpointNumber(number), checked, results }.store(store)?;
        }
        Ok(report)
    }

    /// Deletes a checkpoint, unless it is the newest one, which a restart needs.
    ///
    /// # Errors
    /// [`CheckpointFailure`].
    pub fn delete_checkpoint(&self, number: u64) -> Result<(), CheckpointFailure> {
        Ok(delete_checkpoint(&*self.store, CheckpointNumber(number), &self.shared.snapshots.pinned())?)
    }

    /// Copies a checkpoint to an address, `file:///directory` or `s3://bucket/prefix`, on a thread of its own. The reply is
    /// dropped if the node ends.
    ///
    /// # Errors
    /// [`CheckpointFailure::Busy`] if as many copies run or wait as may; [`CheckpointFailure::Store`] if the system gives no
    /// thread.
    pub fn copy_checkpoint(
        &self,
        number: u64,
        to: &str,
        reply: Box<dyn Reply<Result<CopyReport, CheckpointFailure>>>,
    ) -> Result<(), CheckpointFailure> {
        let asked = AskedCopy::admit(&self.shared)?;
        let (store, to) = (Arc::clone(&self.store), to.to_owned());
        let spawned = std::thread::Builder::new().name("stead-copy".to_owned()).spawn(move || {
            let copied = panics::catch_own(|| asked.run(&*store, number, &to));
            drop(asked);
            reply.send(copied.unwrap_or_else(|panic| {
                let text = format!("the copy panicked; this is a bug in Stead: {panic}");
                Err(CheckpointFailure::Store(text))
            }));
        });
        spawned.map(drop).map_err(|error| {
            CheckpointFailure::Store(format!("cannot start a thread to copy checkpoint {number}: {error}"))
        })
    }

    /// Shuts the node down: takes no more calls, waits up to `limit` for running steps of tasks, commits and answers what
    /// was taken, and ends all threads.
    pub fn shutdown(&self, limit: Duration) {
        if !self.is_spawned.load(Ordering::SeqCst) {
            // Nothing has run, and nothing will: the data must not be marked as those of a life that ended in order.
            return self.abandon();
        }
        let begun = Instant::now();
        let Some(_ending) = self.begin_end() else { return };
        if self.data_dir().is_none() {
            // It has ended: the directory is given up last.
            return;
        }
        let left = limit.saturating_sub(begun.elapsed());
        let until = self.shared.now().plus_micros(micros(left));
        self.shared.begin_end();
        self.end(until);
    }

    /// Ends the node as a crash would: nothing is waited for, nothing more is written. For tests.
    pub fn kill(&self) {
        self.shared.stage.store(stage::KILLED, Ordering::SeqCst);
        // Also for a shutdown that waits.
        self.shared.wake_all();
        if let Some(_ending) = self.begin_end() {
            self.end(self.shared.now().plus_micros(micros(self.shutdown_timeout)));
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

    /// Ends all threads and gives the data directory up.
    fn end(&self, until: Time) {
        let ending = Ending { life: self, steps: RefCell::default() };
        let mut part = ShutdownPart::new(until);
        while part.turn(&ending, self.shared.now()) != Turned::Ended {}
        drop(self.data_dir().take());
        events::flush(LAST_WORDS);
    }

    /// Marks the data as those of a life that ended in order, so that the next one suspects nothing.
    pub(crate) fn mark_clean(&self) {
        let Some(data_dir) = &mut *self.data_dir() else { return };
        self.shared.checks.marks.forgive(&*self.store);
        if let Err(error) = data_dir.update(|meta| meta.clean = true) {
            // The next start then suspects what waits, which costs a little time and nothing else.
            events::warn(format_args!("cannot record the clean shutdown: {error}"));
        }
    }

    /// Gives up a life that has no threads, as a crash does.
    pub(crate) fn abandon(&self) {
        self.shared.stage.store(stage::KILLED, Ordering::SeqCst);
        drop(self.data_dir().take());
    }

    fn data_dir(&self) -> MutexGuard<'_, Option<DataDir>> {
        self.data_dir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, group: Group) {
        loop {
            let thread = {
                let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(at) = threads.iter().position(|(other, _)| *other == group) else { return };
                threads.swap_remove(at).1
            };
            // A handler may hold the last handle; its own thread cannot be waited for.
            if thread.thread().id() != std::thread::current().id() {
                // A panic was caught in the thread and reported.
                let _ = thread.join();
            }
        }
    }
}

/// The end of a life. It waits on the thread that ends the node.
struct Ending<'a, E: Env> {
    life: &'a Life<E>,
    /// The names of steps that ran too long.
    steps: RefCell<Vec<String>>,
}

impl<E: Env> EndHub for Ending<'_, E> {
    fn is_failed(&self) -> bool {
        self.life.shared.failure.get().is_some()
    }

    fn is_killed(&self) -> bool {
        self.life.shared.stage.load(Ordering::SeqCst) == stage::KILLED
    }

    fn stop(&self, group: Group) {
        self.life.shared.stop(group);
    }

    fn stop_all(&self) {
        self.life.shared.stop_all();
    }

    fn has_ended(&self, group: Group, until: Option<Time>) -> bool {
        let (life, shared) = (self.life, &self.life.shared);
        let left = |until: Time| Duration::from_micros(until.0.saturating_sub(shared.now().0));
        let deadline = until.map(|until| Instant::now() + left(until));
        match (group, deadline) {
            (Group::Tasks, Some(deadline)) => {
                let steps = shared.steps.await_end(deadline);
                if !steps.is_empty() {
                    self.steps.replace(steps);
                    return false;
                }
            }
            (Group::Queries, Some(deadline)) => {
                shared.queries.await_answers(deadline);
                return Instant::now() < deadline;
            }
            (Group::Log, _) => {
                shared.queries.await_end();
                life.join(Group::Queries);
            }
            (Group::Watchdog, _) => {
                life.join(group);
                shared.copies.await_end();
                shared.checks.await_end();
            }
            _ => {}
        }
        life.join(group);
        true
    }

    /// Threads whose step has not ended are left to themselves: nothing that they bring is taken any more.
    fn abandon(&self, group: Group) {
        if group != Group::Tasks {
            return;
        }
        let mut steps = self.steps.take();
        steps.append(&mut self.life.shared.steps.await_end(Instant::now()));
        if steps.is_empty() {
            return self.life.join(group);
        }
        for step in &steps {
            events::warn(format_args!(
                "{step} is still running and is abandoned; it is repeated after the next start"
            ));
        }
        let mut threads = self.life.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(other, _)| *other != group);
    }

    fn mark_clean(&self) {
        self.life.mark_clean();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl<E: Env> Drop for Life<E> {
    fn drop(&mut self) {
        self.shutdown(self.shutdown_timeout);
    }
}
