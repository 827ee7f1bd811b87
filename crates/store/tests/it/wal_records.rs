//! Kinds of records: promises that outlive trimming, cuts, and kinds that this version does not know.

use crate::wal_log::{batch, open, put, rec, small};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, CutRecord, Damage, Item, Promise, Wal, WalError, WalOptions};

const BLOCK: usize = 4096;

fn promise(shard: u32, epoch: u64) -> Promise {
    Promise { shard: ShardId(shard), replica: ReplicaId::FIRST, epoch: Epoch(epoch) }
}

fn promises(wal: &mut Wal, promises: impl IntoIterator<Item = Promise>) {
    let mut batch = Batch::new();
    promises.into_iter().for_each(|promise| batch.push_promise(promise));
    wal.append(&[batch]).unwrap();
    wal.sync().unwrap();
}

fn of(wal: &Wal, shards: u32) -> Vec<u64> {
    (0..shards).map(|shard| wal.promises().of(ShardId(shard)).0).collect()
}

#[test]
fn promises_survive_trimming() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    promises(&mut wal, (0..5).map(|shard| promise(shard, 1)));
    promises(&mut wal, [promise(3, 4)]);
    let other = Promise { replica: ReplicaId(9), ..promise(2, 7) };
    promises(&mut wal, [other]);
    for round in 0..4 {
        let from = 1 + round * 20;
        for index in from..from + 20 {
            put(&mut wal, &rec(1, index, &[1; 3000]));
        }
        assert!(wal.trim(|_| Index(u64::MAX)).unwrap() > 1);
        drop(wal);
        disk.crash();
        disk.restart();
        wal = open(&disk, &WalOptions { create: false, ..small() }).unwrap().0;
        assert_eq!(of(&wal, 6), [1, 1, 7, 4, 1, 0], "round {round}");
        assert!(wal.promises().iter().any(|promise| promise == other));
    }
}

/// The table has runs of successive shards; a shard between two others has promised nothing.
#[test]
fn shards_with_gaps_between_them_keep_what_each_replica_promised() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let replica = |number, shard, epoch| Promise { replica: ReplicaId(number), ..promise(shard, epoch) };
    let all = [1, 2, 5, 9, 10, 12, 15, 16].map(|shard| promise(shard, 3));
    let all = [&all[..], &[replica(7, 2, 2), replica(7, 5, 8), replica(7, 10, 8)]].concat();
    promises(&mut wal, all.clone());
    for index in 1..=30 {
        put(&mut wal, &rec(1, index, &[1; 3000]));
    }
    assert!(wal.trim(|_| Index(u64::MAX)).unwrap() > 1);
    drop(wal);
    let wal = open(&disk, &small()).unwrap().0;
    let greatest = [0, 3, 3, 0, 0, 8, 0, 0, 0, 3, 8, 0, 3, 0, 0, 3, 3, 0];
    assert_eq!(of(&wal, 18), greatest, "each shard has that of its replicas");
    let mut expected = all;
    expected.sort_by_key(|promise| (promise.shard, promise.replica));
    assert_eq!(wal.promises().iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_batch_that_is_used_again_promises_nothing_again() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let mut batch = Batch::new();
    batch.push_promise(promise(1, 2));
    wal.append(&[&batch]).unwrap();
    promises(&mut wal, [promise(1, 3)]);
    batch.clear();
    assert!(batch.is_empty() && batch.bytes() == 0);
    batch.push(ShardId(1), Epoch(1), Index(1), b"entry");
    wal.append(&[&batch]).unwrap();
    wal.sync().unwrap();
    assert_eq!(of(&open(&disk, &small()).unwrap().0, 2), [0, 3]);
}

