//! Recovery: checkpoint and log together give the states that the shards had.

use super::model::{CLUSTER, Cluster, INCARNATION, OWNER, sim_store};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{CheckpointNumber, Colour, Epoch, Incarnation, Index, ReplicaId, ShardId, Time};
use stead_core::key::Key;
use stead_core::placement::{Place, Placement};
use stead_core::replay::ReplayError;
use stead_core::start::draw_epochs;
use stead_core::state::Misfit;
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::manifest::{manifest_name, read_manifest};
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::write::give_up;
use stead_store::disk::Disk;
use stead_store::recovery::{Facts, Recovered, RecoveryError, recover};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, CutRecord, Promise, Wal, WalError, WalOptions};

pub(super) fn options(create: bool) -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, log_id: 5, create, ..WalOptions::default() }
}

pub(super) struct Node {
    pub(super) disk: SimDisk,
    pub(super) cluster: Cluster,
    pub(super) wal: Wal,
    pub(super) logged: usize,
}

impl Node {
    pub(super) fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let visit = |_: stead_store::wal::Record<'_>| Ok::<(), std::io::Error>(());
        let (wal, _) = Wal::open(Arc::new(disk.clone()), options(true), visit).unwrap();
        Self { disk, cluster: Cluster::new(seed, [2, 2]), wal, logged: 0 }
    }

    pub(super) fn log(&mut self) {
        for chunk in self.cluster.log[self.logged..].chunks(5) {
            let mut batch = Batch::new();
            for (shard, entry) in chunk {
                batch.push_with(*shard, entry.epoch, entry.index, |out| entry.encode_into(out));
            }
            self.wal.append(&[batch]).unwrap();
            self.wal.sync().unwrap();
        }
        self.logged = self.cluster.log.len();
    }

    pub(super) fn checkpoint(&mut self) {
        let store = sim_store(&self.disk);
        let (_, sealed) = self.cluster.seal(&store);
        // The markers are durable before the manifest says so.
        self.log();
        let (manifest, lineage) = sealed.unwrap().store(&store).unwrap();
        self.cluster.lineage = lineage;
        self.wal.trim(|shard| manifest.part(shard).unwrap().index).unwrap();
    }

    fn recover(&self, topology: &Topology) -> Result<Recovered, RecoveryError> {
        self.recover_placed(topology, &Placement::all_here(topology))
    }

    fn recover_placed(&self, topology: &Topology, placement: &Placement) -> Result<Recovered, RecoveryError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let store = DiskStore::open(Arc::clone(&disk), "checkpoints").map_err(CheckpointError::from)?;
        let facts =
            Facts { cluster: CLUSTER, topology, placement, replicated: &BTreeMap::new(), log_bytes_max: 0 };
        recover(disk, &store, facts, options(false), 1)
    }

    fn check(&self, recovered: &Recovered) {
        for state in &recovered.states {
            let model = &self.cluster.shards[state.shard().0 as usize];
            assert_eq!(state.hash(), model.state.hash(), "shard {}", state.shard());
        }
    }
}

pub(super) fn failure(result: Result<Recovered, RecoveryError>) -> RecoveryError {
    result.err().expect("it can't be recovered")
}

#[test]
fn the_log_is_folded_over_the_newest_checkpoint() {
    for seed in 0..5 {
        println!("seed {seed}");
        let mut node = Node::new(seed);
        for round in 0..6 {
            node.cluster.run(40);
            node.log();
            let recovered = node.recover(&node.cluster.topology).unwrap();
            node.check(&recovered);
            assert_eq!(recovered.decided, CheckpointNumber(round));
            assert_eq!(recovered.lineage, node.cluster.lineage);
            node.wal = recovered.wal;
            node.checkpoint();
        }
        let recovered = node.recover(&node.cluster.topology).unwrap();
        node.check(&recovered);
        assert_eq!(recovered.report.checkpoint, Some(CheckpointNumber(6)));
        assert!(recovered.report.entries < 100, "{:?}", recovered.report);
        // A tombstone is passed over.
        give_up(
            &sim_store(&node.disk),
            &node.cluster.topology,
            CheckpointNumber(7),
            Time(0),
            node.cluster.names.author(),
            "a test",
        )
        .unwrap();
        let recovered = node.recover(&node.cluster.topology).unwrap();
        assert_eq!(
            (recovered.report.checkpoint, recovered.decided),
            (Some(CheckpointNumber(6)), CheckpointNumber(7))
        );
        node.check(&recovered);
        // Once a greater number is decided it goes, and the numbers go on from the greater one.
        let store = sim_store(&node.disk);
        give_up(
            &store,
            &node.cluster.topology,
            CheckpointNumber(8),
            Time(0),
            node.cluster.names.author(),
            "a test",
        )
        .unwrap();
        let retention = Retention::default();
        let used = super::chain::in_use(&recovered.lineage);
        let collected = Collector::new().collect(&store, OWNER, Time(9), &retention, &used).unwrap();
        assert_eq!(collected.tombstones, [CheckpointNumber(7)]);
        let recovered = node.recover(&node.cluster.topology).unwrap();
        assert_eq!(
            (recovered.report.checkpoint, recovered.decided),
            (Some(CheckpointNumber(6)), CheckpointNumber(8))
        );
    }
}

