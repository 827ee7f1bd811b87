//! The record of a node.

use crate::ids::{DiskNumber, Life, bytes16};
use minicbor::{Decode, Encode};

/// A number that a node draws at random when it starts: two starts of one directory, or of a copy of it, differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct StartId(#[cbor(n(0), with = "bytes16")] pub u128);

/// The state of a node's disk at a start, as the node found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DiskState {
    /// It holds all that was ever acknowledged.
    #[n(0)]
    Whole,
    /// The machine was booted anew, and the log was not always synced: it may lack what was acknowledged last in epochs whose
    /// [`Durability`](crate::durability::Durability) is relaxed. Replicas of these count for less in the next takeover; all others hold
    /// what they acknowledged.
    #[n(1)]
    Doubtful,
    /// It is new, damaged, or an older copy: its replicas are void (rule 3).
    #[n(2)]
    Lost,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeRecord {
    /// Its addresses for peers and clients, `HOST:PORT`; the first one is tried first.
    #[n(0)]
    pub addresses: Vec<String>,
    /// The life of its process that was registered last (rule 3).
    #[n(1)]
    pub life: Life,
    /// The number of that start.
    #[n(2)]
    pub start: StartId,
    /// Lives up to this one are proven dead: by its parent, which reaped it, by a successor that holds the lock of its data
    /// directory, or by an operator's word.
    #[n(3)]
    pub dead: Life,
    /// Its disk: replicas that were placed on an older one are lost.
    #[n(4)]
    pub disk: DiskNumber,
    /// It is to be removed: its replicas move away.
    #[n(5)]
    pub is_leaving: bool,
}

impl NodeRecord {
    /// Greatest number of addresses of a node.
    pub const ADDRESSES_MAX: usize = 8;
    /// Greatest length of an address, in bytes.
    pub const ADDRESS_BYTES_MAX: usize = 300;
}
