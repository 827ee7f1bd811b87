//! The inputs of the controller, and its requests: both go between nodes as bytes, with a version in front.

use super::command::{Command, InvalidBytes, decode_version, encode_version};
use super::node::{DiskState, StartId};
use crate::ids::{Epoch, Life, Micros, NodeId, ReplicaId, ShardId};
use crate::replication::epoch::{EpochRecord, Seal, SealAnswer};
use minicbor::{Decode, Encode};

/// The version of the encoding of facts and requests.
const VERSION: u8 = 1;

/// A node's view of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerReport {
    /// The peer.
    #[n(0)]
    pub node: NodeId,
    /// The time since it was heard.
    #[n(1)]
    pub silent: Micros,
    /// Whether there is no connection to it.
    #[n(2)]
    pub is_closed: bool,
}

/// A node's report on one of its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardReport {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The replica.
    #[n(1)]
    pub replica: ReplicaId,
    /// It takes part in no epoch below this one. A seal shows here until a record is seen (rule 8).
    #[n(2)]
    pub promised: Epoch,
    /// The highest epoch that it knows to be active.
    #[n(3)]
    pub active: Epoch,
    /// The epoch that it leads.
    #[n(4)]
    pub leads: Option<Epoch>,
    /// The learners to which it sends its log, while it leads.
    #[n(5)]
    pub learners: Vec<ReplicaId>,
    /// Those of them that hold its log but for what is on its way.
    #[n(6)]
    pub caught_up: Vec<ReplicaId>,
    /// The lag that it allows its backups in an epoch that answers early, while it leads.
    #[n(7)]
    pub max_lag: Option<Micros>,
}

/// A node's report. It is sent at an interval, and at once when a connection to a peer closes, an epoch becomes active or a promise
/// is made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeReport {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// The number of its start. A report counts once the start is registered.
    #[n(1)]
    pub start: StartId,
    /// The longest time for which the node's write path has made no progress: a batch is not synced, or a worker is stuck in a turn.
    /// Heartbeats do not pass there, so that only this shows a hung disk.
    #[n(2)]
    pub stalled: Micros,
    /// All peers.
    #[n(3)]
    pub peers: Vec<PeerReport>,
    /// The replicas on which there is something new; all of them for a controller that is new, and from time to time.
    #[n(4)]
    pub shards: Vec<ShardReport>,
    /// The number of the first shards that the node knows: those of services that were added after its start are not among them.
    /// `None` of an older version, which does not say.
    #[n(5)]
    pub shards_known: Option<u32>,
}

/// A node that has started, as it introduces itself. It repeats that until the state has its start.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The number that its directory has; `None` for one that joins.
    #[n(0)]
    pub node: Option<NodeId>,
    /// The life of its process.
    #[n(1)]
    pub life: Life,
    /// The number of this start.
    #[n(2)]
    pub start: StartId,
    /// The state of its disk.
    #[n(3)]
    pub disk: DiskState,
    /// Its addresses.
    #[n(4)]
    pub addresses: Vec<String>,
    /// The starts on its disk before this one, from the last one on that it knows to be registered: if the registered start is none of
    /// them, the disk is an older copy or another one. Empty if the disk has counted lives only, or nothing yet.
    #[n(5)]
    pub earlier: Vec<StartId>,
}

impl Hello {
    /// Greatest number of earlier starts. A disk that has seen more forgets some between the first and the newest ones, so that the
    /// worst that can happen is that its replicas are taken for lost.
    pub const EARLIER_MAX: usize = 256;
}

