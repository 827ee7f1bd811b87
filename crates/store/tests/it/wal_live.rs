//! Reading a log while its owner writes, rolls and trims it.

use crate::wal_log::{Rec, batch, open, put, rec, small};
use std::convert::Infallible;
use std::ops::ControlFlow;
use stead_core::ids::{Index, ShardId};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Damage, Wal, WalError, WalOptions, WalReader};

/// Puts records `from..=to` of shard 0, each of which fills half a segment.
fn put_all(wal: &mut Wal, from: u64, to: u64) {
    for index in from..=to {
        put(wal, &large(index));
    }
}

fn large(index: u64) -> Rec {
    rec(0, index, &[index as u8; 10_000])
}

/// Returns the indexes of the records that are read; `meanwhile` runs before each is added.
fn read(reader: &WalReader, mut meanwhile: impl FnMut(u64)) -> Result<Vec<u64>, WalError> {
    let mut seen = Vec::new();
    reader.entries(ShardId(0), Index(0)).read(|record| {
        meanwhile(record.index.0);
        assert_eq!(record.bytes, large(record.index.0).bytes);
        seen.push(record.index.0);
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    })?;
    Ok(seen)
}

#[test]
fn what_is_written_and_rolled_meanwhile_is_left_for_later() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let reader = wal.reader();
    put_all(&mut wal, 1, 5);
    let seen = read(&reader, |index| put_all(&mut wal, 5 + 3 * index - 2, 5 + 3 * index)).unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert!(wal.stats().segments > 8, "{:?}", wal.stats());
    assert_eq!(read(&reader, |_| {}).unwrap(), (1..=20).collect::<Vec<_>>());
    // Appended but not synced: it must not be visible yet.
    wal.append(&[batch(&[large(21)])]).unwrap();
    assert_eq!(read(&reader, |_| {}).unwrap().last(), Some(&20));
}

/// After a failed sync the contents of the disk are unknown, so what it should have written is never shown.
#[test]
fn what_a_failed_sync_should_have_written_is_not_visible() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    put_all(&mut wal, 1, 3);
    wal.append(&[batch(&[large(4)])]).unwrap();
    disk.fail_syncs(1);
    wal.sync().unwrap_err();
    assert_eq!(read(&wal.reader(), |_| {}).unwrap(), [1, 2, 3]);
}

#[test]
fn what_is_trimmed_and_used_again_meanwhile_is_passed_over() {
    let disk = SimDisk::new(2);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let reader = wal.reader();
    put_all(&mut wal, 1, 12);
    let before = wal.stats().segments;
    let seen = read(&reader, |index| {
        if index == 2 {
            assert!(wal.trim(|_| Index(8)).unwrap() > 2);
            put_all(&mut wal, 13, 20);
        }
    })
    .unwrap();
    assert!(before > 4, "the case needs segments");
    // The segment that was being read is read to its end.
    let (first, rest) = seen.split_at(3);
    assert_eq!(first, [1, 2, 3]);
    assert!(rest[0] > 4 && rest[0] <= 9, "{seen:?}");
    assert_eq!(rest.to_vec(), (rest[0]..=12).collect::<Vec<_>>());
}

