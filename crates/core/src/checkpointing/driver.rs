//! Takes checkpoints one after the other: decides when one begins, which parts count, when it exists or is given up,
//! and what becomes unnecessary by it.
//!
//! Inputs go in through [`Driver::handle`], and actions come out of [`Driver::poll_action`], to be performed in that
//! order. An action that reads or writes stored data has an outcome, which is the next input about it. Times are those
//! of a steady clock.

use crate::checkpointing::bundle::BundleNames;
use crate::checkpointing::lineage::{Lineage, Merged};
use crate::checkpointing::merging::{Merge, Policy, plan, renewals};
use crate::checkpointing::retention::{Chooser, Garbage, Inventory, Retention};
use crate::ids::{CheckpointNumber, Colour, Epoch, Index, ShardId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Maximum number of objects that one action deletes: each costs a sync.
const DELETE_MAX: usize = 64;

/// The settings of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The time between the beginnings of two checkpoints; `None`: only on request.
    pub interval: Option<Duration>,
    /// The time after which a checkpoint is given up.
    pub timeout: Duration,
    /// Number of newest checkpoints to keep; at least 1, whatever is set here.
    pub keep: usize,
    /// The time for which an unreferenced bundle is kept.
    pub grace: Duration,
    /// When bundles are merged.
    pub policy: Policy,
}

/// The checkpoints at the start of a life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The lineage of the newest complete checkpoint.
    pub lineage: Lineage,
    /// The greatest decided number.
    pub decided: CheckpointNumber,
    /// The greatest colour of any shard.
    pub seen: CheckpointNumber,
}

/// An event that the driver reacts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A checkpoint is requested now.
    Wanted,
    /// Begin checkpoints after each such time from now on, or only on request.
    Interval(Option<Duration>),
    /// Whether the log is full, and its remaining space is for work that has begun: no checkpoint begins, because it
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
    /// A shard's whole part is handed to the bundle; it need not be durable.
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
    /// The bundle could not be created, written or sealed, or the checkpoint is not wanted any more.
    Failed {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The reason, for people.
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
        /// The reason, for people.
        reason: String,
        /// Whether it may exist nevertheless, or come to exist.
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
        /// Checkpoints that are being read or must be kept.
        pinned: BTreeSet<CheckpointNumber>,
    },
    /// The objects that [`Action::Delete`] names are deleted.
    Deleted,
    /// [`Action::Look`] or [`Action::Delete`] failed: the next collection tries again.
    CollectFailed,
    /// The merge has ended, with a durable bundle or with a failure.
    Merged(Option<Merged>),
}

/// The result of giving up a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burial {
    /// Its tombstone is durable.
    Tombstone,
    /// It is a checkpoint: its manifest was stored after all.
    Complete,
    /// Unknown. The number is never used again, and no manifest is stored under it.
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
        /// The shards that it is of, each with its epoch.
        parts: BTreeMap<ShardId, Epoch>,
    },
    /// The next parts of these shards hold all their records. Comes before the colour.
    ForceFull(Vec<ShardId>),
    /// Pass the colour to all shards.
    Colour(Colour),
    /// Drain and drop a shard's snapshot: no checkpoint takes it.
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
        /// The reason, for people.
        reason: String,
    },
    /// The checkpoint exists: report it to its shards, before the next colour, and to those who requested it.
    Completed(CheckpointNumber),
    /// The checkpoint will never exist, or must not be relied upon: report it to its shards and to those who requested
    /// it.
    GivenUp {
        /// The checkpoint.
        number: CheckpointNumber,
        /// The reason, for people.
        reason: String,
    },
    /// No checkpoint begins, because the log is spent: report it to those who requested one.
    Refuse,
    /// The log no longer needs entries up to these indexes.
    Trim(Vec<(ShardId, Index)>),
    /// List the contents of the store: [`Input::Inventory`] or [`Input::CollectFailed`].
    Look,
    /// Delete these in this order: [`Input::Deleted`] or [`Input::CollectFailed`].
    Delete(Vec<Garbage>),
    /// Merge bundles, beside all later actions: [`Input::Merged`].
    Merge {
        /// The name of the bundle to write.
        output: String,
        /// The greatest number that was begun.
        number: CheckpointNumber,
        /// The bundles to merge.
        merge: Merge,
    },
}

