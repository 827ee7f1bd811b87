//! The commands of the control plane, and their outcomes.
//!
//! Encoded with a version in front; bytes of another version, or damaged ones, give an error.

use super::dial::{Dial, DialError};
use super::failover::Cause;
use super::node::{DiskState, StartId};
use super::shard::ShardRecord;
use super::{Cluster, Secret};
use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Life, NodeId, ReplicaId, ServiceId, ShardId, Time};
use crate::replication::history::{Takeover, TakeoverError};
use crate::replication::table::LogPoint;
use minicbor::{Decode, Encode};
use thiserror::Error;

/// The version of the encoding of commands and outcomes.
const VERSION: u8 = 1;

/// A command, to be applied in the same order on each voter. Its conditions are checked where it is applied.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Founds the cluster: the first command of all. Refused if there is one.
    #[n(0)]
    Found {
        /// The cluster.
        #[n(0)]
        cluster: Cluster,
        /// Its secret, drawn at random; `None` of an older version.
        #[n(1)]
        secret: Option<Secret>,
    },
    /// A node joins. Refused unless its number is the next one.
    #[n(1)]
    Join {
        /// The number that it gets: [`super::ControlState::next_node`] when it was decided.
        #[n(0)]
        node: NodeId,
        /// The life of its process.
        #[n(1)]
        life: Life,
        /// The number of its start.
        #[n(2)]
        start: StartId,
        /// Its addresses.
        #[n(3)]
        addresses: Vec<String>,
    },
    /// A node that joined before has started again. Refused unless `expected` is its registered start.
    #[n(2)]
    Start {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// Its registered start when it was decided: whether the disk is believed depends on it.
        #[n(1)]
        expected: StartId,
        /// The life that began.
        #[n(2)]
        life: Life,
        /// The number of that start.
        #[n(3)]
        start: StartId,
        /// The state of its disk. A life that is not above the registered one shows that the disk is an older copy (rule 3):
        /// that is [`DiskState::Lost`], whatever the node says.
        #[n(4)]
        disk: DiskState,
        /// Its addresses.
        #[n(5)]
        addresses: Vec<String>,
    },
    /// A life of a node's process is proven dead: by its parent, which reaped it, or by an operator's word. A closed connection
    /// proves nothing.
    #[n(3)]
    ProveDead {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// The life, and with it all before.
        #[n(1)]
        life: Life,
    },
    /// A node is to be removed: its replicas move away first.
    #[n(4)]
    Leave {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// A node has left. Refused as long as replicas are placed on it that are not released. Its number is never used again.
    #[n(5)]
    Remove {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// A service begins. Refused if one has its name.
    #[n(6)]
    CreateService {
        /// Its name.
        #[n(0)]
        name: String,
        /// Its dial.
        #[n(1)]
        dial: Dial,
        /// By shard, how it starts.
        #[n(2)]
        shards: Vec<ShardStart>,
    },
    /// The dial of a service changes: its shards follow by new epochs. Refused unless `expected` is the current one.
    #[n(7)]
    SetDial {
        /// The service.
        #[n(0)]
        service: ServiceId,
        /// Its dial when it was decided.
        #[n(1)]
        expected: Dial,
        /// The new dial.
        #[n(2)]
        dial: Dial,
    },
    /// Shards are to be moved until each node has its share, or they are: then the moving stops.
    #[n(8)]
    SetBalancing {
        /// Whether they are to be moved.
        #[n(0)]
        is_balancing: bool,
    },
    /// Changes of shards. Each has conditions of its own: one that is refused refuses no other (rule 25).
    #[n(9)]
    Shards(#[n(0)] Vec<ShardCommand>),
}

/// The start of a new shard.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShardStart {
    /// It begins empty.
    #[n(0)]
    New {
        /// The nodes of its first replicas; the first one leads. Each at most once.
        #[n(0)]
        nodes: Vec<NodeId>,
    },
    /// A node has led it so far, without a control plane. Its replica becomes [`ReplicaId::FIRST`].
    #[n(1)]
    Adopted {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// The last entry of its log.
        #[n(1)]
        last: LogPoint,
        /// The epoch to begin, above all that the node has promised.
        #[n(2)]
        epoch: Epoch,
    },
}

/// A change of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardCommand {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The change.
    #[n(1)]
    pub change: ShardChange,
}

impl ShardCommand {
    /// Greatest number of bytes of all changes of a command. What is left is for the version, the kind and the number of changes.
    pub const BYTES_MAX: usize = Command::BYTES_MAX - 64;

    /// Returns the number of its bytes in a command.
    #[must_use]
    pub fn bytes(&self) -> usize {
        minicbor::to_vec(self).expect("writing to a Vec never fails").len()
    }
}

