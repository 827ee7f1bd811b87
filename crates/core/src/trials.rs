//! Gives turns to the shards of a node that try causes which may have ended the process: one at a time, so that another
//! end of the process identifies its cause.
//!
//! A cause that has begun and has no entry is *met*. After a start, the shards with met messages and timers get their
//! turns one after the other, while all other handlers of the node are held. From then on turns are given on demand: to
//! met requests that come again, and to steps of tasks.

use crate::ids::ShardId;
use std::collections::VecDeque;

/// The kind of work that a turn is for. All turns exclude each other, and those for handlers come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialKind {
    /// Messages, timers and requests.
    Handlers,
    /// Steps of tasks.
    Steps,
}

/// A grant of the shell to shards, passed on as the [`Input`](crate::shard::Input) of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It is the turn of this shard.
    Turn(ShardId, TrialKind),
    /// This shard, which tries a step, has to let a handler be tried.
    Yield(ShardId),
    /// All met causes are tried: no shard is held any more.
    Open,
}

/// The turns of a node's shards in one life of the process.
#[derive(Clone, Debug, Default)]
pub struct Trials {
    held: bool,
    current: Option<(ShardId, TrialKind)>,
    yielding: bool,
    handlers: VecDeque<ShardId>,
    steps: VecDeque<ShardId>,
}

impl Trials {
    /// Creates the turns of a life whose log has met messages or timers at these shards.
    #[must_use]
    pub fn new(met: impl IntoIterator<Item = ShardId>) -> Self {
        let handlers: VecDeque<ShardId> = met.into_iter().collect();
        Self { held: !handlers.is_empty(), handlers, ..Self::default() }
    }

    /// Whether all shards have to be held at their start.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Returns the first turn, once all shards have their `Start`.
    pub fn begin(&mut self) -> Option<Grant> {
        self.next()
    }

    /// Handles that a shard requests a turn.
    pub fn wants(&mut self, shard: ShardId, kind: TrialKind) -> Option<Grant> {
        match kind {
            TrialKind::Handlers => self.handlers.push_back(shard),
            TrialKind::Steps => self.steps.push_back(shard),
        }
        match (self.current, kind) {
            // A step may take minutes, and no client waits for it.
            (Some((at, TrialKind::Steps)), TrialKind::Handlers) if !self.yielding => {
                self.yielding = true;
                Some(Grant::Yield(at))
            }
            _ => self.next(),
        }
    }

    /// Handles that a shard has ended its turn.
    pub fn ends(&mut self, shard: ShardId, kind: TrialKind) -> Option<Grant> {
        assert_eq!(self.current, Some((shard, kind)), "only the shard whose turn it is can end it");
        (self.current, self.yielding) = (None, false);
        if self.held && self.handlers.is_empty() {
            self.held = false;
            return Some(Grant::Open);
        }
        self.next()
    }

    /// Handles that a shard does not lead any more: it neither has nor wants a turn.
    pub fn drop_shard(&mut self, shard: ShardId) -> Option<Grant> {
        self.handlers.retain(|other| *other != shard);
        self.steps.retain(|other| *other != shard);
        let (current, kind) = self.current.filter(|(current, _)| *current == shard)?;
        self.ends(current, kind)
    }

    fn next(&mut self) -> Option<Grant> {
        if self.current.is_some() {
            return None;
        }
        let handlers = self.handlers.pop_front().map(|shard| (shard, TrialKind::Handlers));
        self.current = handlers.or_else(|| self.steps.pop_front().map(|shard| (shard, TrialKind::Steps)));
        self.current.map(|(shard, kind)| Grant::Turn(shard, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::TrialKind::{Handlers, Steps};
    use super::*;

    #[test]
    fn a_shard_that_does_not_lead_any_more_leaves_its_turn_to_the_next() {
        let mut trials = Trials::default();
        assert_eq!(trials.wants(ShardId(1), Handlers), Some(Grant::Turn(ShardId(1), Handlers)));
        for shard in [2, 3] {
            assert_eq!(trials.wants(ShardId(shard), Handlers), None);
        }
        assert_eq!(trials.drop_shard(ShardId(2)), None, "it waited");
        assert_eq!(trials.drop_shard(ShardId(1)), Some(Grant::Turn(ShardId(3), Handlers)));
    }

    #[test]
    fn met_shards_come_first_one_at_a_time_and_then_all_is_open() {
        let mut trials = Trials::new([ShardId(2), ShardId(5)]);
        assert!(trials.is_held());
        assert_eq!(trials.begin(), Some(Grant::Turn(ShardId(2), Handlers)));
        assert_eq!(trials.ends(ShardId(2), Handlers), Some(Grant::Turn(ShardId(5), Handlers)));
        assert_eq!(trials.ends(ShardId(5), Handlers), Some(Grant::Open));
        assert!(!trials.is_held());
        assert_eq!(trials.wants(ShardId(1), Handlers), Some(Grant::Turn(ShardId(1), Handlers)));
        assert_eq!(trials.wants(ShardId(3), Steps), None);
        assert_eq!(trials.wants(ShardId(3), Handlers), None);
        assert_eq!(trials.ends(ShardId(1), Handlers), Some(Grant::Turn(ShardId(3), Handlers)));
        assert_eq!(trials.ends(ShardId(3), Handlers), Some(Grant::Turn(ShardId(3), Steps)));
        assert_eq!(trials.wants(ShardId(1), Handlers), Some(Grant::Yield(ShardId(3))));
        assert_eq!(trials.wants(ShardId(2), Handlers), None, "it yields already");
        assert_eq!(trials.ends(ShardId(3), Steps), Some(Grant::Turn(ShardId(1), Handlers)));
        assert_eq!(trials.ends(ShardId(1), Handlers), Some(Grant::Turn(ShardId(2), Handlers)));
        assert_eq!(trials.ends(ShardId(2), Handlers), None);
    }

    #[test]
    fn without_met_shards_nothing_is_held() {
        let mut trials = Trials::new([]);
        assert!(!trials.is_held());
        assert_eq!(trials.begin(), None);
    }
}
