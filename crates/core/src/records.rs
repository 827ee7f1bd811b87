//! The records of a shard: a hash index over a slab, with copy-on-write snapshots of the changed records.
//!
//! A snapshot begins in constant time. Its contents are then taken in slices, between which writes continue: a write to
//! a record that the snapshot has not taken yet first saves the old value for the snapshot. So the stall is bounded by
//! the slice, never by the size of the state. The records that are taken share their values with the state; the writer
//! of the snapshot copies them, on its own time.

use crate::blob::Blob;
use crate::channel::Message;
use crate::ids::ShardId;
use crate::ordered::{Frozen, Ordered};
use crate::record::{Kind, RecordKey};
use crate::slab::{PlaceIndex, Slab};
use smallvec::SmallVec;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::OnceLock;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_secret, xxh3_128_with_seed};

/// Length of the secret with which records are indexed, in bytes.
pub const SECRET_LEN: usize = 192;

static SECRET: OnceLock<[u8; SECRET_LEN]> = OnceLock::new();
/// For processes without a secret. It differs from the hash's own, so that tests see the difference.
static NO_SECRET: [u8; SECRET_LEN] = no_secret();

const fn no_secret() -> [u8; SECRET_LEN] {
    let mut bytes = [0; SECRET_LEN];
    let (mut at, mut state) = (0, 0x5ead_u64);
    while at < SECRET_LEN {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        bytes[at] = (state >> 56) as u8;
        at += 1;
    }
    bytes
}

/// Sets a secret, drawn by the shell, with which all later records in this process are indexed: clients that choose
/// keys can then not make them collide. Stored data does not depend on it. The first call counts; without one a fixed
/// secret is used.
pub fn set_secret(secret: [u8; SECRET_LEN]) {
    let _ = SECRET.set(secret);
}

/// All records of one shard.
pub struct Records {
    secret: &'static [u8; SECRET_LEN],
    slots: Slab<Slot>,
    index: PlaceIndex,
    free: Vec<u32>,
    /// The records of the kind `Cell` again: for scans in order, and for queries, which read a copy of them.
    cells: Ordered<RecordKey, Blob>,
    /// Slots written since the last snapshot began; each once.
    dirty: Vec<u32>,
    generation: u32,
    snapshot: Option<Snapshot>,
    /// Values saved by snapshots that were given up: also dropped in slices.
    garbage: Piece,
    hash: u128,
    live: usize,
    bytes: usize,
}

struct Slot {
    /// Short keys are stored inline: no allocation, and one cache miss less for each lookup.
    key: SmallVec<[u8; 16]>,
    /// `None`: free, or deleted while a stored snapshot still holds the key.
    value: Option<Blob>,
    /// The position in the index, which depends on the secret.
    hash: u64,
    /// The generation in which the slot was last written; 0 once a snapshot has taken it.
    generation: u32,
    /// A snapshot has the key, so the next one must have a delete.
    stored: bool,
}

struct Snapshot {
    scope: Scope,
    cursor: usize,
    /// Old values of records that were written before the snapshot took them.
    saved: Piece,
}

/// Number of records that are prefetched together before they are taken: they are in no cache.
const AHEAD: usize = 16;

/// Records of a snapshot, which share their values with the state, and messages of the outboxes that belong to it.
#[derive(Default)]
pub struct Piece {
    records: Vec<(SmallVec<[u8; 16]>, Option<Blob>)>,
    messages: Vec<(ShardId, Message)>,
    bytes: usize,
}

impl Piece {
    /// Bytes of a value that are prefetched; the processor predicts the rest of longer values.
    const AHEAD_BYTES: usize = 1024;
    /// Bytes that the processor fetches at once.
    const LINE_BYTES: usize = 64;

