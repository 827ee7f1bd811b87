//! The threads that run clients' queries.
//!
//! A query reads what its shard captured, so that it holds no shard and may run for ever. Its client gets an answer by its
//! deadline or by `handler_timeout`, whatever the query does. One that goes on after that keeps its thread, which cannot be
//! taken from it: another thread takes its place, up to a bound for each service.

use super::Shared;
use super::memory::Memory;
use crate::client::Reception;
use crate::error::RawError;
use crate::events;
use crate::panics;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use stead_core::capture::Reading;
use stead_core::ids::{Key, ServiceId, Time};
use stead_core::shard::Refusal;
use stead_core::topology::Topology;

/// Threads that run queries. Those of given-up queries come on top.
pub(crate) const QUERY_THREADS: usize = 8;
/// Queries of a service that were given up and still run, from which on its other queries are refused. Those that run
/// then may be given up too: so a service holds `STUCK_MAX + QUERY_THREADS - 1` threads at most.
pub(crate) const STUCK_MAX: usize = 4;
/// How long a query that nobody waits for any more may run before its thread is replaced; less if `handler_timeout` is.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Queries that may wait for a thread; others are overloaded.
const WAITING_MAX: usize = 16_384;
/// When the client of a query that found no room should come back, in milliseconds.
const RETRY_AFTER_MS: u64 = 50;
/// How often the watcher looks for queries whose time is over.
const LOOK: Duration = Duration::from_millis(20);
/// How long it goes on to look after the last query, so that a query seldom has to wake it.
const LOOK_ON: Duration = Duration::from_secs(1);
/// How long the end of a node waits for threads that have nothing to do.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A query that its shard has let go, and who waits for it.
pub(crate) struct Job {
    reading: Box<Reading>,
    reception: Reception,
    _charge: Charge,
}

impl Job {
    pub(crate) fn new(reading: Box<Reading>, reception: Reception, memory: &Arc<Memory>) -> Self {
        let _charge = Charge::new(memory, reading.weight());
        Self { reading, reception, _charge }
    }
}

/// Bytes of a query in the account of the node's memory.
struct Charge {
    memory: Arc<Memory>,
    bytes: i64,
}

