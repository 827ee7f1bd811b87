//! Reading one shard's entries while the log is written.

use crate::wal_log::{Rec, batch, open, put, rec, small};
use std::convert::Infallible;
use std::ops::ControlFlow;
use stead_core::ids::{Index, ShardId};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{ShardReader, Wal, WalOptions};

const BUSY: u32 = 0;
const CALM: u32 = 70_001;

/// The indexes that a reader shows, `limit` of them at most.
fn take(reader: &mut ShardReader, limit: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    let visit = |record: stead_store::wal::Record<'_>| {
        seen.push(record.index.0);
        let is_enough = seen.len() == limit;
        Ok::<_, Infallible>(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    reader.read(visit).unwrap();
    seen
}

/// Entries of a busy shard, each of which fills half a segment; one of another shard after every `every`.
fn fill(wal: &mut Wal, from: u64, to: u64, every: u64) {
    for index in from..=to {
        put(wal, &rec(BUSY, index, &[1; 10_000]));
        if index % every == 0 {
            put(wal, &rec(CALM, index / every, b"calm"));
        }
    }
}

#[test]
fn a_reader_follows_what_is_durable() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let mut busy = wal.reader().entries(ShardId(BUSY), Index(3));
    let mut calm = wal.reader().entries(ShardId(CALM), Index(1));
    assert!(take(&mut busy, 9).is_empty(), "there is nothing yet");
    fill(&mut wal, 1, 8, 3);
    assert_eq!(take(&mut busy, 2), [3, 4]);
    assert_eq!(take(&mut calm, 9), [1, 2]);
    fill(&mut wal, 9, 12, 3);
    assert_eq!(take(&mut busy, 99), [5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(take(&mut calm, 9), [3, 4]);
    // Entries that are not durable are not shown, nor are any shown twice afterwards.
    let group: Vec<Rec> = (13..=15).map(|index| rec(BUSY, index, b"group")).collect();
    wal.append(&[batch(&group)]).unwrap();
    assert!(take(&mut busy, 9).is_empty());
    wal.sync().unwrap();
    assert_eq!(take(&mut busy, 1), [13], "a part of a batch");
    assert_eq!(take(&mut busy, 1), [14]);
    put(&mut wal, &rec(BUSY, 16, b"next"));
    assert_eq!(take(&mut busy, 9), [15, 16]);
    assert!(take(&mut busy, 9).is_empty() && take(&mut calm, 9).is_empty());
    // A reader that begins here finds the end without what comes before.
    let mut late = wal.reader().entries(ShardId(BUSY), Index(16));
    assert_eq!(take(&mut late, 9), [16]);
    assert!(take(&mut wal.reader().entries(ShardId(5), Index(1)), 9).is_empty(), "a shard without entries");
}

/// A reading may end within any batch, also after others that it showed whole.
#[test]
fn a_reading_that_ends_within_a_batch_goes_on_there() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for first in [1, 5, 9] {
        let group: Vec<Rec> = (first..first + 4).map(|index| rec(BUSY, index, b"entry")).collect();
        wal.append(&[batch(&group)]).unwrap();
    }
    wal.sync().unwrap();
    for limit in 1..=12 {
        let mut reader = wal.reader().entries(ShardId(BUSY), Index(1));
        let mut seen = take(&mut reader, limit);
        assert_eq!(seen.len(), limit);
        seen.extend(take(&mut reader, 99));
        assert_eq!(seen, (1..=12).collect::<Vec<_>>(), "after {limit}");
    }
}

#[test]
fn what_was_opened_is_found_as_what_was_written() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    fill(&mut wal, 1, 20, 4);
    let places = |wal: &Wal| {
        let reader = wal.reader();
        (1..=21).map(|from| reader.find(ShardId(BUSY), Index(from))).collect::<Vec<_>>()
    };
    let before = places(&wal);
    assert!(before[20].is_none() && before[19].is_some());
    drop(wal);
    let (wal, ..) = open(&disk, &small()).unwrap();
    assert_eq!(places(&wal), before);
    assert_eq!(take(&mut wal.reader().entries(ShardId(CALM), Index(2)), 9), [2, 3, 4, 5]);
}

