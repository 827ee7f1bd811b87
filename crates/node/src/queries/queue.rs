//! The queue of queries: those that wait for a part, those that run, and those that were given up.

use crate::bell::Bell;
use crate::env::Watch;
use crate::memory::Memory;
use crate::metrics::Counters;
use crate::reply::{Caller, NoAnswer, ReplyTo};
use crate::roster::PartId;
use crate::sizes::Sizes;
use crate::status::StuckQuery;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::calls::Refusal;
use stead_core::capture::Reading;
use stead_core::ids::{Micros, ServiceId, Time};
use stead_core::key::Key;
use stead_core::topology::Topology;

/// Number of parts that run queries, each on a thread, besides those of queries that were given up.
pub(crate) const QUERY_THREADS: usize = 8;
/// Number of these threads that take only queries of services that run none.
const SPARE_THREADS: usize = 2;
/// Number of queries of a service that were given up and still run, from which on no other query of it begins. Queries that
/// run by then may be given up too, so such queries of one service hold at most
/// `STUCK_MAX - 1 + QUERY_THREADS - SPARE_THREADS` threads.
pub(crate) const STUCK_MAX: usize = 4;
/// Time after which the thread of a query without a waiting client is replaced, or `handler_timeout` if that is less.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Time after which the client of a query that found no space should retry.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Interval at which the watcher looks for overdue queries.
pub(super) const LOOK: Micros = Micros::from_millis(20);
/// Time for which the watcher continues to look after the last query, so that queries seldom have to wake it.
pub(super) const LOOK_ON: Micros = Micros::from_millis(200);

/// A query that its shard has released, and the client that waits for it.
pub(crate) struct Job<C> {
    pub(super) reading: Box<Reading>,
    /// The process of the reading, copied before the queue is locked.
    process: Key,
    pub(super) reply_to: ReplyTo<C>,
    charge: Charge,
}

impl<C> Job<C> {
    pub(crate) fn new(reading: Box<Reading>, reply_to: ReplyTo<C>, memory: &Arc<Memory>) -> Self {
        let charge = Charge::new(memory, reading.weight());
        Self { process: reading.query.process.clone(), reading, reply_to, charge }
    }
}

/// Bytes of a query in the account of the node's memory.
pub(super) struct Charge {
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

    /// Moves the bytes to the account of stuck queries: they may be held for ever, and must not take space from others.
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

/// Queries that wait for a thread, and those that run.
pub(crate) struct QueryQueue<C> {
    queue: Mutex<Queue<C>>,
    /// Rung for the watcher when there are queries again, or the node ends.
    pub(super) watch_bell: Bell,
    /// By service, the numbers in the queue, to be read without its lock.
    pub(super) waiting: Vec<AtomicUsize>,
    pub(super) stuck: Vec<AtomicUsize>,
    /// Its limits.
    sizes: Sizes,
}

pub(super) struct Queue<C> {
    /// The queries that wait, by service. The services take turns.
    by_service: Vec<ServiceQueue<C>>,
    /// The service whose turn it is.
    turn: usize,
    pub(super) running: Vec<Running<C>>,
    /// The time limit of a query; set before any query can be stuck.
    pub(super) limit: Duration,
    /// Number of parts, each on a thread, except those whose query was given up.
    pub(super) threads: usize,
    /// The bells of those that have nothing to do.
    pub(super) idle: Vec<Arc<Bell>>,
    /// Number of parts that were made.
    pub(super) made: usize,
    /// The number of queries that have begun.
    pub(super) begun: u64,
    pub(super) watcher_sleeps: bool,
    /// Whether no more queries come: threads end when none waits.
    pub(super) is_closing: bool,
    /// Whether the node has ended.
    pub(super) is_over: bool,
}

/// Queries of a service that wait for a thread.
struct ServiceQueue<C> {
    waiting: VecDeque<Job<C>>,
    /// A lower bound of their deadlines.
    deadline_min: Time,
}

/// A query that a thread runs.
pub(super) struct Running<C> {
    number: u64,
    service: ServiceId,
    process: Key,
    since: Time,
    /// The client that waits, until an answer is given.
    pub(super) reply_to: Option<ReplyTo<C>>,
    deadline: Time,
    /// Whether it was given up, and its thread replaced.
    pub(super) is_stuck: bool,
    pub(super) charge: Charge,
    /// The part that runs it, and its thread.
    part: usize,
    thread: QueryThread,
}

/// A thread that runs queries, as the system knows it.
#[derive(Clone, Copy)]
pub(crate) struct QueryThread {
    #[cfg(target_os = "linux")]
    system_id: rustix::process::Pid,
}

impl QueryThread {
    pub(super) fn current() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            system_id: rustix::thread::gettid(),
        }
    }

    /// Gives the thread the lowest priority. It must not have ended: the system may use its id again.
    pub(super) fn let_others_first(self) {
        // If this is refused, the thread competes like all others.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::setpriority_process(Some(self.system_id), STUCK_NICE);
    }
}

