//! Restores a checkpoint onto the same or another number of shards, as a new incarnation.
//!
//! Records move with their process. Sessions, the replies that are kept for them and counted attempts are dropped.
//! Messages in flight get new numbers in new channels. The result is a complete checkpoint of the new incarnation in an
//! empty store. Its manifest is written last, so that an interrupted restore leaves no checkpoint.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::bundle::{Author, BundleNames, BundleWriter, Origin};
use crate::checkpoint::load::{Bundles, LoadedPart};
use crate::checkpoint::manifest::{MANIFESTS, Manifest, manifest_name};
use crate::checkpoint::store::BlobStore;
use crate::checkpoint::verify::{Inconsistency, undelivered, verify_cut};
use crate::checkpoint::write::describe;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::blob::Blob;
use stead_core::channel::Message;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::ids::{
    IDS_PER_ENTRY, Incarnation, Index, Seq, ServiceId, ShardId, TaskId, Time, TimerId, id_of_entry,
};
use stead_core::record::{DeadLetter, Kind, RecordKey, TaskRecord, TimerRecord, decode_value};
use stead_core::records::{Records, encode_record};
use stead_core::state::{Header, Position};
use stead_core::topology::{Topology, TopologyError};
use thiserror::Error;

/// The settings of a restore.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The new incarnation of the cluster; it must be greater than the checkpoint's.
    pub incarnation: Incarnation,
    /// New numbers of shards by service. Services that are not named keep theirs.
    pub shards: BTreeMap<String, u32>,
    /// The current time.
    pub created: Time,
}

/// Progress of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of old shards that are complete.
    pub shards: usize,
    /// Number of all old shards.
    pub shards_all: usize,
    /// Number of records written so far.
    pub records: u64,
    /// Number of bytes written so far.
    pub bytes: u64,
}

/// The result of a restore.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The new checkpoint; it has the old one's number.
    pub manifest: Manifest,
    /// The new topology.
    pub topology: Topology,
    /// Number of restored records.
    pub records: u64,
    /// Number of restored messages in flight.
    pub messages: u64,
    /// Number of sessions that were dropped.
    pub sessions_ended: u64,
    /// Number of timers, tasks and dead letters that got a new id, because another shard had used the same id.
    pub renumbered: u64,
}

/// Reasons for which a checkpoint was not restored. The target then has no checkpoint.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The target is not empty.
    #[error("the target already has {name}; restore into an empty directory")]
    NotEmpty {
        /// An object of the target.
        name: String,
    },
    /// The new incarnation is not greater than the checkpoint's.
    #[error("incarnation {new} does not come after {old}, which the checkpoint is of; choose a greater one")]
    Incarnation {
        /// The checkpoint's.
        old: Incarnation,
        /// The requested one.
        new: Incarnation,
    },
    /// A number of shards was requested for a service that the checkpoint does not have.
    #[error(
        "the checkpoint has no service {service}, for which {shards} shards were requested; it has: {known}"
    )]
    UnknownService {
        /// The service.
        service: String,
        /// The requested number of shards.
        shards: u32,
        /// The services of the checkpoint.
        known: String,
    },
    /// A number of shards is out of range.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The checkpoint is not a consistent cut.
    #[error("checkpoint is inconsistent: {}; restore another one", .0[0])]
    Inconsistent(Vec<Inconsistency>),
    /// The checkpoint cannot be read, or the target cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Restores a checkpoint into an empty store, as a checkpoint of the cluster and the node in `names`.
