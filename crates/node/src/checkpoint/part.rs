//! The part that takes checkpoints: it writes what shards hand over, and completes it by a manifest.

use crate::bell::Bell;
use crate::checkpoint::queue::Next;
use crate::checkpoint::{
    CheckpointCommand, CheckpointFailure, CheckpointHub, Event, MergeJob, SnapshotQueue, Trouble, Wanted,
};
use crate::part::{Part, Turned};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stead_core::checkpointing::bundle::{Author, BundleNames};
use stead_core::checkpointing::driver::{Action, Burial, Driver, Input, LogSpace, Options, Recovered};
use stead_core::checkpointing::pace::Meter;
use stead_core::checkpointing::retention::Garbage;
use stead_core::clock::Now;
use stead_core::ids::{CheckpointNumber, Epoch, ShardId, Time};
use stead_core::records::Piece;
use stead_core::state::Header;
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::Stock;
use stead_store::checkpoint::copy::Owner;
use stead_store::checkpoint::manifest::{Decision, read_decision};
use stead_store::checkpoint::store::BlobStore;
use stead_store::checkpoint::write::{CheckpointWriter, Plan, Sealed, give_up};

/// The settings and facts for a new checkpoint part.
pub struct CheckpointSetup {
    /// The store of checkpoints; this part is its only writer.
    pub store: Arc<dyn BlobStore>,
    /// The services and their shards.
    pub topology: Arc<Topology>,
    /// The epoch of each shard.
    pub epochs: BTreeMap<ShardId, Epoch>,
    /// The life of this process.
    pub author: Author,
    /// Approximate bytes of the blocks of its bundles.
    pub block_bytes: usize,
    /// When checkpoints are taken, and what is kept.
    pub options: Options,
    /// The checkpoints at the start.
    pub recovered: Recovered,
}

/// Takes checkpoints. A turn performs one action: a piece of about 256 KiB is written, a bundle sealed, a manifest
/// stored, up to 64 objects are deleted.
pub struct CheckpointPart {
    store: Arc<dyn BlobStore>,
    topology: Arc<Topology>,
    author: Author,
    block_bytes: usize,
    driver: Driver,
    log_space: LogSpace,
    stock: Stock,
    running: Option<Running>,
    /// The piece that is being written.
    encoded: Vec<u8>,
    meter: Meter,
    wanted: Vec<Wanted>,
}

/// The running checkpoint.
struct Running {
    number: CheckpointNumber,
    begun: Time,
    stage: Stage,
    wanted: Vec<Wanted>,
}

enum Stage {
    /// Nothing is being written.
    None,
    Writing(Box<CheckpointWriter>),
    Sealed(Box<Sealed>),
}

/// The reason why a requested checkpoint is not taken.
const SHUT_DOWN: &str = "it was shut down while the checkpoint was taken";
/// Number of requests from which on those whose caller has gone are dropped.
const WANTED_MAX: usize = 1024;

impl CheckpointPart {
    /// No checkpoint is running.
    #[must_use]
    pub fn new(setup: CheckpointSetup, now: Time) -> Self {
        let CheckpointSetup { store, topology, epochs, author, block_bytes, options, recovered } = setup;
        Self {
            store,
            topology,
            author,
            block_bytes,
            driver: Driver::new(now, options, BundleNames::new(author), epochs, recovered),
            log_space: LogSpace::default(),
            stock: Stock::new(),
            running: None,
            encoded: Vec::new(),
            meter: Meter::default(),
            wanted: Vec::new(),
        }
    }

