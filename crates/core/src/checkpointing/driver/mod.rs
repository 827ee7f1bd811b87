//! Takes checkpoints one after the other: decides when one begins, which parts count, when it exists or is given up,
//! and what becomes unnecessary by it.
//!
//! Inputs go in through [`Driver::handle`], and actions come out of [`Driver::poll_action`], to be performed in that
//! order. An action that reads or writes stored data has an outcome, which is the next input about it. Times are those
//! of a steady clock.

mod collecting;
mod colours;
mod io;
mod merges;
mod progress;
mod shards;

pub use self::colours::COLOURS_MAX;
pub use self::io::{Action, Burial, Input, LogSpace, Options, Recovered};

use self::collecting::Collection;
use self::merges::RunningMerge;
use self::progress::{Running, Stage};
use crate::checkpointing::bundle::BundleNames;
use crate::checkpointing::lineage::Lineage;
use crate::checkpointing::retention::Chooser;
use crate::ids::{CheckpointNumber, Epoch, ShardId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Decides on the checkpoints of the shards that a node leads.
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
    /// The shards that have arrived, or begun another epoch, since their last part: the next one must hold all records.
    /// Unlike [`Self::unconfirmed`], the shard does not know that.
    anew: BTreeSet<ShardId>,
    is_wanted: bool,
    due: Option<Time>,
    log_space: LogSpace,
    /// The colours on their way, each with the shards of which no marker of it or of a greater one is committed.
    colours: BTreeMap<CheckpointNumber, BTreeSet<ShardId>>,
    /// By shard, the colour of its last committed marker.
    committed: BTreeMap<ShardId, CheckpointNumber>,
    chooser: Chooser,
    collection: Collection,
    merge: Option<RunningMerge>,
    /// Bundles of numbers that may or may not be checkpoints, until a greater number is one: then no start needs them.
    doubtful: BTreeSet<String>,
    actions: VecDeque<Action>,
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
            due: options.interval.map(|interval| now.plus(interval.into())),
            options,
            names,
            epochs,
            lineage,
            last: decided.max(seen),
            running: None,
            unconfirmed: BTreeMap::new(),
            anew: BTreeSet::new(),
            is_wanted: false,
            log_space: LogSpace::Enough,
            colours: BTreeMap::new(),
            committed: BTreeMap::new(),
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
                self.due = interval.map(|interval| now.plus(interval.into()));
            }
            Input::LogSpace(space) => self.log_space = space,
            Input::Leads { shard, epoch } => self.handle_leads(shard, epoch),
            Input::Left(shard) => self.handle_left(shard),
            Input::Created(number) => self.handle_created(number),
            Input::Marked { shard, number, epoch, index, all } => {
                self.handle_marked(shard, number, (epoch, index), all);
            }
            Input::PartWritten { shard, number } => self.handle_written(shard, number),
            Input::MarkerCommitted { shard, number } => {
                self.note_committed(shard, number);
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
            Input::CollectFailed => self.end_collection(),
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
                Stage::Creating
                | Stage::Waiting
                | Stage::Writing
                | Stage::Sealing
                | Stage::Burying { stored: None, .. } => {}
            }
            names.insert(running.bundle.clone());
        }
        if let Some(merge) = &self.merge {
            names.insert(merge.output.clone());
            names.extend(merge.inputs.iter().cloned());
        }
        names
    }
}
