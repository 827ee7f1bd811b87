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
use stead_core::ids::{Epoch, Micros, ReplicaId, ShardId, Time};
use stead_core::records::Piece;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Input;
use stead_core::state::Header;
use stead_net::replica::{Chunk, Received, Route};
use stead_store::checkpoint::bundle::Author;
use stead_store::checkpoint::store::BlobReader;
use stead_store::snapshots::{SnapshotName, SnapshotWriter};

/// Transfers that run at once. The others wait.
const RUNNING_MAX: usize = 4;
/// The time after which a chunk that was not reported is sent again.
const RESEND: Micros = Micros::from_millis(250);
/// The time without progress after which a transfer is given up, and begun anew in its turn.
const STALL_MAX: Micros = Micros::from_secs(10);

/// The transfers from this node: those that run by shard and receiver, and those that wait.
pub(super) struct Senders {
    stored: Arc<Stored>,
    author: Author,
    routes: Arc<Routes>,
    /// The version of `routes`.
    routed: u64,
    running: BTreeMap<(ShardId, ReplicaId), Sending>,
    waiting: VecDeque<Transfer>,
    meter: Meter,
    /// Empty, with capacity.
    buffer: Vec<u8>,
}

struct Sending {
    transfer: Transfer,
    /// The time of the last progress.
    progress: Time,
    stage: Stage,
}

enum Stage {
    /// The worker is asked for the snapshot.
    Asked,
    Writing {
        name: SnapshotName,
        header: Box<Header>,
        writer: SnapshotWriter,
    },
    Sending(File),
    /// It cannot be written or read, and waits to be given up.
    Failed,
}

/// A snapshot that is being sent.
struct File {
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
    pub(super) fn new(stored: Arc<Stored>, author: Author) -> Self {
        Self {
            stored,
            author,
            routes: Arc::default(),
            routed: 0,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            meter: Meter::default(),
            buffer: Vec::new(),
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
            self.drop_running(shard, to);
        }
        self.waiting.retain(|waiting| (waiting.shard, waiting.to) != (shard, to));
        self.waiting.push_back(transfer);
    }

    fn running(&mut self, transfer: Transfer) -> Option<&mut Sending> {
        let running = self.running.get_mut(&(transfer.shard, transfer.to));
        running.filter(|sending| sending.transfer == transfer)
    }

    /// The snapshot has begun. One that had begun before takes no more.
    pub(super) fn begin(&mut self, now: Time, transfer: Transfer, header: Box<Header>) {
        let position = header.position;
        let base = LogPoint { epoch: position.epoch, index: position.index };
        let name = SnapshotName { shard: transfer.shard, replica: transfer.to, base };
        let (stored, author) = (Arc::clone(&self.stored), self.author);
        let Some(sending) = self.running(transfer) else { return };
        sending.progress = now;
        // Before the new one has the same name.
        sending.stage = Stage::Asked;
        let begun = stored.snapshots.begin_sent(name, author, stored.belonging.incarnation);
        sending.stage = match begun {
            Ok(writer) => Stage::Writing { name, header, writer },
            Err(error) => failed(transfer, &error),
        };
    }

    /// The next records of the snapshot.
    pub(super) fn write(&mut self, now: Time, transfer: Transfer, piece: &Piece) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some(sending) = self.running(transfer)
            && let Stage::Writing { header, writer, .. } = &mut sending.stage
        {
            piece.encode(&mut buffer);
            header.add(piece.messages());
            sending.progress = now;
            if let Err(error) = writer.records(&buffer) {
                sending.stage = failed(transfer, &error);
            }
        }
        buffer.clear();
        self.buffer = buffer;
    }

    /// The snapshot is whole and committed.
    pub(super) fn finish(&mut self, now: Time, transfer: Transfer) {
        let stored = Arc::clone(&self.stored);
        let Some(sending) = self.running(transfer) else { return };
        let stage = std::mem::replace(&mut sending.stage, Stage::Failed);
        let Stage::Writing { name, header, writer } = stage else {
            sending.stage = stage;
            return;
        };
        sending.progress = now;
        let opened = writer.finish(&header).and_then(|()| Ok(stored.snapshots.open_sent(name)?));
        sending.stage = match opened {
            Ok(reader) => {
                Stage::Sending(File { name, reader, offset: 0, best: 0, is_probing: true, sent: None })
            }
            Err(error) => failed(transfer, &error),
        };
    }

    /// The receiver has the snapshot up to a position.
    pub(super) fn note_received(&mut self, now: Time, transfer: Transfer, received: &Received) {
        let Some(sending) = self.running(transfer) else { return };
        let Stage::Sending(file) = &mut sending.stage else { return };
        let (bytes, total) = (received.bytes, file.reader.size());
        if received.base != file.name.base || bytes > total || (!file.is_probing && bytes <= file.offset) {
            return;
        }
        if bytes > file.best {
            (file.best, sending.progress) = (bytes, now);
        }
        (file.offset, file.is_probing, file.sent) = (bytes, false, None);
        if bytes == total {
            self.drop_running(transfer.shard, transfer.to);
        }
    }

    /// The primary of a shard leads an epoch no more.
    pub(super) fn end(&mut self, shard: ShardId, epoch: Epoch) {
        let is_over = |transfer: &Transfer| transfer.shard == shard && transfer.epoch <= epoch;
        self.waiting.retain(|waiting| !is_over(waiting));
        let over: Vec<ReplicaId> = self
            .running
            .values()
            .map(|sending| sending.transfer)
            .filter(is_over)
            .map(|over| over.to)
            .collect();
        over.into_iter().for_each(|to| self.drop_running(shard, to));
    }

    fn drop_running(&mut self, shard: ShardId, to: ReplicaId) {
        let Some(Sending { stage: Stage::Sending(file), .. }) = self.running.remove(&(shard, to)) else {
            return;
        };
        let name = file.name;
        drop(file);
        if let Err(error) = self.stored.snapshots.remove_sent(name) {
            events::warn(format_args!(
                "a snapshot that was sent stays on the disk until the next start: {error}"
            ));
        }
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
            self.drop_running(shard, to);
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
            // A shard takes one snapshot at a time.
            let takes = |shard: ShardId| {
                let of_shard = self.running.range((shard, ReplicaId(0))..=(shard, ReplicaId(u64::MAX)));
                of_shard.into_iter().any(|(_, one)| matches!(one.stage, Stage::Asked | Stage::Writing { .. }))
            };
            let Some(at) = self.waiting.iter().position(|waiting| !takes(waiting.shard)) else { return };
            let transfer = self.waiting.remove(at).expect("it was found there");
            let sending = Sending { transfer, progress: now, stage: Stage::Asked };
            self.running.insert((transfer.shard, transfer.to), sending);
            hub.inboxes[hub.worker_of(transfer.shard)].push(Command::TakeSnapshot(transfer));
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
        "shard {shard}: a snapshot for replica {to} cannot be sent: {error}; another one is taken in a while"
    ));
    Stage::Failed
}
