//! The inputs and effects of a replica of a shard, and its frames.

use crate::blob::Blob;
use crate::durability::Durability;
use crate::entry::Entry;
use crate::handler::Handler;
use crate::ids::{CallToken, Epoch, Index, Life, Micros, ReplicaId, ShardId, Time};
use crate::replication::epoch::{Ask, EpochRecord, Mark, Seal, SealAnswer};
use crate::replication::replica::{AppendHead, CannotLead};
use crate::replication::table::{EpochTable, LogPoint};
use crate::shard::{self, Shard};
use crate::state::{Misfit, State};

/// An entry of the log as its bytes, which are shared by the log and the frames to all peers.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its place.
    pub point: LogPoint,
    /// Its bytes.
    pub bytes: Blob,
}

/// A record for the node's log.
#[derive(Clone, Debug)]
pub enum Record {
    /// The replica takes part in no epoch below this one.
    Promise(Epoch),
    /// The entries behind `keep` that stand before this record do not count.
    Cut {
        /// The epoch for which the log is cut.
        epoch: Epoch,
        /// The last index that is kept.
        keep: Index,
    },
    /// An entry.
    Entry(LogEntry),
    /// No entry before this record counts: the log begins anew behind a snapshot that is durable already.
    Install {
        /// The epoch of the primary that sent it.
        epoch: Epoch,
        /// The last entry that the snapshot covers.
        base: LogPoint,
    },
}

/// A message between two replicas of a shard. Frames may be lost, doubled and reordered; a lost one is followed by
/// [`Input::Connected`].
#[derive(Clone, Debug)]
pub enum Frame {
    /// Entries of a primary.
    Append {
        /// The head.
        head: AppendHead,
        /// The record of the sender's epoch: the first frame on each connection has it (rule 24).
        record: Option<Box<EpochRecord>>,
        /// The entries behind `head.before`.
        entries: Vec<LogEntry>,
    },
    /// The sender's log is durable up to `upto`, and equal to the receiver's.
    Ack {
        /// The epoch.
        epoch: Epoch,
        /// The index.
        upto: Index,
    },
    /// A frame does not follow from the sender's log, or answers of the sender may be lost: the receiver sends what comes behind the
    /// last entry that both have.
    Diverged {
        /// The epoch of that frame.
        epoch: Epoch,
        /// The sender's log.
        table: EpochTable,
    },
    /// The receiver has acknowledged the entries up to this one in the epoch that the sender leads: a connection begins with that
    /// (rule 18).
    Acked {
        /// The epoch.
        epoch: Epoch,
        /// The entry.
        upto: LogPoint,
    },
    /// The sender takes part in no epoch below `promised`.
    Refuse {
        /// The refused epoch.
        epoch: Epoch,
        /// The promise.
        promised: Epoch,
    },
    /// A primary's question whether the receiver still takes part in its epoch.
    Ask(Ask),
    /// The answer that it does.
    Confirm {
        /// The epoch.
        epoch: Epoch,
        /// The round that was asked for.
        round: crate::ids::Round,
        /// The time of the sender's clock.
        mark: Mark,
        /// Whether no cause that the sender has handled as a primary in this life can have ended a process: it leads no epoch any
        /// more, and the last one that it led ended when its shard suspected nothing.
        vouches: bool,
    },
}

