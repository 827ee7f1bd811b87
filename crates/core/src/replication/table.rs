//! The last index of each epoch in a log.
//!
//! The entries of an epoch are contiguous in a log, and its primary began right behind the base that the epoch's record
//! names. So two logs that hold an entry of the same epoch and index hold the same entries up to it, and their tables show
//! where they part (KIP-320), without a look at an entry.

use crate::ids::{Epoch, Index};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// The place of an entry. Ordered as logs are compared: by epoch, then by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct LogPoint {
    /// The epoch of the entry.
    #[n(0)]
    pub epoch: Epoch,
    /// Its index.
    #[n(1)]
    pub index: Index,
}

/// By epoch, the last index of that epoch that survived a takeover: later entries of the epoch are lost for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Losses(#[n(0)] BTreeMap<Epoch, Index>);

impl Losses {
    /// Records that no entry of an epoch behind this index survives. An earlier record of a lower index stays.
    pub fn record(&mut self, epoch: Epoch, last: Index) {
        let kept = self.0.entry(epoch).or_insert(last);
        *kept = last.min(*kept);
    }

    /// Whether an entry is recorded as lost.
    #[must_use]
    pub fn has(&self, point: LogPoint) -> bool {
        self.kept_before(point).is_some()
    }

    /// Returns the last surviving index of the epoch of an entry that is recorded as lost; `None` for another one.
    #[must_use]
    pub fn kept_before(&self, point: LogPoint) -> Option<Index> {
        self.0.get(&point.epoch).copied().filter(|last| point.index > *last)
    }

    /// Returns the epochs with their last surviving indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = LogPoint> + '_ {
        self.0.iter().map(|(&epoch, &index)| LogPoint { epoch, index })
    }
}

/// The last index of each epoch in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode)]
pub struct EpochTable {
    /// The last entry that the log no longer has, but a snapshot covers: it is committed.
    #[n(0)]
    base: LogPoint,
    /// The last entry of each epoch behind the base, ascending.
    #[n(1)]
    lasts: Vec<LogPoint>,
}

impl EpochTable {
    /// Checks a table from outside; `None` if the last entries of its epochs do not follow each other.
    pub(super) fn parse(base: LogPoint, lasts: Vec<LogPoint>) -> Option<Self> {
        let mut before = base;
        for (at, last) in lasts.iter().enumerate() {
            let follows = last.epoch > before.epoch || at == 0 && last.epoch == before.epoch;
            if !follows || last.index <= before.index {
                return None;
            }
            before = *last;
        }
        Some(Self { base, lasts })
    }

    /// Creates the table of a log that is empty behind a snapshot at `base`; the default is a new shard's.
    #[must_use]
    pub fn new(base: LogPoint) -> Self {
        Self { base, lasts: Vec::new() }
    }

    /// Returns the last entry that a snapshot covers.
    #[must_use]
    pub fn base(&self) -> LogPoint {
        self.base
    }

    /// Returns the last entry.
    #[must_use]
    pub fn last(&self) -> LogPoint {
        self.lasts.last().copied().unwrap_or(self.base)
    }

    /// Returns the epoch of the entry at an index; `None` below the base and behind the last entry.
    #[must_use]
    pub fn epoch_at(&self, index: Index) -> Option<Epoch> {
        if index == self.base.index {
            return Some(self.base.epoch);
        }
        let at = self.lasts.partition_point(|last| last.index < index);
        self.lasts.get(at).filter(|_| index > self.base.index).map(|last| last.epoch)
    }

    /// Whether the log holds this entry. It then holds the same entries up to it as every log that does.
    #[must_use]
    pub fn has(&self, point: LogPoint) -> bool {
        self.epoch_at(point.index) == Some(point.epoch)
    }

    /// Returns the last index of an epoch; 0 if the log has no entry of it.
    #[must_use]
    pub fn last_of(&self, epoch: Epoch) -> Index {
        let found = self.lasts.binary_search_by_key(&epoch, |last| last.epoch).map(|at| self.lasts[at]);
        let base = Some(self.base).filter(|base| base.epoch == epoch);
        found.ok().or(base).map_or(Index(0), |last| last.index)
    }

    /// Adds the entry that follows the last one.
    ///
    /// # Panics
    /// If its index is not the next one, or its epoch is lower than that of the last entry.
    pub fn push(&mut self, point: LogPoint) {
        assert_eq!(point.index, self.last().index.next(), "entries follow each other without a gap [2]");
        self.extend(point);
    }

    /// Adds entries of one epoch, which follow the last one; `upto` is the last of them.
    ///
    /// # Panics
    /// If its index is not behind the last one, or its epoch is lower than that of the last entry.
    #[inline]
    pub fn extend(&mut self, upto: LogPoint) {
        let last = self.last();
        assert!(upto.index > last.index, "entries follow each other without a gap [2]");
        assert!(upto.epoch >= last.epoch, "epochs of entries never fall [1]");
        match self.lasts.last_mut() {
            Some(last) if last.epoch == upto.epoch => *last = upto,
            _ => self.lasts.push(upto),
        }
    }

    /// Drops the entries behind an index.
    ///
    /// # Panics
    /// If the index is below the base: what a snapshot covers is committed.
    pub fn truncate(&mut self, keep: Index) {
        assert!(keep >= self.base.index, "what a snapshot covers is never cut [2]");
        let mut first = self.lasts.partition_point(|last| last.index <= keep);
        let before = if first == 0 { self.base.index } else { self.lasts[first - 1].index };
        if keep > before && first < self.lasts.len() {
            self.lasts[first].index = keep;
            first += 1;
        }
        self.lasts.truncate(first);
    }

