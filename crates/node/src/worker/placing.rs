//! Replicas of shards come and go while the node runs. The place of a shard stays, and while it has no replica, one of the number
//! [`ReplicaId::NONE`] fills it: it is given no input but those of clients, which it turns away.

use super::replicas::RECORD_BYTES;
use super::{Slot, Worker};
use crate::env::Env;
use crate::shared::Shared;
use crate::transfers::desk::Event;
use stead_core::control::facts::Fact;
use stead_core::ids::{Epoch, Index, Life, ReplicaId, ShardId, Time};
use stead_core::shard_replica::{Input, ReplicaName};
use stead_store::wal::Promise;

impl Slot {
    /// Whether it has a replica, and that is this one, if one is named.
    fn has(&self, replica: Option<ReplicaId>) -> bool {
        let own = self.replica.replica().id();
        own != ReplicaId::NONE && replica.is_none_or(|replica| replica == own)
    }
}

impl<E: Env> Worker<E> {
    /// Whether a replica of a shard is here.
    pub(super) fn has_replica(&self, shard: ShardId) -> bool {
        self.slot(shard).is_some_and(|slot| self.shards[slot as usize].has(None))
    }

    /// Gives the replica of a shard an input, if there is one, and it is the one that is named.
    pub(super) fn give_placed(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        (shard, replica): (ShardId, Option<ReplicaId>),
        input: Input,
    ) {
        if let (Some(slot), false) = (self.slot(shard), self.stopping)
            && self.shards[slot as usize].has(replica)
        {
            self.give_replica(shared, now, slot, input);
        }
    }

    /// Begins an empty replica at the place of a shard, unless it is there already, or a later one. Its primary may have sent it frames
    /// before it was there, and sends them again once it hears of it.
    pub(super) fn place(&mut self, shared: &Shared<E>, now: Time, shard: ShardId, replica: ReplicaId) {
        let (Some(slot), false) = (self.slot(shard), self.stopping) else { return };
        if self.shards[slot as usize].replica.replica().id() >= replica {
            return;
        }
        self.replace(shared, now, slot, replica);
        if let Some(route) = self.routes.get(&shard) {
            let follow = Input::Follow { epoch: route.epoch, primary: route.primary };
            self.shards[slot as usize].replica.follow_dial(route.max_lag);
            self.give_replica(shared, now, slot, follow);
        }
    }

    /// Puts a replica with nothing in its log in the place of another one. What that has appended is reported to it no more.
    fn replace(&mut self, shared: &Shared<E>, now: Time, slot: u32, replica: ReplicaId) {
        if let Some(epoch) = self.shards[slot as usize].replica.replica().leads() {
            self.depose(shared, now, slot, epoch);
        }
        self.rebuilds.remove(&slot);
        self.forget_snapshots(shared, slot);
        let stored = self.stored_data.as_ref().expect("a node on which replicas are placed reads their data");
        let place = &mut self.shards[slot as usize];
        let name = ReplicaName { id: replica, life: Life(shared.lives) };
        place.replica = stored.services.new_replica(place.id, name);
        (place.of_others, place.durable, place.given_up) = (place.appended, 0, None);
        self.handled(shared, now, slot, 0);
    }

    /// Drops a replica for ever, with a tombstone: the next number promises epoch 0, so that what stands before does not count any more,
    /// and the replica is void wherever it is named again. Its own promise stays in the log.
    pub(super) fn delete_replica(
        &mut self,
        shared: &Shared<E>,
        now: Time,
        shard: ShardId,
        replica: ReplicaId,
    ) {
        let (Some(slot), false) = (self.slot(shard), self.stopping) else { return };
        let own = self.shards[slot as usize].replica.replica().id();
        if own > replica {
            // A late order: the control plane places no later one before it knows that this one is deleted.
            return self.news.facts.push(Fact::Deleted(shard, replica));
        }
        if own != ReplicaId::NONE {
            self.replace(shared, now, slot, ReplicaId::NONE);
        }
        if self.batch.bytes() + RECORD_BYTES > self.batch_max {
            self.submit(shared, now);
        }
        self.batch.push_promise(Promise { shard, replica: replica.next(), epoch: Epoch(0) });
        self.note_appended(slot, 1);
        let place = &mut self.shards[slot as usize];
        place.of_others = place.appended;
        place.deleted.push(replica);
    }

    /// Takes so many records of a place as durable. Returns the number of those that its replica has appended.
    pub(super) fn take_durable(&mut self, shared: &Shared<E>, slot: u32, records: usize) -> usize {
        let place = &mut self.shards[slot as usize];
        place.appended -= records;
        let of_others = records.min(place.of_others);
        place.of_others -= of_others;
        if place.of_others == 0
            && let Some(&last) = place.deleted.last()
        {
            let (shard, deleted) = (place.id, place.deleted.drain(..));
            self.news.facts.extend(deleted.map(|replica| Fact::Deleted(shard, replica)));
            shared.transfers.leave(Event::Gone { shard, replica: last });
            if place.replica.replica().id() == ReplicaId::NONE {
                // Nothing in the log counts for a later one.
                shared.trimming.note(&shared.log, shard, Index(u64::MAX));
            }
        }
        records - of_others
    }
}
