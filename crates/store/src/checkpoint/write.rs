//! Writes a checkpoint: parts arrive in pieces, from many shards in turn; the manifest comes last.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::bundle::{Author, BundleRef, BundleWriter, Origin};
use crate::checkpoint::manifest::{CheckResult, Manifest, Part, SectionRef, Tombstone, Totals, is_passed};
use crate::checkpoint::store::BlobStore;
use crate::checkpoint::verify;
use std::collections::BTreeMap;
use stead_core::channel::Message;
use stead_core::checkpointing::bundle::Hash;
use stead_core::checkpointing::lineage::Lineage;
use stead_core::ids::{CheckpointNumber, Epoch, NodeId, ShardId, Time};
use stead_core::state::Header;
use stead_core::topology::Topology;

/// The description of a checkpoint to write.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number: greater than every decided one.
    pub number: CheckpointNumber,
    /// The time at which it began.
    pub created: Time,
    /// The services and their shards.
    pub topology: Topology,
    /// The shards that it is of, each with the epoch in which this node leads it: a part of another epoch is that of a
    /// deposed primary, and does not count.
    pub parts: BTreeMap<ShardId, Epoch>,
    /// The name of its bundle, which was drawn for it.
    pub bundle: String,
    /// The life that writes it: that of [`BundleNames`](crate::checkpoint::bundle::BundleNames).
    pub author: Author,
}

/// A checkpoint that is being written. If it is dropped, it leaves nothing; its number then needs a [`Tombstone`].
pub struct CheckpointWriter {
    plan: Plan,
    bundle: BundleWriter,
    headers: BTreeMap<ShardId, Header>,
    open: BTreeMap<ShardId, bool>,
}

/// A checkpoint of which everything except the manifest is stored.
pub struct Sealed {
    manifest: Manifest,
    headers: Vec<Header>,
    lineage: Lineage,
}

impl CheckpointWriter {
    /// Begins to write a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn create(store: &dyn BlobStore, plan: Plan) -> Result<Self, CheckpointError> {
        let Plan { number, author, .. } = plan;
        let origin = Origin { author, incarnation: plan.topology.incarnation, number };
        let bundle = BundleWriter::create(store, plan.bundle.clone(), origin, 0)?;
        Ok(Self { plan, bundle, headers: BTreeMap::new(), open: BTreeMap::new() })
    }

    /// Cuts larger pieces into blocks of about this many bytes from now on, as [`BundleWriter::set_block_bytes`].
    pub fn set_block_bytes(&mut self, bytes: usize) {
        self.bundle.set_block_bytes(bytes);
    }

    /// Begins a shard's part with the header of its marker: more messages of its outboxes may come with
    /// [`CheckpointWriter::messages`].
    /// `base` says whether the snapshot has all records and not only those that
    /// changed since the last one.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] if the part cannot belong to this checkpoint, or the store's error.
    pub fn begin_part(&mut self, header: Header, base: bool) -> Result<(), CheckpointError> {
        let shard = header.shard;
        let number = self.plan.number;
        let refuse = |reason: String| Err(CheckpointError::Incomplete { number, reason });
        if self.plan.topology.service_of(shard).is_none() {
            return refuse(format!("shard {shard} is not in its topology"));
        }
        let Some(&epoch) = self.plan.parts.get(&shard) else {
            return refuse(format!("shard {shard} has no part in it here"));
        };
        if header.position.epoch != epoch {
            let found = header.position.epoch;
            return refuse(format!(
                "the part of shard {shard} is of epoch {found}, and it is led in {epoch}"
            ));
        }
        if header.position.colour.number() != number {
            return refuse(format!("the part of shard {shard} has colour {}", header.position.colour));
        }
        if self.headers.contains_key(&shard) {
            return refuse(format!("shard {shard} gave a second part"));
        }
        if base {
            self.bundle.base(shard);
        }
        self.headers.insert(shard, header);
        self.open.insert(shard, true);
        Ok(())
    }

    /// Appends whole records to a part, from a slice of the snapshot.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] for a part that is not open, or the store's error.
    pub fn piece(&mut self, shard: ShardId, records: &[u8]) -> Result<(), CheckpointError> {
        self.check_open(shard, "records")?;
        self.bundle.records(shard, records)
    }

    /// Adds messages to the outboxes of a part, from a slice of the snapshot, with their receiving shards.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] for a part that is not open.
    pub fn messages(
        &mut self,
        shard: ShardId,
        messages: &[(ShardId, Message)],
    ) -> Result<(), CheckpointError> {
        self.check_open(shard, "messages")?;
        self.headers.get_mut(&shard).expect("a part that is open has a header").add(messages);
        Ok(())
    }

    fn check_open(&self, shard: ShardId, what: &str) -> Result<(), CheckpointError> {
        if self.open.get(&shard) == Some(&true) {
            return Ok(());
        }
        let reason = format!("{what} came for shard {shard}, of which no part is open");
        Err(CheckpointError::Incomplete { number: self.plan.number, reason })
    }

    /// Ends a shard's part; returns true once all parts are complete.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] for a part that is not open, or the store's error.
    pub fn end_part(&mut self, shard: ShardId) -> Result<bool, CheckpointError> {
        if self.open.insert(shard, false) != Some(true) {
            let reason = format!("the part of shard {shard} ended, and none is open");
            return Err(CheckpointError::Incomplete { number: self.plan.number, reason });
        }
        self.bundle.header(&self.headers[&shard])?;
        Ok(self.is_complete())
    }

    /// Whether all parts are complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.open.len() == self.plan.parts.len() && self.open.values().all(|open| !open)
    }

    /// Returns the bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bundle.bytes()
    }

    /// Completes the bundle: it is durable when this returns. `lineage` is that of the checkpoint whose snapshots came
    /// before these, merges included.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] if a part is missing, or the store's error.
    pub fn seal(self, lineage: &Lineage) -> Result<Sealed, CheckpointError> {
        let Plan { number, created, topology, parts, author, .. } = self.plan;
        if let Some(shard) = parts.keys().find(|shard| self.open.get(shard) != Some(&false)) {
            let reason = format!("the part of shard {shard} is not complete");
            return Err(CheckpointError::Incomplete { number, reason });
        }
        let (bundle, sections) = self.bundle.finish()?;
        let mut lineage = lineage.clone();
        lineage.append(&bundle, sections.iter().map(|(shard, section)| (*shard, section.added())));
        let headers: Vec<Header> = self.headers.into_values().collect();
        let manifest = describe(&topology, number, created, author, &bundle, &headers, &lineage);
        Ok(Sealed { manifest, headers, lineage })
    }
}