#[test]
fn all_records_are_shown_in_their_order() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let cut = CutRecord { shard: ShardId(u32::MAX), epoch: Epoch(u64::MAX), index: Index(u64::MAX) };
    let mut batch = Batch::new();
    batch.push_promise(promise(1, 300));
    batch.push(ShardId(1), Epoch(1), Index(1), b"entry");
    batch.push_cut(cut);
    batch.push(ShardId(u32::MAX), Epoch(u64::MAX), Index(u64::MAX), b"");
    assert_eq!(batch.records(), 4);
    wal.append(&[batch]).unwrap();
    wal.mark().unwrap();
    let mut seen = Vec::new();
    let visit = |item: Item<'_>| {
        seen.push(match item {
            Item::Entry(record) => {
                format!("{} {} {} {:?}", record.shard, record.epoch, record.index, record.bytes)
            }
            item => format!("{item:?}"),
        });
        Ok::<(), Infallible>(())
    };
    Wal::open_checked(Arc::new(disk.clone()), small(), visit, || Ok(())).unwrap();
    let entry = format!("1 1 1 {:?}", b"entry");
    let last = format!("{} {} {} []", u32::MAX, u64::MAX, u64::MAX);
    let promise = Item::Promise(promise(1, 300));
    assert_eq!(seen, [format!("{promise:?}"), entry, format!("{:?}", Item::Cut(cut)), last]);
}

/// No two shards promise the same, so that the table has a run for each.
#[test]
fn a_long_table_of_promises_fits_before_a_batch_of_the_limit() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for shards in [100_u32, 2000] {
        promises(&mut wal, (0..shards).map(|shard| promise(shard, 1000 + u64::from(shard % 7))));
        let longest = vec![1; wal.batch_bytes_max() - 20];
        for index in 0..6 {
            put(&mut wal, &rec(1, u64::from(shards) + index, &longest));
        }
        wal.mark().unwrap();
        wal.trim(|_| Index(u64::MAX)).unwrap();
        drop(wal);
        wal = open(&disk, &small()).unwrap().0;
        assert_eq!(wal.promises().iter().count(), shards as usize);
        assert_eq!(wal.promises().of(ShardId(99)), Epoch(1000 + 99 % 7));
    }
}

/// A table that is longer than a whole segment used to make the log take one short segment after the other without end.
#[test]
fn a_table_longer_than_a_segment_gets_longer_segments() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let shards = 4000;
    for round in 0..3 {
        for first in (0..shards).step_by(1000) {
            let some = first..first + 1000;
            promises(&mut wal, some.map(|shard| promise(shard, 1000 + u64::from(shard % 7 + round))));
        }
        for index in 0..20 {
            put(&mut wal, &rec(1, u64::from(round) * 20 + index, &[1; 3000]));
            wal.mark().unwrap();
        }
        assert!(wal.stats().segments < 30, "{:?}", wal.stats());
        wal.trim(|_| Index(u64::MAX)).unwrap();
        drop(wal);
        disk.crash();
        disk.restart();
        wal = open(&disk, &small()).unwrap().0;
        assert_eq!(wal.promises().iter().count(), shards as usize);
        assert_eq!(wal.promises().of(ShardId(99)), Epoch(1000 + u64::from(99 % 7 + round)));
    }
}

/// A batch that needs a longer segment than there is room for leaves the log as it was.
#[test]
fn promises_without_room_leave_the_log_as_it_was() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    promises(&mut wal, [promise(1, 2)]);
    disk.set_capacity(Some(disk.used()));
    let mut batch = Batch::new();
    (0..2000).for_each(|shard| batch.push_promise(promise(shard, u64::from(shard) + 3)));
    let before = wal.position();
    let mut written = 0;
    let error = loop {
        match wal.append(&[&batch]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk is full");
    };
    assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
    assert!(written > 0 || wal.position() == before);
    disk.set_capacity(None);
    wal.append(&[&batch]).unwrap();
    wal.mark().unwrap();
    drop(wal);
    assert_eq!(of(&open(&disk, &small()).unwrap().0, 3), [3, 4, 5]);
}

/// A promise that splits a run of the table lengthens it by two runs, of the longest numbers there are.
#[test]
fn promises_that_split_runs_of_the_longest_numbers_fit_into_the_table() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let longest =
        |shard: u32, epoch| Promise { replica: ReplicaId(u64::MAX), ..promise(u32::MAX - shard, epoch) };
    for first in [0, 500] {
        promises(&mut wal, (first..first + 500).map(|shard| longest(shard, u64::MAX - 1)));
    }
    promises(&mut wal, (0..500).map(|shard| longest(2 * shard, u64::MAX)));
    for index in 1..=20 {
        put(&mut wal, &rec(1, index, &[1; 3000]));
    }
    drop(wal);
    let wal = open(&disk, &small()).unwrap().0;
    assert_eq!(wal.promises().iter().filter(|promise| promise.epoch == Epoch(u64::MAX)).count(), 500);
}

