//! Takes checkpoints, one after the other: when one begins, which parts count, when it exists or is given up, and what
//! becomes unnecessary by it.
//!
//! Inputs go in by [`Driver::handle`], and what is to be done comes out of [`Driver::poll_action`], to be done in that order.
//! An action that reads or writes what is stored has an outcome, which is the next input about it. Times are those of a
//! steady clock.

use crate::checkpointing::bundle::BundleNames;
use crate::checkpointing::lineage::Lineage;
use crate::checkpointing::merging::{Merge, Merged, Policy, plan, renewals};
use crate::checkpointing::retention::{Chooser, Garbage, Inventory, Retention};
use crate::ids::{CheckpointNumber, Colour, Epoch, Index, ShardId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Most objects that one action deletes: each costs a sync.
const DELETE_MAX: usize = 64;

/// The settings of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The time between the beginnings of two checkpoints; `None`: only when one is wanted.
    pub interval: Option<Duration>,
    /// The time after which a checkpoint is given up.
    pub timeout: Duration,
    /// The newest so many checkpoints are kept; at least 1, whatever is set here.
    pub keep: usize,
    /// The time for which a bundle that nothing refers to stays.
    pub grace: Duration,
    /// When bundles are merged.
    pub policy: Policy,
}

/// The checkpoints that a life finds at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// That of the newest complete checkpoint.
    pub lineage: Lineage,
    /// The greatest number that is decided.
    pub decided: CheckpointNumber,
    /// The greatest number that any shard has as its colour.
    pub seen: CheckpointNumber,
}

/// An event that the driver reacts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time went by.
    Tick,
    /// A checkpoint is wanted now.
    Wanted,
    /// From now on begin one after each such time, or only when one is wanted.
    Interval(Option<Duration>),
    /// Whether the log is full and what is left of it is needed for the work that has begun: no checkpoint begins, for it
    /// appends a marker to each shard.
    LogSpent(bool),
    /// The bundle of [`Action::Create`] is begun.
    Created(CheckpointNumber),
    /// A shard has appended a marker, and a snapshot has begun: of all its records, or of those that changed since the last
    /// one.
    Marked {
        /// The shard.
        shard: ShardId,
        /// The shard's new colour.
        number: CheckpointNumber,
        /// The epoch of the marker.
        epoch: Epoch,
        /// The index of the marker.
        index: Index,
        /// The snapshot is of all records.
        all: bool,
    },
    /// All of a shard's part is handed to the bundle; it need not be durable.
    PartWritten {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// A shard's marker is committed.
    MarkerCommitted {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        number: CheckpointNumber,
    },
    /// The bundle could not be begun, written or sealed, or the checkpoint is not wanted any more.
    Failed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// For people.
        reason: String,
    },
    /// The bundle is durable.
    Sealed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// [`Driver::lineage`] with the sections of the bundle.
        lineage: Lineage,
    },
    /// The manifest is durable: the checkpoint exists.
    Stored(CheckpointNumber),
    /// The manifest was not stored.
    StoreFailed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// For people.
        reason: String,
        /// It may be there all the same, or come to be there.
        may_exist: bool,
    },
    /// [`Action::Bury`] was tried.
    Buried {
        /// The number.
        number: CheckpointNumber,
        /// The new value.
        burial: Burial,
    },
    /// The contents of the store, and the checkpoints that are being read.
    Inventory {
        /// The contents of the store.
        inventory: Inventory,
        /// Checkpoints that are being read or have to be kept.
        pinned: BTreeSet<CheckpointNumber>,
    },
    /// The objects that [`Action::Delete`] names are deleted.
    Deleted,
    /// [`Action::Look`] or [`Action::Delete`] failed: the next collection tries again.
    CollectFailed,
    /// The merge has ended: with a durable bundle, or in vain.
    Merged(Option<Merged>),
}