/// Returns the manifest of a checkpoint whose headers are all in one bundle.
pub(crate) fn describe(
    topology: &Topology,
    number: CheckpointNumber,
    created: Time,
    author: Author,
    own: &BundleRef,
    headers: &[Header],
    lineage: &Lineage,
) -> Manifest {
    let mut bundles = lineage.bundles().to_vec();
    let own_position = bundles.iter().position(|bundle| bundle.name == own.name).unwrap_or_else(|| {
        bundles.push(own.clone());
        bundles.len() - 1
    });
    let parts: Vec<Part> = headers
        .iter()
        .map(|header| part(header, author.node, own_position as u32, lineage.sections(header.shard).to_vec()))
        .collect();
    let in_flight = verify::in_flight(headers);
    let totals = Totals {
        records: parts.iter().map(|part| part.records).sum(),
        section_bytes: parts.iter().flat_map(|part| &part.sections).map(|section| section.bytes).sum(),
        written_bytes: own.bytes,
        messages: in_flight.iter().map(|channel| channel.messages).sum(),
        message_bytes: in_flight.iter().map(|channel| channel.bytes).sum(),
    };
    Manifest {
        cluster: Some(author.cluster),
        incarnation: topology.incarnation,
        number,
        created,
        writer: author.writer,
        services: Manifest::services_of(topology),
        bundles,
        parts,
        in_flight,
        totals,
        checks: Vec::new(),
    }
}

fn part(header: &Header, node: NodeId, own: u32, sections: Vec<SectionRef>) -> Part {
    let position = header.position;
    Part {
        shard: header.shard,
        node,
        epoch: position.epoch,
        index: position.index,
        time: position.time,
        colour: position.colour,
        hash: Hash(header.hash()),
        records: header.records,
        records_hash: Hash(u128::from_be_bytes(header.records_hash)),
        header: own,
        sections,
    }
}

impl Sealed {
    /// Returns the manifest as it will be stored.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the headers of all parts.
    #[must_use]
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// Adds the results of the services' checks.
    pub fn set_checks(&mut self, checks: Vec<CheckResult>) {
        self.manifest.checks = checks;
    }

    /// Returns the lineage of the next checkpoint, once this one exists.
    #[must_use]
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Returns the manifest, to be kept.
    #[must_use]
    pub fn into_manifest(self) -> Manifest {
        self.manifest
    }

    /// Stores the manifest: the checkpoint exists when this returns.
    ///
    /// # Errors
    /// [`CheckpointError::Decided`] if the number is decided differently, or a greater one is decided: then its
    /// tombstone may have been collected. After the store's error it may or may not exist: a tombstone decides.
    pub fn put(&self, store: &dyn BlobStore) -> Result<(), CheckpointError> {
        let number = self.manifest.number;
        if is_passed(store, number)? {
            return Err(CheckpointError::Decided(number));
        }
        self.manifest.store(store)
    }

    /// As [`Self::put`]; returns the manifest, and the lineage for the next checkpoint.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn store(self, store: &dyn BlobStore) -> Result<(Manifest, Lineage), CheckpointError> {
        self.put(store)?;
        Ok((self.manifest, self.lineage))
    }
}

/// Gives up a number: it will never be a checkpoint. An undecided number needs this before the next one is used.
///
/// # Errors
/// [`CheckpointError::Decided`] if it is a checkpoint after all, or the store's error.
pub fn give_up(
    store: &dyn BlobStore,
    topology: &Topology,
    number: CheckpointNumber,
    now: Time,
    author: Author,
    reason: &str,
) -> Result<(), CheckpointError> {
    let tombstone = Tombstone {
        cluster: Some(author.cluster),
        incarnation: topology.incarnation,
        number,
        created: now,
        writer: author.writer,
        reason: reason.to_owned(),
    };
    tombstone.store(store)
}
