//! Numbers that were given up: their tombstones are deleted, and none of the numbers is used again.

use super::chain::{check, in_use, merge};
use super::model::{Cluster, OWNER, sim_store};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use stead_core::checkpointing::lineage::Lineage;
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::{CheckpointNumber, Micros, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::{Collected, Collector, Retention};
use stead_store::checkpoint::copy::copy;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{MANIFESTS, decided_numbers, manifest_name, newest};
use stead_store::checkpoint::store::{BlobReader, BlobStore, BlobWriter, DiskStore, Put, StoreError};
use stead_store::checkpoint::write::give_up;
use stead_store::sim_disk::SimDisk;

/// Gives up a checkpoint after all its parts are written.
fn give_up_next(cluster: &mut Cluster, store: &dyn BlobStore) -> Result<(), CheckpointError> {
    cluster.run(3);
    let (_, sealed) = cluster.seal(store);
    cluster.fail_next();
    drop(sealed?);
    let now = Time(cluster.number.0);
    give_up(store, &cluster.topology, cluster.number, now, cluster.names.author(), "a test")
}

fn collect(
    collector: &mut Collector,
    store: &dyn BlobStore,
    lineage: &Lineage,
) -> Result<Collected, CheckpointError> {
    let retention = Retention { keep: 2, grace: Micros(0), ..Retention::default() };
    collector.collect(store, OWNER, Time(9), &retention, &in_use(lineage))
}

#[test]
fn many_given_up_numbers_leave_one_tombstone() {
    let disk = SimDisk::new(1);
    let store = sim_store(&disk);
    let mut cluster = Cluster::new(1, [2, 1]);
    let mut collector = Collector::new();
    let (mut complete, mut cuts) = (Vec::new(), BTreeMap::new());
    for round in 0..60 {
        if round % 20 == 10 {
            let (cut, manifest) = cluster.checkpoint(&store);
            complete.push(manifest.number);
            cuts.insert(manifest.number, cut);
        } else {
            give_up_next(&mut cluster, &store).unwrap();
        }
        collect(&mut collector, &store, &cluster.lineage).unwrap();
        let mut left: BTreeSet<CheckpointNumber> = complete.iter().rev().take(2).copied().collect();
        left.insert(cluster.number);
        assert_eq!(decided_numbers(&store).unwrap(), Vec::from_iter(left), "round {round}");
    }
    // After a restart the next number is greater than any before.
    disk.crash();
    disk.restart();
    let found = newest(&sim_store(&disk)).unwrap();
    assert_eq!(found.decided, cluster.number);
    let manifest = found.manifest.unwrap();
    assert_eq!(Some(&manifest.number), complete.last());
    check(&store, &manifest, &cuts[&manifest.number], 1);
}

/// One collection deletes a bounded number of them, the oldest first.
#[test]
fn the_tombstones_of_older_programs_go_in_a_few_collections() {
    let store = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [1, 1]);
    cluster.checkpoint(&store);
    for number in 2..=150 {
        give_up(
            &store,
            &cluster.topology,
            CheckpointNumber(number),
            Time(0),
            cluster.names.author(),
            "a test",
        )
        .unwrap();
    }
    let mut collector = Collector::new();
    for expected in [2..=65, 66..=129, 130..=149] {
        let collected = collect(&mut collector, &store, &cluster.lineage).unwrap();
        assert_eq!(collected.tombstones, expected.map(CheckpointNumber).collect::<Vec<_>>());
    }
    assert_eq!(collect(&mut collector, &store, &cluster.lineage).unwrap(), Collected::default());
    assert_eq!(decided_numbers(&store).unwrap(), [1, 150].map(CheckpointNumber));
}

#[test]
fn a_number_stays_decided_when_its_tombstone_is_gone() {
    let store = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [1, 1]);
    let (_, late) = cluster.seal(&store);
    give_up(&store, &cluster.topology, cluster.number, Time(0), cluster.names.author(), "too slow").unwrap();
    cluster.fail_next();
    give_up_next(&mut cluster, &store).unwrap();
    let collected = collect(&mut Collector::new(), &store, &cluster.lineage).unwrap();
    assert_eq!(collected.tombstones, [CheckpointNumber(1)]);
    assert!(matches!(late.unwrap().store(&store), Err(CheckpointError::Decided(CheckpointNumber(1)))));
    assert_eq!(decided_numbers(&store).unwrap(), [CheckpointNumber(2)]);
}

