//! One suite for every disk, and tests of the simulated one.

use std::io::ErrorKind;
use std::sync::Arc;
use stead_store::disk::{Disk, LockError, Open, read_exact_at, read_file, remove_tree, replace_file};
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::{DiskCosts, Faults, SimDisk, is_crash};

fn disk_suite(disk: &dyn Disk) {
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();

    // Files.
    let file = disk.open("a", Open::New).unwrap();
    assert_eq!(kind(disk.open("a", Open::New).map(drop)), ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.open("b", Open::Existing).map(drop)), ErrorKind::NotFound);
    assert!(file.is_empty().unwrap());
    file.write_at(b"hello", 3).unwrap();
    assert_eq!(file.len().unwrap(), 8);
    let mut buf = [9; 10];
    assert_eq!(file.read_at(&mut buf, 1).unwrap(), 7);
    assert_eq!(&buf, b"\0\0hello\x09\x09\x09");
    assert_eq!(file.read_at(&mut buf, 100).unwrap(), 0);
    assert_eq!(kind(read_exact_at(&*file, &mut buf, 0)), ErrorKind::UnexpectedEof);
    file.truncate(4).unwrap();
    file.allocate(2 << 20).unwrap();
    assert_eq!(disk.len("a").unwrap(), Some(2 << 20));
    let mut all = vec![1; 2 << 20];
    read_exact_at(&*file, &mut all, 0).unwrap();
    assert_eq!(all[3], b'h');
    assert!(all[4..].iter().all(|byte| *byte == 0), "cut and allocated bytes are zeros");
    file.allocate(10).unwrap();
    assert_eq!(file.len().unwrap(), 2 << 20, "allocating never shortens");
    file.truncate(3).unwrap();
    file.sync_data().unwrap();
    file.read_ahead();
    assert_eq!(disk.open("a", Open::Replace).unwrap().len().unwrap(), 0);

    // Directories.
    disk.create_dir("dir").unwrap();
    disk.create_dir("dir").unwrap();
    disk.create_dir("dir/deep").unwrap();
    assert!(disk.create_dir("a").is_err());
    assert_eq!(kind(disk.create_dir("none/dir")), ErrorKind::NotFound);
    assert_eq!(kind(disk.open("none/file", Open::New).map(drop)), ErrorKind::NotFound);
    disk.open("dir/y", Open::New).unwrap();
    disk.open("dir/x", Open::New).unwrap().write_at(b"x", 0).unwrap();
    assert_eq!(disk.list("dir").unwrap(), ["deep", "x", "y"]);
    assert_eq!(disk.list("").unwrap(), ["a", "dir"]);
    assert_eq!(kind(disk.list("none").map(drop)), ErrorKind::NotFound);

    // Names.
    disk.rename("dir/x", "dir/y").unwrap();
    assert_eq!((disk.len("dir/x").unwrap(), disk.len("dir/y").unwrap()), (None, Some(1)));
    assert_eq!(kind(disk.rename("dir/y", "y")), ErrorKind::InvalidInput);
    assert_eq!(kind(disk.rename("dir/x", "dir/z")), ErrorKind::NotFound);
    disk.open("dir/x", Open::New).unwrap();
    assert_eq!(kind(disk.rename_new("dir/x", "dir/y")), ErrorKind::AlreadyExists);
    assert_eq!((disk.len("dir/x").unwrap(), disk.len("dir/y").unwrap()), (Some(0), Some(1)));
    disk.rename_new("dir/x", "dir/z").unwrap();
    assert_eq!((disk.len("dir/x").unwrap(), disk.len("dir/z").unwrap()), (None, Some(0)));
    assert_eq!(kind(disk.rename_new("dir/x", "dir/w")), ErrorKind::NotFound);
    assert_eq!(kind(disk.rename_new("dir/z", "z")), ErrorKind::InvalidInput);
    disk.remove("dir/z").unwrap();
    disk.remove("dir/y").unwrap();
    assert_eq!(kind(disk.remove("dir/y")), ErrorKind::NotFound);
    disk.sync_dir("dir").unwrap();
    disk.sync_dir("").unwrap();
    for bad in ["/etc/passwd", "../x", "dir/../x", "dir//x", "./x", "x\0y"] {
        assert_eq!(kind(disk.open(bad, Open::Replace).map(drop)), ErrorKind::InvalidInput, "{bad}");
        assert_eq!(kind(disk.remove(bad)), ErrorKind::InvalidInput, "{bad}");
    }

    // Directories that go.
    disk.create_dir("going").unwrap();
    disk.create_dir("going/deep").unwrap();
    drop(disk.open("going/x", Open::New).unwrap());
    drop(disk.open("going/deep/y", Open::New).unwrap());
    disk.sync_dir("going/deep").unwrap();
    assert_eq!(kind(disk.remove_dir("going")), ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(disk.remove_dir("none")), ErrorKind::NotFound);
    assert_eq!(kind(disk.remove_dir("going/x")), ErrorKind::NotADirectory);
    assert!(disk.remove("going/deep").is_err());
    remove_tree(disk, "going").unwrap();
    remove_tree(disk, "going").unwrap();
    assert_eq!(disk.list("").unwrap(), ["a", "dir"]);
    disk.create_dir("going").unwrap();
    assert_eq!(disk.list("going").unwrap(), [] as [&str; 0]);
    disk.sync_dir("going").unwrap();
    remove_tree(disk, "going").unwrap();

    // A removed file can be used while it is open.
    let file = disk.open("gone", Open::New).unwrap();
    disk.remove("gone").unwrap();
    disk.sync_dir("").unwrap();
    file.write_at(b"still", 0).unwrap();
    assert_eq!(file.len().unwrap(), 5);
    assert_eq!(disk.len("gone").unwrap(), None);

    // Whole files.
    replace_file(disk, "dir/whole", b"one").unwrap();
    replace_file(disk, "dir/whole", b"two").unwrap();
    assert_eq!(read_file(disk, "dir/whole", 3).unwrap(), b"two");
    assert_eq!(kind(read_file(disk, "dir/whole", 2).map(drop)), ErrorKind::InvalidData);
    assert_eq!(disk.list("dir").unwrap(), ["deep", "whole"]);
}

