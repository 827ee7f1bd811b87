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
    /// The log of a replica was trimmed.
    Trimmed,
    /// A snapshot was sent to another replica.
    SnapshotSent,
    /// A replica began anew from the snapshot of another one.
    Installed,
}

impl ClusterMark {
    /// All of them.
    pub const ALL: [Self; 13] = [
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
        Self::SnapshotSent,
        Self::Installed,
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
            Self::SnapshotSent => "snapshots sent to other replicas",
            Self::Installed => "snapshots of other replicas installed",
        }
    }
}

/// The counts of rare events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMarks([u64; ClusterMark::ALL.len()]);

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
