//! Mistakes that are planted around the nodes of a cluster, to show that the checks find them.

use super::plane::Dials;
use crate::violation::Violation;
use stead_core::commit_tracker::EpochConfig;
use stead_core::ids::{Life, Micros};
use stead_core::replication::epoch::{EpochRecord, Seal};
use stead_core::replication::table::Losses;

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
    /// A primary counts fewer acknowledgements than the record of its epoch says (section 1 of the design).
    AcksChange,
    /// The record of an epoch does not name the losses of those before it (rule 19).
    LossUnannounced,
    /// A member answers a seal while its lease lasts (rule 21).
    LeaseIgnored,
    /// A replica whose disk was replaced keeps its number: its node counts its lives on (rule 3).
    WipedVoter,
    /// A primary goes on in its epoch after a restart (rule 11).
    RestartedPrimary,
    /// A node does not pass on what a client has seen, so that no loss is reported to it.
    LossUnreported,
    /// The control plane does not hear that a power cut may have taken what a node had acknowledged (rule 3).
    DoubtForgotten,
}

impl ClusterBug {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::StoredBeforeSync,
        Self::RetryWithoutIdentity,
        Self::MessagesBeforeLog,
        Self::ShiftedSequence,
        Self::ForwardedWithoutIdentity,
        Self::TrimmedTooFar,
        Self::UncommittedSnapshot,
        Self::AcksChange,
        Self::LossUnannounced,
        Self::LeaseIgnored,
        Self::WipedVoter,
        Self::RestartedPrimary,
        Self::LossUnreported,
        Self::DoubtForgotten,
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
            Self::AcksChange => "acks-change",
            Self::LossUnannounced => "loss-unannounced",
            Self::LeaseIgnored => "lease-ignored",
            Self::WipedVoter => "wiped-voter",
            Self::RestartedPrimary => "restarted-primary",
            Self::LossUnreported => "loss-unreported",
            Self::DoubtForgotten => "doubt-forgotten",
        }
    }

    /// Changes a seal on its way to a member.
    pub(super) fn spoil_seal(self, seal: &mut Seal) {
        if self == Self::LeaseIgnored {
            seal.lease = Micros(0);
        }
    }

    /// Changes the record of an epoch on its way to the primary, whose process has a life.
    pub(super) fn spoil_record(self, record: &mut EpochRecord, life: Life) {
        match self {
            Self::AcksChange => {
                let config = &record.config;
                let (epoch, members) = (config.epoch(), config.members().to_vec());
                let acks = config.acks().min(members.len() / 2 + 1);
                record.config =
                    EpochConfig::parse(epoch, members, acks, config.primary()).expect("fewer acks");
            }
            Self::LossUnannounced => record.losses = Losses::default(),
            // The control plane waits for the recorded lease, too: that would hide the bug.
            Self::LeaseIgnored => record.lease = Micros(record.lease.0 * 20),
            Self::RestartedPrimary => record.life = life,
            _ => {}
        }
    }

    /// Draws more of what meets the bug.
    pub(super) fn bend(self, dials: &mut Dials) {
        match self {
            Self::LossUnannounced | Self::LossUnreported | Self::LeaseIgnored => {
                (dials.are_asynchronous, dials.are_loosest) = (true, true);
                (dials.lease_max, dials.change) = (30, false);
            }
            Self::AcksChange => (dials.are_strictest, dials.change) = (true, false),
            Self::DoubtForgotten => (dials.are_relaxed, dials.change) = (true, false),
            _ => {}
        }
    }

    /// Whether it shows only with primaries that are cut off and answer under a lease, while others take over: drawn faults make few.
    pub(super) fn cuts_off(self) -> bool {
        matches!(self, Self::LossUnannounced | Self::LossUnreported | Self::LeaseIgnored)
    }

    /// Returns the invariants that it breaks.
    #[must_use]
    pub fn breaks(self) -> &'static [u8] {
        match self {
            // Of which entries are lost depends what is seen first: an epoch that begins again, another entry, a state, an answer.
            Self::StoredBeforeSync => &[1, 2, 4, 5, 6, 7, 8, 14],
            Self::RetryWithoutIdentity | Self::ForwardedWithoutIdentity => &[7],
            Self::MessagesBeforeLog => &[5],
            Self::LossUnreported => &[4],
            Self::ShiftedSequence => &[5, 8],
            // Its node does not start, or its peers wait for entries for ever.
            Self::TrimmedTooFar => &[2, 17],
            // 0, 17: the replica that trims its log behind it ends its node, which drops its calls.
            Self::UncommittedSnapshot => &[0, 1, 2, 14, 17],
            Self::AcksChange | Self::WipedVoter => &[2],
            // Of which entries are lost depends what is seen first.
            Self::DoubtForgotten => &[2, 4, 5, 6, 7, 14],
            // Who misses the answer first: a read, a retry, or the check of what is committed.
            Self::LossUnannounced => &[4, 6, 7],
            // The deposed primary shows less than was answered, or denies a session that is open.
            Self::LeaseIgnored => &[6, 7],
            Self::RestartedPrimary => &[1],
        }
    }

    /// Whether a violation is of an invariant that it breaks: the failure of another one shows nothing about its check.
    #[must_use]
    pub fn is_shown_by(self, violation: &Violation) -> bool {
        self.breaks().contains(&violation.invariant)
    }
}
