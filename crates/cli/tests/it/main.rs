//! Tests of the real binary, from its arguments to its exit code.

#![allow(clippy::unwrap_used, reason = "a test ends at the first unexpected result")]

mod checkpoints;
mod command;
mod demo;
mod faults_server;
mod faults_stderr;
mod gateway;
mod help;
mod lives;
mod local;
// The same waits as in the tests of `stead`.
#[path = "../../../stead/tests/it/patience.rs"]
mod patience;
#[cfg(feature = "s3")]
#[path = "../../../store/tests/it/checkpoints/s3_server.rs"]
mod s3_server;
mod server;
