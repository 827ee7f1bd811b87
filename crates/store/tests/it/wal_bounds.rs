//! Lengths exactly at their limits, and the files that a log keeps.

use crate::wal_log::{HEAD, batch, open, put, rec, small};
use std::ops::Range;
use stead_core::ids::{Epoch, Index, ReplicaId, ShardId};
use stead_store::disk::Disk;
use stead_store::sim_disk::{Faults, SimDisk};
use stead_store::wal::{Batch, Promise, Wal, WalError, WalOptions};

const BLOCK: u64 = 4096;

/// Promises of as many shards, each of which makes a run of four bytes in the table.
fn short_runs(shards: u32) -> Batch {
    let mut batch = Batch::new();
    for shard in 0..shards {
        let epoch = Epoch(1 + u64::from(shard % 2));
        batch.push_promise(Promise { shard: ShardId(shard), replica: ReplicaId::FIRST, epoch });
    }
    batch
}

/// Promises of shards of the longest numbers, with an epoch for each.
fn long_runs(shards: Range<u32>, epoch: impl Fn(u64) -> u64) -> Batch {
    let mut batch = Batch::new();
    for shard in shards.rev() {
        let epoch = Epoch(epoch(u64::from(shard)));
        let shard = ShardId(u32::MAX - shard);
        batch.push_promise(Promise { shard, replica: ReplicaId(u64::MAX), epoch });
    }
    batch
}

fn segments(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let paths = disk.files().into_iter().filter(|path| path.ends_with(".log"));
    paths.map(|path| (path.clone(), disk.bytes(&path).unwrap())).collect()
}

/// Bytes of the table with which a segment begins, without its record's head.
fn table_bytes(segment: &[u8]) -> u64 {
    let head = BLOCK as usize + 64;
    assert_eq!(segment[head], 0x84, "a segment begins with a table");
    u64::from(u32::from_le_bytes(segment[head + 1..head + 5].try_into().unwrap()))
}

/// Beside the longest batch a segment of the greatest length has 512 bytes for the table, and the reserved block.
#[test]
fn a_batch_of_the_limit_fits_beside_a_table_into_a_segment_of_the_greatest_length() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    wal.append(&[short_runs(126)]).unwrap();
    let longest = vec![1; wal.batch_bytes_max() - HEAD];
    let first = wal.position().segment;
    for index in 1..=4 {
        let at = put(&mut wal, &rec(1, index, &longest));
        assert_eq!(at.segment, first + index, "each fills a segment");
    }
    let segments = segments(&disk);
    assert_eq!(table_bytes(&segments[1].1), 504);
    assert!(segments.iter().all(|(_, bytes)| bytes.len() == 32 << 10));
}

#[test]
fn the_shortest_segment_after_a_long_table_has_as_many_bytes_for_records() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for shards in [0..500, 500..1000] {
        wal.append_marked(&[long_runs(shards, |shard| u64::MAX - shard)]).unwrap();
    }
    let from = wal.position().segment;
    while wal.position().segment == from {
        put(&mut wal, &rec(1, 1, &[1; 3000]));
    }
    let segments = segments(&disk);
    let (_, begun) = segments.iter().find(|(path, _)| path.contains(&format!("{:016x}", from + 1))).unwrap();
    let table = table_bytes(begun);
    assert!(table > 20 << 10, "{table}");
    assert!(begun.len() as u64 >= 2 * BLOCK + 2 * table, "{} bytes with a table of {table}", begun.len());
    assert!(wal.segment_bytes_next() >= 2 * BLOCK + 2 * table, "{}", wal.segment_bytes_next());
    // They are wanted after another start, too.
    drop(wal);
    let (wal, ..) = open(&disk, &small()).unwrap();
    assert!(wal.segment_bytes_next() >= 2 * BLOCK + 2 * table, "{}", wal.segment_bytes_next());
}

/// The first write makes the table long, and the second short again, but in a segment that begins with the long one.
#[test]
fn a_table_that_is_long_between_two_writes_gets_a_longer_segment() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let batches = [long_runs(0..800, |shard| u64::MAX - 1 - shard), long_runs(0..800, |_| u64::MAX)];
    let before = wal.position();
    wal.append(&batches).unwrap();
    assert!(wal.position().segment <= before.segment + 3, "{:?}", wal.position());
    put(&mut wal, &rec(1, 1, b"entry"));
    drop(wal);
    let (wal, _, seen) = open(&disk, &small()).unwrap();
    assert_eq!((wal.promises().iter().count(), seen.len()), (800, 1));
    assert!(wal.promises().iter().all(|promise| promise.epoch == Epoch(u64::MAX)));
}

