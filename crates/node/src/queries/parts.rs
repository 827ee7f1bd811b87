//! The parts that run queries, and the watcher that gives queries up.

use crate::bell::Bell;
use crate::drive::put_on_thread;
use crate::env::{Env, Program};
use crate::events;
use crate::metrics::Counters;
use crate::part::{Part, Turned};
use crate::queries::queue::{
    LOOK, LOOK_ON, Over, QUERY_THREADS, QueryQueue, QueryThread, Running, STUCK_MAX,
};
use crate::reply::{Caller, NoAnswer};
use crate::roster::PartId;
use crate::shared::Shared;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::calls::Refusal;
use stead_core::capture::Reading;
use stead_core::ids::Time;

impl<C: Caller> QueryQueue<C> {
    /// Takes the next query that waits for a part, or gives it up if it is not waited for any more.
    fn begin_next<E: Env>(&self, shared: &Shared<E>, part: &mut QueryPart) -> Turned {
        let mut queue = self.queue();
        queue.idle.retain(|bell| !Arc::ptr_eq(bell, &part.bell));
        let Some(job) = queue.pop() else {
            if queue.is_over || queue.is_closing && !queue.is_waiting() {
                queue.threads -= 1;
                return Turned::Ended;
            }
            queue.idle.push(Arc::clone(&part.bell));
            return Turned::Until(None);
        };
        let service = job.reading.service;
        self.waiting[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
        let now = shared.now();
        if job.reply_to.deadline <= now || job.reply_to.caller.is_gone() {
            drop(queue);
            self.give_up(&shared.counters, Over::late(job));
            return Turned::Again;
        }
        let (number, reading) = queue.begin(job, (part.number, QueryThread::current()), now);
        let next = if queue.next_queue().is_some() { queue.idle.pop() } else { None };
        drop(queue);
        if let Some(bell) = next {
            bell.ring();
        }
        part.begun = Some((number, reading));
        Turned::Again
    }

    /// Runs a query that was begun, and answers its client unless it was given up meanwhile.
    fn run<E: Env>(&self, shared: &Shared<E>, number: u64, reading: Box<Reading>) -> Turned {
        let service = reading.service;
        let answer = reading.answer(|call, view| shared.program.query(call, view, &shared.topology));
        // The capture may be large by now: it goes before the answer shows that the query has ended.
        drop(reading);
        let mut queue = self.queue();
        let Running { reply_to, is_stuck, charge, .. } = queue.end(number);
        drop(charge);
        if is_stuck {
            self.stuck[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
            // One that was held back for it may begin. Another part serves in the place of this one.
            let idle = queue.idle.pop();
            drop(queue);
            if let Some(bell) = idle {
                bell.ring();
            }
            return Turned::Ended;
        }
        let Some(reply_to) = reply_to else { return Turned::Again };
        drop(queue);
        let counters = &shared.counters.services[usize::from(service.0)];
        counters.answers.add(1);
        if answer.result.is_err() {
            counters.refusals.add(1);
        }
        reply_to.caller.answer(Ok(answer));
        let is_closing = self.queue().is_closing;
        if is_closing {
            // The end of the node waits for this answer.
            shared.roster.ring();
        }
        Turned::Again
    }

    /// Answers the client of a query that was given up or refused, unless the client has gone.
    pub(super) fn give_up(&self, counters: &Counters, over: Over<C>) {
        let Over { service, reply_to, error, job } = over;
        drop(job);
        if reply_to.caller.is_gone() {
            return;
        }
        if !matches!(error, NoAnswer::Refused(Refusal::QueriesStuck { .. } | Refusal::Overloaded { .. })) {
            counters.queries_given_up.add(1);
        }
        let counters = &counters.services[usize::from(service.0)];
        counters.answers.add(1);
        counters.refusals.add(1);
        reply_to.caller.answer(Err(error));
    }
}

/// A part that runs queries: one turn takes the next one, the turn after it runs it. It ends with the node, or when its
/// query was given up and another part has taken its place.
pub struct QueryPart {
    number: usize,
    bell: Arc<Bell>,
    /// The query that it has taken, by its number.
    begun: Option<(u64, Box<Reading>)>,
}

impl QueryPart {
    /// Creates a part.
    pub(crate) fn new<E: Env>(hub: &Shared<E>) -> Self {
        let mut queue = hub.queries.queue();
        let number = queue.made;
        queue.made += 1;
        drop(queue);
        Self { number, bell: Arc::default(), begun: None }
    }

    /// Returns its number: parts are counted from 0 in the order in which they are made.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Returns its name.
    pub(crate) fn id(&self) -> PartId {
        PartId::Query(self.number)
    }

    /// Whether it has taken a query, which the next turn runs.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.is_some()
    }
}

impl<E: Env> Part<Shared<E>> for QueryPart {
    type Error = Infallible;

