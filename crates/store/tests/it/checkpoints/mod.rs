//! Checkpoints: written, loaded, merged, collected, verified, restored and recovered, against a model.

mod chain;
mod crashes;
mod cuts;
mod damage;
pub(crate) mod model;
mod recovery;
mod restore;
mod stores;
