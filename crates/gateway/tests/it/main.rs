//! Tests of the example `serve`, run as a program.

#![allow(clippy::unwrap_used, reason = "a test ends at the first unexpected result")]

#[path = "../../../stead/tests/it/example.rs"]
mod example;
mod serving;
