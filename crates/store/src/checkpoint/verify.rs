//! Verifies from the stored parts alone that a checkpoint is a consistent cut.
//!
//! A cut is consistent if it has no received message that was not sent. Messages that were sent and not received are in
//! flight. They must be in the sender's outbox, complete and in order, because nothing is in transit outside a
//! checkpoint.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::checks::{CheckOutcome, recorded_checks};
use crate::checkpoint::load::{Loaders, load_parts};
use crate::checkpoint::manifest::{InFlight, Manifest, manifest_name};
use crate::checkpoint::store::BlobStore;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::channel::{Message, Outbox};
use stead_core::ids::{CheckpointNumber, Colour, Seq, ShardId};
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use thiserror::Error;

/// The result of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The checkpoint.
    pub number: CheckpointNumber,
    /// Number of its shards.
    pub shards: usize,
    /// Number of records of all shards.
    pub records: u64,
    /// Number of messages that were ever sent, over all channels.
    pub sent: u64,
    /// Number of messages that were ever received, over all channels.
    pub received: u64,
    /// Channels with messages in flight, by sender, then receiver.
    pub in_flight: Vec<InFlight>,
    /// The outcome of all declared checks together.
    pub check: CheckOutcome,
    /// The outcomes by service. Services whose code declares no check are left out.
    pub checks: Vec<ServiceCheck>,
    /// The inconsistencies; empty for a consistent cut.
    #[serde(serialize_with = "texts")]
    pub inconsistencies: Vec<Inconsistency>,
}

/// The outcome of the check of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceCheck {
    /// The service.
    pub service: String,
    /// The outcome; `not_checked` if this program lacks the service's code and no result is stored.
    pub outcome: CheckOutcome,
    /// The reason that the check gave if it failed.
    pub failure: Option<String>,
}

/// The result of a service's check of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The service declares no check.
    Undeclared,
    /// The check holds.
    Hold,
    /// The check failed, for this reason.
    Failed(String),
}

impl Report {
    /// Whether the cut is consistent and no check failed. It may also be true if checks were not run: see
    /// [`Self::check`].
    #[must_use]
    pub fn holds(&self) -> bool {
        self.inconsistencies.is_empty() && self.check != CheckOutcome::Failed
    }

    /// Returns the number of messages in flight.
    #[must_use]
    pub fn messages_in_flight(&self) -> u64 {
        self.in_flight.iter().map(|channel| channel.messages).sum()
    }
}

fn texts<S: serde::Serializer>(found: &[Inconsistency], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(found.iter().map(ToString::to_string))
}

/// An inconsistency of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Inconsistency {
    /// A shard has no part.
    #[error("shard {shard} has no part")]
    NoPart {
        /// The shard.
        shard: ShardId,
    },
    /// A second part of a shard, or a part of a shard that does not exist.
    #[error("the part of shard {shard} is superfluous: the topology has no such shard")]
    Surplus {
        /// The shard.
        shard: ShardId,
    },
    /// A part was taken for another checkpoint.
    #[error("shard {shard} has colour {found} in checkpoint {number}")]
    Colour {
        /// The shard.
        shard: ShardId,
        /// Its colour.
        found: Colour,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// A message was received that was not sent.
    #[error(
        "channel {from} -> {to}: shard {to} has received message {received}, but shard {from} has sent only {sent}"
    )]
    ReceivedNotSent {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
        /// The last message received.
        received: Seq,
        /// The last message sent.
        sent: Seq,
    },
    /// Messages were sent and not received, but are in no outbox.
    #[error(
        "channel {from} -> {to}: messages {first} to {last} were sent and not received, and are not in the outbox"
    )]
    Lost {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
        /// The first that is lost.
        first: Seq,
        /// The last that is lost.
        last: Seq,
    },
    /// An outbox is not a sequence of messages without a gap up to the last one sent.
    #[error("channel {from} -> {to}: the outbox has message {found} where message {expected} belongs")]
    Order {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
        /// The message found.
        found: Seq,
        /// The message expected.
        expected: Seq,
    },
    /// A message in an outbox was sent after the marker.
    #[error("channel {from} -> {to}: message {seq} was sent after the marker of shard {from}")]
    SentAfterMarker {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
        /// The message.
        seq: Seq,
    },
    /// A channel leads to or from a shard that does not exist.
    #[error("channel {from} -> {to}: no such shard in the topology")]
    Stray {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
    },
    /// The manifest has another count of messages in flight.
    #[error(
        "channel {from} -> {to}: {found} messages of {found_bytes} bytes are in flight, and the manifest says {recorded} of {recorded_bytes}"
    )]
    InFlight {
        /// The sender.
        from: ShardId,
        /// The receiver.
        to: ShardId,
        /// Number of messages counted.
        found: u64,
        /// Their bytes.
        found_bytes: u64,
        /// Number of messages in the manifest.
        recorded: u64,
        /// Their bytes in the manifest.
        recorded_bytes: u64,
    },
    /// A sum in the manifest differs from that of the parts.
    #[error("the parts have {found} {what}, and the manifest says {recorded}")]
    Total {
        /// The summed quantity.
        what: &'static str,
        /// The sum of the parts.
        found: u64,
        /// The sum in the manifest.
        recorded: u64,
    },
}

