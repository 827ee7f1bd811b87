//! Tests of the decisions, on a cluster of fake nodes.

use super::command::{Command, Outcome, Refusal, ShardChange, ShardCommand, ShardStart};
use super::controller::Controller;
use super::dial::{Acks, Dial, Durability};
use super::facts::{Fact, Hello};
use super::failover::Cause;
use super::fake::{A, B, C, D, Fake, FakeReplica, THREE, dial};
use super::node::{DiskState, StartId};
use super::placement::Loads;
use super::settings::Settings;
use super::shard::ShardRecord;
use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Index, Life, Micros, NodeId, ReplicaId, ServiceId, ShardId};
use crate::replication::epoch::SealAnswer;
use crate::replication::history::{Takeover, TakeoverError};
use crate::replication::table::{EpochTable, LogPoint};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_service_begins_spread_evenly() {
    let mut fake = Fake::new(4);
    fake.create(8, THREE);
    assert_eq!(fake.primaries(), BTreeMap::from([(A, 2), (B, 2), (C, 2), (D, 2)]));
    let loads = Loads::new(&fake.state, fake.controller.health());
    assert_eq!([A, B, C, D].map(|node| loads.of(node).replicas), [6; 4]);
    fake.run(3_000);
    assert_eq!(fake.commands, [], "nothing is left to do");
}

#[test]
fn the_shards_of_a_killed_node_go_on_at_once_and_spread_over_the_others() {
    let mut fake = Fake::new(3);
    fake.create(12, THREE);
    fake.kill(A);
    let millis = fake.run_until(|fake| fake.all_led_but_by(A));
    assert!(millis <= 150, "{millis} ms");
    assert_eq!(fake.primaries(), BTreeMap::from([(B, 6), (C, 6)]));
    assert_eq!(fake.causes(), BTreeSet::from([Cause::Closed]));
    // One frame a node, and one command for all of them (rule 25).
    let frames: BTreeSet<_> = fake.seal_frames.iter().copied().collect();
    assert_eq!(frames, BTreeSet::from([(A, 4), (B, 4), (C, 4)]));
    let takeovers = fake.commands.iter().filter(|command| match command {
        Command::Shards(changes) => changes.iter().any(|c| matches!(c.change, ShardChange::TakeOver { .. })),
        _ => false,
    });
    assert_eq!(takeovers.count(), 1);
    assert!(fake.state.failovers().iter().all(|failover| failover.duration.is_some()));

    // It returns, and does not take its shards back.
    fake.restart(A, DiskState::Whole);
    fake.run(5_000);
    assert_eq!(fake.primaries(), BTreeMap::from([(B, 6), (C, 6)]));
    assert_eq!(fake.state.failovers().len(), 4);
}

#[test]
fn a_node_with_a_hung_disk_is_replaced_although_it_is_heard() {
    let mut fake = Fake::new(3);
    fake.create(3, THREE);
    fake.nodes.get_mut(&B).unwrap().stalled = Micros::from_millis(600);
    let millis = fake.run_until(|fake| fake.all_led_but_by(B));
    assert!(millis <= 300, "{millis} ms");
    assert_eq!(fake.causes(), BTreeSet::from([Cause::Stalled]));
}

#[test]
fn a_primary_that_restarts_gets_a_new_epoch_also_alone() {
    for replicas in [1, 3] {
        let mut fake = Fake::new(3);
        fake.create(1, dial(replicas, Acks::Majority));
        let shard = |fake: &Fake| fake.state.shard(ShardId(0)).unwrap().clone();
        let node = shard(&fake).primary_node().unwrap();
        fake.restart(node, DiskState::Whole);
        fake.run_until(|fake| fake.is_settled() && shard(fake).history().newest().config.epoch() == Epoch(2));
        assert_eq!(fake.causes(), BTreeSet::from([Cause::Restarted]));
    }
}

