//! Torn tails are cut; damage to what was synced is refused, wherever it is.

use crate::wal_log::{Rec, batch, open, put, rec, small};
use std::convert::Infallible;
use std::ops::ControlFlow;
use stead_core::ids::{Index, ShardId};
use stead_store::disk::Disk;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Damage, Wal, WalError, WalOptions};

const BLOCK: u64 = 4096;

fn segment(id: u64) -> String {
    format!("wal/{id:016x}.log")
}

/// A log of some segments, closed with a mark, and what is in it.
fn closed_log(disk: &SimDisk) -> Vec<Rec> {
    let (mut wal, _, _) = open(disk, &small()).unwrap();
    let records: Vec<Rec> =
        (1..=20).map(|index| rec(1, index, &vec![index as u8; 100 * index as usize])).collect();
    for rec in &records {
        put(&mut wal, rec);
    }
    wal.mark().unwrap();
    assert_eq!(wal.stats().segments, 4);
    records
}

fn refused(disk: &SimDisk) -> WalError {
    let before: Vec<_> = disk.files().iter().map(|path| disk.bytes(path)).collect();
    let error = open(disk, &WalOptions { create: false, ..small() }).unwrap_err();
    let after: Vec<_> = disk.files().iter().map(|path| disk.bytes(path)).collect();
    assert!(before == after, "a refused log was changed");
    error
}

#[test]
fn a_torn_tail_is_cut_to_the_batch() {
    let mut cuts = 0;
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let (mut wal, _, _) = open(&disk, &small()).unwrap();
        let durable = rec(1, 1, b"durable");
        put(&mut wal, &durable);
        let torn = rec(1, 2, &[2; 9000]);
        wal.append(&[batch(std::slice::from_ref(&torn))]).unwrap();
        disk.crash();
        disk.restart();
        let (mut wal, opened, seen) = open(&disk, &small()).unwrap();
        match seen.len() {
            1 => {}
            2 => assert_eq!(seen[1], torn),
            other => panic!("{other} records"),
        }
        assert_eq!(seen[0], durable);
        cuts += u32::from(opened.cut.is_some());
        // Bytes that were cut never come back, also when the same batch is lost again.
        let next = rec(1, 3, b"next");
        put(&mut wal, &next);
        disk.crash();
        disk.restart();
        let (_, opened, again) = open(&disk, &small()).unwrap();
        assert_eq!((again.last(), again.len(), opened.cut), (Some(&next), seen.len() + 1, None));
    }
    assert!(cuts > 5, "only {cuts} of 100 crashes left a torn batch");
}

#[test]
fn whole_batches_after_the_cut_are_wiped() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let kept = rec(1, 1, b"kept");
    put(&mut wal, &kept);
    let damaged = wal.append(&[batch(&[rec(1, 2, b"damaged")])]).unwrap();
    let after = wal.append(&[batch(&[rec(1, 3, b"whole, but after it")])]).unwrap();
    disk.flip_bit(&segment(1), damaged.offset + 70, 0).unwrap();
    let (_, opened, seen) = open(&disk, &small()).unwrap();
    assert_eq!((seen.as_slice(), opened.cut.unwrap().offset), ([kept].as_slice(), damaged.offset));
    let mark = after.offset as usize..after.offset as usize + 4;
    assert_eq!(disk.bytes(&segment(1)).unwrap()[mark], [0; 4]);
    assert_eq!(open(&disk, &small()).unwrap().1.cut, None);
}

/// A recycled segment holds other things where a batch has zeros. Zeros that came there with half a wipe once made a torn
/// batch whole, which the recovery before had cut.
#[test]
fn a_wipe_that_is_cut_short_makes_no_torn_batch_whole_18() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let kept = rec(1, 1, b"kept");
    put(&mut wal, &kept);
    let torn = put(&mut wal, &rec(1, 2, b"torn"));
    drop(wal);
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    bytes[(torn.offset + BLOCK) as usize - 1] = 1;
    disk.put(&segment(1), &bytes);
    let before = disk.operations();
    let whole = disk.fork(0);
    open(&whole, &small()).unwrap();
    for seed in 0..30 {
        for operation in 1..=whole.operations() - before {
            let disk = disk.fork(seed);
            disk.crash_after(operation);
            let _ = open(&disk, &small());
            disk.restart();
            let (_, _, seen) = open(&disk, &small()).unwrap();
            assert_eq!(seen, std::slice::from_ref(&kept), "crash {seed} at operation {operation}");
        }
    }
}

