//! Recovery of shards with several replicas: their snapshots, and the logs behind these.

use super::model::{CLUSTER, INCARNATION, author};
use super::recovery::{Node, append_lost, failure, options};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{CheckpointNumber, Epoch, Index, ReplicaId, ShardId, Time};
use stead_core::key::Key;
use stead_core::placement::Placement;
use stead_core::records::{Piece, decode_records};
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::{self, LogEntry, Recovery};
use stead_store::checkpoint::manifest::read_manifest;
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::{Belonging, CheckpointError};
use stead_store::disk::Disk;
use stead_store::rebuild::{Rebuild, Sources};
use stead_store::recovery::{Facts, Recovered, RecoveryError, recover};
use stead_store::snapshots::{SnapshotName, Snapshots, Source};
use stead_store::wal::{Batch, CutRecord, Progress};

const SHARD: ShardId = ShardId(0);
const REPLICA: ReplicaId = ReplicaId::FIRST;

/// Recovers with some replicated shards, of which so many bytes are kept in memory.
fn recover_replicated(node: &Node, shards: &[u32], log_bytes_max: u64) -> Result<Recovered, RecoveryError> {
    let replicated = shards.iter().map(|shard| (ShardId(*shard), Some(REPLICA))).collect();
    recover_as(node, &replicated, log_bytes_max)
}

fn recover_as(
    node: &Node,
    replicated: &BTreeMap<ShardId, Option<ReplicaId>>,
    log_bytes_max: u64,
) -> Result<Recovered, RecoveryError> {
    let disk: Arc<dyn Disk> = Arc::new(node.disk.clone());
    let store = DiskStore::open(Arc::clone(&disk), "checkpoints").map_err(CheckpointError::from)?;
    let (topology, placement) = (&node.cluster.topology, Placement::all_here(&node.cluster.topology));
    let placement = &placement;
    let facts = Facts { cluster: CLUSTER, topology, placement, replicated, log_bytes_max };
    recover(disk, &store, facts, options(false), 1)
}

/// Checks the states of the shards that were folded, and of the others what their logs make of them.
fn check(node: &Node, recovered: Recovered) {
    for (state, log) in recovered.states.into_iter().zip(recovered.logs) {
        let shard = state.shard();
        let state = match log {
            Some(log) => Recovery::with_log(state, log).fold(Index(u64::MAX)),
            None => state,
        };
        assert_eq!(state.hash(), node.cluster.shards[shard.0 as usize].state.hash(), "shard {shard}");
    }
}

#[test]
fn nothing_is_folded_over_the_snapshot_of_a_replica_16() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut node = Node::new(seed);
        node.cluster.run(40);
        node.log();
        if seed % 2 == 1 {
            node.checkpoint();
        }
        append_lost(&mut node, SHARD, 1 + seed % 3);
        node.cluster.epoch = node.cluster.epoch.next();
        if seed % 4 > 1 {
            let index = node.cluster.index(SHARD);
            let mut batch = Batch::new();
            batch.push_cut(CutRecord { shard: SHARD, epoch: node.cluster.epoch, index });
            node.wal.append(&[batch]).unwrap();
        }
        node.cluster.run(40);
        node.log();
        let recovered = recover_replicated(&node, &[0, 3], u64::MAX).unwrap();
        let kept: Vec<bool> = recovered.logs.iter().map(Option::is_some).collect();
        assert_eq!(kept, [true, false, false, true]);
        let store = super::model::sim_store(&node.disk);
        let manifest = (seed % 2 == 1).then(|| read_manifest(&store, CheckpointNumber(1)).unwrap());
        for at in [0, 3] {
            let (state, log) = (&recovered.states[at], recovered.logs[at].as_ref().unwrap());
            let marker = manifest
                .as_ref()
                .map_or(Index(0), |manifest| manifest.part(ShardId(at as u32)).unwrap().index);
            assert_eq!((state.position().index, log.snapshot().index), (marker, marker));
            assert_eq!(log.table().last().index, node.cluster.index(ShardId(at as u32)));
        }
        check(&node, recovered);
    }
}

/// The entries that are not kept in memory are still part of the log.
#[test]
fn few_bytes_of_a_log_are_kept_in_memory() {
    let mut node = Node::new(3);
    node.cluster.run(80);
    node.log();
    for bytes_max in [0, 1_000] {
        let recovered = recover_replicated(&node, &[0], bytes_max).unwrap();
        let log = recovered.logs[0].as_ref().unwrap();
        assert!(log.bytes() <= bytes_max && (bytes_max == 0 || log.bytes() > 0), "{}", log.bytes());
        assert_eq!(log.table().last().index, node.cluster.index(SHARD));
    }
}

