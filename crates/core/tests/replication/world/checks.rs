//! The judgement on every commit and state.

use super::World;
use super::node::survivors;
use super::service::list;
use stead_core::entry::Entry;
use stead_core::ids::Index;
use stead_core::replication::epoch::EpochRecord;
use stead_core::replication::table::LogPoint;

impl World {
    /// Compares what a node newly takes for committed, and its state.
    pub(super) fn check(&mut self, at: usize) -> Result<(), String> {
        let node = &self.nodes[at];
        let Some(replica) = &node.replica else { return Ok(()) };
        if let Some(shard) = replica.shard() {
            shard.check().map_err(|violation| violation.to_string())?;
        }
        if let Some(record) = replica.record() {
            // A planted bug may have it led in another life.
            let known = self.records.get(&record.config.epoch());
            let is_known =
                known.is_some_and(|known| *known == EpochRecord { life: known.life, ..record.clone() });
            if !is_known {
                return Err(format!(
                    "[1] {} takes part in an epoch {record:?}, recorded as {known:?}",
                    node.id
                ));
            }
        }
        let (id, commit) = (node.id, replica.replica().commit());
        if commit < node.checked {
            return Err(format!("[2] the commit index of {id} falls from {} to {commit}", node.checked));
        }
        if commit > node.checked {
            let (leads, mine) = (replica.replica().leads(), (id, node.life));
            let (before, entries) = survivors(node.records());
            for index in node.checked.0.max(before.0) + 1..=commit.0 {
                let entry = entries.iter().find(|entry| entry.point.index == Index(index));
                let Some(entry) = entry else {
                    return Err(format!("[2] {id} commits entry {index} without having it"));
                };
                match self.committed.get(index as usize - 1) {
                    Some(known) if **known == *entry.bytes => {}
                    Some(_) => return Err(format!("[2] entry {index} of {id} is another one")),
                    None => {
                        let Some(led) = leads else {
                            return Err(format!("[2] {id} commits entry {index}, and leads nothing"));
                        };
                        let first = *self.primaries.entry(led).or_insert(mine);
                        if first != mine {
                            return Err(format!("[1] {mine:?} and {first:?} commit in epoch {led}"));
                        }
                        let contents = Entry::decode(&entry.bytes).unwrap();
                        let epoch = contents.epoch;
                        self.model.apply(contents).map_err(|misfit| format!("[2] {misfit}"))?;
                        self.committed.push(entry.bytes.clone());
                        self.hashes.push(self.model.hash());
                        self.stale.counts.push(list(&self.model, "a").len() as u32);
                        self.check_survivor(LogPoint { epoch, index: Index(index) })?;
                        for key in ["a", "b"] {
                            let mut numbers = list(&self.model, key);
                            let count = numbers.len();
                            numbers.sort_unstable();
                            numbers.dedup();
                            if numbers.len() < count {
                                return Err(format!("[7] a request or message was applied twice to {key}"));
                            }
                        }
                    }
                }
            }
        }
        let node = &self.nodes[at];
        let Some(replica) = &node.replica else { return Ok(()) };
        let state = replica.committed_state().map(|state| (state.position().index, state.hash()));
        if let Some((index, hash)) = state {
            if index < node.seen {
                return Err(format!("[4] the state of {id} rolls back from {} to {index}", node.seen));
            }
            if self.hashes.get(index.0 as usize) != Some(&hash) {
                return Err(format!("[14] the state of {id} at {index} is another one"));
            }
        }
        let node = &mut self.nodes[at];
        node.checked = commit;
        node.seen = state.map_or(node.seen, |(index, _)| index);
        Ok(())
    }
}
