//! Faults of what the control plane stores.

use std::io;
use stead_core::ids::{ClusterId, Incarnation, NodeId};

/// Reasons for which the control plane's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageFault {
    /// The system failed an operation.
    #[error("cannot {action} {path} of the control plane: {source}")]
    Io {
        /// The attempted operation.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what was written to it.
    #[error(
        "{path} of the control plane is damaged at byte {offset}: {reason}; with other voters, remove this node and add it \
         again with an empty data directory and a new id; a single node has to restore a checkpoint"
    )]
    Damaged {
        /// The file.
        path: String,
        /// The place of the damage in it.
        offset: u64,
        /// The damage.
        reason: String,
    },
    /// A file that existed is missing.
    #[error(
        "{path} of the control plane is missing: it was lost; put it back, or, with other voters, remove this node and add it \
         again with an empty data directory and a new id"
    )]
    Lost {
        /// The file.
        path: String,
    },
    /// It was written by an unknown version of Stead.
    #[error(
        "{path} of the control plane has format version {found:?}, and this program reads version 1; use the program that wrote it"
    )]
    Version {
        /// The file.
        path: String,
        /// Its version: a character.
        found: char,
    },
    /// It belongs to another node or cluster.
    #[error(
        "{path} of the control plane belongs to node {node} of cluster {cluster}, incarnation {incarnation}; use that node's own \
         data directory"
    )]
    Foreign {
        /// The file.
        path: String,
        /// Its node.
        node: NodeId,
        /// Its cluster.
        cluster: ClusterId,
        /// Its cluster's incarnation.
        incarnation: Incarnation,
    },
    /// A thing to be written exceeds a limit.
    #[error("{what} of the control plane would have {bytes} bytes, over the limit of {max}")]
    TooLarge {
        /// The thing.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// It would break the log: a fault of the program.
    #[error(
        "the control plane's log refuses a change: {0}; restart this process, and report this as a fault of Stead"
    )]
    Refused(String),
    /// After an earlier failure the contents of the disk are unknown.
    #[error("the control plane writes nothing after a failure of the disk; restart this process")]
    Fatal,
}

impl StorageFault {
    /// Whether it is for want of room, which may pass.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if stead_store::disk::is_full(source))
    }
}

/// Names the operation that failed.
pub(crate) fn io_fault(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> StorageFault {
    let path = path.to_owned();
    move |source| StorageFault::Io { action, path, source }
}
