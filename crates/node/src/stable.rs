//! Stable storage: checkpoints that are copied away from the node's own disk, when asked for and by a thread of their own.

#![expect(clippy::disallowed_methods, reason = "the copies are made by a thread of their own")]

use crate::checkpoint::CheckpointFailure;
use crate::env::Env;
use crate::events;
use crate::open::CopyTarget;
use crate::pace::Pace;
use crate::panics;
use crate::shared::Shared;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stead_core::checkpointing::pace::Meter;
use stead_core::ids::Colour;
use stead_store::checkpoint::CheckpointError;
use stead_store::checkpoint::collect::{Collector, Retention};
use stead_store::checkpoint::copy::{Owner, copy};
use stead_store::checkpoint::manifest::read_manifest;
use stead_store::checkpoint::remote::{self, Cancel};
use stead_store::checkpoint::store::BlobStore;

/// A checkpoint that was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Its number.
    pub number: u64,
    /// Where the copy is.
    pub to: String,
    /// How long it took.
    pub duration: Duration,
    /// Bundles that were written.
    pub bundles_written: u64,
    /// Bundles that were there already.
    pub bundles_reused: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

/// How the copying to stable storage stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Where checkpoints are copied to.
    pub to: String,
    /// The newest checkpoint that is there, if this life of the process has copied one.
    pub newest: Option<u64>,
    /// Why the last attempt failed, if it did. It is repeated.
    pub failure: Option<String>,
}

/// Copies by hand that may run or wait at a time; more are refused.
const ASKED_MAX: usize = 16;

/// A copy by hand that may run; it counts until it is dropped.
pub(crate) struct AskedCopy<E: Env>(Arc<Shared<E>>);

