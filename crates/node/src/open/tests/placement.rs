//! A node that has some of the shards only.

use super::*;

#[test]
fn a_node_serves_the_shards_that_it_has_and_refuses_the_others() {
    let disk = SimDisk::new(4);
    let mut node = Node::open(&disk, 1);
    let other = node.other_key();
    let elsewhere = node.shard_of(other);
    node.settle();
    node.parts.life.kill();
    drop(node);

    let mut node = Node::open_with(&disk, 1, &[elsewhere]);
    assert!(matches!(node.parts.life.readiness(), Err(NotReady::Shards { active: 0, shards: 1 })));
    node.settle();
    assert_eq!(node.parts.life.readiness(), Ok(()));
    let refused = NoAnswer::NotHere { shard: elsewhere, place: Place::Elsewhere };
    assert_eq!(node.try_request(1, other, b""), Err(refused.clone()));
    assert_eq!(
        node.parts.life.shared.look(ShardId(9), |_| ()).map_err(|error| error.to_string()),
        Err("shard 9 is not on this node".to_owned())
    );
    // A message to it stays in the outbox.
    node.request(2, "a", other.as_bytes());
    node.settle();
    assert_eq!(node.answered(), [(2, 1)]);
    let outbox = |node: &Node| {
        node.parts.workers[0].shards().map(|shard| shard.state().outbox_messages()).sum::<usize>()
    };
    assert_eq!((outbox(&node), node.parts.workers[0].shards().count()), (1, 1));
    node.parts.life.kill();
    drop(node);

    // Once the shard is placed here as well, the message arrives.
    let mut node = Node::open(&disk, 1);
    node.settle();
    node.request(3, other, b"");
    node.settle();
    assert_eq!(node.answered(), [(3, 2)]);
    node.parts.life.kill();
}

/// Returns the options of a node without one of its shards.
fn without(shard: ShardId, place: Place) -> Options {
    Options { not_here: BTreeMap::from([(shard, place)]), ..Node::options(1) }
}

#[test]
fn a_checkpoint_without_the_shards_of_other_nodes_is_not_checked_and_serves_a_restart() {
    for place in [Place::Elsewhere, Place::Unplaced] {
        let disk = SimDisk::new(7);
        let mut node = Node::open(&disk, 1);
        let other = node.other_key();
        let shard = node.shard_of(other);
        node.settle();
        node.request(1, "a", b"");
        node.request(2, other, b"");
        node.settle();
        node.answered();
        let whole = node.checkpoint();
        assert_eq!((whole.number, whole.check, whole.skipped_checks), (1, CheckOutcome::Hold, vec![]));
        assert_eq!(node.parts.life.shared.not_here().count(), 0);
        node.parts.life.kill();
        drop(node);

        let mut node = Node::open_as(&disk, without(shard, place)).unwrap();
        let not_here: Vec<_> = node.parts.life.shared.not_here().collect();
        assert_eq!((not_here.len(), not_here[0].shard, not_here[0].place), (1, shard.0, place));
        assert_eq!(not_here[0].service, "counter");
        node.settle();
        node.request(3, "a", b"");
        node.settle();
        let part = node.checkpoint();
        assert_eq!((part.number, part.check), (2, CheckOutcome::NotChecked));
        let skipped: Vec<_> = part.skipped_checks.iter().map(|check| check.reason.clone()).collect();
        assert_eq!(skipped, [format!("the checkpoint has no part of shard {shard}")]);
        let verified = node.parts.life.verify(2).unwrap();
        assert_eq!((verified.check, verified.shards), (CheckOutcome::NotChecked, 1));
        assert_eq!(verified.inconsistencies, [Inconsistency::NoPart { shard }]);
        assert_eq!(node.parts.life.verify(1).unwrap().check, CheckOutcome::Hold);
        node.answered();
        node.parts.life.kill();
        drop(node);

        let mut node = Node::open_as(&disk, without(shard, place)).unwrap();
        assert_eq!(node.parts.life.recovery().checkpoint, Some(2));
        node.settle();
        node.request(4, "a", b"");
        node.settle();
        assert_eq!(node.answered(), [(4, 3)]);
        node.parts.life.kill();
        drop(node);
        // The node's entries of the shard may be trimmed, so the shard must not begin anew here.
        let refused = Node::open_as(&disk, Node::options(1)).err().unwrap();
        assert!(
            matches!(&refused, OpenError::Recovery(RecoveryError::Incomplete { shard: lacks, .. }) if *lacks == shard),
            "{refused}"
        );
    }
}

#[test]
fn entries_of_a_shard_that_is_elsewhere_do_not_hold_the_log() {
    let segments_after = |place| {
        let disk = SimDisk::new(9);
        let mut node = Node::open(&disk, 1);
        let other = node.other_key();
        let shard = node.shard_of(other);
        node.settle();
        // Each is a batch, and a segment has room for 15 of them.
        for number in 0..40 {
            node.request(number, other, b"");
            node.settle();
        }
        let segments = |node: &Node| node.parts.life.shared.log.status().segments;
        let before = segments(&node);
        assert!(before >= 3, "{before} segments");
        node.parts.life.kill();
        drop(node);
        let mut node = Node::open_as(&disk, without(shard, place)).unwrap();
        node.settle();
        node.checkpoint();
        node.settle();
        let after = segments(&node);
        node.parts.life.kill();
        (before, after)
    };
    let (before, after) = segments_after(Place::Elsewhere);
    assert!(after < before && after <= 2, "{after} of {before} segments are left");
    // They may be all there is of it.
    let (before, after) = segments_after(Place::Unplaced);
    assert!(after >= before, "{after} of {before} segments are left");
}

#[test]
fn a_discarded_part_leaves_the_other_shards_of_the_worker() {
    let mut node = Node::open(&SimDisk::new(10), 1);
    node.settle();
    let number = CheckpointNumber(1);
    let shared = &node.parts.life.shared;
    shared.pass_on(0, News::Colour(number.colour()));
    shared.pass_on(0, News::Discarded(ShardId(0), number));
    node.settle();
    let both = vec![ShardId(0), ShardId(1)];
    assert_eq!(*node.watch().snapshots.lock().unwrap(), [both, vec![ShardId(1)]]);
    node.parts.life.kill();
}

#[test]
fn an_operator_cannot_delete_the_newest_part_of_a_shard_that_no_node_has() {
    for place in [Place::Elsewhere, Place::Unplaced] {
        let disk = SimDisk::new(7);
        let mut node = Node::open(&disk, 1);
        let shard = node.shard_of(node.other_key());
        assert_eq!((node.take_checkpoint(), node.take_checkpoint()), (1, 2));
        node.parts.life.kill();
        drop(node);

        let mut node = Node::open_as(&disk, without(shard, place)).unwrap();
        assert_eq!(node.take_checkpoint(), 3);
        let life = &node.parts.life;
        life.delete_checkpoint(1).unwrap();
        match (place, life.delete_checkpoint(2)) {
            (Place::Unplaced, Err(CheckpointFailure::Store(reason))) => {
                assert!(reason.starts_with("checkpoint 2 has the newest part of a shard"), "{reason}");
                assert!(life.checkpoint_info(2).unwrap().is_some());
            }
            (Place::Elsewhere, Ok(())) => {}
            (_, deleted) => panic!("{place:?}: {deleted:?}"),
        }
        life.kill();
    }
}
