//! Tests of the state machine.

use super::command::{Command, Outcome, Refusal, ShardChange, ShardCommand, ShardStart};
use super::dial::{Acks, Dial, DialError, Durability};
use super::directory::Directory;
use super::failover::Cause;
use super::node::{DiskState, StartId};
use super::shard::Stage;
use super::{Cluster, ControlState, Secret};
use crate::commit_tracker::EpochConfig;
use crate::ids::{
    ClusterId, Epoch, Generation, Incarnation, Index, Life, Micros, NodeId, ReplicaId, ServiceId, ShardId,
    Time,
};
use crate::replication::epoch::SealAnswer;
use crate::replication::history::{Takeover, TakeoverError};
use crate::replication::table::{EpochTable, LogPoint};

const SHARD: ShardId = ShardId(0);
const SECRET: Secret = Secret([7; 32]);
const CLUSTER: Cluster = Cluster { id: ClusterId(7), incarnation: Incarnation(1) };

fn join(node: u32) -> Command {
    let addresses = vec![format!("127.0.0.1:{node}")];
    Command::Join { node: NodeId(node), life: Life(1), start: StartId(u128::from(node)), addresses }
}

fn start(node: u32, expected: u64, life: u64, disk: DiskState) -> Command {
    // The first one joined.
    let id = |life: u64| StartId(if life == 1 { 0 } else { u128::from(life) << 64 } | u128::from(node));
    let (expected, start, life) = (id(expected), id(life), Life(life));
    Command::Start { node: NodeId(node), expected, life, start, disk, addresses: vec!["a:1".to_owned()] }
}

/// A founded cluster of so many nodes.
fn cluster(nodes: u32) -> ControlState {
    let mut state = ControlState::default();
    assert_eq!(state.apply(Command::Found { cluster: CLUSTER, secret: Some(SECRET) }), Outcome::Done);
    for node in 1..=nodes {
        assert_eq!(state.apply(join(node)), Outcome::Done);
    }
    state
}

fn dial(replicas: u8, acks: Acks) -> Dial {
    Dial { replicas, acks, ..Dial::default() }
}

/// With a service of one shard on the first nodes; the first one leads.
fn with_service(nodes: u32, dial: Dial) -> ControlState {
    let mut state = cluster(nodes);
    let shards = vec![ShardStart::New { nodes: (1..=u32::from(dial.replicas)).map(NodeId).collect() }];
    assert_eq!(state.apply(Command::CreateService { name: "bank".to_owned(), dial, shards }), Outcome::Done);
    state
}

fn seal(replica: u64, epoch: u64, log: &[u64]) -> SealAnswer {
    let mut table = EpochTable::default();
    for (index, epoch) in (1..).zip(log) {
        table.push(LogPoint { epoch: Epoch(*epoch), index: Index(index) });
    }
    let (replica, epoch) = (ReplicaId(replica), Epoch(epoch));
    SealAnswer { replica, life: Life(1), epoch, table, active: Epoch(0), is_folding: false }
}

/// An epoch that begins behind the one before it; its first member leads.
fn takeover(epoch: u64, members: &[u64], life: u64, seals: Vec<SealAnswer>) -> Takeover {
    let members: Vec<ReplicaId> = members.iter().copied().map(ReplicaId).collect();
    let (acks, primary) = (members.len() / 2 + 1, members[0]);
    let config = EpochConfig::parse(Epoch(epoch), members, acks, primary).unwrap();
    Takeover { expected: Epoch(epoch - 1), config, life: Life(life), lease: Micros(0), seals }
}

fn change(change: ShardChange) -> Command {
    Command::Shards(vec![ShardCommand { shard: SHARD, change }])
}

fn begin(takeover: Takeover) -> ShardChange {
    ShardChange::TakeOver { takeover, cause: Cause::Closed, noticed: Time(100), is_forced: false }
}

fn active(epoch: u64) -> ShardChange {
    ShardChange::Active { epoch: Epoch(epoch), at: Time(350) }
}

