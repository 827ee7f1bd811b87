//! The time limit of handlers. One that runs for ever can't be stopped from outside, so the process ends: after the
//! restart the shard goes on, and a message, timer or task that does it again becomes a dead letter.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead_core::handler::{Call, Caller};
use stead_core::ids::ServiceId;
use stead_core::topology::Topology;

/// What a worker's handler is at. Written by the worker for each call, so without locks; read by the watchdog once a call
/// has run for long.
#[derive(Default)]
pub(crate) struct Probe {
    /// Odd while a handler runs; each call adds two.
    calls: AtomicU64,
    /// The service, and in the upper half what kind of cause it is.
    what: AtomicU64,
    /// The number of the timer or task.
    number: AtomicU64,
    key_bytes: AtomicUsize,
    /// The beginning of the key.
    key: [AtomicU64; Self::KEY_WORDS],
}

/// Kinds of causes.
const MESSAGE: u64 = 1;
const TIMER: u64 = 2;
const TASK: u64 = 3;

impl Probe {
    const KEY_WORDS: usize = 8;

    /// A handler is about to run.
    pub(crate) fn enter(&self, call: &Call<'_>) {
        let (kind, number) = match call.caller {
            Caller::Client { .. } => (0, 0),
            Caller::Process { .. } => (MESSAGE, 0),
            Caller::Timer { id } => (TIMER, id.0),
            Caller::Task { id } => (TASK, id.0),
        };
        self.what.store(kind << 32 | u64::from(call.service.0), Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
        self.key_bytes.store(call.key.len(), Ordering::Relaxed);
        for (word, chunk) in self.key.iter().zip(call.key.as_bytes().chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.step();
    }

    /// It has ended.
    pub(crate) fn leave(&self) {
        self.step();
    }

    fn step(&self) {
        // The worker alone writes: no need of an atomic addition. The release shows what was stored before.
        self.calls.store(self.calls.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn describe(&self, topology: &Topology) -> String {
        let what = self.what.load(Ordering::Relaxed);
        let number = self.number.load(Ordering::Relaxed);
        let cause = match what >> 32 {
            MESSAGE => "a message of another process".to_owned(),
            TIMER => format!("timer {number}"),
            TASK => format!("the result of task {number}"),
            _ => "a client's request".to_owned(),
        };
        let len = self.key_bytes.load(Ordering::Relaxed);
        let bytes: Vec<u8> =
            self.key.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let key = String::from_utf8_lossy(&bytes[..len.min(bytes.len())]);
        let more = if len > bytes.len() { "..." } else { "" };
        format!("{}/{key}{more}, handling {cause}", topology.service(ServiceId(what as u16)).name)
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
                let now = probe.calls.load(Ordering::Acquire);
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
