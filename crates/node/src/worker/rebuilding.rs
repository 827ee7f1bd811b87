//! Reads the stored data of replicas while they work: folds states anew, a piece of one in each turn, and finds entries for peers that are no
//! longer in memory.

use super::Worker;
use crate::env::Env;
use crate::inbox::Command;
use crate::shared::Shared;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::ids::{Index, ReplicaId, ShardId, Time};
use stead_core::replication::replica::AppendHead;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::{Input, ShardReplica};
use stead_core::start::Services;
use stead_store::checkpoint::Belonging;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::BlobStore;
use stead_store::rebuild::{Rebuild, Sources};
use stead_store::recovery::RecoveryError;
use stead_store::snapshots::Snapshots;
use stead_store::wal::{Progress, WalReader};

/// The stored data of a node, as its workers read it.
pub(crate) struct Stored {
    pub(crate) store: Arc<dyn BlobStore>,
    /// The newest checkpoint: a node with replicas of several takes none.
    pub(crate) manifest: Option<Manifest>,
    pub(crate) snapshots: Snapshots,
    pub(crate) log: WalReader,
    pub(crate) belonging: Belonging,
    /// The settings of new replicas.
    pub(crate) services: Services,
}

impl Stored {
    /// Loads the snapshot from which the state of a replica is folded.
    fn begin_rebuild(&self, replica: &ShardReplica, upto: Index) -> Result<Rebuild, RecoveryError> {
        let Self { store, manifest, snapshots, log, belonging, .. } = self;
        let sources =
            Sources { store: &**store, manifest: manifest.as_ref(), snapshots, log, belonging: *belonging };
        Rebuild::begin(&sources, replica.shard_id(), replica.replica().table(), upto)
    }
}

/// A state that is folded anew.
pub(super) struct Rebuilding {
    /// The number of the request.
    number: u64,
    upto: Index,
    /// `None` until its first turn.
    rebuild: Option<Rebuild>,
}

/// A read of entries for a peer.
pub(super) struct Unread {
    slot: u32,
    /// The replica at that place whose entries they are.
    replica: ReplicaId,
    to: ReplicaId,
    head: AppendHead,
    last: Index,
}

impl<E: Env> Worker<E> {
    /// Reads the data of replicas from there. `own` has the last entries of the snapshots of their own from which some have begun.
    pub(crate) fn read_from(
        &mut self,
        shared: &Shared<E>,
        stored: Arc<Stored>,
        own: &BTreeMap<ShardId, LogPoint>,
    ) {
        self.stored_data = Some(stored);
        self.recover_snapshots(shared, own);
    }

    /// Lets the state of a replica be folded anew, in the place of one that is being folded.
    pub(super) fn request_rebuild(&mut self, slot: u32, number: u64, upto: Index) {
        self.rebuilds.insert(slot, Rebuilding { number, upto, rebuild: None });
    }

    /// Reads entries that the log had not written before, and goes on with one of the states that are folded anew; returns whether there is
    /// more to do at once.
    pub(super) fn rebuild(&mut self, shared: &Shared<E>, now: Time) -> bool {
        for Unread { slot, replica, to, head, last } in std::mem::take(&mut self.unread) {
            if self.shards[slot as usize].replica.replica().id() == replica {
                self.read_log(shared, slot, to, head, last);
            }
        }
        // A snapshot of the primary may have come in the place of the state.
        self.rebuilds.retain(|slot, _| self.shards[*slot as usize].replica.state().is_none());
        // One step in a turn: a node that folds many states still answers seals and stores entries in time. Shards that have no primary
        // meanwhile come first, and else one after the other.
        let mut slots: Vec<u32> = self.rebuilds.keys().copied().collect();
        let last = self.rebuilt_last;
        slots.sort_by_key(|slot| (!self.shards[*slot as usize].replica.waits_to_lead(), *slot <= last));
        for slot in slots {
            match self.step_rebuild(slot) {
                // The log has not synced its next entry yet: its report causes a turn.
                Ok(Progress::Missing) => {}
                Ok(progress) => {
                    self.rebuilt_last = slot;
                    if progress == Progress::Done {
                        self.end_rebuild(shared, now, slot);
                    }
                    return true;
                }
                Err(error) => shared.fail(error.to_string()),
            }
        }
        !self.commands.is_empty()
    }

    fn step_rebuild(&mut self, slot: u32) -> Result<Progress, RecoveryError> {
        let Rebuilding { upto, rebuild, .. } = self.rebuilds.get_mut(&slot).expect("it is being folded");
        if let Some(rebuild) = rebuild {
            return rebuild.step();
        }
        let stored = self.stored_data.as_ref().expect("only a replica of several has its state folded anew");
        *rebuild = Some(stored.begin_rebuild(&self.shards[slot as usize].replica, *upto)?);
        Ok(Progress::More)
    }

    /// Gives a replica its state.
    fn end_rebuild(&mut self, shared: &Shared<E>, now: Time, slot: u32) {
        let Some(Rebuilding { number, rebuild: Some(rebuild), .. }) = self.rebuilds.remove(&slot) else {
            unreachable!("it was folded")
        };
        let state = Box::new(rebuild.into_state());
        self.give_replica(shared, now, slot, Input::Rebuilt { number, state });
    }

    /// Reads entries of a replica for a peer: all that one frame holds.
    pub(super) fn read_log(
        &mut self,
        shared: &Shared<E>,
        slot: u32,
        to: ReplicaId,
        head: AppendHead,
        last: Index,
    ) {
        let stored = self.stored_data.as_ref().expect("only a replica of several has peers");
        let replica = &self.shards[slot as usize].replica;
        let (shard, table) = (replica.shard_id(), replica.replica().table().clone());
        let (own, has_base) = (replica.replica().id(), table.base().index <= head.before.index);
        let mut reader = stored.log.log(shard, table, head.before.index.next(), last);
        let mut entries = Vec::new();
        loop {
            match reader.read(u64::MAX, &mut entries) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => break,
                // The log has not written them yet: its report causes a turn.
                Ok(Progress::Missing) if has_base && self.shards[slot as usize].appended > 0 => {
                    return self.unread.push(Unread { slot, replica: own, to, head, last });
                }
                // They were trimmed.
                Ok(Progress::Missing) => {
                    entries.clear();
                    break;
                }
                Err(error) => return shared.fail(error.to_string()),
            }
        }
        let input = Input::LogRead { to, head, entries };
        self.commands.push_back(Command::Replica { shard, to: Some(own), input });
    }
}
