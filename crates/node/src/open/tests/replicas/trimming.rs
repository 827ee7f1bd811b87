//! The snapshots that replicas take themselves, and the trims of their nodes' logs.

use super::*;

/// The growth of a log between two snapshots.
const GROWTH: u64 = 64 << 10;

/// As [`serving`], with a log that grows little before it is trimmed.
fn trimming() -> Cluster {
    let placed = NODES.map(|node| (node, ReplicaId(node.into()))).into();
    begin_to_serve(Cluster::with_snapshots(placed, GROWTH))
}

/// Lets a node handle requests, one after the other.
fn request_all(cluster: &mut Cluster, node: u32, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        cluster.request(node, number, number.into());
        cluster.settle();
        assert_eq!(cluster.answered(), [(number, Ok(number as u8))]);
    }
}

fn last(cluster: &Cluster, node: u32) -> LogPoint {
    cluster.replica(node).replica().table().last()
}

fn base(cluster: &Cluster, node: u32) -> LogPoint {
    cluster.replica(node).replica().table().base()
}

fn own_files(cluster: &Cluster, node: u32) -> Vec<String> {
    cluster.disks[&node].list("replicas/own").unwrap_or_default()
}

/// Nothing folds that state any more, whose log is no longer there.
#[test]
fn a_log_is_trimmed_after_a_snapshot_has_come_in_the_place_of_a_state_that_was_to_be_folded() {
    let mut cluster = trimming();
    request_all(&mut cluster, 1, 1..=3);
    cluster.succeed_without(4);
    let step = |cluster: &mut Cluster, nodes: &[u32]| {
        for node in nodes {
            cluster.work(*node);
            cluster.log(*node);
            cluster.carry(*node);
        }
    };
    step(&mut cluster, &[2]);
    cluster.cut_off = Some(1);
    step(&mut cluster, &[3, 2]);
    cluster.request(2, 5, 5);
    step(&mut cluster, &[2, 3, 2]);
    cluster.cut_off = None;
    // The cut and a snapshot of the next primary, beyond the frame with the cut, reach it in one turn.
    let (installed, state) = cluster.snapshot(2, 1);
    let (from, epoch) = (ReplicaId(2), Epoch(2));
    cluster.give(1, shard_replica::Input::Installed { from, epoch, base: installed, state });
    cluster.work(1);
    assert_eq!(base(&cluster, 1), installed);
    cluster.connect(1, 2);
    cluster.settle();
    cluster.wait();
    assert_eq!(cluster.answered(), [(4, Ok(5)), (5, Ok(4))]);
    request_all(&mut cluster, 2, 6..=200);
    for node in NODES {
        let kept = last(&cluster, node).index.0 - base(&cluster, node).index.0;
        assert!((16..=40).contains(&kept), "node {node} keeps {kept} entries");
    }
}

#[test]
fn a_log_is_trimmed_behind_snapshots_from_which_a_node_begins() {
    let mut cluster = trimming();
    request_all(&mut cluster, 1, 1..=200);
    for node in NODES {
        let segments = cluster.nodes[&node].shared.log().segments();
        assert!(segments < 12, "node {node} keeps {segments} segments");
        assert_eq!(own_files(&cluster, node).len(), 1, "node {node}: the older ones are removed");
        // Each write fills a block of 4 KiB.
        let kept = last(&cluster, node).index.0 - base(&cluster, node).index.0;
        assert!((16..=40).contains(&kept), "node {node} keeps {kept} entries");
    }

    // A node begins from its newest one, and has all that was answered.
    cluster.end(2);
    cluster.open(2);
    let LogPoint { epoch, index } = base(&cluster, 2);
    assert_eq!(own_files(&cluster, 2), [format!("0-2-{epoch}-{index}.snapshot")]);
    let sealed = cluster.seal(2);
    cluster.end(1);
    cluster.lead(2, 2, sealed[&2].table.last());
    cluster.settle();
    cluster.request(2, 300, 200);
    cluster.request(2, 301, 201);
    cluster.settle();
    assert_eq!(cluster.answered(), [(300, Ok(200)), (301, Ok(201))]);
}

/// It gets the entries that it lacks.
#[test]
fn a_peer_that_lags_by_less_than_the_growth_between_two_snapshots_gets_none() {
    let mut cluster = trimming();
    request_all(&mut cluster, 1, 1..=60);
    let before = own_files(&cluster, 1);
    cluster.cut_off = Some(3);
    let mut number = 60;
    while own_files(&cluster, 1) == before {
        number += 1;
        request_all(&mut cluster, 1, number..=number);
    }
    cluster.cut_off = None;
    cluster.connect(1, 3);
    cluster.settle();
    assert_eq!((last(&cluster, 3), cluster.chunks), (last(&cluster, 1), 0));

    // One that lags by more gets one, and then the entries behind that.
    cluster.cut_off = Some(3);
    request_all(&mut cluster, 1, number + 1..=number + 60);
    cluster.cut_off = None;
    cluster.connect(1, 3);
    cluster.settle();
    assert_eq!(last(&cluster, 3), last(&cluster, 1));
    assert!(cluster.chunks > 0);
    let files = cluster.snapshot_files(3);
    assert_eq!(files.len(), 2, "{files:?}: its own one stays until it has a newer one");
    request_all(&mut cluster, 1, number + 61..=number + 100);
    let files = cluster.snapshot_files(3);
    assert_eq!(files.len(), 1, "{files:?}");
}

/// The entry at the primary's end waits for the very replica that needs the snapshot.
#[test]
fn a_member_that_is_needed_for_the_next_commit_gets_a_snapshot_of_what_is_committed_17() {
    let mut cluster = lagging();
    cluster.end(2);
    cluster.request(1, 30, 21);
    cluster.settle();
    assert_eq!(cluster.answered(), [(30, Ok(21))]);
    assert_eq!(last(&cluster, 3), last(&cluster, 1));
}

#[test]
fn without_space_for_a_snapshot_the_log_is_kept_and_another_one_is_taken_later() {
    let mut cluster = trimming();
    let disk = cluster.disks[&1].clone();
    disk.set_capacity(Some(disk.used()));
    let mut number = 0;
    while !cluster.nodes[&1].shared.log().is_full() {
        number += 1;
        request_all(&mut cluster, 1, number..=number);
    }
    cluster.pass(&NODES, 1000);
    assert_eq!(own_files(&cluster, 1), Vec::<String>::new());
    disk.set_capacity(None);
    cluster.pass(&NODES, 1000);
    assert_eq!(own_files(&cluster, 1).len(), 1);
    request_all(&mut cluster, 1, number + 1..=number + 60);
    assert!(base(&cluster, 1).index > Index(0));
}

/// Nor does the log keep what it had.
#[test]
fn nothing_is_left_of_a_replica_that_is_deleted_5() {
    let mut cluster = trimming();
    request_all(&mut cluster, 1, 1..=60);
    assert_eq!(own_files(&cluster, 3).len(), 1);
    let before = cluster.nodes[&3].shared.log().segments();
    cluster.nodes[&3].shared.delete_replica(SHARD, ReplicaId(3));
    cluster.settle();
    assert_eq!(own_files(&cluster, 3), Vec::<String>::new());
    let after = cluster.nodes[&3].shared.log().segments();
    assert!(after == 1 && before > 1, "{before} and then {after} segments");
    // Its tombstone survives the trim, so that it stays away after a start.
    cluster.end(3);
    cluster.placed.insert(3, ReplicaId(3));
    cluster.open(3);
    assert_eq!(cluster.replica(3).replica().id(), ReplicaId::NONE);
}