    /// Returns the bytes that [`Piece::encode`] appends, plus approximately those of the messages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of records and messages together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len() + self.messages.len()
    }

    /// Whether there are no records and no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the messages and their receiving shards: the next ones of the outboxes that the part's [`Header`]
    /// begins.
    ///
    /// [`Header`]: crate::state::Header
    #[must_use]
    pub fn messages(&self) -> &[(ShardId, Message)] {
        &self.messages
    }

    /// Appends the records in their stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.bytes);
        for (at, (key, value)) in self.records.iter().enumerate() {
            if at.is_multiple_of(AHEAD) {
                // They are in no cache, and are fetched in parallel if they are requested together.
                for (_, value) in self.records[at..].iter().take(AHEAD) {
                    let value = value.as_deref().unwrap_or_default();
                    let lines = value.iter().take(Self::AHEAD_BYTES).step_by(Self::LINE_BYTES);
                    std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
                }
            }
            encode_record(key, value.as_deref(), out);
        }
    }

    /// Returns the records in their stored form.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Removes all contents, and keeps the capacity for other records.
    pub fn clear(&mut self) {
        self.records.clear();
        self.messages = Vec::new();
        self.bytes = 0;
    }

    pub(crate) fn push_message(&mut self, to: ShardId, message: Message) {
        self.bytes += message.weight();
        self.messages.push((to, message));
    }

    fn push(&mut self, key: &SmallVec<[u8; 16]>, value: Option<&Blob>) {
        self.bytes += record_bytes(key, value);
        self.records.push((key.clone(), value.cloned()));
    }

    /// Takes up to `max` of the last records of another piece; returns their number.
    fn take_last(&mut self, other: &mut Self, max: usize) -> usize {
        let left = other.records.len().saturating_sub(max);
        let taken = other.records.len() - left;
        for (key, value) in other.records.drain(left..) {
            let bytes = record_bytes(&key, value.as_ref());
            other.bytes -= bytes;
            self.bytes += bytes;
            self.records.push((key, value));
        }
        taken
    }
}

impl Default for Records {
    fn default() -> Self {
        Self::new()
    }
}

impl Snapshot {
    /// Returns the slot at a position of the snapshot.
    fn slot(&self, at: usize) -> u32 {
        match &self.scope {
            Scope::Changed(slots) => slots[at],
            Scope::All(_) => at as u32,
        }
    }
}

enum Scope {
    /// The slots that were dirty when it began; these have the previous generation until they are taken.
    Changed(Vec<u32>),
    /// Every slot below this one.
    All(usize),
}

impl Records {
    /// Maximum number of bytes of a record's value: 64 MiB.
    pub const VALUE_MAX: usize = 64 << 20;

    /// Creates an empty set of records.
    #[must_use]
    pub fn new() -> Self {
        Self {
            secret: SECRET.get().unwrap_or(&NO_SECRET),
            slots: Slab::new(),
            index: PlaceIndex::new(),
            free: Vec::new(),
            cells: Ordered::default(),
            dirty: Vec::new(),
            generation: 1,
            snapshot: None,
            garbage: Piece::default(),
            hash: 0,
            live: 0,
            bytes: 0,
        }
    }

    fn place(&self, key: &[u8]) -> u64 {
        xxh3_64_with_secret(key, self.secret)
    }

