//! The results of checks beside a checkpoint's manifest.

use super::model::{Cluster, INCARNATION, OWNER, sim_store};
use std::collections::BTreeSet;
use stead_core::ids::{CheckpointNumber, Micros, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::checks::{CHECKS, CheckOutcome, Checked, checks_name, recorded_checks};
use stead_store::checkpoint::collect::{Collector, Deletable, Retention};
use stead_store::checkpoint::copy::copy;
use stead_store::checkpoint::manifest::CheckResult;
use stead_store::checkpoint::store::{BlobStore, Put};
use stead_store::sim_disk::SimDisk;

fn checked(number: CheckpointNumber, failure: Option<&str>) -> Checked {
    let service = "service".to_owned();
    let results = vec![CheckResult { service, failure: failure.map(str::to_owned), skipped: None }];
    Checked { incarnation: INCARNATION, number, checked: Time(7), results }
}

#[test]
fn results_are_read_back_copied_late_and_go_with_their_checkpoint() {
    let (store, other) = (sim_store(&SimDisk::new(1)), sim_store(&SimDisk::new(2)));
    let mut cluster = Cluster::new(1, [1, 2]);
    let manifests: Vec<_> = (0..3).map(|_| cluster.checkpoint(&store).1).collect();
    assert_eq!(recorded_checks(&store, &manifests[0]).unwrap(), []);
    copy(&store, &other, &manifests[0]).unwrap();
    for (manifest, failure) in manifests.iter().zip([Some("one too many"), None, None]) {
        let checked = checked(manifest.number, failure);
        assert_eq!(checked.store(&store).unwrap(), Put::Created);
        assert_eq!(checked.store(&store).unwrap(), Put::Exists);
        assert_eq!(recorded_checks(&store, manifest).unwrap(), checked.results);
    }
    // They were written after the first copy, and are copied with the second one.
    copy(&store, &other, &manifests[1]).unwrap();
    assert_eq!(
        other.list(CHECKS).unwrap(),
        [checks_name(CheckpointNumber(1)), checks_name(CheckpointNumber(2))]
    );

    let retention = Retention { keep: 2, grace: Micros(0), ..Retention::default() };
    let in_use = super::chain::in_use(&cluster.lineage);
    Collector::new().collect(&store, OWNER, Time(9), &retention, &in_use).unwrap();
    assert_eq!(
        store.list(CHECKS).unwrap(),
        [checks_name(CheckpointNumber(2)), checks_name(CheckpointNumber(3))]
    );
    let deletable = Deletable::find(&store, CheckpointNumber(2), &BTreeSet::new()).unwrap();
    deletable.delete(&store, |delete| Some(delete())).unwrap();
    assert_eq!(store.list(CHECKS).unwrap(), [checks_name(CheckpointNumber(3))]);
}

#[test]
fn results_that_are_damaged_or_another_checkpoint_s_are_refused() {
    let store = sim_store(&SimDisk::new(3));
    let manifest = Cluster::new(3, [1, 2]).checkpoint(&store).1;
    let name = checks_name(manifest.number);
    checked(manifest.number, Some("one too many")).store(&store).unwrap();
    let good = store.get(&name, 4096).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        store.delete(&name).unwrap();
        store.put_new(&name, &bad).unwrap();
        recorded_checks(&store, &manifest).unwrap_err();
    }
    store.delete(&name).unwrap();
    checked(manifest.number.next(), None).store(&store).unwrap();
    let moved = store.get(&checks_name(manifest.number.next()), 4096).unwrap();
    store.put_new(&name, &moved).unwrap();
    let refused = recorded_checks(&store, &manifest);
    assert!(matches!(refused, Err(CheckpointError::Damaged { .. })), "{refused:?}");
}

#[test]
fn results_with_a_check_left_out_are_replaced_and_others_stay() {
    let store = sim_store(&SimDisk::new(4));
    let manifest = Cluster::new(4, [1, 2]).checkpoint(&store).1;
    let mut left_out = checked(manifest.number, None);
    left_out.results[0].skipped = Some("it did not end 5 times".to_owned());
    assert_eq!(left_out.outcome(), CheckOutcome::NotChecked);
    assert_eq!(left_out.store(&store).unwrap(), Put::Created);
    assert_eq!(recorded_checks(&store, &manifest).unwrap(), left_out.results);
    let found = checked(manifest.number, Some("one too many"));
    assert_eq!(found.store(&store).unwrap(), Put::Created);
    assert_eq!(left_out.store(&store).unwrap(), Put::Exists);
    assert_eq!(recorded_checks(&store, &manifest).unwrap(), found.results);
}

#[test]
fn marks_of_checks_outlive_their_checkpoint_stay_at_home_and_are_whole() {
    let (store, other) = (sim_store(&SimDisk::new(5)), sim_store(&SimDisk::new(6)));
    let mut cluster = Cluster::new(5, [1, 2]);
    let manifests: Vec<_> = (0..3).map(|_| cluster.checkpoint(&store).1).collect();
    let begun =
        Begun { incarnation: INCARNATION, number: CheckpointNumber(1), service: "Bank_2.x".to_owned() };
    let names = [begun.name(0), begun.name(u64::MAX)];
    for name in &names {
        assert_eq!(begun.store(&store, name).unwrap(), Put::Created);
        assert_eq!(begun.store(&store, name).unwrap(), Put::Exists);
    }
    copy(&store, &other, &manifests[0]).unwrap();
    assert_eq!(begun_names(&other).unwrap(), Vec::<String>::new());
    let retention = Retention { keep: 1, grace: Micros(0), ..Retention::default() };
    let in_use = super::chain::in_use(&cluster.lineage);
    Collector::new().collect(&store, OWNER, Time(9), &retention, &in_use).unwrap();
    assert_eq!(begun_names(&store).unwrap().len(), 2);
    assert_eq!(Begun::read(&store, &names[0]).unwrap(), begun);

    let good = store.get(&names[0], 4096).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        store.delete(&names[0]).unwrap();
        store.put_new(&names[0], &bad).unwrap();
        Begun::read(&store, &names[0]).unwrap_err();
    }
}

#[test]
fn one_failure_or_one_gap_decides() {
    use CheckOutcome::{Failed, Hold, NotChecked};
    for (outcomes, all) in [
        (vec![], NotChecked),
        (vec![Hold, Hold], Hold),
        (vec![Hold, NotChecked], NotChecked),
        (vec![NotChecked, Hold], NotChecked),
        (vec![NotChecked, Failed, Hold], Failed),
    ] {
        assert_eq!(CheckOutcome::of(outcomes.iter().copied()), all, "{outcomes:?}");
    }
}