#[test]
fn a_service_gets_replicas_when_nodes_have_joined_and_they_learn_first() {
    let mut fake = Fake::new(1);
    fake.create(4, Dial::default());
    fake.join();
    fake.join();
    let set = |fake: &mut Fake, expected, dial| {
        let command = Command::SetDial { service: ServiceId(0), expected, dial };
        assert_eq!(fake.state.apply(command), Outcome::Done);
    };
    set(&mut fake, Dial::default(), THREE);
    let is_whole = |fake: &Fake| (0..4).all(|shard| fake.members(shard).len() == 3) && fake.is_settled();
    fake.run_until(is_whole);
    assert_eq!(
        fake.refusals.iter().filter(|refusal| matches!(refusal, Refusal::Unsettled { .. })).count(),
        0
    );
    for (_, shard) in fake.state.shards() {
        assert_eq!(shard.history().newest().config.acks(), 2);
        assert_eq!(shard.learners().count(), 0);
    }
    // The nodes that joined get their share of the primaries, one after the other.
    fake.run_until(|fake| !fake.state.is_balancing());
    let most = *fake.primaries().values().max().unwrap();
    assert!(fake.primaries().len() == 3 && most == 2, "{:?}", fake.primaries());

    // W alone, and fewer replicas.
    let acks = dial(3, Acks::Count(3));
    set(&mut fake, THREE, acks);
    fake.run_until(|fake| {
        fake.state
            .shards()
            .all(|(_, shard)| shard.history().newest().config.acks() == 3 && shard.is_settled())
    });
    set(&mut fake, acks, dial(2, Acks::Count(2)));
    fake.run_until(|fake| {
        let is_small = |(_, shard): (_, &ShardRecord)| shard.replicas().len() == 2;
        fake.state.shards().all(is_small) && fake.is_settled()
    });
    assert!(fake.state.failovers().iter().all(|failover| !failover.cause.is_failure()));
}

#[test]
fn a_node_that_joins_gets_its_share_one_move_at_a_time() {
    let mut fake = Fake::new(3);
    fake.create(8, THREE);
    fake.join();
    let mut most = 0;
    for _ in 0..6_000 {
        fake.run(10);
        most = most.max(fake.state.shards().map(|(_, shard)| shard.learners().count()).sum());
        if !fake.state.is_balancing() {
            break;
        }
    }
    assert_eq!(most, 1, "one at a time");
    fake.run(1_000);
    assert!(!fake.state.is_balancing() && fake.is_settled());
    let loads = Loads::new(&fake.state, fake.controller.health());
    assert_eq!([A, B, C, D].map(|node| loads.of(node).replicas), [6; 4]);
    assert!(fake.primaries().values().all(|count| *count <= 3), "{:?}", fake.primaries());
    let placed: usize = fake.nodes.values().map(|node| node.replicas.len()).sum();
    assert_eq!(placed, 24, "what moved away is deleted");
}

#[test]
fn a_node_that_does_not_know_a_service_gets_no_replica_of_it_before_it_is_started_again() {
    let mut fake = Fake::new(4);
    fake.create(4, THREE);
    // The fourth node was started before the next service was added.
    fake.nodes.get_mut(&D).unwrap().known = Some(4);
    fake.run(100);
    let shards = [A, B, C, A].map(|node| ShardStart::New { nodes: vec![node] }).to_vec();
    let (name, dial) = ("new".to_owned(), dial(2, Acks::Majority));
    assert_eq!(fake.state.apply(Command::CreateService { name, dial, shards }), Outcome::Done);
    let on_d = |fake: &Fake| {
        let of_new = fake.state.shards().filter(|(id, _)| id.0 >= 4);
        let on_it = |shard: &ShardRecord| shard.replicas().values().any(|placed| placed.node == D);
        of_new.filter(|(_, shard)| on_it(shard)).count()
    };
    let is_whole = |fake: &Fake| {
        fake.state
            .shards()
            .all(|(_, shard)| shard.is_settled() && shard.history().newest().config.members().len() >= 2)
    };
    fake.run_until(is_whole);
    fake.state.apply(Command::SetBalancing { is_balancing: true });
    fake.run_until(|fake| !fake.state.is_balancing());
    assert_eq!(on_d(&fake), 0);
    // Older services still move there.
    let loads = Loads::new(&fake.state, fake.controller.health());
    assert!(loads.of(D).replicas >= 4, "{loads:?}");
    fake.nodes.get_mut(&D).unwrap().known = Some(8);
    fake.run(100);
    fake.state.apply(Command::SetBalancing { is_balancing: true });
    fake.run_until(|fake| !fake.state.is_balancing());
    assert!(on_d(&fake) > 0, "{:?}", fake.state.shards().collect::<Vec<_>>());
}

