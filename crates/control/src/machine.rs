//! The state machine, which folds the committed commands.

use crate::encoding::{decode_all, encode};
use crate::proposal::{ProposalId, Reply};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership};
use minicbor::{Decode, Encode};
use openraft::EntryPayload;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

/// A state that is folded over commands, the same on all nodes.
///
/// All its functions have to be deterministic: equal states and bytes give equal states and bytes, on every node and in
/// every later version of the program.
pub trait Machine: Clone + Send + Sync + 'static {
    /// A change of the state.
    type Command;
    /// The answer to a command.
    type Outcome: Send + 'static;
    /// The reason for which bytes do not decode.
    type Invalid: std::error::Error;

    /// Applies a command.
    fn apply(&mut self, command: Self::Command) -> Self::Outcome;

    /// Encodes the state, for a snapshot.
    fn encode(&self) -> Vec<u8>;

    /// Decodes what [`Machine::encode`] returned.
    ///
    /// # Errors
    /// If the bytes are something else.
    fn decode(bytes: &[u8]) -> Result<Self, Self::Invalid>;

    /// Encodes a command.
    fn encode_command(command: &Self::Command) -> Vec<u8>;

    /// Decodes what [`Machine::encode_command`] returned.
    ///
    /// # Errors
    /// If the bytes are something else.
    fn decode_command(bytes: &[u8]) -> Result<Self::Command, Self::Invalid>;

    /// Encodes an outcome.
    fn encode_outcome(outcome: &Self::Outcome) -> Vec<u8>;

    /// Decodes what [`Machine::encode_outcome`] returned.
    ///
    /// # Errors
    /// If the bytes are something else.
    fn decode_outcome(bytes: &[u8]) -> Result<Self::Outcome, Self::Invalid>;
}

/// A committed state.
#[derive(Debug)]
pub struct Committed<M> {
    /// The number of entries of the log that it includes. Not all of them are commands.
    pub applied: u64,
    /// The state.
    pub state: Arc<M>,
}

impl<M> Clone for Committed<M> {
    fn clone(&self) -> Self {
        Self { applied: self.applied, state: Arc::clone(&self.state) }
    }
}

/// Proposals whose outcome is remembered.
const RECENT_MAX: usize = 1024;
/// Maximum number of bytes of their outcomes, except for the newest one.
const RECENT_BYTES_MAX: usize = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Remembered {
    #[n(0)]
    index: u64,
    #[n(1)]
    id: ProposalId,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    outcome: Vec<u8>,
}

/// The outcomes of the latest proposals, so that none is applied twice.
#[derive(Clone, Debug, Default)]
struct Recent {
    /// In the order of their indexes.
    order: VecDeque<Remembered>,
    indexes: BTreeMap<ProposalId, u64>,
    bytes: usize,
    /// Outcomes of entries below this index are forgotten.
    forgotten: u64,
}

impl Recent {
    fn new(forgotten: u64, remembered: Vec<Remembered>) -> Option<Self> {
        let mut recent = Self { forgotten, ..Self::default() };
        let mut from = forgotten;
        for remembered in remembered {
            let is_new = recent.indexes.insert(remembered.id, remembered.index).is_none();
            if remembered.index < from || !is_new {
                return None;
            }
            from = remembered.index.checked_add(1)?;
            recent.bytes += remembered.outcome.len();
            recent.order.push_back(remembered);
        }
        Some(recent)
    }

    fn find(&self, id: ProposalId) -> Option<&[u8]> {
        let index = *self.indexes.get(&id)?;
        let at = self.order.binary_search_by_key(&index, |remembered| remembered.index).ok()?;
        Some(&self.order[at].outcome)
    }

    fn remember(&mut self, index: u64, id: ProposalId, outcome: Vec<u8>) {
        self.bytes += outcome.len();
        self.indexes.insert(id, index);
        self.order.push_back(Remembered { index, id, outcome });
        while self.order.len() > RECENT_MAX || (self.bytes > RECENT_BYTES_MAX && self.order.len() > 1) {
            let oldest = self.order.pop_front().expect("longer than one");
            self.bytes -= oldest.outcome.len();
            self.indexes.remove(&oldest.id);
            self.forgotten = oldest.index + 1;
        }
    }
}

/// The content of a snapshot.
#[derive(Debug, Encode, Decode)]
struct StateCbor {
    #[n(0)]
    forgotten: u64,
    #[n(1)]
    recent: Vec<Remembered>,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    state: Vec<u8>,
}

/// The state with what belongs to it: the position in the log, the membership, the outcomes of the latest proposals.
#[derive(Clone)]
pub(crate) struct Applied<M> {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
    recent: Recent,
    state: Arc<M>,
}

impl<M: Machine> Applied<M> {
    /// Returns the state before the first entry.
    pub(crate) fn new(state: M) -> Self {
        let (recent, membership) = (Recent::default(), StoredMembership::default());
        Self { last: None, membership, recent, state: Arc::new(state) }
    }

    /// Returns the state of a snapshot.
    pub(crate) fn restore(meta: &SnapshotMeta, bytes: &[u8]) -> Result<Self, String> {
        let invalid = |error: minicbor::decode::Error| error.to_string();
        let stored: StateCbor = decode_all(bytes).map_err(invalid)?;
        let recent = Recent::new(stored.forgotten, stored.recent)
            .ok_or_else(|| "its proposals are not in order".to_owned())?;
        let state = M::decode(&stored.state).map_err(|error| error.to_string())?;
        let (last, membership) = (meta.last_log_id, meta.last_membership.clone());
        Ok(Self { last, membership, recent, state: Arc::new(state) })
    }

    /// Returns the metadata and the bytes of a snapshot.
    pub(crate) fn snapshot(&self) -> (SnapshotMeta, Vec<u8>) {
        let name = self.last.map_or_else(|| "empty".to_owned(), |last| last.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: name,
        };
        let recent = self.recent.order.iter().cloned().collect();
        let stored = StateCbor { forgotten: self.recent.forgotten, recent, state: self.state.encode() };
        (meta, encode(&stored))
    }

    pub(crate) fn committed(&self) -> Committed<M> {
        let applied = self.last.map_or(0, |last| last.index + 1);
        Committed { applied, state: Arc::clone(&self.state) }
    }

    /// Applies an entry.
    pub(crate) fn apply(&mut self, entry: Entry) -> Result<Reply, String> {
        self.last = Some(entry.log_id);
        let proposal = match entry.payload {
            EntryPayload::Blank => return Ok(Reply::Nothing),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                return Ok(Reply::Nothing);
            }
            EntryPayload::Normal(proposal) => proposal,
        };
        if let Some(outcome) = self.recent.find(proposal.id) {
            return Ok(Reply::Outcome { outcome: outcome.to_vec() });
        }
        // The proposer had seen all below that index applied, so an earlier application would be at or above it.
        if proposal.seen < self.recent.forgotten {
            return Ok(Reply::Expired);
        }
        let command = M::decode_command(&proposal.command)
            .map_err(|error| format!("the command of entry {} does not decode: {error}", entry.log_id))?;
        let outcome = M::encode_outcome(&Arc::make_mut(&mut self.state).apply(command));
        self.recent.remember(entry.log_id.index, proposal.id, outcome.clone());
        Ok(Reply::Outcome { outcome })
    }
}
