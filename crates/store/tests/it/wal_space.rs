//! Full disks and failed syncs.

use crate::wal_log::{batch, open, put, rec, small};
use stead_core::ids::Index;
use stead_store::sim_disk::SimDisk;
use stead_store::wal::{Wal, WalError, WalOptions};

#[test]
fn a_full_disk_is_reported_beforehand_and_appends_resume_when_there_is_room() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    disk.set_capacity(Some(disk.used()));
    let mut written = 0;
    let error = loop {
        let reserve = wal.reserve_left();
        match wal.append(&[batch(&[rec(1, written + 1, &[0; 3000])])]) {
            Ok(_) => {
                assert!(reserve >= 4096, "an append that fits the reserve is accepted, and no other");
                wal.sync().unwrap();
                written += 1;
            }
            Err(error) => {
                assert_eq!(reserve, 0);
                break error;
            }
        }
    };
    assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
    assert!(written >= 6, "the prepared segment was used: {written}");
    assert!(matches!(wal.append(&[batch(&[rec(1, 99, b"x")])]), Err(WalError::NoSpace { .. })));
    wal.sync().unwrap();

    // The same append succeeds later, and the failed ones have left nothing.
    disk.set_capacity(None);
    put(&mut wal, &rec(1, written + 1, b"resumed"));
    let (_, _, seen) = open(&disk, &small()).unwrap();
    assert_eq!(seen.iter().map(|rec| rec.index).collect::<Vec<_>>(), (1..=written + 1).collect::<Vec<_>>());
}

#[test]
fn records_are_appended_with_their_mark_or_not_at_all() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    disk.set_capacity(Some(disk.used()));
    let mut written = 0;
    while wal.reserve_left() > 8192 {
        written += 1;
        put(&mut wal, &rec(1, written, &[0; 3000]));
    }
    let one = |index| [batch(&[rec(1, index, b"x")])];
    wal.append(&one(written + 1)).unwrap();
    let before = wal.position();
    assert_eq!(wal.reserve_left(), 4096, "room for one block");
    for _ in 0..2 {
        assert!(matches!(wal.make_room(&one(written + 2)), Err(WalError::NoSpace { .. })));
        assert!(matches!(wal.append_marked(&one(written + 2)), Err(WalError::NoSpace { .. })));
        assert_eq!(wal.position(), before);
    }
    disk.set_capacity(None);
    wal.make_room(&one(written + 2)).unwrap();
    disk.set_capacity(Some(disk.used()));
    wal.append_marked(&one(written + 2)).unwrap();
    assert!(wal.is_marked());
}

#[test]
fn trimming_works_on_a_full_disk_and_makes_room() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    disk.set_capacity(Some(disk.used()));
    let mut written = 0;
    while wal.append(&[batch(&[rec(1, written + 1, &[0; 3000])])]).is_ok() {
        written += 1;
    }
    for round in 0..20 {
        assert!(wal.trim(|_| Index(written)).unwrap() > 0, "round {round}");
        let before = written;
        while wal.append(&[batch(&[rec(1, written + 1, &[0; 3000])])]).is_ok() {
            written += 1;
        }
        assert!(written > before, "round {round}");
    }
    wal.sync().unwrap();
    assert_eq!(open(&disk, &small()).unwrap().2.last().unwrap().index, written);
}

#[test]
fn a_trim_that_can_not_be_noted_on_a_full_disk_is_left_for_later() {
    let disk = SimDisk::new(1);
    // Segments of another length are not reused, so trimming one prepares no segment.
    let old = WalOptions { segment_bytes: 16 << 10, ..small() };
    let (mut wal, _, _) = open(&disk, &old).unwrap();
    let mut written = 0;
    while wal.stats().segments < 4 {
        written += 1;
        put(&mut wal, &rec(1, written, b"old"));
    }
    drop(wal);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let full = |wal: &mut Wal, mut written: u64| {
        disk.set_capacity(Some(disk.used()));
        while wal.append(&[batch(&[rec(1, written + 1, b"new")])]).is_ok() {
            written += 1;
        }
        written
    };
    written = full(&mut wal, written);
    assert_eq!(wal.trim(|_| Index(2)).unwrap(), 1, "its note takes the reserved block");
    written = full(&mut wal, written);
    assert_eq!(wal.trim(|_| Index(written)).unwrap(), 0);
    assert!(matches!(wal.append(&[batch(&[rec(1, 99, b"x")])]), Err(WalError::NoSpace { .. })));
    wal.sync().unwrap();
    disk.set_capacity(None);
    assert!(wal.trim(|_| Index(written)).unwrap() > 1);
    put(&mut wal, &rec(1, written + 1, b"resumed"));
    drop(wal);
    assert_eq!(open(&disk, &small()).unwrap().2.last().unwrap().index, written + 1);
}

#[test]
fn a_log_that_does_not_fit_is_refused_and_can_be_created_later() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(10_000));
    assert!(matches!(open(&disk, &small()), Err(WalError::NoSpace { .. })));
    disk.set_capacity(None);
    open(&disk, &small()).unwrap();
}

#[test]
fn a_failed_sync_is_fatal() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    put(&mut wal, &rec(1, 1, b"before"));
    wal.append(&[batch(&[rec(1, 2, b"lost")])]).unwrap();
    disk.fail_syncs(1);
    let error = wal.sync().unwrap_err();
    assert!(matches!(error, WalError::Io { action: "sync", .. }), "{error}");
    for _ in 0..2 {
        assert!(matches!(wal.sync(), Err(WalError::Fatal { .. })));
        assert!(matches!(wal.append(&[batch(&[rec(1, 3, b"refused")])]), Err(WalError::Fatal { .. })));
        assert!(matches!(wal.mark(), Err(WalError::Fatal { .. })));
        assert!(matches!(wal.trim(|_| Index(9)), Err(WalError::Fatal { .. })));
    }
}

#[test]
fn a_sync_that_fails_while_preparing_is_fatal_too() {
    let disk = SimDisk::new(1);
    let (mut wal, _, _) = open(&disk, &small()).unwrap();
    let preparer = wal.preparer();
    for index in 1..=6 {
        put(&mut wal, &rec(1, index, &[0; 4000]));
    }
    assert!(wal.wants_segment());
    disk.fail_syncs(1);
    preparer.prepare_next().unwrap_err();
    let error = wal.append(&[batch(&[rec(1, 7, b"refused")])]).unwrap_err();
    assert!(matches!(error, WalError::Fatal { .. }), "{error}");
}