#[test]
fn a_batch_of_another_past_is_not_taken() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"before"));
    drop(wal);
    let grow = |disk: &SimDisk, texts: [&[u8]; 2]| {
        let (mut wal, _, _) = open(disk, &small()).unwrap();
        let positions = texts.map(|text| put(&mut wal, &rec(1, 2, text)));
        positions[1].offset as usize
    };
    let (one, other) = (disk.fork(1), disk.fork(1));
    let at = grow(&one, [b"one", b"follows one"]);
    assert_eq!(grow(&other, [b"other", b"follows other"]), at);
    // The number, the segment and the checksum are right: only the chain reveals it.
    let mut bytes = other.bytes(&segment(1)).unwrap();
    bytes[at..at + BLOCK as usize].copy_from_slice(&one.bytes(&segment(1)).unwrap()[at..at + BLOCK as usize]);
    other.put(&segment(1), &bytes);
    let (_, opened, seen) = open(&other, &small()).unwrap();
    assert_eq!(
        seen.iter().map(|rec| rec.bytes.as_slice()).collect::<Vec<_>>(),
        [b"before".as_slice(), b"other"]
    );
    assert!(matches!(opened.cut.unwrap().damage, Damage::Order { .. }));
}

#[test]
fn any_flipped_bit_below_the_mark_is_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    let mut rng = fastrand::Rng::with_seed(3);
    let mut flips = 0;
    while flips < 300 {
        let id = rng.u64(1..=3);
        let offset = rng.u64(..32 << 10);
        let bytes = disk.bytes(&segment(id)).unwrap();
        // Bytes that were never written are zeros up to the segment's end, and a flip there has no effect.
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        if offset > end {
            continue;
        }
        let copy = disk.fork(1);
        copy.flip_bit(&segment(id), offset, rng.u8(..8)).unwrap();
        let error = refused(&copy);
        assert!(
            matches!(&error, WalError::Corrupt { path, .. } | WalError::Version { path, .. } if *path == segment(id)),
            "byte {offset} of segment {id}: {error}"
        );
        flips += 1;
    }
}

#[test]
fn the_place_and_the_reason_are_told() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    disk.flip_bit(&segment(2), 2 * BLOCK + 100, 0).unwrap();
    let error = refused(&disk);
    let WalError::Corrupt { path, offset, damage } = &error else { panic!("{error}") };
    assert_eq!((path.as_str(), *offset, damage), (segment(2).as_str(), 2 * BLOCK, &Damage::Checksum));
    assert!(
        error.to_string().contains("0000000000000002.log is corrupt at byte 8192: the checksum is wrong"),
        "{error}"
    );
}

#[test]
fn damage_to_the_last_synced_batch_is_refused_once_a_mark_covers_it() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let position = put(&mut wal, &rec(1, 1, b"the last one"));
    let unmarked = disk.fork(1);
    unmarked.flip_bit(&segment(1), position.offset + 70, 0).unwrap();
    let (_, opened, seen) = open(&unmarked, &small()).unwrap();
    assert_eq!((seen.len(), opened.cut.unwrap().damage), (0, Damage::Checksum));

    wal.mark().unwrap();
    disk.flip_bit(&segment(1), position.offset + 70, 0).unwrap();
    assert!(matches!(refused(&disk), WalError::Corrupt { damage: Damage::Checksum, .. }));
}

#[test]
fn opening_marks_what_it_showed() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let position = put(&mut wal, &rec(1, 1, b"the last one"));
    open(&disk, &small()).unwrap();
    disk.flip_bit(&segment(1), position.offset + 70, 0).unwrap();
    assert!(matches!(refused(&disk), WalError::Corrupt { .. }));
}