#[test]
fn the_simulated_disk_passes_the_suite() {
    disk_suite(&SimDisk::new(1));
}

#[test]
fn the_real_disk_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    disk_suite(&RealDisk::open(dir.path().join("new/deep")).unwrap());
}

#[test]
fn a_real_disk_has_one_owner_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let lock = disk.lock("LOCK").unwrap();
    let error = disk.lock("LOCK").err().unwrap();
    assert!(
        matches!(error, LockError::Held { owner: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert!(error.to_string().contains(&format!("is locked by process {}", std::process::id())), "{error}");
    drop(lock);
    disk.lock("LOCK").unwrap();
}

#[test]
fn a_lock_that_a_forked_child_holds_for_a_moment_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    drop(disk.lock("LOCK").unwrap());
    // As between fork and exec: a copy of the descriptor holds the lock, and names this process.
    let copy = std::fs::File::open(dir.path().join("LOCK")).unwrap();
    rustix::fs::flock(&copy, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let exec = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(copy);
    });
    disk.lock("LOCK").unwrap();
    exec.join().unwrap();
}

#[test]
fn readers_share_a_lock_that_keeps_owners_away_and_make_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open_existing(dir.path()).unwrap();
    assert!(disk.lock_to_read("LOCK").unwrap().is_none());
    assert_eq!(disk.list("").unwrap(), [] as [&str; 0]);
    let owner = disk.lock("LOCK").unwrap();
    assert!(matches!(disk.lock_to_read("LOCK"), Err(LockError::Held { .. })));
    drop(owner);
    let readers = [disk.lock_to_read("LOCK").unwrap(), disk.lock_to_read("LOCK").unwrap()];
    assert!(matches!(disk.lock("LOCK"), Err(LockError::Held { .. })));
    drop(readers);
    disk.lock("LOCK").unwrap();
    assert!(RealDisk::open_existing(dir.path().join("absent")).is_err());
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn a_directory_is_synced_without_another_descriptor_and_after_it_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    for _ in 0..2 {
        disk.create_dir("sub").unwrap();
        disk.open("sub/file", Open::New).unwrap();
        for _ in 0..2 {
            disk.sync_dir("sub").unwrap();
        }
        std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert!(disk.sync_dir("sub").is_err());
    }
}

