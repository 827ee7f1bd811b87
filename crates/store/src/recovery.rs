//! Recovery: the newest complete checkpoint, and the log's entries after it, folded into the states of all shards. Of a shard with
//! several replicas nothing is folded, for no entry is known to be committed: its state is that of its snapshot, beside its log.
//!
//! Nothing is changed but the unsynced tail of the log, which is cut, and snapshots of replicas from which none begins, which are removed;
//! so a crash during a recovery changes nothing: the next one gives the same states.

use crate::checkpoint::load::{Bundles, Loaders, load_parts_of};
use crate::checkpoint::manifest::{Manifest, manifest_name, newest};
use crate::checkpoint::store::{BlobStore, StoreError};
use crate::checkpoint::{Belonging, CheckpointError};
use crate::disk::Disk;
use crate::snapshots::{SnapshotName, Snapshots, Source};
use crate::wal::{Batch, CutRecord, InstallRecord, Item, Opened, Promise, Record, Wal, WalError, WalOptions};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::ids::{CheckpointNumber, ClusterId, Epoch, ReplicaId, ShardId};
use stead_core::placement::{Place, Placement};
use stead_core::replay::{Replay, ReplayError, Replayed};
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::{self, ReplicaLog};
use stead_core::start::KnownEpochs;
use stead_core::state::State;
use stead_core::topology::Topology;
use thiserror::Error;

/// The recovered data.
pub struct Recovered {
    /// The states of the shards on this node, in the order of their ids: folded to the log's end, or the snapshots of the shards with
    /// several replicas.
    pub states: Vec<State>,
    /// In the order of the states, the logs behind these snapshots, for [`Recovery`](shard_replica::Recovery); `None` for a shard that
    /// was folded.
    pub logs: Vec<Option<ReplicaLog>>,
    /// The highest epoch of each shard that its log or the checkpoint knows.
    pub epochs: Vec<Epoch>,
    /// Of the states of shards with several replicas, the last entries of those that are snapshots which the replicas took themselves.
    pub own: BTreeMap<ShardId, LogPoint>,
    /// The log, open to be appended to.
    pub wal: Wal,
    /// The report of opening the log.
    pub log: Opened,
    /// The lineage that the next checkpoint builds upon.
    pub lineage: Lineage,
    /// The newest complete checkpoint, if there is one.
    pub manifest: Option<Manifest>,
    /// The greatest number of a checkpoint or a given-up one; the next number is greater.
    pub decided: CheckpointNumber,
    /// The figures of the recovery.
    pub report: RecoveryReport,
}

/// The report of a recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The checkpoint that it began with; none for a log that was read from its beginning.
    pub checkpoint: Option<CheckpointNumber>,
    /// Number of bytes of the checkpoint's sections that were read.
    pub section_bytes: u64,
    /// Number of bytes of all keys and values of the recovered states.
    pub state_bytes: u64,
    /// Number of entries folded over the checkpoint.
    pub entries: u64,
    /// Number of entries of the log that the checkpoint includes already.
    pub entries_skipped: u64,
}

impl Recovered {
    /// Promises so many epochs in one batch: it stays far below the limit of the smallest log.
    const PROMISES: usize = 256;

    /// Returns the epochs of the shards in the log and the checkpoint.
    #[must_use]
    pub fn known_epochs(&self) -> Vec<KnownEpochs> {
        let known = self.states.iter().map(State::shard).zip(&self.epochs);
        let promised = |shard| self.wal.promises().of(shard);
        known.map(|(shard, &logged)| KnownEpochs { shard, promised: promised(shard), logged }).collect()
    }

    /// Finds room in the log for what [`Self::promise`] writes for these shards, and writes nothing.
    ///
    /// # Errors
    /// As [`Wal::append`].
    ///
    /// # Panics
    /// If a shard promised a higher epoch before.
    pub fn make_room_to_promise(&mut self, epochs: &BTreeMap<ShardId, Epoch>) -> Result<(), WalError> {
        self.wal.make_room(&Self::promises(epochs))
    }

    /// Promises an epoch for each of these shards: durable, and marked so, when this returns.
    ///
    /// # Errors
    /// As [`Wal::append_marked`]. After [`WalError::NoSpace`] nothing was promised.
    ///
    /// # Panics
    /// If a shard promised a higher epoch before.
    pub fn promise(&mut self, epochs: &BTreeMap<ShardId, Epoch>) -> Result<(), WalError> {
        self.wal.append_marked(&Self::promises(epochs))
    }

    fn promises(epochs: &BTreeMap<ShardId, Epoch>) -> Vec<Batch> {
        let promise =
            |(&shard, &epoch): (&ShardId, &Epoch)| Promise { shard, replica: ReplicaId::FIRST, epoch };
        let promises: Vec<Promise> = epochs.iter().map(promise).collect();
        let batch = |promises: &[Promise]| {
            let mut batch = Batch::new();
            promises.iter().for_each(|promise| batch.push_promise(*promise));
            batch
        };
        promises.chunks(Self::PROMISES).map(batch).collect()
    }
}