/// Returns the name of a snapshot of the shard's present state.
fn snapshot_name(node: &Node) -> SnapshotName {
    let position = node.cluster.shards[0].state.position();
    let base = LogPoint { epoch: position.epoch, index: position.index };
    SnapshotName { shard: SHARD, replica: REPLICA, base }
}

fn write_snapshot(node: &Node, name: SnapshotName) -> Result<(), CheckpointError> {
    write_as(node, Source::Received, name)
}

fn write_as(node: &Node, source: Source, name: SnapshotName) -> Result<(), CheckpointError> {
    let state = &node.cluster.shards[0].state;
    let snapshots = Snapshots::new(Arc::new(node.disk.clone()));
    snapshots.write((source, name), author(9), INCARNATION, (&state.header(), state.records()))
}

/// Runs the cluster, and logs of the shard only its first entries: the rest reaches it as a snapshot, which this returns.
fn lag(node: &mut Node) -> SnapshotName {
    node.cluster.run(60);
    let mut batch = Batch::new();
    let mut left = 3;
    for (shard, entry) in &node.cluster.log[node.logged..] {
        if *shard == SHARD {
            if left == 0 {
                continue;
            }
            left -= 1;
        }
        batch.push_with(*shard, entry.epoch, entry.index, |out| entry.encode_into(out));
    }
    node.wal.append(&[batch]).unwrap();
    node.wal.sync().unwrap();
    node.logged = node.cluster.log.len();
    snapshot_name(node)
}

fn install(node: &mut Node, name: SnapshotName) {
    let epoch = node.cluster.epoch;
    let mut batch = Batch::new();
    let records =
        [shard_replica::Record::Promise(epoch), shard_replica::Record::Install { epoch, base: name.base }];
    batch.push_replica(name.shard, name.replica, &records);
    node.wal.append(&[batch]).unwrap();
    node.wal.mark().unwrap();
}

fn has_snapshot(node: &Node, name: SnapshotName) -> bool {
    node.disk.files().contains(&format!("replicas/snapshots/{name}"))
}

#[test]
fn a_log_goes_on_behind_an_installed_snapshot_4() {
    for replicated in [&[0][..], &[]] {
        let mut node = Node::new(5);
        node.cluster.run(40);
        node.checkpoint();
        let name = lag(&mut node);
        write_snapshot(&node, name).unwrap();
        install(&mut node, name);
        for _ in 0..2 {
            let recovered = recover_replicated(&node, replicated, u64::MAX).unwrap();
            assert!(
                recovered.lineage.shards().all(|(shard, _)| shard != SHARD),
                "no checkpoint has its records"
            );
            assert_eq!(recovered.lineage.shards().count(), 3);
            check(&node, recovered);
            let mut state = recover_replicated(&node, replicated, 0).unwrap().states.swap_remove(0);
            let (records, mut piece) = (state.records().len(), Piece::default());
            state.begin_snapshot(false);
            while !state.drain_snapshot(100, &mut piece) {}
            let kept = decode_records(&piece.to_vec()).filter(|record| record.unwrap().1.is_some()).count();
            assert_eq!(kept, records, "the next part has all of them");
            assert!(has_snapshot(&node, name));
            node.cluster.run(30);
            node.log();
        }
        // A checkpoint that is newer stands for it.
        let recovered = recover_replicated(&node, &[], 0).unwrap();
        node.wal = recovered.wal;
        node.cluster.lineage = recovered.lineage;
        node.cluster.fail_next();
        node.checkpoint();
        check(&node, recover_replicated(&node, replicated, u64::MAX).unwrap());
        assert!(!has_snapshot(&node, name));
    }
}

#[test]
fn a_snapshot_that_was_not_switched_to_is_ignored_and_removed_4() {
    let mut node = Node::new(6);
    node.cluster.run(40);
    node.log();
    let name = snapshot_name(&node);
    write_snapshot(&node, name).unwrap();
    node.disk.put("replicas/snapshots/0-4-1-9.snapshot.tmp", b"unfinished");
    let recovered = recover_replicated(&node, &[0], u64::MAX).unwrap();
    assert_eq!(recovered.states[0].position().index, Index(0));
    check(&node, recovered);
    assert!(!node.disk.files().iter().any(|path| path.starts_with("replicas/")), "{:?}", node.disk.files());
}