impl<C: Caller> QueryQueue<C> {
    pub(crate) fn new(services: usize, sizes: Sizes) -> Self {
        let zeros = || (0..services).map(|_| AtomicUsize::new(0)).collect();
        let empty = || ServiceQueue { waiting: VecDeque::new(), deadline_min: Time(u64::MAX) };
        let queue = Queue {
            by_service: std::iter::repeat_with(empty).take(services).collect(),
            turn: 0,
            running: Vec::new(),
            limit: Duration::MAX,
            threads: 0,
            idle: Vec::new(),
            made: 0,
            begun: 0,
            watcher_sleeps: false,
            is_closing: false,
            is_over: false,
        };
        let (queue, watch_bell) = (Mutex::new(queue), Bell::default());
        Self { queue, watch_bell, waiting: zeros(), stuck: zeros(), sizes }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue<C>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether a query of a service is accepted now.
    ///
    /// # Errors
    /// [`Refusal::QueriesStuck`] or [`Refusal::Overloaded`].
    pub(crate) fn admit(
        &self,
        service: ServiceId,
        topology: &Topology,
        memory: &Memory,
        now: impl FnOnce() -> Time,
    ) -> Result<(), Refusal> {
        let at = usize::from(service.0);
        if self.stuck[at].load(Ordering::Relaxed) >= STUCK_MAX
            && let Some(refusal) = self.queue().stuck_refusal(service, topology, now())
        {
            return Err(refusal);
        }
        if self.is_full(at) || !memory.takes_queries() {
            return Err(Refusal::Overloaded { retry_after: RETRY_AFTER });
        }
        Ok(())
    }

    /// Whether no other query of a service may wait.
    fn is_full(&self, service: usize) -> bool {
        self.waiting[service].load(Ordering::Relaxed) >= self.sizes.service_queries_max
            || sum(&self.waiting) >= self.sizes.queries_max
    }

    /// Adds the queries that shards have released; empties `jobs`. Those for which there is no room are refused: more may have
    /// been admitted before any of them came.
    pub(crate) fn push(&self, counters: &Counters, watch: &impl Watch, jobs: &mut Vec<Job<C>>) {
        let mut refused = Vec::new();
        let mut queue = self.queue();
        if queue.is_over {
            drop(queue);
            // After the lock: dropping a call wakes its caller.
            jobs.clear();
            return;
        }
        for job in jobs.drain(..) {
            let service = usize::from(job.reading.service.0);
            let mut is_full = self.is_full(service);
            watch.is_full(&mut is_full);
            if is_full {
                let refusal = Refusal::Overloaded { retry_after: RETRY_AFTER };
                refused.push(Over::refused(job, NoAnswer::Refused(refusal)));
                continue;
            }
            queue.by_service[service].push(job);
            self.waiting[service].fetch_add(1, Ordering::Relaxed);
        }
        // The worker wakes only one part, which wakes the next if there is more to do.
        let (idle, wakes_watcher) = (queue.idle.pop(), queue.watcher_sleeps);
        drop(queue);
        if let Some(bell) = idle {
            bell.ring();
        }
        if wakes_watcher {
            self.watch_bell.ring();
        }
        // After the lock: an answer runs code of its caller.
        for over in refused {
            self.give_up(counters, over);
        }
    }

    /// Returns the number of queries that wait for a thread with its limit, of all services and then of each.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (usize, usize)> {
        let each = self.waiting.iter().map(|waiting| waiting.load(Ordering::Relaxed));
        let each = each.map(|waiting| (waiting, self.sizes.service_queries_max));
        std::iter::once((sum(&self.waiting), self.sizes.queries_max)).chain(each)
    }

