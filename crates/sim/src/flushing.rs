//! The node's log thread: entries gather, are appended and synced together, and then the shards learn of it.

use crate::marks::Mark;
use crate::node::NODE;
use crate::profile::one_in;
use crate::violation::Violation;
use crate::world::{End, Inside, Outcomes, World};
use std::sync::{Arc, PoisonError};
use stead_core::shard::Input;
use stead_store::wal::{Batch, WalError};

impl World<'_> {
    pub(crate) fn flush_soon(&mut self) {
        let node = self.node.as_mut().expect("only a living node has a log");
        if !node.log.busy {
            node.log.busy = true;
            let delay = self.random(self.profile.flush_delay);
            self.inside(delay, Inside::Flush);
        }
    }

    pub(crate) fn flush(&mut self) -> Outcomes {
        let before = self.disk.micros();
        let log = &mut self.node.as_mut().expect("checked by the caller").log;
        let mut batch = Batch::new();
        let max = log.wal.batch_bytes_max();
        let mut taken = 0;
        for (shard, epoch, index, bytes) in &log.waiting {
            if batch.bytes() + bytes.len() + 64 > max {
                break;
            }
            batch.push(*shard, *epoch, *index, bytes);
            taken += 1;
        }
        match log.wal.append(&[batch]) {
            Ok(_) => {
                for (shard, _, index, _) in log.waiting.drain(..taken) {
                    log.unsynced.insert(shard, index);
                }
                let again = std::mem::replace(&mut log.full, false);
                let delay = self.disk.micros() - before;
                self.inside(delay + 1, Inside::Sync);
                if again {
                    self.marks.hit(Mark::RoomAgain);
                    return self.give_all(|_| Input::Full(false));
                }
                Ok(())
            }
            Err(WalError::NoSpace { .. }) => {
                self.marks.hit(Mark::DiskFull);
                let first = !std::mem::replace(&mut log.full, true);
                self.inside(20_000, Inside::Flush);
                if first {
                    return self.give_all(|_| Input::Full(true));
                }
                Ok(())
            }
            Err(error) => self.storage_failed(&error.to_string()),
        }
    }

    pub(crate) fn sync(&mut self) -> Outcomes {
        let before = self.disk.micros();
        let log = &mut self.node.as_mut().expect("checked by the caller").log;
        if let Err(error) = log.wal.sync() {
            return self.storage_failed(&error.to_string());
        }
        let synced = std::mem::take(&mut log.unsynced);
        let more = !log.waiting.is_empty();
        log.busy = false;
        let delay = self.disk.micros() - before;
        self.learn_durable()?;
        for (shard, upto) in synced {
            let durable = self.model.durable(shard);
            if upto > durable {
                let what = format!(
                    "shard {shard}: entry {upto} is reported as stored, and the disk holds {durable}"
                );
                return Err(Violation::new(5, what).into());
            }
            let epoch = self.node.as_ref().expect("still there").epoch;
            let after = delay + self.random(self.profile.stored_delay);
            let stored = Input::Stored { member: NODE, epoch, upto };
            if one_in(&mut self.rng, self.profile.channel_again) {
                self.inside(after * 3, Inside::Input(shard, stored.clone()));
            }
            self.inside(after, Inside::Input(shard, stored));
        }
        if more {
            self.flush_soon();
        }
        Ok(())
    }

    /// Notes what the disk holds of the log.
    pub(crate) fn learn_durable(&mut self) -> Outcomes {
        let log = Arc::clone(&self.disk_log);
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        for (shard, covered) in self.topology.shards().zip(&mut self.covered) {
            if log.covers_the_past() {
                *covered = (*covered).max(self.recovered[shard.0 as usize]).max(log.covered(shard));
            }
            self.model.synced(shard, log.durable(shard), self.workload)?;
        }
        Ok(())
    }

    /// Storage failed: either the power is gone, or the process has to end for it knows no longer what is on its disk.
    pub(crate) fn storage_failed(&mut self, error: &str) -> Outcomes {
        if self.tracing {
            eprintln!("                             {error}");
        }
        if self.disk.is_crashed() {
            self.marks.hit(Mark::CrashInIo);
            self.end(End::Power)
        } else {
            self.marks.hit(Mark::IoFailed);
            self.end(End::Process)
        }
    }
}
