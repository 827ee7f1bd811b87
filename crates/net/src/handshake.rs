//! The first frame in each direction: who is at each end, and whether they may talk.
//!
//! The end that dialed says hello at once. The other end checks it, and answers with its own hello or with a refusal;
//! the first end then checks that hello in the same way. A refusal has the same text at both ends. Pure: the wall clock
//! and what is known of the peers arrive with the frame.
//!
//! There is one connection between two nodes. Each end numbers its connections as it dials and accepts them, and says
//! the number in its hello. The later one stays by the numbers of the node with the higher number: each end can decide
//! that alone if both dial at the same time, and a node that lost a connection can dial again while the other end still
//! holds it.

use crate::frame::{Frame, Head, Kind, Origin, PAYLOAD_BYTES_MAX};
use crate::payload::Payload;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use std::fmt;
use stead_core::ids::{ClusterId, Incarnation, Life, Micros, NodeId, Time};

/// The versions of the protocol that this program speaks. Version 2 has the answer
/// [`Deposed`](crate::native::Answer::Deposed).
pub const VERSIONS: Versions = Versions { min: 1, max: 2 };

/// Maximum length of the payload of a first frame in bytes: more is not taken from an end that is not known yet.
pub const HELLO_BYTES_MAX: u32 = 2048;

/// Difference of two nodes' wall clocks from which on they refuse each other, unless another one is set. Timers follow
/// the wall clock, so that a failover to such a node would fire them at a wrong time.
pub const CLOCK_DIFFERENCE_MAX: Micros = Micros::from_secs(60);

/// Maximum length of a refusal's text in bytes.
const TEXT_MAX: usize = 1024;

const _: () = assert!(TEXT_MAX < HELLO_BYTES_MAX as usize);

/// Minimum of [`Limits::payload_bytes_max`] in bytes: an end that takes less refuses each message.
pub const PAYLOAD_BYTES_MIN: u32 = 512;

/// A range of versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Versions {
    /// The oldest one.
    #[n(0)]
    pub min: u16,
    /// The newest one.
    #[n(1)]
    pub max: u16,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.max)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// The role of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node of the cluster.
    Peer {
        /// Its number.
        node: NodeId,
        /// The identity of its data directory, drawn at random when that was created: a second directory with the same
        /// node's number has another one.
        directory: u64,
        /// The identity of its process, drawn at random when that began: a second process with a copy of the data
        /// directory has another one.
        process: u64,
    },
    /// A client.
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { node, .. } => write!(f, "node {node}"),
            Self::Client => f.write_str("a client"),
        }
    }
}

/// The limits that an end sets for the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of a payload in bytes. At least [`PAYLOAD_BYTES_MIN`].
    pub payload_bytes_max: u32,
    /// Maximum number of requests that were sent and not answered. At least 1.
    pub requests_max: u32,
    /// Maximum number of bytes of requests that were sent and not answered. At least `payload_bytes_max`.
    pub request_bytes_max: u64,
}

impl Default for Limits {
    /// Payloads of 40 MiB; 4,096 requests with 64 MiB.
    fn default() -> Self {
        Self { payload_bytes_max: PAYLOAD_BYTES_MAX, requests_max: 4096, request_bytes_max: 64 << 20 }
    }
}

impl Limits {
    /// Returns the limits of clients, of which there are many: payloads of 2 MiB; 1,024 requests with 8 MiB.
    #[must_use]
    pub const fn of_clients() -> Self {
        Self { payload_bytes_max: 2 << 20, requests_max: 1024, request_bytes_max: 8 << 20 }
    }

    /// Returns whether an end can send something under these limits.
    pub(crate) fn are_valid(&self) -> bool {
        self.payload_bytes_max >= PAYLOAD_BYTES_MIN
            && self.requests_max > 0
            && self.request_bytes_max >= u64::from(self.payload_bytes_max)
    }

