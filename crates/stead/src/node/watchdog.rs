//! The time limit of handlers. One that runs for ever can't be stopped from outside, so the process ends: after the
//! restart the shard goes on, and a message, timer or task that does it again becomes a dead letter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead_core::handler::{Call, Caller};
use stead_core::ids::{Key, ServiceId};
use stead_core::topology::Topology;

/// What a worker's handler is at. Written by the worker, read by the watchdog.
#[derive(Default)]
pub(crate) struct Probe {
    /// Odd while a handler runs; each call adds two.
    calls: AtomicU64,
    at: Mutex<Option<(ServiceId, Key, Cause)>>,
}

/// What a handler was called for, without what the call borrows.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Client,
    Message,
    Timer(u64),
    Task(u64),
}

impl Probe {
    /// A handler is about to run.
    pub(crate) fn enter(&self, call: &Call<'_>) {
        let cause = match call.caller {
            Caller::Client { .. } => Cause::Client,
            Caller::Process { .. } => Cause::Message,
            Caller::Timer { id } => Cause::Timer(id.0),
            Caller::Task { id } => Cause::Task(id.0),
        };
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some((call.service, call.key.clone(), cause));
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(crate) fn leave(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn describe(&self, topology: &Topology) -> String {
        match &*self.at.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((service, key, cause)) => {
                let cause = match cause {
                    Cause::Client => "a client's request".to_owned(),
                    Cause::Message => "a message of another process".to_owned(),
                    Cause::Timer(id) => format!("timer {id}"),
                    Cause::Task(id) => format!("the result of task {id}"),
                };
                format!("{}/{key}, handling {cause}", topology.service(*service).name)
            }
            None => "an unknown process".to_owned(),
        }
    }
}

/// Ends the process when a handler is over its limit.
pub(crate) struct Watchdog {
    stop: Mutex<bool>,
    news: Condvar,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        Self { stop: Mutex::new(false), news: Condvar::new() }
    }

    pub(crate) fn stop(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.news.notify_all();
    }

    /// Looks at the probes until the node ends.
    pub(crate) fn run(&self, probes: &[std::sync::Arc<Probe>], limit: Duration, topology: &Topology) {
        let period = (limit / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let mut seen: Vec<(u64, Instant)> = probes.iter().map(|_| (0, Instant::now())).collect();
        loop {
            let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            let (stop, _) = self.news.wait_timeout(stop, period).unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            for (probe, (calls, since)) in probes.iter().zip(&mut seen) {
                let now = probe.calls.load(Ordering::Relaxed);
                if now != *calls || now % 2 == 0 {
                    (*calls, *since) = (now, Instant::now());
                } else if since.elapsed() >= limit {
                    abort(&probe.describe(topology), limit);
                }
            }
        }
    }
}

fn abort(process: &str, limit: Duration) -> ! {
    let text = format!(
        "stead: {process}, has run for over {} ms (handler_timeout): the process ends now. What had been answered is safe. \
         Move long work into a task, or raise the limit.",
        limit.as_millis()
    );
    tracing::error!("{text}");
    // Also without a subscriber: this is the last that can be said.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
    std::process::abort()
}
