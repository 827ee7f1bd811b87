//! Errors between a user and a node.

use crate::service::RegisteredTwice;
use crate::service::codec::CodecError;
use std::io;
use std::time::Duration;
use stead_core::calls::Refusal;
use stead_core::placement::Place;
use stead_core::topology::TopologyError;
use stead_net::network::AddressError;
use stead_node::NoAnswer;
use stead_store::checkpoint::store::StoreError;
use stead_store::data_dir::DataDirError;
use stead_store::disk::is_full;
use stead_store::recovery::RecoveryError;
use stead_store::wal::WalError;
use thiserror::Error;

/// Reasons for which a call has no answer of its process.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RawError {
    /// There is no such service.
    #[error("no service {service} exists; `stead status` lists those that do")]
    UnknownService {
        /// The service.
        service: String,
    },
    /// There is no such shard.
    #[error("shard {shard} does not exist; the shards are 0 to {}", shards.saturating_sub(1))]
    UnknownShard {
        /// The shard.
        shard: u32,
        /// The number of shards.
        shards: u32,
    },
    /// The key, the request or the answer is invalid for the service's types. Nothing was changed, unless only the
    /// answer cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The shard refused the call. Nothing was changed.
    #[error(transparent)]
    Refused(Refusal),
    /// The shard is not on this node. Nothing was changed.
    #[error(
        "shard {shard} is not on this node: it is {}; `stead status` lists such shards",
        if *place == Place::Elsewhere { "on another one" } else { "on no known node" }
    )]
    NotHere {
        /// The shard.
        shard: u32,
        /// Its place.
        place: Place,
    },
    /// The shard had no primary that this node reached in time. Nothing was changed.
    #[error(
        "shard {shard} had no primary that this node reached within {} ms; nothing was changed: call again, or look at \
         `stead status`",
        after.as_millis()
    )]
    NoPrimary {
        /// The shard.
        shard: u32,
        /// The time of the wait.
        after: Duration,
    },
    /// No answer came in time. The request may have been applied, or may still be.
    #[error("no answer within {} ms; the request may have been applied: repeat it with the same idempotency key", after.as_millis())]
    TimedOut {
        /// The time of the wait.
        after: Duration,
    },
    /// The node had a fatal error before it could answer. The request may have been applied.
    #[error("the node failed: {0}; the request may have been applied")]
    NodeFailed(String),
    /// The node is shutting down or has shut down. The request may have been applied.
    #[error("the node has stopped; the request may have been applied unless it was made after that")]
    Stopped,
    /// There is no connection to a node that serves, or it was lost before the answer.
    #[error(
        "{reason}; {}",
        if *sent {
            "the request may have been applied: repeat it with the same idempotency key"
        } else {
            "the request was not sent: check that the node runs and listens for native clients at this address, and call again"
        }
    )]
    Network {
        /// The reason.
        reason: String,
        /// Whether the request was sent, so that it may have been applied.
        sent: bool,
    },
    /// The node does not take the request. It was not applied, unless it was sent before.
    #[error("the node does not take the request: {0}")]
    Invalid(String),
    /// The position of a page of processes is from an earlier epoch of their shard, in which they had another order: the node was
    /// restarted, or another one leads now.
    #[error(
        "the page position is from before the node's last start, or another node leads the shard now; begin again with the first page"
    )]
    StalePage,
}

impl From<NoAnswer> for RawError {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Refused(refusal) => Self::Refused(refusal),
            NoAnswer::NotHere { shard, place } => Self::NotHere { shard: shard.0, place },
            NoAnswer::NoPrimary { shard, after } => Self::NoPrimary { shard: shard.0, after },
            NoAnswer::Deposed { .. } => Self::Network { reason: none.to_string(), sent: true },
            NoAnswer::TimedOut { after } => Self::TimedOut { after },
            NoAnswer::Failed(reason) => Self::NodeFailed(reason),
            NoAnswer::Stopped => Self::Stopped,
        }
    }
}