    /// Returns the limits of an end that named these to another one with the limits `own`: requests without an answer
    /// cost memory at both.
    fn lowered_to(self, own: Self) -> Self {
        Self {
            payload_bytes_max: self.payload_bytes_max.min(PAYLOAD_BYTES_MAX),
            requests_max: self.requests_max.min(own.requests_max),
            request_bytes_max: self.request_bytes_max.min(own.request_bytes_max),
        }
    }
}

/// The identity and limits of this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The versions of the protocol that it speaks: [`VERSIONS`].
    pub versions: Versions,
    /// Its cluster; `None` for a client that takes any.
    pub cluster: Option<ClusterId>,
    /// Its role.
    pub role: Role,
    /// The incarnation of its cluster (0 for a client that takes any), and its life (0 for a client).
    pub origin: Origin,
    /// The limits that it sets for a node.
    pub limits: Limits,
    /// The limits that it sets for a client. Default: [`Limits::of_clients`].
    pub client_limits: Limits,
    /// Maximum difference of nodes' wall clocks. Default: [`CLOCK_DIFFERENCE_MAX`].
    pub clock_difference_max: Micros,
}

impl Local {
    /// Returns the identity of an end that is no node, and knows no cluster yet.
    #[must_use]
    pub fn stranger() -> Self {
        Self {
            versions: VERSIONS,
            cluster: None,
            role: Role::Client,
            origin: Origin { incarnation: Incarnation(0), life: Life(0) },
            limits: Limits::default(),
            client_limits: Limits::of_clients(),
            clock_difference_max: CLOCK_DIFFERENCE_MAX,
        }
    }

    /// Returns the limits that it sets for an end of this role.
    #[must_use]
    pub const fn limits_of(&self, sender: Role) -> Limits {
        match sender {
            Role::Peer { .. } => self.limits,
            Role::Client => self.client_limits,
        }
    }
}

/// The end that opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end dialed.
    Dialed,
    /// The other end dialed.
    Accepted,
}

/// The identity of a node that is or was connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The identity of its data directory.
    pub directory: u64,
    /// The identity of the process of its latest life.
    pub process: u64,
    /// Its latest life.
    pub life: Life,
    /// The [`Agreed::order`] of the connection to it, if there is one.
    pub connected: Option<u64>,
}

/// The result of a handshake, which both ends share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version of the protocol: the newest one that both speak.
    pub version: u16,
    /// The cluster.
    pub cluster: Option<ClusterId>,
    /// The other end's role.
    pub role: Role,
    /// The sender of all frames that follow.
    pub origin: Origin,
    /// The limits of what this end sends: those that the other end set, lowered to what this end takes itself, or for
    /// payloads to [`PAYLOAD_BYTES_MAX`].
    pub limits: Limits,
    /// Whether the connection to this node that there is must be closed: this one replaces it.
    pub replaces: bool,
    /// The number that the higher of both nodes gave the connection: the later one between them has more. 0 for a
    /// client's.
    pub order: u64,
}

/// The content of a hello. New fields have new numbers, and a version that does not know them skips them.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Hello {
    #[n(0)]
    version_min: u16,
    #[n(1)]
    version_max: u16,
    #[n(2)]
    cluster: Option<ByteArray<16>>,
    #[n(3)]
    node: Option<NodeId>,
    #[n(4)]
    directory: Option<u64>,
    #[n(5)]
    time: Time,
    #[n(6)]
    payload_bytes_max: u32,
    #[n(7)]
    requests_max: u32,
    #[n(8)]
    request_bytes_max: u64,
    #[n(9)]
    process: Option<u64>,
    #[n(10)]
    connection: u64,
}

impl Hello {
    /// Returns the role of its sender; `None` if it contradicts itself.
    const fn role(&self) -> Option<Role> {
        match (self.node, self.directory, self.process) {
            (Some(node), Some(directory), Some(process)) => Some(Role::Peer { node, directory, process }),
            (None, None, None) => Some(Role::Client),
            _ => None,
        }
    }
}