/// An event for a replica. All may come late, twice or never, except that `Durable`, `Rebuilt`, `Installed` and `LogRead` must be
/// true.
pub enum Input {
    /// A frame of another replica of the shard. The connection vouches for the sender.
    Frame {
        /// The sender.
        from: ReplicaId,
        /// The frame.
        frame: Frame,
    },
    /// The connection to another replica is new: what was on its way may be lost.
    Connected(ReplicaId),
    /// The directory names the primary of an epoch. A replica that has heard of none in this life reports to it, for it may have been
    /// sent frames before it was here.
    Follow {
        /// The epoch.
        epoch: Epoch,
        /// Its primary.
        primary: ReplicaId,
    },
    /// So many more records and entries of [`Effects`] are durable, in their order. With 0, more leaves of what is committed, if the
    /// shard [is behind](crate::shard::Shard::is_behind).
    Durable(usize),
    /// The control plane asks for a seal.
    Seal(Seal),
    /// The control plane has recorded an epoch that this replica leads.
    Lead {
        /// The record.
        record: Box<EpochRecord>,
        /// Replicas that are no members, and get the log to catch up. They count nowhere. Later ones come with the record once more.
        learners: Vec<ReplicaId>,
        /// [`ReplicaSettings::max_lag`] from now on.
        max_lag: Micros,
    },
    /// The answer to [`Effect::Rebuild`]. One that is not of the newest is ignored.
    Rebuilt {
        /// Its number.
        number: u64,
        /// The state.
        state: Box<State>,
    },
    /// The answer to [`Effect::ReadLog`].
    LogRead {
        /// The receiver.
        to: ReplicaId,
        /// The head.
        head: AppendHead,
        /// The entries as they were read.
        entries: Vec<LogEntry>,
    },
    /// The answer to [`Effect::SendSnapshot`]: the snapshot that is being sent.
    SnapshotSent {
        /// The receiver.
        to: ReplicaId,
        /// The last entry that it covers.
        base: LogPoint,
    },
    /// The receiver has all of it: it is asked for its acknowledgement, which may have been lost with a connection.
    SnapshotReceived {
        /// The receiver.
        to: ReplicaId,
        /// The last entry that the snapshot covers.
        base: LogPoint,
    },
    /// A snapshot from the primary of an epoch is whole and durable aside.
    Installed {
        /// The primary.
        from: ReplicaId,
        /// Its epoch.
        epoch: Epoch,
        /// The last entry that the snapshot covers.
        base: LogPoint,
        /// The state at that entry.
        state: Box<State>,
    },
    /// The log was trimmed up to an entry, which a durable snapshot of this replica covers.
    Trimmed(LogPoint),
    /// Time has passed: [`super::ShardReplica::deadline`] has come.
    Tick,
}

/// The effects of one input. The shell performs them in the order of the fields, and empties them.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records for the node's log, in their order. With the entries of the [`shard::Effect::Append`]s in `shard`, which follow them,
    /// they are one batch, which is durable whole or not at all; entries behind the first may be in later ones if there are no
    /// records. Once they are durable, pass [`Input::Durable`].
    pub records: Vec<Record>,
    /// Requests of the replica itself.
    pub replica: Vec<Effect>,
    /// Requests of the shard that it leads.
    pub shard: Vec<shard::Effect>,
}

impl Effects {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.replica.is_empty() && self.shard.is_empty()
    }

    /// Returns when the records and entries of a shard have to be synced in an epoch: before they count as durable, if another node or
    /// another shard may rely on them, or else when the epoch's members do that.
    #[must_use]
    pub fn durability(&self, shard: ShardId, epoch: Durability) -> Durability {
        let is_own = |bytes: &[u8]| !Entry::is_shared(shard, bytes);
        let may_wait = epoch.is_relaxed()
            && self.records.iter().all(|record| match record {
                Record::Entry(entry) => is_own(&entry.bytes),
                Record::Promise(_) | Record::Cut { .. } | Record::Install { .. } => false,
            })
            && self.shard.iter().all(|effect| match effect {
                shard::Effect::Append { bytes, .. } => is_own(bytes),
                _ => true,
            });
        if may_wait { epoch } else { Durability::Always }
    }

    /// Returns the number of records and entries for the log: as many are passed as [`Input::Durable`].
    #[must_use]
    pub fn log_records(&self) -> usize {
        let entries = self.shard.iter().filter(|effect| matches!(effect, shard::Effect::Append { .. }));
        self.records.len() + entries.count()
    }
}

