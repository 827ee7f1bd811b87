//! Manifests and tombstones. One JSON object decides a number: a manifest makes it a checkpoint, a tombstone gives it up.
//!
//! The file is `{"stead":"…","format":2,"checksum":"…","body":{…}}` without any white space around it; the checksum
//! covers the bytes of the body.

use crate::checkpoint::bundle::BundleRef;
use crate::checkpoint::store::{BlobStore, Put};
use crate::checkpoint::{Belonging, CheckpointError, check_cluster};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
pub use stead_core::checkpointing::bundle::SectionRef;
use stead_core::checkpointing::bundle::{Hash, first_node, is_first_node};
use stead_core::checkpointing::lineage::Lineage;
use stead_core::ids::{
    CheckpointNumber, ClusterId, Colour, Epoch, Incarnation, Index, NodeId, ShardId, Time,
};
use stead_core::topology::Topology;
use xxhash_rust::xxh3::xxh3_128;

/// The version of the format of manifests and tombstones. Version 1 names no cluster, and is of its first node.
pub const MANIFEST_VERSION: u32 = 2;
/// Maximum number of bytes of a manifest.
pub const MANIFEST_MAX: u64 = 256 << 20;
/// The directory of manifests and tombstones.
pub const MANIFESTS: &str = "manifests/";

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The cluster, as in the data directory's metadata; `None` in a manifest of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// The life of the cluster.
    pub incarnation: Incarnation,
    /// Its number, which is the colour of all parts.
    pub number: CheckpointNumber,
    /// When it began, in microseconds since the Unix epoch.
    pub created: Time,
    /// The life of the process that wrote it.
    pub writer: u64,
    /// The services and their shards.
    pub services: Vec<ServiceShards>,
    /// The bundles that parts refer to, the oldest first.
    pub bundles: Vec<BundleRef>,
    /// One part for each shard of the checkpoint, in the order of their ids. Other shards of the services have their parts
    /// elsewhere.
    pub parts: Vec<Part>,
    /// Channels with messages in flight, by sender, then receiver.
    pub in_flight: Vec<InFlight>,
    /// Sums over all parts.
    pub totals: Totals,
    /// The results of the checks that services declare, if they were run before the manifest was written; later results are
    /// in an object of their own: [`crate::checkpoint::checks`].
    pub checks: Vec<CheckResult>,
}

/// A service in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceShards {
    /// Its name.
    pub name: String,
    /// The number of its shards.
    pub shards: u32,
}

/// A shard's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The shard.
    pub shard: ShardId,
    /// The node that led the shard and wrote the part; left out of the file if it is the first node.
    #[serde(default = "first_node", skip_serializing_if = "is_first_node")]
    pub node: NodeId,
    /// The epoch of its marker, in which that node led the shard: a part of another one does not count.
    pub epoch: Epoch,
    /// The index of its marker.
    pub index: Index,
    /// The shard's time at its marker.
    pub time: Time,
    /// The shard's colour: the number of the checkpoint.
    pub colour: Colour,
    /// The state hash at the marker.
    pub hash: Hash,
    /// The number of records.
    pub records: u64,
    /// The sum of their hashes.
    pub records_hash: Hash,
    /// The position in `bundles` of the one that holds the part's header.
    pub header: u32,
    /// The sections with its records, the oldest first; a newer record replaces an older one.
    pub sections: Vec<SectionRef>,
}

/// Messages of one channel that were sent and not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    /// The sender.
    pub from: ShardId,
    /// The receiver.
    pub to: ShardId,
    /// The number of messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// Sums over all parts of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Records.
    pub records: u64,
    /// Bytes of all sections, those of replaced records too.
    pub section_bytes: u64,
    /// Bytes that this checkpoint wrote, without its manifest.
    pub written_bytes: u64,
    /// Messages in flight.
    pub messages: u64,
    /// Bytes of their payloads.
    pub message_bytes: u64,
}

