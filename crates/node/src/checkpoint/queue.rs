//! The queue through which workers and callers give work to the checkpoint part.

use crate::bell::Bell;
use crate::checkpoint::desk::MergeDesk;
use crate::checkpoint::report::{CheckpointFailure, CheckpointReport};
use crate::pace::Pace;
use crate::reply::Reply;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::checkpointing::lineage::Merged;
use stead_core::ids::{CheckpointNumber, ShardId};
use stead_core::records::Piece;
use stead_core::state::Header;

/// Number of written pieces whose capacity is kept for the next ones.
const SPARE_MAX: usize = 16;

/// An event for the checkpoint part.
pub enum Event {
    /// A shard has appended its marker, and its snapshot has begun.
    Begun {
        /// The shard.
        shard: ShardId,
        /// Its new colour.
        number: CheckpointNumber,
        /// The state of its part besides the records.
        header: Box<Header>,
        /// Whether the snapshot is of all records.
        all: bool,
    },
    /// A piece of a shard's snapshot.
    Records {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
        /// Whole records and messages.
        piece: Piece,
        /// Whether it is the last one.
        done: bool,
    },
    /// A shard's marker is committed.
    MarkerCommitted {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// A checkpoint is requested now.
    Wanted(Wanted),
    /// Begin one after each interval from now on, or only on request.
    Interval(Option<Duration>),
    /// A merge of bundles has ended, with a durable bundle or with a failure.
    Merged(Option<Merged>),
    /// The node stops.
    Stop,
}

/// The receiver of the result of a checkpoint that a caller requested.
pub type CheckpointReply = Box<dyn Reply<Result<CheckpointReport, CheckpointFailure>>>;

/// A request for a checkpoint.
pub struct Wanted {
    /// The receiver of the result.
    pub reply: CheckpointReply,
    /// Whether to run the services' checks.
    pub checked: bool,
}

/// The queue of the checkpoint part's events, with the state that it shows to others.
pub struct SnapshotQueue {
    /// `None` once the checkpoint part has ended: an event that is added then is dropped, with the reply that it holds.
    events: Mutex<Option<VecDeque<Event>>>,
    /// Rung when there is an event.
    pub bell: Bell,
    /// The rate at which checkpoints and merges are written.
    pub(crate) pace: Pace,
    /// Bytes of snapshots that wait to be written, and their limit, above which workers hold back.
    waiting: AtomicUsize,
    behind_bytes: usize,
    /// For the status: the newest checkpoint and the running one; 0 for none.
    pub(crate) newest: AtomicU64,
    pub(crate) running: AtomicU64,
    /// The capacity of written pieces.
    spare: Mutex<Vec<Piece>>,
    pins: Arc<Pins>,
    /// The desk at which merges are requested.
    pub merges: MergeDesk,
}

/// Checkpoints that are being read, with the number of readers of each.
#[derive(Default)]
struct Pins(Mutex<BTreeMap<CheckpointNumber, usize>>);

impl Pins {
    fn held(&self) -> MutexGuard<'_, BTreeMap<CheckpointNumber, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a checkpoint from being deleted while this lives.
pub(crate) struct Pin(Arc<Pins>, CheckpointNumber);

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.0.held();
        if let Some(readers) = pins.get_mut(&self.1) {
            *readers -= 1;
            pins.retain(|_, readers| *readers > 0);
        }
    }
}

impl SnapshotQueue {
    /// Creates an empty queue. At most `bytes_per_second` are written; 0 is unlimited. Workers hold back while more than
    /// `behind_bytes` wait.
    #[must_use]
    pub fn new(bytes_per_second: u64, behind_bytes: usize) -> Self {
        Self {
            events: Mutex::new(Some(VecDeque::new())),
            bell: Bell::default(),
            pace: Pace::new(bytes_per_second),
            waiting: AtomicUsize::new(0),
            behind_bytes,
            newest: AtomicU64::new(0),
            running: AtomicU64::new(0),
            spare: Mutex::default(),
            pins: Arc::default(),
            merges: MergeDesk::default(),
        }
    }

    /// Keeps a checkpoint while it is read.
    pub(crate) fn pin(&self, number: CheckpointNumber) -> Pin {
        *self.pins.held().entry(number).or_default() += 1;
        Pin(Arc::clone(&self.pins), number)
    }

    /// Deletes a checkpoint's manifest, unless it is pinned: then returns `None`. A reader that pins it afterwards finds that it
    /// is gone.
    pub(crate) fn unless_pinned<T>(&self, number: CheckpointNumber, delete: impl FnOnce() -> T) -> Option<T> {
        let pins = self.pins.held();
        (!pins.contains_key(&number)).then(delete)
    }

    /// Returns the checkpoints that are being read. They may change at once: what is deleted on this account must ask
    /// [`Self::unless_pinned`].
    pub(crate) fn pinned(&self) -> BTreeSet<CheckpointNumber> {
        self.pins.held().keys().copied().collect()
    }

    fn events(&self) -> MutexGuard<'_, Option<VecDeque<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Once the checkpoint part has ended it is dropped instead.
    pub fn send(&self, event: Event) {
        let bytes = if let Event::Records { piece, .. } = &event { piece.bytes() } else { 0 };
        // Dropped after the lock, because dropping a reply runs code of its caller.
        let refused = match &mut *self.events() {
            Some(events) => {
                self.waiting.fetch_add(bytes, Ordering::Relaxed);
                events.push_back(event);
                None
            }
            None => Some(event),
        };
        if refused.is_none() {
            self.bell.ring();
        }
    }

    /// Drops the waiting events and all later ones: no part takes them any more.
    pub fn close(&self) {
        let dropped = self.events().take();
        drop(dropped);
    }

    /// Takes the next event, unless it is `held`.
    pub(crate) fn next(&self, held: impl Fn(&Event) -> bool) -> Next {
        let mut events = self.events();
        let Some(events) = &mut *events else { return Next::Closed };
        match events.front() {
            None => Next::None,
            Some(event) if held(event) => Next::Held,
            Some(_) => Next::Event(events.pop_front().expect("it was looked at")),
        }
    }

    /// Ends the parts of checkpoints. The remaining work is written without a limit of the rate.
    pub fn stop(&self) {
        self.pace.set(0);
        self.send(Event::Stop);
        self.merges.stop();
    }

    /// Returns an empty piece, with capacity if a spare one is left.
    #[must_use]
    pub fn spare(&self) -> Piece {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&self, mut piece: Piece) {
        piece.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(piece);
        }
    }

    /// Whether so many bytes wait that no more should be handed over now.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.waiting() > self.behind_bytes
    }

    /// Returns the bytes of snapshots that wait to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Notes that the checkpoint part has taken this many bytes; returns true if workers that held back may continue.
    pub(crate) fn took(&self, bytes: usize) -> bool {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        before > self.behind_bytes && before - bytes <= self.behind_bytes
    }
}

/// The result of looking for the next event.
pub(crate) enum Next {
    None,
    /// The next event has to wait.
    Held,
    Event(Event),
    /// No further event comes.
    Closed,
}
