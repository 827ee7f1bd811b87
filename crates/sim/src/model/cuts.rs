//! The model's states at markers, and the invariants of a cut of them.

use super::{Model, Sent, Shadow, hash_call};
use crate::violation::Violation;
use crate::workload::Workload;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{CheckpointNumber, Index, ShardId};
use stead_core::key::Key;
use stead_core::record::RecordKey;
use stead_core::records::Records;
use stead_core::state::{Header, State};
use stead_core::topology::Topology;

impl Model {
    /// Compares the header of a shard's part with the state at its marker, and keeps that state.
    pub(super) fn check_marker(&mut self, shard: ShardId, number: CheckpointNumber) -> Result<(), Violation> {
        let shadow = self.shadow(shard);
        let marked = shadow.marked.remove(&number);
        if let Some(header) = marked.filter(|header| !shadow.fold.is_marked_as(header)) {
            let what = format!(
                "shard {shard}: the part of checkpoint {number} begins with {header:?}, its entries make {:?}",
                shadow.fold.header()
            );
            return Err(Violation::new(10, what));
        }
        let state = shadow.fold.to_state();
        self.cuts.entry(number).or_default().push(state);
        Ok(())
    }

    /// Notes that a shard begins its part of a checkpoint with this header.
    pub(crate) fn marked(&mut self, shard: ShardId, header: &Header) {
        self.shadow(shard).marked.insert(header.position.colour.number(), header.clone());
    }

    /// Checks the cut of a checkpoint once every shard has its marker in the log.
    pub(super) fn check_cut(
        &mut self,
        number: CheckpointNumber,
        workload: &mut dyn Workload,
    ) -> Result<(), Violation> {
        let cut = self.cuts.get_mut(&number).expect("one of its states was just added");
        if cut.len() < self.shards.len() {
            return Ok(());
        }
        cut.sort_by_key(State::shard);
        check_channels(cut)?;
        check_causes(cut, &mut self.shards)?;
        workload.check_cut(&self.topology, cut).map_err(|s| Violation::parse(&s))?;
        self.cuts_checked += 1;
        Ok(())
    }

    /// Notes that an entry handled a request whose client had seen these entries before.
    pub(crate) fn caused(&mut self, shard: ShardId, index: Index, seen: Vec<(ShardId, Index)>) {
        self.shadow(shard).causes.insert(index, seen);
    }

    /// Compares the messages in flight after a restore with those that were sent: by old sending shard, in the order in
    /// which that one sent them. `old` is the restored cut, `new` the result in the topology `target`.
    pub(crate) fn check_order(
        &self,
        old: &[State],
        new: &[State],
        target: &Topology,
    ) -> Result<(), Violation> {
        let moved = |shard: ShardId, process: &Key| {
            let service = self.topology.service_of(shard).expect("a shard of the run");
            target.shard_of(service, process)
        };
        let mut wanted: BTreeMap<(ShardId, ShardId), Vec<u64>> = BTreeMap::new();
        for from in old {
            let mut sent: Vec<(Index, ShardId, &Sent)> = Vec::new();
            for (to, outbox) in from.outboxes().iter() {
                let receiver = old.iter().find(|state| state.shard() == to);
                let received = receiver.and_then(|to| to.received().get(from.shard())).map_or(0, |seq| seq.0);
                let log = self.sent.get(&(from.shard(), to)).map_or(&[][..], Vec::as_slice);
                let log = log.iter().take(outbox.next.0 as usize - 1).skip(received as usize);
                sent.extend(log.map(|sent| (sent.index, to, sent)));
            }
            sent.sort_by_key(|(index, to, _)| (*index, *to));
            for (_, to, sent) in sent {
                let channel = (moved(from.shard(), &sent.sender), moved(to, &sent.process));
                wanted.entry(channel).or_default().push(sent.payload);
            }
        }
        let mut found: BTreeMap<(ShardId, ShardId), Vec<u64>> = BTreeMap::new();
        for from in new {
            for (to, outbox) in from.outboxes().iter().filter(|(_, outbox)| !outbox.messages.is_empty()) {
                let messages = outbox.messages.iter().map(|m| hash_call(&m.process, &m.payload));
                found.insert((from.shard(), to), messages.collect());
            }
        }
        if let Some(((from, to), _)) = wanted.iter().find(|(channel, sent)| found.get(channel) != Some(sent))
        {
            let what = format!(
                "restored: the messages from shard {from} to {to} are not in the order in which they were sent"
            );
            return Err(Violation::new(8, what));
        }
        if wanted.len() != found.len() {
            let what =
                format!("restored: {} channels hold messages instead of {}", found.len(), wanted.len());
            return Err(Violation::new(9, what));
        }
        Ok(())
    }

