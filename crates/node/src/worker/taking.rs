//! Snapshots of shards for other replicas, which a worker takes in slices for the part that sends them.

use super::{Slot, Worker};
use crate::clock::Clock;
use crate::env::Env;
use crate::shared::Shared;
use crate::transfers::desk::{Event, Transfer};
use stead_core::ids::{Epoch, Micros, ReplicaId, Time};
use stead_core::records::Piece;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Input;

/// Maximum time for which snapshots may hold the worker in one turn.
const SLICE: Micros = Micros(300);

/// A snapshot that is being taken.
pub(super) struct Taking {
    slot: u32,
    transfer: Transfer,
    /// The last entry that it covers.
    base: LogPoint,
    piece: Piece,
    /// Whether all of it is taken, and only its last entry may not be committed.
    is_drained: bool,
}

impl<E: Env> Worker<E> {
    /// Requests the transfer of a snapshot to another replica.
    pub(super) fn want_snapshot(&self, shared: &Shared<E>, slot: u32, to: ReplicaId) {
        let replica = &self.shards[slot as usize].replica;
        if let Some(epoch) = replica.replica().leads() {
            let (shard, from) = (replica.shard_id(), replica.replica().id());
            shared.transfers.leave(Event::Wanted(Transfer { shard, from, to, epoch }));
        }
    }

    /// Begins to take a snapshot, if its epoch is not over. Otherwise that was reported.
    pub(super) fn take_snapshot(&mut self, shared: &Shared<E>, transfer: Transfer) {
        let Some(slot) = self.slot(transfer.shard) else { return };
        // A checkpoint's snapshot runs: this one is wanted again later.
        if self.draining.iter().any(|draining| draining.slot == slot) {
            return;
        }
        let replica = &mut self.shards[slot as usize].replica;
        if replica.replica().leads() != Some(transfer.epoch) {
            return;
        }
        let Some(shard) = replica.shard_mut() else { return };
        let header = shard.begin_snapshot();
        let base = LogPoint { epoch: header.position.epoch, index: header.position.index };
        self.drop_taking(slot);
        shared.transfers.leave(Event::Begun { transfer, header });
        self.taking.push_back(Taking { slot, transfer, base, piece: Piece::default(), is_drained: false });
    }

    /// Takes no more of a shard's snapshot for another replica.
    pub(super) fn drop_taking(&mut self, slot: u32) {
        self.taking.retain(|taking| taking.slot != slot);
    }

    /// Ends the transfers of a shard's epoch.
    pub(super) fn end_transfers(&mut self, shared: &Shared<E>, slot: u32, epoch: Epoch) {
        self.drop_taking(slot);
        let Slot { id: shard, is_replicated, .. } = self.shards[slot as usize];
        if is_replicated {
            shared.transfers.leave(Event::Ended { shard, epoch });
        }
    }

    /// Takes a slice of the snapshots, unless much waits to be written; returns whether there is more to do at once.
    pub(super) fn take_slice(&mut self, shared: &Shared<E>, now: Time) -> bool {
        if self.taking.is_empty() {
            return false;
        }
        let (begun, mut is_busy) = (shared.clock.steady(), false);
        while let Some(taking) = self.taking.iter_mut().find(|taking| !taking.is_drained)
            && shared.transfers.piece_bytes() <= shared.sizes.behind_bytes
        {
            is_busy = true;
            let slot = taking.slot;
            let Some(shard) = self.shards[slot as usize].replica.shard_mut() else {
                self.drop_taking(slot);
                continue;
            };
            let is_drained = shard.drain_snapshot(shared.sizes.snapshot_records, &mut taking.piece);
            if is_drained || taking.piece.bytes() >= shared.sizes.piece_bytes {
                let piece = std::mem::take(&mut taking.piece);
                shared.transfers.leave(Event::Records { transfer: taking.transfer, piece });
            }
            taking.is_drained = is_drained;
            if shared.clock.steady() >= begun.plus(SLICE) {
                break;
            }
        }
        // What is not committed may never be.
        let shards = &self.shards;
        let is_committed = |taking: &Taking| {
            taking.is_drained && shards[taking.slot as usize].replica.replica().commit() >= taking.base.index
        };
        let (taken, left) = self.taking.drain(..).partition(is_committed);
        self.taking = left;
        for Taking { slot, transfer, base, .. } in Vec::from(taken) {
            self.give_replica(shared, now, slot, Input::SnapshotSent { to: transfer.to, base });
            shared.transfers.leave(Event::Taken(transfer));
        }
        is_busy
    }
}