///
/// # Errors
/// [`RestoreError`]; the target then has no checkpoint.
pub fn restore(
    source: &dyn BlobStore,
    manifest: &Manifest,
    target: &dyn BlobStore,
    names: &BundleNames,
    options: &Restore,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, RestoreError> {
    for dir in [MANIFESTS, "bundles/"] {
        if let Some(name) = target.list(dir).map_err(CheckpointError::from)?.into_iter().next() {
            return Err(RestoreError::NotEmpty { name });
        }
    }
    if options.incarnation <= manifest.incarnation {
        return Err(RestoreError::Incarnation { old: manifest.incarnation, new: options.incarnation });
    }
    let old = manifest.topology()?;
    let new = new_topology(&old, options)?;
    let bundles = Bundles::open(source, manifest)?;
    let headers = manifest.parts.iter().map(|part| bundles.header(part)).collect::<Result<Vec<_>, _>>()?;
    let found = verify_cut(&old, manifest.number, &headers);
    if !found.is_empty() {
        return Err(RestoreError::Inconsistent(found));
    }
    let (author, number) = (names.author(), manifest.number);
    let origin = Origin { author, incarnation: options.incarnation, number };
    let out = BundleWriter::create(target, names.draw(number), origin, 0)?;
    let mut router = Router::new(&old, &new, manifest, &headers, (author, out));
    for (done, part) in manifest.parts.iter().enumerate() {
        let loaded = bundles.load(&[part])?.pop().expect("one part was asked for");
        router.take(loaded)?;
        progress(Progress {
            shards: done + 1,
            shards_all: manifest.parts.len(),
            records: router.records,
            bytes: router.out.bytes(),
        });
    }
    router.route_messages(&headers);
    Ok(router.finish(options, target)?)
}

fn new_topology(old: &Topology, options: &Restore) -> Result<Topology, RestoreError> {
    if let Some((service, shards)) = options.shards.iter().find(|(name, _)| old.service_id(name).is_none()) {
        let known: Vec<&str> = old.services().iter().map(|service| service.name.as_str()).collect();
        let (service, shards, known) = (service.clone(), *shards, known.join(", "));
        return Err(RestoreError::UnknownService { service, shards, known });
    }
    let mut new = Topology::new(options.incarnation);
    for service in old.services() {
        new.ensure(&service.name, options.shards.get(&service.name).copied().unwrap_or(service.shards))?;
    }
    Ok(new)
}

/// A new shard while its records are collected.
struct Target {
    header: Header,
    hash: u128,
    /// Records that are not written yet.
    pending: Vec<u8>,
    /// The keys of its numbered records, whose numbers must be unique.
    numbered: BTreeSet<RecordKey>,
    /// The index of the last drawn numbers; at first the last index of the old shards.
    index: Index,
    /// Number of ids drawn from `index`.
    drawn: u64,
}

/// Passes the records and messages of old shards to the new shards of their processes.
struct Router<'a> {
    old: &'a Topology,
    new: &'a Topology,
    manifest: &'a Manifest,
    author: Author,
    out: BundleWriter,
    targets: Vec<Target>,
    /// Holds one record at a time, to compute its hash.
    scratch: Records,
    records: u64,
    messages: u64,
    sessions_ended: u64,
    renumbered: u64,
}

/// Bytes of a new shard that are written together.
const PENDING_BYTES: usize = 256 << 10;

impl<'a> Router<'a> {
    fn new(
        old: &'a Topology,
        new: &'a Topology,
        manifest: &'a Manifest,
        headers: &[Header],
        (author, out): (Author, BundleWriter),
    ) -> Self {
        let target = |shard: ShardId| {
            let service = new.service_of(shard).expect("a shard of this topology");
            let position = position(old, new, service, shard, headers);
            let header = Header {
                shard,
                position,
                outboxes: BTreeMap::new(),
                received: BTreeMap::new(),
                records: 0,
                records_hash: [0; 16],
            };
            let index = position.index;
            Target { header, hash: 0, pending: Vec::new(), numbered: BTreeSet::new(), index, drawn: 0 }
        };
        let targets = new.shards().map(target).collect();
        Self {
            old,
            new,
            manifest,
            author,
            out,
            targets,
            scratch: Records::new(),
            records: 0,
            messages: 0,
            sessions_ended: 0,
            renumbered: 0,
        }
    }

    fn damaged(&self, reason: String) -> CheckpointError {
        CheckpointError::damaged(&manifest_name(self.manifest.number), reason)
    }

    /// Returns the service of an old shard. Services keep their order, and therefore their ids.
    fn service(&self, old: ShardId) -> ServiceId {
        self.old.service_of(old).expect("the cut was verified")
    }

    fn target(&self, old: ShardId, process: &str) -> usize {
        self.new.shard_of(self.service(old), process).0 as usize
    }

    fn take(&mut self, part: LoadedPart) -> Result<(), CheckpointError> {
        let shard = part.header.shard;
        // The first record with a number keeps it, so numbered records are handled in their order.
        let mut numbered: BTreeMap<RecordKey, Blob> = BTreeMap::new();
        for (bytes, value) in part.records.iter() {
            let key = RecordKey::from_bytes(bytes)
                .ok_or_else(|| self.damaged(format!("shard {shard} has a record with an invalid key")))?;
            match key.kind() {
                Kind::Process | Kind::Cell | Kind::Idempotency => {
                    let process = key.process_key().ok_or_else(|| {
                        self.damaged(format!("shard {shard}: record {key:?} names no process"))
                    })?;
                    let target = self.target(shard, process);
                    self.put(target, key.as_bytes(), value)?;
                }
                Kind::Timer | Kind::Task | Kind::DeadLetter => drop(numbered.insert(key, value.clone())),
                Kind::Session => self.sessions_ended += 1,
                Kind::Reply | Kind::Attempt => {}
            }
        }
        for (key, value) in numbered {
            let process = self.process_of(shard, &key, &value)?;
            let target = self.target(shard, &process);
            let kept = self.keep_number(target, key);
            self.put(target, kept.as_bytes(), &value)?;
        }
        Ok(())
    }

    /// Returns the process that a timer, task or dead letter belongs to, by its value.
    fn process_of(&self, shard: ShardId, key: &RecordKey, value: &[u8]) -> Result<String, CheckpointError> {
        let process = match key.kind() {
            Kind::Timer => decode_value::<TimerRecord>(value).map(|record| record.process),
            Kind::Task => decode_value::<TaskRecord>(value).map(|record| record.process),
            _ => decode_value::<DeadLetter>(value).map(|record| record.process),
        };
        let process = process
            .map_err(|error| self.damaged(format!("shard {shard}: cannot read record {key:?}: {error}")))?;
        Ok(process.to_string())
    }

