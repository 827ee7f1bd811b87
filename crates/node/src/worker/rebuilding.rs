//! Reads the stored data of replicas while they work: folds a state anew, a piece in each turn, and finds entries for peers that are no
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
use stead_core::shard_replica::Input;
use stead_core::start::Services;
use stead_store::checkpoint::Belonging;
use stead_store::checkpoint::manifest::Manifest;
use stead_store::checkpoint::store::BlobStore;
use stead_store::rebuild::{Rebuild, Sources};
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

    /// Begins to fold the state of a replica anew, in the place of one that is being folded.
    pub(super) fn begin_rebuild(&mut self, shared: &Shared<E>, slot: u32, number: u64, upto: Index) {
        let stored = self.stored_data.as_ref().expect("only a replica of several has its state folded anew");
        let Stored { store, manifest, snapshots, log, belonging, .. } = &**stored;
        let sources =
            Sources { store: &**store, manifest: manifest.as_ref(), snapshots, log, belonging: *belonging };
        let replica = &self.shards[slot as usize].replica;
        match Rebuild::begin(&sources, replica.shard_id(), replica.replica().table(), upto) {
            Ok(rebuild) => {
                self.rebuilds.insert(slot, (number, rebuild));
            }
            Err(error) => shared.fail(error.to_string()),
        }
    }

    /// Reads entries that the log had not written before, and folds the next ones of each state that is folded anew; returns whether there
    /// is more to do at once.
    pub(super) fn rebuild(&mut self, shared: &Shared<E>, now: Time) -> bool {
        for Unread { slot, replica, to, head, last } in std::mem::take(&mut self.unread) {
            if self.shards[slot as usize].replica.replica().id() == replica {
                self.read_log(shared, slot, to, head, last);
            }
        }
        let (mut busy, mut done) = (!self.commands.is_empty(), Vec::new());
        for (slot, (_, rebuild)) in &mut self.rebuilds {
            match rebuild.step() {
                Ok(Progress::More) => busy = true,
                Ok(Progress::Done) => done.push(*slot),
                // The log has not synced it yet: its report causes a turn.
                Ok(Progress::Missing) => {}
                Err(error) => shared.fail(error.to_string()),
            }
        }
        for slot in done {
            let (number, rebuild) = self.rebuilds.remove(&slot).expect("found above");
            let state = Box::new(rebuild.into_state());
            self.give_replica(shared, now, slot, Input::Rebuilt { number, state });
            busy = true;
        }
        busy
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
