//! Starts of a node, and its options.

use super::*;
use crate::open::recover_in;
use stead_core::ids::Incarnation;
use stead_store::checkpoint::begun::Begun;
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, ServiceMeta};

#[test]
fn services_and_tasks_may_be_left_without_their_code_by_name() {
    let without_code = BTreeSet::from(["gone".to_owned()]);
    let code = Registered { program: &Counters, without_code: &without_code };
    assert!(code.has_service("counter") && code.has_service("gone") && !code.has_service("other"));
    assert!(code.has_task("gone", "counter") && code.has_task("task", "gone"));
    assert!(!code.has_task("task", "counter") && !code.has_task("counter", "other"));
}

/// The longest write of a log is shorter than the longest segment.
#[test]
fn a_node_opens_with_segments_of_any_length_that_a_log_takes() {
    for segment_bytes in [64 << 10, 256 << 20, 1 << 30] {
        let options = Options { segment_bytes, ..Node::options(1) };
        let found = Node::recover(&SimDisk::new(1), &options).unwrap();
        let max = found.recovered.wal.batch_bytes_max() as u64;
        assert!(max <= 256 << 20 && max + (16 << 10) >= segment_bytes.min(256 << 20), "{max}");
    }
}

/// Two directories' logs never take each other's segments for their own.
#[test]
fn each_data_directory_and_its_log_have_identities_of_their_own() {
    let [one, other] = [1, 2].map(|seed| {
        let found = Node::recover(&SimDisk::new(seed), &Node::options(1)).unwrap();
        let meta = found.data_dir.meta();
        (meta.cluster, meta.log_id)
    });
    assert!(one.0 != other.0 && one.1 != other.1);
}

/// Only the first start creates a log: later, no log means that it was lost.
#[test]
fn a_start_without_its_log_is_refused() {
    let disk = SimDisk::new(5);
    drop(Node::recover(&disk, &Node::options(1)).unwrap());
    for path in disk.files().into_iter().filter(|path| path.starts_with("wal/")) {
        Disk::remove(&disk, &path).unwrap();
    }
    let before = disk.files();
    let refused = Node::recover(&disk, &Node::options(1)).err().unwrap();
    assert!(
        matches!(refused, OpenError::Recovery(RecoveryError::Log(WalError::Missing { .. }))),
        "{refused}"
    );
    assert_eq!(disk.files(), before);
}

/// The facts of a clean directory as version 1 stored them.
const META_V1: &str = r#"{"format":1,"checksum":"47cb0980","meta":{"cluster":"00000000000000000000000000000001","incarnation":1,"epoch":1000,"log_id":"0000000000000007","log_created":true,"clean":true,"services":[{"name":"counter","first_shard":0,"shards":2}]}}"#;

/// A start that finds no room for its promises leaves the facts as they were: their version, so that an older program can
/// still open them, and the mark of a clean end, because no handler has run.
#[test]
fn a_start_without_room_for_its_promises_changes_no_fact() {
    let disk = SimDisk::new(6);
    let options = Node::options(1);
    let code = Registered { program: &Counters, without_code: &options.without_code };
    let fresh = || Meta { log_id: 7, ..plan::fresh_meta() };
    let start = || recover(Arc::new(disk.clone()), &code, plan::recover_options(&options), fresh);
    let end_in_order = || {
        let (mut data_dir, _) = DataDir::open(Arc::new(disk.clone()), fresh).unwrap();
        data_dir.update(|meta| meta.clean = true).unwrap();
        disk.bytes(META_FILE).unwrap()
    };
    drop(start().unwrap());
    // There is room for the facts, but not for another segment of the log.
    disk.set_capacity(Some(disk.used() + 4096));
    let mut lives = 1;
    let before = loop {
        let before = end_in_order();
        match start() {
            Ok(found) => assert!(!found.data_dir.meta().clean && found.data_dir.meta().lives == lives + 1),
            Err(OpenError::Recovery(RecoveryError::Log(WalError::NoSpace { .. }))) => break before,
            Err(error) => panic!("{error}"),
        }
        lives += 1;
        assert!(lives < 100, "the log is never full");
    };
    assert!(disk.bytes(META_FILE).unwrap() == before, "after {lives} lives");
    disk.put(META_FILE, META_V1.as_bytes());
    assert!(matches!(start(), Err(OpenError::Recovery(RecoveryError::Log(WalError::NoSpace { .. })))));
    assert_eq!(disk.bytes(META_FILE).unwrap(), META_V1.as_bytes());

    disk.set_capacity(None);
    let found = start().unwrap();
    assert!(found.plan.assume_clean, "the life before ended in order");
    assert_eq!((found.data_dir.meta().lives, found.data_dir.meta().clean), (1001, false));
    assert!(found.plan.epochs.values().all(|epoch| epoch.0 > 1000), "version 1 gave epochs up to 1000");
    assert!(found.recovered.wal.is_marked());
}

