//! Planted bugs: each breaks one rule from outside, by bending what passes between the core, the storage code, the user
//! code and the world. That the checks catch every one of them is what makes their silence mean something.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A restarted node leads its old epoch again.
    ReuseEpoch,
    /// The disk says that it has synced, and has not.
    SkipSync,
    /// The log is reported as stored before it is synced.
    StoredBeforeSync,
    /// A worker counts one submission more as stored than the log reports.
    TicketPlusOne,
    /// The mark of an idle log is noted, and not written.
    ForgetMark,
    /// A trim waits until what came with it is written.
    HoldTrim,
    /// Queries are answered from what was read some time ago.
    StaleQuery,
    /// A query reads its process as an earlier query did, not as it was when it came.
    LateQuery,
    /// A retry reaches the shard under another identity.
    ForgetIdentity,
    /// A message arrives under the number of its successor.
    ShiftSequence,
    /// Messages, acknowledgements and requests lose their colour on the way.
    StripColours,
    /// A snapshot takes what the entry after its marker wrote as well.
    LateSnapshot,
    /// A handler takes the money for a payment, and forgets to send it.
    LoseSend,
    /// The collection of garbage takes one bundle more, which a checkpoint needs.
    CollectOneMore,
    /// The collection of garbage takes what a merge has written, before a checkpoint refers to it.
    OverlookMerge,
    /// The collection of garbage takes the tombstone of the greatest number along.
    ForgetDecided,
    /// The log is trimmed one entry above the checkpoint.
    TrimOneTooFar,
    /// The log is trimmed before the manifest of the checkpoint is durable.
    TrimEarly,
    /// News of an older epoch's log counts for this one.
    AcceptOldEpoch,
    /// Damage to the log is taken for an unsynced tail.
    CutDamage,
    /// A recovery that follows a crashed one drops the end of the log.
    ForgetfulRecovery,
    /// The entry that handles a dead letter again does not remove it.
    KeepRetried,
    /// A part builds upon one of a checkpoint that was given up.
    BuildOnGivenUp,
    /// A late marker of a checkpoint that was given up ends the snapshot of the next one.
    DropNextSnapshot,
    /// A shard that has passed the checkpoint that is taken is not noticed.
    HighColour,
    /// The clock that measures what was served jumps ahead with the wall clock.
    WallAsSteady,
    /// A tick comes late by as much as nothing may be overdue.
    LateTimer,
    /// A session lives a millisecond less than it is set to.
    ShortSession,
    /// A client hears that its session is open before the entry is committed.
    OpenedEarly,
    /// Requests lose their colour on the way.
    StripRequestColours,
    /// A restore swaps two messages in flight.
    SwapRestored,
    /// A request under a known idempotency key arrives with the hash of another body.
    ForgetBody,
    /// The node goes on after a sync of the log has failed.
    AnswerAfterFailedSync,
    /// The data are marked as those of a life that ended in order before its log has ended.
    CleanTooEarly,
    /// All shards try at once what a death may have met.
    CrowdTrials,
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
        Self::ForgetBody,
        Self::AnswerAfterFailedSync,
        Self::CleanTooEarly,
        Self::CrowdTrials,
    ];

    /// Its name on the command line.
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
            Self::ForgetBody => "forget-body",
            Self::AnswerAfterFailedSync => "answer-after-failed-sync",
            Self::CleanTooEarly => "clean-too-early",
            Self::CrowdTrials => "crowd-trials",
        }
    }

    /// The bug of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// The invariant that it breaks.
    #[must_use]
    pub fn breaks(self) -> u8 {
        match self {
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
            Self::LateSnapshot | Self::BuildOnGivenUp => 10,
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
            | Self::CleanTooEarly
            | Self::LateTimer
            | Self::HoldTrim => 17,
            Self::ForgetfulRecovery => 18,
        }
    }
}