#[test]
fn batches_share_a_write_up_to_the_limit_and_no_further() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let half = wal.batch_bytes_max() / 2;
    let of = |index: u64, bytes: usize| batch(&[rec(1, index, &vec![index as u8; bytes - HEAD])]);
    let mut writes = |batches: &[Batch]| {
        let before = wal.position().batch;
        wal.append(batches).unwrap().batch - before
    };
    assert_eq!(writes(&[of(1, half), of(2, half)]), 1, "the limit exactly");
    assert_eq!(writes(&[of(3, half), of(4, half + 1)]), 2);
    assert_eq!(writes(&[of(5, half), of(6, half / 2), of(7, half), of(8, half / 2), of(9, half / 2)]), 2);
    assert!(segments(&disk).iter().all(|(_, bytes)| bytes.len() == 32 << 10));
    wal.sync().unwrap();
    let indexes: Vec<u64> = open(&disk, &small()).unwrap().2.iter().map(|rec| rec.index).collect();
    assert_eq!(indexes, (1..=9).collect::<Vec<_>>());
}

/// The reserve counts what every ready segment needs for itself: its header, its table and its reserved block.
#[test]
fn the_reserve_is_what_can_be_appended() {
    for shards in [0, 500] {
        let disk = SimDisk::new(1);
        let options =
            WalOptions { segment_bytes: 64 << 10, segment_bytes_min: 64 << 10, spares: 3, ..small() };
        let (mut wal, ..) = open(&disk, &options).unwrap();
        wal.append_marked(&[long_runs(0..shards, |shard| u64::MAX - shard)]).unwrap();
        while wal.preparer().prepare_next().unwrap() {}
        disk.set_capacity(Some(disk.used()));
        let reserve = wal.reserve_left();
        let mut appended = 0;
        while wal.append(&[batch(&[rec(1, appended + 1, &[1; 3900])])]).is_ok() {
            appended += 1;
        }
        // A table leaves a part of a block at the beginning of each of the four segments.
        let (appended, parts) = (appended * BLOCK, if shards == 0 { 0 } else { 4 * BLOCK });
        assert!(appended + parts >= reserve, "{appended} of {reserve} bytes were appended");
        assert!(appended <= reserve + 4 * BLOCK, "{appended} bytes were appended, over {reserve}");
    }
}

#[test]
fn a_trim_takes_no_segment_that_is_needed_after_an_earlier_one() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for index in 1..=30 {
        put(&mut wal, &rec(1, index, &[0; 5000]));
    }
    let oldest = |disk: &SimDisk| open(&disk.fork(1), &small()).unwrap().2[0].index;
    for needed in [9, 16, 23] {
        assert!(wal.trim(|_| Index(needed - 1)).unwrap() > 1);
        assert_eq!(wal.trim(|_| Index(needed - 1)).unwrap(), 0, "nothing more is unneeded");
        let oldest = oldest(&disk);
        assert!(oldest <= needed && oldest + 4 > needed, "entry {oldest} is the oldest, {needed} is needed");
    }
}

#[test]
fn a_mark_covers_what_was_not_synced_before() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let at = wal.append(&[batch(&[rec(1, 1, b"entry")])]).unwrap();
    assert!(wal.mark().unwrap() && wal.is_marked());
    disk.flip_bit("wal/0000000000000001.log", at.offset + 70, 0).unwrap();
    assert!(matches!(open(&disk, &small()), Err(WalError::Corrupt { .. })));
}

/// Half of a release may be done, so the log no longer knows its files.
#[test]
fn a_trim_whose_release_fails_is_fatal() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for index in 1..=20 {
        put(&mut wal, &rec(1, index, &[0; 5000]));
    }
    disk.set_faults(Faults { changes: 1, ..Faults::default() });
    let error = wal.trim(|_| Index(15)).unwrap_err();
    assert!(matches!(error, WalError::Io { .. }), "{error}");
    assert!(matches!(wal.append(&[batch(&[rec(1, 21, b"x")])]), Err(WalError::Fatal { .. })));
    drop(wal);
    let (_, _, seen) = open(&disk, &small()).unwrap();
    assert!(seen[0].index <= 16 && seen.last().unwrap().index == 20);
}

#[test]
fn a_ready_segment_that_cannot_be_removed_for_a_longer_one_is_fatal() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"entry"));
    disk.set_faults(Faults { changes: 1, ..Faults::default() });
    let error = wal.append(&[long_runs(0..800, |shard| u64::MAX - shard)]).unwrap_err();
    assert!(matches!(error, WalError::Io { action: "remove", .. }), "{error}");
    assert!(matches!(wal.append(&[batch(&[rec(1, 2, b"x")])]), Err(WalError::Fatal { .. })));
    drop(wal);
    assert_eq!(open(&disk, &small()).unwrap().2.len(), 1);
}

