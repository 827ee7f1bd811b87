//! Planted bugs: each breaks one rule from outside, by changing what passes between the core, the storage code, the
//! user code and the world. The silence of the checks means something only because they catch every planted bug.

use crate::violation::Violation;

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
    /// A start has the marks of checks only in its memory until it is over.
    HoldMarks,
    /// A recovery reads other contents of an entry in the middle of the log.
    FoldOther,
    /// The entry of a retried dead letter does not remove it.
    KeepRetried,
    /// A marker counts before its entry is committed.
    EarlyMarker,
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
    /// The entry that forgets what has run out forgets a session that has not.
    ShortSession,
    /// A session is opened with a life that is a microsecond shorter than is set.
    BriefSession,
    /// The opening of a session is answered before its entry is committed.
    OpenedEarly,
    /// Requests lose their colour on the way.
    StripRequestColours,
    /// A restore swaps two messages in flight.
    SwapRestored,
    /// A restore keeps the sessions of its checkpoint.
    KeepSessions,
    /// A restore puts a timer into a shard that does not hold its process.
    StrayTimer,
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
    /// The mark of a check that has ended stays.
    KeepCheckMark,
    /// A copy of a checkpoint is reported as made before it is durable.
    HastyCopy,
    /// A bit of each bundle is flipped on its way to a copy.
    GarbleCopy,
    /// A checkpoint that is being read may be collected.
    ForgetPin,
    /// The part that takes checkpoints sleeps on when one of the interval is due.
    SkipInterval,
    /// The entry of a deleted process leaves one of its records.
    KeepDeleted,
    /// With the manifest of a checkpoint a bundle that another one needs is deleted.
    DeleteNeeded,
    /// Flipped bits of a checkpoint go unnoticed where the block that holds them is read.
    SkipBlockCheck,
    /// A restore leaves the incarnation of its checkpoint in the metadata.
    AcceptOldIncarnation,
    /// Nothing watches over the queries that run.
    DeafWatch,
    /// All shards try suspected causes at once.
    CrowdTrials,
    /// The bytes of a call stay in the account of memory.
    ForgetCharge,
    /// A request that is applied is answered as refused.
    RefuseApplied,
    /// The log ends the process without a cause.
    FailTurn,
    /// The node drops calls in place of their answers.
    DropAnswer,
    /// The node does not hear that a part has failed.
    IgnoreFailed,
    /// A node that has failed marks its data as cleanly shut down.
    MarkFailed,
    /// A node that stops does not ask its workers to end.
    ForgetStop,
    /// A shard does not hear that the slice of its turn is over.
    DeafSlice,
    /// Workers hand over snapshots however much waits to be written.
    NeverHoldBack,
    /// Queries that were admitted together wait, however many do.
    CrowdQueries,
    /// The end of the node waits for the part by which it was begun.
    WaitForSelf,
    /// The data directory is released before the log has ended.
    EarlyRelease,
    /// A kill waits for users' code as long as that runs, also within a shutdown.
    PatientKill,
    /// A start counts its life before it has read all that it needs.
    EarlyLife,
    /// A start that is refused names another reason.
    MisnameRefusal,
    /// A checkpoint stays pinned after an operator has verified it.
    LeakPin,
    /// A collection deletes one checkpoint that is to be kept.
    KeepOneLess,
    /// A collection leaves the newest of the checkpoints that are not kept.
    KeepOneMore,
    /// A collection leaves the bundles that nothing needs.
    KeepGarbage,
    /// The end of the node does not wait for steps of tasks.
    ImpatientEnd,
    /// The data of a life that has ended in order are not marked so.
    NeverClean,
    /// An operator's command goes on after the node has failed or was abandoned.
    DeafOperator,
    /// A handler abandons its node, which happens only after the turn.
    LateKill,
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
        Self::HoldMarks,
        Self::FoldOther,
        Self::KeepRetried,
        Self::EarlyMarker,
        Self::BuildOnGivenUp,
        Self::DropNextSnapshot,
        Self::HighColour,
        Self::WallAsSteady,
        Self::LateTimer,
        Self::ShortSession,
        Self::BriefSession,
        Self::OpenedEarly,
        Self::StripRequestColours,
        Self::SwapRestored,
        Self::KeepSessions,
        Self::StrayTimer,
        Self::ForgetRestore,
        Self::ForgetBody,
        Self::AnswerAfterFailedSync,
        Self::CleanTooEarly,
        Self::MixedCut,
        Self::ForgetCheckMark,
        Self::KeepCheckMark,
        Self::HastyCopy,
        Self::GarbleCopy,
        Self::ForgetPin,
        Self::SkipInterval,
        Self::KeepDeleted,
        Self::DeleteNeeded,
        Self::SkipBlockCheck,
        Self::AcceptOldIncarnation,
        Self::DeafWatch,
        Self::CrowdTrials,
        Self::ForgetCharge,
        Self::RefuseApplied,
        Self::FailTurn,
        Self::DropAnswer,
        Self::IgnoreFailed,
        Self::MarkFailed,
        Self::ForgetStop,
        Self::DeafSlice,
        Self::NeverHoldBack,
        Self::CrowdQueries,
        Self::WaitForSelf,
        Self::EarlyRelease,
        Self::PatientKill,
        Self::EarlyLife,
        Self::MisnameRefusal,
        Self::LeakPin,
        Self::KeepOneLess,
        Self::KeepOneMore,
        Self::KeepGarbage,
        Self::ImpatientEnd,
        Self::NeverClean,
        Self::DeafOperator,
        Self::LateKill,
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
            Self::HoldMarks => "hold-marks",
            Self::FoldOther => "fold-other",
            Self::KeepRetried => "keep-retried",
            Self::EarlyMarker => "early-marker",
            Self::BuildOnGivenUp => "build-on-given-up",
            Self::DropNextSnapshot => "drop-next-snapshot",
            Self::HighColour => "high-colour",
            Self::WallAsSteady => "wall-as-steady",
            Self::LateTimer => "late-timer",
            Self::ShortSession => "short-session",
            Self::BriefSession => "brief-session",
            Self::OpenedEarly => "opened-early",
            Self::StripRequestColours => "strip-request-colours",
            Self::SwapRestored => "swap-restored",
            Self::KeepSessions => "keep-sessions",
            Self::StrayTimer => "stray-timer",
            Self::ForgetRestore => "forget-restore",
            Self::ForgetBody => "forget-body",
            Self::AnswerAfterFailedSync => "answer-after-failed-sync",
            Self::CleanTooEarly => "clean-too-early",
            Self::MixedCut => "mixed-cut",
            Self::ForgetCheckMark => "forget-check-mark",
            Self::KeepCheckMark => "keep-check-mark",
            Self::HastyCopy => "hasty-copy",
            Self::GarbleCopy => "garble-copy",
            Self::ForgetPin => "forget-pin",
            Self::SkipInterval => "skip-interval",
            Self::KeepDeleted => "keep-deleted",
            Self::DeleteNeeded => "delete-needed",
            Self::SkipBlockCheck => "skip-block-check",
            Self::AcceptOldIncarnation => "accept-old-incarnation",
            Self::DeafWatch => "deaf-watch",
            Self::CrowdTrials => "crowd-trials",
            Self::ForgetCharge => "forget-charge",
            Self::RefuseApplied => "refuse-applied",
            Self::FailTurn => "fail-turn",
            Self::DropAnswer => "drop-answer",
            Self::IgnoreFailed => "ignore-failed",
            Self::MarkFailed => "mark-failed",
            Self::ForgetStop => "forget-stop",
            Self::DeafSlice => "deaf-slice",
            Self::NeverHoldBack => "never-hold-back",
            Self::CrowdQueries => "crowd-queries",
            Self::WaitForSelf => "wait-for-self",
            Self::EarlyRelease => "early-release",
            Self::PatientKill => "patient-kill",
            Self::EarlyLife => "early-life",
            Self::MisnameRefusal => "misname-refusal",
            Self::LeakPin => "leak-pin",
            Self::KeepOneLess => "keep-one-less",
            Self::KeepOneMore => "keep-one-more",
            Self::KeepGarbage => "keep-garbage",
            Self::ImpatientEnd => "impatient-end",
            Self::NeverClean => "never-clean",
            Self::DeafOperator => "deaf-operator",
            Self::LateKill => "late-kill",
        }
    }

    /// Returns the bug of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// Returns the numbers of the invariants that it breaks: only a violation of one of them shows that a check catches it.
    #[must_use]
    pub fn breaks(self) -> &'static [u8] {
        match self {
            Self::FailTurn | Self::EarlyLife | Self::MisnameRefusal => &[0],
            Self::ReuseEpoch => &[1],
            Self::FoldOther => &[2],
            // A recovery that follows a crashed one may be blamed for the loss.
            Self::SkipSync => &[2, 18],
            Self::StoredBeforeSync
            | Self::TicketPlusOne
            | Self::OpenedEarly
            | Self::AnswerAfterFailedSync
            | Self::DeafOperator
            | Self::LateKill
            | Self::IgnoreFailed => &[5],
            Self::StaleQuery | Self::LateQuery => &[6],
            Self::ForgetIdentity
            | Self::KeepRetried
            | Self::KeepDeleted
            | Self::WallAsSteady
            | Self::ShortSession
            | Self::BriefSession
            | Self::RefuseApplied
            | Self::ForgetBody => &[7],
            Self::ShiftSequence | Self::SwapRestored => &[8],
            Self::StripColours | Self::StripRequestColours => &[9],
            Self::LateSnapshot
            | Self::EarlyMarker
            | Self::BuildOnGivenUp
            | Self::MixedCut
            | Self::KeepSessions
            | Self::StrayTimer
            | Self::ForgetRestore => &[10],
            // The next crash leaves no copy, or one with holes.
            Self::HastyCopy => &[10, 16],
            Self::LoseSend => &[11],
            Self::CollectOneMore
            | Self::OverlookMerge
            | Self::DeleteNeeded
            | Self::ForgetDecided
            | Self::TrimOneTooFar
            | Self::ForgetPin
            | Self::KeepOneLess
            | Self::TrimEarly => &[13],
            Self::AcceptOldEpoch | Self::AcceptOldIncarnation => &[15],
            Self::CutDamage | Self::ForgetMark | Self::GarbleCopy | Self::SkipBlockCheck => &[16],
            Self::DropNextSnapshot
            | Self::HighColour
            | Self::CrowdTrials
            | Self::ForgetCheckMark
            | Self::KeepCheckMark
            | Self::SkipInterval
            | Self::DeafWatch
            | Self::DropAnswer
            | Self::MarkFailed
            | Self::ForgetStop
            | Self::DeafSlice
            | Self::NeverHoldBack
            | Self::CrowdQueries
            | Self::WaitForSelf
            | Self::EarlyRelease
            | Self::PatientKill
            | Self::LeakPin
            | Self::KeepOneMore
            | Self::KeepGarbage
            | Self::ImpatientEnd
            | Self::NeverClean
            | Self::ForgetCharge
            | Self::CleanTooEarly
            | Self::LateTimer
            | Self::HoldTrim => &[17],
            Self::ForgetfulRecovery | Self::HoldMarks => &[18],
        }
    }

    /// Whether a violation shows that a check catches this bug, and not only that something fails under it.
    #[must_use]
    pub fn is_shown_by(self, violation: &Violation) -> bool {
        self.breaks().contains(&violation.invariant)
    }
}