#[test]
fn the_replicas_of_a_node_that_is_gone_for_long_are_replaced() {
    let mut fake = Fake::new(4);
    fake.create(4, THREE);
    fake.kill(D);
    fake.run(5_000);
    assert!((0..4).any(|shard| fake.members(shard).contains(&D)), "it may come back");
    fake.controller =
        Controller::new(fake.now, Settings { replace_after: Micros::from_secs(1), ..Settings::default() });
    fake.run_until(|fake| (0..4).all(|shard| !fake.members(shard).contains(&D)) && fake.is_settled());
    assert!((0..4).all(|shard| fake.members(shard).len() == 3));
    // It comes back: its data are deleted.
    fake.restart(D, DiskState::Whole);
    fake.run_until(|fake| fake.nodes[&D].replicas.is_empty());
    fake.run_until(|fake| fake.state.shards().all(|(_, shard)| shard.replicas().len() == 3));
}

#[test]
fn a_lost_disk_is_replaced_on_its_own_node() {
    let mut fake = Fake::new(3);
    fake.create(2, THREE);
    fake.kill(C);
    fake.run(100);
    // An older copy of its disk: it counts its lives anew.
    fake.nodes.get_mut(&C).unwrap().life = Life(0);
    fake.restart(C, DiskState::Lost);
    // It has to insist, for it might be a message that came late.
    fake.run(1_000);
    assert_eq!(fake.state.nodes()[&C].start, StartId(3));
    for _ in 0..40 {
        let hello = Hello {
            node: Some(C),
            life: Life(1),
            start: StartId(1 << 64 | 3),
            disk: DiskState::Whole,
            addresses: vec!["a:1".to_owned()],
            earlier: Vec::new(),
        };
        fake.run(100);
        fake.controller.handle(fake.now, Fact::Hello(hello));
    }
    fake.run_until(|fake| {
        (0..2).all(|shard| fake.members(shard) == BTreeSet::from([A, B, C])) && fake.is_settled()
    });
    fake.run_until(|fake| fake.state.shards().all(|(_, shard)| shard.replicas().len() == 3));
    let has_old =
        fake.state.shards().any(|(_, shard)| shard.replicas().values().any(|r| fake.state.is_lost(r)));
    assert!(!has_old);
}

#[test]
fn a_disk_is_believed_by_the_starts_on_it_not_by_the_number_of_its_lives() {
    let introduce = |earlier: &[u128]| {
        let mut fake = Fake::new(2);
        fake.create(1, dial(2, Acks::Majority));
        fake.kill(B);
        fake.restart(B, DiskState::Whole);
        fake.run(500);
        let registered = fake.state.nodes()[&B].start;
        fake.kill(B);
        let disk = fake.state.nodes()[&B].disk;
        let earlier: Vec<_> =
            earlier.iter().map(|start| if *start == 0 { registered } else { StartId(*start) }).collect();
        for _ in 0..40 {
            let hello = Hello {
                node: Some(B),
                life: Life(9),
                start: StartId(99),
                disk: DiskState::Whole,
                addresses: vec!["b:1".to_owned()],
                earlier: earlier.clone(),
            };
            fake.controller.handle(fake.now, Fact::Hello(hello));
            fake.run(100);
        }
        assert_eq!(fake.state.nodes()[&B].start, StartId(99));
        fake.state.nodes()[&B].disk == disk
    };
    assert!(introduce(&[7, 0, 8]), "starts that were not registered do no harm");
    assert!(!introduce(&[7, 8]), "more lives than the registered one, of starts that failed");
    assert!(introduce(&[]), "a disk that has no starts is judged by its lives");
}

#[test]
fn a_hello_with_too_many_starts_is_not_proposed() {
    let mut fake = Fake::new(1);
    fake.forget();
    let earlier = (0..=Hello::EARLIER_MAX as u128).map(StartId).collect();
    let addresses = vec!["a:1".to_owned()];
    let (start, disk) = (StartId(77), DiskState::Whole);
    let hello = Hello { node: None, life: Life(1), start, disk, addresses, earlier };
    fake.controller.handle(fake.now, Fact::Hello(hello));
    fake.run(1_000);
    assert_eq!(fake.commands, []);
}

#[test]
fn a_replica_that_forgot_what_it_acknowledged_is_replaced_by_a_new_one_on_its_node() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let (old, leader) = (ReplicaId(3), fake.leader(0));
    fake.controller.handle(fake.now, Fact::Void(ShardId(0), old));
    fake.run_until(|fake| !fake.state.shard(ShardId(0)).unwrap().replicas().contains_key(&old));
    fake.run_until(|fake| fake.members(0) == BTreeSet::from([A, B, C]) && fake.is_settled());
    assert_eq!(fake.leader(0), leader, "the primary goes on");
    // The only one has nothing to be replaced from.
    let mut fake = Fake::new(1);
    fake.create(1, Dial::default());
    fake.controller.handle(fake.now, Fact::Void(ShardId(0), ReplicaId(1)));
    fake.run(2_000);
    assert_eq!((fake.members(0), fake.is_settled()), (BTreeSet::from([A]), true));
    assert_eq!(fake.commands, [], "nothing is proposed that would be refused");
}

