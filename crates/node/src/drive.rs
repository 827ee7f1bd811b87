//! Gives a part its turns on a thread of its own, as production does.

use crate::bell::Bell;
use crate::part::Turned;
use stead_core::ids::Time;

/// Gives turns until the part has ended, and sleeps when it may, after a few spins. Returns the error of a turn.
pub(crate) fn drive<X>(
    bell: &Bell,
    spins: u32,
    now: impl Fn() -> Time,
    mut turn: impl FnMut(Time) -> Result<Turned, X>,
) -> Result<(), X> {
    bell.attach();
    loop {
        let begun = now();
        match turn(begun)? {
            Turned::Again => {}
            Turned::Until(until) => bell.park(begun, until, spins),
            Turned::Ended => return Ok(()),
        }
    }
}