    /// Returns the value of a record.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Blob> {
        self.find(key).and_then(|slot| self.slots[slot as usize].value.as_ref())
    }

    /// Prefetches a record and the bytes of its value.
    pub(crate) fn look_ahead(&self, key: &[u8]) {
        if let Some(value) = self.get(key) {
            std::hint::black_box((value.first(), value.last()));
        }
    }

    /// Puts a value and returns the old one.
    pub fn put(&mut self, key: &[u8], value: Blob) -> Option<Blob> {
        let place = self.place(key);
        let slot = match self.find_at(key, place) {
            Some(slot) => slot,
            None => self.insert_slot(key, place),
        };
        self.before_write(slot);
        let hash = xxh3_64(key);
        self.hash = self.hash.wrapping_add(xxh3_128_with_seed(&value, hash));
        self.bytes += value.len();
        if key[0] == Kind::Cell as u8 {
            match self.slots[slot as usize].value {
                Some(_) => *self.cells.get_mut(key).expect("the index has each live cell") = value.clone(),
                None => drop(self.cells.insert(RecordKey::of(key), value.clone())),
            }
        }
        let old = self.slots[slot as usize].value.replace(value);
        match &old {
            Some(old) => self.forget(old, hash),
            None => {
                self.live += 1;
                self.bytes += key.len();
            }
        }
        old
    }

    /// Deletes a record and returns its value, if there was one.
    pub fn remove(&mut self, key: &[u8]) -> Option<Blob> {
        let slot = self.find(key)?;
        self.slots[slot as usize].value.as_ref()?;
        self.before_write(slot);
        let old = self.slots[slot as usize].value.take()?;
        self.forget(&old, xxh3_64(key));
        self.live -= 1;
        self.bytes -= key.len();
        if key[0] == Kind::Cell as u8 {
            self.cells.remove(key);
        }
        if !self.slots[slot as usize].stored {
            self.release(slot);
        }
        Some(old)
    }

    fn forget(&mut self, old: &Blob, hash: u64) {
        self.hash = self.hash.wrapping_sub(xxh3_128_with_seed(old, hash));
        self.bytes -= old.len();
    }

    /// Returns the live cells from a key on, in order of their keys.
    pub fn scan_cells_from(&self, from: &[u8]) -> impl Iterator<Item = (&[u8], &Blob)> + use<'_> {
        self.cells.all().from(from).map(|(key, value)| (key.as_bytes(), value))
    }

    /// Returns the current cells of a process; see [`Ordered::part`].
    pub(crate) fn cells_of(&self, process: &str) -> Frozen<RecordKey, Blob> {
        let all = RecordKey::cell(process, b"");
        let all = all.as_bytes();
        self.cells.part(|key| match key.as_bytes() {
            key if key.starts_with(all) => Ordering::Equal,
            key => key.cmp(all),
        })
    }

    /// Returns all live records, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Blob)> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref().map(|value| (&*slot.key, value)))
    }

    /// Returns the live records in a range of slots, in no order of their keys: a walk in pieces takes one range after
    /// the other, up to [`Self::slot_count`]. Records that are put meanwhile may be missed.
    pub fn iter_slots(&self, slots: Range<usize>) -> impl Iterator<Item = (usize, &[u8], &Blob)> {
        let from = slots.start.min(self.slots.len());
        let until = slots.end.clamp(from, self.slots.len());
        let live = (from..until).map(|at| (at, &self.slots[at]));
        live.filter_map(|(at, slot)| slot.value.as_ref().map(|value| (at, &*slot.key, value)))
    }

    /// Returns the number of slots, including empty ones.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of live records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there are no live records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Returns the bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the sum of the hashes of all records: equal contents give equal sums, regardless of history.
    #[must_use]
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Returns the number of records that the next snapshot would have.
    #[must_use]
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Reserves capacity for records that are about to be loaded.
    pub fn reserve(&mut self, records: usize) {
        let slots = &self.slots;
        self.index.reserve(records, |slot| slots[slot as usize].hash);
    }

    /// Loads a stored record: it counts as held by a snapshot already.
    pub fn load(&mut self, key: &[u8], value: Option<Blob>) {
        match value {
            Some(value) => drop(self.put(key, value)),
            None => {
                // Nothing is dirty while loading, so the slot can be released at once.
                if let Some(slot) = self.find(key) {
                    self.slots[slot as usize].stored = false;
                    self.remove(key);
                }
            }
        }
    }

    /// Ends a load: all records count as held by the stored snapshots.
    pub fn loaded(&mut self) {
        for slot in self.slots.iter_mut() {
            slot.generation = 0;
            slot.stored = slot.value.is_some();
        }
        self.dirty = Vec::new();
    }

    /// Begins a snapshot of the records that changed since the last one began, or of all.
    ///
    /// # Panics
    /// If the last snapshot is not drained and this one is not of all records: the records of that one would be missed.
    pub fn begin_snapshot(&mut self, all: bool) {
        assert!(
            all || self.snapshot.is_none(),
            "records that the last snapshot did not take would be in none"
        );
        let changed = std::mem::take(&mut self.dirty);
        self.generation =
            self.generation.checked_add(1).expect("fewer than 2^32 snapshots in a process's life");
        let scope = if all { Scope::All(self.slots.len()) } else { Scope::Changed(changed) };
        if let Some(mut given_up) = self.snapshot.take() {
            if self.garbage.is_empty() {
                self.garbage = given_up.saved;
            } else {
                self.garbage.records.append(&mut given_up.saved.records);
            }
        }
        self.snapshot = Some(Snapshot { scope, cursor: 0, saved: Piece::default() });
    }

    /// Whether a snapshot waits to be drained.
    #[must_use]
    pub fn snapshot_runs(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Appends up to `records` more records of the snapshot to `out`; true once it is complete.
    pub fn drain_snapshot(&mut self, records: usize, out: &mut Piece) -> bool {
        let left = self.garbage.len().saturating_sub(records);
        self.garbage.records.truncate(left);
        if left == 0 {
            self.garbage = Piece::default();
        }
        let Some(mut snapshot) = self.snapshot.take() else { return true };
        let records = records - out.take_last(&mut snapshot.saved, records);
        let end = match &snapshot.scope {
            Scope::Changed(slots) => slots.len(),
            Scope::All(len) => *len,
        };
        let stop = end.min(snapshot.cursor + records);
        for at in snapshot.cursor..stop {
            if (at - snapshot.cursor).is_multiple_of(AHEAD) {
                self.look_at(&snapshot, at..stop.min(at + AHEAD));
            }
            let slot = snapshot.slot(at);
            if self.pending(&snapshot.scope, slot) {
                self.slots[slot as usize].generation = 0;
                self.take(slot, matches!(snapshot.scope, Scope::All(_)), out);
                let taken = &self.slots[slot as usize];
                if taken.value.is_none() && !taken.key.is_empty() {
                    self.release(slot);
                }
            }
        }
        snapshot.cursor = stop;
        if stop == end && snapshot.saved.is_empty() && self.garbage.is_empty() {
            return true;
        }
        self.snapshot = Some(snapshot);
        false
    }

    /// Prefetches slots and then their values, each kind in parallel.
    fn look_at(&self, snapshot: &Snapshot, range: Range<usize>) {
        let slots = || range.clone().map(|at| &self.slots[snapshot.slot(at) as usize]);
        std::hint::black_box(slots().fold(0, |sum, slot| sum ^ slot.generation));
        let first = |slot: &Slot| slot.value.as_ref().and_then(|value| value.first()).copied().unwrap_or(0);
        std::hint::black_box(slots().fold(0, |sum, slot| sum ^ first(slot)));
    }

    /// Whether the running snapshot has yet to take a slot.
    fn pending(&self, scope: &Scope, slot: u32) -> bool {
        let generation = self.slots[slot as usize].generation;
        match scope {
            Scope::Changed(_) => generation == self.generation - 1,
            Scope::All(_) => generation != self.generation,
        }
    }

    /// Gives the current record of a slot to the snapshot.
    fn take(&mut self, slot: u32, all: bool, out: &mut Piece) {
        let slot = &mut self.slots[slot as usize];
        match &slot.value {
            Some(value) => out.push(&slot.key, Some(value)),
            // A snapshot of all records replaces the stored ones, so it has no deletes.
            None if slot.stored && !all => out.push(&slot.key, None),
            None => {}
        }
        slot.stored = slot.value.is_some();
    }

    /// Saves the old value for a running snapshot, and marks the slot as changed.
    fn before_write(&mut self, slot: u32) {
        if let Some(mut snapshot) = self.snapshot.take() {
            let ahead = match &snapshot.scope {
                Scope::Changed(_) => true,
                Scope::All(len) => (slot as usize) < *len && slot as usize >= snapshot.cursor,
            };
            if ahead && self.pending(&snapshot.scope, slot) {
                let all = matches!(snapshot.scope, Scope::All(_));
                self.take(slot, all, &mut snapshot.saved);
            }
            self.snapshot = Some(snapshot);
        }
        let written = &mut self.slots[slot as usize];
        if written.generation != self.generation {
            written.generation = self.generation;
            self.dirty.push(slot);
        }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        self.find_at(key, self.place(key))
    }

    fn find_at(&self, key: &[u8], place: u64) -> Option<u32> {
        self.index.find(place, |slot| self.slots[slot as usize].key[..] == *key)
    }

    fn insert_slot(&mut self, key: &[u8], place: u64) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 records in a shard");
                self.slots.push(Slot {
                    key: SmallVec::new(),
                    value: None,
                    hash: 0,
                    generation: 0,
                    stored: false,
                });
                slot
            }
        };
        let reused = &mut self.slots[slot as usize];
        reused.key = key.into();
        reused.hash = place;
        let slots = &self.slots;
        self.index.insert(place, slot, |slot| slots[slot as usize].hash);
        slot
    }

    /// Frees the slot of a deleted record. It may stay in the list of dirty slots, where empty slots are skipped.
    fn release(&mut self, slot: u32) {
        let hash = self.slots[slot as usize].hash;
        self.index.remove(hash, slot);
        let released = &mut self.slots[slot as usize];
        released.key = SmallVec::new();
        released.stored = false;
        self.free.push(slot);
    }

    /// Checks the invariants of the slab, its index and its sums.
    ///
    /// # Errors
    /// A sentence that names the violation.
    pub fn check(&self) -> Result<(), String> {
        let mut hash = 0u128;
        let (mut live, mut bytes, mut cells) = (0, 0, 0);
        for (key, value) in self.iter() {
            hash = hash.wrapping_add(xxh3_128_with_seed(value, xxh3_64(key)));
            live += 1;
            bytes += key.len() + value.len();
            let is_cell = key[0] == Kind::Cell as u8;
            if self.get(key) != Some(value) || is_cell && self.cells.all().get(key) != Some(value) {
                return Err(format!("record {:?} is not found by its key", RecordKey::from_bytes(key)));
            }
            cells += usize::from(is_cell);
        }
        if (hash, live, bytes) != (self.hash, self.live, self.bytes) {
            return Err(format!(
                "sums differ: {live} records of {bytes} bytes hash to {hash:x}, counted {} of {}, {:x}",
                self.live, self.bytes, self.hash
            ));
        }
        if self.cells.all().iter().count() != cells {
            return Err(format!("the index of cells does not hold the {cells} that there are"));
        }
        Ok(())
    }
}

