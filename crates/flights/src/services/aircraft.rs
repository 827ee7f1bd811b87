//! `aircraft`, by tail number: its legs and miles.

use super::{Airport, Carrier, Flight, Movement};
use crate::code::Code;
use crate::runs::{Run, Service};
use serde::{Deserialize, Serialize};
use stead::{Context, Never, Process, QueryContext};

/// The totals of an aircraft.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aircraft {
    /// Flights.
    pub legs: u64,
    /// Their distance in miles.
    pub distance_miles: u64,
}

/// A flight of an aircraft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The row of the feed.
    pub row: u64,
    /// The carrier.
    pub carrier: Code,
    /// The airport of departure.
    pub origin: Code,
    /// The airport of arrival.
    pub dest: Code,
    /// Delay of the departure in minutes; `None` if the flight was cancelled.
    pub dep_delay: Option<i32>,
    /// Distance in miles.
    pub distance: u32,
}

impl Process for Aircraft {
    const SERVICE: &'static str = "aircraft";
    type Key = Code;
    type Request = Leg;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = Self;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, leg: Leg) -> Result<(), Never> {
        Run::of(Service::Aircraft, ctx.key().as_str(), leg.row, self.legs, ctx.place()).record();
        self.legs += 1;
        self.distance_miles += u64::from(leg.distance);
        send_leg(ctx, &leg);
        Ok(())
    }

    fn internal(_: &Leg) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<Self, Never> {
        Ok(self.clone())
    }
}

/// Sends a flight to its airports and its carrier: three messages.
pub(super) fn send_leg<P: Process>(ctx: &mut Context<'_, P>, leg: &Leg) {
    ctx.send::<Airport>(&leg.origin, Movement::Departed { row: leg.row });
    ctx.send::<Airport>(&leg.dest, Movement::Arrived { row: leg.row });
    ctx.send::<Carrier>(&leg.carrier, Flight { row: leg.row, dep_delay: leg.dep_delay });
}