/// Applies a change of the shard.
fn apply(state: &mut ControlState, shard_change: ShardChange) -> Result<(), Refusal> {
    let before = state.clone();
    let Outcome::Shards(mut results) = state.apply(change(shard_change)) else { panic!("another outcome") };
    state.check().unwrap();
    let refusal = results.pop().unwrap();
    if refusal.is_some() {
        assert_eq!(*state, before, "a refused change leaves no trace");
    }
    refusal.map_or(Ok(()), Err)
}

#[test]
fn nothing_happens_before_a_cluster_is_founded() {
    let mut state = ControlState::default();
    assert_eq!(state.apply(join(1)), Outcome::Refused(Refusal::NotFounded));
    assert_eq!(state, ControlState::default());
    state.apply(Command::Found { cluster: CLUSTER, secret: None });
    let other = Cluster { id: ClusterId(8), ..CLUSTER };
    assert_eq!(
        state.apply(Command::Found { cluster: other, secret: None }),
        Outcome::Refused(Refusal::Founded)
    );
    assert_eq!(
        state.apply(Command::Found { cluster: CLUSTER, secret: None }),
        Outcome::Done,
        "it came twice"
    );
}

#[test]
fn a_command_that_comes_twice_or_late_changes_nothing_more() {
    let mut state = cluster(2);
    let before = state.clone();
    assert_eq!(state.apply(join(2)), Outcome::Done);
    assert_eq!(state, before);
    let other =
        Command::Join { node: NodeId(2), life: Life(1), start: StartId(9), addresses: vec!["b:1".into()] };
    assert_eq!(state.apply(other), Outcome::Refused(Refusal::Outdated));
    assert_eq!(state, before);

    assert_eq!(state.apply(start(2, 1, 2, DiskState::Whole)), Outcome::Done);
    assert_eq!(state.apply(start(2, 2, 3, DiskState::Whole)), Outcome::Done);
    let before = state.clone();
    assert_eq!(state.apply(start(2, 1, 2, DiskState::Whole)), Outcome::Refused(Refusal::Outdated));
    assert_eq!(state, before, "a late start is not an older disk");
}

#[test]
fn a_disk_whose_lives_are_counted_anew_is_a_new_one() {
    let mut state = with_service(3, dial(3, Acks::Majority));
    state.apply(start(2, 1, 5, DiskState::Whole));
    let shard = state.shard(SHARD).unwrap().clone();
    let placed = shard.replicas()[&ReplicaId(2)];
    assert!(!state.is_lost(&placed) && state.is_dead(&shard, ReplicaId(2), Life(4)));
    // An image that was taken in life 2.
    state.apply(start(2, 5, 3, DiskState::Whole));
    assert!(state.is_lost(&placed) && !state.is_dead(&shard, ReplicaId(2), Life(4)));
    let seals = vec![seal(2, 2, &[1]), seal(3, 2, &[1])];
    let lost = Refusal::NoReplica { replica: ReplicaId(2) };
    assert_eq!(apply(&mut state, begin(takeover(2, &[3], 1, seals))), Err(lost), "its seal is worth nothing");
    // It comes back as another replica.
    let place = ShardChange::Place { replica: ReplicaId(4), node: NodeId(2) };
    assert_eq!(apply(&mut state, place.clone()), Ok(()));
    assert_eq!(apply(&mut state, place), Err(Refusal::Outdated));
}

#[test]
fn a_takeover_is_recorded_with_what_it_cost() {
    let mut state = with_service(3, dial(3, Acks::Majority));
    let wrong = takeover(2, &[2, 1, 3], 1, vec![seal(2, 2, &[1])]);
    let too_few = TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 1, needed: 2 };
    assert_eq!(apply(&mut state, begin(wrong)), Err(Refusal::TakeOver(too_few)));
    let right = takeover(2, &[2, 1, 3], 1, vec![seal(2, 2, &[1, 1]), seal(3, 2, &[1])]);
    let late = Takeover { life: Life(2), ..right.clone() };
    assert_eq!(apply(&mut state, begin(late)), Err(Refusal::OtherLife));
    assert_eq!(apply(&mut state, begin(right.clone())), Ok(()));
    assert!(matches!(
        apply(&mut state, begin(right)),
        Err(Refusal::TakeOver(TakeoverError::Overtaken { .. }))
    ));
    assert!(!state.shard(SHARD).unwrap().is_settled());
    assert_eq!(apply(&mut state, active(3)), Err(Refusal::NoEpoch { epoch: Epoch(3) }));
    assert_eq!(apply(&mut state, active(2)), Ok(()));
    assert!(state.shard(SHARD).unwrap().is_settled());
    let failover = state.failovers().back().unwrap();
    assert_eq!((failover.from, failover.to), (Some(NodeId(1)), NodeId(2)));
    assert_eq!((failover.duration, &failover.losses[..]), (Some(Micros(250)), &[][..]));
}

