//! Operations on data while no node runs on it: restoring and copying checkpoints, listing them, reading the log.

use crate::error::RawError;
use crate::log_view::Filling;
use crate::service::Registry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stead_core::entry::{Entry, NoEntry};
use stead_core::ids::{CheckpointNumber, ClusterId, Index, NodeId, ShardId};
use stead_core::state::State;
use stead_core::topology::{Topology, TopologyError};
use stead_node::{
    CheckpointInfo, CopyReport, Program, begin_copy, list_checkpoints, note_unended, system_time,
    verify_stored,
};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::begun::{Begun, begun_names};
use stead_store::checkpoint::copy::{CopyRun, Owner, cluster_of_copies};
use stead_store::checkpoint::manifest::{newest, read_manifest};
use stead_store::checkpoint::remote;
use stead_store::checkpoint::restore::RestoreError as StoreRestoreError;
use stead_store::checkpoint::store::{BlobStore, DiskStore, StoreError};
use stead_store::checkpoint::verify::Report;
use stead_store::data_dir::{CHECKPOINTS, DataDir, DataDirError, Meta};
use stead_store::disk::Disk;
use stead_store::real_disk::RealDisk;
use stead_store::restoring::{RestoreIntoError, RestoreOptions as IntoOptions, restore_into};
use stead_store::wal::{Record, Wal, WalError, WalOptions};
use thiserror::Error;

pub use crate::log_view::{LogEntry, LogPage, LogReply, LogSend, LogWrite};
pub use stead_store::checkpoint::restore::Progress as RestoreProgress;

/// The source and the target of a restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// A data directory, or the address of a store: `s3://bucket/prefix` or `file:///path`.
    pub from: String,
    /// The checkpoint; the newest one if none is named.
    pub number: Option<u64>,
    /// The data directory to create; it must not exist or be empty.
    pub into: PathBuf,
    /// New numbers of shards by service: 1 to 4096. Services that are not named keep theirs.
    pub shards: BTreeMap<String, u32>,
}

/// The report of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The checkpoint.
    pub number: u64,
    /// The new incarnation of the cluster.
    pub incarnation: u64,
    /// Number of restored records.
    pub records: u64,
    /// Number of restored messages in flight.
    pub messages: u64,
    /// Number of sessions that ended; requests in them are refused.
    pub sessions_ended: u64,
    /// The time that it took.
    pub duration: Duration,
}

/// Reasons for which an operation on data without a node fails.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A directory cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The data directory is in use, damaged, or of another version.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The target of a restore has data.
    #[error("{path} already holds data of Stead; restore into an empty directory")]
    NotEmpty {
        /// The directory.
        path: String,
    },
    /// There is no complete checkpoint to restore.
    #[error("{from} holds no complete checkpoint")]
    NoCheckpoint {
        /// The directory or address.
        from: String,
    },
    /// An address cannot be used.
    #[error(transparent)]
    Address(StoreError),
    /// The store of checkpoints failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The restore failed.
    #[error(transparent)]
    Restore(#[from] StoreRestoreError),
    /// The log cannot be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The service does not exist.
    #[error("the data holds no service {service}")]
    UnknownService {
        /// The service.
        service: String,
    },
    /// The services of the data do not fit together.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A running node has no answer.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// The shard does not exist.
    #[error("shard {shard} does not exist; the data has shards 0 to {}", shards.saturating_sub(1))]
    UnknownShard {
        /// The shard.
        shard: u32,
        /// The number of shards.
        shards: u32,
    },
}

fn real_disk(path: &Path) -> Result<Arc<dyn Disk>, OfflineError> {
    let failed = |source| OfflineError::Directory { path: path.display().to_string(), source };
    Ok(Arc::new(RealDisk::open(path).map_err(failed)?))
}

/// Opens the disk at an existing directory, which may be read-only.
fn existing_disk(path: &Path) -> Result<Arc<dyn Disk>, OfflineError> {
    let failed = |source| OfflineError::Directory { path: path.display().to_string(), source };
    Ok(Arc::new(RealDisk::open_existing(path).map_err(failed)?))
}

/// The checkpoints of a data directory or of an address.
struct Source {
    store: Arc<dyn BlobStore>,
    /// The disk of a data directory.
    disk: Option<Arc<dyn Disk>>,
}

