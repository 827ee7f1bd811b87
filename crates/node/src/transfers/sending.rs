//! Snapshots that this node sends.

use super::desk::Transfer;
use crate::env::Env;
use crate::events;
use crate::inbox::Command;
use crate::peers::PeerMessage;
use crate::routes::Routes;
use crate::shared::Shared;
use crate::worker::Stored;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use stead_core::checkpointing::pace::Meter;
use stead_core::ids::{Epoch, Index, Micros, ReplicaId, ShardId, Time};
use stead_core::replication::table::EpochTable;
use stead_core::shard_replica::Input;
use stead_net::replica::{Chunk, Received, Route};
use stead_store::checkpoint::store::{BlobReader, StoreError};
use stead_store::snapshots::{SnapshotName, Source};

/// Transfers that run at once. The others wait.
const RUNNING_MAX: usize = 4;
/// The time after which a chunk that was not reported is sent again.
const RESEND: Micros = Micros::from_millis(250);
/// The time without progress after which a transfer is given up, and begun anew in its turn.
const STALL_MAX: Micros = Micros::from_secs(10);

/// The transfers from this node: those that run by shard and receiver, and those that wait.
pub(super) struct Senders {
    stored: Arc<Stored>,
    routes: Arc<Routes>,
    /// The version of `routes`.
    routed: u64,
    running: BTreeMap<(ShardId, ReplicaId), Sending>,
    waiting: VecDeque<Transfer>,
    meter: Meter,
}

struct Sending {
    transfer: Transfer,
    /// The time of the last progress.
    progress: Time,
    stage: Stage,
}

enum Stage {
    /// The worker is asked what may be sent, or there is no snapshot yet.
    Asked,
    Sending(File),
    /// It cannot be read, and waits to be given up.
    Failed,
}

/// A snapshot that is being sent.
struct File {
    source: Source,
    name: SnapshotName,
    reader: Box<dyn BlobReader>,
    /// The position of the chunk that is to be sent, or on its way.
    offset: u64,
    /// The greatest position so far.
    best: u64,
    /// Whether the receiver's next report counts even if it names an earlier position: it may have begun anew.
    is_probing: bool,
    /// The time when the chunk was sent; `None` if it is due.
    sent: Option<Time>,
}

impl Senders {
    pub(super) fn new(stored: Arc<Stored>) -> Self {
        Self {
            stored,
            routes: Arc::default(),
            routed: 0,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            meter: Meter::default(),
        }
    }

    /// A replica needs a snapshot. One that is being sent to it already in this epoch goes on.
    pub(super) fn want<E: Env>(&mut self, hub: &Shared<E>, transfer: Transfer) {
        let Transfer { shard, from, to, .. } = transfer;
        if let Some(sending) = self.running.get_mut(&(shard, to)) {
            if sending.transfer == transfer {
                if let Stage::Sending(file) = &mut sending.stage {
                    (file.is_probing, file.sent) = (true, None);
                    let sent = Input::SnapshotSent { to, base: file.name.base };
                    hub.push_replica_of(shard, from, sent);
                }
                return;
            }
            self.running.remove(&(shard, to));
        }
        self.waiting.retain(|waiting| (waiting.shard, waiting.to) != (shard, to));
        self.waiting.push_back(transfer);
    }

    fn running(&mut self, transfer: Transfer) -> Option<&mut Sending> {
        let running = self.running.get_mut(&(transfer.shard, transfer.to));
        running.filter(|sending| sending.transfer == transfer)
    }

    /// Begins to send the newest snapshot that the primary's log holds and has committed. Without one its worker takes one first.
    pub(super) fn begin<E: Env>(
        &mut self,
        hub: &Shared<E>,
        now: Time,
        transfer: Transfer,
        log: (&EpochTable, Index),
    ) {
        let found = self.find(transfer, log);
        let Some(sending) = self.running(transfer) else { return };
        sending.progress = now;
        let Transfer { shard, from, to, .. } = transfer;
        sending.stage = match found {
            Ok(Some(file)) => {
                hub.push_replica_of(shard, from, Input::SnapshotSent { to, base: file.name.base });
                Stage::Sending(file)
            }
            Ok(None) => {
                hub.inboxes[hub.worker_of(shard)].push(Command::TakeSnapshot { shard, replica: from });
                Stage::Asked
            }
            Err(error) => failed(transfer, &error),
        };
    }

    fn find(
        &self,
        transfer: Transfer,
        (table, commit): (&EpochTable, Index),
    ) -> Result<Option<File>, StoreError> {
        let Transfer { shard, from: replica, .. } = transfer;
        let is_fit = |(_, name): &(Source, SnapshotName)| {
            (name.shard, name.replica) == (shard, replica)
                && name.base.index <= commit
                && table.has(name.base)
        };
        let names = self.stored.snapshots.names()?.into_iter().filter(is_fit);
        let Some((source, name)) = names.max_by_key(|(_, name)| name.base) else { return Ok(None) };
        let reader = self.stored.snapshots.open(source, name)?;
        Ok(Some(File { source, name, reader, offset: 0, best: 0, is_probing: true, sent: None }))
    }

    /// A shard has a new snapshot: transfers that wait for one begin with it.
    pub(super) fn look_again<E: Env>(&self, hub: &Shared<E>, shard: ShardId) {
        let of_shard = self.running.values().filter(|one| one.transfer.shard == shard);
        for sending in of_shard.filter(|one| matches!(one.stage, Stage::Asked)) {
            hub.inboxes[hub.worker_of(shard)].push(Command::SendSnapshot(sending.transfer));
        }
    }

