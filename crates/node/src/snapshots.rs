//! The checkpoint thread: it begins checkpoints, writes what shards hand over, and completes them by their manifest.

use crate::checks::Job;
use crate::clock::Clock;
use crate::env::{Env, Program, Reply};
use crate::events;
use crate::inbox::Command;
use crate::open::{CheckpointOptions, let_others_first};
use crate::panics;
use crate::shared::Shared;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stead_core::coordinator::{Coordinator, News, Step};
use stead_core::ids::{Colour, Index, ShardId, Time};
use stead_core::records::Piece;
use stead_core::shard::Input;
use stead_core::state::{Header, State};
use stead_core::topology::Topology;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::bundle::BundleNames;
use stead_store::checkpoint::checks::CheckOutcome;
use stead_store::checkpoint::collect::{Collector, DeleteError, Retention};
use stead_store::checkpoint::compact::{self, Merged, Policy};
use stead_store::checkpoint::lineage::Lineage;
use stead_store::checkpoint::load::load_parts;
use stead_store::checkpoint::manifest::{CheckResult, Manifest};
use stead_store::checkpoint::store::{BlobStore, Pace};
use stead_store::checkpoint::verify::Found;
use stead_store::checkpoint::write::{CheckpointWriter, Plan, give_up};

/// Bytes of snapshots that may wait to be written; over this, workers hold back.
const BEHIND_BYTES: usize = 16 << 20;

/// Snapshot bytes that are handed on at once: little enough to stay in a core's cache.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// Pieces whose room is kept for the next ones.
const SPARE_MAX: usize = 16;

/// Wishes for a checkpoint from which on those whose caller has gone are forgotten.
const WANTED_MAX: usize = 1024;

/// The events of the checkpoint thread.
pub(crate) enum Event {
    /// A shard has appended its marker, and its snapshot has begun.
    Begun { shard: ShardId, number: Colour, header: Box<Header>, all: bool },
    /// A piece of a shard's snapshot.
    Records { shard: ShardId, number: Colour, piece: Piece, done: bool },
    /// A shard's marker is committed.
    MarkerCommitted { shard: ShardId, number: Colour },
    /// Somebody wants a checkpoint now.
    Wanted(Wanted),
    /// From now on begin one after each such time, or only when asked.
    Interval(Option<Duration>),
    /// A merge of bundles has ended.
    Merged(Result<Option<Merged>, String>),
    /// The node stops.
    Stop,
}

/// Where the result of a checkpoint goes that a caller asked for.
pub(crate) type CheckpointReply = Box<dyn Reply<Result<CheckpointReport, CheckpointFailure>>>;

/// A wish for a checkpoint.
pub(crate) struct Wanted {
    pub(crate) reply: CheckpointReply,
    /// With the services' checks.
    pub(crate) checked: bool,
}

/// Where workers leave events.
pub(crate) struct SnapshotQueue {
    sender: mpsc::Sender<Event>,
    /// The rate at which checkpoints and merges are written.
    pace: Pace,
    waiting: AtomicUsize,
    /// For the status: the newest checkpoint and the one that runs; 0 is none.
    pub(crate) newest: AtomicU64,
    pub(crate) running: AtomicU64,
    /// The room of pieces that were written.
    spare: Mutex<Vec<Piece>>,
    pins: Arc<Pins>,
}

/// Checkpoints that are read, and how many readers there are of each.
#[derive(Default)]
struct Pins(Mutex<BTreeMap<Colour, usize>>);

impl Pins {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Colour, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A checkpoint that is not deleted while this lives.
pub(crate) struct Pin(Arc<Pins>, Colour);

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.0.held();
        if let Some(readers) = pins.get_mut(&self.1) {
            *readers -= 1;
            pins.retain(|_, readers| *readers > 0);
        }
    }
}