#[test]
fn an_epoch_that_names_a_member_whose_data_are_lost_does_not_have_to_become_active() {
    for acks in [Acks::Count(2), Acks::Majority] {
        let mut fake = Fake::new(2);
        let two = dial(2, acks);
        fake.create(1, two);
        let leader = fake.leader(0);
        let other = if leader == A { B } else { A };
        // The other node is away while the primary's begins another epoch, and then returns with a new disk.
        fake.kill(other);
        fake.restart(leader, DiskState::Whole);
        let epoch = |fake: &Fake| fake.state.shard(ShardId(0)).unwrap().history().newest().config.epoch();
        fake.run_until(|fake| epoch(fake) > Epoch(1));
        assert!(!fake.is_settled(), "two are needed");
        fake.restart(other, DiskState::Lost);
        fake.run_until(|fake| fake.members(0) == BTreeSet::from([A, B]) && fake.is_settled());
        assert_eq!(fake.state.dials()[0], two);
    }
}

#[test]
fn a_node_that_is_to_leave_goes_when_its_replicas_have_moved() {
    let mut fake = Fake::new(4);
    fake.create(4, THREE);
    fake.state.apply(Command::Leave { node: A });
    fake.run_until(|fake| !fake.state.nodes().contains_key(&A));
    assert!((0..4).all(|shard| fake.members(shard) == BTreeSet::from([B, C, D])));
    assert_eq!(fake.causes().iter().filter(|cause| cause.is_failure()).count(), 0);
    // Nothing could replace what the next one has: it goes all the same, for the operator says so.
    fake.state.apply(Command::Leave { node: B });
    fake.run_until(|fake| !fake.state.nodes().contains_key(&B));
    assert!((0..4).all(|shard| fake.members(shard) == BTreeSet::from([C, D])));
}

#[test]
fn an_asynchronous_failover_waits_for_the_lease_unless_the_primary_is_proven_dead() {
    for is_proven in [false, true] {
        let mut fake = Fake::new(3);
        fake.create(1, dial(3, Acks::Count(1)));
        let node = fake.state.shard(ShardId(0)).unwrap().primary_node().unwrap();
        let until = fake.now.steady.plus_millis(450);
        fake.nodes.values_mut().for_each(|node| node.granted = until);
        fake.kill(node);
        if is_proven {
            fake.controller.handle(fake.now, Fact::Dead(node, Life(1)));
        }
        let millis = fake.run_until(|fake| fake.all_led_but_by(node));
        assert_eq!(millis < 300, is_proven, "{millis} ms");
        assert!(millis < 600, "a node that has failed is waited for no longer than the lease: {millis} ms");
        let failover = fake.state.failovers().back().unwrap();
        assert_eq!(failover.losses, [LogPoint { epoch: Epoch(1), index: Index(1) }]);
    }
}

#[test]
fn the_dial_of_an_asynchronous_service_changes_without_waiting_for_its_lease() {
    let mut fake = Fake::new(3);
    fake.create(1, dial(3, Acks::Count(1)));
    let until = fake.now.steady.plus_millis(10_000);
    let primary = fake.state.shard(ShardId(0)).unwrap().primary_node().unwrap();
    fake.nodes.iter_mut().filter(|(id, _)| **id != primary).for_each(|(_, node)| node.granted = until);
    let (expected, service) = (dial(3, Acks::Count(1)), ServiceId(0));
    fake.state.apply(Command::SetDial { service, expected, dial: THREE });
    let is_synchronous = |fake: &Fake| {
        let shard = fake.state.shard(ShardId(0)).unwrap();
        shard.is_settled() && shard.history().newest().config.acks() == 2
    };
    let millis = fake.run_until(is_synchronous);
    assert!(millis < 300, "{millis} ms");
    assert!(fake.state.failovers().is_empty(), "the same primary goes on");
}

