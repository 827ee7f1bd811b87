//! The part that carries snapshots of shards to and from other nodes.

use super::desk::{Event, Transfer};
use super::receiving::Receivers;
use super::sending::Senders;
use crate::bell::Bell;
use crate::env::Env;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::worker::Stored;
use std::convert::Infallible;
use std::sync::Arc;
use stead_core::ids::Time;
use stead_net::replica::Route;
use stead_store::checkpoint::bundle::Author;

/// See the module. In a turn it does one piece of work that waits, and sends what is due.
pub(crate) struct TransferPart {
    senders: Senders,
    receivers: Receivers,
}

impl TransferPart {
    /// Creates the part of a node, which writes snapshots as `author`.
    pub(crate) fn new(stored: &Arc<Stored>, author: Author) -> Self {
        Self {
            senders: Senders::new(Arc::clone(stored), author),
            receivers: Receivers::new(Arc::clone(stored)),
        }
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
        let event = hub.transfers.take();
        let is_busy = event.is_some();
        match event {
            Some(Event::Wanted(transfer)) => self.senders.want(hub, transfer),
            Some(Event::Begun { transfer, header }) => self.senders.begin(now, transfer, header),
            Some(Event::Records { transfer, piece }) => {
                self.senders.write(now, transfer, &piece);
                // It holds back while much waits here.
                hub.inboxes[hub.worker_of(transfer.shard)].bell.ring();
            }
            Some(Event::Taken(transfer)) => self.senders.finish(now, transfer),
            Some(Event::Ended { shard, epoch }) => self.senders.end(shard, epoch),
            Some(Event::Received(Route { shard, from, to }, received)) => {
                let transfer = Transfer { shard, from: to, to: from, epoch: received.epoch };
                self.senders.note_received(now, transfer, &received);
            }
            Some(Event::Chunk(Route { shard, from, to }, chunk)) => {
                let transfer = Transfer { shard, from, to, epoch: chunk.epoch };
                self.receivers.take(hub, now, transfer, &chunk);
            }
            None => {}
        }
        let due = [self.senders.step(hub, now), self.receivers.step(now)].into_iter().flatten().min();
        Ok(if is_busy { Turned::Again } else { Turned::Until(due) })
    }
}