/// The result of the check that a service declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckResult {
    /// The service.
    pub service: String,
    /// The violation; `None` if the check holds.
    pub failure: Option<String>,
    /// The reason that the check was not run; `None` if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// The object that gives a number up: it will never be a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// The cluster; `None` in a tombstone of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// The life of the cluster.
    pub incarnation: Incarnation,
    /// The number.
    pub number: CheckpointNumber,
    /// When it was given up, in microseconds since the Unix epoch.
    pub created: Time,
    /// The life of the process that gave it up.
    pub writer: u64,
    /// The reason.
    pub reason: String,
}

/// The decision on a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is a checkpoint.
    Complete(Box<Manifest>),
    /// It will never be one.
    GivenUp(Tombstone),
}

impl Decision {
    /// Returns the number that was decided.
    #[must_use]
    pub fn number(&self) -> CheckpointNumber {
        match self {
            Self::Complete(manifest) => manifest.number,
            Self::GivenUp(tombstone) => tombstone.number,
        }
    }

    /// Returns the cluster and the incarnation in which it was decided.
    #[must_use]
    pub fn belonging(&self) -> Belonging {
        match self {
            Self::Complete(manifest) => manifest.belonging(),
            Self::GivenUp(Tombstone { cluster, incarnation, .. }) => {
                Belonging { cluster: *cluster, incarnation: *incarnation }
            }
        }
    }
}

/// The file around the body. The order of the fields is that of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    stead: &'a str,
    format: u32,
    checksum: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Read first, so that a later format is distinguished from a damaged file.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

const KIND_MANIFEST: &str = "manifest";
const KIND_TOMBSTONE: &str = "tombstone";

/// Returns the name of the object that decides a number.
#[must_use]
pub fn manifest_name(number: CheckpointNumber) -> String {
    format!("{MANIFESTS}{:020}.json", number.0)
}

/// Returns the number that an object with this name decides; `None` if it decides none.
#[must_use]
pub fn manifest_number(name: &str) -> Option<CheckpointNumber> {
    let number = CheckpointNumber(name.strip_prefix(MANIFESTS)?.strip_suffix(".json")?.parse().ok()?);
    (manifest_name(number) == name).then_some(number)
}

pub(crate) fn encode(kind: &str, format: u32, body: &impl Serialize) -> Vec<u8> {
    let body = serde_json::value::to_raw_value(body).expect("manifests have string keys only");
    let checksum = checksum(kind, format, body.get());
    let envelope = Envelope { stead: kind, format, checksum: &checksum, body: &body };
    serde_json::to_vec(&envelope).expect("manifests have string keys only")
}

fn checksum(kind: &str, format: u32, body: &str) -> String {
    let mut bytes = format!("{kind} {format} ").into_bytes();
    bytes.extend_from_slice(body.as_bytes());
    Hash(xxh3_128(&bytes)).to_string()
}

/// Returns the highest known version of a kind of objects.
fn known_version(kind: &str) -> u32 {
    match kind {
        KIND_MANIFEST | KIND_TOMBSTONE => MANIFEST_VERSION,
        _ => 1,
    }
}

/// Returns the version of a manifest or tombstone. One that was read keeps its own, so that a copy has the same bytes.
fn format_of(cluster: Option<ClusterId>) -> u32 {
    if cluster.is_none() { 1 } else { MANIFEST_VERSION }
}

fn check_format(cluster: Option<ClusterId>, format: u32) -> Result<(), &'static str> {
    match (cluster, format) {
        (Some(_), 1) => Err("it names a cluster, which version 1 does not"),
        (None, 2..) => Err("it names no cluster"),
        _ => Ok(()),
    }
}