#[test]
fn swapped_segments_are_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    let (two, three) = (disk.bytes(&segment(2)).unwrap(), disk.bytes(&segment(3)).unwrap());
    disk.put(&segment(2), &three);
    disk.put(&segment(3), &two);
    assert!(matches!(refused(&disk), WalError::Corrupt { damage: Damage::Swapped { found: 3 }, .. }));
}

#[test]
fn an_older_copy_of_a_segment_is_refused() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"one"));
    put(&mut wal, &rec(1, 2, b"two"));
    let old = disk.bytes(&segment(1)).unwrap();
    for index in 3..=20 {
        put(&mut wal, &rec(1, index, &[0; 3000]));
    }
    disk.put(&segment(1), &old);
    let error = refused(&disk);
    assert!(matches!(&error, WalError::Corrupt { path, .. } if *path == segment(1)), "{error}");
}

#[test]
fn missing_segments_are_refused() {
    for id in 1..=3 {
        let disk = SimDisk::new(1);
        closed_log(&disk);
        Disk::remove(&disk, &segment(id)).unwrap();
        let error = refused(&disk);
        assert!(matches!(&error, WalError::MissingSegment { path } if *path == segment(id)), "{error}");
    }
    // The newest one, also when all before it is trimmed: the prepared one after it reveals the loss.
    for trimmed in [0, 20] {
        let disk = SimDisk::new(1);
        closed_log(&disk);
        let (mut wal, _, _) = open(&disk, &small()).unwrap();
        wal.trim(|_| Index(trimmed)).unwrap();
        drop(wal);
        Disk::remove(&disk, &segment(4)).unwrap();
        let error = refused(&disk);
        assert!(matches!(&error, WalError::MissingSegment { path } if *path == segment(4)), "{error}");
    }
}

/// A power cut after a trim brings back some of the names and not others.
#[test]
fn a_gap_among_trimmed_segments_is_no_loss() {
    for kept in [vec![1], vec![2], vec![1, 3]] {
        let disk = SimDisk::new(1);
        closed_log(&disk);
        let before = disk.fork(1);
        let (mut wal, _, _) = open(&disk, &small()).unwrap();
        assert_eq!(wal.trim(|_| Index(20)).unwrap(), 3);
        put(&mut wal, &rec(1, 21, b"after"));
        drop(wal);
        for id in &kept {
            disk.put(&segment(*id), &before.bytes(&segment(*id)).unwrap());
        }
        let (_, _, seen) = open(&disk, &small()).unwrap();
        assert_eq!(seen.last().unwrap().index, 21);
        for id in kept {
            assert_eq!(disk.bytes(&segment(id)), None, "what is outdated is given up again");
        }
        open(&disk, &small()).unwrap();
    }
}

#[test]
fn a_missing_log_is_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    for path in disk.files() {
        Disk::remove(&disk, &path).unwrap();
    }
    assert!(matches!(refused(&disk), WalError::Missing { .. }));
}

/// With several gaps, the segments after the last one are those that the log still has.
#[test]
fn several_gaps_among_trimmed_segments_are_no_loss() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    for index in 1..=30 {
        put(&mut wal, &rec(1, index, &[1; 5000]));
    }
    let before = disk.fork(1);
    let oldest = 1 + wal.trim(|_| Index(20)).unwrap() as u64;
    drop(wal);
    let kept = [1, 3, oldest - 2];
    assert!(oldest > 6);
    for id in kept {
        disk.put(&segment(id), &before.bytes(&segment(id)).unwrap());
    }
    let (_, _, seen) = open(&disk, &small()).unwrap();
    assert!(seen[0].index <= 21 && seen.last().unwrap().index == 30);
    assert!(kept.iter().all(|id| disk.bytes(&segment(*id)).is_none()));
}

/// A write that went to the wrong place leaves a whole batch, whose mark is lower than those before it.
#[test]
fn an_old_batch_behind_the_end_hides_no_damage() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let first = put(&mut wal, &rec(1, 1, b"first"));
    let damaged = put(&mut wal, &rec(1, 2, b"damaged"));
    let last = put(&mut wal, &rec(1, 3, b"last"));
    drop(wal);
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    let of = |offset: u64| offset as usize..(offset + BLOCK) as usize;
    bytes.copy_within(of(first.offset), of(last.offset + BLOCK).start);
    disk.put(&segment(1), &bytes);
    disk.flip_bit(&segment(1), damaged.offset + 70, 0).unwrap();
    assert!(matches!(refused(&disk), WalError::Corrupt { offset, .. } if offset == damaged.offset));
}