/// The result of giving up a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burial {
    /// Its tombstone is durable.
    Tombstone,
    /// It is a checkpoint: its manifest was stored after all.
    Complete,
    /// It is not known. It is never used again, and no manifest is stored under it.
    Unknown,
}

/// An action for the caller to perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin the bundle of a checkpoint: [`Input::Created`] or [`Input::Failed`].
    Create {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The name of the bundle.
        bundle: String,
    },
    /// The next parts of these shards hold all their records. Comes before the colour.
    ForceFull(Vec<ShardId>),
    /// Give all shards the colour.
    Colour(Colour),
    /// Drain a shard's snapshot to nowhere: no checkpoint takes it.
    Discard {
        /// The shard.
        shard: ShardId,
        /// Its colour.
        number: CheckpointNumber,
    },
    /// Complete the bundle: [`Input::Sealed`] or [`Input::Failed`].
    Seal(CheckpointNumber),
    /// Store the manifest: [`Input::Stored`] or [`Input::StoreFailed`].
    StoreManifest(CheckpointNumber),
    /// Give the number up for ever, by a tombstone: [`Input::Buried`].
    Bury {
        /// The number.
        number: CheckpointNumber,
        /// For people.
        reason: String,
    },
    /// The checkpoint exists: say so to its shards, before the next colour, and to those who want it.
    Completed(CheckpointNumber),
    /// The checkpoint never will exist, or may not be counted on: say so to its shards and to those who want it.
    GivenUp {
        /// The checkpoint.
        number: CheckpointNumber,
        /// For people.
        reason: String,
    },
    /// No checkpoint begins, for the log is spent: say so to those who want one.
    Refuse,
    /// The log needs no entry up to these indexes any more.
    Trim(Vec<(ShardId, Index)>),
    /// List what the store holds: [`Input::Inventory`] or [`Input::CollectFailed`].
    Look,
    /// Delete these in this order: [`Input::Deleted`] or [`Input::CollectFailed`].
    Delete(Vec<Garbage>),
    /// Merge bundles, beside all that follows: [`Input::Merged`].
    Merge {
        /// The name of the bundle to write.
        output: String,
        /// The greatest number that was begun.
        number: CheckpointNumber,
        /// The bundles to merge.
        merge: Merge,
    },
}

/// Decides about the checkpoints of a fixed set of shards.
#[derive(Debug)]
pub struct Driver {
    options: Options,
    names: BundleNames,
    /// The epoch of each shard: a part of another one does not count.
    epochs: BTreeMap<ShardId, Epoch>,
    lineage: Lineage,
    /// The greatest number that was begun or seen: none comes twice.
    last: CheckpointNumber,
    running: Option<Running>,
    /// The last snapshot of each shard, unless its checkpoint exists: the shard's next part must hold everything. The shard
    /// sees to that by itself; this is the check of it.
    unconfirmed: BTreeMap<ShardId, CheckpointNumber>,
    is_wanted: bool,
    due: Option<Time>,
    log_spent: bool,
    chooser: Chooser,
    collection: Collection,
    merge: Option<RunningMerge>,
    /// Bundles of numbers of which it is not known whether they are checkpoints, until a greater number is one: then no start
    /// needs them.
    doubtful: BTreeSet<String>,
    actions: VecDeque<Action>,
}

/// The checkpoint that is taken.
#[derive(Debug)]
struct Running {
    number: CheckpointNumber,
    bundle: String,
    deadline: Time,
    stage: Stage,
    /// By shard, the index of its marker, if its part counts.
    marked: BTreeMap<ShardId, Index>,
    written: BTreeSet<ShardId>,
    committed: BTreeSet<ShardId>,
}