impl SnapshotQueue {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        let queue = Self {
            sender,
            pace: Pace::unlimited(),
            waiting: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
            running: AtomicU64::new(0),
            spare: Mutex::default(),
            pins: Arc::default(),
        };
        (queue, receiver)
    }

    /// Keeps a checkpoint while it is read.
    pub(crate) fn pin(&self, number: Colour) -> Pin {
        *self.pins.held().entry(number).or_default() += 1;
        Pin(Arc::clone(&self.pins), number)
    }

    pub(crate) fn pinned(&self) -> BTreeSet<Colour> {
        self.pins.held().keys().copied().collect()
    }

    pub(crate) fn send(&self, event: Event) {
        if let Event::Records { piece, .. } = &event {
            self.waiting.fetch_add(piece.bytes(), Ordering::Relaxed);
        }
        // Without the thread there is nobody to tell: the node ends.
        let _ = self.sender.send(event);
    }

    /// Ends the checkpoint thread. What it has taken and what waits before the end is no longer written slowly.
    pub(crate) fn stop(&self) {
        self.pace.set(0);
        self.send(Event::Stop);
    }

    /// An empty piece, with room if one is left.
    pub(crate) fn spare(&self) -> Piece {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, mut piece: Piece) {
        piece.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(piece);
        }
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > BEHIND_BYTES
    }

    /// The checkpoint thread has taken so many bytes; true if workers that held back may go on.
    fn took(&self, bytes: usize) -> bool {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        before > BEHIND_BYTES && before - bytes <= BEHIND_BYTES
    }
}

/// A checkpoint that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Its number.
    pub number: u64,
    /// How long it took.
    pub duration: Duration,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Bytes of all sections that it is made up of.
    pub bytes_total: u64,
    /// Records of all shards.
    pub records: u64,
    /// Messages in flight.
    pub in_flight: u64,
    /// The longest that a slice of a snapshot has held its worker since the node was opened.
    pub stall_max: Duration,
    /// The outcome of the services' checks.
    pub check: CheckOutcome,
    /// Those that do not hold, by service.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run, by service, with the reason.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

/// A service's check that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// The service.
    pub service: String,
    /// What does not hold.
    pub reason: String,
}

/// A service's check that was not run over a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedCheck {
    /// The service.
    pub service: String,
    /// The reason why it was not run.
    pub reason: String,
}

/// A checkpoint that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its number.
    pub number: u64,
    /// When it began, in microseconds since the Unix epoch.
    pub created: u64,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Bytes of all sections that it is made up of.
    pub bytes_total: u64,
    /// Records of all shards.
    pub records: u64,
    /// Messages in flight.
    pub in_flight: u64,
    /// Its shards.
    pub shards: u64,
    /// The outcome of the services' checks; not checked if they were not run, or not yet.
    #[serde(default)]
    pub check: CheckOutcome,
    /// Those that do not hold, by service.
    pub failed_checks: Vec<FailedCheck>,
    /// Those that were not run, by service, as far as the reason is known.
    #[serde(default)]
    pub skipped_checks: Vec<SkippedCheck>,
}

impl CheckpointInfo {
    pub(crate) fn of(manifest: &Manifest, checks: &[CheckResult]) -> Self {
        let mut info = Self {
            number: manifest.number.0,
            created: manifest.created.0,
            bytes_written: manifest.totals.written_bytes,
            bytes_total: manifest.totals.section_bytes,
            records: manifest.totals.records,
            in_flight: manifest.totals.messages,
            shards: manifest.parts.len() as u64,
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        info.note_checks(checks);
        info
    }

    pub(crate) fn note_checks(&mut self, checks: &[CheckResult]) {
        self.check = CheckOutcome::of(checks.iter().map(CheckResult::outcome));
        self.failed_checks = failed(checks);
        self.skipped_checks = skipped(checks);
    }
}

pub(crate) fn skipped(checks: &[CheckResult]) -> Vec<SkippedCheck> {
    let skipped = checks.iter().filter_map(|check| {
        let reason = check.skipped.clone().filter(|_| check.failure.is_none())?;
        Some(SkippedCheck { service: check.service.clone(), reason })
    });
    skipped.collect()
}

pub(crate) fn failed(checks: &[CheckResult]) -> Vec<FailedCheck> {
    let failed = checks.iter().filter_map(|check| {
        let reason = check.failure.clone()?;
        Some(FailedCheck { service: check.service.clone(), reason })
    });
    failed.collect()
}

/// Why there is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFailure {
    /// It took too long, or could not be written: its number is given up.
    #[error(
        "checkpoint {number} was given up: {reason}; the node keeps running, and the next checkpoint may succeed"
    )]
    GivenUp {
        /// Its number.
        number: u64,
        /// Why.
        reason: String,
    },
    /// The disk is full, and what is left of the log is needed for the work that has begun.
    #[error("no checkpoint is taken: the data directory's disk is full; make room and try again")]
    Full,
    /// As many copies as may wait do so already.
    #[error("{0} copies run or wait already; try again when one of them has ended")]
    Busy(usize),
    /// The stored checkpoints cannot be read, or there is no such one.
    #[error("{0}")]
    Store(String),
    /// An address that cannot be used.
    #[error("{0}")]
    Address(String),
    /// The node has stopped or failed.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

