//! What every part of a node has in common: it is stepped.

use crate::bell::Bell;
use std::fmt::Display;
use stead_core::ids::Time;

/// When a part wants its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// At once: there is more to do.
    Again,
    /// When its bell is rung, or at this time on the node's steady clock.
    Until(Option<Time>),
    /// Never: it has ended.
    Ended,
}

/// A part of a node, which does its work in turns. In production a thread gives the turns, in the simulator its world does.
pub trait Part<H> {
    /// The error that is fatal for the node.
    type Error: Display;

    /// The bell that wants a turn. Who gives the turn takes the ring before it.
    fn bell<'h>(&self, hub: &'h H) -> &'h Bell;

    /// How often its thread looks for a ring before it sleeps: 0 if its work is not waited for.
    fn spins(&self, hub: &H) -> u32 {
        let _ = hub;
        0
    }

    /// Does what has come, for a bounded time. `now` is on the node's steady clock. MUST NOT wait for anything but the disk.
    ///
    /// # Errors
    /// Those that are fatal for the node: the part must not be given another turn.
    fn turn(&mut self, hub: &H, now: Time) -> Result<Turned, Self::Error>;
}