/// Promises of 500 shards. Twice as many make a table that needs longer segments.
fn many(first: u32) -> Batch {
    let mut batch = Batch::new();
    for shard in first..first + 500 {
        let epoch = Epoch(u64::MAX - u64::from(shard));
        batch.push_promise(Promise { shard: ShardId(shard), replica: ReplicaId(u64::MAX), epoch });
    }
    batch
}

#[test]
fn promises_that_find_no_room_for_longer_segments_leave_the_ready_ones() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    wal.append_marked(&[many(0)]).unwrap();
    disk.set_capacity(Some(disk.used()));
    let before = (wal.position(), wal.reserve_left(), wal.stats(), wal.segment_bytes_next());
    assert!(before.2.ready == 1 && before.3 == 32 << 10, "{before:?}");
    let error = wal.append(&[many(500), many(1000)]).unwrap_err();
    assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
    assert_eq!((wal.position(), wal.reserve_left(), wal.stats(), wal.segment_bytes_next()), before);
    put(&mut wal, &rec(1, 1, &[1; 2000]));
    drop(wal);
    let (wal, _, seen) = open(&disk, &small()).unwrap();
    assert_eq!((wal.promises().iter().count(), seen.len()), (500, 1));
}

/// Trimmed segments that are too short for the table are of no use but for their room.
#[test]
fn free_segments_that_are_too_short_make_room_for_longer_ones() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    wal.append_marked(&[many(0)]).unwrap();
    for index in 1..=10 {
        put(&mut wal, &rec(1, index, &[1; 2000]));
    }
    wal.trim(|_| Index(u64::MAX)).unwrap();
    assert_eq!(wal.stats().free, 2);
    disk.set_capacity(Some(disk.used()));
    wal.append_marked(&[many(500)]).unwrap();
    assert_eq!(wal.stats().free, 0);
    assert!(wal.segment_bytes_next() > 32 << 10, "{}", wal.segment_bytes_next());
    disk.set_capacity(None);
    for index in 11..=20 {
        put(&mut wal, &rec(1, index, &[1; 2000]));
        wal.trim(|_| Index(index)).unwrap();
    }
    drop(wal);
    let (wal, _, seen) = open(&disk, &small()).unwrap();
    assert_eq!((wal.promises().iter().count(), seen.last().unwrap().index), (1000, 20));
}

/// The ready segments that are too short go one after the other, and longer ones come.
#[test]
fn a_crash_while_ready_segments_give_way_to_longer_ones_loses_nothing_18() {
    let options = WalOptions { spares: 4, ..small() };
    let begin = |seed| {
        let disk = SimDisk::new(seed);
        let (mut wal, ..) = open(&disk, &options).unwrap();
        wal.append_marked(&[many(0)]).unwrap();
        put(&mut wal, &rec(1, 1, b"entry"));
        while wal.preparer().prepare_next().unwrap() {}
        let before = disk.operations();
        (disk, wal, before)
    };
    let (disk, mut wal, before) = begin(1);
    assert_eq!(wal.stats().ready, 4);
    wal.append_marked(&[many(500)]).unwrap();
    let operations = disk.operations() - before;
    assert!(operations > 12, "{operations}");
    for operation in 1..=operations {
        let (disk, mut wal, _) = begin(operation);
        disk.crash_after(operation);
        let done = wal.append_marked(&[many(500)]);
        drop(wal);
        disk.crash();
        disk.restart();
        let (mut wal, _, seen) = open(&disk, &options).unwrap();
        assert_eq!(seen.len(), 1, "crash at operation {operation}");
        let count = wal.promises().iter().count();
        assert!(count == 1000 || done.is_err() && count == 500, "crash at operation {operation}: {count}");
        wal.append_marked(&[many(500)]).unwrap();
        put(&mut wal, &rec(1, 2, b"next"));
        drop(wal);
        let (wal, _, seen) = open(&disk, &options).unwrap();
        assert_eq!((seen.len(), wal.promises().iter().count()), (2, 1000));
    }
}

