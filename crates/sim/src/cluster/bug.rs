//! Mistakes that are planted around the nodes of a cluster, to show that the checks find them.

/// A planted bug of a cluster's shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterBug {
    /// The log is reported as stored before it is synced: answers and acknowledgements leave too early (rule 17).
    StoredBeforeSync,
    /// A request that is sent again has lost its identity.
    RetryWithoutIdentity,
    /// Messages to other nodes leave before the log has the entries that sent them.
    MessagesBeforeLog,
    /// A message is given to its shard under the number of its successor.
    ShiftedSequence,
    /// A call that is forwarded again has lost its identity.
    ForwardedWithoutIdentity,
    /// The log is trimmed beyond what the snapshots of its replicas cover.
    TrimmedTooFar,
    /// A snapshot counts whose last entry is not committed: a takeover may cut what the replica can never give up again.
    UncommittedSnapshot,
}

impl ClusterBug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::StoredBeforeSync,
        Self::RetryWithoutIdentity,
        Self::MessagesBeforeLog,
        Self::ShiftedSequence,
        Self::ForwardedWithoutIdentity,
        Self::TrimmedTooFar,
        Self::UncommittedSnapshot,
    ];

    /// Returns its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StoredBeforeSync => "stored-before-sync",
            Self::RetryWithoutIdentity => "retry-without-identity",
            Self::MessagesBeforeLog => "messages-before-log",
            Self::ShiftedSequence => "shifted-sequence",
            Self::ForwardedWithoutIdentity => "forwarded-without-identity",
            Self::TrimmedTooFar => "trimmed-too-far",
            Self::UncommittedSnapshot => "uncommitted-snapshot",
        }
    }

    /// Returns the invariants that it breaks.
    #[must_use]
    pub fn breaks(self) -> &'static [u8] {
        match self {
            // Of which entries are lost depends what is seen first: an epoch that begins again, another entry, a state, an answer.
            Self::StoredBeforeSync => &[1, 2, 4, 5, 6, 7, 8, 14],
            Self::RetryWithoutIdentity | Self::ForwardedWithoutIdentity => &[7],
            Self::MessagesBeforeLog => &[5],
            Self::ShiftedSequence => &[5, 8],
            // Its node does not start, or its peers wait for entries for ever.
            Self::TrimmedTooFar => &[2, 17],
            // 0: the replica that trims its log behind it ends its node.
            Self::UncommittedSnapshot => &[0, 1, 2, 14],
        }
    }
}
