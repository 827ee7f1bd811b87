//! Replicas that come and go while the nodes run.

use super::*;

const NEW: ReplicaId = ReplicaId(3);

/// Returns the replicas of the first two nodes.
fn members() -> Vec<ReplicaId> {
    vec![ReplicaId(1), ReplicaId(2)]
}

/// A cluster whose node 1 leads epoch 1 of two replicas, and whose node 3 has none. A request is answered.
fn of_two() -> Cluster {
    let mut cluster = Cluster::with([(1, ReplicaId(1)), (2, ReplicaId(2))].into());
    let sealed = cluster.seal(1);
    assert_eq!(sealed.keys().copied().collect::<Vec<_>>(), [1, 2]);
    cluster.lead(1, 1, LogPoint::default());
    cluster.settle();
    cluster.open_session(1, 0);
    cluster.request(1, 1, 1);
    cluster.settle();
    assert_eq!(cluster.answered(), [(0, Ok(0)), (1, Ok(1))]);
    cluster
}

/// Makes a replica of node 3 a learner of the epoch. That node hears of it first, or last.
fn learn(cluster: &mut Cluster, replica: ReplicaId, hears_last: bool) {
    cluster.placed.insert(3, replica);
    let deaf = hears_last.then(|| cluster.nodes.remove(&3).unwrap());
    cluster.lead_with(1, 1, LogPoint::default(), (members(), vec![replica]));
    cluster.settle();
    if let Some(node) = deaf {
        node.shared.follow_routes([(SHARD, cluster.route.as_ref().unwrap())]);
        cluster.nodes.insert(3, node);
        cluster.settle();
    }
}