/// Returns the role that the sender of a first frame claims, for a proxy between two ends, which check it themselves; `None` if the
/// frame is no hello.
#[must_use]
pub fn claimed_role(frame: &Frame) -> Option<Role> {
    (frame.head.kind == Kind::Hello).then(|| minicbor::decode::<Hello>(&frame.payload).ok()?.role()).flatten()
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct RefusalText<'a> {
    #[n(0)]
    code: u8,
    #[b(1)]
    text: &'a str,
}

fn encode<T: Encode<()>>(value: &T) -> Payload {
    let bytes = minicbor::to_vec(value).expect("memory takes everything");
    Payload::from(bytes::Bytes::from(bytes))
}

/// Returns the last frame of an end that closes the connection for a reason that concerns the other one.
pub(crate) fn refusal_frame(origin: Origin, kind: RefusalKind, mut text: String) -> (Head, Payload) {
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    let head = Head { kind: Kind::Refusal, number: 0, origin };
    (head, encode(&RefusalText { code: kind as u8, text: &text }))
}

/// A connection until both ends know each other.
#[derive(Clone, Debug)]
pub struct Handshake {
    local: Local,
    side: Side,
    number: u64,
    /// The node that must be at the other end; `None` for any.
    expected: Option<NodeId>,
}

impl Handshake {
    /// Returns the handshake of a connection that this end dials, to this node if one is given. Send
    /// [`hello`](Self::hello) at once. `number` is more than that of each connection that this process began before.
    #[must_use]
    pub const fn dial(local: Local, number: u64, expected: Option<NodeId>) -> Self {
        Self { local, side: Side::Dialed, number, expected }
    }

    /// Returns the handshake of a connection that this end accepts. `number` is more than that of each connection that
    /// this process began before.
    #[must_use]
    pub const fn accept(local: Local, number: u64) -> Self {
        Self { local, side: Side::Accepted, number, expected: None }
    }

    /// Returns the end that opened the connection.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Returns the first frame of this end. `wall` is the wall clock; `sender` is the role of the other end, which is a
    /// node if this end dials.
    #[must_use]
    pub fn hello(&self, wall: Time, sender: Option<Role>) -> (Head, Payload) {
        let Local { versions, cluster, role, limits, .. } = &self.local;
        let limits = sender.map_or(*limits, |sender| self.local.limits_of(sender));
        let (node, directory, process) = match *role {
            Role::Peer { node, directory, process } => (Some(node), Some(directory), Some(process)),
            Role::Client => (None, None, None),
        };
        let hello = Hello {
            version_min: versions.min,
            version_max: versions.max,
            cluster: cluster.map(|cluster| cluster.0.to_be_bytes().into()),
            node,
            directory,
            time: wall,
            payload_bytes_max: limits.payload_bytes_max,
            requests_max: limits.requests_max,
            request_bytes_max: limits.request_bytes_max,
            process,
            connection: self.number,
        };
        (self.head(Kind::Hello), encode(&hello))
    }

    /// Returns the last frame of this end: it refuses the connection.
    #[must_use]
    pub fn refusal(&self, refusal: &Refusal) -> (Head, Payload) {
        refusal_frame(self.local.origin, refusal.kind(), refusal.to_string())
    }

    const fn head(&self, kind: Kind) -> Head {
        Head { kind, number: 0, origin: self.local.origin }
    }

    /// Checks the first frame of the other end. After `Ok` the end that accepted sends its [`hello`](Self::hello);
    /// after [`HandshakeError::Refused`] either end sends that [`refusal`](Self::refusal), then closes.
    ///
    /// `wall` is the wall clock. `known` returns what this end knows of a node: the latest life that was connected
    /// since this process began, so that an earlier one or a copy is refused.
    ///
    /// # Errors
    /// The reason for which there is no connection.
    pub fn handle_frame(
        &self,
        frame: &Frame,
        wall: Time,
        known: impl FnOnce(NodeId) -> Option<Known>,
    ) -> Result<Agreed, HandshakeError> {
        match frame.head.kind {
            Kind::Hello => self.check(frame, wall, known).map_err(HandshakeError::Refused),
            Kind::Refusal => Err(Self::refused_by_other(&frame.payload)),
            kind => Err(HandshakeError::Refused(Refusal::Order { kind })),
        }
    }

