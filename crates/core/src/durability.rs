//! The position of a service between a sync before each acknowledgement and none.

use minicbor::{Decode, Encode};

/// The time at which a node syncs its log to the disk. In each position it syncs promises, cuts, and all that other shards may come to
/// depend on ([`Entry::is_shared`](crate::entry::Entry::is_shared)), before it acknowledges them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Durability {
    /// Before it acknowledges: the default.
    #[default]
    #[n(0)]
    Always,
    /// At intervals: a power cut may lose what the node acknowledged since the last sync.
    #[n(1)]
    Interval,
    /// When the log is idle, or the operating system does: a power cut may lose what the node acknowledged since.
    #[n(2)]
    Never,
}

impl Durability {
    /// All positions.
    pub const ALL: [Self; 3] = [Self::Always, Self::Interval, Self::Never];

    /// Returns its name in programs and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval",
            Self::Never => "never",
        }
    }

    /// Returns the position of a name; `None` if it is none.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|durability| durability.name() == name)
    }

    /// Whether a replica acknowledges what a power cut may take.
    #[must_use]
    pub fn is_relaxed(self) -> bool {
        self != Self::Always
    }
}
