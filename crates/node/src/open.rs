//! Opening a node: the data directory, recovery, and the threads.

use crate::drive::drive;
use crate::env::{Env, Program};
use crate::events;
use crate::guarded::Guarded;
use crate::life::Life;
use crate::log::LogPart;
use crate::memory::MemoryLimits;
use crate::panics;
use crate::prepare::PreparePart;
use crate::queries::{QUERY_THREADS, QueryQueue};
use crate::shared::{Clock, Shared, Wall};
use crate::snapshots::Checkpointer;
use crate::stable::{Copies, Stage};
use crate::status::RecoveryReport;
use crate::unended::CheckLimits;
use crate::watchdog::{Limit, Probe};
use crate::worker::Worker;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use stead_core::ids::{Colour, Epoch, Incarnation, Time};
use stead_core::record::{RecordKey, TaskRecord};
use stead_core::records::{SECRET_LEN, set_secret};
use stead_core::shard::{Settings, Shard};
use stead_core::state::State;
use stead_core::topology::{Topology, TopologyError};
use stead_core::trials::Trials;
use stead_store::checkpoint::copy::Owner;
use stead_store::checkpoint::store::{BlobStore, DiskStore, StoreError};
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, Meta, ServiceMeta};
use stead_store::disk::Disk;
use stead_store::recovery::{Recovered, RecoveryError, recover_checked};
use stead_store::wal::WalOptions;
use thiserror::Error;

/// When checkpoints are taken and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Time between two checkpoints' beginnings: 10 ms to 7 days, 10 s by default; `None`: only when asked for.
    pub interval: Option<Duration>,
    /// Checkpoints that are kept: 1 to 10,000, 3 by default.
    pub keep: usize,
    /// How long a checkpoint may take before it is given up: 100 ms to 1 day, 10 min by default.
    pub timeout: Duration,
    /// Most bytes each second that are written for checkpoints; 0 is no limit, and the default.
    pub bytes_per_second: u64,
    /// The services' checks run in the background over checkpoints of the interval of at most so many bytes, for they load
    /// all of it: 1 GiB by default, 0 is never. Those that are asked for are checked at any size.
    pub check_bytes_max: u64,
    /// Stable storage: `file:///directory` or `s3://bucket/prefix`, which newly completed checkpoints are copied to; none
    /// by default. S3 takes its region, endpoint and credentials from the usual variables `AWS_…`, and needs the cargo
    /// feature `s3`. A failed copy does not affect the node: [`Status::checkpoint_copies`](crate::Status::checkpoint_copies) reports it.
    pub copy_to: Option<String>,
    /// Time between two copies' beginnings: 10 ms to 7 days, 5 min by default.
    pub copy_interval: Duration,
    /// Checkpoints that are kept at `copy_to`: 1 to 10,000, 10 by default.
    pub copy_keep: usize,
}

/// Where checkpoints are copied to, how often, and how many stay there.
#[derive(Clone, Debug)]
pub struct CopyTarget {
    /// The address: `file:///directory` or `s3://bucket/prefix`.
    pub address: String,
    /// Time between two copies' beginnings.
    pub interval: Duration,
    /// Checkpoints that are kept there.
    pub keep: usize,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(10)),
            keep: 3,
            timeout: Duration::from_secs(600),
            bytes_per_second: 0,
            check_bytes_max: 1 << 30,
            copy_to: None,
            copy_interval: Duration::from_secs(300),
            copy_keep: 10,
        }
    }
}

/// The numbers of a node, checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, which own the shards: at least 1.
    pub threads: usize,
    /// Threads that run the steps of tasks: at least 1.
    pub task_threads: usize,
    /// How long a handler may run before the process ends, and a query before it is given up.
    pub handler_timeout: Duration,
    /// How long a step of a task may run before the process ends.
    pub task_step_timeout: Duration,
    /// How long a shutdown waits for running steps.
    pub shutdown_timeout: Duration,
    /// How long a wall clock that is far ahead must stay so before timers follow it.
    pub clock_confirm: Duration,
    /// The limits of the bytes that wait in memory.
    pub memory: MemoryLimits,
    /// Bytes of a log segment: a multiple of 4096.
    pub segment_bytes: u64,
    /// When checkpoints are taken, and how many are kept.
    pub checkpoints: CheckpointOptions,
    /// Where checkpoints are copied to, if anywhere.
    pub copies: Option<CopyTarget>,
    /// The services of the program.
    pub services: Vec<ServiceLimits>,
    /// Services and tasks that may wait in the data without code.
    pub without_code: BTreeSet<String>,
}

