//! The interface that all parts of a node share: they are stepped.

use crate::bell::Bell;
use std::fmt::Display;
use stead_core::ids::Time;

/// The time of a part's next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// At once: there is more to do.
    Again,
    /// When its bell is rung, or at this time on the node's steady clock.
    Until(Option<Time>),
    /// Never: it has ended.
    Ended,
}

/// A part of a node, which works in turns. In production a thread gives the turns, in the simulator its world does.
pub trait Part<H> {
    /// The error that is fatal for the node.
    type Error: Display;

    /// Returns the bell that requests a turn. The caller takes the ring before the turn.
    fn bell<'a>(&'a self, hub: &'a H) -> &'a Bell;

    /// Returns the number of times that its thread checks for a ring before it sleeps: 0 if no other part waits for its
    /// work.
    fn spins(&self, hub: &H) -> u32 {
        let _ = hub;
        0
    }

    /// Makes its bell wake the current thread, which gives the turns.
    fn attach(&self, hub: &H) {
        self.bell(hub).attach();
    }

    /// Sleeps between two turns, until the bell is rung or the time has come: for the thread that gives the turns. `now` is
    /// when the last turn began.
    fn sleep(&mut self, hub: &H, now: Time, until: Option<Time>) {
        self.bell(hub).park(now, until, self.spins(hub));
    }

    /// Performs the work that has arrived, for a bounded time. `now` is on the node's steady clock. MUST NOT wait for
    /// anything but the disk.
    ///
    /// # Errors
    /// Those that are fatal for the node: the part must not be given another turn.
    fn turn(&mut self, hub: &H, now: Time) -> Result<Turned, Self::Error>;
}
