//! The parts of a node without threads, for a simulator: it gives them their turns.

use crate::checkpoint::{CheckpointPart, Event, MergePart, Next};
use crate::env::Env;
use crate::inbox::Command;
use crate::life::Life;
use crate::log::{LogPart, PreparePart};
use crate::open::{Drawn, OpenError, Options, Parts, Recovery, assemble};
use crate::shared::{Shared, stage};
use crate::steps::StepPart;
use crate::worker::Worker;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use stead_core::ids::{Colour, ShardId};
use stead_core::shard::Shard;
use stead_core::shutdown::Group;
use stead_store::checkpoint::store::BlobStore;

/// The parts of a node that run user code and keep its log, and what all parts share.
pub struct Stepped<E: Env> {
    /// The state that the parts share: the hub of each.
    pub shared: Arc<Shared<E>>,
    /// The workers, by their numbers. The first turn of a worker starts its shards.
    pub workers: Vec<Worker<E>>,
    /// The parts that run steps of tasks.
    pub steps: Vec<StepPart>,
    /// The part that writes the log.
    pub log: LogPart,
    /// The part that prepares the log's segments.
    pub preparer: PreparePart,
    life: Unthreaded<E>,
}

/// The parts of a node that take checkpoints and merge them, and where they keep them.
pub struct SteppedCheckpoints {
    /// Takes checkpoints.
    pub part: CheckpointPart,
    /// Merges bundles.
    pub merges: MergePart,
    /// Where checkpoints are kept.
    pub store: Arc<dyn BlobStore>,
}

/// A life without threads: when it is dropped there is nothing to wait for.
struct Unthreaded<E: Env>(Life<E>);

impl<E: Env> Drop for Unthreaded<E> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl<E: Env> Stepped<E> {
    /// Assembles a life over what was recovered, as [`Life::open`] does, but starts no thread.
    ///
    /// # Errors
    /// As [`Life::open`].
    #[expect(clippy::disallowed_methods, reason = "it times the start")]
    pub fn assemble(
        program: E::Program,
        around: (E::Clock, E::Watch),
        recovery: Recovery,
        options: Options,
        drawn: Drawn,
    ) -> Result<(Self, SteppedCheckpoints), OpenError> {
        let parts = assemble(program, around, recovery, options, drawn, Instant::now())?;
        let Parts { life, log, prepare: preparer, workers, steps, checkpoints, merges, .. } = parts;
        let checkpoints =
            SteppedCheckpoints { part: checkpoints.part, merges: merges.0, store: checkpoints.store };
        let shared = Arc::clone(&life.shared);
        Ok((Self { shared, workers, steps, log, preparer, life: Unthreaded(life) }, checkpoints))
    }

    /// Marks the data as those of a life that ended in order: its end asks for it.
    pub fn mark_clean(&self) {
        self.life.0.mark_clean();
    }

    /// The shards of all workers.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.workers.iter().flat_map(Worker::shards)
    }

    /// The worker of a shard.
    #[must_use]
    pub fn worker_of(&self, shard: ShardId) -> usize {
        self.shared.worker_of(shard)
    }

    /// Takes the next event that a worker has left for the part that takes checkpoints.
    pub fn next_event(&self) -> Option<Event> {
        let queue = &self.shared.snapshots;
        let Next::Event(event) = queue.next(|_| false) else { return None };
        if let Event::Records { piece, .. } = &event {
            queue.took(piece.bytes());
        }
        Some(event)
    }

    /// Runs the next query that waits for a thread. Returns whether there was one.
    pub fn run_query(&self) -> bool {
        self.shared.queries.step(&self.shared)
    }

    /// The checkpoints up to this one take no more parts, of all shards or of those beside one: their snapshots are drained to
    /// nowhere.
    pub fn give_up(&self, only: Option<ShardId>, number: Colour) {
        let only = only.map(|shard| self.worker_of(shard));
        for (worker, inbox) in self.shared.inboxes.iter().enumerate() {
            if only.is_none_or(|only| only == worker) {
                inbox.push(Command::GivenUp(number));
            }
        }
    }

    /// The next part of a shard holds everything.
    pub fn force_full(&self, shard: ShardId) {
        self.shared.inboxes[self.worker_of(shard)].push(Command::ForceFull(shard));
    }

    /// Begins the end of the life: clients' calls are refused from now on.
    pub fn begin_end(&self) {
        self.shared.stage.store(stage::STOPS, Ordering::SeqCst);
    }

    /// Asks a group of parts to end, in the order of [`Group::ORDER`]. Queries that wait are still to be run.
    pub fn stop(&self, group: Group) {
        let shared = &self.shared;
        match group {
            Group::Tasks => shared.steps.stop(),
            Group::Workers => {
                for inbox in &shared.inboxes {
                    inbox.push(Command::Stop);
                }
            }
            Group::Log => {
                shared.stage.store(stage::ENDED, Ordering::SeqCst);
                shared.log.close();
                shared.log.preparer_bell.ring();
            }
            Group::Checkpoints | Group::Queries | Group::Watchdog => {}
        }
    }
}
