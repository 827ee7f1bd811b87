//! The native protocol: what a client asks of a node, and the answers, as the content of request and answer frames.
//!
//! A request is the time for which its client still waits, in milliseconds as 4 bytes, little-endian, then an [`Ask`] in
//! CBOR. The time is apart from the rest because it changes when a request is sent again. An answer is an [`Answer`] in
//! CBOR. Both are arrays of a variant's number and its fields: a new field is optional and goes to the end, and a version
//! that does not know it skips it. [`VERSIONS`](crate::handshake::VERSIONS) is the version of all this.
//!
//! The node does not trust a client: it checks that the shard of a request has its process.

mod refused;

use crate::payload::{Payload, PayloadWriter};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use refused::Refused;
use std::net::SocketAddr;
use std::time::Duration;
use stead_core::blob::Blob;
use stead_core::calls::{self, Identity, Read, Refusal};
use stead_core::ids::{
    BodyHash, CallToken, Colour, Epoch, Incarnation, Index, Micros, RequestNumber, SessionId, ShardId,
};
use stead_core::key::Key;
use stead_core::look::Look;
use stead_core::placement::Place;
use stead_core::record::RecordKey;
use stead_core::replication::table::LogPoint;
use stead_core::reply::Reply;
use stead_core::topology::Topology;

/// Length of the time at the start of a request.
const TIME_LEN: usize = 4;

/// Maximum number of addresses of nodes in an answer.
pub const NODES_MAX: usize = 64;
/// Maximum number of primaries in an answer: those of the first shards. Calls for the other shards are forwarded.
pub const PRIMARIES_MAX: usize = 1 << 16;

/// The requests of a client to a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask<'b> {
    /// The services, their shards, and the nodes: [`Answer::Topology`].
    #[n(0)]
    Topology {
        /// Whether the answer is to leave out the services, because the client has them. `None` is false.
        #[n(0)]
        without_services: Option<bool>,
    },
    /// To open a session. One that is open stays so.
    #[n(1)]
    OpenSession {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// The session, drawn at random by the client.
        #[n(1)]
        session: SessionId,
        /// The client's principal.
        #[b(2)]
        principal: &'b str,
    },
    /// To handle a request.
    #[n(2)]
    Request {
        /// The shard of the process.
        #[n(0)]
        shard: ShardId,
        /// The receiving process.
        #[n(1)]
        process: Key,
        /// The request's bytes.
        #[n(2)]
        payload: Blob,
        /// The client's principal.
        #[b(3)]
        principal: &'b str,
        /// The identity by which a retry is recognised.
        #[n(4)]
        identity: Identified,
        /// The highest colour that the client has seen.
        #[n(5)]
        colour: Colour,
        /// The newest entry of the shard that an answer to the client included.
        #[n(6)]
        seen: Option<LogPoint>,
        /// Whether no shard can have had it before. `None` is false. What is sent again does not say so: see [`repeated`].
        #[n(7)]
        is_first: Option<bool>,
    },
    /// To answer a query.
    #[n(3)]
    Query {
        /// The shard of the process.
        #[n(0)]
        shard: ShardId,
        /// The queried process.
        #[n(1)]
        process: Key,
        /// The query's bytes.
        #[n(2)]
        payload: Blob,
        /// The client's principal.
        #[b(3)]
        principal: &'b str,
        /// The promise that the answer has to keep; `None` for that of the service.
        #[n(4)]
        read: Option<Promised>,
        /// As that of a request.
        #[n(5)]
        seen: Option<LogPoint>,
    },
    /// To retry a dead letter, or to delete it.
    #[n(4)]
    DeadLetter {
        /// The shard that holds it.
        #[n(0)]
        shard: ShardId,
        /// Its index.
        #[n(1)]
        letter: Index,
        /// Whether it is retried.
        #[n(2)]
        retry: bool,
    },
    /// To delete records of a process.
    #[n(5)]
    Delete {
        /// The shard of the process.
        #[n(0)]
        shard: ShardId,
        /// The process.
        #[n(1)]
        process: Key,
        /// The records.
        #[n(2)]
        records: Vec<RecordKey>,
    },
    /// To look at the state of a shard: the reply is an encoded [`Found`](stead_core::look::Found).
    #[n(6)]
    Look {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// What is to be seen.
        #[n(1)]
        look: Look,
    },
}

