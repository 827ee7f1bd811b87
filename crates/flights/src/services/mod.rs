//! The services: a feeder sends flights to aircraft, which send them on to airports and carriers. A desk beside them
//! answers an outside client, so that a run can check answers.

mod aircraft;
mod airport;
mod carrier;
mod desk;
mod feeder;

pub use aircraft::{Aircraft, Leg};
pub use airport::{Airport, Movement};
pub use carrier::{Carrier, Flight};
pub use desk::{Booked, CheckIn, Desk, Passengers};
pub use feeder::{FeedError, FeedRequest, Feeder, Position, Source};

/// The key of the only feeder.
pub const FEEDER: &str = "feeder";

/// Number of desks; passenger `n` goes to desk `n % DESKS`.
pub const DESKS: u64 = 8;

/// Returns the key of a passenger's desk.
#[must_use]
pub fn desk_of(passenger: u64) -> String {
    format!("desk-{}", passenger % DESKS)
}
