//! Planted bugs: each breaks one rule from outside, by changing what passes between the core, the storage code, the
//! user code and the world. The silence of the checks means something only because they catch every planted bug.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A restarted node leads its old epoch again.
    ReuseEpoch,
    /// Syncs of the log are reported as done, but not done.
    SkipSync,
    /// The log is reported as stored before it is synced.
    StoredBeforeSync,
    /// A worker takes one more submission for durable than the log reports.
    TicketPlusOne,
    /// The mark of an idle log is reported as written, but not written.
    ForgetMark,
    /// A trim is delayed until the entries that arrived with it are written.
    HoldTrim,
    /// Queries are answered from an earlier answer.
    StaleQuery,
    /// A query reads the state that an earlier query of its process has read.
    LateQuery,
    /// A retry reaches the shard under another identity.
    ForgetIdentity,
    /// A message arrives under the number of its successor.
    ShiftSequence,
    /// Messages, acknowledgements and requests lose their colour on the way.
    StripColours,
    /// A snapshot also takes the writes of the entry after its marker.
    LateSnapshot,
    /// A handler deducts the money of a payment, but does not send it.
    LoseSend,
    /// A collection deletes one bundle that a checkpoint needs.
    CollectOneMore,
    /// A collection deletes the output of a merge before a checkpoint refers to it.
    OverlookMerge,
    /// The tombstone of the greatest number is deleted as if it was garbage.
    ForgetDecided,
    /// The log is trimmed one entry beyond the checkpoint.
    TrimOneTooFar,
    /// The log is trimmed before the manifest of the checkpoint is durable.
    TrimEarly,
    /// Reports about the log of an older epoch count for the current one.
    AcceptOldEpoch,
    /// Damage to the log is cut as if it were an unsynced tail.
    CutDamage,
    /// A recovery that follows a crashed one drops the end of the log.
    ForgetfulRecovery,
    /// The entry of a retried dead letter does not remove it.
    KeepRetried,
    /// A part builds upon a part of a checkpoint that was given up.
    BuildOnGivenUp,
    /// A late marker of a checkpoint that was given up drops the snapshot of the next one.
    DropNextSnapshot,
    /// A shard with a greater colour than the running checkpoint goes unnoticed.
    HighColour,
    /// The clock of served time jumps with the wall clock.
    WallAsSteady,
    /// A tick is late by the maximum time that work may be overdue.
    LateTimer,
    /// A session expires a millisecond early.
    ShortSession,
    /// The opening of a session is answered before its entry is committed.
    OpenedEarly,
    /// Requests lose their colour on the way.
    StripRequestColours,
    /// A restore swaps two messages in flight.
    SwapRestored,
    /// A restore that broke off is not marked as such.
    ForgetRestore,
    /// A request under a known idempotency key arrives with the hash of another body.
    ForgetBody,
    /// The node continues after a failed sync of the log.
    AnswerAfterFailedSync,
    /// The data are marked as cleanly shut down before the log has ended.
    CleanTooEarly,
    /// A check reads one shard's state from an earlier checkpoint.
    MixedCut,
    /// The mark of a check that has begun is lost with its process.
    ForgetCheckMark,
    /// A copy of a checkpoint is reported as made before it is durable.
    HastyCopy,
    /// Nothing watches over the queries that run.
    DeafWatch,
    /// All shards try suspected causes at once.
    CrowdTrials,
    /// The log ends the process without a cause.
    FailTurn,
    /// The node drops calls in place of their answers.
    DropAnswer,
}

