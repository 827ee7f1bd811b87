//! Snapshots of the replicas of a node, which a worker takes in slices for the part that writes them, and the trims of the log behind them.
//!
//! Each replica has its turn when the log has grown by a bound since its last one: then the log is trimmed behind the snapshot of that
//! turn, which has long been durable, and a new one is taken. So a peer that lags by less than the bound gets entries, and no snapshot;
//! and what an idle shard has in the log does not keep the entries of the others.

use super::{Slot, Worker};
use crate::clock::Clock;
use crate::env::{Env, Watch};
use crate::shared::Shared;
use crate::transfers::desk::{Event, Taken, Transfer};
use std::collections::BTreeMap;
use stead_core::ids::{Epoch, Index, Micros, ReplicaId, ShardId, Time};
use stead_core::records::Piece;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Input;
use stead_core::state::Header;
use stead_store::snapshots::SnapshotName;

/// Maximum time for which snapshots may hold the worker in one turn.
const SLICE: Micros = Micros(300);
/// The pause after which a snapshot is tried again that could not be taken or written.
const RETRY: Micros = Micros::from_secs(1);

/// A snapshot that is being taken.
pub(super) struct Taking {
    slot: u32,
    name: SnapshotName,
    /// The submission with which the log holds all that it covers.
    ticket: u64,
    piece: Piece,
    /// Whether all of it is taken, and only its last entry may not be committed or durable.
    is_drained: bool,
}

/// The snapshots of the replica at a place.
#[derive(Default)]
pub(super) struct Snapshotted {
    /// The last entry that its newest durable one covers.
    pub(super) base: Option<LogPoint>,
    /// The bytes that the log had got when its turn was last.
    logged: u64,
    /// Bytes of its state when the last one began.
    state_bytes: i64,
    /// Its turn is due, whatever the log has got: a peer needs a snapshot and there is none, or the last one was not finished.
    is_wanted: bool,
    /// None is tried before.
    retry_at: Time,
}

impl<E: Env> Worker<E> {
    /// Begins with the snapshots from which the replicas have begun and which they took themselves.
    pub(super) fn recover_snapshots(&mut self, shared: &Shared<E>, own: &BTreeMap<ShardId, LogPoint>) {
        for Slot { id, replica, snapshotted, is_replicated, .. } in &mut self.shards {
            if *is_replicated {
                snapshotted.base = own.get(id).copied();
                snapshotted.state_bytes = replica.state().map_or(0, |state| state.records().bytes() as i64);
                shared.trimming.change_state_bytes(snapshotted.state_bytes);
            }
        }
    }

    /// Requests the transfer of a snapshot to another replica.
    pub(super) fn want_snapshot(&self, shared: &Shared<E>, slot: u32, to: ReplicaId) {
        let replica = &self.shards[slot as usize].replica;
        if let Some(epoch) = replica.replica().leads() {
            let (shard, from) = (replica.shard_id(), replica.replica().id());
            shared.transfers.leave(Event::Wanted(Transfer { shard, from, to, epoch }));
        }
    }

    /// A transfer has its turn, if its epoch is not over. Otherwise that was reported.
    pub(super) fn send_snapshot(&mut self, shared: &Shared<E>, transfer: Transfer) {
        let Some(slot) = self.slot(transfer.shard) else { return };
        let replica = self.shards[slot as usize].replica.replica();
        if (replica.id(), replica.leads()) == (transfer.from, Some(transfer.epoch)) {
            let (table, commit) = (replica.table().clone(), replica.commit());
            shared.transfers.leave(Event::Usable { transfer, table, commit });
        }
    }

    /// A peer needs a snapshot of a replica that has none: its next turn comes at once.
    pub(super) fn take_snapshot(&mut self, shard: ShardId, replica: ReplicaId) {
        if let Some(slot) = self.slot(shard)
            && self.shards[slot as usize].replica.replica().id() == replica
        {
            self.shards[slot as usize].snapshotted.is_wanted = true;
            self.snapshots_at = 0;
        }
    }