#[test]
fn a_file_as_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(RealDisk::open(dir.path().join("file")).is_err());
    assert!(RealDisk::open(dir.path().join("file/below")).is_err());
}

#[test]
fn synced_sectors_survive_and_others_may_not() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let file = disk.open("f", Open::New).unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir("").unwrap();
        file.write_at(&[2; 2048], 1024).unwrap();
        disk.crash();
        assert!(is_crash(&file.len().unwrap_err()));
        disk.restart();
        assert!(is_crash(&file.len().unwrap_err()), "files must be opened again");
        let bytes = disk.bytes("f").unwrap();
        assert_eq!(bytes.len(), 4096);
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let new = bytes.iter().filter(|byte| **byte == 2).count();
            match (2..6).contains(&sector) {
                false => assert_eq!(new, 0),
                true if new == 0 => lost += 1,
                true if new == 512 => kept += 1,
                true => torn += 1,
            }
        }
    }
    assert!(lost > 100 && kept > 100 && torn > 10, "lost {lost}, kept {kept}, torn {torn}");
}

#[test]
fn an_unsynced_name_may_vanish_but_a_rename_never_loses_both() {
    let (mut vanished, mut old) = (0, 0);
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        replace_file(&disk, "f", b"one").unwrap();
        disk.open("new", Open::New).unwrap();
        let temporary = disk.open("f.tmp", Open::New).unwrap();
        temporary.write_at(b"two", 0).unwrap();
        temporary.sync_data().unwrap();
        disk.rename("f.tmp", "f").unwrap();
        disk.crash();
        disk.restart();
        let bytes = disk.bytes("f").expect("the file is there");
        assert!(bytes == b"one" || bytes == b"two");
        old += u32::from(bytes == b"one");
        vanished += u32::from(disk.len("new").unwrap().is_none());
    }
    assert!((10..90).contains(&old) && (5..90).contains(&vanished), "old {old}, vanished {vanished}");
}

#[test]
fn a_crash_comes_at_the_chosen_operation() {
    let disk = SimDisk::new(1);
    disk.crash_after(3);
    let file = disk.open("f", Open::New).unwrap();
    file.write_at(b"x", 0).unwrap();
    assert!(is_crash(&file.sync_data().unwrap_err()));
    assert!(disk.is_crashed());
    assert!(is_crash(&disk.list("").unwrap_err()));
    disk.restart();
    disk.list("").unwrap();
}

