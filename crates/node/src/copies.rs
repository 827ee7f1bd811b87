//! Copies checkpoints to stable storage apart from the node's own disk, on request and by a thread of its own.

#![expect(clippy::disallowed_methods, reason = "a copy is timed, and waits for its pace")]

use crate::bell::Bell;
use crate::checkpoint::CheckpointFailure;
use crate::env::Env;
use crate::events;
use crate::open::CopyTarget;
use crate::pace::Pace;
use crate::panics;
use crate::part::{Part, Turned};
use crate::shared::Shared;
use crate::status::CopyStatus;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::checkpointing::pace::Meter;
use stead_core::ids::{CheckpointNumber, Time};
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::copy::{Owner, copy};
use stead_store::checkpoint::manifest::read_manifest;
use stead_store::checkpoint::remote::{self, Cancel};
use stead_store::checkpoint::store::BlobStore;

/// A copied checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Its number.
    pub number: u64,
    /// The address of the copy.
    pub to: String,
    /// The time that it took.
    pub duration: Duration,
    /// Bundles that were written.
    pub bundles_written: u64,
    /// Bundles that existed already.
    pub bundles_reused: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

/// Maximum number of requested copies that run or wait at a time; more are refused.
const ASKED_MAX: usize = 16;

/// A requested copy that may run; it counts until it is dropped.
pub(crate) struct AskedCopy<E: Env>(Arc<Shared<E>>);

impl<E: Env> AskedCopy<E> {
    /// # Errors
    /// [`CheckpointFailure::Busy`] if the maximum number is running or waiting.
    pub(crate) fn admit(shared: &Arc<Shared<E>>) -> Result<Self, CheckpointFailure> {
        let admit = |asked| (asked < ASKED_MAX).then_some(asked + 1);
        let asked = shared.copies.asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit);
        asked.map(|_| Self(Arc::clone(shared))).map_err(|_| CheckpointFailure::Busy(ASKED_MAX))
    }

    /// As [`Shared::copy_checkpoint`].
    pub(crate) fn run(
        &self,
        local: &dyn BlobStore,
        number: u64,
        address: &str,
    ) -> Result<CopyReport, CheckpointFailure> {
        self.0.copy_checkpoint(local, number, address)
    }
}

impl<E: Env> Drop for AskedCopy<E> {
    fn drop(&mut self) {
        self.0.copies.asked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// State shared by all copies of a node.
pub(crate) struct Copies {
    pub(crate) owner: Owner,
    pace: Pace,
    cancel: Cancel,
    /// One copy or collection at a time: a collection must not see bundles whose manifest is not written yet.
    turns: Mutex<Turns>,
    /// Signalled when a turn has ended, or the part no longer waits for one.
    turn_ended: Condvar,
    /// Number of requested copies that run or wait for their turn, each with a thread.
    asked: AtomicUsize,
    status: Mutex<Option<CopyStatus>>,
    /// Rung when a checkpoint is complete, a copy has ended, or the node stops.
    bell: Bell,
}

/// Who has the turn to copy, and who waits for it.
#[derive(Default)]
struct Turns {
    is_taken: bool,
    /// The part was refused a turn: it has the next one, so that requested copies that overlap for ever do not keep it
    /// from copying.
    part_waits: bool,
}

/// The turn to copy, until it is dropped.
struct Turn<'a>(&'a Copies);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns().is_taken = false;
        self.0.turn_ended.notify_all();
        // The part may wait for it.
        self.0.bell.ring();
    }
}

