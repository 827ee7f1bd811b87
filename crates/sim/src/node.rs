//! One life of the simulated node, recovered and assembled by the code that ships, without threads.

use crate::bug::Bug;
use crate::checkpoints::Checkpoints;
use crate::model::Seen;
use crate::profile::Profile;
use crate::stage::{Clocks, Observer, OpenCall, Services, SimEnv};
use crate::stopping::Stopping;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stead_core::ids::{
    CheckpointNumber, ClusterId, Epoch, Incarnation, Index, NodeId, ShardId, StepRun, TaskId,
};
use stead_core::key::Key;
use stead_core::record::TaskRecord;
use stead_core::shard::Shard;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_node::checkpoint::CheckpointCommand;
use stead_node::{
    Bell, CheckpointOptions, CopyTarget, Drawn, MemoryLimits, OpenError, Options, Part, RecoverOptions,
    Recovery, ServiceLimits, Shared, Stepped, recover,
};
use stead_store::data_dir::Meta;
use stead_store::disk::Disk;
use stead_store::wal::WalOptions;

/// The only node of the cluster.
pub(crate) const NODE: NodeId = NodeId::FIRST;
/// The directory to which the node copies its checkpoints.
pub(crate) const COPIES: &str = "copies";

/// A part of the node that gets turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PartId {
    Worker(usize),
    Step(usize),
    Log,
    /// The part that prepares the log's segments.
    Preparer,
    /// The part that takes checkpoints.
    Checkpoints,
    /// The part that merges bundles.
    Merges,
    /// The part that runs services' checks.
    Checks,
    /// The part that copies checkpoints.
    Copies,
    /// A part that runs queries.
    Query(usize),
    /// The part that watches over queries.
    QueryWatch,
}

/// The state of one life of the process.
pub(crate) struct Node {
    /// By shard.
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) parts: Stepped<SimEnv>,
    /// By part, the virtual time at which its next turn is due.
    pub(crate) due: BTreeMap<PartId, u64>,
    /// Planted bug: a trim that is delayed.
    pub(crate) held_trim: Option<CheckpointCommand>,
    pub(crate) checkpoints: Checkpoints,
    /// By channel, the arrival time of its last frame, for profiles that keep the order.
    pub(crate) channels: BTreeMap<(ShardId, ShardId), u64>,
    /// By task, the steps that wait for their shard's answer.
    pub(crate) asking: BTreeMap<(ShardId, TaskId, StepRun), TaskRecord>,
    /// The state that queries must see, if the model knows it: by shard, entry and process.
    pub(crate) queries: BTreeMap<(ShardId, Index, Key), Seen>,
    /// Calls of clients for queries, by the time when they are over.
    pub(crate) open_queries: BTreeSet<OpenCall>,
    /// Number of queries that this life has given up, or whose time was over.
    pub(crate) late_queries: usize,
    /// Parts that have ended.
    pub(crate) ended: BTreeSet<PartId>,
    /// The end of this life, once it has begun.
    pub(crate) stopping: Option<Stopping>,
}

/// Returns the options of the log.
pub(crate) fn wal_options(segment_bytes: u64, log_id: u64, create: bool) -> WalOptions {
    // The first segments have the minimum length, so that later ones grow if they may.
    let segment_bytes_min = 16 << 10;
    WalOptions { segment_bytes, segment_bytes_min, log_id, create, free_max: 2, ..WalOptions::default() }
}

/// Returns the metadata of a new data directory.
pub(crate) fn fresh(incarnation: Incarnation) -> Meta {
    Meta {
        cluster: ClusterId(0x5ead),
        incarnation,
        node: NODE,
        lives: 0,
        epoch_floor: Epoch(0),
        log_id: 0x1d,
        log_created: false,
        clean: false,
        restoring: false,
        services: Vec::new(),
    }
}

/// The time limit of a step; the simulated node has no watchdog.
const UNLIMITED: Duration = Duration::from_secs(3600);

/// Returns the settings of a node with these services.
fn options(topology: &Topology, profile: &Profile) -> Options {
    let services = topology.services().iter().map(|service| ServiceLimits {
        name: service.name.clone(),
        shards: Some(service.shards),
        when_new: service.shards,
        settings: profile.settings.clone(),
    });
    Options {
        threads: profile.workers,
        task_threads: profile.step_parts,
        handler_timeout: Duration::from_micros(profile.query_limit),
        task_step_timeout: UNLIMITED,
        shutdown_timeout: Duration::ZERO,
        clock_confirm: Duration::from_millis(profile.settings.clock_confirm),
        memory: MemoryLimits::default(),
        segment_bytes: profile.segment_bytes,
        checkpoints: CheckpointOptions {
            interval: None,
            keep: profile.keep,
            timeout: Duration::from_micros(profile.checkpoint_deadline),
            ..CheckpointOptions::default()
        },
        copies: (profile.copy_interval > 0).then(|| CopyTarget {
            address: COPIES.to_owned(),
            interval: Duration::from_micros(profile.copy_interval),
            keep: profile.keep,
        }),
        services: services.collect(),
        without_code: BTreeSet::new(),
    }
}

