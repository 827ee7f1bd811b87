//! Tests of the flights application.

mod audit;
mod passengers;
mod reading;
