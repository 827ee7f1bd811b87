//! Checkpoints: written, loaded, merged, collected, verified, restored and recovered, against a model.

mod chain;
mod crashes;
mod cuts;
mod damage;
mod fixture;
pub(crate) mod model;
mod recovery;
mod restore;
#[cfg(feature = "s3")]
mod s3;
mod stores;
