//! The requests between the control parts of two nodes, and their answers: a byte with the version, one with the kind, then the content.

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use stead_core::control::facts::{Fact, Hello, Request};
use stead_core::ids::{ClusterId, Incarnation, NodeId};

const VERSION: u8 = 1;

const PLANE: u8 = 1;
const FACTS: u8 = 2;
const ORDERS: u8 = 3;
const JOIN: u8 = 4;
const LOOK: u8 = 5;

/// Facts or orders of one request at most: what is left comes with the next one.
pub(crate) const PARTS_MAX: usize = 4_096;

/// A request to the control part of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A request of a plane to a plane, which the other one answers with bytes.
    Plane(Vec<u8>),
    /// News for the controller. The answer is [`Counted`].
    Facts(Vec<Fact>),
    /// Orders of the controller. The answer is empty.
    Orders(Vec<Request>),
    /// A node without a number wants to join, or one that knows no leader introduces itself. The answer is [`Joined`].
    Join(Hello),
    /// A request for the figures that the other node knows, for an operator. The answer is a [`Look`](crate::look::Look).
    Look,
}

/// The answer to [`Ask::Facts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Counted {
    /// Whether the node that got the facts leads the control plane.
    #[n(0)]
    pub(crate) is_leader: bool,
    /// Whether the cluster has removed the node that sent them.
    #[n(1)]
    #[cbor(default)]
    pub(crate) is_removed: bool,
}

/// The answer to [`Ask::Join`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Joined {
    /// The cluster has no leader, or has not registered the start yet: ask again.
    #[n(0)]
    NotYet,
    /// The cluster has registered the start.
    #[n(1)]
    Done {
        #[n(0)]
        cluster: ByteArray<16>,
        #[n(1)]
        incarnation: u64,
        /// The number of the node that joined.
        #[n(2)]
        node: NodeId,
        /// The services and the number of shards of each, in their order.
        #[n(3)]
        services: Vec<(String, u32)>,
    },
    /// The cluster takes no such node.
    #[n(2)]
    Refused(#[n(0)] String),
    /// The cluster has removed the node.
    #[n(3)]
    Removed,
}

impl Joined {
    pub(crate) fn done(
        cluster: ClusterId,
        incarnation: Incarnation,
        node: NodeId,
        services: Vec<(String, u32)>,
    ) -> Self {
        Self::Done { cluster: cluster.0.to_be_bytes().into(), incarnation: incarnation.0, node, services }
    }
}

/// The reason for which bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it sent a request of the control plane that is invalid: {0}; run the same version of Stead on all nodes"
)]
pub(crate) struct InvalidMessage(String);

impl Ask {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, content) = match self {
            Self::Plane(bytes) => (PLANE, bytes.clone()),
            Self::Facts(facts) => (FACTS, join(facts.iter().map(Fact::encode))),
            Self::Orders(orders) => (ORDERS, join(orders.iter().map(Request::encode))),
            Self::Join(hello) => (JOIN, Fact::Hello(hello.clone()).encode()),
            Self::Look => (LOOK, Vec::new()),
        };
        let mut bytes = vec![VERSION, kind];
        bytes.extend(content);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let [version, kind, content @ ..] = bytes else {
            return Err(InvalidMessage("it is too short".to_owned()));
        };
        if *version != VERSION {
            return Err(InvalidMessage(format!("its version is {version}, and this node knows {VERSION}")));
        }
        match *kind {
            PLANE => Ok(Self::Plane(content.to_vec())),
            FACTS => parts(content, |part| Fact::decode(part).map_err(|e| e.to_string())).map(Self::Facts),
            ORDERS => {
                parts(content, |part| Request::decode(part).map_err(|e| e.to_string())).map(Self::Orders)
            }
            JOIN => match Fact::decode(content) {
                Ok(Fact::Hello(hello)) => Ok(Self::Join(hello)),
                Ok(_) => Err(InvalidMessage("a request to join has no hello".to_owned())),
                Err(error) => Err(InvalidMessage(error.to_string())),
            },
            LOOK if content.is_empty() => Ok(Self::Look),
            kind => Err(InvalidMessage(format!("its kind {kind} is unknown"))),
        }
    }
}

/// Puts parts one behind the other, each with its length in front.
fn join(parts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let len = u32::try_from(part.len()).expect("a part is shorter than 4 GiB");
        bytes.extend(len.to_le_bytes());
        bytes.extend(part);
    }
    bytes
}

fn parts<T>(mut bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, String>) -> Result<Vec<T>, InvalidMessage> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        if parts.len() == PARTS_MAX {
            return Err(InvalidMessage(format!("it has more than {PARTS_MAX} parts")));
        }
        let (len, rest) =
            bytes.split_at_checked(4).ok_or_else(|| InvalidMessage("it is cut off".to_owned()))?;
        let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let (part, rest) = rest
            .split_at_checked(usize::try_from(len).unwrap_or(usize::MAX))
            .ok_or_else(|| InvalidMessage("it is cut off".to_owned()))?;
        parts.push(read(part).map_err(InvalidMessage)?);
        bytes = rest;
    }
    Ok(parts)
}

/// Encodes an answer.
pub(crate) fn encode_answer<T: Encode<()>>(answer: &T) -> Vec<u8> {
    minicbor::to_vec(answer).expect("memory takes everything")
}

/// Decodes an answer.
pub(crate) fn decode_answer<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, InvalidMessage> {
    minicbor::decode(bytes).map_err(|error| InvalidMessage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::control::node::{DiskState, StartId};
    use stead_core::ids::{Life, ShardId};

    #[test]
    fn requests_survive_and_nothing_else_decodes() {
        let hello = Hello {
            node: None,
            life: Life(1),
            start: StartId(7),
            disk: DiskState::Whole,
            addresses: vec!["127.0.0.1:1".to_owned()],
            earlier: vec![StartId(6)],
        };
        let facts = vec![Fact::Closed(NodeId(2)), Fact::Hello(hello.clone())];
        let orders = vec![
            Request::Ask(NodeId(3)),
            Request::Delete { node: NodeId(1), shard: ShardId(2), replica: stead_core::ids::ReplicaId(9) },
        ];
        for ask in
            [Ask::Plane(vec![1, 2, 3]), Ask::Facts(facts), Ask::Orders(orders), Ask::Join(hello), Ask::Look]
        {
            let bytes = ask.encode();
            assert_eq!(Ask::decode(&bytes), Ok(ask.clone()));
            let is_plane = matches!(ask, Ask::Plane(_));
            for len in (0..bytes.len()).filter(|len| *len < 2 || !is_plane) {
                // A list that is cut between two parts is a shorter one.
                assert_ne!(Ask::decode(&bytes[..len]), Ok(ask.clone()));
            }
            assert!(Ask::decode(&[&[9], &bytes[1..]].concat()).is_err(), "another version");
        }
        let long = join((0..=PARTS_MAX).map(|_| Fact::Closed(NodeId(1)).encode()));
        assert!(Ask::decode(&[&[VERSION, FACTS], &long[..]].concat()).is_err(), "too many parts");
        assert!(Ask::decode(&[VERSION, LOOK, 0]).is_err(), "there is nothing to say with it");
        assert!(Ask::decode(&[VERSION, FACTS, 255, 255, 255, 255]).is_err(), "a length that is not there");
    }
}