    fn bell<'a>(&'a self, _: &'a Shared<E>) -> &'a Bell {
        &self.bell
    }

    fn turn(&mut self, hub: &Shared<E>, _: Time) -> Result<Turned, Infallible> {
        Ok(match self.begun.take() {
            Some((number, reading)) => hub.queries.run(hub, number, reading),
            None => hub.queries.begin_next(hub, self),
        })
    }
}

/// The watcher's means over the threads of the parts that run queries.
pub(crate) trait QueryThreads: Send {
    /// Puts a part on a thread.
    ///
    /// # Errors
    /// The system's, if there is no thread for it; then the part is dropped.
    fn run(&mut self, part: QueryPart) -> io::Result<()>;

    /// Lowers the priority of a thread whose query was given up and still runs: without a waiting client it gets only
    /// the time that the others leave.
    fn let_others_first(&mut self, thread: QueryThread);
}

/// In production each part has a thread of its own.
pub(crate) struct OwnThreads<E: Env>(pub(crate) Arc<Shared<E>>);

impl<E: Env> QueryThreads for OwnThreads<E> {
    fn run(&mut self, part: QueryPart) -> io::Result<()> {
        put_on_thread(&self.0, part.id(), part).map(drop)
    }

    fn let_others_first(&mut self, thread: QueryThread) {
        thread.let_others_first();
    }
}

/// The part that watches over queries: it answers those whose time is over, and replaces parts that do not come back.
pub struct QueryWatch {
    threads: Box<dyn QueryThreads>,
    /// Queries that had begun at the last turn, and the time at which there was one last.
    begun: u64,
    last: Time,
    /// Whether the last attempt to start a part succeeded.
    could_start: bool,
}

impl QueryWatch {
    /// Creates the watcher. A query that has run for `limit` is given up.
    pub(crate) fn new<E: Env>(hub: &Shared<E>, limit: Duration, threads: Box<dyn QueryThreads>) -> Self {
        hub.queries.queue().limit = limit;
        Self { threads, begun: 0, last: hub.now(), could_start: true }
    }

    /// Begins as many parts as are missing, until the system refuses a thread: the next turn tries again.
    fn start_missing<E: Env>(&mut self, hub: &Shared<E>, missing: usize) {
        for _ in 0..missing {
            let part = QueryPart::new(hub);
            let started = hub.begin_part(part.id(), || self.threads.run(part));
            let could_start = std::mem::replace(&mut self.could_start, started.is_ok());
            let Err(error) = started else { continue };
            if could_start {
                events::warn(format_args!(
                    "cannot start another thread for queries, and tries again: {error}"
                ));
            }
            return;
        }
    }
}

impl<E: Env> Part<Shared<E>> for QueryWatch {
    type Error = Infallible;

    fn bell<'a>(&'a self, hub: &'a Shared<E>) -> &'a Bell {
        &hub.queries.watch_bell
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        let (queries, topology) = (&hub.queries, &hub.topology);
        let mut queue = queries.queue();
        if queue.is_over {
            return Ok(Turned::Ended);
        }
        if queue.begun != self.begun || queue.is_waiting() || queue.running.iter().any(|r| !r.is_stuck) {
            (self.begun, self.last) = (queue.begun, now);
        }
        let over = queue.take_over(now, topology);
        for job in over.iter().filter_map(|over| over.job.as_ref()) {
            queries.waiting[usize::from(job.1.service.0)].fetch_sub(1, Ordering::Relaxed);
        }
        let stuck = queue.leave_stuck(topology, now);
        for (service, _, thread) in &stuck {
            queries.stuck[usize::from(service.0)].fetch_add(1, Ordering::Relaxed);
            // Within the lock: the thread exists.
            self.threads.let_others_first(*thread);
        }
        let missing = if queue.is_closing { 0 } else { QUERY_THREADS.saturating_sub(queue.threads) };
        let is_quiet = now >= self.last.plus(LOOK_ON) && missing == 0;
        queue.watcher_sleeps = is_quiet;
        drop(queue);
        for over in over {
            queries.give_up(&hub.counters, over);
        }
        self.start_missing(hub, missing);
        for (_, query, _) in stuck {
            events::warn(format_args!(
                "a query of {}/{} was given up and still runs, for {:.1} s now: its thread was replaced; at {STUCK_MAX} \
                 of a service its other queries wait, and are refused if these run for as long as a handler may, until \
                 one ends or the node restarts",
                query.service,
                query.process,
                query.running.as_secs_f64()
            ));
        }
        Ok(Turned::Until((!is_quiet).then(|| now.plus(LOOK))))
    }
}