#[test]
fn a_recovery_that_crashes_at_any_io_and_begins_again_gives_the_same() {
    for seed in [1] {
        for crash in 1.. {
            let mut node = Node::new(seed);
            node.cluster.run(30);
            node.checkpoint();
            node.cluster.run(30);
            node.log();
            node.disk.crash_after(crash);
            let first = node.recover(&node.cluster.topology);
            let done = first.is_ok();
            drop(first);
            node.disk.restart();
            let recovered = node.recover(&node.cluster.topology).unwrap();
            node.check(&recovered);
            if done {
                assert!(crash > 10);
                break;
            }
        }
    }
}

/// Parts and entries of the other shards are passed over; what the next checkpoint builds upon is of those here.
#[test]
fn only_the_shards_on_this_node_are_recovered() {
    for seed in 0..4 {
        println!("seed {seed}");
        let mut node = Node::new(seed);
        node.cluster.run(60);
        if seed % 2 == 1 {
            node.checkpoint();
        }
        node.cluster.run(60);
        node.log();
        let topology = node.cluster.topology.clone();
        let placement = Placement::new(&topology, |shard| match shard.0 {
            0 | 3 => Place::Here,
            1 => Place::Elsewhere,
            _ => Place::Unplaced,
        });
        let recovered = node.recover_placed(&topology, &placement).unwrap();
        let here: Vec<u32> = recovered.states.iter().map(|state| state.shard().0).collect();
        assert_eq!(here, [0, 3]);
        node.check(&recovered);
        assert_eq!(recovered.epochs, [Epoch(1); 2]);
        let known: Vec<ShardId> = recovered.known_epochs().iter().map(|known| known.shard).collect();
        assert_eq!(known, [0, 3].map(ShardId));
        assert!(recovered.lineage.shards().all(|(shard, _)| [0, 3].contains(&shard.0)));
        assert_eq!(recovered.lineage.shards().count() > 0, seed % 2 == 1);
        let folded = recovered.report.entries;
        drop(recovered);
        let all = node.recover(&topology).unwrap();
        node.check(&all);
        assert!(all.states.len() == 4 && all.report.entries > folded && folded > 0);
    }
}

/// Without its part, a shard whose log is trimmed would begin anew, and the next checkpoint would make that final.
#[test]
fn a_checkpoint_without_the_part_of_a_shard_on_this_node_is_refused() {
    let mut node = Node::new(6);
    node.cluster.run(60);
    node.checkpoint();
    let mut topology = node.cluster.topology.clone();
    let path = format!("checkpoints/{}", manifest_name(CheckpointNumber(1)));
    let mut manifest = read_manifest(&sim_store(&node.disk), CheckpointNumber(1)).unwrap();
    manifest.parts.remove(1);
    node.disk.put(&path, &manifest.encode());
    let before = node.disk.files();
    let error = failure(node.recover(&topology));
    assert!(matches!(error, RecoveryError::Incomplete { shard: ShardId(1), .. }), "{error}");
    assert!(error.to_string().contains("no part of shard 1 of service left"), "{error}");
    assert_eq!(node.disk.files(), before);
    // It is not missing where the shard is on another node; a service that is new has no part in it.
    topology.ensure("new", 1).unwrap();
    let placement = Placement::new(&topology, |shard| match shard.0 {
        1 => Place::Elsewhere,
        _ => Place::Here,
    });
    let recovered = node.recover_placed(&topology, &placement).unwrap();
    let here: Vec<u32> = recovered.states.iter().map(|state| state.shard().0).collect();
    assert_eq!(here, [0, 2, 3, 4]);
}

