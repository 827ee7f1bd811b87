//! Targets for the encodings of the control plane, which its log, its snapshots and other nodes hold.

use crate::edits::Source;
use std::fmt::Debug;
use stead_core::commit_tracker::EpochConfig;
use stead_core::control::command::{InvalidBytes, ShardStart};
use stead_core::control::dial::Dial;
use stead_core::control::facts::{Fact, Hello, NodeReport, PeerReport, Request, ShardReport};
use stead_core::control::failover::Cause;
use stead_core::control::node::{DiskState, StartId};
use stead_core::control::{Cluster, Command, ControlState, Outcome, ShardChange, ShardCommand};
use stead_core::ids::{
    ClusterId, Epoch, Incarnation, Index, Life, Micros, NodeId, ReplicaId, ServiceId, ShardId, Time,
};
use stead_core::replication::epoch::{Seal, SealAnswer};
use stead_core::replication::history::Takeover;
use stead_core::replication::table::{EpochTable, LogPoint};

fn survives<T: PartialEq + Debug>(
    data: &[u8],
    decode: fn(&[u8]) -> Result<T, InvalidBytes>,
    encode: fn(&T) -> Vec<u8>,
) {
    if let Ok(value) = decode(data) {
        assert_eq!(decode(&encode(&value)).expect("what was encoded is read"), value);
    }
}

/// A command, an outcome, a fact, a request or a state, as the first byte selects.
pub fn control(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => survives(data, Command::decode, Command::encode),
        1 => survives(data, Outcome::decode, Outcome::encode),
        2 => survives(data, Fact::decode, Fact::encode),
        3 => survives(data, Request::decode, Request::encode),
        _ => survives(data, ControlState::decode, ControlState::encode),
    }
}

/// A log: commands that change a state, which stays whole and survives its stored form.
pub fn commands(data: &[u8]) {
    let mut source = Source::new(data);
    let mut state = ControlState::default();
    while !source.is_empty() {
        let len = usize::from(source.u16());
        let Ok(command) = Command::decode(source.bytes(len)) else { continue };
        let before = state.clone();
        let outcome = state.apply(command);
        state.check().expect("a command leaves no contradiction");
        if matches!(outcome, Outcome::Refused(_)) {
            assert_eq!(state, before, "a refused command changes nothing");
        }
    }
    assert_eq!(ControlState::decode(&state.encode()).expect("what was encoded is read"), state);
}

/// Returns the commands of a cluster of two nodes with a shard that fails over.
pub(crate) fn sample_commands() -> Vec<Command> {
    let join = |node: u32| {
        let (start, addresses) = (StartId(u128::from(node)), vec![format!("n{node}:1")]);
        Command::Join { node: NodeId(node), life: Life(1), start, addresses }
    };
    let (one, two, shard) = (ReplicaId(1), ReplicaId(2), ShardId(0));
    let mut table = EpochTable::default();
    table.push(LogPoint { epoch: Epoch(1), index: Index(1) });
    let seal = |replica| SealAnswer {
        replica,
        life: Life(1),
        epoch: Epoch(2),
        table: table.clone(),
        active: Epoch(1),
        is_folding: false,
    };
    let config = EpochConfig::parse(Epoch(2), vec![one, two], 2, two).expect("a valid configuration");
    let (expected, life, lease, seals) = (Epoch(1), Life(1), Micros(0), vec![seal(one), seal(two)]);
    let takeover = Takeover { expected, config, life, lease, seals };
    let (cause, noticed, is_forced) = (Cause::Silent, Time(5), false);
    let of_shard = |changes: Vec<ShardChange>| {
        Command::Shards(changes.into_iter().map(|change| ShardCommand { shard, change }).collect())
    };
    let dial = Dial { replicas: 2, ..Dial::default() };
    let shards = vec![ShardStart::New { nodes: vec![NodeId(1), NodeId(2)] }];
    vec![
        Command::Found { cluster: Cluster { id: ClusterId(7), incarnation: Incarnation(1) }, secret: None },
        join(1),
        join(2),
        Command::CreateService { name: "bank".to_owned(), dial, shards },
        of_shard(vec![
            ShardChange::Active { epoch: Epoch(1), at: Time(4) },
            ShardChange::TakeOver { takeover, cause, noticed, is_forced },
            ShardChange::Active { epoch: Epoch(2), at: Time(6) },
        ]),
        join(3),
        of_shard(vec![
            ShardChange::Place { replica: ReplicaId(3), node: NodeId(3) },
            ShardChange::Release { replica: ReplicaId(3) },
            ShardChange::Deleted { replica: ReplicaId(3) },
            ShardChange::Void { replica: one },
        ]),
        Command::SetDial { service: ServiceId(0), expected: dial, dial: Dial { replicas: 1, ..dial } },
        Command::Start {
            node: NodeId(3),
            expected: StartId(3),
            life: Life(2),
            start: StartId(9),
            disk: DiskState::Doubtful,
            addresses: vec!["n3:2".to_owned()],
        },
        Command::ProveDead { node: NodeId(3), life: Life(2) },
        Command::Leave { node: NodeId(3) },
        Command::Remove { node: NodeId(3) },
        Command::SetBalancing { is_balancing: false },
    ]
}

/// Returns facts and requests of several kinds.
pub(crate) fn sample_messages() -> (Vec<Fact>, Vec<Request>) {
    let (node, shard, replica) = (NodeId(2), ShardId(0), ReplicaId(1));
    let start = StartId(9);
    let addresses = vec!["n2:1".to_owned()];
    let (disk, earlier) = (DiskState::Whole, vec![StartId(8)]);
    let hello = Hello { node: Some(node), life: Life(2), start, disk, addresses, earlier };
    let peers = vec![PeerReport { node: NodeId(1), silent: Micros(3), is_closed: true }];
    let shards = vec![ShardReport {
        shard,
        replica,
        promised: Epoch(2),
        active: Epoch(1),
        leads: Some(Epoch(2)),
        max_lag: Some(Micros(1_000_000)),
        learners: vec![ReplicaId(3)],
        caught_up: Vec::new(),
    }];
    let report = NodeReport { node, start, stalled: Micros(0), peers, shards, shards_known: None };
    let (life, epoch, table, active) = (Life(1), Epoch(2), EpochTable::default(), Epoch(1));
    let answer = SealAnswer { replica, life, epoch, table, active, is_folding: false };
    let facts = vec![
        Fact::Hello(hello),
        Fact::Report(report),
        Fact::Closed(node),
        Fact::Sealed(shard, answer),
        Fact::Failover { shard, to: Some(node), is_forced: true },
    ];
    let seals = vec![(shard, replica, Seal { epoch, lease: Micros(5) })];
    let requests = vec![
        Request::Propose(Command::Leave { node }),
        Request::Ask(node),
        Request::Seal { node, seals },
        Request::Delete { node, shard, replica },
    ];
    (facts, requests)
}