#[test]
fn another_leader_finishes_what_one_began() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    fake.is_mute = true;
    let to = fake
        .members(0)
        .into_iter()
        .find(|node| fake.state.shard(ShardId(0)).unwrap().primary_node() != Some(*node));
    fake.controller.handle(fake.now, Fact::Failover { shard: ShardId(0), to, is_forced: false });
    fake.run(500);
    // Members are sealed, and the leader is gone with all that it knew.
    (fake.controller, fake.is_mute) = (Controller::new(fake.now, Settings::default()), false);
    fake.run_until(|fake| {
        let shard = fake.state.shard(ShardId(0)).unwrap();
        shard.is_settled() && shard.history().newest().config.epoch() > Epoch(1)
    });
    assert_eq!(fake.causes(), BTreeSet::from([Cause::Superseded]));
}

#[test]
fn the_best_log_is_given_up_if_its_replica_cannot_lead_and_nothing_in_it_is_committed() {
    let mut fake = Fake::new(2);
    fake.create(1, Dial::default());
    let shard = ShardId(0);
    let (node, other) = if fake.leader(0) == A { (A, B) } else { (B, A) };
    // An epoch of two that never became active: only the new member has its start entry.
    let (one, two) = (ReplicaId(1), ReplicaId(2));
    let table = fake.nodes[&node].replicas[&(shard, one)].table.clone();
    let (epoch, life, active) = (Epoch(2), Life(1), Epoch(1));
    let seals =
        vec![SealAnswer { replica: one, life, epoch, table: table.clone(), active, is_folding: false }];
    let config = EpochConfig::parse(epoch, vec![one, two], 2, one).unwrap();
    let takeover = Takeover { expected: Epoch(1), config, life, lease: Micros(0), seals };
    let (cause, noticed, is_forced) = (Cause::Operator, fake.now.wall, false);
    let changes = [
        ShardChange::Place { replica: two, node: other },
        ShardChange::TakeOver { takeover, cause, noticed, is_forced },
    ];
    let changes = changes.map(|change| ShardCommand { shard, change }).to_vec();
    assert_eq!(fake.state.apply(Command::Shards(changes)), Outcome::Shards(vec![None, None]));
    fake.watch();
    let ahead = fake.nodes.get_mut(&other).unwrap().replicas.get_mut(&(shard, two)).unwrap();
    (ahead.table, ahead.promised) = (table, epoch);
    let index = ahead.table.last().index.next();
    ahead.table.push(LogPoint { epoch, index });
    // Until epoch 2 is active, the members of the next one are those of epoch 1.
    fake.restart(node, DiskState::Whole);
    fake.run_until(|fake| fake.is_settled() && fake.members(0) == BTreeSet::from([node]));
    assert_eq!(fake.controller.problems().count(), 0);
}

#[test]
fn an_operator_moves_a_primary_and_goes_on_with_too_few_members() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let shard = ShardId(0);
    let to = fake
        .members(0)
        .into_iter()
        .find(|node| fake.state.shard(shard).unwrap().primary_node() != Some(*node));
    fake.controller.handle(fake.now, Fact::Failover { shard, to, is_forced: false });
    fake.run_until(|fake| fake.state.shard(shard).unwrap().primary_node() == to && fake.is_settled());
    fake.kill(A);
    fake.kill(B);
    fake.run(3_000);
    let short = (shard, TakeoverError::TooFewSeals { epoch: Epoch(2), sealed: 1, needed: 2 });
    if fake.state.shard(shard).unwrap().primary_node() != Some(C) {
        assert_eq!(fake.controller.problems().collect::<Vec<_>>(), [short]);
    }
    fake.controller.handle(fake.now, Fact::Failover { shard, to: None, is_forced: true });
    fake.run_until(|fake| {
        fake.state.failovers().iter().any(|failover| failover.is_forced) && fake.is_settled()
    });
    assert_eq!(fake.members(0), BTreeSet::from([C]));
}

#[test]
fn an_operator_who_names_no_node_gets_another_primary_if_there_is_one() {
    for replicas in [1, 3] {
        let mut fake = Fake::new(3);
        fake.create(1, dial(replicas, Acks::Majority));
        let (shard, old) = (ShardId(0), fake.leader(0));
        fake.controller.handle(fake.now, Fact::Failover { shard, to: None, is_forced: false });
        fake.run_until(|fake| {
            let record = fake.state.shard(shard).unwrap();
            record.is_settled() && record.history().newest().config.epoch() > Epoch(1)
        });
        assert_eq!(fake.leader(0) == old, replicas == 1, "{replicas} replicas");
    }
}

