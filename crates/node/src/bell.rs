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
