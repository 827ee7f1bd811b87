//! Checkpoints of several nodes: one manifest names the parts of all, each of them in a bundle of its node.

use super::chain::{check, in_use, run};
use super::model::{CLUSTER, Cluster, INCARNATION, OWNER, author, sim_store};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::checkpointing::merging::{Policy, plan};
use stead_core::ids::{CheckpointNumber, ClusterId, Epoch, Incarnation, Micros, NodeId, ShardId, Time};
use stead_core::placement::Placement;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::{Author, Bundle, BundleNames};
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::copy::{Owner, cluster_of_copies};
use stead_store::checkpoint::load::{LoadedPart, Loaders, load_part, load_parts};
use stead_store::checkpoint::manifest::{
    Decision, Manifest, decided_numbers, decode_decision, manifest_name, newest, read_manifest,
};
use stead_store::checkpoint::remote;
use stead_store::checkpoint::restore::{Restore, RestoreError, restore};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::verify::{Inconsistency, verify_checkpoint};
use stead_store::checkpoint::write::{CheckpointWriter, Plan, give_up};
use stead_store::recovery::{Facts, RecoveryError, recover};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalOptions;

const OTHER: ClusterId = ClusterId(9);

/// Five shards on two nodes, one after the other.
fn two_nodes(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, [2, 3]);
    cluster.add_node();
    cluster
}

fn one_checkpoint(seed: u64) -> (DiskStore, SimDisk, Cluster, Manifest) {
    let disk = SimDisk::new(seed);
    let store = sim_store(&disk);
    let mut cluster = two_nodes(seed);
    cluster.run(80);
    let (_, manifest) = cluster.checkpoint_of_all(&store);
    (store, disk, cluster, manifest)
}

/// Returns the decision that a reader gets from a manifest.
fn decoded(manifest: &Manifest) -> Result<Decision, CheckpointError> {
    decode_decision(&manifest_name(manifest.number), &manifest.encode())
}

