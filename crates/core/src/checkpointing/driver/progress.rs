//! The running checkpoint, from its beginning until it exists or is given up.

use super::{Action, Burial, Driver, LogSpace};
use crate::checkpointing::lineage::Lineage;
use crate::ids::{CheckpointNumber, Epoch, Index, ShardId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// The running checkpoint.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) number: CheckpointNumber,
    pub(super) bundle: String,
    /// The shards that it is of, each with its epoch.
    pub(super) epochs: BTreeMap<ShardId, Epoch>,
    pub(super) deadline: Time,
    pub(super) stage: Stage,
    /// By shard, the index of its marker, if its part counts.
    pub(super) marked: BTreeMap<ShardId, Index>,
    pub(super) written: BTreeSet<ShardId>,
    pub(super) committed: BTreeSet<ShardId>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The bundle is being created.
    Creating,
    /// The colour waits until fewer others are on their way.
    Waiting,
    /// Parts are handed to the bundle.
    Writing,
    /// All parts are written, and the bundle is made durable.
    Sealing,
    /// The bundle is durable; some markers are not committed.
    Sealed(Lineage),
    /// The manifest is stored.
    Storing(Lineage),
    /// Its tombstone is written; with the lineage, if its manifest may exist.
    Burying { reason: String, stored: Option<Lineage> },
}

