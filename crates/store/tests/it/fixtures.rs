//! Logs and data directories that each version wrote. Every later version must open them.
//!
//! Written by `STEAD_WRITE_FIXTURES=1 cargo test -p stead-store --test it -- fixtures`, once for each format version; it
//! writes those of today's.

use crate::wal_log::{Rec, open, put, rec, small};
use crate::wal_replicas::{at, entry, records as all_records};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stead_core::ids::{ClusterId, Epoch, Incarnation, Index, NodeId, ReplicaId, ShardId};
use stead_core::shard_replica::Record;
use stead_store::data_dir::{DataDir, Meta, ServiceMeta};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, CutRecord, Damage, Promise, Wal, WalError, WalOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(disk: &SimDisk, from: &Path, to: &str) {
    let mut names: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        disk.put(&format!("{to}{name}"), &std::fs::read(&path).unwrap());
    }
}

fn save(disk: &SimDisk, prefix: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in disk.files() {
        if let Some(name) = path.strip_prefix(prefix) {
            std::fs::write(to.join(name), disk.bytes(&path).unwrap()).unwrap();
        }
    }
}

fn records() -> Vec<Rec> {
    let rec = |n: u64| Rec { epoch: 1 + n / 10, ..rec(n as u32 % 3, n, &vec![n as u8; 50 * n as usize]) };
    (1..=24).map(rec).collect()
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, log_id: 0x5eed, ..small() }
}

fn meta() -> Meta {
    let services = [("kv", 0, 64), ("bank", 64, 8)];
    let services = services.map(|(name, first, shards)| ServiceMeta {
        name: name.to_owned(),
        first: ShardId(first),
        shards,
    });
    Meta {
        cluster: ClusterId(0xfeed_0000_0000_0000_0000_0000_0000_beef),
        incarnation: Incarnation(3),
        node: NodeId(3),
        lives: 14,
        epoch_floor: Epoch(7),
        log_id: 0x5eed,
        log_created: true,
        clean: false,
        unsynced: None,
        restoring: false,
        has_control: false,
        starts: Vec::new(),
        services: services.into(),
    }
}

/// Shards 0 to 2 promise epoch 1, and shard 1 then promises epoch 4 as another replica.
fn promises() -> Vec<Promise> {
    let promise = |shard, replica, epoch| Promise {
        shard: ShardId(shard),
        replica: ReplicaId(replica),
        epoch: Epoch(epoch),
    };
    vec![promise(0, 1, 1), promise(1, 1, 1), promise(1, 7, 4), promise(2, 1, 1)]
}

/// Trimmed, recycled, with promises and a cut, and with a torn tail.
fn write_wal() -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &options()).unwrap();
    let mut batch = Batch::new();
    promises().into_iter().for_each(|promise| batch.push_promise(promise));
    wal.append(&[batch]).unwrap();
    for rec in records() {
        put(&mut wal, &rec);
        if rec.index == 20 {
            let mut batch = Batch::new();
            batch.push_cut(CutRecord { shard: ShardId(0), epoch: Epoch(9), index: Index(20) });
            wal.append(&[batch]).unwrap();
        }
        if rec.index == 9 {
            wal.trim(|_| Index(9)).unwrap();
        }
    }
    let at = put(&mut wal, &rec(1, 25, b"torn"));
    disk.flip_bit(&format!("wal/{:016x}.log", at.segment), at.offset + 80, 3).unwrap();
    disk
}

/// Opens a log that some version wrote as [`write_wal`] does.
fn open_wal(version: u32) -> (SimDisk, Wal) {
    let disk = SimDisk::new(1);
    load(&disk, &fixture(&format!("wal-v{version}")), "wal/");
    let (wal, opened, seen) = open(&disk, &WalOptions { create: false, ..options() }).unwrap();
    let first = seen[0].index as usize;
    assert!((2..=10).contains(&first), "trimmed up to 9 at most");
    assert_eq!(seen, records()[first - 1..]);
    assert!(opened.cut.is_some());
    (disk, wal)
}