#[test]
fn what_may_be_lost_is_in_the_history_of_failovers() {
    let mut state = with_service(3, dial(3, Acks::Count(1)));
    let is_dead = |state: &ControlState| state.is_dead(state.shard(SHARD).unwrap(), ReplicaId(1), Life(1));
    assert!(!is_dead(&state));
    let early = takeover(2, &[2, 3], 1, vec![seal(2, 2, &[1, 1]), seal(3, 2, &[1])]);
    assert_eq!(apply(&mut state, begin(early)), Ok(()));
    let loss = LogPoint { epoch: Epoch(1), index: Index(2) };
    assert_eq!(state.failovers().back().unwrap().losses, [loss]);
    state.apply(Command::ProveDead { node: NodeId(1), life: Life(1) });
    assert!(is_dead(&state));
}

#[test]
fn until_an_epoch_is_active_the_next_one_takes_members_of_the_last_active_one() {
    let mut state = with_service(4, dial(3, Acks::Majority));
    apply(&mut state, active(1)).unwrap();
    apply(&mut state, ShardChange::Place { replica: ReplicaId(4), node: NodeId(4) }).unwrap();
    let seals = |epoch| vec![seal(1, epoch, &[1]), seal(2, epoch, &[1]), seal(4, epoch, &[1])];
    apply(&mut state, begin(takeover(2, &[1, 2, 4], 1, seals(2)))).unwrap();
    // Epoch 2 is not active: replica 4 holds nothing for sure.
    let again = takeover(3, &[2, 4], 1, seals(3));
    assert_eq!(apply(&mut state, begin(again)), Err(Refusal::Unsettled { replica: ReplicaId(4) }));
    assert_eq!(apply(&mut state, begin(takeover(3, &[2, 3], 1, seals(3)))), Ok(()));
    // An answer attests that epoch 3 is active.
    let mut attests = vec![seal(2, 4, &[1, 3]), seal(3, 4, &[1, 3]), seal(4, 4, &[1])];
    attests[0].active = Epoch(3);
    assert_eq!(apply(&mut state, begin(takeover(4, &[2, 4], 1, attests))), Ok(()));
    assert_eq!(state.shard(SHARD).unwrap().active(), Epoch(3));
}

#[test]
fn members_of_an_epoch_that_is_not_active_go_on_if_none_of_the_last_active_one_can_lead() {
    let mut state = with_service(4, dial(1, Acks::Majority));
    apply(&mut state, active(1)).unwrap();
    for replica in 2..=4 {
        let node = NodeId(replica as u32);
        apply(&mut state, ShardChange::Place { replica: ReplicaId(replica), node }).unwrap();
    }
    apply(&mut state, begin(takeover(2, &[1, 2, 3], 1, vec![seal(1, 2, &[1])]))).unwrap();
    // Its start entry is on replicas 2 and 3, which may have committed it; replica 1, which led, lost it with its unsynced tail.
    let seals = || vec![seal(1, 3, &[1]), seal(2, 3, &[1, 2]), seal(3, 3, &[1, 2])];
    let other = Err(Refusal::Unsettled { replica: ReplicaId(2) });
    assert_eq!(apply(&mut state, begin(takeover(3, &[2, 3, 4], 1, seals()))), other, "4 was in no epoch");
    let led_by_1 = vec![seal(1, 3, &[1, 2]), seal(2, 3, &[1, 2]), seal(3, 3, &[1, 2])];
    assert_eq!(apply(&mut state, begin(takeover(3, &[2, 3], 1, led_by_1))), other, "1 could lead");
    assert_eq!(apply(&mut state, begin(takeover(3, &[2, 1, 3], 1, seals()))), Ok(()));
}