    /// Drops the entries up to one that the log holds: a snapshot covers them.
    ///
    /// # Panics
    /// If the log does not hold that entry.
    pub fn rebase(&mut self, base: LogPoint) {
        assert!(self.has(base), "a log is trimmed at an entry that it holds [2]");
        self.lasts.retain(|last| last.index > base.index);
        self.base = base;
    }

    /// Returns the last entry before the first lost one.
    #[must_use]
    pub fn surviving(&self, losses: &Losses) -> LogPoint {
        let mut before = self.base;
        for &last in &self.lasts {
            if losses.has(last) {
                let kept = losses.0.get(&last.epoch).copied().unwrap_or_default();
                return if kept > before.index { LogPoint { index: kept, ..last } } else { before };
            }
            before = last;
        }
        before
    }

    /// Returns the last entry that both logs have; the entry at the lower base if they share none behind it.
    #[must_use]
    pub fn common(&self, other: &Self) -> LogPoint {
        let points = |table: &Self| -> Vec<LogPoint> {
            std::iter::once(table.base).chain(table.lasts.iter().copied()).collect()
        };
        let (mine, others) = (points(self), points(other));
        for last in mine.iter().rev() {
            if let Some(theirs) = others.iter().rev().find(|theirs| theirs.epoch == last.epoch) {
                return *last.min(theirs);
            }
        }
        self.base.min(other.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, index: u64) -> LogPoint {
        LogPoint { epoch: Epoch(epoch), index: Index(index) }
    }

    /// The table of a log with these epochs, from index 1 on.
    fn table(epochs: &[u64]) -> EpochTable {
        let mut table = EpochTable::default();
        for (index, epoch) in (1..).zip(epochs) {
            table.push(at(*epoch, index));
        }
        table
    }

    #[test]
    fn a_table_answers_as_the_log_would() {
        let logs: [&[u64]; 5] = [&[], &[1], &[1, 1, 2], &[1, 3, 3, 3, 7], &[2, 2, 5]];
        for log in logs {
            let table = table(log);
            for index in 0..8 {
                let wanted = if index == 0 { Some(0) } else { log.get(index as usize - 1).copied() };
                assert_eq!(table.epoch_at(Index(index)), wanted.map(Epoch), "{log:?} at {index}");
            }
            for epoch in 1..8 {
                let wanted = log.iter().rposition(|found| *found == epoch).map_or(0, |at| at as u64 + 1);
                assert_eq!(table.last_of(Epoch(epoch)), Index(wanted), "{log:?} of {epoch}");
            }
        }
    }

    #[test]
    fn a_truncated_table_is_that_of_the_shorter_log() {
        let log = [1, 1, 3, 3, 3, 4];
        for keep in 0..=log.len() {
            let mut cut = table(&log);
            cut.truncate(Index(keep as u64));
            assert_eq!(cut, table(&log[..keep]));
        }
    }

    #[test]
    fn a_trimmed_table_answers_as_before_behind_its_base() {
        let log = [1, 1, 3, 3, 3, 4];
        for base in 0..=log.len() {
            let whole = table(&log);
            let mut trimmed = whole.clone();
            let epoch = whole.epoch_at(Index(base as u64)).unwrap();
            trimmed.rebase(LogPoint { epoch, index: Index(base as u64) });
            assert_eq!(trimmed.last(), whole.last());
            for index in 0..8 {
                let wanted = whole.epoch_at(Index(index)).filter(|_| index >= base as u64);
                assert_eq!(trimmed.epoch_at(Index(index)), wanted, "{index} behind {base}");
            }
        }
    }

    #[test]
    fn logs_part_behind_the_last_entry_of_the_last_epoch_that_both_have() {
        assert_eq!(table(&[1, 1, 1]).common(&table(&[1, 1, 2])), at(1, 2));
        assert_eq!(table(&[1, 1, 2, 2]).common(&table(&[1, 1, 2])), at(2, 3));
        assert_eq!(table(&[1]).common(&table(&[2])), at(0, 0));
        assert_eq!(table(&[1, 3]).common(&table(&[1, 1, 2])), at(1, 1));
        let mut behind = EpochTable::new(at(1, 2));
        behind.push(at(4, 3));
        assert_eq!(behind.common(&table(&[1, 1, 1, 2])), at(1, 2));
    }

    #[test]
    fn a_log_ends_before_its_first_lost_entry() {
        let losses = |lost: &[(u64, u64)]| {
            let mut losses = Losses::default();
            lost.iter().for_each(|(epoch, last)| losses.record(Epoch(*epoch), Index(*last)));
            losses
        };
        let log = table(&[1, 1, 2, 2, 3]);
        assert_eq!(log.surviving(&losses(&[])), at(3, 5));
        assert_eq!(log.surviving(&losses(&[(2, 3)])), at(2, 3));
        assert_eq!(log.surviving(&losses(&[(2, 0)])), at(1, 2));
        assert_eq!(log.surviving(&losses(&[(2, 4), (3, 4)])), at(2, 4));
        assert_eq!(log.surviving(&losses(&[(1, 1), (3, 9)])), at(1, 1));
        assert_eq!(log.surviving(&losses(&[(1, 3), (1, 0)])), at(0, 0));
    }
}