impl Bug {
    /// Every planted bug.
    pub const ALL: &'static [Self] = &[
        Self::ReuseEpoch,
        Self::SkipSync,
        Self::StoredBeforeSync,
        Self::TicketPlusOne,
        Self::ForgetMark,
        Self::HoldTrim,
        Self::StaleQuery,
        Self::LateQuery,
        Self::ForgetIdentity,
        Self::ShiftSequence,
        Self::StripColours,
        Self::LateSnapshot,
        Self::LoseSend,
        Self::CollectOneMore,
        Self::OverlookMerge,
        Self::ForgetDecided,
        Self::TrimOneTooFar,
        Self::TrimEarly,
        Self::AcceptOldEpoch,
        Self::CutDamage,
        Self::ForgetfulRecovery,
        Self::KeepRetried,
        Self::BuildOnGivenUp,
        Self::DropNextSnapshot,
        Self::HighColour,
        Self::WallAsSteady,
        Self::LateTimer,
        Self::ShortSession,
        Self::OpenedEarly,
        Self::StripRequestColours,
        Self::SwapRestored,
        Self::ForgetRestore,
        Self::ForgetBody,
        Self::AnswerAfterFailedSync,
        Self::CleanTooEarly,
        Self::MixedCut,
        Self::ForgetCheckMark,
        Self::HastyCopy,
        Self::DeafWatch,
        Self::CrowdTrials,
        Self::FailTurn,
        Self::DropAnswer,
    ];

    /// Returns its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReuseEpoch => "reuse-epoch",
            Self::SkipSync => "skip-sync",
            Self::StoredBeforeSync => "stored-before-sync",
            Self::TicketPlusOne => "ticket-plus-one",
            Self::ForgetMark => "forget-mark",
            Self::HoldTrim => "hold-trim",
            Self::StaleQuery => "stale-query",
            Self::LateQuery => "late-query",
            Self::ForgetIdentity => "forget-identity",
            Self::ShiftSequence => "shift-sequence",
            Self::StripColours => "strip-colours",
            Self::LateSnapshot => "late-snapshot",
            Self::LoseSend => "lose-send",
            Self::CollectOneMore => "collect-one-more",
            Self::OverlookMerge => "overlook-merge",
            Self::ForgetDecided => "forget-decided",
            Self::TrimOneTooFar => "trim-one-too-far",
            Self::TrimEarly => "trim-early",
            Self::AcceptOldEpoch => "accept-old-epoch",
            Self::CutDamage => "cut-damage",
            Self::ForgetfulRecovery => "forgetful-recovery",
            Self::KeepRetried => "keep-retried",
            Self::BuildOnGivenUp => "build-on-given-up",
            Self::DropNextSnapshot => "drop-next-snapshot",
            Self::HighColour => "high-colour",
            Self::WallAsSteady => "wall-as-steady",
            Self::LateTimer => "late-timer",
            Self::ShortSession => "short-session",
            Self::OpenedEarly => "opened-early",
            Self::StripRequestColours => "strip-request-colours",
            Self::SwapRestored => "swap-restored",
            Self::ForgetRestore => "forget-restore",
            Self::ForgetBody => "forget-body",
            Self::AnswerAfterFailedSync => "answer-after-failed-sync",
            Self::CleanTooEarly => "clean-too-early",
            Self::MixedCut => "mixed-cut",
            Self::ForgetCheckMark => "forget-check-mark",
            Self::HastyCopy => "hasty-copy",
            Self::DeafWatch => "deaf-watch",
            Self::CrowdTrials => "crowd-trials",
            Self::FailTurn => "fail-turn",
            Self::DropAnswer => "drop-answer",
        }
    }

    /// Returns the bug of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// Returns the number of the invariant that it breaks.
    #[must_use]
    pub fn breaks(self) -> u8 {
        match self {
            Self::FailTurn => 0,
            Self::ReuseEpoch => 1,
            Self::SkipSync => 2,
            Self::StoredBeforeSync
            | Self::TicketPlusOne
            | Self::OpenedEarly
            | Self::AnswerAfterFailedSync => 5,
            Self::StaleQuery | Self::LateQuery => 6,
            Self::ForgetIdentity
            | Self::KeepRetried
            | Self::WallAsSteady
            | Self::ShortSession
            | Self::ForgetBody => 7,
            Self::ShiftSequence | Self::SwapRestored => 8,
            Self::StripColours | Self::StripRequestColours => 9,
            Self::LateSnapshot
            | Self::BuildOnGivenUp
            | Self::MixedCut
            | Self::HastyCopy
            | Self::ForgetRestore => 10,
            Self::LoseSend => 11,
            Self::CollectOneMore
            | Self::OverlookMerge
            | Self::ForgetDecided
            | Self::TrimOneTooFar
            | Self::TrimEarly => 13,
            Self::AcceptOldEpoch => 15,
            Self::CutDamage | Self::ForgetMark => 16,
            Self::DropNextSnapshot
            | Self::HighColour
            | Self::CrowdTrials
            | Self::ForgetCheckMark
            | Self::DeafWatch
            | Self::DropAnswer
            | Self::CleanTooEarly
            | Self::LateTimer
            | Self::HoldTrim => 17,
            Self::ForgetfulRecovery => 18,
        }
    }
}