/// Returns the messages of an outbox that the receiver has not received.
pub(crate) fn undelivered(outbox: &Outbox, received: Seq) -> impl Iterator<Item = &Message> {
    outbox.messages.iter().filter(move |message| message.seq > received)
}

/// Returns the messages in flight by channel: those in the outbox that were not received. Empty channels are left out.
#[must_use]
pub fn in_flight(headers: &[Header]) -> Vec<InFlight> {
    let received: BTreeMap<ShardId, &BTreeMap<ShardId, Seq>> =
        headers.iter().map(|header| (header.shard, &header.received)).collect();
    let mut channels = Vec::new();
    for header in headers {
        for (&to, outbox) in &header.outboxes {
            let from = header.shard;
            let last =
                received.get(&to).and_then(|received| received.get(&from)).copied().unwrap_or_default();
            let (mut messages, mut bytes) = (0, 0);
            for message in undelivered(outbox, last) {
                messages += 1;
                bytes += message.payload.len() as u64;
            }
            if messages > 0 {
                channels.push(InFlight { from, to, messages, bytes });
            }
        }
    }
    channels.sort_unstable_by_key(|channel| (channel.from, channel.to));
    channels
}

/// Returns the inconsistencies of a cut that consists of these parts.
#[must_use]
pub fn verify_cut(topology: &Topology, number: CheckpointNumber, headers: &[Header]) -> Vec<Inconsistency> {
    let mut found = Vec::new();
    let mut parts: BTreeMap<ShardId, &Header> = BTreeMap::new();
    for header in headers {
        let shard = header.shard;
        if topology.service_of(shard).is_none() || parts.insert(shard, header).is_some() {
            found.push(Inconsistency::Surplus { shard });
        }
        if header.position.colour.number() != number {
            found.push(Inconsistency::Colour { shard, found: header.position.colour, number });
        }
    }
    found.extend(
        topology
            .shards()
            .filter(|shard| !parts.contains_key(shard))
            .map(|shard| Inconsistency::NoPart { shard }),
    );
    // A channel exists if one of its ends has it.
    let sends = parts.values().flat_map(|part| part.outboxes.keys().map(|to| (part.shard, *to)));
    let receives = parts.values().flat_map(|part| part.received.keys().map(|from| (*from, part.shard)));
    let channels: BTreeSet<(ShardId, ShardId)> = sends.chain(receives).collect();
    let nothing = Outbox::default();
    for (from, to) in channels {
        if topology.service_of(from).is_none() || topology.service_of(to).is_none() {
            found.push(Inconsistency::Stray { from, to });
            continue;
        }
        let (Some(sender), Some(receiver)) = (parts.get(&from), parts.get(&to)) else { continue };
        let outbox = sender.outboxes.get(&to).unwrap_or(&nothing);
        let received = receiver.received.get(&from).copied().unwrap_or_default();
        verify_channel((sender, to), outbox, received, &mut found);
    }
    found
}

fn verify_channel(
    (sender, to): (&Header, ShardId),
    outbox: &Outbox,
    received: Seq,
    found: &mut Vec<Inconsistency>,
) {
    let from = sender.shard;
    let Some(sent) = outbox.next.0.checked_sub(1).map(Seq) else {
        found.push(Inconsistency::Order { from, to, found: outbox.next, expected: Seq(1) });
        return;
    };
    if received > sent {
        found.push(Inconsistency::ReceivedNotSent { from, to, received, sent });
    }
    let first = outbox.messages.front().map_or(outbox.next, |message| message.seq);
    for (message, expected) in outbox.messages.iter().zip(first.0..) {
        let expected = Seq(expected);
        if message.seq != expected {
            found.push(Inconsistency::Order { from, to, found: message.seq, expected });
            return;
        }
        // A message that was sent before the marker has a lower colour, and the index of an earlier entry or, after a
        // restore, that at which the new log begins.
        if message.index > sender.position.index || message.colour >= sender.position.colour {
            found.push(Inconsistency::SentAfterMarker { from, to, seq: message.seq });
        }
    }
    if let Some(last) = outbox.messages.back()
        && last.seq != sent
    {
        found.push(Inconsistency::Order { from, to, found: last.seq, expected: sent });
    }
    // The outbox may still hold messages that were received, but must hold all later ones.
    if first > received.next() && sent > received {
        let last = Seq(first.0 - 1).min(sent);
        found.push(Inconsistency::Lost { from, to, first: received.next(), last });
    }
}

