//! Rare events of clusters, counted: silence of the checks shows something only about what was reached.

use std::fmt;

/// A rare event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterMark {
    /// A process was killed.
    Killed,
    /// The power of a node was cut.
    PowerCut,
    /// A node crashed while it recovered.
    CrashInRecovery,
    /// A node stood still for a while.
    Paused,
    /// A message between nodes was lost.
    MessageLost,
    /// A message between nodes came twice.
    MessageAgain,
    /// A client asked again for an answer that it had.
    AskedAgain,
    /// An epoch began.
    Epoch,
    /// An epoch began before the one before was active.
    NeverActive,
    /// The control plane had a new leader.
    Leader,
    /// The log of a replica was trimmed behind its snapshot.
    Trimmed,
    /// It was while that snapshot was sent to another replica.
    TrimmedBesideTransfer,
    /// Segments of a node's log were released.
    Released,
    /// A replica began from its own snapshot.
    Recovered,
    /// A snapshot was sent to another replica.
    SnapshotSent,
    /// A replica began anew from the snapshot of another one.
    Installed,
    /// A read was answered, linearizable or under the primary's lease.
    Read,
    /// A stale read was answered.
    StaleRead,
    /// A write without an identity was answered.
    Anonymous,
    /// A call left for another node.
    Forwarded,
    /// A call left for other nodes in three epochs: its client waited for two failovers.
    ForwardedOverTwo,
    /// A dial changed.
    DialChanged,
    /// An epoch began with a member that the one before had not.
    Joined,
    /// A node lost its disk.
    DiskLost,
    /// A replica refused a seal, for another attempt has sealed it.
    SealRace,
    /// An epoch began because of a failure, and the one before, which did so as well, was never active.
    FailedTwice,
    /// Entries of a replica's log were cut, for a primary has others.
    Cut,
    /// An answer left before its entry was committed.
    Early,
    /// An answer that left early was lost, and announced.
    Lost,
    /// A client got the report that what it has seen is lost.
    LossReported,
    /// A primary under a lease stood still for longer than that.
    PausedLease,
    /// A power cut may have taken what a replica had acknowledged.
    Doubted,
    /// A shard went on with replicas that may have lost what they had acknowledged.
    WentOnInDoubt,
    /// It lost entries that were committed.
    CommittedLost,
    /// An operator was shown the state of a process.
    Looked,
    /// An operator was shown dead letters.
    LettersListed,
    /// An operator deleted the state of a process.
    Deleted,
}

impl ClusterMark {
    /// All of them.
    pub const ALL: [Self; 37] = [
        Self::Killed,
        Self::PowerCut,
        Self::CrashInRecovery,
        Self::Paused,
        Self::MessageLost,
        Self::MessageAgain,
        Self::AskedAgain,
        Self::Epoch,
        Self::NeverActive,
        Self::Leader,
        Self::Trimmed,
        Self::TrimmedBesideTransfer,
        Self::Released,
        Self::Recovered,
        Self::SnapshotSent,
        Self::Installed,
        Self::Read,
        Self::StaleRead,
        Self::Anonymous,
        Self::Forwarded,
        Self::ForwardedOverTwo,
        Self::DialChanged,
        Self::Joined,
        Self::DiskLost,
        Self::SealRace,
        Self::FailedTwice,
        Self::Cut,
        Self::Early,
        Self::Lost,
        Self::LossReported,
        Self::PausedLease,
        Self::Doubted,
        Self::WentOnInDoubt,
        Self::CommittedLost,
        Self::Looked,
        Self::LettersListed,
        Self::Deleted,
    ];

    /// Returns its description.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Killed => "killed processes",
            Self::PowerCut => "power cuts",
            Self::CrashInRecovery => "crashes in a recovery",
            Self::Paused => "paused nodes",
            Self::MessageLost => "messages lost between nodes",
            Self::MessageAgain => "messages doubled between nodes",
            Self::AskedAgain => "answers asked for again",
            Self::Epoch => "epochs begun by the control plane",
            Self::NeverActive => "epochs that were never active",
            Self::Leader => "leaders of the control plane",
            Self::Trimmed => "trimmed logs of replicas",
            Self::TrimmedBesideTransfer => "trimmed logs of replicas whose snapshots were on their way",
            Self::Released => "releases of log segments",
            Self::Recovered => "replicas that began from snapshots of their own",
            Self::SnapshotSent => "snapshots sent to other replicas",
            Self::Installed => "snapshots of other replicas installed",
            Self::Read => "reads at primaries",
            Self::StaleRead => "stale reads",
            Self::Anonymous => "writes without an identity",
            Self::Forwarded => "calls forwarded to other nodes",
            Self::ForwardedOverTwo => "calls forwarded over two failovers",
            Self::DialChanged => "changed dials",
            Self::Joined => "epochs with new members",
            Self::DiskLost => "lost disks",
            Self::SealRace => "seals refused for a higher promise",
            Self::FailedTwice => "failovers of an epoch that a failover began and that was never active",
            Self::Cut => "logs cut where they differ",
            Self::Early => "answers before their commit",
            Self::Lost => "answers lost and announced",
            Self::LossReported => "losses reported to clients that have seen what is lost",
            Self::PausedLease => "primaries paused for longer than their lease",
            Self::Doubted => "starts of nodes that may lack what they acknowledged",
            Self::WentOnInDoubt => "takeovers with replicas that may lack what they acknowledged",
            Self::CommittedLost => "takeovers that lost committed entries",
            Self::Looked => "looks of operators at processes",
            Self::LettersListed => "lists of dead letters that have some",
            Self::Deleted => "processes deleted by operators",
        }
    }
}

/// The counts of rare events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMarks([u64; ClusterMark::ALL.len()]);

impl Default for ClusterMarks {
    fn default() -> Self {
        Self([0; ClusterMark::ALL.len()])
    }
}

impl ClusterMarks {
    pub(super) fn hit(&mut self, mark: ClusterMark) {
        self.count_more(mark, 1);
    }

    pub(super) fn count_more(&mut self, mark: ClusterMark, more: u64) {
        self.0[mark as usize] += more;
    }

    /// Returns the count of an event.
    #[must_use]
    pub fn count(&self, mark: ClusterMark) -> u64 {
        self.0[mark as usize]
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

impl fmt::Display for ClusterMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = ClusterMark::ALL.map(|mark| format!("{:>9} {}", self.count(mark), mark.text()));
        f.write_str(&lines.join("\n"))
    }
}
