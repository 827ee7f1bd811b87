//! Makes all parts of a node, without a thread.

use crate::checkpoint::{CheckpointPart, CheckpointSetup, Checkpoints, MergePart, Merges};
use crate::checks::{CheckDesk, CheckLimits, CheckPart};
use crate::clock::Clock;
use crate::copies::{CopyDesk, CopyPart};
use crate::data::Data;
use crate::env::{Env, Program};
use crate::guarded::Guarded;
use crate::life::Life;
use crate::log::{LogPart, PreparePart};
use crate::native::Native;
use crate::open::Recovery;
use crate::open::options::{CheckpointOptions, Drawn, NativeOptions, Options};
use crate::open::plan::{check_limits, warn_of_clock};
use crate::open::sockets::Sockets;
use crate::peers::{PeerPart, Relief, lend};
use crate::placed::Placed;
use crate::queries::{QUERY_THREADS, QueryPart, QueryThreads, QueryWatch};
use crate::roster::PartId;
use crate::shared::Shared;
use crate::sizes::Sizes;
use crate::status::RecoveryReport;
use crate::steps::StepPart;
use crate::transfers::part::TransferPart;
use crate::watchdog::{Limit, Probe};
use crate::worker::{Stored, Worker};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use stead_core::checkpointing::bundle::Author;
use stead_core::checkpointing::driver;
use stead_core::ids::{self, CheckpointNumber, Epoch, Index, ReplicaId};
use stead_core::replication::epoch::EpochRecord;
use stead_core::replication::lease::Grants;
use stead_core::shard_replica::ShardReplica;
use stead_core::trials::Trials;
use stead_net::frame::Origin;
use stead_net::handshake::{CLOCK_DIFFERENCE_MAX, Limits, Local, Role, VERSIONS};
use stead_store::checkpoint::Belonging;
use stead_store::checkpoint::copy::Owner;
use stead_store::checkpoint::store::BlobStore;
use stead_store::recovery::Recovered;

/// A node that is ready to run: what its threads share, and each part that is to have one.
pub(crate) struct Parts<E: Env> {
    pub(crate) life: Life<E>,
    pub(crate) log: LogPart,
    /// The relief of the worker that has the connections to other nodes, if the node listens for any.
    pub(crate) peers: Option<Relief>,
    pub(crate) transfers: Option<TransferPart>,
    pub(crate) prepare: PreparePart,
    pub(crate) workers: Vec<Worker<E>>,
    /// The probes of the watchdog, each with its limit: those of the workers first, then those of the task threads.
    pub(crate) probes: Vec<(Arc<Probe>, Limit)>,
    pub(crate) steps: Vec<StepPart>,
    pub(crate) query_limit: Duration,
    pub(crate) copies: CopyPart,
    /// Runs the services' checks, if any declare one.
    pub(crate) checks: Option<CheckPart>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) merges: Merges,
}

/// A part that is to begin.
pub(crate) enum AnyPart<E: Env> {
    Worker(Box<Worker<E>>),
    Step(StepPart),
    Log(Box<LogPart>),
    Peers(Relief),
    Transfers(Box<TransferPart>),
    Preparer(PreparePart),
    Checkpoints(Box<Checkpoints>),
    Merges(Box<Merges>),
    Checks(CheckPart),
    Copies(Box<CopyPart>),
    Query(QueryPart),
    QueryWatch(QueryWatch),
    /// The watchdog, with its probes.
    Watchdog(Vec<(Arc<Probe>, Limit)>),
}

impl<E: Env> Parts<E> {
    /// Returns the life, and its parts in the order in which they begin. `threads` is for the watcher of queries.
    pub(crate) fn in_order(self, threads: Box<dyn QueryThreads>) -> (Life<E>, Vec<(PartId, AnyPart<E>)>) {
        let Self {
            life,
            log,
            peers,
            transfers,
            prepare,
            workers,
            probes,
            steps,
            query_limit,
            copies,
            checks,
            checkpoints,
            merges,
        } = self;
        let shared = &*life.shared;
        let mut parts =
            vec![(PartId::Log, AnyPart::Log(Box::new(log))), (PartId::Preparer, AnyPart::Preparer(prepare))];
        parts.extend(peers.map(|part| (PartId::Peers, AnyPart::Peers(part))));
        parts.extend(transfers.map(|part| (PartId::Transfers, AnyPart::Transfers(Box::new(part)))));
        let workers = workers.into_iter().enumerate();
        parts.extend(workers.map(|(number, part)| (PartId::Worker(number), AnyPart::Worker(Box::new(part)))));
        let queries = (0..QUERY_THREADS).map(|_| QueryPart::new(shared));
        parts.extend(queries.map(|part| (part.id(), AnyPart::Query(part))));
        let watch = QueryWatch::new(shared, query_limit, threads);
        parts.push((PartId::QueryWatch, AnyPart::QueryWatch(watch)));
        let steps = steps.into_iter().enumerate();
        parts.extend(steps.map(|(number, part)| (PartId::Step(number), AnyPart::Step(part))));
        parts.push((PartId::Watchdog, AnyPart::Watchdog(probes)));
        parts.push((PartId::Copies, AnyPart::Copies(Box::new(copies))));
        parts.extend(checks.map(|part| (PartId::Checks, AnyPart::Checks(part))));
        parts.push((PartId::Checkpoints, AnyPart::Checkpoints(Box::new(checkpoints))));
        parts.push((PartId::Merges, AnyPart::Merges(Box::new(merges))));
        (life, parts)
    }
}

