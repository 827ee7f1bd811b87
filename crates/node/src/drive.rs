//! Gives a part its turns on a thread of its own, as production does.

use crate::clock::Clock;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::shared::Shared;

/// Gives turns on this thread until the part has ended, and sleeps between them.
///
/// # Errors
/// The text of a turn's error, which is fatal for the node.
pub(crate) fn drive<E: Env>(shared: &Shared<E>, mut part: impl Part<Shared<E>>) -> Result<(), String> {
    part.bell(shared).attach();
    loop {
        // Before the turn: a ring during the turn leads to another one.
        part.bell(shared).take_ring();
        let begun = shared.clock.steady();
        match part.turn(shared, begun).map_err(|error| error.to_string())? {
            Turned::Again => {}
            Turned::Until(until) => part.bell(shared).park(begun, until, part.spins(shared)),
            Turned::Ended => return Ok(()),
        }
    }
}