/// Decides on the checkpoints of a fixed set of shards.
#[derive(Debug)]
pub struct Driver {
    options: Options,
    names: BundleNames,
    /// The epoch of each shard: a part of another epoch does not count.
    epochs: BTreeMap<ShardId, Epoch>,
    lineage: Lineage,
    /// The greatest number that was begun or seen: no number is used twice.
    last: CheckpointNumber,
    running: Option<Running>,
    /// The last snapshot of each shard, unless its checkpoint exists: then the shard's next part must hold all records.
    /// The shard itself ensures that; this checks it.
    unconfirmed: BTreeMap<ShardId, CheckpointNumber>,
    is_wanted: bool,
    due: Option<Time>,
    log_spent: bool,
    chooser: Chooser,
    collection: Collection,
    merge: Option<RunningMerge>,
    /// Bundles of numbers that may or may not be checkpoints, until a greater number is one: then no start needs them.
    doubtful: BTreeSet<String>,
    actions: VecDeque<Action>,
}

/// The running checkpoint.
#[derive(Debug)]
struct Running {
    number: CheckpointNumber,
    bundle: String,
    /// The shards that it is of, each with its epoch.
    epochs: BTreeMap<ShardId, Epoch>,
    deadline: Time,
    stage: Stage,
    /// By shard, the index of its marker, if its part counts.
    marked: BTreeMap<ShardId, Index>,
    written: BTreeSet<ShardId>,
    committed: BTreeSet<ShardId>,
}

#[derive(Debug)]
enum Stage {
    /// The bundle is being created.
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
    /// Whether something became unnecessary meanwhile.
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
    /// It has ended, and waits until the sealed checkpoint's lineage is the current one.
    held: Option<Merged>,
}

