//! Opening a node, in four steps.
//!
//! `plan` answers the core's questions about the program; `recover` reads the data directory and changes nothing until
//! the core's plan of the start has accepted its contents; `assemble` creates all parts of the node, without a thread;
//! `spawn` puts them on threads.

mod assemble;
mod options;
mod plan;
mod recover;
mod spawn;
#[cfg(test)]
mod tests;

use crate::env::Env;
use crate::life::Life;
pub(crate) use assemble::{Parts, assemble};
pub use options::{CheckpointOptions, CopyTarget, Drawn, Options};
use plan::Registered;
pub use recover::{RecoverOptions, Recovery, recover};
pub(crate) use spawn::Member;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use stead_core::records::set_secret;
use stead_core::start::StartError;
use stead_core::topology::TopologyError;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::DataDirError;
use stead_store::disk::Disk;
use stead_store::recovery::RecoveryError;
use thiserror::Error;

/// Reasons for which a node cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The services do not fit together, or do not fit the data.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The data has services or tasks for which the program has no code.
    #[error("the data holds {what}, for which no code is registered here, and nothing was changed")]
    NoCode {
        /// Their names.
        what: String,
    },
    /// The data directory is in use, damaged, or of another version.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store of checkpoints failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored data does not make up a state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The node failed before all its shards served.
    #[error("the node failed while it started: {0}")]
    Failed(String),
    /// The system refused to start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl From<StartError> for OpenError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Topology(error) => Self::Topology(error),
            StartError::NoCode { what } => Self::NoCode { what },
        }
    }
}

impl<E: Env> Life<E> {
    /// Recovers the data on a disk, or creates it, and starts the threads of a node. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError`]; then stored data is unchanged.
    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    pub fn open(
        program: E::Program,
        disk: Arc<dyn Disk>,
        clock: E::Clock,
        options: Options,
    ) -> Result<Self, OpenError>
    where
        E: Env<Watch = ()>,
    {
        let begun = Instant::now();
        set_secret(plan::fresh_secret());
        let code = Registered { program: &program, without_code: &options.without_code };
        let recovery = recover(disk, &code, plan::recover_options(&options), plan::fresh_meta)?;
        assemble(program, (clock, ()), recovery, options, Drawn::fresh(), begun)?.spawn()
    }
}