#[test]
fn data_are_deleted_only_when_an_epoch_without_the_replica_is_recorded_active() {
    let mut state = with_service(4, dial(3, Acks::Majority));
    apply(&mut state, active(1)).unwrap();
    let release = ShardChange::Release { replica: ReplicaId(3) };
    let named = Err(Refusal::Named { replica: ReplicaId(3) });
    assert_eq!(apply(&mut state, release.clone()), named);
    let seals = vec![seal(1, 2, &[1]), seal(2, 2, &[1])];
    apply(&mut state, begin(takeover(2, &[1, 2], 1, seals))).unwrap();
    assert_eq!(apply(&mut state, release.clone()), named, "epoch 2 may never become active");
    apply(&mut state, active(2)).unwrap();
    assert_eq!(apply(&mut state, ShardChange::Deleted { replica: ReplicaId(3) }), named);
    assert_eq!(apply(&mut state, release), Ok(()));
    assert_eq!(state.shard(SHARD).unwrap().replicas()[&ReplicaId(3)].stage, Stage::Released);
    let back = takeover(3, &[1, 3], 1, vec![seal(1, 3, &[1, 2]), seal(2, 3, &[1, 2])]);
    let gone = Refusal::NoReplica { replica: ReplicaId(3) };
    assert_eq!(apply(&mut state, begin(back)), Err(gone), "it is being deleted");
    let place = |replica| ShardChange::Place { replica: ReplicaId(replica), node: NodeId(3) };
    assert_eq!(apply(&mut state, place(4)), Err(Refusal::HasReplica { node: NodeId(3) }));
    apply(&mut state, ShardChange::Deleted { replica: ReplicaId(3) }).unwrap();
    assert_eq!(apply(&mut state, place(3)), Err(Refusal::Outdated), "no number is used twice");
    assert_eq!(apply(&mut state, place(4)), Ok(()));
}

#[test]
fn members_are_on_nodes_of_their_own() {
    let mut state = with_service(3, dial(2, Acks::Majority));
    apply(&mut state, active(1)).unwrap();
    // The disk of node 2 is new: the old replica there may be named no more, the new one may.
    state.apply(start(2, 1, 2, DiskState::Lost));
    apply(&mut state, ShardChange::Place { replica: ReplicaId(3), node: NodeId(2) }).unwrap();
    let both = takeover(2, &[1, 2, 3], 1, vec![seal(1, 2, &[1])]);
    assert_eq!(apply(&mut state, begin(both)), Err(Refusal::NoReplica { replica: ReplicaId(2) }));
    assert_eq!(apply(&mut state, begin(takeover(2, &[1, 3], 1, vec![seal(1, 2, &[1])]))), Ok(()));
    let twice = vec![ShardStart::New { nodes: vec![NodeId(1), NodeId(1)] }];
    let command = Command::CreateService { name: "two".to_owned(), dial: Dial::default(), shards: twice };
    assert_eq!(state.apply(command), Outcome::Refused(Refusal::SameNode { node: NodeId(1) }));
}

#[test]
fn one_change_that_is_refused_refuses_no_other() {
    let mut state = cluster(2);
    let shards: Vec<ShardStart> = (0..3).map(|_| ShardStart::New { nodes: vec![NodeId(1)] }).collect();
    state.apply(Command::CreateService { name: "bank".to_owned(), dial: Dial::default(), shards });
    let begin = |shard: u32, expected| ShardCommand {
        shard: ShardId(shard),
        change: begin(Takeover { expected: Epoch(expected), ..takeover(2, &[1], 1, vec![seal(1, 2, &[1])]) }),
    };
    let outcome = state.apply(Command::Shards(vec![begin(0, 1), begin(1, 5), begin(2, 1), begin(9, 1)]));
    let Outcome::Shards(results) = outcome else { panic!("another outcome") };
    assert_eq!([0, 2].map(|at: usize| results[at].clone()), [None, None]);
    assert!(matches!(results[1], Some(Refusal::TakeOver(TakeoverError::Overtaken { .. }))));
    assert_eq!(results[3], Some(Refusal::NoShard { shard: ShardId(9) }));
    let newest = |shard| state.shard(ShardId(shard)).unwrap().history().newest().config.epoch();
    assert_eq!([0, 1, 2].map(newest), [2, 1, 2].map(Epoch));
}

