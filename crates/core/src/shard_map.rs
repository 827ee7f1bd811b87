//! A map with shards as keys, for the few lookups that every message needs.

use crate::ids::ShardId;
use std::collections::BTreeMap;

/// Shard numbers from here on are found by a search: no number from outside determines an allocation.
const DENSE: u32 = 1 << 16;

/// Values by shard: two array accesses a lookup. Costs four bytes for each shard number below the greatest in it, up to
/// 256 KiB; the few shards of a cluster that has more are found by a search.
#[derive(Clone, Debug)]
pub struct ShardMap<T> {
    /// By shard, one more than the position of its value; 0 where there is none.
    places: Vec<u32>,
    values: Vec<(ShardId, T)>,
    /// The positions of the shards from [`DENSE`] on.
    far: BTreeMap<ShardId, u32>,
}

impl<T> Default for ShardMap<T> {
    fn default() -> Self {
        Self { places: Vec::new(), values: Vec::new(), far: BTreeMap::new() }
    }
}

impl<T> ShardMap<T> {
    /// Returns the position of a shard's value.
    fn place(&self, shard: ShardId) -> Option<usize> {
        let place = match self.places.get(shard.0 as usize) {
            Some(place) => place,
            None => self.far.get(&shard)?,
        };
        Some(place.checked_sub(1)? as usize)
    }

    /// Returns the value of a shard.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<&T> {
        self.place(shard).map(|place| &self.values[place].1)
    }

    /// Returns the value of a shard, to change it.
    pub fn get_mut(&mut self, shard: ShardId) -> Option<&mut T> {
        self.place(shard).map(|place| &mut self.values[place].1)
    }

    /// Returns the value of a shard, which is created by default if there is none.
    pub fn get_or_default(&mut self, shard: ShardId) -> &mut T
    where
        T: Default,
    {
        let at = shard.0 as usize;
        let place = if shard.0 >= DENSE {
            self.far.entry(shard).or_default()
        } else {
            if at >= self.places.len() {
                self.places.resize(at + 1, 0);
            }
            &mut self.places[at]
        };
        if *place == 0 {
            self.values.push((shard, T::default()));
            *place = u32::try_from(self.values.len()).expect("fewer values than shard numbers");
        }
        &mut self.values[*place as usize - 1].1
    }

    /// Puts a value.
    pub fn insert(&mut self, shard: ShardId, value: T)
    where
        T: Default,
    {
        *self.get_or_default(shard) = value;
    }

    /// Returns all values, in the order of their shards.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &T)> {
        self.places.iter().chain(self.far.values()).filter_map(|place| {
            let (shard, value) = &self.values[place.checked_sub(1)? as usize];
            Some((*shard, value))
        })
    }
}

impl<T: Default> FromIterator<(ShardId, T)> for ShardMap<T> {
    fn from_iter<I: IntoIterator<Item = (ShardId, T)>>(items: I) -> Self {
        let mut map = Self::default();
        for (shard, value) in items {
            map.insert(shard, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_and_come_in_order() {
        let mut map: ShardMap<u8> = [(ShardId(7), 1), (ShardId(2), 2)].into_iter().collect();
        *map.get_or_default(ShardId(2)) += 5;
        *map.get_or_default(ShardId(4)) += 1;
        assert_eq!(map.get(ShardId(3)), None);
        assert_eq!(map.get(ShardId(70)), None);
        let all: Vec<_> = map.iter().map(|(shard, value)| (shard.0, *value)).collect();
        assert_eq!(all, [(2, 7), (4, 1), (7, 1)]);
    }

    #[test]
    fn a_great_number_takes_no_room() {
        let mut map: ShardMap<u8> = ShardMap::default();
        for shard in [ShardId(u32::MAX), ShardId(DENSE), ShardId(DENSE - 1)] {
            *map.get_or_default(shard) += 1;
            assert_eq!(map.get(shard), Some(&1));
        }
        assert!(map.places.len() <= DENSE as usize);
        assert_eq!(map.iter().map(|(shard, _)| shard.0).collect::<Vec<_>>(), [DENSE - 1, DENSE, u32::MAX]);
    }
}
