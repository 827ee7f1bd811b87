//! An operator's look at the processes and dead letters of a shard, a piece at a time.
//!
//! A shard may hold millions of records. So a look examines a bounded number of them, and what it finds says where the next one goes on.
//! Both have an encoded form, for a shard whose primary is on another node.

use crate::blob::Blob;
use crate::ids::{Index, TaskId, Time, TimerId};
use crate::key::Key;
use crate::record::{DeadLetter, Kind, RecordKey, TaskHead, TimerRecord};
use crate::state::State;
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What an operator asks of a shard's state. Nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Look {
    /// The processes with a state whose keys begin so: [`Found::Processes`].
    #[n(0)]
    Processes {
        /// The slot to go on from; 0 at first. It means nothing in another epoch.
        #[n(0)]
        from: u64,
        /// The beginning of the keys.
        #[n(1)]
        prefix: String,
        /// Maximum number of them: [`Look::PROCESSES_MAX`] at most.
        #[n(2)]
        limit: u32,
    },
    /// The state of a process: [`Found::State`].
    #[n(1)]
    State {
        /// The process.
        #[n(0)]
        process: Key,
    },
    /// The number of cells of processes, and their bytes: [`Found::Cells`].
    #[n(2)]
    Cells {
        /// The processes: at most [`Look::PROCESSES_MAX`] are examined.
        #[n(0)]
        of: Vec<Key>,
        /// The cell of the first one to go on from.
        #[n(1)]
        from: Option<Blob>,
    },
    /// The keys of the first cells of a process: [`Found::CellKeys`].
    #[n(3)]
    CellKeys {
        /// The process.
        #[n(0)]
        process: Key,
        /// Maximum number of them: [`Look::RECORDS`] at most.
        #[n(1)]
        limit: u32,
    },
    /// The timers of processes, in the order in which they fire: [`Found::Timers`].
    #[n(4)]
    Timers {
        /// The processes: at most [`Look::PROCESSES_MAX`] are examined.
        #[n(0)]
        of: Vec<Key>,
        /// The last one of the piece before.
        #[n(1)]
        after: Option<(Time, TimerId)>,
        /// The number of timers that are returned with their content.
        #[n(2)]
        listed: u32,
    },
    /// The tasks of processes: [`Found::Tasks`].
    #[n(5)]
    Tasks {
        /// The processes: at most [`Look::PROCESSES_MAX`] are examined.
        #[n(0)]
        of: Vec<Key>,
        /// The last one of the piece before.
        #[n(1)]
        after: Option<TaskId>,
        /// The number of tasks that are returned with their content.
        #[n(2)]
        listed: u32,
    },
    /// Dead letters, by index: [`Found::DeadLetters`].
    #[n(6)]
    DeadLetters {
        /// The index to go on from.
        #[n(0)]
        from: Index,
        /// Maximum number of them.
        #[n(1)]
        limit: u32,
        /// Bytes of payloads after which the piece ends.
        #[n(2)]
        room: u64,
    },
}