/// Trimmed segments that are kept are long enough for the log as it is by now, and no longer than its options allow.
#[test]
fn a_log_keeps_as_many_trimmed_segments_as_it_may_and_none_that_it_cannot_use() {
    let disk = SimDisk::new(1);
    let free = |wal: &Wal| {
        let paths = disk.files().into_iter().filter(|path| path.ends_with(".free"));
        let lengths: Vec<u64> = paths.map(|path| disk.bytes(&path).unwrap().len() as u64).collect();
        assert_eq!(wal.stats().free, lengths.len());
        lengths
    };
    let mut index = 0;
    let mut grow = |wal: &mut Wal, segments: u64| {
        let until = wal.position().segment + segments;
        while wal.position().segment < until {
            index += 1;
            put(wal, &rec(1, index, &[0; 5000]));
        }
        index
    };
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let last = grow(&mut wal, 8);
    for needed in 1..=last {
        wal.trim(|_| Index(needed)).unwrap();
        assert!(free(&wal).len() <= small().free_max, "{:?}", wal.stats());
    }
    drop(wal);
    for (options, kept) in
        [(WalOptions { free_max: 1, ..small() }, 1), (WalOptions { segment_bytes: 16 << 10, ..small() }, 0)]
    {
        let disk = disk.fork(1);
        let (wal, ..) = open(&disk, &options).unwrap();
        let files = disk.files().iter().filter(|path| path.ends_with(".free")).count();
        assert_eq!((wal.stats().free, files), (kept, kept));
    }

    let options = WalOptions { segment_bytes: 128 << 10, segment_bytes_min: 16 << 10, ..small() };
    let (mut wal, ..) = open(&disk, &options).unwrap();
    assert_eq!(free(&wal), [32 << 10; 2]);
    let last = grow(&mut wal, 6);
    for needed in last - 30..=last {
        if wal.trim(|_| Index(needed)).unwrap() > 0 {
            let (free, wanted) = (free(&wal), wal.segment_bytes_next());
            assert!(free.iter().all(|bytes| *bytes >= wanted), "{free:?}, of {wanted} bytes are wanted");
        }
    }
    grow(&mut wal, 2);
    drop(wal);

    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let (path, ready) = segments(&disk).pop().unwrap();
    assert!(path.ends_with(&format!("{:x}.log", wal.position().segment + 1)), "{path}");
    assert_eq!(ready.len(), 32 << 10, "a ready segment that is too long is replaced");
    let last = grow(&mut wal, 2);
    assert!(wal.trim(|_| Index(last)).unwrap() > 3);
    assert!(free(&wal).iter().all(|bytes| *bytes <= 32 << 10), "{:?}", free(&wal));
}

#[test]
fn a_segment_that_does_not_fit_leaves_no_bytes_and_no_descriptor_costs_a_free_one() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for index in 1..=10 {
        put(&mut wal, &rec(1, index, &[1; 5000]));
    }
    wal.trim(|_| Index(10)).unwrap();
    assert_eq!(wal.stats().free, 2);
    let stats = wal.stats();
    // It needs a longer segment than the free ones.
    let long = [long_runs(0..800, |shard| u64::MAX - shard)];
    disk.set_open_files(Some(1));
    assert!(matches!(wal.append(&long), Err(WalError::NoSpace { .. })));
    assert_eq!((wal.stats().free, wal.stats().batch), (2, stats.batch));
    // Nor does it get the next one of the usual length.
    let mut index = 10;
    while wal.append(&[batch(&[rec(1, index + 1, &[1; 5000])])]).is_ok() {
        index += 1;
    }
    assert_eq!(wal.stats().free, 2 - (stats.segments + stats.ready < wal.stats().segments) as usize);
    disk.set_open_files(None);
    wal.sync().unwrap();

    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    disk.set_capacity(Some(disk.used() + (16 << 10)));
    let used = disk.used();
    let mut index = 0;
    while wal.append(&[batch(&[rec(1, index + 1, &[1; 5000])])]).is_ok() {
        index += 1;
    }
    assert_eq!((disk.used(), disk.files().iter().any(|path| path.ends_with(".tmp"))), (used, false));
}

