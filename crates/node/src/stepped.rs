//! The parts of a node without threads, for a simulator: it gives them their turns.

use crate::checkpoint::{Event, Next};
use crate::copies::Copies;
use crate::env::{Env, Program};
use crate::guarded::Guarded;
use crate::inbox::Command;
use crate::memory::MemoryLimits;
use crate::shared::{Shared, stage};
use crate::steps::StepPart;
use crate::watchdog::Probe;
use crate::worker::Worker;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stead_core::ids::{Colour, Epoch, ShardId};
use stead_core::placement::{Place, Placement};
use stead_core::shard::Shard;
use stead_core::shutdown::Group;
use stead_core::topology::Topology;
use stead_core::trials::Trials;
use stead_store::checkpoint::copy::Owner;

/// The number of parts of each kind that a node has, and the limits of each.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Workers: at least 1.
    pub workers: usize,
    /// Parts that run steps of tasks: at least 1.
    pub steps: usize,
    /// The limits of the bytes that wait in memory.
    pub memory: MemoryLimits,
    /// Most bytes of a batch that the log takes.
    pub batch_bytes_max: usize,
}

/// The parts of a node that run user code, and what all parts share.
pub struct Stepped<E: Env> {
    /// The state that the parts share: the hub of each.
    pub shared: Arc<Shared<E>>,
    /// The workers, by their numbers.
    pub workers: Vec<Worker<E>>,
    /// The parts that run steps of tasks.
    pub steps: Vec<StepPart>,
}

impl<E: Env> Stepped<E> {
    /// The parts of a life over shards that are not yet started, each with the epoch that it begins; `lives` counts the starts. The first turn of a worker starts its shards.
    pub fn new(
        program: E::Program,
        topology: &Arc<Topology>,
        lives: u64,
        around: (E::Clock, E::Watch),
        (shards, trials): (Vec<(Shard, Epoch)>, Trials),
        shape: Shape,
    ) -> Self {
        let owner = Owner { cluster: 0, incarnation: topology.incarnation };
        let copies = Copies::new(owner, 0, None);
        let here = Placement::new(topology, |_| Place::Here);
        let placed = (Arc::clone(topology), here);
        let counts = (shape.workers, shape.steps);
        let shared = Shared::new(program, placed, counts, lives, around, copies, shape.memory);
        let shared = Arc::new(shared);
        let workers = workers(&shared, shards, trials, 0, shape.batch_bytes_max);
        Self {
            workers: workers.into_iter().map(|(worker, _)| worker).collect(),
            steps: (0..shape.steps).map(|number| StepPart::new(number, Arc::default())).collect(),
            shared,
        }
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

/// The workers of a node, each with its watchdog's probe. The first turn of the trials waits in its inbox until the shard has
/// started.
pub(crate) fn workers<E: Env>(
    shared: &Arc<Shared<E>>,
    shards: Vec<(Shard, Epoch)>,
    trials: Trials,
    seed: u64,
    batch_bytes_max: usize,
) -> Vec<(Worker<E>, Arc<Probe>)> {
    let mut by_worker: Vec<Vec<(Shard, Epoch)>> = shared.inboxes.iter().map(|_| Vec::new()).collect();
    for (shard, epoch) in shards {
        by_worker[shared.worker_of(shard.state().shard())].push((shard, epoch));
    }
    shared.trials(|shared| {
        *shared = trials;
        shared.begin()
    });
    let workers = by_worker.into_iter().enumerate().map(|(number, shards)| {
        let probe = Arc::new(Probe::default());
        let handler = shared.program.handler(&shared.topology, seed);
        let code = Guarded::new(handler, shared, Arc::clone(&probe));
        (Worker::new(shared, number, shards, code, batch_bytes_max), probe)
    });
    workers.collect()
}
