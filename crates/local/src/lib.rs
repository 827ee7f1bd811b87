//! A cluster of nodes as child processes of one machine, for development, demonstrations, measurements and tests.
//!
//! The program is `stead`, or another one that takes the options of `stead start`. Each node has a directory, and addresses that it
//! keeps over restarts; the links between them can be cut and delayed. The nodes end with the process that started them, however it
//! ends: each stops once its standard input ends.

#![forbid(unsafe_code)]

mod child;
mod cluster;
mod error;
mod links;

pub use cluster::{LocalCluster, NodeAddresses, Options};
pub use error::LocalError;