/// Reasons for which a node cannot be recovered.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The newest checkpoint cannot be used.
    #[error(
        "cannot use the newest local checkpoint: {0}; nothing was changed: repair that file from a copy, or restore \
         an older checkpoint into an empty directory"
    )]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is of a topology that the node no longer has.
    #[error("{name} has service {service} with {shards} shards, which the node's topology lacks; {hint}")]
    Topology {
        /// The manifest.
        name: String,
        /// The service.
        service: String,
        /// Its shards in the manifest.
        shards: u32,
        /// The suggested next step.
        hint: &'static str,
    },
    /// The checkpoint lacks the part of a shard that is on this node, and existed when it was taken.
    #[error(
        "{name} has no part of shard {shard} of service {service}, which is on this node; nothing was changed: repair \
         that file from a copy that has the part, or restore an older checkpoint into an empty directory"
    )]
    Incomplete {
        /// The manifest.
        name: String,
        /// The shard.
        shard: ShardId,
        /// Its service.
        service: String,
    },
    /// The snapshot cannot be used behind which the log of a replica begins.
    #[error(
        "cannot use the snapshot behind which the log of shard {shard} begins: {source}; nothing was changed: put it back, or bring \
         the node back with an empty directory, as a new replica"
    )]
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// The reason.
        source: CheckpointError,
    },
    /// The snapshots of replicas cannot be listed.
    #[error(
        "cannot list the snapshots of replicas: {0}; nothing was changed: start again once that directory can be read"
    )]
    Snapshots(StoreError),
    /// Snapshots that are not needed cannot be removed.
    #[error("cannot remove snapshots that are not needed: {0}")]
    Clean(StoreError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// A record of the log is not an entry, or does not follow from the state.
    #[error("cannot replay the log: {0}")]
    Replay(#[from] ReplayError),
    /// A shard cannot begin another epoch.
    #[error(
        "log or checkpoint name epoch {epoch} of shard {shard}, and there is none above it; they are damaged: restore an \
         older checkpoint into an empty directory"
    )]
    NoEpochLeft {
        /// The shard.
        shard: ShardId,
        /// The last epoch that there is.
        epoch: Epoch,
    },
    /// The caller rejected the recovered state.
    #[error("{0}")]
    Refused(String),
}

/// The error of a visitor of the log, which passes it on.
#[derive(Debug, Error)]
#[error("{0}")]
struct Refused(String);

/// The facts of a node that its data must fit.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The cluster of the node's metadata.
    pub cluster: ClusterId,
    /// The topology of the node's metadata: it has every service of the checkpoint, and may have more.
    pub topology: &'a Topology,
    /// The placement of its shards: those that are not here are passed over.
    pub placement: &'a Placement,
    /// The shards on this node that may have other replicas: their entries may not be committed, so they are not folded. Each comes with
    /// the replica that is here, of which alone the data count; `None` if there is none.
    pub replicated: &'a BTreeMap<ShardId, Option<ReplicaId>>,
    /// Maximum bytes of the entries of each of these that are kept in memory; the others stay in the log.
    pub log_bytes_max: u64,
}

/// Recovers all shards of a node.
///
/// With [`Loaders::InTurn`], or one thread, the order of all I/O is fixed.
///
/// # Errors
/// [`RecoveryError`], which says what is unusable and what to do. If the newest checkpoint is damaged, no older one is
/// used instead, because the log is trimmed to the newest.
pub fn recover(
    disk: Arc<dyn Disk>,
    store: &dyn BlobStore,
    facts: Facts<'_>,
    wal: WalOptions,
    loaders: impl Into<Loaders>,
) -> Result<Recovered, RecoveryError> {
    recover_checked(disk, store, facts, wal, loaders, |_| Ok(()))
}

