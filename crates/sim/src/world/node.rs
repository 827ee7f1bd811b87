//! One life of the simulated node, recovered and assembled by the code that ships, without threads.

use super::admission::Admission;
use super::checkpoints::Checkpoints;
use super::commands::Command;
use super::copies::CopyRequests;
use crate::bug::Bug;
use crate::disk_log::LOG_ID;
use crate::model::Seen;
use crate::profile::Profile;
use crate::refusals::COPIES;
use crate::stage::{Clocks, Observer, OpenCall, Services, SimEnv};
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
    AskedStatus, CheckpointOptions, CopyTarget, Drawn, OpenError, Options, PartId, RecoverOptions, Recovery,
    Registered, ServiceLimits, Stepped, recover, recover_options,
};
use stead_store::checkpoint::load::Loaders;
use stead_store::data_dir::Meta;
use stead_store::disk::Disk;
use stead_store::wal::WalOptions;

/// The only node of the cluster.
const NODE: NodeId = NodeId::FIRST;

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
    pub(crate) copy_requests: CopyRequests,
    pub(crate) admission: Admission,
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
    /// Whether its start is over: all shards have served. Before that no client has a handle of the node.
    pub(crate) serves: bool,
    /// Whether it has failed or was abandoned.
    pub(crate) is_over: bool,
    /// Once its end has begun, the virtual time by which it must be over.
    pub(crate) ends_by: Option<u64>,
    /// Whether users' code in one of its parts has ended it.
    pub(crate) ends_itself: bool,
    /// Its parts that have begun and not ended, besides the one that ends the others.
    pub(crate) running: BTreeSet<PartId>,
    /// Parts within a turn in which users' code waits for the end of the node.
    pub(crate) held: BTreeSet<PartId>,
    /// Once the end waits for parts in users' code that are not steps, the virtual time since which it does.
    pub(crate) reads_since: Option<u64>,
    /// Whether the data were marked as those of a life that ended in order.
    pub(crate) is_marked: bool,
    /// Number of its merges that have panicked on purpose.
    pub(crate) merge_panics: u64,
    /// The commands of operators on checkpoints that are under way.
    pub(crate) commands: Vec<Command>,
    /// The status of the shards that an operator waits for.
    pub(crate) status: Option<AskedStatus>,
}

/// Returns the metadata of a new data directory.
pub(crate) fn fresh(incarnation: Incarnation) -> Meta {
    Meta::new(ClusterId(0x5ead), incarnation, NODE, LOG_ID)
}

/// The time limit of a step; the simulated node has no watchdog.
const UNLIMITED: Duration = Duration::from_secs(3600);

/// The code that a program lacks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lack {
    /// The services and tasks for which it has no code.
    pub(crate) code: BTreeSet<String>,
    /// Those that may wait without.
    pub(crate) allowed: BTreeSet<String>,
}

/// Returns the settings of a node with these services, as far as it has their code.
fn options(lack: &Lack, topology: &Topology, profile: &Profile) -> Options {
    let services = topology.services().iter().enumerate();
    let services = services.filter(|(_, service)| !lack.code.contains(&service.name));
    let services = services.map(|(place, service)| ServiceLimits {
        name: service.name.clone(),
        shards: Some(service.shards),
        when_new: service.shards,
        settings: profile.settings_of(place).clone(),
    });
    Options {
        threads: profile.workers,
        task_threads: profile.step_parts,
        handler_timeout: Duration::from_micros(profile.query_limit),
        task_step_timeout: UNLIMITED,
        shutdown_timeout: Duration::from_micros(profile.shutdown_timeout),
        clock_confirm: profile.settings.clock_confirm.into(),
        memory: profile.memory,
        segment_bytes: profile.segment_bytes,
        checkpoints: CheckpointOptions {
            interval: (profile.checkpoint_interval > 0)
                .then(|| Duration::from_micros(profile.checkpoint_interval)),
            keep: profile.keep,
            bytes_per_second: profile.bytes_per_second,
            timeout: Duration::from_micros(profile.checkpoint_deadline),
            check_bytes_max: profile.check_bytes_max,
            ..CheckpointOptions::default()
        },
        copies: (profile.copy_interval > 0).then(|| CopyTarget {
            address: COPIES.to_owned(),
            interval: Duration::from_micros(profile.copy_interval),
            keep: profile.keep,
        }),
        services: services.collect(),
        without_code: lack.allowed.clone(),
        native: None,
        listen_peers: None,
        not_here: BTreeMap::new(),
        replicated: BTreeMap::new(),
        in_cluster: false,
    }
}

