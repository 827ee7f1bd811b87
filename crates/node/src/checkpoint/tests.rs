//! The checkpoint part over a simulated disk, turn by turn.

use super::*;
use crate::part::{Part, Turned};
use crate::reply::Reply;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use stead_core::blob::Blob;
use stead_core::checkpointing::bundle::Author;
use stead_core::checkpointing::driver::{Options, Recovered};
use stead_core::checkpointing::merging::Policy;
use stead_core::ids::{ClusterId, Epoch, Incarnation, NodeId};
use stead_core::records::{Piece, Records};
use stead_core::state::{Header, Position};
use stead_core::topology::Topology;
use stead_store::checkpoint::manifest::{MANIFESTS, read_manifest};
use stead_store::checkpoint::store::{BlobReader, BlobStore, BlobWriter, DiskStore, Put, StoreError};
use stead_store::sim_disk::SimDisk;

const SHARD: ShardId = ShardId(0);
const TIMEOUT: u64 = 1_000_000;

/// A node that notes what its checkpoint part asks for.
struct Hub {
    queue: SnapshotQueue,
    commands: RefCell<Vec<CheckpointCommand>>,
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

    fn is_log_spent(&self) -> bool {
        false
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
            options: Options {
                interval: None,
                timeout: Duration::from_micros(TIMEOUT),
                keep: 1,
                grace: Duration::ZERO,
                policy: Policy::default(),
            },
            recovered: Recovered::default(),
        };
        let hub = Hub { queue: SnapshotQueue::new(bytes_per_second), commands: RefCell::default() };
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
fn a_checkpoint_is_pinned_until_its_last_reader_has_gone() {
    let queue = SnapshotQueue::new(0);
    let [first, second] = [0; 2].map(|_| queue.pin(CheckpointNumber(7)));
    drop(first);
    assert_eq!(queue.pinned().into_iter().collect::<Vec<_>>(), [CheckpointNumber(7)]);
    drop(second);
    assert!(queue.pinned().is_empty());
}