#[test]
fn services_may_be_added_and_must_not_vanish() {
    let mut node = Node::new(1);
    node.cluster.run(30);
    node.checkpoint();
    let mut more = node.cluster.topology.clone();
    more.ensure("new", 3).unwrap();
    let recovered = node.recover(&more).unwrap();
    assert_eq!(recovered.states.len(), 7);
    assert_eq!(recovered.states[6].position().index, Index(0));
    let mut less = Topology::new(INCARNATION);
    less.ensure("left", 2).unwrap();
    assert!(
        matches!(failure(node.recover(&less)), RecoveryError::Topology { service, .. } if service == "right")
    );
    let mut other = Topology::new(Incarnation(8));
    other.ensure("left", 2).unwrap();
    other.ensure("right", 2).unwrap();
    let error = failure(node.recover(&other));
    assert!(matches!(error, RecoveryError::Checkpoint(CheckpointError::Incarnation { .. })), "{error}");
}

#[test]
fn a_damaged_newest_checkpoint_is_an_error_and_not_passed_over() {
    let mut node = Node::new(2);
    for _ in 0..2 {
        node.cluster.run(30);
        node.checkpoint();
    }
    let path = format!("checkpoints/{}", manifest_name(CheckpointNumber(2)));
    node.disk.flip_bit(&path, 100, 3).unwrap();
    let before = node.disk.files();
    let error = failure(node.recover(&node.cluster.topology));
    assert!(
        matches!(&error, RecoveryError::Checkpoint(CheckpointError::Damaged { name, .. }) if path.ends_with(name))
    );
    assert!(error.to_string().contains("restore an older checkpoint"), "{error}");
    assert_eq!(node.disk.files(), before);
    let whole = node.disk.bytes(&path).unwrap();
    node.disk.put(&path, &whole[..whole.len() / 2]);
    failure(node.recover(&node.cluster.topology));
}

#[test]
fn a_log_that_does_not_fit_is_refused() {
    let topology = Cluster::new(3, [2, 2]).topology;
    // No log where there was one.
    let mut node = Node::new(3);
    node.cluster.run(30);
    node.checkpoint();
    for path in node.disk.files().into_iter().filter(|path| path.starts_with("wal/")) {
        Disk::remove(&node.disk, &path).unwrap();
    }
    assert!(matches!(failure(node.recover(&topology)), RecoveryError::Log(WalError::Missing { .. })));

    let with = |change: &dyn Fn(&mut Batch, ShardId, &mut Entry)| {
        let mut node = Node::new(3);
        node.cluster.run(30);
        node.log();
        let shard = ShardId(1);
        let mut entry = node.cluster.log.iter().rev().find(|(at, _)| *at == shard).unwrap().1.clone();
        entry.index = node.cluster.index(shard).next();
        entry.cause = Cause::Start;
        let mut batch = Batch::new();
        change(&mut batch, shard, &mut entry);
        node.wal.append(&[batch]).unwrap();
        node.wal.sync().unwrap();
        failure(node.recover(&topology))
    };
    let gap = with(&|batch, shard, entry| {
        entry.index = entry.index.next();
        batch.push_with(shard, entry.epoch, entry.index, |out| entry.encode_into(out));
    });
    assert!(matches!(gap, RecoveryError::Replay(ReplayError::Misfit(Misfit::Index { .. }))), "{gap}");
    let unknown = with(&|batch, _, entry| {
        batch.push_with(ShardId(4), entry.epoch, Index(1), |out| entry.encode_into(out))
    });
    assert!(
        matches!(unknown, RecoveryError::Replay(ReplayError::UnknownShard { shard: ShardId(4), .. })),
        "{unknown}"
    );
    let garbage = with(&|batch, shard, entry| batch.push(shard, entry.epoch, entry.index, b"no entry"));
    assert!(matches!(garbage, RecoveryError::Replay(ReplayError::NoEntry { .. })), "{garbage}");
    let misplaced = with(&|batch, shard, entry| {
        let index = entry.index;
        entry.index = index.next();
        batch.push_with(shard, entry.epoch, index, |out| entry.encode_into(out));
    });
    assert!(matches!(misplaced, RecoveryError::Replay(ReplayError::Misplaced { .. })), "{misplaced}");
    let epoch = with(&|batch, shard, entry| {
        entry.epoch = Epoch(0);
        batch.push_with(shard, entry.epoch, entry.index, |out| entry.encode_into(out));
    });
    assert!(matches!(epoch, RecoveryError::Replay(ReplayError::Misfit(Misfit::Epoch { .. }))), "{epoch}");
}

