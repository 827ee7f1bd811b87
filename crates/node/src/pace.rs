//! The rate at which large objects are written.

use crate::clock::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stead_core::checkpointing::pace::Meter;

/// Most bytes each second; 0 is unlimited. It may change while something is written.
pub(crate) struct Pace(AtomicU64);

impl Pace {
    /// A longer wait would keep a change of the rate from being seen.
    const WAIT_MAX: Duration = Duration::from_millis(100);

    pub(crate) fn new(rate: u64) -> Self {
        Self(AtomicU64::new(rate))
    }

    pub(crate) fn rate(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, rate: u64) {
        self.0.store(rate, Ordering::Relaxed);
    }

    /// Spends so many bytes on a thread of its own, which sleeps until the next piece is due.
    #[expect(clippy::disallowed_methods, reason = "it runs on a thread of its own, beside the parts")]
    pub(crate) fn wait(&self, meter: &mut Meter, clock: &impl Clock, bytes: u64) {
        meter.spend(self.rate(), clock.steady(), bytes);
        let now = || clock.steady();
        while let Some(due) = meter.held_until(self.rate(), now()) {
            let left = Duration::from_micros(due.0.saturating_sub(now().0));
            std::thread::sleep(left.min(Self::WAIT_MAX));
        }
    }
}
