//! `carrier`, by code: its flights, cancellations and delays.

use crate::code::Code;
use crate::runs::{Run, Service};
use crate::totals::CarrierTotals;
use serde::{Deserialize, Serialize};
use stead::{Context, Never, Process, QueryContext};

/// The flights of a carrier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// The totals.
    pub totals: CarrierTotals,
}

/// A flight of a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// The row of the feed.
    pub row: u64,
    /// Delay of the departure in minutes; `None` if the flight was cancelled.
    pub dep_delay: Option<i32>,
}

impl Process for Carrier {
    const SERVICE: &'static str = "carrier";
    type Key = Code;
    type Request = Flight;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = CarrierTotals;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, flight: Flight) -> Result<(), Never> {
        Run::of(Service::Carrier, ctx.key().as_str(), flight.row, self.totals.flights, ctx.place()).record();
        self.totals.add(flight.dep_delay);
        Ok(())
    }

    fn internal(_: &Flight) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<CarrierTotals, Never> {
        Ok(self.totals)
    }
}