/// Makes the parts of a life over what was recovered. Refuses nothing: the recovery has counted the life.
#[expect(clippy::disallowed_methods, reason = "it times the start")]
pub(crate) fn assemble<E: Env>(
    program: E::Program,
    around: (E::Clock, E::Watch),
    recovery: Recovery,
    (options, sockets): (Options, Sockets),
    drawn: Drawn,
    begun: Instant,
) -> Parts<E> {
    let Recovery {
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
    } = recovery;
    let Recovered { states, logs, own, wal, log, lineage, manifest, decided, report, .. } = recovered;
    let (topology, store): (_, Arc<dyn BlobStore>) = (services.topology(), Arc::new(store));
    let report = RecoveryReport {
        created,
        duration: begun.elapsed(),
        checkpoint: report.checkpoint.map(|number| number.0),
        entries_replayed: report.entries,
        tail_cut: log.cut.is_some(),
        state_bytes: report.state_bytes,
    };
    let last =
        states.iter().map(|state| state.position().colour.number()).max().unwrap_or(CheckpointNumber(0));
    let logged = states.iter().map(|state| state.position().time).max().unwrap_or_default();
    warn_of_clock(logged, around.0.wall(), options.clock_confirm);

    let owner = Owner { cluster: data_dir.meta().cluster, incarnation: topology.incarnation };
    let copies = CopyDesk::new(owner, options.checkpoints.bytes_per_second, options.copies.as_ref());
    let (threads, memory) = (options.threads, options.memory);
    let (meta, topology) = (data_dir.meta(), Arc::clone(topology));
    let author = Author { cluster: meta.cluster, node: meta.node, writer: drawn.writer };
    let places = replicated.into_iter().map(|(shard, replica)| {
        let newest = wal.promises().newest(shard).map_or(0, |newest| newest.0);
        (shard, replica, ReplicaId(newest.saturating_sub(1)))
    });
    let shared = Shared::<E>::new(
        program,
        (Arc::clone(&topology), placement, Placed::new(places)),
        (threads, options.task_threads),
        (meta.node, meta.lives, drawn.writer),
        around,
        (copies, CheckDesk::new(options.checkpoints.check_bytes_max, Arc::clone(&store))),
        (memory, drawn.sizes),
    );
    let shared = Arc::new(shared);
    if options.in_cluster {
        shared.routes.expect();
    }
    shared.snapshots.pace.set(options.checkpoints.bytes_per_second);
    let newest = manifest.as_ref().map_or(0, |manifest| manifest.number.0);
    shared.snapshots.newest.store(newest, Ordering::Relaxed);

    let found = states.into_iter().zip(logs).map(|(state, log)| {
        let replica = shared.replicated.of(state.shard()).unwrap_or(ReplicaId::NONE);
        (state, log.map(|log| (replica, log)))
    });
    let grants = if created { Grants::new() } else { Grants::after_restart(shared.now()) };
    let (replicas, trials) = plan.replicas(ids::Life(meta.lives), found.collect(), &grants, &services);
    let made = workers(&shared, replicas, trials, drawn.handlers, wal.batch_bytes_max());
    let (mut workers, probes): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    let mut transfers = None;
    if !shared.replicated.is_empty() {
        let belonging = Belonging { cluster: Some(meta.cluster), incarnation: topology.incarnation };
        let (store, log) = (Arc::clone(&store), wal.reader());
        let services = services.clone();
        let stored = Arc::new(Stored { store, manifest, snapshots, log, belonging, services });
        workers.iter_mut().for_each(|worker| worker.read_from(&shared, Arc::clone(&stored), &own));
        shared.log.note_appended(wal.stats().bytes_needed);
        let promises = wal.promises();
        for shard in shared.topology.shards().filter(|shard| shared.replicated.is_free(*shard)) {
            let newest = promises.newest(shard).map(|newest| promises.of_replica(shard, newest));
            // A tombstone: see `worker/placing.rs`.
            if newest == Some(Epoch(0)) {
                shared.trimming.note(&shared.log, shard, Index(u64::MAX));
            }
        }
        transfers = Some(TransferPart::new(&stored, author));
    }
    shared.colour.store(last.0, Ordering::Relaxed);
    let (directory, process) = (meta.log_id, drawn.writer);
    let local = Local {
        versions: VERSIONS,
        cluster: Some(meta.cluster),
        role: Role::Peer { node: meta.node, directory, process },
        origin: Origin { incarnation: meta.incarnation, life: ids::Life(meta.lives) },
        limits: Limits::default(),
        client_limits: Limits::of_clients(),
        clock_difference_max: CLOCK_DIFFERENCE_MAX,
    };
    let peers = sockets.peers.map(|tcp| {
        let (borrowed, relief) = lend(PeerPart::new(tcp, local.clone()));
        workers[0].borrow_peers(borrowed);
        relief
    });
    if let Some(NativeOptions { connections_max, .. }) = options.native {
        for ((worker, inbox), tcp) in workers.iter_mut().zip(&shared.inboxes).zip(sockets.of_workers) {
            let bell = Arc::clone(&inbox.bell);
            worker.listen(Native::new(tcp, local.clone(), bell, threads, connections_max));
        }
    }
    let limit = || Limit::of_handlers(options.handler_timeout);
    let mut probes: Vec<_> = probes.into_iter().map(|probe| (probe, limit())).collect();
    let steps = (0..options.task_threads).map(|number| {
        let probe = Arc::new(Probe::default());
        probes.push((Arc::clone(&probe), Limit::of_steps(options.task_step_timeout)));
        StepPart::new(number, probe)
    });
    let steps: Vec<StepPart> = steps.collect();

    let checked: Vec<(String, CheckLimits)> =
        shared.program.checked_services().into_iter().map(|name| check_limits(name, &services)).collect();
    let mut checks = None;
    if !checked.is_empty() {
        let (now, serial) = (shared.now(), drawn.writer);
        let checked = checked.into_iter();
        shared.checks.marks.load(topology.incarnation, marks, checked, now, serial);
        checks = Some(CheckPart::new(Arc::clone(&store)));
    }
    let copies = CopyPart::new(Arc::clone(&store), options.copies);
    let data = Arc::new(Data { dir: Mutex::new(Some(data_dir)), store: Arc::clone(&store) });
    let noted = Arc::clone(&data);
    let life = Life {
        shared: Arc::clone(&shared),
        threads: Mutex::default(),
        lifecycle: Mutex::default(),
        end_is_over: Condvar::new(),
        data,
        store: Arc::clone(&store),
        log: wal.reader(),
        listed: Mutex::default(),
        recovery: report,
        opened: begun,
        shutdown_timeout: options.shutdown_timeout,
        readers: drawn.readers,
        native: sockets.address,
    };
    let Drawn { grace, merging: policy, sizes: Sizes { block_bytes, .. }, .. } = drawn;
    let merges = Merges::new(MergePart::new(Arc::clone(&store), topology.incarnation, author, block_bytes));
    let CheckpointOptions { interval, keep, timeout, .. } = options.checkpoints;
    // A checkpoint has all shards of its node, and those with replicas elsewhere are no part of one yet.
    let interval = interval.filter(|_| shared.replicated.is_empty());
    let elsewhere = shared.placement.elsewhere().collect();
    let setup = CheckpointSetup {
        store: Arc::clone(&store),
        epochs: plan.epochs,
        topology,
        author,
        block_bytes,
        options: driver::Options { interval, timeout, keep, elsewhere, grace, policy },
        recovered: driver::Recovered { lineage, decided, seen: last },
    };
    let part = CheckpointPart::new(setup, shared.now());
    let checkpoints = Checkpoints::new(part, store, timeout);
    Parts {
        life,
        peers,
        transfers,
        prepare: PreparePart::new(wal.preparer()),
        log: LogPart::new(wal, (threads, shared.placement.count_here()), options.segment_bytes, shared.now())
            .relaxed(move |unsynced| noted.note_unsynced(unsynced)),
        workers,
        probes,
        steps,
        query_limit: options.handler_timeout,
        copies,
        checks,
        checkpoints,
        merges,
    }
}

/// Creates the workers of a node, each with its watchdog's probe. The first turn of the trials waits in its inbox until the shard has
/// started.
fn workers<E: Env>(
    shared: &Arc<Shared<E>>,
    replicas: Vec<(ShardReplica, Option<Box<EpochRecord>>)>,
    trials: Trials,
    seed: u64,
    batch_bytes_max: usize,
) -> Vec<(Worker<E>, Arc<Probe>)> {
    let mut by_worker: Vec<Vec<_>> = shared.inboxes.iter().map(|_| Vec::new()).collect();
    for (replica, record) in replicas {
        by_worker[shared.worker_of(replica.shard_id())].push((replica, record));
    }
    shared.trials(|shared| {
        *shared = trials;
        shared.begin()
    });
    let workers = by_worker.into_iter().enumerate().map(|(number, replicas)| {
        let probe = Arc::new(Probe::default());
        let handler = shared.program.handler(&shared.topology, seed);
        let code = Guarded::new(handler, shared, Arc::clone(&probe));
        (Worker::new(shared, number, replicas, code, batch_bytes_max), probe)
    });
    workers.collect()
}