/// A service's numbers, checked.
#[derive(Clone, Debug)]
pub struct ServiceLimits {
    /// Its name.
    pub name: String,
    /// The number of shards that it must have, if one is asked for.
    pub shards: Option<u32>,
    /// The number of shards that it gets when it is new and none is asked for.
    pub when_new: u32,
    /// The settings of its shards.
    pub settings: Settings,
}

/// Reasons for which a node cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The services do not fit together or to the data.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The data holds services or tasks that the program has no code for.
    #[error("the data holds {what}, for which no code is registered here, and nothing was changed")]
    NoCode {
        /// What they are.
        what: String,
    },
    /// The data directory is in use, damaged, or of another version.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store of checkpoints.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored does not make up a state.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The node failed before all its shards served.
    #[error("the node failed while it started: {0}")]
    Failed(String),
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl<E: Env> Life<E> {
    /// Recovers what is on a disk, or begins it, and starts the threads of a node. Returns when all shards serve.
    ///
    /// # Errors
    /// [`OpenError`]; what is stored stays as it was.
    pub fn open(
        program: E::Program,
        disk: Arc<dyn Disk>,
        wall: Wall,
        options: Options,
    ) -> Result<Self, OpenError> {
        open(program, disk, wall, options)
    }
}

fn open<E: Env>(
    program: E::Program,
    disk: Arc<dyn Disk>,
    wall: Wall,
    options: Options,
) -> Result<Life<E>, OpenError> {
    let begun = Instant::now();
    set_secret(fresh_secret());
    let (mut data_dir, created) = DataDir::open(Arc::clone(&disk), fresh_meta)?;
    let mut topology = Topology::new(data_dir.meta().incarnation);
    for service in &data_dir.meta().services {
        topology.ensure(&service.name, service.shards)?;
    }
    // Without its code all that comes due for a service would become dead letters: so before anything is written.
    let known = |name: &str| program.has_service(name) || options.without_code.contains(name);
    let unknown = topology.services().iter().filter(|service| !known(&service.name));
    let unknown = unknown.map(|service| format!("service {}", service.name)).collect();
    accept(&unknown).map_err(|what| OpenError::NoCode { what })?;
    let mut settings = vec![Settings::default(); topology.services().len()];
    for ServiceLimits { name, shards, when_new, settings: service_settings } in &options.services {
        let existing = topology.service_id(name).map(|id| topology.service(id).shards);
        let id = topology.ensure(name, shards.or(existing).unwrap_or(*when_new))?;
        settings.resize(topology.services().len(), Settings::default());
        settings[usize::from(id.0)] = service_settings.clone();
    }
    let topology = Arc::new(topology);

    let store: Arc<dyn BlobStore> = Arc::new(DiskStore::open(Arc::clone(&disk), CHECKPOINTS)?);
    let wal = WalOptions {
        segment_bytes: options.segment_bytes,
        batch_bytes_max: (options.segment_bytes as usize).min(256 << 20),
        spares: SEGMENTS_READY,
        free_max: SEGMENTS_FREE,
        log_id: data_dir.meta().log_id,
        create: !data_dir.meta().log_created,
        ..WalOptions::default()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let Recovered { states, wal, log, lineage, manifest, decided, report } =
        recover_checked(Arc::clone(&disk), &*store, &topology, wal, threads, |states| {
            accept(&tasks_without_code(&program, &options.without_code, &topology, states))
        })
        .map_err(|error| match error {
            RecoveryError::Refused(what) => OpenError::NoCode { what },
            error => error.into(),
        })?;

    // The epoch is durable before any shard uses it, and so are the services before any of their entries is.
    let epoch = Epoch(data_dir.meta().epoch.0.max(report.epoch.0) + 1);
    // What waits can't have ended a life that ended in order.
    let trusted = created || data_dir.meta().clean;
    data_dir.update(|meta| {
        meta.epoch = epoch;
        meta.log_created = true;
        meta.clean = false;
        meta.services = ServiceMeta::all_of(&topology);
    })?;

    // No entry may be larger than what the log takes in one write.
    let entry_bytes_max = (wal.batch_bytes_max() / 2).min(Settings::default().entry_bytes_max);
    for settings in &mut settings {
        settings.entry_bytes_max = entry_bytes_max;
        settings.clock_confirm = options.clock_confirm.as_millis() as u64;
    }
    let last = states.iter().map(|state| state.position().colour).max().unwrap_or(Colour(0));
    let recovery = RecoveryReport {
        created,
        duration: begun.elapsed(),
        checkpoint: report.checkpoint.map(|number| number.0),
        entries_replayed: report.entries,
        tail_cut: log.cut.is_some(),
        state_bytes: report.state_bytes,
    };
    let logged = states.iter().map(|state| state.position().time).max().unwrap_or_default();
    let clock = Clock::new(wall);
    warn_of_clock(logged, clock.wall(), options.clock_confirm);
    let owner = Owner { cluster: data_dir.meta().cluster, incarnation: topology.incarnation };
    let checked = program.checked_services();
    let check_limits: Vec<_> =
        checked.into_iter().map(|name| check_limits(name, &topology, &settings)).collect();
    let copies = Copies::new(owner, options.checkpoints.bytes_per_second, options.copies.as_ref());
    let (shared, events) = Shared::<E>::new(
        program,
        Arc::clone(&topology),
        options.threads,
        epoch,
        clock,
        copies,
        options.memory,
    );
    let shared = Arc::new(shared);
    shared.snapshots.newest.store(
        manifest.as_ref().map_or(0, |manifest| manifest.number.0),
        std::sync::atomic::Ordering::Relaxed,
    );
    let mut shards: Vec<Shard> = Vec::with_capacity(states.len());
    let mut by_worker: Vec<Vec<Shard>> = (0..options.threads).map(|_| Vec::new()).collect();
    for state in states {
        let id = state.shard();
        let service = topology.service_of(id).expect("each state is of a shard of the topology");
        let settings = settings[usize::from(service.0)].clone();
        let mut shard = Shard::new(state, Arc::clone(&topology), settings);
        if trusted {
            shard.trust();
        }
        shards.push(shard);
    }
    let met = shards.iter().filter(|shard| shard.has_met()).map(|shard| shard.state().shard());
    let trials = Trials::new(met);
    for mut shard in shards {
        if trials.is_held() {
            shard.hold();
        }
        by_worker[shared.worker_of(shard.state().shard())].push(shard);
    }
    // The first turn waits in its inbox until the shard has started.
    shared.trials(|shared| {
        *shared = trials;
        shared.begin()
    });

    let mut life = Life {
        shared: Arc::clone(&shared),
        threads: Mutex::default(),
        own_threads: Mutex::default(),
        ending: Mutex::default(),
        data_dir: Mutex::new(Some(data_dir)),
        store: Arc::clone(&store),
        log: wal.reader(),
        listed: Mutex::default(),
        recovery,
        opened: begun,
        shutdown_timeout: options.shutdown_timeout,
    };
    let batch_max = wal.batch_bytes_max();
    let preparer = wal.preparer();
    {
        let shared = Arc::clone(&shared);
        let segment_bytes = options.segment_bytes;
        life.spawn(Group::Log, "stead-log", move || {
            let mut part = LogPart::new(wal, shared.inboxes.len(), segment_bytes, shared.now());
            let turned =
                drive(&shared.log.bell, shared.spins_log, || shared.now(), |now| part.turn(&*shared, now));
            turned.map_err(|error| error.to_string())
        })?;
    }
    {
        let shared = Arc::clone(&shared);
        life.spawn(Group::Log, "stead-segments", move || {
            let_others_first();
            let mut part = PreparePart::new(preparer);
            let turned = drive(&shared.log.preparer_bell, 0, || shared.now(), |now| part.turn(&*shared, now));
            turned.map_err(|error| error.to_string())
        })?;
    }
    let seed = fastrand::u64(..);
    let mut probes = Vec::new();
    for (number, shards) in by_worker.into_iter().enumerate() {
        let probe = Arc::new(Probe::default());
        probes.push((Arc::clone(&probe), Limit::of_handlers(options.handler_timeout)));
        let handler = shared.program.handler(&topology, seed);
        let code = Guarded::new(handler, &topology, probe, &shared.memory, &shared.queries);
        let worker = Worker::new(Arc::clone(&shared), number, shards, code, batch_max);
        life.spawn(Group::Workers, &format!("stead-worker-{number}"), move || {
            worker.run(epoch);
            Ok(())
        })?;
    }
    for _ in 0..QUERY_THREADS {
        QueryQueue::start_thread(&shared).map_err(OpenError::Thread)?;
    }
    {
        let (shared, limit) = (Arc::clone(&shared), options.handler_timeout);
        life.spawn(Group::Queries, "stead-queries", move || {
            shared.queries.watch(&shared, limit);
            Ok(())
        })?;
    }
    for number in 0..options.task_threads {
        let (shared, probe) = (Arc::clone(&shared), Arc::new(Probe::default()));
        probes.push((Arc::clone(&probe), Limit::of_steps(options.task_step_timeout)));
        life.spawn(Group::Tasks, &format!("stead-task-{number}"), move || {
            shared.tasks.run(&shared, &probe);
            Ok(())
        })?;
    }
    {
        let (shared, topology) = (Arc::clone(&shared), Arc::clone(&topology));
        life.spawn(Group::Watchdog, "stead-watchdog", move || {
            shared.watchdog.run(&probes, &topology);
            Ok(())
        })?;
    }
    if let Some(to) = options.copies {
        let stage = Stage::new(Arc::clone(&shared), Arc::clone(&store), to);
        life.spawn(Group::Checkpoints, "stead-stable", move || {
            let_others_first();
            stage.run();
            Ok(())
        })?;
    }
    if !check_limits.is_empty() {
        shared.checks.unended.load(&*store, topology.incarnation, check_limits.into_iter())?;
        shared.checks.begin();
        let (shared, store) = (Arc::clone(&shared), Arc::clone(&store));
        // It belongs to no group: the user's code can't be stopped, and the end of the node does not wait for ever.
        let spawned = thread::Builder::new().name("stead-checks".to_owned()).spawn(move || {
            let_others_first();
            if let Err(panic) = panics::catch_own(|| shared.checks.run(&shared, &*store)) {
                events::error(format_args!(
                    "no checkpoint is checked any more: the thread panicked; this is a bug in Stead: {panic}"
                ));
            }
        });
        spawned.map_err(OpenError::Thread)?;
    }
    let checkpointer =
        Checkpointer::new(Arc::clone(&shared), store, options.checkpoints, lineage, decided, last);
    life.spawn(Group::Checkpoints, "stead-checkpoint", move || {
        let_others_first();
        checkpointer.run(&events)
    })?;
    shared.await_active().map_err(OpenError::Failed)?;
    life.recovery.duration = begun.elapsed();
    Ok(life)
}

/// The limits of the check of a service: those of its causes.
fn check_limits(name: String, topology: &Topology, settings: &[Settings]) -> (String, CheckLimits) {
    let standard = Settings::default();
    let settings = topology.service_id(&name).map_or(&standard, |id| &settings[usize::from(id.0)]);
    let suspect_for = Duration::from_millis(settings.suspect_for);
    (name, CheckLimits { attempts_max: settings.attempts_max, suspect_for })
}

/// Says so if the wall clock is far from the last time in the log: it, or the one of the last life, may be wrong.
fn warn_of_clock(logged: Time, wall: Time, confirm: Duration) {
    let far = Duration::from_micros(stead_core::clock::Clock::FAR);
    let (ahead, behind) = (wall.0.saturating_sub(logged.0), logged.0.saturating_sub(wall.0));
    let hours = |micros: u64| micros as f64 / 3.6e9;
    if logged == Time(0) {
        // The log is empty.
    } else if Duration::from_micros(ahead) > far && !confirm.is_zero() {
        tracing::warn!(
            "the wall clock is {:.1} h ahead of the log: the node was down for that long, or the clock is wrong; timers follow it in {} s if it stays so",
            hours(ahead),
            confirm.as_secs()
        );
    } else if Duration::from_micros(behind) > far {
        tracing::warn!(
            "the wall clock is {:.1} h behind the log: it is wrong, or was; until it has caught up, the time of timers goes at half the speed",
            hours(behind)
        );
    }
}

/// Takes data for which there is all code; else names what there is none for.
fn accept(unknown: &BTreeSet<String>) -> Result<(), String> {
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(Vec::from_iter(unknown.iter().map(String::as_str)).join(", "))
    }
}

