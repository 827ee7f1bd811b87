//! A bell that wakes one thread.

#![expect(clippy::disallowed_methods, reason = "a bell parks the thread of its part")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;
use stead_core::ids::Time;

/// The bell of one part. Any thread rings it; the part's thread parks until it is rung. The simulator takes the ring instead.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Bell {
    /// Requests a turn of the part.
    pub fn ring(&self) {
        // Either the thread sees the ring before it parks, or this sees that it is parked.
        self.rung.store(true, Ordering::SeqCst);
        if self.parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Returns whether it was rung since the last call.
    pub fn take_ring(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// Makes the bell wake the current thread from now on.
    pub(crate) fn attach(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Whether a turn is requested.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell is rung or the time has come; spins a little first, because waking a thread takes long.
    pub(crate) fn park(&self, now: Time, until: Option<Time>, spins: u32) {
        for _ in 0..spins {
            if self.rung.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
        self.parked.store(true, Ordering::SeqCst);
        if !self.rung.load(Ordering::SeqCst) {
            match until {
                Some(until) => {
                    std::thread::park_timeout(Duration::from_micros(until.0.saturating_sub(now.0)));
                }
                None => std::thread::park(),
            }
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::time::Instant;

    /// Rings that a thread must not miss.
    const RINGS: u64 = 50_000;

    #[test]
    fn a_thread_that_parks_misses_no_ring() {
        let (bell, left) = (Arc::new(Bell::default()), Arc::new(AtomicU64::new(0)));
        let begun = Instant::now();
        let part = thread::spawn({
            let (bell, left) = (Arc::clone(&bell), Arc::clone(&left));
            move || {
                bell.attach();
                let mut taken = 0;
                while taken < RINGS {
                    bell.take_ring();
                    taken += left.swap(0, Ordering::Relaxed);
                    if taken < RINGS {
                        // A missed ring would be noticed after a minute.
                        bell.park(Time(0), Some(Time(60_000_000)), taken as u32 % 30);
                    }
                }
            }
        });
        for ring in 0..RINGS {
            left.fetch_add(1, Ordering::Relaxed);
            bell.ring();
            if ring % 64 == 0 {
                thread::yield_now();
            }
        }
        part.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(60), "a ring was missed");
    }

    #[test]
    fn a_bell_that_is_rung_lets_no_thread_sleep_and_time_ends_a_sleep() {
        let bell = Bell::default();
        bell.attach();
        bell.ring();
        assert!(bell.is_rung());
        bell.park(Time(0), None, 0);
        assert!(bell.take_ring() && !bell.take_ring());
        bell.park(Time(7), Some(Time(3)), 0);
        bell.park(Time(0), Some(Time(100)), 0);
    }
}
