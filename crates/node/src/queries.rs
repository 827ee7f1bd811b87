//! The threads that run clients' queries.
//!
//! A query reads what its shard captured, so that it holds no shard and may run for ever. Its client gets an answer by its
//! deadline or by `handler_timeout`, whatever the query does. One that goes on after that keeps its thread, which cannot be
//! taken from it: another thread takes its place, up to a bound for each service.

#![expect(clippy::disallowed_methods, reason = "queries run on threads of their own, for any time")]

use crate::env::{Caller, Env, NoAnswer, Program, ReplyTo};
use crate::events;
use crate::memory::Memory;
use crate::panics;
use crate::shared::Shared;
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
/// Those of them that take queries only of services that run none.
const SPARE_THREADS: usize = 2;
/// Queries of a service that were given up and still run, from which on no other of it begins. Those that run then may be
/// given up too: so a service holds `STUCK_MAX - 1 + QUERY_THREADS - SPARE_THREADS` threads of such at most.
pub(crate) const STUCK_MAX: usize = 4;
/// A query for which no client waits any more may run so long before its thread is replaced; less if `handler_timeout` is.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Queries that may wait for a thread; others are overloaded.
const WAITING_MAX: usize = 16_384;
/// Those of one service.
const SERVICE_WAITING_MAX: usize = WAITING_MAX / 2;
/// When the client of a query that found no room should come back, in milliseconds.
const RETRY_AFTER_MS: u64 = 50;
/// The interval at which the watcher looks for queries whose time is over.
const LOOK: Duration = Duration::from_millis(20);
/// The watcher goes on to look for so long after the last query, so that a query seldom has to wake it.
const LOOK_ON: Duration = Duration::from_secs(1);
/// The end of a node waits at most so long for threads that have nothing to do.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A query that its shard has let go, and the client that waits for it.
pub(crate) struct Job<C> {
    reading: Box<Reading>,
    /// As the reading has it: copied before the queue is locked.
    process: Key,
    reply_to: ReplyTo<C>,
    charge: Charge,
}

impl<C> Job<C> {
    pub(crate) fn new(reading: Box<Reading>, reply_to: ReplyTo<C>, memory: &Arc<Memory>) -> Self {
        let charge = Charge::new(memory, reading.weight());
        Self { process: reading.query.process.clone(), reading, reply_to, charge }
    }
}

/// Bytes of a query in the account of the node's memory.
struct Charge {
    memory: Arc<Memory>,
    bytes: i64,
    is_stuck: bool,
}

impl Charge {
    fn new(memory: &Arc<Memory>, bytes: usize) -> Self {
        let bytes = bytes as i64;
        memory.change_queries(bytes);
        Self { memory: Arc::clone(memory), bytes, is_stuck: false }
    }

    /// It may be held for ever, so that it no longer takes room from other queries.
    fn become_stuck(&mut self) {
        self.memory.change_stuck_queries(self.bytes);
        self.memory.change_queries(-self.bytes);
        self.is_stuck = true;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.is_stuck {
            self.memory.change_stuck_queries(-self.bytes);
        } else {
            self.memory.change_queries(-self.bytes);
        }
    }
}

/// A query that was given up and still runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckQuery {
    /// The service of the process.
    pub service: String,
    /// The key of the process.
    pub process: String,
    /// The time for which it has run.
    pub running: Duration,
}

/// Queries that wait for a thread, and those that run.
pub(crate) struct QueryQueue<C> {
    queue: Mutex<Queue<C>>,
    /// For the threads: a query waits, or the node ends.
    news: Condvar,
    /// For the watcher: there are queries again, or the node ends.
    watch: Condvar,
    /// A query or a thread has ended.
    ended: Condvar,
    /// By service, as the queue has it, for a look without its lock.
    waiting: Vec<AtomicUsize>,
    stuck: Vec<AtomicUsize>,
}

struct Queue<C> {
    /// By service: they take turns.
    by_service: Vec<ServiceQueue<C>>,
    /// The service whose turn it is.
    turn: usize,
    running: Vec<Running<C>>,
    /// The time limit of a query: known before any is found to be stuck.
    limit: Duration,
    /// Threads that serve; those whose query was given up do not count any more.
    threads: usize,
    idle: usize,
    /// The number of queries that have begun.
    begun: u64,
    watcher_sleeps: bool,
    /// No more come: threads end when none waits.
    is_closing: bool,
    /// The node has ended.
    is_over: bool,
}