/// The thread that prepares segments may be preparing one that is too short, or be about to.
#[test]
fn longer_tables_do_not_meet_short_segments_of_a_preparer() {
    let disk = SimDisk::new(1);
    let options = WalOptions { spares: 3, ..small() };
    let (mut wal, ..) = open(&disk, &options).unwrap();
    let preparer = wal.preparer();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                preparer.prepare_next().unwrap();
            }
        });
        for round in 0..20 {
            wal.append_marked(&[many(round * 500)]).unwrap();
            put(&mut wal, &rec(1, u64::from(round) + 1, &[1; 5000]));
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(wal);
    assert_eq!(open(&disk, &options).unwrap().0.promises().iter().count(), 20 * 500);
}

#[test]
fn more_promises_than_a_log_keeps_are_refused() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &WalOptions { segment_bytes: 64 << 20, ..small() }).unwrap();
    let mut batch = Batch::new();
    (0..=1 << 18).for_each(|shard| batch.push_promise(promise(shard, 1)));
    let error = wal.append(&[batch]).unwrap_err();
    assert!(matches!(error, WalError::TooManyPromises { count: 262_145, max: 262_144 }), "{error}");
    promises(&mut wal, [promise(1, 2)]);
}

/// Each start promises all shards again: only those that the log does not know count.
#[test]
fn shards_that_promise_again_do_not_count_twice() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &WalOptions { segment_bytes: 64 << 20, ..small() }).unwrap();
    let shards = (1 << 17) + 1;
    for epoch in [1, 2] {
        promises(&mut wal, (0..shards).map(|shard| promise(shard, epoch)));
    }
    let twice = [promise(shards, 3), promise(shards, 4)];
    promises(&mut wal, twice);
    assert_eq!(wal.promises().iter().count(), shards as usize + 1);
    assert_eq!([0, shards - 1, shards].map(|shard| wal.promises().of(ShardId(shard)).0), [2, 2, 4]);
}

/// Once written, a promise that falls would keep the log from opening.
#[test]
fn a_promise_never_falls() {
    let alone = |epochs: &[u64]| {
        let mut batch = Batch::new();
        epochs.iter().for_each(|epoch| batch.push_promise(promise(1, *epoch)));
        batch
    };
    // Below one that the log holds, one of an earlier batch, and one of the same batch.
    for batches in [vec![alone(&[1])], vec![alone(&[4]), alone(&[3])], vec![alone(&[4, 3])]] {
        let disk = SimDisk::new(1);
        let (mut wal, ..) = open(&disk, &small()).unwrap();
        promises(&mut wal, [promise(1, 2)]);
        let before = wal.position();
        let refused = catch_unwind(AssertUnwindSafe(|| wal.append(&batches))).unwrap_err();
        let message = refused.downcast::<String>().unwrap();
        assert!(message.starts_with("a promise never falls"), "{message}");
        assert_eq!(wal.position(), before, "nothing was written");
        drop(wal);
        assert_eq!(of(&open(&disk, &small()).unwrap().0, 2), [0, 2]);
    }
}

const FIRST: &str = "wal/0000000000000001.log";

/// Changes the records of a batch of one block and makes its checksum right.
fn change(disk: &SimDisk, path: &str, at: usize, change: impl FnOnce(&mut [u8])) {
    change_batch(disk, path, at, |batch| change(&mut batch[64..]));
}

/// Changes a batch of one block and makes its checksum right.
fn change_batch(disk: &SimDisk, path: &str, at: usize, change: impl FnOnce(&mut [u8])) {
    let mut bytes = disk.bytes(path).unwrap();
    let batch = &mut bytes[at..at + BLOCK];
    change(batch);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&7_u64.to_le_bytes());
    crc.update(&batch[8..]);
    batch[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    disk.put(path, &bytes);
}

/// A log whose second batch is its last and holds two entries.
fn two_entries() -> (SimDisk, usize) {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let at = wal.append(&[batch(&[rec(1, 1, b"first"), rec(1, 2, b"second")])]).unwrap().offset;
    wal.sync().unwrap();
    (disk, at as usize)
}