#[derive(Debug)]
enum Stage {
    /// The bundle is begun.
    Creating,
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

#[derive(Debug, Default)]
struct Collection {
    stage: Collecting,
    /// Something became unnecessary meanwhile.
    again: bool,
}

#[derive(Debug, Default)]
enum Collecting {
    #[default]
    No,
    Looking,
    Deleting(VecDeque<Garbage>),
}

#[derive(Debug)]
struct RunningMerge {
    output: String,
    inputs: BTreeSet<String>,
    /// It has ended, and waits until the lineage of the sealed checkpoint is the one to change.
    held: Option<Merged>,
}

impl Driver {
    /// Nothing runs. Numbers that the life before left undecided are given up first. `names` gives the bundles their names,
    /// `epochs` is the epoch of each shard.
    #[must_use]
    pub fn new(
        now: Time,
        options: Options,
        names: BundleNames,
        epochs: BTreeMap<ShardId, Epoch>,
        recovered: Recovered,
    ) -> Self {
        let Recovered { lineage, decided, seen } = recovered;
        let mut driver = Self {
            due: options.interval.map(|interval| plus(now, interval)),
            options,
            names,
            epochs,
            lineage,
            last: decided.max(seen),
            running: None,
            unconfirmed: BTreeMap::new(),
            is_wanted: false,
            log_spent: false,
            chooser: Chooser::new(),
            collection: Collection::default(),
            merge: None,
            doubtful: BTreeSet::new(),
            actions: VecDeque::new(),
        };
        for number in decided.0 + 1..=driver.last.0 {
            let reason = "the process ended while it was taken".to_owned();
            driver.actions.push_back(Action::Bury { number: CheckpointNumber(number), reason });
        }
        if driver.last > decided {
            // A node that ends again and again before it completes a checkpoint must not pile up tombstones either.
            driver.collect();
        }
        driver
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Tick => {}
            Input::Wanted => self.is_wanted = true,
            Input::Interval(interval) => {
                self.options.interval = interval;
                self.due = interval.map(|interval| plus(now, interval));
            }
            Input::LogSpent(spent) => self.log_spent = spent,
            Input::Created(number) => self.handle_created(number),
            Input::Marked { shard, number, epoch, index, all } => {
                self.handle_marked(shard, number, (epoch, index), all);
            }
            Input::PartWritten { shard, number } => self.handle_written(shard, number),
            Input::MarkerCommitted { shard, number } => {
                // Of a marker that does not count nothing else does.
                if let Some(running) = self.running_as(number)
                    && running.marked.contains_key(&shard)
                {
                    running.committed.insert(shard);
                    self.store_if_complete();
                }
            }
            Input::Failed { number, reason } => self.give_up(number, reason),
            Input::Sealed { number, lineage } => {
                if let Some(running) = self.running_as(number)
                    && matches!(running.stage, Stage::Sealing)
                {
                    running.stage = Stage::Sealed(lineage);
                    self.store_if_complete();
                }
            }
            Input::Stored(number) => self.handle_stored(number),
            Input::StoreFailed { number, reason, may_exist } => {
                self.handle_store_failed(number, reason, may_exist);
            }
            Input::Buried { number, burial } => self.handle_buried(number, burial),
            Input::Inventory { inventory, pinned } => self.handle_inventory(now, inventory, pinned),
            Input::Deleted => self.delete_more(),
            Input::CollectFailed => self.collection = Collection::default(),
            Input::Merged(merged) => self.handle_merged(merged),
        }
        self.go_on(now);
    }

