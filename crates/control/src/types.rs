//! The types with which openraft is instantiated. None of them leaves this crate.

use crate::pace::Paced;
use crate::proposal::{Proposal, Reply};
use openraft::RaftTypeConfig;
use std::sync::Arc;

/// The instance of openraft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = Reply;
    type NodeId = u64;
    type Node = Peer;
    type Entry = openraft::Entry<Self>;
    type SnapshotData = SnapshotData;
    type AsyncRuntime = Paced;
    type Responder = openraft::impls::OneshotResponder<Self>;
}

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Peer>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Peer>;
pub(crate) type Raft = openraft::Raft<Types>;

/// The facts about a node that the membership holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The address at which the other nodes reach it.
    pub(crate) address: String,
}

/// The encoded state of a snapshot, shared by all who send it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SnapshotData(pub(crate) Arc<Vec<u8>>);