/// Appends entries of the running epoch that are not the cluster's: those of a primary which never learnt that it was
/// deposed.
pub(super) fn append_lost(node: &mut Node, shard: ShardId, count: u64) {
    let next = node.cluster.index(shard).0 + 1;
    let mut batch = Batch::new();
    for index in (next..next + count).map(Index) {
        let epoch = node.cluster.epoch;
        let (time, process) = (Time(index.0), Key::none());
        let (writes, sends) = (Vec::new(), Vec::new());
        let entry = Entry {
            index,
            epoch,
            time,
            cause: Cause::Start,
            process,
            writes,
            sends,
            reply: None,
            served: None,
        };
        batch.push_with(shard, epoch, index, |out| entry.encode_into(out));
    }
    node.wal.append(&[batch]).unwrap();
}

#[test]
fn only_what_survives_is_folded() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut node = Node::new(seed);
        let checkpointed = seed % 2 == 1;
        for round in 0..3 {
            node.cluster.run(40);
            node.log();
            if checkpointed && round == 1 {
                node.checkpoint();
            }
            for shard in [ShardId(0), ShardId(3)] {
                append_lost(&mut node, shard, 1 + seed % 3);
            }
            node.cluster.epoch = node.cluster.epoch.next();
            if seed % 4 > 1 {
                // A loss that was decided before the next epoch began.
                let cut = CutRecord {
                    shard: ShardId(3),
                    epoch: node.cluster.epoch,
                    index: node.cluster.index(ShardId(3)),
                };
                let mut batch = Batch::new();
                batch.push_cut(cut);
                node.wal.append(&[batch]).unwrap();
            }
        }
        node.cluster.run(40);
        node.log();
        let recovered = node.recover(&node.cluster.topology).unwrap();
        node.check(&recovered);
        assert_eq!(recovered.epochs.iter().max(), Some(&Epoch(4)));
        // Whole segments stay as they are; what is void leaves with them.
        node.wal = recovered.wal;
        node.checkpoint();
        let recovered = node.recover(&node.cluster.topology).unwrap();
        node.check(&recovered);
    }
}

/// Promises the next epochs of all shards, as a start does.
fn lead(recovered: &mut Recovered, floor: u64) -> Result<Vec<Epoch>, WalError> {
    let epochs = draw_epochs(Epoch(floor), &recovered.known_epochs());
    recovered.promise(&epochs)?;
    Ok(epochs.into_values().collect())
}

/// A start would draw the epoch after it.
#[test]
fn a_shard_without_another_epoch_is_refused() {
    let last = Epoch(u64::MAX);
    for is_promised in [true, false] {
        let mut node = Node::new(1);
        node.cluster.run(40);
        node.log();
        let shard = ShardId(2);
        if is_promised {
            let mut batch = Batch::new();
            batch.push_promise(Promise { shard, replica: ReplicaId(8), epoch: last });
            node.wal.append(&[batch]).unwrap();
            node.wal.sync().unwrap();
        } else {
            node.cluster.epoch = last;
            append_lost(&mut node, shard, 1);
        }
        let error = failure(node.recover(&node.cluster.topology));
        let is_right =
            matches!(error, RecoveryError::NoEpochLeft { shard: ShardId(2), epoch } if epoch == last);
        assert!(is_right, "{error}");
    }
}