/// The tasks that wait for code which the node does not have.
fn tasks_without_code(
    program: &impl Program,
    without_code: &BTreeSet<String>,
    topology: &Topology,
    states: &[State],
) -> BTreeSet<String> {
    let known = |name: &str| program.has_task(name) || without_code.contains(name);
    let mut unknown = BTreeSet::new();
    for state in states {
        let service = topology.service_of(state.shard()).map_or("", |id| &topology.service(id).name);
        let tasks = state.tasks().iter().filter_map(|id| state.record::<TaskRecord>(&RecordKey::task(*id)));
        for task in tasks.filter(|task| !known(&task.name) && !without_code.contains(service)) {
            unknown.insert(format!("task {} of service {service}", task.name));
        }
    }
    unknown
}

/// Log segments that are kept ready: at full speed one is used up in a fraction of a second.
const SEGMENTS_READY: usize = 2;
/// Trimmed log segments that are kept: what is written between two checkpoints finds its segments again.
const SEGMENTS_FREE: usize = 16;

/// Bytes that no one outside of this process can know: made of the system's randomness, which seeds the standard
/// library's hash maps.
fn fresh_secret() -> [u8; SECRET_LEN] {
    let mut secret = [0; SECRET_LEN];
    for (at, word) in secret.chunks_mut(8).enumerate() {
        word.copy_from_slice(&RandomState::new().hash_one(at).to_le_bytes());
    }
    secret
}

