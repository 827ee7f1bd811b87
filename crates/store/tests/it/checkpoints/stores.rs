//! One suite for every store.

use super::chain::check;
use super::model::{Cluster, sim_store};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_store::checkpoint::cancel::Cancel;
use stead_store::checkpoint::copy::copy;
use stead_store::checkpoint::directory::Directory;
use stead_store::checkpoint::manifest::newest;
use stead_store::checkpoint::remote;
use stead_store::checkpoint::store::{BlobStore, DiskStore, Put, StoreError};
use stead_store::disk::{Disk, Open};
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::SimDisk;

/// Tests every guarantee of [`BlobStore`], on an empty store.
pub(crate) fn suite(store: &dyn BlobStore) {
    assert!(newest(store).unwrap().manifest.is_none());
    assert_eq!(store.put_new("manifests/a.json", b"one").unwrap(), Put::Created);
    assert_eq!(store.put_new("manifests/a.json", b"two").unwrap(), Put::Exists);
    assert_eq!(store.get("manifests/a.json", 3).unwrap(), b"one");
    let large = store.get("manifests/a.json", 2);
    assert!(matches!(large, Err(StoreError::TooLarge { len: 3, max: 2, .. })), "{large:?}");
    assert!(store.get("manifests/b.json", 9).unwrap_err().is_not_found());
    assert!(store.open("bundles/b").err().unwrap().is_not_found());
    assert_eq!(store.put_new("manifests/empty", b"").unwrap(), Put::Created);
    assert_eq!(store.get("manifests/empty", 0).unwrap(), b"");

    let mut writer = store.create("bundles/x.bundle").unwrap();
    let piece: Vec<u8> = (0..1_500_000u32).map(|at| (at % 251) as u8).collect();
    for _ in 0..5 {
        writer.write(&piece).unwrap();
    }
    assert_eq!(store.list("bundles/").unwrap(), Vec::<String>::new(), "not there before it is finished");
    writer.finish().unwrap();
    let reader = store.open("bundles/x.bundle").unwrap();
    assert_eq!(reader.size(), 7_500_000);
    reader.read_ahead();
    let mut buf = vec![0; 600_000];
    reader.read_at(&mut buf, 1_499_999).unwrap();
    assert_eq!(buf[0], piece[1_499_999]);
    assert_eq!(buf[1..], piece[..599_999]);
    assert!(reader.read_at(&mut buf, 7_000_000).is_err(), "it ends before");
    reader.read_at(&mut [], 7_500_000).unwrap();
    let mut dropped = store.create("bundles/y.bundle").unwrap();
    dropped.write(&piece).unwrap();
    drop(dropped);
    assert_eq!(store.list("bundles/").unwrap(), ["bundles/x.bundle"]);
    store.create("bundles/z").unwrap().finish().unwrap();
    assert_eq!(store.open("bundles/z").unwrap().size(), 0);

    assert_eq!(store.list("manifests/").unwrap(), ["manifests/a.json", "manifests/empty"]);
    store.delete("manifests/a.json").unwrap();
    store.delete("manifests/a.json").unwrap();
    store.delete("manifests/empty").unwrap();
    store.delete("bundles/x.bundle").unwrap();
    store.delete("bundles/z").unwrap();
    assert_eq!(store.list("manifests/").unwrap(), Vec::<String>::new());
    for bad in [
        "a",
        "../x",
        "bundles/",
        "/x",
        "bundles/../x",
        "bundles/.x",
        "bundles/A",
        "bundles/a/b",
        "bundles/a.tmp",
    ] {
        assert!(matches!(store.put_new(bad, b""), Err(StoreError::Address { .. })), "{bad:?}");
    }

    std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8u8)
            .map(|racer| scope.spawn(move || store.put_new("manifests/race", &[racer; 100])))
            .collect();
        let results: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap().unwrap()).collect();
        let winners: Vec<_> = (0..8u8).filter(|racer| results[usize::from(*racer)] == Put::Created).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get("manifests/race", 100).unwrap(), [winners[0]; 100]);
    });
    store.delete("manifests/race").unwrap();

    let local = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [2, 1]);
    for _ in 0..3 {
        cluster.run(40);
        let (cut, manifest) = cluster.checkpoint(&local);
        let copied = copy(&local, store, &manifest).unwrap();
        assert_eq!(copied.bundles + copied.reused, manifest.bundles.len());
        let found = newest(store).unwrap().manifest.unwrap();
        check(store, &found, &cut, 2);
        assert_eq!(copy(&local, store, &manifest).unwrap().bundles, 0);
    }
}

