//! `aircraft`, by tail number: its legs and miles.

use super::{Airport, Carrier, Flight, Movement};
use crate::code::Code;
use crate::runs::{Run, Service};
use serde::{Deserialize, Serialize};
use stead::{Context, Never, Process, QueryContext};

/// An aircraft: what it flew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aircraft {
    /// Flights.
    pub legs: u64,
    /// Miles of them.
    pub distance_miles: u64,
}

/// A flight of an aircraft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// Which row of the feed it is.
    pub row: u64,
    /// Who flies it.
    pub carrier: Code,
    /// From.
    pub origin: Code,
    /// To.
    pub dest: Code,
    /// Minutes late; unknown when it was cancelled.
    pub dep_delay: Option<i32>,
    /// Miles.
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
        tell(ctx, &leg);
        Ok(())
    }

    fn internal(_: &Leg) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<Self, Never> {
        Ok(self.clone())
    }
}

/// Tells the airports and the carrier of a flight: three messages.
pub(super) fn tell<P: Process>(ctx: &mut Context<'_, P>, leg: &Leg) {
    ctx.send::<Airport>(&leg.origin, Movement::Departed { row: leg.row });
    ctx.send::<Airport>(&leg.dest, Movement::Arrived { row: leg.row });
    ctx.send::<Carrier>(&leg.carrier, Flight { row: leg.row, dep_delay: leg.dep_delay });
}
