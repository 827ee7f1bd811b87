//! Damaged, exchanged and foreign objects are refused with the object's name and the reason.

use super::chain::merge;
use super::model::{Cluster, INCARNATION, OWNER, sim_store};
use std::collections::BTreeSet;
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::{CheckpointNumber, ClusterId, Incarnation, Micros, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::copy::{Owner, cluster_of_copies, copy};
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{Totals, manifest_name, newest, read_manifest};
use stead_store::checkpoint::store::{BlobStore, DiskStore};
use stead_store::checkpoint::verify::{Inconsistency, verify_checkpoint};
use stead_store::checkpoint::write::give_up;
use stead_store::sim_disk::SimDisk;

fn small(seed: u64) -> (SimDisk, DiskStore, Cluster) {
    let disk = SimDisk::new(seed);
    let store = sim_store(&disk);
    let mut cluster = Cluster::new(seed, [1, 1]);
    cluster.keys = 6;
    cluster.value_max = 12;
    for _ in 0..3 {
        cluster.run(12);
        cluster.checkpoint(&store);
    }
    (disk, store, cluster)
}

fn name_of(error: &CheckpointError) -> &str {
    match error {
        CheckpointError::Damaged { name, .. }
        | CheckpointError::Version { name, .. }
        | CheckpointError::Incarnation { name, .. }
        | CheckpointError::Differs { name, .. } => name,
        other => panic!("{other}"),
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_manifest_is_refused() {
    let (disk, store, _) = small(1);
    let name = manifest_name(CheckpointNumber(3));
    let path = format!("checkpoints/{name}");
    let len = disk.bytes(&path).unwrap().len() as u64;
    for at in 0..len {
        let bit = (at % 8) as u8;
        disk.flip_bit(&path, at, bit).unwrap();
        let error = read_manifest(&store, CheckpointNumber(3)).unwrap_err();
        assert_eq!(name_of(&error), name, "byte {at}: {error}");
        assert!(newest(&store).is_err(), "it is not skipped");
        disk.flip_bit(&path, at, bit).unwrap();
    }
    read_manifest(&store, CheckpointNumber(3)).unwrap();
    let whole = disk.bytes(&path).unwrap();
    for len in 0..whole.len() {
        disk.put(&path, &whole[..len]);
        assert_eq!(name_of(&read_manifest(&store, CheckpointNumber(3)).unwrap_err()), name, "cut to {len}");
    }
    let mut longer = whole.clone();
    longer.push(b'\n');
    disk.put(&path, &longer);
    assert!(read_manifest(&store, CheckpointNumber(3)).is_err());
}

#[test]
fn a_flipped_bit_anywhere_in_a_bundle_is_refused_or_changes_nothing_that_is_read() {
    let (disk, store, _) = small(2);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    let hashes = || -> Result<Vec<u128>, CheckpointError> {
        Ok(load_parts(&store, &manifest, 1)?.iter().map(|part| part.header.hash()).collect())
    };
    let expected = hashes().unwrap();
    for bundle in &manifest.bundles {
        let path = format!("checkpoints/{}", bundle.name);
        let mut refused = 0;
        for at in 0..bundle.bytes {
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
            match hashes() {
                Ok(found) => assert_eq!(found, expected, "byte {at} of {}", bundle.name),
                Err(error) => {
                    assert_eq!(name_of(&error), bundle.name);
                    refused += 1;
                }
            }
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
        }
        // Only the headers that older checkpoints alone need are not read.
        assert!(refused * 2 > bundle.bytes, "{refused} of {}", bundle.bytes);
        let whole = disk.bytes(&path).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            disk.put(&path, &whole[..len]);
            assert_eq!(name_of(&hashes().unwrap_err()), bundle.name);
        }
        disk.put(&path, &whole);
    }
}

#[test]
fn exchanged_objects_are_refused() {
    let (disk, store, _) = small(3);
    let (other_disk, _, _) = small(4);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    let paths: Vec<String> =
        manifest.bundles.iter().map(|bundle| format!("checkpoints/{}", bundle.name)).collect();
    let foreign = other_disk.files().into_iter().find(|path| path.contains("bundles/")).unwrap();
    for at in 0..paths.len() {
        let whole = disk.bytes(&paths[at]).unwrap();
        disk.put(&paths[at], &disk.bytes(&paths[(at + 1) % paths.len()]).unwrap());
        assert_eq!(name_of(&load_parts(&store, &manifest, 1).err().unwrap()), manifest.bundles[at].name);
        disk.put(&paths[at], &other_disk.bytes(&foreign).unwrap());
        assert_eq!(name_of(&load_parts(&store, &manifest, 1).err().unwrap()), manifest.bundles[at].name);
        disk.put(&paths[at], &whole);
    }
    let name = manifest_name(CheckpointNumber(3));
    disk.put(
        &format!("checkpoints/{name}"),
        &disk.bytes(&format!("checkpoints/{}", manifest_name(CheckpointNumber(2)))).unwrap(),
    );
    let error = read_manifest(&store, CheckpointNumber(3)).unwrap_err();
    assert_eq!(name_of(&error), name);
    assert!(error.to_string().contains("about checkpoint 2"), "{error}");
    store.delete(&manifest.bundles[0].name).unwrap();
    let missing = load_parts(&store, &read_manifest(&store, CheckpointNumber(2)).unwrap(), 1).err().unwrap();
    assert!(matches!(&missing, CheckpointError::Store(error) if error.is_not_found()), "{missing}");
}

#[test]
fn unknown_versions_are_distinguished_from_damage() {
    let (disk, store, _) = small(5);
    let path = format!("checkpoints/{}", manifest_name(CheckpointNumber(3)));
    let text = String::from_utf8(disk.bytes(&path).unwrap()).unwrap();
    disk.put(&path, text.replace("\"format\":2", "\"format\":3").as_bytes());
    let error = read_manifest(&store, CheckpointNumber(3)).unwrap_err();
    assert!(matches!(error, CheckpointError::Version { found: 3, known: 2, .. }), "{error}");
    // Versions below have another checksum.
    disk.put(&path, text.replace("\"format\":2", "\"format\":1").as_bytes());
    assert!(matches!(read_manifest(&store, CheckpointNumber(3)), Err(CheckpointError::Damaged { .. })));
    disk.put(&path, br#"{"stead":"manifest","format":9,"blocks":[]}"#);
    assert!(matches!(
        read_manifest(&store, CheckpointNumber(3)),
        Err(CheckpointError::Version { found: 9, .. })
    ));
    let manifest = read_manifest(&store, CheckpointNumber(2)).unwrap();
    let bundle = format!("checkpoints/{}", manifest.bundles.last().unwrap().name);
    let mut bytes = disk.bytes(&bundle).unwrap();
    bytes[8] = 3;
    disk.put(&bundle, &bytes);
    let error = load_parts(&store, &manifest, 1).err().unwrap();
    assert!(matches!(error, CheckpointError::Version { found: 3, known: 2, .. }), "{error}");
    disk.put("checkpoints/owner/owner.json", br#"{"stead":"copies","format":3,"clusters":[]}"#);
    let claimed = Owner { cluster: ClusterId(1), incarnation: INCARNATION }.claim(&store);
    for error in [claimed.unwrap_err(), cluster_of_copies(&store).unwrap_err()] {
        assert!(matches!(error, CheckpointError::Version { found: 3, known: 1, .. }), "{error}");
    }
}

#[test]
fn a_collection_stops_at_a_manifest_that_it_can_not_read() {
    let (disk, store, mut cluster) = small(6);
    merge(&mut cluster, &store, &Policy { fan_in: 2, growth: 100, growth_bytes_min: 0, ..Policy::default() });
    give_up(&store, &cluster.topology, CheckpointNumber(4), Time(0), cluster.names.author(), "a test")
        .unwrap();
    for number in 1..=4 {
        let path = format!("checkpoints/{}", manifest_name(CheckpointNumber(number)));
        disk.flip_bit(&path, 70, 1).unwrap();
        let before = disk.files();
        let retention = Retention { keep: 1, grace: Micros(0), ..Retention::default() };
        let result = Collector::new().collect(&store, OWNER, Time(1), &retention, &BTreeSet::new());
        assert_eq!(name_of(&result.unwrap_err()), manifest_name(CheckpointNumber(number)));
        assert_eq!(disk.files(), before);
        disk.flip_bit(&path, 70, 1).unwrap();
    }
    let retention = Retention { keep: 1, grace: Micros(0), ..Retention::default() };
    let foreign = Collector::new().collect(
        &store,
        Owner { incarnation: Incarnation(8), ..OWNER },
        Time(1),
        &retention,
        &BTreeSet::new(),
    );
    assert!(matches!(foreign, Err(CheckpointError::Incarnation { found: INCARNATION, .. })));
    Collector::new().collect(&store, OWNER, Time(1), &retention, &BTreeSet::new()).unwrap();
    load_parts(&store, &read_manifest(&store, CheckpointNumber(3)).unwrap(), 1).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_a_bundle_is_never_copied() {
    let (disk, store, _) = small(7);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    for bundle in &manifest.bundles {
        let path = format!("checkpoints/{}", bundle.name);
        for at in 0..bundle.bytes {
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
            let target = sim_store(&SimDisk::new(1));
            let error = copy(&store, &target, &manifest).unwrap_err();
            assert_eq!(name_of(&error), bundle.name, "byte {at}: {error}");
            assert!(newest(&target).unwrap().manifest.is_none());
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
        }
    }
}

#[test]
fn a_bundle_that_can_not_be_read_at_the_target_is_sent_again() {
    let (_, store, mut cluster) = small(8);
    let disk = SimDisk::new(1);
    let target = sim_store(&disk);
    let first = newest(&store).unwrap().manifest.unwrap();
    copy(&store, &target, &first).unwrap();
    let damaged = &first.bundles[0];
    disk.flip_bit(&format!("checkpoints/{}", damaged.name), damaged.bytes - 60, 1).unwrap();
    assert_eq!(name_of(&load_parts(&target, &first, 1).err().unwrap()), damaged.name);
    let (_, second) = cluster.checkpoint(&store);
    assert!(second.bundles.contains(damaged));
    assert_eq!(copy(&store, &target, &second).unwrap().bundles, 2);
    for manifest in [first, second] {
        load_parts(&target, &manifest, 1).unwrap();
    }
}

#[test]
fn impossible_sizes_in_a_manifest_are_refused() {
    let (_, store, _) = small(9);
    let mut manifest = newest(&store).unwrap().manifest.unwrap();
    for part in &mut manifest.parts {
        assert!(part.sections.len() > 1);
        part.sections.iter_mut().for_each(|section| section.bytes = u64::MAX);
    }
    for threads in [1, 2] {
        let error = load_parts(&store, &manifest, threads).err().unwrap();
        assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_manifest_whose_totals_are_not_those_of_its_parts_is_reported() {
    let (_, store, _) = small(10);
    let manifest = newest(&store).unwrap().manifest.unwrap();
    let change: [fn(&mut Totals) -> &mut u64; 5] = [
        |totals| &mut totals.records,
        |totals| &mut totals.section_bytes,
        |totals| &mut totals.written_bytes,
        |totals| &mut totals.messages,
        |totals| &mut totals.message_bytes,
    ];
    for total in change {
        let mut manifest = manifest.clone();
        *total(&mut manifest.totals) += 1;
        let report = verify_checkpoint(&store, &manifest, 1, &mut |_, _| Default::default()).unwrap();
        assert!(matches!(report.inconsistencies[..], [Inconsistency::Total { .. }]), "{report:?}");
    }
}