impl Manifest {
    /// Returns the bytes of the manifest's object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(KIND_MANIFEST, format_of(self.cluster), self)
    }

    /// Returns the cluster and the incarnation of the checkpoint.
    #[must_use]
    pub fn belonging(&self) -> Belonging {
        Belonging { cluster: self.cluster, incarnation: self.incarnation }
    }

    /// Checks that the checkpoint is of a cluster. One of version 1 may be of any.
    ///
    /// # Errors
    /// [`CheckpointError::Cluster`].
    pub fn check_cluster(&self, expected: ClusterId) -> Result<(), CheckpointError> {
        check_cluster(&manifest_name(self.number), self.cluster, Some(expected))
    }

    /// Returns the topology of the checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Topology`].
    pub fn topology(&self) -> Result<Topology, CheckpointError> {
        let mut topology = Topology::new(self.incarnation);
        for service in &self.services {
            topology
                .ensure(&service.name, service.shards)
                .map_err(|source| CheckpointError::Topology { name: manifest_name(self.number), source })?;
        }
        Ok(topology)
    }

    /// Returns the lineage that the next checkpoint builds upon.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        let sections = self.parts.iter().map(|part| (part.shard, part.sections.clone()));
        Lineage::of(self.bundles.clone(), sections)
    }

    /// Returns the part of a shard.
    #[must_use]
    pub fn part(&self, shard: ShardId) -> Option<&Part> {
        let at = self.parts.binary_search_by_key(&shard, |part| part.shard).ok()?;
        Some(&self.parts[at])
    }

    /// Returns the services of a topology as a manifest lists them.
    #[must_use]
    pub fn services_of(topology: &Topology) -> Vec<ServiceShards> {
        topology
            .services()
            .iter()
            .map(|service| ServiceShards { name: service.name.clone(), shards: service.shards })
            .collect()
    }

    /// Checks the rules within a manifest of this version, which any program may have written.
    fn check(&self, format: u32) -> Result<(), CheckpointError> {
        let name = manifest_name(self.number);
        let damaged = |reason: String| CheckpointError::damaged(&name, reason);
        check_format(self.cluster, format).map_err(|reason| damaged(reason.to_owned()))?;
        let topology = self.topology()?;
        let shards = topology.shard_count();
        // A node was all of the cluster.
        if format == 1 && self.parts.len() != shards as usize {
            return Err(damaged(format!("it has {} parts for {shards} shards", self.parts.len())));
        }
        let nodes = self.bundles.iter().map(|bundle| bundle.node);
        if format == 1
            && nodes.chain(self.parts.iter().map(|part| part.node)).any(|node| node != NodeId::FIRST)
        {
            return Err(damaged("version 1 has one node only".to_owned()));
        }
        if let Some(pair) = self.parts.windows(2).find(|pair| pair[0].shard >= pair[1].shard) {
            let (before, shard) = (pair[0].shard, pair[1].shard);
            return Err(damaged(format!("the part of shard {shard} stands after that of shard {before}")));
        }
        let bundles = self.bundles.len();
        for part in &self.parts {
            let shard = part.shard;
            if topology.service_of(shard).is_none() {
                return Err(damaged(format!("it has a part of shard {shard}, and services with {shards}")));
            }
            if part.colour.number() != self.number {
                return Err(damaged(format!("the part of shard {shard} has colour {}", part.colour)));
            }
            let ascending = part.sections.windows(2).all(|pair| pair[0].bundle < pair[1].bundle);
            let known = part.sections.iter().all(|section| (section.bundle as usize) < bundles);
            if !ascending || !known || part.header as usize >= bundles {
                return Err(damaged(format!("the part of shard {shard} refers to impossible bundles")));
            }
            let (node, of) = (part.node, self.bundles[part.header as usize].node);
            if node != of {
                return Err(damaged(format!(
                    "the part of shard {shard} is of node {node}, its bundle of {of}"
                )));
            }
        }
        Ok(())
    }

    /// Stores the manifest: the checkpoint exists when this returns.
    ///
    /// # Errors
    /// [`CheckpointError::Decided`] if the number is decided otherwise, or the store's error: then
    /// [`read_decision`] returns how it ended.
    pub fn store(&self, store: &dyn BlobStore) -> Result<(), CheckpointError> {
        decide(store, self.number, &self.encode())
    }
}

