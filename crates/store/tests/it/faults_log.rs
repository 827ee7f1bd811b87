//! Which of two errors is reported.

use crate::wal_log::{open, put, rec, small};
use std::sync::Arc;
use stead_core::ids::{Index, ShardId};
use stead_store::disk::Disk;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Record, Wal, WalError, WalOptions};

/// Refuses a gap, like a replay.
fn replay(last: &mut u64) -> impl FnMut(Record<'_>) -> Result<(), std::io::Error> + '_ {
    |record| {
        let gap = *last > 0 && record.index.0 != *last + 1;
        *last = record.index.0;
        if gap { Err(std::io::Error::other("a gap")) } else { Ok(()) }
    }
}

#[test]
fn damage_to_the_log_is_reported_rather_than_its_effect_on_a_reader() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    for index in 1..=30 {
        put(&mut wal, &rec(1, index, &[7; 2000]));
    }
    wal.trim(|shard| if shard == ShardId(1) { Index(8) } else { Index(u64::MAX) }).unwrap();
    for index in 31..=40 {
        put(&mut wal, &rec(1, index, &[7; 2000]));
    }
    drop(wal);
    let options = WalOptions { create: false, ..small() };
    let first = disk.list("wal").unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap();
    disk.remove(&format!("wal/{first}")).unwrap();
    let error = Wal::open(Arc::new(disk.clone()), options, replay(&mut 1)).unwrap_err();
    assert!(matches!(&error, WalError::MissingSegment { path } if path.ends_with(&first)), "{error}");
}
