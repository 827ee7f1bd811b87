//! Snapshots that this node receives.

use super::desk::Transfer;
use crate::env::Env;
use crate::events;
use crate::peers::PeerMessage;
use crate::routes::Routes;
use crate::shared::Shared;
use crate::worker::Stored;
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::ids::{Micros, ReplicaId, ShardId, Time};
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Input;
use stead_core::state::State;
use stead_net::replica::{Chunk, Received, Route};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::store::BlobWriter;
use stead_store::snapshots::{SnapshotName, Source};

/// Snapshots that are received at once. Chunks of others are dropped, and sent again.
const RUNNING_MAX: usize = 4;
/// The time without a chunk after which what has arrived is dropped.
const IDLE_MAX: Micros = Micros::from_secs(30);

/// The transfers to this node, by shard.
pub(super) struct Receivers {
    stored: Arc<Stored>,
    routes: Arc<Routes>,
    /// The version of `routes`.
    routed: u64,
    running: BTreeMap<ShardId, Receiving>,
}

struct Receiving {
    transfer: Transfer,
    base: LogPoint,
    total: u64,
    /// The bytes that arrived in order.
    bytes: u64,
    /// `None` once it is whole.
    writer: Option<Box<dyn BlobWriter>>,
    /// When a chunk came last.
    heard: Time,
}

impl Receivers {
    pub(super) fn new(stored: Arc<Stored>) -> Self {
        Self { stored, routes: Arc::default(), routed: 0, running: BTreeMap::new() }
    }

    /// Takes a chunk. One that is the next is written, and all are answered with what has arrived.
    pub(super) fn take<E: Env>(&mut self, hub: &Shared<E>, now: Time, transfer: Transfer, chunk: &Chunk) {
        let Transfer { shard, .. } = transfer;
        let stage = (transfer.epoch, chunk.base);
        let is_same = match self.running.get(&shard) {
            // It comes late.
            Some(known) if stage < (known.transfer.epoch, known.base) => return,
            Some(known) => (known.transfer, known.base, known.total) == (transfer, chunk.base, chunk.total),
            None => false,
        };
        if !is_same {
            // Its files go first: they may have the same name.
            self.running.remove(&shard);
            if chunk.offset > 0 {
                return self.report(hub, transfer, chunk.base, 0);
            }
            if self.running.len() >= RUNNING_MAX || !self.begin(hub, now, transfer, chunk) {
                return;
            }
        }
        let Some(known) = self.running.get_mut(&shard) else { return };
        known.heard = now;
        if let Some(writer) = &mut known.writer
            && chunk.offset == known.bytes
        {
            if let Err(error) = writer.write(&chunk.bytes) {
                return self.give_up(shard, &error.into());
            }
            known.bytes += chunk.bytes.len() as u64;
        }
        if known.bytes == known.total
            && let Some(writer) = known.writer.take()
        {
            let name = known.name();
            let loaded = writer.finish().map_err(CheckpointError::from);
            match loaded
                .and_then(|()| self.stored.snapshots.load(Source::Received, name, self.stored.belonging))
            {
                Ok(state) => install(hub, transfer, chunk.base, state),
                Err(error) => {
                    self.give_up(shard, &error);
                    // It is damaged, or was not made durable: nothing switches to it.
                    if let Err(error) = self.stored.snapshots.remove(Source::Received, name) {
                        events::warn(format_args!("shard {shard}: {error}"));
                    }
                    return self.report(hub, transfer, chunk.base, 0);
                }
            }
        }
        let bytes = self.running[&shard].bytes;
        self.report(hub, transfer, chunk.base, bytes);
    }

    /// Begins to receive a snapshot; returns whether it can be.
    fn begin<E: Env>(&mut self, hub: &Shared<E>, now: Time, transfer: Transfer, chunk: &Chunk) -> bool {
        let (base, total) = (chunk.base, chunk.total);
        let mut receiving = Receiving { transfer, base, total, bytes: 0, writer: None, heard: now };
        let (name, snapshots) = (receiving.name(), &self.stored.snapshots);
        let begun = snapshots.names().and_then(|names| {
            let is_whole = names.contains(&(Source::Received, name));
            Ok(if is_whole { None } else { Some(snapshots.receive(name)?) })
        });
        match begun {
            Ok(Some(writer)) => receiving.writer = Some(writer),
            // It came before, and was not installed: its epoch was over, or its report was lost.
            Ok(None) => match snapshots.load(Source::Received, name, self.stored.belonging) {
                Ok(state) => {
                    receiving.bytes = total;
                    install(hub, transfer, base, state);
                }
                Err(error) => {
                    warn(transfer.shard, &error);
                    return false;
                }
            },
            Err(error) => {
                warn(transfer.shard, &error.into());
                return false;
            }
        }
        self.running.insert(transfer.shard, receiving);
        true
    }

    /// A replica of this node is gone for ever.
    pub(super) fn drop_replica(&mut self, shard: ShardId, replica: ReplicaId) {
        self.running.retain(|of, receiving| *of != shard || receiving.transfer.to > replica);
    }

    fn give_up(&mut self, shard: ShardId, error: &CheckpointError) {
        self.running.remove(&shard);
        warn(shard, error);
    }

    /// Reports how much of a snapshot has arrived.
    fn report<E: Env>(&mut self, hub: &Shared<E>, transfer: Transfer, base: LogPoint, bytes: u64) {
        if let Some(routes) = hub.routes.newer_than(&mut self.routed) {
            self.routes = routes;
        }
        let Transfer { shard, from, to, epoch } = transfer;
        if let Some(&node) = self.routes.get(&shard).and_then(|route| route.replicas.get(&from)) {
            let route = Route { shard, from: to, to: from };
            let received = Received { epoch, base, bytes };
            hub.peers.leave(node, &mut vec![PeerMessage::Received(route, received)]);
        }
    }

    /// Drops those whose sender is gone; returns when that is due again.
    pub(super) fn step(&mut self, now: Time) -> Option<Time> {
        self.running.retain(|_, receiving| now < receiving.heard.plus(IDLE_MAX));
        self.running.values().map(|receiving| receiving.heard.plus(IDLE_MAX)).min()
    }
}

impl Receiving {
    fn name(&self) -> SnapshotName {
        SnapshotName { shard: self.transfer.shard, replica: self.transfer.to, base: self.base }
    }
}

/// Gives a snapshot that is whole and durable aside to its replica, which acknowledges it once the log has switched to it.
fn install<E: Env>(hub: &Shared<E>, transfer: Transfer, base: LogPoint, state: State) {
    let Transfer { shard, from, to, epoch } = transfer;
    hub.push_replica_of(shard, to, Input::Installed { from, epoch, base, state: Box::new(state) });
}

fn warn(shard: ShardId, error: &CheckpointError) {
    events::warn(format_args!("shard {shard}: a snapshot cannot be received: {error}; it is sent again"));
}
