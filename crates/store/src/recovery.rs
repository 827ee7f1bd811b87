//! Recovery: the newest complete checkpoint, and the log's entries after it, folded into the states of all shards.
//!
//! Nothing is changed but the unsynced tail of the log, so that a crash during a recovery changes nothing: the next one
//! gives the same states.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::load::load_parts;
use crate::checkpoint::manifest::{Manifest, manifest_name, newest};
use crate::checkpoint::store::BlobStore;
use crate::disk::Disk;
use crate::wal::{Opened, Record, Wal, WalError, WalOptions};
use std::cell::RefCell;
use std::error::Error;
use std::sync::Arc;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::entry::{Cause, Entry, NoEntry};
use stead_core::ids::{Colour, Epoch, Index, ShardId};
use stead_core::state::{Misfit, Position, State};
use stead_core::topology::Topology;
use thiserror::Error;

/// What was recovered.
pub struct Recovered {
    /// The states of all shards of the topology, in the order of their ids.
    pub states: Vec<State>,
    /// The log, open to be appended to.
    pub wal: Wal,
    /// What opening the log found.
    pub log: Opened,
    /// What the next checkpoint builds upon.
    pub lineage: Lineage,
    /// The newest complete checkpoint, if there is one.
    pub manifest: Option<Manifest>,
    /// The greatest number that a checkpoint or a given-up one has; the next is greater.
    pub decided: Colour,
    /// Counts for people to read.
    pub report: RecoveryReport,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The checkpoint that it began with; none for a log that was read from its beginning.
    pub checkpoint: Option<Colour>,
    /// Bytes of the checkpoint's sections that were read.
    pub section_bytes: u64,
    /// Bytes of all keys and values of the recovered states.
    pub state_bytes: u64,
    /// Entries folded over the checkpoint.
    pub entries: u64,
    /// Entries of the log that the checkpoint holds already.
    pub entries_skipped: u64,
    /// The greatest epoch of any shard.
    pub epoch: Epoch,
}

/// Why a node can't be recovered.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The newest checkpoint can't be used.
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
        /// What to do.
        hint: &'static str,
    },
    /// The log can't be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// A record of the log is no entry, or does not follow.
    #[error("cannot replay the log: {0}")]
    Replay(#[from] ReplayError),
    /// Whoever asked can't do with what would be recovered.
    #[error("{0}")]
    Refused(String),
}

/// On its way through the log, which knows nothing of it.
#[derive(Debug, Error)]
#[error("{0}")]
struct Refused(String);

/// Why a record of the log can't be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It belongs to a shard that the node does not have.
    #[error(
        "entry {index} belongs to shard {shard}, and the node has {shards} shards; its topology was lost or exchanged"
    )]
    UnknownShard {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: Index,
        /// How many shards there are.
        shards: u32,
    },
    /// Its bytes are no entry.
    #[error("cannot read entry {index} of shard {shard}: {source}")]
    NoEntry {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: Index,
        /// The reason.
        source: NoEntry,
    },
    /// Its place in the log is not the one that it names.
    #[error("entry {found} of shard {shard} stands in the log as entry {index}; the log is damaged")]
    Misplaced {
        /// The shard.
        shard: ShardId,
        /// As the log says.
        index: Index,
        /// As the entry says.
        found: Index,
    },
    /// It does not follow from the state.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The entry at the checkpoint's marker is another one.
    #[error(
        "entry {index} of shard {shard} is not the marker of checkpoint {number}: the log and the checkpoints \
         are not of one node, or one of them is an older copy; put back the files that belong here, or restore the checkpoint into an \
         empty directory"
    )]
    Unbound {
        /// The shard.
        shard: ShardId,
        /// The marker's index.
        index: Index,
        /// The checkpoint.
        number: Colour,
    },
    /// The log lacks entries that were in it when the checkpoint was completed.
    #[error(
        "the log's last entry of shard {shard} is {last}, and the checkpoint holds entry {marker}; the log lost its end: \
         put it back, or restore the checkpoint into an empty directory"
    )]
    LogTooShort {
        /// The shard.
        shard: ShardId,
        /// The last entry in the log.
        last: Index,
        /// The checkpoint's marker.
        marker: Index,
    },
}

/// Folds the log of each shard over its state.
struct Replay {
    states: Vec<State>,
    /// The marker of the shard's part; all zero without one.
    markers: Vec<Position>,
    /// The last entry seen in the log; 0 before the first.
    last: Vec<Index>,
    applied: u64,
    skipped: u64,
}

impl Replay {
    fn new(states: Vec<State>) -> Self {
        let markers: Vec<Position> = states.iter().map(State::position).collect();
        let last = vec![Index(0); states.len()];
        Self { states, markers, last, applied: 0, skipped: 0 }
    }