/// A life that is counted before its opening is counted once, and one whose opening fails says nothing about the life before.
#[test]
fn a_life_is_counted_once_and_leaves_open_whether_the_last_one_ended_in_order() {
    let disk = SimDisk::new(6);
    let options = Node::options(1);
    let code = Registered { program: &Counters, without_code: &options.without_code };
    let open = || DataDir::open(Arc::new(disk.clone()), plan::fresh_meta).unwrap();
    let facts = |data_dir: &DataDir| (data_dir.meta().lives, data_dir.meta().clean);
    let (mut data_dir, created) = open();
    assert!(created);
    assert_eq!([(); 2].map(|()| data_dir.begin_life().unwrap().0), [1, 1]);
    let found = recover_in((data_dir, created), &code, plan::recover_options(&options)).unwrap();
    assert_eq!((facts(&found.data_dir), found.plan.assume_clean), ((1, false), true));
    drop(found);

    let (mut data_dir, _) = open();
    data_dir.update(|meta| meta.clean = true).unwrap();
    drop(data_dir);
    let (mut data_dir, _) = open();
    assert_eq!(data_dir.begin_life().unwrap().0, 2);
    // Its opening fails.
    drop(data_dir);
    let (mut data_dir, created) = open();
    assert_eq!((facts(&data_dir), data_dir.begin_life().unwrap().0), ((2, true), 3));
    let found = recover_in((data_dir, created), &code, plan::recover_options(&options)).unwrap();
    assert!(found.plan.assume_clean, "the life before ended in order");
    assert_eq!(facts(&found.data_dir), (3, false));
    drop(found);
    let found = recover_in(open(), &code, plan::recover_options(&options)).unwrap();
    assert_eq!((facts(&found.data_dir), found.plan.assume_clean), ((4, false), false));
}

/// A node that joins a cluster has its services before its first opening, in the order of the cluster.
#[test]
fn a_new_data_directory_may_list_services() {
    let mut options = Node::options(1);
    options.services[0].shards = None;
    options.without_code.insert("other".to_owned());
    let services = [("other", 0, 3), ("counter", 3, 5)].map(|(name, first, shards)| ServiceMeta {
        name: name.to_owned(),
        first: ShardId(first),
        shards,
    });
    let fresh = || Meta { services: services.to_vec(), ..plan::fresh_meta() };
    let code = Registered { program: &Counters, without_code: &options.without_code };
    let opened = DataDir::open(Arc::new(SimDisk::new(6)), fresh).unwrap();
    let found = recover_in(opened, &code, plan::recover_options(&options)).unwrap();
    assert!(found.created);
    assert_eq!(found.data_dir.meta().services, services);
    assert_eq!(found.recovered.states.len(), 8);
}

/// Makes the parts of a life over what was recovered.
fn assembled(found: Recovery, options: Options) -> Parts<Stepped> {
    let around = (Ticking(AtomicU64::new(1_000_000_000)), Withholding::default());
    assemble::<Stepped>(
        Counters,
        around,
        found,
        (options, Sockets::default()),
        Drawn::fresh(),
        Instant::now(),
    )
}

#[test]
fn a_node_writes_checkpoints_at_the_rate_of_its_options() {
    let disk = SimDisk::new(5);
    let mut options = Node::options(1);
    options.checkpoints.bytes_per_second = 12_345;
    let found = Node::recover(&disk, &options).unwrap();
    let parts = assembled(found, options);
    assert_eq!(parts.life.shared.snapshots.pace.rate(), 12_345);
}

#[test]
fn user_code_has_the_limits_of_the_options() {
    let disk = SimDisk::new(5);
    let [handler, step] = [7, 11].map(Duration::from_secs);
    let mut options = Options { handler_timeout: handler, task_step_timeout: step, ..Node::options(2) };
    options.services[0].settings.attempts_max = 13;
    let found = Node::recover(&disk, &options).unwrap();
    let of_check = |name: &str| plan::check_limits(name.to_owned(), &found.services).1.attempts_max;
    assert_eq!([of_check("counter"), of_check("other")], [13, Settings::default().attempts_max]);
    let parts = assembled(found, options);
    let limits: Vec<_> = parts.probes.iter().map(|(_, limit)| (limit.time, limit.option)).collect();
    let handlers = (handler, "handler_timeout");
    assert_eq!(limits, [handlers, handlers, (step, "task_step_timeout")], "two workers, and a task thread");
    assert_eq!(parts.query_limit, handler);
}

/// Returns the files of a disk, but for those of the log, whose unsynced tail a start may cut, and unfinished ones.
fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let mut paths = disk.files();
    paths.retain(|path| !path.starts_with("wal/") && !path.ends_with(".tmp"));
    paths.into_iter().map(|path| (path.clone(), disk.bytes(&path).unwrap())).collect()
}

/// All that a start reads is read before its first write, the marks of services' checks last.
#[test]
fn a_start_that_cannot_read_something_changes_nothing() {
    let disk = SimDisk::new(8);
    let options = Node::options(1);
    drop(Node::open(&disk, 1));
    let store = DiskStore::open(Arc::new(disk.clone()), CHECKPOINTS).unwrap();
    for number in [1, 2] {
        let (incarnation, number) = (Incarnation(1), CheckpointNumber(number));
        let begun = Begun { incarnation, number, service: "counter".to_owned() };
        begun.store(&store, &begun.name(5)).unwrap();
    }
    let before = files(&disk);
    let (mut refused, mut at) = (0, 1);
    loop {
        let disk = disk.fork(at);
        disk.refuse_after(at);
        let started = Node::open_as(&disk, options.clone());
        match started.map(drop) {
            Ok(()) if disk.failed() == 0 => break,
            // The operation that failed was not needed.
            Ok(()) => {}
            // The metadata and the promises are written last.
            Err(OpenError::DataDir(_) | OpenError::Recovery(RecoveryError::Log(_))) => {}
            Err(error) => {
                refused += usize::from(matches!(error, OpenError::Store(_)));
                assert!(files(&disk) == before, "operation {at}: {error}");
            }
        }
        at += 1;
    }
    assert!(refused > 2, "the marks could not be read in {refused} starts of {at}");
}
