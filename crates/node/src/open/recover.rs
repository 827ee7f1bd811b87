//! Recovers the contents of a data directory, as the core plans the start of a life from it.

use crate::checks::LeftMarks;
use crate::open::OpenError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stead_core::ids::{ReplicaId, ShardId};
use stead_core::placement::{Place, Placement};
use stead_core::shard_replica::ReplicaSettings;
use stead_core::start::{Code, Past, ServiceLimits, Services, StartPlan};
use stead_core::topology::Topology;
use stead_store::checkpoint::load::Loaders;
use stead_store::checkpoint::store::DiskStore;
use stead_store::data_dir::{CHECKPOINTS, DataDir, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::recovery::{Facts, Recovered, RecoveryError, recover_checked};
use stead_store::snapshots::Snapshots;
use stead_store::wal::WalOptions;

/// The options of a recovery.
#[derive(Clone, Debug)]
pub struct RecoverOptions<'a> {
    /// The services of the program.
    pub services: &'a [ServiceLimits],
    /// The time for which a wall clock must stay far ahead before timers follow it.
    pub clock_confirm: Duration,
    /// The options of the log. Its identity and whether it is created come from the data directory.
    pub wal: WalOptions,
    /// The loaders of the newest checkpoint.
    pub loaders: Loaders,
    /// The places of the shards that are not on this node; none without a second node.
    pub not_here: BTreeMap<ShardId, Place>,
    /// The replicas on this node that are not the only ones of their shards.
    pub replicated: BTreeMap<ShardId, ReplicaId>,
    /// Whether all shards on this node may get replicas while it runs.
    pub in_cluster: bool,
}

/// A recovered data directory, and the plan of the life that follows. The plan's epochs are durable.
pub struct Recovery {
    /// The directory, owned until this is dropped.
    pub data_dir: DataDir,
    /// Whether the directory was empty, and was created.
    pub created: bool,
    /// The directory's checkpoints.
    pub store: DiskStore,
    /// The directory's snapshots of single shards.
    pub snapshots: Snapshots,
    /// The services and the settings of their shards.
    pub services: Services,
    /// The placement of the shards.
    pub placement: Placement,
    /// The shards on this node that may have other replicas, each with the replica that is here.
    pub replicated: BTreeMap<ShardId, Option<ReplicaId>>,
    /// The marks of services' checks that did not end.
    pub(crate) marks: LeftMarks,
    /// The states of the shards on this node, and the log.
    pub recovered: Recovered,
    /// The decisions for the life that begins.
    pub plan: StartPlan,
}

/// Recovers a data directory, or creates it with the metadata from `fresh`, and counts the life.
///
/// # Errors
/// [`OpenError`]; stored data is then unchanged, except that the log's unsynced tail may be cut, and that a disk which fails under
/// the last writes, those that begin the life, may hold some of them: the life then counts as one that was not ended in order.
pub fn recover(
    disk: Arc<dyn Disk>,
    code: &dyn Code,
    options: RecoverOptions<'_>,
    fresh: impl FnOnce() -> Meta,
) -> Result<Recovery, OpenError> {
    recover_in(DataDir::open(disk, fresh)?, code, options)
}

/// Recovers as [`recover`] does, in a data directory that the caller has opened, and whose life it may have
/// [counted](DataDir::begin_life). A new one may list services in its metadata: those of the cluster that the node joins.
///
/// # Errors
/// As [`recover`]; a life that was counted before stays so.
pub fn recover_in(
    (mut data_dir, created): (DataDir, bool),
    code: &dyn Code,
    options: RecoverOptions<'_>,
) -> Result<Recovery, OpenError> {
    if data_dir.meta().has_control && !options.in_cluster {
        return Err(OpenError::OfCluster);
    }
    let disk = Arc::clone(data_dir.disk());
    let mut stored = Topology::new(data_dir.meta().incarnation);
    for service in &data_dir.meta().services {
        stored.ensure(&service.name, service.shards)?;
    }
    let mut services = Services::plan(stored, options.services, code)?;
    let store = DiskStore::open(Arc::clone(&disk), CHECKPOINTS)?;
    // All that is read must be, before the first write.
    let marks = LeftMarks::read(&store, services.topology().incarnation)?;
    let meta = data_dir.meta();
    let wal = WalOptions { log_id: meta.log_id, create: !meta.log_created, ..options.wal };
    let topology = Arc::clone(services.topology());
    let mut refused = None;
    let place = |shard| options.not_here.get(&shard).copied().unwrap_or(Place::Here);
    let placement = Placement::new(&topology, place);
    let known = options.replicated.iter().map(|(shard, replica)| (*shard, Some(*replica)));
    let places = placement.here().filter(|_| options.in_cluster).map(|shard| (shard, None));
    let mut replicated: BTreeMap<ShardId, Option<ReplicaId>> = places.chain(known).collect();
    let facts = Facts {
        cluster: meta.cluster,
        topology: &topology,
        placement: &placement,
        replicated: &replicated,
        log_bytes_max: ReplicaSettings::default().tail_bytes,
    };
    let snapshots = Snapshots::new(Arc::clone(&disk));
    let recovered = recover_checked(disk, &store, facts, wal, options.loaders, |states| {
        services.accept(states, code).map_err(|error| refused.insert(error).to_string())
    });
    let mut recovered = recovered.map_err(|error| match refused {
        Some(refused) => OpenError::from(refused),
        None => error.into(),
    })?;
    // One that had its time here is void (rule 3).
    for (shard, replica) in &mut replicated {
        let newest = recovered.wal.promises().newest(*shard);
        *replica = replica.filter(|replica| newest.is_none_or(|newest| newest <= *replica));
    }
    services.fit(recovered.wal.batch_bytes_max(), options.clock_confirm.into());
    let past = Past { epoch_floor: meta.epoch_floor, is_new: created, ended_cleanly: meta.clean };
    let mut known = recovered.known_epochs();
    // The epochs of the others come from the control plane.
    known.retain(|known| !replicated.contains_key(&known.shard));
    let plan = StartPlan::new(past, &known);
    // Must come first: a start that finds no space changes no metadata, so an older program can still open its data, and
    // the next start has nothing to suspect.
    recovered.make_room_to_promise(&plan.epochs).map_err(RecoveryError::from)?;
    // Must be durable before any entry of a new service, and before the log has a record that older programs do not know.
    data_dir.begin_life_with(|meta| {
        meta.log_created = true;
        meta.clean = false;
        meta.services = ServiceMeta::all_of(&topology);
    })?;
    // Must be durable before any shard uses its epoch.
    recovered.promise(&plan.epochs).map_err(RecoveryError::from)?;
    Ok(Recovery {
        data_dir,
        created,
        store,
        snapshots,
        services,
        placement,
        replicated,
        marks,
        recovered,
        plan,
    })
}
