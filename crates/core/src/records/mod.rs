//! The records of a shard: a hash index over a slab, with copy-on-write snapshots of the changed records.
//!
//! A snapshot begins in constant time. Its contents are then taken in slices, between which writes continue: a write to
//! a record that the snapshot has not taken yet first saves the old value for the snapshot. So the stall is bounded by
//! the slice, never by the size of the state. The records that are taken share their values with the state; the writer
//! of the snapshot copies them, on its own time.

mod piece;
mod slab;
mod snapshot;
#[cfg(test)]
mod tests;

pub use piece::{NoRecord, Piece, StoredRecord, decode_records, encode_record};

use crate::blob::Blob;
use crate::ordered::{Frozen, Ordered};
use crate::record::{Kind, RecordKey};
use slab::{PlaceIndex, Slab};
use smallvec::SmallVec;
use snapshot::Snapshot;
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

impl Default for Records {
    fn default() -> Self {
        Self::new()
    }
}

impl Records {
    /// Maximum number of bytes of a record's value: 64 MiB.
    pub const VALUE_MAX: usize = piece::VALUE_MAX;

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
