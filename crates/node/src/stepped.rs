//! The parts of a node without threads, for a simulator: it gives them their turns.

use crate::checkpoint::{Checkpoints, MergePart};
use crate::env::Env;
use crate::life::Life;
use crate::log::{LogPart, PreparePart};
use crate::open::{Drawn, OpenError, Options, Parts, Recovery, assemble};
use crate::shared::Shared;
use crate::steps::StepPart;
use crate::worker::Worker;
use std::sync::Arc;
use std::time::Instant;
use stead_core::ids::ShardId;
use stead_core::shard::Shard;

/// The parts of a node, and what they share.
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
    /// The part that takes checkpoints.
    pub checkpoints: Checkpoints,
    /// The part that merges bundles.
    pub merges: MergePart,
    life: Unthreaded<E>,
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
    ) -> Result<Self, OpenError> {
        let parts = assemble(program, around, recovery, options, drawn, Instant::now())?;
        let Parts { life, log, prepare: preparer, workers, steps, checkpoints, merges, .. } = parts;
        let (shared, merges, life) = (Arc::clone(&life.shared), merges.0, Unthreaded(life));
        Ok(Self { shared, workers, steps, log, preparer, checkpoints, merges, life })
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

    /// Runs the next query that waits for a thread. Returns whether there was one.
    pub fn run_query(&self) -> bool {
        self.shared.queries.step(&self.shared)
    }
}