/// Bytes of a stored record before its key.
const RECORD_HEAD_LEN: usize = 6;

/// Returns the bytes that [`encode_record`] appends.
fn record_bytes(key: &[u8], value: Option<&Blob>) -> usize {
    RECORD_HEAD_LEN + key.len() + value.map_or(0, |value| value.len())
}

/// Appends one record of a snapshot: length of the key (u16), length of the value plus one or 0 for a delete (u32),
/// both little endian, then key and value.
pub fn encode_record(key: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    let key_len = u16::try_from(key.len()).expect("record keys are shorter than 64 KiB");
    out.extend_from_slice(&key_len.to_le_bytes());
    let value_len = value.map_or(0, |v| u32::try_from(v.len() + 1).expect("values are at most 64 MiB"));
    out.extend_from_slice(&value_len.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value.unwrap_or_default());
}

/// Snapshot bytes without a valid record where one should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot record at byte {at}; the snapshot is damaged or of another version")]
pub struct NoRecord {
    /// The position, in bytes from the start.
    pub at: usize,
}

/// A record of a snapshot: its key, and its value unless it was deleted.
pub type StoredRecord<'a> = (&'a [u8], Option<&'a [u8]>);

/// Decodes the records of a snapshot section in order; ends after the first error.
pub fn decode_records(section: &[u8]) -> impl Iterator<Item = Result<StoredRecord<'_>, NoRecord>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = section.get(at..).filter(|rest| !rest.is_empty())?;
        let record = decode_record(rest);
        match record {
            Some((record, len)) => {
                at += len;
                Some(Ok(record))
            }
            None => {
                let error = NoRecord { at };
                at = section.len();
                Some(Err(error))
            }
        }
    })
}

