//! The services: a feeder tells aircraft of their flights, and these tell airports and carriers. A desk beside them
//! answers whoever asks, so that a run can tell what an answer is worth.

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

/// How many desks there are; passenger `n` goes to desk `n % DESKS`.
pub const DESKS: u64 = 8;

/// The key of a passenger's desk.
#[must_use]
pub fn desk_of(passenger: u64) -> String {
    format!("desk-{}", passenger % DESKS)
}