impl Copies {
    pub(crate) fn new(owner: Owner, bytes_per_second: u64, to: Option<&CopyTarget>) -> Self {
        let status = to.map(|target| CopyStatus { to: target.address.clone(), ..CopyStatus::default() });
        Self {
            owner,
            pace: Pace::new(bytes_per_second),
            cancel: Cancel::default(),
            turns: Mutex::default(),
            turn_ended: Condvar::new(),
            asked: AtomicUsize::new(0),
            status: Mutex::new(status),
            bell: Bell::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<CopyStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no copy has the turn and the part does not wait for it, and takes it.
    fn turn(&self) -> Turn<'_> {
        let mut turns = self.turns();
        while turns.is_taken || turns.part_waits && !self.cancel.is_cancelled() {
            turns = self.turn_ended.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.is_taken = true;
        Turn(self)
    }

    /// Takes the turn for the part if it is free; otherwise the part has the next one.
    fn turn_of_part(&self) -> Option<Turn<'_>> {
        let mut turns = self.turns();
        turns.part_waits = turns.is_taken;
        if turns.is_taken {
            return None;
        }
        turns.is_taken = true;
        Some(Turn(self))
    }

    /// Returns the status; `None` if copies are made only on request.
    pub(crate) fn status(&self) -> Option<CopyStatus> {
        self.held().clone()
    }

    /// Notes that there is a newer checkpoint.
    pub(crate) fn completed(&self) {
        self.bell.ring();
    }

    /// Cancels all copies; objects at the target are found and reused by the next attempt.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        // A copy that waits because of the pace continues, and finds that it is cancelled.
        self.pace.set(0);
        // So does one that waits behind the part.
        drop(self.turns());
        self.turn_ended.notify_all();
        self.bell.ring();
    }

    /// Waits, after [`Self::stop`], until no copy reads the data any more.
    pub(crate) fn await_end(&self) {
        drop(self.turn());
    }

    /// Opens the store behind an address, with calls that end when the node stops.
    fn open(&self, address: &str) -> Result<Arc<dyn BlobStore>, CheckpointFailure> {
        remote::open_until(address, &BTreeMap::new(), self.cancel.clone())
            .map_err(|error| CheckpointFailure::Address(error.to_string()))
    }
}

/// Copies a stored checkpoint, which must not be collected meanwhile. `address` is that of the target, for the report; `paced`
/// is called with the bytes of each piece before it is sent, and may wait.
///
/// # Errors
/// [`CheckpointError`]: then the checkpoint does not exist at the target, and a repetition continues from there.
pub fn copy_stored(
    local: &dyn BlobStore,
    target: &dyn BlobStore,
    owner: Owner,
    number: u64,
    address: &str,
    paced: &mut dyn FnMut(u64),
) -> Result<CopyReport, CheckpointError> {
    let begun = Instant::now();
    let manifest = read_manifest(local, CheckpointNumber(number))?;
    manifest.check_cluster(owner.cluster)?;
    owner.claim(target)?;
    let copied = copy(local, target, &manifest, paced)?;
    Ok(CopyReport {
        number,
        to: address.to_owned(),
        duration: begun.elapsed(),
        bundles_written: copied.bundles as u64,
        bundles_reused: copied.reused as u64,
        bytes_written: copied.bytes,
    })
}

impl<E: Env> Shared<E> {
    /// Copies a checkpoint of this node's store to an address. Blocks.
    pub(crate) fn copy_checkpoint(
        &self,
        local: &dyn BlobStore,
        number: u64,
        address: &str,
    ) -> Result<CopyReport, CheckpointFailure> {
        let _turn = self.copies.turn();
        let _pin = self.snapshots.pin(CheckpointNumber(number));
        let target = self.copies.open(address)?;
        self.copy_to(local, &*target, number, address)
    }

    fn copy_to(
        &self,
        local: &dyn BlobStore,
        target: &dyn BlobStore,
        number: u64,
        address: &str,
    ) -> Result<CopyReport, CheckpointFailure> {
        let stopped = || CheckpointFailure::Stopped("the copy was interrupted".to_owned());
        if self.copies.cancel.is_cancelled() {
            return Err(stopped());
        }
        let mut meter = Meter::default();
        let mut paced = |bytes| self.copies.pace.wait(&mut meter, &self.clock, bytes);
        match copy_stored(local, target, self.copies.owner, number, address, &mut paced) {
            Ok(report) => {
                self.counters.checkpoint_copies.add(1);
                self.counters.checkpoint_copy_bytes.add(report.bytes_written);
                Ok(report)
            }
            Err(_) if self.copies.cancel.is_cancelled() => Err(stopped()),
            Err(error) => {
                self.counters.checkpoint_copies_failed.add(1);
                Err(error.into())
            }
        }
    }
}

/// The shortest time after which a failed copy is tried again; it doubles with each failure, up to the interval.
const RETRY: Duration = Duration::from_secs(1);