/// Compares the counts of a manifest with its parts.
fn verify_counts(manifest: &Manifest, counted: &[InFlight], headers: &[Header]) -> Vec<Inconsistency> {
    type Counts = BTreeMap<(ShardId, ShardId), (u64, u64)>;
    let by_channel = |list: &[InFlight]| -> Counts {
        list.iter().map(|channel| ((channel.from, channel.to), (channel.messages, channel.bytes))).collect()
    };
    let (mut counted_by, mut recorded_by) = (by_channel(counted), by_channel(&manifest.in_flight));
    let channels: BTreeSet<_> = counted_by.keys().chain(recorded_by.keys()).copied().collect();
    let mut found = Vec::new();
    for (from, to) in channels {
        let (messages, bytes) = counted_by.remove(&(from, to)).unwrap_or_default();
        let (recorded, recorded_bytes) = recorded_by.remove(&(from, to)).unwrap_or_default();
        if (messages, bytes) != (recorded, recorded_bytes) {
            found.push(Inconsistency::InFlight {
                from,
                to,
                found: messages,
                found_bytes: bytes,
                recorded,
                recorded_bytes,
            });
        }
    }
    let totals = &manifest.totals;
    let sections = manifest.parts.iter().flat_map(|part| &part.sections);
    // A checkpoint's own bundle is the one with its headers.
    let own: BTreeSet<u32> = manifest.parts.iter().map(|part| part.header).collect();
    let own = own.into_iter().map(|own| manifest.bundles[own as usize].bytes);
    let sums = [
        ("records", headers.iter().map(|header| header.records).sum(), totals.records),
        ("messages in flight", counted.iter().map(|channel| channel.messages).sum(), totals.messages),
        ("bytes of sections", sections.map(|section| section.bytes).sum(), totals.section_bytes),
        ("written bytes", own.sum(), totals.written_bytes),
        ("bytes in flight", counted.iter().map(|channel| channel.bytes).sum(), totals.message_bytes),
    ];
    let wrong = sums.into_iter().filter(|(_, found, recorded)| found != recorded);
    found.extend(wrong.map(|(what, found, recorded)| Inconsistency::Total { what, found, recorded }));
    found
}

/// Returns the results of the checks that were run now, and the stored results of the other services.
fn checks_of(
    store: &dyn BlobStore,
    manifest: &Manifest,
    mut found: BTreeMap<String, Found>,
) -> Vec<ServiceCheck> {
    // Unreadable results are treated as missing.
    let stored = recorded_checks(store, manifest).unwrap_or_default();
    let mut checks = Vec::new();
    for service in &manifest.services {
        let service = service.name.clone();
        let (outcome, failure) = match found.remove(&service) {
            Some(Found::Undeclared) => continue,
            Some(Found::Hold) => (CheckOutcome::Hold, None),
            Some(Found::Failed(reason)) => (CheckOutcome::Failed, Some(reason)),
            None => match stored.iter().find(|stored| stored.service == service) {
                Some(stored) => (stored.outcome(), stored.failure.clone()),
                None => (CheckOutcome::NotChecked, None),
            },
        };
        checks.push(ServiceCheck { service, outcome, failure });
    }
    checks
}

/// Verifies a checkpoint from its stored objects: every checksum and hash, the cut, the counts, and the services' checks.
/// `check` runs these over the loaded states, which are in the order of their shards, and returns the results of the
/// services whose code it has.
///
/// # Errors
/// [`CheckpointError`] if a part is missing, damaged or not the state that was written. An inconsistent cut is not an
/// error: it is in the report.
pub fn verify_checkpoint(
    store: &dyn BlobStore,
    manifest: &Manifest,
    loaders: impl Into<Loaders>,
    check: &mut dyn FnMut(&Topology, &[State]) -> BTreeMap<String, Found>,
) -> Result<Report, CheckpointError> {
    let topology = manifest.topology()?;
    let loaded = load_parts(store, manifest, loaders)?;
    let name = manifest_name(manifest.number);
    let mut headers = Vec::with_capacity(loaded.len());
    let mut states = Vec::with_capacity(loaded.len());
    for part in loaded {
        headers.push(part.header.clone());
        let (shard, recorded) = (part.header.shard, part.header.hash());
        let state = part.into_state(manifest)?;
        if state.hash() != recorded {
            return Err(CheckpointError::Differs {
                name,
                shard,
                what: "state hash",
                found: format!("{:032x}", state.hash()),
                expected: format!("{recorded:032x}"),
            });
        }
        states.push(state);
    }
    let checks = checks_of(store, manifest, check(&topology, &states));
    let counted = in_flight(&headers);
    let mut inconsistencies = verify_cut(&topology, manifest.number, &headers);
    inconsistencies.extend(verify_counts(manifest, &counted, &headers));
    let sent = headers
        .iter()
        .flat_map(|header| header.outboxes.values())
        .map(|outbox| outbox.next.0.saturating_sub(1));
    let received = headers.iter().flat_map(|header| header.received.values()).map(|seq| seq.0);
    Ok(Report {
        number: manifest.number,
        shards: headers.len(),
        records: headers.iter().map(|header| header.records).sum(),
        sent: sent.sum(),
        received: received.sum(),
        in_flight: counted,
        check: CheckOutcome::of(checks.iter().map(|check| check.outcome)),
        checks,
        inconsistencies,
    })
}
