//! The errors of opening a node.

use std::io;
use stead_core::start::StartError;
use stead_core::topology::TopologyError;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::DataDirError;
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
    /// The data are those of a node of a cluster, whose control plane knows the primaries of its shards.
    #[error(
        "the data directory is that of a node of a cluster, and is not opened without it; start the node with its cluster"
    )]
    OfCluster,
    /// The store of checkpoints failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored data does not make up a state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The system refused to serve clients on the socket that listens for them.
    #[error("cannot serve clients over the network: {0}")]
    Native(io::Error),
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
