//! Tests of frames and connections.

#![expect(clippy::unwrap_used, reason = "a helper of tests ends at the first unexpected result")]

mod connections;
mod endpoints;
mod frames;
mod handshakes;
mod native;
mod replicas;
mod scripted;
