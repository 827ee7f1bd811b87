//! The parts of a node without threads, for a simulator: it gives them their turns.

use crate::checkpoint::{Checkpoints, MergePart};
use crate::checks::CheckPart;
use crate::copies::CopyPart;
use crate::env::Env;
use crate::life::Life;
use crate::log::{LogPart, PreparePart};
use crate::open::{Drawn, OpenError, Options, Parts, Recovery, assemble};
use crate::queries::{QUERY_THREADS, QueryPart, QueryThread, QueryThreads, QueryWatch};
use crate::shared::Shared;
use crate::steps::StepPart;
use crate::worker::Worker;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// The part that runs the services' checks, if any declare one.
    pub checks: Option<CheckPart>,
    /// The part that copies checkpoints, if any are to be.
    pub copies: Option<CopyPart>,
    /// The parts that run queries.
    pub queries: Vec<QueryPart>,
    /// The part that watches over them.
    pub query_watch: QueryWatch,
    /// Parts for queries that it has asked for.
    wanted_queries: Arc<AtomicUsize>,
    life: Life<E>,
}

/// The parts have no threads: the simulator's own runs them all.
struct NoThreads {
    /// Parts for queries that the watcher has asked for.
    wanted: Arc<AtomicUsize>,
}

impl QueryThreads for NoThreads {
    fn start(&mut self) -> io::Result<()> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn let_others_first(&mut self, _: QueryThread) {}
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
        let (shared, merges) = (Arc::clone(&life.shared), merges.0);
        if parts.checks.is_some() {
            shared.checks.part_begins();
        }
        let wanted_queries = Arc::new(AtomicUsize::new(0));
        let threads = Box::new(NoThreads { wanted: Arc::clone(&wanted_queries) });
        Ok(Self {
            workers,
            steps,
            log,
            preparer,
            checkpoints,
            merges,
            checks: parts.checks,
            copies: parts.copies,
            queries: (0..QUERY_THREADS).map(|_| QueryPart::new(&shared)).collect(),
            query_watch: QueryWatch::new(&shared, parts.query_limit, threads),
            wanted_queries,
            shared,
            life,
        })
    }

    /// Marks the data as those of a life that ended in order: its end asks for it.
    pub fn mark_clean(&self) {
        self.life.mark_clean();
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

    /// Makes the parts for queries that the watcher has asked for since this was called. Returns their number.
    pub fn start_queries(&mut self) -> usize {
        let wanted = self.wanted_queries.swap(0, Ordering::Relaxed);
        self.queries.extend((0..wanted).map(|_| QueryPart::new(&self.shared)));
        wanted
    }
}