impl Tombstone {
    /// Stores the tombstone. It is no error if the number was decided by this tombstone before.
    ///
    /// # Errors
    /// [`CheckpointError::Decided`] if the number is decided otherwise, or the store's error.
    pub fn store(&self, store: &dyn BlobStore) -> Result<(), CheckpointError> {
        decide(store, self.number, &encode(KIND_TOMBSTONE, format_of(self.cluster), self))
    }
}

fn decide(store: &dyn BlobStore, number: CheckpointNumber, bytes: &[u8]) -> Result<(), CheckpointError> {
    let name = manifest_name(number);
    CheckpointError::check_len(&name, bytes.len(), MANIFEST_MAX)?;
    match store.put_new(&name, bytes)? {
        Put::Created => Ok(()),
        // A repeated request to a remote store may meet its own first one.
        Put::Exists if store.get(&name, MANIFEST_MAX)? == bytes => Ok(()),
        Put::Exists => Err(CheckpointError::Decided(number)),
    }
}

/// Whether a greater number than this one is decided.
pub(crate) fn is_passed(store: &dyn BlobStore, number: CheckpointNumber) -> Result<bool, CheckpointError> {
    let names = store.list(MANIFESTS)?;
    Ok(names.iter().filter_map(|name| manifest_number(name)).any(|decided| decided > number))
}

/// Reads the object that decides a number.
///
/// # Errors
/// [`CheckpointError::Unknown`] if the number is not decided; [`CheckpointError`] if the object is damaged.
pub fn read_decision(store: &dyn BlobStore, number: CheckpointNumber) -> Result<Decision, CheckpointError> {
    let name = manifest_name(number);
    let bytes = match store.get(&name, MANIFEST_MAX) {
        Err(error) if error.is_not_found() => return Err(CheckpointError::Unknown(number)),
        bytes => bytes?,
    };
    decode_decision(&name, &bytes)
}

/// Opens the file around a body. Checks all of it except the contents of the body.
///
/// # Errors
/// [`CheckpointError`], which names the object and its fault.
fn open_envelope<'a>(name: &str, bytes: &'a [u8]) -> Result<Envelope<'a>, CheckpointError> {
    let damaged = |reason: String| CheckpointError::damaged(name, reason);
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(format!("it is not UTF-8: {error}")))?;
    let envelope: Envelope<'_> = match serde_json::from_str(text) {
        Ok(envelope) => envelope,
        Err(error) => {
            return Err(match serde_json::from_str::<AnyFormat>(text) {
                Ok(any) if !(1..=u64::from(MANIFEST_VERSION)).contains(&any.format) => {
                    unknown_version(name, any.format, MANIFEST_VERSION)
                }
                _ => damaged(error.to_string()),
            });
        }
    };
    let known = known_version(envelope.stead);
    if !(1..=known).contains(&envelope.format) {
        return Err(unknown_version(name, u64::from(envelope.format), known));
    }
    let computed = checksum(envelope.stead, envelope.format, envelope.body.get());
    if computed != envelope.checksum {
        return Err(damaged(format!("its checksum is {computed} where {} was written", envelope.checksum)));
    }
    // White space and the order of fields are outside the checksum: nothing but what was written will do.
    if serde_json::to_vec(&envelope).ok().as_deref() != Some(bytes) {
        return Err(damaged("bytes outside its body were changed".to_owned()));
    }
    Ok(envelope)
}

/// Reads an object of a kind that has the envelope of a manifest. `what` names the expected object in errors.
pub(crate) fn read_object<T: DeserializeOwned>(
    store: &dyn BlobStore,
    name: &str,
    max: u64,
    kind: &str,
    what: &str,
) -> Result<T, CheckpointError> {
    let bytes = store.get(name, max)?;
    let envelope = open_envelope(name, &bytes)?;
    let damaged = |reason: String| CheckpointError::damaged(name, reason);
    if envelope.stead != kind {
        return Err(damaged(format!("it is a {:?}, not {what}", envelope.stead)));
    }
    serde_json::from_str(envelope.body.get()).map_err(|error| damaged(error.to_string()))
}