#[test]
fn a_kind_that_must_be_known_is_refused_and_another_skipped() {
    let (disk, at) = two_entries();
    change(&disk, FIRST, at, |records| records[0] = 0x80 | 15);
    let before = disk.bytes(FIRST);
    let error = open(&disk, &small()).unwrap_err();
    assert!(matches!(error, WalError::Kind { kind: 15, offset, .. } if offset == at as u64), "{error}");
    assert_eq!(disk.bytes(FIRST), before, "a refused log was changed");

    change(&disk, FIRST, at, |records| records[0] = 15);
    let (wal, opened, seen) = open(&disk, &small()).unwrap();
    assert_eq!((opened.records, seen), (2, vec![rec(1, 2, b"second")]));
    let mut live = Vec::new();
    let visit = |record: stead_store::wal::Record<'_>| {
        live.push(record.index.0);
        Ok::<_, Infallible>(std::ops::ControlFlow::Continue(()))
    };
    wal.reader().entries(ShardId(1), Index(0)).read(visit).unwrap();
    assert_eq!(live, [2]);
}

#[test]
fn a_record_that_is_not_well_formed_is_damage() {
    // An entry without an index, one longer than its batch, a varint of more than 64 bits, and a promise with more behind it.
    let changes: [fn(&mut [u8]); 4] = [
        |records| records[1] = 2,
        |records| records[2] = 1,
        |records| records[5..15].fill(0xff),
        |records| records[0] = 0x82,
    ];
    for (case, with) in changes.into_iter().enumerate() {
        let (disk, at) = two_entries();
        change(&disk, FIRST, at, with);
        let error = open(&disk, &small()).unwrap_err();
        assert!(matches!(error, WalError::Corrupt { damage: Damage::Records, .. }), "case {case}: {error}");
    }
}

/// The batch has a record more or less than its header counts.
#[test]
fn a_number_of_records_that_is_wrong_is_damage() {
    for records in [1, 3] {
        let (disk, at) = two_entries();
        change_batch(&disk, FIRST, at, |batch| batch[12] = records);
        let error = open(&disk, &small()).unwrap_err();
        assert!(matches!(error, WalError::Corrupt { damage: Damage::Records, .. }), "{records}: {error}");
    }
}

#[test]
fn a_promise_that_falls_within_a_log_is_damage() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    promises(&mut wal, [promise(3, 5)]);
    let mut batch = Batch::new();
    batch.push_promise(promise(3, 6));
    let at = wal.append(&[batch]).unwrap().offset as usize;
    drop(wal);
    // Kind, length, shard, replica, epoch.
    change(&disk, FIRST, at, |record| {
        assert_eq!(record[..8], [0x82, 3, 0, 0, 0, 3, 1, 6]);
        record[7] = 4;
    });
    let error = open(&disk, &small()).unwrap_err();
    assert!(matches!(error, WalError::Corrupt { damage: Damage::Promise, .. }), "{error}");
}

/// Without its table a segment would lose the promises of those before it.
#[test]
fn a_segment_that_begins_with_an_empty_batch_is_damage() {
    let disk = SimDisk::new(1);
    drop(open(&disk, &small()).unwrap());
    change_batch(&disk, FIRST, BLOCK, |batch| batch[8..16].fill(0));
    let error = open(&disk, &small()).unwrap_err();
    assert!(matches!(error, WalError::Corrupt { damage: Damage::Table, .. }), "{error}");
}

/// The last batch of the log is the first of its segment, and begins with the table's record: kind, length, and one run:
/// shard 3, one of them, replica 1, epoch 5.
#[test]
fn a_segment_begins_with_the_table_of_what_was_promised_before() {
    type Change = fn(&mut [u8]);
    let damages: [(Change, Damage); 4] = [
        (|record| record[0] = 0x01, Damage::Table),
        (|record| record[8] = 6, Damage::Table),
        (|record| record[6] = 2, Damage::Table),
        (|record| record[1] = 5, Damage::Records),
    ];
    for (with, damage) in damages {
        let disk = SimDisk::new(1);
        let (mut wal, ..) = open(&disk, &small()).unwrap();
        promises(&mut wal, [promise(3, 5)]);
        let at = (1..)
            .map(|index| put(&mut wal, &rec(1, index, &[1; 2000])))
            .find(|at| at.offset == BLOCK as u64)
            .unwrap();
        let path = format!("wal/{:016x}.log", at.segment);
        let bytes = disk.bytes(&path).unwrap();
        assert_eq!(bytes[BLOCK + 64..BLOCK + 73], [0x84, 4, 0, 0, 0, 3, 1, 1, 5]);
        change(&disk, &path, BLOCK, with);
        match open(&disk, &small()) {
            Err(WalError::Corrupt { damage: found, .. }) => assert_eq!(found, damage),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}
