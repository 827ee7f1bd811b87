//! Proposals and their outcomes.

use minicbor::{Decode, Encode};
use std::fmt;

/// Maximum number of bytes of a command.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// The identity of a proposal, drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct ProposalId {
    #[n(0)]
    pub(crate) high: u64,
    #[n(1)]
    pub(crate) low: u64,
}

/// A command with an identity, so that it is applied once however often it is proposed.
///
/// Propose the same value (or a clone) again after an uncertain answer, at this node or another one.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Proposal {
    #[n(0)]
    pub(crate) id: ProposalId,
    /// The number of entries that were applied at the node that made it: its own entry comes behind them.
    #[n(1)]
    pub(crate) seen: u64,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) command: Vec<u8>,
}

impl Proposal {
    pub(crate) fn new(seen: u64, command: Vec<u8>) -> Self {
        let id = ProposalId { high: fastrand::u64(..), low: fastrand::u64(..) };
        Self { id, seen, command }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProposalId { high, low } = self.id;
        write!(f, "proposal {high:016x}{low:016x} of {} bytes", self.command.len())
    }
}

/// The state machine's reply to an entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Reply {
    /// The entry was no command.
    #[n(0)]
    Nothing,
    /// The outcome of the command, now or when it was applied before.
    #[n(1)]
    Outcome {
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        outcome: Vec<u8>,
    },
    /// The proposal is so old that it may have been applied and forgotten; now it was not applied.
    #[n(2)]
    Expired,
}