#[test]
fn a_lone_replica_goes_on_after_a_power_cut_and_the_loss_is_announced() {
    let relaxed = Dial { durability: Durability::Interval, ..dial(1, Acks::Majority) };
    let mut state = with_service(2, relaxed);
    apply(&mut state, active(1)).unwrap();
    assert_eq!(state.apply(start(1, 1, 2, DiskState::Doubtful)), Outcome::Done);
    let answer = SealAnswer { life: Life(2), ..seal(1, 2, &[1, 1]) };
    assert_eq!(apply(&mut state, begin(takeover(2, &[1], 2, vec![answer]))), Ok(()));
    let newest = state.shard(SHARD).unwrap().history().newest();
    assert!(newest.losses.has(LogPoint { epoch: Epoch(1), index: Index(3) }));
    assert_eq!(newest.generation, Generation(1));
    // Of a service that syncs before it acknowledges, nothing is lost.
    let mut state = with_service(3, dial(3, Acks::Majority));
    state.apply(start(1, 1, 2, DiskState::Doubtful));
    let shard = state.shard(SHARD).unwrap();
    assert!(!state.is_lost(&shard.replicas()[&ReplicaId(1)]) && !shard.history().is_doubted());
}

#[test]
fn of_replicas_in_doubt_too_few_begin_nothing_and_enough_begin_with_what_they_have() {
    let relaxed = Dial { durability: Durability::Interval, ..dial(3, Acks::Majority) };
    let mut state = with_service(3, relaxed);
    for node in 1..=3 {
        state.apply(start(node, 1, 2, DiskState::Doubtful));
    }
    let of = |life, answer| SealAnswer { life: Life(life), ..answer };
    let one = takeover(2, &[1], 2, vec![of(2, seal(1, 2, &[1, 1]))]);
    let too_few = TakeoverError::TooFewSeals { epoch: Epoch(1), sealed: 1, needed: 2 };
    assert_eq!(apply(&mut state, begin(one)), Err(Refusal::TakeOver(too_few)));
    let seals = vec![of(2, seal(1, 2, &[1, 1])), of(2, seal(2, 2, &[1]))];
    assert_eq!(apply(&mut state, begin(takeover(2, &[1, 2], 2, seals))), Ok(()));
    let newest = state.shard(SHARD).unwrap().history().newest();
    assert!(newest.losses.has(LogPoint { epoch: Epoch(1), index: Index(3) }));
    let failover = state.failovers().back().unwrap();
    assert_eq!(failover.losses, [LogPoint { epoch: Epoch(1), index: Index(2) }], "an operator sees it");
}