/// A shard begins from the newest snapshot that its replica has taken, whose log may have nothing of what it covers: rules 4 and 18.
#[test]
fn a_log_goes_on_behind_the_newest_snapshot_of_its_own_replica_4_18() {
    for is_trimmed in [false, true] {
        let mut node = Node::new(5);
        let mut names = Vec::new();
        for _ in 0..2 {
            node.cluster.run(40);
            node.log();
            names.push(snapshot_name(&node));
            write_as(&node, Source::Own, snapshot_name(&node)).unwrap();
        }
        node.cluster.run(40);
        node.log();
        let [older, newest] = names[..] else { unreachable!("two were taken") };
        // That of another replica does not count.
        let other = SnapshotName { replica: REPLICA.next(), ..snapshot_name(&node) };
        write_as(&node, Source::Own, other).unwrap();
        if is_trimmed {
            node.wal.trim(|shard| if shard == SHARD { newest.base.index } else { Index(0) }).unwrap();
        }
        for _ in 0..2 {
            let recovered = recover_replicated(&node, &[0], u64::MAX).unwrap();
            assert_eq!(recovered.own, BTreeMap::from([(SHARD, newest.base)]));
            assert_eq!(recovered.states[0].position().index, newest.base.index);
            check(&node, recovered);
            let files: Vec<String> =
                node.disk.files().into_iter().filter(|path| path.starts_with("replicas/")).collect();
            assert_eq!(files, [format!("replicas/own/{newest}")], "{older} is not needed");
        }
        // The log lacks what it held: it lost its end, or a snapshot is of another log.
        let beyond = SnapshotName { base: LogPoint { index: Index(9_999), ..newest.base }, ..newest };
        write_as(&node, Source::Own, beyond).unwrap();
        let before = node.disk.files();
        assert!(recover_replicated(&node, &[0], u64::MAX).is_err());
        assert_eq!(node.disk.files(), before);
    }
}

#[test]
fn an_installed_snapshot_that_is_missing_or_damaged_is_an_error_16() {
    for (damage, replicated) in [(0, &[0][..]), (1, &[0]), (1, &[]), (2, &[0])] {
        let mut node = Node::new(7);
        let name = lag(&mut node);
        match damage {
            0 => {}
            1 => {
                write_snapshot(&node, name).unwrap();
                let path = format!("replicas/snapshots/{name}");
                let middle = node.disk.bytes(&path).unwrap().len() as u64 / 2;
                node.disk.flip_bit(&path, middle, 2).unwrap();
            }
            // It is named like another one.
            _ => {
                let base = LogPoint { index: name.base.index.next(), ..name.base };
                let wrong = SnapshotName { base, ..name };
                write_snapshot(&node, wrong).unwrap();
                install(&mut node, wrong);
            }
        }
        if damage < 2 {
            install(&mut node, name);
        }
        let before = node.disk.files();
        let error = failure(recover_replicated(&node, replicated, u64::MAX));
        assert!(matches!(error, RecoveryError::Snapshot { shard: SHARD, .. }), "{error}");
        assert!(error.to_string().contains("new replica"), "{error}");
        assert_eq!(node.disk.files(), before);
    }
}

#[test]
fn a_crash_at_any_operation_of_an_install_leaves_the_old_log_or_the_new_one_4_18() {
    for operation in 1.. {
        let mut node = Node::new(8);
        let name = lag(&mut node);
        let old = recover_replicated(&node, &[0], u64::MAX).unwrap();
        let before = Recovery::with_log(
            old.states.into_iter().next().unwrap(),
            old.logs.into_iter().next().unwrap().unwrap(),
        );
        let before = before.fold(Index(u64::MAX));
        node.wal = old.wal;
        node.disk.crash_after(operation);
        let mut batch = Batch::new();
        let epoch = Epoch(2);
        let records = [
            shard_replica::Record::Promise(epoch),
            shard_replica::Record::Install { epoch, base: name.base },
        ];
        batch.push_replica(SHARD, REPLICA, &records);
        let written = write_snapshot(&node, name).is_ok();
        let done = written && node.wal.append_marked(&[batch]).is_ok();
        node.disk.crash();
        node.disk.restart();
        let recovered = recover_replicated(&node, &[0], u64::MAX).unwrap();
        let is_installed = recovered.states[0].position().index == name.base.index;
        assert!(is_installed || !done, "operation {operation}");
        if is_installed {
            check(&node, recovered);
        } else {
            let mut logs = recovered.logs.into_iter();
            let state = recovered.states.into_iter().next().unwrap();
            let found = Recovery::with_log(state, logs.next().unwrap().unwrap()).fold(Index(u64::MAX));
            assert_eq!(found.hash(), before.hash(), "operation {operation}");
        }
        if done {
            assert!(operation > 8, "the snapshot's name, its sync, the log's write and sync, and the mark");
            break;
        }
    }
}