/// What a [`Look`] has found.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Found {
    /// Processes.
    #[n(0)]
    Processes {
        /// Their keys, and the bytes of their states.
        #[n(0)]
        found: Vec<(Key, u64)>,
        /// The slot to go on from; `None` behind the last one.
        #[n(1)]
        next: Option<u64>,
    },
    /// The state of a process, if it has one.
    #[n(1)]
    State(#[n(0)] Option<Blob>),
    /// Cells.
    #[n(2)]
    Cells {
        /// The number of cells and their bytes, of each process in turn.
        #[n(0)]
        counts: Vec<(u64, u64)>,
        /// The cell to go on from, of the last of these processes: the piece has as many as it may.
        #[n(1)]
        next: Option<Blob>,
    },
    /// The keys of cells.
    #[n(3)]
    CellKeys(#[n(0)] Vec<RecordKey>),
    /// Timers.
    #[n(4)]
    Timers {
        /// All of this piece, each with the place of its process in the look.
        #[n(0)]
        ids: Vec<(u32, TimerId)>,
        /// The content of the first ones.
        #[n(1)]
        listed: Vec<(TimerId, TimerRecord)>,
        /// The last one that was examined; `None` behind the last piece.
        #[n(2)]
        next: Option<(Time, TimerId)>,
    },
    /// Tasks.
    #[n(5)]
    Tasks {
        /// All of this piece, each with the place of its process in the look.
        #[n(0)]
        ids: Vec<(u32, TaskId)>,
        /// The content of the first ones.
        #[n(1)]
        listed: Vec<(TaskId, TaskHead)>,
        /// The last one that was examined; `None` behind the last piece.
        #[n(2)]
        next: Option<TaskId>,
    },
    /// Dead letters.
    #[n(6)]
    DeadLetters {
        /// These.
        #[n(0)]
        found: Vec<(Index, DeadLetter)>,
        /// The index to go on from; `None` behind the last one.
        #[n(1)]
        next: Option<Index>,
    },
}

impl Look {
    /// Maximum number of processes of one look.
    pub const PROCESSES_MAX: usize = 1000;
    /// Maximum number of cells, timers, tasks or dead letters that one look examines.
    pub const RECORDS: usize = 1024;
    /// Number of slots of records that one look examines: less than a millisecond.
    const SLOTS: usize = 8192;
    /// Bytes of contents after which a piece ends.
    const LISTED_BYTES: usize = 1 << 20;

    /// Returns the bytes that it occupies besides its own size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys = |of: &[Key]| of.iter().map(|key| size_of::<Key>() + key.len()).sum::<usize>();
        match self {
            Self::Processes { prefix, .. } => prefix.len(),
            Self::State { process } | Self::CellKeys { process, .. } => process.len(),
            Self::Cells { of, from } => keys(of) + from.as_ref().map_or(0, |from| from.len()),
            Self::Timers { of, .. } | Self::Tasks { of, .. } => keys(of),
            Self::DeadLetters { .. } => 0,
        }
    }

    /// Looks at a state.
    #[must_use]
    pub fn at(&self, state: &State) -> Found {
        match self {
            Self::Processes { from, prefix, limit } => {
                let limit = (*limit as usize).clamp(1, Self::PROCESSES_MAX);
                processes(state, usize::try_from(*from).unwrap_or(usize::MAX), prefix, limit)
            }
            Self::State { process } => {
                Found::State(state.records().get(RecordKey::process(process).as_bytes()).cloned())
            }
            Self::Cells { of, from } => cells(state, of, from.as_deref()),
            Self::CellKeys { process, limit } => {
                let all = RecordKey::cell(process, b"");
                let from = state.records().scan_cells_from(all.as_bytes());
                let own = from.take_while(|(key, _)| key.starts_with(all.as_bytes()));
                let first = own.take((*limit as usize).min(Self::RECORDS));
                Found::CellKeys(first.filter_map(|(key, _)| RecordKey::from_bytes(key)).collect())
            }
            Self::Timers { of, after, listed } => {
                let (mut ids, mut records) = (Vec::new(), Listed::new(*listed));
                let place = places(of);
                let next = each(state.timers(), *after, |&(_, id)| {
                    if let Some(timer) = state.record::<TimerRecord>(&RecordKey::timer(id))
                        && let Some(at) = place(&timer.process)
                    {
                        ids.push((at, id));
                        let bytes = timer.payload.len();
                        records.push(id, timer, bytes);
                    }
                    records.is_full()
                });
                Found::Timers { ids, listed: records.items, next }
            }
            Self::Tasks { of, after, listed } => {
                let (mut ids, mut records) = (Vec::new(), Listed::new(*listed));
                let place = places(of);
                let next = each(state.tasks(), *after, |&id| {
                    if let Some(task) = state.record::<TaskHead>(&RecordKey::task(id))
                        && let Some(at) = place(&task.process)
                    {
                        ids.push((at, id));
                        let bytes =
                            task.name.len() + task.retry.as_ref().map_or(0, |retry| retry.reason.len());
                        records.push(id, task, bytes);
                    }
                    records.is_full()
                });
                Found::Tasks { ids, listed: records.items, next }
            }
            Self::DeadLetters { from, limit, room } => {
                let limit = (*limit as usize).min(Self::RECORDS);
                let room = usize::try_from(*room).unwrap_or(usize::MAX).min(Self::LISTED_BYTES);
                dead_letters(state, *from, limit, room)
            }
        }
    }
}

