//! The two clocks of a node.

#![expect(clippy::disallowed_methods, reason = "these are the clocks of production")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};
use stead_core::ids::{Micros, Time};

/// The clocks that a node reads.
pub trait Clock: Send + Sync + 'static {
    /// The steady clock, in microseconds since the Unix epoch as the wall clock had it at the start. It neither jumps nor
    /// goes back.
    fn steady(&self) -> Time;

    /// The wall clock, in microseconds since the Unix epoch. It may jump.
    fn wall(&self) -> Time;
}

/// A wall clock, in microseconds since the Unix epoch. It may jump.
pub type Wall = Box<dyn Fn() -> Time + Send + Sync>;

/// The system's clocks, or its steady one with another wall clock.
pub struct SystemClock {
    begun: Time,
    start: Instant,
    /// Replaces the system's wall clock.
    wall: Option<Wall>,
}

impl SystemClock {
    /// Starts the clocks, with another wall clock than the system's if one is given.
    #[must_use]
    pub fn new(wall: Option<Wall>) -> Self {
        let begun = wall.as_ref().map_or_else(system_time, |wall| wall());
        Self { begun, start: Instant::now(), wall }
    }
}

impl Clock for SystemClock {
    fn steady(&self) -> Time {
        let since = self.start.elapsed();
        self.begun.plus(since.into())
    }

    fn wall(&self) -> Time {
        self.wall.as_ref().map_or_else(system_time, |wall| wall())
    }
}

/// Reads the system's wall clock.
#[must_use]
pub fn system_time() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(Micros::from(since).0)
}