#[test]
fn each_shard_is_led_in_an_epoch_above_all_that_it_promised_or_logged() {
    let mut node = Node::new(1);
    node.cluster.run(40);
    node.log();
    let mut recovered = node.recover(&node.cluster.topology).unwrap();
    assert_eq!(lead(&mut recovered, 0).unwrap(), [Epoch(2); 4]);
    assert!(recovered.wal.is_marked());
    // A start that ended before any shard led: the epochs are used all the same.
    drop(recovered);
    node.disk.crash();
    node.disk.restart();
    let mut recovered = node.recover(&node.cluster.topology).unwrap();
    assert_eq!(lead(&mut recovered, 0).unwrap(), [Epoch(3); 4]);
    // One shard logs in a higher epoch, and another promised one as another replica.
    let shard = ShardId(1);
    node.wal = recovered.wal;
    node.cluster.epoch = Epoch(6);
    append_lost(&mut node, shard, 1);
    let mut batch = Batch::new();
    batch.push_promise(Promise { shard: ShardId(2), replica: ReplicaId(8), epoch: Epoch(9) });
    node.wal.append(&[batch]).unwrap();
    node.wal.sync().unwrap();
    let mut recovered = node.recover(&node.cluster.topology).unwrap();
    assert_eq!(lead(&mut recovered, 0).unwrap(), [Epoch(4), Epoch(7), Epoch(10), Epoch(4)]);
    drop(recovered);
    // Epochs up to the floor are used by a time that had one for all shards.
    let mut recovered = node.recover(&node.cluster.topology).unwrap();
    assert_eq!(lead(&mut recovered, 8).unwrap(), [Epoch(9), Epoch(9), Epoch(11), Epoch(9)]);
}

#[test]
fn a_crash_at_any_operation_of_promising_leaves_all_or_nothing_of_it_promised() {
    let mut node = Node::new(2);
    node.cluster.run(20);
    node.log();
    for operation in 1.. {
        let mut recovered = node.recover(&node.cluster.topology).unwrap();
        let before = lead(&mut recovered, 0).unwrap();
        drop(recovered);
        let mut recovered = node.recover(&node.cluster.topology).unwrap();
        node.disk.crash_after(operation);
        let done = lead(&mut recovered, 0);
        drop(recovered);
        node.disk.crash();
        node.disk.restart();
        let recovered = node.recover(&node.cluster.topology).unwrap();
        let after: Vec<Epoch> = (0..4).map(|shard| recovered.wal.promises().of(ShardId(shard))).collect();
        let promised: Vec<Epoch> = before.iter().map(|epoch| epoch.next()).collect();
        assert!(after == promised || done.is_err() && after == before, "operation {operation}: {after:?}");
        node.check(&recovered);
        if done.is_ok() {
            assert!(operation > 2, "a write, a sync, and the mark");
            break;
        }
    }
}

/// Another log, which ends before the checkpoint's markers.
#[test]
fn a_log_that_lost_its_end_is_refused() {
    let mut node = Node::new(4);
    node.cluster.run(30);
    node.log();
    let early: Vec<_> = node.disk.files().into_iter().filter(|path| path.starts_with("wal/")).collect();
    let early: Vec<_> = early.into_iter().map(|path| (node.disk.bytes(&path).unwrap(), path)).collect();
    node.cluster.run(30);
    node.checkpoint();
    for path in node.disk.files().into_iter().filter(|path| path.starts_with("wal/")) {
        Disk::remove(&node.disk, &path).unwrap();
    }
    for (bytes, path) in early {
        node.disk.put(&path, &bytes);
    }
    let error = failure(node.recover(&node.cluster.topology));
    assert!(matches!(error, RecoveryError::Replay(ReplayError::LogTooShort { .. })), "{error}");
}

/// They are as far along as those of this node, so that only the entry at the marker reveals them.
#[test]
fn checkpoints_of_another_node_are_refused() {
    let with: [fn(&mut Entry); 4] = [
        |entry| entry.cause = Cause::Anonymous,
        |entry| entry.cause = Cause::Marker { colour: Colour(2) },
        |entry| entry.time = entry.time.plus_micros(1),
        |entry| entry.epoch = Epoch(2),
    ];
    for other in with {
        let mut node = Node::new(5);
        node.cluster.run(60);
        let store = sim_store(&node.disk);
        let (_, sealed) = node.cluster.seal(&store);
        sealed.unwrap().store(&store).unwrap();
        let is_marker = |entry: &Entry| matches!(entry.cause, Cause::Marker { .. });
        other(&mut node.cluster.log.iter_mut().rfind(|(_, entry)| is_marker(entry)).unwrap().1);
        node.log();
        let before = node.disk.files();
        let error = failure(node.recover(&node.cluster.topology));
        assert!(matches!(error, RecoveryError::Replay(ReplayError::Unbound { .. })), "{error}");
        assert!(error.to_string().contains("not of one node"), "{error}");
        assert_eq!(node.disk.files(), before);
    }
}
