//! A file of the simulated disk: its bytes, and the sectors that were changed since its sync.

use std::collections::BTreeMap;
use std::ops::Range;

/// The unit that a crash keeps, loses or tears, in bytes.
pub const SECTOR: usize = 512;

/// The durable bytes of a sector that was changed since.
#[derive(Clone)]
pub(super) struct Undo {
    pub(super) bytes: Box<[u8; SECTOR]>,
    /// Bits of `bytes` that were flipped, by their place in the file.
    pub(super) flips: BTreeMap<usize, u8>,
    /// A sync failed to write the change: no later one does, unless the sector is written again.
    pub(super) forgotten: bool,
}

/// A file. A sector without an [`Undo`] is durable as in `data`, with zeros beyond its end.
#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) data: Vec<u8>,
    pub(super) durable_len: usize,
    pub(super) undo: BTreeMap<usize, Undo>,
    /// Bits of `data` that were flipped and not written since, by the position of their byte.
    pub(super) flips: BTreeMap<usize, u8>,
    pub(super) handles: u32,
}

impl Inode {
    pub(super) fn remember(&mut self, bytes: Range<usize>) {
        if bytes.is_empty() {
            return;
        }
        for sector in bytes.start / SECTOR..=(bytes.end - 1) / SECTOR {
            let (data, flips) = (&self.data, &self.flips);
            let undo = self.undo.entry(sector).or_insert_with(|| {
                let mut old = Box::new([0; SECTOR]);
                let start = sector * SECTOR;
                let flips = flips.range(start..start + SECTOR).map(|(at, bits)| (*at, *bits)).collect();
                if start < data.len() {
                    let end = data.len().min(start + SECTOR);
                    old[..end - start].copy_from_slice(&data[start..end]);
                }
                Undo { bytes: old, flips, forgotten: false }
            });
            undo.forgotten = false;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        self.remember(offset..end);
        if end > self.data.len() {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
        self.flips.retain(|at, _| !(offset..end).contains(at));
    }

    pub(super) fn resize(&mut self, len: usize) {
        // Only cutting changes sectors: an extension consists of zeros, as beyond the end.
        if len < self.data.len() {
            self.remember(len..self.data.len());
            self.flips.retain(|at, _| *at < len);
        }
        self.data.resize(len, 0);
    }

    pub(super) fn sync(&mut self) {
        self.undo.retain(|_, undo| undo.forgotten);
        self.durable_len = self.data.len();
    }

    pub(super) fn crash(&mut self, rng: &mut fastrand::Rng, fate: Fate) {
        let len = match (fate, rng.u8(..3)) {
            (Fate::KeepAll, _) | (Fate::Each, 0) => self.data.len(),
            (Fate::LoseAll, _) | (Fate::Each, 1) => self.durable_len,
            (Fate::Each, _) => {
                let (low, high) =
                    (self.durable_len.min(self.data.len()), self.durable_len.max(self.data.len()));
                rng.usize(low..=high)
            }
        };
        self.data.resize(self.data.len().max(self.durable_len).max(len), 0);
        for (sector, undo) in std::mem::take(&mut self.undo) {
            let lost = match fate {
                Fate::KeepAll => 0..0,
                Fate::LoseAll => 0..SECTOR,
                Fate::Each => match rng.u8(..20) {
                    0..9 => 0..0,
                    9..18 => 0..SECTOR,
                    18 => 0..rng.usize(..SECTOR),
                    _ => rng.usize(..SECTOR)..SECTOR,
                },
            };
            let start = sector * SECTOR;
            for at in lost {
                if let Some(byte) = self.data.get_mut(start + at) {
                    *byte = undo.bytes[at];
                    self.flips.remove(&(start + at));
                    self.flips.extend(undo.flips.get_key_value(&(start + at)));
                }
            }
        }
        self.data.truncate(len);
        self.flips.retain(|at, _| *at < len);
        self.durable_len = len;
    }

    /// Flips bits of a byte, in all versions of it.
    pub(super) fn flip(&mut self, at: usize, bits: u8) {
        fn toggle(flips: &mut BTreeMap<usize, u8>, at: usize, bits: u8) {
            let flipped = flips.entry(at).or_default();
            *flipped ^= bits;
            if *flipped == 0 {
                flips.remove(&at);
            }
        }
        self.data[at] ^= bits;
        toggle(&mut self.flips, at, bits);
        if let Some(undo) = self.undo.get_mut(&(at / SECTOR)) {
            undo.bytes[at % SECTOR] ^= bits;
            toggle(&mut undo.flips, at, bits);
        }
    }

    /// Flips all flipped bits once more, and keeps the record of them.
    pub(super) fn toggle_flips(&mut self) {
        for (at, bits) in &self.flips {
            self.data[*at] ^= bits;
        }
        for undo in self.undo.values_mut() {
            for (at, bits) in &undo.flips {
                undo.bytes[at % SECTOR] ^= bits;
            }
        }
    }

    pub(super) fn forget_flips(&mut self) {
        self.flips.clear();
        self.undo.values_mut().for_each(|undo| undo.flips.clear());
    }

    pub(super) fn is_flipped(&self) -> bool {
        !self.flips.is_empty() || self.undo.values().any(|undo| !undo.flips.is_empty())
    }
}

/// The kind of a crash: real ones are often all or nothing, and tests need those cases often, too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    KeepAll,
    LoseAll,
    Each,
}
