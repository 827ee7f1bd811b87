//! Stable storage: checkpoints copied to another directory, by hand and by the node, and restored from there.

use crate::patience::{await_some, await_until};
use crate::services::{Account, Ask, await_answer, builder, key};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use stead::offline;
use stead::{CheckpointFailure, CheckpointOptions, CopyStatus, Node, Registry, RestoreOptions};

fn address(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn options(dir: &Path) -> CheckpointOptions {
    CheckpointOptions {
        interval: None,
        copy_to: Some(address(dir)),
        copy_interval: Duration::from_millis(10),
        copy_keep: 2,
        ..CheckpointOptions::default()
    }
}

/// Waits until the status is the expected one.
#[track_caller]
fn await_status(node: &Node, wanted: impl Fn(&CopyStatus) -> bool) -> CopyStatus {
    await_some("the status of copies", || node.status().checkpoint_copies.filter(&wanted))
}

fn numbers(from: &str) -> Vec<u64> {
    offline::checkpoints(from).unwrap().iter().map(|checkpoint| checkpoint.number).collect()
}

fn restored_balance(from: &str, number: Option<u64>, wanted: i64) {
    let into = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        from: from.to_owned(),
        number,
        into: into.path().to_owned(),
        shards: BTreeMap::new(),
    };
    stead::restore(&options, |_| {}).unwrap();
    await_answer(&builder(into.path()).open().unwrap(), "a", wanted);
}

#[test]
fn a_checkpoint_is_copied_and_restored_from_there() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = address(&other.path().join("made"));
    let node = builder(dir.path()).open().unwrap();
    let deposit = || node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
    deposit();
    let first = node.checkpoint_blocking().unwrap().number;
    let report = node.copy_checkpoint_blocking(first, &to).unwrap();
    assert!(report.bundles_written == 1 && report.bytes_written > 0, "{report:?}");
    assert_eq!((report.number, &report.to), (first, &to));
    let again = node.copy_checkpoint_blocking(first, &to).unwrap();
    assert_eq!((again.bundles_written, again.bundles_reused), (0, 1));
    deposit();
    let second = node.checkpoint_blocking().unwrap().number;

    let unknown = node.copy_checkpoint_blocking(99, &to).unwrap_err();
    assert!(matches!(&unknown, CheckpointFailure::Store(reason) if reason.contains("99")), "{unknown}");
    let bad = node.copy_checkpoint_blocking(second, "ftp://x").unwrap_err();
    assert!(matches!(&bad, CheckpointFailure::Address(reason) if reason.contains("s3://")), "{bad}");
    // The data's own directory holds checkpoints that are no copies.
    let own = node.copy_checkpoint_blocking(second, &address(&dir.path().join("checkpoints"))).unwrap_err();
    assert!(own.to_string().contains("use another address"), "{own}");
    let in_use = stead::copy_checkpoint(dir.path(), second, &to).unwrap_err();
    assert!(matches!(in_use, offline::OfflineError::DataDir(_)), "{in_use}");
    assert_eq!(node.metrics().checkpoint_copies, 2);
    node.shutdown();
    let stopped = node.copy_checkpoint_blocking(second, &to).unwrap_err();
    assert!(matches!(stopped, CheckpointFailure::Stopped(_)), "{stopped}");

    let report = stead::copy_checkpoint(dir.path(), second, &to).unwrap();
    assert_eq!((report.bundles_written, report.bundles_reused), (1, 1));
    assert_eq!(numbers(&to), [first, second]);
    restored_balance(&to, Some(first), 100);
    restored_balance(&to, None, 200);
}

/// The copies may be the last ones of the data: what names their cluster is only a check.
#[test]
fn copies_are_used_though_the_file_that_names_their_owner_cannot_be_read() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = address(other.path());
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
    let number = node.checkpoint_blocking().unwrap().number;
    node.shutdown();
    stead::copy_checkpoint(dir.path(), number, &to).unwrap();
    let owner = other.path().join("owner/owner.json");
    for damaged in [&br#"{"stead":"copies","form"#[..], br#"{"stead":"copies","format":2,"clusters":[]}"#] {
        std::fs::write(&owner, damaged).unwrap();
        assert_eq!(numbers(&to), [number]);
        assert!(offline::verify(&to, number, &Registry::new()).unwrap().holds());
        restored_balance(&to, None, 100);
        // Nothing is written beside what may belong to another cluster.
        stead::copy_checkpoint(dir.path(), number, &to).unwrap_err();
    }
}

#[test]
fn the_newest_checkpoints_are_copied_and_kept() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = address(other.path());
    let open = || builder(dir.path()).checkpoints(options(other.path())).open().unwrap();
    let mut node = open();
    for number in 1..=4 {
        node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
        assert_eq!(node.checkpoint_blocking().unwrap().number, number);
        let status = await_status(&node, |status| status.newest == Some(number));
        assert_eq!((status.to.as_str(), status.failure), (to.as_str(), None));
        if number == 2 {
            // The copies are found again.
            node.shutdown();
            node = open();
            await_status(&node, |status| status.newest == Some(2));
            assert_eq!(node.metrics().checkpoint_copy_bytes, 0);
        }
    }
    // The status names a copy as soon as it exists; older ones are deleted after that, and a shutdown does not wait for it.
    await_until("the older copies are deleted", || {
        offline::checkpoints(&to).is_ok_and(|kept| kept.iter().map(|one| one.number).eq([3, 4]))
    });
    node.shutdown();
    assert_eq!(numbers(&to), [3, 4]);
    restored_balance(&to, None, 400);
}

#[test]
fn a_failing_target_is_reported_and_never_fails_the_work() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A file is where the directory should be.
    let target = other.path().join("target");
    std::fs::write(&target, "").unwrap();
    let node = builder(dir.path()).checkpoints(options(&target)).open().unwrap();
    node.checkpoint_blocking().unwrap();
    await_status(&node, |status| status.newest.is_none() && status.failure.is_some());
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
    assert!(node.is_ready());
    std::fs::remove_file(&target).unwrap();
    await_status(&node, |status| status.newest == Some(1) && status.failure.is_none());

    // Another cluster with the same address changes nothing there.
    let foreign = tempfile::tempdir().unwrap();
    let other_node = builder(foreign.path()).checkpoints(options(&target)).open().unwrap();
    for _ in 0..3 {
        other_node.checkpoint_blocking().unwrap();
    }
    let status = await_status(&other_node, |status| status.failure.is_some());
    assert!(status.failure.as_ref().unwrap().contains("another cluster"), "{status:?}");
    assert_eq!(numbers(&address(&target)), [1]);
}

#[test]
fn a_paced_copy_ends_with_the_node() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A copy at a byte a second would take hours; the checkpoint itself is not taken at that pace.
    let node = builder(dir.path()).open().unwrap();
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(100)).unwrap();
    node.checkpoint_blocking().unwrap();
    node.shutdown();
    let slow = CheckpointOptions { bytes_per_second: 1, ..options(other.path()) };
    let node = builder(dir.path()).checkpoints(slow).open().unwrap();
    let owner = other.path().join("owner/owner.json");
    await_until("the copy has begun", || owner.exists());
    node.shutdown();
    assert_eq!(node.metrics().checkpoint_copies, 0);
    assert!(numbers(&address(other.path())).is_empty());
}