#[test]
fn a_simulated_disk() {
    suite(&sim_store(&SimDisk::new(1)));
}

/// Whatever fails first, no later success is trusted, and existing objects stay readable.
#[test]
fn a_store_takes_nothing_more_after_a_failed_sync() {
    type Step = fn(&dyn BlobStore) -> Result<(), StoreError>;
    let put: Step = |store| store.put_new("manifests/a.json", b"one").map(drop);
    let large: Step = |store| store.create("bundles/large")?.write(&vec![1; 17 << 20]);
    let finish: Step = |store| store.create("bundles/small")?.finish();
    let delete: Step = |store| store.delete("bundles/old");
    for step in [put, large, finish, delete] {
        let disk = SimDisk::new(1);
        let store = sim_store(&disk);
        store.create("bundles/old").unwrap().finish().unwrap();
        let begun = store.create("bundles/begun").unwrap();
        assert_eq!(store.failure(), None);
        disk.fail_syncs(1);
        let first = step(&store).unwrap_err();
        assert_eq!(store.failure(), Some(first.to_string()));
        let refused = |result: Result<(), StoreError>| {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Failed { .. }), "{error}");
            assert!(error.to_string().contains(&first.to_string()), "{error}");
        };
        refused(begun.finish());
        for later in [put, large, finish, delete] {
            refused(later(&store));
        }
        store.list("bundles/").unwrap();
        put(&sim_store(&disk)).unwrap();
    }
}

#[test]
fn a_directory() {
    let dir = tempfile::tempdir().unwrap();
    suite(&DiskStore::open(Arc::new(RealDisk::open(dir.path()).unwrap()), "checkpoints").unwrap());
}

/// Tests an object of more than one part.
pub(crate) fn suite_of_parts(store: &dyn BlobStore) {
    let piece: Vec<u8> = (0..9u32 << 20).map(|at| (at % 253) as u8).collect();
    let mut writer = store.create("bundles/parts").unwrap();
    writer.write(&piece).unwrap();
    writer.write(&piece).unwrap();
    writer.finish().unwrap();
    let whole = store.get("bundles/parts", 18 << 20).unwrap();
    assert!(whole[..piece.len()] == piece && whole[piece.len()..] == piece);
    let mut dropped = store.create("bundles/dropped").unwrap();
    dropped.write(&piece).unwrap();
    dropped.write(&piece).unwrap();
    drop(dropped);
    assert_eq!(store.list("bundles/").unwrap(), ["bundles/parts"]);
    store.delete("bundles/parts").unwrap();
}

#[test]
fn a_directory_by_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("file://{}/deep/down", dir.path().display());
    let store = remote::open(&address, &BTreeMap::new()).unwrap();
    suite_of_parts(&*store);
    suite(&*store);
}

fn directory(disk: &SimDisk, seed: u64) -> Directory {
    let place = "the copies".to_owned();
    Directory::open(Arc::new(disk.clone()), "copies", place, Cancel::default(), seed).unwrap()
}

#[test]
fn a_directory_of_a_simulated_disk() {
    let disk = SimDisk::new(1);
    suite_of_parts(&directory(&disk, 1));
    suite(&directory(&disk, 2));
}

#[test]
fn the_names_that_a_killed_writer_left_are_durable_before_another_builds_upon_them() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        for dir in ["copies", "copies/bundles"] {
            disk.create_dir(dir).unwrap();
        }
        let file = disk.open("copies/bundles/a", Open::New).unwrap();
        file.write_at(b"a", 0).unwrap();
        file.sync_data().unwrap();
        disk.kill_process();
        let store = directory(&disk, seed);
        assert_eq!(store.get("bundles/a", 1).unwrap(), b"a");
        store.put_new("manifests/m", b"a is here").unwrap();
        disk.crash();
        disk.restart();
        let store = directory(&disk, seed);
        assert!(store.open("manifests/m").is_ok() && store.open("bundles/a").is_ok(), "seed {seed}");
    }
}

#[test]
fn bad_addresses_are_refused() {
    let option = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    for (address, options) in [
        ("/tmp/x", BTreeMap::new()),
        ("file://relative", BTreeMap::new()),
        ("file:///tmp", option.clone()),
        ("s3://", BTreeMap::new()),
        ("s3://bucket/x", option),
        ("ftp://x/y", BTreeMap::new()),
        ("s3://key:secret@bucket/x", BTreeMap::new()),
    ] {
        let refused = remote::open(address, &options).err();
        assert!(matches!(&refused, Some(StoreError::Address { .. })), "{address}: {refused:?}");
        assert!(!refused.unwrap().to_string().contains("secret"), "{address}");
    }
}
