//! Which shard of a node may try what a death of the process may have met: one at a time, so that a further death names
//! what ended it.
//!
//! A cause that has begun and has no entry is *met*. After a start the shards with met messages and timers have their turn
//! one after the other, while all other handlers of the node are held. From then on turns are given on demand: to requests
//! that were met and come again, and, in a lane of their own, to steps of tasks.

use crate::ids::ShardId;
use std::collections::VecDeque;

/// Turns of one lane exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Messages, timers and requests.
    Handlers,
    /// Steps of tasks.
    Steps,
}

/// What the shell gives to shards, as [`Input`](crate::shard::Input)s of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It is the turn of this shard.
    Turn(ShardId, Lane),
    /// Everything that was met is tried: no shard is held any more.
    Open,
}

/// The turns of a node's shards in one life of the process.
#[derive(Clone, Debug, Default)]
pub struct Trials {
    held: bool,
    handlers: Turns,
    steps: Turns,
}

#[derive(Clone, Debug, Default)]
struct Turns {
    current: Option<ShardId>,
    waiting: VecDeque<ShardId>,
}

impl Trials {
    /// The turns of a life whose log holds met messages or timers at these shards.
    #[must_use]
    pub fn new(met: impl IntoIterator<Item = ShardId>) -> Self {
        let waiting: VecDeque<ShardId> = met.into_iter().collect();
        let held = !waiting.is_empty();
        Self { held, handlers: Turns { current: None, waiting }, steps: Turns::default() }
    }

    /// Whether all shards have to be held at their start.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// The first turn, once all shards have their `Start`.
    pub fn begin(&mut self) -> Option<Grant> {
        self.handlers.next(Lane::Handlers)
    }

    /// A shard wants a turn.
    pub fn wants(&mut self, shard: ShardId, lane: Lane) -> Option<Grant> {
        let turns = self.turns(lane);
        turns.waiting.push_back(shard);
        turns.next(lane)
    }

    /// A shard has had its turn.
    pub fn ends(&mut self, shard: ShardId, lane: Lane) -> Option<Grant> {
        let turns = self.turns(lane);
        assert_eq!(turns.current, Some(shard), "only the shard whose turn it is can end it");
        turns.current = None;
        if let Some(grant) = turns.next(lane) {
            return Some(grant);
        }
        (lane == Lane::Handlers && std::mem::take(&mut self.held)).then_some(Grant::Open)
    }

    fn turns(&mut self, lane: Lane) -> &mut Turns {
        match lane {
            Lane::Handlers => &mut self.handlers,
            Lane::Steps => &mut self.steps,
        }
    }
}

impl Turns {
    fn next(&mut self, lane: Lane) -> Option<Grant> {
        if self.current.is_some() {
            return None;
        }
        self.current = self.waiting.pop_front();
        self.current.map(|shard| Grant::Turn(shard, lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_shards_come_first_one_at_a_time_and_then_all_is_open() {
        let mut trials = Trials::new([ShardId(2), ShardId(5)]);
        assert!(trials.is_held());
        assert_eq!(trials.begin(), Some(Grant::Turn(ShardId(2), Lane::Handlers)));
        assert_eq!(trials.ends(ShardId(2), Lane::Handlers), Some(Grant::Turn(ShardId(5), Lane::Handlers)));
        assert_eq!(trials.ends(ShardId(5), Lane::Handlers), Some(Grant::Open));
        assert!(!trials.is_held());
        assert_eq!(trials.wants(ShardId(1), Lane::Handlers), Some(Grant::Turn(ShardId(1), Lane::Handlers)));
        assert_eq!(trials.wants(ShardId(3), Lane::Handlers), None);
        assert_eq!(trials.wants(ShardId(3), Lane::Steps), Some(Grant::Turn(ShardId(3), Lane::Steps)));
        assert_eq!(trials.ends(ShardId(1), Lane::Handlers), Some(Grant::Turn(ShardId(3), Lane::Handlers)));
        assert_eq!(trials.ends(ShardId(3), Lane::Handlers), None);
    }

    #[test]
    fn without_met_shards_nothing_is_held() {
        let mut trials = Trials::new([]);
        assert!(!trials.is_held());
        assert_eq!(trials.begin(), None);
    }
}