/// A program that has all code, or lacks the code of some services or tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    All,
    NoService,
    NoTask,
}

impl stead_core::start::Code for Code {
    fn has_service(&self, _: &str) -> bool {
        *self != Self::NoService
    }

    fn has_task(&self, _: &str, _: &str) -> bool {
        *self != Self::NoTask
    }
}

/// Recovers the data directory, as the start of a node does.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    code: Code,
    topology: &Topology,
    profile: &Profile,
) -> Result<Recovery, OpenError> {
    let options = options(topology, profile);
    let recover_options = RecoverOptions {
        services: &options.services,
        clock_confirm: options.clock_confirm,
        wal: wal_options(profile.segment_bytes, 0, false),
        threads: 1,
        elsewhere: BTreeSet::new(),
    };
    recover(disk, &code, recover_options, || fresh(topology.incarnation))
}

/// Plants the bug: a shard leads its previous epoch again, unless its log would show that.
fn reuse_epochs(recovery: &mut Recovery) {
    let logged = recovery.recovered.states.iter().map(State::shard).zip(&recovery.recovered.epochs);
    for (shard, logged) in logged {
        let epoch = recovery.plan.epochs.get_mut(&shard).expect("each shard has an epoch");
        let before = Epoch(epoch.0 - 1);
        if before > *logged {
            *epoch = before;
        }
    }
}

impl Node {
    /// Begins a life over the recovered data.
    pub(crate) fn start(
        mut recovery: Recovery,
        topology: &Topology,
        profile: &Profile,
        writer: u64,
        bug: Option<Bug>,
    ) -> Result<Self, OpenError> {
        if bug == Some(Bug::ReuseEpoch) {
            reuse_epochs(&mut recovery);
        }
        let epochs = recovery.plan.epochs.values().copied().collect();
        let grace = Duration::from_micros(profile.grace);
        let drawn = Drawn { handlers: 0, writer, grace, merging: profile.merge };
        let (options, around) = (options(topology, profile), (Clocks, Observer));
        let parts = Stepped::assemble(Services, around, recovery, options, drawn)?;
        Ok(Self {
            epochs,
            parts,
            due: BTreeMap::new(),
            held_trim: None,
            checkpoints: Checkpoints::default(),
            channels: BTreeMap::new(),
            asking: BTreeMap::new(),
            queries: BTreeMap::new(),
            open_queries: BTreeSet::new(),
            late_queries: 0,
            ended: BTreeSet::new(),
            stopping: None,
        })
    }

    /// Returns the parts with their bells.
    pub(crate) fn bells(&self) -> impl Iterator<Item = (PartId, &Bell)> {
        let Stepped { shared, workers, steps, queries, checks, copies, .. } = &self.parts;
        let hub: &Shared<SimEnv> = shared;
        let workers =
            workers.iter().enumerate().map(|(number, part)| (PartId::Worker(number), part.bell(hub)));
        let steps = steps.iter().enumerate().map(|(number, part)| (PartId::Step(number), part.bell(hub)));
        let queries =
            queries.iter().enumerate().map(|(number, part)| (PartId::Query(number), part.bell(hub)));
        let others = [
            (PartId::Log, &hub.log().bell),
            (PartId::Preparer, &hub.log().preparer_bell),
            (PartId::Checkpoints, self.parts.checkpoints.bell(hub)),
            (PartId::Merges, self.parts.merges.bell(hub)),
            (PartId::QueryWatch, self.parts.query_watch.bell(hub)),
        ];
        let checks = checks.iter().map(|part| (PartId::Checks, part.bell(hub)));
        let copies = copies.iter().map(|part| (PartId::Copies, part.bell(hub)));
        workers.chain(steps).chain(queries).chain(others).chain(checks).chain(copies)
    }

    /// Returns the running checkpoint.
    pub(crate) fn running_checkpoint(&self) -> Option<CheckpointNumber> {
        self.parts.checkpoints.part.driver().running()
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.parts.shards()
    }

    pub(crate) fn shard(&self, id: ShardId) -> &Shard {
        let worker = &self.parts.workers[self.parts.worker_of(id)];
        worker.shards().find(|shard| shard.state().shard() == id).expect("each shard has a worker")
    }
}
