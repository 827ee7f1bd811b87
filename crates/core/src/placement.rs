//! The placement of the shards of a topology, as one node sees it.

use crate::ids::{Index, ShardId};
use crate::topology::Topology;
use serde::{Deserialize, Serialize};

/// The place of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On this node.
    Here,
    /// On another node: this one needs nothing of the shard.
    Elsewhere,
    /// On no known node, so that what this one still has of it may be all there is; a shard that does not exist is not
    /// placed either.
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

    /// Returns the shards of the topology that are not on this node, in the order of their numbers, with their places.
    pub fn not_here(&self) -> impl Iterator<Item = (ShardId, Place)> {
        let shards = (0..).map(ShardId).zip(self.places.iter().copied());
        shards.filter(|(_, place)| *place != Place::Here)
    }

    /// Returns the shards on other nodes, in the order of their numbers.
    pub fn elsewhere(&self) -> impl Iterator<Item = ShardId> {
        self.not_here().filter(|(_, place)| *place == Place::Elsewhere).map(|(shard, _)| shard)
    }

    /// Returns, by shard number, the index up to which this node's log needs no entry, once a checkpoint replaces it up to
    /// these: nothing of a shard that is elsewhere, everything of one that is not placed.
    #[must_use]
    pub fn trim_tops(&self, replaced: &[(ShardId, Index)]) -> Vec<Index> {
        let top = |place: &Place| if *place == Place::Elsewhere { Index(u64::MAX) } else { Index(0) };
        let mut tops: Vec<Index> = self.places.iter().map(top).collect();
        for (shard, top) in replaced {
            tops[shard.0 as usize] = *top;
        }
        tops
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
        let others = [(ShardId(1), Place::Elsewhere), (ShardId(2), Place::Unplaced)];
        assert_eq!(placement.not_here().collect::<Vec<_>>(), others);
        let tops = placement.trim_tops(&[(ShardId(3), Index(7))]);
        assert_eq!(tops, [0, u64::MAX, 0, 7].map(Index), "shard 0 is newer than the checkpoint");
    }
}