/// Reasons for which a client has no connection to a cluster.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no address was given; name at least one, as in 127.0.0.1:7421")]
    NoAddress,
    /// An address cannot be resolved.
    #[error("cannot use the address {address:?}: {source}; write it as host:port, as in 127.0.0.1:7421")]
    Resolve {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// An address is not a loopback address.
    #[error(transparent)]
    Address(AddressError),
    /// The system refused a thread or a descriptor.
    #[error("cannot start the client: {0}")]
    System(#[source] io::Error),
    /// No node answered.
    #[error(transparent)]
    Raw(#[from] RawError),
}

/// Reasons for which a typed call failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError<E> {
    /// The process answered with an error of its own: the call was handled, and nothing was changed.
    #[error("{0}")]
    Process(E),
    /// There is no answer of the process.
    #[error(transparent)]
    Raw(#[from] RawError),
}

/// Reasons for which a node cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A service or task was registered twice.
    #[error(transparent)]
    RegisteredTwice(#[from] RegisteredTwice),
    /// The services do not fit together, or do not fit the data.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The data has services or tasks for which the node has no code.
    #[error(
        "the data holds {what}, for which no code is registered here, and nothing was changed; register the code, or name \
         it in `NodeBuilder::without_code`: messages, timers and steps that come due for it become dead letters"
    )]
    NoCode {
        /// Their names.
        what: String,
    },
    /// The directory cannot be used.
    #[error("cannot use the data directory {path}: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The data directory is in use, damaged, or of another version.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The data are those of a node of a cluster.
    #[error(
        "the data directory is that of a node of a cluster, and is not opened without it; start the node with an address for \
         the other nodes: `--listen-cluster`, or `cluster.listen` in the configuration"
    )]
    OfCluster,
    /// The store of checkpoints failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored data does not make up a state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The address for native clients cannot be used.
    #[error(transparent)]
    Address(AddressError),
    /// The address for other nodes cannot be used.
    #[error("the node cannot listen for the other nodes of its cluster: {0}")]
    Cluster(#[source] AddressError),
    /// The system does not name the address of a socket that listens for other nodes.
    #[error(
        "the address at which the other nodes of the cluster would reach this one is not known: {0}; start the node again"
    )]
    ClusterSystem(#[source] io::Error),
    /// The node has not entered its cluster.
    #[error(transparent)]
    Enter(#[from] stead_cluster::EnterError),
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

impl From<stead_node::OpenError> for OpenError {
    fn from(error: stead_node::OpenError) -> Self {
        match error {
            stead_node::OpenError::Topology(error) => Self::Topology(error),
            stead_node::OpenError::NoCode { what } => Self::NoCode { what },
            stead_node::OpenError::DataDir(error) => Self::DataDir(error),
            stead_node::OpenError::OfCluster => Self::OfCluster,
            stead_node::OpenError::Store(error) => Self::Store(error),
            stead_node::OpenError::Recovery(error) => Self::Recovery(error),
            stead_node::OpenError::Native(error) => Self::Native(error),
            stead_node::OpenError::Failed(reason) => Self::Failed(reason),
            stead_node::OpenError::Thread(error) => Self::Thread(error),
        }
    }
}

impl OpenError {
    /// Whether another start may succeed without a correction of the data or the configuration: the disk was full,
    /// the system refused a thread, or the node failed while it started.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Thread(_) => true,
            Self::Directory { source, .. }
            | Self::DataDir(DataDirError::Io { source, .. })
            | Self::Recovery(RecoveryError::Log(WalError::Io { source, .. })) => is_full(source),
            Self::Enter(error) => error.may_pass(),
            Self::Store(error) => error.is_full(),
            Self::Recovery(RecoveryError::Checkpoint(error)) => error.is_full(),
            Self::Recovery(RecoveryError::Log(error)) => matches!(error, WalError::NoSpace { .. }),
            _ => false,
        }
    }
}
