//! The model's states at markers, and what holds in a cut of them.

use super::Model;
use crate::violation::Violation;
use crate::workload::Workload;
use std::collections::{BTreeMap, BTreeSet};
use stead_core::ids::{Colour, ShardId};
use stead_core::record::RecordKey;
use stead_core::records::Records;
use stead_core::state::{Header, State};

impl Model {
    /// Holds the header that a shard made of its part against the state at its marker, and keeps that state.
    pub(super) fn check_marker(&mut self, shard: ShardId, colour: Colour) -> Result<(), Violation> {
        let shadow = self.shadow(shard);
        let marked = shadow.marked.remove(&colour);
        if let Some(header) = marked.filter(|header| !shadow.fold.is_marked_as(header)) {
            let what = format!(
                "shard {shard}: the part of checkpoint {colour} begins with {header:?}, its entries make {:?}",
                shadow.fold.header()
            );
            return Err(Violation::new(10, what));
        }
        let state = shadow.fold.to_state();
        self.cuts.entry(colour).or_default().push(state);
        Ok(())
    }

    /// A shard begins its part of a checkpoint with this header.
    pub(crate) fn marked(&mut self, shard: ShardId, header: &Header) {
        self.shadow(shard).marked.insert(header.position.colour, header.clone());
    }

    /// Checks the cut of a colour once every shard has its marker in the log.
    pub(super) fn check_cut(&mut self, colour: Colour, workload: &mut dyn Workload) -> Result<(), Violation> {
        let cut = self.cuts.get_mut(&colour).expect("one of its states was just added");
        if cut.len() < self.shards.len() {
            return Ok(());
        }
        cut.sort_by_key(State::shard);
        check_channels(cut)?;
        workload.check_cut(&self.topology, cut).map_err(|s| Violation::parse(&s))?;
        self.cuts_checked += 1;
        Ok(())
    }

    /// The shard's state at its marker.
    pub(crate) fn mark(&self, colour: Colour, shard: ShardId) -> Option<&State> {
        self.cuts.get(&colour)?.iter().find(|state| state.shard() == shard)
    }

    /// Checkpoints below this number will not be asked for again.
    pub(crate) fn forget_cuts_below(&mut self, colour: Colour) {
        self.cuts = self.cuts.split_off(&colour);
    }
}

/// Invariants 8 and 9 over a cut: nothing is received that was not sent, and all that is in flight lies in an outbox.
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

/// A state as a node would load it.
pub(crate) fn copy(state: &State) -> State {
    let mut records = Records::new();
    records.reserve(state.records().len());
    for (key, value) in state.records().iter() {
        records.load(key, Some(value.clone()));
    }
    records.loaded();
    State::load(state.header(), records).expect("a copy of a sound state is sound")
}

/// Says where two states of a shard differ.
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