    /// Takes no more of a replica's snapshot. Its turn comes again at once.
    pub(super) fn drop_taking(&mut self, shared: &Shared<E>, slot: u32) {
        for taking in self.taking.extract_if(.., |taking| taking.slot == slot) {
            shared.transfers.leave_taken(Taken::Dropped(taking.name));
            (self.shards[slot as usize].snapshotted.is_wanted, self.snapshots_at) = (true, 0);
        }
    }

    /// Ends the transfers of a shard's epoch.
    pub(super) fn end_transfers(&mut self, shared: &Shared<E>, slot: u32, epoch: Epoch) {
        self.drop_taking(shared, slot);
        let Slot { id: shard, is_replicated, .. } = self.shards[slot as usize];
        if is_replicated {
            shared.transfers.leave(Event::Ended { shard, epoch });
        }
    }

    /// The replica at a place is another one from now on, with nothing in its log.
    pub(super) fn forget_snapshots(&mut self, shared: &Shared<E>, slot: u32) {
        self.drop_taking(shared, slot);
        let Slot { id: shard, snapshotted, .. } = &mut self.shards[slot as usize];
        let Snapshotted { state_bytes, .. } = std::mem::take(snapshotted);
        shared.trimming.change_state_bytes(-state_bytes);
        shared.trimming.note(&shared.log, *shard, Index(0));
    }

    /// Takes a slice of the snapshots, unless much waits to be written; returns whether there is more to do at once.
    pub(super) fn take_slice(&mut self, shared: &Shared<E>, now: Time) -> bool {
        if self.stored_data.is_none() {
            return false;
        }
        self.begin_due(shared, now);
        if self.taking.is_empty() {
            return false;
        }
        let (begun, mut is_busy) = (shared.clock.steady(), false);
        while let Some(taking) = self.taking.iter_mut().find(|taking| !taking.is_drained)
            && shared.transfers.piece_bytes() <= shared.sizes.behind_bytes
        {
            is_busy = true;
            let slot = taking.slot;
            let replica = &mut self.shards[slot as usize].replica;
            let Some(is_drained) = replica.drain_snapshot(shared.sizes.snapshot_records, &mut taking.piece)
            else {
                self.drop_taking(shared, slot);
                continue;
            };
            if is_drained || taking.piece.bytes() >= shared.sizes.piece_bytes {
                let piece = std::mem::take(&mut taking.piece);
                shared.transfers.leave_taken(Taken::Records { name: taking.name, piece });
            }
            taking.is_drained = is_drained;
            if shared.clock.steady() >= begun.plus(SLICE) {
                break;
            }
        }
        // An entry that is not committed may never be. The log may lose the end of those that are not synced, and go on behind a gap.
        let (shards, synced) = (&self.shards, self.intake.synced);
        let is_over = |taking: &mut Taking| {
            let commit = shards[taking.slot as usize].replica.replica().commit();
            let is_synced = synced >= taking.ticket;
            if taking.is_drained && !is_synced {
                shared.log.want_sync();
            }
            let mut is_safe = commit >= taking.name.base.index && is_synced;
            shared.watch.snapshot_counts(&mut is_safe);
            taking.is_drained && is_safe
        };
        for Taking { name, .. } in self.taking.extract_if(.., is_over) {
            shared.transfers.leave_taken(Taken::Whole(name));
        }
        is_busy
    }

    /// Gives the replicas their turns that are due, until a snapshot begins: one is taken at a time.
    fn begin_due(&mut self, shared: &Shared<E>, now: Time) {
        let (logged, is_full) = (shared.log.appended(), shared.log.is_full());
        if (logged < self.snapshots_at && !is_full)
            || self.stopping
            || self.taking.iter().any(|taking| !taking.is_drained)
        {
            return;
        }
        // Snapshots write no more than the log, but for small states.
        let interval = shared.sizes.snapshot_log_bytes.max(shared.trimming.state_bytes());
        self.snapshots_at = u64::MAX;
        for slot in 0..self.shards.len() as u32 {
            let Slot { replica, snapshotted, is_replicated, .. } = &self.shards[slot as usize];
            if !is_replicated || replica.replica().id() == ReplicaId::NONE {
                continue;
            }
            let due = snapshotted.logged.saturating_add(interval);
            let is_due = logged >= due || snapshotted.is_wanted || is_full;
            if !is_due || now < snapshotted.retry_at {
                // Those that wait for a time are looked at in each turn.
                self.snapshots_at = self.snapshots_at.min(if is_due { 0 } else { due });
                continue;
            }
            self.snapshots_at = self.snapshots_at.min(logged.saturating_add(interval));
            if is_full {
                self.shards[slot as usize].snapshotted.retry_at = now.plus(RETRY);
            }
            if self.give_turn(shared, now, slot, logged) {
                // The others have theirs once this one is drained.
                self.snapshots_at = 0;
                return;
            }
        }
    }