#[test]
fn a_failover_to_a_node_without_a_member_is_refused_and_changes_nothing() {
    let mut fake = Fake::new(4);
    fake.create(1, THREE);
    let (shard, members) = (ShardId(0), fake.members(0));
    let node = [A, B, C, D].into_iter().find(|node| !members.contains(node)).unwrap();
    assert_eq!(fake.state.member_on(shard, node), Err(Refusal::NotMember { shard, node }));
    let unknown = ShardId(1);
    assert_eq!(fake.state.member_on(unknown, A), Err(Refusal::NoShard { shard: unknown }));
    fake.controller.handle(fake.now, Fact::Failover { shard, to: Some(node), is_forced: false });
    fake.run(500);
    assert!(fake.seal_frames.is_empty() && fake.commands.is_empty(), "{:?}", fake.commands);
}

#[test]
fn a_request_that_comes_before_the_first_look_of_a_leader_is_kept() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let (shard, old) = (ShardId(0), fake.leader(0));
    let to = fake.members(0).into_iter().find(|node| *node != old);
    fake.controller = Controller::new(fake.now, Settings::default());
    fake.controller.handle(fake.now, Fact::Failover { shard, to, is_forced: false });
    fake.run_until(|fake| fake.is_settled() && Some(fake.leader(0)) == to);
}

#[test]
fn seals_that_do_not_fit_into_a_command_are_a_problem_and_are_not_proposed() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let (shard, many) = (ShardId(0), 100_000);
    fake.controller.handle(fake.now, Fact::Superseded { shard, promised: Epoch(many) });
    fake.run_until(|fake| fake.is_settled() && fake.state.shard(shard).unwrap().active() > Epoch(many));
    // Their logs have an entry of each epoch.
    let epochs = (1..=many + 1).map(|at| LogPoint { epoch: Epoch(at), index: Index(at) });
    let mut table = EpochTable::default();
    epochs.for_each(|point| table.push(point));
    for node in fake.nodes.values_mut() {
        node.replicas.values_mut().for_each(|replica| replica.table = table.clone());
    }
    fake.forget();
    fake.controller.handle(fake.now, Fact::Failover { shard, to: None, is_forced: false });
    fake.run(300);
    let problems: Vec<_> = fake.controller.problems().collect();
    assert!(matches!(problems[..], [(ShardId(0), TakeoverError::TooLarge { .. })]), "{problems:?}");
    assert_eq!(fake.commands, [], "nothing is proposed");
}

#[test]
fn a_start_with_invalid_addresses_is_not_proposed() {
    let mut fake = Fake::new(1);
    fake.forget();
    let (start, addresses) = (StartId(77), vec!["x".repeat(2 << 20)]);
    let (disk, earlier) = (DiskState::Whole, Vec::new());
    let hello = Hello { node: None, life: Life(1), start, disk, addresses, earlier };
    fake.controller.handle(fake.now, Fact::Hello(hello));
    fake.run(1_000);
    assert_eq!(fake.commands, []);
}

#[test]
fn shards_of_one_replica_are_balanced_by_way_of_two_and_the_balancing_ends() {
    let mut fake = Fake::new(1);
    // A number of acks that is all of them does not become an asynchronous one on the way.
    fake.create(6, dial(1, Acks::Count(1)));
    fake.join();
    fake.run_until(|fake| !fake.state.is_balancing());
    fake.run(1_000);
    assert_eq!((fake.primaries(), fake.is_settled()), (BTreeMap::from([(A, 3), (B, 3)]), true));
    assert_eq!(fake.causes(), BTreeSet::from([Cause::Moved]));
    let is_lossless = |failover: &super::failover::Failover| failover.losses.is_empty();
    assert!(fake.state.failovers().iter().all(is_lossless));
    assert!(fake.state.shards().all(|(_, shard)| shard.replicas().len() == 1), "what moved away is deleted");
    fake.forget();
    fake.run(5_000);
    assert_eq!(fake.commands, [], "nothing is left to do");
}

#[test]
fn a_node_that_leaves_hands_over_the_only_replicas_of_its_shards() {
    let mut fake = Fake::new(2);
    fake.create(4, Dial::default());
    fake.state.apply(Command::Leave { node: A });
    fake.run_until(|fake| !fake.state.nodes().contains_key(&A));
    assert!((0..4).all(|shard| fake.members(shard) == BTreeSet::from([B])) && fake.is_settled());
    assert_eq!(fake.causes(), BTreeSet::from([Cause::Moved]));
}

