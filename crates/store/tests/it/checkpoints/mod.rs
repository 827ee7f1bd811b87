//! Checkpoints: written, loaded, merged, collected, verified, restored and recovered, compared with a model.

// The lint knows tests by their attribute, and does not exempt their shared code.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed step ends the test, and seeds are printed"
)]

mod chain;
mod checks;
mod crashes;
mod cuts;
mod damage;
mod fixture;
pub(crate) mod model;
mod nodes;
mod recovery;
mod replicas;
mod restore;
mod restoring;
#[cfg(feature = "s3")]
mod s3;
mod stores;
mod tombstones;