impl Charge {
    fn new(memory: &Arc<Memory>, bytes: usize) -> Self {
        let bytes = bytes as i64;
        memory.change_queries(bytes);
        Self { memory: Arc::clone(memory), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.change_queries(-self.bytes);
    }
}

/// A query that was given up and still runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
pub struct StuckQuery {
    /// The service of the process.
    pub service: String,
    /// The key of the process.
    pub process: String,
    /// How long it has run.
    #[cfg_attr(feature = "http", schema(value_type = Object))]
    pub running: Duration,
}

/// Queries that wait for a thread, and those that run.
pub(crate) struct QueryQueue {
    queue: Mutex<Queue>,
    /// For the threads: a query waits, or the node ends.
    news: Condvar,
    /// For the watcher: there are queries again, or the node ends.
    watch: Condvar,
    /// A query or a thread has ended.
    ended: Condvar,
    /// As the queue has it, for a look without its lock.
    waiting: AtomicUsize,
    /// By service, queries that were given up and still run.
    stuck: Vec<AtomicUsize>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    /// Threads that serve; those whose query was given up do not count any more.
    threads: usize,
    idle: usize,
    /// How many queries have begun.
    begun: u64,
    watcher_sleeps: bool,
    /// No more come: threads end when none waits.
    is_closing: bool,
    /// The node has ended.
    is_over: bool,
}

/// A query that a thread is at.
struct Running {
    number: u64,
    service: ServiceId,
    process: Key,
    since: Instant,
    /// Who waits, until an answer is given.
    reception: Option<Reception>,
    deadline: Time,
    /// It was given up, and its thread replaced.
    is_stuck: bool,
    thread: ThreadId,
    #[cfg(target_os = "linux")]
    thread_id: rustix::process::Pid,
}

impl QueryQueue {
    pub(crate) fn new(services: usize) -> Self {
        Self {
            queue: Mutex::default(),
            news: Condvar::new(),
            watch: Condvar::new(),
            ended: Condvar::new(),
            waiting: AtomicUsize::new(0),
            stuck: (0..services).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a query of a service is taken now.
    ///
    /// # Errors
    /// [`Refusal::QueriesStuck`] or [`Refusal::Overloaded`].
    pub(crate) fn admit(
        &self,
        service: ServiceId,
        topology: &Topology,
        memory: &Memory,
    ) -> Result<(), Refusal> {
        if self.is_stuck(service)
            && let Some(refusal) = self.queue().stuck_refusal(service, topology)
        {
            return Err(refusal);
        }
        if self.waiting.load(Ordering::Relaxed) >= WAITING_MAX || !memory.takes_queries() {
            return Err(Refusal::Overloaded { retry_after_ms: RETRY_AFTER_MS });
        }
        Ok(())
    }

    fn is_stuck(&self, service: ServiceId) -> bool {
        self.stuck[usize::from(service.0)].load(Ordering::Relaxed) >= STUCK_MAX
    }

    /// Takes on what shards have let go, which leaves `jobs` empty.
    pub(crate) fn push(&self, jobs: &mut Vec<Job>) {
        let mut queue = self.queue();
        if queue.is_over {
            drop(queue);
            // After the lock: dropping a call wakes its caller.
            jobs.clear();
            return;
        }
        queue.waiting.extend(jobs.drain(..));
        self.waiting.store(queue.waiting.len(), Ordering::Relaxed);
        let (wakes_thread, wakes_watcher) = (queue.idle > 0, queue.watcher_sleeps);
        drop(queue);
        // One thread wakes the next, if there is more to do: the worker wakes one only.
        if wakes_thread {
            self.news.notify_one();
        }
        if wakes_watcher {
            self.watch.notify_one();
        }
    }

    /// Queries that wait for a thread, and those that were given up and still run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let stuck = self.stuck.iter().map(|stuck| stuck.load(Ordering::Relaxed) as u64).sum();
        (self.waiting.load(Ordering::Relaxed) as u64, stuck)
    }

    /// The queries that were given up and still run, the one that has run for the longest first.
    pub(crate) fn stuck(&self, topology: &Topology) -> Vec<StuckQuery> {
        let queue = self.queue();
        let mut stuck: Vec<&Running> = queue.running.iter().filter(|running| running.is_stuck).collect();
        stuck.sort_unstable_by_key(|running| running.since);
        let show = |running: &Running| StuckQuery {
            service: topology.service(running.service).name.clone(),
            process: running.process.to_string(),
            running: running.since.elapsed(),
        };
        stuck.into_iter().map(show).collect()
    }

    /// Starts a thread that runs queries until the node ends.
    pub(crate) fn start_thread(shared: &Arc<Shared>) -> io::Result<()> {
        shared.queries.queue().threads += 1;
        let node = Arc::clone(shared);
        // It belongs to no group: the user's code can't be stopped, and the end of the node does not wait for ever.
        let spawned = thread::Builder::new().name("stead-query".to_owned()).spawn(move || {
            if let Err(panic) = panics::catch_own(|| node.queries.run(&node)) {
                node.fail(format!("a query thread panicked; this is a bug in Stead: {panic}"));
            }
        });
        if spawned.is_err() {
            shared.queries.queue().threads -= 1;
        }
        spawned.map(drop)
    }

    /// Runs queries on this thread.
    fn run(&self, shared: &Shared) {
        let mut queue = self.queue();
        loop {
            let Some(job) = queue.waiting.pop_front() else {
                if queue.is_closing || queue.is_over {
                    queue.threads -= 1;
                    self.ended.notify_all();
                    return;
                }
                queue.idle += 1;
                queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            self.waiting.store(queue.waiting.len(), Ordering::Relaxed);
            if queue.idle > 0 && !queue.waiting.is_empty() {
                self.news.notify_one();
            }
            let Job { reading, reception, _charge } = job;
            let service = reading.service;
            let refused = if reception.deadline <= shared.clock.now() {
                Some(RawError::TimedOut { after: reception.timeout })
            } else {
                queue.stuck_refusal(service, &shared.topology).map(RawError::Refused)
            };
            if refused.is_some() || reception.sender.is_closed() {
                drop(queue);
                if let Some(error) = refused {
                    self.refuse(shared, service, reception, error);
                }
                drop((reading, _charge));
                queue = self.queue();
                continue;
            }
            let number = queue.begin(&reading, reception);
            drop(queue);
            let answer = reading.answer(|call, view| shared.registry.query(call, view, &shared.topology));
            // What it captured may be large by now: it goes before the answer tells that it is gone.
            drop((reading, _charge));
            queue = self.queue();
            let Running { reception, is_stuck, .. } = queue.end(number);
            if is_stuck {
                // Another thread serves in its place.
                self.stuck[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
                self.ended.notify_all();
                return;
            }
            let Some(reception) = reception else { continue };
            drop(queue);
            let counters = &shared.counters.services[usize::from(service.0)];
            counters.answers.add(1);
            if answer.result.is_err() {
                counters.refusals.add(1);
            }
            // Its caller may have given up.
            let _ = reception.sender.send(Ok(answer));
            queue = self.queue();
            if queue.is_closing || queue.is_over {
                self.ended.notify_all();
            }
        }
    }

    fn refuse(&self, shared: &Shared, service: ServiceId, reception: Reception, error: RawError) {
        let counters = &shared.counters.services[usize::from(service.0)];
        counters.answers.add(1);
        counters.refusals.add(1);
        let _ = reception.sender.send(Err(error));
    }

    /// Answers those whose time is over, and replaces threads that do not come back, until the node ends.
    pub(crate) fn watch(&self, shared: &Arc<Shared>, limit: Duration) {
        let mut queue = self.queue();
        let (mut begun, mut last) = (0, Instant::now());
        while !queue.is_over {
            if queue.begun != begun || !queue.waiting.is_empty() || queue.running.iter().any(|r| !r.is_stuck)
            {
                (begun, last) = (queue.begun, Instant::now());
            }
            queue.watcher_sleeps = last.elapsed() >= LOOK_ON && queue.threads >= QUERY_THREADS;
            queue = if queue.watcher_sleeps {
                self.watch.wait(queue).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.watch.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0
            };
            queue.watcher_sleeps = false;
            let over = queue.take_over(shared.clock.now(), limit, &shared.topology);
            self.waiting.store(queue.waiting.len(), Ordering::Relaxed);
            let stuck = queue.leave_stuck(limit);
            for service in &stuck {
                self.stuck[usize::from(service.0)].fetch_add(1, Ordering::Relaxed);
            }
            let missing = if queue.is_closing { 0 } else { QUERY_THREADS.saturating_sub(queue.threads) };
            if over.is_empty() && stuck.is_empty() && missing == 0 {
                continue;
            }
            drop(queue);
            for Over { service, reception, error, _captured: _ } in over {
                shared.counters.queries_given_up.add(1);
                self.refuse(shared, service, reception, error);
            }
            for _ in 0..missing {
                if let Err(error) = Self::start_thread(shared) {
                    events::warn(format_args!(
                        "cannot start another thread for queries, and tries again: {error}"
                    ));
                    break;
                }
            }
            if !stuck.is_empty() {
                for query in self.stuck(&shared.topology) {
                    events::warn(format_args!(
                        "a query of {}/{} was given up and still runs, for {:.1} s now: its thread was replaced; at {STUCK_MAX} \
                         of a service its other queries are refused until one ends or the node restarts",
                        query.service,
                        query.process,
                        query.running.as_secs_f64()
                    ));
                }
            }
            queue = self.queue();
        }
    }

    /// No more queries come: waits for those that there are, but not for the ones that were given up, and not after the
    /// deadline.
    pub(crate) fn close(&self, deadline: Instant) {
        let here = thread::current().id();
        let mut queue = self.queue();
        queue.is_closing = true;
        self.news.notify_all();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let runs = |running: &Running| running.reception.is_some() && running.thread != here;
            if left.is_zero() || queue.waiting.is_empty() && !queue.running.iter().any(runs) {
                return;
            }
            // The watcher gives some up without a word to this.
            queue = self.ended.wait_timeout(queue, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The node has ended: who still waits learns it, and threads end as soon as they can.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue();
        queue.is_over = true;
        let waiting = std::mem::take(&mut queue.waiting);
        let receptions: Vec<_> = queue.running.iter_mut().filter_map(|r| r.reception.take()).collect();
        self.waiting.store(0, Ordering::Relaxed);
        drop(queue);
        self.news.notify_all();
        self.watch.notify_all();
        // After the lock: dropping a call wakes its caller.
        drop((waiting, receptions));
    }

    /// Waits until the threads that run nothing have ended, or for a moment.
    pub(crate) fn await_end(&self) {
        let deadline = Instant::now() + LAST_LOOK;
        let mut queue = self.queue();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let busy = queue.running.iter().filter(|running| !running.is_stuck).count();
            if queue.threads <= busy || left.is_zero() {
                return;
            }
            queue = self.ended.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A query whose time is over.
struct Over {
    service: ServiceId,
    reception: Reception,
    error: RawError,
    /// What is dropped after the lock.
    _captured: Option<(Box<Reading>, Charge)>,
}

impl Queue {
    fn begin(&mut self, reading: &Reading, reception: Reception) -> u64 {
        self.begun += 1;
        self.running.push(Running {
            number: self.begun,
            service: reading.service,
            process: reading.query.process.clone(),
            since: Instant::now(),
            deadline: reception.deadline,
            reception: Some(reception),
            is_stuck: false,
            thread: thread::current().id(),
            #[cfg(target_os = "linux")]
            thread_id: rustix::thread::gettid(),
        });
        self.begun
    }

    fn end(&mut self, number: u64) -> Running {
        let at = self.running.iter().position(|running| running.number == number);
        self.running.swap_remove(at.expect("its own thread alone takes it off the list"))
    }

    /// Why queries of a service are refused, if they are.
    fn stuck_refusal(&self, service: ServiceId, topology: &Topology) -> Option<Refusal> {
        let stuck = || self.running.iter().filter(|r| r.is_stuck && r.service == service);
        let first = stuck().min_by_key(|running| running.since)?;
        let count = stuck().count();
        (count >= STUCK_MAX).then(|| {
            let service = topology.service(service).name.clone();
            let process = format!("{service}/{}", first.process);
            Refusal::QueriesStuck { service, stuck: count, process }
        })
    }

    /// Takes those from the queue whose time is over, and from those that run their receptions.
    fn take_over(&mut self, now: Time, limit: Duration, topology: &Topology) -> Vec<Over> {
        let mut over = Vec::new();
        let is_over = |job: &Job| job.reception.deadline <= now || job.reception.sender.is_closed();
        if self.waiting.iter().any(is_over) {
            for job in std::mem::take(&mut self.waiting) {
                if !is_over(&job) {
                    self.waiting.push_back(job);
                    continue;
                }
                let Job { reading, reception, _charge } = job;
                let error = RawError::TimedOut { after: reception.timeout };
                over.push(Over {
                    service: reading.service,
                    reception,
                    error,
                    _captured: Some((reading, _charge)),
                });
            }
        }
        for running in &mut self.running {
            let is_late = running.deadline <= now;
            if !is_late && running.since.elapsed() < limit {
                continue;
            }
            let Some(reception) = running.reception.take() else { continue };
            let error = if is_late {
                RawError::TimedOut { after: reception.timeout }
            } else {
                let process = format!("{}/{}", topology.service(running.service).name, running.process);
                RawError::Refused(Refusal::QueryGivenUp { process, limit_ms: limit.as_millis() as u64 })
            };
            over.push(Over { service: running.service, reception, error, _captured: None });
        }
        over
    }

    /// Takes the threads whose query was given up and goes on out of service; gives the services of these queries.
    fn leave_stuck(&mut self, limit: Duration) -> Vec<ServiceId> {
        let after = limit.min(STUCK_AFTER);
        let mut stuck = Vec::new();
        for running in &mut self.running {
            if running.is_stuck || running.reception.is_some() || running.since.elapsed() < after {
                continue;
            }
            running.is_stuck = true;
            self.threads -= 1;
            // What nobody waits for gets what the others leave.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::setpriority_process(Some(running.thread_id), STUCK_NICE);
            stuck.push(running.service);
        }
        stuck
    }
}

/// The priority of threads whose query was given up: the lowest.
#[cfg(target_os = "linux")]
const STUCK_NICE: i32 = 19;