impl Found {
    /// Returns the encoded form.
    ///
    /// # Panics
    /// Never: memory takes everything.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("memory takes everything")
    }

    /// Reads an encoded form.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, minicbor::decode::Error> {
        minicbor::decode(bytes)
    }
}

/// The content of the first items of a piece.
struct Listed<I, T> {
    items: Vec<(I, T)>,
    limit: usize,
    bytes: usize,
}

impl<I, T> Listed<I, T> {
    fn new(limit: u32) -> Self {
        Self { items: Vec::new(), limit: (limit as usize).min(Look::RECORDS), bytes: 0 }
    }

    fn push(&mut self, id: I, item: T, bytes: usize) {
        if self.items.len() < self.limit {
            self.bytes += bytes;
            self.items.push((id, item));
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= Look::LISTED_BYTES
    }
}

/// Returns the function from a process to its place.
fn places(of: &[Key]) -> impl Fn(&Key) -> Option<u32> + use<'_> {
    let of = of.iter().take(Look::PROCESSES_MAX);
    let places: BTreeMap<&str, u32> = of.map(|key| &**key).zip(0..).collect();
    move |process| places.get(&**process).copied()
}

/// Visits a set behind an item, until `visit` returns true or has seen as many as a look may. Returns the last one, unless the set ended.
fn each<K: Ord + Copy>(set: &BTreeSet<K>, after: Option<K>, mut visit: impl FnMut(&K) -> bool) -> Option<K> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    for (count, key) in (1..).zip(set.range((from, Bound::Unbounded))) {
        if visit(key) || count == Look::RECORDS {
            return Some(*key);
        }
    }
    None
}

/// Returns the processes of some slots, and the slot to continue from, unless that was the last one.
fn processes(state: &State, from: usize, prefix: &str, limit: usize) -> Found {
    let records = state.records();
    let end = from.saturating_add(Look::SLOTS);
    let is_left = |next: &u64| *next < records.slot_count() as u64;
    let mut found = Vec::new();
    for (slot, key, value) in records.iter_slots(from..end) {
        let Some((kind, key)) = key.split_first() else { continue };
        if *kind != Kind::Process as u8 || !key.starts_with(prefix.as_bytes()) {
            continue;
        }
        let Some(key) = std::str::from_utf8(key).ok().and_then(|key| Key::new(key).ok()) else { continue };
        found.push((key, value.len() as u64));
        if found.len() == limit {
            return Found::Processes { found, next: Some(slot as u64 + 1).filter(is_left) };
        }
    }
    Found::Processes { found, next: Some(end as u64).filter(is_left) }
}

fn cells(state: &State, of: &[Key], mut from: Option<&[u8]>) -> Found {
    let mut counts = Vec::new();
    let mut passed = 0;
    for process in of.iter().take(Look::PROCESSES_MAX) {
        let all = RecordKey::cell(process, b"");
        let from = from.take().unwrap_or(all.as_bytes());
        let (mut count, mut bytes) = (0, 0);
        for (key, value) in state.records().scan_cells_from(from) {
            if !key.starts_with(all.as_bytes()) {
                break;
            }
            if passed == Look::RECORDS {
                counts.push((count, bytes));
                return Found::Cells { counts, next: Some(Blob::from(key)) };
            }
            passed += 1;
            count += 1;
            bytes += value.len() as u64;
        }
        counts.push((count, bytes));
    }
    Found::Cells { counts, next: None }
}

fn dead_letters(state: &State, from: Index, limit: usize, room: usize) -> Found {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for index in state.dead_letters_from(from) {
        if found.len() == limit || bytes >= room {
            return Found::DeadLetters { found, next: Some(index) };
        }
        if let Some(letter) = state.record::<DeadLetter>(&RecordKey::dead_letter(index)) {
            bytes += letter.payload.len();
            found.push((index, letter));
        }
    }
    Found::DeadLetters { found, next: None }
}