    /// Returns the number of queries that wait for a thread, and of those that were given up and still run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (sum(&self.waiting) as u64, sum(&self.stuck) as u64)
    }

    /// Returns the queries that were given up and still run, the one that has run for the longest first.
    pub(crate) fn stuck(&self, topology: &Topology, now: Time) -> Vec<StuckQuery> {
        let queue = self.queue();
        let mut stuck: Vec<&Running<C>> = queue.running.iter().filter(|running| running.is_stuck).collect();
        stuck.sort_unstable_by_key(|running| running.since);
        stuck.into_iter().map(|running| running.show(topology, now)).collect()
    }

    /// Accepts no more queries: parts end when none waits.
    pub(crate) fn close(&self) {
        let mut queue = self.queue();
        queue.is_closing = true;
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        idle.iter().for_each(|bell| bell.ring());
    }

    /// Whether no client waits for a query, except for that of the part by which the node is ended. One that was given up may
    /// still run.
    pub(crate) fn has_answered(&self, by: Option<PartId>) -> bool {
        self.queue().has_answered(by)
    }

    /// Ends the queue with the node: clients that still wait get no answer, and threads end as soon as they can.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue();
        queue.is_over = true;
        let waiting: Vec<_> =
            queue.by_service.iter_mut().map(|queue| std::mem::take(&mut queue.waiting)).collect();
        let callers: Vec<_> = queue.running.iter_mut().filter_map(|r| r.reply_to.take()).collect();
        self.waiting.iter().for_each(|waiting| waiting.store(0, Ordering::Relaxed));
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        idle.iter().for_each(|bell| bell.ring());
        self.watch_bell.ring();
        // After the lock: dropping a call wakes its caller.
        drop((waiting, callers));
    }

    /// Whether all parts have ended that run no query.
    pub(crate) fn has_no_idle_part(&self) -> bool {
        let queue = self.queue();
        let busy = queue.running.iter().filter(|running| !running.is_stuck).count();
        queue.threads <= busy
    }

    /// Notes that a part begins: from now on it counts among those that serve.
    pub(crate) fn part_begins(&self) {
        self.queue().threads += 1;
    }

    /// Notes that a part does not begin after all, because the system refuses its thread.
    pub(crate) fn part_refused(&self) {
        self.queue().threads -= 1;
    }
}