/// Queries of a service that wait for a thread.
struct ServiceQueue<C> {
    waiting: VecDeque<Job<C>>,
    /// None of their deadlines is before it.
    deadline_min: Time,
}

/// A query that a thread is at.
struct Running<C> {
    number: u64,
    service: ServiceId,
    process: Key,
    since: Instant,
    /// The client that waits, until an answer is given.
    reply_to: Option<ReplyTo<C>>,
    deadline: Time,
    /// It was given up, and its thread replaced.
    is_stuck: bool,
    charge: Charge,
    thread: QueryThread,
}

/// A thread that runs queries, as the system knows it.
#[derive(Clone, Copy)]
struct QueryThread {
    id: ThreadId,
    #[cfg(target_os = "linux")]
    system_id: rustix::process::Pid,
}

impl QueryThread {
    fn current() -> Self {
        Self {
            id: thread::current().id(),
            #[cfg(target_os = "linux")]
            system_id: rustix::thread::gettid(),
        }
    }
}

impl<C: Caller> QueryQueue<C> {
    pub(crate) fn new(services: usize) -> Self {
        let zeros = || (0..services).map(|_| AtomicUsize::new(0)).collect();
        let empty = || ServiceQueue { waiting: VecDeque::new(), deadline_min: Time(u64::MAX) };
        let queue = Queue {
            by_service: std::iter::repeat_with(empty).take(services).collect(),
            turn: 0,
            running: Vec::new(),
            limit: Duration::MAX,
            threads: 0,
            idle: 0,
            begun: 0,
            watcher_sleeps: false,
            is_closing: false,
            is_over: false,
        };
        Self {
            queue: Mutex::new(queue),
            news: Condvar::new(),
            watch: Condvar::new(),
            ended: Condvar::new(),
            waiting: zeros(),
            stuck: zeros(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<C>> {
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
        let at = usize::from(service.0);
        if self.stuck[at].load(Ordering::Relaxed) >= STUCK_MAX
            && let Some(refusal) = self.queue().stuck_refusal(service, topology)
        {
            return Err(refusal);
        }
        let is_full = self.waiting[at].load(Ordering::Relaxed) >= SERVICE_WAITING_MAX
            || sum(&self.waiting) >= WAITING_MAX
            || !memory.takes_queries();
        if is_full {
            return Err(Refusal::Overloaded { retry_after_ms: RETRY_AFTER_MS });
        }
        Ok(())
    }

    /// Takes on what shards have let go, which leaves `jobs` empty.
    pub(crate) fn push(&self, jobs: &mut Vec<Job<C>>) {
        let mut queue = self.queue();
        if queue.is_over {
            drop(queue);
            // After the lock: dropping a call wakes its caller.
            jobs.clear();
            return;
        }
        for job in jobs.drain(..) {
            let service = job.reading.service;
            queue.by_service[usize::from(service.0)].push(job);
            self.waiting[usize::from(service.0)].fetch_add(1, Ordering::Relaxed);
        }
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
        (sum(&self.waiting) as u64, sum(&self.stuck) as u64)
    }

    /// Whether this is a thread that runs a query.
    pub(crate) fn is_own_thread(&self, thread: ThreadId) -> bool {
        self.queue().running.iter().any(|running| running.thread.id == thread)
    }

    /// The queries that were given up and still run, the one that has run for the longest first.
    pub(crate) fn stuck(&self, topology: &Topology) -> Vec<StuckQuery> {
        let queue = self.queue();
        let mut stuck: Vec<&Running<C>> = queue.running.iter().filter(|running| running.is_stuck).collect();
        stuck.sort_unstable_by_key(|running| running.since);
        stuck.into_iter().map(|running| running.show(topology)).collect()
    }

    /// Starts a thread that runs queries until the node ends.
    pub(crate) fn start_thread<E: Env<Caller = C>>(shared: &Arc<Shared<E>>) -> io::Result<()> {
        shared.queries.queue().threads += 1;
        let node = Arc::clone(shared);
        // It belongs to no group: the user's code cannot be stopped, and the end of the node does not wait for ever.
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
    fn run<E: Env<Caller = C>>(&self, shared: &Shared<E>) {
        let thread = QueryThread::current();
        loop {
            match self.run_next(shared, thread) {
                Ran::One => {}
                // Another thread serves in its place.
                Ran::Stuck => return,
                Ran::None => {
                    let mut queue = self.queue();
                    if queue.next_queue().is_some() {
                        continue;
                    }
                    if queue.is_over || queue.is_closing && !queue.is_waiting() {
                        queue.threads -= 1;
                        self.ended.notify_all();
                        return;
                    }
                    queue.idle += 1;
                    queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.idle -= 1;
                }
            }
        }
    }

    /// Runs the next query that waits, or gives it up if it is not waited for any more.
    fn run_next<E: Env<Caller = C>>(&self, shared: &Shared<E>, thread: QueryThread) -> Ran {
        let mut queue = self.queue();
        let Some(job) = queue.pop() else { return Ran::None };
        let service = job.reading.service;
        self.waiting[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
        if job.reply_to.deadline <= shared.now() || job.reply_to.caller.is_gone() {
            drop(queue);
            self.give_up(shared, Over::late(job));
            return Ran::One;
        }
        let (number, reading) = queue.begin(job, thread);
        if queue.idle > 0 && queue.next_queue().is_some() {
            self.news.notify_one();
        }
        drop(queue);
        let answer = reading.answer(|call, view| shared.program.query(call, view, &shared.topology));
        // The capture may be large by now: it goes before the answer shows that the query has ended.
        drop(reading);
        let mut queue = self.queue();
        let Running { reply_to, is_stuck, charge, .. } = queue.end(number);
        drop(charge);
        if is_stuck {
            self.stuck[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
            self.ended.notify_all();
            // One that was held back for it may begin.
            self.news.notify_one();
            return Ran::Stuck;
        }
        let Some(reply_to) = reply_to else { return Ran::One };
        drop(queue);
        let counters = &shared.counters.services[usize::from(service.0)];
        counters.answers.add(1);
        if answer.result.is_err() {
            counters.refusals.add(1);
        }
        reply_to.caller.answer(Ok(answer));
        let queue = self.queue();
        if queue.is_closing || queue.is_over {
            self.ended.notify_all();
        }
        Ran::One
    }

    /// As a thread of queries does, runs the next one that waits. Returns whether there was one.
    pub(crate) fn step<E: Env<Caller = C>>(&self, shared: &Shared<E>) -> bool {
        !matches!(self.run_next(shared, QueryThread::current()), Ran::None)
    }

    /// Answers the client of a query that is not waited for any more, unless that one has gone.
    fn give_up<E: Env<Caller = C>>(&self, shared: &Shared<E>, over: Over<C>) {
        let Over { service, reply_to, error, job } = over;
        drop(job);
        if reply_to.caller.is_gone() {
            return;
        }
        if !matches!(error, NoAnswer::Refused(Refusal::QueriesStuck { .. })) {
            shared.counters.queries_given_up.add(1);
        }
        let counters = &shared.counters.services[usize::from(service.0)];
        counters.answers.add(1);
        counters.refusals.add(1);
        reply_to.caller.answer(Err(error));
    }

    /// Answers those whose time is over, and replaces threads that do not come back, until the node ends.
    pub(crate) fn watch<E: Env<Caller = C>>(&self, shared: &Arc<Shared<E>>, limit: Duration) {
        let mut queue = self.queue();
        queue.limit = limit;
        let (mut begun, mut last) = (0, Instant::now());
        let mut can_start = true;
        while !queue.is_over {
            if queue.begun != begun || queue.is_waiting() || queue.running.iter().any(|r| !r.is_stuck) {
                (begun, last) = (queue.begun, Instant::now());
            }
            queue.watcher_sleeps = last.elapsed() >= LOOK_ON && queue.threads >= QUERY_THREADS;
            queue = if queue.watcher_sleeps {
                self.watch.wait(queue).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.watch.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0
            };
            queue.watcher_sleeps = false;
            let over = queue.take_over(shared.now(), &shared.topology);
            for job in over.iter().filter_map(|over| over.job.as_ref()) {
                self.waiting[usize::from(job.1.service.0)].fetch_sub(1, Ordering::Relaxed);
            }
            let stuck = queue.leave_stuck(&shared.topology);
            for (service, _) in &stuck {
                self.stuck[usize::from(service.0)].fetch_add(1, Ordering::Relaxed);
            }
            let missing = if queue.is_closing { 0 } else { QUERY_THREADS.saturating_sub(queue.threads) };
            if over.is_empty() && stuck.is_empty() && missing == 0 {
                continue;
            }
            drop(queue);
            for over in over {
                self.give_up(shared, over);
            }
            for _ in 0..missing {
                let started = Self::start_thread(shared);
                let could_start = std::mem::replace(&mut can_start, started.is_ok());
                let Err(error) = started else { continue };
                if could_start {
                    events::warn(format_args!(
                        "cannot start another thread for queries, and tries again: {error}"
                    ));
                }
                break;
            }
            for (_, query) in stuck {
                events::warn(format_args!(
                    "a query of {}/{} was given up and still runs, for {:.1} s now: its thread was replaced; at {STUCK_MAX} \
                     of a service its other queries wait, and are refused if these run for as long as a handler may, until \
                     one ends or the node restarts",
                    query.service,
                    query.process,
                    query.running.as_secs_f64()
                ));
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
            let runs = |running: &Running<C>| running.reply_to.is_some() && running.thread.id != here;
            if left.is_zero() || !queue.is_waiting() && !queue.running.iter().any(runs) {
                return;
            }
            // The watcher gives queries up without a signal to this thread.
            queue = self.ended.wait_timeout(queue, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The node has ended: clients that still wait learn it, and threads end as soon as they can.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue();
        queue.is_over = true;
        let waiting: Vec<_> =
            queue.by_service.iter_mut().map(|queue| std::mem::take(&mut queue.waiting)).collect();
        let callers: Vec<_> = queue.running.iter_mut().filter_map(|r| r.reply_to.take()).collect();
        self.waiting.iter().for_each(|waiting| waiting.store(0, Ordering::Relaxed));
        drop(queue);
        self.news.notify_all();
        self.watch.notify_all();
        // After the lock: dropping a call wakes its caller.
        drop((waiting, callers));
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

fn sum(counts: &[AtomicUsize]) -> usize {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// The result of looking for the next query.
enum Ran {
    One,
    /// One that was given up meanwhile, and with it its thread.
    Stuck,
    None,
}

/// A query that is not waited for any more.
struct Over<C> {
    service: ServiceId,
    reply_to: ReplyTo<C>,
    error: NoAnswer,
    /// If it has not begun; dropped after the lock.
    job: Option<(Charge, Box<Reading>)>,
}

impl<C> Over<C> {
    /// One that has waited for too long.
    fn late(job: Job<C>) -> Self {
        let after = job.reply_to.timeout;
        Self::refused(job, NoAnswer::TimedOut { after })
    }

    fn refused(job: Job<C>, error: NoAnswer) -> Self {
        let Job { reading, reply_to, charge, .. } = job;
        Self { service: reading.service, reply_to, error, job: Some((charge, reading)) }
    }
}

impl<C> ServiceQueue<C> {
    fn push(&mut self, job: Job<C>) {
        self.deadline_min = self.deadline_min.min(job.reply_to.deadline);
        self.waiting.push_back(job);
    }

    /// Takes those out whose time is over.
    fn take_late(&mut self, now: Time, over: &mut Vec<Over<C>>) {
        if self.deadline_min > now {
            return;
        }
        self.deadline_min = Time(u64::MAX);
        for _ in 0..self.waiting.len() {
            let job = self.waiting.pop_front().expect("as many as were counted");
            if job.reply_to.deadline <= now {
                over.push(Over::late(job));
            } else {
                self.push(job);
            }
        }
    }
}

impl<C> Running<C> {
    fn show(&self, topology: &Topology) -> StuckQuery {
        StuckQuery {
            service: topology.service(self.service).name.clone(),
            process: self.process.to_string(),
            running: self.since.elapsed(),
        }
    }
}

impl<C: Caller> Queue<C> {
    fn is_waiting(&self) -> bool {
        self.by_service.iter().any(|queue| !queue.waiting.is_empty())
    }

    /// The next service whose query may begin.
    fn next_queue(&self) -> Option<usize> {
        let (services, mut busy) = (self.by_service.len(), None);
        (self.turn..services).chain(0..self.turn).find(|&service| {
            if self.by_service[service].waiting.is_empty() {
                return false;
            }
            let of_service = || self.running.iter().filter(|r| usize::from(r.service.0) == service);
            let busy = *busy.get_or_insert_with(|| self.running.iter().filter(|r| !r.is_stuck).count());
            of_service().filter(|r| r.is_stuck).count() < STUCK_MAX
                && (busy < QUERY_THREADS - SPARE_THREADS || of_service().all(|r| r.is_stuck))
        })
    }

    fn pop(&mut self) -> Option<Job<C>> {
        let service = self.next_queue()?;
        self.turn = (service + 1) % self.by_service.len();
        self.by_service[service].waiting.pop_front()
    }

    fn begin(&mut self, job: Job<C>, thread: QueryThread) -> (u64, Box<Reading>) {
        let Job { reading, process, reply_to, charge } = job;
        self.begun += 1;
        self.running.push(Running {
            number: self.begun,
            service: reading.service,
            process,
            since: Instant::now(),
            deadline: reply_to.deadline,
            reply_to: Some(reply_to),
            is_stuck: false,
            charge,
            thread,
        });
        (self.begun, reading)
    }

    fn end(&mut self, number: u64) -> Running<C> {
        let at = self.running.iter().position(|running| running.number == number);
        self.running.swap_remove(at.expect("its own thread alone takes it off the list"))
    }

    /// The reason why queries of a service are refused, if they are: as many as may be stuck have run for longer than any
    /// may.
    fn stuck_refusal(&self, service: ServiceId, topology: &Topology) -> Option<Refusal> {
        let is_of = |r: &&Running<C>| r.is_stuck && r.service == service && r.since.elapsed() >= self.limit;
        let stuck = || self.running.iter().filter(is_of);
        let first = stuck().min_by_key(|running| running.since)?;
        let count = stuck().count();
        (count >= STUCK_MAX).then(|| {
            let service = topology.service(service).name.clone();
            let process = format!("{service}/{}", first.process);
            Refusal::QueriesStuck { service, stuck: count, process }
        })
    }

    /// Takes those from the queue whose time is over or whose service is stuck, and `reply_to` from those that run.
    fn take_over(&mut self, now: Time, topology: &Topology) -> Vec<Over<C>> {
        let mut over = Vec::new();
        for number in 0..self.by_service.len() {
            if self.by_service[number].waiting.is_empty() {
                continue;
            }
            self.by_service[number].take_late(now, &mut over);
            let service = ServiceId(number as u16);
            if let Some(refusal) = self.stuck_refusal(service, topology) {
                let refused = |job| Over::refused(job, NoAnswer::Refused(refusal.clone()));
                over.extend(self.by_service[number].waiting.drain(..).map(refused));
            }
        }
        for running in &mut self.running {
            let Some(reply_to) = &running.reply_to else { continue };
            let after = reply_to.timeout;
            let error = if running.deadline <= now || reply_to.caller.is_gone() {
                NoAnswer::TimedOut { after }
            } else if running.since.elapsed() >= self.limit {
                let process = format!("{}/{}", topology.service(running.service).name, running.process);
                let limit_ms = self.limit.as_millis() as u64;
                NoAnswer::Refused(Refusal::QueryGivenUp { process, limit_ms })
            } else {
                continue;
            };
            let reply_to = running.reply_to.take().expect("it was there above");
            over.push(Over { service: running.service, reply_to, error, job: None });
        }
        over
    }

    /// Takes the threads whose query was given up and goes on out of service; gives these queries.
    fn leave_stuck(&mut self, topology: &Topology) -> Vec<(ServiceId, StuckQuery)> {
        let after = self.limit.min(STUCK_AFTER);
        let mut stuck = Vec::new();
        for running in &mut self.running {
            if running.is_stuck || running.reply_to.is_some() || running.since.elapsed() < after {
                continue;
            }
            running.is_stuck = true;
            running.charge.become_stuck();
            self.threads -= 1;
            // Queries for which no client waits get the time that the others leave.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::setpriority_process(Some(running.thread.system_id), STUCK_NICE);
            stuck.push((running.service, running.show(topology)));
        }
        stuck
    }
}

/// The priority of threads whose query was given up: the lowest.
#[cfg(target_os = "linux")]
const STUCK_NICE: i32 = 19;