impl Driver {
    pub(super) fn running_as(&mut self, number: CheckpointNumber) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| running.number == number)
    }

    /// Gives up a checkpoint that takes too long, passes on a colour that has waited, and begins a checkpoint that is due.
    pub(super) fn go_on(&mut self, now: Time) {
        if let Some(running) = &self.running
            && running.deadline <= now
        {
            let number = running.number;
            let timeout = self.options.timeout;
            self.give_up(number, format!("it took over {timeout:?} (checkpoints.timeout)"));
        }
        self.pass_colour();
        let is_due = self.due.is_some_and(|due| due <= now);
        if self.running.is_none() && (is_due || self.is_wanted) {
            self.is_wanted = false;
            self.due = self.options.interval.map(|interval| now.plus(interval.into()));
            if self.log_space == LogSpace::Spent {
                self.actions.push_back(Action::Refuse);
            } else {
                self.begin(now);
            }
        }
    }

    pub(super) fn begin(&mut self, now: Time) {
        let number = self.last.next();
        self.last = number;
        let bundle = self.names.draw(number);
        assert!(!self.in_use().contains(&bundle), "the name {bundle} was drawn twice");
        let (epochs, parts) = (self.epochs.clone(), self.epochs.clone());
        self.actions.push_back(Action::Create { number, bundle: bundle.clone(), parts });
        let before = self.running.replace(Running {
            number,
            bundle,
            epochs,
            deadline: now.plus(self.options.timeout.into()),
            stage: Stage::Creating,
            marked: BTreeMap::new(),
            written: BTreeSet::new(),
            committed: BTreeSet::new(),
        });
        assert!(before.is_none(), "checkpoint {number} begins while another one is taken");
    }

    pub(super) fn handle_created(&mut self, number: CheckpointNumber) {
        let Some(running) = self.running_as(number) else { return };
        if !matches!(running.stage, Stage::Creating) {
            return;
        }
        running.stage = Stage::Waiting;
        self.pass_colour();
    }

    pub(super) fn handle_marked(
        &mut self,
        shard: ShardId,
        number: CheckpointNumber,
        (epoch, index): (Epoch, Index),
        all: bool,
    ) {
        if self.epochs.get(&shard) != Some(&epoch) {
            // It was the shard's primary once: its markers are in no log that counts.
            self.actions.push_back(Action::Discard { shard, number });
            return;
        }
        self.last = self.last.max(number);
        let before = self.unconfirmed.insert(shard, number);
        if let Some(running) = &self.running
            && number > running.number
            && matches!(running.stage, Stage::Creating | Stage::Waiting | Stage::Writing)
        {
            // Its marker of the running checkpoint may never come.
            let (running, reason) = (running.number, format!("shard {shard} has colour {number} already"));
            self.give_up(running, reason);
        }
        let is_of_it = |running: &&mut Running| {
            matches!(running.stage, Stage::Writing) && running.epochs.get(&shard) == Some(&epoch)
        };
        let Some(running) = self.running_as(number).filter(is_of_it) else {
            // The colour of a given-up checkpoint has reached the shard late, with a message; or the shard has arrived
            // since the checkpoint began.
            self.actions.push_back(Action::Discard { shard, number });
            return;
        };
        if let (false, Some(before)) = (all, before) {
            let reason = format!("shard {shard} builds on its part of {before}, which is not a checkpoint");
            return self.give_up(number, reason);
        }
        running.marked.insert(shard, index);
        if !all && self.anew.contains(&shard) {
            let reason = format!("shard {shard} builds on a part from before its epoch {epoch}");
            return self.give_up(number, reason);
        }
        self.anew.remove(&shard);
    }

    pub(super) fn handle_written(&mut self, shard: ShardId, number: CheckpointNumber) {
        if !self.takes_part(shard, number) {
            return;
        }
        let running = self.running.as_mut().expect("it takes parts");
        running.written.insert(shard);
        self.seal_if_whole();
    }

    /// Seals the bundle once it has all parts.
    pub(super) fn seal_if_whole(&mut self) {
        let Some(running) = &mut self.running else { return };
        if matches!(running.stage, Stage::Writing) && running.written.len() == running.epochs.len() {
            running.stage = Stage::Sealing;
            self.actions.push_back(Action::Seal(running.number));
        }
    }

    /// Stores the manifest once every part is durable and every marker committed.
    pub(super) fn store_if_complete(&mut self) {
        let Some(running) = &mut self.running else { return };
        let is_complete = running.epochs.keys().all(|shard| running.committed.contains(shard));
        if let (true, Stage::Sealed(lineage)) = (is_complete, &mut running.stage) {
            running.stage = Stage::Storing(std::mem::take(lineage));
            self.actions.push_back(Action::StoreManifest(running.number));
        }
    }

    pub(super) fn handle_stored(&mut self, number: CheckpointNumber) {
        match self.running.take() {
            Some(Running {
                number: running,
                stage: Stage::Storing(lineage),
                epochs,
                marked,
                committed,
                ..
            }) if running == number => {
                self.complete(number, lineage, &epochs, &marked, &committed);
            }
            other => self.running = other,
        }
    }

    pub(super) fn handle_store_failed(&mut self, number: CheckpointNumber, reason: String, may_exist: bool) {
        let Some(running) = self.running_as(number) else { return };
        if let Stage::Storing(lineage) = &mut running.stage {
            let stored = may_exist.then(|| std::mem::take(lineage));
            running.stage = Stage::Burying { reason: reason.clone(), stored };
            self.actions.push_back(Action::Bury { number, reason });
        }
    }

    /// Gives the running checkpoint up; the next one begins anew. A checkpoint whose manifest is being stored is
    /// decided by that.
    pub(super) fn give_up(&mut self, number: CheckpointNumber, reason: String) {
        let Some(running) = self.running_as(number) else { return };
        if let Stage::Storing(_) | Stage::Burying { .. } = running.stage {
            return;
        }
        running.stage = Stage::Burying { reason: reason.clone(), stored: None };
        // Its further actions are dropped.
        self.actions.retain(|action| {
            !matches!(
                action,
                Action::Create { .. } | Action::ForceFull(_) | Action::Colour(_) | Action::Seal(_)
            )
        });
        self.actions.push_back(Action::Bury { number, reason });
    }

    pub(super) fn handle_buried(&mut self, number: CheckpointNumber, burial: Burial) {
        // Numbers of the previous life are not running.
        let Some(Running { bundle, stage, epochs, marked, committed, .. }) =
            self.running.take_if(|running| running.number == number)
        else {
            return;
        };
        let Stage::Burying { reason, stored } = stage else {
            panic!("checkpoint {number} was given up without need");
        };
        match (burial, stored) {
            (Burial::Complete, Some(lineage)) => {
                return self.complete(number, lineage, &epochs, &marked, &committed);
            }
            (Burial::Unknown, Some(lineage)) => {
                self.doubtful.insert(bundle);
                self.doubtful.extend(lineage.bundles().iter().map(|bundle| bundle.name.clone()));
            }
            // Without a manifest of its own, the checkpoint is not of this life.
            (Burial::Tombstone, _) | (Burial::Complete | Burial::Unknown, None) => {}
        }
        self.drop_sections();
        // Those who requested the next one get this failure, too.
        self.is_wanted = false;
        self.actions.push_back(Action::GivenUp { number, reason });
        self.apply_held();
        // While no checkpoint is completed, tombstones must not accumulate, and a full disk may get space.
        self.collect();
    }

    pub(super) fn complete(
        &mut self,
        number: CheckpointNumber,
        lineage: Lineage,
        epochs: &BTreeMap<ShardId, Epoch>,
        marked: &BTreeMap<ShardId, Index>,
        committed: &BTreeSet<ShardId>,
    ) {
        for shard in epochs.keys() {
            let is_whole = marked.contains_key(shard) && committed.contains(shard);
            assert!(is_whole, "checkpoint {number} is complete without the marker of shard {shard}");
        }
        self.lineage = lineage;
        self.drop_sections();
        self.unconfirmed.retain(|_, of| *of != number);
        self.doubtful.clear();
        self.actions.push_back(Action::Completed(number));
        let tops = marked.iter().map(|(shard, index)| (*shard, *index)).collect();
        self.actions.push_back(Action::Trim(tops));
        self.apply_held();
        self.collect();
        self.merge();
    }
}