#[test]
fn impossible_services_and_dials_are_refused() {
    let mut state = with_service(3, dial(3, Acks::Majority));
    let before = state.clone();
    let create = |name: &str, dial, nodes: Vec<NodeId>| Command::CreateService {
        name: name.to_owned(),
        dial,
        shards: vec![ShardStart::New { nodes }],
    };
    let refused = |state: &mut ControlState, command| match state.apply(command) {
        Outcome::Refused(refusal) => refusal,
        outcome => panic!("{outcome:?}"),
    };
    let one = || vec![NodeId(1)];
    assert_eq!(refused(&mut state, create("a", dial(1, Acks::Majority), vec![])), Refusal::Start);
    let unknown = Refusal::NoNode { node: NodeId(4) };
    assert_eq!(refused(&mut state, create("a", Dial::default(), vec![NodeId(4)])), unknown);
    for name in ["", "bank", "a b"] {
        let refusal = refused(&mut state, create(name, Dial::default(), one()));
        assert!(matches!(refusal, Refusal::Service { .. }), "{name}: {refusal}");
    }
    let expected = state.dials()[0];
    let set = |expected, dial| Command::SetDial { service: ServiceId(0), expected, dial };
    let too_many = Refusal::TooFewNodes { replicas: 4, nodes: 3 };
    assert_eq!(refused(&mut state, set(expected, dial(4, Acks::Majority))), too_many);
    let acks = DialError::Acks { acks: 4, replicas: 3 };
    assert_eq!(refused(&mut state, set(expected, dial(3, Acks::Count(4)))), Refusal::Dial(acks));
    assert_eq!(refused(&mut state, set(dial(1, Acks::Majority), dial(2, Acks::Majority))), Refusal::Outdated);
    assert_eq!(state, before);
    assert_eq!(state.apply(set(expected, dial(2, Acks::Count(2)))), Outcome::Done);
    // A service may begin before all of its nodes have joined, and what does not add to its replicas may change meanwhile.
    assert_eq!(state.apply(create("early", dial(5, Acks::Majority), one())), Outcome::Done);
    let later = |from, to| Command::SetDial { service: ServiceId(1), expected: from, dial: to };
    assert_eq!(state.apply(later(dial(5, Acks::Majority), dial(4, Acks::Count(2)))), Outcome::Done);
    assert_eq!(
        refused(&mut state, later(dial(4, Acks::Count(2)), dial(5, Acks::Majority))),
        Refusal::TooFewNodes { replicas: 5, nodes: 3 }
    );
}

#[test]
fn a_node_leaves_when_nothing_needs_it() {
    let mut state = with_service(3, dial(3, Acks::Majority));
    let remove = Command::Remove { node: NodeId(3) };
    let has = Refusal::HasReplicas { node: NodeId(3), replicas: 1 };
    assert_eq!(state.apply(remove.clone()), Outcome::Refused(has));
    apply(&mut state, active(1)).unwrap();
    apply(&mut state, begin(takeover(2, &[1, 2], 1, vec![seal(1, 2, &[1]), seal(2, 2, &[1])]))).unwrap();
    apply(&mut state, active(2)).unwrap();
    apply(&mut state, ShardChange::Release { replica: ReplicaId(3) }).unwrap();
    assert_eq!(state.apply(remove), Outcome::Done);
    state.check().unwrap();
    let gone = Refusal::NoNode { node: NodeId(3) };
    assert_eq!(state.apply(start(3, 1, 2, DiskState::Whole)), Outcome::Refused(gone));
    assert_eq!(state.apply(join(4)), Outcome::Done, "its number is not used again");
}

#[test]
fn a_shard_that_one_node_has_led_is_adopted_with_its_log() {
    let mut state = cluster(1);
    let last = LogPoint { epoch: Epoch(6), index: Index(40) };
    let adopt = |epoch| Command::CreateService {
        name: "bank".to_owned(),
        dial: Dial::default(),
        shards: vec![ShardStart::Adopted { node: NodeId(1), last, epoch: Epoch(epoch) }],
    };
    assert_eq!(state.apply(adopt(6)), Outcome::Refused(Refusal::Start));
    assert_eq!(state.apply(adopt(7)), Outcome::Done);
    let record = state.shard(SHARD).unwrap().history().newest();
    assert_eq!((record.config.epoch(), record.base), (Epoch(7), last));
}

#[test]
fn the_history_of_failovers_is_bounded() {
    let mut state = with_service(1, Dial::default());
    for epoch in 2..=ControlState::FAILOVERS_MAX as u64 + 5 {
        apply(&mut state, begin(takeover(epoch, &[1], 1, vec![seal(1, epoch, &[])]))).unwrap();
        apply(&mut state, active(epoch)).unwrap();
    }
    assert_eq!(state.failovers().len(), ControlState::FAILOVERS_MAX);
    assert_eq!(state.failovers().front().unwrap().epoch, Epoch(6));
}

