//! The history of failovers.

use crate::ids::{Epoch, Micros, NodeId, ShardId, Time};
use crate::replication::table::LogPoint;
use minicbor::{Decode, Encode};
use std::fmt;

/// The reason for which an epoch was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Cause {
    /// The connection to the primary's node closed, and it does not answer.
    #[n(0)]
    Closed,
    /// The primary's node was silent for longer than it usually is.
    #[n(1)]
    Silent,
    /// The primary's node made no progress through its write path, although it was heard.
    #[n(2)]
    Stalled,
    /// The other nodes do not hear the primary's node.
    #[n(3)]
    CutOff,
    /// The process of the primary ended, and began another life.
    #[n(4)]
    Restarted,
    /// The disk of the primary's node is gone.
    #[n(5)]
    DiskLost,
    /// The primary cannot lead its epoch, or did not begin to in time.
    #[n(6)]
    NotLed,
    /// A member promised a higher epoch, which was given up.
    #[n(7)]
    Superseded,
    /// The dial of the service changed.
    #[n(8)]
    DialChanged,
    /// A replica was replaced by one on another node.
    #[n(9)]
    Moved,
    /// The primary was moved to another node.
    #[n(10)]
    Balanced,
    /// An operator asked for it.
    #[n(11)]
    Operator,
}

impl Cause {
    /// Returns a short name for programs and metrics, which stays.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::CutOff => "cut_off",
            Self::Restarted => "restarted",
            Self::DiskLost => "disk_lost",
            Self::NotLed => "not_led",
            Self::Superseded => "superseded",
            Self::DialChanged => "dial_changed",
            Self::Moved => "moved",
            Self::Balanced => "balanced",
            Self::Operator => "operator",
        }
    }

    /// Whether something failed; otherwise the change was planned.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::DialChanged | Self::Moved | Self::Balanced | Self::Operator)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the connection closed",
            Self::Silent => "the node was silent",
            Self::Stalled => "the node stalled",
            Self::CutOff => "the node was cut off from its peers",
            Self::Restarted => "the process restarted",
            Self::DiskLost => "the node's disk is gone",
            Self::NotLed => "the primary did not lead",
            Self::Superseded => "a member had promised a higher epoch",
            Self::DialChanged => "the dial changed",
            Self::Moved => "a replica moved",
            Self::Balanced => "the primary moved to balance the nodes",
            Self::Operator => "an operator asked for it",
        })
    }
}

/// A failover, or another change of a shard's primary.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failover {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The epoch that began.
    #[n(1)]
    pub epoch: Epoch,
    /// The reason.
    #[n(2)]
    pub cause: Cause,
    /// The node that led before; `None` if it is no longer known.
    #[n(3)]
    pub from: Option<NodeId>,
    /// The node that leads now.
    #[n(4)]
    pub to: NodeId,
    /// The time at which the reason was noticed, by the wall clock of the control plane's leader.
    #[n(5)]
    pub noticed: Time,
    /// The span until the epoch was known to be active; `None` until then.
    #[n(6)]
    pub duration: Option<Micros>,
    /// By epoch, the last entry that survived, where later ones may be lost: those that the old primary alone had. How many they
    /// were is known when it returns.
    #[n(7)]
    pub losses: Vec<LogPoint>,
    /// An operator went on without members that were missing.
    #[n(8)]
    pub is_forced: bool,
}