/// An [`Identity`] as requests carry it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Identified {
    /// A position in a session.
    #[n(0)]
    Session {
        /// The session.
        #[n(0)]
        session: SessionId,
        /// The request's number.
        #[n(1)]
        number: RequestNumber,
        /// The client has the replies up to this number.
        #[n(2)]
        confirmed: RequestNumber,
    },
    /// A key chosen by the client.
    #[n(1)]
    Idempotency {
        /// The key.
        #[n(0)]
        key: Blob,
        /// Hash of the request.
        #[n(1)]
        body_hash: BodyHash,
    },
    /// None.
    #[n(2)]
    None,
}

impl From<Identity> for Identified {
    fn from(identity: Identity) -> Self {
        match identity {
            Identity::Session { session, number, confirmed } => Self::Session { session, number, confirmed },
            Identity::Idempotency { key, body_hash } => Self::Idempotency { key, body_hash },
            Identity::None => Self::None,
        }
    }
}

impl From<Identified> for Identity {
    fn from(identified: Identified) -> Self {
        match identified {
            Identified::Session { session, number, confirmed } => {
                Self::Session { session, number, confirmed }
            }
            Identified::Idempotency { key, body_hash } => Self::Idempotency { key, body_hash },
            Identified::None => Self::None,
        }
    }
}

/// A [`Read`] as queries carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Promised {
    /// [`Read::Linearizable`].
    #[n(0)]
    Linearizable,
    /// [`Read::Primary`].
    #[n(1)]
    Primary,
    /// [`Read::Stale`].
    #[n(2)]
    Stale(
        /// The greatest age that is allowed.
        #[n(0)]
        Option<Micros>,
    ),
}

impl Promised {
    /// Returns what stands for a read in a query.
    #[must_use]
    pub fn of(read: Read) -> Option<Self> {
        match read {
            Read::Service => None,
            Read::Linearizable => Some(Self::Linearizable),
            Read::Primary => Some(Self::Primary),
            Read::Stale { max_lag } => Some(Self::Stale(max_lag)),
        }
    }
}

impl From<Promised> for Read {
    fn from(promised: Promised) -> Self {
        match promised {
            Promised::Linearizable => Self::Linearizable,
            Promised::Primary => Self::Primary,
            Promised::Stale(max_lag) => Self::Stale { max_lag },
        }
    }
}

/// The primary of a shard, as one node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Primary {
    /// The position of its node's address among those of the same answer.
    #[n(0)]
    pub node: u32,
    /// The epoch in which it leads, or is about to.
    #[n(1)]
    pub epoch: Epoch,
}

/// The reason for which the content of a frame cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content of a frame cannot be read: {0}; run the same version of Stead at both ends")]
pub struct Unreadable(String);

impl From<minicbor::decode::Error> for Unreadable {
    fn from(error: minicbor::decode::Error) -> Self {
        Self(error.to_string())
    }
}

fn encode<T: Encode<()>>(value: &T) -> Bytes {
    minicbor::to_vec(value).expect("memory takes everything").into()
}

impl<'b> Ask<'b> {
    /// Whether it has the effect of one if it is sent twice.
    #[must_use]
    pub fn repeats(&self) -> bool {
        match self {
            Self::Topology { .. } | Self::OpenSession { .. } | Self::Query { .. } | Self::Look { .. } => true,
            Self::Request { identity, .. } => *identity != Identified::None,
            // A process may have been created anew meanwhile.
            Self::DeadLetter { .. } | Self::Delete { .. } => false,
        }
    }

    /// Returns the shard whose primary answers it: `None` if any node does, or any replica.
    #[must_use]
    pub fn led_shard(&self) -> Option<ShardId> {
        match self {
            Self::Topology { .. } | Self::Query { read: Some(Promised::Stale(_)), .. } => None,
            Self::OpenSession { shard, .. }
            | Self::Request { shard, .. }
            | Self::Query { shard, .. }
            | Self::DeadLetter { shard, .. }
            | Self::Delete { shard, .. }
            | Self::Look { shard, .. } => Some(*shard),
        }
    }