fn damage(result: Result<Decision, CheckpointError>) -> String {
    match result {
        Err(CheckpointError::Damaged { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_of_two_nodes_is_read_verified_loaded_merged_collected_and_restored() {
    for seed in [1, 2] {
        println!("seed {seed}");
        let store = sim_store(&SimDisk::new(seed));
        let mut cluster = two_nodes(seed);
        let policy = Policy { fan_in: 2, growth: 150, growth_bytes_min: 0, ..Policy::default() };
        let (mut collector, mut cuts, mut merges) = (Collector::new(), Vec::new(), [0, 0]);
        for round in 1..=9 {
            cluster.run(40);
            let (cut, manifest) = cluster.checkpoint_of_all(&store);
            assert_eq!(read_manifest(&store, manifest.number).unwrap(), manifest);
            let nodes: Vec<u32> = manifest.parts.iter().map(|part| part.node.0).collect();
            assert_eq!(nodes, [1, 2, 1, 2, 1]);
            let of: BTreeSet<u32> = manifest.bundles.iter().map(|bundle| bundle.node.0).collect();
            assert_eq!(of, [1, 2].into());
            check(&store, &manifest, &cut, 1 + round as usize % 2);
            cuts.push(cut);
            // Each node merges its own bundles, and none of them is deleted that any node builds upon.
            let mut used = in_use(&cluster.lineage);
            used.extend(in_use(&cluster.others[0].1));
            let retention = Retention { keep: 2, grace: Micros(1), ..Retention::default() };
            collector.collect(&store, OWNER, Time(round), &retention, &used).unwrap();
            let number = cluster.number;
            if let Some(merge) = plan(&cluster.lineage, &policy) {
                let merged = run(&store, &cluster.names, number, &cluster.lineage, &merge).unwrap();
                assert_eq!(merged.bundle.node, NodeId(1));
                assert!(cluster.lineage.apply(&merged));
                merges[0] += 1;
            }
            let (names, lineage) = &mut cluster.others[0];
            if let Some(merge) = plan(lineage, &policy) {
                let merged = run(&store, names, number, lineage, &merge).unwrap();
                assert_eq!(merged.bundle.node, NodeId(2));
                assert!(lineage.apply(&merged));
                merges[1] += 1;
            }
            for number in decided_numbers(&store).unwrap() {
                let manifest = read_manifest(&store, number).unwrap();
                check(&store, &manifest, &cuts[number.0 as usize - 1], 1);
            }
        }
        assert!(merges.iter().all(|merges| *merges > 1), "{merges:?}");
        assert_eq!(decided_numbers(&store).unwrap(), [8, 9].map(CheckpointNumber));
        // Nothing else is left once neither node needs it: a bundle that only one of them names is not garbage.
        let manifests = [8, 9].map(|number| read_manifest(&store, CheckpointNumber(number)).unwrap());
        let named = manifests.iter().flat_map(|manifest| &manifest.bundles);
        let named: BTreeSet<String> = named.map(|bundle| bundle.name.clone()).collect();
        let retention = Retention { keep: 2, grace: Micros(0), ..Retention::default() };
        collector.collect(&store, OWNER, Time(99), &retention, &BTreeSet::new()).unwrap();
        assert_eq!(store.list("bundles/").unwrap().into_iter().collect::<BTreeSet<_>>(), named);

        let manifest = newest(&store).unwrap().manifest.unwrap();
        let target = sim_store(&SimDisk::new(seed));
        let names = BundleNames::new(Author { cluster: OTHER, ..author(7) });
        let shards = BTreeMap::from([("left".to_owned(), 3)]);
        let options = Restore { incarnation: Incarnation(8), shards, created: Time(1) };
        let restored = restore(&store, &manifest, &target, &names, &options, &mut |_| {}).unwrap();
        let restored = restored.manifest;
        assert_eq!((restored.cluster, restored.parts.len()), (Some(OTHER), 6));
        assert!(restored.parts.iter().all(|part| part.node == NodeId::FIRST));
        assert_eq!(load_parts(&target, &restored, 1).unwrap().len(), 6);
    }
}

#[test]
fn a_part_and_a_bundle_of_another_node_are_refused() {
    let (store, _, _, manifest) = one_checkpoint(3);
    let mut wrong = manifest.clone();
    wrong.parts[1].node = NodeId(1);
    assert_eq!(damage(decoded(&wrong)), "the part of shard 1 is of node 1, its bundle of 2");
    // The bundle itself says whose it is.
    wrong.bundles.iter_mut().for_each(|bundle| bundle.node = NodeId(1));
    wrong.parts.iter_mut().for_each(|part| part.node = NodeId(1));
    decoded(&wrong).unwrap();
    let error = load_parts(&store, &wrong, 1).err().unwrap();
    assert!(error.to_string().contains("it is of node 2 where the manifest says 1"), "{error}");
}

#[test]
fn objects_of_another_cluster_are_refused() {
    let (store, disk, cluster, manifest) = one_checkpoint(4);
    let is_other = |error: &CheckpointError| {
        matches!(error, CheckpointError::Cluster { found: CLUSTER, expected: OTHER, .. })
    };
    assert!(is_other(&manifest.check_cluster(OTHER).unwrap_err()));
    manifest.check_cluster(CLUSTER).unwrap();
    let placement = Placement::all_here(&cluster.topology);
    let facts = Facts {
        cluster: OTHER,
        topology: &cluster.topology,
        placement: &placement,
        replicated: &BTreeMap::new(),
        log_bytes_max: 0,
    };
    let wal = WalOptions { log_id: 1, create: true, ..WalOptions::default() };
    let before = disk.files();
    let Err(RecoveryError::Checkpoint(error)) = recover(Arc::new(disk.clone()), &store, facts, wal, 1) else {
        panic!("it starts from the checkpoint of another cluster");
    };
    assert!(is_other(&error), "{error}");
    assert!(error.to_string().contains("two clusters were mixed"), "{error}");
    assert_eq!(disk.files(), before);
    let mut exchanged = manifest.clone();
    exchanged.cluster = Some(OTHER);
    assert!(is_other(&load_part(&store, &exchanged, ShardId(0)).err().unwrap()));

    // A collection deletes nothing, whether a manifest or a tombstone is of another.
    let retention = Retention { keep: 1, ..Retention::default() };
    let other = Owner { cluster: OTHER, ..OWNER };
    let collect = |owner| Collector::new().collect(&store, owner, Time(99), &retention, &BTreeSet::new());
    assert!(is_other(&collect(other).unwrap_err()));
    assert_eq!(disk.files(), before);
    collect(OWNER).unwrap();
    let stranger = Author { cluster: OTHER, ..author(1) };
    give_up(&store, &cluster.topology, CheckpointNumber(5), Time(0), stranger, "a test").unwrap();
    assert!(matches!(collect(OWNER), Err(CheckpointError::Cluster { found: OTHER, .. })));
    // Copies have the cluster's name at their place.
    assert_eq!(cluster_of_copies(&store).unwrap(), None);
    let dir = tempfile::tempdir().unwrap();
    let target = remote::open(&format!("file://{}", dir.path().display()), &BTreeMap::new()).unwrap();
    OWNER.claim(&*target).unwrap();
    assert_eq!(cluster_of_copies(&*target).unwrap(), Some(CLUSTER));
}

/// Protocol, rule 4: one primary in an epoch. What another epoch's primary hands over is in no log that counts.
#[test]
fn a_part_of_a_deposed_primary_or_of_a_shard_elsewhere_is_refused() {
    let store = sim_store(&SimDisk::new(5));
    let mut cluster = Cluster::new(5, [1, 1]);
    cluster.run(20);
    let number = CheckpointNumber(1);
    let parts = [(ShardId(0), cluster.epoch.next())].into();
    let (topology, bundle) = (cluster.topology.clone(), cluster.names.draw(number));
    let plan = Plan { number, created: Time(0), topology, parts, bundle, author: author(1) };
    let mut writer = CheckpointWriter::create(&store, plan).unwrap();
    let header = |shard: usize, epoch| {
        let mut header = cluster.shards[shard].state.header();
        (header.position.colour, header.position.epoch) = (number.colour(), epoch);
        header
    };
    let refused = |result: Result<(), CheckpointError>| match result {
        Err(CheckpointError::Incomplete { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let deposed = refused(writer.begin_part(header(0, Epoch(1)), true));
    assert_eq!(deposed, "the part of shard 0 is of epoch 1, and it is led in 2");
    let elsewhere = refused(writer.begin_part(header(1, Epoch(2)), true));
    assert_eq!(elsewhere, "shard 1 has no part in it here");
    writer.begin_part(header(0, Epoch(2)), true).unwrap();
    assert!(writer.end_part(ShardId(0)).unwrap(), "it is all that the checkpoint is of");
}

/// A node's own checkpoint, of the shards that it has: read and loaded, but no whole cut.
#[test]
fn a_checkpoint_of_some_shards_is_read_and_not_restored() {
    let store = sim_store(&SimDisk::new(6));
    let mut cluster = two_nodes(6);
    cluster.run(60);
    let (cut, sealed) = cluster.seal_all(&store);
    let manifest = sealed.unwrap().remove(0).store(&store).unwrap().0;
    assert_eq!(newest(&store).unwrap().manifest.unwrap(), manifest);
    let parts = load_parts(&store, &manifest, 2).unwrap();
    let hashes_of = |parts: &[LoadedPart]| parts.iter().map(|part| part.header.hash()).collect::<Vec<u128>>();
    assert_eq!(hashes_of(&parts), [0, 2, 4].map(|shard| cut.hashes[shard]));
    let in_turn = load_parts(&store, &manifest, Loaders::InTurn(2)).unwrap();
    assert_eq!(hashes_of(&in_turn), hashes_of(&parts));
    assert!(manifest.part(ShardId(1)).is_none() && manifest.part(ShardId(2)).unwrap().shard == ShardId(2));
    assert!(matches!(load_part(&store, &manifest, ShardId(1)), Err(CheckpointError::Incomplete { .. })));
    let missing = [1, 3].map(|shard| Inconsistency::NoPart { shard: ShardId(shard) });
    let report = verify_checkpoint(&store, &manifest, 1, &mut |_, _| Default::default()).unwrap();
    assert_eq!(report.inconsistencies[..2], missing);
    let target = sim_store(&SimDisk::new(6));
    let options = Restore { incarnation: Incarnation(8), shards: BTreeMap::new(), created: Time(1) };
    let names = BundleNames::new(author(7));
    match restore(&store, &manifest, &target, &names, &options, &mut |_| {}) {
        Err(RestoreError::Inconsistent(found)) => assert_eq!(found[..2], missing),
        other => panic!("{other:?}"),
    }
    // Neither out of order, nor twice, nor of a shard that does not exist.
    for change in [
        (|manifest| manifest.parts.swap(0, 1)) as fn(&mut Manifest),
        |manifest| manifest.parts[1] = manifest.parts[0].clone(),
        |manifest| manifest.parts[2].shard = ShardId(5),
    ] {
        let mut wrong = manifest.clone();
        change(&mut wrong);
        damage(decoded(&wrong));
    }
    let bundle = Bundle::open(&store, &manifest.bundles[0], OWNER.belonging()).unwrap();
    assert_eq!(bundle.sections().count(), 3);
    let other = Owner { incarnation: Incarnation(INCARNATION.0 + 1), ..OWNER };
    let opened = Bundle::open(&store, &manifest.bundles[0], other.belonging());
    assert!(matches!(opened, Err(CheckpointError::Incarnation { .. })));
}
