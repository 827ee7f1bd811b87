//! The write-ahead log on a real disk: 64 shards, batches of 64 entries of 256 bytes, one sync for each write.
//!
//! `cargo bench -p stead-store --bench wal`. The disk is that of the target directory. Figures are entries per second.

#![expect(clippy::unwrap_used, reason = "a benchmark ends at an error")]
#![allow(missing_docs, reason = "criterion's macro makes a public function without any")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use stead_core::ids::{Epoch, Index, ShardId};
use stead_store::disk::Disk;
use stead_store::real_disk::RealDisk;
use stead_store::wal::{Batch, Record, Wal, WalOptions};
use tempfile::TempDir;

const SHARDS: u32 = 64;
const ENTRIES: u64 = 64;
const BYTES: usize = 256;

fn new_wal() -> (TempDir, Arc<dyn Disk>, Wal) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).unwrap());
    let wal = open(&disk);
    (dir, disk, wal)
}

fn open(disk: &Arc<dyn Disk>) -> Wal {
    let options = WalOptions { spares: 4, free_max: 8, create: true, ..WalOptions::default() };
    let visit = |record: Record<'_>| {
        black_box(record);
        Ok::<(), Infallible>(())
    };
    Wal::open(Arc::clone(disk), options, visit).unwrap().0
}

fn fill(batch: &mut Batch, number: u64) {
    batch.clear();
    for entry in 0..ENTRIES {
        let shard = ShardId(entry as u32 % SHARDS);
        batch.push(shard, Epoch(1), Index(number), &[entry as u8; BYTES]);
    }
}

/// Segments are trimmed as soon as they are full, and reused: the steady state of a log.
fn trim(wal: &mut Wal) {
    if wal.stats().segments > 2 {
        wal.trim(|_| Index(u64::MAX)).unwrap();
    }
}

fn one_thread(wal: &mut Wal, writes: u64) -> Duration {
    let mut batch = Batch::new();
    let started = Instant::now();
    for number in 0..writes {
        fill(&mut batch, number);
        wal.append(std::slice::from_ref(&batch)).unwrap();
        wal.sync().unwrap();
        trim(wal);
    }
    started.elapsed()
}

/// Each producer waits for its batch to be durable before it fills the next; the log's owner writes all that wait.
fn producers(wal: &mut Wal, count: u64, writes: u64) -> Duration {
    let (to_log, waiting) = mpsc::channel::<(usize, Batch)>();
    let started = Instant::now();
    thread::scope(|scope| {
        let mut answers = Vec::new();
        for producer in 0..count {
            let (answer, done) = mpsc::sync_channel::<Batch>(1);
            answers.push(answer);
            let to_log = to_log.clone();
            scope.spawn(move || {
                let mut batch = Batch::new();
                for number in 0..writes {
                    fill(&mut batch, number);
                    to_log.send((producer as usize, batch)).unwrap();
                    batch = done.recv().unwrap();
                }
            });
        }
        drop(to_log);
        let (mut owners, mut batches) = (Vec::new(), Vec::new());
        while let Ok((owner, batch)) = waiting.recv() {
            owners.push(owner);
            batches.push(batch);
            for (owner, batch) in waiting.try_iter() {
                owners.push(owner);
                batches.push(batch);
            }
            wal.append(&batches).unwrap();
            wal.sync().unwrap();
            for (owner, batch) in owners.drain(..).zip(batches.drain(..)) {
                answers[owner].send(batch).unwrap();
            }
            trim(wal);
        }
    });
    started.elapsed()
}

fn wal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal");
    group.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));

    group.throughput(Throughput::Elements(ENTRIES));
    let (_dir, _disk, mut wal) = new_wal();
    group.bench_function("append, no sync", |bencher| {
        let mut batch = Batch::new();
        fill(&mut batch, 1);
        bencher.iter_custom(|writes| {
            let mut spent = Duration::ZERO;
            for _ in 0..writes {
                let started = Instant::now();
                fill(&mut batch, 1);
                wal.append(std::slice::from_ref(&batch)).unwrap();
                spent += started.elapsed();
                trim(&mut wal);
            }
            spent
        });
    });
    group.bench_function("1 producer", |bencher| bencher.iter_custom(|writes| one_thread(&mut wal, writes)));
    group.throughput(Throughput::Elements(8 * ENTRIES));
    group.bench_function("8 producers", |bencher| {
        bencher.iter_custom(|writes| producers(&mut wal, 8, writes))
    });
    drop(wal);

    let (_dir, disk, mut wal) = new_wal();
    let mut batch = Batch::new();
    let writes = (256 << 20) / (ENTRIES * BYTES as u64);
    for number in 0..writes {
        fill(&mut batch, number);
        wal.append(std::slice::from_ref(&batch)).unwrap();
    }
    wal.sync().unwrap();
    drop(wal);
    group.throughput(Throughput::Elements(writes * ENTRIES));
    group.bench_function("open 256 MiB, warm cache", |bencher| bencher.iter(|| open(&disk)));
    group.finish();
}

criterion_group!(benches, wal);
criterion_main!(benches);
