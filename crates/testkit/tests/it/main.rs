//! The test kit over services of a user, and its example.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "../../../stead/tests/it/example.rs"]
mod example;
mod runs;
mod simulated;
