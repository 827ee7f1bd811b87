//! The end of a node: the core's [`Shutdown`] decides, this performs.

use crate::part::Turned;
use stead_core::ids::Time;
use stead_core::shutdown::{Event, Group, Shutdown, Step};

/// The interface of a node to its shutdown: production and the simulator implement it.
pub trait EndHub {
    /// Whether the node has a fatal error.
    fn is_failed(&self) -> bool;

    /// Whether the node is abandoned as by a crash.
    fn is_killed(&self) -> bool;

    /// Asks the parts of a group to end.
    fn stop(&self, group: Group);

    /// Asks all parts to end at once.
    fn stop_all(&self);

    /// Whether the parts of a group have ended. It may wait for that until a time, or without a limit if there is none.
    fn has_ended(&self, group: Group, until: Option<Time>) -> bool;

    /// Stops waiting for the parts of a group.
    fn abandon(&self, group: Group);

    /// Records on disk that the node shut down cleanly.
    fn mark_clean(&self);
}

/// Ends the parts of a node, one group after the other.
#[derive(Debug)]
pub struct ShutdownPart(Shutdown);

impl ShutdownPart {
    /// Creates the end of a node that waits for user code until a time.
    #[must_use]
    pub fn new(until: Time) -> Self {
        Self(Shutdown::new(until))
    }

    /// Performs one step. It has ended once all parts have, and the data directory may be released.
    pub fn turn<H: EndHub>(&mut self, hub: &H, now: Time) -> Turned {
        if hub.is_failed() {
            self.0.handle(now, Event::Failed);
        }
        if hub.is_killed() {
            self.0.handle(now, Event::Killed);
        }
        match self.0.step(now) {
            Step::Stop(group) => hub.stop(group),
            Step::StopAll => hub.stop_all(),
            Step::Await(group, until) => {
                if !hub.has_ended(group, until) {
                    return Turned::Until(until);
                }
                self.0.handle(now, Event::Ended(group));
            }
            Step::Abandon(group) => hub.abandon(group),
            Step::MarkClean => hub.mark_clean(),
            Step::Finish => return Turned::Ended,
        }
        Turned::Again
    }
}