    /// Returns the encoded request without its time: see [`with_time`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads a request, and the time for which its client still waits.
    ///
    /// # Errors
    /// If the bytes are no request.
    pub fn decode(bytes: &'b [u8]) -> Result<(Duration, Self), Unreadable> {
        let Some((time, ask)) = bytes.split_first_chunk::<TIME_LEN>() else {
            return Err(Unreadable("a request begins with its time".to_owned()));
        };
        let time = Duration::from_millis(u32::from_le_bytes(*time).into());
        Ok((time, Self::decode_untimed(ask)?))
    }

    /// Reads a request without a time, as [`encode`](Self::encode) returns it.
    ///
    /// # Errors
    /// If the bytes are no request.
    pub fn decode_untimed(bytes: &'b [u8]) -> Result<Self, Unreadable> {
        Ok(minicbor::decode(bytes)?)
    }
}

/// Returns an encoded request as it is sent again: a shard may have had it.
#[must_use]
pub fn repeated(ask: &Bytes) -> Bytes {
    match Ask::decode_untimed(ask) {
        Ok(Ask::Request {
            shard,
            process,
            payload,
            principal,
            identity,
            colour,
            seen,
            is_first: Some(true),
        }) => {
            let is_first = None;
            Ask::Request { shard, process, payload, principal, identity, colour, seen, is_first }.encode()
        }
        _ => ask.clone(),
    }
}

/// Returns the payload of an encoded request whose client still waits for so long: at most 49 days count.
#[must_use]
pub fn with_time(time: Duration, ask: &Bytes) -> Payload {
    let millis = u32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    let mut payload = PayloadWriter::new();
    payload.write(&millis.to_le_bytes());
    payload.share(ask);
    payload.finish()
}

/// The answers of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The answer of the shard. Its token is the receiver's to fill in.
    Of(calls::Answer),
    /// The node refused on the shard's behalf. Nothing was changed.
    Refused(Refusal),
    /// The shard is not on this node. Nothing was changed.
    NotHere {
        /// The shard.
        shard: ShardId,
        /// Its place.
        place: Place,
    },
    /// The shard had no primary that the node reached in the time of the request. Nothing was changed.
    NoPrimary {
        /// The shard.
        shard: ShardId,
    },
    /// The shard gave no answer in time. The request may have been applied, or may still be.
    TimedOut,
    /// The node had a fatal error. The request may have been applied.
    Failed(String),
    /// The node is shutting down. The request may have been applied.
    Stopped,
    /// There is an answer, and no room for it among those that wait to be read. The request may have been applied: the
    /// same one, sent again with its identity, gets the answer.
    NoRoom,
    /// The services, their shards, and the nodes.
    Topology {
        /// The services and their shards: none if the client has them.
        topology: Topology,
        /// The addresses at which the nodes of the cluster serve clients, as far as this node knows them: [`NODES_MAX`] at most.
        nodes: Vec<SocketAddr>,
        /// The primary of each shard, from the first one on, as far as this node knows it: [`PRIMARIES_MAX`] at most. It may have
        /// changed: a node forwards calls for shards that it does not lead.
        primaries: Vec<Option<Primary>>,
    },
    /// The request is invalid. Nothing was changed.
    Invalid(String),
    /// The replica of the shard that is here was the primary when the request came, and is it no more. The request may have been
    /// applied: the same one, sent with its identity to the next primary, gets the answer, or is handled.
    Deposed {
        /// The shard.
        shard: ShardId,
    },
}

