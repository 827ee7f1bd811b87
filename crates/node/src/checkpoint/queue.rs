//! Where workers and callers leave what concerns checkpoints.

use crate::bell::Bell;
use crate::checkpoint::merge::MergeDesk;
use crate::checkpoint::report::{CheckpointFailure, CheckpointReport};
use crate::env::Reply;
use crate::pace::Pace;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stead_core::checkpointing::merging::Merged;
use stead_core::ids::{Colour, ShardId};
use stead_core::records::Piece;
use stead_core::state::Header;

/// Bytes of snapshots that may wait to be written; over this, workers hold back.
const BEHIND_BYTES: usize = 16 << 20;
/// Snapshot bytes that are handed on at once: little enough to stay in a core's cache.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// Pieces whose room is kept for the next ones.
const SPARE_MAX: usize = 16;

/// What the checkpoint part learns.
pub enum Event {
    /// A shard has appended its marker, and its snapshot has begun.
    Begun {
        /// The shard.
        shard: ShardId,
        /// Its new colour.
        number: Colour,
        /// What its part holds beside the records.
        header: Box<Header>,
        /// The snapshot is of all records.
        all: bool,
    },
    /// A piece of a shard's snapshot.
    Records {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: Colour,
        /// Whole records and messages.
        piece: Piece,
        /// It is the last one.
        done: bool,
    },
    /// A shard's marker is committed.
    MarkerCommitted {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: Colour,
    },
    /// A checkpoint is wanted now.
    Wanted(Wanted),
    /// From now on begin one after each such time, or only when asked.
    Interval(Option<Duration>),
    /// A merge of bundles has ended, with a durable bundle or in vain.
    Merged(Option<Merged>),
    /// The node stops.
    Stop,
}

/// Where the result of a checkpoint goes that a caller asked for.
pub type CheckpointReply = Box<dyn Reply<Result<CheckpointReport, CheckpointFailure>>>;

/// A wish for a checkpoint.
pub struct Wanted {
    /// Where the result goes.
    pub reply: CheckpointReply,
    /// With the services' checks.
    pub checked: bool,
}

/// Where the checkpoint part takes its events from, with what it shows to others.
pub struct SnapshotQueue {
    events: Mutex<VecDeque<Event>>,
    /// Rung when there is an event.
    pub bell: Bell,
    /// The rate at which checkpoints and merges are written.
    pub(crate) pace: Pace,
    waiting: AtomicUsize,
    /// For the status: the newest checkpoint and the one that runs; 0 is none.
    pub(crate) newest: AtomicU64,
    pub(crate) running: AtomicU64,
    /// The room of pieces that were written.
    spare: Mutex<Vec<Piece>>,
    pins: Arc<Pins>,
    /// Where a merge is ordered.
    pub merges: MergeDesk,
}

/// Checkpoints that are read, and how many readers there are of each.
#[derive(Default)]
struct Pins(Mutex<BTreeMap<Colour, usize>>);

impl Pins {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Colour, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint that is not deleted while this lives.
pub(crate) struct Pin(Arc<Pins>, Colour);

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
    /// Nothing waits. At most so many bytes are written each second; 0 is unlimited.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            events: Mutex::default(),
            bell: Bell::default(),
            pace: Pace::new(bytes_per_second),
            waiting: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
            running: AtomicU64::new(0),
            spare: Mutex::default(),
            pins: Arc::default(),
            merges: MergeDesk::default(),
        }
    }

    /// Keeps a checkpoint while it is read.
    pub(crate) fn pin(&self, number: Colour) -> Pin {
        *self.pins.held().entry(number).or_default() += 1;
        Pin(Arc::clone(&self.pins), number)
    }

    pub(crate) fn pinned(&self) -> BTreeSet<Colour> {
        self.pins.held().keys().copied().collect()
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an event.
    pub fn send(&self, event: Event) {
        if let Event::Records { piece, .. } = &event {
            self.waiting.fetch_add(piece.bytes(), Ordering::Relaxed);
        }
        self.events().push_back(event);
        self.bell.ring();
    }

    /// Takes the next event, unless it is `held`.
    pub(crate) fn next(&self, held: impl Fn(&Event) -> bool) -> Next {
        let mut events = self.events();
        match events.front() {
            None => Next::None,
            Some(event) if held(event) => Next::Held,
            Some(_) => Next::Event(events.pop_front().expect("it was looked at")),
        }
    }

    /// Ends the parts of checkpoints. What waits before the end is no longer written slowly.
    pub(crate) fn stop(&self) {
        self.pace.set(0);
        self.send(Event::Stop);
        self.merges.stop();
    }

    /// An empty piece, with room if one is left.
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

    /// Whether so much waits that no more should be handed on now.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > BEHIND_BYTES
    }

    /// The checkpoint part has taken so many bytes; true if workers that held back may go on.
    pub(crate) fn took(&self, bytes: usize) -> bool {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        before > BEHIND_BYTES && before - bytes <= BEHIND_BYTES
    }
}

/// What a look at the events gave.
pub(crate) enum Next {
    None,
    /// The next one has to wait.
    Held,
    Event(Event),
}