    /// Whether a snapshot is being sent.
    pub(super) fn sends(&self, (source, name): &(Source, SnapshotName)) -> bool {
        let is_it = |file: &File| (file.source, file.name) == (*source, *name);
        self.running.values().any(|one| matches!(&one.stage, Stage::Sending(file) if is_it(file)))
    }

    /// The receiver has the snapshot up to a position; returns whether that is all of it.
    pub(super) fn note_received<E: Env>(
        &mut self,
        hub: &Shared<E>,
        now: Time,
        transfer: Transfer,
        received: &Received,
    ) -> bool {
        let Some(sending) = self.running(transfer) else { return false };
        let Stage::Sending(file) = &mut sending.stage else { return false };
        let (bytes, total) = (received.bytes, file.reader.size());
        if received.base != file.name.base || bytes > total || (!file.is_probing && bytes <= file.offset) {
            return false;
        }
        if bytes > file.best {
            (file.best, sending.progress) = (bytes, now);
        }
        (file.offset, file.is_probing, file.sent) = (bytes, false, None);
        let is_whole = bytes == total;
        if is_whole {
            let Transfer { shard, from, to, .. } = transfer;
            hub.push_replica_of(shard, from, Input::SnapshotReceived { to, base: file.name.base });
            self.running.remove(&(shard, to));
        }
        is_whole
    }

    /// The primary of a shard leads an epoch no more.
    pub(super) fn end(&mut self, shard: ShardId, epoch: Epoch) {
        let is_over = |transfer: &Transfer| transfer.shard == shard && transfer.epoch <= epoch;
        self.waiting.retain(|waiting| !is_over(waiting));
        self.running.retain(|_, sending| !is_over(&sending.transfer));
    }

    /// A replica of this node is gone for ever.
    pub(super) fn drop_replica(&mut self, shard: ShardId, replica: ReplicaId) {
        let is_of = |transfer: &Transfer| transfer.shard == shard && transfer.from <= replica;
        self.waiting.retain(|waiting| !is_of(waiting));
        self.running.retain(|_, sending| !is_of(&sending.transfer));
    }

    /// Begins those that have their turn, sends the chunks that are due, and gives up those that stand still; returns when it is due
    /// again.
    pub(super) fn step<E: Env>(&mut self, hub: &Shared<E>, now: Time) -> Option<Time> {
        if let Some(routes) = hub.routes.newer_than(&mut self.routed) {
            self.routes = routes;
        }
        let stalled: Vec<Transfer> = self
            .running
            .values()
            .filter(|one| now >= one.progress.plus(STALL_MAX))
            .map(|one| one.transfer)
            .collect();
        for Transfer { shard, from, to, .. } in stalled {
            self.running.remove(&(shard, to));
            // Its replica asks what the other one lacks, and wants a snapshot again.
            hub.push_replica_of(shard, from, Input::Connected(to));
        }
        self.begin_waiting(hub, now);
        let rate = hub.snapshots.pace.rate();
        let mut due = None;
        for sending in self.running.values_mut() {
            let next = sending.step(hub, now, &self.routes, (&mut self.meter, rate));
            due = due.into_iter().chain([next]).min();
        }
        due
    }

    fn begin_waiting<E: Env>(&mut self, hub: &Shared<E>, now: Time) {
        while self.running.len() < RUNNING_MAX {
            let Some(transfer) = self.waiting.pop_front() else { return };
            let sending = Sending { transfer, progress: now, stage: Stage::Asked };
            self.running.insert((transfer.shard, transfer.to), sending);
            hub.inboxes[hub.worker_of(transfer.shard)].push(Command::SendSnapshot(transfer));
        }
    }
}

impl Sending {
    /// Sends the chunk that is due; returns when it is due again.
    fn step<E: Env>(
        &mut self,
        hub: &Shared<E>,
        now: Time,
        routes: &Routes,
        (meter, rate): (&mut Meter, u64),
    ) -> Time {
        let Self { transfer, progress, stage } = self;
        let stalls = progress.plus(STALL_MAX);
        let Stage::Sending(file) = stage else { return stalls };
        if let Some(sent) = file.sent
            && now >= sent.plus(RESEND)
        {
            (file.is_probing, file.sent) = (true, None);
        }
        if let Some(sent) = file.sent {
            return sent.plus(RESEND).min(stalls);
        }
        if let Some(until) = meter.held_until(rate, now) {
            return until.min(stalls);
        }
        let (total, offset) = (file.reader.size(), file.offset);
        let mut bytes = vec![0; (total - offset).min(hub.sizes.chunk_bytes as u64) as usize];
        if let Err(error) = file.reader.read_at(&mut bytes, offset) {
            *stage = failed(*transfer, &error);
            return stalls;
        }
        file.sent = Some(now);
        meter.spend(rate, now, bytes.len() as u64);
        let Transfer { shard, from, to, epoch } = *transfer;
        // Without a route it is lost.
        if let Some(&node) = routes.get(&shard).and_then(|route| route.replicas.get(&to)) {
            let chunk = Chunk { epoch, base: file.name.base, total, offset, bytes: Bytes::from(bytes) };
            hub.peers.leave(node, &mut vec![PeerMessage::Chunk(Route { shard, from, to }, chunk)]);
        }
        now.plus(RESEND).min(stalls)
    }
}

fn failed(transfer: Transfer, error: &dyn Display) -> Stage {
    let Transfer { shard, to, .. } = transfer;
    events::warn(format_args!(
        "shard {shard}: a snapshot for replica {to} cannot be sent: {error}; it is tried again in a while"
    ));
    Stage::Failed
}
