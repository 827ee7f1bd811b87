//! The placement of the shards of a topology, as one node sees it.

use crate::ids::ShardId;
use crate::topology::Topology;

/// The place of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Here,
    /// On another node.
    Elsewhere,
    /// On no known node; a shard that does not exist is not placed either.
    Unplaced,
}

/// The place of each shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    places: Vec<Place>,
    here: u32,
}

impl Placement {
    /// Places each shard of a topology.
    pub fn new(topology: &Topology, place: impl FnMut(ShardId) -> Place) -> Self {
        let places: Vec<Place> = topology.shards().map(place).collect();
        let here = places.iter().filter(|place| **place == Place::Here).count() as u32;
        Self { places, here }
    }

    /// Places all shards on this node.
    #[must_use]
    pub fn all_here(topology: &Topology) -> Self {
        Self::new(topology, |_| Place::Here)
    }

    /// Returns the place of a shard.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> Place {
        self.places.get(shard.0 as usize).copied().unwrap_or(Place::Unplaced)
    }

    /// Returns the shards on this node, in the order of their numbers.
    pub fn here(&self) -> impl Iterator<Item = ShardId> {
        let shards = (0..).map(ShardId).zip(&self.places);
        shards.filter(|(_, place)| **place == Place::Here).map(|(shard, _)| shard)
    }

    /// Returns the number of shards on this node.
    #[must_use]
    pub fn count_here(&self) -> u32 {
        self.here
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;

    #[test]
    fn what_is_not_placed_is_neither_here_nor_elsewhere() {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("one", 2).unwrap();
        topology.ensure("two", 2).unwrap();
        let places = [Place::Here, Place::Elsewhere, Place::Unplaced, Place::Here];
        let placement = Placement::new(&topology, |shard| places[shard.0 as usize]);
        assert_eq!(placement.here().collect::<Vec<_>>(), [ShardId(0), ShardId(3)]);
        assert_eq!((placement.count_here(), Placement::all_here(&topology).count_here()), (2, 4));
        assert_eq!([0, 1, 2, 3, 4].map(|shard| placement.of(ShardId(shard)))[..4], places);
        assert_eq!(placement.of(ShardId(4)), Place::Unplaced, "it does not exist");
    }
}