/// Without its first segment's contents a log must not begin with the second.
#[test]
fn a_first_segment_without_batches_is_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    for trimmed in [0, 5] {
        let disk = disk.fork(1);
        let (mut wal, _, _) = open(&disk, &small()).unwrap();
        let first = 1 + wal.trim(|_| Index(trimmed)).unwrap() as u64;
        assert_eq!(first > 1, trimmed > 0);
        drop(wal);
        let mut bytes = disk.bytes(&segment(first)).unwrap();
        bytes[BLOCK as usize..].fill(0);
        disk.put(&segment(first), &bytes);
        let error = refused(&disk);
        assert!(matches!(&error, WalError::Corrupt { path, .. } if *path == segment(first)), "{error}");
    }
}

/// The last batch may have been synced although no mark says so: a file that has become shorter is never the tail of a crash.
#[test]
fn a_segment_that_is_cut_between_two_batches_is_refused() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let last = (1..=4).map(|index| put(&mut wal, &rec(1, index, b"synced"))).last().unwrap();
    drop(wal);
    assert!(last.offset >= 4 * BLOCK, "a shorter segment is invalid anyway");
    let bytes = disk.bytes(&segment(1)).unwrap();
    let mut longer = bytes.clone();
    longer.resize(bytes.len() + BLOCK as usize, 0);
    for bytes in [&bytes[..last.offset as usize], &longer] {
        disk.put(&segment(1), bytes);
        let error = refused(&disk);
        assert!(matches!(&error, WalError::Corrupt { damage: Damage::Truncated { .. }, .. }), "{error}");
    }
}

/// A log that was created has a first batch, even if nothing else says that it ever was written.
#[test]
fn a_log_without_its_only_batches_is_refused_except_while_it_is_created() {
    let disk = SimDisk::new(1);
    drop(open(&disk, &small()).unwrap());
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    bytes[BLOCK as usize..].fill(0);
    disk.put(&segment(1), &bytes);
    assert!(matches!(refused(&disk), WalError::Corrupt { damage: Damage::NoBatch, .. }));
    assert_eq!(open(&disk, &small()).unwrap().2, []);
}

#[test]
fn a_batch_whose_numbers_no_log_records_is_refused() {
    // The mark, the oldest segment, and the batch's number, which is its first one.
    for (at, value) in [(32, 1_u64), (40, 2), (24, u64::MAX)] {
        let disk = SimDisk::new(1);
        let (wal, _, _) = open(&disk, &small()).unwrap();
        drop(wal);
        let mut bytes = disk.bytes(&segment(1)).unwrap();
        // Not the very first segment, so that any number may be the first.
        for (from, id) in [(16, 2_u64), (BLOCK as usize + 16, 2)] {
            bytes[from..from + 8].copy_from_slice(&id.to_le_bytes());
        }
        let header = crc32fast::hash(&bytes[16..BLOCK as usize]);
        bytes[12..16].copy_from_slice(&header.to_le_bytes());
        let batch = BLOCK as usize;
        bytes[batch + 40..batch + 48].copy_from_slice(&2_u64.to_le_bytes());
        let seal = |bytes: &mut [u8]| {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&7_u64.to_le_bytes());
            crc.update(&bytes[batch + 8..batch + BLOCK as usize]);
            bytes[batch + 4..batch + 8].copy_from_slice(&crc.finalize().to_le_bytes());
        };
        seal(&mut bytes);
        for path in disk.files() {
            Disk::remove(&disk, &path).unwrap();
        }
        disk.put(&segment(2), &bytes);
        open(&disk.fork(1), &small()).unwrap();
        let value = if at == 40 { value + 1 } else { value };
        bytes[batch + at..batch + at + 8].copy_from_slice(&value.to_le_bytes());
        seal(&mut bytes);
        disk.put(&segment(2), &bytes);
        let error = refused(&disk);
        assert!(matches!(&error, WalError::Corrupt { damage: Damage::Range, .. }), "byte {at}: {error}");
    }
}