#[derive(Encode, Decode)]
enum Wire<'b> {
    #[n(0)]
    Reply(#[n(0)] Epoch, #[n(1)] Index, #[n(2)] Colour, #[n(3)] Reply, #[n(4)] Option<Micros>),
    #[n(1)]
    Refusal(#[n(0)] Epoch, #[n(1)] Index, #[n(2)] Colour, #[n(3)] Refused),
    #[n(2)]
    Refused(#[n(0)] Refused),
    /// Whether it is on another node, and whether that is because the node reached no primary: an older version takes this for
    /// another node's.
    #[n(3)]
    NotHere(#[n(0)] ShardId, #[n(1)] bool, #[n(2)] Option<bool>),
    #[n(4)]
    TimedOut,
    #[n(5)]
    Failed(#[b(0)] &'b str),
    #[n(6)]
    Stopped,
    #[n(7)]
    NoRoom,
    #[n(8)]
    Topology(
        #[n(0)] Incarnation,
        #[b(1)] Vec<(&'b str, u32)>,
        #[n(2)] Option<Vec<String>>,
        #[n(3)] Option<Vec<Option<Primary>>>,
    ),
    #[n(9)]
    Invalid(#[b(0)] &'b str),
    #[n(10)]
    Deposed(#[n(0)] ShardId),
}

impl Answer {
    /// Returns the answer to a client that speaks a version of the protocol: one that it does not know is replaced by one that it does.
    #[must_use]
    pub fn in_version(self, version: u16) -> Self {
        match self {
            // Both mean that the request may have been applied.
            Self::Deposed { .. } if version < 2 => Self::TimedOut,
            answer => answer,
        }
    }

    /// Returns the encoded answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(&match self {
            Self::Of(calls::Answer { epoch, index, colour, result: Ok(reply), staleness, .. }) => {
                Wire::Reply(*epoch, *index, *colour, reply.clone(), *staleness)
            }
            Self::Of(calls::Answer { epoch, index, colour, result: Err(refusal), .. }) => {
                Wire::Refusal(*epoch, *index, *colour, refusal.into())
            }
            Self::Refused(refusal) => Wire::Refused(refusal.into()),
            Self::NotHere { shard, place } => Wire::NotHere(*shard, *place == Place::Elsewhere, None),
            Self::NoPrimary { shard } => Wire::NotHere(*shard, true, Some(true)),
            Self::TimedOut => Wire::TimedOut,
            Self::Failed(reason) => Wire::Failed(reason),
            Self::Stopped => Wire::Stopped,
            Self::NoRoom => Wire::NoRoom,
            Self::Topology { topology, nodes, primaries } => {
                let services = topology.services().iter();
                let services = services.map(|service| (service.name.as_str(), service.shards)).collect();
                let nodes = nodes.iter().take(NODES_MAX).map(SocketAddr::to_string).collect();
                let primaries = primaries.iter().take(PRIMARIES_MAX).copied().collect::<Vec<_>>();
                let primaries = Some(primaries).filter(|primaries| !primaries.is_empty());
                Wire::Topology(topology.incarnation, services, Some(nodes), primaries)
            }
            Self::Invalid(reason) => Wire::Invalid(reason),
            Self::Deposed { shard } => Wire::Deposed(*shard),
        })
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If the bytes are no answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let of = |epoch, index, colour, result, staleness| {
            Self::Of(calls::Answer { token: CallToken(0), epoch, index, colour, result, staleness })
        };
        Ok(match minicbor::decode(bytes)? {
            Wire::Reply(epoch, index, colour, reply, staleness) => {
                of(epoch, index, colour, Ok(reply), staleness)
            }
            Wire::Refusal(epoch, index, colour, refused) => {
                of(epoch, index, colour, Err(refused.into()), None)
            }
            Wire::Refused(refused) => Self::Refused(refused.into()),
            Wire::NotHere(shard, _, Some(true)) => Self::NoPrimary { shard },
            Wire::NotHere(shard, is_elsewhere, _) => {
                Self::NotHere { shard, place: if is_elsewhere { Place::Elsewhere } else { Place::Unplaced } }
            }
            Wire::TimedOut => Self::TimedOut,
            Wire::Failed(reason) => Self::Failed(reason.to_owned()),
            Wire::Stopped => Self::Stopped,
            Wire::NoRoom => Self::NoRoom,
            Wire::Topology(incarnation, services, nodes, primaries) => {
                let mut topology = Topology::new(incarnation);
                for (name, shards) in services {
                    topology.ensure(name, shards).map_err(|error| Unreadable(error.to_string()))?;
                }
                let texts = nodes.as_deref().unwrap_or_default();
                let nodes = texts.iter().take(NODES_MAX).filter_map(|node| node.parse().ok());
                let nodes: Vec<SocketAddr> = nodes.collect();
                let mut primaries = primaries.unwrap_or_default();
                primaries.truncate(PRIMARIES_MAX);
                if nodes.len() != texts.len() {
                    // Their positions are those of other nodes now.
                    primaries.clear();
                }
                Self::Topology { topology, nodes, primaries }
            }
            Wire::Invalid(reason) => Self::Invalid(reason.to_owned()),
            Wire::Deposed(shard) => Self::Deposed { shard },
        })
    }
}
