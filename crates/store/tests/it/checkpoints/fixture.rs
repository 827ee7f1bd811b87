//! Stores that each version wrote. Every later version must load them.
//!
//! Written by `STEAD_WRITE_FIXTURES=1 cargo test -p stead-store --test it -- fixture`, once for each format version; it
//! writes that of today's.

use super::chain::{merge, run};
use super::model::{CLUSTER, Cluster, INCARNATION, OWNER, author, sim_store};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stead_core::checkpointing::merging::{self, Policy};
use stead_core::ids::{CheckpointNumber, NodeId, Time};
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::bundle::BundleNames;
use stead_store::checkpoint::checks::{Checked, recorded_checks};
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::load::{LoadedPart, load_parts};
use stead_store::checkpoint::manifest::{
    CheckResult, Decision, MANIFEST_MAX, Manifest, decided_numbers, manifest_name, newest, read_decision,
    read_manifest,
};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::verify::verify_checkpoint;
use stead_store::checkpoint::write::{CheckpointWriter, Plan, give_up};
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::SimDisk;

fn dir(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/checkpoints-v{version}"))
}

fn store(version: u32) -> DiskStore {
    DiskStore::attach(Arc::new(RealDisk::open(dir(version)).unwrap()), "")
}

/// Writes three checkpoints of two nodes with a merge and a tombstone between them; the hashes come from the model.
fn write() {
    let disk = SimDisk::new(1);
    let store = sim_store(&disk);
    let mut cluster = Cluster::new(42, [2, 1]);
    cluster.add_node();
    let mut hashes = String::new();
    for round in 0..3 {
        cluster.run(40);
        let (cut, _) = cluster.checkpoint_of_all(&store);
        hashes = cut.hashes.iter().fold(String::new(), |mut text, hash| {
            writeln!(text, "{hash:032x}").expect("a String takes it");
            text
        });
        if round == 1 {
            assert!(merge(
                &mut cluster,
                &store,
                &Policy { fan_in: 2, growth: 10, growth_bytes_min: 0, ..Policy::default() }
            ));
        }
    }
    for (number, skipped) in [(1, None), (2, Some("it did not end 5 times in a row".to_owned()))] {
        results(number, skipped).store(&store).unwrap();
    }
    begun().store(&store, &begun().name(0x5eed)).unwrap();
    give_up(&store, &cluster.topology, CheckpointNumber(4), Time(4), cluster.names.author(), "a fixture")
        .unwrap();
    for path in disk.files() {
        let to = dir(2).join(path.strip_prefix("checkpoints/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, disk.bytes(&path).unwrap()).unwrap();
    }
    std::fs::write(dir(2).join("hashes.txt"), hashes).unwrap();
}

/// Returns results of checks: one that failed, and one that holds or was left out.
fn results(number: u64, skipped: Option<String>) -> Checked {
    let result = |service: &str, failure: Option<&str>, skipped: Option<String>| CheckResult {
        service: service.to_owned(),
        failure: failure.map(str::to_owned),
        skipped,
    };
    let failure = (number == 1).then_some("one too many");
    let results = vec![result("first", failure, None), result("second", None, skipped)];
    Checked {
        incarnation: INCARNATION,
        number: CheckpointNumber(number),
        checked: Time(1_700_000_000_000_000),
        results,
    }
}

fn begun() -> Begun {
    Begun { incarnation: INCARNATION, number: CheckpointNumber(3), service: "second".to_owned() }
}

#[test]
fn results_and_marks_of_checks_are_read() {
    for version in [1, 2] {
        let store = store(version);
        let manifests = [1, 2].map(|number| read_manifest(&store, CheckpointNumber(number)).unwrap());
        let skipped = Some("it did not end 5 times in a row".to_owned());
        assert_eq!(recorded_checks(&store, &manifests[0]).unwrap(), results(1, None).results);
        assert_eq!(recorded_checks(&store, &manifests[1]).unwrap(), results(2, skipped).results);
        let names = begun_names(&store).unwrap();
        assert_eq!(names, ["checks/begun-00000000000000000003-0000000000005eed.json"]);
        assert_eq!(Begun::read(&store, &names[0]).unwrap(), begun());
    }
}

/// Loads the newest checkpoint of a fixture, and compares it with the model's hashes.
fn load(version: u32) -> (DiskStore, Manifest) {
    let store = store(version);
    assert_eq!(decided_numbers(&store).unwrap(), [1, 2, 3, 4].map(CheckpointNumber));
    let found = newest(&store).unwrap();
    assert_eq!(found.decided, CheckpointNumber(4));
    let manifest = found.manifest.unwrap();
    assert_eq!(manifest.number, CheckpointNumber(3));
    let parts = load_parts(&store, &manifest, 1).unwrap();
    let hashes: Vec<String> = parts.iter().map(|part| format!("{:032x}", part.header.hash())).collect();
    let expected = std::fs::read_to_string(dir(version).join("hashes.txt")).unwrap();
    assert_eq!(hashes, expected.lines().collect::<Vec<_>>());
    assert!(verify_checkpoint(&store, &manifest, 1, &mut |_, _| Default::default()).unwrap().holds());
    // A copy has the same bytes, in the same version.
    let stored = store.get(&manifest_name(manifest.number), MANIFEST_MAX).unwrap();
    assert_eq!(manifest.encode(), stored);
    (store, manifest)
}

#[test]
fn a_store_of_version_2_loads() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        write();
    }
    let (store, manifest) = load(2);
    assert_eq!(manifest.cluster, Some(CLUSTER));
    let nodes: Vec<u32> = manifest.parts.iter().map(|part| part.node.0).collect();
    assert_eq!(nodes, [1, 2, 1]);
    let Decision::GivenUp(tombstone) = read_decision(&store, CheckpointNumber(4)).unwrap() else {
        panic!("a tombstone")
    };
    assert_eq!(tombstone.cluster, Some(CLUSTER));
}