#[test]
fn a_crash_at_any_io_of_a_collection_keeps_the_greatest_number() {
    let mut crashes = 0;
    for crash in 1.. {
        let disk = SimDisk::new(crash);
        let store = sim_store(&disk);
        let mut cluster = Cluster::new(1, [1, 1]);
        let mut cuts = BTreeMap::new();
        for completes in [true, false, false, true, false, true, false, false] {
            if completes {
                let (cut, manifest) = cluster.checkpoint(&store);
                cuts.insert(manifest.number, cut);
            } else {
                give_up_next(&mut cluster, &store).unwrap();
            }
        }
        let mut decided = cluster.number;
        disk.crash_after(crash);
        let mut collector = Collector::new();
        let mut work = || -> Result<(), CheckpointError> {
            for _ in 0..3 {
                collect(&mut collector, &store, &cluster.lineage)?;
                give_up_next(&mut cluster, &store)?;
                decided = cluster.number;
            }
            Ok(())
        };
        let done = work().is_ok();
        disk.restart();
        let store = sim_store(&disk);
        let found = newest(&store).unwrap();
        assert!(found.decided >= decided, "crash {crash}: {} < {decided}", found.decided);
        let manifest = found.manifest.expect("three were complete");
        assert_eq!(manifest.number, CheckpointNumber(6), "crash {crash}");
        check(&store, &manifest, &cuts[&manifest.number], 1);
        // The next life's collection completes the one that this life began.
        let lineage = manifest.lineage();
        collect(&mut Collector::new(), &store, &lineage).unwrap();
        assert_eq!(
            decided_numbers(&store).unwrap(),
            [CheckpointNumber(4), CheckpointNumber(6), found.decided],
            "crash {crash}"
        );
        if done {
            break;
        }
        crashes += 1;
    }
    println!("{crashes} crashes");
    assert!(crashes > 30);
}

/// A store that counts how often each object is opened.
struct Counting {
    store: DiskStore,
    opened: Mutex<BTreeMap<String, u64>>,
}

impl Counting {
    fn reads(&self, dir: &str) -> BTreeMap<String, u64> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        opened.retain(|name, _| name.starts_with(dir));
        opened
    }
}

impl BlobStore for Counting {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.store.put_new(name, bytes)
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.store.create(name)
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
        self.store.open(name)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        self.store.list(dir)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete(name)
    }
}

#[test]
fn a_collection_reads_each_decision_once() {
    let store = Counting { store: sim_store(&SimDisk::new(1)), opened: Mutex::default() };
    let mut cluster = Cluster::new(1, [1, 1]);
    let mut collector = Collector::new();
    for round in 0..24 {
        if round % 3 == 0 {
            cluster.run(5);
            cluster.checkpoint(&store);
        } else {
            give_up_next(&mut cluster, &store).unwrap();
        }
        collect(&mut collector, &store, &cluster.lineage).unwrap();
        collect(&mut collector, &store, &cluster.lineage).unwrap();
        let reads = store.reads(MANIFESTS);
        let most = reads.iter().max_by_key(|(name, reads)| (**reads, Reverse(*name))).unwrap();
        assert_eq!(*most.1, 1, "{most:?}");
        assert_eq!(reads.len() as u64, cluster.number.0);
    }
    // A number whose object was replaced, as a manual copy may do, is read again.
    let kept = decided_numbers(&store).unwrap()[0];
    let bytes = store.store.get(&manifest_name(kept), 1 << 20).unwrap();
    store.delete(&manifest_name(kept)).unwrap();
    collect(&mut collector, &store, &cluster.lineage).unwrap();
    store.put_new(&manifest_name(kept), &bytes).unwrap();
    collect(&mut collector, &store, &cluster.lineage).unwrap();
    assert_eq!(store.reads(MANIFESTS)[&manifest_name(kept)], 2);
}

/// A remote store may perform a write long after its client has given it up.
#[test]
fn a_manifest_that_comes_late_hides_no_newer_one_is_refused_and_collected_again() {
    let (store, target) = (sim_store(&SimDisk::new(1)), sim_store(&SimDisk::new(2)));
    let mut cluster = Cluster::new(1, [2, 1]);
    let policy = Policy { fan_in: 2, growth: 100, growth_bytes_min: 0, ..Policy::default() };
    let (mut collector, mut taken) = (Collector::new(), Vec::new());
    let collect = |collector: &mut Collector| {
        let retention = Retention { keep: 2, grace: Micros(0), ..Retention::default() };
        collector.collect(&target, OWNER, Time(9), &retention, &BTreeSet::new()).unwrap()
    };
    for _ in 0..12 {
        cluster.run(25);
        let (cut, manifest) = cluster.checkpoint(&store);
        copy(&store, &target, &manifest).unwrap();
        merge(&mut cluster, &store, &policy);
        collect(&mut collector);
        taken.push((cut, manifest));
    }
    let (cut, last) = taken.last().unwrap();
    let first = &taken[0].1;
    let kept = decided_numbers(&target).unwrap();
    assert_eq!(kept.len(), 2);
    first.store(&target).unwrap();
    // A restore without a number takes the newest one; one with this number reports the missing bundle.
    assert_eq!(newest(&target).unwrap().manifest.unwrap().number, last.number);
    let missing = load_parts(&target, first, 1).map(drop).unwrap_err().to_string();
    assert!(first.bundles.iter().any(|bundle| missing.contains(&bundle.name)), "{missing}");
    // Before and after a start.
    for collector in [&mut collector, &mut Collector::new()] {
        if !decided_numbers(&target).unwrap().contains(&first.number) {
            first.store(&target).unwrap();
        }
        assert_eq!(collect(collector).checkpoints, [first.number]);
        assert_eq!(decided_numbers(&target).unwrap(), kept);
        check(&target, last, cut, 1);
    }
}
