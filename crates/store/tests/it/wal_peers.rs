//! Reading a shard's surviving entries for its replicas on other nodes, and trimming what they no longer need.

use crate::wal_log::{Rec, batch, open, put, rec, small};
use crate::wal_replicas::at;
use std::convert::Infallible;
use std::ops::ControlFlow;
use stead_core::ids::{Index, ShardId};
use stead_core::replication::table::EpochTable;
use stead_core::shard_replica::LogEntry;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{LogReader, Progress, Reading, Wal, WalOptions};

const SHARD: ShardId = ShardId(0);

/// The table of a log with these epochs, from index 1 on.
fn table(epochs: &[u64]) -> EpochTable {
    let mut table = EpochTable::default();
    for (index, epoch) in (1..).zip(epochs) {
        table.push(at(*epoch, index));
    }
    table
}

/// Reads one piece; returns its entries as epoch and index.
fn piece(reader: &mut LogReader, bytes_max: u64) -> (Progress, Vec<(u64, u64)>) {
    let mut entries = Vec::new();
    let progress = reader.read(bytes_max, &mut entries).unwrap();
    let points = entries.iter().map(|LogEntry { point, bytes }| {
        assert_eq!(**bytes, *content(point.epoch.0, point.index.0));
        (point.epoch.0, point.index.0)
    });
    (progress, points.collect())
}

fn content(epoch: u64, index: u64) -> Vec<u8> {
    format!("entry {index} of {epoch}").into_bytes()
}

/// Writes entries as (epoch, index), a batch for each, with one of another shard.
fn write(wal: &mut Wal, entries: &[(u64, u64)]) {
    for &(epoch, index) in entries {
        let entry = Rec { epoch, ..rec(SHARD.0, index, &content(epoch, index)) };
        wal.append(&[batch(&[entry, rec(9, index, &[1; 5_000])])]).unwrap();
    }
    wal.sync().unwrap();
}

#[test]
fn entries_that_survive_are_read_in_pieces() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    // Epoch 2 cut entries of epoch 1, was cut itself, and they came again.
    let log = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (1, 2), (1, 3), (4, 4), (4, 5), (5, 5)];
    write(&mut wal, &log);
    let table = table(&[1, 1, 1, 4, 5]);
    let survive = [(1, 1), (1, 2), (1, 3), (4, 4), (5, 5)];
    for from in 1..=5 {
        for last in from..=5 {
            for bytes_max in [0, 80, 170, 10_000] {
                let mut reader = wal.reader().log(SHARD, table.clone(), Index(from), Index(last));
                let mut seen = Vec::new();
                loop {
                    let (progress, entries) = piece(&mut reader, bytes_max);
                    let bytes: u64 = entries.iter().map(|(e, i)| content(*e, *i).len() as u64 + 64).sum();
                    assert!(bytes <= bytes_max || entries.len() == 1, "{bytes} of {bytes_max}");
                    seen.extend(entries);
                    if progress == Progress::Done {
                        break;
                    }
                    assert_eq!(progress, Progress::More);
                }
                assert_eq!(seen, survive[from as usize - 1..last as usize]);
                assert_eq!(piece(&mut reader, bytes_max), (Progress::Done, Vec::new()));
            }
        }
    }
}

#[test]
fn entries_that_are_not_durable_yet_are_read_once_they_are() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    write(&mut wal, &[(1, 1)]);
    wal.append(&[batch(&[Rec { epoch: 1, ..rec(SHARD.0, 2, &content(1, 2)) }])]).unwrap();
    let mut reader = wal.reader().log(SHARD, table(&[1, 1]), Index(1), Index(2));
    assert_eq!(piece(&mut reader, 1_000), (Progress::Missing, vec![(1, 1)]));
    assert_eq!(piece(&mut reader, 1_000), (Progress::Missing, Vec::new()));
    wal.sync().unwrap();
    assert_eq!(piece(&mut reader, 1_000), (Progress::Done, vec![(1, 2)]));
}

#[test]
fn entries_that_were_trimmed_are_missing() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let entries: Vec<_> = (1..=40).map(|index| (1, index)).collect();
    write(&mut wal, &entries);
    let table = table(&[1; 40]);
    let mut begun = wal.reader().log(SHARD, table.clone(), Index(1), Index(40));
    assert_eq!(piece(&mut begun, 0), (Progress::More, vec![(1, 1)]));
    assert!(wal.trim(|_| Index(20)).unwrap() > 2);
    for mut reader in [begun, wal.reader().log(SHARD, table.clone(), Index(2), Index(40))] {
        // The piece that was held came before the trim.
        let mut all = Vec::new();
        let end = loop {
            let (progress, entries) = piece(&mut reader, 1_000);
            all.extend(entries);
            if progress != Progress::More {
                break progress;
            }
        };
        assert_eq!(end, Progress::Missing);
        assert!(all.len() <= 1, "{all:?}");
    }
    let mut reader = wal.reader().log(SHARD, table, Index(21), Index(40));
    assert_eq!(piece(&mut reader, 100_000), (Progress::Done, entries[20..].to_vec()));
}

