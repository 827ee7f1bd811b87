//! Groups of one, three and five voters.

use crate::cluster::{Cluster, LONG, SETTINGS, alone, found, identity, insist, nowhere, propose};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_control::{
    Begin, Change, ChangeError, ControlPlane, Options, ProposeError, ReadError, Role, Settings,
};
use stead_core::control::{self, Command, ControlState, Outcome, Refusal};
use stead_core::ids::NodeId;
use stead_store::sim_disk::SimDisk;

fn nodes(numbers: &[u32]) -> Vec<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

#[test]
fn a_node_on_its_own_leads_applies_and_restarts() {
    let disk = SimDisk::new(1);
    let plane = alone(&disk, found()).unwrap();
    assert_eq!(propose(&plane, "one"), 1);
    let two = plane.proposal(&"two".to_owned());
    assert_eq!(plane.propose(&two, LONG), Ok(2));
    let status =
        plane.wait_status(LONG, |status| status.role == Role::Leader && status.applied == 4).unwrap();
    assert_eq!((status.leader, status.voters), (Some(NodeId(1)), nodes(&[1])));
    plane.shutdown();
    assert!(matches!(plane.propose(&two, LONG), Err(ProposeError::Stopped(None))));
    assert!(matches!(plane.read(LONG), Err(ReadError::Stopped(None))));

    let plane = alone(&disk, Begin::Resume).unwrap();
    assert_eq!(plane.read(LONG).unwrap().state.commands, ["one", "two"]);
    assert_eq!(
        plane.propose(&two, LONG),
        Ok(2),
        "a proposal that is repeated after a restart has its outcome"
    );
    assert_eq!(propose(&plane, "three"), 3);
    assert_eq!(plane.newest().state.commands, ["one", "two", "three"]);
}

#[test]
fn a_watch_sees_the_newest_state_and_nothing_twice() {
    let disk = SimDisk::new(1);
    let plane = alone(&disk, found()).unwrap();
    let mut watch = plane.watch();
    let first = watch.newer().unwrap();
    propose(&plane, "one");
    let mut newest = first;
    while newest.state.commands.is_empty() {
        let next = watch.wait(LONG).unwrap();
        assert!(next.applied > newest.applied);
        newest = next;
    }
    let mut left = watch.newer();
    while let Some(next) = left {
        assert!(next.applied > newest.applied);
        newest = next;
        left = watch.newer();
    }
    assert!(watch.wait(Duration::ZERO).is_none());
    plane.shutdown();
    assert!(watch.wait(LONG).is_none(), "it does not wait for a plane that has ended");
}

#[test]
fn three_voters_replicate_what_any_of_them_proposes() {
    let cluster = Cluster::new(3, SETTINGS);
    for (node, plane) in &cluster.planes {
        propose(plane, &format!("from {node}"));
        assert_eq!(plane.read(LONG).unwrap().state.count(&format!("from {node}")), 1);
    }
    assert_eq!(cluster.converge(), ["from 1", "from 2", "from 3"]);
    let status = cluster.wait(1, |status| status.voters.len() == 3 && !status.is_changing);
    assert_eq!((status.voters, status.learners), (nodes(&[1, 2, 3]), nodes(&[])));
}

#[test]
fn a_group_goes_on_without_its_leader_which_returns_later() {
    let mut cluster = Cluster::new(3, SETTINGS);
    propose(cluster.any(), "before");
    let old = cluster.leader_of(&[1, 2, 3]);
    cluster.stop(old);
    let left: Vec<_> = cluster.planes.keys().copied().collect();
    let new = cluster.leader_of(&left);
    assert_ne!(new, old);
    for node in &left {
        propose(&cluster.planes[node], &format!("during, from {node}"));
    }
    cluster.start(old, Begin::Resume);
    propose(&cluster.planes[&old], "after");
    let commands = cluster.converge();
    assert_eq!(commands.len(), 4);
    assert_eq!(commands[0], "before");
}