    /// Returns the shard's state at its marker.
    pub(crate) fn mark(&self, number: CheckpointNumber, shard: ShardId) -> Option<&State> {
        self.cuts.get(&number)?.iter().find(|state| state.shard() == shard)
    }

    /// Drops checkpoints below this number, which will not be needed again.
    pub(crate) fn forget_cuts_below(&mut self, number: CheckpointNumber) {
        self.cuts = self.cuts.split_off(&number);
    }
}

/// Invariant 9 for clients, which are channels too: a cut that has a request has all entries that its client had seen
/// before. Requests in the cut are in all later ones, and are dropped.
fn check_causes(cut: &[State], shards: &mut [Shadow]) -> Result<(), Violation> {
    for state in cut {
        let causes = &mut shards[state.shard().0 as usize].causes;
        let later = causes.split_off(&state.position().index.next());
        for (index, seen) in std::mem::replace(causes, later) {
            let is_in = |(shard, seen): &(ShardId, Index)| {
                cut.iter().any(|other| other.shard() == *shard && *seen <= other.position().index)
            };
            if let Some((other, entry)) = seen.iter().find(|seen| !is_in(seen)) {
                let (shard, colour) = (state.shard(), state.position().colour);
                let what = format!(
                    "cut {colour}: holds request {index} of shard {shard}, whose client had seen entry {entry} of shard {other}, and not that"
                );
                return Err(Violation::new(9, what));
            }
        }
    }
    Ok(())
}

/// Invariants 8 and 9 over a cut: nothing is received that was not sent, and all messages in flight are in an outbox.
pub(crate) fn check_channels(cut: &[State]) -> Result<(), Violation> {
    let by_shard: BTreeMap<ShardId, &State> = cut.iter().map(|s| (s.shard(), s)).collect();
    for to in cut {
        for (from, received) in to.received().iter() {
            let sent =
                by_shard.get(&from).and_then(|s| s.outboxes().get(to.shard())).map_or(0, |o| o.next.0 - 1);
            if received.0 > sent {
                let (to, colour) = (to.shard(), to.position().colour);
                let what = format!(
                    "cut {colour}: shard {to} received {received} messages of shard {from}, which sent {sent}"
                );
                return Err(Violation::new(9, what));
            }
        }
    }
    for from in cut {
        for (to, outbox) in from.outboxes().iter() {
            let received =
                by_shard.get(&to).and_then(|s| s.received().get(from.shard())).copied().unwrap_or_default();
            let in_flight = (outbox.next.0 - 1).saturating_sub(received.0);
            let held = outbox.messages.iter().filter(|m| m.seq > received).count() as u64;
            if held != in_flight {
                let (from, colour) = (from.shard(), from.position().colour);
                let what = format!(
                    "cut {colour}: {in_flight} messages from shard {from} to {to} are in flight, {held} are kept"
                );
                return Err(Violation::new(9, what));
            }
        }
    }
    Ok(())
}

/// Returns a copy of a state as a node would load it.
pub(crate) fn copy(state: &State) -> State {
    with_header(state, state.header())
}

/// Returns the records of a state under a header, as a node would load them.
pub(crate) fn with_header(state: &State, header: Header) -> State {
    let mut records = Records::new();
    records.reserve(state.records().len());
    for (key, value) in state.records().iter() {
        records.load(key, Some(value.clone()));
    }
    records.loaded();
    State::load(header, records).expect("a copy of a sound state is sound")
}

/// Describes a difference between two states of a shard.
pub(crate) fn differ(wanted: &State, found: &State) -> String {
    let (a, b) = (wanted.header(), found.header());
    if a.position != b.position {
        return format!("position {:?} instead of {:?}", b.position, a.position);
    }
    if a.received != b.received {
        return format!("received {:?} instead of {:?}", b.received, a.received);
    }
    if a.outboxes != b.outboxes {
        let text = |h: &Header| -> String {
            h.outboxes
                .iter()
                .map(|(to, o)| format!(" {to}: {} before {}", o.messages.len(), o.next))
                .collect()
        };
        return format!("outboxes{} instead of{}", text(&b), text(&a));
    }
    let keys: BTreeSet<&[u8]> =
        wanted.records().iter().chain(found.records().iter()).map(|(k, _)| k).collect();
    for key in keys {
        let (a, b) = (wanted.records().get(key), found.records().get(key));
        if a != b {
            return format!(
                "record {:?} is {:?} instead of {:?}",
                RecordKey::from_bytes(key),
                b.map(|v| v.escape_ascii().to_string()),
                a.map(|v| v.escape_ascii().to_string())
            );
        }
    }
    "sums of the records".to_owned()
}
