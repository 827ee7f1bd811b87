//! Chains of incremental checkpoints, merged and collected on the way, compared with the model; and the cost of
//! merging.

use super::model::{Cluster, Cut, INCARNATION, OWNER, author, sim_store};
use std::collections::BTreeSet;
use stead_core::blob::Blob;
use stead_core::checkpointing::lineage::{Lineage, Merged};
use stead_core::checkpointing::merging::{self, Merge, Policy, renewals};
use stead_core::ids::{CheckpointNumber, Epoch, Micros, ShardId, Time};
use stead_core::record::RecordKey;
use stead_core::records::{Piece, Records};
use stead_core::state::{Header, Position};
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::{BundleNames, Origin};
use stead_store::checkpoint::collect::{Collector, Deletable, DeleteError, Retention};
use stead_store::checkpoint::compact::Merger;
use stead_store::checkpoint::copy::copy;
use stead_store::checkpoint::load::{load_part, load_parts};
use stead_store::checkpoint::manifest::{Manifest, decided_numbers, newest, read_manifest};
use stead_store::checkpoint::store::BlobStore;
use stead_store::checkpoint::verify::verify_checkpoint;
use stead_store::checkpoint::write::{CheckpointWriter, Plan, give_up};
use stead_store::sim_disk::SimDisk;

pub(crate) fn check(store: &dyn BlobStore, manifest: &Manifest, cut: &Cut, threads: usize) {
    for (part, expected) in load_parts(store, manifest, threads).unwrap().into_iter().zip(&cut.hashes) {
        part.records.check().unwrap();
        let state = part.into_state(manifest).unwrap();
        assert_eq!(state.hash(), *expected, "shard {} of checkpoint {}", state.shard(), manifest.number);
    }
    let report = verify_checkpoint(store, manifest, 1, &mut |_, _| Default::default()).unwrap();
    assert!(report.holds(), "{:?}", report.inconsistencies);
    assert_eq!(i64::try_from(report.messages_in_flight()).unwrap(), cut.in_flight);
    assert_eq!(manifest.totals.messages, report.messages_in_flight());
}

pub(crate) fn merge(cluster: &mut Cluster, store: &dyn BlobStore, policy: &Policy) -> bool {
    let Some(merge) = merging::plan(&cluster.lineage, policy) else { return false };
    let merged = run(store, &cluster.names, cluster.number, &cluster.lineage, &merge).unwrap();
    cluster.lineage.apply(&merged)
}

/// Carries out a merge, step by step.
pub(crate) fn run(
    store: &dyn BlobStore,
    names: &BundleNames,
    number: CheckpointNumber,
    lineage: &Lineage,
    merge: &Merge,
) -> Result<Merged, CheckpointError> {
    let id = Origin { author: names.author(), incarnation: INCARNATION, number };
    let mut merger = Merger::begin(store, names.draw(number), id, lineage, merge)?;
    while !merger.step()? {}
    merger.finish()
}

pub(crate) fn in_use(lineage: &Lineage) -> BTreeSet<String> {
    lineage.bundles().iter().map(|bundle| bundle.name.clone()).collect()
}

