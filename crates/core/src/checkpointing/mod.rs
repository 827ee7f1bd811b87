//! What decides about checkpoints: what the next one builds upon, what is merged, and what is kept.
//!
//! Never touches what is stored: it knows names and sizes of bundles, and indexes of markers.

pub mod bundle;
pub mod driver;
pub mod lineage;
pub mod merging;
pub mod pace;
pub mod retention;
