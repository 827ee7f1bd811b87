//! Guides a checkpoint from its beginning to its manifest: knows the missing parts, and when it has failed.

use crate::ids::{Colour, ShardId, Time};
use std::collections::BTreeSet;

/// One checkpoint at a time, over a fixed set of shards.
#[derive(Clone, Debug)]
pub struct Coordinator {
    shards: BTreeSet<ShardId>,
    /// The highest number that was begun: numbers are never reused.
    last: Colour,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    number: Colour,
    stored: BTreeSet<ShardId>,
    committed: BTreeSet<ShardId>,
    deadline: Time,
}

/// Progress of the running checkpoint. Reports on other checkpoints change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// All records of a shard's part are on stable storage.
    PartStored(ShardId),
    /// The marker of a shard is committed.
    MarkerCommitted(ShardId),
}

/// The next step of the running checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait.
    None,
    /// Every part counts: write the manifest. Only then does the checkpoint exist.
    WriteManifest(Colour),
    /// It took too long: write a tombstone under its number.
    GiveUp(Colour),
}

/// A checkpoint cannot begin, because another one is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint {0} is still being taken; wait for it")]
pub struct Busy(pub Colour);

impl Coordinator {
    /// Creates a coordinator without a running checkpoint, after all numbers up to `last` were used.
    #[must_use]
    pub fn new(shards: impl IntoIterator<Item = ShardId>, last: Colour) -> Self {
        Self { shards: shards.into_iter().collect(), last, running: None }
    }

    /// Begins the next checkpoint; its number goes to every shard as its colour.
    ///
    /// # Errors
    /// [`Busy`] while one runs.
    pub fn begin(&mut self, deadline: Time) -> Result<Colour, Busy> {
        if let Some(running) = &self.running {
            return Err(Busy(running.number));
        }
        let number = self.last.next();
        self.last = number;
        self.running =
            Some(Running { number, stored: BTreeSet::new(), committed: BTreeSet::new(), deadline });
        Ok(number)
    }

    /// Handles progress of a shard with a checkpoint.
    pub fn handle_news(&mut self, number: Colour, news: News) -> Step {
        let Some(running) = self.running.as_mut().filter(|running| running.number == number) else {
            return Step::None;
        };
        match news {
            News::PartStored(shard) => running.stored.insert(shard),
            News::MarkerCommitted(shard) => running.committed.insert(shard),
        };
        if running.stored == self.shards && running.committed == self.shards {
            Step::WriteManifest(number)
        } else {
            Step::None
        }
    }

    /// Handles that time has passed.
    pub fn handle_tick(&mut self, now: Time) -> Step {
        match &self.running {
            Some(running) if running.deadline <= now => Step::GiveUp(running.number),
            _ => Step::None,
        }
    }

    /// Handles that the number is decided: its manifest or its tombstone is on stable storage.
    pub fn handle_decided(&mut self, number: Colour) {
        if self.running.as_ref().is_some_and(|running| running.number == number) {
            self.running = None;
        }
    }

    /// Handles a colour that is higher than any number begun here: no number is used twice.
    pub fn handle_seen(&mut self, colour: Colour) {
        self.last = self.last.max(colour);
    }

    /// Returns the running checkpoint.
    #[must_use]
    pub fn running(&self) -> Option<Colour> {
        self.running.as_ref().map(|running| running.number)
    }

    /// Returns the highest number that was begun.
    #[must_use]
    pub fn last(&self) -> Colour {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_comes_after_every_part_and_every_marker() {
        let mut coordinator = Coordinator::new([ShardId(0), ShardId(1)], Colour(4));
        let number = coordinator.begin(Time(100)).unwrap();
        assert_eq!(number, Colour(5));
        assert_eq!(coordinator.begin(Time(100)), Err(Busy(number)));
        for news in
            [News::PartStored(ShardId(0)), News::MarkerCommitted(ShardId(0)), News::PartStored(ShardId(1))]
        {
            assert_eq!(coordinator.handle_news(number, news), Step::None);
        }
        assert_eq!(coordinator.handle_news(Colour(4), News::MarkerCommitted(ShardId(1))), Step::None);
        assert_eq!(
            coordinator.handle_news(number, News::MarkerCommitted(ShardId(1))),
            Step::WriteManifest(number)
        );
        coordinator.handle_decided(number);
        assert_eq!(coordinator.begin(Time(300)), Ok(Colour(6)));
        assert_eq!(coordinator.handle_tick(Time(299)), Step::None);
        assert_eq!(coordinator.handle_tick(Time(300)), Step::GiveUp(Colour(6)));
    }
}
