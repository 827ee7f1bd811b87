//! `feeder`: sends the rows of a file into the system. Its position is part of its state, so no row is fed twice or
//! left out, even across crashes.

use super::aircraft::send_leg;
use super::{Aircraft, Airport, Carrier, Leg, Movement};
use crate::reader::Flights;
use crate::runs::{Run, Service};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::Duration;
use stead::{Context, Cut, Process, QueryContext, Time};

/// Interval at which the feeder sends.
const TICK: Duration = Duration::from_millis(5);

/// Maximum number of rows of one call, which keeps the call short and its entry small.
const ROWS_PER_TICK: u64 = 500;

/// Longest pause that the feeder makes up for.
const CATCH_UP_MICROS: u64 = 100_000;

static SOURCE: OnceLock<Source> = OnceLock::new();

/// The rows that this operating system process feeds from.
#[derive(Debug)]
pub struct Source {
    flights: Flights,
    fingerprint: String,
}

impl Source {
    /// Installs the source of this operating system process.
    ///
    /// # Errors
    /// The given source, if there is one already.
    pub fn install(flights: Flights) -> Result<(), Self> {
        SOURCE.set(Self::new(flights))
    }

    /// Returns the fingerprint of the rows.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the installed source.
    #[must_use]
    pub fn installed() -> Option<&'static Self> {
        SOURCE.get()
    }

    /// Returns the rows.
    #[must_use]
    pub fn flights(&self) -> &Flights {
        &self.flights
    }

    /// Returns the source of these flights.
    #[must_use]
    pub fn new(flights: Flights) -> Self {
        let fingerprint = format!("{:032x}", flights.fingerprint());
        Self { flights, fingerprint }
    }
}

/// The feeder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Feeder {
    /// The source that it feeds from; empty before it starts.
    pub fingerprint: String,
    /// The next row; also the number of rows sent so far.
    pub next_row: u64,
    /// The number of rows to send. Beyond the end of the file, the feeder starts over.
    pub rows: u64,
    /// Rows a second.
    pub rate: f64,
    /// Calls by its timer.
    pub ticks: u64,
    /// The time of the last one, in microseconds of its shard's clock.
    pub last_tick: u64,
    /// Fraction of a row that is due.
    pub due: f64,
}

/// A request to the feeder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FeedRequest {
    /// Start feeding; a repetition changes nothing.
    Start {
        /// The source's fingerprint.
        fingerprint: String,
        /// The number of rows, from the first on; beyond the end of the file, the feeder starts over.
        rows: u64,
        /// Rows a second, above 0.
        rate: f64,
    },
    /// A tick of the timer.
    Tick {
        /// Its number, counted from 0.
        tick: u64,
    },
    /// Stop feeding.
    Finish,
}

/// Reasons for which the feeder refuses a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum FeedError {
    /// It feeds from another file.
    #[error(
        "this data directory was fed from another file ({stored}, now {offered}); take the same file or a new directory"
    )]
    OtherSource {
        /// The fingerprint of the file that it feeds from.
        stored: String,
        /// The fingerprint of the file that was offered.
        offered: String,
    },
    /// The rate is not above 0.
    #[error("a rate of {rate} rows a second is not possible; it must be above 0")]
    Rate {
        /// The rate.
        rate: f64,
    },
}

/// The position of the feeder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The next row.
    pub next_row: u64,
    /// The number of rows to send.
    pub rows: u64,
}

