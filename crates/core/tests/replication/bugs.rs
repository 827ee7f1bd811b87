//! Mistakes that are planted around the replicas, to show that the checks find them.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A promise counts as durable once it is written (rule 7). Drawn faults rarely leave an old primary with a member that forgot
    /// its seal: a script does.
    SealNotDurable,
    /// An append of an older epoch is acknowledged after a seal (rule 6).
    AckAfterSeal,
    /// Older entries count as committed before the start entry is (rule 11).
    OldTailCommitted,
    /// A primary's own disk counts once it is written to (rule 17).
    OwnDiskImplicit,
    /// A primary goes on in its epoch after a restart (rule 11).
    RestartedPrimary,
    /// A learner's acknowledgements count for a member (rule 2).
    LearnerCounted,
    /// A backup applies entries that it has not compared with the primary's (rule 16).
    AppliesUnmatched,
    /// A deposed primary keeps what it executed although its log was cut.
    SpeculationKept,
    /// A replica whose disk was replaced keeps its number (rule 3).
    WipedVoter,
    /// A takeover looks at the seals of the newest epoch only (rule 9).
    NewestEpochOnly,
    /// A member counts as sealed that has not answered (rule 9).
    ForgedSeal,
    /// A member acknowledges what it has not synced (rule 7).
    AckBeforeSync,
    /// The record of an epoch does not name the losses of those before it (rule 19). Drawn faults rarely
    /// lose an answer: a script does.
    LossUnannounced,
    /// A member answers a seal while its lease lasts (rule 21).
    LeaseIgnored,
    /// The first node's clock is slower than its drift allows, so that it takes its lease for longer than its members do (rule 21).
    SlowClock,
    /// A primary answers a stale read as if no other one could have served meanwhile, so that one which was paused or cut off answers
    /// with an age that is too low.
    StaleAtPaused,
    /// A stale read is answered from a state that is ahead of the commit index.
    SpeculativeRead,
    /// A primary's W is another one than the record's (section 1 of the design).
    AcksChange,
    /// A primary does not report what a replica has acknowledged when a connection begins (rule 18). An older disk that the control
    /// plane cannot see is not drawn: a script has it.
    AckedUnsaid,
    /// The record of an epoch does not name the primaries before it, so that a request that ended each of them is suspected by none.
    /// Drawn faults end no process by a request: a run of its own does.
    PastTrusted,
    /// A primary that still suspected requests when its epoch ended vouches for its life.
    SuspicionForgotten,
    /// A client says of each request that it is sent for the first time.
    AlwaysFirst,
}

impl Bug {
    /// Those that drawn faults find within seconds.
    pub(crate) const FOUND: [Self; 12] = [
        Self::AckAfterSeal,
        Self::OldTailCommitted,
        Self::OwnDiskImplicit,
        Self::RestartedPrimary,
        Self::LearnerCounted,
        Self::AppliesUnmatched,
        Self::SpeculationKept,
        Self::WipedVoter,
        Self::NewestEpochOnly,
        Self::ForgedSeal,
        Self::AcksChange,
        Self::AckBeforeSync,
    ];
}
