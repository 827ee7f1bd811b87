//! A node of a simulated cluster: its disk and clocks, and the life of its process, recovered and assembled by the code that ships.

use super::bug::ClusterBug;
use super::env::{self, Clocks, ClusterEnv, Lists, SERVICE, Seen, Witness};
use crate::disk::{LifeDisk, Removals, Syncs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stead_core::checkpointing::merging::Policy;
use stead_core::control::facts::ShardReport;
use stead_core::control::node::StartId;
use stead_core::ids::{ClusterId, Incarnation, Life, Micros, NodeId, ReplicaId, ShardId, Time};
use stead_core::shard::Settings;
use stead_core::topology::Topology;
use stead_node::{
    CheckpointOptions, Drawn, MemoryLimits, OpenError, Options, PartId, RecoverOptions, Registered,
    ServiceLimits, Sizes, Stepped, recover_in, recover_options,
};
use stead_store::checkpoint::load::Loaders;
use stead_store::data_dir::{DataDir, DataDirError, Meta};
use stead_store::sim_disk::SimDisk;
use stead_store::wal::WalOptions;

/// The cluster of all nodes.
pub(super) const CLUSTER: ClusterId = ClusterId(0x5ead);
pub(super) const INCARNATION: Incarnation = Incarnation(1);
/// The clocks when a run begins, in microseconds.
const BEGINNING: u64 = 1_000_000_000_000;
const UNLIMITED: Duration = Duration::from_secs(3600);

/// Returns the id of a node by its place.
pub(super) fn node_id(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

/// Returns the place of a node by its id.
pub(super) fn at_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// The clocks of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skew {
    /// The lead of the steady clock and of the wall clock, in microseconds.
    pub(super) steady: u64,
    pub(super) wall: u64,
    /// The drift of both, in parts of a million.
    pub(super) drift: u64,
}

impl Skew {
    /// Returns both clocks at a time of the world.
    pub(super) fn at(self, now: u64) -> (Time, Time) {
        let passed = now + now * self.drift / 1_000_000;
        (Time(BEGINNING + self.steady + passed), Time(BEGINNING + self.wall + passed))
    }

    /// Returns the time of the world at which the steady clock shows a time, or has.
    pub(super) fn when(self, steady: Time) -> u64 {
        let passed = u128::from(steady.0.saturating_sub(BEGINNING + self.steady));
        (passed * 1_000_000 / (1_000_000 + u128::from(self.drift))) as u64 + 1
    }
}

/// A node.
pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    /// A copy of the disk as it was at an earlier end of its process.
    pub(super) copy: Option<SimDisk>,
    pub(super) skew: Skew,
    /// The number of starts of its process.
    pub(super) starts: u64,
    /// A start that the control plane has not registered yet.
    pub(super) entering: Option<Entering>,
    /// `None` while it is down, or enters.
    pub(super) life: Option<Running>,
    /// Until then its process does not run.
    pub(super) paused_until: u64,
    /// The growth of its log between two snapshots of a replica.
    pub(super) snapshot_log_bytes: u64,
}

/// A life that is counted, and whose replicas the control plane has yet to name: that decides whether the disk is believed (rule 3).
pub(super) struct Entering {
    /// The first field: nothing is written by what is dropped.
    alive: Alive,
    dir: DataDir,
    created: bool,
    pub(super) start: StartId,
    pub(super) life: Life,
}

impl Entering {
    /// The starts on the disk before this one.
    pub(super) fn earlier(&self) -> Vec<StartId> {
        self.dir.meta().earlier_starts().to_vec()
    }

    /// Whether the disk may lack what was acknowledged.
    pub(super) fn may_lack(&self) -> bool {
        self.dir.may_lack()
    }
}

/// The right of a life to change its disk, which ends with it.
struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A life of a node's process.
pub(super) struct Running {
    /// The first field, as above.
    _alive: Alive,
    pub(super) parts: Stepped<ClusterEnv>,
    /// By part, the time of its next turn.
    pub(super) due: BTreeMap<PartId, u64>,
    pub(super) start: StartId,
    /// The newest report on each replica, and whether one is newer than what was sent.
    pub(super) reports: BTreeMap<ShardId, ShardReport>,
    pub(super) changed: bool,
    /// The version of the routes that it follows.
    pub(super) routed: u64,
}

impl Running {
    pub(super) fn life(&self) -> Life {
        Life(self.parts.shared.lives())
    }
}

/// Returns the settings of the shards: short times, and no request is given up because nodes end while they handle it.
fn settings() -> Settings {
    Settings {
        attempts_max: u32::MAX,
        ack_delay: Micros::from_millis(2),
        resend_after: Micros::from_millis(100),
        suspect_for: Micros::from_millis(100),
        ..Settings::default()
    }
}

impl Machine {
    pub(super) fn new(id: NodeId, disk: SimDisk, skew: Skew, snapshot_log_bytes: u64) -> Self {
        let (copy, entering, life) = (None, None, None);
        Self { id, disk, copy, skew, starts: 0, entering, life, paused_until: 0, snapshot_log_bytes }
    }

