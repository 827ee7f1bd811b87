//! Tests of the flights application.

mod audit;
mod callers;
mod passengers;
mod reading;
