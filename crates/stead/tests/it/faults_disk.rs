//! Disks that are full, fail, or cannot be read, and a clock that goes back.

use crate::patience::{await_some, await_until};
use crate::services::{Account, Ask, Look, await_answer, builder, key};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stead::{CallError, CheckpointFailure, Node, OpenError, RawError, Refusal, Time};
use stead_store::disk::{Disk, Open};
use stead_store::sim_disk::SimDisk;

fn open(disk: &SimDisk) -> Node {
    builder(Path::new("unused")).segment_bytes(64 << 10).disk(Arc::new(disk.clone())).open().unwrap()
}

fn deposit(node: &Node) -> Result<i64, CallError<crate::services::Overdrawn>> {
    node.blocking_client().call::<Account>(&key("a"), Ask::Deposit(1))
}

/// Waits until writes are taken again; all are refused with the same error until then.
fn resumes(node: &Node, refused: &CallError<crate::services::Overdrawn>) {
    await_until("writes resume", || {
        let deposited = deposit(node);
        assert!(deposited.is_ok() || deposited.as_ref().err() == Some(refused), "{deposited:?}");
        deposited.is_ok()
    });
}

fn balance(node: &Node) -> i64 {
    node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap()
}

#[test]
fn a_full_disk_refuses_writes_answers_reads_and_resumes_when_there_is_room() {
    let disk = SimDisk::new(1);
    let node = open(&disk);
    let mut answered = deposit(&node).unwrap();
    for round in 0..3 {
        disk.set_capacity(Some(disk.used()));
        let refused = loop {
            match deposit(&node) {
                Ok(balance) => {
                    answered += 1;
                    assert_eq!(balance, answered);
                }
                Err(error) => break error,
            }
        };
        assert_eq!(refused, CallError::Raw(RawError::Refused(Refusal::Full)), "round {round}");
        assert!(refused.to_string().contains("full"), "{refused}");
        assert!(node.status().full);
        assert_eq!(balance(&node), answered, "reads go on");
        let checkpoint = node.checkpoint_blocking().unwrap_err();
        // The outcome depends on how much of the log's last space was used when writes were refused.
        assert!(
            matches!(checkpoint, CheckpointFailure::GivenUp { .. } | CheckpointFailure::Full),
            "{checkpoint}"
        );
        assert!(node.is_ready(), "a full disk is no failure");

        disk.set_capacity(None);
        resumes(&node, &refused);
        answered += 1;
        assert!(!node.status().full);
    }
    node.checkpoint_blocking().unwrap();
    node.kill();
    disk.kill_process();
    assert_eq!(balance(&open(&disk)), answered);
}

#[test]
fn a_node_without_descriptors_refuses_writes_answers_reads_and_resumes_when_there_are_some() {
    let disk = SimDisk::new(1);
    let node = open(&disk);
    let mut answered = deposit(&node).unwrap();
    for round in 0..2 {
        disk.set_open_files(Some(0));
        let checkpoint = node.checkpoint_blocking().unwrap_err();
        assert!(checkpoint.to_string().contains("given up"), "{checkpoint}");
        let refused = loop {
            match deposit(&node) {
                Ok(balance) => answered = balance,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, CallError::Raw(RawError::Refused(Refusal::Full)), "round {round}");
        assert_eq!(balance(&node), answered, "reads go on");
        assert!(node.is_ready(), "a missing descriptor is no failure");

        disk.set_open_files(None);
        resumes(&node, &refused);
        answered += 1;
        node.checkpoint_blocking().unwrap();
    }
    node.shutdown();
    drop(node);
    assert_eq!(balance(&open(&disk)), answered);
}

#[test]
fn a_fresh_data_directory_takes_a_few_mib() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).segment_bytes(64 << 20).open().unwrap();
    assert_eq!(deposit(&node).unwrap(), 1);
    let log = node.status().log;
    assert!(log.bytes <= 4 << 20, "{log:?}");
    node.shutdown();
}

#[test]
fn a_node_that_is_killed_on_a_full_disk_starts_there_and_takes_writes_when_there_is_room() {
    let disk = SimDisk::new(2);
    let node = open(&disk);
    disk.set_capacity(Some(disk.used()));
    let mut answered = 0;
    while deposit(&node).is_ok() {
        answered += 1;
    }
    node.kill();
    disk.kill_process();
    // A start also writes: its epoch, and a start entry of each shard.
    disk.set_capacity(Some(disk.used() + (8 << 10)));
    let node = match builder(Path::new("unused")).segment_bytes(64 << 10).disk(Arc::new(disk.clone())).open()
    {
        Ok(node) => node,
        Err(error) => {
            assert!(error.may_pass());
            assert!(error.to_string().contains("room") || error.to_string().contains("full"), "{error}");
            disk.kill_process();
            disk.set_capacity(None);
            open(&disk)
        }
    };
    assert_eq!(balance(&node), answered);
    disk.set_capacity(None);
    await_until("writes resume", || deposit(&node).is_ok());
    assert_eq!(balance(&node), answered + 1);
}

#[test]
fn a_start_on_a_full_disk_may_pass_and_on_damaged_data_not() {
    let disk = SimDisk::new(3);
    let start =
        || builder(Path::new("unused")).segment_bytes(64 << 10).disk(Arc::new(disk.clone())).open().err();
    for room in [0, 100, 10 << 10] {
        disk.set_capacity(Some(room));
        let error = start().unwrap();
        assert!(error.may_pass(), "{room} bytes: {error}");
    }
    disk.set_capacity(None);
    drop(open(&disk));
    disk.open("stead.json", Open::Existing).unwrap().write_at(b"x", 20).unwrap();
    let error = start().unwrap();
    assert!(!error.may_pass(), "{error}");
}