/// The cost of a reading is that of the segments with the entries, however long the log is.
#[test]
fn segments_without_the_shard_are_not_read() {
    let cost = |length: u64| {
        let disk = SimDisk::new(1);
        let (mut wal, ..) = open(&disk, &small()).unwrap();
        fill(&mut wal, 1, length, length);
        fill(&mut wal, length + 1, 2 * length, length);
        let before = disk.operations();
        assert_eq!(take(&mut wal.reader().entries(ShardId(CALM), Index(1)), 9), [1, 2]);
        disk.operations() - before
    };
    assert_eq!(cost(10), cost(100));
}

/// A megabyte of a long segment is read before the first entry, whatever stands before that.
#[test]
fn a_long_segment_is_read_from_near_the_first_entry() {
    let disk = SimDisk::new(1);
    let options = WalOptions { segment_bytes: 32 << 20, segment_bytes_min: 32 << 20, ..small() };
    let (mut wal, ..) = open(&disk, &options).unwrap();
    let entry = vec![1; 30 << 10];
    for index in 1..=800 {
        wal.append(&[batch(&[rec(BUSY, index, &entry)])]).unwrap();
        if index % 100 == 0 {
            wal.append(&[batch(&[rec(CALM, index / 100, b"calm")])]).unwrap();
        }
    }
    wal.sync().unwrap();
    let places = |wal: &Wal| {
        let find = |shard, from| wal.reader().find(ShardId(shard), Index(from)).unwrap();
        let first = find(BUSY, 1);
        for from in (1..=800).step_by(7) {
            let at = find(BUSY, from);
            assert_eq!(at.segment, first.segment);
            let begins = (from - 1) * (32 << 10) + (from - 1) / 100 * 4096;
            let before = begins - (at.offset - first.offset);
            assert!(before <= (1 << 20) + (64 << 10), "{before} bytes before entry {from}");
            assert_eq!(take(&mut wal.reader().entries(ShardId(BUSY), Index(from)), 2)[0], from);
        }
        (1..=8).map(|from| find(CALM, from)).collect::<Vec<_>>()
    };
    let before = places(&wal);
    assert!(before.windows(2).all(|pair| pair[0] < pair[1]), "{before:?}");
    drop(wal);
    assert_eq!(places(&open(&disk, &options).unwrap().0), before);
}

#[test]
fn what_is_trimmed_meanwhile_is_a_gap() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    fill(&mut wal, 1, 12, 100);
    let mut reader = wal.reader().entries(ShardId(BUSY), Index(1));
    assert_eq!(take(&mut reader, 1), [1]);
    assert!(wal.trim(|_| Index(8)).unwrap() > 2);
    // Its segments are used again.
    fill(&mut wal, 13, 20, 100);
    let seen = take(&mut reader, 99);
    assert!((5..=9).contains(&seen[0]), "{seen:?}");
    assert_eq!(seen, (seen[0]..=20).collect::<Vec<_>>());
    assert!(take(&mut reader, 9).is_empty());
}

/// A reader shows what the log says, so the one that takes it drops what is void.
#[test]
fn an_entry_of_a_higher_epoch_comes_after_the_one_that_it_voids() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let log = [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)];
    for (epoch, index) in log {
        put(&mut wal, &Rec { epoch, ..rec(BUSY, index, &[1; 10_000]) });
    }
    let mut reader = wal.reader().entries(ShardId(BUSY), Index(2));
    assert_eq!(take(&mut reader, 9), [2, 3, 2, 3]);
    drop(wal);
    let (wal, ..) = open(&disk, &small()).unwrap();
    assert_eq!(take(&mut wal.reader().entries(ShardId(BUSY), Index(3)), 9), [3, 3]);
}
