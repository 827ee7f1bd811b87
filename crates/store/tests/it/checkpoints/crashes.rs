//! Crashes at each I/O of writing, merging, collecting and restoring checkpoints: the newest complete one stays intact.

use super::chain::{check, in_use, merge, run};
use super::model::{Cluster, Cut, OWNER, author, sim_store};
use std::collections::BTreeMap;
use stead_core::checkpointing::merging::{self, Policy};
use stead_core::ids::{CheckpointNumber, Incarnation, Micros, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::BundleNames;
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::manifest::{manifest_name, newest, read_manifest};
use stead_store::checkpoint::restore::{Restore, restore};
use stead_store::checkpoint::store::BlobStore;
use stead_store::disk::{Disk, Open};
use stead_store::sim_disk::SimDisk;

const POLICY: Policy =
    Policy { fan_in: 2, growth: 100, renewal: 100, renewal_budget: 12, growth_bytes_min: 0 };

/// Takes a checkpoint, merges, takes another one and collects; notes the acknowledged checkpoints on the way.
fn work(
    cluster: &mut Cluster,
    store: &dyn BlobStore,
    cuts: &mut BTreeMap<CheckpointNumber, Cut>,
    acknowledged: &mut CheckpointNumber,
) -> Result<(), CheckpointError> {
    for _ in 0..2 {
        cluster.run(8);
        let (cut, sealed) = cluster.seal(store);
        cuts.insert(cluster.number, cut);
        let (manifest, lineage) = sealed?.store(store)?;
        cluster.lineage = lineage;
        *acknowledged = manifest.number;
        if let Some(merge) = merging::plan(&cluster.lineage, &POLICY) {
            let merged = run(store, &cluster.names, cluster.number, &cluster.lineage, &merge)?;
            assert!(cluster.lineage.apply(&merged));
        }
    }
    let retention = Retention { keep: 1, grace: Micros(0), ..Retention::default() };
    Collector::new().collect(store, OWNER, Time(9), &retention, &in_use(&cluster.lineage))?;
    Ok(())
}

#[test]
fn a_crash_at_any_io_leaves_the_newest_checkpoint_whole() {
    for seed in [0] {
        let mut crashes = 0;
        for crash in 1.. {
            let disk = SimDisk::new(seed << 32 | crash);
            let store = sim_store(&disk);
            let mut cluster = Cluster::new(seed, [2, 1]);
            let (mut cuts, mut acknowledged) = (BTreeMap::new(), CheckpointNumber(0));
            for _ in 0..2 {
                cluster.run(10);
                let (cut, manifest) = cluster.checkpoint(&store);
                acknowledged = manifest.number;
                cuts.insert(manifest.number, cut);
            }
            disk.crash_after(crash);
            let done = work(&mut cluster, &store, &mut cuts, &mut acknowledged);
            disk.restart();
            let store = sim_store(&disk);
            let found = newest(&store).unwrap().manifest.expect("two were complete before");
            assert!(
                found.number >= acknowledged,
                "seed {seed} crash {crash}: {} < {acknowledged}",
                found.number
            );
            check(&store, &found, &cuts[&found.number], 1);
            assert!(disk.files().iter().all(|path| !path.ends_with(".tmp")));
            // Work continues from the state that was found.
            cluster.fail_next();
            cluster.lineage = found.lineage();
            merge(&mut cluster, &store, &POLICY);
            let (cut, manifest) = cluster.checkpoint(&store);
            check(&store, &manifest, &cut, 1);
            let retention = Retention { keep: 1, grace: Micros(0), ..Retention::default() };
            let used = in_use(&cluster.lineage);
            Collector::new().collect(&store, OWNER, Time(9), &retention, &used).unwrap();
            let left = store.list("bundles/").unwrap();
            assert_eq!(left.len(), manifest.bundles.len(), "nothing is left behind");
            if done.is_ok() {
                break;
            }
            crashes += 1;
        }
        println!("seed {seed}: {crashes} crashes");
        assert!(crashes > 30);
    }
}

/// A process that is killed loses none of its writes, but its last rename may not be durable. The state that the next
/// process finds, and by which it trims the log, must survive a power cut.
#[test]
fn what_a_new_process_finds_is_durable() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let store = sim_store(&disk);
        let mut cluster = Cluster::new(1, [2, 1]);
        cluster.run(10);
        let (cut, sealed) = cluster.seal(&store);
        let name = manifest_name(CheckpointNumber(1));
        let bytes = sealed.unwrap().manifest().encode();
        // Everything of storing a manifest except the last sync.
        let (part, path) = (format!("checkpoints/{name}.tmp"), format!("checkpoints/{name}"));
        let file = disk.open(&part, Open::New).unwrap();
        file.write_at(&bytes, 0).unwrap();
        file.sync_data().unwrap();
        disk.rename(&part, &path).unwrap();
        disk.kill_process();
        let store = sim_store(&disk);
        assert!(newest(&store).unwrap().manifest.is_some());
        disk.crash();
        disk.restart();
        let found = newest(&sim_store(&disk)).unwrap().manifest.expect("it was found before");
        check(&store, &found, &cut, 1);
    }
}

#[test]
fn a_restore_that_crashed_left_a_whole_checkpoint_or_none() {
    let source = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [2, 1]);
    cluster.run(50);
    cluster.checkpoint(&source);
    let manifest = read_manifest(&source, CheckpointNumber(1)).unwrap();
    for crash in 1.. {
        let disk = SimDisk::new(crash);
        disk.crash_after(crash);
        let options = Restore {
            incarnation: Incarnation(8),
            shards: BTreeMap::from([("left".to_owned(), 3)]),
            created: Time(1),
        };
        let open = || {
            stead_store::checkpoint::store::DiskStore::open(std::sync::Arc::new(disk.clone()), "checkpoints")
        };
        let done = open().is_ok_and(|target| {
            restore(&source, &manifest, &target, &BundleNames::new(author(1)), &options, &mut |_| {}).is_ok()
        });
        disk.restart();
        let found = newest(&open().unwrap()).unwrap();
        match found.manifest {
            Some(found) => {
                drop(stead_store::checkpoint::load::load_parts(&open().unwrap(), &found, 1).unwrap())
            }
            None => assert!(!done),
        }
        if done {
            assert!(crash > 10);
            break;
        }
    }
}

#[test]
fn a_full_disk_fails_the_checkpoint_and_nothing_else() {
    for seed in 0..6 {
        let disk = SimDisk::new(seed);
        let store = sim_store(&disk);
        let mut cluster = Cluster::new(seed, [2, 1]);
        cluster.run(40);
        let (cut, first) = cluster.checkpoint(&store);
        cluster.run(40);
        let before = disk.files();
        disk.set_capacity(Some(disk.used() + 700 * seed));
        let (_, sealed) = cluster.seal(&store);
        let error = sealed.and_then(|sealed| sealed.store(&store)).err();
        check(&store, &first, &cut, 1);
        let Some(error) = error else { continue };
        assert!(error.is_full(), "{error}");
        assert_eq!(store.failure(), None, "it can continue when there is space");
        assert_eq!(disk.files().iter().filter(|path| path.contains("manifests/")).count(), 1);
        assert!(disk.files().len() <= before.len() + 1, "the space of a failed bundle is freed");
        disk.set_capacity(None);
        cluster.fail_next();
        let (cut, manifest) = cluster.checkpoint(&store);
        check(&store, &manifest, &cut, 1);
    }
}
