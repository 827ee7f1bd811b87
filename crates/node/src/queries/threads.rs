//! The threads that run queries, and the watcher that gives queries up.

#![expect(clippy::disallowed_methods, reason = "queries run on threads of their own, for any time")]

use crate::env::{Caller, Env, NoAnswer, Program};
use crate::events;
use crate::panics;
use crate::queries::queue::{
    LOOK, LOOK_ON, Over, QUERY_THREADS, QueryQueue, QueryThread, Running, STUCK_MAX,
};
use crate::shared::Shared;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stead_core::calls::Refusal;

impl<C: Caller> QueryQueue<C> {
    /// Starts a thread that runs queries until the node ends.
    pub(crate) fn start_thread<E: Env<Caller = C>>(shared: &Arc<Shared<E>>) -> io::Result<()> {
        shared.queries.queue().threads += 1;
        let node = Arc::clone(shared);
        // The thread belongs to no group: user code cannot be stopped, and the end of the node must not wait for ever.
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
                // Another thread has replaced this one.
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

    /// Runs the next waiting query, or gives it up if its client does not wait any more.
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
        // The capture may be large by now: it is dropped before the answer shows that the query has ended.
        drop(reading);
        let mut queue = self.queue();
        let Running { reply_to, is_stuck, charge, .. } = queue.end(number);
        drop(charge);
        if is_stuck {
            self.stuck[usize::from(service.0)].fetch_sub(1, Ordering::Relaxed);
            self.ended.notify_all();
            // A query that was held back because of it may begin.
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

    /// Runs the next waiting query, as a thread for queries does; returns whether there was one.
    pub(crate) fn step<E: Env<Caller = C>>(&self, shared: &Shared<E>) -> bool {
        !matches!(self.run_next(shared, QueryThread::current()), Ran::None)
    }

    /// Answers the client of a query that was given up, unless the client has gone.
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

    /// Gives up overdue queries and replaces the threads of those that still run, until the node ends.
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
}

/// The result of looking for the next query.
enum Ran {
    One,
    /// A query that was given up meanwhile, together with its thread.
    Stuck,
    None,
}
