//! A store that version 1 wrote. Every later version must load it.
//!
//! Written by `STEAD_WRITE_FIXTURES=1 cargo test -p stead-store --test it -- fixture`, once for each format version.

use super::chain::merge;
use super::model::{Cluster, INCARNATION, sim_store};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::{CheckpointNumber, Time};
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::checks::{Checked, recorded_checks};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{CheckResult, decided_numbers, newest, read_manifest};
use stead_store::checkpoint::store::DiskStore;
use stead_store::checkpoint::verify::verify_checkpoint;
use stead_store::checkpoint::write::give_up;
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::SimDisk;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints-v1")
}

/// Writes three checkpoints with a merge and a tombstone between them; the hashes come from the model.
fn write() {
    let disk = SimDisk::new(1);
    let store = sim_store(&disk);
    let mut cluster = Cluster::new(42, [2, 1]);
    let mut hashes = String::new();
    for round in 0..3 {
        cluster.run(40);
        let (cut, _) = cluster.checkpoint(&store);
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
    begun().store(&store, 0x5eed).unwrap();
    give_up(&store, &cluster.topology, CheckpointNumber(4), Time(4), cluster.names.writer(), "a fixture")
        .unwrap();
    for path in disk.files() {
        let to = dir().join(path.strip_prefix("checkpoints/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, disk.bytes(&path).unwrap()).unwrap();
    }
    std::fs::write(dir().join("hashes.txt"), hashes).unwrap();
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
fn results_and_marks_of_checks_of_version_1_are_read() {
    let store = DiskStore::attach(Arc::new(RealDisk::open(dir()).unwrap()), "");
    let manifests = [1, 2].map(|number| read_manifest(&store, CheckpointNumber(number)).unwrap());
    let skipped = Some("it did not end 5 times in a row".to_owned());
    assert_eq!(recorded_checks(&store, &manifests[0]).unwrap(), results(1, None).results);
    assert_eq!(recorded_checks(&store, &manifests[1]).unwrap(), results(2, skipped).results);
    let names = begun_names(&store).unwrap();
    assert_eq!(names, ["checks/begun-00000000000000000003-0000000000005eed.json"]);
    assert_eq!(Begun::read(&store, &names[0]).unwrap(), begun());
}

#[test]
fn a_store_of_version_1_loads() {
    if std::env::var_os("STEAD_WRITE_FIXTURES").is_some() {
        write();
    }
    let store = DiskStore::attach(Arc::new(RealDisk::open(dir()).unwrap()), "");
    assert_eq!(decided_numbers(&store).unwrap(), [1, 2, 3, 4].map(CheckpointNumber));
    let found = newest(&store).unwrap();
    assert_eq!(found.decided, CheckpointNumber(4));
    let manifest = found.manifest.unwrap();
    assert_eq!(manifest.number, CheckpointNumber(3));
    let parts = load_parts(&store, &manifest, 1).unwrap();
    let hashes: Vec<String> = parts.iter().map(|part| format!("{:032x}", part.header.hash())).collect();
    let expected = std::fs::read_to_string(dir().join("hashes.txt")).unwrap();
    assert_eq!(hashes, expected.lines().collect::<Vec<_>>());
    assert!(verify_checkpoint(&store, &manifest, 1, &mut |_, _| Default::default()).unwrap().holds());
}