/// Recovers as [`recover`] does, but asks `accept` once all states are known and nothing is changed yet.
///
/// # Errors
/// As [`recover`]; [`RecoveryError::Refused`] with what `accept` says, and the disk is as it was.
pub fn recover_checked(
    disk: Arc<dyn Disk>,
    store: &dyn BlobStore,
    facts: Facts<'_>,
    wal: WalOptions,
    loaders: impl Into<Loaders>,
    accept: impl FnOnce(&[State]) -> Result<(), String>,
) -> Result<Recovered, RecoveryError> {
    let Facts { cluster, topology, placement, replicated, log_bytes_max } = facts;
    let is_here = |shard| placement.of(shard) == Place::Here;
    let newest = newest(store)?;
    let mut states: Vec<State> = placement.here().map(State::new).collect();
    let mut report = RecoveryReport::default();
    let mut lineage = Lineage::new();
    if let Some(manifest) = &newest.manifest {
        manifest.check_cluster(cluster)?;
        check_topology(manifest, topology)?;
        check_parts(manifest, placement)?;
        for part in load_parts_of(store, manifest, loaders, is_here)? {
            let at = states.binary_search_by_key(&part.header.shard, State::shard);
            states[at.expect("only parts of shards on this node are loaded")] = part.into_state(manifest)?;
        }
        let parts = manifest.parts.iter().filter(|part| is_here(part.shard));
        report.checkpoint = Some(manifest.number);
        report.section_bytes =
            parts.clone().flat_map(|part| &part.sections).map(|section| section.bytes).sum();
        let sections = parts.map(|part| (part.shard, part.sections.clone()));
        lineage = Lineage::of(manifest.bundles.clone(), sections);
    }
    let mut replay = Replay::new(states, topology.shard_count());
    let snapshots = Snapshots::new(Arc::clone(&disk));
    let newest_own = newest_own(&snapshots).map_err(RecoveryError::Snapshots)?;
    let own_of = |shard: ShardId| newest_own.get(&(shard, (*replicated.get(&shard)?)?)).copied();
    for (&shard, &replica) in replicated {
        replay.keep(shard, replica, own_of(shard).map(|name| name.base), log_bytes_max);
    }
    let (replay, installs) = (RefCell::new(replay), RefCell::new(BTreeMap::new()));
    // The snapshot from which a shard begins whose last entry is this one.
    let begins_from = |shard: ShardId, base: LogPoint| match own_of(shard) {
        Some(name) if name.base == base => (Source::Own, name),
        _ => (Source::Received, installs.borrow()[&shard]),
    };
    let belonging = Belonging { cluster: Some(cluster), incarnation: topology.incarnation };
    let visit = |item: Item<'_>| -> Result<(), Box<dyn Error + Send + Sync>> {
        match item {
            Item::Entry(Record { shard, epoch, index, bytes }) => {
                Ok(replay.borrow_mut().handle_entry(shard, epoch, index, bytes)?)
            }
            Item::Cut(CutRecord { shard, epoch, index }) => {
                Ok(replay.borrow_mut().handle_cut(shard, epoch, index)?)
            }
            Item::Install(InstallRecord { shard, replica, epoch, base }) => {
                installs.borrow_mut().insert(shard, SnapshotName { shard, replica, base });
                Ok(replay.borrow_mut().handle_install(shard, epoch, base)?)
            }
            Item::Promise(Promise { shard, replica, .. }) => {
                replay.borrow_mut().handle_promise(shard, replica);
                Ok(())
            }
        }
    };
    // Before the log's tail is cut: a checkpoint may prove that what is damaged there had been synced.
    let again = (Arc::clone(&disk), wal.clone());
    let opened = Wal::open_checked(disk, wal, visit, || {
        let mut replay = replay.borrow_mut();
        let mut void = replay.end_reading()?;
        // These begin from an installed snapshot, and the others from the same part as before.
        let installed = void.iter().filter_map(|shard| Some((*shard, replay.installed(*shard)?)));
        let mut begin: BTreeMap<ShardId, State> = BTreeMap::new();
        for (shard, base) in installed {
            let (source, name) = begins_from(shard, base);
            let state = snapshots.load(source, name, belonging);
            begin.insert(shard, state.map_err(|source| RecoveryError::Snapshot { shard, source })?);
        }
        let kept: Vec<ShardId> = void.extract_if(.., |shard| replay.is_kept(*shard)).collect();
        for shard in kept {
            replay.restart(begin.remove(&shard).expect("a snapshot is the only reason"));
        }
        if !void.is_empty() {
            fold_again(&mut replay, &void, begin, store, newest.manifest.as_ref(), &again)?;
        }
        Ok(accept(replay.states()).map_err(Refused)?)
    });
    let (wal, log) = opened.map_err(|error| match error {
        WalError::Visit(error) => match error.downcast::<ReplayError>() {
            Ok(error) => RecoveryError::Replay(*error),
            Err(error) => match error.downcast::<Refused>() {
                Ok(refused) => RecoveryError::Refused(refused.0),
                Err(error) => match error.downcast::<RecoveryError>() {
                    Ok(error) => *error,
                    Err(error) => RecoveryError::Log(WalError::Visit(error)),
                },
            },
        },
        error => RecoveryError::Log(error),
    })?;
    let replay = replay.into_inner();
    let begun = placement.here().filter_map(|shard| Some(begins_from(shard, replay.installed(shard)?)));
    let needed: BTreeSet<(Source, SnapshotName)> = begun.collect();
    // No checkpoint has the records of these.
    lineage.retain(|shard| !needed.iter().any(|(_, name)| name.shard == shard));
    snapshots.clean(&needed).map_err(RecoveryError::Clean)?;
    let own = needed.iter().filter(|(source, _)| *source == Source::Own);
    let own = own.map(|(_, name)| (name.shard, name.base)).collect();
    let Replayed { states, epochs, entries, entries_skipped, mut logs } = replay.finish();
    for (log, state) in logs.iter_mut().zip(&states) {
        if let (Some(log), Some(Some(replica))) = (log, replicated.get(&state.shard())) {
            let promised = wal.promises().of_replica(state.shard(), *replica);
            log.handle_record(shard_replica::Record::Promise(promised));
        }
    }
    (report.entries, report.entries_skipped) = (entries, entries_skipped);
    report.state_bytes = states.iter().map(|state| state.records().bytes() as u64).sum();
    let recovered = Recovered {
        states,
        logs,
        epochs,
        own,
        wal,
        log,
        lineage,
        manifest: newest.manifest,
        decided: newest.decided,
        report,
    };
    let last = recovered.known_epochs().into_iter().find(|known| known.highest() == Epoch(u64::MAX));
    match last {
        Some(known) => Err(RecoveryError::NoEpochLeft { shard: known.shard, epoch: known.highest() }),
        None => Ok(recovered),
    }
}

