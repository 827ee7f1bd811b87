//! The real binary, from its arguments to its exit.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod checkpoints;
mod command;
mod demo;
mod faults_server;
mod faults_stderr;
mod gateway;
mod help;
mod lives;
#[cfg(feature = "s3")]
#[path = "../../../store/tests/it/checkpoints/s3_server.rs"]
mod s3_server;
mod server;
