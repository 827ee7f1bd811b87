//! Storage for the records of a shard and an index over them, which grow in small steps: when a record is put, a shard
//! with millions of records holds its worker for no longer than one with thousands.

use hashbrown::HashTable;
use std::ops::{Index, IndexMut};

/// Places in a chunk: a full chunk never moves.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 12;
/// Tables of an index. Each grows on its own, at a different time from the others.
const TABLES: usize = 64;
/// First of the bits of a hash that choose the table: a table itself uses the lowest and the highest ones.
const TABLE_SHIFT: u32 = 40;

/// A vector in chunks.
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(crate) fn push(&mut self, value: T) {
        match self.chunks.last_mut().filter(|last| last.len() < CHUNK) {
            Some(last) => last.push(value),
            None => {
                // The first chunk grows with a small shard.
                let mut chunk = Vec::with_capacity(if self.chunks.is_empty() { 0 } else { CHUNK });
                chunk.push(value);
                self.chunks.push(chunk);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }
}

impl<T> Index<usize> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.chunks[at >> CHUNK_BITS][at % CHUNK]
    }
}

impl<T> IndexMut<usize> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.chunks[at >> CHUNK_BITS][at % CHUNK]
    }
}

/// A hash index of places, in several tables.
pub(crate) struct PlaceIndex {
    /// Empty before the first place.
    tables: Vec<HashTable<u32>>,
}

impl PlaceIndex {
    pub(crate) fn new() -> Self {
        Self { tables: Vec::new() }
    }

    fn table(hash: u64) -> usize {
        (hash >> TABLE_SHIFT) as usize % TABLES
    }

    fn make_tables(&mut self) {
        if self.tables.is_empty() {
            self.tables.resize_with(TABLES, HashTable::new);
        }
    }

    /// Reserves capacity for this many places. `hash` returns the hash of a place in the index.
    pub(crate) fn reserve(&mut self, places: usize, hash: impl Fn(u32) -> u64) {
        self.make_tables();
        for table in &mut self.tables {
            // The tables get about the same share each.
            table.reserve(places / TABLES * 9 / 8, |&place| hash(place));
        }
    }

    /// Returns the place with this hash for which `is` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.tables.get(Self::table(hash))?.find(hash, |&place| is(place)).copied()
    }

    /// Adds a place that is not in the index. `hash_of` returns the hash of a place that is.
    pub(crate) fn insert(&mut self, hash: u64, place: u32, hash_of: impl Fn(u32) -> u64) {
        self.make_tables();
        self.tables[Self::table(hash)].insert_unique(hash, place, |&place| hash_of(place));
    }

    pub(crate) fn remove(&mut self, hash: u64, place: u32) {
        let table = self.tables.get_mut(Self::table(hash));
        if let Some(Ok(entry)) = table.map(|table| table.find_entry(hash, |&other| other == place)) {
            entry.remove();
        }
    }

    /// Returns the maximum number of places that one insertion can move.
    #[cfg(test)]
    fn largest(&self) -> usize {
        self.tables.iter().map(HashTable::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn hash(place: u32) -> u64 {
        xxh3_64(&place.to_le_bytes())
    }

    #[test]
    fn a_slab_keeps_its_values_where_they_are() {
        let mut slab = Slab::new();
        for n in 0..3 * CHUNK {
            assert_eq!(slab.len(), n);
            slab.push(n);
        }
        let first: *const usize = &slab[0];
        let full: *const usize = &slab[CHUNK];
        (0..CHUNK).for_each(|n| slab.push(3 * CHUNK + n));
        assert!(std::ptr::eq(first, &slab[0]) && std::ptr::eq(full, &slab[CHUNK]));
        assert!(slab.iter().copied().eq(0..4 * CHUNK));
        slab[CHUNK + 1] = 7;
        assert_eq!(slab.iter_mut().nth(CHUNK + 1), Some(&mut 7));
    }

    #[test]
    fn an_index_gives_the_places_that_are_in_it() {
        let mut index = PlaceIndex::new();
        assert_eq!(index.find(hash(1), |_| true), None);
        index.reserve(100, hash);
        for place in 0..10_000 {
            index.insert(hash(place), place, hash);
        }
        for place in (0..10_000).step_by(2) {
            index.remove(hash(place), place);
        }
        for place in 0..10_000 {
            let found = index.find(hash(place), |other| other == place);
            assert_eq!(found, (place % 2 == 1).then_some(place));
        }
    }

    /// Growth moves the places of one table only.
    #[test]
    fn the_tables_of_an_index_share_its_places() {
        let mut index = PlaceIndex::new();
        let places = 100_000;
        for place in 0..places {
            index.insert(hash(place), place, hash);
        }
        let share = places as usize / TABLES;
        assert!(index.largest() < share * 5 / 4, "{} of {share}", index.largest());
    }
}