    /// Trims the log behind the last snapshot of a replica, and begins the next one; returns whether it did.
    fn give_turn(&mut self, shared: &Shared<E>, now: Time, slot: u32, logged: u64) -> bool {
        let snapshotted = &mut self.shards[slot as usize].snapshotted;
        (snapshotted.logged, snapshotted.is_wanted) = (logged, false);
        if let Some(base) = snapshotted.base {
            self.trim(shared, now, slot, base);
        }
        let Slot { id: shard, replica, snapshotted, .. } = &mut self.shards[slot as usize];
        let covered = snapshotted.base.map_or(Index(0), |base| base.index);
        let is_new = replica.state().is_none_or(|state| state.position().index > covered);
        // The last one may still wait for a commit, and a checkpoint's is not to be given up.
        let is_waiting = self.taking.iter().any(|taking| taking.slot == slot);
        if !is_new || is_waiting || self.draining.iter().any(|draining| draining.slot == slot) {
            return false;
        }
        let Some(header) = replica.begin_snapshot() else {
            self.retry_snapshot(now, slot);
            return false;
        };
        let state_bytes = replica.state().map_or(0, |state| state.records().bytes() as i64);
        let before = std::mem::replace(&mut snapshotted.state_bytes, state_bytes);
        shared.trimming.change_state_bytes(state_bytes - before);
        let name = SnapshotName { shard: *shard, replica: replica.replica().id(), base: base_of(&header) };
        let ticket = self.ticket + u64::from(!self.batch.is_empty());
        shared.transfers.leave_taken(Taken::Begun { name, header });
        self.taking.push(Taking { slot, name, ticket, piece: Piece::default(), is_drained: false });
        true
    }

    /// Lets another snapshot of a replica be tried after a pause.
    fn retry_snapshot(&mut self, now: Time, slot: u32) {
        let Slot { snapshotted, .. } = &mut self.shards[slot as usize];
        (snapshotted.is_wanted, snapshotted.retry_at) = (true, now.plus(RETRY));
        self.snapshots_at = 0;
    }

    /// A snapshot is durable, or cannot be written.
    pub(super) fn note_written(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        name: SnapshotName,
        is_durable: bool,
    ) {
        let SnapshotName { shard, replica, base } = name;
        let Some(slot) = self.slot(shard) else { return };
        let Slot { replica: found, snapshotted, .. } = &mut self.shards[slot as usize];
        if found.replica().id() != replica {
            return shared.transfers.leave(Event::Gone { shard, replica });
        }
        if !is_durable {
            return self.retry_snapshot(now, slot);
        }
        snapshotted.base = Some(base);
        // Before the older ones go: from now on a state is folded anew from this one.
        shared.transfers.leave(Event::Superseded(name));
        if shared.log.is_full() {
            self.trim(shared, now, slot, base);
        }
    }

    /// Trims the log of a replica behind an entry which its newest durable snapshot covers, but not behind a snapshot that is on its way to
    /// a peer.
    fn trim(&mut self, shared: &Shared<E>, now: Time, slot: u32, base: LogPoint) {
        // That state is folded from the log, from an older snapshot on.
        if self.rebuilds.contains_key(&slot) {
            return;
        }
        let Slot { id: shard, replica, .. } = &self.shards[slot as usize];
        let (shard, sent) = (*shard, replica.snapshot_sent());
        let base = sent.filter(|sent| sent.index < base.index).unwrap_or(base);
        self.give_replica(shared, now, slot, Input::Trimmed(base));
        let mut top = base.index;
        shared.watch.trims(&mut top);
        shared.trimming.note(&shared.log, shard, top);
    }
}

fn base_of(header: &Header) -> LogPoint {
    LogPoint { epoch: header.position.epoch, index: header.position.index }
}