    fn handle(&mut self, record: &Record<'_>) -> Result<(), ReplayError> {
        let (shard, index) = (record.shard, record.index);
        let shards = self.states.len() as u32;
        let at = shard.0 as usize;
        let Some(state) = self.states.get_mut(at) else {
            return Err(ReplayError::UnknownShard { shard, index, shards });
        };
        let last = std::mem::replace(&mut self.last[at], index);
        if last != Index(0) && index != last.next() {
            return Err(Misfit::Index { shard, last, found: index }.into());
        }
        let marker = self.markers[at];
        if index < marker.index {
            self.skipped += 1;
            return Ok(());
        }
        let entry =
            Entry::decode(record.bytes).map_err(|source| ReplayError::NoEntry { shard, index, source })?;
        if index == marker.index {
            // Log and checkpoint have no name in common: the marker shows that the one was taken of the other.
            let number = marker.colour;
            if (entry.epoch, entry.time, entry.cause)
                != (marker.epoch, marker.time, Cause::Marker { colour: number })
            {
                return Err(ReplayError::Unbound { shard, index, number });
            }
            self.skipped += 1;
            return Ok(());
        }
        if entry.index != index || entry.epoch != record.epoch {
            return Err(ReplayError::Misplaced { shard, index, found: entry.index });
        }
        state.apply(entry)?;
        self.applied += 1;
        Ok(())
    }

    fn check(&self) -> Result<(), ReplayError> {
        for (at, (&last, &marker)) in self.last.iter().zip(&self.markers).enumerate() {
            // Whole segments are trimmed from the front: if any entry is left, so are all after it.
            if last != Index(0) && last < marker.index {
                let (shard, marker) = (ShardId(at as u32), marker.index);
                return Err(ReplayError::LogTooShort { shard, last, marker });
            }
        }
        Ok(())
    }
}

/// Recovers all shards of a node.
///
/// `topology` is that of the node's metadata: it has every service of the checkpoint, and may have more. `threads` load
/// the parts; with 1 no thread is started and the order of all I/O is fixed.
///
/// # Errors
/// [`RecoveryError`], saying what can't be used and what to do. A damaged newest checkpoint is never passed over for an
/// older one, for the log is trimmed to the newest.
pub fn recover(
    disk: Arc<dyn Disk>,
    store: &dyn BlobStore,
    topology: &Topology,
    wal: WalOptions,
    threads: usize,
) -> Result<Recovered, RecoveryError> {
    recover_checked(disk, store, topology, wal, threads, |_| Ok(()))
}

/// Recovers as [`recover`] does, but asks `accept` once all states are known and nothing is changed yet.
///
/// # Errors
/// As [`recover`]; [`RecoveryError::Refused`] with what `accept` says, and the disk is as it was.
pub fn recover_checked(
    disk: Arc<dyn Disk>,
    store: &dyn BlobStore,
    topology: &Topology,
    wal: WalOptions,
    threads: usize,
    accept: impl FnOnce(&[State]) -> Result<(), String>,
) -> Result<Recovered, RecoveryError> {
    let newest = newest(store)?;
    let mut states: Vec<State> = topology.shards().map(State::new).collect();
    let mut report = RecoveryReport::default();
    let mut lineage = Lineage::new();
    if let Some(manifest) = &newest.manifest {
        check_topology(manifest, topology)?;
        for part in load_parts(store, manifest, threads)? {
            let at = part.header.shard.0 as usize;
            states[at] = part.into_state(manifest)?;
        }
        report.checkpoint = Some(manifest.number);
        report.section_bytes = manifest.totals.section_bytes;
        lineage = manifest.lineage();
    }
    let replay = RefCell::new(Replay::new(states));
    let visit = |record: Record<'_>| -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(replay.borrow_mut().handle(&record)?)
    };
    // Before the log's tail is cut: a checkpoint may prove that what is damaged there had been synced.
    let opened = Wal::open_checked(disk, wal, visit, || {
        let replay = replay.borrow();
        replay.check()?;
        Ok(accept(&replay.states).map_err(Refused)?)
    });
    let (wal, log) = opened.map_err(|error| match error {
        WalError::Visit(error) => match error.downcast::<ReplayError>() {
            Ok(error) => RecoveryError::Replay(*error),
            Err(error) => match error.downcast::<Refused>() {
                Ok(refused) => RecoveryError::Refused(refused.0),
                Err(error) => RecoveryError::Log(WalError::Visit(error)),
            },
        },
        error => RecoveryError::Log(error),
    })?;
    let Replay { states, applied, skipped, .. } = replay.into_inner();
    report.entries = applied;
    report.entries_skipped = skipped;
    report.state_bytes = states.iter().map(|state| state.records().bytes() as u64).sum();
    report.epoch = states.iter().map(|state| state.position().epoch).max().unwrap_or_default();
    Ok(Recovered { states, wal, log, lineage, manifest: newest.manifest, decided: newest.decided, report })
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
