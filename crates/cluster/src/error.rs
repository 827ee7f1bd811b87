//! Reasons for which a node does not enter its cluster.

use std::io;
use stead_control::{ProposeError, StartError};
use stead_core::control::Refusal;
use stead_core::ids::NodeId;
use stead_core::topology::TopologyError;
use stead_net::network::AddressError;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::DataDirError;
use stead_store::recovery::RecoveryError;

/// Reasons for which a node does not enter its cluster.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// An address cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The control plane does not start.
    #[error(transparent)]
    Plane(#[from] StartError),
    /// The system refuses a socket or a thread.
    #[error("the system refuses a socket or a thread: {0}; free some, and start again")]
    System(#[source] io::Error),
    /// The secret of a new cluster cannot be drawn.
    #[error(
        "cannot draw the secret of the cluster from /dev/urandom: {0}; make that readable, and start again"
    )]
    Secret(#[source] io::Error),
    /// The data directory is empty, and there is no address to ask.
    #[error("there is no address of a node to join; give one, HOST:PORT")]
    NoAddress,
    /// No node registered this one in time.
    #[error(
        "this node has not joined: {last}; check that the addresses are those at which nodes listen for each other, and \
         start again"
    )]
    NotJoined {
        /// The last failure.
        last: String,
    },
    /// The cluster refuses the node.
    #[error("the cluster refuses this node: {reason}")]
    Refused {
        /// The reason.
        reason: String,
    },
    /// The control plane did not register the start in time.
    #[error(
        "the control plane has not registered this start of node {node}: {reason}{}; start the other nodes, or check that \
         they can be reached, and start again",
        failures.iter().map(|failure| format!("; {failure}")).collect::<String>()
    )]
    NotRegistered {
        /// This node.
        node: NodeId,
        /// The obstacle, as far as it is known.
        reason: &'static str,
        /// The last failures of connections.
        failures: Vec<String>,
    },
    /// The cluster has removed the node.
    #[error("the cluster has removed node {0}; join as a new one, with an empty data directory")]
    Removed(NodeId),
    /// The data were written without a control plane, and so are part of no cluster that this node could join.
    #[error(
        "the data directory holds the data of a node without a cluster, which cannot join one; start it without addresses to \
         join, so that it founds a cluster with these data, or use an empty directory"
    )]
    NotOfCluster,
    /// The services of the data do not fit together.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The store of checkpoints cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data of a node that ran without a cluster cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// A first command was refused.
    #[error("the control plane refuses a service of this program: {0}")]
    Command(#[source] Refusal),
    /// A first command has no outcome.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The caller does not want to go on.
    #[error("the start was stopped before the node had entered its cluster")]
    Stopped,
}

impl EnterError {
    /// Whether another start may succeed without a correction: other nodes may run by then.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::System(_) | Self::NotJoined { .. } | Self::NotRegistered { .. } | Self::Propose(_)
        )
    }
}
