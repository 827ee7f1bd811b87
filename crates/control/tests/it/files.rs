//! A plane's files under crashes, damage and want of room.

use crate::cluster::{LONG, SETTINGS, alone, found, identity, insist, nowhere, options, propose};
use crate::ledger::Ledger;
use std::sync::Arc;
use std::time::Duration;
use stead_control::{Begin, Plane, Proposal, ProposeError, StartError, StorageFault};
use stead_store::data_dir::{DataDir, Meta};
use stead_store::disk::Disk;
use stead_store::sim_disk::SimDisk;

/// Proposes on a disk until that crashes, several times, and checks that all that was answered is there once.
fn crash_often(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let disk = SimDisk::new(seed);
    let mut answered = Vec::new();
    let mut has_begun = false;
    for life in 0..4 {
        disk.crash_after(rng.u64(1..60));
        let begin = if has_begun { Begin::Resume } else { found() };
        match alone(&disk, begin) {
            Ok(plane) => {
                has_begun = true;
                for number in 0.. {
                    let command = format!("{life}.{number}");
                    let proposal = plane.proposal(&command);
                    match plane.propose(&proposal, Duration::from_secs(10)) {
                        Ok(place) => answered.push((command, place)),
                        Err(_) if disk.is_crashed() => break,
                        Err(error) => panic!("seed {seed}, life {life}: {error}"),
                    }
                }
                plane.shutdown();
            }
            Err(_) if disk.is_crashed() => {}
            Err(error) => panic!("seed {seed}, life {life}: {error}"),
        }
        disk.restart();
        disk.kill_process();
    }
    let plane = alone(&disk, if has_begun { Begin::Resume } else { found() }).unwrap();
    let commands = plane.read(LONG).unwrap().state.commands.clone();
    for (command, place) in answered {
        assert_eq!(commands[usize::try_from(place).unwrap() - 1], command, "seed {seed}");
    }
    for command in &commands {
        assert_eq!(commands.iter().filter(|other| *other == command).count(), 1, "seed {seed}: {command}");
    }
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_answered() {
    for seed in 0..25 {
        crash_often(seed);
    }
}

#[test]
fn a_data_directory_whose_files_are_lost_founds_no_second_cluster() {
    let disk = SimDisk::new(1);
    let id = identity(1);
    let meta = || Meta::new(id.cluster, id.incarnation, id.node, 7);
    let start = || {
        let (mut dir, _) = DataDir::open(Arc::new(disk.clone()), meta)?;
        // Another identity than the directory's is no matter.
        Plane::start_in(options(9, found(), SETTINGS), &mut dir, nowhere())
    };
    // A crash of the first start, wherever it happens, lets the next one begin again.
    for operation in 1..20 {
        disk.crash_after(operation);
        let _ = start();
        disk.crash();
        disk.restart();
    }
    let plane = start().unwrap();
    assert_eq!(plane.status().node, id.node);
    propose(&plane, "one");
    plane.shutdown();
    assert_eq!(start().unwrap().read(LONG).unwrap().state.commands, ["one"]);
    disk.remove("control/log").unwrap();
    let lost = start().map(drop);
    assert!(matches!(lost, Err(StartError::Storage(StorageFault::Lost { .. }))), "{lost:?}");
}

/// Starts a plane that has applied one command, and proposes another one that its disk has no room for.
fn waits_for_room(disk: &SimDisk) -> (Plane<Ledger>, Proposal) {
    let plane = alone(disk, found()).unwrap();
    propose(&plane, "before");
    disk.set_capacity(Some(disk.used()));
    let proposal = plane.proposal(&"x".repeat(100_000));
    assert_eq!(plane.propose(&proposal, Duration::from_millis(50)), Err(ProposeError::Unknown));
    (plane, proposal)
}

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    let disk = SimDisk::new(1);
    let (plane, proposal) = waits_for_room(&disk);
    disk.set_capacity(None);
    assert_eq!(insist(&plane, &proposal), 2);
    assert_eq!(plane.newest().state.commands.len(), 2);
}

#[test]
fn a_plane_that_waits_for_room_can_be_shut_down() {
    let (plane, _) = waits_for_room(&SimDisk::new(1));
    plane.shutdown();
    assert!(plane.status().is_stopped);
}

#[test]
fn a_failed_sync_ends_the_plane_which_says_so() {
    let disk = SimDisk::new(1);
    let plane = alone(&disk, found()).unwrap();
    propose(&plane, "before");
    disk.fail_syncs(1);
    let proposal = plane.proposal(&"during".to_owned());
    plane.propose(&proposal, LONG).unwrap_err();
    let deadline = std::time::Instant::now() + LONG;
    while !plane.status().is_stopped {
        assert!(std::time::Instant::now() < deadline, "{:?}", plane.status());
        std::thread::yield_now();
    }
    let failure = plane.status().failure.unwrap();
    assert!(failure.contains("cannot sync control/log"), "{failure}");
    match plane.propose(&proposal, LONG) {
        Err(ProposeError::Stopped(Some(reason))) => assert_eq!(reason, failure),
        other => panic!("{other:?}"),
    }
}

fn fault(disk: &SimDisk, begin: Begin) -> StorageFault {
    match alone(disk, begin).map(drop) {
        Err(StartError::Storage(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn damaged_and_lost_files_are_clear_errors() {
    let disk = SimDisk::new(1);
    let plane = alone(&disk, found()).unwrap();
    propose(&plane, "one");
    plane.shutdown();
    let damaged = disk.fork(1);
    damaged.flip_bit("control/log", 100, 3).unwrap();
    let text = fault(&damaged, Begin::Resume).to_string();
    assert!(text.contains("control/log of the control plane is damaged at byte 0"), "{text}");
    assert!(text.contains("remove this node and add it again"), "{text}");
    assert!(matches!(fault(&SimDisk::new(1), Begin::Resume), StorageFault::Lost { .. }));
    let newer = disk.fork(1);
    let mut bytes = newer.bytes("control/log").unwrap();
    bytes[3] = b'2';
    newer.put("control/log", &bytes);
    let text = fault(&newer, Begin::Resume).to_string();
    assert!(text.contains("has format version '2', and this program reads version 1"), "{text}");
}