#[test]
fn truncated_segments_are_refused() {
    for id in 1..=4 {
        for len in [0, 100, BLOCK, 2 * BLOCK, 3 * BLOCK + 17, 32 * 1024 - 1] {
            let disk = SimDisk::new(1);
            closed_log(&disk);
            let bytes = disk.bytes(&segment(id)).unwrap();
            disk.put(&segment(id), &bytes[..len as usize]);
            let error = refused(&disk);
            assert!(matches!(&error, WalError::Corrupt { path, .. } if *path == segment(id)), "{error}");
        }
    }
}

#[test]
fn zeroed_blocks_are_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    for id in 1..=3 {
        let bytes = disk.bytes(&segment(id)).unwrap();
        for block in 0..7 {
            let range = block * BLOCK as usize..(block + 1) * BLOCK as usize;
            if bytes[range.clone()].iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[range].fill(0);
            let copy = disk.fork(1);
            copy.put(&segment(id), &damaged);
            assert!(matches!(refused(&copy), WalError::Corrupt { .. }), "block {block} of segment {id}");
        }
    }
}

#[test]
fn another_version_and_another_log_are_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    let error = open(&disk, &WalOptions { log_id: 8, ..small() }).unwrap_err();
    assert!(matches!(error, WalError::WrongLog { found: 7, wanted: 8, .. }), "{error}");
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    bytes[8] = 3;
    disk.put(&segment(1), &bytes);
    let error = refused(&disk);
    assert!(matches!(error, WalError::Version { found: 3, known: 2, .. }), "{error}");
}

fn set_version(disk: &SimDisk, path: &str, version: u8) {
    let mut bytes = disk.bytes(path).unwrap();
    assert_ne!(bytes[8], version);
    bytes[8] = version;
    disk.put(path, &bytes);
}

/// No checksum covers the version. A segment of version 1 without batches is removed as one that was only prepared, so the
/// last segment with data must not be taken for one.
#[test]
fn a_version_that_is_not_that_of_the_batches_is_refused() {
    let disk = SimDisk::new(1);
    closed_log(&disk);
    for id in 1..=4 {
        let disk = disk.fork(1);
        set_version(&disk, &segment(id), 1);
        let error = refused(&disk);
        let WalError::Corrupt { path, offset: 0, damage: Damage::SegmentHeader } = error else {
            panic!("segment {id}: {error}");
        };
        assert_eq!(path, segment(id));
    }
    // A segment that is only prepared holds nothing that could be lost.
    set_version(&disk, &segment(5), 1);
    assert_eq!(open(&disk, &small()).unwrap().2.len(), 20);
}

#[test]
fn a_version_that_changes_while_the_log_is_open_is_reported() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for index in 1..=9 {
        put(&mut wal, &rec(1, index, &[1; 9000]));
    }
    let (reader, last) = (wal.reader(), wal.position().segment);
    assert!(last > 2);
    for id in [1, last] {
        set_version(&disk, &segment(id), 1);
        let mut entries = reader.entries(ShardId(1), Index(0));
        let error = entries.read(|_| Ok::<_, Infallible>(ControlFlow::Continue(()))).unwrap_err();
        assert!(
            matches!(error, WalError::Corrupt { offset: 0, damage: Damage::SegmentHeader, .. }),
            "segment {id}: {error}"
        );
        set_version(&disk, &segment(id), 2);
    }
}

#[test]
fn reading_changes_nothing() {
    let disk = SimDisk::new(5);
    let records = closed_log(&disk);
    let before: Vec<_> = disk.files().iter().map(|path| disk.bytes(path)).collect();
    let mut seen = 0;
    let count = |_: stead_store::wal::Record<'_>| {
        seen += 1;
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    };
    Wal::read(&disk, &small(), count).unwrap();
    assert_eq!(seen, records.len());
    assert!(before == disk.files().iter().map(|path| disk.bytes(path)).collect::<Vec<_>>());
}
