//! Requests between planes, and their answers: a byte with the version, then CBOR.

use crate::encoding::{EntryCbor, LogIdCbor, MetaCbor, VoteCbor, decode_all};
use crate::proposal::{Proposal, Reply};
use crate::types::{LogId, SnapshotMeta, Types, Vote};
use minicbor::{Decode, Encode};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use stead_core::ids::NodeId;

const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Request {
    #[n(0)]
    Append {
        #[n(0)]
        vote: VoteCbor,
        #[n(1)]
        previous: Option<LogIdCbor>,
        #[n(2)]
        entries: Vec<EntryCbor>,
        #[n(3)]
        committed: Option<LogIdCbor>,
    },
    #[n(1)]
    Vote {
        #[n(0)]
        vote: VoteCbor,
        #[n(1)]
        last: Option<LogIdCbor>,
    },
    #[n(2)]
    Snapshot {
        #[n(0)]
        vote: VoteCbor,
        #[n(1)]
        meta: MetaCbor,
        #[n(2)]
        #[cbor(with = "minicbor::bytes")]
        state: Vec<u8>,
    },
    #[n(3)]
    Propose(#[n(0)] Proposal),
    #[n(4)]
    Read,
    #[n(5)]
    Change(#[n(0)] Change),
}

/// A change of the nodes of the group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// Adds a node that receives the log but does not vote, or notes the new address of a node.
    #[n(0)]
    Place {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// Its address, of at most [`crate::ADDRESS_BYTES_MAX`] bytes.
        #[n(1)]
        address: String,
    },
    /// Makes a voter of a node that was placed and has caught up.
    #[n(1)]
    Promote {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// Removes a node.
    #[n(2)]
    Remove {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
}

impl Change {
    /// Returns the node that it is about.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        match self {
            Self::Place { node, .. } | Self::Promote { node } | Self::Remove { node } => *node,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Response {
    #[n(0)]
    Appended,
    #[n(1)]
    AppendedUpTo(#[n(0)] Option<LogIdCbor>),
    #[n(2)]
    Conflict,
    #[n(3)]
    HigherVote(#[n(0)] VoteCbor),
    #[n(4)]
    Voted {
        #[n(0)]
        vote: VoteCbor,
        #[n(1)]
        is_granted: bool,
        #[n(2)]
        last: Option<LogIdCbor>,
    },
    #[n(5)]
    Installed(#[n(0)] VoteCbor),
    #[n(6)]
    Applied(#[n(0)] Reply),
    /// The number of entries that have to be applied before a read.
    #[n(7)]
    ReadFrom(#[n(0)] u64),
    #[n(8)]
    Changed,
    /// This node does not lead; perhaps that one does.
    #[n(9)]
    NotLeader(#[n(0)] Option<Leader>),
    /// It cannot be done now.
    #[n(10)]
    Busy,
    /// It will not be done.
    #[n(11)]
    Refused(#[n(0)] String),
    /// There is no room for it now.
    #[n(12)]
    Full,
    /// It may take effect or not.
    #[n(13)]
    Lost,
    /// A node that is to vote lacks that many entries. It may catch up.
    #[n(14)]
    Behind(#[n(0)] u64),
}

/// A node that may lead.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Leader {
    #[n(0)]
    pub(crate) node: u64,
    #[n(1)]
    pub(crate) address: String,
}

pub(crate) fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    minicbor::encode(value, &mut bytes).expect("a vector takes all bytes");
    bytes
}

pub(crate) fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => decode_all(rest).map_err(|error| format!("it does not decode: {error}")),
        Some((version, _)) => Err(format!("it has version {version}, not {VERSION}")),
        None => Err("it is empty".to_owned()),
    }
}

impl Request {
    /// Returns the node that has to have sent it, if that is in it.
    pub(crate) fn sender(&self) -> Option<u64> {
        match self {
            Self::Append { vote, .. } | Self::Vote { vote, .. } | Self::Snapshot { vote, .. } => {
                Some(Vote::from(*vote).leader_id.node_id)
            }
            Self::Propose(_) | Self::Read | Self::Change(_) => None,
        }
    }
}

impl Request {
    /// Whether its numbers are below bounds that no group reaches, so that counting on from them cannot overflow.
    pub(crate) fn is_possible(&self) -> bool {
        match self {
            Self::Append { vote, previous, entries, committed } => {
                vote.is_possible()
                    && [previous, committed].iter().all(|id| id.is_none_or(LogIdCbor::is_possible))
                    && entries.iter().all(|entry| entry.id().is_possible())
            }
            Self::Vote { vote, last } => vote.is_possible() && last.is_none_or(LogIdCbor::is_possible),
            Self::Snapshot { vote, meta, .. } => vote.is_possible() && meta.is_possible(),
            Self::Propose(_) | Self::Read | Self::Change(_) => true,
        }
    }
}

impl From<AppendEntriesRequest<Types>> for Request {
    fn from(request: AppendEntriesRequest<Types>) -> Self {
        Self::Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
            committed: request.leader_commit.map(Into::into),
        }
    }
}

/// Returns a request to append, unless its entries do not follow each other and the one before.
pub(crate) fn append_request(
    vote: VoteCbor,
    previous: Option<LogIdCbor>,
    entries: Vec<EntryCbor>,
    committed: Option<LogIdCbor>,
) -> Option<AppendEntriesRequest<Types>> {
    let request = AppendEntriesRequest::<Types> {
        vote: vote.into(),
        prev_log_id: previous.map(Into::into),
        entries: entries.into_iter().map(Into::into).collect(),
        leader_commit: committed.map(Into::into),
    };
    let mut last: Option<LogId> = request.prev_log_id;
    for entry in &request.entries {
        let next = last.map_or(Some(0), |last| last.index.checked_add(1));
        if Some(entry.log_id.index) != next
            || last.is_some_and(|last| entry.log_id.leader_id < last.leader_id)
        {
            return None;
        }
        last = Some(entry.log_id);
    }
    Some(request)
}

impl From<VoteRequest<u64>> for Request {
    fn from(request: VoteRequest<u64>) -> Self {
        Self::Vote { vote: request.vote.into(), last: request.last_log_id.map(Into::into) }
    }
}

impl From<AppendEntriesResponse<u64>> for Response {
    fn from(response: AppendEntriesResponse<u64>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Appended,
            AppendEntriesResponse::PartialSuccess(upto) => Self::AppendedUpTo(upto.map(Into::into)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<VoteResponse<u64>> for Response {
    fn from(response: VoteResponse<u64>) -> Self {
        Self::Voted {
            vote: response.vote.into(),
            is_granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }
}

impl Response {
    /// As [`Request::is_possible`].
    pub(crate) fn is_possible(&self) -> bool {
        match self {
            Self::AppendedUpTo(upto) => upto.is_none_or(LogIdCbor::is_possible),
            Self::HigherVote(vote) | Self::Installed(vote) => vote.is_possible(),
            Self::Voted { vote, last, .. } => vote.is_possible() && last.is_none_or(LogIdCbor::is_possible),
            Self::Appended
            | Self::Conflict
            | Self::Applied(_)
            | Self::ReadFrom(_)
            | Self::Changed
            | Self::NotLeader(_)
            | Self::Busy
            | Self::Refused(_)
            | Self::Full
            | Self::Lost
            | Self::Behind(_) => true,
        }
    }

    pub(crate) fn into_appended(self) -> Result<AppendEntriesResponse<u64>, Self> {
        match self {
            Self::Appended => Ok(AppendEntriesResponse::Success),
            Self::AppendedUpTo(upto) => Ok(AppendEntriesResponse::PartialSuccess(upto.map(Into::into))),
            Self::Conflict => Ok(AppendEntriesResponse::Conflict),
            Self::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote.into())),
            other => Err(other),
        }
    }

    pub(crate) fn into_voted(self) -> Result<VoteResponse<u64>, Self> {
        match self {
            Self::Voted { vote, is_granted, last } => {
                Ok(VoteResponse::new(Vote::from(vote), last.map(Into::into), is_granted))
            }
            other => Err(other),
        }
    }
}

/// Returns a request to install a snapshot.
pub(crate) fn snapshot_request(vote: Vote, meta: &SnapshotMeta, state: Vec<u8>) -> Request {
    Request::Snapshot { vote: vote.into(), meta: meta.into(), state }
}