impl Driver {
    /// Creates a driver without a running checkpoint. Numbers that the previous life left undecided are given up first.
    /// `names` gives the bundles their names, `epochs` is the epoch of each shard.
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
            // A node that ends repeatedly before it completes a checkpoint must not accumulate tombstones.
            driver.collect();
        }
        driver
    }

    /// Handles an event.
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
                // If a marker does not count, the rest of its part does not either.
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

    /// Sets the time after which a checkpoint is given up, from the next one on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.options.timeout = timeout;
    }

    /// Returns the next action; `None` if there is none until the next input.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the time at which an [`Input::Tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match &self.running {
            Some(Running { stage: Stage::Storing(_) | Stage::Burying { .. }, .. }) => None,
            Some(running) => Some(running.deadline),
            None => self.due,
        }
    }

    /// Returns the lineage upon which the next bundle is sealed.
    #[must_use]
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// The running checkpoint.
    #[must_use]
    pub fn running(&self) -> Option<CheckpointNumber> {
        self.running.as_ref().map(|running| running.number)
    }

    /// Returns the greatest number that was begun or seen.
    #[must_use]
    pub fn last(&self) -> CheckpointNumber {
        self.last
    }

    /// Whether a shard's part of a checkpoint is to be written: its marker counts, and the rest is missing.
    #[must_use]
    pub fn takes_part(&self, shard: ShardId, number: CheckpointNumber) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.number == number
                && matches!(running.stage, Stage::Writing)
                && running.marked.contains_key(&shard)
                && !running.written.contains(&shard)
        })
    }

    /// Returns the bundles that must not be deleted although no manifest may name them: those of the lineage and of the
    /// running checkpoint, and the input and output of a merge.
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

    /// Gives up a checkpoint that takes too long, and begins one that is due.
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
        let (epochs, parts) = (self.epochs.clone(), self.epochs.clone());
        self.actions.push_back(Action::Create { number, bundle: bundle.clone(), parts });
        let before = self.running.replace(Running {
            number,
            bundle,
            epochs,
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
            // It was the shard's primary once: its markers are in no log that counts.
            self.actions.push_back(Action::Discard { shard, number });
            return;
        }
        self.last = self.last.max(number);
        let before = self.unconfirmed.insert(shard, number);
        if let Some(running) = &self.running
            && number > running.number
            && matches!(running.stage, Stage::Creating | Stage::Writing)
        {
            // Its marker of the running checkpoint may never come.
            let (running, reason) = (running.number, format!("shard {shard} has colour {number} already"));
            self.give_up(running, reason);
        }
        let running = self.running_as(number).filter(|running| matches!(running.stage, Stage::Writing));
        let Some(running) = running else {
            // The colour of a given-up checkpoint has reached the shard late, with a message.
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
        let running = self.running.as_mut().expect("it takes parts");
        running.written.insert(shard);
        if running.written.len() == running.epochs.len() {
            running.stage = Stage::Sealing;
            self.actions.push_back(Action::Seal(number));
        }
    }

    /// Stores the manifest once every part is durable and every marker committed.
    fn store_if_complete(&mut self) {
        let Some(running) = &mut self.running else { return };
        let is_complete = running.epochs.keys().all(|shard| running.committed.contains(shard));
        if let (true, Stage::Sealed(lineage)) = (is_complete, &mut running.stage) {
            running.stage = Stage::Storing(std::mem::take(lineage));
            self.actions.push_back(Action::StoreManifest(running.number));
        }
    }

    fn handle_stored(&mut self, number: CheckpointNumber) {
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

    fn handle_store_failed(&mut self, number: CheckpointNumber, reason: String, may_exist: bool) {
        let Some(running) = self.running_as(number) else { return };
        if let Stage::Storing(lineage) = &mut running.stage {
            let stored = may_exist.then(|| std::mem::take(lineage));
            running.stage = Stage::Burying { reason: reason.clone(), stored };
            self.actions.push_back(Action::Bury { number, reason });
        }
    }

    /// Gives the running checkpoint up; the next one begins anew. A checkpoint whose manifest is being stored is
    /// decided by that.
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
        // Those who requested the next one get this failure, too.
        self.is_wanted = false;
        self.actions.push_back(Action::GivenUp { number, reason });
        self.apply_held();
        // While no checkpoint is completed, tombstones must not accumulate, and a full disk may get space.
        self.collect();
    }

    fn complete(
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
        self.unconfirmed.retain(|_, of| *of != number);
        self.doubtful.clear();
        self.actions.push_back(Action::Completed(number));
        let tops = marked.iter().map(|(shard, index)| (*shard, *index)).collect();
        self.actions.push_back(Action::Trim(tops));
        self.apply_held();
        self.collect();
        self.merge();
    }

    /// Begins a collection of what is not needed any more, now or once the running one has ended.
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

    /// Begins a merge of bundles if it is worth its cost; the next checkpoint builds upon the result.
    fn merge(&mut self) {
        if self.merge.is_some() {
            return;
        }
        let Some(merge) = plan(&self.lineage, &self.options.policy) else { return };
        let output = self.names.draw(self.last);
        let inputs = merge.inputs.iter().map(|bundle| bundle.name.clone()).collect();
        // Its output is in use from now on.
        self.merge = Some(RunningMerge { output: output.clone(), inputs, held: None });
        self.actions.push_back(Action::Merge { output, number: self.last, merge });
    }

    fn handle_merged(&mut self, merged: Option<Merged>) {
        let Some(merge) = &mut self.merge else { return };
        match merged {
            Some(merged) => {
                assert_eq!(merged.bundle.name, merge.output, "a merge has written another bundle");
                merge.held = Some(merged);
                // A sealed checkpoint builds upon the lineage of that time: its own lineage takes over the merge.
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

    /// Replaces the inputs of a completed merge by its output, if they are still there.
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