#[test]
fn a_log_of_version_1_opens_and_goes_on_in_the_version_of_today() {
    let (disk, mut wal) = open_wal(1);
    assert!(wal.promises().iter().next().is_none());
    let versions = || {
        let paths = disk.files().into_iter().filter(|path| path.ends_with(".log"));
        paths.map(|path| disk.bytes(&path).unwrap()[8]).collect::<Vec<u8>>()
    };
    assert!(
        versions().iter().all(|version| *version == 1),
        "nothing is of version 2 before the first append"
    );
    assert_eq!(wal.reserve_left(), 0, "its last segment takes marks only");
    let from = wal.position().segment;
    let next = Rec { epoch: 3, ..rec(1, 25, b"next") };
    assert_eq!(put(&mut wal, &next).segment, from + 1, "no record of version 2 in a segment of version 1");
    drop(wal);
    let (mut wal, _, seen) = open(&disk, &WalOptions { create: false, ..options() }).unwrap();
    assert_eq!(seen.last(), Some(&next));
    // The old segments leave by trimming.
    assert!(wal.trim(|_| Index(24)).unwrap() > 0);
    assert!(versions().iter().all(|version| *version == 2), "{:?}", versions());
}

/// A log of version 1 with a segment whose version byte says 2: refused if the segment holds batches.
#[test]
fn a_segment_of_version_1_that_says_2_is_refused() {
    let reopen = WalOptions { create: false, ..options() };
    let (closed, wal) = open_wal(1);
    let last = wal.position().segment;
    drop(wal);
    for id in [last - 1, last] {
        let disk = closed.fork(1);
        let path = format!("wal/{id:016x}.log");
        let mut bytes = disk.bytes(&path).unwrap();
        assert_eq!(bytes[8], 1);
        bytes[8] = 2;
        disk.put(&path, &bytes);
        let files = disk.files();
        let error = open(&disk, &reopen).unwrap_err();
        assert!(
            matches!(&error, WalError::Corrupt { path: at, offset: 0, damage: Damage::SegmentHeader } if *at == path),
            "{error}"
        );
        assert_eq!((disk.files(), disk.bytes(&path).unwrap()), (files, bytes), "nothing was changed");
    }
}

/// The first record that is appended after the log was opened, as a node promises its epochs before it does anything else.
fn promise_in(wal: &mut Wal) -> Result<(), WalError> {
    let mut batch = Batch::new();
    batch.push_promise(Promise { shard: ShardId(1), replica: ReplicaId::FIRST, epoch: Epoch(13) });
    wal.append(&[batch])?;
    wal.mark().map(drop)
}

/// Version 1 has prepared segments, which version 2 does not write to.
#[test]
fn a_crash_at_any_operation_of_the_conversion_loses_nothing_18() {
    let reopen = WalOptions { create: false, ..options() };
    let whole = SimDisk::new(1);
    load(&whole, &fixture("wal-v1"), "wal/");
    let (mut wal, _, expected) = open(&whole, &reopen).unwrap();
    let opened = whole.operations();
    let before: Vec<String> = whole.files();
    promise_in(&mut wal).unwrap();
    drop(wal);
    assert!(opened > 5 && whole.operations() > opened + 5, "the case needs operations");
    assert!(before.len() < 11, "what was only prepared is gone: {before:?}");
    for operation in 1..=whole.operations() {
        let disk = SimDisk::new(operation);
        load(&disk, &fixture("wal-v1"), "wal/");
        disk.crash_after(operation);
        let done = open(&disk, &reopen).and_then(|(mut wal, ..)| promise_in(&mut wal));
        disk.crash();
        disk.restart();
        let (mut wal, _, seen) = open(&disk, &reopen).unwrap();
        assert_eq!(seen, expected, "crash at operation {operation}");
        let promised = wal.promises().of(ShardId(1));
        assert!(promised == Epoch(13) || done.is_err() && promised == Epoch(0), "operation {operation}");
        promise_in(&mut wal).unwrap();
        put(&mut wal, &Rec { epoch: 13, ..rec(1, 25, b"next") });
        drop(wal);
        let (wal, _, seen) = open(&disk, &reopen).unwrap();
        assert_eq!((seen.len(), wal.promises().of(ShardId(1))), (expected.len() + 1, Epoch(13)));
    }
}

