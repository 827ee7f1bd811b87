//! The part that makes several nodes one cluster: it starts a node's member of the control plane, introduces the node, carries the
//! requests of the control plane between nodes, reports on the node's replicas, and gives it the orders and the routes of the control
//! plane.
//!
//! [`enter`] comes before a node recovers its data: it returns the data directory and the replicas that are placed there. Does not
//! know: users' types, HTTP, the meaning of an entry.

#![forbid(unsafe_code)]

mod address;
mod adopt;
mod enter;
mod error;
mod host;
mod join;
mod links;
mod look;
mod message;
mod operate;
mod part;
mod problems;
mod status;
mod survey;
mod transport;

pub use address::Addresses;
pub use enter::{ClusterOptions, Entered, Membership, NewService, enter};
pub use error::EnterError;
pub use operate::{DialChange, OperateError};
pub use status::{
    ClusterStatus, FailoverReport, Loss, NodeState, NodeStatus, Problem, ReplicaLag, ServiceDial, ShardPlaces,
};