    pub(crate) fn refused_by_other(payload: &[u8]) -> HandshakeError {
        let refusal = minicbor::decode::<RefusalText<'_>>(payload).ok();
        let kind =
            refusal.as_ref().map_or(RefusalKind::Malformed, |refusal| RefusalKind::from_byte(refusal.code));
        let text = refusal.map_or("it gave no reason that can be read", |refusal| refusal.text);
        // The text goes to a terminal or a log.
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        let text = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        HandshakeError::RefusedByOther { kind, text }
    }

    fn check(
        &self,
        frame: &Frame,
        wall: Time,
        known: impl FnOnce(NodeId) -> Option<Known>,
    ) -> Result<Agreed, Refusal> {
        let local = &self.local;
        // Before the rest, which another version may have changed.
        let theirs: Versions = minicbor::decode(&frame.payload).map_err(|_| Refusal::Malformed)?;
        let version = theirs.max.min(local.versions.max);
        if version < theirs.min.max(local.versions.min) {
            return Err(Refusal::Version { sender: theirs, receiver: local.versions });
        }
        let hello: Hello = minicbor::decode(&frame.payload).map_err(|_| Refusal::Malformed)?;
        let role = hello.role().ok_or(Refusal::Malformed)?;
        let limits = Limits {
            payload_bytes_max: hello.payload_bytes_max,
            requests_max: hello.requests_max,
            request_bytes_max: hello.request_bytes_max,
        };
        if !limits.are_valid() {
            return Err(Refusal::Malformed);
        }
        let cluster = hello.cluster.map(|cluster| ClusterId(u128::from_be_bytes(cluster.into())));
        let (sender, receiver) = (role, local.role);
        if (sender, self.side) == (Role::Client, Side::Dialed) {
            return Err(Refusal::NoNode);
        }
        // A client that knows no cluster takes any.
        if let (Some(theirs), Some(ours)) = (cluster, local.cluster)
            && theirs != ours
        {
            return Err(Refusal::Cluster { sender, senders: theirs, receiver, receivers: ours });
        }
        let both_peers = matches!((sender, receiver), (Role::Peer { .. }, Role::Peer { .. }));
        if both_peers && (cluster.is_none() || local.cluster.is_none()) {
            return Err(Refusal::Malformed);
        }
        let (theirs, ours) = (frame.head.origin.incarnation, local.origin.incarnation);
        let any = !both_peers && (theirs.0 == 0 || ours.0 == 0);
        if theirs != ours && !any {
            return Err(Refusal::Incarnation { sender, senders: theirs.0, receiver, receivers: ours.0 });
        }
        let order = match (sender, receiver) {
            (Role::Peer { node, .. }, Role::Peer { node: own, .. }) if own > node => self.number,
            (Role::Peer { .. }, Role::Peer { .. }) => hello.connection,
            _ => 0,
        };
        let mut replaces = false;
        if let Role::Peer { node, .. } = role {
            if let Some(expected) = self.expected.filter(|expected| *expected != node) {
                return Err(Refusal::OtherNode { expected, found: node });
            }
            replaces = self.check_peer(role, frame.head.origin.life, order, known)?;
            let difference = hello.time.since(wall).max(wall.since(hello.time));
            if both_peers && difference > local.clock_difference_max {
                return Err(Refusal::Clock {
                    sender,
                    ahead: hello.time > wall,
                    receiver,
                    difference,
                    max: local.clock_difference_max,
                });
            }
        }
        Ok(Agreed {
            version,
            cluster: cluster.or(local.cluster),
            role,
            origin: frame.head.origin,
            limits: limits.lowered_to(local.limits_of(role)),
            replaces,
            order,
        })
    }