#[test]
fn all_voters_restart_and_hold_what_was_committed() {
    let mut cluster = Cluster::new(3, SETTINGS);
    for number in 0..10 {
        propose(&cluster.planes[&(number % 3 + 1)], &number.to_string());
    }
    let before = cluster.converge();
    for node in 1..=3 {
        cluster.stop(node);
    }
    for node in 1..=3 {
        cluster.start(node, Begin::Resume);
    }
    assert_eq!(cluster.converge(), before);
    propose(&cluster.planes[&2], "after");
    assert_eq!(cluster.converge().len(), 11);
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_and_follows_when_it_is_healed() {
    let cluster = Cluster::new(3, SETTINGS);
    propose(cluster.any(), "before");
    let old = cluster.leader_of(&[1, 2, 3]);
    let others: Vec<_> = (1..=3).filter(|node| *node != old).collect();
    for other in &others {
        cluster.net.cut(old, *other);
    }
    let cut_off = &cluster.planes[&old];
    let proposal = cut_off.proposal(&"cut off".to_owned());
    assert_eq!(cut_off.propose(&proposal, Duration::from_millis(100)), Err(ProposeError::Unknown));
    assert_eq!(cut_off.read(Duration::from_millis(100)).map(|read| read.applied), Err(ReadError::NoAnswer));
    cluster.leader_of(&others);
    propose(&cluster.planes[&others[0]], "meanwhile");
    cluster.net.heal();
    insist(cut_off, &proposal);
    // At another node, too, it has the same outcome.
    let again = insist(&cluster.planes[&others[1]], &proposal);
    let commands = cluster.converge();
    assert_eq!(commands.iter().filter(|command| *command == "cut off").count(), 1, "{commands:?}");
    assert_eq!(commands[usize::try_from(again).unwrap() - 1], "cut off");
}

#[test]
fn a_proposal_whose_answers_are_lost_is_applied_once() {
    let cluster = Cluster::new(3, SETTINGS);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    cluster.net.lost_answers.store(2, Ordering::Relaxed);
    let plane = &cluster.planes[&follower];
    insist(plane, &plane.proposal(&"once".to_owned()));
    assert_eq!(cluster.net.lost_answers.load(Ordering::Relaxed), 0, "no answer was lost");
    assert_eq!(cluster.converge(), ["once"]);
}

#[test]
fn a_minority_has_no_leader() {
    let mut cluster = Cluster::new(3, SETTINGS);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let left = (1..=3).find(|node| *node != leader).unwrap();
    for node in (1..=3).filter(|node| *node != left) {
        cluster.stop(node);
    }
    let plane = &cluster.planes[&left];
    plane.wait_status(LONG, |status| status.leader.is_none()).unwrap();
    let proposal = plane.proposal(&"no".to_owned());
    let wait = Duration::from_millis(100);
    // The voters that it asks do not answer, so it cannot know whether one of them applies it.
    let proposed = plane.propose(&proposal, wait);
    assert!(matches!(proposed, Err(ProposeError::Unknown | ProposeError::NoLeader)), "{proposed:?}");
    assert_eq!(plane.read(wait).map(|read| read.applied), Err(ReadError::NoAnswer));
    assert!(plane.change(Change::Remove { node: NodeId(leader) }, wait).is_err());
}

#[test]
fn a_log_is_purged_behind_snapshots_and_a_new_node_gets_one() {
    let settings = Settings { snapshot_entries: 8, ..SETTINGS };
    let mut cluster = Cluster::new(1, settings);
    for number in 0..60 {
        propose(cluster.any(), &number.to_string());
    }
    cluster.wait(1, |status| status.snapshot > 50);
    cluster.start(2, Begin::Join);
    cluster.place(2);
    cluster.promote(2);
    propose(&cluster.planes[&2], "from the new node");
    let commands = cluster.converge();
    assert_eq!(commands.len(), 61);
    cluster.wait(2, |status| status.snapshot > 50);
    cluster.stop(2);
    cluster.start(2, Begin::Resume);
    assert_eq!(cluster.converge(), commands);
}

#[test]
fn large_commands_are_purged_by_their_bytes() {
    let settings = Settings { snapshot_bytes: 200_000, ..SETTINGS };
    let cluster = Cluster::new(1, settings);
    // The ledger would keep them all, so they are counted in small numbers.
    for number in 0..12 {
        propose(cluster.any(), &format!("{number}{}", "x".repeat(60_000)));
    }
    cluster.wait(1, |status| status.snapshot > 3);
}

#[test]
fn one_becomes_five_and_loses_its_founder() {
    let mut cluster = Cluster::new(5, SETTINGS);
    propose(cluster.any(), "five");
    let status = cluster.wait(1, |status| status.voters.len() == 5 && !status.is_changing);
    assert_eq!(status.voters, nodes(&[1, 2, 3, 4, 5]));
    let sixth = cluster.any().change(Change::Place { node: NodeId(6), address: "node-6".to_owned() }, LONG);
    assert_eq!(sixth, Ok(()));
    let refused = cluster.any().change(Change::Promote { node: NodeId(6) }, LONG);
    assert!(
        matches!(&refused, Err(ChangeError::Refused(reason)) if reason.contains("5 voters")),
        "{refused:?}"
    );
    cluster.planes[&3].change(Change::Remove { node: NodeId(6) }, LONG).unwrap();
    cluster.planes[&3].change(Change::Remove { node: NodeId(1) }, LONG).unwrap();
    cluster.planes[&3].change(Change::Remove { node: NodeId(1) }, LONG).unwrap();
    cluster.stop(1);
    propose(&cluster.planes[&4], "four");
    assert_eq!(cluster.converge(), ["five", "four"]);
    let status = cluster.wait(4, |status| status.voters.len() == 4 && !status.is_changing);
    assert_eq!((status.voters, status.learners), (nodes(&[2, 3, 4, 5]), nodes(&[])));
}

#[test]
fn the_state_of_the_control_plane_is_folded_and_restored() {
    let disk = Arc::new(SimDisk::new(1));
    let start = |begin| {
        let options = Options {
            identity: identity(1),
            begin,
            initial: ControlState::default(),
            settings: Settings { snapshot_entries: 8, ..SETTINGS },
            on_change: Box::new(|| ()),
        };
        ControlPlane::start(options, disk.clone(), nowhere()).unwrap()
    };
    let plane = start(found());
    let cluster = control::Cluster { id: identity(1).cluster, incarnation: identity(1).incarnation };
    let propose = |command: &Command| plane.propose(&plane.proposal(command), LONG).unwrap();
    assert_eq!(
        propose(&Command::SetBalancing { is_balancing: false }),
        Outcome::Refused(Refusal::NotFounded)
    );
    assert_eq!(propose(&Command::Found { cluster, secret: None }), Outcome::Done);
    for round in 0..20 {
        assert_eq!(propose(&Command::SetBalancing { is_balancing: round % 2 == 0 }), Outcome::Done);
    }
    plane.wait_status(LONG, |status| status.snapshot > 8).unwrap();
    let before = plane.read(LONG).unwrap();
    assert_eq!(before.state.cluster(), Some(cluster));
    plane.shutdown();
    assert_eq!(start(Begin::Resume).read(LONG).unwrap().state, before.state);
}

#[test]
fn impossible_changes_are_refused() {
    let cluster = Cluster::new(1, SETTINGS);
    let change = |change| cluster.any().change(change, LONG);
    let refusals = [
        (Change::Promote { node: NodeId(9) }, "place it first"),
        (Change::Remove { node: NodeId(1) }, "the only voter"),
        (Change::Place { node: NodeId(2), address: String::new() }, "an address has 1 to 300 bytes"),
        (Change::Place { node: NodeId(2), address: "a".repeat(301) }, "an address has 1 to 300 bytes"),
    ];
    for (refused, reason) in refusals {
        match change(refused) {
            Err(ChangeError::Refused(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{reason}: {other:?}"),
        }
    }
    change(Change::Promote { node: NodeId(1) }).unwrap();
    change(Change::Remove { node: NodeId(9) }).unwrap();
    // A learner that cannot be reached does not become a voter: the group would have no majority.
    change(Change::Place { node: NodeId(2), address: "node-2".to_owned() }).unwrap();
    for number in 0..70 {
        propose(cluster.any(), &number.to_string());
    }
    let behind = cluster.any().change(Change::Promote { node: NodeId(2) }, Duration::from_millis(100));
    let lacks = |entries: u64| entries > 70;
    assert!(
        matches!(behind, Err(ChangeError::Behind { node: NodeId(2), entries }) if lacks(entries)),
        "{behind:?}"
    );
    assert_eq!(cluster.any().status().voters, nodes(&[1]));
}
