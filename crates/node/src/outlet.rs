//! A bounded queue for a target that may block, fail or panic, such as standard error or a subscriber: one thread
//! serves it, and no other waits for the target. An item that finds the queue full is dropped and counted.

#![expect(clippy::disallowed_methods, reason = "its thread serves what may block")]

use crate::panics;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum number of bytes that wait in one queue: 1 MiB.
pub(crate) const QUEUE_BYTES_MAX: usize = 1 << 20;

/// The result of a delivery.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivered {
    /// Whether the item was delivered.
    pub(crate) item: bool,
    /// Whether the report of missing items before it was delivered.
    pub(crate) report: bool,
}

/// Delivers an item, and before it a report of the number of items that are missing there, if any.
pub(crate) type Deliver<T> = fn(&T, u64) -> Delivered;

pub(crate) struct Outlet<T> {
    state: Mutex<State<T>>,
    news: Condvar,
    /// Signalled when nothing waits any more.
    drained: Condvar,
}

struct State<T> {
    /// Items with their bytes.
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// Whether an item was taken and is neither delivered nor dropped yet.
    is_delivering: bool,
    has_thread: bool,
    dropped: u64,
    /// Number of these that were reported.
    reported: u64,
}

impl<T: Send + 'static> Outlet<T> {
    pub(crate) const fn new() -> Self {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            is_delivering: false,
            has_thread: false,
            dropped: 0,
            reported: 0,
        };
        Self { state: Mutex::new(state), news: Condvar::new(), drained: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of dropped items: the queue was full, or they could not be delivered.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Adds an item; the first one starts the thread, with this name.
    pub(crate) fn push(&'static self, item: T, bytes: usize, thread: &str, deliver: Deliver<T>) {
        let mut state = self.lock();
        if !state.has_thread {
            let spawned = thread::Builder::new().name(thread.to_owned()).spawn(move || self.run(deliver));
            state.has_thread = spawned.is_ok();
        }
        if !state.has_thread || state.bytes + bytes > QUEUE_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        drop(state);
        self.news.notify_one();
    }

    /// Waits until all added items are delivered or dropped, at most `wait`; returns whether they are.
    pub(crate) fn flush(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.lock();
        while !state.items.is_empty() || state.is_delivering {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self, deliver: Deliver<T>) {
        let mut state = self.lock();
        loop {
            let Some((item, bytes)) = state.items.pop_front() else {
                self.drained.notify_all();
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.bytes -= bytes;
            state.is_delivering = true;
            let missing = state.dropped - state.reported;
            drop(state);
            // A panic is not printed and does not end this thread: the item is dropped.
            let delivered = panics::catch(|| deliver(&item, missing)).unwrap_or_default();
            drop(item);
            state = self.lock();
            state.is_delivering = false;
            state.reported += if delivered.report { missing } else { 0 };
            state.dropped += u64::from(!delivered.item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_delivery_that_does_not_end_holds_nobody_up_and_the_queue_stays_small() {
        static QUEUE: Outlet<u32> = Outlet::new();
        static GATE: Mutex<()> = Mutex::new(());
        fn deliver(_: &u32, _: u64) -> Delivered {
            let _open = GATE.lock();
            Delivered { item: true, report: true }
        }
        let closed = GATE.lock().unwrap();
        for item in 0..4000 {
            QUEUE.push(item, 1000, "outlet-test", deliver);
        }
        assert!(!QUEUE.flush(Duration::from_millis(1)));
        // One guard: two in one statement would deadlock.
        let state = QUEUE.lock();
        let (bytes, dropped) = (state.bytes, state.dropped);
        drop(state);
        assert!(bytes <= QUEUE_BYTES_MAX && dropped >= 4000 - 1 - QUEUE_BYTES_MAX as u64 / 1000);
        drop(closed);
        assert!(QUEUE.flush(PATIENCE));
        assert_eq!(QUEUE.dropped(), dropped);
    }

    #[test]
    fn a_delivery_that_panics_is_counted_and_the_next_one_goes_on() {
        static QUEUE: Outlet<bool> = Outlet::new();
        static MISSING: Mutex<Vec<u64>> = Mutex::new(Vec::new());
        fn deliver(panics: &bool, missing: u64) -> Delivered {
            assert!(!panics, "as it was asked");
            MISSING.lock().unwrap().push(missing);
            Delivered { item: true, report: true }
        }
        for panics in [true, false, true, true, false, false] {
            QUEUE.push(panics, 1, "outlet-test", deliver);
        }
        assert!(QUEUE.flush(PATIENCE));
        assert_eq!((QUEUE.dropped(), &*MISSING.lock().unwrap()), (3, &vec![1, 2, 0]));
    }
}