/// Reads the bytes of an object that decides a number.
///
/// # Errors
/// [`CheckpointError`], which names the object and its fault.
pub fn decode_decision(name: &str, bytes: &[u8]) -> Result<Decision, CheckpointError> {
    let damaged = |reason: String| CheckpointError::damaged(name, reason);
    let envelope = open_envelope(name, bytes)?;
    let read_failed = |error: serde_json::Error| damaged(error.to_string());
    let decision = match envelope.stead {
        KIND_MANIFEST => {
            let manifest: Manifest = serde_json::from_str(envelope.body.get()).map_err(read_failed)?;
            manifest.check(envelope.format)?;
            Decision::Complete(Box::new(manifest))
        }
        KIND_TOMBSTONE => {
            let tombstone: Tombstone = serde_json::from_str(envelope.body.get()).map_err(read_failed)?;
            check_format(tombstone.cluster, envelope.format).map_err(|reason| damaged(reason.to_owned()))?;
            Decision::GivenUp(tombstone)
        }
        kind => return Err(damaged(format!("it is a {kind:?}, not a manifest"))),
    };
    if manifest_number(name) != Some(decision.number()) {
        return Err(damaged(format!("it is about checkpoint {}", decision.number())));
    }
    Ok(decision)
}

fn unknown_version(name: &str, found: u64, known: u32) -> CheckpointError {
    CheckpointError::Version { name: name.to_owned(), found, known }
}

/// Reads the manifest of a checkpoint.
///
/// # Errors
/// [`CheckpointError::GivenUp`] or [`CheckpointError::Unknown`] if there is none; [`CheckpointError`] if it is damaged.
pub fn read_manifest(store: &dyn BlobStore, number: CheckpointNumber) -> Result<Manifest, CheckpointError> {
    match read_decision(store, number)? {
        Decision::Complete(manifest) => Ok(*manifest),
        Decision::GivenUp(tombstone) => Err(CheckpointError::GivenUp { number, reason: tombstone.reason }),
    }
}

/// Returns the decided numbers, ascending: those of checkpoints and those that were given up.
///
/// # Errors
/// [`CheckpointError::Store`], or [`CheckpointError::Damaged`] for an object that has no such name.
pub fn decided_numbers(store: &dyn BlobStore) -> Result<Vec<CheckpointNumber>, CheckpointError> {
    let mut numbers = Vec::new();
    for name in store.list(MANIFESTS)? {
        let number = manifest_number(&name);
        numbers.push(
            number.ok_or_else(|| CheckpointError::damaged(&name, "this is not the name of a manifest"))?,
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the newest decisions down to the newest complete checkpoint: tombstones are passed over; an unreadable
/// object is an error and never skipped.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// The newest complete checkpoint.
    pub manifest: Option<Manifest>,
    /// The greatest number that is decided; 0 if there is none.
    pub decided: CheckpointNumber,
}

/// Finds the newest complete checkpoint.
///
/// # Errors
/// [`CheckpointError`].
pub fn newest(store: &dyn BlobStore) -> Result<Newest, CheckpointError> {
    loop {
        match newest_of(store, decided_numbers(store)?) {
            // The owner's collection deleted it since it was listed: a greater number is decided.
            Err(CheckpointError::Unknown(number)) if !decided_numbers(store)?.contains(&number) => {}
            found => return found,
        }
    }
}

fn newest_of(store: &dyn BlobStore, numbers: Vec<CheckpointNumber>) -> Result<Newest, CheckpointError> {
    let mut newest = Newest { manifest: None, decided: numbers.last().copied().unwrap_or_default() };
    for number in numbers.into_iter().rev() {
        if let Decision::Complete(manifest) = read_decision(store, number)? {
            newest.manifest = Some(*manifest);
            break;
        }
    }
    Ok(newest)
}