/// While the node runs, to any entry.
#[test]
fn a_state_is_folded_anew_up_to_any_entry_2() {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut node = Node::new(seed);
        let is_installed = seed % 3 == 2;
        node.cluster.run(30);
        node.log();
        if seed % 3 == 1 {
            node.checkpoint();
        }
        if is_installed {
            let name = lag(&mut node);
            write_snapshot(&node, name).unwrap();
            install(&mut node, name);
        }
        append_lost(&mut node, SHARD, 2);
        node.cluster.epoch = node.cluster.epoch.next();
        node.cluster.run(40);
        node.log();
        let disk: Arc<dyn Disk> = Arc::new(node.disk.clone());
        let recovered = recover_replicated(&node, &[0], u64::MAX).unwrap();
        let (base, table) =
            (recovered.states[0].position().index, recovered.logs[0].as_ref().unwrap().table().clone());
        let (store, snapshots) = (super::model::sim_store(&node.disk), Snapshots::new(disk));
        let belonging = Belonging { cluster: Some(CLUSTER), incarnation: INCARNATION };
        let log = recovered.wal.reader();
        let sources = Sources {
            store: &store,
            manifest: recovered.manifest.as_ref(),
            snapshots: &snapshots,
            log: &log,
            belonging,
        };
        for upto in (base.0..=node.cluster.index(SHARD).0).map(Index) {
            let mut rebuild = Rebuild::begin(&sources, SHARD, &table, upto).unwrap();
            while rebuild.step().unwrap() == Progress::More {}
            let found = rebuild.into_state();
            assert_eq!(found.position().index, upto);
            let again = recover_replicated(&node, &[0], u64::MAX).unwrap();
            let log = again.logs.into_iter().next().unwrap().unwrap();
            let wanted = Recovery::with_log(again.states.into_iter().next().unwrap(), log).fold(upto);
            assert_eq!(found.hash(), wanted.hash(), "up to {upto}");
        }
    }
}

/// A node's log may hold what an earlier replica of a shard wrote, and only what the present one did counts: rule 1.
#[test]
fn only_the_data_of_the_replica_that_is_here_count_1() {
    for seed in [0, 1] {
        let mut node = Node::new(seed);
        node.cluster.run(40);
        node.log();
        if seed > 0 {
            node.checkpoint();
        }
        let (epoch, index) = (Epoch(1), Index(1));
        let entry = Entry {
            index,
            epoch,
            time: Time(0),
            cause: Cause::Attempt,
            process: Key::none(),
            writes: Vec::new(),
            sends: Vec::new(),
            reply: None,
            served: None,
        };
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        let first = LogEntry { point: LogPoint { epoch, index }, bytes: (&*bytes).into() };
        let promises = [(ReplicaId(3), 5), (ReplicaId(6), 4)].map(|(replica, epoch)| {
            let mut batch = Batch::new();
            let records =
                [shard_replica::Record::Promise(Epoch(epoch)), shard_replica::Record::Entry(first.clone())];
            batch.push_replica(SHARD, replica, &records);
            batch
        });
        node.wal.append_marked(&promises).unwrap();
        let found = |replica: Option<u64>| {
            let replicated = BTreeMap::from([(SHARD, replica.map(ReplicaId))]);
            let found = recover_as(&node, &replicated, u64::MAX).unwrap();
            let log = found.logs[0].as_ref().unwrap();
            (found.states[0].position().index.0, log.table().last().index.0)
        };
        assert_eq!(found(Some(6)), (0, 1), "seed {seed}");
        for other in [None, Some(1), Some(3), Some(7)] {
            assert_eq!(found(other), (0, 0), "seed {seed}: {other:?}");
        }
    }
}
