//! Reading 500 entries of one shard out of the middle of a log of 96,000 entries, and of one of ten times as many: what a
//! replica costs that has been away for a while. 64 shards take turns, each with entries of 256 bytes.
//!
//! `cargo bench -p stead-store --bench catch_up`. The disk is that of the target directory. Instructions, which other load
//! does not change, are counted by callgrind around [`measured`]: see docs/benchmarks.md.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::convert::Infallible;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_core::ids::{Epoch, Index, ShardId};
use stead_store::real_disk::RealDisk;
use stead_store::wal::{Batch, Record, Wal, WalOptions};

const SHARDS: u32 = 64;
const READ: u64 = 500;

/// Runs the work that is timed, and that callgrind counts.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Reads entries of a shard in the middle of its `each` entries.
fn read(wal: &Wal, each: u64) -> u64 {
    let mut count = 0;
    let visit = |record: Record<'_>| {
        black_box(record);
        count += 1;
        let is_enough = count == READ;
        Ok::<_, Infallible>(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    wal.reader().entries(ShardId(7), Index(each / 2)).read(visit).expect("the log is whole");
    count
}

fn catch_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("catch up");
    group.sample_size(10).throughput(Throughput::Elements(READ));
    for each in [1_500, 15_000] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let disk = Arc::new(RealDisk::open(dir.path()).expect("a disk"));
        let options = WalOptions { create: true, ..WalOptions::default() };
        let (mut wal, _) = Wal::open(disk, options, |_| Ok::<(), Infallible>(())).expect("a new log");
        let mut batch = Batch::new();
        for index in 1..=each {
            batch.clear();
            (0..SHARDS).for_each(|shard| batch.push(ShardId(shard), Epoch(1), Index(index), &[7; 256]));
            wal.append(&[&batch]).expect("there is room");
        }
        wal.sync().expect("a sync");
        assert_eq!(read(&wal, each), READ);
        let id = BenchmarkId::from_parameter(each * u64::from(SHARDS));
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|times| {
                (0..times)
                    .map(|_| {
                        measured(&mut || {
                            black_box(read(&wal, each));
                        })
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, catch_up);
criterion_main!(benches);
