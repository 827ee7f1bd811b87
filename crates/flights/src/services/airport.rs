//! `airport`, by code: its departures and arrivals.

use crate::code::Code;
use crate::runs::{Run, Service};
use crate::totals::AirportTotals;
use serde::{Deserialize, Serialize};
use stead::{Context, Never, Process, QueryContext};

/// The departures and arrivals of an airport.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Airport {
    /// The totals.
    pub totals: AirportTotals,
}

/// An event at an airport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Movement {
    /// A flight leaves.
    Departed {
        /// The row of the feed.
        row: u64,
    },
    /// A flight arrives.
    Arrived {
        /// The row of the feed.
        row: u64,
    },
}

impl Process for Airport {
    const SERVICE: &'static str = "airport";
    type Key = Code;
    type Request = Movement;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = AirportTotals;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, movement: Movement) -> Result<(), Never> {
        let cause = match movement {
            Movement::Departed { row } => row * 2,
            Movement::Arrived { row } => row * 2 + 1,
        };
        let handled = self.totals.departures + self.totals.arrivals;
        Run::of(Service::Airport, ctx.key().as_str(), cause, handled, ctx.place()).record();
        match movement {
            Movement::Departed { .. } => self.totals.departures += 1,
            Movement::Arrived { .. } => self.totals.arrivals += 1,
        }
        Ok(())
    }

    fn internal(_: &Movement) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<AirportTotals, Never> {
        Ok(self.totals)
    }
}