/// A power cut may bring the name of a segment that was passed over back after a trim. It has a batch of its own, so that the
/// log can begin with it.
#[test]
fn a_log_may_begin_with_a_segment_that_was_passed_over() {
    const UNIT: u64 = 64 << 10;
    let options = WalOptions { segment_bytes: 8 * UNIT, segment_bytes_min: UNIT, spares: 2, ..small() };
    // The first fits a short segment but for its reserved block.
    for blocks in [UNIT / BLOCK - 1, 40] {
        let disk = SimDisk::new(1);
        let (mut wal, ..) = open(&disk, &options).unwrap();
        while wal.preparer().prepare_next().unwrap() {}
        put(&mut wal, &rec(1, 1, b"before"));
        let at = put(&mut wal, &rec(1, 2, &vec![1; (blocks * BLOCK) as usize - 100]));
        assert_eq!((at.segment, at.offset), (4, BLOCK), "two short segments were passed over");
        put(&mut wal, &rec(1, 3, b"after"));
        let passed = "wal/0000000000000003.log";
        let bytes = disk.bytes(passed).unwrap();
        assert_eq!(wal.trim(|_| Index(1)).unwrap(), 3);
        drop(wal);
        for path in disk.files().iter().filter(|path| path.ends_with("3.free")) {
            Disk::remove(&disk, path).unwrap();
        }
        disk.put(passed, &bytes);
        let (_, opened, seen) = open(&disk, &options).unwrap();
        assert_eq!((seen.len(), seen[1].bytes.as_slice(), opened.cut), (2, b"after".as_slice(), None));
        assert_eq!(disk.bytes(passed), None, "the log does not need it");
    }
}

/// Options under which no segment of [`small`] is of use.
fn other_length() -> WalOptions {
    WalOptions { segment_bytes: 64 << 10, segment_bytes_min: 64 << 10, spares: 4, create: false, ..small() }
}

#[test]
fn a_crash_while_an_opening_removes_ready_segments_leaves_no_gap_18() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &WalOptions { spares: 4, ..small() }).unwrap();
    put(&mut wal, &rec(1, 1, b"entry"));
    while wal.preparer().prepare_next().unwrap() {}
    assert_eq!(wal.stats().ready, 4);
    drop(wal);
    let whole = disk.fork(1);
    let before = whole.operations();
    open(&whole, &other_length()).unwrap();
    let operations = whole.operations() - before;
    for operation in 1..=operations {
        for seed in 0..8 {
            let disk = disk.fork(seed);
            disk.crash_after(operation);
            assert!(open(&disk, &other_length()).is_err());
            disk.restart();
            let (_, _, seen) = open(&disk, &other_length()).unwrap();
            assert_eq!(seen.len(), 1, "seed {seed}, crash at operation {operation}");
        }
    }
}

/// The segment is the one after the log's end, so it is removed, and there is nothing to wipe.
#[test]
fn a_torn_batch_in_a_segment_of_an_unwanted_length_goes_with_it() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let appended = (1..).map(|index| (index, wal.append(&[batch(&[rec(1, index, &[1; 3000])])]).unwrap()));
    let (last, torn) = appended.take(100).find(|(_, at)| at.segment == 2).unwrap();
    assert_eq!(torn.offset, BLOCK);
    disk.flip_bit("wal/0000000000000002.log", torn.offset + 100, 0).unwrap();
    let (mut wal, opened, seen) = open(&disk, &other_length()).unwrap();
    assert_eq!((seen.len() as u64, opened.cut.map(|cut| cut.offset)), (last - 1, Some(BLOCK)));
    put(&mut wal, &rec(1, last, b"again"));
    drop(wal);
    assert_eq!(open(&disk, &other_length()).unwrap().2.len() as u64, last);
}

/// A process that ends between naming a segment and syncing the directory leaves a name that a power cut may undo.
#[test]
fn an_opening_makes_the_names_durable_that_it_finds() {
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        drop(open(&disk, &small()).unwrap());
        let ready = "wal/0000000000000002.log";
        Disk::rename(&disk, ready, "wal/unnamed").unwrap();
        Disk::sync_dir(&disk, "wal").unwrap();
        Disk::rename(&disk, "wal/unnamed", ready).unwrap();
        disk.kill_process();
        let (mut wal, ..) = open(&disk, &small()).unwrap();
        // Nothing else syncs the directory.
        let _preparer = wal.preparer();
        let last = (1..=100).find(|index| put(&mut wal, &rec(1, *index, &[1; 3000])).segment == 2).unwrap();
        drop(wal);
        disk.crash();
        disk.restart();
        assert_eq!(open(&disk, &small()).unwrap().2.len() as u64, last, "seed {seed}");
    }
}