/// News for the controller. All may come late, twice or never.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Fact {
    /// A node introduces itself.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// A report.
    #[n(1)]
    Report(#[n(0)] NodeReport),
    /// The connection to a node closed.
    #[n(2)]
    Closed(#[n(0)] NodeId),
    /// Nothing listens at a node's address: its process has ended. That proves nothing for a lease.
    #[n(3)]
    Refused(#[n(0)] NodeId),
    /// A life of a node's process is proven dead: its parent reaped it, or an operator says so.
    #[n(4)]
    Dead(#[n(0)] NodeId, #[n(1)] Life),
    /// The answer to a seal.
    #[n(5)]
    Sealed(#[n(0)] ShardId, #[n(1)] SealAnswer),
    /// A replica refused a seal, for it promised a higher epoch.
    #[n(6)]
    Superseded {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// Its promise.
        #[n(1)]
        promised: Epoch,
    },
    /// A replica cannot lead an epoch.
    #[n(7)]
    CannotLead {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// The epoch.
        #[n(1)]
        epoch: Epoch,
    },
    /// The data of a replica are deleted.
    #[n(8)]
    Deleted(#[n(0)] ShardId, #[n(1)] ReplicaId),
    /// A replica lacks what it acknowledged, holds what was given up, or is damaged.
    #[n(9)]
    Void(#[n(0)] ShardId, #[n(1)] ReplicaId),
    /// An operator wants another primary for a shard, or a new epoch under the same one. It changes nothing if the node has no
    /// member: the node that takes the request from the operator checks it by [`ControlState::member_on`](super::ControlState::member_on).
    #[n(10)]
    Failover {
        /// The shard.
        #[n(0)]
        shard: ShardId,
        /// The node of the new primary; `None` for another one than now, if one can lead.
        #[n(1)]
        to: Option<NodeId>,
        /// Whether to go on with too few members, with losses (rule 14).
        #[n(2)]
        is_forced: bool,
    },
}

impl Fact {
    /// Returns the fact's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_version(VERSION, self)
    }

    /// Decodes a fact that fills the bytes.
    ///
    /// # Errors
    /// [`InvalidBytes`] if they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        decode_version(VERSION, bytes)
    }
}

/// A request to the shell.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Propose a command to the consensus. It may be lost, and is then proposed again.
    #[n(0)]
    Propose(#[n(0)] Command),
    /// Connect to a node anew, and ask it for a report at once.
    #[n(1)]
    Ask(#[n(0)] NodeId),
    /// Send seals, as one frame: one batch, one sync, one answer (rule 25).
    #[n(2)]
    Seal {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// The seals, each for a replica of a shard.
        #[n(1)]
        seals: Vec<(ShardId, ReplicaId, Seal)>,
    },
    /// Send the record of an epoch to its primary.
    #[n(3)]
    Lead {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// The shard.
        #[n(1)]
        shard: ShardId,
        /// The record.
        #[n(2)]
        record: Box<EpochRecord>,
        /// Replicas that are no members, and get the log to catch up.
        #[n(3)]
        learners: Vec<ReplicaId>,
        /// The lag that it allows its backups: that of the dial.
        #[n(4)]
        max_lag: Micros,
    },
    /// Order a node to delete the data of a replica, but for the tombstone (rule 5).
    #[n(4)]
    Delete {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// The shard.
        #[n(1)]
        shard: ShardId,
        /// The replica.
        #[n(2)]
        replica: ReplicaId,
    },
}

impl Request {
    /// Returns the request's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_version(VERSION, self)
    }

    /// Decodes a request that fills the bytes.
    ///
    /// # Errors
    /// [`InvalidBytes`] if they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidBytes> {
        decode_version(VERSION, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit_tracker::EpochConfig;
    use crate::ids::Generation;
    use crate::replication::table::{EpochTable, LogPoint, Losses};
    use std::fmt::Debug;

    /// Checks that a value survives, and that no part of its bytes and no other version is one.
    fn check<T: PartialEq + Debug>(value: &T, bytes: &[u8], decode: fn(&[u8]) -> Result<T, InvalidBytes>) {
        assert_eq!(&decode(bytes).unwrap(), value);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{value:?} cut to {len} bytes");
        }
        assert!(matches!(decode(&[bytes, b"\0"].concat()), Err(InvalidBytes::Damaged(_))));
        assert!(matches!(
            decode(&[b"\x02", &bytes[1..]].concat()),
            Err(InvalidBytes::Version { version: 2 })
        ));
    }

    #[test]
    fn facts_survive_encoding_and_nothing_else_decodes() {
        let (shard, replica, node, epoch) = (ShardId(70_000), ReplicaId(3), NodeId(2), Epoch(9));
        let report = ShardReport {
            shard,
            replica,
            promised: epoch,
            active: Epoch(8),
            leads: Some(epoch),
            learners: vec![ReplicaId(4), ReplicaId(5)],
            caught_up: vec![ReplicaId(4)],
            max_lag: Some(Micros(7)),
        };
        let peer = PeerReport { node: NodeId(3), silent: Micros(7), is_closed: true };
        let table = EpochTable::new(LogPoint::default());
        let facts = [
            Fact::Hello(Hello {
                node: None,
                life: Life(1),
                start: StartId(1 << 100),
                disk: DiskState::Doubtful,
                addresses: vec!["one:1".to_owned()],
                earlier: vec![StartId(1 << 99), StartId(3)],
            }),
            Fact::Report(NodeReport {
                node,
                start: StartId(5),
                stalled: Micros(9),
                peers: vec![peer],
                shards: vec![report],
                shards_known: Some(8),
            }),
            Fact::Closed(node),
            Fact::Refused(node),
            Fact::Dead(node, Life(4)),
            Fact::Sealed(
                shard,
                SealAnswer { replica, life: Life(2), epoch, table, active: Epoch(8), is_folding: true },
            ),
            Fact::Superseded { shard, promised: epoch },
            Fact::CannotLead { shard, epoch },
            Fact::Deleted(shard, replica),
            Fact::Void(shard, replica),
            Fact::Failover { shard, to: Some(node), is_forced: true },
        ];
        for fact in facts {
            check(&fact, &fact.encode(), Fact::decode);
        }
    }

    #[test]
    fn requests_survive_encoding_and_nothing_else_decodes() {
        let (shard, replica, node) = (ShardId(7), ReplicaId(3), NodeId(2));
        let record = EpochRecord {
            config: EpochConfig::parse(Epoch(9), vec![replica, ReplicaId(4)], 2, replica).unwrap(),
            life: Life(2),
            lease: Micros(0),
            generation: Generation(0),
            base: LogPoint::default(),
            losses: Losses::default(),
            earlier: [(ReplicaId(4), Life(1))].into(),
        };
        let requests = [
            Request::Propose(Command::Leave { node }),
            Request::Ask(node),
            Request::Seal { node, seals: vec![(shard, replica, Seal { epoch: Epoch(9), lease: Micros(5) })] },
            Request::Lead {
                node,
                shard,
                record: Box::new(record),
                learners: vec![ReplicaId(5)],
                max_lag: Micros(9),
            },
            Request::Delete { node, shard, replica },
        ];
        for request in requests {
            check(&request, &request.encode(), Request::decode);
        }
    }
}