impl<E: Env> AskedCopy<E> {
    /// # Errors
    /// [`CheckpointFailure::Busy`] if as many run or wait as may.
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

/// What all copies of a node share.
pub(crate) struct Copies {
    owner: Owner,
    pace: Pace,
    cancel: Cancel,
    /// One copy or collection at a time: a collection must not meet bundles whose manifest is still to come.
    turn: Mutex<()>,
    /// Copies by hand that run or wait for their turn, each with a thread.
    asked: AtomicUsize,
    status: Mutex<Option<CopyStatus>>,
    /// A checkpoint is complete, or the node stops.
    news: Condvar,
}

impl Copies {
    pub(crate) fn new(owner: Owner, bytes_per_second: u64, to: Option<&CopyTarget>) -> Self {
        let status = to.map(|target| CopyStatus { to: target.address.clone(), ..CopyStatus::default() });
        Self {
            owner,
            pace: Pace::new(bytes_per_second),
            cancel: Cancel::default(),
            turn: Mutex::default(),
            asked: AtomicUsize::new(0),
            status: Mutex::new(status),
            news: Condvar::new(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<CopyStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if nothing is copied unless asked for.
    pub(crate) fn status(&self) -> Option<CopyStatus> {
        self.held().clone()
    }

    /// The newest checkpoint is another one.
    pub(crate) fn completed(&self) {
        let _held = self.held();
        self.news.notify_all();
    }

    /// Breaks off all copies; what is at the target by then is found and reused by the next attempt.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        // A copy that waits for the pace goes on, and finds that it is over.
        self.pace.set(0);
        let _held = self.held();
        self.news.notify_all();
    }

    /// Waits, after [`Self::stop`], until no copy reads the data any more.
    pub(crate) fn await_end(&self) {
        drop(self.turn());
    }

    /// Waits for a checkpoint that is newer than the one that was copied, and until it is due; false when the node stops.
    fn await_newer<E: Env>(&self, shared: &Shared<E>, copied: u64, due: Instant) -> bool {
        let mut held = self.held();
        while !self.cancel.is_cancelled() {
            let is_newer = shared.snapshots.newest.load(Ordering::Relaxed) > copied;
            let wait = due.saturating_duration_since(Instant::now());
            held = match (is_newer, wait.is_zero()) {
                (true, true) => return true,
                (true, false) => self.news.wait_timeout(held, wait).unwrap_or_else(PoisonError::into_inner).0,
                (false, _) => self.news.wait(held).unwrap_or_else(PoisonError::into_inner),
            };
        }
        false
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
/// [`CheckpointError`]: then the checkpoint does not exist at the target, and a repetition goes on from there.
pub fn copy_stored(
    local: &dyn BlobStore,
    target: &dyn BlobStore,
    owner: Owner,
    number: u64,
    address: &str,
    paced: &mut dyn FnMut(u64),
) -> Result<CopyReport, CheckpointError> {
    let begun = Instant::now();
    let manifest = read_manifest(local, Colour(number))?;
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
        let _pin = self.snapshots.pin(Colour(number));
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

/// The thread that copies the newest checkpoints to one target, and keeps the newest there.
pub(crate) struct Stage<E: Env> {
    shared: Arc<Shared<E>>,
    local: Arc<dyn BlobStore>,
    to: CopyTarget,
    target: Option<Arc<dyn BlobStore>>,
    collector: Collector,
}

/// What one round did.
struct Round {
    copied: Option<u64>,
    failure: Option<String>,
}

impl<E: Env> Stage<E> {
    pub(crate) fn new(shared: Arc<Shared<E>>, local: Arc<dyn BlobStore>, to: CopyTarget) -> Self {
        Self { shared, local, to, target: None, collector: Collector::new() }
    }

    /// Runs until the node ends. The first checkpoint is copied at once: a node that is started often still copies.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let (mut copied, mut due, mut failures, mut was_reported) = (0, Instant::now(), 0, false);
        while shared.copies.await_newer(&shared, copied, due) {
            let begun = Instant::now();
            // The work must go on, whatever a service's client does.
            let round = panics::catch_own(|| self.round()).unwrap_or_else(|panic| {
                self.target = None;
                let failure = format!("the copy panicked; this is a bug in Stead: {panic}");
                Round { copied: None, failure: Some(failure) }
            });
            if shared.copies.cancel.is_cancelled() {
                return;
            }
            if let Some(number) = round.copied {
                (copied, due, failures) = (number, begun + self.to.interval, 0);
            } else {
                let wait = RETRY.saturating_mul(1 << failures).min(self.to.interval);
                (due, failures) = (Instant::now() + wait, (failures + 1).min(20));
            }
            let address = &self.to.address;
            match &round.failure {
                Some(reason) if !was_reported => {
                    events::warn(format_args!(
                        "copying checkpoints to {address} fails: {reason}; the node keeps running and retries the copy"
                    ));
                }
                None if was_reported => events::info(format_args!(
                    "checkpoint {copied} was copied to {address}: copying works again"
                )),
                _ => {}
            }
            was_reported = round.failure.is_some();
            if let Some(status) = &mut *shared.copies.held() {
                status.newest = round.copied.or(status.newest);
                status.failure = round.failure;
            }
        }
    }

    fn round(&mut self) -> Round {
        let shared = Arc::clone(&self.shared);
        let _turn = shared.copies.turn();
        let failed = |failure: CheckpointFailure| Round { copied: None, failure: Some(failure.to_string()) };
        let target = match &mut self.target {
            Some(target) => target,
            none => match shared.copies.open(&self.to.address) {
                Ok(target) => none.insert(target),
                Err(failure) => {
                    shared.counters.checkpoint_copies_failed.add(1);
                    return failed(failure);
                }
            },
        };
        let newest = || shared.snapshots.newest.load(Ordering::Relaxed);
        let mut number = newest();
        let mut pin = shared.snapshots.pin(Colour(number));
        // A collection that did not see the pin had a newer checkpoint before it.
        while newest() != number {
            number = newest();
            pin = shared.snapshots.pin(Colour(number));
        }
        let copied = shared.copy_to(&*self.local, &**target, number, &self.to.address);
        drop(pin);
        if let Err(failure) = copied {
            return failed(failure);
        }
        let retention = Retention { keep: self.to.keep, ..Retention::default() };
        let (now, incarnation) = (shared.now(), shared.topology.incarnation);
        let collected = self.collector.collect(&**target, incarnation, now, &retention, &BTreeSet::new());
        let failure = collected.err().map(|error| format!("cannot collect old copies: {error}"));
        Round { copied: Some(number), failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::tests::{Nothing, shared};

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
}
