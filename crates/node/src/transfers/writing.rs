//! Snapshots that the workers take of this node's replicas.

use super::desk::Taken;
use crate::env::Env;
use crate::events;
use crate::inbox::Command;
use crate::shared::Shared;
use crate::worker::Stored;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use stead_core::checkpointing::pace::Meter;
use stead_core::ids::{ReplicaId, ShardId, Time};
use stead_core::state::Header;
use stead_store::checkpoint::bundle::Author;
use stead_store::checkpoint::store::StoreError;
use stead_store::snapshots::{SnapshotName, SnapshotWriter, Source};

/// The snapshots that are being written, by shard, and the newest ones, which replace the older ones.
pub(super) struct Writers {
    stored: Arc<Stored>,
    author: Author,
    running: BTreeMap<ShardId, Writing>,
    /// By shard, the newest snapshot: all older ones are removed once they are not sent.
    newest: BTreeMap<ShardId, SnapshotName>,
    meter: Meter,
    /// Empty, with capacity.
    buffer: Vec<u8>,
}

struct Writing {
    name: SnapshotName,
    header: Box<Header>,
    /// `None` once it has failed.
    writer: Option<SnapshotWriter>,
}

impl Writers {
    pub(super) fn new(stored: Arc<Stored>, author: Author) -> Self {
        let (running, newest) = (BTreeMap::new(), BTreeMap::new());
        Self { stored, author, running, newest, meter: Meter::default(), buffer: Vec::new() }
    }

    /// Returns the time until which nothing may be written; `None` if the next step may be taken.
    pub(super) fn held_until<E: Env>(&self, hub: &Shared<E>, now: Time) -> Option<Time> {
        self.meter.held_until(hub.snapshots.pace.rate(), now)
    }

    pub(super) fn handle<E: Env>(&mut self, hub: &Shared<E>, now: Time, taken: Taken) {
        match taken {
            Taken::Begun { name, header } => {
                // Before the new one may have the same name.
                self.running.remove(&name.shard);
                let incarnation = self.stored.belonging.incarnation;
                let begun = self.stored.snapshots.begin(Source::Own, name, self.author, incarnation);
                let writer = begun.map_err(|error| warn(name, &error)).ok();
                self.running.insert(name.shard, Writing { name, header, writer });
            }
            Taken::Records { name, piece } => {
                let mut buffer = std::mem::take(&mut self.buffer);
                if let Some(Writing { header, writer, .. }) = self.running(name)
                    && let Some(open) = writer
                {
                    piece.encode(&mut buffer);
                    header.add(piece.messages());
                    if let Err(error) = open.records(&buffer) {
                        warn(name, &error);
                        *writer = None;
                    }
                }
                self.meter.spend(hub.snapshots.pace.rate(), now, buffer.len() as u64);
                buffer.clear();
                self.buffer = buffer;
                // Its worker holds back while much waits here.
                hub.inboxes[hub.worker_of(name.shard)].bell.ring();
            }
            Taken::Whole(name) => {
                let Some(writing) = self.end(name) else { return };
                let is_durable = writing.writer.is_some_and(|writer| {
                    let finished = writer.finish(&writing.header);
                    if let Err(error) = &finished {
                        warn(name, error);
                        // It may have got its name.
                        self.remove((Source::Own, name));
                    }
                    finished.is_ok()
                });
                let written = Command::SnapshotWritten { name, is_durable };
                hub.inboxes[hub.worker_of(name.shard)].push(written);
            }
            Taken::Dropped(name) => {
                self.end(name);
            }
        }
    }

    fn running(&mut self, name: SnapshotName) -> Option<&mut Writing> {
        self.running.get_mut(&name.shard).filter(|writing| writing.name == name)
    }

    /// Ends the writing of a snapshot, if it runs.
    fn end(&mut self, name: SnapshotName) -> Option<Writing> {
        self.running(name)?;
        self.running.remove(&name.shard)
    }

    /// A snapshot is the newest of its shard from now on.
    pub(super) fn supersede(&mut self, name: SnapshotName) {
        self.newest.insert(name.shard, name);
    }

    /// Removes the snapshots of a shard that are older than the newest one, unless they are being sent.
    pub(super) fn remove_older(&self, shard: ShardId, is_sent: impl Fn(&(Source, SnapshotName)) -> bool) {
        let Some(newest) = self.newest.get(&shard) else { return };
        let key = |name: &SnapshotName| (name.replica, name.base.index);
        self.remove_all(shard, |(source, name)| key(name) < key(newest) && !is_sent(&(*source, *name)));
    }

    /// Removes the snapshots of a replica that is gone for ever, and of those before it.
    pub(super) fn remove_replica(&mut self, shard: ShardId, replica: ReplicaId) {
        if self.running.get(&shard).is_some_and(|writing| writing.name.replica <= replica) {
            self.running.remove(&shard);
        }
        self.remove_all(shard, |(_, name)| name.replica <= replica);
    }

    fn remove_all(&self, shard: ShardId, is_old: impl Fn(&(Source, SnapshotName)) -> bool) {
        match self.stored.snapshots.names() {
            Ok(names) => {
                let of_shard = names.into_iter().filter(|(_, name)| name.shard == shard);
                of_shard.filter(is_old).for_each(|old| self.remove(old));
            }
            Err(error) => warn_of_old(shard, &error),
        }
    }

    fn remove(&self, (source, name): (Source, SnapshotName)) {
        if let Err(error) = self.stored.snapshots.remove(source, name) {
            warn_of_old(name.shard, &error);
        }
    }
}

fn warn(name: SnapshotName, error: &dyn Display) {
    events::warn(format_args!(
        "shard {}: its snapshot cannot be written: {error}; another one is taken in a while, and the log is kept until then",
        name.shard
    ));
}

fn warn_of_old(shard: ShardId, error: &StoreError) {
    events::warn(format_args!(
        "shard {shard}: a snapshot that is not needed stays on the disk for now: {error}"
    ));
}
