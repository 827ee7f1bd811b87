//! Restores into a data directory: whole or not at all, wherever they break off.

use super::model::{Cluster, sim_store};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::ids::{ClusterId, Incarnation, NodeId, Time};
use stead_core::state::State;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Manifest, newest};
use stead_store::checkpoint::restore::{Progress, Restored};
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, Meta};
use stead_store::disk::{Disk, Open};
use stead_store::restoring::{RestoreIntoError, RestoreOptions, restore_into};
use stead_store::sim_disk::{Faults, SimDisk};

/// A checkpoint, and what a restore of it has.
struct Source {
    store: DiskStore,
    manifest: Manifest,
    hashes: Vec<u128>,
    operations: u64,
}

fn source() -> Source {
    let store = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [2, 2]);
    cluster.run(60);
    let (_, manifest) = cluster.checkpoint(&store);
    let mut source = Source { store, manifest, hashes: Vec::new(), operations: 0 };
    let disk = SimDisk::new(2);
    source.restore(&disk).unwrap();
    source.operations = disk.operations();
    source.hashes = hashes(&disk);
    source
}

fn fresh() -> Meta {
    Meta::new(ClusterId(5), Incarnation(1), NodeId(1), 6)
}

impl Source {
    fn restore(&self, disk: &SimDisk) -> Result<Restored, RestoreIntoError> {
        self.restore_with(disk, &mut |_| {})
    }

    fn restore_with(
        &self,
        disk: &SimDisk,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Restored, RestoreIntoError> {
        let options = RestoreOptions { shards: BTreeMap::new(), created: Time(77), writer: 9 };
        restore_into(Arc::new(disk.clone()), &self.store, &self.manifest, fresh(), &options, progress)
    }

    /// Whether the directory holds all that was restored. Otherwise it holds nothing, or is marked as unfinished.
    fn is_whole(&self, disk: &SimDisk) -> bool {
        match DataDir::inspect(disk) {
            Ok(meta) => {
                assert_eq!(meta.incarnation, Incarnation(self.manifest.incarnation.0 + 1));
                assert_eq!(hashes(disk), self.hashes);
                true
            }
            Err(DataDirError::Empty | DataDirError::RestoreUnfinished) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Restores into what a restore has left.
    fn restore_again(&self, disk: &SimDisk) {
        match self.is_whole(disk) {
            true => assert!(matches!(self.restore(disk), Err(RestoreIntoError::NotEmpty))),
            false => drop(self.restore(disk).unwrap()),
        }
        assert!(self.is_whole(disk));
    }
}

fn hashes(disk: &SimDisk) -> Vec<u128> {
    let store = DiskStore::attach(Arc::new(disk.clone()), CHECKPOINTS);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    let parts = load_parts(&store, &manifest, 1).unwrap();
    parts.into_iter().map(|part| State::hash(&part.into_state(&manifest).unwrap())).collect()
}

#[test]
fn a_restore_that_crashed_anywhere_is_refused_by_a_start_and_taken_by_another_restore() {
    let source = source();
    let mut unfinished = 0;
    for at in 1..=source.operations {
        let disk = SimDisk::new(at);
        disk.crash_after(at);
        assert!(source.restore(&disk).is_err(), "operation {at}");
        disk.restart();
        // The next one meets a crash as well.
        disk.crash_after(1 + at * 7 % source.operations);
        let again = source.restore(&disk);
        disk.restart();
        assert!(again.is_err() || source.is_whole(&disk));
        let opened = DataDir::open(Arc::new(disk.fork(0)), fresh);
        unfinished += u64::from(matches!(opened, Err(DataDirError::RestoreUnfinished)));
        source.restore_again(&disk);
    }
    assert!(unfinished > source.operations / 2, "{unfinished} of {}", source.operations);
}

#[test]
fn a_restore_that_failed_leaves_the_directory_as_it_was() {
    let source = source();
    let disk = SimDisk::new(3);
    source.restore(&disk).unwrap();
    let used = disk.used();
    for room in (0..used).step_by(256) {
        let disk = SimDisk::new(room);
        disk.set_capacity(Some(room));
        assert!(source.restore(&disk).is_err(), "{room} of {used} bytes");
        assert!(disk.files().is_empty(), "{room} of {used} bytes: {:?}", disk.files());
        assert_eq!(disk.list("").unwrap(), [] as [&str; 0]);
        disk.set_capacity(None);
        source.restore_again(&disk);
    }
    let broken = |faults: Faults| {
        let disk = SimDisk::new(4);
        let failed = source.restore_with(&disk, &mut |_| disk.set_faults(faults));
        assert!(failed.is_err());
        disk.set_faults(Faults::default());
        source.restore_again(&disk);
    };
    broken(Faults { writes: 1, ..Faults::default() });
    broken(Faults { syncs: 1, ..Faults::default() });
    // The removal of what was written fails, too.
    broken(Faults { changes: 3, ..Faults::default() });
}

#[test]
fn a_crash_while_a_failed_restore_is_undone_leaves_what_a_restore_takes() {
    let source = source();
    for at in 1..=40 {
        let disk = SimDisk::new(at);
        let fail = &mut |_| {
            disk.set_faults(Faults { writes: 1, ..Faults::default() });
            disk.crash_after(at);
        };
        assert!(source.restore_with(&disk, fail).is_err());
        disk.set_faults(Faults::default());
        disk.restart();
        assert!(!source.is_whole(&disk), "operation {at}");
        source.restore_again(&disk);
    }
}

#[test]
fn a_directory_with_data_is_not_restored_into() {
    let source = source();
    let disk = SimDisk::new(5);
    drop(DataDir::open(Arc::new(disk.clone()), fresh).unwrap());
    let before = disk.bytes("stead.json");
    assert!(matches!(source.restore(&disk), Err(RestoreIntoError::NotEmpty)));
    assert_eq!(disk.bytes("stead.json"), before);
    let disk = SimDisk::new(6);
    drop(disk.open("foreign", Open::New).unwrap());
    assert!(matches!(
        source.restore(&disk),
        Err(RestoreIntoError::DataDir(DataDirError::MetaMissing { .. }))
    ));
    assert_eq!(disk.files(), ["foreign"]);
}