/// Version 1 had one node, and did not name its cluster. The next checkpoint builds upon its bundles.
#[test]
fn a_store_of_version_1_loads_and_is_built_upon() {
    let (_, manifest) = load(1);
    assert_eq!(manifest.cluster, None);
    assert!(manifest.parts.iter().all(|part| part.node == NodeId::FIRST));
    manifest.check_cluster(CLUSTER).unwrap();

    let disk = SimDisk::new(1);
    for path in files(&dir(1)) {
        let name = path.strip_prefix(dir(1)).unwrap().to_str().unwrap().to_owned();
        disk.put(&format!("checkpoints/{name}"), &std::fs::read(&path).unwrap());
    }
    let store = sim_store(&disk);
    let (number, names) = (CheckpointNumber(5), BundleNames::new(author(7)));
    let plan = Plan {
        number,
        created: Time(5),
        topology: manifest.topology().unwrap(),
        parts: manifest.parts.iter().map(|part| (part.shard, part.epoch)).collect(),
        bundle: names.draw(number),
        author: names.author(),
    };
    let mut writer = CheckpointWriter::create(&store, plan).unwrap();
    for LoadedPart { mut header, .. } in load_parts(&store, &manifest, 1).unwrap() {
        let shard = header.shard;
        header.position.colour = number.colour();
        writer.begin_part(header, false).unwrap();
        writer.end_part(shard).unwrap();
    }
    let (next, lineage) = writer.seal(&manifest.lineage()).unwrap().store(&store).unwrap();
    assert!(next.bundles.len() > manifest.bundles.len());
    load_parts(&store, &next, 1).unwrap();
    let mut collector = Collector::new();
    let collected = collector.collect(&store, OWNER, Time(9), &Retention::default(), &BTreeSet::new());
    assert_eq!(collected.unwrap().tombstones, [CheckpointNumber(4)]);
    let policy = Policy { fan_in: 2, growth: 10, growth_bytes_min: 0, ..Policy::default() };
    let planned = merging::plan(&lineage, &policy).unwrap();
    let merged = run(&store, &names, number, &lineage, &planned).unwrap();
    assert!(lineage.clone().apply(&merged));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.append(&mut self::files(&path)) } else { files.push(path) }
    }
    files
}
