//! The data directory: one owner, atomic changes, and no silent fresh start.

use std::sync::Arc;
use stead_core::control::facts::Hello;
use stead_core::control::node::StartId;
use stead_core::ids::{ClusterId, Epoch, Incarnation, NodeId, ShardId};
use stead_store::data_dir::{DataDir, DataDirError, META_FILE, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::real_disk::RealDisk;
use stead_store::sim_disk::SimDisk;

fn meta() -> Meta {
    Meta {
        cluster: ClusterId(0x0123_4567_89ab_cdef_0000_0000_0000_0001),
        incarnation: Incarnation(1),
        node: NodeId(1),
        lives: 0,
        epoch_floor: Epoch(0),
        log_id: u64::MAX,
        log_created: false,
        clean: false,
        unsynced: None,
        restoring: false,
        has_control: false,
        starts: Vec::new(),
        services: vec![ServiceMeta { name: "kv".to_owned(), first: ShardId(0), shards: 64 }],
    }
}

fn never() -> Meta {
    panic!("the directory exists")
}

fn open(disk: &SimDisk, fresh: impl FnOnce() -> Meta) -> Result<(DataDir, bool), DataDirError> {
    DataDir::open(Arc::new(disk.clone()), fresh)
}

#[test]
fn facts_come_back_as_they_were_changed() {
    let disk = SimDisk::new(1);
    let (mut dir, created) = open(&disk, meta).unwrap();
    assert!(created);
    dir.update(|meta| {
        meta.lives += 1;
        meta.log_created = true;
    })
    .unwrap();
    disk.crash();
    disk.restart();
    let (dir, created) = open(&disk, never).unwrap();
    assert!(!created);
    assert_eq!(*dir.meta(), Meta { lives: 1, log_created: true, ..meta() });
}

#[test]
fn each_start_is_noted_with_its_life_and_the_first_and_the_newest_ones_stay() {
    let disk = SimDisk::new(1);
    let count = Hello::EARLIER_MAX as u128 + 20;
    for start in 1..=count {
        let (mut dir, _) = open(&disk, meta).unwrap();
        assert_eq!(u128::from(dir.begin_start(StartId(start)).unwrap().0), start);
        drop(dir);
        // As if the machine lost its power right away.
        disk.crash();
        disk.restart();
    }
    let (mut dir, _) = open(&disk, never).unwrap();
    let has = |dir: &DataDir, start| dir.meta().earlier_starts().contains(&StartId(start));
    assert!((1..100).chain(count - 100..count).all(|start| has(&dir, start)) && !has(&dir, count));
    assert_eq!(dir.meta().earlier_starts().len(), Hello::EARLIER_MAX);
    dir.update(|meta| meta.starts = vec![StartId(count)]).unwrap();
    assert_eq!(dir.meta().earlier_starts(), []);
    dir.begin_start(StartId(7)).unwrap();
    assert_eq!(dir.meta().earlier_starts(), [StartId(count)]);
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_or_the_new_facts() {
    for operation in 1.. {
        let disk = SimDisk::new(operation);
        let (mut dir, _) = open(&disk, meta).unwrap();
        disk.crash_after(operation);
        let done = dir.update(|meta| meta.lives = 9).is_ok();
        if !done {
            assert!(matches!(dir.update(|meta| meta.lives = 10), Err(DataDirError::Fatal)));
        }
        disk.restart();
        let lives = open(&disk, never).unwrap().0.meta().lives;
        assert!(lives == 9 || !done && lives == 0, "{lives}");
        if done {
            break;
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_creation_can_be_repeated() {
    for operation in 1.. {
        let disk = SimDisk::new(operation);
        disk.crash_after(operation);
        let done = open(&disk, meta).is_ok();
        disk.restart();
        assert_eq!(*open(&disk, meta).unwrap().0.meta(), meta());
        if done {
            break;
        }
    }
}

#[test]
fn a_full_disk_changes_nothing_and_can_be_repeated() {
    let disk = SimDisk::new(1);
    let (mut dir, _) = open(&disk, meta).unwrap();
    disk.set_capacity(Some(disk.used()));
    dir.update(|meta| meta.lives = 1).unwrap_err();
    assert_eq!(dir.meta().lives, 0);
    disk.set_capacity(None);
    dir.update(|meta| meta.lives = 2).unwrap();
    assert_eq!(open(&disk, never).unwrap().0.meta().lives, 2);
}

#[test]
fn facts_that_could_not_be_read_back_are_not_written() {
    let disk = SimDisk::new(1);
    let (mut dir, _) = open(&disk, meta).unwrap();
    let error = dir.update(|meta| meta.services[0].name = "k".repeat(5 << 20)).unwrap_err();
    assert!(matches!(&error, DataDirError::TooLarge { .. }), "{error}");
    dir.update(|meta| meta.lives = 2).unwrap();
    assert_eq!(open(&disk, never).unwrap().0.meta(), &Meta { lives: 2, ..meta() });
}

#[test]
fn files_without_facts_are_never_a_fresh_start() {
    let disk = SimDisk::new(1);
    disk.put("wal/0000000000000001.log", b"something");
    let error = open(&disk, never).unwrap_err();
    assert!(matches!(&error, DataDirError::MetaMissing { found } if found == "wal"), "{error}");
    assert!(matches!(DataDir::inspect(&disk), Err(DataDirError::MetaMissing { .. })));
    assert!(matches!(DataDir::inspect(&SimDisk::new(1)), Err(DataDirError::Empty)));
}

#[test]
fn damaged_facts_are_refused_with_the_reason() {
    let disk = SimDisk::new(1);
    open(&disk, meta).unwrap();
    let good = disk.bytes(META_FILE).unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            disk.put(META_FILE, &bytes);
            match DataDir::inspect(&disk) {
                // White space and letter case of a checksum's own text carry no fact.
                Ok(found) => assert_eq!(found, meta(), "byte {at} bit {bit}"),
                Err(DataDirError::MetaDamaged { .. } | DataDirError::Version { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        // Only the line's end may be missing.
        if at == good.len() - 1 {
            break;
        }
        disk.put(META_FILE, &good[..at]);
        assert!(matches!(open(&disk, never), Err(DataDirError::MetaDamaged { .. })), "cut at {at}");
    }
}

/// A start needs an epoch above the floor.
#[test]
fn a_floor_that_leaves_no_epoch_is_refused() {
    let create = |floor| {
        let disk = SimDisk::new(1);
        (open(&disk, || Meta { epoch_floor: Epoch(floor), ..meta() }).map(drop), disk)
    };
    let (created, disk) = create(u64::MAX - 1);
    created.unwrap();
    assert_eq!(DataDir::inspect(&disk).unwrap().epoch_floor, Epoch(u64::MAX - 1));
    // Version 1 has its epoch in the floor's place.
    let body = r#"{"cluster":"1","incarnation":1,"epoch":18446744073709551615,"log_id":"1","log_created":true,"services":[]}"#;
    let checksum = crc32fast::hash(body.as_bytes());
    let file = format!(r#"{{"format":1,"checksum":"{checksum:08x}","meta":{body}}}"#);
    disk.put(META_FILE, file.as_bytes());
    let error = DataDir::inspect(&disk).unwrap_err();
    assert!(error.to_string().contains("no epoch is above its epoch_floor"), "{error}");
    let (created, disk) = create(u64::MAX);
    assert!(matches!(created, Err(DataDirError::MetaDamaged { .. })), "{created:?}");
    assert_eq!(disk.bytes(META_FILE), None, "what cannot be read back is not written");
}

/// A start counts itself among the lives.
#[test]
fn lives_that_leave_no_room_for_another_are_refused() {
    let disk = SimDisk::new(1);
    let (mut dir, _) = open(&disk, || Meta { lives: u64::MAX - 2, ..meta() }).unwrap();
    dir.update(|meta| meta.lives += 1).unwrap();
    let error = dir.update(|meta| meta.lives += 1).unwrap_err();
    assert!(error.to_string().contains("no start can be counted above its lives"), "{error}");
    drop(dir);
    assert_eq!(DataDir::inspect(&disk).unwrap().lives, u64::MAX - 1);
}

#[test]
fn an_unknown_version_is_refused_whatever_else_the_file_says() {
    let disk = SimDisk::new(1);
    disk.put(META_FILE, br#"{"format": 3, "something": "new"}"#);
    let error = open(&disk, never).unwrap_err();
    assert!(matches!(error, DataDirError::Version { found: 3 }), "{error}");
    assert!(
        error.to_string().contains("format version 3, and this program reads versions 1 to 2"),
        "{error}"
    );
}

#[test]
fn an_oversized_file_is_refused_unread() {
    let disk = SimDisk::new(1);
    disk.put(META_FILE, &vec![b' '; (4 << 20) + 1]);
    assert!(matches!(open(&disk, never), Err(DataDirError::MetaDamaged { .. })));
}

#[test]
fn a_second_owner_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(temporary.path()).unwrap());
    let (dir, _) = DataDir::open(Arc::clone(&disk), meta).unwrap();
    let error = DataDir::open(Arc::clone(&disk), never).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(dir);
    DataDir::open(disk, never).unwrap();
}

#[test]
fn after_another_boot_a_log_that_was_not_synced_may_lack_something() {
    let disk = SimDisk::new(1);
    let (mut dir, _) = open(&disk, meta).unwrap();
    assert!(!dir.may_lack());
    dir.note_unsynced().unwrap();
    assert!(!dir.may_lack(), "the machine runs");
    drop(dir);
    disk.kill_process();
    assert!(!open(&disk, never).unwrap().0.may_lack(), "the process alone ended");
    disk.crash();
    disk.restart();
    let (mut dir, _) = open(&disk, never).unwrap();
    assert!(dir.may_lack());
    // As an end in order does, once the log is synced.
    dir.update(|meta| meta.unsynced = None).unwrap();
    assert!(!dir.may_lack());
    dir.note_lost().unwrap();
    assert!(dir.may_lack(), "the boot does not matter");
    dir.update(|meta| meta.unsynced = None).unwrap();
    drop(dir);
    disk.crash();
    disk.restart();
    assert!(!open(&disk, never).unwrap().0.may_lack());
}