    /// Whether its process runs.
    pub(super) fn is_up(&self) -> bool {
        self.life.is_some() || self.entering.is_some()
    }

    fn options(topology: &Topology, replicated: BTreeMap<ShardId, ReplicaId>) -> Options {
        let shards = topology.shard_count();
        Options {
            threads: 1,
            task_threads: 1,
            handler_timeout: UNLIMITED,
            task_step_timeout: UNLIMITED,
            shutdown_timeout: UNLIMITED,
            clock_confirm: Duration::ZERO,
            memory: MemoryLimits::default(),
            segment_bytes: 1 << 18,
            checkpoints: CheckpointOptions { interval: None, ..CheckpointOptions::default() },
            copies: None,
            services: vec![ServiceLimits {
                name: SERVICE.to_owned(),
                shards: Some(shards),
                when_new: shards,
                settings: settings(),
            }],
            without_code: BTreeSet::new(),
            native: None,
            listen_peers: None,
            not_here: BTreeMap::new(),
            replicated,
            in_cluster: true,
        }
    }

    /// Begins a life, which is counted, as a node of a cluster does before the control plane knows of it.
    pub(super) fn enter(&mut self, bug: Option<ClusterBug>) -> Result<(), DataDirError> {
        self.starts += 1;
        let disk = LifeDisk::new(self.disk.clone(), Syncs::Honest, Removals::Honest);
        let alive = Alive(disk.alive());
        let (id, log) = (self.id, u64::from(self.id.0));
        let fresh = || Meta::new(CLUSTER, INCARNATION, id, log);
        let (mut dir, created) = DataDir::open(Arc::new(disk), fresh)?;
        // Unless another disk has taken its place.
        let is_unnoticed = bug == Some(ClusterBug::RestartedPrimary) && dir.meta().lives + 1 == self.starts;
        let start = start_id(self.id, if is_unnoticed { 1 } else { self.starts });
        let life = match bug {
            Some(ClusterBug::WipedVoter) => dir.begin_life_with(|meta| {
                let known =
                    (self.starts.saturating_sub(100)..=self.starts).map(|number| start_id(self.id, number));
                (meta.lives, meta.starts) = (meta.lives.max(self.starts), known.collect());
            })?,
            _ => dir.begin_start(start)?,
        };
        self.entering = Some(Entering { alive, dir, created, start, life });
        Ok(())
    }

    /// Recovers the data of the life that has entered, with the replicas that the control plane names. None of its parts has begun.
    pub(super) fn start(
        &mut self,
        entering: Entering,
        (topology, replicas): (&Topology, BTreeMap<ShardId, ReplicaId>),
        now: u64,
        seed: u64,
        bug: Option<ClusterBug>,
    ) -> Result<(Running, Seen), OpenError> {
        let Entering { mut dir, created, start, alive, .. } = entering;
        let boot = dir.boot();
        dir.update(|meta| (meta.starts, meta.unsynced) = (vec![start], meta.unsynced.map(|_| boot)))?;
        let (options, program) = (Self::options(topology, replicas), Lists);
        let code = Registered { program: &program, without_code: &options.without_code };
        let production = recover_options(&options);
        let wal = WalOptions { segment_bytes_min: 16 << 10, ..production.wal };
        // Another number of threads would change the order of I/O.
        let recover_options = RecoverOptions { wal, loaders: Loaders::InTurn(1), ..production };
        let recovery = recover_in((dir, created), &code, recover_options)?;
        // A snapshot of a few processes is many pieces and chunks.
        let sizes = Sizes {
            behind_bytes: 500,
            piece_bytes: 100,
            snapshot_records: 3,
            chunk_bytes: 200,
            snapshot_log_bytes: self.snapshot_log_bytes,
            ..Sizes::default()
        };
        let readers = Loaders::InTurn(1);
        let drawn =
            Drawn { handlers: 0, writer: seed, grace: UNLIMITED, merging: Policy::default(), readers, sizes };
        let around = (Clocks, Witness);
        let assemble = || Stepped::assemble(program, around, recovery, options, drawn);
        let (parts, seen) = env::play(self.skew.at(now), bug, assemble);
        let (due, reports) = (BTreeMap::new(), BTreeMap::new());
        Ok((Running { _alive: alive, parts, due, start, reports, changed: true, routed: 0 }, seen))
    }

    /// Replaces the disk of a process that is down: by a new one, or by the copy of an earlier one.
    pub(super) fn lose_disk(&mut self, seed: u64) {
        match self.copy.take() {
            Some(copy) => self.disk = copy,
            None => self.disk = SimDisk::new(seed),
        }
    }
}

/// Returns the number of a node's start.
pub(super) fn start_id(node: NodeId, starts: u64) -> StartId {
    StartId(u128::from(node.0) << 64 | u128::from(starts))
}