/// Recovers the data directory, as the start of a node does.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    topology: &Topology,
    profile: &Profile,
) -> Result<Recovery, OpenError> {
    open_lacking(disk, &Lack::default(), topology, profile)
}

/// Recovers the data directory, as the start of a node does whose program lacks code.
pub(crate) fn open_lacking(
    disk: Arc<dyn Disk>,
    lack: &Lack,
    topology: &Topology,
    profile: &Profile,
) -> Result<Recovery, OpenError> {
    let options = options(lack, topology, profile);
    let program = Services { lacking: lack.code.clone() };
    let code = Registered { program: &program, without_code: &options.without_code };
    let production = recover_options(&options);
    let wal = WalOptions {
        // The first segments have the minimum length, so that later ones grow if they may.
        segment_bytes_min: 16 << 10,
        spares: profile.segments_ready.unwrap_or(production.wal.spares),
        free_max: profile.segments_free.unwrap_or(production.wal.free_max),
        ..production.wal
    };
    // Another number of threads would change the order of I/O.
    let recover_options = RecoverOptions { wal, loaders: Loaders::InTurn(profile.loaders), ..production };
    recover(disk, &code, recover_options, || fresh(topology.incarnation))
}

/// Makes the parts of a life over what was recovered, as the start of a node does.
pub(crate) fn assemble(
    recovery: Recovery,
    lack: Lack,
    topology: &Topology,
    profile: &Profile,
    writer: u64,
) -> Stepped<SimEnv> {
    let grace = Duration::from_micros(profile.grace);
    let (readers, sizes) = (Loaders::InTurn(profile.loaders), profile.sizes);
    let drawn = Drawn { handlers: 0, writer, grace, merging: profile.merge, readers, sizes };
    let (options, around) = (options(&lack, topology, profile), (Clocks, Observer));
    Stepped::assemble(Services { lacking: lack.code }, around, recovery, options, drawn)
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
    ) -> Self {
        if bug == Some(Bug::ReuseEpoch) {
            reuse_epochs(&mut recovery);
        }
        let epochs = recovery.plan.epochs.values().copied().collect();
        let parts = assemble(recovery, Lack::default(), topology, profile, writer);
        Self {
            epochs,
            parts,
            due: BTreeMap::new(),
            held_trim: None,
            admission: Admission::default(),
            checkpoints: Checkpoints::new(profile.checkpoint_interval),
            copy_requests: CopyRequests::default(),
            channels: BTreeMap::new(),
            asking: BTreeMap::new(),
            queries: BTreeMap::new(),
            open_queries: BTreeSet::new(),
            late_queries: 0,
            serves: false,
            is_over: false,
            ends_by: None,
            ends_itself: false,
            running: BTreeSet::new(),
            held: BTreeSet::new(),
            reads_since: None,
            is_marked: false,
            merge_panics: 0,
            commands: Vec::new(),
            status: None,
        }
    }

    /// Returns the running checkpoint.
    pub(crate) fn running_checkpoint(&self) -> Option<CheckpointNumber> {
        self.parts.checkpoints()?.part.driver().running()
    }

    /// Returns the shards that it leads.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.parts.shards()
    }

    /// Returns a shard, unless its worker has not begun or has ended.
    pub(crate) fn shard(&self, id: ShardId) -> Option<&Shard> {
        let worker = self.parts.worker(self.parts.worker_of(id))?;
        let replica = worker.replicas().find(|replica| replica.shard_id() == id);
        replica.expect("each shard has a worker").shard()
    }
}
