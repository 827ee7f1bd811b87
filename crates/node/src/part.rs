//! What every part of a node has in common: it is stepped.

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
