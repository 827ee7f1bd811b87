//! Tests of the test kit over services of a user, and of its example.

#![allow(clippy::unwrap_used, reason = "a test ends at the first unexpected result")]

#[path = "../../../stead/tests/it/example.rs"]
mod example;
mod runs;
mod simulated;
