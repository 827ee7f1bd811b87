//! The checkpoint part over a simulated disk, turn by turn.

use super::*;
use crate::part::{Part, Turned};
use crate::reply::Reply;
use crate::roster::PartId;
use crate::shared::tests::{check_desk, shared};
use crate::sizes::Sizes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use stead_core::blob::Blob;
use stead_core::checkpointing::bundle::Author;
use stead_core::checkpointing::driver::{LogSpace, Options, Recovered};
use stead_core::checkpointing::merging::Policy;
use stead_core::checkpointing::retention::Garbage;
use stead_core::ids::{ClusterId, Epoch, Incarnation, NodeId};
use stead_core::records::{Piece, Records};
use stead_core::shutdown::Group;
use stead_core::state::{Header, Position};
use stead_core::topology::Topology;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::manifest::{MANIFESTS, Manifest, Totals, read_manifest};
use stead_store::checkpoint::store::{BlobReader, BlobStore, BlobWriter, DiskStore, Put, StoreError};
use stead_store::sim_disk::SimDisk;

const SHARD: ShardId = ShardId(0);
const TIMEOUT: u64 = 1_000_000;

/// A node that notes what its checkpoint part asks for.
struct Hub {
    queue: SnapshotQueue,
    commands: RefCell<Vec<CheckpointCommand>>,
    /// Readers that come once a collection has chosen what to delete.
    late: RefCell<Vec<Pin>>,
    is_late: bool,
}

impl CheckpointHub for Hub {
    fn queue(&self) -> &SnapshotQueue {
        &self.queue
    }

    fn wall(&self) -> Time {
        Time(7)
    }

    fn is_over(&self) -> bool {
        false
    }

    fn log_space(&self) -> LogSpace {
        LogSpace::Enough
    }

    fn watch(&self, action: &mut Action) {
        let Action::Delete(garbage) = action else { return };
        for garbage in garbage.iter().filter(|_| self.is_late) {
            if let Garbage::Checkpoint(number) = garbage {
                self.late.borrow_mut().push(self.queue.pin(*number));
            }
        }
    }

    fn perform(&self, command: CheckpointCommand) {
        self.commands.borrow_mut().push(command);
    }
}

/// Where the result of a wanted checkpoint goes.
struct Slot(Arc<Mutex<Option<Result<CheckpointReport, CheckpointFailure>>>>);