fn fresh_meta() -> Meta {
    Meta {
        cluster: fastrand::u128(..),
        incarnation: Incarnation(1),
        epoch: Epoch(0),
        log_id: fastrand::u64(..),
        log_created: false,
        clean: false,
        restoring: false,
        services: Vec::new(),
    }
}

/// Lowers this thread's priority: what callers wait for comes first when there are fewer cores than threads.
pub(crate) fn let_others_first() {
    const NICE: i32 = 5;
    // Where it is refused, the thread competes as all others do.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Which threads end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Tasks,
    Queries,
    Checkpoints,
    Workers,
    Log,
    Watchdog,
}

/// A thread of the node.
pub(crate) type Member = (Group, JoinHandle<()>);

impl<E: Env> Life<E> {
    /// Starts a thread whose error or panic is fatal for the node.
    fn spawn(
        &self,
        group: Group,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let thread_name = name.to_owned();
        let spawned =
            thread::Builder::new().name(name.to_owned()).spawn(move || match panics::catch_own(body) {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => shared.fail(reason),
                Err(panic) => {
                    shared.fail(format!("thread {thread_name} panicked; this is a bug in Stead: {panic}"));
                }
            });
        let thread = spawned.map_err(OpenError::Thread)?;
        self.own_threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(thread.thread().id());
        self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((group, thread));
        Ok(())
    }
}