    /// Returns the key of a numbered record. It changes only if another shard's record has the same number, because
    /// processes may store the ids of their timers and tasks.
    fn keep_number(&mut self, target: usize, key: RecordKey) -> RecordKey {
        let target = &mut self.targets[target];
        if target.numbered.insert(key.clone()) {
            return key;
        }
        self.renumbered += 1;
        let dead_letter = key.kind() == Kind::DeadLetter;
        if target.drawn == 0 || target.drawn == IDS_PER_ENTRY || dead_letter {
            target.index = target.index.next();
            target.drawn = 0;
        }
        let number = id_of_entry(target.index, target.drawn);
        target.drawn += 1;
        let key = match key.kind() {
            Kind::Timer => RecordKey::timer(TimerId(number)),
            Kind::Task => RecordKey::task(TaskId(number)),
            _ => RecordKey::dead_letter(target.index),
        };
        target.numbered.insert(key.clone());
        key
    }

    fn put(&mut self, target: usize, key: &[u8], value: &Blob) -> Result<(), CheckpointError> {
        self.scratch.put(key, value.clone());
        let target = &mut self.targets[target];
        target.hash = target.hash.wrapping_add(self.scratch.hash());
        self.scratch.remove(key);
        target.header.records += 1;
        self.records += 1;
        encode_record(key, Some(value), &mut target.pending);
        if target.pending.len() >= PENDING_BYTES {
            self.out.records(target.header.shard, &target.pending)?;
            target.pending.clear();
        }
        Ok(())
    }

    /// Puts the messages in flight into new channels, ordered by their old sender, then in the order of sending.
    fn route_messages(&mut self, headers: &[Header]) {
        for sender in headers {
            let mut messages: Vec<(ShardId, &Message)> = Vec::new();
            for (&to, outbox) in &sender.outboxes {
                let received =
                    headers[to.0 as usize].received.get(&sender.shard).copied().unwrap_or_default();
                messages.extend(undelivered(outbox, received).map(|message| (to, message)));
            }
            messages.sort_by_key(|(to, message)| (message.index, *to, message.seq));
            for (to, message) in messages {
                let from = self.target(sender.shard, &message.sender);
                let to = ShardId(self.target(to, &message.process) as u32);
                let target = &mut self.targets[from];
                let position = target.header.position;
                let outbox = target.header.outboxes.entry(to).or_default();
                outbox.messages.push_back(Message {
                    seq: outbox.next,
                    epoch: position.epoch,
                    index: position.index,
                    ..message.clone()
                });
                outbox.next = Seq(outbox.next.0 + 1);
                self.messages += 1;
            }
        }
    }

    fn finish(mut self, options: &Restore, store: &dyn BlobStore) -> Result<Restored, CheckpointError> {
        let mut headers = Vec::with_capacity(self.targets.len());
        for mut target in self.targets {
            let shard = target.header.shard;
            self.out.base(shard);
            self.out.records(shard, &target.pending)?;
            target.header.records_hash = target.hash.to_be_bytes();
            // The shard must not draw these numbers again.
            target.header.position.index = target.index;
            self.out.header(&target.header)?;
            headers.push(target.header);
        }
        let (bundle, sections) = self.out.finish()?;
        let mut lineage = Lineage::new();
        lineage.append(&bundle, sections.iter().map(|(shard, section)| (*shard, section.added())));
        let number = self.manifest.number;
        let manifest = describe(self.new, number, options.created, self.author, &bundle, &headers, &lineage);
        manifest.store(store)?;
        Ok(Restored {
            manifest,
            topology: self.new.clone(),
            records: self.records,
            messages: self.messages,
            sessions_ended: self.sessions_ended,
            renumbered: self.renumbered,
        })
    }
}

/// Returns the position at which a new shard's log begins: that of its own marker if its service keeps its number of
/// shards, otherwise the greatest of the markers of the service's shards.
fn position(
    old: &Topology,
    new: &Topology,
    service: ServiceId,
    shard: ShardId,
    headers: &[Header],
) -> Position {
    let (before, after) = (old.service(service), new.service(service));
    let parts = &headers[before.first.0 as usize..(before.first.0 + before.shards) as usize];
    let same = before.shards == after.shards;
    let parts = if same { &parts[(shard.0 - after.first.0) as usize..][..1] } else { parts };
    let mut position = Position::default();
    // Expiry times move with their process. A record may expire late but not early, so served time continues from the
    // lowest.
    position.served = match parts {
        [part] => part.position.served,
        parts => parts.iter().map(|part| part.position.served()).min(),
    };
    for part in parts {
        position.index = position.index.max(part.position.index);
        position.epoch = position.epoch.max(part.position.epoch);
        position.time = position.time.max(part.position.time);
        position.colour = position.colour.max(part.position.colour);
    }
    position
}
