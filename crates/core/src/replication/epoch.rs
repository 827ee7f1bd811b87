//! The record of an epoch, the seals that end the ones before it, and the confirmations within it.

use super::table::{EpochTable, LogPoint, Losses};
use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Generation, Index, Life, Micros, ReplicaId, Round, Time};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// An epoch of a shard, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct EpochRecord {
    /// Its members, W and primary.
    #[n(0)]
    pub config: EpochConfig,
    /// The life of the primary's process: it leads for that one only (rule 11).
    #[n(1)]
    pub life: Life,
    /// The span of the leases under which its primary answers; 0 for none. An epoch whose W is below S needs one.
    #[n(2)]
    pub lease: Micros,
    /// The generation of the shard's channels; the first one is 0.
    #[n(3)]
    pub generation: Generation,
    /// The entry behind which it begins.
    #[n(4)]
    pub base: LogPoint,
    /// The losses of earlier epochs: they are final once this one is active (rule 19).
    #[n(5)]
    pub losses: Losses,
    /// The primaries of the epochs before it, from the last active one on, with the lives of their processes; of several lives of
    /// one, the first. A cause that one of them handled may have ended its process, unless that life still goes on.
    #[n(6)]
    pub earlier: BTreeMap<ReplicaId, Life>,
}

impl EpochRecord {
    /// Returns `earlier` for an epoch that follows others of a replica of which nothing is known: there is no life 0 that could go
    /// on.
    #[must_use]
    pub fn unknown_past(replica: ReplicaId) -> BTreeMap<ReplicaId, Life> {
        BTreeMap::from([(replica, Life(0))])
    }
}

/// A request to take part in no epoch below `epoch` any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Seal {
    /// The epoch that is to begin.
    #[n(0)]
    pub epoch: Epoch,
    /// The lease of the newest epoch; 0 if it has none, or its primary is proven dead: by its parent, which reaped it, by a
    /// successor that holds the lock of its data directory, or by an operator's word. A closed connection proves nothing.
    #[n(1)]
    pub lease: Micros,
}

/// A time of a replica's own clock: it means nothing to another clock, or in another life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Mark {
    /// The life.
    #[n(0)]
    pub life: Life,
    /// The time.
    #[n(1)]
    pub at: Time,
}

/// A report of how old a replica's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Fresh {
    /// A time of the replica's clock at which the primary's last confirmed round had not begun.
    #[n(0)]
    pub as_of: Mark,
    /// The index up to which clients may have been answered when that round began.
    #[n(1)]
    pub upto: Index,
}

/// A primary's request to confirm that the receiver still takes part in its epoch. Every frame may carry one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Ask {
    /// The epoch that the sender leads.
    #[n(0)]
    pub epoch: Epoch,
    /// The newest round.
    #[n(1)]
    pub round: Round,
    /// The span of the lease that a confirmation grants; 0 for none.
    #[n(2)]
    pub lease: Micros,
    /// The age of the receiver's state; `None` as long as it is unknown.
    #[n(3)]
    pub fresh: Option<Fresh>,
}

/// The answer to a seal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SealAnswer {
    /// The replica that answers.
    #[n(0)]
    pub replica: ReplicaId,
    /// The life of its process.
    #[n(1)]
    pub life: Life,
    /// The epoch that it was sealed for: it takes part in no lower one.
    #[n(2)]
    pub epoch: Epoch,
    /// Its log, all of it durable.
    #[n(3)]
    pub table: EpochTable,
    /// The highest epoch that it knows to be active; 0 if it knows none.
    #[n(4)]
    pub active: Epoch,
    /// Its state is being folded from the log, or has to be: it can lead only after that.
    #[n(5)]
    #[cbor(default)]
    pub is_folding: bool,
}
