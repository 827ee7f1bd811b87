//! Writing, loading and merging 64 shards with 100,000 records of 1 KB, on the disk of the target directory.
//!
//! `cargo bench -p stead-store --bench checkpoints`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::checkpointing::merging::{Policy, plan};
use stead_core::ids::{CheckpointNumber, ClusterId, Epoch, Incarnation, NodeId, ShardId, Time};
use stead_core::record::RecordKey;
use stead_core::records::{Piece, Records};
use stead_core::state::{Header, Position};
use stead_core::topology::Topology;
use stead_store::checkpoint::bundle::{Author, BundleNames, Origin};
use stead_store::checkpoint::compact::Merger;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::write::{CheckpointWriter, Plan};
use stead_store::real_disk::RealDisk;

const SHARDS: u32 = 64;
const RECORDS: u32 = 100_000;
const VALUE: usize = 1000;

struct World {
    store: DiskStore,
    names: BundleNames,
    topology: Topology,
    shards: Vec<Records>,
    rng: fastrand::Rng,
    number: CheckpointNumber,
}

impl World {
    fn put(&mut self, key: u32) {
        let name = key.to_string();
        let shard = self.topology.shard_of(self.topology.service_id("s").expect("it was added"), &name);
        let value: Vec<u8> = (0..VALUE).map(|_| self.rng.u8(..)).collect();
        self.shards[shard.0 as usize].put(RecordKey::process(&name).as_bytes(), Blob::from(value));
    }

    fn checkpoint(&mut self, all: bool, lineage: &Lineage) -> (Manifest, Lineage) {
        self.number = self.number.next();
        let (number, topology) = (self.number, self.topology.clone());
        let (bundle, author) = (self.names.draw(number), self.names.author());
        let parts = topology.shards().map(|shard| (shard, Epoch(0))).collect();
        let plan = Plan { number, created: Time(0), topology, parts, bundle, author };
        let mut writer = CheckpointWriter::create(&self.store, plan).expect("create");
        for (at, records) in self.shards.iter_mut().enumerate() {
            let shard = ShardId(at as u32);
            records.begin_snapshot(all);
            let header = Header {
                shard,
                position: Position { colour: number.colour(), ..Position::default() },
                outboxes: BTreeMap::new(),
                received: BTreeMap::new(),
                records: records.len() as u64,
                records_hash: records.hash().to_be_bytes(),
            };
            writer.begin_part(header, all).expect("begin");
            let mut done = false;
            while !done {
                let mut piece = Piece::default();
                done = records.drain_snapshot(128, &mut piece);
                writer.piece(shard, &piece.to_vec()).expect("piece");
            }
            writer.end_part(shard).expect("end");
        }
        writer.seal(lineage).expect("seal").store(&self.store).expect("store")
    }
}

fn checkpoints(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let disk = Arc::new(RealDisk::open(dir.path()).expect("a disk"));
    let mut topology = Topology::new(Incarnation(1));
    topology.ensure("s", SHARDS).expect("a service");
    let mut world = World {
        store: DiskStore::open(disk, "checkpoints").expect("a store"),
        names: BundleNames::new(Author { cluster: ClusterId(1), node: NodeId::FIRST, writer: 1 }),
        topology,
        shards: (0..SHARDS).map(|_| Records::new()).collect(),
        rng: fastrand::Rng::with_seed(1),
        number: CheckpointNumber(0),
    };
    (0..RECORDS).for_each(|key| world.put(key));
    let mut group = c.benchmark_group("checkpoints");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(u64::from(RECORDS) * VALUE as u64));
    group.bench_function("write_all", |b| {
        b.iter(|| {
            let (manifest, _) = world.checkpoint(true, &Lineage::new());
            world.store.delete(&manifest.bundles[0].name).expect("delete");
        });
    });
    let (manifest, mut lineage) = world.checkpoint(true, &Lineage::new());
    for threads in [1, 2] {
        group.bench_function(format!("load_{threads}_threads"), |b| {
            b.iter_with_large_drop(|| black_box(load_parts(&world.store, &manifest, threads).expect("load")));
        });
    }
    for _ in 0..16 {
        for _ in 0..RECORDS / 100 {
            let key = world.rng.u32(0..RECORDS);
            world.put(key);
        }
        lineage = world.checkpoint(false, &lineage).1;
    }
    let merge = plan(&lineage, &Policy::default()).expect("sixteen of one level");
    group.throughput(Throughput::Bytes(merge.bytes));
    group.bench_function("merge", |b| {
        let (author, number) = (world.names.author(), world.number);
        let id = Origin { author, incarnation: Incarnation(1), number };
        b.iter_batched(
            || (),
            |()| {
                let name = world.names.draw(world.number);
                let mut merger = Merger::begin(&world.store, name, id, &lineage, &merge).expect("begin");
                while !merger.step().expect("step") {}
                let merged = merger.finish().expect("finish");
                world.store.delete(&merged.bundle.name).expect("delete");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, checkpoints);
criterion_main!(benches);
