//! Short segments of a short log, longer ones of a longer log, and more segments than files may be open.

use crate::wal_log::{batch, open, put, rec, small};
use stead_core::ids::Index;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Wal, WalError, WalOptions};

const UNIT: u64 = 64 << 10;

fn large() -> WalOptions {
    let batch_bytes_max = 256 << 20;
    WalOptions { segment_bytes: 8 * UNIT, segment_bytes_min: UNIT, batch_bytes_max, spares: 2, ..small() }
}

fn lengths(disk: &SimDisk) -> Vec<u64> {
    disk.files().iter().map(|path| disk.bytes(path).unwrap().len() as u64 / UNIT).collect()
}

#[test]
fn a_log_begins_short_and_its_segments_grow_with_it() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &large()).unwrap();
    assert_eq!(lengths(&disk), [1, 1], "a fresh log");
    let mut written = 0;
    while wal.stats().segments < 20 {
        written += 1;
        put(&mut wal, &rec(1, written, &[7; 6 << 10]));
    }
    let grown = lengths(&disk);
    assert!(grown.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= 2 * pair[0]), "{grown:?}");
    assert_eq!(grown.last(), Some(&8), "{grown:?}");
    // Trimmed segments are reused as long as they are long enough.
    assert!(wal.trim(|_| Index(written)).unwrap() > 10);
    assert_eq!(wal.segment_bytes_next(), 8 * UNIT);
    assert_eq!(wal.stats().free, 2);
    let bytes: u64 = lengths(&disk).iter().sum();
    assert_eq!(wal.stats().bytes, bytes * UNIT);
    drop(wal);
    let (wal, _, seen) = open(&disk, &large()).unwrap();
    assert_eq!(seen.last().unwrap().index, written);
    assert_eq!((wal.stats().ready, wal.stats().free), (2, 1));
    assert_eq!(wal.segment_bytes_next(), 8 * UNIT, "it is as long as before");
}

#[test]
fn a_batch_of_the_limit_fits_into_a_log_of_short_segments() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (mut wal, _, _) = open(&disk, &large()).unwrap();
        assert!(wal.batch_bytes_max() as u64 > 7 * UNIT);
        let mut expected = 0;
        for index in 1..=4 {
            let bytes = if index == 3 { 10 } else { wal.batch_bytes_max() - 64 };
            let batches: Vec<_> =
                (0..2).map(|n| batch(&[rec(n, index, &vec![index as u8; bytes])])).collect();
            wal.append(&batches).unwrap();
            wal.sync().unwrap();
            expected += 2;
        }
        // Neither skipped segments nor long ones affect writes after a crash.
        wal.append(&[batch(&[rec(5, 1, &[1; 192 << 10])])]).unwrap();
        disk.crash();
        disk.restart();
        drop(wal);
        let (mut wal, _, seen) = open(&disk, &large()).unwrap();
        assert!(seen.len() == expected || seen.len() == expected + 1, "seed {seed}: {} records", seen.len());
        put(&mut wal, &rec(9, 1, b"after"));
        assert!(wal.trim(|_| Index(u64::MAX)).unwrap() > 0);
        drop(wal);
        assert_eq!(open(&disk, &large()).unwrap().2.last().unwrap().bytes, b"after");
    }
}

#[test]
fn no_room_for_a_long_segment_leaves_a_log_of_short_ones_as_it_was() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &large()).unwrap();
    disk.set_capacity(Some(disk.used()));
    let long = [batch(&[rec(1, 1, &[1; 256 << 10])])];
    let before = wal.position();
    assert!(matches!(wal.append(&long), Err(WalError::NoSpace { .. })));
    assert_eq!(wal.position(), before);
    put(&mut wal, &rec(1, 1, b"short"));
    disk.set_capacity(None);
    wal.append(&[batch(&[rec(1, 2, &[1; 256 << 10])])]).unwrap();
    wal.sync().unwrap();
    assert_eq!(open(&disk, &large()).unwrap().2.len(), 2);
}

/// A log of 700 segments.
fn long(disk: &SimDisk) -> (Wal, u64) {
    let options = WalOptions { segment_bytes: 16 << 10, ..small() };
    let (mut wal, _, _) = open(disk, &options).unwrap();
    let mut written = 0;
    while wal.stats().segments < 700 {
        written += 1;
        wal.append(&[batch(&[rec(1, written, &[0; 7000])])]).unwrap();
    }
    wal.sync().unwrap();
    (wal, written)
}

#[test]
fn a_log_of_more_segments_than_files_may_be_open_is_opened() {
    let disk = SimDisk::new(1);
    let (wal, written) = long(&disk);
    drop(wal);
    assert_eq!(disk.open_files(), 0);
    disk.set_open_files(Some(3));
    let options = WalOptions { segment_bytes: 16 << 10, ..small() };
    for _ in 0..2 {
        let (wal, _, seen) = open(&disk, &options).unwrap();
        assert_eq!(seen.last().unwrap().index, written);
        assert_eq!(disk.open_files(), 2, "the active segment and the one that is ready");
        drop(wal);
    }
}

#[test]
fn a_log_without_a_descriptor_for_its_next_segment_goes_on_when_there_is_one() {
    let disk = SimDisk::new(1);
    let options = WalOptions { segment_bytes: 16 << 10, ..small() };
    let (mut wal, _, _) = open(&disk, &options).unwrap();
    let mut written = 0;
    for round in 0..3 {
        // More files than this are open already.
        disk.set_open_files(Some(1));
        let error = loop {
            assert!(written < 1000, "round {round}: no descriptor was missing");
            match wal.append(&[batch(&[rec(1, written + 1, &[0; 7000])])]) {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WalError::NoSpace { .. }), "round {round}: {error}");
        assert!(error.to_string().contains("limit of open files"), "{error}");
        wal.sync().unwrap();
        disk.set_open_files(None);
        written += 1;
        put(&mut wal, &rec(1, written, b"again"));
        // The next round reuses a trimmed segment.
        wal.trim(|_| Index(written)).unwrap();
    }
    drop(wal);
    assert_eq!(open(&disk, &options).unwrap().2.last().unwrap().index, written);
}