/// The part that copies the newest checkpoints to one target, and keeps the newest there. One turn is one round of it. The
/// first checkpoint is copied at once: a node that is started often still copies.
pub struct CopyPart {
    local: Arc<dyn BlobStore>,
    to: CopyTarget,
    target: Option<Arc<dyn BlobStore>>,
    collector: Collector,
    /// The newest checkpoint that this life has copied; 0 for none.
    copied: u64,
    due: Time,
    /// Number of rounds that copied nothing since the last one that did.
    failures: u32,
    has_failed: bool,
}

/// The result of one round.
struct Round {
    copied: Option<u64>,
    failure: Option<String>,
}

impl CopyPart {
    pub(crate) fn new(local: Arc<dyn BlobStore>, to: CopyTarget) -> Self {
        let (collector, target, due) = (Collector::new(), None, Time(0));
        Self { local, to, target, collector, copied: 0, due, failures: 0, has_failed: false }
    }

    /// Makes a store the target, which is otherwise the one at the target's address.
    pub fn set_target(&mut self, target: Arc<dyn BlobStore>) {
        self.target = Some(target);
    }

    /// The newest checkpoint that this life has copied; 0 for none.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Notes the result of a round that began at `now`.
    fn note<E: Env>(&mut self, hub: &Shared<E>, now: Time, round: Round) {
        let (address, interval) = (&self.to.address, self.to.interval.as_micros() as u64);
        let had_failed = std::mem::replace(&mut self.has_failed, round.failure.is_some());
        if let Some(number) = round.copied {
            (self.copied, self.due, self.failures) = (number, now.plus_micros(interval), 0);
        } else {
            let retry = (RETRY.as_micros() as u64) << self.failures.min(20);
            self.due = hub.now().plus_micros(retry.min(interval));
            self.failures += 1;
        }
        match &round.failure {
            Some(reason) if !had_failed => {
                events::warn(format_args!(
                    "copying checkpoints to {address} fails: {reason}; the node keeps running and retries the copy"
                ));
            }
            None if had_failed => events::info(format_args!(
                "checkpoint {} was copied to {address}: copying works again",
                self.copied
            )),
            _ => {}
        }
        if let Some(status) = &mut *hub.copies.held() {
            status.newest = round.copied.or(status.newest);
            status.failure = round.failure;
        }
    }

    /// Copies the newest checkpoint; the caller has the turn.
    fn round<E: Env>(&mut self, hub: &Shared<E>) -> Round {
        let failed = |failure: CheckpointFailure| Round { copied: None, failure: Some(failure.to_string()) };
        let target = match &mut self.target {
            Some(target) => target,
            none => match hub.copies.open(&self.to.address) {
                Ok(target) => none.insert(target),
                Err(failure) => {
                    hub.counters.checkpoint_copies_failed.add(1);
                    return failed(failure);
                }
            },
        };
        let newest = || hub.snapshots.newest.load(Ordering::Relaxed);
        let mut number = newest();
        let mut pin = hub.snapshots.pin(CheckpointNumber(number));
        // A collection that did not see the pin was preceded by a newer checkpoint.
        while newest() != number {
            number = newest();
            pin = hub.snapshots.pin(CheckpointNumber(number));
        }
        let copied = hub.copy_to(&*self.local, &**target, number, &self.to.address);
        drop(pin);
        if let Err(failure) = copied {
            return failed(failure);
        }
        let retention = Retention { keep: self.to.keep, ..Retention::default() };
        let (now, owner) = (hub.now(), hub.copies.owner);
        let collected = self.collector.collect(&**target, owner, now, &retention, &BTreeSet::new());
        let failure = collected.err().map(|error| format!("cannot collect old copies: {error}"));
        Round { copied: Some(number), failure }
    }
}

impl<E: Env> Part<Shared<E>> for CopyPart {
    type Error = Infallible;

