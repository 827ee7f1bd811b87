//! Decisions about checkpoints: the base of the next one, merges, and retention.
//!
//! Never touches stored data: it knows names and sizes of bundles, and indexes of markers.

pub mod bundle;
pub mod driver;
pub mod lineage;
pub mod merging;
pub mod pace;
pub mod retention;
