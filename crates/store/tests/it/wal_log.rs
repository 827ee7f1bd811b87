//! An undisturbed log, and helpers that the other suites share.

use std::convert::Infallible;
use std::sync::Arc;
use stead_core::ids::{Epoch, Index, ShardId};
use stead_store::disk::Disk;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Batch, Opened, Position, Wal, WalError, WalOptions};

/// A record as the tests keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rec {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    pub(crate) index: u64,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn rec(shard: u32, index: u64, bytes: &[u8]) -> Rec {
    Rec { shard, epoch: 1, index, bytes: bytes.to_vec() }
}

pub(crate) fn batch(records: &[Rec]) -> Batch {
    let mut batch = Batch::new();
    for rec in records {
        batch.push(ShardId(rec.shard), Epoch(rec.epoch), Index(rec.index), &rec.bytes);
    }
    batch
}

/// Bytes before an entry of a small shard, epoch and index.
pub(crate) const HEAD: usize = 8;

/// Segments of eight blocks, of which six hold batches.
pub(crate) fn small() -> WalOptions {
    WalOptions { segment_bytes: 32 << 10, log_id: 7, create: true, ..WalOptions::default() }
}

pub(crate) fn open(disk: &SimDisk, options: &WalOptions) -> Result<(Wal, Opened, Vec<Rec>), WalError> {
    open_on(Arc::new(disk.clone()), options)
}

pub(crate) fn open_on(
    disk: Arc<dyn Disk>,
    options: &WalOptions,
) -> Result<(Wal, Opened, Vec<Rec>), WalError> {
    let mut seen = Vec::new();
    let (wal, opened) = Wal::open(disk, options.clone(), |record| {
        seen.push(Rec {
            shard: record.shard.0,
            epoch: record.epoch.0,
            index: record.index.0,
            bytes: record.bytes.to_vec(),
        });
        Ok::<(), Infallible>(())
    })?;
    Ok((wal, opened, seen))
}

/// Appends and syncs one record in a batch of its own.
pub(crate) fn put(wal: &mut Wal, rec: &Rec) -> Position {
    let position = wal.append(&[batch(std::slice::from_ref(rec))]).unwrap();
    wal.sync().unwrap();
    position
}

#[test]
fn gives_back_what_was_appended_in_order() {
    let disk = SimDisk::new(1);
    let (mut wal, opened, seen) = open(&disk, &small()).unwrap();
    assert_eq!((opened.records, seen.len()), (0, 0));
    let mut records = Vec::new();
    for n in 1..=40_u32 {
        // Lengths around the limits of a block, and none at all.
        let len = [0, 1, 4096 - 64 - HEAD, 4096 - 64 - HEAD + 1, 9000][n as usize % 5];
        let group = [rec(n % 3, u64::from(n), &vec![n as u8; len]), rec(70_000, u64::from(n), b"sparse")];
        wal.append(&[batch(&group[..1]), Batch::new(), batch(&group[1..])]).unwrap();
        records.extend(group);
    }
    wal.sync().unwrap();
    assert!(wal.stats().segments > 5, "{:?}", wal.stats());
    drop(wal);
    disk.crash();
    disk.restart();
    let (_, opened, seen) = open(&disk, &small()).unwrap();
    assert_eq!(seen, records);
    assert_eq!((opened.records, opened.cut), (80, None));
}

#[test]
fn appending_nothing_writes_nothing() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let before = (wal.position(), disk.operations());
    wal.append::<Batch>(&[]).unwrap();
    wal.append(&[Batch::new()]).unwrap();
    wal.sync().unwrap();
    assert_eq!((wal.position(), disk.operations()), before);
}

#[test]
fn several_batches_become_one_write_and_one_sync() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let before = disk.operations();
    let batches: Vec<Batch> =
        (0..8).map(|shard| batch(&[rec(shard, 1, &[1; 100]), rec(shard, 2, &[2; 100])])).collect();
    wal.append(&batches).unwrap();
    wal.sync().unwrap();
    assert_eq!(disk.operations() - before, 2);
}

#[test]
fn a_batch_over_the_limit_is_refused_and_the_next_accepted() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let max = wal.batch_bytes_max();
    let error =
        wal.append(&[batch(&[rec(1, 1, b"x")]), batch(&[rec(1, 2, &vec![0; max - HEAD + 1])])]).unwrap_err();
    assert!(matches!(error, WalError::TooLarge { bytes, max: m } if bytes == max + 1 && m == max), "{error}");
    put(&mut wal, &rec(1, 1, &vec![0; max - HEAD]));
    assert_eq!(open(&disk, &small()).unwrap().2.len(), 1);
}

