//! The judgement on answers of asynchronous epochs, which may be lost: what survives has no holes, and what is lost was announced.

use super::World;
use super::node::survivors;
use super::service::list;
use stead_core::entry::Entry;
use stead_core::ids::{Epoch, Index};
use stead_core::replication::table::LogPoint;

/// An answer that left before the last entry that it saw was committed.
#[derive(Clone, Debug)]
pub(super) struct Early {
    point: LogPoint,
    /// The number of the request; `None` for a read.
    number: Option<u32>,
    /// The answered position, or the number of positions that the read saw.
    count: u32,
}

/// The answers before a call began: its own shows no less, but for losses.
#[derive(Clone, Debug, Default)]
pub(super) struct Floor {
    committed: u32,
    early: Vec<Early>,
}

impl World {
    pub(super) fn floor(&self) -> Floor {
        Floor { committed: self.answered, early: self.early.clone() }
    }

    /// Returns the least position that a call has to show that began at a floor.
    pub(super) fn least(&self, floor: &Floor) -> u32 {
        let kept = floor.early.iter().filter(|early| !self.has_lost(early.point)).map(|early| early.count);
        kept.chain([floor.committed]).max().unwrap_or_default()
    }

    /// Whether the loss of an entry is announced, and final: an epoch with it is active.
    pub(super) fn has_lost(&self, point: LogPoint) -> bool {
        self.primaries.keys().filter_map(|epoch| self.records.get(epoch)).any(|r| r.losses.has(point))
    }

    fn committed_epoch(&self, index: Index) -> Option<Epoch> {
        let bytes = self.committed.get(index.0.checked_sub(1)? as usize)?;
        Some(Entry::decode(bytes).unwrap().epoch)
    }

    /// Judges when an answer leaves that saw the entries up to one; returns whether that is committed.
    pub(super) fn check_answered(&self, point: LogPoint) -> Result<bool, String> {
        match self.committed_epoch(point.index) {
            Some(epoch) if epoch == point.epoch => return Ok(true),
            Some(epoch) => {
                return Err(format!("[4] {point:?} is answered, and epoch {epoch} took its place"));
            }
            None if self.has_lost(point) => return Err(format!("[4] {point:?} is answered, and is lost")),
            None => {}
        }
        let config = &self.records[&point.epoch].config;
        if !config.is_asynchronous() {
            return Err(format!("[5] {point:?} is answered before it is committed"));
        }
        let has = |id: &&stead_core::ids::ReplicaId| {
            let Some(at) = self.at(**id) else { return true };
            let (before, entries) = survivors(self.nodes[at].durable.iter());
            point.index <= before || entries.iter().any(|entry| entry.point == point)
        };
        let (held, acks) = (config.members().iter().filter(has).count(), config.acks());
        if held < acks {
            return Err(format!("[4] {point:?} is answered, and {held} of {acks} members have it"));
        }
        Ok(false)
    }

    /// An answer left before what it saw was committed.
    pub(super) fn note_early(&mut self, point: LogPoint, number: Option<u32>, count: u32) {
        self.marks.early += 1;
        self.early.push(Early { point, number, count });
        self.note_floor();
    }

    /// Judges those answers that saw the entries up to this one, which is newly committed.
    pub(super) fn check_survivor(&mut self, point: LogPoint) -> Result<(), String> {
        if self.has_lost(point) {
            return Err(format!("[4] {point:?} is committed, and was announced as lost"));
        }
        let seen = self.early.extract_if(.., |early| early.point.index == point.index);
        let seen: Vec<Early> = seen.collect();
        for early in seen {
            let Early { point: answered, number, count } = early;
            if answered == point {
                let now = list(&self.model, "a");
                let is_right = match number {
                    Some(number) => now.get(count as usize - 1) == Some(&number),
                    None => now.len() == count as usize,
                };
                if !is_right {
                    return Err(format!("[4] {number:?} was answered as {count}, and became {now:?}"));
                }
                self.answered = self.answered.max(count);
            } else if self.has_lost(answered) {
                self.marks.lost += 1;
                self.lost.extend(number);
            } else {
                return Err(format!("[4] {answered:?} was answered and is lost, and that was not announced"));
            }
        }
        Ok(())
    }
}