#[test]
fn a_failed_sync_ends_the_node_and_nothing_answered_is_lost() {
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        let node = open(&disk);
        for wanted in 1..=5 {
            assert_eq!(deposit(&node).unwrap(), wanted);
        }
        disk.fail_syncs(1);
        // The first sync that fails may be that of a prepared segment, or of the idle mark.
        let error = await_some("a deposit fails", || deposit(&node).err());
        let CallError::Raw(RawError::NodeFailed(reason)) = &error else { panic!("{error}") };
        assert!(reason.contains("cannot sync"), "{reason}");
        assert!(!node.is_ready());
        assert!(node.status().failure.is_some());
        assert!(
            matches!(deposit(&node), Err(CallError::Raw(RawError::NodeFailed(_)))),
            "it takes nothing any more"
        );
        let answered = 5;
        node.kill();
        disk.crash();
        disk.restart();
        let found = balance(&open(&disk));
        assert!(found >= answered, "seed {seed}: {found} of {answered}");
    }
}

#[test]
fn a_file_where_a_directory_should_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "not a directory").unwrap();
    let error = builder(&path).open().err().unwrap();
    assert!(matches!(&error, OpenError::Directory { .. }), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");

    let node = builder(dir.path().join("data").as_path()).open().unwrap();
    node.shutdown();
    drop(node);
    let wal = dir.path().join("data/wal");
    std::fs::rename(&wal, dir.path().join("aside")).unwrap();
    std::fs::write(&wal, "not a directory").unwrap();
    let error = builder(dir.path().join("data").as_path()).open().err().unwrap();
    assert!(error.to_string().contains("wal"), "{error}");
}

#[test]
fn a_second_node_on_the_same_data_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = builder(dir.path()).open().unwrap();
    assert_eq!(deposit(&node).unwrap(), 1);
    let error = builder(dir.path()).open().err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("stop it"), "{text}");
    assert_eq!(deposit(&node).unwrap(), 2);
    node.shutdown();
    drop(node);
    assert_eq!(balance(&builder(dir.path()).open().unwrap()), 2);
}

#[test]
fn a_clock_that_jumps_back_turns_no_time_back_and_loses_nothing() {
    const HOUR: u64 = 3600 * 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let open = |clock: u64| builder(dir.path()).wall_clock(move || Time(clock)).open().unwrap();
    let node = open(1000 * HOUR);
    let client = node.blocking_client();
    client.call_idempotent::<Account>(&key("once"), b"k", Ask::Deposit(7)).unwrap();
    client.call::<Account>(&key("a"), Ask::Later { amount: 100, after_ms: 300 }).unwrap();
    node.kill();
    // A day back, then to time 0.
    for clock in [976 * HOUR, 0] {
        let node = open(clock);
        let client = node.blocking_client();
        assert_eq!(client.call_idempotent::<Account>(&key("once"), b"k", Ask::Deposit(7)).unwrap(), 7);
        await_answer(&node, "once", 7);
        // The timer is due 300 ms after it was set, in the shard's time, which continues from where it was, at half the
        // speed.
        await_answer(&node, "a", 100);
        node.checkpoint_blocking().unwrap();
        node.kill();
    }
    // Forward again, by more than the key is kept for: but the shard served during none of it.
    let node = open(2000 * HOUR);
    assert!(node.status().clock.doubted);
    let client = node.blocking_client();
    assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), 100);
    assert_eq!(client.call_idempotent::<Account>(&key("once"), b"k", Ask::Deposit(7)).unwrap(), 7);
}

#[test]
fn a_start_two_days_ahead_fires_nothing_and_forgets_nothing_and_is_set_right_while_it_runs() {
    const HOUR: u64 = 3600 * 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let wall = Arc::new(AtomicU64::new(1000 * HOUR));
    let open = || {
        let wall = Arc::clone(&wall);
        builder(dir.path()).wall_clock(move || Time(wall.load(Ordering::SeqCst))).open().unwrap()
    };
    let node = open();
    let client = node.blocking_client();
    client.call_idempotent::<Account>(&key("once"), b"k", Ask::Deposit(7)).unwrap();
    client.call::<Account>(&key("a"), Ask::Later { amount: 100, after_ms: 24 * 3_600_000 }).unwrap();
    node.kill();
    wall.store(1048 * HOUR, Ordering::SeqCst);
    let node = open();
    assert!(node.status().clock.doubted, "{:?}", node.status().clock);
    let client = node.blocking_client();
    assert_eq!(client.call_idempotent::<Account>(&key("once"), b"k", Ask::Deposit(7)).unwrap(), 7);
    assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), 0);
    wall.store(1000 * HOUR, Ordering::SeqCst);
    // An idle worker notices within a second, and one that receives a request at once.
    client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
    client.call::<Account>(&key("once"), Ask::Deposit(1)).unwrap();
    await_until("the clock is trusted again", || !node.status().clock.doubted);
    // A jump forward within a life is followed if it is not doubted: then a timer is due at once.
    drop(client);
    node.kill();
    let wall_then = Arc::clone(&wall);
    let node = builder(dir.path())
        .wall_clock(move || Time(wall_then.load(Ordering::SeqCst)))
        .clock_confirm(Duration::ZERO)
        .open()
        .unwrap();
    assert_eq!(node.blocking_client().query::<Account>(&key("a"), Look::Balance).unwrap(), 1);
    wall.store(1025 * HOUR, Ordering::SeqCst);
    await_answer(&node, "a", 101);
}
