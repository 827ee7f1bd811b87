//! Tests of the plane, by what it shows.

#![allow(clippy::unwrap_used, reason = "a test ends at the first unexpected result")]

mod bad_input;
mod chaos;
mod cluster;
mod driver;
mod files;
mod group;
#[path = "../../src/tests/ledger.rs"]
mod ledger;

// The ledger names it by this path, here as in the crate.
use stead_control::Machine;
