//! The encoding of openraft's types, for the disk and for other nodes: CBOR with fields by number.
//!
//! Nothing is allocated by a length that the bytes only claim. What does not decode is an error.

use crate::proposal::Proposal;
use crate::types::{Entry, LogId, Membership, Peer, SnapshotMeta, StoredMembership, Vote};
use minicbor::{Decode, Encode};
use openraft::{CommittedLeaderId, EntryPayload, LeaderId};
use std::collections::{BTreeMap, BTreeSet};
use stead_core::control::node::NodeRecord;

/// Maximum number of bytes of a node's address.
pub const ADDRESS_BYTES_MAX: usize = NodeRecord::ADDRESS_BYTES_MAX;

/// Decodes a value that takes all of `bytes`.
pub(crate) fn decode_all<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() == bytes.len() {
        Ok(value)
    } else {
        Err(minicbor::decode::Error::message("bytes are left over"))
    }
}

pub(crate) fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("a vector takes all bytes")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogIdCbor {
    #[n(0)]
    term: u64,
    #[n(1)]
    node: u64,
    #[n(2)]
    index: u64,
}

/// Numbers from here on are not possible.
const NUMBER_END: u64 = 1 << 56;

impl LogIdCbor {
    pub(crate) const fn is_possible(self) -> bool {
        self.term < NUMBER_END && self.index < NUMBER_END
    }
}

impl From<LogId> for LogIdCbor {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogIdCbor> for LogId {
    fn from(id: LogIdCbor) -> Self {
        Self::new(CommittedLeaderId::new(id.term, id.node), id.index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VoteCbor {
    #[n(0)]
    term: u64,
    #[n(1)]
    node: u64,
    #[n(2)]
    committed: bool,
}

impl VoteCbor {
    pub(crate) const fn is_possible(self) -> bool {
        self.term < NUMBER_END
    }
}

impl From<Vote> for VoteCbor {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<VoteCbor> for Vote {
    fn from(vote: VoteCbor) -> Self {
        Self { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct NodeCbor {
    #[n(0)]
    node: u64,
    #[n(1)]
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipCbor {
    /// One set of voters, or two while one changes into the other.
    #[n(0)]
    voters: Vec<Vec<u64>>,
    /// All nodes; those that are no voters are learners.
    #[n(1)]
    nodes: Vec<NodeCbor>,
}

impl From<&Membership> for MembershipCbor {
    fn from(membership: &Membership) -> Self {
        let voters = membership.get_joint_config().iter();
        let nodes = membership.nodes();
        Self {
            voters: voters.map(|set| set.iter().copied().collect()).collect(),
            nodes: nodes
                .map(|(node, peer)| NodeCbor { node: *node, address: peer.address.clone() })
                .collect(),
        }
    }
}

impl From<MembershipCbor> for Membership {
    fn from(membership: MembershipCbor) -> Self {
        let voters = membership.voters.into_iter().map(BTreeSet::from_iter).collect();
        let nodes = membership.nodes.into_iter().map(|node| (node.node, Peer { address: node.address }));
        Self::new(voters, nodes.collect::<BTreeMap<_, _>>())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredMembershipCbor {
    #[n(0)]
    id: Option<LogIdCbor>,
    #[n(1)]
    membership: MembershipCbor,
}

impl From<&StoredMembership> for StoredMembershipCbor {
    fn from(stored: &StoredMembership) -> Self {
        Self { id: stored.log_id().map(Into::into), membership: stored.membership().into() }
    }
}

impl From<StoredMembershipCbor> for StoredMembership {
    fn from(stored: StoredMembershipCbor) -> Self {
        Self::new(stored.id.map(Into::into), stored.membership.into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum PayloadCbor {
    #[n(0)]
    Blank,
    #[n(1)]
    Command(#[n(0)] Proposal),
    #[n(2)]
    Membership(#[n(0)] MembershipCbor),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct EntryCbor {
    #[n(0)]
    id: LogIdCbor,
    #[n(1)]
    payload: PayloadCbor,
}

impl EntryCbor {
    pub(crate) const fn id(&self) -> LogIdCbor {
        self.id
    }
}

impl From<Entry> for EntryCbor {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => PayloadCbor::Blank,
            EntryPayload::Normal(proposal) => PayloadCbor::Command(proposal),
            EntryPayload::Membership(membership) => PayloadCbor::Membership((&membership).into()),
        };
        Self { id: entry.log_id.into(), payload }
    }
}

impl From<EntryCbor> for Entry {
    fn from(entry: EntryCbor) -> Self {
        let payload = match entry.payload {
            PayloadCbor::Blank => EntryPayload::Blank,
            PayloadCbor::Command(proposal) => EntryPayload::Normal(proposal),
            PayloadCbor::Membership(membership) => EntryPayload::Membership(membership.into()),
        };
        Self { log_id: entry.id.into(), payload }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MetaCbor {
    /// The last entry that the snapshot includes.
    #[n(0)]
    last: Option<LogIdCbor>,
    #[n(1)]
    membership: StoredMembershipCbor,
    /// The snapshot's name.
    #[n(2)]
    name: String,
}

impl MetaCbor {
    pub(crate) fn is_possible(&self) -> bool {
        [self.last, self.membership.id].iter().flatten().all(|id| id.is_possible())
    }
}

impl From<&SnapshotMeta> for MetaCbor {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            membership: (&meta.last_membership).into(),
            name: meta.snapshot_id.clone(),
        }
    }
}

impl From<MetaCbor> for SnapshotMeta {
    fn from(meta: MetaCbor) -> Self {
        Self {
            last_log_id: meta.last.map(Into::into),
            last_membership: meta.membership.into(),
            snapshot_id: meta.name,
        }
    }
}