#[test]
fn a_place_without_a_replica_forwards_calls_and_takes_part_in_nothing() {
    let mut cluster = of_two();
    cluster.request(3, 2, 2);
    cluster.settle();
    assert_eq!(cluster.answered(), [(2, Ok(2))]);
    assert_eq!(cluster.seal(2).keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(!cluster.reports.contains_key(&3), "there is nothing to report");
}

#[test]
fn a_replica_that_is_placed_while_its_node_runs_catches_up_and_then_counts_2() {
    for hears_last in [false, true] {
        let mut cluster = of_two();
        learn(&mut cluster, NEW, hears_last);
        let report = &cluster.reports[&1];
        assert_eq!((&report.learners, &report.caught_up), (&vec![NEW], &vec![NEW]), "{hears_last}");
        assert_eq!(cluster.replica(3).replica().table(), cluster.replica(1).replica().table());
        // A learner does not count.
        cluster.cut_off = Some(2);
        cluster.request(1, 2, 2);
        cluster.settle();
        assert_eq!(cluster.answered(), []);
        cluster.cut_off = None;
        cluster.connect(1, 2);
        cluster.settle();
        assert_eq!(cluster.answered(), [(2, Ok(2))]);

        let base = cluster.seal(2)[&1].table.last();
        cluster.lead(2, 1, base);
        cluster.settle();
        cluster.cut_off = Some(2);
        cluster.request(1, 3, 3);
        cluster.settle();
        assert_eq!(cluster.answered(), [(3, Ok(3))], "a member does");
    }
}

/// A node that starts again has what it had, if the control plane still places the same replica there: rule 1.
#[test]
fn the_log_of_an_earlier_replica_does_not_count_for_a_later_one_1() {
    let mut cluster = of_two();
    learn(&mut cluster, NEW, false);
    let table = cluster.replica(1).replica().table().clone();
    let end_and_open = |cluster: &mut Cluster, replica: Option<ReplicaId>| {
        cluster.end(3);
        cluster.placed.remove(&3);
        cluster.placed.extend(replica.map(|replica| (3, replica)));
        cluster.open(3);
        let replica = cluster.replica(3).replica();
        (replica.id(), replica.table().last())
    };
    let nothing = LogPoint::default();
    assert_eq!(end_and_open(&mut cluster, Some(NEW)), (NEW, table.last()));
    assert_eq!(end_and_open(&mut cluster, None), (ReplicaId::NONE, nothing));
    assert_eq!(end_and_open(&mut cluster, Some(ReplicaId(5))), (ReplicaId(5), nothing));
    assert_eq!(cluster.replica(3).replica().promised(), Epoch(0));
    // It gets the log once more, of which parts stand in the node's log already.
    learn(&mut cluster, ReplicaId(5), false);
    assert_eq!(cluster.replica(3).replica().table(), &table);
    assert_eq!(end_and_open(&mut cluster, Some(ReplicaId(5))), (ReplicaId(5), table.last()));
    assert_eq!(end_and_open(&mut cluster, Some(NEW)), (ReplicaId::NONE, nothing), "its time is over");
}

/// The entries of the earlier one do not count for the later one.
#[test]
fn a_replica_takes_the_place_of_one_whose_records_are_not_durable_yet_17() {
    let mut cluster = of_two();
    cluster.placed.insert(3, NEW);
    cluster.lead_with(1, 1, LogPoint::default(), (members(), vec![NEW]));
    for _ in 0..4 {
        for node in [1, 2] {
            cluster.work(node);
            cluster.log(node);
        }
        cluster.carry(1);
        cluster.work(3);
        cluster.carry(3);
    }
    assert!(cluster.replica(3).replica().table().last().index > Index(0));
    cluster.nodes[&3].shared.place_replica(SHARD, ReplicaId(5));
    cluster.nodes[&3].shared.place_replica(SHARD, NEW);
    cluster.work(3);
    cluster.log(3);
    let replica = cluster.replica(3).replica();
    assert_eq!((replica.id(), replica.table().last()), (ReplicaId(5), LogPoint::default()));
    learn(&mut cluster, ReplicaId(5), false);
    assert_eq!(cluster.replica(3).replica().table(), cluster.replica(1).replica().table());
    assert_eq!(cluster.reports[&1].caught_up, [ReplicaId(5)]);
}

/// Not even an order or a frame that comes late brings it back, nor a start in between.
#[test]
fn a_replica_that_is_deleted_stays_away_5() {
    let mut cluster = of_two();
    learn(&mut cluster, NEW, false);
    cluster.facts.clear();
    let id = |cluster: &Cluster| cluster.replica(3).replica().id();
    cluster.nodes[&3].shared.delete_replica(SHARD, NEW);
    cluster.work(3);
    assert_eq!(id(&cluster), ReplicaId::NONE);
    assert!(cluster.nodes[&3].shared.control.take().facts.is_empty(), "the tombstone is not durable");
    cluster.settle();
    assert_eq!(cluster.facts, [Fact::Deleted(SHARD, NEW)]);
    learn(&mut cluster, NEW, false);
    assert_eq!(id(&cluster), ReplicaId::NONE);
    cluster.end(3);
    cluster.open(3);
    learn(&mut cluster, NEW, false);
    assert_eq!(id(&cluster), ReplicaId::NONE);
    cluster.nodes[&3].shared.delete_replica(SHARD, NEW);
    cluster.settle();
    assert_eq!(cluster.facts, [Fact::Deleted(SHARD, NEW), Fact::Deleted(SHARD, NEW)]);
    // The next one begins at nothing, and stays, whatever comes late.
    learn(&mut cluster, ReplicaId(4), false);
    cluster.nodes[&3].shared.delete_replica(SHARD, NEW);
    cluster.settle();
    assert_eq!(cluster.facts.last(), Some(&Fact::Deleted(SHARD, NEW)));
    assert_eq!(id(&cluster), ReplicaId(4));
    let table = cluster.replica(1).replica().table().clone();
    cluster.end(3);
    cluster.open(3);
    assert_eq!((id(&cluster), cluster.replica(3).replica().table()), (ReplicaId(4), &table));
}
