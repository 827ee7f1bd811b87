//! The end of a shard's log in memory: all that may have to be applied, cut, or sent to peers.

use super::io::LogEntry;
use crate::entry::Entry;
use crate::ids::Index;
use crate::state::{Misfit, State};
use std::collections::VecDeque;

/// The bytes for which an entry counts at least: what it costs besides its bytes.
pub(super) const WEIGHT: u64 = 64;

struct Item {
    entry: LogEntry,
    /// Its contents, until they are applied.
    contents: Option<Box<Entry>>,
    /// The bytes of all entries up to this one.
    bytes_to: u64,
}

/// Entries of consecutive indexes.
pub(super) struct Tail {
    /// The index before the first entry.
    before: Index,
    /// The bytes of the entries up to `before` that were in memory.
    bytes_before: u64,
    items: VecDeque<Item>,
}

impl Tail {
    pub(super) fn new(before: Index) -> Self {
        Self { before, bytes_before: before.0.saturating_mul(WEIGHT), items: VecDeque::new() }
    }

    /// Returns the index before the first entry.
    pub(super) fn before(&self) -> Index {
        self.before
    }

    /// Returns the last index.
    pub(super) fn last(&self) -> Index {
        Index(self.before.0 + self.items.len() as u64)
    }

    /// Adds the next entry. `contents` are those of an entry that was not applied.
    pub(super) fn push(&mut self, entry: LogEntry, contents: Option<Box<Entry>>) {
        assert_eq!(entry.point.index, self.last().next(), "entries follow each other without a gap [2]");
        let bytes_to = self.bytes_to(self.last()) + entry.bytes.len() as u64 + WEIGHT;
        self.items.push_back(Item { entry, contents, bytes_to });
    }

    /// Drops the entries behind an index, which may be below all of them: those that a start left in the log, or that a
    /// primary without peers executed, may not be committed.
    pub(super) fn truncate(&mut self, keep: Index) {
        if keep < self.before {
            (self.bytes_before, self.before) = (self.bytes_to(keep), keep);
            self.items.clear();
        }
        self.items.truncate((keep.0 - self.before.0) as usize);
    }

    /// Applies the entries up to an index to a state, until they have so many bytes together.
    ///
    /// # Errors
    /// [`Misfit`] if one does not follow; the state is then unusable.
    pub(super) fn apply_to(&mut self, state: &mut State, upto: Index, bytes_max: u64) -> Result<(), Misfit> {
        let begun = self.bytes_to(state.position().index.min(upto));
        while state.position().index < upto && self.bytes_to(state.position().index) - begun < bytes_max {
            let next = state.position().index.next();
            state.apply(self.take(next).expect("what is not applied is in memory"))?;
        }
        Ok(())
    }

    /// Takes the contents of an entry to apply them.
    fn take(&mut self, index: Index) -> Option<Entry> {
        let at = index.0.checked_sub(self.before.0 + 1)?;
        let item = self.items.get_mut(at as usize)?;
        let contents = item.contents.take().map(|contents| *contents);
        Some(contents.unwrap_or_else(|| {
            Entry::decode(&item.entry.bytes).expect("it was decoded when it came, or is its own")
        }))
    }

    /// Returns the entries behind an index, up to another one; `None` if some are no longer in memory.
    pub(super) fn entries(&self, before: Index, last: Index) -> Option<Vec<LogEntry>> {
        let from = before.0.checked_sub(self.before.0)? as usize;
        let count = (last.0 - before.0) as usize;
        let items = self.items.range(from..from + count);
        Some(items.map(|item| item.entry.clone()).collect())
    }

    /// Returns the bytes of all entries up to an index. Those that left the memory count as much as is known of them.
    pub(super) fn bytes_to(&self, index: Index) -> u64 {
        match index.0.checked_sub(self.before.0 + 1) {
            Some(at) => self.items[at as usize].bytes_to,
            None => self.bytes_before.saturating_sub((self.before.0 - index.0).saturating_mul(WEIGHT)),
        }
    }

    /// Drops entries up to an index from the front, except the last of them with up to `kept` bytes.
    pub(super) fn trim(&mut self, upto: Index, kept: u64) {
        if self.items.is_empty() {
            return;
        }
        let end = self.bytes_to(upto.min(self.last()));
        while let Some(item) = self.items.front()
            && item.entry.point.index <= upto
            && end - self.bytes_before > kept
        {
            (self.before, self.bytes_before) = (item.entry.point.index, item.bytes_to);
            self.items.pop_front();
        }
    }
}
