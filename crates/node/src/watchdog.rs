//! The time limits of handlers and of tasks' steps. Code that runs forever cannot be stopped from outside, so the
//! process ends: after the restart the shard continues, and a message, timer or task that repeats it becomes a dead
//! letter.

#![expect(clippy::disallowed_methods, reason = "the watchdog is a thread, and measures real time")]

use crate::events::LAST_WORDS;
use crate::{events, stderr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use stead_core::calls::{Call, Caller};
use stead_core::ids::{ServiceId, TaskId};
use stead_core::topology::Topology;

/// The current call of a worker's handler, or the current step of a thread. Written by that thread for each call, so
/// without locks; read by the watchdog once a call has run for long.
#[derive(Default)]
pub(crate) struct Probe {
    /// Odd while user code runs; each call adds two.
    calls: AtomicU64,
    /// Odd while the thread is in a turn, from one look at its inbox to the next; a thread without turns stays at 0.
    turns: AtomicU64,
    /// The service, and in the upper half the kind of cause.
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
const STEP: u64 = 4;

/// The time limit of a thread's user code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) time: Duration,
    /// The option that sets it.
    pub(crate) option: &'static str,
    /// Another way to avoid it.
    pub(crate) advice: &'static str,
}

impl Limit {
    pub(crate) fn of_handlers(time: Duration) -> Self {
        Self { time, option: "handler_timeout", advice: "Move long work into a task" }
    }

    pub(crate) fn of_steps(time: Duration) -> Self {
        Self { time, option: "task_step_timeout", advice: "Spread the work over more steps" }
    }
}

impl Probe {
    const KEY_WORDS: usize = 8;

    /// Notes that a handler is about to run.
    pub(crate) fn enter(&self, call: &Call<'_>) {
        let (kind, number) = match call.caller {
            Caller::Client { .. } => (0, 0),
            Caller::Process { .. } => (MESSAGE, 0),
            Caller::Timer { id } => (TIMER, id.0),
            Caller::Task { id } => (TASK, id.0),
        };
        self.begin(kind, number, call.service, call.key);
    }

    /// Notes that a task's step is about to run.
    pub(crate) fn enter_step(&self, id: TaskId, service: ServiceId, owner: &str) {
        self.begin(STEP, id.0, service, owner);
    }

    fn begin(&self, kind: u64, number: u64, service: ServiceId, key: &str) {
        self.what.store(kind << 32 | u64::from(service.0), Ordering::Relaxed);
        self.number.store(number, Ordering::Relaxed);
        self.key_bytes.store(key.len(), Ordering::Relaxed);
        for (word, chunk) in self.key.iter().zip(key.as_bytes().chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.step();
    }

    /// Notes that the user code has ended.
    pub(crate) fn leave(&self) {
        self.step();
    }

    /// Notes that a turn begins or ends.
    pub(crate) fn step_turn(&self) {
        self.turns.store(self.turns.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Returns the number of calls that have begun or ended: odd while one runs.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Acquire)
    }

    fn step(&self) {
        // Only the worker writes: an atomic addition is not needed. The release shows the earlier stores.
        self.calls.store(self.calls.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn describe(&self, topology: &Topology) -> String {
        let what = self.what.load(Ordering::Relaxed);
        let number = self.number.load(Ordering::Relaxed);
        let cause = match what >> 32 {
            MESSAGE => "handling a message of another process".to_owned(),
            TIMER => format!("handling timer {number}"),
            TASK => format!("handling the result of task {number}"),
            STEP => format!("in a step of its task {number}"),
            _ => "handling a client's request".to_owned(),
        };
        let len = self.key_bytes.load(Ordering::Relaxed);
        let bytes: Vec<u8> =
            self.key.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let key = String::from_utf8_lossy(&bytes[..len.min(bytes.len())]);
        let more = if len > bytes.len() { "..." } else { "" };
        format!("{}/{key}{more}, {cause}", topology.service(ServiceId(what as u16)).name)
    }
}

/// Ends the process when user code exceeds its limit.
pub(crate) struct Watchdog {
    stop: Mutex<bool>,
    news: Condvar,
    /// See [`Self::stuck`], in microseconds.
    stuck: AtomicU64,
}

impl Watchdog {
    /// The longest time between two looks.
    const PERIOD_MAX: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Self {
        Self { stop: Mutex::new(false), news: Condvar::new(), stuck: AtomicU64::new(0) }
    }

    /// Returns the longest time for which a worker has got no further in a turn, outside user code, which has a limit of its own: a
    /// disk that it reads from may hang.
    pub(crate) fn stuck(&self) -> Duration {
        Duration::from_micros(self.stuck.load(Ordering::Relaxed))
    }

    pub(crate) fn stop(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.news.notify_all();
    }

    /// Reads the probes until the node ends.
    pub(crate) fn run(&self, probes: &[(Arc<Probe>, Limit)], topology: &Topology) {
        let shortest = probes.iter().map(|(_, limit)| limit.time).min().unwrap_or_default();
        let period = (shortest / 8).clamp(Duration::from_millis(5), Self::PERIOD_MAX);
        let mut seen: Vec<(u64, Instant)> = probes.iter().map(|_| (0, Instant::now())).collect();
        let mut turns: Vec<Hold> = probes.iter().map(|_| Hold::default()).collect();
        let mut strides: Vec<Stride> = probes.iter().map(|_| Stride::default()).collect();
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
            for ((probe, limit), (calls, since)) in probes.iter().zip(&mut seen) {
                let now = probe.calls();
                if now != *calls || now % 2 == 0 {
                    (*calls, *since) = (now, Instant::now());
                } else if since.elapsed() >= limit.time {
                    abort(&probe.describe(topology), *limit);
                }
            }
            let looks = probes.iter().zip(&mut strides).map(|((probe, _), stride)| stride.look(probe));
            let stuck = period * looks.max().unwrap_or_default();
            self.stuck.store(stuck.as_micros() as u64, Ordering::Relaxed);
            for (worker, ((probe, limit), hold)) in probes.iter().zip(&mut turns).enumerate() {
                if hold.is_over(probe.turns.load(Ordering::Acquire), limit.time) {
                    events::warn(format_args!(
                        "worker {worker} has not looked at its inbox for over {} ms, though no single call has run for \
                         as long; the last one was {}",
                        limit.time.as_millis(),
                        probe.describe(topology)
                    ));
                }
            }
        }
    }
}

/// The watchdog's view of what a worker does within a turn.
#[derive(Default)]
struct Stride {
    turns: u64,
    calls: u64,
    /// Looks since the last change: a time would count the pauses of the whole process.
    looks: u32,
}

impl Stride {
    /// Returns the number of looks at which a worker was seen at the same place of a turn, outside user code.
    fn look(&mut self, probe: &Probe) -> u32 {
        let (turns, calls) = (probe.turns.load(Ordering::Acquire), probe.calls());
        let is_same = (turns, calls) == (self.turns, self.calls) && turns % 2 == 1 && calls % 2 == 0;
        *self = Self { turns, calls, looks: if is_same { self.looks + 1 } else { 0 } };
        self.looks
    }
}

/// The watchdog's view of a worker's turns.
#[derive(Default)]
struct Hold {
    turns: u64,
    since: Option<Instant>,
    is_reported: bool,
}

impl Hold {
    /// Whether the turn has lasted longer than the limit; returns true once for each turn.
    fn is_over(&mut self, turns: u64, max: Duration) -> bool {
        if turns != self.turns || self.since.is_none() {
            *self = Self { turns, since: Some(Instant::now()), is_reported: false };
        }
        let is_over = turns % 2 == 1 && self.since.is_some_and(|since| since.elapsed() >= max);
        is_over && !std::mem::replace(&mut self.is_reported, true)
    }
}

fn abort(process: &str, limit: Limit) -> ! {
    let Limit { time, option, advice } = limit;
    let text = format!(
        "stead: {process}, has run for over {} ms ({option}): the process ends now. All answered requests are safe. \
         {advice}, or raise the limit.",
        time.as_millis()
    );
    // The end waits neither for a subscriber nor for standard error.
    events::error(&text);
    events::flush(LAST_WORDS);
    // Also without a subscriber: this is the last message.
    stderr::line(text);
    stderr::flush(LAST_WORDS);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_stuck_that_gets_no_further_outside_user_code() {
        let (probe, mut stride) = (Probe::default(), Stride::default());
        assert_eq!((stride.look(&probe), stride.look(&probe)), (0, 0), "it sleeps");
        probe.step_turn();
        assert_eq!((stride.look(&probe), stride.look(&probe), stride.look(&probe)), (0, 1, 2));
        probe.step();
        assert_eq!((stride.look(&probe), stride.look(&probe)), (0, 0), "user code has its own limit");
        probe.leave();
        assert_eq!((stride.look(&probe), stride.look(&probe)), (0, 1), "it has ended");
        probe.step_turn();
        probe.step_turn();
        assert_eq!(stride.look(&probe), 0, "another turn");
    }

    #[test]
    fn a_turn_that_lasts_too_long_is_reported_once() {
        let mut hold = Hold::default();
        let (none, long) = (Duration::ZERO, Duration::from_secs(3600));
        assert!(!hold.is_over(0, none), "it sleeps");
        assert!(!hold.is_over(1, long));
        assert!(hold.is_over(1, none));
        assert!(!hold.is_over(1, none), "once");
        assert!(!hold.is_over(2, none));
        assert!(hold.is_over(3, none), "another turn");
    }
}