fn sum(counts: &[AtomicUsize]) -> usize {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// A query that is not waited for any more.
pub(super) struct Over<C> {
    pub(super) service: ServiceId,
    pub(super) reply_to: ReplyTo<C>,
    pub(super) error: NoAnswer,
    /// Set if it has not begun; dropped after the lock.
    pub(super) job: Option<(Charge, Box<Reading>)>,
}

impl<C> Over<C> {
    /// Returns the end of a query that has waited until its deadline.
    pub(super) fn late(job: Job<C>) -> Self {
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

    /// Removes the queries whose deadline has passed.
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
    fn elapsed(&self, now: Time) -> Duration {
        now.since(self.since).into()
    }

    fn show(&self, topology: &Topology, now: Time) -> StuckQuery {
        StuckQuery {
            service: topology.service(self.service).name.clone(),
            process: self.process.to_string(),
            running: self.elapsed(now),
        }
    }
}

impl<C: Caller> Queue<C> {
    pub(super) fn is_waiting(&self) -> bool {
        self.by_service.iter().any(|queue| !queue.waiting.is_empty())
    }

    /// As [`QueryQueue::has_answered`].
    fn has_answered(&self, by: Option<PartId>) -> bool {
        let is_own = |running: &Running<C>| Some(PartId::Query(running.part)) == by;
        let runs = |running: &Running<C>| running.reply_to.is_some() && !is_own(running);
        !self.is_waiting() && !self.running.iter().any(runs)
    }

    /// Returns the next service of which a query may begin.
    pub(super) fn next_queue(&self) -> Option<usize> {
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

    pub(super) fn pop(&mut self) -> Option<Job<C>> {
        let service = self.next_queue()?;
        self.turn = (service + 1) % self.by_service.len();
        self.by_service[service].waiting.pop_front()
    }

    /// Notes that a part begins a query. Returns the query's number, and what it reads.
    pub(super) fn begin(
        &mut self,
        job: Job<C>,
        (part, thread): (usize, QueryThread),
        now: Time,
    ) -> (u64, Box<Reading>) {
        let Job { reading, process, reply_to, charge } = job;
        self.begun += 1;
        self.running.push(Running {
            number: self.begun,
            service: reading.service,
            process,
            since: now,
            deadline: reply_to.deadline,
            reply_to: Some(reply_to),
            is_stuck: false,
            charge,
            part,
            thread,
        });
        (self.begun, reading)
    }

    pub(super) fn end(&mut self, number: u64) -> Running<C> {
        let at = self.running.iter().position(|running| running.number == number);
        self.running.swap_remove(at.expect("its own thread alone takes it off the list"))
    }

    /// Returns the reason for which queries of a service are refused: the maximum number of stuck queries have run for longer
    /// than the time limit.
    fn stuck_refusal(&self, service: ServiceId, topology: &Topology, now: Time) -> Option<Refusal> {
        let is_of = |r: &&Running<C>| r.is_stuck && r.service == service && r.elapsed(now) >= self.limit;
        let stuck = || self.running.iter().filter(is_of);
        let first = stuck().min_by_key(|running| running.since)?;
        let count = stuck().count();
        (count >= STUCK_MAX).then(|| {
            let service = topology.service(service).name.clone();
            let process = format!("{service}/{}", first.process);
            Refusal::QueriesStuck { service, stuck: count, process }
        })
    }

    /// Removes the waiting queries that are overdue or whose service is stuck, and takes the clients of running queries that
    /// are overdue.
    pub(super) fn take_over(&mut self, now: Time, topology: &Topology) -> Vec<Over<C>> {
        let mut over = Vec::new();
        for number in 0..self.by_service.len() {
            if self.by_service[number].waiting.is_empty() {
                continue;
            }
            self.by_service[number].take_late(now, &mut over);
            let service = ServiceId(number as u16);
            if let Some(refusal) = self.stuck_refusal(service, topology, now) {
                let refused = |job| Over::refused(job, NoAnswer::Refused(refusal.clone()));
                over.extend(self.by_service[number].waiting.drain(..).map(refused));
            }
        }
        for running in &mut self.running {
            let Some(reply_to) = &running.reply_to else { continue };
            let after = reply_to.timeout;
            let error = if running.deadline <= now || reply_to.caller.is_gone() {
                NoAnswer::TimedOut { after }
            } else if running.elapsed(now) >= self.limit {
                let process = format!("{}/{}", topology.service(running.service).name, running.process);
                NoAnswer::Refused(Refusal::QueryGivenUp { process, limit: self.limit })
            } else {
                continue;
            };
            let reply_to = running.reply_to.take().expect("it was there above");
            over.push(Over { service: running.service, reply_to, error, job: None });
        }
        over
    }

    /// Takes threads out of service whose query was given up and still runs; returns these queries and threads. The
    /// threads do not end while the queue is locked.
    pub(super) fn leave_stuck(
        &mut self,
        topology: &Topology,
        now: Time,
    ) -> Vec<(ServiceId, StuckQuery, QueryThread)> {
        let after = self.limit.min(STUCK_AFTER);
        let mut stuck = Vec::new();
        for running in &mut self.running {
            if running.is_stuck || running.reply_to.is_some() || running.elapsed(now) < after {
                continue;
            }
            running.is_stuck = true;
            running.charge.become_stuck();
            self.threads -= 1;
            stuck.push((running.service, running.show(topology, now), running.thread));
        }
        stuck
    }
}

/// The priority of threads whose query was given up: the lowest.
#[cfg(target_os = "linux")]
const STUCK_NICE: i32 = 19;