/// Returns the first record of the bytes, and its length.
fn decode_record(bytes: &[u8]) -> Option<(StoredRecord<'_>, usize)> {
    let (key_len, rest) = bytes.split_first_chunk::<2>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let key_len = usize::from(u16::from_le_bytes(*key_len));
    let value_len = u32::from_le_bytes(*value_len) as usize;
    let (key, rest) = rest.split_at_checked(key_len)?;
    Kind::from_number(*key.first()?)?;
    if key_len > RecordKey::LEN_MAX || value_len > Records::VALUE_MAX + 1 {
        return None;
    }
    match value_len.checked_sub(1) {
        None => Some(((key, None), 6 + key_len)),
        Some(len) => Some(((key, Some(rest.get(..len)?)), 6 + key_len + len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn model(records: &Records) -> Model {
        records.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    }

    fn fold(stored: &mut Model, section: &[u8]) {
        for record in decode_records(section) {
            let (key, value) = record.unwrap();
            match value {
                Some(value) => drop(stored.insert(key.to_vec(), value.to_vec())),
                None => drop(stored.remove(key)),
            }
        }
    }

    /// Random writes while snapshots are drained in slices: the stored sections always fold to the state that the
    /// records had when the snapshot began, and a fresh load of them has the same hash.
    #[test]
    fn snapshots_hold_the_state_at_their_begin() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut records = Records::new();
            let mut stored = Model::new();
            let mut at_begin: Option<(Model, u128, bool)> = None;
            let mut piece = Piece::default();
            for _ in 0..600 {
                let key = if rng.bool() {
                    RecordKey::process(&rng.u8(0..24).to_string())
                } else {
                    RecordKey::cell("p", &[rng.u8(0..12)])
                };
                match rng.u8(0..10) {
                    0..5 => drop(records.put(key.as_bytes(), Blob::from(vec![rng.u8(..); rng.usize(0..9)]))),
                    5..8 => drop(records.remove(key.as_bytes())),
                    8 if at_begin.is_none() => {
                        let all = rng.u8(0..4) == 0;
                        records.begin_snapshot(all);
                        at_begin = Some((model(&records), records.hash(), all));
                    }
                    _ => {
                        if records.drain_snapshot(rng.usize(0..7), &mut piece)
                            && let Some((expected, hash, all)) = at_begin.take()
                        {
                            if all {
                                stored.clear();
                            }
                            let section = piece.to_vec();
                            assert_eq!(section.len(), piece.bytes(), "seed {seed}");
                            piece.clear();
                            fold(&mut stored, &section);
                            assert_eq!(stored, expected, "seed {seed}");
                            let mut loaded = Records::new();
                            for (key, value) in &stored {
                                loaded.load(key, Some(Blob::from(value.as_slice())));
                            }
                            loaded.loaded();
                            assert_eq!(loaded.hash(), hash, "seed {seed}");
                        }
                    }
                }
                records.check().unwrap();
            }
        }
    }

    /// Keys that collide in the hash without a secret: where four bytes of a key equal those of the hash's own secret,
    /// it multiplies by zero, and the terms that it adds beside that cancel out.
    #[test]
    fn keys_that_are_made_to_fall_together_do_not() {
        let key = |n: u32| {
            let mut key = vec![0; 299];
            key[0] = Kind::Idempotency as u8;
            key[8..12].copy_from_slice(&[0x7c, 0x01, 0x81, 0x2c]);
            key[12..16].copy_from_slice(&n.to_le_bytes());
            key[72..76].copy_from_slice(&[0xde, 0xd4, 0x6d, 0xe9]);
            key[76..80].copy_from_slice(&n.wrapping_neg().to_le_bytes());
            key
        };
        let mut records = Records::new();
        let (mut places, without) = (BTreeSet::new(), xxh3_64(&key(1)));
        for n in 1..=20_000 {
            let key = key(n);
            assert_eq!(xxh3_64(&key), without, "the attack works without a secret");
            places.insert(records.place(&key));
            records.put(&key, Blob::empty());
        }
        assert!(places.len() > 19_990, "{} places for 20,000 keys", places.len());
        assert_eq!(records.len(), 20_000);
        records.check().unwrap();
    }

    #[test]
    fn deleted_records_that_no_snapshot_holds_leave_no_slot() {
        let mut records = Records::new();
        for i in 0..10_000u32 {
            let key = RecordKey::process(&i.to_string());
            records.put(key.as_bytes(), Blob::empty());
            records.remove(key.as_bytes());
        }
        assert_eq!(records.slots.len(), 1);
        assert_eq!(records.dirty_len(), 1);
        assert_eq!(records.hash(), 0);
    }

    #[test]
    fn cells_are_scanned_in_order() {
        let mut records = Records::new();
        for cell in ["b", "a", "c"] {
            records.put(RecordKey::cell("p", cell.as_bytes()).as_bytes(), Blob::from(cell.as_bytes()));
        }
        records.put(RecordKey::cell("q", b"a").as_bytes(), Blob::empty());
        let prefix = RecordKey::cell("p", b"");
        let found: Vec<_> =
            records.scan_cells_from(prefix.as_bytes()).map(|(_, value)| value.to_vec()).collect();
        assert_eq!(found, [&b"a"[..], b"b", b"c", b""]);
    }

    #[test]
    fn damaged_sections_are_refused() {
        let mut section = Vec::new();
        encode_record(RecordKey::process("p").as_bytes(), Some(b"value"), &mut section);
        for cut in 1..section.len() {
            assert!(decode_records(&section[..cut]).any(|record| record.is_err()), "cut at {cut}");
        }
        section[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode_records(&section).next().unwrap().is_err());
    }
}
