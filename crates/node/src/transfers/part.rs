//! The part that writes snapshots of shards, and carries them to and from other nodes.

use super::desk::{Event, Transfer};
use super::receiving::Receivers;
use super::sending::Senders;
use super::writing::Writers;
use crate::bell::Bell;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::worker::Stored;
use std::convert::Infallible;
use std::sync::Arc;
use stead_core::ids::{ShardId, Time};
use stead_net::replica::Route;
use stead_store::checkpoint::bundle::Author;

/// See the module. In a turn it does one piece of work that waits, takes a step of a snapshot, and sends what is due.
pub(crate) struct TransferPart {
    writers: Writers,
    senders: Senders,
    receivers: Receivers,
}

impl TransferPart {
    /// Creates the part of a node, which writes snapshots as `author`.
    pub(crate) fn new(stored: &Arc<Stored>, author: Author) -> Self {
        Self {
            writers: Writers::new(Arc::clone(stored), author),
            senders: Senders::new(Arc::clone(stored)),
            receivers: Receivers::new(Arc::clone(stored)),
        }
    }

    fn handle<E: Env>(&mut self, hub: &Shared<E>, now: Time, event: Event) {
        match event {
            Event::Wanted(transfer) => self.senders.want(hub, transfer),
            Event::Usable { transfer, table, commit } => {
                self.senders.begin(hub, now, transfer, (&table, commit));
            }
            Event::Ended { shard, epoch } => {
                self.senders.end(shard, epoch);
                self.remove_older(shard);
            }
            Event::Received(Route { shard, from, to }, received) => {
                let transfer = Transfer { shard, from: to, to: from, epoch: received.epoch };
                if self.senders.note_received(hub, now, transfer, &received) {
                    self.remove_older(shard);
                }
            }
            Event::Chunk(Route { shard, from, to }, chunk) => {
                let transfer = Transfer { shard, from, to, epoch: chunk.epoch };
                self.receivers.take(hub, now, transfer, &chunk);
            }
            Event::Superseded(name) => {
                self.writers.supersede(name);
                self.remove_older(name.shard);
                self.senders.look_again(hub, name.shard);
            }
            Event::Gone { shard, replica } => {
                self.senders.drop_replica(shard, replica);
                self.receivers.drop_replica(shard, replica);
                self.writers.remove_replica(shard, replica);
            }
        }
    }

    fn remove_older(&self, shard: ShardId) {
        self.writers.remove_older(shard, |snapshot| self.senders.sends(snapshot));
    }
}

impl<E: Env> Part<Shared<E>> for TransferPart {
    type Error = Infallible;

    fn bell<'h>(&'h self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.transfers.bell
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if hub.is_ended() {
            return Ok(Turned::Ended);
        }
        let mut is_busy = false;
        if let Some(event) = hub.transfers.take() {
            self.handle(hub, now, event);
            is_busy = true;
        }
        let held = self.writers.held_until(hub, now);
        if held.is_none()
            && let Some(taken) = hub.transfers.take_taken()
        {
            self.writers.handle(hub, now, taken);
            is_busy = true;
        }
        let due = [self.senders.step(hub, now), self.receivers.step(now), held].into_iter().flatten().min();
        Ok(if is_busy { Turned::Again } else { Turned::Until(due) })
    }
}