    fn bell<'h>(&self, hub: &'h Shared<E>) -> &'h Bell {
        &hub.copies.bell
    }

    fn turn(&mut self, hub: &Shared<E>, now: Time) -> Result<Turned, Infallible> {
        if hub.copies.cancel.is_cancelled() {
            return Ok(Turned::Ended);
        }
        if hub.snapshots.newest.load(Ordering::Relaxed) <= self.copied {
            return Ok(Turned::Until(None));
        }
        if now < self.due {
            return Ok(Turned::Until(Some(self.due)));
        }
        // The bell is rung at the end of the requested copy that has it.
        let Some(turn) = hub.copies.turn_of_part() else { return Ok(Turned::Until(None)) };
        // The thread must continue, whatever a service's client does.
        let round = panics::catch_own(|| self.round(hub)).unwrap_or_else(|panic| {
            self.target = None;
            let failure = format!("the copy panicked; this is a bug in Stead: {panic}");
            Round { copied: None, failure: Some(failure) }
        });
        drop(turn);
        if !hub.copies.cancel.is_cancelled() {
            self.note(hub, now, round);
        }
        Ok(Turned::Again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::tests::{Nothing, shared};
    use std::sync::mpsc;
    use std::thread;
    use stead_store::checkpoint::store::DiskStore;
    use stead_store::sim_disk::SimDisk;

    #[test]
    fn a_copy_over_the_limit_is_refused_until_another_has_ended() {
        let shared = shared();
        let mut asked: Vec<AskedCopy<Nothing>> =
            (0..ASKED_MAX).map(|_| AskedCopy::admit(&shared).unwrap()).collect();
        let refused = AskedCopy::admit(&shared).err();
        assert_eq!(refused, Some(CheckpointFailure::Busy(ASKED_MAX)));
        asked.pop();
        assert!(AskedCopy::admit(&shared).is_ok());
    }

    #[test]
    fn a_round_waits_for_copies_by_hand_and_one_that_failed_is_repeated_later() {
        let hub = shared();
        let store = DiskStore::open(Arc::new(SimDisk::new(1)), "checkpoints").unwrap();
        let (address, interval) = ("nowhere".to_owned(), Duration::from_secs(3_600));
        let mut part = CopyPart::new(Arc::new(store), CopyTarget { address, interval, keep: 1 });
        let mut turn = |now| part.turn(&*hub, now).unwrap();
        assert_eq!(turn(hub.now()), Turned::Until(None), "there is no checkpoint");
        hub.snapshots.newest.store(1, Ordering::Relaxed);
        let held = hub.copies.turn();
        hub.copies.bell.take_ring();
        assert_eq!(turn(hub.now()), Turned::Until(None), "a copy by hand has the turn");
        drop(held);
        assert!(hub.copies.bell.take_ring(), "its end wants a turn of the part");
        for seconds in [1, 2, 4] {
            let before = hub.now();
            assert_eq!(turn(Time(u64::MAX)), Turned::Again);
            assert!(hub.copies.status().is_none(), "nothing is copied unless asked for");
            let Turned::Until(Some(due)) = turn(hub.now()) else { panic!("the address is invalid") };
            assert!(
                due >= before.plus_millis(seconds * 1_000) && due <= hub.now().plus_millis(seconds * 1_000)
            );
        }
        hub.copies.stop();
        assert_eq!(turn(hub.now()), Turned::Ended);
    }
    #[test]
    fn copies_by_hand_that_overlap_let_the_automatic_one_go_first() {
        let hub = shared();
        let first = hub.copies.turn();
        assert!(hub.copies.turn_of_part().is_none(), "a copy by hand has the turn");
        let (ends, second_ends) = mpsc::channel();
        let second = thread::spawn({
            let hub = Arc::clone(&hub);
            move || {
                let turn = hub.copies.turn();
                second_ends.recv().unwrap();
                drop(turn);
            }
        });
        drop(first);
        let part = hub.copies.turn_of_part().expect("the part has the next turn");
        drop(part);
        ends.send(()).unwrap();
        second.join().unwrap();
    }

    #[test]
    fn a_copy_by_hand_does_not_wait_for_a_part_that_has_ended() {
        let hub = shared();
        let first = hub.copies.turn();
        assert!(hub.copies.turn_of_part().is_none(), "a copy by hand has the turn");
        let second = thread::spawn({
            let hub = Arc::clone(&hub);
            move || drop(hub.copies.turn())
        });
        drop(first);
        hub.copies.stop();
        second.join().unwrap();
    }
}