#[test]
fn every_kept_checkpoint_stays_what_it_was() {
    for seed in [2, 3] {
        println!("seed {seed}");
        let store = sim_store(&SimDisk::new(seed));
        let other = sim_store(&SimDisk::new(seed + 1));
        let mut cluster = Cluster::new(seed, [1 + (seed % 3) as u32, 2]);
        let policy = Policy { fan_in: 3, growth: 150, growth_bytes_min: 0, ..Policy::default() };
        let mut cuts = Vec::new();
        let mut collector = Collector::new();
        for round in 1..=18u64 {
            cluster.run(25);
            if seed % 4 == 3 && round % 7 == 0 {
                let (_, sealed) = cluster.seal(&store);
                drop(sealed);
                give_up(
                    &store,
                    &cluster.topology,
                    cluster.number,
                    Time(round),
                    cluster.names.author(),
                    "a test",
                )
                .unwrap();
                // The records of its snapshots are in no lineage.
                cluster.fail_next();
                cuts.push(Cut::default());
                continue;
            }
            let (cut, manifest) = cluster.checkpoint(&store);
            check(&store, &manifest, &cut, 1 + (round % 3) as usize);
            cuts.push(cut);
            let pinned = BTreeSet::from([CheckpointNumber(5)]);
            let retention = Retention { keep: 3, pinned, grace: Micros(2), ..Retention::default() };
            let running = in_use(&cluster.lineage);
            collector.collect(&store, OWNER, Time(round), &retention, &running).unwrap();
            if round % 2 == 0 {
                merge(&mut cluster, &store, &policy);
            }
            if round == 15 {
                copy(&store, &other, &manifest).unwrap();
            }
            let all = if round % 6 == 0 { decided_numbers(&store).unwrap() } else { Vec::new() };
            for number in all {
                match read_manifest(&store, number) {
                    Ok(manifest) => check(&store, &manifest, &cuts[number.0 as usize - 1], 1),
                    Err(CheckpointError::GivenUp { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            // One level has at most two unmerged bundles, and a merge waits for at most one round.
            let most = manifest.parts.iter().map(|part| part.sections.len()).max().unwrap();
            assert!(most <= 12, "{most} sections");
        }
        let kept = decided_numbers(&store).unwrap();
        assert!(
            kept.contains(&CheckpointNumber(5))
                && kept.contains(&CheckpointNumber(18))
                && !kept.contains(&CheckpointNumber(4)),
            "{kept:?}"
        );
        let copied = newest(&other).unwrap().manifest.unwrap();
        check(&other, &copied, &cuts[14], 1);
    }
}

#[test]
fn the_newest_checkpoint_and_pinned_ones_are_not_deleted() {
    let store = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [1, 1]);
    for _ in 0..3 {
        cluster.run(10);
        cluster.checkpoint(&store);
    }
    let pinned = BTreeSet::from([CheckpointNumber(2)]);
    let delete = |number| {
        let number = CheckpointNumber(number);
        let unless_pinned = |delete: &dyn Fn() -> _| (!pinned.contains(&number)).then(delete);
        Deletable::find(&store, number, &BTreeSet::new())?.delete(&store, unless_pinned)
    };
    assert!(matches!(delete(3), Err(DeleteError::Newest(_))));
    assert!(matches!(delete(2), Err(DeleteError::Pinned(_))));
    assert!(read_manifest(&store, CheckpointNumber(2)).is_ok());
    delete(1).unwrap();
    let gone = delete(1);
    assert!(matches!(gone, Err(DeleteError::Checkpoint(CheckpointError::Unknown(CheckpointNumber(1))))));
    let mut collector = Collector::new();
    let retention = Retention { keep: 0, grace: Micros(10), ..Retention::default() };
    let first = collector.collect(&store, OWNER, Time(0), &retention, &BTreeSet::new()).unwrap();
    assert_eq!(first.checkpoints, [CheckpointNumber(2)]);
    assert!(first.bundles.is_empty());
    let (waiting, before) = (first.waiting, store.list("bundles/").unwrap().len());
    assert_eq!(
        collector.collect(&store, OWNER, Time(9), &retention, &BTreeSet::new()).unwrap().waiting,
        waiting
    );
    let last = collector.collect(&store, OWNER, Time(10), &retention, &BTreeSet::new()).unwrap();
    assert_eq!(last.bundles.len(), waiting);
    assert_eq!(store.list("bundles/").unwrap().len(), before - waiting);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    load_parts(&store, &manifest, 2).unwrap();
}

#[test]
fn a_number_is_decided_once() {
    let store = sim_store(&SimDisk::new(1));
    let mut cluster = Cluster::new(1, [1, 1]);
    let (_, sealed) = cluster.seal(&store);
    give_up(&store, &cluster.topology, CheckpointNumber(1), Time(0), cluster.names.author(), "too slow")
        .unwrap();
    // The same tombstone again is the same decision.
    give_up(&store, &cluster.topology, CheckpointNumber(1), Time(0), cluster.names.author(), "too slow")
        .unwrap();
    assert!(matches!(sealed.unwrap().store(&store), Err(CheckpointError::Decided(CheckpointNumber(1)))));
    let found = newest(&store).unwrap();
    assert!(found.manifest.is_none() && found.decided == CheckpointNumber(1));
    let error = read_manifest(&store, CheckpointNumber(1)).unwrap_err();
    assert_eq!(error.to_string(), "checkpoint 1 was given up: too slow; use another one");
    cluster.fail_next();
    let (_, manifest) = cluster.checkpoint(&store);
    let late =
        give_up(&store, &cluster.topology, manifest.number, Time(0), cluster.names.author(), "too late");
    assert!(matches!(late, Err(CheckpointError::Decided(CheckpointNumber(2)))));
}

/// 1 % of the records changed at random for each checkpoint: over 20 of them, merges included, at most 3 % of the state is
/// written for each; and a load reads about twice the state, however long the chain gets.
#[test]
fn merging_costs_little_and_keeps_loads_short() {
    const RECORDS: u32 = 10_000;
    let (mut rng, store) = (fastrand::Rng::with_seed(3), sim_store(&SimDisk::new(3)));
    let mut topology = Topology::new(INCARNATION);
    topology.ensure("s", 1).unwrap();
    let (shard, names) = (ShardId(0), BundleNames::new(author(1)));
    let mut records = Records::new();
    let put = |records: &mut Records, rng: &mut fastrand::Rng, key: u32| {
        let value: Vec<u8> = (0..100).map(|_| rng.u8(..)).collect();
        records.put(RecordKey::process(&key.to_string()).as_bytes(), Blob::from(value));
    };
    for key in 0..RECORDS {
        put(&mut records, &mut rng, key);
    }
    let policy = Policy { growth_bytes_min: 1000, ..Policy::default() };
    let mut lineage = Lineage::new();
    let mut written = Vec::new();
    let mut renewed = 0;
    for number in (1..=130).map(CheckpointNumber) {
        let plan = Plan {
            number,
            created: Time(0),
            topology: topology.clone(),
            parts: [(shard, Epoch(0))].into(),
            bundle: names.draw(number),
            author: names.author(),
        };
        let mut writer = CheckpointWriter::create(&store, plan).unwrap();
        let all = !renewals(&lineage, &policy).is_empty();
        renewed += u32::from(all);
        records.begin_snapshot(all);
        let position = Position { colour: number.colour(), ..Position::default() };
        let (count, records_hash) = (records.len() as u64, records.hash().to_be_bytes());
        let (outboxes, received) = Default::default();
        writer
            .begin_part(Header { shard, position, outboxes, received, records: count, records_hash }, all)
            .unwrap();
        let mut done = false;
        while !done {
            let mut piece = Piece::default();
            done = records.drain_snapshot(100, &mut piece);
            writer.piece(shard, &piece.to_vec()).unwrap();
        }
        writer.end_part(shard).unwrap();
        let (manifest, next) = writer.seal(&lineage).unwrap().store(&store).unwrap();
        let state = records.bytes() as u64;
        let read = manifest.totals.section_bytes;
        assert!(read * 100 <= state * 250, "checkpoint {number} is loaded from {read} bytes for {state}");
        assert!(manifest.parts[0].sections.len() <= 32);
        lineage = next;
        let mut bytes = manifest.totals.written_bytes;
        if let Some(merge) = merging::plan(&lineage, &policy) {
            let merged = run(&store, &names, number, &lineage, &merge).unwrap();
            bytes += merged.bundle.bytes;
            assert!(lineage.apply(&merged));
        }
        written.push(bytes);
        for _ in 0..RECORDS / 100 {
            let key = rng.u32(0..RECORDS);
            put(&mut records, &mut rng, key);
        }
        if number.0 % 40 == 0 {
            load_part(&store, &manifest, shard).unwrap();
        }
    }
    let state = records.bytes() as u64;
    let twenty: u64 = written[1..21].iter().sum();
    assert!(twenty * 100 <= state * 3 * 20, "{twenty} bytes in 20 checkpoints of {state}");
    let all: u64 = written[1..].iter().sum();
    println!(
        "20: {:.2} %, all: {:.2} % of the state for each",
        twenty as f64 * 5.0 / state as f64,
        all as f64 * 100.0 / 129.0 / state as f64
    );
    assert!(all * 100 <= state * 4 * 129);
    assert!(renewed > 0, "full parts keep the amount small that a recovery reads");
}

#[test]
fn a_merge_of_another_history_changes_nothing() {
    let disk = SimDisk::new(1);
    let store = sim_store(&disk);
    let mut cluster = Cluster::new(4, [1, 1]);
    let policy = Policy { fan_in: 2, growth: 1_000_000, growth_bytes_min: 0, ..Policy::default() };
    for _ in 0..4 {
        cluster.run(20);
        cluster.checkpoint(&store);
    }
    let planned = merging::plan(&cluster.lineage, &policy).unwrap();
    let merged = run(&store, &cluster.names, cluster.number, &cluster.lineage, &planned).unwrap();
    // An abandoned merge leaves nothing.
    let before = disk.files();
    let (author, number) = (cluster.names.author(), cluster.number);
    let id = Origin { author, incarnation: INCARNATION, number };
    let name = cluster.names.draw(cluster.number);
    let mut broken_off = Merger::begin(&store, name, id, &cluster.lineage, &planned).unwrap();
    broken_off.step().unwrap();
    drop(broken_off);
    assert_eq!(disk.files(), before);
    // A checkpoint that is taken while the merge runs does not disturb it.
    cluster.run(20);
    let (_, before) = cluster.checkpoint(&store);
    assert!(cluster.lineage.apply(&merged));
    let applied = cluster.lineage.clone();
    assert!(!cluster.lineage.apply(&merged), "it was applied already");
    assert_eq!(cluster.lineage, applied);
    cluster.run(5);
    let (cut, after) = cluster.checkpoint(&store);
    check(&store, &after, &cut, 1);
    assert!(after.bundles.len() < before.bundles.len());
    // Full parts that were added meanwhile leave no sections for the merge to replace.
    cluster.fail_next();
    cluster.run(5);
    let (cut, manifest) = cluster.checkpoint(&store);
    assert!(!cluster.lineage.apply(&merged));
    check(&store, &manifest, &cut, 1);
}