    /// Sets the time after which a checkpoint is given up, from the next one on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.driver.set_timeout(timeout);
    }

    /// Returns the driver, which decides.
    #[must_use]
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    fn step(&mut self, hub: &impl CheckpointHub, steady: Time) -> Turned {
        if hub.is_over() {
            self.end(hub, SHUT_DOWN);
            return Turned::Ended;
        }
        let log_space = hub.log_space();
        if log_space != self.log_space {
            self.log_space = log_space;
            self.driver.handle(steady, Input::LogSpace(log_space));
        }
        if let Some(mut action) = self.driver.poll_action() {
            hub.watch(&mut action);
            self.perform(hub, Now { steady, wall: hub.wall() }, action);
            return Turned::Again;
        }
        let deadline = self.driver.deadline();
        if deadline.is_some_and(|at| at <= steady) {
            self.driver.handle(steady, Input::Tick);
            return Turned::Again;
        }
        let held_until = self.meter.held_until(hub.queue().pace.rate(), steady);
        let is_held = |event: &Event| held_until.is_some() && matches!(event, Event::Records { .. });
        match hub.queue().next(is_held) {
            Next::Event(Event::Stop) | Next::Closed => {
                self.end(hub, SHUT_DOWN);
                Turned::Ended
            }
            Next::Event(event) => {
                self.take(hub, steady, event);
                Turned::Again
            }
            Next::Held => Turned::Until(held_until.into_iter().chain(deadline).min()),
            Next::None => Turned::Until(deadline),
        }
    }

    /// Answers all requests: no checkpoint is taken any more.
    fn end(&mut self, hub: &impl CheckpointHub, reason: &str) {
        hub.queue().close();
        let running = self.running.take().into_iter().flat_map(|running| running.wanted);
        for wanted in running.chain(self.wanted.drain(..)) {
            wanted.reply.send(Err(CheckpointFailure::Stopped(reason.to_owned())));
        }
    }

    fn take(&mut self, hub: &impl CheckpointHub, now: Time, event: Event) {
        match event {
            Event::Begun { shard, number, header, all } => {
                self.begin_part(hub, now, (shard, number), *header, all);
            }
            Event::Records { shard, number, piece, done } => {
                if hub.queue().took(piece.bytes()) {
                    hub.perform(CheckpointCommand::CaughtUp);
                }
                self.write_piece(hub, now, (shard, number), &piece, done);
                hub.queue().give_back(piece);
            }
            Event::MarkerCommitted { shard, number } => {
                self.driver.handle(now, Input::MarkerCommitted { shard, number });
            }
            Event::Wanted(wanted) => {
                // Requests whose callers have gone are fulfilled with the others.
                if self.wanted.len() >= WANTED_MAX {
                    self.wanted.retain(|wanted| !wanted.reply.is_gone());
                }
                self.wanted.push(wanted);
                self.driver.handle(now, Input::Wanted);
            }
            Event::Interval(interval) => self.driver.handle(now, Input::Interval(interval)),
            Event::Merged(merged) => self.driver.handle(now, Input::Merged(merged)),
            Event::Stop => {}
        }
    }

    fn begin_part(
        &mut self,
        hub: &impl CheckpointHub,
        now: Time,
        (shard, number): (ShardId, CheckpointNumber),
        header: Header,
        all: bool,
    ) {
        let (epoch, index) = (header.position.epoch, header.position.index);
        self.driver.handle(now, Input::Marked { shard, number, epoch, index, all });
        if !self.driver.takes_part(shard, number) {
            return;
        }
        if let Err(error) = self.writer(number).and_then(|writer| writer.begin_part(header, all)) {
            self.fail(hub, now, number, error);
        }
    }

    fn write_piece(
        &mut self,
        hub: &impl CheckpointHub,
        now: Time,
        (shard, number): (ShardId, CheckpointNumber),
        piece: &Piece,
        done: bool,
    ) {
        if !self.driver.takes_part(shard, number) {
            return;
        }
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        piece.encode(&mut encoded);
        let written = self.writer(number).and_then(|writer| {
            let before = writer.bytes();
            writer.piece(shard, &encoded)?;
            writer.messages(shard, piece.messages())?;
            if done {
                writer.end_part(shard)?;
            }
            Ok(writer.bytes() - before)
        });
        self.encoded = encoded;
        match written {
            Ok(bytes) => {
                self.meter.spend(hub.queue().pace.rate(), now, bytes);
                if done {
                    self.driver.handle(now, Input::PartWritten { shard, number });
                }
            }
            Err(error) => self.fail(hub, now, number, error),
        }
    }

    /// Returns the writer of the running checkpoint.
    fn writer(&mut self, number: CheckpointNumber) -> Result<&mut CheckpointWriter, CheckpointError> {
        match &mut self.running {
            Some(Running { number: running, stage: Stage::Writing(writer), .. }) if *running == number => {
                Ok(writer)
            }
            _ => Err(CheckpointError::Incomplete { number, reason: "its bundle is not open".to_owned() }),
        }
    }

    /// Takes the stage of the checkpoint with this number, if it is running; leaves none.
    fn take_stage(&mut self, number: CheckpointNumber) -> Stage {
        match &mut self.running {
            Some(running) if running.number == number => std::mem::replace(&mut running.stage, Stage::None),
            _ => Stage::None,
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(running) = &mut self.running {
            running.stage = stage;
        }
    }

    fn fail(
        &mut self,
        hub: &impl CheckpointHub,
        now: Time,
        number: CheckpointNumber,
        error: CheckpointError,
    ) {
        self.driver.handle(now, Input::Failed { number, reason: error.to_string() });
        hub.perform(CheckpointCommand::Trouble(Trouble::Checkpoint(number, error)));
    }

    fn perform(&mut self, hub: &impl CheckpointHub, now: Now, action: Action) {
        let steady = now.steady;
        match action {
            Action::Create { number, bundle, parts } => {
                hub.queue().running.store(number.0, Ordering::Relaxed);
                let wanted = std::mem::take(&mut self.wanted);
                self.running = Some(Running { number, begun: steady, stage: Stage::None, wanted });
                let topology = Topology::clone(&self.topology);
                let (created, author) = (now.wall, self.author);
                let plan = Plan { number, created, topology, parts, bundle, author };
                match CheckpointWriter::create(&*self.store, plan) {
                    Ok(mut writer) => {
                        writer.set_block_bytes(self.block_bytes);
                        self.set_stage(Stage::Writing(Box::new(writer)));
                        self.driver.handle(steady, Input::Created(number));
                    }
                    Err(error) => self.fail(hub, steady, number, error),
                }
            }
            Action::ForceFull(shards) => hub.perform(CheckpointCommand::ForceFull(shards)),
            Action::Colour(colour) => hub.perform(CheckpointCommand::Colour(colour)),
            Action::Discard { shard, number } => hub.perform(CheckpointCommand::Discard { shard, number }),
            Action::Seal(number) => {
                let Stage::Writing(writer) = self.take_stage(number) else { return };
                match writer.seal(self.driver.lineage()) {
                    Ok(sealed) => {
                        let lineage = sealed.lineage().clone();
                        self.set_stage(Stage::Sealed(Box::new(sealed)));
                        self.driver.handle(steady, Input::Sealed { number, lineage });
                    }
                    Err(error) => self.fail(hub, steady, number, error),
                }
            }
            Action::StoreManifest(number) => self.store_manifest(hub, steady, number),
            Action::Bury { number, reason } => {
                let burial = self.bury(hub, now, number, &reason);
                self.driver.handle(steady, Input::Buried { number, burial });
            }
            Action::Completed(number) => {
                let Some(Running { begun, stage: Stage::Sealed(sealed), wanted, .. }) = self.running.take()
                else {
                    panic!("checkpoint {number} is complete, and its manifest is not here");
                };
                hub.queue().newest.store(number.0, Ordering::Relaxed);
                hub.queue().running.store(0, Ordering::Relaxed);
                let duration = steady.since(begun).into();
                let manifest = Box::new(sealed.into_manifest());
                hub.perform(CheckpointCommand::Completed { manifest, duration, wanted });
            }
            Action::GivenUp { number, reason } => {
                let running = self.running.take().into_iter().flat_map(|running| running.wanted);
                let wanted = running.chain(self.wanted.drain(..)).collect();
                hub.queue().running.store(0, Ordering::Relaxed);
                hub.perform(CheckpointCommand::GivenUp { number, reason, wanted });
            }
            Action::Refuse => hub.perform(CheckpointCommand::Refused(std::mem::take(&mut self.wanted))),
            Action::Trim(tops) => hub.perform(CheckpointCommand::Trim(tops)),
            Action::Look => {
                let (cluster, incarnation) = (self.author.cluster, self.topology.incarnation);
                let input = match self.stock.inventory(&*self.store, Owner { cluster, incarnation }) {
                    Ok(inventory) => Input::Inventory { inventory, pinned: hub.queue().pinned() },
                    Err(error) => {
                        hub.perform(CheckpointCommand::Trouble(Trouble::Collection(error)));
                        Input::CollectFailed
                    }
                };
                self.driver.handle(steady, input);
            }
            Action::Delete(garbage) => {
                let input = match self.delete(hub.queue(), &garbage) {
                    Ok(true) => Input::Deleted,
                    Ok(false) => Input::CollectFailed,
                    Err(error) => {
                        hub.perform(CheckpointCommand::Trouble(Trouble::Collection(error)));
                        Input::CollectFailed
                    }
                };
                self.driver.handle(steady, input);
            }
            Action::Merge { output, number, merge } => {
                let lineage = self.driver.lineage().clone();
                hub.perform(CheckpointCommand::Merge(MergeJob { output, number, lineage, merge }));
            }
        }
    }

    fn store_manifest(&mut self, hub: &impl CheckpointHub, now: Time, number: CheckpointNumber) {
        let Some(Running { stage: Stage::Sealed(sealed), .. }) = &self.running else { return };
        match sealed.put(&*self.store) {
            Ok(()) => self.driver.handle(now, Input::Stored(number)),
            Err(error) => {
                let (reason, may_exist) = (error.to_string(), !error.is_full());
                self.driver.handle(now, Input::StoreFailed { number, reason, may_exist });
                hub.perform(CheckpointCommand::Trouble(Trouble::Checkpoint(number, error)));
            }
        }
    }

    /// Gives a number up, unless its checkpoint exists.
    fn bury(&mut self, hub: &impl CheckpointHub, now: Now, number: CheckpointNumber, reason: &str) -> Burial {
        if let Some(running) = self.running.as_mut().filter(|running| running.number == number)
            && let Stage::Writing(_) = running.stage
        {
            // Its space is released before the tombstone needs some.
            running.stage = Stage::None;
        }
        let buried = give_up(&*self.store, &self.topology, number, now.wall, self.author, reason);
        let error = match buried {
            Ok(()) => return Burial::Tombstone,
            Err(CheckpointError::Decided(_)) => match read_decision(&*self.store, number) {
                Ok(Decision::Complete(manifest)) if manifest.writer == self.author.writer => {
                    return Burial::Complete;
                }
                Ok(Decision::Complete(_) | Decision::GivenUp(_)) => return Burial::Tombstone,
                Err(error) => error,
            },
            Err(error) => error,
        };
        hub.perform(CheckpointCommand::Trouble(Trouble::Tombstone(number, error)));
        Burial::Unknown
    }

    /// Deletes objects; returns false if a reader has come since they were listed, and needs those that follow.
    fn delete(&mut self, queue: &SnapshotQueue, garbage: &[Garbage]) -> Result<bool, CheckpointError> {
        let Self { stock, store, .. } = self;
        for garbage in garbage {
            let mut delete = || stock.delete(&**store, garbage);
            match garbage {
                Garbage::Checkpoint(number) => match queue.unless_pinned(*number, delete) {
                    Some(deleted) => deleted?,
                    None => return Ok(false),
                },
                Garbage::Tombstone(_) | Garbage::Results(_) | Garbage::Bundle(_) => delete()?,
            }
        }
        Ok(true)
    }
}

impl<H: CheckpointHub> Part<H> for CheckpointPart {
    /// The reason why the store takes nothing more.
    type Error = String;

    fn bell<'h>(&self, hub: &'h H) -> &'h Bell {
        &hub.queue().bell
    }

    /// Performs one action, or handles one event.
    fn turn(&mut self, hub: &H, steady: Time) -> Result<Turned, String> {
        let turned = self.step(hub, steady);
        // After any failure the contents of the store are unknown.
        match self.store.failure() {
            None => Ok(turned),
            Some(failure) => {
                self.end(hub, &failure);
                Err(failure)
            }
        }
    }
}
