//! The totals of the application: by a straightforward computation, one loop over the rows, and according to its processes.

use crate::code::Code;
use crate::row::Row;
use crate::services::Aircraft;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Totals over some rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// By carrier.
    pub carriers: BTreeMap<Code, CarrierTotals>,
    /// By airport.
    pub airports: BTreeMap<Code, AirportTotals>,
    /// Of all aircraft whose tail number is known.
    pub aircraft: AircraftTotals,
}

/// A carrier's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierTotals {
    /// Rows, the cancelled ones included.
    pub flights: u64,
    /// Rows without a departure delay.
    pub cancelled: u64,
    /// Sum of the departure delays that are known, in minutes; early departures count below 0.
    pub dep_delay_minutes: i64,
}

/// An airport's totals: each row departs from its origin and arrives at its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AirportTotals {
    /// Rows with this origin.
    pub departures: u64,
    /// Rows with this destination.
    pub arrivals: u64,
}

/// The totals of all aircraft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AircraftTotals {
    /// Different tail numbers.
    pub count: u64,
    /// Rows with a tail number.
    pub legs: u64,
    /// Miles of those rows.
    pub distance_miles: u64,
}

/// The difference between totals and the expected ones, counted in single increments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Increments that are missing.
    pub missing: u64,
    /// Surplus increments.
    pub extra: u64,
    /// Number of sums (minutes, miles) that differ.
    pub sums: u64,
}

impl Totals {
    /// Adds up rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut totals = Self::default();
        let mut tails = BTreeSet::new();
        for row in rows {
            totals.carriers.entry(row.carrier).or_default().add(row.dep_delay);
            totals.airports.entry(row.origin).or_default().departures += 1;
            totals.airports.entry(row.dest).or_default().arrivals += 1;
            if let Some(tail) = row.tail {
                tails.insert(tail);
                totals.aircraft.legs += 1;
                totals.aircraft.distance_miles += u64::from(row.distance);
            }
        }
        totals.aircraft.count = tails.len() as u64;
        totals
    }

    /// Adds up the answers of processes; those without a row are not there.
    pub(crate) fn of_processes(
        carriers: impl IntoIterator<Item = (Code, CarrierTotals)>,
        airports: impl IntoIterator<Item = (Code, AirportTotals)>,
        aircraft: impl IntoIterator<Item = (Code, Aircraft)>,
    ) -> Self {
        let mut all = AircraftTotals::default();
        for (_, Aircraft { legs, distance_miles }) in aircraft {
            all.count += u64::from(legs > 0);
            all.legs += legs;
            all.distance_miles += distance_miles;
        }
        Self {
            carriers: carriers.into_iter().filter(|(_, carrier)| carrier.flights > 0).collect(),
            airports: airports
                .into_iter()
                .filter(|(_, airport)| airport.departures + airport.arrivals > 0)
                .collect(),
            aircraft: all,
        }
    }

    /// Returns the number of messages that rows with these totals cause: the feeder sends one to the aircraft, which
    /// sends one to each of two airports and the carrier; without a tail number the feeder sends those three itself.
    #[must_use]
    pub fn messages(&self) -> u64 {
        let airports: u64 = self.airports.values().map(|airport| airport.departures + airport.arrivals).sum();
        let carriers: u64 = self.carriers.values().map(|carrier| carrier.flights).sum();
        self.aircraft.legs + airports + carriers
    }

    /// Returns the difference between these totals and the expected ones.
    #[must_use]
    pub fn difference(&self, expected: &Self) -> Difference {
        let mut difference = Difference::default();
        let none = CarrierTotals::default();
        for code in keys(&self.carriers, &expected.carriers) {
            let (is, should) =
                (self.carriers.get(&code).unwrap_or(&none), expected.carriers.get(&code).unwrap_or(&none));
            difference.count(is.flights, should.flights);
            difference.count(is.cancelled, should.cancelled);
            difference.sums += u64::from(is.dep_delay_minutes != should.dep_delay_minutes);
        }
        let none = AirportTotals::default();
        for code in keys(&self.airports, &expected.airports) {
            let (is, should) =
                (self.airports.get(&code).unwrap_or(&none), expected.airports.get(&code).unwrap_or(&none));
            difference.count(is.departures, should.departures);
            difference.count(is.arrivals, should.arrivals);
        }
        difference.count(self.aircraft.legs, expected.aircraft.legs);
        difference.sums += u64::from(self.aircraft.count != expected.aircraft.count);
        difference.sums += u64::from(self.aircraft.distance_miles != expected.aircraft.distance_miles);
        difference
    }
}

impl CarrierTotals {
    /// Adds one row.
    pub fn add(&mut self, dep_delay: Option<i32>) {
        self.flights += 1;
        match dep_delay {
            Some(minutes) => self.dep_delay_minutes += i64::from(minutes),
            None => self.cancelled += 1,
        }
    }
}

impl Difference {
    /// Returns whether there is no difference.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, is: u64, should: u64) {
        self.missing += should.saturating_sub(is);
        self.extra += is.saturating_sub(should);
    }
}

fn keys<V>(one: &BTreeMap<Code, V>, other: &BTreeMap<Code, V>) -> BTreeSet<Code> {
    one.keys().chain(other.keys()).copied().collect()
}