#[test]
fn a_full_simulated_disk_refuses_growth_only() {
    let disk = SimDisk::new(1);
    let file = disk.open("f", Open::New).unwrap();
    file.allocate(1000).unwrap();
    disk.set_capacity(Some(1000));
    assert_eq!(file.write_at(b"x", 1000).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.allocate(1001).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_at(b"x", 999).unwrap();
    file.truncate(10).unwrap();
    file.write_at(&[1; 990], 10).unwrap();
}

#[test]
fn a_failed_sync_forgets_for_good() {
    let disk = SimDisk::new(2);
    let file = disk.open("f", Open::New).unwrap();
    file.write_at(&[1; 512], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    let mut lost = 0;
    for seed in 0..50 {
        let disk = disk.fork(seed);
        let file = disk.open("f", Open::Existing).unwrap();
        file.write_at(&[2; 512], 0).unwrap();
        disk.fail_syncs(1);
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        disk.crash();
        lost += u32::from(disk.bytes("f").unwrap() == [1; 512]);
    }
    assert!(lost > 5, "{lost}");
}

#[test]
fn a_planned_fault_fails_one_operation_and_a_write_in_part() {
    let disk = SimDisk::new(3);
    let file = disk.open("f", Open::New).unwrap();
    let mut partly = 0;
    for _ in 0..20 {
        file.write_at(&[1; 100], 0).unwrap();
        disk.set_faults(Faults { writes: 1, ..Faults::default() });
        file.write_at(&[2; 100], 0).unwrap_err();
        let written = disk.bytes("f").unwrap().iter().filter(|byte| **byte == 2).count();
        partly += u32::from((1..100).contains(&written));
    }
    assert!(partly > 10, "{partly}");
    disk.set_faults(Faults { changes: 1, ..Faults::default() });
    file.read_at(&mut [0; 4], 0).unwrap();
    disk.remove("f").unwrap_err();
    disk.remove("f").unwrap();
    assert_eq!(disk.failed(), 21);
}

#[test]
fn a_flipped_bit_is_known_until_it_is_written() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let file = disk.open("f", Open::New).unwrap();
        file.write_at(&[0; 1024], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir("").unwrap();
        disk.flip_bit("f", 7, 0).unwrap();
        disk.flip_bit("f", 600, 1).unwrap();
        disk.aside(|| assert_eq!(disk.bytes("f").unwrap(), [0; 1024]));
        assert_eq!(disk.bytes("f").unwrap()[7], 1, "reading does not repair it");
        // A crash may bring back the replaced bytes, and the flipped bit with them.
        file.write_at(&[9; 512], 0).unwrap();
        disk.crash();
        disk.restart();
        let sector: Vec<u8> = disk.bytes("f").unwrap()[..512].to_vec();
        disk.unflip();
        assert!(!disk.is_flipped());
        let healed = disk.bytes("f").unwrap();
        assert!(healed[512..].iter().all(|byte| *byte == 0));
        assert!(healed[..512].iter().all(|byte| matches!(byte, 0 | 9)), "seed {seed}: {sector:?}");
    }
}

#[test]
fn equal_seeds_give_equal_disks() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        for round in 0..20_u8 {
            let file = disk.open("f", if round == 0 { Open::New } else { Open::Replace });
            if let Ok(file) = file {
                file.write_at(&[round; 5000], u64::from(round) * 100).unwrap();
            }
            disk.sync_dir("").unwrap();
            disk.crash();
            disk.restart();
        }
        disk.bytes("f")
    };
    assert_eq!(run(5), run(5));
    assert!((0..10).any(|seed| run(seed) != run(5)));
}

#[test]
fn virtual_time_adds_up() {
    let disk = SimDisk::new(1);
    disk.set_costs(DiskCosts { operation: 1, per_64_kib: 10, sync: 100 });
    let file = disk.open("f", Open::New).unwrap();
    file.write_at(&[0; 65537], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.micros(), 1 + (1 + 20) + (1 + 100));
    let _: Arc<dyn Disk> = Arc::new(disk);
}

#[test]
fn a_removed_directory_may_come_back_as_it_was_synced_and_a_new_one_of_its_name_is_empty() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        disk.create_dir("dir").unwrap();
        drop(disk.open("dir/synced", Open::New).unwrap());
        disk.sync_dir("dir").unwrap();
        disk.sync_dir("").unwrap();
        drop(disk.open("dir/unsynced", Open::New).unwrap());
        disk.remove("dir/synced").unwrap();
        disk.remove("dir/unsynced").unwrap();
        disk.remove_dir("dir").unwrap();
        if seed % 2 == 1 {
            disk.sync_dir("").unwrap();
            disk.create_dir("dir").unwrap();
            disk.sync_dir("").unwrap();
        }
        disk.crash();
        disk.restart();
        let found = disk.list("dir");
        match seed % 2 {
            0 => assert!(found.is_err() || found.unwrap() == ["synced"], "seed {seed}"),
            _ => assert_eq!(found.unwrap(), [] as [&str; 0], "seed {seed}"),
        }
    }
}
