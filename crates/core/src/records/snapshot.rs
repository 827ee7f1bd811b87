//! Snapshots of the records, taken in slices between which writes continue.

use super::piece::{AHEAD, Piece};
use super::{Records, Slot};
use std::ops::Range;

pub(super) struct Snapshot {
    scope: Scope,
    cursor: usize,
    /// Old values of records that were written before the snapshot took them.
    saved: Piece,
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

pub(super) enum Scope {
    /// The slots that were dirty when it began; these have the previous generation until they are taken.
    Changed(Vec<u32>),
    /// Every slot below this one.
    All(usize),
}

impl Records {
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

    /// Gives up the snapshot that runs, if there is one.
    pub fn end_snapshot(&mut self) {
        (self.snapshot, self.garbage) = (None, Piece::default());
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
    pub(super) fn before_write(&mut self, slot: u32) {
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
}