#[test]
fn a_replica_that_could_not_lead_is_not_chosen_again_if_another_can() {
    for is_ahead in [false, true] {
        let mut fake = Fake::new(3);
        fake.create(3, THREE);
        let (shard, node) = (ShardId(0), fake.leader(0));
        if is_ahead {
            let primary = fake.state.shard(shard).unwrap().history().newest().config.primary();
            let ahead = fake.nodes.get_mut(&node).unwrap().replicas.get_mut(&(shard, primary)).unwrap();
            let index = ahead.table.last().index.next();
            ahead.table.push(LogPoint { epoch: Epoch(1), index });
        }
        fake.controller.handle(fake.now, Fact::CannotLead { shard, epoch: Epoch(1) });
        let epoch = |fake: &Fake| fake.state.shard(shard).unwrap().history().newest().config.epoch();
        fake.run_until(|fake| epoch(fake) == Epoch(2) && fake.is_settled());
        assert_ne!(fake.leader(0), node);
        assert_eq!(fake.causes(), BTreeSet::from([Cause::NotLed]));
    }
    // The only one leads again.
    let mut fake = Fake::new(1);
    fake.create(1, Dial::default());
    fake.controller.handle(fake.now, Fact::CannotLead { shard: ShardId(0), epoch: Epoch(1) });
    fake.run_until(|fake| fake.causes() == BTreeSet::from([Cause::NotLed]) && fake.is_settled());
    assert_eq!(fake.leader(0), A);
}

#[test]
fn a_replica_whose_state_is_being_folded_leads_only_if_no_other_can() {
    for (folding, primaries) in [(vec![B], [(B, 4), (C, 8)]), (vec![B, C], [(B, 6), (C, 6)])] {
        let mut fake = Fake::new(3);
        fake.create(12, THREE);
        folding.iter().for_each(|node| fake.nodes.get_mut(node).unwrap().is_folding = true);
        fake.kill(A);
        fake.run_until(|fake| fake.all_led_but_by(A));
        assert_eq!(fake.primaries(), BTreeMap::from(primaries), "{folding:?}");
    }
}

#[test]
fn a_change_whose_members_are_lost_before_it_is_recorded_is_given_up_for_now() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let node = fake.leader(0);
    fake.is_mute = true;
    let (service, one) = (ServiceId(0), Dial { replicas: 1, ..THREE });
    fake.state.apply(Command::SetDial { service, expected: THREE, dial: one });
    fake.run(300);
    // The members are sealed for an epoch of the primary alone, and its disk is lost.
    fake.is_mute = false;
    fake.restart(node, DiskState::Lost);
    fake.run_until(|fake| fake.all_led_but_by(node));
    fake.run_until(|fake| fake.members(0).len() == 1 && fake.is_settled());
}

#[test]
fn a_shard_that_a_node_led_alone_is_adopted_and_grows_with_its_log() {
    let mut fake = Fake::new(1);
    let points = [1, 2].map(|index| LogPoint { epoch: Epoch(4), index: Index(index) });
    let mut led = FakeReplica { promised: Epoch(4), ..FakeReplica::default() };
    points.iter().for_each(|point| led.table.push(*point));
    fake.nodes.get_mut(&A).unwrap().replicas.insert((ShardId(0), ReplicaId::FIRST), led);
    let shards = vec![ShardStart::Adopted { node: A, last: points[1], epoch: Epoch(5) }];
    let create = Command::CreateService { name: "bank".to_owned(), dial: Dial::default(), shards };
    assert_eq!(fake.state.apply(create), Outcome::Done);
    fake.run_until(Fake::is_settled);
    fake.join();
    fake.join();
    let (service, expected) = (ServiceId(0), Dial::default());
    assert_eq!(fake.state.apply(Command::SetDial { service, expected, dial: THREE }), Outcome::Done);
    fake.run_until(|fake| fake.members(0) == BTreeSet::from([A, B, C]) && fake.is_settled());
    let logs = fake.nodes.values().flat_map(|node| node.replicas.values());
    assert_eq!(logs.filter(|replica| replica.table.has(points[1])).count(), 3);
    assert!(fake.causes().iter().all(|cause| !cause.is_failure()), "{:?}", fake.causes());
}

#[test]
fn a_dial_that_changes_nothing_of_an_epoch_begins_none() {
    let mut fake = Fake::new(3);
    fake.create(2, THREE);
    let service = ServiceId(0);
    let dial = Dial { max_lag: Micros::from_secs(1), ..THREE };
    assert_eq!(fake.state.apply(Command::SetDial { service, expected: THREE, dial }), Outcome::Done);
    fake.run(2_000);
    assert_eq!((fake.commands.len(), fake.state.dial_of(ShardId(1))), (0, Some(&dial)));
    // The primaries follow it all the same.
    let replicas = fake.nodes.values().flat_map(|node| node.replicas.values());
    let lags: Vec<Micros> = replicas.filter(|fake| fake.leads.is_some()).map(|fake| fake.max_lag).collect();
    assert_eq!(lags, [dial.max_lag; 2]);
}