/// Between two entries of a calm shard the others may have filled the log.
#[test]
fn one_piece_reads_a_bounded_part_of_a_long_log() {
    let disk = SimDisk::new(1);
    let options = WalOptions { segment_bytes: 4 << 20, segment_bytes_min: 4 << 20, ..small() };
    let (mut wal, ..) = open(&disk, &options).unwrap();
    let busy = vec![1; 100 << 10];
    let entry = |index| Rec { epoch: 1, ..rec(SHARD.0, index, &content(1, index)) };
    wal.append(&[batch(&[entry(1)])]).unwrap();
    for index in 1..=200 {
        wal.append(&[batch(&[rec(9, index, &busy)])]).unwrap();
        // The calm shard is near the beginning of each segment, so that nothing is passed over unread.
        if index % 2 == 0 {
            let void = Rec { epoch: 1, ..rec(SHARD.0, 900 + index, b"void") };
            wal.append(&[batch(&[void])]).unwrap();
        }
    }
    wal.append(&[batch(&[Rec { epoch: 2, ..rec(SHARD.0, 2, &content(2, 2)) }])]).unwrap();
    wal.sync().unwrap();
    let mut reader = wal.reader().log(SHARD, table(&[1, 2]), Index(1), Index(2));
    let (mut seen, mut pieces) = (Vec::new(), 0);
    loop {
        let (progress, entries) = piece(&mut reader, 10_000);
        seen.extend(entries);
        pieces += 1;
        if progress != Progress::More {
            break assert_eq!(progress, Progress::Done);
        }
    }
    assert_eq!(seen, [(1, 1), (2, 2)]);
    let wanted = (200 * (100 << 10)) / LogReader::SCAN_BYTES;
    assert!((wanted - 2..=wanted + 2).contains(&pieces), "{pieces} pieces, about {wanted} were expected");
}

/// Wherever readings pause, they show what one reading shows.
#[test]
fn a_reading_that_pauses_goes_on_there() {
    let mut rng = fastrand::Rng::with_seed(7);
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    for first in (1..=60).step_by(3) {
        let group: Vec<Rec> = (first..first + 3).map(|index| rec(SHARD.0, index, b"entry")).collect();
        let others = rng.u64(0..3);
        for n in 0..others {
            put(&mut wal, &rec(5, first * 3 + n, &vec![2; rng.usize(0..9_000)]));
        }
        wal.append(&[batch(&group)]).unwrap();
    }
    wal.sync().unwrap();
    for seed in 0..50 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut reader = wal.reader().entries(SHARD, Index(4));
        let (mut seen, mut readings) = (Vec::new(), 0);
        loop {
            let limit = rng.usize(1..4);
            let mut shown = 0;
            let reading = reader.read_within(rng.u64(0..30_000), |record| {
                seen.push(record.index.0);
                shown += 1;
                Ok::<_, Infallible>(if shown == limit {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            });
            readings += 1;
            assert!(readings < 1_000, "each reading gets on");
            if reading.unwrap() == Reading::Ended {
                break;
            }
        }
        assert_eq!(seen, (4..=60).collect::<Vec<_>>());
    }
}

#[test]
fn what_peers_read_stays_as_long_as_the_log_is_not_too_long() {
    let disk = SimDisk::new(1);
    let (mut wal, ..) = open(&disk, &small()).unwrap();
    let entries: Vec<_> = (1..=60).map(|index| (1, index)).collect();
    write(&mut wal, &entries);
    let oldest = |wal: &Wal| {
        let mut first = None;
        let visit = |record: stead_store::wal::Record<'_>| {
            first = Some(record.index.0);
            Ok::<_, Infallible>(ControlFlow::Break(()))
        };
        wal.reader().entries(SHARD, Index(1)).read(visit).unwrap();
        first.unwrap()
    };
    let pin = |shard: ShardId| if shard == SHARD { Index(10) } else { Index(u64::MAX) };
    assert!(wal.trim_pinned(|_| Index(50), pin, u64::MAX).unwrap() > 0);
    assert!(oldest(&wal) <= 11, "{}", oldest(&wal));
    assert_eq!(wal.trim_pinned(|_| Index(50), pin, u64::MAX).unwrap(), 0);
    let bound = wal.stats().segments as u64 * (32 << 10) / 2;
    assert!(wal.trim_pinned(|_| Index(50), pin, bound).unwrap() > 0);
    let first = oldest(&wal);
    assert!((12..=51).contains(&first), "{first}");
    // No more than the bound wants.
    assert!(first < 45, "{first}");
    // Entries that no snapshot covers stay, whatever their length.
    wal.trim_pinned(|_| Index(50), pin, 0).unwrap();
    assert!((45..=51).contains(&oldest(&wal)), "{}", oldest(&wal));
}