/// A change of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShardChange {
    /// An epoch begins (rule 9). Refused unless the seals suffice and the members are placed.
    #[n(0)]
    TakeOver {
        /// The epoch with its evidence.
        #[n(0)]
        takeover: Takeover,
        /// The reason.
        #[n(1)]
        cause: Cause,
        /// The time at which it was noticed, by the sender's wall clock.
        #[n(2)]
        noticed: Time,
        /// An operator wants to go on although too few members are left (rule 14).
        #[n(3)]
        is_forced: bool,
    },
    /// An epoch is active: its primary has seen its start entry committed, or a member has.
    #[n(1)]
    Active {
        /// The epoch.
        #[n(0)]
        epoch: Epoch,
        /// The time, by the sender's wall clock.
        #[n(1)]
        at: Time,
    },
    /// A replica is placed on a node, where it catches up. Refused unless its number is the next one, and the node has none.
    #[n(2)]
    Place {
        /// The number that it gets: [`super::shard::ShardRecord::next_replica`] when it was decided.
        #[n(0)]
        replica: ReplicaId,
        /// The node.
        #[n(1)]
        node: NodeId,
    },
    /// The data of a replica are to be deleted. Refused as long as an epoch that matters names it (rule 5).
    #[n(3)]
    Release {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// The data of a released replica are deleted, or gone with their disk.
    #[n(4)]
    Deleted {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// A replica is void: it lacks what it acknowledged, holds what was given up, or is damaged (rule 3). Refused for one that is the
    /// only one.
    #[n(5)]
    Void {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
}

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// It was applied, or had been before.
    #[n(0)]
    Done,
    /// It changed nothing.
    #[n(1)]
    Refused(#[n(0)] Refusal),
    /// By change of [`Command::Shards`], the reason for which it changed nothing; `None` if it was applied.
    #[n(2)]
    Shards(#[n(0)] Vec<Option<Refusal>>),
}

/// Reasons for which a command changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Encode, Decode)]
pub enum Refusal {
    /// There is no cluster yet.
    #[error("the cluster was not founded yet; found it first")]
    #[n(0)]
    NotFounded,
    /// There is a cluster already.
    #[error("the cluster was founded before; join it instead")]
    #[n(1)]
    Founded,
    /// The state on which it was decided has changed meanwhile.
    #[error("the state changed meanwhile; look at it again")]
    #[n(2)]
    Outdated,
    /// A node is unknown, or was removed.
    #[error(
        "there is no node {node}: it never joined, or was removed; join it as a new one, with an empty directory"
    )]
    #[n(3)]
    NoNode {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// The cluster has the maximum number of nodes.
    #[error("the cluster has {max} nodes already, which is the limit", max = super::ControlState::NODES_MAX)]
    #[n(4)]
    TooManyNodes,
    /// The addresses of a node are none, too many, empty or too long.
    #[error("a node has 1 to {max} addresses, each of 1 to {bytes} bytes",
        max = super::node::NodeRecord::ADDRESSES_MAX, bytes = super::node::NodeRecord::ADDRESS_BYTES_MAX)]
    #[n(5)]
    Addresses,
    /// A node has replicas that would be missed.
    #[error("node {node} still has {replicas} replicas; wait until they have moved")]
    #[n(6)]
    HasReplicas {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// Their number.
        #[n(1)]
        replicas: u32,
    },
    /// A service's name or number of shards is invalid, or one has its name.
    #[error("{reason}")]
    #[n(7)]
    Service {
        /// The reason, with the next step.
        #[n(0)]
        reason: String,
    },
    /// There is no such service.
    #[error("there is no such service; create it first")]
    #[n(8)]
    NoService,
    /// A dial is impossible.
    #[error("{0}")]
    #[n(9)]
    Dial(#[n(0)] DialError),
    /// There are fewer nodes than replicas.
    #[error(
        "{replicas} replicas need {replicas} nodes, and there are {nodes}; join more nodes, or ask for fewer replicas"
    )]
    #[n(10)]
    TooFewNodes {
        /// The replicas.
        #[n(0)]
        replicas: u8,
        /// The nodes.
        #[n(1)]
        nodes: u32,
    },
    /// The start of a shard names no nodes, too many, or one twice; or an epoch that is not above its log.
    #[error("a shard starts on 1 to {max} nodes, each named once, with an epoch above its log", max = EpochConfig::MEMBERS_MAX)]
    #[n(11)]
    Start,
    /// There is no such shard.
    #[error("there is no shard {shard}; list the services to see those that exist")]
    #[n(12)]
    NoShard {
        /// The shard.
        #[n(0)]
        shard: ShardId,
    },
    /// An epoch cannot begin.
    #[error("{0}")]
    #[n(13)]
    TakeOver(#[n(0)] TakeoverError),
    /// A replica is not placed, was released, or is on a disk that is gone.
    #[error("replica {replica} is not a replica that may take part; choose others")]
    #[n(14)]
    NoReplica {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// Two members would be on one node.
    #[error("two members would be on node {node}; put each on a node of its own")]
    #[n(15)]
    SameNode {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// The process of the primary is in another life by now.
    #[error("the process of the new primary has restarted meanwhile; seal again")]
    #[n(16)]
    OtherLife,
    /// Until an epoch is active, the members of the next one are chosen from those of the last active one (rule 12).
    #[error("replica {replica} is no member of the last active epoch; wait until the newest one is active")]
    #[n(17)]
    Unsettled {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// An epoch is not recorded.
    #[error(
        "epoch {epoch} is not recorded; the report is of another cluster, or the records are older than the shard"
    )]
    #[n(18)]
    NoEpoch {
        /// The epoch.
        #[n(0)]
        epoch: Epoch,
    },
    /// A replica is on that node already.
    #[error("node {node} has a replica of the shard; choose another one")]
    #[n(19)]
    HasReplica {
        /// The node.
        #[n(0)]
        node: NodeId,
    },
    /// An epoch that matters names the replica.
    #[error("replica {replica} may still be needed; wait until an epoch without it is active")]
    #[n(20)]
    Named {
        /// The replica.
        #[n(0)]
        replica: ReplicaId,
    },
    /// The greatest number is given.
    #[error("there are no more numbers to give")]
    #[n(21)]
    NoNumbers,
    /// A shard has the maximum number of replicas.
    #[error(
        "the shard has {} replicas already, which is the limit; wait until released ones are deleted",
        ShardRecord::REPLICAS_MAX
    )]
    #[n(22)]
    TooManyReplicas,
    /// No member of the shard's newest epoch is on the node.
    #[error(
        "no member of shard {shard} is on node {node}; choose a node of the shard, which the status lists"
    )]
    #[n(23)]
    NotMember {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// The node.
        #[n(1)]
        node: NodeId,
    },
}