impl Reply<Result<CheckpointReport, CheckpointFailure>> for Slot {
    fn send(self: Box<Self>, result: Result<CheckpointReport, CheckpointFailure>) {
        *self.0.lock().unwrap() = Some(result);
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// A store that creates a manifest and says that it failed, as a remote one may whose answer is lost.
struct Lossy {
    store: DiskStore,
    loses: AtomicBool,
}

impl BlobStore for Lossy {
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let put = self.store.put_new(name, bytes)?;
        if name.starts_with(MANIFESTS) && self.loses.swap(false, Ordering::Relaxed) {
            let (name, place) = (name.to_owned(), "far away".to_owned());
            return Err(StoreError::Io {
                action: "create",
                name,
                place,
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        Ok(put)
    }

    fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.store.create(name)
    }

    fn open(&self, name: &str) -> Result<Box<dyn BlobReader>, StoreError> {
        self.store.open(name)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        self.store.list(dir)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete(name)
    }
}

struct Node {
    hub: Hub,
    part: CheckpointPart,
    store: Arc<dyn BlobStore>,
    now: u64,
}

impl Node {
    fn new(store: Arc<dyn BlobStore>, bytes_per_second: u64) -> Self {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("a", 1).unwrap();
        let setup = CheckpointSetup {
            store: Arc::clone(&store),
            topology: Arc::new(topology),
            epochs: BTreeMap::from([(SHARD, Epoch(1))]),
            author: Author { cluster: ClusterId(1), node: NodeId::FIRST, writer: 5 },
            block_bytes: Sizes::default().block_bytes,
            options: Options {
                interval: None,
                timeout: Duration::from_micros(TIMEOUT),
                keep: 1,
                elsewhere: [].into(),
                grace: Duration::ZERO,
                policy: Policy::default(),
            },
            recovered: Recovered::default(),
        };
        let hub = Hub {
            queue: SnapshotQueue::new(bytes_per_second, Sizes::default().behind_bytes),
            commands: RefCell::default(),
            late: RefCell::default(),
            is_late: false,
        };
        Self { hub, part: CheckpointPart::new(setup, Time(0)), store, now: 0 }
    }

    fn want(&self) -> Slot {
        let slot = Arc::default();
        let reply = Box::new(Slot(Arc::clone(&slot)));
        self.hub.queue.send(Event::Wanted(Wanted { reply, checked: false }));
        Slot(slot)
    }

    /// Gives turns until the part may sleep. After a failure of the store no turn may look as if all were well.
    fn turns(&mut self) -> Result<Option<Time>, String> {
        for _ in 0..1000 {
            let turned = self.part.turn(&self.hub, Time(self.now))?;
            assert_eq!(self.store.failure(), None, "the turn that met the failure went on");
            match turned {
                Turned::Again => {}
                Turned::Until(until) => return Ok(until),
                Turned::Ended => panic!("it ends"),
            }
        }
        panic!("it never sleeps");
    }

    fn commands(&self) -> Vec<CheckpointCommand> {
        self.hub.commands.take()
    }

    /// The shard marks a checkpoint, and hands over one record of so many bytes in each of two pieces.
    fn mark(&self, number: CheckpointNumber, bytes: usize) {
        let mut records = Records::new();
        for name in ["x", "y"] {
            let key = stead_core::record::RecordKey::process(&stead_core::key::Key::new(name).unwrap());
            records.put(key.as_bytes(), Blob::from(vec![7; bytes]));
        }
        records.begin_snapshot(true);
        let header = Box::new(Header {
            shard: SHARD,
            position: Position { colour: number.colour(), epoch: Epoch(1), ..Position::default() },
            outboxes: Default::default(),
            received: Default::default(),
            records: records.len() as u64,
            records_hash: records.hash().to_be_bytes(),
        });
        self.hub.queue.send(Event::Begun { shard: SHARD, number, header, all: true });
        self.hub.queue.send(Event::MarkerCommitted { shard: SHARD, number });
        let mut done = false;
        while !done {
            let mut piece = Piece::default();
            done = records.drain_snapshot(1, &mut piece);
            self.hub.queue.send(Event::Records { shard: SHARD, number, piece, done });
        }
    }
}

fn disk_store(disk: &SimDisk) -> DiskStore {
    DiskStore::open(Arc::new(disk.clone()), "checkpoints").unwrap()
}

fn completed(commands: &[CheckpointCommand]) -> Vec<CheckpointNumber> {
    let numbers = commands.iter().filter_map(|command| match command {
        CheckpointCommand::Completed { manifest, .. } => Some(manifest.number),
        _ => None,
    });
    numbers.collect()
}

#[test]
fn the_turn_that_meets_a_failed_sync_is_the_last_one() {
    let disk = SimDisk::new(1);
    let mut node = Node::new(Arc::new(disk_store(&disk)), 0);
    let slot = node.want();
    assert_eq!(node.turns().unwrap(), Some(Time(TIMEOUT)));
    node.mark(CheckpointNumber(1), 10);
    disk.fail_syncs(1);
    node.turns().unwrap_err();
    assert!(matches!(*slot.0.lock().unwrap(), Some(Err(CheckpointFailure::Stopped(_)))));
    assert_eq!(completed(&node.commands()), []);
}

#[test]
fn what_is_held_at_its_pace_is_given_up_in_time() {
    let disk = SimDisk::new(1);
    let mut node = Node::new(Arc::new(disk_store(&disk)), 1000);
    let slot = node.want();
    node.turns().unwrap();
    // The first piece takes more than the time of the checkpoint.
    node.mark(CheckpointNumber(1), 2000);
    assert_eq!(node.turns().unwrap(), Some(Time(TIMEOUT)));
    assert!(slot.0.lock().unwrap().is_none());
    node.now = TIMEOUT;
    node.turns().unwrap();
    let given_up = |command: &CheckpointCommand| {
        matches!(command, CheckpointCommand::GivenUp { number: CheckpointNumber(1), .. })
    };
    assert!(node.commands().iter().any(given_up));
    // The next one is not held up by what is left of it.
    node.want();
    node.turns().unwrap();
    node.mark(CheckpointNumber(2), 2000);
    node.now += 500_000;
    node.hub.queue.pace.set(0);
    node.turns().unwrap();
    assert_eq!(completed(&node.commands()), [CheckpointNumber(2)]);
}

#[test]
fn a_manifest_that_was_stored_in_spite_of_an_error_is_a_checkpoint() {
    let disk = SimDisk::new(1);
    let lossy = Lossy { store: disk_store(&disk), loses: AtomicBool::new(true) };
    let mut node = Node::new(Arc::new(lossy), 0);
    node.want();
    node.turns().unwrap();
    node.mark(CheckpointNumber(1), 10);
    node.turns().unwrap();
    let commands = node.commands();
    assert_eq!(completed(&commands), [CheckpointNumber(1)]);
    assert!(commands.iter().all(|command| !matches!(command, CheckpointCommand::GivenUp { .. })));
    assert!(commands.iter().any(|command| matches!(command, CheckpointCommand::Trim(_))));
    read_manifest(&*node.store, CheckpointNumber(1)).unwrap();
}

#[test]
fn a_checkpoint_that_is_wanted_when_the_part_ends_or_later_has_an_end_too() {
    let disk = SimDisk::new(9);
    let store: Arc<dyn BlobStore> = Arc::new(DiskStore::open(Arc::new(disk), "checkpoints").unwrap());
    let mut node = Node::new(store, 0);
    let before = node.want();
    node.turns().unwrap();
    node.hub.queue.stop();
    let behind = node.want();
    while node.part.turn(&node.hub, Time(node.now)).unwrap() != Turned::Ended {}
    let after = node.want();
    assert!(matches!(*before.0.lock().unwrap(), Some(Err(CheckpointFailure::Stopped(_)))));
    for slot in [behind, after] {
        assert_eq!(Arc::strong_count(&slot.0), 1, "its reply is kept, and the caller waits for ever");
    }
}

#[test]
fn a_reader_that_comes_after_the_choice_of_a_collection_keeps_what_it_reads() {
    let mut node = Node::new(Arc::new(disk_store(&SimDisk::new(1))), 0);
    node.hub.is_late = true;
    let take = |node: &mut Node, number| {
        node.want();
        node.turns().unwrap();
        node.mark(CheckpointNumber(number), 10);
        node.turns().unwrap();
        read_manifest(&*node.store, CheckpointNumber(number)).unwrap()
    };
    let first = take(&mut node, 1);
    take(&mut node, 2);
    assert_eq!(node.hub.late.borrow().len(), 1, "the first one was to be deleted");
    read_manifest(&*node.store, CheckpointNumber(1)).unwrap();
    for bundle in &first.bundles {
        node.store.open(&bundle.name).unwrap();
    }
    node.hub.is_late = false;
    node.hub.late.take();
    take(&mut node, 3);
    assert!(read_manifest(&*node.store, CheckpointNumber(1)).is_err(), "nothing reads it any more");
}

#[test]
fn a_checkpoint_is_pinned_until_its_last_reader_has_gone() {
    let queue = SnapshotQueue::new(0, Sizes::default().behind_bytes);
    let [first, second] = [0; 2].map(|_| queue.pin(CheckpointNumber(7)));
    drop(first);
    assert_eq!(queue.pinned().into_iter().collect::<Vec<_>>(), [CheckpointNumber(7)]);
    drop(second);
    assert!(queue.pinned().is_empty());
}

fn manifest(number: CheckpointNumber, section_bytes: u64) -> Manifest {
    Manifest {
        cluster: None,
        incarnation: Incarnation(1),
        number,
        created: Time(1),
        writer: 5,
        services: Vec::new(),
        bundles: Vec::new(),
        parts: Vec::new(),
        in_flight: Vec::new(),
        totals: Totals { section_bytes, ..Totals::default() },
        checks: Vec::new(),
    }
}

/// Parts that panicked, or are held by users' code, let no caller wait.
#[test]
fn a_failure_ends_the_waiting_for_checkpoints_and_checks_without_their_parts() {
    let shared = shared();
    shared.checks.part_begins();
    let (asked, checked): (Arc<Mutex<_>>, Arc<Mutex<_>>) = Default::default();
    shared.checkpoint(false, Box::new(Slot(Arc::clone(&asked))));
    let wanted = vec![Wanted { reply: Box::new(Slot(Arc::clone(&checked))), checked: true }];
    let (manifest, duration) = (Box::new(manifest(CheckpointNumber(1), 1)), Duration::ZERO);
    shared.perform(CheckpointCommand::Completed { manifest, duration, wanted });
    assert_eq!((Arc::strong_count(&asked), Arc::strong_count(&checked)), (2, 2), "both wait");
    shared.fail("it is broken".to_owned());
    assert_eq!((Arc::strong_count(&asked), Arc::strong_count(&checked)), (1, 1));
    assert!(asked.lock().unwrap().is_none(), "the caller learns the reason from the node");
    let report = checked.lock().unwrap().take().unwrap().unwrap();
    assert_eq!(report.check, CheckOutcome::NotChecked);
    assert!(shared.snapshots.pinned().is_empty() && shared.copies.is_stopped());
}

/// The end of a node does not always wait for the checks, so what they meet after it is no failure. Without their part no
/// caller waits.
#[test]
fn checks_that_end_after_their_node_fail_nothing_and_hold_no_caller() {
    let shared = shared();
    shared.part_begins(PartId::Checks);
    assert!(!shared.roster.has_ended(Group::Watchdog, None));
    shared.begin_end();
    shared.stop_all();
    shared.part_ended(PartId::Checks, Err("it is broken".to_owned()));
    assert!(shared.failure().is_none() && shared.roster.has_ended(Group::Watchdog, None));

    let shared = crate::shared::tests::shared();
    shared.part_begins(PartId::Checks);
    shared.part_ended(PartId::Checks, Err("it is broken".to_owned()));
    assert_eq!(shared.failure(), Some("it is broken"));

    let shared = crate::shared::tests::shared();
    shared.part_begins(PartId::Checks);
    shared.part_ended(PartId::Checks, Ok(()));
    let checked: Arc<Mutex<_>> = Arc::default();
    let wanted = vec![Wanted { reply: Box::new(Slot(Arc::clone(&checked))), checked: true }];
    let (manifest, duration) = (Box::new(manifest(CheckpointNumber(1), 1)), Duration::ZERO);
    shared.perform(CheckpointCommand::Completed { manifest, duration, wanted });
    assert!(checked.lock().unwrap().is_some());
}

/// The pin of a checkpoint is held while its checks wait or run.
#[test]
fn checkpoints_of_the_interval_are_checked_up_to_a_size_and_others_if_that_is_asked_for() {
    let mut shared = shared();
    Arc::get_mut(&mut shared).unwrap().checks = check_desk(100);
    shared.checks.part_begins();
    let complete = |number: u64, section_bytes: u64, asked: Option<bool>| {
        let number = CheckpointNumber(number);
        let slot = Arc::default();
        let reply = || Box::new(Slot(Arc::clone(&slot)));
        let wanted = asked.map(|checked| Wanted { reply: reply(), checked }).into_iter().collect();
        let (manifest, duration) = (Box::new(manifest(number, section_bytes)), Duration::ZERO);
        shared.perform(CheckpointCommand::Completed { manifest, duration, wanted });
        let is_answered = slot.lock().unwrap().is_some();
        (shared.snapshots.pinned().contains(&number), is_answered)
    };
    assert_eq!(complete(1, 100, None), (true, false), "the greatest size");
    assert_eq!(complete(2, 101, None), (false, false));
    assert_eq!(complete(3, 1, Some(false)), (false, true), "it is small, and no check is wanted");
    assert_eq!(complete(4, 1000, Some(true)), (true, false), "it is answered after its checks");
    assert_eq!(shared.counters.checkpoints_unchecked.get(), 2);
}