#[test]
fn a_log_of_version_2_opens() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        save(&write_wal(), "wal/", &fixture("wal-v2"));
    }
    let (_, wal) = open_wal(2);
    assert_eq!(wal.promises().iter().collect::<Vec<_>>(), promises(), "also those that were trimmed");
}

/// A log of version 2 with the records of replicas, of which the programs before these know no installs.
#[test]
fn a_log_of_version_2_with_installs_opens() {
    let write = || {
        let disk = SimDisk::new(1);
        let (mut wal, ..) = open(&disk, &options()).unwrap();
        let mut append = |replica, records: &[Record]| {
            let mut batch = Batch::new();
            batch.push_replica(ShardId(3), ReplicaId(replica), records);
            wal.append(&[batch]).unwrap();
            wal.mark().unwrap();
        };
        append(1, &[Record::Promise(Epoch(1)), entry(1, 1, b"one"), entry(1, 2, b"two")]);
        let install = Record::Install { epoch: Epoch(300), base: at(200, 70_000) };
        append(9, &[Record::Promise(Epoch(300)), install, entry(300, 70_001, b"start")]);
        append(9, &[Record::Cut { epoch: Epoch(301), keep: Index(70_000) }, entry(301, 70_001, b"other")]);
        disk
    };
    let name = fixture("wal-v2-installs");
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        save(&write(), "wal/", &name);
    }
    let disk = SimDisk::new(1);
    load(&disk, &name, "wal/");
    let wanted = [
        "promise 1 of 3/1",
        "entry 1/1 of 3: one",
        "entry 2/1 of 3: two",
        "promise 300 of 3/9",
        "install 300 behind 70000/200 of 3/9",
        "entry 70001/300 of 3: start",
        "cut 301 after 70000 of 3",
        "entry 70001/301 of 3: other",
    ];
    assert_eq!(all_records(&disk, &WalOptions { create: false, ..options() }).unwrap(), wanted);
}

#[test]
fn a_data_directory_of_version_1_opens_and_gets_the_version_of_today() {
    let disk = SimDisk::new(1);
    load(&disk, &fixture("data-dir-v1"), "");
    // One node, with one epoch for all its shards: no shard may use it again.
    let read = Meta { node: NodeId(1), lives: 12, epoch_floor: Epoch(12), ..meta() };
    assert_eq!(DataDir::inspect(&disk).unwrap(), read);
    let before = disk.bytes("stead.json");
    let (mut dir, created) = DataDir::open(Arc::new(disk.clone()), || panic!("it is there")).unwrap();
    assert!(!created);
    assert_eq!(disk.bytes("stead.json"), before, "a start that is refused changes nothing");
    dir.update(|_| {}).unwrap();
    drop(dir);
    assert_eq!(DataDir::inspect(&disk).unwrap(), read);
    assert!(disk.bytes("stead.json").unwrap().windows(11).any(|text| text == b"\"format\": 2"));
}

#[test]
fn a_data_directory_of_version_2_opens() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        let disk = SimDisk::new(1);
        DataDir::open(Arc::new(disk.clone()), meta).unwrap();
        save(&disk, "", &fixture("data-dir-v2"));
    }
    let disk = SimDisk::new(1);
    load(&disk, &fixture("data-dir-v2"), "");
    assert_eq!(DataDir::inspect(&disk).unwrap(), meta());
}