/// Bytes that are not a command, an outcome or a state.
#[derive(Debug, Error)]
pub enum InvalidBytes {
    /// They are of another version.
    #[error("version {version} is unknown; run the same version of stead on all nodes")]
    Version {
        /// Their version.
        version: u8,
    },
    /// They are damaged.
    #[error("invalid bytes of the control plane: {0}; they are damaged, or of another version")]
    Damaged(#[from] minicbor::decode::Error),
    /// They contradict themselves.
    #[error(transparent)]
    Contradiction(#[from] super::Violation),
}

/// Encodes a value behind a version.
pub(super) fn encode_version<T: Encode<()>>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    minicbor::encode(value, &mut bytes).expect("writing to a Vec never fails");
    bytes
}

/// Decodes a value that fills the bytes behind a version.
pub(super) fn decode_version<'b, T: Decode<'b, ()>>(version: u8, bytes: &'b [u8]) -> Result<T, InvalidBytes> {
    match bytes.split_first() {
        Some((found, value)) if *found == version => Ok(crate::record::decode_value(value)?),
        Some((found, _)) => Err(InvalidBytes::Version { version: *found }),
        None => Err(InvalidBytes::Damaged(minicbor::decode::Error::end_of_input())),
    }
}

impl Command {
    /// Changes that one command has at most.
    pub const CHANGES_MAX: usize = 512;
    /// Greatest number of bytes of a command: no longer one is proposed.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Returns the commands that make these changes, as few as their bounds allow. None of the changes is longer than
    /// [`ShardCommand::BYTES_MAX`].
    #[must_use]
    pub fn of_changes(changes: Vec<ShardCommand>) -> Vec<Self> {
        let mut commands = Vec::new();
        let (mut together, mut bytes) = (Vec::new(), 0);
        for change in changes {
            let len = change.bytes();
            if together.len() >= Self::CHANGES_MAX || bytes + len > ShardCommand::BYTES_MAX {
                commands.push(Self::Shards(std::mem::take(&mut together)));
                bytes = 0;
            }
            bytes += len;
            together.push(change);
        }
        if !together.is_empty() {
            commands.push(Self::Shards(together));
        }
        commands
    }

    /// Returns the command's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_version(VERSION, self)
    }

    /// Decodes a command that fills the bytes.
    ///
    /// # Errors
    /// [`InvalidBytes`] if they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        decode_version(VERSION, bytes)
    }
}

impl Outcome {
    /// Returns the outcome's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_version(VERSION, self)
    }

    /// Decodes an outcome that fills the bytes.
    ///
    /// # Errors
    /// [`InvalidBytes`] if they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        decode_version(VERSION, bytes)
    }
}