impl Process for Feeder {
    const SERVICE: &'static str = "feeder";
    type Key = String;
    type Request = FeedRequest;
    type Reply = Position;
    type Error = FeedError;
    type Query = ();
    type Answer = Position;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: FeedRequest) -> Result<Position, FeedError> {
        match request {
            FeedRequest::Start { fingerprint, rows, rate } => self.start(ctx, fingerprint, rows, rate)?,
            FeedRequest::Tick { tick } => self.tick(ctx, tick),
            FeedRequest::Finish => self.rows = self.next_row,
        }
        Ok(self.position())
    }

    fn internal(request: &FeedRequest) -> bool {
        matches!(request, FeedRequest::Tick { .. })
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<Position, FeedError> {
        Ok(self.position())
    }

    /// Checks that each row that was fed is counted by its carrier and its airports, or has a message in flight.
    fn check(cut: &Cut<'_>) -> Result<(), String> {
        let mut fed = 0;
        for feeder in cut.processes::<Self>() {
            fed += feeder?.1.next_row;
        }
        let (mut flights, mut departures, mut arrivals) = (0, 0, 0);
        for leg in cut.in_flight::<Aircraft>() {
            leg?;
            flights += 1;
            departures += 1;
            arrivals += 1;
        }
        for carrier in cut.processes::<Carrier>() {
            flights += carrier?.1.totals.flights;
        }
        for flight in cut.in_flight::<Carrier>() {
            flight?;
            flights += 1;
        }
        for airport in cut.processes::<Airport>() {
            let totals = airport?.1.totals;
            departures += totals.departures;
            arrivals += totals.arrivals;
        }
        for movement in cut.in_flight::<Airport>() {
            match movement?.1 {
                Movement::Departed { .. } => departures += 1,
                Movement::Arrived { .. } => arrivals += 1,
            }
        }
        for (what, count) in [("flights", flights), ("departures", departures), ("arrivals", arrivals)] {
            if count != fed {
                return Err(format!("{fed} rows were fed, but {count} {what} are counted or in flight"));
            }
        }
        Ok(())
    }
}

impl Feeder {
    fn position(&self) -> Position {
        Position { next_row: self.next_row, rows: self.rows }
    }

    fn start(
        &mut self,
        ctx: &mut Context<'_, Self>,
        fingerprint: String,
        rows: u64,
        rate: f64,
    ) -> Result<(), FeedError> {
        if !self.fingerprint.is_empty() {
            if self.fingerprint != fingerprint {
                return Err(FeedError::OtherSource {
                    stored: self.fingerprint.clone(),
                    offered: fingerprint,
                });
            }
            return Ok(());
        }
        if !(rate.is_finite() && rate > 0.0) {
            return Err(FeedError::Rate { rate });
        }
        *self = Self { fingerprint, rows, rate, last_tick: ctx.time().0, ..Self::default() };
        ctx.set_timer(TICK, FeedRequest::Tick { tick: 0 });
        Ok(())
    }

    fn tick(&mut self, ctx: &mut Context<'_, Self>, tick: u64) {
        let source = SOURCE.get().filter(|source| source.fingerprint == self.fingerprint);
        let rows = source.map_or(&[][..], |source| &source.flights.rows);
        let from = self.next_row;
        let count = if rows.is_empty() { 0 } else { self.count_due(ctx.time()) };
        Run::of(Service::Feeder, ctx.key(), tick, self.ticks, ctx.place())
            .with_rows(from, from + count)
            .record();
        for row in from..from + count {
            feed(ctx, row, rows);
        }
        self.next_row += count;
        self.ticks += 1;
        self.last_tick = ctx.time().0;
        if self.next_row < self.rows {
            ctx.set_timer(TICK, FeedRequest::Tick { tick: tick + 1 });
        }
    }

    fn count_due(&mut self, now: Time) -> u64 {
        let micros = now.0.saturating_sub(self.last_tick).min(CATCH_UP_MICROS);
        self.due += self.rate * micros as f64 / 1e6;
        let count = (self.due as u64).min(ROWS_PER_TICK).min(self.rows.saturating_sub(self.next_row));
        // Rows beyond the limit of a tick are not made up for.
        self.due = (self.due - count as f64).min(1.0);
        count
    }
}

fn feed(ctx: &mut Context<'_, Feeder>, number: u64, rows: &[crate::row::Row]) {
    let row = &rows[usize::try_from(number % rows.len() as u64).expect("below a usize")];
    let leg = Leg {
        row: number,
        carrier: row.carrier,
        origin: row.origin,
        dest: row.dest,
        dep_delay: row.dep_delay,
        distance: row.distance,
    };
    match row.tail {
        Some(tail) => ctx.send::<Aircraft>(&tail, leg),
        None => send_leg(ctx, &leg),
    }
}