/// A state and commands with some of everything.
fn samples() -> (ControlState, Vec<Command>) {
    let mut state = with_service(4, dial(3, Acks::Count(1)));
    let commands = vec![
        Command::Found { cluster: CLUSTER, secret: None },
        Command::Found { cluster: CLUSTER, secret: Some(SECRET) },
        join(5),
        start(2, 1, 2, DiskState::Doubtful),
        Command::SetBalancing { is_balancing: true },
        change(active(1)),
        change(ShardChange::Place { replica: ReplicaId(4), node: NodeId(4) }),
        change(begin(takeover(2, &[3, 1], 1, vec![seal(1, 2, &[1, 1]), seal(3, 2, &[1, 1, 1])]))),
        Command::Leave { node: NodeId(4) },
    ];
    for command in &commands {
        state.apply(command.clone());
    }
    (state, commands)
}

#[test]
fn what_is_encoded_returns() {
    let (state, commands) = samples();
    assert_eq!(state.shard(SHARD).unwrap().history().records().len(), 2, "the takeover was applied");
    assert_eq!(ControlState::decode(&state.encode()).unwrap(), state);
    let empty = ControlState::default();
    assert_eq!(ControlState::decode(&empty.encode()).unwrap(), empty);
    for command in commands {
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
    }
    let refused = Outcome::Shards(vec![None, Some(Refusal::Named { replica: ReplicaId(3) })]);
    assert_eq!(Outcome::decode(&refused.encode()).unwrap(), refused);
    let other = Command::decode(&[9]).unwrap_err();
    assert!(other.to_string().contains("version 9"), "{other}");
    assert!(Command::decode(&[]).is_err() && ControlState::decode(&[]).is_err());
}

#[test]
fn no_bytes_make_decoding_or_applying_panic() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (state, commands) = samples();
    let (whole, mut decoded) = (state.encode(), 0);
    for _ in 0..2_000 {
        let spoil = |rng: &mut fastrand::Rng, bytes: &mut Vec<u8>| {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(1..bytes.len());
                bytes[at] = rng.u8(..);
            }
        };
        let mut bytes = whole.clone();
        spoil(&mut rng, &mut bytes);
        let mut spoilt = ControlState::decode(&bytes).unwrap_or_else(|_| state.clone());
        let mut bytes = rng.choice(&commands).unwrap().encode();
        spoil(&mut rng, &mut bytes);
        if let Ok(command) = Command::decode(&bytes) {
            decoded += 1;
            spoilt.apply(command);
            spoilt.check().unwrap();
            assert_eq!(ControlState::decode(&spoilt.encode()).unwrap(), spoilt);
        }
    }
    assert!(decoded > 0);
}

