//! The example `serve`, run as a program of its own.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "../../../stead/tests/it/example.rs"]
mod example;
mod serving;