    /// Checks that no other process has the node's number, and returns whether the connection replaces another one.
    fn check_peer(
        &self,
        sender: Role,
        life: Life,
        order: u64,
        known: impl FnOnce(NodeId) -> Option<Known>,
    ) -> Result<bool, Refusal> {
        let (
            Role::Peer { node, directory, process },
            Role::Peer { node: own, directory: own_directory, process: own_process },
        ) = (sender, self.local.role)
        else {
            return Ok(false);
        };
        if node == own {
            return Err(if (directory, process) == (own_directory, own_process) {
                Refusal::Itself { node }
            } else if directory == own_directory {
                Refusal::Copied { node }
            } else {
                Refusal::Duplicate { node }
            });
        }
        let Some(known) = known(node) else { return Ok(false) };
        if known.directory != directory {
            // Without a connection, it may be the node's new directory after the loss of the known one.
            return if known.connected.is_some() { Err(Refusal::Duplicate { node }) } else { Ok(false) };
        }
        if life < known.life {
            return Err(Refusal::OlderLife { node, life, newer: known.life });
        }
        // Each start of a process begins a life.
        if life == known.life && process != known.process {
            return Err(Refusal::Copied { node });
        }
        let Some(connected) = known.connected else { return Ok(false) };
        // A later life holds the lock of its data directory, which proves that the earlier one has ended.
        if life > known.life || order > connected { Ok(true) } else { Err(Refusal::Connected { node }) }
    }
}

/// The kinds of refusals, as the other end gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalKind {
    /// The first frame cannot be read, or is not a first one.
    Malformed = 1,
    /// No version of the protocol is common.
    Version = 2,
    /// Different clusters or incarnations.
    Cluster = 3,
    /// Another process has the node's number, or another node was expected.
    Identity = 4,
    /// There is a connection already: keep that one.
    Connected = 5,
    /// The clocks differ.
    Clock = 6,
    /// There are too many connections: try again later.
    Full = 7,
    /// A later life of the same node is or was connected.
    OlderLife = 8,
}

impl RefusalKind {
    /// Returns `Malformed` for a reason of a later version.
    const fn from_byte(byte: u8) -> Self {
        match byte {
            2 => Self::Version,
            3 => Self::Cluster,
            4 => Self::Identity,
            5 => Self::Connected,
            6 => Self::Clock,
            7 => Self::Full,
            8 => Self::OlderLife,
            _ => Self::Malformed,
        }
    }
}