impl From<DeleteError> for CheckpointFailure {
    fn from(error: DeleteError) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<CheckpointError> for CheckpointFailure {
    fn from(error: CheckpointError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Loads the states of all shards at a checkpoint's markers.
pub(crate) fn load_states(store: &dyn BlobStore, manifest: &Manifest) -> Result<Vec<State>, CheckpointError> {
    load_parts(store, manifest, 1)?.into_iter().map(|part| part.into_state(manifest)).collect()
}

/// Checks the states of all shards with the services whose code is here; `check` runs the check of one of them.
pub(crate) fn check_states(
    topology: &Topology,
    states: &[State],
    program: &impl Program,
    check: &mut dyn FnMut(&str, &Topology, &[State]) -> Result<(), String>,
) -> BTreeMap<String, Found> {
    let checked = program.checked_services();
    let mut found = BTreeMap::new();
    let services = topology.services().iter().map(|service| &service.name);
    for service in services.filter(|name| program.has_service(name)) {
        let says = if checked.contains(service) {
            check(service, topology, states).map_or_else(Found::Failed, |()| Found::Hold)
        } else {
            Found::Undeclared
        };
        found.insert(service.clone(), says);
    }
    found
}

/// The checkpoint thread's own.
pub(crate) struct Checkpointer<E: Env> {
    shared: Arc<Shared<E>>,
    store: Arc<dyn BlobStore>,
    options: CheckpointOptions,
    names: Arc<BundleNames>,
    coordinator: Coordinator,
    lineage: Lineage,
    running: Option<Running>,
    /// The piece that is written.
    encoded: Vec<u8>,
    collector: Collector,
    /// Numbers of the life before were given up at the start.
    buried: bool,
    merge: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// The last snapshot of each shard, unless its checkpoint exists: the shard's next part must hold everything. The shard
    /// sees to that by itself; this is the check of it.
    unconfirmed: BTreeMap<ShardId, Colour>,
    wanted: Vec<Wanted>,
}

struct Running {
    number: Colour,
    begun: Instant,
    writer: CheckpointWriter,
    wanted: Vec<Wanted>,
}

impl<E: Env> Checkpointer<E> {
    /// `last` is the greatest number that was ever begun, `decided` the greatest that ended as a checkpoint or not.
    pub(crate) fn new(
        shared: Arc<Shared<E>>,
        store: Arc<dyn BlobStore>,
        options: CheckpointOptions,
        lineage: Lineage,
        decided: Colour,
        last: Colour,
    ) -> Self {
        shared.snapshots.pace.set(options.bytes_per_second);
        let coordinator = Coordinator::new(shared.topology.shards(), last.max(decided));
        let mut checkpointer = Self {
            buried: false,
            names: Arc::new(BundleNames::new(fastrand::u64(..))),
            collector: Collector::new(),
            merge: None,
            stop: Arc::new(AtomicBool::new(false)),
            shared,
            store,
            options,
            coordinator,
            lineage,
            running: None,
            encoded: Vec::new(),
            unconfirmed: BTreeMap::new(),
            wanted: Vec::new(),
        };
        for number in decided.0 + 1..=last.0 {
            checkpointer.bury(Colour(number), "the process ended while it was taken");
        }
        checkpointer.buried = last > decided;
        checkpointer
    }

    /// Runs until the node ends. An error is fatal for the node.
    pub(crate) fn run(mut self, events: &mpsc::Receiver<Event>) -> Result<(), String> {
        let mut due = self.options.interval.map(|interval| Instant::now() + interval);
        if self.buried {
            // A node that ends again and again before it completes a checkpoint must not pile up tombstones either.
            self.collect();
        }
        while !self.shared.is_over() && self.store.failure().is_none() {
            let due_in =
                due.map_or(Duration::from_secs(1), |due| due.saturating_duration_since(Instant::now()));
            let wait = if self.running.is_some() { Duration::from_millis(50) } else { due_in };
            match events.recv_timeout(wait.min(Duration::from_secs(1))) {
                Ok(Event::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Ok(Event::Interval(interval)) => {
                    self.options.interval = interval;
                    due = interval.map(|interval| Instant::now() + interval);
                }
                Ok(event) => self.handle(event),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.shared.checks.give_up_overdue(&self.shared, &*self.store, self.options.timeout);
            if let Step::GiveUp(number) = self.coordinator.handle_tick(self.shared.now()) {
                self.give_up(
                    number,
                    format!("it took over {:?} (checkpoints.timeout)", self.options.timeout),
                );
            }
            if self.running.is_none() {
                let is_due = due.is_some_and(|due| due <= Instant::now());
                if is_due || !self.wanted.is_empty() {
                    due = self.options.interval.map(|interval| Instant::now() + interval);
                    self.begin();
                }
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(merge) = self.merge.take() {
            let _ = merge.join();
        }
        let failure = self.store.failure();
        let shut_down = || "it was shut down while the checkpoint was taken".to_owned();
        let reason = failure.clone().unwrap_or_else(shut_down);
        let running = self.running.take().into_iter().flat_map(|running| running.wanted);
        for wanted in running.chain(self.wanted) {
            wanted.reply.send(Err(CheckpointFailure::Stopped(reason.clone())));
        }
        failure.map_or(Ok(()), Err)
    }

    fn begin(&mut self) {
        if self.shared.log.is_spent() {
            events::warn(CheckpointFailure::Full);
            for wanted in std::mem::take(&mut self.wanted) {
                wanted.reply.send(Err(CheckpointFailure::Full));
            }
            return;
        }
        let now = self.shared.now();
        let deadline = now.plus_millis(self.options.timeout.as_millis() as u64);
        let Ok(number) = self.coordinator.begin(deadline) else { return };
        let topology = Topology::clone(&self.shared.topology);
        let plan = Plan {
            number,
            created: self.shared.clock.wall(),
            topology,
            pace: self.shared.snapshots.pace.clone(),
        };
        match CheckpointWriter::create(&*self.store, &self.names, plan) {
            Ok(writer) => {
                let wanted = std::mem::take(&mut self.wanted);
                self.running = Some(Running { number, begun: Instant::now(), writer, wanted });
                self.shared.snapshots.running.store(number.0, Ordering::Relaxed);
                for shard in compact::renewals(&self.lineage, &Policy::default()) {
                    self.shared.inboxes[self.shared.worker_of(shard)].push(Command::ForceFull(shard));
                }
                for inbox in &self.shared.inboxes {
                    inbox.push(Command::every(Input::Colour(number)));
                }
            }
            Err(error) => self.give_up(number, error.to_string()),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begun { shard, number, header, all } => self.handle_begun(shard, number, *header, all),
            Event::Records { shard, number, piece, done } => {
                if self.shared.snapshots.took(piece.bytes()) {
                    // One that has nothing else to do sleeps.
                    self.shared.inboxes.iter().for_each(|inbox| inbox.bell.ring());
                }
                self.handle_records(shard, number, &piece, done);
                self.shared.snapshots.give_back(piece);
            }
            Event::MarkerCommitted { shard, number } => self.news(number, News::MarkerCommitted(shard)),
            Event::Wanted(wanted) => {
                // Those who have gone wanted nothing else than the others do.
                if self.wanted.len() >= WANTED_MAX {
                    self.wanted.retain(|wanted| !wanted.reply.is_gone());
                }
                self.wanted.push(wanted);
            }
            Event::Merged(merged) => self.handle_merged(merged),
            Event::Interval(_) | Event::Stop => {}
        }
    }

    fn handle_begun(&mut self, shard: ShardId, number: Colour, header: Header, all: bool) {
        self.coordinator.handle_seen(number);
        let before = self.unconfirmed.insert(shard, number);
        let Some(running) = self.running.as_mut().filter(|running| running.number == number) else {
            // A colour of a checkpoint that was given up has come to the shard late, with a message.
            self.shared.inboxes[self.shared.worker_of(shard)].push(Command::GivenUp(number));
            return;
        };
        if let (false, Some(before)) = (all, before) {
            let reason = format!("shard {shard} builds on its part of {before}, which is not a checkpoint");
            return self.give_up(number, reason);
        }
        if let Err(error) = running.writer.begin_part(header, all) {
            self.give_up(number, error.to_string());
        }
    }

    fn handle_records(&mut self, shard: ShardId, number: Colour, piece: &Piece, done: bool) {
        let Some(running) = self.running.as_mut().filter(|running| running.number == number) else { return };
        self.encoded.clear();
        piece.encode(&mut self.encoded);
        let written = running.writer.piece(shard, &self.encoded);
        let written = written.and_then(|()| running.writer.messages(shard, piece.messages()));
        match written.and_then(|()| if done { running.writer.end_part(shard).map(|_| ()) } else { Ok(()) }) {
            Ok(()) if done => self.news(number, News::PartStored(shard)),
            Ok(()) => {}
            Err(error) => self.give_up(number, error.to_string()),
        }
    }

    fn news(&mut self, number: Colour, news: News) {
        if let Step::WriteManifest(number) = self.coordinator.handle_news(number, news)
            && let Some(running) = self.running.take()
        {
            let Running { begun, writer, wanted, .. } = running;
            match self.complete(writer) {
                Ok(manifest) => {
                    self.coordinator.handle_decided(number);
                    self.unconfirmed.retain(|_, of| *of != number);
                    // Before the next colour, so that the next parts hold only what has changed.
                    for inbox in &self.shared.inboxes {
                        inbox.push(Command::every(Input::Completed(number)));
                    }
                    self.shared.snapshots.running.store(0, Ordering::Relaxed);
                    self.completed(manifest, begun, wanted);
                }
                Err(error) => {
                    self.running_failed(number, error.to_string(), wanted);
                }
            }
        }
    }

    fn complete(&mut self, writer: CheckpointWriter) -> Result<Manifest, CheckpointError> {
        let (manifest, lineage) = writer.seal(&self.lineage)?.store(&*self.store)?;
        self.lineage = lineage;
        Ok(manifest)
    }

    fn completed(&mut self, manifest: Manifest, begun: Instant, wanted: Vec<Wanted>) {
        let counters = &self.shared.counters;
        counters.checkpoints.add(1);
        counters.checkpoint_bytes.add(manifest.totals.written_bytes);
        self.shared.snapshots.newest.store(manifest.number.0, Ordering::Relaxed);
        self.shared.copies.completed();
        let tops: Vec<Index> = manifest.parts.iter().map(|part| part.index).collect();
        self.shared.log.trim(tops);
        let report = CheckpointReport {
            number: manifest.number.0,
            duration: begun.elapsed(),
            bytes_written: manifest.totals.written_bytes,
            bytes_total: manifest.totals.section_bytes,
            records: manifest.totals.records,
            in_flight: manifest.totals.messages,
            stall_max: Duration::from_micros(counters.checkpoint_stall_micros.get()),
            check: CheckOutcome::NotChecked,
            failed_checks: Vec::new(),
            skipped_checks: Vec::new(),
        };
        let of_interval = wanted.is_empty();
        let (checked, unchecked): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|wanted| wanted.checked);
        for wanted in unchecked {
            wanted.reply.send(Ok(report.clone()));
        }
        let replies: Vec<_> = checked.into_iter().map(|wanted| wanted.reply).collect();
        let fits = manifest.totals.section_bytes <= self.options.check_bytes_max;
        if (of_interval && fits) || !replies.is_empty() {
            // Before the next collection.
            let pin = self.shared.snapshots.pin(manifest.number);
            let job = Job { manifest, report, replies, pin };
            if of_interval {
                self.shared.checks.offer(&self.shared, job);
            } else {
                self.shared.checks.want(&self.shared, job);
            }
        } else {
            counters.checkpoints_unchecked.add(1);
        }
        self.collect();
        self.merge();
    }

    /// Deletes what no checkpoint that is kept needs; after a merge, if one runs: until that is part of the lineage nothing
    /// says that what it writes is in use.
    fn collect(&mut self) {
        if self.merge.is_some() {
            return;
        }
        let retention = Retention {
            keep: self.options.keep,
            pinned: self.shared.snapshots.pinned(),
            ..Retention::default()
        };
        let mut in_use: BTreeSet<String> =
            self.lineage.bundles().iter().map(|bundle| bundle.name.clone()).collect();
        in_use.extend(self.running.iter().map(|running| running.writer.bundle_name().to_owned()));
        let (now, incarnation) = (self.shared.now(), self.shared.topology.incarnation);
        if let Err(error) = self.collector.collect(&*self.store, incarnation, now, &retention, &in_use) {
            events::warn(format_args!("cannot collect old checkpoints: {error}"));
        }
    }

    /// Merges bundles on a thread of its own, if that is worth its cost; the next checkpoint builds upon the result.
    fn merge(&mut self) {
        if self.merge.is_some() {
            return;
        }
        let Some(merge) = compact::plan(&self.lineage, &Policy::default()) else { return };
        let (shared, store, names) =
            (Arc::clone(&self.shared), Arc::clone(&self.store), Arc::clone(&self.names));
        let (lineage, pace, stop) =
            (self.lineage.clone(), shared.snapshots.pace.clone(), Arc::clone(&self.stop));
        let id = (shared.topology.incarnation, self.coordinator.last());
        let spawned = std::thread::Builder::new().name("stead-merge".to_owned()).spawn(move || {
            let_others_first();
            let merged =
                panics::catch_own(|| compact::run(&*store, &names, id, &lineage, &merge, &pace, &stop));
            shared.snapshots.send(Event::Merged(match merged {
                Ok(merged) => merged.map_err(|error| error.to_string()),
                Err(panic) => Err(format!("a panic, which is a bug in Stead: {panic}")),
            }));
        });
        match spawned {
            Ok(thread) => self.merge = Some(thread),
            Err(error) => events::warn(format_args!("cannot start a thread to merge bundles: {error}")),
        }
    }

    fn handle_merged(&mut self, merged: Result<Option<Merged>, String>) {
        if let Some(thread) = self.merge.take() {
            // It has sent its result, so that this does not wait.
            let _ = thread.join();
        }
        match merged {
            Ok(Some(merged)) => {
                if self.lineage.apply(&merged) {
                    self.shared.counters.checkpoint_bytes.add(merged.bundle().bytes);
                }
            }
            Ok(None) => {}
            Err(error) => events::warn(format_args!("cannot merge bundles: {error}; they stay as they are")),
        }
        self.collect();
    }

    fn give_up(&mut self, number: Colour, reason: String) {
        let wanted = self.running.take().map_or_else(Vec::new, |running| running.wanted);
        self.running_failed(number, reason, wanted);
    }

    /// The work goes on, and the next checkpoint begins anew.
    fn running_failed(&mut self, number: Colour, reason: String, wanted: Vec<Wanted>) {
        events::warn(format_args!("checkpoint {number} is given up: {reason}"));
        self.shared.counters.checkpoints_failed.add(1);
        self.shared.snapshots.running.store(0, Ordering::Relaxed);
        self.bury(number, &reason);
        self.coordinator.handle_decided(number);
        for inbox in &self.shared.inboxes {
            inbox.push(Command::GivenUp(number));
        }
        for wanted in wanted.into_iter().chain(std::mem::take(&mut self.wanted)) {
            wanted.reply.send(Err(CheckpointFailure::GivenUp { number: number.0, reason: reason.clone() }));
        }
        // While none is completed, tombstones must not pile up; and a full disk may get room.
        if self.store.failure().is_none() {
            self.collect();
        }
    }

    fn bury(&self, number: Colour, reason: &str) {
        let now: Time = self.shared.clock.wall();
        if let Err(error) = give_up(&*self.store, &self.shared.topology, number, now, &self.names, reason) {
            // Without it the number stays undecided, and is never used again anyway.
            events::warn(format_args!("cannot write the tombstone of checkpoint {number}: {error}"));
        }
    }
}