/// Returns the newest snapshot of each replica that has taken any.
fn newest_own(snapshots: &Snapshots) -> Result<BTreeMap<(ShardId, ReplicaId), SnapshotName>, StoreError> {
    let mut newest: BTreeMap<_, SnapshotName> = BTreeMap::new();
    for (_, name) in snapshots.names()?.into_iter().filter(|(source, _)| *source == Source::Own) {
        let known = newest.entry((name.shard, name.replica)).or_insert(name);
        *known = name.max(*known);
    }
    Ok(newest)
}

/// Folds shards once more, over the entries that survive: the log is read again, and their parts are loaded again, unless a snapshot
/// was installed.
fn fold_again(
    replay: &mut Replay,
    shards: &[ShardId],
    mut installed: BTreeMap<ShardId, State>,
    store: &dyn BlobStore,
    manifest: Option<&Manifest>,
    (disk, wal): &(Arc<dyn Disk>, WalOptions),
) -> Result<(), RecoveryError> {
    let bundles = manifest.map(|manifest| Ok((manifest, Bundles::open(store, manifest)?)));
    let bundles = bundles.transpose().map_err(|error: CheckpointError| error)?;
    for &shard in shards {
        if let Some(state) = installed.remove(&shard) {
            replay.restart(state);
            continue;
        }
        let part = bundles
            .as_ref()
            .and_then(|(manifest, bundles)| manifest.part(shard).map(|part| (manifest, bundles, part)));
        replay.restart(match part {
            Some((manifest, bundles, part)) => {
                bundles.load(&[part])?.pop().expect("one part was asked for").into_state(manifest)?
            }
            // There is no checkpoint, or the service is newer than it.
            None => State::new(shard),
        });
    }
    let visit = |Record { shard, epoch, index, bytes }: Record<'_>| {
        replay.handle_again(shard, epoch, index, bytes).map(ControlFlow::Continue)
    };
    match Wal::read(&**disk, wal, visit) {
        Ok(_) => Ok(()),
        Err(WalError::Visit(error)) => Err(match error.downcast::<ReplayError>() {
            Ok(error) => RecoveryError::Replay(*error),
            Err(error) => RecoveryError::Log(WalError::Visit(error)),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Checks that there is a part of each shard on this node that existed when the checkpoint was taken. The log may be
/// trimmed, so such a shard must not begin anew.
fn check_parts(manifest: &Manifest, placement: &Placement) -> Result<(), RecoveryError> {
    let then = manifest.topology()?;
    for shard in placement.here() {
        // Later services have no part in it.
        let Some(service) = then.service_of(shard) else { break };
        if manifest.part(shard).is_none() {
            let service = then.service(service).name.clone();
            return Err(RecoveryError::Incomplete { name: manifest_name(manifest.number), shard, service });
        }
    }
    Ok(())
}

fn check_topology(manifest: &Manifest, topology: &Topology) -> Result<(), RecoveryError> {
    let name = manifest_name(manifest.number);
    if manifest.incarnation != topology.incarnation {
        let (found, expected) = (manifest.incarnation, topology.incarnation);
        return Err(CheckpointError::Incarnation { name, found, expected }.into());
    }
    for (at, service) in manifest.services.iter().enumerate() {
        let known = topology.services().get(at);
        if !known.is_some_and(|known| known.name == service.name && known.shards == service.shards) {
            return Err(RecoveryError::Topology {
                name,
                service: service.name.clone(),
                shards: service.shards,
                hint: "its metadata is older than its checkpoint, or the files of two nodes were mixed",
            });
        }
    }
    Ok(())
}
