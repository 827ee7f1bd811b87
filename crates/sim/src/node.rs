//! One life of the simulated node: the shell around the real core and the real storage code, without any threads.

use crate::bug::Bug;
use crate::checkpoints::Checkpoints;
use crate::logging::Log;
use crate::profile::Profile;
use crate::stopping::Stopping;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::ids::{Epoch, NodeId, ShardId, TaskId};
use stead_core::record::TaskRecord;
use stead_core::shard::Shard;
use stead_core::start::draw_epochs;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::Trials;
use stead_store::checkpoint::store::{DiskStore, StoreError};
use stead_store::data_dir::{DataDir, DataDirError, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::recovery::{Recovered, RecoveryError, recover};
use stead_store::wal::WalOptions;

/// The only node of the cluster.
pub(crate) const NODE: NodeId = NodeId(1);
/// Where the node keeps its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// What lives from a start of the process to its end.
pub(crate) struct Node {
    /// By shard.
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) shards: Vec<Shard>,
    /// By shard, when its next tick is scheduled, in virtual time.
    pub(crate) ticks: Vec<Option<u64>>,
    pub(crate) log: Log,
    pub(crate) checkpoints: Checkpoints,
    /// By channel, when its last frame arrives, for profiles that keep the order.
    pub(crate) channels: BTreeMap<(ShardId, ShardId), u64>,
    /// Steps that ask before they run.
    pub(crate) asking: BTreeMap<(ShardId, TaskId, u32), TaskRecord>,
    pub(crate) trials: Trials,
    /// Steps and queries that run on threads of their own.
    pub(crate) steps_running: usize,
    pub(crate) queries_running: usize,
    /// The end of this life, once it has begun.
    pub(crate) stopping: Option<Stopping>,
    pub(crate) data_dir: DataDir,
}

/// What a life begins with, read from the disk.
pub(crate) struct Opened {
    pub(crate) data_dir: DataDir,
    pub(crate) store: DiskStore,
    pub(crate) recovered: Recovered,
    pub(crate) created: bool,
}

/// Why a life can't begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("the data directory has other services than it was made with")]
    Topology,
}

/// How the log is kept.
pub(crate) fn wal_options(segment_bytes: u64, log_id: u64, create: bool) -> WalOptions {
    // As short at first as segments may be, so that those that may grow do.
    let segment_bytes_min = 16 << 10;
    WalOptions { segment_bytes, segment_bytes_min, log_id, create, free_max: 2, ..WalOptions::default() }
}

pub(crate) fn fresh(topology: &Topology) -> Meta {
    let services = topology.services().iter().map(|service| ServiceMeta {
        name: service.name.clone(),
        first: service.first,
        shards: service.shards,
    });
    Meta {
        cluster: 0x5ead,
        incarnation: topology.incarnation,
        node: NODE,
        lives: 0,
        epoch_floor: Epoch(0),
        log_id: 0x1d,
        log_created: false,
        clean: false,
        restoring: false,
        services: services.collect(),
    }
}

/// Opens the data directory and recovers, as a node does that starts.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    topology: &Topology,
    segment_bytes: u64,
) -> Result<Opened, OpenError> {
    let (mut data_dir, created) = DataDir::open(Arc::clone(&disk), || fresh(topology))?;
    if data_dir.meta().services != fresh(topology).services
        || data_dir.meta().incarnation != topology.incarnation
    {
        return Err(OpenError::Topology);
    }
    let store = DiskStore::open(Arc::clone(&disk), CHECKPOINTS)?;
    let meta = data_dir.meta();
    let options = wal_options(segment_bytes, meta.log_id, !meta.log_created);
    let recovered = recover(disk, &store, topology, options, 1)?;
    data_dir.update(|meta| meta.log_created = true)?;
    Ok(Opened { data_dir, store, recovered, created })
}

impl Node {
    /// Begins a life: its epoch is durable before any shard leads it.
    pub(crate) fn start(
        opened: Opened,
        topology: &Arc<Topology>,
        profile: &Profile,
        (now, writer): (u64, u64),
        bug: Option<Bug>,
    ) -> Result<Self, OpenError> {
        let Opened { mut data_dir, store, mut recovered, .. } = opened;
        data_dir.update(|meta| {
            meta.lives += 1;
            meta.clean = false;
        })?;
        let known = recovered.known_epochs();
        let reuse = bug == Some(Bug::ReuseEpoch) && known.iter().all(|known| known.promised > known.logged);
        let epochs: Vec<Epoch> = if reuse {
            known.iter().map(|known| known.promised).collect()
        } else {
            let epochs = draw_epochs(data_dir.meta().epoch_floor, &known);
            recovered.promise(&epochs).map_err(RecoveryError::from)?;
            epochs.into_values().collect()
        };
        let seen = recovered.states.iter().map(|s| s.position().colour).max().unwrap_or_default();
        let checkpoints = Checkpoints::new(
            (Arc::new(store), writer),
            (topology, &epochs),
            profile,
            (recovered.lineage, recovered.decided, seen),
            (now, bug),
        );
        let make = |state: State| Shard::new(state, Arc::clone(topology), profile.settings.clone());
        let shards: Vec<Shard> = recovered.states.into_iter().map(make).collect();
        Ok(Self {
            epochs,
            ticks: vec![None; shards.len()],
            shards,
            log: Log::new(recovered.wal, profile.workers, profile.segment_bytes, now, bug),
            checkpoints,
            channels: BTreeMap::new(),
            asking: BTreeMap::new(),
            trials: Trials::default(),
            steps_running: 0,
            queries_running: 0,
            stopping: None,
            data_dir,
        })
    }
}