/// A request of a replica to the shell, which performs it and decides nothing.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// The frame.
        frame: Frame,
    },
    /// Answer a seal of the control plane.
    Sealed(SealAnswer),
    /// Refuse a seal of the control plane: this replica promised a higher epoch. Or inform it that another replica did, so that this
    /// one no longer leads, whether it knows that or not.
    Superseded {
        /// The epoch that is over.
        epoch: Epoch,
        /// The promised epoch.
        promised: Epoch,
    },
    /// This replica leads an epoch from now on.
    Leads {
        /// The epoch.
        epoch: Epoch,
        /// Causes were met by the last end of a process, so that the shard is held, and waits for its turn: see
        /// [`crate::trials`].
        is_held: bool,
    },
    /// This replica cannot lead the epoch that the control plane gave it.
    CannotLead(CannotLead),
    /// This replica leads the epoch no more. Drop its tasks, queries and snapshots that run. Calls in flight at the shard are not
    /// answered any more: it is unknown whether they were handled. A retry with the same identity at the next primary gets its
    /// answer, or handles it.
    Deposed(Epoch),
    /// A call was not handled, for this replica does not lead: it has to go to the primary.
    NotPrimary {
        /// The call.
        token: CallToken,
        /// The replica that leads, as far as it is known.
        primary: Option<ReplicaId>,
    },
    /// Fold the state anew, as at a start: from the newest snapshot and the log as it was written so far, to an entry from `from` to
    /// `upto`, of those that count after all cuts; then pass [`Input::Rebuilt`]. What the state held beyond that is not in the log
    /// any more, or it lacks entries that are in the log and not in memory.
    Rebuild {
        /// Counts them within this life.
        number: u64,
        /// The least index.
        from: Index,
        /// The greatest index: what is behind may not be committed, and for a primary-to-be is not part of its epoch.
        upto: Index,
    },
    /// Read entries that are no longer in memory from the log, and pass [`Input::LogRead`].
    ReadLog {
        /// The receiver.
        to: ReplicaId,
        /// The head of the frame.
        head: AppendHead,
        /// The index of the last entry.
        last: Index,
    },
    /// Choose a snapshot of committed state, pass [`Input::SnapshotSent`], and then send it.
    SendSnapshot {
        /// The receiver.
        to: ReplicaId,
    },
    /// The log holds an entry that does not follow from the state: the entry or the state is damaged. From now on the replica handles
    /// nothing; stop it, and bring its node back as a new replica.
    Unusable(Misfit),
    /// This replica lacks what it acknowledged: its disk is another one, or an older copy. From now on it handles nothing; bring its node
    /// back as a new replica (rule 3). Repeated whenever something is asked of it, without the entry.
    Void {
        /// The entry that it acknowledged.
        lacks: Option<LogPoint>,
    },
    /// A frame contradicts what is committed here, and is taken for invalid. If the control plane confirms its epoch, and that an
    /// operator gave up what this replica holds, then the replica has to be given up as well.
    GivenUp {
        /// The sender.
        from: ReplicaId,
        /// The epoch that it leads.
        epoch: Epoch,
    },
    /// A frame is invalid: its sender's connection should be closed.
    Invalid {
        /// The sender.
        from: ReplicaId,
        /// The reason.
        reason: String,
    },
}

/// The bounds and times of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaSettings {
    /// The bounds of the stream to each peer.
    pub stream: crate::replication::stream::StreamLimits,
    /// Bytes of committed entries that are kept in memory for peers: older ones are read from the log.
    pub tail_bytes: u64,
    /// Bytes of entries that a backup applies with one input, besides an entry; the next ones with a tick.
    pub apply_bytes: u64,
    /// The span after which an idle primary sends its commit index.
    pub heartbeat: Micros,
    /// The span in which entries of an epoch with W = 1 leave together, unless something other than a client waits for them, or a frame
    /// is full. It is shortened to a quarter of `max_lag`.
    pub pace: Micros,
    /// The greatest age of an entry that is not committed, in an epoch that answers early: above it clients are refused.
    pub max_lag: Micros,
}

impl Default for ReplicaSettings {
    /// Windows of 4 MiB in frames of 256 KiB; a peer is slow that lags by 64 MiB, or without progress for 5 s; 4 MiB of committed
    /// entries in memory; 256 KiB applied at once; a heartbeat every 100 ms; entries of an asynchronous service leave every 5 ms, and its
    /// backups lag by up to 10 s.
    fn default() -> Self {
        let stream = crate::replication::stream::StreamLimits {
            window: 4 << 20,
            frame: 256 << 10,
            lag_max: 64 << 20,
            stall_max: Micros::from_secs(5),
        };
        Self {
            stream,
            tail_bytes: 4 << 20,
            apply_bytes: 256 << 10,
            heartbeat: Micros::from_millis(100),
            pace: Micros::from_millis(5),
            max_lag: Micros::from_secs(10),
        }
    }
}

impl ReplicaSettings {
    /// Returns the next time at which entries leave that stay for a while. It is the same for all shards of a node.
    pub(super) fn next_departure(&self, now: Time) -> Time {
        let pace = self.pace.0.min(self.max_lag.0 / 4).max(1);
        Time((now.0 / pace + 1).saturating_mul(pace))
    }
}

/// The name of a replica in one life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaName {
    /// The replica.
    pub id: ReplicaId,
    /// The life.
    pub life: Life,
}

/// User code as a replica runs it, which a simulator may watch.
pub trait Watched: Handler {
    /// Sees an input that the replica gives its shard. By default nothing.
    fn sees_input(&mut self, shard: &Shard, input: &shard::Input) {
        let _ = (shard, input);
    }

    /// Sees the effects of the shard's last input, and may change them. By default nothing.
    fn sees_effects(&mut self, shard: &Shard, effects: &mut Vec<shard::Effect>) {
        let _ = (shard, effects);
    }
}