    /// From the next checkpoint on one is given up after this time.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.options.timeout = timeout;
    }

    /// The next action; `None` if there is none until the next input.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The time at which a [`Input::Tick`] makes a difference.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match &self.running {
            Some(Running { stage: Stage::Storing(_) | Stage::Burying { .. }, .. }) => None,
            Some(running) => Some(running.deadline),
            None => self.due,
        }
    }

    /// The lineage upon which the next bundle is sealed.
    #[must_use]
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// The checkpoint that is taken.
    #[must_use]
    pub fn running(&self) -> Option<CheckpointNumber> {
        self.running.as_ref().map(|running| running.number)
    }

    /// The greatest number that was begun or seen.
    #[must_use]
    pub fn last(&self) -> CheckpointNumber {
        self.last
    }

    /// Whether a shard's part of a checkpoint is to be written: its marker counts, and the rest of it is missing.
    #[must_use]
    pub fn takes_part(&self, shard: ShardId, number: CheckpointNumber) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.number == number
                && matches!(running.stage, Stage::Writing)
                && running.marked.contains_key(&shard)
                && !running.written.contains(&shard)
        })
    }

    /// The bundles that must not be deleted though no manifest may name them: those of the lineage, of the checkpoint that is
    /// taken, and what a merge reads and writes.
    #[must_use]
    pub fn in_use(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.doubtful.clone();
        let mut add = |lineage: &Lineage| {
            names.extend(lineage.bundles().iter().map(|bundle| bundle.name.clone()));
        };
        add(&self.lineage);
        if let Some(running) = &self.running {
            match &running.stage {
                Stage::Sealed(lineage)
                | Stage::Storing(lineage)
                | Stage::Burying { stored: Some(lineage), .. } => add(lineage),
                Stage::Creating | Stage::Writing | Stage::Sealing | Stage::Burying { stored: None, .. } => {}
            }
            names.insert(running.bundle.clone());
        }
        if let Some(merge) = &self.merge {
            names.insert(merge.output.clone());
            names.extend(merge.inputs.iter().cloned());
        }
        names
    }

    fn running_as(&mut self, number: CheckpointNumber) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| running.number == number)
    }

    /// Gives up what takes too long, and begins what is due.
    fn go_on(&mut self, now: Time) {
        if let Some(running) = &self.running
            && running.deadline <= now
        {
            let number = running.number;
            let timeout = self.options.timeout;
            self.give_up(number, format!("it took over {timeout:?} (checkpoints.timeout)"));
        }
        let is_due = self.due.is_some_and(|due| due <= now);
        if self.running.is_none() && (is_due || self.is_wanted) {
            self.is_wanted = false;
            self.due = self.options.interval.map(|interval| plus(now, interval));
            if self.log_spent {
                self.actions.push_back(Action::Refuse);
            } else {
                self.begin(now);
            }
        }
    }

    fn begin(&mut self, now: Time) {
        let number = self.last.next();
        self.last = number;
        let bundle = self.names.draw(number);
        assert!(!self.in_use().contains(&bundle), "the name {bundle} was drawn twice");
        self.actions.push_back(Action::Create { number, bundle: bundle.clone() });
        let before = self.running.replace(Running {
            number,
            bundle,
            deadline: plus(now, self.options.timeout),
            stage: Stage::Creating,
            marked: BTreeMap::new(),
            written: BTreeSet::new(),
            committed: BTreeSet::new(),
        });
        assert!(before.is_none(), "checkpoint {number} begins while another one is taken");
    }

    fn handle_created(&mut self, number: CheckpointNumber) {
        let Some(running) = self.running_as(number) else { return };
        if !matches!(running.stage, Stage::Creating) {
            return;
        }
        running.stage = Stage::Writing;
        let full = renewals(&self.lineage, &self.options.policy);
        if !full.is_empty() {
            self.actions.push_back(Action::ForceFull(full));
        }
        self.actions.push_back(Action::Colour(number.colour()));
    }

    fn handle_marked(
        &mut self,
        shard: ShardId,
        number: CheckpointNumber,
        (epoch, index): (Epoch, Index),
        all: bool,
    ) {
        if self.epochs.get(&shard) != Some(&epoch) {
            // It was the shard's primary once: what it marks is in no log that counts.
            self.actions.push_back(Action::Discard { shard, number });
            return;
        }
        self.last = self.last.max(number);
        let before = self.unconfirmed.insert(shard, number);
        if let Some(running) = &self.running
            && number > running.number
            && matches!(running.stage, Stage::Creating | Stage::Writing)
        {
            // Its marker of the running one may be left out for good.
            let (running, reason) = (running.number, format!("shard {shard} has colour {number} already"));
            self.give_up(running, reason);
        }
        let running = self.running_as(number).filter(|running| matches!(running.stage, Stage::Writing));
        let Some(running) = running else {
            // A colour of a checkpoint that was given up has come to the shard late, with a message.
            self.actions.push_back(Action::Discard { shard, number });
            return;
        };
        if let (false, Some(before)) = (all, before) {
            let reason = format!("shard {shard} builds on its part of {before}, which is not a checkpoint");
            return self.give_up(number, reason);
        }
        running.marked.insert(shard, index);
    }

    fn handle_written(&mut self, shard: ShardId, number: CheckpointNumber) {
        if !self.takes_part(shard, number) {
            return;
        }
        let shards = self.epochs.len();
        let running = self.running.as_mut().expect("it takes parts");
        running.written.insert(shard);
        if running.written.len() == shards {
            running.stage = Stage::Sealing;
            self.actions.push_back(Action::Seal(number));
        }
    }

    /// Every part is durable and every marker committed: the manifest may be stored.
    fn store_if_complete(&mut self) {
        let Some(running) = &mut self.running else { return };
        let is_complete = self.epochs.keys().all(|shard| running.committed.contains(shard));
        if let (true, Stage::Sealed(lineage)) = (is_complete, &mut running.stage) {
            running.stage = Stage::Storing(std::mem::take(lineage));
            self.actions.push_back(Action::StoreManifest(running.number));
        }
    }

    fn handle_stored(&mut self, number: CheckpointNumber) {
        match self.running.take() {
            Some(Running { number: running, stage: Stage::Storing(lineage), marked, committed, .. })
                if running == number =>
            {
                self.complete(number, lineage, &marked, &committed);
            }
            other => self.running = other,
        }
    }

    fn handle_store_failed(&mut self, number: CheckpointNumber, reason: String, may_exist: bool) {
        let Some(running) = self.running_as(number) else { return };
        if let Stage::Storing(lineage) = &mut running.stage {
            let stored = may_exist.then(|| std::mem::take(lineage));
            running.stage = Stage::Burying { reason: reason.clone(), stored };
            self.actions.push_back(Action::Bury { number, reason });
        }
    }

    /// The work goes on, and the next checkpoint begins anew. One whose manifest is being stored is decided by that.
    fn give_up(&mut self, number: CheckpointNumber, reason: String) {
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

    fn handle_buried(&mut self, number: CheckpointNumber, burial: Burial) {
        // Numbers of the life before are none that run.
        let Some(Running { bundle, stage, marked, committed, .. }) =
            self.running.take_if(|running| running.number == number)
        else {
            return;
        };
        let Stage::Burying { reason, stored } = stage else {
            panic!("checkpoint {number} was given up without need");
        };
        match (burial, stored) {
            (Burial::Complete, Some(lineage)) => {
                return self.complete(number, lineage, &marked, &committed);
            }
            (Burial::Unknown, Some(lineage)) => {
                self.doubtful.insert(bundle);
                self.doubtful.extend(lineage.bundles().iter().map(|bundle| bundle.name.clone()));
            }
            // Without a manifest of its own it is not this life's, whatever it is.
            (Burial::Tombstone, _) | (Burial::Complete | Burial::Unknown, None) => {}
        }
        // Those who want the next one hear of this failure, too.
        self.is_wanted = false;
        self.actions.push_back(Action::GivenUp { number, reason });
        self.apply_held();
        // While none is completed, tombstones must not pile up; and a full disk may get room.
        self.collect();
    }

    fn complete(
        &mut self,
        number: CheckpointNumber,
        lineage: Lineage,
        marked: &BTreeMap<ShardId, Index>,
        committed: &BTreeSet<ShardId>,
    ) {
        for shard in self.epochs.keys() {
            let is_whole = marked.contains_key(shard) && committed.contains(shard);
            assert!(is_whole, "checkpoint {number} is complete without the marker of shard {shard}");
        }
        self.lineage = lineage;
        self.unconfirmed.retain(|_, of| *of != number);
        self.doubtful.clear();
        self.actions.push_back(Action::Completed(number));
        let tops = marked.iter().map(|(shard, index)| (*shard, *index)).collect();
        self.actions.push_back(Action::Trim(tops));
        self.apply_held();
        self.collect();
        self.merge();
    }

    /// Looks for what is needed no more, now or once the collection that runs has ended.
    fn collect(&mut self) {
        if let Collecting::No = self.collection.stage {
            self.collection.stage = Collecting::Looking;
            self.actions.push_back(Action::Look);
        } else {
            self.collection.again = true;
        }
    }

    fn handle_inventory(&mut self, now: Time, inventory: Inventory, pinned: BTreeSet<CheckpointNumber>) {
        if !matches!(self.collection.stage, Collecting::Looking) {
            return;
        }
        let grace = u64::try_from(self.options.grace.as_micros()).unwrap_or(u64::MAX);
        let retention = Retention { keep: self.options.keep, pinned, grace };
        let in_use = self.in_use();
        let garbage = self.chooser.choose(inventory, now, &retention, &in_use).garbage;
        for garbage in &garbage {
            let is_used = matches!(garbage, Garbage::Bundle(name) if in_use.contains(name));
            assert!(!is_used, "{garbage:?} is in use and was chosen to be deleted");
        }
        self.collection.stage = Collecting::Deleting(garbage.into());
        self.delete_more();
    }

    fn delete_more(&mut self) {
        let Collecting::Deleting(garbage) = &mut self.collection.stage else { return };
        let next: Vec<Garbage> = garbage.drain(..garbage.len().min(DELETE_MAX)).collect();
        if !next.is_empty() {
            self.actions.push_back(Action::Delete(next));
            return;
        }
        let Collection { again, .. } = std::mem::take(&mut self.collection);
        if again {
            self.collect();
        }
    }

    /// Merges bundles, if that is worth its cost; the next checkpoint builds upon the result.
    fn merge(&mut self) {
        if self.merge.is_some() {
            return;
        }
        let Some(merge) = plan(&self.lineage, &self.options.policy) else { return };
        let output = self.names.draw(self.last);
        let inputs = merge.inputs.iter().map(|bundle| bundle.name.clone()).collect();
        // From now on it is in use.
        self.merge = Some(RunningMerge { output: output.clone(), inputs, held: None });
        self.actions.push_back(Action::Merge { output, number: self.last, merge });
    }

    fn handle_merged(&mut self, merged: Option<Merged>) {
        let Some(merge) = &mut self.merge else { return };
        match merged {
            Some(merged) => {
                assert_eq!(merged.bundle.name, merge.output, "a merge has written another bundle");
                merge.held = Some(merged);
                // A checkpoint that is sealed builds upon the lineage as it was then: its own takes the merge over.
                let is_sealed = self.running.as_ref().is_some_and(|running| match running.stage {
                    Stage::Creating | Stage::Writing => false,
                    Stage::Sealing | Stage::Sealed(_) | Stage::Storing(_) | Stage::Burying { .. } => true,
                });
                if !is_sealed {
                    self.apply_held();
                }
            }
            None => {
                self.merge = None;
                self.collect();
            }
        }
    }

    /// Puts a merge that has ended in the place of what it was made from, if that is there still.
    fn apply_held(&mut self) {
        if let Some(merge) = self.merge.take_if(|merge| merge.held.is_some()) {
            self.lineage.apply(&merge.held.expect("checked above"));
            self.collect();
        }
    }
}

fn plus(time: Time, duration: Duration) -> Time {
    time.plus_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
