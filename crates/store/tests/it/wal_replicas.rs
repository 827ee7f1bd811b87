//! The records of replicas: what one writes at once, and installs.

use crate::wal_log::{open, put, rec, small};
use std::convert::Infallible;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::{LogEntry, Record};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, Damage, InstallRecord, Item, Wal, WalError, WalOptions};

pub(crate) fn at(epoch: u64, index: u64) -> LogPoint {
    LogPoint { epoch: Epoch(epoch), index: Index(index) }
}

pub(crate) fn entry(epoch: u64, index: u64, bytes: &[u8]) -> Record {
    Record::Entry(LogEntry { point: at(epoch, index), bytes: Blob::from(bytes) })
}

/// Returns all records of a log, as their debug forms; those of an entry are its bytes.
pub(crate) fn records(disk: &SimDisk, options: &WalOptions) -> Result<Vec<String>, WalError> {
    let mut seen = Vec::new();
    let visit = |item: Item<'_>| {
        seen.push(match item {
            Item::Entry(record) => {
                let bytes = String::from_utf8_lossy(record.bytes);
                format!("entry {}/{} of {}: {bytes}", record.index, record.epoch, record.shard)
            }
            Item::Promise(promise) => {
                format!("promise {} of {}/{}", promise.epoch, promise.shard, promise.replica)
            }
            Item::Cut(cut) => format!("cut {} after {} of {}", cut.epoch, cut.index, cut.shard),
            Item::Install(install) => {
                let InstallRecord { shard, replica, epoch, base } = install;
                format!("install {epoch} behind {}/{} of {shard}/{replica}", base.index, base.epoch)
            }
        });
        Ok::<(), Infallible>(())
    };
    Wal::open_checked(Arc::new(disk.clone()), options.clone(), visit, || Ok(()))?;
    Ok(seen)
}

#[test]
fn what_replicas_of_several_shards_write_at_once_is_one_write() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let mut batch = Batch::new();
    batch.push_replica(ShardId(3), ReplicaId(9), &[Record::Promise(Epoch(4)), entry(4, 8, b"start")]);
    assert!(batch.has_promise());
    let backup = [
        Record::Promise(Epoch(5)),
        Record::Cut { epoch: Epoch(5), keep: Index(2) },
        entry(2, 3, b"old"),
        entry(5, 4, b"new"),
        Record::Install { epoch: Epoch(5), base: at(5, 300) },
    ];
    batch.push_replica(ShardId(70_000), ReplicaId(1), &backup);
    assert_eq!(batch.records(), 7);
    let before = disk.operations();
    wal.append(&[batch]).unwrap();
    assert_eq!(disk.operations(), before + 1);
    wal.mark().unwrap();
    drop(wal);
    let wanted = [
        "promise 4 of 3/9",
        "entry 8/4 of 3: start",
        "promise 5 of 70000/1",
        "cut 5 after 2 of 70000",
        "entry 3/2 of 70000: old",
        "entry 4/5 of 70000: new",
        "install 5 behind 300/5 of 70000/1",
    ];
    assert_eq!(records(&disk, &small()).unwrap(), wanted);
}

/// An install names the snapshot behind which the log begins, so it may not leave before another one replaces that.
#[test]
fn an_install_stays_until_a_snapshot_covers_more_than_its_own() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let mut batch = Batch::new();
    let install =
        InstallRecord { shard: ShardId(0), replica: ReplicaId(2), epoch: Epoch(1), base: at(1, 30) };
    batch.push_install(install);
    wal.append(&[batch]).unwrap();
    for index in 31..=50 {
        put(&mut wal, &rec(0, index, &[1; 3000]));
    }
    let has_install = |disk: &SimDisk| {
        let copy = disk.fork(1);
        records(&copy, &small()).unwrap().iter().any(|record| record.starts_with("install"))
    };
    assert_eq!(wal.trim(|_| Index(30)).unwrap(), 0, "the installed snapshot itself");
    assert!(has_install(&disk));
    assert!(wal.trim(|_| Index(50)).unwrap() > 0);
    assert!(!has_install(&disk));
}

#[test]
fn an_install_of_a_snapshot_from_a_later_epoch_is_damage() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let mut batch = Batch::new();
    let install =
        InstallRecord { shard: ShardId(0), replica: ReplicaId(2), epoch: Epoch(3), base: at(4, 30) };
    batch.push_install(install);
    wal.append(&[batch]).unwrap();
    wal.mark().unwrap();
    drop(wal);
    let error = records(&disk, &small()).unwrap_err();
    assert!(matches!(error, WalError::Corrupt { damage: Damage::Install, .. }), "{error}");
}

/// Who wrote the entries behind them is known from these promises.
#[test]
fn a_trimmed_log_is_read_from_the_promises_of_its_first_table() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let promises = [(2, 5), (3, 4)].map(|(replica, epoch)| {
        let mut batch = Batch::new();
        batch.push_replica(ShardId(0), ReplicaId(replica), &[Record::Promise(Epoch(epoch))]);
        batch
    });
    wal.append(&promises).unwrap();
    for index in 1..=50 {
        put(&mut wal, &rec(0, index, &[1; 3000]));
    }
    assert!(wal.trim(|_| Index(40)).unwrap() > 0);
    wal.mark().unwrap();
    drop(wal);
    let records = records(&disk, &small()).unwrap();
    assert_eq!(records[..2], ["promise 5 of 0/2", "promise 4 of 0/3"]);
    assert!(records[2..].iter().all(|record| record.starts_with("entry")));
}