#[test]
fn trimmed_segments_are_reused_and_their_old_batches_never_come_back() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    for index in 1..=60 {
        put(&mut wal, &rec(1, index, &[index as u8; 3000]));
        if index % 6 == 0 {
            wal.trim(|shard| if shard == ShardId(1) { Index(index - 1) } else { Index(0) }).unwrap();
        }
    }
    let stats = wal.stats();
    assert!(stats.segments <= 3, "{stats:?}");
    assert!(disk.used() <= 6 * (32 << 10), "{}", disk.used());
    drop(wal);
    let (_, opened, seen) = open(&disk, &small()).unwrap();
    assert_eq!(opened.cut, None, "what a reused segment held before is no tail");
    let indexes: Vec<u64> = seen.iter().map(|rec| rec.index).collect();
    let first = indexes[0];
    assert!(first <= 60, "what wasn't trimmed is there");
    assert_eq!(indexes, (first..=60).collect::<Vec<u64>>());
}

#[test]
fn trimming_keeps_what_any_shard_needs() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(9, 5, b"needed"));
    for index in 1..=30 {
        put(&mut wal, &rec(1, index, &[0; 5000]));
    }
    let tops = |needed: u64| move |shard: ShardId| Index(if shard.0 == 9 { needed } else { u64::MAX });
    assert_eq!(wal.trim(tops(4)).unwrap(), 0);
    assert!(wal.trim(tops(5)).unwrap() > 5);
    assert_eq!(wal.trim(tops(5)).unwrap(), 0);
    let (_, _, seen) = open(&disk, &small()).unwrap();
    assert!(seen.iter().all(|rec| rec.shard == 1));
}

#[test]
fn a_mark_is_written_once() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"x"));
    assert!(wal.mark().unwrap());
    let before = disk.operations();
    assert!(wal.mark().unwrap());
    assert_eq!(disk.operations(), before);
}

#[test]
fn a_preparer_on_another_thread_makes_the_segments() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let preparer = wal.preparer();
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while asleep.recv().is_ok() {
                preparer.prepare_next().unwrap();
            }
        });
        for index in 1..=200 {
            put(&mut wal, &rec(1, index, &[0; 4000]));
            if wal.wants_segment() {
                wake.send(()).unwrap();
            }
        }
        drop(wake);
    });
    assert_eq!(open(&disk, &small()).unwrap().2.len(), 200);
}

#[test]
fn the_visitors_error_stops_the_opening() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"x"));
    let refuse = |_: stead_store::wal::Record<'_>| Err::<(), _>(std::io::Error::other("no such shard"));
    let error = Wal::open(Arc::new(disk.clone()), small(), refuse).unwrap_err();
    assert_eq!(error.to_string(), "a log record was refused: no such shard");
}

#[test]
fn impossible_options_are_refused() {
    let bad = [
        WalOptions { segment_bytes: 4096, ..small() },
        WalOptions { segment_bytes: (1 << 20) + 1, ..small() },
        WalOptions { segment_bytes: 2 << 30, ..small() },
        WalOptions { segment_bytes_min: 4096, ..small() },
        WalOptions { segment_bytes_min: (1 << 20) + 1, ..small() },
        WalOptions { batch_bytes_max: 0, ..small() },
        WalOptions { spares: 0, ..small() },
        WalOptions { free_max: 0, ..small() },
    ];
    for options in bad {
        let error = open(&SimDisk::new(1), &options).unwrap_err();
        assert!(matches!(error, WalError::Options { .. }), "{error}");
    }
}

#[test]
fn another_segment_length_takes_over_with_the_next_segment() {
    let disk = SimDisk::new(1);
    let mut expected = Vec::new();
    for (round, kib) in [32, 64, 16, 128].into_iter().enumerate() {
        let options = WalOptions { segment_bytes: kib << 10, ..small() };
        let (mut wal, _, seen) = open(&disk, &options).unwrap();
        assert_eq!(seen, expected);
        for n in 0..20 {
            let rec = rec(1, round as u64 * 100 + n, &[7; 6000]);
            put(&mut wal, &rec);
            expected.push(rec);
        }
    }
    assert_eq!(open(&disk, &small()).unwrap().2, expected);
}
