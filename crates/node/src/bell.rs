//! A bell that wakes one thread.

#![expect(clippy::disallowed_methods, reason = "a bell parks the thread of its part")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;
use stead_core::ids::Time;
use stead_net::network::Wake;

/// The bell of one thread: a part's, or that of a client's connections. Any thread rings it; its own sleeps until it is rung:
/// parked, or in a wait for its network.
/// The simulator takes the ring instead.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    sleeps: AtomicBool,
    sleeper: OnceLock<Sleeper>,
}

/// The thread that a bell wakes.
#[derive(Debug)]
enum Sleeper {
    Parked(Thread),
    AtNetwork(Wake),
}

impl Sleeper {
    fn wake(&self) {
        match self {
            Self::Parked(thread) => thread.unpark(),
            // If the system refuses it, the sleep still ends at its time.
            Self::AtNetwork(wake) => drop(wake.wake()),
        }
    }
}

impl Bell {
    /// Requests a turn of the part.
    pub fn ring(&self) {
        // Either the thread sees the ring before it sleeps, or this sees that it sleeps.
        self.rung.store(true, Ordering::SeqCst);
        if self.sleeps.swap(false, Ordering::SeqCst)
            && let Some(sleeper) = self.sleeper.get()
        {
            sleeper.wake();
        }
    }

    /// Returns whether it was rung since the last call.
    pub fn take_ring(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// Makes the bell wake the current thread from now on.
    pub fn attach(&self) {
        let _ = self.sleeper.set(Sleeper::Parked(std::thread::current()));
    }

    /// Makes the bell end a wait for a network from now on.
    pub fn attach_to(&self, network: Wake) {
        let _ = self.sleeper.set(Sleeper::AtNetwork(network));
    }

    /// Whether a turn is requested.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell is rung or the time has come; spins a little first, because waking a thread takes long.
    pub fn park(&self, now: Time, until: Option<Time>, spins: u32) {
        self.sleep(now, until, spins, |time| match time {
            Some(time) => std::thread::park_timeout(time),
            None => std::thread::park(),
        });
    }

    /// Sleeps as a parked part does, but by `wait`, at the network to which the bell is attached: for this time, or without one
    /// until it is woken.
    pub fn sleep(&self, now: Time, until: Option<Time>, spins: u32, wait: impl FnOnce(Option<Duration>)) {
        for _ in 0..spins {
            if self.rung.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleeps.store(true, Ordering::SeqCst);
        if !self.rung.load(Ordering::SeqCst) {
            wait(until.map(|until| until.since(now).into()));
        }
        self.sleeps.store(false, Ordering::SeqCst);
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