/// Reasons for which an end refuses a connection. The *sender* is the end whose hello was checked, the *receiver* the
/// one that checked it. The texts are the same at both ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The hello cannot be read, or contradicts itself.
    #[error("the first frame is no valid hello; run the same version of Stead at both ends")]
    Malformed,
    /// The first frame is of another kind.
    #[error("the first frame is a {kind} frame instead of a hello; report this as a bug of its sender")]
    Order {
        /// Its kind.
        kind: Kind,
    },
    /// No version is common.
    #[error(
        "one end speaks version {sender} of the protocol and the other one version {receiver}; upgrade the end \
         whose newest version is {}",
        sender.max.min(receiver.max)
    )]
    Version {
        /// The sender's versions.
        sender: Versions,
        /// The receiver's versions.
        receiver: Versions,
    },
    /// There are as many clients as the node takes.
    #[error("{clients} clients are connected, as many as the node takes; connect again later, or close some")]
    Full {
        /// The clients.
        clients: usize,
    },
    /// A client answered at the dialed address.
    #[error("the dialed address belongs to a client; dial the address of a node")]
    NoNode,
    /// Two clusters meet.
    #[error(
        "{sender} belongs to cluster {senders}, and {receiver} to cluster {receivers}; use the addresses of one \
         cluster's nodes: one that is started with an empty directory and no address to join founds a cluster of its own"
    )]
    Cluster {
        /// The sender.
        sender: Role,
        /// Its cluster.
        senders: ClusterId,
        /// The receiver.
        receiver: Role,
        /// Its cluster.
        receivers: ClusterId,
    },
    /// One of the ends is from before a restore of the cluster, or from after another one.
    #[error(
        "{sender} belongs to incarnation {senders} of the cluster, and {receiver} to incarnation {receivers}: the \
         cluster was restored in between; start the end of incarnation {} again, a node after its data directory was \
         moved away",
        senders.min(receivers)
    )]
    Incarnation {
        /// The sender.
        sender: Role,
        /// Its incarnation.
        senders: u64,
        /// The receiver.
        receiver: Role,
        /// Its incarnation.
        receivers: u64,
    },
    /// Another node answered than the one that was dialed.
    #[error(
        "node {found} answered at the address of node {expected}; correct the address of node {expected}"
    )]
    OtherNode {
        /// The dialed node.
        expected: NodeId,
        /// The one that answered.
        found: NodeId,
    },
    /// A node dialed itself.
    #[error("node {node} dialed itself; give it the addresses of other nodes")]
    Itself {
        /// The node.
        node: NodeId,
    },
    /// Two data directories have the same node's number.
    #[error(
        "two running processes are node {node}, with different data directories; stop the one that should not be, and \
         let it join as a node of its own with an empty data directory"
    )]
    Duplicate {
        /// The node.
        node: NodeId,
    },
    /// Two processes of a node have the same data directory, or one has a copy of it.
    #[error(
        "two processes are node {node}, with copies of one data directory; stop the one that should not be, and delete \
         its data directory"
    )]
    Copied {
        /// The node.
        node: NodeId,
    },
    /// A later life of the node is or was connected.
    #[error(
        "life {life} of node {node} is over: its life {newer} has connected; stop this process and delete its data \
         directory, which is a copy or an older state of the node's; if there is no newer one, let it join as a new node \
         with an empty directory"
    )]
    OlderLife {
        /// The node.
        node: NodeId,
        /// The refused life.
        life: Life,
        /// The life that has connected.
        newer: Life,
    },
    /// Both nodes dialed, and the other connection is the later one.
    #[error("there is a connection to node {node} already; use that one, and dial again if it closes")]
    Connected {
        /// The node.
        node: NodeId,
    },
    /// The wall clocks differ too much.
    #[error(
        "the clock of {sender} is {} s {} that of {receiver}, and {} s are allowed; set the clocks of both machines, \
         best by NTP, then connect again",
        difference.0 / 1_000_000,
        if *ahead { "ahead of" } else { "behind" },
        max.0 / 1_000_000
    )]
    Clock {
        /// The sender.
        sender: Role,
        /// Whether its clock is ahead.
        ahead: bool,
        /// The receiver.
        receiver: Role,
        /// The difference.
        difference: Micros,
        /// The limit.
        max: Micros,
    },
}

impl Refusal {
    /// Returns its kind.
    #[must_use]
    pub const fn kind(&self) -> RefusalKind {
        match self {
            Self::Malformed | Self::Order { .. } => RefusalKind::Malformed,
            Self::Version { .. } => RefusalKind::Version,
            Self::Cluster { .. } | Self::Incarnation { .. } => RefusalKind::Cluster,
            Self::NoNode
            | Self::OtherNode { .. }
            | Self::Itself { .. }
            | Self::Duplicate { .. }
            | Self::Copied { .. } => RefusalKind::Identity,
            Self::OlderLife { .. } => RefusalKind::OlderLife,
            Self::Connected { .. } => RefusalKind::Connected,
            Self::Clock { .. } => RefusalKind::Clock,
            Self::Full { .. } => RefusalKind::Full,
        }
    }
}

/// Reasons for which a handshake ends without a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// This end refuses the other one.
    #[error("refused a connection: {0}")]
    Refused(Refusal),
    /// The other end refuses this one.
    #[error("the other end refused the connection: {text}")]
    RefusedByOther {
        /// The kind of refusal.
        kind: RefusalKind,
        /// The other end's text, without control characters.
        text: String,
    },
}

impl HandshakeError {
    /// Returns the kind of the refusal.
    #[must_use]
    pub const fn kind(&self) -> RefusalKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::RefusedByOther { kind, .. } => *kind,
        }
    }
}
