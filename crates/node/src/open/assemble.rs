//! Makes all parts of a node, without a thread.

use crate::check_marks::CheckLimits;
use crate::checkpoint::{CheckpointPart, CheckpointSetup, Checkpoints, MergePart, Merges};
use crate::checks::{CheckPart, Checks};
use crate::clock::Clock;
use crate::copies::{Copies, CopyPart};
use crate::env::{Env, Program};
use crate::guarded::Guarded;
use crate::life::Life;
use crate::log::{LogPart, PreparePart};
use crate::open::options::{CheckpointOptions, Drawn, Options};
use crate::open::plan::{check_limits, warn_of_clock};
use crate::open::{OpenError, Recovery};
use crate::shared::Shared;
use crate::status::RecoveryReport;
use crate::steps::StepPart;
use crate::watchdog::{Limit, Probe};
use crate::worker::Worker;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stead_core::checkpointing::bundle::Author;
use stead_core::checkpointing::driver;
use stead_core::ids::{CheckpointNumber, Epoch};
use stead_core::shard::Shard;
use stead_core::trials::Trials;
use stead_store::checkpoint::copy::Owner;
use stead_store::checkpoint::store::BlobStore;
use stead_store::recovery::Recovered;

/// A node that is ready to run: what its threads share, and each part that is to have one.
pub(crate) struct Parts<E: Env> {
    pub(crate) life: Life<E>,
    pub(crate) log: LogPart,
    pub(crate) prepare: PreparePart,
    pub(crate) workers: Vec<Worker<E>>,
    /// The probes of the watchdog, each with its limit: those of the workers first, then those of the task threads.
    pub(crate) probes: Vec<(Arc<Probe>, Limit)>,
    pub(crate) steps: Vec<StepPart>,
    pub(crate) query_limit: Duration,
    /// Copies checkpoints away, if any are to be.
    pub(crate) copies: Option<CopyPart>,
    /// Runs the services' checks, if any declare one.
    pub(crate) checks: Option<CheckPart>,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) merges: Merges,
}

/// Makes the parts of a life over what was recovered.
///
/// # Errors
/// [`OpenError::Store`] if the marks of the services' checks cannot be read.
#[expect(clippy::disallowed_methods, reason = "it times the start")]
pub(crate) fn assemble<E: Env>(
    program: E::Program,
    around: (E::Clock, E::Watch),
    recovery: Recovery,
    options: Options,
    drawn: Drawn,
    begun: Instant,
) -> Result<Parts<E>, OpenError> {
    let Recovery { data_dir, created, store, services, placement, recovered, plan } = recovery;
    let Recovered { states, wal, log, lineage, manifest, decided, report, .. } = recovered;
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
    let copies = Copies::new(owner, options.checkpoints.bytes_per_second, options.copies.as_ref());
    let (threads, memory) = (options.threads, options.memory);
    let (lives, topology) = (data_dir.meta().lives, Arc::clone(topology));
    let author =
        Author { cluster: data_dir.meta().cluster, node: data_dir.meta().node, writer: drawn.writer };
    let shared = Shared::<E>::new(
        program,
        (Arc::clone(&topology), placement),
        (threads, options.task_threads),
        lives,
        around,
        (copies, Checks::new(options.checkpoints.check_bytes_max)),
        memory,
    );
    let shared = Arc::new(shared);
    shared.snapshots.pace.set(options.checkpoints.bytes_per_second);
    let newest = manifest.as_ref().map_or(0, |manifest| manifest.number.0);
    shared.snapshots.newest.store(newest, Ordering::Relaxed);

    let (shards, trials) = plan.shards(states, &services);
    let shards: Vec<_> = shards
        .into_iter()
        .map(|shard| {
            let epoch = plan.epochs[&shard.state().shard()];
            (shard, epoch)
        })
        .collect();
    let made = workers(&shared, shards, trials, drawn.handlers, wal.batch_bytes_max());
    let (workers, probes): (Vec<_>, Vec<_>) = made.into_iter().unzip();
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
        shared.checks.marks.load(&*store, topology.incarnation, checked.into_iter(), now, serial)?;
        checks = Some(CheckPart::new(Arc::clone(&store)));
    }
    let copies = options.copies.map(|to| CopyPart::new(Arc::clone(&store), to));
    let life = Life {
        shared: Arc::clone(&shared),
        threads: Mutex::default(),
        own_threads: Mutex::default(),
        is_spawned: AtomicBool::new(false),
        ending: Mutex::default(),
        data_dir: Mutex::new(Some(data_dir)),
        store: Arc::clone(&store),
        log: wal.reader(),
        listed: Mutex::default(),
        recovery: report,
        opened: begun,
        shutdown_timeout: options.shutdown_timeout,
    };
    let Drawn { grace, merging: policy, .. } = drawn;
    let merges = Merges(MergePart::new(Arc::clone(&store), topology.incarnation, author));
    let CheckpointOptions { interval, keep, timeout, .. } = options.checkpoints;
    let setup = CheckpointSetup {
        store: Arc::clone(&store),
        epochs: plan.epochs,
        topology,
        author,
        options: driver::Options { interval, timeout, keep, grace, policy },
        recovered: driver::Recovered { lineage, decided, seen: last },
    };
    let part = CheckpointPart::new(setup, shared.now());
    let checkpoints = Checkpoints::new(part, store, timeout);
    Ok(Parts {
        life,
        prepare: PreparePart::new(wal.preparer()),
        log: LogPart::new(wal, threads, options.segment_bytes, shared.now()),
        workers,
        probes,
        steps,
        query_limit: options.handler_timeout,
        copies,
        checks,
        checkpoints,
        merges,
    })
}

/// The workers of a node, each with its watchdog's probe. The first turn of the trials waits in its inbox until the shard has
/// started.
fn workers<E: Env>(
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
