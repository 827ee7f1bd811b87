//! Registers that all clients read and change at the same time, with the whole history of each.
//!
//! A register is one key of `kv`. Its history stays short enough to be searched: after some operations the clients take the next key.

use super::clients::{Client, Identity, Reasons, TIME_MAX, some_time};
use super::linearizable::{Operation, Outcome, Request, Verdict, check};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Registers that are in use at the same time.
const SLOTS: usize = 4;
/// Operations on a register until the next one takes its place.
const OPERATIONS_MAX: usize = 160;
/// The same for operations whose outcome is unknown: each makes the search longer.
const UNKNOWN_MAX: usize = 8;
/// One of this many operations is given up early, so that there are unknown ones.
const SHORT_ONE_IN: u64 = 64;
/// Longest pause of a client between two operations.
const PAUSE_MAX_US: u64 = 6_000;

/// The registers and their histories.
#[derive(Debug)]
pub(crate) struct Registers {
    begun: Instant,
    state: Mutex<State>,
    /// Each value is written once.
    next_value: AtomicU64,
    longest_us: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The generation of the register in each slot.
    current: [u64; SLOTS],
    histories: BTreeMap<(usize, u64), History>,
    checked: Vec<Checked>,
}

#[derive(Debug, Default)]
struct History {
    operations: Vec<Operation>,
    begun: usize,
    pending: usize,
    unknown: usize,
}

/// A register whose history was searched.
#[derive(Debug)]
struct Checked {
    key: String,
    last: Option<u64>,
    /// Values that may still be written.
    unknown: Vec<u64>,
}

/// The outcome of the operations on registers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) registers: usize,
    pub(crate) operations: usize,
    pub(crate) unknown: usize,
    pub(crate) longest_ms: u64,
    /// The violations, with their histories.
    pub(crate) violations: Vec<Violation>,
}

/// A register whose history is not that of a register.
#[derive(Debug, Serialize)]
pub(crate) struct Violation {
    pub(crate) what: String,
    pub(crate) key: String,
    pub(crate) history: Vec<Operation>,
}

fn key((slot, generation): (usize, u64)) -> String {
    format!("register-{slot}-{generation}")
}

impl Registers {
    pub(crate) fn new() -> Self {
        let (next_value, longest_us) = (AtomicU64::new(1), AtomicU64::new(0));
        Self { begun: Instant::now(), state: Mutex::default(), next_value, longest_us }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Calls a register again and again until it is to stop.
    pub(crate) fn run(&self, client: &mut Client, seed: u64, stops: &AtomicBool, reasons: &Reasons) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut seen = None;
        while !stops.load(Ordering::Relaxed) {
            let slot = rng.usize(..SLOTS);
            let register = self.begin(slot);
            let expected = seen.filter(|(of, _)| *of == register).and_then(|(_, value)| value);
            let value = self.next_value.fetch_add(1, Ordering::Relaxed);
            let request = match rng.u8(..8) {
                0..4 => Request::Get,
                4..6 => Request::Put(value),
                _ => Request::CompareAndSet { expected, value },
            };
            let identity = if rng.bool() { Identity::Session(value) } else { Identity::Key(value) };
            let time = some_time(&mut rng, SHORT_ONE_IN);
            let outcome = self.ask(client, register, (request, identity, time), reasons);
            if let Some(Outcome { applied, previous }) = outcome {
                seen = Some((register, if applied { Some(value) } else { previous }));
            }
            thread::sleep(Duration::from_micros(rng.u64(..PAUSE_MAX_US)));
        }
    }

    fn begin(&self, slot: usize) -> (usize, u64) {
        let mut state = self.state();
        let register = (slot, state.current[slot]);
        let history = state.histories.entry(register).or_default();
        history.begun += 1;
        history.pending += 1;
        if history.begun == OPERATIONS_MAX || history.unknown >= UNKNOWN_MAX {
            state.current[slot] += 1;
        }
        register
    }

    fn ask(
        &self,
        client: &mut Client,
        register: (usize, u64),
        (request, identity, time): (Request, Identity, Duration),
        reasons: &Reasons,
    ) -> Option<Outcome> {
        let called = self.now();
        let outcome = client.register(&key(register), request, identity, time, reasons);
        let returned = self.now();
        if outcome.is_some() {
            self.longest_us.fetch_max((returned - called) / 1_000, Ordering::Relaxed);
        }
        let mut state = self.state();
        let history = state.histories.get_mut(&register).expect("it has a pending operation");
        history.pending -= 1;
        history.unknown += usize::from(outcome.is_none() && request != Request::Get);
        // A read without an answer says nothing.
        if outcome.is_some() || request != Request::Get {
            history.operations.push(Operation { called, returned, request, outcome });
        }
        outcome
    }

    /// Searches the histories that have ended, each after one more read. With `all`, those that go on too; no client runs any more.
    pub(crate) fn check(&self, client: &mut Client, all: bool, report: &mut Report, reasons: &Reasons) {
        let ended: Vec<_> = {
            let state = self.state();
            let is_over = |(slot, generation): &(usize, u64)| all || *generation < state.current[*slot];
            let over = state.histories.iter().filter(|(of, history)| is_over(of) && history.pending == 0);
            over.map(|(register, _)| *register).collect()
        };
        for register in ended {
            self.state().histories.entry(register).or_default().pending += 1;
            let read = (Request::Get, Identity::Key(0), TIME_MAX);
            let last = self.ask(client, register, read, reasons);
            // Without an answer it is read again later.
            let Some(Outcome { previous: last, .. }) = last else { continue };
            let history = self.state().histories.remove(&register).unwrap_or_default().operations;
            let is_unknown = |operation: &&Operation| operation.outcome.is_none();
            let unknown = history.iter().filter(is_unknown).filter_map(|operation| match operation.request {
                Request::Get => None,
                Request::Put(value) | Request::CompareAndSet { value, .. } => Some(value),
            });
            let unknown: Vec<u64> = unknown.collect();
            report.registers += 1;
            report.operations += history.len();
            report.unknown += unknown.len();
            let what = match check(history.clone()) {
                Verdict::Linearizable => None,
                Verdict::NotLinearizable => Some("its history is not linearizable"),
                Verdict::Undecided => Some("its history is too long to be searched"),
            };
            let key = key(register);
            if let Some(what) = what {
                report.violations.push(Violation { what: what.to_owned(), key: key.clone(), history });
            }
            self.state().checked.push(Checked { key, last, unknown });
        }
        report.longest_ms = self.longest_us.load(Ordering::Relaxed) / 1_000;
    }

    /// Whether registers are left whose history is not searched yet.
    pub(crate) fn is_left(&self) -> bool {
        !self.state().histories.is_empty()
    }

    /// Reads each register again: what was there at its last read is there still, unless an operation without an answer came late.
    pub(crate) fn check_kept(&self, client: &mut Client, report: &mut Report, reasons: &Reasons) {
        for Checked { key, last, unknown } in std::mem::take(&mut self.state().checked) {
            let found = client.register(&key, Request::Get, Identity::Key(0), TIME_MAX, reasons);
            let what = match found {
                Some(Outcome { previous, .. }) if previous == last => continue,
                Some(Outcome { previous: Some(late), .. }) if unknown.contains(&late) => continue,
                Some(Outcome { previous, .. }) => {
                    format!("it held {last:?} when it was left, and {previous:?} at the end")
                }
                None => "it cannot be read at the end".to_owned(),
            };
            report.violations.push(Violation { what, key, history: Vec::new() });
        }
    }
}
