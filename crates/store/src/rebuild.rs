//! Folds the state of one shard anew while its node runs: from its newest snapshot and the log, a piece at a time.

use crate::checkpoint::load::Bundles;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::store::BlobStore;
use crate::checkpoint::{Belonging, CheckpointError};
use crate::recovery::RecoveryError;
use crate::snapshots::Snapshots;
use crate::wal::{LogReader, Progress, WalReader};
use stead_core::entry::Entry;
use stead_core::ids::{Index, ShardId};
use stead_core::replay::ReplayError;
use stead_core::replication::table::{EpochTable, LogPoint};
use stead_core::state::State;

/// The stored data of a node from which a state is folded.
pub struct Sources<'a> {
    /// Its checkpoints.
    pub store: &'a dyn BlobStore,
    /// The newest complete one, if there is one.
    pub manifest: Option<&'a Manifest>,
    /// Its snapshots of single shards.
    pub snapshots: &'a Snapshots,
    /// Its log.
    pub log: &'a WalReader,
    /// The owner of the snapshots.
    pub belonging: Belonging,
}

/// A state that is being folded. Between two steps the log goes on.
pub struct Rebuild {
    state: State,
    log: LogReader,
}

impl Rebuild {
    /// Bytes of entries that one step folds at most, besides an entry.
    pub const STEP_BYTES: u64 = 256 << 10;

    /// Loads the newest snapshot that `table`, the log of the shard's replica, has at or below `upto`, up to which the state is to be folded.
    ///
    /// # Errors
    /// [`RecoveryError`] if a snapshot cannot be read.
    pub fn begin(
        sources: &Sources<'_>,
        shard: ShardId,
        table: &EpochTable,
        upto: Index,
    ) -> Result<Self, RecoveryError> {
        let Sources { store, manifest, snapshots, log, belonging } = sources;
        let is_usable = |point: LogPoint| point.index <= upto && table.has(point);
        let part = manifest.and_then(|manifest| Some((manifest, manifest.part(shard)?)));
        let part = part
            .map(|(manifest, part)| (manifest, part, LogPoint { epoch: part.epoch, index: part.index }))
            .filter(|(.., point)| is_usable(*point));
        let failed = |source| RecoveryError::Snapshot { shard, source };
        let names = snapshots.names().map_err(|error| failed(error.into()))?;
        let of_shard = names.into_iter().filter(|(_, name)| name.shard == shard && is_usable(name.base));
        let newest = of_shard.max_by_key(|(_, name)| name.base);
        let state = match (part, newest) {
            (Some((manifest, part, point)), newest)
                if newest.is_none_or(|(_, name)| name.base.index <= point.index) =>
            {
                let load = || -> Result<State, CheckpointError> {
                    let loaded = Bundles::open(*store, manifest)?.load(&[part])?.pop();
                    loaded.expect("one part was asked for").into_state(manifest)
                };
                load()?
            }
            (_, Some((source, name))) => snapshots.load(source, name, *belonging).map_err(failed)?,
            _ => State::new(shard),
        };
        let from = state.position().index.next();
        Ok(Self { state, log: log.log(shard, table.clone(), from, upto) })
    }

    /// Folds the next entries. Once the log has no more of them, [`Progress::Missing`], the state is as far as it can be for now: entries that
    /// are not durable yet are found by a later step.
    ///
    /// # Errors
    /// [`RecoveryError`] if the log is damaged, or an entry does not follow from the state, which is then unusable.
    pub fn step(&mut self) -> Result<Progress, RecoveryError> {
        let mut entries = Vec::new();
        let progress = self.log.read(Self::STEP_BYTES, &mut entries)?;
        for entry in entries {
            let (shard, index) = (self.state.shard(), entry.point.index);
            let contents = Entry::decode(&entry.bytes);
            let contents = contents.map_err(|source| ReplayError::NoEntry { shard, index, source })?;
            self.state.apply(contents).map_err(ReplayError::from)?;
        }
        Ok(progress)
    }

    /// Returns the state as far as it is folded.
    #[must_use]
    pub fn into_state(self) -> State {
        self.state
    }
}