#[test]
fn another_durability_is_another_epoch_and_so_is_the_end_of_a_doubt() {
    let mut fake = Fake::new(3);
    fake.create(1, THREE);
    let (service, durability) = (ServiceId(0), Durability::Interval);
    let dial = Dial { durability, ..THREE };
    assert_eq!(fake.state.apply(Command::SetDial { service, expected: THREE, dial }), Outcome::Done);
    let durability_of = |fake: &Fake| {
        let newest = fake.state.shard(ShardId(0)).unwrap().history().newest();
        (newest.config.epoch(), newest.config.durability())
    };
    fake.run_until(|fake| durability_of(fake).1 == durability && fake.is_settled());
    let before = durability_of(&fake).0;
    // The power of a backup is cut: nothing fails, and it counts in full from the next epoch on.
    let primary = fake.state.shard(ShardId(0)).unwrap().primary_node();
    let backup = [A, B, C].into_iter().find(|node| primary != Some(*node)).unwrap();
    fake.restart(backup, DiskState::Doubtful);
    fake.run_until(|fake| fake.state.shard(ShardId(0)).unwrap().history().is_doubted());
    fake.run_until(|fake| durability_of(fake).0 > before && fake.is_settled());
    let history = fake.state.shard(ShardId(0)).unwrap().history();
    assert!(!history.is_doubted() && history.losses().iter().next().is_none());
    assert!(fake.causes().iter().all(|cause| !cause.is_failure()), "{:?}", fake.causes());
}

#[test]
fn in_doubt_no_member_is_given_up_beside_one_that_has_failed_since_it_answered() {
    let mut fake = Fake::new(3);
    fake.create(1, Dial { durability: Durability::Interval, ..THREE });
    let shard = |fake: &Fake| fake.state.shard(ShardId(0)).unwrap().clone();
    let epoch = |fake: &Fake| shard(fake).history().newest().config.epoch();
    let (before, primary) = (epoch(&fake), shard(&fake).primary_node().unwrap());
    let backups: Vec<NodeId> = [A, B, C].into_iter().filter(|node| *node != primary).collect();
    // The power of all is cut, and the primary's node does not return.
    fake.kill(primary);
    backups.iter().for_each(|node| fake.restart(*node, DiskState::Doubtful));
    fake.run(1_000);
    assert!(shard(&fake).history().is_doubted() && epoch(&fake) == before, "it is waited for");
    fake.kill(backups[1]);
    fake.run(30_000);
    assert_eq!(epoch(&fake), before, "with the one that is left, nothing could end the next epoch");
    fake.restart(backups[1], DiskState::Lost);
    fake.run(1_000);
    assert_eq!(epoch(&fake), before);
    fake.restart(primary, DiskState::Doubtful);
    fake.run_until(|fake| epoch(fake) > before && fake.is_settled());
    let history = shard(&fake).history().clone();
    assert!(history.losses().iter().next().is_some() && history.void().len() == 1);
}

#[test]
fn in_doubt_a_member_that_has_answered_is_waited_for_while_it_is_away_for_a_moment() {
    let mut fake = Fake::new(3);
    fake.create(1, Dial { durability: Durability::Interval, ..THREE });
    let shard = |fake: &Fake| fake.state.shard(ShardId(0)).unwrap().clone();
    let (before, primary) =
        (shard(&fake).history().newest().config.epoch(), shard(&fake).primary_node().unwrap());
    let backups: Vec<NodeId> = [A, B, C].into_iter().filter(|node| *node != primary).collect();
    // One backup keeps its power, and answers alone for longer than absent members are waited for.
    for node in [primary, backups[0]] {
        fake.kill(node);
    }
    fake.run(30_000);
    // It fails just before the others return, and is back a second later.
    fake.kill(backups[1]);
    fake.run(500);
    fake.restart(primary, DiskState::Doubtful);
    fake.restart(backups[0], DiskState::Doubtful);
    fake.run(1_000);
    assert_eq!(shard(&fake).history().newest().config.epoch(), before, "it is waited for");
    fake.restart(backups[1], DiskState::Whole);
    fake.run_until(|fake| shard(fake).history().newest().config.epoch() > before && fake.is_settled());
    assert!(shard(&fake).history().void().is_empty());
}