impl Source {
    fn open(from: &str) -> Result<Self, OfflineError> {
        if from.contains("://") {
            return Ok(Self { store: remote_store(from)?, disk: None });
        }
        let disk = existing_disk(Path::new(from))?;
        Ok(Self { store: Arc::new(DiskStore::attach(Arc::clone(&disk), CHECKPOINTS)), disk: Some(disk) })
    }

    /// Returns the cluster whose checkpoints they are; `None` if that is not known there. They can be read, and
    /// restored, without it: it must not be the reason that the last copy of the data is refused.
    fn cluster(&self) -> Option<ClusterId> {
        let Some(disk) = &self.disk else {
            return cluster_of_copies(&*self.store).unwrap_or_else(|error| {
                tracing::warn!(
                    "cannot read which cluster the checkpoints belong to, and uses them whichever it is: {error}"
                );
                None
            });
        };
        DataDir::inspect(&**disk).ok().map(|meta| meta.cluster)
    }
}

fn remote_store(address: &str) -> Result<Arc<dyn BlobStore>, OfflineError> {
    remote::open(address, &BTreeMap::new()).map_err(OfflineError::Address)
}

/// Restores a checkpoint into a new data directory, as a new incarnation. The restore is complete or has no effect: if
/// it is killed, every later start refuses the directory, and a later restore may use it.
///
/// # Errors
/// [`OfflineError`]; the directory is then unchanged, or marked as unfinished if the undoing fails, too.
pub fn restore(
    options: &RestoreOptions,
    mut progress: impl FnMut(RestoreProgress),
) -> Result<RestoreReport, OfflineError> {
    let begun = Instant::now();
    let from = Source::open(&options.from)?;
    let source = &from.store;
    let number = match options.number {
        Some(number) => CheckpointNumber(number),
        None => {
            let newest = newest(&**source)?.manifest;
            newest.ok_or_else(|| OfflineError::NoCheckpoint { from: options.from.clone() })?.number
        }
    };
    let manifest = read_manifest(&**source, number)?;
    from.cluster().map_or(Ok(()), |cluster| manifest.check_cluster(cluster))?;
    let is_new = !options.into.try_exists().unwrap_or(true);
    let disk = real_disk(&options.into)?;
    let cluster = ClusterId(fastrand::u128(..));
    let fresh = Meta::new(cluster, manifest.incarnation, NodeId::FIRST, fastrand::u64(..));
    let into =
        IntoOptions { shards: options.shards.clone(), created: system_time(), writer: fastrand::u64(..) };
    let restored = restore_into(disk, &**source, &manifest, fresh, &into, &mut progress);
    let restored = restored.map_err(|error| {
        if is_new {
            // It is refused if it is not empty.
            let _ = std::fs::remove_dir(&options.into);
        }
        let path = options.into.display().to_string();
        match error {
            RestoreIntoError::NotEmpty => OfflineError::NotEmpty { path },
            RestoreIntoError::Remove(source) => OfflineError::Directory { path, source },
            RestoreIntoError::DataDir(error) => error.into(),
            RestoreIntoError::Store(error) => error.into(),
            RestoreIntoError::Restore(error) => error.into(),
        }
    })?;
    Ok(RestoreReport {
        number: number.0,
        incarnation: restored.manifest.incarnation.0,
        records: restored.records,
        messages: restored.messages,
        sessions_ended: restored.sessions_ended,
        duration: begun.elapsed(),
    })
}

fn topology_of(meta: &Meta) -> Result<Topology, OfflineError> {
    let mut topology = Topology::new(meta.incarnation);
    for service in &meta.services {
        topology.ensure(&service.name, service.shards)?;
    }
    Ok(topology)
}

/// Returns the complete checkpoints of a data directory or a store's address, the oldest first.
///
/// # Errors
/// [`OfflineError`] if they cannot be read.
pub fn checkpoints(from: &str) -> Result<Vec<CheckpointInfo>, OfflineError> {
    let store = Source::open(from)?.store;
    let mut found = list_checkpoints(&*store)?;
    for name in begun_names(&*store)? {
        // An unreadable mark is treated as missing.
        if let Ok(begun) = Begun::read(&*store, &name) {
            note_unended(&mut found, begun.number, &begun.service);
        }
    }
    Ok(found)
}

/// Recomputes a checkpoint of a data directory or a store's address from its stored objects, and runs the checks of the
/// services in `registry`.
///
/// # Errors
/// [`OfflineError`] if it is damaged. An undamaged but inconsistent checkpoint is in the report.
pub fn verify(from: &str, number: u64, registry: &Registry) -> Result<Report, OfflineError> {
    let mut check =
        |service: &str, topology: &Topology, cut: &[State]| Program::check(registry, service, topology, cut);
    let source = Source::open(from)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(verify_stored(&*source.store, number, source.cluster(), threads, registry, &mut check)?)
}