#[test]
fn the_directory_has_the_routes_of_the_newest_state_and_reports_those_that_changed() {
    let mut state = with_service(3, dial(3, Acks::Majority));
    let shards = vec![ShardStart::New { nodes: vec![NodeId(2)] }];
    let other = Command::CreateService { name: "other".to_owned(), dial: Dial::default(), shards };
    assert_eq!(state.apply(other), Outcome::Done);
    let mut directory = Directory::default();
    let follow = |directory: &mut Directory, state: &ControlState| {
        let (before, is_new) = (directory.version(), directory.follow(state));
        let mut anew = Directory::default();
        anew.follow(state);
        for (id, _) in state.shards() {
            assert_eq!(directory.shard(id), anew.shard(id));
        }
        assert_eq!((directory.nodes(), directory.version() > before), (anew.nodes(), is_new));
        let changed = directory.shards_changed_since(before).map(|(id, _)| id.0).collect::<Vec<_>>();
        (directory.nodes_changed_since(before), changed)
    };
    assert_eq!(follow(&mut directory, &state), (true, vec![0, 1]));
    assert_eq!(follow(&mut directory, &state), (false, vec![]), "it is the same state");
    let route = directory.shard(SHARD).unwrap();
    assert_eq!((route.epoch, route.primary, route.primary_node()), (Epoch(1), ReplicaId(1), Some(NodeId(1))));
    assert_eq!(directory.shard(ShardId(2)), None);
    assert_eq!(directory.nodes()[&NodeId(3)].addresses, ["127.0.0.1:3"]);

    apply(&mut state, begin(takeover(2, &[2, 3], 1, vec![seal(2, 2, &[1]), seal(3, 2, &[1])]))).unwrap();
    assert_eq!(follow(&mut directory, &state), (false, vec![0]));
    assert_eq!(directory.shard(SHARD).unwrap().primary_node(), Some(NodeId(2)));
    apply(&mut state, active(2)).unwrap();
    assert_eq!(follow(&mut directory, &state), (false, vec![]), "that changes no route");
    apply(&mut state, ShardChange::Release { replica: ReplicaId(1) }).unwrap();
    assert_eq!(follow(&mut directory, &state), (false, vec![0]));
    assert!(!directory.shard(SHARD).unwrap().replicas.contains_key(&ReplicaId(1)));

    // The disk of the node that leads both shards is gone, and their routes with it, although no record of a shard changed.
    assert_eq!(state.apply(start(2, 1, 2, DiskState::Lost)), Outcome::Done);
    assert_eq!(follow(&mut directory, &state), (true, vec![0, 1]));
    assert_eq!(directory.shard(SHARD).unwrap().primary_node(), None);
    assert_eq!(directory.nodes()[&NodeId(2)].life, Life(2));
    assert_eq!(state.apply(join(4)), Outcome::Done);
    assert_eq!(follow(&mut directory, &state), (true, vec![]));

    let (expected, max_lag) = (Dial::default(), Micros::from_millis(7));
    let dial = Dial { max_lag, ..expected };
    assert_eq!(state.apply(Command::SetDial { service: ServiceId(1), expected, dial }), Outcome::Done);
    assert_eq!(follow(&mut directory, &state), (false, vec![1]));
    assert_eq!(directory.shard(ShardId(1)).unwrap().max_lag, max_lag);
}

#[test]
fn changes_are_spread_over_commands_within_their_bounds() {
    let small =
        |at| ShardCommand { shard: ShardId(at), change: ShardChange::Deleted { replica: ReplicaId(1) } };
    let mut table = EpochTable::default();
    (1..=3_000).for_each(|at| table.push(LogPoint { epoch: Epoch(at), index: Index(at) }));
    let config = EpochConfig::parse(Epoch(4_000), vec![ReplicaId(1)], 1, ReplicaId(1)).unwrap();
    let (life, lease, epoch, active) = (Life(1), Micros(0), Epoch(4_000), Epoch(1));
    let seals = vec![SealAnswer { replica: ReplicaId(1), life, epoch, table, active, is_folding: false }];
    let takeover = Takeover { expected: Epoch(1), config, life, lease, seals };
    let (cause, noticed, is_forced) = (Cause::Silent, Time(5), false);
    let large = |at| {
        let takeover = takeover.clone();
        ShardCommand {
            shard: ShardId(at),
            change: ShardChange::TakeOver { takeover, cause, noticed, is_forced },
        }
    };
    let sizes = |changes: &[ShardCommand]| -> Vec<usize> {
        let commands = Command::of_changes(changes.to_vec());
        let mut together = Vec::new();
        let sizes = commands.into_iter().map(|command| {
            assert!(command.encode().len() <= Command::BYTES_MAX);
            let Command::Shards(changes) = command else { panic!("{command:?}") };
            together.extend(changes.iter().cloned());
            changes.len()
        });
        let sizes = sizes.collect();
        assert_eq!(together, changes, "each once, in order");
        sizes
    };
    let small: Vec<_> = (0..1_200).map(small).collect();
    assert_eq!(sizes(&small), [512, 512, 176]);
    assert_eq!(sizes(&[]), []);
    let large: Vec<_> = (0..150).map(large).collect();
    let (each, sizes) = (large[0].bytes(), sizes(&large));
    assert!(sizes.len() > 1 && sizes.len() <= 150 * each / Command::BYTES_MAX + 2, "{each} {sizes:?}");
}
