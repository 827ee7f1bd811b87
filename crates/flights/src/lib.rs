//! The flights application: each row of a file of real flights goes through three services, which add up totals of
//! carriers, airports and aircraft, while a conductor kills the process at random moments.
//!
//! `stead demo` and the chaos tools run and kill it; it is also an example of a medium-sized application.

#![forbid(unsafe_code)]

pub mod audit;
pub mod callers;
pub mod child;
pub mod cluster;
pub mod code;
pub mod conductor;
mod error;
pub mod life;
mod offline;
pub mod passengers;
pub mod pool;
pub mod protocol;
pub mod reader;
pub mod row;
pub mod runs;
pub mod services;
pub mod totals;

pub use code::Code;
pub use error::ConductError;
pub use reader::{Flights, OnMalformed, ReadError};
pub use row::{Malformed, Reason, Row};
pub use totals::{AircraftTotals, AirportTotals, CarrierTotals, Difference, Totals};
