//! The model's states at markers, and the invariants of a cut of them.

use super::{Model, Shadow};
use crate::violation::Violation;
use crate::workload::Workload;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{CheckpointNumber, Index, ShardId};
use stead_core::record::RecordKey;
use stead_core::records::Records;
use stead_core::state::{Header, State};

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

    /// Returns the shard's state at its marker.
    pub(crate) fn mark(&self, number: CheckpointNumber, shard: ShardId) -> Option<&State> {
        self.cuts.get(&number)?.iter().find(|state| state.shard() == shard)
    }

    /// Drops the states of checkpoints below this number, which are not stored any more, but for those that are copied.
    pub(crate) fn forget_cuts_below(
        &mut self,
        number: CheckpointNumber,
        copied: &BTreeSet<CheckpointNumber>,
    ) {
        self.cuts.retain(|cut, _| *cut >= number || copied.contains(cut));
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

/// Compares two states of a shard, record by record. Returns a difference in words; `None` if there is none.
pub(crate) fn difference(wanted: &State, found: &State) -> Option<String> {
    let (a, b) = (wanted.header(), found.header());
    if a.position != b.position {
        return Some(format!("position {:?} instead of {:?}", b.position, a.position));
    }
    if a.received != b.received {
        return Some(format!("received {:?} instead of {:?}", b.received, a.received));
    }
    if a.outboxes != b.outboxes {
        let text = |h: &Header| -> String {
            h.outboxes
                .iter()
                .map(|(to, o)| format!(" {to}: {} before {}", o.messages.len(), o.next))
                .collect()
        };
        return Some(format!("outboxes{} instead of{}", text(&b), text(&a)));
    }
    let more = found.records().iter().map(|(key, _)| key).filter(|key| wanted.records().get(key).is_none());
    for key in wanted.records().iter().map(|(key, _)| key).chain(more) {
        let (a, b) = (wanted.records().get(key), found.records().get(key));
        if a != b {
            return Some(format!(
                "record {:?} is {:?} instead of {:?}",
                RecordKey::from_bytes(key),
                b.map(|v| v.escape_ascii().to_string()),
                a.map(|v| v.escape_ascii().to_string())
            ));
        }
    }
    (a != b).then(|| "another number of records, or sum of their hashes".to_owned())
}