/// A reader holds a piece of a segment in memory. By the time that it wants the next piece, the segment may have been trimmed
/// and filled again as another one: it then ends early, and the next batch does not follow.
#[test]
fn a_segment_that_is_used_again_under_a_slow_reader_is_no_damage() {
    const MIB: u64 = 1 << 20;
    let options = WalOptions { segment_bytes: 4 * MIB, segment_bytes_min: 4 * MIB, ..small() };
    let disk = SimDisk::new(2);
    let (mut wal, ..) = open(&disk, &options).unwrap();
    let fill = |wal: &mut Wal, from: u64, segments: usize| {
        let until = wal.position().segment + segments as u64;
        let mut index = from;
        while wal.position().segment < until {
            put(wal, &rec(0, index, &[index as u8; 200 << 10]));
            index += 1;
        }
        index - 1
    };
    let last = fill(&mut wal, 1, 2);
    let mut seen = Vec::new();
    let reader = wal.reader();
    let visit = |record: stead_store::wal::Record<'_>| {
        seen.push(record.index.0);
        if record.index == Index(2) {
            assert_eq!(wal.trim(|_| Index(25)).unwrap(), 1);
            fill(&mut wal, last + 1, 3);
        }
        Ok::<_, Infallible>(ControlFlow::Continue(()))
    };
    reader.entries(ShardId(0), Index(0)).read(visit).unwrap();
    let gap = seen.windows(2).position(|pair| pair[1] != pair[0] + 1).expect("a segment ended early") + 1;
    assert!((2..10).contains(&gap) && seen[gap] > 12, "{seen:?}");
    assert_eq!(seen[gap..], (seen[gap]..=last).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_has_seen_enough_reads_no_further() {
    let disk = SimDisk::new(3);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    put_all(&mut wal, 1, 9);
    let mut seen = 0;
    let two = |_: stead_store::wal::Record<'_>| {
        seen += 1;
        Ok::<_, Infallible>(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    // The damage is in a segment that is not read.
    let last = disk.files().into_iter().filter(|path| path.ends_with(".log")).nth(3).unwrap();
    disk.flip_bit(&last, 5000, 1).unwrap();
    wal.reader().entries(ShardId(0), Index(0)).read(two).unwrap();
    assert_eq!(seen, 2);
    let mut seen = 0;
    let one = |_: stead_store::wal::Record<'_>| {
        seen += 1;
        Ok::<_, Infallible>(ControlFlow::Break(()))
    };
    Wal::read(&disk, &small(), one).unwrap();
    assert_eq!(seen, 1);
    // Nor the rest of a batch.
    let disk = SimDisk::new(3);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    wal.append(&[batch(&[rec(0, 1, b"one"), rec(0, 2, b"two"), rec(0, 3, b"three")])]).unwrap();
    let mut seen = 0;
    let two = |_: stead_store::wal::Record<'_>| {
        seen += 1;
        Ok::<_, Infallible>(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    Wal::read(&disk, &small(), two).unwrap();
    assert_eq!(seen, 2);
}

#[test]
fn without_a_log_there_is_nothing_to_read() {
    let error = Wal::read(&SimDisk::new(3), &small(), |_| Ok::<_, Infallible>(ControlFlow::Continue(())));
    assert!(matches!(error, Err(WalError::Missing { .. })));
}

#[test]
fn damage_to_durable_records_is_reported() {
    // The first batch of a log has no entry.
    for (at, offset) in [(1, 4096), (0, 8192)] {
        let disk = SimDisk::new(4);
        let (mut wal, ..) = open(&disk, &small()).unwrap();
        put_all(&mut wal, 1, 9);
        let path = disk.files().into_iter().filter(|path| path.ends_with(".log")).nth(at).unwrap();
        disk.flip_bit(&path, offset + 100, 3).unwrap();
        match read(&wal.reader(), |_| {}) {
            Err(WalError::Corrupt { path: found, damage: reported, .. }) => {
                assert_eq!((found, reported), (path, Damage::Checksum));
            }
            other => panic!("{other:?}"),
        }
        drop(wal);
    }
}

/// A write that went to the wrong place.
#[test]
fn a_batch_in_the_place_of_another_is_damage() {
    let disk = SimDisk::new(4);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    put_all(&mut wal, 1, 9);
    let at = wal.reader().find(ShardId(0), Index(2)).unwrap();
    let path = format!("wal/{:016x}.log", at.segment);
    let (from, span) = (at.offset as usize, 12 * 1024);
    let mut bytes = disk.bytes(&path).unwrap();
    bytes.copy_within(from..from + span, from + span);
    disk.put(&path, &bytes);
    match read(&wal.reader(), |_| {}) {
        Err(WalError::Corrupt { offset, damage: Damage::Order { .. }, .. }) => {
            assert_eq!(offset, (from + span) as u64);
        }
        other => panic!("{other:?}"),
    }
}

/// A segment that ends early is damaged. Only a reader that knows the segment's last batch notices that.
#[test]
fn a_segment_that_ends_early_is_damage() {
    let disk = SimDisk::new(4);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    put_all(&mut wal, 1, 9);
    let at = wal.reader().find(ShardId(0), Index(2)).unwrap();
    let path = format!("wal/{:016x}.log", at.segment);
    let mut bytes = disk.bytes(&path).unwrap();
    let second = at.offset as usize + 12 * 1024;
    assert_eq!(bytes[second..second + 3], *b"SWB");
    bytes[second..].fill(0);
    disk.put(&path, &bytes);
    match read(&wal.reader(), |_| {}) {
        Err(WalError::Corrupt { path: found, offset, damage }) => {
            assert_eq!((found, offset, damage), (path, second as u64, Damage::NoBatch));
        }
        other => panic!("{other:?}"),
    }
}
