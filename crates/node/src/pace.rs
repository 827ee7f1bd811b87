//! The rate at which large objects are written.

use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes each second; 0 is unlimited. It may change while something is written.
pub(crate) struct Pace(AtomicU64);

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self(AtomicU64::new(rate))
    }

    pub(crate) fn rate(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, rate: u64) {
        self.0.store(rate, Ordering::Relaxed);
    }
}
