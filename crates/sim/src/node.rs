//! One life of the simulated node: the shell around the real core and the real storage code, without any threads.

use crate::bug::Bug;
use crate::checkpoints::Checkpoints;
use crate::model::Seen;
use crate::profile::Profile;
use crate::stage::{Clocks, Observer, Services, SimEnv};
use crate::stopping::Stopping;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stead_core::ids::{Epoch, Index, NodeId, ShardId, TaskId, Time};
use stead_core::key::Key;
use stead_core::record::TaskRecord;
use stead_core::shard::Shard;
use stead_core::start::draw_epochs;
use stead_core::state::State;
use stead_core::topology::Topology;
use stead_core::trials::Trials;
use stead_node::{LogPart, MemoryLimits, PreparePart, Shape, Stepped};
use stead_store::checkpoint::store::{DiskStore, StoreError};
use stead_store::data_dir::{DataDir, DataDirError, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::recovery::{Recovered, RecoveryError, recover};
use stead_store::wal::WalOptions;

/// The only node of the cluster.
pub(crate) const NODE: NodeId = NodeId(1);
/// Where the node keeps its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// A part of the node that gets turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PartId {
    Worker(usize),
    Step(usize),
    Log,
    /// The part that prepares the log's segments.
    Preparer,
}

/// What lives from a start of the process to its end.
pub(crate) struct Node {
    /// By shard.
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) parts: Stepped<SimEnv>,
    pub(crate) log: LogPart,
    pub(crate) preparer: PreparePart,
    /// By part, when its next turn is due, in virtual time.
    pub(crate) due: BTreeMap<PartId, u64>,
    /// Planted bug: a trim that is held back.
    pub(crate) held_trim: Option<Vec<Index>>,
    pub(crate) checkpoints: Checkpoints,
    /// By channel, when its last frame arrives, for profiles that keep the order.
    pub(crate) channels: BTreeMap<(ShardId, ShardId), u64>,
    /// By task, the steps that wait for their shard's word.
    pub(crate) asking: BTreeMap<(ShardId, TaskId, u32), TaskRecord>,
    /// The state that queries have to see, if the model knows: by shard, entry and process.
    pub(crate) queries: BTreeMap<(ShardId, Index, Key), Seen>,
    /// Parts that have ended.
    pub(crate) ended: BTreeSet<PartId>,
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
        is_clean: bool,
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
        let make = |state: State| {
            let mut shard = Shard::new(state, Arc::clone(topology), profile.settings.clone());
            if is_clean {
                shard.assume_clean();
            }
            shard
        };
        let mut shards: Vec<Shard> = recovered.states.into_iter().map(make).collect();
        let trials =
            Trials::new(shards.iter().filter(|shard| shard.has_met()).map(|shard| shard.state().shard()));
        if trials.is_held() {
            shards.iter_mut().for_each(Shard::hold);
        }
        let wal = recovered.wal;
        let shape = Shape {
            workers: profile.workers,
            steps: profile.step_parts,
            memory: MemoryLimits::default(),
            batch_bytes_max: wal.batch_bytes_max(),
        };
        let lives = data_dir.meta().lives;
        let led = shards.into_iter().zip(epochs.iter().copied()).collect();
        let around = (Clocks, Observer);
        Ok(Self {
            parts: Stepped::new(Services, topology, lives, around, (led, trials), shape),
            epochs,
            preparer: PreparePart::new(wal.preparer()),
            log: LogPart::new(wal, profile.workers, profile.segment_bytes, Time(now)),
            due: BTreeMap::new(),
            held_trim: None,
            checkpoints,
            channels: BTreeMap::new(),
            asking: BTreeMap::new(),
            queries: BTreeMap::new(),
            ended: BTreeSet::new(),
            stopping: None,
            data_dir,
        })
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.parts.shards()
    }

    pub(crate) fn shard(&self, id: ShardId) -> &Shard {
        let worker = &self.parts.workers[self.parts.worker_of(id)];
        worker.shards().find(|shard| shard.state().shard() == id).expect("each shard has a worker")
    }
}