/// Copies a checkpoint of a data directory without a running node to `file:///directory` or `s3://bucket/prefix`;
/// objects that exist there are not sent again. S3 takes its region, endpoint and credentials from the usual variables
/// `AWS_…`.
///
/// # Errors
/// [`OfflineError`]: then the checkpoint does not exist at the target, and a repetition continues from there. A
/// directory on which a node runs is refused, because the node might collect the checkpoint meanwhile.
pub fn copy_checkpoint(data_dir: &Path, number: u64, to: &str) -> Result<CopyReport, OfflineError> {
    let disk = existing_disk(data_dir)?;
    let (meta, _lock) = DataDir::lock_to_read(&*disk)?;
    let owner = Owner { cluster: meta.cluster, incarnation: meta.incarnation };
    let local = DiskStore::attach(disk, CHECKPOINTS);
    let (target, begun) = (remote_store(to)?, Instant::now());
    let mut run = begin_copy(&local, &*target, owner, CheckpointNumber(number))?;
    while !run.step(&local, &*target, CopyRun::PIECE_BYTES)? {}
    Ok(CopyReport::new(CheckpointNumber(number), to.to_owned(), begun.elapsed(), run.copied()))
}

/// Passes the entries of a shard's log from an index on to `visit`, until it breaks. Entries that a checkpoint replaced
/// may be missing. For a running node: [`Node::read_log`](crate::Node::read_log).
///
/// # Errors
/// [`OfflineError`] if there is no such shard, the log cannot be read, or a node runs there.
pub fn read_log(
    data_dir: &Path,
    shard: u32,
    from: u64,
    mut visit: impl FnMut(LogEntry) -> ControlFlow<()>,
) -> Result<(), OfflineError> {
    read_entries(data_dir, from, |_| Ok(shard), |entry| visit(LogEntry::of(&entry)))
}

/// Returns some entries of one process: `limit` at most, and no more after 1 MiB of values, messages and answers, from
/// an index of its shard's log on. Entries that a checkpoint replaced may be missing. For a running node:
/// [`Node::process_log`](crate::Node::process_log).
///
/// # Errors
/// [`OfflineError`] if there is no such service, the log cannot be read, or a node runs there.
pub fn read_process_log(
    data_dir: &Path,
    service: &str,
    key: &str,
    from: u64,
    limit: usize,
) -> Result<LogPage, OfflineError> {
    let mut page = Filling::new(from, limit);
    let shard = |topology: &Topology| {
        let unknown = || OfflineError::UnknownService { service: service.to_owned() };
        let id = topology.service_id(service).ok_or_else(unknown)?;
        Ok(topology.shard_of(id, key).0)
    };
    read_entries(data_dir, from, shard, |entry| page.take(&entry, Some(key)))?;
    Ok(page.page)
}

fn read_entries(
    data_dir: &Path,
    from: u64,
    shard: impl FnOnce(&Topology) -> Result<u32, OfflineError>,
    visit: impl FnMut(Entry) -> ControlFlow<()>,
) -> Result<(), OfflineError> {
    let disk = existing_disk(data_dir)?;
    // Entries that a node writes meanwhile would look like damage.
    let (meta, _lock) = DataDir::lock_to_read(&*disk)?;
    let topology = topology_of(&meta)?;
    let shard = shard(&topology)?;
    let shards = topology.shard_count();
    if shard >= shards {
        return Err(OfflineError::UnknownShard { shard, shards });
    }
    if !meta.log_created {
        // After a restore nothing has been logged yet.
        return Ok(());
    }
    let options = WalOptions { log_id: meta.log_id, ..WalOptions::default() };
    Wal::read(&*disk, &options, entries_of(ShardId(shard), Index(from), visit))?;
    Ok(())
}

/// Passes the entries of one shard to a visitor.
fn entries_of(
    shard: ShardId,
    from: Index,
    mut visit: impl FnMut(Entry) -> ControlFlow<()>,
) -> impl FnMut(Record<'_>) -> Result<ControlFlow<()>, NoEntry> {
    move |record| {
        if record.shard != shard || record.index < from {
            return Ok(ControlFlow::Continue(()));
        }
        Ok(visit(Entry::decode(record.bytes)?))
    }
}
